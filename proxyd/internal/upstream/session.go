package upstream

import (
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/http2"
	"retinue.dev/proxyd/internal/http2frame"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
)

// session is one HTTP/2 connection to a host: conn.Handler towards the socket, and by frames http2.Handler. It carries
// many requests at a time: connecting, then in its host's list while it takes requests, then (GOAWAY, too old a number, too
// many requests) only until the last one has ended.
type session struct {
	http2.Session
	frames     frames
	transport  *conn.Conn
	host       *host
	prev, next *session // the host's list of those that take requests

	timer     timer.Timer
	idleSince int64 // ns; 0: requests are under way
	pingAt    int64 // ns: when to ask for a sign of life
	pongBy    int64 // ns: when it must have come; 0: none is asked for
	served    uint32
	counted   uint64 // bytes read that the counters have
	sent      uint64 // bytes written that the counters have
	held      *request
	openedFor cluster.Priority // whose breaker counts the connection
	listed    bool
	connected bool
	leaving   bool // takes no more requests
	reason    stream.ResetReason
	detail    string
}

// frames is a session's other face: what its frames call.
type frames struct{ *session }

// multiplexes tells that requests to the host share connections.
func (h *host) multiplexes() bool {
	return h.pool.config.HTTP2 != nil && (h.speaksHTTP2 || !h.pool.config.Negotiate)
}

// dialHTTP2 opens a connection of HTTP/2.
func (h *host) dialHTTP2(p cluster.Priority) {
	c := h.newSession(p)
	h.connecting++
	h.opened(p)
	c.transport = h.dial(c, h.options())
}

func (h *host) newSession(p cluster.Priority) *session {
	c := &session{host: h, openedFor: p, reason: stream.ResetConnectionTermination, detail: DetailTermination}
	c.timer.Callback = c
	c.frames.session = c
	return c
}

// negotiated takes over a connection whose server chose HTTP/2.
func (h *host) negotiated(t *conn.Conn, p cluster.Priority) {
	h.speaksHTTP2 = true
	c := h.newSession(p)
	c.transport = t
	t.SetHandler(c)
	c.OnConnected(t)
}

// OnConnected implements conn.Handler.
func (c *session) OnConnected(t *conn.Conn) {
	h := c.host
	if h.pool.config.Negotiate && t.Protocol() != "h2" {
		h.speaksHTTP2 = false
		plain := h.newClient(c.openedFor)
		plain.transport = t
		t.SetHandler(plain)
		plain.OnConnected(t)
		return
	}
	h.connecting--
	h.reached(t)
	c.connected = true
	config := h.pool.config
	h.pool.cells[counters.ClusterUpstreamCxHTTP2Total]++
	now := c.transport.Worker().Now()
	c.idleSince = now
	c.Init(config.HTTP2, true, h.pool.manager.http2, c.transport, &c.frames, h.pool.cells.HTTP2())
	c.Start()
	if config.KeepaliveInterval > 0 {
		c.pingAt = now + int64(config.KeepaliveInterval)
	}
	c.arm()
	c.list()
	h.serve()
}

// list puts the session where requests find it, in front of older ones.
func (c *session) list() {
	if c.listed || c.leaving || c.host.index < 0 {
		return
	}
	c.listed = true
	c.next = c.host.sessions
	if c.next != nil {
		c.next.prev = c
	}
	c.host.sessions = c
}

func (c *session) unlist() {
	if !c.listed {
		return
	}
	c.listed = false
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		c.host.sessions = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
}

// open finds a session with room for a request.
func (h *host) open() *session {
	for c := h.sessions; c != nil; c = c.next {
		if c.Capacity() > 0 {
			return c
		}
	}
	return nil
}

// serve gives requests that wait to sessions with room.
func (h *host) serve() {
	for h.queued > 0 {
		c := h.open()
		if c == nil {
			return
		}
		if !h.admit() {
			continue
		}
		w := h.first()
		priority := w.priority
		decoder, cb := h.remove(w)
		c.begin(decoder, cb, priority)
	}
}

// begin hands a session to a request.
func (c *session) begin(decoder stream.ResponseDecoder, cb Callbacks, p cluster.Priority) {
	h := c.host
	r := h.pool.manager.takeRequest()
	r.session, r.decoder, r.priority = c, decoder, p
	r.began = c.transport.Worker().Now()
	c.idleSince = 0
	c.served++
	h.requestBegan(p)
	if limit := h.pool.config.MaxRequests; limit > 0 && c.served >= limit {
		h.pool.cells[counters.ClusterUpstreamCxMaxRequests]++
		c.leave()
	}
	cb.OnPoolReady(r, h.host, c.served > 1)
}

// leave takes the session out of use; it closes with its last request.
func (c *session) leave() {
	c.leaving = true
	c.unlist()
}

func (c *session) closeWhenEmpty() {
	if c.leaving && c.connected && c.Streams() == 0 && c.held == nil && !c.transport.Closed() {
		c.transport.CloseAfterFlush(0)
	}
}

