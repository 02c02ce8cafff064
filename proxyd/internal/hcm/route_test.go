package hcm

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

func toUpstream(change func(*configv1.RouteAction)) *configv1.Route_Route {
	a := &configv1.RouteAction{Clusters: []*configv1.WeightedCluster{{Cluster: "up", Weight: 1}}}
	change(a)
	return &configv1.Route_Route{Route: a}
}

func prefix(p string) *configv1.RouteMatch {
	return &configv1.RouteMatch{Path: &configv1.RouteMatch_Prefix{Prefix: p}}
}

func exact(p string) *configv1.RouteMatch {
	return &configv1.RouteMatch{Path: &configv1.RouteMatch_Exact{Exact: p}}
}

func text(s string) *string { return &s }

// request sends one request to a manager with this one route and answers what came upstream (empty for none) and back.
func request(t *testing.T, route *configv1.Route, head string) (up, back string) {
	t.Helper()
	h := defaults()
	h.VirtualHosts[0].Routes = []*configv1.Route{route}
	x := newWorld(t, h)
	c := x.client()
	c.send(head)
	_, forwards := route.Action.(*configv1.Route_Route)
	if forwards {
		u := x.upstream()
		x.until("a request head", func() bool { u.pull(); return bytes.HasSuffix(u.got, []byte("\r\n\r\n")) })
		up = string(u.got)
		u.send("HTTP/1.1 200 OK\r\nX-Up: 1\r\nContent-Length: 0\r\n\r\n")
	}
	x.until("a response head", func() bool { c.pull(); return bytes.Contains(c.got, []byte("\r\n\r\n")) })
	return up, string(c.got)
}

func TestRewrites(t *testing.T) {
	for _, test := range []struct {
		match        *configv1.RouteMatch
		rewrite      string
		host         string
		path, expect string
	}{
		{prefix("/api/"), "/", "", "/api/x?q=1", "GET /x?q=1 HTTP/1.1\r\nHost: h\r\n"},
		{prefix("/api/"), "/v2/", "", "/api/", "GET /v2/ HTTP/1.1\r\nHost: h\r\n"},
		{prefix("/api"), "", "", "/api", "GET / HTTP/1.1\r\nHost: h\r\n"},
		{prefix("/api"), "", "", "/api?q", "GET /?q HTTP/1.1\r\nHost: h\r\n"},
		{prefix("/api"), "", "", "/api/x", "GET /x HTTP/1.1\r\nHost: h\r\n"},
		{exact("/a"), "/b", "", "/a?q", "GET /b?q HTTP/1.1\r\nHost: h\r\n"},
		{prefix("/"), "/", "other:8080", "/x", "GET /x HTTP/1.1\r\nHost: other:8080\r\n"},
	} {
		up, _ := request(t, &configv1.Route{Match: test.match, Action: toUpstream(func(a *configv1.RouteAction) {
			a.PrefixRewrite, a.HostRewrite = text(test.rewrite), test.host
		})}, "GET "+test.path+" HTTP/1.1\r\nHost: h\r\n\r\n")
		if !strings.HasPrefix(up, test.expect) {
			t.Errorf("%s: got %q, want %q", test.path, up, test.expect)
		}
	}
}

func TestHeaderEdits(t *testing.T) {
	ops := func(set, add, remove string) *configv1.HeaderOps {
		o := &configv1.HeaderOps{Remove: strings.Fields(remove)}
		for _, pair := range strings.Fields(set) {
			name, value, _ := strings.Cut(pair, "=")
			o.Set = append(o.Set, &configv1.Header{Name: name, Value: value})
		}
		for _, pair := range strings.Fields(add) {
			name, value, _ := strings.Cut(pair, "=")
			o.Add = append(o.Add, &configv1.Header{Name: name, Value: value})
		}
		return o
	}
	h := defaults()
	host := h.VirtualHosts[0]
	host.RequestHeaders = ops("x-both=host x-set=host", "x-add=host", "cookie")
	host.Routes[0].RequestHeaders = ops("x-both=route", "x-add=route", "x-gone")
	host.ResponseHeaders = ops("x-r=host", "", "server")
	host.Routes[0].ResponseHeaders = ops("", "x-r=route", "x-up")
	x := newWorld(t, h)
	c := x.client()
	c.send("GET / HTTP/1.1\r\nHost: h\r\nCookie: a\r\nX-Set: client\r\nX-Set: again\r\nX-Gone: 1\r\n\r\n")
	u := x.upstream()
	u.expect("GET / HTTP/1.1\r\nHost: h\r\nX-Set: host\r\nX-Forwarded-Proto: http\r\nX-Both: route\r\nX-Add: host\r\nX-Add: route\r\n\r\n")
	u.send("HTTP/1.1 200 OK\r\nServer: up\r\nX-Up: 1\r\nContent-Length: 0\r\n\r\n")
	c.expect("HTTP/1.1 200 OK\r\nX-R: host\r\nX-R: route\r\nContent-Length: 0\r\n" + date + "\r\n")
}

