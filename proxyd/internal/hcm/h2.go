package hcm

import (
	"math"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/hpack"
	"retinue.dev/proxyd/internal/http1"
	"retinue.dev/proxyd/internal/http2"
	"retinue.dev/proxyd/internal/http2frame"
	"retinue.dev/proxyd/internal/overload"
	"retinue.dev/proxyd/internal/stream"
)

// h2Stream is the memory of one request on HTTP/2 and the server codec of its stream. It is taken when the client begins the
// stream and given back when both the request (stream) and its frames (wire) have ended: a response may be complete long
// before the client has taken it.
type h2Stream struct {
	wire   http2.Stream
	stream stream.Stream
	router filter.Router
	h2     *h2

	early    buffer.Chain // bytes for a tunnel that is not there yet
	left     int64        // bytes that the response's Content-Length still promises; -1: none does
	complete int64        // ns: since when a complete response waits for the client; 0: it is not

	upgrade  bool // asks for a tunnel
	extended bool // by a CONNECT that names a protocol: an upgrade to everything above
	tunnel   bool
	earlyEnd bool // the client ended before there was a tunnel
	headSent bool
	finished bool

	next *h2Stream
}

// h2 is the HTTP/2 server codec: many requests at a time.
//
// A connection ends in two steps, so that no request is lost: GOAWAY with the greatest number asks the client to open no
// more streams, and when a PING behind it has come back, or after the drain time-out, GOAWAY with the last stream's number
// tells which ones are served. When those have ended the connection does.
type h2 struct {
	*connection
	session http2.Session

	midway    int64 // ns: since when a frame or a header section is incomplete; 0: none is
	drainAt   int64 // ns: when the first GOAWAY is due; 0: never
	lastAt    int64 // ns: when the last one is due
	pingAt    int64 // ns: when to ask for a sign of life
	pongBy    int64 // ns: when it must have come
	announced bool
	leaving   bool // the last GOAWAY is sent
	goneFlags stream.Flags
	goneWhy   string
	goneAs    stream.ResetReason
}

// beginHTTP2 makes the connection one of HTTP/2.
func (c *connection) beginHTTP2() {
	h := &h2{connection: c, midway: c.filter.Worker.Now()}
	h.goneFlags, h.goneWhy, h.goneAs = stream.FlagDownstreamTermination, stream.DetailRemoteDisconnect, stream.ResetConnectionTermination
	c.codec = h
	config := c.filter.Config
	c.cells[counters.HTTPDownstreamCxHTTP2Total]++
	h.session.Init(&config.HTTP2, false, c.filter.Shared.http2, c.conn, h, c.cells.HTTP2())
	h.session.Start()
	if config.KeepaliveInterval > 0 {
		h.pingAt = h.midway + config.KeepaliveInterval
	}
	if c.filter.drain.on {
		h.onDrain()
	}
	c.rearm()
}

func (h *h2) onData(data []byte) int {
	n := h.session.Feed(data)
	if h.closing || h.conn.Closed() {
		return len(data)
	}
	switch waits := n < len(data); {
	case h.session.Midway():
		if h.midway == 0 {
			h.midway = h.filter.Worker.Now()
		}
	case waits && (n > 0 || h.midway == 0):
		h.midway = h.filter.Worker.Now()
	case !waits:
		h.midway = 0
	}
	if limit := h.filter.Config.RequestHeadersTimeout; h.midway > 0 && limit > 0 {
		h.Arm(h.midway + limit)
	}
	if h.pingAt > 0 {
		h.pingAt = h.filter.Worker.Now() + h.filter.Config.KeepaliveInterval
	}
	return n
}

// onEOF: a client that has closed its half takes no answers any more, unlike in HTTP/1: windows and PING need both.
func (h *h2) onEOF() {
	h.session.Abandon(stream.DetailRemoteDisconnect)
	h.connection.close(0)
}

func (h *h2) onAboveHigh() { h.session.SetBlocked(true) }
func (h *h2) onBelowLow()  { h.session.SetBlocked(false) }

func (h *h2) onClose(reason conn.Reason) {
	if reason == conn.LocalClose && !h.session.Failed() {
		h.goneFlags, h.goneWhy, h.goneAs = 0, stream.DetailLocalDisconnect, stream.ResetLocal
	}
	h.session.Abandon(h.goneWhy)
}

