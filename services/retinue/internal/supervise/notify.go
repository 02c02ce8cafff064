package supervise

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// notice is one datagram of sd_notify(3) from a process that the kernel named.
type notice struct {
	pid    int
	fields []string
	fd     int // -1: none
}

// notifySocket receives what daemons tell their supervisor. It is an abstract socket: it leaves no file and its name is
// short whatever the run directory is called; who speaks is known by SCM_CREDENTIALS, not by who can reach it.
type notifySocket struct {
	fd   int
	own  int // what died speaks with, there when descriptors are short
	name string
}

func listenNotify() (*notifySocket, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("notify socket: %w", err)
	}
	name := "@retinue-run-" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatInt(time.Now().UnixNano(), 36)
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: name})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	}
	own := -1
	if err == nil {
		own, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("notify socket: %w", err)
	}
	return &notifySocket{fd, own, name}, nil
}

// read waits for one message. A message without credentials or with more than one descriptor is dropped.
func (s *notifySocket) read() (notice, error) {
	buf, control := make([]byte, 8192), make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*16))
	for {
		n, controlled, _, _, err := unix.Recvmsg(s.fd, buf, control, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return notice{}, err
		}
		parts, err := unix.ParseSocketControlMessage(control[:controlled])
		if err != nil {
			continue
		}
		out := notice{fd: -1, fields: strings.Split(string(buf[:n]), "\n")}
		var fds []int
		for i := range parts {
			switch parts[i].Header.Type {
			case unix.SCM_CREDENTIALS:
				if cred, err := unix.ParseUnixCredentials(&parts[i]); err == nil {
					out.pid = int(cred.Pid)
				}
			case unix.SCM_RIGHTS:
				if got, err := unix.ParseUnixRights(&parts[i]); err == nil {
					fds = append(fds, got...)
				}
			}
		}
		if out.pid == 0 || len(fds) > 1 {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
			continue
		}
		if len(fds) == 1 {
			out.fd = fds[0]
		}
		return out, nil
	}
}

// died tells of a death over the socket itself, behind all that the dead process has said: a descriptor that it stored with its
// last breath must not be lost. After close it does nothing.
func (s *notifySocket) died(d death) {
	message := fmt.Sprintf("DEATH=%d %d", d.pid, d.status)
	for {
		err := unix.Sendto(s.own, []byte(message), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: s.name})
		if err != unix.EINTR {
			return
		}
	}
}

// death reads what died wrote. Nobody else may say it.
func (n *notice) death() (d death, ok bool) {
	if n.pid != os.Getpid() || n.fd >= 0 {
		return d, false
	}
	count, err := fmt.Sscanf(n.fields[0], "DEATH=%d %d", &d.pid, &d.status)
	return d, err == nil && count == 2
}

func (s *notifySocket) close() {
	_ = unix.Shutdown(s.fd, unix.SHUT_RDWR)
	_ = unix.Close(s.fd)
	_ = unix.Close(s.own)
}
