package health

import (
	"context"
	"math/rand/v2"
	"time"

	"retinue.dev/proxyd/internal/cluster"
)

// host is what active checks know of one host. A host serves until its first check fails; after that the thresholds rule.
type host struct {
	failing  bool
	degraded bool // as its last good answer said
	checked  bool
	row      int // results in a row that speak against failing
	end      context.CancelFunc
}

// answer is what one check found out.
type answer struct {
	degraded bool  // it is well, but should be spared (x-envoy-degraded)
	failed   error // nil: it is well
	answered bool  // the host did, if not as it should
	decides  bool  // and one such answer is enough
}

// result takes one check's answer; changed tells that the host is to be taken out or put back.
func (h *host) result(c *cluster.Check, a answer) (changed bool) {
	first, passed := !h.checked, a.failed == nil
	h.checked = true
	if passed != h.failing {
		h.row = 0
		return false
	}
	h.row++
	limit := c.Unhealthy
	if passed {
		limit = c.Healthy
	}
	if !first && !a.decides && h.row < limit {
		return false
	}
	h.failing, h.row = !passed, 0
	return true
}

// pause is how long the next check waits, by what the last one said: Envoy's intervals. traffic tells that the cluster has had some.
func (h *host) pause(c *cluster.Check, passed, traffic bool) time.Duration {
	pause, edge := c.Interval, h.row > 0
	switch {
	case !traffic && c.NoTrafficInterval > 0:
		if pause = c.NoTrafficInterval; passed && !edge {
			pause = c.NoTrafficHealthyInterval
		}
	case passed && edge:
		pause = c.HealthyEdge
	case !passed && edge:
		pause = c.UnhealthyEdge
	case !passed:
		pause = c.UnhealthyInterval
	}
	return pause + upTo(pause*time.Duration(c.JitterPercent)/100) + upTo(c.Jitter)
}

func upTo(most time.Duration) time.Duration { return rand.N(most + 1) }

// probe asks a host until its context ends. tell answers how long to wait.
func probe(ctx context.Context, c *cluster.Check, p prober, tell func(answer) time.Duration) {
	defer p.close()
	wait := func(pause time.Duration) bool {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
			return true
		}
	}
	if c.InitialJitter > 0 && !wait(upTo(c.InitialJitter)) {
		return
	}
	for {
		within, done := context.WithTimeout(ctx, c.Timeout)
		a := p.ask(within)
		done()
		if ctx.Err() != nil || !wait(tell(a)) {
			return
		}
	}
}
