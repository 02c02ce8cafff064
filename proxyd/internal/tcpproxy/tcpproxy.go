// Package tcpproxy is the network filter that carries bytes between a client and a host of a cluster.
//
// Both ends may close their half on their own; a reset on one side is a reset on the other, so that nobody takes a part for
// the whole. Reading stops while the far side does not keep up. Everything runs on the worker's thread.
package tcpproxy

import (
	"net/netip"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
)

// Target is one of the clusters that connections are spread over.
type Target struct {
	Cluster    cluster.Handle
	Name       string
	Cumulative uint64 // sum of the weights up to and with this one
	Subset     *cluster.Subset
}

// Config is one TCP proxy. Immutable; a connection keeps the one it began with.
type Config struct {
	Targets     []Target
	IdleTimeout int64 // ns; 0: none
	Attempts    int   // connects to try; at least 1
	BufferLimit int   // bytes each way
	HashSource  bool  // the client's address is the key of consistent hashes
	Cells       []*counters.TCP
	Name        string // of the listener
	Logs        []stream.AccessLog
	Shown       *stream.Config // what they see of the configuration: the name of the chain
	// Filter makes the sessions' network filters; nil for none.
	Filter FilterFactory
}

// Filter makes sessions of one listener on one worker.
type Filter struct {
	Worker  *worker.Worker
	Manager *upstream.Manager
	// Config is what new connections get. Main changes it by a post to the worker.
	Config *Config

	sessions *session // open ones
	spare    *session // free list
	spares   int
	open     int
	record   stream.Stream // what logs are shown of a session that ends
	gone     gone          // its client
}

// Open is how many sessions the filter has.
func (f *Filter) Open() int { return f.open }

// CloseAll cuts every session: the end of shutdown_time. It returns how many there were.
func (f *Filter) CloseAll() int {
	n := 0
	for f.sessions != nil {
		f.sessions.abort()
		n++
	}
	return n
}

// session is one client and its host. down and up are nil once closed.
type session struct {
	filter   *Filter
	config   *Config
	cells    *counters.TCP
	listener *listener.Listener
	down, up *conn.Conn
	tunnel   upstream.Tunnel
	client   clientSide
	server   serverSide
	timer    timer.Timer
	activity int64
	attempts int
	choice   cluster.Choice
	// bytes that came in large reads in a row
	clientBulk, serverBulk int
	ended                  bool
	refused                bool // by the process that was to take it

	id, read, written  uint64
	start, wall, ready int64          // ns; ready is when the host was there
	peer, local        netip.AddrPort // local: where there are logs
	remote             netip.AddrPort // of the host
	transport          conn.Transport // of the client, for the logs
	flags              stream.Flags
	clusterName        string
	details            string
	network            NetworkFilter // nil for none

	prev, next *session
}

// The two ends are handlers of their own; they are parts of the session, so that one allocation makes all.
type (
	clientSide struct{ *session }
	serverSide struct{ *session }
)

// Accept implements listener.Filter.
func (f *Filter) Accept(down *conn.Conn, l *listener.Listener) {
	s := f.session()
	s.filter, s.config, s.cells, s.listener, s.activity = f, f.Config, f.Config.Cells[f.Worker.ID], l, f.Worker.Now()
	s.client.session, s.server.session = s, s
	s.start, s.wall, s.peer, s.id = f.Worker.Now(), f.Worker.Wall(), down.Peer(), down.ID()
	s.timer.Callback = s
	down.SetHandler(&s.client)
	s.down = down
	s.note(down)
	s.link()
	f.open++
	s.cells[counters.TCPDownstreamCxTotal]++
	s.cells[counters.TCPDownstreamCxActive]++
	down.PauseRead() // until the host is there: a failed connect can be tried again with nothing lost
	if s.config.Filter != nil {
		s.network = s.config.Filter.NewNetworkFilter(f.Worker, filtered{s})
		if !s.network.Connect() || s.down == nil || s.up != nil {
			return
		}
	}
	s.connect()
}

