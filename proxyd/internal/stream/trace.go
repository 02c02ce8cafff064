package stream

// Trace is a request's place in a distributed trace. The zero value is a request without one.
type Trace struct {
	ID      [16]byte
	Span    [8]byte // this proxy's own
	Parent  [8]byte // zero: the trace begins here
	On      bool    // the fields above are set
	Sampled bool    // the span is recorded
	Debug   bool    // B3's debug flag came with the request
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
