package stream

import (
	"math"
	"net/netip"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/overload"
	"retinue.dev/proxyd/internal/worker"
)

// Downstream is the server codec of one stream.
type Downstream interface {
	ResponseEncoder
	// Arm has the codec call OnDeadline at the given time (ns of the worker's clock) or earlier. One timer of the
	// connection serves all: mostly it is set already.
	Arm(deadline int64)
	// OnFinished is the last that the stream says: after a complete response, or before Reset, or in OnReset. The codec
	// takes the memory back; it must not begin another stream in it before its own callers have returned.
	OnFinished()
	// LocalAddress is this end of the connection; it may cost a system call.
	LocalAddress() netip.AddrPort
}

// Info is what logs and counters want to know of a stream. Plain values; times are nanoseconds of the worker's monotonic
// clock, 0 for what did not happen.
type Info struct {
	ID           uint64 // random
	ConnectionID uint64
	Peer         netip.AddrPort // of the connection; invalid for a Unix socket
	Client       netip.Addr     // the first untrusted address: the peer, or out of X-Forwarded-For
	Internal     bool           // Client is of an internal network: its x-envoy-* headers hold
	Certified    bool           // the peer has shown a certificate, which was verified

	StartWall        int64 // ns since 1970
	Start            int64
	RequestReceived  int64 // last byte of the request
	UpstreamReady    int64 // the pool handed out a connection
	UpstreamSent     int64 // last byte of the request given to the upstream
	UpstreamReceived int64 // first byte of the response from the upstream
	UpstreamEnded    int64 // last byte
	ResponseStarted  int64 // first byte given to the client
	End              int64

	BytesReceived uint64 // of the request's body
	BytesSent     uint64 // of the response's body
	Status        int    // of the response sent; 0 for none
	Attempts      uint32 // requests made upstream
	PluginTime    int64  // spent waiting for plugins
	Flags         Flags
	Details       string

	Host        *cluster.Host // chosen last
	ClusterName string
	RouteName   string
	HostName    string // of the virtual host
	// UpstreamFailure says more about a connection that failed.
	UpstreamFailure string
	// Link is what carried the request to Host, where Config.Links, and where Host is a logical one.
	Link Link
}

// Upstream is the address that Host was reached at, or would be; invalid for a Unix socket, and for a logical host that was not.
func (i *Info) Upstream() netip.AddrPort {
	switch {
	case i.Host == nil:
		return netip.AddrPort{}
	case i.Host.IP.IsValid():
		return i.Host.IP
	}
	return i.Link.Remote
}

// Link is a connection to an upstream as logs are told of it.
type Link struct {
	Connection uint64         // 0: there was none
	Local      netip.AddrPort // this end
	Remote     netip.AddrPort // the other; invalid for a Unix socket
	Protocol   string         // "HTTP/1.1", "HTTP/2"; "" of a bare connection
	Version    uint16         // of TLS; 0: plain
	Cipher     uint16
}

// Linked is an encoder that knows its connection. The answer costs a system call once a connection.
type Linked interface{ Link() Link }

// NoteLink remembers what carries a try, where somebody asks.
func (s *Stream) NoteLink(encoder RequestEncoder) {
	if s.Config.Links || s.Host.Logical() {
		if l, ok := encoder.(Linked); ok {
			s.Link = l.Link()
		}
	}
}

