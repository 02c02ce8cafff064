package compile

import (
	"encoding/hex"
	"path"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
	configv1 "retinue.dev/services/api/config/v1"
)

// healthCheck compiles the health_check block of a cluster; nil for none.
func (c *compiler) healthCheck(cluster *schema.Node) *configv1.HealthCheck {
	all := cluster.All("health_check")
	if len(all) == 0 {
		return nil
	}
	if len(all) > 1 {
		c.diags.Report(diag.Repeated, all[1].DefRange, "Checked twice", "A cluster has one health_check; the first is on %s.", schema.Place(all[0].DefRange))
	}
	n := all[0]
	h := &configv1.HealthCheck{
		IntervalMs: n.Int("interval"), TimeoutMs: n.Int("timeout"), Port: uint32(n.Int("port")),
		HealthyThreshold: uint32(n.Int("healthy")), UnhealthyThreshold: uint32(n.Int("unhealthy")), EventLog: c.eventLog(n),
		IntervalJitterMs: n.Int("interval_jitter"), InitialJitterMs: n.Int("initial_jitter"),
		UnhealthyIntervalMs: n.Int("unhealthy_interval"), UnhealthyEdgeIntervalMs: n.Int("unhealthy_edge_interval"), HealthyEdgeIntervalMs: n.Int("healthy_edge_interval"),
		NoTrafficIntervalMs: n.Int("no_traffic_interval"), NoTrafficHealthyIntervalMs: n.Int("no_traffic_healthy_interval"), AlwaysLogFailures: n.Bool("always_log_failures"),
	}
	if n.Has("interval_jitter_percent") {
		h.IntervalJitterPercent = proto.Uint32(uint32(n.Int("interval_jitter_percent")))
	}
	if h.NoTrafficHealthyIntervalMs > 0 && h.NoTrafficIntervalMs == 0 {
		c.diags.Report(diag.NoEffect, n.Range("no_traffic_healthy_interval"), "No interval without traffic", "no_traffic_healthy_interval needs no_traffic_interval.")
	}
	if h.AlwaysLogFailures && h.EventLog == "" {
		c.diags.Report(diag.NoEffect, n.Range("always_log_failures"), "No event log", "always_log_failures needs event_log: where the lines go.")
	}
	if n.Label != "tcp" && !n.Bool("reuse_connection") {
		h.ReuseConnection = proto.Bool(false)
	}
	switch n.Label {
	case "tcp":
		tcp := &configv1.TcpCheck{Send: c.checkBytes(n.Get("send"))}
		for _, v := range n.List("receive") {
			if b := c.checkBytes(v); len(b) > 0 {
				tcp.Receive = append(tcp.Receive, b)
			}
		}
		h.Kind = &configv1.HealthCheck_Tcp{Tcp: tcp}
	case "grpc":
		h.Kind = &configv1.HealthCheck_Grpc{Grpc: &configv1.GrpcCheck{Service: n.Str("service"), Authority: n.Str("host")}}
	default:
		target := n.Str("path")
		if reason, at := invalidPath(target); reason != "" {
			v := n.Get("path")
			c.diags.Report(diag.InvalidTarget, c.inside(v.Range, target, min(at, len(target)), runeAt(target, at)), "Invalid path", "%s", reason)
		}
		h.Kind = &configv1.HealthCheck_Http{Http: &configv1.HttpCheck{Path: target, Host: n.Str("host"), Body: n.Str("body"), Statuses: c.statuses(n, "expect"), RetriableStatuses: c.statuses(n, "retriable")}}
		if n.Str("method") != "GET" {
			h.GetHttp().Method = n.Str("method")
		}
		h.GetHttp().RequestHeaders = c.checkHeaders(n)
	}
	return h
}

// checkBytes reads what a TCP check sends or receives: text, or "hex:" and bytes.
func (c *compiler) checkBytes(v schema.Value) []byte {
	text, _ := v.V.(string)
	digits, isHex := strings.CutPrefix(text, "hex:")
	if !isHex {
		return []byte(text)
	}
	b, err := hex.DecodeString(digits)
	if err != nil || len(b) == 0 {
		c.diags.Report(diag.OutOfRange, v.Range, "Not bytes", "%q is not \"hex:\" with two digits for each byte.", text)
	}
	return b
}

