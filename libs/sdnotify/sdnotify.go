// Package sdnotify speaks systemd's protocol for services: readiness, status, watchdog, the descriptor store, and the
// descriptors that a service is started with. `retinue run` speaks the same, so that a daemon has one way of life.
// Source: sd_notify(3), sd_listen_fds(3), sd_watchdog_enabled(3).
package sdnotify

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/unixsocket"
)

// patience is how long a message may wait in front of a supervisor whose queue is full.
const patience = time.Second

// Notifier tells the supervisor; without one every call does nothing. Safe for several goroutines.
type Notifier struct{ address string }

// New reads NOTIFY_SOCKET and removes it from the environment, so that children do not speak for the daemon.
func New() *Notifier {
	n := &Notifier{os.Getenv("NOTIFY_SOCKET")}
	_ = os.Unsetenv("NOTIFY_SOCKET")
	return n
}

// Ready says READY=1 with a status for people.
func (n *Notifier) Ready(status string) error { return n.send("READY=1\nSTATUS="+line(status), -1) }

// Status says what the daemon is doing.
func (n *Notifier) Status(status string) error { return n.send("STATUS="+line(status), -1) }

// Reloading says that a reload began; Ready ends it.
func (n *Notifier) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return err
	}
	return n.send("RELOADING=1\nMONOTONIC_USEC="+strconv.FormatInt(now.Nano()/1000, 10), -1)
}

// Stopping says that the daemon is about to end.
func (n *Notifier) Stopping() error { return n.send("STOPPING=1", -1) }

// Watchdog says that the daemon lives.
func (n *Notifier) Watchdog() error { return n.send("WATCHDOG=1", -1) }

// ExtendTimeout asks for more time to start or stop.
func (n *Notifier) ExtendTimeout(d time.Duration) error {
	return n.send("EXTEND_TIMEOUT_USEC="+strconv.FormatInt(d.Microseconds(), 10), -1)
}

// StoreFD leaves a copy of fd with the supervisor; the daemon gets it back by name when it is started again.
func (n *Notifier) StoreFD(name string, fd int) error {
	if err := checkName(name); err != nil {
		return err
	}
	return n.send("FDSTORE=1\nFDNAME="+name, fd)
}

// RemoveFD drops what StoreFD left under name.
func (n *Notifier) RemoveFD(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return n.send("FDSTOREREMOVE=1\nFDNAME="+name, -1)
}

// checkName holds names to systemd's rule: up to 255 ASCII characters, no control character, no colon.
func checkName(name string) error {
	if name == "" || len(name) > 255 {
		return fmt.Errorf("descriptor name %q: 1 to 255 characters", name)
	}
	for i := range len(name) {
		if name[i] <= ' ' || name[i] >= 127 || name[i] == ':' {
			return fmt.Errorf("descriptor name %q: only printable ASCII without space and colon", name)
		}
	}
	return nil
}

func line(s string) string { return strings.ReplaceAll(s, "\n", " ") }

func (n *Notifier) send(message string, fd int) error {
	if n.address == "" {
		return nil
	}
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	defer unix.Close(socket)
	// A supervisor that stands still (stopped at a terminal, say) must not make its daemons stand still.
	tv := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	err = unixsocket.At(n.address, func(address string) error {
		for {
			err := unix.Sendmsg(socket, []byte(message), rights, &unix.SockaddrUnix{Name: address}, unix.MSG_NOSIGNAL)
			if err != unix.EINTR {
				return err
			}
		}
	})
	if err != nil {
		return fmt.Errorf("notify %s: %w", n.address, err)
	}
	return nil
}

// File is a descriptor that the daemon was started with. It belongs to the caller.
type File struct {
	Name string
	FD   int
}

// Inherited returns what LISTEN_FDS names, with close-on-exec set, and removes the variables from the environment.
func Inherited() []File {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(v)
	}
	if p, err := strconv.Atoi(pid); err != nil || p != os.Getpid() {
		return nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > 1<<16 {
		return nil
	}
	files := make([]File, 0, n)
	for i := range n {
		file := File{Name: "unknown", FD: 3 + i}
		if i < len(names) && names[i] != "" {
			file.Name = names[i]
		}
		unix.CloseOnExec(file.FD)
		files = append(files, file)
	}
	return files
}

// WatchdogInterval is how often Watchdog must be called at the least, 0 when nobody watches.
func WatchdogInterval() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	us, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || us <= 0 {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}
