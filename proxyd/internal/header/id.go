package header

import "strings"

// ID is a well-known field name. IDs 1 to 47 are HPACK's static table entries 15 to 61 in its own order (RFC 7541
// appendix A), so that a name's static index is ID + 14; the others follow in no particular order. IDs live in
// memory only and never leave the process.
type ID uint8

// The well-known names. Other is a name that is kept as bytes.
const (
	Other                    ID = iota
	AcceptCharset               // 15
	AcceptEncoding              // 16
	AcceptLanguage              // 17
	AcceptRanges                // 18
	Accept                      // 19
	AccessControlAllowOrigin    // 20
	Age                         // 21
	Allow                       // 22
	Authorization               // 23
	CacheControl                // 24
	ContentDisposition          // 25
	ContentEncoding             // 26
	ContentLanguage             // 27
	ContentLength               // 28
	ContentLocation             // 29
	ContentRange                // 30
	ContentType                 // 31
	Cookie                      // 32
	Date                        // 33
	ETag                        // 34
	Expect                      // 35
	Expires                     // 36
	From                        // 37
	Host                        // 38
	IfMatch                     // 39
	IfModifiedSince             // 40
	IfNoneMatch                 // 41
	IfRange                     // 42
	IfUnmodifiedSince           // 43
	LastModified                // 44
	Link                        // 45
	Location                    // 46
	MaxForwards                 // 47
	ProxyAuthenticate           // 48
	ProxyAuthorization          // 49
	Range                       // 50
	Referer                     // 51
	Refresh                     // 52
	RetryAfter                  // 53
	Server                      // 54
	SetCookie                   // 55
	StrictTransportSecurity     // 56
	TransferEncoding            // 57
	UserAgent                   // 58
	Vary                        // 59
	Via                         // 60
	WWWAuthenticate             // 61

	Connection
	KeepAlive
	ProxyConnection
	TE
	Trailer
	Upgrade
	HTTP2Settings
	XForwardedFor
	XForwardedProto
	XForwardedHost
	XForwardedPort
	XForwardedClientCert
	Forwarded
	XRealIP
	XRequestID
	Traceparent
	Tracestate
	Baggage
	GrpcStatus
	GrpcMessage
	GrpcTimeout
	GrpcEncoding
	GrpcAcceptEncoding
	GrpcStatusDetailsBin
	Origin
	AccessControlRequestMethod
	AccessControlRequestHeaders
	AccessControlAllowMethods
	AccessControlAllowHeaders
	AccessControlAllowCredentials
	AccessControlExposeHeaders
	AccessControlMaxAge
	SecWebSocketKey
	SecWebSocketAccept
	SecWebSocketVersion
	SecWebSocketProtocol
	SecWebSocketExtensions
	SecFetchSite
	SecFetchMode
	SecFetchDest
	SecFetchUser
	SecCHUA
	SecCHUAMobile
	SecCHUAPlatform
	UpgradeInsecureRequests
	DNT
	Pragma
	Priority
	EarlyData
	AltSvc
	XRequestedWith
	ContentSecurityPolicy
	XContentTypeOptions
	XFrameOptions
	XXSSProtection
	ReferrerPolicy
	XPoweredBy
	XEnvoyUpstreamServiceTime
	XEnvoyUpstreamRqTimeoutMs
	XEnvoyAttemptCount
	XEnvoyMaxRetries
	XEnvoyRetryOn
	XEnvoyOriginalPath
	XEnvoyOverloaded
	XEnvoyImmediateHealthCheckFail
	XEnvoyUpstreamRqPerTryTimeoutMs
	XEnvoyRetryGrpcOn
	XEnvoyRetriableStatusCodes
	XEnvoyRetriableHeaderNames
	XEnvoyHedgeOnPerTryTimeout

	// NumIDs is one more than the greatest ID.
	NumIDs
)

