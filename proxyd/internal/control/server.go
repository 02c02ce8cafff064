// Package control is the main side of proxyd: it follows configd, takes sockets and commands from restartd, has snapshots
// built and posts them to the workers, and answers proxy/v1. Plain goroutines; nothing here is on a request's path.
//
// Order: the first snapshot (configd's, or the last-good one when configd is away) decides the number of workers and starts
// them; then the process fetches the sockets of its listeners, attaches to restartd, says ready and waits to be told to
// serve. What fails later leaves the process on what it last applied.
package control

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"

	"retinue.dev/libs/cpus"
	"retinue.dev/libs/daemon"
	"retinue.dev/libs/peer"
	"retinue.dev/libs/unixsocket"
	"retinue.dev/proxyd/internal/accesslog"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/health"
	"retinue.dev/proxyd/internal/jwks"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/plugin"
	"retinue.dev/proxyd/internal/snapshot"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tracing"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
	proxyv1 "retinue.dev/services/api/proxy/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
	statsv1 "retinue.dev/services/api/stats/v1"
)

const (
	// patience is how long a starting process waits for configd's snapshot before it takes the last-good one; shortPatience
	// where nobody answers at configd's socket.
	patience      = 2 * time.Second
	shortPatience = 250 * time.Millisecond
	// termTime is how long connections have after TERM. Whoever wants to be patient says QUIT, or has restartd drain.
	termTime = 5 * time.Second
	// socketPatience is how long a generation that could be ready waits for sockets that restartd does not have.
	socketPatience = 10 * time.Second
	housekeeping   = 200 * time.Millisecond
	logPatience    = 2 * time.Second
)

// Server is proxyd. Its life: New, Run once.
type Server struct {
	env         *daemon.Env
	generation  uint64
	started     time.Time
	descriptors uint64
	loops       loops
	stats       *counters.Set
	logs        *accesslog.Logs
	spans       *tracing.Exporter
	builder     snapshot.Builder
	found       map[string][]*configv1.Endpoint // that configd found, by cluster; under the watcher's lock
	plugins     *plugin.Registry
	following   context.Context // of what follows restartd's plugins; set before workers are made

	first chan struct{} // closed when the first snapshot is applied
	ended chan struct{} // closed when there is nothing left to do
	told  chan struct{} // closed when restartd was told of the end, or cannot be

	// ops holds changes apart: a snapshot, sockets, a command. What only they touch is below.
	ops       sync.Mutex
	installed map[string]*snapshot.Listener // whose sockets are on the workers
	clusters  []*upstream.Config            // as the workers have them: with the hosts that take requests
	monitor   *health.Monitor
	keySets   *jwks.Follower
	keyBell   *bell       // workers want keys
	shutdown  *time.Timer // the end of a drain
	// verdictsWritten is when what is known of hosts was kept last; keepHouse's own. judged tells that it changed since.
	verdictsWritten time.Time
	judged          atomic.Bool
	giving          *giving // connections to the successor

	// mu guards what others read.
	mu        sync.Mutex
	current   *snapshot.Snapshot
	server    *counters.Server
	expiries  []expiry // of certificates
	accepting bool
	part      listener.Part // of its sockets, while it accepts
	draining  bool
	patient   bool // QUIT
	finished  bool
	cut       uint64
	cutWhat   cuts
	failed    error

	moved, taken atomic.Uint64 // live connections given and taken
	turn         atomic.Uint32 // of the workers that take
}

// New makes the server.
func New(env *daemon.Env, generation uint64) (*Server, error) {
	descriptors, err := raiseLimits()
	if err != nil {
		return nil, fmt.Errorf("descriptor limit: %w", err)
	}
	return newServer(env, generation, descriptors), nil
}

func newServer(env *daemon.Env, generation, descriptors uint64) *Server {
	s := &Server{
		env: env, generation: generation, started: time.Now(), descriptors: descriptors,
		first: make(chan struct{}), ended: make(chan struct{}), told: make(chan struct{}),
		installed: map[string]*snapshot.Listener{}, found: map[string][]*configv1.Endpoint{},
	}
	s.monitor = s.newMonitor()
	s.keySets = s.newFollower()
	return s
}

