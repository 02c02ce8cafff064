package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// ownSlack is what a process that has worked keeps however many connections there are: free lists, stacks, half-empty spans of its
// heap. In bytes.
const ownSlack = 1 << 20

// TestIdleTLSMemory holds what an idle connection of TLS costs after it was used, once all that is only lent has gone back: 12 KiB after a small
// request, 20 KiB after an upload of 64 KiB. RETINUE_IDLE is another number of connections: the more, the less weighs what the process
// keeps for itself.
func TestIdleTLSMemory(t *testing.T) {
	connections := 1000
	if n, err := strconv.Atoi(os.Getenv("RETINUE_IDLE")); err == nil {
		connections = n
	}
	ca := certs.New(t, "servers")
	s := suite.Start(t, tlsConfig(ca.Issue("shop.test"), "", fmt.Sprintf("endpoints = [%q]", application(t))))
	address, pid := s.Address("edge"), s.PID("proxyd")
	trust := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test", NextProtos: []string{"http/1.1"}}
	use := func(body int) (func(), error) {
		c, err := tls.Dial("tcp", address, trust)
		if err != nil {
			return nil, err
		}
		_ = c.SetDeadline(time.Now().Add(10 * suite.Patience))
		_, _ = fmt.Fprintf(c, "POST /?size=1024 HTTP/1.1\r\nHost: shop.test\r\nContent-Length: %d\r\n\r\n", body)
		_, _ = c.Write(bytes.Repeat([]byte("x"), body))
		response, err := http.ReadResponse(bufio.NewReaderSize(c, 2048), nil)
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
		}
		return func() { c.Close() }, err
	}
	// What the first one of all makes is not counted.
	end, err := use(64 << 10)
	if err != nil {
		t.Fatal(err)
	}
	end()
	before := suite.Pss(t, pid) + ownSlack
	for _, x := range []struct {
		name string
		body int
		most int64
	}{{"a request of 1 KiB", 1 << 10, 12 << 10}, {"an upload of 64 KiB", 64 << 10, 20 << 10}} {
		var all sync.WaitGroup
		ends := make(chan func(), connections)
		for range 8 {
			all.Go(func() {
				for range connections / 8 {
					end, err := use(x.body)
					if err != nil {
						t.Error(err)
						return
					}
					ends <- end
				}
			})
		}
		all.Wait()
		close(ends)
		each := int64(0)
		s.Eventually("memory that was lent is back", func() error {
			if each = (suite.Pss(t, pid) - before) / int64(connections/8*8); each > x.most {
				return fmt.Errorf("a connection takes %d bytes and not at most %d", each, x.most)
			}
			return nil
		})
		t.Logf("%d connections, after %s: %d bytes each", connections, x.name, each)
		for end := range ends {
			end()
		}
		s.Eventually("the connections are gone", func() error {
			if n := s.Stat("retinue_http_downstream_cx_active", "listener=edge"); n > 0 {
				return fmt.Errorf("%v are left", n)
			}
			return nil
		})
	}
}
