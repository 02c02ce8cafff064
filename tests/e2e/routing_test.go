package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"retinue.dev/tests/suite"
)

const routingConfig = `
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    path {
      merge_slashes   = true
      escaped_slashes = "redirect"
    }
    headers {
      request { set = { "x-level" = "http", "x-http" = "1" } }
      response { set = { "x-from" = "http" } }
    }
    virtual_host "exact" {
      domains = ["shop.example.com"]
      headers {
        request { set = { "x-level" = "host", "x-host" = "%%REQ(:AUTHORITY)%%" } }
      }
      route "/fields" {
        match {
          headers = { "x-env" = "prod" }
          header "x-n" {
            min = 1
            max = 9
          }
          parameter "q" { contains = "b" }
          cookie "session" { present = true }
        }
        respond { body = "fields" }
      }
      route "/fields" {
        match {
          header "x-env" {
            exact            = "prod"
            invert           = true
            missing_as_empty = true
          }
        }
        respond { body = "not prod" }
      }
      route "/fields" {
        respond { body = "prod" }
      }
      route "POST /type" {
        match { content_types = ["text/*"] }
        respond { body = "text" }
      }
      route "POST /type" {
        match { grpc = true }
        respond { body = "grpc" }
      }
      route "/type" {
        match { tls = true }
        respond { body = "tls" }
      }
      route "/type" {
        match { not_source_cidrs = ["127.0.0.0/8", "::1"] }
        respond { body = "far" }
      }
      route "/type" {
        match { source_cidrs = ["127.0.0.1"] }
        respond { body = "near" }
      }
      route "/half" {
        match { fraction = "50%%" }
        respond { body = "heads" }
      }
      route "/half" {
        respond { body = "tails" }
      }
      route "~/item/[0-9]+" {
        cluster = cluster.one
        rewrite {
          regex        = "^/item/([0-9]+)$"
          substitution = "/things/\\1/x"
          host_header  = "X-Target"
          query {
            remove = ["debug"]
            set    = { via = "edge" }
          }
        }
      }
      route "/a/b" {
        respond { body = "normal" }
      }
      route "/levels" {
        headers {
          request {
            set     = { "x-level" = "route" }
            default = { "x-default" = "ours", "x-http" = "never" }
          }
          response { add = { "x-from" = "route" } }
        }
        cluster = cluster.one
      }
      route "/old/*" {
        redirect {
          regex        = "^/old/(.*)$"
          substitution = "/new/\\1"
          scheme       = "https"
          status       = 308
        }
      }
      route "/split/*" {
        split = [
          { cluster = cluster.one, weight = 1, request_headers = { "x-level" = "one" }, response_headers = { "x-target" = "one" }, add_request_headers = { "x-http" = "one" }, remove_response_headers = ["x-from"] },
          { cluster = cluster.two, weight = 1, request_headers = { "x-level" = "two" }, response_headers = { "x-target" = "two" } },
        ]
        sticky {
          cookie = "bucket"
          ttl    = "1h"
        }
      }
      route "/mirrored" {
        cluster = cluster.one
        mirror { cluster = cluster.shadow }
      }
    }
    virtual_host "suffix" {
      domains = ["*.example.com"]
      route "/*" {
        respond { body = "suffix" }
      }
    }
    virtual_host "prefix" {
      domains = ["shop.*"]
      route "/*" {
        respond { body = "prefix" }
      }
    }
    virtual_host "rest" {
      domains = ["*"]
      route "/*" {
        respond { body = "rest" }
      }
    }
  }
}
cluster "one" { endpoints = [%q] }
cluster "two" { endpoints = [%q] }
cluster "shadow" { endpoints = [%q] }
stats { listen = "off" }
`

