// Package logformat owns the grammar of access-log formats and of header values with operators: Envoy's %NAME(ARGUMENT):LENGTH%.
//
// configd checks with it when a configuration is compiled, so that a slip is told with its place; proxyd compiles what Parse
// returns into a program. Both read the same grammar from the same table.
package logformat

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

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
	Hostname
)

// Argument says what stands in an operator's parentheses.
type Argument uint8

// The kinds of argument.
const (
	None   Argument = iota
	Header          // NAME or NAME?OTHER, with an optional :LENGTH after the parentheses
	Time            // strftime, optional
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
	{UpstreamHost, "UPSTREAM_HOST", None, false, "address of the endpoint"},
	{UpstreamCluster, "UPSTREAM_CLUSTER", None, false, "name of the cluster"},
	{UpstreamLocalAddress, "UPSTREAM_LOCAL_ADDRESS", None, false, "own address of the upstream connection"},
	{UpstreamRemoteAddress, "UPSTREAM_REMOTE_ADDRESS", None, false, "address of the endpoint"},
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
	{Hostname, "HOSTNAME", None, false, "name of the machine"},
	{TraceID, "TRACE_ID", None, false, "id of the request's trace, 32 hexadecimal digits, where the http block has tracing"},
	{SpanID, "SPAN_ID", None, false, "id of the proxy's span in it, 16 hexadecimal digits"},
}

// reserved are operators of Envoy whose facts this suite does not have yet.
var reserved = []string{
	"GRPC_STATUS", "GRPC_STATUS_NUMBER", "REQUESTED_SERVER_NAME", "DOWNSTREAM_TLS_VERSION", "DOWNSTREAM_TLS_CIPHER",
	"DOWNSTREAM_PEER_SUBJECT", "DOWNSTREAM_PEER_ISSUER", "DOWNSTREAM_PEER_URI_SAN", "DYNAMIC_METADATA", "FILTER_STATE", "UPSTREAM_TLS_VERSION",
}

// Bounds of what a format may hold.
const (
	MaxLength     = 65536 // of :LENGTH
	maxTimeFormat = 256
)

// Segment is one piece of a format: literal text, or an operator with what it was given.
type Segment struct {
	ID      ID
	Numeric bool
	Text    string // Literal: the text, with %% made %. StartTime: the strftime format, "" for RFC 3339 with milliseconds
	Header  string // lower case, with the leading colon of a pseudo header
	Other   string // taken when Header is absent; "" for none
	Length  int    // at most so many bytes of the value; 0 for all
}

// Error says what is wrong with a format; Offset and Length mark the place in it, in bytes.
type Error struct {
	Offset, Length int
	Unknown        string // the operator's name when there is none of that name
	Later          bool   // the operator comes with a later release
	Message        string
}

func (e *Error) Error() string { return fmt.Sprintf("at byte %d: %s", e.Offset, e.Message) }

// Parse reads a format. The error is an *Error.
func Parse(format string) ([]Segment, error) {
	var segments []Segment
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			segments = append(segments, Segment{Text: text.String()})
			text.Reset()
		}
	}
	for i := 0; i < len(format); {
		if format[i] != '%' {
			text.WriteByte(format[i])
			i++
			continue
		}
		if strings.HasPrefix(format[i:], "%%") {
			text.WriteByte('%')
			i += 2
			continue
		}
		segment, n, err := operator(format[i:])
		if err != nil {
			err.Offset, err.Length = i, n
			return nil, err
		}
		flush()
		segments = append(segments, segment)
		i += n
	}
	flush()
	return segments, nil
}

