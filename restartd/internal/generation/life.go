package generation

import (
	"fmt"
	"syscall"
	"time"

	restartv1 "retinue.dev/services/api/restart/v1"
)

// create adds a line to the table.
func (m *Machine) create() *generation {
	g := &generation{record: record{Number: m.next, StartedUnixMS: m.opt.Now().UnixMilli()}, live: true}
	g.state = restartv1.State_STATE_STARTING
	m.next++
	m.gens[g.Number] = g
	m.dirty = true
	return g
}

// startIncumbent starts a generation that shall serve as soon as it can: the binary of the incumbent before it when
// there was one, the installed one else.
func (m *Machine) startIncumbent() {
	m.cancel(&m.restart)
	if !m.configured || m.stopping {
		return // Configure starts it
	}
	before := m.incumbent
	if before != nil && m.depot.has(before.Number) {
		if err := m.depot.inherit(before.Number, m.next); err != nil {
			before.Message = fmt.Sprintf("cannot be started again: copy of its binary: %v", err)
			m.opt.Log.Error("generation not started", "error", before.Message)
			m.crashed(before)
			return
		}
		g := m.create()
		g.SHA256, g.Version, g.GitRevision, g.Restarts = before.SHA256, before.Version, before.GitRevision, before.Restarts+1
		m.incumbent = g
		m.launch(g)
		return
	}
	g := m.create()
	m.incumbent = g
	m.install(g, m.opt.Installed, func(err error) {
		switch {
		case err != nil:
			m.fail(g, "copy of the binary: "+err.Error())
		case m.stopping:
			m.fail(g, "restartd is stopping")
		default:
			m.launch(g)
		}
	})
}

// install copies the binary for g off the loop and comes back with then.
func (m *Machine) install(g *generation, source string, then func(error)) {
	g.installing = true
	m.opt.Go(func() {
		sum, err := m.depot.install(source, g.Number)
		m.post(func() {
			g.installing = false
			if !g.live {
				return // given up meanwhile
			}
			g.SHA256 = sum
			m.dirty = true
			then(err)
		})
	})
}

// launch starts g's own copy.
func (m *Machine) launch(g *generation) {
	if !m.anyAccepting() {
		m.opt.Sockets.Grow()
	} else {
		m.opt.Sockets.Widen()
	}
	if m.aside != "" {
		if err := m.depot.setAside(g.Number, m.aside); err != nil {
			m.fail(g, "the name of the snapshot that is set aside: "+err.Error())
			return
		}
	}
	if err := m.save(); err != nil { // the number is used up before there is a process
		m.fail(g, "ledger not written: "+err.Error())
		return
	}
	p, err := m.opt.Launcher.Start(Launch{g.Number, m.depot.path(g.Number)}, func(e Exit) {
		m.post(func() { m.exited(g, e.Reason) })
	})
	if err != nil {
		m.fail(g, "not started: "+err.Error())
		return
	}
	g.process = p
	m.dirty = true
	m.deadline(g, m.opt.Times.Ready, func() {
		m.kill(g, fmt.Sprintf("not ready within %s", m.opt.Times.Ready))
	})
	m.opt.Log.Info("generation started", "generation", g.Number, "pid", p.PID, "sha256", g.SHA256)
}

func (m *Machine) anyAccepting() bool {
	for _, g := range m.gens {
		if g.live && (g.state == restartv1.State_STATE_SERVING || g.accepting) {
			return true
		}
	}
	return false
}

// deadline sets the one alarm that g's state has.
func (m *Machine) deadline(g *generation, d time.Duration, ring func()) {
	m.cancel(&g.alarm)
	g.alarm = m.after(d, func() { g.alarm = nil; ring() })
}

func (m *Machine) setState(g *generation, s restartv1.State) {
	if g.state != s {
		m.opt.Log.Info("generation "+nameOf(s), "generation", g.Number, "pid", g.process.PID, "was", nameOf(g.state))
		g.state = s
		m.dirty = true
	}
}

// fail ends a generation that has no process.
func (m *Machine) fail(g *generation, why string) {
	g.Message = why
	m.exited(g, why)
}

