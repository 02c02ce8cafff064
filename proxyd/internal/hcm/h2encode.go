package hcm

import (
	"encoding/base64"
	"encoding/binary"
	"net/netip"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/http2frame"
	"retinue.dev/proxyd/internal/stream"
)

func (s *Shared) takeH2() *h2Stream {
	x := s.freeH2
	if x == nil {
		x = &h2Stream{}
		x.wire.Owner = x
		x.stream.Overload = s.Overload
		return x
	}
	s.freeH2, x.next = x.next, nil
	s.keptH2--
	return x
}

func (s *Shared) giveH2(x *h2Stream) {
	x.h2 = nil
	if s.keptH2 >= keptExchanges {
		return
	}
	x.next, s.freeH2 = s.freeH2, x
	s.keptH2++
}

// upgrade makes the HTTP/1 form of a CONNECT that names a protocol, which is what filters, routes and upstreams know:
// RFC 8441 5 has the differences for WebSocket.
func (s *Shared) upgrade(r *header.Request, protocol []byte) {
	r.SetMethodID(header.MethodGet)
	r.Set(header.Upgrade, nil, protocol)
	if header.EqualFold(protocol, "websocket") && !r.Has(header.SecWebSocketKey) {
		var nonce [16]byte
		binary.LittleEndian.PutUint64(nonce[:], s.worker.Rand())
		binary.LittleEndian.PutUint64(nonce[8:], s.worker.Rand())
		s.text = base64.StdEncoding.AppendEncode(s.text[:0], nonce[:])
		r.Set(header.SecWebSocketKey, nil, s.text)
	}
}

// EncodeInterim implements stream.ResponseEncoder. What 101 says is said by 200 (RFC 8441).
func (x *h2Stream) EncodeInterim(r *header.Response) {
	if x.headSent || !x.wire.Open() {
		return
	}
	session := &x.h2.session
	b, at := session.BeginSection()
	session.EndSection(&x.wire, session.Encoder.AppendResponse(b, r), at, false)
}

// EncodeHeaders implements stream.ResponseEncoder.
func (x *h2Stream) EncodeHeaders(r *header.Response, end bool) {
	h := x.h2
	if !x.wire.Open() {
		return
	}
	if h.filter.drain.on && !h.announced && h.filter.drain.closing(h.filter.Worker) {
		h.cells[counters.HTTPDownstreamCxDrainClose]++
		h.announce()
	}
	x.headSent = true
	status := r.Status
	if x.upgrade {
		x.tunnel = x.extended && status == 101 || !x.extended && status/100 == 2
		if x.tunnel {
			h.cells[counters.HTTPDownstreamCxUpgradesTotal]++
			h.cells[counters.HTTPDownstreamCxUpgradesActive]++
			r.Status = 200
			r.RemoveID(header.SecWebSocketAccept)
			r.RemoveID(header.ContentLength)
		}
	}
	if !end && !x.tunnel && x.stream.Request.MethodID() != header.MethodHead {
		if n, ok := parseLength(r.Get(header.ContentLength)); ok {
			x.left = n
		}
	}
	if !r.Has(header.Date) {
		r.Add(header.Date, nil, h.filter.Shared.now())
	}
	session := &h.session
	b, at := session.BeginSection()
	b = session.Encoder.AppendResponse(b, r)
	r.Status = status
	session.EndSection(&x.wire, b, at, end)
	switch {
	case !x.wire.Open():
	case x.tunnel:
		x.beginTunnel()
	case x.early.Len() > 0:
		x.early.Release(&h.filter.Worker.Pool)
		session.Pause(&x.wire, false)
	}
}

// EncodeData implements stream.ResponseEncoder. A body that is longer or shorter than its Content-Length is cut: the client
// would take it for complete.
func (x *h2Stream) EncodeData(data []byte, end bool) {
	if !x.wire.Open() {
		return
	}
	if x.left >= 0 {
		if x.left -= int64(len(data)); x.left < 0 || end && x.left > 0 {
			x.stream.Reset(stream.ResetProtocolError, stream.FlagUpstreamProtocolError, stream.DetailEncodeFailed)
			return
		}
	}
	x.h2.session.Send(&x.wire, data, end)
}

// EncodeTrailers implements stream.ResponseEncoder.
func (x *h2Stream) EncodeTrailers(t *header.Block) {
	if x.wire.Open() {
		x.h2.session.SendTrailers(&x.wire, t)
	}
}

// Reset implements stream.ResponseEncoder.
func (x *h2Stream) Reset(reason stream.ResetReason) {
	code := http2frame.InternalError
	switch {
	case x.tunnel:
		code = http2frame.ConnectError
	case reason == stream.ResetProtocolError:
		code = http2frame.ProtocolError
	}
	x.h2.session.Reset(&x.wire, code)
}

// ReadDisable implements stream.ResponseEncoder.
func (x *h2Stream) ReadDisable(disable bool) {
	if x.wire.Open() {
		x.h2.session.Pause(&x.wire, disable)
	}
}

// BufferedBytes implements stream.ResponseEncoder.
func (x *h2Stream) BufferedBytes() int { return x.wire.Buffered() }

// Conn implements stream.Peered.
func (x *h2Stream) Conn() *conn.Conn { return x.h2.conn }

// Arm implements stream.Downstream.
func (x *h2Stream) Arm(at int64) { x.h2.Arm(at) }

// LocalAddress implements stream.Downstream.
func (x *h2Stream) LocalAddress() netip.AddrPort { return x.h2.LocalAddress() }

// OnFinished implements stream.Downstream.
func (x *h2Stream) OnFinished() {
	h := x.h2
	h.filter.active--
	h.countBytes()
	x.finished = true
	if x.tunnel {
		h.cells[counters.HTTPDownstreamCxUpgradesActive]--
	}
	if !x.wire.Open() {
		h.filter.Shared.giveH2(x)
		return
	}
	x.complete = h.filter.Worker.Now()
	if timeout := h.filter.Config.StreamIdleTimeout; timeout > 0 {
		h.Arm(x.complete + timeout)
	}
}
