// Package counters is proxyd's side of the stats region: the tables of its series, and handles to their cells.
//
// A group of series (a cluster's, a listener's) is declared with one record and has contiguous cells in the sheet of every
// worker. A handle is a pointer to those cells as an array, so that counting is one plain store: c[ClusterUpstreamRqTotal]++.
// Names are Envoy's, below the prefix retinue_<schema>_.
package counters

import (
	"slices"
	"strconv"

	"retinue.dev/libs/region"
	"retinue.dev/proxyd/internal/http2"
	"retinue.dev/proxyd/internal/overload"
	statsv1 "retinue.dev/services/api/stats/v1"
)

// Cells of a cluster. The order is the order of the table below, which a test holds.
const (
	ClusterUpstreamCxTotal = iota
	ClusterUpstreamCxActive
	ClusterUpstreamCxActiveHigh // behind the gauge whose part it is
	ClusterUpstreamCxConnectFail
	ClusterUpstreamCxConnectTimeout
	ClusterUpstreamCxOverflow
	ClusterUpstreamCxOverflowHigh // behind the counter whose part it is
	ClusterUpstreamCxNoneHealthy
	ClusterUpstreamCxDestroy
	ClusterUpstreamCxDestroyWithActiveRq
	ClusterUpstreamCxIdleTimeout
	ClusterUpstreamCxMaxRequests
	ClusterUpstreamCxProtocolError
	ClusterUpstreamCxRxBytesTotal
	ClusterUpstreamCxTxBytesTotal
	ClusterUpstreamRqTotal
	ClusterUpstreamRqActive
	ClusterUpstreamRqActiveHigh // behind the gauge whose part it is
	ClusterUpstreamRqPendingTotal
	ClusterUpstreamRqPendingActive
	ClusterUpstreamRqPendingActiveHigh // behind the gauge whose part it is
	ClusterUpstreamRqPendingOverflow
	ClusterUpstreamRqPendingOverflowHigh // behind the counter whose part it is
	ClusterUpstreamRqTimeout
	ClusterUpstreamRqRxReset
	ClusterUpstreamRqTxReset
	ClusterUpstreamRqRetry
	ClusterUpstreamRqRetryActive
	ClusterUpstreamRqRetryActiveHigh // behind the gauge whose part it is
	ClusterUpstreamRqRetrySuccess
	ClusterUpstreamRqRetryOverflow
	ClusterUpstreamRqRetryOverflowHigh // behind the counter whose part it is
	ClusterUpstreamRqRetryLimitExceeded
	ClusterUpstreamRqPerTryTimeout
	ClusterUpstreamRqPerTryIdleTimeout
	ClusterUpstreamRqRetryBackoffExponential
	ClusterUpstreamRqRetryBackoffRatelimited
	ClusterRetryOrShadowAbandoned
	ClusterUpstreamRqCancelled
	ClusterUpstreamFlowControlPausedReadingTotal
	ClusterUpstreamFlowControlResumedReadingTotal
	ClusterHealthCheckAttempt
	ClusterHealthCheckSuccess
	ClusterHealthCheckFailure
	ClusterHealthCheckNetworkFailure
	ClusterHealthCheckPassiveFailure
	ClusterOutlierEjectionsActive
	ClusterOutlierEjectionsTotal
	ClusterOutlierEjections5xx
	ClusterOutlierEjectionsGateway
	ClusterOutlierEjectionsSuccessRate
	ClusterOutlierEjectionsFailurePercentage
	ClusterOutlierEjectionsLocalOrigin
	ClusterOutlierEjectionsOverflow
	ClusterMembershipTotal
	ClusterMembershipHealthy
	ClusterMembershipDegraded
	ClusterMembershipExcluded
	ClusterShadowTotal
	ClusterShadowGivenUp
	ClusterLBHealthyPanic
	ClusterLBSubsetsActive
	ClusterLBSubsetsSelected
	ClusterLBSubsetsFallback
	ClusterUpstreamCxHTTP1Total
	ClusterUpstreamCxHTTP2Total
	ClusterOutlierDetected                                    // 5 cells, as those of ejections
	ClusterBreakersOpen    = ClusterOutlierDetected + 5       // 4 cells for each priority, written by the main side
	ClusterHTTP2           = ClusterBreakersOpen + 8          // the events of HTTP/2
	ClusterUpstreamRqXX    = ClusterHTTP2 + http2.NumCounters // 5 cells: 1xx to 5xx
	ClusterUpstreamRqTime  = ClusterUpstreamRqXX + 5
	ClusterSSL             = ClusterUpstreamRqTime + region.HistogramCells // SSLCells
	ClusterCells           = ClusterSSL + SSLCells
)

