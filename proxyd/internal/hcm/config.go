// Package hcm is the HTTP connection manager: the network filter that speaks HTTP with clients. It owns a connection's
// life as HTTP sees it (keep-alive, time-outs, limits, drain), decodes requests into streams and encodes their responses.
//
// A client that sends FIN after a complete request has closed its half only and still gets its answer, as with HAProxy
// (RFC 9112 9.6 lets it do so, and a client that is gone altogether shows itself by a reset). The connection then closes.
package hcm

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"retinue.dev/libs/routing"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/hpack"
	"retinue.dev/proxyd/internal/http1"
	"retinue.dev/proxyd/internal/http2"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tracing"
	configv1 "retinue.dev/services/api/config/v1"
)

// Protocols are the ALPN names of what the connection manager speaks.
var Protocols = []string{"h2", "http/1.1"}

// Config is one HTTP connection manager of one snapshot. Immutable; workers share it, streams pin it. Durations are
// nanoseconds, 0 is off.
type Config struct {
	stream.Config
	Routes *filter.Routes

	IdleTimeout           int64 // a connection without a request
	RequestHeadersTimeout int64 // first byte of a head to its last
	MaxConnectionDuration int64
	DelayedClose          time.Duration // how long to linger after the last response
	Limits                http1.Limits
	MaxRequests           uint32 // on one connection; 0: no limit

	HTTP2             http2.Config
	DrainTimeout      int64 // between the two GOAWAY
	KeepaliveInterval int64 // between two PING
	KeepaliveTimeout  int64 // for the answer

	HeaderCase       *http1.HeaderCase // nil: canonical names towards HTTP/1
	NoHalfClose      bool              // FIN under a request of HTTP/1 gives it up
	UseRemoteAddress bool
	TrustedHops      int
	// Internal is the networks of clients whose x-envoy-* headers hold.
	Internal          []netip.Prefix
	GenerateRequestID bool
	KeepRequestID     bool
	Via               []byte // "1.1 name"; empty: no Via

	MergeSlashes    bool
	Slashes         routing.Slashes
	RedirectDecoded bool // what Slashes decoded is answered by a redirect

	tracing *tracing.Config // nil: trace context passes as it came

	clientCert  clientCertMode
	certDetails certDetails

	upgrades filter.Upgrades
}

// Options are what a Config needs beyond its object.
type Options struct {
	Routes      *filter.Compiler
	Cells       []*counters.HTTP // by worker
	Logs        []stream.AccessLog
	Links       *bool // set while Routes are compiled when a header wants facts of upstream connections; see linked for the logs
	Tracing     *tracing.Config
	BufferLimit int // the listener's per_connection_buffer_limit_bytes; 0: 1 MiB
}

// defaultBufferLimit is Envoy's per_connection_buffer_limit_bytes.
const defaultBufferLimit = 1 << 20

// linked tells that a log wants facts of upstream connections.
func linked(l stream.AccessLog) bool {
	asks, ok := l.(interface{ Linked() bool })
	return ok && asks.Linked()
}

