// Package poller is what a worker asks of the kernel: readiness, socket calls and clocks. The worker is written against
// the interface; package epoll is the real one, package simulated a network and a clock that a test drives.
//
// Registration is edge-triggered, once for a descriptor's whole life, for reading and writing at once. An edge is not
// repeated: who stops before EAGAIN or a short read must remember to come back.
package poller

import "golang.org/x/sys/unix"

// Errno is a system call's error number; 0 is success.
type Errno = unix.Errno

// Events of a descriptor, as epoll has them.
const (
	Readable = unix.EPOLLIN
	Writable = unix.EPOLLOUT
	HalfShut = unix.EPOLLRDHUP // the peer's FIN has arrived: a short read may hide it
	HangUp   = unix.EPOLLHUP
	Failed   = unix.EPOLLERR
)

// Event tells that a descriptor became ready. Token is what Add was given.
type Event struct {
	Token  uint64
	Events uint32
}

// Poller is used by one worker thread; only Wake may be called from others. Descriptors are raw, non-blocking,
// close-on-exec. Byte slices given to it are heap or mapped memory, never on a goroutine's stack.
type Poller interface {
	// Add registers fd for reading and writing; shared (a listening socket that other workers poll too) for reading, with
	// one worker woken for an event.
	Add(fd int32, token uint64, shared bool) Errno
	// Remove takes fd off. Needed only when the open file lives on elsewhere: closing the last copy removes it too.
	Remove(fd int32) Errno
	// Wait fills events and returns how many, after at most timeout nanoseconds. A thread that expects to wait long says
	// idle: it is then parked where the Go scheduler sees it.
	Wait(events []Event, timeout int64, idle bool) int
	// Wake makes a Wait return, now or the next one.
	Wake()
	// Now is a monotonic clock and Wall the time of day since 1970, in nanoseconds.
	Now() int64
	Wall() int64

	// Accept takes a connection; address receives the peer's.
	Accept(fd int32, peer *unix.RawSockaddrAny) (int32, Errno)
	// Connect makes a socket and begins to connect it. EINPROGRESS is success.
	Connect(address *Address) (int32, Errno)
	// SocketError is SO_ERROR: how a connect ended.
	SocketError(fd int32) Errno
	// LocalAddress is getsockname.
	LocalAddress(fd int32, into *unix.RawSockaddrAny) Errno
	Read(fd int32, b []byte) (int, Errno)
	Write(fd int32, b []byte) (int, Errno)
	// WriteLast is Write before ShutdownWrite or Close, which follow at once: the FIN travels with the bytes.
	WriteLast(fd int32, b []byte) (int, Errno)
	// Writev writes the pieces in order, as far as the socket takes them.
	Writev(fd int32, pieces [][]byte) (int, Errno)
	// ShutdownWrite sends FIN.
	ShutdownWrite(fd int32) Errno
	// QuickAck acknowledges what was received at once.
	QuickAck(fd int32)
	// Abort makes Close send RST.
	Abort(fd int32)
	Close(fd int32)
	// Spare opens a descriptor that is good for nothing but to be closed when one is needed.
	Spare() (int32, Errno)
	// Pipe makes a pipe of at least a page and tells its size.
	Pipe() (read, write int32, size int, errno Errno)
	// Splice moves up to n bytes between a pipe and a socket without copying.
	Splice(from, to int32, n int) (int, Errno)
}

// Address is where to connect to, in the kernel's own form. Make it with NewTCP or NewUnix; it never changes.
type Address struct {
	Family int32
	Length uint32
	Raw    *unix.RawSockaddrAny
	Text   string
}
