package header

import "bytes"

// A codec that parses a whole head first records spans as offsets into the bytes in front of it, and then hands
// those bytes over in one copy. Between AddSpan and Commit nothing else may be called.

// AddSpan records a field whose name and value lie at offsets of the bytes that Commit will be given. The codec has
// validated both. id is what Lookup says of the name. It answers false when the block is full.
func (b *Block) AddSpan(id ID, name, nameLen, value, valueLen int) bool {
	if nameLen > maxNameLen || len(b.fields) >= MaxFields {
		return false
	}
	if b.fields == nil {
		b.fields = make([]field, 0, 32)
	}
	b.fields = append(b.fields, field{
		id: id, name: uint32(name), nameLen: uint16(nameLen),
		value: uint32(value), length: uint32(valueLen),
	})
	b.known[id>>6] |= 1 << (id & 63)
	b.size += nameLen + valueLen
	return true
}

// Commit appends raw, which holds the spans recorded from field number `from` on, to the arena. A head that comes in
// pieces is committed piece by piece: offsets count from the first byte of the first one. Names that are kept as
// bytes become lower case.
func (b *Block) Commit(raw []byte, from int) {
	if cap(b.arena)-len(b.arena) < len(raw) {
		// Room for edits too: a proxy adds a few fields to every message.
		n := len(b.arena) + len(raw)
		grown := make([]byte, len(b.arena), max(1024, n+n/4+256))
		copy(grown, b.arena)
		b.arena = grown
	}
	b.arena = append(b.arena, raw...)
	if !b.Has(Other) {
		return
	}
	for i := from; i < len(b.fields); i++ {
		if f := &b.fields[i]; f.id == Other {
			lowerInPlace(b.arena[f.name : f.name+uint32(f.nameLen)])
		}
	}
}

// Arena is the block's bytes, for a codec that decodes straight into them: it appends and gives the result to
// Grown, and records what it wrote by AddSpan.
func (b *Block) Arena() []byte {
	if b.arena == nil {
		b.arena = make([]byte, 0, 1024)
	}
	return b.arena
}

// Grown takes back the arena with what was appended to it.
func (b *Block) Grown(arena []byte) { b.arena = arena }

// AppendLower appends name in lower case.
func AppendLower(dst, name []byte) []byte {
	start := len(dst)
	dst = append(dst, name...)
	lowerInPlace(dst[start:])
	return dst
}

func lowerInPlace(p []byte) {
	for i, c := range p {
		if 'A' <= c && c <= 'Z' {
			p[i] = c | 0x20
		}
	}
}

// equalLower tells whether name in lower case equals lower; their lengths need not agree.
func equalLower(lower, name []byte) bool {
	if len(lower) != len(name) {
		return false
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if lower[i] != c {
			return false
		}
	}
	return true
}

// EqualFold tells whether two byte strings are equal when the letters A to Z are taken as lower case.
func EqualFold(a []byte, lower string) bool {
	return equalLower(stringBytes(lower), a)
}

// NextToken cuts the first element from a comma-separated list and trims it; more is false when nothing was left.
// Empty elements are skipped (RFC 9110 5.6.1).
func NextToken(list []byte) (token, rest []byte, more bool) {
	for len(list) > 0 {
		if i := bytes.IndexByte(list, ','); i >= 0 {
			token, list = list[:i], list[i+1:]
		} else {
			token, list = list, nil
		}
		if token = TrimSpace(token); len(token) > 0 {
			return token, list, true
		}
	}
	return nil, nil, false
}

// TrimSpace removes spaces and tabs around a value.
func TrimSpace(p []byte) []byte {
	for len(p) > 0 && (p[0] == ' ' || p[0] == '\t') {
		p = p[1:]
	}
	for len(p) > 0 && (p[len(p)-1] == ' ' || p[len(p)-1] == '\t') {
		p = p[:len(p)-1]
	}
	return p
}

// HasToken tells whether any field of the name lists the token, which is given in lower case.
func (b *Block) HasToken(id ID, token string) bool {
	for i := b.Index(id, 0); i >= 0; i = b.Index(id, i+1) {
		list := b.ValueAt(i)
		for {
			t, rest, more := NextToken(list)
			if !more {
				break
			}
			if EqualFold(t, token) {
				return true
			}
			list = rest
		}
	}
	return false
}

// Mask is a set of well-known names.
type Mask [2]uint64

// MaskOf makes a set.
func MaskOf(ids ...ID) (m Mask) {
	for _, id := range ids {
		m[id>>6] |= 1 << (id & 63)
	}
	return m
}

// Has tells whether id is in the set.
func (m *Mask) Has(id ID) bool { return m[id>>6]>>(id&63)&1 != 0 }

// HasAny tells whether a field of any name of the set is present.
func (b *Block) HasAny(m *Mask) bool { return b.known[0]&m[0]|b.known[1]&m[1] != 0 }

// RemoveAny removes every field whose name is in the set.
func (b *Block) RemoveAny(m *Mask) {
	if !b.HasAny(m) {
		return
	}
	kept := b.fields[:0]
	for _, f := range b.fields {
		if m.Has(f.id) {
			b.size -= len(lowerNames[f.id]) + int(f.length)
			continue
		}
		kept = append(kept, f)
	}
	b.fields = kept
	b.known[0] &^= m[0]
	b.known[1] &^= m[1]
}

// AppendLines appends the fields as HTTP/1 lines, leaving out those in skip.
func (b *Block) AppendLines(dst []byte, skip *Mask) []byte {
	for i := range b.fields {
		f := &b.fields[i]
		switch {
		case skip.Has(f.id):
			continue
		case f.id != Other:
			dst = append(dst, linePrefix[f.id]...)
		default:
			dst = appendTitle(dst, b.arena[f.name:f.name+uint32(f.nameLen)])
			dst = append(dst, ": "...)
		}
		dst = append(dst, b.arena[f.value:f.value+f.length]...)
		dst = append(dst, "\r\n"...)
	}
	return dst
}

// appendTitle appends a lower-case name with the first letter of each word between hyphens as a capital.
func appendTitle(dst, name []byte) []byte {
	start := len(dst)
	dst = append(dst, name...)
	capital := true
	for i := start; i < len(dst); i++ {
		c := dst[i]
		if capital && 'a' <= c && c <= 'z' {
			dst[i] = c - 0x20
		}
		capital = c == '-'
	}
	return dst
}
