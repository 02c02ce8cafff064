package http2

import (
	"fmt"
	"strings"
	"testing"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/hpack"
	"retinue.dev/proxyd/internal/http2frame"
)

// bench is one session with a test at its other end, which writes frames and reads what comes as a line of text.
type bench struct {
	t        testing.TB
	pool     buffer.Pool
	session  Session
	counters Counters
	config   Config
	out      []byte
	written  uint64
	pushed   bool // Push sends everything
	reuse    bool // memory of streams that have ended is used again at once
	stuck    bool // the connection sends nothing: what is staged stays
	events   []string
	streams  map[uint32]*Stream
	encoder  hpack.Encoder
	reply    func(b *bench, st *Stream, end bool) // to a request's head
	request  header.Request
	response header.Response
	failed   *http2frame.Error
	closed   int // streams
}

func (b *bench) Stage(p []byte) { b.out = append(b.out, p...) }

func (b *bench) Buffered() int {
	if b.stuck {
		return len(b.out)
	}
	return 0
}

func (b *bench) BytesWritten() uint64 { return b.written }
func (b *bench) Push() {
	if b.pushed {
		b.leave(len(b.out))
	}
}

// leave is bytes that a stuck connection sends after all.
func (b *bench) leave(n int) {
	b.written += uint64(n)
	b.out = append(b.out[:0], b.out[n:]...)
}

func (b *bench) OnBegin() *Stream { return &Stream{} }

func (b *bench) OnHeaders(st *Stream, block []byte, end bool) *hpack.Error {
	b.streams[st.ID()] = st
	var err *hpack.Error
	switch {
	case st.HeadSeen():
		err = b.session.Decoder.Trailers(block, &b.request.Block, &b.config.Headers)
	case b.session.client:
		var length int64
		if length, err = b.session.Decoder.Response(block, &b.response, &b.config.Headers); err == nil && b.response.Status >= 200 {
			b.session.SetHeadSeen(st, length, false)
		}
	default:
		var length int64
		if length, err = b.session.Decoder.Request(block, &b.request, &b.config.Headers); err == nil {
			err = st.Expect(length)
		}
	}
	if err != nil {
		return err
	}
	b.event("head(%d%s)", st.ID(), ended(end))
	if b.reply != nil {
		b.reply(b, st, end)
	}
	return nil
}

func (b *bench) OnData(st *Stream, data []byte, end bool) {
	b.event("data(%d,%d%s)", st.ID(), len(data), ended(end))
}

func (b *bench) OnReset(st *Stream, code http2frame.ErrCode, remote bool, detail string) {
	b.event("reset(%d,%v,%s)", st.ID(), code, detail)
	if remote && !b.session.Failed() {
		b.session.Premature()
	}
}
func (b *bench) OnAboveHigh(st *Stream) { b.event("above(%d)", st.ID()) }
func (b *bench) OnBelowLow(st *Stream)  { b.event("below(%d)", st.ID()) }
func (b *bench) OnClosed(st *Stream) {
	delete(b.streams, st.ID())
	b.closed++
	if b.reuse {
		*st = Stream{id: 99, open: true} // another connection's now
	}
}
func (b *bench) OnSettings() {}
func (b *bench) OnPong()     { b.event("pong") }
func (b *bench) OnGoAway(code http2frame.ErrCode) {
	b.event("goaway(%v)", code)
}

func (b *bench) OnFailed(err *http2frame.Error) {
	b.failed = err
	b.session.Abandon(err.Detail)
}

func (b *bench) event(format string, args ...any) {
	b.events = append(b.events, fmt.Sprintf(format, args...))
}

func ended(end bool) string {
	if end {
		return "."
	}
	return ""
}

// newServer is a server's session whose client has sent preface and settings.
func newServer(t testing.TB, change ...func(*Config)) *bench {
	b := newBench(t, false, change...)
	b.feed([]byte(http2frame.Preface), http2frame.AppendSettings(nil))
	b.take()
	return b
}

