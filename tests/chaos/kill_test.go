package chaos

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

// TestKillMatrix kills every daemon with -9 under load, each alone and then all in a row without waiting for the one before to
// be back. No connection is refused; only what a killed proxyd held may fail; no counter goes back.
func TestKillMatrix(t *testing.T) {
	s := suite.Start(t, application(t))
	l := startLoad(t, s)
	queues, counted := overflows(t)
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-28s %10s %8s %8s %12s\n", "killed", "fine", "refused", "failed", "whole again")
	round := func(name string, daemons ...string) {
		before := s.Counters()
		fine, refused, broken, since := l.fine(), l.refused(), l.broken(), time.Now()
		dead := map[string]int{}
		for _, d := range daemons {
			dead[d] = s.PID(d)
		}
		for _, d := range daemons {
			s.KillPID(d, dead[d])
		}
		whole(s, dead)
		took := time.Since(since)
		l.flows(100)
		fmt.Fprintf(&table, "%-28s %10d %8d %8d %12s\n", name, l.fine()-fine, l.refused()-refused, l.broken()-broken, took.Round(time.Millisecond))
		if n := l.broken() - broken; n > 0 && !strings.Contains(name, "proxyd") {
			t.Errorf("%s: %d requests or connections failed", name, n)
		}
		notBelow(t, name, before, s.Counters())
	}
	for _, d := range []string{"statsd", "configd", "restartd", "proxyd"} {
		round(d, d)
	}
	round("all but proxyd in a row", "statsd", "configd", "restartd")
	round("restartd and proxyd", "restartd", "proxyd")
	round("all, proxyd last", "statsd", "configd", "restartd", "proxyd")
	l.end()
	l.complain(t, false)
	if now, _ := overflows(t); counted && now != queues {
		t.Errorf("%d connections found a full accept queue", now-queues)
	}
	// Every answer that a client has was counted, whoever was killed meanwhile.
	answered := l.tallies[keepAlive].fine.Load() + l.tallies[newForEach].fine.Load()
	s.AwaitStat(float64(answered), "retinue_http_downstream_rq_total", "listener=web")
	s.AwaitStat(float64(answered), "retinue_cluster_upstream_rq_total", "cluster=app")
	t.Log(table.String())
}

// TestKillMatrixOfUpgrades kills one process in each state that an upgrade or a reload brings the suite to, and counts by kind of client
// what it costs. Whatever was under way ends, one way or the other, and the next upgrade works.
func TestKillMatrixOfUpgrades(t *testing.T) {
	s := suite.Start(t, application(t))
	l := startLoad(t, s)
	queues, counted := overflows(t)
	kinds := []string{keepAlive, newForEach, tcp, tunnel}
	var table strings.Builder
	fmt.Fprintf(&table, "\n%-10s %-10s", "state", "killed")
	for _, kind := range append(slices.Clone(kinds), "cut", "counters") {
		fmt.Fprintf(&table, " %20s", kind)
	}
	table.WriteString("\n")
	for _, state := range []struct {
		name string
		args []string
		end  string                   // of retinue upgrade, to end it
		in   func(*suite.Status) bool // the suite is in it
	}{
		{"canary", []string{"upgrade", "--canary", "50", "--canary-time", "0", "--probation", "0s"}, "--commit", func(status *suite.Status) bool { return candidate(status, true) != 0 }},
		{"probation", []string{"upgrade", "--probation", "1h"}, "--abort", func(status *suite.Status) bool { return candidate(status, false) != 0 }},
		{"reload", []string{"reload"}, "", func(*suite.Status) bool { return true }},
	} {
		for _, name := range []string{"statsd", "configd", "restartd", "old", "new"} {
			if state.name == "reload" && name == "new" {
				continue
			}
			counters, seen := s.Counters(), map[string][2]int64{}
			for kind, c := range l.tallies {
				seen[kind] = [2]int64{c.refused.Load(), c.broken.Load()}
			}
			before := s.PID("proxyd")
			args := state.args
			if state.name == "probation" && name == "old" { // nothing to abort to is left then
				args = []string{"upgrade", "--probation", "5s"}
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				s.Retinue(args...)
			}()
			var status *suite.Status
			s.Eventually("it is in "+state.name, func() (err error) {
				if status, err = s.Status(); err == nil && !state.in(status) {
					err = errors.New(status.Restartd.Upgrade)
				}
				return err
			})
			pid := before
			switch name {
			case "old":
			case "new":
				pid = candidate(status, state.name == "canary")
			default:
				pid = s.PID(name)
			}
			s.KillPID(name, pid)
			s.Eventually("nothing is under way", func() error {
				status, err := s.Status()
				switch {
				case err != nil:
					return err
				case status.Restartd.Upgrade != "":
					s.Retinue("upgrade", state.end) // refused while it ends by itself
					return errors.New(status.Restartd.Upgrade)
				case status.Serving() == 0 || status.Serving() == pid:
					return errors.New("nobody serves")
				}
				return nil
			})
			<-done
			whole(s, nil)
			l.flows(50)
			fmt.Fprintf(&table, "%-10s %-10s", state.name, name)
			for _, kind := range kinds {
				c := l.tallies[kind]
				refused, failed := c.refused.Load()-seen[kind][0], c.broken.Load()-seen[kind][1]
				fmt.Fprintf(&table, " %8d refused %3d", refused, failed)
				if refused > 0 || failed > 0 && pid != before && name != "new" {
					t.Errorf("%s, %s killed, %s: %d refused, %d failed, the last: %v", state.name, name, kind, refused, failed, c.last.Load())
				}
			}
			now := s.Counters()
			cut := cuts(t, now) - cuts(t, counters)
			wrong := below(counters, now)
			fmt.Fprintf(&table, " %20v %20d\n", cut, len(wrong))
			if cut > 0 || len(wrong) > 0 {
				t.Errorf("%s, %s killed: %v connections cut, counters that went back: %q", state.name, name, cut, wrong)
			}
		}
	}
	if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 0 {
		t.Errorf("an upgrade afterwards: exit %d: %s", code, out)
	}
	l.end()
	l.complain(t, false)
	if now, _ := overflows(t); counted && now != queues {
		t.Errorf("%d connections found a full accept queue", now-queues)
	}
	t.Log(table.String())
}

