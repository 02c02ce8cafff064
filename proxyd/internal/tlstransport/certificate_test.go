package tlstransport_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/tlstransport"
	configv1 "retinue.dev/services/api/config/v1"
)

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
