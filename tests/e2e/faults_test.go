package e2e

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

	"golang.org/x/sys/unix"

	"retinue.dev/tests/suite"
)

// asks makes one request on a new connection and wants the body.
func asks(address, want string) error {
	c, err := net.DialTimeout("tcp", address, suite.Patience)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(suite.Patience))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"); err != nil {
		return err
	}
	response, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(response.Body)
	if err == nil && string(body) != want {
		err = fmt.Errorf("%d %q", response.StatusCode, body)
	}
	return err
}

// TestDescriptorExhaustion leaves proxyd a handful of descriptors: it turns new connections away at once, keeps those that it
// has, and takes new ones as soon as there is room.
func TestDescriptorExhaustion(t *testing.T) {
	s := suite.Start(t, plainConfig)
	address := s.Address("web")
	pid := s.PID("proxyd")
	used, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var before unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(len(used) + 10), Max: before.Max}, nil); err != nil {
		t.Fatal(err)
	}
	var kept []net.Conn
	turnedAway := 0
	for range 60 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			if !errors.Is(err, syscall.ECONNRESET) { // turned away so soon that connect tells it
				t.Fatal(err)
			}
			turnedAway++
			continue
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(suite.Patience))
		_, _ = io.WriteString(c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if _, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil {
			var slow net.Error
			if errors.As(err, &slow) && slow.Timeout() {
				t.Fatal("a connection that cannot be served is left hanging")
			}
			turnedAway++
			continue
		}
		kept = append(kept, c)
	}
	if len(kept) == 0 || turnedAway == 0 {
		t.Fatalf("%d kept, %d turned away", len(kept), turnedAway)
	}
	s.AwaitStat(1, "retinue_listener_downstream_cx_shed", "listener=web")
	for _, c := range kept {
		write(t, c, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
		if response, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || response.StatusCode != 200 {
			t.Errorf("a connection from before: %v", err)
		}
		_ = c.Close()
	}
	s.Eventually("new connections are served again", func() error { return asks(address, "ok\n") })
	if out, code := s.Retinue("status"); code != 0 {
		t.Errorf("status: exit %d: %s", code, out)
	}
}

// TestAccessLogDisk has access logs that cannot be written: traffic goes on, the lines are counted as lost, the log of proxyd
// says so, and lines are written as soon as they can be.
func TestAccessLogDisk(t *testing.T) {
	for _, test := range []struct {
		name, path string
		mend       func(t *testing.T, path string)
	}{
		{"the disk is full", "/dev/full", nil},
		{"there is no directory", "", func(t *testing.T, path string) {
			if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			path := test.path
			if path == "" {
				path = filepath.Join(t.TempDir(), "later", "access.log")
			}
			s := suite.Start(t, strings.Replace(plainConfig, "http {", "http {\n    access_log = access_log.main", 1)+fmt.Sprintf("access_log \"main\" { path = %q }\n", path))
			address := s.Address("web")
			for range 100 {
				if err := asks(address, "ok\n"); err != nil {
					t.Fatal(err)
				}
			}
			s.AwaitStat(1, "retinue_server_access_log_write_failed")
			s.Eventually("the log names the file", func() error {
				if !strings.Contains(s.Log(), path) {
					return errors.New("it does not")
				}
				return nil
			})
			if test.mend == nil {
				s.AwaitStat(1, "retinue_server_access_log_dropped")
				return
			}
			test.mend(t, path)
			s.Eventually("lines are written", func() error {
				if err := asks(address, "ok\n"); err != nil {
					t.Fatal(err)
				}
				raw, err := os.ReadFile(path)
				if err == nil && len(raw) == 0 {
					err = errors.New("there are none")
				}
				return err
			})
		})
	}
}

