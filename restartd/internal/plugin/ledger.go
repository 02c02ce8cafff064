package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
	restartv1 "retinue.dev/services/api/restart/v1"

	"retinue.dev/restartd/internal/durable"
)

// States of a generation, as the ledger writes them.
const (
	stateReady    = "ready"
	stateCanary   = "canary"
	stateServing  = "serving"
	stateDraining = "draining"
	stateGone     = "gone"
	stateFailed   = "failed"
)

var states = map[string]restartv1.PluginState{
	stateReady: restartv1.PluginState_PLUGIN_STATE_READY, stateCanary: restartv1.PluginState_PLUGIN_STATE_CANARY,
	stateServing: restartv1.PluginState_PLUGIN_STATE_SERVING, stateDraining: restartv1.PluginState_PLUGIN_STATE_DRAINING,
	stateGone: restartv1.PluginState_PLUGIN_STATE_GONE, stateFailed: restartv1.PluginState_PLUGIN_STATE_FAILED,
}

const (
	ledgerVersion = 1
	maxLedger     = 4 << 20
)

// ledger is what the next restartd must know.
type ledger struct {
	Version int      `json:"version"`
	Next    uint64   `json:"next"`
	Plugins []record `json:"generations"`
	Known   []known  `json:"plugins"`
}

// known is what is remembered of a plugin beside its generations.
type known struct {
	Name     string `json:"name"`
	Hash     []byte `json:"hash"`
	Swapped  string `json:"swapped,omitempty"`
	Previous string `json:"previous,omitempty"`
	Restarts uint64 `json:"restarts"`
}

// record is one generation's line.
type record struct {
	Plugin        string `json:"plugin"`
	Number        uint64 `json:"number"`
	State         string `json:"state"`
	PID           int    `json:"pid"`
	StartTime     uint64 `json:"start_time"`
	Program       string `json:"program"`
	SHA256        string `json:"sha256"`
	ProgramName   string `json:"program_name"`
	Version       string `json:"program_version"`
	Kind          string `json:"kind"`
	Protocol      major  `json:"protocol"`
	Control       string `json:"control"`
	Data          string `json:"data"`
	Dir           string `json:"dir"`
	Log           string `json:"log"`
	Unit          string `json:"unit,omitempty"`
	ConfigHash    []byte `json:"config_hash"`
	ConfigID      uint32 `json:"config_id"`
	Subscription  []byte `json:"subscription"`
	Canary        uint32 `json:"canary,omitempty"`
	StartedUnixMS int64  `json:"started_unix_ms"`
	Message       string `json:"message,omitempty"`
	ended         string
}

func (m *Manager) ledgerPath() string { return filepath.Join(m.opt.StateDir, "plugins.json") }

func (m *Manager) save() error {
	l := ledger{Version: ledgerVersion, Next: m.next}
	for _, name := range slices.Sorted(maps.Keys(m.plugins)) {
		p := m.plugins[name]
		l.Known = append(l.Known, known{Name: name, Hash: p.known, Swapped: p.swapped, Previous: p.previous, Restarts: p.restarts})
		for _, n := range slices.Sorted(maps.Keys(p.gens)) {
			g := p.gens[n]
			g.Plugin = name
			l.Plugins = append(l.Plugins, g.record)
		}
	}
	b, err := json.MarshalIndent(l, "", "\t")
	if err != nil {
		return err
	}
	return durable.Write(m.ledgerPath(), append(b, '\n'), 0o600)
}

func readLedger(path string) (*ledger, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &ledger{}, nil
	}
	if err != nil {
		return nil, err
	}
	return parseLedger(b)
}

func parseLedger(b []byte) (*ledger, error) {
	var l ledger
	if len(b) > maxLedger {
		return nil, fmt.Errorf("ledger of %d bytes", len(b))
	}
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, err
	}
	if l.Version != ledgerVersion {
		return nil, fmt.Errorf("ledger of version %d, this restartd reads %d", l.Version, ledgerVersion)
	}
	for _, r := range l.Plugins {
		if states[r.State] == 0 || r.PID < 0 || r.Plugin == "" {
			return nil, fmt.Errorf("ledger: generation %d of plugin %q makes no sense", r.Number, r.Plugin)
		}
	}
	return &l, nil
}

