package snapshot

import (
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

func discovered(name string) *configv1.Object {
	return object("cluster", name, &configv1.Cluster{Name: name, Discovered: true})
}

func found(cluster string, addresses ...string) *configv1.ClusterEndpoints {
	c := &configv1.ClusterEndpoints{Cluster: cluster}
	for _, a := range addresses {
		c.Endpoints = append(c.Endpoints, &configv1.Endpoint{Address: a, Weight: 1})
	}
	return c
}

// TestWithEndpoints holds what a change of endpoints shares with the snapshot before it.
func TestWithEndpoints(t *testing.T) {
	b := newBuilder()
	b.Endpoints = map[string][]*configv1.Endpoint{"a": found("a", "127.0.0.1:1", "127.0.0.1:2").GetEndpoints()}
	objects := []*configv1.Object{discovered("a"), discovered("b"), clusterObject("fixed", "127.0.0.1:9")}
	s := mustBuild(t, b, nil, objects...)
	hosts := func(s *Snapshot, name string) (out []string) {
		handle, ok := s.Handle(name)
		if !ok {
			t.Fatalf("no cluster %s", name)
		}
		for _, h := range s.Clusters[handle].Hosts.Hosts {
			out = append(out, h.Address)
		}
		return out
	}
	if len(hosts(s, "a")) != 2 || len(hosts(s, "b")) != 0 {
		t.Fatalf("what was found before the snapshot: %v %v", hosts(s, "a"), hosts(s, "b"))
	}
	next, errs := s.WithEndpoints([]*configv1.ClusterEndpoints{found("a", "127.0.0.1:2", "127.0.0.1:3"), found("fixed", "127.0.0.1:8"), found("unknown", "127.0.0.1:8")})
	if len(errs) > 0 || next == s {
		t.Fatalf("%v, %v", next == s, errs)
	}
	a, _ := s.Handle("a")
	fixed, _ := s.Handle("fixed")
	if got := hosts(next, "a"); len(got) != 2 || got[1] != "127.0.0.1:3" {
		t.Errorf("a has %v", got)
	}
	if next.Clusters[a].Hosts.Hosts[0] != s.Clusters[a].Hosts.Hosts[1] {
		t.Error("the host that stays is another one: its idle connections would be closed")
	}
	if next.Clusters[fixed] != s.Clusters[fixed] || len(hosts(s, "a")) != 2 || hosts(s, "a")[0] != "127.0.0.1:1" {
		t.Error("a change touched more than its cluster")
	}
	if same, _ := next.WithEndpoints([]*configv1.ClusterEndpoints{found("a", "127.0.0.1:2", "127.0.0.1:3")}); same != next {
		t.Error("the same endpoints made another snapshot")
	}
	if same, errs := next.WithEndpoints([]*configv1.ClusterEndpoints{found("a", "nonsense")}); same != next || len(errs) != 1 {
		t.Errorf("nonsense was taken, or not told: %v", errs)
	}
	// A snapshot that follows keeps what was found, and one whose cluster changed takes it from the table.
	b.Endpoints["a"] = found("a", "127.0.0.1:2", "127.0.0.1:3").GetEndpoints()
	after := mustBuild(t, b, next, objects...)
	if after.Clusters[a] != next.Clusters[a] {
		t.Error("an unchanged cluster was built anew")
	}
	objects[0] = object("cluster", "a", &configv1.Cluster{Name: "a", Discovered: true, ConnectTimeoutMs: 7})
	if got := hosts(mustBuild(t, b, after, objects...), "a"); len(got) != 2 || got[1] != "127.0.0.1:3" {
		t.Errorf("the changed cluster has %v", got)
	}
}
