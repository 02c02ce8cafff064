package http1

import (
	"fmt"
	"strings"
	"testing"

	"retinue.dev/proxyd/internal/header"
)

const host = "Host: a\r\n"

// show is everything that a parsed request says, in one line.
func show(r *header.Request, h Head) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s|%s|%s %s", r.Method(), r.Scheme(), r.Authority(), r.Path(), r.Proto)
	for i := range r.Len() {
		id, name, value := r.At(i)
		if (id == header.Other) != (header.Lookup(name) == header.Other) {
			b.WriteString(" WRONG-ID")
		}
		fmt.Fprintf(&b, " %s=%q", name, value)
	}
	fmt.Fprintf(&b, " %d/%d", h.Framing, h.Length)
	for _, f := range []struct {
		set  bool
		name string
	}{{h.KeepAlive, " keep-alive"}, {h.Upgrade, " upgrade"}, {h.Expect100, " expect"}} {
		if f.set {
			b.WriteString(f.name)
		}
	}
	return b.String()
}

func TestParseRequest(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"GET / HTTP/1.1\r\nHost: a\r\n\r\n", `GET |a|/ HTTP/1.1 0/0 keep-alive`},
		{"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", `GET |a|/ HTTP/1.1 0/0 keep-alive`},
		{
			"POST /p?q=%zz HTTP/1.1\r\nACCEPT:\t*/* \t\r\nX-Foo-BAR:\r\nhOST:a.b:80\r\ncontent-LENGTH: 12\r\nx: a\tb \xff\r\n\r\n",
			`POST |a.b:80|/p?q=%zz HTTP/1.1 accept="*/*" x-foo-bar="" content-length="12" x="a\tb \xff" 1/12 keep-alive`,
		},
		{"GET / HTTP/1.0\r\n\r\n", `GET ||/ HTTP/1.0 0/0`},
		{"GET / HTTP/1.0\r\nHost:\r\nConnection: Keep-Alive\r\n\r\n", `GET ||/ HTTP/1.0 connection="Keep-Alive" 0/0 keep-alive`},
		{"GET / HTTP/1.0\r\nContent-Length: 3\r\n\r\n", `GET ||/ HTTP/1.0 content-length="3" 1/3`},
		{"GET / HTTP/1.1\r\nConnection: foo , ,CLOSE\r\nHost: a\r\n\r\n", `GET |a|/ HTTP/1.1 connection="foo , ,CLOSE" 0/0`},
		{"GET / HTTP/1.1\r\nConnection: keep-alive\r\nConnection: close\r\nHost: a\r\n\r\n", `GET |a|/ HTTP/1.1 connection="keep-alive" connection="close" 0/0`},
		{"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n", `GET |a|/ HTTP/1.1 transfer-encoding="Chunked" expect="100-Continue" 2/0 keep-alive expect`},
		{"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n", `GET |a|/ HTTP/1.1 expect="100-continue" 0/0 keep-alive`},
		{"GET / HTTP/1.0\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n", `GET ||/ HTTP/1.0 content-length="1" expect="100-continue" 1/1`},
		{"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n", `PUT |a|/ HTTP/1.1 content-length="0" 0/0 keep-alive`},
		{"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", `GET |a|/ws HTTP/1.1 connection="Upgrade" upgrade="websocket" 0/0 keep-alive upgrade`},
		{"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\r\n", `GET |a|/ws HTTP/1.1 connection="Upgrade" 0/0 keep-alive`},
		{"GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n", `GET |a|/ws HTTP/1.1 upgrade="websocket" 0/0 keep-alive`},
		{"GET /ws HTTP/1.0\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", `GET ||/ws HTTP/1.0 connection="Upgrade" upgrade="websocket" 0/0`},
		{"CONNECT a.b:443 HTTP/1.1\r\nHost: c\r\n\r\n", `CONNECT |a.b:443| HTTP/1.1 0/0 keep-alive`},
		{"CONNECT [::1]:443 HTTP/1.1\r\nHost: c\r\n\r\n", `CONNECT |[::1]:443| HTTP/1.1 0/0 keep-alive`},
		{"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", `OPTIONS |a|* HTTP/1.1 0/0 keep-alive`},
		{"GET http://b:81/x?y HTTP/1.1\r\nHost: a\r\n\r\n", `GET http|b:81|/x?y HTTP/1.1 0/0 keep-alive`},
		{"GET HTTPS://b HTTP/1.1\r\nHost: a\r\n\r\n", `GET https|b|/ HTTP/1.1 0/0 keep-alive`},
		{"GET http://b?y HTTP/1.1\r\nHost: a\r\n\r\n", `GET http|b|/?y HTTP/1.1 0/0 keep-alive`},
		{"OPTIONS http://b HTTP/1.1\r\nHost: a\r\n\r\n", `OPTIONS http|b|* HTTP/1.1 0/0 keep-alive`},
		{"PROPFIND / HTTP/1.1\r\nHost: a\r\n\r\n", `PROPFIND |a|/ HTTP/1.1 0/0 keep-alive`},
		{"get / HTTP/1.1\r\nHost: a\r\n\r\n", `get |a|/ HTTP/1.1 0/0 keep-alive`},
		{"GET //x HTTP/1.1\r\nHost: a\r\n\r\n", `GET |a|//x HTTP/1.1 0/0 keep-alive`},
	} {
		for _, cut := range []bool{false, true} {
			var p RequestParser
			var r header.Request
			n, err := parseRequest(t, &p, &r, c.in+"BODY", cut)
			if err != nil {
				t.Errorf("%q: %v", c.in, err)
				continue
			}
			if n != len(c.in) {
				t.Errorf("%q: %d bytes taken of %d", c.in, n, len(c.in))
			}
			if got := show(&r, p.Head); got != c.want {
				t.Errorf("%q cut=%v:\ngot  %s\nwant %s", c.in, cut, got, c.want)
			}
		}
	}
}

