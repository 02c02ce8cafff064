package filter

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/route"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
	configv1 "retinue.dev/services/api/config/v1"
)

// conditions are when a request is tried again, a bit each. Envoy's retry_on.
type conditions uint32

const (
	on5xx conditions = 1 << iota
	onGatewayError
	onReset
	onResetBeforeRequest
	onConnectFailure
	onRetriable4xx
	onRefusedStream
	onCancelled
	onDeadlineExceeded
	onInternal
	onResourceExhausted
	onUnavailable
	onRateLimited
	onStatusCodes
	onHeaders
)

var conditionNames = map[string]conditions{
	"5xx": on5xx, "gateway-error": onGatewayError, "reset": onReset, "reset-before-request": onResetBeforeRequest,
	"connect-failure": onConnectFailure, "retriable-4xx": onRetriable4xx, "refused-stream": onRefusedStream,
	"cancelled": onCancelled, "deadline-exceeded": onDeadlineExceeded, "internal": onInternal,
	"resource-exhausted": onResourceExhausted, "unavailable": onUnavailable,
	"envoy-ratelimited": onRateLimited,
}

// grpcConditions maps grpc-status to the condition that names it.
var grpcConditions = [...]conditions{1: onCancelled, 4: onDeadlineExceeded, 8: onResourceExhausted, 13: onInternal, 14: onUnavailable}

const onGRPC = onCancelled | onDeadlineExceeded | onInternal | onResourceExhausted | onUnavailable

const (
	defaultBackOff = 25 // ms
	// defaultLooks is how often another host is looked for. Envoy's is 1, beside no avoidance of hosts at all.
	defaultLooks = 3

	detailPerTryTimeout = "upstream_per_try_timeout"
)

// retryPolicy says when a route's requests are tried again. Immutable.
type retryPolicy struct {
	on         conditions
	statuses   [10]uint64 // a bit for each status from 0 to 639
	attempts   int
	perTry     int64 // ns; 0 off
	idle       int64 // ns a try may be without bytes; 0: for ever
	backOff    int64 // ns
	maxBackOff int64
	sameHost   bool
	looks      int // for another host than those that failed, or are omitted
	omit       []cluster.Label
	resets     *askedPause   // nil: what responses say about pauses means nothing
	hedge      bool          // a try that takes too long goes on beside the next
	response   []route.Field // responses that one of these holds for are tried again too
	request    []route.Field // any: only requests that one of these holds for are tried again
}

// byHeader is the policy of requests that ask for retries themselves on a route without one.
var byHeader = &retryPolicy{attempts: 1, looks: defaultLooks, backOff: Milliseconds(defaultBackOff), maxBackOff: 10 * Milliseconds(defaultBackOff)}

func compileRetry(c *configv1.RetryPolicy) (*retryPolicy, error) {
	if c == nil {
		return nil, nil
	}
	p := &retryPolicy{
		attempts: int(c.GetAttempts()), perTry: Milliseconds(c.GetPerTryTimeoutMs()), sameHost: c.GetSameHost(), hedge: c.GetHedgeOnPerTryTimeout(),
		backOff: Milliseconds(c.GetBackOffMs()), maxBackOff: Milliseconds(c.GetMaxBackOffMs()), idle: Milliseconds(c.GetPerTryIdleTimeoutMs()),
		looks: int(cmp.Or(c.GetHostSelectionRetryMaxAttempts(), defaultLooks)),
	}
	for _, name := range c.GetOn() {
		bit := conditionNames[name]
		if bit == 0 {
			return nil, fmt.Errorf("retry: this proxyd does not know the condition %q", name)
		}
		p.on |= bit
	}
	for _, m := range c.GetOmitHostMetadata() {
		p.omit = append(p.omit, cluster.Label{Name: m.GetName(), Value: m.GetValue()})
	}
	var err error
	if p.resets, err = compileResets(c.GetRateLimitedBackOff()); err != nil {
		return nil, fmt.Errorf("retry: rate_limited_back_off: %w", err)
	}
	if p.response, err = route.CompileFields(c.GetRetriableHeaders()); err != nil {
		return nil, fmt.Errorf("retry: retriable_headers%w", err)
	}
	if p.request, err = route.CompileFields(c.GetRetriableRequestHeaders()); err != nil {
		return nil, fmt.Errorf("retry: retriable_request_headers%w", err)
	}
	for _, code := range c.GetStatusCodes() {
		if code < 400 || code > 599 {
			return nil, fmt.Errorf("retry: status %d is not between 400 and 599", code)
		}
		p.statuses[code/64] |= 1 << (code % 64)
		p.on |= onStatusCodes
	}
	if len(p.response) > 0 {
		p.on |= onHeaders
	}
	if p.attempts <= 0 {
		p.attempts = 1
	}
	if p.backOff <= 0 {
		p.backOff = Milliseconds(defaultBackOff)
	}
	if p.maxBackOff <= 0 {
		p.maxBackOff = 10 * p.backOff
	}
	return p, nil
}

