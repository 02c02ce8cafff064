// Package upstream holds the connections of one worker to upstream hosts: pools with limits, queues and time-outs, and
// the client side of HTTP/1.1.
//
// Life: a worker makes one Manager at its start and gives it every new list of clusters. A cluster costs nothing until
// its first request. Everything here runs on the worker's thread; the only thing read from elsewhere is the other
// workers' gauge cells, for the circuit breakers.
//
// Limits are Envoy's circuit breakers, counted over all workers by adding up their cells, so that there is nothing to
// lock: workers that race for the last place may overshoot by less than the number of workers. A host that has no
// connection in this worker may always open one, as in Envoy: otherwise a worker could starve beside others that hold all.
//
// Each priority has limits of its own. A connection counts for the priority of the request that it was made for, also when it
// serves the other one later: idle connections are everybody's, where Envoy has a pool for each priority. A host that has no
// connection of a priority may open one for it, so neither can shut the other out; of those that wait, high goes first.
package upstream

import (
	"sync/atomic"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/http2"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/worker"
)

// Config is one cluster with the cells of every worker: counters.Cluster by worker id.
type Config struct {
	*cluster.Cluster
	Cells []*counters.Cluster
	// Main is the main side's cells, and Left those of what each priority has left; nil where nobody tracks it.
	Main *counters.Cluster
	Left [cluster.Priorities]*counters.BreakersLeft
	TLS  *tlstransport.Client // nil: plain
	// Proxy is the version of the PROXY header that connections begin with; 0: none.
	Proxy int
}

// Load is a gauge of one priority over all workers; the cell holds both priorities', the one behind it high's part. Other
// workers' cells are read while they write: the value may be a few stores old, which is what the limits allow.
func (c *Config) Load(p cluster.Priority, gauge int) uint64 {
	var all, high uint64
	for _, cells := range c.Cells {
		all += atomic.LoadUint64(&cells[gauge])
		high += atomic.LoadUint64(&cells[gauge+1])
	}
	if p == cluster.High {
		return high
	}
	return all - min(high, all)
}

// Retries is how many retries of a priority there may be at a time: a part of the requests under way, or a number.
func (c *Config) Retries(p cluster.Priority) uint64 {
	breaker := &c.Breakers[p]
	if breaker.RetryBudget == 0 {
		return breaker.MaxRetries
	}
	requests := c.Load(p, counters.ClusterUpstreamRqActive) + c.Load(p, counters.ClusterUpstreamRqPendingActive)
	return max(breaker.MinRetries, requests*breaker.RetryBudget/100)
}

// Protocols are the ALPN names of what connections to hosts can speak.
var Protocols = []string{"h2", "http/1.1"}

// Callbacks tell the fate of a request for a stream. Exactly one is called, unless the request is cancelled; it may be
// called before NewStream returns.
type Callbacks interface {
	// OnPoolReady hands out a connection's encoder. It is dead after the response ended, its reset, or OnReset.
	// reused tells that the connection served before: a failure before any response byte may be its idle death.
	OnPoolReady(enc stream.RequestEncoder, host *cluster.Host, reused bool)
	// OnPoolFailure tells that there will be no connection. host is nil when none was chosen.
	OnPoolFailure(failure Failure, host *cluster.Host)
}

// Failure says why a pool had no connection for a stream. The router maps it to a status and a response flag.
type Failure uint8

const (
	NoCluster         Failure = iota + 1 // NC
	NoHost                               // UH
	Overflow                             // UO: a circuit breaker
	ConnectionFailure                    // UF
	ConnectionTimeout                    // UF
)

// Manager is one worker's upstream side.
type Manager struct {
	worker   *worker.Worker
	tls      *tlstransport.Side
	clusters []*Config // by handle, of the newest snapshot
	pools    []*pool   // by handle, nil until used
	used     []*pool   // those that exist, for sweeps
	waiting  *Pending  // free list
	spare    *client   // free list
	spares   int
	http2    *http2.Shared
	requests *request // free list
	kept     int
	head     []byte // scratch for request heads
	ids      uint64 // of connections: the worker's number above, a count below
}

// NewManager makes the upstream side of a worker.
func NewManager(w *worker.Worker, side *tlstransport.Side) *Manager {
	return &Manager{worker: w, tls: side, http2: http2.NewShared(&w.Pool), head: make([]byte, 0, 8<<10), ids: uint64(w.ID+1)<<48 | 1<<47}
}

func (m *Manager) nextID() uint64 {
	m.ids++
	return m.ids
}

// Update takes the clusters of a new snapshot, by handle; a nil entry is a cluster that went. Streams that have a
// connection keep it; idle connections to hosts that went are closed; queued requests of a cluster that went fail.
func (m *Manager) Update(clusters []*Config) {
	m.clusters = clusters
	for len(m.pools) < len(clusters) {
		m.pools = append(m.pools, nil)
	}
	kept := m.used[:0]
	for _, p := range m.used {
		var config *Config
		if int(p.handle) < len(clusters) {
			config = clusters[p.handle]
		}
		if config == nil {
			p.retire()
			m.pools[p.handle] = nil
			continue
		}
		p.update(config)
		kept = append(kept, p)
	}
	clear(m.used[len(kept):])
	m.used = kept
}

// Cluster returns the settings of a handle, or nil.
func (m *Manager) Cluster(handle cluster.Handle) *Config {
	if handle < 0 || int(handle) >= len(m.clusters) {
		return nil
	}
	return m.clusters[handle]
}

func (m *Manager) pool(handle cluster.Handle) *pool {
	config := m.Cluster(handle)
	if config == nil {
		return nil
	}
	p := m.pools[handle]
	if p == nil {
		p = newPool(m, config)
		m.pools[handle] = p
		m.used = append(m.used, p)
	}
	return p
}

// NewStream asks for a connection to a host of the cluster, within the limits of a priority, to another one than those of avoid where there is one. choice is
// what the request says about its host, nil for nothing. The result is nil when the answer was given already, else the place in
// the queue.
func (m *Manager) NewStream(handle cluster.Handle, priority cluster.Priority, avoid Avoid, choice *cluster.Choice, decoder stream.ResponseDecoder, cb Callbacks) *Pending {
	p := m.pool(handle)
	if p == nil {
		cb.OnPoolFailure(NoCluster, nil)
		return nil
	}
	return p.newStream(priority, avoid, choice, decoder, cb)
}

// Dial opens a connection of its own to a host of the cluster, for tcp_proxy: counted and limited like the others,
// never pooled; client is whom a PROXY header tells of, choice what is known about the host, or nil. The caller is the connection's handler and calls Closed from OnClose.
func (m *Manager) Dial(handle cluster.Handle, client *conn.Conn, choice *cluster.Choice, h conn.Handler) (c *conn.Conn, tunnel Tunnel, failure Failure) {
	p := m.pool(handle)
	if p == nil {
		return nil, Tunnel{}, NoCluster
	}
	return p.dialTunnel(client, choice, h)
}
