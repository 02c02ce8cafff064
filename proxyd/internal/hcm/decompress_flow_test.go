package hcm

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"retinue.dev/proxyd/internal/timer"
	configv1 "retinue.dev/services/api/config/v1"
)

// flushing is an encoder whose output so far can be decoded.
type flushing interface {
	io.WriteCloser
	Flush() error
}

// packer makes chunks of what goes into an encoder.
type packer struct {
	wire bytes.Buffer
	enc  flushing
}

func newPacker(t *testing.T, coding string) *packer {
	p := &packer{}
	switch coding {
	case "gzip":
		p.enc = gzip.NewWriter(&p.wire)
	case "br":
		p.enc = brotli.NewWriterLevel(&p.wire, 1)
	case "zstd":
		z, err := zstd.NewWriter(&p.wire, zstd.WithEncoderConcurrency(1))
		must(t, err)
		p.enc = z
	}
	return p
}

func (p *packer) chunk(t *testing.T, b []byte) []byte {
	_, err := p.enc.Write(b)
	must(t, err)
	must(t, p.enc.Flush())
	return p.taken()
}

func (p *packer) end(t *testing.T) []byte {
	must(t, p.enc.Close())
	return append(p.taken(), "0\r\n\r\n"...)
}

func (p *packer) taken() []byte {
	b := bytes.Clone(p.wire.Bytes())
	p.wire.Reset()
	if len(b) == 0 {
		return nil
	}
	return chunkFrame(b)
}

func large() *configv1.Filter {
	f := decompressing()
	d := f.GetDecompress()
	d.MaxBytes, d.MaxCompressedBytes = 2*flowBytes, 2*flowBytes
	return f
}

// noise is bytes that no coding makes fewer.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// chunksOf takes the chunks apart as far as they are whole.
func chunksOf(b []byte) (out []byte) {
	for {
		line, rest, found := bytes.Cut(b, []byte("\r\n"))
		var n int
		if k, err := fmt.Sscanf(string(line), "%x", &n); !found || k != 1 || err != nil || len(rest) < n+2 {
			return out
		}
		out, b = append(out, rest[:n]...), rest[n+2:]
	}
}

// What has come goes on before the rest has come, however it is cut.
func TestDecompressStreams(t *testing.T) {
	for _, coding := range []string{"gzip", "br", "zstd"} {
		for _, cut := range []int{1, 7, 1000} {
			for _, request := range []bool{true, false} {
				x := newWorld(t, defaults(), built(t, large())...)
				c := x.client()
				from, to := c, (*peer)(nil)
				if request {
					c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: " + coding + "\r\nTransfer-Encoding: chunked\r\n\r\n")
				} else {
					c.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
					from, to = x.upstream(), c
					from.send("HTTP/1.1 200 OK\r\nContent-Encoding: " + coding + "\r\nTransfer-Encoding: chunked\r\n\r\n")
				}
				p := newPacker(t, coding)
				var want []byte
				for part := range 5 {
					text := words(100 * (part + 1))
					want = append(want, text...)
					wire := p.chunk(t, text)
					for len(wire) > 0 {
						n := min(cut, len(wire))
						from.send(string(wire[:n]))
						wire = wire[n:]
					}
					if to == nil {
						to = x.upstream()
					}
					x.until("what has come", func() bool {
						x.pass(time.Duration(timer.Tick))
						to.pull()
						_, body, _ := bytes.Cut(to.got, []byte("\r\n\r\n"))
						return bytes.Equal(chunksOf(body), want)
					})
				}
				from.send(string(p.end(t)))
				x.until("the end", func() bool { to.pull(); return bytes.HasSuffix(to.got, []byte("\r\n0\r\n\r\n")) })
			}
		}
	}
}

