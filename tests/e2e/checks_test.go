package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"retinue.dev/tests/suite"
)

const checksConfig = `
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
listener "redis" {
  address = ["127.0.0.1:0"]
  tcp { cluster = cluster.redis }
}
cluster "app" {
  endpoints = [%[1]q, %[2]q]
  health_check "http" {
    path               = "/healthz"
    method             = "HEAD"
    headers            = { x-check = "yes" }
    interval           = "1h"
    unhealthy_interval = "20ms"
    healthy            = 1
    retriable          = ["500"]
    unhealthy          = 2
  }
  outlier_detection {
    consecutive_5xx = 3
    enforcing { consecutive_5xx = 0 }
  }
}
cluster "redis" {
  endpoints = [%[3]q]
  panic_threshold = "0%%"
  health_check "tcp" {
    send      = "PING\r\n"
    receive   = ["+PONG\r\n"]
    interval  = "20ms"
    timeout   = "5s"
    healthy   = 1
    unhealthy = 1
  }
}
stats { listen = "off" }
`

// TestChecksTalk: TCP checks that expect an answer, HTTP checks with a method and headers, an answer to a request that takes its endpoint
// out, and outliers that are found and not ejected.
func TestChecksTalk(t *testing.T) {
	var fails, bad atomic.Bool
	serve := func(name string, failing bool) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path == "/healthz":
				if r.Method != http.MethodHead || r.Header.Get("X-Check") != "yes" || failing && fails.Load() {
					w.WriteHeader(503)
				}
			case failing && fails.Load():
				w.Header().Set("X-Envoy-Immediate-Health-Check-Fail", "true")
				fmt.Fprint(w, name)
			case failing && bad.Load():
				w.WriteHeader(500)
				fmt.Fprint(w, name)
			default:
				fmt.Fprint(w, name)
			}
		}))
		t.Cleanup(server.Close)
		return strings.TrimPrefix(server.URL, "http://")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var loading atomic.Bool
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || line != "PING\r\n" {
					return
				}
				if loading.Load() {
					fmt.Fprint(c, "-LOADING\r\n")
					return
				}
				fmt.Fprint(c, "+PONG\r\n")
			}()
		}
	}()
	s := suite.Start(t, fmt.Sprintf(checksConfig, serve("a", false), serve("b", true), l.Addr()))
	url := "http://" + s.Address("web") + "/"
	is := func(want float64, name, cluster string) {
		t.Helper()
		s.Eventually(fmt.Sprintf("%s of %s is %v", name, cluster, want), func() error {
			if got := s.Stat(name, "cluster="+cluster); got != want {
				return fmt.Errorf("it is %v", got)
			}
			return nil
		})
	}
	is(1, "retinue_cluster_membership_healthy", "redis")
	loading.Store(true)
	is(0, "retinue_cluster_membership_healthy", "redis")
	loading.Store(false)
	is(1, "retinue_cluster_membership_healthy", "redis")

	is(2, "retinue_cluster_membership_healthy", "app")
	bad.Store(true)
	s.Eventually("an outlier is found", func() error {
		answers(t, url, 6)
		if s.Stat("retinue_cluster_outlier_detection_ejections_detected_consecutive_5xx", "cluster=app") == 0 {
			return fmt.Errorf("none")
		}
		return nil
	})
	is(0, "retinue_cluster_outlier_detection_ejections_enforced_total", "app")
	bad.Store(false)
	fails.Store(true)
	s.Eventually("b goes out with an answer", func() error {
		if got := answers(t, url, 6); got["b 200"] > 0 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	is(1, "retinue_cluster_health_check_passive_failure", "app")
	fails.Store(false)
	is(1, "retinue_cluster_membership_healthy", "app") // the next check is an hour away
}
