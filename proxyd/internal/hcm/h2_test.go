package hcm

import (
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/hpack"
	"retinue.dev/proxyd/internal/http2"
	"retinue.dev/proxyd/internal/http2frame"
	"retinue.dev/proxyd/internal/poller/simulated"
	configv1 "retinue.dev/services/api/config/v1"
)

// h2Client is the test's end of a client's connection of HTTP/2.
type h2Client struct {
	*sim
	peer    *simulated.Peer
	encoder hpack.Encoder
	decoder hpack.Decoder
}

func (s *sim) h2() *h2Client {
	c := &h2Client{sim: s, peer: s.client()}
	c.encoder.Init()
	c.decoder.Init(hpack.DefaultTableSize)
	c.send([]byte(http2frame.Preface), http2frame.AppendSettings(nil))
	c.want("SETTINGS WINDOW_UPDATE(0) SETTINGS+ACK")
	return c
}

func (c *h2Client) send(frames ...[]byte) {
	for _, f := range frames {
		c.peer.Send(f)
	}
	c.turn()
}

// head is a HEADERS frame. Fields with a colon in front replace the request's own.
func (c *h2Client) head(id uint32, end bool, fields ...string) []byte {
	pseudo := map[string]string{":method": "GET", ":scheme": "http", ":authority": "h", ":path": "/"}
	var regular []byte
	for i := 0; i+1 < len(fields); i += 2 {
		if strings.HasPrefix(fields[i], ":") {
			pseudo[fields[i]] = fields[i+1]
			continue
		}
		regular = literal(regular, fields[i], fields[i+1])
	}
	p, at := http2frame.BeginHeaders(nil)
	for _, name := range []string{":method", ":scheme", ":authority", ":path", ":protocol"} {
		if v, ok := pseudo[name]; ok && v != "" {
			p = literal(p, name, v)
		}
	}
	return http2frame.EndHeaderBlock(append(p, regular...), at, id, end, http2frame.DefaultMaxFrameSize)
}

// literal appends a field without index and without Huffman code.
func literal(dst []byte, name, value string) []byte {
	dst = append(dst, 0)
	for _, s := range []string{name, value} {
		if len(s) < 127 {
			dst = append(dst, byte(len(s)))
		} else {
			dst = append(dst, 127)
			n := len(s) - 127
			for ; n >= 128; n >>= 7 {
				dst = append(dst, byte(n)|128)
			}
			dst = append(dst, byte(n))
		}
		dst = append(dst, s...)
	}
	return dst
}

func frameData(id uint32, text string, end bool) []byte {
	return append(http2frame.AppendDataHeader(nil, id, len(text), end), text...)
}

// received is what came, a word a frame.
func (c *h2Client) received() string {
	var words []string
	for p := c.peer.ReceiveAll(); len(p) > 0; {
		h, _ := http2frame.ParseHeader(p)
		body := p[http2frame.HeaderLen : http2frame.HeaderLen+int(h.Length)]
		p = p[http2frame.HeaderLen+int(h.Length):]
		end, ack := "", ""
		if h.Has(http2frame.EndStream) {
			end, ack = ".", "+ACK"
		}
		switch h.Type {
		case http2frame.Data:
			words = append(words, fmt.Sprintf("DATA(%d,%s%s)", h.StreamID, body, end))
		case http2frame.Headers:
			var r header.Response
			if _, err := c.decoder.Response(body, &r, &hpack.DefaultLimits); err != nil {
				words = append(words, fmt.Sprintf("TRAILERS(%d%s)", h.StreamID, end))
				continue
			}
			words = append(words, fmt.Sprintf("%d(%d%s)", r.Status, h.StreamID, end))
		case http2frame.RSTStream:
			words = append(words, fmt.Sprintf("RST(%d,%v)", h.StreamID, http2frame.ParseRSTStream(body)))
		case http2frame.Settings:
			words = append(words, "SETTINGS"+ack)
		case http2frame.Ping:
			words = append(words, "PING"+ack)
		case http2frame.GoAway:
			last, code, debug := http2frame.ParseGoAway(body)
			words = append(words, fmt.Sprintf("GOAWAY(%d,%v,%s)", last, code, debug))
		case http2frame.WindowUpdate:
			words = append(words, fmt.Sprintf("WINDOW_UPDATE(%d)", h.StreamID))
		}
	}
	return strings.Join(words, " ")
}

