package control

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/health"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/snapshot"
	"retinue.dev/proxyd/internal/upstream"
)

// reservedDescriptors are kept from connections: sockets, logs, pipes, siblings.
const reservedDescriptors = 64

// apply makes a built snapshot the one in force. It returns when every worker has it; sockets of new listeners may come later.
func (s *Server) apply(next *snapshot.Snapshot) {
	s.ops.Lock()
	defer s.ops.Unlock()
	s.mu.Lock()
	previous := s.current
	s.current = next
	s.mu.Unlock()

	wanted := map[string]*snapshot.Listener{}
	for _, l := range next.Listeners {
		wanted[l.Name] = l
	}
	for name, have := range s.installed {
		if want := wanted[name]; want == nil || !want.SameSockets(have) {
			delete(s.installed, name)
		} else {
			s.installed[name] = want
		}
	}
	s.clusters = s.watchHosts(next.Clusters)
	members := memberships(previous, next, s.monitor)
	limit := s.maxConnections(next)
	s.loops.each(func(l *loop) {
		l.leaveBy = next.Settings.Leaving
		l.apply(next, s.clusters, wanted, limit)
		if l.ID == 0 { // a gauge is the sum over the workers
			for _, m := range members {
				m.set()
			}
		}
	})
	time.AfterFunc(emptyTime+time.Millisecond, func() { s.loops.each(func(l *loop) { l.emptied(false) }) })
	// What went has until then; its connections end with their next response.
	time.AfterFunc(next.Settings.Leaving.Limit+time.Millisecond, func() {
		s.cutLeft()
		s.retireSeries()
	})
	s.keySets.Set(next.JwtProviders)
	s.fetch()
	s.count(counters.ServerSnapshotApplied, 1)
	if previous == nil {
		close(s.first)
	}
	s.env.Log.Info("snapshot applied", "snapshot", next.ID, "objects", len(next.Objects), "listeners", len(next.Listeners))
}

// maxConnections is the limit of all listeners together. By default it is two thirds of the descriptors: a connection of TCP needs
// another one upstream, but most of HTTP are idle or share one. Where that is too many, the listeners shed.
func (s *Server) maxConnections(next *snapshot.Snapshot) uint64 {
	if next.Settings.MaxConnections > 0 {
		return next.Settings.MaxConnections
	}
	return max(1, (max(s.descriptors, reservedDescriptors)-reservedDescriptors)/3*2)
}

// membership is the numbers of hosts of a cluster that changed.
type membership struct {
	cells                   *counters.Cluster
	hosts, healthy, ejected uint64
	degraded, excluded      uint64
	subsets                 uint64
}

func (m membership) set() {
	m.cells[counters.ClusterMembershipTotal] = m.hosts
	m.cells[counters.ClusterMembershipHealthy] = m.healthy
	m.cells[counters.ClusterOutlierEjectionsActive] = m.ejected
	m.cells[counters.ClusterMembershipDegraded] = m.degraded
	m.cells[counters.ClusterMembershipExcluded] = m.excluded
	m.cells[counters.ClusterLBSubsetsActive] = m.subsets
}

// membershipOf asks the monitor, which knows the clusters that it watches.
func membershipOf(c *upstream.Config, monitor *health.Monitor) membership {
	n := uint64(len(c.Hosts.Hosts))
	m := membership{cells: c.Cells[0], hosts: n, healthy: n, subsets: uint64(c.Hosts.Subsets())}
	if state, watched := monitor.State(c.Handle); watched {
		m.healthy, m.ejected = uint64(state.Healthy), uint64(state.Ejections)
		m.degraded, m.excluded = uint64(state.Degraded), uint64(state.Excluded)
	}
	return m
}

func memberships(previous, next *snapshot.Snapshot, monitor *health.Monitor) (list []membership) {
	for handle, c := range next.Clusters {
		was := c
		was = nil
		if previous != nil && handle < len(previous.Clusters) {
			was = previous.Clusters[handle]
		}
		switch {
		case c == was:
		case c != nil:
			list = append(list, membershipOf(c, monitor))
		default:
			list = append(list, membership{cells: was.Cells[0]})
		}
	}
	return list
}

// missing is the listeners of the running snapshot that have no sockets yet; with ops held.
func (s *Server) missing() map[string]*snapshot.Listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list map[string]*snapshot.Listener
	if s.current == nil {
		return nil
	}
	for _, l := range s.current.Listeners {
		if s.installed[l.Name] == nil {
			if list == nil {
				list = map[string]*snapshot.Listener{}
			}
			list[l.Name] = l
		}
	}
	return list
}

