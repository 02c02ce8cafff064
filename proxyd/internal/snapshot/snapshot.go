// Package snapshot builds the immutable value that workers serve by, out of the objects that configd compiled.
//
// Building happens once, when configd prepares a snapshot: whatever can be refused is refused then, for every object at once,
// and what was built is only posted when configd commits. What did not change is the same pointer as before, so that its
// connections, pools and counters go on as if nothing had happened. Nothing here does I/O, reads a clock or starts a goroutine.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/filter/jwt"
	"retinue.dev/proxyd/internal/plugin"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/tracing"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

// Snapshot is one snapshot, built. Immutable.
type Snapshot struct {
	ID      string
	Objects []*configv1.Object // of proxyd's role, in configd's order
	// Clusters is by handle; nil for a name that this snapshot does not have.
	Clusters []*upstream.Config
	// Listeners are in configd's order.
	Listeners []*Listener
	Settings  Settings
	// Plugins are the plugins that filters name, one use of each.
	Plugins []*plugin.Use
	// JwtProviders are those whose keys are fetched.
	JwtProviders []*jwt.Provider

	// handles has every name that was ever seen: a name that comes back has its old handle, and a stream that still holds an old
	// snapshot never finds another cluster under it.
	handles map[string]cluster.Handle
	parts   map[string]*part // by kind and name
}

// Settings are the settings of the process.
type Settings struct {
	Workers        int    // 0: the CPUs that the process may use
	MaxConnections uint64 // 0: derived from the descriptor limit
	ShutdownTime   time.Duration
	DrainTime      time.Duration
	// Leaving is how connections of a listener leave that left the configuration.
	Leaving  Drain
	Overload *configv1.Overload // nil: no action is taken
}

// Drain is how connections leave: asked to over a time, 0 for at once, and cut at the end of another.
type Drain struct{ Over, Limit time.Duration }

// Envoy's --parent-shutdown-time-s and --drain-time-s.
const (
	defaultShutdownTime = 900 * time.Second
	defaultDrainTime    = 600 * time.Second
)

// part is what one object was built to, and from what.
type part struct {
	key    string // hashes of all that it was built from
	listen *Listener
	log    stream.AccessLog
	filter *filter.Filter
	jwt    *jwt.Provider
	failed error
	links  bool // a value of the filter wants facts of upstream connections
}

// Builder builds snapshots. It belongs to the main side.
type Builder struct {
	Workers int
	Stats   *counters.Set
	// Plugins makes the filters of plugins.
	Plugins *plugin.Registry
	// Secrets is what the objects name besides; nil before configd has sent any.
	Secrets *tlstransport.Secrets
	// Endpoints are those that configd found, by cluster.
	Endpoints map[string][]*configv1.Endpoint
	// Pools are the workers' upstream sides; empty where nothing will run.
	Pools []*upstream.Manager
	// Spans makes the recorder of spans of a connection manager that exports them.
	Spans func(*tracing.Config) (stream.AccessLog, error)
	// WantKeys tells the main side that a provider of tokens wants its keys. Workers call it.
	WantKeys func()
	// Failing tells that the process is about to go with nobody in its place.
	Failing atomic.Bool
	// Log makes or finds the access log of an object.
	Log func(*configv1.AccessLog) (stream.AccessLog, error)
}

// build is one run of a Builder.
type build struct {
	*Builder
	ctx      context.Context
	previous *Snapshot
	next     *Snapshot
	https    map[string]*configv1.Object
	logs     map[string]*configv1.Object
	plugins  map[string]*configv1.Object
	filters  map[string]*configv1.Object
	clusters map[string]bool
	refusals []*configv1.Refusal
}

