// Package pollertest is what every poller.Poller must do: one suite, run on the kernel and on the simulated network, so that a test
// over the simulated one says something about the real one.
package pollertest

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/poller"
)

// Far is the other end of a socket of the poller. Its methods do not wait.
type Far interface {
	Send(b []byte)
	// Receive takes at most n bytes that have arrived.
	Receive(n int) []byte
	CloseWrite()
	Reset()
	// SawFIN and SawReset tell how the poller's side has ended its direction, after everything was received.
	SawFIN() bool
	SawReset() bool
}

// Network is a poller and the world around it, for one test.
type Network interface {
	Poller() poller.Poller
	// Listen makes a non-blocking listening socket; connect makes a connection to it.
	Listen() (fd int32, connect func() Far)
	// Serve is an address that takes connections; accepted answers their far ends, in order.
	Serve() (at *poller.Address, accepted func() Far)
	// Nobody is an address that refuses.
	Nobody() *poller.Address
}

const token = 7

// Run holds a poller to the suite.
func Run(t *testing.T, make func(t *testing.T) Network) {
	for _, test := range []struct {
		name string
		run  func(s *suite)
	}{
		{"an edge is told once", (*suite).edgeOnce},
		{"what was there before Add is told", (*suite).edgeAtAdd},
		{"room is told after a short write", (*suite).writable},
		{"half-close by the peer", (*suite).farFIN},
		{"half-close by us", (*suite).nearFIN},
		{"the last bytes come with the FIN", (*suite).lastBytes},
		{"reset by the peer", (*suite).farReset},
		{"reset by us", (*suite).nearReset},
		{"closing with unread bytes resets", (*suite).closeUnread},
		{"a connection is established", (*suite).connect},
		{"a connection is refused", (*suite).refused},
		{"connections are accepted", (*suite).accept},
		{"what was removed is silent", (*suite).remove},
		{"what was closed is silent", (*suite).closed},
		{"pieces are written in order", (*suite).writev},
		{"bytes go through a pipe", (*suite).splice},
		{"a spare descriptor", (*suite).spare},
		{"a wake ends a wait", (*suite).wake},
		{"events come with their tokens", (*suite).tokens},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := make(t)
			test.run(&suite{T: t, net: n, p: n.Poller(), buf: mapped(t, 1<<20)})
		})
	}
}

func mapped(t *testing.T, n int) []byte {
	memory, err := buffer.Map(n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(memory) })
	return memory
}

type suite struct {
	*testing.T
	net Network
	p   poller.Poller
	buf []byte
}

// bytes puts text into memory that the poller may read.
func (s *suite) bytes(text string) []byte { return s.buf[:copy(s.buf, text)] }

// events gathers what is told of a token until all of want was, or a second has passed.
func (s *suite) events(of uint64, want uint32) uint32 {
	s.Helper()
	var got uint32
	list := make([]poller.Event, 16)
	for end := time.Now().Add(time.Second); got&want != want && time.Now().Before(end); {
		for _, e := range list[:s.p.Wait(list, int64(time.Millisecond), false)] {
			if e.Token == of {
				got |= e.Events
			}
		}
	}
	if got&want != want {
		s.Fatalf("events %#x, want %#x", got, want)
	}
	return got
}

// silent holds that nothing of a token is told.
func (s *suite) silent(of uint64) {
	s.Helper()
	list := make([]poller.Event, 16)
	for range 3 {
		for _, e := range list[:s.p.Wait(list, int64(time.Millisecond), false)] {
			if e.Token == of {
				s.Fatalf("events %#x, want none", e.Events)
			}
		}
	}
}

func (s *suite) ok(what string, errno poller.Errno) {
	s.Helper()
	if errno != 0 {
		s.Fatalf("%s: %v", what, errno)
	}
}

