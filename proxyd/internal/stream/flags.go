package stream

import "strings"

// Flags is a stream's response flags, a bit each: why a response is not simply what the upstream said. Envoy's letters.
type Flags uint64

// The flags, in the order in which Envoy writes them.
const (
	FlagFailedLocalHealthCheck    Flags = 1 << iota // LH
	FlagNoHealthyUpstream                           // UH
	FlagUpstreamRequestTimeout                      // UT
	FlagLocalReset                                  // LR
	FlagUpstreamRemoteReset                         // UR
	FlagUpstreamConnectionFailure                   // UF
	FlagUpstreamTermination                         // UC
	FlagUpstreamOverflow                            // UO
	FlagNoRoute                                     // NR
	FlagDelayInjected                               // DI
	FlagFaultInjected                               // FI
	FlagRateLimited                                 // RL
	FlagUnauthorized                                // UAEX
	FlagRateLimitServiceError                       // RLSE
	FlagDownstreamTermination                       // DC
	FlagRetryLimit                                  // URX
	FlagStreamIdleTimeout                           // SI
	FlagInvalidHeaders                              // IH
	FlagDownstreamProtocolError                     // DPE
	FlagMaxDuration                                 // UMSDR
	FlagResponseFromCache                           // RFCF
	FlagNoFilterConfig                              // NFCF
	FlagDurationTimeout                             // DT
	FlagUpstreamProtocolError                       // UPE
	FlagNoCluster                                   // NC
	FlagOverloadManager                             // OM
	FlagDNSFailure                                  // DF
	FlagDropOverload                                // DO
	FlagDownstreamRemoteReset                       // DR
	FlagUnconditionalDropOverload                   // UDO
	FlagPluginOpen                                  // PO: a plugin failed and was left out (ours)
	FlagPluginClosed                                // PC: a plugin failed and the request with it (ours)
)

var flagLetters = [...]string{
	"LH", "UH", "UT", "LR", "UR", "UF", "UC", "UO", "NR", "DI", "FI", "RL", "UAEX", "RLSE", "DC", "URX", "SI", "IH", "DPE",
	"UMSDR", "RFCF", "NFCF", "DT", "UPE", "NC", "OM", "DF", "DO", "DR", "UDO", "PO", "PC",
}

// Append appends the letters with commas between them, "-" for none (%RESPONSE_FLAGS%).
func (f Flags) Append(dst []byte) []byte {
	if f == 0 {
		return append(dst, '-')
	}
	comma := false
	for bit, letters := range flagLetters {
		if f>>bit&1 == 0 {
			continue
		}
		if comma {
			dst = append(dst, ',')
		}
		dst = append(dst, letters...)
		comma = true
	}
	return dst
}

// String is what Append appends.
func (f Flags) String() string { return string(f.Append(nil)) }

// Response code details (%RESPONSE_CODE_DETAILS%), Envoy's strings. Upstream resets have theirs in package filter.
const (
	DetailViaUpstream       = "via_upstream"
	DetailDirectResponse    = "direct_response"
	DetailRouteNotFound     = "route_not_found"
	DetailClusterNotFound   = "cluster_not_found"
	DetailNoHealthyUpstream = "no_healthy_upstream"
	DetailRequestTooLarge   = "request_payload_too_large"
	DetailResponseTooLarge  = "response_payload_too_large"
	DetailMissingHost       = "missing_host_header"
	DetailUpgradeFailed     = "upgrade_failed"
	DetailStreamIdle        = "stream_idle_timeout"
	DetailRequestTimeout    = "request_overall_timeout"
	DetailHeaderTimeout     = "request_header_timeout"
	DetailMaxDuration       = "max_duration_timeout"
	DetailUpstreamTimeout   = "upstream_response_timeout"
	DetailRemoteDisconnect  = "downstream_remote_disconnect"
	DetailLocalDisconnect   = "downstream_local_disconnect"
	DetailOverload          = "overload"
	DetailEncodeFailed      = "response_encoding_failed"
)

// ParseFlag returns the flag of the letters.
func ParseFlag(letters string) (Flags, bool) {
	for bit, l := range flagLetters {
		if strings.EqualFold(l, letters) {
			return 1 << bit, true
		}
	}
	return 0, false
}
