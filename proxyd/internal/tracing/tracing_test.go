package tracing

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	traceID = "4bf92f3577b34da6a3ce929d0e0e4736"
	spanID  = "00f067aa0ba902b7"
)

func newStream(t testing.TB, fields ...string) *stream.Stream {
	t.Helper()
	w, err := worker.New(0, simulated.New())
	if err != nil {
		t.Fatal(err)
	}
	s := &stream.Stream{Worker: w, Cells: new(counters.HTTP)}
	s.Peer = netip.MustParseAddrPort("192.0.2.1:1000")
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		if !s.Request.AddString(header.Other, name, value) {
			t.Fatalf("%q is not taken", f)
		}
	}
	return s
}

func config(t testing.TB, edit func(*configv1.HttpTracing)) *Config {
	t.Helper()
	object := &configv1.HttpTracing{
		RandomSampling: million, ClientSampling: million, OverallSampling: million,
		Accept:    []configv1.TraceFormat{configv1.TraceFormat_TRACE_FORMAT_W3C},
		Propagate: []configv1.TraceFormat{configv1.TraceFormat_TRACE_FORMAT_W3C},
	}
	if edit != nil {
		edit(object)
	}
	c, err := New(object, func(format string) (Value, error) { return constant(format), nil })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

type constant string

func (c constant) Append(dst []byte, _ *stream.Stream) []byte { return append(dst, c...) }

func fieldsOf(s *stream.Stream) string {
	var b strings.Builder
	for i := range s.Request.Len() {
		b.WriteString(string(s.Request.NameAt(i)) + ": " + string(s.Request.ValueAt(i)) + "\n")
	}
	return b.String()
}

const (
	nothing = configv1.TraceFormat_TRACE_FORMAT_UNSPECIFIED
	inW3C   = configv1.TraceFormat_TRACE_FORMAT_W3C
	inB3    = configv1.TraceFormat_TRACE_FORMAT_B3
	inMulti = configv1.TraceFormat_TRACE_FORMAT_B3_MULTI
)

// TestContext has a row for each thing that a request may bring: what is continued, what goes on, who decides.
func TestContext(t *testing.T) {
	trusting := func(h *configv1.HttpTracing) { h.Trusted = []string{"192.0.2.0/24"} }
	never := func(h *configv1.HttpTracing) { h.RandomSampling = 0 }
	formats := func(accept, propagate configv1.TraceFormat) func(*configv1.HttpTracing) {
		return func(h *configv1.HttpTracing) {
			h.RandomSampling = 0
			h.Accept, h.Propagate = []configv1.TraceFormat{accept}, []configv1.TraceFormat{propagate}
			if accept == nothing {
				h.Accept = nil
			}
			if propagate == nothing {
				h.Propagate = nil
			}
		}
	}
	const parent = "traceparent: 00-" + traceID + "-" + spanID
	for _, test := range []struct {
		name    string
		fields  []string
		edit    func(*configv1.HttpTracing)
		joined  bool
		sampled bool
		counted int
		sends   string // what stands in the fields afterwards; ID and SPAN are the stream's
	}{
		{"nothing", nil, nil, false, true, counters.HTTPTracingRandomSampling, "traceparent: 00-ID-SPAN-01\n"},
		{"the draw says no", nil, never, false, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},
		{"sampled", []string{parent + "-01", "tracestate: a=1"}, never, true, true, counters.HTTPTracingContextSampled, "traceparent: 00-ID-SPAN-01\ntracestate: a=1\n"},
		{"not sampled", []string{parent + "-00"}, nil, true, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},
		{"other flags", []string{parent + "-ff"}, nil, true, true, counters.HTTPTracingContextSampled, "traceparent: 00-ID-SPAN-01\n"},
		{"a later version", []string{"traceparent: 01-" + traceID + "-" + spanID + "-01-more"}, nil, true, true, counters.HTTPTracingContextSampled, "traceparent: 00-ID-SPAN-01\n"},
		{"overall", []string{parent + "-01"}, func(h *configv1.HttpTracing) { h.OverallSampling = 0 }, true, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},
		{"version ff", []string{"traceparent: ff-" + traceID + "-" + spanID + "-01", "tracestate: a=1"}, never, false, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},
		{"more in version 00", []string{parent + "-01-x"}, never, false, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},
		{"upper case", []string{"traceparent: 00-" + strings.ToUpper(traceID) + "-" + spanID + "-01"}, never, false, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},
		{"no id", []string{"traceparent: 00-" + strings.Repeat("0", 32) + "-" + spanID + "-01"}, never, false, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},
		{"no parent", []string{"traceparent: 00-" + traceID + "-" + strings.Repeat("0", 16) + "-01"}, never, false, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},
		{"two of them", []string{parent + "-01", parent + "-01"}, never, false, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},

		{"forced by anybody", []string{"x-envoy-force-trace: 1", "x-client-trace-id: z"}, never, false, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},
		{"forced", []string{"x-envoy-force-trace: 1"}, func(h *configv1.HttpTracing) { trusting(h); never(h) }, false, true, counters.HTTPTracingServiceForced, "x-envoy-force-trace: 1\ntraceparent: 00-ID-SPAN-01\n"},
		{"forced against the context", []string{"x-envoy-force-trace: 1", parent + "-00"}, trusting, true, true, counters.HTTPTracingServiceForced, "x-envoy-force-trace: 1\ntraceparent: 00-ID-SPAN-01\n"},
		{"asked for", []string{"x-client-trace-id: z"}, func(h *configv1.HttpTracing) { trusting(h); never(h) }, false, true, counters.HTTPTracingClientEnabled, "x-client-trace-id: z\ntraceparent: 00-ID-SPAN-01\n"},
		{"asked for in vain", []string{"x-client-trace-id: z"}, func(h *configv1.HttpTracing) { trusting(h); never(h); h.ClientSampling = 0 }, false, false, counters.HTTPTracingNotTraceable, "x-client-trace-id: z\ntraceparent: 00-ID-SPAN-00\n"},
		{"context of a stranger", []string{parent + "-01", "tracestate: a=1"}, func(h *configv1.HttpTracing) {
			never(h)
			h.TrustedContextOnly, h.Trusted = true, []string{"10.0.0.0/8"}
		}, false, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\n"},
		{"context of a friend", []string{parent + "-01"}, func(h *configv1.HttpTracing) { trusting(h); h.TrustedContextOnly = true }, true, true, counters.HTTPTracingContextSampled, "traceparent: 00-ID-SPAN-01\n"},

		{"b3", []string{"b3: " + traceID + "-" + spanID + "-1-05e3ac9a4f6e3b90"}, formats(inB3, inB3), true, true, counters.HTTPTracingContextSampled, "b3: ID-SPAN-1-" + spanID + "\n"},
		{"b3 without a decision", []string{"b3: " + traceID + "-" + spanID}, formats(inB3, inB3), true, false, counters.HTTPTracingNotTraceable, "b3: ID-SPAN-0-" + spanID + "\n"},
		{"b3 says no", []string{"b3: 0"}, func(h *configv1.HttpTracing) { formats(inB3, inB3)(h); h.RandomSampling = million }, false, false, counters.HTTPTracingNotTraceable, "b3: ID-SPAN-0\n"},
		{"b3 debugs", []string{"b3: " + traceID + "-" + spanID + "-d"}, formats(inB3, inB3), true, true, counters.HTTPTracingContextSampled, "b3: ID-SPAN-d-" + spanID + "\n"},
		{"b3 is nonsense", []string{"b3: " + traceID + "-" + spanID + "-9"}, formats(inB3, inB3), false, false, counters.HTTPTracingNotTraceable, "b3: ID-SPAN-0\n"},
		{"b3 with 64 bits", []string{"b3: " + traceID[16:] + "-" + spanID + "-1"}, formats(inB3, inW3C), false, true, counters.HTTPTracingContextSampled, "traceparent: 00-ID-SPAN-01\n"},
		{"b3 multi", []string{"x-b3-traceid: " + traceID, "x-b3-spanid: " + spanID, "x-b3-parentspanid: 05e3ac9a4f6e3b90", "x-b3-sampled: true"}, formats(inMulti, inMulti), true, true, counters.HTTPTracingContextSampled, "x-b3-traceid: ID\nx-b3-spanid: SPAN\nx-b3-parentspanid: " + spanID + "\nx-b3-sampled: 1\n"},
		{"b3 multi debugs", []string{"x-b3-flags: 1"}, formats(inMulti, inMulti), false, true, counters.HTTPTracingContextSampled, "x-b3-traceid: ID\nx-b3-spanid: SPAN\nx-b3-flags: 1\n"},
		{"b3 multi without a span", []string{"x-b3-traceid: " + traceID, "x-b3-sampled: 1"}, formats(inMulti, inMulti), false, false, counters.HTTPTracingNotTraceable, "x-b3-traceid: ID\nx-b3-spanid: SPAN\nx-b3-sampled: 0\n"},
		{"what is read and not written goes", []string{"x-b3-traceid: " + traceID, "x-b3-spanid: " + spanID, "x-b3-sampled: 1", "tracestate: stale=1"}, formats(inMulti, inW3C), true, true, counters.HTTPTracingContextSampled, "traceparent: 00-ID-SPAN-01\n"},
		{"nothing is read", []string{parent + "-01", "b3: 0"}, formats(nothing, inW3C), false, false, counters.HTTPTracingNotTraceable, "traceparent: 00-ID-SPAN-00\nb3: 0\n"},
		{"nothing is written", []string{parent + "-01"}, formats(inW3C, nothing), true, true, counters.HTTPTracingContextSampled, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStream(t, test.fields...)
			config(t, test.edit).Begin(s, nil, nil)
			id, span := hexOf(s.Trace.ID[:]), hexOf(s.Trace.Span[:])
			if (id == traceID) != test.joined {
				t.Errorf("trace %s, continued: %v", id, !test.joined)
			}
			if s.Trace.Sampled != test.sampled || s.Cells[test.counted] != 1 {
				t.Errorf("sampled %v; counted %v", s.Trace.Sampled, s.Cells[counters.HTTPTracingRandomSampling:counters.HTTPTracingNotTraceable+1])
			}
			if got := strings.NewReplacer(id, "ID", span, "SPAN").Replace(fieldsOf(s)); got != test.sends {
				t.Errorf("the upstream gets\n%s, not\n%s", got, test.sends)
			}
		})
	}
}

func hexOf(id []byte) string {
	const digits = "0123456789abcdef"
	var b strings.Builder
	for _, c := range id {
		b.WriteByte(digits[c>>4])
		b.WriteByte(digits[c&15])
	}
	return b.String()
}

// TestShares holds that a share is one: of many requests about so many are sampled.
func TestShares(t *testing.T) {
	s := newStream(t)
	c := config(t, func(h *configv1.HttpTracing) { h.RandomSampling, h.OverallSampling = 500_000, 200_000 })
	sampled := 0
	const n = 20_000
	for range n {
		s.Request.Reset()
		c.Begin(s, nil, nil)
		if s.Trace.Sampled {
			sampled++
		}
	}
	if sampled < n/10-400 || sampled > n/10+400 { // 10 %, at more than nine standard deviations
		t.Errorf("%d of %d are sampled", sampled, n)
	}
}

// fields reads a message: the bytes of each field by its number.
func fields(t *testing.T, b []byte) map[protowire.Number][][]byte {
	t.Helper()
	out := map[protowire.Number][][]byte{}
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			t.Fatalf("no tag in %x", b)
		}
		b = b[n:]
		value := b
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			t.Fatalf("field %d is cut off", number)
		}
		value = value[:n]
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(value)
		}
		out[number] = append(out[number], value)
		b = b[n:]
	}
	return out
}

