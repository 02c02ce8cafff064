package explain

import (
	"strings"
	"testing"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/compile"
	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/eval"
	"retinue.dev/configd/internal/snapshot"
	"retinue.dev/configd/internal/syntax"
)

const config = `listener "web" {
  address = ["127.0.0.1:8080"]
  http {
    path { escaped_slashes = "redirect" }
    virtual_host "shop" {
      domains = ["shop.example.com", "*.shop.example.com"]
      headers {
        response { set = { "x-shop" = "1" } }
      }
      route "GET /status" {
        respond { body = "ok" }
      }
      route "/api/*" {
        match {
          header "x-env" { exact = "test" }
          fraction = "5%"
        }
        cluster = cluster.canary
      }
      route "/api/*" {
        split = [
          { cluster = cluster.api, weight = 3 },
          { cluster = cluster.canary, weight = 1 },
        ]
        timeout = "2s"
        rewrite { prefix = "/" }
      }
      route "/office" {
        match { source_cidrs = ["10.0.0.0/8"] }
        redirect { scheme = "https" }
      }
    }
  }
}
listener "db" {
  address = ["127.0.0.1:5432"]
  tcp { cluster = cluster.api }
}
cluster "api" { endpoints = ["10.0.0.1:80", "10.0.0.2:80"] }
cluster "canary" {
  discovery "dns" { name = "canary.internal:80" }
}
`

func compiled(t testing.TB, text string) *snapshot.Snapshot {
	t.Helper()
	diags := &diag.List{}
	r := compile.Files(syntax.Parse([]syntax.Source{{Name: "main.hcl", Data: []byte(text)}}, diags), diags, eval.Inputs{Env: func(string) (string, bool) { return "", false }})
	if r.Snapshot == nil {
		t.Fatal(r.Text(false))
	}
	return r.Snapshot
}

