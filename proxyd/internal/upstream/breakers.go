package upstream

import (
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
)

// Judge writes the gauges of the circuit breakers: which limits are reached, over all workers, and where somebody tracks it, how much
// is left of them. Envoy changes them with each request; here the main side does it now and then, and requests pay nothing.
func (c *Config) Judge() {
	for p := range cluster.Priorities {
		b := &c.Breakers[p]
		for limit, l := range [counters.BreakerLimits]struct {
			gauge int
			most  uint64
		}{
			counters.BreakerCx:        {counters.ClusterUpstreamCxActive, b.MaxConnections},
			counters.BreakerRqPending: {counters.ClusterUpstreamRqPendingActive, b.MaxPending},
			counters.BreakerRq:        {counters.ClusterUpstreamRqActive, b.MaxRequests},
			counters.BreakerRqRetry:   {counters.ClusterUpstreamRqRetryActive, c.Retries(p)},
		} {
			now, open := c.Load(p, l.gauge), uint64(0)
			if now >= l.most {
				open = 1
			}
			c.Main[counters.ClusterBreakersOpen+counters.BreakerLimits*int(p)+limit] = open
			if left := c.Left[p]; left != nil {
				left[limit] = l.most - min(now, l.most)
			}
		}
	}
}

// Forget takes the gauges of a cluster back that is not in force any more.
func (c *Config) Forget() {
	clear(c.Main[counters.ClusterBreakersOpen:counters.ClusterHTTP2])
	for _, left := range c.Left {
		if left != nil {
			*left = counters.BreakersLeft{}
		}
	}
}
