package stream

import (
	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/worker"
)

// Status is a filter's answer to a callback.
type Status uint8

const (
	// Continue passes the piece on to the next filter. From a data or trailers callback it also lets go what the filter
	// held before: the head, then the buffered body, then this piece.
	Continue Status = iota
	// StopIteration keeps the piece from the next filters. A head waits until the filter continues, while body and trailers
	// still come to this filter. Data belongs to the filter: it has taken what it wants.
	StopIteration
	// StopAndBuffer stops as well, and the stream keeps the data, at most Config.BufferLimit bytes: beyond it the request is
	// answered with 413, a response with 500. From a head callback it stops everything: this filter sees neither body
	// nor trailers before it continues.
	StopAndBuffer
	// Leave is Continue of a filter that wants nothing more of the stream, from DecodeHeaders only: it is taken off the chain, and not even OnDestroy is
	// called. A stream that all filters have left is as plain as one that had none.
	Leave
)

// Filter is one HTTP filter in one stream. The worker makes one for each stream from its Factory; all calls come from the
// worker's thread: DecodeX for the request in chain order, EncodeX for the response in reverse order, OnDestroy once at
// the end, whatever happened. After OnDestroy nothing of the stream may be touched.
//
// A filter that must wait answers StopX, keeps its Callbacks and calls ContinueDecoding or ContinueEncoding from a later
// completion in the same worker, never from within one of its own callbacks.
//
// Data callbacks answer the bytes that shall go on instead of data: data itself, a part of it, or the filter's own bytes, which
// must stay valid until its next callback. A filter that changes the length of a body removes Content-Length from the
// head first, or holds the head until it knows the new one.
type Filter interface {
	DecodeHeaders(c *Callbacks, end bool) Status
	DecodeData(c *Callbacks, data []byte, end bool) ([]byte, Status)
	DecodeTrailers(c *Callbacks) Status
	EncodeHeaders(c *Callbacks, end bool) Status
	EncodeData(c *Callbacks, data []byte, end bool) ([]byte, Status)
	EncodeTrailers(c *Callbacks) Status
	OnDestroy(c *Callbacks)
}

// Factory makes the filter of one stream. It is built with the snapshot and shared by workers, so it holds nothing that
// a stream changes.
type Factory interface {
	NewFilter(w *worker.Worker) Filter
}

// Router is a terminal that knows the request's route before the filters do: the route has filters of its own, which come
// after the manager's. RouteFilters is asked once, before the first filter, where Config.Routed says so. Destination is
// Stream.Destination.
type Router interface {
	RouteFilters(s *Stream) []Factory
	Destination(s *Stream) string
}

// PassThrough answers Continue to everything. Filters embed it and write the callbacks that they need.
type PassThrough struct{}

// DecodeHeaders lets the head pass.
func (PassThrough) DecodeHeaders(*Callbacks, bool) Status { return Continue }

// DecodeData lets the data pass.
func (PassThrough) DecodeData(_ *Callbacks, data []byte, _ bool) ([]byte, Status) {
	return data, Continue
}

// DecodeTrailers lets the trailers pass.
func (PassThrough) DecodeTrailers(*Callbacks) Status { return Continue }

// EncodeHeaders lets the head pass.
func (PassThrough) EncodeHeaders(*Callbacks, bool) Status { return Continue }

// EncodeData lets the data pass.
func (PassThrough) EncodeData(_ *Callbacks, data []byte, _ bool) ([]byte, Status) {
	return data, Continue
}

// EncodeTrailers lets the trailers pass.
func (PassThrough) EncodeTrailers(*Callbacks) Status { return Continue }

// OnDestroy has nothing to give back.
func (PassThrough) OnDestroy(*Callbacks) {}

