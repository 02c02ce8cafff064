// Package suite runs the real binaries for a test: `retinue run` on a configuration of the test's, below a directory of its own.
package suite

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Patience bounds every wait for something that must happen. It is for a machine that is busy, not a measure of speed.
const Patience = 45 * time.Second

// Suite is one running suite.
type Suite struct {
	Dir    string // run directory
	Config string // path of the configuration
	Env    []string
	t      testing.TB
	cmd    *exec.Cmd
	done   chan struct{}
	log    *logBuffer
}

// logBuffer keeps what the suite writes, for the report of a failed test.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// Binary is the path of one of the suite's binaries: $RETINUE_BIN, else bin/ of this repository.
func Binary(t testing.TB, name string) string {
	t.Helper()
	dir := os.Getenv("RETINUE_BIN")
	if dir == "" {
		dir = filepath.Join("..", "..", "bin")
	}
	path, err := filepath.Abs(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is not built: run make build first", path)
	}
	return path
}

// Start runs the suite on the given HCL and waits until a generation serves. It is stopped at the end of the test, which
// then fails if a process or a socket is left. Listen on port 0 and ask Address.
func Start(t testing.TB, hcl string) *Suite {
	t.Helper()
	s := New(t)
	s.Write(hcl)
	s.Run()
	return s
}

// New makes a suite that does not run yet: a test that wants another directory or environment sets them before Run.
func New(t testing.TB) *Suite {
	dir := t.TempDir()
	return &Suite{Dir: filepath.Join(dir, "run"), Config: filepath.Join(dir, "test.hcl"), t: t, log: &logBuffer{}}
}

// Run starts it and waits until a generation serves, as Start does.
func (s *Suite) Run() {
	s.t.Helper()
	s.Launch()
	s.t.Cleanup(s.stop)
	s.AwaitServing()
}

// Launch starts it and does not wait: for a suite that is to end by itself, which Wait awaits.
func (s *Suite) Launch() {
	s.t.Helper()
	s.done = make(chan struct{})
	s.cmd = exec.Command(Binary(s.t, "retinue"), "run", "--config", s.Config, "--dir", s.Dir)
	s.cmd.Env = append(os.Environ(), s.Env...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	done, cmd := s.done, s.cmd
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	go func() {
		_ = cmd.Wait()
		close(done)
	}()
}

// Wait returns the exit status of a suite that ends by itself or was told to.
func (s *Suite) Wait() int {
	s.t.Helper()
	select {
	case <-s.done:
	case <-time.After(Patience):
		_ = s.cmd.Process.Kill()
		<-s.done
		s.t.Fatalf("the suite did not end within %v\n%s", Patience, s.Log())
	}
	return s.cmd.ProcessState.ExitCode()
}

// Signal sends a signal to the supervisor, if it is still there.
func (s *Suite) Signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Fatal(err)
	}
}

// AwaitServing waits until a generation serves.
func (s *Suite) AwaitServing() {
	s.t.Helper()
	s.Eventually("a generation serves", func() error {
		status, err := s.Status()
		if err != nil {
			return err
		}
		if status.Serving() == 0 {
			return errors.New("no generation is serving")
		}
		return nil
	})
}

// In is the same suite for a subtest, whose failures are its own.
func (s *Suite) In(t testing.TB) *Suite {
	c := *s
	c.t = t
	return &c
}

