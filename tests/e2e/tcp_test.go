package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
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

// roundTrip sends bytes through and wants them back, with the end of the stream after the half-close.
func roundTrip(address string, body []byte) error {
	c, err := net.DialTimeout("tcp", address, suite.Patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(suite.Patience))
	go func() {
		_, _ = c.Write(body)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, body) {
		return fmt.Errorf("%d bytes came back of %d", len(got), len(body))
	}
	return nil
}

func TestTCPProxy(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(tcpConfig, suite.Upstream(t, echo)))
	address := s.Address("echo")
	for _, size := range []int{0, 1, 1 << 10, 64 << 10, 8 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			if err := roundTrip(address, bytes.Repeat([]byte("retinue!"), size/8+1)[:size]); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestUpgradesLoseNothing(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(tcpConfig, suite.Upstream(t, echo)))
	address := s.Address("echo")
	tunnel, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	var failed atomic.Value
	var fine atomic.Int64
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 3 {
		clients.Add(1)
		go func() {
			defer clients.Done()
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := roundTrip(address, []byte("new connection")); err != nil {
					failed.Store(err)
				}
				fine.Add(1)
			}
		}()
	}
	for i := range 5 {
		if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 0 {
			t.Fatalf("upgrade %d: exit %d: %s", i, code, out)
		}
		message, back := fmt.Appendf(nil, "tunnel %d", i), make([]byte, 8)
		_ = tunnel.SetDeadline(time.Now().Add(suite.Patience))
		if _, err := tunnel.Write(message); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(tunnel, back); err != nil || !bytes.Equal(back, message) {
			t.Fatalf("the tunnel that was open before the upgrades: %q, %v", back, err)
		}
	}
	close(stop)
	clients.Wait()
	if err := failed.Load(); err != nil {
		t.Errorf("a connection failed during the upgrades: %v", err)
	}
	if fine.Load() == 0 {
		t.Error("there was no traffic")
	}
}
