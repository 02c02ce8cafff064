package hcm

import (
	"bytes"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// sim is a world over the simulated network: the test moves the clock and holds the far end of every connection.
type sim struct {
	*world
	net     *simulated.Network
	backlog *simulated.Service // of the upstream
}

const simUpstream = "192.0.2.80:8080"

var simClient = netip.MustParseAddrPort("198.51.100.7:40000")

func newSim(t testing.TB, h *configv1.Http, filters ...stream.Factory) *sim {
	return newSimCluster(t, &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000}, h, filters...)
}

func newSimCluster(t testing.TB, up *configv1.Cluster, h *configv1.Http, filters ...stream.Factory) *sim {
	t.Helper()
	up.Endpoints = []*configv1.Endpoint{{Address: simUpstream}}
	net := simulated.New()
	s := &sim{net: net, backlog: net.Serve(poller.NewTCP(netip.MustParseAddrPort(simUpstream)))}
	s.world = assemble(t, net, up, h, filters...)
	return s
}

// client connects to the manager.
func (s *sim) client() *simulated.Peer {
	fd, p := s.net.Pair()
	s.accept(fd, simClient)
	return p
}

var (
	plainRequest  = []byte("GET /1k HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: wrk\r\nAccept: */*\r\n\r\n")
	closeRequest  = []byte("GET /1k HTTP/1.1\r\nHost: shop.example.com\r\nConnection: close\r\n\r\n")
	plainResponse = append([]byte("HTTP/1.1 200 OK\r\nServer: upstream\r\nContent-Type: application/octet-stream\r\n"+
		"Cache-Control: no-store\r\nContent-Length: 1024\r\n\r\n"), make([]byte, 1024)...)
)

// exchange carries one request and its response over connections that stay.
func (s *sim) exchange(client *simulated.Peer) { s.carry(client, plainRequest) }

// carry is exchange with another request.
func (s *sim) carry(client *simulated.Peer, request []byte) {
	client.Send(request)
	s.worker.Turn(0)
	up := s.backlog.Last()
	if up.Discard() == 0 {
		s.t.Fatal("no request reached the upstream")
	}
	up.Send(plainResponse)
	s.worker.Turn(0)
	if client.Discard() < len(plainResponse) {
		s.t.Fatal("no response reached the client")
	}
}

// warm makes the connections and lets every free list and scratch buffer grow to what it needs.
func (s *sim) warm() *simulated.Peer {
	client := s.client()
	client.Send(plainRequest)
	s.turn()
	s.turn()
	s.backlog.Last().Discard()
	s.backlog.Last().Send(plainResponse)
	s.turn()
	client.Discard()
	for range 100 {
		s.exchange(client)
	}
	s.logged.lines = nil
	return client
}

func TestRequestAllocatesNothing(t *testing.T) {
	s := newSim(t, defaults())
	s.filter.Config.Logs = nil
	client := s.warm()
	if n := testing.AllocsPerRun(1000, func() { s.exchange(client) }); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
}

// A connection of its own for each request: the kernel is the real one, since a simulated one allocates its sockets.
func TestConnectionPerRequestAllocatesNothing(t *testing.T) {
	x := newWorld(t, defaults())
	x.filter.Config.Logs = nil
	up := -1
	var buf [8192]byte
	once := func() {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		x.accept(int32(fds[0]), netip.AddrPort{})
		if _, err := unix.Write(fds[1], closeRequest); err != nil {
			t.Fatal(err)
		}
		for x.worker.Turn(0); up < 0; x.worker.Turn(0) {
			if fd, _, err := unix.Accept4(x.listen, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC); err == nil {
				up = fd
			}
		}
		read(t, x, up, buf[:])
		if _, err := unix.Write(up, plainResponse); err != nil {
			t.Fatal(err)
		}
		if n := read(t, x, fds[1], buf[:]); n < 1024 {
			t.Fatalf("%d bytes of a response", n)
		}
		if n := read(t, x, fds[1], buf[:]); n != 0 {
			t.Fatalf("%d bytes behind the response", n)
		}
		unix.Close(fds[1])
	}
	for range 100 {
		once()
	}
	if n := testing.AllocsPerRun(300, once); n > 0 {
		t.Errorf("%v allocations a connection with its request", n)
	}
	unix.Close(up)
	x.turn()
}