// fetch asks restartd for the sockets that are missing, and puts them on the workers; with ops held.
func (s *Server) fetch() {
	missing := s.missing()
	if len(missing) == 0 {
		return
	}
	names := slices.Sorted(maps.Keys(missing))
	sockets, err := fetchSockets(s.env.Socket("restartd.fd.sock"), s.generation, names)
	if err != nil {
		s.env.Log.Debug("no sockets yet", "listeners", strings.Join(names, " "), "error", err)
		return
	}
	byName := map[string][]received{}
	for _, r := range sockets {
		if l := missing[r.GetListener()]; l == nil || !named(l, r.GetAddress()) {
			closeFD(r.fd) // of the snapshot before
		} else {
			byName[r.GetListener()] = append(byName[r.GetListener()], r)
		}
	}
	for name, list := range byName {
		if err := s.install(missing[name], list); err != nil {
			s.env.Log.Error("a listener cannot accept", "error", err)
			continue
		}
		s.installed[name] = missing[name]
	}
}

func named(l *snapshot.Listener, address string) bool {
	for _, a := range l.Object.GetAddresses() {
		if a.GetAddress() == address {
			return true
		}
	}
	return false
}

// install puts a listener with its sockets on the workers.
func (s *Server) install(l *snapshot.Listener, sockets []received) error {
	shares, err := s.spread(l.Name, sockets)
	if err != nil {
		return err
	}
	s.mu.Lock()
	accepting, part := s.accepting, s.part
	s.mu.Unlock()
	errs := make([]error, len(shares))
	s.loops.each(func(w *loop) { errs[w.ID] = w.install(l, shares[w.ID], accepting, part) })
	for _, err := range errs {
		if err != nil {
			s.loops.each(func(w *loop) { w.remove(l.Name) })
			return err
		}
	}
	return nil
}

// spread deals a listener's sockets out to the workers: shard i goes to worker i modulo their number, so that every shard is
// accepted from however many workers there are; a shared socket goes to all.
func (s *Server) spread(name string, sockets []received) ([][]listener.Socket, error) {
	workers := s.loops.count()
	shares := make([][]listener.Socket, workers)
	var all []int
	give := func(w, fd int, r received) {
		shares[w] = append(shares[w], listener.Socket{FD: int32(fd), Shared: r.GetShared(), SecondHalf: r.GetSecondHalf()})
		all = append(all, fd)
	}
	for i, r := range sockets {
		if !r.GetShared() {
			give(int(r.GetShard())%workers, r.fd, r)
			continue
		}
		give(0, r.fd, r)
		for w := 1; w < workers; w++ {
			fd, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
			if err != nil {
				for _, fd := range all {
					closeFD(fd)
				}
				for _, left := range sockets[i+1:] {
					closeFD(left.fd)
				}
				return nil, fmt.Errorf("listener %q: a descriptor for worker %d: %w", name, w, err)
			}
			give(w, fd, r)
		}
	}
	return shares, nil
}

// renew asks for the sockets of the listeners that are installed: there may be more by now, and they may be divided otherwise.
// With ops held.
func (s *Server) renew() error {
	if len(s.installed) == 0 {
		return nil
	}
	sockets, err := fetchSockets(s.env.Socket("restartd.fd.sock"), s.generation, slices.Sorted(maps.Keys(s.installed)))
	if err != nil {
		return fmt.Errorf("the sockets that restartd has: %w", err)
	}
	byName := map[string][]received{}
	for _, r := range sockets {
		if l := s.installed[r.GetListener()]; l == nil || !named(l, r.GetAddress()) {
			closeFD(r.fd)
		} else {
			byName[r.GetListener()] = append(byName[r.GetListener()], r)
		}
	}
	errs := make([]error, s.loops.count())
	for name, list := range byName {
		shares, err := s.spread(name, list)
		if err != nil {
			errs[0] = errors.Join(errs[0], err)
			continue
		}
		s.loops.each(func(l *loop) {
			b := l.listeners[name]
			if b == nil {
				for _, s := range shares[l.ID] {
					l.Poller.Close(s.FD)
				}
				return
			}
			errs[l.ID] = errors.Join(errs[l.ID], b.listener.Renew(shares[l.ID]))
		})
	}
	return errors.Join(errs...)
}
