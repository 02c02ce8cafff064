// Package restart shows the promises of hot restart on the real binaries: crashes, upgrades under load, live connections.
package restart

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

func echo(c net.Conn) { _, _ = io.Copy(c, c) }

const tcpConfig = `
runtime { workers = 2 }
listener "echo" {
  address = ["127.0.0.1:0"]
  tcp { cluster = cluster.echo }
}
cluster "echo" { endpoints = [%q] }
stats { listen = "off" }
`

// ping is one new connection that sends four bytes and wants them back.
func ping(address string) (refused bool, err error) {
	c, err := net.DialTimeout("tcp", address, suite.Patience)
	if err != nil {
		return true, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(suite.Patience))
	back := make([]byte, 4)
	if _, err = c.Write([]byte("ping")); err == nil {
		_, err = io.ReadFull(c, back)
	}
	return false, err
}

// TestProxydKilled kills proxyd with -9 under a load of new connections: none is refused, and the service is back at once.
func TestProxydKilled(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(tcpConfig, suite.Upstream(t, echo)))
	address := s.Address("echo")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var refused, fine atomic.Int64
	for range 4 {
		clients.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				no, err := ping(address)
				if no {
					refused.Add(1)
				}
				if err == nil {
					fine.Add(1)
				}
			}
		})
	}
	if _, err := ping(address); err != nil {
		t.Fatal(err)
	}
	overflows := listenOverflows(t)
	pid := s.PID("proxyd")
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	// A connection that was accepted by the killed process may break; the first that is answered ends the outage.
	for {
		_, err := ping(address)
		if err == nil && s.PID("proxyd") != pid {
			break
		}
		if time.Since(killed) > suite.Patience {
			t.Fatal("no service")
		}
	}
	back := time.Since(killed)
	close(stop)
	clients.Wait()
	t.Logf("back after %v (status asked for included), %d connections fine", back.Round(time.Millisecond), fine.Load())
	if n := refused.Load(); n > 0 {
		t.Errorf("%d connections were refused", n)
	}
	if now := listenOverflows(t); now != overflows {
		t.Errorf("ListenOverflows rose by %d", now-overflows)
	}
}

// TestCrashLoop kills every generation as soon as it serves: the pauses grow, the sockets stay open throughout, and the
// snapshot before the last one is served in the end.
func TestCrashLoop(t *testing.T) {
	upstream := suite.Upstream(t, echo)
	s := suite.Start(t, fmt.Sprintf(tcpConfig, upstream))
	address := s.Address("echo")
	first := s.Snapshot()
	s.Write(fmt.Sprintf(tcpConfig, upstream) + "\ncluster \"another\" { endpoints = [\"127.0.0.1:9\"] }\n")
	if out, code := s.Retinue("reload"); code != 0 {
		t.Fatalf("reload: %s", out)
	}
	second := s.Snapshot()
	if first == second {
		t.Fatal("the second snapshot is the first one")
	}
	seen := map[int]bool{}
	for range 4 {
		var pid int
		s.Eventually("another generation serves", func() error {
			if pid = s.PID("proxyd"); pid == 0 || seen[pid] {
				return errors.New("not yet")
			}
			return nil
		})
		seen[pid] = true
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		c, err := net.DialTimeout("tcp", address, suite.Patience) // waits in the queue of a socket that is still there
		if err != nil {
			t.Fatalf("refused after a crash: %v", err)
		}
		c.Close()
	}
	s.Eventually("the snapshot before is served", func() error {
		if _, err := ping(address); err != nil {
			return err
		}
		out, _ := s.Retinue("status")
		if !strings.Contains(out, "set aside") || !strings.Contains(out, first[:12]) {
			return errors.New(out)
		}
		return nil
	})
	s.Write(fmt.Sprintf(tcpConfig, upstream) + "\ncluster \"third\" { endpoints = [\"127.0.0.1:9\"] }\n")
	if out, code := s.Retinue("reload"); code != 0 {
		t.Fatalf("a reload after a crash loop: %s", out)
	}
	if _, err := ping(address); err != nil {
		t.Fatal(err)
	}
}

// listenOverflows is the kernel's count of connections that found a full queue.
func listenOverflows(t *testing.T) int64 {
	t.Helper()
	n, err := suite.NetStat("TcpExt", "ListenOverflows")
	if err != nil {
		t.Fatal(err)
	}
	return n
}
