package hcm

import (
	"math"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/http1"
	"retinue.dev/proxyd/internal/overload"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/upstream"
)

// exchange is the memory of one request on HTTP/1. A connection has one only while a request is under way, so that an idle
// connection is small.
type exchange struct {
	stream stream.Stream
	router filter.Router
	parser http1.RequestParser
	body   http1.BodyDecoder
	next   *exchange
}

// phase is where the request side of a connection stands.
type phase uint8

const (
	phaseHead    phase = iota // between requests, or within a head
	phaseBody                 // the request's body
	phaseAnswer               // the request is complete, its response is not: what comes now is the next request
	phaseUpgrade              // as phaseAnswer, but what comes now belongs to the tunnel, if there will be one
	phaseTunnel               // bytes of another protocol
	phaseDiscard              // the response is complete; the rest of a short body is thrown away
)

// keptBody is the greatest rest of a body that is read and thrown away to keep a connection whose response came early.
const keptBody = 64 << 10

// h1 is the HTTP/1.1 server codec: one request at a time, the bytes of the next one stay unread in the meantime.
type h1 struct {
	*connection
	x *exchange // nil between requests

	headers   int64 // when the head must be complete; 0: none has begun
	headStart int64
	remaining int64 // of the response's body with Length
	disabled  int32 // ReadDisable in force

	server upstream.Mover // of a tunnel that is parked

	phase       phase
	framing     http1.Framing // of the response
	paused      bool          // for bytes of the next request
	keep        bool          // the client would go on, as far as the request says
	keepAfter   bool          // decided with the response head
	ownClose    bool          // it was our wish to close: the client may be sending
	expects     bool          // the client waits for 100 (Continue)
	eof         bool          // the client's FIN
	above       bool          // the client does not keep up with what it asked for
	headSent    bool
	bodyEnded   bool // the response is complete on the wire
	headOnly    bool // HEAD
	version10   bool
	connectVerb bool
	bulk        bool // the body is being spliced: what is left of it is known when OnSpliced says so
}

func (h *h1) onData(data []byte) int {
	consumed := 0
	for !h.closing && !h.conn.Closed() {
		rest := data[consumed:]
		n := 0
		switch h.phase {
		case phaseHead:
			if h.held {
				return consumed
			}
			if len(rest) == 0 || h.above {
				h.pause(len(rest) > 0)
				return consumed
			}
			n = h.head(rest)
		case phaseBody:
			if len(rest) == 0 || h.disabled > 0 {
				return consumed
			}
			n = h.decodeBody(rest)
		case phaseAnswer, phaseUpgrade:
			h.pause(len(rest) > 0)
			return consumed
		case phaseTunnel:
			if len(rest) == 0 || h.disabled > 0 {
				return consumed
			}
			h.x.stream.DecodeData(rest, false)
			n = len(rest)
		case phaseDiscard:
			if len(rest) == 0 {
				return consumed
			}
			n = h.discard(rest)
		}
		consumed += n
		if n == 0 && (h.phase == phaseHead || h.phase == phaseBody || h.phase == phaseDiscard) {
			return consumed
		}
	}
	return len(data)
}

// pause stops reading while bytes of the next request wait; one pause is in force at most.
func (h *h1) pause(waiting bool) {
	if waiting && !h.paused {
		h.paused = true
		h.conn.PauseRead()
	}
}

func (h *h1) unpause() {
	if h.paused {
		h.paused = false
		h.conn.ResumeRead()
	}
}

// head parses a request head and begins its stream; 0 when more bytes are needed.
func (h *h1) head(data []byte) int {
	x := h.x
	if x == nil {
		x = h.filter.Shared.take()
		x.parser.Limits = &h.filter.Config.Limits
		x.parser.Reset()
		h.x = x
		h.headStart = h.filter.Worker.Now()
	}
	n, failed := x.parser.Parse(data, &x.stream.Request)
	if failed != nil {
		h.begin(x)
		h.refuse(failed)
		return len(data)
	}
	if n == 0 {
		if h.headers == 0 && x.parser.Started() {
			if limit := h.filter.Config.RequestHeadersTimeout; limit > 0 {
				h.headers = h.headStart + limit
				h.Arm(h.headers)
			}
		}
		return 0
	}
	h.begin(x)
	h.request(x)
	return n
}

