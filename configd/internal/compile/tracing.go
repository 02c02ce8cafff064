package compile

import (
	"strings"

	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// traceFormats are the formats of trace context by their words.
var traceFormats = map[string]configv1.TraceFormat{
	"w3c": configv1.TraceFormat_TRACE_FORMAT_W3C, "b3": configv1.TraceFormat_TRACE_FORMAT_B3, "b3_multi": configv1.TraceFormat_TRACE_FORMAT_B3_MULTI,
}

// tracing compiles the block that says where spans go.
func (c *compiler) tracing(n *schema.Node) {
	name := n.Get("service_name")
	t := &configv1.Tracing{
		Endpoint: c.otlpEndpoint(n.Get("endpoint"), "/v1/traces"), ServiceName: n.Str("service_name"),
		TimeoutMs: n.Int("timeout"), QueueBytes: uint64(n.Int("queue")),
	}
	if name.V != nil {
		c.labelText(name)
	}
	t.Headers = c.statsLabels(n.Pairs("headers"), func(v schema.Value) bool {
		_, ok := c.headerName(v)
		return ok
	})
	t.Attributes = c.statsLabels(n.Pairs("attributes"), c.labelText)
	c.out.Add(&configv1.Object{Kind: "tracing", Body: &configv1.Object_Tracing{Tracing: t}}, c.place(n.DefRange))
	c.mark("tracing", "", n)
}

// httpTracing compiles the tracing block of an http block; nil without one.
func (c *compiler) httpTracing(n *schema.Node) *configv1.HttpTracing {
	if n == nil {
		return nil
	}
	t := &configv1.HttpTracing{
		RandomSampling: uint32(n.Int("random_sampling")), ClientSampling: uint32(n.Int("client_sampling")), OverallSampling: uint32(n.Int("overall_sampling")),
		Trusted: c.networks(n.List("trusted")), TrustedContextOnly: n.Bool("trusted_context_only"),
		Accept: c.traceFormats(n.List("accept")), Propagate: c.traceFormats(n.List("propagate")),
		MaxPathTagLength: uint32(n.Int("max_path_tag_length")), Export: c.traces != nil, SpawnUpstreamSpan: n.Bool("spawn_upstream_span"),
	}
	if t.TrustedContextOnly && !n.Has("trusted") {
		c.diags.Report(diag.Exclusive, n.Range("trusted_context_only"), "Nobody is trusted", "trusted_context_only needs the networks whose context is continued: write trusted. accept = [] continues nobody's.")
	}
	if n.Own("client_sampling") && !n.Has("trusted") {
		c.diags.Report(diag.Exclusive, n.Range("client_sampling"), "Nobody is trusted", "client_sampling is about x-client-trace-id, which counts from trusted peers alone: write trusted.")
	}
	if t.SpawnUpstreamSpan && c.traces == nil {
		c.diags.Report(diag.NoEffect, n.Range("spawn_upstream_span"), "No spans", "spawn_upstream_span needs a tracing block beside the listeners, which says where spans go.")
	}
	seen := map[string]bool{}
	for _, p := range n.Pairs("tags") {
		name, _ := p.Name.V.(string)
		if name == "" || len(name) > 128 || seen[name] || strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			c.diags.Report(diag.InvalidName, p.Name.Range, "Invalid tag name", "A tag has a name of its own of 1 to 128 bytes without control characters.")
			continue
		}
		seen[name] = true
		if len(p.Values) != 1 {
			c.diags.Report(diag.WrongType, p.Name.Range, "Wrong type", "A tag is one text, which may hold operators.")
			continue
		}
		if value, _ := p.Values[0].V.(string); c.format(p.Values[0]) {
			t.Tags = append(t.Tags, &configv1.TraceTag{Name: name, Format: value})
		}
	}
	return t
}

// routeTracing compiles the tracing block of a route; nil without one.
func (c *compiler) routeTracing(n *schema.Node) *configv1.RouteTracing {
	if n == nil {
		return nil
	}
	t := &configv1.RouteTracing{}
	for name, to := range map[string]**uint32{"random_sampling": &t.RandomSampling, "client_sampling": &t.ClientSampling, "overall_sampling": &t.OverallSampling} {
		if n.Has(name) {
			*to = proto.Uint32(uint32(n.Int(name)))
		}
	}
	return t
}

func (c *compiler) traceFormats(list []schema.Value) []configv1.TraceFormat {
	var out []configv1.TraceFormat
	seen := map[configv1.TraceFormat]bool{}
	for _, v := range list {
		word, _ := v.V.(string)
		format, known := traceFormats[word]
		switch {
		case !known:
			c.diags.Report(diag.OutOfRange, v.Range, "Value not allowed", "%q is none of \"w3c\", \"b3\" and \"b3_multi\".", word)
		case seen[format]:
			c.diags.Report(diag.Exclusive, v.Range, "Format written twice", "%q is already in the list.", word)
		}
		if known && !seen[format] {
			seen[format] = true
			out = append(out, format)
		}
	}
	return out
}