// canonicalNames is the spelling of HTTP/1 output, as field users know it.
var canonicalNames = [NumIDs]string{
	AcceptCharset:                 "Accept-Charset",
	AcceptEncoding:                "Accept-Encoding",
	AcceptLanguage:                "Accept-Language",
	AcceptRanges:                  "Accept-Ranges",
	Accept:                        "Accept",
	AccessControlAllowOrigin:      "Access-Control-Allow-Origin",
	Age:                           "Age",
	Allow:                         "Allow",
	Authorization:                 "Authorization",
	CacheControl:                  "Cache-Control",
	ContentDisposition:            "Content-Disposition",
	ContentEncoding:               "Content-Encoding",
	ContentLanguage:               "Content-Language",
	ContentLength:                 "Content-Length",
	ContentLocation:               "Content-Location",
	ContentRange:                  "Content-Range",
	ContentType:                   "Content-Type",
	Cookie:                        "Cookie",
	Date:                          "Date",
	ETag:                          "ETag",
	Expect:                        "Expect",
	Expires:                       "Expires",
	From:                          "From",
	Host:                          "Host",
	IfMatch:                       "If-Match",
	IfModifiedSince:               "If-Modified-Since",
	IfNoneMatch:                   "If-None-Match",
	IfRange:                       "If-Range",
	IfUnmodifiedSince:             "If-Unmodified-Since",
	LastModified:                  "Last-Modified",
	Link:                          "Link",
	Location:                      "Location",
	MaxForwards:                   "Max-Forwards",
	ProxyAuthenticate:             "Proxy-Authenticate",
	ProxyAuthorization:            "Proxy-Authorization",
	Range:                         "Range",
	Referer:                       "Referer",
	Refresh:                       "Refresh",
	RetryAfter:                    "Retry-After",
	Server:                        "Server",
	SetCookie:                     "Set-Cookie",
	StrictTransportSecurity:       "Strict-Transport-Security",
	TransferEncoding:              "Transfer-Encoding",
	UserAgent:                     "User-Agent",
	Vary:                          "Vary",
	Via:                           "Via",
	WWWAuthenticate:               "WWW-Authenticate",
	Connection:                    "Connection",
	KeepAlive:                     "Keep-Alive",
	ProxyConnection:               "Proxy-Connection",
	TE:                            "TE",
	Trailer:                       "Trailer",
	Upgrade:                       "Upgrade",
	HTTP2Settings:                 "HTTP2-Settings",
	XForwardedFor:                 "X-Forwarded-For",
	XForwardedProto:               "X-Forwarded-Proto",
	XForwardedHost:                "X-Forwarded-Host",
	XForwardedPort:                "X-Forwarded-Port",
	XForwardedClientCert:          "X-Forwarded-Client-Cert",
	Forwarded:                     "Forwarded",
	XRealIP:                       "X-Real-IP",
	XRequestID:                    "X-Request-Id",
	Traceparent:                   "Traceparent",
	Tracestate:                    "Tracestate",
	Baggage:                       "Baggage",
	GrpcStatus:                    "Grpc-Status",
	GrpcMessage:                   "Grpc-Message",
	GrpcTimeout:                   "Grpc-Timeout",
	GrpcEncoding:                  "Grpc-Encoding",
	GrpcAcceptEncoding:            "Grpc-Accept-Encoding",
	GrpcStatusDetailsBin:          "Grpc-Status-Details-Bin",
	Origin:                        "Origin",
	AccessControlRequestMethod:    "Access-Control-Request-Method",
	AccessControlRequestHeaders:   "Access-Control-Request-Headers",
	AccessControlAllowMethods:     "Access-Control-Allow-Methods",
	AccessControlAllowHeaders:     "Access-Control-Allow-Headers",
	AccessControlAllowCredentials: "Access-Control-Allow-Credentials",
	AccessControlExposeHeaders:    "Access-Control-Expose-Headers",
	AccessControlMaxAge:           "Access-Control-Max-Age",
	SecWebSocketKey:               "Sec-WebSocket-Key",
	SecWebSocketAccept:            "Sec-WebSocket-Accept",
	SecWebSocketVersion:           "Sec-WebSocket-Version",
	SecWebSocketProtocol:          "Sec-WebSocket-Protocol",
	SecWebSocketExtensions:        "Sec-WebSocket-Extensions",
	SecFetchSite:                  "Sec-Fetch-Site",
	SecFetchMode:                  "Sec-Fetch-Mode",
	SecFetchDest:                  "Sec-Fetch-Dest",
	SecFetchUser:                  "Sec-Fetch-User",
	SecCHUA:                       "Sec-CH-UA",
	SecCHUAMobile:                 "Sec-CH-UA-Mobile",
	SecCHUAPlatform:               "Sec-CH-UA-Platform",
	UpgradeInsecureRequests:       "Upgrade-Insecure-Requests",
	DNT:                           "DNT",
	Pragma:                        "Pragma",
	Priority:                      "Priority",
	EarlyData:                     "Early-Data",
	AltSvc:                        "Alt-Svc",
	XRequestedWith:                "X-Requested-With",
	ContentSecurityPolicy:         "Content-Security-Policy",
	XContentTypeOptions:           "X-Content-Type-Options",
	XFrameOptions:                 "X-Frame-Options",
	XXSSProtection:                "X-XSS-Protection",
	ReferrerPolicy:                "Referrer-Policy",
	XPoweredBy:                    "X-Powered-By",
	XEnvoyUpstreamServiceTime:     "X-Envoy-Upstream-Service-Time",
	XEnvoyUpstreamRqTimeoutMs:     "X-Envoy-Upstream-Rq-Timeout-Ms",
	XEnvoyAttemptCount:            "X-Envoy-Attempt-Count",
	XEnvoyMaxRetries:              "X-Envoy-Max-Retries",
	XEnvoyRetryOn:                 "X-Envoy-Retry-On",
	XEnvoyOriginalPath:            "X-Envoy-Original-Path",
	XEnvoyOverloaded:              "X-Envoy-Overloaded",

	XEnvoyImmediateHealthCheckFail:  "X-Envoy-Immediate-Health-Check-Fail",
	XEnvoyUpstreamRqPerTryTimeoutMs: "X-Envoy-Upstream-Rq-Per-Try-Timeout-Ms",
	XEnvoyRetryGrpcOn:               "X-Envoy-Retry-Grpc-On",
	XEnvoyRetriableStatusCodes:      "X-Envoy-Retriable-Status-Codes",
	XEnvoyRetriableHeaderNames:      "X-Envoy-Retriable-Header-Names",
	XEnvoyHedgeOnPerTryTimeout:      "X-Envoy-Hedge-On-Per-Try-Timeout",
}

var (
	lowerNames  = lowered()
	linePrefix  = prefixes()
	nameKeys    = keys()
	lookupTable = slots()
)

func lowered() (t [NumIDs][]byte) {
	for id, name := range canonicalNames {
		t[id] = []byte(strings.ToLower(name))
	}
	return t
}

func prefixes() (t [NumIDs]string) {
	for id, name := range canonicalNames {
		t[id] = name + ": "
	}
	return t
}

// String is the name in lower case; "" for Other.
func (id ID) String() string { return string(lowerNames[id]) }

// Lower is the name in lower case. It must not be changed.
func (id ID) Lower() []byte { return lowerNames[id] }

// Canonical is the name as HTTP/1 output spells it.
func (id ID) Canonical() string { return canonicalNames[id] }

// LinePrefix is the canonical name with ": " behind it, what a line of HTTP/1 begins with.
func (id ID) LinePrefix() string { return linePrefix[id] }
