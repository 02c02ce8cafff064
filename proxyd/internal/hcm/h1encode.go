package hcm

import (
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/http1"
	"retinue.dev/proxyd/internal/overload"
	"retinue.dev/proxyd/internal/stream"
)

// EncodeInterim implements stream.ResponseEncoder. A client of HTTP/1.0 does not know 1xx.
func (h *h1) EncodeInterim(r *header.Response) {
	if h.version10 || h.headSent {
		return
	}
	if r.Status == 100 {
		h.expects = false
	}
	shared := h.filter.Shared
	shared.head = http1.AppendResponseHead(shared.head[:0], r, http1.ResponseOptions{Framing: http1.None})
	h.filter.Config.HeaderCase.Apply(shared.head)
	h.conn.Write(shared.head)
}

// EncodeHeaders implements stream.ResponseEncoder: it decides framing and whether the connection goes on.
func (h *h1) EncodeHeaders(r *header.Response, end bool) {
	shared := h.filter.Shared
	h.headSent = true
	o := http1.ResponseOptions{Head: h.headOnly, Date: shared.now()}
	h.keepAfter = h.keep && h.mayKeep(r.Status)
	switch {
	case h.phase == phaseUpgrade && (r.Status == 101 || h.connectVerb && r.Status/100 == 2):
		o.Framing = http1.Tunnel
		if r.Status == 101 {
			o.Connection = http1.ConnUpgrade
		}
		h.phase = phaseTunnel
		h.cells[counters.HTTPDownstreamCxUpgradesTotal]++
		h.cells[counters.HTTPDownstreamCxUpgradesActive]++
		h.keepAfter = false
	case h.headOnly || r.Status == 204 || r.Status == 304 || end:
		o.Framing = http1.None
	default:
		o.Framing, o.Length = h.frame(r)
	}
	if h.phase == phaseUpgrade { // refused: whatever follows a CONNECT was meant for a tunnel
		h.phase = phaseAnswer
		if h.connectVerb {
			h.keepAfter, h.ownClose = false, true
		}
	}
	if o.Framing != http1.Tunnel {
		switch {
		case !h.keepAfter:
			o.Connection = http1.ConnClose
		case h.version10:
			o.Connection = http1.ConnKeepAlive
		}
	}
	h.framing, h.remaining = o.Framing, o.Length
	shared.head = http1.AppendResponseHead(shared.head[:0], r, o)
	h.filter.Config.HeaderCase.Apply(shared.head)
	h.conn.Write(shared.head)
	h.bodyEnded = end
	if o.Framing == http1.Tunnel {
		h.unpause()
		if h.eof { // the client had nothing to say
			h.x.stream.DecodeData(nil, true)
		}
	}
}

// mayKeep tells whether nothing on our side speaks against another request.
func (h *h1) mayKeep(status int) bool {
	switch {
	case h.expired:
		h.ownClose = true
		return false
	case (h.filter.more == nil || h.refused || h.conn.Transport() != nil) && h.filter.drain.closing(h.filter.Worker):
		h.cells[counters.HTTPDownstreamCxDrainClose]++
		h.ownClose = true
		return false
	case h.listener.Tight() || h.filter.Shared.overloaded(overload.DisableKeepalive):
		h.cells[counters.HTTPDownstreamCxOverloadDisableKeepalive]++
		h.ownClose = true
		return false
	case h.phase == phaseBody:
		// The answer comes before the request's end. The rest is worth reading only when it is short and sure to come,
		// which it is not when it is late already.
		left := h.x.body.Remaining()
		if h.x.parser.Head.Framing != http1.Length || left > keptBody || h.expects || h.bulk || status == 408 {
			h.ownClose = true
			return false
		}
	}
	return true
}

