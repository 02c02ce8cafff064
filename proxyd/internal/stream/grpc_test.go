package stream

import (
	"strconv"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/header"
)

func TestGRPCReply(t *testing.T) {
	for _, test := range []struct {
		contentType string
		status      int
		flags       Flags
		text        string
		want        string // HTTP status, grpc-status, grpc-message
	}{
		{"application/grpc", 503, FlagUpstreamConnectionFailure, "no healthy upstream", "200 14 no healthy upstream"},
		{"application/grpc+proto", 404, FlagNoRoute, "", "200 12 "},
		{"application/grpc;v=1", 504, FlagUpstreamRequestTimeout, "late", "200 4 late"},
		{"application/grpc", 504, 0, "idle", "200 14 idle"},
		{"application/grpc", 403, 0, "50 % \u00e9\n", "200 7 50 %25 %C3%A9"},
		{"application/grpc", 500, 0, "a\r\nb", "200 2 a%0D%0Ab"},
		{"application/grpc-web", 503, 0, "x", "503  "},
		{"application/grpcx", 503, 0, "x", "503  "},
		{"text/plain", 503, 0, "x", "503  "},
		{"application/grpc", 200, 0, "a direct response", "200  "},
	} {
		x := newStage(t)
		x.Request.SetString(header.ContentType, "", test.contentType)
		x.LocalReply(test.status, test.text, test.flags, "x")
		r := x.Response
		got := strconv.Itoa(r.Status) + " " + string(r.Get(header.GrpcStatus)) + " " + string(r.Get(header.GrpcMessage))
		if got != test.want {
			t.Errorf("%s %d %q: %q, want %q", test.contentType, test.status, test.text, got, test.want)
		}
		if r.Has(header.GrpcStatus) && (r.Has(header.ContentLength) || string(r.Get(header.ContentType)) != "application/grpc") {
			t.Errorf("%s %d: a body beside grpc-status", test.contentType, test.status)
		}
	}
}

func TestGRPCTimeout(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"1H": time.Hour, "2M": 2 * time.Minute, "3S": 3 * time.Second, "100m": 100 * time.Millisecond, "5u": 5 * time.Microsecond,
		"7n": 7, "0n": 1, "99999999H": mostGRPCTimeout, "99999999S": 99999999 * time.Second,
		"": 0, "S": 0, "1": 0, "-1S": 0, "1s": 0, "123456789S": 0, "1 S": 0,
	} {
		if got := time.Duration(parseGRPCTimeout([]byte(text))); got != want {
			t.Errorf("%q is %v, want %v", text, got, want)
		}
	}
}
