// Package fdpass sends descriptors between processes: AF_UNIX SOCK_SEQPACKET with SCM_RIGHTS.
//
// A message is 1 to MaxMessage bytes with up to MaxFDs descriptors. What is passed is a raw number on both sides, never an
// os.File: turning one into an os.File and back clears O_NONBLOCK, which every copy of a shared socket feels. A received
// descriptor has close-on-exec set and belongs to the receiver. (The connection itself is the net package's: that is what
// lets Close wake a Recv that waits, and keeps a waiting Recv from holding a thread.)
package fdpass

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/unixsocket"
)

const (
	// MaxFDs is what the kernel takes in one message (SCM_MAX_FD).
	MaxFDs = 253
	// MaxMessage is the largest message in bytes.
	MaxMessage = 64 << 10
	// network is SOCK_SEQPACKET in the net package's words.
	network = "unixpacket"
	// connectTime bounds Dial: a listener whose queue stays full is as good as none.
	connectTime = 5 * time.Second
	// exhausted is how long Accept waits when the process or the machine has no descriptor left.
	exhausted = 10 * time.Millisecond
)

// Conn is one connection. One goroutine may Send while another is in Recv; Close may be called from any and ends both.
type Conn struct {
	socket *net.UnixConn
	bound  atomic.Int64 // SetDeadline, in nanoseconds
}

// Listener accepts connections. Close may be called from any goroutine.
type Listener struct {
	socket *unixsocket.Listener
	done   chan struct{}
}

// Listen makes the socket at path, in place of one that nobody answers any more. Its file mode is 0660: who may come
// near is the run directory's matter, who is answered is decided by Peer.
func Listen(path string) (*Listener, error) {
	l, err := unixsocket.Listen(network, path, 0o660)
	if err != nil {
		return nil, err
	}
	return &Listener{l, make(chan struct{})}, nil
}

// Accept waits for a connection; it fails after Close. While there are no descriptors it waits for some.
func (l *Listener) Accept() (*Conn, error) {
	for {
		c, err := l.socket.AcceptUnix()
		switch {
		case err == nil:
			return &Conn{socket: c}, nil
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			select {
			case <-l.done:
			case <-time.After(exhausted):
			}
		default:
			return nil, err
		}
	}
}

// Close ends Accept and removes the socket.
func (l *Listener) Close() error {
	err := l.socket.Close()
	select {
	case <-l.done:
	default:
		close(l.done)
	}
	return err
}

// Dial connects to the socket at path.
func Dial(path string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), connectTime)
	defer cancel()
	c, err := unixsocket.Dial(ctx, network, path)
	if err != nil {
		return nil, err
	}
	return &Conn{socket: c}, nil
}

// Close ends the connection.
func (c *Conn) Close() error { return c.socket.Close() }

// SetDeadline bounds each later Send and Recv, which then fail with os.ErrDeadlineExceeded; 0 is no bound.
func (c *Conn) SetDeadline(d time.Duration) error {
	c.bound.Store(int64(d))
	return nil
}

func (c *Conn) deadline() time.Time {
	if d := c.bound.Load(); d > 0 {
		return time.Now().Add(time.Duration(d))
	}
	return time.Time{}
}

// Peer is who is at the other end, as the kernel knew it when the connection was made.
func (c *Conn) Peer() (unix.Ucred, error) {
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return unix.Ucred{}, err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return unix.Ucred{}, err
	}
	if failed != nil {
		return unix.Ucred{}, fmt.Errorf("SO_PEERCRED: %w", failed)
	}
	return *cred, nil
}

// Gone tells whether the peer has closed or died, without waiting and without taking a message.
func (c *Conn) Gone() bool {
	raw, err := c.socket.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, failed := unix.Poll(p, 0)
		gone = failed == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return err != nil || gone
}

// Send sends one message with copies of descriptors; the caller keeps its own.
func (c *Conn) Send(message []byte, fds []int) error {
	if len(message) > MaxMessage || len(message) == 0 {
		return fmt.Errorf("a message has 1 to %d bytes, this one has %d", MaxMessage, len(message))
	}
	if len(fds) > MaxFDs {
		return fmt.Errorf("a message carries at most %d descriptors, this one has %d: send several", MaxFDs, len(fds))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	if err := c.socket.SetWriteDeadline(c.deadline()); err != nil {
		return err
	}
	_, _, err := c.socket.WriteMsgUnix(message, rights, nil)
	return err
}

// Recv waits for one message. io.EOF tells that the peer closed.
func (c *Conn) Recv() (message []byte, fds []int, err error) {
	if err := c.socket.SetReadDeadline(c.deadline()); err != nil {
		return nil, nil, err
	}
	message = make([]byte, MaxMessage)
	control := make([]byte, unix.CmsgSpace(4*MaxFDs))
	n, controlled, flags, _, err := c.socket.ReadMsgUnix(message, control) // asks for MSG_CMSG_CLOEXEC
	if errors.Is(err, io.EOF) {
		return nil, nil, io.EOF
	}
	if err != nil {
		return nil, nil, err
	}
	fds, err = rights(control[:controlled])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errors.New("message cut off: the descriptor limit is reached, or the peer speaks another protocol")
	}
	if err != nil {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, nil, err
	}
	return message[:n], fds, nil
}

// rights returns every descriptor of a control message, those before an error included: they are open by then.
func rights(control []byte) (fds []int, err error) {
	parts, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, fmt.Errorf("control message: %w", err)
	}
	for i := range parts {
		if parts[i].Header.Level != unix.SOL_SOCKET || parts[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		got, err := unix.ParseUnixRights(&parts[i])
		if err != nil {
			return fds, fmt.Errorf("descriptors: %w", err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}
