package compress

import (
	"retinue.dev/proxyd/internal/header"
)

// Coding is one of the content codings of RFC 9110 8.4.1 that there are encoders for.
type Coding uint8

// The codings. None is no coding.
const (
	None Coding = iota
	Gzip
	Brotli
	Zstd
	Codings // how many there are
)

var names = [Codings][]byte{Gzip: []byte("gzip"), Brotli: []byte("br"), Zstd: []byte("zstd")}

// ParseCoding knows a coding by its name; x-gzip is gzip.
func ParseCoding(token []byte) Coding {
	for c := Gzip; c < Codings; c++ {
		if header.EqualFold(token, string(names[c])) {
			return c
		}
	}
	if header.EqualFold(token, "x-gzip") {
		return Gzip
	}
	return None
}

// Choose reads Accept-Encoding (RFC 9110 12.5.3) and answers the coding with the greatest weight, among equals the first of
// ours; None where the client takes none of them, or likes the body as it is better.
func Choose(h *header.Block, ours []Coding) Coding {
	var weights [Codings]int // of a thousand
	var named [Codings]bool
	var any, identity int
	anyNamed, identityNamed := false, false
	for i := h.Index(header.AcceptEncoding, 0); i >= 0; i = h.Index(header.AcceptEncoding, i+1) {
		for list := h.ValueAt(i); ; {
			item, rest, more := header.NextToken(list)
			if !more {
				break
			}
			list = rest
			token, q := weight(item)
			switch {
			case string(token) == "*":
				any, anyNamed = q, true
			case header.EqualFold(token, "identity"):
				identity, identityNamed = q, true
			default:
				if c := ParseCoding(token); c != None {
					weights[c], named[c] = q, true
				}
			}
		}
	}
	best, most := None, 0
	for _, c := range ours {
		q := weights[c]
		if !named[c] && anyNamed {
			q = any
		}
		if q > most {
			best, most = c, q
		}
	}
	if identityNamed && identity > most {
		return None
	}
	return best
}

// weight splits a member of a list with an optional ";q=0.5". What is malformed counts for nothing.
func weight(item []byte) (token []byte, q int) {
	for i, c := range item {
		if c == ';' {
			return header.TrimSpace(item[:i]), quality(header.TrimSpace(item[i+1:]))
		}
	}
	return item, 1000
}

// quality reads "q=0.125": a digit 0 or 1 and up to three behind the point.
func quality(p []byte) int {
	if len(p) < 3 || len(p) > 7 || p[0]|0x20 != 'q' || p[1] != '=' || p[2] != '0' && p[2] != '1' || len(p) > 3 && p[3] != '.' {
		return 0
	}
	q := int(p[2]-'0') * 1000
	scale := 100
	for _, c := range p[min(4, len(p)):] {
		if c < '0' || c > '9' {
			return 0
		}
		q += int(c-'0') * scale
		scale /= 10
	}
	if q > 1000 {
		return 0
	}
	return q
}
