package hcm

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestRateLimitedBackOff: the pause before the next try is the one that the response asks for, and up to half as much more.
func TestRateLimitedBackOff(t *testing.T) {
	const usual = 0
	for _, test := range []struct {
		name   string
		answer func(now int64) string // header lines; now is in seconds
		pause  time.Duration          // usual: the one of back_off
	}{
		{"seconds", func(int64) string { return "Retry-After: 20\r\n" }, 20 * time.Second},
		{"a time", func(now int64) string { return "X-RateLimit-Reset: " + strconv.FormatInt(now+30, 10) + "\r\n" }, 30 * time.Second},
		{"the first of both", func(now int64) string {
			return "X-RateLimit-Reset: " + strconv.FormatInt(now+30, 10) + "\r\nRetry-After: 20\r\n"
		}, 20 * time.Second},
		{"too long, then a good one", func(now int64) string {
			return "X-RateLimit-Reset: " + strconv.FormatInt(now+30, 10) + "\r\nRetry-After: 61\r\n"
		}, 30 * time.Second},
		{"too long", func(int64) string { return "Retry-After: 61\r\n" }, usual},
		{"a date", func(int64) string { return "Retry-After: Fri, 27 Nov 2026 10:00:00 GMT\r\n" }, usual},
		{"longer than any number", func(int64) string { return "Retry-After: 99999999999999999999\r\n" }, usual},
		{"nothing", func(int64) string { return "Retry-After: 0\r\n" }, usual},
		{"the past", func(now int64) string { return "X-RateLimit-Reset: " + strconv.FormatInt(now-5, 10) + "\r\n" }, usual},
		{"another header", func(int64) string { return "X-Wait: 20\r\n" }, usual},
	} {
		t.Run(test.name, func(t *testing.T) {
			none := int64(0)
			x := newHedging(t, "http1", "http1", &configv1.RetryPolicy{
				StatusCodes: []uint32{429}, Attempts: 2,
				RateLimitedBackOff: &configv1.RateLimitedBackOff{
					Headers:       []*configv1.ResetHeader{{Name: "retry-after"}, {Name: "x-ratelimit-reset", UnixTimestamp: true}},
					MaxIntervalMs: 60_000,
				},
			}, func(a *configv1.RouteAction) { a.TimeoutMs = &none })
			x.ask("")
			y := x.tries(1)[0]
			y.peer.Send(fmt.Appendf(nil, "HTTP/1.1 429 X\r\n%sContent-Length: 0\r\n\r\n", test.answer(x.net.Wall()/int64(time.Second))))
			x.look()
			asked, ordinary := uint64(0), uint64(1)
			if test.pause > 0 {
				x.wait(test.pause - time.Second) // the wall's seconds are whole ones
				x.tries(1)
				x.wait(test.pause/2 + time.Second + 10*time.Millisecond)
				asked, ordinary = 1, 0
			} else {
				x.wait(longest)
			}
			x.tries(2)
			x.all[1].answer(200, "ok")
			x.want("200 ok")
			x.counted(map[int]uint64{counters.ClusterUpstreamRqRetryBackoffRatelimited: asked, counters.ClusterUpstreamRqRetryBackoffExponential: ordinary})
		})
	}
}

// TestAttemptCount: the upstream is told which try a request is, the client how many there were, if the virtual host says so.
func TestAttemptCount(t *testing.T) {
	for _, test := range []struct {
		up, down bool
		last     int // status of the third try; 0: none is answered
	}{{false, false, 200}, {true, true, 200}, {true, false, 200}, {false, true, 503}, {false, true, 0}} {
		t.Run(fmt.Sprintf("%v", test), func(t *testing.T) {
			h := defaults()
			h.VirtualHosts[0].IncludeRequestAttemptCount, h.VirtualHosts[0].IncludeAttemptCountInResponse = test.up, test.down
			h.VirtualHosts[0].Routes[0].GetRoute().Retry = &configv1.RetryPolicy{On: []string{"5xx"}, Attempts: 2}
			x := newSim(t, h)
			c := x.client()
			c.Send([]byte("GET / HTTP/1.1\r\nHost: h\r\nX-Envoy-Attempt-Count: 70\r\n\r\n"))
			x.turn()
			for n := 1; n <= 3; n++ {
				u := x.backlog.Last()
				want := "70"
				if test.up {
					want = strconv.Itoa(n)
				}
				if got := string(u.ReceiveAll()); strings.Count(got, "X-Envoy-Attempt-Count: "+want+"\r\n") != 1 || strings.Count(got, "Attempt-Count") != 1 {
					t.Errorf("try %d: %q", n, got)
				}
				switch {
				case n < 3:
					u.Send([]byte("HTTP/1.1 503 X\r\nX-Envoy-Attempt-Count: 50\r\nContent-Length: 0\r\n\r\n"))
				case test.last == 0:
					u.Reset()
				default:
					u.Send(fmt.Appendf(nil, "HTTP/1.1 %d X\r\nX-Envoy-Attempt-Count: 50\r\nContent-Length: 0\r\n\r\n", test.last))
				}
				x.turn()
				x.net.Advance(int64(longest))
				x.turn()
			}
			got := string(c.ReceiveAll())
			if want := map[bool]int{true: 1}[test.down]; strings.Count(got, "X-Envoy-Attempt-Count: 3\r\n") != want {
				t.Errorf("answered %q", got)
			}
			if test.last != 0 && strings.Count(got, "X-Envoy-Attempt-Count: 50\r\n") != map[bool]int{false: 1}[test.down] {
				t.Errorf("answered %q", got)
			}
		})
	}
}

