package hcm

import (
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	configv1 "retinue.dev/services/api/config/v1"
)

// idleAfter is the per-try idle time-out of these tests.
const idleAfter = 100 * time.Millisecond

func idles() *configv1.RetryPolicy {
	return &configv1.RetryPolicy{On: []string{"5xx"}, Attempts: 1, PerTryIdleTimeoutMs: idleAfter.Milliseconds()}
}

// TestPerTryIdle: a try that nothing comes of is another try's, or 504; what moves goes on, however long it takes.
func TestPerTryIdle(t *testing.T) {
	const late, soon = idleAfter + 5*time.Millisecond, idleAfter * 6 / 10
	for _, test := range []struct {
		name  string
		play  func(x *hedging)
		want  string
		flags string
		more  string // details
		cells map[int]uint64
	}{
		{"silent, then another try", func(x *hedging) {
			x.ask("hello")
			first := x.tries(1)[0]
			x.wait(soon)
			if first.gone() {
				t.Error("given up too early")
			}
			x.wait(late - soon)
			x.wait(longest)
			if second := x.tries(2)[1]; !first.gone() || second.body != "hello" {
				t.Errorf("the first is gone: %v; the second has %q", first.gone(), second.body)
			}
			x.all[1].answer(200, "two")
		}, "200 two", "-", "via_upstream", map[int]uint64{counters.ClusterUpstreamRqPerTryIdleTimeout: 1, counters.ClusterUpstreamRqRetrySuccess: 1, counters.ClusterUpstreamRqRetryBackoffExponential: 1}},
		{"silent to the last", func(x *hedging) {
			x.ask("")
			x.wait(late)
			x.wait(longest)
			x.tries(2)
			x.wait(late)
		}, "504 upstream request timeout", "UT,URX", "upstream_per_try_idle_timeout", map[int]uint64{counters.ClusterUpstreamRqPerTryIdleTimeout: 2, counters.ClusterUpstreamRqXX + 4: 1}},
		{"slow but moving", func(x *hedging) {
			x.ask("")
			y := x.tries(1)[0]
			x.wait(soon)
			y.head(200, 6)
			for _, c := range "moving" {
				x.wait(soon)
				y.data(string(c), c == 'g')
			}
		}, "200 moving", "-", "via_upstream", map[int]uint64{counters.ClusterUpstreamRqPerTryIdleTimeout: 0}},
		{"an interim answer is something", func(x *hedging) {
			x.ask("")
			y := x.tries(1)[0]
			x.wait(soon)
			y.head(103, 0)
			x.wait(soon)
			y.answer(200, "ok")
			x.look()
			x.wait(2 * late) // nobody looks after the end
		}, "103 |200 ok", "-", "via_upstream", map[int]uint64{counters.ClusterUpstreamRqPerTryIdleTimeout: 0}},
	} {
		t.Run(test.name, func(t *testing.T) {
			everyPair(t, func(t *testing.T, down, up string) {
				x := newHedging(t, down, up, idles())
				test.play(x)
				if got := strings.Replace(x.got(), "103 …", "103 ", 1); got != test.want {
					t.Errorf("the client got %q, want %q", got, test.want)
				}
				if l := x.last(); l.flags != test.flags || l.details != test.more {
					t.Errorf("logged %+v", l)
				}
				x.counted(test.cells)
			})
		})
	}
}

// TestPerTryIdleCuts: a response that stops is cut; nobody tries again what the client has begun to get.
func TestPerTryIdleCuts(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		x := newHedging(t, down, up, idles())
		x.ask("")
		y := x.tries(1)[0]
		y.head(200, 6)
		y.data("mov", false)
		x.look()
		x.wait(idleAfter + 5*time.Millisecond)
		x.wait(longest)
		x.tries(1)
		if l := x.last(); l.flags != "UT" || l.details != "upstream_per_try_idle_timeout" || l.status != 200 || !y.gone() {
			t.Errorf("logged %+v, gone %v", l, y.gone())
		}
		if got := x.got(); down == "http2" && !strings.HasSuffix(got, "|RST") || down == "http1" && (got != "200 mov…" || !x.client1.Gone()) {
			t.Errorf("the client got %q", got)
		}
		x.counted(map[int]uint64{counters.ClusterUpstreamRqPerTryIdleTimeout: 1, counters.ClusterUpstreamRqRetry: 0})
	})
}

// TestPerTryIdleBegins: the time runs when the request is complete, and while somebody reads what comes.
func TestPerTryIdleBegins(t *testing.T) {
	t.Run("a request that is not complete", func(t *testing.T) {
		x := newHedging(t, "http1", "http1", idles())
		x.client1.Send([]byte("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello"))
		x.wait(5 * idleAfter)
		x.tries(1)
		x.client1.Send([]byte("world"))
		x.look()
		x.wait(idleAfter * 8 / 10)
		x.all[0].answer(200, "ok")
		x.want("200 ok")
		x.counted(map[int]uint64{counters.ClusterUpstreamRqPerTryIdleTimeout: 0})
	})
	t.Run("a client that does not read", func(t *testing.T) {
		x := newHedging(t, "http1", "http1", idles())
		x.filter.Config.BufferLimit = 32 << 10
		x.client1 = x.client()
		x.client1.SetRoom(1 << 10)
		x.ask("")
		y := x.tries(1)[0]
		body := strings.Repeat("x", 256<<10)
		y.answer(200, body)
		x.look()
		if y.peer.Unread() == 0 {
			t.Fatal("the proxy has read all of it: nobody is slow")
		}
		x.wait(5 * idleAfter)
		x.wait(5 * idleAfter)
		x.client1.SetRoom(1 << 20)
		var got string
		for range 1000 {
			if got += string(x.client1.ReceiveAll()); strings.Count(got, "x") == len(body) {
				break
			}
			x.look()
		}
		if n := strings.Count(got, "x"); n != len(body) {
			t.Errorf("%d of %d bytes arrived: %+v", n, len(body), x.logged.lines)
		}
		x.counted(map[int]uint64{counters.ClusterUpstreamRqPerTryIdleTimeout: 0})
	})
}

// TestPerTryIdleHedges: with hedging the silent try goes on beside the next, as with the per-try time-out.
func TestPerTryIdleHedges(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		p := idles()
		p.HedgeOnPerTryTimeout = true
		x := newHedging(t, down, up, p)
		first, _ := x.both("hello")
		x.wait(5 * idleAfter)
		x.tries(2)
		first.answer(200, "one")
		x.want("200 one")
		x.counted(map[int]uint64{counters.ClusterUpstreamRqPerTryIdleTimeout: 0, counters.ClusterUpstreamRqRetry: 1})
	})
}
