package route

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"retinue.dev/libs/routing"
	"retinue.dev/proxyd/internal/header"
	configv1 "retinue.dev/services/api/config/v1"
)

func exact(p string, methods ...string) *configv1.Route {
	return &configv1.Route{Name: p, Match: &configv1.RouteMatch{Path: &configv1.RouteMatch_Exact{Exact: p}, Methods: methods}}
}

func prefix(p string, methods ...string) *configv1.Route {
	return &configv1.Route{Name: p + "*", Match: &configv1.RouteMatch{Path: &configv1.RouteMatch_Prefix{Prefix: p}, Methods: methods}}
}

func regex(p string, methods ...string) *configv1.Route {
	return &configv1.Route{Name: "~" + p, Match: &configv1.RouteMatch{Path: &configv1.RouteMatch_Regex{Regex: p}, Methods: methods}}
}

func template(p string, methods ...string) *configv1.Route {
	return &configv1.Route{Name: p, Match: &configv1.RouteMatch{Path: &configv1.RouteMatch_Template{Template: p}, Methods: methods}}
}

func vhost(name string, domains []string, routes ...*configv1.Route) *configv1.VirtualHost {
	return &configv1.VirtualHost{Name: name, Domains: domains, Routes: routes}
}

// block makes a header block of names in lower case and values.
func block(fields []routing.Field) *header.Block {
	b := &header.Block{}
	for _, f := range fields {
		b.Add(header.Lookup([]byte(f.Name)), []byte(f.Name), []byte(f.Value))
	}
	return b
}

// find asks the table what the scan is asked.
func find(t *Table, r *routing.Request) *Entry {
	ordinal := t.Match(&Request{
		Host: []byte(r.Authority), Path: []byte(r.Path), ID: header.LookupMethod([]byte(r.Method)), Method: []byte(r.Method),
		Fields: block(r.Header), Source: r.Source, TLS: r.TLS, Certified: r.Certified, Draw: r.Draw,
	})
	if ordinal < 0 {
		return nil
	}
	return t.Entry(ordinal)
}

func match(t *Table, host, path, method string) *Entry {
	return find(t, &routing.Request{Authority: host, Path: path, Method: method})
}

