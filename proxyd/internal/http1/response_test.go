package http1

import (
	"fmt"
	"strings"
	"testing"

	"retinue.dev/proxyd/internal/header"
)

func showResponse(r *header.Response, h Head) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %d %q", r.Proto, r.Status, r.Reason())
	for i := range r.Len() {
		_, name, value := r.At(i)
		fmt.Fprintf(&b, " %s=%q", name, value)
	}
	fmt.Fprintf(&b, " %d/%d", h.Framing, h.Length)
	if h.KeepAlive {
		b.WriteString(" keep-alive")
	}
	return b.String()
}

func parseResponse(p *ResponseParser, r *header.Response, in string, method header.MethodID, cut bool) (int, *Error) {
	if !cut {
		return p.Parse([]byte(in), r, method)
	}
	for i := 0; ; i++ {
		n, err := p.Parse([]byte(in[:i]), r, method)
		if err != nil || n > 0 || i == len(in) {
			return n, err
		}
		_ = showResponse(r, p.Head)
	}
}

func TestParseResponse(t *testing.T) {
	for _, c := range []struct {
		method header.MethodID
		in     string
		want   string // a response, or the detail of an error
	}{
		{header.MethodGet, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", `HTTP/1.1 200 "OK" content-length="5" 1/5 keep-alive`},
		{header.MethodGet, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", `HTTP/1.1 200 "OK" content-length="0" 0/0 keep-alive`},
		{header.MethodGet, "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n", `HTTP/1.1 200 "" transfer-encoding="chunked" 2/0 keep-alive`},
		{header.MethodGet, "HTTP/1.1 200\r\n\r\n", `HTTP/1.1 200 "" 3/0`},
		{header.MethodGet, "HTTP/1.1 999 Odd \xe9 phrase\r\nHost: h\r\nConnection: close\r\nContent-Length: 1\r\n\r\n", `HTTP/1.1 999 "Odd \xe9 phrase" connection="close" content-length="1" 1/1`},
		{header.MethodGet, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", `HTTP/1.0 200 "OK" content-length="5" 1/5`},
		{header.MethodGet, "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\n", `HTTP/1.0 200 "OK" connection="keep-alive" content-length="5" 1/5 keep-alive`},
		{header.MethodGet, "HTTP/1.1 100 Continue\r\n\r\n", `HTTP/1.1 100 "Continue" 0/0 keep-alive`},
		{header.MethodGet, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", `HTTP/1.1 103 "Early Hints" link="</a>" 0/0 keep-alive`},
		{header.MethodGet, "HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", `HTTP/1.1 204 "No Content" 0/0 keep-alive`},
		{header.MethodGet, "HTTP/1.1 304 Not Modified\r\nContent-Length: 77\r\n\r\n", `HTTP/1.1 304 "Not Modified" content-length="77" 0/0 keep-alive`},
		{header.MethodHead, "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n", `HTTP/1.1 200 "OK" content-length="77" 0/0 keep-alive`},
		{header.MethodHead, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", `HTTP/1.1 200 "OK" transfer-encoding="chunked" 0/0 keep-alive`},
		{header.MethodHead, "HTTP/1.1 200 OK\r\n\r\n", `HTTP/1.1 200 "OK" 0/0 keep-alive`},
		{header.MethodGet, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", `HTTP/1.1 101 "Switching Protocols" connection="upgrade" upgrade="websocket" 4/0`},
		{header.MethodConnect, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", `HTTP/1.1 200 "OK" 4/0`},
		{header.MethodConnect, "HTTP/1.1 403 Forbidden\r\nContent-Length: 5\r\n\r\n", `HTTP/1.1 403 "Forbidden" content-length="5" 1/5 keep-alive`},

		{header.MethodGet, "SSH-2.0-OpenSSH\r\n", "invalid_status_line"},
		{header.MethodGet, "\r\nHTTP/1.1 200 OK\r\n\r\n", "invalid_status_line"},
		{header.MethodGet, "HTTP/1.1\r\n\r\n", "invalid_status_line"},
		{header.MethodGet, "HTTP/1.1 20\r\n\r\n", "invalid_status_line"},
		{header.MethodGet, "HTTP/1.1 2000 OK\r\n\r\n", "invalid_status_line"},
		{header.MethodGet, "HTTP/1.1 099 OK\r\n\r\n", "invalid_status_line"},
		{header.MethodGet, "HTTP/1.1 2x0 OK\r\n\r\n", "invalid_status_line"},
		{header.MethodGet, "HTTP/1.1  200 OK\r\n\r\n", "invalid_status_line"},
		{header.MethodGet, "http/1.1 200 OK\r\n\r\n", "invalid_status_line"},
		{header.MethodGet, "HTTP/1.1 200\tOK\r\n\r\n", "invalid_status_line"},
		{header.MethodGet, "HTTP/2.0 200 OK\r\n\r\n", "unsupported_version"},
		{header.MethodGet, "HTTP/1.1 200 O\x00K\r\n\r\n", "invalid_characters"},
		{header.MethodGet, "HTTP/1.1 200 OK\nA: b\n\n", "invalid_line_end"},
		{header.MethodGet, "HTTP/1.1 200 OK\r\nA: b\n\r\n", "invalid_line_end"},
		{header.MethodGet, "HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "invalid_header_name"},
		{header.MethodGet, "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "obs_fold"},
		{header.MethodGet, "HTTP/1.1 200 " + strings.Repeat("x", 17<<10), "status_line_too_large"},
		{header.MethodGet, "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 61<<10) + "\r\n\r\n", "headers_too_large"},
		{header.MethodGet, "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 101) + "\r\n", "too_many_headers"},
		{header.MethodGet, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "content_length_and_chunked_not_allowed"},
		{header.MethodHead, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "content_length_and_chunked_not_allowed"},
		{header.MethodGet, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "duplicate_content_length"},
		{header.MethodGet, "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "invalid_content_length"},
		{header.MethodGet, "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "unknown_transfer_coding"},
		{header.MethodGet, "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer_encoding_not_allowed"},
		{header.MethodGet, "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer_encoding_not_allowed"},
		{header.MethodGet, "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", "invalid_content_length"},
		{header.MethodGet, "HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer_encoding_not_allowed"},
	} {
		for _, cut := range []bool{false, true} {
			if cut && len(c.in) > 4<<10 {
				continue
			}
			var p ResponseParser
			var r header.Response
			in := c.in
			if strings.HasPrefix(c.want, "HTTP/") {
				in += "BODY"
			}
			n, err := parseResponse(&p, &r, in, c.method, cut)
			got := ""
			if err != nil {
				got = strings.TrimPrefix(err.Detail, "http1.")
				if err.Status != 502 {
					t.Errorf("%.100q: status %d", c.in, err.Status)
				}
			} else if got = showResponse(&r, p.Head); n != len(c.in) {
				t.Errorf("%.100q cut=%v: took %d of %d", c.in, cut, n, len(c.in))
			}
			// Seen byte by byte the fault of a line that never ends may be another one.
			if got != c.want {
				t.Errorf("%.100q cut=%v:\ngot  %s\nwant %s", c.in, cut, got, c.want)
			}
		}
	}
}

func FuzzResponse(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"), uint16(3), uint8(1))
	f.Add([]byte("HTTP/1.0 304\r\n\r\n"), uint16(1), uint8(2))
	f.Add([]byte("HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"), uint16(9), uint8(1))
	f.Add([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: a\r\n\r\n"), uint16(50), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, cut uint16, m uint8) {
		method := header.MethodID(m % uint8(header.NumMethods))
		var whole, parts ResponseParser
		var a, b header.Response
		n, err := whole.Parse(in, &a, method)
		step := int(cut)%(len(in)+1) + 1
		var k int
		var perr *Error
		for end := 0; k == 0 && perr == nil; {
			end = min(end+step, len(in))
			k, perr = parts.Parse(in[:end], &b, method)
			if end == len(in) {
				break
			}
		}
		// A fault may be seen sooner or later, but no later than at the end of its line.
		if err != nil && perr == nil && k == 0 {
			_, perr = parts.Parse(append(in[:len(in):len(in)], "\r\n"...), &b, method)
		} else if perr != nil && err == nil && n == 0 {
			_, err = whole.Parse(append(in[:len(in):len(in)], "\r\n"...), &a, method)
		}
		if n != k || (err == nil) != (perr == nil) {
			t.Fatalf("%q: whole %d %v, in pieces of %d %d %v", in, n, err, step, k, perr)
		}
		if n == 0 {
			return
		}
		if x, y := showResponse(&a, whole.Head), showResponse(&b, parts.Head); x != y {
			t.Fatalf("%q: whole %s, in pieces %s", in, x, y)
		}
		h := whole.Head
		if StripHopByHop(&a.Block, h.Framing == Tunnel, Upstream) != nil {
			return
		}
		o := ResponseOptions{Framing: h.Framing, Length: h.Length, Head: method == header.MethodHead}
		out := AppendResponseHead(nil, &a, o)
		var again ResponseParser
		again.Limits = &Limits{Line: 1 << 20, Bytes: 1 << 20, Fields: 1000}
		var c header.Response
		k, err = again.Parse(out, &c, method)
		if err != nil || k != len(out) || c.Status != a.Status || again.Head.Framing != h.Framing || again.Head.Length != h.Length {
			t.Fatalf("%q\nsent as %q: %d %v %s", in, out, k, err, showResponse(&c, again.Head))
		}
	})
}
