package restart

import (
	"bufio"
	"bytes"
	crand "crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const moveConfig = `
runtime {
  workers   = 2
  probation = "0s"
}
access_log "lines" {
  path   = %q
  format = "%%PROTOCOL%% %%BYTES_RECEIVED%% %%BYTES_SENT%% %%DURATION%% %%UPSTREAM_HOST%% %%REQ(X-CLIENT)%% %%RESP(X-SERVER)%%\n"
}
listener "tcp" {
  address = ["127.0.0.1:0"]
  tcp {
    cluster    = cluster.echo
    access_log = access_log.lines
  }
}
cluster "echo" { endpoints = [%q] }
stats { listen = "off" }
`

const (
	// block is how many numbers counted writes at once.
	block = 512
	// onTheWay is how many blocks have not come back yet: 8 MiB, which fills sockets and pipes. Without a bound an echo that is
	// behind fills its receive buffer to the kernel's limit (32 MiB); then the kernel drops what comes, acknowledgements with it,
	// and the two ends of loopback retransmit for ever (TcpExtBeyondWindow, TCPRcvQDrop), whoever stands between.
	onTheWay = 8 << 20 / (8 * block)
)

// counted writes the numbers from 0 on and wants them back: a byte that is lost, sent twice or out of order shows.
func counted(c net.Conn, stop <-chan struct{}) (uint64, error) {
	sent, credit, ended := make(chan uint64, 1), make(chan struct{}, onTheWay), make(chan struct{})
	go func() {
		b := make([]byte, 8*block)
		for n := uint64(0); ; {
			select {
			case <-stop:
				sent <- n
				_ = c.(*net.TCPConn).CloseWrite()
				return
			case <-ended:
				sent <- n
				return
			case credit <- struct{}{}:
			}
			for i := 0; i < len(b); i += 8 {
				binary.BigEndian.PutUint64(b[i:], n)
				n++
			}
			if _, err := c.Write(b); err != nil {
				sent <- n
				return
			}
		}
	}()
	b, r := make([]byte, 8), bufio.NewReaderSize(c, 64<<10)
	for n := uint64(0); ; n++ {
		if n > 0 && n%block == 0 {
			<-credit
		}
		if _, err := io.ReadFull(r, b); err != nil {
			close(ended)
			if want := <-sent; !errors.Is(err, io.EOF) || n != want {
				return n, fmt.Errorf("%d of %d numbers came back, then: %w", n, want, err)
			}
			return n, nil
		}
		if got := binary.BigEndian.Uint64(b); got != n {
			return n, fmt.Errorf("number %d came in place of %d", got, n)
		}
	}
}

// many is how many upgrades a client sees.
func many() int {
	if testing.Short() {
		return 8
	}
	return 50
}

// upgrades upgrades so many times and waits each time until the generation before has gone: whatever it held has moved.
func upgrades(t *testing.T, s *suite.Suite, n int) {
	t.Helper()
	for i := range n {
		if out, code := s.Retinue("upgrade", "--probation", "0s", "--wait", "drained"); code != 0 {
			t.Fatalf("upgrade %d: exit %d: %s", i, code, out)
		}
	}
}

func TestStreamsMoveOverUpgrades(t *testing.T) {
	log := filepath.Join(t.TempDir(), "access.log")
	s := suite.Start(t, fmt.Sprintf(moveConfig, log, suite.Upstream(t, echo)))
	c, err := net.Dial("tcp", s.Address("tcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop, done := make(chan struct{}), make(chan error, 1)
	var n uint64
	go func() {
		var err error
		n, err = counted(c, stop)
		done <- err
	}()
	s.AwaitStat(1, "retinue_listener_downstream_cx_total", "listener=tcp") // the session begins when it is accepted
	began := time.Now()
	upgrades(t, s, many())
	lasted := time.Since(began)
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	s.Eventually("the session is logged", func() error {
		raw, err := os.ReadFile(log)
		if err != nil || len(raw) == 0 {
			return fmt.Errorf("no line: %w", err)
		}
		lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
		var protocol string
		var received, sent uint64
		var ms int64
		if _, err := fmt.Sscan(lines[0], &protocol, &received, &sent, &ms); err != nil {
			t.Fatalf("%q: %v", lines[0], err)
		}
		if len(lines) != 1 || received != 8*n || sent != 8*n || time.Duration(ms+1)*time.Millisecond < lasted { // the log has whole milliseconds
			t.Fatalf("%d bytes each way over %v, and the log says:\n%s", 8*n, lasted, raw)
		}
		return nil
	})
	if n == 0 || bytes.Count([]byte(s.Log()), []byte("connections were cut")) > 0 {
		t.Errorf("%d numbers, log:\n%s", n, s.Log())
	}
}

const moveWebConfig = `
runtime {
  workers   = 2
  probation = "0s"
}
access_log "lines" {
  path   = %q
  format = "%%RESPONSE_CODE%% %%BYTES_RECEIVED%% %%BYTES_SENT%% %%DURATION%% %%REQ(X-CLIENT)%% %%RESP(X-SERVER)%% %%REQ(:PATH)%% %%UPSTREAM_CLUSTER%%\n"
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log    = access_log.lines
    upgrades      = ["websocket", "connect"]
    virtual_host "all" {
      domains = ["*"]
      route "/chat" {
        cluster  = cluster.app
        priority = "high"
      }
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = [%q] }
stats { listen = "off" }
`

// app answers requests with their body, an upgrade with an echo, and a download with as many bytes as its path says and their
// checksum.
func app(c net.Conn) {
	r := bufio.NewReader(c)
	for {
		request, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if request.Header.Get("Upgrade") != "" {
			fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Server: app\r\n\r\n")
			_, _ = io.Copy(c, r)
			_ = c.(*net.TCPConn).CloseWrite()
			return
		}
		var body []byte
		switch size, err := strconv.Atoi(strings.TrimPrefix(request.URL.Path, "/download/")); {
		case err == nil:
			body = make([]byte, size)
			_, _ = crand.Read(body)
		case request.URL.Path == "/upload":
			sum := sha256.New()
			if _, err := io.Copy(sum, request.Body); err != nil {
				return
			}
			body = fmt.Appendf(nil, "%x", sum.Sum(nil))
		default:
			if body, err = io.ReadAll(request.Body); err != nil {
				return
			}
		}
		if _, err := fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nX-Server: app\r\nX-Sum: %x\r\nContent-Length: %d\r\n\r\n", sha256.Sum256(body), len(body)); err != nil {
			return
		}
		if _, err := c.Write(body); err != nil {
			return
		}
	}
}

func TestUpgradedConnectionsMove(t *testing.T) {
	log := filepath.Join(t.TempDir(), "access.log")
	s := suite.Start(t, fmt.Sprintf(moveWebConfig, log, suite.Upstream(t, app)))
	c := upgraded(t, s.Address("web"))
	stop, done := make(chan struct{}), make(chan error, 1)
	var n uint64
	go func() {
		var err error
		n, err = counted(c, stop)
		done <- err
	}()
	began := time.Now()
	upgrades(t, s, many())
	lasted := time.Since(began)
	gauges := []string{"retinue_cluster_upstream_rq_active", "retinue_cluster_upstream_rq_active_high", "retinue_cluster_upstream_cx_active", "retinue_cluster_upstream_cx_active_high"}
	are := func(want float64) {
		t.Helper()
		for _, gauge := range gauges {
			s.Eventually(fmt.Sprintf("%s is %v", gauge, want), func() error {
				if n := s.Stat(gauge); n != want {
					return fmt.Errorf("it is %v", n)
				}
				return nil
			})
		}
	}
	are(1) // in the process where it is now, for its route's priority
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	are(0)
	s.Eventually("the tunnel is logged", func() error {
		raw, err := os.ReadFile(log)
		if err != nil || len(raw) == 0 {
			return fmt.Errorf("no line: %w", err)
		}
		lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
		var status int
		var received, sent uint64
		var ms int64
		var client, server, path, cluster string
		if _, err := fmt.Sscan(lines[0], &status, &received, &sent, &ms, &client, &server, &path, &cluster); err != nil {
			t.Fatalf("%q: %v", lines[0], err)
		}
		if len(lines) != 1 || received != 8*n || sent != 8*n || time.Duration(ms)*time.Millisecond < lasted ||
			status != 101 || client != "me" || server != "app" || path != "/chat" || cluster != "app" {
			t.Fatalf("%d bytes each way over %v, and the log says:\n%s", 8*n, lasted, raw)
		}
		return nil
	})
}

// upgraded is a connection that an upgrade has turned into an echo.
func upgraded(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET /chat HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Client: me\r\n\r\n")
	if response, err := http.ReadResponse(bufio.NewReaderSize(io.LimitReader(c, headLength(t, c)), 16), nil); err != nil || response.StatusCode != 101 {
		t.Fatalf("%v, %v", response, err)
	}
	return c
}

// headLength peeks how long the response head is, so that nothing after it is taken.
func headLength(t *testing.T, c net.Conn) int64 {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	length := -1
	err = raw.Read(func(fd uintptr) bool {
		b := make([]byte, 4096)
		n, _, err := syscall.Recvfrom(int(fd), b, syscall.MSG_PEEK)
		if err == syscall.EAGAIN {
			return false
		}
		if err != nil || n == 0 {
			return true
		}
		if i := bytes.Index(b[:n], []byte("\r\n\r\n")); i >= 0 {
			length = i + 4
			return true
		}
		return false
	})
	if err != nil || length < 0 {
		t.Fatalf("no response head: %v", err)
	}
	return int64(length)
}

// TestKeepAliveClientsNeverReconnect: clients that keep one connection each, busy ones, idle ones and one that stops in the
// middle of a head, see upgrades pass without a close, and without being told of one.
func TestKeepAliveClientsNeverReconnect(t *testing.T) {
	log := filepath.Join(t.TempDir(), "access.log")
	s := suite.Start(t, fmt.Sprintf(moveWebConfig, log, suite.Upstream(t, app)))
	address := s.Address("web")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var requests atomic.Int64
	var failed atomic.Value
	for i := range 8 {
		pause := time.Duration(i%4) * 50 * time.Millisecond
		clients.Go(func() {
			if err := keepAlive(address, pause, stop, &requests); err != nil {
				failed.Store(err)
			}
		})
	}
	half, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	_ = half.SetDeadline(time.Now().Add(4 * suite.Patience))
	_, _ = io.WriteString(half, "GET /half HTTP/1.1\r\nHo")
	upgrades(t, s, 3) // within the time that a head may take
	_, _ = io.WriteString(half, "st: x\r\n\r\n")
	if response, err := http.ReadResponse(bufio.NewReader(half), nil); err != nil || response.StatusCode != 200 || response.Close {
		t.Errorf("a head in two halves with upgrades between them: %v, %v", response, err)
	}
	upgrades(t, s, many()-3)
	close(stop)
	clients.Wait()
	if err := failed.Load(); err != nil {
		t.Error(err)
	}
	if requests.Load() < 100 {
		t.Errorf("%d requests", requests.Load())
	}
}

// keepAlive sends requests on one connection and wants each answered, and the connection kept.
func keepAlive(address string, pause time.Duration, stop <-chan struct{}, requests *atomic.Int64) error {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for i := 0; ; i++ {
		select {
		case <-stop:
			return nil
		case <-time.After(pause):
		}
		_ = c.SetDeadline(time.Now().Add(suite.Patience))
		body := fmt.Sprintf("request %d", i)
		if _, err := fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
		response, err := http.ReadResponse(r, nil)
		if err != nil {
			return fmt.Errorf("request %d: %w", i, err)
		}
		got, err := io.ReadAll(response.Body)
		if err != nil || string(got) != body || response.StatusCode != 200 {
			return fmt.Errorf("request %d: %d %q, %w", i, response.StatusCode, got, err)
		}
		if response.Close {
			return fmt.Errorf("request %d: Connection: close", i)
		}
		requests.Add(1)
	}
}
