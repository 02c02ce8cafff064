package http2frame

import (
	"bytes"
	"errors"
	"math"
	"testing"

	"golang.org/x/net/http2"
)

func TestHeader(t *testing.T) {
	h := Header{Length: 0x123456, Type: Ping, Flags: Ack, StreamID: 0x7edcba98}
	p := AppendHeader(nil, h)
	if want := []byte{0x12, 0x34, 0x56, 6, 1, 0x7e, 0xdc, 0xba, 0x98}; !bytes.Equal(p, want) {
		t.Errorf("%x", p)
	}
	q := make([]byte, HeaderLen)
	if PutHeader(q, h); !bytes.Equal(p, q) {
		t.Errorf("%x, %x", p, q)
	}
	p[5] |= 0x80
	if got, ok := ParseHeader(p); !ok || got != h {
		t.Errorf("%+v", got)
	}
	if _, ok := ParseHeader(p[:8]); ok {
		t.Error("eight bytes are a header")
	}
}

// TestRefusedFrames has one row for each rule of RFC 9113 6: head and payload, and the error.
func TestRefusedFrames(t *testing.T) {
	for _, c := range []struct {
		name    string
		typ     Type
		flags   Flags
		stream  uint32
		payload string
		want    *Error
	}{
		{"data", Data, 0, 1, "abc", nil},
		{"data padded", Data, Padded, 1, "\x02abc\x00\x00", nil},
		{"data padded whole", Data, Padded, 1, "\x02\x00\x00", nil},
		{"data stream 0", Data, 0, 0, "abc", errStreamID},
		{"data padding too long", Data, Padded, 1, "\x03\x00\x00", errPadding},
		{"data no room for padding", Data, Padded, 1, "", errFrameSize},
		{"data too large", Data, 0, 1, string(make([]byte, 16385)), errFrameTooLarge},
		{"headers", Headers, EndHeaders, 1, "abc", nil},
		{"headers stream 0", Headers, 0, 0, "", errStreamID},
		{"headers short priority", Headers, Prioritize, 1, "abcd", errFrameSize},
		{"headers padding into priority", Headers, Prioritize | Padded, 1, "\x01\x00\x00\x00\x03\x00", errPadding},
		{"headers on itself", Headers, Prioritize, 3, "\x80\x00\x00\x03\x00x", errDependency},
		{"headers too much padding", Headers, Padded, 1, "\x04abc", errPadding},
		{"priority", Priority, 0, 3, "\x00\x00\x00\x01\x10", nil},
		{"priority stream 0", Priority, 0, 0, "\x00\x00\x00\x01\x10", errStreamID},
		{"priority length", Priority, 0, 3, "\x00\x00\x00\x01", errPrioritySize},
		{"priority on itself", Priority, 0, 3, "\x00\x00\x00\x03\x10", errDependency},
		{"rst", RSTStream, 0, 1, "\x00\x00\x00\x08", nil},
		{"rst stream 0", RSTStream, 0, 0, "\x00\x00\x00\x08", errStreamID},
		{"rst length", RSTStream, 0, 1, "\x00\x00\x08", errFrameSize},
		{"settings", Settings, 0, 0, "\x00\x01\x00\x00\x10\x00", nil},
		{"settings stream", Settings, 0, 1, "", errStreamID},
		{"settings length", Settings, 0, 0, "\x00\x01\x00", errFrameSize},
		{"settings ack", Settings, Ack, 0, "", nil},
		{"settings ack with content", Settings, Ack, 0, "\x00\x01\x00\x00\x10\x00", errFrameSize},
		{"settings push", Settings, 0, 0, "\x00\x02\x00\x00\x00\x02", errSetting},
		{"settings window", Settings, 0, 0, "\x00\x04\x80\x00\x00\x00", errWindowSetting},
		{"settings frame small", Settings, 0, 0, "\x00\x05\x00\x00\x3f\xff", errSetting},
		{"settings frame large", Settings, 0, 0, "\x00\x05\x01\x00\x00\x00", errSetting},
		{"settings connect", Settings, 0, 0, "\x00\x08\x00\x00\x00\x02", errSetting},
		{"settings unknown", Settings, 0, 0, "\xff\xff\xff\xff\xff\xff", nil},
		{"push", PushPromise, 0, 1, "\x00\x00\x00\x02", errPush},
		{"ping", Ping, 0, 0, "12345678", nil},
		{"ping stream", Ping, 0, 1, "12345678", errStreamID},
		{"ping length", Ping, 0, 0, "1234567", errFrameSize},
		{"goaway", GoAway, 0, 0, "\x00\x00\x00\x01\x00\x00\x00\x00bye", nil},
		{"goaway stream", GoAway, 0, 1, "\x00\x00\x00\x01\x00\x00\x00\x00", errStreamID},
		{"goaway length", GoAway, 0, 0, "\x00\x00\x00\x01\x00\x00\x00", errFrameSize},
		{"window", WindowUpdate, 0, 0, "\x00\x00\x00\x01", nil},
		{"window length", WindowUpdate, 0, 0, "\x00\x00\x01", errFrameSize},
		{"window zero", WindowUpdate, 0, 0, "\x80\x00\x00\x00", errIncrement},
		{"window zero on a stream", WindowUpdate, 0, 1, "\x00\x00\x00\x00", errStreamIncrement},
		{"continuation stream 0", Continuation, 0, 0, "", errStreamID},
		{"unknown", 0xee, 0xff, 77, "anything", nil},
	} {
		h := Header{Length: uint32(len(c.payload)), Type: c.typ, Flags: c.flags, StreamID: c.stream}
		if got := parse(h, []byte(c.payload)); got != c.want {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

// parse takes a frame as a client's connection would.
func parse(h Header, p []byte) (err *Error) {
	if err = h.Check(DefaultMaxFrameSize); err != nil {
		return err
	}
	switch h.Type {
	case Data:
		_, err = ParseData(h, p)
	case Headers:
		_, err = ParseHeaders(h, p)
	case Priority:
		err = ParsePriority(h, p)
	case RSTStream:
		ParseRSTStream(p)
	case Settings:
		for i := range NumSettings(p) {
			if err = SettingAt(p, i).Check(false); err != nil {
				return err
			}
		}
	case Ping:
		ParsePing(p)
	case GoAway:
		ParseGoAway(p)
	case WindowUpdate:
		_, err = ParseWindowUpdate(h, p)
	}
	return err
}

func TestPayloads(t *testing.T) {
	if data, _ := ParseData(Header{Flags: Padded}, []byte("\x02abc\x00\x00")); string(data) != "abc" {
		t.Errorf("%q", data)
	}
	h := Header{Flags: Padded | Prioritize, StreamID: 1}
	if f, err := ParseHeaders(h, []byte("\x01\x00\x00\x00\x03\x10frag\x00")); string(f) != "frag" || err != nil {
		t.Errorf("%q %v", f, err)
	}
	if f, err := ParseHeaders(h, []byte("\x01\x00\x00\x00\x01\x10frag\x00")); string(f) != "frag" || err != errDependency {
		t.Errorf("%q %v: the decoder must see the fragment of a stream that is refused", f, err)
	}
	if last, code, debug := ParseGoAway([]byte("\x80\x00\x00\x05\x00\x00\x00\x0bcalm")); last != 5 || code != EnhanceYourCalm || string(debug) != "calm" {
		t.Error(last, code, debug)
	}
	if (Setting{EnablePush, 1}).Check(true) != errSetting || (Setting{EnablePush, 1}).Check(false) != nil {
		t.Error("a server may not send ENABLE_PUSH 1, a client may")
	}
	if EnhanceYourCalm.String() != "ENHANCE_YOUR_CALM" || HTTP11Required.String() != "HTTP_1_1_REQUIRED" || ErrCode(99).String() != "unknown" {
		t.Error("names of codes")
	}
}

func TestSequence(t *testing.T) {
	headers := func(id uint32, f Flags) Header { return Header{Type: Headers, StreamID: id, Flags: f} }
	continuation := func(id uint32, f Flags) Header { return Header{Type: Continuation, StreamID: id, Flags: f} }
	for i, c := range []struct {
		frames []Header
		want   *Error // of the last one
		open   bool
	}{
		{[]Header{headers(1, EndHeaders), {Type: Data, StreamID: 1}}, nil, false},
		{[]Header{headers(1, 0), continuation(1, 0), continuation(1, EndHeaders), headers(3, EndHeaders)}, nil, false},
		{[]Header{headers(1, 0), continuation(1, 0)}, nil, true},
		{[]Header{headers(1, 0), {Type: Data, StreamID: 1}}, errNoContinuation, true},
		{[]Header{headers(1, 0), {Type: 0xee}}, errNoContinuation, true},
		{[]Header{headers(1, 0), headers(1, 0)}, errNoContinuation, true},
		{[]Header{headers(1, 0), continuation(3, 0)}, errNoContinuation, true},
		{[]Header{continuation(1, EndHeaders)}, errContinuation, false},
		{[]Header{headers(1, EndHeaders), continuation(1, EndHeaders)}, errContinuation, false},
	} {
		var s Sequence
		var err *Error
		for j, h := range c.frames {
			if err = s.Next(h); err != nil && j < len(c.frames)-1 {
				t.Errorf("%d: frame %d: %v", i, j, err)
			}
		}
		if err != c.want || s.Open() != c.open {
			t.Errorf("%d: got %v, open %v", i, err, s.Open())
		}
	}
}

func TestWindows(t *testing.T) {
	for _, c := range []struct {
		window int32
		by     uint32
		want   int32
		ok     bool
	}{
		{0, 1, 1, true},
		{-5, 3, -2, true},
		{MaxWindow - 1, 1, MaxWindow, true},
		{MaxWindow, 1, MaxWindow, false},
		{1, MaxWindow, 1, false},
		{-1, MaxWindow, MaxWindow - 1, true},
	} {
		if got, ok := Grow(c.window, c.by); got != c.want || ok != c.ok {
			t.Errorf("%d + %d: %d %v", c.window, c.by, got, ok)
		}
	}
	if got, ok := Shift(10, 100, 20); got != -70 || !ok {
		t.Error(got, ok)
	}
	if _, ok := Shift(MaxWindow, 0, 1); ok {
		t.Error("a window above its maximum")
	}
	if _, ok := Shift(-MaxWindow, 1, 0); ok || math.MinInt32+1 != -MaxWindow {
		t.Error("a window below what 32 bits hold safely")
	}
}

// TestAppend writes every frame and reads it by x/net.
func TestAppend(t *testing.T) {
	out := AppendSettings(nil, Setting{MaxConcurrentStreams, 100}, Setting{InitialWindowSize, 1 << 20})
	out = AppendSettingsAck(out)
	out = AppendPing(out, true, [8]byte{1, 2, 3})
	out = AppendGoAway(out, 7, EnhanceYourCalm, "calm")
	out = AppendRSTStream(out, 5, RefusedStream)
	out = AppendWindowUpdate(out, 3, 4096)
	out = append(AppendDataHeader(out, 3, 5, true), "hello"...)
	f := http2.NewFramer(nil, bytes.NewReader(out))
	next := func() http2.Frame {
		t.Helper()
		frame, err := f.ReadFrame()
		if err != nil {
			t.Fatal(err)
		}
		return frame
	}
	settings := next().(*http2.SettingsFrame)
	if v, ok := settings.Value(http2.SettingInitialWindowSize); settings.NumSettings() != 2 || !ok || v != 1<<20 {
		t.Error(settings)
	}
	if ack := next().(*http2.SettingsFrame); !ack.IsAck() {
		t.Error(ack)
	}
	if ping := next().(*http2.PingFrame); !ping.IsAck() || ping.Data != [8]byte{1, 2, 3} {
		t.Error(ping)
	}
	if g := next().(*http2.GoAwayFrame); g.LastStreamID != 7 || g.ErrCode != http2.ErrCodeEnhanceYourCalm || string(g.DebugData()) != "calm" {
		t.Error(g)
	}
	if r := next().(*http2.RSTStreamFrame); r.StreamID != 5 || r.ErrCode != http2.ErrCodeRefusedStream {
		t.Error(r)
	}
	if w := next().(*http2.WindowUpdateFrame); w.StreamID != 3 || w.Increment != 4096 {
		t.Error(w)
	}
	if d := next().(*http2.DataFrame); d.StreamID != 3 || string(d.Data()) != "hello" || !d.StreamEnded() {
		t.Error(d)
	}
}

func TestHeaderBlocks(t *testing.T) {
	for size := range 70 {
		block := make([]byte, size)
		for i := range block {
			block[i] = byte(i)
		}
		out, at := BeginHeaders([]byte("before"))
		out = EndHeaderBlock(append(out, block...), at, 9, size%2 == 0, 16)
		if string(out[:6]) != "before" {
			t.Fatalf("%q", out)
		}
		var got []byte
		var s Sequence
		frames := 0
		for rest := out[6:]; len(rest) > 0; frames++ {
			h, ok := ParseHeader(rest)
			if !ok || h.Check(16) != nil || s.Next(h) != nil || h.StreamID != 9 {
				t.Fatalf("%d: frame %d: %+v", size, frames, h)
			}
			if frames == 0 && h.Has(EndStream) != (size%2 == 0) {
				t.Fatalf("%d: flags %x", size, h.Flags)
			}
			got = append(got, rest[HeaderLen:HeaderLen+h.Length]...)
			rest = rest[HeaderLen+h.Length:]
		}
		if !bytes.Equal(got, block) || s.Open() || frames != max(1, (size+15)/16) {
			t.Fatalf("%d bytes: %d frames, %x", size, frames, got)
		}
	}
}

// FuzzFrame gives a frame to our functions and to x/net's: they refuse the same, but for rules that only one has.
func FuzzFrame(f *testing.F) {
	f.Add(uint8(Data), uint8(Padded), uint32(1), []byte("\x02abc\x00\x00"))
	f.Add(uint8(Headers), uint8(Prioritize|Padded), uint32(3), []byte("\x01\x00\x00\x00\x03\x10frag\x00"))
	f.Add(uint8(Settings), uint8(0), uint32(0), []byte("\x00\x04\x80\x00\x00\x00"))
	f.Add(uint8(WindowUpdate), uint8(0), uint32(5), []byte("\x00\x00\x00\x00"))
	f.Add(uint8(GoAway), uint8(0), uint32(0), []byte("\x00\x00\x00\x01\x00\x00\x00\x00bye"))
	f.Fuzz(func(t *testing.T, typ, flags uint8, stream uint32, payload []byte) {
		h := Header{Length: uint32(len(payload)), Type: Type(typ), Flags: Flags(flags), StreamID: stream & MaxStreamID}
		if len(payload) > DefaultMaxFrameSize {
			return
		}
		ours := parse(h, payload)
		switch {
		case ours == errDependency, h.Type == PushPromise, h.Type >= Continuation:
			return // x/net leaves the first to its user, takes the second, and checks order, and types of later RFCs
		}
		framer := http2.NewFramer(nil, bytes.NewReader(append(AppendHeader(nil, h), payload...)))
		frame, err := framer.ReadFrame()
		if s, ok := frame.(*http2.SettingsFrame); ok && err == nil {
			err = s.ForeachSetting(func(s http2.Setting) error {
				if s.ID == http2.SettingEnableConnectProtocol && s.Val > 1 {
					return http2.ConnectionError(http2.ErrCodeProtocol)
				}
				return s.Valid()
			})
		}
		if (err == nil) != (ours == nil) {
			t.Fatalf("%+v %x: got %v, x/net says %v", h, payload, ours, err)
		}
		// Of two faults either may be named: an identifier and a length.
		var connection http2.ConnectionError
		if errors.As(err, &connection) && !ours.Stream && ours != errStreamID && ErrCode(connection) != ours.Code {
			t.Fatalf("%+v %x: got %v, x/net says %v", h, payload, ours.Code, err)
		}
		if d, ok := frame.(*http2.DataFrame); ok && err == nil {
			if data, _ := ParseData(h, payload); !bytes.Equal(data, d.Data()) {
				t.Fatalf("%q, x/net says %q", data, d.Data())
			}
		}
		if d, ok := frame.(*http2.HeadersFrame); ok && err == nil {
			if fragment, _ := ParseHeaders(h, payload); !bytes.Equal(fragment, d.HeaderBlockFragment()) {
				t.Fatalf("%q, x/net says %q", fragment, d.HeaderBlockFragment())
			}
		}
	})
}

func TestDoesNotAllocate(t *testing.T) {
	dst := make([]byte, 0, 1024)
	block := []byte("0123456789abcdef0123456789")
	if n := testing.AllocsPerRun(100, func() {
		out, at := BeginHeaders(dst)
		out = EndHeaderBlock(append(out, block...), at, 1, true, 16)
		out = AppendSettings(out, Setting{EnablePush, 0})
		out = AppendPing(out, false, [8]byte{})
		out = AppendWindowUpdate(out, 1, 5)
		for rest := out; len(rest) > 0; {
			h, _ := ParseHeader(rest)
			if h.Check(DefaultMaxFrameSize) != nil {
				t.Fatal(h)
			}
			rest = rest[HeaderLen+h.Length:]
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
