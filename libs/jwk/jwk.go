// Package jwk reads JSON Web Key Sets (RFC 7517, RFC 7518 section 6, RFC 8037) and checks signatures of RFC 7515 with their keys.
//
// A key's own type and `alg` decide which algorithms it serves. Keys that are not understood, that are for encryption, or that are too
// weak are left out, as RFC 7517 section 5 has it; a set without any other is refused. Reading is for the main side; a Set is
// immutable, and Verify may run on any thread.
package jwk

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

const (
	// MaxSize bounds a set, in bytes.
	MaxSize = 256 << 10
	maxKeys = 100
	// maxTries bounds the keys that are tried for one token without a kid.
	maxTries = 10
	// RSA keys below are not secure (RFC 7518, 3.3); those above make a check expensive.
	minRSABits, maxRSABits = 2048, 8192
	maxID                  = 1024 // bytes
	maxSecret              = 4096 // bytes
)

// Set is the keys that can check signatures, in their order. Immutable.
type Set struct {
	keys []key
	// Skipped says which keys were left out, and why; never what is in them.
	Skipped []string
	// Secret tells that some key is a secret (oct), so that the set is one; Private that some key pair is there whole, which a
	// verifier has no use for.
	Secret, Private bool
}

// key is one key: one of rsa, ecdsa, ed25519 and secret is set.
type key struct {
	id        string
	algorithm Algorithm // 0: all of its type
	curve     Algorithm // of ecdsa: the one algorithm that its curve is for
	rsa       *rsa.PublicKey
	ecdsa     *ecdsa.PublicKey
	ed25519   ed25519.PublicKey
	secret    []byte
}

// Len is the number of keys.
func (s *Set) Len() int { return len(s.keys) }

// Verdict is what Verify says.
type Verdict uint8

// The verdicts.
const (
	Verified Verdict = iota
	NoKey            // no key has that kid and serves that algorithm
	Wrong            // the signature is of none of those that do
)

// Verify checks the signature of a token that names an algorithm and, with known, a key's id. Without one, every key that serves the
// algorithm is tried, ten at the most.
func (s *Set) Verify(a Algorithm, id []byte, known bool, signed, signature []byte) Verdict {
	verdict, tries := NoKey, 0
	for i := range s.keys {
		k := &s.keys[i]
		if known && string(id) != k.id || !k.fits(a) {
			continue
		}
		if k.verify(a, signed, signature) {
			return Verified
		}
		if verdict, tries = Wrong, tries+1; tries == maxTries {
			break
		}
	}
	return verdict
}

// members are those of one JWK. Names are exact, which encoding/json's structs do not ask for.
type members map[string]json.RawMessage

// Parse reads a set. An error says what is wrong and never shows what is in it.
func Parse(content []byte) (*Set, error) {
	if len(content) > MaxSize {
		return nil, fmt.Errorf("the key set is larger than %d KiB", MaxSize>>10)
	}
	var top members
	if err := json.Unmarshal(content, &top); err != nil || top == nil {
		return nil, errors.New("the key set is not a JSON object")
	}
	raw, there := top["keys"]
	if !there {
		return nil, errors.New(`the key set has no "keys"`)
	}
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, errors.New(`"keys" is not an array`)
	}
	if len(list) > maxKeys {
		return nil, fmt.Errorf("the key set has more than %d keys", maxKeys)
	}
	s := &Set{}
	for i, one := range list {
		var m members
		if err := json.Unmarshal(one, &m); err != nil || m == nil {
			return nil, fmt.Errorf("keys[%d] is not a JSON object", i)
		}
		k, err := s.read(m)
		if err != nil {
			s.Skipped = append(s.Skipped, fmt.Sprintf("keys[%d]: %v", i, err))
			continue
		}
		s.keys = append(s.keys, *k)
	}
	if len(s.keys) == 0 {
		if len(s.Skipped) > 0 {
			return nil, fmt.Errorf("the key set has no key for signatures: %s", strings.Join(s.Skipped, "; "))
		}
		return nil, errors.New("the key set has no key")
	}
	return s, nil
}

