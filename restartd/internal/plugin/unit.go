package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"retinue.dev/restartd/internal/generation"
)

const (
	unitTemplate = "retinue-plugin@"
	// pluginGroup is the group of the plugins' user, which restartd and proxyd are members of.
	pluginGroup = "retinue-plugin"
	startFile   = "start.json"
	outputFile  = "output"
	maxStart    = 4 << 20
)

// Units runs each plugin as the unit retinue-plugin@NAME-G.service, with a user, a cgroup, a sandbox and a journal of its own.
//
// A template's instances cannot have command lines of their own, so the unit runs restartd's binary with --exec-plugin, which
// becomes the plugin (Exec). Standard error is the journal. The handshake line must be read by restartd, which may not read the
// journal, and no pipe may tie the two together: standard output is a file in the working directory, which takes little after that
// line (the SDK sends it to standard error from then on) and is cut when it grows.
type Units struct {
	Systemd *generation.Systemd
}

var _ Launcher = Units{}

// launch implements Launcher.
func (u Units) launch(t *task) (*process, string, error) {
	b, err := json.Marshal(&t.start)
	if err != nil {
		return nil, "", err
	}
	path := filepath.Join(t.dir, startFile)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return nil, "", err
	}
	if err := u.share(path, 0o640); err != nil {
		return nil, "", err
	}
	p := u.process(unitTemplate + filepath.Base(t.dir) + ".service")
	p.Process, err = u.Systemd.StartUnit(p.unit, p.exited)
	return p, filepath.Join(t.dir, outputFile), err
}

func (u Units) process(unit string) *process {
	return &process{unit: unit, gone: make(chan struct{}), stop: func() error { return u.Systemd.StopUnit(unit) }}
}

func (p *process) exited(e generation.Exit) {
	p.how = e.Reason
	close(p.gone)
}

// adopt implements Launcher.
func (u Units) adopt(pid int, start uint64) (*process, error) {
	unit, err := generation.UnitOf(pid)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(unit, unitTemplate) {
		return nil, fmt.Errorf("process %d is in %s", pid, unit)
	}
	p := u.process(unit)
	p.Process, err = u.Systemd.Adopt(pid, start, p.exited)
	return p, err
}

// strays implements Launcher: a unit's name is the name of the working directory.
func (u Units) strays(_ string, known map[string]bool) (out []*process) {
	names := map[string]bool{}
	for dir := range known {
		names[unitTemplate+filepath.Base(dir)+".service"] = true
	}
	for _, s := range u.Systemd.Units(unitTemplate) {
		if names[s.Unit] {
			continue
		}
		p := u.process(s.Unit)
		var err error
		if p.Process, err = u.Systemd.Adopt(s.PID, s.StartTime, p.exited); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// share implements Launcher.
func (Units) share(path string, mode os.FileMode) error {
	g, err := user.LookupGroup(pluginGroup)
	if err != nil {
		return fmt.Errorf("%w: systemd-sysusers makes it", err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return err
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return err
	}
	return os.Chmod(path, mode)
}

// Exec is --exec-plugin: in the working directory dir that restartd made, it reads how the plugin is to be run, and becomes it. It
// returns only when it cannot.
func Exec(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	s, err := readStartFile(startFile)
	if err != nil {
		return fmt.Errorf("how to run the plugin: %w", err)
	}
	_ = os.Remove(startFile) // what is in its environment is for the plugin alone
	out, err := unix.Open(outputFile, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_APPEND|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o660)
	if err != nil {
		return &os.PathError{Op: "open", Path: outputFile, Err: err}
	}
	if err := unix.Dup3(out, 1, 0); err != nil {
		return os.NewSyscallError("dup3", err)
	}
	s.limit(0)
	runtime.LockOSThread() // the thread becomes the plugin
	yield()
	// Go raised the soft limit for itself, and would put the old one back.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: s.Files, Max: s.Files}); err != nil {
		return os.NewSyscallError("setrlimit", err)
	}
	return &os.PathError{Op: "exec", Path: s.Program, Err: syscall.Exec(s.Program, append([]string{s.Program}, s.Args...), s.Environment)}
}

func readStartFile(path string) (*start, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxStart))
	if err != nil {
		return nil, err
	}
	var s start
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if !filepath.IsAbs(s.Program) || s.Files == 0 {
		return nil, errors.New("it names no program")
	}
	return &s, nil
}
