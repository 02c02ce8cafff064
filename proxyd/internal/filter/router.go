package filter

import (
	"bytes"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/substitution"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/route"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/tracing"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

// Shared is what the routers of one worker share. Its scratch and its machine belong to the callback that runs.
type Shared struct {
	Upstream *upstream.Manager
	scratch  []byte
	machine  substitution.Machine

	freeMirrors  *mirror
	keptMirrors  int
	freeAttempts *attempt
	keptAttempts int
}

// NewShared makes it for a worker.
func NewShared(m *upstream.Manager) *Shared {
	return &Shared{Upstream: m, scratch: make([]byte, 0, 4<<10)}
}

// Router ends the filter chain of one stream: it finds the route, answers by itself or sends the request upstream, and brings
// the response back. It is a part of the stream's memory: Begin for each request, no end of its own.
type Router struct {
	attempt attempt  // the first try
	try     *attempt // the newest, in the end the one that answers the client
	older   *attempt // tries before it that are out still: hedged
	shared  *Shared
	routes  *Routes
	action  *action

	body     buffer.Chain // came while there was no connection
	target   *target
	mirrors  []*mirror
	made     uint64 // value of the cookie that the client gets so that it stays on its target; 0: none
	choice   cluster.Choice
	hashMade uint64 // that of the cookie by which it stays on its host
	retry    retrying
	idle     int64                    // ns: a try may be without bytes for so long; 0: for ever
	watcher  timer.Timer              // of that
	timeout  int64                    // ns; the route's, or what a trusted client says; 0 off
	tried    [mostTried]*cluster.Host // hosts of earlier tries
	tries    int                      // of these

	grpcDeadline int64 // ns; 0: none

	matched      bool // action is what the routes say, nil for a miss
	paused       bool // the client, until there is a connection
	downAbove    bool // the client does not
	headersEnd   bool // the request is its head alone
	ended        bool // the request has ended, maybe with bytes in body
	trailers     bool // and with trailers
	bodySent     bool // some of the body went upstream: it cannot be sent again
	retried      bool
	interim      bool // something came from the upstream
	headersSeen  bool // the response has begun
	responseDone bool // the response was received to its end
}

// mostTried is how many hosts that failed are avoided (Envoy's previous_hosts).
const mostTried = 3

// Begin makes the router ready for a stream.
func (r *Router) Begin(s *stream.Stream, shared *Shared, routes *Routes) {
	*r = Router{attempt: attempt{router: r, stream: s}, shared: shared, routes: routes}
	r.try = &r.attempt
}

// match finds the request's route, once: the filters of the route must not be changed by what they change.
func (r *Router) match(s *stream.Stream) *action {
	if r.matched {
		return r.action
	}
	r.matched = true // a miss too: another draw could find a route whose filters have not run
	request := &s.Request
	asked := route.Request{
		Host: request.Authority(), Path: request.Path(), ID: request.MethodID(), Method: request.Method(), Fields: &request.Block,
		Source: s.Client, TLS: string(request.Scheme()) == "https", Certified: s.Certified, Scratch: r.shared.scratch,
	}
	if len(asked.Path) == 0 {
		asked.Path = rootPath // CONNECT has none
	}
	if r.routes.secured != nil && string(outerScheme(request)) != "https" {
		if host := r.routes.table.VirtualHost(asked.Host); host >= 0 {
			if to := &r.routes.secured[host]; to.required == configv1.RequireTls_REQUIRE_TLS_ALL ||
				to.required == configv1.RequireTls_REQUIRE_TLS_EXTERNAL_ONLY && !s.Internal {
				r.action, s.HostName = &to.action, to.action.hostName
				return r.action
			}
		}
	}
	if r.routes.table.Draws() {
		asked.Draw = uint32(s.Worker.Rand() % million)
	}
	ordinal := r.routes.table.Match(&asked)
	r.shared.scratch = asked.Scratch
	if ordinal >= 0 {
		r.action = &r.routes.actions[ordinal]
		s.RouteName, s.HostName = r.action.name, r.action.hostName
	}
	return r.action
}

// RouteFilters implements stream.Router.
func (r *Router) RouteFilters(s *stream.Stream) []stream.Factory {
	if s.PathDecoded {
		return nil
	}
	if a := r.match(s); a != nil {
		return a.filters
	}
	if host := r.routes.table.VirtualHost(s.Request.Authority()); host >= 0 {
		return r.routes.unrouted[host]
	}
	return r.routes.unhosted
}

// Destination implements stream.Router. What it draws holds.
func (r *Router) Destination(s *stream.Stream) string {
	if s.PathDecoded {
		return ""
	}
	if a := r.match(s); a == nil || a.kind != forward {
		return ""
	}
	if r.target == nil {
		r.target = r.pick(s)
	}
	return r.target.name
}

// Sampling is what the request's route says about its trace; nil: nothing. Where some route says something, routes are chosen by the
// request as it came, before any filter has changed it.
func (r *Router) Sampling(s *stream.Stream) *tracing.Sampling {
	if !r.routes.sampled || s.PathDecoded {
		return nil
	}
	if a := r.match(s); a != nil {
		return a.sampling
	}
	return nil
}

// DecodeHeaders implements stream.Terminal.
func (r *Router) DecodeHeaders(s *stream.Stream, end bool) {
	if s.PathDecoded {
		r.redirectDecoded(s)
		return
	}
	a := r.match(s)
	if a == nil {
		s.Cells[counters.HTTPNoRoute]++
		s.LocalReply(404, "", stream.FlagNoRoute, stream.DetailRouteNotFound)
		return
	}
	switch a.kind {
	case redirect:
		r.redirect(s)
		return
	case respond:
		s.Cells[counters.HTTPRqDirectResponse]++
		r.reply(s, a.answer.status, a.answer.body, a.answer.contentType, stream.DetailDirectResponse)
		return
	}
	if s.Upgrade && a.upgrades != nil && !a.upgrades.permits(&s.Request) {
		s.LocalReply(403, "", 0, stream.DetailUpgradeFailed)
		return
	}
	if r.target == nil {
		r.target = r.pick(s)
	}
	s.ClusterName = r.target.name
	if a.idle >= 0 {
		s.SetIdleTimeout(a.idle)
	}
	if a.maxDuration >= 0 {
		s.SetMaxDuration(a.maxDuration)
	}
	s.CountTries = a.tells&tellAttemptsBack != 0
	r.edit(s)
	if r.target.choosy {
		r.choice.Subset = r.target.subset
		if a.hash != nil {
			r.hashMade = a.hash.key(s, &r.choice)
		}
	}
	r.timeout = a.timeout
	if s.Internal && s.Request.HasAny(&controls) {
		r.controlled(&s.Request.Block)
		s.Request.RemoveAny(&controls) // said to us alone
	}
	if a.mirrors != nil {
		r.mirror(s, end)
	}
	if t := s.GRPCTimeout(); t > 0 { // counts from the request's first byte, whatever the route says
		r.grpcDeadline = s.Start + t
		s.SetRouteDeadline(r.grpcDeadline)
	}
	r.headersEnd, r.ended = end, end
	if end || s.RequestEnded() {
		r.startTimeout(s)
	}
	r.beginRetrying()
	r.connect(s)
}

var rootPath = []byte("/")

func (r *Router) pick(s *stream.Stream) *target {
	a := r.action
	if len(a.targets) == 1 {
		return &a.targets[0]
	}
	var at uint64
	if a.sticky != nil {
		at, r.made = a.sticky.position(s, a.weights)
	} else {
		at = s.Worker.Rand() % a.weights
	}
	for i := range a.targets {
		if at < a.targets[i].cumulative {
			return &a.targets[i]
		}
	}
	return &a.targets[len(a.targets)-1]
}

// edit turns the request into the one that goes upstream.
func (r *Router) edit(s *stream.Stream) {
	a := r.action
	if a.edits != nil {
		r.rewrite(s, a.edits)
	}
	for i := range a.request {
		a.request[i].apply(&s.Request.Block, s, r.shared.scratch)
	}
	for i := range r.target.request {
		r.target.request[i].apply(&s.Request.Block, s, r.shared.scratch)
	}
}

// rewrite changes the request's path and host.
func (r *Router) rewrite(s *stream.Stream, e *edits) {
	if r.action.tells&tellEnvoy != 0 && (e.rewrites() || e.query != nil) {
		r.shared.scratch = append(r.shared.scratch[:0], s.Request.Path()...)
		s.Request.Set(header.XEnvoyOriginalPath, nil, r.shared.scratch)
	}
	if e.rewrites() {
		r.shared.scratch = e.rewrite.apply(r.shared.scratch[:0], s.Request.Path(), &r.shared.machine)
		s.Request.SetPath(r.shared.scratch)
	}
	if e.query != nil {
		r.shared.scratch = e.query.apply(r.shared.scratch[:0], s.Request.Path())
		s.Request.SetPath(r.shared.scratch)
	}
	host, scratch := e.host, r.shared.scratch[:0]
	if e.hostFrom.name != nil {
		if i := e.hostFrom.find(&s.Request.Block); i >= 0 && header.ValidAuthority(s.Request.ValueAt(i)) {
			scratch = append(scratch, s.Request.ValueAt(i)...)
			host = scratch
		}
	}
	if host == nil {
		return
	}
	if e.tellHost {
		scratch = forwardHost(scratch, &s.Request)
	}
	r.shared.scratch = scratch
	s.Request.SetAuthority(host)
}

// forwardHost puts the request's host at the end of X-Forwarded-Host, unless it is there, as Envoy does. It works behind what scratch
// holds, and gives it back.
func forwardHost(scratch []byte, request *header.Request) []byte {
	host := request.Authority()
	if len(host) == 0 {
		return scratch
	}
	last := -1
	for i := request.Index(header.XForwardedHost, 0); i >= 0; i = request.Index(header.XForwardedHost, i+1) {
		last = i
	}
	start := len(scratch)
	if last < 0 {
		scratch = append(scratch, host...)
		request.Add(header.XForwardedHost, nil, scratch[start:])
		return scratch
	}
	list := request.ValueAt(last)
	if bytes.Equal(header.TrimSpace(list[bytes.LastIndexByte(list, ',')+1:]), host) {
		return scratch
	}
	scratch = append(append(append(scratch, list...), ','), host...)
	request.SetAt(last, scratch[start:])
	return scratch
}

func (r *Router) startTimeout(s *stream.Stream) {
	if s.Tunnel() {
		return
	}
	if t := r.timeout; t > 0 {
		r.setDeadline(s, s.Worker.Now()+t)
	}
}

// setDeadline keeps to grpc-timeout where that comes first.
func (r *Router) setDeadline(s *stream.Stream, at int64) {
	if r.grpcDeadline > 0 {
		at = min(at, r.grpcDeadline)
	}
	s.SetRouteDeadline(at)
}

// Buffered is the bytes that wait for the upstream, or for another try.
func (r *Router) Buffered() int {
	n := r.body.Len()
	if r.try.encoder != nil {
		n += r.try.encoder.BufferedBytes()
	}
	for at := r.older; at != nil; at = at.next {
		if at.encoder != nil {
			n += at.encoder.BufferedBytes()
		}
	}
	return n
}

// DecodeData implements stream.Terminal.
func (r *Router) DecodeData(s *stream.Stream, data []byte, end bool) {
	if len(r.mirrors) > 0 {
		r.mirrorData(data, end)
	}
	if end {
		r.endRequest(s)
	}
	if r.responseDone {
		return // answered early: nobody waits for the rest
	}
	r.keepBody(s, data)
	if r.try.encoder == nil {
		return
	}
	if len(data) > 0 {
		r.bodySent = true
	}
	r.try.encoder.EncodeData(data, end)
}

// keepBody keeps what there is nobody to send to yet, or what another try would need, within the stream's limit.
func (r *Router) keepBody(s *stream.Stream, data []byte) {
	if r.try.encoder != nil && !r.retry.open {
		return
	}
	if r.try.encoder != nil && r.body.Len()+len(data) > s.Config.BufferLimit {
		if cells := r.clusterCells(s); cells != nil {
			cells[counters.ClusterRetryOrShadowAbandoned]++
		}
		r.endRetrying(s)
		return
	}
	r.body.Append(&s.Worker.Pool, data)
}

// DecodeTrailers implements stream.Terminal.
func (r *Router) DecodeTrailers(s *stream.Stream) {
	r.trailers = true
	if len(r.mirrors) > 0 {
		r.mirrorTrailers()
	}
	r.endRequest(s)
	if r.try.encoder != nil && !r.responseDone {
		r.try.encoder.EncodeTrailers(&s.RequestTrailers)
	}
}

func (r *Router) endRequest(s *stream.Stream) {
	r.ended = true
	if s.Tunnel() {
		return
	}
	if r.try.encoder != nil {
		r.try.sent = s.Worker.Now()
		s.UpstreamSent = r.try.sent
		r.watch(r.try)
	}
	r.startTimeout(s)
	r.startTry(s)
}

// OnDownstreamAboveHigh implements stream.Terminal.
func (r *Router) OnDownstreamAboveHigh(*stream.Stream) {
	r.downAbove = true
	r.readDisable(true)
}

// OnDownstreamBelowLow implements stream.Terminal.
func (r *Router) OnDownstreamBelowLow(*stream.Stream) {
	r.downAbove = false
	r.moved()
	r.readDisable(false)
}

func (r *Router) readDisable(disable bool) {
	if r.try.encoder != nil && !r.responseDone {
		r.try.encoder.ReadDisable(disable)
	}
	for at := r.older; at != nil; at = at.next {
		if at.encoder != nil {
			at.encoder.ReadDisable(disable)
		}
	}
}

// RequestTarget is the connection that the next n bytes of the request's body may be spliced to; nil when somebody in between
// wants to see them, or may want to send them again.
func (r *Router) RequestTarget(s *stream.Stream, n int64) *conn.Conn {
	if !s.Plain() || s.Tunnel() || r.try.encoder == nil || r.responseDone || r.retry.open || r.try.above || len(r.mirrors) > 0 {
		return nil
	}
	if up, ok := r.try.encoder.(stream.BulkEncoder); ok {
		return up.BulkTarget(n)
	}
	return nil
}

// OnClosed implements stream.Terminal.
func (r *Router) OnClosed(s *stream.Stream) {
	r.endRetrying(s)
	if r.idle > 0 {
		s.Worker.Timers.Stop(&r.watcher)
	}
	if len(r.mirrors) > 0 {
		r.mirrorsFed(true)
	}
	if r.older != nil {
		r.dropOlder()
	}
	at := r.try
	if r.responseDone {
		at.encoder = nil
	}
	at.drop(stream.ResetLocal)
	if at != &r.attempt {
		r.try = &r.attempt
		r.shared.give(at)
	}
	r.body.Release(&s.Worker.Pool)
}

// OnTimeout implements stream.Terminal.
func (r *Router) OnTimeout(s *stream.Stream) {
	r.timedOut(s, r.try)
	for at := r.older; at != nil; at = at.next {
		r.timedOut(s, at)
	}
	s.LocalReply(504, "upstream request timeout", stream.FlagUpstreamRequestTimeout, detailTimeout)
}

func (r *Router) timedOut(s *stream.Stream, at *attempt) {
	if cells := r.clusterCells(s); cells != nil {
		cells[counters.ClusterUpstreamRqTimeout]++
	}
	if !r.headersSeen {
		r.late(at)
	}
	at.ends("timeout")
	r.charge(s, 504)
}