func newBench(t testing.TB, client bool, change ...func(*Config)) *bench {
	b := &bench{t: t, config: DefaultConfig, streams: map[uint32]*Stream{}}
	for _, f := range change {
		f(&b.config)
	}
	b.encoder.Init()
	b.session.Init(&b.config, client, NewShared(&b.pool), b, b, &b.counters)
	b.session.Start()
	if !client {
		t.Cleanup(func() {
			b.session.Abandon("end")
			if b.pool.Used() != 0 || b.counters[StreamsActive] != 0 || b.session.Streams() != 0 {
				t.Errorf("%d bytes and %d streams are left at the end", b.pool.Used(), b.session.Streams())
			}
		})
	}
	return b
}

// feed gives frames to the session.
func (b *bench) feed(frames ...[]byte) {
	var p []byte
	for _, f := range frames {
		p = append(p, f...)
	}
	if n := b.session.Feed(p); n != len(p) {
		b.t.Fatalf("the session took %d of %d bytes", n, len(p))
	}
}

// head is a HEADERS frame of a request.
func (b *bench) head(id uint32, end bool, fields ...string) []byte {
	var r header.Request
	r.SetMethod([]byte("POST"))
	r.SetPath([]byte("/"))
	r.SetScheme([]byte("http"))
	r.SetAuthority([]byte("h"))
	for i := 0; i+1 < len(fields); i += 2 {
		r.AddString(header.Other, fields[i], fields[i+1])
	}
	p, at := http2frame.BeginHeaders(nil)
	return http2frame.EndHeaderBlock(b.encoder.AppendRequest(p, &r), at, id, end, http2frame.DefaultMaxFrameSize)
}

func data(id uint32, n int, end bool) []byte {
	return append(http2frame.AppendDataHeader(nil, id, n, end), make([]byte, n)...)
}

// take is what the session wrote since, a word a frame.
func (b *bench) take() string {
	var words []string
	for p := b.out; len(p) > 0; {
		h, ok := http2frame.ParseHeader(p)
		if !ok || len(p) < http2frame.HeaderLen+int(h.Length) {
			b.t.Fatalf("the session wrote a part of a frame: %x", p)
		}
		body := p[http2frame.HeaderLen : http2frame.HeaderLen+int(h.Length)]
		p = p[http2frame.HeaderLen+int(h.Length):]
		end := ended(h.Has(http2frame.EndStream))
		switch h.Type {
		case http2frame.Data:
			words = append(words, fmt.Sprintf("DATA(%d,%d%s)", h.StreamID, h.Length, end))
		case http2frame.Headers:
			words = append(words, fmt.Sprintf("HEADERS(%d%s)", h.StreamID, end))
		case http2frame.RSTStream:
			words = append(words, fmt.Sprintf("RST_STREAM(%d,%v)", h.StreamID, http2frame.ParseRSTStream(body)))
		case http2frame.Settings:
			words = append(words, "SETTINGS"+strings.ReplaceAll(ended(h.Has(http2frame.Ack)), ".", "+ACK"))
		case http2frame.Ping:
			words = append(words, "PING"+strings.ReplaceAll(ended(h.Has(http2frame.Ack)), ".", "+ACK"))
		case http2frame.GoAway:
			last, code, debug := http2frame.ParseGoAway(body)
			words = append(words, fmt.Sprintf("GOAWAY(%d,%v,%s)", last, code, debug))
		case http2frame.WindowUpdate:
			n, _ := http2frame.ParseWindowUpdate(h, body)
			words = append(words, fmt.Sprintf("WINDOW_UPDATE(%d,%d)", h.StreamID, n))
		default:
			b.t.Fatalf("the session wrote a frame of type %d", h.Type)
		}
	}
	b.out = b.out[:0]
	return strings.Join(words, " ")
}

func (b *bench) want(frames string) {
	b.t.Helper()
	if got := b.take(); got != frames {
		b.t.Errorf("wrote %s\nwant  %s", got, frames)
	}
}

func (b *bench) wantEvents(events string) {
	b.t.Helper()
	if got := strings.Join(b.events, " "); got != events {
		b.t.Errorf("told %s\nwant %s", got, events)
	}
	b.events = nil
}

// respond sends a head of status 200.
func (b *bench) respond(st *Stream, end bool) {
	var r header.Response
	r.Status = 200
	p, at := b.session.BeginSection()
	b.session.EndSection(st, b.session.Encoder.AppendResponse(p, &r), at, end)
}
