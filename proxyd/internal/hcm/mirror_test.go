package hcm

import (
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestMirrorCounters: which copies are counted, and which of them as given up. The client is answered all the same, and nothing of a
// copy is left. The copies go to the cluster of their requests: of two tries at its host the first is the copy.
func TestMirrorCounters(t *testing.T) {
	const timeout = time.Second
	long := strings.Repeat("a", 64<<10)
	for _, test := range []struct {
		name    string
		mirrors []*configv1.Mirror
		pending bool   // no connection is made
		send    string // by the client; get when empty
		play    func(x *hedging)
		total   uint64
		givenUp uint64
		not     string // the protocol of the upstream in which it cannot be
	}{
		{name: "answered", play: func(x *hedging) { x.tries(2)[0].answer(200, "copy") }, total: 1},
		{name: "answered badly", play: func(x *hedging) { x.tries(2)[0].answer(503, "") }, total: 1},
		{name: "cut", play: func(x *hedging) { y := x.tries(2)[0]; y.head(200, 10); y.data("half", false); x.look(); y.fail() }, total: 1},
		{name: "failed", play: func(x *hedging) { x.tries(2)[0].fail() }, total: 1},
		{name: "answered at length", play: func(x *hedging) {
			y := x.tries(2)[0]
			y.head(200, 6)
			y.data("one", false)
			x.look()
			y.data("two", true)
		}, total: 1},
		{name: "not answered in time", play: func(x *hedging) { x.tries(2); x.wait(2 * timeout) }, total: 1, givenUp: 1},
		{
			name: "two copies, one of them stalls", mirrors: []*configv1.Mirror{{Cluster: "up", Fraction: 1_000_000}, {Cluster: "up", Fraction: 1_000_000}},
			play: func(x *hedging) { x.tries(3)[0].answer(200, ""); x.wait(2 * timeout) }, total: 2, givenUp: 1,
		},
		{name: "a cluster that is not there", mirrors: []*configv1.Mirror{{Cluster: "gone", Fraction: 1_000_000}}, play: func(x *hedging) { x.tries(1) }},
		{
			name: "an upgrade has none", send: "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
			play: func(x *hedging) {
				if n := x.cluster[counters.ClusterUpstreamRqTotal]; n != 1 {
					x.t.Errorf("%d requests reached the host", n)
				}
			},
		},
		{
			name: "the request ends early", send: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello",
			play: func(x *hedging) { x.tries(2); x.client1.Reset() }, total: 1, givenUp: 1,
		},
		{
			name: "the request is answered early", send: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello",
			play: func(x *hedging) { x.tries(2)[1].answer(413, ""); x.look() }, total: 1, givenUp: 1,
		},
		{
			name: "it does not keep up", send: "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 262144\r\n\r\n" + long,
			play: func(x *hedging) {
				y := x.tries(2)[0]
				y.peer.SetRoom(1)
				for range 3 {
					x.client1.Send([]byte(long))
					x.turn()
					x.all[1].peer.Discard() // the host of the request does
				}
			}, total: 1, givenUp: 1,
			not: "http2", // both streams share one connection here, and wait for the same window
		},
		{name: "refused", pending: true, play: func(x *hedging) {
			for _, p := range x.backlog.Peers {
				p.Refuse(111)
			}
		}, total: 1},
		{name: "no connection in time", pending: true, play: func(x *hedging) { x.wait(2 * timeout) }, total: 1, givenUp: 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			for _, up := range []string{"http1", "http2"} {
				if up == test.not {
					continue
				}
				t.Run(up, func(t *testing.T) {
					limit := timeout.Milliseconds()
					x := newHedging(t, "http1", up, nil, func(a *configv1.RouteAction) {
						a.TimeoutMs, a.Mirrors = &limit, test.mirrors
						if test.mirrors == nil {
							a.Mirrors = []*configv1.Mirror{{Cluster: "up", Fraction: 1_000_000}}
						}
					})
					x.filter.Config.BufferLimit = 32 << 10
					x.backlog.Pending = test.pending
					if test.send == "" {
						test.send = get
					}
					x.client1.Send([]byte(test.send))
					x.turn()
					test.play(x)
					x.look()
					if n := x.cluster[counters.ClusterShadowTotal]; n != test.total {
						t.Errorf("%d copies are counted, want %d", n, test.total)
					}
					if n := x.cluster[counters.ClusterShadowGivenUp]; n != test.givenUp {
						t.Errorf("%d are counted as given up, want %d", n, test.givenUp)
					}
					x.wait(2 * timeout) // what is not over by now would be
					if got := x.got(); strings.Contains(got, "copy") {
						t.Errorf("the client got %q", got)
					}
					if n := x.cluster[counters.ClusterShadowGivenUp]; n != test.givenUp {
						t.Errorf("%d are counted as given up after the time-out, want %d", n, test.givenUp)
					}
					if n := x.worker.Pool.Used(); n != 0 {
						t.Errorf("%d bytes are kept", n)
					}
				})
			}
		})
	}
}