func tagsOf(t *testing.T, span map[protowire.Number][][]byte) map[string]string {
	t.Helper()
	tags := map[string]string{}
	for _, kv := range span[spanAttributes] {
		f := fields(t, kv)
		tags[string(f[keyValueKey][0])] = string(fields(t, f[keyValueValue][0])[anyString][0])
	}
	return tags
}

func TestSpan(t *testing.T) {
	s := newStream(t, "traceparent: 00-"+traceID+"-"+spanID+"-01", "user-agent: w\xffget", "x-request-id: "+strings.Repeat("i", 400))
	c := config(t, func(h *configv1.HttpTracing) {
		h.MaxPathTagLength = 5
		h.Tags = []*configv1.TraceTag{{Name: "zone", Format: "a"}, {Name: "none", Format: ""}}
	})
	s.Request.SetMethod([]byte("GET"))
	s.Request.SetScheme([]byte("https"))
	s.Request.SetAuthority([]byte("shop.example.com"))
	s.Request.SetPath([]byte("/a/b/c"))
	c.Begin(s, nil, nil)
	s.RouteName, s.ClusterName, s.Status, s.Flags, s.Attempts = "/a/*", "app", 503, stream.FlagNoHealthyUpstream, 3
	s.StartWall, s.Start, s.End, s.BytesReceived, s.BytesSent = 1000, 50, 75, 7, 8
	room := newScratch()
	outer := fields(t, c.appendSpan(nil, &room, s))
	if len(outer[scopeSpansSpans]) != 1 {
		t.Fatalf("%v", outer)
	}
	span := fields(t, outer[scopeSpansSpans][0])
	if hexOf(span[spanTraceID][0]) != traceID || hexOf(span[spanParent][0]) != spanID || string(span[spanSpanID][0]) != string(s.Trace.Span[:]) {
		t.Errorf("ids %x", span)
	}
	if got := string(span[spanName][0]); got != "GET /a/*" {
		t.Errorf("named %q", got)
	}
	start, _ := protowire.ConsumeFixed64(span[spanStart][0])
	end, _ := protowire.ConsumeFixed64(span[spanEnd][0])
	if start != 1000 || end != 1025 {
		t.Errorf("from %d to %d", start, end)
	}
	if len(span[spanStatus]) != 1 || string(span[spanStatus][0]) != "\x18\x02" {
		t.Errorf("status %x", span[spanStatus])
	}
	want := map[string]string{
		"component": "proxy", "guid:x-request-id": strings.Repeat("i", 256), "http.url": "https://shop.example.com/a/b/", "http.method": "GET", "http.protocol": s.Request.Proto.String(),
		"user_agent": "w?get", "peer.address": "192.0.2.1", "request_size": "7", "response_size": "8", "http.status_code": "503", "response_flags": "UH",
		"upstream_cluster": "app", "retry.count": "2", "error": "true", "zone": "a",
	}
	tags := tagsOf(t, span)
	for name, value := range want {
		if tags[name] != value {
			t.Errorf("%s is %q, not %q", name, tags[name], value)
		}
	}
	if len(tags) != len(want) {
		t.Errorf("tags %v", tags)
	}
}

