package e2e

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"retinue.dev/tests/suite"
)

// raw is one end of an HTTP/2 connection whose frames a test writes by itself, right or wrong.
type raw struct {
	net.Conn
	*http2.Framer
	t       testing.TB
	decoder *hpack.Decoder
	silent  bool // says nothing by itself
}

func newRaw(t testing.TB, c net.Conn) *raw {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(suite.Patience))
	r := &raw{Conn: c, Framer: http2.NewFramer(c, bufio.NewReaderSize(c, 64<<10)), t: t, decoder: hpack.NewDecoder(4096, nil)}
	r.AllowIllegalWrites, r.AllowIllegalReads = true, true
	return r
}

// dialRaw is a client that has said hello. The server's own settings have not been read.
func dialRaw(t testing.TB, address string, secure *tls.Config) *raw {
	t.Helper()
	// A small window at the far end: a client that does not read is felt soon.
	dialer := net.Dialer{Timeout: suite.Patience, Control: func(_, _ string, c syscall.RawConn) (err error) {
		_ = c.Control(func(fd uintptr) { err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 16<<10) })
		return err
	}}
	c, err := dialer.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	if secure != nil {
		secure = secure.Clone()
		secure.NextProtos = []string{"h2"}
		c = tls.Client(c, secure)
	}
	r := newRaw(t, c)
	r.send([]byte(http2.ClientPreface))
	if err := r.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	return r
}

// send writes bytes as they are; that a peer has had enough is for its answer to show.
func (r *raw) send(b []byte) { _, _ = r.Conn.Write(b) }

// fields is a header block of literals, which the encoder neither checks nor changes nor remembers.
func fields(pairs ...string) (b []byte) {
	for i := 0; i+1 < len(pairs); i += 2 {
		b = append(b, 0)
		for _, s := range pairs[i : i+2] {
			n := len(s)
			if n < 127 {
				b = append(b, byte(n))
			} else {
				b = append(b, 127)
				for n -= 127; n >= 128; n >>= 7 {
					b = append(b, byte(n)|128)
				}
				b = append(b, byte(n))
			}
			b = append(b, s...)
		}
	}
	return b
}

// get is the block of a request.
func get(path string, more ...string) []byte {
	return fields(append([]string{":method", "GET", ":scheme", "http", ":authority", "shop.test", ":path", path}, more...)...)
}

// head writes a header block as one frame.
func (r *raw) head(id uint32, end bool, block []byte) {
	_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: end, EndHeaders: true})
}

// told is what a peer has said of a stream, or of the connection (stream 0).
type told struct {
	stream uint32
	kind   http2.FrameType // FrameHeaders, FrameData, FrameRSTStream, FrameGoAway
	code   http2.ErrCode
	fields map[string]string
	text   string // data, or the words of a GOAWAY
	end    bool
}

func (x told) String() string {
	switch x.kind {
	case http2.FrameRSTStream:
		return fmt.Sprintf("RST(%d,%s)", x.stream, x.code)
	case http2.FrameGoAway:
		return fmt.Sprintf("GOAWAY(%s,%s)", x.code, x.text)
	case http2.FrameHeaders:
		return fmt.Sprintf("HEADERS(%d,%s)", x.stream, x.fields[":status"])
	}
	return fmt.Sprintf("%s(%d)", x.kind, x.stream)
}

// hear reads on to the next frame that tells something; what only keeps the connection going is answered.
func (r *raw) hear() (told, error) {
	for {
		f, err := r.ReadFrame()
		if err != nil {
			return told{}, err
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() && !r.silent {
				_ = r.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() && !r.silent {
				_ = r.WritePing(true, f.Data)
			}
		case *http2.HeadersFrame:
			list, err := r.decoder.DecodeFull(f.HeaderBlockFragment())
			if err != nil {
				return told{}, err
			}
			x := told{stream: f.StreamID, kind: http2.FrameHeaders, fields: map[string]string{}, end: f.StreamEnded()}
			for _, h := range list {
				x.fields[h.Name] = h.Value
			}
			return x, nil
		case *http2.DataFrame:
			return told{stream: f.StreamID, kind: http2.FrameData, text: string(f.Data()), end: f.StreamEnded()}, nil
		case *http2.RSTStreamFrame:
			return told{stream: f.StreamID, kind: http2.FrameRSTStream, code: f.ErrCode}, nil
		case *http2.GoAwayFrame:
			return told{kind: http2.FrameGoAway, code: f.ErrCode, text: string(f.DebugData())}, nil
		}
	}
}

// until reads on to what is looked for.
func (r *raw) until(what string, is func(told) bool) told {
	r.t.Helper()
	_ = r.SetDeadline(time.Now().Add(suite.Patience))
	var before []string
	for {
		x, err := r.hear()
		if err != nil {
			r.t.Fatalf("waiting for %s: %v, after %s", what, err, strings.Join(before, " "))
		}
		if is(x) {
			return x
		}
		if before = append(before, x.String()); len(before) > 20 {
			before = before[1:]
		}
	}
}

// answer is the response to a stream: its status and its body.
func (r *raw) answer(id uint32) (head told, body string) {
	r.t.Helper()
	head = r.until(fmt.Sprintf("the response to stream %d", id), func(x told) bool { return x.stream == id && x.kind == http2.FrameHeaders })
	for end := head.end; !end; {
		x := r.until(fmt.Sprintf("the body of stream %d", id), func(x told) bool { return x.stream == id })
		if x.kind == http2.FrameRSTStream {
			r.t.Fatalf("stream %d: %s in its body", id, x)
		}
		body, end = body+x.text, x.end
	}
	return head, body
}

// rawServer is an upstream of HTTP/2 whose frames a test writes: serve is called for each connection, behind the preface.
func rawServer(t testing.TB, secure *tls.Config, serve func(r *raw)) string {
	t.Helper()
	return suite.Upstream(t, func(c net.Conn) {
		if secure != nil {
			c = tls.Server(c, secure)
		}
		_ = c.SetDeadline(time.Now().Add(2 * suite.Patience))
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(c, preface); err != nil || string(preface) != http2.ClientPreface {
			return
		}
		r := &raw{Conn: c, Framer: http2.NewFramer(c, bufio.NewReader(c)), t: t, decoder: hpack.NewDecoder(4096, nil)}
		r.AllowIllegalWrites, r.AllowIllegalReads = true, true
		_ = r.WriteSettings()
		serve(r)
	})
}
