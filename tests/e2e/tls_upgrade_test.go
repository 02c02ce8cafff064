package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// secured is a suite that ends TLS and whose generations drain over the given time.
func secured(t *testing.T, ca *certs.Authority, drain string) *suite.Suite {
	config := tlsConfig(ca.Issue("shop.test"), "", fmt.Sprintf("endpoints = [%q]", application(t)))
	return suite.Start(t, strings.Replace(config, "runtime { workers = 2 }", fmt.Sprintf("runtime {\n  workers    = 2\n  drain_time = %q\n}", drain), 1))
}

// speaker is one connection of HTTP/1 over TLS.
type speaker struct {
	*tls.Conn
	t      *testing.T
	reader *bufio.Reader
}

func speak(t *testing.T, address string, ca *certs.Authority, sessions tls.ClientSessionCache) *speaker {
	t.Helper()
	c, err := tls.Dial("tcp", address, &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test", ClientSessionCache: sessions, NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * suite.Patience))
	return &speaker{c, t, bufio.NewReader(c)}
}

// ask makes a request and wants it answered; it tells whether the connection ends with that.
func (s *speaker) ask() (last bool) {
	s.t.Helper()
	if _, err := io.WriteString(s, "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"); err != nil {
		s.t.Fatal(err)
	}
	response, err := http.ReadResponse(s.reader, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, response.Body); err != nil || response.StatusCode != 200 {
		s.t.Fatalf("status %d, %v", response.StatusCode, err)
	}
	return response.Close
}

func upgrade(t *testing.T, s *suite.Suite) {
	t.Helper()
	if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 0 {
		t.Errorf("upgrade: exit %d: %s", code, out)
	}
}

// TestTLSPatientDrain goes on speaking on connections of a generation that was replaced, whose drain takes longer than they: they
// cannot move, and are served where they are.
func TestTLSPatientDrain(t *testing.T) {
	ca := certs.New(t, "servers")
	s := secured(t, ca, "168h")
	clients := make([]*speaker, 4) // both workers have some
	for i := range clients {
		clients[i] = speak(t, s.Address("edge"), ca, nil)
		clients[i].ask()
	}
	upgrade(t, s)
	s.Eventually("the first generation hands over", func() error {
		if !strings.Contains(s.Log(), `"msg":"draining"`) {
			return fmt.Errorf("it does not drain")
		}
		return nil
	})
	for range 3 {
		for i, c := range clients {
			if c.ask() {
				t.Errorf("client %d is asked to leave at the beginning of a week", i)
			}
		}
	}
}

// TestTLSUpgrade upgrades under clients of HTTP/1 and HTTP/2 over TLS: no request fails, an idle connection stays with the old
// generation until it speaks, and a session that the old generation began is resumed by the new one.
func TestTLSUpgrade(t *testing.T) {
	ca := certs.New(t, "servers")
	s := secured(t, ca, "1ms") // all are asked to leave at once
	base := "https://" + s.Address("edge")
	sessions := tls.NewLRUClientSessionCache(4)
	idle := speak(t, s.Address("edge"), ca, sessions)
	if idle.ask() {
		t.Fatal("the connection ends with its first request")
	}

	stop := make(chan struct{})
	var clients sync.WaitGroup
	var requests, failures atomic.Int64
	for i := range 6 {
		c := tlsClient(t, &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test"}, i%2 == 0)
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				requests.Add(1)
				r, err := c.Post(base+"/", "text/plain", strings.NewReader("hello"))
				if err == nil {
					var body []byte
					if body, err = io.ReadAll(r.Body); string(body) != "hello" {
						err = fmt.Errorf("%d %q %v", r.StatusCode, body, err)
					}
					r.Body.Close()
				}
				if err != nil {
					failures.Add(1)
					t.Error(err)
				}
			}
		})
	}
	for range 3 {
		upgrade(t, s)
	}
	close(stop)
	clients.Wait()
	if failures.Load() > 0 || requests.Load() < 20 {
		t.Errorf("%d of %d requests failed", failures.Load(), requests.Load())
	}
	if !idle.ask() {
		t.Error("the old connection goes on after its drain")
	}
	again := speak(t, s.Address("edge"), ca, sessions)
	again.ask()
	if !again.ConnectionState().DidResume {
		t.Error("the session was not resumed by the new generation")
	}
}
