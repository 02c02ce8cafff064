package hcm

import (
	"bytes"
	"fmt"
	"testing"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
)

const (
	flowBytes = 8 << 20
	// flowWindow is what the kernel holds between two ends that do not keep up.
	flowWindow = 256 << 10
	// flowLimit is what the worker may hold of one body: the buffer limit, and what one reading brings on top of it.
	flowLimit = defaultBufferLimit + 512<<10 + flowWindow
)

// pattern is the body's bytes from an offset on, so that lost or doubled ones show.
func pattern(at, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte((at + i) * 2654435761 >> 8)
	}
	return b
}

// flow carries flowBytes from a writer that is always ready to a reader that takes little at a time, and tells the most that the
// worker ever held. frame turns body bytes into what the writer sends; read takes bytes that have arrived off their framing.
func (s *sim) flow(from, to *simulated.Peer, frame func([]byte) []byte, end []byte) (most int, received []byte) {
	s.t.Helper()
	sent := 0
	to.SetRoom(flowWindow)
	for turn := 0; ; turn++ {
		for sent < flowBytes && from.Unread() < flowWindow {
			n := min(64<<10, flowBytes-sent)
			from.Send(frame(pattern(sent, n)))
			if sent += n; sent == flowBytes {
				from.Send(end)
			}
		}
		s.worker.Turn(0)
		most = max(most, s.worker.Pool.Used())
		got := to.Receive(48 << 10)
		received = append(received, got...)
		if len(got) == 0 && sent == flowBytes && from.Unread() == 0 && turn > 100 {
			for range 10 {
				s.worker.Turn(0)
				received = append(received, to.ReceiveAll()...)
			}
			return most, received
		}
		if turn > 1<<20 {
			s.t.Fatal("the bytes stand still")
		}
	}
}

func plainFrame(b []byte) []byte { return b }

func chunkFrame(b []byte) []byte {
	return append(append(fmt.Appendf(nil, "%x\r\n", len(b)), b...), "\r\n"...)
}

// unchunk takes the chunks apart; the proxy cuts them as it likes.
func unchunk(t *testing.T, b []byte) []byte {
	t.Helper()
	var out []byte
	for {
		line, rest, found := bytes.Cut(b, []byte("\r\n"))
		var n int
		if _, err := fmt.Sscanf(string(line), "%x", &n); err != nil || !found || len(rest) < n+2 {
			t.Fatalf("a chunk begins with %.20q", line)
		}
		if n == 0 {
			return out
		}
		out = append(out, rest[:n]...)
		b = rest[n+2:]
	}
}

func TestDownloadToASlowReader(t *testing.T) {
	for name, test := range map[string]struct {
		head  string
		frame func([]byte) []byte
		end   string
	}{
		"a length":   {fmt.Sprintf("Content-Length: %d", flowBytes), plainFrame, ""},
		"spliced":    {fmt.Sprintf("Content-Length: %d", flowBytes), plainFrame, ""},
		"chunks":     {"Transfer-Encoding: chunked", chunkFrame, "0\r\n\r\n"},
		"until gone": {"Connection: close", plainFrame, ""},
	} {
		t.Run(name, func(t *testing.T) {
			filters := []stream.Factory{watching{}} // one that wants to see every byte
			if name == "spliced" {
				filters = nil
			}
			s := newSim(t, defaults(), filters...)
			client := s.client()
			client.Send(plainRequest)
			s.turn()
			up := s.backlog.Last()
			up.Discard()
			up.Send([]byte("HTTP/1.1 200 OK\r\n" + test.head + "\r\n\r\n"))
			frame := test.frame
			if name == "until gone" {
				sent := 0
				frame = func(b []byte) []byte {
					if sent += len(b); sent == flowBytes {
						defer up.CloseWrite()
						up.Send(b)
						return nil
					}
					return b
				}
			}
			most, received := s.flow(up, client, frame, []byte(test.end))
			_, body, _ := bytes.Cut(received, []byte("\r\n\r\n"))
			if name == "chunks" || name == "until gone" {
				body = unchunk(t, body)
			}
			if !bytes.Equal(body, pattern(0, flowBytes)) {
				t.Errorf("%d bytes arrived of %d, or not these", len(body), flowBytes)
			}
			if name == "spliced" {
				if most > flowWindow || s.net.Calls["splice"] == 0 {
					t.Errorf("the worker held %d bytes, %d splices", most, s.net.Calls["splice"])
				}
				if got := s.last(); got.sent != flowBytes || got.flags != "-" {
					t.Errorf("the log says %+v", got)
				}
				s.exchange(client) // both connections serve again
				return
			}
			s.held(most, s.http[counters.HTTPFlowControlPausedReadingTotal], s.http[counters.HTTPFlowControlResumedReadingTotal])
		})
	}
}

// watching is a filter that lets everything pass.
type watching struct{ stream.PassThrough }

