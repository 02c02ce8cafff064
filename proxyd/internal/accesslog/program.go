// Package accesslog writes one line for each stream: formats compiled to programs, rendered on the worker into memory of its
// own, and written to files by flushers on the main side.
//
// A worker never waits for a disk. It renders into one of two chunks per file; a full or old chunk is handed to the file's
// flusher by one atomic store. When the flusher is behind, because the disk is full or slow, lines are dropped and counted.
package accesslog

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"retinue.dev/libs/logformat"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// Program is a compiled format. Immutable, shared by the workers.
type Program struct {
	ops   []op
	fixed int            // the most bytes that everything but texts of the stream may take
	times int            // how many time formats there are
	shown []logformat.ID // operators of what the client's handshake has shown, by slot
}

// mode says how an operator's value is written.
type mode uint8

const (
	modeText   mode = iota // control characters escaped, "-" for nothing
	modeString             // within a JSON string
	modeValue              // a JSON value of its own: number, string or null
	modeRaw                // a header value: as it is, "" for nothing
)

// op is one step of a program.
type op struct {
	id      logformat.ID
	mode    mode
	numeric bool
	header  source
	other   source
	length  int // the most bytes of the value; 0 for all
	text    []byte
	slot    int // of the time format, in a worker's Clock; of what the handshake has shown, in its note
	time    *timeFormat
	span    span
	style   grpcStyle
}

// source is where the value of REQ, RESP or TRAILER comes from.
type source struct {
	pseudo pseudo
	id     header.ID
	name   []byte
}

type pseudo uint8

const (
	notPseudo pseudo = iota
	absent
	pseudoMethod
	pseudoPath
	pseudoAuthority
	pseudoScheme
	pseudoStatus
)

// numberBytes is what a number takes at the most, a null included.
const numberBytes = 24

// Compile compiles the format of an access log. A line ends with a line break.
func Compile(log *configv1.AccessLog) (*Program, error) {
	p := &Program{}
	if len(log.GetJson()) == 0 {
		segments, err := logformat.Parse(log.GetFormat())
		if err != nil {
			return nil, fmt.Errorf("format: %w", err)
		}
		for _, s := range segments {
			p.add(s, modeText)
		}
	} else if err := p.compileJSON(log.GetJson()); err != nil {
		return nil, err
	}
	p.literal("\n")
	return p, nil
}

// Value is a header value with operators: a program and each worker's clock. Shared by the workers.
type Value struct {
	program Program
	clocks  []Clock
}

// valueRoom bounds a rendered header value beside its literal text, in bytes.
const valueRoom = 8 << 10

// CompileValue compiles a header value for so many workers. What an operator has no value for is left out.
func CompileValue(format string, workers int) (*Value, error) {
	segments, err := logformat.Parse(format)
	if err != nil {
		return nil, err
	}
	v := &Value{clocks: make([]Clock, workers)}
	for _, s := range segments {
		v.program.add(s, modeRaw)
	}
	return v, nil
}

// Linked tells that the value wants facts of the upstream's connection.
func (v *Value) Linked() bool { return v.program.linked() }

// Append renders the value for s, on its worker's thread.
func (v *Value) Append(dst []byte, s *stream.Stream) []byte {
	return v.program.Append(dst, s, &v.clocks[s.Worker.ID], v.program.fixed+valueRoom)
}

func (p *Program) linked() bool {
	return slices.ContainsFunc(p.ops, func(o op) bool { return o.id.OfLink() })
}

func (p *Program) compileJSON(fields []*configv1.JsonField) error {
	for i, f := range fields {
		segments, err := logformat.Parse(f.GetFormat())
		if err != nil {
			return fmt.Errorf("json[%d]: %w", i, err)
		}
		open := ","
		if i == 0 {
			open = "{"
		}
		p.literal(open + `"` + string(appendJSON(nil, []byte(f.GetName()), math.MaxInt)) + `":`)
		if len(segments) == 1 && segments[0].ID != logformat.Literal {
			p.add(segments[0], modeValue)
			continue
		}
		p.literal(`"`)
		for _, s := range segments {
			p.add(s, modeString)
		}
		p.literal(`"`)
	}
	p.literal("}")
	return nil
}

