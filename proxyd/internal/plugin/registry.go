package plugin

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
)

// maxAddress is the longest path of a socket address.
const maxAddress = 107

// Registry is the main side of all plugins: names, the table that restartd last told, what the snapshot says of each. Any goroutine
// of the main side may use it.
type Registry struct {
	hosts []*Host
	stats *counters.Set

	mu      sync.Mutex
	handles map[string]int // a name keeps its handle for the life of the process
	cells   [][]*counters.Plugin
	objects map[string]settings // by configuration hash: a generation is compiled with the object that it was configured with
	table   *restartv1.PluginTable
	known   map[uint64]*Generation
	refused map[uint64]string
	changed chan struct{} // closed when a table came or a channel opened
}

type settings struct {
	timeout     int64
	maxInFlight int
}

// NewRegistry makes it for workers that do not run yet. Without workers it serves a snapshot that is only looked at.
func NewRegistry(workers []*worker.Worker, generation uint64, stats *counters.Set) *Registry {
	r := &Registry{
		stats: stats, handles: map[string]int{}, objects: map[string]settings{}, known: map[uint64]*Generation{},
		refused: map[uint64]string{}, changed: make(chan struct{}),
	}
	for _, w := range workers {
		h := &Host{worker: w, generation: generation, registry: r, frame: make([]byte, 0, 4<<10), words: map[string]string{}}
		h.task.Runner = h
		r.hosts = append(r.hosts, h)
	}
	return r
}

// Use is a plugin in one list of filters: the stream.Factory of its streams.
type Use struct {
	gates  []gate // by worker
	handle int
	name   string
	config string
	open   bool
	cells  []*counters.Plugin // by worker
	detail [failures]string
	// respondDetail is RESPONSE_CODE_DETAILS of the plugin's own answers.
	respondDetail string
	spanName      string
}

// Use makes the factory of a plugin's filter. hash is that of the plugin's object.
func (r *Registry) Use(ctx context.Context, p *configv1.Plugin, hash []byte, mode configv1.OnError) *Use {
	if mode == configv1.OnError_ON_ERROR_UNSPECIFIED {
		mode = p.GetOnError()
	}
	u := &Use{gates: make([]gate, len(r.hosts)), name: p.GetName(), config: string(hash), open: mode == configv1.OnError_ON_ERROR_OPEN}
	for i, h := range r.hosts {
		u.gates[i] = gate{use: u, host: h}
	}
	for why, word := range [failures]string{"unavailable", "timeout", "overflow", "circuit_open", "invalid_reply"} {
		u.detail[why] = "plugin_" + p.GetName() + "_" + word
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	handle, ok := r.handles[u.name]
	if !ok {
		handle = len(r.handles)
		r.handles[u.name] = handle
		r.cells = append(r.cells, r.stats.Plugins(ctx, []string{u.name})[0])
	}
	u.handle, u.cells, u.respondDetail = handle, r.cells[handle], "plugin_"+u.name+"_responded"
	u.spanName = "plugin " + u.name
	most := int(p.GetMaxInFlight())
	if most == 0 {
		most = 1024
	}
	r.objects[u.config] = settings{timeout: max(p.GetTimeoutMs(), 1) * int64(time.Millisecond), maxInFlight: most}
	r.post(u.name)
	return u
}

// Update takes restartd's table.
func (r *Registry) Update(t *restartv1.PluginTable) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.table = t
	live := map[uint64]bool{}
	for _, p := range t.GetPlugins() {
		for _, g := range p.GetGenerations() {
			live[g.GetNumber()] = usable(g)
		}
	}
	for n := range r.known {
		if !live[n] {
			delete(r.known, n)
		}
	}
	for n := range r.refused {
		if !live[n] {
			delete(r.refused, n)
		}
	}
	for name := range r.handles {
		r.post(name)
	}
	r.signal()
}

func usable(g *restartv1.PluginGeneration) bool {
	switch g.GetState() {
	case restartv1.PluginState_PLUGIN_STATE_READY, restartv1.PluginState_PLUGIN_STATE_CANARY, restartv1.PluginState_PLUGIN_STATE_SERVING:
		return true
	}
	return false
}