// Build makes the snapshot, or says what is wrong with which objects. previous is what it shares with; nil for none.
func (b *Builder) Build(ctx context.Context, previous *Snapshot, id string, objects []*configv1.Object) (*Snapshot, []*configv1.Refusal) {
	if previous == nil {
		previous = &Snapshot{}
	}
	r := &build{
		Builder: b, ctx: ctx, previous: previous,
		next: &Snapshot{
			ID: id, Objects: objects, parts: make(map[string]*part),
			Settings: Settings{ShutdownTime: defaultShutdownTime, DrainTime: defaultDrainTime, Leaving: Drain{Limit: defaultDrainTime}},
		},
		https: map[string]*configv1.Object{}, logs: map[string]*configv1.Object{}, plugins: map[string]*configv1.Object{},
		filters: map[string]*configv1.Object{}, clusters: map[string]bool{},
	}
	for _, o := range objects {
		switch {
		case o.GetHttp() != nil:
			r.https[o.GetName()] = o
		case o.GetAccessLog() != nil:
			r.logs[o.GetName()] = o
		case o.GetPlugin() != nil:
			r.plugins[o.GetName()] = o
			r.next.Plugins = append(r.next.Plugins, r.Plugins.Use(ctx, o.GetPlugin(), o.GetHash(), configv1.OnError_ON_ERROR_UNSPECIFIED))
		case o.GetFilter() != nil:
			r.filters[o.GetName()] = o
		case o.GetRuntime() != nil:
			r.next.Settings.take(o.GetRuntime())
		}
	}
	r.buildClusters()
	r.buildListeners()
	r.keepFilters()
	if len(r.refusals) > 0 {
		return nil, r.refusals
	}
	return r.next, nil
}

// Workers is the number of workers that the objects ask for; 0: as many as there are CPUs.
func Workers(objects []*configv1.Object) int {
	n := 0
	for _, o := range objects {
		n = max(n, int(o.GetRuntime().GetWorkers()))
	}
	return n
}

func (s *Settings) take(r *configv1.Runtime) {
	s.Workers = int(r.GetWorkers())
	s.MaxConnections = uint64(r.GetMaxConnections())
	s.Overload = r.GetOverload()
	if d := filter.Milliseconds(r.GetShutdownTimeMs()); d > 0 {
		s.ShutdownTime = time.Duration(d)
	}
	if d := filter.Milliseconds(r.GetDrainTimeMs()); d > 0 {
		s.DrainTime = time.Duration(d)
	}
	s.Leaving = Drain{Limit: s.DrainTime}
	if p := r.GetDrainListener(); p != nil {
		s.Leaving.Limit = time.Duration(filter.Milliseconds(p.GetShutdownTimeMs()))
		if !p.GetImmediate() {
			s.Leaving.Over = time.Duration(filter.Milliseconds(p.GetDrainTimeMs()))
		}
	}
}

func (r *build) refuse(o *configv1.Object, field string, err error) {
	r.refusals = append(r.refusals, &configv1.Refusal{Kind: o.GetKind(), Name: o.GetName(), Field: field, Message: err.Error()})
}

func (r *build) buildClusters() {
	var list []*configv1.Object
	var names []string
	for _, o := range r.next.Objects {
		if o.GetCluster() != nil {
			list = append(list, o)
			names = append(names, o.GetName())
			r.clusters[o.GetName()] = true
		}
	}
	r.assignHandles(names)
	r.next.Clusters = make([]*upstream.Config, len(r.next.handles))
	var changed []*configv1.Object
	names = names[:0]
	for _, o := range list {
		key := "cluster\x00" + o.GetName()
		handle := r.next.handles[o.GetName()]
		was := r.previous.parts[key]
		if was != nil && was.key == string(o.GetHash()) && int(handle) < len(r.previous.Clusters) && r.previous.Clusters[handle] != nil {
			r.next.parts[key] = was
			r.next.Clusters[handle] = r.previous.Clusters[handle]
			continue
		}
		changed = append(changed, o)
		names = append(names, o.GetName())
	}
	cells, mains := r.Stats.Clusters(r.ctx, names), r.Stats.ClusterMains(r.ctx, names)
	for i, o := range changed {
		handle := r.next.handles[o.GetName()]
		var was *cluster.Cluster
		if int(handle) < len(r.previous.Clusters) && r.previous.Clusters[handle] != nil {
			was = r.previous.Clusters[handle].Cluster
		}
		built, err := cluster.Build(r.found(o.GetCluster()), handle, was)
		if err != nil {
			r.refuse(o, "", err)
			continue
		}
		if built.Outlier != nil {
			built.Hosts.Observe(r.Workers)
		}
		config := &upstream.Config{Cluster: built, Cells: cells[i], Main: mains[i], Proxy: proxyVersions[o.GetCluster().GetProxyProtocol()]}
		for p := range built.Breakers {
			if built.Breakers[p].TrackRemaining {
				config.Left[p] = r.Stats.BreakersLeft(r.ctx, o.GetName(), p)
			}
		}
		if t := o.GetCluster().GetTls(); t != nil {
			if config.TLS, err = tlstransport.NewClient(t, tlstransport.ALPN(o.GetCluster().GetProtocol(), upstream.Protocols), r.Secrets); err != nil {
				r.refuse(o, "tls", err)
				continue
			}
		}
		r.next.Clusters[handle] = config
		r.next.parts["cluster\x00"+o.GetName()] = &part{key: string(o.GetHash())}
	}
}

