package hcm

import (
	"bytes"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/http2frame"
	"retinue.dev/proxyd/internal/poller/simulated"
	configv1 "retinue.dev/services/api/config/v1"
)

// hedgeAfter is the per-try time-out of these tests.
const hedgeAfter = 100 * time.Millisecond

// hedging is a worker whose only route hedges, with one client and one host, each of either protocol.
type hedging struct {
	*sim
	client2 *h2Client       // one of them
	client1 *simulated.Peer // is nil
	asked   uint32          // requests of an HTTP/2 client
	h2      bool            // of the host
	servers map[*simulated.Peer]*h2Server
	all     []*tried
}

// tried is one try, as the host sees it.
type tried struct {
	x     *hedging
	peer  *simulated.Peer
	id    uint32 // of an HTTP/2 stream
	reset bool
	body  string // of the request, where it is known
}

func hedges() *configv1.RetryPolicy {
	return &configv1.RetryPolicy{On: []string{"5xx"}, Attempts: 1, PerTryTimeoutMs: hedgeAfter.Milliseconds(), HedgeOnPerTryTimeout: true}
}

func newHedging(t *testing.T, down, up string, p *configv1.RetryPolicy, change ...func(a *configv1.RouteAction)) *hedging {
	t.Helper()
	h := defaults()
	a := h.VirtualHosts[0].Routes[0].GetRoute()
	a.Retry = p
	for _, f := range change {
		f(a)
	}
	c := &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000}
	if up == "http2" {
		c.Protocol = up
	}
	x := &hedging{sim: newSimCluster(t, c, h), h2: up == "http2", servers: map[*simulated.Peer]*h2Server{}}
	if down == "http2" {
		x.client2 = x.sim.h2()
	} else {
		x.client1 = x.sim.client()
	}
	return x
}

// everyPair runs a test with each protocol on each side.
func everyPair(t *testing.T, test func(t *testing.T, down, up string)) {
	for _, down := range []string{"http1", "http2"} {
		for _, up := range []string{"http1", "http2"} {
			t.Run(down+" to "+up, func(t *testing.T) { test(t, down, up) })
		}
	}
}

