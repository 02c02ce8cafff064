package filter

import (
	"cmp"
	"fmt"
	"math"
	"time"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// defaultReset is the greatest pause that a response may ask for, in milliseconds.
const defaultReset = 300_000

// askedPause finds the pause that a response asks for before the next try (Envoy's rate_limited_retry_back_off). Immutable.
type askedPause struct {
	headers []resetHeader
	most    int64 // ns
}

type resetHeader struct {
	field headerOp
	clock bool // a time, in seconds since 1970; else seconds from now
}

func compileResets(c *configv1.RateLimitedBackOff) (*askedPause, error) {
	if c == nil {
		return nil, nil
	}
	out := &askedPause{most: Milliseconds(cmp.Or(c.GetMaxIntervalMs(), defaultReset))}
	for _, h := range c.GetHeaders() {
		f := resetHeader{namedOp(h.GetName()), h.GetUnixTimestamp()}
		if !header.ValidName(f.field.name) {
			return nil, fmt.Errorf("%q is not a header name", h.GetName())
		}
		out.headers = append(out.headers, f)
	}
	return out, nil
}

// pause is what the first header says that can be read and is within the bound, in nanoseconds; 0 for none.
func (r *askedPause) pause(s *stream.Stream, b *header.Block) int64 {
	for i := range r.headers {
		h := &r.headers[i]
		at := h.field.find(b)
		if at < 0 {
			continue
		}
		seconds, ok := number(b.ValueAt(at), math.MaxInt64/int64(time.Second))
		if !ok {
			continue
		}
		pause := seconds * int64(time.Second)
		if h.clock {
			pause -= s.Worker.Wall()
		}
		if pause > 0 && pause <= r.most {
			return pause
		}
	}
	return 0
}