// operator reads %NAME%, %NAME(ARGUMENT)% or %NAME(ARGUMENT):LENGTH% at the start of s and tells its length in bytes.
func operator(s string) (segment Segment, n int, _ *Error) {
	name, argument, length, hasArgument, n, ok := split(s)
	if !ok {
		end := strings.IndexAny(s[1:], "% ")
		if end < 0 {
			end = len(s) - 1
		}
		return segment, end + 1, &Error{Message: "This is no operator: they read %NAME% or %NAME(ARGUMENT)%, and a per cent sign itself is written %%."}
	}
	i := slices.IndexFunc(operators, func(o Operator) bool { return o.Name == name })
	if i < 0 {
		if slices.Contains(reserved, name) {
			return segment, n, &Error{Later: true, Message: fmt.Sprintf("%%%s%% arrives with a later release.", name)}
		}
		return segment, n, &Error{Unknown: name, Message: fmt.Sprintf("There is no operator %%%s%%.", name)}
	}
	op := operators[i]
	segment = Segment{ID: op.ID, Numeric: op.Numeric}
	switch {
	case op.Argument == None && hasArgument:
		return segment, n, &Error{Message: fmt.Sprintf("%%%s%% takes no argument.", name)}
	case op.Argument == Header && !hasArgument:
		return segment, n, &Error{Message: fmt.Sprintf("%%%s%% needs the name of a header: %%%s(X-NAME)%%.", name, name)}
	case length != "" && op.Argument != Header:
		return segment, n, &Error{Message: fmt.Sprintf("%%%s%% takes no length.", name)}
	}
	if length != "" {
		limit, err := strconv.Atoi(length)
		if err != nil || limit < 1 || limit > MaxLength {
			return segment, n, &Error{Message: fmt.Sprintf("A length is 1 to %d.", MaxLength)}
		}
		segment.Length = limit
	}
	switch op.Argument {
	case Header:
		first, other, two := strings.Cut(argument, "?")
		if !headerName(first) || two && !headerName(other) {
			return segment, n, &Error{Message: fmt.Sprintf("%q is not the name of a header (or NAME?OTHER).", argument)}
		}
		segment.Header, segment.Other = strings.ToLower(first), strings.ToLower(other)
	case Time:
		if len(argument) > maxTimeFormat || !timeFormat(argument) {
			return segment, n, &Error{Message: fmt.Sprintf("%q is not a strftime format.", argument)}
		}
		segment.Text = argument
	}
	return segment, n, nil
}

// split takes an operator apart. An argument ends at the first closing parenthesis; START_TIME's holds per cent signs itself.
func split(s string) (name, argument, length string, hasArgument bool, n int, ok bool) {
	i := 1
	for i < len(s) && (s[i] >= 'A' && s[i] <= 'Z' || s[i] >= 'a' && s[i] <= 'z' || s[i] >= '0' && s[i] <= '9' || s[i] == '_') {
		i++
	}
	name = s[1:i]
	if name == "" {
		return
	}
	if i < len(s) && s[i] == '(' {
		end := strings.IndexByte(s[i:], ')')
		if end < 0 {
			return
		}
		argument, hasArgument = s[i+1:i+end], true
		i += end + 1
	}
	if i < len(s) && s[i] == ':' {
		from := i + 1
		for i = from; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
		}
		if length = s[from:i]; length == "" {
			return
		}
	}
	if i >= len(s) || s[i] != '%' {
		return
	}
	return name, argument, length, hasArgument, i + 1, true
}

// headerName tells whether s is a token of RFC 9110, or a pseudo header with its colon. A per cent sign, a token there, is
// not taken here.
func headerName(s string) bool {
	s = strings.TrimPrefix(s, ":")
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("!#$&'*+.^_|~`-", c) >= 0) {
			return false
		}
	}
	return true
}

// timeFormat tells whether s is a strftime format of the conversions that proxyd renders.
func timeFormat(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' {
			return false
		}
		if s[i] != '%' {
			continue
		}
		if i++; i >= len(s) {
			return false
		}
		if s[i] >= '1' && s[i] <= '9' {
			if i++; i >= len(s) || s[i] != 'f' {
				return false
			}
			continue
		}
		if strings.IndexByte("aAbBcCdDeFfgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%", s[i]) < 0 {
			return false
		}
	}
	return true
}
