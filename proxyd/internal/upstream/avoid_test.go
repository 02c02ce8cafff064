package upstream

import (
	"fmt"
	"testing"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestAvoid: another host than those to avoid is looked for so often, then it is whoever came last.
func TestAvoid(t *testing.T) {
	w, err := worker.New(0, simulated.New())
	if err != nil {
		t.Fatal(err)
	}
	object := &configv1.Cluster{Name: "api"}
	for i := range 4 {
		object.Endpoints = append(object.Endpoints, &configv1.Endpoint{Address: fmt.Sprintf("10.0.0.%d:80", i+1)})
	}
	built, err := cluster.Build(object, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		looks int
		want  int // how far behind the first one, in turn: the next two are avoided
	}{{0, 1}, {1, 2}, {2, 3}, {3, 3}} {
		p := newPool(NewManager(w, tlstransport.NewSide(w)), &Config{Cluster: built, Cells: []*counters.Cluster{new(counters.Cluster)}})
		first := p.choose(Avoid{}, nil)
		near := func(n int) *cluster.Host { return p.hosts[(first+n)%4].host }
		got := p.choose(Avoid{Hosts: []*cluster.Host{near(1), near(2)}, Looks: test.looks}, nil)
		if want := (first + test.want) % 4; got != want {
			t.Errorf("with %d looks it is %d hosts on, want %d", test.looks, (got-first+4)%4, test.want)
		}
	}
}
