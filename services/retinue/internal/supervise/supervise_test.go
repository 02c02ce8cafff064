package supervise

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/sdnotify"
)

// TestMain makes the test binary a supervisor's hidden command and a daemon as well as the tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == ExecCommand {
		fmt.Fprintln(os.Stderr, Exec(os.Args[2:]))
		os.Exit(1)
	}
	if dir := os.Getenv("FAKE_DAEMON_DIR"); dir != "" {
		if os.Args[0] == "broken" {
			os.Exit(3)
		}
		os.Exit(fakeDaemon(dir, os.Args[0]))
	}
	os.Exit(m.Run())
}

// fakeDaemon writes its pid and what it inherited, stores a pipe at its first start, and waits for TERM.
func fakeDaemon(dir, name string) int {
	inherited := sdnotify.Inherited()
	var report strings.Builder
	fmt.Fprintf(&report, "%d", os.Getpid())
	for _, f := range inherited {
		var b [1]byte
		n, _ := unix.Read(f.FD, b[:])
		fmt.Fprintf(&report, " %s=%s", f.Name, b[:max(n, 0)])
	}
	notify := sdnotify.New()
	if len(inherited) == 0 {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return 1
		}
		unix.Write(p[1], []byte("12345"))
		if err := notify.StoreFD("pipe", p[0]); err != nil {
			return 1
		}
	}
	tmp := filepath.Join(dir, name+".tmp")
	if os.WriteFile(tmp, []byte(report.String()), 0o600) != nil || os.Rename(tmp, filepath.Join(dir, name)) != nil {
		return 1
	}
	notify.Ready("here")
	if name == "flaky" {
		f, err := os.OpenFile(filepath.Join(dir, "starts"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			_, err = fmt.Fprintln(f, time.Now().UnixNano())
		}
		if err != nil {
			return 1
		}
		return 7
	}
	for { // TERM ends it
		if _, err := unix.Poll(nil, -1); err != nil && err != unix.EINTR {
			return 1
		}
	}
}

type running struct {
	dir  string
	stop context.CancelFunc
	done chan error
}

func start(t *testing.T, names ...string) *running {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := &running{dir: t.TempDir(), done: make(chan error, 1)}
	var programs []Program
	for _, name := range names {
		programs = append(programs, Program{Name: name, Path: self, Env: []string{"FAKE_DAEMON_DIR=" + r.dir}, StopTime: 10 * time.Second})
	}
	s, err := New(slog.New(slog.DiscardHandler), self, programs)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.done <- s.Run(ctx, make(chan struct{}), make(chan unix.Signal)) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err, ok := <-r.done:
			if ok && err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second):
			t.Error("the supervisor does not stop")
		}
	})
	for range names {
		select {
		case <-s.Ready():
		case <-time.After(20 * time.Second):
			t.Fatal("the programs do not become ready")
		}
	}
	return r
}

// report is what a fake daemon wrote, once its pid is another than before.
func (r *running) report(t *testing.T, name string, before int) (pid int, inherited string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		raw, err := os.ReadFile(filepath.Join(r.dir, name))
		if err != nil {
			continue
		}
		first, rest, _ := strings.Cut(string(raw), " ")
		if pid, err = strconv.Atoi(first); err == nil && pid != before {
			return pid, rest
		}
	}
	t.Fatalf("%s did not come up", name)
	return 0, ""
}

// TestDescriptorsSurviveKill kills a daemon again and again: it comes back with what it had stored, the same open file.
func TestDescriptorsSurviveKill(t *testing.T) {
	r := start(t, "one", "two")
	pid, inherited := r.report(t, "one", 0)
	if inherited != "" {
		t.Fatalf("the first start inherited %q", inherited)
	}
	for i := range 3 {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		pid, inherited = r.report(t, "one", pid)
		if want := fmt.Sprintf("pipe=%d", i+1); inherited != want {
			t.Errorf("after kill %d the daemon inherited %q, want %q", i+1, inherited, want)
		}
	}
}

func TestStopLeavesNoProcess(t *testing.T) {
	r := start(t, "one", "two")
	one, _ := r.report(t, "one", 0)
	two, _ := r.report(t, "two", 0)
	r.stop()
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	close(r.done)
	for _, pid := range []int{one, two} {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process %d is left: %v", pid, err)
		}
	}
}

// TestExitBeforeReadyEndsAll has a program that exits at its first start: starting it again and again would hide why.
func TestExitBeforeReadyEndsAll(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var programs []Program
	for _, name := range []string{"fine", "broken"} {
		programs = append(programs, Program{Name: name, Path: self, Env: []string{"FAKE_DAEMON_DIR=" + dir}, StopTime: 10 * time.Second})
	}
	s, err := New(slog.New(slog.DiscardHandler), self, programs)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Run(t.Context(), make(chan struct{}), make(chan unix.Signal)) }()
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "broken did not start (exit status 3)") {
			t.Errorf("the supervisor ended with %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the supervisor goes on")
	}
	for _, c := range s.programs {
		if c.pid != 0 {
			t.Errorf("%s is left", c.Name)
		}
	}
}

// TestBackoff has a daemon that exits as soon as it is ready: it is started again after pauses that double.
func TestBackoff(t *testing.T) {
	r := start(t, "flaky")
	var starts []string
	for deadline := time.Now().Add(20 * time.Second); len(starts) < 5 && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		raw, _ := os.ReadFile(filepath.Join(r.dir, "starts"))
		starts = strings.Fields(string(raw))
	}
	if len(starts) < 5 {
		t.Fatalf("it was started %d times", len(starts))
	}
	at := func(i int) time.Duration {
		ns, err := strconv.ParseInt(starts[i], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(ns)
	}
	for i, least := 1, firstBackoff; i < 5; i, least = i+1, 2*least {
		if pause := at(i) - at(i-1); pause < least {
			t.Errorf("start %d came after %v, want %v at least", i, pause, least)
		}
	}
}
