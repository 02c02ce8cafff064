package http2

import (
	"testing"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/hpack"
	"retinue.dev/proxyd/internal/http2frame"
)

func TestExchange(t *testing.T) {
	b := newServer(t)
	b.feed(b.head(1, false), data(1, 5, false), data(1, 0, true))
	b.wantEvents("head(1) data(1,5) data(1,0.)")
	st := b.streams[1]
	b.respond(st, false)
	b.session.Send(st, []byte("hello"), false)
	var trailers header.Block
	trailers.AddString(header.GrpcStatus, "", "0")
	b.session.SendTrailers(st, &trailers)
	b.want("HEADERS(1) DATA(1,5) HEADERS(1.)")
	if st.Open() {
		t.Error("the stream is open after both ends")
	}
}

func TestDataInPieces(t *testing.T) {
	b := newServer(t)
	b.feed(b.head(1, false))
	p := append(http2frame.AppendHeader(nil, http2frame.Header{Length: 10, Type: http2frame.Data, Flags: http2frame.Padded | http2frame.EndStream, StreamID: 1}), 4)
	p = append(p, "hello\x00\x00\x00\x00"...)
	for i := range p {
		n := b.session.Feed(p[:i+1])
		if n != 0 && n != i+1 {
			t.Fatalf("took %d of %d", n, i+1)
		}
		if n > 0 { // the rest comes byte by byte
			for _, c := range p[n:] {
				b.session.Feed([]byte{c})
			}
			break
		}
	}
	b.wantEvents("head(1) data(1,1) data(1,1) data(1,1) data(1,1) data(1,1.)")
}

func TestEarlyResponseStopsTheRequest(t *testing.T) {
	b := newServer(t)
	b.feed(b.head(1, false))
	st := b.streams[1]
	b.respond(st, true)
	b.want("HEADERS(1.) RST_STREAM(1,NO_ERROR)")
	b.feed(data(1, 100, false), b.head(1, true)) // was on its way
	b.want("")
	if b.session.credit != 100 {
		t.Errorf("%d bytes of a stream that is gone are credited to the connection, want 100", b.session.credit)
	}
}

// TestWindows sends a body through the windows of a slow client: stream and connection each hold it back.
func TestWindows(t *testing.T) {
	b := newServer(t, func(c *Config) { c.HighWatermark = 40_000 })
	b.feed(b.head(1, true), b.head(3, true))
	b.events = nil
	one, three := b.streams[1], b.streams[3]
	b.respond(one, false)
	b.take()
	b.session.Send(one, make([]byte, 100_000), true)
	b.want("DATA(1,16384) DATA(1,16384) DATA(1,16384) DATA(1,16383)")
	if b.wantEvents(""); one.Buffered() != 34_465 {
		t.Errorf("%d bytes wait", one.Buffered())
	}
	b.respond(three, false)
	b.session.Send(three, make([]byte, 50_000), true)
	b.wantEvents("above(3)")
	b.want("HEADERS(3)")
	b.feed(http2frame.AppendWindowUpdate(nil, 1, 1_000)) // of use only with the connection's
	b.want("")
	b.feed(http2frame.AppendWindowUpdate(nil, 0, 40_000))
	b.want("DATA(1,1000) DATA(3,16384) DATA(3,16384) DATA(3,6232)")
	b.wantEvents("below(3)")
	b.feed(http2frame.AppendWindowUpdate(nil, 0, 1_000_000))
	b.want("DATA(3,10152) DATA(3,848.)") // as the bytes lie in blocks
	// A change of the initial window moves the windows of open streams.
	b.feed(http2frame.AppendSettings(nil, http2frame.Setting{ID: http2frame.InitialWindowSize, Value: 200_000}))
	b.want("SETTINGS+ACK DATA(1,15384) DATA(1,16384) DATA(1,1697.)")
}

func TestBlockedConnection(t *testing.T) {
	b := newServer(t)
	b.feed(b.head(1, true))
	st := b.streams[1]
	b.session.SetBlocked(true)
	b.respond(st, false)
	b.session.Send(st, make([]byte, 10), true)
	b.want("HEADERS(1)")
	b.session.SetBlocked(false)
	b.want("DATA(1,10.)")
}

