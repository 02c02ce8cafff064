package generation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"retinue.dev/libs/preflight"
)

// Exec launches generations as processes in sessions of their own, so that neither a terminal's signals nor the end
// of restartd reach them. Their output is restartd's own: the journal or the terminal, never a pipe that breaks.
type Exec struct {
	Dir string // the suite's run directory, passed on by --dir
}

var _ Launcher = Exec{}

// Preflight implements Launcher.
func (x Exec) Preflight(ctx context.Context, binary string) (*preflight.Report, error) {
	out, complaint := &bounded{limit: preflight.Limit}, &bounded{limit: 4 << 10}
	sandbox, err := confine(func(attr *syscall.SysProcAttr) *exec.Cmd {
		c := exec.CommandContext(ctx, binary, "--preflight", "--dir", x.Dir)
		c.Env = environment(os.Environ())
		c.SysProcAttr = attr
		c.WaitDelay = time.Second // a child of the candidate may hold the pipes
		c.Stdout, c.Stderr = out, complaint
		return c
	})
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("no answer to --preflight in time; the candidate was killed")
	case err != nil:
		if last := lastLine(complaint.Bytes()); last != "" {
			return nil, fmt.Errorf("--preflight: %w: %s", err, last)
		}
		return nil, fmt.Errorf("--preflight: %w", err)
	case out.over:
		return nil, errors.New("--preflight printed without end")
	}
	r, err := preflight.Parse(out.Bytes())
	if err == nil {
		r.Sandbox = sandbox
	}
	return r, err
}

// bounded keeps the first limit bytes and goes on accepting.
type bounded struct {
	bytes.Buffer
	limit int
	over  bool
}

func (b *bounded) Write(p []byte) (int, error) {
	n := len(p)
	if room := b.limit - b.Len(); len(p) > room {
		p, b.over = p[:room], true
	}
	b.Buffer.Write(p)
	return n, nil
}

// ReadFrom hides Buffer's own, which would not stop at the limit.
func (b *bounded) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{b}, r)
}

func lastLine(b []byte) string {
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// Start implements Launcher.
func (x Exec) Start(l Launch, exited func(Exit)) (Process, error) {
	c := exec.Command(l.Binary, "--dir", x.Dir, "--generation", strconv.FormatUint(l.Generation, 10))
	c.Env = append(environment(os.Environ()), "RETINUE_GENERATION="+strconv.FormatUint(l.Generation, 10))
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return Process{}, err
	}
	// Our child is not reaped before Wait below, so the pid is still its own.
	start, err := startTime(c.Process.Pid)
	go func() {
		waited := c.Wait()
		reason := "exit status 0"
		if waited != nil {
			reason = waited.Error()
		}
		exited(Exit{Reason: reason})
	}()
	if err != nil && !errors.Is(err, syscall.ESRCH) { // a zombie already: exited tells
		_ = c.Process.Kill()
		return Process{}, fmt.Errorf("read the start time of pid %d: %w", c.Process.Pid, err)
	}
	return Process{PID: c.Process.Pid, StartTime: start, Signal: func(s syscall.Signal) error { return c.Process.Signal(s) }}, nil
}

// Adopt implements Launcher.
func (Exec) Adopt(pid int, start uint64, exited func(Exit)) (Process, error) {
	return adopt(pid, start, exited)
}

// Survivors implements Launcher.
func (Exec) Survivors(dir string) []Survivor { return survivors(dir) }

// passed are the variables that a generation inherits beside those of the suite: locale, time zone, and Go's knobs. All
// else stays behind, first of all NOTIFY_SOCKET and LISTEN_FDS, which are restartd's.
var passed = map[string]bool{
	"PATH": true, "HOME": true, "USER": true, "LOGNAME": true, "TMPDIR": true, "TZ": true, "LANG": true, "LC_ALL": true,
	"SSL_CERT_FILE": true, "SSL_CERT_DIR": true, "XDG_RUNTIME_DIR": true, "JOURNAL_STREAM": true, "INVOCATION_ID": true,
	"GODEBUG": true, "GOGC": true, "GOMEMLIMIT": true, "GOMAXPROCS": true, "GOTRACEBACK": true, "GOCOVERDIR": true,
}

func environment(all []string) []string {
	out := []string{}
	for _, v := range all {
		if name, _, _ := strings.Cut(v, "="); passed[name] || strings.HasPrefix(name, "RETINUE_") {
			out = append(out, v)
		}
	}
	return out
}
