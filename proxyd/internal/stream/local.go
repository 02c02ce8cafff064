package stream

import (
	"strconv"
	"unsafe"

	"retinue.dev/proxyd/internal/header"
)

// LocalReply answers the request with a text of our own, whoever asks: codec, filter, router, time-out. Before a response has
// begun it runs through the encode chain; when one has begun and its head has not left, it goes straight to the codec in its
// place; after that the stream is reset. The upstream request is given up. The stream may be finished afterwards.
func (s *Stream) LocalReply(status int, text string, flags Flags, details string) {
	if s.finished {
		return
	}
	if s.started {
		s.Reset(ResetLocal, flags, details)
		return
	}
	s.Flags |= flags
	s.NewReply(status)
	s.SendReply(unsafe.Slice(unsafe.StringData(text), len(text)), "text/plain", details)
}

// NewReply begins a local reply whose head gets more fields: the caller adds them and calls SendReply. The response head must
// not have left.
func (s *Stream) NewReply(status int) *header.Response {
	h := &s.local
	h.Reset()
	h.Status = status
	if s.CountTries && s.Attempts > 0 {
		var digits [20]byte
		h.Set(header.XEnvoyAttemptCount, nil, strconv.AppendUint(digits[:0], uint64(s.Attempts), 10))
	}
	return h
}

// SendReply sends the reply that NewReply began, with a body that is borrowed for the call. Content-Type is left out
// where there is no body.
func (s *Stream) SendReply(body []byte, contentType, details string) {
	replaces := s.encoding
	s.encoding, s.replied = true, true
	s.Details = details
	s.closeBelow()
	h := &s.local
	s.Response, s.ResponseTrailers = h, nil
	bare := h.Status == 204 || h.Status == 304 // has no content, and no length of it (RFC 9110, 15.3.5 and 8.6)
	if bare || h.Status == 205 {
		body = nil
	}
	switch {
	case bare:
	case h.Status >= 400 && s.GRPC():
		s.grpcReply(body)
		body = nil
	default:
		var digits [20]byte
		h.Set(header.ContentLength, nil, strconv.AppendInt(digits[:0], int64(len(body)), 10))
	}
	if len(body) > 0 && contentType != "" {
		h.SetString(header.ContentType, "", contentType)
	}
	if s.Config.ServerName != "" {
		h.SetString(header.Server, "", s.Config.ServerName)
	}
	end := len(body) == 0 || s.Request.MethodID() == header.MethodHead
	s.activity = s.Worker.Now()
	if replaces || len(s.chain) == 0 {
		s.sendHeaders(end)
		if !end && !s.finished {
			s.sendData(body, true)
		}
		return
	}
	last := len(s.chain) - 1
	s.encodeHeaders(last, end)
	if !end && !s.finished {
		s.encodeData(last, body, true)
	}
}

// Refuse answers a message that is not a request one could pass to filters: a codec's error. The reply goes straight to the
// codec.
func (s *Stream) Refuse(status int, text string, flags Flags, details string) {
	s.encoding = true
	s.LocalReply(status, text, flags, details)
}
