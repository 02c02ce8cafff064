package difference

import (
	"strings"
	"testing"

	"retinue.dev/configd/internal/compile"
	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/eval"
	"retinue.dev/configd/internal/snapshot"
	"retinue.dev/configd/internal/syntax"
)

const base = `listener "web" {
  address = ["127.0.0.1:80", "127.0.0.1:81"]
  http {
    virtual_host "shop" {
      domains = ["shop.example.com"]
      route "/api/*" {
        cluster = cluster.api
        timeout = "5s"
      }
      route "/a" { cluster = cluster.api }
      route "/b" { cluster = cluster.api }
    }
  }
}
cluster "api" { endpoints = ["10.0.0.1:80", "10.0.0.2:80"] }
`

func build(t *testing.T, text string) *snapshot.Snapshot {
	t.Helper()
	diags := &diag.List{}
	files := syntax.Parse([]syntax.Source{{Name: "main.hcl", Data: []byte(text)}}, diags)
	r := compile.Files(files, diags, eval.Inputs{Env: func(string) (string, bool) { return "", false }})
	if r.Snapshot == nil {
		t.Fatal(r.Text(false))
	}
	return r.Snapshot
}

// TestCompare makes one change after the other.
func TestCompare(t *testing.T) {
	for _, c := range []struct {
		name, from, to string
		want           string
	}{
		{"nothing", "", "", ""},
		{"lines move", "cluster \"api\"", "# a remark\ncluster \"api\"", ""},
		{"lines of routes move", "  http {\n", "\n\n  http {\n", ""},
		{"a time-out", `"5s"`, `"1s"`, "~ http web\n    ~ virtual_hosts[shop].routes[/api/*].route.timeout_ms 5s → 1s  (main.hcl:6)\n"},
		{"an address goes", `, "127.0.0.1:81"`, ``, "~ listener web\n    - addresses[127.0.0.1:81]  (main.hcl:2)\n      the listener gets new sockets, and the connections of the old ones drain\n"},
		{"an endpoint goes", `"10.0.0.1:80", `, ``, "~ cluster api\n    - endpoints[10.0.0.1:80]  (main.hcl:15)\n      idle connections to it close, requests under way finish\n"},
		{"an endpoint comes", `"10.0.0.1:80"`, `"10.0.0.1:80", "10.0.0.3:80"`, "~ cluster api\n    + endpoints[10.0.0.3:80]  (main.hcl:15)\n"},
		{"a domain comes", `"shop.example.com"`, `"shop.example.com", "*.shop.example.com"`, "~ http web\n    + virtual_hosts[shop].domains \"*.shop.example.com\"  (main.hcl:4)\n"},
		{"a route goes", "      route \"/a\" { cluster = cluster.api }\n", "", "~ http web\n    - virtual_hosts[shop].routes[/a]  (main.hcl:10)\n"},
		{
			"routes change places", "      route \"/a\" { cluster = cluster.api }\n      route \"/b\" { cluster = cluster.api }\n", "      route \"/b\" { cluster = cluster.api }\n      route \"/a\" { cluster = cluster.api }\n",
			"~ http web\n    ~ virtual_hosts[shop].routes /api/*, /a, /b → /api/*, /b, /a  (main.hcl:4)\n",
		},
		{"a cluster comes", "cluster \"api\"", "cluster \"new\" { endpoints = [\"10.0.0.9:80\"] }\ncluster \"api\"", "+ cluster new  (main.hcl:15)\n"},
		{"workers", "listener \"web\"", "runtime { workers = 2 }\nlistener \"web\"", "~ runtime\n    ~ workers 0 → 2  (main.hcl:1)\n      takes effect with the next generation: retinue upgrade\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := strings.Replace(base, c.from, c.to, 1)
			if c.from != "" && changed == base {
				t.Fatal("nothing was replaced")
			}
			if got := Text(Compare(build(t, base), build(t, changed))); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
	t.Run("endpoints by name become one", func(t *testing.T) {
		found := base + "cluster \"named\" {\n  discovery \"dns\" {\n    name = \"api.internal:80\"\n  }\n}\n"
		want := "~ cluster named\n    ~ discovery.dns.logical false → true  (main.hcl:17)\n      its endpoints are others: idle connections to those before close, requests under way finish\n"
		if got := Text(Compare(build(t, found), build(t, strings.Replace(found, ":80\"\n  }", ":80\"\n    logical = true\n  }", 1)))); got != want {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
	})
	t.Run("a cluster goes", func(t *testing.T) {
		with := base + "cluster \"old\" { endpoints = [\"10.0.0.9:80\"] }\n"
		want := "- cluster old  (main.hcl:16)\n      idle connections close, requests under way finish\n"
		if got := Text(Compare(build(t, with), build(t, base))); got != want {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
	})
}
