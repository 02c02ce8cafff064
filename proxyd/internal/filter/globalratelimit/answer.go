package globalratelimit

import (
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/callout/message"
	"retinue.dev/proxyd/internal/header"
)

// Fields of envoy.service.ratelimit.v3.RateLimitResponse, and of what is in it.
const (
	answerCode            = 1
	answerStatuses        = 2
	answerResponseHeaders = 3
	answerRequestHeaders  = 4
	answerRawBody         = 5

	statusCurrentLimit = 2
	statusRemaining    = 3
	statusReset        = 4

	limitRequests = 1
	limitUnit     = 2
	limitName     = 3

	durationSeconds = 1
	durationNanos   = 2

	codeOK        = 1
	codeOverLimit = 2
)

// maxPolicies bounds what x-ratelimit-limit says beside the number, in bytes.
const maxPolicies = 1024

// windows are the seconds of each unit of a limit; 0 of one that is not known.
var windows = [...]int64{1: 1, 2: 60, 3: 3600, 4: 86_400, 5: 30 * 86_400, 6: 365 * 86_400, 7: 7 * 86_400}

// answer is what the service said.
type answer struct {
	over     bool
	request  header.Block // fields that the request gets
	response header.Block // and the response
	body     []byte       // of a refusal

	limited   bool   // there is a limit to tell of: the one that is nearest
	limit     []byte // its requests, and the policies of all
	remaining uint32
	reset     int64 // s, rounded up
	policies  []byte
}

func (a *answer) clear() {
	a.over, a.limited, a.body, a.limit, a.policies = false, false, a.body[:0], a.limit[:0], a.policies[:0]
	a.request.Reset()
	a.response.Reset()
}

// read reads a RateLimitResponse; false for one that is malformed or decides nothing. told asks for the limits.
func (a *answer) read(b []byte, told bool) bool {
	a.clear()
	code := uint64(0)
	for len(b) > 0 {
		n, kind, value, rest, good := message.Next(b)
		if !good {
			return false
		}
		b = rest
		switch {
		case n == answerCode:
			code = message.Varint(kind, value)
		case kind != protowire.BytesType:
		case n == answerStatuses:
			good = a.readStatus(value, told)
		case n == answerResponseHeaders:
			good = readHeader(value, &a.response)
		case n == answerRequestHeaders:
			good = readHeader(value, &a.request)
		case n == answerRawBody:
			a.body = append(a.body[:0], value...)
		}
		if !good {
			return false
		}
	}
	if a.limited {
		a.limit = append(a.limit, a.policies...)
	}
	a.over = code == codeOverLimit
	return a.over || code == codeOK
}

func readHeader(b []byte, to *header.Block) bool {
	name, value, ok := message.HeaderValue(b)
	if ok && message.Editable(name) { // what a service may not touch is passed over
		to.Add(header.Other, name, value)
	}
	return ok
}

// readStatus reads a DescriptorStatus. Of several limits the one with the fewest requests left is told.
func (a *answer) readStatus(b []byte, told bool) bool {
	var requests, unit, remaining uint64
	var reset int64
	var name []byte
	has := false
	for len(b) > 0 {
		n, kind, value, rest, good := message.Next(b)
		if !good {
			return false
		}
		b = rest
		switch {
		case n == statusRemaining:
			remaining = message.Varint(kind, value)
		case kind != protowire.BytesType:
		case n == statusReset:
			reset, good = readDuration(value)
		case n == statusCurrentLimit:
			has = true
			requests, unit, name, good = readLimit(value)
		}
		if !good {
			return false
		}
	}
	if !told || !has {
		return true
	}
	if !a.limited || uint32(remaining) < a.remaining {
		a.limited, a.remaining, a.reset = true, uint32(remaining), reset
		a.limit = strconv.AppendUint(a.limit[:0], uint64(uint32(requests)), 10)
	}
	if unit < uint64(len(windows)) && windows[unit] > 0 && len(a.policies) < maxPolicies {
		a.policies = strconv.AppendUint(append(a.policies, ", "...), uint64(uint32(requests)), 10)
		a.policies = strconv.AppendInt(append(a.policies, ";w="...), windows[unit], 10)
		if quotable(name) {
			a.policies = append(append(append(a.policies, `;name="`...), name...), '"')
		}
	}
	return true
}

func readLimit(b []byte) (requests, unit uint64, name []byte, ok bool) {
	for len(b) > 0 {
		n, kind, value, rest, good := message.Next(b)
		if !good {
			return 0, 0, nil, false
		}
		b = rest
		switch {
		case n == limitRequests:
			requests = message.Varint(kind, value)
		case n == limitUnit:
			unit = message.Varint(kind, value)
		case n == limitName && kind == protowire.BytesType:
			name = value
		}
	}
	return requests, unit, name, true
}

// readDuration is a Duration in seconds, rounded up; 0 for one that is negative.
func readDuration(b []byte) (seconds int64, ok bool) {
	nanos := int64(0)
	for len(b) > 0 {
		n, kind, value, rest, good := message.Next(b)
		if !good {
			return 0, false
		}
		b = rest
		switch n {
		case durationSeconds:
			seconds = int64(message.Varint(kind, value))
		case durationNanos:
			nanos = int64(message.Varint(kind, value))
		}
	}
	if nanos > 0 && seconds >= 0 && seconds < 1<<62 {
		seconds++
	}
	return max(seconds, 0), true
}

// quotable tells whether a name can stand in quotes as it is (a string of RFC 9651), and is not too long for it.
func quotable(name []byte) bool {
	for _, c := range name {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return len(name) > 0 && len(name) <= 128
}
