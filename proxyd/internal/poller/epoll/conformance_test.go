package epoll_test

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/epoll"
	"retinue.dev/proxyd/internal/poller/pollertest"
)

func TestConformance(t *testing.T) {
	pollertest.Run(t, func(t *testing.T) pollertest.Network {
		p, err := epoll.New()
		must(t, err)
		t.Cleanup(p.Destroy)
		return &network{t, p}
	})
}

// network is loopback.
type network struct {
	t *testing.T
	p *epoll.Poller
}

func (n *network) Poller() poller.Poller { return n.p }

func (n *network) listen() (int, netip.AddrPort) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(n.t, err)
	n.t.Cleanup(func() { unix.Close(fd) })
	must(n.t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	must(n.t, unix.Listen(fd, 128))
	name, err := unix.Getsockname(fd)
	must(n.t, err)
	return fd, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(name.(*unix.SockaddrInet4).Port))
}

func (n *network) Listen() (int32, func() pollertest.Far) {
	fd, at := n.listen()
	return int32(fd), func() pollertest.Far {
		c, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		must(n.t, err)
		must(n.t, unix.Connect(c, &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}))
		return n.far(c)
	}
}

func (n *network) Serve() (*poller.Address, func() pollertest.Far) {
	fd, at := n.listen()
	return poller.NewTCP(at), func() pollertest.Far {
		for end := time.Now().Add(5 * time.Second); ; {
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err == nil {
				return n.far(c)
			}
			if err != unix.EAGAIN || time.Now().After(end) {
				n.t.Fatal(err)
			}
		}
	}
}

func (n *network) Nobody() *poller.Address {
	fd, at := n.listen()
	unix.Close(fd)
	return poller.NewTCP(at)
}

func (n *network) far(fd int) *far {
	must(n.t, unix.SetNonblock(fd, true))
	must(n.t, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	f := &far{t: n.t, fd: fd}
	n.t.Cleanup(func() { f.close() })
	return f
}

type far struct {
	t        *testing.T
	fd       int
	fin, rst bool
}

func (f *far) Send(b []byte) {
	n, err := unix.Write(f.fd, b)
	must(f.t, err)
	if n < len(b) {
		f.t.Fatalf("%d of %d bytes were sent", n, len(b))
	}
}

func (f *far) Receive(n int) []byte {
	buf := make([]byte, n)
	got, err := unix.Read(f.fd, buf)
	switch {
	case err == unix.EAGAIN:
		return nil
	case err != nil:
		f.rst = true
		return nil
	case got == 0:
		f.fin = true
	}
	return buf[:got]
}

func (f *far) CloseWrite() { must(f.t, unix.Shutdown(f.fd, unix.SHUT_WR)) }

func (f *far) Reset() {
	must(f.t, unix.SetsockoptLinger(f.fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
	f.close()
}

func (f *far) SawFIN() bool {
	f.Receive(1)
	return f.fin
}

func (f *far) SawReset() bool {
	f.Receive(1)
	return f.rst
}

func (f *far) close() {
	if f.fd >= 0 {
		unix.Close(f.fd)
		f.fd = -1
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
