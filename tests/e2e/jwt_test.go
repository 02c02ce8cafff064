package e2e

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue.dev/tests/certs"
)

// jwtKey makes tokens of one algorithm.
type jwtKey struct {
	alg, kid string
	jwk      map[string]string // for whoever verifies
	sign     func(message []byte) []byte
}

func base64URL(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

func newJWTKey(t *testing.T, alg, kid string) *jwtKey {
	k := &jwtKey{alg: alg, kid: kid}
	hash := func(message []byte) []byte {
		sum := sha256.Sum256(message)
		return sum[:]
	}
	var err error
	switch alg {
	case "RS256", "PS256":
		var private *rsa.PrivateKey
		if private, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
			break
		}
		k.jwk = map[string]string{"kty": "RSA", "n": base64URL(private.N.Bytes()), "e": base64URL(big.NewInt(int64(private.E)).Bytes())}
		k.sign = func(message []byte) (signature []byte) {
			if alg == "RS256" {
				signature, err = rsa.SignPKCS1v15(rand.Reader, private, crypto.SHA256, hash(message))
			} else {
				signature, err = rsa.SignPSS(rand.Reader, private, crypto.SHA256, hash(message), &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
			}
			return signature
		}
	case "ES256":
		var private *ecdsa.PrivateKey
		if private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			break
		}
		var point []byte
		point, err = private.PublicKey.Bytes()
		k.jwk = map[string]string{"kty": "EC", "crv": "P-256", "x": base64URL(point[1:33]), "y": base64URL(point[33:])}
		k.sign = func(message []byte) []byte {
			r, s, _ := ecdsa.Sign(rand.Reader, private, hash(message))
			return append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	case "EdDSA":
		var private ed25519.PrivateKey
		var public ed25519.PublicKey
		public, private, err = ed25519.GenerateKey(rand.Reader)
		k.jwk = map[string]string{"kty": "OKP", "crv": "Ed25519", "x": base64URL(public)}
		k.sign = func(message []byte) []byte { return ed25519.Sign(private, message) }
	case "HS256":
		secret := make([]byte, 32)
		_, err = rand.Read(secret)
		k.jwk = map[string]string{"kty": "oct", "k": base64URL(secret)}
		k.sign = func(message []byte) []byte {
			mac := hmac.New(sha256.New, secret)
			mac.Write(message)
			return mac.Sum(nil)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	k.jwk["kid"] = kid
	return k
}

// token signs claims, which expire in an hour.
func (k *jwtKey) token(claims string) string {
	text := fmt.Sprintf(`{%s,"exp":%d}`, claims, time.Now().Add(time.Hour).Unix())
	signed := base64URL([]byte(fmt.Sprintf(`{"alg":%q,"kid":%q}`, k.alg, k.kid))) + "." + base64URL([]byte(text))
	return signed + "." + base64URL(k.sign([]byte(signed)))
}

func jwtKeySet(t *testing.T, keys ...*jwtKey) string {
	list := []map[string]string{}
	for _, k := range keys {
		list = append(list, k.jwk)
	}
	text, err := json.Marshal(map[string]any{"keys": list})
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// keyServer has a key set, or fails.
type keyServer struct {
	address string
	mu      sync.Mutex
	content string        // "": an error
	hold    chan struct{} // an answer waits until it is closed; nil: it does not
	asked   int
}

// newKeyServer starts one; with a pair it speaks TLS, and HTTP/2.
func newKeyServer(t *testing.T, pair *certs.Pair) *keyServer {
	k := &keyServer{}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		k.mu.Lock()
		k.asked++
		content, hold := k.content, k.hold
		k.mu.Unlock()
		if hold != nil {
			<-hold
		}
		if content == "" || r.Host != "id.example.com" || r.URL.String() != "/keys?v=1" {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		_, _ = w.Write([]byte(content))
	}))
	t.Cleanup(s.Close)
	if pair == nil {
		s.Start()
	} else {
		s.TLS, s.EnableHTTP2 = &tls.Config{Certificates: []tls.Certificate{pair.TLS}}, true
		s.StartTLS()
	}
	k.address = s.Listener.Addr().String()
	return k
}

func (k *keyServer) says(content string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.content = content
}

// tellsWhoAsks has the upstream answer with what it learnt of the user.
func (st *stage) tellsWhoAsks(path string) {
	st.scripts.set(path, func(c *upstreamConn) bool {
		body := c.whole()
		h := c.request.Header
		text := strings.Join([]string{h.Get("X-User"), h.Get("X-Roles"), h.Get("Authorization"), h.Get("Cookie"), c.request.URL.RawQuery, body}, "|")
		c.says(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text))
		return true
	})
}

// TestJWT: tokens of every kind of key, where they stand, what is required of routes, by both protocols.
func TestJWT(t *testing.T) {
	rs, ps, es, ed, hs := newJWTKey(t, "RS256", "rs"), newJWTKey(t, "PS256", "ps"), newJWTKey(t, "ES256", "es"), newJWTKey(t, "EdDSA", "ed"), newJWTKey(t, "HS256", "hs")
	ca := certs.New(t, "servers")
	server := newKeyServer(t, ca.Issue("id.example.com"))
	server.says(jwtKeySet(t, rs, ps, es, ed))
	dir := t.TempDir()
	staff, partner := filepath.Join(dir, "staff.jwks"), newJWTKey(t, "ES256", "")
	if err := os.WriteFile(staff, []byte(jwtKeySet(t, hs)), 0o600); err != nil {
		t.Fatal(err)
	}
	st := newStage(t, strings.NewReplacer("CAFILE", ca.File, "SERVER", server.address, "STAFF", staff, "PARTNERS", jwtKeySet(t, partner)).Replace(`
jwt_provider "id" {
  issuer           = "https://id.example.com"
  audiences        = ["shop"]
  claim_to_headers = { x-user = "sub", x-roles = "realm.roles" }
  remote_jwks {
    uri     = "https://id.example.com/keys?v=1"
    cluster = cluster.id
    timeout = "20s"
  }
}
jwt_provider "staff" {
  jwks_file    = "STAFF"
  forward      = true
  from_headers = [{ name = "authorization", value_prefix = "Staff " }]
  from_cookies = ["staff"]
}
jwt_provider "partners" {
  from_params      = ["token"]
  claim_to_headers = { x-user = "sub" }
  jwks             = <<-EOT
    PARTNERS
  EOT
}
jwt_provider "away" {
  remote_jwks {
    uri     = "http://id.example.com/keys?v=1"
    cluster = cluster.nobody
  }
}
filter "jwt" "users" {
  requires_any          = [jwt_provider.id]
  bypass_cors_preflight = true
}
filter "jwt" "any" {
  requires_any = [jwt_provider.id, jwt_provider.partners]
}
filter "jwt" "all" {
  requires_all = [jwt_provider.id, jwt_provider.staff]
}
filter "jwt" "maybe" {
  requires_any = jwt_provider.id
  allow        = "missing"
}
filter "jwt" "lenient" {
  requires_any = jwt_provider.id
  allow        = "missing_or_failed"
}
filter "jwt" "admins" {
  requires_any = jwt_provider.id
  audiences    = ["admin"]
}
filter "jwt" "tree" {
  requires "any" {
    providers = [jwt_provider.partners]
    requires "all" {
      providers = [jwt_provider.id]
      requires "any" {
        providers = [jwt_provider.staff]
        allow     = "missing"
      }
    }
  }
}
filter "jwt" "away" { requires_any = jwt_provider.away }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    filters    = [filter.jwt.users]
    virtual_host "all" {
      domains = ["*"]
      route "/open" {
        cluster        = cluster.app
        remove_filters = [filter.jwt.users]
      }
      route "/any" {
        cluster = cluster.app
        filters = [filter.jwt.any]
      }
      route "/all" {
        cluster = cluster.app
        filters = [filter.jwt.all]
      }
      route "/maybe" {
        cluster = cluster.app
        filters = [filter.jwt.maybe]
      }
      route "/lenient" {
        cluster = cluster.app
        filters = [filter.jwt.lenient]
      }
      route "/admins" {
        cluster = cluster.app
        filters = [filter.jwt.admins]
      }
      route "/tree" {
        cluster = cluster.app
        filters = [filter.jwt.tree]
      }
      route "/away" {
        cluster = cluster.app
        filters = [filter.jwt.away]
      }
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
cluster "id" {
  endpoints = ["SERVER"]
  protocol  = "http2"
  tls {
    sni     = "id.example.com"
    ca_file = "CAFILE"
  }
}
cluster "nobody" { endpoints = ["127.0.0.1:1"] }
`))
	ann := `"iss":"https://id.example.com","aud":["web","shop"],"sub":"ann","realm":{"roles":["a"]}`
	roles := base64.StdEncoding.EncodeToString([]byte(`["a"]`))
	bearer := func(k *jwtKey, claims string) map[string]string {
		return map[string]string{"authorization": "Bearer " + k.token(claims)}
	}
	forged := bearer(es, ann)
	forged["x-user"], forged["x-roles"] = "eve", "root"
	both := bearer(es, ann)
	both["cookie"] = "a=b; staff=" + hs.token(`"sub":"joe"`)
	bad := bearer(es, ann)
	bad["cookie"] = "staff=" + newJWTKey(t, "HS256", "hs").token(`"sub":"joe"`)
	const missing = "Jwt is missing"
	for _, test := range []struct {
		name, method, path string
		headers            map[string]string
		status             int
		want               string // of the upstream, or the reason
	}{
		{"RS256", "GET", "/", bearer(rs, ann), 200, "ann|" + roles + "||||"},
		{"PS256", "GET", "/", bearer(ps, ann), 200, "ann|" + roles + "||||"},
		{"ES256", "GET", "/", bearer(es, ann), 200, "ann|" + roles + "||||"},
		{"EdDSA", "GET", "/", bearer(ed, ann), 200, "ann|" + roles + "||||"},
		{"a body", "POST", "/", bearer(es, ann), 200, "ann|" + roles + "||||hello"},
		{"forged headers", "GET", "/", forged, 200, "ann|" + roles + "||||"},
		{"in the query", "GET", "/?q=1&access_token=" + es.token(ann), nil, 200, "ann|" + roles + "|||q=1|"},
		{"no token", "GET", "/", nil, 401, missing},
		{"another key", "GET", "/", bearer(newJWTKey(t, "ES256", "es"), ann), 401, "Jwt verification fails"},
		{"another secret", "GET", "/", bearer(hs, ann), 401, "Jwks doesn't have key to match kid or alg from Jwt"},
		{"another issuer", "GET", "/", bearer(es, `"iss":"me"`), 401, "Jwt issuer is not configured"},
		{"another audience", "GET", "/", bearer(es, `"iss":"https://id.example.com","aud":"web"`), 403, "Audiences in Jwt are not allowed"},
		{"a preflight", "OPTIONS", "/", map[string]string{"origin": "http://a", "access-control-request-method": "PUT", "x-user": "eve"}, 200, "|||||"},
		{"no requirement", "GET", "/open", map[string]string{"authorization": "Basic YTpi"}, 200, "||Basic YTpi|||"},
		{"any", "GET", "/any?token=" + partner.token(`"sub":"bob"`), nil, 200, "bob|||||"},
		{"any: none", "GET", "/any", nil, 401, missing},
		{"all", "GET", "/all", both, 200, "ann|" + roles + "||" + both["cookie"] + "||"},
		{"all: one", "GET", "/all", bearer(es, ann), 401, missing},
		{"maybe: none", "GET", "/maybe", map[string]string{"x-user": "eve"}, 200, "|||||"},
		{"maybe: a bad one", "GET", "/maybe", bearer(es, `"iss":"me"`), 401, "Jwt issuer is not configured"},
		{"lenient: a bad one", "GET", "/lenient", map[string]string{"x-user": "eve", "authorization": "Bearer x"}, 200, "||Bearer x|||"},
		{"lenient: a good one", "GET", "/lenient", bearer(es, ann), 200, "ann|" + roles + "||||"},
		{"admins", "GET", "/admins", bearer(es, ann), 403, "Audiences in Jwt are not allowed"},
		{"tree: the first", "GET", "/tree?token=" + partner.token(`"sub":"bob"`), nil, 200, "bob|||||"},
		{"tree: the second", "GET", "/tree", bearer(es, ann), 200, "ann|" + roles + "||||"},
		{"tree: the second whole", "GET", "/tree", both, 200, "ann|" + roles + "||" + both["cookie"] + "||"},
		{"tree: a part of the second that is bad", "GET", "/tree", bad, 401, "Jwt verification fails"},
		{"tree: a part of the second alone", "GET", "/tree", map[string]string{"cookie": both["cookie"]}, 401, missing},
		{"tree: none", "GET", "/tree", nil, 401, missing},
		{"keys away", "GET", "/away", bearer(es, ann), 401, "Jwks remote fetch is failed"},
	} {
		path, _, _ := strings.Cut(test.path, "?")
		st.tellsWhoAsks(path)
		for protocol, http2 := range map[string]bool{"HTTP/1": false, "HTTP/2": true} {
			t.Run(test.name+"/"+protocol, func(t *testing.T) {
				body := ""
				if test.method == "POST" {
					body = "hello"
				}
				response, got, logged := st.over(t, http2, test.method, test.path, test.headers, body)
				if response.StatusCode != test.status || got != test.want {
					t.Errorf("answered %d: %q", response.StatusCode, got)
				}
				challenge := response.Header.Get("WWW-Authenticate")
				if test.status == 200 {
					if challenge != "" {
						t.Errorf("challenged by %q", challenge)
					}
					return
				}
				want := fmt.Sprintf("Bearer realm=\"http://%s%s\"", st.Address("web"), path)
				if test.want != missing {
					want += `, error="invalid_token"`
				}
				if challenge != want {
					t.Errorf("challenged by %q", challenge)
				}
				if details := "jwt_authn_access_denied{" + strings.ReplaceAll(test.want, " ", "_") + "}"; logged.Details != details || logged.Flags != "" {
					t.Errorf("logged %+v", logged)
				}
			})
		}
	}
	st.AwaitStat(2, "retinue_jwt_provider_jwks_fetch_success", "provider=id") // the second one for the secret's kid
	st.AwaitStat(1, "retinue_jwt_provider_jwks_refetch_on_kid_mismatch", "provider=id")
	st.AwaitStat(2, "retinue_jwt_cors_preflight_bypassed", "filter=users")
	st.AwaitStat(10, "retinue_jwt_denied", "filter=users")
	st.AwaitStat(16, "retinue_jwt_allowed", "filter=users")
	if out, code := st.Retinue("explain", "GET", "http://shop/all"); code != 0 || !strings.Contains(out, "a token of id and staff") {
		t.Errorf("explained (%d):\n%s", code, out)
	}

	if out, code := st.Retinue("explain", "GET", "http://shop/tree"); code != 0 || !strings.Contains(out, "a token of partners or (id and (staff or nothing))") {
		t.Errorf("explained (%d):\n%s", code, out)
	}

	// The file of keys is a secret that rotates.
	next := newJWTKey(t, "HS256", "next")
	if err := os.WriteFile(staff, []byte(jwtKeySet(t, next)), 0o600); err != nil {
		t.Fatal(err)
	}
	with := func(k *jwtKey) map[string]string {
		headers := bearer(es, ann)
		headers["cookie"] = "staff=" + k.token(`"sub":"joe"`)
		return headers
	}
	st.Eventually("keys of a changed file", func() error {
		response, got, _ := st.over(t, false, "GET", "/all", with(next), "")
		if response.StatusCode != 200 {
			return errors.New(got)
		}
		return nil
	})
	if response, got, _ := st.over(t, false, "GET", "/all", with(hs), ""); response.StatusCode != 401 {
		t.Errorf("a token of the keys before is answered %d: %q", response.StatusCode, got)
	}
	if err := os.WriteFile(staff, []byte(strings.Replace(jwtKeySet(t, next), "oct", "none", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	st.Eventually("a file that is of no use", func() error {
		for line := range strings.Lines(st.Log()) {
			if strings.Contains(line, "a changed secret is not taken") && strings.Contains(line, `test.hcl:13:`) && strings.Contains(line, "no key for signatures") {
				return nil
			}
		}
		return errors.New("nobody says so")
	})
	if response, got, _ := st.over(t, false, "GET", "/all", with(next), ""); response.StatusCode != 200 {
		t.Errorf("the last keys are gone: %q", got)
	}
	for _, secret := range []string{hs.jwk["k"], next.jwk["k"]} {
		if strings.Contains(st.Log(), secret) {
			t.Error("a secret is in a log")
		}
	}
}
