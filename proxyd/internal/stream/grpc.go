package stream

import (
	"bytes"
	"strconv"
	"time"

	"retinue.dev/proxyd/internal/header"
)

// gRPC is a use of HTTP: a client of it reads a status of its own from grpc-status and does not look at ours. What is specific to it
// is in this file (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).

var grpcType = []byte("application/grpc")

// GRPC tells that the request is one of gRPC: application/grpc, application/grpc+proto, but not application/grpc-web.
func (s *Stream) GRPC() bool {
	t := s.Request.Get(header.ContentType)
	if !bytes.HasPrefix(t, grpcType) {
		return false
	}
	return len(t) == len(grpcType) || t[len(grpcType)] == '+' || t[len(grpcType)] == ';'
}

// Statuses of gRPC that a proxy answers with.
const (
	grpcUnknown          = 2
	grpcDeadlineExceeded = 4
	grpcPermissionDenied = 7
	grpcUnimplemented    = 12
	grpcInternal         = 13
	grpcUnavailable      = 14
	grpcUnauthenticated  = 16
)

// GRPCStatus is the status of gRPC for one of HTTP (its doc/http-grpc-status-mapping.md).
func (s *Stream) GRPCStatus(status int) int {
	if s.Flags&(FlagUpstreamRequestTimeout|FlagMaxDuration|FlagDurationTimeout) != 0 {
		return grpcDeadlineExceeded
	}
	switch status {
	case 400:
		return grpcInternal
	case 401:
		return grpcUnauthenticated
	case 403:
		return grpcPermissionDenied
	case 404:
		return grpcUnimplemented
	case 429, 502, 503, 504:
		return grpcUnavailable
	}
	return grpcUnknown
}

// mostGRPCMessage bounds how much of a body becomes a grpc-message.
const mostGRPCMessage = 512

// grpcReply makes the local reply one that a client of gRPC understands: trailers only, in the head. A grpc-status that the reply
// has already stays.
func (s *Stream) grpcReply(body []byte) {
	h := &s.local
	code := s.GRPCStatus(h.Status)
	h.Status = 200
	h.SetString(header.ContentType, "", "application/grpc")
	if !h.Has(header.GrpcStatus) {
		var digits [4]byte
		h.Set(header.GrpcStatus, nil, strconv.AppendInt(digits[:0], int64(code), 10))
	}
	body = bytes.TrimRight(body[:min(len(body), mostGRPCMessage)], "\r\n")
	if len(body) > 0 {
		var room [3 * mostGRPCMessage]byte
		h.Set(header.GrpcMessage, nil, appendPercent(room[:0], body))
	}
}

// appendPercent appends a grpc-message: what is not visible ASCII, and '%', as percent and two digits.
func appendPercent(dst, text []byte) []byte {
	const digits = "0123456789ABCDEF"
	for _, c := range text {
		if c < ' ' || c > '~' || c == '%' {
			dst = append(dst, '%', digits[c>>4], digits[c&15])
		} else {
			dst = append(dst, c)
		}
	}
	return dst
}

// GRPCTimeout is what grpc-timeout leaves for the request, in nanoseconds: 0 without one, or for one that is not valid.
func (s *Stream) GRPCTimeout() int64 {
	if !s.Request.Has(header.GrpcTimeout) || !s.GRPC() {
		return 0
	}
	return parseGRPCTimeout(s.Request.Get(header.GrpcTimeout))
}

// parseGRPCTimeout reads at most eight digits and a unit.
func parseGRPCTimeout(v []byte) int64 {
	if len(v) < 2 || len(v) > 9 {
		return 0
	}
	n := int64(0)
	for _, c := range v[:len(v)-1] {
		if c < '0' || c > '9' {
			return 0
		}
		n = n*10 + int64(c-'0')
	}
	switch v[len(v)-1] {
	case 'H':
		return min(n, int64(mostGRPCTimeout/time.Hour)) * int64(time.Hour)
	case 'M':
		return n * int64(time.Minute)
	case 'S':
		return n * int64(time.Second)
	case 'm':
		return n * int64(time.Millisecond)
	case 'u':
		return n * int64(time.Microsecond)
	case 'n':
		return max(n, 1)
	}
	return 0
}

// mostGRPCTimeout keeps the sum with a clock from running over.
const mostGRPCTimeout = 50 * 365 * 24 * time.Hour
