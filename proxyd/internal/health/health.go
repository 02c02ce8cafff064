// Package health decides which hosts of each cluster take requests: by active checks and by outlier detection. It runs on the
// main side.
//
// A Monitor is told the clusters of each snapshot. It probes hosts in goroutines of their own, and looks at the outcomes that
// workers record, which are plain numbers with one writer each; no worker waits for it or is asked. When somebody goes out or
// comes back it publishes the members that are left, as an immutable host set, which package cluster arranges: priorities, panic
// and localities are its business. Hosts that are drained by command are left out whatever else is known of them.
package health

import (
	"context"
	"crypto/tls"
	"log/slog"
	"sync"
	"time"

	"retinue.dev/proxyd/internal/cluster"
)

// lookEvery is how soon a run of failures ejects its host.
const lookEvery = 100 * time.Millisecond

// Event is one change, for counters and the log.
type Event struct {
	Handle  cluster.Handle
	Address string
	What    What
	Detail  cluster.OutlierRule // of an ejection
}

// What happened to a host.
type What uint8

// Attempt, Success and Failure are of single checks; the others change who takes requests.
const (
	Attempt What = iota
	Success
	Failure
	BecameHealthy
	BecameUnhealthy
	BecameDegraded
	NoLongerDegraded
	Ejected
	Unejected
	Detected       // a rule found the host, and then it is Ejected,
	Overflowed     // or not, since so many are,
	Unenforced     // or not, since the rule is enforced now and then
	NetworkFailure // a failed check, beside Failure: there was no answer
	PassiveFailure // out for what an answer to a request says
)

// State is what is known of a cluster.
type State struct {
	Members   *cluster.HostSet // all
	Available *cluster.HostSet // those that take requests
	Healthy   int              // members that are neither failing, ejected, degraded nor drained
	Degraded  int              // members that are spared
	Excluded  int              // members that are drained
	Ejections int              // members that are ejected
}

// Options are the monitor's surroundings.
type Options struct {
	Log *slog.Logger
	// Publish is told when a cluster's available hosts or numbers changed, from one goroutine at a time. It may call State, not Set.
	Publish func(cluster.Handle, State)
	// Count is told of every event, from several goroutines.
	Count func(Event)
	// Traffic tells whether a cluster has ever had a connection for requests; nil: they all have.
	Traffic func(cluster.Handle) bool
	// Security is the TLS of the checks of a cluster's host; nil for none.
	Security func(*cluster.Cluster, *cluster.Host) *tls.Config

	prober func(c *cluster.Cluster, h *cluster.Host, security *tls.Config) prober // tests ask nobody
}

// Monitor watches the hosts of a process. Life: New, Run in a goroutine until its context is done, Set for each snapshot.
type Monitor struct {
	opt Options
	ctx context.Context
	end context.CancelFunc

	mu       sync.Mutex
	clusters map[cluster.Handle]*watched
	drained  map[string]map[string]bool // by cluster and address
	former   map[string]map[string]Verdict
	probes   sync.WaitGroup
	publish  sync.Mutex
}

// watched is one cluster that has checks, outlier detection, a slow start or drained hosts.
type watched struct {
	cluster  *cluster.Cluster
	hosts    map[string]*host
	detector *detector
	drained  map[string]bool
	joined   map[string]time.Time // since when hosts take requests that have not their whole share yet
	settled  time.Time            // when the state was computed
	state    State
}

// New makes a monitor that watches nothing yet.
func New(opt Options) *Monitor {
	if opt.prober == nil {
		opt.prober = newProber
	}
	m := &Monitor{opt: opt, clusters: map[cluster.Handle]*watched{}}
	m.ctx, m.end = context.WithCancel(context.Background())
	return m
}

// Run looks for outliers until ctx is done, and then ends the probes.
func (m *Monitor) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			m.end()
			m.probes.Wait()
			return
		case now := <-tick.C:
			m.look(now)
		}
	}
}

// Set takes the clusters of a snapshot, or of a change of endpoints, nil for handles without one. It returns the clusters as the
// workers shall have them: with the hosts that are available.
func (m *Monitor) Set(clusters []*cluster.Cluster) []*cluster.Cluster {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]*cluster.Cluster, len(clusters))
	seen := map[cluster.Handle]bool{}
	for i, c := range clusters {
		if out[i] = c; c == nil || c.Check == nil && c.Outlier == nil && c.Rule.SlowStart == nil && len(m.drained[c.Name]) == 0 {
			continue
		}
		seen[c.Handle] = true
		w := m.clusters[c.Handle]
		if w == nil || w.cluster.Check != c.Check || w.cluster.Outlier != c.Outlier {
			if w != nil {
				w.stop()
			}
			w = &watched{hosts: map[string]*host{}, joined: map[string]time.Time{}}
			if c.Outlier != nil {
				w.detector = newDetector(c.Outlier, time.Now())
			}
			m.clusters[c.Handle] = w
		}
		m.members(w, c)
		if available := w.state.Available; available != c.Hosts {
			out[i] = c.WithHosts(available)
		}
	}
	for handle, w := range m.clusters {
		if !seen[handle] {
			w.stop()
			delete(m.clusters, handle)
		}
	}
	return out
}

