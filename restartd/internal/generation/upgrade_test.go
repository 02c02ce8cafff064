package generation

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"retinue.dev/libs/preflight"
	restartv1 "retinue.dev/services/api/restart/v1"
)

func TestUpgrade(t *testing.T) {
	r := serving(t)
	path := r.program("candidate")
	f := r.upgrade(&restartv1.UpgradeRequest{Binary: path})
	r.wantTable("1 serving, 2 starting")
	if b, _ := os.ReadFile(r.m.depot.path(2)); string(b) != "the candidate binary" {
		t.Errorf("the copy holds %q", b)
	}
	r.advance(time.Second)
	r.attach(2, false, false)
	r.ready(2)
	r.wantTold(1, "")
	r.wantTold(2, "serve")
	r.wantTable("1 serving, 2 ready")
	r.wantIncumbent(1)

	r.accepts(2)
	r.wantIncumbent(2)
	r.wantTable("1 ready, 2 serving")
	r.wantTold(1, "stop")
	r.stopped(1)
	r.wantSteps(f, "preflight", "start", "warm", "ready", "commit", "probation")

	r.advance(10*time.Second - 1)
	r.wantTold(1, "")
	r.advance(1)
	r.wantTold(1, "drain upgrade 900s")
	r.wantTable("1 draining, 2 serving")
	last := r.wantSteps(f, "drain")
	if !last.GetDone() || !last.GetOk() || last.GetElapsedMs() != 11000 || last.GetGeneration() != 2 {
		t.Errorf("last event %v", last)
	}
	r.drains(1)
	r.wantTold(1, "")
	r.empty(1)
	r.wantTold(1, "terminate")
	r.exit(1, "exit status 0")
	r.wantTable("1 gone, 2 serving")
	r.wantTold(2, "")

	var s restartv1.StatusReply
	r.do(func() { _ = r.m.Status(&s) })
	if len(s.History) != 1 || !strings.Contains(s.History[0], "generation 1 to 2 (1): done after 11s") || s.Upgrade != "" {
		t.Errorf("history %q, upgrade %q", s.History, s.Upgrade)
	}
	if !r.m.depot.has(1) {
		t.Error("the binary that one could go back to is gone")
	}
}

func TestOldGenerationIsCutAtShutdownTime(t *testing.T) {
	r := serving(t)
	f := r.upgrade(&restartv1.UpgradeRequest{WaitDrained: true, ProbationMs: new(int64)})
	r.attach(2, false, false)
	r.ready(2)
	r.accepts(2)
	r.wantTold(1, "stop, drain upgrade 900s")
	if _, last := events(f); last.GetDone() {
		t.Errorf("done before the old one is gone: %v", last)
	}
	r.report(1, &restartv1.Report{Draining: true, Connections: 1})
	r.advance(900 * time.Second)
	r.wantTold(1, "terminate")
	r.report(1, &restartv1.Report{Draining: true, ConnectionsCut: 1})
	r.exit(1, "exit status 0")
	r.wantEnd(f, true, "generation 1 left, 0 connections moved, 1 cut")
}

func TestFailureBeforeTheCommitChangesNothing(t *testing.T) {
	for _, c := range []struct {
		name string
		fail func(r *rig) *Follower
		want string
	}{
		{"no such binary", func(r *rig) *Follower {
			return r.upgrade(&restartv1.UpgradeRequest{Binary: r.dir + "/none"})
		}, "no such file"},
		{"no executable", func(r *rig) *Follower {
			return r.upgrade(&restartv1.UpgradeRequest{Binary: r.dir + "/ledger.json"})
		}, "no executable file"},
		{"a directory", func(r *rig) *Follower {
			return r.upgrade(&restartv1.UpgradeRequest{Binary: r.dir})
		}, "no executable file"},
		{"preflight fails", func(r *rig) *Follower {
			r.launcher.preflight = func() (*preflight.Report, error) { return nil, errors.New("exit status 1: no snapshot") }
			return r.upgrade(&restartv1.UpgradeRequest{})
		}, "no snapshot"},
		{"another contract", func(r *rig) *Follower {
			r.launcher.preflight = func() (*preflight.Report, error) {
				return &preflight.Report{Daemon: "proxyd", Contracts: map[string]preflight.Revisions{"restart/v1": {Revision: 99, MinRevision: 98}}}, nil
			}
			return r.upgrade(&restartv1.UpgradeRequest{})
		}, "98"},
		{"another daemon", func(r *rig) *Follower {
			r.launcher.preflight = func() (*preflight.Report, error) { return preflight.New("statsd", "", "restart/v1"), nil }
			return r.upgrade(&restartv1.UpgradeRequest{})
		}, `"statsd"`},
		{"cannot be started", func(r *rig) *Follower {
			r.launcher.startErr = errors.New("no more processes")
			f := r.upgrade(&restartv1.UpgradeRequest{})
			r.launcher.startErr = nil
			return f
		}, "no more processes"},
		{"exits at once", func(r *rig) *Follower {
			f := r.candidate(2, phaseStart)
			r.exit(2, "exit status 3")
			return f
		}, "exit status 3"},
		{"exits while it warms", func(r *rig) *Follower {
			f := r.candidate(2, phaseWarm)
			r.exit(2, "exit status 3")
			return f
		}, "exit status 3"},
		{"exits when told to serve", func(r *rig) *Follower {
			f := r.candidate(2, phaseCommit)
			r.exit(2, "signal: segmentation fault")
			return f
		}, "segmentation fault"},
		{"never attaches", func(r *rig) *Follower {
			f := r.candidate(2, phaseStart)
			r.advance(30 * time.Second)
			return f
		}, "not ready within 30s"},
		{"never ready", func(r *rig) *Follower {
			f := r.candidate(2, phaseWarm)
			r.advance(30 * time.Second)
			return f
		}, "not ready within 30s"},
		{"never accepts", func(r *rig) *Follower {
			f := r.candidate(2, phaseCommit)
			r.advance(5 * time.Second)
			return f
		}, "did not accept within 5s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := serving(t)
			before := r.process(1)
			f := c.fail(r)
			r.wantEnd(f, false, c.want)
			r.wantTold(1, "")
			r.wantTable("1 serving, 2 failed")
			r.wantIncumbent(1)
			if len(before.signals) != 0 || len(r.launcher.processes) != 1 {
				t.Errorf("old signalled %v, %d processes left", before.signals, len(r.launcher.processes))
			}
			if r.m.depot.has(2) {
				t.Error("the candidate's copy is left")
			}
			if len(r.m.history) != 1 || !strings.Contains(r.m.history[0], c.want) {
				t.Errorf("history %q", r.m.history)
			}
			// and the next one works
			f = r.upgrade(&restartv1.UpgradeRequest{})
			_ = f
		})
	}
}

