package http1

import (
	"fmt"
	"strings"
	"testing"

	"retinue.dev/proxyd/internal/header"
)

// decode feeds a body in pieces of step bytes, as a connection does: what is not taken is presented again.
func decode(d *BodyDecoder, in []byte, step int) (body []byte, taken int, err *Error) {
	for end := 0; ; {
		end = min(end+step, len(in))
		for {
			data, n, done, err := d.Decode(in[taken:end])
			if err != nil {
				return nil, taken, err
			}
			body = append(body, data...)
			taken += n
			if done {
				return body, taken, nil
			}
			if n == 0 || taken == end {
				break
			}
		}
		if end == len(in) {
			return body, taken, nil
		}
	}
}

func showBlock(b *header.Block) string {
	var s strings.Builder
	for i := range b.Len() {
		_, name, value := b.At(i)
		fmt.Fprintf(&s, "%s=%q;", name, value)
	}
	return s.String()
}

func TestChunkedBodies(t *testing.T) {
	for _, c := range []struct {
		in       string
		body     string
		trailers string
		err      string // detail
		open     bool   // well-formed as far as it goes
	}{
		{in: "5\r\nhello\r\n0\r\n\r\n", body: "hello"},
		{in: "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", body: "hello world"},
		{in: "0\r\n\r\n", body: ""},
		{in: "000000000000005\r\nhello\r\n000\r\n\r\n", body: "hello"},
		{in: "a;name=value;x=\"y z\"\r\n0123456789\r\n0;last\r\n\r\n", body: "0123456789"},
		{in: "A\r\n0123456789\r\n0\r\n\r\n", body: "0123456789"},
		{in: "1\r\nx\r\n0\r\nGrpc-Status: 0\r\nX-Check: a b\r\n\r\n", body: "x", trailers: `grpc-status="0";x-check="a b";`},
		{in: "1\r\nx\r\n0\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\nHost: b\r\nAuthorization: x\r\nOk: 1\r\n\r\n", body: "x", trailers: `ok="1";`},
		{in: "5\r\nhel", body: "hel", open: true},
		{in: "5\r\nhello\r\n0\r\nA: b\r\n", body: "hello", open: true},

		{in: "\r\n", err: "invalid_chunk_size"},
		{in: "0x5\r\nhello\r\n0\r\n\r\n", err: "invalid_chunk_size"},
		{in: "-5\r\nhello\r\n", err: "invalid_chunk_size"},
		{in: "+5\r\nhello\r\n", err: "invalid_chunk_size"},
		{in: " 5\r\nhello\r\n", err: "invalid_chunk_size"},
		{in: "5 \r\nhello\r\n", err: "invalid_chunk_size"},
		{in: "5\t;x\r\nhello\r\n", err: "invalid_chunk_size"},
		{in: "5_0\r\n", err: "invalid_chunk_size"},
		{in: "g\r\n", err: "invalid_chunk_size"},
		{in: ";x\r\n", err: "invalid_chunk_size"},
		{in: "5\nhello\r\n0\r\n\r\n", err: "invalid_chunk_size"},
		{in: "5\r\nhello\n0\r\n\r\n", err: "invalid_chunk"},
		{in: "5\rhello\r\n", err: "invalid_chunk"},
		{in: "5\r\nhello\rX", err: "invalid_chunk"},
		{in: "5\r\nhello0\r\n\r\n", err: "invalid_chunk"},
		{in: "5;a\nhello\r\n", err: "invalid_chunk"},
		{in: "5;a\x00\r\nhello\r\n", err: "invalid_chunk"},
		{in: "5;a\rb\r\nhello\r\n", err: "invalid_chunk"},
		{in: "1000000000000000\r\n", err: "invalid_chunk_size"},
		{in: "0000000000000005\r\nhello\r\n0\r\n\r\n", err: "invalid_chunk_size"},
		{in: "ffffffffffffffff\r\n", err: "invalid_chunk_size"},
		{in: "5;" + strings.Repeat("x", 1025) + "\r\nhello\r\n", err: "chunk_extension_too_large"},
		{in: strings.Repeat("1;"+strings.Repeat("x", 1000)+"\r\na\r\n", 20), err: "chunk_extension_too_large"},
		{in: "0\r\nA: b\n\r\n", err: "invalid_line_end"},
		{in: "0\r\nA : b\r\n\r\n", err: "invalid_header_name"},
		{in: "0\r\nA: b\r\n c\r\n\r\n", err: "obs_fold"},
		{in: "0\r\nA: \x00\r\n\r\n", err: "invalid_characters"},
		{in: "0\r\nGET / HTTP/1.1\r\n\r\n", err: "invalid_header_name"},
		{in: "0\r\n" + strings.Repeat("A: b\r\n", 101) + "\r\n", err: "trailers_too_large"},
		{in: "0\r\nA: " + strings.Repeat("x", 61<<10), err: "trailers_too_large"},
	} {
		next := ""
		if c.err == "" && !c.open {
			next = "GET / HTTP/1.1\r\n"
		}
		for step := 1; step <= len(c.in); step++ {
			if len(c.in) > 2000 && step%1000 != 0 {
				continue
			}
			var trailers header.Block
			trailers.AddString(header.Other, "left-over", "x")
			var d BodyDecoder
			d.Init(&Head{Framing: Chunked}, &trailers, nil, Downstream)
			body, taken, err := decode(&d, []byte(c.in+next), step)
			if c.err != "" {
				if err == nil || err.Detail != "http1."+c.err {
					t.Errorf("%.80q by %d: got %v, want %s", c.in, step, err, c.err)
				}
				continue
			}
			if err != nil || string(body) != c.body {
				t.Errorf("%.80q by %d: %q, %v", c.in, step, body, err)
				continue
			}
			if d.Done() == c.open {
				t.Errorf("%.80q by %d: done %v", c.in, step, d.Done())
			}
			if finish := d.Finish(); (finish != nil) != c.open {
				t.Errorf("%.80q by %d: end of connection says %v", c.in, step, finish)
			}
			if c.open {
				continue
			}
			if taken != len(c.in) {
				t.Errorf("%.80q by %d: took %d of %d", c.in, step, taken, len(c.in))
			}
			if got := showBlock(&trailers); got != c.trailers {
				t.Errorf("%.80q by %d: trailers %s, want %s", c.in, step, got, c.trailers)
			}
		}
	}
}

