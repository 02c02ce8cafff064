package hcm

import (
	"net/netip"
	"strings"
	"testing"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestHostLeaves: a request that waits for a connection to a host that goes out is answered by another; one that is under way ends
// where it is; and what was being connected is not kept.
func TestHostLeaves(t *testing.T) {
	const other = "192.0.2.81:8080"
	net := simulated.New()
	first := net.Serve(poller.NewTCP(netip.MustParseAddrPort(simUpstream)))
	second := net.Serve(poller.NewTCP(netip.MustParseAddrPort(other)))
	up := &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000, Endpoints: []*configv1.Endpoint{{Address: simUpstream}, {Address: other, Priority: 1}}}
	s := &sim{net: net, backlog: first, world: assemble(t, net, up, defaults())}
	running := s.client()
	running.Send(plainRequest)
	s.turn()
	if first.Last().Discard() == 0 {
		t.Fatal("no request reached the first host")
	}
	first.Pending = true
	waiting := s.client()
	waiting.Send(plainRequest)
	s.turn()
	if n := s.cluster[counters.ClusterUpstreamRqPendingActive]; n != 1 || len(first.Peers) != 2 {
		t.Fatalf("%d requests wait, %d connections", n, len(first.Peers))
	}

	built, err := cluster.Build(up, 0, s.manager.Cluster(0).Cluster)
	must(t, err)
	drained := built.WithHosts(built.Hosts.Judge(func(h *cluster.Host) cluster.Standing {
		if h.Address == simUpstream {
			return cluster.Standing{Grade: cluster.Drained}
		}
		return cluster.Standing{}
	}))
	s.manager.Update([]*upstream.Config{{Cluster: drained, Cells: []*counters.Cluster{s.cluster}}})
	s.turn()
	if len(second.Peers) != 1 || second.Last().Discard() == 0 {
		t.Fatal("the request that waited is not with the other host")
	}
	second.Last().Send(plainResponse)
	first.Peers[0].Send(plainResponse)
	s.turn()
	for name, c := range map[string]*simulated.Peer{"that was under way": running, "that waited": waiting} {
		if got := string(c.ReceiveAll()); !strings.HasPrefix(got, "HTTP/1.1 200 OK\r\n") {
			t.Errorf("the request %s got %.40q", name, got)
		}
	}
	first.Peers[1].Establish()
	s.turn()
	if !first.Peers[0].Gone() || !first.Peers[1].Gone() {
		t.Error("connections to the host that left are kept")
	}
	if total := s.cluster[counters.ClusterUpstreamRqTotal]; total != 2 {
		t.Errorf("%d requests upstream, want 2", total)
	}
}
