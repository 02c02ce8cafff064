package generation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue.dev/libs/preflight"
	restartv1 "retinue.dev/services/api/restart/v1"
	suitev1 "retinue.dev/services/api/suite/v1"
)

// rig drives a machine step by step: a clock that the test sets, processes that do what the test says, and a loop that
// turns only inside the rig's calls.
type rig struct {
	*testing.T
	m          *Machine
	dir        string
	now        time.Time
	launcher   *fakeLauncher
	sessions   map[uint64]*Session
	grown      int
	opened     int
	divided    bool
	percent    int
	noDivision error
	served     bool
	continues  bool
}

type fakeLauncher struct {
	processes map[int]*fakeProcess
	lastPID   int
	startErr  error
	preflight func() (*preflight.Report, error)
}

type fakeProcess struct {
	Survivor
	exited  func(Exit)
	signals []syscall.Signal
	immune  bool // to SIGKILL, for a while
}

func (l *fakeLauncher) Preflight(context.Context, string) (*preflight.Report, error) {
	return l.preflight()
}

func (l *fakeLauncher) Start(s Launch, exited func(Exit)) (Process, error) {
	if l.startErr != nil {
		return Process{}, l.startErr
	}
	l.lastPID++
	p := &fakeProcess{Survivor: Survivor{s.Generation, l.lastPID, uint64(l.lastPID) * 7}, exited: exited}
	l.processes[p.PID] = p
	return l.process(p), nil
}

func (l *fakeLauncher) process(p *fakeProcess) Process {
	return Process{PID: p.PID, StartTime: p.StartTime, Signal: func(s syscall.Signal) error {
		p.signals = append(p.signals, s)
		if s == syscall.SIGKILL && !p.immune {
			l.end(p, "signal: killed")
		}
		return nil
	}}
}

func (l *fakeLauncher) end(p *fakeProcess, reason string) {
	if _, ok := l.processes[p.PID]; ok {
		delete(l.processes, p.PID)
		p.exited(Exit{reason})
	}
}

func (l *fakeLauncher) Adopt(pid int, start uint64, exited func(Exit)) (Process, error) {
	p := l.processes[pid]
	if p == nil || p.StartTime != start {
		return Process{}, errors.New("no such process")
	}
	p.exited = exited
	return l.process(p), nil
}

func (l *fakeLauncher) Survivors(string) []Survivor {
	var out []Survivor
	for _, p := range l.processes {
		if p.Generation != 0 { // else it runs something of another owner
			out = append(out, p.Survivor)
		}
	}
	return out
}

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func newRig(t *testing.T) *rig {
	r := &rig{T: t, dir: t.TempDir(), now: epoch, sessions: map[uint64]*Session{}, launcher: &fakeLauncher{
		processes: map[int]*fakeProcess{}, lastPID: 1000,
		preflight: func() (*preflight.Report, error) {
			p := preflight.New("proxyd", "abc", "restart/v1")
			p.Version = "2"
			return p, nil
		},
	}}
	r.program("installed")
	r.boot()
	return r
}

// program writes an executable and returns its path.
func (r *rig) program(name string) string {
	path := filepath.Join(r.dir, name)
	if err := os.WriteFile(path, []byte("the "+name+" binary"), 0o755); err != nil {
		r.Fatal(err)
	}
	return path
}

// boot starts a restartd on what the last one left: kill -9 and start.
func (r *rig) boot() {
	r.Helper()
	m, err := New(Options{
		Dir: r.dir, Installed: filepath.Join(r.dir, "installed"), Continues: r.continues, Launcher: r.launcher,
		Sockets: r, Log: slog.New(slog.DiscardHandler),
		Announce: func(_ string, serving bool) { r.served = serving },
		Now:      func() time.Time { return r.now }, Go: func(f func()) { f() },
	})
	if err != nil {
		r.Fatal(err)
	}
	r.m = m
	clear(r.sessions)
	r.pump()
}

// The rig is the bank too.

