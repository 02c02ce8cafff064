package upstream

import (
	"slices"
	"testing"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestJudge adds two workers' gauges up against the limits of each priority.
func TestJudge(t *testing.T) {
	zero, one := uint32(0), uint32(1)
	built, err := cluster.Build(&configv1.Cluster{
		Name: "api", Endpoints: []*configv1.Endpoint{{Address: "10.0.0.1:80"}},
		CircuitBreaker:     &configv1.CircuitBreaker{MaxConnections: 5, MaxPendingRequests: &zero, MaxRequests: 4, RetryBudgetPercent: 50, MinRetryConcurrency: &one},
		CircuitBreakerHigh: &configv1.CircuitBreaker{MaxConnections: 2, MaxRequests: 3, TrackRemaining: true},
	}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	first, second, main, left := &counters.Cluster{}, &counters.Cluster{}, &counters.Cluster{}, &counters.BreakersLeft{}
	c := &Config{Cluster: built, Cells: []*counters.Cluster{first, second}, Main: main, Left: [cluster.Priorities]*counters.BreakersLeft{cluster.High: left}}
	set := func(cells *counters.Cluster, gauge int, all, high uint64) { cells[gauge], cells[gauge+1] = all, high }
	open := func() []uint64 { return main[counters.ClusterBreakersOpen:counters.ClusterHTTP2] }
	is := func(when string, wantOpen []uint64, wantLeft counters.BreakersLeft) {
		t.Helper()
		c.Judge()
		if !slices.Equal(open(), wantOpen) || *left != wantLeft {
			t.Errorf("%s: open %v, left %v, want %v and %v", when, open(), *left, wantOpen, wantLeft)
		}
	}
	// connections, pending, requests, retries; of default, of high
	is("at rest", []uint64{0, 1, 0, 0, 0, 0, 0, 0}, counters.BreakersLeft{2, 1024, 3, 3})
	set(first, counters.ClusterUpstreamCxActive, 4, 1)
	set(second, counters.ClusterUpstreamCxActive, 1, 1)
	set(first, counters.ClusterUpstreamRqActive, 3, 1)
	set(second, counters.ClusterUpstreamRqActive, 2, 0)
	set(second, counters.ClusterUpstreamRqPendingActive, 5, 5)
	set(first, counters.ClusterUpstreamRqRetryActive, 2, 1)
	is("under way", []uint64{0, 1, 1, 0, 1, 0, 0, 0}, counters.BreakersLeft{0, 1019, 2, 2}) // of 4 requests half may be retries
	set(second, counters.ClusterUpstreamRqRetryActive, 1, 0)
	set(second, counters.ClusterUpstreamCxActive, 5, 4) // a worker always has one
	is("beyond", []uint64{0, 1, 1, 1, 1, 0, 0, 0}, counters.BreakersLeft{0, 1019, 2, 2})
	c.Forget()
	if !slices.Equal(open(), make([]uint64, 8)) || *left != (counters.BreakersLeft{}) {
		t.Errorf("a cluster that went still says %v and %v", open(), *left)
	}
}
