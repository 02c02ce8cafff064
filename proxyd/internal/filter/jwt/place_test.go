package jwt

import (
	"strings"
	"testing"

	"retinue.dev/proxyd/internal/header"
	configv1 "retinue.dev/services/api/config/v1"
)

// requestOf reads "/path" and lines of headers.
func requestOf(path string, fields ...string) *header.Request {
	r := &header.Request{}
	r.SetPath([]byte(path))
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		r.Add(header.Other, []byte(name), []byte(value))
	}
	return r
}

func shown(r *header.Request) string {
	list := []string{string(r.Path())}
	for i := range r.Len() {
		list = append(list, string(r.NameAt(i))+": "+string(r.ValueAt(i)))
	}
	return strings.Join(list, ", ")
}

func TestPlaces(t *testing.T) {
	custom := &configv1.JwtProvider{
		FromHeaders: []*configv1.JwtHeader{{Name: "X-Token", ValuePrefix: "JWT "}, {Name: "x-raw"}},
		FromParams:  []string{"jwt", "access_token"}, FromCookies: []string{"session"},
	}
	for _, test := range []struct {
		name     string
		provider *configv1.JwtProvider
		request  *header.Request
		found    string
		left     string // when the tokens are taken out
	}{
		{"nothing", nil, requestOf("/a?b"), "", "/a?b"},
		{"bearer", nil, requestOf("/", "authorization: Bearer t"), "t", "/"},
		{"a scheme has no case", nil, requestOf("/", "authorization: bEARER  t"), "t", "/"},
		{"another scheme", nil, requestOf("/", "authorization: Basic t"), "", "/, authorization: Basic t"},
		{"no token", nil, requestOf("/", "authorization: Bearer"), "", "/, authorization: Bearer"},
		{"two of them, and another scheme", nil, requestOf("/", "authorization: Bearer t", "authorization: Basic u", "authorization: Bearer v"), "t v", "/, authorization: Basic u"},
		{"parameter", nil, requestOf("/a?x=1&access_token=t&y=2"), "t", "/a?x=1&y=2"},
		{"parameter alone", nil, requestOf("/a?access_token=t"), "t", "/a"},
		{"parameter spelled otherwise", nil, requestOf("/a?access%5ftoken=t&access_token%3d=u"), "t", "/a?access_token%3d=u"},
		{"parameters of other names", nil, requestOf("/a?access_tokens=t&ACCESS_TOKEN=t&access_token&=t"), "", "/a?access_tokens=t&ACCESS_TOKEN=t&=t"},
		{"header and parameter", nil, requestOf("/?access_token=u", "authorization: Bearer t"), "t u", "/"},
		{"no default", custom, requestOf("/?access_token=u", "authorization: Bearer t"), "u", "/, authorization: Bearer t"},
		{"headers", custom, requestOf("/", "x-token: jwt t", "x-raw: u"), "t u", "/"},
		{"a header without its prefix", custom, requestOf("/", "x-token: t"), "", "/, x-token: t"},
		{"cookie", custom, requestOf("/", "cookie: a=1; session=t;b=2"), "t", "/, cookie: a=1; b=2"},
		{"cookie in quotes", custom, requestOf("/", `cookie: session="t"`), "t", "/"},
		{"cookies apart", custom, requestOf("/", "cookie: a=1", "cookie: session=t", "cookie: sessions=u"), "t", "/, cookie: a=1, cookie: sessions=u"},
		{"too many", custom, requestOf("/?jwt=1&jwt=2&jwt=3&jwt=4&jwt=5&jwt=6"), "1 2 3 4 5", "/"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.provider == nil {
				test.provider = &configv1.JwtProvider{}
			}
			places, err := compilePlaces(test.provider)
			if err != nil {
				t.Fatal(err)
			}
			var found []string
			for _, f := range find(nil, places, test.request) {
				found = append(found, string(f))
			}
			if got := strings.Join(found, " "); got != test.found {
				t.Errorf("found %q", got)
			}
			remove(places, test.request, nil)
			if got := shown(test.request); got != test.left {
				t.Errorf("left is %q", got)
			}
			if len(find(nil, places, test.request)) > 0 {
				t.Errorf("a token is left")
			}
		})
	}
	for _, bad := range []*configv1.JwtProvider{
		{FromHeaders: []*configv1.JwtHeader{{Name: "a b"}}}, {FromParams: []string{""}}, {FromCookies: []string{""}},
	} {
		if _, err := compilePlaces(bad); err == nil {
			t.Errorf("%v is accepted", bad)
		}
	}
}

// Wherever tokens stand, none is left when they are taken out, and what else there is stays.
func FuzzPlaces(f *testing.F) {
	f.Add("/a?access_token=t&b=c", "a=1; session=t; b", "Bearer t")
	f.Add("/?jwt=%41&%6awt=b&&", `session="t"; session=`, "bearer ")
	places, err := compilePlaces(&configv1.JwtProvider{
		FromHeaders: []*configv1.JwtHeader{{Name: "authorization", ValuePrefix: "Bearer "}}, FromParams: []string{"jwt"}, FromCookies: []string{"session"},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, path, cookie, authorization string) {
		r := &header.Request{}
		if !r.SetPath([]byte(path)) {
			return
		}
		r.Add(header.Cookie, nil, []byte(cookie))
		r.Add(header.Authorization, nil, []byte(authorization))
		r.Add(header.Accept, nil, []byte("x"))
		before := shown(r)
		n := len(find(nil, places, r))
		remove(places, r, nil)
		if left := len(find(nil, places, r)); left != 0 {
			t.Fatalf("%d of %d tokens are left of %q in %q", left, n, before, shown(r))
		}
		if string(r.Get(header.Accept)) != "x" {
			t.Fatalf("%q has become %q", before, shown(r))
		}
	})
}
