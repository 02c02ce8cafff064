// Package overload decides how far the process defends itself when a resource runs short: Envoy's overload manager.
//
// A Manager belongs to the main side. At every turn it is given the pressure of each resource and answers the Levels of the
// actions, which main posts to every worker; workers read their own copy. Nothing here waits, measures or locks.
package overload

import (
	"fmt"

	configv1 "retinue.dev/services/api/config/v1"
)

// Resource is what may run short.
type Resource uint8

// The resources.
const (
	Memory      Resource = iota // what a collection of the heap would leave, of the limit
	Descriptors                 // open, of the process's limit
	Connections                 // of clients, of max_connections
	NumResources
)

// ResourceNames are the resources' names in metrics and logs.
var ResourceNames = [NumResources]string{"memory", "descriptors", "connections"}

// Action is what the process does about it. Names are Envoy's.
type Action uint8

// The actions, in the order in which they are meant to begin.
const (
	DisableKeepalive  Action = iota // responses end their connections
	StopRequests                    // requests are answered 503
	RejectConnections               // connections are closed at once
	ResetStreams                    // the streams that hold most memory are reset
	ReduceTimeouts                  // idle time-outs are shorter; the level is what is cut off them
	ShrinkHeap                      // memory goes back to the system
	NumActions
)

// ActionNames are the actions' names in the configuration, metrics and logs.
var ActionNames = [NumActions]string{"disable_http_keepalive", "stop_accepting_requests", "reject_incoming_connections", "reset_high_memory_stream", "reduce_timeouts", "shrink_heap"}

// Full is the level of an action that goes all the way, and the pressure of a resource of which nothing is left: a million.
const Full = 1_000_000

// Levels say how far each action goes, of Full: the share of responses, requests, connections and of the greatest number of streams.
type Levels [NumActions]uint32

// Draw decides one case of an action by a random number.
func (l *Levels) Draw(a Action, random uint64) bool {
	level := l[a]
	return level >= Full || level > 0 && uint32(random%Full) < level
}

// Shorten is what ReduceTimeouts leaves of a time-out.
func (l *Levels) Shorten(timeout int64) int64 {
	if l[ReduceTimeouts] == 0 {
		return timeout
	}
	return timeout - int64(float64(timeout)*float64(l[ReduceTimeouts])/Full)
}

// trigger is one resource of one action.
type trigger struct {
	from, full uint32 // the action begins above from, and goes all the way at full
	release    uint32 // an action all of whose triggers are steps ends below it
}

func (t *trigger) level(pressure uint32, was bool) uint32 {
	switch {
	case t.full == 0:
		return 0
	case pressure >= t.full:
		return Full
	case t.from < t.full:
		if pressure <= t.from {
			return 0
		}
		return uint32(uint64(pressure-t.from) * Full / uint64(t.full-t.from))
	case was && pressure > t.release:
		return Full
	}
	return 0
}

// Manager keeps the levels. One goroutine's.
type Manager struct {
	triggers [NumActions][NumResources]trigger
	most     Levels // of actions that never go all the way
	on       [NumActions][NumResources]bool
	levels   Levels
}

// actions are the actions by their numbers in the contract.
var actions = map[configv1.OverloadAction_Kind]Action{
	configv1.OverloadAction_KIND_DISABLE_HTTP_KEEPALIVE:      DisableKeepalive,
	configv1.OverloadAction_KIND_STOP_ACCEPTING_REQUESTS:     StopRequests,
	configv1.OverloadAction_KIND_REJECT_INCOMING_CONNECTIONS: RejectConnections,
	configv1.OverloadAction_KIND_RESET_HIGH_MEMORY_STREAM:    ResetStreams,
	configv1.OverloadAction_KIND_REDUCE_TIMEOUTS:             ReduceTimeouts,
	configv1.OverloadAction_KIND_SHRINK_HEAP:                 ShrinkHeap,
}

// New makes a manager that has seen nothing yet; without an object none of its actions ever begins.
func New(o *configv1.Overload) (*Manager, error) {
	m := &Manager{}
	for _, configured := range o.GetActions() {
		a, known := actions[configured.GetKind()]
		if !known {
			return nil, fmt.Errorf("overload: action %v is not known to this version", configured.GetKind())
		}
		m.most[a] = Full - min(configured.GetMinScale(), Full)
		for r, full := range [NumResources]uint32{Memory: configured.GetMemory(), Descriptors: configured.GetDescriptors(), Connections: configured.GetConnections()} {
			m.triggers[a][r] = trigger{full: full, from: full - min(full, configured.GetScaling()), release: full - min(full, configured.GetRelease())}
		}
	}
	return m, nil
}

// Inherit takes over what another manager has seen, so that an action that is on is not let go by a change of configuration.
func (m *Manager) Inherit(from *Manager) { m.on, m.levels = from.on, from.levels }

// Turn looks at the pressures, of Full, and answers the levels.
func (m *Manager) Turn(pressures [NumResources]uint32) Levels {
	m.levels = Levels{}
	for a := range NumActions {
		for r := range NumResources {
			level := m.triggers[a][r].level(pressures[r], m.on[a][r])
			m.on[a][r] = level > 0
			m.levels[a] = max(m.levels[a], level)
		}
		m.levels[a] = uint32(uint64(m.levels[a]) * uint64(m.most[a]) / Full)
	}
	return m.levels
}

// Cause is the first resource that an action is on for.
func (m *Manager) Cause(a Action) string {
	for r := range NumResources {
		if m.on[a][r] {
			return ResourceNames[r]
		}
	}
	return ""
}