// TestEnvoyHeaders: with envoy_headers the upstream is told how long it has and what the path was, the client how long it took.
func TestEnvoyHeaders(t *testing.T) {
	ms := func(n int64) *int64 { return &n }
	for _, test := range []struct {
		name     string
		on       bool
		timeout  *int64
		perTry   int64
		hedge    bool
		ask      string
		first    string // what the upstream is told with the first try
		second   string // and, 100 ms later, with the second
		original string
	}{
		{"off", false, ms(5000), 0, false, "", "", "", ""},
		{"off, and a client says it", false, ms(5000), 0, false, "X-Envoy-Expected-Rq-Timeout-Ms: 7\r\n", "7", "7", ""},
		{"the route's", true, ms(5000), 0, false, "X-Envoy-Expected-Rq-Timeout-Ms: 7\r\n", "5000", "4640", "/a/x?q=1"},
		{"the try's", true, ms(5000), 300, false, "", "300", "300", "/a/x?q=1"},
		{"a hedge's", true, ms(5000), 300, true, "", "5000", "4640", "/a/x?q=1"},
		{"what is left", true, ms(1000), 900, false, "", "900", "640", "/a/x?q=1"},
		{"for ever", true, ms(0), 0, false, "X-Envoy-Expected-Rq-Timeout-Ms: 7\r\n", "", "", "/a/x?q=1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := defaults()
			h.EnvoyHeaders = test.on
			r := h.VirtualHosts[0].Routes[0]
			r.Match.Path = &configv1.RouteMatch_Prefix{Prefix: "/a/"}
			to := "/b/"
			a := r.GetRoute()
			a.TimeoutMs, a.PrefixRewrite = test.timeout, &to
			a.Retry = &configv1.RetryPolicy{On: []string{"5xx"}, PerTryTimeoutMs: test.perTry, HedgeOnPerTryTimeout: test.hedge}
			x := newSim(t, h)
			c := x.client()
			c.Send([]byte("GET /a/x?q=1 HTTP/1.1\r\nHost: h\r\n" + test.ask + "\r\n"))
			x.turn()
			for n, want := range []string{test.first, test.second} {
				u := x.backlog.Last()
				got := string(u.ReceiveAll())
				if told := value(got, "X-Envoy-Expected-Rq-Timeout-Ms"); told != want {
					t.Errorf("try %d expects %q, want %q", n+1, told, want)
				}
				if told := value(got, "X-Envoy-Original-Path"); told != test.original || !strings.HasPrefix(got, "GET /b/x?q=1 ") {
					t.Errorf("try %d: original path %q, want %q: %q", n+1, told, test.original, got)
				}
				x.net.Advance(int64(100 * time.Millisecond))
				x.turn()
				status := 503 - 303*n
				u.Send(fmt.Appendf(nil, "HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n", status))
				x.turn()
				x.net.Advance(int64(longest))
				x.turn()
			}
			took := ""
			if test.on {
				took = "460"
			}
			if got := string(c.ReceiveAll()); !strings.HasPrefix(got, "HTTP/1.1 200 ") || value(got, "X-Envoy-Upstream-Service-Time") != took {
				t.Errorf("answered %q, want it to have taken %q", got, took)
			}
		})
	}
}

// TestTellingAllocatesNothing: the headers, and looking for tries that stand still, cost no memory.
func TestTellingAllocatesNothing(t *testing.T) {
	h := defaults()
	h.EnvoyHeaders = true
	host := h.VirtualHosts[0]
	host.IncludeRequestAttemptCount, host.IncludeAttemptCountInResponse = true, true
	to := "/other/"
	host.Routes[0].GetRoute().PrefixRewrite = &to
	host.Routes[0].GetRoute().Retry = idles()
	s := newSim(t, h)
	s.filter.Config.Logs = nil
	client := s.warm()
	if n := testing.AllocsPerRun(500, func() { s.exchange(client) }); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
}

// value is that of a header line; "" where there is none.
func value(head, name string) string {
	_, after, found := strings.Cut(head, name+": ")
	if !found {
		return ""
	}
	v, _, _ := strings.Cut(after, "\r\n")
	return v
}
