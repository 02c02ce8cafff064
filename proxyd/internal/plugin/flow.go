package plugin

import (
	"strconv"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/header"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// ask makes a call: false when it could not be made and the fail mode was applied.
func (f *filter) ask(dir direction, phase filterv1.Phase, end bool, body *buffer.Chain) bool {
	number, why, ok := f.channel.begin(f, dir, phase)
	if !ok {
		f.fail(dir, why)
		return false
	}
	s := &f.sides[dir]
	s.call = number
	var data []byte
	if body != nil {
		data = f.host.front(body, s.piece)
	}
	f.event(dir, phase, end, data, number)
	return true
}

// observe sends an event that nobody answers.
func (f *filter) observe(dir direction, phase filterv1.Phase, end bool) {
	f.event(dir, phase, end, nil, 0)
}

// asked is when the call under way was made; answers that come in the same turn cost nothing.
func (f *filter) asked(dir direction) int64 { return f.sides[dir].began }

// event writes one Event and stages it.
func (f *filter) event(dir direction, phase filterv1.Phase, end bool, body []byte, number uint64) {
	ch := f.channel
	if !ch.connected || ch.blocked && number == 0 {
		return // an observer that does not keep up misses what it misses
	}
	f.told = true
	f.sides[dir].began = f.host.worker.Now()
	b := append(f.host.frame[:0], 0, 0, 0, 0)
	b, at := begin(b, fieldMessage)
	if number != 0 {
		b = varint(b, 1, number)
	}
	b = varint(b, 2, f.id)
	b = varint(b, 3, uint64(ch.info.configID))
	b = varint(b, 4, uint64(phase))
	if end {
		b = varint(b, 5, 1)
	}
	if number != 0 {
		b = varint(b, 6, uint64(ch.info.timeout/1000))
	}
	b = f.heads(b, phase)
	if body != nil {
		b = raw(b, 9, body)
	}
	finish(b, at)
	ch.send(b)
	if f.host.frame = b[:0]; cap(b) > 256<<10 {
		f.host.frame = make([]byte, 0, 4<<10)
	}
}

// heads appends the headers and attributes that the plugin wants in a phase.
func (f *filter) heads(b []byte, phase filterv1.Phase) []byte {
	s := f.cb.Stream()
	sub := f.sub
	switch phase {
	case filterv1.Phase_PHASE_REQUEST_HEADERS:
		b = wanted(b, sub.request, sub.allRequest, &s.Request.Block, &s.Request)
		for i := range sub.attributes {
			a := &sub.attributes[i]
			f.host.text = f.attribute(f.host.text[:0], a.kind)
			b = pair(b, 8, a.text, f.host.text)
		}
	case filterv1.Phase_PHASE_RESPONSE_HEADERS:
		if s.Response == nil {
			return b
		}
		for i := range sub.response {
			if sub.response[i].pseudo == status {
				f.host.text = strconv.AppendInt(f.host.text[:0], int64(s.Response.Status), 10)
				b = pair(b, 7, sub.response[i].text, f.host.text)
			}
		}
		b = wanted(b, sub.response, sub.allResponse, &s.Response.Block, nil)
	case filterv1.Phase_PHASE_REQUEST_TRAILERS:
		b = wanted(b, nil, true, &s.RequestTrailers, nil)
	case filterv1.Phase_PHASE_RESPONSE_TRAILERS:
		if s.ResponseTrailers != nil {
			b = wanted(b, nil, true, s.ResponseTrailers, nil)
		}
	}
	return b
}

// wanted appends the named fields of a block, or all; request has the pseudo headers.
func wanted(b []byte, list []name, all bool, block *header.Block, request *header.Request) []byte {
	for i := range list {
		n := &list[i]
		if n.pseudo != field {
			if request != nil {
				b = pair(b, 7, n.text, n.of(request))
			}
			continue
		}
		if all {
			continue
		}
		for at := n.index(block, 0); at >= 0; at = n.index(block, at+1) {
			b = pair(b, 7, n.text, block.ValueAt(at))
		}
	}
	if all {
		for i := range block.Len() {
			_, text, value := block.At(i)
			b = pair(b, 7, text, value)
		}
	}
	return b
}

func (n *name) index(b *header.Block, from int) int {
	if n.id != header.Other {
		return b.Index(n.id, from)
	}
	return b.IndexName(n.text, from)
}

// attribute appends the value of an attribute.
func (f *filter) attribute(b []byte, kind attributeKind) []byte {
	s := f.cb.Stream()
	switch kind {
	case sourceAddress:
		if s.Peer.IsValid() {
			return s.Peer.AppendTo(b)
		}
	case sourceIP:
		if s.Client.IsValid() {
			return s.Client.AppendTo(b)
		}
	case connectionID:
		return strconv.AppendUint(b, s.ConnectionID, 10)
	case protocolName:
		return append(b, s.Request.Proto.String()...)
	case listenerName:
		return append(b, s.Config.Name...)
	case routeName:
		return append(b, s.RouteName...)
	case hostName:
		return append(b, s.HostName...)
	}
	return b
}

// front is the first n bytes of a chain in one piece.
func (h *Host) front(c *buffer.Chain, n int) []byte {
	if first := c.Front(); len(first) >= n {
		if first == nil {
			return h.text[:0]
		}
		return first[:n]
	}
	if cap(h.large) < n {
		h.large = make([]byte, n)
	}
	h.large = h.large[:n]
	c.CopyTo(h.large)
	return h.large
}

// letGo ends the filter's part in a direction that it holds: head, body and trailers go on.
func (f *filter) letGo(dir direction) {
	s := &f.sides[dir]
	was := s.state
	s.state = passing
	f.resume(dir)
	switch was {
	case headCalled, collecting, bodyCalled:
		f.addAll(dir)
		if !f.over(dir) {
			f.goOnAll(dir)
		}
	case streaming:
		s.calling = false
		f.release(dir)
		if s.trailers && !f.over(dir) {
			s.trailers = false
			f.goOnAll(dir)
		}
	case trailersCalled:
		s.trailers = false
		f.goOnAll(dir)
	}
}

// release gives on what was taken of a streamed body.
func (f *filter) release(dir direction) {
	s := &f.sides[dir]
	s.state = passing
	f.resume(dir)
	if !s.cut { // the head is held: it goes first
		f.addAll(dir)
		return
	}
	end := s.ended && !s.trailers
	f.injectPiece(dir, s.body.Len(), end)
}

// injectPiece gives on the first n bytes that were taken.
func (f *filter) injectPiece(dir direction, n int, end bool) {
	s := &f.sides[dir]
	if n == 0 && end {
		f.inject(dir, nil, true)
		return
	}
	pool := &f.host.worker.Pool
	for n > 0 && !f.over(dir) {
		piece := s.body.Front()
		piece = piece[:min(n, len(piece))]
		n -= len(piece)
		f.inject(dir, piece, end && n == 0)
		if f.dead { // and its body with it
			return
		}
		s.body.Consume(pool, len(piece))
	}
}

func (f *filter) addAll(dir direction) {
	s := &f.sides[dir]
	pool := &f.host.worker.Pool
	for s.body.Len() > 0 && !f.over(dir) {
		piece := s.body.Front()
		f.add(dir, piece)
		if f.dead {
			return
		}
		s.body.Consume(pool, len(piece))
	}
}

func (f *filter) add(dir direction, data []byte) {
	if dir == decode {
		f.cb.AddDecodedData(data)
	} else {
		f.cb.AddEncodedData(data)
	}
}

func (f *filter) inject(dir direction, data []byte, end bool) {
	if dir == decode {
		f.cb.InjectDecodedData(data, end)
	} else {
		f.cb.InjectEncodedData(data, end)
	}
}

// goOn lets the head go, without what follows it.
func (f *filter) goOn(dir direction) {
	if dir == decode {
		f.cb.LetGoDecodedHead()
	} else {
		f.cb.LetGoEncodedHead()
	}
}

// goOnAll lets everything go that the stream holds for the filter.
func (f *filter) goOnAll(dir direction) {
	if dir == decode {
		f.cb.ContinueDecoding()
	} else {
		f.cb.ContinueEncoding()
	}
}

func (f *filter) pause(dir direction) {
	s := &f.sides[dir]
	if s.paused {
		return
	}
	s.paused = true
	if dir == decode {
		f.cb.Stream().PauseRequest()
	} else {
		f.cb.Stream().PauseResponse()
	}
}

func (f *filter) resume(dir direction) {
	s := &f.sides[dir]
	if !s.paused {
		return
	}
	s.paused = false
	if dir == decode {
		f.cb.Stream().ResumeRequest()
	} else {
		f.cb.Stream().ResumeResponse()
	}
}

// setLength writes the length of a replaced body where the head says one.
func (f *filter) setLength(dir direction, n int) {
	b := f.block(dir)
	if b == nil || !b.Has(header.ContentLength) {
		return
	}
	f.host.text = strconv.AppendInt(f.host.text[:0], int64(n), 10)
	b.Set(header.ContentLength, nil, f.host.text)
}

// lengthUnknown takes the length off a head whose body may become another.
func (f *filter) lengthUnknown(dir direction) {
	if b := f.block(dir); b != nil {
		b.RemoveID(header.ContentLength)
	}
}

func (f *filter) block(dir direction) *header.Block {
	s := f.cb.Stream()
	if dir == decode {
		return &s.Request.Block
	}
	if s.Response == nil {
		return nil
	}
	return &s.Response.Block
}
