package hcm

import (
	"strings"
	"testing"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
)

// scene is a conversation under way. In pieces, everything is sent byte by byte.
type scene struct {
	*world
	c, u   *peer
	pieces bool
}

type step func(s *scene)

func (s *scene) say(p *peer, text string) {
	s.t.Helper()
	if !s.pieces {
		p.send(text)
		return
	}
	for i := range len(text) {
		p.send(text[i : i+1])
	}
}

func cSend(text string) step { return func(s *scene) { s.t.Helper(); s.say(s.c, text) } }
func uSend(text string) step { return func(s *scene) { s.t.Helper(); s.say(s.u, text) } }
func cWant(text string) step { return func(s *scene) { s.t.Helper(); s.c.expect(text) } }
func uWant(text string) step { return func(s *scene) { s.t.Helper(); s.u.expect(text) } }
func uNew(s *scene)          { s.t.Helper(); s.u = s.upstream() }
func cNothing(s *scene)      { s.t.Helper(); s.c.nothing() }
func uNothing(s *scene)      { s.t.Helper(); s.u.nothing() }
func cEnd(s *scene)          { s.t.Helper(); s.c.expectEnd() }
func cGone(s *scene)         { s.t.Helper(); s.c.expectGone() }
func uGone(s *scene)         { s.t.Helper(); s.u.expectGone() }
func cFin(s *scene)          { s.t.Helper(); s.c.shutdown() }
func uFin(s *scene)          { s.t.Helper(); s.u.shutdown() }
func uRst(s *scene)          { s.t.Helper(); s.u.reset() }
func cClose(s *scene)        { s.t.Helper(); s.c.close() }
func pass(d time.Duration) step {
	return func(s *scene) { s.t.Helper(); s.world.pass(d) }
}

func wantLog(status int, flags, details string) step {
	return func(s *scene) {
		s.t.Helper()
		if got := s.last(); got.status != status || got.flags != flags || got.details != details {
			s.t.Fatalf("log: %d %s %s, want %d %s %s", got.status, got.flags, got.details, status, flags, details)
		}
	}
}

const (
	date   = "Date: Tue, 14 Nov 2023 22:13:20 GMT\r\n"
	server = "Server: retinue\r\n"
	get    = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
	gotGet = "GET / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\n\r\n"
	ok2    = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
	gotOK2 = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + date + "\r\nhi"
)

// local is a local reply with a text.
func local(status, text string, headers ...string) string {
	b := "HTTP/1.1 " + status + "\r\n"
	if text != "" {
		b += "Content-Type: text/plain\r\n"
	}
	b += server + "Content-Length: " + itoa(len(text)) + "\r\n" + date
	for _, h := range headers {
		b += h + "\r\n"
	}
	return b + "\r\n" + text
}

func itoa(n int) string {
	if n >= 10 {
		return itoa(n/10) + string(rune('0'+n%10))
	}
	return string(rune('0' + n))
}

func reset(reason string) string {
	return "upstream connect error or disconnect/reset before headers. reset reason: " + reason
}

func before(reason string) string { return "upstream_reset_before_response_started{" + reason + "}" }
func after(reason string) string  { return "upstream_reset_after_response_started{" + reason + "}" }

