package jwk

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rsa"
	_ "crypto/sha256" // SHA-256 of crypto.Hash
	_ "crypto/sha512" // SHA-384 and SHA-512
	"math/big"
)

// Algorithm is a signature algorithm of RFC 7518 and RFC 8037. The zero value is none of them: "none" is not known here.
type Algorithm uint8

// The algorithms.
const (
	RS256 Algorithm = iota + 1
	RS384
	RS512
	PS256
	PS384
	PS512
	ES256
	ES384
	ES512
	EdDSA
	HS256
	HS384
	HS512
)

var names = [...]string{
	RS256: "RS256", RS384: "RS384", RS512: "RS512", PS256: "PS256", PS384: "PS384", PS512: "PS512",
	ES256: "ES256", ES384: "ES384", ES512: "ES512", EdDSA: "EdDSA", HS256: "HS256", HS384: "HS384", HS512: "HS512",
}

var hashes = [...]crypto.Hash{
	RS256: crypto.SHA256, RS384: crypto.SHA384, RS512: crypto.SHA512, PS256: crypto.SHA256, PS384: crypto.SHA384, PS512: crypto.SHA512,
	ES256: crypto.SHA256, ES384: crypto.SHA384, ES512: crypto.SHA512, EdDSA: 0, HS256: crypto.SHA256, HS384: crypto.SHA384, HS512: crypto.SHA512,
}

// ParseAlgorithm reads the name that a header gives, which is case-sensitive; 0 for one that is not known.
func ParseAlgorithm(name []byte) Algorithm {
	for a := RS256; a <= HS512; a++ {
		if string(name) == names[a] {
			return a
		}
	}
	return 0
}

// String is the algorithm's name.
func (a Algorithm) String() string { return names[a] }

// fits tells whether a signature of the algorithm may be checked with the key: its type decides, whatever a token says, so that a
// public key never serves as a secret.
func (k *key) fits(a Algorithm) bool {
	if k.algorithm != 0 && k.algorithm != a {
		return false
	}
	switch {
	case a >= RS256 && a <= PS512:
		return k.rsa != nil
	case a >= ES256 && a <= ES512:
		return k.ecdsa != nil && k.curve == a
	case a == EdDSA:
		return k.ed25519 != nil
	case a >= HS256 && a <= HS512: // RFC 7518, 3.2: a secret has the size of the hash at least
		return len(k.secret) > 0 && len(k.secret) >= hashes[a].Size()
	}
	return false
}

// verify checks a signature of an algorithm that fits.
func (k *key) verify(a Algorithm, signed, signature []byte) bool {
	switch {
	case a == EdDSA:
		return ed25519.Verify(k.ed25519, signed, signature)
	case a >= HS256 && a <= HS512:
		mac := hmac.New(hashes[a].New, k.secret)
		_, _ = mac.Write(signed) // never fails
		return hmac.Equal(mac.Sum(nil), signature)
	}
	h := hashes[a].New()
	_, _ = h.Write(signed) // never fails
	digest := h.Sum(nil)
	switch {
	case a <= RS512:
		return rsa.VerifyPKCS1v15(k.rsa, hashes[a], digest, signature) == nil
	case a <= PS512: // RFC 7518, 3.5: the salt has the size of the hash
		return rsa.VerifyPSS(k.rsa, hashes[a], digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil
	}
	size := (k.ecdsa.Curve.Params().BitSize + 7) / 8
	if len(signature) != 2*size {
		return false
	}
	r, s := new(big.Int).SetBytes(signature[:size]), new(big.Int).SetBytes(signature[size:])
	return ecdsa.Verify(k.ecdsa, digest, r, s)
}