// literal adds text that is written as it is; neighbours become one.
func (p *Program) literal(text string) {
	p.fixed += len(text)
	if n := len(p.ops); n > 0 && p.ops[n-1].id == logformat.Literal {
		p.ops[n-1].text = append(p.ops[n-1].text, text...)
		return
	}
	p.ops = append(p.ops, op{text: []byte(text)})
}

func (p *Program) add(s logformat.Segment, m mode) {
	switch s.ID {
	case logformat.Literal:
		if m == modeString {
			s.Text = string(appendJSON(nil, []byte(s.Text), math.MaxInt))
		}
		p.literal(s.Text)
		return
	case logformat.Hostname:
		name, err := os.Hostname()
		if err != nil {
			name = "-"
		}
		p.constant(name, m)
		return
	case logformat.StartTime:
		f := compileTime(s.Text)
		o := op{id: s.ID, mode: m, slot: p.times, time: f}
		p.times++
		p.fixed += f.bytes + 2
		p.ops = append(p.ops, o)
		return
	}
	p.fixed += numberBytes
	o := op{
		id: s.ID, mode: m, numeric: s.Numeric, length: s.Length,
		header: sourceOf(s.Header, s.ID), other: sourceOf(s.Other, s.ID),
	}
	switch {
	case s.ID == logformat.CommonDuration:
		o.span = spanOf(s.Text)
	case s.ID == logformat.GRPCStatus:
		o.style = grpcStyles[s.Text]
	case s.ID.OfTLS():
		o.slot = len(p.shown)
		p.shown = append(p.shown, s.ID)
	}
	p.ops = append(p.ops, o)
}

func (p *Program) constant(text string, m mode) {
	switch m {
	case modeValue:
		text = `"` + string(appendJSON(nil, []byte(text), math.MaxInt)) + `"`
	case modeString:
		text = string(appendJSON(nil, []byte(text), math.MaxInt))
	}
	p.literal(text)
}

func sourceOf(name string, id logformat.ID) source {
	switch {
	case name == "":
		return source{pseudo: absent}
	case name[0] != ':':
		// A request's host is its authority, whichever protocol it came by.
		if name == "host" && ofRequest(id) {
			return source{pseudo: pseudoAuthority}
		}
		return source{id: header.Lookup([]byte(name)), name: []byte(name)}
	case id == logformat.Resp && name == ":status":
		return source{pseudo: pseudoStatus}
	case !ofRequest(id):
		return source{pseudo: absent}
	}
	switch name {
	case ":method":
		return source{pseudo: pseudoMethod}
	case ":path":
		return source{pseudo: pseudoPath}
	case ":authority":
		return source{pseudo: pseudoAuthority}
	case ":scheme":
		return source{pseudo: pseudoScheme}
	}
	return source{pseudo: absent}
}

func ofRequest(id logformat.ID) bool { return id == logformat.Req || id == logformat.ReqWithoutQuery }

// Clock is a worker's memory of rendered times, one for each time format of a program. The zero value is ready.
type Clock []clockSlot

// Append renders the line of s. It writes at most room bytes, which must be above MinRoom: texts of the stream are cut where the line
// would become longer. Nothing is allocated when dst has that capacity and clock was used before.
func (p *Program) Append(dst []byte, s *stream.Stream, clock *Clock, room int) []byte {
	if len(*clock) < p.times {
		*clock = append(*clock, make([]clockSlot, p.times-len(*clock))...)
	}
	limit := len(dst) + room - p.fixed
	var shown []byte
	if len(p.shown) > 0 {
		shown = p.note(s)
	}
	for i := range p.ops {
		o := &p.ops[i]
		switch {
		case o.id == logformat.Literal:
			dst = append(dst, o.text...)
		case o.id == logformat.StartTime:
			quoted := o.mode == modeValue
			if quoted {
				dst = append(dst, '"')
			}
			before := len(dst)
			dst = o.time.append(dst, s.StartWall, &(*clock)[o.slot])
			limit += len(dst) - before
			if quoted {
				dst = append(dst, '"')
			}
		case o.numeric:
			before := len(dst)
			dst = o.appendNumber(dst, s)
			limit += len(dst) - before
		case o.id.OfTLS():
			if value := part(shown, o.slot); len(value) > 0 {
				dst = o.escaped(dst, value, limit)
			} else {
				dst = o.none(dst)
			}
		default:
			dst = o.appendText(dst, s, limit)
		}
		if o.id == logformat.Literal {
			limit += len(o.text)
		}
	}
	return dst
}

