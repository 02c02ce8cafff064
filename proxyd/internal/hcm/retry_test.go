package hcm

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	configv1 "retinue.dev/services/api/config/v1"
)

// retryWorld is a manager whose only route has the policy.
func retryWorld(t *testing.T, p *configv1.RetryPolicy) *world {
	t.Helper()
	h := defaults()
	h.VirtualHosts[0].Routes[0].Action.(*configv1.Route_Route).Route.Retry = p
	return newWorld(t, h)
}

// try takes the next connection to the upstream and its request.
func (x *world) try(request string) *peer {
	x.t.Helper()
	u := x.upstream()
	u.expect(request)
	return u
}

const (
	upGet   = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\n\r\n"
	good    = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	longest = 260 * time.Millisecond // a pause at its longest, and the tick that a timer may be late
)

func (x *world) answered(c *peer, want string) {
	x.t.Helper()
	x.until("an answer "+want, func() bool { c.pull(); return bytes.Contains(c.got, []byte("\r\n\r\n")) })
	if !strings.HasPrefix(string(c.got), want) {
		x.t.Errorf("answered %q, want %q", c.got, want)
	}
}

// TestRetriesOn: which answers and ends of a try are repeated, by condition.
func TestRetriesOn(t *testing.T) {
	status := func(line string, more ...string) func(*peer) {
		return func(u *peer) {
			u.send("HTTP/1.1 " + line + "\r\n" + strings.Join(more, "") + "Content-Length: 0\r\n\r\n")
		}
	}
	reset := func(u *peer) { u.reset() }
	for _, test := range []struct {
		name  string
		on    string
		codes []uint32
		fail  func(*peer)
		retry bool
	}{
		{"500 on 5xx", "5xx", nil, status("500 X"), true},
		{"599 on 5xx", "5xx", nil, status("599 X"), true},
		{"404 on 5xx", "5xx", nil, status("404 X"), false},
		{"reset on 5xx", "5xx", nil, reset, true},
		{"503 on gateway-error", "gateway-error", nil, status("503 X"), true},
		{"500 on gateway-error", "gateway-error", nil, status("500 X"), false},
		{"409 on retriable-4xx", "retriable-4xx", nil, status("409 X"), true},
		{"400 on retriable-4xx", "retriable-4xx", nil, status("400 X"), false},
		{"429 on 429", "", []uint32{429}, status("429 X"), true},
		{"428 on 429", "", []uint32{429}, status("428 X"), false},
		{"reset on reset", "reset", nil, reset, true},
		{"500 on reset", "reset", nil, status("500 X"), false},
		{"reset on connect-failure", "connect-failure", nil, reset, false},
		{"reset on reset-before-request", "reset-before-request", nil, reset, false},
		{"grpc 14 on unavailable", "unavailable", nil, status("200 OK", "grpc-status: 14\r\n"), true},
		{"grpc 13 on unavailable", "unavailable", nil, status("200 OK", "grpc-status: 13\r\n"), false},
		{"grpc 0 on internal", "internal", nil, status("200 OK", "grpc-status: 0\r\n"), false},
		{"grpc nonsense", "internal", nil, status("200 OK", "grpc-status: -1\r\n"), false},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := &configv1.RetryPolicy{StatusCodes: test.codes}
			if test.on != "" {
				p.On = []string{test.on}
			}
			x := retryWorld(t, p)
			c := x.client()
			c.send(get)
			u := x.try(upGet)
			test.fail(u)
			if test.retry {
				x.until("the pause", func() bool { return x.cluster[counters.ClusterUpstreamRqRetry] == 1 })
				x.pass(longest)
				if u.fd < 0 {
					u = x.upstream()
				} // else the answer was complete, and its connection is used again
				u.expect(upGet)
				u.send(good)
				x.answered(c, "HTTP/1.1 200 OK\r\n")
			} else {
				x.answered(c, "HTTP/1.1 ")
			}
			want := uint64(0)
			if test.retry {
				want = 1
			}
			for name, cell := range map[string]int{"retry": counters.ClusterUpstreamRqRetry, "retry_success": counters.ClusterUpstreamRqRetrySuccess} {
				if got := x.cluster[cell]; got != want {
					t.Errorf("%s is %d, want %d", name, got, want)
				}
			}
			if x.cluster[counters.ClusterUpstreamRqRetryActive] != 0 {
				t.Error("a retry is still counted as active")
			}
		})
	}
}

