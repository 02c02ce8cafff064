package upstream

import (
	"slices"
	"sync/atomic"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/stream"
)

// pool is one cluster in one worker: its balancer, and for each host the idle connections and the queue.
type pool struct {
	manager  *Manager
	handle   cluster.Handle
	config   *Config
	cells    *counters.Cluster // of this worker
	balancer cluster.Balancer
	hosts    []*host  // beside config.Hosts.Hosts
	active   []uint32 // requests under way, beside hosts: what least request looks at
}

// host is one endpoint in one worker. It outlives the host set while it has connections.
type host struct {
	pool        *pool
	host        *cluster.Host
	target      *poller.Address // made at the first connect
	index       int             // in the pool's host set; -1 when it left
	idle        *client
	sessions    *session // HTTP/2 connections that take requests
	speaksHTTP2 bool     // as a connection negotiated
	active      uint32   // requests under way
	connections int      // open or connecting
	connecting  int
	queue       Pending // sentinel of a ring
	queued      int
}

// Pending is a request's place in a host's queue.
type Pending struct {
	prev, next *Pending
	host       *host
	choice     *cluster.Choice
	decoder    stream.ResponseDecoder
	callbacks  Callbacks
}

func newPool(m *Manager, config *Config) *pool {
	p := &pool{manager: m, handle: config.Handle}
	p.update(config)
	return p
}

// update takes a new value of the cluster. Hosts that both name keep their connections.
func (p *pool) update(config *Config) {
	if p.config == config {
		return
	}
	previous := p.config
	p.config = config
	p.cells = config.Cells[p.manager.worker.ID]
	if previous != nil && (previous.HTTP2 == nil) != (config.HTTP2 == nil) || previous != nil && previous.Negotiate != config.Negotiate {
		for _, h := range p.hosts { // what is open speaks the wrong protocol
			h.speaksHTTP2 = false
			h.closeIdle()
		}
	}
	if previous != nil && previous.Hosts == config.Hosts {
		return
	}
	old := p.hosts
	p.hosts = make([]*host, len(config.Hosts.Hosts))
	p.active, p.balancer.Busy = make([]uint32, len(p.hosts)), 0
	known := make(map[*cluster.Host]*host, len(old))
	for _, h := range old {
		known[h.host] = h
	}
	for i, member := range config.Hosts.Hosts {
		h := known[member]
		if h == nil {
			h = &host{pool: p, host: member}
			h.queue.prev, h.queue.next = &h.queue, &h.queue
		}
		delete(known, member)
		h.index = i
		p.hosts[i], p.active[i] = h, h.active
		p.balancer.Busy += uint64(h.active)
	}
	p.balancer.Reset(config.Hosts, p.manager.worker.Rand())
	for _, gone := range known {
		gone.index = -1
		gone.closeIdle()
	}
	for _, gone := range known {
		gone.rehome()
	}
}

// rehome gives the requests that wait for a connection to a host that left to the others.
func (h *host) rehome() {
	for h.queued > 0 {
		w := h.queue.next
		at := h.pool.choose(nil, w.choice)
		if at < 0 {
			_, cb := h.remove(w)
			cb.OnPoolFailure(NoHost, h.host)
			continue
		}
		to := h.pool.hosts[at]
		w.prev.next, w.next.prev = w.next, w.prev
		h.queued--
		to.push(w)
		to.supply()
	}
}

// supply finds a connection for the oldest request that waits, or makes one when there is room.
func (h *host) supply() {
	switch c := h.idle; {
	case c != nil:
		h.idle, c.next = c.next, nil
		h.ready(c, true)
	case h.open() != nil:
		h.serve()
	case h.room() && h.wantsConnection():
		h.connect()
	}
}

// room tells whether the circuit breaker allows one more connection; a host without any always may have one.
func (h *host) room() bool {
	if h.connections == 0 || h.pool.sum(counters.ClusterUpstreamCxActive) < h.pool.config.Breaker.MaxConnections {
		return true
	}
	h.pool.cells[counters.ClusterUpstreamCxOverflow]++
	return false
}

// wantsConnection tells whether those that are being made do not suffice for the requests that wait.
func (h *host) wantsConnection() bool {
	return h.connecting == 0 || !h.multiplexes() || h.queued > h.connecting*assumedStreams
}

// retire ends a pool whose cluster left the configuration.
func (p *pool) retire() {
	for _, h := range p.hosts {
		h.index = -1
		h.closeIdle()
		h.fail(NoCluster)
	}
	p.hosts, p.active = nil, nil
}

// sum adds up one cell over all workers. Other workers' cells are read while they write: the value may be a few
// stores old, which is what the limits allow.
func (p *pool) sum(cell int) uint64 {
	var total uint64
	for _, cells := range p.config.Cells {
		total += atomic.LoadUint64(&cells[cell])
	}
	return total
}