func TestMatch(t *testing.T) {
	hosts := []*configv1.VirtualHost{
		vhost("shop", []string{"shop.example.com", "*.shop.example.com"},
			prefix("/api/"), exact("/status", "GET", "PURGE"), regex(`/item/[0-9]+`), exact("/api/x"), prefix("/")),
		vhost("wide", []string{"*.example.com"}, prefix("/a"), prefix("/ab", "POST")),
		vhost("v6", []string{"[::1]"}, prefix("/")),
		vhost("internal", []string{"internal.*"}, exact("/only")),
		vhost("forms", []string{"forms"}, template("/v/{a}/x"), exact("/v/1/x"), template("/v/*/{b}", "PUT"), template("/v/**.mpd"), template("/v/{c}/y"),
			template("/{d}.mpd"), prefix("/v/2/"), template("/{e=w/**}"), template("/v/**/x")),
		vhost("rest", []string{"*"}, exact("/x"), prefix("/x", "GET")),
	}
	table, err := Compile(hosts)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host, path, method string
		want               string // "host/index", "" for none
	}{
		{"shop.example.com", "/api/x", "GET", "shop/0"},
		{"SHOP.example.COM:8080", "/status", "GET", "shop/1"},
		{"shop.example.com.", "/status?x=/api/", "GET", "shop/1"},
		{"shop.example.com", "/status", "PURGE", "shop/1"},
		{"shop.example.com", "/status", "POST", "shop/4"},
		{"shop.example.com", "/item/42", "GET", "shop/2"},
		{"shop.example.com", "/item/42x", "GET", "shop/4"},
		{"shop.example.com", "*", "OPTIONS", ""},
		{"a.b.shop.example.com", "/", "GET", "shop/4"},
		{".shop.example.com", "/a", "GET", "wide/0"},
		{"x.example.com", "/abc", "POST", "wide/0"},
		{"x.example.com", "/b", "GET", ""},
		{"example.com", "/x", "POST", "rest/0"},
		{"[::1]:80", "/", "GET", "v6/0"},
		{"[::2]:80", "/x", "GET", "rest/0"},
		{"forms", "/v/1/x", "GET", "forms/0"},
		{"forms", "/v/1/x?/", "PUT", "forms/0"},
		{"forms", "/v/a%2Fb/x", "GET", "forms/0"},
		{"forms", "/v//x", "GET", "forms/8"},
		{"forms", "/v/1/x/", "GET", ""},
		{"forms", "/v/1/y", "PUT", "forms/2"},
		{"forms", "/v/1/y", "GET", "forms/4"},
		{"forms", "/v/2/y", "GET", "forms/4"},
		{"forms", "/v/2/z", "GET", "forms/6"},
		{"forms", "/v/1/2/3/.mpd", "GET", "forms/3"},
		{"forms", "/v/1/...mpd", "PUT", "forms/2"},
		{"forms", "/v/1/...mpd", "GET", ""},
		{"forms", "/x.mpd", "GET", "forms/5"},
		{"forms", "/.mpd", "GET", ""},
		{"forms", "/..mpd", "GET", ""},
		{"forms", "/w/", "GET", "forms/7"},
		{"forms", "/w", "GET", ""},
		{"forms", "/v/1/2/x", "GET", "forms/8"},
		{"forms", "*", "GET", ""},
		{"internal.corp", "/only", "GET", "internal/0"},
		{"internal.", "/xy", "GET", "rest/1"},
		{"", "/xy", "GET", "rest/1"},
		{"", "/xy", "POST", ""},
		{strings.Repeat("a", 300) + ".example.com", "/x", "GET", "rest/0"},
	} {
		got := ""
		if e := match(table, c.host, c.path, c.method); e != nil {
			got = fmt.Sprintf("%s/%d", e.Host.Name, e.Index)
			if table.Entry(e.Ordinal) != e || hosts[e.VirtualHost].Routes[e.Index] != e.Route {
				t.Errorf("%s %s %s: entry does not point to itself", c.method, c.host, c.path)
			}
		}
		if got != c.want {
			t.Errorf("%s %s %s: got %q, want %q", c.method, c.host, c.path, got, c.want)
		}
	}
}

func TestCompileErrors(t *testing.T) {
	src := &configv1.Source{File: "a.hcl", Line: 7}
	for _, c := range []struct {
		host *configv1.VirtualHost
		want string
	}{
		{&configv1.VirtualHost{Name: "v", Source: src}, `a.hcl:7: virtual host "v" has no domains`},
		{vhost("v", []string{"a*b"}), `domain "a*b"`},
		{vhost("v", []string{"*a*"}), `domain "*a*"`},
		{vhost("v", []string{"a:80"}), `domain "a:80"`},
		{vhost("v", []string{""}), `domain ""`},
		{vhost("v", []string{"a", "A."}), `belongs to another virtual host`},
		{vhost("v", []string{"*", "*"}), `belongs to another virtual host`},
		{vhost("v", []string{"*"}, regex("a)|(b")), `regex: `},
		{vhost("v", []string{"*"}, template("/a/{b")), `template "/a/{b": "{" has no "}"`},
		{vhost("v", []string{"*"}, exact("/", "GE T")), `"GE T" is not a method`},
		{vhost("v", []string{"*"}, &configv1.Route{Name: "r"}), `has no path`},
	} {
		_, err := Compile([]*configv1.VirtualHost{c.host})
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: got %v, want %q", c.host, err, c.want)
		}
	}
}