// MinRoom is the least room that Append may be given.
func (p *Program) MinRoom() int { return p.fixed }

// none writes that there is no value.
func (o *op) none(dst []byte) []byte {
	switch o.mode {
	case modeValue:
		return append(dst, "null"...)
	case modeRaw:
		return dst
	}
	return append(dst, '-')
}

func (o *op) appendNumber(dst []byte, s *stream.Stream) []byte {
	n := int64(-1)
	switch o.id {
	case logformat.ResponseCode:
		n = int64(s.Status)
	case logformat.BytesReceived:
		n = int64(s.BytesReceived)
	case logformat.BytesSent:
		n = int64(s.BytesSent)
	case logformat.Duration:
		n = millis(s.Start, s.End)
	case logformat.RequestDuration:
		n = millis(s.Start, s.RequestReceived)
	case logformat.RequestTxDuration:
		n = millis(s.Start, s.UpstreamSent)
	case logformat.ResponseDuration:
		n = millis(s.Start, s.UpstreamReceived)
	case logformat.ResponseTxDuration:
		n = millis(s.UpstreamReceived, s.End)
	case logformat.UpstreamRequestAttemptCount:
		n = int64(s.Attempts)
	case logformat.PluginTime:
		n = s.PluginTime / 1000
	case logformat.CommonDuration:
		n = o.span.of(s)
	case logformat.UpstreamConnectionPoolReadyDuration:
		n = millis(s.Start, s.UpstreamReady)
	case logformat.GRPCStatusNumber:
		if status, ok := grpcStatus(s); ok {
			n = status
		}
	case logformat.UpstreamLocalPort:
		if s.Link.Local.IsValid() {
			n = int64(s.Link.Local.Port())
		}
	case logformat.UpstreamConnectionID:
		if s.Link.Connection != 0 {
			return strconv.AppendUint(dst, s.Link.Connection, 10)
		}
	case logformat.UpstreamRemotePort:
		if at := s.Upstream(); at.IsValid() {
			n = int64(at.Port())
		}
	case logformat.DownstreamRemotePort:
		if s.Peer.IsValid() && s.Client == s.Peer.Addr() {
			n = int64(s.Peer.Port())
		}
	case logformat.DownstreamDirectRemotePort:
		if s.Peer.IsValid() {
			n = int64(s.Peer.Port())
		}
	case logformat.DownstreamLocalPort:
		if a := local(s); a.IsValid() {
			n = int64(a.Port())
		}
	case logformat.ConnectionID:
		return strconv.AppendUint(dst, s.ConnectionID, 10)
	}
	if n < 0 {
		return o.none(dst)
	}
	return strconv.AppendInt(dst, n, 10)
}

// millis is the time between two points in milliseconds, -1 when one did not happen.
func millis(from, to int64) int64 {
	if from == 0 || to == 0 || to < from {
		return -1
	}
	return (to - from) / 1e6
}