// parseRequest parses in at once, or byte by byte.
func parseRequest(t *testing.T, p *RequestParser, r *header.Request, in string, cut bool) (int, *Error) {
	t.Helper()
	if !cut {
		return p.Parse([]byte(in), r)
	}
	for i := 0; ; i++ {
		n, err := p.Parse([]byte(in[:i]), r)
		if err != nil || n > 0 {
			return n, err
		}
		// What there is can be read at any time: a time-out logs it.
		_ = show(r, p.Head)
		if i == len(in) {
			return 0, nil
		}
	}
}

// TestRefusedRequests is the smuggling corpus and everything else that is not HTTP/1.1: input, status, detail.
func TestRefusedRequests(t *testing.T) {
	const post = "POST / HTTP/1.1\r\nHost: a\r\n"
	for _, c := range []struct {
		in     string
		status int
		detail string
	}{
		// The request line.
		{"\r\n\r\nGET / HTTP/1.1\r\n", 400, "invalid_method"},
		{"\nGET / HTTP/1.1\r\n", 400, "invalid_method"},
		{"\rGET / HTTP/1.1\r\n", 400, "invalid_line_end"},
		{" GET / HTTP/1.1\r\n", 400, "invalid_method"},
		{"G\x00T / HTTP/1.1\r\n", 400, "invalid_method"},
		{"G(T / HTTP/1.1\r\n", 400, "invalid_method"},
		{"\x16\x03\x01\x02\x00\x01", 400, "invalid_method"},
		{"GET\t/ HTTP/1.1\r\n", 400, "invalid_method"},
		{"GET  / HTTP/1.1\r\n", 400, "invalid_request_line"},
		{"GET /\r\n", 400, "invalid_request_line"},
		{"GET / \r\n\r\n", 400, "invalid_request_line"},
		{"GET / HTTP/1.1 \r\n", 400, "invalid_line_end"},
		{"GET /  HTTP/1.1\r\n", 400, "invalid_request_line"},
		{"GET / http/1.1\r\n", 400, "invalid_request_line"},
		{"GET / HTTP/1.1\n" + host + "\n", 400, "invalid_line_end"},
		{"GET / HTTP/11\r\n" + host, 400, "invalid_request_line"},
		{"GET / HTTP/1.10\r\n", 400, "invalid_line_end"},
		{"GET / HTTP/1.2\r\n" + host + "\r\n", 505, "unsupported_version"},
		{"GET / HTTP/2.0\r\n" + host + "\r\n", 505, "unsupported_version"},
		{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "unsupported_version"},
		{"GET / HTTP/0.9\r\n\r\n", 505, "unsupported_version"},
		{"INVALID CONNECTION PREFACE\r\n\r\n", 400, "not_http"},
		{"GET /a b HTTP/1.1\r\n", 400, "invalid_request_line"},
		{"GET /a\tb HTTP/1.1\r\n", 400, "invalid_url"},
		{"GET /a\x00b HTTP/1.1\r\n", 400, "invalid_url"},
		{"GET /a\x7fb HTTP/1.1\r\n", 400, "invalid_url"},
		{"GET /\xc3\xa9 HTTP/1.1\r\n", 400, "invalid_url"},
		{"GET /a#b HTTP/1.1\r\n", 400, "invalid_url"},
		{"GET a HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"GET * HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"OPTIONS *x HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"GET ftp://a/ HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_scheme"},
		{"GET http:///x HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"GET http://u@b/ HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"GET ://b/ HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"CONNECT / HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"CONNECT a HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"CONNECT a: HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"CONNECT a:99999 HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"CONNECT http://a:1 HTTP/1.1\r\n" + host + "\r\n", 400, "invalid_url"},
		{"GET /" + strings.Repeat("a", 17<<10) + " HTTP/1.1\r\n" + host + "\r\n", 414, "request_line_too_large"},
		{strings.Repeat("A", 17<<10), 414, "request_line_too_large"},
		// Host.
		{"GET / HTTP/1.1\r\n\r\n", 400, "missing_host"},
		{"GET / HTTP/1.1\r\n" + host + host + "\r\n", 400, "duplicate_host"},
		{"GET / HTTP/1.0\r\n" + host + host + "\r\n", 400, "duplicate_host"},
		{"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: a:b\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: [::1]x\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: [a]\r\n\r\n", 400, "invalid_host"},
		{"GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400, "invalid_host"},
		{"GET http://b/ HTTP/1.1\r\n\r\n", 400, "missing_host"},
		// Fields.
		{"GET / HTTP/1.1\r\n" + host + "A: b\n\r\n", 400, "invalid_line_end"},
		{"GET / HTTP/1.1\r\n" + host + "A: b\rC: d\r\n\r\n", 400, "invalid_line_end"},
		{"GET / HTTP/1.1\r\n" + host + "A: b\r\r\n\r\n", 400, "invalid_line_end"},
		{"GET / HTTP/1.1\r\n" + host + "\n", 400, "invalid_line_end"},
		{"GET / HTTP/1.1\r\n" + host + "\rX", 400, "invalid_line_end"},
		{"GET / HTTP/1.1\r\n" + host + "A: b\r\n c\r\n\r\n", 400, "obs_fold"},
		{"GET / HTTP/1.1\r\n" + host + "A: b\r\n\tc\r\n\r\n", 400, "obs_fold"},
		{"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400, "obs_fold"},
		{"GET / HTTP/1.1\r\n" + host + "A : b\r\n\r\n", 400, "invalid_header_name"},
		{"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "invalid_header_name"},
		{"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n", 400, "invalid_header_name"},
		{"GET / HTTP/1.1\r\n" + host + ": b\r\n\r\n", 400, "invalid_header_name"},
		{"GET / HTTP/1.1\r\n" + host + "A b: c\r\n\r\n", 400, "invalid_header_name"},
		{"GET / HTTP/1.1\r\n" + host + "A\x00b: c\r\n\r\n", 400, "invalid_header_name"},
		{"GET / HTTP/1.1\r\n" + host + "A(: c\r\n\r\n", 400, "invalid_header_name"},
		{"GET / HTTP/1.1\r\n" + host + "A\xe9: c\r\n\r\n", 400, "invalid_header_name"},
		{"GET / HTTP/1.1\r\n" + host + "novalue\r\n\r\n", 400, "invalid_header_name"},
		{"GET / HTTP/1.1\r\n" + host + "novalue\r\nA: b\r\n\r\n", 400, "invalid_header_name"},
		{"GET / HTTP/1.1\r\n" + host + "A: b\x00c\r\n\r\n", 400, "invalid_characters"},
		{"GET / HTTP/1.1\r\n" + host + "A: b\x0bc\r\n\r\n", 400, "invalid_characters"},
		{"GET / HTTP/1.1\r\n" + host + "A: b\x7f\r\n\r\n", 400, "invalid_characters"},
		{"GET / HTTP/1.1\r\n" + host + "A: \x1f\r\n\r\n", 400, "invalid_characters"},
		{"GET / HTTP/1.1\r\n" + strings.Repeat("A: b\r\n", 101) + "\r\n", 431, "too_many_headers"},
		{"GET / HTTP/1.1\r\n" + host + strings.Repeat("A: b\r\n", 100) + "\r\n", 431, "too_many_headers"},
		{"GET / HTTP/1.1\r\n" + host + "A: " + strings.Repeat("b", 60<<10) + "\r\n\r\n", 431, "headers_too_large"},
		{"GET / HTTP/1.1\r\n" + host + strings.Repeat("A: "+strings.Repeat("b", 1000)+"\r\n", 62), 431, "headers_too_large"},
		{"GET / HTTP/1.1\r\n" + host + strings.Repeat("b", 61<<10), 431, "headers_too_large"},
		// Lengths and codings: two answers to "where does it end?".
		{post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "content_length_and_chunked_not_allowed"},
		{post + "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n", 400, "content_length_and_chunked_not_allowed"},
		{post + "Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\n", 400, "content_length_and_chunked_not_allowed"},
		{post + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", 400, "duplicate_content_length"},
		{post + "Content-Length: 5\r\ncontent-length: 5\r\n\r\n", 400, "duplicate_content_length"},
		{post + "Content-Length: 5, 5\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length: +5\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length: -5\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length: 0x5\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length: 5 5\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length: 5_0\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length: 5.0\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length:\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length: \xef\xbc\x95\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length: 18446744073709551621\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length: 9223372036854775808\r\n\r\n", 400, "invalid_content_length"},
		{post + "Content-Length : 5\r\n\r\n", 400, "invalid_header_name"},
		{post + "Content-Length\x00: 5\r\n\r\n", 400, "invalid_header_name"},
		{post + "Transfer-Encoding: chunked, chunked\r\n\r\n", 400, "invalid_transfer_encoding"},
		{post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "invalid_transfer_encoding"},
		{post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", 400, "invalid_transfer_encoding"},
		{post + "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n\r\n", 501, "unknown_transfer_coding"},
		{post + "Transfer-Encoding: gzip, chunked\r\n\r\n", 501, "unknown_transfer_coding"},
		{post + "Transfer-Encoding: chunked, gzip\r\n\r\n", 400, "invalid_transfer_encoding"},
		{post + "Transfer-Encoding: gzip\r\n\r\n", 501, "unknown_transfer_coding"},
		{post + "Transfer-Encoding: xchunked\r\n\r\n", 501, "unknown_transfer_coding"},
		{post + "Transfer-Encoding: \"chunked\"\r\n\r\n", 400, "invalid_transfer_encoding"},
		{post + "Transfer-Encoding: chunked;q=1\r\n\r\n", 400, "invalid_transfer_encoding"},
		{post + "Transfer-Encoding: ,chunked\r\n\r\n", 400, "invalid_transfer_encoding"},
		{post + "Transfer-Encoding: chunked,\r\n\r\n", 400, "invalid_transfer_encoding"},
		{post + "Transfer-Encoding: chun\tked\r\n\r\n", 400, "invalid_transfer_encoding"},
		{post + "Transfer-Encoding:\r\n\r\n", 400, "invalid_transfer_encoding"},
		{post + "Transfer-Encoding:\x0bchunked\r\n\r\n", 400, "invalid_characters"},
		{post + "Transfer-Encoding\t: chunked\r\n\r\n", 400, "invalid_header_name"},
		{post + " Transfer-Encoding: chunked\r\n\r\n", 400, "obs_fold"},
		{post + "Transfer-Encoding:\r\n chunked\r\n\r\n", 400, "obs_fold"},
		{post + "X: y\nTransfer-Encoding: chunked\r\n\r\n", 400, "invalid_line_end"},
		{post + "X: y\rTransfer-Encoding: chunked\r\n\r\n", 400, "invalid_line_end"},
		{"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400, "transfer_encoding_not_allowed"},
		{"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n", 400, "transfer_encoding_not_allowed"},
	} {
		for _, cut := range []bool{false, true} {
			if cut && len(c.in) > 4<<10 {
				continue
			}
			var p RequestParser
			var r header.Request
			n, err := parseRequest(t, &p, &r, c.in, cut)
			if err == nil {
				t.Errorf("%.200q cut=%v: accepted, %d bytes: %s", c.in, cut, n, show(&r, p.Head))
				continue
			}
			if err.Status != c.status || err.Detail != "http1."+c.detail {
				t.Errorf("%.200q cut=%v: got %d %s, want %d http1.%s", c.in, cut, err.Status, err.Detail, c.status, c.detail)
			}
		}
	}
}

func TestLimitsOfARequest(t *testing.T) {
	limits := Limits{Line: 20, Bytes: 60, Fields: 2}
	for _, c := range []struct {
		in     string
		status int
	}{
		{"GET /3456789 HTTP/1.1\r\nHost: a\r\n\r\n", 414}, // a line of 21
		{"GET /345678 HTTP/1.1\r\nHost: a\r\n\r\n", 0},
		{"GET / HTTP/1.1\r\nHost: a\r\nB: " + strings.Repeat("x", 28) + "\r\n\r\n", 0}, // 60 bytes
		{"GET / HTTP/1.1\r\nHost: a\r\nB: " + strings.Repeat("x", 29) + "\r\n\r\n", 431},
		{"GET / HTTP/1.1\r\nHost: a\r\nB: c\r\n\r\n" + strings.Repeat("x", 100), 0},
		{"GET / HTTP/1.1\r\nHost: a\r\nB: c\r\nD: e\r\n\r\n", 431},
	} {
		for _, cut := range []bool{false, true} {
			p := RequestParser{Limits: &limits}
			var r header.Request
			_, err := parseRequest(t, &p, &r, c.in, cut)
			if (err == nil) != (c.status == 0) || (err != nil && err.Status != c.status) {
				t.Errorf("%q cut=%v: got %v, want %d", c.in, cut, err, c.status)
			}
		}
	}
}

// TestPipelinedRequests parses two requests from one piece, the second into the same Request.
func TestPipelinedRequests(t *testing.T) {
	const in = "GET /1 HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
	var p RequestParser
	var r header.Request
	n, err := p.Parse([]byte(in), &r)
	if err != nil || string(r.Path()) != "/1" || !p.Head.KeepAlive {
		t.Fatal(n, err, show(&r, p.Head))
	}
	if p.Started() {
		t.Error("started, between two requests")
	}
	m, err := p.Parse([]byte(in[n:]), &r)
	if err != nil || n+m != len(in) || show(&r, p.Head) != `GET |b|/2 HTTP/1.1 connection="close" 0/0` {
		t.Fatal(m, err, show(&r, p.Head))
	}
}

// TestSlowSenderIsLinear counts on the clock of the test binary: a quadratic parser takes minutes here.
func TestSlowSenderIsLinear(t *testing.T) {
	limits := Limits{Line: 1 << 20, Bytes: 4 << 20, Fields: 100}
	value := strings.Repeat("v", 1<<20)
	for _, in := range []string{
		"GET / HTTP/1.1\r\nHost: a\r\nA: " + value + "\r\n\r\n",
		"GET /" + value[:1<<19] + " HTTP/1.1\r\nHost: a\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("A"+value[:20000]+": b\r\n", 50) + "\r\n",
	} {
		p := RequestParser{Limits: &limits}
		var r header.Request
		data := []byte(in)
		for i := range data {
			n, err := p.Parse(data[:i+1], &r)
			if err != nil {
				t.Fatal(err)
			}
			if (n > 0) != (i+1 == len(data)) {
				t.Fatalf("%d of %d bytes: took %d", i+1, len(data), n)
			}
		}
	}
}

var typical = []byte("GET /static/images/logo-large.png?v=3f2a HTTP/1.1\r\n" +
	"Host: www.example.com\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n" +
	"Accept: image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5\r\n" +
	"Accept-Language: en-US,en;q=0.5\r\n" +
	"Accept-Encoding: gzip, deflate, br, zstd\r\n" +
	"Referer: http://www.example.com/index.html\r\n" +
	"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n" +
	"X-Custom-Trace: 7c9e6679f3a4\r\n\r\n")

func TestRequestsDoNotAllocate(t *testing.T) {
	var p RequestParser
	var r header.Request
	dst := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() {
		if n, err := p.Parse(typical, &r); err != nil || n != len(typical) {
			t.Fatal(n, err)
		}
		if err := StripHopByHop(&r.Block, false, Downstream); err != nil {
			t.Fatal(err)
		}
		r.SetString(header.XForwardedFor, "", "127.0.0.1")
		dst = AppendRequestHead(dst[:0], &r, RequestOptions{})
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkParseRequest(b *testing.B) {
	var p RequestParser
	var r header.Request
	b.SetBytes(int64(len(typical)))
	b.ReportAllocs()
	for b.Loop() {
		if n, err := p.Parse(typical, &r); err != nil || n != len(typical) {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkAppendRequestHead(b *testing.B) {
	var p RequestParser
	var r header.Request
	p.Parse(typical, &r)
	dst := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		dst = AppendRequestHead(dst[:0], &r, RequestOptions{})
	}
}

func FuzzRequest(f *testing.F) {
	f.Add(typical, uint16(7))
	f.Add([]byte("\r\nPOST http://a?b HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), uint16(20))
	f.Add([]byte("CONNECT a:1 HTTP/1.1\r\nHost: b\r\nConnection: a, upgrade\r\nUpgrade: x\r\n\r\n"), uint16(3))
	f.Add([]byte("GET / HTTP/1.0\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello"), uint16(1))
	f.Fuzz(func(t *testing.T, in []byte, cut uint16) {
		var whole, parts RequestParser
		var a, b header.Request
		n, err := whole.Parse(in, &a)
		// In pieces of any size the outcome is the same; an error may only come earlier.
		step := int(cut)%len(append(in, 0)) + 1
		var m int
		var perr *Error
		for end := 0; m == 0 && perr == nil; {
			end = min(end+step, len(in))
			m, perr = parts.Parse(in[:end], &b)
			if end == len(in) {
				break
			}
		}
		// A fault may be seen sooner or later, but no later than at the end of its line.
		if err != nil && perr == nil && m == 0 {
			_, perr = parts.Parse(append(in[:len(in):len(in)], "\r\n"...), &b)
		} else if perr != nil && err == nil && n == 0 {
			_, err = whole.Parse(append(in[:len(in):len(in)], "\r\n"...), &a)
		}
		if n != m || (err == nil) != (perr == nil) {
			t.Fatalf("%q: whole %d %v, in pieces of %d %d %v", in, n, err, step, m, perr)
		}
		if n == 0 {
			return
		}
		if x, y := show(&a, whole.Head), show(&b, parts.Head); x != y {
			t.Fatalf("%q: whole %s, in pieces %s", in, x, y)
		}
		// What was accepted is sent in a form that says the same.
		framing := RequestOptions{Framing: whole.Head.Framing, Length: whole.Head.Length}
		if StripHopByHop(&a.Block, false, Downstream) != nil {
			return
		}
		out := AppendRequestHead(nil, &a, framing)
		if len(a.Authority()) == 0 {
			return // HTTP/1.0 without Host: who sends it on must give it one
		}
		var again RequestParser
		again.Limits = &Limits{Line: 1 << 20, Bytes: 1 << 20, Fields: 1000}
		var c header.Request
		k, err := again.Parse(out, &c)
		if err != nil || k != len(out) {
			t.Fatalf("%q\nsent as %q: %d %v", in, out, k, err)
		}
		if string(c.Path()) != string(a.Path()) || string(c.Authority()) != string(a.Authority()) ||
			string(c.Method()) != string(a.Method()) || again.Head.Framing != framing.Framing || again.Head.Length != framing.Length {
			t.Fatalf("%q\nsent as %q: %s", in, out, show(&c, again.Head))
		}
	})
}