// frame chooses how the end of the body is told: the length where the response has one, chunks where the client knows them,
// else the end of the connection.
func (h *h1) frame(r *header.Response) (http1.Framing, int64) {
	if r.Has(header.Trailer) && !h.version10 {
		return http1.Chunked, 0 // HTTP/2 sends trailers behind any body, HTTP/1 behind chunks only
	}
	if value := r.Get(header.ContentLength); value != nil && r.Count(header.ContentLength) == 1 {
		if n, ok := parseLength(value); ok {
			return http1.Length, n
		}
	}
	if !h.version10 {
		return http1.Chunked, 0
	}
	h.keepAfter = false
	return http1.UntilClose, 0
}

// parseLength reads a Content-Length that a codec or a filter wrote.
func parseLength(value []byte) (int64, bool) {
	if len(value) == 0 || len(value) > 18 {
		return 0, false
	}
	n := int64(0)
	for _, c := range value {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// EncodeData implements stream.ResponseEncoder. A body that is longer or shorter than its Content-Length would shift what
// the client reads next: the connection is cut instead.
func (h *h1) EncodeData(data []byte, end bool) {
	switch h.framing {
	case http1.Length:
		if h.remaining -= int64(len(data)); h.remaining < 0 || end && h.remaining > 0 {
			h.x.stream.Reset(stream.ResetProtocolError, stream.FlagUpstreamProtocolError, stream.DetailEncodeFailed)
			return
		}
		h.conn.Write(data)
	case http1.Chunked:
		shared := h.filter.Shared
		if len(data) > 0 {
			shared.head = http1.AppendChunkHead(shared.head[:0], len(data))
			h.conn.Write(shared.head)
			h.conn.Write(data)
			if !end {
				h.conn.Write(chunkEnd)
			}
		}
		if end {
			last := lastChunk
			if len(data) == 0 {
				last = last[len(http1.ChunkEnd):]
			}
			h.conn.Write(last)
		}
	case http1.Tunnel:
		h.conn.Write(data)
		if end {
			h.conn.CloseWrite()
		}
	case http1.UntilClose:
		h.conn.Write(data)
	}
	h.bodyEnded = h.bodyEnded || end
}

var (
	chunkEnd  = []byte(http1.ChunkEnd)
	lastChunk = []byte(http1.ChunkEnd + "0\r\n\r\n")
)

// EncodeTrailers implements stream.ResponseEncoder. Only chunks can carry trailers; elsewhere they are left out.
func (h *h1) EncodeTrailers(t *header.Block) {
	if h.framing != http1.Chunked {
		h.EncodeData(nil, true)
		return
	}
	shared := h.filter.Shared
	shared.head = http1.AppendLastChunk(shared.head[:0], t)
	h.filter.Config.HeaderCase.Apply(shared.head)
	h.conn.Write(shared.head)
	h.bodyEnded = true
}

// Reset implements stream.ResponseEncoder. HTTP/1 has no other word for it than the end of the connection, and for a body
// that ends with the connection it must be a reset: an orderly end would make a part look complete.
func (h *h1) Reset(reason stream.ResetReason) {
	h.closing = true
	if reason == stream.ResetOverload || h.headSent && h.framing == http1.UntilClose || h.framing == http1.Tunnel {
		h.conn.Abort() // what is staged for the client is the memory that is wanted back, or would look like an end
		return
	}
	h.conn.CloseAfterFlush(0)
}

// BulkTarget implements stream.BulkEncoder: a body with a length is the socket's own bytes.
func (h *h1) BulkTarget(n int64) *conn.Conn {
	if h.framing != http1.Length || h.remaining != n || h.above || h.closing || !h.conn.Spliceable() {
		return nil
	}
	return h.conn
}

// OnBulk implements stream.BulkEncoder.
func (h *h1) OnBulk(n int) { h.remaining -= int64(n) }

// ReadDisable implements stream.ResponseEncoder.
func (h *h1) ReadDisable(disable bool) {
	if disable {
		h.disabled++
		h.conn.PauseRead()
		return
	}
	if h.disabled > 0 {
		h.disabled--
		h.conn.ResumeRead()
	}
}

// BufferedBytes implements stream.ResponseEncoder.
func (h *h1) BufferedBytes() int { return h.conn.Buffered() }
