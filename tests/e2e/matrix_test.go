package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// side is the protocol of one side of the proxy.
type side struct {
	name  string
	http2 bool
	tls   bool
}

var sides = []side{{"h1", false, false}, {"h2", true, false}, {"h1s", false, true}, {"h2s", true, true}}

// cell is one combination of the matrix: a client of one protocol, and through the proxy an upstream of another.
type cell struct {
	down, up side
	address  string
	client   *http.Client
	trust    *tls.Config // of a client of TLS
	upstream *matrixUpstream
}

// matrixUpstream does what the path says, and knows what became of it.
type matrixUpstream struct {
	written atomic.Int64 // bytes of the slow reader's body
	gone    chan struct{}
}

func (u *matrixUpstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	control := http.NewResponseController(w)
	switch r.URL.Path {
	case "/proto":
		fmt.Fprint(w, r.Proto)
	case "/echo":
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		for name, values := range r.Trailer {
			w.Header().Set("X-Trailer-"+name, strings.Join(values, ","))
		}
		_, _ = w.Write(body)
	case "/trailers":
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprint(w, "body")
		w.Header().Set("X-Sum", "42")
	case "/early":
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		fmt.Fprint(w, "too much")
	case "/reset":
		w.Header().Set("Content-Length", "1000")
		fmt.Fprint(w, "a part")
		_ = control.Flush()
		panic(http.ErrAbortHandler)
	case "/wait":
		_ = control.Flush()
		<-r.Context().Done()
		u.gone <- struct{}{}
	case "/slow":
		piece := make([]byte, 64<<10)
		for range slowBody / len(piece) {
			n, err := w.Write(piece)
			if u.written.Add(int64(n)); err != nil {
				return
			}
		}
	case "/hints":
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		fmt.Fprint(w, "page")
	case "/ws":
		u.tunnel(w, r)
	}
}

const slowBody = 32 << 20 // more than all buffers on the way hold

// tunnel echoes bytes behind an upgrade, in either protocol's form.
func (u *matrixUpstream) tunnel(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor == 2 {
		if r.Method != http.MethodConnect || r.Header.Get(":protocol") != "websocket" {
			http.Error(w, "not an extended CONNECT", http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusOK)
		control := http.NewResponseController(w)
		_ = control.Flush()
		buf := make([]byte, 1024)
		for {
			n, err := r.Body.Read(buf)
			if n > 0 {
				_, _ = w.Write(buf[:n])
				_ = control.Flush()
			}
			if err != nil {
				return
			}
		}
	}
	if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-WebSocket-Key") == "" {
		http.Error(w, "not an upgrade", http.StatusBadRequest)
		return
	}
	c, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n")
	_, _ = io.Copy(c, rw)
}

func (s side) protocols() *http.Protocols {
	p := &http.Protocols{}
	p.SetHTTP1(!s.http2)
	p.SetHTTP2(s.http2 && s.tls)
	p.SetUnencryptedHTTP2(s.http2 && !s.tls)
	return p
}

