package tracing

import (
	"encoding/binary"
	"strconv"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
)

const (
	// maxText bounds one text of a span, in bytes.
	maxText = 4096
	// maxTag bounds the texts that requests bring besides their paths, in bytes.
	maxTag = 256
	// maxSpan bounds an encoded span: 32 tags of the configuration, the path, and a score of small things.
	maxSpan = 32 * 1024
	// maxCall bounds the span of a plugin's call.
	maxCall = 512
	// maxTry bounds the span of a try, and maxName a name or an address in it: a chunk has room for the spans of one request.
	maxTry, maxName = 1408, 128
)

// Fields of opentelemetry.proto.trace.v1 and common.v1.
const (
	scopeSpansSpans = 2

	spanTraceID    = 1
	spanSpanID     = 2
	spanParent     = 4
	spanName       = 5
	spanKind       = 6
	spanStart      = 7
	spanEnd        = 8
	spanAttributes = 9
	spanStatus     = 15

	kindInternal = 1
	kindServer   = 2
	kindClient   = 3

	statusCode  = 3
	statusError = 2

	keyValueKey   = 1
	keyValueValue = 2
	anyString     = 1
)

// scratch is a worker's memory for the span that is being encoded.
type scratch struct {
	span, text []byte
}

func newScratch() scratch { return scratch{make([]byte, 0, maxSpan), make([]byte, 0, 4*maxText)} }

// appendSpan appends the stream's span as one element of ScopeSpans.spans.
func (c *Config) appendSpan(dst []byte, room *scratch, s *stream.Stream) []byte {
	b, text := room.span[:0], room.text
	b = protowire.AppendTag(b, spanTraceID, protowire.BytesType)
	b = protowire.AppendBytes(b, s.Trace.ID[:])
	b = protowire.AppendTag(b, spanSpanID, protowire.BytesType)
	b = protowire.AppendBytes(b, s.Trace.Span[:])
	if s.Trace.Parent != [8]byte{} {
		b = protowire.AppendTag(b, spanParent, protowire.BytesType)
		b = protowire.AppendBytes(b, s.Trace.Parent[:])
	}
	b = protowire.AppendTag(b, spanName, protowire.BytesType)
	b = appendText(b, cut(spanNameOf(text, s), maxTag))
	b = protowire.AppendTag(b, spanKind, protowire.VarintType)
	b = protowire.AppendVarint(b, kindServer)
	b = protowire.AppendTag(b, spanStart, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, uint64(s.StartWall))
	b = protowire.AppendTag(b, spanEnd, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, uint64(s.StartWall+s.End-s.Start))
	b = c.appendTags(b, text, s)
	if failed(s) {
		b = protowire.AppendTag(b, spanStatus, protowire.BytesType)
		b = protowire.AppendBytes(b, []byte{statusCode<<3 | byte(protowire.VarintType), statusError})
	}
	dst = protowire.AppendTag(dst, scopeSpansSpans, protowire.BytesType)
	return protowire.AppendBytes(dst, b)
}

// appendCall appends the span of a plugin's call, a child of the stream's.
func appendCall(dst []byte, room *scratch, s *stream.Stream, call *stream.Call) []byte {
	var id [8]byte
	binary.NativeEndian.PutUint64(id[:], s.Worker.Rand()|1) // zero is none
	b := room.span[:0]
	b = protowire.AppendTag(b, spanTraceID, protowire.BytesType)
	b = protowire.AppendBytes(b, s.Trace.ID[:])
	b = protowire.AppendTag(b, spanSpanID, protowire.BytesType)
	b = protowire.AppendBytes(b, id[:])
	b = protowire.AppendTag(b, spanParent, protowire.BytesType)
	b = protowire.AppendBytes(b, s.Trace.Span[:])
	b = protowire.AppendTag(b, spanName, protowire.BytesType)
	b = protowire.AppendString(b, cutString(call.Name, maxTag))
	b = protowire.AppendTag(b, spanKind, protowire.VarintType)
	b = protowire.AppendVarint(b, kindInternal)
	b = protowire.AppendTag(b, spanStart, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, uint64(s.StartWall+call.Start-s.Start))
	b = protowire.AppendTag(b, spanEnd, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, uint64(s.StartWall+call.End-s.Start))
	b = appendTagString(b, "phase", call.Phase)
	if call.Failed {
		b = protowire.AppendTag(b, spanStatus, protowire.BytesType)
		b = protowire.AppendBytes(b, []byte{statusCode<<3 | byte(protowire.VarintType), statusError})
	}
	dst = protowire.AppendTag(dst, scopeSpansSpans, protowire.BytesType)
	return protowire.AppendBytes(dst, b)
}

