package hcm

import (
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/stream"
)

// spliceBody lets the rest of the request's body go straight to the upstream, if it may; piece is what has just been passed on.
func (h *h1) spliceBody(x *exchange, piece int) {
	if h.x != x || h.phase != phaseBody {
		return // the stream ended over that piece
	}
	left := x.body.Remaining()
	if !stream.Bulky(left, piece) || h.disabled > 0 || h.closing || !h.conn.Spliceable() {
		return
	}
	if to := x.router.RequestTarget(&x.stream, left); to != nil {
		h.bulk = true
		h.conn.SpliceTo(to, left, h)
	}
}

// OnSpliced implements conn.Splicer. When the upstream goes first it is not called at its end: bulk stays, and the connection
// closes after its answer, since nobody knows where in the body it stands.
func (h *h1) OnSpliced(_ *conn.Conn, n int, done bool) {
	if h.x == nil || h.phase != phaseBody {
		return // given up; the connection closes
	}
	s := &h.x.stream
	h.x.body.Skip(int64(n))
	s.OnBulkReceived(n)
	if !done {
		return
	}
	h.bulk = false
	if h.x.body.Done() {
		h.phase = phaseAnswer
		s.DecodeData(nil, true)
	}
}
