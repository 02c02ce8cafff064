package generation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	restartv1 "retinue.dev/services/api/restart/v1"
)

// Times are the machine's limits; the zero value of a field is its default.
type Times struct {
	Preflight time.Duration // the candidate answers --preflight; 10 s
	Ready     time.Duration // start to Ready; 30 s
	Commit    time.Duration // Serve to a report that says so; 5 s
	Kill      time.Duration // Terminate to SIGKILL; 2 s
	BackOff   time.Duration // second restart after a crash, doubling; 100 ms
	BackOffTo time.Duration // the longest; 10 s
	Healthy   time.Duration // serving this long forgets earlier crashes; 10 s
	Stalled   time.Duration // a generation that stands still for so long in a probation has failed it; 5 s
	Stuck     time.Duration // outside a probation it is killed and started again; 30 s
}

func (t *Times) fill() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.Preflight, 10*time.Second)
	def(&t.Ready, 30*time.Second)
	def(&t.Commit, 5*time.Second)
	def(&t.Kill, 2*time.Second)
	def(&t.BackOff, 100*time.Millisecond)
	def(&t.BackOffTo, 10*time.Second)
	def(&t.Healthy, 10*time.Second)
	def(&t.Stalled, 5*time.Second)
	def(&t.Stuck, 30*time.Second)
}

// Options are the machine's surroundings. Fields without a remark are required.
type Options struct {
	Dir       string // state directory: ledger.json and generations/
	Installed string // path of the installed binary
	// Continues tells that the supervisor handed sockets back: a restart of restartd and not of the suite, after which
	// the binary that ran is the one to run.
	Continues bool
	Launcher  Launcher
	Sockets   Sockets
	Log       *slog.Logger
	// Announce tells what the machine is doing in one line, and whether a generation serves. Called from Run.
	Announce func(line string, serving bool)
	Times    Times
	// Now and Go are time.Now and the go statement unless a test has its own.
	Now func() time.Time
	Go  func(func())
}

// Sockets is what the machine asks of the bank.
type Sockets interface {
	Grow()             // before a generation starts while none accepts
	Widen()            // before one starts beside another that accepts
	Open()             // all shards are accepted from by who serves
	Divide() error     // before two generations accept beside each other
	Share(percent int) // how much of a hundred the second half gets
}

// Settings are what the runtime object says.
type Settings struct {
	Snapshot  string
	Probation time.Duration
	Upgrade   Drain // of an old generation
	Stop      Drain // at the end of the suite
}

// Drain is how connections leave for one cause.
type Drain struct {
	Immediate bool
	Over      time.Duration // they are asked to leave; 0: as the generation thinks fit
	Limit     time.Duration // what is left then is cut
}

// Machine is restartd's table of generations.
//
// Its life: New reads the ledger and takes charge of survivors, Run works until Stop has been called and every process
// is gone. The other methods may be called from any goroutine while Run runs.
type Machine struct {
	opt   Options
	depot depot
	inbox chan func()
	ended chan struct{} // closed when Run returns

	// Everything below belongs to Run's goroutine.
	settings   Settings
	configured bool // a snapshot is bound: generations may start
	next       uint64
	gens       map[uint64]*generation
	incumbent  *generation // serves or shall; may have ended, while its restart waits
	previous   uint64
	upgrade    *upgrade
	history    []string
	crashes    int
	looping    string // the snapshot under which generations crash in a row
	loops      int    // how many did
	aside      string // the snapshot that is not served any more for that
	restart    *alarm
	stopping   bool
	dirty      bool // the ledger is behind
	announced  string
	alarms     map[*alarm]struct{}
	commands   uint64
}

// generation is one line of the table.
type generation struct {
	record
	state       restartv1.State
	process     Process
	live        bool // there is a process, or one is about to be
	session     *Session
	accepting   bool
	parts       bool           // it can accept from a part of the shards
	part        restartv1.Part // that it accepts from
	draining    bool
	connections uint64
	streams     uint64
	cut         uint64
	cutWhat     string // ": web 2 http"
	moved       uint64 // to its successor
	taken       uint64 // from generations before
	successor   uint64 // that it was told
	immediate   bool   // it drains without waiting for chance
	requests    uint64
	errors      uint64 // of its own making
	heartbeats  bool   // it reports every second
	watch       *alarm // when it was not heard of
	alarm       *alarm // the deadline of the state it is in
	terminating bool
	installing  bool      // its copy is being made
	since       time.Time // it serves
	onGone      func()
}

