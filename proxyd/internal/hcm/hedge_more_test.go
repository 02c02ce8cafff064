package hcm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestHedgeInThePause: an answer that comes before the second try has begun keeps it from beginning; a failure does not.
func TestHedgeInThePause(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		p := hedges()
		p.BackOffMs, p.MaxBackOffMs = 60_000, 60_000
		never := int64(0)
		x := newHedging(t, down, up, p, func(a *configv1.RouteAction) { a.TimeoutMs = &never })
		x.ask("")
		x.wait(hedgeAfter + 5*time.Millisecond)
		x.tries(1)[0].answer(200, "one")
		x.want("200 one")
		x.wait(time.Minute)
		x.tries(1)
		x.counted(map[int]uint64{counters.ClusterUpstreamRqRetry: 1, counters.ClusterUpstreamRqTotal: 1})

		x.ask("")
		x.wait(hedgeAfter + 5*time.Millisecond)
		x.tries(2)[1].answer(503, "bad")
		x.want("")
		x.wait(time.Minute)
		x.tries(3)[2].answer(200, "three")
		x.want("200 three")
		x.counted(map[int]uint64{counters.ClusterUpstreamRqRetry: 2, counters.ClusterUpstreamRqTotal: 3})
	})
}

// TestHedgeCutInThePause: an answer that breaks off while the second try had not begun is broken off for the client too.
func TestHedgeCutInThePause(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		x := newHedging(t, down, up, hedges())
		x.ask("")
		x.net.Advance(int64(hedgeAfter + 5*time.Millisecond))
		x.worker.Turn(0)
		y := x.all[0]
		y.head(200, 10)
		y.data("half", false)
		if got := x.got(); got != "200 half…" {
			t.Fatalf("the client got %q", got)
		}
		y.fail()
		if got := x.got(); len(x.logged.lines) != 1 {
			t.Errorf("the client waits for the rest; it got %q", got)
		}
		x.counted(map[int]uint64{})
	})
}

// TestHedgeOfAFailure: a second try that fails in a way that the policy does not want repeated leaves the first alone, and no third
// begins.
func TestHedgeOfAFailure(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		p := hedges()
		p.On, p.Attempts = []string{"retriable-4xx"}, 3
		x := newHedging(t, down, up, p)
		first, second := x.both("hello")
		second.fail()
		for range 4 {
			x.wait(hedgeAfter + 5*time.Millisecond)
			x.wait(longest)
		}
		x.tries(2)
		first.answer(200, "one")
		x.want("200 one")
		x.counted(map[int]uint64{counters.ClusterUpstreamRqRetry: 1, counters.ClusterUpstreamRqTotal: 2})
	})
}

// TestNeverHedged: what has one try at a time, whatever the policy says. The request's own time-out still holds.
func TestNeverHedged(t *testing.T) {
	for _, test := range []struct {
		name   string
		before func(x *hedging)
		ask    string
		more   string // sent later
	}{
		{"an upgrade", nil, "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", ""},
		{"a body that is not all there", nil, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello", ""},
		{
			"a body that is too large to be kept", func(x *hedging) { x.filter.Config.BufferLimit = 8 },
			"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\nhello", "world",
		},
		{"a cluster whose retries are used up", func(x *hedging) { x.cluster[counters.ClusterUpstreamRqRetryActive] = 3 }, get, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			timeout := int64(5000)
			x := newHedging(t, "http1", "http1", hedges(), func(a *configv1.RouteAction) { a.TimeoutMs = &timeout })
			if test.before != nil {
				test.before(x)
			}
			x.client1.Send([]byte(test.ask))
			x.look()
			x.client1.Send([]byte(test.more))
			for range 4 {
				x.look()
				x.wait(hedgeAfter + 5*time.Millisecond)
				x.wait(longest)
			}
			x.tries(1)[0].answer(200, "one")
			x.want("200 one")
			if n := x.cluster[counters.ClusterUpstreamRqRetry]; n != 0 {
				t.Errorf("%d retries", n)
			}
			x.cluster[counters.ClusterUpstreamRqRetryActive] = 0
		})
	}
}

// TestHedgeOverflow: what the breaker keeps from being hedged is told.
func TestHedgeOverflow(t *testing.T) {
	x := newHedging(t, "http1", "http1", hedges())
	x.cluster[counters.ClusterUpstreamRqRetryActive] = 3
	x.ask("")
	x.wait(hedgeAfter + 5*time.Millisecond)
	x.tries(1)[0].answer(200, "one")
	x.want("200 one")
	if l := x.last(); l.flags != "UO" || x.cluster[counters.ClusterUpstreamRqRetryOverflow] != 1 {
		t.Errorf("logged %+v, %d overflows", l, x.cluster[counters.ClusterUpstreamRqRetryOverflow])
	}
	x.cluster[counters.ClusterUpstreamRqRetryActive] = 0
}