// TestSignedChunks has an extension on every chunk, as uploads to object stores do, for longer than any fixed sum of
// extensions would allow.
func TestSignedChunks(t *testing.T) {
	var d BodyDecoder
	var trailers header.Block
	d.Init(&Head{Framing: Chunked}, &trailers, nil, Downstream)
	chunk := []byte("1000;chunk-signature=" + strings.Repeat("a", 64) + "\r\n" + strings.Repeat("x", 4096) + "\r\n")
	for i := range 2000 {
		body, taken, err := decode(&d, chunk, len(chunk))
		if err != nil || taken != len(chunk) || len(body) != 4096 {
			t.Fatal(i, err, taken, len(body))
		}
	}
}

func TestLengthBodies(t *testing.T) {
	for step := 1; step < 12; step++ {
		var d BodyDecoder
		d.Init(&Head{Framing: Length, Length: 5}, nil, nil, Downstream)
		if d.Remaining() != 5 {
			t.Fatal(d.Remaining())
		}
		body, taken, err := decode(&d, []byte("helloGET /"), step)
		if err != nil || string(body) != "hello" || taken != 5 || !d.Done() || d.Remaining() != 0 {
			t.Errorf("by %d: %q, %d taken, %v, done %v", step, body, taken, err, d.Done())
		}
	}
	var d BodyDecoder
	d.Init(&Head{Framing: Length, Length: 5}, nil, nil, Upstream)
	d.Decode([]byte("hell"))
	if err := d.Finish(); err == nil || err.Status != 502 || d.Done() {
		t.Errorf("a truncated body ends with %v", err)
	}
	d.Skip(1)
	if !d.Done() || d.Finish() != nil {
		t.Error("not done after the last byte was skipped")
	}
}