func TestConversations(t *testing.T) {
	closing := "Connection: close"
	cases := []struct {
		name  string
		set   func(h *configv1.Http)
		steps []step
		whole bool // not in pieces: what is expected depends on how bytes arrive
	}{
		{name: "keep-alive on both sides", steps: []step{
			cSend("GET /a?b HTTP/1.1\r\nHost: h\r\n\r\n"), uNew,
			uWant("GET /a?b HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\n\r\n"),
			uSend(ok2), cWant(gotOK2), wantLog(200, "-", "via_upstream"),
			cSend("POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"),
			uWant("POST /c HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\nContent-Length: 3\r\n\r\nabc"),
			uSend("HTTP/1.1 204 No Content\r\n\r\n"), cWant("HTTP/1.1 204 No Content\r\n" + date + "\r\n"), cNothing,
		}},
		{name: "the client says close", steps: []step{
			cSend("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"), uNew, uWant(gotGet), uSend(ok2),
			cWant("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + date + "Connection: close\r\n\r\nhi"), cEnd,
		}},
		{name: "pipelining is answered in order", steps: []step{
			cSend(get + get + get), uNew, uWant(gotGet), uNothing, uSend(ok2), uWant(gotGet), uSend(ok2), uWant(gotGet), uSend(ok2),
			cWant(gotOK2 + gotOK2 + gotOK2), cNothing,
		}},
		{name: "chunked both ways with trailers", whole: true, steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"), uNew,
			uWant("POST / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-T: 1\r\n\r\n"),
			uSend("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-U: 2\r\n\r\n"),
			cWant("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + date + "\r\n2\r\nhi\r\n0\r\nX-U: 2\r\n\r\n"), cNothing,
			cSend(get), uWant(gotGet), uSend(ok2), cWant(gotOK2),
		}},
		{name: "HEAD keeps the length and has no body", steps: []step{
			cSend("HEAD / HTTP/1.1\r\nHost: h\r\n\r\n"), uNew, uWant("HEAD / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\n\r\n"),
			uSend("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"), cWant("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n" + date + "\r\n"),
			cSend(get), uWant(gotGet), uSend(ok2), cWant(gotOK2),
		}},
		{name: "304 has no body", steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n"),
			cWant("HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n" + date + "\r\n"), cSend(get), uWant(gotGet), uSend(ok2), cWant(gotOK2),
		}},
		{name: "100-continue is the upstream's to say", steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"), uNew,
			uWant("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nX-Forwarded-Proto: http\r\nContent-Length: 2\r\n\r\n"), cNothing,
			uSend("HTTP/1.1 100 Continue\r\n\r\n"), cWant("HTTP/1.1 100 Continue\r\n\r\n"), cSend("ab"), uWant("ab"), uSend(ok2), cWant(gotOK2), cNothing,
		}},
		{name: "100-continue answered early without a body", steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n"), uNew,
			uWant("POST / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nX-Forwarded-Proto: http\r\nContent-Length: 2\r\n\r\n"),
			uSend("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n"),
			cWant("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n" + date + "Connection: close\r\n\r\n"), cEnd, uGone,
		}},
		{name: "103 and other interim responses pass", steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"), cWant("HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"),
			uSend("HTTP/1.1 102 Processing\r\n\r\n"), cWant("HTTP/1.1 102 Processing\r\n\r\n"), uSend(ok2), cWant(gotOK2),
		}},
		{name: "HTTP/1.0: no interim, no chunks, close tells the end", steps: []step{
			cSend("GET / HTTP/1.0\r\n\r\n"), uNew, uWant("GET / HTTP/1.1\r\nHost: \r\nX-Forwarded-Proto: http\r\n\r\n"),
			uSend("HTTP/1.1 103 Early Hints\r\n\r\n"), cNothing, uSend("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"),
			cWant("HTTP/1.1 200 OK\r\n" + date + "Connection: close\r\n\r\nhi"), cEnd,
		}},
		{name: "HTTP/1.0 keep-alive", steps: []step{
			cSend("GET / HTTP/1.0\r\nHost: h\r\nConnection: keep-alive\r\n\r\n"), uNew, uWant(gotGet), uSend(ok2),
			cWant("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + date + "Connection: keep-alive\r\n\r\nhi"), cSend(get), uWant(gotGet), uSend(ok2), cWant(gotOK2),
		}},
		{name: "FIN after the request still gets the answer", steps: []step{
			cSend(get), cFin, uNew, uWant(gotGet), cNothing, uSend(ok2),
			cWant("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + date + "Connection: close\r\n\r\nhi"), cEnd,
		}},
		{name: "FIN after the request gives it up", set: func(h *configv1.Http) { h.NoHalfClose = true }, steps: []step{
			cSend(get), uNew, uWant(gotGet), cFin, cEnd, uGone, wantLog(0, "DC", "downstream_remote_disconnect"),
		}},
		{name: "FIN after the request gives its response up", set: func(h *configv1.Http) { h.NoHalfClose = true }, steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh"), cWant("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + date + "\r\nh"),
			cFin, cEnd, uGone, wantLog(200, "DC", "via_upstream"),
		}},
		{name: "a tunnel keeps its halves", set: func(h *configv1.Http) { h.NoHalfClose = true }, steps: []step{
			cSend("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), uNew,
			uSend("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
			func(s *scene) {
				s.until("a tunnel", func() bool { s.c.pull(); return len(s.c.got) > 0 })
				s.c.got = nil
			},
			cFin, uSend("last"), cWant("last"), uFin, cEnd,
		}},
		{name: "FIN within a body gives the request up", steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc"), uNew, cFin, cEnd, uGone, wantLog(0, "DC", "downstream_remote_disconnect"),
		}},
		{name: "the client goes while it waits", steps: []step{
			cSend(get), uNew, uWant(gotGet), cClose, uSend("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"), uGone, wantLog(200, "DC", "via_upstream"),
		}},
		{name: "upstream ends before a response", steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"), uNew, uFin,
			cWant(local("503 Service Unavailable", reset("connection termination"))), wantLog(503, "UC", before("connection_termination")), cNothing,
		}},
		{name: "upstream resets before a response", steps: []step{
			cSend(get), uNew, uWant(gotGet), uRst,
			cWant(local("503 Service Unavailable", reset("connection termination"))), wantLog(503, "UC", before("connection_termination")), cNothing,
		}},
		{name: "upstream ends within a length", steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi"), uFin,
			cWant("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n" + date + "\r\nhi"), cGone, wantLog(200, "UC", after("connection_termination")),
		}},
		{name: "upstream ends within a chunk: no last chunk is made up", whole: true, steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhi"), uFin,
			cWant("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + date + "\r\n2\r\nhi\r\n"), cGone, wantLog(200, "UC", after("connection_termination")),
		}},
		{name: "a body until close becomes chunks", whole: true, steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend("HTTP/1.1 200 OK\r\n\r\nhi"), uFin,
			cWant("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n" + date + "\r\n2\r\nhi\r\n0\r\n\r\n"), cNothing,
		}},
		{name: "upstream answers garbage", whole: true, steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend("SSH-2.0-x\r\n"),
			cWant(local("502 Bad Gateway", reset("protocol error"))), wantLog(502, "UPE", before("protocol_error")), cNothing,
		}},
		{name: "an idle pooled connection that died is replaced without anybody noticing", steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2), cSend(get), uWant(gotGet), uFin, uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2),
			wantLog(200, "-", "via_upstream"),
		}},
		{name: "a POST is not sent twice", steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2), cSend("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\na"),
			uWant("POST / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\nContent-Length: 1\r\n\r\na"), uFin,
			cWant(local("503 Service Unavailable", reset("connection termination"))),
		}},
		{name: "early response: the rest of a short body is read", steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab"), uNew,
			uWant("POST / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\nContent-Length: 4\r\n\r\nab"), uSend(ok2), cWant(gotOK2), uGone,
			cSend("cd" + get), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2),
		}},
		{name: "early response: a long body is not waited for", steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 400000\r\n\r\nab"), uNew,
			uWant("POST / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\nContent-Length: 400000\r\n\r\nab"), uSend(ok2),
			cWant("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + date + "Connection: close\r\n\r\nhi"), cSend("cdef"), cEnd, uGone,
		}},
		{name: "WebSocket", steps: []step{
			cSend("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n"), uNew,
			uWant("GET /ws HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"), cSend("early"), uNothing,
			uSend("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
			cWant("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"), uWant("early"),
			cSend("ping"), uWant("ping"), uSend("pong"), cWant("pong"), pass(time.Minute), cSend("more"), uWant("more"), cFin, uSend("last"), cWant("last"), uFin, cEnd,
			wantLog(101, "-", "via_upstream"),
		}},
		{name: "WebSocket: the upstream ends first", steps: []step{
			cSend("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), uNew,
			uSend("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\npush"),
			cWant("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\npush"), uFin, cEnd,
			func(s *scene) { s.c.eof = false; s.u.got = nil }, cSend("more"), func(s *scene) { s.u.pull(); s.u.got = s.u.got[len(s.u.got)-4:] }, uWant("more"), cFin, uGone,
		}},
		{name: "an upgrade that is refused", steps: []step{
			cSend("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), uNew, uSend(ok2), cWant(gotOK2), cSend(get), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2),
		}},
		{name: "an upgrade that is not configured is left out", steps: []step{
			cSend("GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n"), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2),
		}},
		{name: "an upgrade with a body is left out", steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 1\r\n\r\na"), uNew,
			uWant("POST / HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\nContent-Length: 1\r\n\r\na"), uSend(ok2), cWant(gotOK2),
		}},
		{name: "CONNECT is refused where it is not configured", steps: []step{
			cSend("CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n"),
			cWant("HTTP/1.1 405 Method Not Allowed\r\nAllow: GET, HEAD, POST, PUT, DELETE, OPTIONS, TRACE, PATCH\r\n" + server + "Content-Length: 0\r\n" + date + "Connection: close\r\n\r\n"), cEnd,
			wantLog(405, "-", "connect_not_allowed"),
		}},
		{name: "CONNECT", set: func(h *configv1.Http) { h.UpgradeTypes = []string{"CONNECT"} }, steps: []step{
			cSend("CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\n\r\n"), uNew, uWant("CONNECT x:1 HTTP/1.1\r\nHost: x:1\r\nX-Forwarded-Proto: http\r\n\r\n"),
			uSend("HTTP/1.1 200 OK\r\n\r\n"), cWant("HTTP/1.1 200 OK\r\n" + date + "\r\n"), cSend("a"), uWant("a"), uSend("b"), cWant("b"), cFin, uFin, cEnd,
		}},
		{name: "no route", set: func(h *configv1.Http) { h.VirtualHosts[0].Domains = []string{"other"} }, steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nab"), cWant(local("404 Not Found", "")), wantLog(404, "NR", "route_not_found"),
			cSend(get), cWant(local("404 Not Found", "")), cNothing,
		}},
		{name: "no cluster", set: func(h *configv1.Http) {
			h.VirtualHosts[0].Routes[0].GetRoute().Clusters[0].Cluster = "nobody"
		}, steps: []step{cSend(get), cWant(local("503 Service Unavailable", "")), wantLog(503, "NC", "cluster_not_found"), cNothing}},
		{name: "nobody listens", steps: []step{
			func(s *scene) { s.stopListening() }, cSend(get),
			cWant(local("503 Service Unavailable", reset("connection failure"))), wantLog(503, "UF", before("connection_failure")), cNothing,
		}},
		{name: "route time-out", steps: []step{
			cSend(get), uNew, uWant(gotGet), pass(14 * time.Second), cNothing, pass(2 * time.Second),
			cWant(local("504 Gateway Timeout", "upstream request timeout")), wantLog(504, "UT", "response_timeout"), uGone, cNothing,
			cSend(get), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2),
		}},
		{name: "route time-out within a response", steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi"), cWant("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n" + date + "\r\nhi"),
			pass(16 * time.Second), cGone, uGone, wantLog(200, "UT", "response_timeout"),
		}},
		{name: "route time-out begins with the end of the request", steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\na"), uNew, pass(20 * time.Second), cNothing, cSend("b"), pass(14 * time.Second), cNothing,
			pass(2 * time.Second), cWant(local("504 Gateway Timeout", "upstream request timeout")),
		}},
		{name: "request head time-out", steps: []step{
			cSend("GET / HTTP/1.1\r\nHost:"), pass(9 * time.Second), cNothing, cSend(" h"), pass(2 * time.Second),
			cWant(local("408 Request Timeout", "request header timeout", closing)), cEnd, wantLog(408, "-", "request_header_timeout"),
		}},
		{name: "request time-out", set: func(h *configv1.Http) { h.Timeouts.RequestMs = 5000 }, steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 400000\r\n\r\na"), uNew, pass(6 * time.Second),
			cWant(local("408 Request Timeout", "request timeout", closing)), cEnd, uGone, wantLog(408, "-", "request_overall_timeout"),
		}},
		{name: "stream idle time-out before the request's end", steps: []step{
			cSend("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 400000\r\n\r\na"), uNew, pass(299 * time.Second), cNothing, pass(2 * time.Second),
			cWant(local("408 Request Timeout", "stream timeout", closing)), cEnd, uGone, wantLog(408, "SI", "stream_idle_timeout"),
		}},
		{name: "stream idle time-out of the upstream", set: func(h *configv1.Http) {
			off := int64(0)
			h.VirtualHosts[0].Routes[0].GetRoute().TimeoutMs = &off
		}, steps: []step{
			cSend(get), uNew, pass(301 * time.Second), cWant(local("504 Gateway Timeout", "stream timeout")), uGone, wantLog(504, "SI", "stream_idle_timeout"),
		}},
		{name: "a tunnel that stands still", steps: []step{
			cSend("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"), uNew,
			uSend("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
			cWant("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"), pass(200 * time.Second), cSend("x"), pass(200 * time.Second), cNothing,
			pass(101 * time.Second), cGone, uGone, wantLog(101, "SI", "stream_idle_timeout"),
		}},
		{name: "greatest duration of a stream", set: func(h *configv1.Http) { h.Timeouts.MaxStreamDurationMs = 5000 }, steps: []step{
			cSend(get), uNew, pass(6 * time.Second), cWant(local("504 Gateway Timeout", "downstream duration timeout")), uGone, wantLog(504, "UMSDR", "max_duration_timeout"),
		}},
		{name: "idle connection", steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2), pass(3599 * time.Second), cNothing, pass(2 * time.Second), cEnd,
		}},
		{name: "a connection on which nothing ever came", steps: []step{pass(3599 * time.Second), cNothing, pass(2 * time.Second), cEnd}},
		{name: "greatest age of a connection", set: func(h *configv1.Http) { h.Timeouts.MaxConnectionDurationMs = 60_000 }, steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2), pass(59 * time.Second), cNothing, pass(2 * time.Second), cEnd,
		}},
		{name: "greatest age of a connection, reached under a request", set: func(h *configv1.Http) { h.Timeouts.MaxConnectionDurationMs = 60_000 }, steps: []step{
			pass(55 * time.Second), cSend(get), uNew, uWant(gotGet), pass(6 * time.Second), uSend(ok2),
			cWant("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + date + "Connection: close\r\n\r\nhi"), cEnd,
		}},
		{name: "requests on a connection", set: func(h *configv1.Http) { h.Limits.MaxRequestsPerConnection = 2 }, steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2), cSend(get), uWant(gotGet), uSend(ok2),
			cWant("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + date + "Connection: close\r\n\r\nhi"), cEnd,
		}},
		{name: "drain: an idle connection stays, its next response closes it", steps: []step{
			cSend(get), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2), func(s *scene) { s.filter.Drain(0) }, pass(time.Minute), cNothing,
			cSend(get), uWant(gotGet), uSend(ok2), cWant("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + date + "Connection: close\r\n\r\nhi"), cEnd,
		}},
		{name: "a path is in one form for everybody", steps: []step{
			cSend("GET /a/./%7e/../b%2fc?d/../e HTTP/1.1\r\nHost: h\r\n\r\n"), uNew, uWant("GET /a/b%2Fc?d/../e HTTP/1.1\r\nHost: h\r\nX-Forwarded-Proto: http\r\n\r\n"), uSend(ok2), cWant(gotOK2),
		}},
		{name: "a path that servers read differently", steps: []step{
			cSend("GET /a/..;/b HTTP/1.1\r\nHost: h\r\n\r\n"), cWant(local("400 Bad Request", "Bad Request", closing)), cEnd, wantLog(400, "DPE", "path_normalization_failed"),
		}},
		{name: "what belongs to one connection stays", steps: []step{
			cSend("GET / HTTP/1.1\r\nHost: h\r\nConnection: X-Mine, keep-alive\r\nX-Mine: 1\r\nKeep-Alive: timeout=5\r\nTE: gzip\r\nProxy-Connection: x\r\nX-Forwarded-Proto: https\r\n\r\n"), uNew,
			uWant(gotGet), uSend("HTTP/1.1 200 OK\r\nConnection: X-Theirs\r\nX-Theirs: 1\r\nKeep-Alive: x\r\nServer: up\r\nDate: then\r\nContent-Length: 2\r\n\r\nhi"),
			cWant("HTTP/1.1 200 OK\r\nServer: up\r\nDate: then\r\nContent-Length: 2\r\n\r\nhi"),
		}},
		{name: "a CRLF before a request", steps: []step{cSend("\r\n" + get), uNew, uWant(gotGet), uSend(ok2), cWant(gotOK2)}},
	}
	for _, test := range cases {
		for _, pieces := range []bool{false, true} {
			if pieces && test.whole {
				continue
			}
			name := test.name
			if pieces {
				name += " (in pieces)"
			}
			t.Run(name, func(t *testing.T) {
				h := defaults()
				if test.set != nil {
					test.set(h)
				}
				s := &scene{world: newWorld(t, h), pieces: pieces}
				s.c = s.client()
				for _, do := range test.steps {
					do(s)
				}
			})
		}
	}
}

