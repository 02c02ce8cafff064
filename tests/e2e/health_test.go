package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// member is an upstream that says its name, and answers checks and requests as the test tells it.
type member struct {
	name        string
	address     string
	check, code atomic.Int32
	requests    atomic.Int32
}

func startMember(t *testing.T, name string) *member {
	t.Helper()
	m := &member{name: name}
	m.check.Store(200)
	m.code.Store(200)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.address = l.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			w.WriteHeader(int(m.check.Load()))
			return
		}
		m.requests.Add(1)
		w.WriteHeader(int(m.code.Load()))
		io.WriteString(w, name)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })
	return m
}

const healthConfig = `
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/retried/*" {
        cluster = cluster.app
        retry {
          on       = ["5xx"]
          attempts = 3
        }
      }
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" {
  endpoints = [%q, %q, %q]
  %s
}
stats { listen = "off" }
`

// answers asks n times and counts who answered, "NAME STATUS".
func answers(t *testing.T, url string, n int) map[string]int {
	t.Helper()
	defer http.DefaultClient.CloseIdleConnections()
	out := map[string]int{}
	for range n {
		r, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[fmt.Sprintf("%s %d", body, r.StatusCode)]++
	}
	return out
}

func TestHealthChecks(t *testing.T) {
	a, b, c := startMember(t, "a"), startMember(t, "b"), startMember(t, "c")
	s := suite.Start(t, fmt.Sprintf(healthConfig, a.address, b.address, c.address,
		`health_check "http" {
    path      = "/healthz"
    interval  = "20ms"
    healthy   = 1
    unhealthy = 1
  }`))
	url := "http://" + s.Address("web") + "/"
	served := func(want ...string) {
		t.Helper()
		s.Eventually("answers by "+strings.Join(want, ", "), func() error {
			got := answers(t, url, 12)
			for _, name := range want {
				if got[name+" 200"] == 0 {
					return fmt.Errorf("got %v", got)
				}
			}
			if len(got) != len(want) {
				return fmt.Errorf("got %v", got)
			}
			return nil
		})
	}
	served("a", "b", "c")
	b.check.Store(503)
	served("a", "c")
	a.check.Store(503)
	served("a", "b", "c") // fewer than half are well: all serve
	a.check.Store(200)
	served("a", "c")
	out, status := s.Retinue("status")
	if status != 0 || !strings.Contains(out, "2 of 3 hosts") {
		t.Errorf("retinue status does not tell of the host that is out:\n%s", out)
	}
	b.check.Store(200)
	served("a", "b", "c")
}

func TestOutlierDetection(t *testing.T) {
	a, b, c := startMember(t, "a"), startMember(t, "b"), startMember(t, "c")
	s := suite.Start(t, fmt.Sprintf(healthConfig, a.address, b.address, c.address, `outlier_detection { consecutive_5xx = 3 }`))
	url := "http://" + s.Address("web") + "/"
	b.code.Store(500)
	s.Eventually("b is ejected", func() error {
		if got := answers(t, url, 12); got["b 500"] > 0 {
			return fmt.Errorf("got %v", got)
		}
		return nil
	})
	if n := s.Stat("retinue_cluster_outlier_detection_ejections_enforced_consecutive_5xx", "cluster=app"); n != 1 {
		t.Errorf("%v ejections are counted, want 1", n)
	}
}

// TestRetries: with two of three endpoints failing no client sees a failure, and none is asked beyond the attempts.
func TestRetries(t *testing.T) {
	a, b, c := startMember(t, "a"), startMember(t, "b"), startMember(t, "c")
	s := suite.Start(t, fmt.Sprintf(healthConfig, a.address, b.address, c.address, ""))
	a.code.Store(503)
	b.code.Store(500)
	got := answers(t, "http://"+s.Address("web")+"/retried/", 30)
	if got["c 200"] != 30 {
		t.Errorf("answers %v, want 30 of c", got)
	}
	if tries := a.requests.Load() + b.requests.Load() + c.requests.Load(); tries > 30*4 {
		t.Errorf("%d tries of 30 requests with 3 retries each", tries)
	}
	if got := answers(t, "http://"+s.Address("web")+"/", 30); got["a 503"] == 0 || got["b 500"] == 0 {
		t.Errorf("a route without retry answers %v", got)
	}
}

// TestRetriesOmitHosts: a retry is of a host that is no canary, whomever the first try was of.
func TestRetriesOmitHosts(t *testing.T) {
	var retried [2]atomic.Int32 // at the canary, at the other
	member := func(code int, seen *atomic.Int32) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Envoy-Attempt-Count") != "1" {
				seen.Add(1)
			}
			w.WriteHeader(code)
		}))
		t.Cleanup(server.Close)
		return server.Listener.Addr().String()
	}
	failing, canary, other := member(503, new(atomic.Int32)), member(200, &retried[0]), member(200, &retried[1])
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains                       = ["*"]
      include_request_attempt_count = true
      route "/*" {
        cluster = cluster.app
        retry {
          on                                = ["5xx"]
          omit_host_metadata                = { canary = "true" }
          host_selection_retry_max_attempts = 100
        }
      }
    }
  }
}
cluster "app" {
  balance = "random"
  endpoints = [
    { address = %q },
    { address = %q, metadata = { canary = "true" } },
    { address = %q, metadata = { canary = "false" } },
  ]
}
stats { listen = "off" }
`, failing, canary, other))
	if got := answers(t, "http://"+s.Address("web")+"/", 60); got[" 200"] != 60 {
		t.Errorf("answers %v, want 60 of 200", got)
	}
	if retried[0].Load() != 0 || retried[1].Load() == 0 {
		t.Errorf("%d retries of the canary, %d of the other", retried[0].Load(), retried[1].Load())
	}
}

// The certificate that a check asks for is the one that requests ask for: by sni where it is written, else for the endpoint's address.
func TestHealthChecksOverTLS(t *testing.T) {
	ca := certs.New(t, "servers")
	for _, c := range []struct {
		name, certificate, more string
		well                    float64
	}{
		{"of the address", "127.0.0.1", "", 1},
		{"of another address", "127.0.0.9", "", 0},
		{"of the name", "app.test", `sni = "app.test"`, 1},
		{"of a name, unasked", "app.test", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var resumed int
			server := secureApplication(t, ca.Issue(c.certificate), &tls.Config{SessionTicketsDisabled: true}, &resumed)
			s := suite.Start(t, fmt.Sprintf(healthConfig, server, "127.0.0.1:1", "127.0.0.1:2", fmt.Sprintf(`
  health_check "http" {
    interval  = "20ms"
    timeout   = "5s"
    healthy   = 1
    unhealthy = 1
  }
  tls {
    ca_file = %q
    %s
  }`, ca.File, c.more)))
			for _, result := range []string{"failure", "success"}[:1+int(c.well)] { // of the two that nobody is at
				s.AwaitStat(1, "retinue_cluster_health_check_"+result, "cluster=app")
			}
			s.Eventually(fmt.Sprintf("%v hosts are well", c.well), func() error {
				if n := s.Stat("retinue_cluster_membership_healthy", "cluster=app"); n != c.well {
					return fmt.Errorf("%v are", n)
				}
				return nil
			})
		})
	}
}