// teller is an upstream that answers with the request as it received it.
func teller(t *testing.T, name string, seen func(*http.Request, string)) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if seen != nil {
			seen(r, string(body))
		}
		_ = json.NewEncoder(w).Encode(map[string]string{
			"server": name, "uri": r.RequestURI, "host": r.Host, "level": r.Header.Get("X-Level"), "http": r.Header.Get("X-Http"), "http+": strings.Join(r.Header.Values("X-Http"), ","),
			"vhost": r.Header.Get("X-Host"), "default": r.Header.Get("X-Default"), "body": string(body),
		})
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestRouting(t *testing.T) {
	var mu sync.Mutex
	var copies []string
	shadow := teller(t, "shadow", func(r *http.Request, body string) {
		mu.Lock()
		defer mu.Unlock()
		copies = append(copies, r.Method+" "+r.Host+r.RequestURI+" "+body)
	})
	s := suite.Start(t, fmt.Sprintf(routingConfig, teller(t, "one", nil), teller(t, "two", nil), shadow))
	address := s.Address("web")
	c := client(t)
	ask := func(t *testing.T, method, host, path, body string, fields ...string) (*http.Response, string) {
		t.Helper()
		r, err := http.NewRequest(method, "http://"+address, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.URL.Opaque = path // as it stands
		r.Host = host
		for i := 0; i < len(fields); i += 2 {
			r.Header.Add(fields[i], fields[i+1])
		}
		response, err := c.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		got, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response, string(got)
	}
	const shop = "shop.example.com"
	for _, test := range []struct {
		method, host, path string
		fields             []string
		want               string
	}{
		{"GET", "SHOP.example.com.", "/a/b", nil, "normal"},
		{"GET", "www.example.com", "/", nil, "suffix"},
		{"GET", "shop.example.org:81", "/", nil, "prefix"},
		{"GET", "other", "/", nil, "rest"},
		{"GET", shop, "/fields?q=abc", []string{"X-Env", "prod", "X-N", "7", "Cookie", "a=b; session=1"}, "fields"},
		{"GET", shop, "/fields?q=abc", []string{"X-Env", "prod", "X-N", "10", "Cookie", "a=b; session=1"}, "prod"},
		{"GET", shop, "/fields?q=xyz", []string{"X-Env", "prod", "X-N", "7", "Cookie", "session=1"}, "prod"},
		{"GET", shop, "/fields", []string{"X-Env", "test"}, "not prod"},
		{"GET", shop, "/fields", nil, "not prod"},
		{"POST", shop, "/type", []string{"Content-Type", "text/html; charset=utf-8"}, "text"},
		{"POST", shop, "/type", []string{"Content-Type", "application/grpc+proto"}, "grpc"},
		{"POST", shop, "/type", []string{"Content-Type", "application/grpcx"}, "near"},
		{"GET", shop, "/type", nil, "near"},
		{"GET", shop, "/a///b", nil, "normal"},
		{"GET", shop, "/x/../a/%62", nil, "normal"},
	} {
		t.Run(test.method+" "+test.host+test.path+" "+strings.Join(test.fields, " "), func(t *testing.T) {
			if r, got := ask(t, test.method, test.host, test.path, "", test.fields...); r.StatusCode != 200 || got != test.want {
				t.Errorf("status %d, %q; want %q", r.StatusCode, got, test.want)
			}
		})
	}
	t.Run("fraction", func(t *testing.T) {
		heads := 0
		for range 400 {
			if _, got := ask(t, "GET", shop, "/half", ""); got == "heads" {
				heads++
			}
		}
		if heads < 150 || heads > 250 { // five standard deviations
			t.Errorf("%d of 400 took the route of 50 %%", heads)
		}
	})
	told := func(t *testing.T, text string) (m map[string]string) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), &m); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		return m
	}
	t.Run("rewrite", func(t *testing.T) {
		_, got := ask(t, "GET", shop, "/item/42?debug=1&a=b", "", "X-Target", "inner:9")
		if m := told(t, got); m["uri"] != "/things/42/x?a=b&via=edge" || m["host"] != "inner:9" {
			t.Errorf("%v", m)
		}
	})
	t.Run("headers at four levels", func(t *testing.T) {
		r, got := ask(t, "GET", shop, "/levels", "")
		if m := told(t, got); m["level"] != "route" || m["http"] != "1" || m["vhost"] != shop || m["default"] != "ours" {
			t.Errorf("%v", m)
		}
		if from := r.Header.Values("X-From"); strings.Join(from, ",") != "http,route" {
			t.Errorf("X-From is %v", from)
		}
	})
	t.Run("redirects", func(t *testing.T) {
		for path, want := range map[string]string{"/old/x?q=1": "https://shop.example.com/new/x?q=1", "/a%2Fb?x=%2F": "http://shop.example.com/a/b?x=%2F"} {
			r, _ := ask(t, "GET", shop, path, "")
			if r.Header.Get("Location") != want || (r.StatusCode != 308 && r.StatusCode != 307) {
				t.Errorf("%s: status %d, location %q, want %q", path, r.StatusCode, r.Header.Get("Location"), want)
			}
		}
	})
	t.Run("sticky split", func(t *testing.T) {
		hits := map[string]int{}
		for range 60 {
			r, got := ask(t, "GET", shop, "/split/x", "")
			m := told(t, got)
			one := m["server"] == "one"
			if m["level"] != m["server"] || r.Header.Get("X-Target") != m["server"] || (r.Header.Values("X-From") == nil) != one || (m["http+"] == "1,one") != one {
				t.Fatalf("headers of the other target: %v %v", m, r.Header)
			}
			hits[m["server"]]++
			cookies := r.Cookies()
			if len(cookies) != 1 || cookies[0].Name != "bucket" || cookies[0].MaxAge != 3600 || !cookies[0].HttpOnly {
				t.Fatalf("cookies: %v", cookies)
			}
			again, got := ask(t, "GET", shop, "/split/x", "", "Cookie", "bucket="+cookies[0].Value)
			if told(t, got)["server"] != m["server"] || len(again.Cookies()) != 0 {
				t.Fatalf("the cookie of %s led to %s, cookies %v", m["server"], got, again.Cookies())
			}
		}
		if hits["one"] < 10 || hits["two"] < 10 {
			t.Errorf("an even split gave %v", hits)
		}
	})
	t.Run("mirror", func(t *testing.T) {
		body := strings.Repeat("copy", 50_000)
		r, got := ask(t, "POST", shop, "/mirrored?x=1", body)
		if m := told(t, got); r.StatusCode != 200 || m["server"] != "one" || m["body"] != body {
			t.Fatalf("status %d, %d bytes", r.StatusCode, len(got))
		}
		want := "POST shop.example.com-shadow/mirrored?x=1 " + body
		s.Eventually("the copy arrives", func() error {
			mu.Lock()
			defer mu.Unlock()
			if len(copies) != 1 || copies[0] != want {
				return fmt.Errorf("%d copies", len(copies))
			}
			return nil
		})
	})
}

