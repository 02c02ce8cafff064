// Package decompress is the filter that decompresses the bodies of requests, for upstreams that cannot, and those of responses, for
// clients that cannot (Envoy's decompressor), by gzip, brotli and zstd.
//
// A body is decompressed on the worker's thread as it comes, a piece a turn, and no faster than the other side takes it: what waits
// is at most 64 KiB, then its sender waits. The libraries want a reader that blocks, so each body that is not here as a whole has a
// coroutine, as a TLS handshake has. Bounds hold against bombs: the sizes before and after, and the ratio of what has come to what
// came out. A body that breaks one, or is malformed, is answered and never passed on as if it were whole.
package decompress

import (
	"fmt"
	"io"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/compress"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	// piece is what is decompressed in one go, bytes.
	piece = 64 << 10
	// mostKept bounds the decoders of each coding, and the filters of streams, that a worker keeps for later.
	mostKept = 32
	// free is how much comes out of a body before its ratio counts, bytes.
	free = 64 << 10
	// high is how much of a body waits before its sender does, bytes.
	high = 64 << 10
	// mostActive bounds the bodies of a worker that are decompressed as they come: each has a decoder that remembers up to 16 MB.
	// Further ones are kept until they are whole, up to mostWaiting bytes.
	mostActive  = 128
	mostWaiting = 1 << 20

	detailMalformed = "decompression_failed"
	detailOverflow  = "decompression_overflow"
)

// Filter is the filter of one object: a stream.Factory.
type Filter struct {
	requests, responses bool
	ours                []compress.Coding
	most                uint64 // bytes of a body, decompressed
	mostCompressed      uint64
	ratio               uint64
	workers             []perWorker
	cells               []*counters.Decompress
}

type perWorker struct {
	free   []*decompressor
	idle   [compress.Codings][]decoder
	out    []byte   // of the task that runs
	flows  [][]byte // idle pieces of bodies that come
	active int
}

// New builds the filter.
func New(o *configv1.DecompressFilter, workers int, cells []*counters.Decompress) (*Filter, error) {
	f := &Filter{
		requests: o.GetRequests(), responses: o.GetResponses(), most: o.GetMaxBytes(), mostCompressed: o.GetMaxCompressedBytes(),
		ratio: uint64(o.GetMaxRatio()), workers: make([]perWorker, workers), cells: cells,
	}
	if f.most == 0 || f.mostCompressed == 0 || f.ratio == 0 {
		return nil, fmt.Errorf("the bounds of size and ratio are above 0")
	}
	for _, name := range o.GetCodings() {
		c := compress.ParseCoding([]byte(name))
		if c == compress.None {
			return nil, fmt.Errorf("%q is none of gzip, br and zstd", name)
		}
		f.ours = append(f.ours, c)
	}
	for i := range f.workers {
		f.workers[i].out = make([]byte, piece)
	}
	return f, nil
}

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(w *worker.Worker) stream.Filter {
	mine := &f.workers[w.ID]
	if n := len(mine.free); n > 0 {
		x := mine.free[n-1]
		mine.free = mine.free[:n-1]
		return x
	}
	x := &decompressor{Filter: f}
	for d := range x.sides {
		s := &x.sides[d]
		s.x, s.request = x, d == 0
		s.task.Runner, s.timer.Callback = s, s
	}
	return x
}

// decompressor is the filter of one stream.
type decompressor struct {
	stream.PassThrough
	*Filter
	cb     *stream.Callbacks
	worker *worker.Worker
	sides  [2]side
	dead   bool // the stream is over, and a task still queued
}

// side is one direction of a stream.
type side struct {
	x       *decompressor
	request bool
	coding  compress.Coding // of the body; None: it passes
	body    source
	size    uint64 // of the body as it came
	out     uint64 // what came out
	dec     decoder
	flow    flow
	active  bool // it counts as one that is decompressed as it comes
	paused  bool // its sender waits
	begun   bool // the head has gone on
	over    bool
	trailer bool
	task    worker.Task
	timer   timer.Timer
}

// DecodeHeaders implements stream.Filter.
func (x *decompressor) DecodeHeaders(c *stream.Callbacks, end bool) stream.Status {
	s := c.Stream()
	x.cb, x.worker = c, s.Worker
	if end || !x.requests || s.Upgrade {
		return stream.Continue
	}
	return x.sides[0].head(&s.Request.Block, compress.None)
}

// EncodeHeaders implements stream.Filter. A client that takes the coding gets it.
func (x *decompressor) EncodeHeaders(c *stream.Callbacks, end bool) stream.Status {
	s := c.Stream()
	if end || !x.responses || s.Tunnel() || s.Replied() || s.Request.MethodID() == header.MethodHead || s.Response.Status == 206 {
		return stream.Continue
	}
	return x.sides[1].head(&s.Response.Block, compress.Choose(&s.Request.Block, x.ours))
}

