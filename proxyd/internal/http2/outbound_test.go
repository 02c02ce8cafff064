package http2

import (
	"testing"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/http2frame"
)

// TestFloodFromWithin has the frame that is one too many be written in the midst of something: every stream ends once, and nothing is done to
// memory that serves another connection by then.
func TestFloodFromWithin(t *testing.T) {
	newClient := func(t *testing.T) (*bench, []*Stream) {
		b := newBench(t, true, func(c *Config) { c.Flood.OutboundControlFrames, c.Flood.OutboundFrames = 8, 16 })
		b.feed(http2frame.AppendSettings(nil, http2frame.Setting{ID: http2frame.InitialWindowSize, Value: 1 << 20}, http2frame.Setting{ID: http2frame.MaxConcurrentStreams, Value: 1000}))
		b.out = b.out[:0]
		b.stuck, b.reuse = true, true
		var streams []*Stream
		for range 16 {
			st := new(Stream)
			b.session.Open(st)
			b.streams[st.ID()] = st
			streams = append(streams, st)
		}
		return b, streams
	}
	request := func(b *bench, st *Stream, end bool) {
		var r header.Request
		r.SetMethod([]byte("POST"))
		p, at := b.session.BeginSection()
		b.session.EndSection(st, b.session.Encoder.AppendRequest(p, &r), at, end)
	}
	for name, one := range map[string]func(b *bench, st *Stream){
		"reset":    func(b *bench, st *Stream) { b.session.Reset(st, http2frame.Cancel) },
		"head":     func(b *bench, st *Stream) { request(b, st, true) },
		"data":     func(b *bench, st *Stream) { b.session.Send(st, make([]byte, 40_000), true) },
		"end":      func(b *bench, st *Stream) { b.session.Send(st, nil, true) },
		"trailers": func(b *bench, st *Stream) { b.session.SendTrailers(st, &header.Block{}) },
		"data that waited": func(b *bench, st *Stream) {
			b.session.SetBlocked(true)
			b.session.Send(st, make([]byte, 40_000), true)
			b.session.SetBlocked(false)
		},
		"a fault of the peer's": func(b *bench, st *Stream) { b.feed(http2frame.AppendWindowUpdate(nil, st.ID(), 0)) },
		"an answer before the request's end": func(b *bench, st *Stream) {
			p, at := http2frame.BeginHeaders(nil)
			b.feed(http2frame.EndHeaderBlock(append(p, 0x88), at, st.ID(), true, 16384))
		},
	} {
		t.Run(name, func(t *testing.T) {
			b, streams := newClient(t)
			for i, st := range streams {
				if b.session.Failed() {
					break
				}
				one(b, streams[i])
				if b.session.Failed() && st.id != 99 {
					t.Errorf("stream %d has not ended", st.id)
				}
			}
			for range 16 {
				if !b.session.Failed() {
					b.feed(http2frame.AppendPing(nil, false, [8]byte{}))
				}
			}
			if b.failed != errControl && b.failed != errOutbound {
				t.Fatalf("failed for %v", b.failed)
			}
			if b.closed != len(streams) || b.session.Streams() != 0 || b.counters[StreamsActive] != 0 {
				t.Errorf("%d of %d streams have ended, %d are open, %d are counted", b.closed, len(streams), b.session.Streams(), b.counters[StreamsActive])
			}
			for _, st := range streams {
				if st.pending.Len() > 0 || st.localEnded || st.credit != 0 || st.waiting {
					t.Errorf("what became of a stream's memory was touched: %+v", st)
				}
			}
		})
	}
}

// TestOneTurnIsNoFlood has one turn of the loop write more than may wait, to a peer that reads: it has left before it is too much.
func TestOneTurnIsNoFlood(t *testing.T) {
	b := newServer(t)
	b.stuck, b.pushed = true, true
	for range 5000 {
		b.feed(http2frame.AppendPing(nil, false, [8]byte{}))
	}
	if b.failed != nil {
		t.Errorf("failed for %v", b.failed)
	}
}

// TestSlowReaderIsNoFlood has a peer that reads, but never all that there is: only what waits is counted, not what has ever been sent.
func TestSlowReaderIsNoFlood(t *testing.T) {
	b := newServer(t, func(c *Config) { c.Flood.OutboundFrames, c.Flood.OutboundControlFrames = 40, 20 })
	b.stuck = true
	const waiting, frame = 10, http2frame.HeaderLen + 8
	for i := range 1000 {
		b.feed(http2frame.AppendPing(nil, false, [8]byte{}))
		if b.failed != nil {
			t.Fatalf("failed for %v after %d frames, of which %d wait", b.failed, i, waiting)
		}
		if len(b.out) > waiting*frame {
			b.leave(frame)
		}
	}
	for range 20 {
		b.feed(http2frame.AppendPing(nil, false, [8]byte{}))
		if b.failed != nil {
			break
		}
	}
	if b.failed != errControl {
		t.Errorf("it reads no more, and failed for %v", b.failed)
	}
}
