package health

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"retinue.dev/proxyd/internal/cluster"
	configv1 "retinue.dev/services/api/config/v1"
)

func asks(t *testing.T, address, protocol string, check *configv1.HealthCheck, security *tls.Config) error {
	t.Helper()
	c, err := cluster.Build(&configv1.Cluster{
		Name: "api", Endpoints: []*configv1.Endpoint{{Address: address}}, HealthCheck: check, Protocol: protocol,
	}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := newProber(c, c.Hosts.Hosts[0], security)
	defer p.close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return p.ask(ctx).failed
}

func httpCheck(h *configv1.HttpCheck) *configv1.HealthCheck {
	return &configv1.HealthCheck{Kind: &configv1.HealthCheck_Http{Http: h}}
}

func TestHTTP(t *testing.T) {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != "api" && r.Host != "other" {
			w.WriteHeader(421)
			return
		}
		switch r.URL.Path {
		case "/healthz":
			w.Write([]byte("all is well"))
		case "/no":
			w.WriteHeader(204)
		case "/h2":
			if r.ProtoMajor != 2 {
				w.WriteHeader(505)
			}
		default:
			w.WriteHeader(503)
		}
	})
	plain := httptest.NewUnstartedServer(handler)
	plain.Config.Protocols = new(http.Protocols)
	plain.Config.Protocols.SetHTTP1(true)
	plain.Config.Protocols.SetUnencryptedHTTP2(true)
	plain.Start()
	defer plain.Close()
	secure := httptest.NewUnstartedServer(handler)
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	roots := x509.NewCertPool()
	roots.AddCert(secure.Certificate())
	security := &tls.Config{RootCAs: roots, ServerName: "example.com"}
	at, safe := plain.Listener.Addr().String(), secure.Listener.Addr().String()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	go http.Serve(l, handler)
	defer l.Close()

	for _, test := range []struct {
		name, address, protocol string
		check                   *configv1.HttpCheck
		security                *tls.Config
		want                    string // of the error; "" is well
	}{
		{"well", at, "", &configv1.HttpCheck{Path: "/healthz"}, nil, ""},
		{"ill", at, "", &configv1.HttpCheck{Path: "/"}, nil, "status 503"},
		{"no content is not 200", at, "", &configv1.HttpCheck{Path: "/no"}, nil, "status 204"},
		{"expected status", at, "", &configv1.HttpCheck{Path: "/no", Statuses: []uint32{200, 204}}, nil, ""},
		{"expected body", at, "", &configv1.HttpCheck{Path: "/healthz", Body: "is well"}, nil, ""},
		{"another body", at, "", &configv1.HttpCheck{Path: "/healthz", Body: "is ill"}, nil, "expected text"},
		{"host", at, "", &configv1.HttpCheck{Path: "/healthz", Host: "other"}, nil, ""},
		{"wrong host", at, "", &configv1.HttpCheck{Path: "/healthz", Host: "third"}, nil, "status 421"},
		{"http2", at, "http2", &configv1.HttpCheck{Path: "/h2"}, nil, ""},
		{"http1", at, "", &configv1.HttpCheck{Path: "/h2"}, nil, "status 505"},
		{"tls", safe, "", &configv1.HttpCheck{Path: "/healthz"}, security.Clone(), ""},
		{"tls and http2", safe, "http2", &configv1.HttpCheck{Path: "/h2"}, security.Clone(), ""},
		{"unknown authority", safe, "", &configv1.HttpCheck{Path: "/healthz"}, &tls.Config{ServerName: "example.com", RootCAs: x509.NewCertPool()}, "unknown authority"},
		{"unix", "unix:" + socket, "", &configv1.HttpCheck{Path: "/healthz"}, nil, ""},
		{"nobody", "127.0.0.1:1", "", &configv1.HttpCheck{Path: "/healthz"}, nil, "refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			matches(t, asks(t, test.address, test.protocol, httpCheck(test.check), test.security), test.want)
		})
	}
}

func matches(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	check := &configv1.HealthCheck{Kind: &configv1.HealthCheck_Tcp{Tcp: &configv1.TcpCheck{}}}
	matches(t, asks(t, l.Addr().String(), "", check, nil), "")
	check.Port = uint32(l.Addr().(*net.TCPAddr).Port)
	matches(t, asks(t, "127.0.0.1:1", "", check, nil), "") // another port than the endpoint's
	l.Close()
	matches(t, asks(t, l.Addr().String(), "", check, nil), "refused")
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, state := grpc.NewServer(), health.NewServer()
	state.SetServingStatus("shop", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(server, state)
	go server.Serve(l)
	defer server.Stop()
	check := func(service string) error {
		return asks(t, l.Addr().String(), "http2", &configv1.HealthCheck{Kind: &configv1.HealthCheck_Grpc{Grpc: &configv1.GrpcCheck{Service: service}}}, nil)
	}
	matches(t, check(""), "")
	matches(t, check("shop"), "NOT_SERVING")
	matches(t, check("unknown"), "unknown service")
}

func TestBuildRefusesUnknownKinds(t *testing.T) {
	_, err := cluster.Build(&configv1.Cluster{HealthCheck: &configv1.HealthCheck{}}, 0, nil)
	matches(t, err, "health_check")
}

// A logical host is asked where it is now, at the first address that answers.
func TestLogicalHostIsAskedWhereItIs(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := nobody.Addr().String()
	_ = nobody.Close()
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer server.Close()
	at := server.Listener.Addr().String()
	named := func(addresses ...string) []*configv1.Endpoint {
		return []*configv1.Endpoint{{Name: "shop.test:80", Address: addresses[0], AdditionalAddresses: addresses[1:]}}
	}
	c, err := cluster.Build(&configv1.Cluster{Name: "api", Endpoints: named(gone), HealthCheck: httpCheck(&configv1.HttpCheck{})}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := newProber(c, c.Hosts.Hosts[0], nil)
	defer p.close()
	for _, step := range []struct {
		addresses []string
		well      bool
	}{{[]string{gone}, false}, {[]string{gone, at}, true}} {
		if _, err := c.BuildHosts(named(step.addresses...)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		if a := p.ask(ctx); (a.failed == nil) != step.well {
			t.Errorf("at %v: %v", step.addresses, a.failed)
		}
		cancel()
	}
}