// checkHeaders are the header fields of an HTTP check's request.
func (c *compiler) checkHeaders(n *schema.Node) (out []*configv1.Header) {
	for _, p := range n.Pairs("headers") {
		name, ok := c.headerName(p.Name)
		if !ok {
			continue
		}
		if len(p.Values) != 1 {
			c.diags.Report(diag.WrongType, p.Name.Range, "Wrong type", "A header of a check has one value.")
			continue
		}
		c.plainValue(p.Values[0])
		value, _ := p.Values[0].V.(string)
		out = append(out, &configv1.Header{Name: name, Value: value})
	}
	return out
}

// statuses reads a list of them: "204", "200-299".
func (c *compiler) statuses(n *schema.Node, attr string) []uint32 {
	var out []uint32
	for _, v := range n.List(attr) {
		text, _ := v.V.(string)
		first, last, ranged := strings.Cut(text, "-")
		if !ranged {
			last = first
		}
		from, err := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err != nil || err2 != nil || from < 100 || to > 599 || from > to {
			c.diags.Report(diag.InvalidStatus, v.Range, "Invalid status", "%q is neither a status of 100 to 599 nor a range of them, \"200-299\".", text)
			continue
		}
		for code := from; code <= to; code++ {
			out = append(out, uint32(code))
		}
	}
	return out
}

// eventLog reads the path of an event log.
func (c *compiler) eventLog(n *schema.Node) string {
	if !n.Has("event_log") {
		return ""
	}
	p := n.Str("event_log")
	if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
		c.diags.Report(diag.InvalidLogPath, n.Range("event_log"), "Invalid event-log path", "%q is not an absolute path: the daemons have no working directory that you could know.", p)
	}
	return path.Clean(p)
}

func (c *compiler) outlierDetection(n *schema.Node) *configv1.OutlierDetection {
	if n == nil {
		return nil
	}
	o := &configv1.OutlierDetection{
		Consecutive_5Xx: uint32(n.Int("consecutive_5xx")), ConsecutiveGatewayFailure: uint32(n.Int("consecutive_gateway_failure")),
		SuccessRateStdevFactor: uint32(n.Int("success_rate_stdev_factor")), FailurePercentage: uint32(n.Int("failure_percentage")),
		IntervalMs: n.Int("interval"), BaseEjectionMs: n.Int("base_ejection"), MaxEjectionMs: n.Int("max_ejection"),
		MaxEjectionPercent: proto.Uint32(uint32(n.Int("max_ejection_percent"))), EventLog: c.eventLog(n),
		MaxEjectionJitterMs: n.Int("max_ejection_jitter"), SplitExternalLocalOriginErrors: n.Bool("split_external_local_origin_errors"),
	}
	for attr, to := range map[string]*uint32{
		"success_rate_minimum_hosts": &o.SuccessRateMinimumHosts, "success_rate_request_volume": &o.SuccessRateRequestVolume,
		"failure_percentage_minimum_hosts": &o.FailurePercentageMinimumHosts, "failure_percentage_request_volume": &o.FailurePercentageRequestVolume,
	} {
		if n.Has(attr) {
			*to = uint32(n.Int(attr))
		}
	}
	if o.SplitExternalLocalOriginErrors {
		o.ConsecutiveLocalOriginFailure = uint32(n.Int("consecutive_local_origin_failure"))
	} else if n.Has("consecutive_local_origin_failure") {
		c.diags.Report(diag.NoEffect, n.Range("consecutive_local_origin_failure"), "Not told apart", "Without split_external_local_origin_errors a request without an answer is a 5xx and a gateway failure.")
	}
	if !n.Bool("always_eject_one_host") {
		o.AlwaysEjectOneHost = proto.Bool(false)
	}
	if !n.Bool("successful_active_health_check_uneject_host") {
		o.SuccessfulActiveHealthCheckUnejectHost = proto.Bool(false)
	}
	if e := n.Child("enforcing"); e != nil {
		o.Enforcing = &configv1.OutlierEnforcing{}
		for attr, to := range map[string]**uint32{
			"consecutive_5xx": &o.Enforcing.Consecutive_5Xx, "consecutive_gateway_failure": &o.Enforcing.ConsecutiveGatewayFailure, "success_rate": &o.Enforcing.SuccessRate,
			"failure_percentage": &o.Enforcing.FailurePercentage, "consecutive_local_origin_failure": &o.Enforcing.ConsecutiveLocalOriginFailure,
		} {
			if e.Has(attr) {
				*to = proto.Uint32(uint32(e.Int(attr)))
			}
		}
	}
	return o
}
