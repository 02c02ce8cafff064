package snapshot

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"retinue.dev/proxyd/internal/accesslog"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// object wraps a body as configd does.
func object(kind, name string, body proto.Message) *configv1.Object {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(body)
	if err != nil {
		panic(err)
	}
	hash := sha256.Sum256(raw)
	o := &configv1.Object{Kind: kind, Name: name, Hash: hash[:]}
	switch b := body.(type) {
	case *configv1.Runtime:
		o.Body = &configv1.Object_Runtime{Runtime: b}
	case *configv1.Listener:
		o.Body = &configv1.Object_Listener{Listener: b}
	case *configv1.Http:
		o.Body = &configv1.Object_Http{Http: b}
	case *configv1.Cluster:
		o.Body = &configv1.Object_Cluster{Cluster: b}
	case *configv1.Filter:
		o.Body = &configv1.Object_Filter{Filter: b}
	case *configv1.AccessLog:
		o.Body = &configv1.Object_AccessLog{AccessLog: b}
	}
	return o
}

func clusterObject(name string, endpoints ...string) *configv1.Object {
	c := &configv1.Cluster{Name: name}
	for _, e := range endpoints {
		c.Endpoints = append(c.Endpoints, &configv1.Endpoint{Address: e})
	}
	return object("cluster", name, c)
}

func httpObjects(name, cluster string, logs ...string) []*configv1.Object {
	return []*configv1.Object{
		object("http", name, &configv1.Http{Name: name, AccessLogs: logs, VirtualHosts: []*configv1.VirtualHost{{
			Name: "all", Domains: []string{"*"}, Routes: []*configv1.Route{{
				Name: "/*", Match: &configv1.RouteMatch{Path: &configv1.RouteMatch_Prefix{Prefix: "/"}},
				Action:         &configv1.Route_Route{Route: &configv1.RouteAction{Clusters: []*configv1.WeightedCluster{{Cluster: cluster, Weight: 1}}}},
				RequestHeaders: &configv1.HeaderOps{Set: []*configv1.Header{{Name: "x-from", Value: "%DOWNSTREAM_REMOTE_ADDRESS%"}}},
			}},
		}}}),
		object("listener", name, &configv1.Listener{
			Name: name, Addresses: []*configv1.Address{{Address: "127.0.0.1:80"}},
			FilterChains: []*configv1.FilterChain{{Filter: &configv1.FilterChain_Http{Http: name}}},
		}),
	}
}

func tcpObject(name string, clusters ...string) *configv1.Object {
	t := &configv1.TcpProxy{}
	for _, c := range clusters {
		t.Clusters = append(t.Clusters, &configv1.WeightedCluster{Cluster: c, Weight: 2})
	}
	return object("listener", name, &configv1.Listener{
		Name: name, Addresses: []*configv1.Address{{Address: "127.0.0.1:81"}},
		FilterChains: []*configv1.FilterChain{{Filter: &configv1.FilterChain_Tcp{Tcp: t}}},
	})
}

func logObject(name, format string) *configv1.Object {
	return object("access_log", name, &configv1.AccessLog{Name: name, Path: "/" + name, Format: format})
}

type noLog struct{ name string }

func (*noLog) Log(*stream.Stream) {}

func newBuilder() *Builder {
	return &Builder{Workers: 2, Stats: counters.NewHeap(2), Log: func(c *configv1.AccessLog) (stream.AccessLog, error) {
		return &noLog{c.GetName()}, accesslog.Check(c)
	}}
}

func mustBuild(t *testing.T, b *Builder, previous *Snapshot, objects ...*configv1.Object) *Snapshot {
	t.Helper()
	s, reasons := b.Build(context.Background(), previous, "id", objects)
	if s == nil {
		t.Fatalf("refused: %v", reasons)
	}
	return s
}

