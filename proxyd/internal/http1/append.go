package http1

import (
	"strconv"

	"retinue.dev/proxyd/internal/header"
)

// RequestOptions is what a client connection decides about a request that it sends.
type RequestOptions struct {
	// Framing of the body: None, Length or Chunked. A Content-Length or Transfer-Encoding among the fields counts
	// for nothing.
	Framing Framing
	Length  int64
	// Connection options; ConnUpgrade goes with the Upgrade field, which is left out without it.
	Connection Connection
}

// ResponseOptions is what a server connection decides about a response that it sends.
type ResponseOptions struct {
	// Framing of the body. For the answer to HEAD and for 304 it is None, and the Content-Length among the fields
	// is sent.
	Framing    Framing
	Length     int64
	Connection Connection
	// Head tells that the request was HEAD.
	Head bool
	// Date is the value of the Date field, sent when the response has none; nil to send none.
	Date []byte
}

// Continue is the interim response that asks for the body.
const Continue = "HTTP/1.1 100 Continue\r\n\r\n"

// Names that the codec writes itself or not at all.
var (
	ownRequestFields = header.MaskOf(header.Host, header.ContentLength, header.TransferEncoding, header.Connection,
		header.KeepAlive, header.ProxyConnection, header.Upgrade, header.TE, header.Trailer)
	ownResponseFields = header.MaskOf(header.ContentLength, header.TransferEncoding, header.Connection,
		header.KeepAlive, header.ProxyConnection, header.Upgrade, header.Trailer)
)

// AppendRequestHead appends the head of a request for HTTP/1.1 to dst. A path that is empty is sent as "/", and for
// CONNECT the target is the authority.
func AppendRequestHead(dst []byte, r *header.Request, o RequestOptions) []byte {
	dst = append(dst, r.Method()...)
	dst = append(dst, ' ')
	authority := r.Authority()
	switch path := r.Path(); {
	case r.MethodID() == header.MethodConnect:
		dst = append(dst, authority...)
	case len(path) == 0:
		dst = append(dst, '/')
	default:
		dst = append(dst, path...)
	}
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, authority...)
	dst = append(dst, "\r\n"...)
	dst = r.AppendLines(dst, &ownRequestFields)
	switch o.Framing {
	case Length:
		dst = appendLength(dst, o.Length)
	case Chunked:
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
		dst = appendValues(dst, &r.Block, header.Trailer)
	case None:
		// RFC 9110 8.6: a method that could have content says that there is none.
		switch r.MethodID() {
		case header.MethodPost, header.MethodPut, header.MethodPatch:
			dst = append(dst, "Content-Length: 0\r\n"...)
		default:
			if r.Has(header.ContentLength) {
				dst = append(dst, "Content-Length: 0\r\n"...)
			}
		}
	}
	te := r.Has(header.TE) && r.HasToken(header.TE, "trailers")
	if te {
		dst = append(dst, "TE: trailers\r\n"...)
	}
	dst = appendConnection(dst, &r.Block, o.Connection, te)
	return append(dst, "\r\n"...)
}

// AppendResponseHead appends the head of a response to dst. Its version is always HTTP/1.1 (RFC 9110 2.5); a client
// of HTTP/1.0 is told by never giving it Chunked.
func AppendResponseHead(dst []byte, r *header.Response, o ResponseOptions) []byte {
	dst = appendStatusLine(dst, r)
	dst = r.AppendLines(dst, &ownResponseFields)
	switch {
	case r.Status < 200 || r.Status == 204 || o.Framing == Tunnel:
	case o.Head || r.Status == 304:
		if r.Count(header.ContentLength) == 1 {
			dst = appendValues(dst, &r.Block, header.ContentLength)
		}
	case o.Framing == None:
		dst = append(dst, "Content-Length: 0\r\n"...)
	case o.Framing == Length:
		dst = appendLength(dst, o.Length)
	case o.Framing == Chunked:
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
		dst = appendValues(dst, &r.Block, header.Trailer)
	}
	if o.Date != nil && r.Status >= 200 && !r.Has(header.Date) {
		dst = append(dst, "Date: "...)
		dst = append(dst, o.Date...)
		dst = append(dst, "\r\n"...)
	}
	dst = appendConnection(dst, &r.Block, o.Connection, false)
	return append(dst, "\r\n"...)
}

// appendStatusLine writes the registered reason phrase in one piece where the upstream's own is the same or absent.
func appendStatusLine(dst []byte, r *header.Response) []byte {
	reason := r.Reason()
	if s := r.Status - 100; s >= 0 && s < len(statusLines) && statusLines[s] != "" {
		line := statusLines[s]
		if len(reason) == 0 || string(reason) == line[len("HTTP/1.1 200 "):len(line)-2] {
			return append(dst, line...)
		}
	}
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(r.Status), 10)
	dst = append(dst, ' ')
	dst = append(dst, reason...)
	return append(dst, "\r\n"...)
}

func appendLength(dst []byte, n int64) []byte {
	dst = append(dst, "Content-Length: "...)
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, "\r\n"...)
}

// appendValues writes every field of one name.
func appendValues(dst []byte, b *header.Block, id header.ID) []byte {
	for i := b.Index(id, 0); i >= 0; i = b.Index(id, i+1) {
		dst = append(dst, id.LinePrefix()...)
		dst = append(dst, b.ValueAt(i)...)
		dst = append(dst, "\r\n"...)
	}
	return dst
}

func appendConnection(dst []byte, b *header.Block, c Connection, te bool) []byte {
	if c&ConnUpgrade != 0 {
		dst = appendValues(dst, b, header.Upgrade)
	}
	if c == 0 && !te {
		return dst
	}
	dst = append(dst, "Connection: "...)
	start := len(dst)
	option := func(set bool, name string) {
		if !set {
			return
		}
		if len(dst) > start {
			dst = append(dst, ", "...)
		}
		dst = append(dst, name...)
	}
	option(c&ConnUpgrade != 0, "upgrade")
	option(c&ConnClose != 0, "close")
	option(c&ConnKeepAlive != 0, "keep-alive")
	option(te, "te")
	return append(dst, "\r\n"...)
}

// AppendChunkHead appends the size line of a chunk of n bytes, n > 0. The data and ChunkEnd follow.
func AppendChunkHead(dst []byte, n int) []byte {
	dst = strconv.AppendInt(dst, int64(n), 16)
	return append(dst, "\r\n"...)
}

// ChunkEnd follows the data of a chunk.
const ChunkEnd = "\r\n"

// MaxChunkHead is the greatest length of what AppendChunkHead appends.
const MaxChunkHead = 16 + 2

// AppendChunk appends a whole chunk; nothing for no data, since an empty chunk would end the body.
func AppendChunk(dst, data []byte) []byte {
	if len(data) == 0 {
		return dst
	}
	dst = AppendChunkHead(dst, len(data))
	dst = append(dst, data...)
	return append(dst, ChunkEnd...)
}

// AppendLastChunk appends what ends a chunked body, with trailers unless they are nil. Fields that a trailer section
// may not carry are left out.
func AppendLastChunk(dst []byte, trailers *header.Block) []byte {
	dst = append(dst, "0\r\n"...)
	if trailers != nil {
		dst = trailers.AppendLines(dst, &notTrailers)
	}
	return append(dst, "\r\n"...)
}