// Cells of an HTTP connection manager.
const (
	HTTPDownstreamCxTotal = iota
	HTTPDownstreamCxActive
	HTTPDownstreamCxDestroy
	HTTPDownstreamCxProtocolError
	HTTPDownstreamCxIdleTimeout
	HTTPDownstreamCxMaxDurationReached
	HTTPDownstreamCxDrainClose
	HTTPDownstreamCxOverloadDisableKeepalive
	HTTPDownstreamCxRxBytesTotal
	HTTPDownstreamCxTxBytesTotal
	HTTPDownstreamCxUpgradesTotal
	HTTPDownstreamCxUpgradesActive
	HTTPDownstreamRqTotal
	HTTPDownstreamRqActive
	HTTPDownstreamRqCompleted
	HTTPDownstreamRqTimeout
	HTTPDownstreamRqHeaderTimeout
	HTTPDownstreamRqIdleTimeout
	HTTPDownstreamRqMaxDurationReached
	HTTPDownstreamRqTooLarge
	HTTPDownstreamRqRxReset
	HTTPDownstreamRqTxReset
	HTTPNoRoute
	HTTPNoCluster
	HTTPDownstreamRqOwnError
	HTTPRqRedirect
	HTTPRqRedirectedWithNormalizedPath
	HTTPRqDirectResponse
	HTTPRsTooLarge
	HTTPFlowControlPausedReadingTotal
	HTTPFlowControlResumedReadingTotal
	HTTPDownstreamCxHTTP1Total
	HTTPDownstreamCxHTTP2Total
	HTTPDownstreamRqHTTP1Total
	HTTPDownstreamRqHTTP2Total
	HTTPDownstreamRqOverloadClose
	HTTPDownstreamRqOverloadReset
	HTTPTracingRandomSampling
	HTTPTracingServiceForced
	HTTPTracingClientEnabled
	HTTPTracingContextSampled
	HTTPTracingNotTraceable
	HTTPHTTP2                                            // the events of HTTP/2
	HTTPDownstreamRqXX   = HTTPHTTP2 + http2.NumCounters // 5 cells
	HTTPDownstreamRqTime = HTTPDownstreamRqXX + 5
	HTTPCells            = HTTPDownstreamRqTime + region.HistogramCells
)

// Cells of a listener.
const (
	ListenerDownstreamCxTotal = iota
	ListenerDownstreamCxActive
	ListenerDownstreamCxOverflow
	ListenerDownstreamGlobalCxOverflow
	ListenerDownstreamCxShed
	ListenerNoFilterChainMatch
	ListenerDownstreamPreCxTimeout
	ListenerProxyProtocolRefused
	ListenerDownstreamCxOverloadReject
	ListenerSSL   // SSLCells
	ListenerCells = ListenerSSL + SSLCells
)

// Cells of a TCP proxy.
const (
	TCPDownstreamCxTotal = iota
	TCPDownstreamCxActive
	TCPDownstreamCxNoRoute
	TCPDownstreamCxRxBytesTotal
	TCPDownstreamCxTxBytesTotal
	TCPIdleTimeout
	TCPFlowControlPausedReadingTotal
	TCPFlowControlResumedReadingTotal
	TCPCells
)

