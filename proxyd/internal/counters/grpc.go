package counters

import (
	"strconv"

	statsv1 "retinue.dev/services/api/stats/v1"
)

// Cells of a gRPC method: one for each status, and one for requests that ended without.
const (
	GRPCNone  = 17
	GRPCCells = GRPCNone + 1
)

// GRPC is the cells of one method.
type GRPC [GRPCCells]uint64

func grpcFields() (fields []*statsv1.Field) {
	for status := range GRPCCells {
		value := strconv.Itoa(status)
		if status == GRPCNone {
			value = "none"
		}
		fields = append(fields, labelled(field(counter, "downstream_rq", "gRPC requests by method and status"), "grpc_status", value))
	}
	return fields
}
