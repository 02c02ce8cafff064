package tlstransport_test

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/worker"
)

const (
	mostHandshakes = 300 // in place of 2,048
	mostSteps      = tlstransport.StepsPerTurn
	eventsOfATurn  = 256 // of a worker's loop
)

// herd is a worker over the simulated network, and clients that come by the thousand.
type herd struct {
	t      *testing.T
	net    *simulated.Network
	worker *worker.Worker
	side   *tlstransport.Side
	config *tls.Config
	cells  *counters.SSL
	ends   map[conn.Reason]int
}

func (h *herd) OnConnected(*conn.Conn) {}
func (h *herd) OnData(c *conn.Conn, b []byte) int {
	c.Write(b)
	return len(b)
}
func (h *herd) OnEOF(c *conn.Conn)                    { c.Close() }
func (h *herd) OnAboveHigh(*conn.Conn)                {}
func (h *herd) OnBelowLow(*conn.Conn)                 {}
func (h *herd) OnClose(_ *conn.Conn, why conn.Reason) { h.ends[why]++ }

func newHerd(t *testing.T) *herd {
	net := simulated.New()
	net.MaxFD = 4 * mostHandshakes
	w, err := worker.New(0, net)
	if err != nil {
		t.Fatal(err)
	}
	return &herd{
		t: t, net: net, worker: w, side: tlstransport.NewSide(w), config: newAuthority(t, "test").setup("shop.test").server(t, "web").Config(),
		cells: new(counters.SSL), ends: map[conn.Reason]int{},
	}
}

const herdTimeout = 15 * time.Second

func (h *herd) accept() *simulated.Peer {
	h.t.Helper()
	fd, p := h.net.Pair()
	c, errno := conn.Accept(h.worker, fd, netip.AddrPort{}, 1, h, &conn.Options{})
	if errno != 0 {
		h.t.Fatal(errno)
	}
	c.Secure(h.side.Server(h.config, h.cells), herdTimeout)
	return p
}

// line is a simulated connection for crypto/tls: a read turns the loop.
type line struct {
	net.Conn
	herd *herd
	peer *simulated.Peer
}

func (l line) Write(b []byte) (int, error) {
	l.peer.Send(b)
	return len(b), nil
}

func (l line) Read(b []byte) (int, error) {
	for range 100 {
		if n := min(l.peer.Waiting(), len(b)); n > 0 {
			return copy(b, l.peer.Receive(n)), nil
		}
		l.herd.worker.Turn(0)
	}
	return 0, io.ErrUnexpectedEOF
}

// hello is a client's first message, as bytes.
func hello(t *testing.T) []byte {
	var w bytes.Buffer
	c := tls.Client(onlyWrites{&w}, &tls.Config{InsecureSkipVerify: true, ServerName: "shop.test", CurvePreferences: []tls.CurveID{tls.X25519}})
	_ = c.Handshake()
	if w.Len() == 0 {
		t.Fatal("no hello")
	}
	return w.Bytes()
}

type onlyWrites struct{ io.Writer }

func (onlyWrites) Read([]byte) (int, error)         { return 0, io.EOF }
func (onlyWrites) Close() error                     { return nil }
func (onlyWrites) LocalAddr() net.Addr              { return nil }
func (onlyWrites) RemoteAddr() net.Addr             { return nil }
func (onlyWrites) SetDeadline(time.Time) error      { return nil }
func (onlyWrites) SetReadDeadline(time.Time) error  { return nil }
func (onlyWrites) SetWriteDeadline(time.Time) error { return nil }

// TestHerd has more clients say hello at once than may shake hands, and say no more: so many of them are answered in a turn, so many
// are under way, the others wait until one of those goes; who is connected is served as soon as the loop has heard of it; and in the end all have run out of time.
func TestHerd(t *testing.T) {
	h := newHerd(t)
	if h.side.Most() != 2048 || mostSteps != 24 {
		t.Errorf("%d handshakes and %d steps a turn: docs/tls.md says 2,048 and 24", h.side.Most(), mostSteps)
	}
	h.side.SetMost(mostHandshakes)
	here := line{herd: h, peer: h.accept()}
	friend := tls.Client(here, &tls.Config{InsecureSkipVerify: true, ServerName: "shop.test", Time: func() time.Time { return time.Now() }})
	if err := friend.Handshake(); err != nil {
		t.Fatal(err)
	}
	before := runtime.NumGoroutine()
	first := hello(t)
	const more = 60
	peers := make([]*simulated.Peer, mostHandshakes+more)
	for i := range peers {
		peers[i] = h.accept()
		peers[i].Send(first)
	}
	answered := func() (n int) {
		for _, p := range peers {
			if p.Waiting() > 0 {
				n++
			}
		}
		return n
	}
	turns, had, waits, longest := 0, 0, 0, 0
	for had < mostHandshakes {
		if waits == 0 {
			if _, err := friend.Write([]byte("hello")); err != nil {
				t.Fatal(err)
			}
		}
		h.worker.Turn(0)
		if waits++; here.peer.Discard() > 0 {
			longest, waits = max(longest, waits), 0
		}
		now := answered()
		if now-had > mostSteps {
			t.Fatalf("turn %d took %d steps and not at most %d", turns, now-had, mostSteps)
		}
		if had, turns = now, turns+1; turns > 10*mostHandshakes/mostSteps {
			t.Fatalf("%d of %d were answered in %d turns", had, mostHandshakes, turns)
		}
	}
	if longest > len(peers)/eventsOfATurn+2 {
		t.Errorf("who is connected waited %d turns for an answer", longest)
	}
	for range 10 {
		h.worker.Turn(0)
	}
	if n := answered(); n != mostHandshakes || h.side.Handshakes() != mostHandshakes {
		t.Errorf("%d are answered and %d under way, not %d", n, h.side.Handshakes(), mostHandshakes)
	}
	for i := range 7 { // some give up: as many of those that wait get their places
		peers[i].Reset()
	}
	for range 10 {
		h.worker.Turn(0)
	}
	if n := answered(); n != mostHandshakes+7 || h.side.Handshakes() != mostHandshakes {
		t.Errorf("after 7 have gone %d are answered and %d under way", n, h.side.Handshakes())
	}
	h.net.Advance(int64(herdTimeout) + int64(time.Second))
	for range 20 {
		h.worker.Turn(0)
	}
	if h.ends[conn.ConnectTimeout] != len(peers)-7 || len(h.ends) != 2 {
		t.Errorf("they have ended for %v", h.ends)
	}
	if n := h.cells[counters.SSLHandshakeTimeout]; n != uint64(len(peers)-7) {
		t.Errorf("%d time-outs are counted", n)
	}
	if n := h.side.Handshakes(); n != 0 {
		t.Errorf("%d are still under way", n)
	}
	if n := runtime.NumGoroutine(); n > before {
		t.Errorf("%d goroutines, %d before", n, before)
	}
	late := line{herd: h, peer: h.accept()}
	if err := tls.Client(late, &tls.Config{InsecureSkipVerify: true, ServerName: "shop.test"}).Handshake(); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
