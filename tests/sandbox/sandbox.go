// Package sandbox boots a real systemd as PID 1 in namespaces of its own and runs a program there.
//
// The program sees this machine's root file system through an overlay whose changes are thrown away, a network with nothing
// but a loopback interface, and an empty /etc/systemd/system: nothing that the machine's packages enabled is started. Only the
// shared directories are really shared. Everything ends with the process that booted it, killed with SIGKILL too: the
// namespaces' first process has it as the parent whose death it dies of.
//
// How it goes: Run makes a cgroup and starts its own executable again in new pid, mount, uts, ipc and net namespaces, inside
// that cgroup. There Init (which the executable's main calls first) enters a cgroup namespace, builds the root, pivots into
// it and becomes systemd. When systemd says that it is up, Run has nsenter(1) start the program beside it.
package sandbox

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stageVariable tells a started executable that it is the sandbox's first process; its value is the directory of the boot.
const stageVariable = "RETINUE_SANDBOX_STAGE"

const (
	systemd  = "/lib/systemd/systemd"
	bootTime = time.Minute
)

// Config is one sandbox.
type Config struct {
	// Shared are directories that the program sees at the same place, writable.
	Shared []string
	// Program and its arguments run in the first shared directory, as root, with the caller's environment and Environment.
	Program     []string
	Environment []string
	// Timeout ends everything.
	Timeout time.Duration
}

// Available tells why there can be no sandbox here; nil when there can.
func Available() error {
	if os.Getuid() != 0 {
		return errors.New("a systemd sandbox needs root")
	}
	for _, tool := range []string{systemd, "systemctl", "journalctl", "nsenter", "dbus-daemon"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("a systemd sandbox needs %s: apt-get install systemd dbus util-linux polkitd", tool)
		}
	}
	systems, err := os.ReadFile("/proc/filesystems")
	if err != nil {
		return err
	}
	for _, name := range []string{"overlay", "cgroup2"} {
		if !strings.Contains(string(systems), "\t"+name+"\n") {
			return fmt.Errorf("a systemd sandbox needs %s in the kernel", name)
		}
	}
	return nil
}

