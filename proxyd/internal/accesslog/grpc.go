package accesslog

import (
	"strconv"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
)

// grpcStyle is how a status of gRPC is written.
type grpcStyle uint8

const (
	grpcCamel grpcStyle = iota
	grpcSnake
	grpcNumber
)

var grpcStyles = map[string]grpcStyle{"": grpcCamel, "CAMEL_STRING": grpcCamel, "SNAKE_STRING": grpcSnake, "NUMBER": grpcNumber}

// grpcNames are the statuses by number (https://grpc.io/docs/guides/status-codes), as Envoy spells them.
var grpcNames = [...][2]string{
	{"OK", "OK"},
	{"Canceled", "CANCELLED"},
	{"Unknown", "UNKNOWN"},
	{"InvalidArgument", "INVALID_ARGUMENT"},
	{"DeadlineExceeded", "DEADLINE_EXCEEDED"},
	{"NotFound", "NOT_FOUND"},
	{"AlreadyExists", "ALREADY_EXISTS"},
	{"PermissionDenied", "PERMISSION_DENIED"},
	{"ResourceExhausted", "RESOURCE_EXHAUSTED"},
	{"FailedPrecondition", "FAILED_PRECONDITION"},
	{"Aborted", "ABORTED"},
	{"OutOfRange", "OUT_OF_RANGE"},
	{"Unimplemented", "UNIMPLEMENTED"},
	{"Internal", "INTERNAL"},
	{"Unavailable", "UNAVAILABLE"},
	{"DataLoss", "DATA_LOSS"},
	{"Unauthenticated", "UNAUTHENTICATED"},
}

// grpcStatus is the status that a gRPC request was answered with: the trailers' word, the headers', or what the HTTP status means.
func grpcStatus(s *stream.Stream) (int64, bool) {
	if !s.GRPC() {
		return 0, false
	}
	var text []byte
	if s.ResponseTrailers != nil {
		text = s.ResponseTrailers.Get(header.GrpcStatus)
	}
	if text == nil && s.Response != nil {
		text = s.Response.Get(header.GrpcStatus)
	}
	if text == nil {
		if s.Status == 0 {
			return 0, false
		}
		return int64(s.GRPCStatus(s.Status)), true
	}
	if len(text) == 0 || len(text) > 10 {
		return 0, false
	}
	status := int64(0)
	for _, digit := range text {
		if digit < '0' || digit > '9' {
			return 0, false
		}
		status = status*10 + int64(digit-'0')
	}
	return status, true
}

// grpc writes a status. One without a name is a number.
func (o *op) grpc(dst []byte, status int64, limit int) []byte {
	if o.style != grpcNumber && status < int64(len(grpcNames)) {
		return o.texted(dst, grpcNames[status][o.style], limit)
	}
	var digits [20]byte
	return o.escaped(dst, strconv.AppendInt(digits[:0], status, 10), limit)
}
