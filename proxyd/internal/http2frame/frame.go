// Package http2frame reads and writes the frames of HTTP/2 (RFC 9113 4 and 6): pure functions over bytes, without copies
// and without the state of a connection or its streams.
//
// A reader parses a Header, Checks it before it waits for the payload, has Sequence check its place, and then gives the
// payload to the Parse function of its type. Each answers with the error that RFC 9113 asks for, of the stream or of
// the connection.
package http2frame

import "encoding/binary"

// Preface is what a client sends first (RFC 9113 3.4).
const Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

// Sizes and defaults of RFC 9113.
const (
	HeaderLen           = 9
	DefaultMaxFrameSize = 16_384
	MaxFrameSize        = 1<<24 - 1
	DefaultWindow       = 65_535
	MaxWindow           = 1<<31 - 1
	MaxStreamID         = 1<<31 - 1
)

// Type is a frame's type.
type Type uint8

// The types of RFC 9113 6.
const (
	Data Type = iota
	Headers
	Priority
	RSTStream
	Settings
	PushPromise
	Ping
	GoAway
	WindowUpdate
	Continuation
)

// Flags is a frame's flags; a flag means something for some types only.
type Flags uint8

// The flags.
const (
	EndStream  Flags = 0x1
	Ack        Flags = 0x1
	EndHeaders Flags = 0x4
	Padded     Flags = 0x8
	Prioritize Flags = 0x20 // "PRIORITY" of HEADERS
)

// ErrCode is an error code of RFC 9113 7.
type ErrCode uint32

// The error codes.
const (
	NoError ErrCode = iota
	ProtocolError
	InternalError
	FlowControlError
	SettingsTimeout
	StreamClosed
	FrameSizeError
	RefusedStream
	Cancel
	CompressionError
	ConnectError
	EnhanceYourCalm
	InadequateSecurity
	HTTP11Required
)

var errCodeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

// String is the code's name, "unknown" for one that RFC 9113 does not have.
func (c ErrCode) String() string {
	if int(c) < len(errCodeNames) {
		return errCodeNames[c]
	}
	return "unknown"
}

// Error is a breach of the protocol. Errors are constants and are compared by address.
type Error struct {
	Code ErrCode
	// Stream tells that only the stream ends, by RST_STREAM; otherwise the connection does, by GOAWAY.
	Stream bool
	// Detail is what RESPONSE_CODE_DETAILS and CONNECTION_TERMINATION_DETAILS show.
	Detail string
}

// Error implements error.
func (e *Error) Error() string { return e.Detail }

var (
	errFrameTooLarge   = &Error{FrameSizeError, false, "http2.frame_too_large"}
	errFrameSize       = &Error{FrameSizeError, false, "http2.invalid_frame_size"}
	errPrioritySize    = &Error{FrameSizeError, true, "http2.invalid_frame_size"}
	errStreamID        = &Error{ProtocolError, false, "http2.invalid_stream_id"}
	errPush            = &Error{ProtocolError, false, "http2.unexpected_push"}
	errPadding         = &Error{ProtocolError, false, "http2.invalid_padding"}
	errDependency      = &Error{ProtocolError, true, "http2.stream_depends_on_itself"}
	errContinuation    = &Error{ProtocolError, false, "http2.unexpected_continuation"}
	errNoContinuation  = &Error{ProtocolError, false, "http2.header_block_interrupted"}
	errIncrement       = &Error{ProtocolError, false, "http2.zero_window_update"}
	errStreamIncrement = &Error{ProtocolError, true, "http2.zero_window_update"}
	errSetting         = &Error{ProtocolError, false, "http2.invalid_setting"}
	errWindowSetting   = &Error{FlowControlError, false, "http2.invalid_window_setting"}
)

// Header is the head of a frame.
type Header struct {
	Length   uint32 // 24 bits
	Type     Type
	Flags    Flags
	StreamID uint32 // 31 bits; the reserved one is dropped
}

// Has tells whether a flag is set.
func (h Header) Has(f Flags) bool { return h.Flags&f != 0 }

// ParseHeader reads a frame's head; false when p is shorter than HeaderLen.
func ParseHeader(p []byte) (Header, bool) {
	if len(p) < HeaderLen {
		return Header{}, false
	}
	return Header{
		Length:   uint32(p[0])<<16 | uint32(p[1])<<8 | uint32(p[2]),
		Type:     Type(p[3]),
		Flags:    Flags(p[4]),
		StreamID: binary.BigEndian.Uint32(p[5:]) & MaxStreamID,
	}, true
}

