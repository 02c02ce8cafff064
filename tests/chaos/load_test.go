package chaos

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"retinue.dev/tests/suite"
)

// config has one listener of each kind over one application.
const config = `
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
listener "echo" {
  address = ["127.0.0.1:0"]
  tcp { cluster = cluster.echo }
}
cluster "app" { endpoints = ["%s"] }
cluster "echo" { endpoints = ["%s"] }
stats { listen = "off" }
`

// application is a configuration for an application and an echo of the test's.
func application(t *testing.T) string {
	t.Helper()
	body := bytes.Repeat([]byte("x"), 1024)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(body) }))
	t.Cleanup(app.Close)
	echo := suite.Upstream(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	return fmt.Sprintf(config, strings.TrimPrefix(app.URL, "http://"), echo)
}

// tally is what the clients of one kind saw.
type tally struct {
	fine    atomic.Int64
	refused atomic.Int64 // connections that could not be made
	broken  atomic.Int64 // requests and connections that failed after that
	last    atomic.Value // error
}

func (c *tally) note(err error) {
	var op *net.OpError
	switch {
	case err == nil:
		c.fine.Add(1)
		return
	case errors.As(err, &op) && op.Op == "dial":
		c.refused.Add(1)
	default:
		c.broken.Add(1)
	}
	c.last.Store(err.Error())
}

// kinds of clients.
const (
	keepAlive  = "keep-alive"
	newForEach = "connection a request"
	tcp        = "TCP"
	tunnel     = "TCP tunnel"
)

// load is clients of every kind at work.
type load struct {
	s       *suite.Suite
	tallies map[string]*tally
	stop    chan struct{}
	clients sync.WaitGroup
}

func startLoad(t *testing.T, s *suite.Suite) *load {
	t.Helper()
	l := &load{s: s, tallies: map[string]*tally{}, stop: make(chan struct{})}
	web, echo := s.Address("web"), s.Address("echo")
	for _, kind := range []string{keepAlive, newForEach, tcp, tunnel} {
		l.tallies[kind] = &tally{}
	}
	for range 2 {
		l.client(keepAlive, get(web, false))
		l.client(newForEach, get(web, true))
		l.client(tcp, func() error {
			c, err := net.DialTimeout("tcp", echo, suite.Patience)
			if err != nil {
				return err
			}
			defer c.Close()
			return ping(c)
		})
		var held net.Conn
		l.client(tunnel, func() (err error) {
			if held == nil {
				if held, err = net.DialTimeout("tcp", echo, suite.Patience); err != nil {
					return err
				}
			}
			if err = ping(held); err != nil {
				_ = held.Close()
				held = nil
			}
			return err
		})
	}
	t.Cleanup(l.end)
	l.flows(100)
	return l
}

func (l *load) client(kind string, once func() error) {
	l.clients.Go(func() {
		for {
			select {
			case <-l.stop:
				return
			default:
				l.tallies[kind].note(once())
			}
		}
	})
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.clients.Wait()
}

// flows waits until each kind has had n successes more.
func (l *load) flows(n int64) {
	from := map[string]int64{}
	for kind, c := range l.tallies {
		from[kind] = c.fine.Load()
	}
	l.s.Eventually("traffic flows", func() error {
		for kind, c := range l.tallies {
			if got := c.fine.Load() - from[kind]; got < n {
				return fmt.Errorf("%s: %d of %d; the last error: %v", kind, got, n, c.last.Load())
			}
		}
		return nil
	})
}

func (l *load) sum(of func(*tally) *atomic.Int64) (n int64) {
	for _, c := range l.tallies {
		n += of(c).Load()
	}
	return n
}

func (l *load) fine() int64    { return l.sum(func(c *tally) *atomic.Int64 { return &c.fine }) }
func (l *load) refused() int64 { return l.sum(func(c *tally) *atomic.Int64 { return &c.refused }) }
func (l *load) broken() int64  { return l.sum(func(c *tally) *atomic.Int64 { return &c.broken }) }

// complain reports what failed.
func (l *load) complain(t *testing.T, brokenToo bool) {
	t.Helper()
	for kind, c := range l.tallies {
		if n := c.refused.Load(); n > 0 {
			t.Errorf("%s: %d connections were refused, the last with %v", kind, n, c.last.Load())
		}
		if n := c.broken.Load(); n > 0 && brokenToo {
			t.Errorf("%s: %d failed, the last with %v", kind, n, c.last.Load())
		}
	}
}

// get is one GET by a client of its own.
func get(address string, connectionEach bool) func() error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: connectionEach}, Timeout: suite.Patience}
	return func() error {
		r, err := client.Get("http://" + address + "/")
		if err != nil {
			return err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err == nil && (r.StatusCode != 200 || len(body) != 1024) {
			err = fmt.Errorf("status %d, %d bytes", r.StatusCode, len(body))
		}
		return err
	}
}

func ping(c net.Conn) error {
	message, back := []byte("ping"), make([]byte, 4)
	if _, err := c.Write(message); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, back); err != nil {
		return err
	}
	if !bytes.Equal(message, back) {
		return fmt.Errorf("%q came back", back)
	}
	return nil
}