func (r *rig) Grow()  { r.grown++; r.divided, r.percent = false, 0 }
func (r *rig) Widen() {}
func (r *rig) Open()  { r.opened++; r.divided, r.percent = false, 0 }

func (r *rig) Divide() error {
	r.divided = true
	return r.noDivision
}

func (r *rig) Share(percent int) { r.divided, r.percent = true, percent }

// configured is a machine whose first snapshot is bound.
func configured(t *testing.T) *rig {
	r := newRig(t)
	r.configure()
	return r
}

func (r *rig) configure() {
	r.m.Configure(Settings{Upgrade: Drain{Limit: 900 * time.Second}, Probation: 10 * time.Second})
	r.pump()
}

// pump turns the loop until it would wait.
func (r *rig) pump() {
	for {
		r.m.settle()
		select {
		case f := <-r.m.inbox:
			f()
		default:
			r.m.ring()
			r.m.settle()
			if len(r.m.inbox) == 0 {
				return
			}
		}
	}
}

// do runs a call that waits for the loop.
func (r *rig) do(f func()) {
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	for {
		select {
		case f := <-r.m.inbox:
			f()
			r.m.settle()
		case <-done:
			r.pump()
			return
		}
	}
}

func (r *rig) advance(d time.Duration) {
	r.now = r.now.Add(d)
	r.pump()
}

func (r *rig) process(n uint64) *fakeProcess {
	r.Helper()
	for _, p := range r.launcher.processes {
		if p.Generation == n {
			return p
		}
	}
	r.Fatalf("generation %d has no process", n)
	return nil
}

func (r *rig) exit(n uint64, reason string) {
	r.Helper()
	r.launcher.end(r.process(n), reason)
	r.pump()
}

// attach is proxyd's side of a new stream.
func (r *rig) attach(n uint64, accepting, draining bool) {
	r.Helper()
	hello := &restartv1.AttachHello{Hello: &suitev1.Hello{Version: "1"}, Generation: n, Accepting: accepting, Draining: draining}
	pid := r.process(n).PID
	r.do(func() {
		s, err := r.m.Attach(hello, pid)
		if err != nil {
			r.Errorf("attach of generation %d: %v", n, err)
			return
		}
		r.sessions[n] = s
	})
}

func (r *rig) ready(n uint64) {
	r.m.Receive(r.sessions[n], &restartv1.AttachRequest{Message: &restartv1.AttachRequest_Ready{Ready: &restartv1.Ready{SnapshotId: "abc"}}})
	r.pump()
}

func (r *rig) report(n uint64, rep *restartv1.Report) {
	r.m.Receive(r.sessions[n], &restartv1.AttachRequest{Message: &restartv1.AttachRequest_Report{Report: rep}})
	r.pump()
}

func (r *rig) accepts(n uint64) { r.report(n, &restartv1.Report{Accepting: true, Connections: 3}) }
func (r *rig) stopped(n uint64) { r.report(n, &restartv1.Report{Connections: 3}) }
func (r *rig) drains(n uint64)  { r.report(n, &restartv1.Report{Draining: true, Connections: 3}) }
func (r *rig) empty(n uint64)   { r.report(n, &restartv1.Report{Draining: true}) }

// told is what generation n was commanded since the last look.
func (r *rig) told(n uint64) string {
	var out []string
	for {
		select {
		case c := <-r.sessions[n].Commands():
			switch w := c.GetWhat().(type) {
			case *restartv1.Command_Serve:
				out = append(out, "serve"+map[restartv1.Part]string{restartv1.Part_PART_FIRST_HALF: " first half", restartv1.Part_PART_SECOND_HALF: " second half"}[w.Serve.GetPart()])
			case *restartv1.Command_StopAccepting:
				out = append(out, "stop")
			case *restartv1.Command_Drain:
				out = append(out, fmt.Sprintf("drain %s %ds", w.Drain.GetCause(), w.Drain.GetShutdownTimeMs()/1000))
			case *restartv1.Command_Terminate:
				out = append(out, "terminate")
			}
		default:
			return strings.Join(out, ", ")
		}
	}
}

