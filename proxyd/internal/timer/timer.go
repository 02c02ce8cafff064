// Package timer is the coarse timer wheel of one worker: many timers, set and stopped in constant time, none exact.
//
// A timer fires up to one tick (4 ms) late and never early. Whoever has activity to watch writes a timestamp and
// leaves the timer alone; when it fires the owner looks at the timestamp and sets it again. So a request costs no timer
// operation. Everything runs on the worker's thread.
package timer

import (
	"math"
	"math/bits"
)

const (
	tickShift = 22 // 1 << 22 ns = 4.19 ms
	slotBits  = 6
	slots     = 1 << slotBits
	levels    = 6 // 64^6 ticks: nine years
	// maxTicks keeps the furthest deadline inside the last level.
	maxTicks = 1<<(slotBits*levels) - slots
)

// Tick is the resolution, in nanoseconds.
const Tick = int64(1) << tickShift

// Callback is called on the worker's thread when a timer fires. The timer is stopped then and may be set again.
type Callback interface{ OnTimer(t *Timer, now int64) }

// Timer is embedded in its owner; set Callback once. The zero value is stopped.
type Timer struct {
	Callback   Callback
	next, prev *Timer // ring of a slot
	due        int64  // tick
	level      int8
	slot       int8
}

// Active tells whether the timer is set.
func (t *Timer) Active() bool { return t.next != nil }

// Wheel is a hierarchy of 6 levels with 64 slots each. The zero value is not ready: call Init.
type Wheel struct {
	now      int64 // tick that was run last
	ring     [levels][slots]Timer
	firing   Timer          // ring of the slot that is being run
	occupied [levels]uint64 // a bit for each slot that is not empty
	count    int
}

// Init starts the wheel at now, in nanoseconds of the worker's clock.
func (w *Wheel) Init(now int64) {
	w.now = now >> tickShift
	for l := range w.ring {
		for s := range w.ring[l] {
			head := &w.ring[l][s]
			head.next, head.prev = head, head
		}
	}
}

// Len is the number of timers that are set.
func (w *Wheel) Len() int { return w.count }

// Set makes t fire at deadline (ns) or up to a tick later; a deadline that has passed fires with the next Run.
// A timer that is set already is moved.
func (w *Wheel) Set(t *Timer, deadline int64) {
	if t.next != nil {
		w.unlink(t)
	} else {
		w.count++
	}
	t.due = (deadline + Tick - 1) >> tickShift
	w.place(t)
}

// Stop takes t off the wheel. Stopping a stopped timer does nothing.
func (w *Wheel) Stop(t *Timer) {
	if t.next != nil {
		w.unlink(t)
		w.count--
	}
}

func (w *Wheel) place(t *Timer) {
	due := max(t.due, w.now+1)
	if due-w.now > maxTicks {
		due = w.now + maxTicks
	}
	level := 0
	for delta := due - w.now; delta >= slots && level < levels-1; delta >>= slotBits {
		level++
	}
	slot := int(due>>(slotBits*level)) & (slots - 1)
	head := &w.ring[level][slot]
	t.level, t.slot = int8(level), int8(slot)
	t.next, t.prev = head, head.prev
	head.prev.next, head.prev = t, t
	w.occupied[level] |= 1 << slot
}

func (w *Wheel) unlink(t *Timer) {
	t.prev.next, t.next.prev = t.next, t.prev
	t.next, t.prev = nil, nil
	head := &w.ring[t.level][t.slot]
	if head.next == head {
		w.occupied[t.level] &^= 1 << t.slot
	}
}

// Run fires every timer that is due at now. Timers set by callbacks fire in a later Run.
func (w *Wheel) Run(now int64) {
	target := now >> tickShift
	for w.now < target {
		if w.count == 0 {
			w.now = target
			return
		}
		next := w.nextTick()
		if next > target {
			w.now = target
			return
		}
		w.now = next
		w.turn(now)
	}
}

// nextTick is the first tick after now at which a slot that is not empty comes up, on any level.
func (w *Wheel) nextTick() int64 {
	first := int64(math.MaxInt64)
	for level := range w.occupied {
		occupied := w.occupied[level]
		if occupied == 0 {
			continue
		}
		shift := uint(slotBits * level)
		round := w.now >> shift
		at := round & (slots - 1)
		slot := int64(slots) + int64(bits.TrailingZeros64(occupied))
		if ahead := occupied &^ (1<<uint(at+1) - 1); at < slots-1 && ahead != 0 {
			slot = int64(bits.TrailingZeros64(ahead))
		}
		first = min(first, (round-at+slot)<<shift)
	}
	return first
}

func (w *Wheel) turn(now int64) {
	for level := 1; level < levels && w.now&(1<<(slotBits*level)-1) == 0; level++ {
		slot := int(w.now>>(slotBits*level)) & (slots - 1)
		w.spread(level, slot)
	}
	head := &w.ring[0][w.now&(slots-1)]
	if head.next == head {
		return
	}
	// Take the whole slot first: a callback may set timers into it, for 64 ticks on.
	due := &w.firing
	due.next, due.prev = head.next, head.prev
	due.next.prev, due.prev.next = due, due
	head.next, head.prev = head, head
	w.occupied[0] &^= 1 << (w.now & (slots - 1))
	for due.next != due {
		t := due.next
		t.prev.next, t.next.prev = t.next, t.prev
		t.next, t.prev = nil, nil
		if t.due > w.now { // beyond the horizon when it was set
			w.place(t)
			continue
		}
		w.count--
		t.Callback.OnTimer(t, now)
	}
}

// spread moves the timers of a higher slot to the levels below.
func (w *Wheel) spread(level, slot int) {
	head := &w.ring[level][slot]
	t := head.next
	head.next, head.prev = head, head
	w.occupied[level] &^= 1 << slot
	for t != head {
		next := t.next
		// A timer due right now belongs to the slot that this turn is about to run.
		if t.due <= w.now {
			first := &w.ring[0][w.now&(slots-1)]
			t.level, t.slot = 0, int8(w.now&(slots-1))
			t.next, t.prev = first, first.prev
			first.prev.next, first.prev = t, t
			w.occupied[0] |= 1 << t.slot
		} else {
			w.place(t)
		}
		t = next
	}
}

// Next is when to call Run again, in nanoseconds of the clock: the next tick that may fire something, never later than
// the first due timer. ok is false when no timer is set.
func (w *Wheel) Next() (at int64, ok bool) {
	if w.count == 0 {
		return 0, false
	}
	return w.nextTick() << tickShift, true
}
