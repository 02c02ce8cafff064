package compile

import (
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
	}
	switch n.Label {
	case "tcp":
		h.Kind = &configv1.HealthCheck_Tcp{Tcp: &configv1.TcpCheck{}}
	case "grpc":
		h.Kind = &configv1.HealthCheck_Grpc{Grpc: &configv1.GrpcCheck{Service: n.Str("service"), Authority: n.Str("host")}}
	default:
		target := n.Str("path")
		if reason, at := invalidPath(target); reason != "" {
			v := n.Get("path")
			c.diags.Report(diag.InvalidTarget, c.inside(v.Range, target, min(at, len(target)), runeAt(target, at)), "Invalid path", "%s", reason)
		}
		h.Kind = &configv1.HealthCheck_Http{Http: &configv1.HttpCheck{Path: target, Host: n.Str("host"), Body: n.Str("body"), Statuses: c.statuses(n)}}
	}
	return h
}

// statuses reads expect: "204", "200-299".
func (c *compiler) statuses(n *schema.Node) []uint32 {
	var out []uint32
	for _, v := range n.List("expect") {
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
	return &configv1.OutlierDetection{
		Consecutive_5Xx: uint32(n.Int("consecutive_5xx")), ConsecutiveGatewayFailure: uint32(n.Int("consecutive_gateway_failure")),
		SuccessRateStdevFactor: uint32(n.Int("success_rate_stdev_factor")), FailurePercentage: uint32(n.Int("failure_percentage")),
		IntervalMs: n.Int("interval"), BaseEjectionMs: n.Int("base_ejection"), MaxEjectionMs: n.Int("max_ejection"),
		MaxEjectionPercent: proto.Uint32(uint32(n.Int("max_ejection_percent"))), EventLog: c.eventLog(n),
	}
}
