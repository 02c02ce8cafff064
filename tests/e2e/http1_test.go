package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const webConfig = `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log          = access_log.all
    generate_request_id = false
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
`

// TestHTTP1 has one exchange a row, byte for byte on both sides. PATH stands for the row's own path.
func TestHTTP1(t *testing.T) {
	const (
		ok       = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
		okClosed = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"
		get      = "GET PATH HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
	)
	upgraded := func(c *upstreamConn) bool {
		c.says("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_, _ = io.Copy(c.Conn, c.reader)
		return false
	}
	st := newStage(t, webConfig)
	address := st.Address("web")
	t.Run("exchanges", func(t *testing.T) {
		for _, test := range []struct {
			name      string
			request   string
			halfClose bool
			reply     script
			sees      []string // in what the upstream receives
			misses    []string // not in it
			want      string   // all that the client receives
			entry     entry
		}{
			{name: "close", request: get, reply: answer(ok), sees: []string{"GET PATH HTTP/1.1\r\nHost: a\r\n"}, misses: []string{"Connection"}, want: okClosed, entry: entry{Status: 200, Sent: 2}},
			{
				name: "keep-alive and pipelining", request: "GET PATH?1 HTTP/1.1\r\nHost: a\r\n\r\nGET PATH?2 HTTP/1.1\r\nHost: a\r\n\r\n" + strings.Replace(get, "PATH", "PATH?3", 1),
				reply: func(c *upstreamConn) bool {
					c.says("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + c.request.URL.RawQuery)
					return true
				},
				want: "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n2HTTP/1.1 200 OK\r\nContent-Length: 1\r\nConnection: close\r\n\r\n3", entry: entry{Status: 200, Sent: 1},
			},
			{
				name:    "chunked both ways with trailers",
				request: "POST PATH HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n5;ext=1\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n",
				reply:   answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\n\r\n3\r\nabc\r\n0\r\nX-Back: 1\r\n\r\n"),
				sees:    []string{"Transfer-Encoding: chunked\r\n", "5\r\nhello\r\n0\r\nX-Sum: 42\r\n\r\n"}, misses: []string{"ext=1"},
				want:  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Back\r\nConnection: close\r\n\r\n3\r\nabc\r\n0\r\nX-Back: 1\r\n\r\n",
				entry: entry{Status: 200, Sent: 3, Got: 5},
			},
			{name: "HEAD", request: strings.Replace(get, "GET", "HEAD", 1), reply: answer("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"), want: "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nConnection: close\r\n\r\n", entry: entry{Status: 200}},
			{name: "204", request: get, reply: answer("HTTP/1.1 204 No Content\r\n\r\n"), want: "HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n", entry: entry{Status: 204}},
			{name: "304", request: get, reply: answer("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\nETag: \"x\"\r\n\r\n"), want: "HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\nContent-Length: 9\r\nConnection: close\r\n\r\n", entry: entry{Status: 304}},
			{
				name: "103 and 100 pass", request: get, reply: answer("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + ok),
				want: "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n" + okClosed, entry: entry{Status: 200, Sent: 2},
			},
			{name: "a body until the end becomes chunks", request: get, reply: answerAndClose("HTTP/1.1 200 OK\r\n\r\nhello"), want: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n5\r\nhello\r\n0\r\n\r\n", entry: entry{Status: 200, Sent: 5}},
			{name: "HTTP/1.0 has no chunks", request: "GET PATH HTTP/1.0\r\nHost: a\r\n\r\n", reply: answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), sees: []string{" HTTP/1.1\r\n"}, want: "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello", entry: entry{Status: 200, Sent: 5}},
			{name: "HTTP/1.0 has no 103", request: "GET PATH HTTP/1.0\r\n\r\n", reply: answer("HTTP/1.1 103 Early Hints\r\n\r\n" + ok), want: okClosed, entry: entry{Status: 200, Sent: 2}},
			{name: "the client's half-close", request: "GET PATH HTTP/1.1\r\nHost: a\r\n\r\n", halfClose: true, reply: answer(ok), want: okClosed, entry: entry{Status: 200, Sent: 2}},
			{
				name: "an early answer to a long body", request: "POST PATH HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nonly this",
				reply: func(c *upstreamConn) bool {
					c.says("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig")
					return false
				}, want: "HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig", entry: entry{Status: 413, Sent: 3, Got: 9},
			},
			{
				name: "upgrade", request: "GET PATH HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello", halfClose: true, reply: upgraded, sees: []string{"Connection: upgrade\r\n", "Upgrade: websocket\r\n"},
				want: "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhello", entry: entry{Status: 101, Sent: 5, Got: 5},
			},
			{name: "an upgrade that the upstream refuses", request: "GET PATH HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n", reply: answer("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), want: "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", entry: entry{Status: 403}},
			{name: "an unknown upgrade is left out", request: "GET PATH HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, close\r\nUpgrade: h2c\r\n\r\n", reply: answer(ok), misses: []string{"Upgrade", "h2c"}, want: okClosed, entry: entry{Status: 200, Sent: 2}},
			{
				name: "what belongs to one connection stays there", request: "GET PATH HTTP/1.1\r\nHost: a\r\nConnection: close, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\nTE: gzip\r\nX-Stays: 1\r\n\r\n",
				reply: answer("HTTP/1.1 200 OK\r\nConnection: X-Theirs\r\nX-Theirs: 1\r\nKeep-Alive: 5\r\nX-Stays: 2\r\nContent-Length: 2\r\n\r\nok"),
				sees:  []string{"X-Stays: 1\r\n"}, misses: []string{"X-Mine", "Keep-Alive", "Proxy-Connection", "TE:"},
				want: "HTTP/1.1 200 OK\r\nX-Stays: 2\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", entry: entry{Status: 200, Sent: 2},
			},
		} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				path := "/http1/" + strings.NewReplacer(" ", "-", "/", "-", "'", "", ",", "").Replace(test.name)
				saw := make(chan string, 8)
				st.scripts.set(path, func(c *upstreamConn) bool {
					defer func() { saw <- c.raw.String() }()
					return test.reply(c)
				})
				c := dial(t, address)
				write(t, c, strings.ReplaceAll(test.request, "PATH", path))
				if test.halfClose {
					_ = c.CloseWrite()
				}
				got, ended := untilEnd(c)
				if got != test.want || ended != io.EOF {
					t.Errorf("the client received (%v)\n%q, want\n%q", ended, got, test.want)
				}
				seen := <-saw
				for _, want := range test.sees {
					if want = strings.ReplaceAll(want, "PATH", path); !strings.Contains(seen, want) {
						t.Errorf("the upstream received %q without %q", seen, want)
					}
				}
				for _, bad := range test.misses {
					if strings.Contains(seen, bad) {
						t.Errorf("the upstream received %q with %q", seen, bad)
					}
				}
				e := st.nth(t, c, strings.Count(test.request, "PATH")-1)
				if e.Status != test.entry.Status || e.Sent != test.entry.Sent || e.Got != test.entry.Got || e.Flags != "" || e.Details != "via_upstream" {
					t.Errorf("the access log says %+v, want %+v via_upstream", e, test.entry)
				}
			})
		}
	})
}

// TestExpectContinue: 100 is the upstream's to say, before the client sends its body.
func TestExpectContinue(t *testing.T) {
	st := newStage(t, webConfig)
	st.scripts.set("/expect", func(c *upstreamConn) bool {
		if c.request.Header.Get("Expect") != "100-continue" {
			c.says("HTTP/1.1 500 No Expect\r\nContent-Length: 0\r\n\r\n")
			return false
		}
		c.says("HTTP/1.1 100 Continue\r\n\r\n")
		c.says(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n%s", c.whole()))
		return true
	})
	c := dial(t, st.Address("web"))
	write(t, c, "POST /expect HTTP/1.1\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	reads(t, c, "HTTP/1.1 100 Continue\r\n\r\n")
	write(t, c, "hello")
	got, _ := untilEnd(c)
	if want := "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestTunnelHalfClose closes one direction of a WebSocket tunnel while the other goes on.
func TestTunnelHalfClose(t *testing.T) {
	st := newStage(t, webConfig)
	st.scripts.set("/tunnel", func(c *upstreamConn) bool {
		c.says("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		all, _ := io.ReadAll(c.reader) // to the client's end
		c.says("got " + string(all))
		return false
	})
	c := dial(t, st.Address("web"))
	write(t, c, "GET /tunnel HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	reads(t, c, "HTTP/1.1 101 Switching Protocols\r\n")
	write(t, c, "one way")
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, ended := untilEnd(c)
	if !strings.HasSuffix(got, "got one way") || ended != io.EOF {
		t.Errorf("%q, %v", got, ended)
	}
}

// TestRouteUpgrades: a route has fewer upgrades than its http block; what it does not have is refused and not asked of the upstream.
func TestRouteUpgrades(t *testing.T) {
	st := newStage(t, `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    upgrades   = ["websocket", "mqtt", "connect"]
    virtual_host "all" {
      domains = ["*"]
      route "/none/*" {
        cluster  = cluster.app
        upgrades = []
      }
      route "/mqtt/*" {
        cluster  = cluster.app
        upgrades = ["mqtt"]
      }
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
`)
	asked := make(chan string, 16)
	for _, path := range []string{"/none/x", "/mqtt/x", "/x"} {
		st.scripts.set(path, func(c *upstreamConn) bool {
			asked <- path
			protocol := c.request.Header.Get("Upgrade")
			if protocol == "" {
				c.says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				return true
			}
			c.says("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + protocol + "\r\n\r\n")
			return false
		})
	}
	for _, row := range []struct {
		path, protocol string
		status         int
	}{
		{"/x", "websocket", 101},
		{"/x", "mqtt", 101},
		{"/x", "", 200},
		{"/mqtt/x", "websocket", 403},
		{"/mqtt/x", "websocket, MQTT", 101},
		{"/mqtt/x", "", 200},
		{"/none/x", "websocket", 403},
		{"/none/x", "", 200},
	} {
		c := dial(t, st.Address("web"))
		upgrade := ""
		if row.protocol != "" {
			upgrade = "Connection: Upgrade\r\nUpgrade: " + row.protocol + "\r\n"
		} else {
			upgrade = "Connection: close\r\n"
		}
		write(t, c, "GET "+row.path+" HTTP/1.1\r\nHost: a\r\n"+upgrade+"\r\n")
		r, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || r.StatusCode != row.status {
			t.Errorf("%s to %q: %v, %v; want %d", row.path, row.protocol, r, err, row.status)
			continue
		}
		if row.status != http.StatusForbidden {
			if path := <-asked; path != row.path {
				t.Errorf("the upstream was asked for %s, want %s", path, row.path)
			}
			continue
		}
		if e := st.entry(t, c); e.Details != "upgrade_failed" {
			t.Errorf("%s to %q: the access log says %+v", row.path, row.protocol, e)
		}
	}
	if len(asked) > 0 {
		t.Errorf("the upstream was asked for %s besides", <-asked)
	}
}

// TestSlowReaderDoesNotFillMemory has a client that stops reading a large body: the proxy stops reading the upstream.
func TestSlowReaderDoesNotFillMemory(t *testing.T) {
	st := newStage(t, webConfig)
	const size = 64 << 20
	wrote := make(chan int64, 1)
	progress := make(chan int64, size>>20)
	st.scripts.set("/big", func(c *upstreamConn) bool {
		c.says(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", size))
		piece, n := make([]byte, 1<<20), int64(0)
		for n < size {
			m, err := c.Write(piece)
			n += int64(m)
			if err != nil {
				break
			}
			progress <- n
		}
		wrote <- n
		return false
	})
	c := dial(t, st.Address("web"))
	_ = c.SetReadBuffer(64 << 10)
	write(t, c, "GET /big HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	last := int64(0)
	for quiet := false; !quiet; { // until the upstream is stopped
		select {
		case last = <-progress:
		case <-wrote:
			t.Fatalf("all of the %d bytes were taken from the upstream though the client reads nothing", size)
		case <-time.After(700 * time.Millisecond):
			quiet = true
		}
	}
	if last > 48<<20 { // the kernel's: a receive buffer may grow to 32 MiB (tcp_rmem), send buffers to 4
		t.Errorf("%d bytes were taken from the upstream for a client that reads nothing", last)
	}
	n, err := io.Copy(io.Discard, c)
	if err != nil || n < size {
		t.Errorf("the rest came with %d bytes, %v", n, err)
	}
	if got := <-wrote; got != size {
		t.Errorf("the upstream wrote %d bytes", got)
	}
}

// TestUnixListenerAndUpstream goes from a Unix socket to a Unix socket, HTTP and TCP.
func TestUnixListenerAndUpstream(t *testing.T) {
	dir := t.TempDir()
	app, err := net.Listen("unix", dir+"/app.sock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { app.Close() })
	scripts := &upstreamScripts{}
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				scripts.serve(c)
			}()
		}
	}()
	suite.Start(t, strings.NewReplacer("DIR", dir).Replace(`
listener "web" {
  address   = ["unix:DIR/web.sock"]
  unix_mode = "0600"
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
listener "raw" {
  address = ["unix:DIR/raw.sock"]
  tcp { cluster = cluster.app }
}
cluster "app" { endpoints = ["unix:DIR/app.sock"] }
stats { listen = "off" }
`))
	for _, name := range []string{"web", "raw"} {
		c, err := net.Dial("unix", dir+"/"+name+".sock")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(suite.Patience))
		write(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		reads(t, c, "HTTP/1.1 200 OK\r\n")
	}
}