// pair is a registered connection and its far end, with the events of its beginning taken.
func (s *suite) pair() (int32, Far) {
	s.Helper()
	at, accepted := s.net.Serve()
	fd, errno := s.p.Connect(at)
	s.ok("connect", errno)
	s.ok("add", s.p.Add(fd, token, false))
	s.events(token, poller.Writable)
	s.ok("the connection", s.p.SocketError(fd))
	far := accepted()
	s.silent(token)
	return fd, far
}

func (s *suite) read(fd int32, want string) {
	s.Helper()
	n, errno := s.p.Read(fd, s.buf[:4096])
	s.ok("read", errno)
	if got := string(s.buf[:n]); got != want {
		s.Fatalf("read %q, want %q", got, want)
	}
}

// received waits for bytes at the far end.
func (s *suite) received(far Far, want string) {
	s.Helper()
	var got []byte
	for end := time.Now().Add(time.Second); len(got) < len(want) && time.Now().Before(end); {
		got = append(got, far.Receive(len(want)-len(got))...)
	}
	if string(got) != want {
		s.Fatalf("the far end received %q, want %q", got, want)
	}
}

// until waits for the far end to see something.
func (s *suite) until(what string, seen func() bool) {
	s.Helper()
	for end := time.Now().Add(time.Second); !seen(); {
		if time.Now().After(end) {
			s.Fatalf("the far end does not see %s", what)
		}
	}
}

func (s *suite) edgeOnce() {
	fd, far := s.pair()
	far.Send([]byte("one"))
	s.events(token, poller.Readable)
	s.silent(token) // unread, and yet not told again
	far.Send([]byte("two"))
	s.events(token, poller.Readable)
	s.read(fd, "onetwo")
	if _, errno := s.p.Read(fd, s.buf[:16]); errno != unix.EAGAIN {
		s.Errorf("an empty socket answers %v, want EAGAIN", errno)
	}
	s.silent(token)
}

func (s *suite) edgeAtAdd() {
	fd, far := s.pair()
	s.ok("remove", s.p.Remove(fd))
	far.Send([]byte("early"))
	s.silent(token)
	s.ok("add", s.p.Add(fd, token+1, false))
	s.events(token+1, poller.Readable|poller.Writable)
	s.read(fd, "early")
}

func (s *suite) writable() {
	fd, far := s.pair()
	sent := 0
	for {
		n, errno := s.p.Write(fd, s.buf)
		if errno == unix.EAGAIN {
			break
		}
		s.ok("write", errno)
		sent += n
	}
	s.silent(token)
	for got := 0; got < sent; {
		got += len(far.Receive(1 << 20))
	}
	s.events(token, poller.Writable)
	if n, errno := s.p.Write(fd, s.bytes("more")); n != 4 || errno != 0 {
		s.Errorf("a write after room came: %d, %v", n, errno)
	}
}

func (s *suite) farFIN() {
	fd, far := s.pair()
	far.Send([]byte("bye"))
	far.CloseWrite()
	if got := s.events(token, poller.Readable|poller.HalfShut); got&(poller.HangUp|poller.Failed) != 0 {
		s.Errorf("events %#x: half a close is not a hang-up", got)
	}
	s.read(fd, "bye")
	s.read(fd, "")
	if n, errno := s.p.Write(fd, s.bytes("still here")); n != 10 || errno != 0 {
		s.Errorf("a write after the peer's FIN: %d, %v", n, errno)
	}
	s.received(far, "still here")
}

func (s *suite) nearFIN() {
	fd, far := s.pair()
	_, errno := s.p.Write(fd, s.bytes("bye"))
	s.ok("write", errno)
	s.ok("shutdown", s.p.ShutdownWrite(fd))
	s.received(far, "bye")
	s.until("our FIN", far.SawFIN)
	if _, errno := s.p.Write(fd, s.bytes("x")); errno != unix.EPIPE {
		s.Errorf("a write after our FIN: %v, want EPIPE", errno)
	}
	far.Send([]byte("an answer"))
	s.events(token, poller.Readable)
	s.read(fd, "an answer")
	far.CloseWrite()
	s.events(token, poller.Readable|poller.HalfShut|poller.HangUp)
}

