package upstream

import (
	"net/netip"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/http1"
	"retinue.dev/proxyd/internal/proxyprotocol"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
)

// Details of resets, for RESPONSE_CODE_DETAILS. A response that breaks HTTP has the codec's.
const (
	DetailTermination = "connection_termination"
	DetailRemoteReset = "remote_reset"
	DetailConnect     = "connection_failure"
)

// client is one HTTP/1.1 connection to a host: conn.Handler towards the socket, stream.RequestEncoder towards the
// router. It serves one request at a time: connecting, then idle and busy in turns, then gone.
//
// A connection goes back to the idle list only when request and response both ended cleanly and neither side asked to
// close; any event on an idle connection closes it.
type client struct {
	transport *conn.Conn
	host      *host
	next      *client // idle list
	decoder   stream.ResponseDecoder

	parser   http1.ResponseParser
	response header.Response
	body     http1.BodyDecoder
	trailers header.Block

	timer     timer.Timer // idle time-out; it looks when it fires
	idleSince int64       // ns
	began     int64       // ns, of the request under way
	served    uint32      // requests begun
	pauses    int32       // ReadDisable in force
	counted   uint64      // bytes read that the counters have
	sent      uint64      // bytes written that the counters have
	method    header.MethodID
	priority  cluster.Priority // of the request under way
	openedFor cluster.Priority // whose breaker counts the connection

	chunked     bool // how the request's body is framed
	tunnel      bool // 101 or a 2xx to CONNECT: bytes both ways
	upgrade     bool // the request asks for a tunnel
	requestDone bool
	headSeen    bool // the final response head has arrived
	keepAlive   bool
}

// connect opens a connection of the protocol that the host is known, or told, to speak, for requests of a priority first.
func (h *host) connect(p cluster.Priority) {
	if h.multiplexes() {
		h.dialHTTP2(p)
		return
	}
	c := h.newClient(p)
	h.connecting++
	h.opened(p)
	c.transport = h.dial(c, h.options())
}

func (h *host) newClient(p cluster.Priority) *client {
	c := h.pool.manager.client()
	c.host, c.openedFor = h, p
	c.timer.Callback = c
	return c
}

// keptClients bounds the free list: what a burst needed beyond it goes back to the heap.
const keptClients = 256

func (m *Manager) client() *client {
	c := m.spare
	if c == nil {
		return &client{}
	}
	m.spare, c.next = c.next, nil
	m.spares--
	return c
}

// Reclaim implements worker.Spent. The memory of heads is kept.
func (c *client) Reclaim() bool {
	m := c.host.pool.manager
	if m.spares >= keptClients {
		return true
	}
	response, trailers := c.response, c.trailers
	response.Reset()
	trailers.Reset()
	*c = client{response: response, trailers: trailers, next: m.spare}
	m.spare = c
	m.spares++
	return true
}

func (h *host) options() *conn.Options {
	config := h.pool.config
	o := &conn.Options{HighWatermark: config.BufferLimit, ConnectTimeout: config.ConnectTimeout}
	if config.TLS != nil {
		o.Transport = h.pool.manager.tls.Client(config.TLS.Config(h.host.ServerName()), h.pool.cells.SSL())
	}
	if config.Proxy > 0 { // pooled, it is nobody's in particular
		o.Preface = proxyprotocol.Append(nil, config.Proxy, netip.AddrPort{}, netip.AddrPort{})
	}
	return o
}

// OnConnected implements conn.Handler.
func (c *client) OnConnected(t *conn.Conn) {
	if t.Protocol() == "h2" {
		c.host.negotiated(t, c.openedFor)
		t.Worker().Bury(c)
		return
	}
	c.host.connecting--
	c.host.reached(t)
	c.host.pool.cells[counters.ClusterUpstreamCxHTTP1Total]++
	c.idleSince = c.transport.Worker().Now()
	if idle := c.host.pool.config.IdleTimeout; idle > 0 {
		c.transport.Worker().Timers.Set(&c.timer, c.idleSince+int64(idle))
	}
	c.host.ready(c, false)
}