// TestRetryLimit: the last failure is the answer, with the flag and the counter.
func TestRetryLimit(t *testing.T) {
	x := retryWorld(t, &configv1.RetryPolicy{On: []string{"5xx"}, Attempts: 2})
	c := x.client()
	c.send(get)
	for try := range 3 {
		u := x.try(upGet)
		u.send("HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbu") // cut: the connection cannot be used again
		if try < 2 {
			x.until("the pause", func() bool { return x.cluster[counters.ClusterUpstreamRqRetry] == uint64(try+1) })
			x.pass(longest)
			continue
		}
		u.send("sy")
	}
	x.answered(c, "HTTP/1.1 503 Busy\r\n")
	x.until("the end", func() bool { return len(x.logged.lines) == 1 })
	if l := x.last(); l.flags != "URX" || l.status != 503 {
		t.Errorf("logged %+v", l)
	}
	if x.cluster[counters.ClusterUpstreamRqRetryLimitExceeded] != 1 {
		t.Error("the limit is not counted")
	}
}

// TestRetryKeepsTheBody: each try gets the whole body, also what came while there was no connection.
func TestRetryKeepsTheBody(t *testing.T) {
	x := retryWorld(t, &configv1.RetryPolicy{On: []string{"reset"}})
	c := x.client()
	const head = "POST / HTTP/1.1\r\nHost: h\r\n"
	c.send(head + "Content-Length: 10\r\n\r\n01234")
	const up = head + "X-Forwarded-Proto: http\r\nContent-Length: 10\r\n\r\n"
	u := x.try(up + "01234")
	u.reset()
	x.until("the pause", func() bool { return x.cluster[counters.ClusterUpstreamRqRetry] == 1 })
	c.send("56789")
	x.turn()
	x.pass(longest)
	u = x.try(up + "0123456789")
	u.send(good)
	x.answered(c, "HTTP/1.1 200 OK\r\n")
	if n := x.worker.Pool.Used(); n != 0 {
		t.Errorf("%d bytes are kept after the answer", n)
	}
}

// TestRetryBodyTooLarge: a body beyond the stream's limit is sent once and not kept.
func TestRetryBodyTooLarge(t *testing.T) {
	x := retryWorld(t, &configv1.RetryPolicy{On: []string{"reset"}})
	x.filter.Config.BufferLimit = 8
	c := x.client()
	c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n01234")
	u := x.upstream()
	x.until("the first bytes", func() bool { u.pull(); return bytes.HasSuffix(u.got, []byte("01234")) })
	c.send("5678901234")
	x.until("more", func() bool { u.pull(); return bytes.HasSuffix(u.got, []byte("5678901234")) })
	u.reset()
	x.answered(c, "HTTP/1.1 503 ")
	if x.cluster[counters.ClusterUpstreamRqRetry] != 0 || x.cluster[counters.ClusterRetryOrShadowAbandoned] != 1 {
		t.Errorf("%d retries, %d abandoned", x.cluster[counters.ClusterUpstreamRqRetry], x.cluster[counters.ClusterRetryOrShadowAbandoned])
	}
}

// TestNoRetryOnceAnswering: a response that has begun is never replaced.
func TestNoRetryOnceAnswering(t *testing.T) {
	x := retryWorld(t, &configv1.RetryPolicy{On: []string{"5xx", "reset"}, Attempts: 5})
	c := x.client()
	c.send(get)
	u := x.try(upGet)
	u.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
	x.answered(c, "HTTP/1.1 200 OK\r\n")
	u.reset()
	x.until("the cut", func() bool { c.pull(); return c.eof || c.rst })
	if x.cluster[counters.ClusterUpstreamRqRetry] != 0 {
		t.Error("tried again under a response")
	}
}

