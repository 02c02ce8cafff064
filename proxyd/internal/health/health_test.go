package health

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"retinue.dev/proxyd/internal/cluster"
	configv1 "retinue.dev/services/api/config/v1"
)

// build makes a cluster of n hosts, 10.0.0.1 and so on.
func build(t *testing.T, n int, change func(*configv1.Cluster)) *cluster.Cluster {
	t.Helper()
	object := &configv1.Cluster{Name: "api"}
	for i := range n {
		object.Endpoints = append(object.Endpoints, &configv1.Endpoint{Address: address(i)})
	}
	change(object)
	c, err := cluster.Build(object, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Hosts.Observe(2)
	return c
}

func address(i int) string { return "10.0.0." + string(rune('1'+i)) + ":80" }

func addresses(s *cluster.HostSet) (out []string) {
	for _, h := range s.Hosts {
		out = append(out, h.Address)
	}
	return out
}

// sick is probers whose hosts the test makes ill.
type sick struct {
	mu    sync.Mutex
	ill   map[string]bool
	tired map[string]bool // well, and to be spared
	asks  map[string]int
	says  bool // the ill ones say so themselves
	open  int
}

func (s *sick) set(address string, ill bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ill[address] = ill
}

func (s *sick) asked(address string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asks[address]
}

func (s *sick) opened() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

func (s *sick) prober(_ *cluster.Cluster, h *cluster.Host, _ *tls.Config) prober {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open++
	return &patient{s, h.Address}
}

type patient struct {
	*sick
	address string
}

func (p *patient) ask(context.Context) answer {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asks[p.address]++
	if p.ill[p.address] {
		return answer{failed: errors.New("ill"), answered: p.says, decides: p.says}
	}
	return answer{degraded: p.tired[p.address]}
}

func (p *patient) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
}

// rig is a monitor in a bubble of its own time.
type rig struct {
	*Monitor
	sick   *sick
	mu     sync.Mutex
	last   State
	events map[What]int
}

func newRig(ctx context.Context) *rig {
	r := &rig{sick: &sick{ill: map[string]bool{}, tired: map[string]bool{}, asks: map[string]int{}}, events: map[What]int{}}
	r.Monitor = New(Options{
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), prober: r.sick.prober,
		Publish: func(_ cluster.Handle, s State) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.last = s
		},
		Count: func(e Event) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.events[e.What]++
		},
	})
	go r.Run(ctx)
	return r
}

func (r *rig) available(t *testing.T, want ...int) {
	t.Helper()
	synctest.Wait()
	state, ok := r.State(0)
	if !ok {
		t.Fatal("the cluster is not watched")
	}
	var names []string
	for _, i := range want {
		names = append(names, address(i))
	}
	if got := addresses(state.Available); !slices.Equal(got, names) {
		t.Errorf("available %v, want %v", got, names)
	}
}

func checked(o *configv1.Cluster) {
	o.HealthCheck = &configv1.HealthCheck{Kind: &configv1.HealthCheck_Tcp{Tcp: &configv1.TcpCheck{}}}
}

// round is longer than an interval with its jitter.
const round = 5600 * time.Millisecond

func TestThresholds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		r := newRig(ctx)
		c := build(t, 3, checked)
		r.sick.set(address(2), true) // ill from the start: the first check decides
		r.Set([]*cluster.Cluster{c})
		r.available(t, 0, 1)

		r.sick.set(address(0), true)
		for i, want := range [][]int{{0, 1}, {0, 1}, {0, 1, 2}} { // the third failure in a row; then fewer than half are left
			time.Sleep(round)
			synctest.Wait()
			if state, _ := r.State(0); i == 2 && state.Healthy != 1 {
				t.Errorf("%d hosts are healthy, want 1", state.Healthy)
			}
			r.available(t, want...)
		}

		r.sick.set(address(0), false)
		time.Sleep(round)
		r.available(t, 0, 1, 2)
		time.Sleep(round)
		r.available(t, 0, 1) // the second success in a row

		r.mu.Lock()
		if r.events[BecameUnhealthy] != 2 || r.events[BecameHealthy] != 1 || r.events[Attempt] != r.events[Success]+r.events[Failure] {
			t.Errorf("events %v", r.events)
		}
		r.mu.Unlock()
		end()
		synctest.Wait()
		if n := r.sick.opened(); n != 0 {
			t.Errorf("%d probers are left", n)
		}
	})
}

