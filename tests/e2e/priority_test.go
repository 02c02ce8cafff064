package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

const priorityConfig = `
runtime { workers = 4 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/http1/high" {
        cluster  = cluster.http1
        priority = "high"
        timeout  = "0"
      }
      route "/http1/default" {
        cluster = cluster.http1
        timeout = "0"
      }
      route "/http2/high" {
        cluster  = cluster.http2
        priority = "high"
        timeout  = "0"
      }
      route "/http2/default" {
        cluster = cluster.http2
        timeout = "0"
      }
      route "/auto/high" {
        cluster  = cluster.auto
        priority = "high"
        timeout  = "0"
      }
      route "/auto/default" {
        cluster = cluster.auto
        timeout = "0"
      }
    }
  }
}
defaults {
  cluster {
    idle_timeout = "100ms"
    circuit_breaker {
      max_requests = 3
      high {
        max_requests    = 2
        track_remaining = true
      }
    }
  }
}
cluster "http1" { endpoints = [%[1]q] }
cluster "http2" {
  endpoints = [%[1]q]
  protocol  = "http2"
}
cluster "auto" {
  endpoints = [%[2]q]
  protocol  = "auto"
  tls {
    sni     = "app.internal"
    ca_file = %[3]q
  }
}
stats { listen = "off" }
`

// TestPriorities fills the requests that a cluster may have under way for one priority: the other one has its own places still. They
// come one after the other, so that the workers' sums are exact.
func TestPriorities(t *testing.T) {
	limits := map[string]int{"default": 3, "high": 2}
	arrived, release := make(chan string), make(chan struct{})
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case arrived <- r.URL.Path:
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case <-r.Context().Done():
		}
	})
	app := httptest.NewUnstartedServer(handler)
	app.Config.Protocols = new(http.Protocols)
	app.Config.Protocols.SetHTTP1(true)
	app.Config.Protocols.SetUnencryptedHTTP2(true)
	app.Start()
	t.Cleanup(app.Close)
	ca := certs.New(t, "servers")
	secure := httptest.NewUnstartedServer(handler)
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{ca.Issue("app.internal").TLS}}
	secure.EnableHTTP2 = true
	secure.StartTLS()
	t.Cleanup(secure.Close)
	s := suite.Start(t, fmt.Sprintf(priorityConfig, strings.TrimPrefix(app.URL, "http://"), strings.TrimPrefix(secure.URL, "https://"), ca.File))
	client := &http.Client{Timeout: 2 * suite.Patience, Transport: &http.Transport{DisableKeepAlives: true}} // so that all workers get some
	get := func(path string) (int, string) {
		r, err := client.Get("http://" + s.Address("web") + path)
		if err != nil {
			return 0, err.Error()
		}
		defer r.Body.Close()
		body, _ := io.ReadAll(r.Body)
		return r.StatusCode, string(body)
	}
	for _, protocol := range []string{"http1", "http2", "auto"} {
		for _, order := range [][2]string{{"default", "high"}, {"high", "default"}} {
			t.Run(protocol+", "+order[0]+" first", func(t *testing.T) {
				s := s.In(t)
				is := func(want float64, name string, labels ...string) {
					t.Helper()
					s.Eventually(fmt.Sprintf("%s%v is %v", name, labels, want), func() error {
						if got := s.Stat(name, append(labels, "cluster="+protocol)...); got != want {
							return fmt.Errorf("it is %v", got)
						}
						return nil
					})
				}
				const remaining = "retinue_cluster_circuit_breakers_remaining_rq"
				if !s.Without(remaining, "cluster="+protocol, "priority=default") {
					t.Error("what is left of limits that nobody tracks is told")
				}
				before, high := s.Stat("retinue_cluster_upstream_rq_pending_overflow", "cluster="+protocol), s.Stat("retinue_cluster_upstream_rq_pending_overflow_high", "cluster="+protocol)
				is(2, remaining, "priority=high")
				var held sync.WaitGroup
				for _, priority := range order {
					path := "/" + protocol + "/" + priority
					for n := range limits[priority] {
						failed := make(chan string, 1)
						held.Go(func() {
							if status, body := get(path); status != 200 {
								t.Errorf("%s: %d %s", path, status, body)
								failed <- body
							}
						})
						select {
						case at := <-arrived:
							if at != path {
								t.Errorf("%s reached the application, not %s", at, path)
							}
						case why := <-failed:
							t.Fatalf("request %d of %s is not held: %s", n+1, path, why)
						}
					}
					if status, body := get(path); status != 503 || !strings.Contains(body, "overflow") {
						t.Errorf("%s beyond the limit: %d %s", path, status, body)
					}
				}
				is(5, "retinue_cluster_upstream_rq_active")
				is(2, "retinue_cluster_upstream_rq_active_high")
				is(before+2, "retinue_cluster_upstream_rq_pending_overflow")
				is(high+1, "retinue_cluster_upstream_rq_pending_overflow_high")
				is(1, "retinue_cluster_circuit_breakers_rq_open", "priority=default")
				is(1, "retinue_cluster_circuit_breakers_rq_open", "priority=high")
				is(0, "retinue_cluster_circuit_breakers_cx_open", "priority=high")
				is(0, remaining, "priority=high")
				for range limits["default"] + limits["high"] {
					release <- struct{}{}
				}
				held.Wait()
				is(0, "retinue_cluster_upstream_rq_active")
				is(0, "retinue_cluster_upstream_rq_active_high")
				is(0, "retinue_cluster_circuit_breakers_rq_open", "priority=default")
				is(0, "retinue_cluster_circuit_breakers_rq_open", "priority=high")
				is(2, remaining, "priority=high")
				is(0, "retinue_cluster_upstream_cx_active") // idle for long enough
				is(0, "retinue_cluster_upstream_cx_active_high")
			})
		}
	}
}
