package filter

import (
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/upstream"
)

const (
	detailTimeout = "response_timeout"
	detailBefore  = "upstream_reset_before_response_started"
	textBefore    = "upstream connect error or disconnect/reset before headers. reset reason: "
)

// failure is what the client and the log are told of an upstream that failed.
type failure struct {
	status int
	reason string
	text   string
	flags  stream.Flags
	before string // details when no response had begun
	after  string // details of a response that was cut
}

func reset(status int, reason string, flags stream.Flags) failure {
	words := []byte(reason)
	for i, c := range words {
		if c == ' ' {
			words[i] = '_'
		}
	}
	return failure{
		status, reason, textBefore + reason, flags,
		detailBefore + "{" + string(words) + "}", "upstream_reset_after_response_started{" + string(words) + "}",
	}
}

// resets says how each reset of an upstream is answered: Envoy's statuses, texts, flags and details.
var resets = [...]failure{
	stream.ResetLocal:                 reset(503, "local reset", stream.FlagLocalReset),
	stream.ResetRemote:                reset(503, "remote reset", stream.FlagUpstreamRemoteReset),
	stream.ResetConnectionFailure:     reset(503, "connection failure", stream.FlagUpstreamConnectionFailure),
	stream.ResetConnectTimeout:        reset(503, "connection timeout", stream.FlagUpstreamConnectionFailure),
	stream.ResetConnectionTermination: reset(503, "connection termination", stream.FlagUpstreamTermination),
	stream.ResetOverflow:              reset(503, "overflow", stream.FlagUpstreamOverflow),
	stream.ResetProtocolError:         reset(502, "protocol error", stream.FlagUpstreamProtocolError),
	stream.ResetRefused:               reset(503, "remote refused stream reset", stream.FlagUpstreamRemoteReset),
}

// poolFailures say on the span of a try why it had no connection.
var poolFailures = [...]string{
	upstream.NoCluster: "cluster not found", upstream.NoHost: "no healthy upstream", upstream.Overflow: "overflow",
	upstream.ConnectionFailure: "connection failure", upstream.ConnectionTimeout: "connection timeout",
}

// OnPoolFailure implements upstream.Callbacks.
func (at *attempt) OnPoolFailure(why upstream.Failure, host *cluster.Host) {
	r, s := at.router, at.stream
	at.queued, at.pending = false, nil
	if host != nil {
		s.Host, s.Link = host, stream.Link{}
		if t := at.traced(); t != nil {
			t.Host = host
		}
	}
	at.ends(poolFailures[why])
	if why != upstream.NoCluster && why != upstream.NoHost { // there was somebody to ask, if in vain
		s.Attempts++
	}
	switch why {
	case upstream.ConnectionTimeout:
		if r.tryAgain(at, stream.ResetConnectTimeout, false) {
			return
		}
	case upstream.ConnectionFailure:
		if r.tryAgain(at, stream.ResetConnectionFailure, false) {
			return
		}
	}
	if r.rivals(at) {
		r.charge(s, 503)
		r.over(at)
		return
	}
	switch why {
	case upstream.NoCluster:
		s.Cells[counters.HTTPNoCluster]++
		s.LocalReply(503, "", stream.FlagNoCluster, stream.DetailClusterNotFound)
	case upstream.NoHost:
		r.charge(s, 503)
		s.LocalReply(503, "no healthy upstream", stream.FlagNoHealthyUpstream, stream.DetailNoHealthyUpstream)
	case upstream.Overflow:
		f := &resets[stream.ResetOverflow]
		r.charge(s, f.status)
		s.Flags |= f.flags
		h := s.NewReply(f.status)
		h.AddString(header.XEnvoyOverloaded, "", "true")
		s.SendReply([]byte(f.text), "text/plain", f.before)
	case upstream.ConnectionTimeout:
		r.fail(s, stream.ResetConnectTimeout)
	default:
		s.UpstreamFailure = "connect failed"
		r.fail(s, stream.ResetConnectionFailure)
	}
}