func (s *session) connect() {
	s.attempts++
	handle := cluster.NoHandle
	var choice *cluster.Choice
	if target := s.pick(); target != nil {
		handle, s.clusterName = target.Cluster, target.Name
		if target.Subset != nil || s.config.HashSource {
			s.choice = cluster.Choice{Subset: target.Subset, Attempt: uint32(s.attempts - 1), Hashed: s.config.HashSource}
			if s.config.HashSource {
				s.choice.Hash = cluster.HashAddress(s.down.Peer().Addr())
			}
			choice = &s.choice
		}
	}
	up, tunnel, failure := s.filter.Manager.Dial(handle, s.down, choice, &s.server)
	if failure != 0 {
		s.flags |= failureFlags[failure]
		if failure == upstream.NoCluster {
			s.cells[counters.TCPDownstreamCxNoRoute]++
		}
		s.abort()
		return
	}
	s.up, s.tunnel = up, tunnel
}

func (s *session) pick() *Target {
	targets := s.config.Targets
	if len(targets) == 0 {
		return nil
	}
	at := s.filter.Worker.Rand() % targets[len(targets)-1].Cumulative
	for i := range targets {
		if at < targets[i].Cumulative {
			return &targets[i]
		}
	}
	return &targets[0]
}

// OnTimer ends a session in which nothing has moved for the idle time-out.
func (s *session) OnTimer(t *timer.Timer, now int64) {
	if now-s.activity >= s.config.IdleTimeout {
		s.cells[counters.TCPIdleTimeout]++
		s.abort()
		return
	}
	s.filter.Worker.Timers.Set(t, s.activity+s.config.IdleTimeout)
}

// abort ends both sides at once.
func (s *session) abort() {
	if s.up != nil {
		s.up.Abort()
	}
	if s.down != nil {
		s.down.Abort()
	}
}

// drained ends the session when both sides have said their last.
func (s *session) drained() {
	if s.network != nil && s.network.Holding() {
		return
	}
	if s.down != nil && s.up != nil && s.down.EOF() && s.up.EOF() {
		s.down.CloseAfterFlush(0)
		s.up.CloseAfterFlush(0)
	}
}

func (s *session) link() {
	s.next = s.filter.sessions
	if s.next != nil {
		s.next.prev = s
	}
	s.filter.sessions = s
}

func (s *session) unlink() {
	if s.prev != nil {
		s.prev.next = s.next
	} else {
		s.filter.sessions = s.next
	}
	if s.next != nil {
		s.next.prev = s.prev
	}
	s.prev, s.next = nil, nil
}

// end counts the session out when both connections are gone.
func (s *session) end() {
	if s.ended || s.down != nil || s.up != nil {
		return
	}
	s.ended = true
	f := s.filter
	if s.network != nil {
		s.network.Closed()
		s.network = nil
	}
	f.Worker.Timers.Stop(&s.timer)
	s.unlink()
	f.open--
	s.log()
	s.cells[counters.TCPDownstreamCxActive]--
	s.listener.Gone()
	f.Worker.Bury(s)
}

// keptSessions bounds the free list: what a burst needed beyond it goes back to the heap.
const keptSessions = 256

func (f *Filter) session() *session {
	s := f.spare
	if s == nil {
		return &session{}
	}
	f.spare, s.next = s.next, nil
	f.spares--
	return s
}

// Reclaim implements worker.Spent.
func (s *session) Reclaim() bool {
	f := s.filter
	if f.spares >= keptSessions {
		return true
	}
	*s = session{next: f.spare}
	f.spare = s
	f.spares++
	return true
}

const (
	// bulkRead is a read that tells of bulk, and bulkRun how many bytes of such reads in a row turn a direction to splicing.
	bulkRead = 32 << 10
	bulkRun  = 256 << 10
)

// bulk watches a direction that is copied and splices it when much comes at a time. conn ends the splice when little does.
func (s *session) bulk(run *int, from, to *conn.Conn, n int, sink conn.Splicer) {
	if n < bulkRead {
		*run = 0
		return
	}
	if *run += n; *run < bulkRun || !s.spliceable() || from == nil || to == nil || from.Closed() || to.Closed() {
		return
	}
	*run = 0
	if !from.Spliceable() || !to.Spliceable() {
		return
	}
	from.SpliceTo(to, -1, sink)
}

func (s *session) moved(n int) {
	if n > 0 {
		s.activity = s.filter.Worker.Now()
	}
}

