// Package globalratelimit is the filter that asks a service whether a request is over a limit (Envoy's ratelimit), by the gRPC API
// envoy.service.ratelimit.v3. The stream waits on its worker's loop meanwhile; the service is a cluster like any other.
//
// What the request is about is said in descriptors, which its actions make; without any the service is not asked. A service that does
// not decide lets the request pass, unless failure_mode_deny is set.
package globalratelimit

import (
	"fmt"
	"strconv"

	"retinue.dev/proxyd/internal/callout"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/freelist"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	million = 1_000_000
	// maxAnswer bounds the service's answer, in bytes.
	maxAnswer = 64 << 10

	detailLimited = "request_rate_limited"
	detailError   = "rate_limiter_error"
)

var (
	limitPath = []byte("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit")

	nameLimited   = []byte("x-envoy-ratelimited")
	nameLimit     = []byte("x-ratelimit-limit")
	nameRemaining = []byte("x-ratelimit-remaining")
	nameReset     = []byte("x-ratelimit-reset")

	yes = []byte("true")
	// exhausted is gRPC's RESOURCE_EXHAUSTED.
	exhausted = []byte("8")
)

// Value renders a text with operators.
type Value interface {
	Append(dst []byte, s *stream.Stream) []byte
}

// Needs are what the filter is built with.
type Needs struct {
	Workers int
	Cells   []*counters.GlobalRateLimit
	// Pools are the workers' upstream sides.
	Pools []*upstream.Manager
	// Cluster finds a cluster's handle.
	Cluster func(name string) (cluster.Handle, bool)
	// Value compiles a text with operators.
	Value func(format string) (Value, error)
}

// Filter is the filter of one object: a stream.Factory.
type Filter struct {
	to                    cluster.Handle
	authority             []byte
	timeout               int64 // ns
	deny, headers         bool
	exhausted             bool
	status, statusOnError int
	enabled, enforced     uint64
	domain                []byte // encoded
	hits                  uint64
	descriptors           []descriptor

	pools   []*upstream.Manager
	workers []perWorker
	cells   []*counters.GlobalRateLimit
}

type perWorker struct {
	free    freelist.List[limiter]
	buffers buffers
}

// New builds the filter.
func New(o *configv1.GlobalRateLimitFilter, n *Needs) (*Filter, error) {
	to, known := n.Cluster(o.GetCluster())
	if !known {
		return nil, fmt.Errorf("cluster %q is not in the snapshot", o.GetCluster())
	}
	f := &Filter{
		to: to, authority: []byte(o.GetCluster()), timeout: o.GetTimeoutMs() * 1e6, deny: o.GetFailureModeDeny(), headers: o.GetHeaders(),
		exhausted: o.GetRateLimitedAsResourceExhausted(), status: int(o.GetStatus()), statusOnError: int(o.GetStatusOnError()),
		enabled: share(o.Enabled), enforced: share(o.Enforced), hits: uint64(max(o.GetHitsAddend(), 1)),
		pools: n.Pools, workers: make([]perWorker, n.Workers), cells: n.Cells,
	}
	if f.timeout <= 0 {
		return nil, fmt.Errorf("timeout %d ms makes no sense", o.GetTimeoutMs())
	}
	for _, status := range []int{f.status, f.statusOnError} {
		if status < 400 || status > 599 {
			return nil, fmt.Errorf("status %d is not between 400 and 599", status)
		}
	}
	if !header.ValidAuthority(f.authority) {
		f.authority = []byte("rate-limit")
	}
	if o.GetDomain() == "" {
		return nil, fmt.Errorf("there is no domain")
	}
	f.domain = appendDomain(nil, o.GetDomain())
	if len(o.GetDescriptors()) == 0 {
		return nil, fmt.Errorf("there is no descriptor")
	}
	for i, d := range o.GetDescriptors() {
		built, err := newDescriptor(d, n.Value)
		if err != nil {
			return nil, fmt.Errorf("descriptors[%d]: %w", i, err)
		}
		f.descriptors = append(f.descriptors, built)
	}
	return f, nil
}

func share(fraction *uint32) uint64 {
	if fraction == nil {
		return million
	}
	return uint64(*fraction)
}

// draw tells whether the request is of a share.
func draw(w *worker.Worker, share uint64) bool { return share >= million || w.Rand()%million < share }

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(w *worker.Worker) stream.Filter {
	l := f.workers[w.ID].free.Take()
	l.Filter = f
	return l
}

// state says how far a stream is.
type state uint8

const (
	fresh   state = iota
	asks          // the service
	decided       // by the service
	undecided
)

// limiter is the filter of one stream.
type limiter struct {
	stream.PassThrough
	*Filter
	call    callout.Call
	answer  answer
	cb      *stream.Callbacks // while the request is held
	message []byte            // to the service
	state   state
	paused  bool
	refused bool
}

