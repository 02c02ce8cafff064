package restart

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/tests/suite"
)

const leaveConfig = `
runtime { workers = 2 }
%s
cluster "echo" { endpoints = [%q] }
stats { listen = "off" }
`

const leaving = `
listener "stays" {
  address = ["127.0.0.1:0"]
  tcp { cluster = cluster.echo }
}
listener "goes" {
  address       = [%q]
  defer_accept = %t
  tcp { cluster = cluster.echo }
}
`

const staying = `
listener "stays" {
  address = ["127.0.0.1:0"]
  tcp { cluster = cluster.echo }
}
`

// TestListenerThatGoesResetsNobody takes a listener away under a load of new connections, of clients that speak at once and of
// clients that speak late (with TCP_DEFER_ACCEPT their handshake is not even over then). Who has connected is served; who comes
// too late is not answered, and refused in the end. Nobody is reset.
func TestListenerThatGoesResetsNobody(t *testing.T) {
	for _, deferred := range []bool{false, true} {
		t.Run(fmt.Sprintf("defer_accept=%t", deferred), func(t *testing.T) { listenerGoes(t, deferred) })
	}
}

// mayTurnAway tries what restartd does to the socket of a listener that goes.
func mayTurnAway(t *testing.T) error {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	program := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K, K: ^uint32(0)}}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

func listenerGoes(t *testing.T, deferred bool) {
	if err := mayTurnAway(t); err != nil {
		t.Skipf("this kernel keeps socket filters on TCP from ordinary users: what begins while a listener goes may be reset: %v", err)
	}
	upstream := suite.Upstream(t, echo)
	s := suite.Start(t, fmt.Sprintf(leaveConfig, fmt.Sprintf(leaving, "127.0.0.1:0", deferred), upstream))
	address := s.Address("goes")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var served, late, broken atomic.Int64
	var first atomic.Value
	for i := range 12 {
		wait := time.Duration(i%4) * 200 * time.Millisecond
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.DialTimeout("tcp", address, 500*time.Millisecond)
				if err != nil {
					if !err.(net.Error).Timeout() && !errors.Is(err, syscall.ECONNREFUSED) {
						broken.Add(1)
						first.CompareAndSwap(nil, err)
					}
					late.Add(1)
					return
				}
				time.Sleep(wait) // a client that speaks late
				_ = c.SetDeadline(time.Now().Add(suite.Patience))
				back := make([]byte, 4)
				if _, err = c.Write([]byte("ping")); err == nil {
					_, err = c.Read(back)
				}
				c.Close()
				if err != nil {
					broken.Add(1)
					first.CompareAndSwap(nil, fmt.Errorf("connected, then: %w", err))
					return
				}
				served.Add(1)
			}
		})
	}
	s.Eventually("traffic flows", func() error {
		if served.Load() < 100 {
			return errors.New("not yet")
		}
		return nil
	})
	s.Write(fmt.Sprintf(leaveConfig, staying, upstream))
	if out, code := s.Retinue("reload"); code != 0 {
		t.Fatalf("reload: %s", out)
	}
	s.Eventually("nobody connects any more", func() error {
		if late.Load()+broken.Load() < 12 {
			return fmt.Errorf("%d of 12 clients have ended", late.Load()+broken.Load())
		}
		return nil
	})
	close(stop)
	clients.Wait()
	if n := broken.Load(); n > 0 {
		t.Errorf("%d connections broke, the first: %v", n, first.Load())
	}
	s.Eventually("the port is closed", func() error {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err == nil {
			c.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("dial: %v", err)
		}
		return nil
	})
	t.Logf("%d served, %d too late", served.Load(), late.Load())
}
