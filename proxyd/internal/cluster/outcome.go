package cluster

import (
	"sync/atomic"
	"time"
)

// Outlier says when a host that fails is taken out. Immutable; nil: never. Names and numbers are Envoy's.
type Outlier struct {
	Consecutive5xx            uint32 // in one worker; 0 off
	ConsecutiveGatewayFailure uint32
	SuccessRateStdevFactor    uint32 // thousandths; 0 off
	FailurePercentage         uint32 // 0 off
	Interval                  time.Duration
	BaseEjection, MaxEjection time.Duration
	MaxEjectionPercent        int
	EventLog                  string // path; "" none
}

// Outcomes is how requests to one host ended: of one worker, or the sum. A request that got no answer counts as a 5xx and
// as a gateway failure (Envoy's split_external_local_origin_errors, off).
type Outcomes struct {
	Total, Failed          uint64
	Trips5xx, TripsGateway uint64 // times a run of failures reached its limit
}

// cell is one worker's part, on a cache line of its own. Only that worker writes; the main side reads.
type cell struct {
	total, failed, trips5xx, tripsGateway atomic.Uint64
	run5xx, runGateway                    uint32
	_                                     [24]byte
}

// Observe makes the hosts keep outcomes, one part for each worker; those that do already go on.
func (s *HostSet) Observe(workers int) {
	for _, h := range s.Hosts {
		if len(h.outcomes) < workers {
			h.outcomes = make([]cell, workers)
		}
	}
}

// Record counts one request of a worker by the status of its answer, 0 for none. On the worker's thread; it costs nothing
// where nobody observes.
func (h *Host) Record(worker int, rule *Outlier, status int) {
	if rule == nil || worker >= len(h.outcomes) {
		return
	}
	c := &h.outcomes[worker]
	c.total.Store(c.total.Load() + 1) // one writer: no read-modify-write is needed
	gateway := status == 0 || status >= 502 && status <= 504
	if status != 0 && status < 500 {
		c.run5xx, c.runGateway = 0, 0
		return
	}
	c.failed.Store(c.failed.Load() + 1)
	if c.run5xx++; rule.Consecutive5xx > 0 && c.run5xx >= rule.Consecutive5xx {
		c.run5xx = 0
		c.trips5xx.Store(c.trips5xx.Load() + 1)
	}
	if !gateway {
		c.runGateway = 0
		return
	}
	if c.runGateway++; rule.ConsecutiveGatewayFailure > 0 && c.runGateway >= rule.ConsecutiveGatewayFailure {
		c.runGateway = 0
		c.tripsGateway.Store(c.tripsGateway.Load() + 1)
	}
}

// Sum adds up the workers' outcomes. Any thread.
func (h *Host) Sum() (o Outcomes) {
	for i := range h.outcomes {
		c := &h.outcomes[i]
		o.Total += c.total.Load()
		o.Failed += c.failed.Load()
		o.Trips5xx += c.trips5xx.Load()
		o.TripsGateway += c.tripsGateway.Load()
	}
	return o
}
