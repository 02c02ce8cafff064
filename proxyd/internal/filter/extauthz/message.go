package extauthz

import (
	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/callout/message"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
)

// The messages of envoy.service.auth.v3, by hand: see package message.

// Fields of OkHttpResponse that edit the query.
const (
	okSetParameter    = 7
	okRemoveParameter = 8
)

// buffers are a worker's scratch: nested messages are written from the inside out.
type buffers struct{ a, b, c []byte }

// appendCheck appends a CheckRequest.
func (f *Filter) appendCheck(dst []byte, s *stream.Stream, body []byte, m *buffers) []byte {
	r := &s.Request
	http := message.Text(m.a[:0], 1, r.Get(header.XRequestID))
	http = message.Text(http, 2, r.Method())
	for i := range r.Len() {
		if f.sends(r.NameAt(i)) && first(&r.Block, i) {
			http = message.Field(http, 3, f.appendHeader(m.b[:0], &r.Block, i, m))
		}
	}
	for _, pseudo := range [...]struct {
		name  string
		value []byte
	}{{":method", r.Method()}, {":path", r.Path()}, {":authority", r.Authority()}, {":scheme", r.Scheme()}} {
		if len(pseudo.value) > 0 {
			entry := protowire.AppendTag(m.b[:0], 1, protowire.BytesType)
			entry = protowire.AppendString(entry, pseudo.name)
			m.b = message.Text(entry, 2, pseudo.value)
			http = message.Field(http, 3, m.b)
		}
	}
	http = message.Text(http, 4, r.Path())
	http = message.Text(http, 5, r.Authority())
	http = message.Text(http, 6, r.Scheme())
	size := int64(-1)
	if s.RequestEnded() {
		size = int64(s.BytesReceived)
	}
	http = message.Number(http, 9, uint64(size))
	http = protowire.AppendTag(http, 10, protowire.BytesType)
	http = protowire.AppendString(http, r.Proto.String())
	switch {
	case len(body) == 0:
	case f.body.packAsBytes:
		http = message.Field(http, 12, body)
	default:
		http = message.Text(http, 11, body)
	}
	m.a = http

	stamp := message.Number(m.b[:0], 1, uint64(s.StartWall/1e9))
	m.b = message.Number(stamp, 2, uint64(s.StartWall%1e9))
	request := message.Field(m.c[:0], 1, m.b)
	m.c = message.Field(request, 2, http)

	attributes := m.a[:0] // http is in m.c by now
	theirs, ours := f.names(s)
	if s.Peer.IsValid() {
		attributes = message.Field(attributes, 1, peer(m, s.Peer.Addr().Unmap().AppendTo(m.b[:0]), s.Peer.Port(), theirs))
	}
	if local := s.Downstream().LocalAddress(); local.IsValid() {
		attributes = message.Field(attributes, 2, peer(m, local.Addr().Unmap().AppendTo(m.b[:0]), local.Port(), ours))
	}
	attributes = message.Field(attributes, 4, m.c)
	for _, e := range f.extensions {
		attributes = message.Field(attributes, 10, e)
	}
	m.a = attributes
	return message.Field(dst, 1, attributes)
}

// peer is a Peer with a socket address and what more there is of it, encoded. It leaves m.b to its result.
func peer(m *buffers, address []byte, port uint16, more []byte) []byte {
	// address lies in m.b: each shell is written behind what it holds.
	at := len(address)
	b := message.Text(address, 2, address)
	b = message.Number(b, 3, uint64(port))
	socket := len(b)
	b = message.Field(b, 1, b[at:socket]) // core.Address.socket_address
	whole := len(b)
	b = append(message.Field(b, 1, b[socket:whole]), more...) // Peer.address
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
	dst = message.Text(dst, 1, name)
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
	m.b = message.Text(dst, 2, value)
	return m.b
}

// readCheck reads a CheckResponse into a decision; false for one that is malformed. Without a status there is no permission.
func (d *decision) readCheck(b []byte) bool {
	d.reset()
	code := uint64(7) // PERMISSION_DENIED
	hasStatus := false
	var denied, ok []byte
	for len(b) > 0 {
		n, kind, value, rest, good := message.Next(b)
		if !good {
			return false
		}
		b = rest
		switch {
		case n == 1 && kind == protowire.BytesType:
			hasStatus, code = true, 0
			for len(value) > 0 {
				n, kind, v, rest, good := message.Next(value)
				if !good {
					return false
				}
				if n == 1 {
					code = message.Varint(kind, v)
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
	parameters := 0
	for len(b) > 0 {
		n, kind, value, rest, good := message.Next(b)
		if !good {
			return false
		}
		b = rest
		if kind != protowire.BytesType {
			continue
		}
		switch n {
		case 2:
			good = readOption(value, &d.request)
		case 5:
			d.remove.Add(header.Other, value, nil)
		case 6:
			good = readOption(value, &d.reply)
		case okSetParameter, okRemoveParameter:
			if parameters++; parameters > maxParameters {
				return false
			}
			if _, _, ok := parameter(value); ok || n == okRemoveParameter && len(value) > 0 {
				d.query = message.Field(d.query, n, value)
			}
		}
		if !good {
			return false
		}
	}
	return true
}

// parameter reads a QueryParameter.
func parameter(b []byte) (name, value []byte, ok bool) {
	for len(b) > 0 {
		n, kind, v, rest, good := message.Next(b)
		if !good {
			return nil, nil, false
		}
		b = rest
		switch {
		case kind != protowire.BytesType:
		case n == 1:
			name = v
		case n == 2:
			value = v
		}
	}
	return name, value, len(name) > 0
}

func (d *decision) readDenied(b []byte) bool {
	for len(b) > 0 {
		n, kind, value, rest, good := message.Next(b)
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
				n, kind, v, rest, good := message.Next(value)
				if !good {
					return false
				}
				if code := message.Varint(kind, v); n == 1 && code >= 200 && code <= 599 {
					d.status = int(code)
				}
				value = rest
			}
		case 2:
			if !readOption(value, &d.reply) {
				return false
			}
		case 3:
			d.body = append(d.body, value...)
		}
	}
	return true
}

// actions are what the numbers of append_action say. Number 0 cannot be told from none, which is to replace in this API.
var actions = [...]how{replaces, fillsIn, replaces, replacesOnly}

// readOption reads a HeaderValueOption.
func readOption(b []byte, to *edits) bool {
	var name, content []byte
	what, decided := replaces, false
	for len(b) > 0 {
		n, kind, value, rest, good := message.Next(b)
		if !good {
			return false
		}
		b = rest
		switch {
		case n == 1 && kind == protowire.BytesType:
			if name, content, good = message.HeaderValue(value); !good {
				return false
			}
		case n == 2 && kind == protowire.BytesType: // append, a BoolValue, which is older and counts more
			what, decided = replaces, true
			for len(value) > 0 {
				n, kind, v, rest, good := message.Next(value)
				if !good {
					return false
				}
				if n == 1 && message.Varint(kind, v) != 0 {
					what = joins
				}
				value = rest
			}
		case n == 3 && !decided:
			if what = replaces; message.Varint(kind, value) < uint64(len(actions)) {
				what = actions[message.Varint(kind, value)]
			}
		}
	}
	if message.Editable(name) { // what a service may not touch is passed over
		to.add(header.Other, name, content, what)
	}
	return true
}
