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

func TestCertificateBySNI(t *testing.T) {
	a := newAuthority(t, "test")
	s := a.setup("default.test")
	for _, name := range []string{"shop.test", "*.shop.test"} {
		chain, key := a.issue(name)
		s.settings.Certificates = append(s.settings.Certificates, name)
		s.secrets.Certificates = append(s.secrets.Certificates, &configv1.CertificateSecret{Name: name, ChainPem: chain, KeyPem: key})
	}
	server := s.server(t, "web")
	b := newBench(t)
	for sni, want := range map[string]string{
		"shop.test": "shop.test", "SHOP.test": "shop.test", "www.shop.test": "*.shop.test", "a.b.shop.test": "default.test", "other.test": "default.test", "": "default.test",
	} {
		h := newEcho()
		c := tls.Client(b.accept(server.Config(), h, time.Minute), &tls.Config{ServerName: sni, InsecureSkipVerify: true})
		if err := c.Handshake(); err != nil {
			t.Fatal(err)
		}
		if got := c.ConnectionState().PeerCertificates[0].Subject.CommonName; got != want {
			t.Errorf("%q got the certificate of %q and not of %q", sni, got, want)
		}
		c.Close()
	}
}

// names is a noter that tells which certificate the server has shown.
type names struct {
	*echo
	shown chan string
}

func (n *names) Note(_ *tls.ConnectionState, own *x509.Certificate) []byte {
	return []byte(own.Subject.CommonName)
}

func (n *names) OnConnected(c *conn.Conn) {
	n.shown <- string(c.Transport().(*tlstransport.Transport).PeerNote(n))
}

// TestOwnCertificate holds that a connection knows the certificate that it stands for, on resumption too, which shows none.
func TestOwnCertificate(t *testing.T) {
	a := newAuthority(t, "test")
	one, several := a.setup("default.test"), a.setup("default.test")
	chain, key := a.issue("shop.test")
	several.settings.Certificates = append(several.settings.Certificates, "shop")
	several.secrets.Certificates = append(several.secrets.Certificates, &configv1.CertificateSecret{Name: "shop", ChainPem: chain, KeyPem: key})
	b := newBench(t)
	for _, x := range []struct {
		setup *setup
		want  string
	}{{one, "default.test"}, {several, "shop.test"}} {
		server := x.setup.server(t, "web")
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			sessions := tls.NewLRUClientSessionCache(1)
			for _, resumed := range []bool{false, true} {
				n := &names{newEcho(), make(chan string, 1)}
				c := tls.Client(b.acceptFor(server.Config(), n, time.Minute), &tls.Config{RootCAs: a.pool(), ServerName: x.want, ClientSessionCache: sessions, MaxVersion: version})
				if _, err := c.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
				if _, err := c.Read(make([]byte, 1)); err != nil { // the ticket comes before it
					t.Fatal(err)
				}
				if c.ConnectionState().DidResume != resumed {
					t.Errorf("%s: resumed %t", tls.VersionName(version), !resumed)
				}
				if got := await(t, n.shown); got != x.want {
					t.Errorf("%s, resumed %t: %q and not %q", tls.VersionName(version), resumed, got, x.want)
				}
				c.Close()
			}
		}
	}
}

// connect makes a handshake and one round trip, so that session tickets arrive.
func (b *bench) connect(server *tlstransport.Server, config *tls.Config) (tls.ConnectionState, error) {
	h := newEcho()
	raw := b.accept(server.Config(), h, time.Minute)
	defer raw.Close()
	c := tls.Client(raw, config)
	if _, err := c.Write([]byte("x")); err != nil {
		return tls.ConnectionState{}, err
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return tls.ConnectionState{}, err
	}
	return c.ConnectionState(), nil
}

