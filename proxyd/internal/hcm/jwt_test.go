package hcm

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"retinue.dev/libs/jwk"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/filter/jwt"
	configv1 "retinue.dev/services/api/config/v1"
)

// issuer makes tokens.
type issuer struct {
	id      string
	private ed25519.PrivateKey
}

func newIssuer(t testing.TB, id string) *issuer {
	_, private, err := ed25519.GenerateKey(nil)
	must(t, err)
	return &issuer{id, private}
}

func (i *issuer) keys() string {
	return fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q}]}`, i.id, encoded(string(i.public())))
}

func (i *issuer) public() []byte { return i.private.Public().(ed25519.PublicKey) }

func (i *issuer) set(t testing.TB) *jwk.Set {
	set, err := jwk.Parse([]byte(i.keys()))
	must(t, err)
	return set
}

func encoded(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

// token signs claims.
func (i *issuer) token(claims string) string {
	signed := encoded(fmt.Sprintf(`{"alg":"EdDSA","kid":%q}`, i.id)) + "." + encoded(claims)
	return signed + "." + encoded(string(ed25519.Sign(i.private, []byte(signed))))
}

// gate is a jwt filter with what it is made of.
type gate struct {
	built     *filter.Filter
	stats     *counters.Set
	providers map[string]*jwt.Provider
}

func newGate(t testing.TB, o *configv1.JwtFilter) *gate {
	t.Helper()
	g := &gate{stats: counters.NewHeap(1), providers: map[string]*jwt.Provider{}}
	var err error
	g.built, err = filter.Build(&configv1.Filter{Name: "jwt.a", Kind: &configv1.Filter_Jwt{Jwt: o}}, &filter.Env{
		Context: context.Background(), Workers: 1, Stats: g.stats,
		JwtProvider: func(m *configv1.JwtProvider) (*jwt.Provider, error) {
			p, err := jwt.NewProvider(m, &jwt.Needs{
				Workers: 1, Cells: g.stats.JwtProviders(context.Background(), []string{m.GetName()})[0],
				Cluster: func(string) (cluster.Handle, bool) { return 0, true },
			})
			g.providers[m.GetName()] = p
			return p, err
		},
	})
	must(t, err)
	return g
}

func (g *gate) counted(cell int) uint64 {
	return g.stats.JWTs(context.Background(), []string{"a"})[0][0][cell]
}

// on is a world whose requests pass a gate.
func (g *gate) on(t *testing.T) *world {
	x := newWorld(t, defaults())
	x.filter.Config.Filters = append(x.filter.Config.Filters, g.built.HTTP)
	return x
}

func requires(names ...string) (list []*configv1.JwtRequirement) {
	for _, n := range names {
		list = append(list, &configv1.JwtRequirement{Provider: n})
	}
	return list
}

const now = wallStart / int64(time.Second)

// TestJWT has a row for each way in and each way out.
func TestJWT(t *testing.T) {
	a, b := newIssuer(t, "a"), newIssuer(t, "b")
	provider := func(change func(p *configv1.JwtProvider)) *configv1.JwtProvider {
		p := &configv1.JwtProvider{
			Name: "a", Issuer: "ia", Jwks: a.keys(), ClockSkewMs: 60_000, CacheSize: 10, ForwardPayloadHeader: "x-payload",
			ClaimToHeaders: []*configv1.JwtClaim{{Header: "x-user", Claim: "sub"}, {Header: "x-role", Claim: "realm.role"}, {Header: "x-roles", Claim: "https://shop/roles"}},
		}
		if change != nil {
			change(p)
		}
		return p
	}
	second := &configv1.JwtProvider{
		Name: "b", Issuer: "ib", Jwks: b.keys(), ClockSkewMs: 60_000, FromHeaders: []*configv1.JwtHeader{{Name: "x-b"}},
		ClaimToHeaders: []*configv1.JwtClaim{{Header: "x-b-user", Claim: "sub"}},
	}
	one := func(change func(p *configv1.JwtProvider)) *configv1.JwtFilter {
		return &configv1.JwtFilter{Providers: []*configv1.JwtProvider{provider(change)}, RequiresAny: requires("a")}
	}
	two := func(change func(f *configv1.JwtFilter)) *configv1.JwtFilter {
		f := &configv1.JwtFilter{Providers: []*configv1.JwtProvider{provider(nil), second}}
		change(f)
		return f
	}
	anyOf := func(f *configv1.JwtFilter) { f.RequiresAny = requires("a", "b") }
	allOf := func(f *configv1.JwtFilter) { f.RequiresAll = requires("a", "b") }
	bearer := func(claims string) string { return "Authorization: Bearer " + a.token(claims) }
	claims := func(text string) string { return `{"iss":"ia","sub":"ann"` + text + `}` }
	unsigned := func(header, claims string) string {
		return "Authorization: Bearer " + encoded(header) + "." + encoded(claims) + "."
	}
	confused := func() string {
		signed := encoded(`{"alg":"HS256","kid":"a"}`) + "." + encoded(claims(""))
		mac := hmac.New(sha256.New, a.public())
		mac.Write([]byte(signed))
		return "Authorization: Bearer " + signed + "." + encoded(string(mac.Sum(nil)))
	}()
	const fails = "Jwt verification fails"
	for _, test := range []struct {
		name    string
		filter  *configv1.JwtFilter
		request string // lines of headers, behind another method or path
		refused string // "": it passes
		gets    string // the upstream's headers among them, sorted as sent
		keeps   string // what it does not get
	}{
		{"a token", one(nil), bearer(claims("")), "", "X-User: ann", "Authorization"},
		{"forged headers", one(nil), "X-User: eve\r\nx-role: root\r\nX-Payload: e30\r\n" + bearer(claims("")), "", "X-User: ann", "eve root e30"},
		{"claims of all kinds", one(nil), bearer(claims(`,"realm":{"role":7},"https://shop/roles":["a",1]`)), "", "X-Role: 7\r\nX-Roles: " + base64.StdEncoding.EncodeToString([]byte(`["a",1]`)), ""},
		{"the payload", one(nil), bearer(claims("")), "", "X-Payload: " + encoded(claims("")), ""},
		{"the payload, padded", one(func(p *configv1.JwtProvider) { p.PadForwardPayloadHeader = true }), bearer(claims("")), "", "X-Payload: " + base64.URLEncoding.EncodeToString([]byte(claims(""))), ""},
		{"a claim with a line break", one(nil), bearer(`{"iss":"ia","sub":"ann\r\nX-Role: root"}`), "", "", "X-User root"},
		{"a claim with a blank before it", one(nil), bearer(`{"iss":"ia","sub":" ann"}`), "", "", "X-User"},
		{"an empty claim, and one that is null", one(nil), bearer(`{"iss":"ia","sub":"","realm":{"role":null}}`), "", "", "X-User X-Role"},
		{"forwarded", one(func(p *configv1.JwtProvider) { p.Forward = true }), bearer(claims("")), "", bearer(claims("")), ""},
		{"in a parameter", one(nil), "GET /?q=1&access_token=" + a.token(claims("")), "", "GET /?q=1 HTTP", "access_token"},
		{"no token", one(nil), "", "401 Jwt is missing", "", ""},
		{"another scheme", one(nil), "Authorization: Basic YTpi", "401 Jwt is missing", "", ""},
		{"no token at all", one(nil), "Authorization: Bearer nonsense", "401 Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections", "", ""},
		{"a good one and a bad one", one(nil), bearer(claims("")) + "\r\nAuthorization: Bearer nonsense", "401 Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections", "", ""},
		{"too many", one(nil), strings.Repeat(bearer(claims(""))+"\r\n", 4) + bearer(claims("")), "401 Found multiple Jwt tokens", "", ""},
		{"of another issuer", one(nil), bearer(`{"iss":"ib"}`), "401 Jwt issuer is not configured", "", ""},
		{"of no issuer", one(nil), bearer(`{}`), "401 Jwt issuer is not configured", "", ""},
		{"any issuer", one(func(p *configv1.JwtProvider) { p.Issuer = "" }), bearer(`{"iss":"ib","sub":"bob"}`), "", "X-User: bob", ""},
		{"signed by another", one(nil), "Authorization: Bearer " + (&issuer{"a", b.private}).token(claims("")), "401 " + fails, "", ""},
		{"signed by an unknown key", one(nil), "Authorization: Bearer " + b.token(claims("")), "401 Jwks doesn't have key to match kid or alg from Jwt", "", ""},
		{"not signed", one(nil), unsigned(`{"alg":"none"}`, claims("")), "401 Jwt header [alg] is not supported", "", ""},
		{"no signature", one(nil), unsigned(`{"alg":"EdDSA","kid":"a"}`, claims("")), "401 " + fails, "", ""},
		{"the public key as a secret", one(nil), confused, "401 Jwks doesn't have key to match kid or alg from Jwt", "", ""},
		{"expired", one(nil), bearer(claims(fmt.Sprintf(`,"exp":%d`, now-61))), "401 Jwt is expired", "", ""},
		{"expired within the skew", one(nil), bearer(claims(fmt.Sprintf(`,"exp":%d`, now-60))), "", "X-User: ann", ""},
		{"not yet", one(nil), bearer(claims(fmt.Sprintf(`,"nbf":%d`, now+61))), "401 Jwt not yet valid", "", ""},
		{"no expiration", one(func(p *configv1.JwtProvider) { p.RequireExpiration = true }), bearer(claims("")), "401 " + fails, "", ""},
		{"too long a life", one(func(p *configv1.JwtProvider) { p.MaxLifetimeMs = 10_000 }), bearer(claims(fmt.Sprintf(`,"exp":%d`, now+11))), "401 " + fails, "", ""},
		{"just not too long", one(func(p *configv1.JwtProvider) { p.MaxLifetimeMs = 10_000 }), bearer(claims(fmt.Sprintf(`,"exp":%d`, now+10))), "", "X-User: ann", ""},
		{"an audience", one(func(p *configv1.JwtProvider) { p.Audiences = []string{"x", "shop"} }), bearer(claims(`,"aud":["web","shop"]`)), "", "X-User: ann", ""},
		{"another audience", one(func(p *configv1.JwtProvider) { p.Audiences = []string{"shop"} }), bearer(claims(`,"aud":"shops"`)), "403 Audiences in Jwt are not allowed", "", ""},
		{"no audience", one(func(p *configv1.JwtProvider) { p.Audiences = []string{"shop"} }), bearer(claims("")), "403 Audiences in Jwt are not allowed", "", ""},
		{
			"the audience of the requirement",
			two(func(f *configv1.JwtFilter) {
				f.RequiresAny = requires("a")
				f.RequiresAny[0].Audiences = []string{"admin"}
			}),
			bearer(claims(`,"aud":"shop"`)), "403 Audiences in Jwt are not allowed", "", "",
		},
		{"a subject", one(func(p *configv1.JwtProvider) { p.Subjects = []string{"a*"} }), bearer(claims("")), "", "X-User: ann", ""},
		{"another subject", one(func(p *configv1.JwtProvider) { p.Subjects = []string{"b*"} }), bearer(claims("")), "401 " + fails, "", ""},
		{"no subject", one(func(p *configv1.JwtProvider) { p.Subjects = []string{"*"} }), bearer(`{"iss":"ia"}`), "401 " + fails, "", ""},

		{"any: the first", two(anyOf), bearer(claims("")), "", "X-User: ann", ""},
		{"any: the second", two(anyOf), "x-b: " + b.token(`{"iss":"ib","sub":"bob"}`), "", "X-B-User: bob", "X-B:"},
		{"any: none", two(anyOf), "", "401 Jwt is missing", "", ""},
		{"any: a bad one and none", two(anyOf), bearer(`{"iss":"ia","exp":1}`), "401 Jwt is expired", "", ""},
		{"all: both", two(allOf), bearer(claims("")) + "\r\nx-b: " + b.token(`{"iss":"ib","sub":"bob"}`), "", "X-User: ann\r\nX-B-User: bob", ""},
		{"all: one", two(allOf), bearer(claims("")), "401 Jwt is missing", "", ""},
		{"missing, allowed", two(func(f *configv1.JwtFilter) { anyOf(f); f.AllowMissing = true }), "X-User: eve\r\nx-b-user: eve", "", "", "eve"},
		{"bad, missing allowed", two(func(f *configv1.JwtFilter) { anyOf(f); f.AllowMissing = true }), bearer(`{"iss":"ia","exp":1}`), "401 Jwt is expired", "", ""},
		{"unknown, missing allowed", two(func(f *configv1.JwtFilter) { anyOf(f); f.AllowMissing = true }), bearer(`{"iss":"ic"}`), "401 Jwt issuer is not configured", "", ""},
		{"bad, allowed", two(func(f *configv1.JwtFilter) { anyOf(f); f.AllowMissingOrFailed = true }), "X-User: eve\r\n" + bearer(`{"iss":"ia","exp":1}`), "", "", "eve"},
		{"good, failed allowed", two(func(f *configv1.JwtFilter) { anyOf(f); f.AllowMissingOrFailed = true }), bearer(claims("")), "", "X-User: ann", ""},
		{
			"preflight",
			two(func(f *configv1.JwtFilter) { anyOf(f); f.BypassCorsPreflight = true }),
			"OPTIONS /\r\nOrigin: o\r\nAccess-Control-Request-Method: PUT\r\nX-User: eve", "", "OPTIONS /", "eve",
		},
		{"preflight, not bypassed", two(anyOf), "OPTIONS /\r\nOrigin: o\r\nAccess-Control-Request-Method: PUT", "401 Jwt is missing", "", ""},
		{"no preflight", two(func(f *configv1.JwtFilter) { anyOf(f); f.BypassCorsPreflight = true }), "OPTIONS /\r\nOrigin: o", "401 Jwt is missing", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			g := newGate(t, test.filter)
			x := g.on(t)
			line, rest := "GET /", test.request
			if method, _, _ := strings.Cut(rest, " "); method == "GET" || method == "OPTIONS" {
				line, rest, _ = strings.Cut(rest, "\r\n")
			}
			if rest != "" {
				rest += "\r\n"
			}
			c := x.client()
			for range 2 { // the second time it is known
				c.send(line + " HTTP/1.1\r\nHost: shop\r\n" + rest + "\r\n")
				if test.refused != "" {
					code, text, _ := strings.Cut(test.refused, " ")
					problem := `, error="invalid_token"`
					if text == "Jwt is missing" {
						problem = ""
					}
					c.hears("HTTP/1.1 "+code+" ", `WWW-Authenticate: Bearer realm="http://shop/"`+problem+"\r\n", "\r\n\r\n"+text)
					if l := x.last(); l.details != "jwt_authn_access_denied{"+strings.ReplaceAll(text, " ", "_")+"}" || l.flags != "-" && l.flags != "" {
						t.Errorf("logged %+v", l)
					}
					c.got = nil
					continue
				}
				up := x.upstream()
				up.hears("\r\n\r\n")
				for _, want := range strings.Split(test.gets, "\r\n") {
					if !bytes.Contains(up.got, []byte(want)) {
						t.Errorf("the upstream got %q", up.got)
					}
				}
				for _, gone := range strings.Fields(test.keeps) {
					if bytes.Contains(up.got, []byte(gone)) {
						t.Errorf("the upstream got %q", up.got)
					}
				}
				up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
				c.hears("\r\n\r\nok")
				c.got = nil
			}
			allowed, denied := g.counted(counters.JWTAllowed), g.counted(counters.JWTDenied)
			if want := test.refused == ""; (allowed == 2) != want || (denied == 2) == want {
				t.Errorf("%d allowed, %d denied", allowed, denied)
			}
		})
	}
}

// What stands in the URL does not end the realm, and a token in it is not told.
func TestRealm(t *testing.T) {
	g := newGate(t, &configv1.JwtFilter{Providers: []*configv1.JwtProvider{{Name: "a", Jwks: newIssuer(t, "a").keys()}}, RequiresAny: requires("a")})
	x := g.on(t)
	c := x.client()
	c.send("GET /a\"b" + strings.Repeat("x", 300) + "?access_token=secret HTTP/1.1\r\nHost: shop\r\n\r\n")
	c.hears(`WWW-Authenticate: Bearer realm="http://shop/a%22b`+strings.Repeat("x", 256-len("http://shop/a%22b"))+`", error="invalid_token"`+"\r\n", "\r\n\r\nJwt is not")
	if bytes.Contains(c.got, []byte("secret")) || strings.Contains(x.last().path, "secret") {
		t.Errorf("%q, and logged %q", c.got, x.last().path)
	}
}