// pass moves the clock and lets timers fire.
func (c *h2Client) pass(d time.Duration) {
	c.net.Advance(int64(d))
	c.turn()
}

func (c *h2Client) want(frames string) {
	c.t.Helper()
	c.turn()
	if got := c.received(); got != frames {
		c.t.Errorf("the client got %s\nwant %s", got, frames)
	}
}

func (c *h2Client) wantUpstream(request string) {
	c.t.Helper()
	c.turn()
	if got := string(c.backlog.Last().ReceiveAll()); got != request {
		c.t.Errorf("the upstream got %q\nwant %q", got, request)
	}
}

const forwardedProto = "X-Forwarded-For: 198.51.100.7\r\nX-Forwarded-Proto: http\r\n"

func TestHTTP2ToHTTP1(t *testing.T) {
	c := newSim(t, defaults()).h2()
	c.send(c.head(1, false, ":method", "POST", ":path", "/a?b", "x-one", "1", "te", "trailers"), frameData(1, "hel", false), frameData(1, "lo", true))
	c.wantUpstream("POST /a?b HTTP/1.1\r\nHost: h\r\nX-One: 1\r\n" + forwardedProto + "Transfer-Encoding: chunked\r\nTE: trailers\r\nConnection: te\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
	c.backlog.Last().Send([]byte("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: keep-alive, x\r\nX: 1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"))
	c.want("100(1) 200(1) DATA(1,ok) TRAILERS(1.)")
	if l := c.last(); l.status != 200 || l.received != 5 || l.sent != 2 {
		t.Errorf("logged %+v", l)
	}
	if c.http[counters.HTTPDownstreamRqHTTP2Total] != 1 || c.http[counters.HTTPDownstreamCxHTTP2Total] != 1 {
		t.Error("the request or its connection is not counted as one of HTTP/2")
	}
}

// TestHTTP2Smuggling sends what would be something else on an HTTP/1 connection: it ends here, and none of it goes upstream.
func TestHTTP2Smuggling(t *testing.T) {
	for name, fields := range map[string][]string{
		"CR LF in a value":              {"x", "1\r\nTransfer-Encoding: chunked"},
		"LF in a value":                 {"x", "1\nx: 2"},
		"NUL in a value":                {"x", "1\x00"},
		"a colon in a name":             {"x:y", "1"},
		"a line in a name":              {"x: 1\r\ny", "1"},
		"a space in a name":             {"x y", "1"},
		"an upper-case name":            {"X-One", "1"},
		"Transfer-Encoding":             {"transfer-encoding", "chunked"},
		"Connection":                    {"connection", "close"},
		"Upgrade":                       {"upgrade", "websocket"},
		"two lengths":                   {"content-length", "1", "content-length", "2"},
		"a length that is none":         {"content-length", "+1"},
		"a length that nothing follows": {"content-length", "5"},
		"a line in the path":            {":path", "/ HTTP/1.1\r\nX: 1"},
		"a space in the path":           {":path", "/a b"},
		"a space in the method":         {":method", "GET /"},
		"a line in the authority":       {":authority", "h\r\nX: 1"},
		"another Host":                  {"host", "other"},
		"an unknown pseudo-header":      {":other", "1"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newSim(t, defaults()).h2()
			frame := c.head(1, true, fields...)
			if name == "an unknown pseudo-header" {
				p, at := http2frame.BeginHeaders(nil)
				frame = http2frame.EndHeaderBlock(literal(append(p, 0x82, 0x86, 0x84), ":other", "1"), at, 1, true, 16384)
			}
			c.send(frame)
			c.want("RST(1,PROTOCOL_ERROR)")
			if l := c.last(); l.flags != "DPE" || !strings.HasPrefix(l.details, "http2.") {
				t.Errorf("logged %+v", l)
			}
			if len(c.backlog.Peers) != 0 {
				t.Errorf("the upstream got %q", c.backlog.Last().ReceiveAll())
			}
			if c.http.HTTP2()[http2.RxMessagingError] != 1 {
				t.Error("it is not counted")
			}
		})
	}
}