func TestPerTryTimeout(t *testing.T) {
	x := retryWorld(t, &configv1.RetryPolicy{On: []string{"5xx"}, PerTryTimeoutMs: 100})
	c := x.client()
	c.send(get)
	x.try(upGet)
	x.pass(150 * time.Millisecond)
	if x.cluster[counters.ClusterUpstreamRqPerTryTimeout] != 1 || x.cluster[counters.ClusterUpstreamRqRetry] != 1 {
		t.Fatalf("%d time-outs, %d retries", x.cluster[counters.ClusterUpstreamRqPerTryTimeout], x.cluster[counters.ClusterUpstreamRqRetry])
	}
	x.pass(longest)
	x.try(upGet)
	x.pass(150 * time.Millisecond)
	x.answered(c, "HTTP/1.1 504 ")
	if l := x.last(); l.flags != "UT,URX" || l.details != "upstream_per_try_timeout" {
		t.Errorf("logged %+v", l)
	}
}

// TestRetryBreaker: retries beyond max_retries are refused at once.
func TestRetryBreaker(t *testing.T) {
	x := retryWorld(t, &configv1.RetryPolicy{On: []string{"5xx"}})
	x.cluster[counters.ClusterUpstreamRqRetryActive] = 3 // of other streams
	c := x.client()
	c.send(get)
	x.try(upGet).send("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")
	x.answered(c, "HTTP/1.1 500 X\r\n")
	x.until("the end", func() bool { return len(x.logged.lines) == 1 })
	if l := x.last(); l.flags != "UO" || x.cluster[counters.ClusterUpstreamRqRetryOverflow] != 1 {
		t.Errorf("logged %+v, %d overflows", l, x.cluster[counters.ClusterUpstreamRqRetryOverflow])
	}
	x.cluster[counters.ClusterUpstreamRqRetryActive] = 0
}

// TestClientGoesInThePause: nothing is left of a request whose client leaves while it waits for its next try.
func TestClientGoesInThePause(t *testing.T) {
	x := retryWorld(t, &configv1.RetryPolicy{On: []string{"5xx"}})
	c := x.tcpClient()
	c.send(get)
	u := x.upstream()
	x.until("the request", func() bool { u.pull(); return bytes.HasSuffix(u.got, []byte("\r\n\r\n")) })
	u.send("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")
	x.until("the pause", func() bool { return x.cluster[counters.ClusterUpstreamRqRetry] == 1 })
	c.reset()
	x.until("the end", func() bool { return len(x.logged.lines) == 1 })
	x.pass(longest)
	if x.cluster[counters.ClusterUpstreamRqTotal] != 1 || x.cluster[counters.ClusterUpstreamRqRetryActive] != 0 {
		t.Errorf("%d tries, %d retries active", x.cluster[counters.ClusterUpstreamRqTotal], x.cluster[counters.ClusterUpstreamRqRetryActive])
	}
}

