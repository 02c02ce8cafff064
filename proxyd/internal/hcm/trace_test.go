package hcm

import (
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tracing"
	configv1 "retinue.dev/services/api/config/v1"
)

// traces keeps what a request's spans would be made of.
type traces struct {
	sampled []bool
	tries   []stream.Try
}

func (l *traces) Log(s *stream.Stream) {
	l.sampled = append(l.sampled, s.Trace.Sampled)
	l.tries = append(l.tries, slices.Clone(s.Tries)...)
}

func traced() *configv1.HttpTracing {
	return &configv1.HttpTracing{
		RandomSampling: 1_000_000, ClientSampling: 1_000_000, OverallSampling: 1_000_000, Export: true, SpawnUpstreamSpan: true,
		Propagate: []configv1.TraceFormat{configv1.TraceFormat_TRACE_FORMAT_W3C},
	}
}

func newTraced(t *testing.T, h *configv1.Http) (*sim, *traces) {
	t.Helper()
	s, log := newSim(t, h), &traces{}
	var err error
	s.filter.Config.tracing, err = tracing.New(h.Tracing, nil)
	must(t, err)
	s.filter.Config.Logs = []stream.AccessLog{log}
	return s, log
}

// TestTriesAreSpans: each try has a span, whose context its upstream gets, that says how it ended.
func TestTriesAreSpans(t *testing.T) {
	h := defaults()
	h.Tracing = traced()
	p := hedges()
	p.Attempts = 3
	h.VirtualHosts[0].Routes[0].GetRoute().Retry = p
	s, log := newTraced(t, h)
	c := s.client()
	c.Send([]byte(get))
	var parents []string
	seen := func() {
		s.turn()
		got := string(s.backlog.Last().ReceiveAll())
		_, after, ok := strings.Cut(got, "Traceparent: 00-")
		if !ok || len(after) < 52 {
			t.Fatalf("the upstream got %q", got)
		}
		parents = append(parents, after[33:49])
	}
	seen()
	s.backlog.Last().Reset() // it failed
	s.turn()
	s.net.Advance(int64(longest))
	seen()
	s.net.Advance(int64(hedgeAfter + 5*time.Millisecond)) // it is hedged, and given up
	s.turn()
	s.net.Advance(int64(longest))
	seen()
	s.backlog.Last().Send([]byte("HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n")) // thrown away
	s.turn()
	s.net.Advance(int64(longest))
	seen()
	s.net.Advance(int64(10 * time.Millisecond))
	s.backlog.Last().Send([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nGrpc-Status: 5\r\n\r\n"))
	s.turn()
	if got := string(c.ReceiveAll()); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Fatalf("answered %q", got)
	}
	want := []stream.Try{
		{Retry: 0, GRPC: -1, Failure: "connection termination"},
		{Retry: 1, GRPC: -1, Canceled: true},
		{Retry: 2, GRPC: -1, Status: 500},
		{Retry: 3, GRPC: 5, Status: 200},
	}
	if len(log.tries) != len(want) {
		t.Fatalf("%d spans: %+v", len(log.tries), log.tries)
	}
	for i, got := range log.tries {
		if hex.EncodeToString(got.Span[:]) != parents[i] {
			t.Errorf("try %d has the span %x, its upstream got %s", i, got.Span, parents[i])
		}
		if got.End < got.Start || got.Host == nil || got.Cluster != "up" {
			t.Errorf("try %d: %+v", i, got)
		}
		if got.Link.Protocol != "HTTP/1.1" || got.Link.Connection == 0 {
			t.Errorf("try %d went over %+v", i, got.Link)
		}
		got.Span, got.Host, got.Cluster, got.Start, got.End, got.Link = [8]byte{}, nil, "", 0, 0, stream.Link{}
		if got != want[i] {
			t.Errorf("try %d ended as %+v, want %+v", i, got, want[i])
		}
	}
}

// TestManyTries: beyond those that have spans of their own, the upstream gets the context of the request's.
func TestManyTries(t *testing.T) {
	h := defaults()
	h.Tracing = traced()
	h.VirtualHosts[0].Routes[0].GetRoute().Retry = &configv1.RetryPolicy{On: []string{"5xx"}, Attempts: 2 * stream.MaxTries}
	s, log := newTraced(t, h)
	c := s.client()
	c.Send([]byte(get))
	parents := map[string]int{}
	for range 1 + 2*stream.MaxTries {
		s.turn()
		got := string(s.backlog.Last().ReceiveAll())
		_, after, ok := strings.Cut(got, "Traceparent: 00-")
		if !ok {
			t.Fatalf("the upstream got %q after %d tries", got, len(parents))
		}
		parents[after[33:49]]++
		s.backlog.Last().Send([]byte("HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n"))
		s.turn()
		s.net.Advance(int64(longest))
	}
	if got := string(c.ReceiveAll()); !strings.HasPrefix(got, "HTTP/1.1 503 ") {
		t.Fatalf("answered %q", got)
	}
	for _, try := range log.tries {
		if n := parents[hex.EncodeToString(try.Span[:])]; n != 1 {
			t.Errorf("the span of a try went upstream %d times", n)
		}
	}
	if len(log.tries) != stream.MaxTries || len(parents) != stream.MaxTries+1 {
		t.Errorf("%d tries have spans, upstreams got %d", len(log.tries), len(parents))
	}
}

// TestTracedTriesAllocateNothing once their worker has had one.
func TestTracedTriesAllocateNothing(t *testing.T) {
	h := defaults()
	h.Tracing = traced()
	s, _ := newTraced(t, h)
	s.filter.Config.Logs = nil
	client := s.warm()
	if n := testing.AllocsPerRun(500, func() { s.exchange(client) }); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
}

// TestRouteSampling: a route's shares take the place of the connection manager's, one by one.
func TestRouteSampling(t *testing.T) {
	none, all := uint32(0), uint32(1_000_000)
	for _, test := range []struct {
		name    string
		http    uint32 // random sampling
		route   *configv1.RouteTracing
		headers string
		sampled bool
	}{
		{"the manager's", all, nil, "", true},
		{"none of the route", all, &configv1.RouteTracing{RandomSampling: &none}, "", false},
		{"all of the route", none, &configv1.RouteTracing{RandomSampling: &all}, "", true},
		{"no more than so many", all, &configv1.RouteTracing{OverallSampling: &none}, "", false},
		{"what it does not say", none, &configv1.RouteTracing{ClientSampling: &all}, "", false},
		{"a client's wish", all, &configv1.RouteTracing{ClientSampling: &none, RandomSampling: &none}, "X-Client-Trace-Id: 1\r\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			h := defaults()
			h.Tracing = traced()
			h.Tracing.RandomSampling, h.Tracing.Trusted = test.http, []string{"198.51.100.0/24"}
			h.VirtualHosts[0].Routes[0].Tracing = test.route
			s, log := newTraced(t, h)
			c := s.client()
			c.Send([]byte("GET / HTTP/1.1\r\nHost: h\r\n" + test.headers + "\r\n"))
			s.turn()
			s.backlog.Last().Send([]byte(good))
			s.turn()
			if len(log.sampled) != 1 || log.sampled[0] != test.sampled {
				t.Errorf("sampled: %v, want %v", log.sampled, test.sampled)
			}
		})
	}
}