// read waits for bytes, or the end.
func read(t *testing.T, x *world, fd int, b []byte) int {
	for range 1000 {
		n, err := unix.Read(fd, b)
		if err == nil {
			return n
		}
		x.worker.Turn(0)
	}
	t.Fatal("waited in vain for bytes")
	return 0
}

func BenchmarkRequest(b *testing.B) {
	s := newSim(b, defaults())
	s.filter.Config.Logs = nil
	client := s.warm()
	b.ReportAllocs()
	for b.Loop() {
		s.exchange(client)
	}
}

// A request that has a key and a subset costs no memory either, nor does the cookie that its client is given.
func TestChosenHostAllocatesNothing(t *testing.T) {
	ttl := int64(60_000)
	h := defaults()
	a := h.VirtualHosts[0].Routes[0].GetRoute()
	a.HashPolicies = []*configv1.HashPolicy{
		{Kind: &configv1.HashPolicy_Header{Header: "user-agent"}},
		{Kind: &configv1.HashPolicy_Source{Source: true}},
		{Kind: &configv1.HashPolicy_Query{Query: "q"}},
		{Kind: &configv1.HashPolicy_Cookie{Cookie: &configv1.HashCookie{Name: "c", TtlMs: &ttl}}},
	}
	a.Subset = []*configv1.Metadata{{Name: "version", Value: "v1"}}
	s := newSimCluster(t, &configv1.Cluster{
		Name: "up", ConnectTimeoutMs: 5000, Balance: configv1.Balance_BALANCE_RING_HASH,
		Subsets: []*configv1.SubsetSelector{{Keys: []string{"version"}, Fallback: configv1.SubsetFallback_SUBSET_FALLBACK_ANY}},
	}, h)
	s.filter.Config.Logs = nil
	client := s.warm()
	if n := testing.AllocsPerRun(1000, func() { s.exchange(client) }); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
	if s.cluster[counters.ClusterLBSubsetsFallback] == 0 {
		t.Error("no request asked for a subset")
	}
}

// A rewrite by an expression costs no memory.
func TestRegexRewriteAllocatesNothing(t *testing.T) {
	h := defaults()
	h.VirtualHosts[0].Routes[0].GetRoute().RegexRewrite = &configv1.RegexRewrite{Pattern: "^/([0-9]+)(k?)$", Substitution: `/size/\1/\2`}
	s := newSim(t, h)
	s.filter.Config.Logs = nil
	client := s.warm()
	if n := testing.AllocsPerRun(1000, func() { s.exchange(client) }); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
	client.Send(plainRequest)
	s.turn()
	if got := s.backlog.Last().ReceiveAll(); !bytes.HasPrefix(got, []byte("GET /size/1/k HTTP/1.1\r\n")) {
		t.Errorf("the upstream got %q", got)
	}
}

// Nor does a match by a template and a rewrite of its variables.
func TestTemplateRewriteAllocatesNothing(t *testing.T) {
	h := defaults()
	r := h.VirtualHosts[0].Routes[0]
	r.Match.Path = &configv1.RouteMatch_Template{Template: "/{what}"}
	r.GetRoute().TemplateRewrite = "/size/{what}"
	s := newSim(t, h)
	s.filter.Config.Logs = nil
	client := s.warm()
	if n := testing.AllocsPerRun(1000, func() { s.exchange(client) }); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
	client.Send(plainRequest)
	s.turn()
	if got := s.backlog.Last().ReceiveAll(); !bytes.HasPrefix(got, []byte("GET /size/1k HTTP/1.1\r\n")) {
		t.Errorf("the upstream got %q", got)
	}
}

// Nor does a redirect by an expression, whose answer comes from here.
func TestRegexRedirectAllocatesNothing(t *testing.T) {
	h := defaults()
	h.VirtualHosts[0].Routes[0].Action = &configv1.Route_Redirect{Redirect: &configv1.Redirect{
		Host: "www.example.com", RegexRewrite: &configv1.RegexRewrite{Pattern: "^/([0-9]+)(k?)$", Substitution: `/size/\1/\2`},
	}}
	s := newSim(t, h)
	s.filter.Config.Logs = nil
	client := s.client()
	once := func() {
		client.Send(plainRequest)
		s.turn()
		if client.Discard() == 0 {
			t.Fatal("no answer")
		}
	}
	for range 100 {
		once()
	}
	if n := testing.AllocsPerRun(1000, once); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
}
