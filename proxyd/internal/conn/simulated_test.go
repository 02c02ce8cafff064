package conn_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/worker"
)

// stage is a worker over the simulated network, turned by the test.
type stage struct {
	t   *testing.T
	net *simulated.Network
	w   *worker.Worker
}

func newStage(t *testing.T) *stage {
	t.Helper()
	net := simulated.New()
	w, err := worker.New(0, net)
	if err != nil {
		t.Fatal(err)
	}
	return &stage{t, net, w}
}

// turn lets the worker do all there is to do now.
func (s *stage) turn() {
	for range 8 {
		s.w.Turn(0)
	}
}

// pass moves the clock.
func (s *stage) pass(d time.Duration) {
	s.net.Advance(int64(d))
	s.turn()
}

// actor is a handler that writes down what it is told.
type actor struct {
	told []string
	take func(c *conn.Conn, b []byte) int // nil: all
	eof  func(c *conn.Conn)
	got  []byte
}

func (a *actor) note(format string, args ...any) {
	a.told = append(a.told, fmt.Sprintf(format, args...))
}

func (a *actor) OnConnected(*conn.Conn) { a.note("connected") }

func (a *actor) OnData(c *conn.Conn, b []byte) int {
	n := len(b)
	if a.take != nil {
		n = a.take(c, b)
	}
	a.got = append(a.got, b[:n]...)
	return n
}

func (a *actor) OnEOF(c *conn.Conn) {
	a.note("eof")
	if a.eof != nil {
		a.eof(c)
	}
}
func (a *actor) OnAboveHigh(*conn.Conn) { a.note("above") }
func (a *actor) OnBelowLow(*conn.Conn)  { a.note("below") }
func (a *actor) OnClose(c *conn.Conn, r conn.Reason) {
	a.note("closed %d %v", r, c.Errno)
}

func (s *stage) told(a *actor, want ...string) {
	s.t.Helper()
	if got, want := strings.Join(a.told, ", "), strings.Join(want, ", "); got != want {
		s.t.Fatalf("told: %s\nwant: %s", got, want)
	}
}

// accept makes an accepted connection and its far end.
func (s *stage) accept(a *actor, o *conn.Options) (*conn.Conn, *simulated.Peer) {
	s.t.Helper()
	fd, far := s.net.Pair()
	c, errno := conn.Accept(s.w, fd, netip.AddrPort{}, 1, a, o)
	if errno != 0 {
		s.t.Fatal(errno)
	}
	s.turn()
	return c, far
}

var upstreamAt = poller.NewTCP(netip.MustParseAddrPort("192.0.2.80:80"))

const (
	local    = conn.LocalClose
	reset    = conn.RemoteReset
	failure  = conn.ConnectFailure
	timedOut = conn.ConnectTimeout
)

func closed(r conn.Reason, errno unix.Errno) string { return fmt.Sprintf("closed %d %v", r, errno) }

func TestConnectTimeOut(t *testing.T) {
	s, a := newStage(t), &actor{}
	s.net.Serve(upstreamAt).Pending = true
	conn.Dial(s.w, upstreamAt, 1, a, &conn.Options{ConnectTimeout: 2 * time.Second})
	s.pass(1990 * time.Millisecond)
	s.told(a)
	s.pass(20 * time.Millisecond)
	s.told(a, closed(timedOut, unix.ETIMEDOUT))
	if s.net.Open() != 0 {
		t.Error("the socket stays open")
	}
}

func TestConnectsInTime(t *testing.T) {
	s, a := newStage(t), &actor{}
	service := s.net.Serve(upstreamAt)
	service.Pending = true
	c := conn.Dial(s.w, upstreamAt, 1, a, &conn.Options{ConnectTimeout: 2 * time.Second})
	c.Write([]byte("early")) // before the connection is there
	s.pass(time.Second)
	if service.Last().Waiting() != 0 {
		t.Error("bytes left before the connection was there")
	}
	service.Last().Establish()
	s.turn()
	s.told(a, "connected")
	if got := service.Last().ReceiveAll(); string(got) != "early" {
		t.Errorf("the peer received %q", got)
	}
	s.pass(time.Hour) // the time-out is over with the connect
	s.told(a, "connected")
}

func TestConnectRefusedLate(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH} {
		s, a := newStage(t), &actor{}
		service := s.net.Serve(upstreamAt)
		service.Pending = true
		conn.Dial(s.w, upstreamAt, 1, a, &conn.Options{})
		s.turn()
		service.Last().Refuse(errno)
		s.turn()
		s.told(a, closed(failure, errno))
	}
}

