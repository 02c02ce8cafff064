package http2

import (
	"retinue.dev/proxyd/internal/http2frame"
)

// Feed reads frames and answers how many bytes it is done with; the rest is the beginning of a frame and comes again with
// more.
func (s *Session) Feed(p []byte) int {
	at := 0
	if s.preface < len(http2frame.Preface) {
		n := min(len(http2frame.Preface)-s.preface, len(p))
		if string(p[:n]) != http2frame.Preface[s.preface:s.preface+n] {
			s.fail(errPreface)
			return len(p)
		}
		s.preface += n
		at = n
	}
	for !s.failed {
		if s.left > 0 {
			n := min(s.left, len(p)-at)
			if n == 0 {
				return at
			}
			s.payload(p[at : at+n])
			at += n
			continue
		}
		h, ok := http2frame.ParseHeader(p[at:])
		if !ok {
			return at
		}
		if err := s.head(h); err != nil {
			s.fail(err)
			break
		}
		body := p[at+http2frame.HeaderLen:]
		if h.Type == http2frame.Data {
			n, ok := s.beginData(h, body)
			if !ok {
				return at
			}
			at += http2frame.HeaderLen + n
			continue
		}
		if h.Type > http2frame.Continuation { // an extension: to be ignored
			s.began(h, int(h.Length))
			s.left, s.pad, s.data, s.flow = int(h.Length), 0, nil, false
			at += http2frame.HeaderLen
			continue
		}
		if len(body) < int(h.Length) {
			return at
		}
		s.began(h, int(h.Length))
		s.frame(h, body[:h.Length])
		at += http2frame.HeaderLen + int(h.Length)
	}
	return len(p)
}

// head says whether the frame may come now. It looks again when the payload had to be waited for, and so changes nothing.
func (s *Session) head(h http2frame.Header) *http2frame.Error {
	if !s.settled && (h.Type != http2frame.Settings || h.Has(http2frame.Ack)) {
		return errFirstFrame
	}
	if err := h.Check(http2frame.DefaultMaxFrameSize); err != nil && !err.Stream {
		return err
	}
	sequence := s.sequence
	return sequence.Next(h)
}

// began takes the frame as begun. Its payload is without padding, which is no use.
func (s *Session) began(h http2frame.Header, payload int) {
	_ = s.sequence.Next(h)
	switch h.Type {
	case http2frame.Data, http2frame.Headers, http2frame.Continuation:
		if payload > 0 || h.Type != http2frame.Continuation && h.Has(http2frame.EndStream) {
			s.empty = 0
		} else if s.empty++; s.empty > s.config.Flood.ConsecutiveEmptyFrames {
			s.fail(errEmpty)
		}
	case http2frame.Priority:
		if s.priorities++; uint64(s.priorities) > uint64(s.config.Flood.PriorityFramesPerStream)*(1+s.opened) {
			s.fail(errPriority)
		}
	case http2frame.WindowUpdate:
		if s.updates++; s.updates > 5+2*(s.opened+uint64(s.config.Flood.WindowUpdatesPerDataFrame)*s.dataFrames) {
			s.fail(errUpdates)
		}
	}
}

// frame handles a frame whose payload is complete.
func (s *Session) frame(h http2frame.Header, p []byte) {
	if s.failed {
		return
	}
	var err *http2frame.Error
	switch h.Type {
	case http2frame.Headers:
		s.headers(h, p)
	case http2frame.Continuation:
		s.continuation(h, p)
	case http2frame.Priority:
		if err = h.Check(http2frame.DefaultMaxFrameSize); err == nil {
			err = http2frame.ParsePriority(h, p)
		}
		if err != nil { // of the stream, which may be any
			s.streamError(h.StreamID, err.Code, err.Detail)
		}
	case http2frame.RSTStream:
		s.rstStream(h, http2frame.ParseRSTStream(p))
	case http2frame.Settings:
		s.settings(h, p)
	case http2frame.Ping:
		if h.Has(http2frame.Ack) {
			s.handler.OnPong()
			return
		}
		b := http2frame.AppendPing(s.shared.scratch[:0], true, http2frame.ParsePing(p))
		s.control(b)
	case http2frame.GoAway:
		s.goAway(p)
	case http2frame.WindowUpdate:
		s.windowUpdate(h, p)
	}
}

