package hpack

import (
	"retinue.dev/proxyd/internal/header"
)

// What RFC 9113 8 says about a header section, one field at a time and as a whole.

// connectionSpecific are the fields that HTTP/2 has no use for (RFC 9113 8.2.2).
var connectionSpecific = header.MaskOf(
	header.Connection, header.KeepAlive, header.ProxyConnection, header.TransferEncoding, header.Upgrade,
)

func bit(id header.ID) uint8 { return 1 << (id - firstPseudo) }

// emit takes one field into the block, or notes why it may not be there.
func (s *sink) emit(id header.ID, name, value []byte, bad bool) {
	if s.fault != nil || s.kind == discarded {
		return
	}
	n := len(name)
	if id != header.Other {
		n = nameLen(id)
	}
	if s.size += n + len(value) + entryOverhead; s.size > s.limits.ListSize {
		s.fault = errTooLarge
		return
	}
	if bad {
		if s.fault = errValue; !validName(id, name) {
			s.fault = errName
		}
		return
	}
	if id >= firstPseudo {
		s.fault = s.pseudo(id, value)
		return
	}
	s.regular = true
	if s.fields++; s.fields > s.limits.Fields {
		s.fault = errTooMany
		return
	}
	switch {
	case id == header.Other:
	case connectionSpecific.Has(id):
		s.fault = errConnection
		return
	case id == header.TE && (s.kind != request || string(value) != "trailers"):
		s.fault = errTE
		return
	}
	arena := s.b.Arena()
	at := len(arena)
	if id == header.Other {
		arena = append(arena, name...)
	}
	valueAt := len(arena)
	arena = append(arena, value...)
	s.b.Grown(arena)
	if !s.b.AddSpan(id, at, n, valueAt, len(value)) {
		s.fault = errTooLarge
	}
}

// pseudo takes a pseudo-header field: RFC 9113 8.3.
func (s *sink) pseudo(id header.ID, value []byte) *Error {
	if s.regular {
		return errPseudoLate
	}
	if s.kind == trailers || (id == pseudoStatus) != (s.kind == response) {
		return errPseudo
	}
	if s.seen&bit(id) != 0 {
		return errPseudoTwice
	}
	s.seen |= bit(id)
	switch id {
	case pseudoStatus:
		return s.status(value)
	case pseudoMethod:
		if !s.req.SetMethod(value) {
			return errMethod
		}
	case pseudoPath:
		if len(value) == 0 || !s.req.SetPath(value) {
			return errPath
		}
	case pseudoScheme:
		if string(value) != "http" && string(value) != "https" {
			return errScheme
		}
		s.req.SetScheme(value)
	case pseudoAuthority:
		if len(value) == 0 || !s.req.SetAuthority(value) {
			return errAuthority
		}
	case pseudoProtocol:
		if !s.req.SetProtocol(value) {
			return errPseudo
		}
	}
	return nil
}

// status: 101 does not exist in HTTP/2 (RFC 9113 8.6).
func (s *sink) status(value []byte) *Error {
	if len(value) != 3 {
		return errStatus
	}
	n := 0
	for _, c := range value {
		if c < '0' || c > '9' {
			return errStatus
		}
		n = n*10 + int(c-'0')
	}
	if n < 100 || n == 101 {
		return errStatus
	}
	s.resp.Status = n
	return nil
}

// finishRequest checks what only the whole section can tell: RFC 9113 8.3.1 and 8.5, RFC 8441 4.
func finishRequest(r *header.Request, seen uint8) *Error {
	target := seen & (bit(pseudoScheme) | bit(pseudoPath))
	switch {
	case seen&bit(pseudoMethod) == 0:
		return errMissing
	case r.MethodID() == header.MethodConnect && seen&bit(pseudoProtocol) == 0:
		if target != 0 {
			return errPseudo
		}
		if seen&bit(pseudoAuthority) == 0 {
			return errMissing
		}
		if _, port, _ := header.SplitAuthority(r.Authority()); len(port) == 0 {
			return errAuthority
		}
	case target != bit(pseudoScheme)|bit(pseudoPath):
		return errMissing
	case seen&bit(pseudoProtocol) != 0 && r.MethodID() != header.MethodConnect:
		return errPseudo
	default:
		if path := r.Path(); path[0] != '/' && (string(path) != "*" || r.MethodID() != header.MethodOptions) {
			return errPath
		}
	}
	// The host is the authority, once. A Host that says something else would be a second answer to where to.
	if r.Has(header.Host) {
		host := r.Get(header.Host)
		switch {
		case r.Count(header.Host) > 1:
			return errHost
		case seen&bit(pseudoAuthority) != 0:
			if string(host) != string(r.Authority()) {
				return errHost
			}
		case len(host) == 0 || !r.SetAuthority(host):
			return errAuthority
		}
		r.RemoveID(header.Host)
	} else if seen&bit(pseudoAuthority) == 0 {
		return errMissing
	}
	if r.Has(header.Cookie) && r.Count(header.Cookie) > 1 {
		joinCookies(&r.Block)
	}
	return nil
}

// joinCookies makes one field of the crumbs (RFC 9113 8.2.3): HTTP/1 and filters want one.
func joinCookies(b *header.Block) {
	arena := b.Arena()
	at := len(arena)
	for i := b.Index(header.Cookie, 0); i >= 0; i = b.Index(header.Cookie, i+1) {
		if len(arena) > at {
			arena = append(arena, "; "...)
		}
		arena = append(arena, b.ValueAt(i)...)
	}
	b.Grown(arena)
	b.RemoveID(header.Cookie)
	b.AddSpan(header.Cookie, 0, len(header.Cookie.Lower()), at, len(arena)-at)
}

// contentLength is the value of the only Content-Length, -1 when there is none.
func contentLength(b *header.Block) (int64, *Error) {
	if !b.Has(header.ContentLength) {
		return -1, nil
	}
	value := b.Get(header.ContentLength)
	if b.Count(header.ContentLength) > 1 || len(value) == 0 || len(value) > 18 {
		return -1, errLength
	}
	n := int64(0)
	for _, c := range value {
		if c < '0' || c > '9' {
			return -1, errLength
		}
		n = n*10 + int64(c-'0')
	}
	return n, nil
}