// TestSnapshots: what is known of a host survives a snapshot that keeps it, and a host that leaves is not asked again.
func TestSnapshots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		r := newRig(ctx)
		object := &configv1.Cluster{Name: "api", Endpoints: []*configv1.Endpoint{{Address: address(0)}, {Address: address(1)}, {Address: address(2)}}}
		checked(object)
		c, err := cluster.Build(object, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.sick.set(address(1), true)
		r.Set([]*cluster.Cluster{c})
		r.available(t, 0, 2)

		object.Endpoints = object.Endpoints[:2]
		next, err := cluster.Build(object, 0, c)
		if err != nil {
			t.Fatal(err)
		}
		if got := addresses(r.Set([]*cluster.Cluster{next})[0].Hosts); !slices.Equal(got, []string{address(0)}) {
			t.Errorf("the new snapshot begins with %v", got)
		}
		asked := r.sick.asked(address(2))
		time.Sleep(2 * round)
		synctest.Wait()
		if r.sick.asked(address(2)) != asked {
			t.Error("a host that left is still asked")
		}
		r.Set([]*cluster.Cluster{nil})
		synctest.Wait()
		if _, ok := r.State(0); ok || r.sick.opened() > 0 {
			t.Error("a cluster that left is still watched")
		}
	})
}

func ejecting(o *configv1.Cluster) {
	fifty := uint32(50)
	o.OutlierDetection = &configv1.OutlierDetection{Consecutive_5Xx: 3, ConsecutiveGatewayFailure: 2, MaxEjectionPercent: &fifty}
}

func TestConsecutive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		r := newRig(ctx)
		c := build(t, 4, ejecting)
		r.Set([]*cluster.Cluster{c})
		record := func(host, worker int, statuses ...int) {
			for _, s := range statuses {
				c.Hosts.Hosts[host].Record(worker, c.Outlier, s)
			}
		}
		record(0, 0, 500, 500, 200, 500, 500) // no run of three
		record(1, 0, 500, 500)
		record(1, 1, 500)           // runs are a worker's own
		record(2, 1, 500, 0, 500)   // a request without an answer counts
		record(3, 0, 503, 404, 502) // no run of two gateway failures
		time.Sleep(2 * lookEvery)
		r.available(t, 0, 1, 3)
		record(3, 0, 503)
		time.Sleep(2 * lookEvery)
		r.available(t, 0, 1)
		record(0, 0, 500, 500, 500) // half are out: nobody else
		time.Sleep(2 * lookEvery)
		r.available(t, 0, 1)
		time.Sleep(41 * time.Second) // base_ejection, and the look after it
		r.available(t, 0, 1, 2, 3)

		record(2, 1, 500, 500, 500) // the second time it lasts twice as long
		time.Sleep(41 * time.Second)
		r.available(t, 0, 1, 3)
		time.Sleep(30 * time.Second)
		r.available(t, 0, 1, 2, 3)
		if r.events[Ejected] != 3 || r.events[Unejected] != 3 {
			t.Errorf("events %v", r.events)
		}
	})
}

func TestComparisons(t *testing.T) {
	for _, test := range []struct {
		name   string
		rule   *configv1.OutlierDetection
		hosts  int
		total  int
		failed []int // of total, by host
		out    []int
	}{
		{"success rate", &configv1.OutlierDetection{SuccessRateStdevFactor: 1900}, 6, 200, []int{0, 2, 1, 0, 100, 3}, []int{4}},
		{"all alike", &configv1.OutlierDetection{SuccessRateStdevFactor: 1900}, 6, 200, []int{50, 52, 51, 50, 49, 50}, nil},
		{"too few hosts", &configv1.OutlierDetection{SuccessRateStdevFactor: 1900}, 4, 200, []int{0, 0, 0, 200}, nil},
		{"too few requests", &configv1.OutlierDetection{SuccessRateStdevFactor: 1900}, 6, 99, []int{0, 0, 0, 0, 99, 0}, nil},
		{"failure percentage", &configv1.OutlierDetection{FailurePercentage: 85}, 5, 60, []int{0, 50, 51, 1, 60}, []int{2, 4}},
		{"success rate of few hosts and requests", &configv1.OutlierDetection{SuccessRateStdevFactor: 1000, SuccessRateMinimumHosts: 3, SuccessRateRequestVolume: 10}, 3, 10, []int{0, 8, 0}, []int{1}},
		{"failure percentage of few hosts and requests", &configv1.OutlierDetection{FailurePercentage: 85, FailurePercentageMinimumHosts: 2, FailurePercentageRequestVolume: 10}, 2, 10, []int{9, 8}, []int{0}},
		{"failure percentage of one host", &configv1.OutlierDetection{FailurePercentage: 85, FailurePercentageMinimumHosts: 2, FailurePercentageRequestVolume: 10}, 1, 10, []int{9}, nil},
		{"not enforced", &configv1.OutlierDetection{FailurePercentage: 85, Enforcing: &configv1.OutlierEnforcing{FailurePercentage: new(uint32)}}, 5, 60, []int{0, 50, 51, 1, 60}, nil},
		{"off", &configv1.OutlierDetection{}, 6, 200, []int{0, 0, 0, 0, 200, 0}, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			all := uint32(100)
			test.rule.MaxEjectionPercent = &all
			c := build(t, test.hosts, func(o *configv1.Cluster) { o.OutlierDetection = test.rule })
			now := time.Unix(0, 0)
			d := newDetector(c.Outlier, now)
			d.set(c.Hosts)
			for i, failed := range test.failed {
				for n := range test.total {
					status := 200
					if n < failed {
						status = 500
					}
					c.Hosts.Hosts[i].Record(0, c.Outlier, status)
				}
			}
			d.look(c.Hosts, now.Add(c.Outlier.Interval))
			var out []int
			for i := range test.hosts {
				if d.out(address(i)) {
					out = append(out, i)
				}
			}
			if !slices.Equal(out, test.out) {
				t.Errorf("ejected %v, want %v", out, test.out)
			}
		})
	}
}