// No descriptor is left for a connect: told as a failure, never from within Dial.
func TestConnectWithoutDescriptors(t *testing.T) {
	s, a := newStage(t), &actor{}
	s.net.Serve(upstreamAt)
	s.net.MaxFD = 0
	conn.Dial(s.w, upstreamAt, 1, a, &conn.Options{})
	s.told(a)
	s.turn()
	s.told(a, closed(failure, unix.EMFILE))
}

func TestPartialReads(t *testing.T) {
	s, a := newStage(t), &actor{}
	a.take = func(_ *conn.Conn, b []byte) int { return len(b) / 4 * 4 } // whole words
	_, far := s.accept(a, &conn.Options{})
	far.ReadMost = 3
	text := []byte("word by word by word by.")
	far.Send(text[:10])
	s.turn()
	if string(a.got) != "word by " {
		t.Errorf("got %q of the beginning", a.got)
	}
	far.Send(text[10:])
	far.CloseWrite()
	s.turn()
	if !bytes.Equal(a.got, text) {
		t.Errorf("got %q, want %q", a.got, text)
	}
	s.told(a, "eof")
}

func TestShortWrites(t *testing.T) {
	s, a := newStage(t), &actor{}
	c, far := s.accept(a, &conn.Options{})
	far.WriteMost = 7
	text := bytes.Repeat([]byte("seven bytes a call "), 30)
	c.Write(text[:100])
	c.Write(text[100:])
	c.CloseWrite()
	for range 200 {
		s.w.Turn(0)
	}
	if got := far.ReceiveAll(); !bytes.Equal(got, text) {
		t.Errorf("the peer received %d bytes of %d", len(got), len(text))
	}
	if !far.SawFIN() {
		t.Error("no FIN after the last byte")
	}
}

func TestWatermarks(t *testing.T) {
	s, a := newStage(t), &actor{}
	c, far := s.accept(a, &conn.Options{HighWatermark: 64 << 10, LowWatermark: 16 << 10})
	far.SetRoom(10 << 10)
	sent := 0
	for range 8 {
		c.Write(make([]byte, 8<<10-1))
		sent += 8<<10 - 1
	}
	s.told(a)
	c.Write(make([]byte, 8<<10-1))
	sent += 8<<10 - 1
	s.turn()
	s.told(a, "above")
	received := 0
	for c.Buffered() >= 16<<10 {
		s.told(a, "above")
		received += len(far.ReceiveAll())
		s.turn()
	}
	s.told(a, "above", "below")
	for range 20 {
		received += len(far.ReceiveAll())
		s.turn()
	}
	if received != sent {
		t.Errorf("%d bytes arrived of %d", received, sent)
	}
}

func TestPausedReadingLeavesBytesInTheKernel(t *testing.T) {
	s, a := newStage(t), &actor{}
	c, far := s.accept(a, &conn.Options{})
	c.PauseRead()
	c.PauseRead()
	far.Send(make([]byte, 100_000))
	s.turn()
	if far.Unread() != 100_000 {
		t.Errorf("%d bytes were read while paused", 100_000-far.Unread())
	}
	c.ResumeRead()
	s.turn()
	if len(a.got) != 0 {
		t.Error("one resume took two pauses back")
	}
	c.ResumeRead()
	s.turn()
	if len(a.got) != 100_000 {
		t.Errorf("%d bytes after the pause", len(a.got))
	}
}

func TestHalfCloses(t *testing.T) {
	s, a := newStage(t), &actor{}
	c, far := s.accept(a, &conn.Options{})
	far.Send([]byte("question"))
	far.CloseWrite()
	s.turn()
	s.told(a, "eof")
	c.Write([]byte("answer"))
	s.turn()
	if string(far.ReceiveAll()) != "answer" || far.SawFIN() {
		t.Error("after the peer's FIN our side stays open")
	}
	c.CloseWrite()
	s.turn()
	if !far.SawFIN() || far.Gone() {
		t.Error("our FIN is not the end of the connection")
	}
	c.Close()
	s.told(a, "eof", closed(local, 0))
	if far.SawReset() {
		t.Error("an orderly end looks like a reset")
	}
}

