package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const plainConfig = `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { body = "ok\n" }
      }
    }
  }
}
stats { listen = "off" }
`

// TestStop ends the suite in every way that a person has. The clean-up of each run fails if a process or socket is left.
func TestStop(t *testing.T) {
	for _, test := range []struct {
		name string
		stop func(s *suite.Suite)
		exit int
	}{
		{"Ctrl-C", func(s *suite.Suite) { s.Signal(syscall.SIGINT) }, 0},
		{"TERM", func(s *suite.Suite) { s.Signal(syscall.SIGTERM) }, 0},
		{"Ctrl-C twice", func(s *suite.Suite) {
			s.Signal(syscall.SIGINT)
			s.Signal(syscall.SIGINT) // one wish, as timeout(1) sends it
		}, 0},
		{"Ctrl-C under an open connection", func(s *suite.Suite) {
			dial(t, s.Address("web"))
			s.Signal(syscall.SIGINT)
		}, 0},
		{"Ctrl-C when restartd is dead", func(s *suite.Suite) {
			s.Kill("restartd")
			s.Signal(syscall.SIGINT)
		}, 0},
		{"Ctrl-C when everybody is dead but proxyd", func(s *suite.Suite) {
			for _, d := range []string{"statsd", "configd", "restartd"} {
				s.Kill(d)
			}
			s.Signal(syscall.SIGINT)
		}, 0},
		{"the supervisor is killed", func(s *suite.Suite) { s.Signal(syscall.SIGKILL) }, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := suite.Start(t, plainConfig)
			test.stop(s)
			if got := s.Wait(); got != test.exit {
				t.Errorf("exit status %d, want %d", got, test.exit)
			}
		})
	}
}

