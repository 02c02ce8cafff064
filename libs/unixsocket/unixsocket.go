// Package unixsocket names Unix sockets safely: it takes over a stale one, refuses a live one, never removes what is no
// socket, and reaches paths that are too long for a socket address.
package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxPath is the longest path that every kernel takes in sockaddr_un, the final NUL counted.
	maxPath = 107
	// probeTime bounds the question whether somebody listens. A listener whose queue is full is somebody.
	probeTime = time.Second
	// lockTime is how long a starting process waits for another that is just making its sockets.
	lockTime = 5 * time.Second
)

// Listener is a listening socket that has a name in the file system. Close removes the name, if it is still this
// socket's: a successor may have taken it.
type Listener struct {
	*net.UnixListener
	path     string
	dev, ino uint64
	once     sync.Once
	closed   error
}

// Listen binds path ("unix" or "unixpacket") with exactly this file mode. What a dead process left there is replaced.
// Two processes that start at once cannot take the name from each other: making a socket is done under a lock of its
// directory.
func Listen(network, path string, mode os.FileMode) (*Listener, error) {
	l, err := listen(network, path, mode)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listen(network, path string, mode os.FileMode) (*Listener, error) {
	unlock, err := lock(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := clear(network, path); err != nil {
		return nil, err
	}
	var l *Listener
	err = At(path, func(short string) error {
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
			// The name appears with the mode of the socket's own inode: never, not for a moment, wider than asked.
			var failed error
			err := raw.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), uint32(mode.Perm())) })
			return errors.Join(err, failed)
		}}
		got, err := config.Listen(context.Background(), network, short)
		if err != nil {
			return cause(err)
		}
		l = &Listener{UnixListener: got.(*net.UnixListener), path: path}
		l.SetUnlinkOnClose(false)                            // it knows the short name only, and does not look whose it is
		if err := os.Chmod(short, mode.Perm()); err != nil { // what the umask took away
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(short, &st); err != nil {
			return err
		}
		l.dev, l.ino = st.Dev, st.Ino
		return nil
	})
	if err != nil && l != nil {
		_ = l.UnixListener.Close()
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// clear removes a socket that nobody answers and fails when somebody does, or when path is something else.
func clear(network, path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode()&fs.ModeSocket == 0:
		return errors.New("there is a file of that name that is no socket: remove it, or choose another --dir")
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTime)
	defer cancel()
	c, err := Dial(ctx, network, path)
	if err == nil {
		_ = c.Close()
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return errors.New("another process listens there: stop it, or choose another --dir")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the stale socket: %w", err)
	}
	return nil
}

// Sweep removes the sockets that match pattern (filepath.Match) and that nobody answers: a process that was killed leaves its
// names behind. What cannot be removed stays.
func Sweep(network, pattern string) {
	paths, _ := filepath.Glob(pattern) // a bad pattern matches nothing
	for _, path := range paths {
		if unlock, err := lock(filepath.Dir(path)); err == nil {
			_ = clear(network, path)
			unlock()
		}
	}
}

// lock takes the advisory lock of a directory: it needs no file and ends with the process.
func lock(dir string) (unlock func(), err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the directory %s: %w", dir, err)
	}
	for deadline := time.Now().Add(lockTime); ; {
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = unix.Close(fd) }, nil
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR || time.Now().After(deadline) {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("lock the directory %s: %w", dir, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Close ends Accept and removes the name.
func (l *Listener) Close() error {
	l.once.Do(func() {
		if unlock, err := lock(filepath.Dir(l.path)); err == nil {
			defer unlock()
		}
		var st unix.Stat_t
		err := At(l.path, func(short string) error { return unix.Lstat(short, &st) })
		if err == nil && st.Dev == l.dev && st.Ino == l.ino {
			_ = os.Remove(l.path)
		}
		l.closed = l.UnixListener.Close()
	})
	return l.closed
}

// Addr is the path as it was asked for.
func (l *Listener) Addr() net.Addr {
	return &net.UnixAddr{Name: l.path, Net: l.UnixListener.Addr().Network()}
}

// Dial connects to path; network is "unix", "unixpacket" or "unixgram". An "@" begins an abstract name.
func Dial(ctx context.Context, network, path string) (*net.UnixConn, error) {
	var c net.Conn
	err := At(path, func(short string) (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, short)
		return cause(err)
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return c.(*net.UnixConn), nil
}

// At calls use with a name for path that fits into a socket address: a long one goes by its directory's descriptor.
func At(path string, use func(short string) error) error {
	if len(path) <= maxPath {
		return use(path)
	}
	if path[0] == '@' {
		return fmt.Errorf("an abstract name of %d bytes: %d are the most", len(path), maxPath)
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the directory %s: %w", filepath.Dir(path), err)
	}
	defer unix.Close(dir)
	short := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + filepath.Base(path)
	if len(short) > maxPath {
		return fmt.Errorf("the file name %s is too long for a socket: choose a shorter one", filepath.Base(path))
	}
	if _, err := os.Stat(filepath.Dir(short)); err != nil {
		return fmt.Errorf("a path of %d bytes is too long for a socket (%d), and /proc is not there to help: choose a shorter --dir", len(path), maxPath)
	}
	return use(short)
}

// cause drops net's own prefix, which names the short path.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}