// ask sends a request; with a body that is all there.
func (x *hedging) ask(body string) {
	switch {
	case x.client2 == nil && body == "":
		x.client1.Send([]byte(get))
	case x.client2 == nil:
		x.client1.Send(fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	case body == "":
		x.client2.peer.Send(x.client2.head(2*x.asked+1, true))
	default:
		x.client2.peer.Send(append(x.client2.head(2*x.asked+1, false, ":method", "POST"), frameData(2*x.asked+1, body, true)...))
	}
	x.asked++
	x.look()
}

// wait lets time pass; look sees what reached the host.
func (x *hedging) wait(d time.Duration) {
	x.net.Advance(int64(d))
	x.look()
}

func (x *hedging) look() {
	x.t.Helper()
	x.turn()
	for _, p := range x.backlog.Peers {
		if !x.h2 {
			got := string(p.ReceiveAll())
			for n := strings.Count(got, " / HTTP/1.1\r\n"); n > 0; n-- {
				_, body, _ := strings.Cut(got, "\r\n\r\n")
				if strings.Contains(got, "chunked") {
					body = string(unchunk(x.t.(*testing.T), []byte(body)))
				}
				x.all = append(x.all, &tried{x: x, peer: p, body: body})
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
			kind, rest, _ := strings.Cut(word, "(")
			digits := rest[:len(rest)-len(strings.TrimLeft(rest, "0123456789"))]
			id, _ := strconv.Atoi(digits)
			switch kind {
			case "GET/", "POST/":
				x.all = append(x.all, &tried{x: x, peer: p, id: uint32(id)})
			case "DATA":
				for _, y := range x.all {
					if y.peer == p && y.id == uint32(id) {
						y.body += strings.TrimRight(strings.TrimPrefix(rest, digits+","), ".)")
					}
				}
			case "RST":
				for _, y := range x.all {
					if y.peer == p && y.id == uint32(id) {
						y.reset = true
					}
				}
			}
		}
	}
}

// tries holds how many there were, and gives them.
func (x *hedging) tries(want int) []*tried {
	x.t.Helper()
	x.look()
	if len(x.all) != want {
		x.t.Fatalf("the host got %d tries, want %d", len(x.all), want)
	}
	return x.all
}

// gone tells that the try was given up.
func (y *tried) gone() bool {
	if y.x.h2 {
		return y.reset || y.peer.Gone()
	}
	return y.peer.Gone()
}

// head is the beginning of an answer whose body has so many bytes; more are further fields. It is sent without turning the loop, so that
// several things can come at once.
func (y *tried) head(status, length int, more ...string) {
	if !y.x.h2 {
		y.peer.Send(fmt.Appendf(nil, "HTTP/1.1 %d X\r\n%sContent-Length: %d\r\n\r\n", status, strings.Join(more, ""), length))
		return
	}
	p, at := http2frame.BeginHeaders(nil)
	p = literal(p, ":status", strconv.Itoa(status))
	if status >= 200 {
		p = literal(p, "content-length", strconv.Itoa(length))
	}
	y.peer.Send(http2frame.EndHeaderBlock(p, at, y.id, length == 0 && status >= 200, http2frame.DefaultMaxFrameSize))
}

func (y *tried) data(text string, end bool) {
	if !y.x.h2 {
		y.peer.Send([]byte(text))
		return
	}
	y.peer.Send(frameData(y.id, text, end))
}

func (y *tried) answer(status int, text string) {
	y.head(status, len(text))
	if text != "" {
		y.data(text, true)
	}
}

// fail ends the try from the host's side.
func (y *tried) fail() {
	if y.x.h2 {
		y.peer.Send(http2frame.AppendRSTStream(nil, y.id, http2frame.InternalError))
		return
	}
	y.peer.Reset()
}

// leave has the client give its request up.
func (x *hedging) leave() {
	if x.client2 != nil {
		x.client2.peer.Send(http2frame.AppendRSTStream(nil, 2*x.asked-1, http2frame.Cancel))
	} else {
		x.client1.Reset()
	}
	x.look()
}

// frameText is a frame as h2Client.received tells it.
var frameText = regexp.MustCompile(`([A-Z0-9_+]+)(?:\(([^)]*)\))?`)

// got is what the client has received since: "200 text" for each answer, with "…" behind one that is not complete.
func (x *hedging) got() string {
	x.t.Helper()
	x.look()
	var out []string
	if x.client2 != nil {
		for _, frame := range frameText.FindAllStringSubmatch(x.client2.received(), -1) {
			kind, rest := frame[1], frame[2]
			end := strings.HasSuffix(rest, ".")
			switch kind {
			case "DATA":
				_, text, _ := strings.Cut(strings.TrimSuffix(rest, "."), ",")
				if len(out) == 0 {
					out = []string{""}
				}
				out[len(out)-1] = strings.TrimSuffix(out[len(out)-1], "…") + text
			case "SETTINGS", "SETTINGS+ACK", "WINDOW_UPDATE", "GOAWAY", "PING":
				continue
			case "RST":
				out = append(out, "RST")
				continue
			default:
				out = append(out, kind+" ")
			}
			if !end && kind != "100" {
				out[len(out)-1] += "…"
			}
		}
		return strings.Join(out, "|")
	}
	for p := x.client1.ReceiveAll(); len(p) > 0; {
		head, rest, ok := bytes.Cut(p, []byte("\r\n\r\n"))
		if !ok || !bytes.HasPrefix(head, []byte("HTTP/1.1 ")) {
			return strings.Join(append(out, string(p)), "|")
		}
		status, length := string(head[9:12]), 0
		if _, after, has := bytes.Cut(head, []byte("Content-Length: ")); has {
			fmt.Sscanf(string(after), "%d", &length)
		}
		n, cut := min(length, len(rest)), ""
		if n < length {
			cut = "…"
		}
		out = append(out, status+" "+string(rest[:n])+cut)
		p = rest[n:]
	}
	return strings.Join(out, "|")
}

func (x *hedging) want(answers string) {
	x.t.Helper()
	if got := x.got(); got != answers {
		x.t.Errorf("the client got %q, want %q", got, answers)
	}
}

// counted holds some counters; a gauge of requests or retries under way is always 0 here.
func (x *hedging) counted(want map[int]uint64) {
	x.t.Helper()
	for _, gauge := range []int{counters.ClusterUpstreamRqActive, counters.ClusterUpstreamRqPendingActive, counters.ClusterUpstreamRqRetryActive} {
		want[gauge] = 0
	}
	for cell, n := range want {
		if got := x.cluster[cell]; got != n {
			x.t.Errorf("cell %d is %d, want %d", cell, got, n)
		}
	}
	if n := x.worker.Pool.Used(); n != 0 {
		x.t.Errorf("%d bytes are kept after the end", n)
	}
}

// both asks and lets the first try take too long: two are out.
func (x *hedging) both(body string) (first, second *tried) {
	x.t.Helper()
	x.ask(body)
	x.tries(1)
	x.wait(hedgeAfter + 5*time.Millisecond)
	x.wait(longest)
	all := x.tries(2)
	if all[0].gone() || all[0].body != body || all[1].body != body {
		x.t.Fatalf("the first try is gone: %v; the tries have the bodies %q and %q", all[0].gone(), all[0].body, all[1].body)
	}
	return all[0], all[1]
}

// TestHedge: the answers of two tries and their failures, in each order, with each protocol on each side.
func TestHedge(t *testing.T) {
	type try = *tried
	for _, test := range []struct {
		name  string
		body  string
		play  func(x *hedging, first, second try)
		want  string
		flags string
		loser int // 1 or 2: that one must be given up; 0: neither is left
		cells map[int]uint64
	}{
		{
			"the second is faster", "", func(_ *hedging, _, b try) { b.answer(200, "two") }, "200 two", "-", 1,
			map[int]uint64{counters.ClusterUpstreamRqRetrySuccess: 1},
		},
		{
			"the first is faster after all", "", func(_ *hedging, a, _ try) { a.answer(200, "one") }, "200 one", "-", 2,
			map[int]uint64{counters.ClusterUpstreamRqRetrySuccess: 0},
		},
		{"with a body", "hello", func(_ *hedging, _, b try) { b.answer(201, "two") }, "201 two", "-", 1, nil},
		{"both at once, the first in front", "", func(_ *hedging, a, b try) { a.answer(200, "one"); b.answer(200, "two") }, "200 one", "-", 2, nil},
		{
			"both at once, in pieces", "", func(_ *hedging, a, b try) {
				a.head(200, 6)
				b.head(200, 6)
				a.data("one", false)
				b.data("two", false)
				a.data("ONE", true)
				b.data("TWO", true)
			}, "200 oneONE", "-", 2, nil,
		},
		{
			"the loser goes on", "", func(x *hedging, a, b try) {
				b.head(200, 6)
				b.data("two", false)
				x.look()
				a.answer(200, "one")
				x.look()
				b.data("TWO", true)
			}, "200 twoTWO", "-", 1, nil,
		},
		{
			"a bad answer of the first is thrown away", "", func(x *hedging, a, b try) {
				a.answer(503, "bad")
				x.want("")
				b.answer(200, "two")
			}, "200 two", "-", 0, map[int]uint64{counters.ClusterUpstreamRqXX + 4: 1, counters.ClusterUpstreamRqRetrySuccess: 1},
		},
		{
			"a bad answer of the second is thrown away", "", func(x *hedging, a, b try) {
				b.answer(503, "bad")
				x.want("")
				a.answer(200, "one")
			}, "200 one", "URX", 0, map[int]uint64{counters.ClusterUpstreamRqRetryLimitExceeded: 1, counters.ClusterUpstreamRqRetrySuccess: 0},
		},
		{
			"both answers are bad", "", func(x *hedging, a, b try) {
				b.answer(503, "two")
				x.want("")
				a.answer(500, "one")
			}, "500 one", "URX", 0, map[int]uint64{counters.ClusterUpstreamRqXX + 4: 2},
		},
		{
			"half a bad answer", "", func(x *hedging, a, b try) {
				a.head(503, 10)
				a.data("half", false)
				x.look()
				b.answer(200, "two")
			}, "200 two", "-", 1, nil,
		},
		{
			"the first fails", "", func(x *hedging, a, b try) {
				a.fail()
				x.want("")
				b.answer(200, "two")
			}, "200 two", "-", 0, map[int]uint64{counters.ClusterUpstreamRqRxReset: 1},
		},
		{
			"the second fails", "", func(x *hedging, a, b try) {
				b.fail()
				x.want("")
				a.answer(200, "one")
			}, "200 one", "URX", 0, nil,
		},
		{"an answer that no policy wants again", "", func(_ *hedging, _, b try) { b.answer(404, "") }, "404 ", "-", 1, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			everyPair(t, func(t *testing.T, down, up string) {
				x := newHedging(t, down, up, hedges())
				first, second := x.both(test.body)
				test.play(x, first, second)
				x.want(test.want)
				if test.loser > 0 && !x.all[test.loser-1].gone() {
					t.Error("the other try goes on")
				}
				if l := x.last(); l.flags != test.flags || len(x.logged.lines) != 1 {
					t.Errorf("logged %+v, want the flags %s", x.logged.lines, test.flags)
				}
				cells := map[int]uint64{counters.ClusterUpstreamRqRetry: 1, counters.ClusterUpstreamRqPerTryTimeout: 0, counters.ClusterUpstreamRqTotal: 2}
				for cell, n := range test.cells {
					cells[cell] = n
				}
				x.counted(cells)

				// The client's next request gets an answer of its own.
				x.ask("")
				x.tries(3)[2].answer(200, "three")
				x.want("200 three")
			})
		})
	}
}

// TestHedgeBothFail: the client is told once, when the last try has failed.
func TestHedgeBothFail(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		for _, order := range [][2]int{{0, 1}, {1, 0}} {
			x := newHedging(t, down, up, hedges())
			x.both("")
			x.all[order[0]].fail()
			x.want("")
			x.all[order[1]].fail()
			if got := x.got(); !strings.HasPrefix(got, "503 upstream connect error") || strings.Contains(got, "|") {
				t.Errorf("the client got %q", got)
			}
			x.counted(map[int]uint64{counters.ClusterUpstreamRqRetry: 1, counters.ClusterUpstreamRqTotal: 2})
		}
	})
}

