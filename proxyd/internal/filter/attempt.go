package filter

import (
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/upstream"
)

// attempt is one try of a request: what the pool and the client codec call. The first one is a part of the router, and what is
// tried again after a failure goes by it too. Only hedging has more than one out at a time: the others come from the worker's free list.
//
// Life: begin queues it with the pool, OnPoolReady hands it a connection; it is out until its response has ended, OnReset,
// OnPoolFailure, or drop, after which nobody calls it.
type attempt struct {
	router  *Router
	stream  *stream.Stream
	pending *upstream.Pending     // its place in a host's queue
	encoder stream.RequestEncoder // nil: it has no connection, or it is over
	host    *cluster.Host         // of the connection
	ready   int64                 // ns: the pool handed the connection out
	sent    int64                 // ns: the last byte of the request was given to it
	active  int64                 // ns: something came of it last, where somebody minds; 0: its request is not complete
	next    *attempt              // in router.older, or on the free list

	span      int  // in stream.Tries, plus 1; 0: none
	queued    bool // waiting for a connection
	reused    bool // the connection served before
	above     bool // the upstream does not keep up
	late      bool // its host has been told of as one that does not answer in time
	overtaken bool // its time-out has passed and another try began: it is not repeated itself
}

// out tells that an answer may still come.
func (at *attempt) out() bool { return at.queued || at.encoder != nil }

// mostAttempts bounds the free list.
const mostAttempts = 256

func (s *Shared) takeAttempt() *attempt {
	at := s.freeAttempts
	if at == nil {
		return &attempt{}
	}
	s.freeAttempts, at.next = at.next, nil
	s.keptAttempts--
	return at
}

// give takes the memory of an attempt back that is not the router's own.
func (s *Shared) give(at *attempt) {
	if at == &at.router.attempt || s.keptAttempts >= mostAttempts {
		return
	}
	*at = attempt{next: s.freeAttempts}
	s.freeAttempts = at
	s.keptAttempts++
}

// connect begins a try: it asks the pool for a connection.
func (r *Router) connect(s *stream.Stream) {
	if r.try.out() { // hedged: it goes on beside the new one
		r.try.next, r.older = r.older, r.try
		r.try = r.shared.takeAttempt()
		r.try.router, r.try.stream = r, s
	}
	at := r.try
	at.queued, at.overtaken, at.late, at.host, at.active = true, false, false, nil, 0
	at.span = s.BeginTry(r.target.name)
	r.startTry(s)
	var choice *cluster.Choice
	if r.target.choosy {
		choice = &r.choice
	}
	pending := r.shared.Upstream.NewStream(r.target.handle, r.action.priority, r.avoid(s), choice, at, at)
	if !at.queued || pending == nil {
		return
	}
	at.pending = pending
	if !r.ended && !r.paused {
		r.paused = true
		s.PauseRequest()
	}
}

// OnPoolReady implements upstream.Callbacks.
func (at *attempt) OnPoolReady(encoder stream.RequestEncoder, host *cluster.Host, reused bool) {
	r, s := at.router, at.stream
	at.queued, at.pending = false, nil
	at.encoder, at.host, at.reused = encoder, host, reused
	at.ready = s.Worker.Now()
	s.Host, s.UpstreamReady = host, at.ready
	s.NoteLink(encoder)
	s.Attempts++
	if r.downAbove {
		encoder.ReadDisable(true)
	}
	if s.Trace.Tries != nil {
		span := s.Trace.Span // where there have been too many tries for one of its own
		if t := at.traced(); t != nil {
			t.Host, span = host, t.Span
			if l, ok := encoder.(stream.Linked); ok && s.Trace.Sampled {
				t.Link = l.Link()
			}
		}
		r.shared.scratch = s.Trace.Tries.Propagate(s, span, r.shared.scratch)
	}
	if p := r.retry.policy; p != nil && !p.sameHost && r.tries < mostTried {
		r.tried[r.tries] = host
		r.tries++
	}
	if r.action.tells != 0 {
		r.tellUpstream(s)
	}
	encoder.EncodeHeaders(&s.Request, r.headersEnd)
	for sent := 0; sent < r.body.Len(); {
		piece := r.body.From(sent)
		sent += len(piece)
		r.bodySent = true
		encoder.EncodeData(piece, sent == r.body.Len() && r.ended && !r.trailers)
		if at.encoder == nil {
			return
		}
	}
	if !r.retry.open {
		r.body.Release(&s.Worker.Pool)
	}
	switch {
	case r.trailers:
		encoder.EncodeTrailers(&s.RequestTrailers)
	case r.ended && !r.headersEnd && !r.bodySent:
		encoder.EncodeData(nil, true)
	}
	if r.ended {
		at.sent = at.ready
		s.UpstreamSent = at.sent
		r.watch(at)
	}
	if r.paused {
		r.paused = false
		s.ResumeRequest()
	}
}

