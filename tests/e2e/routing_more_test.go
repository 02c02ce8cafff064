package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

const moreRoutingConfig = `
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "secure" {
      redirect_https = "all"
      headers {
        response { set = { "strict-transport-security" = "max-age=1" } }
      }
      route "/*" {
        respond { body = "routed" }
      }
    }
    virtual_host "outside" {
      redirect_https = "external_only"
      route "/*" {
        respond { body = "routed" }
      }
    }
    virtual_host "hyphens" {
      domains = ["*-eu.example.net", "shop-*"]
      route "/*" {
        respond { body = "hyphen" }
      }
    }
    virtual_host "*" {
      route "/edits" {
        headers {
          request {
            replace = { "x-level" = "replaced", "x-default" = "never" }
            set     = { "x-http" = "%%REQ(x-not-there)%%" }
          }
          response {
            replace = { "content-type" = "text/x", "x-none" = "never" }
          }
        }
        cluster = cluster.one
      }
      route "/host" {
        cluster = cluster.one
        rewrite {
          host                    = "inner"
          append_x_forwarded_host = true
        }
      }
      route "/host/from" {
        cluster = cluster.one
        rewrite {
          host_header             = "x-host-to"
          append_x_forwarded_host = true
        }
      }
      route "/r/scheme" {
        redirect { scheme = "https" }
      }
      route "/r/host" {
        redirect {
          host   = "other.example"
          status = 302
        }
      }
      route "/r/port" {
        redirect {
          port   = 8443
          status = 307
        }
      }
      route "/r/path" {
        redirect { path = "/p?fresh=1" }
      }
      route "/r/stripped" {
        redirect {
          path        = "/p"
          strip_query = true
          status      = 303
        }
      }
      route "/r/prefix/*" {
        redirect {
          prefix = "/n"
          status = 308
        }
      }
      route "~/r/re/([0-9]+)" {
        redirect {
          regex        = "^/r/re/([0-9]+)$"
          substitution = "/\\1"
          scheme       = "https"
          host         = "all.example"
          port         = 444
          strip_query  = true
        }
      }
    }
  }
}
listener "inner" {
  address = ["127.0.0.1:0"]
  http {
    internal_networks    = ["127.0.0.0/8"]
    use_remote_address   = true
    xff_num_trusted_hops = 1
    virtual_host "outside" {
      redirect_https = "external_only"
      route "/*" {
        respond { body = "routed" }
      }
    }
    virtual_host "secure" {
      redirect_https = "all"
      route "/*" {
        redirect { path = "/elsewhere" }
      }
    }
  }
}
cluster "one" { endpoints = [%q] }
stats { listen = "off" }
`

// TestRedirectsAndEdits asks for every field of redirects, for hosts that require TLS, and for the edits of headers that are there.
func TestRedirectsAndEdits(t *testing.T) {
	var mu sync.Mutex
	var seen http.Header
	s := suite.Start(t, fmt.Sprintf(moreRoutingConfig, teller(t, "one", func(r *http.Request, _ string) {
		mu.Lock()
		defer mu.Unlock()
		seen = r.Header
	})))
	address := s.Address("web")
	for _, test := range []struct{ host, target, want string }{
		{"secure", "/a?b", "301 https://secure/a?b"},
		{"secure:80", "/a", "301 https://secure/a"},
		{"secure:8080", "/a", "301 https://secure:8080/a"},
		{"outside", "/a", "301 https://outside/a"},
		{"a.b-eu.example.net", "/", "200 "},
		{"-eu.example.net", "/", "404 "},
		{"SHOP-1:80", "/", "200 "},
		{"h", "/r/scheme?q", "301 https://h/r/scheme?q"},
		{"h:8080", "/r/host", "302 http://other.example/r/host"},
		{"h:8080", "/r/port?q", "307 http://h:8443/r/port?q"},
		{"h", "/r/path", "301 http://h/p?fresh=1"},
		{"h", "/r/stripped?q", "303 http://h/p"},
		{"h", "/r/prefix/x/y?q", "308 http://h/n/x/y?q"},
		{"h", "/r/re/42?q", "301 https://all.example:444/42"},
	} {
		status, location, _ := askAsWritten(t, address, "GET", test.host, test.target)
		if got := fmt.Sprintf("%d %s", status, location); got != test.want {
			t.Errorf("%s%s: %q, want %q", test.host, test.target, got, test.want)
		}
	}
	inner := s.Address("inner")
	for _, test := range []struct{ host, fields, want string }{
		{"outside", "", "200 "}, // of 127.0.0.1, which is internal
		{"outside", "X-Forwarded-For: 192.0.2.1\r\n", "301 https://outside/a"},
		{"secure", "", "301 https://secure/a"},
		// What the trusted proxy in front says of the client's connection holds.
		{"secure", "X-Forwarded-Proto: https\r\n", "301 https://secure/elsewhere"},
		{"secure", "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http\r\n", "301 https://secure/a"},
		{"secure", "X-Forwarded-Proto: javascript\r\n", "301 https://secure/a"},
	} {
		status, location, _ := askAsWritten(t, inner, "GET", test.host+"\r\n"+strings.TrimSuffix("X-A: b\r\n"+test.fields, "\r\n"), "/a")
		if got := fmt.Sprintf("%d %s", status, location); got != test.want {
			t.Errorf("%s with %q: %q, want %q", test.host, test.fields, got, test.want)
		}
	}
	t.Run("another host", func(t *testing.T) {
		for _, x := range []struct{ path, fields, host, forwarded string }{
			{"/host", "", "inner", "h:1"},
			{"/host", "X-Forwarded-Host: a\r\n", "inner", "a,h:1"},
			{"/host", "X-Forwarded-Host: a, h:1\r\n", "inner", "a, h:1"},
			{"/host/from", "X-Forwarded-Host: a\r\nX-Host-To: to:2\r\n", "to:2", "a,h:1"},
			{"/host/from", "X-Host-To: to, other\r\n", "h:1", ""},
			{"/host/from", "", "h:1", ""},
		} {
			status, _, body := askAsWritten(t, address, "GET", "h:1\r\n"+strings.TrimSuffix("X-A: b\r\n"+x.fields, "\r\n"), x.path)
			mu.Lock()
			forwarded := strings.Join(seen.Values("X-Forwarded-Host"), "|")
			mu.Unlock()
			if status != 200 || !strings.Contains(body, fmt.Sprintf(`"host":%q`, x.host)) || forwarded != x.forwarded {
				t.Errorf("%s %q: %d %s, X-Forwarded-Host %q", x.path, x.fields, status, body, forwarded)
			}
		}
	})
	t.Run("headers that are there", func(t *testing.T) {
		for _, given := range []bool{false, true} {
			r, err := http.NewRequest("GET", "http://"+address+"/edits", nil)
			if err != nil {
				t.Fatal(err)
			}
			want := `"default":"","host"`
			level := ""
			if given {
				r.Header.Set("X-Level", "client")
				r.Header.Set("X-Http", "client") // it must not stay
				level = "replaced"
			}
			response, err := client(t).Do(r)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(response.Body)
			response.Body.Close()
			if err != nil || !strings.Contains(string(body), want) || !strings.Contains(string(body), fmt.Sprintf(`"level":%q`, level)) {
				t.Errorf("given %v: %v %s", given, err, body)
			}
			if response.Header.Get("Content-Type") != "text/x" || response.Header.Values("X-None") != nil {
				t.Errorf("response headers: %v", response.Header)
			}
			mu.Lock()
			if empty, there := seen["X-Http"]; there {
				t.Errorf("a value that came out empty was sent: %q", empty)
			}
			mu.Unlock()
		}
	})
}