// Check says whether a frame of that head may be at all: its length against maxSize, our SETTINGS_MAX_FRAME_SIZE, and
// against its type, and whether it belongs to a stream. A frame of a type that is not known is fine, and to be ignored.
// After an error of the stream the payload is skipped.
func (h Header) Check(maxSize uint32) *Error {
	if h.Length > maxSize {
		return errFrameTooLarge
	}
	switch h.Type {
	case Data, Headers, Continuation, Priority, RSTStream:
		if h.StreamID == 0 {
			return errStreamID
		}
	case Settings, Ping, GoAway:
		if h.StreamID != 0 {
			return errStreamID
		}
	}
	switch h.Type {
	case Data, Headers:
		least := uint32(0)
		if h.Has(Padded) {
			least = 1
		}
		if h.Type == Headers && h.Has(Prioritize) {
			least += 5
		}
		if h.Length < least {
			return errFrameSize
		}
	case Priority:
		if h.Length != 5 {
			return errPrioritySize
		}
	case RSTStream, WindowUpdate:
		if h.Length != 4 {
			return errFrameSize
		}
	case Settings:
		if h.Length%6 != 0 || (h.Has(Ack) && h.Length != 0) {
			return errFrameSize
		}
	case Ping:
		if h.Length != 8 {
			return errFrameSize
		}
	case GoAway:
		if h.Length < 8 {
			return errFrameSize
		}
	case PushPromise:
		return errPush // clients may not push, and servers are told not to
	}
	return nil
}

// Sequence checks that a header block is not interrupted (RFC 9113 6.10). The zero value is that of a new connection.
type Sequence struct{ stream uint32 }

// Next takes the head of the next frame, of whatever type.
func (s *Sequence) Next(h Header) *Error {
	switch {
	case s.stream != 0 && (h.Type != Continuation || h.StreamID != s.stream):
		return errNoContinuation
	case s.stream == 0 && h.Type == Continuation:
		return errContinuation
	case h.Type == Headers, h.Type == Continuation:
		if s.stream = h.StreamID; h.Has(EndHeaders) {
			s.stream = 0
		}
	}
	return nil
}

// Open tells whether a header block waits for its CONTINUATION.
func (s *Sequence) Open() bool { return s.stream != 0 }

// unpad cuts the padding off: the length byte in front and the bytes behind.
func unpad(h Header, p []byte) ([]byte, *Error) {
	if !h.Has(Padded) {
		return p, nil
	}
	n := int(p[0])
	if n >= len(p) {
		return nil, errPadding
	}
	return p[1 : len(p)-n], nil
}

// ParseData is the data of a DATA frame. Flow control counts the whole payload, padding included.
func ParseData(h Header, p []byte) ([]byte, *Error) { return unpad(h, p) }

// ParseHeaders is the fragment of a HEADERS frame; its priority is read over (RFC 9113 5.3.2). With an error of the
// stream comes the fragment too: the decoder needs it to stay in step.
func ParseHeaders(h Header, p []byte) ([]byte, *Error) {
	p, err := unpad(h, p)
	if err != nil || !h.Has(Prioritize) {
		return p, err
	}
	if len(p) < 5 {
		return nil, errPadding
	}
	return p[5:], dependency(h, p)
}

// ParsePriority checks a PRIORITY frame, which says nothing of use.
func ParsePriority(h Header, p []byte) *Error { return dependency(h, p) }

func dependency(h Header, p []byte) *Error {
	if binary.BigEndian.Uint32(p)&MaxStreamID == h.StreamID {
		return errDependency
	}
	return nil
}

// ParseRSTStream is the code of a RST_STREAM frame.
func ParseRSTStream(p []byte) ErrCode { return ErrCode(binary.BigEndian.Uint32(p)) }

// ParsePing is the data of a PING frame.
func ParsePing(p []byte) [8]byte { return [8]byte(p) }

// ParseGoAway is the content of a GOAWAY frame.
func ParseGoAway(p []byte) (lastStream uint32, code ErrCode, debug []byte) {
	return binary.BigEndian.Uint32(p) & MaxStreamID, ErrCode(binary.BigEndian.Uint32(p[4:])), p[8:]
}

// ParseWindowUpdate is the increment of a WINDOW_UPDATE frame, at least 1.
func ParseWindowUpdate(h Header, p []byte) (uint32, *Error) {
	n := binary.BigEndian.Uint32(p) & MaxWindow
	switch {
	case n != 0:
		return n, nil
	case h.StreamID == 0:
		return 0, errIncrement
	}
	return 0, errStreamIncrement
}

// Grow adds an increment to a window; false when it would pass MaxWindow, which is a FLOW_CONTROL_ERROR of the stream
// or of the connection whose window it is (RFC 9113 6.9.1). A window may be negative after a change of settings.
func Grow(window int32, increment uint32) (int32, bool) {
	n := int64(window) + int64(increment)
	if n > MaxWindow {
		return window, false
	}
	return int32(n), true
}

// Shift moves a stream's window by a change of SETTINGS_INITIAL_WINDOW_SIZE (RFC 9113 6.9.2); false as Grow.
func Shift(window int32, from, to uint32) (int32, bool) {
	n := int64(window) + int64(to) - int64(from)
	if n > MaxWindow || n < -MaxWindow {
		return window, false
	}
	return int32(n), true
}