// avoid is the hosts that a try should rather not have: for the first none.
func (r *Router) avoid(s *stream.Stream) upstream.Avoid {
	p := r.retry.policy
	if p == nil || s.Attempts == 0 {
		return upstream.Avoid{}
	}
	return upstream.Avoid{Hosts: r.tried[:r.tries], Labels: p.omit, Looks: p.looks}
}

// rivals tells that another try than at may still answer, or is about to begin.
func (r *Router) rivals(at *attempt) bool {
	switch {
	case r.retry.waiting:
		return true
	case at != r.try:
		return r.try.out() || r.older != at || at.next != nil
	}
	return r.older != nil
}

// win makes a try the one that answers the client. The others are given up, so that nothing of their answers can mix with its own.
func (r *Router) win(at *attempt) {
	if at == r.try && r.older == nil {
		return
	}
	if at != r.try {
		r.forget(at)
		loser := r.try
		r.try = at
		loser.drop(stream.ResetLocal)
		r.shared.give(loser)
	}
	r.dropOlder()
	s := at.stream
	s.Host, s.UpstreamReady, s.UpstreamSent = at.host, at.ready, at.sent
	s.NoteLink(at.encoder)
}

// dropOlder gives the tries up that others overtook.
func (r *Router) dropOlder() {
	for at := r.older; at != nil; at = r.older {
		r.older, at.next = at.next, nil
		at.drop(stream.ResetLocal)
		r.shared.give(at)
	}
}

// forget takes a try off the list of those that others overtook.
func (r *Router) forget(at *attempt) {
	for link := &r.older; *link != nil; link = &(*link).next {
		if *link == at {
			*link, at.next = at.next, nil
			return
		}
	}
}

// over lets go of a try that is over while others are out. The newest one's memory serves the next.
func (r *Router) over(at *attempt) {
	if at != r.try {
		r.forget(at)
		r.shared.give(at)
	} else if !r.retry.waiting {
		at.stream.Worker.Timers.Stop(&r.retry.timer)
	}
}

// traced is the span of a try that is not over; nil: none.
func (at *attempt) traced() *stream.Try {
	if at.span == 0 {
		return nil
	}
	return &at.stream.Tries[at.span-1]
}

// ends ends the span of a try. failure says why there was no answer, where nobody wished so.
func (at *attempt) ends(failure string) {
	if t := at.traced(); t != nil {
		t.End, t.Failure = at.stream.Worker.Now(), failure
		at.span = 0
	}
}

// drop gives up a try.
func (at *attempt) drop(reason stream.ResetReason) {
	if t := at.traced(); t != nil {
		t.Canceled = !at.stream.Tunnel()
		at.ends("")
	}
	at.queued = false
	if at.pending != nil {
		at.pending.Cancel()
		at.pending = nil
	}
	if encoder := at.encoder; encoder != nil {
		at.encoder = nil
		encoder.Reset(reason)
	}
	at.keepUp()
}

// dropResponse gives up a response that is thrown away for another try's. One that is complete leaves its connection as it is.
func (at *attempt) dropResponse(end bool) {
	if end && at.router.ended {
		at.ends("")
		at.encoder = nil
		at.keepUp()
		return
	}
	at.drop(stream.ResetLocal)
}

