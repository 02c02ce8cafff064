package generation

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	restartv1 "retinue.dev/services/api/restart/v1"
)

func TestFirstGeneration(t *testing.T) {
	r := newRig(t)
	r.wantTable("")
	if r.launcher.lastPID != 1000 {
		t.Fatal("a generation was started before there is a snapshot")
	}
	r.configure()
	r.wantTable("1 starting")
	if r.grown != 1 {
		t.Errorf("shards grown %d times, want once before the start", r.grown)
	}
	r.attach(1, false, false)
	r.wantTable("1 warming")
	r.wantTold(1, "")
	r.ready(1)
	r.wantTable("1 ready")
	r.wantTold(1, "serve")
	if r.served {
		t.Error("announced before it accepts")
	}
	r.accepts(1)
	r.wantTable("1 serving")
	if !r.served {
		t.Error("not announced")
	}
	r.accepts(1)
	r.configure()
	r.wantTable("1 serving")
	r.wantTold(1, "")
	if b, err := os.ReadFile(r.m.depot.path(1)); err != nil || string(b) != "the installed binary" {
		t.Errorf("its copy holds %q, %v", b, err)
	}
}

func TestCrashInEveryState(t *testing.T) {
	for _, state := range []string{"starting", "warming", "ready", "serving"} {
		t.Run(state, func(t *testing.T) {
			r := configured(t)
			if state != "starting" {
				r.attach(1, false, false)
			}
			if state == "ready" || state == "serving" {
				r.ready(1)
			}
			if state == "serving" {
				r.accepts(1)
			}
			r.wantTable("1 " + state)
			r.program("installed") // overwritten: a crash must not change the binary
			if err := os.WriteFile(r.dir+"/installed", []byte("another"), 0o755); err != nil {
				t.Fatal(err)
			}
			r.exit(1, "signal: killed")
			r.wantTable("1 failed, 2 starting")
			if b, _ := os.ReadFile(r.m.depot.path(2)); string(b) != "the installed binary" {
				t.Errorf("restarted as %q", b)
			}
			r.serve(2)
			r.wantTable("1 failed, 2 serving")
			if g := r.m.gens[2]; g.Restarts != 1 {
				t.Errorf("restarts %d, want 1", g.Restarts)
			}
			if !strings.Contains(r.m.gens[1].Message, "killed") {
				t.Errorf("message %q", r.m.gens[1].Message)
			}
		})
	}
}

func TestBackOff(t *testing.T) {
	r := serving(t)
	n := uint64(1)
	crash := func(pause time.Duration) {
		t.Helper()
		r.exit(n, "exit status 2")
		n++
		if pause > 0 {
			r.advance(pause - time.Millisecond)
			if r.m.gens[n] != nil {
				t.Fatalf("generation %d was started before a pause of %s", n, pause)
			}
			r.advance(time.Millisecond)
		}
		if r.m.gens[n] == nil {
			t.Fatalf("generation %d was not started after %s", n, pause)
		}
	}
	crash(0)
	for _, p := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 10000, 10000} {
		crash(p * time.Millisecond)
	}
	r.serve(n)
	r.advance(10 * time.Second) // healthy: earlier crashes are forgotten
	crash(0)
	r.serve(n)
	r.advance(10*time.Second - 1)
	crash(100 * time.Millisecond)
}

func TestLateGenerationsAreKilled(t *testing.T) {
	for _, c := range []struct {
		name  string
		reach func(r *rig)
		after time.Duration
		want  string
	}{
		{"never attached", func(*rig) {}, 30 * time.Second, "not ready within 30s"},
		{"never ready", func(r *rig) { r.attach(1, false, false) }, 30 * time.Second, "not ready within 30s"},
		{"never accepts", func(r *rig) { r.attach(1, false, false); r.ready(1) }, 5 * time.Second, "did not accept within 5s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := configured(t)
			c.reach(r)
			r.advance(c.after - 1)
			r.process(1)
			r.advance(1)
			r.wantTable("1 failed, 2 starting")
			if got := r.m.gens[1].Message; got != c.want {
				t.Errorf("message %q, want %q", got, c.want)
			}
		})
	}
}

func TestStartThatFailsIsTriedAgain(t *testing.T) {
	r := newRig(t)
	r.launcher.startErr = errors.New("no more processes")
	r.configure()
	r.wantTable("1 failed, 2 failed")
	r.launcher.startErr = nil
	r.advance(100 * time.Millisecond)
	r.wantTable("1 failed, 2 failed, 3 starting")
	r.serve(3)
}

func TestBinaryThatIsMissingIsTriedAgain(t *testing.T) {
	r := newRig(t)
	os.Remove(r.dir + "/installed")
	r.configure()
	r.wantTable("1 failed, 2 failed")
	r.program("installed")
	r.advance(100 * time.Millisecond)
	r.serve(3)
	r.wantTable("1 failed, 2 failed, 3 serving")
}