// begin starts the stream of a head, complete or refused.
func (h *h1) begin(x *exchange) {
	f := h.filter
	config := f.Config
	s := &x.stream
	h.headers, h.idleSince = 0, 0
	h.disabled, h.expects, h.headSent, h.bodyEnded, h.ownClose = 0, false, false, false, false
	h.framing, h.keepAfter, h.connectVerb, h.bulk = http1.None, false, false, false
	h.version10 = s.Request.Proto == header.HTTP10
	h.headOnly = s.Request.MethodID() == header.MethodHead
	h.requests++
	f.active++
	h.cells[counters.HTTPDownstreamRqHTTP1Total]++
	s.Begin(f.Worker, &config.Config, h, &x.router)
	x.router.Begin(s, f.Shared.router, config.Routes)
	s.Start = h.headStart
	s.StartWall -= f.Worker.Now() - h.headStart
	s.ConnectionID, s.Peer = h.conn.ID(), h.conn.Peer()
	s.Request.SetScheme(h.scheme())
	s.RequestTrailers.Reset()
}

// request prepares a complete head and gives it to the stream.
func (h *h1) request(x *exchange) {
	s := &x.stream
	head := &x.parser.Head
	config := h.filter.Config
	h.keep = head.KeepAlive && !h.eof
	if config.MaxRequests > 0 && h.requests >= config.MaxRequests {
		h.keep, h.ownClose = false, true
	}
	h.connectVerb = s.Request.MethodID() == header.MethodConnect
	if h.filter.Shared.overloaded(overload.StopRequests) {
		h.keep, h.ownClose = false, true
		h.phase = phaseAnswer
		h.turnAway(s)
		return
	}
	upgrade := h.connectVerb && config.upgrades.Connect() ||
		head.Upgrade && head.Framing == http1.None && config.upgrades.Allows(s.Request.Get(header.Upgrade))
	if failed := http1.StripHopByHop(&s.Request.Block, upgrade && !h.connectVerb, http1.Downstream); failed != nil {
		h.refuse(failed)
		return
	}
	if h.connectVerb && (!config.upgrades.Connect() || head.Framing != http1.None) {
		h.keep, h.ownClose = false, true
		h.phase = phaseAnswer
		reply := s.NewReply(405)
		reply.AddString(header.Allow, "", "GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE, PATCH")
		s.SendReply(nil, "", "connect_not_allowed")
		return
	}
	if !h.filter.Shared.normalize(s, config) {
		h.badRequest(s, "path_normalization_failed")
		return
	}
	h.expects = head.Expect100
	if !h.expects && s.Request.Has(header.Expect) {
		s.Request.RemoveID(header.Expect)
	}
	h.filter.Shared.forwarded(s, config, h.conn, &x.router)
	switch {
	case upgrade:
		h.phase = phaseUpgrade
		s.Upgrade = true
		s.DecodeHeaders(false)
	case head.Framing == http1.None:
		h.phase = phaseAnswer
		s.DecodeHeaders(true)
	default:
		h.phase = phaseBody
		x.body.Init(head, &s.RequestTrailers, &config.Limits, http1.Downstream)
		s.DecodeHeaders(false)
	}
}

// refuse answers a message that breaks HTTP and closes the connection. What it has sent is not a request any more.
func (h *h1) refuse(failed *http1.Error) {
	h.keep, h.ownClose = false, true
	h.phase = phaseAnswer
	h.cells[counters.HTTPDownstreamCxProtocolError]++
	if failed == http1.NotHTTP {
		h.x.stream.Reset(stream.ResetProtocolError, stream.FlagDownstreamProtocolError, failed.Detail)
		return
	}
	h.x.stream.Refuse(failed.Status, http1.Reason(failed.Status), stream.FlagDownstreamProtocolError, failed.Detail)
}

func (h *h1) badRequest(s *stream.Stream, details string) {
	h.keep, h.ownClose = false, true
	h.phase = phaseAnswer
	h.cells[counters.HTTPDownstreamCxProtocolError]++
	s.Refuse(400, http1.Reason(400), stream.FlagDownstreamProtocolError, details)
}

// decodeBody gives body bytes to the stream until the client is stopped, the body ends or the stream does.
func (h *h1) decodeBody(data []byte) int {
	x := h.x
	s := &x.stream
	consumed := 0
	for h.phase == phaseBody && h.disabled == 0 {
		piece, n, done, failed := x.body.Decode(data[consumed:])
		if failed != nil {
			h.bodyFailed(s, failed)
			return len(data)
		}
		if n == 0 && !done {
			break
		}
		consumed += n
		h.expects = false
		if !done {
			if len(piece) > 0 {
				s.DecodeData(piece, false)
			}
			h.spliceBody(x, len(piece))
			continue
		}
		h.phase = phaseAnswer
		if s.RequestTrailers.Len() == 0 {
			s.DecodeData(piece, true)
			break
		}
		if len(piece) > 0 {
			s.DecodeData(piece, false)
		}
		if h.x == x && !s.Finished() {
			s.DecodeTrailers()
		}
	}
	return consumed
}