// DecodeHeaders implements stream.Filter.
func (l *limiter) DecodeHeaders(cb *stream.Callbacks, end bool) stream.Status {
	s := cb.Stream()
	w := s.Worker
	if !draw(w, l.enabled) {
		return l.leave(w)
	}
	var described bool
	l.message, described = l.appendRequest(callout.GRPCPrefix(l.message[:0]), s, &l.workers[w.ID].buffers)
	if !described {
		return l.leave(w)
	}
	l.cb, l.state = cb, asks
	if l.paused = !end; l.paused { // nothing but what has come is kept
		s.PauseRequest()
	}
	callout.GRPCLength(l.message)
	l.call.Begin()
	l.call.GRPC(limitPath, l.authority, l.timeout)
	l.call.Start(w, l.pools[w.ID], l.to, l.message, maxAnswer, l.timeout, l)
	return stream.StopAndBuffer
}

// leave ends the part of a limiter in a stream that is not asked about.
func (l *limiter) leave(w *worker.Worker) stream.Status {
	l.workers[w.ID].free.Give(l)
	return stream.Leave
}

// OnCallDone implements callout.Owner.
func (l *limiter) OnCallDone(outcome callout.Outcome) {
	cb := l.cb
	s := cb.Stream()
	l.cb, l.state = nil, undecided
	if s.DecodeClosed() {
		return // the request was answered meanwhile: a time-out
	}
	cells := l.cells[s.Worker.ID]
	if outcome != callout.Answered || !l.read() {
		if cells[counters.GlobalRateLimitError]++; outcome == callout.TimedOut {
			cells[counters.GlobalRateLimitTimeout]++
		}
		if l.deny {
			s.LocalReply(l.statusOnError, "", stream.FlagRateLimitServiceError, detailError)
			return
		}
		cells[counters.GlobalRateLimitFailureModeAllowed]++
		l.resume(s, cb)
		return
	}
	l.state = decided
	if !l.answer.over {
		cells[counters.GlobalRateLimitOK]++
	} else if cells[counters.GlobalRateLimitOverLimit]++; draw(s.Worker, l.enforced) {
		cells[counters.GlobalRateLimitEnforced]++
		l.refuse(s)
		return
	}
	for i := range l.answer.request.Len() {
		id, name, value := l.answer.request.At(i)
		s.Request.Add(id, name, value)
	}
	l.resume(s, cb)
}

func (l *limiter) read() bool {
	message, status, ok := l.call.GRPCAnswer()
	return ok && status == 0 && l.answer.read(message, l.headers)
}

func (l *limiter) resume(s *stream.Stream, cb *stream.Callbacks) {
	if l.paused {
		l.paused = false
		s.ResumeRequest()
	}
	cb.ContinueDecoding()
}

// refuse answers a request that is over. The stream may be finished afterwards.
func (l *limiter) refuse(s *stream.Stream) {
	l.refused = true
	s.Flags |= stream.FlagRateLimited
	reply := s.NewReply(l.status)
	contentType := "text/plain"
	for i := range l.answer.response.Len() {
		id, name, value := l.answer.response.At(i)
		if id == header.ContentType {
			contentType = "" // the service says it
		}
		reply.Add(id, name, value)
	}
	reply.Set(header.Other, nameLimited, yes)
	if l.exhausted && s.GRPC() {
		reply.Set(header.GrpcStatus, nil, exhausted)
	}
	s.SendReply(l.answer.body, contentType, detailLimited)
}

// EncodeHeaders implements stream.Filter.
func (l *limiter) EncodeHeaders(cb *stream.Callbacks, _ bool) stream.Status {
	if l.state != decided {
		return stream.Continue
	}
	h := cb.Stream().Response
	if !l.refused { // else they are in it
		for i := range l.answer.response.Len() {
			id, name, value := l.answer.response.At(i)
			h.Add(id, name, value)
		}
	}
	if a := &l.answer; a.limited {
		var digits [20]byte
		h.Set(header.Other, nameLimit, a.limit)
		h.Set(header.Other, nameRemaining, strconv.AppendUint(digits[:0], uint64(a.remaining), 10))
		h.Set(header.Other, nameReset, strconv.AppendInt(digits[:0], a.reset, 10))
	}
	return stream.Continue
}

// maxKept is what a limiter keeps of memory for the next stream, in bytes.
const maxKept = 64 << 10

// OnDestroy implements stream.Filter.
func (l *limiter) OnDestroy(cb *stream.Callbacks) {
	w := cb.Stream().Worker
	l.call.Cancel()
	l.cb, l.state, l.paused, l.refused = nil, fresh, false, false
	l.answer.clear()
	if l.message = l.message[:0]; cap(l.message) > maxKept {
		l.message = nil
	}
	if l.call.Idle() { // else a task of the worker still looks at it
		l.workers[w.ID].free.Give(l)
	}
}
