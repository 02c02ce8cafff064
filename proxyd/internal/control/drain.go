package control

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/listener"
	restartv1 "retinue.dev/services/api/restart/v1"
)

// parts are restart/v1's names of a listener's.
var parts = map[restartv1.Part]listener.Part{
	restartv1.Part_PART_ALL: listener.All, restartv1.Part_PART_FIRST_HALF: listener.FirstHalf, restartv1.Part_PART_SECOND_HALF: listener.SecondHalf,
}

// serve makes every listener accept from a part of its sockets, and takes a drain back: the generation serves, serves beside a canary
// or as one, or serves again after an upgrade that failed.
func (s *Server) serve(part restartv1.Part) error {
	accept, ok := parts[part]
	if !ok {
		return fmt.Errorf("a part of the sockets that this version does not know: %v", part)
	}
	s.ops.Lock()
	defer s.ops.Unlock()
	switch err := s.renew(); {
	case err == nil:
	case accept != listener.All:
		return err
	default:
		s.env.Log.Warn("accepting from the sockets that were known", "error", err)
	}
	s.stopGiving()
	s.builder.Failing.Store(false)
	if s.shutdown != nil {
		s.shutdown.Stop()
		s.shutdown = nil
	}
	s.mu.Lock()
	s.accepting, s.draining, s.part = true, false, accept
	s.gauges()
	s.mu.Unlock()
	s.fetch()
	errs := make([]error, s.loops.count())
	s.loops.each(func(l *loop) {
		for _, b := range l.listeners {
			for _, f := range b.filters {
				f.Undrain()
			}
			errs[l.ID] = errors.Join(errs[l.ID], b.listener.Start(accept))
		}
	})
	s.env.Log.Info("accepting connections", "generation", s.generation, "part", strings.ToLower(strings.TrimPrefix(part.String(), "PART_")))
	return errors.Join(errs...)
}

func partOf(accepts listener.Part) restartv1.Part {
	for part, p := range parts {
		if p == accepts {
			return part
		}
	}
	return restartv1.Part_PART_ALL
}

func (s *Server) stopAccepting() {
	s.ops.Lock()
	defer s.ops.Unlock()
	s.stopListeners()
}

func (s *Server) stopListeners() {
	s.mu.Lock()
	s.accepting = false
	s.gauges()
	s.mu.Unlock()
	s.loops.each(func(l *loop) {
		for _, b := range l.listeners {
			b.listener.Stop()
		}
		for _, b := range l.leaving {
			if b.emptying > 0 {
				b.listener.Stop()
			}
		}
	})
}

// drain lets connections end: gradually over a time, 0 for drain_time, or immediately with their next response. What is left at shutdownTime is
// cut and counted. What can move goes to the successor meanwhile, unless that is 0. A second drain changes how, until when and
// where to.
func (s *Server) drain(cause string, shutdownTime, over time.Duration, immediate bool, successor uint64) {
	s.ops.Lock()
	defer s.ops.Unlock()
	s.stopListeners()
	s.builder.Failing.Store(successor == 0)
	s.mu.Lock()
	s.draining = true
	s.gauges()
	if over == 0 {
		over = s.current.Settings.DrainTime
	}
	s.mu.Unlock()
	if immediate {
		over = 0
	}
	s.give(successor) // before the drain, which would close what can move
	s.loops.each(func(l *loop) {
		for _, f := range l.filters() {
			f.Drain(over)
		}
	})
	if s.shutdown != nil {
		s.shutdown.Stop()
	}
	var timer *time.Timer
	timer = time.AfterFunc(shutdownTime, func() {
		s.ops.Lock()
		defer s.ops.Unlock()
		if s.shutdown == timer { // else it was taken back meanwhile
			s.cutAll("shutdown_time")
		}
	})
	s.shutdown = timer
	s.env.Log.Info("draining", "cause", cause, "connections", s.loops.connections(), "shutdown_time", shutdownTime.String(), "successor", successor)
}

// terminate cuts what is left and ends the process.
func (s *Server) terminate() {
	s.ops.Lock()
	defer s.ops.Unlock()
	s.stopListeners()
	s.cutAll("restartd says so")
}

// cutAll closes every connection and ends the process; with ops held.
func (s *Server) cutAll(why string) {
	s.stopGiving()
	s.tellCut(s.cutBy((*loop).cutAll), why)
	s.finish(nil)
}

// cutLeft closes what is left of listeners that went long enough ago.
func (s *Server) cutLeft() {
	s.tellCut(s.cutBy((*loop).cutLeft), "their listener left the configuration")
}

func (s *Server) cutBy(end func(*loop) cuts) cuts {
	each := make([]cuts, s.loops.count())
	s.loops.each(func(l *loop) { each[l.ID] = end(l) })
	sum := cuts{}
	for _, n := range each {
		sum.add(n)
	}
	return sum
}

// tellCut counts and reports what was closed by force.
func (s *Server) tellCut(n cuts, why string) {
	if n.total() == 0 {
		return
	}
	s.mu.Lock()
	s.cut += uint64(n.total())
	if s.cutWhat == nil {
		s.cutWhat = cuts{}
	}
	s.cutWhat.add(n)
	s.mu.Unlock()
	s.count(counters.ServerConnectionsCut, uint64(n.total()))
	s.env.Log.Warn("connections were cut", "count", n.total(), "what", n.String(), "why", why)
}

// report is what restartd is told.
func (s *Server) report() *restartv1.Report {
	s.mu.Lock()
	r := &restartv1.Report{Accepting: s.accepting, Part: partOf(s.part), Draining: s.draining, ConnectionsCut: s.cut, CutWhat: s.cutWhat.String(), ConnectionsMoved: s.moved.Load(), ConnectionsTaken: s.taken.Load()}
	s.mu.Unlock()
	r.Connections = s.loops.connections()
	r.Streams = s.stats.Streams()
	r.Requests, r.OwnErrors = s.stats.Requests()
	r.StalledMs = uint32(s.loops.stalled() / time.Millisecond)
	return r
}

// successor is the generation that connections go to; 0 for none.
func (s *Server) successor() uint64 {
	s.ops.Lock()
	defer s.ops.Unlock()
	if s.giving == nil {
		return 0
	}
	return s.giving.successor
}
