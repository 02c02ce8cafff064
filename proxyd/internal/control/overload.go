package control

import (
	"context"
	"runtime/debug"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/hcm"
	"retinue.dev/proxyd/internal/overload"
	configv1 "retinue.dev/services/api/config/v1"
)

// shrinkEvery is how often memory goes back to the system while shrink_heap is on: Envoy's interval.
const shrinkEvery = 10 * time.Second

// idleRefresh is how often is looked whether the configuration has an overload block by now.
const idleRefresh = time.Second

// watchResources measures what may run short and tells the workers how far to go about it.
func (s *Server) watchResources(ctx context.Context) {
	meter := overload.NewMeter()
	var object *configv1.Overload
	manager, _ := overload.New(nil) // without an object nothing can be wrong
	var told overload.Levels
	var shrunk time.Time
	for {
		s.mu.Lock()
		wanted := s.current.Settings.Overload
		limit := s.maxConnections(s.current)
		s.mu.Unlock()
		if wanted != object {
			next, err := overload.New(wanted)
			if err != nil {
				s.env.Log.Error("the overload actions stay as they were", "error", err)
			} else {
				next.Inherit(manager)
				manager = next
			}
			object = wanted
		}
		wait := idleRefresh
		var pressures [overload.NumResources]uint32
		if object != nil {
			wait = max(time.Duration(object.GetRefreshIntervalMs())*time.Millisecond, 50*time.Millisecond)
			pressures = s.pressures(meter, object.GetMaxMemoryBytes(), limit)
		}
		levels := manager.Turn(pressures)
		s.showOverload(pressures, levels)
		s.logOverload(manager, told, levels)
		if levels != told || levels[overload.ResetStreams] > 0 {
			told = levels
			s.loops.each(func(l *loop) { l.defend(levels) })
		}
		if levels[overload.ShrinkHeap] == 0 {
			shrunk = time.Time{}
		} else if time.Since(shrunk) >= shrinkEvery {
			shrunk = time.Now()
			s.shrink()
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// shrink gives back what nobody uses: the workers' buffers, and what a collection leaves free of the heap.
func (s *Server) shrink() {
	s.loops.each(func(l *loop) { l.Trim() })
	debug.FreeOSMemory()
	s.mu.Lock()
	s.server[counters.ServerOverloadShrinks]++
	s.mu.Unlock()
}

func (s *Server) pressures(meter *overload.Meter, memory, connections uint64) (p [overload.NumResources]uint32) {
	if memory == 0 {
		memory = uint64(memoryLimit("/"))
	}
	if memory > 0 {
		p[overload.Memory] = overload.Pressure(meter.Memory(), memory)
	}
	p[overload.Descriptors] = overload.Pressure(meter.Descriptors(), s.descriptors)
	p[overload.Connections] = overload.Pressure(s.loops.connections(), connections)
	return p
}

func (s *Server) showOverload(pressures [overload.NumResources]uint32, levels overload.Levels) {
	const percent = overload.Full / 100
	s.mu.Lock()
	defer s.mu.Unlock()
	for r, p := range pressures {
		s.server[counters.ServerOverloadPressure+r] = uint64(p / percent)
	}
	for a, level := range levels {
		s.server[counters.ServerOverloadScale+a] = uint64((level + percent - 1) / percent)
	}
}

func (s *Server) logOverload(m *overload.Manager, before, now overload.Levels) {
	for a := range overload.NumActions {
		switch {
		case before[a] == 0 && now[a] > 0:
			s.env.Log.Warn("overload: an action begins", "action", overload.ActionNames[a], "resource", m.Cause(a))
		case before[a] > 0 && now[a] == 0:
			s.env.Log.Info("overload: an action ends", "action", overload.ActionNames[a])
		}
	}
}

// defend takes the levels, lets connections look at time-outs that have become shorter, and resets the streams that hold most
// memory where they say so.
func (l *loop) defend(levels overload.Levels) {
	shorter := levels[overload.ReduceTimeouts] > l.http.Overload[overload.ReduceTimeouts]
	*l.http.Overload = levels
	if levels[overload.ResetStreams] == 0 && !shorter {
		return
	}
	var victims hcm.Victims
	for _, f := range l.filters() {
		h, ok := f.(*hcm.Filter)
		if !ok {
			continue
		}
		if shorter {
			h.Rearm()
		}
		if levels[overload.ResetStreams] > 0 {
			h.Weigh(&victims)
		}
	}
	victims.Reset(levels[overload.ResetStreams])
}
