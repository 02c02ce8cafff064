// Package query edits the queries of paths, byte by byte and without an allocation: what is not edited stays as the client wrote it.
// Names of parameters are compared as who reads the query has them, percent-decoded.
package query

import "bytes"

var equals = []byte("=")

// Of is the query of a path, without the question mark.
func Of(path []byte) []byte {
	if i := bytes.IndexByte(path, '?'); i >= 0 {
		return path[i+1:]
	}
	return nil
}

// Cut is what stands before a separator, and what stands behind it.
func Cut(list []byte, separator byte) (item, rest []byte) {
	if i := bytes.IndexByte(list, separator); i >= 0 {
		return list[:i], list[i+1:]
	}
	return list, nil
}

// Spells tells whether the name of a parameter is name, percent-encoded or not: the upstream decodes it.
func Spells(written, name []byte) bool {
	for _, c := range name {
		if len(written) == 0 {
			return false
		}
		got := written[0]
		written = written[1:]
		if got == '%' && len(written) >= 2 {
			high, low := digit(written[0]), digit(written[1])
			if high < 0 || low < 0 {
				return false
			}
			got, written = byte(high<<4|low), written[2:]
		}
		if got != c {
			return false
		}
	}
	return len(written) == 0
}

func digit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return int(c | 0x20 - 'a' + 10)
	}
	return -1
}

// Without appends a path whose query has no parameter of that name.
func Without(dst, path, name []byte) (out []byte, changed bool) {
	query := Of(path)
	dst = append(dst, path[:len(path)-len(query)]...)
	start := len(dst)
	for len(query) > 0 {
		var item []byte
		item, query = Cut(query, '&')
		if key, _, _ := bytes.Cut(item, equals); len(item) > 0 && Spells(key, name) {
			changed = true
			continue
		}
		if len(dst) > start {
			dst = append(dst, '&')
		}
		dst = append(dst, item...)
	}
	if changed && len(dst) == start {
		dst = dst[:start-1] // and no question mark
	}
	return dst, changed
}

// With appends a path whose query has one parameter of that name, the last one, percent-encoded as far as it must be.
func With(dst, path, name, value []byte) []byte {
	start := len(dst)
	dst, _ = Without(dst, path, name)
	switch {
	case bytes.IndexByte(dst[start:], '?') < 0:
		dst = append(dst, '?')
	case len(Of(dst[start:])) > 0:
		dst = append(dst, '&')
	}
	dst = append(encode(dst, name), '=')
	return encode(dst, value)
}

// encode appends a text in which nothing means anything to who reads a query (the unreserved characters of RFC 3986, 2.3).
func encode(dst, text []byte) []byte {
	const digits = "0123456789ABCDEF"
	for _, c := range text {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~' {
			dst = append(dst, c)
		} else {
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		}
	}
	return dst
}