// text is a member that must be a string where it is there.
func (m members) text(name string, most int) (string, error) {
	raw, there := m[name]
	if !there {
		return "", nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil || len(raw) == 0 || raw[0] != '"' || len(s) > most {
		return "", fmt.Errorf("%q is not a string of at most %d bytes", name, most)
	}
	return s, nil
}

// bytes is a member that must be there, in base64url without padding.
func (m members) bytes(name string, most int) ([]byte, error) {
	s, err := m.text(name, base64.RawURLEncoding.EncodedLen(most))
	if err != nil {
		return nil, err
	}
	if s == "" {
		return nil, fmt.Errorf("%q is missing", name)
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || strings.ContainsAny(s, "\r\n") {
		return nil, fmt.Errorf("%q is not base64url", name)
	}
	return b, nil
}

func (s *Set) read(m members) (*key, error) {
	var texts [4]string
	for i, name := range [...]string{"kty", "alg", "use", "kid"} {
		var err error
		if texts[i], err = m.text(name, maxID); err != nil {
			return nil, err
		}
	}
	kty, alg, use := texts[0], texts[1], texts[2]
	k := &key{id: texts[3]}
	if _, pair := m["d"]; pair && kty != "oct" {
		s.Private = true
	}
	if use != "" && use != "sig" {
		return nil, errors.New(`its "use" is not "sig"`)
	}
	if raw, there := m["key_ops"]; there {
		var ops []string
		if err := json.Unmarshal(raw, &ops); err != nil || !slices.Contains(ops, "verify") {
			return nil, errors.New(`its "key_ops" are without "verify"`)
		}
	}
	if alg != "" {
		if k.algorithm = ParseAlgorithm([]byte(alg)); k.algorithm == 0 {
			return nil, errors.New(`its "alg" is not one of signatures that are known`)
		}
	}
	var err error
	switch kty {
	case "RSA":
		err = k.readRSA(m)
	case "EC":
		err = k.readEC(m)
	case "OKP":
		err = k.readOKP(m)
	case "oct":
		s.Secret = true
		if k.secret, err = m.bytes("k", maxSecret); err == nil && len(k.secret) < hashes[HS256].Size() {
			err = errors.New("the secret has fewer than 32 bytes")
		}
	case "":
		err = errors.New(`"kty" is missing`)
	default:
		err = errors.New(`its "kty" is not RSA, EC, OKP or oct`)
	}
	if err == nil && k.algorithm != 0 && !k.fits(k.algorithm) {
		err = fmt.Errorf("an %s key is not for %s", kty, k.algorithm)
	}
	return k, err
}

func (k *key) readRSA(m members) error {
	n, err := m.bytes("n", maxRSABits/8)
	if err != nil {
		return err
	}
	e, err := m.bytes("e", 4)
	if err != nil {
		return err
	}
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e).Int64()
	if bits := modulus.BitLen(); bits < minRSABits {
		return fmt.Errorf("a modulus of %d bits is below %d", bits, minRSABits)
	}
	if exponent < 3 || exponent > 1<<31-1 || exponent&1 == 0 || modulus.Bit(0) == 0 {
		return errors.New("its modulus or exponent is not one of RSA")
	}
	k.rsa = &rsa.PublicKey{N: modulus, E: int(exponent)}
	return nil
}

func (k *key) readEC(m members) error {
	crv, err := m.text("crv", maxID)
	if err != nil {
		return err
	}
	var curve elliptic.Curve
	switch crv {
	case "P-256":
		curve, k.curve = elliptic.P256(), ES256
	case "P-384":
		curve, k.curve = elliptic.P384(), ES384
	case "P-521":
		curve, k.curve = elliptic.P521(), ES512
	default:
		return errors.New(`its "crv" is not P-256, P-384 or P-521`)
	}
	size := (curve.Params().BitSize + 7) / 8
	point := []byte{4} // uncompressed
	for _, name := range [...]string{"x", "y"} {
		b, err := m.bytes(name, size)
		if err != nil {
			return err
		}
		if len(b) != size { // RFC 7518, 6.2.1.2
			return fmt.Errorf("%q does not have %d bytes", name, size)
		}
		point = append(point, b...)
	}
	if k.ecdsa, err = ecdsa.ParseUncompressedPublicKey(curve, point); err != nil {
		return errors.New("its point is not on the curve")
	}
	return nil
}

func (k *key) readOKP(m members) error {
	crv, err := m.text("crv", maxID)
	if err != nil {
		return err
	}
	if crv != "Ed25519" {
		return errors.New(`its "crv" is not Ed25519`)
	}
	x, err := m.bytes("x", ed25519.PublicKeySize)
	if err != nil {
		return err
	}
	if len(x) != ed25519.PublicKeySize {
		return fmt.Errorf(`"x" does not have %d bytes`, ed25519.PublicKeySize)
	}
	k.ed25519 = x
	return nil
}