// OnTimer closes a connection that has been idle for long enough, else it looks again when it could be.
func (c *client) OnTimer(t *timer.Timer, now int64) {
	idle := int64(c.host.pool.config.IdleTimeout)
	if idle <= 0 {
		return
	}
	since := now
	if c.decoder == nil {
		since = c.idleSince
	}
	if now-since >= idle {
		c.host.pool.cells[counters.ClusterUpstreamCxIdleTimeout]++
		c.transport.Close()
		return
	}
	c.transport.Worker().Timers.Set(t, since+idle)
}

// attach begins a request.
func (c *client) attach(decoder stream.ResponseDecoder, p cluster.Priority) {
	c.decoder, c.priority = decoder, p
	c.served++
	c.began = c.transport.Worker().Now()
	c.requestDone, c.headSeen, c.tunnel, c.upgrade, c.chunked, c.keepAlive = false, false, false, false, false, true
	c.parser.Reset()
	c.host.requestBegan(c.priority)
}

// Host is the endpoint, for the access log.
func (c *client) Host() *cluster.Host { return c.host.host }

// EncodeHeaders implements stream.RequestEncoder.
func (c *client) EncodeHeaders(h *header.Request, end bool) {
	if c.decoder == nil {
		return
	}
	o := http1.RequestOptions{}
	c.method = h.MethodID()
	switch {
	case h.Has(header.Upgrade):
		c.upgrade = true
		o.Connection = http1.ConnUpgrade
		o.Framing = http1.None
	case c.method == header.MethodConnect:
		c.upgrade = true
	case end:
		if length := h.Get(header.ContentLength); length != nil || bodyExpected(c.method) {
			o.Framing = http1.Length // says 0: a server need not guess
		}
	default:
		if length, ok := parseLength(h.Get(header.ContentLength)); ok {
			o.Framing, o.Length = http1.Length, length
		} else {
			o.Framing, c.chunked = http1.Chunked, true
		}
	}
	m := c.host.pool.manager
	m.head = http1.AppendRequestHead(m.head[:0], h, o)
	c.host.pool.config.HeaderCase.Apply(m.head)
	c.requestDone = end && !c.upgrade
	c.transport.Write(m.head)
	if cap(m.head) > maxKeptHead {
		m.head = make([]byte, 0, maxKeptHead)
	}
}

// maxKeptHead bounds the scratch that a worker keeps for heads.
const maxKeptHead = 64 << 10

func bodyExpected(m header.MethodID) bool {
	return m == header.MethodPost || m == header.MethodPut || m == header.MethodPatch
}

func parseLength(value []byte) (int64, bool) {
	if len(value) == 0 || len(value) > 18 {
		return 0, false
	}
	var n int64
	for _, digit := range value {
		if digit < '0' || digit > '9' {
			return 0, false
		}
		n = n*10 + int64(digit-'0')
	}
	return n, true
}

// EncodeData implements stream.RequestEncoder.
func (c *client) EncodeData(data []byte, end bool) {
	if c.decoder == nil || c.requestDone {
		return
	}
	if !c.chunked {
		c.transport.Write(data)
	} else if len(data) > 0 {
		m := c.host.pool.manager
		m.head = http1.AppendChunkHead(m.head[:0], len(data))
		c.transport.Write(m.head)
		c.transport.Write(data)
		c.transport.Write(chunkEnd)
	}
	if end {
		c.endRequest(nil)
	}
}

var chunkEnd = []byte(http1.ChunkEnd)

// EncodeTrailers implements stream.RequestEncoder.
func (c *client) EncodeTrailers(t *header.Block) {
	if c.decoder != nil && !c.requestDone {
		c.endRequest(t)
	}
}