func TestHTTP2Refused(t *testing.T) {
	many := []string{}
	for i := range 101 {
		many = append(many, fmt.Sprintf("x-%d", i), "1")
	}
	large := []string{}
	for i := range 7 {
		large = append(large, fmt.Sprintf("x-%d", i), strings.Repeat("a", 10_000))
	}
	for _, test := range []struct {
		name   string
		fields []string
		want   string
		status int
		flags  string
		cell   int
	}{
		{"many headers", many, "431(1)", 431, "DPE", http2.HeaderOverflow},
		{"large headers", large, "431(1)", 431, "DPE", http2.HeaderOverflow},
		{"a path that leaves the root", []string{":path", "/a/..;/b"}, "400(1)", 400, "DPE", -1},
		{"CONNECT", []string{":method", "CONNECT", ":scheme", "", ":path", "", ":authority", "h:80"}, "405(1.)", 405, "-", -1},
		{"a protocol that is not configured", []string{":method", "CONNECT", ":protocol", "other"}, "501(1)", 501, "DPE", -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := newSim(t, defaults()).h2()
			c.send(c.head(1, true, test.fields...))
			c.turn()
			if got := c.received(); !strings.HasPrefix(got, test.want) {
				t.Errorf("the client got %s, want %s", got, test.want)
			}
			if l := c.last(); l.status != test.status || l.flags != test.flags {
				t.Errorf("logged %+v", l)
			}
			if test.cell >= 0 && c.http.HTTP2()[test.cell] != 1 {
				t.Errorf("%s is not counted", http2.CounterTexts[test.cell][0])
			}
		})
	}
}

func TestHTTP2RapidReset(t *testing.T) {
	c := newSim(t, defaults()).h2()
	for i := range uint32(250) {
		c.send(c.head(2*i+1, true), http2frame.AppendRSTStream(nil, 2*i+1, http2frame.Cancel))
	}
	if got := c.received(); !strings.HasSuffix(got, "GOAWAY(499,ENHANCE_YOUR_CALM,http2.too_many_premature_resets)") {
		t.Errorf("the client got %s", got)
	}
	if l := c.last(); l.flags != "DR" || l.details != "http2.remote_reset" {
		t.Errorf("logged %+v", l)
	}
	if c.http.HTTP2()[http2.PrematureResets] != 1 || c.http.HTTP2()[http2.RxReset] != 250 || c.http[counters.HTTPDownstreamRqRxReset] != 250 {
		t.Error("resets are not counted")
	}
}

