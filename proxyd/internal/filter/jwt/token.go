package jwt

import (
	"bytes"
	"encoding/base64"
	"math"
	"strconv"
	"time"

	"retinue.dev/libs/jwk"
)

// maxToken bounds a token, in bytes; what is longer is none.
const maxToken = 8 << 10

// token is a JSON Web Token in the compact form (RFC 7519, RFC 7515), read and not yet verified: nothing that it says is known to be
// true. It is used again for the next one.
type token struct {
	algorithm jwk.Algorithm
	keyID     []byte // nil: it has none
	signed    []byte // what the signature is of
	signature []byte
	payload   []byte // as it stands in the token
	claims    document

	issuer, subject       []byte // nil: it has none
	expires, notBefore    int64  // s since 1970; none: it has none
	header                document
	bytes, headers, signs []byte // decoded
}

// none is a time that a token does not have.
const none = math.MinInt64

var (
	claimIssuer, claimSubject, claimAudience = []byte("iss"), []byte("sub"), []byte("aud")
	claimExpiration, claimNotBefore          = []byte("exp"), []byte("nbf")
	memberAlgorithm, memberKeyID             = []byte("alg"), []byte("kid")
	memberCritical                           = []byte("crit")
)

// base64URL refuses bits that stand for nothing, so that no two tokens say the same.
var base64URL = base64.RawURLEncoding.Strict()

// decode appends what base64url says. Its decoder passes over line breaks, which are not of the alphabet.
func decode(dst, encoded []byte) ([]byte, bool) {
	if bytes.ContainsAny(encoded, "\r\n") {
		return dst, false
	}
	dst, err := base64URL.AppendDecode(dst, encoded)
	return dst, err == nil
}

// parse reads a token, whose bytes stay the caller's and must stay as they are while it is used.
func (t *token) parse(raw []byte) status {
	if len(raw) > maxToken || bytes.Count(raw, dot) != 2 {
		return badFormat
	}
	first, last := bytes.IndexByte(raw, '.'), bytes.LastIndexByte(raw, '.')
	t.signed, t.payload = raw[:last], raw[first+1:last]
	var ok bool
	if t.headers, ok = decode(t.headers[:0], raw[:first]); !ok {
		return badHeaderBase64
	}
	if s := t.readHeader(); s != good {
		return s
	}
	if t.bytes, ok = decode(t.bytes[:0], t.payload); !ok {
		return badPayloadBase64
	}
	if s := t.readClaims(); s != good {
		return s
	}
	if t.signs, ok = decode(t.signs[:0], raw[last+1:]); !ok {
		return badSignatureBase64
	}
	t.signature = t.signs
	return good
}

var dot = []byte(".")

func (t *token) readHeader() status {
	if !t.header.parse(t.headers) {
		return badHeaderJSON
	}
	alg := t.header.member(t.header.root(), memberAlgorithm)
	if alg == nil || alg.kind != text {
		return badAlgorithm
	}
	if t.algorithm = jwk.ParseAlgorithm(t.header.text(alg)); t.algorithm == 0 {
		return unknownAlgorithm
	}
	t.keyID = nil
	if kid := t.header.member(t.header.root(), memberKeyID); kid != nil {
		if kid.kind != text {
			return badKeyID
		}
		t.keyID = t.header.text(kid)
	}
	if t.header.member(t.header.root(), memberCritical) != nil {
		return critical
	}
	return good
}

func (t *token) readClaims() status {
	if !t.claims.parse(t.bytes) {
		return badPayloadJSON
	}
	t.issuer, t.subject = nil, nil
	for _, c := range [...]struct {
		name []byte
		to   *[]byte
		bad  status
	}{{claimIssuer, &t.issuer, badIssuer}, {claimSubject, &t.subject, badSubject}} {
		if v := t.claims.member(t.claims.root(), c.name); v != nil {
			if v.kind != text {
				return c.bad
			}
			*c.to = t.claims.text(v)
		}
	}
	if aud := t.claims.member(t.claims.root(), claimAudience); aud != nil && aud.kind != text {
		if aud.kind != array {
			return badAudience
		}
		for i := aud.first; i != 0; i = t.claims.values[i].next {
			if t.claims.values[i].kind != text {
				return badAudience
			}
		}
	}
	var s status
	if t.expires, s = t.time(claimExpiration, badExpiration, expirationRange); s != good {
		return s
	}
	t.notBefore, s = t.time(claimNotBefore, badNotBefore, notBeforeRange)
	return s
}

// time is a NumericDate (RFC 7519, 2), rounded down to a second.
func (t *token) time(claim []byte, bad, outside status) (int64, status) {
	v := t.claims.member(t.claims.root(), claim)
	if v == nil {
		return none, good
	}
	if v.kind != number {
		return none, bad
	}
	seconds, err := strconv.ParseFloat(string(t.claims.text(v)), 64)
	if err != nil || seconds < 0 || seconds > 1<<53 {
		return none, outside
	}
	return int64(seconds), good
}

// valid compares the times with the clock, in nanoseconds since 1970.
func valid(expires, notBefore, wall, skew int64) status {
	now, skew := wall/int64(time.Second), skew/int64(time.Second)
	switch {
	case notBefore != none && now+skew < notBefore:
		return notYetValid
	case expires != none && now > expires+skew:
		return expired
	}
	return good
}