func TestAttachIsForTheProcessOfTheGeneration(t *testing.T) {
	r := serving(t)
	for _, c := range []struct {
		n    uint64
		pid  int
		want string
	}{
		{1, 4711, "not 4711"},
		{9, r.process(1).PID, "not known"},
		{0, r.process(1).PID, "not known"},
	} {
		r.do(func() {
			_, err := r.m.Attach(&restartv1.AttachHello{Generation: c.n}, c.pid)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("attach as %d by %d: %v, want %q", c.n, c.pid, err, c.want)
			}
		})
	}
	r.do(func() {
		if !r.m.Knows(1, r.process(1).PID) || r.m.Knows(1, 1) || r.m.Knows(2, r.process(1).PID) {
			t.Error("Knows does not know who is who")
		}
	})
}

func TestNewStreamReplacesTheOld(t *testing.T) {
	r := serving(t)
	old := r.sessions[1]
	r.attach(1, true, false)
	select {
	case <-old.Done():
	default:
		t.Error("the old stream was not ended")
	}
	r.m.Detach(old) // the handler of the old stream ends late
	r.pump()
	r.m.Receive(old, &restartv1.AttachRequest{Message: &restartv1.AttachRequest_Report{Report: &restartv1.Report{}}})
	r.pump()
	if g := r.m.gens[1]; g.session == nil || !g.accepting {
		t.Error("the old stream still counts")
	}
	r.wantTold(1, "")
}

// A command that was lost with its stream is given again on the next one.
func TestReattachMends(t *testing.T) {
	r := serving(t)
	r.m.Detach(r.sessions[1])
	r.pump()
	r.wantTable("1 serving")
	r.attach(1, false, false)
	r.wantTold(1, "serve")
	r.attach(1, true, false)
	r.wantTold(1, "")
}

func TestStreamThatDoesNotReadIsEnded(t *testing.T) {
	r := serving(t)
	s := r.sessions[1]
	for range cap(s.commands) {
		s.send(&restartv1.Command{})
	}
	select {
	case <-s.Done():
		t.Fatal("ended too early")
	default:
	}
	s.send(&restartv1.Command{})
	select {
	case <-s.Done():
	default:
		t.Error("not ended")
	}
}

func TestEndedGenerationsAndTheirCopiesAreForgotten(t *testing.T) {
	r := serving(t)
	for n := uint64(1); n < 12; n++ {
		r.exit(n, "exit status 1")
		r.advance(11 * time.Second)
		r.serve(n + 1)
		r.advance(11 * time.Second)
	}
	r.wantTable("7 failed, 8 failed, 9 failed, 10 failed, 11 failed, 12 serving")
	list, err := os.ReadDir(r.m.depot.dir)
	if err != nil || len(list) != 1 || list[0].Name() != "12" {
		t.Errorf("copies left: %v %v", list, err)
	}
}

func TestStop(t *testing.T) {
	t.Run("drained", func(t *testing.T) {
		r := serving(t)
		r.m.Stop(5*time.Second, false)
		r.pump()
		r.wantTold(1, "drain shutdown 5s")
		r.drains(1)
		r.wantTable("1 draining")
		r.empty(1)
		r.wantTold(1, "terminate")
		r.exit(1, "exit status 0")
		r.wantTable("1 gone")
		if r.m.anyLive() {
			t.Error("not at its end")
		}
	})
	t.Run("cut at the limit", func(t *testing.T) {
		r := serving(t)
		r.m.Stop(5*time.Second, false)
		r.pump()
		r.drains(1)
		r.told(1)
		r.advance(5*time.Second - 1)
		r.wantTold(1, "")
		r.advance(1)
		r.wantTold(1, "terminate")
		r.advance(2 * time.Second)
		r.wantTable("1 gone")
	})
	t.Run("at most shutdown_time", func(t *testing.T) {
		r := serving(t)
		r.m.Stop(24*time.Hour, false)
		r.pump()
		r.wantTold(1, "drain shutdown 900s")
	})
	t.Run("not attached", func(t *testing.T) {
		r := serving(t)
		r.m.Detach(r.sessions[1])
		r.m.Stop(5*time.Second, false)
		r.pump()
		if got := r.process(1).signals; len(got) != 1 || got[0] != syscall.SIGTERM {
			t.Errorf("signals %v, want TERM", got)
		}
		r.advance(2 * time.Second)
		r.wantTable("1 gone")
	})
	t.Run("while it starts", func(t *testing.T) {
		r := configured(t)
		r.m.Stop(5*time.Second, false)
		r.pump()
		r.exit(1, "signal: terminated")
		r.wantTable("1 gone")
	})
	t.Run("while a restart waits", func(t *testing.T) {
		r := serving(t)
		r.exit(1, "exit status 1")
		r.exit(2, "exit status 1")
		r.m.Stop(5*time.Second, false)
		r.advance(time.Hour)
		r.wantTable("1 failed, 2 failed")
	})
	t.Run("in an upgrade", func(t *testing.T) {
		r := serving(t)
		f := r.candidate(2, phaseWarm)
		r.m.Stop(5*time.Second, false)
		r.pump()
		r.wantEnd(f, false, "restartd is stopping")
		r.wantTold(1, "drain shutdown 5s")
		r.wantTold(2, "terminate")
	})
	t.Run("in a probation", func(t *testing.T) {
		r := serving(t)
		f := r.candidate(2, phaseProbation)
		r.told(1)
		r.m.Stop(5*time.Second, false)
		r.pump()
		r.wantEnd(f, false, "restartd is stopping")
		r.wantTold(1, "drain shutdown 5s")
		r.wantTold(2, "drain shutdown 5s")
		r.exit(1, "exit status 0")
		r.exit(2, "exit status 0")
		r.wantTable("1 gone, 2 gone")
		// The suite starts again, with the binary that is installed then.
		if err := os.WriteFile(r.dir+"/installed", []byte("newer"), 0o755); err != nil {
			t.Fatal(err)
		}
		r.boot()
		r.configure()
		if b, _ := os.ReadFile(r.m.depot.path(3)); string(b) != "newer" {
			t.Errorf("generation 3 is %q", b)
		}
	})
}

