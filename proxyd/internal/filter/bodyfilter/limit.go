package bodyfilter

import (
	"math"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/freelist"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// Limit is the body_limit filter of one object: a stream.Factory.
type Limit struct {
	request, response uint64
	free              []freelist.List[limited] // by worker
}

// NewLimit builds it.
func NewLimit(o *configv1.BodyLimitFilter, workers int) (*Limit, error) {
	l := &Limit{request: o.GetMaxRequestBytes(), response: o.GetMaxResponseBytes(), free: make([]freelist.List[limited], workers)}
	for _, most := range []*uint64{&l.request, &l.response} {
		if *most == 0 {
			*most = math.MaxUint64
		}
	}
	return l, nil
}

// NewFilter implements stream.Factory.
func (l *Limit) NewFilter(w *worker.Worker) stream.Filter {
	x := l.free[w.ID].Take()
	*x = limited{Limit: l}
	return x
}

// limited is the filter of one stream.
type limited struct {
	stream.PassThrough
	*Limit
	received, sent uint64
}

// DecodeHeaders implements stream.Filter. A length that is announced is refused before any of it has come.
func (x *limited) DecodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	if s := c.Stream(); length(&s.Request.Block) > x.request {
		tooLarge(s)
		return stream.StopIteration
	}
	return stream.Continue
}

// DecodeData implements stream.Filter.
func (x *limited) DecodeData(c *stream.Callbacks, data []byte, _ bool) ([]byte, stream.Status) {
	s := c.Stream()
	if x.received += uint64(len(data)); x.received > x.request && !s.Upgrade {
		tooLarge(s)
		return nil, stream.StopIteration
	}
	return data, stream.Continue
}

// EncodeHeaders implements stream.Filter. The response to HEAD has the length of a body that does not come.
func (x *limited) EncodeHeaders(c *stream.Callbacks, end bool) stream.Status {
	s := c.Stream()
	if end || s.Tunnel() || s.Request.MethodID() == header.MethodHead || length(&s.Response.Block) <= x.response {
		return stream.Continue
	}
	s.Cells[counters.HTTPRsTooLarge]++
	s.LocalReply(502, "Response Too Large", 0, stream.DetailResponseTooLarge)
	return stream.StopIteration
}

// EncodeData implements stream.Filter. A response without a length that grows too large is cut, so that nobody takes the part
// for the whole.
func (x *limited) EncodeData(c *stream.Callbacks, data []byte, _ bool) ([]byte, stream.Status) {
	s := c.Stream()
	if x.sent += uint64(len(data)); x.sent > x.response && !s.Tunnel() {
		s.Cells[counters.HTTPRsTooLarge]++
		s.LocalReply(502, "Response Too Large", 0, stream.DetailResponseTooLarge)
		return nil, stream.StopIteration
	}
	return data, stream.Continue
}

// OnDestroy implements stream.Filter.
func (x *limited) OnDestroy(c *stream.Callbacks) { x.free[c.Stream().Worker.ID].Give(x) }
