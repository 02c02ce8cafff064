package hpack

import (
	"retinue.dev/proxyd/internal/header"
)

// Decoder is the decoding half of a connection: every header section that a peer sends goes through it, in order,
// whether its stream is wanted or not. Init it first; it lives as long as its connection, on its thread.
type Decoder struct {
	table   table
	allowed int // our SETTINGS_HEADER_TABLE_SIZE
}

// Init makes the decoder ready. tableSize is the SETTINGS_HEADER_TABLE_SIZE that we announce.
func (d *Decoder) Init(tableSize int) {
	*d = Decoder{allowed: tableSize}
	d.table.max = min(tableSize, DefaultTableSize)
}

// kind is what a section is part of.
type kind uint8

const (
	request kind = iota
	response
	trailers
	discarded
)

// sink is one section on its way into a block.
type sink struct {
	kind    kind
	b       *header.Block
	req     *header.Request
	resp    *header.Response
	limits  *Limits
	fault   *Error // the first one: the rest of the section only keeps the table in step
	size    int
	fields  int
	seen    uint8 // a bit for each pseudo-header field
	regular bool  // a field without a colon has come
}

// Request decodes the header section of a request into r, which it resets. in is the whole section, CONTINUATION frames
// joined. It answers the value of Content-Length, -1 without one. After an error that is not of compression r has
// the fields before the fault, for a log.
func (d *Decoder) Request(in []byte, r *header.Request, limits *Limits) (length int64, err *Error) {
	r.Reset()
	r.Proto = header.HTTP2
	s := sink{kind: request, b: &r.Block, req: r, limits: limits}
	if err = d.decode(in, &s); err != nil {
		return -1, err
	}
	if err = finishRequest(r, s.seen); err != nil {
		return -1, err
	}
	return contentLength(&r.Block)
}

// Response is Request for a response.
func (d *Decoder) Response(in []byte, r *header.Response, limits *Limits) (length int64, err *Error) {
	r.Reset()
	r.Proto = header.HTTP2
	s := sink{kind: response, b: &r.Block, resp: r, limits: limits}
	if err = d.decode(in, &s); err != nil {
		return -1, err
	}
	if s.seen&bit(pseudoStatus) == 0 {
		return -1, errMissing
	}
	return contentLength(&r.Block)
}

// Trailers decodes a trailer section into b, which it resets.
func (d *Decoder) Trailers(in []byte, b *header.Block, limits *Limits) *Error {
	b.Reset()
	s := sink{kind: trailers, b: b, limits: limits}
	return d.decode(in, &s)
}

// Discard decodes a section of a stream that is gone, to keep the table in step. b is scratch.
func (d *Decoder) Discard(in []byte, b *header.Block) *Error {
	b.Reset()
	s := sink{kind: discarded, b: b, limits: &DefaultLimits}
	if err := d.decode(in, &s); err != nil && err.Compression {
		return err
	}
	return nil
}

// decode reads the representations of RFC 7541 6.
func (d *Decoder) decode(in []byte, s *sink) *Error {
	updates := 0
	for first := true; len(in) > 0; {
		c := in[0]
		var n uint32
		var err *Error
		switch {
		case c&0x80 != 0: // indexed field
			if n, in, err = readInt(in, 7); err != nil {
				return err
			}
			if n == 0 || int64(n) > int64(staticLen+d.table.count) {
				return errIndex
			}
			d.indexed(n, s)
		case c&0xc0 == 0x40: // literal with incremental indexing
			if in, err = d.literal(in, 6, true, s); err != nil {
				return err
			}
		case c&0xe0 == 0x20: // table size update: before the first field only, two at most (RFC 7541 4.2)
			if updates++; !first || updates > 2 {
				return errTableSize
			}
			if n, in, err = readInt(in, 5); err != nil {
				return err
			}
			if int(n) > d.allowed {
				return errTableSize
			}
			d.table.setMax(int(n))
			continue
		default: // literal without indexing, or never indexed
			if in, err = d.literal(in, 4, false, s); err != nil {
				return err
			}
		}
		first = false
	}
	return s.fault
}

// indexed emits a whole entry.
func (d *Decoder) indexed(n uint32, s *sink) {
	if n <= staticLen {
		e := &staticTable[n]
		s.emit(e.id, nil, e.value, false)
		return
	}
	e := d.table.at(int(n) - staticLen - 1)
	s.emit(e.id, d.table.name(e), d.table.value(e), e.bad)
}

