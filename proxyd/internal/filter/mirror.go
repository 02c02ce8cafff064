package filter

import (
	"time"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
)

// mirrorTo is one cluster that gets copies of a route's requests.
type mirrorTo struct {
	handle   cluster.Handle
	fraction uint64 // of a million
}

// mirror is one copy of a request on its way. The router feeds it and forgets it; it outlives the router's stream, throws the
// response away, and is over by a time-out at the latest. Whatever goes wrong with it, the client does not learn of it:
// a mirror that does not keep up is given up rather than waited for. Two let go of its memory: the router when it has no more to give,
// and the upstream when it is done; the second gives it back.
type mirror struct {
	shared  *Shared
	worker  *worker.Worker
	cells   *counters.Cluster // nil: the cluster is not there
	request header.Request
	head    bool // the request is its head alone
	timer   timer.Timer

	pending *upstream.Pending
	encoder stream.RequestEncoder
	body    buffer.Chain // came while there was no connection
	limit   int
	ended   bool // the whole request is here
	fed     bool // the router has no more to give
	done    bool // the upstream is done with it

	next *mirror // free list
}

// defaultMirrorTime bounds a mirror where the route has no time-out.
const defaultMirrorTime = int64(5 * time.Minute)

// mirror begins the copies of a request that has its final form.
func (r *Router) mirror(s *stream.Stream, end bool) {
	if s.Upgrade || s.Request.MethodID() == header.MethodConnect {
		return // a tunnel has no copy
	}
	for i := range *r.action.mirrors {
		to := &(*r.action.mirrors)[i]
		if to.fraction < million && s.Worker.Rand()%million >= to.fraction {
			continue
		}
		m := r.shared.takeMirror()
		m.shared, m.worker, m.cells = r.shared, s.Worker, nil
		if config := r.shared.Upstream.Cluster(to.handle); config != nil {
			m.cells = config.Cells[s.Worker.ID]
			m.cells[counters.ClusterShadowTotal]++
		}
		m.request.CopyFrom(&s.Request)
		scratch := append(r.shared.scratch[:0], s.Request.Authority()...)
		r.shared.scratch = shadowed(scratch)
		m.request.SetAuthority(r.shared.scratch)
		m.head, m.ended, m.limit = end, end, s.Config.BufferLimit
		m.timer.Callback = m
		r.mirrors = append(r.mirrors, m)
		limit := r.action.timeout
		if limit <= 0 {
			limit = defaultMirrorTime
		}
		s.Worker.Timers.Set(&m.timer, s.Worker.Now()+limit)
		if pending := r.shared.Upstream.NewStream(to.handle, cluster.Default, upstream.Avoid{}, nil, m, m); !m.done && m.encoder == nil {
			m.pending = pending
		}
	}
	if end {
		r.mirrorsFed(false)
	}
}

// shadowed puts "-shadow" behind the host, before a port.
func shadowed(authority []byte) []byte {
	const shadow = "-shadow"
	_, port, ok := header.SplitAuthority(authority)
	if !ok || len(authority) == 0 || authority[0] == '[' {
		return authority
	}
	host := len(authority)
	if len(port) > 0 {
		host -= len(port) + 1
	}
	tail := len(authority) - host
	authority = append(authority, shadow...)
	copy(authority[host+len(shadow):], authority[host:host+tail])
	copy(authority[host:], shadow)
	return authority
}

// mirrorData gives body bytes to the copies.
func (r *Router) mirrorData(data []byte, end bool) {
	for _, m := range r.mirrors {
		m.data(data, end)
	}
	if end {
		r.mirrorsFed(false)
	}
}

// mirrorTrailers ends the copies: trailers are not copied.
func (r *Router) mirrorTrailers() { r.mirrorData(nil, true) }

