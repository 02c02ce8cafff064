package rbac

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/netip"
	"net/url"
	"testing"

	"google.golang.org/protobuf/proto"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/route"
	configv1 "retinue.dev/services/api/config/v1"
)

func spiffe(path string) *tls.ConnectionState {
	u, _ := url.Parse("spiffe://example.com" + path)
	return &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{
		Subject: pkix.Name{CommonName: "app", Organization: []string{"Example"}}, URIs: []*url.URL{u}, DNSNames: []string{"app.example.com"},
	}}}
}

func TestJudge(t *testing.T) {
	admins := &configv1.RbacPolicy{
		Name: "admins",
		Permissions: []*configv1.RbacPermission{
			{Paths: []string{"/admin/*"}, Match: &configv1.RouteMatch{Methods: []string{"GET"}}},
			{Hosts: []string{"*.internal"}},
		},
		Principals: []*configv1.RbacPrincipal{
			{SourceCidrs: []string{"10.0.0.0/8"}, NotSourceCidrs: []string{"10.6.0.0/16"}},
			{Sans: []string{"spiffe://example.com/admin/*"}},
			{Headers: []*configv1.FieldMatch{{Name: "x-admin", Test: &configv1.FieldMatch_Exact{Exact: "1"}}}},
		},
	}
	anybody := func(p *configv1.RbacPrincipal) *configv1.RbacPolicy {
		return &configv1.RbacPolicy{Name: "p", Principals: []*configv1.RbacPrincipal{p}}
	}
	type ask struct {
		method header.MethodID
		path   string
		host   string
		from   string
		fields [2]string
		tls    *tls.ConnectionState
		conn   bool
	}
	get := header.MethodGet
	for name, row := range map[string]struct {
		action string
		policy *configv1.RbacPolicy
		ask    ask
		want   bool // the policy matches
	}{
		"all hold":                    {"allow", admins, ask{method: get, path: "/admin/x", from: "10.1.1.1"}, true},
		"a query is no path":          {"allow", admins, ask{method: get, path: "/x?/admin/", from: "10.1.1.1"}, false},
		"another method":              {"allow", admins, ask{method: header.MethodPost, path: "/admin/x", from: "10.1.1.1"}, false},
		"the other permission":        {"allow", admins, ask{method: header.MethodPost, path: "/", host: "a.internal", from: "10.1.1.1"}, true},
		"from elsewhere":              {"allow", admins, ask{method: get, path: "/admin/x", from: "11.1.1.1"}, false},
		"from the exception":          {"allow", admins, ask{method: get, path: "/admin/x", from: "10.6.1.1"}, false},
		"by certificate":              {"allow", admins, ask{method: get, path: "/admin/x", from: "11.1.1.1", tls: spiffe("/admin/joe")}, true},
		"by another certificate":      {"allow", admins, ask{method: get, path: "/admin/x", from: "11.1.1.1", tls: spiffe("/app")}, false},
		"by header":                   {"allow", admins, ask{method: get, path: "/admin/x", from: "11.1.1.1", fields: [2]string{"x-admin", "1"}}, true},
		"a connection has no request": {"allow", admins, ask{from: "10.1.1.1", conn: true}, false},
		"a connection's source":       {"deny", anybody(&configv1.RbacPrincipal{SourceCidrs: []string{"10.0.0.0/8"}}), ask{from: "10.1.1.1", conn: true}, true},
		"authenticated":               {"allow", anybody(&configv1.RbacPrincipal{Authenticated: proto.Bool(true)}), ask{from: "::1", tls: spiffe("/")}, true},
		"not authenticated":           {"allow", anybody(&configv1.RbacPrincipal{Authenticated: proto.Bool(true)}), ask{from: "::1"}, false},
		"wanted without":              {"deny", anybody(&configv1.RbacPrincipal{Authenticated: proto.Bool(false)}), ask{from: "::1"}, true},
		"wanted without, with":        {"deny", anybody(&configv1.RbacPrincipal{Authenticated: proto.Bool(false)}), ask{from: "::1", tls: spiffe("/")}, false},
		"subject":                     {"deny", anybody(&configv1.RbacPrincipal{Subjects: []string{"CN=app,O=Example"}}), ask{from: "::1", tls: spiffe("/")}, true},
		"dns name":                    {"deny", anybody(&configv1.RbacPrincipal{Sans: []string{"*.example.com"}}), ask{from: "::1", tls: spiffe("/")}, true},
		"san and subject":             {"deny", anybody(&configv1.RbacPrincipal{Sans: []string{"*.example.com"}, Subjects: []string{"CN=x"}}), ask{from: "::1", tls: spiffe("/")}, false},
		"log refuses nobody":          {"log", anybody(&configv1.RbacPrincipal{SourceCidrs: []string{"10.0.0.0/8"}}), ask{from: "10.1.1.1"}, true},
	} {
		rules := &configv1.RbacRules{Action: row.action, Policies: []*configv1.RbacPolicy{row.policy}}
		f, err := New(&configv1.RbacFilter{Rules: rules, Shadow: rules}, 1, []*counters.RBAC{{}})
		if err != nil {
			t.Fatal(err)
		}
		var fields header.Block
		if row.ask.fields[0] != "" {
			fields.AddString(header.Other, row.ask.fields[0], row.ask.fields[1])
		}
		x := &subject{
			Request:    route.Request{ID: row.ask.method, Path: []byte(row.ask.path), Fields: &fields, Source: netip.MustParseAddr(row.ask.from)},
			connection: row.ask.conn, host: []byte(row.ask.host),
		}
		x.path = x.Path
		for i, c := range x.path {
			if c == '?' {
				x.path = x.path[:i]
				break
			}
		}
		if row.ask.tls != nil {
			x.shown = f.Note(row.ask.tls, nil)
		}
		refused := f.judge(x, f.cells[0]) != ""
		want := map[string]bool{"allow": !row.want, "deny": row.want}[row.action]
		if refused != want {
			t.Errorf("%s: refused %v", name, refused)
		}
		c := f.cells[0]
		if c[counters.RBACDenied]+c[counters.RBACAllowed] != 1 || (c[counters.RBACDenied] == 1) != want || (c[counters.RBACShadowDenied] == 1) != want {
			t.Errorf("%s: counted %v", name, c)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	for name, r := range map[string]*configv1.RbacRules{
		"an action": {Action: "maybe"},
		"a path":    {Action: "allow", Policies: []*configv1.RbacPolicy{{Permissions: []*configv1.RbacPermission{{Paths: []string{"a*b*"}}}}}},
		"a network": {Action: "allow", Policies: []*configv1.RbacPolicy{{Principals: []*configv1.RbacPrincipal{{SourceCidrs: []string{"x"}}}}}},
	} {
		if _, err := New(&configv1.RbacFilter{Rules: r}, 1, nil); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