// appendTry appends the span of a try upstream, a child of the stream's: Envoy's, by its names.
func appendTry(dst []byte, room *scratch, s *stream.Stream, t *stream.Try) []byte {
	b, text := room.span[:0], room.text
	b = protowire.AppendTag(b, spanTraceID, protowire.BytesType)
	b = protowire.AppendBytes(b, s.Trace.ID[:])
	b = protowire.AppendTag(b, spanSpanID, protowire.BytesType)
	b = protowire.AppendBytes(b, t.Span[:])
	b = protowire.AppendTag(b, spanParent, protowire.BytesType)
	b = protowire.AppendBytes(b, s.Trace.Span[:])
	cluster := cutString(t.Cluster, maxName)
	b = protowire.AppendTag(b, spanName, protowire.BytesType)
	b = appendText(b, append(append(append(text, "router "...), cluster...), " egress"...))
	b = protowire.AppendTag(b, spanKind, protowire.VarintType)
	b = protowire.AppendVarint(b, kindClient)
	b = protowire.AppendTag(b, spanStart, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, uint64(s.StartWall+t.Start-s.Start))
	b = protowire.AppendTag(b, spanEnd, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, uint64(s.StartWall+t.End-s.Start))
	b = appendTagString(b, "component", "proxy")
	if t.Link.Protocol != "" {
		b = appendTagString(b, "http.protocol", t.Link.Protocol)
	}
	b = appendTagString(b, "upstream_cluster", cluster)
	b = appendTagString(b, "upstream_cluster.name", cluster)
	switch {
	case t.Link.Remote.IsValid(): // of an endpoint with several addresses the one that answered
		text := t.Link.Remote.AppendTo(text)
		b = appendTag(b, "upstream_address", text)
		b = appendTag(b, "peer.address", text)
	case t.Host != nil:
		b = appendTagString(b, "upstream_address", cutString(t.Host.Address, maxName))
		b = appendTagString(b, "peer.address", cutString(t.Host.Address, maxName))
	}
	if t.Link.Connection != 0 {
		b = appendTag(b, "upstream_connection_id", strconv.AppendUint(text, t.Link.Connection, 10))
	}
	if t.Link.Local.IsValid() {
		b = appendTag(b, "upstream_local_address", t.Link.Local.AppendTo(text))
	}
	if t.Retry > 0 {
		b = appendTag(b, "retry.count", strconv.AppendUint(text, uint64(t.Retry), 10))
	}
	if t.Status > 0 {
		b = appendTag(b, "http.status_code", strconv.AppendInt(text, int64(t.Status), 10))
	}
	if t.GRPC >= 0 {
		b = appendTag(b, "grpc.status_code", strconv.AppendInt(text, int64(t.GRPC), 10))
	}
	if t.Canceled {
		b = appendTagString(b, "canceled", "true")
	}
	if t.Failure != "" || t.Status >= 500 || grpcErrors>>max(t.GRPC, 0)&1 != 0 {
		b = appendTagString(b, "error", "true")
		if t.Failure != "" {
			b = appendTagString(b, "error_reason", t.Failure)
		}
		b = protowire.AppendTag(b, spanStatus, protowire.BytesType)
		b = protowire.AppendBytes(b, []byte{statusCode<<3 | byte(protowire.VarintType), statusError})
	}
	dst = protowire.AppendTag(dst, scopeSpansSpans, protowire.BytesType)
	return protowire.AppendBytes(dst, b)
}

// grpcErrors are the statuses of gRPC by which Envoy calls a span an error: unknown, deadline exceeded, unimplemented, internal,
// unavailable, data loss.
const grpcErrors = uint64(1<<2 | 1<<4 | 1<<12 | 1<<13 | 1<<14 | 1<<15)

// spanNameOf is the route with its method, which has few values: not the path.
func spanNameOf(dst []byte, s *stream.Stream) []byte {
	if name := s.RouteName; name != "" && name[0] != '/' {
		return append(dst, cutString(name, maxTag)...)
	}
	if s.Request.MethodID() == header.MethodOther {
		dst = append(dst, "HTTP"...)
	} else {
		dst = append(dst, s.Request.Method()...)
	}
	if s.RouteName != "" {
		dst = append(append(dst, ' '), cutString(s.RouteName, maxTag)...)
	}
	return dst
}

