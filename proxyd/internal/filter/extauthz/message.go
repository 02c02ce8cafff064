package extauthz

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
)

// The messages of envoy.service.auth.v3 are written and read field by field: their generated types would bring the whole of Envoy's
// API, and allocate.

// field appends one of bytes.
func field(b []byte, number protowire.Number, value []byte) []byte {
	b = protowire.AppendTag(b, number, protowire.BytesType)
	return protowire.AppendBytes(b, value)
}

// text is field for a string of protobuf: what is no UTF-8 becomes '!', as with Envoy.
func text(b []byte, number protowire.Number, value []byte) []byte {
	if len(value) == 0 {
		return b
	}
	b = protowire.AppendTag(b, number, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(value)))
	at := len(b)
	if b = append(b, value...); utf8.Valid(value) {
		return b
	}
	for at < len(b) {
		r, n := utf8.DecodeRune(b[at:])
		if r == utf8.RuneError && n == 1 {
			b[at] = '!'
		}
		at += n
	}
	return b
}

func number(b []byte, n protowire.Number, value uint64) []byte {
	b = protowire.AppendTag(b, n, protowire.VarintType)
	return protowire.AppendVarint(b, value)
}

// buffers are a worker's scratch: nested messages are written from the inside out.
type buffers struct{ a, b, c []byte }

// appendCheck appends a CheckRequest.
func (f *Filter) appendCheck(dst []byte, s *stream.Stream, body []byte, m *buffers) []byte {
	r := &s.Request
	http := text(m.a[:0], 1, r.Get(header.XRequestID))
	http = text(http, 2, r.Method())
	for i := range r.Len() {
		if f.sends(r.NameAt(i)) && first(&r.Block, i) {
			http = field(http, 3, f.appendHeader(m.b[:0], &r.Block, i, m))
		}
	}
	for _, pseudo := range [...]struct {
		name  string
		value []byte
	}{{":method", r.Method()}, {":path", r.Path()}, {":authority", r.Authority()}, {":scheme", r.Scheme()}} {
		if len(pseudo.value) > 0 {
			entry := protowire.AppendTag(m.b[:0], 1, protowire.BytesType)
			entry = protowire.AppendString(entry, pseudo.name)
			m.b = text(entry, 2, pseudo.value)
			http = field(http, 3, m.b)
		}
	}
	http = text(http, 4, r.Path())
	http = text(http, 5, r.Authority())
	http = text(http, 6, r.Scheme())
	size := int64(-1)
	if s.RequestEnded() {
		size = int64(s.BytesReceived)
	}
	http = number(http, 9, uint64(size))
	http = protowire.AppendTag(http, 10, protowire.BytesType)
	http = protowire.AppendString(http, r.Proto.String())
	switch {
	case len(body) == 0:
	case f.body.packAsBytes:
		http = field(http, 12, body)
	default:
		http = text(http, 11, body)
	}
	m.a = http

	stamp := number(m.b[:0], 1, uint64(s.StartWall/1e9))
	m.b = number(stamp, 2, uint64(s.StartWall%1e9))
	request := field(m.c[:0], 1, m.b)
	m.c = field(request, 2, http)

	attributes := m.a[:0] // http is in m.c by now
	if s.Peer.IsValid() {
		attributes = field(attributes, 1, peer(m, s.Peer.Addr().Unmap().AppendTo(m.b[:0]), s.Peer.Port()))
	}
	if local := s.Downstream().LocalAddress(); local.IsValid() {
		attributes = field(attributes, 2, peer(m, local.Addr().Unmap().AppendTo(m.b[:0]), local.Port()))
	}
	attributes = field(attributes, 4, m.c)
	for _, e := range f.extensions {
		attributes = field(attributes, 10, e)
	}
	m.a = attributes
	return field(dst, 1, attributes)
}

// peer is a Peer with a socket address. It leaves m.b to its result.
func peer(m *buffers, address []byte, port uint16) []byte {
	// address lies in m.b: each shell is written behind what it holds.
	at := len(address)
	b := text(address, 2, address)
	b = number(b, 3, uint64(port))
	socket := len(b)
	b = field(b, 1, b[at:socket]) // core.Address.socket_address
	whole := len(b)
	b = field(b, 1, b[socket:whole]) // Peer.address
	m.b = b
	return b[whole:]
}

// first tells whether no field before i has the same name.
func first(b *header.Block, i int) bool {
	id, name := b.IDAt(i), b.NameAt(i)
	if id != header.Other {
		return b.Index(id, 0) == i
	}
	return b.IndexName(name, 0) == i
}

// appendHeader is an entry of the map of headers: values of one name are joined by a comma.
func (f *Filter) appendHeader(dst []byte, b *header.Block, i int, m *buffers) []byte {
	name := b.NameAt(i)
	dst = text(dst, 1, name)
	value, id := b.ValueAt(i), b.IDAt(i)
	joined := m.c[:0]
	for at := i; ; {
		if id != header.Other {
			at = b.Index(id, at+1)
		} else {
			at = b.IndexName(name, at+1)
		}
		if at < 0 {
			break
		}
		if len(joined) == 0 {
			joined = append(joined, value...)
		}
		joined = append(append(joined, ','), b.ValueAt(at)...)
		value = joined
	}
	if cap(joined) > cap(m.c) {
		m.c = joined
	}
	m.b = text(dst, 2, value)
	return m.b
}