// full tells that the cluster has as many requests under way as it may.
func (p *pool) full() bool {
	return p.sum(counters.ClusterUpstreamRqActive) >= p.config.Breaker.MaxRequests
}

// avoidTries is how often another host is asked for than those that failed.
const avoidTries = 3

// choose finds a host for a request, -1 for none: another one than those of avoid where there is one. choice is what the
// request says about it, or nil.
func (p *pool) choose(avoid []*cluster.Host, choice *cluster.Choice) int {
	at, mode := p.balancer.Choose(p.manager.worker.Rand(), p.active, choice)
	if len(avoid) > 0 && len(p.hosts) > 1 {
		for n := 0; at >= 0 && slices.Contains(avoid, p.hosts[at].host) && n < avoidTries; n++ {
			if choice != nil {
				choice.Attempt++
			}
			at, mode = p.balancer.Choose(p.manager.worker.Rand(), p.active, choice)
		}
	}
	if mode != 0 {
		p.countMode(mode)
	}
	if at < 0 {
		p.cells[counters.ClusterUpstreamCxNoneHealthy]++
	}
	return at
}

func (p *pool) countMode(mode cluster.Mode) {
	if mode&cluster.Panicked != 0 {
		p.cells[counters.ClusterLBHealthyPanic]++
	}
	if mode&cluster.Selected != 0 {
		p.cells[counters.ClusterLBSubsetsSelected]++
	}
	if mode&cluster.FellBack != 0 {
		p.cells[counters.ClusterLBSubsetsFallback]++
	}
}

// newStream finds a connection for a request, or queues it.
func (p *pool) newStream(avoid []*cluster.Host, choice *cluster.Choice, decoder stream.ResponseDecoder, cb Callbacks) *Pending {
	if p.full() {
		p.cells[counters.ClusterUpstreamRqPendingOverflow]++
		cb.OnPoolFailure(Overflow, nil)
		return nil
	}
	at := p.choose(avoid, choice)
	if at < 0 {
		cb.OnPoolFailure(NoHost, nil)
		return nil
	}
	h := p.hosts[at]
	if c := h.idle; c != nil {
		h.idle = c.next
		c.next = nil
		c.attach(decoder)
		h.preconnect()
		cb.OnPoolReady(c, h.host, true)
		return nil
	}
	if c := h.open(); c != nil {
		c.begin(decoder, cb)
		return nil
	}
	room := h.room()
	if p.sum(counters.ClusterUpstreamRqPendingActive) >= p.config.Breaker.MaxPending {
		p.cells[counters.ClusterUpstreamRqPendingOverflow]++
		cb.OnPoolFailure(Overflow, h.host)
		return nil
	}
	pending := h.enqueue(choice, decoder, cb)
	if room && h.wantsConnection() {
		h.connect()
		h.preconnect()
	}
	return pending
}

// preconnects bounds how many connections one request opens ahead of others, as Envoy does.
const preconnects = 3

// preconnect opens connections that the next requests will need, within the breaker. A connection of HTTP/2 has room for them as it is.
func (h *host) preconnect() {
	ratio := int(h.pool.config.Preconnect)
	if ratio <= 100 || h.multiplexes() {
		return
	}
	missing := ((h.queued+int(h.active))*ratio+99)/100 - h.connections
	for range min(missing, preconnects) {
		if h.pool.sum(counters.ClusterUpstreamCxActive) >= h.pool.config.Breaker.MaxConnections {
			return
		}
		h.connect()
	}
}

// assumedStreams is how many requests a connection of HTTP/2 is expected to take before its server has said it (RFC 9113 6.5.2
// asks for no less).
const assumedStreams = 100

func (h *host) enqueue(choice *cluster.Choice, decoder stream.ResponseDecoder, cb Callbacks) *Pending {
	m := h.pool.manager
	w := m.waiting
	if w == nil {
		w = &Pending{}
	} else {
		m.waiting = w.next
	}
	w.choice, w.decoder, w.callbacks = choice, decoder, cb
	h.push(w)
	h.pool.cells[counters.ClusterUpstreamRqPendingTotal]++
	h.pool.cells[counters.ClusterUpstreamRqPendingActive]++
	return w
}

// push puts a request at the end of the queue.
func (h *host) push(w *Pending) {
	w.host = h
	last := h.queue.prev
	w.prev, w.next = last, &h.queue
	last.next, h.queue.prev = w, w
	h.queued++
}

// remove takes a request out of the queue and gives its place back.
func (h *host) remove(w *Pending) (stream.ResponseDecoder, Callbacks) {
	w.prev.next, w.next.prev = w.next, w.prev
	decoder, cb := w.decoder, w.callbacks
	h.queued--
	h.pool.cells[counters.ClusterUpstreamRqPendingActive]--
	m := h.pool.manager
	*w = Pending{next: m.waiting}
	m.waiting = w
	return decoder, cb
}

// Cancel gives the place in the queue up; no callback follows. A connection that was being made for it goes on and
// serves the next request.
func (w *Pending) Cancel() {
	w.host.pool.cells[counters.ClusterUpstreamRqCancelled]++
	w.host.remove(w)
}

