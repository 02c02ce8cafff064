package hcm

import (
	"bytes"
	"net/netip"
	"slices"

	"retinue.dev/libs/routing"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
)

// normalize gives the request the one form of its path that router, filters and upstream all see; false for a path that they
// would read differently. Most paths are in it already.
func (s *Shared) normalize(st *stream.Stream, config *Config) bool {
	r := &st.Request
	path := r.Path()
	if len(path) == 0 || path[0] != '/' {
		return true // CONNECT and OPTIONS *
	}
	if bytes.IndexByte(path, '%') < 0 && !bytes.Contains(path, slashDot) && bytes.IndexByte(path, '\\') < 0 &&
		!(config.MergeSlashes && bytes.Contains(path, slashes)) {
		return true
	}
	normal, decoded, ok := routing.NormalizePath(s.text[:0], path, config.MergeSlashes, config.Slashes)
	if !ok {
		return false
	}
	s.text = normal
	st.PathDecoded = decoded && config.RedirectDecoded
	return bytes.Equal(normal, path) || r.SetPath(normal)
}

var (
	slashDot  = []byte("/.")
	slashes   = []byte("//")
	separator = []byte(", ")
)

// forwarded adds what the upstream is told of the client: X-Forwarded-For, X-Forwarded-Proto, X-Request-Id, the trace, Via.
func (s *Shared) forwarded(st *stream.Stream, config *Config, c *conn.Conn, router *filter.Router) {
	r := &st.Request
	s.clientCert(r, config, c)
	if t, _ := c.Transport().(*tlstransport.Transport); t != nil {
		st.Certified = t.Certified()
	}
	st.Client = st.Peer.Addr().Unmap()
	if config.TrustedHops > 0 {
		st.Client = trusted(&r.Block, st.Client, config.TrustedHops, config.UseRemoteAddress)
	}
	st.Internal = len(config.Internal) > 0 && slices.ContainsFunc(config.Internal, func(n netip.Prefix) bool { return n.Contains(st.Client) })
	if !st.Internal {
		r.RemoveAny(&envoyControls)
	}
	if config.UseRemoteAddress && st.Peer.IsValid() {
		last := -1
		for i := r.Index(header.XForwardedFor, 0); i >= 0; i = r.Index(header.XForwardedFor, i+1) {
			last = i
		}
		if last < 0 {
			s.text = peerText(s.text[:0], st.Peer)
			r.Add(header.XForwardedFor, nil, s.text)
		} else {
			s.text = append(append(s.text[:0], r.ValueAt(last)...), separator...)
			s.text = peerText(s.text, st.Peer)
			r.SetAt(last, s.text)
		}
	}
	if !r.Has(header.XForwardedProto) {
		r.Add(header.XForwardedProto, nil, r.Scheme())
	} else if config.UseRemoteAddress && config.TrustedHops == 0 {
		r.Set(header.XForwardedProto, nil, r.Scheme()) // nobody in front of us is trusted to say it
	}
	if config.GenerateRequestID && !(config.KeepRequestID && len(r.Get(header.XRequestID)) > 0) {
		s.text = uuid(s.text[:0], s.worker.Rand(), s.worker.Rand())
		r.Set(header.XRequestID, nil, s.text)
	}
	if config.tracing != nil {
		s.text = config.tracing.Begin(st, s.text, router.Sampling(st))
	}
	if len(config.Via) > 0 {
		r.Add(header.Via, nil, config.Via)
	}
}

// envoyControls are the request headers by which a client that is trusted says how its request is to be served: Envoy's, which
// removes them from everybody else's.
var envoyControls = header.MaskOf(
	header.XEnvoyUpstreamRqTimeoutMs, header.XEnvoyUpstreamRqPerTryTimeoutMs, header.XEnvoyMaxRetries, header.XEnvoyRetryOn,
	header.XEnvoyRetryGrpcOn, header.XEnvoyRetriableStatusCodes, header.XEnvoyRetriableHeaderNames, header.XEnvoyHedgeOnPerTryTimeout,
)

// trusted finds the client's address behind the given number of proxies that are trusted: Envoy's xff_num_trusted_hops. Where
// the peer itself is not appended, it is the last of the proxies.
func trusted(b *header.Block, peer netip.Addr, hops int, usePeer bool) netip.Addr {
	if !usePeer {
		hops++
	}
	for i := b.Len() - 1; i >= 0; i-- {
		if b.IDAt(i) != header.XForwardedFor {
			continue
		}
		list := b.ValueAt(i)
		for len(list) > 0 {
			item := list
			if comma := bytes.LastIndexByte(list, ','); comma >= 0 {
				item, list = list[comma+1:], list[:comma]
			} else {
				list = nil
			}
			if hops--; hops > 0 {
				continue
			}
			if addr, ok := parseAddr(header.TrimSpace(item)); ok {
				return addr
			}
			return peer
		}
	}
	return peer
}

// parseAddr reads an address of X-Forwarded-For. netip wants a string; an address is short enough for the stack.
func parseAddr(text []byte) (netip.Addr, bool) {
	if len(text) == 0 || len(text) > 45 {
		return netip.Addr{}, false
	}
	addr, err := netip.ParseAddr(string(text))
	return addr.Unmap(), err == nil
}

// uuid appends a version 4 UUID of two random numbers.
func uuid(dst []byte, hi, lo uint64) []byte {
	hi = hi&^0xf000 | 0x4000
	lo = lo&^(3<<62) | 2<<62
	const digits = "0123456789abcdef"
	for i := range 16 {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			dst = append(dst, '-')
		}
		word := hi
		if i >= 8 {
			word = lo
		}
		octet := byte(word >> (56 - 8*(i&7)))
		dst = append(dst, digits[octet>>4], digits[octet&15])
	}
	return dst
}
