package jwt

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

func b64(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// spelled is a token with a signature that nobody made.
func spelled(header, claims string) string {
	return b64(header) + "." + b64(claims) + "." + b64("signature")
}

func TestParse(t *testing.T) {
	const alg = `{"alg":"RS256"}`
	for _, test := range []struct {
		name, token string
		want        status
	}{
		{"good", spelled(`{"alg":"RS256","kid":"k","typ":"JWT"}`, `{"iss":"me","sub":"ann","aud":["a","b"],"exp":1.5e9,"nbf":1,"iat":1}`), good},
		{"no claims", spelled(alg, "{}"), good},
		{"nothing", "", badFormat},
		{"two parts", "a.b", badFormat},
		{"four parts", "a.b.c.d", badFormat},
		{"encrypted", "a.b.c.d.e", badFormat},
		{"too long", spelled(alg, `{"a":"`+strings.Repeat("x", maxToken)+`"}`), badFormat},
		{"padding", b64(alg+" ") + "=." + b64("{}") + ".c2ln", badHeaderBase64},
		{"line break", b64(alg)[:4] + "\n" + b64(alg)[4:] + "." + b64("{}") + ".c2ln", badHeaderBase64},
		{"the other alphabet", "+/+/." + b64("{}") + ".c2ln", badHeaderBase64},
		{"header no JSON", spelled("alg", "{}"), badHeaderJSON},
		{"header twice the same", spelled(`{"alg":"none","alg":"RS256"}`, "{}"), badHeaderJSON},
		{"no algorithm", spelled(`{}`, "{}"), badAlgorithm},
		{"algorithm no text", spelled(`{"alg":1}`, "{}"), badAlgorithm},
		{"none", spelled(`{"alg":"none"}`, "{}"), unknownAlgorithm},
		{"None", spelled(`{"alg":"None"}`, "{}"), unknownAlgorithm},
		{"none without a signature", b64(`{"alg":"none"}`) + "." + b64("{}") + ".", unknownAlgorithm},
		{"key id no text", spelled(`{"alg":"RS256","kid":1}`, "{}"), badKeyID},
		{"critical", spelled(`{"alg":"RS256","crit":["b64"],"b64":false}`, "{}"), critical},
		{"payload no base64", b64(alg) + ".*.c2ln", badPayloadBase64},
		{"payload no JSON", spelled(alg, "claims"), badPayloadJSON},
		{"claims twice", spelled(alg, `{"sub":"a","sub":"b"}`), badPayloadJSON},
		{"issuer no text", spelled(alg, `{"iss":1}`), badIssuer},
		{"subject no text", spelled(alg, `{"sub":null}`), badSubject},
		{"audience no text", spelled(alg, `{"aud":1}`), badAudience},
		{"audience with a number", spelled(alg, `{"aud":["a",1]}`), badAudience},
		{"expiration no number", spelled(alg, `{"exp":"1"}`), badExpiration},
		{"expiration before 1970", spelled(alg, `{"exp":-1}`), expirationRange},
		{"expiration far away", spelled(alg, `{"exp":1e300}`), expirationRange},
		{"expiration beyond numbers", spelled(alg, `{"exp":1e999}`), expirationRange},
		{"not before no number", spelled(alg, `{"nbf":true}`), badNotBefore},
		{"not before before 1970", spelled(alg, `{"nbf":-0.5}`), notBeforeRange},
		{"signature no base64", b64(alg) + "." + b64("{}") + ".*", badSignatureBase64},
		{"signature with bits that mean nothing", b64(alg) + "." + b64("{}") + ".c2lnbh", badSignatureBase64},
	} {
		t.Run(test.name, func(t *testing.T) {
			var tk token
			if got := tk.parse([]byte(test.token)); got != test.want {
				t.Errorf("it says %q", texts[got])
			}
		})
	}
	var tk token
	raw := []byte(spelled(`{"alg":"ES256","kid":""}`, `{"iss":"me","sub":"","exp":10.9}`))
	if tk.parse(raw) != good || tk.keyID == nil || tk.subject == nil || string(tk.issuer) != "me" || tk.expires != 10 || tk.notBefore != none {
		t.Errorf("%+v", tk)
	}
	if tk.parse([]byte(spelled(`{"alg":"ES256"}`, `{}`))) != good || tk.keyID != nil || tk.issuer != nil || tk.subject != nil || tk.expires != none {
		t.Errorf("the token before is seen in %+v", tk)
	}
}

func TestValid(t *testing.T) {
	const now, skew = 1000, 60
	for _, test := range []struct {
		expires, notBefore int64
		want               status
	}{
		{none, none, good},
		{now - skew, none, good},
		{now - skew - 1, none, expired},
		{0, none, expired},
		{none, now + skew, good},
		{none, now + skew + 1, notYetValid},
		{1 << 53, 1 << 53, notYetValid},
	} {
		if got := valid(test.expires, test.notBefore, now*int64(time.Second)+999, skew*int64(time.Second)); got != test.want {
			t.Errorf("%d to %d: %v", test.notBefore, test.expires, got)
		}
	}
}

// Every status that a client may see has its words.
func TestTexts(t *testing.T) {
	for s := missing; s < waiting; s++ {
		if texts[s] == "" || strings.ContainsAny(details[s], " ") {
			t.Errorf("status %d: %q", s, details[s])
		}
	}
	if details[missing] != "jwt_authn_access_denied{Jwt_is_missing}" {
		t.Error(details[missing])
	}
}

func FuzzToken(f *testing.F) {
	f.Add([]byte(spelled(`{"alg":"RS256","kid":"k"}`, `{"iss":"me","aud":["a"],"exp":1e9,"nbf":1,"a":{"b":[1]}}`)))
	f.Add([]byte(spelled(`{"alg":"none"}`, `{}`)))
	f.Add([]byte("eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"))
	var again token
	claims := []claim{{path: [][]byte{[]byte("a.b"), []byte("a"), []byte("b")}}, {path: [][]byte{[]byte("iss"), []byte("iss")}}}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var tk token
		got := tk.parse(raw)
		if other := again.parse(raw); other != got {
			t.Fatalf("%v, and in used memory %v", got, other)
		}
		if got != good {
			return
		}
		if len(raw) > maxToken || tk.algorithm == 0 || !strings.HasPrefix(string(raw), string(tk.signed)+".") {
			t.Fatalf("%+v", tk)
		}
		for i := range claims {
			if v := claims[i].render(&tk.claims); v != nil && strings.ContainsAny(string(v), "\r\n\x00") {
				t.Fatalf("a header would be %q", v)
			}
		}
	})
}
