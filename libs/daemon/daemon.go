// Package daemon owns main of the four daemons: flags, log, signals, readiness, watchdog, the hello service, exit codes.
//
// A daemon is a Spec and a Server. Main parses the command line, makes the directories, calls Spec.New, runs the server until a
// signal ends it, and returns the exit code: 0 done, 1 failed, 2 usage.
package daemon

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	"retinue.dev/libs/sdnotify"
	suitev1 "retinue.dev/services/api/suite/v1"
)

// Spec is one daemon.
type Spec struct {
	Name    string // as in ps, the socket and the unit
	Summary string // one line
	Manual  string // the text of --help
	Flags   func(*flag.FlagSet)
	// Several processes of the daemon may be at work in one state directory; else a second one is refused before it touches
	// anything.
	Several bool
	// Test is -t: it checks without serving. nil checks flags and the directory only.
	Test func(ctx context.Context, env *Env) error
	// Early runs after the flags were parsed and instead of everything else when it says so: commands like --dump.
	Early func(ctx context.Context, env *Env) (handled bool, err error)
	New   func(ctx context.Context, env *Env) (Server, error)
}

// Server is a daemon at work. Run returns nil when ctx is done and everything is drained. A server may be a
// Reloader, LogReopener, Upgrader or Quitter too.
type Server interface {
	Run(ctx context.Context) error
}

// Reloader reloads on HUP.
type Reloader interface {
	Reload(ctx context.Context) error
}

// LogReopener reopens its files on USR1.
type LogReopener interface{ ReopenLogs() }

// Upgrader upgrades on USR2.
type Upgrader interface{ Upgrade(ctx context.Context) }

// Quitter is told that the end, when it comes, shall be patient: QUIT. Run's context is done right after.
type Quitter interface{ Quit() }

// Env is what a daemon finds itself in.
type Env struct {
	Name, Dir, StateDir string
	JSON                bool // --json
	Log                 *slog.Logger
	Notify              *sdnotify.Notifier
	Inherited           []sdnotify.File

	started time.Time
	ready   atomic.Bool
	line    atomic.Value // string

	ended   chan struct{}  // closed when the server has returned
	serving sync.WaitGroup // the control sockets, until their names are gone
}

// Socket is the path of a socket in the run directory.
func (e *Env) Socket(name string) string { return filepath.Join(e.Dir, name) }

// Ready announces readiness to the supervisor and to suite/v1 Health.
func (e *Env) Ready(line string) {
	e.ready.Store(true)
	e.line.Store(line)
	if err := e.Notify.Ready(line); err != nil {
		e.Log.Warn("the supervisor was not told that the daemon is ready", "error", err)
	}
}

// Status says what the daemon is doing, in one line for people.
func (e *Env) Status(line string) {
	e.line.Store(line)
	_ = e.Notify.Status(line) // a lost status line changes nothing
}

