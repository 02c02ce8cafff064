package hcm

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/http2frame"
	configv1 "retinue.dev/services/api/config/v1"
)

func limited(kbps uint32) *configv1.Filter {
	return &configv1.Filter{Kind: &configv1.Filter_Fault{Fault: &configv1.FaultFilter{ResponseRateLimitKbps: kbps, Headers: true, MaxActive: 1}}}
}

// TestFaultResponseRate: a body never runs ahead of its rate, by more than the slice that it begins with, and comes whole, with its
// trailers behind it. The upstream waits, so that little is held here.
func TestFaultResponseRate(t *testing.T) {
	const rate = 64 << 10
	body := pattern(0, 4*rate)
	for _, test := range []struct {
		name   string
		h2     bool
		asks   string // header of the request
		kbps   uint32
		answer string
		end    string
	}{
		{name: "HTTP/1", kbps: 64, answer: fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)},
		{name: "HTTP/2", h2: true, kbps: 64, answer: fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)},
		{name: "trailers", kbps: 64, answer: fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\nX-Sum: 1\r\n\r\n", len(body), body), end: "X-Sum: 1\r\n\r\n"},
		{name: "asked for", asks: "64", answer: fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := built(t, limited(test.kbps))
			s := newSim(t, defaults(), f...)
			s.filter.Config.BufferLimit = 32 << 10
			var got []byte // of the body, and what frames it
			var receive func() int
			if test.h2 {
				c := s.h2()
				c.send(c.head(1, true), http2frame.AppendWindowUpdate(nil, 0, 1<<20), http2frame.AppendWindowUpdate(nil, 1, 1<<20))
				receive = func() int {
					got = append(got, c.peer.ReceiveAll()...)
					return len(got)
				}
			} else {
				c := s.client()
				asks := ""
				if test.asks != "" {
					asks = "X-Envoy-Fault-Throughput-Response: " + test.asks + "\r\n"
				}
				c.Send([]byte("GET / HTTP/1.1\r\nHost: h\r\nTE: trailers\r\nConnection: te\r\n" + asks + "\r\n"))
				receive = func() int {
					got = append(got, c.ReceiveAll()...)
					return len(got)
				}
			}
			s.turn()
			s.backlog.Last().Send([]byte("HTTP/1.1 200 OK\r\n" + test.answer))
			begin := s.worker.Now()
			over := func() bool { return s.filter.Active() == 0 }
			const frames = 8 << 10 // heads and framing, at most
			for step := 0; !over(); step++ {
				s.turn()
				passed := s.worker.Now() - begin
				if most := rate*(passed+int64(50*time.Millisecond))/int64(time.Second) + frames; int64(receive()) > most {
					t.Fatalf("%d bytes after %v, at most %d may be", len(got), time.Duration(passed), most)
				}
				if used := s.worker.Pool.Used(); used > 256<<10 {
					t.Fatalf("%d bytes are held", used)
				}
				if step > 2000 {
					t.Fatalf("no end: %d bytes after %v", len(got), time.Duration(passed))
				}
				s.net.Advance(int64(7 * time.Millisecond))
			}
			receive()
			if took := time.Duration(s.worker.Now() - begin); took < 3900*time.Millisecond || took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if !bytes.HasSuffix(got, []byte(test.end)) {
				t.Errorf("it ends with %q", got[max(0, len(got)-40):])
			}
			if whole := got[max(0, bytes.Index(got, []byte("\r\n\r\n")))+4:]; test.name == "HTTP/1" && !bytes.Equal(whole, body) {
				t.Error("the body is not what was sent")
			}
			if n := s.worker.Pool.Used(); n != 0 {
				t.Errorf("%d bytes are kept", n)
			}
		})
	}
}

// TestFaultResponseRateEnds: a client that leaves takes what waits with it; one that reads nothing is waited for; where there are as many
// faults as there may be, the others are not slowed down.
func TestFaultResponseRateEnds(t *testing.T) {
	s := newSim(t, defaults(), built(t, limited(1))...)
	slow, quick := s.client(), s.client()
	slow.Send([]byte(get))
	s.turn()
	up := s.backlog.Last()
	up.Discard()
	up.Send([]byte("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + strings.Repeat("a", 10000)))
	s.turn()
	if n := slow.Waiting(); n == 0 || n > 500 {
		t.Errorf("%d bytes at once", n)
	}
	quick.Send([]byte(get))
	s.turn()
	s.backlog.Last().Send([]byte("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + strings.Repeat("b", 10000)))
	s.turn()
	if n := quick.Waiting(); n < 10000 {
		t.Errorf("%d bytes for one beyond max_active", n)
	}
	slow.Reset()
	s.turn()
	for range 10 {
		s.net.Advance(int64(time.Second))
		s.turn()
	}
	if n := s.worker.Pool.Used(); n != 0 || s.filter.Active() != 0 {
		t.Errorf("%d bytes are kept, %d requests", n, s.filter.Active())
	}
}

// TestFaultResponseRateStalledClient: what a client does not take is not piled up.
func TestFaultResponseRateStalledClient(t *testing.T) {
	s := newSim(t, defaults(), built(t, limited(1<<20))...)
	s.filter.Config.BufferLimit = 32 << 10
	c := s.client()
	c.SetRoom(1000)
	c.Send([]byte(get))
	s.turn()
	body := pattern(0, 2<<20)
	s.backlog.Last().Send(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	var got []byte
	for step := 0; s.filter.Active() > 0; step++ {
		s.net.Advance(int64(50 * time.Millisecond))
		s.turn()
		if used := s.worker.Pool.Used(); used > 512<<10 {
			t.Fatalf("%d bytes are held", used)
		}
		if step == 200 {
			c.SetRoom(64 << 10)
		}
		if step > 200 {
			got = append(got, c.ReceiveAll()...)
		}
		if step > 5000 {
			t.Fatalf("no end: %d bytes", len(got))
		}
	}
	got = append(got, c.ReceiveAll()...)
	if !bytes.HasSuffix(got, body) {
		t.Error("the body is not what was sent")
	}
}
