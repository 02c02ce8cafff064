package plugintest

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"testing"
	"time"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// Benchmark measures calls of a program: one frame a write, sixteen a write, and beside it what the same round trip costs as one unary call of
// gRPC, so that one sees why the data channel is none.
func Benchmark(b *testing.B, p Program) {
	s := start(b, p, time.Minute)
	r := s.configure(1, p.Config)
	if len(r.GetProblems()) > 0 {
		b.Fatalf("the configuration is refused: %v", r.GetProblems())
	}
	phase := r.GetSubscription().GetPhases()[0]
	for _, batch := range []int{1, 16} {
		b.Run(fmt.Sprintf("frames=%d", batch), func(b *testing.B) {
			c := s.data()
			var out []byte
			for i := range uint64(batch) {
				out = appendFrame(out, event(&filterv1.Event{
					Call: i + 1, Stream: i, ConfigId: 1, Phase: phase, End: true, DeadlineUs: 1e6,
					Headers: []*filterv1.Header{{Name: ":path", Value: []byte("/a/path?of=some&length=here")}, {Name: "user-agent", Value: []byte("benchmark")}},
				}))
			}
			in := bufio.NewReaderSize(c, 64<<10)
			b.ResetTimer()
			for n := 0; n < b.N; n += batch {
				if _, err := c.Write(out); err != nil {
					b.Fatal(err)
				}
				for range batch {
					var head [4]byte
					if _, err := io.ReadFull(in, head[:]); err != nil {
						b.Fatal(err)
					}
					if _, err := in.Discard(int(binary.LittleEndian.Uint32(head[:]))); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	b.Run("unary", func(b *testing.B) {
		for range b.N {
			if _, err := s.control(&filterv1.ControlRequest{Call: &filterv1.ControlRequest_Drain{Drain: &filterv1.DrainRequest{}}}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
