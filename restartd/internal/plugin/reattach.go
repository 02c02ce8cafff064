package plugin

import (
	"context"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/restartd/internal/generation"
)

// reattachVariable names the variable that makes restartd attach to a process that an author started, in a debugger say, instead of
// starting one. Its value is the process's working directory and its handshake line: DIR|1|unix|ADDRESS|KIND.
func reattachVariable(name string) string {
	return "RETINUE_REATTACH_" + strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(name))
}

// attachTo makes a generation of a process that somebody else started. It is not ours to kill: its end is only noticed.
func (m *Manager) attachTo(ctx context.Context, s spec, line string, step func(step, message string)) (*instance, error) {
	dir, rest, _ := strings.Cut(line, "|")
	h, err := parseHandshake([]byte("1|"+rest+"\n"), dir)
	if h == nil {
		return nil, refused("command", "%s is not DIR|1|unix|ADDRESS|KIND: %v", reattachVariable(s.name), err)
	}
	pid, start, err := listener(h.address)
	if err != nil {
		return nil, refused("command", "%s: nobody listens at %s: %v", reattachVariable(s.name), h.address, err)
	}
	p := &process{gone: make(chan struct{})}
	p.PID, p.StartTime = pid, start
	p.Signal = func(syscall.Signal) error { return nil }
	p.stop = func() error { return nil }
	go func() {
		for {
			if now, err := generation.StartTime(pid); err != nil || now != start {
				p.how = "the process that was attached to ended"
				close(p.gone)
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
	}()
	g := &instance{process: p, borrowed: true, record: record{
		Number: s.number, Program: "attached by " + reattachVariable(s.name), PID: pid, StartTime: start, ConfigHash: s.hash,
		ConfigID: uint32(s.number), Dir: dir, StartedUnixMS: time.Now().UnixMilli(), State: stateReady, Control: h.address, Kind: h.kind, Protocol: h.major,
	}}
	step("start", g.Program)
	if g.control, err = contact(ctx, h, pid, p.gone); err != nil {
		return nil, refused("command", "%v", err)
	}
	if err := g.configure(ctx, s, step); err != nil {
		g.control.Close()
		return nil, err
	}
	return g, nil
}

// listener is the process behind a Unix socket, by the credentials that the kernel keeps of who listens.
func listener(path string) (pid int, start uint64, err error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return 0, 0, os.NewSyscallError("connect", err)
	}
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, 0, err
	}
	start, err = generation.StartTime(int(cred.Pid))
	return int(cred.Pid), start, err
}
