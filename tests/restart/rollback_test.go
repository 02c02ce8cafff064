package restart

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"retinue.dev/tests/suite"
)

// TestCandidateThatDiesIsRolledBack kills the new generation in its probation: the old one serves again, and the tunnel that it
// had kept never noticed.
func TestCandidateThatDiesIsRolledBack(t *testing.T) {
	s := suite.Start(t, fmt.Sprintf(tcpConfig, suite.Upstream(t, echo)))
	address, old := s.Address("echo"), s.PID("proxyd")
	tunnel, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := counted(tunnel, stop)
		done <- err
	}()
	type end struct {
		out  string
		code int
	}
	upgraded := make(chan end, 1)
	go func() {
		out, code := s.Retinue("upgrade", "--probation", "1h")
		upgraded <- end{out, code}
	}()
	var candidate int
	s.Eventually("the candidate serves", func() error {
		if candidate = s.PID("proxyd"); candidate == 0 || candidate == old {
			return errors.New("not yet")
		}
		return nil
	})
	if out, code := s.Retinue("upgrade"); code == 0 || !strings.Contains(out, "probation") {
		t.Errorf("a second upgrade: exit %d, %q", code, out)
	}
	if err := syscall.Kill(candidate, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e := <-upgraded; e.code != 1 || !strings.Contains(e.out, "serves again") {
		t.Errorf("exit %d: %s", e.code, e.out)
	}
	if _, err := ping(address); err != nil {
		t.Error(err)
	}
	if pid := s.PID("proxyd"); pid != old {
		t.Errorf("process %d serves, not the old one %d", pid, old)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("the tunnel: %v", err)
	}
}

// TestRollbackGeneration returns to the binary of the generation before, with the connections.
func TestRollbackGeneration(t *testing.T) {
	config := strings.Replace(tcpConfig, "runtime { workers = 2 }", "runtime { probation = \"0s\" }", 1)
	s := suite.Start(t, fmt.Sprintf(config, suite.Upstream(t, echo)))
	if out, code := s.Retinue("rollback", "generation"); code == 0 || !strings.Contains(out, "no generation to return to") {
		t.Errorf("exit %d: %s", code, out)
	}
	tunnel, err := net.Dial("tcp", s.Address("echo"))
	if err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := counted(tunnel, stop)
		done <- err
	}()
	other := t.TempDir() + "/proxyd" // the same program with a tail: another checksum
	raw, err := os.ReadFile(suite.Binary(t, "proxyd"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(other, append(raw, "another build"...), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"upgrade", "--binary", other, "--probation", "0s", "--wait", "drained"}, {"rollback", "generation", "--wait", "drained"}} {
		if out, code := s.Retinue(args...); code != 0 {
			t.Fatalf("%v: exit %d: %s", args, code, out)
		}
	}
	status, err := s.Status()
	if err != nil {
		t.Fatal(err)
	}
	sums := map[string]string{}
	for _, g := range status.Restartd.Generations {
		sums[g.Number] = g.SHA256
	}
	if sums["1"] == "" || sums["3"] != sums["1"] || sums["2"] == sums["1"] {
		t.Errorf("checksums %v", sums)
	}
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("the tunnel: %v", err)
	}
}