var stateNames = map[string]restartv1.State{
	"starting": restartv1.State_STATE_STARTING,
	"warming":  restartv1.State_STATE_WARMING,
	"ready":    restartv1.State_STATE_READY,
	"serving":  restartv1.State_STATE_SERVING,
	"draining": restartv1.State_STATE_DRAINING,
	"gone":     restartv1.State_STATE_GONE,
	"failed":   restartv1.State_STATE_FAILED,
}

func nameOf(s restartv1.State) string {
	for name, v := range stateNames {
		if v == s {
			return name
		}
	}
	return "starting"
}

// alarm is a deadline of the loop.
type alarm struct {
	at   time.Time
	ring func()
}

// keptEnded is how many ended generations Status still shows.
const keptEnded = 5

// New reads the ledger below opt.Dir and takes charge of the processes that survived.
func New(opt Options) (*Machine, error) {
	opt.Times.fill()
	if opt.Now == nil {
		opt.Now = time.Now
	}
	if opt.Go == nil {
		opt.Go = func(f func()) { go f() }
	}
	m := &Machine{
		opt: opt, depot: depot{filepath.Join(opt.Dir, "generations")},
		inbox: make(chan func(), 256), ended: make(chan struct{}),
		gens: map[uint64]*generation{}, alarms: map[*alarm]struct{}{}, next: 1,
	}
	if err := os.MkdirAll(m.depot.dir, 0o755); err != nil {
		return nil, err
	}
	m.recover()
	return m, m.save()
}

func (m *Machine) ledgerPath() string { return filepath.Join(m.opt.Dir, "ledger.json") }

