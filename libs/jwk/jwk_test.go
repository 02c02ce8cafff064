package jwk

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

// Vectors of RFC 7515 appendix A and RFC 8037 appendix A: a key, its algorithm, a token.
var vectors = []struct{ name, key, alg, token string }{
	{
		"RFC 7515 A.1", `{"kty":"oct","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow"}`, "HS256",
		"eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
	},
	{
		"RFC 7515 A.2", `{"kty":"RSA","n":"ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ","e":"AQAB"}`, "RS256",
		"eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
	},
	{
		"RFC 7515 A.3", `{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}`, "ES256",
		"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
	},
	{
		"RFC 7515 A.4", `{"kty":"EC","crv":"P-521","x":"AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk","y":"ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2"}`, "ES512",
		"eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZgoXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn",
	},
	{
		"RFC 8037 A.4", `{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}`, "EdDSA",
		"eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
	},
}

func set(keys ...string) string { return `{"keys":[` + strings.Join(keys, ",") + `]}` }

func split(token string) (signed, signature []byte) {
	i := strings.LastIndexByte(token, '.')
	signature, err := base64.RawURLEncoding.DecodeString(token[i+1:])
	if err != nil {
		panic(err)
	}
	return []byte(token[:i]), signature
}

func TestVectors(t *testing.T) {
	for _, v := range vectors {
		t.Run(v.name, func(t *testing.T) {
			s, err := Parse([]byte(set(v.key)))
			if err != nil {
				t.Fatal(err)
			}
			signed, signature := split(v.token)
			if got := s.Verify(ParseAlgorithm([]byte(v.alg)), nil, false, signed, signature); got != Verified {
				t.Errorf("it is %v", got)
			}
			if got := s.Verify(ParseAlgorithm([]byte(v.alg)), []byte("other"), true, signed, signature); got != NoKey {
				t.Errorf("with another kid it is %v", got)
			}
			for i := range signature {
				signature[i] ^= 0x20
				if got := s.Verify(ParseAlgorithm([]byte(v.alg)), nil, false, signed, signature); got != Wrong {
					t.Fatalf("with byte %d changed it is %v", i, got)
				}
				if signature[i] ^= 0x20; i > 20 {
					break
				}
			}
			for _, other := range [][]byte{nil, signature[:len(signature)-1], append(signature[:len(signature):len(signature)], 0)} {
				if got := s.Verify(ParseAlgorithm([]byte(v.alg)), nil, false, signed, other); got != Wrong {
					t.Errorf("a signature of %d bytes is %v", len(other), got)
				}
			}
		})
	}
}

