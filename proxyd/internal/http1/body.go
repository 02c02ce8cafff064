package http1

import (
	"retinue.dev/proxyd/internal/header"
)

// Bounds of the chunked coding.
const (
	// maxSizeDigits bounds a chunk size to 2^60, leading zeros counted.
	maxSizeDigits = 15
	// maxExtension bounds the extensions of one chunk.
	maxExtension = 1 << 10
	// maxOverhead bounds extension bytes that are not paid for by data: a chunk may spend 16 bytes and twice
	// its data (Go's net/http has the same rule). Signed uploads to object stores, a signature each 64 KiB, pass.
	maxOverhead = 16 << 10
)

// BodyDecoder finds the end of a body and cuts the chunked coding away, without copying. Init makes it ready for a
// message; it holds no memory.
type BodyDecoder struct {
	framing  Framing
	side     Side
	state    chunkState
	digits   uint8
	done     bool
	extBytes int
	overhead int
	left     int64 // bytes until the end of the body (Length) or of the chunk (Chunked)
	limits   *Limits
	trailers *header.Block
	scan     scanner
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExtension
	chunkSizeLF
	chunkData
	chunkCR
	chunkLF
	chunkTrailers
)

// Init begins the body of a message whose head was h. Trailers go to trailers, which is Reset only when there are
// some; limits may be nil.
func (d *BodyDecoder) Init(h *Head, trailers *header.Block, limits *Limits, side Side) {
	if limits == nil {
		limits = &DefaultLimits
	}
	*d = BodyDecoder{
		framing: h.Framing, side: side, left: h.Length, limits: limits, trailers: trailers,
		done: h.Framing == None,
	}
}

// Done tells whether the body is complete.
func (d *BodyDecoder) Done() bool { return d.done }

// Remaining is how many bytes of in, at least, are data and nothing else: what may be moved without being looked at,
// and then told to Skip. Inside a chunk it is the rest of the chunk; -1 means all until the connection closes.
func (d *BodyDecoder) Remaining() int64 {
	switch {
	case d.done:
		return 0
	case d.framing == Length, d.framing == Chunked && d.state == chunkData:
		return d.left
	case d.framing == UntilClose, d.framing == Tunnel:
		return -1
	}
	return 0
}

// Skip tells that n bytes of data, at most Remaining, went another way.
func (d *BodyDecoder) Skip(n int64) {
	switch d.framing {
	case Length:
		d.left -= n
		d.done = d.left == 0
	case Chunked:
		if d.left -= n; d.left == 0 {
			d.state = chunkCR
		}
	}
}

// Finish tells that the connection has ended: nil when the body is complete with that.
func (d *BodyDecoder) Finish() *Error {
	if d.framing == UntilClose || d.framing == Tunnel {
		d.done = true
	}
	if d.done {
		return nil
	}
	return d.side.fault(truncated)
}

// Decode takes bytes of the body off the front of in: n of them, of which data, a piece of in, is body. It takes all
// it can up to the end of one piece of data; call it again while it takes something and is not done. What it does not
// take, a part of a trailer section, must be presented again with more behind it. Bytes behind the body are never
// taken. done is told once the body is complete; trailers are then in the block, without those that a trailer may
// not carry (RFC 9110 6.5.1).
func (d *BodyDecoder) Decode(in []byte) (data []byte, n int, done bool, err *Error) {
	switch {
	case d.done:
		return nil, 0, true, nil
	case d.framing == Length:
		n = len(in)
		if int64(n) >= d.left {
			n = int(d.left)
			d.done = true
		}
		d.left -= int64(n)
		return in[:n:n], n, d.done, nil
	case d.framing == Chunked:
		data, n, f := d.chunked(in)
		if f != ok {
			return nil, 0, false, d.side.fault(f)
		}
		return data, n, d.done, nil
	}
	return in, len(in), false, nil
}

