package hcm

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/http2frame"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

// ranked is a worker with a route of high priority, /high, beside /low, and one host that answers when the test says so. Another
// worker's cells are others.
type ranked struct {
	*sim
	others  *counters.Cluster
	h2      bool // of the host
	servers map[*simulated.Peer]*h2Server
	clients []*simulated.Peer
	came    []*arrival
}

// arrival is a request that reached the host.
type arrival struct {
	path string
	peer *simulated.Peer
	id   uint32 // of an HTTP/2 stream
}

func newRanked(t *testing.T, protocol string, low, high *configv1.CircuitBreaker, retry *configv1.RetryPolicy) *ranked {
	t.Helper()
	h := defaults()
	all := h.VirtualHosts[0].Routes[0]
	all.GetRoute().Retry = retry
	first := proto.CloneOf(all)
	first.Match = &configv1.RouteMatch{Path: &configv1.RouteMatch_Prefix{Prefix: "/high"}}
	first.GetRoute().Priority = configv1.RoutingPriority_ROUTING_PRIORITY_HIGH
	h.VirtualHosts[0].Routes = []*configv1.Route{first, all}
	up := &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000, Protocol: protocol, CircuitBreaker: low, CircuitBreakerHigh: high}
	x := &ranked{
		sim: newSimCluster(t, up, h), others: new(counters.Cluster), h2: protocol == "http2",
		servers: map[*simulated.Peer]*h2Server{},
	}
	config := *x.manager.Cluster(0)
	config.Cells = append(config.Cells, x.others)
	x.manager.Update([]*upstream.Config{&config})
	return x
}

// ask sends a request by a client of its own, which is answered by its number.
func (x *ranked) ask(path string) int {
	x.t.Helper()
	c := x.client()
	c.Send([]byte("GET " + path + " HTTP/1.1\r\nHost: h\r\n\r\n"))
	x.clients = append(x.clients, c)
	x.look()
	return len(x.clients) - 1
}

// look sees what reached the host.
func (x *ranked) look() {
	x.t.Helper()
	x.turn()
	for _, p := range x.backlog.Peers {
		if !x.h2 {
			for _, head := range strings.Split(string(p.ReceiveAll()), "\r\n\r\n") {
				if fields := strings.Fields(head); len(fields) > 1 {
					x.came = append(x.came, &arrival{path: fields[1], peer: p})
				}
			}
			continue
		}
		u := x.servers[p]
		if u == nil {
			if p.Waiting() == 0 {
				continue
			}
			u = &h2Server{sim: x.sim, peer: p}
			u.decoder.Init(4096)
			x.servers[p] = u
			p.Send(http2frame.AppendSettings(nil))
		}
		for _, word := range strings.Fields(u.got()) {
			a := &arrival{peer: p}
			if path, rest, ok := strings.Cut(strings.TrimPrefix(word, "GET"), "("); ok && strings.HasPrefix(word, "GET") {
				fmt.Sscanf(rest, "%d", &a.id)
				a.path = path
				x.came = append(x.came, a)
			}
		}
	}
}

// reached holds the paths of the requests that have reached the host since the start, in order.
func (x *ranked) reached(want ...string) {
	x.t.Helper()
	var got []string
	for _, a := range x.came {
		got = append(got, a.path)
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		x.t.Errorf("the host got %v, want %v", got, want)
	}
}

// answer ends the n-th request that reached the host.
func (x *ranked) answer(n int, headers string) {
	x.t.Helper()
	if n >= len(x.came) {
		x.t.Fatalf("only %d requests have reached the host", len(x.came))
	}
	a := x.came[n]
	if x.h2 {
		a.peer.Send(answer(a.id))
	} else {
		a.peer.Send([]byte("HTTP/1.1 204 No Content\r\n" + headers + "\r\n"))
	}
	x.look()
}

// got holds how a request was answered; "" is not yet.
func (x *ranked) got(client int, status string) {
	x.t.Helper()
	head, _, _ := strings.Cut(string(x.clients[client].ReceiveAll()), "\r\n")
	if _, code, _ := strings.Cut(head, " "); !strings.HasPrefix(code, status) || status == "" && code != "" {
		x.t.Errorf("request %d: answered %q, want %q", client, code, status)
	}
}

// gauges holds a gauge of both priorities and high's part.
func (x *ranked) gauges(gauge int, all, high uint64) {
	x.t.Helper()
	if x.cluster[gauge] != all || x.cluster[gauge+1] != high {
		x.t.Errorf("cell %d is %d, of high priority %d; want %d and %d", gauge, x.cluster[gauge], x.cluster[gauge+1], all, high)
	}
}

// overflowed holds that the last request was refused by a breaker.
func (x *ranked) overflowed(client int) {
	x.t.Helper()
	x.got(client, "503")
	if l := x.last(); l.flags != "UO" {
		x.t.Errorf("logged %+v", l)
	}
}

func eachProtocol(t *testing.T, test func(t *testing.T, protocol string)) {
	for _, protocol := range []string{"http1", "http2"} {
		t.Run(protocol, func(t *testing.T) { test(t, protocol) })
	}
}