func TestDelayedClose(t *testing.T) {
	for _, test := range []struct {
		name string
		play func(s *stage, far *simulated.Peer)
	}{
		{"the peer ends", func(s *stage, far *simulated.Peer) { far.CloseWrite(); s.turn() }},
		{"the time is over", func(s *stage, _ *simulated.Peer) { s.pass(999 * time.Millisecond); s.pass(10 * time.Millisecond) }},
		{"the peer goes on for ever", func(s *stage, far *simulated.Peer) {
			for range 20 {
				far.Send(make([]byte, 64<<10))
				s.turn()
			}
		}},
		{"the peer resets", func(s *stage, far *simulated.Peer) { far.Reset(); s.turn() }},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, a := newStage(t), &actor{}
			c, far := s.accept(a, &conn.Options{})
			c.PauseRead()
			far.Send([]byte("a body that nobody wants"))
			c.Write([]byte("413"))
			c.CloseAfterFlush(time.Second)
			s.turn()
			if string(far.ReceiveAll()) != "413" || !far.SawFIN() || far.SawReset() {
				t.Fatal("the last words did not leave in order")
			}
			far.Send([]byte(" at all"))
			s.pass(100 * time.Millisecond)
			s.told(a)
			test.play(s, far)
			if len(a.told) != 1 || !far.Gone() {
				t.Fatalf("told %v, gone %v", a.told, far.Gone())
			}
			if len(a.got) != 0 {
				t.Errorf("the handler was given %q", a.got)
			}
		})
	}
}

func TestResetAfterBytes(t *testing.T) {
	s, a := newStage(t), &actor{}
	_, far := s.accept(a, &conn.Options{})
	far.Send([]byte("said before"))
	far.Reset()
	s.turn()
	if string(a.got) != "said before" {
		t.Errorf("got %q", a.got)
	}
	s.told(a, closed(reset, 0))
}

// A peer that has answered and gone: a write fails, and what it said is still read.
func TestWriteFailsAfterAnswer(t *testing.T) {
	s, a := newStage(t), &actor{}
	c, far := s.accept(a, &conn.Options{})
	c.PauseRead()
	far.Send([]byte("too large"))
	far.Reset()
	s.net.Advance(1)
	c.Write([]byte("more of the body"))
	c.ResumeRead()
	s.turn()
	if string(a.got) != "too large" {
		t.Errorf("got %q of the early answer", a.got)
	}
	s.told(a, closed(reset, 0))
}

// A connection that ends within its own callback is not touched any more, and its memory serves the next one.
func TestMemoryServesAgain(t *testing.T) {
	s, a := newStage(t), &actor{}
	a.take = func(c *conn.Conn, b []byte) int {
		c.Write([]byte("unsent"))
		c.Close()
		return 0
	}
	first, far := s.accept(a, &conn.Options{})
	far.Send([]byte("x"))
	s.turn()
	s.told(a, closed(local, 0))
	if s.w.Pool.Used() != 0 {
		t.Errorf("%d bytes of buffers are held by nobody", s.w.Pool.Used())
	}
	b := &actor{}
	second, far := s.accept(b, &conn.Options{})
	if first != second {
		t.Error("the memory of a connection that ended was not taken again")
	}
	far.Send([]byte("hello"))
	s.turn()
	if string(b.got) != "hello" {
		t.Errorf("got %q", b.got)
	}
	s.told(a, closed(local, 0))
}

type echo struct{ actor }

func (*echo) OnData(c *conn.Conn, b []byte) int {
	c.Write(b)
	return len(b)
}

func TestEchoAllocatesNothing(t *testing.T) {
	s := newStage(t)
	fd, far := s.net.Pair()
	if _, errno := conn.Accept(s.w, fd, netip.AddrPort{}, 1, &echo{}, &conn.Options{}); errno != 0 {
		t.Fatal(errno)
	}
	s.turn()
	message := make([]byte, 1000)
	if n := testing.AllocsPerRun(1000, func() {
		far.Send(message)
		s.w.Turn(0)
		if far.Discard() != len(message) {
			t.Fatal("no echo")
		}
	}); n > 0 {
		t.Errorf("%v allocations an echo", n)
	}
}

// TestEndAfterWhatWasKept: bytes that the handler left while it paused come before the end of the stream, though the end is
// there before they are presented again.
func TestEndAfterWhatWasKept(t *testing.T) {
	s := newStage(t)
	a := &actor{}
	a.take = func(c *conn.Conn, b []byte) int {
		if len(a.got) == 0 {
			c.PauseRead()
			return 1
		}
		a.note("%s", b)
		return len(b)
	}
	c, far := s.accept(a, &conn.Options{})
	far.Send([]byte("Hello"))
	s.turn()
	s.told(a)
	resumes := worker.Task{Runner: runner(c.ResumeRead)}
	s.w.Soon(&resumes)
	s.w.Turn(0) // resumed, and what was kept waits for the next turn, whose events come first
	far.CloseWrite()
	s.turn()
	s.told(a, "ello", "eof")
}

type runner func()

func (r runner) RunTask() { r() }
