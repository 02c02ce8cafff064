// Package cluster is an upstream cluster as a worker sees it: its immutable settings and host set, and the choice of
// a host. Values are built on the main side and never change; a changed cluster is a new value under the same handle.
package cluster

import (
	"fmt"
	"time"

	"retinue.dev/proxyd/internal/http1"
	"retinue.dev/proxyd/internal/http2"
	configv1 "retinue.dev/services/api/config/v1"
)

// Envoy's limits when the configuration names none (envoy/config/cluster/v3/circuit_breaker.proto).
const (
	defaultMaxConnections = 1024
	defaultMaxPending     = 1024
	defaultMaxRequests    = 1024
	defaultMaxRetries     = 3
	defaultMinRetries     = 3
	maxWeight             = 1_000_000
)

// Handle is a cluster's dense index. It stays the same for a name over snapshots, so that pools survive them.
type Handle int32

// NoHandle is the handle of a cluster that no snapshot names.
const NoHandle Handle = -1

// Cluster is one upstream cluster of one snapshot. Immutable.
type Cluster struct {
	Name           string
	Handle         Handle
	Rule           *Rule
	ConnectTimeout time.Duration
	IdleTimeout    time.Duration     // 0: pooled connections stay
	Preconnect     uint32            // percent of the requests towards a host that speaks HTTP/1; at most 100: none ahead
	MaxRequests    uint32            // on one connection; 0: no limit
	HeaderCase     *http1.HeaderCase // nil: canonical names towards HTTP/1
	BufferLimit    int
	Breakers       [Priorities]Breaker
	Hosts          *HostSet
	Discovered     bool // Hosts change without a snapshot

	// HTTP2 is what connections of HTTP/2 do; nil: none is made. Negotiate leaves the choice to ALPN.
	HTTP2             *http2.Config
	Negotiate         bool
	KeepaliveInterval time.Duration // between two PING; 0: none
	KeepaliveTimeout  time.Duration // for the answer

	Check   *Check   // nil: hosts are not asked
	Outlier *Outlier // nil: nobody is ejected
}

// Priority is a request's, Envoy's RoutingPriority: it says whose limits bound it.
type Priority uint8

const (
	Default Priority = iota
	High
	Priorities
)

// Breaker holds the limits of one cluster for one priority, over all workers.
type Breaker struct {
	MaxConnections, MaxPending, MaxRequests, MaxRetries uint64
	RetryBudget                                         uint64 // percent of the requests under way, instead of MaxRetries; 0 off
	MinRetries                                          uint64 // at a time, that a budget never refuses (Envoy's min_retry_concurrency)
	TrackRemaining                                      bool   // gauges tell what is left of the limits
}

// Build makes the immutable cluster of a configuration object. previous is the value that the handle had before, or
// nil: hosts that did not change are taken from it.
func Build(c *configv1.Cluster, handle Handle, previous *Cluster) (*Cluster, error) {
	out := &Cluster{
		Name: c.GetName(), Handle: handle,
		ConnectTimeout: time.Duration(c.GetConnectTimeoutMs()) * time.Millisecond,
		IdleTimeout:    time.Duration(c.GetIdleTimeoutMs()) * time.Millisecond,
		MaxRequests:    c.GetMaxRequestsPerConnection(),
		BufferLimit:    int(c.GetPerConnectionBufferLimitBytes()),
		Discovered:     c.GetDiscovered(),
		Preconnect:     c.GetPreconnectPercent(),
		HeaderCase:     http1.NewHeaderCase(c.GetHeaderCase()),
		Breakers:       [Priorities]Breaker{Default: buildBreaker(c.GetCircuitBreaker()), High: buildBreaker(c.GetCircuitBreakerHigh())},
	}
	switch c.GetProtocol() {
	case "", "http1":
	case "http2":
		out.HTTP2 = newHTTP2(out, c.GetHttp2())
	case "auto":
		out.HTTP2, out.Negotiate = newHTTP2(out, c.GetHttp2()), true
	default:
		return nil, fmt.Errorf("protocol %q is not one that this proxyd speaks: use \"http1\", \"http2\" or \"auto\"", c.GetProtocol())
	}
	if out.ConnectTimeout <= 0 {
		out.ConnectTimeout = 5 * time.Second
	}
	if out.BufferLimit <= 0 {
		out.BufferLimit = 1 << 20
	}
	var err error
	if out.Check, err = buildCheck(c.GetHealthCheck()); err != nil {
		return nil, err
	}
	out.Outlier = buildOutlier(c.GetOutlierDetection())
	if previous != nil { // who watches the hosts goes on where nothing changed
		out.Check, out.Outlier = keep(out.Check, previous.Check), keepOutlier(out.Outlier, previous.Outlier)
	}
	var old *HostSet
	if previous != nil && (out.Outlier == nil || previous.Outlier != nil) { // a host that was not observed cannot begin to be
		old = previous.Hosts
	}
	if out.Rule, err = buildRule(c); err != nil {
		return nil, err
	}
	if out.Hosts, err = buildHosts(out.Rule, c.GetEndpoints(), old); err != nil {
		return nil, err
	}
	return out, nil
}

func buildBreaker(b *configv1.CircuitBreaker) Breaker {
	return Breaker{
		MaxConnections: limit(b.GetMaxConnections(), defaultMaxConnections),
		MaxPending:     optional(b, func(b *configv1.CircuitBreaker) *uint32 { return b.MaxPendingRequests }, defaultMaxPending),
		MaxRequests:    limit(b.GetMaxRequests(), defaultMaxRequests),
		MaxRetries:     optional(b, func(b *configv1.CircuitBreaker) *uint32 { return b.MaxRetries }, defaultMaxRetries),
		RetryBudget:    uint64(b.GetRetryBudgetPercent()),
		MinRetries:     optional(b, func(b *configv1.CircuitBreaker) *uint32 { return b.MinRetryConcurrency }, defaultMinRetries),
		TrackRemaining: b.GetTrackRemaining(),
	}
}

func newHTTP2(c *Cluster, o *configv1.Http2) *http2.Config {
	config := http2.NewConfig(o)
	c.KeepaliveInterval = time.Duration(o.GetKeepaliveIntervalMs()) * time.Millisecond
	c.KeepaliveTimeout = time.Duration(o.GetKeepaliveTimeoutMs()) * time.Millisecond
	if c.BufferLimit > 0 {
		config.HighWatermark = min(config.HighWatermark, c.BufferLimit)
	}
	return &config
}

// WithHosts is the same cluster with other members: what a change of endpoints makes.
func (c *Cluster) WithHosts(hosts *HostSet) *Cluster {
	changed := *c
	changed.Hosts = hosts
	return &changed
}

// optional is a limit for which 0 is a value of its own.
func optional(b *configv1.CircuitBreaker, field func(*configv1.CircuitBreaker) *uint32, absent uint64) uint64 {
	if b != nil {
		if v := field(b); v != nil {
			return uint64(*v)
		}
	}
	return absent
}

func limit(configured uint32, standard uint64) uint64 {
	if configured == 0 {
		return standard
	}
	return uint64(configured)
}