func TestExplain(t *testing.T) {
	running := compiled(t, config)
	for _, c := range []struct {
		name    string
		request *configv1.ExplainRequest
		want    string // the steps, or the error
	}{
		{"answer", &configv1.ExplainRequest{Method: "GET", Url: "http://shop.example.com:8080/x/../status"}, `
listener  ✓ web               listens on 127.0.0.1:8080  (main.hcl:1)
path        /status           the normal form of /x/../status  (main.hcl:3)
host      ✓ shop              the domain shop.example.com  (main.hcl:5)
route     ✓ GET /status  (main.hcl:10)
answer      200               a body of 2 bytes, text/plain  (main.hcl:10)
response    virtual_host      sets x-shop  (main.hcl:5)
`},
		{"fraction and split", &configv1.ExplainRequest{Method: "POST", Url: "http://a.shop.example.com:8080/api/x?y", Headers: []*configv1.Header{{Name: "X-Env", Value: "test"}}}, `
listener  ✓ web           listens on 127.0.0.1:8080  (main.hcl:1)
path        /api/x?y
host      ✓ shop          the domain *.shop.example.com matches a.shop.example.com  (main.hcl:5)
route     ✗ GET /status   the path is /api/x, not /status  (main.hcl:10)
          ✓ /api/*        it takes 5 % of requests  (main.hcl:13)
cluster     canary        endpoints found by the name canary.internal, port 80; by round_robin, http1  (main.hcl:40)
breaker                   1024 connections, 1024 pending, 1024 requests, 3 retries  (main.hcl:40)
connect                   within 5s; idle 1h0m0s  (main.hcl:40)
timeouts                  route 15s, idle 5m0s, whole stream off  (main.hcl:13)
response    virtual_host  sets x-shop  (main.hcl:5)
otherwise                 the other requests
route     ✓ /api/*  (main.hcl:20)
rewrite                   prefix /  (main.hcl:20)
cluster     api           75 % of requests; 10.0.0.1:80, 10.0.0.2:80 by round_robin, http1  (main.hcl:39)
breaker                   1024 connections, 1024 pending, 1024 requests, 3 retries  (main.hcl:39)
connect                   within 5s; idle 1h0m0s  (main.hcl:39)
cluster     canary        25 % of requests; endpoints found by the name canary.internal, port 80; by round_robin, http1  (main.hcl:40)
breaker                   1024 connections, 1024 pending, 1024 requests, 3 retries  (main.hcl:40)
connect                   within 5s; idle 1h0m0s  (main.hcl:40)
timeouts                  route 2s, idle 5m0s, whole stream off  (main.hcl:20)
response    virtual_host  sets x-shop  (main.hcl:5)
`},
		{"no route", &configv1.ExplainRequest{Method: "GET", Url: "http://shop.example.com/office", Listener: "web", From: "192.168.0.1"}, `
listener  ✓ web          listens on 127.0.0.1:8080  (main.hcl:1)
path        /office
host      ✓ shop         the domain shop.example.com  (main.hcl:5)
route     ✗ GET /status  the path is /office, not /status  (main.hcl:10)
          ✗ /api/*       the path /office does not begin with /api/  (main.hcl:13)
          ✗ /api/*       the path /office does not begin with /api/  (main.hcl:20)
          ✗ /office      the source 192.168.0.1 is not in 10.0.0.0/8  (main.hcl:28)
answer      404          no route of the virtual host matches  (main.hcl:5)
`},
		{"redirect of slashes", &configv1.ExplainRequest{Method: "GET", Url: "http://shop.example.com:8080/a%2Fb"}, `
listener  ✓ web   listens on 127.0.0.1:8080  (main.hcl:1)
path        /a/b  the normal form of /a%2Fb  (main.hcl:3)
answer      307   to the path with its slashes decoded  (main.hcl:3)
`},
		{"refused path", &configv1.ExplainRequest{Method: "GET", Url: "http://shop.example.com:8080/..;/a"}, `
listener  ✓ web    listens on 127.0.0.1:8080  (main.hcl:1)
path      ✗ /..;/a  servers would read it differently  (main.hcl:3)
answer      400    path_normalization_failed  (main.hcl:3)
`},
		{"no host", &configv1.ExplainRequest{Method: "GET", Url: "http://other:8080"}, `
listener  ✓ web    listens on 127.0.0.1:8080  (main.hcl:1)
path        /
host      ✗ other  no virtual host has the domain, and none has "*"  (main.hcl:3)
answer      404    route_not_found  (main.hcl:3)
`},
		{"tcp", &configv1.ExplainRequest{Method: "GET", Url: "http://x:5432/"}, `
listener  ✓ db    listens on 127.0.0.1:5432  (main.hcl:35)
tcp         db    bytes pass; nothing of the request is looked at  (main.hcl:35)
cluster     api   10.0.0.1:80, 10.0.0.2:80 by round_robin, http1  (main.hcl:39)
breaker                   1024 connections, 1024 pending, 1024 requests, 3 retries  (main.hcl:39)
connect                   within 5s; idle 1h0m0s  (main.hcl:39)
timeouts          idle 1h0m0s, 1 attempt to connect  (main.hcl:35)
`},
		{"https on a plain chain", &configv1.ExplainRequest{Method: "GET", Url: "https://shop.example.com:8080/"}, `
listener  ✓ web   listens on 127.0.0.1:8080  (main.hcl:1)
tls       ✗       the chain does not speak TLS, and the URL is https  (main.hcl:1)
answer      connection closed  no filter chain matches
`},
		{"no port", &configv1.ExplainRequest{Method: "GET", Url: "http://shop.example.com/"}, "no listener has the port 80"},
		{"no listener", &configv1.ExplainRequest{Method: "GET", Url: "http://a/", Listener: "wbe"}, `there is no listener "wbe"`},
		{"no URL", &configv1.ExplainRequest{Method: "GET", Url: "shop.example.com"}, "a URL is written"},
		{"bad port", &configv1.ExplainRequest{Method: "GET", Url: "http://a:b/"}, "a URL is written"},
		{"bad method", &configv1.ExplainRequest{Method: "get", Url: "http://a/"}, "not a method"},
		{"bad address", &configv1.ExplainRequest{Method: "GET", Url: "http://a/", From: "office"}, "not an address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reply, err := Request(running, nil, c.request)
			if !strings.HasPrefix(c.want, "\n") {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := "\n" + Text(reply.GetSteps()); squeeze(got) != squeeze(c.want) {
				t.Errorf("got:%s\nwant:%s", got, c.want)
			}
		})
	}
}

