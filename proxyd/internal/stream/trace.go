package stream

import (
	"encoding/binary"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/header"
)

// Trace is a request's place in a distributed trace. The zero value is a request without one.
type Trace struct {
	ID      [16]byte
	Span    [8]byte // this proxy's own
	Parent  [8]byte // zero: the trace begins here
	On      bool    // the fields above are set
	Sampled bool    // the span is recorded
	Debug   bool    // B3's debug flag came with the request
	State   bool    // tracestate came with it, and goes on
	Tries   Propagator
}

// Propagator writes a span's context into the request that the upstream gets. Where a Trace has one, each try is a span of its own.
type Propagator interface {
	// Propagate answers scratch, which may have grown.
	Propagate(s *Stream, span [8]byte, scratch []byte) []byte
}

// MaxTries bounds the spans of tries that one request has.
const MaxTries = 8

// Try is one try upstream, a span below the request's.
type Try struct {
	Span       [8]byte
	Cluster    string
	Host       *cluster.Host // nil: there was no connection
	Link       Link          // what carried it, where the span is recorded
	Start, End int64         // ns of the worker's clock
	Retry      uint32        // 0: the first
	Status     int           // of its answer; 0: there was none
	GRPC       int           // grpc-status; below 0: none
	Canceled   bool          // given up by us
	Failure    string        // why there was no answer, where that was not our wish
}

// BeginTry begins the span of a try: its place in Tries, plus 1; 0 where tries have none.
func (s *Stream) BeginTry(cluster string) int {
	if s.Trace.Tries == nil || len(s.Tries) >= MaxTries {
		return 0
	}
	t := Try{Cluster: cluster, Start: s.Worker.Now(), Retry: uint32(len(s.Tries)), GRPC: -1}
	binary.NativeEndian.PutUint64(t.Span[:], s.Worker.Rand()|1) // zero is none
	s.Tries = append(s.Tries, t)
	return len(s.Tries)
}

// Answered notes what the fields of a head, or trailers, say of gRPC.
func (t *Try) Answered(b *header.Block) {
	if v := b.Get(header.GrpcStatus); len(v) > 0 && len(v) <= 2 {
		n := 0
		for _, c := range v {
			if c < '0' || c > '9' {
				return
			}
			n = 10*n + int(c-'0')
		}
		t.GRPC = n
	}
}

// MaxCalls bounds the calls of plugins that one request's trace has.
const MaxCalls = 32

// Call is one call of a plugin, a span below the request's.
type Call struct {
	Name       string // "plugin stamp"
	Phase      string
	Start, End int64 // ns of the worker's clock
	Failed     bool
}

// NoteCall remembers a call of a request whose span is recorded.
func (s *Stream) NoteCall(c Call) {
	if s.Trace.Sampled && len(s.Calls) < MaxCalls {
		s.Calls = append(s.Calls, c)
	}
}