// Run works until the machine was told to stop and every generation is gone.
func (m *Machine) Run(ctx context.Context) error {
	defer close(m.ended)
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	for {
		m.settle()
		if m.stopping && !m.anyLive() {
			return nil
		}
		wait := time.Hour
		if at, ok := m.nextAlarm(); ok {
			wait = max(at.Sub(m.opt.Now()), 0)
		}
		wake.Reset(wait)
		select {
		case f := <-m.inbox:
			f()
		case <-wake.C:
			m.ring()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// settle is what follows every event: who drains hears of another successor, the ledger is written when something changed, and the status told.
func (m *Machine) settle() {
	m.redirect()
	if m.dirty {
		if err := m.save(); err != nil {
			m.opt.Log.Error("ledger not written: a crash of restartd now would lose track of what changed", "error", err)
		}
	}
	if line := m.line(); line != m.announced {
		m.announced = line
		m.opt.Announce(line, m.incumbent != nil && m.incumbent.state == restartv1.State_STATE_SERVING)
	}
}

// line is the status for people.
func (m *Machine) line() string {
	switch g := m.incumbent; {
	case m.stopping:
		return "stopping: generations drain"
	case m.upgrade != nil:
		return m.upgrade.describe()
	case g == nil && !m.configured:
		return "waiting for configd's first snapshot"
	case g == nil:
		return "no generation yet"
	case m.aside != "" && g.state == restartv1.State_STATE_SERVING:
		return fmt.Sprintf("generation %d serves the snapshot before %.12s, which is set aside: proxyd crashed again and again under it; change the configuration and reload", g.Number, m.aside)
	case m.restart != nil:
		return fmt.Sprintf("generation %d ended: %s; its binary is started again after a pause", g.Number, g.Message)
	default:
		return fmt.Sprintf("generation %d is %s", g.Number, nameOf(g.state))
	}
}

// post hands f to the loop. It is dropped when the loop has ended.
func (m *Machine) post(f func()) {
	select {
	case m.inbox <- f:
	case <-m.ended:
	}
}

var errEnded = errors.New("restartd is stopping")

// call runs f in the loop and waits for it.
func (m *Machine) call(f func()) error {
	done := make(chan struct{})
	m.post(func() { f(); close(done) })
	select {
	case <-done:
		return nil
	case <-m.ended:
		return errEnded
	}
}

func (m *Machine) after(d time.Duration, ring func()) *alarm {
	a := &alarm{m.opt.Now().Add(d), ring}
	m.alarms[a] = struct{}{}
	return a
}

func (m *Machine) cancel(a **alarm) {
	if *a != nil {
		delete(m.alarms, *a)
		*a = nil
	}
}

func (m *Machine) nextAlarm() (at time.Time, ok bool) {
	for a := range m.alarms {
		if !ok || a.at.Before(at) {
			at, ok = a.at, true
		}
	}
	return at, ok
}

// ring rings what is due, the earliest first. An alarm may cancel another.
func (m *Machine) ring() {
	for {
		var due *alarm
		for a := range m.alarms {
			if !a.at.After(m.opt.Now()) && (due == nil || a.at.Before(due.at)) {
				due = a
			}
		}
		if due == nil {
			return
		}
		delete(m.alarms, due)
		due.ring()
	}
}

func (m *Machine) anyLive() bool {
	for _, g := range m.gens {
		if g.live {
			return true
		}
	}
	return false
}

// Configure tells the settings of the running snapshot, whose sockets are bound. The first call lets the first
// generation start.
func (m *Machine) Configure(s Settings) {
	m.post(func() {
		m.settings = s
		if m.aside != "" && m.aside != s.Snapshot {
			m.opt.Log.Info("another snapshot: the one that was set aside is forgotten", "snapshot", m.aside)
			m.aside, m.dirty = "", true
		}
		if m.configured || m.stopping {
			return
		}
		m.configured = true
		if g := m.incumbent; g == nil || !g.live {
			m.startIncumbent()
		}
	})
}

// Knows tells whether pid is the live process of generation n.
func (m *Machine) Knows(n uint64, pid int) bool {
	known := false
	_ = m.call(func() {
		g := m.gens[n]
		known = g != nil && g.live && g.process.PID == pid
	})
	return known
}

// Status fills in generations, the running upgrade and the history.
func (m *Machine) Status(r *restartv1.StatusReply) error {
	return m.call(func() {
		for _, n := range slices.Sorted(maps.Keys(m.gens)) {
			g := m.gens[n]
			message := g.Message
			if m.aside != "" && g == m.incumbent && message == "" {
				message = m.line()
			}
			r.Generations = append(r.Generations, &restartv1.Generation{
				Number: g.Number, State: g.state, Pid: int64(g.process.PID), Version: g.Version, GitRevision: g.GitRevision,
				BinarySha256: g.SHA256, StartedUnixMs: g.StartedUnixMS, SnapshotId: g.SnapshotID,
				Connections: g.connections, Streams: g.streams, Message: message, Restarts: g.Restarts,
				ConnectionsMoved: g.moved, ConnectionsTaken: g.taken, ConnectionsCut: g.cut, CanaryPercent: m.shareOf(g),
			})
		}
		if m.upgrade != nil {
			r.Upgrade = m.upgrade.describe()
		}
		r.History = slices.Clone(m.history)
	})
}

// save writes the ledger.
func (m *Machine) save() error {
	l := ledger{Version: ledgerVersion, Boot: bootID(), Next: m.next, Previous: m.previous, History: m.history, Aside: m.aside}
	if m.incumbent != nil && !m.stopping {
		l.Incumbent = m.incumbent.Number
	}
	for _, n := range slices.Sorted(maps.Keys(m.gens)) {
		g := m.gens[n]
		g.State = nameOf(g.state)
		g.PID, g.StartTime = g.process.PID, g.process.StartTime
		l.Generations = append(l.Generations, g.record)
	}
	if m.upgrade != nil {
		l.Upgrade = m.upgrade.record()
	}
	m.dirty = false
	return l.write(m.ledgerPath())
}

// forget drops ended generations from the table, and copies of binaries that nobody needs.
func (m *Machine) forget() {
	var ended []uint64
	keep := map[uint64]bool{m.previous: true}
	for n, g := range m.gens {
		switch {
		case g.live || g == m.incumbent || n == m.previous || (m.upgrade != nil && m.upgrade.involves(g)):
			keep[n] = true
		default:
			ended = append(ended, n)
		}
	}
	slices.Sort(ended)
	for _, n := range ended[:max(len(ended)-keptEnded, 0)] {
		delete(m.gens, n)
		m.dirty = true
	}
	if err := m.depot.prune(keep); err != nil {
		m.opt.Log.Warn("old copies of the binary not removed", "directory", m.depot.dir, "error", err)
	}
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "" // no such kernel; then every boot is the same one, and start times alone must do
	}
	return string(bytes.TrimSpace(b))
}

// signal sends s; a process that is gone already is what was wanted.
func (m *Machine) signal(g *generation, s syscall.Signal) {
	if g.process.Signal == nil {
		return
	}
	if err := g.process.Signal(s); err != nil && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, os.ErrProcessDone) {
		m.opt.Log.Error("generation not signalled", "generation", g.Number, "pid", g.process.PID, "signal", s, "error", err)
	}
}

// Alive tells whether the loop turns: it feeds the supervisor's watchdog.
func (m *Machine) Alive() bool {
	turned := make(chan struct{})
	select {
	case m.inbox <- func() { close(turned) }:
	case <-m.ended:
		return true // stopping in order
	case <-time.After(time.Second):
		return false
	}
	select {
	case <-turned:
		return true
	case <-m.ended:
		return true
	case <-time.After(time.Second):
		return false
	}
}