// recover takes charge of survivors. It runs before the loop.
func (m *Manager) recover() {
	l, err := readLedger(m.ledgerPath())
	if err != nil {
		m.opt.Log.Error("ledger of plugins unreadable, set aside; its processes end by themselves", "error", err)
		_ = os.Rename(m.ledgerPath(), m.ledgerPath()+".unreadable")
		l = &ledger{}
	}
	m.next = max(l.Next, 1)
	for _, k := range l.Known {
		p := m.get(k.Name)
		p.known, p.swapped, p.previous, p.restarts = k.Hash, k.Swapped, k.Previous, k.Restarts
	}
	mine := map[string]bool{}
	for _, r := range l.Plugins {
		m.next = max(m.next, r.Number+1)
		if r.State == stateGone || r.State == stateFailed || r.Log == "" { // borrowed ones are attached to anew
			continue
		}
		r.Protocol = max(r.Protocol, 1) // a ledger from before there was a choice
		g := &instance{record: r, sub: &filterv1.Subscription{}}
		if err := proto.Unmarshal(r.Subscription, g.sub); err != nil {
			continue
		}
		if g.process, err = m.opt.Launcher.adopt(r.PID, r.StartTime); err != nil {
			m.opt.Log.Warn("plugin ended while restartd was away", "plugin", r.Plugin, "generation", r.Number, "error", err)
			_ = os.RemoveAll(r.Dir)
			continue
		}
		mine[r.Dir] = true
		g.control = &lateController{}
		m.enter(m.get(r.Plugin), g)
		m.reattach(g)
		switch p := m.get(r.Plugin); r.State {
		case stateServing:
			p.served, p.message = time.Now(), fmt.Sprintf("generation %d serves, adopted", r.Number)
		case stateReady, stateCanary: // of a snapshot or a swap that restartd did not live to finish
			m.end(g, "restartd ended before it could serve")
		case stateDraining:
			g.State = stateServing // so that drain begins anew
			m.drain(g, m.opt.Times.Drain)
		}
		m.opt.Log.Info("plugin adopted", "plugin", r.Plugin, "generation", r.Number, "pid", r.PID, "state", r.State)
	}
	m.tidy()
	// A restartd that ended between a start and the note of it left what the ledger does not know.
	for _, p := range m.opt.Launcher.strays(filepath.Join(m.opt.RunDir, "plugins"), mine) {
		m.opt.Log.Warn("stray plugin process ended", "pid", p.PID, "unit", p.unit)
		go p.end(m.opt.Times.Kill)
	}
}

// reattach opens the control connection again: it is what holds the process.
func (m *Manager) reattach(g *instance) {
	ctx, cancel := context.WithTimeout(context.Background(), m.opt.Times.Start)
	defer cancel()
	c, err := contact(ctx, &handshake{address: g.Control, kind: g.Kind, major: g.Protocol}, g.PID, g.process.gone)
	if err != nil {
		m.opt.Log.Error("plugin adopted without its control connection", "plugin", g.record.Plugin, "generation", g.Number, "error", err)
		return
	}
	g.control = c
}

// lateController stands for a control connection that could not be opened.
type lateController struct{}

var errNoControl = errors.New("there is no control connection")

func (*lateController) Hello(context.Context, *filterv1.HelloRequest) (*filterv1.HelloReply, error) {
	return nil, errNoControl
}

func (*lateController) Configure(context.Context, *filterv1.ConfigureRequest) (*filterv1.ConfigureReply, error) {
	return nil, errNoControl
}

func (*lateController) Drain(context.Context, *filterv1.DrainRequest) (*filterv1.DrainReply, error) {
	return nil, errNoControl
}

func (*lateController) Retire(context.Context, *filterv1.RetireRequest) (*filterv1.RetireReply, error) {
	return nil, errNoControl
}

func (*lateController) Metrics(context.Context, *filterv1.MetricsRequest) (*filterv1.MetricsReply, error) {
	return nil, errNoControl
}

func (*lateController) Close() {}

// tidy removes what generations left that no table remembers: copies of programs, working directories, and output beyond the newest.
func (m *Manager) tidy() {
	live := map[string]bool{}
	for name, p := range m.plugins {
		for n := range p.gens {
			live[m.programPath(name, n)], live[m.runDir(name, n)] = true, true
		}
	}
	for _, dir := range []string{filepath.Dir(m.programPath("", 0)), filepath.Dir(m.runDir("", 0))} {
		left, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, path := range left {
			if !live[path] {
				_ = os.RemoveAll(path)
			}
		}
	}
	logs, _ := filepath.Glob(filepath.Join(m.stateDir("*"), "*.log"))
	numbers := map[string][]uint64{}
	for _, path := range logs {
		if n, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(path), ".log"), 10, 64); err == nil {
			numbers[filepath.Dir(path)] = append(numbers[filepath.Dir(path)], n)
		}
	}
	for dir, list := range numbers {
		slices.Sort(list)
		p := m.plugins[filepath.Base(dir)]
		for _, n := range list[:max(len(list)-keptEnded, 0)] {
			if p == nil || p.gens[n] == nil {
				_ = os.Remove(filepath.Join(dir, fmt.Sprintf("%d.log", n)))
			}
		}
	}
}
