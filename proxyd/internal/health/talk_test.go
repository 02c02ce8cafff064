package health

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/cluster"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestTCPTalk: what is sent, and what must come back in its order, whatever is between.
func TestTCPTalk(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.Write([]byte("hello\r\n"))
				line, err := bufio.NewReader(c).ReadString('\n')
				if err == nil && line == "PING\r\n" {
					c.Write([]byte("+PO"))
					c.Write([]byte("NG\r\n"))
				}
			}()
		}
	}()
	for _, test := range []struct {
		name    string
		send    string
		receive []string
		want    string
	}{
		{"a greeting", "", []string{"hello"}, ""},
		{"in order", "PING\r\n", []string{"hello", "+PONG\r\n"}, ""},
		{"parts that overlap are not one", "PING\r\n", []string{"hello", "lo\r\n", "+PONG"}, "did not come"},
		{"not in order", "PING\r\n", []string{"+PONG", "hello"}, "did not come"},
		{"another answer", "QUIT\r\n", []string{"+PONG"}, "did not come"},
		{"nothing to receive", "QUIT\r\n", nil, ""},
	} {
		check := &configv1.TcpCheck{Send: []byte(test.send)}
		for _, r := range test.receive {
			check.Receive = append(check.Receive, []byte(r))
		}
		t.Run(test.name, func(t *testing.T) {
			matches(t, asks(t, l.Addr().String(), "", &configv1.HealthCheck{Kind: &configv1.HealthCheck_Tcp{Tcp: check}}, nil), test.want)
		})
	}
}

// TestHTTPAnswers: what is asked, which failures decide alone, and whether the connection is kept.
func TestHTTPAnswers(t *testing.T) {
	var connections atomic.Int32
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/method":
			if r.Method != http.MethodHead || r.Header.Get("X-Check") != "yes" || r.Header.Get("User-Agent") != "probe" {
				w.WriteHeader(400)
			}
		case "/fail":
			w.Header().Set("X-Envoy-Immediate-Health-Check-Fail", "true")
		case "/busy":
			w.WriteHeader(503)
		}
	}))
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	never := false
	for _, test := range []struct {
		name              string
		check             *configv1.HealthCheck
		failed            string
		answered, decides bool
		connections       int32
	}{
		{"method and headers", httpCheck(&configv1.HttpCheck{Path: "/method", Method: "HEAD", RequestHeaders: []*configv1.Header{{Name: "x-check", Value: "yes"}, {Name: "user-agent", Value: "probe"}}}), "", false, false, 1},
		{"a failure that decides", httpCheck(&configv1.HttpCheck{Path: "/busy"}), "status 503", true, true, 1},
		{"one that counts", httpCheck(&configv1.HttpCheck{Path: "/busy", RetriableStatuses: []uint32{502, 503}}), "status 503", true, false, 1},
		{"a header that decides", httpCheck(&configv1.HttpCheck{Path: "/fail", RetriableStatuses: []uint32{200}}), "immediate", true, true, 1},
		{"another body", httpCheck(&configv1.HttpCheck{Path: "/", Body: "ok"}), "expected text", true, true, 1},
		{"new connections", &configv1.HealthCheck{Kind: httpCheck(&configv1.HttpCheck{Path: "/"}).Kind, ReuseConnection: &never}, "", false, false, 2},
	} {
		t.Run(test.name, func(t *testing.T) {
			connections.Store(0)
			c, err := cluster.Build(&configv1.Cluster{Name: "api", Endpoints: []*configv1.Endpoint{{Address: server.Listener.Addr().String()}}, HealthCheck: test.check}, 0, nil)
			if err != nil {
				t.Fatal(err)
			}
			p := newProber(c, c.Hosts.Hosts[0], nil)
			defer p.close()
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			defer cancel()
			for range 2 {
				a := p.ask(ctx)
				matches(t, a.failed, test.failed)
				if a.answered != test.answered || a.decides != test.decides {
					t.Errorf("the answer is %+v", a)
				}
			}
			if n := connections.Load(); n != test.connections {
				t.Errorf("%d connections, want %d", n, test.connections)
			}
		})
	}
}