// TestSharing holds what a change leaves alone: what did not change is the same pointer.
func TestSharing(t *testing.T) {
	base := slices.Concat(
		[]*configv1.Object{clusterObject("a", "127.0.0.1:1"), clusterObject("b", "127.0.0.1:2"), logObject("main", "%PROTOCOL%")},
		httpObjects("web", "a", "main"), []*configv1.Object{tcpObject("raw", "a", "b")},
	)
	replace := func(o *configv1.Object) []*configv1.Object {
		list := slices.Clone(base)
		for i := range list {
			if list[i].GetKind() == o.GetKind() && list[i].GetName() == o.GetName() {
				list[i] = o
			}
		}
		return list
	}
	for _, test := range []struct {
		name    string
		next    []*configv1.Object
		changed []string
	}{
		{"nothing", base, nil},
		{"a cluster", replace(clusterObject("b", "127.0.0.1:3")), []string{"b"}},
		{"an access log", replace(logObject("main", "%RESPONSE_CODE%")), []string{"web"}},
		{"the routes", replace(httpObjects("web", "b", "main")[0]), []string{"web"}},
		{"a listener", replace(tcpObject("raw", "b")), []string{"raw"}},
		{"a new cluster", append(slices.Clone(base), clusterObject("c", "127.0.0.1:4")), []string{"c"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newBuilder()
			first := mustBuild(t, b, nil, base...)
			second := mustBuild(t, b, first, test.next...)
			var changed []string
			for i, l := range second.Listeners {
				if first.Listeners[i] != l {
					changed = append(changed, l.Name)
				}
			}
			for handle, c := range second.Clusters {
				if handle >= len(first.Clusters) || first.Clusters[handle] != c {
					changed = append(changed, c.Name)
				}
			}
			if !slices.Equal(changed, test.changed) {
				t.Errorf("%v changed, want %v", changed, test.changed)
			}
		})
	}
}

// TestHandles holds that a name keeps its handle for ever, and that no other name gets it: streams of an older snapshot
// still hold it.
func TestHandles(t *testing.T) {
	b := newBuilder()
	first := mustBuild(t, b, nil, clusterObject("a", "127.0.0.1:1"), clusterObject("b", "127.0.0.1:2"))
	second := mustBuild(t, b, first, clusterObject("c", "127.0.0.1:3"), clusterObject("b", "127.0.0.1:2"))
	third := mustBuild(t, b, second, clusterObject("a", "127.0.0.1:9"))
	at := func(s *Snapshot, name string) int {
		handle, ok := s.Handle(name)
		if !ok || s.Clusters[handle].Name != name || s.Clusters[handle].Handle != handle {
			t.Fatalf("snapshot %v does not have %s", s.Clusters, name)
		}
		return int(handle)
	}
	if at(first, "b") != at(second, "b") || at(first, "a") != at(third, "a") || at(second, "c") == at(first, "a") {
		t.Errorf("handles moved: a %d, b %d and %d, c %d", at(first, "a"), at(first, "b"), at(second, "b"), at(second, "c"))
	}
	if _, ok := second.Handle("a"); ok || second.Clusters[at(first, "a")] != nil {
		t.Error("a cluster that went is still there")
	}
	if first.Clusters[at(first, "b")].Hosts.Hosts[0] != second.Clusters[at(second, "b")].Hosts.Hosts[0] {
		t.Error("a host that did not change is another one")
	}
	// A build that is called off leaves no trace.
	if again := mustBuild(t, b, first, clusterObject("d", "127.0.0.1:3")); at(again, "d") != at(second, "c") {
		t.Errorf("d has handle %d", at(again, "d"))
	}
}

func TestRefusals(t *testing.T) {
	a := clusterObject("a", "127.0.0.1:1")
	for _, test := range []struct {
		name    string
		objects []*configv1.Object
		want    string // kind name field: message
	}{
		{"endpoint", []*configv1.Object{clusterObject("a", "nohost")}, `cluster a : endpoints[0]: "nohost"`},
		{"protocol", []*configv1.Object{object("cluster", "x", &configv1.Cluster{Name: "x", Protocol: "spdy"})}, `cluster x : protocol "spdy"`},
		{"tcp to nowhere", []*configv1.Object{a, tcpObject("raw", "a", "z")}, `listener raw clusters[1]: cluster "z"`},
		{"route to nowhere", append(httpObjects("web", "z"), a), `http web : a route names cluster "z"`},
		{"no such log", append(httpObjects("web", "a", "lost"), a), `http web access_logs[0]: access log "lost"`},
		{"bad log", append(httpObjects("web", "a", "main"), a, logObject("main", "%NOPE%")), `access_log main : format: at byte 0`},
		{"no manager", []*configv1.Object{httpObjects("web", "a")[1], a}, `listener web : its connection manager "web"`},
		{"no chain", []*configv1.Object{object("listener", "l", &configv1.Listener{Name: "l"})}, `listener l : it has no filter chain`},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, reasons := newBuilder().Build(context.Background(), nil, "id", test.objects)
			if s != nil || len(reasons) != 1 {
				t.Fatalf("Build = %v with %v, want one reason", s, reasons)
			}
			r := reasons[0]
			if got := fmt.Sprintf("%s %s %s: %s", r.GetKind(), r.GetName(), r.GetField(), r.GetMessage()); !strings.HasPrefix(got, test.want) {
				t.Errorf("refused with %q, want %q", got, test.want)
			}
		})
	}
	_, reasons := newBuilder().Build(context.Background(), nil, "id", []*configv1.Object{clusterObject("a", "x"), clusterObject("b", "y"), tcpObject("raw", "z")})
	if len(reasons) != 3 {
		t.Errorf("%d reasons, want every one at once: %v", len(reasons), reasons)
	}
}

