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
	degraded bool // it is well, but should be spared (x-envoy-degraded)
	failed   error
}

// result takes one check's answer; changed tells that the host is to be taken out or put back.
func (h *host) result(c *cluster.Check, passed bool) (changed bool) {
	first := !h.checked
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
	if !first && h.row < limit {
		return false
	}
	h.failing, h.row = !passed, 0
	return true
}

// probe asks one host until ctx is done: at once, and then again and again with a tenth of jitter, so that the checks of many
// hosts do not march in step.
func probe(ctx context.Context, c *cluster.Check, p prober, tell func(answer)) {
	defer p.close()
	for {
		within, done := context.WithTimeout(ctx, c.Timeout)
		degraded, err := p.ask(within)
		done()
		if ctx.Err() != nil {
			return
		}
		tell(answer{degraded, err})
		pause := c.Interval + rand.N(c.Interval/10+1)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