// streamError ends a stream, whether or not it is open.
func (s *Session) streamError(id uint32, code http2frame.ErrCode, detail string) {
	if st := s.streams.find(id); st != nil {
		s.fault(st, code, detail)
		return
	}
	if s.writeReset(id, code); !s.failed {
		s.Premature()
	}
}

// ours tells whether the number is one that we give.
func (s *Session) ours(id uint32) bool { return (id&1 == 1) == s.client }

// idle tells whether no stream of the number was begun.
func (s *Session) idle(id uint32) bool {
	if s.ours(id) {
		return id >= s.next
	}
	return id > s.lastPeer
}

// beginData takes the head of a DATA frame, with the length of its padding; false when that has not come.
func (s *Session) beginData(h http2frame.Header, p []byte) (n int, ok bool) {
	pad := 0
	length := int(h.Length)
	if h.Has(http2frame.Padded) {
		if len(p) == 0 {
			return 0, false
		}
		pad, n = int(p[0]), 1
		if pad >= length {
			s.fail(errPadding)
			return n, true
		}
		length--
	}
	s.began(h, length-pad)
	if s.failed {
		return n, true
	}
	if int64(h.Length) > int64(s.recvWindow) {
		s.fail(errOverrun)
		return n, true
	}
	s.recvWindow -= int32(h.Length)
	if n > 0 {
		s.creditConnection(1)
	}
	s.left, s.pad, s.data, s.dataEnd, s.flow = length, pad, nil, false, true
	st := s.streams.find(h.StreamID)
	switch {
	case st == nil && s.idle(h.StreamID):
		s.fail(errIdle)
	case st == nil:
		if !s.reset.has(h.StreamID) {
			s.fail(errClosed)
		}
	case st.remoteEnded:
		s.fault(st, http2frame.StreamClosed, detailHalfClosed)
	case !st.headSeen:
		s.fault(st, http2frame.ProtocolError, detailNoHead)
	case int64(h.Length) > int64(st.recvWindow):
		s.fault(st, http2frame.FlowControlError, detailOverrun)
	default:
		st.recvWindow -= int32(h.Length)
		if st.length >= 0 && !st.noLength {
			body := int64(length - pad)
			if st.length -= body; st.length < 0 || h.Has(http2frame.EndStream) && st.length > 0 {
				s.fault(st, http2frame.ProtocolError, detailLength)
				return n, true
			}
		}
		s.data, s.dataEnd = st, h.Has(http2frame.EndStream)
		if length-pad == 0 && s.dataEnd {
			s.deliver(st, nil, true)
		}
		if n > 0 && s.holds(st, h.StreamID) {
			s.creditStream(st, 1)
		}
	}
	return n, true
}

// payload takes a piece of the frame under way.
func (s *Session) payload(p []byte) {
	body := min(len(p), s.left-s.pad)
	s.left -= len(p)
	st := s.data
	if body > 0 && st != nil {
		s.deliver(st, p[:body], s.dataEnd && s.left <= s.pad)
		p = p[body:]
	}
	s.skip(s.data, len(p)) // which is none when the stream has ended
}

// skip credits bytes that nobody waits for.
func (s *Session) skip(st *Stream, n int) {
	if n == 0 || s.failed || !s.flow {
		return
	}
	s.creditConnection(uint32(n))
	if st != nil {
		s.creditStream(st, uint32(n))
	}
}

// deliver gives a piece to the handler and credits it.
func (s *Session) deliver(st *Stream, p []byte, end bool) {
	if end {
		st.remoteEnded = true
	}
	id := st.id
	s.handler.OnData(st, p, end)
	n := uint32(len(p))
	switch {
	case !s.holds(st, id):
		s.creditConnection(n)
		return
	case st.pauses > 0:
		st.held += n
	default:
		s.creditConnection(n)
		s.creditStream(st, n)
	}
	if end && !s.failed {
		s.remoteDone(st)
	}
}