// FeedWatchdog feeds the supervisor's watchdog for as long as alive says so, until ctx is done.
func (e *Env) FeedWatchdog(ctx context.Context, alive func() bool) {
	interval := sdnotify.WatchdogInterval()
	if interval <= 0 {
		return
	}
	go func() {
		ticker := time.NewTicker(interval / 3)
		defer ticker.Stop()
		for {
			if alive() {
				_ = e.Notify.Watchdog() // a supervisor that is not reached kills us, and says so
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	}()
}

// ServeGRPC serves register's services and suite/v1 on a socket of the run directory, from now until ctx is done or the
// server has returned. The process does not end before the socket's name is gone.
func (e *Env) ServeGRPC(ctx context.Context, socket string, register func(*grpc.Server), policy peer.Policy) error {
	l, err := peer.Listen(e.Socket(socket), 0o660)
	if err != nil {
		return err
	}
	server := grpc.NewServer(peer.ServerOptions(policy)...)
	suitev1.RegisterSuiteServer(server, &suite{env: e})
	register(server)
	e.serving.Go(func() {
		if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			e.Log.Error("the control socket is gone: the daemon works on, but cannot be asked; restart it", "socket", socket, "error", err)
		}
	})
	e.serving.Go(func() {
		select {
		case <-ctx.Done():
		case <-e.ended:
		}
		hard := time.AfterFunc(lastCalls, server.Stop) // streams of watchers never end by themselves
		defer hard.Stop()
		server.GracefulStop()
	})
	return nil
}

// lastCalls is how long calls under way may take when a control socket closes.
const lastCalls = 500 * time.Millisecond

type suite struct {
	suitev1.UnimplementedSuiteServer
	env *Env
}

func (s *suite) Exchange(_ context.Context, theirs *suitev1.Hello) (*suitev1.Hello, error) {
	mine := hello.Mine(s.env.Name, "suite/v1")
	if err := hello.Check(mine, theirs); err != nil {
		return nil, err
	}
	return mine, nil
}

func (s *suite) Health(context.Context, *suitev1.HealthRequest) (*suitev1.HealthReply, error) {
	line, _ := s.env.line.Load().(string)
	return &suitev1.HealthReply{Ready: s.env.ready.Load(), Status: line, StartedUnixMs: s.env.started.UnixMilli()}, nil
}

// Main runs the daemon and returns its exit code.
func Main(s Spec) int { return run(s, os.Args[1:], os.Stdout, os.Stderr) }

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

func run(s Spec, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet(s.Name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	dir := flags.String("dir", DefaultDir(), "run directory: sockets and, unless STATE_DIRECTORY is set, state")
	test := flags.Bool("t", false, "check configuration and surroundings, then exit")
	version := flags.Bool("version", false, "print the version and exit")
	asJSON := flags.Bool("json", false, "machine-readable output, with -t and --version")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	if s.Flags != nil {
		s.Flags(flags)
	}
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "%s\n\nFLAGS\n", strings.TrimSpace(s.Manual))
		flags.PrintDefaults()
	}
	for _, a := range args {
		if a == "--help" || a == "-help" || a == "-h" {
			flags.SetOutput(stdout)
		}
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return exitDone
	} else if err != nil {
		return exitUsage
	}
	if *version {
		if err := printVersion(stdout, s.Name, *asJSON); err != nil {
			fmt.Fprintf(stderr, "%s: %v\n", s.Name, err)
			return exitFailed
		}
		return exitDone
	}
	if flags.NArg() > 0 {
		fmt.Fprintf(stderr, "%s: %q is not a flag; see %s --help\n", s.Name, flags.Arg(0), s.Name)
		return exitUsage
	}
	log, err := logger(*level, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "%s: %v\n", s.Name, err)
		return exitUsage
	}
	env := &Env{Name: s.Name, JSON: *asJSON, Log: log.With("daemon", s.Name), Notify: sdnotify.New(), started: time.Now(), ended: make(chan struct{})}
	fail := func(err error) int {
		if !errors.Is(err, ErrReported) {
			env.Log.Error(s.Name+" cannot go on", "error", err)
		}
		return exitFailed
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if env.Dir, err = filepath.Abs(*dir); err != nil {
		return fail(err)
	}
	env.StateDir = filepath.Join(env.Dir, "state", s.Name)
	if state := os.Getenv("STATE_DIRECTORY"); state != "" {
		env.StateDir = strings.Split(state, ":")[0]
	}
	if s.Early != nil {
		if handled, err := s.Early(ctx, env); err != nil {
			return fail(err)
		} else if handled {
			return exitDone
		}
	}
	if *test {
		if s.Test != nil {
			if err := s.Test(ctx, env); err != nil {
				return fail(err)
			}
		}
		return exitDone
	}
	if err := makeDirs(env); err != nil {
		return fail(err)
	}
	if !s.Several {
		unlock, err := lockState(env)
		if err != nil {
			return fail(err)
		}
		defer unlock()
	}
	env.Inherited = sdnotify.Inherited()
	signals := catchSignals(ctx, cancel, env)
	defer signals.release()
	server, err := s.New(ctx, env)
	if err != nil {
		return fail(err)
	}
	signals.serve(server)
	go env.stop(ctx)
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx) }()
	select {
	case err = <-done:
	case <-signals.forced:
		return fail(errors.New("interrupted twice: nothing was waited for"))
	}
	close(env.ended)
	env.serving.Wait()
	if err != nil {
		return fail(err)
	}
	return exitDone
}

const (
	// extendBy is how much more time a daemon that stops asks for, and extendEvery how often: a drain has a limit of its own,
	// which the supervisor need not know.
	extendBy    = 30 * time.Second
	extendEvery = 10 * time.Second
)

