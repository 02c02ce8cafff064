package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

// TestOverload: with more connections than an action allows, requests are answered 503, and with more still connections are refused;
// when they have gone everything is as before.
func TestOverload(t *testing.T) {
	s := suite.Start(t, `
runtime {
  workers         = 1
  max_connections = 20
}
overload {
  refresh_interval = "50ms"
  max_memory       = "64GiB"
  action "disable_http_keepalive" {
    connections = "0%"
    descriptors = "0%"
  }
  action "stop_accepting_requests" { connections = "50%" }
  action "reject_incoming_connections" {
    connections = "70%"
    descriptors = "0%"
  }
}
stats { listen = "off" }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { status = 204 }
      }
    }
  }
}
`)
	var idle []net.Conn
	open := func(n int) {
		t.Helper()
		for len(idle) < n {
			idle = append(idle, dial(t, s.Address("web")))
		}
	}
	ask := func() string {
		c, err := net.Dial("tcp", s.Address("web"))
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(suite.Patience))
		if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
			return "refused"
		}
		answer, _ := io.ReadAll(c)
		if len(answer) == 0 {
			return "refused"
		}
		return string(answer[len("HTTP/1.1 "):len("HTTP/1.1 204")])
	}
	become := func(want string) {
		t.Helper()
		s.Eventually("a request is answered "+want, func() error {
			if got := ask(); got != want {
				return errors.New(got)
			}
			return nil
		})
	}
	open(5)
	become("204")
	open(11)
	become("503")
	s.AwaitStat(100, "retinue_server_overload_scale_percent", "action=stop_accepting_requests")
	open(15)
	become("refused")
	for _, c := range idle {
		c.Close()
	}
	become("204")
	s.AwaitStat(1, "retinue_http_downstream_rq_overload_close", "listener=web")
	s.AwaitStat(1, "retinue_listener_downstream_cx_overload_reject", "listener=web")
	s.Eventually("nothing is done any more", func() error {
		for _, action := range []string{"stop_accepting_requests", "reject_incoming_connections"} {
			if got := s.Stat("retinue_server_overload_scale_percent", "action="+action); got != 0 {
				return fmt.Errorf("%s is at %v", action, got)
			}
		}
		return nil
	})
}
