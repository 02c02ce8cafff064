package hcm

import (
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

// h2Server is the test's end of a connection to an upstream of HTTP/2.
type h2Server struct {
	*sim
	peer    *simulated.Peer
	decoder hpack.Decoder
	started bool
}

func newH2Upstream(t *testing.T, change func(c *configv1.Cluster)) *sim {
	up := &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000, Protocol: "http2"}
	if change != nil {
		change(up)
	}
	return newSimCluster(t, up, defaults())
}

// server is the newest connection to the upstream.
func (s *sim) server() *h2Server {
	s.t.Helper()
	s.turn()
	if len(s.backlog.Peers) == 0 {
		s.t.Fatal("there is no connection to the upstream")
	}
	u := &h2Server{sim: s, peer: s.backlog.Last()}
	u.decoder.Init(hpack.DefaultTableSize)
	return u
}

// got is what came: requests by path, resets, the ends of bodies.
func (u *h2Server) got() string {
	u.turn()
	var words []string
	p := u.peer.ReceiveAll()
	if !u.started {
		u.started = true
		if !strings.HasPrefix(string(p), http2frame.Preface) {
			u.t.Fatalf("no preface: %q", p)
		}
		p = p[len(http2frame.Preface):]
	}
	for len(p) > 0 {
		h, _ := http2frame.ParseHeader(p)
		body := p[http2frame.HeaderLen : http2frame.HeaderLen+int(h.Length)]
		p = p[http2frame.HeaderLen+int(h.Length):]
		end := ""
		if h.Has(http2frame.EndStream) {
			end = "."
		}
		switch h.Type {
		case http2frame.Headers:
			var r header.Request
			if _, err := u.decoder.Request(body, &r, &hpack.DefaultLimits); err != nil {
				u.t.Fatal(err)
			}
			words = append(words, r.MethodID().String()+string(r.Path())+fmt.Sprintf("(%d%s)", h.StreamID, end))
		case http2frame.Data:
			words = append(words, fmt.Sprintf("DATA(%d,%s%s)", h.StreamID, body, end))
		case http2frame.RSTStream:
			words = append(words, fmt.Sprintf("RST(%d,%v)", h.StreamID, http2frame.ParseRSTStream(body)))
		case http2frame.GoAway:
			words = append(words, "GOAWAY")
		case http2frame.Ping:
			words = append(words, "PING")
		}
	}
	return strings.Join(words, " ")
}

func (u *h2Server) want(frames string) {
	u.t.Helper()
	if got := u.got(); got != frames {
		u.t.Errorf("the upstream got %s\nwant %s", got, frames)
	}
}

func (u *h2Server) send(frames ...[]byte) {
	for _, f := range frames {
		u.peer.Send(f)
	}
	u.turn()
}

// answer is a response without a body.
func answer(id uint32) []byte {
	p, at := http2frame.BeginHeaders(nil)
	return http2frame.EndHeaderBlock(append(p, 0x80|9), at, id, true, http2frame.DefaultMaxFrameSize)
}

func TestUpstreamStreamsShareAConnection(t *testing.T) {
	s := newH2Upstream(t, nil)
	c := s.h2()
	c.send(c.head(1, true, ":path", "/1"), c.head(3, true, ":path", "/2"))
	u := s.server()
	u.want("GET/1(1.) GET/2(3.)")
	u.send(http2frame.AppendSettings(nil), answer(3), answer(1))
	c.want("204(3.) 204(1.)")
	if len(s.backlog.Peers) != 1 || s.cluster[counters.ClusterUpstreamCxHTTP2Total] != 1 {
		t.Errorf("%d connections were made", len(s.backlog.Peers))
	}
}

// TestUpstreamConcurrency keeps to what the server allows: a stream refused because the setting was not known is sent again, and what
// is above waits for another connection.
func TestUpstreamConcurrency(t *testing.T) {
	s := newH2Upstream(t, nil)
	c := s.h2()
	c.send(c.head(1, true, ":path", "/1"))
	u := s.server()
	u.want("GET/1(1.)")
	u.send(http2frame.AppendSettings(nil, http2frame.Setting{ID: http2frame.MaxConcurrentStreams, Value: 1}))
	c.send(c.head(3, true, ":path", "/2"))
	u.want("")
	second := s.server()
	second.want("GET/2(1.)")
	second.send(http2frame.AppendSettings(nil, http2frame.Setting{ID: http2frame.MaxConcurrentStreams, Value: 1}), answer(1))
	u.send(answer(1))
	c.want("204(3.) 204(1.)")
	c.send(c.head(5, true, ":path", "/3"), c.head(7, true, ":path", "/4"))
	if got := u.got() + second.got(); !strings.Contains(got, "/3") || !strings.Contains(got, "/4") || len(s.backlog.Peers) != 2 {
		t.Errorf("the upstream got %s over %d connections, want one request on each of two", got, len(s.backlog.Peers))
	}
	u.send(answer(3))
	second.send(answer(3))
}

