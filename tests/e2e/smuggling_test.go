package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/http2"

	"retinue.dev/tests/suite"
)

// witness is an upstream of both protocols that remembers what it was asked for, and answers as the test says.
type witness struct {
	mu      sync.Mutex
	asked   []string
	head    string    // of HTTP/1, all of it; "" for the usual
	fields  []byte    // of HTTP/2
	tail    string    // of HTTP/1, behind the usual head and a chunk: the rest of the body
	trailer []byte    // of HTTP/2
	body    [2]string // of HTTP/2: in two frames
}

const usualHead = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

func (w *witness) says(change func(w *witness)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.head, w.tail, w.fields, w.trailer, w.body = "", "", nil, nil, [2]string{}
	if change != nil {
		change(w)
	}
}

func (w *witness) note(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, what)
}

// begun is the path of requests whose heads are good and which fail later: the upstream may hear of them, at any time.
const begun = "/begun"

// took is what it was asked for since, but for what was begun.
func (w *witness) took() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.DeleteFunc(w.asked, func(what string) bool { return strings.HasSuffix(what, " "+begun) })
	w.asked = nil
	return strings.Join(all, " ")
}

func (w *witness) http1(c net.Conn) {
	in := bufio.NewReader(c)
	for {
		request, err := http.ReadRequest(in)
		if err != nil {
			if err != io.EOF {
				w.note(fmt.Sprint("what is no request: ", err))
			}
			return
		}
		w.note(request.Method + " " + request.RequestURI)
		if _, err := io.Copy(io.Discard, request.Body); err != nil { // it was cut, as it should be
			return
		}
		w.mu.Lock()
		head, tail := w.head, w.tail
		w.mu.Unlock()
		switch {
		case head != "":
			_, _ = io.WriteString(c, head)
		case tail != "":
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n2\r\nok\r\n"+tail)
		default:
			_, _ = io.WriteString(c, usualHead)
			continue
		}
		_, _ = io.Copy(io.Discard, c) // what follows would be a guess
		return
	}
}

func (w *witness) http2(r *raw) {
	for {
		x, err := r.hear()
		if err != nil {
			return
		}
		if x.kind == http2.FrameHeaders && x.fields[":method"] != "" {
			w.note(x.fields[":method"] + " " + x.fields[":path"])
		}
		if !x.end {
			continue
		}
		w.mu.Lock()
		head, trailer, body := w.fields, w.trailer, w.body
		w.mu.Unlock()
		switch {
		case body != [2]string{}:
			r.head(x.stream, false, head)
			_ = r.WriteData(x.stream, false, []byte(body[0]))
			_ = r.WriteData(x.stream, true, []byte(body[1]))
		case head != nil:
			r.head(x.stream, true, head)
		default:
			r.head(x.stream, false, fields(":status", "200", "trailer", "x"))
			_ = r.WriteData(x.stream, trailer == nil, []byte("ok"))
			if trailer != nil {
				r.head(x.stream, true, trailer)
			}
		}
	}
}

// badFields are fields that mean something else on an HTTP/1 connection, or nothing: no message of HTTP/2 may have them.
var badFields = map[string][]string{
	"CR LF in a value":          {"x", "1\r\nx-admin: 1"},
	"CR in a value":             {"x", "1\rx-admin: 1"},
	"LF in a value":             {"x", "1\nx-admin: 1"},
	"a request in a value":      {"x", "1\r\n\r\nGET /admin HTTP/1.1\r\nHost: a\r\n\r\n"},
	"NUL in a value":            {"x", "1\x002"},
	"a space before a value":    {"x", " 1"},
	"a space behind a value":    {"x", "1 "},
	"a colon in a name":         {"x: 1", "1"},
	"a colon behind a name":     {"transfer-encoding:", "chunked"},
	"a line in a name":          {"x: 1\r\nx-admin", "1"},
	"CR in a name":              {"x\ry", "1"},
	"LF in a name":              {"x\ny", "1"},
	"NUL in a name":             {"x\x00", "1"},
	"a space in a name":         {"x y", "1"},
	"a space behind a name":     {"transfer-encoding ", "chunked"},
	"an upper-case name":        {"X-Up", "1"},
	"a name beyond ASCII":       {"x\xff", "1"},
	"no name":                   {"", "1"},
	"an unknown pseudo-header":  {":other", "1"},
	"connection":                {"connection", "x"},
	"keep-alive":                {"keep-alive", "1"},
	"proxy-connection":          {"proxy-connection", "close"},
	"transfer-encoding":         {"transfer-encoding", "chunked"},
	"upgrade":                   {"upgrade", "websocket"},
	"two lengths":               {"content-length", "0", "content-length", "1"},
	"a list of lengths":         {"content-length", "0, 1"},
	"a length that is none":     {"content-length", "+0"},
	"a length in another base":  {"content-length", "0x0"},
	"a length without any end":  {"content-length", "99999999999999999999"},
	"a length that is not kept": {"content-length", "5"},
}

