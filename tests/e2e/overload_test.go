package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
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

// bottomless is an upstream whose bodies never end.
func bottomless(t *testing.T) string {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		piece := make([]byte, 64<<10)
		for r.URL.Path == "/endless" {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}))
	t.Cleanup(func() {
		up.CloseClientConnections()
		up.Close()
	})
	return strings.TrimPrefix(up.URL, "http://")
}

// hold asks for a body without an end and takes nothing of it, so that proxyd holds what its buffer takes. It answers the status.
func hold(t *testing.T, address string) (c net.Conn, status string) {
	t.Helper()
	c = dial(t, address)
	_ = c.(*net.TCPConn).SetReadBuffer(4 << 10)
	_ = c.SetDeadline(time.Now().Add(suite.Patience))
	if _, err := io.WriteString(c, "GET /endless HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		return c, "closed"
	}
	head := make([]byte, len("HTTP/1.1 200"))
	if _, err := io.ReadFull(c, head); err != nil {
		return c, "closed"
	}
	return c, string(head[len("HTTP/1.1 "):])
}

const memoryConfig = `
runtime { workers = 1 }
overload {
  refresh_interval = "50ms"
  max_memory       = "128MiB"
  action "disable_http_keepalive" {
    memory      = "0%%"
    descriptors = "0%%"
    connections = "0%%"
  }
  action "reject_incoming_connections" {
    memory      = "0%%"
    descriptors = "0%%"
  }
  %s
}
stats { listen = "off" }
listener "web" {
  address      = ["127.0.0.1:0"]
  buffer_limit = "4MiB"
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/here" {
        respond { status = 204 }
      }
      route "/*" {
        cluster = cluster.up
        timeout = "0"
      }
    }
  }
}
cluster "up" { endpoints = ["%s"] }
`

// mostHeld bounds what the tests below have proxyd hold: 256 MiB, twice what it may.
const mostHeld = 64

// calm waits until no action of overload goes on and requests are answered again.
func calm(s *suite.Suite, actions ...string) {
	s.Eventually("the actions end", func() error {
		for _, action := range actions {
			if got := s.Stat("retinue_server_overload_scale_percent", "action="+action); got != 0 {
				return fmt.Errorf("%s is at %v", action, got)
			}
		}
		return nil
	})
	s.Eventually("requests are answered", func() error {
		r, err := http.Get("http://" + s.Address("web") + "/here")
		if err != nil {
			return err
		}
		r.Body.Close()
		if r.StatusCode != 204 {
			return errors.New(r.Status)
		}
		return nil
	})
}

// TestOverloadOfMemory: the more proxyd holds the more it does about it, and when it holds less everything is as before.
func TestOverloadOfMemory(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(memoryConfig, `
  action "shrink_heap" { memory = "50%" }
  action "reduce_timeouts" {
    memory      = "50%"
    descriptors = "0%"
    connections = "0%"
    scaling     = "0%"
    min_scale   = "20%"
  }
  action "stop_accepting_requests" { memory = "70%" }
  action "reset_high_memory_stream" { memory = "0%" }
`, bottomless(t)))
	calm(s, "shrink_heap", "reduce_timeouts", "stop_accepting_requests")
	var held []net.Conn
	s.Eventually("requests are refused", func() error {
		if len(held) == mostHeld {
			return fmt.Errorf("memory is at %v %%", s.Stat("retinue_server_overload_pressure", "resource=memory"))
		}
		c, status := hold(t, s.Address("web"))
		held = append(held, c)
		if status != "503" {
			return errors.New(status)
		}
		return nil
	})
	s.AwaitStat(100, "retinue_server_overload_scale_percent", "action=shrink_heap")
	s.AwaitStat(80, "retinue_server_overload_scale_percent", "action=reduce_timeouts")
	s.AwaitStat(1, "retinue_server_overload_shrinks")
	for _, c := range held {
		c.Close()
	}
	calm(s, "shrink_heap", "reduce_timeouts", "stop_accepting_requests")
}

// TestOverloadResetsStreams: those that hold most are reset, by proxyd itself, until it holds little enough.
func TestOverloadResetsStreams(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(memoryConfig, `
  action "shrink_heap" { memory = "50%" }
  action "reduce_timeouts" {
    memory      = "0%"
    descriptors = "0%"
    connections = "0%"
  }
  action "stop_accepting_requests" { memory = "0%" }
  action "reset_high_memory_stream" { memory = "60%" }
`, bottomless(t)))
	var held []net.Conn
	s.Eventually("a stream is reset", func() error {
		if s.Stat("retinue_http_downstream_rq_overload_reset", "listener=web") > 0 {
			return nil
		}
		if len(held) < mostHeld {
			c, _ := hold(t, s.Address("web"))
			held = append(held, c)
		}
		return fmt.Errorf("memory is at %v %%", s.Stat("retinue_server_overload_pressure", "resource=memory"))
	})
	calm(s, "reset_high_memory_stream")
}