// TestRefused sends what is not HTTP; each gets its status, a line, a count and the end of the connection, after which nothing is
// read as another request.
func TestRefused(t *testing.T) {
	many := strings.Repeat("X-A: b\r\n", 101)
	cases := []struct {
		name, request, status string
	}{
		{"both lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n", "400 Bad Request"},
		{"two lengths", "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n", "400 Bad Request"},
		{"bare LF", "GET / HTTP/1.1\nHost: h\n\n", "400 Bad Request"},
		{"folded", "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b\r\n\r\n", "400 Bad Request"},
		{"space before the colon", "GET / HTTP/1.1\r\nHost : h\r\n\r\n", "400 Bad Request"},
		{"no Host", "GET / HTTP/1.1\r\n\r\n", "400 Bad Request"},
		{"two Hosts", "GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", "400 Bad Request"},
		{"unknown coding", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "501 Not Implemented"},
		{"version", "GET / HTTP/3.0\r\nHost: h\r\n\r\n", "505 HTTP Version Not Supported"},
		{"long line", "GET /" + strings.Repeat("a", 20_000) + " HTTP/1.1\r\nHost: h\r\n\r\n", "414 URI Too Long"},
		{"long head", "GET / HTTP/1.1\r\nHost: h\r\nX: " + strings.Repeat("a", 62_000) + "\r\n\r\n", "431 Request Header Fields Too Large"},
		{"many fields", "GET / HTTP/1.1\r\nHost: h\r\n" + many + "\r\n", "431 Request Header Fields Too Large"},
		{"nominates what is not its own", "GET / HTTP/1.1\r\nHost: h\r\nConnection: X-Forwarded-For\r\n\r\n", "400 Bad Request"},
		{"chunk size", "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "400 Bad Request"},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			x := newWorld(t, defaults())
			c := x.client()
			c.send(test.request + get)
			c.expect(local(test.status, test.status[4:], "Connection: close"))
			c.expectEnd()
			if got := x.last(); got.flags != "DPE" || !strings.HasPrefix(got.details, "http1.") || len(x.logged.lines) != 1 {
				t.Errorf("log: %+v", x.logged.lines)
			}
			if n := x.http[0+3]; n != 1 {
				t.Errorf("downstream_cx_protocol_error is %d", n)
			}
			c.send("GET / HTTP/1.1\r\n") // the reply is not lost to one who still sends
			x.pass(2 * 1e9)
		})
	}
}