func TestOtherBodies(t *testing.T) {
	var d BodyDecoder
	d.Init(&Head{Framing: None}, nil, nil, Downstream)
	if data, n, done, err := d.Decode([]byte("GET /")); len(data) != 0 || n != 0 || !done || err != nil {
		t.Errorf("no body: %q %d %v %v", data, n, done, err)
	}
	for _, framing := range []Framing{UntilClose, Tunnel} {
		d.Init(&Head{Framing: framing}, nil, nil, Upstream)
		if d.Remaining() != -1 {
			t.Error(d.Remaining())
		}
		if data, n, done, err := d.Decode([]byte("abc")); string(data) != "abc" || n != 3 || done || err != nil {
			t.Errorf("%v: %q %d %v %v", framing, data, n, done, err)
		}
		if d.Done() || d.Finish() != nil || !d.Done() {
			t.Errorf("%v does not end with its connection", framing)
		}
	}
}

// TestSkipInChunk moves a chunk's data without showing it to the decoder.
func TestSkipInChunk(t *testing.T) {
	var d BodyDecoder
	var trailers header.Block
	d.Init(&Head{Framing: Chunked}, &trailers, nil, Upstream)
	if _, n, _, err := d.Decode([]byte("a\r\n01")); n != 5 || err != nil || d.Remaining() != 8 {
		t.Fatal(n, err, d.Remaining())
	}
	d.Skip(5)
	d.Skip(3)
	if d.Remaining() != 0 {
		t.Fatal(d.Remaining())
	}
	if _, n, done, err := d.Decode([]byte("\r\n0\r\n\r\n")); n != 7 || !done || err != nil {
		t.Fatal(n, done, err)
	}
}

func FuzzChunked(f *testing.F) {
	f.Add([]byte("5\r\nhello\r\n0\r\n\r\nrest"), uint8(1))
	f.Add([]byte("5;a=b\r\nhello\r\n1\r\n!\r\n0\r\nA: b\r\nHost: x\r\n\r\n"), uint8(3))
	f.Add([]byte("fffffffffffffff\r\nx"), uint8(2))
	f.Add([]byte("0\r\n\r\n"), uint8(1))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var a, b BodyDecoder
		var at, bt header.Block
		a.Init(&Head{Framing: Chunked}, &at, nil, Downstream)
		b.Init(&Head{Framing: Chunked}, &bt, nil, Downstream)
		body, n, err := decode(&a, in, len(in)+1)
		parts, m, perr := decode(&b, in, int(step)+1)
		// A fault of a trailer line may be seen sooner or later, but no later than at its end.
		if err != nil && perr == nil {
			_, _, perr = decode(&b, append(in[m:len(in):len(in)], "\r\n"...), 1<<20)
		} else if perr != nil && err == nil {
			_, _, err = decode(&a, append(in[n:len(in):len(in)], "\r\n"...), 1<<20)
		}
		if (err == nil) != (perr == nil) || a.Done() != b.Done() {
			t.Fatalf("%q: whole %v %v, in pieces %v %v", in, a.Done(), err, b.Done(), perr)
		}
		if err != nil {
			return
		}
		if string(body) != string(parts) || n != m || showBlock(&at) != showBlock(&bt) {
			t.Fatalf("%q: whole %q %d %s, in pieces %q %d %s", in, body, n, showBlock(&at), parts, m, showBlock(&bt))
		}
		if !a.Done() {
			return
		}
		out := AppendLastChunk(AppendChunk(nil, body), &at)
		var c BodyDecoder
		var ct header.Block
		c.Init(&Head{Framing: Chunked}, &ct, &Limits{Bytes: 1 << 20, Fields: 1000}, Downstream)
		again, k, err := decode(&c, out, len(out))
		if err != nil || !c.Done() || k != len(out) || string(again) != string(body) || showBlock(&ct) != showBlock(&at) {
			t.Fatalf("%q: sent as %q: %q %d %v", in, out, again, k, err)
		}
	})
}

func BenchmarkChunked(b *testing.B) {
	in := AppendLastChunk(AppendChunk(nil, make([]byte, 1024)), nil)
	var d BodyDecoder
	var trailers header.Block
	b.ReportAllocs()
	for b.Loop() {
		d.Init(&Head{Framing: Chunked}, &trailers, nil, Upstream)
		if _, n, done, err := d.Decode(in); n != len(in) || !done || err != nil {
			b.Fatal(n, done, err)
		}
	}
}
