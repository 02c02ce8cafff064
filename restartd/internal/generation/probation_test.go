package generation

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	restartv1 "retinue.dev/services/api/restart/v1"
)

// beats is a report of a generation with heartbeats.
func beats(accepting bool, requests, errors uint64) *restartv1.Report {
	return &restartv1.Report{Accepting: accepting, Connections: 3, Requests: requests, OwnErrors: errors}
}

func TestErrorsOfItsOwnMakingRollBack(t *testing.T) {
	for _, c := range []struct {
		name             string
		before, now      rate // since the commit
		rolls            bool
		earlier, earlyTo uint64 // requests and errors of the old one before the commit
	}{
		{"none", rate{100, 0}, rate{1000, 0}, false, 0, 0},
		{"few", rate{100, 0}, rate{9, 9}, false, 0, 0},
		{"many", rate{100, 0}, rate{100, 20}, true, 0, 0},
		{"an old one that does the same", rate{100, 18}, rate{100, 20}, false, 0, 0},
		{"an old one that was bad before", rate{100, 0}, rate{100, 20}, true, 1000, 900},
		{"nothing left on the old one", rate{0, 0}, rate{1000, 100}, true, 0, 0},
		{"below the limit", rate{1000, 0}, rate{1000, 49}, false, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := serving(t)
			r.report(1, beats(true, c.earlier, c.earlyTo))
			f := r.candidate(2, phaseProbation)
			r.wantTold(1, "stop")
			r.report(1, beats(false, c.earlier+c.before.requests, c.earlyTo+c.before.errors))
			r.report(2, beats(true, c.now.requests, c.now.errors))
			if !c.rolls {
				r.wantIncumbent(2)
				return
			}
			r.wantTold(1, "serve")
			r.wantTable("1 ready, 2 serving")
			r.accepts(1)
			r.wantTold(2, "drain upgrade 900s")
			r.wantTable("1 serving, 2 draining")
			r.wantEnd(f, false, "errors of its own making", "generation 1 serves again")
			r.report(2, &restartv1.Report{Draining: true})
			r.exit(2, "exit status 0")
			r.wantIncumbent(1)
			r.wantTable("1 serving, 2 gone")
		})
	}
}

// TestCandidateDiesWhileItIsTakenBack: the old one serves all the same.
func TestCandidateDiesWhileItIsTakenBack(t *testing.T) {
	r := serving(t)
	f := r.candidate(2, phaseProbation)
	r.stopped(1)
	r.report(2, beats(true, 100, 50))
	r.exit(2, "signal: killed")
	r.accepts(1)
	r.wantEnd(f, false, "generation 1 serves again")
	r.wantTable("1 serving, 2 failed")
}

func TestSilenceIsACandidatesFailure(t *testing.T) {
	r := serving(t)
	f := r.upgrade(&restartv1.UpgradeRequest{})
	pid := r.process(2).PID
	r.do(func() {
		s, err := r.m.Attach(&restartv1.AttachHello{Generation: 2, Heartbeats: true}, pid)
		if err != nil {
			t.Error(err)
		}
		r.sessions[2] = s
	})
	r.ready(2)
	r.report(2, beats(true, 0, 0))
	r.advance(2 * time.Second)
	r.report(2, beats(true, 0, 0))
	r.advance(4 * time.Second)
	r.wantIncumbent(2)
	r.report(2, &restartv1.Report{Accepting: true, StalledMs: 6000}) // it speaks, and its loops do not turn
	r.advance(time.Second)
	r.wantIncumbent(2)
	r.advance(hearing)
	r.wantIncumbent(1)
	r.accepts(1)
	r.wantEnd(f, false, "stood still", "generation 1 serves again")
}

func TestFourGenerationsAtMost(t *testing.T) {
	r := serving(t)
	for n := uint64(2); n <= 4; n++ {
		r.upgrade(&restartv1.UpgradeRequest{ProbationMs: new(int64)})
		r.serve(n)
		r.drains(n - 1)
	}
	r.wantTable("1 draining, 2 draining, 3 draining, 4 serving")
	reason := r.refused(&restartv1.UpgradeRequest{})
	if !strings.Contains(reason, "generation 2 drains 3 connections for 15m0s at most") || !strings.Contains(reason, "wait") {
		t.Errorf("%q", reason)
	}
	r.empty(2)
	r.exit(2, "exit status 0")
	r.upgrade(&restartv1.UpgradeRequest{ProbationMs: new(int64)})
	r.serve(5)
}

