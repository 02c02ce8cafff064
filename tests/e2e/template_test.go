package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const templateConfig = `
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    path { escaped_slashes = %q }
    virtual_host "*" {
      route "/videos/{country}/{id}" {
        cluster = cluster.one
        rewrite { template = "/{id}/in-{country}" }
      }
      route "/videos/*/*/*.m4s" {
        respond { body = "segment" }
      }
      route "/old/{tenant}/{rest=files/**}" {
        redirect {
          host     = "files.example.com"
          template = "/{tenant}/{rest}"
          status   = 308
        }
      }
      route "POST /videos/**" {
        respond { body = "posted" }
      }
      route "/**.mpd" {
        respond { body = "list" }
      }
      route "/videos/*" {
        respond { body = "rest" }
      }
    }
  }
}
cluster "one" { endpoints = [%q] }
stats { listen = "off" }
`

// askAsWritten sends one request whose target no library has looked at.
func askAsWritten(t *testing.T, address, method, host, target string) (status int, location, body string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, suite.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(suite.Patience))
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: 0\r\n\r\n", method, target, host); err != nil {
		t.Fatal(err)
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	all, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, r.Header.Get("Location"), string(all)
}

// TestTemplates asks for paths with the forms of templates, raw, as clients may write them.
func TestTemplates(t *testing.T) {
	type test struct{ method, target, want string } // "status body" or "status Location"; "status URI" of the upstream
	for escaped, tests := range map[string][]test{
		"keep": {
			{"GET", "/videos/de/42?q=/videos/a/b", "200 /42/in-de?q=/videos/a/b"},
			{"GET", "/videos/de/4%2f2", "200 /4%2F2/in-de"},
			{"GET", "/videos/x/../d%65/42", "200 /42/in-de"},
			{"GET", "/videos/%2e%2e/42", "404 "}, // it is /42
			{"GET", "/videos/..%2F/42", "200 /42/in-..%2F"},
			{"GET", "/videos//42", "200 rest"},
			{"GET", "/videos/de/", "200 rest"},
			{"GET", "/videos/1/hls/a_1.m4s", "200 segment"},
			{"GET", "/videos/1/hls/.m4s", "200 rest"},
			{"GET", "/videos/1/hls/...m4s", "200 rest"},
			{"POST", "/videos/", "200 posted"},
			{"POST", "/videos/a/b", "200 /b/in-a"},
			{"POST", "/videos", "404 "},
			{"GET", "/a/b//c.mpd", "200 list"},
			{"GET", "/old/t/files/a/b?c", "308 http://files.example.com/t/files/a/b?c"},
			{"GET", "/old/t/files", "404 "},
		},
		"decode": {
			{"GET", "/videos/de/4%2F2", "200 rest"},
			{"GET", "/videos%2fde%2F42", "200 /42/in-de"},
			{"GET", "/videos/1%2Fhls%5Ca.m4s", "200 segment"},
			{"GET", "/videos/..%2f..%2fold/t/files/", "308 http://files.example.com/t/files/"},
		},
		"reject": {
			{"GET", "/videos/de/4%2F2", "400 "},
			{"GET", "/videos/de/42", "200 /42/in-de"},
		},
	} {
		s := suite.Start(t, fmt.Sprintf(templateConfig, escaped, teller(t, "one", nil)))
		for _, test := range tests {
			t.Run(escaped+" "+test.method+" "+test.target, func(t *testing.T) {
				status, location, body := askAsWritten(t, s.Address("web"), test.method, "a", test.target)
				got := fmt.Sprintf("%d %s", status, location)
				if status == 200 {
					if got = body; strings.HasPrefix(got, "{") {
						_, got, _ = strings.Cut(got, `"uri":"`)
						got, _, _ = strings.Cut(got, `"`)
					}
					got = "200 " + got
				}
				if got != test.want {
					t.Errorf("%q, want %q", got, test.want)
				}
			})
		}
	}
}
