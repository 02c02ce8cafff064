package jwt

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// Bounds of the JSON of a token. Names of one object are compared with each other, so their number is bounded apart.
const (
	maxValues  = 512
	maxMembers = 64 // of one object
	maxDepth   = 16
)

// kind is the type of a JSON value.
type kind uint8

const (
	null kind = iota
	boolean
	number
	text
	array
	object
)

// value is one value. Its bytes lie in the document.
type value struct {
	kind       kind
	name       span  // of a member, decoded
	text       span  // decoded, of a string; else as it is written
	first      int32 // of what it holds; 0: nothing
	next       int32 // in what holds it; 0: the last
	start, end int32 // in the source
}

type span struct{ from, to int32 }

// document is a JSON text (RFC 8259), read strictly: an object; every name once in its object, since two readers may take different
// ones; UTF-8; no half of a surrogate pair. It is used again for the next one, and its values are valid until then.
type document struct {
	values  []value
	decoded []byte // names and strings
	source  []byte
	at      int
}

// parse reads a text, which stays the caller's; false for what is none.
func (d *document) parse(source []byte) bool {
	d.values, d.decoded, d.source, d.at = d.values[:0], d.decoded[:0], source, 0
	d.space()
	if d.at >= len(source) || source[d.at] != '{' {
		return false
	}
	if _, ok := d.value(0); !ok {
		return false
	}
	d.space()
	return d.at == len(source)
}

// text is the decoded text of a string, and what any other value is as it is written.
func (d *document) text(v *value) []byte {
	if v.kind == text {
		return d.decoded[v.text.from:v.text.to]
	}
	return d.source[v.start:v.end]
}

// root is the object that a document is.
func (d *document) root() *value { return &d.values[0] }

// member finds a member of an object; nil where there is none.
func (d *document) member(of *value, name []byte) *value {
	if of.kind != object {
		return nil
	}
	for i := of.first; i != 0; i = d.values[i].next {
		if v := &d.values[i]; bytes.Equal(d.decoded[v.name.from:v.name.to], name) {
			return v
		}
	}
	return nil
}

func (d *document) space() {
	for d.at < len(d.source) {
		switch d.source[d.at] {
		case ' ', '\t', '\r', '\n':
			d.at++
		default:
			return
		}
	}
}

// take tells whether the next byte is c, and goes beyond it.
func (d *document) take(c byte) bool {
	if d.at < len(d.source) && d.source[d.at] == c {
		d.at++
		return true
	}
	return false
}

func (d *document) value(depth int) (int32, bool) {
	if len(d.values) == maxValues || depth > maxDepth || d.at >= len(d.source) {
		return 0, false
	}
	index := int32(len(d.values))
	d.values = append(d.values, value{start: int32(d.at)})
	v, ok := value{start: int32(d.at)}, false
	switch c := d.source[d.at]; {
	case c == '{':
		v.kind = object
		v.first, ok = d.object(depth)
	case c == '[':
		v.kind = array
		v.first, ok = d.array(depth)
	case c == '"':
		v.kind = text
		v.text, ok = d.str()
	case c == '-' || c >= '0' && c <= '9':
		v.kind = number
		ok = d.number()
	case c == 't':
		v.kind = boolean
		ok = d.word("true")
	case c == 'f':
		v.kind = boolean
		ok = d.word("false")
	default:
		ok = d.word("null")
	}
	v.end = int32(d.at)
	d.values[index] = v
	return index, ok
}

func (d *document) word(w string) bool {
	if len(d.source)-d.at < len(w) || string(d.source[d.at:d.at+len(w)]) != w {
		return false
	}
	d.at += len(w)
	return true
}

func (d *document) object(depth int) (first int32, ok bool) {
	d.at++
	d.space()
	if d.take('}') {
		return 0, true
	}
	last, members := int32(0), 0
	for {
		if d.space(); d.at >= len(d.source) || d.source[d.at] != '"' {
			return 0, false
		}
		name, ok := d.str()
		if !ok {
			return 0, false
		}
		for i := first; i != 0; i = d.values[i].next {
			if other := d.values[i].name; bytes.Equal(d.decoded[other.from:other.to], d.decoded[name.from:name.to]) {
				return 0, false
			}
		}
		if members++; members > maxMembers {
			return 0, false
		}
		if d.space(); !d.take(':') {
			return 0, false
		}
		d.space()
		index, ok := d.value(depth + 1)
		if !ok {
			return 0, false
		}
		d.values[index].name = name
		if first == 0 {
			first = index
		} else {
			d.values[last].next = index
		}
		last = index
		if d.space(); d.take('}') {
			return first, true
		}
		if !d.take(',') {
			return 0, false
		}
	}
}

func (d *document) array(depth int) (first int32, ok bool) {
	d.at++
	d.space()
	if d.take(']') {
		return 0, true
	}
	for last := int32(0); ; {
		d.space()
		index, ok := d.value(depth + 1)
		if !ok {
			return 0, false
		}
		if first == 0 {
			first = index
		} else {
			d.values[last].next = index
		}
		last = index
		if d.space(); d.take(']') {
			return first, true
		}
		if !d.take(',') {
			return 0, false
		}
	}
}

func (d *document) digits() bool {
	from := d.at
	for d.at < len(d.source) && d.source[d.at] >= '0' && d.source[d.at] <= '9' {
		d.at++
	}
	return d.at > from
}

func (d *document) number() bool {
	d.take('-')
	if !d.take('0') && !d.digits() {
		return false
	}
	if d.take('.') && !d.digits() {
		return false
	}
	if d.take('e') || d.take('E') {
		if !d.take('+') {
			d.take('-')
		}
		return d.digits()
	}
	return true
}

// str reads a string, at its quote.
func (d *document) str() (s span, ok bool) {
	d.at++
	s.from = int32(len(d.decoded))
	for d.at < len(d.source) {
		switch c := d.source[d.at]; {
		case c == '"':
			d.at++
			s.to = int32(len(d.decoded))
			return s, utf8.Valid(d.decoded[s.from:])
		case c < ' ':
			return s, false
		case c == '\\':
			if !d.escape() {
				return s, false
			}
		default:
			d.decoded = append(d.decoded, c)
			d.at++
		}
	}
	return s, false
}

func (d *document) escape() bool {
	d.at++
	if d.at >= len(d.source) {
		return false
	}
	c := d.source[d.at]
	d.at++
	switch c {
	case '"', '\\', '/':
	case 'b':
		c = '\b'
	case 'f':
		c = '\f'
	case 'n':
		c = '\n'
	case 'r':
		c = '\r'
	case 't':
		c = '\t'
	case 'u':
		r, ok := d.unit()
		if utf16.IsSurrogate(r) {
			if !ok || !d.take('\\') || !d.take('u') {
				return false
			}
			low, good := d.unit()
			if r, ok = utf16.DecodeRune(r, low), good; r == utf8.RuneError {
				return false
			}
		}
		d.decoded = utf8.AppendRune(d.decoded, r)
		return ok
	default:
		return false
	}
	d.decoded = append(d.decoded, c)
	return true
}

// unit reads the four digits of \u.
func (d *document) unit() (r rune, ok bool) {
	if len(d.source)-d.at < 4 {
		return 0, false
	}
	for _, c := range d.source[d.at : d.at+4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	d.at += 4
	return r, true
}
