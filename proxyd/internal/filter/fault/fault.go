// Package fault is the filter that makes some requests late, some fail and some responses slow, to see what their clients do then (Envoy's fault). A
// delay is a timer of the worker, behind which the request stands; nothing is called from another thread.
package fault

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/freelist"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/route"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	million = 1_000_000
	// longest bounds a delay that a header asks for, ms.
	longest = int64(time.Hour / time.Millisecond)

	// fastest bounds the rate of a response, KiB a second: what nobody would feel.
	fastest = int64(1 << 20)

	text   = "fault filter abort"
	detail = "fault_filter_abort"
)

var (
	nameDelay = []byte("x-envoy-fault-delay-request")
	nameAbort = []byte("x-envoy-fault-abort-request")
	nameGRPC  = []byte("x-envoy-fault-abort-grpc-request")
	nameRate  = []byte("x-envoy-fault-throughput-response")

	nameDelayShare = []byte("x-envoy-fault-delay-request-percentage")
	nameAbortShare = []byte("x-envoy-fault-abort-request-percentage")
	nameRateShare  = []byte("x-envoy-fault-throughput-response-percentage")
)

// maxGRPC is the greatest status of gRPC.
const maxGRPC = 16

// statuses of HTTP that say a status of gRPC to clients that do not speak it (google.rpc.Code).
var statuses = [maxGRPC + 1]int{200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401}

var textBytes = []byte(text)

// Filter is the filter of one object: a stream.Factory.
type Filter struct {
	delay         int64 // ms
	delayFraction uint64
	abort         int
	abortGRPC     int
	abortFraction uint64
	rate          int64 // of responses, KiB a second
	rateFraction  uint64
	headers       bool
	most          int64
	when          *route.When
	active        atomic.Int64
	workers       []perWorker
	cells         []*counters.Fault
}

type perWorker struct {
	free    freelist.List[injector]
	scratch []byte
}

// New builds the filter.
func New(o *configv1.FaultFilter, workers int, cells []*counters.Fault) (*Filter, error) {
	f := &Filter{
		delay: o.GetDelayMs(), delayFraction: share(o.DelayFraction), abort: int(o.GetAbortStatus()), abortGRPC: int(o.GetAbortGrpcStatus()), abortFraction: share(o.AbortFraction),
		rate: int64(o.GetResponseRateLimitKbps()), rateFraction: share(o.ResponseRateLimitFraction),
		headers: o.GetHeaders(), most: int64(o.GetMaxActive()), workers: make([]perWorker, workers), cells: cells,
	}
	if f.delay < 0 || f.delay > longest {
		return nil, fmt.Errorf("a delay is at most an hour")
	}
	if f.rate > fastest {
		return nil, fmt.Errorf("a response's rate is at most %d KiB a second", fastest)
	}
	if f.abort != 0 && (f.abort < 200 || f.abort > 599) {
		return nil, fmt.Errorf("abort status %d is not between 200 and 599", f.abort)
	}
	if f.abortGRPC < 0 || f.abortGRPC > maxGRPC || f.abort != 0 && f.abortGRPC != 0 {
		return nil, fmt.Errorf("abort_grpc_status %d is not between 1 and %d, and alone", f.abortGRPC, maxGRPC)
	}
	var err error
	f.when, err = route.CompileWhen(o.GetMatch())
	return f, err
}

func share(fraction *uint32) uint64 {
	if fraction == nil {
		return million
	}
	return uint64(*fraction)
}

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(w *worker.Worker) stream.Filter {
	i := f.workers[w.ID].free.Take()
	i.Filter = f
	i.timer.Callback = i
	return i
}

// injector is the filter of one stream.
type injector struct {
	stream.PassThrough
	*Filter
	limiter limiter
	timer   timer.Timer
	cb      *stream.Callbacks // while the request is held
	active  bool
	paused  bool
}

// DecodeHeaders implements stream.Filter.
func (i *injector) DecodeHeaders(c *stream.Callbacks, end bool) stream.Status {
	s := c.Stream()
	if i.when != nil && !i.meets(s) {
		return stream.Continue
	}
	if rate := i.drawRate(s); rate > 0 && i.begin(s) {
		i.cells[s.Worker.ID][counters.FaultResponsesLimited]++
		i.limiter.limit(c, rate)
	}
	if delay := i.drawDelay(s); delay > 0 && i.begin(s) {
		i.cells[s.Worker.ID][counters.FaultDelaysInjected]++
		s.Flags |= stream.FlagDelayInjected
		i.cb = c
		if i.paused = !end; i.paused { // nothing but what has come is kept
			s.PauseRequest()
		}
		s.Worker.Timers.Set(&i.timer, s.Worker.Now()+delay*int64(time.Millisecond))
		return stream.StopAndBuffer
	}
	if i.aborts(s) {
		return stream.StopIteration
	}
	return stream.Continue
}