// TestHedgeWhileConnecting: tries that wait for a connection hedge too, and leave the queue with their request.
func TestHedgeWhileConnecting(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		for _, end := range []string{"answer", "leave", "fail"} {
			x := newHedging(t, down, up, hedges())
			x.backlog.Pending = true
			x.ask("")
			x.wait(hedgeAfter + 5*time.Millisecond)
			x.wait(longest)
			if n := x.cluster[counters.ClusterUpstreamRqPendingActive]; n != 2 {
				t.Fatalf("%d tries wait for a connection", n)
			}
			switch end {
			case "leave":
				x.leave()
				x.counted(map[int]uint64{counters.ClusterUpstreamRqCancelled: 2, counters.ClusterUpstreamRqTotal: 0})
			case "fail":
				for _, p := range x.backlog.Peers {
					p.Refuse(111)
				}
				if got := x.got(); !strings.HasPrefix(got, "503 upstream connect error") || strings.Contains(got, "|") {
					t.Errorf("the client got %q", got)
				}
				x.counted(map[int]uint64{counters.ClusterUpstreamRqRetry: 1, counters.ClusterUpstreamRqTotal: 0})
			case "answer":
				for _, p := range x.backlog.Peers {
					p.Establish()
				}
				x.tries(2)[1].answer(200, "two")
				x.want("200 two")
				x.counted(map[int]uint64{counters.ClusterUpstreamRqTotal: 2})
			}
		}
	})
}

// TestHedgeInADrain: a listener that drains lets both tries go on until one has answered.
func TestHedgeInADrain(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		x := newHedging(t, down, up, hedges())
		_, second := x.both("")
		x.filter.Drain(0)
		x.look()
		second.answer(200, "two")
		x.want("200 two")
		x.counted(map[int]uint64{counters.ClusterUpstreamRqTotal: 2})
	})
}

// TestHedgeWithAMirror: the copy is made once.
func TestHedgeWithAMirror(t *testing.T) {
	x := newHedging(t, "http1", "http1", hedges(), func(a *configv1.RouteAction) {
		a.Mirrors = []*configv1.Mirror{{Cluster: "up", Fraction: 1_000_000}}
	})
	x.ask("hello")
	x.wait(hedgeAfter + 5*time.Millisecond)
	x.wait(longest)
	all := x.tries(3) // the copy, and two tries
	all[2].answer(200, "two")
	x.want("200 two")
	if x.look(); !all[1].gone() || all[0].gone() {
		t.Errorf("the first try is gone: %v, the copy: %v", all[1].gone(), all[0].gone())
	}
	all[0].answer(200, "copy")
	x.want("")
	x.counted(map[int]uint64{counters.ClusterShadowTotal: 1, counters.ClusterUpstreamRqTotal: 3})
}

// TestHedgeByHeader: a trusted client turns hedging on and off; nobody else does, and the host is not told.
func TestHedgeByHeader(t *testing.T) {
	const on, off = "X-Envoy-Hedge-On-Per-Try-Timeout: true\r\n", "X-Envoy-Hedge-On-Per-Try-Timeout: false\r\n"
	perTry := fmt.Sprintf("X-Envoy-Retry-On: 5xx\r\nX-Envoy-Upstream-Rq-Per-Try-Timeout-Ms: %d\r\n", hedgeAfter.Milliseconds())
	plain := hedges()
	plain.HedgeOnPerTryTimeout = false
	for _, test := range []struct {
		name    string
		policy  *configv1.RetryPolicy
		trusted string
		headers string
		hedged  bool
	}{
		{"on", plain, "198.51.100.0/24", on, true},
		{"on, by a stranger", plain, "10.0.0.0/8", on, false},
		{"off", hedges(), "198.51.100.0/24", off, false},
		{"off, by a stranger", hedges(), "10.0.0.0/8", off, true},
		{"nonsense", hedges(), "198.51.100.0/24", "X-Envoy-Hedge-On-Per-Try-Timeout: no\r\n", true},
		{"without a policy of the route", nil, "198.51.100.0/24", on + perTry, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := defaults()
			h.InternalNetworks = []string{test.trusted}
			h.VirtualHosts[0].Routes[0].GetRoute().Retry = test.policy
			s := newSim(t, h)
			c := s.client()
			c.Send([]byte("GET / HTTP/1.1\r\nHost: h\r\n" + test.headers + "\r\n"))
			s.turn()
			if got := s.backlog.Last().ReceiveAll(); bytes.Contains(got, []byte("X-Envoy")) {
				t.Errorf("the host is told how it is asked: %q", got)
			}
			s.net.Advance(int64(hedgeAfter + 5*time.Millisecond))
			s.turn()
			if hedged := !s.backlog.Peers[0].Gone(); hedged != test.hedged {
				t.Errorf("hedged: %v, want %v", hedged, test.hedged)
			}
		})
	}
}

