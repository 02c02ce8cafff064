// Package bodyfilter is the filters about the size of bodies: one waits for the whole request, one refuses what is too large
// without keeping it. All calls come from the worker's thread.
package bodyfilter

import (
	"fmt"
	"math"
	"strconv"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// mostBuffered bounds what one request may have buffered, in bytes.
const mostBuffered = 1 << 30

// Buffer is the buffer filter of one object (Envoy's buffer): a stream.Factory and the one filter that it makes.
type Buffer struct {
	stream.PassThrough
	most int
}

// NewBuffer builds it.
func NewBuffer(o *configv1.BufferFilter) (*Buffer, error) {
	if o.GetMaxRequestBytes() == 0 || o.GetMaxRequestBytes() > mostBuffered {
		return nil, fmt.Errorf("max_request is 1 byte to 1 GiB")
	}
	return &Buffer{most: int(o.GetMaxRequestBytes())}, nil
}

// NewFilter implements stream.Factory.
func (b *Buffer) NewFilter(*worker.Worker) stream.Filter { return b }

// DecodeHeaders implements stream.Filter.
func (b *Buffer) DecodeHeaders(c *stream.Callbacks, end bool) stream.Status {
	s := c.Stream()
	if end || s.Upgrade {
		return stream.Continue
	}
	if length(&s.Request.Block) > uint64(b.most) {
		tooLarge(s)
		return stream.StopIteration
	}
	c.LimitDecoded(b.most)
	return stream.StopIteration
}

// DecodeData implements stream.Filter.
func (b *Buffer) DecodeData(c *stream.Callbacks, data []byte, end bool) ([]byte, stream.Status) {
	s := c.Stream()
	switch {
	case s.Upgrade:
		return data, stream.Continue
	case c.Decoded()+len(data) > b.most:
		tooLarge(s)
		return nil, stream.StopIteration
	case end:
		return data, stream.Continue
	}
	return data, stream.StopAndBuffer
}

func tooLarge(s *stream.Stream) {
	s.Cells[counters.HTTPDownstreamRqTooLarge]++
	s.LocalReply(413, "Payload Too Large", 0, stream.DetailRequestTooLarge)
}

// length is the Content-Length of a message, 0 when it does not say.
func length(h *header.Block) uint64 {
	value := h.Get(header.ContentLength)
	if value == nil {
		return 0 // an error of strconv's would be allocated
	}
	n, err := strconv.ParseUint(string(value), 10, 64)
	if err != nil {
		return 0
	}
	return min(n, math.MaxInt64)
}
