package stream

import (
	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
)

// The response walks the chain backward, from the filter next to the router to the one next to the client. It mirrors
// decode.go.

// EncodeInterim passes a 1xx response on. Filters do not see it.
func (s *Stream) EncodeInterim(h *header.Response) {
	if !s.started && !s.finished {
		s.activity = s.Worker.Now()
		s.down.EncodeInterim(h)
	}
}

// EncodeHeaders is the terminal's response head; h must stay valid until the stream has ended, or KeepResponse.
func (s *Stream) EncodeHeaders(h *header.Response, end bool) {
	if s.finished {
		return
	}
	s.activity = s.Worker.Now()
	s.Response = h
	s.encoding = true
	if len(s.chain) == 0 {
		s.sendHeaders(end)
		return
	}
	s.encodeHeaders(len(s.chain)-1, end)
}

// EncodeData is the terminal's response body, borrowed for the call.
func (s *Stream) EncodeData(data []byte, end bool) {
	if s.finished {
		return
	}
	s.activity = s.Worker.Now()
	if len(s.chain) == 0 {
		s.sendData(data, end)
		return
	}
	s.encodeData(len(s.chain)-1, data, end)
}

// EncodeTrailers ends the terminal's response.
func (s *Stream) EncodeTrailers(t *header.Block) {
	if s.finished {
		return
	}
	s.activity = s.Worker.Now()
	s.ResponseTrailers = t
	if len(s.chain) == 0 {
		s.sendTrailers()
		return
	}
	s.encodeTrailers(len(s.chain) - 1)
}

func (s *Stream) encodeHeaders(i int, end bool) {
	for ; i >= 0; i-- {
		c := &s.chain[i]
		status := c.filter.EncodeHeaders(c, end)
		if s.finished {
			return
		}
		if status != Continue {
			c.encode.head, c.encode.stopped = true, true
			c.encode.all = status == StopAndBuffer
			c.encode.end = end
			return
		}
		if c.encode.body.Len() > 0 {
			s.encodeHeaders(i-1, false)
			s.releaseEncoded(c, i-1, end)
			return
		}
	}
	s.sendHeaders(end)
}

func (s *Stream) encodeData(i int, data []byte, end bool) {
	for ; i >= 0; i-- {
		c := &s.chain[i]
		h := &c.encode
		if h.all {
			h.end = h.end || end
			s.keepEncoded(c, data)
			return
		}
		out, status := c.filter.EncodeData(c, data, end)
		if s.finished {
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
			s.keepEncoded(c, out)
			return
		}
		if h.stopped {
			if s.resumeEncoding(c); s.finished {
				return
			}
		}
		data = out
	}
	s.sendData(data, end)
}

func (s *Stream) encodeTrailers(i int) {
	for ; i >= 0; i-- {
		c := &s.chain[i]
		h := &c.encode
		if h.all {
			h.trailers = true
			return
		}
		status := c.filter.EncodeTrailers(c)
		if s.finished {
			return
		}
		if status != Continue {
			h.stopped, h.trailers = true, true
			return
		}
		if h.stopped || h.body.Len() > 0 {
			h.trailers = true
			s.resumeEncoding(c)
			return
		}
	}
	s.sendTrailers()
}

func (s *Stream) resumeEncoding(c *Callbacks) {
	h := &c.encode
	from := c.index - 1
	unseen := h.all
	h.stopped, h.all = false, false
	if h.head {
		h.head = false
		whole := h.end && h.body.Len() == 0 && !h.trailers
		if s.encodeHeaders(from, whole); whole || s.finished {
			return
		}
	}
	if unseen {
		from = c.index
	}
	s.releaseEncoded(c, from, h.end && !h.trailers)
	if h.trailers && !s.finished {
		h.trailers = false
		s.encodeTrailers(from)
	}
}

func (s *Stream) releaseEncoded(c *Callbacks, from int, end bool) {
	body := c.encode.body
	c.encode.body = buffer.Chain{}
	if body.Len() == 0 {
		if end && !s.finished {
			s.encodeData(from, nil, true)
		}
		return
	}
	for body.Len() > 0 && !s.finished {
		piece := body.Front()
		last := len(piece) == body.Len()
		s.encodeData(from, piece, end && last)
		if last {
			break
		}
		body.Consume(&s.Worker.Pool, len(piece))
	}
	body.Release(&s.Worker.Pool)
}

// keepEncoded adds to what c holds of the response's body, within the limit.
func (s *Stream) keepEncoded(c *Callbacks, data []byte) {
	body := &c.encode.body
	if body.Len()+len(data) > s.Config.BufferLimit {
		s.Cells[counters.HTTPRsTooLarge]++
		s.LocalReply(500, "Internal Server Error", 0, DetailResponseTooLarge)
		return
	}
	body.Append(&s.Worker.Pool, data)
}

func (s *Stream) sendHeaders(end bool) {
	s.started = true
	s.Status = s.Response.Status
	s.ResponseStarted = s.Worker.Now()
	if s.Details == "" {
		s.Details = DetailViaUpstream
	}
	s.down.EncodeHeaders(s.Response, end)
	if end {
		s.endResponse()
	}
}

func (s *Stream) sendData(data []byte, end bool) {
	s.BytesSent += uint64(len(data))
	s.down.EncodeData(data, end)
	if end {
		s.endResponse()
	}
}

func (s *Stream) sendTrailers() {
	s.down.EncodeTrailers(s.ResponseTrailers)
	s.endResponse()
}

// endResponse finishes the stream, a tunnel only when the other direction has ended too.
func (s *Stream) endResponse() {
	s.responseEnded = true
	if !s.finished && (!s.tunnel || s.requestEnded) {
		s.finish()
	}
}
