package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// TestUpstreamALPN holds what becomes of each answer that a server may give to what a cluster offers.
func TestUpstreamALPN(t *testing.T) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("app.internal")
	// A server chooses of its names what it is offered, or of none nothing; and understands HTTP/1 or HTTP/2 or both.
	server := func(names []string, understands string) string {
		return suite.Upstream(t, func(c net.Conn) {
			secure := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{pair.TLS}, NextProtos: names})
			_ = secure.SetDeadline(time.Now().Add(2 * suite.Patience))
			in := bufio.NewReader(secure)
			first, err := in.Peek(4)
			switch {
			case err != nil:
			case string(first) == "PRI " && strings.Contains(understands, "h2"):
				r := &raw{Conn: secure, Framer: http2.NewFramer(secure, in), t: t}
				_, _ = in.Discard(len(http2.ClientPreface))
				_ = r.WriteSettings()
				for {
					f, err := r.ReadFrame()
					if err != nil {
						return
					}
					if h, ok := f.(*http2.HeadersFrame); ok {
						r.head(h.StreamID, false, fields(":status", "200"))
						_ = r.WriteData(h.StreamID, true, []byte("h2"))
					}
				}
			case strings.Contains(understands, "h1"):
				for {
					if _, err := http.ReadRequest(in); err != nil {
						_, _ = io.WriteString(secure, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
						_ = secure.Close()
						return
					}
					_, _ = io.WriteString(secure, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh1")
				}
			}
		})
	}
	const failed = "upstream_reset_before_response_started"
	rows := []struct {
		protocol    string
		names       []string
		understands string
		want        string // the body
		status      int
		flags       string
		details     string
	}{
		{"auto", []string{"h2", "http/1.1"}, "h1 h2", "h2", 200, "", "via_upstream"},
		{"auto", []string{"http/1.1"}, "h1", "h1", 200, "", "via_upstream"},
		{"auto", nil, "h1 h2", "h1", 200, "", "via_upstream"}, // HTTP/1 is what was there before ALPN
		{"auto", []string{"spdy/3"}, "", "", 503, "UF", failed},
		{"http2", []string{"h2"}, "h2", "h2", 200, "", "via_upstream"},
		{"http2", nil, "h2", "h2", 200, "", "via_upstream"}, // said by the configuration, as in Envoy
		{"http2", nil, "h1", "", 502, "UPE", failed},
		{"http2", []string{"http/1.1"}, "h1", "", 503, "UF", failed},
		{"http1", []string{"http/1.1", "h2"}, "h1 h2", "h1", 200, "", "via_upstream"},
		{"http1", []string{"h2"}, "h2", "", 503, "UC", failed}, // crypto/tls lets such a client in without a name
	}
	var routes, clusters strings.Builder
	for i, x := range rows {
		fmt.Fprintf(&routes, "      route \"/%d\" { cluster = cluster.c%[1]d }\n", i)
		fmt.Fprintf(&clusters, "cluster \"c%d\" {\n  endpoints = [%q]\n  protocol  = %q\n  tls {\n    sni     = \"app.internal\"\n    ca_file = %q\n  }\n}\n",
			i, server(x.names, x.understands), x.protocol, ca.File)
	}
	st := newStage(t, `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    virtual_host "all" {
      domains = ["*"]
`+routes.String()+"    }\n  }\n}\n"+clusters.String())
	address := st.Address("web")
	for i, x := range rows {
		for range 2 { // what was agreed on is remembered
			c := dial(t, address)
			write(t, c, fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", i))
			response, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err != nil {
				t.Fatal(err)
			}
			body, _ := io.ReadAll(response.Body)
			if response.StatusCode != x.status || x.want != "" && string(body) != x.want {
				t.Errorf("%+v: %d %q", x, response.StatusCode, body)
			}
			if e := st.entry(t, c); e.Flags != x.flags || !strings.HasPrefix(e.Details, x.details) {
				t.Errorf("%+v: the access log says %q %q", x, e.Flags, e.Details)
			}
		}
	}
}

// reply is what a client got.
type reply struct {
	status int
	body   string
	err    error
}

