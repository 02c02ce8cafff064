package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"retinue.dev/tests/suite"
)

const pluginConfig = `
runtime { workers = 2 }
plugin "stamp" {
  command = %q
  timeout = "2s"
  config {
    header = "x-stamp"
    value  = "one"
  }
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.main
    virtual_host "all" {
      domains = ["*"]
      route "/plain/*" { cluster = cluster.app }
      route "/*" {
        cluster = cluster.app
        filters = [plugin.stamp]
      }
    }
  }
}
access_log "main" {
  path   = %q
  format = "%%REQ(:PATH)%% %%RESPONSE_CODE%% %%RESPONSE_FLAGS%% %%RESPONSE_CODE_DETAILS%%"
}
cluster "app" { endpoints = [%q] }
stats { listen = "off" }
`

// mirror is an upstream that returns the request's headers as its body.
func mirror(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for name, values := range r.Header {
			fmt.Fprintf(w, "%s: %s\n", strings.ToLower(name), strings.Join(values, ","))
		}
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func TestPluginStampsHeaders(t *testing.T) {
	app := mirror(t)
	config := fmt.Sprintf(pluginConfig, suite.Binary(t, "plugins/header-stamp"), t.TempDir()+"/access.log", app)
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
	for range 20 {
		if status, body := get("/x"); status != 200 || !strings.Contains(body, "x-stamp: one\n") {
			t.Fatalf("%d, the upstream saw %q; want x-stamp", status, body)
		}
	}
	if status, body := get("/plain/x"); status != 200 || strings.Contains(body, "x-stamp") {
		t.Errorf("a route without filters: %d, %q", status, body)
	}

	s.Write(strings.Replace(config, `"one"`, `"two"`, 1))
	if out, code := s.Retinue("reload"); code != 0 {
		t.Fatalf("reload: exit %d: %s", code, out)
	}
	if status, body := get("/x"); status != 200 || !strings.Contains(body, "x-stamp: two\n") {
		t.Errorf("after the reload: %d, %q", status, body)
	}

	s.Write(strings.Replace(config, `value  = "one"`, `valeu  = "one"`, 1))
	out, code := s.Retinue("reload")
	if code != 1 || !strings.Contains(out, "test.hcl line 8") || !strings.Contains(out, "valeu") {
		t.Errorf("a setting that the plugin does not know: exit %d, want 1 with its place: %s", code, out)
	}
	if status, body := get("/x"); status != 200 || !strings.Contains(body, "x-stamp: two\n") {
		t.Errorf("after the refused reload: %d, %q", status, body)
	}
}