func TestRedirects(t *testing.T) {
	for _, test := range []struct {
		redirect  *configv1.Redirect
		authority string
		path      string
		status    string
		location  string
	}{
		{&configv1.Redirect{Scheme: "https"}, "h", "/a?b", "301 Moved Permanently", "https://h/a?b"},
		{&configv1.Redirect{Scheme: "https"}, "h:80", "/", "301 Moved Permanently", "https://h/"},
		{&configv1.Redirect{Scheme: "https"}, "h:8080", "/", "301 Moved Permanently", "https://h:8080/"},
		{&configv1.Redirect{Scheme: "https", Port: 8443, Status: 308}, "h:8080", "/", "308 Permanent Redirect", "https://h:8443/"},
		{&configv1.Redirect{Host: "other:81", Status: 302}, "h:80", "/a", "302 Found", "http://other:81/a"},
		{&configv1.Redirect{Host: "other"}, "h:80", "/a", "301 Moved Permanently", "http://other/a"},
		{&configv1.Redirect{Path: "/new"}, "[::1]:9", "/a?q", "301 Moved Permanently", "http://[::1]:9/new?q"},
		{&configv1.Redirect{PrefixRewrite: text("/n/"), StripQuery: true}, "h", "/a?q", "301 Moved Permanently", "http://h/n/a"},
	} {
		_, back := request(t, &configv1.Route{Match: prefix("/"), Action: &configv1.Route_Redirect{Redirect: test.redirect}},
			"GET "+test.path+" HTTP/1.1\r\nHost: "+test.authority+"\r\n\r\n")
		want := "HTTP/1.1 " + test.status + "\r\nLocation: " + test.location + "\r\n" + server + "Content-Length: 0\r\n" + date + "\r\n"
		if back != want {
			t.Errorf("%+v: got %q\nwant %q", test.redirect, back, want)
		}
	}
}

func TestRespond(t *testing.T) {
	_, back := request(t, &configv1.Route{
		Match: prefix("/"), Action: &configv1.Route_Respond{Respond: &configv1.Respond{Status: 418, Body: []byte("tea\n"), ContentType: "text/x"}},
		ResponseHeaders: &configv1.HeaderOps{Add: []*configv1.Header{{Name: "x-a", Value: "b"}}},
	}, get)
	want := "HTTP/1.1 418 I'm a teapot\r\nX-A: b\r\nContent-Type: text/x\r\n" + server + "Content-Length: 4\r\n" + date + "\r\ntea\n"
	if back != want {
		t.Errorf("got  %q\nwant %q", back, want)
	}
}

func TestForwardedFor(t *testing.T) {
	h := defaults()
	h.GenerateRequestId = true
	h.Via = "edge"
	x := newWorld(t, h)
	c := x.tcpClient()
	c.send("GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2\r\n\r\n")
	u := x.upstream()
	x.until("a request head", func() bool { u.pull(); return bytes.HasSuffix(u.got, []byte("\r\n\r\n")) })
	want := regexp.MustCompile(`^GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 10.0.0.1\r\nX-Forwarded-For: 10.0.0.2, 192.0.2.7\r\n` +
		`X-Forwarded-Proto: http\r\nX-Request-Id: [0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\r\nVia: 1.1 edge\r\n\r\n$`)
	if !want.Match(u.got) {
		t.Errorf("got %q", u.got)
	}
	u.got = nil
	u.send(ok2)
	c.expect(gotOK2)
	c.send("GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: mine\r\n\r\n")
	u.expect("GET / HTTP/1.1\r\nHost: h\r\nX-Request-Id: mine\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\nVia: 1.1 edge\r\n\r\n")
}