func TestRecordAllocatesNothing(t *testing.T) {
	c := build(t, 1, ejecting)
	if n := testing.AllocsPerRun(1000, func() { c.Hosts.Hosts[0].Record(1, c.Outlier, 503) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// shareOf is how many of many choices a host gets.
func (r *rig) shareOf(t *testing.T, i int) int {
	t.Helper()
	synctest.Wait()
	state, ok := r.State(0)
	if !ok {
		t.Fatal("the cluster is not watched")
	}
	var b cluster.Balancer
	b.Reset(state.Available, 1)
	n := 0
	for range 1000 {
		at, _ := b.Choose(1, make([]uint32, len(state.Available.Hosts)), nil)
		if state.Available.Hosts[at].Address == address(i) {
			n++
		}
	}
	return n
}

// TestSlowStart: a host that joins begins with a tenth and has its whole share after the window; so has one that is well again.
func TestSlowStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		r := newRig(ctx)
		object := &configv1.Cluster{Name: "api", Endpoints: []*configv1.Endpoint{{Address: address(0)}}, SlowStart: &configv1.SlowStart{WindowMs: 60_000}}
		checked(object)
		object.HealthCheck.HealthyThreshold, object.HealthCheck.UnhealthyThreshold = 1, 1
		none := uint32(0)
		object.PanicThresholdPercent = &none
		c, err := cluster.Build(object, 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Set([]*cluster.Cluster{c})
		object.Endpoints = append(object.Endpoints, &configv1.Endpoint{Address: address(1)})
		if c, err = cluster.Build(object, 0, c); err != nil {
			t.Fatal(err)
		}
		grows := func() {
			t.Helper()
			for _, step := range []struct {
				after time.Duration
				want  int // of 1000: f/(1+f)
			}{{0, 91}, {30 * time.Second, 333}, {30 * time.Second, 500}} {
				time.Sleep(step.after)
				if got := r.shareOf(t, 1); got < step.want-30 || got > step.want+15 {
					t.Errorf("after %v more it has %d of 1000, want about %d", step.after, got, step.want)
				}
			}
		}
		r.Set([]*cluster.Cluster{c})
		grows()
		r.sick.set(address(1), true)
		time.Sleep(round)
		r.available(t, 0)
		r.sick.set(address(1), false)
		for range 600 {
			if time.Sleep(10 * time.Millisecond); r.shareOf(t, 1) > 0 {
				break
			}
		}
		grows()
		time.Sleep(2 * time.Second)
		if state, _ := r.State(0); state.Available != state.Members {
			t.Error("warm hosts are not the members themselves")
		}
	})
}

// TestDegraded: a host that asks to be spared is, while the others suffice.
func TestDegraded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		r := newRig(ctx)
		c := build(t, 4, checked)
		r.Set([]*cluster.Cluster{c})
		r.sick.mu.Lock()
		r.sick.tired[address(3)] = true
		r.sick.mu.Unlock()
		time.Sleep(round)
		if got := r.shareOf(t, 3); got != 0 {
			t.Errorf("a degraded host has %d of 1000", got)
		}
		if state, _ := r.State(0); state.Degraded != 1 || state.Healthy != 3 {
			t.Errorf("%d degraded and %d healthy hosts, want 1 and 3", state.Degraded, state.Healthy)
		}
		r.sick.mu.Lock()
		r.sick.tired[address(3)] = false
		r.sick.mu.Unlock()
		time.Sleep(round)
		if got := r.shareOf(t, 3); got != 250 {
			t.Errorf("a host that is well again has %d of 1000", got)
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.events[BecameDegraded] != 1 || r.events[NoLongerDegraded] != 1 || r.events[BecameUnhealthy] != 0 {
			t.Errorf("events %v", r.events)
		}
	})
}