// What is signed with each algorithm is verified with it, and with no other: the key decides.
func TestAlgorithms(t *testing.T) {
	b64 := base64.RawURLEncoding.EncodeToString
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey := func(alg string) string {
		return fmt.Sprintf(`{"kty":"RSA","n":%q,"e":%q%s}`, b64(r.N.Bytes()), b64(big.NewInt(int64(r.E)).Bytes()), alg)
	}
	secret := make([]byte, 64)
	_, _ = rand.Read(secret)
	octet := fmt.Sprintf(`{"kty":"oct","k":%q}`, b64(secret))
	digest := func(a Algorithm, m []byte) []byte {
		h := hashes[a].New()
		h.Write(m)
		return h.Sum(nil)
	}
	message := []byte("header.payload")
	type pair struct {
		key  string
		sign func() []byte
	}
	all := map[Algorithm]pair{}
	for _, a := range []Algorithm{RS256, RS384, RS512} {
		all[a] = pair{rsaKey(""), func() []byte {
			s, err := rsa.SignPKCS1v15(rand.Reader, r, hashes[a], digest(a, message))
			if err != nil {
				t.Fatal(err)
			}
			return s
		}}
	}
	for _, a := range []Algorithm{PS256, PS384, PS512} {
		all[a] = pair{rsaKey(`,"alg":"` + a.String() + `"`), func() []byte {
			s, err := rsa.SignPSS(rand.Reader, r, hashes[a], digest(a, message), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
			if err != nil {
				t.Fatal(err)
			}
			return s
		}}
	}
	for a, c := range map[Algorithm]elliptic.Curve{ES256: elliptic.P256(), ES384: elliptic.P384(), ES512: elliptic.P521()} {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		point, err := k.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		size := len(point) / 2
		all[a] = pair{fmt.Sprintf(`{"kty":"EC","crv":%q,"x":%q,"y":%q}`, c.Params().Name, b64(point[1:1+size]), b64(point[1+size:])), func() []byte {
			r, s, err := ecdsa.Sign(rand.Reader, k, digest(a, message))
			if err != nil {
				t.Fatal(err)
			}
			out := make([]byte, 2*size)
			r.FillBytes(out[:size])
			s.FillBytes(out[size:])
			return out
		}}
	}
	public, private, _ := ed25519.GenerateKey(rand.Reader)
	all[EdDSA] = pair{fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":%q}`, b64(public)), func() []byte { return ed25519.Sign(private, message) }}
	for _, a := range []Algorithm{HS256, HS384, HS512} {
		all[a] = pair{octet, func() []byte {
			m := hmac.New(hashes[a].New, secret)
			m.Write(message)
			return m.Sum(nil)
		}}
	}
	if len(all) != int(HS512) {
		t.Fatalf("%d algorithms", len(all))
	}
	for a, p := range all {
		s, err := Parse([]byte(set(p.key)))
		if err != nil {
			t.Fatalf("%v: %v", a, err)
		}
		signature := p.sign()
		for b := Algorithm(0); b <= HS512+1; b++ {
			if got := s.Verify(b, nil, false, message, signature); (got == Verified) != (a == b) {
				t.Errorf("a signature of %v, said to be of %d, is %v", a, b, got)
			}
		}
	}

	// The confusion: the public key, as a verifier may hold it, taken as a secret.
	s, err := Parse([]byte(set(rsaKey(""))))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range [][]byte{r.N.Bytes(), []byte(rsaKey("")), nil} {
		m := hmac.New(crypto.SHA256.New, secret)
		m.Write(message)
		if got := s.Verify(HS256, nil, false, message, m.Sum(nil)); got != NoKey {
			t.Errorf("an HMAC with the public key is %v", got)
		}
	}
}

func TestParseAlgorithm(t *testing.T) {
	for _, name := range []string{"", "none", "None", "rs256", "RS256 ", "HS128", "ES256K", "RSA-OAEP", "dir"} {
		if a := ParseAlgorithm([]byte(name)); a != 0 {
			t.Errorf("%q is %v", name, a)
		}
	}
}

func TestParse(t *testing.T) {
	good := vectors[4].key
	short := base64.RawURLEncoding.EncodeToString(make([]byte, 31))
	for _, test := range []struct{ name, content, want string }{
		{"nothing", "", "not a JSON object"},
		{"not JSON", "keys", "not a JSON object"},
		{"null", "null", "not a JSON object"},
		{"an array", "[]", "not a JSON object"},
		{"no keys", "{}", `no "keys"`},
		{"another case", `{"KEYS":[]}`, `no "keys"`},
		{"keys no array", `{"keys":{}}`, "not an array"},
		{"empty", set(), "no key"},
		{"a key that is none", set(`1`), "keys[0] is not a JSON object"},
		{"too many", set(strings.Split(strings.Repeat(good+"\n", 101), "\n")[:101]...), "more than 100"},
		{"too large", set() + strings.Repeat(" ", MaxSize), "larger than 256 KiB"},
		{"no type", set(`{"x":"a"}`), `"kty" is missing`},
		{"type in another case", set(`{"KTY":"OKP"}`), `"kty" is missing`},
		{"another type", set(`{"kty":"X"}`), "not RSA, EC, OKP or oct"},
		{"type no text", set(`{"kty":1}`), `"kty" is not a string`},
		{"for encryption", set(`{"kty":"OKP","crv":"Ed25519","use":"enc","x":"` + short + `"}`), `"use"`},
		{"not for verifying", set(`{"kty":"OKP","crv":"Ed25519","key_ops":["sign"],"x":"` + short + `"}`), `"key_ops"`},
		{"another algorithm", set(`{"kty":"OKP","crv":"Ed25519","alg":"none","x":"` + short + `"}`), `"alg"`},
		{"of another type", set(strings.Replace(good, "{", `{"alg":"RS256",`, 1)), "not for RS256"},
		{"another curve", set(`{"kty":"OKP","crv":"X25519","x":"` + short + `"}`), "not Ed25519"},
		{"a short point", set(`{"kty":"OKP","crv":"Ed25519","x":"` + short + `"}`), "32 bytes"},
		{"padding", set(`{"kty":"OKP","crv":"Ed25519","x":"` + short + `="}`), "is not"},
		{"a weak secret", set(`{"kty":"oct","k":"` + short + `"}`), "fewer than 32 bytes"},
		{"a secret for another hash", set(`{"kty":"oct","alg":"HS512","k":"` + short + `AAAA"}`), "not for HS512"},
		{"off the curve", set(strings.Replace(vectors[2].key, "f83O", "f83P", 1)), "not on the curve"},
		{"a short coordinate", set(`{"kty":"EC","crv":"P-256","x":"AAAA","y":"AAAA"}`), "32 bytes"},
		{"a small modulus", set(`{"kty":"RSA","n":"` + strings.Repeat("gAAA", 40) + `Aw","e":"AQAB"}`), "below 2048"},
		{"an even exponent", set(strings.Replace(vectors[1].key, "AQAB", "AQAA", 1)), "not one of RSA"},
		{"no exponent", set(strings.Replace(vectors[1].key, `"e"`, `"f"`, 1)), `"e" is missing`},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse([]byte(test.content))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("it says %v", err)
			}
		})
	}

	s, err := Parse([]byte(set(`{"kty":"new"}`, good, vectors[0].key, strings.Replace(vectors[2].key, "{", `{"d":"AA",`, 1))))
	if err != nil || s.Len() != 3 || len(s.Skipped) != 1 || !s.Secret || !s.Private {
		t.Errorf("%+v %v", s, err)
	}
}