// keepUp lets the client go on that waited for an upstream that is gone.
func (at *attempt) keepUp() {
	if at.above {
		at.above = false
		at.stream.ResumeRequest()
	}
}

// OnAboveHigh implements stream.ResponseDecoder.
func (at *attempt) OnAboveHigh() {
	if !at.above {
		at.above = true
		at.stream.PauseRequest()
	}
}

// OnBelowLow implements stream.ResponseDecoder.
func (at *attempt) OnBelowLow() { at.keepUp() }

// DecodeInterim implements stream.ResponseDecoder. What the client has got of a try makes it the only one (Envoy does the same).
func (at *attempt) DecodeInterim(h *header.Response) {
	r := at.router
	at.moves()
	r.interim = true
	r.win(at)
	r.endRetrying(at.stream)
	at.stream.EncodeInterim(h)
}

// DecodeHeaders implements stream.ResponseDecoder.
func (at *attempt) DecodeHeaders(h *header.Response, end bool) {
	r, s := at.router, at.stream
	at.moves()
	if t := at.traced(); t != nil {
		t.Status = h.Status
		t.Answered(&h.Block)
	}
	if r.retry.open {
		wanted := r.retry.wantsResponse(h, r.shared.scratch)
		if wanted && r.retry.policy.resets != nil {
			r.retry.asked = r.retry.policy.resets.pause(s, &h.Block)
		}
		if wanted && (!at.overtaken && r.again(s, true) || r.rivals(at)) {
			at.dropResponse(end)
			r.over(at)
			return
		}
		if r.retry.counted && !wanted && !at.overtaken {
			if cells := r.clusterCells(s); cells != nil {
				cells[counters.ClusterUpstreamRqRetrySuccess]++
			}
		}
		r.win(at)
		r.endRetrying(s)
	}
	r.headersSeen = true
	s.UpstreamReceived = s.Worker.Now()
	if h.Status == 101 || s.Request.MethodID() == header.MethodConnect && h.Status/100 == 2 {
		s.BeginTunnel()
	}
	r.edited(s, h)
	if r.action.tells != 0 {
		r.tellClient(s, h)
	}
	if end {
		r.endResponse(s)
	}
	s.EncodeHeaders(h, end)
	if end && !s.Finished() {
		s.KeepResponse()
	}
}

// DecodeData implements stream.ResponseDecoder.
func (at *attempt) DecodeData(data []byte, end bool) {
	r, s := at.router, at.stream
	at.moves()
	if end {
		r.endResponse(s)
	}
	s.EncodeData(data, end)
	if end && !s.Finished() {
		s.KeepResponse()
	}
}

// DecodeTrailers implements stream.ResponseDecoder.
func (at *attempt) DecodeTrailers(t *header.Block) {
	r, s := at.router, at.stream
	if try := at.traced(); try != nil {
		try.Answered(t)
	}
	r.endResponse(s)
	s.EncodeTrailers(t)
	if !s.Finished() {
		s.KeepResponse()
	}
}

func (r *Router) endResponse(s *stream.Stream) {
	if !s.Tunnel() { // the other half of a tunnel goes on
		r.try.ends("")
		r.responseDone, r.try.encoder = true, nil
	}
	s.UpstreamEnded = s.Worker.Now()
}

// BulkTarget implements stream.BulkDecoder: nobody but the client's codec wants to see the bytes.
func (at *attempt) BulkTarget(n int64) *conn.Conn {
	s := at.stream
	if !s.Plain() || s.Tunnel() || at.router.downAbove {
		return nil
	}
	if down, ok := s.Downstream().(stream.BulkEncoder); ok {
		return down.BulkTarget(n)
	}
	return nil
}

// OnBulk implements stream.BulkDecoder.
func (at *attempt) OnBulk(n int) {
	s := at.stream
	at.moves()
	s.BytesSent += uint64(n)
	s.Touch()
	s.Downstream().(stream.BulkEncoder).OnBulk(n)
}
