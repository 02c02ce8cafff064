package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const drainConfig = `
runtime {
  workers   = 2
  probation = "0s"
  %s
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        cluster = cluster.silent
        timeout = "1h"
      }
    }
  }
}
%s
cluster "echo" { endpoints = [%q] }
cluster "silent" { endpoints = [%q] }
stats { listen = "off" }
`

const drainDB = `
listener "db" {
  address = ["127.0.0.1:0"]
  tcp { cluster = cluster.echo }
}
`

// drained is a suite with an echo server behind "db" and one that never answers behind "web".
func drained(t *testing.T, settings string) (s *suite.Suite, config func(listeners string) string) {
	echoes := suite.Upstream(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	silent := suite.Upstream(t, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	config = func(listeners string) string {
		return fmt.Sprintf(drainConfig, settings, listeners, echoes, silent)
	}
	return suite.Start(t, config(drainDB)), config
}

// tunnel is a connection through "db" that has carried something.
func tunnel(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	b := make([]byte, 2)
	if _, err := c.Write([]byte("ok")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	return c
}

// ends wants c to be closed by the other side.
func ends(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(suite.Patience))
	if n, err := c.Read(make([]byte, 100)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read %d bytes, %v; want the end", n, err)
	}
}

// TestConnectionsOfAListenerThatLeavesAreCut when its own time is over, and the log says what they were.
func TestConnectionsOfAListenerThatLeavesAreCut(t *testing.T) {
	s, config := drained(t, `drain "listener" { shutdown_time = "300ms" }`)
	c := tunnel(t, s.Address("db"))
	s.Write(config(""))
	if out, code := s.Retinue("reload"); code != 0 {
		t.Fatalf("reload: exit %d: %s", code, out)
	}
	ends(t, c)
	s.Eventually("it is told", func() error {
		if log := s.Log(); !strings.Contains(log, `what="db 1 tcp"`) && !strings.Contains(log, `"what":"db 1 tcp"`) {
			return errors.New("nothing in the log")
		}
		return nil
	})
}

// TestOldGenerationIsCut at the end of an upgrade's time; the last line of the upgrade tells what, and the status.
func TestOldGenerationIsCut(t *testing.T) {
	s, _ := drained(t, `drain "upgrade" {
    strategy      = "immediate"
    shutdown_time = "3s"
  }`)
	kept := tunnel(t, s.Address("db"))
	c, err := net.Dial("tcp", s.Address("web"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil { // it is never answered, so it cannot move
		t.Fatal(err)
	}
	s.Eventually("the request is under way", func() error {
		if out, _ := s.Output("status"); !strings.Contains(out, "1 requests") {
			return errors.New(out)
		}
		return nil
	})
	out, code := s.Retinue("upgrade", "--wait", "drained")
	if code != 0 || !strings.Contains(out, "generation 1 left, 1 connections moved, 1 cut: web 1 http") {
		t.Errorf("exit %d: %s", code, out)
	}
	ends(t, c)
	if out, code := s.Output("status"); code != 0 || !strings.Contains(out, "cut 1 connections at the end of its time: web 1 http") {
		t.Errorf("status: exit %d: %s", code, out)
	}
	if _, err := kept.Write([]byte("ok")); err != nil {
		t.Error(err)
	}
	if _, err := io.ReadFull(kept, make([]byte, 2)); err != nil {
		t.Errorf("the tunnel that moved: %v", err)
	}
}

// TestShutdownHasATimeOfItsOwn: a tunnel is cut then, and not after five seconds.
func TestShutdownHasATimeOfItsOwn(t *testing.T) {
	s, _ := drained(t, `drain "shutdown" {
    strategy      = "gradual"
    drain_time    = "1m"
    shutdown_time = "1234ms"
  }`)
	c := tunnel(t, s.Address("db"))
	s.Signal(syscall.SIGTERM)
	if line, err := bufio.NewReader(c).ReadString('\n'); err == nil {
		t.Errorf("read %q", line)
	}
	if code := s.Wait(); code != 0 {
		t.Errorf("exit %d", code)
	}
	log := s.Log()
	if !strings.Contains(log, "shutdown_time=1.23") && !strings.Contains(log, `"shutdown_time":"1.23`) {
		t.Errorf("no drain of 1.234 s in the log:\n%s", log)
	}
	if !strings.Contains(log, `db 1 tcp`) {
		t.Error("the log does not say what was cut")
	}
}
