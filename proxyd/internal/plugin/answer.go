package plugin

import (
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// phaseNames are what spans call the phases of a stream.
var phaseNames = [16]string{
	filterv1.Phase_PHASE_REQUEST_HEADERS: "request_headers", filterv1.Phase_PHASE_REQUEST_BODY: "request_body", filterv1.Phase_PHASE_REQUEST_TRAILERS: "request_trailers",
	filterv1.Phase_PHASE_RESPONSE_HEADERS: "response_headers", filterv1.Phase_PHASE_RESPONSE_BODY: "response_body", filterv1.Phase_PHASE_RESPONSE_TRAILERS: "response_trailers",
}

// answered implements caller.
func (f *filter) answered(dir direction, phase filterv1.Phase, r *reply, frame []byte) {
	s := &f.sides[dir]
	s.call = 0
	st := f.cb.Stream()
	now, taken := f.host.clock(), f.take(dir, phase, r)
	st.PluginTime += now - f.asked(dir)
	st.NoteCall(stream.Call{Name: f.use.spanName, Phase: phaseNames[phase&15], Start: f.asked(dir), End: now, Failed: !taken})
	if !taken {
		f.fail(dir, invalid)
		f.settle(dir)
		return
	}
	cells := f.cells()
	switch r.action {
	case filterv1.Action_ACTION_RESPOND:
		cells[counters.PluginRqResponded]++
		f.skip = true
		f.remember(dir, phase, r, frame)
		f.use.respond(f.host, st, r)
		return
	case filterv1.Action_ACTION_SKIP_REST:
		f.skip = true
	}
	if len(r.ops) > 0 || r.replaced {
		cells[counters.PluginRqModified]++
	} else {
		cells[counters.PluginRqOK]++
	}
	f.remember(dir, phase, r, frame)
	for d := range r.moded {
		if r.moded[d] && (direction(d) == encode || dir == decode && phase == headPhase[decode]) {
			f.sides[d].mode = r.modes[d]
			f.sides[d].moded = direction(d) != dir
		}
	}
	f.proceed(dir, phase, r)
}

// proceed lets go what an answer was waited for with.
func (f *filter) proceed(dir direction, phase filterv1.Phase, r *reply) {
	s := &f.sides[dir]
	switch s.state {
	case headCalled:
		if f.skip || s.mode == filterv1.BodyMode_BODY_NONE {
			f.letGoBefore(dir)
			return
		}
		f.body(dir)
		f.resume(dir)
		switch s.state {
		case streaming:
			f.goOn(dir)
			if !f.over(dir) {
				f.continueStreaming(dir)
			}
		case collecting:
			f.collect(dir)
			f.settle(dir)
		}
	case bodyCalled:
		if r.replaced {
			s.body.Consume(&f.host.worker.Pool, s.piece)
			f.setLength(dir, len(r.body)+s.body.Len())
			f.add(dir, r.body)
		}
		f.letGoBefore(dir)
	case streaming:
		s.calling = false
		end := s.final && !s.trailers
		pool := &f.host.worker.Pool
		if r.replaced {
			s.body.Consume(pool, s.piece)
			if len(r.body) > 0 || end {
				f.inject(dir, r.body, end)
			}
		} else {
			f.injectPiece(dir, s.piece, end)
		}
		if f.over(dir) {
			return
		}
		if s.paused && s.body.Len() < streamLow {
			f.resume(dir)
		}
		if f.skip {
			f.letGo(dir)
			return
		}
		switch {
		case !s.final:
			f.continueStreaming(dir)
		case s.trailers:
			f.askHeldTrailers(dir)
		default:
			s.state = passing
		}
	case trailersCalled:
		s.state, s.trailers = passing, false
		f.goOnAll(dir)
	}
}

// continueStreaming gives the plugin what has come meanwhile.
func (f *filter) continueStreaming(dir direction) {
	f.pump(dir)
	f.settle(dir)
}

// letGoBefore lets head and body go, with trailers that have come meanwhile once the plugin was asked about them.
func (f *filter) letGoBefore(dir direction) {
	s := &f.sides[dir]
	if f.skip || !s.trailers || !f.sub.has(trailerPhase[dir]) {
		f.letGo(dir)
		return
	}
	f.resume(dir)
	f.addAll(dir) // the stream holds them all until the answer
	if !f.over(dir) {
		f.askHeldTrailers(dir)
	}
}

// askHeldTrailers asks about trailers that the stream holds, out of a completion.
func (f *filter) askHeldTrailers(dir direction) {
	if f.askTrailers(dir) == stream.Continue && !f.over(dir) {
		f.goOnAll(dir)
	}
}

// settle deals with a failure of a call that was made from a completion.
func (f *filter) settle(dir direction) {
	if f.skip && !f.over(dir) {
		f.letGo(dir)
	}
}

// failed implements caller.
func (f *filter) failed(dir direction, phase filterv1.Phase, why failure) {
	s := &f.sides[dir]
	s.call = 0
	st, now := f.cb.Stream(), f.host.clock()
	st.PluginTime += now - f.asked(dir)
	st.NoteCall(stream.Call{Name: f.use.spanName, Phase: phaseNames[phase&15], Start: f.asked(dir), End: now, Failed: true})
	f.fail(dir, why)
	f.settle(dir)
}

// fail applies the fail mode: afterwards the filter is skipped, or the stream was answered.
func (f *filter) fail(dir direction, why failure) {
	f.skip = true
	s := f.cb.Stream()
	cells := f.cells()
	cells[counters.PluginRqFailed+int(why)]++
	if f.use.open {
		cells[counters.PluginFailedOpen]++
		s.Flags |= stream.FlagPluginOpen
		return
	}
	cells[counters.PluginFailedClosed]++
	s.LocalReply(503, "plugin unavailable", stream.FlagPluginClosed, f.use.detail[why])
}

// over tells that the direction has ended: the stream was answered or reset.
func (f *filter) over(dir direction) bool {
	if f.dead {
		return true
	}
	s := f.cb.Stream()
	return s.Finished() || dir == decode && s.DecodeClosed()
}

// take checks an answer and applies its header operations; false when it cannot be done, and then nothing was.
func (f *filter) take(dir direction, phase filterv1.Phase, r *reply) bool {
	st := f.cb.Stream()
	switch r.action {
	case filterv1.Action_ACTION_CONTINUE, filterv1.Action_ACTION_SKIP_REST:
	case filterv1.Action_ACTION_RESPOND:
		return r.status >= 200 && r.status <= 599 && permitted(r.respond, false, nil)
	default:
		return false
	}
	if r.replaced && (phase != bodyPhase[dir] || f.sides[dir].mode == filterv1.BodyMode_BODY_PREFIX) {
		return false // there is no body to replace in this call
	}
	if len(r.ops) == 0 {
		return true
	}
	switch phase {
	case filterv1.Phase_PHASE_REQUEST_HEADERS:
		if !permitted(r.ops, true, &st.Request) {
			return false
		}
		edit(&st.Request, r.ops)
	case filterv1.Phase_PHASE_RESPONSE_HEADERS:
		if st.Response == nil || !permitted(r.ops, false, nil) {
			return false
		}
		for i := range r.ops {
			r.ops[i].apply(&st.Response.Block)
		}
	case filterv1.Phase_PHASE_REQUEST_TRAILERS:
		if !permitted(r.ops, false, nil) {
			return false
		}
		for i := range r.ops {
			r.ops[i].apply(&st.RequestTrailers)
		}
	case filterv1.Phase_PHASE_RESPONSE_TRAILERS:
		if st.ResponseTrailers == nil || !permitted(r.ops, false, nil) {
			return false
		}
		for i := range r.ops {
			r.ops[i].apply(st.ResponseTrailers)
		}
	default:
		return false // with a body the head has gone on, or would not be seen to change
	}
	return true
}

// edit applies operations that are permitted to a request's head.
func edit(r *header.Request, ops []op) {
	for i := range ops {
		o := &ops[i]
		if len(o.name) > 0 && o.name[0] == ':' {
			if string(o.name) == ":path" {
				r.SetPath(o.value)
			} else {
				r.SetAuthority(o.value)
			}
			continue
		}
		o.apply(&r.Block)
	}
}

// framing are the fields that decide where a message ends and to whom it goes: no plugin has a say in them.
var framing = header.MaskOf(header.Host, header.ContentLength, header.TransferEncoding, header.Connection, header.KeepAlive,
	header.ProxyConnection, header.Upgrade, header.TE, header.Trailer, header.HTTP2Settings)

// permitted tells whether all operations can be done: names and values that can be sent, none of framing.
func permitted(ops []op, request bool, head *header.Request) bool {
	for i := range ops {
		o := &ops[i]
		if request && len(o.name) > 0 && o.name[0] == ':' && head != nil {
			switch {
			case o.kind != filterv1.Op_OP_SET:
				return false
			case string(o.name) == ":path":
				if len(o.value) == 0 || o.value[0] != '/' || !header.ValidTarget(o.value) {
					return false
				}
			case string(o.name) == ":authority":
				if !header.ValidAuthority(o.value) {
					return false
				}
			default:
				return false
			}
			continue
		}
		if !header.ValidName(o.name) || !header.ValidValue(o.value) {
			return false
		}
		if id := header.Lookup(o.name); id != header.Other && framing.Has(id) {
			return false
		}
	}
	return true
}

func (o *op) apply(b *header.Block) {
	id := header.Lookup(o.name)
	switch o.kind {
	case filterv1.Op_OP_SET:
		b.Set(id, o.name, o.value)
	case filterv1.Op_OP_ADD:
		b.Add(id, o.name, o.value)
	case filterv1.Op_OP_REMOVE:
		if id != header.Other {
			b.RemoveID(id)
		} else {
			b.RemoveName(o.name)
		}
	}
}

// respond answers the request in the plugin's words.
func (u *Use) respond(h *Host, s *stream.Stream, r *reply) {
	detail := u.respondDetail
	if len(r.detail) > 0 {
		detail = h.detail(u, r.detail)
	}
	if s.ResponseHeadSent() {
		s.Reset(stream.ResetLocal, 0, detail)
		return
	}
	head := s.NewReply(r.status)
	contentType := "text/plain"
	for i := range r.respond {
		if header.Lookup(r.respond[i].name) == header.ContentType {
			contentType = ""
		}
		r.respond[i].apply(&head.Block)
	}
	s.SendReply(r.text, contentType, detail)
}

func (f *filter) tooLarge(dir direction) {
	s := f.cb.Stream()
	f.skip = true
	if dir == decode {
		s.Cells[counters.HTTPDownstreamRqTooLarge]++
		s.LocalReply(413, "Payload Too Large", 0, stream.DetailRequestTooLarge)
		return
	}
	s.Cells[counters.HTTPRsTooLarge]++
	s.LocalReply(500, "Internal Server Error", 0, stream.DetailResponseTooLarge)
}
