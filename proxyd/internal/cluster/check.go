package cluster

import (
	"fmt"
	"reflect"
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
	Method, Path, Body string      // HTTP
	Statuses           []int       // HTTP: those that are well
	Retriable          []int       // HTTP: those that count towards Unhealthy; others decide at once
	Headers            [][2]string // HTTP: set
	Host               string      // Host or authority; "" for the cluster's name
	Service            string      // gRPC
	Send               []byte      // TCP
	Receive            [][]byte    // TCP: in this order
	Port               uint16      // 0: the host's
	Timeout            time.Duration
	Healthy, Unhealthy int    // results in a row that change the verdict
	NewConnections     bool   // each check makes one
	EventLog           string // path; "" none
	LogFailures        bool   // each one, in EventLog
	Pauses
}

// Pauses are the times between two checks of a host. What is not written is what it stands for.
type Pauses struct {
	Interval, UnhealthyInterval                 time.Duration // behind a check that passed, and one that failed
	HealthyEdge, UnhealthyEdge                  time.Duration // behind one that others must follow to change the verdict
	NoTrafficInterval, NoTrafficHealthyInterval time.Duration // while the cluster never had a connection; 0: as if it had
	Jitter, InitialJitter                       time.Duration // longest additions
	JitterPercent                               int           // likewise, of the pause
}

func buildCheck(c *configv1.HealthCheck) (*Check, error) {
	if c == nil {
		return nil, nil
	}
	out := &Check{
		Timeout: milliseconds(c.GetTimeoutMs(), 1_000), Port: uint16(c.GetPort()),
		Healthy: int(limit(c.GetHealthyThreshold(), 2)), Unhealthy: int(limit(c.GetUnhealthyThreshold(), 3)),
		EventLog: c.GetEventLog(), LogFailures: c.GetAlwaysLogFailures(), NewConnections: c.ReuseConnection != nil && !c.GetReuseConnection(),
		Pauses: buildPauses(c),
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
		if out.Method = k.Http.GetMethod(); out.Method == "" {
			out.Method = "GET"
		}
		for _, code := range k.Http.GetStatuses() {
			out.Statuses = append(out.Statuses, int(code))
		}
		for _, code := range k.Http.GetRetriableStatuses() {
			out.Retriable = append(out.Retriable, int(code))
		}
		for _, h := range k.Http.GetRequestHeaders() {
			out.Headers = append(out.Headers, [2]string{h.GetName(), h.GetValue()})
		}
		if len(out.Statuses) == 0 {
			out.Statuses = []int{200}
		}
	case *configv1.HealthCheck_Tcp:
		out.Kind, out.Send, out.Receive = CheckTCP, k.Tcp.GetSend(), k.Tcp.GetReceive()
	case *configv1.HealthCheck_Grpc:
		out.Kind, out.Service, out.Host = CheckGRPC, k.Grpc.GetService(), k.Grpc.GetAuthority()
	default:
		return nil, fmt.Errorf("health_check: this proxyd does not know the kind")
	}
	return out, nil
}

func buildPauses(c *configv1.HealthCheck) Pauses {
	p := Pauses{
		Jitter: time.Duration(c.GetIntervalJitterMs()) * time.Millisecond, InitialJitter: time.Duration(c.GetInitialJitterMs()) * time.Millisecond,
		JitterPercent: 10, NoTrafficInterval: time.Duration(c.GetNoTrafficIntervalMs()) * time.Millisecond, Interval: milliseconds(c.GetIntervalMs(), 5_000),
	}
	if c.IntervalJitterPercent != nil {
		p.JitterPercent = int(c.GetIntervalJitterPercent())
	}
	otherwise := func(ms int64, standard time.Duration) time.Duration {
		if ms <= 0 {
			return standard
		}
		return time.Duration(ms) * time.Millisecond
	}
	p.UnhealthyInterval = otherwise(c.GetUnhealthyIntervalMs(), p.Interval)
	p.UnhealthyEdge = otherwise(c.GetUnhealthyEdgeIntervalMs(), p.UnhealthyInterval)
	p.HealthyEdge = otherwise(c.GetHealthyEdgeIntervalMs(), p.Interval)
	p.NoTrafficHealthyInterval = otherwise(c.GetNoTrafficHealthyIntervalMs(), p.NoTrafficInterval)
	return p
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
		SuccessRateHosts: int(limit(c.GetSuccessRateMinimumHosts(), 5)), SuccessRateRequests: limit(c.GetSuccessRateRequestVolume(), 100),
		FailurePercentageHosts: int(limit(c.GetFailurePercentageMinimumHosts(), 5)), FailurePercentageRequests: limit(c.GetFailurePercentageRequestVolume(), 50),
		EjectionJitter: time.Duration(c.GetMaxEjectionJitterMs()) * time.Millisecond, AlwaysEjectOne: c.AlwaysEjectOneHost == nil || c.GetAlwaysEjectOneHost(),
		UnejectOnCheck: c.SuccessfulActiveHealthCheckUnejectHost == nil || c.GetSuccessfulActiveHealthCheckUnejectHost(),
		Split:          c.GetSplitExternalLocalOriginErrors(), ConsecutiveLocalFail: c.GetConsecutiveLocalOriginFailure(),
	}
	e := c.GetEnforcing()
	if e == nil {
		e = &configv1.OutlierEnforcing{}
	}
	for rule, percent := range [OutlierRules]*uint32{e.Consecutive_5Xx, e.ConsecutiveGatewayFailure, e.SuccessRate, e.FailurePercentage, e.ConsecutiveLocalOriginFailure} {
		if out.Enforcing[rule] = 100; percent != nil {
			out.Enforcing[rule] = *percent
		}
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
	if reflect.DeepEqual(c, previous) {
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