// Stream is one request and its response. A server codec owns its memory, takes it from a free list of the worker for a
// request and gives it back when Finished. All of it runs on the worker's thread.
//
// Life: Begin; the codec fills Request and calls DecodeHeaders, DecodeData, DecodeTrailers; the terminal answers by EncodeX;
// the end of the response finishes the stream, whether or not the request was complete (the codec then deals with the
// rest). Instead of that, OnReset (the client's side failed) or Reset (ours) finishes it.
type Stream struct {
	Info

	// Trace is set before the filters run, where the connection manager has tracing.
	Trace Trace
	Calls []Call // of plugins, where Trace.Sampled
	Tries []Try  // where Trace.Tries

	Request          header.Request
	RequestTrailers  header.Block
	ResponseTrailers *header.Block
	// Response is the head on its way to the client: the upstream's, or the stream's own for a local reply; nil before.
	Response *header.Response

	Worker *worker.Worker
	// Overload may shorten the idle time-out. It is the worker's, and stands while the memory serves; nil: it stays.
	Overload *overload.Levels
	Config   *Config
	Cells    *counters.HTTP
	// CountTries adds x-envoy-attempt-count to answers of our own, once the upstream was tried.
	CountTries bool

	down     Downstream
	terminal Terminal
	chain    []Callbacks
	local    header.Response // of a local reply, or kept when the upstream's goes first
	trailers header.Block    // of the response, kept likewise

	activity      int64 // ns: something moved
	idleTimeout   int64
	routeDeadline int64
	reqDeadline   int64
	maxDeadline   int64
	above         int // who wants the response's bytes stopped
	held          int // and the request's

	requestEnded  bool // the whole request was received
	decodeClosed  bool // what still comes of the request is thrown away
	encoding      bool // a response head was given to EncodeHeaders
	started       bool // the response head went to the codec
	replied       bool // the response is ours
	responseEnded bool
	finished      bool
	closedBelow   bool // the terminal was told
	tunnel        bool // after 101 or a CONNECT: bytes of another protocol, each direction until its own end

	// PathDecoded tells that the path held encoded slashes, which are slashes now, and that the client is to be told so
	// by a redirect.
	PathDecoded bool
	// Upgrade tells that the request has no body and asks for a tunnel: its head does not end it. Set before DecodeHeaders.
	Upgrade bool
}

// Begin makes the stream ready for a request. The codec fills Request afterwards.
func (s *Stream) Begin(w *worker.Worker, config *Config, down Downstream, terminal Terminal) {
	s.begin(w, config, down, terminal)
	s.Cells[counters.HTTPDownstreamRqTotal]++
}

func (s *Stream) begin(w *worker.Worker, config *Config, down Downstream, terminal Terminal) {
	s.Info = Info{StartWall: w.Wall(), Start: w.Now()}
	s.Response, s.ResponseTrailers = nil, nil
	s.Trace, s.Calls, s.Tries = Trace{}, s.Calls[:0], s.Tries[:0]
	s.Worker, s.Config, s.Cells = w, config, config.Cells[w.ID]
	s.down, s.terminal = down, terminal
	s.activity = s.Start
	s.idleTimeout = config.StreamIdleTimeout
	s.above, s.held = 0, 0
	s.routeDeadline, s.reqDeadline, s.maxDeadline = 0, 0, 0
	if config.RequestTimeout > 0 {
		s.reqDeadline = s.Start + config.RequestTimeout
	}
	if config.MaxStreamDuration > 0 {
		s.maxDeadline = s.Start + config.MaxStreamDuration
	}
	s.requestEnded, s.decodeClosed, s.encoding, s.started, s.responseEnded = false, false, false, false, false
	s.replied, s.finished, s.closedBelow, s.tunnel, s.Upgrade = false, false, false, false, false
	s.PathDecoded = false
	if len(config.Filters) > 0 {
		s.buildChain()
	} else {
		s.chain = s.chain[:0]
	}
	s.Cells[counters.HTTPDownstreamRqActive]++
}

func (s *Stream) buildChain() {
	n := len(s.Config.Filters)
	if cap(s.chain) < n {
		s.chain = make([]Callbacks, n)
	}
	s.chain = s.chain[:n]
	for i, factory := range s.Config.Filters {
		s.chain[i] = Callbacks{stream: s, index: i, filter: factory.NewFilter(s.Worker)}
	}
}

// addRouteFilters ends the chain with the filters of the request's route.
func (s *Stream) addRouteFilters() {
	for _, factory := range s.terminal.(Router).RouteFilters(s) {
		s.chain = append(s.chain, Callbacks{stream: s, index: len(s.chain), filter: factory.NewFilter(s.Worker)})
	}
}

