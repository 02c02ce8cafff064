// Package publish owns the delivery of snapshots: it offers one to every watching daemon in two phases, so that it is
// applied by all or by none, and brings a daemon that joins later to the snapshot in force.
package publish

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/snapshot"
)

// Times of the exchange with one watcher.
const (
	answerTime = 10 * time.Second // for Prepared and for Applied
	retryFirst = time.Second      // a watcher that refused the running snapshot is offered it again
	retryLast  = 30 * time.Second
)

// The order of an application. Addresses are bound (restartd) before anything is built on them (proxyd). At commit
// proxyd goes first: it accepts on new sockets and leaves removed ones, and only then restartd closes those.
var (
	prepareOrder = []configv1.Role{configv1.Role_ROLE_RESTARTD, configv1.Role_ROLE_STATSD, configv1.Role_ROLE_PROXYD}
	commitOrder  = []configv1.Role{configv1.Role_ROLE_PROXYD, configv1.Role_ROLE_STATSD, configv1.Role_ROLE_RESTARTD}
)

// Problem is why a snapshot was not applied, or not by everybody. Kind, Name and Field point into the snapshot; they
// are empty when the daemon itself is the matter.
type Problem struct {
	Code              diag.Code
	Kind, Name, Field string
	Daemon            string
	Message           string
}

// Publisher holds the snapshot in force and the watchers. Its methods may be called from any goroutine; applications
// and joins take turns.
type Publisher struct {
	log   *slog.Logger
	after func(time.Duration) <-chan time.Time
	now   func() time.Time
	// saved is called with each snapshot that has proved itself: before its commit, or when a first proxyd runs it.
	saved func(s *snapshot.Snapshot, parent string)

	turn chan struct{} // holds one token: the right to exchange with watchers

	mu        sync.Mutex
	watchers  []*watcher // in the order of their joining
	current   *snapshot.Snapshot
	parent    string
	appliedAt time.Time
	kept      string // id of the last snapshot given to saved
}

// New returns a publisher without a snapshot: watchers wait until Begin or Apply gives it one.
func New(log *slog.Logger, saved func(s *snapshot.Snapshot, parent string)) *Publisher {
	p := &Publisher{log: log, after: time.After, now: time.Now, saved: saved, turn: make(chan struct{}, 1)}
	p.turn <- struct{}{}
	return p
}

// Begin sets the snapshot that joining watchers are given, without asking anybody. kept tells that it is on disk.
func (p *Publisher) Begin(s *snapshot.Snapshot, parent string, kept bool) {
	p.mu.Lock()
	p.current, p.parent, p.appliedAt = s, parent, p.now()
	if kept {
		p.kept = s.ID
	}
	watchers := slices.Clone(p.watchers)
	p.mu.Unlock()
	for _, w := range watchers {
		w.nudge()
	}
}

// Renew gives the snapshot in force other secrets and has them delivered to those that run it.
func (p *Publisher) Renew(secrets *configv1.Secrets) {
	p.mu.Lock()
	if p.current != nil {
		p.current = p.current.With(secrets)
	}
	watchers := slices.Clone(p.watchers)
	p.mu.Unlock()
	for _, w := range watchers {
		w.nudge()
	}
}

// Current returns the snapshot in force, the time since when, and its parent's id.
func (p *Publisher) Current() (s *snapshot.Snapshot, since time.Time, parent string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.current, p.appliedAt, p.parent
}