// remoteDone looks whether a stream whose peer has ended is over.
func (s *Session) remoteDone(st *Stream) {
	switch {
	case st.localEnded:
		s.close(st)
	case s.client && !st.tunnel: // the answer is complete: the rest of the request is of no use
		if s.writeReset(st.id, http2frame.Cancel) {
			s.close(st)
		}
	}
}

// headers takes the first frame of a header section.
func (s *Session) headers(h http2frame.Header, p []byte) {
	p, err := http2frame.ParseHeaders(h, p)
	if err != nil && !err.Stream {
		s.fail(err)
		return
	}
	s.section, s.sectionEnd, s.sectionFault = h.StreamID, h.Has(http2frame.EndStream), err != nil
	if h.Has(http2frame.EndHeaders) {
		s.sectionDone(p)
		return
	}
	s.continuations = 0
	s.fragment = append(s.fragment[:0], p...)
}

func (s *Session) continuation(h http2frame.Header, p []byte) {
	s.continuations++
	// What is compressed may be as long as the list that it makes, and a little longer.
	if s.continuations > s.config.Flood.Continuations || len(s.fragment)+len(p) > s.config.Headers.ListSize+keptFragment {
		s.fail(errContinuations)
		return
	}
	s.fragment = append(s.fragment, p...)
	if !h.Has(http2frame.EndHeaders) {
		return
	}
	block := s.fragment
	s.sectionDone(block)
	if s.fragment = s.fragment[:0]; cap(s.fragment) > keptFragment {
		s.fragment = nil
	}
}

// sectionDone takes a whole header section.
func (s *Session) sectionDone(block []byte) {
	id := s.section
	st := s.streams.find(id)
	switch {
	case st == nil:
		s.newSection(id, block)
		return
	case st.remoteEnded:
		if s.discard(block) {
			s.fault(st, http2frame.StreamClosed, detailHalfClosed)
		}
		return
	case s.sectionFault:
		if s.discard(block) {
			s.fault(st, http2frame.ProtocolError, detailDependency)
		}
		return
	case st.headSeen && !s.sectionEnd:
		if s.discard(block) {
			s.fault(st, http2frame.ProtocolError, detailNoEnd)
		}
		return
	case st.headSeen && st.length > 0 && !st.noLength:
		if s.discard(block) {
			s.fault(st, http2frame.ProtocolError, detailLength)
		}
		return
	}
	if st.headSeen {
		s.counters[Trailers]++
	}
	s.give(st, block)
}

// give gives a section to the handler.
func (s *Session) give(st *Stream, block []byte) {
	end := s.sectionEnd
	if end {
		st.remoteEnded = true
	}
	id := st.id
	err := s.handler.OnHeaders(st, block, end)
	switch {
	case err != nil && err.Compression:
		s.fail(errCompression)
	case !s.holds(st, id):
	case err != nil:
		if err.Status == 431 {
			s.counters[HeaderOverflow]++
		}
		s.fault(st, http2frame.ProtocolError, err.Detail)
	case end:
		s.remoteDone(st)
	}
}

// newSection takes a section of a stream that is not open.
func (s *Session) newSection(id uint32, block []byte) {
	switch {
	case s.client || s.ours(id):
		if s.idle(id) || !s.ours(id) {
			s.fail(errStreamID)
		} else {
			s.discard(block) // we have reset it
		}
		return
	case id <= s.lastPeer:
		if !s.reset.has(id) {
			s.fail(errClosed)
		} else {
			s.discard(block)
		}
		return
	case s.goAwaySent:
		s.discard(block)
		return
	}
	s.lastPeer = id
	s.opened++
	if s.sectionFault {
		if s.discard(block) {
			s.streamError(id, http2frame.ProtocolError, detailDependency)
		}
		return
	}
	var st *Stream
	if uint32(s.streams.count) < s.config.MaxConcurrentStreams {
		st = s.handler.OnBegin()
	}
	if st == nil {
		s.counters[StreamRefused]++
		if s.discard(block) {
			s.writeReset(id, http2frame.RefusedStream)
		}
		return
	}
	st.begin(id, int32(s.peerWindow), int32(s.recvInitial))
	s.streams.insert(st)
	s.counters[StreamsActive]++
	s.give(st, block)
	if s.holds(st, id) {
		st.headSeen = true
	}
}