// scenarios is what every combination must do alike.
var scenarios = []struct {
	name string
	run  func(c *cell) error
}{
	{"protocol on either side", func(c *cell) error {
		r, body, err := c.do("GET", "/proto", nil, nil)
		if err != nil {
			return err
		}
		if want := map[bool]int{false: 1, true: 2}; r.ProtoMajor != want[c.down.http2] || !strings.HasPrefix(body, fmt.Sprintf("HTTP/%d", want[c.up.http2])) {
			return fmt.Errorf("the client saw %s, the upstream %s", r.Proto, body)
		}
		return nil
	}},
	{"body with a length", func(c *cell) error {
		return c.echo(bytes.NewReader(pattern(3 << 20)))
	}},
	{"body without a length", func(c *cell) error {
		return c.echo(struct{ io.Reader }{bytes.NewReader(pattern(3 << 20))})
	}},
	{"empty body", func(c *cell) error { return c.echo(bytes.NewReader(nil)) }},
	{"HEAD", func(c *cell) error {
		r, body, err := c.do("HEAD", "/proto", nil, nil)
		if err == nil && (r.StatusCode != 200 || body != "") {
			err = fmt.Errorf("status %d, body %q", r.StatusCode, body)
		}
		return err
	}},
	{"trailers of the response", func(c *cell) error {
		r, body, err := c.do("GET", "/trailers", nil, nil)
		if err == nil && (body != "body" || r.Trailer.Get("X-Sum") != "42") {
			err = fmt.Errorf("body %q, trailers %v", body, r.Trailer)
		}
		return err
	}},
	{"trailers of the request", func(c *cell) error {
		request, _ := http.NewRequest("POST", c.url("/echo"), struct{ io.Reader }{strings.NewReader("hello")})
		request.Trailer = http.Header{"X-Sum": {"7"}}
		r, body, err := c.send(request)
		if err == nil && (body != "hello" || r.Header.Get("X-Trailer-X-Sum") != "7") {
			err = fmt.Errorf("body %q, trailer %q", body, r.Header.Get("X-Trailer-X-Sum"))
		}
		return err
	}},
	{"early response", func(c *cell) error {
		r, body, err := c.do("POST", "/early", bytes.NewReader(pattern(4<<20)), http.Header{"Expect": {"100-continue"}})
		if err == nil && (r.StatusCode != 413 || body != "too much") {
			err = fmt.Errorf("status %d, body %q", r.StatusCode, body)
		}
		return err
	}},
	{"100-continue", func(c *cell) error {
		r, body, err := c.do("POST", "/echo", strings.NewReader("awaited"), http.Header{"Expect": {"100-continue"}})
		if err == nil && (r.StatusCode != 200 || body != "awaited") {
			err = fmt.Errorf("status %d, body %q", r.StatusCode, body)
		}
		return err
	}},
	{"interim response", func(c *cell) error {
		hints := 0
		ctx := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == 103 && h.Get("Link") == "</style.css>" {
				hints++
			}
			return nil
		}})
		request, _ := http.NewRequestWithContext(ctx, "GET", c.url("/hints"), nil)
		_, body, err := c.send(request)
		if err == nil && (body != "page" || hints != 1) {
			err = fmt.Errorf("body %q, %d hints", body, hints)
		}
		return err
	}},
	{"reset by the upstream", func(c *cell) error {
		_, body, err := c.do("GET", "/reset", nil, nil)
		if err == nil {
			return fmt.Errorf("a body that was cut looks complete: %q", body)
		}
		return nil
	}},
	{"reset by the client", func(c *cell) error {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		request, _ := http.NewRequestWithContext(ctx, "GET", c.url("/wait"), nil)
		var conn *abrupt
		transport := &http.Transport{Protocols: c.down.protocols(), TLSClientConfig: c.trust.Clone(), DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dialled, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			conn = &abrupt{TCPConn: dialled.(*net.TCPConn)}
			return conn, nil
		}}
		defer transport.CloseIdleConnections()
		r, err := transport.RoundTrip(request)
		if err != nil {
			return err
		}
		if !c.down.http2 { // which has a frame for it
			conn.mute.Store(true)
		}
		cancel()
		r.Body.Close()
		select {
		case <-c.upstream.gone:
			return nil
		case <-time.After(suite.Patience):
			return errors.New("the upstream is not told")
		}
	}},
	{"slow reader", func(c *cell) error {
		c.upstream.written.Store(0)
		request, _ := http.NewRequest("GET", c.url("/slow"), nil)
		r, err := c.client.Do(request)
		if err != nil {
			return err
		}
		defer r.Body.Close()
		if _, err := io.ReadFull(r.Body, make([]byte, 1000)); err != nil {
			return err
		}
		// Nobody reads: the upstream must come to a stand, with no more on the way than buffers hold.
		still, last := 0, int64(-1)
		for deadline := time.Now().Add(suite.Patience); still < 5; time.Sleep(20 * time.Millisecond) {
			now := c.upstream.written.Load()
			if now == last {
				still++
			} else {
				still, last = 0, now
			}
			if time.Now().After(deadline) {
				return errors.New("the upstream writes on and on")
			}
		}
		if last > slowBody*3/4 {
			return fmt.Errorf("%d bytes were taken from the upstream for a client that does not read", last)
		}
		n, err := io.Copy(io.Discard, r.Body)
		if err == nil && n+1000 != slowBody {
			err = fmt.Errorf("%d bytes came", n+1000)
		}
		return err
	}},
	{"upgrade", func(c *cell) error {
		if c.down.http2 {
			return c.extendedConnect()
		}
		return c.upgrade()
	}},
}

// abrupt is a client's connection that ends with RST and no word before: to HTTP/1 a FIN, or the close_notify of TLS, means that
// the client has said all, not that it has gone.
type abrupt struct {
	*net.TCPConn
	mute atomic.Bool
}

func (a *abrupt) Write(b []byte) (int, error) {
	if a.mute.Load() {
		return 0, net.ErrClosed
	}
	return a.TCPConn.Write(b)
}

func (a *abrupt) Close() error {
	_ = a.SetLinger(0)
	return a.TCPConn.Close()
}

func (c *cell) url(path string) string {
	if c.down.tls {
		return "https://" + c.address + path
	}
	return "http://" + c.address + path
}

func (c *cell) dial(ctx context.Context) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.address)
	if err == nil && c.down.tls {
		config := c.trust.Clone()
		config.ServerName = "127.0.0.1"
		if config.NextProtos = []string{"http/1.1"}; c.down.http2 {
			config.NextProtos = []string{"h2"}
		}
		conn = tls.Client(conn, config)
	}
	return conn, err
}