// Destination is the cluster that the request will be sent to, whatever filters still do to it; "" where its route answers it, or
// it has none.
func (s *Stream) Destination() string {
	if r, ok := s.terminal.(Router); ok {
		return r.Destination(s)
	}
	return ""
}

// Finished tells that the stream has ended; the codec may take its memory back once its own callbacks have returned.
func (s *Stream) Finished() bool { return s.finished }

// ResponseHeadSent tells that the codec has the response head: a failure from now on can only reset.
func (s *Stream) ResponseHeadSent() bool { return s.started }

// RequestEnded tells that the request was received to its end.
func (s *Stream) RequestEnded() bool { return s.requestEnded }

// Replied tells that the response is a local one.
func (s *Stream) Replied() bool { return s.replied }

// DecodeHeaders begins the request: the head is in Request. end tells that there is neither body nor trailers.
func (s *Stream) DecodeHeaders(end bool) {
	s.arm()
	if end || s.Upgrade {
		s.endRequest()
	}
	if s.Config.Routed {
		s.addRouteFilters()
	}
	if len(s.chain) == 0 {
		s.terminal.DecodeHeaders(s, end)
		return
	}
	s.decodeHeaders(0, end)
}

// DecodeData brings body bytes, borrowed for the call.
func (s *Stream) DecodeData(data []byte, end bool) {
	s.BytesReceived += uint64(len(data))
	s.activity = s.Worker.Now()
	if end {
		s.endRequest()
	}
	if s.decodeClosed {
		return
	}
	if len(s.chain) == 0 {
		s.terminal.DecodeData(s, data, end)
	} else {
		s.decodeData(0, data, end)
	}
	if end && s.tunnel && s.responseEnded && !s.finished {
		s.finish()
	}
}

// OnBulkReceived counts n bytes of the body that went to the upstream without passing here.
func (s *Stream) OnBulkReceived(n int) {
	s.BytesReceived += uint64(n)
	s.activity = s.Worker.Now()
}

// BeginTunnel tells that the response head that follows turns the stream into a tunnel: nothing of it is a message any
// more, either direction ends on its own, and only the idle time-out and the greatest duration hold.
func (s *Stream) BeginTunnel() {
	s.tunnel = true
	s.requestEnded = false
	s.routeDeadline = 0
}

// Tunnel tells that BeginTunnel was called.
func (s *Stream) Tunnel() bool { return s.tunnel }

// DecodeTrailers ends the request with the trailers in RequestTrailers.
func (s *Stream) DecodeTrailers() {
	s.activity = s.Worker.Now()
	s.endRequest()
	if s.decodeClosed {
		return
	}
	if len(s.chain) == 0 {
		s.terminal.DecodeTrailers(s)
		return
	}
	s.decodeTrailers(0)
}

func (s *Stream) endRequest() {
	s.requestEnded = true
	s.RequestReceived = s.Worker.Now()
	s.reqDeadline = 0
}

// OnReset tells that the client's side of the stream has failed or gone: nothing more can be sent.
func (s *Stream) OnReset(reason ResetReason, flags Flags, details string) {
	if s.finished {
		return
	}
	s.Flags |= flags
	if s.Details == "" || !s.started {
		s.Details = details
	}
	if reason == ResetRemote || reason == ResetConnectionTermination {
		s.Cells[counters.HTTPDownstreamRqRxReset]++
	} else {
		s.Cells[counters.HTTPDownstreamRqTxReset]++
	}
	s.finish()
}

// OnDownstreamAboveHigh tells that the client does not keep up.
func (s *Stream) OnDownstreamAboveHigh() {
	if !s.finished && !s.closedBelow {
		s.Cells[counters.HTTPFlowControlPausedReadingTotal]++
		s.PauseResponse()
	}
}

// PauseResponse stops the response's bytes, because a filter does not keep up. Counted.
func (s *Stream) PauseResponse() {
	if s.above++; s.above == 1 && !s.closedBelow {
		s.terminal.OnDownstreamAboveHigh(s)
	}
}