// OnReset implements stream.ResponseDecoder.
func (at *attempt) OnReset(reason stream.ResetReason, detail string) {
	r, s := at.router, at.stream
	at.encoder = nil
	at.keepUp()
	at.ends(resets[reason].reason)
	if s.Overdue() && !s.ResponseHeadSent() { // a server that was told the same deadline (gRPC) may give up a moment before we do
		r.OnTimeout(s)
		return
	}
	if !r.headersSeen && r.tryAgain(at, reason, true) {
		return
	}
	// Where the policy decides about such an end, its answer is the last one: no try goes beyond its budget.
	if decided := r.retry.policy != nil && r.retry.wantsReset(reason, true); !decided && !at.overtaken && r.retriable(s, reason) {
		r.retried = true
		if config := r.shared.Upstream.Cluster(r.target.handle); config != nil {
			config.Cells[s.Worker.ID][counters.ClusterUpstreamRqRetry]++
		}
		r.connect(s)
		return
	}
	if r.rivals(at) {
		r.charge(s, resets[reason].status)
		r.over(at)
		return
	}
	s.Host, s.UpstreamFailure = at.host, detail
	r.fail(s, reason)
}

// tryAgain asks the policy about a try that ended without a response. One that another overtook has been repeated already.
func (r *Router) tryAgain(at *attempt, reason stream.ResetReason, began bool) bool {
	return r.retry.open && !at.overtaken && r.again(at.stream, r.retry.wantsReset(reason, began))
}

// fail answers for the upstream, or cuts the response that it has begun.
func (r *Router) fail(s *stream.Stream, reason stream.ResetReason) {
	f := &resets[reason]
	if s.ResponseHeadSent() {
		s.Reset(reason, f.flags, f.after)
		return
	}
	r.charge(s, f.status)
	s.LocalReply(f.status, f.text, f.flags, f.before)
}

// charge counts an answer of our own among the cluster's responses, as Envoy does: what the cluster does for clients is told by its
// 5xx also when none of its hosts can be reached. A response that a host has begun is counted already.
func (r *Router) charge(s *stream.Stream, status int) {
	if r.headersSeen {
		return
	}
	if cells := r.clusterCells(s); cells != nil {
		cells[counters.ClusterUpstreamRqXX+status/100-1]++
	}
}

// retriable tells whether the request may be sent once more without anybody noticing: the connection had served before and
// ended before any byte of a response, which looks like its idle death crossing the request; doing the request twice
// does no harm; and none of its body has gone. nginx and Go's client do the same.
func (r *Router) retriable(s *stream.Stream, reason stream.ResetReason) bool {
	if reason == stream.ResetRefused { // the server says that it has done nothing (RFC 9113 8.7)
		return !r.retried && !r.bodySent && !r.interim && !r.headersSeen
	}
	if !r.try.reused || r.retried || r.interim || r.headersSeen || r.bodySent || reason != stream.ResetConnectionTermination {
		return false
	}
	switch s.Request.MethodID() {
	case header.MethodGet, header.MethodHead, header.MethodOptions, header.MethodTrace, header.MethodPut, header.MethodDelete:
		return !s.Upgrade
	}
	return false
}

// reply answers as the route says, with its response header edits.
func (r *Router) reply(s *stream.Stream, status int, body []byte, contentType, details string) {
	h := s.NewReply(status)
	r.edited(s, h)
	s.SendReply(body, contentType, details)
}

func (r *Router) edited(s *stream.Stream, h *header.Response) {
	for i := range r.action.response {
		r.action.response[i].apply(&h.Block, s, r.shared.scratch)
	}
	if r.target == nil {
		return
	}
	for i := range r.target.response {
		r.target.response[i].apply(&h.Block, s, r.shared.scratch)
	}
	if r.made != 0 {
		r.shared.scratch = r.action.sticky.setCookie(r.shared.scratch[:0], r.made)
		h.Add(header.SetCookie, nil, r.shared.scratch)
	}
	if r.hashMade != 0 {
		r.shared.scratch = r.action.hash.setCookie(r.shared.scratch[:0], r.hashMade)
		h.Add(header.SetCookie, nil, r.shared.scratch)
	}
}