// Apply offers s to everybody and puts it in force when nobody objects. ok tells whether it is in force; problems may
// exist in both cases.
func (p *Publisher) Apply(ctx context.Context, s *snapshot.Snapshot) (problems []Problem, ok bool) {
	if !p.begin(ctx) {
		return []Problem{{Code: diag.NoAnswer, Daemon: "configd", Message: "configd is busy with another snapshot and the caller went away."}}, false
	}
	defer p.end()
	p.mu.Lock()
	parent := ""
	if p.current != nil {
		parent = p.current.ID
	}
	all := slices.Clone(p.watchers)
	p.mu.Unlock()

	var offered []*watcher
	for _, role := range prepareOrder {
		group := ofRole(all, role)
		outcomes := inParallel(group, func(w *watcher) outcome { return p.prepare(w, s, parent) })
		lost := 0
		for i, w := range group {
			switch o := outcomes[i]; o.kind {
			case answered:
				offered = append(offered, w)
			case gone:
				lost++
			default:
				offered = append(offered, w)
				problems = append(problems, o.problems...)
			}
		}
		if role == configv1.Role_ROLE_PROXYD && lost > 0 && lost == len(group) {
			// Perhaps it was the snapshot that ended it: then it must not come into force.
			problems = append(problems, Problem{Code: diag.WentAway, Daemon: group[0].title(), Message: "proxyd ended while it was preparing the snapshot, and there is no other. Its log says why."})
		}
		if len(problems) > 0 {
			for _, w := range slices.Backward(offered) {
				w.send(&configv1.WatchResponse{Message: &configv1.WatchResponse_Abort{Abort: &configv1.Abort{SnapshotId: s.ID, Reason: problems[0].Message}}})
			}
			p.closeSilent(offered)
			return problems, false
		}
	}

	p.keep(s, parent)
	p.mu.Lock()
	p.current, p.parent, p.appliedAt = s, parent, p.now()
	p.mu.Unlock()
	for _, role := range commitOrder {
		outcomes := inParallel(ofRole(offered, role), func(w *watcher) outcome { return p.commit(w, s) })
		confirmed := slices.ContainsFunc(outcomes, func(o outcome) bool { return o.kind == answered })
		for _, o := range outcomes {
			if role == configv1.Role_ROLE_PROXYD && o.kind == gone && confirmed {
				continue // a generation that had drained has left; another one serves by the snapshot
			}
			problems = append(problems, o.problems...)
		}
	}
	p.closeSilent(offered)
	return problems, true
}

// Converge offers the snapshot in force to the watchers that do not run it, and says what they object to.
func (p *Publisher) Converge(ctx context.Context) []Problem {
	if !p.begin(ctx) {
		return nil
	}
	defer p.end()
	var problems []Problem
	p.mu.Lock()
	all := slices.Clone(p.watchers)
	p.mu.Unlock()
	for _, role := range prepareOrder {
		for _, w := range ofRole(all, role) {
			problems = append(problems, p.bring(w)...)
		}
	}
	return problems
}

// bring gives one watcher the snapshot in force. The turn is held.
func (p *Publisher) bring(w *watcher) []Problem {
	s, _, parent := p.Current()
	if s == nil {
		return nil
	}
	if w.appliedID() == s.ID {
		if w.role == configv1.Role_ROLE_PROXYD && s.Secrets != nil && w.secrets != s.Secrets {
			w.secrets = s.Secrets
			w.send(&configv1.WatchResponse{Message: &configv1.WatchResponse_Secrets{Secrets: s.Secrets}})
		}
		return nil
	}
	o := p.prepare(w, s, parent)
	if o.kind == answered {
		o = p.commit(w, s)
	} else if o.kind != gone {
		w.send(&configv1.WatchResponse{Message: &configv1.WatchResponse_Abort{Abort: &configv1.Abort{SnapshotId: s.ID, Reason: o.problems[0].Message}}})
	}
	p.closeSilent([]*watcher{w})
	if o.kind == answered && w.role == configv1.Role_ROLE_PROXYD {
		p.keep(s, parent)
	}
	return o.problems
}

// keep hands a snapshot that has proved itself to the history, once.
func (p *Publisher) keep(s *snapshot.Snapshot, parent string) {
	p.mu.Lock()
	again := p.kept == s.ID
	p.kept = s.ID
	p.mu.Unlock()
	if !again && p.saved != nil {
		p.saved(s, parent)
	}
}

func (p *Publisher) begin(ctx context.Context) bool {
	select {
	case <-p.turn:
		return true
	case <-ctx.Done():
		return false
	}
}

func (p *Publisher) end() { p.turn <- struct{}{} }

// outcome of one step with one watcher.
type outcome struct {
	kind     outcomeKind
	problems []Problem
}

type outcomeKind int

const (
	answered outcomeKind = iota // as asked
	refused
	silent // no answer in time
	gone   // its stream ended
)