func (s *suite) lastBytes() {
	fd, far := s.pair()
	n, errno := s.p.WriteLast(fd, s.bytes("the end"))
	s.ok("write", errno)
	if n != 7 {
		s.Fatalf("%d bytes were taken", n)
	}
	s.p.Close(fd)
	s.received(far, "the end")
	s.until("our FIN", far.SawFIN)
}

func (s *suite) farReset() {
	fd, far := s.pair()
	far.Reset()
	s.events(token, poller.Readable|poller.HalfShut|poller.HangUp|poller.Failed)
	if _, errno := s.p.Read(fd, s.buf[:16]); errno != unix.ECONNRESET {
		s.Errorf("read: %v, want ECONNRESET", errno)
	}
	if _, errno := s.p.Write(fd, s.bytes("x")); errno != unix.EPIPE {
		s.Errorf("write: %v, want EPIPE", errno)
	}
	if n, errno := s.p.Read(fd, s.buf[:16]); n != 0 || errno != 0 {
		s.Errorf("a second read: %d, %v; the error is told once", n, errno)
	}
}

func (s *suite) nearReset() {
	fd, far := s.pair()
	s.p.Abort(fd)
	s.p.Close(fd)
	s.until("our reset", far.SawReset)
}

func (s *suite) closeUnread() {
	fd, far := s.pair()
	far.Send([]byte("nobody reads this"))
	s.events(token, poller.Readable)
	s.p.Close(fd)
	s.until("a reset", far.SawReset)
}

func (s *suite) connect() {
	at, accepted := s.net.Serve()
	fd, errno := s.p.Connect(at)
	s.ok("connect", errno)
	s.ok("add", s.p.Add(fd, token, false))
	if got := s.events(token, poller.Writable); got&(poller.Failed|poller.HangUp) != 0 {
		s.Fatalf("events %#x", got)
	}
	s.ok("the connection", s.p.SocketError(fd))
	_, errno = s.p.Write(fd, s.bytes("hello"))
	s.ok("write", errno)
	s.received(accepted(), "hello")
}

func (s *suite) refused() {
	fd, errno := s.p.Connect(s.net.Nobody())
	if errno == unix.ECONNREFUSED {
		return // told at once
	}
	s.ok("connect", errno)
	s.ok("add", s.p.Add(fd, token, false))
	s.events(token, poller.Failed|poller.HangUp)
	if errno := s.p.SocketError(fd); errno != unix.ECONNREFUSED {
		s.Errorf("the connection: %v, want ECONNREFUSED", errno)
	}
}

func (s *suite) accept() {
	fd, connect := s.net.Listen()
	s.ok("add", s.p.Add(fd, token, false))
	var raw unix.RawSockaddrAny
	if _, errno := s.p.Accept(fd, &raw); errno != unix.EAGAIN {
		s.Fatalf("accept: %v, want EAGAIN", errno)
	}
	far := connect()
	s.events(token, poller.Readable)
	got, errno := s.p.Accept(fd, &raw)
	s.ok("accept", errno)
	if !poller.IP(&raw).IsValid() {
		s.Error("the peer has no address")
	}
	s.ok("add", s.p.Add(got, token+1, false))
	far.Send([]byte("hello"))
	s.events(token+1, poller.Readable|poller.Writable)
	s.read(got, "hello")
	if _, errno := s.p.Accept(fd, &raw); errno != unix.EAGAIN {
		s.Errorf("accept: %v, want EAGAIN", errno)
	}
}

func (s *suite) remove() {
	fd, far := s.pair()
	s.ok("remove", s.p.Remove(fd))
	far.Send([]byte("unheard"))
	far.CloseWrite()
	s.silent(token)
	if errno := s.p.Remove(fd); errno != unix.ENOENT {
		s.Errorf("a second remove: %v, want ENOENT", errno)
	}
}