// onExpired: the connection has reached its greatest age.
func (h *h2) onExpired() { h.announce() }

// onIdle: no request for too long.
func (h *h2) onIdle() { h.announce() }

// onDrain picks a time within the drain for the first GOAWAY, so that clients do not come back all at once.
func (h *h2) onDrain() {
	if h.announced {
		return
	}
	d := &h.filter.drain
	h.drainAt = max(d.since, 1)
	if d.over > 0 {
		h.drainAt += int64(h.filter.Worker.Rand() % uint64(d.over))
	}
	h.Arm(h.drainAt)
}

func (h *h2) onUndrain() { h.drainAt = 0 }

// announce sends the first GOAWAY.
func (h *h2) announce() {
	if h.announced || h.closing {
		return
	}
	h.announced, h.drainAt = true, 0
	h.session.Announce()
	h.session.Ping()
	h.lastAt = h.filter.Worker.Now() + h.filter.Config.DrainTimeout
	h.Arm(h.lastAt)
}

// leave sends the last GOAWAY.
func (h *h2) leave(code http2frame.ErrCode) {
	if h.leaving || h.closing {
		return
	}
	h.announced, h.leaving, h.lastAt = true, true, 0
	h.session.Finish(code)
	h.endWhenEmpty()
}

func (h *h2) endWhenEmpty() {
	if h.leaving && h.session.Streams() == 0 {
		h.connection.close(h.filter.Config.DelayedClose)
	}
}

// OnPong implements http2.Handler: every stream that the client began before it knew of the first GOAWAY has come.
func (h *h2) OnPong() {
	h.pongBy = 0
	if h.announced {
		h.leave(http2frame.NoError)
	}
}

// OnSettings implements http2.Handler.
func (h *h2) OnSettings() {}

// OnGoAway implements http2.Handler: the client opens no more streams, and the connection ends with the last one.
func (h *h2) OnGoAway(http2frame.ErrCode) { h.leave(http2frame.NoError) }

// OnFailed implements http2.Handler.
func (h *h2) OnFailed(err *http2frame.Error) {
	h.cells[counters.HTTPDownstreamCxProtocolError]++
	h.goneFlags, h.goneWhy, h.goneAs = stream.FlagDownstreamProtocolError, err.Detail, stream.ResetProtocolError
	h.session.Abandon(err.Detail)
	h.connection.close(h.filter.Config.DelayedClose)
}

func (h *h2) deadline() int64 {
	at := int64(math.MaxInt64)
	config := h.filter.Config
	soonest := func(when int64) {
		if when > 0 && when < at {
			at = when
		}
	}
	if h.midway > 0 && config.RequestHeadersTimeout > 0 {
		soonest(h.midway + config.RequestHeadersTimeout)
	}
	soonest(h.drainAt)
	soonest(h.lastAt)
	soonest(h.pingAt)
	soonest(h.pongBy)
	h.session.Each(func(st *http2.Stream) {
		switch x := st.Owner.(*h2Stream); {
		case !x.finished:
			soonest(x.stream.Deadline())
		case config.StreamIdleTimeout > 0 && x.complete > 0:
			soonest(x.complete + config.StreamIdleTimeout)
		}
	})
	return at
}

func (h *h2) onDeadline(now int64) {
	config := h.filter.Config
	due := func(at int64) bool { return at > 0 && now >= at }
	switch {
	case config.RequestHeadersTimeout > 0 && h.midway > 0 && due(h.midway+config.RequestHeadersTimeout):
		h.cells[counters.HTTPDownstreamRqHeaderTimeout]++
		h.session.Finish(http2frame.EnhanceYourCalm)
		h.goneWhy = stream.DetailHeaderTimeout
		h.session.Abandon(h.goneWhy)
		h.connection.close(config.DelayedClose)
		return
	case due(h.pongBy):
		h.cells.HTTP2()[http2.KeepaliveTimeout]++
		h.goneWhy = "http2.keepalive_timeout"
		h.session.Finish(http2frame.NoError)
		h.session.Abandon(h.goneWhy)
		h.connection.close(0)
		return
	case due(h.lastAt):
		h.leave(http2frame.NoError)
	case due(h.drainAt):
		h.cells[counters.HTTPDownstreamCxDrainClose]++
		h.announce()
	case due(h.pingAt):
		h.pingAt = now + config.KeepaliveInterval
		if h.pongBy == 0 && config.KeepaliveTimeout > 0 {
			h.pongBy = now + config.KeepaliveTimeout
		}
		h.session.Ping()
	}
	h.session.Each(func(st *http2.Stream) {
		switch x := st.Owner.(*h2Stream); {
		case !x.finished:
			x.stream.OnDeadline(now)
		case config.StreamIdleTimeout > 0 && x.complete > 0 && due(x.complete+config.StreamIdleTimeout):
			h.cells.HTTP2()[http2.TxFlushTimeout]++
			h.session.Reset(st, http2frame.Cancel)
		}
	})
}

