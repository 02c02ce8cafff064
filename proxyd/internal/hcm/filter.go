package hcm

import (
	"math"
	"net/netip"
	"time"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/http2"
	"retinue.dev/proxyd/internal/http2frame"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/overload"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
)

// Shared is what all HTTP connection managers of one worker share: routers' scratch, free lists, the clock as text. Main makes
// one for a worker; afterwards it belongs to the worker's thread.
type Shared struct {
	// Overload is how far the process defends itself now; the worker's own copy. Never nil.
	Overload *overload.Levels

	worker  *worker.Worker
	router  *filter.Shared
	http2   *http2.Shared
	free    *exchange
	kept    int
	freeH2  *h2Stream
	keptH2  int
	spare   *connection
	spares  int
	head    []byte // scratch for response heads
	text    []byte // scratch for header values
	date    []byte
	dateSec int64
}

// NewShared makes it over the worker's upstream side.
func NewShared(w *worker.Worker, m *upstream.Manager) *Shared {
	return &Shared{Overload: new(overload.Levels), worker: w, router: filter.NewShared(m), http2: http2.NewShared(&w.Pool), head: make([]byte, 0, 4<<10), text: make([]byte, 0, 1<<10)}
}

// The free lists are bounded: what a burst needed beyond them goes back to the heap.
const (
	keptExchanges   = 1024
	keptConnections = 1024
)

func (s *Shared) take() *exchange {
	x := s.free
	if x == nil {
		x = &exchange{}
		x.stream.Overload = s.Overload
		return x
	}
	s.free, x.next = x.next, nil
	s.kept--
	return x
}

func (s *Shared) give(x *exchange) {
	if s.kept >= keptExchanges {
		return
	}
	x.next, s.free = s.free, x
	s.kept++
}

func (s *Shared) connection() *connection {
	c := s.spare
	if c == nil {
		return &connection{}
	}
	s.spare, c.next = c.next, nil
	s.spares--
	return c
}

// Reclaim implements worker.Spent.
func (c *connection) Reclaim() bool {
	s := c.filter.Shared
	if s.spares >= keptConnections {
		return true
	}
	*c = connection{next: s.spare}
	s.spare = c
	s.spares++
	return true
}

// now is the value of Date, made once a second.
func (s *Shared) now() []byte {
	if second := s.worker.Wall() / int64(time.Second); second != s.dateSec || s.date == nil {
		s.dateSec = second
		s.date = time.Unix(second, 0).UTC().AppendFormat(s.date[:0], "Mon, 02 Jan 2006 15:04:05 GMT")
	}
	return s.date
}

// Filter is the connection manager of one filter chain on one worker. Main makes it and changes Config by a post to the
// worker; all else runs on the worker's thread.
type Filter struct {
	Worker *worker.Worker
	Shared *Shared
	// Config is what requests get that begin from now on.
	Config *Config

	connections *connection
	open        int
	active      int
	drain       drain
	more        func() // set while connections are handed over to another process
}

// drain says since when and for how long a filter drains.
type drain struct {
	on    bool
	since int64 // ns of the worker's clock
	over  int64 // ns; 0: at once
}

// Open is how many connections the filter has.
func (f *Filter) Open() int { return f.open }

// Active is how many requests are under way.
func (f *Filter) Active() int { return f.active }

// Drain makes responses from now on end their connections: over 0, every one; else with a probability that grows to 1 over
// that time, Envoy's gradual drain, so that clients do not come back all at once. A connection on which no request is
// under way is left alone, since one may be on its way: it closes with its next response, its idle time-out, or CloseAll. One of
// HTTP/2 is asked to leave by GOAWAY, at a time within the drain.
func (f *Filter) Drain(over time.Duration) {
	f.drain = drain{on: true, since: f.Worker.Now(), over: int64(over)}
	for c := f.connections; c != nil; c = c.next {
		c.codec.onDrain()
	}
}

// Undrain takes Drain back: the generation serves again.
func (f *Filter) Undrain() {
	f.drain = drain{}
	for c := f.connections; c != nil; c = c.next {
		c.codec.onUndrain()
	}
}

