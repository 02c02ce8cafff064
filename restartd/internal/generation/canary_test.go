package generation

import (
	"errors"
	"strings"
	"testing"
	"time"

	restartv1 "retinue.dev/services/api/restart/v1"
)

// attachParts is the stream of a generation that can accept from a part, and does from what it says.
func (r *rig) attachParts(n uint64, accepting bool, part restartv1.Part) {
	r.Helper()
	pid := r.process(n).PID
	r.do(func() {
		s, err := r.m.Attach(&restartv1.AttachHello{Generation: n, Accepting: accepting, Parts: true, Part: part}, pid)
		if err != nil {
			r.Errorf("attach of generation %d: %v", n, err)
			return
		}
		r.sessions[n] = s
	})
}

func (r *rig) acceptsPart(n uint64, part restartv1.Part) {
	r.report(n, &restartv1.Report{Accepting: true, Connections: 3, Part: part})
}

const (
	all    = restartv1.Part_PART_ALL
	first  = restartv1.Part_PART_FIRST_HALF
	second = restartv1.Part_PART_SECOND_HALF
)

// sharing is a machine whose generation 2 has ten of a hundred, for a minute.
func sharing(t *testing.T) (*rig, *Follower) {
	r := configured(t)
	r.attachParts(1, false, all)
	r.ready(1)
	r.wantTold(1, "serve")
	r.acceptsPart(1, all)
	f := r.upgrade(&restartv1.UpgradeRequest{CanaryPercent: 10, CanaryMs: time.Minute.Milliseconds()})
	r.attachParts(2, false, all)
	r.ready(2)
	r.wantTold(2, "serve second half")
	r.wantTold(1, "")
	r.wantShare(0)
	r.acceptsPart(2, second)
	r.wantTold(1, "serve first half")
	r.wantShare(0)
	r.acceptsPart(1, first)
	r.wantShare(10)
	r.wantTable("1 serving, 2 ready")
	r.wantIncumbent(1)
	return r, f
}

func (r *rig) wantShare(percent int) {
	r.Helper()
	if !r.divided || r.percent != percent {
		r.Errorf("divided %t with %d %%, want %d %%", r.divided, r.percent, percent)
	}
}

func (r *rig) wantWhole() {
	r.Helper()
	if r.divided {
		r.Errorf("still divided, with %d %%", r.percent)
	}
}

func (r *rig) decide(abort bool) *Follower {
	r.Helper()
	var f *Follower
	r.do(func() {
		var err error
		if f, err = r.m.Decide(&restartv1.DecideRequest{Abort: abort}); err != nil {
			r.Error(err)
		}
	})
	return f
}

// commits takes a canary that ended well to the end of its probation.
func (r *rig) commits() {
	r.Helper()
	r.wantTold(2, "serve")
	r.wantTold(1, "")
	r.wantShare(10)
	r.acceptsPart(2, all)
	r.wantWhole()
	r.wantTold(1, "stop")
	r.wantIncumbent(2)
	r.stopped(1)
	r.advance(10 * time.Second)
	r.wantTable("1 draining, 2 serving")
}

func TestCanaryThatIsCommitted(t *testing.T) {
	t.Run("by its time", func(t *testing.T) {
		r, f := sharing(t)
		var s restartv1.StatusReply
		r.do(func() { _ = r.m.Status(&s) })
		if s.Generations[1].CanaryPercent != 10 || s.Generations[0].CanaryPercent != 0 || !strings.Contains(s.Upgrade, "10 % of new connections") {
			t.Errorf("status %v", &s)
		}
		r.advance(time.Minute - 1)
		r.wantTold(2, "")
		r.advance(1)
		r.commits()
		r.wantSteps(f, "preflight", "start", "warm", "ready", "canary", "canary", "commit", "probation", "drain")
	})
	t.Run("on request", func(t *testing.T) {
		r, f := sharing(t)
		told := r.decide(false)
		r.commits()
		r.wantEnd(f, true, "generation 2 serves")
		r.wantEnd(told, true, "generation 2 serves")
	})
}

func TestCanaryThatIsTakenBack(t *testing.T) {
	for _, c := range []struct {
		name, why string
		fail      func(r *rig)
		lives     bool
	}{
		{"on request", "aborted on request", func(r *rig) { r.decide(true) }, true},
		{"by its end", "ended as a canary: signal: killed", func(r *rig) { r.exit(2, "signal: killed") }, false},
		{"by errors of its own", "ended 50 of 100 requests by errors of its own making in its canary, generation 1 0 of 100", func(r *rig) {
			r.report(1, &restartv1.Report{Accepting: true, Part: first, Requests: 100})
			r.report(2, &restartv1.Report{Accepting: true, Part: second, Requests: 100, OwnErrors: 50})
		}, true},
		{"after its time", "aborted on request", func(r *rig) {
			r.advance(time.Minute)
			r.wantTold(2, "serve")
			r.decide(true)
		}, true},
		{"by a commit that does not come", "did not accept within 5s", func(r *rig) {
			r.decide(false)
			r.wantTold(2, "serve")
			r.advance(5 * time.Second)
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, f := sharing(t)
			c.fail(r)
			r.wantShare(0)
			r.wantTold(1, "serve")
			r.wantTold(2, "")
			r.acceptsPart(1, all)
			r.wantWhole()
			r.wantEnd(f, false, c.why, "generation 1 serves again")
			r.wantIncumbent(1)
			if !c.lives {
				r.wantTable("1 serving, 2 failed")
				return
			}
			r.wantTold(2, "drain upgrade 900s")
			r.wantTable("1 serving, 2 draining")
			r.empty(2)
			r.exit(2, "exit status 0")
			r.advance(time.Hour)
			r.wantTable("1 serving, 2 gone")
		})
	}
}

