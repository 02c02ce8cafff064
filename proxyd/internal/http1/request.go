package http1

import (
	"bytes"
	"encoding/binary"

	"retinue.dev/proxyd/internal/header"
)

// RequestParser parses the head of one request after another. The zero value with Limits set is ready; it belongs to
// a server connection and lives as long as it.
//
// The connection gives Parse all bytes from the first one that no parser consumed. Until the head is complete Parse
// consumes nothing; it keeps its place instead.
type RequestParser struct {
	// Limits bounds heads; nil means DefaultLimits.
	Limits *Limits
	// Head is what the last complete head said. Valid until the next call of Parse.
	Head Head

	scan    scanner
	line    bool // the request line is parsed
	version header.Proto
	method  header.MethodID

	methodLen, path, pathLen int
}

// Reset forgets a head that was begun.
func (p *RequestParser) Reset() { *p = RequestParser{Limits: p.Limits} }

// Started tells whether Parse has seen a byte of a head that is not complete, a leading CRLF not counted.
func (p *RequestParser) Started() bool {
	return p.scan.scanned > p.scan.base || p.scan.pos > p.scan.base
}

// Parse parses a head into r, which it resets when it begins. It answers the length of the head when that is
// complete, 0 when more bytes are needed, and an error when the message must be refused; then r has the fields
// before the fault, for a log. r must be the same until the head is complete or the parser is Reset.
func (p *RequestParser) Parse(data []byte, r *header.Request) (int, *Error) {
	limits := p.Limits
	if limits == nil {
		limits = &DefaultLimits
	}
	s := &p.scan
	if !p.line {
		if s.scanned == 0 {
			r.Reset()
			if len(data) > 0 && data[0] == '\r' {
				// One CRLF before a request line is what old clients send after a body: RFC 9112 2.2.
				if len(data) < 2 {
					return 0, nil
				}
				if data[1] != '\n' {
					return 0, Downstream.fault(badLineEnd)
				}
				s.base, s.pos = 2, 2
			}
			if len(data) == s.base {
				return 0, nil
			}
		}
		complete, f := p.requestLine(data, limits)
		if f != ok {
			return 0, Downstream.fault(f)
		}
		if !complete {
			return 0, nil
		}
		p.line = true
		r.Proto = p.version
		s.commit(data, &r.Block)
		r.SetLine(p.method, p.methodLen, p.path-s.base, p.pathLen)
	}
	complete, f := s.fields(data, &r.Block, limits)
	s.commit(data, &r.Block)
	if f != ok {
		return 0, Downstream.fault(f)
	}
	if !complete {
		return 0, nil
	}
	n := s.pos
	if f = p.finish(data, r); f != ok {
		return 0, Downstream.fault(f)
	}
	p.scan, p.line = scanner{}, false
	return n, nil
}

// requestLine parses method SP request-target SP HTTP-version CRLF.
func (p *RequestParser) requestLine(data []byte, limits *Limits) (bool, fault) {
	s := &p.scan
	if s.incomplete(data) {
		if len(data)-s.base > limits.Line+1 {
			return false, lineTooLong
		}
		return false, ok
	}
	i := s.base
	for i < len(data) && header.IsToken(data[i]) {
		i++
	}
	if i < len(data) {
		if data[i] != ' ' || i == s.base {
			return false, badMethod
		}
		p.methodLen = i - s.base
		p.method = header.LookupMethod(data[s.base:i])
		p.path = i + 1
		i = header.TargetEnd(data, p.path)
		p.pathLen = i - p.path
	}
	if i < len(data) {
		if p.pathLen > limits.Line {
			return false, lineTooLong
		}
		if p.pathLen == 0 {
			return false, badRequestLine
		}
		if data[i] != ' ' {
			if data[i] == '\r' || data[i] == '\n' {
				return false, badRequestLine // HTTP/0.9
			}
			return false, badTarget
		}
		i++
		if len(data)-i >= 10 {
			version := binary.LittleEndian.Uint64(data[i:])
			switch {
			case version == version11:
				p.version = header.HTTP11
			case version == version10:
				p.version = header.HTTP10
			case validVersion(data[i : i+8]):
				return false, badVersion
			default:
				return false, notVersion(data[i:])
			}
			if data[i+8] != '\r' || data[i+9] != '\n' {
				return false, badLineEnd
			}
			s.pos = i + 10
			if s.pos-2-s.base > limits.Line {
				return false, lineTooLong
			}
			return true, ok
		}
		switch lf := bytes.IndexByte(data[i:], '\n'); {
		case lf == len("HTTP/1.1") && validVersion(data[i:i+lf]):
			return false, badLineEnd
		case lf >= 0:
			return false, notVersion(data[i:])
		}
	}
	s.scanned = len(data)
	if len(data)-s.base > limits.Line+1 { // a CR may be the last byte
		return false, lineTooLong
	}
	return false, ok
}

