package generation

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"retinue.dev/libs/preflight"
	restartv1 "retinue.dev/services/api/restart/v1"
)

// The phases of an upgrade are the steps of restart/v1 UpgradeEvent, and rollback.
const (
	phasePreflight = "preflight"
	phaseStart     = "start"
	phaseWarm      = "warm"
	phaseReady     = "ready"
	phaseCanary    = "canary"
	phaseCommit    = "commit"
	phaseProbation = "probation"
	phaseRollback  = "rollback"
	phaseDrain     = "drain"
	phaseEnd       = "end"
)

// keptHistory is how many upgrades Status remembers.
const keptHistory = 20

// upgrade is the one under way. The loop owns it.
type upgrade struct {
	candidate *generation
	old       *generation // from the canary, or the commit: what takes over again; nil when nothing served
	from      uint64      // number of the incumbent at the start, for people
	binary    string
	phase     string
	started   time.Time
	probation time.Duration
	until     time.Time // of the probation, or the canary; zero: a canary has no end of its own
	reason    string    // of the rollback
	immediate bool      // the old one drains without waiting for chance

	canary     int           // of a hundred new connections; 0: none
	canaryTime time.Duration // 0: until somebody decides
	sharing    bool          // both generations accept their part

	candidateFrom, oldFrom rate   // when the candidate began to accept
	alarm                  *alarm // end of the probation, or the canary
	cancel                 context.CancelFunc
	followers              []*Follower
	last                   string
}

// Follower receives the events of an upgrade; the last one has Done set, then the channel is closed.
type Follower struct {
	events chan *restartv1.UpgradeEvent
	wait   bool // until the old generation is gone
	abort  bool // the end that is hoped for is the failure of the upgrade
}

// Events yields what happens.
func (f *Follower) Events() <-chan *restartv1.UpgradeEvent { return f.events }

func (u *upgrade) involves(g *generation) bool { return g == u.candidate || g == u.old }

func (u *upgrade) describe() string {
	return fmt.Sprintf("upgrade from generation %d to %d, %s: %s", u.from, u.candidate.Number, u.phase, u.last)
}

func (u *upgrade) record() *upgradeRecord {
	r := &upgradeRecord{
		Candidate: u.candidate.Number, From: u.from, Binary: u.binary, Phase: u.phase,
		StartedUnixMS: u.started.UnixMilli(), ProbationMS: u.probation.Milliseconds(),
		CanaryPercent: u.canary, CanaryMS: u.canaryTime.Milliseconds(),
	}
	if u.old != nil {
		r.Old = u.old.Number
	}
	if u.phase == phaseProbation {
		r.ProbationUntilUnixMS = u.until.UnixMilli()
	}
	if u.phase == phaseCanary && !u.until.IsZero() {
		r.CanaryUntilUnixMS = u.until.UnixMilli()
	}
	return r
}

func (m *Machine) isCandidate(g *generation) bool {
	return m.upgrade != nil && m.upgrade.candidate == g
}