// head decides whether a body is decompressed. Its head waits then.
func (s *side) head(h *header.Block, taken compress.Coding) stream.Status {
	i := h.Index(header.ContentEncoding, 0)
	if i < 0 || h.Index(header.ContentEncoding, i+1) >= 0 {
		return stream.Continue
	}
	coding := compress.ParseCoding(h.ValueAt(i)) // None for a list of codings, too
	known := false
	for _, c := range s.x.ours {
		known = known || c == coding
	}
	if !known || coding == taken {
		s.x.cells[s.x.worker.ID][counters.DecompressNotDecompressed]++
		return stream.Continue
	}
	s.coding = coding
	s.body.pool = &s.x.worker.Pool
	h.RemoveAt(i)
	h.RemoveID(header.ContentLength)
	if !s.request {
		h.RemoveID(header.AcceptRanges)
		if at := h.Index(header.ETag, 0); at >= 0 && len(h.ValueAt(at)) > 0 && h.ValueAt(at)[0] == '"' { // other bytes, the same meaning
			h.SetAt(at, append(append(s.x.workers[s.x.worker.ID].out[:0], "W/"...), h.ValueAt(at)...))
		}
	}
	return stream.StopIteration
}

// DecodeData implements stream.Filter.
func (x *decompressor) DecodeData(_ *stream.Callbacks, data []byte, end bool) ([]byte, stream.Status) {
	return x.sides[0].data(data, end)
}

// EncodeData implements stream.Filter.
func (x *decompressor) EncodeData(_ *stream.Callbacks, data []byte, end bool) ([]byte, stream.Status) {
	return x.sides[1].data(data, end)
}

func (s *side) data(data []byte, end bool) ([]byte, stream.Status) {
	if s.coding == compress.None {
		return data, stream.Continue
	}
	if s.over {
		return nil, stream.StopIteration
	}
	x := s.x
	s.size += uint64(len(data))
	x.cells[x.worker.ID][counters.DecompressCompressedBytes] += uint64(len(data))
	if s.size > x.mostCompressed {
		s.fail(tooLarge)
		return nil, stream.StopIteration
	}
	s.body.chain.Append(s.body.pool, data)
	s.body.ended = end
	if mine := &x.workers[x.worker.ID]; !s.active && !end && mine.active < mostActive {
		s.active = true
		mine.active++
	}
	switch {
	case !s.active && !end && s.body.chain.Len() > mostWaiting:
		s.fail(overflow)
		return nil, stream.StopIteration
	case s.active && !end && !s.paused && s.body.chain.Len() > high:
		s.pause()
	}
	if s.active || end {
		x.worker.Soon(&s.task)
	}
	return nil, stream.StopIteration
}

func (s *side) pause() {
	s.paused = true
	if s.request {
		s.x.cb.Stream().PauseRequest()
	} else {
		s.x.cb.Stream().PauseResponse()
	}
}

func (s *side) resume() {
	s.paused = false
	if s.request {
		s.x.cb.Stream().ResumeRequest()
	} else {
		s.x.cb.Stream().ResumeResponse()
	}
}

// blocked tells that who takes the body does not keep up, or is not there yet.
func (s *side) blocked() bool {
	own := 0
	if s.paused {
		own = 1
	}
	st := s.x.cb.Stream()
	return s.request && st.RequestPauses() > own || !s.request && st.ResponsePauses() > own
}

// DecodeTrailers implements stream.Filter.
func (x *decompressor) DecodeTrailers(*stream.Callbacks) stream.Status { return x.sides[0].trailers() }

// EncodeTrailers implements stream.Filter.
func (x *decompressor) EncodeTrailers(*stream.Callbacks) stream.Status { return x.sides[1].trailers() }

func (s *side) trailers() stream.Status {
	if s.coding == compress.None {
		return stream.Continue
	}
	s.trailer, s.body.ended = true, true
	s.x.worker.Soon(&s.task)
	return stream.StopIteration
}

// OnTimer implements timer.Callback: the other side may keep up again.
func (s *side) OnTimer(*timer.Timer, int64) { s.RunTask() }

// RunTask implements worker.Runner: the next piece.
func (s *side) RunTask() {
	x := s.x
	if x.dead {
		x.keep()
		return
	}
	c, st := x.cb, x.cb.Stream()
	if s.over || s.request && st.DecodeClosed() || !s.request && st.Finished() {
		return
	}
	if s.begun && s.blocked() {
		x.worker.Timers.Set(&s.timer, x.worker.Now()+timer.Tick)
		return
	}
	cells, mine := x.cells[x.worker.ID], &x.workers[x.worker.ID]
	if s.dec == nil {
		if s.dec = mine.decoder(s.coding); s.dec == nil {
			s.fail(malformed)
			return
		}
	}
	piece, hungry, err := s.next(mine)
	s.out += uint64(len(piece))
	cells[counters.DecompressUncompressedBytes] += uint64(len(piece))
	switch {
	case s.out > x.most || s.out > free && s.out/x.ratio > s.size:
		s.fail(tooLarge)
		return
	case err != nil && err != io.EOF:
		s.fail(malformed)
		return
	}
	s.over = err == io.EOF
	if !s.begun && (len(piece) > 0 || s.over) {
		s.begun = true
		cells[counters.DecompressDecompressed]++
		if s.letGoHead(); x.cb != c {
			return
		}
	}
	if !s.over && !hungry {
		x.worker.Soon(&s.task)
	}
	if s.give(piece, s.over); x.cb == c && s.paused && s.body.chain.Len() == 0 {
		s.resume()
	}
}

