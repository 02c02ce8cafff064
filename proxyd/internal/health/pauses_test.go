package health

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"retinue.dev/proxyd/internal/cluster"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestPauses: how long the next check waits, by what the last ones said. Envoy's intervals.
func TestPauses(t *testing.T) {
	none, half := uint32(0), uint32(50)
	all := &configv1.HealthCheck{
		Kind: &configv1.HealthCheck_Tcp{Tcp: &configv1.TcpCheck{}}, IntervalMs: 1000, UnhealthyIntervalMs: 2000, UnhealthyEdgeIntervalMs: 3000, HealthyEdgeIntervalMs: 4000,
		NoTrafficIntervalMs: 5000, NoTrafficHealthyIntervalMs: 6000, IntervalJitterPercent: &none,
	}
	plain := &configv1.HealthCheck{Kind: all.Kind, IntervalMs: 1000, IntervalJitterPercent: &none}
	edge := &configv1.HealthCheck{Kind: all.Kind, IntervalMs: 1000, UnhealthyIntervalMs: 2000, NoTrafficIntervalMs: 5000, IntervalJitterPercent: &none}
	jittery := &configv1.HealthCheck{Kind: all.Kind, IntervalMs: 1000, IntervalJitterPercent: &half, IntervalJitterMs: 300}
	for _, test := range []struct {
		name            string
		check           *configv1.HealthCheck
		row             int // results in a row that speak against the verdict
		passed, traffic bool
		want, most      time.Duration
	}{
		{"well", all, 0, true, true, 1000, 0},
		{"ill", all, 0, false, true, 2000, 0},
		{"about to be ill", all, 1, false, true, 3000, 0},
		{"about to be well", all, 1, true, true, 4000, 0},
		{"ill, without traffic", all, 0, false, false, 5000, 0},
		{"about to be well, without traffic", all, 1, true, false, 5000, 0},
		{"well, without traffic", all, 0, true, false, 6000, 0},
		{"one interval for everything", plain, 1, false, false, 1000, 0},
		{"the edge is as the unhealthy one", edge, 1, false, true, 2000, 0},
		{"the healthy edge is as usual", edge, 1, true, true, 1000, 0},
		{"healthy as others without traffic", edge, 0, true, false, 5000, 0},
		{"jitter", jittery, 0, true, true, 1000, 1800},
	} {
		c := build(t, 1, func(o *configv1.Cluster) { o.HealthCheck = test.check }).Check
		for range 50 {
			got := (&host{row: test.row}).pause(c, test.passed, test.traffic)
			if want, most := test.want*time.Millisecond, max(test.want, test.most)*time.Millisecond; got < want || got > most {
				t.Errorf("%s: %v, want %v to %v", test.name, got, want, most)
				break
			}
		}
	}
}

// TestInitialJitter: the first check waits for no longer.
func TestInitialJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		r := newRig(ctx)
		r.Set([]*cluster.Cluster{build(t, 3, func(o *configv1.Cluster) {
			checked(o)
			o.HealthCheck.InitialJitterMs, o.HealthCheck.IntervalMs = 60_000, 3_600_000
		})})
		synctest.Wait()
		for i := range 3 {
			if n := r.sick.asked(address(i)); n > 0 { // one in a thousand million by chance
				t.Errorf("host %d is asked at once", i)
			}
		}
		time.Sleep(time.Minute + time.Millisecond)
		synctest.Wait()
		for i := range 3 {
			if n := r.sick.asked(address(i)); n != 1 {
				t.Errorf("host %d was asked %d times", i, n)
			}
		}
	})
}

// TestAnswerDecides: a host that answers that it is ill is out at once, whatever the threshold says.
func TestAnswerDecides(t *testing.T) {
	for _, says := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ctx, end := context.WithCancel(context.Background())
			defer end()
			r := newRig(ctx)
			r.sick.says = says
			r.Set([]*cluster.Cluster{build(t, 3, func(o *configv1.Cluster) {
				checked(o)
				o.HealthCheck.UnhealthyThreshold = 3
			})})
			synctest.Wait()
			r.sick.set(address(1), true)
			time.Sleep(round)
			if says {
				r.available(t, 0, 2)
			} else {
				r.available(t, 0, 1, 2)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			if network := r.events[NetworkFailure] > 0; network == says || r.events[Failure] == 0 {
				t.Errorf("events %v", r.events)
			}
		})
	}
}

// TestImmediateFail: what an answer to a request says takes its host out; checks bring it back.
func TestImmediateFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		r := newRig(ctx)
		c := build(t, 3, func(o *configv1.Cluster) {
			checked(o)
			o.HealthCheck.HealthyThreshold = 2
		})
		r.Set([]*cluster.Cluster{c})
		time.Sleep(time.Second)
		c.Hosts.Hosts[1].Fail()
		c.Hosts.Hosts[1].Fail()
		time.Sleep(2 * lookEvery)
		r.available(t, 0, 2)
		time.Sleep(3 * round)
		r.available(t, 0, 1, 2)
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.events[PassiveFailure] != 1 || r.events[BecameUnhealthy] != 1 || r.events[BecameHealthy] != 1 {
			t.Errorf("events %v", r.events)
		}
	})
}

