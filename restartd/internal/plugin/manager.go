package plugin

import (
	"bytes"
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
	filterv1 "retinue.dev/services/api/filter/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
)

// Times are the manager's limits; the zero value of a field is its default.
type Times struct {
	Start     time.Duration // process to configured; 6 s, which is below what configd waits for a daemon
	Kill      time.Duration // TERM to KILL; 2 s
	BackOff   time.Duration // first pause after a crash, doubling; 100 ms
	BackOffTo time.Duration // 30 s
	Healthy   time.Duration // serving this long forgets earlier crashes; 30 s
	Crashes   int           // that open the circuit; 6
	Circuit   time.Duration // how long it stays open; 30 s
	Drain     time.Duration // an old generation's time; 10 min
}

func (t *Times) fill() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&t.Start, 6*time.Second)
	def(&t.Kill, 2*time.Second)
	def(&t.BackOff, 100*time.Millisecond)
	def(&t.BackOffTo, 30*time.Second)
	def(&t.Healthy, 30*time.Second)
	def(&t.Circuit, 30*time.Second)
	def(&t.Drain, 10*time.Minute)
	if t.Crashes == 0 {
		t.Crashes = 6
	}
}

// Options are the manager's surroundings.
type Options struct {
	StateDir string   // ledger, copies of programs, output
	RunDir   string   // working directories with sockets
	Programs []string // where a command without a path is looked for
	Launcher Launcher // nil: Sessions
	Log      *slog.Logger
	Times    Times
}

// Manager is restartd's table of plugins. Its life: New takes charge of survivors, Run works until Stop was called and every process
// is gone. The other methods may be called from any goroutine meanwhile.
type Manager struct {
	opt   Options
	inbox chan func()
	ended chan struct{}
	tally tally

	// Everything below belongs to Run's goroutine.
	next     uint64
	plugins  map[string]*plugin
	pending  *pending
	watchers map[chan *restartv1.PluginTable]struct{}
	stopping bool
	dirty    bool
}

// plugin is one plugin block.
type plugin struct {
	name     string
	object   *configv1.Plugin // nil: it left the configuration, or no snapshot was seen yet
	hash     []byte
	known    []byte // hash of the object that last served
	swapped  string // program that a swap put into the place of the command; "" without one
	previous string // what a rollback returns to
	gens     map[uint64]*instance
	swap     *swap
	restarts uint64
	crashes  int
	last     copied    // the program of the newest generation; kept when that ended
	served   time.Time // when a generation last began to serve
	timer    *time.Timer
	nextTry  time.Time
	open     bool // the circuit
	message  string
	wanted   bool // it shall serve
}

// instance is one generation.
type instance struct {
	record
	plugin  *plugin
	program copied // as started by this restartd
	sub     *filterv1.Subscription
	process *process
	control controller
	ending  bool
	// borrowed: somebody else started it. It is let go, not ended.
	borrowed bool
}

// pending is a snapshot between Prepare and Commit.
type pending struct {
	objects    map[string]*configv1.Object
	candidates map[string]*instance
}

// New reads the ledger and takes charge of the processes that survived.
func New(opt Options) (*Manager, error) {
	opt.Times.fill()
	if opt.Launcher == nil {
		opt.Launcher = Sessions{}
	}
	m := &Manager{
		opt: opt, inbox: make(chan func(), 256), ended: make(chan struct{}), next: 1,
		plugins: map[string]*plugin{}, watchers: map[chan *restartv1.PluginTable]struct{}{},
	}
	if err := os.MkdirAll(filepath.Join(opt.StateDir, "plugins"), 0o750); err != nil {
		return nil, err
	}
	m.recover()
	m.readTotals()
	return m, m.save()
}

// Run works until the manager was stopped and every process is gone.
func (m *Manager) Run() {
	cut := time.NewTicker(cutEvery)
	defer cut.Stop()
	for {
		if m.dirty {
			m.dirty = false
			if err := m.save(); err != nil {
				m.opt.Log.Error("ledger of plugins not written: a crash of restartd now would lose track of what changed", "error", err)
			}
			m.publish()
		}
		if m.stopping && !m.anyLive() {
			close(m.ended)
			for w := range m.watchers {
				close(w)
			}
			return
		}
		select {
		case f := <-m.inbox:
			f()
		case <-cut.C:
			m.cutOutputs()
		}
	}
}