func TestTrailersWaitBehindData(t *testing.T) {
	b := newServer(t)
	b.feed(http2frame.AppendSettings(nil, http2frame.Setting{ID: http2frame.InitialWindowSize, Value: 4}), b.head(1, true))
	st := b.streams[1]
	b.respond(st, false)
	b.session.Send(st, []byte("hello"), false)
	var trailers header.Block
	trailers.AddString(header.Other, "x-end", "1")
	b.session.SendTrailers(st, &trailers)
	trailers.Reset() // the session has its own
	b.want("SETTINGS+ACK HEADERS(1) DATA(1,4)")
	b.feed(http2frame.AppendWindowUpdate(nil, 1, 10))
	b.want("DATA(1,1) HEADERS(1.)")
}

// TestPausedStream holds that a stream that nobody reads gets no more than its window, and neither does its connection.
func TestPausedStream(t *testing.T) {
	b := newServer(t, func(c *Config) { c.StreamWindow, c.ConnectionWindow = 70_000, 140_000 })
	b.feed(http2frame.AppendSettingsAck(nil), b.head(1, false))
	st := b.streams[1]
	b.session.Pause(st, true)
	for range 7 {
		b.feed(data(1, 10_000, false))
	}
	b.want("")
	b.session.Pause(st, false)
	b.want("WINDOW_UPDATE(0,70000) WINDOW_UPDATE(1,70000)")
	b.session.Pause(st, true)
	for range 7 {
		b.feed(data(1, 10_000, false))
	}
	b.session.Reset(st, http2frame.Cancel)
	b.want("RST_STREAM(1,CANCEL) WINDOW_UPDATE(0,70000)")
}

func TestGoAwayInTwoSteps(t *testing.T) {
	b := newServer(t)
	b.feed(b.head(1, false))
	b.session.Announce()
	b.feed(b.head(3, false)) // on its way
	b.session.Finish(http2frame.NoError)
	b.want("GOAWAY(2147483647,NO_ERROR,) GOAWAY(3,NO_ERROR,)")
	b.feed(b.head(5, true))
	b.wantEvents("head(1) head(3)")
	b.feed(data(1, 1, true))
	b.wantEvents("data(1,1.)")
}

func TestClientGoAway(t *testing.T) {
	b := newBench(t, true)
	b.out = b.out[:0] // preface and settings
	b.feed(http2frame.AppendSettings(nil, http2frame.Setting{ID: http2frame.MaxConcurrentStreams, Value: 3}))
	var open [3]Stream
	for i := range open {
		b.session.Open(&open[i])
	}
	if b.session.Capacity() != 0 {
		t.Errorf("there is room for %d streams more than the server allows", b.session.Capacity())
	}
	b.feed(http2frame.AppendGoAway(nil, 3, http2frame.NoError, ""))
	b.wantEvents("reset(5,REFUSED_STREAM,http2.remote_goaway) goaway(NO_ERROR)")
	if !open[0].Open() || !open[1].Open() || open[2].Open() || b.session.Capacity() != 0 {
		t.Error("GOAWAY ended the wrong streams, or leaves room for others")
	}
	b.session.Abandon("end")
}

func TestStreamsAllocateNothing(t *testing.T) {
	b := newServer(t)
	var st Stream
	b.session.handler = &reusing{bench: b, st: &st, body: make([]byte, 1024)}
	b.response.Status = 200
	b.feed(b.head(1, true))
	head := b.head(1, true) // by the dynamic table: the same bytes each time
	id := uint32(3)
	if n := testing.AllocsPerRun(1000, func() {
		head[5], head[6], head[7], head[8] = byte(id>>24), byte(id>>16), byte(id>>8), byte(id)
		if b.session.Feed(head) != len(head) {
			t.Fatal("a head is left")
		}
		b.out = b.out[:0]
		b.session.sendWindow = 1 << 20 // the client takes what it gets
		id += 2
	}); n != 0 {
		t.Errorf("%v allocations a stream", n)
	}
	if b.session.Failed() {
		t.Errorf("failed: %v", b.failed)
	}
}

// reusing answers from one stream's memory and tells nothing.
type reusing struct {
	*bench
	st   *Stream
	body []byte
}

func (r *reusing) OnBegin() *Stream { return r.st }
func (r *reusing) OnClosed(*Stream) {}
func (r *reusing) OnHeaders(st *Stream, block []byte, end bool) *hpack.Error {
	if _, err := r.session.Decoder.Request(block, &r.request, &r.config.Headers); err != nil {
		return err
	}
	p, at := r.session.BeginSection()
	r.session.EndSection(st, r.session.Encoder.AppendResponse(p, &r.response), at, false)
	r.session.Send(st, r.body, true)
	return nil
}
