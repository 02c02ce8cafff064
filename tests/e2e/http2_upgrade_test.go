package e2e

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"retinue.dev/tests/suite"
)

// TestUpgradesWithHTTP2Clients upgrades proxyd under clients of HTTP/2: each is asked by GOAWAY to come again, requests that are
// under way end where they began, none fails, and the old generation leaves because it is empty.
func TestUpgradesWithHTTP2Clients(t *testing.T) {
	release := make(chan struct{})
	var once sync.Once
	free := func() { once.Do(func() { close(release) }) }
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			fmt.Fprint(w, "begun ")
			_ = http.NewResponseController(w).Flush()
			<-release
			fmt.Fprint(w, "ended")
			return
		}
		if body, err := io.ReadAll(r.Body); err == nil {
			_, _ = w.Write(body)
		}
	}))
	t.Cleanup(upstream.Close)
	t.Cleanup(free)
	s := suite.Start(t, fmt.Sprintf(`
runtime {
  workers    = 2
  drain_time = "1s"
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        cluster = cluster.app
        timeout = "0s"
      }
    }
  }
}
cluster "app" { endpoints = [%q] }
stats { listen = "off" }
`, upstream.Listener.Addr()))
	base := "http://" + s.Address("web")

	var connections, fine atomic.Int64
	trace := httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) {
		if !c.Reused {
			connections.Add(1)
		}
	}})
	protocols := &http.Protocols{}
	protocols.SetUnencryptedHTTP2(true)
	newClient := func() *http.Client {
		transport := &http.Transport{Protocols: protocols}
		t.Cleanup(transport.CloseIdleConnections)
		return &http.Client{Transport: transport}
	}

	long, err := newClient().Get(base + "/long")
	if err != nil {
		t.Fatal(err)
	}
	defer long.Body.Close()

	var failed atomic.Value
	stop := make(chan struct{})
	var clients sync.WaitGroup
	client := newClient()
	for i := range 8 { // eight streams of one connection at a time
		clients.Add(1)
		go func() {
			defer clients.Done()
			body := strings.Repeat("x", 1000*i)
			for {
				select {
				case <-stop:
					return
				default:
				}
				request, _ := http.NewRequestWithContext(trace, "POST", base+"/", strings.NewReader(body))
				r, err := client.Do(request)
				if err == nil {
					var got []byte
					got, err = io.ReadAll(r.Body)
					r.Body.Close()
					if err == nil && (r.StatusCode != 200 || string(got) != body) {
						err = fmt.Errorf("status %d, %d bytes of %d", r.StatusCode, len(got), len(body))
					}
				}
				if err != nil {
					failed.Store(err.Error())
				}
				fine.Add(1)
			}
		}()
	}
	const upgrades = 3
	for i := range upgrades {
		if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 0 {
			t.Fatalf("upgrade %d: exit %d: %s", i, code, out)
		}
	}
	s.Eventually("clients have come to the new generation", func() error {
		if n := connections.Load(); n <= upgrades {
			return fmt.Errorf("%d connections were made", n)
		}
		return nil
	})
	free()
	if body, err := io.ReadAll(long.Body); err != nil || string(body) != "begun ended" {
		t.Errorf("the response that began before the upgrades: %q, %v", body, err)
	}
	s.Eventually("the old generations are gone", func() error {
		status, err := s.Status()
		if err != nil {
			return err
		}
		for _, g := range status.Restartd.Generations {
			if g.State == "STATE_DRAINING" {
				return fmt.Errorf("generation %s drains", g.Number)
			}
		}
		return nil
	})
	close(stop)
	clients.Wait()
	if err := failed.Load(); err != nil {
		t.Errorf("a request failed during the upgrades: %v", err)
	}
	t.Logf("%d requests over %d connections, %d upgrades", fine.Load(), connections.Load(), upgrades)
}