// TestHedgeAtRandom: whatever hosts, client and clock do in whatever order, the client gets at most one answer, from one try, and
// nothing is left. The answers' bodies name their tries.
func TestHedgeAtRandom(t *testing.T) {
	rounds := uint64(150)
	if testing.Short() {
		rounds = 30
	}
	everyPair(t, func(t *testing.T, down, up string) {
		for seed := range rounds {
			hedgeAtRandom(t, down, up, rand.New(rand.NewPCG(seed, 1)))
			if t.Failed() {
				t.Fatalf("with the seed %d", seed)
			}
		}
	})
}

func hedgeAtRandom(t *testing.T, down, up string, r *rand.Rand) {
	p := hedges()
	p.Attempts = uint32(1 + r.IntN(3))
	timeout := int64(2000)
	x := newHedging(t, down, up, p, func(a *configv1.RouteAction) { a.TimeoutMs = &timeout })
	body := ""
	if r.IntN(2) == 0 {
		body = "hello"
	}
	x.ask(body)
	type state struct{ sent, length int } // of an answer under way; length 0: none
	states := map[*tried]*state{}
	var got strings.Builder
	left := false
	for range 40 {
		if len(x.logged.lines) > 0 && r.IntN(4) > 0 {
			break // the end was seen; sometimes the losers go on
		}
		if r.IntN(3) == 0 || len(x.all) == 0 {
			x.net.Advance(int64(r.IntN(150)) * int64(time.Millisecond))
		} else {
			i := r.IntN(len(x.all))
			y := x.all[i]
			st := states[y]
			switch {
			case st == nil:
				st = &state{}
				states[y] = st
				switch r.IntN(6) {
				case 0:
					y.fail()
					st.length = -1
				case 1:
					y.answer(503, "")
					st.length = -1
				case 2:
					y.head(503, 8)
					st.length = 8
				default:
					y.head(200, 8)
					st.length = 8
				}
			case st.sent < st.length:
				n := min(1+r.IntN(8), st.length-st.sent)
				st.sent += n
				y.data(strings.Repeat(string(rune('a'+i)), n), st.sent == st.length)
			case !left && r.IntN(8) == 0:
				left = true
				x.leave()
			}
		}
		if r.IntN(2) == 0 { // else more comes in the same turn
			got.WriteString(x.got() + " ")
		}
	}
	x.wait(3 * time.Second)
	got.WriteString(x.got())
	if n := len(x.logged.lines); n != 1 {
		t.Errorf("%d lines in the log", n)
	}
	text := got.String()
	if n := strings.Count(text, "200 ") + strings.Count(text, "503 ") + strings.Count(text, "504 "); n > 1 {
		t.Errorf("answered %d times: %q", n, text)
	}
	if strings.Contains(text, "200 ") {
		tries := map[rune]bool{}
		for _, c := range text {
			if c >= 'a' && c <= 'd' {
				tries[c] = true
			}
		}
		if len(tries) > 1 {
			t.Errorf("an answer of several tries: %q", text)
		}
	}
	if n := uint64(len(x.all)); n > uint64(p.Attempts)+1 || x.cluster[counters.ClusterUpstreamRqTotal] != n {
		t.Errorf("%d tries (%d counted) with %d attempts", n, x.cluster[counters.ClusterUpstreamRqTotal], p.Attempts)
	}
	x.counted(map[int]uint64{})
}

// A hedged request takes no memory once its worker has had one.
func TestHedgeAllocatesNothing(t *testing.T) {
	x := newHedging(t, "http1", "http2", hedges())
	x.filter.Config.Logs = nil
	first, second := x.both("")
	second.answer(200, "")
	first.answer(200, "")
	x.want("200 ")
	id := second.id
	up := x.backlog.Last()
	var reply []byte
	once := func() {
		x.client1.Send([]byte(get))
		x.turn()
		x.net.Advance(int64(hedgeAfter + 5*time.Millisecond))
		x.turn()
		x.net.Advance(int64(longest))
		x.turn()
		id += 4
		reply = append(reply[:0], 0, 0, 1, 1, 5, byte(id>>24), byte(id>>16), byte(id>>8), byte(id), 0x89)
		up.Send(reply)
		x.turn()
		up.Discard()
		if x.client1.Discard() == 0 {
			t.Fatal("no answer reached the client")
		}
	}
	for range 50 {
		once()
	}
	before := x.cluster[counters.ClusterUpstreamRqRetry]
	if n := testing.AllocsPerRun(200, once); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
	if hedged := x.cluster[counters.ClusterUpstreamRqRetry] - before; hedged != 201 {
		t.Errorf("%d of 201 requests were hedged", hedged)
	}
}
