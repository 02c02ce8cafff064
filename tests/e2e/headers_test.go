package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// TestForwardedHeaders has a row for each thing that the upstream is told of the client, and by whom it is believed.
func TestForwardedHeaders(t *testing.T) {
	const listener = `
listener "NAME" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    SETTING
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
`
	settings := map[string]string{
		"edge": "", "behind": "xff_num_trusted_hops = 1", "transparent": "use_remote_address = false", "quiet": "generate_request_id = false",
		"own_id": "preserve_external_request_id = false", "via": `via = "edge-1"`,
	}
	var hcl strings.Builder
	for name, setting := range settings {
		hcl.WriteString(strings.NewReplacer("NAME", name, "SETTING", setting).Replace(listener))
	}
	st := newStage(t, hcl.String()+"cluster \"app\" { endpoints = [\"APP\"] }\n")
	const uuid = `X-Request-Id: [0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\r\n`
	t.Run("rows", func(t *testing.T) {
		for i, test := range []struct {
			name, listener, headers string
			sees                    []string // regular expressions
			misses                  []string
		}{
			{"nothing is there", "edge", "", []string{`X-Forwarded-For: 127\.0\.0\.1\r\n`, `X-Forwarded-Proto: http\r\n`, uuid}, []string{"Via"}},
			{"the peer is appended", "edge", "X-Forwarded-For: 1.2.3.4\r\n", []string{`X-Forwarded-For: 1\.2\.3\.4, 127\.0\.0\.1\r\n`}, nil},
			{"several fields", "edge", "X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-For: 5.6.7.8\r\n", []string{`5\.6\.7\.8, 127\.0\.0\.1\r\n`}, nil},
			{"nobody may say the scheme", "edge", "X-Forwarded-Proto: https\r\n", []string{`X-Forwarded-Proto: http\r\n`}, []string{"https"}},
			{"a trusted proxy may", "behind", "X-Forwarded-Proto: https\r\nX-Forwarded-For: 1.2.3.4\r\n", []string{`X-Forwarded-Proto: https\r\n`, `X-Forwarded-For: 1\.2\.3\.4, 127\.0\.0\.1\r\n`}, nil},
			{"transparent", "transparent", "X-Forwarded-For: 1.2.3.4\r\n", []string{`X-Forwarded-For: 1\.2\.3\.4\r\n`}, []string{"127.0.0.1"}},
			{"an id from outside is kept", "edge", "X-Request-Id: mine\r\n", []string{`X-Request-Id: mine\r\n`}, nil},
			{"an id from outside is not kept", "own_id", "X-Request-Id: mine\r\n", []string{uuid}, []string{"mine"}},
			{"no id", "quiet", "", nil, []string{"X-Request-Id"}},
			{"via", "via", "Via: 1.0 first\r\n", []string{`Via: 1\.1 edge-1\r\n`, `Via: 1\.0 first\r\n`}, nil},
		} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				path, saw := fmt.Sprintf("/row-%d", i), make(chan string, 1)
				st.scripts.set(path, func(c *upstreamConn) bool {
					saw <- c.raw.String()
					c.says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
					return true
				})
				c := dial(t, st.Address(test.listener))
				write(t, c, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n%s\r\n", path, test.headers))
				_, _ = untilEnd(c)
				seen := <-saw
				for _, want := range test.sees {
					if !regexp.MustCompile(want).MatchString(seen) {
						t.Errorf("the upstream received %q without %s", seen, want)
					}
				}
				for _, bad := range test.misses {
					if strings.Contains(seen, bad) {
						t.Errorf("the upstream received %q with %s", seen, bad)
					}
				}
			})
		}
	})
}