// TestErrorsOfBothAreNoCanarysFault: what an upstream's outage or a hostile client does to both.
func TestErrorsOfBothAreNoCanarysFault(t *testing.T) {
	r, _ := sharing(t)
	r.report(1, &restartv1.Report{Accepting: true, Part: first, Requests: 100, OwnErrors: 50})
	r.report(2, &restartv1.Report{Accepting: true, Part: second, Requests: 100, OwnErrors: 50})
	r.wantShare(10)
	r.wantTold(1, "")
}

func TestCanaryThatStandsStill(t *testing.T) {
	r, f := sharing(t)
	pid := r.process(2).PID
	r.do(func() {
		s, err := r.m.Attach(&restartv1.AttachHello{Generation: 2, Accepting: true, Parts: true, Part: second, Heartbeats: true}, pid)
		if err != nil {
			t.Error(err)
		}
		r.sessions[2] = s
	})
	r.report(2, &restartv1.Report{Accepting: true, Part: second})
	r.advance(5 * time.Second)
	r.wantShare(10)
	r.advance(hearing)
	r.wantShare(0)
	r.acceptsPart(1, all)
	r.wantEnd(f, false, "stood still", "generation 1 serves again")
}

func TestOldGenerationEndsBesideACanary(t *testing.T) {
	t.Run("while it shares", func(t *testing.T) {
		r, f := sharing(t)
		r.exit(1, "signal: killed")
		r.wantWhole()
		r.wantEnd(f, false, "the canary is given up; generation 1 ended too (signal: killed), its binary is started again")
		r.wantTable("1 failed, 2 draining, 3 starting")
		if b, want := r.m.depot.path(3), r.m.gens[3]; want.SHA256 == "" || want.Restarts != 1 {
			t.Errorf("generation 3 is %v of %s", want, b)
		}
		r.serve(3)
		r.wantIncumbent(3)
	})
	t.Run("while it is to take all back", func(t *testing.T) {
		r, f := sharing(t)
		told := r.decide(true)
		r.exit(1, "signal: killed")
		r.wantWhole()
		r.wantEnd(f, false, "aborted on request; generation 1 ended too")
		r.wantEnd(told, true)
		r.wantTable("1 failed, 2 draining, 3 starting")
	})
	t.Run("while it does not answer", func(t *testing.T) {
		r, f := sharing(t)
		r.decide(true)
		r.advance(5 * time.Second)
		r.wantWhole()
		r.wantEnd(f, false, "generation 1 did not accept again within 5s")
		r.wantTable("1 draining, 2 draining, 3 starting")
	})
}

func TestCanaryThatCannotBegin(t *testing.T) {
	r := serving(t) // of a version that knows no parts
	for _, c := range []struct {
		req  *restartv1.UpgradeRequest
		want string
	}{
		{&restartv1.UpgradeRequest{CanaryPercent: 100}, "1 to 99"},
		{&restartv1.UpgradeRequest{CanaryPercent: 1, CanaryMs: -1}, "0 to 168 hours"},
		{&restartv1.UpgradeRequest{CanaryPercent: 1, CanaryMs: maxCanary.Milliseconds() + 1}, "0 to 168 hours"},
		{&restartv1.UpgradeRequest{CanaryPercent: 1}, "generation 1 (1) cannot share its listeners"},
	} {
		if got := r.refused(c.req); !strings.Contains(got, c.want) {
			t.Errorf("%v: %q, want %q", c.req, got, c.want)
		}
	}
	r.attachParts(1, true, all)
	f := r.upgrade(&restartv1.UpgradeRequest{CanaryPercent: 1})
	r.attach(2, false, false)
	r.ready(2)
	r.wantEnd(f, false, "cannot share listeners")
	r.wantTable("1 serving, 2 failed")

	r.noDivision = errors.New("too many open files")
	f = r.upgrade(&restartv1.UpgradeRequest{CanaryPercent: 1})
	r.attachParts(3, false, all)
	r.ready(3)
	r.wantEnd(f, false, "too many open files")
	r.wantWhole()
	r.noDivision = nil

	f = r.upgrade(&restartv1.UpgradeRequest{CanaryPercent: 1})
	r.attachParts(4, false, all)
	r.ready(4)
	r.wantTold(4, "serve second half")
	r.advance(5 * time.Second) // it does not
	r.wantEnd(f, false, "did not accept its share within 5s", "generation 1 serves again")
	r.wantWhole()
	r.wantTable("1 serving, 2 failed, 3 failed, 4 failed")
}

