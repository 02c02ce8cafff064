// Package suite asks statsd's siblings how they are, for readiness and the dashboard.
package suite

import (
	"context"
	"sync"
	"time"

	"google.golang.org/grpc"

	configv1 "retinue.dev/services/api/config/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
	suitev1 "retinue.dev/services/api/suite/v1"
)

// patience is how long a sibling may take to answer.
const patience = time.Second

// freshness is how long an answer is good: a sibling is asked at most that often, however many readers there are.
const freshness = 2 * time.Second

// Daemon is how one sibling is.
type Daemon struct {
	Name   string `json:"name"`
	Ready  bool   `json:"ready"`
	Status string `json:"status"`
}

// Generation is one run of proxyd, as restartd tells it.
type Generation struct {
	Number      uint64 `json:"number"`
	State       string `json:"state"`
	Version     string `json:"version"`
	Pid         int64  `json:"pid"`
	Started     int64  `json:"started"` // unix ms
	Snapshot    string `json:"snapshot"`
	Connections uint64 `json:"connections"`
	Streams     uint64 `json:"streams"`
	Message     string `json:"message"`
}

// State is what the siblings said last.
type State struct {
	Daemons     []Daemon     `json:"daemons"`
	Generations []Generation `json:"generations"`
	Upgrade     string       `json:"upgrade"`
	Snapshot    string       `json:"snapshot"`
	ReloadError string       `json:"reload_error"`
}

// Siblings asks configd and restartd. Its methods may be called by any goroutine.
type Siblings struct {
	configd, restartd grpc.ClientConnInterface
	now               func() time.Time

	mu    sync.Mutex
	asked time.Time
	state State

	plugins struct {
		mu    sync.Mutex
		asked time.Time
		list  []*restartv1.PluginMetric
	}
	discovery struct {
		mu    sync.Mutex
		asked time.Time
		list  []*configv1.DiscoveryStatus
	}
}

// Discovery is how the look-ups of endpoints went, by cluster; nothing while configd does not answer.
func (s *Siblings) Discovery(ctx context.Context) []*configv1.DiscoveryStatus {
	d := &s.discovery
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.asked.IsZero() && s.now().Sub(d.asked) < freshness {
		return d.list
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	reply, err := configv1.NewConfigClient(s.configd).Status(ctx, &configv1.StatusRequest{})
	d.list, d.asked = reply.GetDiscovery(), s.now()
	if err != nil {
		d.list = nil
	}
	return d.list
}

// Plugins are the plugins' own metrics, none while restartd does not answer.
func (s *Siblings) Plugins(ctx context.Context) []*restartv1.PluginMetric {
	p := &s.plugins
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.asked.IsZero() && s.now().Sub(p.asked) < freshness {
		return p.list
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	reply, err := restartv1.NewRestartClient(s.restartd).PluginMetrics(ctx, &restartv1.PluginMetricsRequest{})
	p.list, p.asked = reply.GetMetrics(), s.now()
	if err != nil {
		p.list = nil
	}
	return p.list
}

// New makes it from connections, which its maker closes.
func New(configd, restartd grpc.ClientConnInterface, now func() time.Time) *Siblings {
	return &Siblings{configd: configd, restartd: restartd, now: now}
}

// State returns what they say, or said a moment ago.
func (s *Siblings) State(ctx context.Context) State {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.asked.IsZero() && s.now().Sub(s.asked) < freshness {
		return s.state
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var state State
	var both sync.WaitGroup
	var configd, restartd Daemon
	both.Go(func() {
		configd = health(ctx, "configd", s.configd)
		if reply, err := configv1.NewConfigClient(s.configd).Status(ctx, &configv1.StatusRequest{}); err == nil {
			state.Snapshot = reply.GetSnapshotId()
			if last := reply.GetLastReload(); last != nil && !last.GetOk() {
				state.ReloadError = last.GetMessage()
			}
		}
	})
	both.Go(func() {
		restartd = health(ctx, "restartd", s.restartd)
		if reply, err := restartv1.NewRestartClient(s.restartd).Status(ctx, &restartv1.StatusRequest{}); err == nil {
			state.Upgrade = reply.GetUpgrade()
			for _, g := range reply.GetGenerations() {
				state.Generations = append(state.Generations, generation(g))
			}
		}
	})
	both.Wait()
	state.Daemons = []Daemon{configd, restartd}
	s.state, s.asked = state, s.now()
	return state
}

func health(ctx context.Context, name string, conn grpc.ClientConnInterface) Daemon {
	reply, err := suitev1.NewSuiteClient(conn).Health(ctx, &suitev1.HealthRequest{})
	if err != nil {
		return Daemon{Name: name, Status: "does not answer"}
	}
	return Daemon{Name: name, Ready: reply.GetReady(), Status: reply.GetStatus()}
}

func generation(g *restartv1.Generation) Generation {
	states := map[restartv1.State]string{
		restartv1.State_STATE_STARTING: "starting", restartv1.State_STATE_WARMING: "warming", restartv1.State_STATE_READY: "ready",
		restartv1.State_STATE_SERVING: "serving", restartv1.State_STATE_DRAINING: "draining", restartv1.State_STATE_GONE: "gone",
		restartv1.State_STATE_FAILED: "failed",
	}
	return Generation{
		Number: g.GetNumber(), State: states[g.GetState()], Version: g.GetVersion(), Pid: g.GetPid(), Started: g.GetStartedUnixMs(),
		Snapshot: g.GetSnapshotId(), Connections: g.GetConnections(), Streams: g.GetStreams(), Message: g.GetMessage(),
	}
}