// badRequests are whole header sections of requests.
var badRequests = map[string][]string{
	"no method":                     {":scheme", "http", ":authority", "a", ":path", "/"},
	"no path":                       {":method", "GET", ":scheme", "http", ":authority", "a"},
	"no scheme":                     {":method", "GET", ":authority", "a", ":path", "/"},
	"an empty path":                 {":method", "GET", ":scheme", "http", ":authority", "a", ":path", ""},
	"two paths":                     {":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/", ":path", "/admin"},
	"two methods":                   {":method", "GET", ":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/"},
	"two authorities":               {":method", "GET", ":scheme", "http", ":authority", "a", ":authority", "b", ":path", "/"},
	"a pseudo-header behind others": {":method", "GET", ":scheme", "http", ":authority", "a", "x", "1", ":path", "/"},
	"a status":                      {":status", "200", ":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"},
	"a line in the path":            {":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/ HTTP/1.1\r\nx-admin: 1\r\nx:"},
	"a space in the path":           {":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/a b"},
	"NUL in the path":               {":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/a\x00"},
	"no slash before the path":      {":method", "GET", ":scheme", "http", ":authority", "a", ":path", "admin"},
	"a line in the method":          {":method", "GET /admin HTTP/1.1\r\nx:", ":scheme", "http", ":authority", "a", ":path", "/"},
	"a space in the method":         {":method", "GET /admin", ":scheme", "http", ":authority", "a", ":path", "/"},
	"a line in the authority":       {":method", "GET", ":scheme", "http", ":authority", "a\r\nx-admin: 1", ":path", "/"},
	"a user in the authority":       {":method", "GET", ":scheme", "http", ":authority", "user@a", ":path", "/"},
	"another host":                  {":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/", "host", "b"},
	"two hosts":                     {":method", "GET", ":scheme", "http", ":path", "/", "host", "a", "host", "b"},
	"a protocol without CONNECT":    {":method", "GET", ":protocol", "websocket", ":scheme", "http", ":authority", "a", ":path", "/"},
	"te that is not for trailers":   {":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/", "te", "gzip"},
}