// stop tells the supervisor that the daemon stops as soon as it begins to, and that it is still at it, until it has ended.
func (e *Env) stop(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-e.ended:
		return
	}
	_ = e.Notify.Stopping() // a supervisor that is not reached has its own time-out
	tick := time.NewTicker(extendEvery)
	defer tick.Stop()
	for {
		_ = e.Notify.ExtendTimeout(extendBy)
		select {
		case <-tick.C:
		case <-e.ended:
			return
		}
	}
}

// makeDirs makes the run and state directories, and refuses a run directory in which others could put sockets in place
// of the suite's.
func makeDirs(env *Env) error {
	if err := os.MkdirAll(env.Dir, 0o750); err != nil {
		return fmt.Errorf("make the run directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(env.Dir, &st); err != nil {
		return fmt.Errorf("the run directory %s: %w", env.Dir, err)
	}
	if st.Uid != 0 && int(st.Uid) != os.Getuid() {
		if u, err := user.LookupId(strconv.Itoa(int(st.Uid))); err != nil || !strings.HasPrefix(u.Username, peer.Group) {
			return fmt.Errorf("the run directory %s belongs to user %d, who could put sockets of its own there: choose another --dir", env.Dir, st.Uid)
		}
	}
	if st.Mode&0o002 != 0 {
		return fmt.Errorf("everybody may write to the run directory %s and put sockets there: chmod o-w, or choose another --dir", env.Dir)
	}
	if err := os.MkdirAll(filepath.Dir(env.StateDir), 0o750); err != nil {
		return fmt.Errorf("make the state directory: %w", err)
	}
	if err := os.Mkdir(env.StateDir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make the state directory: %w", err)
	}
	return nil
}

// lastBreath is how long a predecessor that was just killed may take to be gone.
const lastBreath = 2 * time.Second

// lockState makes this process the only one of its kind in its state directory. The lock ends with the process.
func lockState(env *Env) (unlock func(), err error) {
	fd, err := unix.Open(env.StateDir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the state directory %s: %w", env.StateDir, err)
	}
	for deadline := time.Now().Add(lastBreath); ; time.Sleep(5 * time.Millisecond) {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { _ = unix.Close(fd) }, nil
		case (err == unix.EWOULDBLOCK || err == unix.EINTR) && time.Now().Before(deadline):
			continue
		case err == unix.EWOULDBLOCK:
			err = fmt.Errorf("another %s works in %s: stop it, or choose another --dir", env.Name, env.StateDir)
		default:
			err = fmt.Errorf("lock the state directory %s: %w", env.StateDir, err)
		}
		_ = unix.Close(fd)
		return nil, err
	}
}

// printVersion says what the binary is; as JSON it is the Hello of suite/v1.
func printVersion(out io.Writer, name string, asJSON bool) error {
	mine := hello.Mine(name, "suite/v1")
	if asJSON {
		mine.Pid = 0
		text, err := protojson.Marshal(mine)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s\n", text)
		return err
	}
	_, err := fmt.Fprintf(out, "%s %s (%s), contracts v1 revision %d, works with %d and later\n", name, mine.GetVersion(), mine.GetGitRevision(), mine.GetRevision(), mine.GetMinRevision())
	return err
}

// ErrReported is an error whose text the user has seen already: Main exits 1 and adds nothing.
var ErrReported = errors.New("reported")

// DefaultDir is the run directory where none is named: /run/retinue for root, below XDG_RUNTIME_DIR for others.
func DefaultDir() string {
	if os.Getuid() == 0 {
		return "/run/retinue"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "retinue")
	}
	return filepath.Join(os.TempDir(), "retinue-"+strconv.Itoa(os.Getuid()))
}

func logger(level string, out io.Writer) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %q: use debug, info, warn or error", level)
	}
	o := &slog.HandlerOptions{Level: l}
	if f, ok := out.(*os.File); ok && isTerminal(f) {
		return slog.New(slog.NewTextHandler(out, o)), nil
	}
	return slog.New(slog.NewJSONHandler(out, o)), nil
}

// isTerminal asks without Fd, which would make a non-blocking file blocking for everybody who shares it.
func isTerminal(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	terminal := false
	err = raw.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		terminal = err == nil
	})
	return err == nil && terminal
}

// Manual is the text of --help out of a daemon's doc.go: the package comment.
func Manual(source string) string {
	_, text, _ := strings.Cut(source, "/*\n")
	text, _, _ = strings.Cut(text, "*/")
	return text
}
