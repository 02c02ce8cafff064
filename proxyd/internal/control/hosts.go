package control

import (
	"crypto/tls"
	"slices"
	"sync/atomic"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/health"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

// newMonitor makes the watch over hosts. What it finds out is posted to the workers as it happens.
func (s *Server) newMonitor() *health.Monitor {
	return health.New(health.Options{
		Log: s.env.Log, Publish: s.hostsChanged, Count: s.countHealth, Traffic: s.hadTraffic,
		Security: func(c *cluster.Cluster, h *cluster.Host) *tls.Config {
			s.mu.Lock()
			defer s.mu.Unlock()
			if config := s.configOf(c.Handle); config != nil && config.TLS != nil {
				return config.TLS.Config(h.ServerName()).Clone()
			}
			return nil
		},
	})
}

// hadTraffic tells whether a cluster of the running snapshot has had a connection since the process began.
func (s *Server) hadTraffic(handle cluster.Handle) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	config := s.configOf(handle)
	return config != nil && slices.ContainsFunc(config.Cells, func(c *counters.Cluster) bool {
		return atomic.LoadUint64(&c[counters.ClusterUpstreamCxTotal]) > 0
	})
}

// configOf is the running snapshot's cluster, or nil; with mu held.
func (s *Server) configOf(handle cluster.Handle) *upstream.Config {
	if s.current == nil || int(handle) >= len(s.current.Clusters) {
		return nil
	}
	return s.current.Clusters[handle]
}

// watchHosts gives the monitor the clusters of a snapshot and returns them as the workers shall have them: with the hosts that
// take requests; with ops held.
func (s *Server) watchHosts(configs []*upstream.Config) []*upstream.Config {
	clusters := make([]*cluster.Cluster, len(configs))
	for i, c := range configs {
		if c != nil {
			clusters[i] = c.Cluster
		}
	}
	out := slices.Clone(configs)
	for i, c := range s.monitor.Set(clusters) {
		if c != clusters[i] {
			changed := *configs[i]
			changed.Cluster = c
			out[i] = &changed
		}
	}
	return out
}

// hostsChanged posts the hosts of a cluster that take requests from now on.
func (s *Server) hostsChanged(handle cluster.Handle, state health.State) {
	s.judged.Store(true)
	s.ops.Lock()
	defer s.ops.Unlock()
	if int(handle) >= len(s.clusters) || s.clusters[handle] == nil {
		return
	}
	s.mu.Lock()
	config := s.configOf(handle)
	s.mu.Unlock()
	if config == nil || config.Hosts != state.Members {
		return // a newer snapshot says otherwise, and has asked the monitor itself
	}
	changed := *config
	changed.Cluster = config.WithHosts(state.Available)
	s.clusters = slices.Clone(s.clusters)
	s.clusters[handle] = &changed
	clusters, m := s.clusters, membershipOf(config, s.monitor)
	s.loops.each(func(l *loop) {
		l.manager.Update(clusters)
		if l.ID == 0 {
			m.set()
		}
	})
}

// drainHosts takes the hosts out that are drained by command, all of them, and puts the others back.
func (s *Server) drainHosts(list []*configv1.DrainedEndpoint) {
	drained := map[string]map[string]bool{}
	for _, d := range list {
		if drained[d.GetCluster()] == nil {
			drained[d.GetCluster()] = map[string]bool{}
		}
		drained[d.GetCluster()][d.GetAddress()] = true
	}
	s.ops.Lock()
	defer s.ops.Unlock()
	s.monitor.Drain(drained)
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	if current == nil {
		return
	}
	before := s.clusters
	s.clusters = s.watchHosts(current.Clusters)
	var members []membership
	for handle, c := range current.Clusters {
		if c == nil {
			continue
		}
		if handle < len(before) && before[handle] != nil && before[handle].Hosts == s.clusters[handle].Hosts {
			s.clusters[handle] = before[handle] // its pools are not touched
			continue
		}
		members = append(members, membershipOf(c, s.monitor))
	}
	clusters := s.clusters
	s.loops.each(func(l *loop) {
		l.manager.Update(clusters)
		if l.ID == 0 {
			for _, m := range members {
				m.set()
			}
		}
	})
}

// countHealth counts an event in the cells of worker 0, which are its own to write.
func (s *Server) countHealth(e health.Event) {
	s.mu.Lock()
	config := s.configOf(e.Handle)
	s.mu.Unlock()
	if config == nil {
		return
	}
	s.loops.post(func() {
		cells := config.Cells[0]
		switch e.What {
		case health.Attempt:
			cells[counters.ClusterHealthCheckAttempt]++
		case health.Success:
			cells[counters.ClusterHealthCheckSuccess]++
		case health.Failure:
			cells[counters.ClusterHealthCheckFailure]++
		case health.NetworkFailure:
			cells[counters.ClusterHealthCheckNetworkFailure]++
		case health.PassiveFailure:
			cells[counters.ClusterHealthCheckPassiveFailure]++
		case health.Overflowed:
			cells[counters.ClusterOutlierEjectionsOverflow]++
		case health.Detected:
			cells[counters.ClusterOutlierDetected+int(e.Detail)]++
		case health.Ejected:
			cells[counters.ClusterOutlierEjectionsTotal]++
			cells[counters.ClusterOutlierEjections5xx+int(e.Detail)]++
		}
	})
}
