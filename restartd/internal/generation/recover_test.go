package generation

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	restartv1 "retinue.dev/services/api/restart/v1"
)

func TestRestartOfRestartdChangesNothing(t *testing.T) {
	r := serving(t)
	pid := r.process(1).PID
	r.boot()
	r.wantTable("1 serving")
	r.configure()
	r.wantTable("1 serving")
	r.attach(1, true, false)
	r.wantTold(1, "")
	if p := r.process(1); p.PID != pid || len(p.signals) != 0 {
		t.Errorf("process %d, signals %v", p.PID, p.signals)
	}
	r.exit(1, "exit status 1") // noticed though it is no child
	r.wantTable("1 failed, 2 starting")
}

func TestRestartOfRestartdInEveryPhase(t *testing.T) {
	for _, c := range []struct {
		phase  string
		resume func(r *rig)
		table  string
	}{
		{phaseStart, func(*rig) {}, "1 serving, 2 failed"},
		{phaseWarm, func(*rig) {}, "1 serving, 2 failed"},
		{phaseCommit, func(r *rig) {
			r.attach(2, false, false)
			r.wantTold(2, "serve")
			r.accepts(2)
			r.wantTold(1, "stop")
		}, "1 ready, 2 serving"},
		{phaseProbation, func(r *rig) {
			r.attach(2, true, false)
			r.wantTold(2, "")
			r.wantTold(1, "stop")
			r.stopped(1)
			r.now = epoch.Add(10*time.Second - 1)
			r.pump()
			r.wantTold(1, "")
			r.advance(1)
			r.wantTold(1, "drain upgrade 900s")
		}, "1 draining, 2 serving"},
	} {
		t.Run(c.phase, func(t *testing.T) {
			r := serving(t)
			r.candidate(2, c.phase)
			r.advance(time.Second)
			r.boot()
			r.configure()
			r.attach(1, true, false)
			r.wantTold(1, map[bool]string{true: "stop"}[c.phase == phaseProbation])
			if c.phase == phaseProbation {
				r.attach(1, true, false)
			}
			c.resume(r)
			r.wantTable(c.table)
			if strings.Contains(c.table, "failed") && !strings.Contains(strings.Join(r.m.history, ""), "restarted before the commit") {
				t.Errorf("history %q", r.m.history)
			}
		})
	}
}

func TestDeathsWhileRestartdWasAway(t *testing.T) {
	kill := func(r *rig, n uint64) { delete(r.launcher.processes, r.process(n).PID) }
	t.Run("the serving one", func(t *testing.T) {
		r := serving(t)
		if err := os.WriteFile(r.dir+"/installed", []byte("newer"), 0o755); err != nil {
			t.Fatal(err)
		}
		kill(r, 1)
		r.continues = true
		r.boot()
		r.wantTable("1 failed")
		r.configure()
		r.wantTable("1 failed, 2 starting")
		if b, _ := os.ReadFile(r.m.depot.path(2)); string(b) != "the installed binary" {
			t.Errorf("restarted as %q, want the binary that ran", b)
		}
	})
	t.Run("the whole suite", func(t *testing.T) {
		r := serving(t)
		if err := os.WriteFile(r.dir+"/installed", []byte("newer"), 0o755); err != nil {
			t.Fatal(err)
		}
		kill(r, 1)
		r.boot()
		r.configure()
		if b, _ := os.ReadFile(r.m.depot.path(2)); string(b) != "newer" {
			t.Errorf("started as %q, want the installed binary", b)
		}
	})
	t.Run("a pid that was given away", func(t *testing.T) {
		r := serving(t)
		r.process(1).StartTime++
		p := r.process(1)
		p.Generation = 0 // runs something else
		r.boot()
		r.wantTable("1 failed")
		r.configure()
		if len(p.signals) != 0 {
			t.Errorf("a stranger was signalled: %v", p.signals)
		}
	})
	t.Run("the new one in probation", func(t *testing.T) {
		r := serving(t)
		r.candidate(2, phaseProbation)
		r.stopped(1)
		kill(r, 2)
		r.boot()
		r.wantIncumbent(1)
		r.configure()
		r.attach(1, false, false)
		r.wantTold(1, "serve")
		r.accepts(1)
		r.wantTable("1 serving, 2 failed")
	})
	t.Run("the old one in probation", func(t *testing.T) {
		r := serving(t)
		r.candidate(2, phaseProbation)
		kill(r, 1)
		r.boot()
		r.configure()
		r.wantIncumbent(2)
		r.advance(time.Minute)
		r.wantTable("1 failed, 2 serving")
		if r.m.upgrade != nil {
			t.Error("the upgrade did not end")
		}
	})
	t.Run("both in probation", func(t *testing.T) {
		r := serving(t)
		r.candidate(2, phaseProbation)
		kill(r, 1)
		kill(r, 2)
		r.continues = true
		r.boot()
		r.configure()
		r.wantTable("1 failed, 2 failed, 3 starting")
		r.serve(3)
	})
	t.Run("a draining one", func(t *testing.T) {
		r := serving(t)
		r.candidate(2, phaseProbation)
		r.advance(10 * time.Second)
		kill(r, 1)
		r.boot()
		r.wantTable("1 gone, 2 serving")
	})
}

