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