func TestUpgradeRefusals(t *testing.T) {
	r := newRig(t)
	if got := r.refused(&restartv1.UpgradeRequest{}); !strings.Contains(got, "no snapshot yet") {
		t.Errorf("before a snapshot: %q", got)
	}
	r = serving(t)
	day := (24 * time.Hour).Milliseconds()
	for _, c := range []struct {
		req  *restartv1.UpgradeRequest
		want string
	}{
		{&restartv1.UpgradeRequest{Binary: "bin/proxyd"}, "no absolute path"},
		{&restartv1.UpgradeRequest{ProbationMs: ptr(-1)}, "probation"},
		{&restartv1.UpgradeRequest{ProbationMs: ptr(day + 1)}, "probation"},
	} {
		if got := r.refused(c.req); !strings.Contains(got, c.want) {
			t.Errorf("%v: %q, want %q", c.req, got, c.want)
		}
	}
	for _, phase := range []string{phaseStart, phaseWarm, phaseCommit, phaseProbation} {
		r := serving(t)
		f := r.candidate(2, phase)
		got := r.refused(&restartv1.UpgradeRequest{})
		if !strings.Contains(got, "from generation 1 to 2, "+phase) {
			t.Errorf("in %s: %q", phase, got)
		}
		if _, last := events(f); last.GetDone() {
			t.Errorf("in %s: the first one ended", phase)
		}
	}
	r.m.Stop(time.Second, false)
	r.pump()
	if got := r.refused(&restartv1.UpgradeRequest{}); !strings.Contains(got, "stopping") {
		t.Errorf("while stopping: %q", got)
	}
}

func ptr(v int64) *int64 { return &v }

func TestClientThatHangsUpDoesNotAbort(t *testing.T) {
	r := serving(t)
	f := r.candidate(2, phaseWarm)
	r.m.Unfollow(f)
	r.pump()
	r.ready(2)
	r.accepts(2)
	r.advance(10 * time.Second)
	r.wantTable("1 draining, 2 serving")
	// One that stays and does not read holds up nobody.
	r = serving(t)
	f = r.upgrade(&restartv1.UpgradeRequest{})
	for range cap(f.events) {
		f.send(&restartv1.UpgradeEvent{})
	}
	r.exit(2, "exit status 1")
	r.wantTable("1 serving, 2 failed")
}