// OnBegin implements http2.Handler.
func (h *h2) OnBegin() *http2.Stream {
	x := h.filter.Shared.takeH2()
	x.h2 = h
	h.idleSince = 0
	return &x.wire
}

// OnHeaders implements http2.Handler: a request's head, then its trailers.
func (h *h2) OnHeaders(st *http2.Stream, block []byte, end bool) *hpack.Error {
	x := st.Owner.(*h2Stream)
	config := h.filter.Config
	if st.HeadSeen() {
		if err := h.session.Decoder.Trailers(block, &x.stream.RequestTrailers, &config.HTTP2.Headers); err != nil {
			return err
		}
		switch {
		case x.finished:
		case x.upgrade:
			x.tunnelData(nil, true) // a tunnel has no trailers
		case x.stream.RequestTrailers.Len() == 0:
			x.stream.DecodeData(nil, true)
		default:
			x.stream.DecodeTrailers()
		}
		return nil
	}
	length, err := h.session.Decoder.Request(block, &x.stream.Request, &config.HTTP2.Headers)
	if err != nil && err.Compression {
		// The stream is not begun: nothing above knows of it.
		x.finished = true
		return err
	}
	h.begin(x)
	if err == nil {
		err = st.Expect(length)
	}
	switch {
	case err == nil:
		h.request(x, end)
	case err.Status != 0:
		h.cells.HTTP2()[http2.HeaderOverflow]++
		x.stream.Refuse(err.Status, http1.Reason(err.Status), stream.FlagDownstreamProtocolError, err.Detail)
	default:
		return err
	}
	return nil
}

// begin starts the stream of a head, complete or refused.
func (h *h2) begin(x *h2Stream) {
	f := h.filter
	config := f.Config
	s := &x.stream
	x.left, x.complete = -1, 0
	x.upgrade, x.extended, x.tunnel, x.earlyEnd, x.headSent, x.finished = false, false, false, false, false, false
	h.requests++
	h.cells[counters.HTTPDownstreamRqHTTP2Total]++
	f.active++
	s.Begin(f.Worker, &config.Config, x, &x.router)
	x.router.Begin(s, f.Shared.router, config.Routes)
	s.ConnectionID, s.Peer = h.conn.ID(), h.conn.Peer()
	s.Request.SetScheme(h.scheme()) // what the client says of it may be wrong, and others trust it
	s.RequestTrailers.Reset()
	if config.MaxRequests > 0 && h.requests >= config.MaxRequests {
		h.announce()
	}
	if !h.announced && f.Shared.overloaded(overload.DisableKeepalive) {
		h.cells[counters.HTTPDownstreamCxOverloadDisableKeepalive]++
		h.announce()
	}
}