func (c *client) endRequest(trailers *header.Block) {
	c.requestDone = true
	switch {
	case c.upgrade:
		c.transport.CloseWrite()
	case c.chunked:
		m := c.host.pool.manager
		m.head = http1.AppendLastChunk(m.head[:0], trailers)
		c.host.pool.config.HeaderCase.Apply(m.head)
		c.transport.Write(m.head)
	}
}

// Reset implements stream.RequestEncoder: HTTP/1 gives a request up by closing its connection.
func (c *client) Reset(stream.ResetReason) {
	if c.decoder == nil {
		return
	}
	c.decoder = nil
	c.host.countTxReset()
	c.host.requestEnded(c.priority)
	c.transport.Close()
}

// ReadDisable implements stream.RequestEncoder.
func (c *client) ReadDisable(disable bool) {
	if c.decoder == nil {
		return
	}
	c.host.countPause(disable)
	if disable {
		c.pauses++
		c.transport.PauseRead()
		return
	}
	c.pauses--
	c.transport.ResumeRead()
}

// BufferedBytes implements stream.RequestEncoder.
func (c *client) BufferedBytes() int { return c.transport.Buffered() }

// OnData implements conn.Handler.
func (c *client) OnData(_ *conn.Conn, data []byte) int {
	if c.decoder == nil { // nobody asked for anything
		c.host.pool.cells[counters.ClusterUpstreamCxProtocolError]++
		c.transport.Close()
		return len(data)
	}
	consumed := 0
	for c.decoder != nil && c.pauses == 0 && consumed < len(data) {
		n := 0
		switch {
		case c.tunnel:
			c.decoder.DecodeData(data[consumed:], false)
			return len(data)
		case !c.headSeen:
			n = c.onHead(data[consumed:])
		default:
			n = c.onBody(data[consumed:])
		}
		if n == 0 {
			break
		}
		consumed += n
	}
	if c.decoder == nil && consumed < len(data) && !c.transport.Closed() { // more than was asked for
		c.host.pool.cells[counters.ClusterUpstreamCxProtocolError]++
		c.transport.Close()
		return len(data)
	}
	return consumed
}

// onHead parses a response head; 0 when more bytes are needed or the response failed.
func (c *client) onHead(data []byte) int {
	n, failed := c.parser.Parse(data, &c.response, c.method)
	if failed != nil {
		c.protocolError(failed.Detail)
		return 0
	}
	if n == 0 {
		return 0
	}
	h := c.parser.Head
	if c.response.Status < 200 && h.Framing != http1.Tunnel {
		c.decoder.DecodeInterim(&c.response)
		return n
	}
	if h.Framing == http1.Tunnel && !c.upgrade {
		c.protocolError("http1.unexpected_upgrade")
		return 0
	}
	c.headSeen = true
	c.keepAlive = h.KeepAlive
	c.host.countStatus(&c.response)
	c.tunnel = h.Framing == http1.Tunnel
	c.body.Init(&h, &c.trailers, nil, http1.Upstream)
	if err := http1.StripHopByHop(&c.response.Block, c.tunnel, http1.Upstream); err != nil {
		c.protocolError(err.Detail)
		return 0
	}
	end := c.body.Done() && !c.tunnel
	decoder := c.decoder
	decoder.DecodeHeaders(&c.response, end)
	if end {
		c.finish()
	}
	return n
}

func (c *client) onBody(data []byte) int {
	piece, n, done, failed := c.body.Decode(data)
	if failed != nil {
		c.protocolError(failed.Detail)
		return 0
	}
	switch {
	case done && c.trailers.Len() > 0:
		if len(piece) > 0 {
			c.decoder.DecodeData(piece, false)
		}
		if c.decoder != nil {
			c.decoder.DecodeTrailers(&c.trailers)
		}
		c.trailers.Reset()
	case done || len(piece) > 0:
		c.decoder.DecodeData(piece, done)
	}
	if done {
		c.finish()
	} else {
		c.spliceBody(len(piece))
	}
	return n
}