// post gives every worker the present generations of a plugin; with mu held. A name without a factory has no channels.
func (r *Registry) post(name string) {
	handle, ok := r.handles[name]
	if !ok {
		return
	}
	var shares []share
	for _, p := range r.table.GetPlugins() {
		if p.GetName() != name {
			continue
		}
		serving := map[string]bool{}
		for _, g := range p.GetGenerations() {
			if g.GetState() == restartv1.PluginState_PLUGIN_STATE_SERVING {
				serving[string(g.GetConfigHash())] = true
			}
		}
		for _, g := range p.GetGenerations() {
			ready := g.GetState() == restartv1.PluginState_PLUGIN_STATE_READY
			if !usable(g) || ready && serving[string(g.GetConfigHash())] {
				continue
			}
			if built := r.generation(g); built != nil {
				s := share{generation: built}
				if g.GetState() == restartv1.PluginState_PLUGIN_STATE_CANARY {
					s.canary = g.GetCanaryPercent()
				}
				shares = append(shares, s)
			}
		}
	}
	cells := r.cells[handle]
	for _, h := range r.hosts {
		h.worker.Post(func() { h.update(handle, cells, shares) })
	}
}

// generation compiles what restartd tells of one; nil when it cannot be used, or its object is not known here (yet).
func (r *Registry) generation(g *restartv1.PluginGeneration) *Generation {
	if built := r.known[g.GetNumber()]; built != nil {
		return built
	}
	set, ok := r.objects[string(g.GetConfigHash())]
	if !ok {
		return nil
	}
	sub, err := compile(g.GetSubscription())
	if v := g.GetProtocol(); v > 1 {
		err = fmt.Errorf("generation %d speaks version %d of the filter protocol, this proxyd 1: upgrade proxyd first, or install a plugin that speaks 1 too", g.GetNumber(), v)
	}
	if err == nil && (g.GetDataAddress() == "" || len(g.GetDataAddress()) > maxAddress) {
		err = fmt.Errorf("its data socket %q cannot be reached", g.GetDataAddress())
	}
	if err != nil {
		r.refused[g.GetNumber()] = err.Error()
		return nil
	}
	built := &Generation{
		Number: g.GetNumber(), configID: g.GetConfigId(), config: string(g.GetConfigHash()), sub: sub,
		address: poller.NewUnix(g.GetDataAddress()), timeout: set.timeout, maxInFlight: set.maxInFlight,
		open: make([]atomic.Bool, len(r.hosts)),
	}
	if sub.maxInFlight > 0 {
		built.maxInFlight = min(built.maxInFlight, sub.maxInFlight)
	}
	r.known[built.Number] = built
	return built
}

// attached wakes who awaits channels. A worker calls it when a connection opened, not for a request; it does not wait for the lock.
func (r *Registry) attached() {
	go func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.signal()
	}()
}

func (r *Registry) signal() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Await waits until every worker is attached to a generation of each use's configuration, for as long as ctx lasts; it answers the
// name of one that is not, "" when all are. A subscription that cannot be served is an error.
func (r *Registry) Await(ctx context.Context, uses []*Use) (missing string, err error) {
	for {
		r.mu.Lock()
		changed := r.changed
		missing, err = r.missing(uses)
		r.mu.Unlock()
		if missing == "" || err != nil {
			return missing, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return missing, nil
		}
	}
}

func (r *Registry) missing(uses []*Use) (string, error) {
	for _, u := range uses {
		found := false
		for _, p := range r.table.GetPlugins() {
			for _, g := range p.GetGenerations() {
				if p.GetName() != u.name || string(g.GetConfigHash()) != u.config || !usable(g) {
					continue
				}
				if why := r.refused[g.GetNumber()]; why != "" {
					return u.name, fmt.Errorf("plugin %q: %s", u.name, why)
				}
				if built := r.known[g.GetNumber()]; built != nil {
					open := true
					for w := range built.open {
						open = open && built.open[w].Load()
					}
					found = found || open
				}
			}
		}
		if !found {
			return u.name, nil
		}
	}
	return "", nil
}