// What has no kid is tried with a bounded number of keys.
func TestTries(t *testing.T) {
	var keys []string
	for range maxTries {
		public, _, _ := ed25519.GenerateKey(rand.Reader)
		keys = append(keys, fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","x":%q}`, base64.RawURLEncoding.EncodeToString(public)))
	}
	signed, signature := split(vectors[4].token)
	for at, want := range map[int]Verdict{maxTries - 1: Verified, maxTries: Wrong} {
		list := append(append([]string(nil), keys[:at]...), strings.Replace(vectors[4].key, "{", `{"kid":"mine",`, 1))
		s, err := Parse([]byte(set(list...)))
		if err != nil {
			t.Fatal(err)
		}
		if got := s.Verify(EdDSA, nil, false, signed, signature); got != want {
			t.Errorf("the key at %d: %v", at, got)
		}
		if got := s.Verify(EdDSA, []byte("mine"), true, signed, signature); got != Verified {
			t.Errorf("the key at %d by its kid: %v", at, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, v := range vectors {
		f.Add([]byte(set(v.key)))
	}
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA","key_ops":["verify"],"use":"sig","alg":"HS256","kid":"a"}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		s, err := Parse(content)
		if err != nil {
			return
		}
		if s.Len() == 0 || s.Len() > maxKeys || !json.Valid(content) {
			t.Errorf("%d keys", s.Len())
		}
		for a := Algorithm(0); a <= HS512; a++ {
			if s.Verify(a, nil, false, []byte("a.b"), []byte("signature")) == Verified {
				t.Errorf("%v verifies nonsense", a)
			}
		}
	})
}