// Upgrade begins an upgrade to the binary at r.Binary, the installed one when empty. The follower may be dropped at any
// time (Unfollow); the upgrade goes on. The error is a *Refused when there is one under way or it cannot begin.
func (m *Machine) Upgrade(r *restartv1.UpgradeRequest) (*Follower, error) {
	f := &Follower{events: make(chan *restartv1.UpgradeEvent, 64), wait: r.GetWaitDrained()}
	var refused error
	err := m.call(func() { refused = m.beginUpgrade(r, f) })
	if err == nil {
		err = refused
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

// Unfollow lets go of f.
func (m *Machine) Unfollow(f *Follower) {
	m.post(func() {
		if m.upgrade != nil {
			m.upgrade.followers = slices.DeleteFunc(m.upgrade.followers, func(o *Follower) bool { return o == f })
		}
	})
}

func (m *Machine) beginUpgrade(r *restartv1.UpgradeRequest, f *Follower) error {
	binary := r.GetBinary()
	if binary == "" {
		binary = m.opt.Installed
	}
	if r.GetPrevious() {
		if m.previous == 0 || !m.depot.has(m.previous) {
			return &Refused{"there is no generation to return to: the binary of the one before is not kept; name one with retinue upgrade --binary"}
		}
		binary = m.depot.path(m.previous)
	}
	switch {
	case m.stopping:
		return &Refused{"restartd is stopping"}
	case m.upgrade != nil:
		return &Refused{"an upgrade is under way already: " + m.upgrade.describe()}
	case m.countLive() >= maxLive:
		return &Refused{m.tooMany()}
	case !m.configured:
		return &Refused{"there is no snapshot yet: restartd waits for configd, an upgrade can follow"}
	case !filepath.IsAbs(binary):
		return &Refused{fmt.Sprintf("%q is no absolute path", binary)}
	case r.GetProbationMs() < 0 || r.GetProbationMs() > (24*time.Hour).Milliseconds():
		return &Refused{"a probation takes from 0 to 24 hours"}
	}
	if why := m.checkCanary(r); why != "" {
		return &Refused{why}
	}
	u := &upgrade{binary: binary, started: m.opt.Now(), probation: m.settings.Probation, immediate: r.GetImmediate(), cancel: func() {}, followers: []*Follower{f}}
	u.canary, u.canaryTime = int(r.GetCanaryPercent()), time.Duration(r.GetCanaryMs())*time.Millisecond
	if r.ProbationMs != nil {
		u.probation = time.Duration(r.GetProbationMs()) * time.Millisecond
	}
	if m.incumbent != nil {
		u.from = m.incumbent.Number
	}
	u.candidate = m.create()
	m.upgrade = u
	m.enter(phasePreflight, "checking "+binary)
	m.install(u.candidate, binary, func(err error) {
		if err != nil {
			m.fail(u.candidate, "copy of the binary: "+err.Error())
			return
		}
		m.preflight(u)
	})
	return nil
}

// maxLive is how many generations there are at most, the candidate included.
const maxLive = 4

func (m *Machine) countLive() (n int) {
	for _, g := range m.gens {
		if g.live {
			n++
		}
	}
	return n
}

// tooMany says which generations are in the way, and until when.
func (m *Machine) tooMany() string {
	text := fmt.Sprintf("%d generations live already:", maxLive)
	for _, n := range slices.Sorted(maps.Keys(m.gens)) {
		if g := m.gens[n]; g.live && g.state == restartv1.State_STATE_DRAINING {
			left := time.UnixMilli(g.DrainUntilUnixMS).Sub(m.opt.Now()).Round(time.Second)
			text += fmt.Sprintf(" generation %d drains %d connections for %s at most,", n, g.connections, max(left, 0))
		}
	}
	return text[:len(text)-1] + "; wait for one to leave, or let them drain for a shorter time by runtime.shutdown_time"
}

// contracts are those that a candidate must speak to live here.
func contracts() *preflight.Report { return preflight.New("proxyd", "", "restart/v1") }

func (m *Machine) preflight(u *upgrade) {
	ctx, cancel := context.WithTimeout(context.Background(), m.opt.Times.Preflight)
	u.cancel = cancel
	m.opt.Go(func() {
		defer cancel()
		r, err := m.opt.Launcher.Preflight(ctx, m.depot.path(u.candidate.Number))
		if err == nil {
			err = r.Check(contracts())
		}
		m.post(func() {
			switch {
			case !u.candidate.live: // stopped meanwhile
			case err != nil:
				m.fail(u.candidate, err.Error())
			default:
				u.candidate.Version, u.candidate.GitRevision = r.Version, r.GitRevision
				how := ""
				if r.Sandbox != "" {
					how = ", " + r.Sandbox
				}
				m.enter(phaseStart, fmt.Sprintf("version %s, snapshot %.12s loads%s", r.Version, r.SnapshotID, how))
				m.launch(u.candidate)
			}
		})
	})
}

// enter moves the upgrade to a phase and tells everybody who follows.
func (m *Machine) enter(phase, message string) {
	m.upgrade.phase = phase
	m.dirty = true
	m.tell(phase, message)
}

func (m *Machine) tell(step, message string) {
	u := m.upgrade
	u.last = message
	m.opt.Log.Info("upgrade: "+message, "step", step, "generation", u.candidate.Number, "elapsed", m.opt.Now().Sub(u.started).Round(time.Millisecond).String())
	for _, f := range u.followers {
		f.send(u.event(m.opt.Now(), step, message))
	}
}

func (u *upgrade) event(now time.Time, step, message string) *restartv1.UpgradeEvent {
	return &restartv1.UpgradeEvent{
		Step: step, Message: message, ElapsedMs: now.Sub(u.started).Milliseconds(), Generation: u.candidate.Number,
	}
}

// send never waits: an upgrade has some ten events, and a channel that is full has no reader.
func (f *Follower) send(e *restartv1.UpgradeEvent) {
	select {
	case f.events <- e:
	default:
	}
}

// beginCommit tells the candidate to serve. The old one goes on accepting until it does.
func (m *Machine) beginCommit() {
	u := m.upgrade
	m.enter(phaseCommit, fmt.Sprintf("generation %d is told to accept", u.candidate.Number))
	m.deadline(u.candidate, m.opt.Times.Commit, func() {
		m.kill(u.candidate, fmt.Sprintf("did not accept within %s", m.opt.Times.Commit))
	})
	m.progress(u.candidate)
}

// committed: the candidate accepts, so it is the incumbent.
func (m *Machine) committed() {
	u, before := m.upgrade, m.incumbent
	m.cancel(&u.candidate.alarm)
	m.cancel(&m.restart)
	m.incumbent = u.candidate
	m.crashes = 0
	u.candidate.since = m.opt.Now()
	m.setState(u.candidate, restartv1.State_STATE_SERVING)
	if u.canary > 0 {
		m.opt.Sockets.Open() // it accepts from all, and the old one would when it is told to serve again
	}
	u.old = nil
	if before != nil {
		m.previous = before.Number
		if before.live && before.state == restartv1.State_STATE_SERVING {
			u.old = before
		}
	}
	u.candidateFrom = rate{u.candidate.requests, u.candidate.errors}
	if u.old != nil {
		u.oldFrom = rate{u.old.requests, u.old.errors}
	}
	u.until = m.opt.Now().Add(u.probation)
	message := fmt.Sprintf("generation %d accepts; nothing served before it", u.candidate.Number)
	if u.old != nil {
		m.setState(u.old, restartv1.State_STATE_READY)
		message = fmt.Sprintf("generation %d accepts, generation %d stops accepting and can take over again for %s", u.candidate.Number, u.old.Number, u.probation)
		m.steer(u.old)
	} else if before != nil && before.live {
		m.kill(before, "an upgrade took its place before it served")
	}
	m.enter(phaseProbation, message)
	m.alive(u.candidate)
	u.alarm = m.after(u.probation, m.passed)
	if u.probation == 0 {
		m.cancel(&u.alarm)
		m.passed()
	}
}

// passed: the candidate outlived its probation.
func (m *Machine) passed() {
	u := m.upgrade
	u.alarm = nil
	m.opt.Sockets.Open()
	if u.old == nil {
		m.finish(true, fmt.Sprintf("generation %d serves", u.candidate.Number))
		return
	}
	limit := m.shutdownTime()
	u.old.immediate = u.immediate
	m.drain(u.old, limit)
	m.finish(true, fmt.Sprintf("generation %d serves; generation %d drains for %s at most", u.candidate.Number, u.old.Number, limit))
}

// upgradeLost is told that a generation of the upgrade ended.
func (m *Machine) upgradeLost(g *generation) {
	u := m.upgrade
	switch {
	case g == u.candidate && u.shares():
		m.abortCanary(fmt.Sprintf("generation %d ended as a canary: %s", g.Number, g.Message))
	case g == u.old && u.shares():
		m.incumbentLost(g)
	case g == u.candidate && u.phase == phaseProbation:
		m.rollBack()
	case g == u.candidate && u.phase == phaseRollback: // taken back already
	case g == u.candidate:
		m.finish(false, fmt.Sprintf("generation %d: %s", g.Number, g.Message))
	case u.phase == phaseProbation:
		u.old = nil
		m.tell(phaseProbation, fmt.Sprintf("generation %d ended (%s): only its binary can be returned to", g.Number, g.Message))
	default:
		m.incumbentLost(g)
	}
}

// rollBack gives the traffic back to the old generation, or to its binary.
func (m *Machine) rollBack() {
	u := m.upgrade
	m.cancel(&u.alarm)
	u.reason = fmt.Sprintf("generation %d ended in its probation: %s", u.candidate.Number, u.candidate.Message)
	if old := u.old; old != nil {
		m.incumbent = old
		m.previous = 0
		m.enter(phaseRollback, fmt.Sprintf("%s; generation %d is told to accept again", u.reason, old.Number))
		m.deadline(old, m.opt.Times.Commit, func() { m.notResumed(old) })
		m.progress(old)
		return
	}
	if before := m.gens[m.previous]; before != nil && m.depot.has(before.Number) {
		m.incumbent = before
		m.finish(false, fmt.Sprintf("%s; the binary of generation %d is started again", u.reason, before.Number))
	} else {
		m.finish(false, u.reason+"; there is no binary to return to, it is started again")
	}
	m.startIncumbent()
}

// notResumed: the old generation lives and does not accept. Its connections stay with it, its binary starts again.
func (m *Machine) notResumed(old *generation) {
	u := m.upgrade
	m.finish(false, fmt.Sprintf("%s; generation %d did not accept again within %s, its binary is started again", u.reason, old.Number, m.opt.Times.Commit))
	m.drain(old, m.shutdownTime())
	if u.canary > 0 {
		m.opt.Sockets.Open()
	}
	if u.candidate.live && u.candidate.state != restartv1.State_STATE_DRAINING {
		m.drain(u.candidate, m.shutdownTime())
	}
	m.startIncumbent()
}

// upgradeResumed is told that the incumbent serves.
func (m *Machine) upgradeResumed(g *generation) {
	if u := m.upgrade; u.phase == phaseRollback && g == u.old {
		m.cancel(&g.alarm)
		if u.canary > 0 {
			m.opt.Sockets.Open()
		}
		if u.candidate.live {
			m.drain(u.candidate, m.shutdownTime())
		}
		m.finish(false, fmt.Sprintf("%s; generation %d serves again", u.reason, g.Number))
	}
}

// finish ends the upgrade: history, and the last event to who follows.
func (m *Machine) finish(ok bool, message string) {
	u := m.upgrade
	m.upgrade = nil
	m.dirty = true
	m.cancel(&u.alarm)
	u.cancel()
	now := m.opt.Now()
	step, outcome := u.phase, "failed at "+u.phase
	if ok {
		step, outcome = phaseDrain, "done"
	}
	m.opt.Log.Info("upgrade: "+message, "step", step, "generation", u.candidate.Number, "ok", ok, "elapsed", now.Sub(u.started).Round(time.Millisecond).String())
	line := fmt.Sprintf("%s  generation %d to %d (%s): %s after %s: %s", u.started.UTC().Format(time.RFC3339),
		u.from, u.candidate.Number, u.candidate.Version, outcome, now.Sub(u.started).Round(time.Millisecond), message)
	m.history = slices.Insert(m.history, 0, line)
	m.history = m.history[:min(len(m.history), keptHistory)]

	old := u.old
	var waiting []*Follower
	for _, f := range u.followers {
		e := u.event(now, step, message)
		if ok && f.wait && old != nil && old.live {
			f.send(e)
			waiting = append(waiting, f)
			continue
		}
		e.Done, e.Ok = true, ok != f.abort
		f.send(e)
		close(f.events)
	}
	if waiting == nil {
		return
	}
	old.onGone = func() {
		for _, f := range waiting {
			e := u.event(m.opt.Now(), phaseEnd, fmt.Sprintf("generation %d left, %d connections moved, %d cut%s", old.Number, old.moved, old.cut, old.cutWhat))
			e.Done, e.Ok = true, true
			f.send(e)
			close(f.events)
		}
	}
}
