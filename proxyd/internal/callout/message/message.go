// Package message writes and reads protobuf messages of services that filters ask, field by field: the generated types of
// Envoy's API would bring the whole of it, and allocate. It is pure; what Next answers points into what it was given.
package message

import (
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/header"
)

// Field appends a field of bytes: a nested message, or a string that is known to be UTF-8.
func Field(b []byte, n protowire.Number, value []byte) []byte {
	b = protowire.AppendTag(b, n, protowire.BytesType)
	return protowire.AppendBytes(b, value)
}

// Text is Field for a string that came from outside: what is no UTF-8 becomes '!', as with Envoy. An empty one is left out.
func Text(b []byte, n protowire.Number, value []byte) []byte {
	if len(value) == 0 {
		return b
	}
	b = protowire.AppendTag(b, n, protowire.BytesType)
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

// Number appends a field that is an integer.
func Number(b []byte, n protowire.Number, value uint64) []byte {
	b = protowire.AppendTag(b, n, protowire.VarintType)
	return protowire.AppendVarint(b, value)
}

// Next reads a field: value is the content of one of bytes, else its encoding. ok is false where the rest is malformed.
func Next(b []byte) (n protowire.Number, kind protowire.Type, value, rest []byte, ok bool) {
	n, kind, size := protowire.ConsumeTag(b)
	if size < 0 {
		return 0, 0, nil, nil, false
	}
	b = b[size:]
	if kind == protowire.BytesType {
		value, size := protowire.ConsumeBytes(b)
		if size < 0 {
			return 0, 0, nil, nil, false
		}
		return n, kind, value, b[size:], true
	}
	if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
		return 0, 0, nil, nil, false
	}
	return n, kind, b[:size], b[size:], true
}

// Varint is the integer of a field that Next read; 0 for a field of another type.
func Varint(kind protowire.Type, value []byte) uint64 {
	if kind != protowire.VarintType {
		return 0
	}
	v, _ := protowire.ConsumeVarint(value)
	return v
}

// HeaderValue reads an envoy.config.core.v3.HeaderValue; raw_value goes before value.
func HeaderValue(b []byte) (name, value []byte, ok bool) {
	var raw []byte
	for len(b) > 0 {
		n, kind, v, rest, good := Next(b)
		if !good {
			return nil, nil, false
		}
		if b = rest; kind != protowire.BytesType {
			continue
		}
		switch n {
		case 1:
			name = v
		case 2:
			value = v
		case 3:
			raw = v
		}
	}
	if len(raw) > 0 {
		value = raw
	}
	return name, value, true
}

// Editable tells whether a service may set or remove a field of a request or response: not what frames a message or names its
// host.
func Editable(name []byte) bool {
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
