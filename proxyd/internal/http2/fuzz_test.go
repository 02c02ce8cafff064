package http2

import (
	"bytes"
	"io"
	"testing"

	xhttp2 "golang.org/x/net/http2"

	"retinue.dev/proxyd/internal/http2frame"
)

// FuzzServer feeds a server's session any bytes, in any pieces, and lets the application answer in any way. Whatever comes, what
// the session writes is HTTP/2 to x/net's reader, windows are kept, and nothing is left at the end.
func FuzzServer(f *testing.F) { fuzz(f, false) }

// FuzzClient is FuzzServer for a client's session.
func FuzzClient(f *testing.F) { fuzz(f, true) }

func fuzz(f *testing.F, client bool) {
	quiet := func(*Config) {}
	seed := newBench(f, true, quiet)
	f.Add([]byte{}, []byte{})
	f.Add(bytes.Join([][]byte{seed.head(1, false), data(1, 5, false), data(1, 0, true)}, nil), []byte{1, 2, 3, 4, 5, 6, 7})
	f.Add(bytes.Join([][]byte{seed.head(1, true), http2frame.AppendWindowUpdate(nil, 1, 9), http2frame.AppendRSTStream(nil, 1, 8)}, nil), []byte{200, 9, 77})
	f.Add(bytes.Join([][]byte{
		http2frame.AppendSettings(nil, http2frame.Setting{ID: http2frame.InitialWindowSize, Value: 3}, http2frame.Setting{ID: http2frame.HeaderTableSize}),
		seed.head(3, true), http2frame.AppendPing(nil, false, [8]byte{1}), http2frame.AppendGoAway(nil, 0, 0, ""),
	}, nil), []byte{3, 3, 3, 30, 99})
	f.Fuzz(func(t *testing.T, wire, script []byte) {
		b := newBench(t, client, func(c *Config) { c.HighWatermark, c.StreamWindow, c.ConnectionWindow = 100, 70_000, 80_000 })
		b.settle()
		step := 0
		next := func() byte {
			if len(script) == 0 {
				return 0
			}
			step++
			return script[step%len(script)]
		}
		b.reply = func(b *bench, st *Stream, _ bool) { act(b, st, next()) }
		if client {
			for range 3 {
				st := &Stream{}
				b.session.Open(st)
				b.streams[st.ID()] = st
				p, at := b.session.BeginSection()
				b.session.EndSection(st, append(p, 0x82, 0x86, 0x84), at, next()&1 == 1)
			}
		}
		var held []byte // what the session has left
		for left := wire; len(left) > 0; {
			n := min(len(left), 1+int(next()))
			held, left = append(held, left[:n]...), left[n:]
			took := b.session.Feed(held)
			if took > len(held) {
				t.Fatalf("took %d of %d", took, len(held))
			}
			held = held[took:]
			for id := uint32(1); id < 8; id++ {
				if st := b.streams[id]; st != nil && st.Open() {
					act(b, st, next())
				}
			}
			if b.session.recvWindow < 0 || int64(b.session.recvWindow)+int64(b.session.credit) > 80_000 {
				t.Fatalf("the connection's window is %d, with %d to be credited", b.session.recvWindow, b.session.credit)
			}
		}
		b.session.Abandon("end")
		if b.pool.Used() != 0 || b.session.Streams() != 0 || b.counters[StreamsActive] != 0 {
			t.Fatalf("%d bytes, %d streams are left", b.pool.Used(), b.session.Streams())
		}
		out := b.out
		if client {
			out = bytes.TrimPrefix(out, []byte(http2frame.Preface))
		}
		framer := xhttp2.NewFramer(io.Discard, bytes.NewReader(out))
		for {
			if _, err := framer.ReadFrame(); err == io.EOF {
				return
			} else if err != nil {
				t.Fatalf("x/net cannot read what was written: %v", err)
			}
		}
	})
}

// settle brings the session behind its first settings.
func (b *bench) settle() {
	if !b.session.client {
		b.session.Feed([]byte(http2frame.Preface))
	}
	b.session.Feed(http2frame.AppendSettings(nil))
}

// act does one thing that an application may do with a stream.
func act(b *bench, st *Stream, what byte) {
	switch what % 8 {
	case 1:
		if !st.localEnded {
			b.session.Send(st, make([]byte, int(what)*20), what&64 != 0)
		}
	case 2:
		b.session.Reset(st, http2frame.Cancel)
	case 3:
		b.session.Pause(st, true)
	case 4:
		b.session.Pause(st, false)
	case 5:
		b.session.SetBlocked(what&64 != 0)
	case 6:
		if !b.session.client && !st.answered {
			b.respond(st, what&64 != 0)
		}
	case 7:
		if st.answered {
			b.session.SendTrailers(st, &b.request.Block)
		}
	}
}
