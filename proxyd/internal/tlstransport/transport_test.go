package tlstransport_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/poller/epoll"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// authority signs certificates of a test.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	pem  []byte
	next int64
}

func newAuthority(t testing.TB, name string) *authority {
	a := &authority{t: t, next: 1}
	a.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.cert, _ = x509.ParseCertificate(der)
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

func (a *authority) issue(names ...string) (chain, key []byte) {
	a.t.Helper()
	a.next++
	private, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.next), Subject: pkix.Name{CommonName: names[0]}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &private.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	raw, _ := x509.MarshalPKCS8PrivateKey(private)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

func (a *authority) pair(names ...string) tls.Certificate {
	chain, key := a.issue(names...)
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pair
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func (a *authority) revoke(serials ...int64) []byte {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(time.Hour)}
	for _, serial := range serials {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: big.NewInt(serial), RevocationTime: time.Now()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.cert, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
}

// bench is a worker that a test turns by hand.
type bench struct {
	t      testing.TB
	worker *worker.Worker
	side   *tlstransport.Side
	cells  *counters.SSL
	done   sync.WaitGroup
}

func newBench(t testing.TB) *bench {
	p, err := epoll.New()
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(0, p)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t: t, worker: w, cells: new(counters.SSL)}
	b.on(nil)
	b.side = tlstransport.NewSide(w)
	b.done.Add(1)
	go func() {
		defer b.done.Done()
		w.Run()
		p.Destroy()
	}()
	t.Cleanup(func() {
		w.Post(w.Stop)
		b.done.Wait()
	})
	return b
}

func (b *bench) on(f func()) {
	if f == nil {
		return
	}
	done := make(chan struct{})
	b.worker.Post(func() {
		f()
		close(done)
	})
	<-done
}

// echo is a handler that sends everything back.
type echo struct {
	connected chan string
	closed    chan conn.Reason
}

func newEcho() *echo {
	return &echo{connected: make(chan string, 1), closed: make(chan conn.Reason, 1)}
}

func (e *echo) OnConnected(c *conn.Conn) { e.connected <- c.Protocol() }
func (e *echo) OnData(c *conn.Conn, b []byte) int {
	c.Write(b)
	return len(b)
}
func (e *echo) OnEOF(c *conn.Conn)                    { c.CloseAfterFlush(time.Second) }
func (e *echo) OnAboveHigh(c *conn.Conn)              { c.PauseRead() }
func (e *echo) OnBelowLow(c *conn.Conn)               { c.ResumeRead() }
func (e *echo) OnClose(_ *conn.Conn, why conn.Reason) { e.closed <- why }

// accept gives the worker one end of a socket pair with server TLS on it, and answers the other end.
func (b *bench) accept(config *tls.Config, h *echo, limit time.Duration) net.Conn {
	b.t.Helper()
	return b.acceptFor(config, h, limit)
}

func (b *bench) acceptFor(config *tls.Config, h conn.Handler, limit time.Duration) net.Conn {
	b.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.t.Fatal(err)
	}
	defer l.Close()
	far, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.t.Fatal(err)
	}
	near, err := l.Accept()
	if err != nil {
		b.t.Fatal(err)
	}
	raw, _ := near.(*net.TCPConn).SyscallConn()
	var fd int
	raw.Control(func(f uintptr) { fd, err = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 0) })
	if err != nil {
		b.t.Fatal(err)
	}
	near.Close()
	unix.SetNonblock(fd, true)
	b.on(func() {
		c, errno := conn.Accept(b.worker, int32(fd), netip.AddrPort{}, 1, h, &conn.Options{})
		if errno != 0 {
			b.t.Error(errno)
			return
		}
		c.Secure(b.side.Server(config, b.cells), limit)
	})
	b.t.Cleanup(func() { far.Close() })
	far.SetDeadline(time.Now().Add(20 * time.Second))
	return far
}

func (b *bench) cell(i int) (n uint64) {
	b.on(func() { n = b.cells[i] })
	return n
}

func await[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing happened for 20 s")
		panic("unreachable")
	}
}

// setup is a server's settings and secrets, with what a test changes.
type setup struct {
	settings *configv1.Tls
	secrets  *configv1.Secrets
}

func (a *authority) setup(names ...string) *setup {
	chain, key := a.issue(names...)
	return &setup{
		settings: &configv1.Tls{Certificates: []string{"a"}, Alpn: []string{"h2", "http/1.1"}, SessionTickets: true},
		secrets: &configv1.Secrets{
			Certificates: []*configv1.CertificateSecret{{Name: "a", ChainPem: chain, KeyPem: key}},
			TicketKeys:   [][]byte{bytes.Repeat([]byte{1}, 32)},
		},
	}
}

func (s *setup) server(t testing.TB, name string) *tlstransport.Server {
	t.Helper()
	secrets, err := tlstransport.ParseSecrets(s.secrets)
	if err != nil {
		t.Fatal(err)
	}
	server, err := tlstransport.NewServer(name, s.settings, nil, secrets)
	if err != nil {
		t.Fatal(err)
	}
	return server
}

// dribble sends one byte at a time.
type dribble struct{ net.Conn }

func (d dribble) Write(b []byte) (int, error) {
	for i := range b {
		if _, err := d.Conn.Write(b[i : i+1]); err != nil {
			return i, err
		}
	}
	return len(b), nil
}