// TestHedgeClientLeaves: both tries end with the client's request.
func TestHedgeClientLeaves(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		x := newHedging(t, down, up, hedges())
		first, second := x.both("hello")
		x.leave()
		x.look()
		if !first.gone() || !second.gone() {
			t.Errorf("given up: the first %v, the second %v", first.gone(), second.gone())
		}
		first.answer(200, "one")
		second.answer(200, "two")
		if got := x.got(); strings.Contains(got, "200") {
			t.Errorf("the client got %q", got)
		}
		x.counted(map[int]uint64{counters.ClusterUpstreamRqTotal: 2, counters.ClusterUpstreamRqTxReset: 2})
	})
}

// TestHedgeTimeout: the request's time-out ends every try, and counts each.
func TestHedgeTimeout(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		timeout := int64(1000)
		x := newHedging(t, down, up, hedges(), func(a *configv1.RouteAction) { a.TimeoutMs = &timeout })
		first, second := x.both("")
		x.wait(time.Second)
		x.want("504 upstream request timeout")
		if x.look(); !first.gone() || !second.gone() {
			t.Errorf("given up: the first %v, the second %v", first.gone(), second.gone())
		}
		if l := x.last(); l.flags != "UT,URX" || l.details != "response_timeout" {
			t.Errorf("logged %+v", l)
		}
		x.counted(map[int]uint64{counters.ClusterUpstreamRqTimeout: 2, counters.ClusterUpstreamRqPerTryTimeout: 0, counters.ClusterUpstreamRqRetryLimitExceeded: 1})
	})
}

