package accesslog

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"strconv"

	"retinue.dev/libs/logformat"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
)

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
		if !s.Host.IP.IsValid() && s.Link.Remote.IsValid() { // a logical host, even one that had left when its tunnel was taken over
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
