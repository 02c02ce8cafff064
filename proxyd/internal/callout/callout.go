// Package callout is a request that a filter makes on its own: to an authoriser, say, while its stream waits.
//
// It uses the worker's own pools, so that clusters, their health, limits and connections are the ones that routes use, and
// everything happens on the worker's thread: nothing blocks and there is no goroutine. The answer is kept in the Call, bounded. A
// Call is reused: Request is filled after Begin, Start sends it, the owner is told once by OnCallDone, never from within Start.
package callout

import (
	"time"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
)

// Outcome says how a call ended.
type Outcome uint8

// The outcomes. What is not Answered has no usable response.
const (
	Answered    Outcome = iota
	Unavailable         // there was no connection
	Broken              // it ended before the answer did
	TimedOut
	TooLarge // the answer is larger than the limit
)

// Owner is told of the end of its call, from a task of the worker.
type Owner interface{ OnCallDone(outcome Outcome) }

// Call is one request and its answer. The zero value is ready; it belongs to a worker.
type Call struct {
	Request header.Request
	// Response, Trailers and Body are the answer, valid from OnCallDone to the next Begin.
	Response header.Response
	Trailers header.Block
	Body     []byte

	worker  *worker.Worker
	owner   Owner
	body    []byte // of the request, the owner's
	limit   int
	timer   timer.Timer
	task    worker.Task
	outcome Outcome
	pending *upstream.Pending
	encoder stream.RequestEncoder
	to      cluster.Handle
	pools   *upstream.Manager
	open    bool // the upstream may still call
	reused  bool // the connection served before
	again   bool // a second connection is to be asked for
	second  bool // it was
}

// maxKept is what a Call keeps of an answer's memory for the next one, in bytes.
const maxKept = 64 << 10

// Begin empties the call. It must be Idle.
func (c *Call) Begin() {
	c.Request.Reset()
	c.Response.Reset()
	c.Trailers.Reset()
	if c.Body = c.Body[:0]; cap(c.Body) > maxKept {
		c.Body = nil
	}
}

// Idle tells that nothing of a call is left: it may be given to another owner.
func (c *Call) Idle() bool { return !c.open && c.owner == nil && !c.task.Queued() }

// Start sends Request with a body, which stays the owner's and unchanged until the end, to a cluster. An answer's body may have so many
// bytes; the whole may take so many nanoseconds.
func (c *Call) Start(w *worker.Worker, m *upstream.Manager, to cluster.Handle, body []byte, limit int, timeout int64, owner Owner) {
	c.worker, c.owner, c.body, c.limit = w, owner, body, limit
	c.pools, c.to, c.outcome, c.again, c.second = m, to, Answered, false, false
	c.timer.Callback, c.task.Runner = c, c
	w.Timers.Set(&c.timer, w.Now()+timeout)
	c.connect()
}

func (c *Call) connect() {
	c.open, c.reused = true, false
	pending := c.pools.NewStream(c.to, cluster.Default, upstream.Avoid{}, nil, c, c)
	if c.open && c.encoder == nil {
		c.pending = pending
	}
}

// Milliseconds is the time that is left, rounded up, for a header that tells it.
func Milliseconds(timeout int64) int64 {
	return (timeout + int64(time.Millisecond) - 1) / int64(time.Millisecond)
}

// Cancel ends the call; the owner is not told. Nothing happens where none is under way.
func (c *Call) Cancel() {
	if c.owner = nil; c.open || c.again {
		c.giveUp()
	}
}

// giveUp ends it from our side.
func (c *Call) giveUp() {
	pending, encoder := c.pending, c.encoder
	c.close()
	if pending != nil {
		pending.Cancel()
	}
	if encoder != nil {
		encoder.Reset(stream.ResetLocal)
	}
}

func (c *Call) close() {
	c.open, c.again, c.pending, c.encoder, c.body = false, false, nil, nil, nil
	c.worker.Timers.Stop(&c.timer)
}

// finish notes the outcome; the owner learns of it when everybody below has returned.
func (c *Call) finish(outcome Outcome) {
	c.close()
	c.outcome = outcome
	if c.owner != nil {
		c.worker.Soon(&c.task)
	}
}

// RunTask implements worker.Runner.
func (c *Call) RunTask() {
	if c.again {
		if c.again = false; c.owner != nil {
			c.connect()
		}
		return
	}
	if owner := c.owner; owner != nil {
		c.owner = nil
		owner.OnCallDone(c.outcome)
	}
}

// OnTimer implements timer.Callback.
func (c *Call) OnTimer(*timer.Timer, int64) {
	c.giveUp()
	c.finish(TimedOut)
}

// OnPoolReady implements upstream.Callbacks.
func (c *Call) OnPoolReady(encoder stream.RequestEncoder, _ *cluster.Host, reused bool) {
	c.pending, c.encoder, c.reused = nil, encoder, reused
	encoder.EncodeHeaders(&c.Request, len(c.body) == 0)
	if len(c.body) > 0 && c.encoder != nil {
		encoder.EncodeData(c.body, true)
	}
}

// OnPoolFailure implements upstream.Callbacks.
func (c *Call) OnPoolFailure(upstream.Failure, *cluster.Host) { c.finish(Unavailable) }

// DecodeInterim implements stream.ResponseDecoder.
func (c *Call) DecodeInterim(*header.Response) {}

// DecodeHeaders implements stream.ResponseDecoder.
func (c *Call) DecodeHeaders(h *header.Response, end bool) {
	c.Response.CopyFrom(h)
	if end {
		c.finish(Answered)
	}
}

// DecodeData implements stream.ResponseDecoder.
func (c *Call) DecodeData(data []byte, end bool) {
	if len(c.Body)+len(data) > c.limit {
		if end {
			c.finish(TooLarge)
			return
		}
		c.giveUp()
		c.finish(TooLarge)
		return
	}
	c.Body = append(c.Body, data...)
	if end {
		c.finish(Answered)
	}
}

// DecodeTrailers implements stream.ResponseDecoder.
func (c *Call) DecodeTrailers(t *header.Block) {
	c.Trailers.CopyFrom(t)
	c.finish(Answered)
}

// OnReset implements stream.ResponseDecoder. A connection that served before may have died of its idleness: that says nothing about
// the host, and another one is asked for, once.
func (c *Call) OnReset(stream.ResetReason, string) {
	if c.reused && !c.second && c.Response.Status == 0 {
		c.pending, c.encoder, c.open = nil, nil, false
		c.again, c.second = true, true
		c.worker.Soon(&c.task)
		return
	}
	c.finish(Broken)
}

// OnAboveHigh implements stream.ResponseDecoder: a body lies whole in the owner's memory.
func (c *Call) OnAboveHigh() {}

// OnBelowLow implements stream.ResponseDecoder.
func (c *Call) OnBelowLow() {}
