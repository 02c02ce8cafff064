package routing

import (
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/prototext"

	configv1 "retinue.dev/services/api/config/v1"
)

// TestConditions tries one condition after the other on one request. want is the reason, "" for a match.
func TestConditions(t *testing.T) {
	request := &Request{
		Method: "POST", Authority: "shop.example.com:8080", Path: "/api/x?page=2&q=a%20b&page=3&empty",
		Header: []Field{
			{"x-env", "Prod"},
			{"x-list", "a"},
			{"x-list", "b"},
			{"content-type", "Application/GRPC+proto; v=1"},
			{"cookie", `session=abc; theme="dark"`},
			{"cookie", "late=1"},
			{"x-n", "7"},
		},
		Source: netip.MustParseAddr("10.1.2.3"), Draw: 300_000,
	}
	for _, c := range []struct{ match, want string }{
		{`exact: "/api/x"`, ""},
		{`exact: "/api"`, "the path is /api/x, not /api"},
		{`prefix: "/api/"`, ""},
		{`prefix: "/app/"`, "the path /api/x does not begin with /app/"},
		{`regex: "/api/[a-z]"`, ""},
		{`regex: "/api"`, "is not all of /api"},
		{`methods: "GET" methods: "HEAD"`, "the method is POST, not GET or HEAD"},
		{`headers { name: "x-env" exact: "Prod" }`, ""},
		{`headers { name: "x-env" exact: "prod" }`, `header x-env is "Prod", not "prod"`},
		{`headers { name: "x-env" exact: "prod" ignore_case: true }`, ""},
		{`headers { name: "x-env" prefix: "PR" ignore_case: true }`, ""},
		{`headers { name: "x-env" suffix: "od" }`, ""},
		{`headers { name: "x-env" contains: "ro" }`, ""},
		{`headers { name: "x-env" regex: "P.*" }`, ""},
		{`headers { name: "x-env" regex: "P" }`, "not all of P"},
		{`headers { name: "x-env" exact: "Prod" invert: true }`, "must not be"},
		{`headers { name: "x-list" exact: "a,b" }`, ""},
		{`headers { name: "x-n" range { start: 7 end: 8 } }`, ""},
		{`headers { name: "x-n" range { start: 8 end: 9 } }`, "not a number from 8 to 8"},
		{`headers { name: "x-n" present: true }`, ""},
		{`headers { name: "x-n" present: false }`, "header x-n is there"},
		{`headers { name: "x-no" present: true }`, "header x-no is not there"},
		{`headers { name: "x-no" present: true invert: true }`, ""},
		{`headers { name: "x-no" exact: "a" invert: true }`, "header x-no is not there"},
		{`headers { name: "x-no" exact: "" missing_as_empty: true }`, ""},
		{`headers { name: "x-no" exact: "a" invert: true missing_as_empty: true }`, ""},
		{`query { name: "page" exact: "2" }`, ""},
		{`query { name: "q" exact: "a%20b" }`, ""},
		{`query { name: "empty" exact: "" }`, ""},
		{`query { name: "none" present: true }`, "query parameter none is not there"},
		{`cookies { name: "session" exact: "abc" }`, ""},
		{`cookies { name: "theme" exact: "dark" }`, ""},
		{`cookies { name: "late" present: true }`, ""},
		{`content_types: "application/*"`, ""},
		{`content_types: "text/html"`, "the content type is"},
		{`grpc: true`, ""},
		{`grpc: false`, "it is gRPC"},
		{`tls: false`, ""},
		{`tls: true`, "it does not come by TLS"},
		{`client_cert: false`, ""},
		{`client_cert: true`, "the client shows no certificate"},
		{`source_cidrs: "10.0.0.0/8"`, ""},
		{`source_cidrs: "192.168.0.0/16"`, "the source 10.1.2.3 is not in 192.168.0.0/16"},
		{`not_source_cidrs: "10.1.0.0/16"`, "the source 10.1.2.3 is in"},
		{`fraction: 300001`, "it takes 30.0001 % of requests"},
		{`fraction: 300000`, "this draw is not among them"},
	} {
		var m configv1.RouteMatch
		if err := prototext.Unmarshal([]byte(c.match), &m); err != nil {
			t.Fatalf("%s: %v", c.match, err)
		}
		out := Scan([]*configv1.VirtualHost{{Domains: []string{"*.example.com"}, Routes: []*configv1.Route{{Match: &m}}}}, request)
		reason := out.Steps[0].Reason
		if matched := !strings.Contains(c.want, " ") || m.GetFraction() > 300_000; out.Steps[0].Matched != matched || !strings.Contains(reason, c.want) || (c.want == "" && reason != "") {
			t.Errorf("%s: %v %q, want %q", c.match, out.Steps[0].Matched, reason, c.want)
		}
	}
}

func TestPrecedenceOfDomains(t *testing.T) {
	hosts := []*configv1.VirtualHost{
		{Domains: []string{"*"}}, {Domains: []string{"shop.*"}}, {Domains: []string{"*.com"}}, {Domains: []string{"*.example.com"}}, {Domains: []string{"shop.example.com"}},
	}
	for authority, want := range map[string]int{
		"SHOP.example.com.": 4, "a.example.com:80": 3, "a.b.com": 2, "shop.de": 1, "[::1]:80": 0, "": 0, "shop.": 0,
	} {
		if got := Scan(hosts, &Request{Authority: authority, Path: "/"}); got.Host != want {
			t.Errorf("%q: host %d, want %d", authority, got.Host, want)
		}
	}
	if got := Scan(hosts[1:2], &Request{Authority: "other"}); got.Host != -1 {
		t.Errorf("no domain matches, yet host %d", got.Host)
	}
}
