package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	suitev1 "retinue.dev/services/api/suite/v1"
)

// TestMain makes the test binary a daemon when the variable says how it shall behave.
func TestMain(m *testing.M) {
	if mode := os.Getenv("DAEMON_TEST"); mode != "" {
		os.Exit(Main(testSpec(mode)))
	}
	os.Exit(m.Run())
}

func testSpec(mode string) Spec {
	return Spec{
		Name: "testd", Summary: "a daemon of the tests", Manual: "NAME\n  testd",
		Flags: func(f *flag.FlagSet) { f.Int("answer", 42, "a flag of its own") },
		Test: func(context.Context, *Env) error {
			if mode == "broken" {
				return errors.New("the configuration is wrong")
			}
			return nil
		},
		New: func(ctx context.Context, env *Env) (Server, error) {
			switch mode {
			case "refuse":
				return nil, errors.New("the sky falls: hold it up")
			case "slow":
				fmt.Println("starting")
				<-ctx.Done() // until a signal comes
			}
			return &server{env: env, mode: mode}, nil
		},
	}
}

// server prints a word for all that happens to it.
type server struct {
	env  *Env
	mode string
}

func (s *server) Run(ctx context.Context) error {
	work := context.WithoutCancel(ctx) // answers to the end, as restartd does
	if err := s.env.ServeGRPC(work, "testd.sock", func(*grpc.Server) {}, peer.Same()); err != nil {
		return err
	}
	s.env.Ready("at work")
	fmt.Println("ready")
	<-ctx.Done()
	if s.mode == "stuck" {
		fmt.Println("stuck")
		select {}
	}
	fmt.Println("drained")
	return nil
}

func (s *server) Reload(context.Context) error {
	fmt.Println("reload")
	return errors.New("file.hcl:3: no")
}
func (s *server) ReopenLogs()             { fmt.Println("reopen") }
func (s *server) Upgrade(context.Context) { fmt.Println("upgrade") }
func (s *server) Quit()                   { fmt.Println("patient") }

// process is a running daemon.
type process struct {
	*exec.Cmd
	t   *testing.T
	out *bufio.Scanner
	log bytes.Buffer
}

func start(t *testing.T, mode, dir string) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0], "--dir", dir), t: t}
	p.Env = append(os.Environ(), "DAEMON_TEST="+mode)
	p.Stderr = &p.log
	out, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.out = bufio.NewScanner(out)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	guard := time.AfterFunc(time.Minute, func() { p.Process.Kill() })
	t.Cleanup(func() {
		guard.Stop()
		p.Process.Kill()
		p.Wait()
	})
	return p
}

// says waits for the next word of the server.
func (p *process) says(want string) {
	p.t.Helper()
	if !p.out.Scan() || p.out.Text() != want {
		p.t.Fatalf("the daemon says %q, want %q; its log: %s", p.out.Text(), want, p.log.String())
	}
}

func (p *process) signal(s unix.Signal) {
	p.t.Helper()
	if err := p.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) exits(want int) {
	p.t.Helper()
	p.Wait()
	if got := p.ProcessState.ExitCode(); got != want {
		p.t.Errorf("exit status %d, want %d; its log: %s", got, want, p.log.String())
	}
}