// ResumeResponse takes one PauseResponse back.
func (s *Stream) ResumeResponse() {
	if s.above--; s.above == 0 && !s.closedBelow {
		s.terminal.OnDownstreamBelowLow(s)
	}
}

// DecodeClosed tells that what still comes of the request is thrown away.
func (s *Stream) DecodeClosed() bool { return s.decodeClosed }

// OnDownstreamBelowLow tells that the client keeps up again.
func (s *Stream) OnDownstreamBelowLow() {
	if !s.finished && !s.closedBelow {
		s.Cells[counters.HTTPFlowControlResumedReadingTotal]++
		s.activity = s.Worker.Now()
		s.ResumeResponse()
	}
}

// PauseRequest stops the request's bytes, because the upstream does not keep up or is not there yet. Counted.
func (s *Stream) PauseRequest() {
	s.held++
	s.down.ReadDisable(true)
}

// ResumeRequest takes one PauseRequest back.
func (s *Stream) ResumeRequest() {
	s.held--
	s.activity = s.Worker.Now()
	s.down.ReadDisable(false)
}

// RequestPauses counts the reasons for which the bytes of the request are stopped: who has more of them waits.
func (s *Stream) RequestPauses() int { return s.held }

// ResponsePauses is RequestPauses for the response.
func (s *Stream) ResponsePauses() int { return s.above }

// Downstream is the codec of the stream.
func (s *Stream) Downstream() Downstream { return s.down }

// Record makes the stream one that is only shown to logs: a session of another protocol that has ended. The caller fills Info.
func (s *Stream) Record(w *worker.Worker, config *Config, down Downstream) {
	s.Worker, s.Config, s.down = w, config, down
}

// Plain tells that no filter stands between the client and the terminal: bytes may pass unseen.
func (s *Stream) Plain() bool { return len(s.chain) == 0 }

// Buffered is the bytes that the filters hold and that wait for the client.
func (s *Stream) Buffered() int {
	n := s.down.BufferedBytes()
	for i := range s.chain {
		n += s.chain[i].decode.body.Len() + s.chain[i].encode.body.Len()
	}
	return n
}

// Touch tells that bytes moved without DecodeData or EncodeData.
func (s *Stream) Touch() { s.activity = s.Worker.Now() }

// Reset ends the stream without completing the response: for the terminal and for filters.
func (s *Stream) Reset(reason ResetReason, flags Flags, details string) {
	if s.finished {
		return
	}
	s.Flags |= flags
	s.Details = details
	s.Cells[counters.HTTPDownstreamRqTxReset]++
	s.finish()
	s.down.Reset(reason)
}

// closeBelow tells the terminal that nobody waits for it.
func (s *Stream) closeBelow() {
	s.decodeClosed = true
	s.routeDeadline = 0
	if !s.closedBelow {
		s.closedBelow = true
		s.terminal.OnClosed(s)
	}
}

// ownFlags are those of errors that may be this program's fault: what it took for a breach of the protocol.
const ownFlags = FlagDownstreamProtocolError | FlagUpstreamProtocolError | FlagInvalidHeaders | FlagNoFilterConfig | FlagLocalReset

func (s *Stream) finish() {
	s.finished = true
	now := s.Worker.Now()
	s.End = now
	s.closeBelow()
	cells := s.Cells
	cells[counters.HTTPDownstreamRqActive]--
	if class := s.Status/100 - 1; class >= 0 && class < 5 {
		cells[counters.HTTPDownstreamRqCompleted]++
		cells[counters.HTTPDownstreamRqXX+class]++
	}
	if s.Flags&ownFlags != 0 || s.Status == 500 && s.replied && s.Details != DetailDirectResponse {
		cells[counters.HTTPDownstreamRqOwnError]++
	}
	cells.ObserveRqTime(uint64(now - s.Start))
	for _, log := range s.Config.Logs {
		log.Log(s)
	}
	for i := range s.chain {
		c := &s.chain[i]
		c.decode.body.Release(&s.Worker.Pool)
		c.encode.body.Release(&s.Worker.Pool)
		c.filter.OnDestroy(c)
		c.filter = nil
	}
	s.down.OnFinished()
}