// Cells of a plugin. Those of calls that came to nothing are in the order of the plugin room's failures.
const (
	PluginRqOK = iota
	PluginRqModified
	PluginRqResponded
	PluginRqFailed // 5 cells: unavailable, timeout, overflow, circuit_open, invalid_reply
	PluginRqCached = PluginRqFailed + 5 + iota - 4
	PluginRqSkipped
	PluginRqActive
	PluginFailedOpen
	PluginFailedClosed
	PluginRepliesLate
	PluginProtocolErrors
	PluginCircuitOpened
	PluginCxDestroy
	PluginRequestHeadersTime
	PluginRequestBodyTime     = PluginRequestHeadersTime + region.HistogramCells
	PluginResponseHeadersTime = PluginRequestBodyTime + region.HistogramCells
	PluginResponseBodyTime    = PluginResponseHeadersTime + region.HistogramCells
	PluginNetworkTime         = PluginResponseBodyTime + region.HistogramCells
	PluginQueueTime           = PluginNetworkTime + region.HistogramCells
	PluginCells               = PluginQueueTime + region.HistogramCells
)

// Cells of the process, written by its main side.
const (
	ServerLive = iota
	ServerState
	ServerHotRestartEpoch
	ServerUptime
	ServerConcurrency
	ServerSnapshotApplied
	ServerSnapshotRefused
	ServerAccessLogDropped
	ServerAccessLogWriteFailed
	ServerConnectionsCut
	ServerWatchdogMiss
	ServerOverloadShrinks
	ServerOverloadPressure                                                       // a cell for each resource
	ServerOverloadScale    = ServerOverloadPressure + int(overload.NumResources) // a cell for each action
	ServerCells            = ServerOverloadScale + int(overload.NumActions)
)

// Cells of a worker.
const (
	WorkerCxActive = iota
	WorkerAccessLogDropped
	WorkerSpansRecorded
	WorkerSpansDropped
	WorkerCells
)

// Cells of a certificate, written by the main side.
const (
	CertificateExpiration = iota
	CertificateCells
)

// Handles: the cells of one group in one sheet.
type (
	Cluster  [ClusterCells]uint64
	HTTP     [HTTPCells]uint64
	Listener [ListenerCells]uint64
	SSL      [SSLCells]uint64
	TCP      [TCPCells]uint64
	Plugin   [PluginCells]uint64
	Server   [ServerCells]uint64
	Worker   [WorkerCells]uint64

	Certificate [CertificateCells]uint64

	RateLimit [RateLimitCells]uint64
	Fault     [FaultCells]uint64
	CORS      [CORSCells]uint64
	RBAC      [RBACCells]uint64
	IP        [IPCells]uint64

	BasicAuth   [BasicAuthCells]uint64
	HealthCheck [HealthCheckCells]uint64
	Compress    [CompressCells]uint64
	ExtAuthz    [ExtAuthzCells]uint64
	Decompress  [DecompressCells]uint64

	GlobalRateLimit [GlobalRateLimitCells]uint64
	JWT             [JWTCells]uint64
	JwtProvider     [JwtProviderCells]uint64
)

// HTTP2 is the cells of its HTTP/2 sessions.
func (c *Cluster) HTTP2() *http2.Counters { return (*http2.Counters)(c[ClusterHTTP2:]) }

// HTTP2 is the cells of its HTTP/2 sessions.
func (c *HTTP) HTTP2() *http2.Counters { return (*http2.Counters)(c[HTTPHTTP2:]) }

// ObserveRqTime counts a request's time in nanoseconds.
func (c *Cluster) ObserveRqTime(ns uint64) {
	region.Observe(c[ClusterUpstreamRqTime:], region.Ticks(ns))
}

// SSL is the cluster's part about TLS.
func (c *Cluster) SSL() *SSL { return (*SSL)(c[ClusterSSL:]) }

// SSL is the listener's part about TLS.
func (c *Listener) SSL() *SSL { return (*SSL)(c[ListenerSSL:]) }

// ObserveRqTime counts a request's time in nanoseconds.
func (c *HTTP) ObserveRqTime(ns uint64) { region.Observe(c[HTTPDownstreamRqTime:], region.Ticks(ns)) }

const (
	counter   = statsv1.Kind_KIND_COUNTER
	gauge     = statsv1.Kind_KIND_GAUGE
	histogram = statsv1.Kind_KIND_HISTOGRAM
)

func field(kind statsv1.Kind, name, help string) *statsv1.Field {
	return &statsv1.Field{Name: name, Kind: kind, Help: help}
}