// TestHTTP2Upstream is a server of HTTP/2 over TLS, chosen by the configuration and by ALPN, that does to the proxy what servers do: it goes
// away, refuses, resets, cuts, floods.
func TestHTTP2Upstream(t *testing.T) {
	for _, protocol := range []string{"http2", "auto"} {
		t.Run(protocol, func(t *testing.T) {
			testHTTP2Upstream(t, protocol)
		})
	}
}

func testHTTP2Upstream(t *testing.T, protocol string) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("app.internal")
	connections := make(chan *raw, 16)
	over := make(chan struct{})
	t.Cleanup(func() { close(over) })
	upstream := rawServer(t, &tls.Config{Certificates: []tls.Certificate{pair.TLS}, NextProtos: []string{"h2"}}, func(r *raw) {
		connections <- r
		<-over
	})
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" {
  endpoints = [%q]
  protocol  = %q
  tls {
    sni     = "app.internal"
    ca_file = %q
  }
}
stats { listen = "off" }
`, upstream, protocol, ca.File))
	address := "http://" + s.Address("web")
	client := &http.Client{Transport: &http.Transport{Protocols: new(http.Protocols)}, Timeout: suite.Patience}
	client.Transport.(*http.Transport).Protocols.SetUnencryptedHTTP2(true)
	ask := func(method, path string) chan reply {
		got := make(chan reply, 1)
		go func() {
			request, _ := http.NewRequest(method, address+path, nil)
			r, err := client.Do(request)
			if err != nil {
				got <- reply{err: err}
				return
			}
			body, err := io.ReadAll(r.Body)
			r.Body.Close()
			got <- reply{r.StatusCode, string(body), err}
		}()
		return got
	}
	next := func(t *testing.T) *raw {
		t.Helper()
		select {
		case r := <-connections:
			r.t = t
			return r
		case <-time.After(suite.Patience):
			t.Fatal("no connection was made")
			return nil
		}
	}
	request := func(r *raw) told {
		r.t.Helper()
		return r.until("a request", func(x told) bool { return x.kind == http2.FrameHeaders })
	}
	respond := func(r *raw, id uint32) {
		r.head(id, false, fields(":status", "200"))
		_ = r.WriteData(id, true, []byte("ok"))
	}
	want := func(t *testing.T, got chan reply, status int, body string) {
		t.Helper()
		select {
		case g := <-got:
			if g.err != nil || g.status != status || body != "" && g.body != body {
				t.Errorf("the client got %+v, want %d %s", g, status, body)
			}
		case <-time.After(suite.Patience):
			t.Error("the client got nothing")
		}
	}

	t.Run("GOAWAY", func(t *testing.T) {
		one := ask("GET", "/1")
		r := next(t)
		first := request(r)
		two := ask("POST", "/2") // even what may not be done twice: the server says that it did not begin
		second := request(r)
		if first.stream != 1 || second.stream != 3 {
			t.Errorf("streams %d and %d", first.stream, second.stream)
		}
		_ = r.WriteGoAway(1, http2.ErrCodeNo, nil)
		again := next(t)
		if x := request(again); x.fields[":path"] != "/2" || x.fields[":method"] != "POST" {
			t.Errorf("the new connection got %v", x.fields)
		}
		if !again.Conn.(*tls.Conn).ConnectionState().DidResume {
			t.Error("the session was not used again")
		}
		respond(again, 1)
		respond(r, 1)
		want(t, one, 200, "ok")
		want(t, two, 200, "ok")
		if _, err := r.hear(); err == nil {
			t.Error("the old connection stays open behind its last stream")
		}
		s.AwaitStat(1, "retinue_cluster_http2_goaway_received", "cluster=app")
		s.AwaitStat(1, "retinue_cluster_ssl_session_reused", "cluster=app")

		three := ask("GET", "/3") // GOAWAY in two steps
		x := request(again)
		_ = again.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil)
		four := ask("GET", "/4")
		last := next(t)
		y := request(last)
		_ = again.WriteGoAway(x.stream, http2.ErrCodeNo, nil)
		respond(again, x.stream)
		respond(last, y.stream)
		want(t, three, 200, "ok")
		want(t, four, 200, "ok")
		_ = last.Close()
	})
	t.Run("resets", func(t *testing.T) {
		got := ask("POST", "/")
		r := next(t)
		_ = r.WriteRSTStream(request(r).stream, http2.ErrCodeInternal)
		want(t, got, 503, "")
		got = ask("POST", "/")
		_ = r.WriteRSTStream(request(r).stream, http2.ErrCodeRefusedStream) // it was not begun: another try
		respond(r, request(r).stream)
		want(t, got, 200, "ok")
		got = ask("GET", "/")
		id := request(r).stream
		r.head(id, false, fields(":status", "200", "content-length", "10"))
		_ = r.WriteData(id, false, []byte("a part"))
		_ = r.WriteRSTStream(id, http2.ErrCodeInternal)
		if g := <-got; g.err == nil {
			t.Errorf("the client takes a part for the whole: %+v", g)
		}
		got = ask("GET", "/") // and the connection goes on
		respond(r, request(r).stream)
		want(t, got, 200, "ok")
		_ = r.Close()
	})
	t.Run("cut", func(t *testing.T) { // without close_notify, and within a body
		got := ask("GET", "/")
		r := next(t)
		r.head(request(r).stream, false, fields(":status", "200"))
		_ = r.WriteData(1, false, []byte("a part"))
		_ = r.Conn.(*tls.Conn).NetConn().Close()
		if g := <-got; g.err == nil {
			t.Errorf("the client takes a part for the whole: %+v", g)
		}
	})
	t.Run("the client goes", func(t *testing.T) {
		c := dialRaw(t, s.Address("web"), nil)
		c.head(1, true, get("/"))
		r := next(t)
		id := request(r).stream
		_ = c.Close()
		if x := r.until("the reset", func(x told) bool { return x.kind == http2.FrameRSTStream }); x.stream != id || x.code != http2.ErrCodeCancel {
			t.Errorf("the server is told %s", x)
		}
		_ = r.Close()
	})
	for _, x := range []struct {
		name    string
		play    func(r *raw, id uint32)
		want    string // GOAWAY or RST that the server is told
		counter string
	}{
		{"CONTINUATION", func(r *raw, id uint32) {
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: []byte{0x88}})
			for range 513 {
				_ = r.WriteContinuation(id, false, []byte{0x88})
			}
		}, "GOAWAY(ENHANCE_YOUR_CALM,http2.continuation_flood)", "http2_inbound_continuation_flood"},
		{"empty DATA", func(r *raw, id uint32) {
			r.head(id, false, fields(":status", "200"))
			for range 2 {
				_ = r.WriteData(id, false, nil)
			}
		}, "GOAWAY(ENHANCE_YOUR_CALM,http2.inbound_empty_frames_flood)", "http2_inbound_empty_frames_flood"},
		{"window", func(r *raw, _ uint32) { _ = r.WriteWindowUpdate(0, 1<<31-1) }, "GOAWAY(FLOW_CONTROL_ERROR,http2.window_overflow)", "http2_flow_control_error"},
		{"pushed stream", func(r *raw, _ uint32) { r.head(2, true, fields(":status", "200")) }, "GOAWAY(PROTOCOL_ERROR,http2.invalid_stream_id)", "upstream_cx_protocol_error"},
		{"header bomb", func(r *raw, id uint32) {
			bomb := fields("x", strings.Repeat("a", 4000))
			bomb[0] = 0x40
			r.head(id, true, append(append(fields(":status", "200"), bomb...), bytes.Repeat([]byte{0xbe}, 60)...))
		}, "RST(%d,PROTOCOL_ERROR)", "http2_header_overflow"},
		{"upper case", func(r *raw, id uint32) { r.head(id, true, fields(":status", "200", "Server", "x")) }, "RST(%d,PROTOCOL_ERROR)", "http2_rx_messaging_error"},
	} {
		t.Run(x.name, func(t *testing.T) {
			got := ask("POST", "/")
			r := next(t)
			id := request(r).stream
			x.play(r, id)
			said := x.want
			if strings.Contains(said, "%d") {
				said = fmt.Sprintf(said, id)
			}
			r.until(said, func(x told) bool { return x.String() == said })
			select {
			case g := <-got:
				if g.status < 502 && g.err == nil {
					t.Errorf("the client got %+v", g)
				}
			case <-time.After(suite.Patience):
				t.Error("the client got nothing")
			}
			s.AwaitStat(1, "retinue_cluster_"+x.counter, "cluster=app")
			_ = r.Close()
		})
	}
	got := ask("GET", "/") // on a new connection all is well
	r := next(t)
	respond(r, request(r).stream)
	want(t, got, 200, "ok")
}
