package supervise

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ExecCommand is the hidden command by which this binary becomes a daemon: LISTEN_PID must be the daemon's own pid, which
// nobody knows before the fork.
const ExecCommand = "internal-exec"

// Exec is that command: args are the path, the name and the arguments of the daemon. It returns only on failure.
func Exec(args []string) error {
	if len(args) < 2 {
		return errors.New("internal-exec is not for people")
	}
	runtime.LockOSThread() // the death signal belongs to the thread, and so must the execve
	// The suite ends with its supervisor, however that ends: restartd then drains and stops proxyd.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGTERM), 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_PDEATHSIG: %w", err)
	}
	if os.Getenv("LISTEN_FDS") != "" {
		if err := os.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid())); err != nil {
			return err
		}
	}
	return fmt.Errorf("execute %s: %w", args[0], unix.Exec(args[0], args[1:], os.Environ()))
}

// forkExec starts a process in a session of its own with exactly these descriptors. Passed ones are raw numbers: os.File
// would touch O_NONBLOCK, which belongs to every copy of a socket.
func forkExec(path string, argv, env []string, files []uintptr) (int, error) {
	return syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: files, Sys: &syscall.SysProcAttr{Setsid: true}})
}

func devNull() uintptr {
	fd, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	return uintptr(fd)
}
