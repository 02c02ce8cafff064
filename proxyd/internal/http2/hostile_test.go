package http2

import (
	"testing"

	"retinue.dev/proxyd/internal/http2frame"
)

// TestHostilePeers does to a server what costs its sender nothing, and holds what it is answered and that it is counted.
func TestHostilePeers(t *testing.T) {
	ping := http2frame.AppendPing(nil, false, [8]byte{})
	settings := http2frame.AppendSettings(nil)
	priority := append(http2frame.AppendHeader(nil, http2frame.Header{Length: 5, Type: http2frame.Priority, StreamID: 9}), 0, 0, 0, 3, 1)
	stuck := func(b *bench) { b.stuck = true }
	for _, test := range []struct {
		name    string
		before  func(b *bench)
		frames  func(b *bench, i int) []byte // nil: enough
		most    int                          // frames within which the answer must come
		least   int                          // and before which it must not
		want    *http2frame.Error
		counter int
	}{
		{"PING without reading", stuck, func(*bench, int) []byte { return ping }, 1001, 1000, errControl, OutboundControlFlood},
		{"SETTINGS without reading", stuck, func(*bench, int) []byte { return settings }, 1001, 1000, errControl, OutboundControlFlood},
		{"RST_STREAM made by refused streams", func(b *bench) {
			b.stuck, b.config.MaxConcurrentStreams = true, 0
		}, func(b *bench, i int) []byte { return b.head(uint32(2*i+1), true) }, 1001, 1000, errControl, OutboundControlFlood},
		{"answers without reading", func(b *bench) {
			b.stuck, b.config.Flood.OutboundControlFrames = true, 1<<30
			b.reply = func(b *bench, st *Stream, _ bool) { b.respond(st, true) }
		}, func(b *bench, i int) []byte { return b.head(uint32(2*i+1), true) }, 10_001, 9_999, errOutbound, OutboundFlood},
		{"empty DATA", func(b *bench) { b.feed(b.head(1, false)) }, func(*bench, int) []byte { return data(1, 0, false) }, 2, 1, errEmpty, InboundEmptyFramesFlood},
		{"padding without data", func(b *bench) { b.feed(b.head(1, false)) }, func(*bench, int) []byte {
			return append(http2frame.AppendHeader(nil, http2frame.Header{Length: 11, Type: http2frame.Data, Flags: http2frame.Padded, StreamID: 1}), 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
		}, 2, 1, errEmpty, InboundEmptyFramesFlood},
		{"empty CONTINUATION", func(b *bench) {
			b.feed(http2frame.AppendHeader(nil, http2frame.Header{Type: http2frame.Headers, StreamID: 1}))
		}, func(*bench, int) []byte {
			return http2frame.AppendHeader(nil, http2frame.Header{Type: http2frame.Continuation, StreamID: 1})
		}, 1, 0, errEmpty, InboundEmptyFramesFlood},
		{"CONTINUATION by number", func(b *bench) {
			b.feed(append(http2frame.AppendHeader(nil, http2frame.Header{Length: 1, Type: http2frame.Headers, StreamID: 1}), 0x80))
		}, func(*bench, int) []byte {
			return append(http2frame.AppendHeader(nil, http2frame.Header{Length: 1, Type: http2frame.Continuation, StreamID: 1}), 0)
		}, 513, 512, errContinuations, InboundContinuationFlood},
		{"CONTINUATION by bytes", func(b *bench) {
			b.feed(append(http2frame.AppendHeader(nil, http2frame.Header{Length: 1, Type: http2frame.Headers, StreamID: 1}), 0x80))
		}, func(*bench, int) []byte {
			return append(http2frame.AppendHeader(nil, http2frame.Header{Length: 16384, Type: http2frame.Continuation, StreamID: 1}), make([]byte, 16384)...)
		}, 5, 4, errContinuations, InboundContinuationFlood},
		{"PRIORITY", nil, func(*bench, int) []byte { return priority }, 101, 100, errPriority, InboundPriorityFramesFlood},
		{"PRIORITY with a stream", func(b *bench) { b.feed(b.head(1, false)) }, func(*bench, int) []byte { return priority }, 201, 200, errPriority, InboundPriorityFramesFlood},
		{"WINDOW_UPDATE", nil, func(*bench, int) []byte { return http2frame.AppendWindowUpdate(nil, 0, 1) }, 6, 5, errUpdates, InboundWindowUpdateFramesFlood},
		{"rapid reset", nil, func(b *bench, i int) []byte {
			return http2frame.AppendRSTStream(b.head(uint32(2*i+1), false), uint32(2*i+1), http2frame.Cancel)
		}, 250, 249, errResets, PrematureResets},
		{"resets that it has us make", nil, func(b *bench, i int) []byte {
			return http2frame.AppendWindowUpdate(b.head(uint32(2*i+1), false), uint32(2*i+1), 0)
		}, 250, 249, errResets, PrematureResets},
		{"rapid reset among good ones", func(b *bench) {
			b.reply = func(b *bench, st *Stream, end bool) {
				if end {
					b.respond(st, true)
				}
			}
		}, func(b *bench, i int) []byte { // three of five
			id := uint32(2*i + 1)
			if i%5 < 2 {
				return b.head(id, true)
			}
			return http2frame.AppendRSTStream(b.head(id, false), id, http2frame.Cancel)
		}, 420, 410, errResets, PrematureResets},
		{"the connection's window overflows", nil, func(*bench, int) []byte {
			return http2frame.AppendWindowUpdate(nil, 0, http2frame.MaxWindow)
		}, 1, 0, errWindow, FlowControlError},
		{"the connection's window is overrun", func(b *bench) {
			b.feed(b.head(1, false))
			b.session.Pause(b.streams[1], true)
			b.session.streams.find(1).recvWindow = http2frame.MaxWindow
		}, func(*bench, int) []byte { return data(1, 16384, false) }, 257, 256, errOverrun, FlowControlError},
		{"a stream of our numbers", nil, func(b *bench, _ int) []byte { return b.head(2, true) }, 1, 0, errStreamID, GoAwaySent},
		{"a stream number that goes back", func(b *bench) {
			b.reply = func(b *bench, st *Stream, _ bool) { b.respond(st, true) }
			b.feed(b.head(5, true))
		}, func(b *bench, _ int) []byte { return b.head(3, true) }, 1, 0, errClosed, GoAwaySent},
		{"data for a stream that never was", nil, func(*bench, int) []byte { return data(7, 1, true) }, 1, 0, errIdle, GoAwaySent},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newServer(t)
			if test.before != nil {
				test.before(b)
			}
			sent := 0
			for sent < test.most && !b.session.Failed() {
				if n := b.session.Feed(test.frames(b, sent)); n == 0 {
					t.Fatal("the session took nothing")
				}
				sent++
			}
			if b.failed != test.want {
				t.Fatalf("after %d: %v, want %v", sent, b.failed, test.want)
			}
			if sent <= test.least {
				t.Errorf("already after %d, want more than %d", sent, test.least)
			}
			if b.counters[test.counter] == 0 {
				t.Errorf("%s is not counted", CounterTexts[test.counter][0])
			}
			if b.session.Feed(ping) != len(ping) || b.session.Streams() != 0 {
				t.Error("a connection at fault is still read")
			}
		})
	}
}