// TestExtendedConnect has the bytes that come before there is a tunnel wait for it: sent on at once, they would be a request of the
// client's making on the upstream's connection.
func TestExtendedConnect(t *testing.T) {
	c := newSim(t, defaults()).h2()
	c.send(c.head(1, false, ":method", "CONNECT", ":protocol", "websocket", ":path", "/ws", "sec-websocket-key", "k"), frameData(1, "GET /admin HTTP/1.1\r\n\r\n", false))
	c.wantUpstream("GET /ws HTTP/1.1\r\nHost: h\r\nSec-WebSocket-Key: k\r\n" + forwardedProto + "Upgrade: websocket\r\nConnection: upgrade\r\n\r\n")
	c.backlog.Last().Send([]byte("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhello"))
	c.want("200(1) DATA(1,hello)")
	c.wantUpstream("GET /admin HTTP/1.1\r\n\r\n")
	c.send(frameData(1, "x", true))
	c.wantUpstream("x")
	c.backlog.Last().CloseWrite()
	c.want("DATA(1,.)")

	c = newSim(t, defaults()).h2()
	c.send(c.head(1, false, ":method", "CONNECT", ":protocol", "websocket", ":path", "/ws", "sec-websocket-key", "k"), frameData(1, "early", false))
	c.backlog.Last().Discard()
	c.backlog.Last().Send([]byte("HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"))
	c.want("403(1) DATA(1,no.)")
	c.send(frameData(1, "late", true))
	c.wantUpstream("")
}

func TestHTTP2ResponseThatIsCut(t *testing.T) {
	c := newSim(t, defaults()).h2()
	c.send(c.head(1, true))
	c.backlog.Last().Send([]byte("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\npart"))
	c.want("200(1) DATA(1,part)")
	c.backlog.Last().CloseWrite()
	c.want("RST(1,INTERNAL_ERROR)")
	if l := c.last(); l.flags != "UC" {
		t.Errorf("logged %+v", l)
	}
}