// randomConditions gives a match some conditions out of few names and values, so that they meet requests often.
func randomConditions(r *rand.Rand, m *configv1.RouteMatch) {
	value := func() string { return []string{"", "a", "b", "ab", "Ab", "1", "12"}[r.IntN(7)] }
	field := func() *configv1.FieldMatch {
		f := &configv1.FieldMatch{
			Name: []string{"x-a", "x-b", "accept"}[r.IntN(3)], IgnoreCase: r.IntN(3) == 0, Invert: r.IntN(3) == 0, MissingAsEmpty: r.IntN(3) == 0,
		}
		switch r.IntN(7) {
		case 0:
			f.Test = &configv1.FieldMatch_Exact{Exact: value()}
		case 1:
			f.Test = &configv1.FieldMatch_Prefix{Prefix: value()}
		case 2:
			f.Test = &configv1.FieldMatch_Suffix{Suffix: value()}
		case 3:
			f.Test = &configv1.FieldMatch_Contains{Contains: value()}
		case 4:
			f.Test = &configv1.FieldMatch_Regex{Regex: []string{"a*", "[0-9]+", "a|b,.*"}[r.IntN(3)]}
		case 5:
			f.Test = &configv1.FieldMatch_Range{Range: &configv1.Range{Start: int64(r.IntN(3)), End: int64(r.IntN(20))}}
		case 6:
			f.Test = &configv1.FieldMatch_Present{Present: r.IntN(2) == 0}
		}
		return f
	}
	yes := r.IntN(2) == 0
	switch r.IntN(13) {
	case 11:
		m.ClientCert = &yes
	case 0, 1, 2:
		m.Headers = append(m.Headers, field())
	case 3:
		m.Query = append(m.Query, field())
	case 4:
		m.Cookies = append(m.Cookies, field())
	case 5:
		m.ContentTypes = [][]string{{"text/*"}, {"application/json", "application/grpc"}}[r.IntN(2)]
	case 6:
		m.Grpc = &yes
	case 7:
		m.Tls = &yes
	case 8:
		m.SourceCidrs = []string{"10.0.0.0/8", "fe80::/10"}
	case 9:
		m.NotSourceCidrs = []string{"10.1.0.0/16"}
	case 10:
		half := uint32(500_000)
		m.Fraction = &half
	}
}

// randomTemplate is one of few segments, as random paths have them.
func randomTemplate(r *rand.Rand) string {
	segment := func() string { return []string{"*", "*", "{v%d}", "a", "b", "ab", "{v%d=a/*}"}[r.IntN(7)] }
	for {
		p := ""
		for i := range 1 + r.IntN(3) {
			p += "/" + strings.ReplaceAll(segment(), "%d", fmt.Sprint(i))
		}
		switch r.IntN(6) {
		case 0:
			p += "/**"
		case 1:
			p += "/{rest=**/b}"
		case 2:
			p += "/"
		}
		if strings.HasSuffix(p, "*") || strings.HasSuffix(p, "}") {
			p += []string{"", "", "b", "a", "/a", "."}[r.IntN(6)]
		}
		if _, err := routing.ParseTemplate(p); err == nil {
			return p
		}
	}
}

// randomHosts makes virtual hosts out of few letters, so that names, prefixes and conditions meet often.
func randomHosts(r *rand.Rand) []*configv1.VirtualHost {
	word := func(max int) string {
		var b strings.Builder
		for range r.IntN(max + 1) {
			b.WriteByte("ab/"[r.IntN(3)])
		}
		return b.String()
	}
	label := func() string { return []string{"a", "b", "ab", "ba"}[r.IntN(4)] }
	methods := func() []string {
		return [][]string{nil, nil, {"GET"}, {"POST", "FETCH"}, {"FETCH"}}[r.IntN(5)]
	}
	taken := map[string]bool{}
	var hosts []*configv1.VirtualHost
	for i := range 1 + r.IntN(4) {
		var domains []string
		for range 1 + r.IntN(3) {
			d := label() + "." + label()
			switch r.IntN(5) {
			case 0:
				d = "*." + d
			case 1:
				d += ".*"
			case 2:
				d = "*"
			case 3:
				d = "*" + label()
			}
			if !taken[d] {
				taken[d] = true
				domains = append(domains, d)
			}
		}
		if domains == nil {
			continue
		}
		vh := vhost(fmt.Sprint(i), domains)
		for range r.IntN([]int{3, 12, 20}[r.IntN(3)]) { // short lists and long ones
			p := "/" + word(4)
			var route *configv1.Route
			switch r.IntN(6) {
			case 0:
				route = exact(p, methods()...)
			case 1, 2:
				route = prefix(p, methods()...)
			case 4, 5:
				route = template(randomTemplate(r), methods()...)
			case 3:
				route = regex([]string{"/a+", "/[ab]*/b", "/.*", "/a|/b", "/ab", "(?i)/A.*", "(/a)?/b?", "^/b.*$", ".*"}[r.IntN(9)], methods()...)
			}
			if r.IntN(3) == 0 {
				randomConditions(r, route.Match)
			}
			vh.Routes = append(vh.Routes, route)
		}
		hosts = append(hosts, vh)
	}
	return hosts
}

// randomRequest is one that such routes may match.
func randomRequest(r *rand.Rand) *routing.Request {
	host := ""
	for range 1 + r.IntN(6) {
		host += string("abA.:"[r.IntN(5)])
	}
	if r.IntN(2) == 0 {
		host = "ab.a.b"[r.IntN(4):]
	}
	path := "/"
	for range r.IntN(8) {
		path += string("aabb//?."[r.IntN(8)])
	}
	if r.IntN(3) == 0 {
		path += "?" + []string{"x-a=a&x-b=12&x-a=b", "&&x-b&x-a", "accept=ab", "=a&x-a=="}[r.IntN(4)]
	}
	out := &routing.Request{
		Authority: host, Path: path, Method: []string{"GET", "POST", "FETCH", "PUT"}[r.IntN(4)], TLS: r.IntN(2) == 0, Certified: r.IntN(2) == 0, Draw: r.Uint32N(1_000_000),
	}
	if r.IntN(4) > 0 {
		out.Source = netip.MustParseAddr([]string{"10.0.0.1", "10.1.0.1", "192.168.0.1", "fe80::1"}[r.IntN(4)])
	}
	for range r.IntN(5) {
		out.Header = append(out.Header, []routing.Field{
			{Name: "x-a", Value: "a"},
			{Name: "x-a", Value: "b"},
			{Name: "x-b", Value: "AB"},
			{Name: "x-b", Value: "12"},
			{Name: "accept", Value: "ab"},
			{Name: "accept", Value: ""},
			{Name: "cookie", Value: `x-a=a; x-b="12"; accept`},
			{Name: "cookie", Value: ` x-b=b;;x-a="`},
			{Name: "content-type", Value: "text/html; charset=x"},
			{Name: "content-type", Value: "Application/grpc+proto"},
			{Name: "content-type", Value: "application/json"},
		}[r.IntN(11)])
	}
	return out
}

// compare holds the table to the scan.
func compare(t *testing.T, table *Table, hosts []*configv1.VirtualHost, r *routing.Request) (matched bool) {
	t.Helper()
	want := routing.Scan(hosts, r)
	e := find(table, r)
	if (e == nil) != (want.Route < 0) || (e != nil && (e.VirtualHost != want.Host || e.Index != want.Route)) {
		t.Fatalf("%+v: scan says %+v, table says %+v\n%v", r, want, e, hosts)
	}
	return e != nil
}

func TestMatchAsScan(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	matched, asked := 0, 0
	for range 2000 {
		hosts := randomHosts(r)
		table, err := Compile(hosts)
		if err != nil {
			t.Fatal(err)
		}
		for range 30 {
			asked++
			if compare(t, table, hosts, randomRequest(r)) {
				matched++
			}
		}
	}
	if matched < asked/10 || matched > asked*9/10 {
		t.Errorf("%d of %d requests matched: the test sees one side only", matched, asked)
	}
}

func FuzzMatch(f *testing.F) {
	f.Add(uint64(1), "a.b", "/a/b", "GET", "x-a", "a")
	f.Add(uint64(2), "B.A:80", "/ab?x-a=b", "FETCH", "x-b", "12")
	f.Add(uint64(3), "[::1", "*", "POST", "accept", "-1")
	f.Add(uint64(4), "x.ab.a.", "//", "get", "cookie", "x-a=\"a\"; x-b")
	f.Add(uint64(5), "a", "/b", "GET", "content-type", "application/grpc;x")
	f.Fuzz(func(t *testing.T, seed uint64, host, path, method, name, value string) {
		random := rand.New(rand.NewPCG(seed, 0))
		hosts := randomHosts(random)
		table, err := Compile(hosts)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []byte(host) {
			if c >= 0x80 {
				return // strings.ToLower of the scan knows Unicode; no authority holds such bytes
			}
		}
		if !header.ValidName([]byte(name)) || !header.ValidValue([]byte(value)) || value != strings.Trim(value, " \t") {
			return // a codec lets none of it through
		}
		r := randomRequest(random)
		r.Authority, r.Path, r.Method = host, path, method
		r.Header = append(r.Header, routing.Field{Name: strings.ToLower(name), Value: value})
		compare(t, table, hosts, r)
	})
}

func TestMatchDoesNotAllocate(t *testing.T) {
	table := large(t, 1000)
	ask := &Request{Host: []byte("Host5.example.com:80"), Path: []byte("/service-500/x/y?z"), ID: header.MethodGet, Method: []byte("GET"), Fields: &header.Block{}}
	if n := testing.AllocsPerRun(100, func() {
		if table.Match(ask) < 0 {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTemplatesDoNotAllocate(t *testing.T) {
	table, err := Compile([]*configv1.VirtualHost{vhost("v", []string{"*"}, template("/a/{b}/c", "PUT"), template("/x/**.y"), template("/{a}/{b}/{c=**}"))})
	if err != nil {
		t.Fatal(err)
	}
	ask := &Request{Path: []byte("/a/b/c?d"), Method: []byte("GET"), ID: header.MethodGet, Fields: &header.Block{}}
	if n := testing.AllocsPerRun(100, func() {
		if table.Match(ask) != 2 {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestLongKeys asks with paths that fill the room of a key.
func TestLongKeys(t *testing.T) {
	long := strings.Repeat("a", routing.MaxTemplate-4)
	hosts := []*configv1.VirtualHost{vhost("v", []string{"*"}, template("/"+long+"/*b"), template("/**"+long), template("/"+long+"/**"), template("/*/a/*"))}
	table, err := Compile(hosts)
	if err != nil {
		t.Fatal(err)
	}
	for n := len(long) - 3; n < len(long)+20; n++ {
		text := strings.Repeat("a", n)
		for _, path := range []string{"/" + text, "/" + text + "/", "/" + text + "/b", "/" + text + "/ab", "/x/" + text + "/" + text, "/" + text + "/a/" + text, "/" + text + "/a/" + text + text + text} {
			compare(t, table, hosts, &routing.Request{Authority: "x", Path: path, Method: "GET"})
		}
	}
}

func TestConditionsDoNotAllocate(t *testing.T) {
	yes := true
	route := prefix("/")
	route.Match.Headers = []*configv1.FieldMatch{{Name: "x-a", Test: &configv1.FieldMatch_Exact{Exact: "a,b"}}, {Name: "x-n", Test: &configv1.FieldMatch_Range{Range: &configv1.Range{End: 10}}}}
	route.Match.Query = []*configv1.FieldMatch{{Name: "q", Test: &configv1.FieldMatch_Contains{Contains: "X"}, IgnoreCase: true}}
	route.Match.Cookies = []*configv1.FieldMatch{{Name: "c", Test: &configv1.FieldMatch_Present{Present: true}}}
	route.Match.ContentTypes = []string{"application/*"}
	route.Match.Grpc = &yes
	route.Match.SourceCidrs = []string{"10.0.0.0/8"}
	table, err := Compile([]*configv1.VirtualHost{vhost("v", []string{"*"}, route)})
	if err != nil {
		t.Fatal(err)
	}
	ask := &Request{
		Path: []byte("/a?p=1&q=axb"), Method: []byte("POST"), ID: header.MethodPost, Source: netip.MustParseAddr("10.0.0.1"), Scratch: make([]byte, 0, 64),
		Fields: block([]routing.Field{{Name: "x-a", Value: "a"}, {Name: "x-a", Value: "b"}, {Name: "x-n", Value: "7"}, {Name: "cookie", Value: "b=1; c=2"}, {Name: "content-type", Value: "application/grpc"}}),
	}
	if n := testing.AllocsPerRun(100, func() {
		if table.Match(ask) < 0 {
			t.Fatal("no match")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// large is a table of n routes, half of them exact, with a catch-all behind them.
func large(t testing.TB, n int) *Table {
	var routes []*configv1.Route
	for i := range n {
		if i%2 == 0 {
			routes = append(routes, prefix(fmt.Sprintf("/service-%d/", i)))
		} else {
			routes = append(routes, exact(fmt.Sprintf("/page-%d", i), "GET", "HEAD"))
		}
	}
	table, err := Compile([]*configv1.VirtualHost{
		vhost("v", []string{"*.example.com", "example.com"}, append(routes, prefix("/"))...),
	})
	if err != nil {
		t.Fatal(err)
	}
	return table
}
