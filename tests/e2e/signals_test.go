package e2e

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"retinue.dev/tests/suite"
)

var daemons = []string{"statsd", "configd", "restartd", "proxyd"}

// TestCommandLines asks every binary for what each of them must know.
func TestCommandLines(t *testing.T) {
	dir := t.TempDir()
	for _, daemon := range daemons {
		for _, test := range []struct {
			args []string
			exit int
			says []string
		}{
			{[]string{"--version"}, 0, []string{daemon + " ", "contracts v1 revision"}},
			{[]string{"--version", "--json"}, 0, []string{`"version"`, `"revision"`}},
			{[]string{"--help"}, 0, []string{"NAME", "DESCRIPTION", "SECURITY", "SIGNALS", "FILES", "EXIT STATUS", "-dir"}},
			{[]string{"--nonsense"}, 2, []string{"nonsense"}},
			{[]string{"nonsense"}, 2, []string{"nonsense", daemon + " --help"}},
			{[]string{"--log-level", "loud"}, 2, []string{"loud", "debug, info, warn or error"}},
		} {
			t.Run(daemon+" "+strings.Join(test.args, " "), func(t *testing.T) {
				out, code := execute(t, daemon, append(test.args, "--dir", dir)...)
				if len(test.args) == 1 && test.args[0] == "nonsense" {
					out, code = execute(t, daemon, "--dir", dir, "nonsense")
				}
				if code != test.exit {
					t.Errorf("exit status %d, want %d: %s", code, test.exit, out)
				}
				for _, want := range test.says {
					if !strings.Contains(out, want) {
						t.Errorf("it does not say %q: %s", want, out)
					}
				}
			})
		}
	}
}

// TestCheckFlags is -t of every daemon, beside a running suite and without one.
func TestCheckFlags(t *testing.T) {
	s := suite.Start(t, plainConfig)
	for _, test := range []struct {
		daemon string
		args   []string
		exit   int
		says   string
	}{
		{"configd", []string{"--config", s.Config}, 0, "ok, snapshot"},
		{"configd", []string{"--config", s.Config + ".gone"}, 1, "no such file"},
		{"statsd", nil, 0, "the stats region is in"},
		{"statsd", []string{"--dir", s.Dir + "/nowhere"}, 1, "no such file"},
		{"restartd", nil, 0, ""},
		{"restartd", []string{"--proxyd", s.Config}, 1, "no executable file"},
		{"proxyd", nil, 0, ""},
	} {
		out, code := execute(t, test.daemon, append([]string{"-t", "--dir", s.Dir}, test.args...)...)
		if code != test.exit || !strings.Contains(out, test.says) {
			t.Errorf("%s -t %v: exit %d, want %d with %q: %s", test.daemon, test.args, code, test.exit, test.says, out)
		}
	}
	if err := asks(s.Address("web"), "ok\n"); err != nil {
		t.Errorf("the suite after the checks: %v", err)
	}
}

func execute(t *testing.T, name string, args ...string) (string, int) {
	t.Helper()
	cmd := exec.Command(suite.Binary(t, name), args...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// TestDaemonSignals sends each daemon each signal that must not end it, and then wants everything at work: HUP to configd
// reloads, USR2 to restartd upgrades.
func TestDaemonSignals(t *testing.T) {
	s := suite.Start(t, plainConfig)
	address := s.Address("web")
	for _, daemon := range daemons {
		for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE} {
			pid := s.PID(daemon)
			if err := syscall.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
			if daemon == "restartd" && sig == syscall.SIGUSR2 {
				s.Eventually("USR2 starts an upgrade", func() error {
					if !strings.Contains(s.Log(), `"generation":2`) {
						return errors.New("it does not")
					}
					return nil
				})
			}
			if err := asks(address, "ok\n"); err != nil {
				t.Errorf("%v to %s: %v", sig, daemon, err)
			}
			if now := s.PID(daemon); now != pid && daemon != "proxyd" {
				t.Errorf("%v to %s ended it", sig, daemon)
			}
		}
	}
	s.Write(strings.Replace(plainConfig, `"ok\n"`, `"new\n"`, 1))
	if err := syscall.Kill(s.PID("configd"), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	s.Eventually("HUP to configd reloads", func() error { return asks(address, "new\n") })
	s.Write(plainConfig)
	s.Signal(syscall.SIGHUP)
	s.Eventually("HUP to the supervisor reloads", func() error { return asks(address, "ok\n") })
	s.Write("nonsense {")
	s.Signal(syscall.SIGHUP)
	s.Eventually("a broken file is refused", func() error {
		if out, _ := s.Retinue("status"); !strings.Contains(out, "REFUSED") {
			return errors.New(out)
		}
		return nil
	})
	if err := asks(address, "ok\n"); err != nil {
		t.Error(err)
	}
}

// TestSignalsThatEnd: TERM and QUIT end each daemon in order, with exit status 0, and the supervisor starts it again.
func TestSignalsThatEnd(t *testing.T) {
	s := suite.Start(t, plainConfig)
	address := s.Address("web")
	for _, daemon := range []string{"statsd", "configd", "proxyd"} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGINT} {
			pid := s.PID(daemon)
			if err := syscall.Kill(pid, sig); err != nil {
				t.Fatal(err)
			}
			s.Eventually(fmt.Sprintf("%v ends %s, which comes back", sig, daemon), func() error {
				if now := s.PID(daemon); now == 0 || now == pid {
					return fmt.Errorf("process %d", now)
				}
				return nil
			})
			if err := asks(address, "ok\n"); err != nil {
				t.Errorf("%v to %s: %v", sig, daemon, err)
			}
		}
	}
	if log := s.Log(); !strings.Contains(log, "exit status 0") {
		t.Errorf("the log does not say how they ended: %s", log)
	}
}