// TestHedgeMore: each try that takes too long is overtaken by another, as many as attempts allows.
func TestHedgeMore(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		for winner := range 4 {
			p := hedges()
			p.Attempts = 3
			x := newHedging(t, down, up, p)
			x.ask("")
			for range 8 {
				x.wait(hedgeAfter + 5*time.Millisecond)
				x.wait(longest)
			}
			all := x.tries(4)
			all[winner].answer(200, "ok")
			x.want("200 ok")
			x.look()
			for i, y := range all {
				if y.gone() == (i == winner) {
					t.Errorf("try %d of the winner %d: given up %v", i, winner, y.gone())
				}
			}
			x.counted(map[int]uint64{counters.ClusterUpstreamRqRetry: 3, counters.ClusterUpstreamRqTotal: 4})
		}
	})
}

// TestHedgeInterim: an interim answer makes its try the only one.
func TestHedgeInterim(t *testing.T) {
	everyPair(t, func(t *testing.T, down, up string) {
		x := newHedging(t, down, up, hedges())
		first, second := x.both("")
		first.head(100, 0)
		x.want("100 ")
		if x.look(); !second.gone() {
			t.Error("the other try goes on")
		}
		x.wait(time.Second)
		x.tries(2)
		first.answer(503, "late")
		x.want("503 late")
		x.counted(map[int]uint64{counters.ClusterUpstreamRqRetry: 1})
	})
}