// TestHostileStreams holds faults to the stream where only that is at fault.
func TestHostileStreams(t *testing.T) {
	for _, test := range []struct {
		name   string
		frames func(b *bench) [][]byte
		want   string
	}{
		{"too many at a time", func(b *bench) [][]byte {
			b.config.MaxConcurrentStreams = 1
			return [][]byte{b.head(1, false), b.head(3, true)}
		}, "RST_STREAM(3,REFUSED_STREAM)"},
		{"window overflow", func(b *bench) [][]byte {
			return [][]byte{b.head(1, false), http2frame.AppendWindowUpdate(nil, 1, http2frame.MaxWindow)}
		}, "RST_STREAM(1,FLOW_CONTROL_ERROR)"},
		{"window overrun", func(b *bench) [][]byte {
			b.config.StreamWindow = 65_535
			b.session.recvInitial = 65_535
			frames := [][]byte{b.head(1, false)}
			b.reply = func(b *bench, st *Stream, _ bool) { b.session.Pause(st, true) }
			for range 5 {
				frames = append(frames, data(1, 16_384, false))
			}
			return frames
		}, "RST_STREAM(1,FLOW_CONTROL_ERROR)"},
		{"no increment", func(b *bench) [][]byte {
			return [][]byte{b.head(1, false), http2frame.AppendWindowUpdate(nil, 1, 0)}
		}, "RST_STREAM(1,PROTOCOL_ERROR)"},
		{"more than Content-Length", func(b *bench) [][]byte {
			return [][]byte{b.head(1, false, "content-length", "4"), data(1, 5, false)}
		}, "RST_STREAM(1,PROTOCOL_ERROR)"},
		{"less than Content-Length", func(b *bench) [][]byte {
			return [][]byte{b.head(1, false, "content-length", "4"), data(1, 3, true)}
		}, "RST_STREAM(1,PROTOCOL_ERROR)"},
		{"nothing of Content-Length", func(b *bench) [][]byte { return [][]byte{b.head(1, true, "content-length", "4")} }, "RST_STREAM(1,PROTOCOL_ERROR)"},
		{"trailers before the end of Content-Length", func(b *bench) [][]byte {
			return [][]byte{b.head(1, false, "content-length", "4"), b.trailers(1, true)}
		}, "RST_STREAM(1,PROTOCOL_ERROR)"},
		{"trailers that do not end", func(b *bench) [][]byte { return [][]byte{b.head(1, false), b.trailers(1, false)} }, "RST_STREAM(1,PROTOCOL_ERROR)"},
		{"a second head as trailers", func(b *bench) [][]byte { return [][]byte{b.head(1, false), b.head(1, true)} }, "RST_STREAM(1,PROTOCOL_ERROR)"},
		{"data after the end", func(b *bench) [][]byte { return [][]byte{b.head(1, true), data(1, 1, true)} }, "RST_STREAM(1,STREAM_CLOSED)"},
		{"a head after the end", func(b *bench) [][]byte { return [][]byte{b.head(1, true), b.head(1, true)} }, "RST_STREAM(1,STREAM_CLOSED)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := newServer(t)
			b.feed(test.frames(b)...)
			b.want(test.want)
			b.reply = nil
			b.config.MaxConcurrentStreams = 100
			b.events = nil
			b.feed(b.head(9, true)) // the connection and its compression go on
			b.wantEvents("head(9.)")
		})
	}
}

func (b *bench) trailers(id uint32, end bool) []byte {
	p, at := http2frame.BeginHeaders(nil)
	p = append(p, 0, 1, 'x', 1, '1')
	return http2frame.EndHeaderBlock(p, at, id, end, http2frame.DefaultMaxFrameSize)
}