// discard keeps the decoder in step with a section that nobody wants; false when the connection failed.
func (s *Session) discard(block []byte) bool {
	if err := s.Decoder.Discard(block, &s.shared.block); err != nil {
		s.fail(errCompression)
		return false
	}
	return true
}

func (s *Session) rstStream(h http2frame.Header, code http2frame.ErrCode) {
	st := s.streams.find(h.StreamID)
	if st == nil {
		if s.idle(h.StreamID) {
			s.fail(errIdle)
		}
		return
	}
	s.counters[RxReset]++
	detail := detailRemoteReset
	if code == http2frame.RefusedStream {
		detail = detailRefused
	}
	s.abort(st, code, true, detail)
}

func (s *Session) settings(h http2frame.Header, p []byte) {
	if h.Has(http2frame.Ack) {
		if !s.acknowledged {
			s.acknowledged = true
			s.recvInitial = s.config.StreamWindow
		}
		return
	}
	s.settled = true
	opened := false
	for i := range http2frame.NumSettings(p) {
		set := http2frame.SettingAt(p, i)
		if err := set.Check(s.client); err != nil {
			s.fail(err)
			return
		}
		switch set.ID {
		case http2frame.HeaderTableSize:
			s.Encoder.SetTableSize(set.Value)
		case http2frame.MaxConcurrentStreams:
			s.peerMaxStreams = set.Value
		case http2frame.InitialWindowSize:
			for st := s.streams.first; st != nil; st = st.next {
				window, ok := http2frame.Shift(st.sendWindow, s.peerWindow, set.Value)
				if !ok {
					s.fail(errWindow)
					return
				}
				st.sendWindow = window
				if window > 0 && st.pending.Len() > 0 {
					s.wait(st)
					opened = true
				}
			}
			s.peerWindow = set.Value
		case http2frame.MaxFrameSizeSetting:
			s.peerMaxFrame = int(min(set.Value, mostFrame))
		case http2frame.EnableConnectProtocol:
			s.peerConnect = set.Value == 1
		}
	}
	if !s.control(http2frame.AppendSettingsAck(s.shared.scratch[:0])) {
		return
	}
	s.handler.OnSettings()
	if opened {
		s.pump()
	}
}

func (s *Session) goAway(p []byte) {
	last, code, _ := http2frame.ParseGoAway(p)
	s.counters[GoAwayReceived]++
	s.goAwayGot = true
	if s.client {
		s.Each(func(st *Stream) {
			if st.id > last {
				s.reset.add(st.id)
				s.abort(st, http2frame.RefusedStream, true, detailGoAway)
			}
		})
	}
	s.handler.OnGoAway(code)
}

func (s *Session) windowUpdate(h http2frame.Header, p []byte) {
	n, err := http2frame.ParseWindowUpdate(h, p)
	if h.StreamID == 0 {
		if err != nil {
			s.fail(err)
			return
		}
		window, ok := http2frame.Grow(s.sendWindow, n)
		if !ok {
			s.fail(errWindow)
			return
		}
		s.sendWindow = window
		s.pump()
		return
	}
	st := s.streams.find(h.StreamID)
	switch {
	case st == nil && s.idle(h.StreamID):
		s.fail(errIdle)
	case st == nil: // ended: RFC 9113 6.9
	case err != nil:
		s.fault(st, err.Code, detailZeroUpdate)
	default:
		window, ok := http2frame.Grow(st.sendWindow, n)
		if !ok {
			s.fault(st, http2frame.FlowControlError, detailWindow)
			return
		}
		st.sendWindow = window
		if window > 0 && st.pending.Len() > 0 {
			s.wait(st)
			s.pump()
		}
	}
}