// kill ends a process at once; exited does the rest.
func (m *Machine) kill(g *generation, why string) {
	if !g.live {
		return
	}
	if g.Message == "" {
		g.Message = why
	}
	if g.process.Signal == nil {
		m.exited(g, why)
		return
	}
	m.opt.Log.Warn("generation killed", "generation", g.Number, "pid", g.process.PID, "reason", why)
	m.signal(g, syscall.SIGKILL)
}

// exited is the one place where a generation ends.
func (m *Machine) exited(g *generation, reason string) {
	if !g.live {
		return
	}
	g.live = false
	m.dirty = true
	m.cancel(&g.alarm)
	m.cancel(&g.watch)
	if g.session != nil {
		g.session.end()
		g.session = nil
	}
	was := g.state
	g.accepting, g.connections, g.streams = false, 0, 0
	if g.Message == "" && (!g.terminating || was != restartv1.State_STATE_DRAINING) {
		g.Message = reason
	}
	if was == restartv1.State_STATE_DRAINING {
		m.setState(g, restartv1.State_STATE_GONE)
	} else {
		m.setState(g, restartv1.State_STATE_FAILED)
		m.opt.Log.Error("generation ended", "generation", g.Number, "pid", g.process.PID, "was", nameOf(was), "reason", g.Message)
	}
	g.process.Signal = nil
	if g.onGone != nil {
		g.onGone()
	}
	switch {
	case m.upgrade != nil && m.upgrade.involves(g):
		m.upgradeLost(g)
	case g == m.incumbent:
		m.crashed(g)
	}
	m.forget()
}

// crashed starts the incumbent's binary again: at once the first time, then with growing pauses.
func (m *Machine) crashed(g *generation) {
	if m.stopping || !m.configured {
		return
	}
	if !g.since.IsZero() && m.opt.Now().Sub(g.since) >= m.opt.Times.Healthy {
		m.crashes = 0
	}
	m.countLoop(g)
	pause := time.Duration(0)
	if m.crashes > 0 {
		pause = min(m.opt.Times.BackOff<<min(m.crashes-1, 20), m.opt.Times.BackOffTo)
	}
	m.crashes++
	if pause == 0 {
		m.startIncumbent()
		return
	}
	m.cancel(&m.restart)
	m.restart = m.after(pause, m.startIncumbent)
}

// loopLimit is how many crashes in a row set a snapshot aside.
const loopLimit = 4

// countLoop sets a snapshot aside under which generations crash in a row, each before it was healthy.
func (m *Machine) countLoop(g *generation) {
	if m.crashes == 0 || m.looping != m.settings.Snapshot {
		m.looping, m.loops = m.settings.Snapshot, 0
	}
	if m.loops++; m.loops < loopLimit || m.looping == "" || m.aside != "" {
		return
	}
	m.aside, m.dirty = m.looping, true
	m.opt.Log.Error("the snapshot is set aside: generations crash under it; the one before it is served from now on",
		"snapshot", m.aside, "crashes", m.loops, "last", g.Message)
}

// attached is called when g's stream is up, the first time or again. hello says what it does.
func (m *Machine) attached(g *generation, hello *restartv1.AttachHello) {
	if v := hello.GetHello(); v.GetVersion() != "" && (v.GetVersion() != g.Version || v.GetGitRevision() != g.GitRevision) {
		g.Version, g.GitRevision = v.GetVersion(), v.GetGitRevision()
		m.dirty = true
	}
	g.heartbeats = hello.GetHeartbeats()
	m.alive(g)
	g.parts, g.part = hello.GetParts(), hello.GetPart()
	g.accepting, g.draining, g.successor = hello.GetAccepting(), hello.GetDraining(), hello.GetSuccessor()
	if g.state == restartv1.State_STATE_STARTING {
		m.setState(g, restartv1.State_STATE_WARMING)
		if m.isCandidate(g) {
			m.enter(phaseWarm, fmt.Sprintf("generation %d builds its snapshot", g.Number))
		}
	}
	m.progress(g)
}

