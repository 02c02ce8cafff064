package filter

import (
	"fmt"
	"math/bits"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/route"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

const million = 1_000_000

// sticky chooses one of several clusters by a key, so that requests with the same key go the same way while the weights
// stay. The hash is the same in every worker, generation and process.
type sticky struct {
	cookie   []byte
	suffix   []byte // "; Path=/; …" behind the value of a cookie that is set
	header   headerOp
	bySource bool
}

func compileSticky(s *configv1.Sticky) (*sticky, error) {
	switch {
	case s == nil:
		return nil, nil
	case s.GetCookie() != "":
		suffix, err := cookieSuffix(s.GetCookiePath(), s.GetCookieTtlMs())
		if err != nil {
			return nil, fmt.Errorf("sticky: %w", err)
		}
		if !header.ValidName([]byte(s.GetCookie())) {
			return nil, fmt.Errorf("sticky: %q cannot be a cookie", s.GetCookie())
		}
		return &sticky{cookie: []byte(s.GetCookie()), suffix: suffix}, nil
	case s.GetHeader() != "":
		op := namedOp(s.GetHeader())
		if !header.ValidName(op.name) {
			return nil, fmt.Errorf("sticky: %q is not a header name", s.GetHeader())
		}
		return &sticky{header: op}, nil
	case s.GetSource():
		return &sticky{bySource: true}, nil
	}
	return nil, fmt.Errorf("sticky: give it a cookie, a header or source")
}

// position is a point of the weights for a request. made is the value of a cookie that the client must be given, 0 for none.
func (t *sticky) position(s *stream.Stream, weights uint64) (at, made uint64) {
	var key uint64
	switch {
	case t.cookie != nil:
		value, there := route.Cookie(&s.Request.Block, t.cookie)
		if !there || len(value) == 0 {
			made = s.Worker.Rand() | 1
			var text [16]byte
			value = hex(text[:0], made)
			key = hash(value)
		} else {
			key = hash(value)
		}
	case t.bySource:
		address := s.Client.As16()
		key = hash(address[:])
	default:
		if i := t.header.find(&s.Request.Block); i >= 0 {
			key = hash(s.Request.ValueAt(i))
		} else {
			key = s.Worker.Rand()
		}
	}
	at, _ = bits.Mul64(key, weights)
	return at, made
}

// setCookie appends the value of Set-Cookie.
func (t *sticky) setCookie(dst []byte, made uint64) []byte {
	dst = append(append(dst, t.cookie...), '=')
	return append(hex(dst, made), t.suffix...)
}

func hex(dst []byte, n uint64) []byte {
	const digits = "0123456789abcdef"
	for shift := 60; shift >= 0; shift -= 4 {
		dst = append(dst, digits[n>>shift&15])
	}
	return dst
}

// hash is FNV-1a, mixed at the end so that its upper bits are good ones (MurmurHash3's finaliser).
func hash(p []byte) uint64 {
	h := uint64(0xcbf29ce484222325)
	for _, c := range p {
		h = (h ^ uint64(c)) * 0x100000001b3
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}
