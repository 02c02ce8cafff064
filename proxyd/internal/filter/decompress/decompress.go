// Package decompress is the filter that decompresses the bodies of requests, for upstreams that cannot, and those of responses, for
// clients that cannot (Envoy's decompressor), by gzip, brotli and zstd.
//
// A compressed body is kept until it is here as a whole, within a limit, and then decompressed on the worker's thread, a piece a
// turn, and no faster than the other side takes it. Two bounds hold against bombs: the size, and the ratio of the sizes. A body
// that breaks one, or is malformed, is answered and never passed on as if it were whole.
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

	detailMalformed = "decompression_failed"
)

// Filter is the filter of one object: a stream.Factory.
type Filter struct {
	requests, responses bool
	ours                []compress.Coding
	most                uint64 // bytes of a body, decompressed
	mostCompressed      int
	ratio               uint64
	workers             []perWorker
	cells               []*counters.Decompress
}

type perWorker struct {
	free []*decompressor
	idle [compress.Codings][]decoder
	out  []byte // of the task that runs
}

// New builds the filter.
func New(o *configv1.DecompressFilter, workers int, cells []*counters.Decompress) (*Filter, error) {
	f := &Filter{
		requests: o.GetRequests(), responses: o.GetResponses(), most: o.GetMaxBytes(), mostCompressed: int(o.GetMaxCompressedBytes()),
		ratio: uint64(o.GetMaxRatio()), workers: make([]perWorker, workers), cells: cells,
	}
	if f.most == 0 || f.mostCompressed <= 0 || f.ratio == 0 {
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
	if s.body.chain.Len()+len(data) > s.x.mostCompressed {
		s.fail(true)
		return nil, stream.StopIteration
	}
	s.size += uint64(len(data))
	s.body.chain.Append(s.body.pool, data)
	if end {
		s.x.worker.Soon(&s.task)
	}
	return nil, stream.StopIteration
}

// DecodeTrailers implements stream.Filter.
func (x *decompressor) DecodeTrailers(*stream.Callbacks) stream.Status { return x.sides[0].trailers() }

// EncodeTrailers implements stream.Filter.
func (x *decompressor) EncodeTrailers(*stream.Callbacks) stream.Status { return x.sides[1].trailers() }

func (s *side) trailers() stream.Status {
	if s.coding == compress.None {
		return stream.Continue
	}
	s.trailer = true
	s.x.worker.Soon(&s.task)
	return stream.StopIteration
}

// OnTimer implements timer.Callback: the other side may keep up again.
func (s *side) OnTimer(*timer.Timer, int64) { s.RunTask() }

// RunTask implements worker.Runner: the next piece of a body that is here as a whole.
func (s *side) RunTask() {
	x := s.x
	if x.dead {
		x.keep()
		return
	}
	st := x.cb.Stream()
	if s.over || s.request && st.DecodeClosed() || !s.request && st.Finished() {
		return
	}
	if s.begun && (s.request && st.RequestPaused() || !s.request && st.ResponsePaused()) {
		x.worker.Timers.Set(&s.timer, x.worker.Now()+timer.Tick)
		return
	}
	cells, mine := x.cells[x.worker.ID], &x.workers[x.worker.ID]
	if s.dec == nil {
		if s.dec = mine.decoder(s.coding); s.dec == nil || s.dec.Reset(&s.body) != nil {
			s.fail(false)
			return
		}
		cells[counters.DecompressCompressedBytes] += s.size
	}
	n, err := io.ReadFull(s.dec, mine.out)
	s.out += uint64(n)
	cells[counters.DecompressUncompressedBytes] += uint64(n)
	done := err == io.EOF || err == io.ErrUnexpectedEOF && s.whole()
	switch {
	case s.out > x.most || s.out > free && s.out/x.ratio > s.size:
		s.fail(true)
		return
	case err != nil && !done:
		s.fail(false)
		return
	}
	if !s.begun {
		s.begun = true
		cells[counters.DecompressDecompressed]++
		s.letGoHead()
	}
	s.over = done
	if !done {
		x.worker.Soon(&s.task)
	}
	s.give(mine.out[:n], done)
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

// fail answers a body that is too large, or malformed.
func (s *side) fail(large bool) {
	s.over = true
	st := s.x.cb.Stream()
	s.x.cells[s.x.worker.ID][counters.DecompressErrors]++
	switch {
	case large && s.request:
		st.Cells[counters.HTTPDownstreamRqTooLarge]++
		st.LocalReply(413, "Payload Too Large", 0, stream.DetailRequestTooLarge)
	case large:
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

// OnDestroy implements stream.Filter.
func (x *decompressor) OnDestroy(c *stream.Callbacks) {
	x.worker = c.Stream().Worker
	mine := &x.workers[x.worker.ID]
	for d := range x.sides {
		s := &x.sides[d]
		x.worker.Timers.Stop(&s.timer)
		if s.coding != compress.None {
			s.body.chain.Release(&x.worker.Pool)
		}
		if s.dec != nil && len(mine.idle[s.coding]) < mostKept {
			mine.idle[s.coding] = append(mine.idle[s.coding], s.dec)
		}
		s.coding, s.size, s.out, s.dec, s.begun, s.over, s.trailer = compress.None, 0, 0, nil, false, false, false
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