// ready is Ready.
func (m *Machine) ready(g *generation, snapshot string) {
	g.SnapshotID = snapshot
	m.dirty = true
	if g.state != restartv1.State_STATE_STARTING && g.state != restartv1.State_STATE_WARMING {
		return
	}
	m.cancel(&g.alarm)
	m.setState(g, restartv1.State_STATE_READY)
	switch {
	case m.isCandidate(g):
		m.enter(phaseReady, fmt.Sprintf("generation %d could serve snapshot %.12s", g.Number, snapshot))
		if m.upgrade.canary > 0 {
			m.beginCanary()
		} else {
			m.beginCommit()
		}
	case g == m.incumbent:
		m.deadline(g, m.opt.Times.Commit, func() { m.kill(g, fmt.Sprintf("did not accept within %s", m.opt.Times.Commit)) })
		m.progress(g)
	default:
		m.kill(g, "nobody waits for it any more")
	}
}

// report is Report.
func (m *Machine) report(g *generation, r *restartv1.Report) {
	g.accepting, g.draining, g.part = r.GetAccepting(), r.GetDraining(), r.GetPart()
	g.connections, g.streams, g.cut = r.GetConnections(), r.GetStreams(), r.GetConnectionsCut()
	g.moved, g.taken = r.GetConnectionsMoved(), r.GetConnectionsTaken()
	if what := r.GetCutWhat(); what != "" && g.Message == "" && g.state == restartv1.State_STATE_DRAINING {
		g.cutWhat = ": " + what
		g.Message, m.dirty = fmt.Sprintf("cut %d connections at the end of its time: %s", g.cut, what), true
	}
	g.requests, g.errors = r.GetRequests(), r.GetOwnErrors()
	if time.Duration(r.GetStalledMs())*time.Millisecond < m.opt.Times.Stalled {
		m.alive(g)
	}
	m.compare(g)
	if e := r.GetError(); e != "" {
		m.opt.Log.Warn("generation could not obey", "generation", g.Number, "command", r.GetCommandId(), "error", e)
	}
	if g.state == restartv1.State_STATE_DRAINING && g.draining && g.connections == 0 && g.streams == 0 && !g.terminating {
		m.terminate(g)
		return
	}
	m.progress(g)
}

// progress moves g on when what it does is what its state waited for, and steers it when it is not.
func (m *Machine) progress(g *generation) {
	if g == m.incumbent && g.state == restartv1.State_STATE_READY && g.accepting {
		m.cancel(&g.alarm)
		g.since = m.opt.Now()
		m.setState(g, restartv1.State_STATE_SERVING)
		if m.upgrade != nil {
			m.upgradeResumed(g)
		}
	}
	if u := m.upgrade; u != nil && u.phase == phaseRollback && g == u.old && g.state == restartv1.State_STATE_SERVING && g.accepting && g.part == m.part(g) {
		m.upgradeResumed(g) // after a canary it served all the time
	}
	if m.isCandidate(g) && m.upgrade.phase == phaseCommit && g.accepting && g.part == restartv1.Part_PART_ALL {
		m.committed()
	}
	m.shared()
	m.steer(g)
}

// steer sends the command that is missing between what g does and what it shall do, once a stream.
func (m *Machine) steer(g *generation) {
	if g.session == nil {
		return
	}
	switch {
	case g.terminating:
		m.command(g, "terminate", &restartv1.Command{What: &restartv1.Command_Terminate{Terminate: &restartv1.Terminate{}}})
	case g.state == restartv1.State_STATE_DRAINING && (!g.draining || g.successor != m.successor(g)):
		left := max(time.UnixMilli(g.DrainUntilUnixMS).Sub(m.opt.Now()), 0)
		cause, how := "upgrade", m.settings.Upgrade
		if m.stopping {
			cause, how = "shutdown", m.settings.Stop
			how.Immediate = how.Immediate || how.Limit == 0
		}
		to := m.successor(g)
		g.successor = to
		m.command(g, fmt.Sprintf("drain for %s to %d", cause, to), &restartv1.Command{What: &restartv1.Command_Drain{Drain: &restartv1.Drain{
			Cause: cause, ShutdownTimeMs: left.Milliseconds(), Immediate: how.Immediate || g.immediate, DrainTimeMs: how.Over.Milliseconds(), Successor: to,
		}}})
	case m.shallAccept(g) && (!g.accepting || g.parts && g.part != m.part(g)):
		part := m.part(g)
		m.command(g, fmt.Sprintf("serve %s", part), &restartv1.Command{What: &restartv1.Command_Serve{Serve: &restartv1.Serve{Part: part}}})
	case m.upgrade != nil && g == m.upgrade.old && g != m.incumbent && g.state == restartv1.State_STATE_READY && g.accepting:
		m.command(g, "stop accepting", &restartv1.Command{What: &restartv1.Command_StopAccepting{StopAccepting: &restartv1.StopAccepting{}}})
	}
}