// TestPardon: a check that passes ends an ejection, unless it shall not.
func TestPardon(t *testing.T) {
	for _, ends := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			ctx, end := context.WithCancel(context.Background())
			defer end()
			r := newRig(ctx)
			c := build(t, 3, func(o *configv1.Cluster) {
				checked(o)
				o.OutlierDetection = &configv1.OutlierDetection{Consecutive_5Xx: 1, BaseEjectionMs: 3_600_000, MaxEjectionMs: 3_600_000, SuccessfulActiveHealthCheckUnejectHost: &ends}
			})
			r.Set([]*cluster.Cluster{c})
			time.Sleep(time.Second)
			c.Hosts.Hosts[2].Record(0, c.Outlier, 500)
			time.Sleep(2 * lookEvery)
			r.available(t, 0, 1)
			time.Sleep(round)
			want := map[bool]int{true: 1}[ends]
			if ends {
				r.available(t, 0, 1, 2)
			} else {
				r.available(t, 0, 1)
			}
			r.mu.Lock()
			defer r.mu.Unlock()
			if r.events[Unejected] != want || r.events[Ejected] != 1 || r.events[Detected] != 1 {
				t.Errorf("events %v", r.events)
			}
		})
	}
}

// TestEjectionLimits: how many may be out at a time, and how many percent of what is found is enforced.
func TestEjectionLimits(t *testing.T) {
	none, ten, never := uint32(0), uint32(10), false
	for _, test := range []struct {
		name string
		rule *configv1.OutlierDetection
		want map[What]int
	}{
		{"one at least", &configv1.OutlierDetection{Consecutive_5Xx: 1, MaxEjectionPercent: &ten}, map[What]int{Detected: 3, Ejected: 1, Overflowed: 2}},
		{"not even one", &configv1.OutlierDetection{Consecutive_5Xx: 1, MaxEjectionPercent: &ten, AlwaysEjectOneHost: &never}, map[What]int{Detected: 3, Overflowed: 3}},
		{"none at all", &configv1.OutlierDetection{Consecutive_5Xx: 1, MaxEjectionPercent: &none}, map[What]int{Detected: 3, Overflowed: 3}},
		{"not enforced", &configv1.OutlierDetection{Consecutive_5Xx: 1, Enforcing: &configv1.OutlierEnforcing{Consecutive_5Xx: &none}}, map[What]int{Detected: 3, Unenforced: 3}},
	} {
		c := build(t, 4, func(o *configv1.Cluster) { o.OutlierDetection = test.rule })
		now := time.Unix(0, 0)
		d := newDetector(c.Outlier, now)
		d.set(c.Hosts)
		for _, h := range c.Hosts.Hosts[:3] {
			h.Record(0, c.Outlier, 500)
		}
		found, _ := d.look(c.Hosts, now)
		got := map[What]int{}
		for _, f := range found {
			if got[f.what]++; f.rule != cluster.Consecutive5xx {
				t.Errorf("%s: found by %v", test.name, f.rule)
			}
		}
		for what, n := range test.want {
			if got[what] != n {
				t.Errorf("%s: found %v, want %v", test.name, got, test.want)
			}
		}
	}
}

// TestLocalOrigin: with the split what is no answer counts apart.
func TestLocalOrigin(t *testing.T) {
	c := build(t, 3, func(o *configv1.Cluster) {
		o.OutlierDetection = &configv1.OutlierDetection{Consecutive_5Xx: 2, SplitExternalLocalOriginErrors: true, ConsecutiveLocalOriginFailure: 3}
	})
	now := time.Unix(0, 0)
	d := newDetector(c.Outlier, now)
	d.set(c.Hosts)
	for host, statuses := range [][]int{
		{0, 500, 0, 500},           // a run of 5xx, whatever is between
		{0, 0, 404, 0, 0},          // an answer ends a run of local origin
		{0, 0, 0, 200, 0, 0, 0, 0}, // two runs
	} {
		for _, s := range statuses {
			c.Hosts.Hosts[host].Record(0, c.Outlier, s)
		}
	}
	if o := c.Hosts.Hosts[2].Sum(); o.TripsLocal != 2 || o.Total != 1 || o.Failed != 0 || o.Trips5xx != 0 {
		t.Errorf("the third host has %+v", o)
	}
	if o := c.Hosts.Hosts[1].Sum(); o.TripsLocal != 0 {
		t.Errorf("the second host has %+v", o)
	}
	found, _ := d.look(c.Hosts, now)
	if len(found) != 4 || found[0] != (finding{address(0), Detected, cluster.Consecutive5xx}) || found[2] != (finding{address(2), Detected, cluster.ConsecutiveLocalOriginFailure}) {
		t.Errorf("found %v", found)
	}
}

// TestFailuresAreLogged: each failed check is a line with always_log_failures, and an ejection says whether it is one.
func TestFailuresAreLogged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.log")
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(context.Background())
		defer end()
		r := newRig(ctx)
		none := uint32(0)
		c := build(t, 2, func(o *configv1.Cluster) {
			checked(o)
			o.HealthCheck.EventLog, o.HealthCheck.AlwaysLogFailures, o.HealthCheck.UnhealthyThreshold = path, true, 2
			o.OutlierDetection = &configv1.OutlierDetection{Consecutive_5Xx: 1, EventLog: path, Enforcing: &configv1.OutlierEnforcing{Consecutive_5Xx: &none}}
		})
		r.Set([]*cluster.Cluster{c})
		time.Sleep(time.Second)
		c.Hosts.Hosts[0].Record(0, c.Outlier, 500)
		time.Sleep(2 * lookEvery)
		r.sick.set(address(1), true)
		time.Sleep(2 * round)
		synctest.Wait()
	})
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), `"event":"health_check_failure"`); n < 2 {
		t.Errorf("%d failures are logged:\n%s", n, text)
	}
	if strings.Count(string(text), `"event":"eject","cluster_name":"api","host":"`+address(0)+`","type":"consecutive_5xx","enforced":false}`) != 1 {
		t.Errorf("the ejection that was none is not logged:\n%s", text)
	}
}