func (s *session) pause(reader *conn.Conn) {
	if reader != nil {
		s.cells[counters.TCPFlowControlPausedReadingTotal]++
		reader.PauseRead()
	}
}

func (s *session) goOn(reader *conn.Conn) {
	if reader != nil {
		s.cells[counters.TCPFlowControlResumedReadingTotal]++
		reader.ResumeRead()
	}
}

// OnConnected implements conn.Handler; accepted connections are.
func (s *clientSide) OnConnected(*conn.Conn) {}

// OnData implements conn.Handler.
func (s *clientSide) OnData(_ *conn.Conn, data []byte) int {
	s.activity = s.filter.Worker.Now()
	if s.shown(FromClient, data) {
		return len(data)
	}
	if s.up != nil {
		s.up.Send(data)
		s.bulk(&s.clientBulk, s.down, s.up, len(data), s)
	}
	return len(data)
}

// OnSpliced implements conn.Splicer.
func (s *clientSide) OnSpliced(_ *conn.Conn, n int, _ bool) { s.moved(n) }

// OnEOF implements conn.Handler.
func (s *clientSide) OnEOF(*conn.Conn) {
	if s.network != nil && s.network.End(FromClient) {
		return
	}
	if s.up != nil {
		s.up.CloseWrite()
	}
	s.drained()
}

// OnAboveHigh implements conn.Handler.
func (s *clientSide) OnAboveHigh(*conn.Conn) { s.pause(s.up) }

// OnBelowLow implements conn.Handler.
func (s *clientSide) OnBelowLow(*conn.Conn) { s.goOn(s.up) }

// OnClose implements conn.Handler.
func (s *clientSide) OnClose(c *conn.Conn, reason conn.Reason) {
	s.cells[counters.TCPDownstreamCxRxBytesTotal] += c.BytesRead()
	s.cells[counters.TCPDownstreamCxTxBytesTotal] += c.BytesWritten()
	s.read, s.written = c.BytesRead(), c.BytesWritten()
	s.down = nil
	if s.up != nil && reason != conn.LocalClose {
		s.flags |= stream.FlagDownstreamTermination
		s.up.Abort()
	}
	s.end()
}

// OnConnected implements conn.Handler.
func (s *serverSide) OnConnected(c *conn.Conn) {
	s.tunnel.Connected(c)
	s.remote = poller.IP(c.Address().Raw)
	s.activity = s.filter.Worker.Now()
	s.ready = s.activity
	if s.config.IdleTimeout > 0 {
		s.filter.Worker.Timers.Set(&s.timer, s.activity+s.config.IdleTimeout)
	}
	s.down.ResumeRead()
}

// OnData implements conn.Handler.
func (s *serverSide) OnData(_ *conn.Conn, data []byte) int {
	s.activity = s.filter.Worker.Now()
	if s.shown(FromServer, data) {
		return len(data)
	}
	if s.down != nil {
		s.down.Send(data)
		s.bulk(&s.serverBulk, s.up, s.down, len(data), s)
	}
	return len(data)
}

// OnSpliced implements conn.Splicer.
func (s *serverSide) OnSpliced(_ *conn.Conn, n int, _ bool) { s.moved(n) }

// OnEOF implements conn.Handler.
func (s *serverSide) OnEOF(*conn.Conn) {
	if s.network != nil && s.network.End(FromServer) {
		return
	}
	if s.down != nil {
		s.down.CloseWrite()
	}
	s.drained()
}

// OnAboveHigh implements conn.Handler.
func (s *serverSide) OnAboveHigh(*conn.Conn) { s.pause(s.down) }

// OnBelowLow implements conn.Handler.
func (s *serverSide) OnBelowLow(*conn.Conn) { s.goOn(s.down) }

// OnClose implements conn.Handler.
func (s *serverSide) OnClose(c *conn.Conn, reason conn.Reason) {
	s.tunnel.Closed(c, reason)
	s.up = nil
	switch {
	case s.down == nil:
	case reason == conn.ConnectFailure || reason == conn.ConnectTimeout:
		if s.attempts < s.config.Attempts {
			s.connect()
			return
		}
		s.flags |= stream.FlagUpstreamConnectionFailure
		s.down.Abort()
	case reason != conn.LocalClose:
		s.flags |= stream.FlagUpstreamTermination
		s.down.Abort()
	}
	s.end()
}