// successor is the generation that takes g's live connections: the one that serves, or in a probation the one that would serve
// again, so that a rollback has nothing to bring back. Where nobody serves just now, it stays who it was.
func (m *Machine) successor(g *generation) uint64 {
	to := m.incumbent
	if u := m.upgrade; u != nil && u.phase == phaseProbation && u.old != nil && u.old != g {
		to = u.old
	}
	switch {
	case m.stopping:
		return 0
	case to != nil && to != g && to.live && to.session != nil && (to.state == restartv1.State_STATE_SERVING || to.state == restartv1.State_STATE_READY):
		return to.Number
	}
	return g.successor
}

// redirect tells generations that drain where their connections go by now.
func (m *Machine) redirect() {
	for _, g := range m.gens {
		if g.live && g.state == restartv1.State_STATE_DRAINING {
			m.steer(g)
		}
	}
}

func (m *Machine) shallAccept(g *generation) bool {
	switch g.state {
	case restartv1.State_STATE_SERVING:
		return true
	case restartv1.State_STATE_READY:
		return g == m.incumbent || (m.isCandidate(g) && (m.upgrade.phase == phaseCommit || m.upgrade.phase == phaseCanary))
	default:
		return false
	}
}

// command sends c unless it was the last thing that was said. The ledger is written first: whoever finds the generation
// obeying must find out why.
func (m *Machine) command(g *generation, what string, c *restartv1.Command) {
	if g.session.told == what {
		return
	}
	if m.dirty {
		if err := m.save(); err != nil {
			m.opt.Log.Error("ledger not written", "error", err)
		}
	}
	m.commands++
	c.Id = m.commands
	g.session.told = what
	g.session.send(c)
}

// drain tells g to finish what it has and sees to it that it ends.
func (m *Machine) drain(g *generation, limit time.Duration) {
	g.DrainUntilUnixMS = m.opt.Now().Add(limit).UnixMilli()
	m.setState(g, restartv1.State_STATE_DRAINING)
	m.dirty = true
	g.draining = false // one that drains already is told the new limit
	m.deadline(g, limit, func() { m.terminate(g) })
	m.steer(g)
}

// terminate ends a draining generation: it is asked, and killed when it does not go.
func (m *Machine) terminate(g *generation) {
	if !g.live {
		return
	}
	g.terminating = true
	m.deadline(g, m.opt.Times.Kill, func() {
		m.kill(g, fmt.Sprintf("still there %s after Terminate, killed", m.opt.Times.Kill))
	})
	if g.session == nil {
		m.signal(g, syscall.SIGTERM)
		return
	}
	m.steer(g)
}

// Stop ends every generation: what serves drains for as long as the settings say of a stop, or else limit, what never served is ended
// at once. A patient stop gives it the time of an upgrade. Run returns when all are gone.
func (m *Machine) Stop(limit time.Duration, patient bool) {
	m.post(func() {
		if m.stopping {
			return
		}
		m.stopping = true
		m.dirty = true
		switch {
		case patient:
			limit = m.shutdownTime()
		case m.settings.Stop.Limit > 0:
			limit = m.settings.Stop.Limit
		default:
			limit = min(limit, m.shutdownTime())
		}
		m.cancel(&m.restart)
		if m.upgrade != nil {
			m.finish(false, "restartd is stopping")
		}
		for _, g := range m.gens {
			switch {
			case !g.live:
			case g.installing, g.process.Signal == nil:
				m.fail(g, "restartd is stopping")
			case g.state == restartv1.State_STATE_STARTING || g.state == restartv1.State_STATE_WARMING:
				m.setState(g, restartv1.State_STATE_DRAINING)
				m.terminate(g)
			default:
				m.drain(g, limit)
				if g.session == nil {
					m.terminate(g) // nobody to tell; TERM drains too
				}
			}
		}
	})
}

func (m *Machine) shutdownTime() time.Duration {
	if m.settings.Upgrade.Limit <= 0 {
		return 15 * time.Minute
	}
	return m.settings.Upgrade.Limit
}
