package listener

import (
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/overload"
	"retinue.dev/proxyd/internal/poller/epoll"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/worker"
)

// taker is a network filter that keeps what it is given.
type taker struct {
	l    *Listener
	open []*conn.Conn
}

func (f *taker) Accept(c *conn.Conn, l *Listener) {
	f.l, f.open = l, append(f.open, c)
	c.SetHandler(f)
}

func (*taker) OnConnected(*conn.Conn)            {}
func (*taker) OnData(_ *conn.Conn, b []byte) int { return len(b) }
func (*taker) OnEOF(c *conn.Conn)                { c.Close() }
func (*taker) OnAboveHigh(*conn.Conn)            {}
func (*taker) OnBelowLow(*conn.Conn)             {}
func (f *taker) OnClose(c *conn.Conn, _ conn.Reason) {
	f.l.Gone()
	for i := range f.open {
		if f.open[i] == c {
			f.open = append(f.open[:i], f.open[i+1:]...)
			return
		}
	}
}

type fixture struct {
	t       *testing.T
	net     *simulated.Network
	w       *worker.Worker
	l       *Listener
	f       *taker
	backlog *simulated.Backlog
	clients []*simulated.Peer
}

func listen(t *testing.T, shared bool) *fixture {
	t.Helper()
	net := simulated.New()
	w, err := worker.New(0, net)
	if err != nil {
		t.Fatal(err)
	}
	fd, backlog := net.Listen()
	cells := make([]uint64, 9)
	x := &fixture{t: t, net: net, w: w, f: &taker{}, backlog: backlog}
	id := uint64(0)
	x.l = &Listener{
		Name: "web", worker: w, reserve: NewReserve(net, &Lacking{}), Chains: (&Chains{List: []Chain{{Filter: x.f}}}).Prepare(),
		Counters: Counters{&cells[0], &cells[1], &cells[2], &cells[3], &cells[4], &cells[6], &cells[7], &cells[8], new(uint64), &cells[5]},
		NextID:   func() uint64 { id++; return id },
	}
	s := &socket{listener: x.l, fd: fd, shared: shared}
	s.again.Runner, s.rest.Callback = s, s
	x.l.sockets = []*socket{s}
	if err := x.l.Start(All); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *fixture) connect(n int) {
	for range n {
		x.clients = append(x.clients, x.backlog.Connect(netip.MustParseAddrPort("192.0.2.1:999")))
	}
	x.turn()
}

func (x *fixture) turn() {
	for range 5 {
		x.w.Turn(0)
	}
}

func (x *fixture) pass(d time.Duration) {
	x.net.Advance(int64(d))
	x.turn()
}

// state holds what the counters say and how many connections wait in the kernel.
func (x *fixture) state(total, active, shed uint64, queued int) {
	x.t.Helper()
	c := x.l.Counters
	if *c.Total != total || *c.Active != active || *c.Worker != active || *c.Shed != shed || x.backlog.Queued() != queued {
		x.t.Fatalf("total %d active %d/%d shed %d queued %d; want %d %d %d %d",
			*c.Total, *c.Active, *c.Worker, *c.Shed, x.backlog.Queued(), total, active, shed, queued)
	}
}

func both(t *testing.T, test func(t *testing.T, x *fixture)) {
	t.Run("a socket of the worker", func(t *testing.T) { test(t, listen(t, false)) })
	t.Run("a shared socket", func(t *testing.T) { test(t, listen(t, true)) })
}

func TestBurst(t *testing.T) {
	both(t, func(_ *testing.T, x *fixture) {
		x.connect(3*acceptBatch + 1) // one edge for all
		x.state(3*acceptBatch+1, 3*acceptBatch+1, 0, 0)
	})
}

// Out of descriptors: clients are refused at once and counted, and the listener is as before when there are some again.
func TestDescriptorsRunOut(t *testing.T) {
	both(t, func(t *testing.T, x *fixture) {
		x.net.MaxFD = x.net.Open() + 3
		x.connect(10)
		x.state(3, 3, 7, 0)
		for i, c := range x.clients[3:] {
			if !c.Gone() {
				t.Errorf("client %d is left hanging", i+3)
			}
		}
		x.clients[0].CloseWrite()
		x.turn()
		x.connect(1)
		x.state(4, 3, 7, 0)
	})
}