// assignHandles gives each name its dense index: the one it had, or the next free one.
func (r *build) assignHandles(names []string) {
	r.next.handles = r.previous.handles
	copied := false
	for _, name := range names {
		if _, known := r.next.handles[name]; known {
			continue
		}
		if !copied {
			all := make(map[string]cluster.Handle, len(r.previous.handles)+len(names))
			for name, handle := range r.previous.handles {
				all[name] = handle
			}
			r.next.handles, copied = all, true
		}
		r.next.handles[name] = cluster.Handle(len(r.next.handles))
	}
}

// handle finds a cluster of the snapshot that is built.
func (r *build) handle(name string) (cluster.Handle, bool) {
	if !r.clusters[name] {
		return cluster.NoHandle, false
	}
	return r.next.handles[name], true
}

// accessLogs are the logs of the given names; each is made once.
func (r *build) accessLogs(user *configv1.Object, names []string) (logs []stream.AccessLog, ok bool) {
	for i, name := range names {
		o := r.logs[name]
		if o == nil {
			r.refuse(user, fmt.Sprintf("access_logs[%d]", i), fmt.Errorf("access log %q is not in the snapshot", name))
			return nil, false
		}
		key := "access_log\x00" + name
		p := r.next.parts[key]
		if p == nil {
			if p = r.previous.parts[key]; p == nil || p.key != string(o.GetHash()) {
				p = &part{key: string(o.GetHash())}
				if p.log, p.failed = r.Log(o.GetAccessLog()); p.failed != nil {
					r.refuse(o, "", p.failed)
				}
			}
			r.next.parts[key] = p
		}
		if p.failed != nil {
			return nil, false
		}
		logs = append(logs, p.log)
	}
	return logs, true
}

// Handle is the handle of a cluster's name, for those who hold names.
func (s *Snapshot) Handle(name string) (cluster.Handle, bool) {
	handle, ok := s.handles[name]
	return handle, ok && s.Clusters[handle] != nil
}

// Update gives new secrets to everything that uses some; the connections that are there stay as they are. What cannot take them
// keeps what it had.
func (s *Snapshot) Update(secrets *tlstransport.Secrets) (failed error) {
	for _, l := range s.Listeners {
		for _, c := range l.Chains {
			if c.TLS == nil {
				continue
			}
			if err := c.TLS.Update(secrets); err != nil {
				failed = errors.Join(failed, fmt.Errorf("listener %q: %w", l.Name, err))
			}
		}
	}
	for _, p := range s.parts {
		if p.filter == nil || p.filter.Update == nil {
			continue
		}
		if err := p.filter.Update(secrets); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	for _, c := range s.Clusters {
		if c == nil || c.TLS == nil {
			continue
		}
		if err := c.TLS.Update(secrets); err != nil {
			failed = errors.Join(failed, fmt.Errorf("cluster %q: %w", c.Name, err))
		}
	}
	return failed
}