// candidate is the process of the upgrade's new generation while it is a canary, or serves on probation; 0 for none.
func candidate(status *suite.Status, canary bool) (pid int) {
	if !canary && strings.Contains(status.Restartd.Upgrade, ", probation:") {
		return status.Serving()
	}
	for _, g := range status.Restartd.Generations {
		if canary && g.Canary > 0 {
			pid, _ = strconv.Atoi(g.PID)
		}
	}
	return pid
}

// cuts is how many connections were closed by force.
func cuts(t *testing.T, counters map[string]float64) (n float64) {
	t.Helper()
	found := false
	for series, value := range counters {
		if strings.HasPrefix(series, "retinue_server_connections_cut") {
			n, found = n+value, true
		}
	}
	if !found {
		t.Error("nothing counts connections that are cut")
	}
	return n
}

// below names the series that went back, or away.
func below(before, now map[string]float64) (names []string) {
	for series, was := range before {
		if is, ok := now[series]; !ok || is < was {
			names = append(names, series)
		}
	}
	return names
}

// whole waits until other processes than the dead ones do the work, and all have the same snapshot.
func whole(s *suite.Suite, dead map[string]int) {
	for d, pid := range dead {
		s.Eventually(d+" is back", func() error {
			if now := s.PID(d); now == 0 || now == pid {
				return fmt.Errorf("it is process %d", now)
			}
			return nil
		})
	}
	s.Eventually("all have the same snapshot", func() error {
		status, err := s.Status()
		if err != nil {
			return err
		}
		if len(status.Configd.Watchers) < 3 {
			return fmt.Errorf("%d watch configd", len(status.Configd.Watchers))
		}
		for _, w := range status.Configd.Watchers {
			if w.SnapshotID != status.Configd.SnapshotID {
				return fmt.Errorf("%s has snapshot %q, not %q", w.Role, w.SnapshotID, status.Configd.SnapshotID)
			}
		}
		return nil
	})
}

func notBelow(t *testing.T, name string, before, after map[string]float64) {
	t.Helper()
	if len(before) == 0 {
		t.Errorf("%s: there were no counters", name)
	}
	for series, was := range before {
		if now, ok := after[series]; !ok || now < was {
			t.Errorf("%s: %s was %v and is %v (there: %v)", name, series, was, now, ok)
		}
	}
}

// TestUpgrades upgrades twenty times in a row under the same load: nothing fails, nothing waits in a full queue.
func TestUpgrades(t *testing.T) {
	s := suite.Start(t, application(t))
	l := startLoad(t, s)
	queues, counted := overflows(t)
	const upgrades = 20
	var longest time.Duration
	for i := range upgrades {
		began := time.Now()
		if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 0 {
			t.Fatalf("upgrade %d: exit %d: %s", i, code, out)
		}
		longest = max(longest, time.Since(began))
	}
	l.flows(100)
	l.end()
	l.complain(t, true)
	if now, _ := overflows(t); counted && now != queues {
		t.Errorf("%d connections found a full accept queue", now-queues)
	}
	answered := l.tallies[keepAlive].fine.Load() + l.tallies[newForEach].fine.Load()
	s.AwaitStat(float64(answered), "retinue_http_downstream_rq_total", "listener=web")
	t.Logf("%d upgrades, the longest %v; %d requests and connections, %d refused, %d failed", upgrades, longest.Round(time.Millisecond), l.fine(), l.refused(), l.broken())
}