// TestForcedStop stops a daemon's process, so that the suite waits for it, and has a person press Ctrl-C until the suite is gone: it
// kills what is left long before it would by itself, and leaves as little behind.
func TestForcedStop(t *testing.T) {
	s := suite.Start(t, plainConfig)
	s.Freeze(s.PID("configd"))
	over := make(chan struct{})
	var person sync.WaitGroup
	person.Go(func() {
		for { // the first one asks; what comes at once after it is the same wish; a later one forces
			s.Signal(syscall.SIGINT)
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	exit := s.Wait()
	close(over)
	person.Wait()
	if exit != 0 {
		t.Errorf("exit status %d", exit)
	}
	if log := s.Log(); !strings.Contains(log, "what has not stopped yet is killed") || strings.Contains(log, "did not stop in time") {
		t.Error("the second wish did not force it")
	}
}

// TestTwoSuites: a second suite on a directory is refused at once and leaves the first one alone; elsewhere it runs.
func TestTwoSuites(t *testing.T) {
	first := suite.Start(t, plainConfig)
	second := suite.New(t)
	second.Dir = first.Dir
	second.Write(plainConfig)
	second.Launch()
	if exit := second.Wait(); exit != 1 || !strings.Contains(second.Log(), "runs below "+first.Dir+" already") {
		t.Errorf("exit %d, want 1 and the reason; it said: %s", exit, second.Log())
	}
	suite.Start(t, plainConfig)
	dial(t, first.Address("web"))
}

// TestCannotStart has what keeps a suite from starting: it ends at once, exit 1, and says why and what to do.
func TestCannotStart(t *testing.T) {
	for _, test := range []struct {
		name string
		set  func(t *testing.T, s *suite.Suite)
		says []string
	}{
		{"a broken file", func(_ *testing.T, s *suite.Suite) {
			s.Write(strings.Replace(plainConfig, "address", "adress", 1))
		}, []string{"test.hcl line 3", `Did you mean "address"?`, "configd did not start"}},
		{"no file", func(_ *testing.T, s *suite.Suite) { s.Config += ".gone" }, []string{"no such file", "--config"}},
		{"a directory that is a file", func(t *testing.T, s *suite.Suite) {
			s.Write(plainConfig)
			s.Dir = filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(s.Dir, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, []string{"not a directory"}},
		{"a directory that everybody may write to", func(t *testing.T, s *suite.Suite) {
			s.Write(plainConfig)
			s.Dir = t.TempDir()
			if err := os.Chmod(s.Dir, 0o777); err != nil {
				t.Fatal(err)
			}
		}, []string{"everybody may write to the run directory", "chmod o-w"}},
		{"a socket's name that is no socket", func(t *testing.T, s *suite.Suite) {
			s.Write(plainConfig)
			if err := errors.Join(os.Mkdir(s.Dir, 0o750), os.WriteFile(filepath.Join(s.Dir, "configd.sock"), nil, 0o600)); err != nil {
				t.Fatal(err)
			}
		}, []string{"configd.sock", "no socket: remove it"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := suite.New(t)
			test.set(t, s)
			s.Launch()
			exit := s.Wait()
			for _, want := range test.says {
				if exit != 1 || !strings.Contains(s.Log(), want) {
					t.Errorf("exit %d, want 1 with %q; it said:\n%s", exit, want, s.Log())
				}
			}
			if test.name != "a socket's name that is no socket" {
				s.LeavesNothing()
			}
		})
	}
}

// TestLongRunDirectory runs below a path that no socket address holds.
func TestLongRunDirectory(t *testing.T) {
	s := suite.New(t)
	s.Dir = filepath.Join(s.Dir, strings.Repeat("long", 30), strings.Repeat("path", 30))
	s.Write(plainConfig)
	s.Run()
	if out, code := s.Retinue("status"); code != 0 {
		t.Errorf("status: exit %d: %s", code, out)
	}
	if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 0 {
		t.Errorf("upgrade: exit %d: %s", code, out)
	}
	c := dial(t, s.Address("web"))
	write(t, c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	if text, _ := untilEnd(c); !strings.HasSuffix(text, "ok\n") {
		t.Errorf("%q", text)
	}
}

// TestAddressInUse: a reload to an address that another process has is refused whole, with the place in the file; when the other
// is gone it is applied.
func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := suite.Start(t, plainConfig)
	address := s.Address("web")
	more := plainConfig + fmt.Sprintf(`
listener "more" {
  address = [%q]
  tcp { cluster = cluster.x }
}
cluster "x" { endpoints = [%q] }
`, taken.Addr(), suite.Upstream(t, echo))
	s.Write(more)
	out, code := s.Retinue("reload")
	line := 1 + strings.Count(more[:strings.Index(more, taken.Addr().String())], "\n")
	if code != 1 || !strings.Contains(out, fmt.Sprintf("test.hcl line %d", line)) || !strings.Contains(out, "address in use") {
		t.Errorf("exit %d, want 1 with test.hcl line %d: %s", code, line, out)
	}
	if status, code := s.Retinue("status"); !strings.Contains(status, "REFUSED") {
		t.Errorf("status: exit %d, without a word of the refusal: %s", code, status)
	}
	dial(t, address) // nothing has changed
	taken.Close()
	if out, code := s.Retinue("reload"); code != 0 {
		t.Errorf("with the address free: exit %d: %s", code, out)
	}
	dial(t, taken.Addr().String())
}

// TestAddressInUseAtTheStart: the suite says which line of the file wants an address that another process has, and runs as soon
// as it is free.
func TestAddressInUseAtTheStart(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	s := suite.New(t)
	s.Write(strings.Replace(plainConfig, "127.0.0.1:0", taken.Addr().String(), 1))
	s.Launch()
	s.Eventually("the log says why it waits", func() error {
		if log := s.Log(); !strings.Contains(log, "test.hcl:3:14") || !strings.Contains(log, "address in use") {
			return errors.New("it does not")
		}
		return nil
	})
	taken.Close()
	s.AwaitServing()
	dial(t, taken.Addr().String())
	s.Signal(syscall.SIGINT)
	if exit := s.Wait(); exit != 0 {
		t.Errorf("exit status %d", exit)
	}
}
