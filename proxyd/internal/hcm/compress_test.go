package hcm

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	configv1 "retinue.dev/services/api/config/v1"
)

func compressing() *configv1.Filter {
	return &configv1.Filter{Name: "compress.x", Kind: &configv1.Filter_Compress{Compress: &configv1.CompressFilter{Codings: []string{"gzip", "br", "zstd"}}}}
}

// plainOf decodes a body.
func plainOf(t *testing.T, coding string, r io.Reader) []byte {
	t.Helper()
	var err error
	switch coding {
	case "gzip":
		r, err = gzip.NewReader(r)
	case "br":
		r = brotli.NewReader(r)
	case "zstd":
		var d *zstd.Decoder
		if d, err = zstd.NewReader(r); err == nil {
			defer d.Close()
			r = d
		}
	}
	must(t, err)
	body, err := io.ReadAll(r)
	must(t, err)
	return body
}

// words is n bytes that are neither random nor all the same.
func words(n int) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 0, n+10)
	for len(b) < n {
		b = fmt.Appendf(b, "word%d ", rng.IntN(5000))
	}
	return b[:n]
}

// response reads one whole response at the client.
func (p *peer) response() (*http.Response, []byte) {
	p.x.t.Helper()
	var body []byte
	var r *http.Response
	p.x.until("a whole response", func() bool {
		p.pull()
		var err error
		if r, err = http.ReadResponse(bufio.NewReader(bytes.NewReader(p.got)), nil); err != nil {
			return false
		}
		body, err = io.ReadAll(r.Body)
		return err == nil
	})
	p.got = nil
	return r, body
}

func TestCompressesWhateverTheSize(t *testing.T) {
	for _, coding := range []string{"gzip", "br", "zstd"} {
		for _, size := range []int{40, 10_000, 64 << 10, 65<<10 + 1, 1 << 20} {
			for _, chunked := range []bool{false, true} {
				x := newWorld(t, defaults(), built(t, compressing())...)
				c := x.client()
				c.send("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: " + coding + "\r\n\r\n")
				up := x.upstream()
				want := words(size)
				up.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nETag: \"a\"\r\nAccept-Ranges: bytes\r\n")
				if chunked {
					up.send("Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n")
					for rest := want; len(rest) > 0; {
						n := min(len(rest), 30_000)
						up.send(fmt.Sprintf("%x\r\n%s\r\n", n, rest[:n]))
						rest = rest[n:]
						c.pull()
					}
					up.send("0\r\nX-Sum: 1\r\n\r\n")
				} else {
					up.send(fmt.Sprintf("Content-Length: %d\r\n\r\n", size))
					for rest := want; len(rest) > 0; c.pull() {
						n := min(len(rest), 100_000)
						up.send(string(rest[:n]))
						rest = rest[n:]
					}
				}
				r, body := c.response()
				name := fmt.Sprintf("%s, %d bytes, chunked %v", coding, size, chunked)
				if h := r.Header; h.Get("Content-Encoding") != coding || h.Get("Vary") != "Accept-Encoding" || h.Get("Etag") != `W/"a"` || h.Get("Accept-Ranges") != "" || h.Get("Content-Length") != "" {
					t.Errorf("%s: %v", name, h)
				}
				if got := plainOf(t, coding, bytes.NewReader(body)); !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes came back that are not the same", name, len(got))
				}
				if size > 1000 && len(body) > size*2/3 {
					t.Errorf("%s: compressed to %d bytes", name, len(body))
				}
				if chunked && r.Trailer.Get("X-Sum") != "1" {
					t.Errorf("%s: trailers %v", name, r.Trailer)
				}
			}
		}
	}
}