// wantsReset tells whether a try that ended without a response is one to repeat. began tells that something of the request
// may have reached the host.
func (p *retrying) wantsReset(reason stream.ResetReason, began bool) bool {
	switch {
	case reason == stream.ResetOverflow: // what is overloaded is not asked again
		return false
	case p.on&(on5xx|onGatewayError|onReset) != 0:
		return true
	case p.on&onResetBeforeRequest != 0 && !began:
		return true
	case p.on&onRefusedStream != 0 && reason == stream.ResetRefused:
		return true
	}
	return p.on&onConnectFailure != 0 && (reason == stream.ResetConnectionFailure || reason == stream.ResetConnectTimeout)
}

// wantsResponse tells whether a response head is one to throw away for another try.
func (p *retrying) wantsResponse(h *header.Response, scratch []byte) bool {
	status := h.Status
	switch {
	case p.on&on5xx != 0 && status >= 500,
		p.on&onGatewayError != 0 && status >= 502 && status <= 504,
		p.on&onRetriable4xx != 0 && status == 409:
		return true
	case status >= 0 && status < 64*len(p.policy.statuses) && p.policy.statuses[status/64]>>(status%64)&1 != 0:
		return true
	case p.on&onStatusCodes != 0 && slices.Contains(p.codes[:], uint16(status)):
		return true
	case p.on&onRateLimited != 0 && h.HasName(rateLimited), p.on&onHeaders != 0 && p.named(h):
		return true
	}
	for i := range p.policy.response {
		if p.policy.response[i].Holds(&route.Request{Fields: &h.Block, Scratch: scratch}) {
			return true
		}
	}
	if p.on&onGRPC == 0 {
		return false
	}
	value := h.Get(header.GrpcStatus) // in the head of a trailers-only response
	code, err := strconv.Atoi(string(value))
	return err == nil && code > 0 && code < len(grpcConditions) && p.on&grpcConditions[code] != 0
}

// named tells whether the response has a field that the request named. Of a list that is longer than anybody needs the rest says
// nothing.
func (p *retrying) named(h *header.Response) bool {
	list, more := p.names, len(p.names) > 0
	for n := 0; more && n < mostNames; n++ {
		var name []byte
		name, list, more = bytes.Cut(list, comma)
		if name = header.TrimSpace(name); len(name) > 0 && h.HasName(name) {
			return true
		}
	}
	return false
}

// retrying is the state of a router whose route has a policy. It begins when the request goes upstream for the first time and is
// over when the client has the head of a response.
type retrying struct {
	policy  *retryPolicy
	on      conditions  // the policy's, and what the request asks for
	codes   [4]uint16   // what the request asks for; 0: none
	names   []byte      // likewise, of response headers
	perTry  int64       // ns; 0 off
	timer   timer.Timer // a try's time-out, or the pause before the next one
	left    int
	pause   int64 // ns: the longest the next pause may be
	asked   int64 // ns: the pause that the last response asked for; 0: none
	hedge   bool  // a try that takes too long goes on beside the next
	open    bool  // another try is possible: the body is kept
	waiting bool  // the timer is a pause
	counted bool  // in the gauge of active retries
}

// begin arms the policy for a request, before its first try.
func (r *Router) beginRetrying() {
	if r.retry.policy == nil {
		if r.action.retry == nil {
			return
		}
		r.retry.take(r.action.retry)
	}
	p := r.retry.policy
	r.idle, r.watcher.Callback = p.idle, r
	if len(p.request) > 0 && !r.requestAllows(p) {
		return
	}
	r.retry.pause, r.retry.open = p.backOff, true
	r.retry.timer.Callback = r
}

func (p *retrying) take(policy *retryPolicy) {
	p.policy, p.on, p.perTry, p.left, p.hedge = policy, policy.on, policy.perTry, policy.attempts, policy.hedge
}