func TestRollbackToTheGenerationBefore(t *testing.T) {
	r := serving(t)
	if reason := r.refused(&restartv1.UpgradeRequest{Previous: true}); !strings.Contains(reason, "no generation to return to") {
		t.Errorf("%q", reason)
	}
	r.upgrade(&restartv1.UpgradeRequest{Binary: r.program("newer"), ProbationMs: new(int64)})
	r.serve(2)
	r.upgrade(&restartv1.UpgradeRequest{Previous: true, ProbationMs: new(int64)})
	r.serve(3)
	if b, _ := os.ReadFile(r.m.depot.path(3)); string(b) != "the installed binary" {
		t.Errorf("generation 3 runs %q", b)
	}
}

// TestDrainingGenerationsFollowTheOneThatServes: connections go to who serves, and in a probation to who would serve again.
func TestDrainingGenerationsFollowTheOneThatServes(t *testing.T) {
	r := serving(t)
	successor := func(n uint64) uint64 {
		to := uint64(0)
		for {
			select {
			case c := <-r.sessions[n].Commands():
				if d := c.GetDrain(); d != nil {
					to = d.GetSuccessor()
				}
			default:
				return to
			}
		}
	}
	r.upgrade(&restartv1.UpgradeRequest{ProbationMs: new(int64)})
	r.serve(2)
	if to := successor(1); to != 2 {
		t.Errorf("1 gives to %d", to)
	}
	r.drains(1)
	r.candidate(3, phaseProbation)
	r.stopped(2)
	if to := successor(1); to != 0 {
		t.Errorf("in the probation of 3, generation 1 is told to give to %d", to)
	}
	r.advance(10 * time.Second)
	if one, two := successor(1), successor(2); one != 3 || two != 3 {
		t.Errorf("after the probation of 3, 1 gives to %d and 2 to %d", one, two)
	}
}

func TestSnapshotThatCrashesIsSetAside(t *testing.T) {
	r := newRig(t)
	r.m.Configure(Settings{Snapshot: "bad", Upgrade: Drain{Limit: time.Minute}})
	r.pump()
	n := uint64(1)
	for ; n <= loopLimit; n++ {
		if r.m.aside != "" {
			t.Fatalf("set aside after %d crashes", n-1)
		}
		r.serve(n)
		r.exit(n, "signal: segmentation fault")
		r.advance(10 * time.Second)
	}
	aside := filepath.Join(filepath.Dir(r.m.depot.path(n)), asideName)
	if b, err := os.ReadFile(aside); err != nil || string(b) != "bad\n" {
		t.Errorf("generation %d is told to set aside %q, %v", n, b, err)
	}
	r.continues = true
	r.boot()
	if r.m.aside != "bad" {
		t.Errorf("the next restartd has set aside %q", r.m.aside)
	}
	r.m.Configure(Settings{Snapshot: "bad"})
	r.pump()
	if r.m.aside != "bad" {
		t.Error("the same snapshot again is forgiven")
	}
	r.m.Configure(Settings{Snapshot: "better"})
	r.pump()
	if r.m.aside != "" {
		t.Errorf("another snapshot, and %q is set aside still", r.m.aside)
	}
}

// TestNewShardsOpenWhenNothingBringsTheOldOneBack: it does not know them.
func TestNewShardsOpenWhenNothingBringsTheOldOneBack(t *testing.T) {
	r := serving(t)
	r.candidate(2, phaseProbation)
	if r.opened != 0 {
		t.Error("opened in the probation")
	}
	r.exit(2, "signal: killed")
	r.accepts(1)
	if r.opened != 0 {
		t.Error("opened by a rollback")
	}
	r.candidate(3, phaseProbation)
	r.advance(10 * time.Second)
	if r.opened != 1 {
		t.Errorf("opened %d times after a probation that was passed", r.opened)
	}
}