// TestBadLogIsToldOnce holds that a log which several listeners use is one refusal.
func TestBadLogIsToldOnce(t *testing.T) {
	b := newBuilder()
	b.Log = func(*configv1.AccessLog) (stream.AccessLog, error) { return nil, errors.New("bad") }
	objects := slices.Concat([]*configv1.Object{clusterObject("a", "127.0.0.1:1"), logObject("main", "x")}, httpObjects("one", "a", "main"), httpObjects("two", "a", "main"))
	if _, reasons := b.Build(context.Background(), nil, "id", objects); len(reasons) != 1 {
		t.Errorf("refusals %v, want one", reasons)
	}
}

func TestSettings(t *testing.T) {
	s := mustBuild(t, newBuilder(), nil)
	if s.Settings.ShutdownTime != 900*time.Second || s.Settings.DrainTime != 600*time.Second {
		t.Errorf("defaults are %+v", s.Settings)
	}
	runtime := object("runtime", "", &configv1.Runtime{Workers: 3, ShutdownTimeMs: 5000, DrainTimeMs: 2000, MaxConnections: 7})
	s = mustBuild(t, newBuilder(), s, runtime)
	if want := (Settings{Workers: 3, MaxConnections: 7, ShutdownTime: 5 * time.Second, DrainTime: 2 * time.Second, Leaving: Drain{Limit: 2 * time.Second}}); s.Settings != want {
		t.Errorf("settings %+v, want %+v", s.Settings, want)
	}
	for policy, want := range map[*configv1.DrainPolicy]Drain{
		{DrainTimeMs: 1000, ShutdownTimeMs: 4000}:                  {Over: time.Second, Limit: 4 * time.Second},
		{DrainTimeMs: 1000, ShutdownTimeMs: 4000, Immediate: true}: {Limit: 4 * time.Second},
	} {
		r := mustBuild(t, newBuilder(), s, object("runtime", "", &configv1.Runtime{DrainListener: policy}))
		if r.Settings.Leaving != want {
			t.Errorf("%v: %+v, want %+v", policy, r.Settings.Leaving, want)
		}
	}
	if n := Workers([]*configv1.Object{runtime}); n != 3 {
		t.Errorf("Workers is %d", n)
	}
}

func TestSameSockets(t *testing.T) {
	one := func(change func(*configv1.Listener)) *Listener {
		l := &configv1.Listener{Addresses: []*configv1.Address{{Address: "127.0.0.1:80"}, {Address: "[::1]:80"}}}
		change(l)
		return &Listener{Object: l}
	}
	base := one(func(*configv1.Listener) {})
	for name, test := range map[string]struct {
		change func(*configv1.Listener)
		same   bool
	}{
		"nothing": {func(*configv1.Listener) {}, true},
		"limit":   {func(l *configv1.Listener) { l.MaxConnections = 5 }, true},
		"address": {func(l *configv1.Listener) { l.Addresses[1].Address = "[::1]:81" }, false},
		"fewer":   {func(l *configv1.Listener) { l.Addresses = l.Addresses[:1] }, false},
		"option":  {func(l *configv1.Listener) { l.TcpDeferAccept = true }, false},
	} {
		if got := base.SameSockets(one(test.change)); got != test.same {
			t.Errorf("%s: SameSockets is %v", name, got)
		}
	}
}

func many(n int) []*configv1.Object {
	var objects []*configv1.Object
	for i := range n {
		objects = append(objects, clusterObject(fmt.Sprintf("cluster-%d", i), fmt.Sprintf("127.0.0.1:%d", 1024+i%60000), "127.0.0.2:80"))
	}
	return append(objects, httpObjects("web", "cluster-0")...)
}

// BenchmarkBuild10000 is a snapshot of 10,000 clusters: from nothing, and with one of them changed.
func BenchmarkBuild10000(b *testing.B) {
	objects := many(10000)
	changed := slices.Clone(objects)
	changed[17] = clusterObject("cluster-17", "127.0.0.3:9")
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			if s, reasons := newBuilder().Build(context.Background(), nil, "id", objects); s == nil {
				b.Fatal(reasons)
			}
		}
	})
	b.Run("change", func(b *testing.B) {
		builder := newBuilder()
		first, _ := builder.Build(context.Background(), nil, "id", objects)
		for b.Loop() {
			if s, reasons := builder.Build(context.Background(), first, "id", changed); s == nil {
				b.Fatal(reasons)
			}
		}
	})
}
