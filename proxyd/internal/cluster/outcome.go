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

	// The comparisons need so many hosts with so many requests in an interval.
	SuccessRateHosts, FailurePercentageHosts       int
	SuccessRateRequests, FailurePercentageRequests uint64

	Enforcing            [OutlierRules]uint32 // percent
	EjectionJitter       time.Duration
	AlwaysEjectOne       bool
	UnejectOnCheck       bool   // a passing active check ends an ejection
	Split                bool   // what is no answer is of local origin, and no 5xx
	ConsecutiveLocalFail uint32 // with Split; 0 off
}

// OutlierRule is why a host is ejected.
type OutlierRule uint8

// The rules.
const (
	Consecutive5xx OutlierRule = iota
	ConsecutiveGatewayFailure
	SuccessRate
	FailurePercentage
	ConsecutiveLocalOriginFailure
	OutlierRules
)

// String is Envoy's name.
func (r OutlierRule) String() string {
	return [...]string{"consecutive_5xx", "consecutive_gateway_failure", "success_rate", "failure_percentage", "consecutive_local_origin_failure"}[r]
}

// Outcomes is how requests to one host ended: of one worker, or the sum. A request that got no answer counts as a 5xx and
// as a gateway failure, but with Split only as one of local origin.
type Outcomes struct {
	Total, Failed          uint64
	Trips5xx, TripsGateway uint64 // times a run of failures reached its limit
	TripsLocal             uint64
}

// cell is one worker's part, on a cache line of its own. Only that worker writes; the main side reads.
type cell struct {
	total, failed, trips5xx, tripsGateway, tripsLocal atomic.Uint64
	run5xx, runGateway, runLocal                      uint32
	_                                                 [12]byte
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
	if rule.Split {
		if status == 0 {
			if c.runLocal++; rule.ConsecutiveLocalFail > 0 && c.runLocal >= rule.ConsecutiveLocalFail {
				c.runLocal = 0
				c.tripsLocal.Store(c.tripsLocal.Load() + 1)
			}
			return
		}
		c.runLocal = 0
	}
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
		o.TripsLocal += c.tripsLocal.Load()
	}
	return o
}

// Fail notes an answer by which the host says that it shall take no requests (Envoy's x-envoy-immediate-health-check-fail). On a
// worker's thread.
func (h *Host) Fail() {
	if !h.fails.Load() { // it may say so with every answer
		h.fails.Store(true)
	}
}

// TakeFail tells whether there was such an answer since it was asked last. On the main side.
func (h *Host) TakeFail() bool { return h.fails.Load() && h.fails.Swap(false) }
