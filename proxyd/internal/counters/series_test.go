package counters

import (
	"testing"

	"retinue.dev/libs/region"
	statsv1 "retinue.dev/services/api/stats/v1"
)

// TestCellsMatchTheTables holds the constants to the order of the declared fields: a slip would count under a wrong name.
func TestCellsMatchTheTables(t *testing.T) {
	at := func(schema int, name string) int {
		cell := 0
		for _, f := range Schemas[schema].GetFields() {
			if f.GetName() == name {
				return cell
			}
			cell++
			if f.GetKind() == statsv1.Kind_KIND_HISTOGRAM {
				cell += region.HistogramCells - 1
			}
		}
		t.Fatalf("schema %q has no field %q", Schemas[schema].GetName(), name)
		return 0
	}
	for _, test := range []struct {
		schema int
		name   string
		want   int
	}{
		{schemaCluster, "upstream_cx_total", ClusterUpstreamCxTotal},
		{schemaCluster, "upstream_cx_active_high", ClusterUpstreamCxActive + 1}, // where the breakers look for it
		{schemaCluster, "upstream_rq_active_high", ClusterUpstreamRqActive + 1},
		{schemaCluster, "upstream_rq_pending_active_high", ClusterUpstreamRqPendingActive + 1},
		{schemaCluster, "upstream_rq_retry_active_high", ClusterUpstreamRqRetryActive + 1},
		{schemaCluster, "upstream_cx_overflow_high", ClusterUpstreamCxOverflow + 1},
		{schemaCluster, "upstream_rq_pending_overflow_high", ClusterUpstreamRqPendingOverflow + 1},
		{schemaCluster, "upstream_rq_retry_overflow_high", ClusterUpstreamRqRetryOverflow + 1},
		{schemaCluster, "circuit_breakers_cx_open", ClusterBreakersOpen + BreakerCx},
		{schemaCluster, "circuit_breakers_rq_pending_open", ClusterBreakersOpen + BreakerRqPending},
		{schemaCluster, "circuit_breakers_rq_open", ClusterBreakersOpen + BreakerRq},
		{schemaCluster, "circuit_breakers_rq_retry_open", ClusterBreakersOpen + BreakerRqRetry},
		{schemaBreakersLeft, "remaining_retries", BreakerRqRetry},
		{schemaCluster, "outlier_detection_ejections_enforced_consecutive_local_origin_failure", ClusterOutlierEjections5xx + 4},
		{schemaCluster, "outlier_detection_ejections_detected_consecutive_5xx", ClusterOutlierDetected},
		{schemaCluster, "outlier_detection_ejections_detected_consecutive_local_origin_failure", ClusterOutlierDetected + 4},
		{schemaCluster, "upstream_cx_none_healthy", ClusterUpstreamCxNoneHealthy},
		{schemaCluster, "upstream_cx_protocol_error", ClusterUpstreamCxProtocolError},
		{schemaCluster, "upstream_rq_total", ClusterUpstreamRqTotal},
		{schemaCluster, "upstream_rq_timeout", ClusterUpstreamRqTimeout},
		{schemaCluster, "upstream_rq_cancelled", ClusterUpstreamRqCancelled},
		{schemaCluster, "membership_healthy", ClusterMembershipHealthy},
		{schemaCluster, "upstream_rq_xx", ClusterUpstreamRqXX},
		{schemaCluster, "upstream_rq_time", ClusterUpstreamRqTime},
		{schemaHTTP, "downstream_cx_protocol_error", HTTPDownstreamCxProtocolError},
		{schemaHTTP, "downstream_cx_overload_disable_keepalive", HTTPDownstreamCxOverloadDisableKeepalive},
		{schemaHTTP, "downstream_cx_upgrades_active", HTTPDownstreamCxUpgradesActive},
		{schemaHTTP, "downstream_rq_total", HTTPDownstreamRqTotal},
		{schemaHTTP, "downstream_rq_tx_reset", HTTPDownstreamRqTxReset},
		{schemaHTTP, "no_cluster", HTTPNoCluster},
		{schemaHTTP, "rs_too_large", HTTPRsTooLarge},
		{schemaHTTP, "downstream_rq_xx", HTTPDownstreamRqXX},
		{schemaHTTP, "downstream_rq_time", HTTPDownstreamRqTime},
		{schemaListener, "downstream_cx_shed", ListenerDownstreamCxShed},
		{schemaTCP, "idle_timeout", TCPIdleTimeout},
		{schemaTCP, "downstream_flow_control_resumed_reading_total", TCPFlowControlResumedReadingTotal},
		{schemaServer, "connections_cut", ServerConnectionsCut},
		{schemaServer, "watchdog_miss", ServerWatchdogMiss},
		{schemaWorker, "access_log_dropped", WorkerAccessLogDropped},
	} {
		if got := at(test.schema, test.name); got != test.want {
			t.Errorf("%s is cell %d of the table, the constant says %d", test.name, got, test.want)
		}
	}
	for i, want := range []int{ClusterCells, HTTPCells, ListenerCells, TCPCells, ServerCells, WorkerCells} {
		if got := cells(i); got != want {
			t.Errorf("schema %q has %d cells, the constant says %d", Schemas[i].GetName(), got, want)
		}
	}
}