func (m *Manager) anyLive() bool {
	for _, p := range m.plugins {
		for _, g := range p.gens {
			if g.process != nil {
				return true
			}
		}
	}
	return false
}

func (m *Manager) post(f func()) {
	select {
	case m.inbox <- f:
	case <-m.ended:
	}
}

var errEnded = errors.New("restartd is stopping")

func (m *Manager) call(f func()) error {
	done := make(chan struct{})
	m.post(func() { f(); close(done) })
	select {
	case <-done:
		return nil
	case <-m.ended:
		return errEnded
	}
}

// Stop ends every plugin; Run returns when they are gone.
func (m *Manager) Stop() {
	m.post(func() {
		m.stopping = true
		for _, p := range m.plugins {
			p.wanted = false
			p.stopTimer()
			for _, g := range p.gens {
				m.end(g, "restartd stops")
			}
		}
	})
	<-m.ended
}

func (p *plugin) stopTimer() {
	if p.timer != nil {
		p.timer.Stop()
		p.timer = nil
	}
	p.nextTry = time.Time{}
}

// Prepare starts what the snapshot's plugins need that no generation has yet. It returns when all could serve, or with the reasons why
// not; then nothing has changed. A plugin that served with this configuration before does not refuse a snapshot: it is
// tried again after a pause, and its on_error holds meanwhile.
func (m *Manager) Prepare(objects []*configv1.Object) (refusals []*configv1.Refusal) {
	m.Abort()
	next := &pending{objects: map[string]*configv1.Object{}, candidates: map[string]*instance{}}
	var starts []spec
	ran := map[string]bool{}
	err := m.call(func() {
		for _, o := range objects {
			object := o.GetPlugin()
			if object == nil {
				continue
			}
			next.objects[o.GetName()] = o
			p := m.get(o.GetName())
			ran[p.name] = bytes.Equal(p.known, o.GetHash())
			switch {
			case p.usable(o.GetHash()) != nil:
			case p.object != nil && bytes.Equal(p.hash, o.GetHash()): // it crashed, and its restart is under way
			default:
				starts = append(starts, m.spec(p, object, o.GetHash(), p.program(o.GetHash())))
			}
		}
	})
	if err != nil {
		return []*configv1.Refusal{{Kind: "plugin", Message: err.Error()}}
	}
	type result struct {
		spec spec
		got  *instance
		err  error
	}
	results := make(chan result, len(starts))
	for _, s := range starts {
		go func() {
			g, err := m.launch(s, silent)
			results <- result{s, g, err}
		}()
	}
	for range starts {
		r := <-results
		switch {
		case r.err == nil:
			next.candidates[r.spec.name] = r.got
		case ran[r.spec.name]:
			m.opt.Log.Error("plugin not started; it is tried again", "plugin", r.spec.name, "error", r.err)
		default:
			var why *refusal
			if !errors.As(r.err, &why) {
				why = refused("", "%v", r.err)
			}
			for _, p := range why.problems {
				refusals = append(refusals, &configv1.Refusal{Kind: "plugin", Name: r.spec.name, Field: p.GetField(), Message: p.GetMessage()})
			}
		}
	}
	_ = m.call(func() {
		for name, g := range next.candidates {
			m.enter(m.get(name), g) // what was there may have been dropped meanwhile
		}
		m.pending = next
	})
	if len(refusals) > 0 {
		m.Abort()
		slices.SortFunc(refusals, func(a, b *configv1.Refusal) int {
			return strings.Compare(a.GetName()+a.GetField(), b.GetName()+b.GetField())
		})
	}
	return refusals
}

// get finds a plugin, or makes its entry.
func (m *Manager) get(name string) *plugin {
	p := m.plugins[name]
	if p == nil {
		p = &plugin{name: name, gens: map[uint64]*instance{}}
		m.plugins[name] = p
	}
	return p
}