// Run implements daemon.Server.
func (s *Server) Run(ctx context.Context) error {
	limitMemory()
	work, cancel := context.WithCancel(context.Background())
	defer cancel()

	stats, err := peer.Dial(s.env.Socket("statsd.sock"))
	if err != nil {
		return err
	}
	defer stats.Close()
	s.stats = counters.NewSet(statsv1.NewStatsClient(stats), s.env.Socket("statsd.fd.sock"), s.env.Dir, s.generation, s.env.Log)

	config, err := peer.Dial(s.env.Socket("configd.sock"))
	if err != nil {
		return err
	}
	defer config.Close()
	s.following = work
	w := newWatcher(s)
	client := configv1.NewConfigClient(config)
	w.recall()
	go w.followEndpoints(work, client)
	go w.follow(work, client)
	if !s.waitFirst(ctx, w) {
		return s.failure()
	}
	unixsocket.Sweep("unix", s.env.Socket("proxyd-*.sock")) // of generations that were killed
	admin := fmt.Sprintf("proxyd-%d.sock", s.generation)
	if err := s.env.ServeGRPC(work, admin, func(g *grpc.Server) { proxyv1.RegisterProxyServer(g, &adminServer{s: s}) }, peer.Same()); err != nil {
		return err
	}
	defer os.Remove(s.env.Socket(admin))
	restart, err := peer.Dial(s.env.Socket("restartd.sock"))
	if err != nil {
		return err
	}
	defer restart.Close()
	givers, err := s.listenForGivers()
	if err != nil {
		return err
	}
	defer givers.Close()
	go s.keepHouse(work)
	go s.watchResources(work)
	go s.monitor.Run(work)
	go s.beThrifty(work)
	go s.attach(work, restartv1.NewRestartClient(restart))
	s.env.Ready(fmt.Sprintf("generation %d, snapshot %.12s", s.generation, s.snapshotID()))
	s.watchdog(work)

	select {
	case <-s.ended:
	case <-ctx.Done(): // TERM or QUIT from a person: restartd's way is Drain
		s.mu.Lock()
		limit := termTime
		if s.patient {
			limit = s.current.Settings.ShutdownTime
		}
		s.mu.Unlock()
		s.drain("shutdown", limit, 0, true, 0)
		<-s.ended
	}
	select {
	case <-s.told:
	case <-time.After(time.Second):
	}
	cancel()
	s.keySets.Close()
	s.loops.stop()
	_ = s.keyBell.event.Close() // nobody rings it any more
	flush, done := context.WithTimeout(context.Background(), logPatience)
	defer done()
	s.logs.Close(flush)
	s.spans.Close(flush)
	return s.failure()
}

// waitFirst waits for the first snapshot and takes the last-good one when configd does not come. false: the process is to end.
func (s *Server) waitFirst(ctx context.Context, w *watcher) bool {
	wait := time.NewTimer(patience)
	defer wait.Stop()
	away := w.away
	for {
		select {
		case <-s.first:
			return true
		case <-s.ended:
			return false
		case <-ctx.Done():
			return false
		case <-away:
			away = nil
			wait.Reset(shortPatience)
		case <-wait.C:
			if err := w.takeLastGood(ctx); err != nil {
				s.env.Log.Warn("no start from the last-good snapshot; waiting for configd", "error", err)
			}
			wait.Reset(patience)
		}
	}
}

// Quit implements daemon.Quitter: the end that comes is patient.
func (s *Server) Quit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.patient = true
}

// ReopenLogs implements daemon.LogReopener.
func (s *Server) ReopenLogs() {
	s.ops.Lock()
	logs := s.logs
	s.ops.Unlock()
	if logs != nil {
		logs.Reopen()
	}
}