// literal reads name and value. Strings that are not Huffman-coded stay where they are; others are decoded behind
// the bytes of the block, where most of them will stay.
func (d *Decoder) literal(in []byte, prefix uint8, insert bool, s *sink) ([]byte, *Error) {
	n, in, err := readInt(in, prefix)
	if err != nil {
		return nil, err
	}
	arena := s.b.Arena()
	tail := arena
	var id header.ID
	var name []byte
	bad := false
	switch {
	case n == 0:
		if name, tail, in, err = readString(in, tail); err != nil {
			return nil, err
		}
		id, bad = nameID(name)
	case int64(n) > int64(staticLen+d.table.count):
		return nil, errIndex
	case n <= staticLen:
		id = staticTable[n].id
	default:
		e := d.table.at(int(n) - staticLen - 1)
		id, name = e.id, d.table.name(e)
		bad = e.bad && !validName(id, name)
	}
	if id == header.Other {
		// The value is decoded behind the name, wherever that came from: emit writes both at the arena's end.
		tail = append(tail[:len(arena)], name...)
		name = tail[len(arena):]
	}
	value, tail, in, err := readString(in, tail)
	if err != nil {
		return nil, err
	}
	bad = bad || !validValue(value)
	// What was decoded stays readable behind the arena's end until the field is copied over it.
	s.b.Grown(tail[:len(arena)])
	if insert && d.table.insert(id, name, value, bad) {
		// The insertion may have moved a name that came from the table.
		e := d.table.at(0)
		name, value = d.table.name(e), d.table.value(e)
	}
	s.emit(id, name, value, bad)
	return in, nil
}

// readInt reads an integer of RFC 7541 5.1 with a prefix of n bits. None that is useful needs more than 31 bits.
func readInt(in []byte, n uint8) (uint32, []byte, *Error) {
	limit := uint32(1)<<n - 1
	v := uint32(in[0]) & limit
	in = in[1:]
	if v < limit {
		return v, in, nil
	}
	for shift := 0; shift <= 28; shift += 7 {
		if len(in) == 0 {
			return 0, nil, errTruncated
		}
		c := in[0]
		in = in[1:]
		if shift == 28 && c&0x7f > 7 {
			return 0, nil, errInteger
		}
		if v += uint32(c&0x7f) << shift; v > 1<<31-1 {
			return 0, nil, errInteger
		}
		if c&0x80 == 0 {
			return v, in, nil
		}
	}
	return 0, nil, errInteger
}

// readString reads a string literal of RFC 7541 5.2; one in Huffman code is decoded to the end of tail.
func readString(in, tail []byte) (s, newTail, rest []byte, err *Error) {
	if len(in) == 0 {
		return nil, nil, nil, errTruncated
	}
	huffman := in[0]&0x80 != 0
	n, in, err := readInt(in, 7)
	if err != nil {
		return nil, nil, nil, err
	}
	if int64(n) > int64(len(in)) {
		return nil, nil, nil, errTruncated
	}
	s, rest = in[:n], in[n:]
	if !huffman {
		return s, tail, rest, nil
	}
	start := len(tail)
	tail, ok := appendHuffmanDecoded(tail, s)
	if !ok {
		return nil, nil, nil, errHuffman
	}
	return tail[start:], tail, rest, nil
}

// nameID finds the number of a literal name. bad tells that a message must not have the name.
func nameID(name []byte) (id header.ID, bad bool) {
	if len(name) > 0 && name[0] == ':' {
		id, known := lookupPseudo(name)
		return id, !known
	}
	if id = header.Lookup(name); id != header.Other {
		if string(id.Lower()) == string(name) {
			return id, false
		}
		return header.Other, true // known, but for capitals
	}
	return id, !validName(id, name)
}

// validName tells whether a name is a token without capitals (RFC 9113 8.2.1).
func validName(id header.ID, name []byte) bool {
	if id != header.Other {
		return true
	}
	for _, c := range name {
		if 'A' <= c && c <= 'Z' {
			return false
		}
	}
	return header.ValidName(name)
}

// validValue is stricter than RFC 9113 8.2.1 by the other control characters, which HTTP/1 forbids too.
func validValue(value []byte) bool {
	if n := len(value); n > 0 && (isSpace(value[0]) || isSpace(value[n-1])) {
		return false
	}
	return header.ValidValue(value)
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' }