// TestConfigurationGone reloads when the file is away or unreadable: exit 1, and everything goes on.
func TestConfigurationGone(t *testing.T) {
	s := suite.Start(t, plainConfig)
	address := s.Address("web")
	for _, test := range []struct {
		name string
		make func() error
		says string
	}{
		{"gone", func() error { return os.Remove(s.Config) }, "no such file"},
		{"a dangling link", func() error { return os.Symlink("nowhere", s.Config) }, "no such file"},
		{"a link to itself", func() error { return errors.Join(os.Remove(s.Config), os.Symlink(s.Config, s.Config)) }, "too many levels of symbolic links"},
		{"a pipe", func() error { return errors.Join(os.Remove(s.Config), unix.Mkfifo(s.Config, 0o600)) }, "test.hcl"},
		{"an empty directory", func() error { return errors.Join(os.Remove(s.Config), os.Mkdir(s.Config, 0o700)) }, "test.hcl"},
	} {
		if err := test.make(); err != nil {
			t.Fatal(err)
		}
		if out, code := s.Retinue("reload"); code != 1 || !strings.Contains(out, test.says) {
			t.Errorf("%s: exit %d, want 1 with %q: %s", test.name, code, test.says, out)
		}
		if err := asks(address, "ok\n"); err != nil {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	if err := os.Remove(s.Config); err != nil {
		t.Fatal(err)
	}
	s.Write(plainConfig)
	if out, code := s.Retinue("reload"); code != 0 {
		t.Errorf("with the file back: exit %d: %s", code, out)
	}
}

// TestDamagedState spoils the files in the state directory between two runs, one kind after the other: the suite runs all the
// same, and its log names what it could not use.
func TestDamagedState(t *testing.T) {
	dir := t.TempDir()
	t.Run("before", func(t *testing.T) {
		s := suite.New(t)
		s.Dir = dir
		s.Write(plainConfig)
		s.Run()
	})
	for _, test := range []struct{ name, files, says string }{
		{"restartd's ledger", "state/restartd/ledger.json", "ledger unreadable"},
		{"last-good copies", "state/*/last-good*", ""},
		{"configd's history", "state/configd/snapshots/*", ""},
		{"copies of the binary", "state/restartd/generations/*/proxyd", ""},
		{"the region", "region/*", ""},
		{"everything", "state/*/*", ""},
	} {
		for _, damage := range []string{"garbage", "truncated", "long"} {
			t.Run(test.name+" "+damage, func(t *testing.T) {
				files, err := filepath.Glob(strings.Replace(filepath.Join(dir, test.files), filepath.Join(dir, "region"), regionOf(dir), 1))
				if err != nil || len(files) == 0 {
					t.Fatalf("%s: no files: %v", test.files, err)
				}
				for _, file := range files {
					st, err := os.Stat(file)
					if err != nil || st.IsDir() {
						continue
					}
					switch damage {
					case "garbage":
						err = os.WriteFile(file, []byte("\x00\xffgarbage{"), 0o600)
					case "truncated":
						err = os.Truncate(file, st.Size()/2)
					case "long":
						err = os.Truncate(file, st.Size()+1<<20)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				s := suite.New(t)
				s.Dir = dir
				s.Write(plainConfig)
				s.Run()
				if err := asks(s.Address("web"), "ok\n"); err != nil {
					t.Error(err)
				}
				if test.says != "" && damage == "garbage" && !strings.Contains(s.Log(), test.says) {
					t.Errorf("the log does not say %q:\n%s", test.says, s.Log())
				}
			})
		}
	}
}

// regionOf is the stats region's directory of a run directory.
func regionOf(dir string) string {
	marks, _ := filepath.Glob("/dev/shm/retinue-*/directory")
	for _, mark := range marks {
		if raw, err := os.ReadFile(mark); err == nil && strings.TrimSpace(string(raw)) == dir {
			return filepath.Dir(mark)
		}
	}
	return filepath.Join(dir, "region")
}

// TestLedgerLostUnderway kills restartd and spoils its ledger: the generation that serves is found by its process and goes on.
func TestLedgerLostUnderway(t *testing.T) {
	s := suite.Start(t, plainConfig)
	address, pid := s.Address("web"), s.PID("proxyd")
	if err := os.WriteFile(filepath.Join(s.Dir, "state", "restartd", "ledger.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.Kill("restartd")
	s.AwaitServing()
	if got := s.PID("proxyd"); got != pid {
		t.Errorf("process %d serves, before it was %d", got, pid)
	}
	if err := asks(address, "ok\n"); err != nil {
		t.Error(err)
	}
	if out, code := s.Retinue("upgrade", "--probation", "0s"); code != 0 {
		t.Errorf("upgrade: exit %d: %s", code, out)
	}
}

// TestBrokenFileAtARestart: proxyd and restartd begin with their last-good copies when the configuration is broken at a start of
// the suite that has run before.
func TestBrokenFileAtARestart(t *testing.T) {
	dir := t.TempDir()
	fixed, err := net.Listen("tcp", "127.0.0.1:0") // a free port, to be the same in both runs
	if err != nil {
		t.Fatal(err)
	}
	address := fixed.Addr().String()
	fixed.Close()
	good := strings.Replace(plainConfig, "127.0.0.1:0", address, 1)
	t.Run("before", func(t *testing.T) {
		s := suite.New(t)
		s.Dir = dir
		s.Write(good)
		s.Run()
	})
	s := suite.New(t)
	s.Dir = dir
	s.Write(good + "listener {")
	s.Run()
	if err := asks(address, "ok\n"); err != nil {
		t.Error(err)
	}
	if !strings.Contains(s.Log(), "test.hcl") {
		t.Errorf("the log does not name the broken file:\n%s", s.Log())
	}
}
