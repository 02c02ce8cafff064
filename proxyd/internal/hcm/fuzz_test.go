package hcm

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/http1"
)

// FuzzServer sends bytes in pieces to the server codec, with an upstream that answers each connection once. Whatever comes, the
// client must be able to read what it gets as responses, one for each request that the access log knows, and nothing behind
// them.
func FuzzServer(f *testing.F) {
	for _, seed := range []string{
		get, get + get, "HEAD / HTTP/1.1\r\nHost: h\r\n\r\n" + get, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc" + get,
		"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n" + get,
		"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "GET / HTTP/1.0\r\n\r\n" + get,
		"POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab", "CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\nabc",
		"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nabc", "\r\n" + get, "GET /a/..;/ HTTP/1.1\r\nHost: h\r\n\r\n",
	} {
		f.Add([]byte(seed), uint8(0))
		f.Add([]byte(seed), uint8(5))
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint8) {
		x := newWorld(t, defaults())
		x.filter.Config.ServerName = "s"
		c := x.client()
		answered := 0
		step := func() {
			x.turn()
			answered += x.answer()
			x.turn()
			c.pull()
		}
		for piece := int(size) + 1; len(data) > 0 && !c.eof; {
			n := min(piece, len(data))
			if _, err := unix.Write(c.fd, data[:n]); err != nil {
				break
			}
			data = data[n:]
			step()
		}
		for range 20 {
			step()
		}
		checkResponses(t, x, c)
		c.close()
		x.turn()
	})
}

// answer accepts what the proxy dials and answers it once, then ends.
func (x *world) answer() int {
	n := 0
	for {
		fd, _, err := unix.Accept4(x.listen, unix.SOCK_CLOEXEC)
		if err != nil {
			return n
		}
		buf := make([]byte, 64<<10)
		for range 50 {
			x.worker.Turn(0)
			if n, _, _ := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT|unix.MSG_PEEK); n > 0 {
				break
			}
		}
		got, _, _ := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		reply := "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n"
		if !bytes.HasPrefix(buf[:max(got, 0)], []byte("HEAD ")) {
			reply += "hi"
		}
		_, _ = unix.Write(fd, []byte(reply))
		x.turn()
		unix.Close(fd)
		n++
	}
}

// checkResponses reads the client's bytes as responses in the order of the access log.
func checkResponses(t *testing.T, x *world, c *peer) {
	rest := c.got
	for _, line := range x.logged.lines {
		if line.status == 0 {
			continue // given up before an answer
		}
		var r header.Response
		p := http1.ResponseParser{}
		n, failed := p.Parse(rest, &r, line.method)
		if failed != nil || n == 0 {
			t.Fatalf("%q is not the response %d", rest, line.status)
		}
		if r.Status != line.status {
			t.Fatalf("the client got %d where the log says %d", r.Status, line.status)
		}
		rest = rest[n:]
		var body http1.BodyDecoder
		var trailers header.Block
		body.Init(&p.Head, &trailers, nil, http1.Upstream)
		for !body.Done() {
			_, n, _, failed := body.Decode(rest)
			if failed != nil || n == 0 {
				if body.Finish() == nil || line.flags != "-" {
					return // ends with its connection, or was cut
				}
				t.Fatalf("the body of %d does not end: %q", line.status, rest)
			}
			rest = rest[n:]
		}
	}
	if len(rest) > 0 && len(x.logged.lines) > 0 && x.filter.Active() == 0 {
		t.Fatalf("%q came behind the last response", rest)
	}
}
