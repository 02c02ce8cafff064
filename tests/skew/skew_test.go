// Package skew runs a proxyd of the contract before today's beside today's siblings, and the other way round.
package skew

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const config = `
runtime { probation = "0s" }
listener "echo" {
  address = ["127.0.0.1:0"]
  tcp { cluster = cluster.echo }
}
cluster "echo" { endpoints = [%q] }
stats { listen = "off" }
`

// before builds the suite of the commit before the one that changed a contract last, and answers where its binaries are.
func before(t *testing.T) string {
	t.Helper()
	git := func(args ...string) (string, error) {
		out, err := exec.Command("git", args...).Output()
		return strings.TrimSpace(string(out)), err
	}
	top, err := git("rev-parse", "--show-toplevel")
	if err != nil {
		t.Skip("no git repository: the contract before today's cannot be built")
	}
	last, err := git("-C", top, "rev-list", "-1", "HEAD", "--", "services/api")
	if err != nil || last == "" {
		t.Skip("no history of the contracts")
	}
	commit, err := git("-C", top, "rev-parse", "--verify", "-q", last+"^")
	if err != nil {
		t.Skip("the history ends at the last change of a contract")
	}
	modules := map[string]string{"proxyd": "proxyd", "restartd": "restartd", "configd": "configd", "statsd": "statsd", "retinue": "services/retinue"}
	for _, module := range modules {
		if _, err := git("-C", top, "cat-file", "-e", commit+":"+module+"/main.go"); err != nil {
			t.Skipf("the history begins with today's contract: commit %.12s has no %s yet", commit, module)
		}
	}
	dir := t.TempDir()
	tree, bin := filepath.Join(dir, "tree"), filepath.Join(dir, "bin")
	for _, d := range []string{tree, bin} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	unpack := exec.Command("sh", "-c", `git -C "$1" archive "$2" | tar -x -C "$3"`, "sh", top, commit, tree)
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("unpack %s: %v: %s", commit, err, out)
	}
	for name, module := range modules {
		build := exec.Command("go", "build", "-o", filepath.Join(bin, name), ".")
		build.Dir = filepath.Join(tree, module)
		build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOWORK=")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("build %s of %s: %v: %s", name, commit, err, out)
		}
	}
	t.Logf("the contract before today's: commit %.12s", commit)
	return bin
}

// TestGenerationsOfTwoContracts upgrades from one contract's proxyd to the other's and back, in a suite of either.
func TestGenerationsOfTwoContracts(t *testing.T) {
	today, err := filepath.Abs(filepath.Dir(suite.Binary(t, "proxyd")))
	if err != nil {
		t.Fatal(err)
	}
	old := before(t)
	for _, c := range []struct{ name, suite, guest string }{
		{"today's suite, the proxyd before", today, old},
		{"the suite before, today's proxyd", old, today},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("RETINUE_BIN", c.suite)
			mixed(t, c.suite, c.guest)
		})
	}
	t.Run("another restartd, and back", func(t *testing.T) { replaced(t, old, today) }) // last: it changes the directory
}

// replaced exchanges restartd for another one under a suite that serves, as the upgrade of a package does where there is no systemd: it
// is killed, and the one that follows is of the other contract. It finds the ledger, the sockets and the generation of the first.
func replaced(t *testing.T, host, guest string) {
	t.Setenv("RETINUE_BIN", host)
	s := suite.Start(t, fmt.Sprintf(config, suite.Upstream(t, func(c net.Conn) { _, _ = io.Copy(c, c) })))
	address, proxyd := s.Address("echo"), s.PID("proxyd")
	tunnel, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	own, err := os.ReadFile(filepath.Join(host, "restartd"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.ReadFile(filepath.Join(guest, "restartd"))
	if err != nil {
		t.Fatal(err)
	}
	for i, program := range [][]byte{other, own} {
		next := filepath.Join(host, "restartd.next")
		if err := os.WriteFile(next, program, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(host, "restartd")); err != nil {
			t.Fatal(err)
		}
		before := s.PID("restartd")
		s.KillPID("restartd", before)
		s.Eventually("another restartd knows the generation that serves", func() error {
			status, err := s.Status()
			if err != nil {
				return err
			}
			if pid := s.PID("restartd"); pid == before || status.Serving() != proxyd {
				return fmt.Errorf("restartd is %d, process %d serves, want %d", pid, status.Serving(), proxyd)
			}
			return nil
		})
		if err := exchange(tunnel); err != nil {
			t.Fatalf("the tunnel after exchange %d: %v", i, err)
		}
		if out, code := s.Retinue("upgrade", "--wait", "drained"); code != 0 {
			t.Errorf("upgrade after exchange %d: exit %d: %s", i, code, out)
		}
		if err := exchange(tunnel); err != nil {
			t.Fatalf("the tunnel after upgrade %d: %v", i, err)
		}
		proxyd = s.PID("proxyd")
	}
}

// mixed goes to the guest and back twice, under new connections and one that stays. The last upgrades are of the guest alone: what
// it holds by then moves to its like, or stays where it is. Both front doors read the region that both have written, and ask the
// daemons of the host.
func mixed(t *testing.T, hosts, guests string) {
	host, guest := filepath.Join(hosts, "proxyd"), filepath.Join(guests, "proxyd")
	s := suite.Start(t, fmt.Sprintf(config, suite.Upstream(t, func(c net.Conn) { _, _ = io.Copy(c, c) })))
	address := s.Address("echo")
	tunnel, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer tunnel.Close()
	stop := make(chan struct{})
	var clients sync.WaitGroup
	var fine int
	clients.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := ping(address); err != nil {
				t.Errorf("a new connection: %v", err)
				return
			}
			fine++
		}
	})
	for i, binary := range []string{guest, host, guest, guest, host} {
		if out, code := s.Retinue("upgrade", "--binary", binary); code != 0 {
			t.Errorf("upgrade %d to %s: exit %d: %s", i, binary, code, out)
		}
		if err := exchange(tunnel); err != nil {
			t.Fatalf("the tunnel after upgrade %d: %v", i, err)
		}
	}
	for _, bin := range []string{hosts, guests} {
		for _, args := range [][]string{{"top", "listeners", "--interval", "100ms"}, {"status"}, {"stats", "--match", "downstream_cx_total"}} {
			out, err := exec.Command(filepath.Join(bin, "retinue"), append(args, "--dir", s.Dir)...).CombinedOutput()
			if err != nil || !strings.Contains(string(out), "echo") {
				t.Errorf("%s/retinue %v: %v: %s", bin, args, err, out)
			}
		}
	}
	close(stop)
	clients.Wait()
	if fine == 0 {
		t.Error("no new connection")
	}
}

func ping(address string) error {
	c, err := net.DialTimeout("tcp", address, suite.Patience)
	if err != nil {
		return err
	}
	defer c.Close()
	return exchange(c)
}

func exchange(c net.Conn) error {
	_ = c.SetDeadline(time.Now().Add(suite.Patience))
	back := make([]byte, 4)
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, back); err != nil {
		return err
	}
	if string(back) != "ping" {
		return errors.New("another answer: " + string(back))
	}
	return nil
}
