package plugin

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// enter adds a started generation to the table and watches over it.
func (m *Manager) enter(p *plugin, g *instance) {
	g.plugin = p
	p.gens[g.Number] = g
	if g.program.path != "" {
		p.last = g.program
		m.forget(p)
	}
	m.dirty = true
	go func() {
		<-g.process.gone
		m.post(func() { m.exited(g) })
	}()
}

// drop forgets a plugin that is not in the configuration, with its output, once its last process is gone.
func (m *Manager) drop(p *plugin) {
	if p.object != nil || m.pending != nil && m.pending.objects[p.name] != nil || m.stopping {
		return
	}
	for _, g := range p.gens {
		if g.process != nil {
			return
		}
	}
	delete(m.plugins, p.name)
	m.dirty = true
	for n := range p.gens {
		_ = os.Remove(m.programPath(p.name, n))
	}
	_ = os.Remove(p.last.path)
	_ = os.RemoveAll(m.stateDir(p.name))
}

// serve makes g the generation for new streams, and drains all others.
func (m *Manager) serve(p *plugin, g *instance) {
	p.stopTimer()
	p.open = false
	if g.State != stateServing {
		p.served = time.Now()
		m.opt.Log.Info("plugin serves", "plugin", p.name, "generation", g.Number, "pid", g.PID, "program", g.Program, "version", g.Version)
	}
	g.State, g.Canary = stateServing, 0
	p.known, p.message = p.hash, fmt.Sprintf("generation %d serves", g.Number)
	m.dirty = true
	for _, other := range p.gens {
		if other != g {
			m.drain(other, m.opt.Times.Drain)
		}
	}
}

// exited takes note of the end of a process.
func (m *Manager) exited(g *instance) {
	p := g.plugin
	if g.process == nil {
		return // let go before it ended
	}
	if g.control != nil {
		g.control.Close()
	}
	was := g.State
	if g.ended = "let go"; !g.borrowed {
		g.ended = g.process.how
	}
	g.process = nil
	g.State = stateGone
	m.dirty = true
	if !g.borrowed {
		_ = os.RemoveAll(g.Dir)
	}
	if !g.ending && was != stateDraining {
		g.State = stateFailed
		g.Message = "ended: " + g.how()
		m.opt.Log.Error("plugin ended", "plugin", p.name, "generation", g.Number, "pid", g.PID, "how", g.how())
	}
	m.forget(p)
	if p.swap != nil {
		p.swap.exited(m, g)
	}
	if was == stateServing && p.wanted && !m.stopping && p.usable(p.hash) == nil {
		m.crashed(p, g.how())
	}
	m.drop(p)
}

func (g *instance) how() string {
	if g.ended != "" {
		return g.ended
	}
	return "how is not known"
}

// crashed plans the restart.
func (m *Manager) crashed(p *plugin, how string) {
	if time.Since(p.served) > m.opt.Times.Healthy {
		p.crashes = 0
	}
	p.crashes++
	p.restarts++
	pause := min(m.opt.Times.BackOff<<min(p.crashes-1, 20), m.opt.Times.BackOffTo)
	pause += time.Duration(time.Now().UnixNano() % int64(pause/4+1)) // so that several do not come together
	p.message = fmt.Sprintf("ended (%s); started again in %s", how, pause.Round(time.Millisecond))
	if p.crashes >= m.opt.Times.Crashes {
		p.open, pause = true, m.opt.Times.Circuit
		p.message = fmt.Sprintf("ended %d times, the last with %s: not started for %s; its on_error holds", p.crashes, how, pause)
		m.opt.Log.Error("plugin circuit open", "plugin", p.name, "crashes", p.crashes, "pause", pause.String())
	}
	m.later(p, pause)
}

func (m *Manager) later(p *plugin, pause time.Duration) {
	p.stopTimer()
	p.nextTry = time.Now().Add(pause)
	p.timer = time.AfterFunc(pause, func() {
		m.post(func() {
			if p.wanted && p.usable(p.hash) == nil && !m.stopping {
				m.retry(p)
			}
		})
	})
	m.dirty = true
}

// retry starts a generation of the configuration in force.
func (m *Manager) retry(p *plugin) {
	p.stopTimer()
	s := m.spec(p, p.object, p.hash, p.swapped)
	go func() {
		g, err := m.launch(s, silent)
		m.post(func() {
			switch {
			case err != nil && p.wanted:
				m.opt.Log.Error("plugin not started", "plugin", p.name, "error", err)
				m.crashed(p, err.Error())
			case err != nil:
			case m.stopping || !p.wanted || !bytes.Equal(p.hash, s.hash) || p.usable(p.hash) != nil:
				m.enter(p, g)
				m.end(g, "not wanted any more")
			default:
				m.enter(p, g)
				m.serve(p, g)
			}
		})
	}()
}

// drain takes new streams from a generation and ends it when it has none, or at the limit.
func (m *Manager) drain(g *instance, limit time.Duration) {
	if g.State == stateDraining || g.process == nil || g.ending {
		return
	}
	g.State, g.Canary = stateDraining, 0
	m.dirty = true
	control, p, id, number := g.control, g.process, g.ConfigID, generationOf{g.plugin.name, g.Number}
	go func() {
		over := time.After(limit)
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for idle := 0; idle < 3; {
			select {
			case <-p.gone:
				return
			case <-over:
				m.post(func() { m.end(g, "its time to drain is over") })
				return
			case <-tick.C:
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			r, err := control.Drain(ctx, &filterv1.DrainRequest{})
			cancel()
			if idle++; err != nil || r.GetOpenConnections() > 0 {
				idle = 0
			}
		}
		m.countLast(number, control)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		_, _ = control.Retire(ctx, &filterv1.RetireRequest{ConfigId: id}) // it ends anyway
		cancel()
		m.post(func() { m.end(g, "drained") })
	}()
}

// end ends a process; exited follows.
func (m *Manager) end(g *instance, why string) {
	if g.process == nil || g.ending {
		return
	}
	g.ending, g.Message = true, why
	m.dirty = true
	p := g.process
	if g.borrowed {
		g.control.Close()
		go func() { m.post(func() { m.exited(g) }) }()
		return
	}
	go p.end(m.opt.Times.Kill)
}

// keptEnded is how many ended generations stay in the table, with their output.
const keptEnded = 3

func (m *Manager) forget(p *plugin) {
	var ended []uint64
	for n, g := range p.gens {
		if g.process == nil {
			ended = append(ended, n)
			if path := m.programPath(p.name, n); path != p.last.path {
				_ = os.Remove(path)
			}
		}
	}
	slices.Sort(ended)
	for _, n := range ended[:max(len(ended)-keptEnded, 0)] {
		_ = os.Remove(p.gens[n].Log)
		delete(p.gens, n)
	}
}