// appendText writes the operators whose values are texts, as far as the limit of dst's length allows.
func (o *op) appendText(dst []byte, s *stream.Stream, limit int) []byte {
	switch o.id {
	case logformat.Req, logformat.ReqWithoutQuery, logformat.Resp, logformat.Trailer:
		value := o.header.value(o.id, s)
		if value == nil {
			value = o.other.value(o.id, s)
		}
		if o.header.pseudo == pseudoStatus && s.Status != 0 {
			var digits [20]byte
			return o.escaped(dst, strconv.AppendInt(digits[:0], int64(s.Status), 10), limit)
		}
		if value == nil {
			return o.none(dst)
		}
		if at := bytes.IndexByte(value, '?'); at >= 0 && o.id == logformat.ReqWithoutQuery {
			value = value[:at]
		}
		if o.length > 0 && len(value) > o.length {
			value = value[:o.length]
		}
		return o.escaped(dst, value, limit)
	case logformat.Protocol:
		if s.Request.MethodID() == header.MethodOther && len(s.Request.Method()) == 0 {
			return o.none(dst)
		}
		return o.texted(dst, s.Request.Proto.String(), limit)
	case logformat.ResponseCodeDetails:
		return o.texted(dst, s.Details, limit)
	case logformat.ConnectionTerminationDetails:
		if s.Flags&stream.FlagDownstreamProtocolError == 0 {
			return o.none(dst)
		}
		return o.texted(dst, s.Details, limit)
	case logformat.ResponseFlags:
		if s.Flags == 0 {
			return o.none(dst)
		}
		var letters [128]byte
		return o.escaped(dst, s.Flags.Append(letters[:0]), limit)
	case logformat.ResponseFlagsLong:
		if s.Flags == 0 {
			return o.none(dst)
		}
		return o.longFlags(dst, s.Flags, limit)
	case logformat.UpstreamHost, logformat.UpstreamRemoteAddress:
		if s.Host == nil {
			return o.none(dst)
		}
		if s.Host.Logical() && s.Link.Remote.IsValid() {
			return o.address(dst, s.Link.Remote, true, limit)
		}
		return o.texted(dst, s.Host.Address, limit)
	case logformat.UpstreamHostName:
		if s.Host == nil {
			return o.none(dst)
		}
		return o.texted(dst, s.Host.Address, limit)
	case logformat.UpstreamHostNameWithoutPort:
		if s.Host == nil {
			return o.none(dst)
		}
		if name := s.Host.ServerName(); name != "" {
			return o.texted(dst, name, limit)
		}
		return o.texted(dst, s.Host.Address, limit)
	case logformat.UpstreamLocalAddress:
		return o.address(dst, s.Link.Local, true, limit)
	case logformat.UpstreamLocalAddressWithoutPort:
		return o.address(dst, s.Link.Local, false, limit)
	case logformat.UpstreamProtocol:
		return o.texted(dst, s.Link.Protocol, limit)
	case logformat.UpstreamTLSVersion:
		return o.texted(dst, versionName(s.Link.Version), limit)
	case logformat.UpstreamTLSCipher:
		return o.texted(dst, cipherName(s.Link.Cipher), limit)
	case logformat.UpstreamRemoteAddressWithoutPort:
		if s.Host == nil {
			return o.none(dst)
		}
		if at := s.Upstream(); at.IsValid() {
			return o.address(dst, at, false, limit)
		}
		return o.texted(dst, s.Host.Address, limit)
	case logformat.GRPCStatus:
		status, ok := grpcStatus(s)
		if !ok {
			return o.none(dst)
		}
		return o.grpc(dst, status, limit)
	case logformat.FilterChainName:
		if s.Config == nil {
			return o.none(dst)
		}
		return o.texted(dst, s.Config.ChainName(), limit)
	case logformat.UpstreamCluster:
		return o.texted(dst, s.ClusterName, limit)
	case logformat.UpstreamTransportFailureReason:
		return o.texted(dst, s.UpstreamFailure, limit)
	case logformat.RouteName:
		return o.texted(dst, s.RouteName, limit)
	case logformat.VirtualHostName:
		return o.texted(dst, s.HostName, limit)
	case logformat.StreamID:
		if id := s.Request.Get(header.XRequestID); id != nil {
			return o.escaped(dst, id, limit)
		}
		var hex [16]byte
		return o.escaped(dst, strconv.AppendUint(hex[:0], s.ID, 16), limit)
	case logformat.TraceID:
		return o.traceID(dst, s, s.Trace.ID[:], limit)
	case logformat.SpanID:
		return o.traceID(dst, s, s.Trace.Span[:], limit)
	case logformat.DownstreamRemoteAddress:
		// A client out of X-Forwarded-For has no port that this end knows.
		if s.Client.IsValid() && s.Client != s.Peer.Addr() {
			return o.address(dst, netip.AddrPortFrom(s.Client, 0), false, limit)
		}
		return o.address(dst, s.Peer, true, limit)
	case logformat.DownstreamRemoteAddressWithoutPort:
		if s.Client.IsValid() {
			return o.address(dst, netip.AddrPortFrom(s.Client, 0), false, limit)
		}
		return o.address(dst, s.Peer, false, limit)
	case logformat.DownstreamDirectRemoteAddress:
		return o.address(dst, s.Peer, true, limit)
	case logformat.DownstreamDirectRemoteAddressWithoutPort:
		return o.address(dst, s.Peer, false, limit)
	case logformat.DownstreamLocalAddress:
		return o.address(dst, local(s), true, limit)
	case logformat.DownstreamLocalAddressWithoutPort:
		return o.address(dst, local(s), false, limit)
	}
	return o.none(dst)
}

