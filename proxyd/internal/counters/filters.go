package counters

import statsv1 "retinue.dev/services/api/stats/v1"

// Cells of a rate limit of this process.
const (
	RateLimitEnabled = iota
	RateLimitOK
	RateLimitRateLimited
	RateLimitEnforced
	RateLimitKeysEvicted
	RateLimitCells
)

// Cells of a fault filter.
const (
	FaultDelaysInjected = iota
	FaultAbortsInjected
	FaultOverflow
	FaultActive
	FaultResponsesLimited
	FaultCells
)

// Cells of a CORS filter.
const (
	CORSOriginValid = iota
	CORSOriginInvalid
	CORSCells
)

// Cells of an RBAC filter.
const (
	RBACAllowed = iota
	RBACDenied
	RBACShadowAllowed
	RBACShadowDenied
	RBACCells
)

// Cells of an IP filter.
const (
	IPAllowed = iota
	IPDenied
	IPShadowDenied
	IPCells
)

// Cells of a basic_auth filter.
const (
	BasicAuthAllowed = iota
	BasicAuthDenied
	BasicAuthCells
)

// Cells of a health_check filter.
const (
	HealthCheckOK = iota
	HealthCheckFailed
	HealthCheckCells
)

// Cells of a compress filter.
const (
	CompressCompressed = iota
	CompressNotCompressed
	CompressHeaderNotValid
	CompressOverflow
	CompressUncompressedBytes
	CompressCompressedBytes
	CompressCells
)

// Cells of an ext_authz filter.
const (
	ExtAuthzOK = iota
	ExtAuthzDenied
	ExtAuthzError
	ExtAuthzTimeout
	ExtAuthzFailureModeAllowed
	ExtAuthzCached
	ExtAuthzShadowDenied
	ExtAuthzCells
)

// Cells of a decompress filter.
const (
	DecompressDecompressed = iota
	DecompressNotDecompressed
	DecompressErrors
	DecompressCompressedBytes
	DecompressUncompressedBytes
	DecompressCells
)

// Cells of a global_rate_limit filter.
const (
	GlobalRateLimitOK = iota
	GlobalRateLimitOverLimit
	GlobalRateLimitEnforced
	GlobalRateLimitError
	GlobalRateLimitTimeout
	GlobalRateLimitFailureModeAllowed
	GlobalRateLimitCells
)

// Cells of a jwt filter.
const (
	JWTAllowed = iota
	JWTDenied
	JWTPreflightBypassed
	JWTCells
)

// Cells of a provider of tokens. Those of fetches are the first worker's.
const (
	JwtProviderFetchSuccess = iota
	JwtProviderFetchFailed
	JwtProviderCacheHit
	JwtProviderCacheMiss
	JwtProviderKidMismatch
	JwtProviderCells
)

// filters are the schemas of the built-in filters, the last of Schemas.
var filters = []*statsv1.Schema{
	schema("rate_limit",
		field(counter, "enabled", "requests or connections that were counted against the limit"),
		field(counter, "ok", "requests or connections within the limit"),
		field(counter, "rate_limited", "requests or connections over the limit, refused or not"),
		field(counter, "enforced", "requests or connections refused"),
		field(counter, "keys_evicted", "keys that lost a bucket that was not full to another key")),

	schema("fault",
		field(counter, "delays_injected", "requests delayed"),
		field(counter, "aborts_injected", "requests answered by an error"),
		field(counter, "faults_overflow", "requests left alone since there were max_active faults"),
		field(gauge, "active_faults", "requests with a fault under way"),
		field(counter, "response_rl_injected", "responses slowed down")),

	schema("cors",
		field(counter, "origin_valid", "requests of an allowed origin"),
		field(counter, "origin_invalid", "requests of another origin")),

	schema("rbac",
		field(counter, "allowed", "requests or connections that the rules allow"),
		field(counter, "denied", "requests or connections refused"),
		field(counter, "shadow_allowed", "requests or connections that the shadow rules would allow"),
		field(counter, "shadow_denied", "requests or connections that the shadow rules would refuse")),

	schema("ip",
		field(counter, "allowed", "requests or connections let in"),
		field(counter, "denied", "requests or connections refused"),
		field(counter, "shadow_denied", "requests or connections that would be refused without shadow")),

	schema("basic_auth",
		field(counter, "allowed", "requests with a user's password"),
		field(counter, "denied", "requests refused")),

	schema("health_check",
		field(counter, "ok", "health checks answered 200, or passed on"),
		field(counter, "failed", "health checks answered 503")),

	schema("compress",
		field(counter, "compressed", "responses compressed"),
		field(counter, "not_compressed", "responses with a body left as they are"),
		field(counter, "header_not_valid", "of those, the ones whose client takes none of the codings"),
		field(counter, "overflow", "of those, the ones that came while a worker had as many encoders as it may have"),
		in("bytes", field(counter, "total_uncompressed_bytes", "bytes that went into encoders")),
		in("bytes", field(counter, "total_compressed_bytes", "bytes that came out"))),

	schema("ext_authz",
		field(counter, "ok", "requests that the service permitted"),
		field(counter, "denied", "requests that the service refused"),
		field(counter, "error", "requests about which the service could not be asked, or did not know"),
		field(counter, "timeout", "those of them that it did not answer in time"),
		field(counter, "failure_mode_allowed", "those of them that passed all the same"),
		field(counter, "cached", "requests that a kept decision was for"),
		field(counter, "shadow_denied", "requests that were to be refused and passed, since that is not enforced")),

	schema("decompress",
		field(counter, "decompressed", "bodies decompressed"),
		field(counter, "not_decompressed", "bodies of another coding, or of one that the client takes"),
		field(counter, "errors", "bodies refused: malformed or too large"),
		in("bytes", field(counter, "total_compressed_bytes", "bytes that went into decoders")),
		in("bytes", field(counter, "total_uncompressed_bytes", "bytes that came out"))),
	schema("global_rate_limit",
		field(counter, "ok", "requests within their limits"),
		field(counter, "over_limit", "requests over a limit, refused or not"),
		field(counter, "enforced", "those of them that were refused"),
		field(counter, "error", "requests that the service did not decide about"),
		field(counter, "timeout", "those of them that it did not answer in time"),
		field(counter, "failure_mode_allowed", "those of them that passed all the same")),

	schema("jwt",
		field(counter, "allowed", "requests let in"),
		field(counter, "denied", "requests refused"),
		field(counter, "cors_preflight_bypassed", "preflight requests let in without a look")),

	schema("jwt_provider",
		field(counter, "jwks_fetch_success", "key sets fetched"),
		field(counter, "jwks_fetch_failed", "times that a key set could not be fetched"),
		field(counter, "jwt_cache_hit", "tokens that had been verified before"),
		field(counter, "jwt_cache_miss", "tokens that were not known"),
		field(counter, "jwks_refetch_on_kid_mismatch", "times that a token without a key in the set had it fetched")),
}
