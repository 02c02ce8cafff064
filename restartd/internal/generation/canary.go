package generation

import (
	"fmt"
	"time"

	restartv1 "retinue.dev/services/api/restart/v1"
)

// A canary is the step of an upgrade in which both generations accept: the candidate from the second half of each TCP address's
// shards, to which a share of new connections is steered, the old one from the first. It ends by its time or by Decide, and the
// commit follows; or it fails as a probation does, or is aborted, and the old one takes all again. The order makes sure that every
// shard has somebody who accepts from it:
//
//	divide        more shards, nothing is steered to them
//	candidate     told to accept from the second half
//	old one       told to accept from the first half alone
//	share         the candidate's part is steered to it
//	commit        the candidate accepts from all, then the old one from none
//	or abort      nothing is steered to the second half, the old one accepts from all, then the candidate from none

// maxCanary is the longest time that a canary can be given.
const maxCanary = 7 * 24 * time.Hour

// checkCanary says why a canary cannot be, or "".
func (m *Machine) checkCanary(r *restartv1.UpgradeRequest) string {
	switch percent := r.GetCanaryPercent(); {
	case percent == 0:
		return ""
	case percent > 99:
		return fmt.Sprintf("a canary takes from 1 to 99 of a hundred new connections, not %d", percent)
	case r.GetCanaryMs() < 0 || r.GetCanaryMs() > maxCanary.Milliseconds():
		return "a canary takes from 0 to 168 hours, and 0 is until you decide"
	case m.incumbent == nil || !m.incumbent.live || m.incumbent.state != restartv1.State_STATE_SERVING:
		return "nothing serves that a canary could share with"
	case !m.incumbent.parts:
		return fmt.Sprintf("generation %d (%s) cannot share its listeners: upgrade without --canary", m.incumbent.Number, m.incumbent.Version)
	}
	return ""
}

// part is what g accepts from when it does.
func (m *Machine) part(g *generation) restartv1.Part {
	u := m.upgrade
	if u == nil || u.canary == 0 {
		return restartv1.Part_PART_ALL
	}
	switch {
	case g == u.candidate && u.phase == phaseCanary:
		return restartv1.Part_PART_SECOND_HALF
	case g == u.candidate && u.phase == phaseRollback:
		return g.part
	case g == u.old && g == m.incumbent && (u.phase == phaseCommit || u.phase == phaseCanary && (u.candidate.accepting || g.part == restartv1.Part_PART_FIRST_HALF)):
		return restartv1.Part_PART_FIRST_HALF
	}
	return restartv1.Part_PART_ALL
}

// beginCanary tells the candidate to accept its half.
func (m *Machine) beginCanary() {
	u := m.upgrade
	if !u.candidate.parts {
		m.kill(u.candidate, fmt.Sprintf("version %s cannot share listeners: upgrade to it without --canary", u.candidate.Version))
		return
	}
	if old := m.incumbent; !old.live || old.state != restartv1.State_STATE_SERVING {
		m.kill(u.candidate, "the generation that it should share with does not serve any more")
		return
	}
	if err := m.opt.Sockets.Divide(); err != nil {
		m.opt.Sockets.Open()
		m.kill(u.candidate, "its share of the sockets cannot be had: "+err.Error())
		return
	}
	u.old = m.incumbent
	m.enter(phaseCanary, fmt.Sprintf("generation %d is told to accept %d %% of new connections", u.candidate.Number, u.canary))
	m.deadline(u.candidate, m.opt.Times.Commit, func() { m.kill(u.candidate, fmt.Sprintf("did not accept its share within %s", m.opt.Times.Commit)) })
	m.progress(u.candidate)
}

// shared moves a canary on when both do what they shall.
func (m *Machine) shared() {
	u := m.upgrade
	if u == nil || u.phase != phaseCanary || u.sharing {
		return
	}
	if !u.candidate.accepting || u.candidate.part != restartv1.Part_PART_SECOND_HALF {
		return
	}
	m.steer(u.old)
	if !u.old.accepting || u.old.part != restartv1.Part_PART_FIRST_HALF {
		return
	}
	m.cancel(&u.candidate.alarm)
	u.sharing = true
	m.opt.Sockets.Share(u.canary)
	u.candidateFrom, u.oldFrom = rate{u.candidate.requests, u.candidate.errors}, rate{u.old.requests, u.old.errors}
	until := "until retinue upgrade --commit or --abort"
	if u.canaryTime > 0 && u.until.IsZero() {
		u.until = m.opt.Now().Add(u.canaryTime)
	}
	if !u.until.IsZero() {
		left := max(u.until.Sub(m.opt.Now()), 0)
		until = fmt.Sprintf("for %s", left.Round(time.Millisecond))
		u.alarm = m.after(left, func() { u.alarm = nil; m.endCanary() })
	}
	m.alive(u.candidate)
	m.enter(phaseCanary, fmt.Sprintf("generation %d accepts %d %% of new connections, generation %d the rest, %s", u.candidate.Number, u.canary, u.old.Number, until))
}