// endRetrying gives up the possibility of another try, and what it costs.
func (r *Router) endRetrying(s *stream.Stream) {
	if !r.retry.open {
		return
	}
	r.retry.open, r.retry.waiting = false, false
	s.Worker.Timers.Stop(&r.retry.timer)
	if r.retry.counted {
		r.retry.counted = false
		if cells := r.clusterCells(s); cells != nil {
			cells[counters.ClusterUpstreamRqRetryActive]--
			cells[counters.ClusterUpstreamRqRetryActiveHigh] -= uint64(r.action.priority)
		}
	}
	if r.try.encoder != nil {
		r.body.Release(&s.Worker.Pool) // it has been sent
	}
}

func (r *Router) requestAllows(p *retryPolicy) bool {
	asked := route.Request{Fields: &r.attempt.stream.Request.Block, Scratch: r.shared.scratch}
	allowed := slices.ContainsFunc(p.request, func(f route.Field) bool { return f.Holds(&asked) })
	r.shared.scratch = asked.Scratch
	return allowed
}

var rateLimited = []byte("x-envoy-ratelimited")

// controls are the headers by which a trusted client says how its request is to be served.
var controls = header.MaskOf(header.XEnvoyUpstreamRqTimeoutMs, header.XEnvoyUpstreamRqPerTryTimeoutMs, header.XEnvoyMaxRetries,
	header.XEnvoyRetryOn, header.XEnvoyRetryGrpcOn, header.XEnvoyRetriableStatusCodes, header.XEnvoyRetriableHeaderNames,
	header.XEnvoyHedgeOnPerTryTimeout)

// controlled takes what a trusted client says about time-outs and retries. It has the last word, as with Envoy; what cannot be
// read says nothing.
func (r *Router) controlled(b *header.Block) {
	if ms, ok := number(b.Get(header.XEnvoyUpstreamRqTimeoutMs), maxMilliseconds); ok {
		r.timeout = Milliseconds(ms)
	}
	t := &r.retry
	if p := r.action.retry; p != nil {
		t.take(p)
	}
	asked := conditionsOf(b.Get(header.XEnvoyRetryOn)) | conditionsOf(b.Get(header.XEnvoyRetryGrpcOn))
	if t.policy == nil {
		if asked == 0 {
			return
		}
		t.policy, t.left = byHeader, byHeader.attempts
	}
	t.on |= asked
	if n, ok := number(b.Get(header.XEnvoyMaxRetries), mostRetries); ok {
		t.left = int(n)
	}
	if ms, ok := number(b.Get(header.XEnvoyUpstreamRqPerTryTimeoutMs), maxMilliseconds); ok {
		t.perTry = Milliseconds(ms)
	}
	if r.timeout > 0 && t.perTry >= r.timeout {
		t.perTry = 0
	}
	switch string(b.Get(header.XEnvoyHedgeOnPerTryTimeout)) {
	case "true":
		t.hedge = true
	case "false":
		t.hedge = false
	}
	t.names = b.Get(header.XEnvoyRetriableHeaderNames)
	list, more := b.Get(header.XEnvoyRetriableStatusCodes), true
	for i := 0; more && i < len(t.codes); i++ {
		var item []byte
		item, list, more = bytes.Cut(list, comma)
		if code, ok := number(header.TrimSpace(item), 599); ok && code >= 400 {
			t.codes[i] = uint16(code)
		}
	}
}

// Bounds of what a request may ask for.
const (
	maxMilliseconds = 24 * 60 * 60 * 1000
	mostRetries     = 100
	mostNames       = 16 // of headers
)

var comma = []byte(",")

// conditionsOf reads a list of conditions; names that are not known say nothing.
func conditionsOf(list []byte) (on conditions) {
	for more := len(list) > 0; more; {
		var item []byte
		item, list, more = bytes.Cut(list, comma)
		switch item = header.TrimSpace(item); string(item) {
		case "retriable-status-codes":
			on |= onStatusCodes
		case "retriable-headers":
			on |= onHeaders
		default:
			on |= conditionNames[string(item)]
		}
	}
	return on
}

// number reads a decimal of at most so much.
func number(text []byte, most int64) (n int64, ok bool) {
	if len(text) == 0 {
		return 0, false
	}
	for _, c := range text {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = n*10 + int64(c-'0'); n > most {
			return 0, false
		}
	}
	return n, true
}