func TestTrustedHops(t *testing.T) {
	for _, test := range []struct {
		list string
		hops int
		peer bool
		want string
	}{
		{"1.1.1.1, 2.2.2.2", 1, true, "2.2.2.2"},
		{"1.1.1.1, 2.2.2.2", 2, true, "1.1.1.1"},
		{"1.1.1.1, 2.2.2.2", 3, true, "192.0.2.7"},
		{"1.1.1.1, 2.2.2.2", 1, false, "1.1.1.1"},
		{"1.1.1.1, junk", 1, true, "192.0.2.7"},
		{"2001:db8::1", 1, true, "2001:db8::1"},
		{"", 1, true, "192.0.2.7"},
	} {
		h := defaults()
		h.XffNumTrustedHops, h.UseRemoteAddress = uint32(test.hops), test.peer
		x := newWorld(t, h)
		c := x.tcpClient()
		head := "GET / HTTP/1.1\r\nHost: h\r\n"
		if test.list != "" {
			head += "X-Forwarded-For: " + test.list + "\r\n"
		}
		c.send(head + "\r\n")
		x.upstream()
		if got := x.filter.connections.h1.x.stream.Client.String(); got != test.want {
			t.Errorf("%q, %d hops: got %s, want %s", test.list, test.hops, got, test.want)
		}
	}
}

func TestSplit(t *testing.T) {
	h := defaults()
	h.VirtualHosts[0].Routes[0].GetRoute().Clusters = []*configv1.WeightedCluster{
		{Cluster: "up", Weight: 3}, {Cluster: "nobody", Weight: 1}, {Cluster: "never", Weight: 0},
	}
	x := newWorld(t, h)
	// The upstream refuses, so that both sides of the split answer by themselves.
	x.stopListening()
	c := x.client()
	const rounds = 400
	for range rounds {
		c.send(get)
		c.pull()
		x.until("an answer", func() bool { c.pull(); return bytes.Contains(c.got, []byte("\r\n\r\n")) })
		c.got = nil
	}
	missed := x.http[counters.HTTPNoCluster]
	if missed < rounds/8 || missed > rounds*3/8 {
		t.Errorf("%d of %d requests went to the cluster with a quarter of the weight", missed, rounds)
	}
}

func TestOverflow(t *testing.T) {
	x := newWorld(t, defaults())
	built, err := cluster.Build(&configv1.Cluster{
		Name: "up", Endpoints: []*configv1.Endpoint{{Address: "127.0.0.1:1"}}, CircuitBreaker: &configv1.CircuitBreaker{MaxRequests: 1},
	}, 0, x.manager.Cluster(0).Cluster)
	must(t, err)
	x.cluster[counters.ClusterUpstreamRqActive] = 1
	x.manager.Update([]*upstream.Config{{Cluster: built, Cells: []*counters.Cluster{x.cluster}}})
	c := x.client()
	c.send(get)
	want := reset("overflow")
	c.expect("HTTP/1.1 503 Service Unavailable\r\nX-Envoy-Overloaded: true\r\nContent-Type: text/plain\r\n" + server + "Content-Length: " +
		itoa(len(want)) + "\r\n" + date + "\r\n" + want)
	if got := x.last(); got.flags != "UO" || got.details != before("overflow") {
		t.Errorf("log: %+v", got)
	}
	x.cluster[counters.ClusterUpstreamRqActive] = 0
}

// TestOverflowInTheQueue has two requests wait for connections to a cluster that may have one request under way: whichever gets its
// connection first goes on, the other one is refused.
func TestOverflowInTheQueue(t *testing.T) {
	x := newWorld(t, defaults())
	was := x.manager.Cluster(0).Cluster
	built, err := cluster.Build(&configv1.Cluster{
		Name: "up", Endpoints: []*configv1.Endpoint{{Address: was.Hosts.Hosts[0].Address}}, CircuitBreaker: &configv1.CircuitBreaker{MaxRequests: 1},
	}, 0, was)
	must(t, err)
	x.manager.Update([]*upstream.Config{{Cluster: built, Cells: []*counters.Cluster{x.cluster}}})
	clients := []*peer{x.client(), x.client()}
	for _, c := range clients {
		_, err := unix.Write(c.fd, []byte(get))
		must(t, err)
	}
	x.until("a refusal", func() bool { return len(x.logged.lines) > 0 })
	if got := x.last(); got.status != 503 || got.flags != "UO" || got.details != before("overflow") {
		t.Errorf("log: %+v", got)
	}
	if active, overflow := x.cluster[counters.ClusterUpstreamRqActive], x.cluster[counters.ClusterUpstreamRqPendingOverflow]; active != 1 || overflow != 1 {
		t.Errorf("%d requests are under way, %d were refused; want 1 and 1", active, overflow)
	}
}