func in(unit string, f *statsv1.Field) *statsv1.Field {
	f.Unit = unit
	return f
}

func http2Fields() (fields []*statsv1.Field) {
	for i, text := range http2.CounterTexts {
		kind := counter
		if i == http2.StreamsActive {
			kind = gauge
		}
		fields = append(fields, field(kind, text[0], text[1]))
	}
	return fields
}

func classes(name, help string) (fields []*statsv1.Field) {
	for class := 1; class <= 5; class++ {
		f := field(counter, name, help)
		f.Labels = []*statsv1.Label{{Name: "response_code_class", Value: strconv.Itoa(class)}}
		fields = append(fields, f)
	}
	return fields
}

func schema(name string, fields ...*statsv1.Field) *statsv1.Schema {
	return &statsv1.Schema{Name: name, Fields: fields}
}

// Indexes into Schemas.
const (
	schemaCluster = iota
	schemaHTTP
	schemaListener
	schemaTCP
	schemaServer
	schemaWorker
	schemaPlugin
	schemaCertificate
	schemaGRPC
	schemaBreakersLeft
	schemaRateLimit
	schemaFault
	schemaCORS
	schemaRBAC
	schemaIP
	schemaBasicAuth
	schemaHealthCheck
	schemaCompress
	schemaExtAuthz
	schemaDecompress
	schemaGlobalRateLimit
	schemaJWT
	schemaJwtProvider
)

