package plugin

import (
	"strconv"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tcpproxy"
	"retinue.dev/proxyd/internal/worker"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// network is a plugin in one TCP session: a tcpproxy.NetworkFilter and a caller. The bytes of a direction go to the plugin piece by piece, one
// call at a time; what comes meanwhile waits, and when much waits its sender does.
type network struct {
	use     *Use
	host    *Host
	channel *channel
	session tcpproxy.Session
	id      uint64
	sides   [2]networkSide
	connect uint64 // the call about the connection; 0: none
	skip    bool   // it is not asked any more
	dead    bool
}

type networkSide struct {
	call   uint64
	body   buffer.Chain
	piece  int
	paused bool
	ended  bool // FIN was seen
	final  bool // and the plugin was told
	done   bool // and it was passed on
}

var networkPhase = [2]filterv1.Phase{filterv1.Phase_PHASE_READ, filterv1.Phase_PHASE_WRITE}

// NewNetworkFilter implements tcpproxy.FilterFactory.
func (u *Use) NewNetworkFilter(w *worker.Worker, s tcpproxy.Session) tcpproxy.NetworkFilter {
	return &network{use: u, host: u.gates[w.ID].host, session: s}
}

// Connect implements tcpproxy.NetworkFilter.
func (n *network) Connect() bool {
	n.channel = n.host.pick(n.use.handle, n.use.config)
	if n.channel == nil {
		n.fail(unavailable)
		return !n.dead && n.skip && n.use.open
	}
	n.host.last++
	n.id = n.host.last
	n.channel.streams++
	if !n.channel.info.sub.has(filterv1.Phase_PHASE_CONNECT) {
		return true
	}
	number, why, ok := n.channel.begin(n, decode, filterv1.Phase_PHASE_CONNECT)
	if !ok {
		n.fail(why)
		return n.use.open
	}
	n.connect = number
	n.event(filterv1.Phase_PHASE_CONNECT, false, nil, number)
	return false
}

// Data implements tcpproxy.NetworkFilter.
func (n *network) Data(d tcpproxy.Direction, data []byte) bool {
	if n.Passing() || n.channel == nil {
		return false
	}
	s := &n.sides[d]
	if !n.channel.info.sub.has(networkPhase[d]) && s.body.Len() == 0 {
		return false
	}
	s.body.Append(&n.host.worker.Pool, data)
	if !s.paused && s.body.Len() > streamHigh {
		s.paused = true
		n.session.Pause(d)
	}
	n.pump(d)
	return true
}

// End implements tcpproxy.NetworkFilter.
func (n *network) End(d tcpproxy.Direction) bool {
	if n.skip || n.channel == nil || !n.channel.info.sub.has(networkPhase[d]) {
		return false
	}
	n.sides[d].ended = true
	n.pump(d)
	return true
}

// Passing implements tcpproxy.NetworkFilter.
func (n *network) Passing() bool { return n.skip }

// Holding implements tcpproxy.NetworkFilter.
func (n *network) Holding() bool {
	for d := range n.sides {
		if s := &n.sides[d]; s.body.Len() > 0 || s.ended && !s.done {
			return true
		}
	}
	return false
}

// Closed implements tcpproxy.NetworkFilter.
func (n *network) Closed() {
	n.dead = true
	if n.channel == nil {
		return
	}
	for d := range n.sides {
		s := &n.sides[d]
		s.body.Release(&n.host.worker.Pool)
		if s.call != 0 {
			n.channel.cancel(s.call)
		}
	}
	if n.connect != 0 {
		n.channel.cancel(n.connect)
	}
	if n.channel.connected && n.channel.info.sub.has(filterv1.Phase_PHASE_CLOSE) {
		n.event(filterv1.Phase_PHASE_CLOSE, true, nil, 0)
	}
	n.channel.left()
}

// pump gives the plugin the next piece of a direction.
func (n *network) pump(d tcpproxy.Direction) {
	s := &n.sides[d]
	if n.skip || s.call != 0 || s.body.Len() == 0 && (!s.ended || s.final) {
		return
	}
	number, why, ok := n.channel.begin(n, direction(d), networkPhase[d])
	if !ok {
		n.fail(why)
		return
	}
	s.call = number
	s.piece = min(s.body.Len(), maxPiece)
	s.final = s.ended && s.piece == s.body.Len()
	n.event(networkPhase[d], s.final, n.host.front(&s.body, s.piece), number)
}

// event writes one Event and stages it.
func (n *network) event(phase filterv1.Phase, end bool, body []byte, number uint64) {
	b := append(n.host.frame[:0], 0, 0, 0, 0)
	b, at := begin(b, fieldMessage)
	if number != 0 {
		b = varint(b, 1, number)
	}
	b = varint(varint(varint(b, 2, n.id), 3, uint64(n.channel.info.configID)), 4, uint64(phase))
	if end {
		b = varint(b, 5, 1)
	}
	if number != 0 {
		b = varint(b, 6, uint64(n.channel.info.timeout/1000))
	}
	if phase == filterv1.Phase_PHASE_CONNECT {
		for i := range n.channel.info.sub.attributes {
			a := &n.channel.info.sub.attributes[i]
			n.host.text = n.attribute(n.host.text[:0], a.kind)
			b = pair(b, 8, a.text, n.host.text)
		}
	}
	if body != nil {
		b = raw(b, 9, body)
	}
	finish(b, at)
	n.channel.send(b)
	if n.host.frame = b[:0]; cap(b) > 256<<10 {
		n.host.frame = make([]byte, 0, 4<<10)
	}
}

func (n *network) attribute(b []byte, kind attributeKind) []byte {
	info := n.session.Info()
	switch kind {
	case sourceAddress:
		if info.Peer.IsValid() {
			return info.Peer.AppendTo(b)
		}
	case sourceIP:
		if info.Peer.IsValid() {
			return info.Peer.Addr().AppendTo(b)
		}
	case connectionID:
		return strconv.AppendUint(b, info.ConnectionID, 10)
	case listenerName:
		return append(b, n.session.ListenerName()...)
	}
	return b
}

// answered implements caller.
func (n *network) answered(dir direction, phase filterv1.Phase, r *reply, _ []byte) {
	cells := n.use.cells[n.host.worker.ID]
	d := tcpproxy.Direction(dir)
	s := &n.sides[d]
	if phase == filterv1.Phase_PHASE_CONNECT {
		n.connect = 0
	} else {
		s.call = 0
	}
	switch r.action {
	case filterv1.Action_ACTION_CONTINUE, filterv1.Action_ACTION_SKIP_REST, filterv1.Action_ACTION_CLOSE:
	default:
		n.fail(invalid)
		return
	}
	if len(r.ops) > 0 || phase == filterv1.Phase_PHASE_CONNECT && r.replaced {
		n.fail(invalid) // a connection has no headers
		return
	}
	if len(r.inject) > 0 {
		n.session.Reply(d, r.inject)
	}
	if r.action == filterv1.Action_ACTION_CLOSE {
		cells[counters.PluginRqResponded]++
		n.skip = true
		n.session.Finish(n.use.respondDetail)
		return
	}
	if r.replaced {
		cells[counters.PluginRqModified]++
	} else {
		cells[counters.PluginRqOK]++
	}
	skip := r.action == filterv1.Action_ACTION_SKIP_REST
	if phase == filterv1.Phase_PHASE_CONNECT {
		n.skip = skip
		n.session.Go()
		return
	}
	pool := &n.host.worker.Pool
	if r.replaced {
		s.body.Consume(pool, s.piece)
		n.session.Give(d, r.body)
	} else {
		n.give(d, s.piece)
	}
	if n.dead {
		return
	}
	if skip {
		n.pass()
		return
	}
	if s.paused && s.body.Len() < streamLow {
		s.paused = false
		n.session.Resume(d)
	}
	if n.end(d); !n.dead {
		n.pump(d)
	}
}

// end passes a FIN on once everything before it has been.
func (n *network) end(d tcpproxy.Direction) {
	if s := &n.sides[d]; s.ended && !s.done && s.body.Len() == 0 && (s.final || n.skip) {
		s.done = true
		n.session.End(d)
	}
}

// give sends on the first bytes that are held of a direction.
func (n *network) give(d tcpproxy.Direction, count int) {
	s := &n.sides[d]
	for count > 0 && !n.dead {
		piece := s.body.Front()
		piece = piece[:min(count, len(piece))]
		count -= len(piece)
		n.session.Give(d, piece)
		if n.dead {
			return
		}
		s.body.Consume(&n.host.worker.Pool, len(piece))
	}
}

// pass lets everything go, now and from now on.
func (n *network) pass() {
	n.skip = true
	for i := range n.sides {
		d, s := tcpproxy.Direction(i), &n.sides[i]
		if s.call != 0 {
			n.channel.cancel(s.call)
			s.call = 0
		}
		n.give(d, s.body.Len())
		if n.dead {
			return
		}
		if s.paused {
			s.paused = false
			n.session.Resume(d)
		}
		if n.end(d); n.dead {
			return
		}
	}
}

// failed implements caller.
func (n *network) failed(dir direction, phase filterv1.Phase, why failure) {
	connecting := phase == filterv1.Phase_PHASE_CONNECT
	if connecting {
		n.connect = 0
	} else {
		n.sides[dir].call = 0
	}
	if n.fail(why); connecting && n.use.open && !n.dead {
		n.session.Go()
	}
}

// fail applies the fail mode: the bytes pass from now on, or the session ends.
func (n *network) fail(why failure) {
	cells := n.use.cells[n.host.worker.ID]
	cells[counters.PluginRqFailed+int(why)]++
	if n.use.open {
		cells[counters.PluginFailedOpen]++
		n.session.Note(stream.FlagPluginOpen)
		n.pass()
		return
	}
	cells[counters.PluginFailedClosed]++
	n.skip = true
	n.session.Abort(stream.FlagPluginClosed, n.use.detail[why])
}