// next is the next piece of the body, which is valid until the next one. hungry: what comes further lacks. io.EOF comes with the
// last piece.
func (s *side) next(mine *perWorker) (piece []byte, hungry bool, err error) {
	if s.flow.next == nil && s.body.ended {
		if s.out == 0 {
			if err := s.dec.Reset(&s.body); err != nil {
				return nil, false, err
			}
		}
		n, err := io.ReadFull(s.dec, mine.out)
		if err == io.ErrUnexpectedEOF && s.whole() {
			err = io.EOF
		}
		return mine.out[:n], false, err
	}
	if s.flow.next == nil {
		s.flow.begin(s, mine.piece())
	}
	return s.flow.step()
}

// whole tells that a decoder which read less than it was asked for stands at the end of its input: its next word is io.EOF.
func (s *side) whole() bool {
	var one [1]byte
	n, err := s.dec.Read(one[:])
	return n == 0 && err == io.EOF
}

func (s *side) letGoHead() {
	if s.request {
		s.x.cb.LetGoDecodedHead()
	} else {
		s.x.cb.LetGoEncodedHead()
	}
}

// give passes a piece on. Nothing of s is touched behind the calls that may end the stream.
func (s *side) give(data []byte, done bool) {
	c, request, trailer := s.x.cb, s.request, s.trailer
	end := done && !trailer
	if len(data) > 0 || end {
		if request {
			c.InjectDecodedData(data, end)
		} else {
			c.InjectEncodedData(data, end)
		}
	}
	if !done || !trailer {
		return
	}
	if request {
		c.ContinueDecoding()
	} else {
		c.ContinueEncoding()
	}
}

// failure is why a body is not decompressed.
type failure uint8

const (
	malformed failure = iota
	tooLarge
	overflow
)

// fail answers a body.
func (s *side) fail(why failure) {
	s.over = true
	st := s.x.cb.Stream()
	s.x.cells[s.x.worker.ID][counters.DecompressErrors]++
	switch {
	case why == overflow:
		st.LocalReply(503, "Too many bodies are being decompressed", 0, detailOverflow)
	case why == tooLarge && s.request:
		st.Cells[counters.HTTPDownstreamRqTooLarge]++
		st.LocalReply(413, "Payload Too Large", 0, stream.DetailRequestTooLarge)
	case why == tooLarge:
		st.Cells[counters.HTTPRsTooLarge]++
		st.LocalReply(502, "Response Too Large", 0, stream.DetailResponseTooLarge)
	case s.request:
		st.LocalReply(400, "The body cannot be decompressed", 0, detailMalformed)
	default:
		st.LocalReply(502, "The response cannot be decompressed", stream.FlagUpstreamProtocolError, detailMalformed)
	}
}

// decoder takes one that is idle, or makes one.
func (w *perWorker) decoder(c compress.Coding) decoder {
	if n := len(w.idle[c]); n > 0 {
		d := w.idle[c][n-1]
		w.idle[c] = w.idle[c][:n-1]
		return d
	}
	d, err := newDecoder(c)
	if err != nil {
		return nil
	}
	return d
}

// piece is memory for what comes out of a body that is not whole.
func (w *perWorker) piece() []byte {
	if n := len(w.flows); n > 0 {
		b := w.flows[n-1]
		w.flows = w.flows[:n-1]
		return b
	}
	return make([]byte, piece)
}

// OnDestroy implements stream.Filter.
func (x *decompressor) OnDestroy(c *stream.Callbacks) {
	x.worker = c.Stream().Worker
	mine := &x.workers[x.worker.ID]
	for d := range x.sides {
		s := &x.sides[d]
		x.worker.Timers.Stop(&s.timer)
		if s.flow.next != nil {
			broken := s.flow.end()
			if len(mine.flows) < mostKept {
				mine.flows = append(mine.flows, s.flow.out)
			}
			if broken {
				s.dec = nil
			}
		}
		if s.coding != compress.None {
			s.body.chain.Release(&x.worker.Pool)
		}
		if s.dec != nil && len(mine.idle[s.coding]) < mostKept {
			mine.idle[s.coding] = append(mine.idle[s.coding], s.dec)
		}
		if s.active {
			mine.active--
		}
		s.coding, s.size, s.out, s.dec, s.flow, s.body.ended = compress.None, 0, 0, nil, flow{}, false
		s.active, s.paused, s.begun, s.over, s.trailer = false, false, false, false, false
	}
	x.cb = nil
	x.dead = true
	x.keep()
}

// keep gives the filter to a stream to come, once none of its tasks is queued.
func (x *decompressor) keep() {
	if x.sides[0].task.Queued() || x.sides[1].task.Queued() {
		return // the last of them comes here again
	}
	x.dead = false
	if mine := &x.workers[x.worker.ID]; len(mine.free) < mostKept {
		mine.free = append(mine.free, x)
	}
}