// finish ends the request after its response did, and keeps the connection if it can serve again.
func (c *client) finish() {
	if c.decoder == nil {
		return // reset from within the last callback
	}
	c.decoder = nil
	h := c.host
	now := c.transport.Worker().Now()
	h.pool.cells.ObserveRqTime(uint64(now - c.began))
	h.requestEnded(c.priority)
	c.countBytes()
	for ; c.pauses > 0; c.pauses-- {
		c.transport.ResumeRead()
	}
	limit := h.pool.config.MaxRequests
	switch {
	case !c.requestDone || !c.keepAlive || c.transport.EOF() || h.index < 0:
		c.transport.Close()
	case limit > 0 && c.served >= limit:
		h.pool.cells[counters.ClusterUpstreamCxMaxRequests]++
		c.transport.Close()
	default:
		c.idleSince = now
		h.ready(c, true)
	}
}

func (c *client) protocolError(detail string) {
	c.host.pool.cells[counters.ClusterUpstreamCxProtocolError]++
	c.fail(stream.ResetProtocolError, detail)
	c.transport.Close()
}

// fail ends the request under way early.
func (c *client) fail(reason stream.ResetReason, detail string) {
	decoder := c.decoder
	if decoder == nil {
		return
	}
	c.decoder = nil
	c.host.countRxReset()
	c.host.requestEnded(c.priority)
	decoder.OnReset(reason, detail)
}

// OnEOF implements conn.Handler.
func (c *client) OnEOF(*conn.Conn) {
	switch {
	case c.decoder == nil:
		c.transport.Close()
	case c.tunnel:
		c.decoder.DecodeData(nil, true)
		if c.requestDone {
			c.finish()
		} // else the client still sends
	case c.headSeen && c.body.Finish() == nil: // the body ended with the connection
		c.keepAlive = false
		c.decoder.DecodeData(nil, true)
		c.finish()
	case c.headSeen:
		c.fail(stream.ResetConnectionTermination, c.body.Finish().Detail)
		c.transport.Close()
	default:
		c.fail(stream.ResetConnectionTermination, DetailTermination)
		c.transport.Close()
	}
}

// OnAboveHigh implements conn.Handler.
func (c *client) OnAboveHigh(*conn.Conn) {
	if c.decoder != nil {
		c.decoder.OnAboveHigh()
	}
}

// OnBelowLow implements conn.Handler.
func (c *client) OnBelowLow(*conn.Conn) {
	if c.decoder != nil {
		c.decoder.OnBelowLow()
	}
}

// OnClose implements conn.Handler.
func (c *client) OnClose(t *conn.Conn, reason conn.Reason) {
	t.Worker().Timers.Stop(&c.timer)
	h := c.host
	c.transport = t
	c.countBytes()
	switch reason {
	case conn.ConnectFailure, conn.ConnectTimeout:
		h.connecting--
		h.connectFailed(reason)
		h.failOne(failureOf(reason), c.openedFor)
	default:
		if c.decoder != nil {
			h.pool.cells[counters.ClusterUpstreamCxDestroyWithActiveRq]++
			detail := DetailTermination
			if reason == conn.RemoteReset {
				detail = DetailRemoteReset
			}
			c.fail(stream.ResetConnectionTermination, detail)
		} else {
			h.dropIdle(c)
		}
	}
	h.closed(c.openedFor)
	t.Worker().Bury(c)
}

func (c *client) countBytes() {
	cells := c.host.pool.cells
	read, written := c.transport.BytesRead(), c.transport.BytesWritten()
	cells[counters.ClusterUpstreamCxRxBytesTotal] += read - c.counted
	cells[counters.ClusterUpstreamCxTxBytesTotal] += written - c.sent
	c.counted, c.sent = read, written
}
