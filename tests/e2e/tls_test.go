package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// tlsConfig is a listener "edge" with TLS, to which a test adds what it needs.
func tlsConfig(pair *certs.Pair, tlsMore, cluster string) string {
	return fmt.Sprintf(`
runtime { workers = 2 }
certificate "shop" {
  cert_file = %q
  key_file  = %q
}
listener "edge" {
  address = ["127.0.0.1:0"]
  tls {
    certificates = [certificate.shop]
    %s
  }
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" {
  %s
}
stats { listen = "off" }
`, pair.CertFile, pair.KeyFile, tlsMore, cluster)
}

// tlsClient is an HTTP client that trusts the authority and asks for shop.test.
func tlsClient(t testing.TB, config *tls.Config, h2 bool) *http.Client {
	transport := &http.Transport{TLSClientConfig: config, MaxIdleConnsPerHost: 64, ForceAttemptHTTP2: h2}
	if !h2 {
		transport.Protocols = new(http.Protocols)
		transport.Protocols.SetHTTP1(true)
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: suite.Patience}
}

func TestTLSTermination(t *testing.T) {
	ca := certs.New(t, "servers")
	s := suite.Start(t, tlsConfig(ca.Issue("shop.test"), "", fmt.Sprintf("endpoints = [%q]", application(t))))
	address := s.Address("edge")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, h2 := range []bool{false, true} {
			c := tlsClient(t, &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test", MinVersion: version, MaxVersion: version}, h2)
			body := bytes.Repeat([]byte("0123456789"), 30_000)
			r, err := c.Post("https://"+address+"/echo", "text/plain", bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r.Body)
			r.Body.Close()
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%s, h2 %t: %d bytes came back of %d: %v", tls.VersionName(version), h2, len(got), len(body), err)
			}
			if r.TLS.Version != version || (r.ProtoMajor == 2) != h2 {
				t.Errorf("the connection is %s, HTTP/%d", tls.VersionName(r.TLS.Version), r.ProtoMajor)
			}
			if proto := strings.Fields(r.Header.Get("X-Forwarded")); len(proto) != 2 || proto[1] != "https" {
				t.Errorf("the upstream was told %q", proto)
			}
			big, err := c.Get("https://" + address + "/?size=3000000")
			if err != nil {
				t.Fatal(err)
			}
			n, err := io.Copy(io.Discard, big.Body)
			big.Body.Close()
			if n != 3_000_000 || err != nil {
				t.Errorf("%d bytes of 3000000: %v", n, err)
			}
		}
	}
	out, err := exec.Command("curl", "-sS", "--cacert", ca.File, "--connect-to", "shop.test:443:"+address, "https://shop.test/curl", "-d", "hello").CombinedOutput()
	if err != nil || string(out) != "hello" {
		t.Errorf("curl: %q %v", out, err)
	}
	out, err = exec.Command("curl", "-sS", "http://"+address+"/").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("HTTPS")) {
		t.Errorf("plain HTTP to the TLS port: %q %v", out, err)
	}
	cmd := exec.Command("openssl", "s_client", "-connect", address, "-servername", "shop.test", "-CAfile", ca.File, "-verify_return_error", "-quiet", "-no_ign_eof")
	cmd.Stdin = strings.NewReader("GET /openssl HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("openssl: %s %v", out, err)
	}
	if n := s.Stat("retinue_listener_ssl_handshake", "listener=edge"); n < 6 {
		t.Errorf("%v handshakes are counted", n)
	}
}

// secureApplication is application behind TLS.
func secureApplication(t testing.TB, pair *certs.Pair, config *tls.Config, sessions *int) string {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.TLS.DidResume {
			*sessions++
		}
		w.Header().Set("X-SNI", r.TLS.ServerName)
		if len(r.TLS.PeerCertificates) > 0 {
			w.Header().Set("X-Client", r.TLS.PeerCertificates[0].Subject.CommonName)
		}
		io.Copy(w, r.Body)
	}))
	config.Certificates = []tls.Certificate{pair.TLS}
	server.TLS = config
	server.StartTLS()
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "https://")
}