// members makes w watch the hosts of c; with mu held.
func (m *Monitor) members(w *watched, c *cluster.Cluster) {
	now := time.Now()
	if w.cluster != nil && c.Rule.SlowStart != nil {
		before := map[string]bool{}
		for _, h := range w.cluster.Hosts.Hosts {
			before[h.Address] = true
		}
		for _, h := range c.Hosts.Hosts {
			if !before[h.Address] {
				w.joined[h.Address] = now
			}
		}
	}
	if c.Rule.SlowStart == nil {
		clear(w.joined)
	} else {
		for address := range w.drained {
			if !m.drained[c.Name][address] {
				w.joined[address] = now
			}
		}
	}
	w.cluster, w.drained = c, m.drained[c.Name]
	former := m.former[c.Name]
	delete(m.former, c.Name)
	if w.detector != nil {
		w.detector.set(c.Hosts)
		w.detector.inherit(former, now)
	}
	if c.Check != nil {
		keep := make(map[string]*host, len(c.Hosts.Hosts))
		for _, member := range c.Hosts.Hosts {
			h := w.hosts[member.Address]
			if h == nil {
				h = &host{}
				if v, known := former[member.Address]; known && v.Checked {
					h.checked, h.failing, h.degraded = true, v.Failing, v.Degraded
				}
				m.start(w, h, c, member)
			}
			keep[member.Address] = h
		}
		for address, h := range w.hosts {
			if keep[address] != h {
				h.end()
			}
		}
		w.hosts = keep
	}
	w.settle(now)
}

func (m *Monitor) start(w *watched, h *host, c *cluster.Cluster, member *cluster.Host) {
	ctx, cancel := context.WithCancel(m.ctx)
	h.end = cancel
	var security *tls.Config
	if m.opt.Security != nil {
		security = m.opt.Security(c, member)
	}
	p := m.opt.prober(c, member, security)
	m.probes.Go(func() {
		probe(ctx, c.Check, p, func(a answer) time.Duration { return m.checked(ctx, w, h, member.Address, a) })
	})
}

// checked takes the answer of one check.
func (m *Monitor) checked(ctx context.Context, w *watched, h *host, address string, a answer) (pause time.Duration) {
	err, now := a.failed, time.Now()
	m.mu.Lock()
	if ctx.Err() != nil { // the host left while it was asked
		m.mu.Unlock()
		return 0
	}
	handle, name, owner := w.cluster.Handle, w.cluster.Name, w.cluster
	changed := h.result(owner.Check, a)
	pause = h.pause(owner.Check, err == nil, m.opt.Traffic == nil || m.opt.Traffic(handle))
	spared := err == nil && h.degraded != a.degraded
	if spared {
		h.degraded = a.degraded
	}
	back := err == nil && !h.failing && w.detector != nil && w.detector.pardon(address)
	if (changed && err == nil || back) && w.cluster.Rule.SlowStart != nil {
		w.joined[address] = now
	}
	if changed || spared || back {
		w.settle(now)
	}
	m.mu.Unlock()
	m.count(Event{Handle: handle, Address: address, What: Attempt})
	if err == nil {
		m.count(Event{Handle: handle, Address: address, What: Success})
	} else {
		m.count(Event{Handle: handle, Address: address, What: Failure})
		if !a.answered {
			m.count(Event{Handle: handle, Address: address, What: NetworkFailure})
		}
		if owner.Check.LogFailures {
			m.write(note{owner: owner, address: address, what: Failure, at: now})
		}
	}
	if spared {
		what := NoLongerDegraded
		if a.degraded {
			what = BecameDegraded
		}
		m.opt.Log.Info("a host's health check says how much it can take", "cluster", name, "host", address, "degraded", a.degraded)
		m.happened(note{owner: owner, address: address, what: what, at: now})
	}
	if back {
		m.opt.Log.Info("a host that was ejected passes its health check", "cluster", name, "host", address)
		m.happened(note{owner: owner, address: address, what: Unejected, at: now})
	}
	if changed && err != nil {
		m.opt.Log.Warn("a host fails its health check and takes no requests", "cluster", name, "host", address, "error", err)
		m.happened(note{owner: owner, address: address, what: BecameUnhealthy, at: now})
	} else if changed {
		m.opt.Log.Info("a host passes its health check again", "cluster", name, "host", address)
		m.happened(note{owner: owner, address: address, what: BecameHealthy, at: now})
	}
	if changed || spared || back {
		m.tell(handle)
	}
	return pause
}

