package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"retinue.dev/tests/suite"
)

const httpConfig = `
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "GET /status" {
        respond {
          status = 200
          body   = "ok\n"
        }
      }
      route "/old/*" {
        redirect { prefix = "/new/" }
      }
      route "/down" { cluster = cluster.down }
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = [%q] }
cluster "down" { endpoints = ["127.0.0.1:1"] }
stats { listen = "off" }
`

// application is an upstream that says what it received.
func application(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Method", r.Method)
		w.Header().Set("X-Path", r.URL.RequestURI())
		w.Header().Set("X-Forwarded", r.Header.Get("X-Forwarded-For")+" "+r.Header.Get("X-Forwarded-Proto"))
		w.Header().Set("X-Hop", r.Header.Get("X-Secret"))
		if n, err := strconv.Atoi(r.URL.Query().Get("size")); err == nil {
			w.Write(bytes.Repeat([]byte("x"), n))
			return
		}
		w.Write(body)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func client(t *testing.T) *http.Client {
	transport := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: suite.Patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func TestHTTPProxy(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(httpConfig, application(t)))
	base := "http://" + s.Address("web")
	c := client(t)
	do := func(t *testing.T, method, path, body string, chunked bool) (*http.Response, string) {
		t.Helper()
		var reader io.Reader = strings.NewReader(body)
		if chunked {
			reader = io.MultiReader(reader) // hides the length
		}
		r, err := http.NewRequest(method, base+path, reader)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Secret", "hop")
		r.Header.Set("Connection", "x-secret")
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
	t.Run("headers", func(t *testing.T) {
		r, _ := do(t, "GET", "/a%20b?q=1", "", false)
		for name, want := range map[string]string{"X-Method": "GET", "X-Path": "/a%20b?q=1", "X-Forwarded": "127.0.0.1 http", "X-Hop": ""} {
			if got := r.Header.Get(name); r.StatusCode != 200 || got != want {
				t.Errorf("status %d, %s: %q, want %q", r.StatusCode, name, got, want)
			}
		}
	})
	for _, size := range []int{1, 1 << 10, 64 << 10, 3 << 20} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprintf("echo %d chunked=%v", size, chunked), func(t *testing.T) {
				body := strings.Repeat("retinue!", size/8+1)[:size]
				if _, got := do(t, "POST", "/echo", body, chunked); got != body {
					t.Errorf("%d bytes came back of %d", len(got), len(body))
				}
			})
		}
	}
	for _, test := range []struct {
		method, path string
		status       int
		header       string
	}{
		{"GET", "/status", 200, ""},
		{"HEAD", "/x", 200, ""},
		{"GET", "/old/page?q=1", 301, "/new/page?q=1"},
		{"GET", "/down", 503, ""},
	} {
		t.Run(test.method+" "+test.path, func(t *testing.T) {
			r, _ := do(t, test.method, test.path, "", false)
			if r.StatusCode != test.status || !strings.HasSuffix(r.Header.Get("Location"), test.header) {
				t.Errorf("status %d, location %q; want %d, %q", r.StatusCode, r.Header.Get("Location"), test.status, test.header)
			}
		})
	}
}

func TestReload(t *testing.T) {
	app := application(t)
	config := fmt.Sprintf(httpConfig, app)
	s := suite.Start(t, config)
	base := "http://" + s.Address("web")
	c := client(t)
	get := func(path string) (int, string) {
		t.Helper()
		r, err := c.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(body)
	}
	s.Write(strings.Replace(config, `"ok\n"`, `"changed\n"`, 1))
	if out, code := s.Retinue("reload"); code != 0 {
		t.Fatalf("reload: exit %d: %s", code, out)
	}
	if status, body := get("/status"); status != 200 || body != "changed\n" {
		t.Errorf("after the reload: %d %q", status, body)
	}
	s.Write(strings.Replace(config, "cluster.app }", "cluster.ap }", 1))
	out, code := s.Retinue("reload")
	if code != 1 || !strings.Contains(out, "test.hcl") || !strings.Contains(out, "cluster.app") {
		t.Errorf("a broken file: exit %d, want 1 with the file and the near name: %s", code, out)
	}
	if status, body := get("/status"); status != 200 || body != "changed\n" {
		t.Errorf("after the refused reload: %d %q", status, body)
	}
}
