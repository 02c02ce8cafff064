package hcm

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	configv1 "retinue.dev/services/api/config/v1"
)

func decompressing() *configv1.Filter {
	return &configv1.Filter{Name: "decompress.x", Kind: &configv1.Filter_Decompress{Decompress: &configv1.DecompressFilter{
		Requests: true, Responses: true, Codings: []string{"gzip", "br", "zstd"}, MaxBytes: 1 << 20, MaxRatio: 50, MaxCompressedBytes: 1 << 20,
	}}}
}

func packed(t *testing.T, coding string, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	switch coding {
	case "gzip":
		w = gzip.NewWriter(&b)
	case "br":
		w = brotli.NewWriter(&b)
	case "zstd":
		var err error
		w, err = zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
		must(t, err)
	}
	_, err := w.Write(body)
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}

// request reads one whole request at the upstream.
func (p *peer) request() (*http.Request, []byte) {
	p.x.t.Helper()
	var body []byte
	var r *http.Request
	p.x.until("a whole request", func() bool {
		p.pull()
		var err error
		if r, err = http.ReadRequest(bufio.NewReader(bytes.NewReader(p.got))); err != nil {
			return false
		}
		body, err = io.ReadAll(r.Body)
		return err == nil
	})
	p.got = nil
	return r, body
}

func TestDecompresses(t *testing.T) {
	for _, coding := range []string{"gzip", "br", "zstd"} {
		for _, size := range []int{0, 1, 10_000, 64 << 10, 300_000, 1 << 20} {
			want := words(size)
			wire := packed(t, coding, want)
			if len(wire) == 0 { // nothing is nothing in zstd
				continue
			}
			name := fmt.Sprintf("%s, %d bytes", coding, size)
			x := newWorld(t, defaults(), built(t, decompressing())...)
			c := x.client()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: " + coding + "\r\nTransfer-Encoding: chunked\r\n\r\n")
			c.send(fmt.Sprintf("%x\r\n%s\r\n0\r\nX-Sum: 1\r\n\r\n", len(wire), wire))
			up := x.upstream()
			r, body := up.request()
			if !bytes.Equal(body, want) || r.Header.Get("Content-Encoding") != "" || r.Trailer.Get("X-Sum") != "1" {
				t.Errorf("%s, request: %d bytes, %v, trailers %v", name, len(body), r.Header, r.Trailer)
			}
			up.send(fmt.Sprintf("HTTP/1.1 200 OK\r\nETag: \"a\"\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s", coding, len(wire), wire))
			answer, body := c.response()
			if !bytes.Equal(body, want) || answer.Header.Get("Content-Encoding") != "" || answer.Header.Get("Etag") != `W/"a"` {
				t.Errorf("%s, response: %d bytes, %v", name, len(body), answer.Header)
			}
		}
	}
}

func TestDecompressRefuses(t *testing.T) {
	whole := packed(t, "gzip", words(10_000))
	for name, row := range map[string]struct {
		coding  string
		body    []byte
		status  int
		details string
	}{
		"a bomb":             {"gzip", packed(t, "gzip", make([]byte, 900_000)), 413, "request_payload_too_large"},
		"more than max_size": {"zstd", packed(t, "zstd", words(1<<20+1)), 413, "request_payload_too_large"},
		"no gzip":            {"gzip", []byte("hello, hello, hello"), 400, "decompression_failed"},
		"a part":             {"gzip", whole[:len(whole)-9], 400, "decompression_failed"},
		"a wrong sum":        {"gzip", append(whole[:len(whole)-8:len(whole)-8], "12345678"...), 400, "decompression_failed"},
		"no zstd":            {"zstd", []byte("hello, hello, hello"), 400, "decompression_failed"},
		"no brotli":          {"br", bytes.Repeat([]byte{0xff}, 40), 400, "decompression_failed"},
		"too much as it is":  {"gzip", packed(t, "gzip", noise(1<<20+1)), 413, "request_payload_too_large"},
		"a part of brotli":   {"br", half(packed(t, "br", words(10_000))), 400, "decompression_failed"},
		"a part of zstd":     {"zstd", half(packed(t, "zstd", words(10_000))), 400, "decompression_failed"},
	} {
		x := newWorld(t, defaults(), built(t, decompressing())...)
		c := x.client()
		c.send(fmt.Sprintf("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n", row.coding, len(row.body)))
		c.send(string(row.body))
		x.until("an answer", func() bool { c.pull(); return bytes.Contains(c.got, []byte("\r\n\r\n")) })
		if l := x.last(); l.status != row.status || l.details != row.details {
			t.Errorf("%s: logged %+v", name, l)
		}
	}
}

func half(b []byte) []byte { return b[:len(b)/2] }

// What the client takes, or nobody knows, passes as it is.
func TestDecompressLeavesAlone(t *testing.T) {
	for accept, coding := range map[string]string{"gzip": "gzip", "identity": "deflate", "br": "gzip, br"} {
		x := newWorld(t, defaults(), built(t, decompressing())...)
		c := x.client()
		c.send("GET / HTTP/1.1\r\nHost: a\r\nAccept-Encoding: " + accept + "\r\n\r\n")
		x.upstream().send("HTTP/1.1 200 OK\r\nContent-Encoding: " + coding + "\r\nContent-Length: 4\r\n\r\nbody")
		if r, body := c.response(); string(body) != "body" || r.Header.Get("Content-Encoding") != coding {
			t.Errorf("%s: %q, %v", coding, body, r.Header)
		}
	}
}