func (r *Router) clusterCells(s *stream.Stream) *counters.Cluster {
	if config := r.shared.Upstream.Cluster(r.target.handle); config != nil {
		return config.Cells[s.Worker.ID]
	}
	return nil
}

// startTry sets the time-out of a try, which runs from the end of the request.
func (r *Router) startTry(s *stream.Stream) {
	if r.retry.open && r.ended && !r.retry.waiting && r.retry.perTry > 0 {
		s.Worker.Timers.Set(&r.retry.timer, s.Worker.Now()+r.retry.perTry)
	}
}

// again begins another try when the policy, the limits and the body allow one. wanted is the policy's answer to how the last
// one ended. false leaves the failure to the caller.
func (r *Router) again(s *stream.Stream, wanted bool) bool {
	if !wanted || !r.retry.open || s.ResponseHeadSent() || s.Upgrade || s.Tunnel() {
		return false
	}
	config := r.shared.Upstream.Cluster(r.target.handle)
	if config == nil {
		return false
	}
	cells := config.Cells[s.Worker.ID]
	if r.retry.left == 0 {
		cells[counters.ClusterUpstreamRqRetryLimitExceeded]++
		s.Flags |= stream.FlagRetryLimit
		return false
	}
	if !r.retry.counted {
		if config.Load(r.action.priority, counters.ClusterUpstreamRqRetryActive) >= config.Retries(r.action.priority) {
			cells[counters.ClusterUpstreamRqRetryOverflow]++
			cells[counters.ClusterUpstreamRqRetryOverflowHigh] += uint64(r.action.priority)
			s.Flags |= stream.FlagUpstreamOverflow
			return false
		}
		r.retry.counted = true
		cells[counters.ClusterUpstreamRqRetryActive]++
		cells[counters.ClusterUpstreamRqRetryActiveHigh] += uint64(r.action.priority)
	}
	cells[counters.ClusterUpstreamRqRetry]++
	r.retry.left--
	r.retry.waiting = true
	if !r.ended && !r.paused { // until there is a connection again
		r.paused = true
		s.PauseRequest()
	}
	var pause int64
	if least := r.retry.asked; least > 0 {
		r.retry.asked = 0
		cells[counters.ClusterUpstreamRqRetryBackoffRatelimited]++
		pause = least + int64(s.Worker.Rand()%uint64(least/2+1))
	} else {
		cells[counters.ClusterUpstreamRqRetryBackoffExponential]++
		pause = int64(s.Worker.Rand() % uint64(r.retry.pause))
		r.retry.pause = min(2*r.retry.pause, r.retry.policy.maxBackOff)
	}
	s.Worker.Timers.Set(&r.retry.timer, s.Worker.Now()+pause)
	return true
}

// OnTimer implements timer.Callback: a pause is over, or a try took too long.
func (r *Router) OnTimer(t *timer.Timer, now int64) {
	if t == &r.watcher {
		r.lookIdle(now)
		return
	}
	at, s := r.try, r.attempt.stream
	if r.retry.waiting {
		r.retry.waiting = false
		r.connect(s)
		return
	}
	r.late(at)
	if r.retry.hedge { // not counted as a time-out, as with Envoy: nothing was given up
		at.overtaken = r.again(s, true)
		return
	}
	r.cut(at, counters.ClusterUpstreamRqPerTryTimeout, "per try timeout", detailPerTryTimeout)
}

// cut ends a try that takes too long, the only one that is out.
func (r *Router) cut(at *attempt, cell int, failure, details string) {
	s := at.stream
	if cells := r.clusterCells(s); cells != nil {
		cells[cell]++
	}
	s.Flags |= stream.FlagUpstreamRequestTimeout
	at.ends(failure)
	at.drop(stream.ResetLocal)
	if r.again(s, r.retry.on&(on5xx|onGatewayError|onReset) != 0) {
		s.Flags &^= stream.FlagUpstreamRequestTimeout // only the last try's end is the request's
		return
	}
	r.charge(s, 504)
	s.LocalReply(504, "upstream request timeout", 0, details)
}

// late tells the outlier detection of a host that has not answered in time, once a try.
func (r *Router) late(at *attempt) {
	if at.late || !at.out() || at.host == nil {
		return
	}
	at.late = true
	if config := r.shared.Upstream.Cluster(r.target.handle); config != nil {
		at.host.Record(at.stream.Worker.ID, config.Outlier, 0)
	}
}
