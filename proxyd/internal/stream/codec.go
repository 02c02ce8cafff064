// Package stream is one request and its response, whatever protocol carries either side: the iteration of the
// HTTP filter chain, local replies, resets, watermarks. Nothing above the codecs asks which protocol it is.
//
// Two codecs meet in a stream. Downstream, a server codec decodes the request into the stream and encodes its
// response through a ResponseEncoder. Upstream, the router encodes the request through a RequestEncoder that a
// pool gave it and receives the response as a ResponseDecoder. Names are Envoy's.
package stream

import (
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/header"
)

// ResponseEncoder is a server codec's view of one stream: where the response goes.
// Implementations: the HTTP/1 server connection, the HTTP/2 server stream.
type ResponseEncoder interface {
	// EncodeInterim sends a 1xx response. Any number, before EncodeHeaders.
	EncodeInterim(h *header.Response)
	// EncodeHeaders sends the final response head; end means that there is neither body nor trailers.
	// The codec owns framing: it adds Content-Length or Transfer-Encoding, Connection and Date where its protocol wants them.
	EncodeHeaders(h *header.Response, end bool)
	// EncodeData sends body bytes, borrowed for the call.
	EncodeData(data []byte, end bool)
	// EncodeTrailers ends the response.
	EncodeTrailers(t *header.Block)
	// Reset ends the stream without completing the response: RST_STREAM, or closing an HTTP/1 connection.
	Reset(reason ResetReason)
	// ReadDisable stops (true) and restarts (false) the request's bytes. Counted: n trues need n falses.
	ReadDisable(disable bool)
	// BufferedBytes is what waits for the client now, in bytes.
	BufferedBytes() int
}

// RequestEncoder is a client codec's view of one stream: where the request goes. A pool hands it out.
type RequestEncoder interface {
	EncodeHeaders(h *header.Request, end bool)
	EncodeData(data []byte, end bool)
	EncodeTrailers(t *header.Block)
	// Reset gives the stream up: RST_STREAM, or closing an HTTP/1 connection. The decoder is not called again.
	Reset(reason ResetReason)
	// ReadDisable stops and restarts the response's bytes. Counted.
	ReadDisable(disable bool)
	BufferedBytes() int
}

// ResponseDecoder receives a response from a client codec. Exactly one of these ends it: end=true on headers or
// data, DecodeTrailers, OnReset.
type ResponseDecoder interface {
	// DecodeInterim is a 1xx other than 101.
	DecodeInterim(h *header.Response)
	// DecodeHeaders is the final head (101 included). h is the codec's and valid until the stream ends or the
	// decoder takes another head; the decoder may edit it.
	DecodeHeaders(h *header.Response, end bool)
	// DecodeData is body bytes, borrowed for the call.
	DecodeData(data []byte, end bool)
	DecodeTrailers(t *header.Block)
	// OnReset tells that the stream ended early; detail is a constant string for RESPONSE_CODE_DETAILS.
	OnReset(reason ResetReason, detail string)
	// OnAboveHigh and OnBelowLow tell back-pressure of the request's direction.
	OnAboveHigh()
	OnBelowLow()
}

// A large body of known length goes from socket to socket by splice when nothing in between wants to see it and it comes in large
// pieces. Measured at 1 MiB: nine tenths of what copying costs. Below bulkLeast a pipe does not pay.
const (
	// bulkLeast is how much of a body must still be to come.
	bulkLeast = 256 << 10
	// bulkPiece is what must have come at once: a writer that trickles is not worth a pipe.
	bulkPiece = 32 << 10
)

// Bulky tells whether the rest of a body, left bytes, is worth a splice after a piece of that size came; -1 is a body without
// a known length, which is framed anew and so copied.
func Bulky(left int64, piece int) bool { return left >= bulkLeast && piece >= bulkPiece }

// Peered is a Downstream that knows the client's connection.
type Peered interface{ Conn() *conn.Conn }

// Shown is the client's side of something that logs see as a stream, when its connection is gone.
type Shown interface {
	// Transport is what stood between the socket and its handler; nil for a plain connection.
	Transport() conn.Transport
}

// BulkEncoder is an encoder of either side whose body may take a way around it, from socket to socket.
type BulkEncoder interface {
	// BulkTarget is the connection that the next n bytes of the body may be spliced to as they are; nil when they may not.
	BulkTarget(n int64) *conn.Conn
	// OnBulk tells that n of them have left.
	OnBulk(n int)
}

// BulkDecoder is a ResponseDecoder that lets body bytes pass unseen, by the same calls. The end of the body still comes by
// DecodeData.
type BulkDecoder interface{ BulkEncoder }

// ResetReason says why a stream ended early. Envoy's StreamResetReason.
type ResetReason uint8

const (
	ResetLocal             ResetReason = iota // by us, towards the peer
	ResetRemote                               // by the peer
	ResetConnectionFailure                    // could not connect
	ResetConnectTimeout
	ResetConnectionTermination // the connection ended under the stream
	ResetOverflow              // a circuit breaker
	ResetProtocolError         // the peer broke the protocol
	ResetRefused               // HTTP/2 REFUSED_STREAM: safe to try again
	ResetOverload              // by us, for the memory that the stream holds: what waits for the client is dropped
)
