package generation

import (
	"fmt"
	"time"

	restartv1 "retinue.dev/services/api/restart/v1"
)

// What a candidate must not do in its probation: end (upgradeLost), stand still, or answer with errors of its own making more
// often than the generation before it does in the same time. An upstream's outage shows on neither account.

const (
	// errorFloor is how many such errors say something.
	errorFloor = 10
	// errorLimit is by how much the candidate's rate may be above the old one's.
	errorLimit = 0.05
)

// alive notes that g turns, and sets the time at which its silence tells that it does not.
func (m *Machine) alive(g *generation) {
	m.cancel(&g.watch)
	if !g.heartbeats || !g.live {
		return
	}
	limit := m.opt.Times.Stuck
	if u := m.upgrade; u != nil && u.onTrial() && g == u.candidate {
		limit = m.opt.Times.Stalled
	}
	g.watch = m.after(limit, func() { m.doubt(g, limit) })
}

// hearing is how long a generation that seems silent has to be heard after all: when restartd itself stood still, reports wait.
const hearing = time.Second

func (m *Machine) doubt(g *generation, limit time.Duration) {
	g.watch = m.after(hearing, func() {
		g.watch = nil
		canary := m.upgrade != nil && m.upgrade.onTrial() && g == m.upgrade.candidate
		if g.session == nil || g.state != restartv1.State_STATE_SERVING && !canary {
			return // restartd's own absence is no sign, and who drains is ended by its limit
		}
		m.kill(g, fmt.Sprintf("its worker loops, or all of it, stood still for %s", limit))
	})
}

// rate is errors of a generation's own making since the commit.
type rate struct{ requests, errors uint64 }

func (r rate) share() float64 {
	if r.requests == 0 {
		return 0
	}
	return float64(r.errors) / float64(r.requests)
}

func (g *generation) after(from rate) rate {
	if g.requests < from.requests || g.errors < from.errors {
		return rate{}
	}
	return rate{g.requests - from.requests, g.errors - from.errors}
}

// compare looks at the rates of a probation when a report came in.
func (m *Machine) compare(g *generation) {
	u := m.upgrade
	if u == nil || !u.onTrial() || u.old == nil || g != u.candidate {
		return
	}
	now, before := g.after(u.candidateFrom), u.old.after(u.oldFrom)
	if now.errors < errorFloor || now.share() <= before.share()+errorLimit {
		return
	}
	reason := fmt.Sprintf("generation %d ended %d of %d requests by errors of its own making in its %s, generation %d %d of %d",
		g.Number, now.errors, now.requests, u.phase, u.old.Number, before.errors, before.requests)
	if u.phase == phaseCanary {
		m.abortCanary(reason)
		return
	}
	m.takeBack(reason)
}

// takeBack gives the traffic back to the old generation while the candidate lives. It drains then, and what of it can move goes
// to the old one.
func (m *Machine) takeBack(reason string) {
	u := m.upgrade
	m.cancel(&u.alarm)
	u.reason = reason
	m.incumbent = u.old
	m.previous = 0
	m.enter(phaseRollback, fmt.Sprintf("%s; generation %d is told to accept again", reason, u.old.Number))
	m.deadline(u.old, m.opt.Times.Commit, func() { m.notResumed(u.old) })
	m.progress(u.old)
}