func TestUpstreamRefusesAStream(t *testing.T) {
	s := newH2Upstream(t, nil)
	c := s.h2()
	c.send(c.head(1, true, ":method", "POST", ":path", "/1")) // even where it could not be done twice
	u := s.server()
	u.want("POST/1(1.)")
	u.send(http2frame.AppendSettings(nil), http2frame.AppendRSTStream(nil, 1, http2frame.RefusedStream))
	u.want("POST/1(3.)")
	u.send(http2frame.AppendRSTStream(nil, 3, http2frame.RefusedStream))
	c.turn()
	if got := c.received(); !strings.HasPrefix(got, "503(1)") {
		t.Errorf("the client got %s", got)
	}
	if l := c.last(); l.flags != "UR" || s.cluster.HTTP2()[http2.RxReset] != 2 {
		t.Errorf("logged %+v", l)
	}
}

// TestUpstreamGoesAway has the server leave: what it did not take goes to a new connection, what it took ends on the old one.
func TestUpstreamGoesAway(t *testing.T) {
	s := newH2Upstream(t, nil)
	c := s.h2()
	c.send(c.head(1, true, ":path", "/1"), c.head(3, true, ":path", "/2"))
	u := s.server()
	u.want("GET/1(1.) GET/2(3.)")
	u.send(http2frame.AppendSettings(nil), http2frame.AppendGoAway(nil, 1, http2frame.NoError, ""))
	second := s.server()
	if second.peer == u.peer {
		t.Fatal("no new connection was made")
	}
	second.want("GET/2(1.)")
	u.send(answer(1))
	second.send(http2frame.AppendSettings(nil), answer(1))
	c.want("204(1.) 204(3.)")
	if !u.peer.SawFIN() && !u.peer.Gone() {
		t.Error("the old connection stays open behind its last stream")
	}
}

func TestUpstreamResets(t *testing.T) {
	for _, test := range []struct {
		name  string
		send  func(u *h2Server)
		flags string
	}{
		{"a reset", func(u *h2Server) { u.send(http2frame.AppendRSTStream(nil, 1, http2frame.InternalError)) }, "UR"},
		{"the end of the connection", func(u *h2Server) { u.peer.Reset(); u.turn() }, "UC"},
		{"a fault of the stream", func(u *h2Server) {
			p, at := http2frame.BeginHeaders(nil)
			u.send(http2frame.EndHeaderBlock(literal(append(p, 0x88), "Upper", "1"), at, 1, true, 16384))
		}, "UPE"},
		{"a fault of the connection", func(u *h2Server) { u.send(http2frame.AppendWindowUpdate(nil, 0, 0)) }, "UPE"},
		{"101", func(u *h2Server) {
			p, at := http2frame.BeginHeaders(nil)
			u.send(http2frame.EndHeaderBlock(literal(p, ":status", "101"), at, 1, false, 16384))
		}, "UPE"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newH2Upstream(t, nil)
			c := s.h2()
			c.send(c.head(1, true, ":method", "POST"))
			u := s.server()
			u.want("POST/(1.)")
			u.send(http2frame.AppendSettings(nil))
			test.send(u)
			c.turn()
			if got := c.received(); !strings.HasPrefix(got, "50") {
				t.Errorf("the client got %s", got)
			}
			if l := c.last(); l.flags != test.flags {
				t.Errorf("logged %+v, want %s", l, test.flags)
			}
		})
	}
}

func TestUpstreamClientGoes(t *testing.T) {
	s := newH2Upstream(t, nil)
	c := s.h2()
	c.send(c.head(1, false, ":method", "POST"), c.head(3, true))
	u := s.server()
	u.want("POST/(1) GET/(3.)")
	c.send(http2frame.AppendRSTStream(nil, 1, http2frame.Cancel))
	u.want("RST(1,CANCEL)")
	c.peer.Reset()
	u.want("RST(3,CANCEL)")
}

func TestUpstreamTimers(t *testing.T) {
	s := newH2Upstream(t, func(up *configv1.Cluster) {
		up.IdleTimeoutMs = 60_000
		up.Http2 = &configv1.Http2{KeepaliveIntervalMs: 20_000, KeepaliveTimeoutMs: 5_000}
	})
	c := s.h2()
	c.send(c.head(1, true))
	u := s.server()
	u.want("GET/(1.)")
	u.send(http2frame.AppendSettings(nil), answer(1))
	u.got()
	c.pass(21 * time.Second)
	u.want("PING")
	u.send(http2frame.AppendPing(nil, true, [8]byte{}))
	c.pass(21 * time.Second)
	u.want("PING")
	u.send(http2frame.AppendPing(nil, true, [8]byte{}))
	c.pass(19 * time.Second)
	u.want("GOAWAY")
	if s.cluster[counters.ClusterUpstreamCxIdleTimeout] != 1 || s.cluster[counters.ClusterUpstreamCxActive] != 0 {
		t.Error("idleness is not counted, or the connection is still")
	}
	c.send(c.head(3, true))
	u = s.server()
	u.want("GET/(1.)")
	c.pass(21 * time.Second)
	c.pass(6 * time.Second)
	if s.cluster.HTTP2()[http2.KeepaliveTimeout] != 1 || s.cluster[counters.ClusterUpstreamCxActive] != 0 {
		t.Error("a server without a sign of life is kept")
	}
}