// endCanary goes on to the commit.
func (m *Machine) endCanary() {
	u := m.upgrade
	m.cancel(&u.alarm)
	u.until = time.Time{}
	m.beginCommit()
}

// abortCanary gives all new connections back to the old generation, which serves all the time.
func (m *Machine) abortCanary(reason string) {
	u := m.upgrade
	m.cancel(&u.alarm)
	m.cancel(&u.candidate.alarm)
	u.reason = reason
	m.opt.Sockets.Share(0)
	m.enter(phaseRollback, fmt.Sprintf("%s; generation %d takes all new connections again", reason, u.old.Number))
	old := u.old
	m.deadline(old, m.opt.Times.Commit, func() { m.notResumed(old) })
	m.progress(old)
}

// incumbentLost is told that the old generation ended while it shared, or was to take all back. Its binary is the one that is known
// to be good: it is started again and takes all; what waits in the shards meanwhile is not lost.
func (m *Machine) incumbentLost(old *generation) {
	u := m.upgrade
	reason := u.reason
	if reason == "" {
		reason = "the canary is given up"
	}
	if u.canary > 0 {
		m.opt.Sockets.Open()
	}
	m.finish(false, fmt.Sprintf("%s; generation %d ended too (%s), its binary is started again", reason, old.Number, old.Message))
	if u.candidate.live {
		m.drain(u.candidate, m.shutdownTime())
	}
	m.crashed(old)
}

// Decide ends the canary of the upgrade under way, or takes the upgrade back. The error is a *Refused when there is nothing to
// decide.
func (m *Machine) Decide(r *restartv1.DecideRequest) (*Follower, error) {
	f := &Follower{events: make(chan *restartv1.UpgradeEvent, 64), abort: r.GetAbort()}
	var refused error
	err := m.call(func() { refused = m.decide(r.GetAbort(), f) })
	if err == nil {
		err = refused
	}
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (m *Machine) decide(abort bool, f *Follower) error {
	u := m.upgrade
	switch {
	case u == nil:
		return &Refused{"no upgrade is under way"}
	case u.phase == phaseRollback:
		return &Refused{"the upgrade is taken back already: " + u.describe()}
	case !abort && (u.phase != phaseCanary || !u.sharing):
		return &Refused{"there is no canary to commit: " + u.describe()}
	case abort && u.phase == phaseProbation && u.old == nil:
		return &Refused{"the generation before has ended: retinue rollback generation starts its binary"}
	}
	u.followers = append(u.followers, f)
	const reason = "aborted on request"
	switch {
	case !abort:
		m.endCanary()
	case u.shares():
		m.abortCanary(reason)
	case u.phase == phaseProbation:
		m.takeBack(reason)
	default:
		m.kill(u.candidate, reason)
	}
	return nil
}

// shares tells that the old generation accepts a part only, or is about to.
func (u *upgrade) shares() bool {
	return u.canary > 0 && u.old != nil && (u.phase == phaseCanary || u.phase == phaseCommit)
}

// onTrial tells that the candidate takes connections and the old generation can have them back.
func (u *upgrade) onTrial() bool {
	return u.phase == phaseProbation || u.phase == phaseCanary && u.sharing
}

// shareOf is how many of a hundred new connections g takes as a canary.
func (m *Machine) shareOf(g *generation) uint32 {
	if u := m.upgrade; u != nil && u.phase == phaseCanary && u.sharing && g == u.candidate {
		return uint32(u.canary)
	}
	return 0
}

// recoverCanary goes on with a division that the restartd before made. Nothing is shared until both generations have said what they
// accept from by now.
func (m *Machine) recoverCanary(r *upgradeRecord) {
	if r.CanaryPercent == 0 {
		return
	}
	m.opt.Sockets.Share(0)
	if r.CanaryUntilUnixMS > 0 {
		m.upgrade.until = time.UnixMilli(r.CanaryUntilUnixMS)
	}
}
