package restart

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const mixedConfig = `
runtime {
  workers   = %d
  probation = "0s"
}
access_log "lines" { path = %q }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.lines
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
listener "tcp" {
  address = ["127.0.0.1:0"]
  tcp { cluster = cluster.echo }
}
cluster "app" {
  endpoints = [%q]
  circuit_breaker { max_connections = 10000 }
}
cluster "echo" { endpoints = [%q] }
stats { listen = "off" }
%s
`

// another is a listener that comes and goes between upgrades.
const another = `
listener "another" {
  address = ["127.0.0.1:0"]
  tcp { cluster = cluster.echo }
}
`

// load is what clients did.
type load struct {
	t     *testing.T
	stop  chan struct{}
	all   sync.WaitGroup
	count map[string]*atomic.Int64
}

// repeat calls f until the end and counts; a failure is a failure of the test.
func (l *load) repeat(name string, clients int, f func() error) {
	n := &atomic.Int64{}
	l.count[name] = n
	for range clients {
		l.all.Go(func() {
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				if err := f(); err != nil {
					l.t.Errorf("%s: %v", name, err)
					return
				}
				n.Add(1)
			}
		})
	}
}

// request makes one request on a connection of its own and returns the response with its body read.
func request(address, head string, body []byte) (*http.Response, []byte, error) {
	c, err := net.DialTimeout("tcp", address, suite.Patience)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * suite.Patience))
	if _, err := fmt.Fprintf(c, "%s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", head, len(body)); err != nil {
		return nil, nil, err
	}
	if _, err := c.Write(body); err != nil {
		return nil, nil, err
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return nil, nil, err
	}
	got, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != 200 {
		err = fmt.Errorf("status %d: %s", response.StatusCode, got)
	}
	return response, got, err
}

// TestAHundredUpgrades upgrades a hundred times under every kind of load at once, with workers and listeners that change in
// between, and canaries in some: nothing fails, nothing is refused, nothing is cut.
func TestAHundredUpgrades(t *testing.T) {
	n := 100
	if testing.Short() {
		n = 20
	}
	app, echoes := suite.Upstream(t, app), suite.Upstream(t, echo)
	log := filepath.Join(t.TempDir(), "access.log")
	config := func(workers int, more string) string {
		return fmt.Sprintf(mixedConfig, workers, log, app, echoes, more)
	}
	s := suite.Start(t, config(2, ""))
	web, tcp := s.Address("web"), s.Address("tcp")
	overflows := listenOverflows(t)
	l := &load{t: t, stop: make(chan struct{}), count: map[string]*atomic.Int64{}}
	upload := make([]byte, 3<<20)
	for i := range upload {
		upload[i] = byte(rand.Uint32())
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(upload))

	var kept atomic.Int64
	for i := range 4 {
		l.all.Go(func() {
			if err := keepAlive(web, time.Duration(i)*30*time.Millisecond, l.stop, &kept); err != nil {
				t.Errorf("keep-alive: %v", err)
			}
		})
	}
	l.repeat("connection per request", 2, func() error {
		_, _, err := request(web, "GET /", nil)
		return err
	})
	l.repeat("uploads", 1, func() error {
		_, got, err := request(web, "POST /upload", upload)
		if err == nil && string(got) != sum {
			err = fmt.Errorf("checksum %s came for %s", got, sum)
		}
		return err
	})
	l.repeat("downloads", 1, func() error {
		response, got, err := request(web, "GET /download/3000000", nil)
		if err == nil && response.Header.Get("X-Sum") != fmt.Sprintf("%x", sha256.Sum256(got)) {
			err = fmt.Errorf("%d bytes with another checksum", len(got))
		}
		return err
	})
	l.repeat("new TCP connections", 1, func() error {
		_, err := ping(tcp)
		return err
	})
	var streamed [3]uint64
	dialTCP := func() net.Conn {
		c, err := net.Dial("tcp", tcp)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	for i, c := range []net.Conn{upgraded(t, web), dialTCP(), dialTCP()} {
		l.all.Go(func() {
			var err error
			if streamed[i], err = counted(c, l.stop); err != nil {
				t.Errorf("stream %d: %v", i, err)
			}
		})
	}

	began := time.Now()
	for i := range n {
		args := []string{"upgrade"}
		if i%10 == 4 {
			args = append(args, "--canary", "50", "--canary-time", "100ms")
		}
		if out, code := s.Retinue(args...); code != 0 {
			t.Errorf("upgrade %d: exit %d: %s", i, code, out)
			break
		}
		if i%10 == 9 { // more and fewer workers, a listener that comes and goes, in the next upgrade
			s.Write(config(1+i/10%3, []string{"", another}[i/10%2]))
			if out, code := s.Retinue("reload"); code != 0 {
				t.Errorf("reload before upgrade %d: exit %d: %s", i+1, code, out)
			}
		}
		if t.Failed() {
			break
		}
	}
	took := time.Since(began)
	close(l.stop)
	l.all.Wait()
	t.Logf("%d upgrades in %v, keep-alive requests on four connections %d, numbers streamed %d", n, took.Round(time.Millisecond), kept.Load(), streamed)
	for name, count := range l.count {
		t.Logf("%s: %d", name, count.Load())
		if count.Load() == 0 {
			t.Errorf("%s: none", name)
		}
	}
	for _, n := range streamed {
		if n == 0 {
			t.Error("a stream that carried nothing")
		}
	}
	if now := listenOverflows(t); now != overflows {
		t.Errorf("ListenOverflows rose by %d", now-overflows)
	}
	cuts := bytes.Count([]byte(s.Log()), []byte("connections were cut"))
	t.Logf("generations that cut connections at shutdown_time: %d", cuts)
}
