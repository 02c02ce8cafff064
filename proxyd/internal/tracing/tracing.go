// Package tracing makes requests spans of distributed traces: it reads and writes their context (W3C Trace Context, B3), decides
// what is sampled, and records the spans of what is.
//
// Begin runs on the worker's thread when a request's head is known. A recorded span is encoded, as OpenTelemetry's protocol has
// it, into memory of the worker's own when the stream ends; a flusher on the main side sends what is full or old to statsd,
// which exports it. When the flusher is behind, because statsd is away, spans are dropped and counted: no request waits for
// them.
package tracing

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// million is all of what a share is of.
const million = 1_000_000

// Config is the tracing of one connection manager. Immutable; workers share it.
type Config struct {
	Sampling
	trusted           []netip.Prefix
	trustedOnly       bool
	accept, propagate []format
	drop              []format // read and not written
	tries             bool     // each try upstream is a span of its own

	maxPath int
	tags    []tag
}

// Sampling is which requests have spans: shares, of a million. Immutable.
type Sampling struct{ random, client, overall uint32 }

// Override is what a route says about the sampling of its connection manager; nil when it says nothing, or there is none.
func Override(of *configv1.HttpTracing, r *configv1.RouteTracing) *Sampling {
	if of == nil || r == nil {
		return nil
	}
	s := &Sampling{random: of.GetRandomSampling(), client: of.GetClientSampling(), overall: of.GetOverallSampling()}
	for to, share := range map[*uint32]*uint32{&s.random: r.RandomSampling, &s.client: r.ClientSampling, &s.overall: r.OverallSampling} {
		if share != nil {
			*to = *share
		}
	}
	return s
}

// tag is one that the configuration adds to every span.
type tag struct {
	name  string
	value Value
}

// Value renders a tag's value for a stream, without allocating.
type Value interface {
	Append(dst []byte, s *stream.Stream) []byte
}

// formats are the formats of context by their numbers in the contract.
var formats = map[configv1.TraceFormat]format{
	configv1.TraceFormat_TRACE_FORMAT_W3C: w3c, configv1.TraceFormat_TRACE_FORMAT_B3: b3, configv1.TraceFormat_TRACE_FORMAT_B3_MULTI: b3Multi,
}

// New compiles the object; nil for nil. compile makes the values of tags.
func New(t *configv1.HttpTracing, compile func(format string) (Value, error)) (*Config, error) {
	if t == nil {
		return nil, nil
	}
	c := &Config{
		Sampling:    Sampling{random: t.GetRandomSampling(), client: t.GetClientSampling(), overall: t.GetOverallSampling()},
		trustedOnly: t.GetTrustedContextOnly(), maxPath: int(t.GetMaxPathTagLength()),
		tries: t.GetSpawnUpstreamSpan() && t.GetExport(),
	}
	if c.maxPath <= 0 {
		c.maxPath = 256
	}
	c.maxPath = min(c.maxPath, maxText)
	for _, text := range t.GetTrusted() {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("tracing: trusted: %w", err)
		}
		c.trusted = append(c.trusted, p.Masked())
	}
	var err error
	if c.accept, err = formatsOf(t.GetAccept()); err != nil {
		return nil, err
	}
	if c.propagate, err = formatsOf(t.GetPropagate()); err != nil {
		return nil, err
	}
	for _, f := range c.accept {
		written := false
		for _, p := range c.propagate {
			written = written || f == p
		}
		if !written {
			c.drop = append(c.drop, f)
		}
	}
	for _, configured := range t.GetTags() {
		v, err := compile(configured.GetFormat())
		if err != nil {
			return nil, fmt.Errorf("tracing: tag %q: %w", configured.GetName(), err)
		}
		c.tags = append(c.tags, tag{configured.GetName(), v})
	}
	return c, nil
}

func formatsOf(list []configv1.TraceFormat) (out []format, err error) {
	for _, f := range list {
		known := formats[f]
		if known == none {
			return nil, fmt.Errorf("tracing: format %v is not known to this version", f)
		}
		out = append(out, known)
	}
	return out, nil
}

// Begin gives the request of a stream its place in a trace and writes it into the request's fields. sampling is what its route says,
// nil for nothing. It answers scratch, which may have grown.
func (c *Config) Begin(s *stream.Stream, scratch []byte, sampling *Sampling) []byte {
	if sampling == nil {
		sampling = &c.Sampling
	}
	b := &s.Request.Block
	trusted := c.trusts(s.Peer.Addr().Unmap())
	forced, asked := false, false
	if b.Has(header.Other) {
		if trusted {
			forced, asked = b.HasName(forceTrace), b.HasName(clientTraceID)
		} else {
			b.RemoveName(forceTrace)
			b.RemoveName(clientTraceID)
		}
	}
	var in incoming
	if trusted || !c.trustedOnly {
		for _, f := range c.accept {
			if found, ok := f.read(b); ok {
				in = found
				break
			}
		}
	}
	t := &s.Trace
	*t = stream.Trace{On: true, ID: in.id, Parent: in.parent, Debug: in.debug, State: in.format == w3c && in.joined}
	for t.ID == [16]byte{} {
		binary.BigEndian.PutUint64(t.ID[:], s.Worker.Rand())
		binary.BigEndian.PutUint64(t.ID[8:], s.Worker.Rand())
	}
	for t.Span == [8]byte{} {
		binary.BigEndian.PutUint64(t.Span[:], s.Worker.Rand())
	}
	sampling.decide(s, in.sampled, forced, asked)
	if c.tries && t.Sampled {
		t.Tries = c
	}
	for _, f := range c.drop {
		f.remove(b)
	}
	return c.write(b, t, scratch)
}

func (c *Config) write(b *header.Block, t *stream.Trace, scratch []byte) []byte {
	for _, f := range c.propagate {
		scratch = f.write(b, t, scratch, t.State)
	}
	return scratch
}

// Propagate implements stream.Propagator: the span is the request's own, or below it.
func (c *Config) Propagate(s *stream.Stream, span [8]byte, scratch []byte) []byte {
	t := s.Trace
	if span != t.Span {
		t.Parent, t.Span = t.Span, span
	}
	return c.write(&s.Request.Block, &t, scratch)
}

// decide says whether the span is recorded, and counts why: what a trusted peer asks for, what came with the trace, the draw.
func (c *Sampling) decide(s *stream.Stream, came decision, forced, asked bool) {
	reason, sampled := counters.HTTPTracingNotTraceable, false
	switch {
	case asked && c.draw(s, c.client):
		reason, sampled = counters.HTTPTracingClientEnabled, true
	case forced:
		reason, sampled = counters.HTTPTracingServiceForced, true
	case came == yes:
		reason, sampled = counters.HTTPTracingContextSampled, true
	case came == undecided && c.draw(s, c.random):
		reason, sampled = counters.HTTPTracingRandomSampling, true
	}
	if sampled && !c.draw(s, c.overall) {
		reason, sampled = counters.HTTPTracingNotTraceable, false
	}
	s.Trace.Sampled = sampled
	s.Cells[reason]++
}

func (c *Sampling) draw(s *stream.Stream, share uint32) bool {
	return share >= million || uint32(s.Worker.Rand()%million) < share
}

func (c *Config) trusts(peer netip.Addr) bool {
	for _, p := range c.trusted {
		if p.Contains(peer) {
			return true
		}
	}
	return false
}