func (c *cell) do(method, path string, body io.Reader, h http.Header) (*http.Response, string, error) {
	request, err := http.NewRequest(method, c.url(path), body)
	if err != nil {
		return nil, "", err
	}
	if h != nil {
		request.Header = h
	}
	return c.send(request)
}

func (c *cell) send(request *http.Request) (*http.Response, string, error) {
	r, err := c.client.Do(request)
	if err != nil {
		return nil, "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	return r, string(body), err
}

func (c *cell) echo(body io.Reader) error {
	var sent bytes.Buffer
	r, got, err := c.do("POST", "/echo", io.TeeReader(body, &sent), nil)
	if err == nil && (r.StatusCode != 200 || got != sent.String()) {
		err = fmt.Errorf("status %d, %d bytes sent, %d came back", r.StatusCode, sent.Len(), len(got))
	}
	return err
}

func pattern(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i * 7 >> 3)
	}
	return p
}

// upgrade speaks WebSocket's handshake of HTTP/1.
func (c *cell) upgrade() error {
	conn, err := c.dial(context.Background())
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(suite.Patience))
	fmt.Fprintf(conn, "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	reader := bufio.NewReader(conn)
	r, err := http.ReadResponse(reader, nil)
	if err != nil {
		return err
	}
	if r.StatusCode != 101 || r.Header.Get("Upgrade") != "websocket" || r.Header.Get("Sec-WebSocket-Accept") == "" {
		return fmt.Errorf("status %d, %v", r.StatusCode, r.Header)
	}
	if c.up.http2 && r.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		return fmt.Errorf("the key of RFC 6455 is accepted with %q", r.Header.Get("Sec-WebSocket-Accept"))
	}
	return pingPong(conn, reader)
}

func pingPong(w io.Writer, r io.Reader) error {
	for i := range 3 {
		sent := fmt.Sprintf("message %d", i)
		if _, err := io.WriteString(w, sent); err != nil {
			return err
		}
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(r, got); err != nil {
			return err
		}
		if string(got) != sent {
			return fmt.Errorf("sent %q, %q came back", sent, got)
		}
	}
	return nil
}

// TestProtocolMatrix does the same with every pair of protocols, plain and with TLS, and prints one table.
func TestProtocolMatrix(t *testing.T) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("127.0.0.1")
	trust := &tls.Config{RootCAs: ca.Pool()}
	var config strings.Builder
	fmt.Fprintf(&config, `
runtime { workers = 1 }
stats { listen = "off" }
certificate "own" {
  cert_file = %q
  key_file  = %q
}
`, pair.CertFile, pair.KeyFile)
	var cells []*cell
	for _, up := range sides {
		upstream := &matrixUpstream{gone: make(chan struct{}, 1)}
		server := httptest.NewUnstartedServer(upstream)
		server.Config.Protocols = up.protocols()
		server.Config.ErrorLog = log.New(io.Discard, "", 0)
		protocol, secure := "http1", ""
		if up.http2 {
			protocol = "http2"
		}
		if up.tls {
			server.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS}}
			server.EnableHTTP2 = up.http2
			server.StartTLS()
			secure = fmt.Sprintf("tls { ca_file = %q }", ca.File)
		} else {
			server.Start()
		}
		t.Cleanup(server.Close)
		fmt.Fprintf(&config, `
cluster %[1]q {
  endpoints = [%[2]q]
  protocol  = %[3]q
  %[4]s
}
`, up.name, server.Listener.Addr(), protocol, secure)
		for _, tls := range []string{"", "tls { certificates = [certificate.own] }"} {
			fmt.Fprintf(&config, `
listener "%[1]s_%[2]v" {
  address = ["127.0.0.1:0"]
  %[3]s
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.%[1]s }
    }
  }
}
`, up.name, tls != "", tls)
		}
		for _, down := range sides {
			transport := &http.Transport{Protocols: down.protocols(), ExpectContinueTimeout: suite.Patience, TLSClientConfig: trust.Clone()}
			t.Cleanup(transport.CloseIdleConnections)
			cells = append(cells, &cell{down: down, up: up, upstream: upstream, trust: trust, client: &http.Client{Transport: transport, Timeout: suite.Patience}})
		}
	}
	s := suite.Start(t, config.String())
	table := &strings.Builder{}
	fmt.Fprintf(table, "%-28s", "client-upstream")
	for _, c := range cells {
		c.address = s.Address(fmt.Sprintf("%s_%v", c.up.name, c.down.tls))
		fmt.Fprintf(table, " %-7s", c.down.name+"-"+c.up.name)
	}
	for _, scenario := range scenarios {
		fmt.Fprintf(table, "\n%-28s", scenario.name)
		for _, c := range cells {
			verdict := "ok"
			if err := scenario.run(c); err != nil {
				verdict = "FAIL"
				t.Errorf("%s, client %s, upstream %s: %v", scenario.name, c.down.name, c.up.name, err)
			}
			fmt.Fprintf(table, " %-7s", verdict)
		}
	}
	t.Log("\n" + table.String())
}
