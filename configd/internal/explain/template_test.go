package explain

import (
	"strings"
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

// TestExplainTemplate: why a template does not match is told, and what a rewrite makes of its variables.
func TestExplainTemplate(t *testing.T) {
	running := compiled(t, `listener "web" {
  address = ["127.0.0.1:8080"]
  http {
    virtual_host "*" {
      route "/videos/{country}/{id}" {
        split = [
          { cluster = cluster.one, weight = 1, remove_request_headers = ["x-b"], add_response_headers = { "x-c" = "d" } },
        ]
        rewrite { template = "/{id}/{country}" }
        headers {
          request { replace = { "x-a" = "b" } }
        }
      }
      route "/{a}/{rest=**}" {
        redirect { template = "/{rest}" }
      }
    }
  }
}
cluster "one" { endpoints = ["10.0.0.1:80"] }
`)
	for path, want := range map[string][]string{
		"/videos/de/1": {"✓ /videos/{country}/{id}", "template /{id}/{country}", "replaces x-a", "to one", "removes x-b", "adds x-c"},
		"/videos/de/":  {"✗ /videos/{country}/{id}", "the path /videos/de/ does not have the form /videos/{country}/{id}", "✓ /{a}/{rest=**}", "redirect: template /{rest}"},
	} {
		reply, err := Request(running, nil, &configv1.ExplainRequest{Method: "GET", Url: "http://a:8080" + path})
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range want {
			if !strings.Contains(reply.GetRendered(), text) {
				t.Errorf("%s: %q is not told:\n%s", path, text, reply.GetRendered())
			}
		}
	}
}

// TestExplainRedirectHTTPS: what a virtual host does with plain requests comes before its routes.
func TestExplainRedirectHTTPS(t *testing.T) {
	running := compiled(t, `listener "web" {
  address = ["127.0.0.1:8080"]
  http {
    virtual_host "all" {
      redirect_https = "all"
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
  }
}
`)
	for url, want := range map[string]struct{ redirected, routed bool }{
		"http://all:8080/": {true, false}, "http://outside:8080/": {true, true},
	} {
		reply, err := Request(running, nil, &configv1.ExplainRequest{Method: "GET", Url: url})
		if err != nil {
			t.Fatal(err)
		}
		text := reply.GetRendered()
		if strings.Contains(text, "redirect: scheme https") != want.redirected || strings.Contains(text, "a body of 6 bytes") != want.routed {
			t.Errorf("%s, want %+v:\n%s", url, want, text)
		}
	}
}
