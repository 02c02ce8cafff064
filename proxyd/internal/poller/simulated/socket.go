package simulated

import (
	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/poller"
)

// Peer is the far end of one of the worker's sockets. The test holds it.
type Peer struct {
	// ReadMost and WriteMost bound what one call of the worker moves: partial reads and short writes. What a bound holds back is
	// told as a new edge, as if it came just then.
	ReadMost, WriteMost int

	network *Network
	file    *file
	inbox   []byte // sent by the peer, not yet read by the worker
	outbox  []byte // written by the worker, not yet read by the peer
	room    int    // bytes that outbox holds
	more    int    // bytes at the end of outbox that wait for a FIN or more bytes

	connecting bool
	refused    bool
	full       bool // the worker was told that there is no room
	fin        bool // the peer's FIN
	reset      bool // by the peer
	errno      poller.Errno

	nearFIN, nearReset, nearClosed, lingerZero bool
}

func (n *Network) newSocket() (*Peer, poller.Errno) {
	f, errno := n.open(socket)
	if errno != 0 {
		return nil, errno
	}
	p := &Peer{ReadMost: unlimited, WriteMost: unlimited, network: n, file: f, room: n.Room}
	f.peer = p
	return p, 0
}

// Pair makes a connected socket for the worker, as if adopted, and its far end.
func (n *Network) Pair() (int32, *Peer) {
	p, errno := n.newSocket()
	if errno != 0 {
		panic(errno)
	}
	return p.file.fd, p
}

func (p *Peer) mask() (mask uint32) {
	if p.connecting {
		return 0
	}
	if len(p.inbox) > 0 || p.fin || p.reset || p.refused {
		mask |= poller.Readable
	}
	if p.fin || p.reset || p.refused {
		mask |= poller.HalfShut
	}
	if len(p.outbox) < p.room || p.reset || p.nearFIN || p.refused {
		mask |= poller.Writable
	}
	if p.reset || p.refused || p.fin && p.nearFIN {
		mask |= poller.HangUp
	}
	if p.errno != 0 {
		mask |= poller.Failed
	}
	return mask
}

// Send gives the worker bytes to read.
func (p *Peer) Send(b []byte) {
	if p.fin || p.reset || p.nearClosed {
		return
	}
	p.inbox = append(p.inbox, b...)
	p.network.edge(p.file)
}

// Unread is how many sent bytes the worker has not read: what back-pressure leaves in the kernel.
func (p *Peer) Unread() int { return len(p.inbox) }

// Receive takes at most n of the bytes that the worker wrote.
func (p *Peer) Receive(n int) []byte {
	n = min(n, p.Waiting())
	got := append([]byte(nil), p.outbox[:n]...)
	p.outbox = p.outbox[n:]
	p.freed()
	return got
}

// ReceiveAll takes every byte that the worker wrote.
func (p *Peer) ReceiveAll() []byte { return p.Receive(p.Waiting()) }

// Discard takes every byte that the worker wrote and throws it away, without allocating.
func (p *Peer) Discard() int {
	n := p.Waiting()
	p.outbox = append(p.outbox[:0], p.outbox[n:]...)
	p.freed()
	return n
}

// Waiting is how many bytes the worker wrote that the peer has not read.
func (p *Peer) Waiting() int { return len(p.outbox) - p.more }

// SetRoom says how many unread bytes fit between the worker and the peer.
func (p *Peer) SetRoom(n int) {
	p.room = n
	p.freed()
}

func (p *Peer) freed() {
	if p.full && len(p.outbox) < p.room && !p.nearClosed {
		p.full = false
		p.network.edge(p.file)
	}
}

// CloseWrite sends FIN after what was sent.
func (p *Peer) CloseWrite() {
	if !p.fin && !p.reset {
		p.fin = true
		p.network.edge(p.file)
	}
}

// Reset breaks the connection: RST.
func (p *Peer) Reset() {
	if p.nearClosed || p.reset {
		return
	}
	p.reset, p.errno = true, unix.ECONNRESET
	p.network.edge(p.file)
}

// Establish completes a connection that Connect began.
func (p *Peer) Establish() {
	p.connecting = false
	p.network.edge(p.file)
}

// Refuse fails a connection that Connect began.
func (p *Peer) Refuse(errno poller.Errno) {
	p.connecting, p.refused, p.errno = false, true, errno
	p.network.edge(p.file)
}

// SawFIN tells that the worker has ended its direction, SawReset that it broke the connection, Gone that its socket is closed.
func (p *Peer) SawFIN() bool { return p.nearFIN }

// SawReset tells that the worker broke the connection.
func (p *Peer) SawReset() bool { return p.nearReset }

// Gone tells that the worker's socket is closed.
func (p *Peer) Gone() bool { return p.nearClosed }