func TestRollBack(t *testing.T) {
	t.Run("to the old generation", func(t *testing.T) {
		r := serving(t)
		f := r.candidate(2, phaseProbation)
		r.wantTold(1, "stop")
		r.stopped(1)
		r.advance(9 * time.Second)
		r.exit(2, "signal: aborted")
		r.wantTold(1, "serve")
		r.wantIncumbent(1)
		if _, last := events(f); last.GetStep() != phaseRollback || last.GetDone() {
			t.Errorf("last event %v, want the rollback under way", last)
		}
		r.accepts(1)
		r.wantEnd(f, false, "generation 2 ended in its probation: signal: aborted", "generation 1 serves again")
		r.wantTable("1 serving, 2 failed")
		r.advance(time.Hour)
		r.wantTable("1 serving, 2 failed")
		r.wantTold(1, "")
	})
	t.Run("the old one had not stopped yet", func(t *testing.T) {
		r := serving(t)
		f := r.candidate(2, phaseProbation)
		r.exit(2, "signal: aborted")
		r.wantEnd(f, false, "generation 1 serves again")
		r.wantTable("1 serving, 2 failed")
	})
	t.Run("the old one does not answer", func(t *testing.T) {
		r := serving(t)
		f := r.candidate(2, phaseProbation)
		r.stopped(1)
		r.told(1)
		r.exit(2, "signal: aborted")
		r.wantTold(1, "serve")
		r.advance(5 * time.Second)
		r.wantEnd(f, false, "did not accept again within 5s")
		r.wantTable("1 draining, 2 failed, 3 starting")
		if b, _ := os.ReadFile(r.m.depot.path(3)); string(b) != "the installed binary" {
			t.Errorf("generation 3 is %q", b)
		}
		r.serve(3)
		r.wantIncumbent(3)
	})
	t.Run("the old one dies while it is asked", func(t *testing.T) {
		r := serving(t)
		f := r.candidate(2, phaseProbation)
		r.stopped(1)
		r.exit(2, "signal: aborted")
		r.exit(1, "exit status 9")
		r.wantEnd(f, false, "generation 1 ended too", "exit status 9")
		r.wantTable("1 failed, 2 failed, 3 starting")
	})
	t.Run("the old one had died before", func(t *testing.T) {
		r := serving(t)
		path := r.program("candidate")
		f := r.upgrade(&restartv1.UpgradeRequest{Binary: path})
		r.attach(2, false, false)
		r.ready(2)
		r.accepts(2)
		r.exit(1, "exit status 9")
		r.wantTable("1 failed, 2 serving")
		r.exit(2, "signal: aborted")
		r.wantEnd(f, false, "binary of generation 1 is started again")
		r.wantTable("1 failed, 2 failed, 3 starting")
		if b, _ := os.ReadFile(r.m.depot.path(3)); string(b) != "the installed binary" {
			t.Errorf("generation 3 is %q", b)
		}
	})
	t.Run("not after the probation", func(t *testing.T) {
		r := serving(t)
		path := r.program("candidate")
		r.upgrade(&restartv1.UpgradeRequest{Binary: path})
		r.attach(2, false, false)
		r.ready(2)
		r.accepts(2)
		r.advance(10 * time.Second)
		r.told(1)
		r.exit(2, "signal: aborted")
		r.wantTable("1 draining, 2 failed, 3 starting")
		r.wantTold(1, "")
		if b, _ := os.ReadFile(r.m.depot.path(3)); string(b) != "the candidate binary" {
			t.Errorf("generation 3 is %q", b)
		}
	})
}

func TestUpgradeOutOfACrashLoop(t *testing.T) {
	r := serving(t)
	for n := uint64(1); n < 8; n++ {
		r.exit(n, "exit status 1")
		r.advance(10 * time.Second)
	}
	// 8 was started and is not serving.
	f := r.upgrade(&restartv1.UpgradeRequest{Binary: r.program("candidate")})
	r.exit(8, "exit status 1")
	r.attach(9, false, false)
	r.ready(9)
	r.wantTold(9, "serve")
	r.accepts(9)
	r.wantIncumbent(9)
	r.advance(10 * time.Second)
	r.wantEnd(f, true, "generation 9 serves")
	r.advance(time.Hour)
	r.wantIncumbent(9)
	if len(r.launcher.processes) != 1 {
		t.Errorf("%d processes, want the new one alone", len(r.launcher.processes))
	}
}

func TestIncumbentThatCrashesInAnUpgradeIsRestartedBesideIt(t *testing.T) {
	r := serving(t)
	f := r.candidate(2, phaseWarm)
	r.exit(1, "signal: killed")
	r.wantTable("1 failed, 2 warming, 3 starting")
	r.serve(3)
	r.ready(2)
	r.wantTold(2, "serve")
	r.accepts(2)
	r.wantIncumbent(2)
	r.wantTable("1 failed, 2 serving, 3 ready")
	r.wantTold(3, "stop")
	r.stopped(3)
	r.advance(10 * time.Second)
	r.wantEnd(f, true)
	r.wantTable("1 failed, 2 serving, 3 draining")
}

func TestIncumbentThatHasNotStartedYetGivesWay(t *testing.T) {
	r := serving(t)
	f := r.candidate(2, phaseCommit)
	r.exit(1, "signal: killed")
	r.wantTable("1 failed, 2 ready, 3 starting")
	r.accepts(2)
	r.wantTable("1 failed, 2 serving, 3 failed")
	r.advance(10 * time.Second)
	r.wantEnd(f, true)
}

func TestUpgradeTwiceWhileTheFirstDrains(t *testing.T) {
	r := serving(t)
	r.candidate(2, phaseProbation)
	r.advance(10 * time.Second)
	r.drains(1)
	r.told(1)
	f := r.candidate(3, phaseProbation)
	r.advance(10 * time.Second)
	r.wantEnd(f, true)
	r.wantTable("1 draining, 2 draining, 3 serving")
}
