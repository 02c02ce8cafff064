package e2e

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"retinue.dev/tests/suite"
)

// TestPushIsConfigured: a receiver that the configuration names gets values, and one that a reload takes away gets no more.
func TestPushIsConfigured(t *testing.T) {
	agent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	var mu sync.Mutex
	var received strings.Builder
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, _, err := agent.ReadFrom(buffer)
			if err != nil {
				return
			}
			mu.Lock()
			received.Write(append(buffer[:n:n], '\n'))
			mu.Unlock()
		}
	}()
	config := func(push string) string {
		return fmt.Sprintf(`
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { status = 204 }
      }
    }
  }
}
stats {
  listen = "off"
  %s
}
`, push)
	}
	s := suite.Start(t, config(fmt.Sprintf(`push "dogstatsd" {
    address  = %q
    interval = "1s"
    tags     = { env = "test" }
  }`, agent.LocalAddr())))
	s.Eventually("statsd sends", func() error {
		if s.Stat("retinue_server_live") != 1 { // by statsd's gRPC
			return errors.New("nothing serves")
		}
		mu.Lock()
		defer mu.Unlock()
		if !strings.Contains(received.String(), "retinue.server.live:1|g|#env:test\n") {
			return fmt.Errorf("received so far: %.300s", received.String())
		}
		return nil
	})
	response, err := http.Get("http://" + s.Address("web") + "/")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	s.Eventually("the request is told", func() error {
		mu.Lock()
		defer mu.Unlock()
		if !strings.Contains(received.String(), "retinue.http.downstream_rq_total:1|c|#listener:web,env:test\n") {
			return errors.New("not yet")
		}
		return nil
	})
	s.Write(config(""))
	if out, status := s.Retinue("reload"); status != 0 {
		t.Fatal(out)
	}
	s.Write(config(`push "dogstatsd" { address = "nowhere" }`))
	if out, status := s.Retinue("reload"); status == 0 || !strings.Contains(out, "E0501") {
		t.Errorf("a receiver without a port is taken: %d %s", status, out)
	}
}

// TestOTLPIsTriedAgain: a collector that refuses for a while gets what it refused, and what came after.
func TestOTLPIsTriedAgain(t *testing.T) {
	var mu sync.Mutex
	var taken []string
	refused := 0
	collector := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var body io.Reader = r.Body
		if r.Header.Get("Content-Encoding") == "gzip" {
			unzipped, err := gzip.NewReader(r.Body)
			if err != nil {
				t.Error(err)
				return
			}
			body = unzipped
		}
		raw, err := io.ReadAll(body)
		if err != nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path != "/v1/metrics" || r.Header.Get("Content-Type") != "application/x-protobuf" || r.Header.Get("Authorization") != "Bearer x" {
			t.Errorf("%s of %s with %v", r.URL.Path, r.Header.Get("Content-Type"), r.Header)
		}
		if refused < 2 {
			refused++
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		taken = append(taken, string(raw))
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	defer collector.Close()
	s := suite.Start(t, fmt.Sprintf(`
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { status = 204 }
      }
    }
  }
}
stats {
  listen = "off"
  push "otlp" {
    endpoint = %q
    interval = "1s"
    headers  = { authorization = "Bearer x" }
  }
}
`, collector.URL))
	response, err := http.Get("http://" + s.Address("web") + "/")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	s.Eventually("the collector has the request's counter and histogram", func() error {
		mu.Lock()
		defer mu.Unlock()
		for _, raw := range taken {
			if strings.Contains(raw, "downstream_rq_total") && strings.Contains(raw, "downstream_rq_time") && strings.Contains(raw, "service.name") {
				return nil
			}
		}
		return fmt.Errorf("%d messages taken, %d refused", len(taken), refused)
	})
	mu.Lock()
	defer mu.Unlock()
	if refused != 2 {
		t.Errorf("%d were refused: nothing was tried again", refused)
	}
}
