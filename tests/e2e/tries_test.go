package e2e

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"

	"retinue.dev/tests/suite"
)

const triesConfig = `
access_log "all" {
  path   = %[2]q
  format = "%%REQ(X-CASE)%% %%RESPONSE_FLAGS%% %%RESPONSE_CODE_DETAILS%% %%UPSTREAM_REQUEST_ATTEMPT_COUNT%%"
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log    = access_log.all
    envoy_headers = true
    virtual_host "all" {
      domains                           = ["*"]
      include_request_attempt_count     = true
      include_attempt_count_in_response = true
      route "/idle/*" {
        cluster = cluster.app
        timeout = "0"
        retry {
          on                   = ["5xx"]
          per_try_idle_timeout = "250ms"
        }
      }
      route "/limited" {
        cluster = cluster.app
        timeout = "1m"
        rewrite { prefix = "/new" }
        retry {
          on = ["429"]
          rate_limited_back_off {
            reset_header "retry-after" {}
          }
        }
      }
      route "/gone" {
        cluster = cluster.nobody
        retry {
          on       = ["connect-failure"]
          attempts = 2
        }
      }
    }
  }
}
cluster "app" { endpoints = [%[1]q] }
cluster "nobody" { endpoints = ["127.0.0.1:9"] }
stats { listen = "off" }
`

// TestTries: what upstreams and clients are told of tries, tries that stand still, and pauses that upstreams ask for.
func TestTries(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked[r.URL.Path]++
		n := asked[r.URL.Path]
		mu.Unlock()
		told := fmt.Sprintf("try %s, path %s", r.Header.Get("X-Envoy-Attempt-Count"), r.Header.Get("X-Envoy-Original-Path"))
		if (r.Header.Get("X-Envoy-Expected-Rq-Timeout-Ms") == "") != strings.HasPrefix(r.URL.Path, "/idle/") {
			told += ", expected in " + r.Header.Get("X-Envoy-Expected-Rq-Timeout-Ms")
		}
		switch {
		case r.URL.Path == "/new" && n == 1:
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(429)
			return
		case r.URL.Path == "/idle/cut":
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, told)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		case r.URL.Path == "/idle/silent", r.URL.Path == "/idle/first" && n == 1:
			<-r.Context().Done()
			return
		}
		io.WriteString(w, told)
	}))
	t.Cleanup(app.Close)
	log := t.TempDir() + "/access.log"
	s := suite.Start(t, fmt.Sprintf(triesConfig, strings.TrimPrefix(app.URL, "http://"), log))
	address := s.Address("web")
	for _, test := range []struct {
		path   string
		status int
		body   string // its beginning
		cut    bool
		count  string // of tries, as the client is told
		line   string // of the access log
	}{
		{"/idle/first", 200, "try 2, path ", false, "2", "- via_upstream 2"},
		{"/idle/silent", 504, "upstream request timeout", false, "2", "UT,URX upstream_per_try_idle_timeout 2"},
		{"/idle/cut", 200, "try 1, path ", true, "1", "UT upstream_per_try_idle_timeout 1"},
		{"/limited", 200, "try 2, path /limited", false, "2", "- via_upstream 2"},
		{"/gone", 503, "upstream connect error", false, "3", "UF,URX upstream_reset_before_response_started{connection_failure} 3"},
	} {
		t.Run(test.path, func(t *testing.T) {
			s := s.In(t)
			r, err := http.NewRequest("GET", "http://"+address+test.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("X-Case", test.path)
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			body, err := io.ReadAll(answer.Body)
			if answer.StatusCode != test.status || !strings.HasPrefix(string(body), test.body) || (err != nil) != test.cut {
				t.Errorf("answered %d %q, %v", answer.StatusCode, body, err)
			}
			if got := answer.Header.Get("X-Envoy-Attempt-Count"); got != test.count {
				t.Errorf("the client is told of %q tries, want %s", got, test.count)
			}
			if took := answer.Header.Get("X-Envoy-Upstream-Service-Time"); (took != "") != (test.status == 200) {
				t.Errorf("it took %q", took)
			}
			s.Eventually("the request is logged", func() error {
				lines, err := os.ReadFile(log)
				if err == nil && !strings.Contains(string(lines), test.path+" "+test.line+"\n") {
					err = fmt.Errorf("there is\n%s", lines)
				}
				return err
			})
		})
	}
	for name, want := range map[string]float64{
		"retinue_cluster_upstream_rq_per_try_idle_timeout": 4, "retinue_cluster_upstream_rq_retry_backoff_ratelimited": 1, "retinue_cluster_upstream_rq_retry_backoff_exponential": 2,
	} {
		s.Eventually(name, func() error {
			if got := s.Stat(name, "cluster=app"); got != want {
				return fmt.Errorf("it is %v, want %v", got, want)
			}
			return nil
		})
	}
}
