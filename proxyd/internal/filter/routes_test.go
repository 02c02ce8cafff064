package filter

import (
	"strings"
	"testing"
	"unsafe"

	"retinue.dev/proxyd/internal/cluster"
	configv1 "retinue.dev/services/api/config/v1"
)

func TestCompileRefuses(t *testing.T) {
	forward := func(a *configv1.RouteAction) *configv1.Route {
		if a.Clusters == nil {
			a.Clusters = []*configv1.WeightedCluster{{Cluster: "c", Weight: 1}}
		}
		return &configv1.Route{Action: &configv1.Route_Route{Route: a}}
	}
	edit := func(o *configv1.HeaderOps) *configv1.Route {
		r := forward(&configv1.RouteAction{})
		r.RequestHeaders = o
		return r
	}
	bad := "no\r\nway"
	for _, test := range []struct {
		route *configv1.Route
		why   string
	}{
		{&configv1.Route{}, "there is no action"},
		{forward(&configv1.RouteAction{Clusters: []*configv1.WeightedCluster{{Cluster: "a"}, {Cluster: "b"}}}), "no cluster has a weight"},
		{forward(&configv1.RouteAction{PrefixRewrite: &bad}), "prefix_rewrite"},
		{forward(&configv1.RouteAction{HostRewrite: "a b"}), "host_rewrite"},
		{&configv1.Route{Action: &configv1.Route_Redirect{Redirect: &configv1.Redirect{Status: 200}}}, "status 200"},
		{&configv1.Route{Action: &configv1.Route_Redirect{Redirect: &configv1.Redirect{Port: 70000}}}, "port 70000"},
		{&configv1.Route{Action: &configv1.Route_Redirect{Redirect: &configv1.Redirect{Host: bad}}}, "not a host"},
		{&configv1.Route{Action: &configv1.Route_Redirect{Redirect: &configv1.Redirect{Path: bad}}}, "cannot be part of a Location"},
		{&configv1.Route{Action: &configv1.Route_Respond{Respond: &configv1.Respond{Status: 100}}}, "status 100"},
		{edit(&configv1.HeaderOps{Set: []*configv1.Header{{Name: "host", Value: "x"}}}), "use host_rewrite"},
		{edit(&configv1.HeaderOps{Remove: []string{"content-length"}}), "content-length"},
		{edit(&configv1.HeaderOps{Add: []*configv1.Header{{Name: "a b", Value: "x"}}}), "not a header name"},
		{edit(&configv1.HeaderOps{Add: []*configv1.Header{{Name: "a", Value: bad}}}), "control characters"},
		{edit(&configv1.HeaderOps{Add: []*configv1.Header{{Name: "a", Value: "%REQ(x)%"}}}), "operators"},
	} {
		if test.route.Match == nil {
			test.route.Match = &configv1.RouteMatch{Path: &configv1.RouteMatch_Prefix{Prefix: "/"}}
		}
		test.route.Name, test.route.Source = "/*", &configv1.Source{File: "a.hcl", Line: 7}
		c := Compiler{Cluster: func(string) cluster.Handle { return 0 }}
		_, err := c.Compile(&configv1.Http{VirtualHosts: []*configv1.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*configv1.Route{test.route}}}})
		if err == nil || !strings.Contains(err.Error(), test.why) || !strings.Contains(err.Error(), `a.hcl:7: virtual_host "v", route "/*"`) {
			t.Errorf("%v: got %v, want something with %q and the place", test.route, err, test.why)
		}
	}
}

func TestRegexHasNoPrefix(t *testing.T) {
	rewrite := "/"
	c := Compiler{Cluster: func(string) cluster.Handle { return 0 }}
	_, err := c.Compile(&configv1.Http{VirtualHosts: []*configv1.VirtualHost{{Name: "v", Domains: []string{"*"}, Routes: []*configv1.Route{{
		Match: &configv1.RouteMatch{Path: &configv1.RouteMatch_Regex{Regex: "/a.*"}},
		Action: &configv1.Route_Route{Route: &configv1.RouteAction{
			Clusters: []*configv1.WeightedCluster{{Cluster: "c", Weight: 1}}, PrefixRewrite: &rewrite,
		}},
	}}}}})
	if err == nil || !strings.Contains(err.Error(), "prefix_rewrite") {
		t.Errorf("got %v", err)
	}
}

func TestMilliseconds(t *testing.T) {
	for ms, want := range map[int64]int64{-1: 0, 0: 0, 15: 15e6} {
		if got := Milliseconds(ms); got != want {
			t.Errorf("%d ms are %d ns, want %d", ms, got, want)
		}
	}
	if got := Milliseconds(1 << 62); got <= 0 || got+got < 0 {
		t.Errorf("an absurd time-out became %d", got)
	}
}

// TestActionsAreWholeLines holds the size of what thousands of routes have one each of.
func TestActionsAreWholeLines(t *testing.T) {
	if size := unsafe.Sizeof(action{}); size != 4*64 {
		t.Errorf("an action has %d bytes", size)
	}
}