// TestRouteByClientCert: a certificate that was shown, and so verified, chooses the route, on a resumed session too.
func TestRouteByClientCert(t *testing.T) {
	ca, clients := certs.New(t, "servers"), certs.New(t, "clients")
	edge, own := ca.Issue("shop.test"), clients.Issue("app.mesh")
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 2 }
stats { listen = "off" }
certificate "shop" {
  cert_file = %q
  key_file  = %q
}
listener "edge" {
  address = ["127.0.0.1:0"]
  tls {
    certificates        = [certificate.shop]
    client_ca           = %q
    require_client_cert = false
  }
  http {
    virtual_host "*" {
      route "/*" {
        match { client_cert = true }
        respond { body = "known" }
      }
      route "/*" {
        match { client_cert = false }
        respond { body = "unknown" }
      }
    }
  }
}
`, edge.CertFile, edge.KeyFile, clients.File))
	for want, certificates := range map[string][]tls.Certificate{"known": {own.TLS}, "unknown": nil} {
		config := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test", Certificates: certificates, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
		for i := range 2 {
			r, err := tlsClient(t, config, false).Get("https://" + s.Address("edge") + "/")
			if err != nil {
				t.Fatal(err)
			}
			got, _ := io.ReadAll(r.Body)
			r.Body.Close()
			if string(got) != want || r.TLS.DidResume != (i > 0) {
				t.Errorf("connection %d, resumed %t: %q, want %q", i, r.TLS.DidResume, got, want)
			}
		}
	}
}

// TestMirroredShare: a mirror with a fraction gets so many copies, and each client its answer.
func TestMirroredShare(t *testing.T) {
	var copies atomic.Int64
	shadow := teller(t, "shadow", func(*http.Request, string) { copies.Add(1) })
	s := suite.Start(t, fmt.Sprintf(`
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "*" {
      route "/*" {
        cluster = cluster.one
        mirror {
          cluster  = cluster.shadow
          fraction = "50%%"
        }
      }
    }
  }
}
cluster "one" { endpoints = [%q] }
cluster "shadow" { endpoints = [%q] }
`, teller(t, "one", nil), shadow))
	c := client(t)
	const asked, sigma = 400, 10
	for range asked {
		r, err := c.Get("http://" + s.Address("web") + "/")
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(r.Body)
		r.Body.Close()
		if !strings.Contains(string(body), `"server":"one"`) {
			t.Fatalf("%s", body)
		}
	}
	s.Eventually("every copy arrives", func() error {
		if made := s.Stat("retinue_cluster_shadow_total", "cluster=shadow"); made < asked/2-6*sigma || float64(copies.Load()) != made {
			return fmt.Errorf("%v copies made, %d arrived", made, copies.Load())
		}
		return nil
	})
	if n := copies.Load(); n > asked/2+6*sigma {
		t.Errorf("%d of %d were copied, half of them should be", n, asked)
	}
}