// Write replaces the configuration file; Reload applies it.
func (s *Suite) Write(hcl string) {
	s.t.Helper()
	if err := os.WriteFile(s.Config, []byte(hcl), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

// Log is what the suite has written so far.
func (s *Suite) Log() string { return s.log.String() }

// Retinue runs a subcommand and returns its output and exit status.
func (s *Suite) Retinue(args ...string) (string, int) {
	s.t.Helper()
	cmd := exec.Command(Binary(s.t, "retinue"), append(args, "--dir", s.Dir)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// Output is the standard output of a subcommand and its exit status.
func (s *Suite) Output(args ...string) (string, int) {
	s.t.Helper()
	cmd := exec.Command(Binary(s.t, "retinue"), append(args, "--dir", s.Dir)...)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	return string(out), cmd.ProcessState.ExitCode()
}

// Status is what `retinue status --json` says.
type Status struct {
	Configd struct {
		SnapshotID string    `json:"snapshotId"`
		Watchers   []Watcher `json:"watchers"`
	} `json:"configd"`
	Restartd struct {
		Generations []struct {
			Number string `json:"number"`
			State  string `json:"state"`
			PID    string `json:"pid"`
			SHA256 string `json:"binarySha256"`
			// Connections is as of the last report, a second ago at most.
			Connections int `json:"connections,string"`
			Canary      int `json:"canaryPercent"`
		} `json:"generations"`
		Upgrade   string `json:"upgrade"` // what the one under way does
		Listeners []struct {
			Name      string   `json:"name"`
			Addresses []string `json:"addresses"`
			Shards    int      `json:"shards"`
		} `json:"listeners"`
	} `json:"restartd"`
}

// Watcher is a process that follows configd.
type Watcher struct {
	Role       string `json:"role"`
	SnapshotID string `json:"snapshotId"`
	State      string `json:"state"`
}

// Serving is the pid of the serving generation, 0 for none.
func (s *Status) Serving() int {
	for _, g := range s.Restartd.Generations {
		if g.State == "STATE_SERVING" {
			pid, _ := strconv.Atoi(g.PID)
			return pid
		}
	}
	return 0
}

// Status asks every daemon.
func (s *Suite) Status() (*Status, error) {
	cmd := exec.Command(Binary(s.t, "retinue"), "status", "--json", "--dir", s.Dir)
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) { // exit 1: some daemon is down; the rest is told
		return nil, err
	}
	var status Status
	if err := json.Unmarshal(out, &status); err != nil {
		return nil, fmt.Errorf("status: %w: %s", err, out)
	}
	return &status, nil
}

// Address is where a listener is bound.
func (s *Suite) Address(listener string) string {
	s.t.Helper()
	var address string
	s.Eventually("listener "+listener+" is bound", func() error {
		status, err := s.Status()
		if err != nil {
			return err
		}
		for _, l := range status.Restartd.Listeners {
			if l.Name == listener && len(l.Addresses) > 0 {
				address = l.Addresses[0]
				return nil
			}
		}
		return errors.New("it is not in the bank")
	})
	return address
}

// PID is the process of a daemon: a child of the supervisor, or the serving generation for "proxyd".
func (s *Suite) PID(daemon string) int {
	s.t.Helper()
	if daemon == "proxyd" {
		status, err := s.Status()
		if err != nil {
			s.t.Fatal(err)
		}
		return status.Serving()
	}
	for _, pid := range s.processes() {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.HasPrefix(string(raw), daemon+"\x00") {
			return pid
		}
	}
	return 0
}

// processes are those that name the run directory on their command line, but for the supervisor.
func (s *Suite) processes() (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == s.cmd.Process.Pid || pid == os.Getpid() {
			continue
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.Contains(string(raw), s.Dir) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// Kill kills a daemon with -9 and returns when the process is gone.
func (s *Suite) Kill(daemon string) {
	s.t.Helper()
	s.KillPID(daemon, s.PID(daemon))
}

// KillPID is Kill for a process that is known already.
func (s *Suite) KillPID(daemon string, pid int) {
	s.t.Helper()
	if pid == 0 {
		s.t.Fatalf("%s does not run", daemon)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatal(err)
	}
	s.Eventually(daemon+" is dead", func() error {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(raw), ") Z ") {
			return nil
		}
		return errors.New("it lives")
	})
}

// Freeze stops a process as a debugger would and returns when none of its threads runs any more, which takes a busy machine a moment.
// The end of the test lets it go on.
func (s *Suite) Freeze(pid int) {
	s.t.Helper()
	if pid == 0 {
		s.t.Fatal("there is no such process")
	}
	s.t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) })
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		s.t.Fatal(err)
	}
	s.Eventually(fmt.Sprintf("process %d stands still", pid), func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) == 0 {
			return fmt.Errorf("it has no threads: %w", err)
		}
		for _, path := range threads {
			if raw, err := os.ReadFile(path); err == nil && !bytes.Contains(raw, []byte(") T ")) {
				return fmt.Errorf("%s", raw)
			}
		}
		return nil
	})
}

// KillAll kills the supervisor and every daemon with -9, as a machine that runs out of memory would; nothing is left to clean up after
// them. Plugins are no daemons.
func (s *Suite) KillAll() {
	s.t.Helper()
	_ = s.cmd.Process.Kill()
	<-s.done
	for _, pid := range s.processes() {
		if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err == nil && !strings.Contains(string(raw), "/plugins/") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

// Eventually waits until check answers nil.
func (s *Suite) Eventually(what string, check func() error) {
	s.t.Helper()
	deadline := time.Now().Add(Patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within %v: %v\n%s", what, Patience, err, s.Log())
		}
		select {
		case <-s.done:
			s.t.Fatalf("%s: the suite ended\n%s", what, s.Log())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *Suite) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(Patience):
		s.t.Errorf("the suite did not stop within %v", Patience)
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	s.LeavesNothing()
	if s.t.Failed() {
		s.t.Logf("the suite's log:\n%s", s.Log())
	}
}

// LeavesNothing wants no process and no socket of an ended suite.
func (s *Suite) LeavesNothing() {
	s.t.Helper()
	left := s.processes()
	for deadline := time.Now().Add(Patience); len(left) > 0 && time.Now().Before(deadline); left = s.processes() {
		time.Sleep(20 * time.Millisecond)
	}
	for _, pid := range left {
		s.t.Errorf("process %d is left behind", pid)
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if sockets, _ := filepath.Glob(filepath.Join(s.Dir, "*.sock")); len(sockets) > 0 {
		s.t.Errorf("sockets are left behind: %v", sockets)
	}
}

// Upstream is a TCP server of the test's that handles each connection by a function.
func Upstream(t testing.TB, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				handle(c)
			}()
		}
	}()
	return l.Addr().String()
}