// Not even the spare descriptor helps, as when the whole system has none: the socket rests, asks a few times a second, and loses
// no connection.
func TestNothingCanBeAccepted(t *testing.T) {
	for _, errno := range []unix.Errno{unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, unix.EMFILE, unix.EINVAL} {
		both(t, func(t *testing.T, x *fixture) {
			failing := make([]unix.Errno, 40)
			for i := range failing {
				failing[i] = errno
			}
			x.backlog.FailNext(failing...)
			x.connect(5)
			x.state(0, 0, 0, 5)
			before := x.net.Calls["accept"]
			for range 100 { // turns without time
				x.turn()
			}
			if n := x.net.Calls["accept"] - before; n != 0 {
				t.Fatalf("%v: %d accepts in a busy loop", errno, n)
			}
			for range 150 {
				x.pass(20 * time.Millisecond)
			}
			x.state(5, 5, 0, 0)
		})
	}
}

// The spare descriptor was lost to somebody else: the first that is free becomes the spare one, not a connection, and until then the
// socket rests.
func TestReserveIsLost(t *testing.T) {
	both(t, func(_ *testing.T, x *fixture) {
		x.l.reserve.release()
		x.net.MaxFD = x.net.Open()
		x.connect(2)
		x.state(0, 0, 0, 2)
		x.net.MaxFD++
		x.pass(60 * time.Millisecond)
		x.state(0, 0, 2, 0)
		x.net.MaxFD += 5
		x.connect(2)
		x.state(2, 2, 2, 0)
	})
}

// Another worker has lost its spare descriptor: nobody keeps a connection until it has one again.
func TestAnotherLacksItsReserve(t *testing.T) {
	both(t, func(_ *testing.T, x *fixture) {
		other := NewReserve(x.net, x.l.reserve.lacking)
		x.connect(1)
		x.state(1, 1, 0, 0)
		other.release()
		x.connect(2)
		x.state(1, 1, 2, 0)
		if !other.restore() {
			t.Fatal("it cannot have it back")
		}
		x.connect(1)
		x.state(2, 2, 2, 0)
	})
}

func TestStopWhileResting(t *testing.T) {
	both(t, func(t *testing.T, x *fixture) {
		x.backlog.FailNext(unix.ENFILE, unix.ENFILE)
		x.connect(2)
		x.l.Stop()
		x.pass(time.Second)
		x.state(0, 0, 0, 2)
		if err := x.l.Start(All); err != nil {
			t.Fatal(err)
		}
		x.turn()
		x.state(2, 2, 0, 0)
		x.l.Close()
		x.connect(0)
	})
}

func TestLimits(t *testing.T) {
	both(t, func(t *testing.T, x *fixture) {
		x.l.Own = Limit{Max: 2, Cells: []*uint64{x.l.Counters.Active}}
		x.connect(3)
		x.state(2, 2, 0, 0)
		if *x.l.Counters.Overflow != 1 || !x.clients[2].Gone() {
			t.Error("the third of two was not refused")
		}
		others := uint64(7) // of another worker
		x.l.Own = Limit{}
		x.l.Global = &Limit{Max: 10, Cells: []*uint64{x.l.Counters.Worker, &others}}
		x.connect(2)
		x.state(3, 3, 0, 0)
		if *x.l.Counters.GlobalOverflow != 1 {
			t.Error("the limit of all listeners does not hold")
		}
		x.l.Global = nil
		x.l.Overload = &overload.Levels{overload.RejectConnections: overload.Full}
		x.connect(1)
		x.state(3, 3, 0, 0)
		if *x.l.Counters.OverloadReject != 1 {
			t.Error("a connection was not refused in an overload")
		}
		*x.l.Overload = overload.Levels{}
		x.connect(1)
		x.state(4, 4, 0, 0)
	})
}

