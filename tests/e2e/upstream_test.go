package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/tests/suite"
)

const faultyConfig = `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    virtual_host "all" {
      domains = ["*"]
      route "/refused" { cluster = cluster.refused }
      route "/no-socket" { cluster = cluster.no_socket }
      route "/black-hole" { cluster = cluster.black_hole }
      route "/crowded/*" { cluster = cluster.crowded }
      route "/stall/*" {
        cluster = cluster.app
        timeout = "300ms"
      }
      route "/*" { cluster = cluster.app }
    }
    virtual_host "nowhere" {
      domains = ["nowhere"]
      route "/only" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
cluster "refused" { endpoints = ["127.0.0.1:1"] }
cluster "no_socket" { endpoints = ["unix:/nonexistent/app.sock"] }
cluster "black_hole" {
  endpoints       = ["HOLE"]
  connect_timeout = "200ms"
}
cluster "crowded" {
  endpoints = ["APP"]
  circuit_breaker {
    max_connections      = 1
    max_pending_requests = 1
  }
}
`

// blackHole listens at an IPv4 address and port, 0 for any, where no connection is ever made: what arrives is dropped before TCP sees it. A full
// queue of connections would do the same, but the kernel counts those for the whole machine, and other tests look at that number.
func blackHole(t *testing.T, address string) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	a := netip.MustParseAddrPort(address)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}); err != nil {
		t.Skipf("%s: %v", address, err)
	}
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop}); err != nil {
		t.Skipf("this kernel lets nobody filter a socket: %v", err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return netip.AddrPortFrom(a.Addr(), uint16(name.(*unix.SockaddrInet4).Port)).String()
}

// TestFaultyUpstream has one fault a row. The client gets a status where it still can, and otherwise never takes a part for
// the whole, in HTTP/1.0 either, where the end of the connection is the end of the body.
func TestFaultyUpstream(t *testing.T) {
	const before = "upstream_reset_before_response_started"
	stall := func(text string) script {
		return func(c *upstreamConn) bool {
			c.says(text)
			_, _ = io.Copy(io.Discard, c.reader) // until the proxy goes
			return false
		}
	}
	reset := func(text string) script {
		return func(c *upstreamConn) bool {
			c.whole()
			c.says(text)
			c.reset()
			return false
		}
	}
	st := newStage(t, strings.ReplaceAll(faultyConfig, "HOLE", blackHole(t, "127.0.0.1:0")))
	address := st.Address("web")
	t.Run("faults", func(t *testing.T) {
		for _, test := range []struct {
			name    string
			path    string // /row-N when absent
			host    string
			reply   script
			status  int  // of the answer; 0: none is needed
			cut     bool // the body must not look complete
			flags   string
			details string
			counter string
		}{
			{name: "nobody listens", path: "/refused", status: 503, flags: "UF", details: before + "{connection_failure}", counter: "retinue_cluster_upstream_cx_connect_fail refused"},
			{name: "no such socket", path: "/no-socket", status: 503, flags: "UF", details: before + "{connection_failure}", counter: "retinue_cluster_upstream_cx_connect_fail no_socket"},
			{name: "connects never", path: "/black-hole", status: 503, flags: "UF", details: before + "{connection_timeout}", counter: "retinue_cluster_upstream_cx_connect_timeout black_hole"},
			{name: "no route", host: "nowhere", path: "/other", status: 404, flags: "NR", details: "route_not_found", counter: "retinue_http_no_route"},
			{name: "closes at once", reply: answerAndClose(""), status: 503, flags: "UC", details: before + "{connection_termination}", counter: "retinue_cluster_upstream_cx_destroy_with_active_rq app"},
			{name: "resets at once", reply: reset(""), status: 503, flags: "UC", details: before + "{connection_termination}"},
			{name: "closes within the head", reply: answerAndClose("HTTP/1.1 200 OK\r\nContent-Le"), status: 503, flags: "UC", details: before + "{connection_termination}"},
			{name: "answers garbage", reply: answerAndClose("ssh-2.0 hello\r\n\r\n"), status: 502, flags: "UPE", details: before + "{protocol_error}", counter: "retinue_cluster_upstream_cx_protocol_error app"},
			{name: "answers with two lengths", reply: answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"), status: 502, flags: "UPE", details: before + "{protocol_error}"},
			{name: "answers with length and coding", reply: answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), status: 502, flags: "UPE", details: before + "{protocol_error}"},
			{name: "answers with a head without end", reply: answerAndClose("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("a", 200<<10) + "\r\n\r\n"), status: 502, flags: "UPE", details: before + "{protocol_error}"},
			{name: "stalls", path: "/stall/whole", reply: stall(""), status: 504, flags: "UT", details: "response_timeout", counter: "retinue_cluster_upstream_rq_timeout app"},
			{name: "stalls within the head", path: "/stall/head", reply: stall("HTTP/1.1 200 OK\r\nContent-"), status: 504, flags: "UT", details: "response_timeout"},
			{name: "stalls within the body", path: "/stall/body", reply: stall("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"), status: 200, cut: true, flags: "UT", details: "response_timeout"},
			{name: "stalls within chunks", path: "/stall/chunks", reply: stall("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n"), status: 200, cut: true, flags: "UT", details: "response_timeout"},
			{name: "closes within the length", reply: answerAndClose("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"), status: 200, cut: true, flags: "UC", details: "upstream_reset_after_response_started{connection_termination}"},
			{name: "closes within chunks", reply: answerAndClose("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n"), status: 200, cut: true, flags: "UC", details: "upstream_reset_after_response_started{connection_termination}"},
			{name: "closes before the last chunk's end", reply: answerAndClose("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n0\r\n"), status: 200, cut: true, flags: "UC", details: "upstream_reset_after_response_started{connection_termination}"},
			{name: "resets within the length", reply: reset("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this"), cut: true, flags: "UC"},
			{name: "resets within chunks", reply: reset("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n"), cut: true, flags: "UC"},
			{name: "resets within a body until the end", reply: reset("HTTP/1.1 200 OK\r\n\r\nonly this"), cut: true, flags: "UC"},
			{name: "breaks its chunks", reply: answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\nxyz\r\n"), status: 200, cut: true, flags: "UPE", details: "upstream_reset_after_response_started{protocol_error}"},
		} {
			for _, version := range []string{"1.1", "1.0"} {
				t.Run(test.name+" "+version, func(t *testing.T) {
					t.Parallel()
					path, host := test.path, test.host
					if path == "" {
						path = "/" + strings.NewReplacer(" ", "-", "'", "").Replace(test.name)
					}
					if host == "" {
						host = "a"
					}
					if test.reply != nil {
						st.scripts.set(path, test.reply)
					}
					c := dial(t, address)
					write(t, c, fmt.Sprintf("GET %s HTTP/%s\r\nHost: %s\r\nConnection: close\r\n\r\n", path, version, host))
					r := bufio.NewReader(c)
					response, err := http.ReadResponse(r, nil)
					switch {
					case err != nil && test.cut && errors.Is(err, syscall.ECONNRESET): // seen before the head was read
					case err != nil && test.status != 0:
						t.Fatal(err)
					case err == nil:
						if test.status != 0 && response.StatusCode != test.status {
							t.Errorf("status %d, want %d", response.StatusCode, test.status)
						}
						// A client that does not know the length takes an orderly end for the end of the body.
						body, err := io.ReadAll(response.Body)
						if complete := err == nil; response.StatusCode == 200 && complete == test.cut {
							t.Errorf("the client read %q, %v; it must see that this is a part: %v", body, err, test.cut)
						}
						if _, err := r.ReadByte(); err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
							t.Errorf("after the answer: %v", err)
						}
					}
					e := st.entry(t, c)
					if e.Flags != test.flags || test.details != "" && e.Details != test.details || test.status != 0 && e.Status != test.status {
						t.Errorf("the access log says %+v, want %d %s %s", e, test.status, test.flags, test.details)
					}
					if name, cluster, ok := strings.Cut(test.counter, " "); ok {
						st.In(t).AwaitStat(1, name, "cluster="+cluster)
						st.In(t).AwaitStat(1, "retinue_cluster_upstream_rq_xx", "cluster="+cluster, "response_code_class=5")
					} else if name != "" {
						st.In(t).AwaitStat(1, name)
					}
				})
			}
		}
	})
}

// TestOverflow fills a cluster that may have one connection and one request in the queue of each worker: the next is refused.
func TestOverflow(t *testing.T) {
	st := newStage(t, strings.ReplaceAll(faultyConfig, "HOLE", "127.0.0.1:1"))
	address := st.Address("web")
	hold := make(chan struct{})
	st.scripts.set("/crowded/x", func(c *upstreamConn) bool {
		<-hold
		c.says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		return true
	})
	const clients = 12
	statuses := make(chan string, clients)
	var conns []net.Conn
	for range clients {
		c := dial(t, address)
		conns = append(conns, c)
		write(t, c, "GET /crowded/x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		go func() {
			text, _ := untilEnd(c)
			statuses <- text
		}()
	}
	st.AwaitStat(1, "retinue_cluster_upstream_rq_pending_overflow", "cluster=crowded")
	st.AwaitStat(1, "retinue_cluster_upstream_rq_xx", "cluster=crowded", "response_code_class=5") // no host has answered
	refused := <-statuses                                                                         // only refusals come while the upstream holds its answers
	if !strings.HasPrefix(refused, "HTTP/1.1 503 ") || !strings.Contains(refused, "X-Envoy-Overloaded: true\r\n") {
		t.Errorf("the refusal is %q", refused)
	}
	close(hold)
	served, over := 0, 1
	for range clients - 1 {
		switch text := <-statuses; {
		case strings.HasPrefix(text, "HTTP/1.1 200 "):
			served++
		case strings.HasPrefix(text, "HTTP/1.1 503 "):
			over++
		default:
			t.Errorf("%q", text)
		}
	}
	if served == 0 {
		t.Error("none was served")
	}
	flagged := 0
	for _, c := range conns {
		if e := st.entry(t, c); e.Status == 503 {
			flagged++
			if e.Flags != "UO" || e.Details != "upstream_reset_before_response_started{overflow}" {
				t.Errorf("the access log says %+v", e)
			}
		}
	}
	if flagged != over {
		t.Errorf("%d refusals, %d in the access log", over, flagged)
	}
}

// TestDeadPooledConnection: a connection that died while it lay idle is replaced without the client noticing.
func TestDeadPooledConnection(t *testing.T) {
	closed := make(chan struct{})
	first := true
	st := newStage(t, webConfig)
	st.scripts.set("/x", func(c *upstreamConn) bool {
		c.says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		if first {
			first = false
			_ = c.Close()
			close(closed)
			return false
		}
		return true
	})
	c := dial(t, st.Address("web"))
	for range 3 {
		write(t, c, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != 200 || string(body) != "ok" {
			t.Fatalf("%d %q %v", response.StatusCode, body, err)
		}
		<-closed
	}
}

// TestTimeouts has one time-out of each kind, short, on a listener of its own.
func TestTimeouts(t *testing.T) {
	const listener = `
listener "NAME" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    timeouts {
      TIMEOUT = "300ms"
    }
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        cluster = cluster.app
        timeout = "0"
      }
    }
  }
}
`
	kinds := []string{"idle", "request_headers", "request", "stream_idle", "max_stream_duration", "max_connection_duration"}
	var listeners strings.Builder
	for _, kind := range kinds {
		listeners.WriteString(strings.NewReplacer("NAME", kind, "TIMEOUT", kind).Replace(listener))
	}
	st := newStage(t, listeners.String()+"cluster \"app\" { endpoints = [\"APP\"] }\n")
	st.scripts.set("/stalls", func(c *upstreamConn) bool {
		_, _ = io.Copy(io.Discard, c.reader)
		return false
	})
	t.Run("kinds", func(t *testing.T) {
		for _, test := range []struct {
			name, listener, request string
			status                  int // 0: the connection closes without a word
			flags, details, counter string
		}{
			{"nothing ever comes", "idle", "", 0, "", "", "retinue_http_downstream_cx_idle_timeout"},
			{"head is not completed", "request_headers", "GET / HTTP/1.1\r\nHo", 408, "", "request_header_timeout", "retinue_http_downstream_rq_header_timeout"},
			{"body is not completed", "request", "POST /stalls HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nonly", 408, "", "request_overall_timeout", "retinue_http_downstream_rq_timeout"},
			{"body stands still", "stream_idle", "POST /stalls HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nonly", 408, "SI", "stream_idle_timeout", "retinue_http_downstream_rq_idle_timeout"},
			{"upstream stands still", "stream_idle", "GET /stalls HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 504, "SI", "stream_idle_timeout", "retinue_http_downstream_rq_idle_timeout"},
			{"stream lives long", "max_stream_duration", "GET /stalls HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", 504, "UMSDR", "max_duration_timeout", "retinue_http_downstream_rq_max_duration_reached"},
			{"connection lives long", "max_connection_duration", "", 0, "", "", "retinue_http_downstream_cx_max_duration_reached"},
		} {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				c := dial(t, st.Address(test.listener))
				write(t, c, test.request)
				text, ended := untilEnd(c)
				if want := fmt.Sprintf("HTTP/1.1 %d ", test.status); ended != io.EOF || test.status == 0 && text != "" || test.status != 0 && !strings.HasPrefix(text, want) {
					t.Errorf("%q, %v; want %d", text, ended, test.status)
				}
				if test.status != 0 {
					if e := st.entry(t, c); e.Status != test.status || e.Flags != test.flags || e.Details != test.details {
						t.Errorf("the access log says %+v, want %d %q %s", e, test.status, test.flags, test.details)
					}
				}
				st.In(t).AwaitStat(1, test.counter, "listener="+test.listener)
			})
		}
	})
}

// TestClientGoesAway: the upstream's request is given up when the client is gone, and the log says who went.
func TestClientGoesAway(t *testing.T) {
	for _, test := range []struct{ name, config, leave string }{
		{"by a reset", webConfig, "reset"},
		{"by an end without half-closes", strings.Replace(webConfig, "http {", "http {\n    half_close = false", 1), "end"},
	} {
		t.Run(test.name, func(t *testing.T) {
			st := newStage(t, test.config)
			arrived, gone := make(chan struct{}), make(chan struct{})
			st.scripts.set("/x", func(c *upstreamConn) bool {
				close(arrived)
				_, _ = c.reader.ReadByte()
				close(gone)
				return false
			})
			c := dial(t, st.Address("web"))
			write(t, c, "GET /x HTTP/1.1\r\nHost: a\r\n\r\n")
			<-arrived
			if test.leave == "reset" {
				_ = c.SetLinger(0)
			}
			_ = c.Close()
			await(t, gone, "the upstream's request is given up")
			if e := st.entry(t, c); e.Flags != "DC" || e.Details != "downstream_remote_disconnect" || e.Status != 0 {
				t.Errorf("the access log says %+v", e)
			}
			st.AwaitStat(1, "retinue_http_downstream_rq_rx_reset", "listener=web")
		})
	}
}

// TestListenerLimit closes connections beyond max_connections and takes new ones when there is room.
func TestListenerLimit(t *testing.T) {
	st := newStage(t, strings.Replace(webConfig, `"web" {`, "\"web\" {\n  max_connections = 2", 1))
	address := st.Address("web")
	request := "GET / HTTP/1.1\r\nHost: a\r\n\r\n"
	var open []net.Conn
	refused := 0
	for range 8 {
		c := dial(t, address)
		write(t, c, request)
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err == nil {
			open = append(open, c)
		} else {
			refused++
		}
	}
	if len(open) < 2 || len(open) > 3 || refused == 0 { // each worker may admit one too many
		t.Errorf("%d open, %d refused at a limit of 2", len(open), refused)
	}
	st.AwaitStat(float64(refused), "retinue_listener_downstream_cx_overflow", "listener=web")
	for _, c := range open {
		c.Close()
	}
	st.Eventually("there is room again", func() error {
		c, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, request); err != nil {
			return err
		}
		_, err = http.ReadResponse(bufio.NewReader(c), nil)
		return err
	})
}

// TestTCPFaults: a tunnel that could not be made or was cut ends with a reset at the client, and the log has the flag.
func TestTCPFaults(t *testing.T) {
	resetting := suite.Upstream(t, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1))
		_ = c.(*net.TCPConn).SetLinger(0)
	})
	st := newStage(t, strings.ReplaceAll(`
listener "down" {
  address = ["127.0.0.1:0"]
  tcp {
    cluster    = cluster.down
    access_log = access_log.all
  }
}
listener "resets" {
  address = ["127.0.0.1:0"]
  tcp {
    cluster    = cluster.resets
    access_log = access_log.all
  }
}
listener "idle" {
  address = ["127.0.0.1:0"]
  tcp {
    cluster      = cluster.app
    idle_timeout = "300ms"
    access_log   = access_log.all
  }
}
cluster "down" { endpoints = ["127.0.0.1:1"] }
cluster "resets" { endpoints = ["RESETS"] }
cluster "app" { endpoints = ["APP"] }
`, "RESETS", resetting))
	for _, test := range []struct{ listener, flags string }{{"down", "UF"}, {"resets", "UC"}, {"idle", ""}} {
		t.Run(test.listener, func(t *testing.T) {
			t.Parallel()
			c, err := net.Dial("tcp", st.Address(test.listener))
			if errors.Is(err, syscall.ECONNRESET) {
				return // so soon that connect tells it
			}
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(suite.Patience))
			// The kernel tells a reset once: to the write, if it comes that late, or to the read.
			_, wrote := io.WriteString(c, "x")
			if _, ended := untilEnd(c); !errors.Is(wrote, syscall.ECONNRESET) && !errors.Is(ended, syscall.ECONNRESET) {
				t.Errorf("the client wrote (%v) and its connection ended with %v, want a reset: it was cut", wrote, ended)
			}
			if e := st.entry(t, c); e.Flags != test.flags {
				t.Errorf("the access log says %+v, want %q", e, test.flags)
			}
		})
	}
}
