package http1

import (
	"strings"
	"testing"

	"retinue.dev/proxyd/internal/header"
)

// request makes a request out of "name: value" lines.
func request(method, authority, path string, lines ...string) *header.Request {
	r := new(header.Request)
	r.SetMethod([]byte(method))
	r.SetAuthority([]byte(authority))
	r.SetPath([]byte(path))
	add(&r.Block, lines)
	return r
}

func add(b *header.Block, lines []string) {
	for _, line := range lines {
		name, value, _ := strings.Cut(line, ": ")
		b.AddString(header.Other, name, value)
	}
}

func TestAppendRequestHead(t *testing.T) {
	for _, c := range []struct {
		r    *header.Request
		o    RequestOptions
		want string
	}{
		{
			request("GET", "a:80", "/x?y", "accept: */*", "x-foo-bar: 1", "te: trailers"),
			RequestOptions{},
			"GET /x?y HTTP/1.1\r\nHost: a:80\r\nAccept: */*\r\nX-Foo-Bar: 1\r\nTE: trailers\r\nConnection: te\r\n\r\n",
		},
		{
			request("GET", "a", "/", "content-length: 5", "transfer-encoding: chunked", "host: evil", "connection: x", "keep-alive: 1", "trailer: t"),
			RequestOptions{},
			"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
		},
		{request("POST", "a", "/"), RequestOptions{}, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"},
		{
			request("POST", "a", "/", "content-length: 5"),
			RequestOptions{Framing: Length, Length: 7, Connection: ConnClose},
			"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\nConnection: close\r\n\r\n",
		},
		{
			request("POST", "a", "/", "content-length: 5", "trailer: x"),
			RequestOptions{Framing: Chunked},
			"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n",
		},
		{
			request("GET", "a", "/", "upgrade: websocket"),
			RequestOptions{Connection: ConnUpgrade},
			"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
		},
		{request("GET", "a", "/", "upgrade: websocket"), RequestOptions{}, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"},
		{request("CONNECT", "a:443", ""), RequestOptions{}, "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"},
		{request("PURGE", "a", ""), RequestOptions{}, "PURGE / HTTP/1.1\r\nHost: a\r\n\r\n"},
	} {
		if got := string(AppendRequestHead([]byte("x"), c.r, c.o)); got != "x"+c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}

func TestAppendResponseHead(t *testing.T) {
	date := []byte("now")
	for _, c := range []struct {
		status int
		reason string
		lines  []string
		o      ResponseOptions
		want   string
	}{
		{
			200, "",
			[]string{"content-type: a", "content-length: 9"},
			ResponseOptions{Framing: Length, Length: 3, Date: date},
			"HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Length: 3\r\nDate: now\r\n\r\n",
		},
		{
			200, "OK",
			[]string{"date: then"},
			ResponseOptions{Date: date},
			"HTTP/1.1 200 OK\r\nDate: then\r\nContent-Length: 0\r\n\r\n",
		},
		{
			200, "Fine", nil,
			ResponseOptions{Framing: Chunked, Connection: ConnClose},
			"HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
		},
		{
			200, "",
			[]string{"connection: x", "transfer-encoding: chunked", "upgrade: h2c"},
			ResponseOptions{Framing: UntilClose, Connection: ConnClose},
			"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
		},
		{200, "", []string{"content-length: 9"}, ResponseOptions{Head: true}, "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"},
		{200, "", nil, ResponseOptions{Head: true}, "HTTP/1.1 200 OK\r\n\r\n"},
		{304, "", []string{"content-length: 9"}, ResponseOptions{}, "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"},
		{204, "", []string{"content-length: 9"}, ResponseOptions{Date: date}, "HTTP/1.1 204 No Content\r\nDate: now\r\n\r\n"},
		{103, "", []string{"link: x"}, ResponseOptions{Date: date}, "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"},
		{
			101, "",
			[]string{"upgrade: websocket"},
			ResponseOptions{Framing: Tunnel, Connection: ConnUpgrade},
			"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
		},
		{200, "", nil, ResponseOptions{Framing: Tunnel}, "HTTP/1.1 200 OK\r\n\r\n"},
		{200, "", nil, ResponseOptions{Connection: ConnKeepAlive}, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n"},
		{599, "", nil, ResponseOptions{}, "HTTP/1.1 599 \r\nContent-Length: 0\r\n\r\n"},
		{999, "Odd", nil, ResponseOptions{}, "HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"},
	} {
		r := header.Response{Status: c.status}
		r.SetReason([]byte(c.reason))
		add(&r.Block, c.lines)
		if got := string(AppendResponseHead([]byte("x"), &r, c.o)); got != "x"+c.want {
			t.Errorf("got  %q\nwant %q", got, c.want)
		}
	}
}

func TestAppendChunks(t *testing.T) {
	var trailers header.Block
	add(&trailers, []string{"grpc-status: 0", "content-length: 5", "transfer-encoding: x", "x-y: z"})
	out := AppendChunk(nil, make([]byte, 0x1a))
	if !strings.HasPrefix(string(out), "1a\r\n") || len(out) != 4+0x1a+2 {
		t.Errorf("%q", out)
	}
	if got := AppendChunk(nil, nil); len(got) != 0 {
		t.Errorf("an empty chunk is %q", got)
	}
	if got, want := string(AppendLastChunk(nil, &trailers)), "0\r\nGrpc-Status: 0\r\nX-Y: z\r\n\r\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := string(AppendLastChunk(nil, nil)); got != "0\r\n\r\n" {
		t.Errorf("got %q", got)
	}
}

func TestStripHopByHop(t *testing.T) {
	for _, c := range []struct {
		lines   []string
		upgrade bool
		want    string // "!" is refused
	}{
		{[]string{"a: b"}, false, `a="b";`},
		{[]string{"connection: close", "keep-alive: 5", "proxy-connection: x", "transfer-encoding: chunked", "upgrade: h2c", "http2-settings: x", "te: gzip", "trailer: a", "a: b"}, false, `trailer="a";a="b";`},
		{[]string{"te: gzip, Trailers", "te: trailers"}, false, `te="trailers";`},
		{[]string{"connection: te", "te: trailers"}, false, `te="trailers";`},
		{[]string{"connection: upgrade", "upgrade: websocket", "a: b"}, true, `upgrade="websocket";a="b";`},
		{[]string{"x-a: 1", "connection: X-B, x-a", "x-b: 2", "x-c: 3", "connection: x-c,,x-d", "x-d: 4", "x-e: 5"}, false, `x-e="5";`},
		{[]string{"x-a: 1", "x-a: 2", "connection: x-a", "connection: accept", "accept: y", "x-b: 3"}, false, `x-b="3";`},
		{[]string{"connection: close, X-Forwarded-For", "x-forwarded-for: 1"}, false, "!"},
		{[]string{"connection: host"}, false, "!"},
		{[]string{"connection: content-length"}, false, "!"},
		{[]string{"connection: Transfer-Encoding", "transfer-encoding: chunked", "a: b"}, false, `a="b";`},
		{[]string{"connection: authorization"}, false, "!"},
		{[]string{"connection: :path"}, false, "!"},
		{[]string{"connection: a b"}, false, "!"},
		{[]string{"connection: " + strings.Repeat("a,", 33)}, false, "!"},
		{[]string{"connection: " + strings.Repeat("a,", 32)}, false, ""},
	} {
		var b header.Block
		add(&b, c.lines)
		err := StripHopByHop(&b, c.upgrade, Downstream)
		if c.want == "!" {
			if err == nil || err.Status != 400 || err.Detail != "http1.connection_header_rejected" {
				t.Errorf("%q: got %v", c.lines, err)
			}
			continue
		}
		if got := showBlock(&b); err != nil || got != c.want {
			t.Errorf("%q: got %s %v, want %s", c.lines, got, err, c.want)
		}
	}
}
