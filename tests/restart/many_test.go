package restart

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/tests/suite"
)

const manyConfig = `
runtime {
  workers         = 2
  max_connections = 40000
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond {
          status = 200
          body   = "pong"
        }
      }
    }
  }
}
listener "echo" {
  address = ["127.0.0.1:0"]
  tcp { cluster = cluster.echo }
}
cluster "echo" {
  endpoints = [%q]
  circuit_breaker { max_connections = 40000 }
}
stats { listen = "off" }
`

// TestManyConnectionsMove hands over ten thousand at once, half of them tunnels with two sockets each, half idle HTTP/1 connections:
// far more descriptors than may be in flight. Each goes on.
func TestManyConnectionsMove(t *testing.T) {
	n := 10_000
	if testing.Short() {
		n = 1000
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if need := uint64(3*n/2) + 1000; limit.Cur < need {
		t.Skipf("%d descriptors are too few for both ends of %d connections: ulimit -n %d", limit.Cur, n, need)
	}
	// Plain reads and writes: Go's splice would need a pipe for each.
	upstream := suite.Upstream(t, func(c net.Conn) { _, _ = io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) })
	s := suite.Start(t, fmt.Sprintf(manyConfig, upstream))
	echoes, web := s.Address("echo"), s.Address("web")
	connections := make([]net.Conn, n)
	each := func(what string, f func(i int) error) {
		t.Helper()
		const workers = 8
		var all sync.WaitGroup
		var once sync.Once
		for w := range workers {
			all.Go(func() {
				for i := w; i < n; i += workers {
					if err := f(i); err != nil {
						once.Do(func() { t.Errorf("%s, connection %d: %v", what, i, err) })
						return
					}
				}
			})
		}
		all.Wait()
		if t.Failed() {
			t.FailNow()
		}
	}
	use := func(i int) error {
		c := connections[i]
		if i%2 == 0 {
			return speak(c)
		}
		_ = c.SetDeadline(time.Now().Add(suite.Patience))
		if _, err := fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return err
		}
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		if response.StatusCode != 200 || response.Close {
			return fmt.Errorf("status %d, close %t", response.StatusCode, response.Close)
		}
		return nil
	}
	defer func() {
		for _, c := range connections {
			if c != nil {
				c.Close()
			}
		}
	}()
	began := time.Now()
	each("before the upgrade", func(i int) (err error) {
		if connections[i], err = net.DialTimeout("tcp", []string{echoes, web}[i%2], suite.Patience); err != nil {
			return err
		}
		return use(i)
	})
	opened := time.Since(began)
	began = time.Now()
	out, code := s.Retinue("upgrade", "--probation", "0s", "--wait", "drained")
	if code != 0 || !strings.Contains(out, fmt.Sprintf("%d connections moved, 0 cut", n)) {
		t.Errorf("upgrade: exit %d: %s", code, out)
	}
	moved := time.Since(began)
	each("after the upgrade", use)
	t.Logf("%d connections, opened in %v, moved in an upgrade of %v", n, opened.Round(time.Millisecond), moved.Round(time.Millisecond))
}