// Who does not read stops who sends, and what the worker holds between them is bounded.
func TestDecompressSlowReader(t *testing.T) {
	for _, coding := range []string{"gzip", "br", "zstd"} {
		for _, request := range []bool{true, false} {
			s := newSim(t, defaults(), built(t, large())...)
			client := s.client()
			from, to := client, client
			if request {
				client.Send([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: " + coding + "\r\nTransfer-Encoding: chunked\r\n\r\n"))
				s.turn()
			} else {
				client.Send(plainRequest)
				s.turn()
				from = s.backlog.Last()
				from.Discard()
				from.Send([]byte("HTTP/1.1 200 OK\r\nContent-Encoding: " + coding + "\r\nTransfer-Encoding: chunked\r\n\r\n"))
			}
			whole := noise(flowBytes)
			p := newPacker(t, coding)
			var got []byte
			most, stood, sent := 0, 0, 0
			for turn := 0; ; turn++ {
				if from.Unread() < flowWindow && sent < flowBytes {
					from.Send(p.chunk(t, whole[sent:sent+64<<10]))
					if sent += 64 << 10; sent == flowBytes {
						from.Send(p.end(t))
					}
				} else if sent < flowBytes {
					stood++
				}
				s.worker.Turn(0)
				s.net.Advance(timer.Tick)
				most = max(most, s.worker.Pool.Used())
				if request && to == client {
					if to = s.backlog.Last(); to == nil {
						to = client
						continue
					}
					to.SetRoom(flowWindow)
				} else if turn == 0 {
					to.SetRoom(flowWindow)
				}
				got = append(got, to.Receive(24<<10)...)
				if bytes.HasSuffix(got, []byte("\r\n0\r\n\r\n")) {
					break
				}
				if turn > 1<<16 {
					t.Fatalf("%s, request %v: the bytes stand still at %d", coding, request, len(got))
				}
			}
			_, body, _ := bytes.Cut(got, []byte("\r\n\r\n"))
			if !bytes.Equal(unchunk(t, body), whole) {
				t.Errorf("%s, request %v: other bytes arrived", coding, request)
			}
			if most > flowLimit || stood == 0 {
				t.Errorf("%s, request %v: the worker held %d bytes, at most %d are its due; the sender stood %d turns", coding, request, most, flowLimit, stood)
			}
			if !request {
				s.turn()
			} else {
				to.Send(plainResponse)
				s.turn()
			}
			if used := s.worker.Pool.Used(); used != 0 {
				t.Errorf("%s, request %v: %d bytes of buffers are held by nobody", coding, request, used)
			}
		}
	}
}

// Whenever its stream ends, a coroutine ends with it, and its decoder serves the next body.
func TestDecompressAbandoned(t *testing.T) {
	for _, coding := range []string{"gzip", "br", "zstd"} {
		x := newWorld(t, defaults(), built(t, decompressing())...)
		text := words(300)
		wire := packed(t, coding, text)
		before := runtime.NumGoroutine()
		for cut := 1; cut < len(wire); cut += 3 {
			c := x.client()
			c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: " + coding + "\r\nTransfer-Encoding: chunked\r\n\r\n" + string(chunkFrame(wire[:cut])))
			c.close()
			x.until("the end of the stream", func() bool { return x.filter.Active() == 0 })
		}
		if n := runtime.NumGoroutine(); n > before {
			t.Errorf("%s: %d goroutines, %d before", coding, n, before)
		}
		c := x.client()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: " + coding + "\r\nTransfer-Encoding: chunked\r\n\r\n")
		c.send(string(chunkFrame(wire[:10])))
		c.send(string(chunkFrame(wire[10:])) + "0\r\n\r\n")
		var up *peer
		for up == nil { // those of requests that were given up may stand before it
			if up = x.upstream(); up != nil {
				x.turn()
				if up.pull(); up.eof || up.rst {
					up = nil
				}
			}
		}
		if _, body := up.request(); !bytes.Equal(body, text) {
			t.Errorf("%s: got %d bytes", coding, len(body))
		}
	}
}

// Bodies beyond those that have a decoder are kept until they are whole, within a bound.
func TestDecompressMany(t *testing.T) {
	x := newWorld(t, defaults(), built(t, large())...)
	text := words(300_000)
	wire := packed(t, "gzip", text)
	var slow []*peer
	for range 128 {
		c := x.client()
		c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n" + string(chunkFrame(wire[:5])))
		slow = append(slow, c)
	}
	c := x.client()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
	for at := 0; at < len(wire); at += 10_000 {
		c.send(string(chunkFrame(wire[at:min(at+10_000, len(wire))])))
	}
	c.send("0\r\n\r\n")
	if _, body := x.upstream().request(); !bytes.Equal(body, text) {
		t.Errorf("got %d bytes", len(body))
	}
	c = x.client()
	c.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n")
	c.send(string(chunkFrame(packed(t, "gzip", noise(1<<20+1)))))
	x.until("an answer", func() bool { c.pull(); return bytes.Contains(c.got, []byte("\r\n\r\n")) })
	if l := x.last(); l.status != 503 || l.details != "decompression_overflow" {
		t.Errorf("logged %+v", l)
	}
	for _, c := range slow {
		c.close()
	}
	x.until("the end of all", func() bool { return x.filter.Active() <= 1 })
}

// BenchmarkDecompress compares a body of 10 KB that is here as a whole with one that comes in two pieces, which has a coroutine.
func BenchmarkDecompress(b *testing.B) {
	var wire bytes.Buffer
	z := gzip.NewWriter(&wire)
	_, err := z.Write(words(10_000))
	must(b, err)
	must(b, z.Close())
	for name, cut := range map[string]int{"whole": 0, "pieces": wire.Len() / 2} {
		b.Run(name, func(b *testing.B) {
			s := newSim(b, defaults(), built(b, decompressing())...)
			s.filter.Config.Logs = nil
			client := s.client()
			head := fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: a\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n", wire.Len())
			once := func() {
				client.Send(head)
				if cut > 0 {
					client.Send(wire.Bytes()[:cut])
					s.turn()
				}
				client.Send(wire.Bytes()[cut:])
				s.turn()
				up := s.backlog.Last()
				if up.Discard() < 10_000 {
					b.Fatal("the body did not arrive")
				}
				up.Send(plainResponse)
				s.turn()
				client.Discard()
			}
			once()
			b.ReportAllocs()
			for b.Loop() {
				once()
			}
		})
	}
}
