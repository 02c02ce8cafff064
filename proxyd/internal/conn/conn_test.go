package conn_test

import (
	"bytes"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/epoll"
	"retinue.dev/proxyd/internal/worker"
)

// loop is a worker on a goroutine of its own for one test.
func loop(t *testing.T) *worker.Worker {
	t.Helper()
	p, err := epoll.New()
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(0, p)
	if err != nil {
		t.Fatal(err)
	}
	var done sync.WaitGroup
	done.Add(1)
	go func() {
		defer done.Done()
		w.Run()
		p.Destroy()
	}()
	t.Cleanup(func() {
		w.Post(w.Stop)
		done.Wait()
	})
	return w
}

// on runs f on the worker's thread and waits for it.
func on(w *worker.Worker, f func()) {
	done := make(chan struct{})
	w.Post(func() {
		f()
		close(done)
	})
	<-done
}

// handler records; hooks decide.
type handler struct {
	data      func(c *conn.Conn, b []byte) int
	eof       func(c *conn.Conn)
	connected chan struct{}
	closed    chan conn.Reason
	errno     unix.Errno // after closed
	above     int
	below     int
}

func newHandler() *handler {
	return &handler{connected: make(chan struct{}, 1), closed: make(chan conn.Reason, 1)}
}

func (h *handler) OnConnected(*conn.Conn) { h.connected <- struct{}{} }

func (h *handler) OnData(c *conn.Conn, b []byte) int {
	if h.data == nil {
		return len(b)
	}
	return h.data(c, b)
}

func (h *handler) OnEOF(c *conn.Conn) {
	if h.eof != nil {
		h.eof(c)
	}
}

func (h *handler) OnAboveHigh(*conn.Conn) { h.above++ }
func (h *handler) OnBelowLow(*conn.Conn)  { h.below++ }

func (h *handler) OnClose(c *conn.Conn, r conn.Reason) {
	h.errno = c.Errno
	h.closed <- r
}

// pair is a connection on the worker and the plain socket at its other end.
func pair(t *testing.T, w *worker.Worker, h *handler, o conn.Options) (*conn.Conn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	address := poller.NewTCP(l.Addr().(*net.TCPAddr).AddrPort())
	var c *conn.Conn
	on(w, func() { c = conn.Dial(w, address, 1, h, &o) })
	far, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { far.Close() })
	wait(t, h.connected)
	return c, far.(*net.TCPConn)
}

func wait[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing happened for 10 s")
		panic("unreachable")
	}
}

func TestUnconsumedBytesComeAgain(t *testing.T) {
	w, h := loop(t), newHandler()
	got := make(chan string, 1)
	h.data = func(_ *conn.Conn, b []byte) int {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return 0 // a line is consumed whole
		}
		got <- string(b[:i])
		return i + 1
	}
	_, far := pair(t, w, h, conn.Options{})
	for _, piece := range []string{"a line", " in three", " pieces\n"} {
		far.Write([]byte(piece))
		on(w, func() {})
	}
	if line := wait(t, got); line != "a line in three pieces" {
		t.Errorf("got %q", line)
	}
}

func TestPausedReadingResumes(t *testing.T) {
	w, h := loop(t), newHandler()
	got := make(chan int, 16)
	paused := false
	h.data = func(c *conn.Conn, b []byte) int {
		if !paused {
			paused = true
			c.PauseRead()
			return 1
		}
		got <- len(b)
		return len(b)
	}
	c, far := pair(t, w, h, conn.Options{})
	far.Write([]byte("12345"))
	deadline := time.Now().Add(10 * time.Second)
	for seen := false; !seen; on(w, func() { seen = paused }) {
		if time.Now().After(deadline) {
			t.Fatal("no data arrived")
		}
	}
	select {
	case n := <-got:
		t.Fatalf("%d bytes were presented while reading was paused", n)
	default:
	}
	on(w, c.ResumeRead)
	if n := wait(t, got); n != 4 {
		t.Errorf("%d bytes after the pause, want the 4 that were left", n)
	}
}