// TestGRPCSpan: the tags of gRPC requests, and which statuses are errors.
func TestGRPCSpan(t *testing.T) {
	c := config(t, nil)
	for _, test := range []struct {
		name     string
		headers  []string
		head     string // fields of the response
		trailers string
		want     map[string]string
	}{
		{
			"answered",
			[]string{"content-type: application/grpc+proto", "grpc-timeout: 5S"},
			"", "grpc-status: 0",
			map[string]string{"grpc.content_type": "application/grpc+proto", "grpc.timeout": "5S", "grpc.status_code": "0"},
		},
		{
			"failed",
			[]string{"content-type: application/grpc"},
			"", "grpc-status: 14, grpc-message: away%20today",
			map[string]string{"grpc.content_type": "application/grpc", "grpc.status_code": "14", "grpc.message": "away%20today", "error": "true"},
		},
		{
			"not found, without a body",
			[]string{"content-type: application/grpc"},
			"grpc-status: 5, grpc-message: no such thing", "",
			map[string]string{"grpc.content_type": "application/grpc", "grpc.status_code": "5", "grpc.message": "no such thing"},
		},
		{
			"a status that is none",
			[]string{"content-type: application/grpc"},
			"grpc-status: 78", "",
			map[string]string{"grpc.content_type": "application/grpc", "grpc.status_code": "78"},
		},
		{"no gRPC", []string{"content-type: text/plain"}, "grpc-status: 14", "", map[string]string{}},
	} {
		s := newStream(t, test.headers...)
		s.Request.SetAuthority([]byte("shop"))
		s.Request.SetPath([]byte("/shop.Cart/Add"))
		c.Begin(s, nil, nil)
		s.Status, s.Response = 200, &header.Response{}
		add := func(b *header.Block, list string) {
			for field := range strings.SplitSeq(list, ", ") {
				if name, value, ok := strings.Cut(field, ": "); ok {
					b.AddString(header.Other, name, value)
				}
			}
		}
		add(&s.Response.Block, test.head)
		if test.trailers != "" {
			s.ResponseTrailers = &header.Block{}
			add(s.ResponseTrailers, test.trailers)
		}
		room := newScratch()
		span := fields(t, fields(t, c.appendSpan(nil, &room, s))[scopeSpansSpans][0])
		got := map[string]string{}
		for name, value := range tagsOf(t, span) {
			if strings.HasPrefix(name, "grpc.") || name == "error" {
				got[name] = value
			}
		}
		if len(test.want) > 0 {
			test.want["grpc.path"], test.want["grpc.authority"] = "/shop.Cart/Add", "shop"
		}
		if !maps.Equal(got, test.want) {
			t.Errorf("%s: tags %v, want %v", test.name, got, test.want)
		}
		if failed := len(span[spanStatus]) == 1; failed != (test.want["error"] != "") {
			t.Errorf("%s: an error: %v", test.name, failed)
		}
		buffer := make([]byte, 0, maxSpan)
		if n := testing.AllocsPerRun(50, func() { c.appendSpan(buffer, &room, s) }); n > 0 {
			t.Errorf("%s: %v allocations", test.name, n)
		}
	}
}

