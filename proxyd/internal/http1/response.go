package http1

import (
	"bytes"
	"encoding/binary"

	"retinue.dev/proxyd/internal/header"
)

// ResponseParser parses the heads of a client connection's responses, interim ones included. It works as
// RequestParser does.
type ResponseParser struct {
	// Limits bounds heads; nil means DefaultLimits.
	Limits *Limits
	// Head is what the last complete head said. Valid until the next call of Parse.
	Head Head

	scan scanner
	line bool // the status line is parsed
}

// Reset forgets a head that was begun.
func (p *ResponseParser) Reset() { *p = ResponseParser{Limits: p.Limits} }

// Started tells whether Parse has seen a byte of a head that is not complete.
func (p *ResponseParser) Started() bool { return p.scan.scanned > 0 || p.scan.pos > 0 }

// Parse parses a head into r, which it resets when it begins. method is that of the request it answers: it decides
// whether there is a body. The length of the head is answered when it is complete, 0 when more bytes are needed.
// A 1xx has Framing None and is followed by another head, but for 101, which is a Tunnel.
func (p *ResponseParser) Parse(data []byte, r *header.Response, method header.MethodID) (int, *Error) {
	limits := p.Limits
	if limits == nil {
		limits = &DefaultLimits
	}
	s := &p.scan
	if !p.line {
		if s.scanned == 0 {
			r.Reset()
			if len(data) == 0 {
				return 0, nil
			}
		}
		reason, reasonLen, f := p.statusLine(data, r, limits)
		if f != ok {
			return 0, Upstream.fault(f)
		}
		if !p.line {
			return 0, nil
		}
		s.commit(data, &r.Block)
		r.SetReasonSpan(reason, reasonLen)
	}
	complete, f := s.fields(data, &r.Block, limits)
	s.commit(data, &r.Block)
	if f != ok {
		return 0, Upstream.fault(f)
	}
	if !complete {
		return 0, nil
	}
	n := s.pos
	if f = p.head(r, method); f != ok {
		return 0, Upstream.fault(f)
	}
	p.scan, p.line = scanner{}, false
	return n, nil
}

// statusLine parses HTTP-version SP 3DIGIT [SP reason-phrase] CRLF. The space before an empty reason is not asked
// for: many servers leave it out, and nothing can be read differently.
func (p *ResponseParser) statusLine(data []byte, r *header.Response, limits *Limits) (reason, reasonLen int, f fault) {
	const fixed = len("HTTP/1.1 200")
	s := &p.scan
	if s.incomplete(data) {
		if len(data) > limits.Line+1 {
			return 0, 0, lineTooLong
		}
		return 0, 0, ok
	}
	for i := range min(5, len(data)) {
		if data[i] != "HTTP/"[i] {
			return 0, 0, badStatusLine
		}
	}
	if len(data) < fixed+2 {
		s.scanned = len(data)
		if bytes.IndexByte(data, '\n') >= 0 {
			return 0, 0, badStatusLine
		}
		return 0, 0, ok
	}
	switch version := binary.LittleEndian.Uint64(data); {
	case version == version11:
		r.Proto = header.HTTP11
	case version == version10:
		r.Proto = header.HTTP10
	case validVersion(data[:8]):
		return 0, 0, badVersion
	default:
		return 0, 0, badStatusLine
	}
	if data[8] != ' ' || !isDigit(data[9]) || !isDigit(data[10]) || !isDigit(data[11]) || data[9] == '0' {
		return 0, 0, badStatusLine
	}
	r.Status = int(data[9]-'0')*100 + int(data[10]-'0')*10 + int(data[11]-'0')
	reason = fixed
	if data[reason] == ' ' {
		reason++
	} else if data[reason] != '\r' {
		return 0, 0, badStatusLine
	}
	end := header.ValueEnd(data, reason)
	if end+1 >= len(data) {
		if end < len(data) && data[end] != '\r' {
			return 0, 0, valueFault(data[end])
		}
		s.scanned = len(data)
		if len(data) > limits.Line+1 {
			return 0, 0, lineTooLong
		}
		return 0, 0, ok
	}
	if data[end] != '\r' || data[end+1] != '\n' {
		return 0, 0, valueFault(data[end])
	}
	if end > limits.Line {
		return 0, 0, lineTooLong
	}
	s.pos = end + 2
	p.line = true
	return reason, end - reason, ok
}

// lengthFields must not be in a response that can have no body.
var lengthFields = header.MaskOf(header.ContentLength)

// head works out framing and persistence: RFC 9112 6.3 and 9.3.
func (p *ResponseParser) head(r *header.Response, method header.MethodID) fault {
	b := &r.Block
	p.Head = Head{KeepAlive: r.Proto == header.HTTP11}
	h := &p.Head
	if f := bodyOf(b, r.Proto, h); f != ok {
		return f
	}
	if b.Has(header.Connection) {
		options := connectionOptions(b)
		h.KeepAlive = keepAlive(r.Proto, options)
		h.Upgrade = options&ConnUpgrade != 0 && len(b.Get(header.Upgrade)) > 0
	}
	status := r.Status
	tunnel := status == 101 || (method == header.MethodConnect && status >= 200 && status < 300)
	switch {
	case tunnel || status < 200 || status == 204:
		// No Transfer-Encoding may be here (RFC 9112 6.1), and one who sends it may mean a body. A length may not
		// be here either (RFC 9110 8.6), but 0 is common and says nothing.
		if h.Framing == Chunked {
			return codingNotAllowed
		}
		if h.Length > 0 && !tunnel {
			return badLength
		}
		b.RemoveAny(&lengthFields)
		h.Framing, h.Length = None, 0
		if tunnel {
			h.Framing, h.KeepAlive = Tunnel, false
		}
	case method == header.MethodHead || status == 304:
		h.Framing, h.Length = None, 0
	case h.Framing == None && !b.Has(header.ContentLength):
		h.Framing, h.KeepAlive = UntilClose, false
	}
	return ok
}
