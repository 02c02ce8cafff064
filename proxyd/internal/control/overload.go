package control

import (
	"context"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/hcm"
	"retinue.dev/proxyd/internal/overload"
	configv1 "retinue.dev/services/api/config/v1"
)

// idleRefresh is how often is looked whether the configuration has an overload block by now.
const idleRefresh = time.Second

// watchResources measures what may run short and tells the workers how far to go about it.
func (s *Server) watchResources(ctx context.Context) {
	meter := overload.NewMeter()
	var object *configv1.Overload
	manager, _ := overload.New(nil) // without an object nothing can be wrong
	var told overload.Levels
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
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
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

// defend takes the levels, and resets the streams that hold most memory where they say so.
func (l *loop) defend(levels overload.Levels) {
	*l.http.Overload = levels
	if levels[overload.ResetStreams] == 0 {
		return
	}
	var victims hcm.Victims
	for _, f := range l.filters() {
		if h, ok := f.(*hcm.Filter); ok {
			h.Weigh(&victims)
		}
	}
	victims.Reset(levels[overload.ResetStreams])
}
