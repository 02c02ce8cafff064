package cluster

import (
	"fmt"
	"slices"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
)

// CheckKind is what a health check says.
type CheckKind uint8

// The kinds.
const (
	CheckHTTP CheckKind = iota
	CheckTCP
	CheckGRPC
)

// Check is how the hosts of a cluster are asked whether they are well. Immutable.
type Check struct {
	Kind               CheckKind
	Path, Body         string // HTTP
	Statuses           []int  // HTTP: those that are well
	Host               string // Host or authority; "" for the cluster's name
	Service            string // gRPC
	Port               uint16 // 0: the host's
	Interval, Timeout  time.Duration
	Healthy, Unhealthy int    // results in a row that change the verdict
	EventLog           string // path; "" none
}

func buildCheck(c *configv1.HealthCheck) (*Check, error) {
	if c == nil {
		return nil, nil
	}
	out := &Check{
		Interval: milliseconds(c.GetIntervalMs(), 5_000), Timeout: milliseconds(c.GetTimeoutMs(), 1_000), Port: uint16(c.GetPort()),
		Healthy: int(limit(c.GetHealthyThreshold(), 2)), Unhealthy: int(limit(c.GetUnhealthyThreshold(), 3)),
		EventLog: c.GetEventLog(),
	}
	if c.GetPort() > 65535 {
		return nil, fmt.Errorf("health_check: port %d is above 65535", c.GetPort())
	}
	switch k := c.GetKind().(type) {
	case *configv1.HealthCheck_Http:
		out.Path, out.Host, out.Body = k.Http.GetPath(), k.Http.GetHost(), k.Http.GetBody()
		if out.Path == "" {
			out.Path = "/"
		}
		for _, code := range k.Http.GetStatuses() {
			out.Statuses = append(out.Statuses, int(code))
		}
		if len(out.Statuses) == 0 {
			out.Statuses = []int{200}
		}
	case *configv1.HealthCheck_Tcp:
		out.Kind = CheckTCP
	case *configv1.HealthCheck_Grpc:
		out.Kind, out.Service, out.Host = CheckGRPC, k.Grpc.GetService(), k.Grpc.GetAuthority()
	default:
		return nil, fmt.Errorf("health_check: this proxyd does not know the kind")
	}
	return out, nil
}

func buildOutlier(c *configv1.OutlierDetection) *Outlier {
	if c == nil {
		return nil
	}
	out := &Outlier{
		Consecutive5xx: c.GetConsecutive_5Xx(), ConsecutiveGatewayFailure: c.GetConsecutiveGatewayFailure(),
		SuccessRateStdevFactor: c.GetSuccessRateStdevFactor(), FailurePercentage: c.GetFailurePercentage(),
		Interval: milliseconds(c.GetIntervalMs(), 10_000), BaseEjection: milliseconds(c.GetBaseEjectionMs(), 30_000),
		MaxEjection: milliseconds(c.GetMaxEjectionMs(), 300_000), MaxEjectionPercent: 10, EventLog: c.GetEventLog(),
	}
	if c.MaxEjectionPercent != nil {
		out.MaxEjectionPercent = int(c.GetMaxEjectionPercent())
	}
	return out
}

func milliseconds(ms, standard int64) time.Duration {
	if ms <= 0 {
		ms = standard
	}
	return time.Duration(ms) * time.Millisecond
}

// keep is previous where it says the same as c.
func keep(c, previous *Check) *Check {
	if c == nil || previous == nil {
		return c
	}
	a, b := *c, *previous
	same := slices.Equal(a.Statuses, b.Statuses)
	a.Statuses, b.Statuses = nil, nil
	if same && fmt.Sprintf("%+v", a) == fmt.Sprintf("%+v", b) {
		return previous
	}
	return c
}

func keepOutlier(o, previous *Outlier) *Outlier {
	if o != nil && previous != nil && *o == *previous {
		return previous
	}
	return o
}