func TestCounters(t *testing.T) {
	x := newWorld(t, defaults())
	c := x.client()
	c.send(get)
	u := x.upstream()
	u.expect(gotGet)
	u.send(ok2)
	c.expect(gotOK2)
	c.close()
	sent, received := uint64(len(gotOK2)), uint64(len(get))
	for cell, want := range map[int]uint64{
		counters.HTTPDownstreamCxTotal: 1, counters.HTTPDownstreamCxActive: 0, counters.HTTPDownstreamCxDestroy: 1,
		counters.HTTPDownstreamRqTotal: 1, counters.HTTPDownstreamRqCompleted: 1, counters.HTTPDownstreamRqXX + 1: 1,
		counters.HTTPDownstreamCxRxBytesTotal: received, counters.HTTPDownstreamCxTxBytesTotal: sent,
	} {
		if got := x.http[cell]; got != want {
			t.Errorf("cell %d is %d, want %d", cell, got, want)
		}
	}
	if *x.listener.Counters.Active != 0 || x.filter.Open() != 0 {
		t.Error("the connection is still counted as open")
	}
	if x.cluster[counters.ClusterUpstreamRqXX+1] != 1 {
		t.Error("the cluster has not counted the response")
	}
}

// TestAnswersForTheCluster holds that what is answered for an upstream that does not answer counts as the cluster's, once.
func TestAnswersForTheCluster(t *testing.T) {
	for _, test := range []struct {
		name string
		fail func(x *world, c *peer)
		want int // of class 5
	}{
		{"no connection", func(x *world, c *peer) {
			x.stopListening()
			c.send(get)
		}, 1},
		{"a breaker", func(x *world, c *peer) {
			x.cluster[counters.ClusterUpstreamRqActive] = 1024
			c.send(get)
			x.cluster[counters.ClusterUpstreamRqActive] = 0
		}, 1},
		{"no answer in time", func(x *world, c *peer) {
			c.send(get)
			x.upstream()
			x.pass(16 * time.Second)
		}, 1},
		{"an end before the head", func(x *world, c *peer) {
			c.send("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n")
			x.upstream().close()
		}, 1},
		{"a body that is cut", func(x *world, c *peer) {
			c.send(get)
			u := x.upstream()
			u.send("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 9\r\n\r\nab")
			u.close()
		}, 1},
		{"an answer of a route's own", func(_ *world, c *peer) { c.send("nonsense\r\n\r\n") }, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := newWorld(t, defaults())
			test.fail(x, x.client())
			x.until("a line in the log", func() bool { return len(x.logged.lines) > 0 })
			if got := x.cluster[counters.ClusterUpstreamRqXX+4]; got != uint64(test.want) {
				t.Errorf("the cluster has counted %d responses of class 5, want %d (%+v)", got, test.want, x.last())
			}
		})
	}
}

func TestGradualDrain(t *testing.T) {
	x := newWorld(t, defaults())
	x.filter.Drain(100 * 1e9)
	at := func(elapsed int64) (closed int) {
		x.pass(0)
		x.clock.now = x.filter.drain.since + elapsed*1e9
		x.turn()
		for range 1000 {
			if x.filter.drain.closing(x.worker) {
				closed++
			}
		}
		return closed
	}
	for _, test := range []struct {
		elapsed     int64
		least, most int
	}{{0, 0, 0}, {25, 150, 350}, {75, 650, 850}, {100, 1000, 1000}} {
		if n := at(test.elapsed); n < test.least || n > test.most {
			t.Errorf("after %d s of 100, %d of 1000 responses close", test.elapsed, n)
		}
	}
	x.filter.Undrain()
	if x.filter.drain.closing(x.worker) {
		t.Error("it still closes after Undrain")
	}
}