// closing decides for one response whether it ends its connection.
func (d *drain) closing(w *worker.Worker) bool {
	if !d.on {
		return false
	}
	elapsed := w.Now() - d.since
	return elapsed >= d.over || int64(w.Rand()%uint64(d.over)) < elapsed
}

// CloseAll cuts every connection: the end of shutdown_time. It answers how many there were.
func (f *Filter) CloseAll() int {
	n := 0
	for f.connections != nil {
		f.connections.conn.Close()
		n++
	}
	return n
}

// Accept implements listener.Filter.
func (f *Filter) Accept(transport *conn.Conn, l *listener.Listener) {
	c := f.Shared.connection()
	c.filter, c.conn, c.listener, c.cells, c.idleSince = f, transport, l, f.Config.Cells[f.Worker.ID], f.Worker.Now()
	c.timer.Callback = c
	transport.SetHandler(c)
	c.codec = &c.h1
	c.h1.connection = c
	c.link()
	f.open++
	c.cells[counters.HTTPDownstreamCxTotal]++
	c.cells[counters.HTTPDownstreamCxActive]++
	switch transport.Protocol() {
	case "h2":
		c.decided = true
		c.beginHTTP2()
		return
	case "":
	default:
		c.beginHTTP1()
	}
	c.rearm()
}

// codec is a protocol on a connection: HTTP/1 here; HTTP/2 is chosen by preface or by ALPN.
type codec interface {
	onData(data []byte) int
	onEOF()
	onAboveHigh()
	onBelowLow()
	onClose(reason conn.Reason)
	// deadline is when onDeadline must be called next, math.MaxInt64 for never.
	deadline() int64
	onDeadline(now int64)
	// onIdle tells that no request came for the idle time-out, onExpired that the connection has reached its greatest age.
	onIdle()
	onExpired()
	// onDrain and onUndrain tell that the filter has begun to drain, and that it serves again.
	onDrain()
	onUndrain()
}

// connection is one client's connection: conn.Handler towards the socket. What it knows is plain values, so that an idle one
// can be told to another process: the counts and times below, besides what conn.Conn says of itself. It lives from Accept
// to OnClose.
type connection struct {
	filter   *Filter
	conn     *conn.Conn
	listener *listener.Listener
	cells    *counters.HTTP
	codec    codec
	h1       h1
	timer    timer.Timer

	armed     int64  // when the timer fires; 0: not set
	idleSince int64  // ns; 0: a request is under way
	requests  uint32 // begun
	read      uint64 // bytes that the counters have
	written   uint64
	expired   bool // max_connection_duration has passed
	closing   bool // nothing is read any more
	decided   bool // which protocol it is
	left      bool // it was told to end for its idleness
	held      bool // to be handed over
	refused   bool // by the process that was to take it

	prev, next *connection
}

// Conn implements stream.Peered.
func (c *connection) Conn() *conn.Conn { return c.conn }

// OnConnected implements conn.Handler; it is for dialled connections.
func (c *connection) OnConnected(*conn.Conn) {}

// OnData implements conn.Handler.
func (c *connection) OnData(_ *conn.Conn, data []byte) int {
	if c.closing {
		return len(data)
	}
	if !c.decided {
		c.decide(data)
	}
	return c.codec.onData(data)
}

// decide looks whether a client without ALPN speaks HTTP/2 by prior knowledge (RFC 9113 3.3). So much of the preface is not a
// request of HTTP/1; for less, HTTP/1 waits as it does for any incomplete head.
func (c *connection) decide(data []byte) {
	const enough = len("PRI * HTTP/2.0")
	n := min(len(data), enough)
	switch {
	case string(data[:n]) != http2frame.Preface[:n]:
		c.beginHTTP1()
	case n == enough:
		c.decided = true
		c.h1.leave()
		c.beginHTTP2()
	}
}

func (c *connection) beginHTTP1() {
	c.decided = true
	c.cells[counters.HTTPDownstreamCxHTTP1Total]++
}

// scheme is that of the requests on the connection.
func (c *connection) scheme() []byte {
	if c.conn.Transport() != nil {
		return schemeHTTPS
	}
	return schemeHTTP
}

