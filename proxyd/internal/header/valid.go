package header

import (
	"encoding/binary"
	"math/bits"
	"unsafe"
)

// classes of bytes, by bit.
const (
	classToken  = 1 << iota // RFC 9110 5.6.2 tchar
	classTarget             // request target: visible ASCII without '#'
	classHost               // uri-host of RFC 3986 without ',': see ValidAuthority
	classHex
	classDigit
)

var classes = classTable()

func classTable() (t [256]uint8) {
	set := func(class uint8, chars string) {
		for i := range len(chars) {
			t[chars[i]] |= class
		}
	}
	const digits = "0123456789"
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	set(classToken, digits+letters+"!#$%&'*+-.^_`|~")
	set(classHost, digits+letters+"-._~%!$&'()*+;=")
	set(classHex, digits+"abcdefABCDEF")
	set(classDigit, digits)
	for c := 0x21; c < 0x7f; c++ {
		if c != '#' {
			t[c] |= classTarget
		}
	}
	return t
}

func all(p []byte, class uint8) bool {
	for _, c := range p {
		if classes[c]&class == 0 {
			return false
		}
	}
	return true
}

// ValidName tells whether a field name or a method is a token.
func ValidName(name []byte) bool { return len(name) > 0 && all(name, classToken) }

// IsToken tells whether c may be part of a token.
func IsToken(c byte) bool { return classes[c]&classToken != 0 }

// ValidTarget tells whether every byte may be part of a request target: visible ASCII, and no '#', which no client
// sends and which servers cut at or do not.
func ValidTarget(p []byte) bool { return TargetEnd(p, 0) == len(p) }

// TargetEnd is the offset of the first byte at or after i that may not be part of a request target, len(p) when there
// is none.
func TargetEnd(p []byte, i int) int {
	const ones = 0x0101010101010101
	for i+8 <= len(p) {
		x := binary.LittleEndian.Uint64(p[i:])
		low7 := x & (0x7f * ones)
		hash := x ^ '#'*ones // the lowest flag of a borrow is exact, and only that one is used
		flags := (^(low7 + 0x5f*ones) | (low7 + ones) | x | (hash-ones)&^hash) & (0x80 * ones)
		if flags != 0 {
			return i + bits.TrailingZeros64(flags)>>3
		}
		i += 8
	}
	for i < len(p) && classes[p[i]]&classTarget != 0 {
		i++
	}
	return i
}

// ValidValue tells whether a field value has no control character but tab.
func ValidValue(p []byte) bool { return ValueEnd(p, 0) == len(p) }

// ValueEnd is the offset of the first byte at or after i that may not be part of a field value, len(p) when there is
// none. It looks at eight bytes at a time.
func ValueEnd(p []byte, i int) int {
	const ones = 0x0101010101010101
	const high = 0x80 * ones
	for i+8 <= len(p) {
		x := binary.LittleEndian.Uint64(p[i:])
		// Seven bits a byte, so that no sum carries into the next one: below 0x20, or 0x7f, and not above.
		low7 := x & (0x7f * ones)
		flags := (^(low7 + 0x60*ones) | (low7 + ones)) &^ x & high
		if flags == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(flags) >> 3
		if p[i] != '\t' {
			return i
		}
		i++
	}
	for ; i < len(p); i++ {
		if c := p[i]; (c < 0x20 && c != '\t') || c == 0x7f {
			return i
		}
	}
	return i
}

// ValidAuthority tells whether p is uri-host [":" port] of RFC 3986 with a host that is not empty. A comma, which the
// grammar allows, is refused: it is what two Host fields look like when something has joined them. So is user
// information.
func ValidAuthority(p []byte) bool {
	host, port, ok := SplitAuthority(p)
	if !ok || len(host) == 0 || len(port) > 5 || !all(port, classDigit) {
		return false
	}
	n := 0
	for _, c := range port {
		n = n*10 + int(c-'0')
	}
	if n > 65535 {
		return false
	}
	if host[0] != '[' {
		return all(host, classHost)
	}
	inside := host[1 : len(host)-1]
	const longest = len("0000:0000:0000:0000:0000:ffff:255.255.255.255")
	if len(inside) > longest {
		return false
	}
	colon := false
	for _, c := range inside {
		colon = colon || c == ':'
		if classes[c]&classHex == 0 && c != ':' && c != '.' {
			return false
		}
	}
	return colon
}

// SplitAuthority cuts an authority into host (brackets of an IPv6 address kept) and port (without the colon, nil
// when there is none). It does not validate beyond what it needs to cut.
func SplitAuthority(p []byte) (host, port []byte, ok bool) {
	if len(p) > 0 && p[0] == '[' {
		for i, c := range p {
			if c != ']' {
				continue
			}
			if i+1 == len(p) {
				return p, nil, true
			}
			return p[:i+1], p[i+2:], p[i+1] == ':'
		}
		return nil, nil, false
	}
	for i, c := range p {
		if c == ':' {
			return p[:i], p[i+1:], true
		}
	}
	return p, nil, true
}

// stringBytes views a string as bytes that nobody writes to.
func stringBytes(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }
