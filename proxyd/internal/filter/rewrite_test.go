package filter

import (
	"strings"
	"testing"

	"retinue.dev/proxyd/internal/filter/substitution"
	"retinue.dev/proxyd/internal/header"
	configv1 "retinue.dev/services/api/config/v1"
)

func TestRewrite(t *testing.T) {
	prefix := func(matched int, with string) rewrite {
		return rewrite{matched: matched, prefixes: true, with: []byte(with)}
	}
	regex := func(pattern, substitution string) rewrite {
		w, err := newRewrite(nil, nil, &configv1.RegexRewrite{Pattern: pattern, Substitution: substitution}, "")
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	var m substitution.Machine
	for _, c := range []struct {
		w        rewrite
		in, want string
	}{
		{prefix(5, "/v2/"), "/api/x?q=1", "/v2/x?q=1"},
		{prefix(5, "/"), "/api/", "/"},
		{prefix(4, ""), "/api", "/"},
		{prefix(4, ""), "/api/x", "/x"},
		{prefix(4, ""), "/api?x", "/?x"},
		{regex("^/users/([0-9]+)$", `/people/\1`), "/users/7?q=/users/8", "/people/7?q=/users/8"},
		{regex("a", "b"), "/a/a?a", "/b/b?a"},
		{regex("^/x", ""), "/x/y", "/y"},
		{regex("^/x", ""), "/x", "/"},
		{regex("^/", ""), "/y", "/y"},
		{regex("(b)", `$1\0\1`), "/b", "/$1bb"},
	} {
		if got := string(c.w.apply([]byte("-"), []byte(c.in), &m)); got != "-"+c.want {
			t.Errorf("%+v of %q: got %q, want %q", c.w, c.in, got[1:], c.want)
		}
	}
	for _, bad := range []string{`\2`, `\x`, `\`, "a b", `\\`} {
		if _, err := newRewrite(nil, nil, &configv1.RegexRewrite{Pattern: "(a)", Substitution: bad}, ""); err == nil {
			t.Errorf("substitution %q was taken", bad)
		}
	}
}

func TestQueryRewrite(t *testing.T) {
	set := func(pairs ...string) (out []*configv1.Parameter) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, &configv1.Parameter{Name: pairs[i], Value: pairs[i+1]})
		}
		return out
	}
	for _, c := range []struct {
		q        *configv1.QueryRewrite
		in, want string
	}{
		{&configv1.QueryRewrite{Clear: true}, "/a?x=1&y", "/a"},
		{&configv1.QueryRewrite{Remove: []string{"x"}}, "/a?x=1&y&x", "/a?y"},
		{&configv1.QueryRewrite{Remove: []string{"x"}}, "/a?x", "/a"},
		{&configv1.QueryRewrite{Set: set("x", "2", "z", "")}, "/a?w&x=1&y&x=3", "/a?w&x=2&y&z="},
		{&configv1.QueryRewrite{Set: set("x", "2")}, "/a", "/a?x=2"},
		{&configv1.QueryRewrite{Clear: true, Set: set("x", "2")}, "/a?x=1&y", "/a?x=2"},
	} {
		q, err := compileQuery(c.q)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(q.apply(nil, []byte(c.in))); got != c.want {
			t.Errorf("%v of %q: got %q, want %q", c.q, c.in, got, c.want)
		}
	}
	if _, err := compileQuery(&configv1.QueryRewrite{Set: set("a&b", "1")}); err == nil {
		t.Error("a name with & was taken")
	}
	if _, err := compileQuery(&configv1.QueryRewrite{Set: set("a", strings.Repeat("x", 10)+" ")}); err == nil {
		t.Error("a value with a blank was taken")
	}
}

func TestShadowed(t *testing.T) {
	for in, want := range map[string]string{"a.example": "a.example-shadow", "a:8080": "a-shadow:8080", "[::1]:80": "[::1]:80", "": ""} {
		if got := string(shadowed([]byte(in))); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

// TestStickyHashSpreads holds that keys spread over weights as they should, within 5 standard deviations.
func TestStickyHashSpreads(t *testing.T) {
	const keys, share = 100_000, 30
	hits := 0
	for i := range uint64(keys) {
		var text [16]byte
		if uint64(hash(hex(text[:0], i))>>32)*100>>32 < share {
			hits++
		}
	}
	if want := keys * share / 100; hits < want-725 || hits > want+725 {
		t.Errorf("%d of %d keys, want about %d", hits, keys, want)
	}
}

// TestRelativeRedirectKeepsItsHost holds that a redirect without a host never names one by "//".
func TestRelativeRedirectKeepsItsHost(t *testing.T) {
	var r header.Request
	r.SetScheme([]byte("http"))
	r.SetPath([]byte("//evil.example/x?y"))
	var a answer
	if got := string(a.location(nil, &r, nil)); got != "/evil.example/x?y" {
		t.Errorf("got %q", got)
	}
	for _, by := range []*configv1.Redirect{
		{RegexRewrite: &configv1.RegexRewrite{Pattern: "^//evil", Substitution: "///evil"}},
		{TemplateRewrite: "/{rest}"},
	} {
		a, err := newRedirect(by, &configv1.RouteMatch{Path: &configv1.RouteMatch_Template{Template: "/{rest=**}"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := string(a.location([]byte("-"), &r, &substitution.Machine{})); got != "-/evil.example/x?y" {
			t.Errorf("%v: got %q", by, got)
		}
	}
	r.SetAuthority([]byte("good.example"))
	r.SetPath([]byte("*"))
	if got := string(a.location(nil, &r, nil)); got != "http://good.example/" {
		t.Errorf("OPTIONS *: got %q", got)
	}
	r.SetPath([]byte("//evil.example/x?y"))
	if got := string(a.location(nil, &r, nil)); got != "http://good.example//evil.example/x?y" {
		t.Errorf("got %q", got)
	}
}
