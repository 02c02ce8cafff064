package hcm

import (
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/http2"
	"retinue.dev/proxyd/internal/overload"
	"retinue.dev/proxyd/internal/stream"
)

// overloaded decides one case of an action. Without overload it costs a comparison.
func (s *Shared) overloaded(a overload.Action) bool {
	return s.Overload[a] > 0 && s.Overload.Draw(a, s.worker.Rand())
}

// turnAway answers a request that is not served for want of a resource, as Envoy does.
func (c *connection) turnAway(s *stream.Stream) {
	c.cells[counters.HTTPDownstreamRqOverloadClose]++
	s.Flags |= stream.FlagOverloadManager
	reply := s.NewReply(503)
	reply.AddString(header.XEnvoyOverloaded, "", "true")
	s.SendReply(overloadedText, "text/plain", stream.DetailOverload)
}

var overloadedText = []byte("envoy overloaded")

// Rearm lets every connection look at its time-outs again: they have become shorter.
func (f *Filter) Rearm() {
	for c := f.connections; c != nil; c = c.next {
		c.rearm()
	}
}

const (
	// maxVictims is how many streams of a worker are reset at a time.
	maxVictims = 16
	// minVictim is the least memory of a stream that is worth it, in bytes.
	minVictim = 64 << 10
)

// Victims are the streams that hold most memory, the greatest first. The zero value is ready.
type Victims struct {
	list [maxVictims]victim
	n    int
}

type victim struct {
	stream *stream.Stream
	bytes  int
}

func (v *Victims) offer(s *stream.Stream, bytes int) {
	if bytes < minVictim || s.Finished() || v.n == maxVictims && bytes <= v.list[v.n-1].bytes {
		return
	}
	if v.n < maxVictims {
		v.n++
	}
	at := v.n - 1
	for ; at > 0 && v.list[at-1].bytes < bytes; at-- {
		v.list[at] = v.list[at-1]
	}
	v.list[at] = victim{s, bytes}
}

// Weigh offers the filter's streams.
func (f *Filter) Weigh(v *Victims) {
	for c := f.connections; c != nil; c = c.next {
		switch h := c.codec.(type) {
		case *h1:
			if h.x != nil {
				v.offer(&h.x.stream, h.x.stream.Buffered()+h.x.router.Buffered())
			}
		case *h2:
			h.session.Each(func(st *http2.Stream) {
				if x, ok := st.Owner.(*h2Stream); ok {
					v.offer(&x.stream, x.stream.Buffered()+x.router.Buffered()+x.early.Len())
				}
			})
		}
	}
}

// Reset ends so many of them as the level of reset_high_memory_stream says, and answers how many.
func (v *Victims) Reset(level uint32) (n int) {
	most := (int(level)*maxVictims + overload.Full - 1) / overload.Full
	for _, victim := range v.list[:min(v.n, most)] {
		if !victim.stream.Finished() {
			victim.stream.Cells[counters.HTTPDownstreamRqOverloadReset]++
			victim.stream.Reset(stream.ResetOverload, stream.FlagOverloadManager, stream.DetailOverload)
			n++
		}
	}
	*v = Victims{}
	return n
}
