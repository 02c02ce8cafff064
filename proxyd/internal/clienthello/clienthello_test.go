package clienthello

import (
	"bytes"
	"crypto/tls"
	"net"
	"testing"
)

type recorder struct {
	net.Conn
	wrote bytes.Buffer
}

func (r *recorder) Write(b []byte) (int, error) { return r.wrote.Write(b) }
func (r *recorder) Read([]byte) (int, error)    { return 0, net.ErrClosed }

// hello is what crypto/tls sends first.
func hello(config *tls.Config) []byte {
	r := &recorder{}
	_ = tls.Client(r, config).Handshake()
	return r.wrote.Bytes()
}

// split puts a message into records of at most n bytes.
func split(b []byte, n int) []byte {
	var out []byte
	for body := b[5:]; len(body) > 0; {
		m := min(n, len(body))
		out = append(out, 22, 3, 1, byte(m>>8), byte(m))
		out = append(out, body[:m]...)
		body = body[m:]
	}
	return out
}

func TestParse(t *testing.T) {
	b := hello(&tls.Config{ServerName: "shop.example.com", NextProtos: []string{"h2", "http/1.1"}})
	for _, message := range [][]byte{b, split(b, 100), split(b, 1)} {
		var h Hello
		for n := range message {
			if r := h.Parse(message[:n]); r != More {
				t.Fatalf("%d bytes of %d: %d", n, len(message), r)
			}
		}
		if r := h.Parse(message); r != Done || string(h.SNI) != "shop.example.com" || !h.Offers("h2") || !h.Offers("http/1.1") || h.Offers("h") {
			t.Errorf("%d %q %q", r, h.SNI, h.alpn)
		}
		if r := h.Parse(append(bytes.Clone(message), 22, 3, 3)); r != Done {
			t.Errorf("with the next record's beginning: %d", r)
		}
	}
	var h Hello
	if r := h.Parse(hello(&tls.Config{InsecureSkipVerify: true})); r != Done || h.SNI != nil || h.Offers("h2") {
		t.Errorf("without extensions: %d %q", r, h.SNI)
	}
	for text, want := range map[string]Result{
		"GET / HTTP/1.1\r\n": NotTLS, "\x16\x02": NotTLS, "": More, "\x16": More, "\x16\x03\x01\x00\x00": Malformed,
		"\x16\x03\x01\x00\x04\x02\x00\x00\x00": Malformed, "\x16\x03\x01\x00\x04\x01\xff\x00\x00": Malformed, "\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03": Malformed,
	} {
		if r := h.Parse([]byte(text)); r != want {
			t.Errorf("%q: %d and not %d", text, r, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	b := hello(&tls.Config{ServerName: "shop.example.com", NextProtos: []string{"h2"}})
	f.Add(b)
	f.Add(split(b, 7))
	f.Add([]byte("\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var h Hello
		last := More
		for n := 0; n <= len(b); n += max(1, len(b)/64) {
			switch r := h.Parse(b[:n]); {
			case last == Done && r != Done, last == NotTLS && r != NotTLS:
				t.Fatalf("%d after %d with %d bytes", r, last, n)
			default:
				last = r
			}
			if len(h.SNI) > MaxSize {
				t.Fatal("a name longer than the message")
			}
			h.Offers("h2")
		}
	})
}