// What has come is not kept back by the encoder.
func TestCompressFlushes(t *testing.T) {
	for _, coding := range []string{"gzip", "br", "zstd"} {
		x := newWorld(t, defaults(), built(t, compressing())...)
		c := x.client()
		c.send("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: " + coding + "\r\n\r\n")
		up := x.upstream()
		up.send("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		x.until("the first five bytes", func() bool {
			c.pull()
			_, body, found := bytes.Cut(c.got, []byte("\r\n\r\n"))
			if !found {
				return false
			}
			var wire []byte
			for len(body) > 0 {
				var n int
				if k, err := fmt.Sscanf(string(body), "%x\r\n", &n); k != 1 || err != nil {
					break
				}
				_, body, _ = bytes.Cut(body, []byte("\r\n"))
				if len(body) < n+2 {
					break
				}
				wire, body = append(wire, body[:n]...), body[n+2:]
			}
			return bytes.HasPrefix(soFar(coding, wire), []byte("hello"))
		})
	}
}

// soFar decodes what can be decoded of a beginning.
func soFar(coding string, wire []byte) []byte {
	var r io.Reader
	switch coding {
	case "gzip":
		z, err := gzip.NewReader(bytes.NewReader(wire))
		if err != nil {
			return nil
		}
		r = z
	case "br":
		r = brotli.NewReader(bytes.NewReader(wire))
	case "zstd":
		z, err := zstd.NewReader(bytes.NewReader(wire), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil
		}
		defer z.Close()
		r = z
	}
	got := make([]byte, 5)
	n, _ := io.ReadFull(r, got)
	return got[:n]
}

func TestCompressLeavesAlone(t *testing.T) {
	for name, row := range map[string]struct{ request, response, vary string }{
		"no coding is accepted": {"", "Content-Type: text/plain\r\n", "Accept-Encoding"},
		"too short":             {"gzip", "Content-Type: text/plain\r\nContent-Length: 29\r\n", ""},
		"another type":          {"gzip", "Content-Type: image/png\r\n", ""},
		"encoded already":       {"gzip", "Content-Type: text/plain\r\nContent-Encoding: br\r\n", ""},
		"no-transform":          {"gzip", "Content-Type: text/plain\r\nCache-Control: public, no-transform\r\n", ""},
		"a part":                {"gzip", "Content-Type: text/plain\r\nContent-Range: bytes 0-49/100\r\n", ""},
	} {
		x := newWorld(t, defaults(), built(t, compressing())...)
		c := x.client()
		c.send("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: " + row.request + "\r\n\r\n")
		body := words(50)
		if !strings.Contains(row.response, "Content-Length") {
			row.response += "Content-Length: 50\r\n"
		} else {
			body = body[:29]
		}
		x.upstream().send("HTTP/1.1 200 OK\r\n" + row.response + "\r\n" + string(body))
		r, got := c.response()
		if !bytes.Equal(got, body) || r.Header.Get("Vary") != row.vary {
			t.Errorf("%s: %q, %v", name, got, r.Header)
		}
	}
}

func TestCompressAllocatesNothing(t *testing.T) {
	for _, coding := range []string{"gzip", "br", "zstd"} {
		s := newSim(t, defaults(), built(t, compressing())...)
		s.filter.Config.Logs = nil
		request := []byte("GET /1k HTTP/1.1\r\nHost: a\r\nAccept-Encoding: " + coding + "\r\n\r\n")
		response := append([]byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n"), words(1024)...)
		client := s.client()
		once := func() {
			client.Send(request)
			s.worker.Turn(0)
			up := s.backlog.Last()
			up.Discard()
			up.Send(response)
			s.worker.Turn(0)
			if client.Discard() < 100 {
				t.Fatal("no response")
			}
		}
		client.Send(request)
		s.turn()
		s.turn()
		s.backlog.Last().Discard()
		s.backlog.Last().Send(response)
		s.turn()
		client.Discard()
		for range 100 {
			once()
		}
		if n := testing.AllocsPerRun(300, once); n > 0 {
			t.Errorf("%s: %v allocations a response", coding, n)
		}
	}
}
