package counters

import (
	"context"
	"unsafe"

	statsv1 "retinue.dev/services/api/stats/v1"
)

// The limits of a circuit breaker, in the order of their cells.
const (
	BreakerCx = iota
	BreakerRqPending
	BreakerRq
	BreakerRqRetry
	BreakerLimits
)

// routingPriorities are the values of the label priority, by the priority's number.
var routingPriorities = [...]string{"default", "high"}

// BreakersLeft is what one priority of a cluster has left of its limits. The main side writes it.
type BreakersLeft [BreakerLimits]uint64

// openFields tell which limits of a cluster are reached: Envoy's circuit_breakers.<priority>.*_open.
func openFields() (fields []*statsv1.Field) {
	for _, p := range routingPriorities {
		for _, limit := range [...][2]string{
			{"cx_open", "1 while there are max_connections"},
			{"rq_pending_open", "1 while max_pending_requests wait"},
			{"rq_open", "1 while max_requests are under way"},
			{"rq_retry_open", "1 while max_retries, or those of the budget, are under way"},
		} {
			fields = append(fields, labelled(field(gauge, "circuit_breakers_"+limit[0], limit[1]+", as it was within the last second"), "priority", p))
		}
	}
	return fields
}

func leftFields() []*statsv1.Field {
	return []*statsv1.Field{
		field(gauge, "remaining_cx", "connections to the limit"),
		field(gauge, "remaining_pending", "waiting requests to the limit"),
		field(gauge, "remaining_rq", "requests to the limit"),
		field(gauge, "remaining_retries", "retries to the limit"),
	}
}

// ClusterMains returns the main side's cells of clusters by name.
func (s *Set) ClusterMains(ctx context.Context, names []string) []*Cluster {
	wants := make([]wanted, len(names))
	for i, name := range names {
		wants[i] = want(schemaCluster, "cluster", name)
	}
	out := make([]*Cluster, len(names))
	for i, g := range s.resolve(ctx, wants) {
		out[i] = (*Cluster)(unsafe.Pointer(unsafe.SliceData(g.cells[s.workers])))
	}
	return out
}

// BreakersLeft returns the main side's cells of what a priority of a cluster has left.
func (s *Set) BreakersLeft(ctx context.Context, cluster string, priority int) *BreakersLeft {
	g := s.resolve(ctx, []wanted{wantLeft(cluster, priority)})[0]
	return (*BreakersLeft)(unsafe.Pointer(unsafe.SliceData(g.cells[s.workers])))
}

func wantLeft(cluster string, priority int) wanted {
	name := routingPriorities[priority]
	return wanted{
		key: Schemas[schemaBreakersLeft].GetName() + "\x00" + cluster + "\x00" + name, schema: schemaBreakersLeft,
		labels: []*statsv1.Label{{Name: "cluster", Value: cluster}, {Name: "priority", Value: name}},
	}
}