func (p *Peer) nearRead(b []byte) (int, poller.Errno) {
	switch {
	case p.connecting:
		return -1, unix.EAGAIN
	case len(p.inbox) > 0:
		n := copy(b[:min(len(b), p.ReadMost)], p.inbox)
		if n == len(p.inbox) {
			p.inbox = p.inbox[:0]
		} else {
			p.inbox = p.inbox[n:]
			if n == p.ReadMost { // the test's bound: the rest arrives now
				p.network.edge(p.file)
			}
		}
		return n, 0
	case p.errno != 0:
		errno := p.errno
		p.errno = 0
		return -1, errno
	case p.fin || p.reset || p.refused:
		return 0, 0
	}
	return -1, unix.EAGAIN
}

func (p *Peer) nearWrite(b []byte) (int, poller.Errno) {
	switch {
	case p.connecting:
		p.full = true
		return -1, unix.EAGAIN
	case p.errno != 0:
		errno := p.errno
		p.errno = 0
		return -1, errno
	case p.reset || p.nearFIN || p.refused:
		return -1, unix.EPIPE
	}
	n := min(len(b), p.WriteMost, max(0, p.room-len(p.outbox)))
	if n < len(b) {
		p.full = true
		if n == p.WriteMost && len(p.outbox)+n < p.room { // the test's bound, not want of room: there is room again at once
			p.full = false
			p.network.edge(p.file)
		}
	}
	if n == 0 && len(b) > 0 {
		return -1, unix.EAGAIN
	}
	p.outbox = append(p.outbox, b[:n]...)
	p.more = 0
	return n, 0
}

// Read implements poller.Poller.
func (n *Network) Read(fd int32, b []byte) (int, poller.Errno) {
	n.Calls["read"]++
	f := n.file(fd)
	if f == nil || f.kind != socket {
		return -1, unix.EBADF
	}
	return f.peer.nearRead(b)
}

// Write implements poller.Poller.
func (n *Network) Write(fd int32, b []byte) (int, poller.Errno) {
	n.Calls["write"]++
	f := n.file(fd)
	if f == nil || f.kind != socket {
		return -1, unix.EBADF
	}
	return f.peer.nearWrite(b)
}

// WriteLast implements poller.Poller. A test sees whether the FIN really followed: until then the bytes stay out of sight.
func (n *Network) WriteLast(fd int32, b []byte) (int, poller.Errno) {
	put, errno := n.Write(fd, b)
	if f := n.file(fd); errno == 0 && f != nil && put == len(b) {
		f.peer.more = put
	}
	return put, errno
}

// Writev implements poller.Poller.
func (n *Network) Writev(fd int32, pieces [][]byte) (int, poller.Errno) {
	n.Calls["writev"]++
	f := n.file(fd)
	if f == nil || f.kind != socket {
		return -1, unix.EBADF
	}
	total, left := 0, f.peer.WriteMost
	for _, piece := range pieces {
		put, errno := f.peer.nearWrite(piece[:min(len(piece), left)])
		if errno != 0 {
			if total > 0 {
				return total, 0
			}
			return -1, errno
		}
		total += put
		if left -= put; put < len(piece) {
			if !f.peer.full {
				n.edge(f)
			}
			break
		}
	}
	return total, 0
}

// ShutdownWrite implements poller.Poller.
func (n *Network) ShutdownWrite(fd int32) poller.Errno {
	n.Calls["shutdown"]++
	f := n.file(fd)
	switch {
	case f == nil || f.kind != socket:
		return unix.EBADF
	case f.peer.connecting || f.peer.reset:
		return unix.ENOTCONN
	}
	f.peer.nearFIN, f.peer.more = true, 0
	n.edge(f)
	return 0
}

// QuickAck implements poller.Poller.
func (n *Network) QuickAck(int32) { n.Calls["quickack"]++ }

// Abort implements poller.Poller.
func (n *Network) Abort(fd int32) {
	if f := n.file(fd); f != nil && f.kind == socket {
		f.peer.lingerZero = true
	}
}

// Close implements poller.Poller. Bytes that were not read make it a reset, as TCP does.
func (n *Network) Close(fd int32) {
	n.Calls["close"]++
	f := n.file(fd)
	if f == nil {
		panic("simulated: a descriptor is closed that is not open")
	}
	n.unregister(f)
	n.files[fd] = nil
	if p := f.peer; p != nil {
		p.nearClosed, p.more = true, 0
		p.nearReset = p.lingerZero || len(p.inbox) > 0
		p.nearFIN = true
	}
}

// SocketError implements poller.Poller.
func (n *Network) SocketError(fd int32) poller.Errno {
	f := n.file(fd)
	if f == nil || f.kind != socket {
		return unix.EBADF
	}
	errno := f.peer.errno
	f.peer.errno = 0
	return errno
}

// LocalAddress implements poller.Poller; simulated sockets have none.
func (n *Network) LocalAddress(int32, *unix.RawSockaddrAny) poller.Errno { return unix.ENOTSOCK }
