package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"testing"

	"github.com/summerwind/h2spec"
	"github.com/summerwind/h2spec/config"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// patientUpstream answers when it has the whole request, so that a fault in a body meets a stream that is open.
func patientUpstream(t *testing.T) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return
		}
		fmt.Fprintln(w, "hello")
	}))
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// TestH2Spec runs the generic, http2 and hpack groups of h2spec against the proxy.
func TestH2Spec(t *testing.T) {
	pair := certs.New(t, "servers").Issue("127.0.0.1")
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
certificate "own" {
  cert_file = %[2]q
  key_file  = %[3]q
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.up }
    }
  }
}
listener "secure" {
  address = ["127.0.0.1:0"]
  tls { certificates = [certificate.own] }
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.up }
    }
  }
}
cluster "up" { endpoints = [%[1]q] }
stats { listen = "off" }
`, patientUpstream(t), pair.CertFile, pair.KeyFile))
	t.Run("h2c", func(t *testing.T) { runH2Spec(t, s.Address("web"), false) })
	t.Run("TLS", func(t *testing.T) { runH2Spec(t, s.Address("secure"), true) })
}

func runH2Spec(t *testing.T, address string, secure bool) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	number, _ := strconv.Atoi(port)
	ok, err := h2spec.Run(&config.Config{
		Host: host, Port: number, Path: "/", Timeout: suite.Patience, MaxHeaderLen: 4000, TLS: secure, Insecure: true,
	})
	if err != nil || !ok {
		t.Errorf("h2spec failed (%v): its output says where", err)
	}
}