func TestTLSToUpstream(t *testing.T) {
	ca, clients := certs.New(t, "servers"), certs.New(t, "clients")
	sessions := 0
	upstream := secureApplication(t, ca.Issue("app.internal", "127.0.0.1"), &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients.Pool()}, &sessions)
	own := clients.Issue("proxy.mesh")
	plain := func(more string) string {
		return fmt.Sprintf(`
runtime { workers = 1 }
certificate "own" {
  cert_file = %q
  key_file  = %q
}
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
  endpoints                   = [%q]
  max_requests_per_connection = 1
  tls {
    ca_file     = %q
    certificate = certificate.own
    %s
  }
}
stats { listen = "off" }
`, own.CertFile, own.KeyFile, upstream, ca.File, more)
	}
	s := suite.Start(t, plain(`sni = "app.internal"`))
	c := client(t)
	get := func(want int) *http.Response {
		t.Helper()
		r, err := c.Post("http://"+s.Address("web")+"/", "text/plain", strings.NewReader("hello"))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if r.StatusCode != want || want == 200 && (string(body) != "hello" || err != nil) {
			t.Fatalf("%d %q %v", r.StatusCode, body, err)
		}
		return r
	}
	r := get(200)
	if r.Header.Get("X-SNI") != "app.internal" || r.Header.Get("X-Client") != "proxy.mesh" {
		t.Errorf("the upstream saw %v", r.Header)
	}
	get(200)
	if sessions == 0 {
		t.Error("the session was not resumed")
	}
	reload := func(more string) {
		t.Helper()
		s.Write(plain(more))
		if out, status := s.Retinue("reload"); status != 0 {
			t.Fatalf("reload: %s", out)
		}
	}
	reload("")
	if r := get(200); r.Header.Get("X-SNI") != "" {
		t.Errorf("the upstream was asked for %q", r.Header.Get("X-SNI"))
	}
	reload(`sni = "other.internal"`)
	get(503)
	reload(`
    sni        = "other.internal"
    verify_san = ["*.internal"]`)
	get(200)
	reload(`verify_san = ["app.mesh"]`)
	get(503)
	if n := s.Stat("retinue_cluster_ssl_fail_verify_san", "cluster=app"); n == 0 {
		t.Error("a server with another name is not counted")
	}
}

func TestMutualTLS(t *testing.T) {
	ca, clients := certs.New(t, "servers"), certs.New(t, "clients")
	known, revoked := clients.Issue("app.mesh"), clients.Issue("old.mesh")
	crl := clients.Revoke(revoked.Serial)
	s := suite.Start(t, tlsConfig(ca.Issue("shop.test"), fmt.Sprintf("client_ca = %q\n    crl_file = %q\n    verify_san = [\"*.mesh\"]", clients.File, crl), fmt.Sprintf("endpoints = [%q]", application(t))))
	try := func(pair *certs.Pair) error {
		config := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test"}
		if pair != nil {
			config.Certificates = []tls.Certificate{pair.TLS}
		}
		r, err := tlsClient(t, config, false).Get("https://" + s.Address("edge") + "/")
		if err == nil {
			r.Body.Close()
		}
		return err
	}
	if err := try(known); err != nil {
		t.Errorf("a known client: %v", err)
	}
	if err := try(nil); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("a client without a certificate: %v", err)
	}
	if err := try(revoked); err == nil {
		t.Error("a revoked client was served")
	}
	for _, name := range []string{"fail_verify_no_cert", "fail_verify_revoked"} {
		if n := s.Stat("retinue_listener_ssl_"+name, "listener=edge"); n != 1 {
			t.Errorf("%s is %v", name, n)
		}
	}
}