func TestServer(t *testing.T) {
	a := newAuthority(t, "test")
	server := a.setup("shop.test").server(t, "web")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, slow := range []bool{false, true} {
			b, h := newBench(t), newEcho()
			raw := b.accept(server.Config(), h, time.Minute)
			if slow {
				raw = dribble{raw}
			}
			c := tls.Client(raw, &tls.Config{RootCAs: a.pool(), ServerName: "shop.test", NextProtos: []string{"http/1.1"}, MaxVersion: version})
			if _, err := c.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
			if protocol := await(t, h.connected); protocol != "http/1.1" {
				t.Errorf("protocol %q", protocol)
			}
			got := make([]byte, 5)
			if _, err := io.ReadFull(c, got); err != nil || string(got) != "hello" {
				t.Fatalf("%q %v", got, err)
			}
			body := bytes.Repeat([]byte("0123456789abcdef"), 1<<14) // 256 KiB
			if slow {
				body = body[:1<<10]
			}
			go func() {
				c.Write(body)
				c.CloseWrite()
			}()
			back, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(back, body) {
				t.Errorf("%d bytes came back of %d: %v", len(back), len(body), err)
			}
			c.Close()
			if why := await(t, h.closed); why != conn.LocalClose {
				t.Errorf("closed for reason %d", why)
			}
			if n := b.cell(counters.SSLHandshake); n != 1 {
				t.Errorf("%d handshakes counted", n)
			}
		}
	}
}

// limited closes the connection when so many bytes were written.
type limited struct {
	net.Conn
	left *int
}

var errCut = errors.New("cut")

func (l limited) Write(b []byte) (int, error) {
	if len(b) > *l.left {
		n, _ := l.Conn.Write(b[:*l.left])
		l.Conn.Close()
		return n, errCut
	}
	*l.left -= len(b)
	return l.Conn.Write(b)
}

// TestCutAnywhere ends the connection after every number of bytes of the client's handshake: no coroutine stays.
func TestCutAnywhere(t *testing.T) {
	a := newAuthority(t, "test")
	server := a.setup("shop.test").server(t, "web")
	b := newBench(t)
	before := runtime.NumGoroutine()
	for cut := 0; ; cut++ {
		h, left := newEcho(), cut
		raw := b.accept(server.Config(), h, time.Minute)
		c := tls.Client(limited{raw, &left}, &tls.Config{RootCAs: a.pool(), ServerName: "shop.test", CurvePreferences: []tls.CurveID{tls.X25519}})
		err := c.Handshake()
		raw.Close()
		await(t, h.closed)
		if err == nil {
			break
		}
		if !errors.Is(err, errCut) {
			t.Fatalf("cut after %d bytes: %v", cut, err)
		}
	}
	var active int
	b.on(func() { active = b.side.Handshakes() })
	if active != 0 {
		t.Errorf("%d handshakes are counted as under way", active)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}

func TestHandshakeTimeout(t *testing.T) {
	a := newAuthority(t, "test")
	b, h := newBench(t), newEcho()
	b.accept(a.setup("shop.test").server(t, "web").Config(), h, 20*time.Millisecond)
	if why := await(t, h.closed); why != conn.ConnectTimeout {
		t.Errorf("closed for reason %d", why)
	}
	if b.cell(counters.SSLHandshakeTimeout) != 1 {
		t.Error("the time-out is not counted")
	}
}

// TestNoTLS sends HTTP without TLS: the answer is one that such a client understands.
func TestNoTLS(t *testing.T) {
	a := newAuthority(t, "test")
	b, h := newBench(t), newEcho()
	c := b.accept(a.setup("shop.test").server(t, "web").Config(), h, time.Minute)
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	answer, _ := io.ReadAll(c)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.0 400 ")) {
		t.Errorf("the answer is %q", answer)
	}
	if why := await(t, h.closed); why != conn.ConnectFailure {
		t.Errorf("closed for reason %d", why)
	}
	if b.cell(counters.SSLConnectionError) != 1 {
		t.Error("the failure is not counted")
	}
}

// TestTruncated ends a connection without close_notify: that is a reset and not the end of the data.
func TestTruncated(t *testing.T) {
	a := newAuthority(t, "test")
	b, h := newBench(t), newEcho()
	raw := b.accept(a.setup("shop.test").server(t, "web").Config(), h, time.Minute)
	c := tls.Client(raw, &tls.Config{RootCAs: a.pool(), ServerName: "shop.test"})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	await(t, h.connected)
	raw.Close()
	if why := await(t, h.closed); why != conn.RemoteReset {
		t.Errorf("closed for reason %d", why)
	}
}

// TestForged changes a byte of a record on its way.
func TestForged(t *testing.T) {
	a := newAuthority(t, "test")
	b, h := newBench(t), newEcho()
	raw := b.accept(a.setup("shop.test").server(t, "web").Config(), h, time.Minute)
	f := &forger{Conn: raw}
	c := tls.Client(f, &tls.Config{RootCAs: a.pool(), ServerName: "shop.test"})
	if err := c.Handshake(); err != nil {
		t.Fatal(err)
	}
	f.on = true
	c.Write([]byte("pay 1 to A"))
	if why := await(t, h.closed); why != conn.SecurityFailure {
		t.Errorf("closed for reason %d", why)
	}
}

type forger struct {
	net.Conn
	on bool
}

func (f *forger) Write(b []byte) (int, error) {
	if f.on {
		b = bytes.Clone(b)
		b[len(b)-1] ^= 1
	}
	return f.Conn.Write(b)
}