func (r *rig) wantTold(n uint64, want string) {
	r.Helper()
	if got := r.told(n); got != want {
		r.Errorf("generation %d was told %q, want %q", n, got, want)
	}
}

// serve takes generation n from its start to serving.
func (r *rig) serve(n uint64) {
	r.Helper()
	r.attach(n, false, false)
	r.ready(n)
	r.wantTold(n, "serve")
	r.accepts(n)
}

func serving(t *testing.T) *rig {
	r := configured(t)
	r.serve(1)
	return r
}

// table is every generation that Status shows: "1 failed, 2 serving".
func (r *rig) table() string {
	r.Helper()
	var s restartv1.StatusReply
	r.do(func() {
		if err := r.m.Status(&s); err != nil {
			r.Error(err)
		}
	})
	var out []string
	for _, g := range s.Generations {
		out = append(out, fmt.Sprintf("%d %s", g.Number, nameOf(g.State)))
	}
	return strings.Join(out, ", ")
}

func (r *rig) wantTable(want string) {
	r.Helper()
	if got := r.table(); got != want {
		r.Errorf("table is %q, want %q", got, want)
	}
}

func (r *rig) wantIncumbent(n uint64) {
	r.Helper()
	if r.m.incumbent == nil || r.m.incumbent.Number != n {
		r.Errorf("incumbent is %+v, want %d", r.m.incumbent, n)
	}
}

func (r *rig) upgrade(req *restartv1.UpgradeRequest) *Follower {
	r.Helper()
	var f *Follower
	r.do(func() {
		var err error
		if f, err = r.m.Upgrade(req); err != nil {
			r.Errorf("upgrade: %v", err)
		}
	})
	return f
}

func (r *rig) refused(req *restartv1.UpgradeRequest) string {
	r.Helper()
	reason := ""
	r.do(func() {
		_, err := r.m.Upgrade(req)
		var no *Refused
		if !errors.As(err, &no) {
			r.Errorf("upgrade: %v, want a refusal", err)
			return
		}
		reason = no.Reason
	})
	return reason
}

// events reads what f was sent so far.
func events(f *Follower) (steps []string, last *restartv1.UpgradeEvent) {
	for {
		select {
		case e, ok := <-f.Events():
			if !ok {
				return steps, last
			}
			steps, last = append(steps, e.GetStep()), e
		default:
			return steps, last
		}
	}
}

func (r *rig) wantSteps(f *Follower, want ...string) *restartv1.UpgradeEvent {
	r.Helper()
	steps, last := events(f)
	if !slices.Equal(steps, want) {
		r.Errorf("steps %q, want %q", steps, want)
	}
	if last == nil {
		return &restartv1.UpgradeEvent{}
	}
	return last
}

func (r *rig) wantEnd(f *Follower, ok bool, parts ...string) {
	r.Helper()
	_, last := events(f)
	if last == nil || !last.GetDone() || last.GetOk() != ok {
		r.Errorf("last event %v, want done, ok %t", last, ok)
	}
	for _, p := range parts {
		if !strings.Contains(last.GetMessage(), p) {
			r.Errorf("last event says %q, want %q in it", last.GetMessage(), p)
		}
	}
	if _, open := <-f.Events(); open {
		r.Error("an event follows the last one")
	}
}

// candidate begins an upgrade and takes generation n to the named phase.
func (r *rig) candidate(n uint64, phase string) *Follower {
	r.Helper()
	f := r.upgrade(&restartv1.UpgradeRequest{})
	if phase == phaseStart {
		return f
	}
	r.attach(n, false, false)
	if phase == phaseWarm {
		return f
	}
	r.ready(n)
	r.wantTold(n, "serve")
	if phase == phaseCommit {
		return f
	}
	r.accepts(n)
	return f
}
