package routing

// Slashes says what a percent-encoded slash or backslash in a path is.
type Slashes uint8

// The policies.
const (
	KeepSlashes   Slashes = iota // part of a segment; some servers take it for a slash all the same
	RejectSlashes                // a reason to refuse the path
	DecodeSlashes                // a slash
)

// NormalizePath appends to dst the one normal form of a path, query untouched: percent-encoded unreserved characters
// decoded, other percent-encodings in upper case, runs of slashes merged when asked for, "." and ".." segments
// resolved (RFC 3986 6.2.2 and 5.2.4). The form of a normal form is itself. decoded tells that there were encoded slashes
// and that they are slashes now.
//
// It is not ok for a path that servers read differently whatever one does: one that does not begin with a slash,
// a broken percent-encoding, an encoded NUL, a backslash, a raw control or space, and a segment of dots with parameters
// ("..;x"), which some servers take for "..".
func NormalizePath(dst, path []byte, mergeSlashes bool, escaped Slashes) (out []byte, decoded, ok bool) {
	if escaped == KeepSlashes || !encodedSlash(path) {
		out, ok = normalize(dst, path, mergeSlashes)
		return out, false, ok
	}
	if escaped == RejectSlashes {
		return dst, false, false
	}
	start := len(dst)
	for i := 0; i < len(path); i++ {
		if path[i] == '?' {
			dst = append(dst, path[i:]...)
			break
		}
		if encodedSlash(path[i:min(i+3, len(path))]) {
			dst = append(dst, '/')
			i += 2
			continue
		}
		dst = append(dst, path[i])
	}
	middle := len(dst)
	dst, ok = normalize(dst, dst[start:], mergeSlashes)
	if !ok {
		return dst[:start], false, false
	}
	return dst[:start+copy(dst[start:], dst[middle:])], true, true
}

// encodedSlash finds %2F and %5C before the query.
func encodedSlash(path []byte) bool {
	for i := 0; i+2 < len(path) && path[i] != '?'; i++ {
		if path[i] != '%' {
			continue
		}
		hi, lo := path[i+1], path[i+2]|0x20
		if (hi == '2' && lo == 'f') || (hi == '5' && lo == 'c') {
			return true
		}
	}
	return false
}

func normalize(dst, path []byte, mergeSlashes bool) ([]byte, bool) {
	if len(path) == 0 || path[0] != '/' {
		return dst, false
	}
	start := len(dst)
	for i := 0; ; {
		slash := len(dst) // path[i] is the slash that begins a segment
		dst = append(dst, '/')
		for i++; i < len(path) && path[i] != '/' && path[i] != '?'; i++ {
			c := path[i]
			switch {
			case c <= ' ' || c == 0x7f || c == '\\':
				return dst[:start], false
			case c != '%':
				dst = append(dst, c)
				continue
			}
			if i+2 >= len(path) {
				return dst[:start], false
			}
			hi, lo := hexDigit(path[i+1]), hexDigit(path[i+2])
			if hi < 0 || lo < 0 || hi|lo == 0 {
				return dst[:start], false
			}
			if c = byte(hi<<4 | lo); unreserved(c) {
				dst = append(dst, c)
			} else {
				const digits = "0123456789ABCDEF"
				dst = append(dst, '%', digits[hi], digits[lo])
			}
			i += 2
		}
		last := i == len(path) || path[i] == '?'
		switch name := dst[slash+1:]; {
		case string(name) == ".":
			dst = dst[:slash]
		case string(name) == "..":
			dst = parent(dst[:slash], start)
		case dotsWithParameters(name):
			return dst[:start], false
		case len(name) == 0 && mergeSlashes && !last:
			dst = dst[:slash]
			continue
		default:
			if last {
				return append(dst, path[i:]...), true
			}
			continue
		}
		if last {
			// A last segment that went leaves its slash: "/a/." is "/a/".
			return append(append(dst, '/'), path[i:]...), true
		}
	}
}

func dotsWithParameters(name []byte) bool {
	dots := 0
	for dots < len(name) && name[dots] == '.' {
		dots++
	}
	return (dots == 1 || dots == 2) && dots < len(name) && name[dots] == ';'
}

// parent cuts the last segment, with its slash, off.
func parent(dst []byte, start int) []byte {
	n := len(dst)
	for n > start {
		if n--; dst[n] == '/' {
			break
		}
	}
	return dst[:n]
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}
