package filter

import (
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/timer"
)

const detailPerTryIdleTimeout = "upstream_per_try_idle_timeout"

// watch begins to look whether something comes of a try (Envoy's per_try_idle_timeout): once its request is complete and a connection
// has it, until its response is.
func (r *Router) watch(at *attempt) {
	if r.idle == 0 {
		return
	}
	s := at.stream
	at.active = s.Worker.Now()
	if !r.watcher.Active() {
		s.Worker.Timers.Set(&r.watcher, at.active+r.idle)
	}
}

// moves notes that something came of a try.
func (at *attempt) moves() {
	if at.router.idle > 0 && at.active > 0 {
		at.active = at.stream.Worker.Now()
	}
}

// moved begins the time of every try anew: while the client did not keep up nobody read what came of them.
func (r *Router) moved() {
	if r.idle == 0 {
		return
	}
	r.try.moves()
	for at := r.older; at != nil; at = at.next {
		at.moves()
	}
}

// lookIdle ends a try without bytes for too long. Hedged, it goes on beside the next, as with Envoy.
func (r *Router) lookIdle(now int64) {
	s := r.attempt.stream
	if r.downAbove {
		r.moved()
	}
	due, still := int64(0), (*attempt)(nil)
	look := func(at *attempt) {
		if at.encoder != nil && at.active > 0 && (still == nil || at.active+r.idle < due) {
			due, still = at.active+r.idle, at
		}
	}
	look(r.try)
	for at := r.older; at != nil; at = at.next {
		look(at)
	}
	if still == nil || s.Tunnel() {
		return
	}
	if due > now {
		s.Worker.Timers.Set(&r.watcher, due)
		return
	}
	if !r.headersSeen {
		r.late(still)
		if r.retry.hedge {
			still.active = 0
			if !still.overtaken && !r.retry.waiting && still == r.try {
				still.overtaken = r.again(s, true)
			}
			s.Worker.Timers.Set(&r.watcher, now+timer.Tick) // the others may be late too
			return
		}
	}
	r.cut(still, counters.ClusterUpstreamRqPerTryIdleTimeout, "per try idle timeout", detailPerTryIdleTimeout)
}
