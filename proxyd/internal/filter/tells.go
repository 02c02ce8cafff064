package filter

import (
	"strconv"
	"time"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// tells is which of Envoy's headers say what the proxy does with a request, a bit each.
type tells uint8

const (
	tellAttempts     tells = 1 << iota // the upstream which try it is
	tellAttemptsBack                   // the client how many there were
	tellEnvoy                          // what Envoy says unless suppress_envoy_headers
)

func tellsOf(h *configv1.Http, host *configv1.VirtualHost) (t tells) {
	if host.GetIncludeRequestAttemptCount() {
		t |= tellAttempts
	}
	if host.GetIncludeAttemptCountInResponse() {
		t |= tellAttemptsBack
	}
	if h.GetEnvoyHeaders() {
		t |= tellEnvoy
	}
	return t
}

// tellUpstream adds to the request of a try what the upstream is told about it.
func (r *Router) tellUpstream(s *stream.Stream) {
	var digits [20]byte
	if r.action.tells&tellAttempts != 0 {
		s.Request.Set(header.XEnvoyAttemptCount, nil, strconv.AppendUint(digits[:0], uint64(s.Attempts), 10))
	}
	if r.action.tells&tellEnvoy == 0 || s.Tunnel() {
		return
	}
	if expected := r.expected(s); expected > 0 {
		s.Request.Set(header.Other, nameExpected, strconv.AppendInt(digits[:0], max(1, expected/int64(time.Millisecond)), 10))
	} else {
		s.Request.RemoveName(nameExpected) // a client's says nothing
	}
}

var nameExpected = []byte("x-envoy-expected-rq-timeout-ms")

// expected is how long the try may take, in nanoseconds; 0 for as long as it wants. Of a request that is not complete yet the time
// has not begun.
func (r *Router) expected(s *stream.Stream) int64 {
	expected := r.retry.perTry
	if expected == 0 || r.retry.hedge {
		expected = r.timeout
	}
	if deadline := s.RouteDeadline(); deadline > 0 {
		left := max(1, deadline-s.Worker.Now())
		if expected == 0 || left < expected {
			expected = left
		}
	}
	return expected
}

// tellClient adds to the response of the upstream what the client is told.
func (r *Router) tellClient(s *stream.Stream, h *header.Response) {
	var digits [20]byte
	if r.action.tells&tellAttemptsBack != 0 {
		h.Set(header.XEnvoyAttemptCount, nil, strconv.AppendUint(digits[:0], uint64(s.Attempts), 10))
	}
	if r.action.tells&tellEnvoy != 0 && r.ended { // a premature answer says nothing about the upstream's time
		took := max(0, s.UpstreamReceived-s.RequestReceived)
		h.Set(header.XEnvoyUpstreamServiceTime, nil, strconv.AppendInt(digits[:0], took/int64(time.Millisecond), 10))
	}
}
