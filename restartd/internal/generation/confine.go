package generation

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// What the exec launcher can do about a candidate that nobody knows yet: a session of its own, none of restartd's descriptors or
// variables, no core file, a limit of CPU time, and an end with restartd or at its time. Where the kernel lets an unprivileged user
// make namespaces, it also has no network but sockets in the file system, sees no process but its own children, which end with it,
// and no System V memory. It stays the same user with the same files: who wants it otherwise runs it as a unit of systemd.

const (
	inNamespaces      = "in namespaces of its own, without a network"
	withoutNamespaces = "without namespaces, which this system allows to nobody or not to us"
)

// cpuSeconds is more than a preflight takes on any machine that can serve.
const cpuSeconds = 30

// confine runs the command that is made for attr, and says how it was confined.
func confine(command func(attr *syscall.SysProcAttr) *exec.Cmd) (sandbox string, err error) {
	// The signal of the parent's death comes with the thread's.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	attr := &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC}
	if os.Geteuid() != 0 { // root needs none, and in one of its own could not read other users' files any more, as proxyd can
		attr.Cloneflags |= unix.CLONE_NEWUSER
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	}
	c := command(attr)
	sandbox = inNamespaces
	if err = c.Start(); err != nil {
		sandbox = withoutNamespaces
		c = command(&syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL})
		if err = c.Start(); err != nil {
			return sandbox, err
		}
	}
	limit := func(resource int, n uint64) {
		// It may be gone already; then there is nothing to limit.
		_ = unix.Prlimit(c.Process.Pid, resource, &unix.Rlimit{Cur: n, Max: n}, nil)
	}
	limit(unix.RLIMIT_CORE, 0)
	limit(unix.RLIMIT_CPU, cpuSeconds)
	return sandbox, c.Wait()
}
