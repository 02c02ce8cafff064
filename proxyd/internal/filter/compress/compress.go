// Package compress is the filter that compresses responses (Envoy's compressor) by gzip, brotli and zstd. Encoders are kept by
// worker and used again; each response that is being compressed has one. They work on the worker's thread, a bounded piece
// a turn, so that one large response does not keep the others waiting.
package compress

import (
	"fmt"
	"strconv"
	"strings"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	// defaultMin is Envoy's min_content_length, bytes.
	defaultMin = 30
	// piece is what is compressed in one go, bytes: a millisecond or two.
	piece = 64 << 10
	// mostActive bounds the responses of one worker that are being compressed: an encoder has up to a megabyte. Further ones go as
	// they are.
	mostActive = 256
	// mostKept bounds the encoders of each coding that a worker keeps for later.
	mostKept = 32
	// mostSink is the greatest output buffer that is kept.
	mostSink = 256 << 10
)

// defaultTypes are Envoy's content types.
var defaultTypes = []string{
	"application/javascript", "application/json", "application/xhtml+xml", "image/svg+xml", "text/css", "text/html", "text/plain", "text/xml",
}

// Filter is the filter of one object: a stream.Factory.
type Filter struct {
	ours    []Coding
	least   uint64
	types   []string // lower case; "text/" with a slash at its end is every text
	level   int
	workers []perWorker
	cells   []*counters.Compress
}

type perWorker struct {
	free   []*compressor
	idle   [Codings][]encoder
	active int
	_      [64]byte
}

// New builds the filter.
func New(o *configv1.CompressFilter, workers int, cells []*counters.Compress) (*Filter, error) {
	f := &Filter{least: o.GetMinBytes(), level: int(o.GetLevel()), workers: make([]perWorker, workers), cells: cells, types: defaultTypes}
	if f.least == 0 {
		f.least = defaultMin
	}
	if f.level > 9 {
		return nil, fmt.Errorf("level %d is above 9", f.level)
	}
	list := o.GetCodings()
	if len(list) == 0 {
		list = []string{"gzip"}
	}
	for _, name := range list {
		c := ParseCoding([]byte(name))
		if c == None {
			return nil, fmt.Errorf("%q is none of gzip, br and zstd", name)
		}
		f.ours = append(f.ours, c)
	}
	if len(o.GetContentTypes()) > 0 {
		f.types = nil
		for _, t := range o.GetContentTypes() {
			f.types = append(f.types, strings.TrimSuffix(strings.ToLower(t), "*"))
		}
	}
	return f, nil
}

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(w *worker.Worker) stream.Filter {
	mine := &f.workers[w.ID]
	if n := len(mine.free); n > 0 {
		c := mine.free[n-1]
		mine.free = mine.free[:n-1]
		return c
	}
	c := &compressor{Filter: f}
	c.task.Runner = c
	return c
}

// compressor is the filter of one stream.
type compressor struct {
	stream.PassThrough
	*Filter
	choice Coding // what the client wants, of ours
	enc    encoder
	out    sink
	cb     *stream.Callbacks
	worker *worker.Worker
	task   worker.Task

	backlog  buffer.Chain // came, and is not compressed yet
	paused   bool         // the upstream waits for it
	dirty    bool         // the encoder holds what the client has not got
	ended    bool         // the body is here as a whole
	trailers bool         // and trailers wait behind it
	dead     bool         // the stream is over, and the task still queued
}

// DecodeHeaders implements stream.Filter.
func (x *compressor) DecodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	x.choice = Choose(&c.Stream().Request.Block, x.ours)
	return stream.Continue
}