// remote is a gate whose keys are fetched by the test.
func remote(t *testing.T) (*gate, *jwt.Provider) {
	g := newGate(t, &configv1.JwtFilter{
		Providers: []*configv1.JwtProvider{{
			Name: "a", CacheSize: 10, RemoteJwks: &configv1.RemoteJwks{Cluster: "up", TimeoutMs: 1000, CacheDurationMs: 1000},
			ClaimToHeaders: []*configv1.JwtClaim{{Header: "x-user", Claim: "sub"}},
		}},
		RequiresAny: requires("a"),
	})
	return g, g.providers["a"]
}

// Streams that come before the first keys wait for them, with their bodies, and hear when there will be none.
func TestJWTWaitsForKeys(t *testing.T) {
	a := newIssuer(t, "a")
	token := "Authorization: Bearer " + a.token(`{"sub":"ann"}`) + "\r\n"
	post := "POST /x HTTP/1.1\r\nHost: shop\r\nContent-Length: 4\r\n" + token + "\r\n"
	t.Run("they come", func(t *testing.T) {
		g, p := remote(t)
		x := g.on(t)
		c, other := x.client(), x.client()
		c.send(post)
		c.send("body")
		other.send("GET /y HTTP/1.1\r\nHost: shop\r\n" + token + "\r\n")
		c.nothing()
		bad := x.client()
		bad.send("GET / HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer nonsense\r\n\r\n")
		bad.hears("HTTP/1.1 401 ") // at once
		p.Take(a.set(t))
		c.nothing()
		p.Settle(0)
		up, another := x.upstream(), x.upstream()
		up.hears("\r\n\r\n")
		if !bytes.Contains(up.got, []byte("POST")) {
			up, another = another, up
		}
		up.hears("POST /x HTTP/1.1\r\n", "X-User: ann\r\n", "\r\n\r\nbody")
		another.hears("GET /y HTTP/1.1\r\n", "X-User: ann\r\n")
		up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		c.hears("\r\n\r\nok")
	})
	t.Run("they do not", func(t *testing.T) {
		g, p := remote(t)
		x := g.on(t)
		c := x.client()
		c.send(post)
		c.nothing()
		p.Fail()
		p.Settle(0)
		c.hears("HTTP/1.1 401 ", "\r\n\r\nJwks remote fetch is failed")
		if l := x.last(); l.details != "jwt_authn_access_denied{Jwks_remote_fetch_is_failed}" {
			t.Errorf("logged %+v", l)
		}
		again := x.client()
		again.send("GET /y HTTP/1.1\r\nHost: shop\r\n" + token + "\r\n")
		again.hears("HTTP/1.1 401 ") // at once
		p.Take(a.set(t))
		p.Settle(0)
		again.send("GET /y HTTP/1.1\r\nHost: shop\r\n" + token + "\r\n")
		x.upstream().hears("GET /y", "X-User: ann\r\n")
	})
	t.Run("the client goes", func(t *testing.T) {
		g, p := remote(t)
		x := g.on(t)
		c := x.client()
		c.send(post)
		c.nothing()
		c.close()
		x.turn()
		p.Take(a.set(t))
		p.Settle(0)
		x.turn()
	})
	t.Run("it takes too long", func(t *testing.T) {
		g, p := remote(t)
		x := g.on(t)
		x.filter.Config.StreamIdleTimeout = int64(time.Second)
		c := x.client()
		c.send(post)
		c.nothing()
		x.pass(10 * time.Second)
		c.hears("HTTP/1.1 ")
		p.Take(a.set(t))
		p.Settle(0)
		x.turn()
	})
}

