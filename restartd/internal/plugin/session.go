package plugin

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"retinue.dev/restartd/internal/generation"
)

// Sessions runs each plugin in a session of its own, as a child of restartd.
type Sessions struct{}

var _ Launcher = Sessions{}

// launch implements Launcher. The whole session ends with the program.
func (Sessions) launch(t *task) (*process, string, error) {
	out, err := os.OpenFile(t.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return nil, "", err
	}
	defer out.Close()
	c := exec.Command(t.Program, t.Args...)
	c.Dir, c.Env, c.Stdout, c.Stderr = t.dir, t.Environment, out, out
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return nil, "", err
	}
	pid := c.Process.Pid
	t.limit(pid)
	p := &process{gone: make(chan struct{})}
	p.PID = pid
	p.StartTime, _ = generation.StartTime(pid) // a zombie already: its end is told below
	p.Signal = func(s syscall.Signal) error { return c.Process.Signal(s) }
	p.stop = func() error { return p.Signal(syscall.SIGTERM) }
	if group, err := os.OpenFile(fmt.Sprintf("/proc/%d/autogroup", pid), os.O_WRONLY, 0); err == nil { // else there are none
		settled := make(chan struct{})
		p.settle = sync.OnceFunc(func() { close(settled) })
		go p.weigh(group, settled)
	}
	go func() {
		// Not reaped yet, the process keeps its number, and so does its session.
		for {
			if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != unix.EINTR {
				break
			}
		}
		endSession(pid, p.StartTime)
		p.how = "exit status 0"
		if err := c.Wait(); err != nil {
			p.how = err.Error()
		}
		close(p.gone)
	}()
	return p, t.log, nil
}

// limit sets the resource limits of the configuration; 0 is the caller.
func (s *start) limit(pid int) {
	set := func(which int, value uint64) {
		_ = unix.Prlimit(pid, which, &unix.Rlimit{Cur: value, Max: value}, nil) // gone already, or higher than ours may be: ours holds
	}
	set(unix.RLIMIT_NOFILE, s.Files)
	set(unix.RLIMIT_CORE, 0)
	if s.Memory > 0 {
		set(unix.RLIMIT_DATA, s.Memory)
	}
}

// adopt implements Launcher.
func (Sessions) adopt(pid int, start uint64) (*process, error) {
	p := &process{gone: make(chan struct{})}
	got, err := generation.Exec{}.Adopt(pid, start, func(e generation.Exit) {
		endSession(pid, start)
		p.how = e.Reason
		close(p.gone)
	})
	p.Process = got
	p.stop = func() error { return p.Signal(syscall.SIGTERM) }
	return p, err
}

// endSession kills what a plugin left in its session. The session's number is the plugin's pid; if another process has that
// pid by now, the session is another one too.
func endSession(pid int, start uint64) {
	if now, err := generation.StartTime(pid); err == nil && now != start {
		return
	}
	list, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range list {
		member, err := strconv.Atoi(e.Name())
		if err != nil || member == pid || sessionOf(member) != pid {
			continue
		}
		fd, err := unix.PidfdOpen(member, 0)
		if err != nil {
			continue
		}
		if sessionOf(member) == pid {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		unix.Close(fd)
	}
}

// sessionOf is field 6 of /proc/PID/stat, 0 when it cannot be read.
func sessionOf(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 4 {
		return 0
	}
	session, _ := strconv.Atoi(string(f[3]))
	return session
}

// strays implements Launcher: processes whose working directory is one that was made for a plugin.
func (s Sessions) strays(root string, known map[string]bool) (out []*process) {
	root, err := filepath.EvalSymlinks(root)
	if err != nil {
		return nil // there is none yet
	}
	ours := map[string]bool{}
	for dir := range known {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			ours[real] = true
		}
	}
	list, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range list {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil {
			continue
		}
		cwd = strings.TrimSuffix(cwd, " (deleted)")
		if filepath.Dir(cwd) != root || ours[cwd] || sessionOf(pid) != pid {
			continue
		}
		start, err := generation.StartTime(pid)
		if err != nil {
			continue
		}
		if p, err := s.adopt(pid, start); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// share implements Launcher: the plugin's user is ours.
func (Sessions) share(string, os.FileMode) error { return nil }
