package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// Filters that judge connections, and clients that are known by their certificates.
func TestConnectionFilters(t *testing.T) {
	ca, clients := certs.New(t, "servers"), certs.New(t, "clients")
	edge := ca.Issue("shop.test")
	app, other := clients.Issue("app.mesh", "spiffe://mesh/app"), clients.Issue("other.mesh", "spiffe://mesh/other")
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "in") }))
	t.Cleanup(upstream.Close)
	tlsBlock := fmt.Sprintf("tls {\n    certificates        = [certificate.shop]\n    client_ca           = %q\n    require_client_cert = false\n  }", clients.File)
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 2 }
stats { listen = "off" }
certificate "shop" {
  cert_file = %q
  key_file  = %q
}
filter "rbac" "app" {
  policy "app" {
    principal { sans = ["spiffe://mesh/app"] }
  }
}
filter "rbac" "mesh" {
  policy "app" {
    principal { sans = ["spiffe://mesh/a*"] }
  }
}
filter "ip" "nobody" { deny = ["127.0.0.0/8"] }
filter "rate_limit" "once" {
  limit = "1/h"
  key   = ["source"]
}
listener "edge" {
  address = ["127.0.0.1:0"]
  %[3]s
  http {
    filters = [filter.rbac.app]
    virtual_host "*" {
      route "/*" { cluster = cluster.app }
    }
  }
}
listener "mesh" {
  address = ["127.0.0.1:0"]
  filters = [filter.rbac.mesh]
  %[3]s
  http {
    virtual_host "*" {
      route "/*" { cluster = cluster.app }
    }
  }
}
listener "closed" {
  address = ["127.0.0.1:0"]
  filters = [filter.ip.nobody]
  tcp { cluster = cluster.app }
}
listener "once" {
  address = ["127.0.0.1:0"]
  filters = [filter.rate_limit.once]
  tcp { cluster = cluster.app }
}
cluster "app" { endpoints = [%[4]q] }
`, edge.CertFile, edge.KeyFile, tlsBlock, strings.TrimPrefix(upstream.URL, "http://")))
	for _, row := range []struct {
		name       string
		own        *certs.Pair
		edge, mesh string // "in", a status, or "closed"
	}{{"app", app, "in", "in"}, {"other", other, "403", "closed"}, {"nobody", nil, "403", "closed"}} {
		for _, h2 := range []bool{false, true} {
			config := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test"}
			if row.own != nil {
				config.Certificates = []tls.Certificate{row.own.TLS}
			}
			client := tlsClient(t, config, h2)
			for listener, want := range map[string]string{"edge": row.edge, "mesh": row.mesh} {
				got := "closed"
				for range 2 { // the second on the same connection
					if r, err := client.Get("https://" + s.Address(listener) + "/"); err == nil {
						body, _ := io.ReadAll(r.Body)
						r.Body.Close()
						if got = string(body); r.StatusCode != 200 {
							got = fmt.Sprint(r.StatusCode)
						}
					}
				}
				if got != want {
					t.Errorf("%s on %s, HTTP/2 %v: %s, want %s", row.name, listener, h2, got, want)
				}
			}
		}
	}
	through := func(listener string) bool {
		c, err := net.Dial("tcp", s.Address(listener))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, _ = io.WriteString(c, "GET / HTTP/1.0\r\n\r\n")
		text, _ := io.ReadAll(c)
		return strings.HasSuffix(string(text), "in")
	}
	if through("closed") {
		t.Error("a connection came in from where nobody may")
	}
	if !through("once") || through("once") {
		t.Error("not one connection came in, but none or two")
	}
	s.AwaitStat(1, "retinue_ip_denied", "filter=nobody")
	s.AwaitStat(1, "retinue_rate_limit_enforced", "filter=once")
	s.AwaitStat(8, "retinue_rbac_denied", "filter=app")
	s.AwaitStat(4, "retinue_rbac_denied", "filter=mesh")
}
