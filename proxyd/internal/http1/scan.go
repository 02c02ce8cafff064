package http1

import (
	"bytes"
	"encoding/binary"
	"math/bits"

	"retinue.dev/proxyd/internal/header"
)

// scanner walks over the lines of one head or trailer section. data always begins at the same byte of the
// connection, with more bytes behind the old ones at each call.
//
// A line is parsed straight away, in the hope that all of it is there. When it is not, the scanner remembers how
// far data went, and looks at the line again only after a line feed has come: every byte is looked at a bounded
// number of times, however finely a sender cuts.
type scanner struct {
	base      int // where the head begins: behind a leading CRLF
	pos       int // the first byte of the line to parse next
	scanned   int // no LF in data[pos:scanned]; not above pos when the line was not tried
	committed int // data[base:committed] is in the block's arena
	lowered   int // fields whose names are final

	host, hostLen int
	hosts         int
}

func (s *scanner) reset() { *s = scanner{} }

// incomplete tells whether the line at pos still has no line feed, when it has been tried before.
func (s *scanner) incomplete(data []byte) bool {
	if s.scanned <= s.pos {
		return false
	}
	if bytes.IndexByte(data[s.scanned:], '\n') < 0 {
		s.scanned = len(data)
		return true
	}
	return false
}

// commit moves the lines parsed so far into the block, so that a block is consistent whenever a parser returns.
func (s *scanner) commit(data []byte, b *header.Block) {
	if s.pos > s.committed {
		b.Commit(data[max(s.committed, s.base):s.pos], s.lowered)
		s.committed, s.lowered = s.pos, b.Len()
	}
}

// fields parses field lines up to and with the empty line. It answers true when that line was reached. Host fields
// are taken out: the host of a request lives in its authority.
func (s *scanner) fields(data []byte, b *header.Block, limits *Limits) (bool, fault) {
	if s.incomplete(data) {
		return false, s.bound(data, limits)
	}
	pos := s.pos
	for {
		if pos+1 >= len(data) {
			if pos < len(data) && data[pos] != '\r' && !header.IsToken(data[pos]) {
				return false, nameFault(data[pos:])
			}
			if pos < len(data) {
				// A lone byte is looked at again: what follows a CR must be seen at once.
				return false, s.bound(data, limits)
			}
			break
		}
		if data[pos] == '\r' {
			if data[pos+1] != '\n' {
				return false, badLineEnd
			}
			s.pos = pos + 2
			if s.pos-s.base > limits.Bytes {
				return false, headTooLarge
			}
			return true, ok
		}
		colon := colonOf(data, pos)
		if colon < 0 {
			if bytes.IndexByte(data[pos:], '\n') >= 0 {
				return false, nameFault(data[pos:])
			}
			break
		}
		name := data[pos:colon]
		id := header.Lookup(name)
		if id == header.Other && !header.ValidName(name) {
			return false, nameFault(name)
		}
		value := colon + 1
		for value < len(data) && (data[value] == ' ' || data[value] == '\t') {
			value++
		}
		end := header.ValueEnd(data, value)
		if end+1 >= len(data) {
			if end < len(data) && data[end] != '\r' {
				return false, valueFault(data[end])
			}
			break
		}
		if data[end] != '\r' || data[end+1] != '\n' {
			return false, valueFault(data[end])
		}
		next := end + 2
		if next-s.base > limits.Bytes {
			return false, headTooLarge
		}
		for end > value && (data[end-1] == ' ' || data[end-1] == '\t') {
			end--
		}
		if b.Len()+s.hosts >= limits.Fields {
			return false, tooManyFields
		}
		if id == header.Host {
			s.host, s.hostLen = value, end-value
			s.hosts++
		} else if !b.AddSpan(id, pos-s.base, len(name), value-s.base, end-value) {
			return false, tooManyFields
		}
		pos = next
		s.pos = pos
	}
	s.scanned = len(data)
	return false, s.bound(data, limits)
}

// bound holds a head that is not complete to its limit.
func (s *scanner) bound(data []byte, limits *Limits) fault {
	if len(data)-s.base > limits.Bytes {
		return headTooLarge
	}
	return ok
}

// colonOf is the offset of the first colon at or after i, -1 when there is none.
func colonOf(p []byte, i int) int {
	const ones = 0x0101010101010101
	for ; i+8 <= len(p); i += 8 {
		x := binary.LittleEndian.Uint64(p[i:]) ^ ':'*ones
		if flags := (x - ones) &^ x & (0x80 * ones); flags != 0 {
			return i + bits.TrailingZeros64(flags)>>3
		}
	}
	for ; i < len(p); i++ {
		if p[i] == ':' {
			return i
		}
	}
	return -1
}

// nameFault says what is wrong with a line whose name is not a token.
func nameFault(line []byte) fault {
	if len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
		return obsFold
	}
	for _, c := range line {
		if c == '\n' {
			return badLineEnd
		}
		if !header.IsToken(c) {
			break
		}
	}
	return badName
}

func valueFault(c byte) fault {
	if c == '\n' || c == '\r' {
		return badLineEnd
	}
	return badValue
}