func (w watching) NewFilter(*worker.Worker) stream.Filter { return w }

// What ends under way of a spliced body ends as it would if the bytes were copied, and leaves nothing behind.
func TestSplicedBodyEndsEarly(t *testing.T) {
	for name, test := range map[string]struct {
		end   func(s *sim, client, up *simulated.Peer)
		flags string
	}{
		"the upstream ends":    {func(_ *sim, _, up *simulated.Peer) { up.CloseWrite() }, "UC"},
		"the upstream resets":  {func(_ *sim, _, up *simulated.Peer) { up.Reset() }, "UC"},
		"the client resets":    {func(_ *sim, client, _ *simulated.Peer) { client.Reset() }, "DC"},
		"the route's time-out": {func(s *sim, _, _ *simulated.Peer) { s.net.Advance(16e9) }, "UT"},
		"the end of draining":  {func(s *sim, _, _ *simulated.Peer) { s.filter.CloseAll() }, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t, defaults())
			client := s.client()
			client.Send(plainRequest)
			s.turn()
			up := s.backlog.Last()
			up.Discard()
			up.Send(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", flowBytes))
			for range 10 {
				up.Send(pattern(0, 100_000))
				s.turn()
				client.Discard()
			}
			client.SetRoom(1000) // bytes stand in the pipe when it happens
			up.Send(pattern(0, 100_000))
			s.turn()
			if s.net.Calls["splice"] == 0 {
				t.Fatal("nothing was spliced")
			}
			test.end(s, client, up)
			s.turn()
			client.SetRoom(1 << 20)
			s.turn()
			client.Discard()
			s.turn()
			if !client.Gone() || !up.Gone() {
				t.Errorf("client gone %v, upstream gone %v", client.Gone(), up.Gone())
			}
			if got := s.last(); got.flags != test.flags || got.sent >= flowBytes || got.sent < 100_000 {
				t.Errorf("the log says %+v", got)
			}
			s.net.Advance(6e9) // spare pipes go with the trimming
			s.turn()
			if n := s.net.Open(); n != 0 {
				t.Errorf("%d descriptors are left open", n)
			}
		})
	}
}

func TestUploadToASlowUpstream(t *testing.T) {
	for name, test := range map[string]struct {
		head  string
		frame func([]byte) []byte
		end   string
	}{
		"a length": {fmt.Sprintf("Content-Length: %d", flowBytes), plainFrame, ""},
		"spliced":  {fmt.Sprintf("Content-Length: %d", flowBytes), plainFrame, ""},
		"chunks":   {"Transfer-Encoding: chunked", chunkFrame, "0\r\n\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			filters := []stream.Factory{watching{}}
			if name == "spliced" {
				filters = nil
			}
			s := newSim(t, defaults(), filters...)
			client := s.client()
			client.Send([]byte("POST /upload HTTP/1.1\r\nHost: shop.example.com\r\n" + test.head + "\r\n\r\n"))
			s.turn()
			up := s.backlog.Last()
			most, received := s.flow(client, up, test.frame, []byte(test.end))
			_, body, _ := bytes.Cut(received, []byte("\r\n\r\n"))
			if name == "chunks" {
				body = unchunk(t, body)
			}
			if !bytes.Equal(body, pattern(0, flowBytes)) {
				t.Errorf("%d bytes arrived of %d, or not these", len(body), flowBytes)
			}
			if name == "spliced" {
				if most > flowWindow || s.net.Calls["splice"] == 0 {
					t.Errorf("the worker held %d bytes, %d splices", most, s.net.Calls["splice"])
				}
				defer func() {
					if got := s.last(); got.received != flowBytes || got.flags != "-" {
						t.Errorf("the log says %+v", got)
					}
					s.exchange(client) // both connections serve again
				}()
			} else {
				s.held(most, 1, 1)
			}
			up.Send(plainResponse)
			s.turn()
			if got := client.ReceiveAll(); !bytes.HasPrefix(got, []byte("HTTP/1.1 200 OK\r\n")) {
				t.Errorf("answered %.40q", got)
			}
		})
	}
}

