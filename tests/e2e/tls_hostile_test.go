package e2e

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"testing"
	"time"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// firstFlight is a client's hello as it is on the wire, one record.
func firstFlight(name string) []byte {
	near, far := net.Pipe()
	go func() { _ = tls.Client(near, &tls.Config{ServerName: name, InsecureSkipVerify: true}).Handshake() }()
	b := make([]byte, 4096)
	n, _ := far.Read(b)
	near.Close()
	far.Close()
	return b[:n]
}

// record is one of TLS.
func record(kind byte, content []byte) []byte {
	return append([]byte{kind, 3, 1, byte(len(content) >> 8), byte(len(content))}, content...)
}

// message is one of a handshake, which says of itself that it is so long.
func message(kind byte, length int, content []byte) []byte {
	return append([]byte{kind, byte(length >> 16), byte(length >> 8), byte(length)}, content...)
}

// TestHostileTLSClients has clients that never finish a handshake, or say what is none, at a listener that terminates TLS and at one that looks for
// the name first. Each is ended and counted, and none keeps the worker from those that behave.
func TestHostileTLSClients(t *testing.T) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("shop.test")
	const site = `
    tls {
      certificates      = [certificate.shop]
      handshake_timeout = "300ms"
    }
    http {
      virtual_host "all" {
        domains = ["*"]
        route "/*" {
          respond {
            status = 200
            body   = "ok"
          }
        }
      }
    }
`
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
certificate "shop" {
  cert_file = %q
  key_file  = %q
}
listener "edge" {
  address = ["127.0.0.1:0"]
%s
}
listener "names" {
  address         = ["127.0.0.1:0"]
  filters_timeout = "300ms"
  filter_chain "shop" {
    match { sni = ["shop.test"] }
%[3]s
  }
}
stats { listen = "off" }
`, pair.CertFile, pair.KeyFile, site))

	hello := firstFlight("shop.test")
	noise := make([]byte, 20_000)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(noise)
	noise[0] = 0x80 // no record of TLS
	var scattered []byte
	for _, b := range hello[5:] {
		scattered = append(scattered, record(22, []byte{b})...)
	}
	slow := func(c net.Conn, b []byte) { // a byte now and then, so that it never quite stops
		go func() {
			for _, x := range b {
				if _, err := c.Write([]byte{x}); err != nil {
					return
				}
				time.Sleep(20 * time.Millisecond)
			}
		}()
	}
	at := func(b []byte) func(net.Conn) { return func(c net.Conn) { _, _ = c.Write(b) } }
	const timeout, refused = "ssl_handshake_timeout", "ssl_connection_error"
	const late, nobody = "downstream_pre_cx_timeout", "no_filter_chain_match"
	rows := []struct {
		name  string
		play  func(c net.Conn)
		edge  string // what the first listener counts
		names string // and the second
	}{
		{"silence", func(net.Conn) {}, timeout, late},
		{"a hello byte by byte", func(c net.Conn) { slow(c, hello) }, timeout, late},
		{"the first byte of a hello", at(hello[:1]), timeout, late},
		{"all but the last byte of a hello", at(hello[:len(hello)-1]), timeout, late},
		{"a hello and no more", at(hello), timeout, timeout},
		{"a hello in records of a byte, and no more", at(scattered), timeout, timeout},
		{"a record that does not end", at([]byte{22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f}), timeout, late},
		{"noise", at(noise), refused, nobody},
		{"noise in a record", at(record(22, noise[:16_000])), refused, nobody},
		{"a record that is too long", at(append([]byte{22, 3, 1, 0x60, 0}, noise...)), refused, nobody},
		{"an empty record", at(append(bytes.Repeat(record(22, nil), 40), hello...)), refused, nobody},
		{"a hello of 16 MiB", at(bytes.Repeat(record(22, message(1, 1<<24-1, make([]byte, 16_000))), 20)), refused, nobody},
		{"a hello of 100 KiB", at(append(record(22, message(1, 100<<10, make([]byte, 16_000))), bytes.Repeat(record(22, make([]byte, 16_000)), 6)...)), refused, nobody},
		{"a hello whose parts are longer than it", func(c net.Conn) {
			bad := bytes.Clone(hello)
			bad[5+4+2+32] = 255 // the session id
			_, _ = c.Write(bad)
		}, refused, nobody},
		{"a server's hello", at(record(22, message(2, 40, make([]byte, 40)))), refused, nobody},
		{"data before a hello", at(record(23, make([]byte, 100))), refused, nobody},
		{"a warning again and again", at(bytes.Repeat(record(21, []byte{1, 90}), 100)), refused, nobody},
		{"data instead of the end", at(append(bytes.Clone(hello), record(23, make([]byte, 100))...)), refused, refused},
		{"ChangeCipherSpec again and again", at(append(bytes.Clone(hello), bytes.Repeat(record(20, []byte{1}), 100)...)), refused, refused},
		{"TLS 1.0", func(c net.Conn) {
			_ = tls.Client(c, &tls.Config{ServerName: "shop.test", InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}).Handshake()
		}, refused, refused},
		{"no cipher in common", func(c net.Conn) {
			_ = tls.Client(c, &tls.Config{ServerName: "shop.test", InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_RC4_128_SHA}}).Handshake()
		}, refused, refused},
		{"hellos that are gone at once", func(c net.Conn) {
			_, _ = c.Write(hello)
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}, refused, refused},
	}
	const each = 8 // of every sort, all at the same time
	listeners := []string{"edge", "names"}
	trust := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test"}
	friends := map[string]*http.Client{}
	addresses := map[string]string{"edge": s.Address("edge"), "names": s.Address("names")}
	good := func(listener string, c *http.Client) {
		t.Helper()
		r, err := c.Get("https://" + addresses[listener] + "/")
		if err != nil {
			t.Fatalf("%s: %v", listener, err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if string(body) != "ok" || err != nil {
			t.Errorf("%s: %q %v", listener, body, err)
		}
	}
	for _, listener := range listeners {
		friends[listener] = tlsClient(t, trust.Clone(), true)
		good(listener, friends[listener])
	}
	want := map[string]float64{}
	var hostile []net.Conn
	for i, listener := range listeners {
		for _, x := range rows {
			counter := [...]string{x.edge, x.names}[i]
			want["retinue_listener_"+counter+"[{listener "+listener+"}]"] += each
			for range each {
				c := dial(t, addresses[listener])
				hostile = append(hostile, c)
				go x.play(c)
			}
		}
	}
	for range 20 { // meanwhile
		for _, listener := range listeners {
			good(listener, friends[listener])
			good(listener, tlsClient(t, trust.Clone(), false))
		}
	}
	s.Eventually("every one of them is counted", func() error {
		var wrong []error
		now := s.Counters()
		for name, n := range want {
			if now[name] != n {
				wrong = append(wrong, fmt.Errorf("%s is %v and not %v", name, now[name], n))
			}
		}
		return errors.Join(wrong...)
	})
	for i, c := range hostile { // and ended
		_ = c.SetReadDeadline(time.Now().Add(suite.Patience))
		if _, err := io.Copy(io.Discard, c); err != nil {
			var e net.Error
			if errors.As(err, &e) && e.Timeout() {
				t.Errorf("%q is still connected", rows[i/each%len(rows)].name)
			}
		}
	}
	for _, listener := range listeners {
		good(listener, friends[listener])
		if n := s.Stat("retinue_listener_downstream_cx_active", "listener="+listener); n > 21+2 {
			t.Errorf("%s: %v connections are open", listener, n)
		}
	}
}
