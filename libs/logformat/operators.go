package logformat

import "slices"

// ID names an operator in a switch.
type ID uint8

// The operators. Literal is the ID of a segment that is plain text.
const (
	Literal ID = iota
	StartTime
	Req
	Resp
	Trailer
	Protocol
	ResponseCode
	ResponseCodeDetails
	ResponseFlags
	ResponseFlagsLong
	ConnectionTerminationDetails
	BytesReceived
	BytesSent
	Duration
	RequestDuration
	RequestTxDuration
	ResponseDuration
	ResponseTxDuration
	UpstreamHost
	UpstreamCluster
	UpstreamLocalAddress
	UpstreamRemoteAddress
	UpstreamTransportFailureReason
	UpstreamRequestAttemptCount
	DownstreamRemoteAddress
	DownstreamRemoteAddressWithoutPort
	DownstreamDirectRemoteAddress
	DownstreamDirectRemoteAddressWithoutPort
	DownstreamLocalAddress
	DownstreamLocalAddressWithoutPort
	DownstreamLocalPort
	ConnectionID
	RouteName
	VirtualHostName
	StreamID
	PluginTime
	TraceID
	SpanID
	ReqWithoutQuery
	GRPCStatus
	GRPCStatusNumber
	CommonDuration
	UpstreamConnectionPoolReadyDuration
	UpstreamLocalAddressWithoutPort
	UpstreamLocalPort
	UpstreamConnectionID
	UpstreamProtocol
	UpstreamTLSVersion
	UpstreamTLSCipher
	UpstreamRemoteAddressWithoutPort
	UpstreamRemotePort
	DownstreamRemotePort
	DownstreamDirectRemotePort
	FilterChainName
	RequestedServerName
	DownstreamTLSVersion
	DownstreamTLSCipher
	DownstreamPeerSubject
	DownstreamPeerIssuer
	DownstreamPeerSerial
	DownstreamPeerFingerprint256
	DownstreamPeerURISAN
	DownstreamPeerDNSSAN
	DownstreamLocalSubject
	DownstreamLocalURISAN
	DownstreamLocalDNSSAN
	UpstreamHostName
	UpstreamHostNameWithoutPort
	Hostname
)

// OfLink tells that the operator's value is a fact of the upstream's connection, which is noted only where somebody asks.
func (id ID) OfLink() bool {
	return id == UpstreamLocalAddress || id >= UpstreamLocalAddressWithoutPort && id <= UpstreamTLSCipher
}

// OfTLS tells that the operator's value is what the TLS handshake with the client has shown.
func (id ID) OfTLS() bool { return id >= RequestedServerName && id <= DownstreamLocalDNSSAN }

// Argument says what stands in an operator's parentheses.
type Argument uint8

// The kinds of argument.
const (
	None   Argument = iota
	Header          // NAME or NAME?OTHER, with an optional :LENGTH after the parentheses
	Time            // strftime, optional
	Style           // how a status of gRPC is written, optional: CAMEL_STRING, SNAKE_STRING or NUMBER
	Span            // START:END:UNIT, two of Points, and ms, us or ns
)

// Operator is one %NAME%.
type Operator struct {
	ID       ID
	Name     string
	Argument Argument
	Numeric  bool // a lone one is a number in JSON
	Doc      string
}

// Operators lists what a format may hold. Names and meanings are Envoy's.
func Operators() []Operator { return slices.Clone(operators) }