func TestTight(t *testing.T) {
	cell, other := uint64(0), uint64(10)
	for _, test := range []struct {
		most, own   uint64
		tight, full bool
	}{
		{0, 1 << 40, false, false}, // no limit
		{100, 84, false, false},
		{100, 85, true, false},
		{100, 89, true, false},
		{100, 90, true, true},
		{11, 0, false, false}, // too few for a twentieth: tight is full
		{11, 1, true, true},
	} {
		cell = test.own
		l := Limit{Max: test.most, Cells: []*uint64{&cell, &other}}
		if l.Tight() != test.tight || l.Full() != test.full {
			t.Errorf("%d and 10 of %d: tight %v, full %v", test.own, test.most, l.Tight(), l.Full())
		}
	}
}

// TestPart: beside another generation a listener accepts from one half, and leaves what waits in the other where it is.
func TestPart(t *testing.T) {
	x := listen(t, false)
	fd, backlog := x.net.Listen()
	other := &socket{listener: x.l, fd: fd, second: true}
	other.again.Runner, other.rest.Callback = other, other
	x.l.sockets = append(x.l.sockets, other)
	total := uint64(0)
	for _, step := range []struct {
		part                    Part
		firstWaits, secondWaits int
	}{{FirstHalf, 0, 1}, {SecondHalf, 1, 0}, {All, 0, 0}, {FirstHalf, 0, 1}, {All, 0, 0}} {
		if err := x.l.Start(step.part); err != nil {
			t.Fatal(err)
		}
		x.backlog.Connect(netip.MustParseAddrPort("192.0.2.1:999"))
		backlog.Connect(netip.MustParseAddrPort("192.0.2.1:999"))
		x.turn()
		if x.backlog.Queued() != step.firstWaits || backlog.Queued() != step.secondWaits {
			t.Errorf("part %d: %d and %d wait, want %d and %d", step.part, x.backlog.Queued(), backlog.Queued(), step.firstWaits, step.secondWaits)
		}
		if *x.l.Counters.Total <= total {
			t.Errorf("part %d: nothing was accepted", step.part)
		}
		total = *x.l.Counters.Total
	}
}

// TestRenew: restartd hands over copies of what is there and of what is new.
func TestRenew(t *testing.T) {
	poller, err := epoll.New()
	if err != nil {
		t.Fatal(err)
	}
	w, err := worker.New(0, poller)
	if err != nil {
		t.Fatal(err)
	}
	open := func() int32 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Listen(fd, 1); err != nil {
			t.Fatal(err)
		}
		return int32(fd)
	}
	copied := func(fd int32) int32 {
		c, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		return int32(c)
	}
	first, second := open(), open()
	l, err := New(w, "web", []Socket{{FD: first}}, NewReserve(poller, &Lacking{}))
	if err != nil {
		t.Fatal(err)
	}
	again := copied(first)
	if err := l.Renew([]Socket{{FD: again}, {FD: second, SecondHalf: true}}); err != nil {
		t.Fatal(err)
	}
	if got := l.Sockets(); len(got) != 2 || got[0] != (Socket{FD: first}) || got[1] != (Socket{FD: second, SecondHalf: true}) {
		t.Errorf("sockets %+v, want the first with its descriptor and the new one", got)
	}
	if err := l.Renew([]Socket{{FD: copied(first), SecondHalf: true}, {FD: copied(second)}}); err != nil {
		t.Fatal(err)
	}
	if got := l.Sockets(); len(got) != 2 || !got[0].SecondHalf || got[1].SecondHalf {
		t.Errorf("sockets %+v, want the halves exchanged", got)
	}
	defer l.Close()
	blocking := open()
	if err := unix.SetNonblock(int(blocking), false); err != nil {
		t.Fatal(err)
	}
	if err := l.Renew([]Socket{{FD: blocking}}); err == nil || len(l.Sockets()) != 2 {
		t.Errorf("a blocking socket: %v, and there are %d", err, len(l.Sockets()))
	}
}