// KeepResponse copies the response head, and trailers that a filter holds, into the stream, when their owner goes before the stream
// does.
func (s *Stream) KeepResponse() {
	if s.ResponseTrailers != nil && s.ResponseTrailers != &s.trailers {
		s.trailers.CopyFrom(s.ResponseTrailers)
		s.ResponseTrailers = &s.trailers
	}
	if s.Response != nil && s.Response != &s.local {
		s.local.CopyFrom(s.Response)
		s.Response = &s.local
	}
}

// SetRouteDeadline has the terminal's OnTimeout called at the given time; 0 for never.
func (s *Stream) SetRouteDeadline(at int64) {
	s.routeDeadline = at
	if at > 0 {
		s.down.Arm(at)
	}
}

// RouteDeadline is when the response must be complete, in ns of the worker's clock; 0: that has not begun, or there is no end.
func (s *Stream) RouteDeadline() int64 { return s.routeDeadline }

// Overdue tells that the route's deadline has passed, whether or not its timer has fired yet: timers are coarse.
func (s *Stream) Overdue() bool { return s.routeDeadline > 0 && s.Worker.Now() >= s.routeDeadline }

// SetIdleTimeout replaces the manager's stream idle time-out (a route's own); 0 is off.
func (s *Stream) SetIdleTimeout(d int64) {
	s.idleTimeout = d
	s.arm()
}

// SetMaxDuration replaces the manager's greatest duration; 0 is off.
func (s *Stream) SetMaxDuration(d int64) {
	s.maxDeadline = 0
	if d > 0 {
		s.maxDeadline = s.Start + d
	}
	s.arm()
}

func (s *Stream) arm() {
	if at := s.Deadline(); at != math.MaxInt64 {
		s.down.Arm(at)
	}
}

// Deadline is when OnDeadline must be called next, math.MaxInt64 for never.
func (s *Stream) Deadline() int64 {
	at := int64(math.MaxInt64)
	if s.idleTimeout > 0 {
		at = s.activity + s.idle()
	}
	if s.routeDeadline > 0 && s.routeDeadline < at {
		at = s.routeDeadline
	}
	if s.reqDeadline > 0 && s.reqDeadline < at {
		at = s.reqDeadline
	}
	if s.maxDeadline > 0 && s.maxDeadline < at {
		at = s.maxDeadline
	}
	return at
}

// idle is the idle time-out as it is now.
func (s *Stream) idle() int64 {
	if s.Overload == nil {
		return s.idleTimeout
	}
	return s.Overload.Shorten(s.idleTimeout)
}

// OnDeadline looks whether a time-out has passed and acts on one. The stream may be finished afterwards.
func (s *Stream) OnDeadline(now int64) {
	switch {
	case s.finished:
	case s.routeDeadline > 0 && now >= s.routeDeadline:
		s.routeDeadline = 0
		s.terminal.OnTimeout(s)
	case s.reqDeadline > 0 && now >= s.reqDeadline:
		s.reqDeadline = 0
		s.Cells[counters.HTTPDownstreamRqTimeout]++
		s.LocalReply(408, "request timeout", 0, DetailRequestTimeout)
	case s.maxDeadline > 0 && now >= s.maxDeadline:
		s.maxDeadline = 0
		s.Cells[counters.HTTPDownstreamRqMaxDurationReached]++
		s.LocalReply(s.timeoutStatus(), "downstream duration timeout", FlagMaxDuration, DetailMaxDuration)
	case s.idleTimeout > 0 && now >= s.activity+s.idle():
		s.Cells[counters.HTTPDownstreamRqIdleTimeout]++
		s.LocalReply(s.timeoutStatus(), "stream timeout", FlagStreamIdleTimeout, DetailStreamIdle)
	}
}

// timeoutStatus blames the client for a request that is not complete and the upstream for the rest (Envoy's
// maybeRequestTimeoutCode).
func (s *Stream) timeoutStatus() int {
	if s.requestEnded {
		return 504
	}
	return 408
}