// badHTTP1 are requests of HTTP/1, of which a part would be something else on the other side.
var badHTTP1 = map[string]string{
	"a pseudo-header":                "GET / HTTP/1.1\r\nHost: a\r\n:path: /admin\r\n\r\n",
	"an authority":                   "GET / HTTP/1.1\r\nHost: a\r\n:authority: b\r\n\r\n",
	"a space before the colon":       "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
	"a line that is folded":          "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n",
	"bare LF":                        "GET / HTTP/1.1\nHost: a\n\n",
	"LF in a value":                  "GET / HTTP/1.1\r\nHost: a\r\nX: 1\nX-Admin: 1\r\n\r\n",
	"CR in a value":                  "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rX-Admin: 1\r\n\r\n",
	"NUL in a value":                 "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x00\r\n\r\n",
	"NUL in a name":                  "GET / HTTP/1.1\r\nHost: a\r\nX\x00: 1\r\n\r\n",
	"no name":                        "GET / HTTP/1.1\r\nHost: a\r\n: 1\r\n\r\n",
	"no colon":                       "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
	"two hosts":                      "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
	"no host":                        "GET / HTTP/1.1\r\n\r\n",
	"a space in the target":          "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
	"CR in the target":               "GET /a\r HTTP/1.1\r\nHost: a\r\n\r\n",
	"NUL in the target":              "GET /a\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
	"a user in the host":             "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
	"both lengths":                   "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"two lengths":                    "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
	"a length that is none":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
	"a coding behind chunked":        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
	"chunked twice":                  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"chunked in HTTP/1.0":            "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"Connection that names Host":     "GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n",
	"the preface where none belongs": "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}

// badBodies are bodies of chunks with something wrong in or behind them.
var badBodies = map[string]string{
	"a size in another base":   "0x2\r\nok\r\n0\r\n\r\n",
	"a size with a sign":       "+2\r\nok\r\n0\r\n\r\n",
	"a size without an end":    "fffffffffffffffff\r\nok\r\n0\r\n\r\n",
	"bare LF behind a size":    "2\nok\r\n0\r\n\r\n",
	"bare LF behind a chunk":   "2\r\nok\n0\r\n\r\n",
	"CR in an extension":       "2;a\rb\r\nok\r\n0\r\n\r\n",
	"a longer chunk":           "2\r\noklong\r\n0\r\n\r\n",
	"a pseudo-header behind":   "2\r\nok\r\n0\r\n:path: /admin\r\n\r\n",
	"a space before the colon": "2\r\nok\r\n0\r\nX : 1\r\n\r\n",
	"LF in a trailer":          "2\r\nok\r\n0\r\nX: 1\nY: 2\r\n\r\n",
	"CR in a trailer":          "2\r\nok\r\n0\r\nX: 1\rY: 2\r\n\r\n",
	"NUL in a trailer":         "2\r\nok\r\n0\r\nX: 1\x00\r\n\r\n",
	"a trailer that is folded": "2\r\nok\r\n0\r\nX: 1\r\n 2\r\n\r\n",
}

// badHeads are heads of answers of HTTP/1.
var badHeads = map[string]string{
	"a pseudo-header":          "HTTP/1.1 200 OK\r\n:status: 204\r\nContent-Length: 0\r\n\r\n",
	"a space before the colon": "HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n",
	"CR in a value":            "HTTP/1.1 200 OK\r\nX: 1\rSet-Cookie: a\r\nContent-Length: 0\r\n\r\n",
	"NUL in a value":           "HTTP/1.1 200 OK\r\nX: 1\x00\r\nContent-Length: 0\r\n\r\n",
	"a line that is folded":    "HTTP/1.1 200 OK\r\nX: 1\r\n 2\r\nContent-Length: 0\r\n\r\n",
	"no colon":                 "HTTP/1.1 200 OK\r\nX\r\nContent-Length: 0\r\n\r\n",
	"both lengths":             "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"two lengths":              "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nContent-Length: 5\r\n\r\n",
	"a status of two digits":   "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
	"another protocol":         "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
	"101 that nobody wanted":   "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
}

// badAnswers are whole header sections of answers of HTTP/2.
var badAnswers = map[string][]string{
	"no status":                    {"content-length", "0"},
	"two statuses":                 {":status", "200", ":status", "204"},
	"a status behind others":       {"x", "1", ":status", "200"},
	"a status of two digits":       {":status", "20"},
	"a status with a line":         {":status", "200\r\nx: 1"},
	"a path":                       {":status", "200", ":path", "/"},
	"101":                          {":status", "101"},
	"an interim answer at the end": {":status", "103"},
}

// TestNothingIsSmuggled sends what one protocol can say and the other would take for something else, through every pair of them and in both
// directions: it is refused, and nothing of it gets to the other side.
func TestNothingIsSmuggled(t *testing.T) {
	w := &witness{}
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
listener "one" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.one }
    }
  }
}
listener "two" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.two }
    }
  }
}
cluster "one" { endpoints = [%q] }
cluster "two" {
  endpoints = [%q]
  protocol  = "http2"
}
stats { listen = "off" }
`, suite.Upstream(t, w.http1), rawServer(t, nil, w.http2)))
	for _, listener := range []string{"one", "two"} {
		address := s.Address(listener)
		var c *raw
		id := uint32(0)
		// open begins a stream, on a connection that is dialled when there is none or it has had its part of faults.
		open := func(sub *testing.T) uint32 {
			if c == nil || id > 150 {
				if c != nil {
					c.Close()
				}
				c, id = dialRaw(t, address, nil), ^uint32(0)
			}
			c.t = sub
			id += 2
			return id
		}
		refused := func(t *testing.T, id uint32) {
			t.Helper()
			want := fmt.Sprintf("RST(%d,PROTOCOL_ERROR)", id)
			c.until(want, func(x told) bool { return x.String() == want })
			if took := w.took(); took != "" {
				t.Errorf("the upstream was asked for %s", took)
			}
		}
		http1 := func(t *testing.T, text string) (*http.Response, string, error) {
			t.Helper()
			conn := dial(t, address)
			defer conn.Close()
			write(t, conn, text)
			response, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				return nil, "", err
			}
			body, err := io.ReadAll(response.Body)
			return response, string(body), err
		}
		requests := map[string][]string{}
		for name, block := range badRequests {
			requests[name] = block
		}
		for name, bad := range badFields {
			requests[name] = append([]string{":method", "GET", ":scheme", "http", ":authority", "a", ":path", "/"}, bad...)
		}
		for name, block := range requests {
			t.Run(listener+"/request of HTTP 2/"+name, func(t *testing.T) {
				id := open(t)
				c.head(id, true, fields(block...))
				refused(t, id)
			})
		}
		for name, bad := range badFields {
			if strings.Contains(name, "length") {
				continue // in trailers it has no meaning, and is no length
			}
			t.Run(listener+"/trailers of HTTP 2/"+name, func(t *testing.T) {
				id := open(t)
				c.head(id, false, get(begun, "trailer", "x"))
				_ = c.WriteData(id, false, []byte("body"))
				c.head(id, true, fields(bad...))
				want := fmt.Sprintf("RST(%d,PROTOCOL_ERROR)", id)
				c.until(want, func(x told) bool { return x.String() == want })
				if took := w.took(); took != "" {
					t.Errorf("the upstream was asked for %s", took)
				}
			})
		}
		for name, text := range badHTTP1 {
			t.Run(listener+"/request of HTTP 1/"+name, func(t *testing.T) {
				w.took()
				response, _, err := http1(t, text)
				took := w.took()
				if strings.HasPrefix(name, "the preface") { // the first is a request like any other, and what follows is none
					if err != nil || response.StatusCode != 200 || took != "GET /" {
						t.Errorf("%v, and the upstream was asked for %s", err, took)
					}
					return
				}
				if err != nil || response.StatusCode != 400 && response.StatusCode != 501 {
					t.Errorf("%+v %v", response, err)
				}
				if took != "" {
					t.Errorf("the upstream was asked for %s", took)
				}
			})
		}
		for name, body := range badBodies {
			t.Run(listener+"/body of HTTP 1/"+name, func(t *testing.T) {
				w.took()
				response, _, err := http1(t, "POST "+begun+" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n"+body+"GET /admin HTTP/1.1\r\nHost: a\r\n\r\n")
				if err != nil || response.StatusCode != 400 {
					t.Errorf("%+v %v", response, err)
				}
				if took := w.took(); took != "" {
					t.Errorf("the upstream was asked for %s", took)
				}
			})
		}

		answers := map[string]func(w *witness){}
		parts := map[string]func(w *witness){}
		if listener == "one" {
			for name, head := range badHeads {
				answers[name] = func(w *witness) { w.head = head }
			}
			for name, body := range badBodies {
				parts[name] = func(w *witness) { w.tail = body }
			}
		} else {
			for name, block := range badAnswers {
				answers[name] = func(w *witness) { w.fields = fields(block...) }
			}
			for name, bad := range badFields {
				answers[name] = func(w *witness) { w.fields = fields(append([]string{":status", "200"}, bad...)...) }
				if !strings.Contains(name, "length") {
					parts[name] = func(w *witness) { w.trailer = fields(bad...) }
				}
			}
			parts["a pseudo-header in trailers"] = func(w *witness) { w.trailer = fields(":status", "200") }
			parts["more than Content-Length"] = func(w *witness) {
				w.fields, w.body = fields(":status", "200", "content-length", "4"), [2]string{"ok", "long"}
			}
			parts["less than Content-Length"] = func(w *witness) {
				w.fields, w.body = fields(":status", "200", "content-length", "9"), [2]string{"ok", "long"}
			}
		}
		for name, says := range answers {
			t.Run(listener+"/answer/"+name, func(t *testing.T) {
				w.says(says)
				defer w.says(nil)
				if response, _, err := http1(t, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"); err != nil || response.StatusCode != 502 || response.Header.Get("X-Admin") != "" {
					t.Errorf("HTTP/1: %+v %v", response, err)
				}
				id := open(t)
				c.head(id, true, fields(":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/"))
				if head, _ := c.answer(id); head.fields[":status"] != "502" || head.fields["x-admin"] != "" {
					t.Errorf("HTTP/2: %v", head.fields)
				}
			})
		}
		for name, says := range parts {
			t.Run(listener+"/answer with a bad end/"+name, func(t *testing.T) {
				w.says(says)
				defer w.says(nil)
				if response, body, err := http1(t, "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"); err == nil && response.StatusCode == 200 {
					t.Errorf("HTTP/1: %q is taken for the whole, trailers %v", body, response.Trailer)
				}
				id := open(t)
				c.head(id, true, fields(":method", "POST", ":scheme", "http", ":authority", "a", ":path", "/"))
				for end := false; !end; {
					x := c.until("an end", func(x told) bool { return x.stream == id })
					if end = x.kind == http2.FrameRSTStream || x.kind == http2.FrameHeaders && x.fields[":status"] == "502"; !end && x.end {
						t.Fatalf("HTTP/2: it is taken for the whole")
					}
				}
			})
		}
		t.Run(listener+"/and all goes on", func(t *testing.T) {
			w.took()
			id := open(t)
			c.head(id, true, get("/good"))
			if head, body := c.answer(id); head.fields[":status"] != "200" || body != "ok" || w.took() != "GET /good" {
				t.Errorf("%v %q", head.fields, body)
			}
		})
	}
}
