package hcm

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/accesslog"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

// authorised is a world whose requests an authoriser is asked about; it is the upstream, too.
func authorised(t *testing.T, o *configv1.ExtAuthzFilter) *world {
	t.Helper()
	x := newWorld(t, defaults())
	o.Cluster = "up"
	if o.TimeoutMs == 0 {
		o.TimeoutMs = 200
	}
	o.StatusOnError = 403
	built, err := filter.Build(&configv1.Filter{Name: "ext_authz.a", Kind: &configv1.Filter_ExtAuthz{ExtAuthz: o}}, &filter.Env{
		Context: context.Background(), Workers: 1, Stats: counters.NewHeap(1), Pools: []*upstream.Manager{x.manager},
		Cluster: func(string) (cluster.Handle, bool) { return 0, true },
		Format:  func(format string) (filter.Formatter, error) { return accesslog.CompileValue(format, 1) },
	})
	must(t, err)
	x.filter.Config.Filters = append(x.filter.Config.Filters, built.HTTP)
	return x
}

func (p *peer) hears(parts ...string) {
	p.x.t.Helper()
	p.x.until(strings.Join(parts, ", "), func() bool {
		p.pull()
		for _, part := range parts {
			if !bytes.Contains(p.got, []byte(part)) {
				return false
			}
		}
		return true
	})
}

const asked = "GET /a?b HTTP/1.1\r\nHost: shop\r\nAuthorization: me\r\nCookie: c=1\r\nX-User: forged\r\n\r\n"

// A permission: the service hears what is declared, and what it says reaches the upstream and the client.
func TestAuthorised(t *testing.T) {
	x := authorised(t, &configv1.ExtAuthzFilter{
		PathPrefix: "/check", AllowedHeaders: []string{"cookie"}, AllowedUpstreamHeaders: []string{"x-user"}, AllowedClientHeadersOnSuccess: []string{"x-seen"},
	})
	c := x.client()
	c.send(asked)
	up := x.upstream()
	up.hears("GET /check/a?b HTTP/1.1\r\n", "Host: shop\r\n", "Authorization: me\r\n", "Cookie: c=1\r\n", "\r\n\r\n")
	if bytes.Contains(up.got, []byte("forged")) {
		t.Errorf("the service heard %q", up.got)
	}
	up.got = nil
	up.send("HTTP/1.1 200 OK\r\nX-User: ann\r\nX-Seen: 1\r\nX-Other: 2\r\nContent-Length: 2\r\n\r\nok")
	up.hears("GET /a?b HTTP/1.1\r\n", "X-User: ann\r\n", "\r\n\r\n")
	if bytes.Contains(up.got, []byte("forged")) || bytes.Contains(up.got, []byte("X-Other")) {
		t.Errorf("the upstream got %q", up.got)
	}
	up.send("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody")
	c.hears("HTTP/1.1 200 OK\r\n", "X-Seen: 1\r\n", "\r\n\r\nbody")
}

// A refusal is the service's own answer.
func TestNotAuthorised(t *testing.T) {
	x := authorised(t, &configv1.ExtAuthzFilter{})
	c := x.client()
	c.send(asked)
	x.upstream().send("HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nwho?")
	c.hears("HTTP/1.1 401 ", "WWW-Authenticate: Basic\r\n", "Content-Type: text/html\r\n", "\r\n\r\nwho?")
	if l := x.last(); l.flags != "UAEX" || l.details != "ext_authz_denied" {
		t.Errorf("logged %+v", l)
	}
}

// What is no answer refuses, unless it is told not to.
func TestNoAnswerOfTheAuthoriser(t *testing.T) {
	for name, fail := range map[string]func(x *world, up *peer){
		"late":    func(x *world, _ *peer) { x.pass(300 * time.Millisecond) },
		"broken":  func(_ *world, up *peer) { up.close() },
		"5xx":     func(_ *world, up *peer) { up.send("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n") },
		"endless": func(_ *world, up *peer) { up.send("HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", 100<<10)) },
	} {
		t.Run(name, func(t *testing.T) {
			x := authorised(t, &configv1.ExtAuthzFilter{})
			c := x.client()
			c.send(asked)
			up := x.upstream()
			up.hears("GET /a?b")
			fail(x, up)
			c.hears("HTTP/1.1 403 ")
			if l := x.last(); l.flags != "UAEX" || l.details != "ext_authz_error" {
				t.Errorf("logged %+v", l)
			}
		})
		t.Run(name+", allowed", func(t *testing.T) {
			x := authorised(t, &configv1.ExtAuthzFilter{FailureModeAllow: true, FailureModeAllowHeaderAdd: true})
			c := x.client()
			c.send(asked)
			up := x.upstream()
			up.hears("GET /a?b")
			up.got = nil
			fail(x, up)
			if name != "5xx" {
				up = x.upstream()
			}
			up.hears("GET /a?b", "X-Envoy-Auth-Failure-Mode-Allowed: true\r\n")
		})
	}
}

// A connection of the service that died idle is no refusal: another one is asked for.
func TestAuthoriserWasIdle(t *testing.T) {
	x := authorised(t, &configv1.ExtAuthzFilter{})
	c := x.client()
	c.send(asked)
	up := x.upstream()
	up.send("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
	c.hears("HTTP/1.1 403 ")
	c.got = nil
	c.send(asked)
	up.hears("GET /a?b")
	up.close()
	next := x.upstream()
	next.hears("GET /a?b")
	next.send("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
	c.hears("HTTP/1.1 401 ")
}

// Who goes away while the service is asked leaves nothing behind, and a body waits for the answer.
func TestAuthoriserAndBodies(t *testing.T) {
	x := authorised(t, &configv1.ExtAuthzFilter{MaxRequestBytes: 8})
	c := x.client()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhel")
	c.nothing()
	c.send("lo")
	up := x.upstream()
	up.hears("POST / HTTP/1.1\r\n", "\r\n\r\nhello")
	up.got = nil
	up.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
	up.hears("POST / HTTP/1.1\r\n", "\r\n\r\nhello")
	up.send("HTTP/1.1 204 No Content\r\n\r\n")
	c.hears("HTTP/1.1 204 ")
	c.got = nil
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nhellohello"[:len("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n")+9])
	c.hears("HTTP/1.1 413 ")
	gone := x.client()
	gone.send(asked)
	up.hears("GET /a?b")
	gone.close()
	x.turn()
}

// A decision is kept for the same inputs, for its time, and for no others.
func TestDecisionIsKept(t *testing.T) {
	x := authorised(t, &configv1.ExtAuthzFilter{CacheKey: []string{"%REQ(AUTHORIZATION)%", "%REQ(:PATH)%"}, CacheTtlMs: 1000, CacheMaxEntries: 10})
	c := x.client()
	c.send(asked)
	up := x.upstream()
	up.hears("Authorization: me\r\n", "\r\n\r\n")
	up.send("HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
	c.hears("HTTP/1.1 401 ")
	c.got, up.got = nil, nil
	c.send(asked)
	c.hears("HTTP/1.1 401 ")
	up.nothing()
	c.got = nil
	c.send(strings.Replace(asked, ": me", ": you", 1))
	up.hears("Authorization: you\r\n", "\r\n\r\n")
	up.got = nil
	up.send("HTTP/1.1 402 No\r\nContent-Length: 0\r\n\r\n")
	c.hears("HTTP/1.1 402 ")
	x.pass(1100 * time.Millisecond)
	c.got = nil
	c.send(asked)
	up.hears("Authorization: me\r\n")
	up.send("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
	c.hears("HTTP/1.1 403 ")
}