// TestPriorityRequests: each priority fills its own max_requests, and what other workers have under way counts for theirs.
func TestPriorityRequests(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol string) {
		for _, order := range [][2]string{{"/low", "/high"}, {"/high", "/low"}} {
			t.Run(order[0]+" first", func(t *testing.T) {
				x := newRanked(t, protocol, &configv1.CircuitBreaker{MaxRequests: 4}, &configv1.CircuitBreaker{MaxRequests: 3}, nil)
				x.others[counters.ClusterUpstreamRqActive], x.others[counters.ClusterUpstreamRqActiveHigh] = 4, 1 // three of default
				room := map[string]int{"/low": 1, "/high": 2}
				var want []string
				for _, path := range order {
					for range room[path] {
						x.ask(path)
						want = append(want, path)
					}
					x.overflowed(x.ask(path))
				}
				x.reached(want...)
				x.gauges(counters.ClusterUpstreamRqActive, 3, 2)
				if n := x.cluster[counters.ClusterUpstreamRqPendingOverflow]; n != 2 {
					t.Errorf("%d overflows counted", n)
				}
				for i := range want {
					x.answer(i, "")
				}
				x.gauges(counters.ClusterUpstreamRqActive, 0, 0)
			})
		}
	})
}

// TestPriorityGaugesRace: cells that are read between the stores of two gauges never make the default priority's part huge.
func TestPriorityGaugesRace(t *testing.T) {
	x := newRanked(t, "http1", &configv1.CircuitBreaker{MaxRequests: 1}, nil, nil)
	x.others[counters.ClusterUpstreamRqActiveHigh] = 1
	c := x.ask("/low")
	x.reached("/low")
	x.answer(0, "")
	x.got(c, "204")
}

// TestPriorityPending: each priority has a max_pending_requests of its own.
func TestPriorityPending(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol string) {
		one := func() *configv1.CircuitBreaker {
			return &configv1.CircuitBreaker{MaxPendingRequests: proto.Uint32(1)}
		}
		x := newRanked(t, protocol, one(), one(), nil)
		x.backlog.Pending = true
		low := x.ask("/low")
		x.overflowed(x.ask("/low"))
		high := x.ask("/high")
		x.overflowed(x.ask("/high"))
		x.gauges(counters.ClusterUpstreamRqPendingActive, 2, 1)
		x.got(low, "")
		x.got(high, "")
		for _, p := range x.backlog.Peers {
			p.Establish()
		}
		x.look()
		x.reached("/high", "/low") // the one that came later goes first
		x.gauges(counters.ClusterUpstreamRqPendingActive, 0, 0)
		x.answer(0, "")
		x.answer(1, "")
		x.got(low, "204")
		x.got(high, "204")
	})
}

// TestPriorityConnections: a priority at its max_connections does not keep the other one from opening its own; connections that
// become free go to high first, whoever opened them.
func TestPriorityConnections(t *testing.T) {
	one := func() *configv1.CircuitBreaker { return &configv1.CircuitBreaker{MaxConnections: 1} }
	for _, test := range []struct {
		name  string
		close string // what the first answer says about its connection
	}{{"kept", ""}, {"closed", "Connection: close\r\n"}} {
		t.Run(test.name, func(t *testing.T) {
			x := newRanked(t, "http1", one(), one(), nil)
			x.ask("/low/1")
			x.ask("/low/2")
			x.ask("/high/1")
			x.ask("/high/2")
			x.reached("/low/1", "/high/1")
			x.gauges(counters.ClusterUpstreamCxActive, 2, 1)
			x.gauges(counters.ClusterUpstreamRqPendingActive, 2, 1)
			x.answer(0, test.close)
			x.reached("/low/1", "/high/1", "/high/2")
			x.gauges(counters.ClusterUpstreamCxActive, 2, 1)
			x.answer(1, "")
			x.reached("/low/1", "/high/1", "/high/2", "/low/2")
			x.answer(2, "")
			x.answer(3, "")
			for c := range x.clients {
				x.got(c, "204")
			}
			x.gauges(counters.ClusterUpstreamCxActive, 2, 1) // idle, and everybody's
			x.ask("/low/3")
			x.ask("/low/4")
			x.gauges(counters.ClusterUpstreamCxActive, 2, 1)
			x.answer(4, "Connection: close\r\n")
			x.answer(5, "Connection: close\r\n")
			x.gauges(counters.ClusterUpstreamCxActive, 0, 0)
		})
	}
}