// TestSlowReaderIsBounded writes until the high watermark tells to stop, and finds that it does alternate with the low one
// and that every byte arrives in order.
func TestSlowReaderIsBounded(t *testing.T) {
	w, h := loop(t), newHandler()
	c, far := pair(t, w, h, conn.Options{HighWatermark: 256 << 10})
	const piece = 64 << 10
	sent := 0
	on(w, func() {
		for h.above == 0 && sent < 256<<20 {
			c.Write(bytes.Repeat([]byte{byte(sent / piece)}, piece))
			sent += piece
		}
		if c.Buffered() > 256<<10+piece {
			t.Errorf("%d bytes are staged at a high watermark of 256 KiB", c.Buffered())
		}
		c.CloseWrite()
	})
	if h.above != 1 {
		t.Fatalf("the high watermark was told %d times", h.above)
	}
	received := 0
	buf := make([]byte, 32<<10)
	for {
		n, err := far.Read(buf)
		for i := range n {
			if want := byte((received + i) / piece); buf[i] != want {
				t.Fatalf("byte %d is %d, want %d", received+i, buf[i], want)
			}
		}
		received += n
		if err != nil {
			break
		}
	}
	if received != sent {
		t.Errorf("%d bytes arrived of %d", received, sent)
	}
	on(w, func() {
		if h.below != 1 || c.Buffered() != 0 {
			t.Errorf("the low watermark was told %d times, %d bytes are staged", h.below, c.Buffered())
		}
	})
}

func TestHalfCloseBothWays(t *testing.T) {
	w, h := loop(t), newHandler()
	h.eof = func(c *conn.Conn) {
		c.Write([]byte("after your end"))
		c.CloseAfterFlush(0)
	}
	_, far := pair(t, w, h, conn.Options{})
	far.CloseWrite()
	buf := make([]byte, 100)
	n, _ := far.Read(buf)
	if string(buf[:n]) != "after your end" {
		t.Errorf("got %q after the half-close", buf[:n])
	}
	if r := wait(t, h.closed); r != conn.LocalClose {
		t.Errorf("closed for reason %d", r)
	}
}

func TestResetIsTold(t *testing.T) {
	w, h := loop(t), newHandler()
	_, far := pair(t, w, h, conn.Options{})
	far.SetLinger(0)
	far.Close()
	if r := wait(t, h.closed); r != conn.RemoteReset {
		t.Errorf("a reset ended the connection for reason %d", r)
	}
}

// TestLingeringDeliversTheReply sends a reply to a peer that is still sending: a plain close would reset it away.
func TestLingeringDeliversTheReply(t *testing.T) {
	w, h := loop(t), newHandler()
	c, far := pair(t, w, h, conn.Options{})
	on(w, func() { c.PauseRead() })
	far.Write(make([]byte, 512<<10))
	on(w, func() {
		c.Write([]byte("413"))
		c.CloseAfterFlush(5 * time.Second)
	})
	far.Write(make([]byte, 64<<10))
	buf := make([]byte, 10)
	n, err := far.Read(buf)
	if string(buf[:n]) != "413" {
		t.Fatalf("the peer read %q, %v", buf[:n], err)
	}
	far.CloseWrite()
	if r := wait(t, h.closed); r != conn.LocalClose {
		t.Errorf("closed for reason %d", r)
	}
}

func TestDialFailures(t *testing.T) {
	w := loop(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := poller.NewTCP(l.Addr().(*net.TCPAddr).AddrPort())
	l.Close()
	for name, test := range map[string]struct {
		address *poller.Address
		want    conn.Reason
		errno   unix.Errno
	}{
		"refused":        {refused, conn.ConnectFailure, unix.ECONNREFUSED},
		"no such socket": {poller.NewUnix(t.TempDir() + "/none"), conn.ConnectFailure, unix.ENOENT},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHandler()
			on(w, func() { conn.Dial(w, test.address, 1, h, &conn.Options{}) })
			if r := wait(t, h.closed); r != test.want || h.errno != test.errno {
				t.Errorf("reason %d, errno %v; want %d, %v", r, h.errno, test.want, test.errno)
			}
		})
	}
}

func TestAcceptTakesAnAdoptedDescriptor(t *testing.T) {
	w, h := loop(t), newHandler()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[1])
	got := make(chan string, 1)
	h.data = func(_ *conn.Conn, b []byte) int {
		got <- string(b)
		return len(b)
	}
	unix.Write(fds[1], []byte("already here")) // before the registration: the first edge must still tell
	on(w, func() {
		if _, errno := conn.Accept(w, int32(fds[0]), netip.AddrPort{}, 1, h, &conn.Options{}); errno != 0 {
			t.Error(errno)
		}
	})
	if s := wait(t, got); s != "already here" {
		t.Errorf("got %q", s)
	}
}