// The versions as little-endian words.
const (
	version11 = 'H' | 'T'<<8 | 'T'<<16 | 'P'<<24 | '/'<<32 | '1'<<40 | '.'<<48 | '1'<<56
	version10 = 'H' | 'T'<<8 | 'T'<<16 | 'P'<<24 | '/'<<32 | '1'<<40 | '.'<<48 | '0'<<56
)

func validVersion(p []byte) bool {
	return string(p[:5]) == "HTTP/" && isDigit(p[5]) && p[6] == '.' && isDigit(p[7])
}

// notVersion tells a line that is badly written from one of another protocol, which speaks of no HTTP at all.
func notVersion(p []byte) fault {
	end := bytes.IndexByte(p, '\n')
	if end > 0 && header.IsToken(p[0]) && !bytes.Contains(bytes.ToUpper(p[:end]), []byte("HTTP")) {
		return notHTTP
	}
	return badRequestLine
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

// finish decides what the head means as a whole.
func (p *RequestParser) finish(data []byte, r *header.Request) fault {
	s := &p.scan
	if s.hosts > 1 {
		return duplicateHost
	}
	if s.hosts == 0 && p.version == header.HTTP11 {
		return missingHost
	}
	if s.hosts == 1 {
		if s.hostLen > 0 || p.version == header.HTTP11 {
			if !header.ValidAuthority(data[s.host : s.host+s.hostLen]) {
				return badHost
			}
		}
		r.SetAuthoritySpan(s.host-s.base, s.hostLen)
	}
	target := data[p.path : p.path+p.pathLen]
	if target[0] != '/' || p.method == header.MethodConnect {
		if f := p.otherTarget(target, r); f != ok {
			return f
		}
	}
	return p.head(&r.Block)
}

// otherTarget handles the forms of a request target that are not origin-form: RFC 9112 3.2.2 to 3.2.4.
func (p *RequestParser) otherTarget(target []byte, r *header.Request) fault {
	base := p.scan.base
	if p.method == header.MethodConnect {
		_, port, _ := header.SplitAuthority(target)
		if len(port) == 0 || !header.ValidAuthority(target) {
			return badTarget
		}
		r.SetAuthoritySpan(p.path-base, p.pathLen)
		r.SetLine(p.method, p.methodLen, 0, 0)
		return ok
	}
	if target[0] == '*' {
		if len(target) != 1 || p.method != header.MethodOptions {
			return badTarget
		}
		return ok
	}
	colon := bytes.Index(target, []byte("://"))
	if colon <= 0 {
		return badTarget
	}
	scheme := "http"
	if !header.EqualFold(target[:colon], "http") {
		if scheme = "https"; !header.EqualFold(target[:colon], "https") {
			return badScheme
		}
	}
	rest := target[colon+3:]
	end := bytes.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	if !header.ValidAuthority(rest[:end]) {
		return badTarget
	}
	// The authority of the target replaces whatever Host said: RFC 9112 3.2.2.
	authority := p.path + colon + 3
	r.SetAuthoritySpan(authority-base, end)
	r.SetScheme([]byte(scheme))
	r.SetLine(p.method, p.methodLen, authority+end-base, len(rest)-end)
	switch {
	case end == len(rest) && p.method == header.MethodOptions:
		r.SetPath([]byte("*"))
	case end == len(rest):
		r.SetPath([]byte("/"))
	case rest[end] == '?':
		path := make([]byte, 0, 1+len(rest)-end)
		r.SetPath(append(append(path, '/'), rest[end:]...))
	}
	return ok
}

// framingFields are those that head looks at.
var framingFields = header.MaskOf(header.ContentLength, header.TransferEncoding, header.Connection, header.Expect)

// head works out framing and persistence: RFC 9112 6 and 9.3.
func (p *RequestParser) head(b *header.Block) fault {
	p.Head = Head{KeepAlive: p.version == header.HTTP11}
	if !b.HasAny(&framingFields) {
		return ok
	}
	h := &p.Head
	if f := bodyOf(b, p.version, h); f != ok {
		return f
	}
	if b.Has(header.Connection) {
		options := connectionOptions(b)
		h.KeepAlive = keepAlive(p.version, options)
		h.Upgrade = options&ConnUpgrade != 0 && p.version == header.HTTP11 && len(b.Get(header.Upgrade)) > 0
	}
	if h.Framing != None && p.version == header.HTTP11 && b.Has(header.Expect) {
		h.Expect100 = b.HasToken(header.Expect, "100-continue")
	}
	return ok
}

// bodyOf reads Content-Length and Transfer-Encoding into h. With neither it leaves None.
func bodyOf(b *header.Block, version header.Proto, h *Head) fault {
	if b.Has(header.TransferEncoding) {
		if version != header.HTTP11 {
			return codingNotAllowed
		}
		if b.Has(header.ContentLength) {
			return lengthAndCoding
		}
		h.Framing = Chunked
		return transferCoding(b)
	}
	if b.Has(header.ContentLength) {
		if b.Count(header.ContentLength) > 1 {
			return duplicateLength
		}
		n, valid := parseLength(b.Get(header.ContentLength))
		if !valid {
			return badLength
		}
		if n > 0 {
			h.Framing, h.Length = Length, n
		}
	}
	return ok
}

// transferCoding accepts one field with the one coding "chunked".
func transferCoding(b *header.Block) fault {
	value := b.Get(header.TransferEncoding)
	if b.Count(header.TransferEncoding) == 1 && header.EqualFold(value, "chunked") {
		return ok
	}
	// What is left is refused; it is "not implemented" only when it is well-formed and ends in a single chunked.
	chunked, unknown := 0, 0
	last := false
	for i := b.Index(header.TransferEncoding, 0); i >= 0; i = b.Index(header.TransferEncoding, i+1) {
		list := b.ValueAt(i)
		for {
			token, rest, more := header.NextToken(list)
			if !more {
				break
			}
			if last = header.EqualFold(token, "chunked"); last {
				chunked++
			} else {
				if !header.ValidName(token) {
					return badCoding
				}
				unknown++
			}
			list = rest
		}
	}
	if unknown > 0 && chunked <= 1 && (last || chunked == 0) {
		return unknownCoding
	}
	return badCoding
}

// parseLength reads 1*DIGIT that fits an int64.
func parseLength(p []byte) (int64, bool) {
	if len(p) == 0 || len(p) > 18 {
		return 0, false
	}
	n := int64(0)
	for _, c := range p {
		if !isDigit(c) {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// connectionOptions reads the options that we know from every Connection field.
func connectionOptions(b *header.Block) (options Connection) {
	for i := b.Index(header.Connection, 0); i >= 0; i = b.Index(header.Connection, i+1) {
		list := b.ValueAt(i)
		for {
			token, rest, more := header.NextToken(list)
			if !more {
				break
			}
			switch {
			case header.EqualFold(token, "close"):
				options |= ConnClose
			case header.EqualFold(token, "keep-alive"):
				options |= ConnKeepAlive
			case header.EqualFold(token, "upgrade"):
				options |= ConnUpgrade
			}
			list = rest
		}
	}
	return options
}

// keepAlive: RFC 9112 9.3.
func keepAlive(version header.Proto, options Connection) bool {
	if options&ConnClose != 0 {
		return false
	}
	return version == header.HTTP11 || options&ConnKeepAlive != 0
}