func TestDecisionsThatCannotBe(t *testing.T) {
	refused := func(r *rig, abort bool) (reason string) {
		r.do(func() {
			_, err := r.m.Decide(&restartv1.DecideRequest{Abort: abort})
			var no *Refused
			if errors.As(err, &no) {
				reason = no.Reason
			}
		})
		return reason
	}
	r := serving(t)
	if got := refused(r, true); got != "no upgrade is under way" {
		t.Errorf("without an upgrade: %q", got)
	}
	r.candidate(2, phaseProbation)
	if got := refused(r, false); !strings.Contains(got, "no canary") {
		t.Errorf("a commit in a probation: %q", got)
	}
	r.exit(1, "signal: killed")
	if got := refused(r, true); !strings.Contains(got, "retinue rollback generation") {
		t.Errorf("an abort without an old generation: %q", got)
	}
	r, _ = sharing(t)
	r.decide(true)
	if got := refused(r, true); !strings.Contains(got, "taken back already") {
		t.Errorf("an abort twice: %q", got)
	}
}

func TestAbortOfAnUpgradeWithoutACanary(t *testing.T) {
	for _, phase := range []string{phaseStart, phaseWarm, phaseCommit} {
		r := serving(t)
		f := r.candidate(2, phase)
		told := r.decide(true)
		r.wantEnd(f, false, "aborted on request")
		r.wantEnd(told, true, "aborted on request")
		r.wantTable("1 serving, 2 failed")
		r.wantTold(1, "")
	}
	r := serving(t)
	f := r.candidate(2, phaseProbation)
	r.stopped(1)
	r.told(1)
	told := r.decide(true)
	r.wantTold(1, "serve")
	r.accepts(1)
	r.wantEnd(f, false, "aborted on request; generation 1 serves again")
	r.wantEnd(told, true)
	r.wantTold(2, "drain upgrade 900s")
}

// TestRollBackAfterACanary: the candidate fails its probation, and is not told to accept a half again.
func TestRollBackAfterACanary(t *testing.T) {
	r, f := sharing(t)
	r.decide(false)
	r.told(2)
	r.acceptsPart(2, all)
	r.stopped(1)
	r.told(1)
	r.report(2, &restartv1.Report{Accepting: true, Requests: 100, OwnErrors: 90})
	r.wantTold(1, "serve")
	r.wantTold(2, "")
	r.acceptsPart(1, all)
	r.wantEnd(f, false, "in its probation", "generation 1 serves again")
	r.wantTold(2, "drain upgrade 900s")
}

func TestRestartOfRestartdInACanary(t *testing.T) {
	t.Run("nothing happens meanwhile", func(t *testing.T) {
		r, _ := sharing(t)
		r.advance(20 * time.Second)
		r.boot()
		r.wantShare(0)
		r.configure()
		r.attachParts(1, true, first)
		r.wantTold(1, "")
		r.attachParts(2, true, second)
		r.wantTold(2, "")
		r.wantShare(10)
		r.advance(40*time.Second - 1)
		r.wantTold(2, "")
		r.advance(1)
		r.commits()
	})
	t.Run("before the old one shares", func(t *testing.T) {
		r, _ := sharing(t)
		r.boot()
		r.configure()
		r.attachParts(1, true, all)
		r.attachParts(2, true, second)
		r.wantTold(1, "serve first half")
		r.wantShare(0)
		r.acceptsPart(1, first)
		r.wantShare(10)
	})
	t.Run("in the commit", func(t *testing.T) {
		r, _ := sharing(t)
		r.decide(false)
		r.boot()
		r.configure()
		r.attachParts(1, true, first)
		r.wantTold(1, "")
		r.attachParts(2, true, second)
		r.wantTold(2, "serve")
		r.acceptsPart(2, all)
		r.wantTold(1, "stop")
		r.wantWhole()
		r.wantIncumbent(2)
	})
	t.Run("while it is taken back", func(t *testing.T) {
		r, _ := sharing(t)
		r.decide(true)
		r.boot()
		r.configure()
		r.attachParts(2, true, second)
		r.wantTold(2, "")
		r.attachParts(1, true, first)
		r.wantTold(1, "serve")
		r.acceptsPart(1, all)
		r.wantWhole()
		r.wantTold(2, "drain upgrade 900s")
		r.wantTable("1 serving, 2 draining")
	})
	t.Run("the canary dies", func(t *testing.T) {
		r, _ := sharing(t)
		delete(r.launcher.processes, r.process(2).PID)
		r.boot()
		r.configure()
		r.attachParts(1, true, first)
		r.wantTold(1, "serve")
		r.acceptsPart(1, all)
		r.wantWhole()
		r.wantTable("1 serving, 2 failed")
	})
	t.Run("the old one dies", func(t *testing.T) {
		r, _ := sharing(t)
		delete(r.launcher.processes, r.process(1).PID)
		r.continues = true
		r.boot()
		r.configure()
		r.wantWhole()
		r.wantTable("1 failed, 2 draining, 3 starting")
	})
}
