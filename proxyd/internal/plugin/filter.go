package plugin

import (
	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// direction is that of the request or that of the response.
type direction uint8

const (
	decode direction = iota
	encode
)

// state is what one direction of a stream waits for.
type state uint8

const (
	passing    state = iota // nothing: what comes goes on
	headCalled              // the answer about the head
	collecting              // more of the body, before the call about it
	bodyCalled              // the answer about the collected body
	streaming               // pieces go to the plugin one after the other
	trailersCalled
)

// Bytes of a streamed body that wait for the plugin before the sender is paused, and that leave in one piece.
const (
	streamHigh = 128 << 10
	streamLow  = 32 << 10
	maxPiece   = 64 << 10
)

// side is one direction of a stream.
type side struct {
	state    state
	mode     filterv1.BodyMode
	call     uint64
	began    int64        // of the call, ns
	body     buffer.Chain // taken from the stream
	piece    int          // bytes at the front of body that the plugin is looking at
	calling  bool         // streaming: a piece is with the plugin
	final    bool         // and it was told that it is the last; trailers may follow
	paused   bool
	ended    bool // the message has ended
	trailers bool // with trailers, which wait
	cut      bool // streaming: the head has gone on
	moded    bool // an answer about the request has set mode, before the head came
}

// filter is one plugin in one stream: a stream.Filter and a caller. It comes from its worker's free list.
type filter struct {
	use     *Use
	host    *Host
	channel *channel
	sub     *subscription
	cb      *stream.Callbacks
	id      uint64
	sides   [2]side
	begun   bool    // it has a channel and the stream is counted on it
	told    bool    // the plugin has heard of the stream
	skip    bool    // it is not asked any more
	dead    bool    // the stream is over; what still runs must not touch it
	key     []byte  // of the cache, kept for the answer
	let     [2]bool // failed within a callback: the task lets go what is held
	task    worker.Task
	next    *filter
}

const keptFilters = 1024

// gate stands in a stream's chain until the request's head has come. It holds nothing of a stream, so one serves all of a worker: a request that does not meet
// the plugin's conditions, or whose answer is known, costs no more than finding that out.
type gate struct {
	stream.PassThrough
	use  *Use
	host *Host
}

// NewFilter implements stream.Factory.
func (u *Use) NewFilter(w *worker.Worker) stream.Filter { return &u.gates[w.ID] }

// DecodeHeaders implements stream.Filter.
func (g *gate) DecodeHeaders(c *stream.Callbacks, end bool) stream.Status {
	ch := g.host.pick(g.use.handle, g.use.config)
	keyed := false
	if ch != nil {
		sub, s := ch.info.sub, c.Stream()
		if !sub.applies(s) {
			g.use.cells[g.host.worker.ID][counters.PluginRqSkipped]++
			return stream.Leave
		}
		if keyed = sub.cacheKey != nil; keyed && g.cached(ch, s) {
			return stream.Leave // what is kept has no later phase
		}
	}
	f := g.host.take(g.use, c, ch)
	if keyed && len(g.host.key) <= maxCacheKey {
		f.key = append(f.key[:0], g.host.key...)
	}
	c.Become(f)
	return f.DecodeHeaders(c, end)
}

// take gives a filter for a stream that begins on a channel, nil where there is none.
func (h *Host) take(u *Use, c *stream.Callbacks, ch *channel) *filter {
	f := h.spare
	if f == nil {
		f = &filter{}
	} else {
		h.spare = f.next
		h.kept--
	}
	*f = filter{use: u, host: h, channel: ch, cb: c, key: f.key[:0]}
	f.task.Runner = f
	return f
}

var (
	headPhase    = [2]filterv1.Phase{filterv1.Phase_PHASE_REQUEST_HEADERS, filterv1.Phase_PHASE_RESPONSE_HEADERS}
	bodyPhase    = [2]filterv1.Phase{filterv1.Phase_PHASE_REQUEST_BODY, filterv1.Phase_PHASE_RESPONSE_BODY}
	trailerPhase = [2]filterv1.Phase{filterv1.Phase_PHASE_REQUEST_TRAILERS, filterv1.Phase_PHASE_RESPONSE_TRAILERS}
)

func (f *filter) cells() *counters.Plugin { return f.use.cells[f.host.worker.ID] }

// DecodeHeaders implements stream.Filter.
func (f *filter) DecodeHeaders(_ *stream.Callbacks, end bool) stream.Status {
	if f.channel == nil {
		f.fail(decode, unavailable)
		return stream.Continue // or answered, and then it is not looked at
	}
	f.sub = f.channel.info.sub
	f.host.last++
	f.id = f.host.last
	f.channel.streams++
	f.begun = true
	return f.head(decode, end)
}

// EncodeHeaders implements stream.Filter.
func (f *filter) EncodeHeaders(c *stream.Callbacks, end bool) stream.Status {
	if f.skip || !f.begun {
		return stream.Continue
	}
	return f.head(encode, end)
}

// head takes a head.
func (f *filter) head(dir direction, end bool) stream.Status {
	s := &f.sides[dir]
	s.ended = end
	mode := f.sub.modes[dir]
	if s.moded {
		mode = s.mode
	}
	if st := f.cb.Stream(); end || st.Upgrade || st.Tunnel() {
		mode = filterv1.BodyMode_BODY_NONE
	}
	s.mode = mode
	if f.sub.has(headPhase[dir]) {
		if f.sub.observe {
			f.observe(dir, headPhase[dir], end)
		} else {
			if !f.ask(dir, headPhase[dir], end, nil) {
				return stream.Continue
			}
			s.state = headCalled
			if !end {
				f.pause(dir)
			}
			if mode == filterv1.BodyMode_BODY_NONE {
				return stream.StopAndBuffer
			}
			return stream.StopIteration
		}
	}
	return f.body(dir)
}

// body decides what happens to the body once the head has been dealt with, within the callback of the head.
func (f *filter) body(dir direction) stream.Status {
	s := &f.sides[dir]
	switch {
	case s.mode == filterv1.BodyMode_BODY_NONE || f.sub.observe && s.mode != filterv1.BodyMode_BODY_STREAM:
		s.state = passing
	case f.sub.observe:
		s.state = streaming
	case s.mode == filterv1.BodyMode_BODY_STREAM:
		f.lengthUnknown(dir)
		s.state, s.cut = streaming, true
	default:
		s.state = collecting
		return stream.StopIteration
	}
	return stream.Continue
}

// DecodeData implements stream.Filter.
func (f *filter) DecodeData(_ *stream.Callbacks, data []byte, end bool) ([]byte, stream.Status) {
	return f.data(decode, data, end)
}

// EncodeData implements stream.Filter.
func (f *filter) EncodeData(_ *stream.Callbacks, data []byte, end bool) ([]byte, stream.Status) {
	return f.data(encode, data, end)
}

func (f *filter) data(dir direction, data []byte, end bool) ([]byte, stream.Status) {
	s := &f.sides[dir]
	s.ended = s.ended || end
	if f.skip || s.state == passing {
		return data, stream.Continue
	}
	if f.sub.observe {
		for len(data) > 0 {
			n := min(len(data), maxPiece)
			f.event(dir, bodyPhase[dir], end && n == len(data), data[:n], 0)
			data = data[n:]
		}
		return data, stream.Continue
	}
	s.body.Append(&f.host.worker.Pool, data)
	switch s.state {
	case collecting:
		f.collect(dir)
	case streaming:
		f.pump(dir)
	}
	if f.skip {
		f.later(dir)
		return nil, stream.StopIteration
	}
	if (s.state == headCalled || s.state == streaming) && !s.paused && s.body.Len() > streamHigh {
		f.pause(dir)
	}
	return nil, stream.StopIteration
}

// DecodeTrailers implements stream.Filter.
func (f *filter) DecodeTrailers(*stream.Callbacks) stream.Status { return f.onTrailers(decode) }

// EncodeTrailers implements stream.Filter.
func (f *filter) EncodeTrailers(*stream.Callbacks) stream.Status { return f.onTrailers(encode) }

func (f *filter) onTrailers(dir direction) stream.Status {
	s := &f.sides[dir]
	if f.skip || !f.begun {
		return stream.Continue
	}
	s.ended, s.trailers = true, true
	switch s.state {
	case headCalled, bodyCalled, trailersCalled:
		return stream.StopIteration
	case collecting:
		if f.collect(dir); f.skip {
			f.later(dir)
		}
		return stream.StopIteration
	case streaming:
		if f.sub.observe {
			f.observe(dir, bodyPhase[dir], true)
			break
		}
		if f.pump(dir); f.skip { // the last piece, which is empty
			f.later(dir)
		}
		return stream.StopIteration
	}
	return f.askTrailers(dir)
}

// askTrailers asks about trailers, where the plugin wants that.
func (f *filter) askTrailers(dir direction) stream.Status {
	s := &f.sides[dir]
	switch {
	case !f.sub.has(trailerPhase[dir]):
		s.state, s.trailers = passing, false
		return stream.Continue
	case f.sub.observe:
		f.observe(dir, trailerPhase[dir], true)
		s.trailers = false
		return stream.Continue
	}
	if !f.ask(dir, trailerPhase[dir], true, nil) {
		s.trailers = false
		return stream.Continue
	}
	s.state = trailersCalled
	return stream.StopIteration
}

// collect asks about a body once enough of it is there.
func (f *filter) collect(dir direction) {
	s := &f.sides[dir]
	have := s.body.Len()
	if s.mode == filterv1.BodyMode_BODY_BUFFER {
		if have > f.sub.buffer {
			f.tooLarge(dir)
			return
		}
		if !s.ended {
			return
		}
		s.piece = have
	} else {
		if have < f.sub.prefix && !s.ended {
			return
		}
		s.piece = min(have, f.sub.prefix)
	}
	if f.ask(dir, bodyPhase[dir], s.ended && s.piece == have, &s.body) {
		s.state = bodyCalled
		if !s.ended {
			f.pause(dir)
		}
	}
}

// pump gives the next piece to the plugin.
func (f *filter) pump(dir direction) {
	s := &f.sides[dir]
	if s.calling || s.body.Len() == 0 && !s.ended {
		return
	}
	s.piece = min(s.body.Len(), maxPiece)
	s.final = s.ended && s.piece == s.body.Len()
	s.calling = f.ask(dir, bodyPhase[dir], s.final, &s.body)
}

// OnDestroy implements stream.Filter.
func (f *filter) OnDestroy(*stream.Callbacks) {
	h := f.host
	for dir := range f.sides {
		s := &f.sides[dir]
		if s.call != 0 {
			f.channel.cancel(s.call)
		}
		s.body.Release(&h.worker.Pool)
	}
	if f.begun {
		if f.told && f.sub.has(filterv1.Phase_PHASE_END) && f.channel.connected {
			f.event(decode, filterv1.Phase_PHASE_END, true, nil, 0)
		}
		f.channel.left()
	}
	f.dead = true
	h.bury(f)
}

// later lets go what is held, from a task: a filter must not do so within its own callback.
func (f *filter) later(dir direction) {
	if !f.over(dir) {
		f.let[dir] = true
		f.host.worker.Soon(&f.task)
	}
}

// RunTask implements worker.Runner.
func (f *filter) RunTask() {
	for dir := range f.let {
		if f.let[dir] && !f.over(direction(dir)) {
			f.let[dir] = false
			f.letGo(direction(dir))
		}
	}
}

// bury keeps a filter until the turn is over: callers of the stream's that just ended may still be on the stack.
func (h *Host) bury(f *filter) {
	f.next, h.dead = h.dead, f
	h.worker.Soon(&h.task)
}

// RunTask implements worker.Runner: what was buried is used again.
func (h *Host) RunTask() {
	for f := h.dead; f != nil; {
		next := f.next
		if f.task.Queued() {
			f.next = nil // its own task still comes; the garbage collector has the rest
		} else if h.kept < keptFilters {
			*f = filter{next: h.spare, key: f.key[:0]}
			h.spare = f
			h.kept++
		}
		f = next
	}
	h.dead = nil
}
