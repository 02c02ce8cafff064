package restart

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

// idler is a client with one HTTP/1 connection that lies still between its requests.
type idler struct {
	net.Conn
	r *bufio.Reader
	n int
}

func idle(t *testing.T, address string) *idler {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, suite.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	i := &idler{Conn: c, r: bufio.NewReader(c)}
	i.ask(t)
	if err := i.answer(); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *idler) ask(t *testing.T) {
	i.n++
	body := fmt.Sprint("request ", i.n)
	_ = i.SetDeadline(time.Now().Add(suite.Patience))
	if _, err := fmt.Fprintf(i, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		t.Logf("request %d is not sent: %v", i.n, err)
	}
}

// answer wants the answer to the last request, and no other.
func (i *idler) answer() error {
	response, err := http.ReadResponse(i.r, nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if want := fmt.Sprint("request ", i.n); err == nil && (response.StatusCode != 200 || string(got) != want) {
		err = fmt.Errorf("status %d with %q in place of %q", response.StatusCode, got, want)
	}
	return err
}

// TestKilledWhileHTTPMoves kills either generation at each step of a hand-over with idle HTTP/1 connections, upgraded ones that stream
// and TCP tunnels in it; some idle clients send their next request while their connection lies between the two. What the dead process
// did not own goes on in the other, with every byte once and in order; what it did ends, and nothing wrong is ever read.
func TestKilledWhileHTTPMoves(t *testing.T) {
	built := builtForTests(t)
	type outcome int
	const (
		survives outcome = iota
		dies
		either
	)
	for _, c := range []struct {
		side, step string
		want       outcome
	}{
		{"giver", "parked", dies},
		{"giver", "offered", survives},
		{"giver", "closed", survives},
		{"giver", "released", survives},
		{"taker", "registered", survives},
		{"taker", "accepted", survives},
		{"taker", "answered", either},
		{"taker", "resumed", dies},
	} {
		t.Run(c.side+"-"+c.step, func(t *testing.T) {
			mark := filepath.Join(t.TempDir(), "reached")
			s := suite.New(t)
			s.Env = []string{"RETINUE_TEST_PAUSE=" + c.side + "-" + c.step + ":" + mark}
			s.Write(fmt.Sprintf(mixedConfig, 1, filepath.Join(t.TempDir(), "access.log"), suite.Upstream(t, app), suite.Upstream(t, echo), ""))
			s.Run()
			if out, code := s.Retinue("upgrade", "--binary", built, "--wait", "drained"); code != 0 {
				t.Fatalf("upgrade to the test build: exit %d: %s", code, out)
			}
			giver, web, tcp := s.PID("proxyd"), s.Address("web"), s.Address("tcp")
			var idlers []*idler
			for range 6 {
				idlers = append(idlers, idle(t, web))
			}
			stop, streams := make(chan struct{}), make(chan error, 4)
			for i := range cap(streams) {
				var c net.Conn
				if i < 2 {
					c = upgraded(t, web)
				} else {
					c = dialled(t, tcp)
				}
				go func() {
					_, err := counted(c, stop)
					streams <- err
				}()
			}
			begin(s, "upgrade", "--binary", built)
			s.Eventually("the step is reached", func() error { _, err := os.Stat(mark); return err })
			for _, i := range idlers[:3] {
				i.ask(t)
			}
			kill := giver
			if c.side == "taker" {
				if kill = s.PID("proxyd"); kill == giver || kill == 0 {
					t.Fatalf("process %d takes", kill)
				}
			}
			if err := os.WriteFile(mark+".done", nil, 0o644); err != nil {
				t.Fatal(err)
			}
			// A giver without connections may have left by itself: that is a death as good as this one.
			if err := syscall.Kill(kill, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				t.Fatal(err)
			}
			s.Eventually(c.side+" is dead", func() error { return gone(kill) })
			_ = os.Remove(mark)

			failed := 0
			check := func(what string, err error) {
				if err == nil {
					return
				}
				failed++
				var timeout net.Error
				if c.want == survives || strings.Contains(err.Error(), "in place of") || errors.As(err, &timeout) && timeout.Timeout() {
					t.Errorf("%s: %v", what, err)
				}
			}
			for n, i := range idlers {
				if n >= 3 {
					i.ask(t)
				}
				check(fmt.Sprintf("idle connection %d", n), i.answer())
			}
			close(stop)
			for range cap(streams) {
				select {
				case err := <-streams:
					check("stream", err)
				case <-time.After(2 * suite.Patience):
					t.Fatal("a stream hangs")
				}
			}
			if c.want == dies && failed == 0 {
				t.Error("nobody noticed the death of the process that had the connections: the test kills the wrong one")
			}
			t.Logf("%s killed at %q: %d of %d connections ended", c.side, c.step, failed, len(idlers)+cap(streams))
			s.Eventually("another generation serves", func() error {
				if pid := s.PID("proxyd"); pid == 0 || pid == kill {
					return errors.New("not yet")
				}
				return nil
			})
			if c.side == "taker" {
				s.Eventually("the giver leaves", func() error { return gone(giver) })
			}
		})
	}
}

func dialled(t *testing.T, address string) net.Conn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, suite.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