func TestSignals(t *testing.T) {
	dir := t.TempDir()
	p := start(t, "normal", dir)
	p.says("ready")
	for sig, word := range map[unix.Signal]string{unix.SIGHUP: "reload", unix.SIGUSR1: "reopen", unix.SIGUSR2: "upgrade"} {
		p.signal(sig)
		p.says(word)
	}
	conn, err := peer.Dial(filepath.Join(dir, "testd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	suite := suitev1.NewSuiteClient(conn)
	theirs, err := suite.Exchange(ctx, hello.Mine("test", "suite/v1"))
	if err != nil || theirs.GetDaemon() != "testd" || theirs.GetPid() != int64(p.Process.Pid) {
		t.Errorf("hello %v, %v", theirs, err)
	}
	health, err := suite.Health(ctx, &suitev1.HealthRequest{})
	if err != nil || !health.GetReady() || health.GetStatus() != "at work" {
		t.Errorf("health %v, %v", health, err)
	}
	p.signal(unix.SIGQUIT)
	p.says("patient")
	p.says("drained")
	p.exits(0)
	if _, err := os.Lstat(filepath.Join(dir, "testd.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	if !strings.Contains(p.log.String(), `"file.hcl:3: no"`) {
		t.Errorf("the log does not say why the reload was refused: %s", p.log.String())
	}
}

// TestSignalWhileStarting ends a daemon whose New still works.
func TestSignalWhileStarting(t *testing.T) {
	p := start(t, "slow", t.TempDir())
	p.says("starting")
	p.signal(unix.SIGTERM)
	p.says("ready")
	p.says("drained")
	p.exits(0)
}

func TestSecondInterruptForces(t *testing.T) {
	p := start(t, "stuck", t.TempDir())
	p.says("ready")
	p.signal(unix.SIGINT)
	p.says("stuck")
	p.signal(unix.SIGINT)
	p.exits(1)
}

// TestLogWithoutReader closes the reading end of the log: the daemon lives on.
func TestLogWithoutReader(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(os.Args[0], "--dir", t.TempDir())
	c.Env = append(os.Environ(), "DAEMON_TEST=normal")
	c.Stderr = w
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Process.Kill()
	p := &process{Cmd: c, t: t, out: bufio.NewScanner(out)}
	p.says("ready")
	w.Close()
	r.Close()
	p.signal(unix.SIGHUP) // is refused, which is logged
	p.says("reload")
	p.signal(unix.SIGUSR1)
	p.says("reopen")
	p.signal(unix.SIGTERM)
	p.says("drained")
	p.exits(0)
}

func TestCommandLine(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o777); err != nil {
		t.Fatal(err)
	}
	absent := filepath.Join(t.TempDir(), "absent")
	for _, test := range []struct {
		name, mode string
		args       []string
		want       int
		out, err   string
	}{
		{"version", "normal", []string{"--version"}, 0, "contracts v1 revision", ""},
		{"version for machines", "normal", []string{"--version", "--json"}, 0, `"testd"`, ""},
		{"help", "normal", []string{"--help"}, 0, "a flag of its own", ""},
		{"unknown flag", "normal", []string{"--bogus"}, 2, "", "bogus"},
		{"argument", "normal", []string{"more"}, 2, "", "is not a flag"},
		{"level", "normal", []string{"--log-level", "loud"}, 2, "", "use debug, info, warn or error"},
		{"good test", "normal", []string{"-t", "--dir", absent}, 0, "", ""},
		{"bad test", "broken", []string{"-t", "--dir", absent}, 1, "", "the configuration is wrong"},
		{"refused", "refuse", []string{"--dir", t.TempDir()}, 1, "", "hold it up"},
		{"a directory for everybody", "normal", []string{"--dir", open}, 1, "", "chmod o-w"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if got := run(testSpec(test.mode), test.args, &out, &errs); got != test.want {
				t.Errorf("exit status %d, want %d", got, test.want)
			}
			if !strings.Contains(out.String(), test.out) || !strings.Contains(errs.String(), test.err) {
				t.Errorf("out %q, errors %q; want %q and %q in them", out.String(), errs.String(), test.out, test.err)
			}
		})
	}
	if _, err := os.Lstat(absent); !errors.Is(err, os.ErrNotExist) {
		t.Error("-t made a directory")
	}
}

func TestVersionForMachinesIsAHello(t *testing.T) {
	var out bytes.Buffer
	if err := printVersion(&out, "testd", true); err != nil {
		t.Fatal(err)
	}
	var h suitev1.Hello
	if err := protojson.Unmarshal(out.Bytes(), &h); err != nil || hello.Check(hello.Mine("restartd", "suite/v1"), &h) != nil {
		t.Errorf("%s: %v", out.String(), err)
	}
}

// TestModes: the run directory is for the group, the state is the daemon's own.
func TestModes(t *testing.T) {
	env := &Env{Name: "testd", Dir: filepath.Join(t.TempDir(), "run")}
	env.StateDir = filepath.Join(env.Dir, "state", "testd")
	if err := makeDirs(env); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{env.Dir: 0o750, env.StateDir: 0o700} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want %v", path, st.Mode(), err, want)
		}
	}
}

func TestManual(t *testing.T) {
	if got := Manual("// Copyright\n\n/*\nNAME\n\n\ttestd\n*/\npackage main\n"); got != "NAME\n\n\ttestd\n" {
		t.Errorf("%q", got)
	}
}

// TestAskingForATerminalKeepsTheFlag: asking whether a file is a terminal leaves O_NONBLOCK alone.
func TestAskingForATerminalKeepsTheFlag(t *testing.T) {
	r, w, err := os.Pipe() // the runtime makes them non-blocking
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := logger("info", w); err != nil {
		t.Fatal(err)
	}
	raw, err := w.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
			t.Errorf("flags %o, %v: O_NONBLOCK is gone", flags, err)
		}
	})
	if l, err := logger("debug", io.Discard); err != nil || !l.Enabled(context.Background(), slog.LevelDebug) {
		t.Errorf("level debug: %v", err)
	}
}

// TestOneOfAKind: a second daemon is refused before it is made; after a kill -9 of the first the next one starts.
func TestOneOfAKind(t *testing.T) {
	dir := t.TempDir()
	first := start(t, "normal", dir)
	first.says("ready")
	second := start(t, "normal", dir)
	second.exits(1)
	if log := second.log.String(); !strings.Contains(log, "another testd works in "+dir) {
		t.Errorf("the second one says %s", log)
	}
	first.signal(unix.SIGKILL)
	third := start(t, "normal", dir)
	third.says("ready")
}
