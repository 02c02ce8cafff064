package e2e_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const (
	// flowBytes is the body of the tests of back-pressure: far more than may be under way.
	flowBytes = 1 << 30
	// flowKernel is what the sockets of both connections may hold, all four ends.
	flowKernel = 64 << 20
	// flowMemory is what proxyd may need for one body on its way: the watermarks of both directions, scratch and the heap's slack.
	flowMemory = 16 << 20
)

func flowSuite(t *testing.T, upstream string) *suite.Suite {
	return suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
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
cluster "app" { endpoints = ["%s"] }
stats { listen = "127.0.0.1:0" }
`, upstream))
}

// standsStill waits until a writer gets no further.
func standsStill(s *suite.Suite, sent *atomic.Int64) {
	last, same := int64(-1), 0
	s.Eventually("the writer is stopped", func() error {
		if now := sent.Load(); now != last || now == 0 {
			last, same = now, 0
		} else if same++; same >= 10 {
			return nil
		}
		return errors.New("it still writes")
	})
}

// write sends n bytes and counts them.
func write(to io.Writer, n int64, sent *atomic.Int64) error {
	piece := make([]byte, 64<<10)
	for n > 0 {
		k, err := to.Write(piece[:min(n, int64(len(piece)))])
		sent.Add(int64(k))
		if n -= int64(k); err != nil {
			return err
		}
	}
	return nil
}

// A download of 1 GiB to a client that reads nothing for a while, then little, then the rest.
func TestSlowDownload(t *testing.T) {
	for name, head := range map[string]string{
		"with a length": "Content-Length: " + strconv.Itoa(flowBytes),
		"until closed":  "Connection: close",
	} {
		t.Run(name, func(t *testing.T) {
			var sent atomic.Int64
			s := flowSuite(t, suite.Upstream(t, func(c net.Conn) {
				if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
					return
				}
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n%s\r\n\r\n", head)
				_ = write(c, flowBytes, &sent)
			}))
			before := suite.Pss(t, s.PID("proxyd"))
			c, err := net.Dial("tcp", s.Address("web"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: app\r\n\r\n")
			standsStill(s, &sent)
			bounded(t, s, before, sent.Load(), 0)
			in := bufio.NewReader(c)
			read, err := io.CopyN(io.Discard, in, 32<<20)
			if err != nil {
				t.Fatal(err)
			}
			standsStill(s, &sent)
			bounded(t, s, before, sent.Load(), read)
			rest, err := io.CopyN(io.Discard, in, flowBytes-read)
			if err != nil {
				t.Fatalf("%v after %d bytes", err, read+rest)
			}
			if got := sent.Load(); got != flowBytes {
				t.Errorf("the upstream sent %d bytes", got)
			}
			bounded(t, s, before, 0, 0)
		})
	}
}

// An upload to an upstream that does not read.
func TestSlowUpload(t *testing.T) {
	const size = 256 << 20
	goOn := make(chan struct{})
	received := make(chan int64, 1)
	s := flowSuite(t, suite.Upstream(t, func(c net.Conn) {
		<-goOn
		in := bufio.NewReader(c)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			if line == "\r\n" {
				break
			}
		}
		n, _ := io.CopyN(io.Discard, in, size)
		received <- n
		fmt.Fprintf(c, "HTTP/1.1 204 No Content\r\n\r\n")
	}))
	before := suite.Pss(t, s.PID("proxyd"))
	c, err := net.Dial("tcp", s.Address("web"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var sent atomic.Int64
	failed := make(chan error, 1)
	go func() {
		fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: %d\r\n\r\n", size)
		failed <- write(c, size, &sent)
	}()
	standsStill(s, &sent)
	bounded(t, s, before, sent.Load(), 0)
	close(goOn)
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	select {
	case n := <-received:
		if n != size {
			t.Errorf("the upstream received %d bytes of %d", n, size)
		}
	case <-time.After(suite.Patience):
		t.Fatal("the upstream waits for the rest of the body")
	}
	if line, err := bufio.NewReader(c).ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 204") {
		t.Errorf("answered %q, %v", line, err)
	}
	bounded(t, s, before, 0, 0)
}

// bounded holds that no more is under way than the kernel's buffers and the watermarks allow, and that memory shows it.
func bounded(t *testing.T, s *suite.Suite, before, sent, read int64) {
	t.Helper()
	if under := sent - read; under > flowKernel {
		t.Errorf("%d MiB are under way", under>>20)
	}
	if grown := suite.Pss(t, s.PID("proxyd")) - before; grown > flowMemory {
		t.Errorf("proxyd has grown by %d MiB", grown>>20)
	}
}
