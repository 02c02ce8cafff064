package generation

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"syscall"
	"time"

	restartv1 "retinue.dev/services/api/restart/v1"
)

// recover builds the table from the ledger and from the processes that are there. It runs before the loop.
func (m *Machine) recover() {
	found := map[uint64]Survivor{}
	for _, s := range m.opt.Launcher.Survivors(m.depot.dir) {
		found[s.Generation] = s
	}
	l, err := readLedger(m.ledgerPath())
	if err != nil {
		aside := m.ledgerPath() + ".unreadable"
		m.opt.Log.Error("ledger unreadable, set aside; generations are found by their processes", "error", err, "kept", aside)
		if err := os.Rename(m.ledgerPath(), aside); err != nil {
			m.opt.Log.Error("ledger not set aside", "error", err)
		}
	}
	m.next = m.depot.last() + 1
	if l == nil {
		m.recoverByProcess(found)
		return
	}
	m.next = max(m.next, l.Next)
	m.previous, m.history, m.aside = l.Previous, l.History, l.Aside
	sameBoot := l.Boot == bootID()
	var lost []*generation
	for _, r := range l.Generations {
		g := &generation{record: r, state: stateNames[r.State]}
		m.gens[r.Number] = g
		m.next = max(m.next, r.Number+1)
		if g.state == restartv1.State_STATE_GONE || g.state == restartv1.State_STATE_FAILED {
			continue
		}
		g.live = true
		if s, ok := found[r.Number]; ok && r.PID == 0 {
			g.PID, g.StartTime = s.PID, s.StartTime // killed between the start and the note of it
		}
		if !sameBoot || !m.takeCharge(g) {
			lost = append(lost, g)
			continue
		}
		delete(found, r.Number)
	}
	for n, s := range found {
		m.endStray(n, s)
	}
	m.incumbent = m.gens[l.Incumbent]
	m.recoverUpgrade(l.Upgrade)
	for _, g := range lost {
		m.exited(g, "ended while restartd was away")
	}
	if !m.anyLive() && (!m.opt.Continues || !sameBoot) {
		m.incumbent = nil // a start of the suite, not of restartd alone: the installed binary
	}
	for _, g := range m.gens {
		if g.live {
			m.opt.Log.Info("generation adopted", "generation", g.Number, "pid", g.process.PID, "state", nameOf(g.state))
			m.rearm(g)
		}
	}
	m.forget()
}

// takeCharge adopts g's process by its pid and start time.
func (m *Machine) takeCharge(g *generation) bool {
	if g.PID == 0 {
		return false
	}
	p, err := m.opt.Launcher.Adopt(g.PID, g.StartTime, func(e Exit) {
		m.post(func() { m.exited(g, e.Reason) })
	})
	if err != nil {
		m.opt.Log.Warn("generation did not survive", "generation", g.Number, "pid", g.PID, "error", err)
		return false
	}
	g.process = p
	return true
}

// rearm sets the deadline that g's state has.
func (m *Machine) rearm(g *generation) {
	switch {
	case g.state == restartv1.State_STATE_DRAINING:
		m.deadline(g, max(time.UnixMilli(g.DrainUntilUnixMS).Sub(m.opt.Now()), 0), func() { m.terminate(g) })
	case g.state == restartv1.State_STATE_SERVING:
		g.since = m.opt.Now()
	case g == m.incumbent, m.isCandidate(g):
		m.deadline(g, m.opt.Times.Ready, func() {
			m.kill(g, fmt.Sprintf("not serving within %s after restartd's restart", m.opt.Times.Ready))
		})
	case m.upgrade != nil && m.upgrade.involves(g): // in probation beside the new one
	default:
		m.kill(g, "restartd was restarted and nobody waits for it")
	}
}

// recoverUpgrade goes on with an upgrade that was past its commit decision and gives up any other.
func (m *Machine) recoverUpgrade(r *upgradeRecord) {
	if r == nil || m.gens[r.Candidate] == nil {
		return
	}
	u := &upgrade{
		candidate: m.gens[r.Candidate], old: m.gens[r.Old], from: r.From, binary: r.Binary, phase: r.Phase,
		started: time.UnixMilli(r.StartedUnixMS), probation: time.Duration(r.ProbationMS) * time.Millisecond,
		cancel: func() {}, last: "restartd was restarted and goes on",
		canary: r.CanaryPercent, canaryTime: time.Duration(r.CanaryMS) * time.Millisecond,
	}
	if u.old != nil && !u.old.live {
		u.old = nil
	}
	m.upgrade = u
	switch r.Phase {
	case phaseCanary, phaseCommit:
		m.recoverCanary(r)
	case phaseProbation:
		u.until = time.UnixMilli(r.ProbationUntilUnixMS)
		u.alarm = m.after(max(u.until.Sub(m.opt.Now()), 0), m.passed)
	case phaseRollback:
		if u.old == nil {
			m.finish(false, "restartd was restarted in the rollback")
			return
		}
		u.reason = fmt.Sprintf("generation %d ended in its probation: %s", u.candidate.Number, u.candidate.Message)
		m.deadline(u.old, m.opt.Times.Ready, func() { m.notResumed(u.old) })
	default:
		m.finish(false, "restartd was restarted before the commit")
		if u.candidate.live {
			u.candidate.Message = "restartd was restarted before the commit"
		}
	}
}

// recoverByProcess is recover without a ledger: the highest survivor serves, the others drain. What they say when they
// attach is believed.
func (m *Machine) recoverByProcess(found map[uint64]Survivor) {
	numbers := slices.Sorted(maps.Keys(found))
	for i, n := range numbers {
		g := &generation{record: record{Number: n, PID: found[n].PID, StartTime: found[n].StartTime, StartedUnixMS: m.opt.Now().UnixMilli()}, live: true}
		m.next = max(m.next, n+1)
		if !m.takeCharge(g) {
			continue
		}
		m.gens[n] = g
		if i == len(numbers)-1 {
			g.state = restartv1.State_STATE_SERVING
			g.since = m.opt.Now()
			m.incumbent = g
			continue
		}
		m.drain(g, m.shutdownTime())
	}
}

// endStray ends a process that runs one of our copies and that the ledger does not know: a candidate whose start was the
// last thing that a killed restartd did.
func (m *Machine) endStray(n uint64, s Survivor) {
	p, err := m.opt.Launcher.Adopt(s.PID, s.StartTime, func(Exit) {})
	if err != nil {
		return // gone already
	}
	m.opt.Log.Warn("process of an unknown generation ended", "generation", n, "pid", s.PID)
	if err := p.Signal(syscall.SIGKILL); err != nil {
		m.opt.Log.Error("not ended", "pid", s.PID, "error", err)
	}
}
