package conn_test

import (
	"bytes"
	"testing"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/poller/simulated"
)

// sink counts what a splice has moved.
type sink struct {
	moved int
	done  int
}

func (s *sink) OnSpliced(_ *conn.Conn, n int, done bool) {
	s.moved += n
	if done {
		s.done++
	}
}

// spliced plays one transfer of a pattern with its end, over a sink that takes little at a time, and holds that every byte
// arrives in order and is told.
func spliced(t *testing.T, prepare func(s *stage, from, to *simulated.Peer)) (s *stage, moved *sink) {
	t.Helper()
	s = newStage(t)
	a, b := &actor{}, &actor{}
	from, near := s.accept(a, &conn.Options{})
	to, far := s.accept(b, &conn.Options{})
	prepare(s, near, far)
	moved = &sink{}
	from.SpliceTo(to, -1, moved)
	var sent, got []byte
	for i := range 40 {
		piece := bytes.Repeat([]byte{byte(i)}, 50_000)
		sent = append(sent, piece...)
		near.Send(piece)
		s.turn()
		got = append(got, far.ReceiveAll()...)
	}
	a.eof = func(*conn.Conn) { to.CloseWrite() }
	near.CloseWrite()
	for range 2000 {
		s.w.Turn(0)
		got = append(got, far.ReceiveAll()...)
	}
	if !bytes.Equal(got, sent) {
		t.Fatalf("%d bytes arrived of %d, or not in order", len(got), len(sent))
	}
	if moved.moved != len(sent) || moved.done != 1 {
		t.Errorf("told of %d bytes of %d and %d ends", moved.moved, len(sent), moved.done)
	}
	s.told(a, "eof")
	if !far.SawFIN() {
		t.Error("the end did not pass")
	}
	if len(a.got) != 0 {
		t.Errorf("%d bytes came up to the handler", len(a.got))
	}
	return s, moved
}

func TestSplice(t *testing.T) {
	s, _ := spliced(t, func(*stage, *simulated.Peer, *simulated.Peer) {})
	if s.net.Calls["splice"] == 0 || s.net.Calls["write"] != 0 {
		t.Errorf("calls %v: bytes were copied", s.net.Calls)
	}
}

func TestSpliceToASlowReader(t *testing.T) {
	s, _ := spliced(t, func(_ *stage, _, far *simulated.Peer) { far.SetRoom(9000); far.WriteMost = 4000 })
	if s.net.Calls["splice"] == 0 {
		t.Error("nothing was spliced")
	}
}

func TestSpliceOfPieces(t *testing.T) {
	spliced(t, func(_ *stage, near, _ *simulated.Peer) { near.ReadMost = 20_000 })
}

// Where a pipe cannot be had, or only a small one, the bytes are copied and the caller sees no difference.
func TestSpliceFallsBackToCopies(t *testing.T) {
	for name, prepare := range map[string]func(s *stage, near, far *simulated.Peer){
		"no descriptors": func(s *stage, _, _ *simulated.Peer) { s.net.MaxFD = 2 },
		"one descriptor": func(s *stage, _, _ *simulated.Peer) { s.net.MaxFD = 3 },
		"small pipes":    func(s *stage, _, _ *simulated.Peer) { s.net.PipeSize = 4096 },
		"a slow reader":  func(s *stage, _, far *simulated.Peer) { s.net.MaxFD = 2; far.SetRoom(9000) },
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := spliced(t, prepare)
			if s.net.Calls["splice"] != 0 {
				t.Errorf("calls %v: spliced through what?", s.net.Calls)
			}
			if s.net.Open() != 2 {
				t.Errorf("%d descriptors are open, want the two sockets", s.net.Open())
			}
		})
	}
}

// A splice of a known length ends after its last byte; what follows is the handler's.
func TestSpliceOfALength(t *testing.T) {
	s := newStage(t)
	a, b := &actor{}, &actor{}
	from, near := s.accept(a, &conn.Options{})
	to, far := s.accept(b, &conn.Options{})
	moved := &sink{}
	to.Write([]byte("head "))
	from.SpliceTo(to, 100_000, moved)
	near.Send(append(bytes.Repeat([]byte("x"), 100_000), "next"...))
	s.turn()
	got := far.ReceiveAll()
	if len(got) != 100_005 || string(got[:6]) != "head x" {
		t.Errorf("%d bytes arrived, beginning with %.10q", len(got), got)
	}
	if moved.moved != 100_000 || moved.done != 1 || from.Splicing() {
		t.Errorf("told of %d bytes and %d ends", moved.moved, moved.done)
	}
	if string(a.got) != "next" {
		t.Errorf("the handler got %.20q", a.got)
	}
}

// Whoever goes first while the pipe holds bytes: nothing leaks, nobody is called twice.
func TestSpliceEndsUnderWay(t *testing.T) {
	for name, end := range map[string]func(from, to *conn.Conn, near, far *simulated.Peer){
		"the reader resets":   func(_, _ *conn.Conn, _, far *simulated.Peer) { far.Reset() },
		"the writer resets":   func(_, _ *conn.Conn, near, _ *simulated.Peer) { near.Reset() },
		"we close the source": func(from, _ *conn.Conn, _, _ *simulated.Peer) { from.Close() },
		"we close the sink":   func(_, to *conn.Conn, _, _ *simulated.Peer) { to.Close() },
		"both":                func(from, to *conn.Conn, _, _ *simulated.Peer) { to.Close(); from.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			a, b := &actor{}, &actor{}
			from, near := s.accept(a, &conn.Options{})
			to, far := s.accept(b, &conn.Options{})
			far.SetRoom(1000)
			from.SpliceTo(to, -1, &sink{})
			near.Send(make([]byte, 100_000))
			s.turn()
			if far.Waiting() != 1000 {
				t.Fatalf("%d bytes have passed", far.Waiting())
			}
			end(from, to, near, far)
			s.turn()
			for _, one := range []struct {
				c *conn.Conn
				a *actor
			}{{from, a}, {to, b}} {
				if n := len(one.a.told); n > 1 {
					t.Errorf("told %v", one.a.told)
				} else if n == 0 {
					one.c.Close()
				}
			}
			s.turn()
			s.pass(6e9) // spare pipes go with the trimming
			if s.net.Open() != 0 {
				t.Errorf("%d descriptors are left open", s.net.Open())
			}
			if s.w.Pool.Used() != 0 {
				t.Errorf("%d bytes of buffers are held by nobody", s.w.Pool.Used())
			}
		})
	}
}
