package tracing

import (
	"bytes"
	"encoding/hex"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
)

// decision is what a request says about sampling.
type decision uint8

const (
	undecided decision = iota
	no
	yes
)

// incoming is the trace context that a request brought. The zero value is none.
type incoming struct {
	id      [16]byte
	parent  [8]byte
	joined  bool // id and parent are set
	sampled decision
	debug   bool
	format  format
}

// format is a way to write trace context into headers.
type format uint8

const (
	none format = iota
	w3c
	b3
	b3Multi
)

var (
	b3Name        = []byte("b3")
	b3TraceID     = []byte("x-b3-traceid")
	b3SpanID      = []byte("x-b3-spanid")
	b3Parent      = []byte("x-b3-parentspanid")
	b3Sampled     = []byte("x-b3-sampled")
	b3Flags       = []byte("x-b3-flags")
	clientTraceID = []byte("x-client-trace-id")
	forceTrace    = []byte("x-envoy-force-trace")
)

// read finds the context of one format in the fields; false for none, and for one that is malformed: then a new trace begins, as
// the standards want it.
func (f format) read(b *header.Block) (incoming, bool) {
	switch f {
	case w3c:
		if b.Count(header.Traceparent) != 1 {
			return incoming{}, false
		}
		return parseTraceparent(b.Get(header.Traceparent))
	case b3:
		if i := b.IndexName(b3Name, 0); i >= 0 {
			return parseB3(b.ValueAt(i))
		}
	case b3Multi:
		return readB3Multi(b)
	}
	return incoming{}, false
}

// parseTraceparent reads W3C's header (Trace Context, 3.2): of a later version what version 00 has.
func parseTraceparent(v []byte) (in incoming, ok bool) {
	const length = len("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
	var version, flags [1]byte
	switch {
	case len(v) < length || v[2] != '-' || v[35] != '-' || v[52] != '-':
		return in, false
	case !unhex(version[:], v[:2], false) || version[0] == 0xff:
		return in, false
	case len(v) > length && (version[0] == 0 || v[length] != '-'):
		return in, false
	case !unhex(in.id[:], v[3:35], false) || !unhex(in.parent[:], v[36:52], false) || !unhex(flags[:], v[53:55], false):
		return in, false
	case in.id == [16]byte{} || in.parent == [8]byte{}:
		return in, false
	}
	in.joined, in.format, in.sampled = true, w3c, no
	if flags[0]&1 != 0 {
		in.sampled = yes
	}
	return in, true
}

// parseB3 reads B3's single header: TRACE-SPAN, with -SAMPLED and -PARENT behind, or SAMPLED alone.
func parseB3(v []byte) (in incoming, ok bool) {
	in.format = b3
	if len(v) == 1 {
		return in, in.decide(v)
	}
	trace, rest, more := bytes.Cut(v, dash)
	if !more {
		return incoming{}, false
	}
	span, rest, more := bytes.Cut(rest, dash)
	if !in.join(trace, span) {
		return incoming{}, false
	}
	if !more {
		return in, true
	}
	sampled, parent, more := bytes.Cut(rest, dash)
	if len(sampled) != 1 || !in.decide(sampled) {
		return incoming{}, false
	}
	var unused [8]byte
	if more && (len(parent) != 16 || !unhex(unused[:], parent, true)) {
		return incoming{}, false
	}
	return in, true
}

var dash = []byte("-")

// readB3Multi reads B3's several headers. A decision may come without ids.
func readB3Multi(b *header.Block) (in incoming, ok bool) {
	in.format = b3Multi
	if v := b.GetName(b3Sampled); v != nil {
		if !in.decide(v) {
			return incoming{}, false
		}
		ok = true
	}
	if v := b.GetName(b3Flags); len(v) == 1 && v[0] == '1' {
		in.sampled, in.debug, ok = yes, true, true
	}
	trace, span := b.GetName(b3TraceID), b.GetName(b3SpanID)
	if trace == nil && span == nil {
		return in, ok
	}
	if !in.join(trace, span) {
		return incoming{}, false
	}
	return in, true
}

// decide reads a decision of B3; the words are those of its first writers.
func (in *incoming) decide(v []byte) bool {
	switch string(v) {
	case "1", "true":
		in.sampled = yes
	case "0", "false":
		in.sampled = no
	case "d":
		in.sampled, in.debug = yes, true
	default:
		return false
	}
	return true
}

// join takes B3's ids; a trace's has 16 or 32 digits.
func (in *incoming) join(trace, span []byte) bool {
	at := in.id[:]
	if len(trace) == 16 {
		at = at[8:]
	}
	if len(trace) != 2*len(at) || len(span) != 16 || !unhex(at, trace, true) || !unhex(in.parent[:], span, true) {
		return false
	}
	in.joined = in.id != [16]byte{} && in.parent != [8]byte{}
	return in.joined
}

// unhex reads twice as many digits as dst has bytes; those in upper case only where they are allowed.
func unhex(dst, digits []byte, upper bool) bool {
	if len(digits) != 2*len(dst) {
		return false
	}
	for i := range dst {
		hi, lo := nibble(digits[2*i], upper), nibble(digits[2*i+1], upper)
		if hi|lo > 15 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func nibble(c byte, upper bool) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case upper && c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// remove takes the context of a format off the fields.
func (f format) remove(b *header.Block) {
	switch f {
	case w3c:
		b.RemoveID(header.Traceparent)
		b.RemoveID(header.Tracestate)
	case b3:
		b.RemoveName(b3Name)
	case b3Multi:
		for _, name := range [...][]byte{b3TraceID, b3SpanID, b3Parent, b3Sampled, b3Flags} {
			b.RemoveName(name)
		}
	}
}

// write puts the context into the fields. keepState leaves the tracestate that came with the trace.
func (f format) write(b *header.Block, t *stream.Trace, scratch []byte, keepState bool) []byte {
	switch f {
	case w3c:
		flags := "-00"
		if t.Sampled {
			flags = "-01"
		}
		scratch = append(hex.AppendEncode(append(scratch[:0], "00-"...), t.ID[:]), '-')
		scratch = append(hex.AppendEncode(scratch, t.Span[:]), flags...)
		b.Set(header.Traceparent, nil, scratch)
		if !keepState {
			b.RemoveID(header.Tracestate)
		}
	case b3:
		scratch = append(hex.AppendEncode(scratch[:0], t.ID[:]), '-')
		scratch = append(hex.AppendEncode(scratch, t.Span[:]), '-', f.sampled(t))
		if t.Parent != [8]byte{} {
			scratch = hex.AppendEncode(append(scratch, '-'), t.Parent[:])
		}
		b.Set(header.Other, b3Name, scratch)
	case b3Multi:
		f.remove(b)
		scratch = hex.AppendEncode(scratch[:0], t.ID[:])
		b.Add(header.Other, b3TraceID, scratch)
		scratch = hex.AppendEncode(scratch[:0], t.Span[:])
		b.Add(header.Other, b3SpanID, scratch)
		if t.Parent != [8]byte{} {
			scratch = hex.AppendEncode(scratch[:0], t.Parent[:])
			b.Add(header.Other, b3Parent, scratch)
		}
		if scratch = append(scratch[:0], f.sampled(t)); scratch[0] == 'd' {
			b.AddString(header.Other, "x-b3-flags", "1")
		} else {
			b.Add(header.Other, b3Sampled, scratch)
		}
	}
	return scratch
}

func (format) sampled(t *stream.Trace) byte {
	switch {
	case t.Sampled && t.Debug:
		return 'd'
	case t.Sampled:
		return '1'
	}
	return '0'
}