// TestDrainsByCause: each has its own strategy and times.
func TestDrainsByCause(t *testing.T) {
	drain := func(r *rig, n uint64) *restartv1.Drain {
		var last *restartv1.Drain
		for {
			select {
			case c := <-r.sessions[n].Commands():
				if d := c.GetDrain(); d != nil {
					last = d
				}
			default:
				return last
			}
		}
	}
	policy := Settings{
		Upgrade: Drain{Over: 2 * time.Minute, Limit: time.Hour},
		Stop:    Drain{Immediate: true, Over: time.Second, Limit: 30 * time.Second},
	}
	begin := func(s Settings) *rig {
		r := serving(t)
		r.m.Configure(s)
		r.pump()
		return r
	}
	r := begin(policy)
	r.candidate(2, phaseProbation)
	if d := drain(r, 1); d.GetCause() != "upgrade" || d.GetImmediate() || d.GetDrainTimeMs() != 120_000 || d.GetShutdownTimeMs() != 3_600_000 {
		t.Errorf("upgrade: %v", d)
	}
	r.m.Stop(5*time.Second, false)
	r.pump()
	if d := drain(r, 2); d.GetCause() != "shutdown" || !d.GetImmediate() || d.GetShutdownTimeMs() != 30_000 {
		t.Errorf("stop: %v", d)
	}
	r = begin(policy)
	r.m.Stop(5*time.Second, true)
	r.pump()
	if d := drain(r, 1); d.GetShutdownTimeMs() != 3_600_000 {
		t.Errorf("a patient stop: %v", d)
	}
	r = begin(Settings{Upgrade: Drain{Limit: time.Hour}, Stop: Drain{Over: time.Minute, Limit: 2 * time.Minute}})
	r.m.Stop(5*time.Second, false)
	r.pump()
	if d := drain(r, 1); d.GetImmediate() || d.GetDrainTimeMs() != 60_000 || d.GetShutdownTimeMs() != 120_000 {
		t.Errorf("a gradual stop: %v", d)
	}
	r = begin(Settings{Upgrade: Drain{Limit: time.Hour}})
	r.m.Stop(5*time.Second, false)
	r.pump()
	if d := drain(r, 1); !d.GetImmediate() || d.GetShutdownTimeMs() != 5000 {
		t.Errorf("a stop without a policy: %v", d)
	}
}

// TestWhatWasCutIsTold in the table, and does not hide why a generation that serves ends.
func TestWhatWasCutIsTold(t *testing.T) {
	r := serving(t)
	r.report(1, &restartv1.Report{Accepting: true, ConnectionsCut: 1, CutWhat: "old 1 tcp"})
	r.upgrade(&restartv1.UpgradeRequest{ProbationMs: new(int64)})
	r.serve(2)
	if m := r.m.gens[1].Message; m != "" {
		t.Errorf("it says %q while it serves", m)
	}
	r.report(1, &restartv1.Report{Draining: true, ConnectionsCut: 3, CutWhat: "old 1 tcp, web 2 http"})
	r.exit(1, "exit status 0")
	if m := r.m.gens[1].Message; m != "cut 3 connections at the end of its time: old 1 tcp, web 2 http" {
		t.Errorf("it says %q", m)
	}
}
