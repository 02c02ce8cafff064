package restart

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

// gone tells whether a process has ended.
func gone(pid int) error {
	if err := syscall.Kill(pid, 0); err == nil {
		return fmt.Errorf("process %d lives", pid)
	}
	return nil
}

// TestRestartdKilledInEveryState kills restartd with -9 in each state of an upgrade, under clients of every kind. What was not committed
// is given up, what was goes on; the machine takes the next upgrade, and nobody is refused, cut or kept waiting.
func TestRestartdKilledInEveryState(t *testing.T) {
	built := builtForTests(t)
	for _, c := range []struct {
		state string
		pause string // of the test build
		// reach brings the upgrade to the state when the pause alone does not, and kept tells who serves in the end.
		reach func(t *testing.T, s *suite.Suite)
		kept  bool // the generation that served before
	}{
		{state: "preflight", pause: "preflight", kept: true},
		{state: "starting", pause: "start", kept: true},
		{state: "warming", pause: "warm", kept: true},
		{state: "commit", pause: "serve"},
		{state: "probation"},
		{state: "rollback", pause: "serve#2", kept: true, reach: func(t *testing.T, s *suite.Suite) {
			if out, code := s.Retinue("upgrade", "--binary", built, "--probation", "0s", "--wait", "drained"); code != 0 {
				t.Fatalf("upgrade to the test build: exit %d: %s", code, out)
			}
		}},
	} {
		t.Run(c.state, func(t *testing.T) {
			mark := filepath.Join(t.TempDir(), "reached")
			s := suite.New(t)
			s.Env = []string{"RETINUE_TEST_PAUSE=" + c.pause + ":" + mark}
			app, echoes := suite.Upstream(t, app), suite.Upstream(t, echo)
			s.Write(fmt.Sprintf(mixedConfig, 2, filepath.Join(t.TempDir(), "access.log"), app, echoes, ""))
			s.Run()
			if c.reach != nil {
				c.reach(t, s)
			}
			old, end := s.PID("proxyd"), everyClient(t, s)

			switch c.state {
			case "rollback":
				upgrade := begin(s, "upgrade", "--probation", "1h")
				s.Eventually("the new one is on probation", func() error {
					if pid := s.PID("proxyd"); pid == 0 || pid == old {
						return errors.New("not yet")
					}
					return nil
				})
				begin(s, "upgrade", "--abort")
				defer func() { <-upgrade }()
			case "probation":
				begin(s, "upgrade", "--probation", "2s")
				s.Eventually("the new one is on probation", func() error {
					if pid := s.PID("proxyd"); pid == 0 || pid == old {
						return errors.New("not yet")
					}
					return nil
				})
			default:
				begin(s, "upgrade", "--binary", built, "--probation", "1s")
			}
			if c.pause != "" {
				s.Eventually("the state is reached", func() error { _, err := os.Stat(mark); return err })
			}
			s.Kill("restartd")
			_ = os.Remove(mark)

			if c.kept {
				s.Eventually("the old one serves, and nobody beside it", func() error {
					status, err := s.Status()
					if err != nil {
						return err
					}
					live := 0
					for _, g := range status.Restartd.Generations {
						if g.State != "STATE_GONE" && g.State != "STATE_FAILED" {
							live++
						}
					}
					if status.Serving() != old || live != 1 {
						return fmt.Errorf("process %d serves of %d, want %d alone", status.Serving(), live, old)
					}
					return nil
				})
			} else {
				s.Eventually("the old one has left", func() error { return gone(old) })
			}
			if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 0 {
				t.Errorf("the next upgrade: exit %d: %s", code, out)
			}
			t.Logf("%-10s %s", c.state, end())
		})
	}
}

// TestRestartdKilledWhileOneDrains: what the old generation still has to finish is finished, and then it leaves.
func TestRestartdKilledWhileOneDrains(t *testing.T) {
	arrived := make(chan struct{}, 1)
	slow := suite.Upstream(t, func(c net.Conn) { app(&spy{Conn: c, arrived: arrived}) })
	s := suite.Start(t, fmt.Sprintf(mixedConfig, 2, filepath.Join(t.TempDir(), "access.log"), slow, suite.Upstream(t, echo), ""))
	old, end := s.PID("proxyd"), everyClient(t, s)
	c, err := net.Dial("tcp", s.Address("web"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * suite.Patience))
	if _, err := fmt.Fprint(c, "POST /slow HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf "); err != nil {
		t.Fatal(err)
	}
	select {
	case <-arrived:
	case <-time.After(suite.Patience):
		t.Fatal("the request did not arrive")
	}
	if out, code := s.Retinue("upgrade"); code != 0 {
		t.Fatalf("upgrade: exit %d: %s", code, out)
	}
	s.Kill("restartd")
	s.AwaitServing()
	if _, err := fmt.Fprint(c, "more!"); err != nil {
		t.Error(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || response.StatusCode != 200 {
		t.Errorf("the request that was under way: %v %v", response, err)
	}
	s.Eventually("the old one has left", func() error { return gone(old) })
	t.Log(end())
}

// spy says so when a request for /slow has arrived.
type spy struct {
	net.Conn
	arrived chan struct{}
}

func (s *spy) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if bytes.Contains(b[:n], []byte("POST /slow ")) {
		select {
		case s.arrived <- struct{}{}:
		default: // tried again
		}
	}
	return n, err
}

// everyClient is clients of every kind, for whom each failure is one of the test. end ends them and tells what they did.
func everyClient(t *testing.T, s *suite.Suite) (end func() string) {
	web, tcp := s.Address("web"), s.Address("tcp")
	overflows := listenOverflows(t)
	l := &load{t: t, stop: make(chan struct{}), count: map[string]*atomic.Int64{}}
	l.repeat("connection per request", 1, func() error {
		_, _, err := request(web, "GET /", nil)
		return err
	})
	l.repeat("new TCP connections", 1, func() error {
		_, err := ping(tcp)
		return err
	})
	var kept atomic.Int64
	l.all.Go(func() {
		if err := keepAlive(web, 5*time.Millisecond, l.stop, &kept); err != nil {
			t.Errorf("keep-alive: %v", err)
		}
	})
	tunnel, err := net.Dial("tcp", tcp)
	if err != nil {
		t.Fatal(err)
	}
	var streamed uint64
	l.all.Go(func() {
		defer tunnel.Close()
		var err error
		if streamed, err = counted(tunnel, l.stop); err != nil {
			t.Errorf("stream: %v", err)
		}
	})
	return func() string {
		close(l.stop)
		l.all.Wait()
		for name, count := range l.count {
			if count.Load() == 0 {
				t.Errorf("%s: none", name)
			}
		}
		if now := listenOverflows(t); now != overflows {
			t.Errorf("ListenOverflows rose by %d", now-overflows)
		}
		return fmt.Sprintf("%d requests on connections of their own, %d on one that is kept, %d TCP connections, %d numbers streamed",
			l.count["connection per request"].Load(), kept.Load(), l.count["new TCP connections"].Load(), streamed)
	}
}