// OnData implements conn.Handler.
func (c *session) OnData(_ *conn.Conn, data []byte) int {
	n := c.Feed(data)
	if config := c.host.pool.config; c.pingAt > 0 {
		c.pingAt = c.transport.Worker().Now() + int64(config.KeepaliveInterval)
	}
	if c.transport.Closed() || c.Failed() {
		return len(data)
	}
	return n
}

// OnEOF implements conn.Handler.
func (c *session) OnEOF(*conn.Conn) { c.transport.Close() }

// OnAboveHigh implements conn.Handler: bodies wait in their streams.
func (c *session) OnAboveHigh(*conn.Conn) { c.SetBlocked(true) }

// OnBelowLow implements conn.Handler.
func (c *session) OnBelowLow(*conn.Conn) { c.SetBlocked(false) }

// OnClose implements conn.Handler.
func (c *session) OnClose(t *conn.Conn, reason conn.Reason) {
	t.Worker().Timers.Stop(&c.timer)
	h := c.host
	c.leave()
	c.countBytes()
	switch reason {
	case conn.ConnectFailure, conn.ConnectTimeout:
		h.connecting--
		h.connectFailed(reason)
		if h.connecting == 0 { // one connection was made for them all
			h.fail(failureOf(reason))
		}
	default:
		if reason == conn.RemoteReset {
			c.detail = DetailRemoteReset
		}
		if c.Streams() > 0 {
			h.pool.cells[counters.ClusterUpstreamCxDestroyWithActiveRq]++
		}
		c.Abandon(c.detail)
		for r := c.held; r != nil; r = c.held {
			c.held = r.next
			r.next = nil
			r.fail(c.reason, c.detail)
			h.pool.manager.giveRequest(r)
		}
	}
	h.closed(c.openedFor)
}

func (c *session) countBytes() {
	cells := c.host.pool.cells
	read, written := c.transport.BytesRead(), c.transport.BytesWritten()
	cells[counters.ClusterUpstreamCxRxBytesTotal] += read - c.counted
	cells[counters.ClusterUpstreamCxTxBytesTotal] += written - c.sent
	c.counted, c.sent = read, written
}

func (c *session) arm() {
	config := c.host.pool.config
	at := int64(0)
	if idle := int64(config.IdleTimeout); idle > 0 {
		at = c.transport.Worker().Now() + idle
		if c.idleSince > 0 {
			at = c.idleSince + idle
		}
	}
	for _, when := range [...]int64{c.pingAt, c.pongBy} {
		if when > 0 && (at == 0 || when < at) {
			at = when
		}
	}
	if at > 0 {
		c.transport.Worker().Timers.Set(&c.timer, at)
	}
}

// OnTimer implements timer.Callback.
func (c *session) OnTimer(_ *timer.Timer, now int64) {
	config := c.host.pool.config
	switch idle := int64(config.IdleTimeout); {
	case idle > 0 && c.idleSince > 0 && now >= c.idleSince+idle:
		c.host.pool.cells[counters.ClusterUpstreamCxIdleTimeout]++
		c.leave()
		c.Finish(http2frame.NoError)
		c.closeWhenEmpty()
		return
	case c.pongBy > 0 && now >= c.pongBy:
		c.host.pool.cells.HTTP2()[http2.KeepaliveTimeout]++
		c.detail = "http2.keepalive_timeout"
		c.transport.Close()
		return
	case c.pingAt > 0 && now >= c.pingAt:
		c.pingAt = now + int64(config.KeepaliveInterval)
		c.pongBy = now + int64(config.KeepaliveTimeout)
		c.Ping()
	}
	if !c.transport.Closed() {
		c.arm()
	}
}

// OnBegin implements http2.Handler; servers do not begin streams.
func (c *frames) OnBegin() *http2.Stream { return nil }

// OnSettings implements http2.Handler.
func (c *frames) OnSettings() {
	for r := c.held; r != nil; r = c.held {
		c.held = r.next
		r.next = nil
		r.send(r.head, false)
	}
	c.host.serve()
}

// OnPong implements http2.Handler.
func (c *frames) OnPong() { c.pongBy = 0 }

// OnGoAway implements http2.Handler.
func (c *frames) OnGoAway(http2frame.ErrCode) {
	h := c.host
	c.leave()
	if h.queued > 0 && h.connecting == 0 && h.open() == nil && h.index >= 0 {
		h.connect(h.first().priority)
	}
	c.closeWhenEmpty()
}

// OnFailed implements http2.Handler: the server broke the protocol.
func (c *frames) OnFailed(err *http2frame.Error) {
	c.host.pool.cells[counters.ClusterUpstreamCxProtocolError]++
	c.reason, c.detail = stream.ResetProtocolError, err.Detail
	c.leave()
	c.Abandon(err.Detail)
	c.transport.CloseAfterFlush(0)
}