// bodyFailed refuses a request in the middle of its body: an answer where none has begun, else a reset.
func (h *h1) bodyFailed(s *stream.Stream, failed *http1.Error) {
	h.keep, h.ownClose = false, true
	h.phase = phaseAnswer
	h.cells[counters.HTTPDownstreamCxProtocolError]++
	s.LocalReply(failed.Status, http1.Reason(failed.Status), stream.FlagDownstreamProtocolError, failed.Detail)
}

func (h *h1) discard(data []byte) int {
	_, n, done, failed := h.x.body.Decode(data)
	switch {
	case failed != nil:
		h.release()
		h.connection.close(h.filter.Config.DelayedClose)
		return len(data)
	case done:
		h.release()
		h.idle()
	}
	return n
}

func (h *h1) onEOF() {
	h.eof = true
	switch {
	case h.phase == phaseHead || h.phase == phaseDiscard:
		h.release()
		h.connection.close(0)
	case h.phase == phaseTunnel:
		h.x.stream.DecodeData(nil, true)
	case h.phase == phaseBody || h.filter.Config.NoHalfClose:
		h.x.stream.OnReset(stream.ResetRemote, stream.FlagDownstreamTermination, stream.DetailRemoteDisconnect)
		h.connection.close(0)
	default:
		h.keep = false // the answer is still on its way
	}
}

func (h *h1) onAboveHigh() {
	h.above = true
	if h.x != nil && h.headSent {
		h.x.stream.OnDownstreamAboveHigh()
	}
}

func (h *h1) onBelowLow() {
	h.above = false
	if h.x != nil && h.headSent {
		h.x.stream.OnDownstreamBelowLow()
	}
	if h.phase == phaseHead {
		h.unpause()
	}
}

func (h *h1) onClose(reason conn.Reason) {
	x := h.x
	if x == nil {
		return
	}
	if h.idleSince == 0 && !x.stream.Finished() {
		flags, details := stream.FlagDownstreamTermination, stream.DetailRemoteDisconnect
		why := stream.ResetConnectionTermination
		if reason == conn.LocalClose {
			flags, details, why = 0, stream.DetailLocalDisconnect, stream.ResetLocal
		}
		x.stream.OnReset(why, flags, details)
	}
	h.release()
}

func (h *h1) deadline() int64 {
	switch {
	case h.headers > 0:
		return h.headers
	case h.x != nil && h.idleSince == 0 && !h.x.stream.Finished():
		return h.x.stream.Deadline()
	}
	return math.MaxInt64
}

func (h *h1) onDeadline(now int64) {
	switch {
	case h.headers > 0 && now >= h.headers:
		x := h.x
		h.begin(x)
		h.keep, h.ownClose = false, true
		h.phase = phaseAnswer
		x.stream.Cells[counters.HTTPDownstreamRqHeaderTimeout]++
		x.stream.Refuse(408, "request header timeout", 0, stream.DetailHeaderTimeout)
	case h.headers == 0 && h.x != nil && h.idleSince == 0:
		h.x.stream.OnDeadline(now)
	}
}

// onExpired implements codec; a response under way says so itself.
func (h *h1) onExpired() {
	if h.idleSince > 0 {
		h.connection.close(h.filter.Config.DelayedClose)
	}
}

// onIdle implements codec.
func (h *h1) onIdle() { h.connection.close(h.filter.Config.DelayedClose) }

// onDrain and onUndrain implement codec; responses ask.
func (h *h1) onDrain()   {}
func (h *h1) onUndrain() {}

// leave gives up what was begun of a head, which another codec reads from its first byte.
func (h *h1) leave() {
	h.release()
	h.headers = 0
}

func (h *h1) release() {
	if x := h.x; x != nil {
		h.x = nil
		h.filter.Shared.give(x)
	}
}

// idle makes the connection ready for the next request.
func (h *h1) idle() {
	h.phase = phaseHead
	h.idleSince = h.filter.Worker.Now()
	if h.eof {
		h.connection.close(0)
		return
	}
	h.hold()
	h.unpause()
}

// OnFinished implements stream.Downstream.
func (h *h1) OnFinished() {
	h.filter.active--
	h.countBytes()
	for ; h.disabled > 0; h.disabled-- {
		h.conn.ResumeRead()
	}
	if h.phase == phaseTunnel {
		h.cells[counters.HTTPDownstreamCxUpgradesActive]--
	}
	s := &h.x.stream
	switch {
	case !h.bodyEnded: // a reset follows, or the connection is closed
		h.release()
	case h.framing == http1.Tunnel || !h.keepAfter:
		linger := h.filter.Config.DelayedClose
		if !h.ownClose && s.RequestEnded() {
			linger = 0 // the client has said that it sends no more
		}
		h.release()
		h.connection.close(linger)
	case h.phase == phaseBody:
		h.phase = phaseDiscard
		h.idleSince = h.filter.Worker.Now()
	default:
		h.release()
		h.idle()
	}
}