// So many streams wait in a worker, and not one more.
func TestJWTWaitingIsBounded(t *testing.T) {
	a := newIssuer(t, "a")
	g, p := remote(t)
	s := newSim(t, defaults(), g.built.HTTP)
	request := []byte("GET / HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer " + a.token(`{"sub":"ann"}`) + "\r\n\r\n")
	const most = 1024
	s.net.MaxFD = 2 * most
	for range most {
		s.client().Send(request)
	}
	for range 20 {
		s.turn()
	}
	if n := g.counted(counters.JWTDenied); n != 0 {
		t.Fatalf("%d refused", n)
	}
	s.client().Send(request)
	s.turn()
	if n := g.counted(counters.JWTDenied); n != 1 {
		t.Errorf("%d refused of one too many", n)
	}
	p.Fail()
	p.Settle(0)
	s.turn()
	if n := g.counted(counters.JWTDenied); n != most+1 {
		t.Errorf("%d refused at the end", n)
	}
}

// Keys rotate: what the one before has signed is refused from then on, though it was verified.
func TestJWTKeysRotate(t *testing.T) {
	a, b := newIssuer(t, "a"), newIssuer(t, "b")
	g, p := remote(t)
	x := g.on(t)
	c := x.client()
	ask := func(by *issuer) {
		c.send("GET / HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer " + by.token(`{"sub":"ann"}`) + "\r\n\r\n")
	}
	passes := func() {
		t.Helper()
		up := x.upstream()
		up.hears("X-User: ann\r\n")
		up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
		c.hears("\r\n\r\nok")
		c.got = nil
	}
	p.Take(a.set(t))
	for range 3 {
		ask(a)
		passes()
	}
	if hits := p.Cells[0][counters.JwtProviderCacheHit]; hits != 2 {
		t.Errorf("%d hits", hits)
	}
	p.Take(b.set(t))
	ask(a)
	c.hears("HTTP/1.1 401 ", "Jwks doesn't have key to match kid or alg from Jwt")
	c.got = nil
	ask(b)
	passes()
	p.Fail() // the next fetch: the keys stay
	p.Settle(0)
	ask(b)
	passes()
}