// program is what a start of this configuration runs: a swap holds until the block changes.
func (p *plugin) program(hash []byte) string {
	if p.swapped != "" && bytes.Equal(p.known, hash) {
		return p.swapped
	}
	return ""
}

// usable is the generation of a configuration that serves, or could.
func (p *plugin) usable(hash []byte) *instance {
	for _, g := range p.gens {
		if bytes.Equal(g.ConfigHash, hash) && g.process != nil && !g.ending && (g.State == stateServing || g.State == stateReady) {
			return g
		}
	}
	return nil
}

// Abort ends what Prepare started.
func (m *Manager) Abort() {
	_ = m.call(func() {
		if m.pending == nil {
			return
		}
		for _, g := range m.pending.candidates {
			m.end(g, "the snapshot was called off")
		}
		m.pending = nil
		for _, p := range m.plugins {
			m.drop(p)
		}
	})
}

// Commit makes the prepared snapshot the one in force.
func (m *Manager) Commit() {
	_ = m.call(func() {
		if m.pending == nil {
			return
		}
		next := m.pending
		m.pending = nil
		m.dirty = true
		for name, o := range next.objects {
			p := m.get(name)
			if !bytes.Equal(p.known, o.GetHash()) {
				p.swapped, p.previous = "", ""
			}
			p.object, p.hash, p.wanted = o.GetPlugin(), o.GetHash(), true
			if g := p.usable(p.hash); g != nil {
				m.serve(p, g)
			} else if p.timer == nil {
				m.retry(p)
			}
		}
		for name, p := range m.plugins {
			if next.objects[name] != nil {
				continue
			}
			p.object, p.hash, p.wanted = nil, nil, false
			p.stopTimer()
			for _, g := range p.gens {
				m.drain(g, m.opt.Times.Drain)
			}
			m.drop(p)
		}
	})
}

// Table is the table as it is.
func (m *Manager) Table() (t *restartv1.PluginTable, err error) {
	err = m.call(func() { t = m.table() })
	return t, err
}

func (m *Manager) table() *restartv1.PluginTable {
	t := &restartv1.PluginTable{}
	for _, name := range slices.Sorted(maps.Keys(m.plugins)) {
		p := m.plugins[name]
		out := &restartv1.Plugin{
			Name: name, Message: p.message, Restarts: p.restarts, CircuitOpen: p.open, PreviousProgram: p.previous, OnError: "closed",
		}
		if p.object.GetOnError() == configv1.OnError_ON_ERROR_OPEN {
			out.OnError = "open"
		}
		if !p.nextTry.IsZero() {
			out.NextStartUnixMs = p.nextTry.UnixMilli()
		}
		for _, n := range slices.Sorted(maps.Keys(p.gens)) {
			g := p.gens[n]
			if out.LogPath = g.Log; g.Unit != "" {
				out.LogPath = ""
			}
			out.Generations = append(out.Generations, &restartv1.PluginGeneration{
				Number: n, State: states[g.State], Pid: int64(g.PID), Program: g.Program, Sha256: g.SHA256, ProgramName: g.ProgramName,
				ProgramVersion: g.Version, ConfigHash: g.ConfigHash, ConfigId: g.ConfigID, DataAddress: g.Data, Subscription: g.sub, Protocol: uint32(g.Protocol),
				CanaryPercent: g.Canary, StartedUnixMs: g.StartedUnixMS, Message: g.Message, Unit: g.Unit,
			})
		}
		t.Plugins = append(t.Plugins, out)
	}
	return t
}

// Watch returns a channel that has the newest table whenever it changed, and how to give it back.
func (m *Manager) Watch() (<-chan *restartv1.PluginTable, func(), error) {
	c := make(chan *restartv1.PluginTable, 1)
	err := m.call(func() {
		m.watchers[c] = struct{}{}
		c <- m.table()
	})
	return c, func() { m.post(func() { delete(m.watchers, c) }) }, err
}

func (m *Manager) publish() {
	if len(m.watchers) == 0 {
		return
	}
	t := m.table()
	for w := range m.watchers {
		select {
		case <-w: // an older one that nobody took
		default:
		}
		w <- t
	}
}