// TestPriorityConnectionLimits: each priority has a max_connections of its own, over all workers, also for those that are opened
// ahead of their requests.
func TestPriorityConnectionLimits(t *testing.T) {
	for _, test := range []struct {
		name                string
		preconnect          uint32
		asks                []string
		reached             int
		connections, ofHigh uint64
	}{
		{"default", 0, []string{"/low", "/low", "/low"}, 2, 2, 0},
		{"high", 0, []string{"/high", "/high", "/high", "/high"}, 3, 3, 3},
		{"both", 0, []string{"/low", "/low", "/low", "/high", "/high", "/high", "/high"}, 5, 5, 3},
		{"ahead for default", 300, []string{"/low"}, 1, 2, 0},
		{"ahead for high", 300, []string{"/high"}, 1, 3, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := newRanked(t, "http1", &configv1.CircuitBreaker{MaxConnections: 3}, &configv1.CircuitBreaker{MaxConnections: 4}, nil)
			config := *x.manager.Cluster(0)
			changed := *config.Cluster
			changed.Preconnect = test.preconnect
			config.Cluster = &changed
			x.manager.Update([]*upstream.Config{&config})
			x.others[counters.ClusterUpstreamCxActive], x.others[counters.ClusterUpstreamCxActiveHigh] = 2, 1
			for _, path := range test.asks {
				x.ask(path)
			}
			if len(x.came) != test.reached {
				t.Errorf("%d requests have reached the host, want %d", len(x.came), test.reached)
			}
			x.gauges(counters.ClusterUpstreamCxActive, test.connections, test.ofHigh)
		})
	}
}

// TestPriorityConnectionFails: a connection that cannot be made fails a request of the priority that it was made for.
func TestPriorityConnectionFails(t *testing.T) {
	x := newRanked(t, "http1", nil, nil, nil)
	x.backlog.Pending = true
	low, high := x.ask("/low"), x.ask("/high")
	x.backlog.Peers[0].Refuse(111)
	x.look()
	x.got(low, "503")
	x.got(high, "")
	x.backlog.Peers[1].Establish()
	x.look()
	x.reached("/high")
	x.answer(0, "")
	x.got(high, "204")
}

// TestPriorityLeavesTheQueue: nothing is left of those that give up while they wait.
func TestPriorityLeavesTheQueue(t *testing.T) {
	eachProtocol(t, func(t *testing.T, protocol string) {
		x := newRanked(t, protocol, nil, nil, nil)
		x.backlog.Pending = true
		for _, path := range []string{"/low", "/high", "/low", "/high"} {
			x.ask(path)
		}
		x.gauges(counters.ClusterUpstreamRqPendingActive, 4, 2)
		x.clients[1].Reset()
		x.clients[2].Reset()
		x.look()
		x.gauges(counters.ClusterUpstreamRqPendingActive, 2, 1)
		for _, p := range x.backlog.Peers {
			p.Establish()
		}
		x.look()
		x.reached("/high", "/low")
		x.gauges(counters.ClusterUpstreamRqPendingActive, 0, 0)
	})
}

// TestPriorityRetries: retries are bounded by those of the same priority, and a budget by its requests.
func TestPriorityRetries(t *testing.T) {
	budget := &configv1.CircuitBreaker{RetryBudgetPercent: 10}
	for _, test := range []struct {
		name      string
		low, high *configv1.CircuitBreaker
		cells     [4]uint64 // of the other worker: retries, of these high; requests, of these high
		path      string
		again     bool
	}{
		{"default is full", nil, nil, [4]uint64{3, 0}, "/low", false},
		{"default is full, high is not", nil, nil, [4]uint64{3, 0}, "/high", true},
		{"high is full", nil, nil, [4]uint64{3, 3}, "/high", false},
		{"high is full, default is not", nil, nil, [4]uint64{3, 3}, "/low", true},
		{"high has a limit of its own", nil, &configv1.CircuitBreaker{MaxRetries: proto.Uint32(5)}, [4]uint64{4, 4}, "/high", true},
		{"a budget of default's requests", budget, budget, [4]uint64{5, 0, 100, 0}, "/low", true},
		{"high's requests do not count for it", budget, budget, [4]uint64{5, 0, 100, 90}, "/low", false},
		{"a budget of high's requests", budget, budget, [4]uint64{5, 5, 100, 90}, "/high", true},
		{"default's requests do not count for it", budget, budget, [4]uint64{5, 5, 100, 10}, "/high", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := newRanked(t, "http1", test.low, test.high, &configv1.RetryPolicy{On: []string{"5xx"}})
			x.others[counters.ClusterUpstreamRqRetryActive], x.others[counters.ClusterUpstreamRqRetryActiveHigh] = test.cells[0], test.cells[1]
			x.others[counters.ClusterUpstreamRqActive], x.others[counters.ClusterUpstreamRqActiveHigh] = test.cells[2], test.cells[3]
			c := x.ask(test.path)
			x.came[0].peer.Send([]byte("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"))
			x.turn()
			if test.again {
				high := uint64(0)
				if test.path == "/high" {
					high = 1
				}
				x.gauges(counters.ClusterUpstreamRqRetryActive, 1, high)
				x.net.Advance(int64(longest))
				x.look()
				x.answer(1, "")
				x.got(c, "204")
				x.gauges(counters.ClusterUpstreamRqRetryActive, 0, 0)
				return
			}
			x.got(c, "500")
			if l := x.last(); l.flags != "UO" || x.cluster[counters.ClusterUpstreamRqRetryOverflow] != 1 {
				t.Errorf("logged %+v, %d overflows", l, x.cluster[counters.ClusterUpstreamRqRetryOverflow])
			}
		})
	}
}