// A token that was verified costs no memory, wherever it is told.
func TestKnownTokenAllocatesNothing(t *testing.T) {
	a := newIssuer(t, "a")
	g := newGate(t, &configv1.JwtFilter{
		Providers: []*configv1.JwtProvider{{
			Name: "a", Issuer: "ia", Audiences: []string{"shop"}, Jwks: a.keys(), ClockSkewMs: 60_000, CacheSize: 10, ForwardPayloadHeader: "x-payload",
			ClaimToHeaders: []*configv1.JwtClaim{{Header: "x-user", Claim: "sub"}},
		}},
		RequiresAny: requires("a"),
	})
	s := newSim(t, defaults(), g.built.HTTP)
	s.filter.Config.Logs = nil
	before := plainRequest
	defer func() { plainRequest = before }()
	token := a.token(`{"iss":"ia","sub":"ann","aud":["web","shop"]}`)
	plainRequest = []byte("GET /1k?a=b&access_token=" + token + " HTTP/1.1\r\nHost: shop.example.com\r\nX-User: eve\r\nAuthorization: Bearer " + token + "\r\n\r\n")
	client := s.warm()
	if n := testing.AllocsPerRun(1000, func() { s.exchange(client) }); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
	if misses := g.providers["a"].Cells[0][counters.JwtProviderCacheMiss]; misses != 1 {
		t.Errorf("%d misses", misses)
	}
}

func BenchmarkJWT(b *testing.B) {
	a := newIssuer(b, "a")
	for name, size := range map[string]uint32{"known": 10, "verified": 0} {
		b.Run(name, func(b *testing.B) {
			g := newGate(b, &configv1.JwtFilter{
				Providers:   []*configv1.JwtProvider{{Name: "a", Jwks: a.keys(), CacheSize: size, ClaimToHeaders: []*configv1.JwtClaim{{Header: "x-user", Claim: "sub"}}}},
				RequiresAny: requires("a"),
			})
			s := newSim(b, defaults(), g.built.HTTP)
			s.filter.Config.Logs = nil
			before := plainRequest
			defer func() { plainRequest = before }()
			plainRequest = []byte("GET /1k HTTP/1.1\r\nHost: shop.example.com\r\nAuthorization: Bearer " + a.token(`{"iss":"ia","sub":"ann"}`) + "\r\n\r\n")
			client := s.warm()
			b.ReportAllocs()
			for b.Loop() {
				s.exchange(client)
			}
		})
	}
}
