package accesslog

import (
	"encoding/binary"
	"unicode/utf8"
	"unsafe"
)

const hexDigits = "0123456789abcdef"

// texted is escaped for a string.
func (o *op) texted(dst []byte, value string, limit int) []byte {
	if value == "" {
		return o.none(dst)
	}
	return o.escaped(dst, unsafe.Slice(unsafe.StringData(value), len(value)), limit)
}

// escaped writes bytes that came from outside in the operator's mode, until dst has limit bytes.
func (o *op) escaped(dst, value []byte, limit int) []byte {
	switch o.mode {
	case modeValue:
		dst = append(dst, '"')
		dst = appendJSON(dst, value, limit)
		return append(dst, '"')
	case modeString:
		return appendJSON(dst, value, limit)
	case modeRaw:
		if room := limit - len(dst); len(value) > room {
			value = value[:max(room, 0)]
		}
		return append(dst, value...)
	}
	return appendText(dst, value, limit)
}

// plainText and plainJSON tell which bytes are written as they are.
var plainText, plainJSON = tables()

func tables() (text, json [256]bool) {
	for c := ' '; c < utf8.RuneSelf; c++ {
		text[c] = c != '\\' && c != '"' && c != 0x7f
		json[c] = c != '\\' && c != '"' && c != 0x7f
	}
	return text, json
}

// appendText writes value so that it can neither begin a new line nor drive a terminal, and cannot end a quoted part of the
// format: control characters, quotes, backslashes and bytes above ASCII become \xNN, as nginx has them.
func appendText(dst, value []byte, limit int) []byte {
	for len(value) > 0 {
		n := plain(value, &plainText)
		if room := limit - len(dst); n > room {
			return append(dst, value[:max(room, 0)]...)
		}
		dst = append(dst, value[:n]...)
		if value = value[n:]; len(value) == 0 {
			break
		}
		if limit-len(dst) < 4 {
			break
		}
		c := value[0]
		dst = append(dst, '\\', 'x', hexDigits[c>>4], hexDigits[c&15])
		value = value[1:]
	}
	return dst
}

// appendJSON writes value as the inside of a JSON string (RFC 8259). Valid UTF-8 stays, other bytes become U+FFFD.
func appendJSON(dst, value []byte, limit int) []byte {
	for len(value) > 0 {
		n := plain(value, &plainJSON)
		if room := limit - len(dst); n > room {
			return append(dst, value[:max(room, 0)]...)
		}
		dst = append(dst, value[:n]...)
		if value = value[n:]; len(value) == 0 {
			break
		}
		if limit-len(dst) < 6 {
			break
		}
		c := value[0]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < utf8.RuneSelf:
			dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		default:
			r, size := utf8.DecodeRune(value)
			switch {
			case r == utf8.RuneError && size == 1:
				dst = append(dst, "\uFFFD"...)
			case r == '\u2028' || r == '\u2029' || r >= 0x80 && r < 0xa0: // line ends and controls of some readers
				dst = append(dst, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
			default:
				dst = append(dst, value[:size]...)
			}
			value = value[size:]
			continue
		}
		value = value[1:]
	}
	return dst
}

// plain is how many bytes at the start of value need no escaping: eight at a time, until a word holds one that does.
func plain(value []byte, table *[256]bool) int {
	at := 0
	for ; at+8 <= len(value); at += 8 {
		word := binary.LittleEndian.Uint64(value[at:])
		if special(word) {
			break
		}
	}
	for ; at < len(value); at++ {
		if !table[value[at]] {
			return at
		}
	}
	return at
}

// special tells whether one of the eight bytes is a control character, a quote, a backslash, DEL or above ASCII. It may say so of
// a word without one, never the other way round.
func special(word uint64) bool {
	const (
		each = 0x0101010101010101
		high = 0x80 * each
	)
	quote, slash, del := word^'"'*each, word^'\\'*each, word^0x7f*each
	return (word|(word-' '*each)|(quote-each)|(slash-each)|(del-each))&high != 0
}