// appendTags appends the tags that Envoy gives a span, by its names, and those of the configuration.
func (c *Config) appendTags(b, text []byte, s *stream.Stream) []byte {
	r := &s.Request
	b = appendTagString(b, "component", "proxy")
	b = appendTag(b, "guid:x-request-id", cut(r.Get(header.XRequestID), maxTag))
	url := append(append(text, r.Scheme()...), "://"...)
	url = append(url, cut(r.Authority(), maxTag)...)
	url = append(url, cut(r.Path(), c.maxPath)...)
	b = appendTag(b, "http.url", url)
	b = appendTag(b, "http.method", cut(r.Method(), maxTag))
	b = appendTagString(b, "http.protocol", r.Proto.String())
	b = appendTag(b, "user_agent", cut(r.Get(header.UserAgent), maxTag))
	if s.Peer.IsValid() {
		b = appendTag(b, "peer.address", s.Peer.Addr().Unmap().AppendTo(text))
	}
	b = appendTag(b, "request_size", strconv.AppendUint(text, s.BytesReceived, 10))
	b = appendTag(b, "response_size", strconv.AppendUint(text, s.BytesSent, 10))
	b = appendTag(b, "http.status_code", strconv.AppendInt(text, int64(s.Status), 10))
	b = appendTag(b, "response_flags", s.Flags.Append(text))
	if s.GRPC() {
		b = appendTag(b, "grpc.path", cut(r.Path(), maxTag))
		b = appendTag(b, "grpc.authority", cut(r.Authority(), maxTag))
		b = appendTag(b, "grpc.content_type", cut(r.Get(header.ContentType), maxTag))
		b = appendTag(b, "grpc.timeout", cut(r.Get(header.GrpcTimeout), maxTag))
		b = appendTag(b, "grpc.status_code", cut(answered(s, header.GrpcStatus), maxTag))
		b = appendTag(b, "grpc.message", cut(answered(s, header.GrpcMessage), maxTag))
	}
	if s.ClusterName != "" {
		b = appendTagString(b, "upstream_cluster", cutString(s.ClusterName, maxTag))
	}
	if s.Host != nil {
		b = appendTagString(b, "upstream_address", cutString(s.Host.Address, maxTag))
	}
	if s.Attempts > 1 {
		b = appendTag(b, "retry.count", strconv.AppendUint(text, uint64(s.Attempts-1), 10))
	}
	if failed(s) {
		b = appendTagString(b, "error", "true")
	}
	for i := range c.tags {
		value := cut(c.tags[i].value.Append(text, s), maxTag)
		if len(value) > 0 {
			b = appendTag(b, c.tags[i].name, value)
		}
	}
	return b
}

// failed tells that the span is an error: no answer, a 5xx, or a status of gRPC that is the upstream's fault.
func failed(s *stream.Stream) bool {
	if s.Status >= 500 || s.Status == 0 {
		return true
	}
	if !s.GRPC() {
		return false
	}
	v := answered(s, header.GrpcStatus)
	if len(v) == 0 || len(v) > 2 {
		return false
	}
	code := 0
	for _, c := range v {
		if c < '0' || c > '9' {
			return false
		}
		code = 10*code + int(c-'0')
	}
	return grpcErrors>>code&1 != 0
}

// answered is a field of gRPC that the request was answered with, in the trailers or in a head without a body; nil for none.
func answered(s *stream.Stream, id header.ID) (v []byte) {
	if s.ResponseTrailers != nil {
		v = s.ResponseTrailers.Get(id)
	}
	if v == nil && s.Response != nil {
		v = s.Response.Get(id)
	}
	return v
}

// appendTag appends one attribute; nothing where the value is nil.
func appendTag(b []byte, name string, value []byte) []byte {
	if value == nil {
		return b
	}
	inner := protowire.SizeTag(anyString) + protowire.SizeBytes(len(value))
	size := protowire.SizeTag(keyValueKey) + protowire.SizeBytes(len(name)) + protowire.SizeTag(keyValueValue) + protowire.SizeBytes(inner)
	b = protowire.AppendTag(b, spanAttributes, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(size))
	b = protowire.AppendTag(b, keyValueKey, protowire.BytesType)
	b = protowire.AppendString(b, name)
	b = protowire.AppendTag(b, keyValueValue, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(inner))
	b = protowire.AppendTag(b, anyString, protowire.BytesType)
	return appendText(b, value)
}

func appendTagString(b []byte, name, value string) []byte {
	var text [maxTag]byte
	return appendTag(b, name, append(text[:0], value...))
}

// appendText appends a length and a text. What is no UTF-8 becomes question marks, one a byte: a collector would refuse
// the whole request for it, and with it the spans of others.
func appendText(b, text []byte) []byte {
	b = protowire.AppendVarint(b, uint64(len(text)))
	at := len(b)
	b = append(b, text...)
	if utf8.Valid(text) {
		return b
	}
	for at < len(b) {
		r, n := utf8.DecodeRune(b[at:])
		if r == utf8.RuneError && n == 1 {
			b[at] = '?'
		}
		at += n
	}
	return b
}

func cut(b []byte, most int) []byte { return b[:min(len(b), most)] }

func cutString(s string, most int) string { return s[:min(len(s), most)] }