// TestCallSpan: a call of a plugin is a child of the stream's span, noted only where that is recorded, and no more than have room.
func TestCallSpan(t *testing.T) {
	s := newStream(t)
	s.NoteCall(stream.Call{Name: "not sampled"})
	c := config(t, nil)
	c.Begin(s, nil, nil)
	s.StartWall, s.Start = 1000, 50
	for range 2 * stream.MaxCalls {
		s.NoteCall(stream.Call{Name: "plugin stamp", Phase: "request_headers", Start: 60, End: 65, Failed: true})
	}
	if len(s.Calls) != stream.MaxCalls {
		t.Fatalf("%d calls are noted", len(s.Calls))
	}
	room := newScratch()
	span := fields(t, fields(t, appendCall(nil, &room, s, &s.Calls[0]))[scopeSpansSpans][0])
	if string(span[spanTraceID][0]) != string(s.Trace.ID[:]) || string(span[spanParent][0]) != string(s.Trace.Span[:]) || len(span[spanSpanID][0]) != 8 || string(span[spanSpanID][0]) == string(s.Trace.Span[:]) {
		t.Errorf("ids %x", span)
	}
	start, _ := protowire.ConsumeFixed64(span[spanStart][0])
	end, _ := protowire.ConsumeFixed64(span[spanEnd][0])
	if start != 1010 || end != 1015 || string(span[spanName][0]) != "plugin stamp" || tagsOf(t, span)["phase"] != "request_headers" || len(span[spanStatus]) != 1 {
		t.Errorf("from %d to %d: %q", start, end, span)
	}
	s.Calls[0].Name = strings.Repeat("n", 1000)
	if n := len(appendCall(nil, &room, s, &s.Calls[0])); n > maxCall {
		t.Errorf("a span of %d bytes, %d are reserved", n, maxCall)
	}
	buffer := make([]byte, 0, maxCall)
	if n := testing.AllocsPerRun(100, func() { appendCall(buffer, &room, s, &s.Calls[0]) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestTrySpan: a try is a child of the stream's span, with Envoy's tags, within what is reserved, and its context goes upstream.
func TestTrySpan(t *testing.T) {
	c := config(t, func(h *configv1.HttpTracing) {
		h.SpawnUpstreamSpan, h.Export = true, true
		h.Propagate = []configv1.TraceFormat{configv1.TraceFormat_TRACE_FORMAT_W3C, configv1.TraceFormat_TRACE_FORMAT_B3}
	})
	s := newStream(t, "traceparent: 00-"+traceID+"-"+spanID+"-01", "tracestate: a=1")
	c.Begin(s, nil, nil)
	s.StartWall, s.Start = 1000, 50
	first := s.BeginTry("app")
	for range 2 * stream.MaxTries {
		s.BeginTry("app")
	}
	if len(s.Tries) != stream.MaxTries || first != 1 {
		t.Fatalf("%d spans of tries, the first is %d", len(s.Tries), first)
	}
	try := &s.Tries[1]
	c.Propagate(s, try.Span, nil)
	want := "traceparent: 00-" + traceID + "-" + hexOf(try.Span[:]) + "-01"
	if got := fieldsOf(s); !strings.Contains(got, want) || !strings.Contains(got, "tracestate: a=1") || !strings.Contains(got, "b3: "+traceID+"-"+hexOf(try.Span[:])+"-1-"+hexOf(s.Trace.Span[:])) {
		t.Errorf("the upstream gets %s, want %s", got, want)
	}
	c.Propagate(s, s.Trace.Span, nil) // of a try that has no span of its own
	if got := fieldsOf(s); !strings.Contains(got, "b3: "+traceID+"-"+hexOf(s.Trace.Span[:])+"-1-"+spanID) {
		t.Errorf("the upstream gets %s", got)
	}
	room := newScratch()
	for _, test := range []struct {
		name string
		try  stream.Try
		want map[string]string // beside what all have
	}{
		{"answered", stream.Try{Status: 200, GRPC: -1, Host: &cluster.Host{Address: "10.0.0.1:80"}}, map[string]string{"http.status_code": "200", "upstream_address": "10.0.0.1:80", "peer.address": "10.0.0.1:80"}},
		{"over a connection", stream.Try{Status: 200, GRPC: -1, Host: &cluster.Host{Address: "api:80"}, Link: stream.Link{
			Connection: 77, Local: netip.MustParseAddrPort("10.0.0.9:4000"), Remote: netip.MustParseAddrPort("10.0.0.2:80"), Protocol: "HTTP/2",
		}}, map[string]string{
			"http.status_code": "200", "upstream_address": "10.0.0.2:80", "peer.address": "10.0.0.2:80", "http.protocol": "HTTP/2",
			"upstream_connection_id": "77", "upstream_local_address": "10.0.0.9:4000",
		}},
		{"a bad answer of a retry", stream.Try{Status: 503, GRPC: -1, Retry: 2}, map[string]string{"http.status_code": "503", "retry.count": "2", "error": "true"}},
		{"gRPC, unavailable", stream.Try{Status: 200, GRPC: 14}, map[string]string{"http.status_code": "200", "grpc.status_code": "14", "error": "true"}},
		{"gRPC, not found", stream.Try{Status: 200, GRPC: 5}, map[string]string{"http.status_code": "200", "grpc.status_code": "5"}},
		{"a number that is none of gRPC's", stream.Try{Status: 200, GRPC: 99}, map[string]string{"http.status_code": "200", "grpc.status_code": "99"}},
		{"given up", stream.Try{GRPC: -1, Canceled: true}, map[string]string{"canceled": "true"}},
		{"failed", stream.Try{GRPC: -1, Failure: "remote reset"}, map[string]string{"error": "true", "error_reason": "remote reset"}},
	} {
		test.try.Cluster, test.try.Start, test.try.End, test.try.Span = "app", 60, 65, try.Span
		span := fields(t, fields(t, appendTry(nil, &room, s, &test.try))[scopeSpansSpans][0])
		if string(span[spanParent][0]) != string(s.Trace.Span[:]) || string(span[spanSpanID][0]) != string(try.Span[:]) || string(span[spanName][0]) != "router app egress" {
			t.Errorf("%s: %q", test.name, span)
		}
		for name, value := range map[string]string{"component": "proxy", "upstream_cluster": "app", "upstream_cluster.name": "app"} {
			test.want[name] = value
		}
		if got := tagsOf(t, span); !maps.Equal(got, test.want) {
			t.Errorf("%s: tags %v, want %v", test.name, got, test.want)
		}
		if failed := len(span[spanStatus]) == 1; failed != (test.want["error"] != "") {
			t.Errorf("%s: an error: %v", test.name, failed)
		}
	}
	long := stream.Try{
		Cluster: strings.Repeat("c", 10_000), Host: &cluster.Host{Address: strings.Repeat("h", 10_000)}, Retry: 1 << 31, Status: 599, GRPC: 99, Canceled: true,
		Failure: "upstream connect error or disconnect", Start: 1, End: 2,
		Link: stream.Link{Connection: 1 << 63, Local: netip.MustParseAddrPort("[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535"), Protocol: "HTTP/1.1"},
	}
	buffer := make([]byte, 0, maxTry)
	if n := len(appendTry(buffer, &room, s, &long)); n > maxTry {
		t.Errorf("a span of %d bytes, %d are reserved", n, maxTry)
	}
	if n := testing.AllocsPerRun(100, func() { appendTry(buffer, &room, s, &long) }); n > 0 {
		t.Errorf("%v allocations", n)
	}
	if least := maxSpan + maxCall*stream.MaxCalls + maxTry*stream.MaxTries + 16; least > chunkBytes {
		t.Errorf("the spans of one request may take %d bytes, a chunk has %d", least, chunkBytes)
	}
}

// TestSpanIsBounded: whatever a request brings, its span fits into what is reserved for it, and nothing is allocated.
func TestSpanIsBounded(t *testing.T) {
	s := newStream(t, "user-agent: "+strings.Repeat("u", 60_000), "x-request-id: "+strings.Repeat("i", 60_000),
		"content-type: application/grpc+"+strings.Repeat("t", 60_000), "grpc-timeout: "+strings.Repeat("1", 60_000))
	c := config(t, func(h *configv1.HttpTracing) {
		h.MaxPathTagLength = 1 << 20
		for i := range 32 {
			h.Tags = append(h.Tags, &configv1.TraceTag{Name: strings.Repeat("n", 127) + string(rune('a'+i%26)), Format: strings.Repeat("v", 8000)})
		}
	})
	s.Request.SetMethod([]byte(strings.Repeat("M", 10_000)))
	s.Request.SetAuthority([]byte(strings.Repeat("a", 10_000)))
	s.Request.SetPath([]byte("/" + strings.Repeat("p", 60_000)))
	s.RouteName, s.ClusterName = strings.Repeat("r", 10_000), strings.Repeat("c", 10_000)
	c.Begin(s, nil, nil)
	room := newScratch()
	dst := make([]byte, 0, maxSpan+16)
	if got := c.appendSpan(dst, &room, s); len(got) > maxSpan {
		t.Errorf("a span of %d bytes", len(got))
	}
	if n := testing.AllocsPerRun(100, func() { c.appendSpan(dst, &room, s) }); n > 0 {
		t.Errorf("%v allocations a span", n)
	}
	text := make([]byte, 0, 1024)
	s.Request.Reset()
	once := func() {
		s.Request.Reset()
		text = c.Begin(s, text, nil)
	}
	if n := testing.AllocsPerRun(100, once); n > 0 {
		t.Errorf("%v allocations a request", n)
	}
}

// FuzzContext: whatever stands in the headers, what goes on is a context that the next hop reads as ours.
func FuzzContext(f *testing.F) {
	f.Add("00-"+traceID+"-"+spanID+"-01", traceID+"-"+spanID+"-1", traceID, spanID, "1")
	f.Add("", "0", traceID[16:], spanID, "d")
	f.Add("01-"+traceID+"-"+spanID+"-01-", "d-", "-", "--", "")
	s := newStream(f)
	f.Fuzz(func(t *testing.T, parent, single, trace, span, sampled string) {
		for _, format := range []configv1.TraceFormat{inW3C, inB3, inMulti} {
			s.Request.Reset()
			for _, field := range [][2]string{{"traceparent", parent}, {"b3", single}, {"x-b3-traceid", trace}, {"x-b3-spanid", span}, {"x-b3-sampled", sampled}} {
				s.Request.AddString(header.Other, field[0], field[1]) // what cannot be a value is not there
			}
			c := config(t, func(h *configv1.HttpTracing) {
				h.Accept, h.Propagate = []configv1.TraceFormat{inW3C, inB3, inMulti}, []configv1.TraceFormat{format}
				h.RandomSampling = 500_000
			})
			c.Begin(s, nil, nil)
			in, ok := formats[format].read(&s.Request.Block)
			if !ok || in.id != s.Trace.ID || in.parent != s.Trace.Span || (in.sampled == yes) != s.Trace.Sampled {
				t.Fatalf("%+v was written as %q, which reads as %+v", s.Trace, fieldsOf(s), in)
			}
		}
	})
}
