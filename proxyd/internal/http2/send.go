package http2

import (
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/http2frame"
)

// waits counts frames that wait to be sent.
type waits struct{ frames, control uint32 }

// stage writes a frame, and counts it among those that wait to be sent. False when they were too many: the session has failed then,
// and every stream is gone.
func (s *Session) stage(b []byte, control bool) bool {
	if s.failed {
		return false
	}
	s.measure()
	s.out2.frames++
	if control {
		s.out2.control++
	}
	s.out.Stage(b)
	if s.flooded() == nil {
		return true
	}
	// A peer that reads is at no fault for what one turn of the loop makes for it.
	s.out.Push()
	if s.measure(); s.flooded() == nil {
		return true
	}
	s.fail(s.flooded())
	return false
}

// measure looks which frames have left. Two counts with a mark between them tell as much as a queue of lengths would: those before the mark
// are gone when the connection has sent as much as had been staged then.
func (s *Session) measure() {
	switch waiting, written := s.out.Buffered(), s.out.BytesWritten(); {
	case waiting == 0:
		s.out1, s.out2, s.outMark = waits{}, waits{}, written
	case written >= s.outMark:
		s.out1, s.out2, s.outMark = s.out2, waits{}, written+uint64(waiting)
	}
}

func (s *Session) flooded() *http2frame.Error {
	switch {
	case s.out1.control+s.out2.control > s.config.Flood.OutboundControlFrames:
		return errControl
	case s.out1.frames+s.out2.frames > s.config.Flood.OutboundFrames:
		return errOutbound
	}
	return nil
}

// control writes a frame made in the scratch that costs its cause nothing.
func (s *Session) control(b []byte) bool {
	s.shared.scratch = b[:0]
	return s.stage(b, true)
}

// writeReset writes RST_STREAM, but on a connection that has failed already. False when it was what has failed the connection: the
// stream is gone then.
func (s *Session) writeReset(id uint32, code http2frame.ErrCode) bool {
	if s.failed {
		return true
	}
	if !s.idle(id) {
		s.reset.add(id)
	}
	s.counters[TxReset]++
	return s.control(http2frame.AppendRSTStream(s.shared.scratch[:0], id, code))
}

// Reset gives a stream up. OnClosed is called before it returns.
func (s *Session) Reset(st *Stream, code http2frame.ErrCode) {
	if st.open && !(st.localEnded && st.remoteEnded) {
		if s.writeReset(st.id, code) {
			s.close(st)
		}
	}
}

// SetHeadSeen tells that the final head of a response has come: what follows is body, then trailers. noLength: the bytes are
// not what Content-Length speaks of (the answer to HEAD, 304).
func (s *Session) SetHeadSeen(st *Stream, length int64, noLength bool) {
	st.headSeen, st.length, st.noLength = true, length, noLength
}

// HeadSeen tells that a header section that comes now is of trailers.
func (st *Stream) HeadSeen() bool { return st.headSeen }

// BeginSection begins a header section: the caller appends it by the session's Encoder and gives the result, with at, to
// EndSection at once.
func (s *Session) BeginSection() (b []byte, at int) {
	return http2frame.BeginHeaders(s.shared.scratch[:0])
}

// EndSection sends a header section; end is END_STREAM.
func (s *Session) EndSection(st *Stream, b []byte, at int, end bool) {
	b = http2frame.EndHeaderBlock(b, at, st.id, end, s.peerMaxFrame)
	s.shared.scratch = b[:0]
	if cap(b) > keptScratch {
		s.shared.scratch = make([]byte, 0, keptScratch)
	}
	st.answered = true
	if s.stage(b, false) && end {
		s.localDone(st)
	}
}

// Answered tells that we have sent a head.
func (st *Stream) Answered() bool { return st.answered }

// Send sends body bytes, borrowed for the call: as far as the windows go, the rest later.
func (s *Session) Send(st *Stream, data []byte, end bool) {
	if !st.open || st.localEnded || st.sendEnd || s.failed {
		return
	}
	if st.pending.Len() == 0 && !s.blocked {
		for len(data) > 0 && !s.blocked {
			n := s.room(st, len(data))
			if n == 0 {
				break
			}
			last := end && n == len(data)
			if !s.dataFrame(st, data[:n], last) {
				return
			}
			if data = data[n:]; last {
				s.localDone(st)
				return
			}
		}
	}
	if len(data) == 0 && st.pending.Len() == 0 {
		if end {
			s.end(st)
		}
		return
	}
	st.pending.Append(s.shared.Pool, data)
	st.sendEnd = end
	s.wait(st)
	if !st.above && st.pending.Len() > s.config.HighWatermark {
		st.above = true
		s.handler.OnAboveHigh(st)
	}
}

// SendTrailers ends the message with trailers, which are copied when they have to wait.
func (s *Session) SendTrailers(st *Stream, t *header.Block) {
	switch {
	case !st.open || st.localEnded || st.sendEnd || s.failed:
	case st.pending.Len() > 0:
		st.trailers.CopyFrom(t)
		st.sendTrailers, st.sendEnd = true, true
	default:
		s.writeTrailers(st, t)
	}
}

func (s *Session) writeTrailers(st *Stream, t *header.Block) {
	if t.Len() == 0 {
		s.end(st)
		return
	}
	b, at := s.BeginSection()
	s.EndSection(st, s.Encoder.AppendTrailers(b, t), at, true)
}

