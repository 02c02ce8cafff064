package hcm

import (
	"context"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/filter/jwt"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestJWTWaitsForNewKey: a request whose token names a key that is not in the set waits for the set, with its body, and goes on or is
// refused by it; within the provider's time another is refused at once, and after it has the set fetched again.
func TestJWTWaitsForNewKey(t *testing.T) {
	a, b, unknown := newIssuer(t, "a"), newIssuer(t, "b"), newIssuer(t, "c")
	rung := 0
	var p *jwt.Provider
	stats := counters.NewHeap(1)
	built, err := filter.Build(&configv1.Filter{Name: "jwt.a", Kind: &configv1.Filter_Jwt{Jwt: &configv1.JwtFilter{
		Providers: []*configv1.JwtProvider{{
			Name: "a", CacheSize: 10, ClaimToHeaders: []*configv1.JwtClaim{{Header: "x-user", Claim: "sub"}},
			RemoteJwks: &configv1.RemoteJwks{Cluster: "up", TimeoutMs: 5000, CacheDurationMs: 600_000, KidMismatchMs: 30_000},
		}},
		RequiresAny: requires("a"),
	}}}, &filter.Env{Context: context.Background(), Workers: 1, Stats: stats, JwtProvider: func(m *configv1.JwtProvider) (*jwt.Provider, error) {
		var err error
		p, err = jwt.NewProvider(m, &jwt.Needs{
			Workers: 1, Cells: stats.JwtProviders(context.Background(), []string{m.GetName()})[0], Ring: func() { rung++ },
			Cluster: func(string) (cluster.Handle, bool) { return 0, true },
		})
		return p, err
	}})
	must(t, err)
	x := newWorld(t, defaults())
	x.filter.Config.Filters = append(x.filter.Config.Filters, built.HTTP)
	p.Take(a.set(t))
	ask := func(c *peer, by *issuer) {
		c.send("POST / HTTP/1.1\r\nHost: shop\r\nAuthorization: Bearer " + by.token(`{"sub":"ann"}`) + "\r\nContent-Length: 5\r\n\r\nhello")
	}
	refused := func(c *peer) {
		t.Helper()
		c.hears("HTTP/1.1 401 ", "Jwks doesn't have key to match kid or alg from Jwt")
		c.got = nil
	}

	first, second, third := x.client(), x.client(), x.client()
	ask(first, b)
	ask(second, unknown)
	x.until("a wish", func() bool { return rung == 1 })
	if !p.Begin() {
		t.Fatal("nobody wants keys")
	}
	ask(third, b) // while they are fetched
	gone := x.client()
	ask(gone, b)
	x.turn()
	gone.close()
	x.turn()
	if len(first.got)+len(second.got)+len(third.got) > 0 {
		t.Errorf("answers before the keys: %q %q %q", first.got, second.got, third.got)
	}
	p.Take(b.set(t))
	p.Settle(0)
	for range 2 {
		up := x.upstream()
		up.hears("X-User: ann\r\n", "hello")
		up.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")
	}
	first.hears("\r\n\r\nok")
	third.hears("\r\n\r\nok")
	refused(second)
	ask(second, unknown)
	refused(second)
	if rung != 1 {
		t.Errorf("rung %d times", rung)
	}

	x.pass(31 * time.Second)
	ask(second, unknown)
	x.until("another wish", func() bool { return rung == 2 })
	p.Begin()
	p.Fail()
	p.Settle(0)
	refused(second)
	if n := p.Cells[0][counters.JwtProviderKidMismatch]; n != 2 {
		t.Errorf("%d counted", n)
	}
}
