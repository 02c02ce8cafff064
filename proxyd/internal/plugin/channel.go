package plugin

import (
	"encoding/binary"

	"retinue.dev/libs/region"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/timer"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// failure is why a call came to nothing.
type failure uint8

const (
	unavailable failure = iota // no generation is attached, or it went
	timedOut
	overflow // too many calls, or the plugin does not read
	circuit  // it timed out again and again
	invalid  // it answered what cannot be done
	failures
)

// caller is who waits for an answer: an HTTP stream's filter, a connection's.
type caller interface {
	// answered is given the reply to the one call that the caller has in that direction, and the frame that it lies in; both are valid
	// for the call.
	answered(dir direction, phase filterv1.Phase, r *reply, frame []byte)
	// failed tells that there is none. It is never called from within the call's own begin.
	failed(dir direction, phase filterv1.Phase, why failure)
}

// call is a slot of a channel.
type call struct {
	caller     caller
	dir        direction
	phase      filterv1.Phase
	generation uint32
	began      int64
	prev, next int32 // in the order of deadlines; -1: none
}

const (
	breakerTimeouts = 16         // in a row
	breakerPause    = int64(1e9) // ns
	reconnectFirst  = int64(50e6)
	reconnectMost   = int64(5e9)
	// outLimit is the bytes that may wait for a plugin that does not read.
	outLimit = 4 << 20
	// smallFrame is what may wait in the connection's own buffer until it is whole.
	smallFrame = 32 << 10
	// maxStrange bounds the answers on one connection to calls that nobody made: each counts one, and one for each KiB.
	maxStrange = 1024
)

// channel is a worker's connection to one generation of a plugin. All of it runs on the worker's thread.
type channel struct {
	host   *Host
	target *target
	info   *Generation

	conn      *conn.Conn
	connected bool // the socket is, and our Opening is on its way
	draining  bool // no new streams; it closes with the last one
	closed    bool // for good
	blocked   bool // the plugin does not read
	greeted   bool // its Opening has come
	abandoned int  // calls given up, whose answers may still come
	strange   int  // answers to no call; see maxStrange

	calls   []call
	free    []int32
	first   int32 // the oldest call
	last    int32
	flying  int
	streams int

	large []byte // a frame that is too large to wait in the connection
	want  int    // its length

	cache     *cache // made with the first answer that may be repeated
	timeouts  int
	openUntil int64
	retry     int64
	timer     timer.Timer // the oldest call's deadline, or the next attempt to connect
}

func newChannel(h *Host, t *target, info *Generation) *channel {
	ch := &channel{host: h, target: t, info: info, first: -1, last: -1, retry: reconnectFirst}
	ch.timer.Callback = ch
	ch.dial()
	return ch
}

func (ch *channel) dial() {
	ch.conn = conn.Dial(ch.host.worker, ch.info.address, 0, ch, &conn.Options{HighWatermark: outLimit})
}

// begin makes a call: the caller's event is written by write into the frame, from its field phase on. The deadline is the
// plugin's time-out from now. false tells that there is no call, and why.
func (ch *channel) begin(c caller, dir direction, phase filterv1.Phase) (number uint64, why failure, ok bool) {
	w := ch.host.worker
	switch {
	case !ch.connected || ch.closed:
		return 0, unavailable, false
	case ch.blocked || ch.flying >= ch.info.maxInFlight:
		return 0, overflow, false
	case ch.openUntil > w.Now():
		return 0, circuit, false
	case ch.openUntil > 0 && ch.flying > 0: // half open: one call tries
		return 0, circuit, false
	}
	var at int32
	if n := len(ch.free); n > 0 {
		at = ch.free[n-1]
		ch.free = ch.free[:n-1]
	} else {
		at = int32(len(ch.calls))
		ch.calls = append(ch.calls, call{})
	}
	s := &ch.calls[at]
	s.generation++
	s.caller, s.dir, s.phase, s.began = c, dir, phase, w.Now()
	s.prev, s.next = ch.last, -1
	if ch.last >= 0 {
		ch.calls[ch.last].next = at
	} else {
		ch.first = at
		if !ch.timer.Active() {
			w.Timers.Set(&ch.timer, s.began+ch.info.timeout)
		}
	}
	ch.last = at
	ch.flying++
	w.Expected++
	ch.target.cells(w.ID)[counters.PluginRqActive]++
	return uint64(s.generation)<<32 | uint64(uint32(at)+1), 0, true
}

// release frees a slot.
func (ch *channel) release(at int32) {
	s := &ch.calls[at]
	if s.prev >= 0 {
		ch.calls[s.prev].next = s.next
	} else {
		ch.first = s.next
	}
	if s.next >= 0 {
		ch.calls[s.next].prev = s.prev
	} else {
		ch.last = s.prev
	}
	s.caller = nil
	ch.free = append(ch.free, at)
	ch.flying--
	ch.host.worker.Expected--
	ch.target.cells(ch.host.worker.ID)[counters.PluginRqActive]--
}

// cancel gives up a call: its answer will be a late one.
func (ch *channel) cancel(number uint64) {
	if at, ok := ch.find(number); ok {
		ch.release(at)
		ch.abandoned++
	}
}

func (ch *channel) find(number uint64) (int32, bool) {
	at := int64(uint32(number)) - 1
	if at < 0 || at >= int64(len(ch.calls)) {
		return 0, false
	}
	s := &ch.calls[at]
	return int32(at), s.caller != nil && s.generation == uint32(number>>32)
}

// send stages one frame whose first four bytes are room for its length.
func (ch *channel) send(frame []byte) {
	binary.LittleEndian.PutUint32(frame, uint32(len(frame)-headBytes))
	ch.conn.Stage(frame)
}

// OnConnected implements conn.Handler.
func (ch *channel) OnConnected(c *conn.Conn) {
	ch.connected = true
	c.Write(opening(ch.host.generation, ch.host.worker.ID))
	ch.host.attached(ch)
	ch.target.settle()
}

// OnData implements conn.Handler.
func (ch *channel) OnData(c *conn.Conn, data []byte) int {
	used := 0
	for !ch.closed && ch.conn == c {
		rest := data[used:]
		if ch.want > 0 {
			n := min(len(rest), ch.want-len(ch.large))
			ch.large = append(ch.large, rest[:n]...)
			used += n
			if len(ch.large) < ch.want {
				return used
			}
			ch.want = 0
			if !ch.frame(ch.large) {
				return used
			}
			if ch.large = ch.large[:0]; cap(ch.large) > 4*smallFrame {
				ch.large = nil
			}
			continue
		}
		if len(rest) < headBytes {
			return used
		}
		n := int(binary.LittleEndian.Uint32(rest))
		switch {
		case n > maxFrame:
			ch.violated()
			return used
		case len(rest) >= headBytes+n:
			used += headBytes + n
			if !ch.frame(rest[headBytes : headBytes+n]) {
				return used
			}
		case n > smallFrame:
			ch.want = n
			used += headBytes
		default:
			return used
		}
	}
	return used
}

// frame takes one frame; false when it ended the channel.
func (ch *channel) frame(b []byte) bool {
	r := &ch.host.reply
	opening, err := r.parse(b)
	if err != nil {
		ch.violated()
		return false
	}
	if opening {
		if ch.greeted {
			ch.violated()
			return false
		}
		ch.greeted = true
		return true
	}
	cells := ch.target.cells(ch.host.worker.ID)
	at, ok := ch.find(r.call)
	if !ok {
		cells[counters.PluginRepliesLate]++
		if ch.abandoned > 0 {
			ch.abandoned--
			return true
		}
		if ch.strange += 1 + len(b)>>10; ch.strange > maxStrange {
			ch.violated()
			return false
		}
		return true
	}
	s := ch.calls[at]
	ch.release(at)
	ch.timeouts, ch.openUntil, ch.retry = 0, 0, reconnectFirst
	if h := histogramOf(s.phase); h >= 0 {
		took := ch.host.clock() - s.began
		region.Observe(cells[h:], region.Ticks(uint64(took)))
		if r.worked {
			region.Observe(cells[counters.PluginQueueTime:], region.Ticks(uint64(max(took-int64(r.handled), 0))))
		}
	}
	s.caller.answered(s.dir, s.phase, r, b)
	return !ch.closed && ch.connected
}

// violated ends a channel whose plugin does not keep to the protocol.
func (ch *channel) violated() {
	ch.target.cells(ch.host.worker.ID)[counters.PluginProtocolErrors]++
	ch.conn.Close()
}

// OnEOF implements conn.Handler: the plugin's process has gone, or closes.
func (ch *channel) OnEOF(c *conn.Conn) { c.Close() }

// OnAboveHigh implements conn.Handler.
func (ch *channel) OnAboveHigh(*conn.Conn) { ch.blocked = true }

// OnBelowLow implements conn.Handler.
func (ch *channel) OnBelowLow(*conn.Conn) { ch.blocked = false }

// OnClose implements conn.Handler: whoever waits gets their fail mode at once.
func (ch *channel) OnClose(_ *conn.Conn, _ conn.Reason) {
	was := ch.connected
	ch.conn, ch.connected, ch.blocked = nil, false, false
	ch.want, ch.large = 0, nil
	ch.greeted, ch.abandoned, ch.strange = false, 0, 0
	if was {
		ch.host.detached(ch)
		ch.target.cells(ch.host.worker.ID)[counters.PluginCxDestroy]++
	}
	for ch.first >= 0 {
		s := ch.calls[ch.first]
		ch.release(ch.first)
		s.caller.failed(s.dir, s.phase, unavailable)
	}
	if ch.closed {
		return
	}
	w := ch.host.worker
	w.Timers.Set(&ch.timer, w.Now()+ch.retry)
	ch.retry = min(2*ch.retry, reconnectMost)
}

// OnTimer implements timer.Callback.
func (ch *channel) OnTimer(_ *timer.Timer, now int64) {
	if ch.closed {
		return
	}
	if ch.conn == nil {
		ch.dial()
		return
	}
	for ch.first >= 0 {
		s := ch.calls[ch.first]
		if due := s.began + ch.info.timeout; due > now {
			if !ch.timer.Active() {
				ch.host.worker.Timers.Set(&ch.timer, due)
			}
			return
		}
		ch.release(ch.first)
		ch.abandoned++
		if ch.timeouts++; ch.timeouts >= breakerTimeouts {
			if ch.openUntil <= now {
				ch.target.cells(ch.host.worker.ID)[counters.PluginCircuitOpened]++
			}
			ch.openUntil = now + breakerPause
		}
		s.caller.failed(s.dir, s.phase, timedOut)
		if ch.conn == nil || ch.closed {
			return
		}
	}
}

// drain lets the streams end; close ends the channel for good.
func (ch *channel) drain() {
	ch.draining = true
	if ch.streams == 0 {
		ch.close()
	}
}

func (ch *channel) close() {
	if ch.closed {
		return
	}
	ch.closed = true
	ch.host.worker.Timers.Stop(&ch.timer)
	if ch.conn != nil {
		ch.conn.Close()
	}
	ch.target.forget(ch)
}

// left tells that a stream of the channel is over.
func (ch *channel) left() {
	ch.streams--
	if ch.draining && ch.streams == 0 {
		ch.close()
	}
}

func histogramOf(p filterv1.Phase) int {
	switch p {
	case filterv1.Phase_PHASE_REQUEST_HEADERS, filterv1.Phase_PHASE_REQUEST_TRAILERS:
		return counters.PluginRequestHeadersTime
	case filterv1.Phase_PHASE_REQUEST_BODY:
		return counters.PluginRequestBodyTime
	case filterv1.Phase_PHASE_RESPONSE_HEADERS, filterv1.Phase_PHASE_RESPONSE_TRAILERS:
		return counters.PluginResponseHeadersTime
	case filterv1.Phase_PHASE_RESPONSE_BODY:
		return counters.PluginResponseBodyTime
	case filterv1.Phase_PHASE_CONNECT, filterv1.Phase_PHASE_READ, filterv1.Phase_PHASE_WRITE:
		return counters.PluginNetworkTime
	}
	return -1
}