// serial is that of the certificate that the listener shows.
func serial(t testing.TB, s *suite.Suite) int64 {
	t.Helper()
	c, err := tls.Dial("tcp", s.Address("edge"), &tls.Config{InsecureSkipVerify: true, ServerName: "shop.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

// TestCertificateRenewal renews a certificate under a connection, without and with a reload, and with a key that does not fit.
func TestCertificateRenewal(t *testing.T) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("shop.test")
	s := suite.Start(t, tlsConfig(pair, "", fmt.Sprintf("endpoints = [%q]", application(t))))
	before, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	c, dialled := tlsClient(t, &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test"}, false), 0
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled++
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	use := func() {
		t.Helper()
		r, err := c.Get("https://" + s.Address("edge") + "/")
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, r.Body)
		r.Body.Close()
	}
	use()
	next := ca.Issue("shop.test")
	pair.Replace(t, next)
	s.Eventually("the new certificate is shown", func() error {
		if n := serial(t, s); n != next.Serial {
			return fmt.Errorf("it is number %d", n)
		}
		return nil
	})
	// A key that does not fit changes nothing, whoever notices.
	stray := ca.Issue("shop.test")
	if err := exec.Command("mv", stray.KeyFile, pair.KeyFile).Run(); err != nil {
		t.Fatal(err)
	}
	s.Eventually("the broken pair is reported", func() error {
		if !strings.Contains(s.Log(), "E0505") {
			return fmt.Errorf("nothing is logged")
		}
		return nil
	})
	if out, status := s.Retinue("reload"); status == 0 || !strings.Contains(out, "E0505") || !strings.Contains(out, "does not match") {
		t.Errorf("reload with a broken pair: %d %s", status, out)
	}
	if n := serial(t, s); n != next.Serial {
		t.Errorf("certificate %d is shown and not %d", n, next.Serial)
	}
	third := ca.Issue("shop.test")
	pair.Replace(t, third)
	if out, status := s.Retinue("reload"); status != 0 {
		t.Errorf("reload: %s", out)
	}
	s.Eventually("the third certificate is shown", func() error {
		if n := serial(t, s); n != third.Serial {
			return fmt.Errorf("it is number %d", n)
		}
		return nil
	})
	use()
	if dialled != 1 {
		t.Errorf("the client had to connect %d times", dialled)
	}
	after, err := s.Status()
	if err != nil || after.Configd.SnapshotID != before.Configd.SnapshotID {
		t.Errorf("the snapshot was %s and is %s (%v)", before.Configd.SnapshotID, after.Configd.SnapshotID, err)
	}
	if want := time.Now().Add(11 * time.Hour).Unix(); s.Stat("retinue_certificate_expiration_unix_time_seconds", "certificate=shop") < float64(want) {
		t.Error("the expiry is not told")
	}
	if out, _ := s.Retinue("status", "--json"); strings.Contains(out, "PRIVATE KEY") || strings.Contains(s.Log(), "PRIVATE KEY") {
		t.Error("a key was shown")
	}
}

// TestFilterChains routes connections of one listener by the name that they ask for: one is carried through to a server that has
// the key, the others are terminated here, and what nobody takes is closed.
func TestFilterChains(t *testing.T) {
	ca := certs.New(t, "servers")
	sessions := 0
	behind := secureApplication(t, ca.Issue("db.test"), &tls.Config{}, &sessions)
	pair := ca.Issue("shop.test", "api.test")
	s := suite.Start(t, fmt.Sprintf(`
certificate "shop" {
  cert_file = %q
  key_file  = %q
}
listener "edge" {
  address = ["127.0.0.1:0"]
  filter_chain "through" {
    match { sni = ["*.test"] }
    tcp { cluster = cluster.behind }
  }
  filter_chain "api" {
    match {
      sni  = ["api.test", "shop.test"]
      alpn = ["http/1.1"]
    }
    tls { certificates = [certificate.shop] }
    http {
      virtual_host "all" {
        domains = ["*"]
        route "/*" {
          respond {
            status = 200
            body   = "here"
          }
        }
      }
    }
  }
}
cluster "behind" { endpoints = [%q] }
stats { listen = "off" }
`, pair.CertFile, pair.KeyFile, behind))
	get := func(name string) (*http.Response, string, error) {
		r, err := tlsClient(t, &tls.Config{RootCAs: ca.Pool(), ServerName: name, NextProtos: []string{"http/1.1"}}, false).Post("https://"+s.Address("edge")+"/", "text/plain", strings.NewReader("through"))
		if err != nil {
			return nil, "", err
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		return r, string(body), err
	}
	if r, body, err := get("db.test"); err != nil || body != "through" || r.Header.Get("X-SNI") != "db.test" {
		t.Errorf("passthrough: %q %v", body, err)
	}
	if _, body, err := get("api.test"); err != nil || body != "here" {
		t.Errorf("termination: %q %v", body, err)
	}
	if _, _, err := get("shop.example.com"); err == nil {
		t.Error("a name that no chain takes was served")
	}
	if n := s.Stat("retinue_listener_no_filter_chain_match", "listener=edge"); n != 1 {
		t.Errorf("%v connections without a chain are counted", n)
	}
}

// TestProxyProtocol tells the application and a further server whose connection it is, through TLS.
func TestProxyProtocol(t *testing.T) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("shop.test")
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { raw.Close() })
	s := suite.Start(t, fmt.Sprintf(`
certificate "shop" {
  cert_file = %q
  key_file  = %q
}
listener "edge" {
  address = ["127.0.0.1:0"]
  proxy_protocol { trusted = ["127.0.0.0/8"] }
  tls { certificates = [certificate.shop] }
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
listener "raw" {
  address = ["127.0.0.1:0"]
  proxy_protocol {
    trusted  = ["127.0.0.1"]
    optional = true
  }
  tcp { cluster = cluster.raw }
}
listener "strangers" {
  address = ["127.0.0.1:0"]
  proxy_protocol { trusted = ["192.0.2.0/24"] }
  tcp { cluster = cluster.raw }
}
cluster "app" { endpoints = [%q] }
cluster "raw" {
  endpoints      = [%q]
  proxy_protocol = "v1"
}
stats { listen = "off" }
`, pair.CertFile, pair.KeyFile, application(t), raw.Addr().String()))

	c := tlsClient(t, &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test"}, false)
	c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			_, err = io.WriteString(conn, "PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n")
		}
		return conn, err
	}
	r, err := c.Get("https://" + s.Address("edge") + "/")
	if err != nil {
		t.Fatal(err)
	}
	r.Body.Close()
	if got := r.Header.Get("X-Forwarded"); got != "203.0.113.9 https" {
		t.Errorf("the application was told %q", got)
	}

	forwarded := func(hello string) string {
		t.Helper()
		conn, err := net.Dial("tcp", s.Address("raw"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		io.WriteString(conn, hello)
		up, err := raw.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer up.Close()
		up.SetDeadline(time.Now().Add(suite.Patience))
		conn.(*net.TCPConn).CloseWrite()
		got, err := io.ReadAll(up)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	if got := forwarded("PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\nhello"); got != "PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\nhello" {
		t.Errorf("the server received %q", got)
	}
	if got := forwarded("hello"); !strings.HasPrefix(got, "PROXY TCP4 127.0.0.1 127.0.0.1 ") || !strings.HasSuffix(got, "\r\nhello") {
		t.Errorf("without a header the server received %q", got)
	}

	stranger, err := net.Dial("tcp", s.Address("strangers"))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	stranger.SetDeadline(time.Now().Add(suite.Patience))
	io.WriteString(stranger, "PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\nhello")
	if n, err := stranger.Read(make([]byte, 1)); err == nil {
		t.Errorf("a stranger was served %d bytes", n)
	}
	s.AwaitStat(1, "retinue_listener_proxy_protocol_refused", "listener=strangers")
}

// TestForwardedClientCert holds what an application hears of clients' certificates, and that nobody else can say it.
func TestForwardedClientCert(t *testing.T) {
	ca, clients := certs.New(t, "servers"), certs.New(t, "clients")
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, strings.Join(r.Header.Values("X-Forwarded-Client-Cert"), "|"))
	}))
	t.Cleanup(echo.Close)
	own := clients.Issue("app.mesh", "spiffe://mesh/app", "urn:a,b")
	edge := ca.Issue("shop.test", "spiffe://mesh/edge", "spiffe://mesh/other")
	config := func(mode, details string) string {
		c := tlsConfig(edge, fmt.Sprintf("client_ca = %q\n    require_client_cert = false", clients.File), fmt.Sprintf("endpoints = [%q]", strings.TrimPrefix(echo.URL, "http://")))
		return strings.Replace(c, "  http {", fmt.Sprintf("  http {\n    forward_client_cert = %q\n    client_cert_details = [%s]", mode, details), 1)
	}
	escaped := strings.ReplaceAll(url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.TLS.Certificate[0]}))), "+", "%20")
	begin := fmt.Sprintf("By=spiffe://mesh/edge;By=spiffe://mesh/other;Hash=%x", sha256.Sum256(own.TLS.Certificate[0]))
	const some, all = `"uri", "dns"`, `"cert", "chain", "subject", "uri", "dns"`
	const uris = `;URI=spiffe://mesh/app;URI="urn:a,b";DNS=app.mesh`
	s := suite.Start(t, config("sanitize", ""))
	for _, x := range []struct{ mode, details, with, without string }{
		{"sanitize", some, "", ""},
		{"forward_only", some, "Hash=forged", ""},
		{"append_forward", some, "Hash=forged," + begin + uris, ""},
		{"sanitize_set", "", begin, ""},
		{"sanitize_set", some, begin + uris, ""},
		{"sanitize_set", all, begin + `;Cert="` + escaped + `";Chain="` + escaped + `";Subject="CN=app.mesh"` + uris, ""},
		{"always_forward_only", some, "Hash=forged", "Hash=forged"},
	} {
		s.Write(config(x.mode, x.details))
		if out, code := s.Retinue("reload"); code != 0 {
			t.Fatalf("reload: %s", out)
		}
		for _, own := range []*certs.Pair{own, nil} {
			tlsOf := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test", ClientSessionCache: tls.NewLRUClientSessionCache(1)}
			want := x.without
			if own != nil {
				tlsOf.Certificates, want = []tls.Certificate{own.TLS}, x.with
			}
			for i := range 3 { // HTTP/1, HTTP/2, HTTP/2 on a resumed session
				request, _ := http.NewRequest("GET", "https://"+s.Address("edge")+"/", nil)
				request.Header.Set("X-Forwarded-Client-Cert", "Hash=forged")
				r, err := tlsClient(t, tlsOf, i > 0).Do(request)
				if err != nil {
					t.Fatal(err)
				}
				got, _ := io.ReadAll(r.Body)
				r.Body.Close()
				if string(got) != want || r.TLS.DidResume != (i > 0) {
					t.Errorf("%s [%s], certificate %t, connection %d, resumed %t: %q and not %q", x.mode, x.details, own != nil, i, r.TLS.DidResume, got, want)
				}
			}
		}
	}
}