// TestHeaderCase: peers that compare the names of headers letter by letter get the letters that they want, both ways.
func TestHeaderCase(t *testing.T) {
	st := newStage(t, `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    header_case = ["x-LEGACY", "CONTENT-LENGTH", "X-Sum"]
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" {
  endpoints   = ["APP"]
  header_case = ["SOAPAction", "X-API-KEY", "HOST"]
}
`)
	saw := make(chan string, 1)
	st.scripts.set("/", func(c *upstreamConn) bool {
		saw <- c.raw.String()
		c.says("HTTP/1.1 200 OK\r\nx-legacy: SOAPAction\r\ncontent-length: 0\r\n\r\n")
		return true
	})
	c := dial(t, st.Address("web"))
	write(t, c, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\nsoapaction: x-legacy\r\nX-aPI-Key: k\r\nx-other: o\r\n\r\n")
	answer, _ := untilEnd(c)
	seen := <-saw
	for _, want := range []string{"HOST: a\r\n", "SOAPAction: x-legacy\r\n", "X-API-KEY: k\r\n", "X-Other: o\r\n"} {
		if !strings.Contains(seen, want) {
			t.Errorf("the upstream received %q without %q", seen, want)
		}
	}
	for _, want := range []string{"x-LEGACY: SOAPAction\r\n", "CONTENT-LENGTH: 0\r\n"} {
		if !strings.Contains(answer, want) {
			t.Errorf("the client received %q without %q", answer, want)
		}
	}
}

// TestRouteActions has a row for each thing that a route may do.
func TestRouteActions(t *testing.T) {
	st := newStage(t, `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log          = access_log.all
    generate_request_id = false
    virtual_host "shop" {
      domains = ["shop.example.com", "*.shop.example.com"]
      route "GET,HEAD /ok" {
        respond {
          status       = 299
          body         = "{}"
          content_type = "application/json"
        }
      }
      route "/old/*" {
        redirect { prefix = "/new/" }
      }
      route "/elsewhere" {
        redirect {
          scheme      = "https"
          host        = "other.example.com"
          port        = 8443
          path        = "/there?x=1"
          status      = 308
          strip_query = true
        }
      }
      route "/api/*" {
        cluster = cluster.app
        rewrite {
          prefix = "/v2/"
          host   = "inner"
        }
        headers {
          request {
            set    = { "x-client" = "%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%" }
            add    = { "x-list" = ["1", "2"] }
            remove = ["x-secret"]
          }
          response {
            set    = { "server" = "shop" }
            remove = ["x-powered-by"]
          }
        }
      }
      route "~/users/[0-9]+" { cluster = cluster.app }
      route "/split" {
        split = [
          { cluster = cluster.app, weight = 1 },
          { cluster = cluster.none, weight = 3 },
        ]
      }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
cluster "none" { endpoints = ["127.0.0.1:1"] }
`)
	address := st.Address("web")
	ask := func(t *testing.T, method, host, target, headers string) string {
		t.Helper()
		c := dial(t, address)
		write(t, c, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n", method, target, host, headers))
		text, _ := untilEnd(c)
		return text
	}
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
	for _, test := range []struct{ name, method, host, target, want string }{
		{"respond", "GET", "shop.example.com", "/ok", "HTTP/1.1 299 \r\nContent-Type: application/json\r\nServer: retinue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"},
		{"respond to HEAD", "HEAD", "shop.example.com:80", "/ok", "HTTP/1.1 299 \r\nContent-Type: application/json\r\nServer: retinue\r\nContent-Length: 2\r\nConnection: close\r\n\r\n"},
		{"another method", "POST", "shop.example.com", "/ok", "HTTP/1.1 404 Not Found\r\nServer: retinue\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
		{"another host", "GET", "example.com", "/ok", "HTTP/1.1 404 Not Found\r\nServer: retinue\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
		{"wildcard, and case does not matter", "GET", "A.SHOP.example.com", "/users/17", ok},
		{"the expression is for the whole path", "GET", "shop.example.com", "/users/17x", "HTTP/1.1 404 Not Found\r\nServer: retinue\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
		{"redirect of a prefix", "GET", "shop.example.com:81", "/old/page?q=1", "HTTP/1.1 301 Moved Permanently\r\nLocation: http://shop.example.com:81/new/page?q=1\r\nServer: retinue\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
		{"redirect of everything", "GET", "shop.example.com", "/elsewhere?q=1", "HTTP/1.1 308 Permanent Redirect\r\nLocation: https://other.example.com:8443/there?x=1\r\nServer: retinue\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if got := ask(t, test.method, test.host, test.target, ""); got != test.want {
				t.Errorf("%q, want\n%q", got, test.want)
			}
		})
	}
	t.Run("rewrite and header edits", func(t *testing.T) {
		saw := make(chan string, 1)
		st.scripts.set("/v2/a", func(c *upstreamConn) bool {
			saw <- c.raw.String()
			c.says("HTTP/1.1 200 OK\r\nServer: app\r\nX-Powered-By: x\r\nContent-Length: 0\r\n\r\n")
			return true
		})
		got := ask(t, "GET", "shop.example.com", "/api/a?q", "X-Secret: s\r\nX-Client: forged\r\n")
		if want := "HTTP/1.1 200 OK\r\nServer: shop\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"; got != want {
			t.Errorf("the client received %q, want %q", got, want)
		}
		seen := <-saw
		for _, want := range []string{"GET /v2/a?q HTTP/1.1\r\n", "Host: inner\r\n", "x-client: 127.0.0.1\r\n", "x-list: 1\r\n", "x-list: 2\r\n"} {
			if !strings.Contains(strings.ToLower(seen), strings.ToLower(want)) {
				t.Errorf("the upstream received %q without %q", seen, want)
			}
		}
		if strings.Contains(strings.ToLower(seen), "secret") || strings.Contains(seen, "forged") {
			t.Errorf("the upstream received %q", seen)
		}
	})
	t.Run("split", func(t *testing.T) {
		fine := 0
		const tries = 200
		for range tries {
			if strings.HasPrefix(ask(t, "GET", "shop.example.com", "/split", ""), "HTTP/1.1 200 ") {
				fine++
			}
		}
		// A quarter, within more than five standard deviations.
		if fine < tries/4-35 || fine > tries/4+35 {
			t.Errorf("%d of %d went to the cluster with a quarter of the weight", fine, tries)
		}
	})
}