// happened counts and writes down what changed for a host.
func (m *Monitor) happened(n note) {
	m.count(Event{Handle: n.owner.Handle, Address: n.address, What: n.what, Detail: n.detail})
	m.write(n)
}

// look asks every detector, and whether hosts have said with an answer that they are not well.
func (m *Monitor) look(now time.Time) {
	var notes []note
	var changed []cluster.Handle
	m.mu.Lock()
	for handle, w := range m.clusters {
		before := len(notes)
		notes = w.takeFails(notes, now)
		different := len(notes) > before
		if w.detector != nil {
			found, ejected := w.detector.look(w.cluster.Hosts, now)
			for _, f := range found {
				notes = append(notes, note{w.cluster, f.address, f.what, f.rule, now})
			}
			for _, address := range w.detector.back {
				notes = append(notes, note{owner: w.cluster, address: address, what: Unejected, at: now})
				if w.cluster.Rule.SlowStart != nil {
					w.joined[address] = now
				}
			}
			different = different || ejected
		}
		if different {
			w.settle(now)
		}
		if w.warm(now) || different {
			changed = append(changed, handle)
		}
	}
	m.mu.Unlock()
	for _, n := range notes {
		switch n.what {
		case Ejected:
			m.opt.Log.Warn("a host is ejected", "cluster", n.owner.Name, "host", n.address, "rule", n.detail.String())
		case PassiveFailure:
			m.opt.Log.Warn("a host says that it takes no requests", "cluster", n.owner.Name, "host", n.address)
		}
		m.happened(n)
	}
	for _, handle := range changed {
		m.tell(handle)
	}
}

// takeFails takes the hosts out that have said so with an answer (x-envoy-immediate-health-check-fail); checks bring them back.
func (w *watched) takeFails(notes []note, now time.Time) []note {
	if w.cluster.Check == nil {
		return notes
	}
	for _, member := range w.cluster.Hosts.Hosts {
		h := w.hosts[member.Address]
		if !member.TakeFail() || h == nil || h.failing {
			continue
		}
		h.checked, h.failing, h.row = true, true, 0
		notes = append(notes, note{owner: w.cluster, address: member.Address, what: PassiveFailure, at: now})
		notes = append(notes, note{owner: w.cluster, address: member.Address, what: BecameUnhealthy, at: now})
	}
	return notes
}

func (m *Monitor) count(e Event) {
	if m.opt.Count != nil {
		m.opt.Count(e)
	}
}

// tell publishes the newest state, in order.
func (m *Monitor) tell(handle cluster.Handle) {
	m.publish.Lock()
	defer m.publish.Unlock()
	if state, ok := m.State(handle); ok {
		m.opt.Publish(handle, state)
	}
}

// State is what is known of a cluster; false when it is not watched.
func (m *Monitor) State(handle cluster.Handle) (State, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.clusters[handle]
	if w == nil {
		return State{}, false
	}
	return w.state, true
}

// warmSteps is how often the share of a host grows over its slow start.
const warmSteps = 50

// warm lets the shares of hosts grow that joined lately; true when some did. With the monitor's mu held.
func (w *watched) warm(now time.Time) bool {
	if len(w.joined) == 0 || now.Sub(w.settled) < max(lookEvery, w.cluster.Rule.SlowStart.Window/warmSteps) {
		return false
	}
	w.settle(now)
	return true
}

// factor is the part of its weight that a host has.
func (w *watched) factor(address string, now time.Time) float64 {
	rule := w.cluster.Rule.SlowStart
	since, warming := w.joined[address]
	if rule == nil || !warming {
		return 1
	}
	f := rule.Factor(now.Sub(since))
	if f == 1 {
		delete(w.joined, address)
	}
	return f
}

// settle computes the state anew; with the monitor's mu held.
func (w *watched) settle(now time.Time) {
	members := w.cluster.Hosts
	w.settled = now
	well := func(h *cluster.Host) bool {
		known := w.hosts[h.Address]
		return (known == nil || !known.failing) && (w.detector == nil || !w.detector.out(h.Address))
	}
	s := State{Members: members}
	s.Available = members.Judge(func(h *cluster.Host) cluster.Standing {
		known := w.hosts[h.Address]
		switch {
		case w.drained[h.Address]:
			s.Excluded++
			return cluster.Standing{Grade: cluster.Drained}
		case !well(h):
			return cluster.Standing{Grade: cluster.Unhealthy}
		case known != nil && known.degraded:
			s.Degraded++
			return cluster.Standing{Grade: cluster.Degraded, Factor: w.factor(h.Address, now)}
		}
		s.Healthy++
		return cluster.Standing{Factor: w.factor(h.Address, now)}
	})
	if w.detector != nil {
		s.Ejections = w.detector.active()
	}
	w.state = s
}

func (w *watched) stop() {
	for _, h := range w.hosts {
		h.end()
	}
}
