package stream

import (
	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/counters"
)

// The request walks the chain forward. Each filter keeps what it stopped in its own half, so several may stop at once:
// what one lets go, the next one sees as if it had just come.

// decodeHeaders gives the head to filter i and those behind it.
func (s *Stream) decodeHeaders(i int, end bool) {
	for ; i < len(s.chain); i++ {
		c := &s.chain[i]
		status := c.filter.DecodeHeaders(c, end)
		if s.decodeClosed {
			return
		}
		if status == Leave {
			s.leave(i)
			i--
			continue
		}
		if status != Continue {
			c.decode.head, c.decode.stopped = true, true
			c.decode.all = status == StopAndBuffer
			c.decode.end = end
			return
		}
		if c.decode.body.Len() > 0 { // the filter added a body
			s.decodeHeaders(i+1, false)
			s.releaseDecoded(c, i+1, end)
			return
		}
	}
	s.terminal.DecodeHeaders(s, end)
}

// leave takes filter i off the chain. Those behind it have not seen the stream yet, so nobody holds on to their places.
func (s *Stream) leave(i int) {
	last := len(s.chain) - 1
	copy(s.chain[i:], s.chain[i+1:])
	s.chain[last].filter = nil
	s.chain = s.chain[:last]
	for ; i < last; i++ {
		s.chain[i].index = i
	}
}

// decodeData gives body bytes to filter i and those behind it.
func (s *Stream) decodeData(i int, data []byte, end bool) {
	for ; i < len(s.chain); i++ {
		c := &s.chain[i]
		h := &c.decode
		if h.all {
			h.end = h.end || end
			s.keepDecoded(c, data)
			return
		}
		out, status := c.filter.DecodeData(c, data, end)
		if s.decodeClosed {
			return
		}
		switch status {
		case StopIteration:
			h.stopped = true
			h.end = h.end || end
			return
		case StopAndBuffer:
			h.stopped = true
			h.end = h.end || end
			s.keepDecoded(c, out)
			return
		}
		if h.stopped {
			if s.resumeDecoding(c); s.decodeClosed {
				return
			}
		}
		data = out
	}
	s.terminal.DecodeData(s, data, end)
}

func (s *Stream) decodeTrailers(i int) {
	for ; i < len(s.chain); i++ {
		c := &s.chain[i]
		h := &c.decode
		if h.all {
			h.trailers = true
			return
		}
		status := c.filter.DecodeTrailers(c)
		if s.decodeClosed {
			return
		}
		if status != Continue {
			h.stopped, h.trailers = true, true
			return
		}
		if h.stopped || h.body.Len() > 0 {
			h.trailers = true
			s.resumeDecoding(c)
			return
		}
	}
	s.terminal.DecodeTrailers(s)
}

// resumeDecoding lets go what filter c held: head, body, trailers. Where the filter has not seen the body it sees it now.
func (s *Stream) resumeDecoding(c *Callbacks) {
	h := &c.decode
	from := c.index + 1
	unseen := h.all
	h.stopped, h.all = false, false
	if h.head {
		h.head = false
		whole := h.end && h.body.Len() == 0 && !h.trailers
		if s.decodeHeaders(from, whole); whole || s.decodeClosed {
			return
		}
	}
	if unseen {
		from = c.index
	}
	s.releaseDecoded(c, from, h.end && !h.trailers)
	if h.trailers && !s.decodeClosed {
		h.trailers = false
		s.decodeTrailers(from)
	}
}

// releaseDecoded passes on what c kept of the body; end comes with the last piece, or alone.
func (s *Stream) releaseDecoded(c *Callbacks, from int, end bool) {
	body := c.decode.body
	c.decode.body = buffer.Chain{}
	if body.Len() == 0 {
		if end {
			s.decodeData(from, nil, true)
		}
		return
	}
	for body.Len() > 0 && !s.decodeClosed {
		piece := body.Front()
		last := len(piece) == body.Len()
		s.decodeData(from, piece, end && last)
		if last {
			break
		}
		body.Consume(&s.Worker.Pool, len(piece))
	}
	body.Release(&s.Worker.Pool)
}

// keepDecoded adds to what c holds of the body, within the limit.
func (s *Stream) keepDecoded(c *Callbacks, data []byte) {
	body, limit := &c.decode.body, s.Config.BufferLimit
	if c.decode.limit > 0 {
		limit = c.decode.limit
	}
	if body.Len()+len(data) > limit {
		s.Cells[counters.HTTPDownstreamRqTooLarge]++
		s.LocalReply(413, "Payload Too Large", 0, DetailRequestTooLarge)
		return
	}
	body.Append(&s.Worker.Pool, data)
}