// Terminal is the end of the decode path: the router. It receives the request after every filter and drives the response by
// Stream.EncodeX. It lives and dies with the memory of its Stream.
type Terminal interface {
	DecodeHeaders(s *Stream, end bool)
	DecodeData(s *Stream, data []byte, end bool)
	DecodeTrailers(s *Stream)
	// OnDownstreamAboveHigh and OnDownstreamBelowLow tell that the client does not, and again does, keep up.
	OnDownstreamAboveHigh(s *Stream)
	OnDownstreamBelowLow(s *Stream)
	// OnTimeout tells that the deadline of SetRouteDeadline has passed.
	OnTimeout(s *Stream)
	// OnClosed tells that the request is wanted no more: a local reply, a reset, the end of the stream. The terminal gives
	// up what it has upstream. Called once.
	OnClosed(s *Stream)
}

// Callbacks is one filter's place in one stream's chain, and what the filter may ask of the stream.
type Callbacks struct {
	stream *Stream
	filter Filter
	index  int
	decode half
	encode half
}

// half is what one filter holds of one direction.
type half struct {
	head     bool // the head stopped here
	all      bool // body and trailers stop here too, unseen by the filter
	stopped  bool // the filter has stopped and not continued
	end      bool // the end of the message was held back with what is held
	trailers bool // the trailers stopped here
	limit    int  // of body, instead of Config.BufferLimit; 0: that
	body     buffer.Chain
}

// Stream is the stream that the filter works for.
func (c *Callbacks) Stream() *Stream { return c.stream }

// Become puts another filter into this one's place, from DecodeHeaders: the factory's was shared, and asks only whether the stream needs one of its own.
func (c *Callbacks) Become(f Filter) { c.filter = f }

// LimitDecoded bounds what the stream keeps of the request for this filter, in bytes, instead of Config.BufferLimit.
func (c *Callbacks) LimitDecoded(n int) { c.decode.limit = n }

// Decoded is what the stream keeps of the request's body for this filter, in bytes.
func (c *Callbacks) Decoded() int { return c.decode.body.Len() }

// ContinueDecoding lets go what the filter held of the request.
func (c *Callbacks) ContinueDecoding() {
	if s := c.stream; !s.decodeClosed && c.decode.stopped {
		s.resumeDecoding(c)
	}
}

// ContinueEncoding lets go what the filter held of the response.
func (c *Callbacks) ContinueEncoding() {
	if s := c.stream; !s.finished && c.encode.stopped {
		s.resumeEncoding(c)
	}
}

// LetGoDecodedHead passes on the head that the filter held, and nothing behind it: for a filter that takes the body itself and injects it.
func (c *Callbacks) LetGoDecodedHead() {
	if s := c.stream; !s.decodeClosed && c.decode.head {
		c.decode.head, c.decode.end = false, false
		s.decodeHeaders(c.index+1, false)
	}
}

// LetGoEncodedHead is LetGoDecodedHead for the response.
func (c *Callbacks) LetGoEncodedHead() {
	if s := c.stream; !s.finished && c.encode.head {
		c.encode.head, c.encode.end = false, false
		s.encodeHeaders(c.index-1, false)
	}
}

// AddDecodedData adds bytes to the request's body, from DecodeHeaders with end or from DecodeTrailers.
func (c *Callbacks) AddDecodedData(data []byte) { c.stream.keepDecoded(c, data) }

// AddEncodedData adds bytes to the response's body, from EncodeHeaders with end or from EncodeTrailers.
func (c *Callbacks) AddEncodedData(data []byte) { c.stream.keepEncoded(c, data) }

// InjectDecodedData gives body bytes to the filters behind this one: for a filter that took the data by StopIteration and
// whose head has gone on.
func (c *Callbacks) InjectDecodedData(data []byte, end bool) {
	if s := c.stream; !s.decodeClosed {
		s.decodeData(c.index+1, data, end)
	}
}

// InjectEncodedData is InjectDecodedData for the response.
func (c *Callbacks) InjectEncodedData(data []byte, end bool) {
	if s := c.stream; !s.finished {
		s.encodeData(c.index-1, data, end)
	}
}