// EncodeHeaders implements stream.Filter.
func (x *compressor) EncodeHeaders(c *stream.Callbacks, end bool) stream.Status {
	s := c.Stream()
	h := s.Response
	if s.Tunnel() || h.Status < 200 || h.Status == 204 || h.Status == 304 {
		return stream.Continue
	}
	cells := x.cells[s.Worker.ID]
	compressible, bodiless := x.compressible(h), end || s.Request.MethodID() == header.MethodHead
	if compressible {
		vary(h)
	}
	if bodiless {
		return stream.Continue
	}
	mine := &x.workers[s.Worker.ID]
	switch {
	case !compressible:
	case x.choice == None:
		cells[counters.CompressHeaderNotValid]++
	case mine.active >= mostActive:
		cells[counters.CompressOverflow]++
	default:
		x.enc = mine.encoder(x.choice, x.level)
	}
	if x.enc == nil {
		cells[counters.CompressNotCompressed]++
		return stream.Continue
	}
	mine.active++
	cells[counters.CompressCompressed]++
	x.cb, x.worker = c, s.Worker
	x.enc.Reset(&x.out)
	h.RemoveID(header.ContentLength)
	h.RemoveID(header.AcceptRanges)
	h.Set(header.ContentEncoding, nil, names[x.choice])
	x.weaken(h)
	return stream.Continue
}

// compressible tells whether the response is one that compressing helps and does not hurt.
func (x *compressor) compressible(h *header.Response) bool {
	if h.Has(header.ContentEncoding) || h.Has(header.ContentRange) || h.Status == 206 {
		return false
	}
	for i := h.Index(header.CacheControl, 0); i >= 0; i = h.Index(header.CacheControl, i+1) {
		for list := h.ValueAt(i); ; {
			token, rest, more := header.NextToken(list)
			if !more {
				break
			}
			if header.EqualFold(token, "no-transform") {
				return false
			}
			list = rest
		}
	}
	if value := h.Get(header.ContentLength); value != nil {
		if n, err := strconv.ParseUint(string(value), 10, 63); err != nil || n < x.least {
			return false
		}
	}
	media := h.Get(header.ContentType)
	for i, c := range media {
		if c == ';' {
			media = media[:i]
			break
		}
	}
	if media = header.TrimSpace(media); len(media) == 0 {
		return true
	}
	for _, t := range x.types {
		if n := len(t); n == 0 || t[n-1] == '/' && len(media) > n && header.EqualFold(media[:n], t) || header.EqualFold(media, t) {
			return true
		}
	}
	return false
}

var nameAccept = []byte("Accept-Encoding")

// vary adds Accept-Encoding to Vary, once: also a response that is not compressed would be another one for another client.
func vary(h *header.Response) {
	for i := h.Index(header.Vary, 0); i >= 0; i = h.Index(header.Vary, i+1) {
		for list := h.ValueAt(i); ; {
			token, rest, more := header.NextToken(list)
			if !more {
				break
			}
			if header.EqualFold(token, "accept-encoding") || string(token) == "*" {
				return
			}
			list = rest
		}
	}
	h.Add(header.Vary, nil, nameAccept)
}

// weaken makes a strong ETag weak (RFC 9110 8.8.1): the bytes are other ones, the meaning is the same.
func (x *compressor) weaken(h *header.Response) {
	i := h.Index(header.ETag, 0)
	if i < 0 {
		return
	}
	if tag := h.ValueAt(i); len(tag) > 0 && tag[0] == '"' {
		x.out.b = append(append(x.out.b[:0], 'W', '/'), tag...)
		h.SetAt(i, x.out.b)
		x.out.b = x.out.b[:0]
	}
}

// EncodeData implements stream.Filter.
func (x *compressor) EncodeData(_ *stream.Callbacks, data []byte, end bool) ([]byte, stream.Status) {
	if x.enc == nil {
		return data, stream.Continue
	}
	x.ended = x.ended || end
	if x.backlog.Len() > 0 || len(data) > piece {
		now := 0
		if x.backlog.Len() == 0 {
			now = piece
		}
		x.backlog.Append(&x.worker.Pool, data[now:])
		if !x.paused {
			x.paused = true
			x.cb.Stream().PauseResponse()
		}
		x.worker.Soon(&x.task)
		if now > 0 {
			if out := x.compress(data[:now], false); len(out) > 0 {
				x.cb.InjectEncodedData(out, false) // the end, if this was it, stays here
			}
		}
		return nil, stream.StopIteration
	}
	if out := x.compress(data, end); len(out) > 0 || end {
		return out, stream.Continue
	}
	return nil, stream.StopIteration
}