func TestDrainGoesOnAfterARestart(t *testing.T) {
	r := serving(t)
	r.candidate(2, phaseProbation)
	r.advance(10 * time.Second)
	r.drains(1)
	r.advance(100 * time.Second)
	r.boot()
	r.attach(1, false, true)
	r.wantTold(1, "")
	r.advance(800 * time.Second)
	r.wantTold(1, "terminate")
}

func TestRollbackGoesOnAfterARestart(t *testing.T) {
	r := serving(t)
	r.candidate(2, phaseProbation)
	r.stopped(1)
	r.exit(2, "signal: aborted")
	r.boot()
	r.configure()
	r.attach(1, false, false)
	r.wantTold(1, "serve")
	r.accepts(1)
	r.wantTable("1 serving, 2 failed")
	if len(r.m.history) != 1 || !strings.Contains(r.m.history[0], "serves again") {
		t.Errorf("history %q", r.m.history)
	}
}

// Killed between fork and the ledger: the process is there, the ledger has its number and no pid.
func TestProcessWithoutAPIDInTheLedger(t *testing.T) {
	r := configured(t)
	r.m.gens[1].process = Process{}
	if err := r.m.save(); err != nil {
		t.Fatal(err)
	}
	r.boot()
	r.configure()
	r.serve(1)
	r.wantTable("1 serving")
}

func TestStrayIsEnded(t *testing.T) {
	r := serving(t)
	stray, _ := r.launcher.Start(Launch{Generation: 7}, func(Exit) {})
	r.boot()
	if _, ok := r.launcher.processes[stray.PID]; ok {
		t.Error("a process of a generation that the ledger does not know lives on")
	}
	r.wantTable("1 serving")
}

func TestUnreadableLedger(t *testing.T) {
	for name, content := range map[string]string{
		"empty": "", "cut off": `{"version":1,"next":3,"gener`, "nonsense": "\x00\x01", "newer": `{"version":99}`,
		"version 0": `{"next":1}`, "wrong type": `[]`, "trailing": `{"version":1} {"version":1}`,
		"bad state": `{"version":1,"generations":[{"number":1,"state":"flying"}]}`,
		"twice":     `{"version":1,"generations":[{"number":1,"state":"gone"},{"number":1,"state":"gone"}]}`,
		"incumbent": `{"version":1,"incumbent":5}`,
		"upgrade":   `{"version":1,"upgrade":{"candidate":5}}`,
		"bad pid":   `{"version":1,"generations":[{"number":1,"state":"serving","pid":-1}]}`,
	} {
		t.Run(name, func(t *testing.T) {
			r := serving(t)
			r.candidate(2, phaseProbation)
			r.advance(10 * time.Second)
			r.drains(1)
			path := filepath.Join(r.dir, "ledger.json")
			if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			r.boot()
			r.wantTable("1 draining, 2 serving")
			r.configure()
			r.attach(2, true, false)
			r.attach(1, false, true)
			r.wantTable("1 draining, 2 serving")
			if kept, err := os.ReadFile(path + ".unreadable"); err != nil || string(kept) != content {
				t.Errorf("not kept aside: %q %v", kept, err)
			}
			r.exit(2, "exit status 1")
			r.wantTable("1 draining, 2 failed, 3 starting")
		})
	}
}

