package plugin

import (
	"bytes"
	"fmt"
	"time"

	restartv1 "retinue.dev/services/api/restart/v1"
)

// swap is one change of program under way. Its steps go to whoever asked.
type swap struct {
	began     time.Time
	events    chan *restartv1.PluginEvent
	candidate *instance
	old       *instance
	previous  string // program that served before
	program   string
	timer     *time.Timer
	drain     time.Duration
	rollback  bool
	ended     bool
}

const (
	defaultCanary = 10 * time.Second
	// drainShown is how long the asker is told of the old generation's end; it drains on without them.
	drainShown = 3 * time.Second
)

func (s *swap) step(step, message string) {
	select {
	case s.events <- &restartv1.PluginEvent{Step: step, Message: message, ElapsedMs: time.Since(s.began).Milliseconds()}:
	default: // nobody reads
	}
}

// finish says how it ended.
func (s *swap) finish(p *plugin, ok bool, message string) {
	if s.ended {
		return
	}
	s.ended = true
	if s.timer != nil {
		s.timer.Stop()
	}
	if p.swap == s {
		p.swap = nil
	}
	select {
	case s.events <- &restartv1.PluginEvent{Step: "end", Message: message, ElapsedMs: time.Since(s.began).Milliseconds(), Done: true, Ok: ok}:
	default:
	}
	close(s.events)
}

// Swap begins a change of program and returns its steps; the last has Done.
func (m *Manager) Swap(r *restartv1.SwapPluginRequest) (<-chan *restartv1.PluginEvent, error) {
	if r.GetCanaryPercent() > 99 {
		return nil, fmt.Errorf("a canary takes 1 to 99 %% of new streams, not %d", r.GetCanaryPercent())
	}
	return m.beginSwap(r, false)
}

// Rollback swaps back to the program before the last swap.
func (m *Manager) Rollback(name string) (<-chan *restartv1.PluginEvent, error) {
	return m.beginSwap(&restartv1.SwapPluginRequest{Name: name}, true)
}

func (m *Manager) beginSwap(r *restartv1.SwapPluginRequest, rollback bool) (<-chan *restartv1.PluginEvent, error) {
	var s *swap
	var launch spec
	var refusal error
	err := m.call(func() {
		p := m.plugins[r.GetName()]
		switch {
		case m.stopping:
			refusal = errEnded
		case p == nil || p.object == nil:
			refusal = fmt.Errorf("there is no plugin %q in the configuration: see retinue plugin list", r.GetName())
		case p.swap != nil:
			refusal = fmt.Errorf("plugin %q is being swapped already", r.GetName())
		case rollback && p.previous == "":
			refusal = fmt.Errorf("plugin %q was not swapped: there is nothing to go back to", r.GetName())
		}
		if refusal != nil {
			return
		}
		s = &swap{
			began: time.Now(), events: make(chan *restartv1.PluginEvent, 64), old: p.usable(p.hash),
			program: r.GetProgram(), rollback: rollback, drain: time.Duration(r.GetDrainMs()) * time.Millisecond,
		}
		if s.drain <= 0 {
			s.drain = m.opt.Times.Drain
		}
		if rollback {
			s.program = p.previous
		}
		if s.old != nil {
			s.previous = s.old.Program
		}
		p.swap = s
		launch = m.spec(p, p.object, p.hash, s.program)
		// A swap names the program itself: the hash that the block pins is the configured one's.
		if launch.object.GetSha256() != "" {
			refusal = fmt.Errorf("plugin %q is pinned by sha256: change the configuration and reload", r.GetName())
			p.swap = nil
		}
	})
	if err != nil {
		return nil, err
	}
	if refusal != nil {
		return nil, refusal
	}
	go func() {
		g, err := m.launch(launch, s.step)
		m.post(func() { m.launched(s, launch, g, err, r) })
	}()
	return s.events, nil
}

// launched goes on with a swap whose candidate was started, or not.
func (m *Manager) launched(s *swap, launch spec, g *instance, err error, r *restartv1.SwapPluginRequest) {
	p := m.plugins[launch.name]
	if err != nil {
		s.finish(p, false, fmt.Sprintf("refused, the running generation goes on: %v", err))
		return
	}
	if p == nil || m.stopping || !p.wanted || !bytes.Equal(p.hash, launch.hash) {
		p = m.get(launch.name)
		m.enter(p, g)
		m.end(g, "the configuration changed meanwhile")
		s.finish(p, false, "the configuration changed meanwhile: swap again")
		return
	}
	m.enter(p, g)
	s.candidate = g
	percent := r.GetCanaryPercent()
	if percent == 0 {
		m.flip(p, s)
		return
	}
	length := time.Duration(r.GetCanaryMs()) * time.Millisecond
	if length <= 0 {
		length = defaultCanary
	}
	g.State, g.Canary = stateCanary, percent
	m.dirty = true
	s.step("canary", fmt.Sprintf("%d %% of new streams for %s", percent, length))
	s.timer = time.AfterFunc(length, func() {
		m.post(func() {
			if !s.ended {
				m.flip(p, s)
			}
		})
	})
}

// flip moves new streams to the candidate.
func (m *Manager) flip(p *plugin, s *swap) {
	old := s.old
	p.swapped, p.previous = s.program, s.previous
	if old != nil && old.process != nil {
		m.drain(old, s.drain)
	}
	m.serve(p, s.candidate)
	p.crashes = 0
	s.step("flip", fmt.Sprintf("generation %d takes new streams", s.candidate.Number))
	done := fmt.Sprintf("generation %d serves %s %s", s.candidate.Number, s.candidate.ProgramName, s.candidate.Version)
	if old == nil || old.process == nil {
		s.finish(p, true, done)
		return
	}
	s.step("drain", fmt.Sprintf("generation %d finishes its streams", old.Number))
	s.timer = time.AfterFunc(drainShown, func() {
		m.post(func() { s.finish(p, true, done+fmt.Sprintf("; generation %d still drains", old.Number)) })
	})
}

// exited is told of every process of the plugin that ended.
func (s *swap) exited(m *Manager, g *instance) {
	switch {
	case s.ended:
	case g == s.candidate && g.State == stateFailed:
		s.finish(g.plugin, false, fmt.Sprintf("generation %d ended: %s; the running generation goes on", g.Number, g.how()))
	case g == s.old && s.candidate != nil && s.candidate.State == stateServing:
		s.finish(g.plugin, true, fmt.Sprintf("generation %d serves %s %s; generation %d is gone", s.candidate.Number, s.candidate.ProgramName, s.candidate.Version, g.Number))
	}
}