var operators = []Operator{
	{StartTime, "START_TIME", Time, false, "when the request began, in UTC; the argument is a strftime format (also %f and %1f to %9f for fractions), without one RFC 3339 with milliseconds"},
	{Req, "REQ", Header, false, "request header; `?OTHER` is taken when it is absent; `:METHOD`, `:PATH`, `:AUTHORITY` and `:SCHEME` too"},
	{Resp, "RESP", Header, false, "response header"},
	{Trailer, "TRAILER", Header, false, "response trailer"},
	{Protocol, "PROTOCOL", None, false, "HTTP/1.0, HTTP/1.1"},
	{ResponseCode, "RESPONSE_CODE", None, true, "status; 0 when none was sent"},
	{ResponseCodeDetails, "RESPONSE_CODE_DETAILS", None, false, "who set the status and why"},
	{ResponseFlags, "RESPONSE_FLAGS", None, false, "UH, UF, UC, UT … or -"},
	{ResponseFlagsLong, "RESPONSE_FLAGS_LONG", None, false, "the flags' long names"},
	{ConnectionTerminationDetails, "CONNECTION_TERMINATION_DETAILS", None, false, "why the connection was ended by the proxy"},
	{BytesReceived, "BYTES_RECEIVED", None, true, "body bytes from the client"},
	{BytesSent, "BYTES_SENT", None, true, "body bytes to the client"},
	{Duration, "DURATION", None, true, "milliseconds from the first byte of the request to the last of the response"},
	{RequestDuration, "REQUEST_DURATION", None, true, "milliseconds to the last byte of the request received"},
	{RequestTxDuration, "REQUEST_TX_DURATION", None, true, "milliseconds to the last byte of the request sent upstream"},
	{ResponseDuration, "RESPONSE_DURATION", None, true, "milliseconds to the first byte of the response received"},
	{ResponseTxDuration, "RESPONSE_TX_DURATION", None, true, "milliseconds from the first byte of the response received to the last sent"},
	{UpstreamHost, "UPSTREAM_HOST", None, false, "address of the endpoint; of a logical one the address that the connection goes to"},
	{UpstreamCluster, "UPSTREAM_CLUSTER", None, false, "name of the cluster"},
	{UpstreamLocalAddress, "UPSTREAM_LOCAL_ADDRESS", None, false, "own address of the upstream connection"},
	{UpstreamRemoteAddress, "UPSTREAM_REMOTE_ADDRESS", None, false, "the same"},
	{UpstreamTransportFailureReason, "UPSTREAM_TRANSPORT_FAILURE_REASON", None, false, "why the upstream connection failed"},
	{UpstreamRequestAttemptCount, "UPSTREAM_REQUEST_ATTEMPT_COUNT", None, true, "attempts, the first included"},
	{DownstreamRemoteAddress, "DOWNSTREAM_REMOTE_ADDRESS", None, false, "client, from X-Forwarded-For where that is trusted"},
	{DownstreamRemoteAddressWithoutPort, "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", None, false, "the same without the port"},
	{DownstreamDirectRemoteAddress, "DOWNSTREAM_DIRECT_REMOTE_ADDRESS", None, false, "peer of the connection"},
	{DownstreamDirectRemoteAddressWithoutPort, "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", None, false, "the same without the port"},
	{DownstreamLocalAddress, "DOWNSTREAM_LOCAL_ADDRESS", None, false, "own address of the client's connection"},
	{DownstreamLocalAddressWithoutPort, "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", None, false, "the same without the port"},
	{DownstreamLocalPort, "DOWNSTREAM_LOCAL_PORT", None, true, "own port of the client's connection"},
	{ConnectionID, "CONNECTION_ID", None, true, "number of the client's connection"},
	{RouteName, "ROUTE_NAME", None, false, "pattern of the route"},
	{VirtualHostName, "VIRTUAL_HOST_NAME", None, false, "name of the virtual host"},
	{StreamID, "STREAM_ID", None, false, "the request's X-Request-Id"},
	{PluginTime, "PLUGIN_TIME", None, true, "microseconds spent waiting for plugins (ours, not Envoy's)"},
	{ReqWithoutQuery, "REQ_WITHOUT_QUERY", Header, false, "the same as REQ, without what follows a question mark: `%REQ_WITHOUT_QUERY(:PATH)%`"},
	{GRPCStatus, "GRPC_STATUS", Style, false, "status of a gRPC request, from the trailers, the headers or else the HTTP status: NotFound; with (SNAKE_STRING) NOT_FOUND, with (NUMBER) 5"},
	{GRPCStatusNumber, "GRPC_STATUS_NUMBER", None, true, "the same as a number"},
	{CommonDuration, "COMMON_DURATION", Span, true, "time between two points, in ms, us or ns: `%COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%`. Points are DS_RX_BEG, DS_RX_END (the request from the client), US_TX_BEG, US_TX_END (to the upstream), US_RX_BEG, US_RX_END (the response), DS_TX_BEG and DS_TX_END (to the client)"},
	{UpstreamConnectionPoolReadyDuration, "UPSTREAM_CONNECTION_POOL_READY_DURATION", None, true, "milliseconds until there was a connection for the request"},
	{UpstreamLocalAddressWithoutPort, "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", None, false, "the same without the port"},
	{UpstreamLocalPort, "UPSTREAM_LOCAL_PORT", None, true, "own port of the upstream connection"},
	{UpstreamConnectionID, "UPSTREAM_CONNECTION_ID", None, true, "number of the upstream connection"},
	{UpstreamProtocol, "UPSTREAM_PROTOCOL", None, false, "HTTP/1.1 or HTTP/2, towards the endpoint"},
	{UpstreamTLSVersion, "UPSTREAM_TLS_VERSION", None, false, "TLSv1.2, TLSv1.3, towards the endpoint"},
	{UpstreamTLSCipher, "UPSTREAM_TLS_CIPHER", None, false, "cipher suite towards the endpoint, by the name of IANA"},
	{UpstreamRemoteAddressWithoutPort, "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", None, false, "address of the endpoint without the port"},
	{UpstreamRemotePort, "UPSTREAM_REMOTE_PORT", None, true, "port of the endpoint"},
	{UpstreamHostName, "UPSTREAM_HOST_NAME", None, false, "name and port of a logical endpoint, the address of any other"},
	{UpstreamHostNameWithoutPort, "UPSTREAM_HOST_NAME_WITHOUT_PORT", None, false, "the same without the port"},
	{DownstreamRemotePort, "DOWNSTREAM_REMOTE_PORT", None, true, "port of the client, where it is the peer of the connection"},
	{DownstreamDirectRemotePort, "DOWNSTREAM_DIRECT_REMOTE_PORT", None, true, "port of the peer of the connection"},
	{FilterChainName, "FILTER_CHAIN_NAME", None, false, "name of the filter chain; of the listener where it has one alone"},
	{RequestedServerName, "REQUESTED_SERVER_NAME", None, false, "server name (SNI) that the client asked for, where TLS ends here"},
	{DownstreamTLSVersion, "DOWNSTREAM_TLS_VERSION", None, false, "TLSv1.2, TLSv1.3"},
	{DownstreamTLSCipher, "DOWNSTREAM_TLS_CIPHER", None, false, "cipher suite, by the name of IANA"},
	{DownstreamPeerSubject, "DOWNSTREAM_PEER_SUBJECT", None, false, "subject of the client's certificate (RFC 2253)"},
	{DownstreamPeerIssuer, "DOWNSTREAM_PEER_ISSUER", None, false, "its issuer"},
	{DownstreamPeerSerial, "DOWNSTREAM_PEER_SERIAL", None, false, "its serial number, hexadecimal"},
	{DownstreamPeerFingerprint256, "DOWNSTREAM_PEER_FINGERPRINT_256", None, false, "its SHA-256, hexadecimal"},
	{DownstreamPeerURISAN, "DOWNSTREAM_PEER_URI_SAN", None, false, "its URIs, with commas between them"},
	{DownstreamPeerDNSSAN, "DOWNSTREAM_PEER_DNS_SAN", None, false, "its DNS names"},
	{DownstreamLocalSubject, "DOWNSTREAM_LOCAL_SUBJECT", None, false, "subject of the certificate that the client was shown"},
	{DownstreamLocalURISAN, "DOWNSTREAM_LOCAL_URI_SAN", None, false, "its URIs"},
	{DownstreamLocalDNSSAN, "DOWNSTREAM_LOCAL_DNS_SAN", None, false, "its DNS names"},
	{Hostname, "HOSTNAME", None, false, "name of the machine"},
	{TraceID, "TRACE_ID", None, false, "id of the request's trace, 32 hexadecimal digits, where the http block has tracing"},
	{SpanID, "SPAN_ID", None, false, "id of the proxy's span in it, 16 hexadecimal digits"},
}

// reserved are operators of Envoy whose facts this suite does not have yet.
var reserved = []string{"DYNAMIC_METADATA", "FILTER_STATE"}

// Points are the moments that COMMON_DURATION knows, by Envoy's names.
var Points = []string{"DS_RX_BEG", "DS_RX_END", "US_TX_BEG", "US_TX_END", "US_RX_BEG", "US_RX_END", "DS_TX_BEG", "DS_TX_END"}

// Units are what a COMMON_DURATION can be counted in.
var Units = []string{"ms", "us", "ns"}

// Styles are the ways to write a status of gRPC.
var Styles = []string{"CAMEL_STRING", "SNAKE_STRING", "NUMBER"}
