package e2e

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// TestAccessLogOfTLS: logs tell what the handshake has shown, of requests in both protocols and of bare connections.
func TestAccessLogOfTLS(t *testing.T) {
	ca, clients := certs.New(t, "servers"), certs.New(t, "clients")
	edge, app := ca.Issue("shop.test", "www.shop.test"), clients.Issue("app.mesh", "spiffe://mesh/app")
	upstream := suite.Upstream(t, func(c net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
		}
	})
	log := filepath.Join(t.TempDir(), "log")
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
stats { listen = "off" }
access_log "all" {
  path   = %[1]q
  format = "%%FILTER_CHAIN_NAME%% %%DOWNSTREAM_LOCAL_PORT%% %%REQUESTED_SERVER_NAME%% %%DOWNSTREAM_TLS_VERSION%% %%DOWNSTREAM_TLS_CIPHER%% %%DOWNSTREAM_PEER_SUBJECT%% %%DOWNSTREAM_PEER_URI_SAN%% %%DOWNSTREAM_PEER_FINGERPRINT_256%% %%DOWNSTREAM_LOCAL_SUBJECT%% %%DOWNSTREAM_LOCAL_DNS_SAN%%"
}
certificate "shop" {
  cert_file = %[2]q
  key_file  = %[3]q
}
listener "web" {
  address = ["127.0.0.1:0"]
  tls {
    certificates        = [certificate.shop]
    client_ca           = %[4]q
    require_client_cert = false
  }
  http {
    access_log = access_log.all
    virtual_host "*" {
      route "/*" { cluster = cluster.app }
    }
  }
}
listener "bytes" {
  address = ["127.0.0.1:0"]
  tls {
    certificates = [certificate.shop]
    client_ca    = %[4]q
  }
  tcp {
    cluster    = cluster.app
    access_log = access_log.all
  }
}
listener "plain" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    virtual_host "*" {
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = [%[5]q] }
`, log, edge.CertFile, edge.KeyFile, clients.File, upstream))
	sum := fmt.Sprintf("%x", sha256.Sum256(app.TLS.Certificate[0]))
	const own = "CN=shop.test shop.test,www.shop.test"
	known := "CN=app.mesh spiffe://mesh/app " + sum
	for _, row := range []struct {
		name, scheme, listener string
		certificate            bool
		version                uint16
		h2                     bool
		want                   string
	}{
		{"HTTP/1.1", "https", "web", true, tls.VersionTLS13, false, "web PORT shop.test TLSv1.3 TLS_AES_128_GCM_SHA256 " + known + " " + own},
		{"HTTP/2", "https", "web", true, tls.VersionTLS13, true, "web PORT shop.test TLSv1.3 TLS_AES_128_GCM_SHA256 " + known + " " + own},
		{"TLS 1.2, nobody in particular", "https", "web", false, tls.VersionTLS12, false, "web PORT shop.test TLSv1.2 TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 - - - " + own},
		{"bytes", "https", "bytes", true, tls.VersionTLS13, false, "bytes PORT shop.test TLSv1.3 TLS_AES_128_GCM_SHA256 " + known + " " + own},
		{"plain", "http", "plain", false, 0, false, "plain PORT - - - - - - - -"},
	} {
		config := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test", MaxVersion: row.version}
		if row.certificate {
			config.Certificates = []tls.Certificate{app.TLS}
		}
		client := tlsClient(t, config, row.h2)
		address := s.Address(row.listener)
		_, port, _ := net.SplitHostPort(address)
		want := strings.Replace(row.want, "PORT", port, 1)
		r, err := client.Get(row.scheme + "://" + address + "/")
		if err != nil {
			t.Fatalf("%s: %v", row.name, err)
		}
		r.Body.Close()
		client.CloseIdleConnections()
		s.Eventually(row.name+" is logged", func() error {
			raw, err := os.ReadFile(log)
			if lines := strings.Split(strings.TrimSpace(string(raw)), "\n"); err == nil && lines[len(lines)-1] != want {
				return fmt.Errorf("the last line is %q, want %q", lines[len(lines)-1], want)
			}
			return err
		})
	}
}
