package healthcheck

import (
	"sync/atomic"
	"testing"

	"retinue.dev/proxyd/internal/counters"
	configv1 "retinue.dev/services/api/config/v1"
)

func TestHealthy(t *testing.T) {
	cells := map[string]*counters.Cluster{"a": {}, "b": {}}
	f, err := New(&configv1.HealthCheckFilter{Path: "/", Clusters: []*configv1.ClusterShare{
		{Cluster: "a", MinHealthy: 500_000}, {Cluster: "b", MinHealthy: 0},
	}}, new(atomic.Bool), func(name string) *counters.Cluster { return cells[name] }, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		total, healthy uint64
		want           bool
	}{{0, 0, false}, {4, 4, true}, {4, 2, true}, {4, 1, false}, {3, 1, false}, {3, 2, true}, {1, 0, false}} {
		cells["a"][counters.ClusterMembershipTotal], cells["a"][counters.ClusterMembershipHealthy] = row.total, row.healthy
		if got := f.healthy(); got != row.want {
			t.Errorf("%d of %d: %v", row.healthy, row.total, got)
		}
	}
	if _, err := New(&configv1.HealthCheckFilter{Path: "x"}, nil, nil, nil); err == nil {
		t.Error("a path without a slash is accepted")
	}
}

// TestVerdict: what a cache knows is in one word, and holds until its time.
func TestVerdict(t *testing.T) {
	const ms = 1_000_000
	for _, until := range []int64{5 * ms, 1 << 60} {
		for _, status := range []int{200, 204, 503, 999} {
			for _, degraded := range []bool{false, true} {
				v := newVerdict(until, status, degraded)
				if v.status() != status || v.degraded() != degraded || !v.holds(until-ms) || v.holds(until) {
					t.Errorf("%d until %d is %x", status, until, uint64(v))
				}
			}
		}
	}
	if verdict(0).holds(0) {
		t.Error("nothing holds")
	}
	for _, o := range []*configv1.HealthCheckFilter{{Path: "/", CacheTimeMs: 1}, {Path: "/", PassThrough: true, CacheTimeMs: -1}} {
		if _, err := New(o, nil, nil, nil); err == nil {
			t.Errorf("%v is accepted", o)
		}
	}
}