// chunked reads chunk-size [ chunk-ext ] CRLF chunk-data CRLF … 0 CRLF trailer-section CRLF: RFC 9112 7.1. It stops
// where a second piece of data would begin.
func (d *BodyDecoder) chunked(in []byte) (data []byte, n int, f fault) {
	for i := 0; i < len(in); {
		c := in[i]
		switch d.state {
		case chunkSize:
			if v := hexValue[c]; v != 0 {
				if d.digits++; d.digits > maxSizeDigits {
					return nil, 0, badChunkSize
				}
				d.left = d.left<<4 | int64(v-1)
				i++
				continue
			}
			if d.digits == 0 {
				return nil, 0, badChunkSize
			}
			switch c {
			case '\r':
				d.state = chunkSizeLF
			case ';':
				d.state, d.extBytes = chunkExtension, 0
			default:
				// White space here is "bad white space" of the grammar, and how chunk sizes are obfuscated.
				return nil, 0, badChunkSize
			}
			i++
		case chunkExtension:
			end := header.ValueEnd(in, i)
			if d.extBytes += end - i; d.extBytes > maxExtension {
				return nil, 0, chunkExtensionTooLarge
			}
			if i = end; i == len(in) {
				continue
			}
			if in[i] != '\r' {
				return nil, 0, badChunk
			}
			if d.overhead += d.extBytes - 16 - int(min(2*d.left, maxOverhead)); d.overhead < 0 {
				d.overhead = 0
			}
			if d.overhead > maxOverhead {
				return nil, 0, chunkExtensionTooLarge
			}
			d.state = chunkSizeLF
			i++
		case chunkSizeLF:
			if c != '\n' {
				return nil, 0, badChunk
			}
			i++
			d.digits = 0
			if d.left > 0 {
				d.state = chunkData
				break
			}
			d.state = chunkTrailers
			d.scan.reset()
		case chunkData:
			if data != nil {
				return data, i, ok
			}
			size := len(in) - i
			if int64(size) >= d.left {
				size = int(d.left)
				d.state = chunkCR
			}
			d.left -= int64(size)
			data = in[i : i+size : i+size]
			i += size
		case chunkCR:
			if c != '\r' {
				return nil, 0, badChunk
			}
			d.state = chunkLF
			i++
		case chunkLF:
			if c != '\n' {
				return nil, 0, badChunk
			}
			d.state = chunkSize
			i++
		case chunkTrailers:
			end, f := d.trailerSection(in[i:])
			if f != ok {
				return nil, 0, f
			}
			return data, i + end, ok
		}
	}
	return data, len(in), ok
}

// trailerSection parses trailer fields; 0 when more bytes are needed.
func (d *BodyDecoder) trailerSection(in []byte) (int, fault) {
	if d.scan.scanned == 0 && d.scan.pos == 0 {
		d.trailers.Reset()
	}
	complete, f := d.scan.fields(in, d.trailers, d.limits)
	switch {
	case f == headTooLarge || f == tooManyFields:
		return 0, trailersTooLarge
	case f != ok:
		return 0, f
	case !complete:
		d.scan.commit(in, d.trailers)
		return 0, ok
	}
	d.scan.commit(in, d.trailers)
	d.trailers.RemoveAny(&notTrailers)
	d.done = true
	return d.scan.pos, ok
}

// notTrailers are the fields that a trailer section may not carry: framing, routing, authentication, request
// modifiers, response control and how to read the content. They are dropped, in and out.
var notTrailers = header.MaskOf(
	header.Host, header.ContentLength, header.TransferEncoding, header.Trailer, header.TE,
	header.Connection, header.KeepAlive, header.ProxyConnection, header.Upgrade, header.HTTP2Settings,
	header.ContentEncoding, header.ContentType, header.ContentRange,
	header.Authorization, header.ProxyAuthorization, header.ProxyAuthenticate, header.WWWAuthenticate,
	header.Cookie, header.SetCookie, header.CacheControl, header.MaxForwards, header.Expect, header.Range,
	header.IfMatch, header.IfNoneMatch, header.IfModifiedSince, header.IfUnmodifiedSince, header.IfRange,
	header.Age, header.Date, header.Expires, header.Location, header.RetryAfter, header.Vary,
	header.Forwarded, header.XForwardedFor, header.XForwardedProto, header.XForwardedHost, header.XForwardedPort,
	header.XForwardedClientCert, header.XRealIP, header.XRequestID,
)

// hexValue is one more than a hexadecimal digit's value, 0 for other bytes.
var hexValue = func() (t [256]uint8) {
	for i := range 10 {
		t['0'+i] = uint8(i) + 1
	}
	for i := range 6 {
		t['a'+i], t['A'+i] = uint8(i)+11, uint8(i)+11
	}
	return t
}()