// NewConfig compiles an Http object. configd has written the defaults into it: a duration of 0 is off.
func NewConfig(h *configv1.Http, o Options) (*Config, error) {
	routes, err := o.Routes.Compile(h)
	if err != nil {
		return nil, err
	}
	t, l := h.GetTimeouts(), h.GetLimits()
	c := &Config{
		Config: stream.Config{
			Name: h.GetName(), StatPrefix: h.GetStatPrefix(),
			RequestTimeout:    filter.Milliseconds(t.GetRequestMs()),
			StreamIdleTimeout: filter.Milliseconds(t.GetStreamIdleMs()),
			MaxStreamDuration: filter.Milliseconds(t.GetMaxStreamDurationMs()),
			BufferLimit:       o.BufferLimit,
			ServerName:        h.GetServerName(),
			Routed:            routes.Filtered(), Logs: o.Logs, Links: o.Links != nil && *o.Links || slices.ContainsFunc(o.Logs, linked), Cells: o.Cells,
		},
		Routes:                routes,
		IdleTimeout:           filter.Milliseconds(t.GetIdleMs()),
		RequestHeadersTimeout: filter.Milliseconds(t.GetRequestHeadersMs()),
		MaxConnectionDuration: filter.Milliseconds(t.GetMaxConnectionDurationMs()),
		DelayedClose:          time.Duration(filter.Milliseconds(t.GetDelayedCloseMs())),
		Limits: http1.Limits{
			Line: int(l.GetMaxRequestLineBytes()), Bytes: int(l.GetMaxRequestHeadersBytes()), Fields: int(l.GetMaxHeadersCount()),
		},
		MaxRequests:       l.GetMaxRequestsPerConnection(),
		NoHalfClose:       h.GetNoHalfClose(),
		HeaderCase:        http1.NewHeaderCase(h.GetHeaderCase()),
		UseRemoteAddress:  h.GetUseRemoteAddress(),
		TrustedHops:       int(h.GetXffNumTrustedHops()),
		GenerateRequestID: h.GetGenerateRequestId(),
		KeepRequestID:     h.GetPreserveExternalRequestId(),
		MergeSlashes:      h.GetPath().GetMergeSlashes(),
		tracing:           o.Tracing,
	}
	switch h.GetPath().GetEscapedSlashes() {
	case configv1.EscapedSlashes_ESCAPED_SLASHES_REJECT:
		c.Slashes = routing.RejectSlashes
	case configv1.EscapedSlashes_ESCAPED_SLASHES_REDIRECT:
		c.Slashes, c.RedirectDecoded = routing.DecodeSlashes, true
	case configv1.EscapedSlashes_ESCAPED_SLASHES_DECODE:
		c.Slashes = routing.DecodeSlashes
	}
	for _, text := range h.GetInternalNetworks() {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("internal_networks: %w", err)
		}
		c.Internal = append(c.Internal, network.Masked())
	}
	var known bool
	if c.clientCert, known = clientCertModes[h.GetForwardClientCert()]; !known {
		return nil, fmt.Errorf("forward_client_cert: %q is not a mode", h.GetForwardClientCert())
	}
	c.certDetails = newCertDetails(h.GetClientCertDetails())
	if c.BufferLimit <= 0 {
		c.BufferLimit = defaultBufferLimit
	}
	if c.ServerName == "" {
		c.ServerName = "retinue"
	}
	if c.Limits.Line == 0 {
		c.Limits.Line = http1.DefaultLimits.Line
	}
	if c.Limits.Bytes == 0 {
		c.Limits.Bytes = http1.DefaultLimits.Bytes
	}
	if c.Limits.Fields == 0 {
		c.Limits.Fields = http1.DefaultLimits.Fields
	}
	if c.Limits.Line > maxHead || c.Limits.Bytes > maxHead {
		return nil, fmt.Errorf("limits: a request head may have at most %d bytes, which is what a worker reads at once", maxHead)
	}
	c.DrainTimeout = filter.Milliseconds(t.GetDrainMs())
	c.HTTP2 = http2.NewConfig(h.GetHttp2())
	c.KeepaliveInterval = filter.Milliseconds(h.GetHttp2().GetKeepaliveIntervalMs())
	c.KeepaliveTimeout = filter.Milliseconds(h.GetHttp2().GetKeepaliveTimeoutMs())
	c.HTTP2.Headers = hpack.Limits{ListSize: c.Limits.Bytes, Fields: c.Limits.Fields}
	c.HTTP2.HighWatermark = min(c.BufferLimit, c.HTTP2.HighWatermark)
	if via := h.GetVia(); via != "" {
		if c.Via = []byte("1.1 " + via); !header.ValidValue(c.Via) {
			return nil, fmt.Errorf("via: %q has control characters", via)
		}
	}
	if !header.ValidValue([]byte(c.ServerName)) {
		return nil, fmt.Errorf("server_name: %q has control characters", c.ServerName)
	}
	c.upgrades = filter.NewUpgrades(h.GetUpgradeTypes())
	c.HTTP2.Connect = c.upgrades.Protocols()
	return c, nil
}

// maxHead bounds what the limits may be set to: a head lies in one read buffer (worker.ScratchSize).
const maxHead = 192 << 10