func (p *Publisher) prepare(w *watcher, s *snapshot.Snapshot, parent string) outcome {
	p.mark(w, "preparing", "")
	w.drain()
	if !w.send(&configv1.WatchResponse{Message: &configv1.WatchResponse_Prepare{Prepare: s.Prepare(w.role, parent, w.have)}}) {
		return outcome{kind: gone}
	}
	w.secrets = s.Secrets
	m, kind := w.await(p.after(answerTime), func(m *configv1.WatchRequest) bool {
		return m.GetPrepared().GetSnapshotId() == s.ID || m.GetRefused().GetSnapshotId() == s.ID
	})
	switch {
	case kind == silent:
		text := fmt.Sprintf("%s did not say within %v whether it can apply the snapshot.", w.title(), answerTime)
		p.mark(w, "refused", text)
		w.silent.Store(true)
		return outcome{silent, []Problem{{Code: diag.NoAnswer, Daemon: w.title(), Message: text + " See its log; `retinue status` shows who is there."}}}
	case kind == gone:
		return outcome{kind: gone}
	case m.GetRefused() != nil:
		o := outcome{kind: refused}
		for _, r := range m.GetRefused().GetReasons() {
			o.problems = append(o.problems, Problem{Code: diag.Refused, Kind: r.GetKind(), Name: r.GetName(), Field: r.GetField(), Daemon: w.title(), Message: r.GetMessage()})
		}
		if len(o.problems) == 0 {
			o.problems = []Problem{{Code: diag.Refused, Daemon: w.title(), Message: w.title() + " refused the snapshot without a reason."}}
		}
		p.mark(w, "refused", o.problems[0].Message)
		return o
	}
	return outcome{}
}

func (p *Publisher) commit(w *watcher, s *snapshot.Snapshot) outcome {
	lost := func(kind outcomeKind, what string) outcome {
		text := fmt.Sprintf("%s %s. It is offered the snapshot again when it connects.", w.title(), what)
		return outcome{kind, []Problem{{Code: diag.NotConfirmed, Daemon: w.title(), Message: text}}}
	}
	if !w.send(&configv1.WatchResponse{Message: &configv1.WatchResponse_Commit{Commit: &configv1.Commit{SnapshotId: s.ID}}}) {
		return lost(gone, "went away before it could apply the snapshot")
	}
	switch _, kind := w.await(p.after(answerTime), func(m *configv1.WatchRequest) bool { return m.GetApplied().GetSnapshotId() == s.ID }); kind {
	case silent:
		w.silent.Store(true)
		return lost(silent, fmt.Sprintf("did not confirm within %v that it applies the snapshot", answerTime))
	case gone:
		return lost(gone, "went away while it applied the snapshot")
	}
	p.mu.Lock()
	w.applied, w.state, w.message = s.ID, "applied", ""
	p.mu.Unlock()
	w.have = make(map[string]bool)
	for _, o := range s.For(w.role) {
		w.have[string(o.GetHash())] = true
	}
	return outcome{}
}

// closeSilent ends the streams of watchers that did not answer: what they say next could be about anything, and a new
// stream begins with what they hold.
func (p *Publisher) closeSilent(list []*watcher) {
	for _, w := range list {
		if w.silent.Load() {
			w.close()
		}
	}
}

func (p *Publisher) mark(w *watcher, state, message string) {
	p.mu.Lock()
	w.state, w.message = state, message
	p.mu.Unlock()
}

func ofRole(list []*watcher, role configv1.Role) []*watcher {
	var out []*watcher
	for _, w := range list {
		if w.role == role && !w.closed() {
			out = append(out, w)
		}
	}
	return out
}

func inParallel(list []*watcher, step func(*watcher) outcome) []outcome {
	out := make([]outcome, len(list))
	var wg sync.WaitGroup
	for i, w := range list {
		wg.Go(func() { out[i] = step(w) })
	}
	wg.Wait()
	return out
}

// Watchers tells who watches and what each runs.
func (p *Publisher) Watchers() []*configv1.WatcherStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]*configv1.WatcherStatus, 0, len(p.watchers))
	for _, w := range p.watchers {
		out = append(out, &configv1.WatcherStatus{Role: w.role, Generation: w.generation, Pid: w.pid, SnapshotId: w.applied, State: w.state, Message: w.message})
	}
	return out
}