// TestTrustedClientSaysHow: what an internal client says about retries and time-outs holds; from others it is removed.
func TestTrustedClientSaysHow(t *testing.T) {
	const asks = "X-Envoy-Retry-On: 5xx, nonsense,retriable-status-codes\r\nX-Envoy-Retriable-Status-Codes: 429\r\nX-Envoy-Max-Retries: 2\r\n"
	ask := func(headers string) string { return "GET / HTTP/1.1\r\nHost: h\r\n" + headers + "\r\n" }
	type step struct {
		answer string // of a try; "" lets it take too long
		again  bool
	}
	const unavailable, limited, missing = "503 X", "429 X", "404 X"
	for _, test := range []struct {
		name     string
		networks []string
		headers  string
		steps    []step
		want     string
	}{
		{"a stranger is not heard", []string{"10.0.0.0/8"}, asks, []step{{unavailable, false}}, "HTTP/1.1 503"},
		{"nobody is by default", nil, asks, []step{{unavailable, false}}, "HTTP/1.1 503"},
		{"a condition", []string{"198.51.100.0/24"}, asks, []step{{unavailable, true}, {"200 OK", false}}, "HTTP/1.1 200"},
		{"a status", []string{"198.51.100.0/24"}, asks, []step{{limited, true}, {missing, false}}, "HTTP/1.1 404"},
		{"so many times", []string{"198.51.100.0/24"}, asks, []step{{unavailable, true}, {unavailable, true}, {unavailable, false}}, "HTTP/1.1 503"},
		{"none", []string{"198.51.100.0/24"}, "X-Envoy-Retry-On: 5xx\r\nX-Envoy-Max-Retries: 0\r\n", []step{{unavailable, false}}, "HTTP/1.1 503"},
		{"too many to be read", []string{"198.51.100.0/24"}, "X-Envoy-Retry-On: 5xx\r\nX-Envoy-Max-Retries: 99999999999999999999\r\n", []step{{unavailable, true}, {unavailable, false}}, "HTTP/1.1 503"},
		{"a time", []string{"198.51.100.0/24"}, "X-Envoy-Upstream-Rq-Timeout-Ms: 40\r\n", []step{{"", false}}, "HTTP/1.1 504"},
		{"a time for each try", []string{"198.51.100.0/24"}, "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms: 40\r\nX-Envoy-Retry-On: reset\r\n", []step{{"", true}, {"200 OK", false}}, "HTTP/1.1 200"},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := defaults()
			h.InternalNetworks = test.networks
			x := newSim(t, h)
			c := x.client()
			c.Send([]byte(ask(test.headers)))
			x.turn()
			for i, s := range test.steps {
				u := x.backlog.Last()
				got := string(u.ReceiveAll())
				if heads := strings.Count(got, "GET / HTTP/1.1\r\n"); heads != 1 {
					t.Fatalf("try %d: %q", i, got)
				}
				if sent := strings.Contains(got, "Envoy"); sent && test.networks == nil {
					t.Errorf("the upstream is told what a stranger said: %q", got)
				}
				if s.answer == "" {
					x.net.Advance(int64(60 * time.Millisecond))
				} else {
					u.Send([]byte("HTTP/1.1 " + s.answer + "\r\nContent-Length: 0\r\n\r\n"))
				}
				x.turn()
				if s.again {
					x.net.Advance(int64(longest))
					x.turn()
				}
			}
			if got := string(c.ReceiveAll()); !strings.HasPrefix(got, test.want) {
				t.Errorf("answered %.40q, want %q", got, test.want)
			}
			retries := 0
			for _, s := range test.steps {
				if s.again {
					retries++
				}
			}
			if n := x.cluster[counters.ClusterUpstreamRqRetry]; n != uint64(retries) {
				t.Errorf("%d retries, want %d", n, retries)
			}
		})
	}
}

// TestRetryByHeaders: what a response or a request says may decide.
func TestRetryByHeaders(t *testing.T) {
	present := func(name string) []*configv1.FieldMatch {
		return []*configv1.FieldMatch{{Name: name, Test: &configv1.FieldMatch_Present{Present: true}}}
	}
	for _, test := range []struct {
		name          string
		policy        *configv1.RetryPolicy
		request, head string
		retry         bool
	}{
		{"the response asks for it", &configv1.RetryPolicy{RetriableHeaders: present("x-again")}, "", "X-Again: 1\r\n", true},
		{"it does not", &configv1.RetryPolicy{RetriableHeaders: present("x-again")}, "", "X-Other: 1\r\n", false},
		{"rate limited", &configv1.RetryPolicy{On: []string{"envoy-ratelimited"}}, "", "x-envoy-ratelimited: true\r\n", true},
		{"not rate limited", &configv1.RetryPolicy{On: []string{"envoy-ratelimited"}}, "", "", false},
		{"the request allows it", &configv1.RetryPolicy{On: []string{"5xx"}, RetriableRequestHeaders: present("x-idempotent")}, "X-Idempotent: 1\r\n", "", true},
		{"it does not allow it", &configv1.RetryPolicy{On: []string{"5xx"}, RetriableRequestHeaders: present("x-idempotent")}, "", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := defaults()
			h.VirtualHosts[0].Routes[0].GetRoute().Retry = test.policy
			x := newSim(t, h)
			c := x.client()
			c.Send([]byte("GET / HTTP/1.1\r\nHost: h\r\n" + test.request + "\r\n"))
			x.turn()
			x.backlog.Last().Discard()
			x.backlog.Last().Send([]byte("HTTP/1.1 500 X\r\n" + test.head + "Content-Length: 0\r\n\r\n"))
			x.turn()
			if retried := x.cluster[counters.ClusterUpstreamRqRetry] == 1; retried != test.retry {
				t.Errorf("tried again: %v, want %v", retried, test.retry)
			}
		})
	}
}