// room is how many of n bytes one frame may carry now.
func (s *Session) room(st *Stream, n int) int {
	return max(0, min(n, s.peerMaxFrame, int(s.sendWindow), int(st.sendWindow)))
}

// end sends an END_STREAM without anything.
func (s *Session) end(st *Stream) {
	if s.dataFrame(st, nil, true) {
		s.localDone(st)
	}
}

// dataFrame sends one frame; false when the session has failed.
func (s *Session) dataFrame(st *Stream, data []byte, end bool) bool {
	b := http2frame.AppendDataHeader(s.shared.scratch[:0], st.id, len(data), end)
	s.shared.scratch = b[:0]
	s.sendWindow -= int32(len(data))
	st.sendWindow -= int32(len(data))
	s.dataFrames++
	if !s.stage(b, false) {
		return false
	}
	if len(data) > 0 {
		s.out.Stage(data)
	}
	return true
}

// localDone notes our END_STREAM. A server whose answer is complete has no use for the rest of the request (RFC 9113 8.1).
func (s *Session) localDone(st *Stream) {
	st.localEnded = true
	switch {
	case !st.open:
	case st.remoteEnded:
		s.close(st)
	case !s.client && !st.tunnel:
		if s.writeReset(st.id, http2frame.NoError) {
			s.close(st)
		}
	}
}

// SetBlocked tells that the connection takes no more, or does again: bodies wait in their streams meanwhile.
func (s *Session) SetBlocked(blocked bool) {
	s.blocked = blocked
	if !blocked {
		s.pump()
	}
}

// wait puts a stream into the ring of those with something to send.
func (s *Session) wait(st *Stream) {
	if st.waiting {
		return
	}
	st.waiting = true
	last := s.waiting.waitPrev
	st.waitPrev, st.waitNext = last, &s.waiting
	last.waitNext, s.waiting.waitPrev = st, st
}

func (s *Session) unwait(st *Stream) {
	if st.waiting {
		st.waiting = false
		st.waitPrev.waitNext, st.waitNext.waitPrev = st.waitNext, st.waitPrev
		st.waitNext, st.waitPrev = nil, nil
	}
}

// pump sends what waits, a frame of each stream in turn, as far as the windows go.
func (s *Session) pump() {
	if s.pumping {
		return
	}
	s.pumping = true
	for !s.blocked && !s.failed && s.sendWindow > 0 {
		st := s.waiting.waitNext
		if st == &s.waiting {
			break
		}
		s.unwait(st)
		piece := st.pending.Front()
		n := s.room(st, len(piece))
		if n == 0 {
			continue // it comes back with its window
		}
		last := n == st.pending.Len() && st.sendEnd && !st.sendTrailers
		if !s.dataFrame(st, piece[:n], last) {
			break
		}
		st.pending.Consume(s.shared.Pool, n)
		switch {
		case last:
			s.localDone(st)
			continue
		case st.pending.Len() > 0:
			s.wait(st)
		case st.sendTrailers:
			s.writeTrailers(st, &st.trailers)
			continue
		}
		if st.above && st.pending.Len() <= s.config.HighWatermark/2 {
			st.above = false
			s.handler.OnBelowLow(st)
		}
	}
	s.pumping = false
}

// Pause stops (true) and restarts (false) the peer's bytes on the stream, by its window. Counted.
func (s *Session) Pause(st *Stream, pause bool) {
	if pause {
		st.pauses++
		return
	}
	if st.pauses == 0 {
		return
	}
	st.pauses--
	if held := st.held; st.pauses == 0 && held > 0 && st.open {
		st.held = 0
		s.creditConnection(held)
		s.creditStream(st, held)
	}
}

// creditConnection gives bytes that are done with back to the peer's window, half of it at a time.
func (s *Session) creditConnection(n uint32) {
	if s.credit += n; s.credit < s.config.ConnectionWindow/2 || s.failed {
		return
	}
	b := http2frame.AppendWindowUpdate(s.shared.scratch[:0], 0, s.credit)
	s.shared.scratch = b[:0]
	s.recvWindow += int32(s.credit)
	s.credit = 0
	s.stage(b, false)
}

func (s *Session) creditStream(st *Stream, n uint32) {
	if s.failed {
		return
	}
	if st.credit += n; st.remoteEnded || st.credit < s.config.StreamWindow/2 {
		return
	}
	b := http2frame.AppendWindowUpdate(s.shared.scratch[:0], st.id, st.credit)
	s.shared.scratch = b[:0]
	st.recvWindow += int32(st.credit)
	st.credit = 0
	s.stage(b, false)
}

// Ping asks the peer for a sign of life; OnPong tells of it.
func (s *Session) Ping() {
	s.control(http2frame.AppendPing(s.shared.scratch[:0], false, [8]byte{'r', 'e', 't', 'i', 'n', 'u', 'e'}))
}

// Announce is the first of two GOAWAY: the peer shall open no more streams, but those on their way are still served.
func (s *Session) Announce() { s.writeGoAway(http2frame.MaxStreamID, http2frame.NoError) }

// Finish is the last GOAWAY: streams that the peer has begun are served, none that come afterwards.
func (s *Session) Finish(code http2frame.ErrCode) {
	if !s.goAwaySent {
		s.goAwaySent = true
		s.writeGoAway(s.lastPeer, code)
	}
}

func (s *Session) writeGoAway(last uint32, code http2frame.ErrCode) {
	b := http2frame.AppendGoAway(s.shared.scratch[:0], last, code, "")
	s.shared.scratch = b[:0]
	s.counters[GoAwaySent]++
	s.stage(b, false)
}