func (i *injector) meets(s *stream.Stream) bool {
	mine := &i.workers[s.Worker.ID]
	asked := route.Request{
		Path: s.Request.Path(), ID: s.Request.MethodID(), Method: s.Request.Method(), Fields: &s.Request.Block, Source: s.Client,
		TLS: string(s.Request.Scheme()) == "https", Certified: s.Certified, Scratch: mine.scratch,
	}
	if i.when.Draws() {
		asked.Draw = uint32(s.Worker.Rand() % million)
	}
	met := i.when.Meets(&asked)
	mine.scratch = asked.Scratch
	return met
}

// drawDelay is how long to hold the request, ms; 0: not.
func (i *injector) drawDelay(s *stream.Stream) int64 {
	delay := i.delay
	if i.headers {
		if n, ok := number(s, nameDelay); ok {
			delay = min(n, longest)
		}
	}
	if delay == 0 || !i.draw(s, nameDelayShare, i.delayFraction) {
		return 0
	}
	return delay
}

// drawRate is how fast the response may be, KiB a second; 0: as it comes.
func (i *injector) drawRate(s *stream.Stream) int64 {
	rate := i.rate
	if i.headers {
		if n, ok := number(s, nameRate); ok && n > 0 {
			rate = min(n, fastest)
		}
	}
	if rate == 0 || !i.draw(s, nameRateShare, i.rateFraction) {
		return 0
	}
	return rate
}

// draw tells whether the request is of a share, which a header makes smaller.
func (i *injector) draw(s *stream.Stream, name []byte, fraction uint64) bool {
	if i.headers {
		if n, ok := number(s, name); ok {
			fraction = min(fraction, uint64(n)*(million/100))
		}
	}
	return fraction >= million || s.Worker.Rand()%million < fraction
}

// aborts answers the request when it is one to fail.
func (i *injector) aborts(s *stream.Stream) bool {
	status, grpc := i.abort, i.abortGRPC
	if i.headers {
		if n, ok := number(s, nameAbort); ok && n >= 200 && n <= 599 {
			status, grpc = int(n), 0
		} else if n, ok := number(s, nameGRPC); ok && n > 0 && n <= maxGRPC {
			grpc = int(n)
		}
	}
	if status == 0 && grpc == 0 || !i.draw(s, nameAbortShare, i.abortFraction) || !i.begin(s) {
		return false
	}
	i.cells[s.Worker.ID][counters.FaultAbortsInjected]++
	if grpc == 0 {
		s.LocalReply(status, text, stream.FlagFaultInjected, detail)
		return true
	}
	s.Flags |= stream.FlagFaultInjected
	h := s.NewReply(statuses[grpc])
	if s.GRPC() {
		var digits [2]byte
		h.Set(header.GrpcStatus, nil, strconv.AppendInt(digits[:0], int64(grpc), 10))
	}
	s.SendReply(textBytes, "text/plain", detail)
	return true
}

// number is the value of a header.
func number(s *stream.Stream, name []byte) (int64, bool) {
	at := s.Request.IndexName(name, 0)
	if at < 0 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(s.Request.ValueAt(at)), 10, 31)
	return int64(n), err == nil
}

// begin counts the stream among the active faults; false when there are as many as there may be.
func (i *injector) begin(s *stream.Stream) bool {
	if i.active {
		return true
	}
	cells := i.cells[s.Worker.ID]
	if n := i.Filter.active.Add(1); i.most > 0 && n > i.most {
		i.Filter.active.Add(-1)
		cells[counters.FaultOverflow]++
		return false
	}
	cells[counters.FaultActive]++
	i.active = true
	return true
}

// OnTimer implements timer.Callback: the delay is over.
func (i *injector) OnTimer(*timer.Timer, int64) {
	c := i.cb
	i.cb = nil
	s := c.Stream()
	if i.paused {
		s.ResumeRequest()
	}
	if !i.aborts(s) {
		c.ContinueDecoding()
	}
}

// OnDestroy implements stream.Filter.
func (i *injector) OnDestroy(c *stream.Callbacks) {
	w := c.Stream().Worker
	w.Timers.Stop(&i.timer)
	i.limiter.end(w)
	if i.active {
		i.Filter.active.Add(-1)
		i.cells[w.ID][counters.FaultActive]--
	}
	i.cb, i.active, i.paused = nil, false, false
	i.workers[w.ID].free.Give(i)
}