// What ends under way of a spliced upload ends as it would if the bytes were copied. Nobody can tell how much of the body went
// when the upstream goes first, so the client's connection ends with its answer: what it sends next is never taken for a request.
func TestSplicedUploadEndsEarly(t *testing.T) {
	early := []byte("HTTP/1.1 413 Payload Too Large\r\nContent-Length: 4\r\n\r\nbig\n")
	for name, test := range map[string]struct {
		end    func(s *sim, client, up *simulated.Peer)
		answer string
		flags  string
	}{
		"the upstream ends":        {func(_ *sim, _, up *simulated.Peer) { up.CloseWrite() }, "HTTP/1.1 503 ", "UC"},
		"the upstream resets":      {func(_ *sim, _, up *simulated.Peer) { up.Reset() }, "HTTP/1.1 503 ", "UC"},
		"the upstream answers":     {func(_ *sim, _, up *simulated.Peer) { up.Send(early) }, "HTTP/1.1 413 ", "-"},
		"it answers and goes away": {func(_ *sim, _, up *simulated.Peer) { up.Send(early); up.CloseWrite() }, "HTTP/1.1 413 ", "-"},
		"the client ends":          {func(_ *sim, client, up *simulated.Peer) { client.CloseWrite(); up.SetRoom(1 << 20) }, "", "DC"},
		"the client resets":        {func(_ *sim, client, up *simulated.Peer) { client.Reset(); up.SetRoom(1 << 20) }, "", "DC"},
		"the end of draining":      {func(s *sim, _, _ *simulated.Peer) { s.filter.CloseAll() }, "", "-"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSim(t, defaults())
			client := s.client()
			client.Send(fmt.Appendf(nil, "POST /upload HTTP/1.1\r\nHost: shop.example.com\r\nContent-Length: %d\r\n\r\n", 1_200_000))
			s.turn()
			up := s.backlog.Last()
			for range 11 {
				client.Send(pattern(0, 100_000))
				s.turn()
				up.Discard()
			}
			up.SetRoom(1000) // bytes stand in the pipe when it happens
			client.Send(pattern(0, 99_000))
			s.turn()
			if s.net.Calls["splice"] == 0 {
				t.Fatal("nothing was spliced")
			}
			test.end(s, client, up)
			s.turn()
			client.Send(append(pattern(0, 1_000), plainRequest...)) // the rest, and one that must not be served
			s.turn()
			s.turn()
			answered := client.ReceiveAll()
			if !bytes.HasPrefix(answered, []byte(test.answer)) || test.answer == "" && len(answered) > 0 || bytes.Count(answered, []byte("HTTP/1.1 ")) > 1 {
				t.Errorf("answered %q", answered)
			}
			if test.answer != "" && !bytes.Contains(answered, []byte("Connection: close\r\n")) {
				t.Errorf("the client is not told that its connection ends: %q", answered)
			}
			client.CloseWrite()
			s.net.Advance(6e9)
			s.turn()
			s.turn()
			if !client.Gone() || !up.Gone() {
				t.Errorf("client gone %v, upstream gone %v", client.Gone(), up.Gone())
			}
			if got := s.last(); got.flags != test.flags {
				t.Errorf("the log says %+v", got)
			}
			if n := s.net.Open(); n != 0 {
				t.Errorf("%d descriptors are left open", n)
			}
		})
	}
}

// held looks at what a flow has needed.
func (s *sim) held(most int, paused, resumed uint64) {
	s.t.Helper()
	if most > flowLimit {
		s.t.Errorf("the worker held %d bytes of a body, at most %d are its due", most, flowLimit)
	}
	if most < defaultBufferLimit/2 {
		s.t.Errorf("the worker held %d bytes at most: the reader was not slow, and this test shows nothing", most)
	}
	if paused == 0 || paused != resumed {
		s.t.Errorf("reading was paused %d times and resumed %d times", paused, resumed)
	}
	if used := s.worker.Pool.Used(); used != 0 {
		s.t.Errorf("%d bytes of buffers are held by nobody", used)
	}
}

// A client that takes nothing at all: what waits for it is bounded, and in the end it is cut off.
func TestClientThatTakesNothing(t *testing.T) {
	s := newSim(t, defaults())
	client := s.client()
	client.SetRoom(1000)
	client.Send(plainRequest)
	s.turn()
	up := s.backlog.Last()
	up.Send(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", flowBytes))
	for range 100 {
		if up.Unread() < flowWindow {
			up.Send(make([]byte, 64<<10))
		}
		s.worker.Turn(0)
	}
	if used := s.worker.Pool.Used(); used > flowLimit {
		t.Errorf("%d bytes wait for a client that takes nothing", used)
	}
	if up.Unread() < flowWindow {
		t.Errorf("the upstream is read on, %d bytes are left", up.Unread())
	}
	s.net.Advance(16e9) // the route's time-out
	s.turn()
	if got := s.last(); got.flags != "UT" || !up.Gone() || client.Gone() {
		t.Fatalf("the log says %q, upstream gone %v, client gone %v", got.flags, up.Gone(), client.Gone())
	}
	s.net.Advance(29e9)
	s.turn()
	if client.Receive(500); client.Gone() { // it moves, if slowly
		t.Fatal("the client was not waited for")
	}
	s.turn()
	for range 2 {
		s.net.Advance(31e9)
		s.turn()
	}
	if !client.Gone() || !client.SawReset() {
		t.Errorf("a client that takes nothing of its last bytes: gone %v, by a reset %v", client.Gone(), client.SawReset())
	}
	if used := s.worker.Pool.Used(); used != 0 {
		t.Errorf("%d bytes of buffers are held by nobody", used)
	}
}