// TestMirrorNeverHurts has a mirror that is down, one that stalls and one that resets: the client sees none of it.
func TestMirrorNeverHurts(t *testing.T) {
	stalled := make(chan struct{})
	t.Cleanup(func() { close(stalled) })
	for name, handle := range map[string]func(net.Conn){
		"stalls": func(net.Conn) { <-stalled },
		"resets": func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) },
		"down":   nil,
	} {
		t.Run(name, func(t *testing.T) {
			mirror := "127.0.0.1:1"
			if handle != nil {
				mirror = suite.Upstream(t, handle)
			}
			s := suite.Start(t, fmt.Sprintf(routingConfig, teller(t, "one", nil), "127.0.0.1:1", mirror))
			c := client(t)
			body := strings.Repeat("x", 4<<20) // above every buffer on the way to the mirror
			for i := range 10 {
				r, err := http.NewRequest("POST", "http://"+s.Address("web")+"/mirrored", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				r.Host = "shop.example.com"
				response, err := c.Do(r)
				if err != nil {
					t.Fatalf("request %d: %v", i, err)
				}
				got, err := io.ReadAll(response.Body)
				response.Body.Close()
				if err != nil || response.StatusCode != 200 || len(got) < len(body) {
					t.Fatalf("request %d: status %d, %d bytes, %v", i, response.StatusCode, len(got), errors.Join(err))
				}
			}
			s.AwaitStat(10, "retinue_cluster_shadow_total", "cluster=shadow")
			if name == "stalls" {
				s.AwaitStat(10, "retinue_cluster_shadow_given_up", "cluster=shadow")
			}
		})
	}
}

// TestMirrorOverHTTP2 copies to a cluster that speaks HTTP/2, whose streams live otherwise than HTTP/1's connections.
func TestMirrorOverHTTP2(t *testing.T) {
	var mu sync.Mutex
	copies := map[string]int{}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	shadow := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		copies[fmt.Sprintf("%s %s %d", r.Proto, r.Method, len(body))]++
	}))
	shadow.Config.Protocols = &protocols
	shadow.Start()
	t.Cleanup(shadow.Close)
	config := strings.Replace(routingConfig, `cluster "shadow" { endpoints = [%q] }`, "cluster \"shadow\" {\n  endpoints = [%q]\n  protocol = \"http2\"\n}", 1)
	s := suite.Start(t, fmt.Sprintf(config, teller(t, "one", nil), "127.0.0.1:1", strings.TrimPrefix(shadow.URL, "http://")))
	c := client(t)
	for _, size := range []int{0, 10, 200_000} {
		for range 5 {
			r, err := http.NewRequest("POST", "http://"+s.Address("web")+"/mirrored", strings.NewReader(strings.Repeat("x", size)))
			if err != nil {
				t.Fatal(err)
			}
			r.Host = "shop.example.com"
			response, err := c.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if response.StatusCode != 200 {
				t.Fatalf("status %d", response.StatusCode)
			}
		}
	}
	s.Eventually("every copy arrives", func() error {
		mu.Lock()
		defer mu.Unlock()
		for _, size := range []int{0, 10, 200_000} {
			if n := copies[fmt.Sprintf("HTTP/2.0 POST %d", size)]; n != 5 {
				return fmt.Errorf("%v", copies)
			}
		}
		return nil
	})
}