// Run boots, runs the program, tears everything down and returns the program's exit status.
func Run(c Config) (int, error) {
	dir, err := os.MkdirTemp("", "retinue-sandbox-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	group, err := makeGroup(dir)
	if err != nil {
		return 0, err
	}
	defer group.remove()
	if err := os.WriteFile(filepath.Join(dir, "shared"), []byte(strings.Join(c.Shared, "\x00")), 0o600); err != nil {
		return 0, err
	}
	ready := filepath.Join(dir, "ready")
	if err := unix.Mkfifo(ready, 0o600); err != nil {
		return 0, err
	}
	tell, err := os.OpenFile(ready, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer tell.Close()

	first := exec.Command("/proc/self/exe")
	first.Env = append(os.Environ(), stageVariable+"="+dir)
	first.Stderr = os.Stderr
	first.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWNET,
		Pdeathsig:   unix.SIGKILL,
		UseCgroupFD: true, CgroupFD: int(group.fd.Fd()),
		Setsid: true,
	}
	if err := first.Start(); err != nil {
		return 0, fmt.Errorf("start the sandbox's first process: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- first.Wait() }()
	defer func() {
		_ = first.Process.Kill() // all of the pid namespace goes with it
		<-ended
	}()
	if err := tell.SetReadDeadline(time.Now().Add(bootTime)); err != nil {
		return 0, err
	}
	booted := make(chan error, 1)
	go func() {
		_, err := tell.Read(make([]byte, 16))
		booted <- err
	}()
	select {
	case err := <-ended:
		ended <- err
		return 0, fmt.Errorf("the sandbox ended while it booted: %v", err)
	case err := <-booted:
		if err != nil {
			return 0, fmt.Errorf("systemd was not up after %s: %w", bootTime, err)
		}
	}
	return c.enter(first.Process.Pid)
}

// enter runs the program beside the sandbox's first process.
func (c Config) enter(pid int) (int, error) {
	args := []string{
		"--target", fmt.Sprint(pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--",
		"/bin/sh", "-c", `cd "$1" && shift && exec systemd-run --quiet --scope --unit=sandbox-program -- "$@"`, "sh", c.Shared[0],
	}
	p := exec.Command("nsenter", append(args, c.Program...)...)
	p.Stdin, p.Stdout, p.Stderr = os.Stdin, os.Stdout, os.Stderr
	p.Env = c.environment()
	p.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := p.Start(); err != nil {
		return 0, err
	}
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(interrupted)
	done := make(chan error, 1)
	go func() { done <- p.Wait() }()
	timeout := time.After(c.Timeout)
	for {
		select {
		case err := <-done:
			var status *exec.ExitError
			if err != nil && !errors.As(err, &status) {
				return 0, err
			}
			return p.ProcessState.ExitCode(), nil
		case s := <-interrupted:
			_ = p.Process.Signal(s)
		case <-timeout:
			_ = p.Process.Kill()
			<-done
			return 0, fmt.Errorf("the program in the sandbox ran longer than %s", c.Timeout)
		}
	}
}

// environment is the caller's, without what belongs to the caller's own service manager.
func (c Config) environment() []string {
	var out []string
	for _, v := range os.Environ() {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "INVOCATION_ID", "JOURNAL_STREAM":
		default:
			out = append(out, v)
		}
	}
	return append(append(out, "container=retinue-sandbox"), c.Environment...)
}

// group is the cgroup that becomes the root of the sandbox's own hierarchy.
type group struct {
	fd    *os.File
	path  string
	mount string // made for it; "" where the machine has one
}

// makeGroup makes a cgroup below the one of this process in the machine's cgroup2 hierarchy, which is mounted for it where
// it is not.
func makeGroup(dir string) (*group, error) {
	root, err := mounted("cgroup2")
	if err != nil {
		return nil, err
	}
	g := &group{}
	if root == "" {
		root = filepath.Join(dir, "cgroup")
		if err := os.Mkdir(root, 0o700); err != nil {
			return nil, err
		}
		if err := unix.Mount("cgroup2", root, "cgroup2", 0, ""); err != nil {
			return nil, fmt.Errorf("mount cgroup2: %w", err)
		}
		g.mount = root
	}
	own := ""
	if b, err := os.ReadFile("/proc/self/cgroup"); err == nil {
		for _, line := range strings.Split(string(b), "\n") {
			if path, ok := strings.CutPrefix(line, "0::"); ok {
				own = path
			}
		}
	}
	if _, err := os.Stat(filepath.Join(root, own)); err != nil {
		own = ""
	}
	g.path = filepath.Join(root, own, filepath.Base(dir))
	if err := os.Mkdir(g.path, 0o755); err != nil {
		return nil, errors.Join(fmt.Errorf("make the sandbox's cgroup: %w", err), g.unmount())
	}
	if g.fd, err = os.Open(g.path); err != nil {
		return nil, errors.Join(err, os.Remove(g.path), g.unmount())
	}
	return g, nil
}

func mounted(kind string) (string, error) {
	b, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 2 && f[2] == kind {
			return f[1], nil
		}
	}
	return "", nil
}

func (g *group) unmount() error {
	if g.mount == "" {
		return nil
	}
	return unix.Unmount(g.mount, unix.MNT_DETACH)
}

// remove ends what is left in the cgroup, takes it apart from the leaves on, and unmounts what was mounted for it. The kernel
// lets go of a cgroup a moment after its last process, so it is tried for a while.
func (g *group) remove() {
	g.fd.Close()
	for range 200 {
		_ = os.WriteFile(filepath.Join(g.path, "cgroup.kill"), []byte("1"), 0)
		var dirs []string
		_ = filepath.WalkDir(g.path, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = unix.Rmdir(dirs[i])
		}
		if _, err := os.Stat(g.path); errors.Is(err, os.ErrNotExist) {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	_ = g.unmount()
}
