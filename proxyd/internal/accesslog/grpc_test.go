package accesslog

import (
	"testing"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

func TestGRPCStatus(t *testing.T) {
	for _, test := range []struct {
		name, kind, trailer, head string
		status                    int
		flags                     stream.Flags
		want                      string
	}{
		{"in the trailers", "application/grpc", "5", "", 200, 0, "NotFound NOT_FOUND 5 5"},
		{"in the head", "application/grpc+proto", "", "1", 200, 0, "Canceled CANCELLED 1 1"},
		{"the trailers come last", "application/grpc", "0", "13", 200, 0, "OK OK 0 0"},
		{"out of HTTP's", "application/grpc", "", "", 503, 0, "Unavailable UNAVAILABLE 14 14"},
		{"a time-out of ours", "application/grpc", "", "", 504, stream.FlagUpstreamRequestTimeout, "DeadlineExceeded DEADLINE_EXCEEDED 4 4"},
		{"without a name", "application/grpc", "99", "", 200, 0, "99 99 99 99"},
		{"no number", "application/grpc", "1x", "", 200, 0, "- - - -"},
		{"too long", "application/grpc", "00000000001", "", 200, 0, "- - - -"},
		{"no answer", "application/grpc", "", "", 0, 0, "- - - -"},
		{"no gRPC", "application/grpc-web", "5", "", 200, 0, "- - - -"},
	} {
		s := sample()
		s.Status, s.Flags = test.status, test.flags
		s.Request.AddString(header.ContentType, "", test.kind)
		if test.trailer != "" {
			s.ResponseTrailers.AddString(header.GrpcStatus, "", test.trailer)
		}
		if test.head != "" {
			s.Response.AddString(header.GrpcStatus, "", test.head)
		}
		got := render(t, &configv1.AccessLog{Format: "%GRPC_STATUS% %GRPC_STATUS(SNAKE_STRING)% %GRPC_STATUS(NUMBER)% %GRPC_STATUS_NUMBER%"}, s)
		if got != test.want+"\n" {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