var schemeHTTP, schemeHTTPS = []byte("http"), []byte("https")

// OnEOF implements conn.Handler.
func (c *connection) OnEOF(*conn.Conn) {
	if !c.closing {
		c.codec.onEOF()
	}
}

// close ends the connection when what is staged is sent, and lingers so long for a client that may still be sending.
func (c *connection) close(linger time.Duration) {
	if !c.closing {
		c.closing = true
		c.conn.CloseAfterFlush(linger)
	}
}

// OnAboveHigh implements conn.Handler.
func (c *connection) OnAboveHigh(*conn.Conn) { c.codec.onAboveHigh() }

// OnBelowLow implements conn.Handler.
func (c *connection) OnBelowLow(*conn.Conn) { c.codec.onBelowLow() }

// OnClose implements conn.Handler.
func (c *connection) OnClose(_ *conn.Conn, reason conn.Reason) {
	f := c.filter
	f.Worker.Timers.Stop(&c.timer)
	c.codec.onClose(reason)
	c.countBytes()
	c.cells[counters.HTTPDownstreamCxActive]--
	c.cells[counters.HTTPDownstreamCxDestroy]++
	c.unlink()
	f.open--
	c.listener.Gone()
	f.Worker.Bury(c)
}

func (c *connection) link() {
	c.next = c.filter.connections
	if c.next != nil {
		c.next.prev = c
	}
	c.filter.connections = c
}

func (c *connection) unlink() {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		c.filter.connections = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.prev, c.next = nil, nil
}

func (c *connection) countBytes() {
	read, written := c.conn.BytesRead(), c.conn.BytesWritten()
	c.cells[counters.HTTPDownstreamCxRxBytesTotal] += read - c.read
	c.cells[counters.HTTPDownstreamCxTxBytesTotal] += written - c.written
	c.read, c.written = read, written
}

// Arm implements stream.Downstream: the timer is moved only when it would fire too late.
func (c *connection) Arm(at int64) {
	if c.armed == 0 || at < c.armed {
		c.armed = at
		c.filter.Worker.Timers.Set(&c.timer, at)
	}
}

func (c *connection) rearm() {
	if at := min(c.codec.deadline(), c.deadline()); at != math.MaxInt64 {
		c.Arm(at)
	}
}

// deadline is the connection's own: idleness and age.
func (c *connection) deadline() int64 {
	at := int64(math.MaxInt64)
	config := c.filter.Config
	if c.idleSince > 0 && !c.left && config.IdleTimeout > 0 {
		at = c.idleSince + c.filter.Shared.Overload.Shorten(config.IdleTimeout)
	}
	if config.MaxConnectionDuration > 0 && !c.expired {
		at = min(at, c.conn.Established()+config.MaxConnectionDuration)
	}
	return at
}

// OnTimer implements timer.Callback: it looks which of the time-outs has really passed.
func (c *connection) OnTimer(_ *timer.Timer, now int64) {
	c.armed = 0
	config := c.filter.Config
	if config.MaxConnectionDuration > 0 && !c.expired && now >= c.conn.Established()+config.MaxConnectionDuration {
		c.expired = true // the response under way says so
		c.cells[counters.HTTPDownstreamCxMaxDurationReached]++
		c.codec.onExpired()
	}
	if !c.closing && !c.left && c.idleSince > 0 && config.IdleTimeout > 0 && now >= c.idleSince+c.filter.Shared.Overload.Shorten(config.IdleTimeout) {
		c.left = true
		c.cells[counters.HTTPDownstreamCxIdleTimeout]++
		c.codec.onIdle()
	}
	if c.closing || c.conn.Closed() {
		return
	}
	if c.codec.onDeadline(now); !c.closing && !c.conn.Closed() {
		c.rearm()
	}
}

// LocalAddress implements stream.Downstream.
func (c *connection) LocalAddress() netip.AddrPort { return c.conn.LocalAddress() }

// peerText appends the client's address as X-Forwarded-For has it; nothing for a Unix socket.
func peerText(dst []byte, peer netip.AddrPort) []byte {
	if !peer.IsValid() {
		return dst
	}
	return peer.Addr().Unmap().AppendTo(dst)
}