// request prepares a complete head and gives it to the stream.
func (h *h2) request(x *h2Stream, end bool) {
	s := &x.stream
	config := h.filter.Config
	shared := h.filter.Shared
	if shared.overloaded(overload.StopRequests) {
		h.turnAway(s)
		return
	}
	if failed := http1.StripHopByHop(&s.Request.Block, false, http1.Downstream); failed != nil {
		s.Refuse(failed.Status, http1.Reason(failed.Status), stream.FlagDownstreamProtocolError, failed.Detail)
		return
	}
	if s.Request.MethodID() == header.MethodConnect {
		switch protocol := s.Request.Protocol(); {
		case len(protocol) == 0 && !config.upgrades.Connect():
			reply := s.NewReply(405)
			reply.AddString(header.Allow, "", "GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE, PATCH")
			s.SendReply(nil, "", "connect_not_allowed")
			return
		case len(protocol) > 0 && !config.upgrades.Allows(protocol):
			s.Refuse(501, http1.Reason(501), stream.FlagDownstreamProtocolError, "http2.protocol_not_allowed")
			return
		case len(protocol) > 0:
			shared.upgrade(&s.Request, protocol)
			x.extended = true
		}
		x.upgrade = true
		x.wire.SetTunnel()
	}
	if !shared.normalize(s, config) {
		s.Refuse(400, http1.Reason(400), stream.FlagDownstreamProtocolError, "path_normalization_failed")
		return
	}
	if s.Request.Has(header.Expect) && (end || !s.Request.HasToken(header.Expect, "100-continue")) {
		s.Request.RemoveID(header.Expect)
	}
	shared.forwarded(s, config, h.conn, &x.router)
	if x.upgrade {
		s.Upgrade = true
		x.earlyEnd = end
		s.DecodeHeaders(false)
		return
	}
	s.DecodeHeaders(end)
}

// OnData implements http2.Handler.
func (h *h2) OnData(st *http2.Stream, data []byte, end bool) {
	x := st.Owner.(*h2Stream)
	switch {
	case x.finished:
	case x.upgrade:
		x.tunnelData(data, end)
	default:
		x.stream.DecodeData(data, end)
	}
}

// tunnelData keeps bytes until there is a tunnel: before, they would be the body of a request that has none. The client's
// window bounds them.
func (x *h2Stream) tunnelData(data []byte, end bool) {
	if x.tunnel {
		x.stream.DecodeData(data, end)
		return
	}
	if x.headSent {
		return // refused: they were meant for the tunnel
	}
	if x.early.Len() == 0 && len(data) > 0 {
		x.h2.session.Pause(&x.wire, true)
	}
	x.early.Append(&x.h2.filter.Worker.Pool, data)
	x.earlyEnd = x.earlyEnd || end
}

// beginTunnel lets go what came early.
func (x *h2Stream) beginTunnel() {
	pool := &x.h2.filter.Worker.Pool
	for x.early.Len() > 0 && !x.finished {
		piece := x.early.Front()
		last := len(piece) == x.early.Len()
		x.stream.DecodeData(piece, last && x.earlyEnd)
		x.early.Consume(pool, len(piece))
		if last {
			x.h2.session.Pause(&x.wire, false)
			return
		}
	}
	if x.earlyEnd && !x.finished {
		x.stream.DecodeData(nil, true)
	}
}

// OnReset implements http2.Handler.
func (h *h2) OnReset(st *http2.Stream, code http2frame.ErrCode, remote bool, detail string) {
	x := st.Owner.(*h2Stream)
	if x.finished {
		return
	}
	s := &x.stream
	switch {
	case h.session.Failed() || h.conn.Closed():
		s.OnReset(h.goneAs, h.goneFlags, detail)
	case remote:
		premature := h.filter.Worker.Now()-s.Start < prematureReset
		s.OnReset(stream.ResetRemote, stream.FlagDownstreamRemoteReset, detail)
		if premature {
			h.session.Premature()
		}
	default:
		s.OnReset(stream.ResetProtocolError, stream.FlagDownstreamProtocolError, detail)
	}
}

// prematureReset is the age, in nanoseconds, below which a stream that the client resets has hardly been of use: Envoy's
// premature_reset_min_stream_lifetime_seconds.
const prematureReset = int64(1e9)

// OnAboveHigh implements http2.Handler.
func (h *h2) OnAboveHigh(st *http2.Stream) {
	if x := st.Owner.(*h2Stream); !x.finished {
		x.stream.OnDownstreamAboveHigh()
	}
}

// OnBelowLow implements http2.Handler.
func (h *h2) OnBelowLow(st *http2.Stream) {
	if x := st.Owner.(*h2Stream); !x.finished {
		x.stream.OnDownstreamBelowLow()
	}
}

// OnClosed implements http2.Handler.
func (h *h2) OnClosed(st *http2.Stream) {
	x := st.Owner.(*h2Stream)
	x.early.Release(&h.filter.Worker.Pool)
	if x.finished {
		h.filter.Shared.giveH2(x)
	}
	if h.session.Streams() == 0 {
		h.idleSince = h.filter.Worker.Now()
		h.endWhenEmpty()
	}
}