// compress gives bytes to the encoder and answers what comes out.
func (x *compressor) compress(data []byte, end bool) []byte {
	x.out.b = x.out.b[:0]
	cells := x.cells[x.worker.ID]
	cells[counters.CompressUncompressedBytes] += uint64(len(data))
	_, _ = x.enc.Write(data) // into memory: nothing can fail
	if end {
		_ = x.enc.Close()
		x.dirty = false
	} else if len(data) > 0 && !x.dirty {
		x.dirty = true
		x.worker.Soon(&x.task)
	}
	cells[counters.CompressCompressedBytes] += uint64(len(x.out.b))
	return x.out.b
}

// EncodeTrailers implements stream.Filter.
func (x *compressor) EncodeTrailers(c *stream.Callbacks) stream.Status {
	if x.enc == nil {
		return stream.Continue
	}
	x.ended = true
	if x.backlog.Len() > 0 {
		x.trailers = true
		return stream.StopIteration
	}
	c.AddEncodedData(x.compress(nil, true))
	return stream.Continue
}

// RunTask implements worker.Runner: the next piece of what waits, or, when nothing waits, a flush, so that a slow body is not kept
// back.
func (x *compressor) RunTask() {
	switch {
	case x.dead:
		x.keep()
	case x.backlog.Len() > 0:
		data := x.backlog.Front()
		data = data[:min(len(data), piece)]
		last := len(data) == x.backlog.Len()
		out := x.compress(data, last && x.ended)
		x.backlog.Consume(&x.worker.Pool, len(data))
		x.goOn(out, last)
	case x.dirty && !x.ended:
		x.out.b = x.out.b[:0]
		_ = x.enc.Flush()
		x.dirty = false
		x.cells[x.worker.ID][counters.CompressCompressedBytes] += uint64(len(x.out.b))
		if len(x.out.b) > 0 {
			x.cb.InjectEncodedData(x.out.b, false)
		}
	}
}

// goOn passes on a piece of the backlog; last was the last of it. Nothing of x is touched after the call that may end the stream.
func (x *compressor) goOn(out []byte, last bool) {
	c, s := x.cb, x.cb.Stream()
	end := last && x.ended
	trailers := x.trailers
	if last && x.paused {
		x.paused = false
		if !x.ended {
			defer s.ResumeResponse()
		}
	}
	if !last {
		x.worker.Soon(&x.task)
	}
	if len(out) > 0 || end {
		c.InjectEncodedData(out, end && !trailers)
	}
	if end && trailers && !s.Finished() {
		c.ContinueEncoding()
	}
}

// encoder takes one that is idle, or makes one; nil when that fails, which the level's bounds exclude.
func (w *perWorker) encoder(c Coding, level int) encoder {
	if n := len(w.idle[c]); n > 0 {
		e := w.idle[c][n-1]
		w.idle[c] = w.idle[c][:n-1]
		return e
	}
	e, err := newEncoder(c, level)
	if err != nil {
		return nil
	}
	return e
}

// OnDestroy implements stream.Filter.
func (x *compressor) OnDestroy(c *stream.Callbacks) {
	mine := &x.workers[c.Stream().Worker.ID]
	if x.enc != nil {
		x.backlog.Release(&x.worker.Pool)
		mine.active--
		if len(mine.idle[x.choice]) < mostKept {
			mine.idle[x.choice] = append(mine.idle[x.choice], x.enc)
		}
		x.enc = nil
	}
	if x.worker = c.Stream().Worker; x.task.Queued() {
		x.dead = true // the task gives it back
		return
	}
	x.keep()
}

// keep gives the compressor to a stream to come.
func (x *compressor) keep() {
	mine := &x.workers[x.worker.ID]
	x.cb, x.worker = nil, nil
	x.choice, x.paused, x.dirty, x.ended, x.trailers, x.dead = None, false, false, false, false, false
	if cap(x.out.b) > mostSink {
		x.out.b = nil
	}
	if len(mine.free) < mostActive {
		mine.free = append(mine.free, x)
	}
}
