package epoll

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/poller"
)

// Accept implements poller.Poller.
func (p *Poller) Accept(fd int32, peer *unix.RawSockaddrAny) (int32, poller.Errno) {
	p.kernel.length = unix.SizeofSockaddrAny
	n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(peer)), uintptr(unsafe.Pointer(&p.kernel.length)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	return int32(n), errno
}

// Connect implements poller.Poller.
func (p *Poller) Connect(address *poller.Address) (int32, poller.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(address.Family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	if address.Family != unix.AF_UNIX {
		p.kernel.value[0] = 1
		_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, n, unix.IPPROTO_TCP, unix.TCP_NODELAY, uintptr(unsafe.Pointer(&p.kernel.value)), 4, 0)
	}
	_, _, errno = unix.RawSyscall(unix.SYS_CONNECT, n, uintptr(unsafe.Pointer(address.Raw)), uintptr(address.Length))
	if errno != 0 && errno != unix.EINPROGRESS {
		p.Close(int32(n))
		return -1, errno
	}
	return int32(n), 0
}

// SocketError implements poller.Poller.
func (p *Poller) SocketError(fd int32) poller.Errno {
	p.kernel.value[0], p.kernel.length = 0, 4
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&p.kernel.value)), uintptr(unsafe.Pointer(&p.kernel.length)), 0)
	if errno != 0 {
		return errno
	}
	return unix.Errno(p.kernel.value[0])
}

// LocalAddress implements poller.Poller.
func (p *Poller) LocalAddress(fd int32, into *unix.RawSockaddrAny) poller.Errno {
	p.kernel.length = unix.SizeofSockaddrAny
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(into)), uintptr(unsafe.Pointer(&p.kernel.length)))
	return errno
}

// Read implements poller.Poller.
func (p *Poller) Read(fd int32, b []byte) (int, poller.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), 0, 0, 0)
	return int(n), errno
}

// Write implements poller.Poller. A closed peer is EPIPE, never a signal.
func (p *Poller) Write(fd int32, b []byte) (int, poller.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL, 0, 0)
	return int(n), errno
}

// WriteLast implements poller.Poller: MSG_MORE spares a packet, and the peer a wake-up and an acknowledgement.
func (p *Poller) WriteLast(fd int32, b []byte) (int, poller.Errno) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), unix.MSG_NOSIGNAL|unix.MSG_MORE, 0, 0)
	return int(n), errno
}

// Writev implements poller.Poller. The Go runtime ignores SIGPIPE of sockets, so that EPIPE comes back here too.
func (p *Poller) Writev(fd int32, pieces [][]byte) (int, poller.Errno) {
	count := 0
	for _, piece := range pieces[:min(len(pieces), maxPieces)] {
		p.kernel.pieces[count].Base = unsafe.SliceData(piece)
		p.kernel.pieces[count].SetLen(len(piece))
		count++
	}
	n, _, errno := unix.RawSyscall(unix.SYS_WRITEV, uintptr(fd), uintptr(unsafe.Pointer(&p.kernel.pieces)), uintptr(count))
	for i := range count {
		p.kernel.pieces[i].Base = nil
	}
	return int(n), errno
}

// ShutdownWrite implements poller.Poller.
func (p *Poller) ShutdownWrite(fd int32) poller.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

// QuickAck implements poller.Poller.
func (p *Poller) QuickAck(fd int32) {
	p.kernel.value[0] = 1
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, uintptr(unsafe.Pointer(&p.kernel.value)), 4, 0)
}

// Abort sets SO_LINGER with no time: Close then resets the connection.
func (p *Poller) Abort(fd int32) {
	p.kernel.value = [2]int32{1, 0}
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&p.kernel.value)), 8, 0)
}

// Close implements poller.Poller.
func (p *Poller) Close(fd int32) {
	_, _, _ = unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0)
}

// Spare implements poller.Poller with another descriptor of the eventfd.
func (p *Poller) Spare() (int32, poller.Errno) {
	n, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(p.wake), unix.F_DUPFD_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int32(n), 0
}

// Pipe implements poller.Poller. Above a user's soft limit of pipe pages the kernel gives small pipes: size tells.
func (p *Poller) Pipe() (read, write int32, size int, errno poller.Errno) {
	_, _, errno = unix.RawSyscall(unix.SYS_PIPE2, uintptr(unsafe.Pointer(&p.kernel.value)), unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errno != 0 {
		return -1, -1, 0, errno
	}
	read, write = p.kernel.value[0], p.kernel.value[1]
	n, _, failed := unix.RawSyscall(unix.SYS_FCNTL, uintptr(write), unix.F_SETPIPE_SZ, pipeSize)
	if failed != 0 {
		n, _, _ = unix.RawSyscall(unix.SYS_FCNTL, uintptr(write), unix.F_GETPIPE_SZ, 0)
	}
	return read, write, int(n), 0
}

// Splice implements poller.Poller.
func (p *Poller) Splice(from, to int32, n int) (int, poller.Errno) {
	moved, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
	return int(moved), errno
}