// TestExplainFound tells of found endpoints where they are known.
func TestExplainFound(t *testing.T) {
	running := compiled(t, config)
	ask := &configv1.ExplainRequest{Method: "GET", Url: "http://shop.example.com:8080/api/x"}
	for _, c := range []struct {
		status *configv1.DiscoveryStatus
		want   string
	}{
		{&configv1.DiscoveryStatus{Cluster: "canary", Endpoints: 3}, "3 endpoints, found by the name canary.internal, port 80"},
		{&configv1.DiscoveryStatus{Cluster: "canary", Endpoints: 2, Failure: "no answer"}, "2 endpoints, the last look failed (no answer), found by the name"},
		{&configv1.DiscoveryStatus{Cluster: "other", Endpoints: 2}, "endpoints found by the name"},
	} {
		reply, err := Request(running, []*configv1.DiscoveryStatus{c.status}, ask)
		if err != nil || !strings.Contains(reply.GetRendered(), c.want) {
			t.Errorf("%v: %v, no %q in:\n%s", c.status, err, c.want, reply.GetRendered())
		}
	}
}

// TestExplainHow tells how endpoints are found.
func TestExplainHow(t *testing.T) {
	ask := &configv1.ExplainRequest{Method: "GET", Url: "http://shop.example.com:8080/api/x"}
	for words, want := range map[string]string{
		`logical = true`: "1 endpoint, found by the name canary.internal, port 80, as one endpoint (logical); by",
		`record = "a"`:   "1 endpoint, found by the name canary.internal, port 80; by",
	} {
		running := compiled(t, strings.Replace(config, `{ name = "canary.internal:80" }`, "{\n name = \"canary.internal:80\"\n "+words+"\n }", 1))
		reply, err := Request(running, []*configv1.DiscoveryStatus{{Cluster: "canary", Endpoints: 1}}, ask)
		if err != nil || !strings.Contains(reply.GetRendered(), want) {
			t.Errorf("%s: %v, no %q in:\n%s", words, err, want, reply.GetRendered())
		}
	}
	for want, dns := range map[string]*configv1.DnsDiscovery{
		"SRV records of a": {Host: "a", Record: "srv"},
		"SRV records of a, each target one endpoint (logical)": {Host: "a", Record: "srv", Logical: true},
	} {
		if got := how(&configv1.Discovery{Kind: &configv1.Discovery_Dns{Dns: dns}}); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestExplainTracing: a route's shares where it says some, else the http block's.
func TestExplainTracing(t *testing.T) {
	running := compiled(t, `tracing {
  endpoint     = "http://127.0.0.1:4318"
  service_name = "edge"
}
listener "web" {
  address = ["127.0.0.1:80"]
  http {
    tracing {
      random_sampling     = "10%"
      spawn_upstream_span = true
    }
    virtual_host "all" {
      domains = ["*"]
      route "/own" {
        respond { status = 204 }
        tracing {
          random_sampling  = "0.5%"
          overall_sampling = "1%"
        }
      }
      route "/*" {
        respond { status = 204 }
      }
    }
  }
}
`)
	for url, want := range map[string]string{
		"http://h/own": "0.5 % of requests that nobody has decided about, 1 % of what would be sampled; each try is a span of its own (main.hcl:14)",
		"http://h/":    "10 % of requests that nobody has decided about; each try is a span of its own (main.hcl:7)",
	} {
		reply, err := Request(running, nil, &configv1.ExplainRequest{Method: "GET", Url: url})
		if err != nil || !strings.Contains(squeeze(reply.GetRendered()), "tracing "+want+"\n") {
			t.Errorf("%s: %v, no %q in:\n%s", url, err, want, reply.GetRendered())
		}
	}
}

func FuzzRequest(f *testing.F) {
	for _, url := range []string{"http://shop.example.com:8080/api/x?y#z", "https://[::1]:443", "http://a.:80?q", "http:///", "http://a:0/", "http://a/%2e%2e;x"} {
		f.Add("GET", url, "x-env", "test", "10.0.0.1")
	}
	running := compiled(f, config)
	f.Fuzz(func(t *testing.T, method, url, name, value, from string) {
		reply, err := Request(running, nil, &configv1.ExplainRequest{Method: method, Url: url, Headers: []*configv1.Header{{Name: name, Value: value}}, From: from, Listener: "web"})
		if err == nil && len(reply.GetSteps()) < 2 {
			t.Fatalf("%s %s: nothing is explained: %v", method, url, reply)
		}
	})
}

// squeeze leaves the widths of columns out.
func squeeze(s string) string {
	lines := strings.Split(s, "\n")
	for i, l := range lines {
		lines[i] = strings.Join(strings.Fields(l), " ")
	}
	return strings.Join(lines, "\n")
}