// start makes the workers that the first snapshot wants. Their number stays.
func (s *Server) start(ctx context.Context, want int) error {
	s.ops.Lock()
	defer s.ops.Unlock()
	if s.loops.count() > 0 {
		return nil
	}
	n := want
	if n <= 0 {
		n = cpus.Usable()
	}
	runtime.GOMAXPROCS(n + 2)
	s.stats.SetWorkers(n)
	cells := s.stats.Workers(ctx)
	if err := s.loops.make(n, cells); err != nil {
		return err
	}
	ends := make([]accesslog.Worker, n)
	for i, l := range s.loops.all() {
		ends[i] = accesslog.Worker{Worker: l.Worker, Dropped: &cells[i][counters.WorkerAccessLogDropped]}
	}
	s.logs = accesslog.New(ends, s.env.Log, func(failed, dropped uint64) {
		s.count(counters.ServerAccessLogWriteFailed, failed)
		s.count(counters.ServerAccessLogDropped, dropped)
	})
	recorders := make([]tracing.Worker, n)
	for i, l := range s.loops.all() {
		recorders[i] = tracing.Worker{Worker: l.Worker, Recorded: &cells[i][counters.WorkerSpansRecorded], Dropped: &cells[i][counters.WorkerSpansDropped]}
	}
	s.spans = tracing.NewExporter(s.env.Socket("statsd.spans.sock"), s.generation, recorders, s.env.Log)
	workers := make([]*worker.Worker, n)
	pools := make([]*upstream.Manager, n)
	for i, l := range s.loops.all() {
		workers[i], pools[i] = l.Worker, l.manager
	}
	s.plugins = plugin.NewRegistry(workers, s.generation, s.stats)
	var err error
	if s.keyBell, err = newBell("keys"); err != nil {
		return err
	}
	go s.keyBell.hear(s.keySets.Look)
	s.builder = snapshot.Builder{
		Workers: n, Stats: s.stats, Plugins: s.plugins, Endpoints: s.found, Pools: pools, Spans: s.spans.Log, WantKeys: s.keyBell.ring,
		Log: func(c *configv1.AccessLog) (stream.AccessLog, error) { return s.logs.Log(c) },
	}
	server := s.stats.Server(ctx)
	server[counters.ServerConcurrency] = uint64(n)
	server[counters.ServerHotRestartEpoch] = s.generation
	server[counters.ServerState] = stateStarting
	s.mu.Lock()
	s.server = server
	s.mu.Unlock()
	s.loops.run()
	go s.followPlugins(s.following)
	return nil
}

// count adds to one of the process's own cells.
func (s *Server) count(cell int, n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.server != nil {
		s.server[cell] += n
	}
}

// The values of the gauge "state".
const (
	stateLive = iota
	stateDraining
	stateStarting
)

// keepHouse keeps the process's own gauges, fetches sockets that were late, and notices the end of a drain.
func (s *Server) keepHouse(ctx context.Context) {
	tick := time.NewTicker(housekeeping)
	defer tick.Stop()
	var limits breakers
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.ops.Lock()
		s.fetch()
		s.ops.Unlock()
		s.keepVerdicts(time.Now())
		s.mu.Lock()
		empty := s.draining && !s.accepting && !s.finished
		s.gauges()
		current := s.current
		s.mu.Unlock()
		if current != nil {
			limits.judge(time.Now(), current.Clusters)
		}
		if empty && s.loops.connections() == 0 {
			s.env.Log.Info("drained")
			s.finish(nil)
		}
	}
}

// gauges writes the process's own gauges; with mu held.
func (s *Server) gauges() {
	state, live := uint64(stateStarting), uint64(0)
	if s.accepting {
		state, live = stateLive, 1
	}
	if s.draining {
		state = stateDraining
	}
	for _, e := range s.expiries {
		e.cell[counters.CertificateExpiration] = e.at * live
	}
	s.server[counters.ServerUptime] = uint64(time.Since(s.started) / time.Second)
	s.server[counters.ServerLive] = live
	s.server[counters.ServerState] = state
}

// finish ends Run, once.
func (s *Server) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.finished {
		s.finished, s.failed = true, err
		close(s.ended)
	}
}

func (s *Server) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *Server) snapshotID() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return ""
	}
	return s.current.ID
}

func (s *Server) phase() (accepting, draining bool, part restartv1.Part) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepting, s.draining, partOf(s.part)
}
