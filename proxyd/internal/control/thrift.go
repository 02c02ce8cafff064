package control

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// thriftEvery is how often a process looks whether it is idle.
	thriftEvery = 5 * time.Second
	// idleTurns is what all loops together turn for their sockets in that time when there is next to nothing to do. Timers are not
	// counted: after a burst of connections they go off one by one.
	idleTurns = 250
	// worthCollecting is how many bytes must have been allocated since the last time.
	worthCollecting = 1 << 20
	// manyGone is how many connections fewer than before are worth it as well: closing allocates nothing.
	manyGone = 500
)

// thrift decides when memory goes back to the system. Collections are rare by design, and one that never comes keeps what a burst of
// connections has needed: so an idle process collects once, when it costs nobody anything.
type thrift struct {
	turns, allocated uint64
	connections      uint64 // most of them since the last time
}

// due is told the busy turns of all loops and the bytes allocated, both since the start, and the connections that there are.
func (t *thrift) due(turns, allocated, connections uint64) bool {
	idle := turns-t.turns < idleTurns
	t.turns, t.connections = turns, max(t.connections, connections)
	if !idle || allocated-t.allocated < worthCollecting && t.connections-connections < manyGone {
		return false
	}
	t.allocated, t.connections = allocated, connections
	return true
}

func (s *Server) beThrifty(ctx context.Context) {
	tick := time.NewTicker(thriftEvery)
	defer tick.Stop()
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	for t := (thrift{}); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		turns := uint64(0)
		for _, l := range s.loops.all() {
			turns += l.BusyTurns()
		}
		metrics.Read(sample)
		if t.due(turns, sample[0].Value.Uint64(), s.loops.connections()) {
			debug.FreeOSMemory()
			metrics.Read(sample) // what reading and collecting allocate is not a reason for the next time
			t.allocated = sample[0].Value.Uint64()
		}
	}
}