// TestDrain: who is drained is out, also of a cluster that nobody watches, and comes back.
func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		r := newRig(ctx)
		c := build(t, 3, func(*configv1.Cluster) {})
		if out := r.Set([]*cluster.Cluster{c}); out[0] != c {
			t.Error("a cluster that nobody watches is another")
		}
		r.Drain(map[string]map[string]bool{"api": {address(1): true}})
		out := r.Set([]*cluster.Cluster{c})
		r.available(t, 0, 2)
		if got := addresses(out[0].Hosts); len(got) != 2 {
			t.Errorf("the workers have %v", got)
		}
		if state, _ := r.State(0); state.Excluded != 1 || state.Healthy != 2 {
			t.Errorf("%d excluded and %d healthy hosts", state.Excluded, state.Healthy)
		}
		r.Drain(map[string]map[string]bool{"api": {address(0): true, address(1): true, address(2): true}})
		r.Set([]*cluster.Cluster{c})
		r.available(t) // no panic brings back who is drained
		r.Drain(nil)
		if out := r.Set([]*cluster.Cluster{c}); out[0].Hosts != c.Hosts {
			t.Errorf("after the last undrain: %v", addresses(out[0].Hosts))
		}
	})
}

// TestInherit: a host that failed in the process before takes no requests before it has passed here.
func TestInherit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		first := newRig(ctx)
		both := func(o *configv1.Cluster) {
			checked(o)
			never := false
			o.OutlierDetection = &configv1.OutlierDetection{Consecutive_5Xx: 1, SuccessfulActiveHealthCheckUnejectHost: &never}
		}
		c := build(t, 4, both)
		first.sick.set(address(1), true)
		first.Set([]*cluster.Cluster{c})
		c.Hosts.Hosts[2].Record(0, c.Outlier, 500)
		time.Sleep(time.Second)
		first.available(t, 0, 3)
		list := first.Verdicts()

		text, err := json.Marshal(list)
		if err != nil {
			t.Fatal(err)
		}
		var kept []Verdict
		if err := json.Unmarshal(text, &kept); err != nil {
			t.Fatal(err)
		}
		second := newRig(ctx)
		second.Inherit(kept)
		second.Set([]*cluster.Cluster{build(t, 4, both)})
		state, _ := second.State(0)
		if got := addresses(state.Available); !slices.Equal(got, []string{address(0), address(3)}) {
			t.Errorf("before any check: %v", got)
		}
		time.Sleep(round)
		second.available(t, 0, 1, 3) // two checks passed, the second one of them here; the ejection goes on
		time.Sleep(40 * time.Second)
		second.available(t, 0, 1, 2, 3)
	})
}

// TestEventLog holds the lines of an event log.
func TestEventLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.log")
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		r := newRig(ctx)
		c := build(t, 3, func(o *configv1.Cluster) {
			checked(o)
			o.HealthCheck.EventLog = path
			o.OutlierDetection = &configv1.OutlierDetection{Consecutive_5Xx: 1, EventLog: path}
		})
		r.sick.set(address(1), true)
		r.Set([]*cluster.Cluster{c})
		time.Sleep(time.Second)
		r.sick.set(address(1), false)
		time.Sleep(2 * round)
		c.Hosts.Hosts[2].Record(0, c.Outlier, 500)
		time.Sleep(time.Minute)
		synctest.Wait()
	})
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for l := range strings.Lines(string(text)) {
		var e line
		if err := json.Unmarshal([]byte(l), &e); err != nil || e.Cluster != "api" || e.Time == "" {
			t.Errorf("%q: %v", l, err)
		}
		got = append(got, strings.TrimSpace(strings.Join([]string{e.Event, e.Host, e.Checker, e.Rule}, " ")))
	}
	want := []string{
		"eject_unhealthy " + address(1) + " TCP", "add_healthy " + address(1) + " TCP", "eject " + address(2) + "  consecutive_5xx", "uneject " + address(2),
	}
	if !slices.Equal(got, want) {
		t.Errorf("events\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
