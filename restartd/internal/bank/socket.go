package bank

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// deferAcceptSeconds bounds how long a connection without data stays in the kernel under TCP_DEFER_ACCEPT; after it
// the connection is given to accept as it is.
const deferAcceptSeconds = 1

// somaxconn returns the kernel's cap on a backlog, which is also what we ask for unless the listener says less.
func somaxconn() int {
	b, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	if err == nil {
		if n, err := strconv.Atoi(string(bytes.TrimSpace(b))); err == nil && n > 0 {
			return n
		}
	}
	return unix.SOMAXCONN
}

func listenBacklog(configured int) int {
	if limit := somaxconn(); configured <= 0 || configured > limit {
		return limit
	}
	return configured
}

// listenTCP opens one shard: bound, listening, non-blocking.
func listenTCP(p parsed, backlog int, deferAccept bool) (fd int, err error) {
	fd, err = openTCP(p, true)
	if err != nil {
		return -1, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
		}
	}()
	// Accepted sockets inherit TCP_NODELAY, which saves proxyd a call a connection.
	if err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fd, fmt.Errorf("TCP_NODELAY: %w", err)
	}
	if err = setDeferAccept(fd, deferAccept); err != nil {
		return fd, err
	}
	if err = unix.Bind(fd, p.sockaddr()); err != nil {
		return fd, &os.SyscallError{Syscall: "bind", Err: err}
	}
	if err = unix.Listen(fd, listenBacklog(backlog)); err != nil {
		return fd, &os.SyscallError{Syscall: "listen", Err: err}
	}
	return fd, nil
}

func openTCP(p parsed, reusePort bool) (int, error) {
	fd, err := unix.Socket(p.family(), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_TCP)
	if err != nil {
		return -1, &os.SyscallError{Syscall: "socket", Err: err}
	}
	set := func(level, opt int, what string) {
		if err == nil {
			if e := unix.SetsockoptInt(fd, level, opt, 1); e != nil {
				err = fmt.Errorf("%s: %w", what, e)
			}
		}
	}
	set(unix.SOL_SOCKET, unix.SO_REUSEADDR, "SO_REUSEADDR")
	if reusePort {
		set(unix.SOL_SOCKET, unix.SO_REUSEPORT, "SO_REUSEPORT")
	}
	if p.family() == unix.AF_INET6 {
		// 0.0.0.0 and [::] are two addresses here: each may be listened on by itself, or both.
		set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, "IPV6_V6ONLY")
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func setDeferAccept(fd int, on bool) error {
	seconds := 0
	if on {
		seconds = deferAcceptSeconds
	}
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, seconds); err != nil {
		return fmt.Errorf("TCP_DEFER_ACCEPT: %w", err)
	}
	return nil
}

// probe binds p without SO_REUSEPORT and lets it go: with it, a port that another program of the same user shares
// with everybody would be joined silently, and half of the connections would go there.
func probe(p parsed) error {
	fd, err := openTCP(p, false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, p.sockaddr()); err != nil {
		return &os.SyscallError{Syscall: "bind", Err: err}
	}
	// Two bound sockets with SO_REUSEADDR do not conflict until one of them listens.
	if err := unix.Listen(fd, 1); err != nil {
		return &os.SyscallError{Syscall: "listen", Err: err}
	}
	return nil
}

// inode is the identity of a socket file, so that one that somebody put in its place is not unlinked.
type inode struct{ dev, ino uint64 }

func inodeOf(path string) (inode, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return inode{}, err
	}
	return inode{uint64(st.Dev), st.Ino}, nil
}

// listenUnix opens the one socket of a unix address. A socket file that nobody answers on is replaced, one that
// somebody does is refused.
func listenUnix(p parsed, mode fs.FileMode, backlog int) (fd int, id inode, err error) {
	if err := clearStale(p.path); err != nil {
		return -1, inode{}, err
	}
	fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, inode{}, &os.SyscallError{Syscall: "socket", Err: err}
	}
	bound := false
	defer func() {
		if err != nil {
			unix.Close(fd)
			fd = -1
			if bound {
				unix.Unlink(p.path)
			}
		}
	}()
	// The file is made with the socket's own mode less the umask (net/unix/af_unix.c), so it is never wider than wanted,
	// not even between bind and chmod.
	if err = unix.Fchmod(fd, uint32(mode.Perm())); err != nil {
		return fd, id, fmt.Errorf("fchmod: %w", err)
	}
	if err = unix.Bind(fd, p.sockaddr()); err != nil {
		return fd, id, &os.SyscallError{Syscall: "bind", Err: err}
	}
	bound = true
	if err = unix.Chmod(p.path, uint32(mode.Perm())); err != nil {
		return fd, id, fmt.Errorf("chmod: %w", err)
	}
	if err = unix.Listen(fd, listenBacklog(backlog)); err != nil {
		return fd, id, &os.SyscallError{Syscall: "listen", Err: err}
	}
	id, err = inodeOf(p.path)
	return fd, id, err
}

