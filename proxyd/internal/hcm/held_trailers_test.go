package hcm

import (
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/http2frame"
	configv1 "retinue.dev/services/api/config/v1"
)

// TestHeldTrailers: trailers that a filter holds back are still those of their own response when it lets them go, though the upstream's
// connection, or stream, has served another request since.
func TestHeldTrailers(t *testing.T) {
	for _, up := range []string{"http1", "http2"} {
		t.Run(up, func(t *testing.T) {
			x := newHedging(t, "http1", up, nil, func(a *configv1.RouteAction) {})
			x.filter.Config.Filters = built(t, limited(1))
			answer := func(y *tried, body, sum string) {
				if !x.h2 {
					y.peer.Send([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(body) + "0\r\nX-Sum: " + sum + "\r\n\r\n"))
					return
				}
				p, at := http2frame.BeginHeaders(nil)
				y.peer.Send(http2frame.EndHeaderBlock(literal(p, ":status", "200"), at, y.id, false, http2frame.DefaultMaxFrameSize))
				y.data(body, false)
				p, at = http2frame.BeginHeaders(nil)
				y.peer.Send(http2frame.EndHeaderBlock(literal(p, "x-sum", sum), at, y.id, true, http2frame.DefaultMaxFrameSize))
			}
			x.ask("")
			answer(x.tries(1)[0], strings.Repeat("a", 1000), "first")
			x.look()
			other := x.sim.client() // max_active is 1: this one is not held
			other.Send([]byte(get))
			x.look()
			answer(x.tries(2)[1], "b", "second")
			x.look()
			if got := string(other.ReceiveAll()); !strings.HasSuffix(got, "\r\nX-Sum: second\r\n\r\n") {
				t.Errorf("the second client got %q", got)
			}
			for range 30 {
				x.wait(100 * time.Millisecond)
			}
			if got := string(x.client1.ReceiveAll()); !strings.HasSuffix(got, "a\r\n0\r\nX-Sum: first\r\n\r\n") {
				t.Errorf("the first client got %q", got[max(0, len(got)-60):])
			}
		})
	}
}

func chunk(text string) string { return string(chunkFrame([]byte(text))) }