func (f source) value(id logformat.ID, s *stream.Stream) []byte {
	switch f.pseudo {
	case absent, pseudoStatus:
		return nil
	case pseudoMethod:
		return present(s.Request.Method())
	case pseudoPath:
		return present(s.Request.Path())
	case pseudoAuthority:
		return present(s.Request.Authority())
	case pseudoScheme:
		return present(s.Request.Scheme())
	}
	block := &s.Request.Block
	switch id {
	case logformat.Resp:
		if s.Response == nil {
			return nil
		}
		block = &s.Response.Block
	case logformat.Trailer:
		if s.ResponseTrailers == nil {
			return nil
		}
		block = s.ResponseTrailers
	}
	if f.id != header.Other {
		return block.Get(f.id)
	}
	return block.GetName(f.name)
}

func local(s *stream.Stream) netip.AddrPort {
	if down := s.Downstream(); down != nil {
		return down.LocalAddress()
	}
	return netip.AddrPort{}
}

func present(b []byte) []byte {
	if len(b) == 0 {
		return nil
	}
	return b
}

func (o *op) address(dst []byte, a netip.AddrPort, port bool, limit int) []byte {
	if !a.Addr().IsValid() {
		return o.none(dst)
	}
	var text [64]byte
	if port {
		return o.escaped(dst, a.AppendTo(text[:0]), limit)
	}
	return o.escaped(dst, a.Addr().AppendTo(text[:0]), limit)
}

func (o *op) traceID(dst []byte, s *stream.Stream, id []byte, limit int) []byte {
	if !s.Trace.On {
		return o.none(dst)
	}
	var text [32]byte
	return o.escaped(dst, hex.AppendEncode(text[:0], id), limit)
}

func (o *op) longFlags(dst []byte, flags stream.Flags, limit int) []byte {
	var text [1024]byte
	out := text[:0]
	for bit, name := range longFlags {
		if flags>>bit&1 == 0 {
			continue
		}
		if len(out) > 0 {
			out = append(out, ',')
		}
		out = append(out, name...)
	}
	return o.escaped(dst, out, limit)
}

// longFlags are the names of stream's flags in the order of their bits, as Envoy's %RESPONSE_FLAGS_LONG% has them.
var longFlags = [...]string{
	"FailedLocalHealthCheck", "NoHealthyUpstream", "UpstreamRequestTimeout", "LocalReset", "UpstreamRemoteReset",
	"UpstreamConnectionFailure", "UpstreamConnectionTermination", "UpstreamOverflow", "NoRouteFound", "DelayInjected",
	"FaultInjected", "RateLimited", "UnauthorizedExternalService", "RateLimitServiceError", "DownstreamConnectionTermination",
	"UpstreamRetryLimitExceeded", "StreamIdleTimeout", "InvalidEnvoyRequestHeaders", "DownstreamProtocolError",
	"UpstreamMaxStreamDurationReached", "ResponseFromCacheFilter", "NoFilterConfigFound", "DurationTimeout",
	"UpstreamProtocolError", "NoClusterFound", "OverloadManagerTerminated", "DnsResolutionFailed", "DropOverLoad",
	"DownstreamRemoteReset", "UnconditionalDropOverload", "PluginFailedOpen", "PluginFailedClosed",
}
