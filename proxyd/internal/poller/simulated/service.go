package simulated

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/poller"
)

// Backlog is a listening socket of the worker, as its clients see it.
type Backlog struct {
	network *Network
	file    *file
	queue   []*Peer
	from    []netip.AddrPort
	errnos  []poller.Errno
}

// Listen makes a listening socket for the worker.
func (n *Network) Listen() (int32, *Backlog) {
	f, errno := n.open(listening)
	if errno != 0 {
		panic(errno)
	}
	b := &Backlog{network: n, file: f}
	f.backlog = b
	return f.fd, b
}

// Connect queues a connection and returns the client's end of it. The worker's descriptor is made when it accepts.
func (b *Backlog) Connect(from netip.AddrPort) *Peer {
	p := &Peer{ReadMost: unlimited, WriteMost: unlimited, network: b.network, file: &file{fd: -1}, room: b.network.Room}
	p.file.peer = p
	b.queue = append(b.queue, p)
	b.from = append(b.from, from)
	b.network.edge(b.file)
	return p
}

// FailNext makes the next Accept fail with each of the errors in turn, before what is queued.
func (b *Backlog) FailNext(errnos ...poller.Errno) { b.errnos = append(b.errnos, errnos...) }

// Queued is how many connections wait to be accepted.
func (b *Backlog) Queued() int { return len(b.queue) }

// Accept implements poller.Poller.
func (n *Network) Accept(fd int32, peer *unix.RawSockaddrAny) (int32, poller.Errno) {
	n.Calls["accept"]++
	f := n.file(fd)
	if f == nil || f.kind != listening {
		return -1, unix.EINVAL
	}
	b := f.backlog
	if len(b.errnos) > 0 {
		errno := b.errnos[0]
		b.errnos = b.errnos[1:]
		return -1, errno
	}
	if len(b.queue) == 0 {
		return -1, unix.EAGAIN
	}
	opened, errno := n.open(socket)
	if errno != 0 {
		return -1, errno
	}
	p, from := b.queue[0], b.from[0]
	b.queue, b.from = b.queue[1:], b.from[1:]
	opened.peer, p.file = p, opened
	*peer = unix.RawSockaddrAny{}
	if from.IsValid() {
		*peer = *poller.NewTCP(from).Raw
	}
	return opened.fd, 0
}

// Service is what answers at an address that the worker connects to.
type Service struct {
	// Errno fails Connect at once when it is set.
	Errno poller.Errno
	// Pending leaves connections unfinished until Establish or Refuse of the peer.
	Pending bool
	// Peers are the far ends of the connections made, in their order.
	Peers []*Peer
}

// Serve makes something answer at the address.
func (n *Network) Serve(address *poller.Address) *Service {
	s := &Service{}
	n.services[address.Text] = s
	return s
}

// Last is the far end of the connection made last.
func (s *Service) Last() *Peer { return s.Peers[len(s.Peers)-1] }

// Connect implements poller.Poller. Nobody at the address refuses it.
func (n *Network) Connect(address *poller.Address) (int32, poller.Errno) {
	n.Calls["connect"]++
	s := n.services[address.Text]
	if s != nil && s.Errno != 0 {
		return -1, s.Errno
	}
	p, errno := n.newSocket()
	if errno != 0 {
		return -1, errno
	}
	switch {
	case s == nil:
		p.refused, p.errno = true, unix.ECONNREFUSED
	default:
		p.connecting = s.Pending
		s.Peers = append(s.Peers, p)
	}
	return p.file.fd, 0
}