// next reads a field; false at the end, or where the rest is malformed.
func next(b []byte) (number protowire.Number, kind protowire.Type, value, rest []byte, ok bool) {
	number, kind, n := protowire.ConsumeTag(b)
	if n < 0 {
		return 0, 0, nil, nil, false
	}
	b = b[n:]
	if kind == protowire.BytesType {
		value, n := protowire.ConsumeBytes(b)
		if n < 0 {
			return 0, 0, nil, nil, false
		}
		return number, kind, value, b[n:], true
	}
	if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
		return 0, 0, nil, nil, false
	}
	return number, kind, b[:n], b[n:], true
}

func varint(kind protowire.Type, value []byte) uint64 {
	if kind != protowire.VarintType {
		return 0
	}
	v, _ := protowire.ConsumeVarint(value)
	return v
}

// readCheck reads a CheckResponse into a decision; false for one that is malformed. Without a status there is no permission.
func (d *decision) readCheck(b []byte) bool {
	d.reset()
	code := uint64(7) // PERMISSION_DENIED
	hasStatus := false
	var denied, ok []byte
	for len(b) > 0 {
		n, kind, value, rest, good := next(b)
		if !good {
			return false
		}
		b = rest
		switch {
		case n == 1 && kind == protowire.BytesType:
			hasStatus, code = true, 0
			for len(value) > 0 {
				n, kind, v, rest, good := next(value)
				if !good {
					return false
				}
				if n == 1 {
					code = varint(kind, v)
				}
				value = rest
			}
		case n == 2 && kind == protowire.BytesType:
			denied, ok = value, nil
		case n == 3 && kind == protowire.BytesType:
			denied, ok = nil, value
		}
	}
	d.allowed = hasStatus && code == 0
	if d.allowed {
		return d.readOK(ok)
	}
	d.status = 403
	return d.readDenied(denied)
}

func (d *decision) readOK(b []byte) bool {
	for len(b) > 0 {
		n, kind, value, rest, good := next(b)
		if !good {
			return false
		}
		b = rest
		if kind != protowire.BytesType {
			continue
		}
		switch n {
		case 2:
			good = d.readOption(value, &d.set, &d.add)
		case 5:
			d.remove.Add(header.Other, value, nil)
		case 6:
			good = d.readOption(value, &d.reply, &d.reply)
		}
		if !good {
			return false
		}
	}
	return true
}

func (d *decision) readDenied(b []byte) bool {
	for len(b) > 0 {
		n, kind, value, rest, good := next(b)
		if !good {
			return false
		}
		b = rest
		if kind != protowire.BytesType {
			continue
		}
		switch n {
		case 1: // HttpStatus
			for len(value) > 0 {
				n, kind, v, rest, good := next(value)
				if !good {
					return false
				}
				if code := varint(kind, v); n == 1 && code >= 200 && code <= 599 {
					d.status = int(code)
				}
				value = rest
			}
		case 2:
			if !d.readOption(value, &d.reply, &d.reply) {
				return false
			}
		case 3:
			d.body = append(d.body, value...)
		}
	}
	return true
}

// readOption reads a HeaderValueOption: one that is set in the place of others, or one that is added.
func (d *decision) readOption(b []byte, set, add *header.Block) bool {
	var name, content, raw []byte
	appends := false
	for len(b) > 0 {
		n, kind, value, rest, good := next(b)
		if !good {
			return false
		}
		b = rest
		switch {
		case n == 1 && kind == protowire.BytesType: // HeaderValue
			for len(value) > 0 {
				n, kind, v, rest, good := next(value)
				if !good {
					return false
				}
				if kind == protowire.BytesType {
					switch n {
					case 1:
						name = v
					case 2:
						content = v
					case 3:
						raw = v
					}
				}
				value = rest
			}
		case n == 2 && kind == protowire.BytesType: // append, a BoolValue
			for len(value) > 0 {
				n, kind, v, rest, good := next(value)
				if !good {
					return false
				}
				if n == 1 {
					appends = varint(kind, v) != 0
				}
				value = rest
			}
		}
	}
	if len(raw) > 0 {
		content = raw
	}
	if !editable(name) {
		return true // what a service may not touch is passed over
	}
	if appends {
		add.Add(header.Other, name, content)
	} else {
		set.Add(header.Other, name, content)
	}
	return true
}

// editable tells whether an authoriser may set or remove a field: not what frames a message or names its host.
func editable(name []byte) bool {
	if len(name) == 0 || name[0] == ':' {
		return false
	}
	switch header.Lookup(name) {
	case header.Host, header.ContentLength, header.TransferEncoding, header.Connection, header.KeepAlive, header.ProxyConnection,
		header.TE, header.Trailer, header.Upgrade, header.HTTP2Settings:
		return false
	}
	return true
}
