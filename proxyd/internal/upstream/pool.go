package upstream

import (
	"slices"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
)

// pool is one cluster in one worker: its balancer, and for each host the idle connections and the queues.
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
	where       where
	index       int // in the pool's host set; -1 when it left
	idle        *client
	sessions    *session                // HTTP/2 connections that take requests
	speaksHTTP2 bool                    // as a connection negotiated
	active      uint32                  // requests under way
	connections [cluster.Priorities]int // open or connecting, by the priority that they count for
	connecting  int
	queue       [cluster.Priorities]Pending // sentinels of rings
	queued      int                         // in all of them
}

// Pending is a request's place in a queue of a host.
type Pending struct {
	prev, next *Pending
	host       *host
	priority   cluster.Priority
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
			h = newHost(p, member)
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

func newHost(p *pool, member *cluster.Host) *host {
	h := &host{pool: p, host: member}
	for i := range h.queue {
		h.queue[i].prev, h.queue[i].next = &h.queue[i], &h.queue[i]
	}
	return h
}

// rehome gives the requests that wait for a connection to a host that left to the others.
func (h *host) rehome() {
	for h.queued > 0 {
		w := h.first()
		at := h.pool.choose(Avoid{}, w.choice)
		if at < 0 {
			_, cb := h.remove(w)
			cb.OnPoolFailure(NoHost, h.host)
			continue
		}
		to := h.pool.hosts[at]
		w.prev.next, w.next.prev = w.next, w.prev
		h.queued--
		to.push(w)
		to.supply(w.priority)
	}
}

// supply finds a connection for the request that waits and is next, or makes one when there is room for one of a priority more.
func (h *host) supply(p cluster.Priority) {
	switch c := h.idle; {
	case c != nil:
		h.idle, c.next = c.next, nil
		h.ready(c, true)
	case h.open() != nil:
		h.serve()
	case h.room(p) && h.wantsConnection():
		h.connect(p)
	}
}

// allows tells whether a priority's circuit breaker has room for one more connection; a host without any of that priority may
// always have one.
func (h *host) allows(p cluster.Priority) bool {
	return h.connections[p] == 0 || h.pool.config.Load(p, counters.ClusterUpstreamCxActive) < h.pool.config.Breakers[p].MaxConnections
}

// room is allows, and counts a refusal.
func (h *host) room(p cluster.Priority) bool {
	if h.allows(p) {
		return true
	}
	h.pool.count(counters.ClusterUpstreamCxOverflow, p)
	return false
}

// relieve opens a connection in the place of one that went, for requests that a limit had kept waiting.
func (h *host) relieve() {
	for _, p := range [...]cluster.Priority{cluster.High, cluster.Default} {
		if h.waits(p) && h.allows(p) {
			h.connect(p)
			return
		}
	}
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

// full tells that the cluster has as many requests of a priority under way as it may.
func (p *pool) full(priority cluster.Priority) bool {
	return p.config.Load(priority, counters.ClusterUpstreamRqActive) >= p.config.Breakers[priority].MaxRequests
}

// Avoid is the hosts that a request should rather not have again, and how often another one is looked for.
type Avoid struct {
	Hosts  []*cluster.Host
	Labels []cluster.Label // a host that has all of these; none: no host
	Looks  int
}

func (a *Avoid) has(h *cluster.Host) bool {
	return slices.Contains(a.Hosts, h) || len(a.Labels) > 0 && h.Has(a.Labels)
}

// choose finds a host for a request, -1 for none: another one than those to avoid where there is one. choice is what the
// request says about it, or nil.
func (p *pool) choose(avoid Avoid, choice *cluster.Choice) int {
	at, mode := p.balancer.Choose(p.manager.worker.Rand(), p.active, choice)
	if len(p.hosts) > 1 {
		for n := 0; n < avoid.Looks && at >= 0 && avoid.has(p.hosts[at].host); n++ {
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
func (p *pool) newStream(priority cluster.Priority, avoid Avoid, choice *cluster.Choice, decoder stream.ResponseDecoder, cb Callbacks) *Pending {
	if p.full(priority) {
		p.count(counters.ClusterUpstreamRqPendingOverflow, priority)
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
		c.attach(decoder, priority)
		h.preconnect(priority)
		cb.OnPoolReady(c, h.host, true)
		return nil
	}
	if c := h.open(); c != nil {
		c.begin(decoder, cb, priority)
		return nil
	}
	room := h.room(priority)
	if p.config.Load(priority, counters.ClusterUpstreamRqPendingActive) >= p.config.Breakers[priority].MaxPending {
		p.count(counters.ClusterUpstreamRqPendingOverflow, priority)
		cb.OnPoolFailure(Overflow, h.host)
		return nil
	}
	pending := h.enqueue(priority, choice, decoder, cb)
	if room && h.wantsConnection() {
		h.connect(priority)
		h.preconnect(priority)
	}
	return pending
}

// preconnects bounds how many connections one request opens ahead of others, as Envoy does.
const preconnects = 3

// preconnect opens connections that the next requests will need, within the breaker of this one's priority. A connection of HTTP/2 has
// room for them as it is.
func (h *host) preconnect(p cluster.Priority) {
	ratio := int(h.pool.config.Preconnect)
	if ratio <= 100 || h.multiplexes() {
		return
	}
	missing := ((h.queued+int(h.active))*ratio+99)/100 - h.connections[cluster.Default] - h.connections[cluster.High]
	for range min(missing, preconnects) {
		if h.pool.config.Load(p, counters.ClusterUpstreamCxActive) >= h.pool.config.Breakers[p].MaxConnections {
			return
		}
		h.connect(p)
	}
}

// assumedStreams is how many requests a connection of HTTP/2 is expected to take before its server has said it (RFC 9113 6.5.2
// asks for no less).
const assumedStreams = 100

func (h *host) enqueue(priority cluster.Priority, choice *cluster.Choice, decoder stream.ResponseDecoder, cb Callbacks) *Pending {
	m := h.pool.manager
	w := m.waiting
	if w == nil {
		w = &Pending{}
	} else {
		m.waiting = w.next
	}
	w.priority, w.choice, w.decoder, w.callbacks = priority, choice, decoder, cb
	h.push(w)
	h.pool.cells[counters.ClusterUpstreamRqPendingTotal]++
	h.pool.count(counters.ClusterUpstreamRqPendingActive, priority)
	return w
}

// push puts a request at the end of its priority's queue.
func (h *host) push(w *Pending) {
	w.host = h
	queue := &h.queue[w.priority]
	last := queue.prev
	w.prev, w.next = last, queue
	last.next, queue.prev = w, w
	h.queued++
}

// waits tells that requests of a priority wait.
func (h *host) waits(p cluster.Priority) bool { return h.queue[p].next != &h.queue[p] }

// first is the request whose turn it is, of those that wait: the oldest one of high priority, else the oldest.
func (h *host) first() *Pending {
	if h.waits(cluster.High) {
		return h.queue[cluster.High].next
	}
	return h.queue[cluster.Default].next
}

// remove takes a request out of the queue and gives its place back.
func (h *host) remove(w *Pending) (stream.ResponseDecoder, Callbacks) {
	w.prev.next, w.next.prev = w.next, w.prev
	decoder, cb := w.decoder, w.callbacks
	h.queued--
	h.pool.uncount(counters.ClusterUpstreamRqPendingActive, w.priority)
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
		_, cb := h.remove(h.first())
		cb.OnPoolFailure(why, h.host)
	}
}

// failOne answers a request when there are more of them than connections being made: one failed connect fails one request, of
// the priority that it was made for where one waits.
func (h *host) failOne(why Failure, p cluster.Priority) {
	if h.queued > h.connecting {
		w := h.first()
		if h.waits(p) {
			w = h.queue[p].next
		}
		_, cb := h.remove(w)
		cb.OnPoolFailure(why, h.host)
	}
}

// ready gives a free connection to the queued request whose turn it is, or keeps it for later.
func (h *host) ready(c *client, reused bool) {
	for h.queued > 0 {
		if !h.admit() {
			continue
		}
		w := h.first()
		priority := w.priority
		decoder, cb := h.remove(w)
		c.attach(decoder, priority)
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

// admit tells whether the queued request whose turn it is may go on. Those that wait are not under way yet: when the limit was
// reached while they waited they are refused, as Envoy does.
func (h *host) admit() bool {
	w := h.first()
	if !h.pool.full(w.priority) {
		return true
	}
	h.pool.count(counters.ClusterUpstreamRqPendingOverflow, w.priority)
	_, cb := h.remove(w)
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

func (h *host) opened(p cluster.Priority) {
	h.connections[p]++
	h.pool.cells[counters.ClusterUpstreamCxTotal]++
	h.pool.count(counters.ClusterUpstreamCxActive, p)
}

// closed counts a connection out, and opens another one when requests wait that a limit had kept back.
func (h *host) closed(p cluster.Priority) {
	h.connections[p]--
	h.pool.uncount(counters.ClusterUpstreamCxActive, p)
	h.pool.cells[counters.ClusterUpstreamCxDestroy]++
	if h.queued > h.connecting && h.index >= 0 && (!h.multiplexes() || h.connecting == 0) {
		h.relieve()
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

// count counts what is of both priorities, and the part of high behind it; uncount takes it back from a gauge.
func (p *pool) count(cell int, priority cluster.Priority) {
	p.cells[cell]++
	p.cells[cell+1] += uint64(priority)
}

func (p *pool) uncount(gauge int, priority cluster.Priority) {
	p.cells[gauge]--
	p.cells[gauge+1] -= uint64(priority)
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

func (h *host) requestBegan(p cluster.Priority) {
	h.took()
	h.pool.cells[counters.ClusterUpstreamRqTotal]++
	h.pool.count(counters.ClusterUpstreamRqActive, p)
}

func (h *host) requestEnded(p cluster.Priority) {
	h.gave()
	h.pool.uncount(counters.ClusterUpstreamRqActive, p)
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

func (h *host) countStatus(head *header.Response) {
	status := head.Status
	if h.pool.config.Check != nil && head.Has(header.XEnvoyImmediateHealthCheckFail) {
		h.host.Fail()
	}
	h.record(status)
	if class := status / 100; class >= 1 && class <= 5 {
		h.pool.cells[counters.ClusterUpstreamRqXX+class-1]++
	}
}

// record tells the outlier detection how a request to the host ended; status 0 is no answer.
func (h *host) record(status int) {
	h.host.Record(h.pool.manager.worker.ID, h.pool.config.Outlier, status)
}