// fail answers every queued request.
func (h *host) fail(why Failure) {
	for h.queued > 0 {
		_, cb := h.remove(h.queue.next)
		cb.OnPoolFailure(why, h.host)
	}
}

// failOne answers the oldest request when there are more of them than connections being made: one failed connect
// fails one request.
func (h *host) failOne(why Failure) {
	if h.queued > h.connecting {
		_, cb := h.remove(h.queue.next)
		cb.OnPoolFailure(why, h.host)
	}
}

// ready gives a free connection to the oldest queued request, or keeps it for later.
func (h *host) ready(c *client, reused bool) {
	for h.queued > 0 {
		if !h.admit() {
			continue
		}
		decoder, cb := h.remove(h.queue.next)
		c.attach(decoder)
		cb.OnPoolReady(c, h.host, reused)
		return
	}
	if h.index < 0 { // it left while the connection was made
		c.transport.Close()
		return
	}
	c.next = h.idle
	h.idle = c
}

// admit tells whether the oldest queued request may go on. Those that wait are not under way yet: when the cluster's limit was
// reached while they waited they are refused, as Envoy does.
func (h *host) admit() bool {
	if !h.pool.full() {
		return true
	}
	_, cb := h.remove(h.queue.next)
	h.pool.cells[counters.ClusterUpstreamRqPendingOverflow]++
	cb.OnPoolFailure(Overflow, h.host)
	return false
}

func (h *host) closeIdle() {
	for h.idle != nil {
		h.idle.transport.Close() // OnClose takes it off the list
	}
	for c := h.sessions; c != nil; c = h.sessions {
		c.leave()
		c.closeWhenEmpty()
	}
}

// dropIdle takes a connection that ended off the idle list.
func (h *host) dropIdle(c *client) {
	for at := &h.idle; *at != nil; at = &(*at).next {
		if *at == c {
			*at = c.next
			c.next = nil
			return
		}
	}
}

func (h *host) opened() {
	h.connections++
	h.pool.cells[counters.ClusterUpstreamCxTotal]++
	h.pool.cells[counters.ClusterUpstreamCxActive]++
}

// closed counts a connection out, and opens another one when requests wait that a limit had kept back.
func (h *host) closed() {
	h.connections--
	h.pool.cells[counters.ClusterUpstreamCxActive]--
	h.pool.cells[counters.ClusterUpstreamCxDestroy]++
	if h.queued > h.connecting && h.index >= 0 && (!h.multiplexes() || h.connecting == 0) {
		h.connect()
	}
}

// connectFailed counts a connection that could not be made.
func (h *host) connectFailed(reason conn.Reason) {
	h.record(0)
	if reason == conn.ConnectTimeout {
		h.pool.cells[counters.ClusterUpstreamCxConnectTimeout]++
	}
	h.pool.cells[counters.ClusterUpstreamCxConnectFail]++
}

func failureOf(reason conn.Reason) Failure {
	if reason == conn.ConnectTimeout {
		return ConnectionTimeout
	}
	return ConnectionFailure
}

// took and gave count what a host has under way, for the balancer too.
func (h *host) took() {
	h.active++
	if h.index >= 0 {
		h.pool.active[h.index]++
		h.pool.balancer.Busy++
	}
}

func (h *host) gave() {
	h.active--
	if h.index >= 0 {
		h.pool.active[h.index]--
		h.pool.balancer.Busy--
	}
}

func (h *host) requestBegan() {
	h.took()
	h.pool.cells[counters.ClusterUpstreamRqTotal]++
	h.pool.cells[counters.ClusterUpstreamRqActive]++
}

func (h *host) requestEnded() {
	h.gave()
	h.pool.cells[counters.ClusterUpstreamRqActive]--
}

func (h *host) countTxReset() { h.pool.cells[counters.ClusterUpstreamRqTxReset]++ }
func (h *host) countRxReset() {
	h.record(0)
	h.pool.cells[counters.ClusterUpstreamRqRxReset]++
}

// observe counts a request that was answered, by its time in nanoseconds.
func (h *host) observe(took int64) { h.pool.cells.ObserveRqTime(uint64(took) / 1000) }

func (h *host) countPause(pause bool) {
	if pause {
		h.pool.cells[counters.ClusterUpstreamFlowControlPausedReadingTotal]++
		return
	}
	h.pool.cells[counters.ClusterUpstreamFlowControlResumedReadingTotal]++
}

func (h *host) countStatus(status int) {
	h.record(status)
	if class := status / 100; class >= 1 && class <= 5 {
		h.pool.cells[counters.ClusterUpstreamRqXX+class-1]++
	}
}

// record tells the outlier detection how a request to the host ended; status 0 is no answer.
func (h *host) record(status int) {
	h.host.Record(h.pool.manager.worker.ID, h.pool.config.Outlier, status)
}