// Schemas is every series that proxyd counts, in the order of the cells.
var Schemas = append([]*statsv1.Schema{
	schema("cluster", slices.Concat([]*statsv1.Field{
		field(counter, "upstream_cx_total", "connections opened"),
		field(gauge, "upstream_cx_active", "connections open"),
		field(gauge, "upstream_cx_active_high", "connections open that count for the high priority"),
		field(counter, "upstream_cx_connect_fail", "connections that could not be made"),
		field(counter, "upstream_cx_connect_timeout", "connections not made within connect_timeout"),
		field(counter, "upstream_cx_overflow", "times max_connections kept a connection from being made"),
		field(counter, "upstream_cx_overflow_high", "of those, the ones of high priority"),
		field(counter, "upstream_cx_none_healthy", "requests that found no host"),
		field(counter, "upstream_cx_destroy", "connections ended"),
		field(counter, "upstream_cx_destroy_with_active_rq", "connections ended under a request"),
		field(counter, "upstream_cx_idle_timeout", "connections closed as idle"),
		field(counter, "upstream_cx_max_requests", "connections closed at max_requests_per_connection"),
		field(counter, "upstream_cx_protocol_error", "connections closed for a response that breaks HTTP"),
		in("bytes", field(counter, "upstream_cx_rx_bytes_total", "bytes received")),
		in("bytes", field(counter, "upstream_cx_tx_bytes_total", "bytes sent")),
		field(counter, "upstream_rq_total", "requests given to a connection"),
		field(gauge, "upstream_rq_active", "requests under way"),
		field(gauge, "upstream_rq_active_high", "requests of high priority under way"),
		field(counter, "upstream_rq_pending_total", "requests that waited for a connection"),
		field(gauge, "upstream_rq_pending_active", "requests that wait for a connection"),
		field(gauge, "upstream_rq_pending_active_high", "requests of high priority that wait for a connection"),
		field(counter, "upstream_rq_pending_overflow", "requests refused by a circuit breaker"),
		field(counter, "upstream_rq_pending_overflow_high", "of those, the ones of high priority"),
		field(counter, "upstream_rq_timeout", "requests that timed out"),
		field(counter, "upstream_rq_rx_reset", "requests reset by the upstream"),
		field(counter, "upstream_rq_tx_reset", "requests reset towards the upstream"),
		field(counter, "upstream_rq_retry", "requests tried again"),
		field(gauge, "upstream_rq_retry_active", "requests that are being tried again"),
		field(gauge, "upstream_rq_retry_active_high", "requests of high priority that are being tried again"),
		field(counter, "upstream_rq_retry_success", "requests that a retry saved"),
		field(counter, "upstream_rq_retry_overflow", "retries refused by the circuit breaker or the budget"),
		field(counter, "upstream_rq_retry_overflow_high", "of those, the ones of high priority"),
		field(counter, "upstream_rq_retry_limit_exceeded", "requests that failed in every attempt"),
		field(counter, "upstream_rq_per_try_timeout", "tries that timed out"),
		field(counter, "upstream_rq_per_try_idle_timeout", "tries without a byte for too long"),
		field(counter, "upstream_rq_retry_backoff_exponential", "pauses before retries by back_off"),
		field(counter, "upstream_rq_retry_backoff_ratelimited", "pauses before retries that responses asked for"),
		field(counter, "retry_or_shadow_abandoned", "requests not tried again since their body is too large to keep"),
		field(counter, "upstream_rq_cancelled", "requests given up while they waited for a connection"),
		field(counter, "upstream_flow_control_paused_reading_total", "times reading stopped for a slow client"),
		field(counter, "upstream_flow_control_resumed_reading_total", "times reading went on"),
		field(counter, "health_check_attempt", "health checks begun"),
		field(counter, "health_check_success", "health checks passed"),
		field(counter, "health_check_failure", "health checks failed"),
		field(counter, "health_check_network_failure", "of those, the ones without an answer"),
		field(counter, "health_check_passive_failure", "hosts taken out for an answer with x-envoy-immediate-health-check-fail"),
		field(gauge, "outlier_detection_ejections_active", "hosts that are ejected"),
		field(counter, "outlier_detection_ejections_enforced_total", "ejections"),
		field(counter, "outlier_detection_ejections_enforced_consecutive_5xx", "ejections for a run of 5xx"),
		field(counter, "outlier_detection_ejections_enforced_consecutive_gateway_failure", "ejections for a run of 502, 503 and 504"),
		field(counter, "outlier_detection_ejections_enforced_success_rate", "ejections for a success rate below the others'"),
		field(counter, "outlier_detection_ejections_enforced_failure_percentage", "ejections for the failure percentage"),
		field(counter, "outlier_detection_ejections_enforced_consecutive_local_origin_failure", "ejections for a run of requests without an answer (split_external_local_origin_errors)"),
		field(counter, "outlier_detection_ejections_overflow", "hosts that stayed since max_ejection_percent were out"),
		field(gauge, "membership_total", "hosts"),
		field(gauge, "membership_healthy", "hosts that take requests"),
		field(gauge, "membership_degraded", "hosts that take requests when the healthy ones do not suffice"),
		field(gauge, "membership_excluded", "hosts that are drained by command"),
		field(counter, "shadow_total", "copies of requests begun (mirror)"),
		field(counter, "shadow_given_up", "copies given up since the cluster did not keep up, was too slow, or the request ended early"),
		field(counter, "lb_healthy_panic", "requests whose host was chosen in panic, of all hosts of a priority"),
		field(gauge, "lb_subsets_active", "subsets"),
		field(counter, "lb_subsets_selected", "requests whose host was chosen from a subset"),
		field(counter, "lb_subsets_fallback", "requests whose subset has no host"),
		field(counter, "upstream_cx_http1_total", "connections of HTTP/1"),
		field(counter, "upstream_cx_http2_total", "connections of HTTP/2"),
	}, detectedFields(), openFields(), http2Fields(), classes("upstream_rq_xx", "responses by class, with those that are given for a host that does not answer"),
		[]*statsv1.Field{in(region.UnitTicks, field(histogram, "upstream_rq_time", "time from request to end of response"))}, ssl())...),

	schema("http", slices.Concat([]*statsv1.Field{
		field(counter, "downstream_cx_total", "connections accepted"),
		field(gauge, "downstream_cx_active", "connections open"),
		field(counter, "downstream_cx_destroy", "connections ended"),
		field(counter, "downstream_cx_protocol_error", "connections closed for a request that breaks HTTP"),
		field(counter, "downstream_cx_idle_timeout", "connections closed as idle"),
		field(counter, "downstream_cx_max_duration_reached", "connections closed at their greatest age"),
		field(counter, "downstream_cx_drain_close", "connections closed because the process drains"),
		field(counter, "downstream_cx_overload_disable_keepalive", "connections closed after a response because a resource runs short, or there are nearly as many as there may be"),
		in("bytes", field(counter, "downstream_cx_rx_bytes_total", "bytes received")),
		in("bytes", field(counter, "downstream_cx_tx_bytes_total", "bytes sent")),
		field(counter, "downstream_cx_upgrades_total", "connections upgraded"),
		field(gauge, "downstream_cx_upgrades_active", "upgraded connections open"),
		field(counter, "downstream_rq_total", "requests"),
		field(gauge, "downstream_rq_active", "requests under way"),
		field(counter, "downstream_rq_completed", "requests answered"),
		field(counter, "downstream_rq_timeout", "requests not received within the request time-out"),
		field(counter, "downstream_rq_header_timeout", "requests whose head did not arrive in time"),
		field(counter, "downstream_rq_idle_timeout", "requests that stood still for too long"),
		field(counter, "downstream_rq_max_duration_reached", "requests ended at their greatest duration"),
		field(counter, "downstream_rq_too_large", "requests whose body is too large"),
		field(counter, "downstream_rq_rx_reset", "requests given up by the client"),
		field(counter, "downstream_rq_tx_reset", "responses cut off by the proxy"),
		field(counter, "no_route", "requests that no route takes"),
		field(counter, "no_cluster", "requests whose cluster does not exist"),
		field(counter, "downstream_rq_own_error", "requests ended by an error of proxyd's own making: what a probation looks at"),
		field(counter, "rq_redirect", "requests answered by a redirect"),
		field(counter, "rq_redirected_with_normalized_path", "requests redirected to the path with its slashes decoded"),
		field(counter, "rq_direct_response", "requests answered by the configuration"),
		field(counter, "rs_too_large", "responses too large to buffer"),
		field(counter, "downstream_flow_control_paused_reading_total", "times reading stopped for a slow upstream"),
		field(counter, "downstream_flow_control_resumed_reading_total", "times reading went on"),
		field(counter, "downstream_cx_http1_total", "connections of HTTP/1"),
		field(counter, "downstream_cx_http2_total", "connections of HTTP/2"),
		field(counter, "downstream_rq_http1_total", "requests of HTTP/1"),
		field(counter, "downstream_rq_http2_total", "requests of HTTP/2"),
		field(counter, "downstream_rq_overload_close", "requests answered 503 because a resource runs short"),
		field(counter, "downstream_rq_overload_reset", "requests reset because they held most memory while it ran short"),
		field(counter, "tracing_random_sampling", "requests sampled by the draw"),
		field(counter, "tracing_service_forced", "requests sampled because a trusted peer forced it"),
		field(counter, "tracing_client_enabled", "requests sampled for the x-client-trace-id of a trusted peer"),
		field(counter, "tracing_context_sampled", "requests sampled because their trace is"),
		field(counter, "tracing_not_traceable", "requests with a trace context that are not sampled"),
	}, http2Fields(), classes("downstream_rq_xx", "responses by class"),
		[]*statsv1.Field{in(region.UnitTicks, field(histogram, "downstream_rq_time", "time from request to end of response"))})...),

	schema("listener", append([]*statsv1.Field{
		field(counter, "downstream_cx_total", "connections accepted"),
		field(gauge, "downstream_cx_active", "connections open"),
		field(counter, "downstream_cx_overflow", "connections refused at the listener's limit"),
		field(counter, "downstream_global_cx_overflow", "connections refused at the limit of all listeners"),
		field(counter, "downstream_cx_shed", "connections refused for want of descriptors"),
		field(counter, "no_filter_chain_match", "connections that no filter chain takes"),
		field(counter, "downstream_pre_cx_timeout", "connections whose filter chain was not known in time"),
		field(counter, "proxy_protocol_refused", "connections whose PROXY header is missing, malformed or not trusted"),
		field(counter, "downstream_cx_overload_reject", "connections refused because a resource runs short"),
	}, ssl()...)...),

	schema("tcp",
		field(counter, "downstream_cx_total", "connections"),
		field(gauge, "downstream_cx_active", "connections open"),
		field(counter, "downstream_cx_no_route", "connections whose cluster does not exist"),
		in("bytes", field(counter, "downstream_cx_rx_bytes_total", "bytes received")),
		in("bytes", field(counter, "downstream_cx_tx_bytes_total", "bytes sent")),
		field(counter, "idle_timeout", "connections closed as idle"),
		field(counter, "downstream_flow_control_paused_reading_total", "times reading stopped for a slow peer"),
		field(counter, "downstream_flow_control_resumed_reading_total", "times reading went on")),

	schema("server", slices.Concat([]*statsv1.Field{
		field(gauge, "live", "1 while the process accepts connections"),
		field(gauge, "state", "0 live, 1 draining, 2 before the first snapshot"),
		field(gauge, "hot_restart_epoch", "generation"),
		in("s", field(gauge, "uptime", "seconds since the start")),
		field(gauge, "concurrency", "worker loops"),
		field(counter, "snapshot_applied", "snapshots applied"),
		field(counter, "snapshot_refused", "snapshots refused"),
		field(counter, "access_log_dropped", "access-log lines dropped because the disk was behind"),
		field(counter, "access_log_write_failed", "failed writes of access logs"),
		field(counter, "connections_cut", "connections closed at shutdown_time"),
		field(counter, "watchdog_miss", "times a worker loop stood still"),
		field(counter, "overload_shrinks", "times memory went back to the system by shrink_heap"),
	}, each("overload_pressure", "per cent of a resource that are in use, where there is an overload block", "resource", overload.ResourceNames[:]),
		each("overload_scale_percent", "how far an overload action goes, in per cent; 0: it is off", "action", overload.ActionNames[:]))...),

	schema("worker",
		field(gauge, "cx_active", "connections open"),
		field(counter, "access_log_dropped", "access-log lines dropped because the flusher was behind"),
		field(counter, "tracing_spans_recorded", "spans given to the flusher"),
		field(counter, "tracing_spans_dropped", "spans dropped because the flusher was behind: statsd is away or slow")),

	schema("plugin",
		append(append(results("rq_total", "calls by result", "ok", "modified", "responded", "unavailable", "timeout", "overflow", "circuit_open", "invalid_reply", "cached"),
			field(counter, "rq_skipped", "requests that do not meet the plugin's conditions"),
			field(gauge, "rq_active", "calls without an answer yet"),
			field(counter, "failed_open", "streams that went on without the plugin"),
			field(counter, "failed_closed", "streams that failed with the plugin"),
			field(counter, "replies_late", "answers to calls that nobody waits for"),
			field(counter, "protocol_errors", "channels closed for a frame that breaks the protocol"),
			field(counter, "circuit_opened", "times the plugin was not called for a second after time-outs in a row"),
			field(counter, "cx_destroy", "channels that ended")),
			append(times("rq_time", "time from call to answer", "request_headers", "request_body", "response_headers", "response_body", "network"),
				in(region.UnitTicks, field(histogram, "rq_queue_time", "the part of a call's time that the plugin did not work on it: on the way, and waiting to be read (of plugins that say how long they worked)")))...)...),

	schema("certificate",
		field(gauge, "expiration_unix_time_seconds", "when the certificate ends, while the generation serves")),

	schema("grpc", grpcFields()...),

	schema("cluster_circuit_breakers", leftFields()...),
}, filters...)

func labelled(f *statsv1.Field, name, value string) *statsv1.Field {
	f.Labels = []*statsv1.Label{{Name: name, Value: value}}
	return f
}

// each is a gauge for each value of a label.
func each(name, help, label string, values []string) (fields []*statsv1.Field) {
	for _, v := range values {
		fields = append(fields, labelled(field(gauge, name, help), label, v))
	}
	return fields
}

func results(name, help string, values ...string) (fields []*statsv1.Field) {
	for _, v := range values {
		fields = append(fields, labelled(field(counter, name, help), "result", v))
	}
	return fields
}

func times(name, help string, phases ...string) (fields []*statsv1.Field) {
	for _, p := range phases {
		fields = append(fields, labelled(in(region.UnitTicks, field(histogram, name, help)), "phase", p))
	}
	return fields
}