// TestLateHostsAreJudged: a host that does not answer in time counts as one that failed, by whichever time-out, and once a try.
func TestLateHostsAreJudged(t *testing.T) {
	for _, test := range []struct {
		name   string
		policy *configv1.RetryPolicy
		failed uint64
	}{
		{"the request's time-out", nil, 1},
		{"a try's", &configv1.RetryPolicy{On: []string{"5xx"}, PerTryTimeoutMs: 100}, 2},
		{"a hedge's", hedges(), 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			timeout := int64(1000)
			h := defaults()
			a := h.VirtualHosts[0].Routes[0].GetRoute()
			a.Retry, a.TimeoutMs = test.policy, &timeout
			s := newSimCluster(t, &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000, OutlierDetection: &configv1.OutlierDetection{Consecutive_5Xx: 100}}, h)
			hosts := s.manager.Cluster(0).Hosts
			hosts.Observe(1)
			c := s.client()
			c.Send([]byte(get))
			for range 12 {
				s.turn()
				s.net.Advance(int64(100 * time.Millisecond))
			}
			s.turn()
			if got := string(c.ReceiveAll()); !strings.HasPrefix(got, "HTTP/1.1 504 ") {
				t.Errorf("answered %.40q", got)
			}
			if o := hosts.Hosts[0].Sum(); o.Failed != test.failed || o.Total != test.failed {
				t.Errorf("the host failed %d times of %d, want %d", o.Failed, o.Total, test.failed)
			}
		})
	}
}

// TestRetriableHeaderNames: a trusted client names headers of responses that are to be tried again.
func TestRetriableHeaderNames(t *testing.T) {
	many := strings.Repeat("x-other,", 16)
	for _, test := range []struct {
		name    string
		trusted string
		policy  *configv1.RetryPolicy
		headers string
		retry   bool
	}{
		{"one of them", "198.51.100.0/24", nil, "X-Envoy-Retry-On: retriable-headers\r\nX-Envoy-Retriable-Header-Names: x-a, ,X-Again \r\n", true},
		{"none of them", "198.51.100.0/24", nil, "X-Envoy-Retry-On: retriable-headers\r\nX-Envoy-Retriable-Header-Names: x-a,x-b\r\n", false},
		{"without the condition", "198.51.100.0/24", nil, "X-Envoy-Retry-On: 5xx\r\nX-Envoy-Retriable-Header-Names: x-again\r\n", false},
		{"an empty list", "198.51.100.0/24", nil, "X-Envoy-Retry-On: retriable-headers\r\nX-Envoy-Retriable-Header-Names:\r\n", false},
		{"too long a list", "198.51.100.0/24", nil, "X-Envoy-Retry-On: retriable-headers\r\nX-Envoy-Retriable-Header-Names: " + many + "x-again\r\n", false},
		{"by a stranger", "10.0.0.0/8", nil, "X-Envoy-Retry-On: retriable-headers\r\nX-Envoy-Retriable-Header-Names: x-again\r\n", false},
		{
			"with a policy of the route that goes by headers", "198.51.100.0/24",
			&configv1.RetryPolicy{RetriableHeaders: []*configv1.FieldMatch{{Name: "x-never", Test: &configv1.FieldMatch_Present{Present: true}}}},
			"X-Envoy-Retriable-Header-Names: x-again\r\n", true,
		},
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
			s.backlog.Last().Send([]byte("HTTP/1.1 200 OK\r\nX-Again: 1\r\nContent-Length: 0\r\n\r\n"))
			s.turn()
			if retried := s.cluster[counters.ClusterUpstreamRqRetry] == 1; retried != test.retry {
				t.Errorf("tried again: %v, want %v", retried, test.retry)
			}
		})
	}
}