func TestNumbersAreNeverUsedTwice(t *testing.T) {
	r := serving(t)
	r.exit(1, "exit status 1")
	r.exit(2, "exit status 1")
	os.Remove(filepath.Join(r.dir, "ledger.json"))
	r.boot()
	r.configure()
	r.wantTable("3 starting")
}

func TestAnotherBoot(t *testing.T) {
	r := serving(t)
	path := filepath.Join(r.dir, "ledger.json")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bootID() == "" {
		t.Skip("this kernel tells no boot id")
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), bootID(), "another", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	stranger := r.process(1)
	stranger.Generation = 0
	r.boot()
	r.configure()
	r.wantTable("1 failed, 2 starting")
	if len(stranger.signals) != 0 {
		t.Errorf("a stranger with the pid of another boot was signalled: %v", stranger.signals)
	}
}

// Whatever the ledger says, what the restartd before wrote is read back as it was.
func TestLedgerRoundTrip(t *testing.T) {
	r := serving(t)
	r.candidate(2, phaseProbation)
	first, err := os.ReadFile(r.m.ledgerPath())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseLedger(first); err != nil {
		t.Fatal(err)
	}
	r.boot()
	second, err := os.ReadFile(r.m.ledgerPath())
	if err != nil || string(second) != string(first) {
		t.Errorf("before:\n%s\nafter:\n%s%v", first, second, err)
	}
}

func FuzzLedger(f *testing.F) {
	f.Add([]byte(`{"version":1,"boot":"x","next":3,"incumbent":2,"previous":1,"generations":[{"number":1,"state":"ready","pid":1001,"start_time":7007},{"number":2,"state":"serving","pid":1002,"start_time":7014}],"upgrade":{"candidate":2,"old":1,"phase":"probation"}}`))
	f.Add([]byte(`{"version":1,"generations":[{"number":18446744073709551615,"state":"starting"}]}`))
	f.Add([]byte(`{"version":1,"generations":[{"number":1,"state":"draining","drain_until_unix_ms":-9223372036854775808}],"upgrade":{"phase":"rollback"}}`))
	f.Add([]byte(`{`))
	f.Fuzz(func(t *testing.T, b []byte) {
		b = []byte(strings.Replace(string(b), `"boot":"x"`, `"boot":"`+bootID()+`"`, 1))
		if _, err := parseLedger(b); err != nil {
			return // set aside: TestUnreadableLedger
		}
		r := newRig(t)
		for n := range uint64(2) {
			r.launcher.lastPID = 1000 + int(n)
			if _, err := r.launcher.Start(Launch{Generation: n + 1}, func(Exit) {}); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(r.m.ledgerPath(), b, 0o600); err != nil {
			t.Fatal(err)
		}
		r.boot()
		r.configure()
		r.advance(time.Minute)
		r.m.Stop(time.Second, false)
		r.pump()
		r.advance(time.Minute)
		r.advance(time.Minute)
		var s restartv1.StatusReply
		r.do(func() { _ = r.m.Status(&s) })
		for _, p := range r.launcher.processes {
			t.Errorf("a process is left of generation %d: %v", p.Generation, p.signals)
		}
	})
}
