package hcm

import (
	"bytes"
	"context"
	"sync/atomic"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// built makes the factories of built-in filters.
func built(t testing.TB, filters ...*configv1.Filter) (list []stream.Factory) {
	t.Helper()
	for _, f := range filters {
		b, err := filter.Build(f, &filter.Env{
			Context: context.Background(), Workers: 1, Stats: counters.NewHeap(1), Failing: new(atomic.Bool),
		})
		must(t, err)
		list = append(list, b.HTTP)
	}
	return list
}

// passing are filters that let the plain request pass.
func passing() []*configv1.Filter {
	return []*configv1.Filter{
		{Kind: &configv1.Filter_Header{Header: &configv1.HeaderFilter{Response: &configv1.HeaderOps{Set: []*configv1.Header{{Name: "x-a", Value: "b"}}}}}},
		{Kind: &configv1.Filter_Ip{Ip: &configv1.IpFilter{Deny: []string{"203.0.113.0/24"}}}},
		{Kind: &configv1.Filter_Rbac{Rbac: &configv1.RbacFilter{Rules: &configv1.RbacRules{Action: "allow", Policies: []*configv1.RbacPolicy{{
			Permissions: []*configv1.RbacPermission{{Paths: []string{"/1*"}, Hosts: []string{"shop.*"}, Match: &configv1.RouteMatch{Methods: []string{"GET"}}}},
			Principals:  []*configv1.RbacPrincipal{{SourceCidrs: []string{"198.51.100.0/24"}}},
		}}}}}},
		{Kind: &configv1.Filter_RateLimit{RateLimit: &configv1.RateLimitFilter{Tokens: 1_000_000, IntervalMs: 1000, Burst: 1_000_000, Key: []string{"source", "route"}, Headers: true}}},
		{Kind: &configv1.Filter_Cors{Cors: &configv1.CorsFilter{AllowOrigins: []string{"https://*.example"}}}},
		{Kind: &configv1.Filter_Buffer{Buffer: &configv1.BufferFilter{MaxRequestBytes: 1000}}},
		{Kind: &configv1.Filter_BodyLimit{BodyLimit: &configv1.BodyLimitFilter{MaxRequestBytes: 1000, MaxResponseBytes: 10000}}},
		{Kind: &configv1.Filter_HealthCheck{HealthCheck: &configv1.HealthCheckFilter{Path: "/healthz", Clusters: []*configv1.ClusterShare{{Cluster: "up", MinHealthy: 1}}}}},
		{Kind: &configv1.Filter_Compress{Compress: &configv1.CompressFilter{}}},
		decompressing(),
		{Kind: &configv1.Filter_Fault{Fault: &configv1.FaultFilter{Headers: true, AbortStatus: 503, Match: &configv1.RouteMatch{
			Headers: []*configv1.FieldMatch{{Name: "x-drill", Test: &configv1.FieldMatch_Present{Present: true}}},
		}}}},
	}
}

func TestFiltersAllocateNothing(t *testing.T) {
	if raced {
		t.Skip("under the race detector the compiler keeps less on the stack")
	}
	for _, f := range passing() {
		s := newSim(t, defaults(), built(t, f)...)
		s.filter.Config.Logs = nil
		client := s.warm()
		if n := testing.AllocsPerRun(500, func() { s.exchange(client) }); n > 0 {
			t.Errorf("%T: %v allocations a request", f.GetKind(), n)
		}
	}
	s := newSim(t, defaults(), built(t, passing()...)...)
	s.filter.Config.Logs = nil
	client := s.warm()
	if n := testing.AllocsPerRun(500, func() { s.exchange(client) }); n > 0 {
		t.Errorf("all of them: %v allocations a request", n)
	}
}

func delayed(abort uint32) *configv1.Filter {
	return &configv1.Filter{Kind: &configv1.Filter_Fault{Fault: &configv1.FaultFilter{DelayMs: 100, AbortStatus: abort, MaxActive: 1}}}
}

// delays waits until that many requests are under way, so that the clock is moved when their timers run.
func (x *world) delays(n int) {
	x.t.Helper()
	x.until("a request", func() bool { return x.filter.Active() == n })
}

// A delay ends by a timer: then the request goes on, or fails.
func TestFaultDelays(t *testing.T) {
	x := newWorld(t, defaults(), built(t, delayed(0))...)
	c := x.client()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbo")
	x.delays(1)
	c.nothing()
	x.pass(99 * time.Millisecond)
	c.nothing()
	x.pass(10 * time.Millisecond)
	up := x.upstream()
	c.send("dy")
	x.until("the body", func() bool { up.pull(); return bytes.HasSuffix(up.got, []byte("body")) })
	up.got = nil
	up.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	x.until("a response", func() bool { c.pull(); return bytes.HasPrefix(c.got, []byte("HTTP/1.1 200")) })
	if l := x.last(); l.flags != "DI" || l.duration < int64(100*time.Millisecond) {
		t.Errorf("logged %+v", l)
	}
}

func TestFaultAborts(t *testing.T) {
	x := newWorld(t, defaults(), built(t, delayed(503))...)
	first, second := x.client(), x.client()
	first.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	x.delays(1)
	second.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n") // there is one fault already
	x.upstream().send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	x.until("the second's response", func() bool { second.pull(); return len(second.got) > 0 })
	first.nothing()
	x.pass(110 * time.Millisecond)
	x.until("the abort", func() bool {
		first.pull()
		return bytes.HasPrefix(first.got, []byte("HTTP/1.1 503")) && bytes.HasSuffix(first.got, []byte("\r\n\r\nfault filter abort"))
	})
	if l := x.last(); l.flags != "DI,FI" || l.details != "fault_filter_abort" {
		t.Errorf("logged %+v", l)
	}
}

// Who goes away while delayed leaves nothing behind.
func TestFaultClientGoes(t *testing.T) {
	x := newWorld(t, defaults(), built(t, delayed(0))...)
	c := x.tcpClient()
	c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	x.delays(1)
	c.reset()
	x.until("the end of the request", func() bool { return x.filter.Active() == 0 })
	next := x.client() // the place of a fault is free again
	next.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	x.delays(1)
	next.nothing()
	x.pass(110 * time.Millisecond)
	x.upstream().send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	x.until("a response", func() bool { next.pull(); return len(next.got) > 0 })
	if l := x.last(); l.flags != "DI" {
		t.Errorf("logged %+v", l)
	}
}