// mirrorsFed lets go of the copies; abandoned ones have a request that will not be complete.
func (r *Router) mirrorsFed(abandoned bool) {
	for i, m := range r.mirrors {
		r.mirrors[i] = nil
		if abandoned && !m.done {
			m.giveUp()
		}
		m.fed = true
		m.release()
	}
	r.mirrors = r.mirrors[:0]
}

func (m *mirror) data(data []byte, end bool) {
	m.ended = m.ended || end
	switch {
	case m.done:
	case m.encoder == nil:
		if m.body.Len()+len(data) > m.limit {
			m.giveUp()
			return
		}
		m.body.Append(&m.worker.Pool, data)
	case m.encoder.BufferedBytes() > m.limit:
		m.giveUp()
	default:
		m.encoder.EncodeData(data, end)
	}
}

// OnPoolReady implements upstream.Callbacks.
func (m *mirror) OnPoolReady(encoder stream.RequestEncoder, _ *cluster.Host, _ bool) {
	m.pending, m.encoder = nil, encoder
	encoder.EncodeHeaders(&m.request, m.head)
	for m.encoder != nil && m.body.Len() > 0 {
		piece := m.body.Front()
		last := len(piece) == m.body.Len()
		encoder.EncodeData(piece, last && m.ended)
		if m.done {
			return
		}
		m.body.Consume(&m.worker.Pool, len(piece))
		if last {
			return
		}
	}
	if m.encoder != nil && m.ended && !m.head {
		encoder.EncodeData(nil, true)
	}
}

// OnPoolFailure implements upstream.Callbacks.
func (m *mirror) OnPoolFailure(upstream.Failure, *cluster.Host) { m.finish() }

// DecodeInterim implements stream.ResponseDecoder.
func (m *mirror) DecodeInterim(*header.Response) {}

// DecodeHeaders implements stream.ResponseDecoder.
func (m *mirror) DecodeHeaders(_ *header.Response, end bool) {
	if end {
		m.finish()
	}
}

// DecodeData implements stream.ResponseDecoder.
func (m *mirror) DecodeData(_ []byte, end bool) {
	if end {
		m.finish()
	}
}

// DecodeTrailers implements stream.ResponseDecoder.
func (m *mirror) DecodeTrailers(*header.Block) { m.finish() }

// OnReset implements stream.ResponseDecoder.
func (m *mirror) OnReset(stream.ResetReason, string) { m.finish() }

// OnAboveHigh implements stream.ResponseDecoder: data looks at what waits.
func (m *mirror) OnAboveHigh() {}

// OnBelowLow implements stream.ResponseDecoder.
func (m *mirror) OnBelowLow() {}

// OnTimer implements timer.Callback.
func (m *mirror) OnTimer(*timer.Timer, int64) {
	if !m.done {
		m.giveUp()
	}
}

// giveUp ends a copy from our side.
func (m *mirror) giveUp() {
	if m.cells != nil {
		m.cells[counters.ClusterShadowGivenUp]++
	}
	if m.pending != nil {
		m.pending.Cancel()
	}
	if m.encoder != nil {
		m.encoder.Reset(stream.ResetLocal)
	}
	m.finish()
}

// finish lets go of what a copy has upstream. The encoder is dead already, or was reset.
func (m *mirror) finish() {
	m.done = true
	m.pending, m.encoder = nil, nil
	m.worker.Timers.Stop(&m.timer)
	m.body.Release(&m.worker.Pool)
	m.release()
}

func (m *mirror) release() {
	if !m.fed || !m.done {
		return
	}
	s := m.shared
	if s.keptMirrors >= mostMirrors {
		return
	}
	m.next, s.freeMirrors = s.freeMirrors, m
	s.keptMirrors++
}

// mostMirrors bounds the free list.
const mostMirrors = 256

func (s *Shared) takeMirror() *mirror {
	m := s.freeMirrors
	if m == nil {
		return &mirror{}
	}
	s.freeMirrors, m.next = m.next, nil
	s.keptMirrors--
	m.request.Reset()
	*m = mirror{request: m.request}
	return m
}
