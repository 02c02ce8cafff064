package e2e

import (
	"bufio"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
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

// TestAccessLogOfUpstreams: logs and headers tell which connection carried a request, whatever protocol it speaks and though it ends with the
// response.
func TestAccessLogOfUpstreams(t *testing.T) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("app.test")
	ports := make(chan string, 8)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, port, _ := net.SplitHostPort(r.RemoteAddr)
		ports <- port
		w.Header().Set("Connection", r.Header.Get("X-Connection"))
	})
	plain := httptest.NewServer(handler)
	t.Cleanup(plain.Close)
	secure := httptest.NewUnstartedServer(handler)
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{pair.TLS}}
	secure.EnableHTTP2 = true
	secure.StartTLS()
	t.Cleanup(secure.Close)
	log := filepath.Join(t.TempDir(), "log")
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
stats { listen = "off" }
access_log "all" {
  path   = %[1]q
  format = "%%UPSTREAM_LOCAL_PORT%% %%UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT%% %%UPSTREAM_PROTOCOL%% %%UPSTREAM_TLS_VERSION%%"
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    virtual_host "*" {
      route "/plain" { cluster = cluster.plain }
      route "/secure" { cluster = cluster.secure }
      route "/none" {
        respond { status = 204 }
      }
    }
  }
}
listener "unlogged" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "*" {
      route "/*" {
        cluster = cluster.plain
        headers {
          response {
            set = { "x-from" = "%%UPSTREAM_LOCAL_PORT%%" }
          }
        }
      }
    }
  }
}
cluster "plain" { endpoints = [%[2]q] }
cluster "secure" {
  endpoints = [%[3]q]
  protocol  = "auto"
  tls {
    sni     = "app.test"
    ca_file = %[4]q
  }
}
`, log, plain.Listener.Addr(), secure.Listener.Addr(), ca.File))
	for _, row := range []struct{ path, connection, want string }{
		{"/plain", "close", "PORT 127.0.0.1 HTTP/1.1 -"},
		{"/plain", "", "PORT 127.0.0.1 HTTP/1.1 -"},
		{"/plain", "", "PORT 127.0.0.1 HTTP/1.1 -"},
		{"/secure", "", "PORT 127.0.0.1 HTTP/2 TLSv1.3"},
		{"/none", "", "- - - -"},
	} {
		before, _ := os.ReadFile(log)
		r, err := http.NewRequest(http.MethodGet, "http://"+s.Address("web")+row.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Connection", row.connection)
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		want := row.want
		if head, tail, found := strings.Cut(want, "PORT"); found {
			want = head + <-ports + tail
		}
		s.Eventually(row.path+" is logged", func() error {
			raw, err := os.ReadFile(log)
			if line := strings.TrimSpace(string(raw[min(len(raw), len(before)):])); err == nil && line != want {
				return fmt.Errorf("the line is %q, want %q", line, want)
			}
			return err
		})
	}
	answer, err := http.Get("http://" + s.Address("unlogged") + "/")
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if got, want := answer.Header.Get("X-From"), <-ports; got != want {
		t.Errorf("the header says port %q, the upstream saw %s", got, want)
	}
}