func TestClientCertificates(t *testing.T) {
	servers, clients, strangers := newAuthority(t, "servers"), newAuthority(t, "clients"), newAuthority(t, "strangers")
	known, revoked, foreign := clients.pair("app.mesh", "app.test"), clients.pair("app.mesh"), strangers.pair("app.mesh")
	misnamed := clients.pair("other.mesh")
	for _, x := range []struct {
		name    string
		cert    *tls.Certificate
		require bool
		ok      bool
		cell    int
	}{
		{"required, known", &known, true, true, counters.SSLHandshake},
		{"required, none", nil, true, false, counters.SSLFailVerifyNoCert},
		{"optional, none", nil, false, true, counters.SSLNoCertificate},
		{"optional, foreign", &foreign, false, false, counters.SSLFailVerifyError},
		{"required, revoked", &revoked, true, false, counters.SSLFailVerifyRevoked},
		{"required, other name", &misnamed, true, false, counters.SSLFailVerifySAN},
	} {
		s := servers.setup("shop.test")
		s.settings.ClientCaFile, s.settings.CrlFile, s.settings.RequireClientCert, s.settings.VerifySan = "ca", "crl", x.require, []string{"app.mesh"}
		s.secrets.Files = []*configv1.FileSecret{{Name: "ca", Content: clients.pem}, {Name: "crl", Content: clients.revoke(3)}}
		b := newBench(t)
		config := &tls.Config{RootCAs: servers.pool(), ServerName: "shop.test"}
		if x.cert != nil { // whatever the server says of its authorities
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return x.cert, nil }
		}
		_, err := b.connect(s.server(t, "web"), config)
		if (err == nil) != x.ok {
			t.Errorf("%s: %v", x.name, err)
		}
		if b.cell(x.cell) != 1 {
			t.Errorf("%s: not counted", x.name)
		}
	}
}

// TestResumption holds what a ticket opens: the same chain, also of another process with the same keys; not another policy, and
// not when what is verified of a client has changed meanwhile.
func TestResumption(t *testing.T) {
	servers, clients, others := newAuthority(t, "servers"), newAuthority(t, "clients"), newAuthority(t, "others")
	pair := clients.pair("app.mesh")
	make := func() *setup {
		s := servers.setup("shop.test")
		s.settings.ClientCaFile, s.settings.RequireClientCert = "ca", true
		s.secrets.Files = []*configv1.FileSecret{{Name: "ca", Content: clients.pem}}
		return s
	}
	first := make()
	for _, x := range []struct {
		name    string
		listen  string
		change  func(s *setup)
		resumed bool
		fails   bool
	}{
		{"the same", "web", func(*setup) {}, true, false},
		{"a newer ticket key", "web", func(s *setup) { s.secrets.TicketKeys = [][]byte{bytes.Repeat([]byte{2}, 32), s.secrets.TicketKeys[0]} }, true, false},
		{"the key has gone", "web", func(s *setup) { s.secrets.TicketKeys = [][]byte{bytes.Repeat([]byte{2}, 32)} }, false, false},
		{"another listener", "admin", func(*setup) {}, false, false},
		{"another authority beside", "web", func(s *setup) { s.secrets.Files[0].Content = append(bytes.Clone(clients.pem), others.pem...) }, false, false},
		{"certificates are optional", "web", func(s *setup) { s.settings.RequireClientCert = false }, false, false},
		{"revoked meanwhile", "web", func(s *setup) {
			s.settings.CrlFile = "crl"
			s.secrets.Files = append(s.secrets.Files, &configv1.FileSecret{Name: "crl", Content: clients.revoke(2)})
		}, true, true},
	} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			b := newBench(t)
			config := &tls.Config{
				RootCAs: servers.pool(), ServerName: "shop.test", Certificates: []tls.Certificate{pair}, ClientSessionCache: tls.NewLRUClientSessionCache(1), MaxVersion: version,
			}
			if state, err := b.connect(first.server(t, "web"), config); err != nil || state.DidResume {
				t.Fatalf("first connection: %v", err)
			}
			then := make()
			then.secrets.Certificates = first.secrets.Certificates
			x.change(then)
			state, err := b.connect(then.server(t, x.listen), config)
			if (err != nil) != x.fails || err == nil && state.DidResume != x.resumed {
				t.Errorf("%s, %s: resumed %t, %v", x.name, tls.VersionName(version), state.DidResume, err)
			}
			if x.fails && b.cell(counters.SSLFailVerifyRevoked) != 1 {
				t.Errorf("%s: refused for another reason", x.name)
			}
			if !x.fails && (b.cell(counters.SSLSessionReused) == 1) != x.resumed {
				t.Errorf("%s: resumption is miscounted", x.name)
			}
		}
	}
}