func (s *suite) closed() {
	fd, far := s.pair()
	far.Send([]byte("unheard"))
	s.p.Close(fd)
	s.silent(token)
	if errno := s.p.Add(fd, token, false); errno != unix.EBADF {
		s.Errorf("add of a closed descriptor: %v, want EBADF", errno)
	}
}

func (s *suite) writev() {
	fd, far := s.pair()
	b := s.bytes("one two three")
	n, errno := s.p.Writev(fd, [][]byte{b[:4], b[4:8], b[8:]})
	s.ok("writev", errno)
	if n != len(b) {
		s.Errorf("%d bytes were taken", n)
	}
	s.received(far, "one two three")
}

func (s *suite) splice() {
	fd, far := s.pair()
	read, write, size, errno := s.p.Pipe()
	s.ok("pipe", errno)
	if size < 4096 {
		s.Fatalf("a pipe of %d bytes", size)
	}
	if _, errno := s.p.Splice(fd, write, 100); errno != unix.EAGAIN {
		s.Errorf("from an empty socket: %v, want EAGAIN", errno)
	}
	if _, errno := s.p.Splice(read, fd, 100); errno != unix.EAGAIN {
		s.Errorf("from an empty pipe: %v, want EAGAIN", errno)
	}
	far.Send(bytes.Repeat([]byte("spliced "), 16))
	s.events(token, poller.Readable)
	n, errno := s.p.Splice(fd, write, 64)
	s.ok("splice in", errno)
	if n != 64 {
		s.Fatalf("%d bytes went into the pipe, want the 64 asked for", n)
	}
	n, errno = s.p.Splice(read, fd, 64)
	s.ok("splice out", errno)
	if n != 64 {
		s.Fatalf("%d bytes came out", n)
	}
	s.received(far, "spliced spliced spliced spliced spliced spliced spliced spliced ")
	far.CloseWrite()
	s.events(token, poller.HalfShut)
	if n, errno = s.p.Splice(fd, write, 4096); n != 64 || errno != 0 {
		s.Errorf("the rest: %d, %v", n, errno)
	}
	if n, errno = s.p.Splice(fd, write, 4096); n != 0 || errno != 0 {
		s.Errorf("at the end: %d, %v", n, errno)
	}
	s.p.Close(read)
	s.p.Close(write)
}

func (s *suite) spare() {
	fd, errno := s.p.Spare()
	s.ok("spare", errno)
	s.p.Close(fd)
	if errno := s.p.Add(fd, token, false); errno != unix.EBADF {
		s.Errorf("a spare descriptor that was closed: %v, want EBADF", errno)
	}
}

func (s *suite) wake() {
	go s.p.Wake()
	list := make([]poller.Event, 16)
	began := time.Now()
	for range 2 { // the first may come before the wake
		if n := s.p.Wait(list, int64(500*time.Millisecond), true); n != 0 {
			s.Fatalf("%d events", n)
		}
		if time.Since(began) < 400*time.Millisecond {
			return
		}
	}
	s.Error("the wait went on")
}

func (s *suite) tokens() {
	at, accepted := s.net.Serve()
	const many = 40
	var fars []Far
	for i := range many {
		fd, errno := s.p.Connect(at)
		s.ok("connect", errno)
		s.ok("add", s.p.Add(fd, uint64(i)<<32|9, false))
		fars = append(fars, accepted())
	}
	list := make([]poller.Event, many)
	gather := func(want uint32) map[uint64]int {
		seen := map[uint64]int{}
		for end := time.Now().Add(time.Second); len(seen) < many && time.Now().Before(end); {
			for _, e := range list[:s.p.Wait(list[:16], int64(time.Millisecond), false)] {
				if e.Events&want != 0 {
					seen[e.Token]++
				}
			}
		}
		return seen
	}
	gather(poller.Writable)
	for _, far := range fars {
		far.Send([]byte("x"))
	}
	seen := gather(poller.Readable)
	for i := range many {
		if seen[uint64(i)<<32|9] != 1 {
			s.Errorf("connection %d was told %d times", i, seen[uint64(i)<<32|9])
		}
	}
}