var errLive = errors.New("another process listens on it")

func clearStale(path string) error {
	var st unix.Stat_t
	switch err := unix.Lstat(path, &st); {
	case err == unix.ENOENT:
		return nil
	case err != nil:
		return &os.PathError{Op: "lstat", Path: path, Err: err}
	case st.Mode&unix.S_IFMT != unix.S_IFSOCK:
		return fmt.Errorf("%s exists and is not a socket: move it away", path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return &os.SyscallError{Syscall: "socket", Err: err}
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err {
	case unix.ECONNREFUSED:
		if err := unix.Unlink(path); err != nil && err != unix.ENOENT {
			return &os.PathError{Op: "unlink", Path: path, Err: err}
		}
		return nil
	case unix.ENOENT:
		return nil
	default:
		// Connected, EAGAIN (its queue is full), EPROTOTYPE (not a stream), EACCES: somebody's.
		return errLive
	}
}

// verify checks that an inherited descriptor is a listening stream socket, non-blocking and not passed on by exec, and
// tells where it is bound. A flag that a former holder lost is set again.
func verify(fd int) (parsed, error) {
	if t, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return parsed{}, fmt.Errorf("SO_TYPE: %w", err)
	} else if t != unix.SOCK_STREAM {
		return parsed{}, fmt.Errorf("a socket of type %d, not a stream", t)
	}
	if l, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil {
		return parsed{}, fmt.Errorf("SO_ACCEPTCONN: %w", err)
	} else if l == 0 {
		return parsed{}, errors.New("a socket that does not listen")
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return parsed{}, fmt.Errorf("O_NONBLOCK: %w", err)
	}
	unix.CloseOnExec(fd)
	return boundTo(fd)
}

// explain turns a failure to open p into what happened and what to do.
func explain(p parsed, err error) string {
	switch {
	case errors.Is(err, unix.EADDRINUSE) && p.path == "":
		return fmt.Sprintf("address in use: %s; stop it or choose another port (ss -ltnp 'sport = :%d' shows who)", holder(p), p.port())
	case errors.Is(err, unix.EADDRINUSE), errors.Is(err, errLive):
		return "address in use: another process listens on it; stop it or choose another path"
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Sprintf("cannot bind: no interface of this machine has the address %s", p.ip.Addr())
	case errors.Is(err, unix.EACCES) && p.path == "":
		return fmt.Sprintf("permission denied: port %d needs CAP_NET_BIND_SERVICE, or sysctl net.ipv4.ip_unprivileged_port_start=%d", p.port(), p.port())
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return "permission denied: restartd's user must be able to write the socket's directory"
	case errors.Is(err, unix.ENOENT):
		return "the socket's directory does not exist: create it first"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return "too many open files: raise restartd's LimitNOFILE or use fewer addresses and workers"
	case errors.Is(err, unix.EAFNOSUPPORT):
		return "this kernel has no IPv6"
	default:
		return err.Error()
	}
}

// holder says which listening socket stands in p's way, as far as the kernel's table tells.
func holder(p parsed) string {
	table := "/proc/net/tcp"
	if p.family() == unix.AF_INET6 {
		table += "6"
	}
	for _, name := range []string{table, "/proc/net/tcp6"} { // a tcp6 wildcard without V6ONLY holds IPv4 too
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if who := holderIn(string(b), p); who != "" {
			return "another process listens on " + who
		}
	}
	return "another process listens on it"
}

func holderIn(table string, p parsed) string {
	const listening = "0A"
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 4 || f[3] != listening {
			continue
		}
		local, ok := parseProcAddress(f[1])
		if !ok || local.port() != p.port() {
			continue
		}
		if a := local.ip.Addr(); a == p.ip.Addr().WithZone("") || a.IsUnspecified() || p.ip.Addr().IsUnspecified() {
			return local.String()
		}
	}
	return ""
}