func TestHTTP2Timeouts(t *testing.T) {
	config := func() *configv1.Http {
		h := defaults()
		h.Timeouts.DrainMs = 5_000
		return h
	}
	t.Run("idle", func(t *testing.T) {
		c := newSim(t, config()).h2()
		c.pass(time.Hour + time.Second)
		c.want("GOAWAY(2147483647,NO_ERROR,) PING")
		c.send(http2frame.AppendPing(nil, true, [8]byte{}))
		c.want("GOAWAY(0,NO_ERROR,)")
		if c.http[counters.HTTPDownstreamCxIdleTimeout] != 1 {
			t.Error("it is not counted")
		}
	})
	t.Run("half a frame", func(t *testing.T) {
		c := newSim(t, config()).h2()
		c.send(c.head(1, true)[:12])
		c.pass(11 * time.Second)
		c.want("GOAWAY(0,ENHANCE_YOUR_CALM,)")
	})
	t.Run("a header section without end", func(t *testing.T) {
		c := newSim(t, config()).h2()
		frame := c.head(1, true)
		frame[4] &^= byte(http2frame.EndHeaders)
		c.send(frame)
		c.pass(11 * time.Second)
		c.want("GOAWAY(0,ENHANCE_YOUR_CALM,)")
	})
	t.Run("no answer", func(t *testing.T) {
		c := newSim(t, config()).h2()
		c.send(c.head(1, true))
		c.pass(16 * time.Second)
		c.want("504(1) DATA(1,upstream request timeout.)")
	})
	t.Run("an answer that the client does not take", func(t *testing.T) {
		c := newSim(t, config()).h2()
		c.send(http2frame.AppendSettings(nil, http2frame.Setting{ID: http2frame.InitialWindowSize}), c.head(1, true))
		c.backlog.Last().Send([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
		c.want("SETTINGS+ACK 200(1)")
		c.pass(6 * time.Minute)
		c.want("RST(1,CANCEL)")
		if c.http.HTTP2()[http2.TxFlushTimeout] != 1 {
			t.Error("it is not counted")
		}
	})
	t.Run("keep-alive", func(t *testing.T) {
		h := config()
		h.Http2 = &configv1.Http2{KeepaliveIntervalMs: 30_000, KeepaliveTimeoutMs: 20_000}
		c := newSim(t, h).h2()
		c.pass(31 * time.Second)
		c.want("PING")
		c.send(http2frame.AppendPing(nil, true, [8]byte{}))
		c.pass(31 * time.Second)
		c.want("PING")
		c.pass(21 * time.Second)
		c.want("GOAWAY(0,NO_ERROR,)")
		if c.http.HTTP2()[http2.KeepaliveTimeout] != 1 || !c.peer.SawFIN() && !c.peer.Gone() {
			t.Error("it is not counted, or the connection stays")
		}
	})
}

func TestHTTP2Drain(t *testing.T) {
	c := newSim(t, defaults()).h2()
	c.send(c.head(1, true))
	c.filter.Drain(0)
	c.pass(time.Millisecond)
	c.pass(time.Millisecond)
	c.want("GOAWAY(2147483647,NO_ERROR,) PING")
	c.send(c.head(3, true), http2frame.AppendPing(nil, true, [8]byte{})) // was on its way
	c.want("GOAWAY(3,NO_ERROR,)")
	for _, up := range c.backlog.Peers {
		up.Send([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
	}
	c.turn()
	if got := c.received(); got != "204(1.) 204(3.)" && got != "204(3.) 204(1.)" {
		t.Errorf("the client got %s", got)
	}
	if !c.peer.SawFIN() {
		t.Error("the connection stays open behind its last stream")
	}
}

// testHTTP2Allocations carries requests over one connection, a stream each.
func testHTTP2Allocations(t *testing.T, up *configv1.Cluster, answer func(s *sim)) {
	s := newSimCluster(t, up, defaults())
	c := s.h2()
	s.filter.Config.Logs = nil
	head := c.head(1, true)
	update := http2frame.AppendWindowUpdate(nil, 0, 1024)
	id := uint32(1)
	once := func() {
		binary.BigEndian.PutUint32(head[5:], id)
		id += 2
		c.peer.Send(head)
		s.worker.Turn(0)
		answer(s)
		s.worker.Turn(0)
		if c.peer.Discard() < 1024 {
			t.Fatal("no response reached the client")
		}
		c.peer.Send(update)
	}
	c.peer.Send(head)
	id += 2
	s.turn()
	s.turn()
	answer(s)
	s.turn()
	c.peer.Discard()
	c.peer.Send(update)
	for range 200 {
		once()
	}
	if n := testing.AllocsPerRun(1000, once); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
}

func TestHTTP2RequestAllocatesNothing(t *testing.T) {
	testHTTP2Allocations(t, &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000}, func(s *sim) {
		up := s.backlog.Last()
		up.Discard()
		up.Send(plainResponse)
	})
}

func TestHTTP2ToHTTP2AllocatesNothing(t *testing.T) {
	p, at := http2frame.BeginHeaders(nil)
	id := uint32(1)
	response := http2frame.EndHeaderBlock(append(p, 0x88), at, id, false, 16384)
	response = append(http2frame.AppendDataHeader(response, id, 1024, true), make([]byte, 1024)...)
	settings := http2frame.AppendSettings(nil)
	testHTTP2Allocations(t, &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000, Protocol: "http2"}, func(s *sim) {
		up := s.backlog.Last()
		up.Discard()
		if id == 1 {
			up.Send(settings)
		}
		binary.BigEndian.PutUint32(response[5:], id)
		binary.BigEndian.PutUint32(response[http2frame.HeaderLen+1+5:], id)
		id += 2
		up.Send(response)
	})
}

// TestGRPCTimeout holds that grpc-timeout counts from the request's first byte, and what its client and the log are told.
func TestGRPCTimeout(t *testing.T) {
	c := newSim(t, defaults()).h2()
	c.send(c.head(1, false, ":method", "POST", ":path", "/a.B/C", "content-type", "application/grpc", "te", "trailers", "grpc-timeout", "100m"))
	c.pass(90 * time.Millisecond)
	c.send(frameData(1, "x", false))
	c.want("")
	c.pass(20 * time.Millisecond)
	c.want("200(1.) RST(1,NO_ERROR)")
	if l := c.last(); l.flags != "UT" || l.status != 200 {
		t.Errorf("logged %+v", l)
	}
}
