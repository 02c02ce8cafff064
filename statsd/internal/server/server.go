// Package server puts statsd together: the region's keeper, its services, the HTTP side, and the order of start and end.
package server

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"

	"retinue.dev/libs/buildinfo"
	"retinue.dev/libs/daemon"
	"retinue.dev/libs/peer"
	"retinue.dev/libs/region"
	configv1 "retinue.dev/services/api/config/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
	statsv1 "retinue.dev/services/api/stats/v1"

	"retinue.dev/statsd/internal/control"
	"retinue.dev/statsd/internal/exposition"
	"retinue.dev/statsd/internal/history"
	"retinue.dev/statsd/internal/keeper"
	"retinue.dev/statsd/internal/push"
	"retinue.dev/statsd/internal/settings"
	"retinue.dev/statsd/internal/spans"
	"retinue.dev/statsd/internal/suite"
	"retinue.dev/statsd/internal/web"
)

const (
	// turn is how often the dead are looked for, and the dashboard's unit of time.
	turn = time.Second
	// grace is how long configd may take at the first start before the default address is used.
	grace = 3 * time.Second
	// stuck is how long housekeeping may take before the watchdog is not fed.
	stuck = 10 * time.Second
)

// Server is statsd. Its life: New opens the region; Run serves until its context ends, and leaves the region as it is.
type Server struct {
	env      *daemon.Env
	started  time.Time
	keeper   *keeper.Keeper
	source   *exposition.Source
	history  *history.History
	suite    *suite.Siblings
	handler  *web.Handler
	http     *web.Server
	push     *push.Manager
	spans    *spans.Exporter
	follower *settings.Follower
	siblings []*grpc.ClientConn
}

// New opens the region of the run directory.
func New(_ context.Context, env *daemon.Env) (daemon.Server, error) {
	s := &Server{env: env, started: time.Now()}
	if err := s.open(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// Test is -t: the place of the region is usable.
func Test(_ context.Context, env *daemon.Env) error {
	if _, err := os.Stat(env.Dir); err != nil {
		return fmt.Errorf("the run directory: %w", err)
	}
	dir, err := region.Find(env.Dir)
	if err == nil {
		fmt.Println("the stats region is in", dir)
	}
	return err
}

func (s *Server) open() (err error) {
	if s.keeper, err = keeper.Open(s.env.Dir, region.Options{Log: s.env.Log}); err != nil {
		return err
	}
	s.source, err = exposition.NewSource(func() (*region.Reader, error) { return region.OpenReader(s.keeper.Dir(), s.env.Dir) })
	if err != nil {
		return err
	}
	configd, err := s.dial("configd.sock")
	if err != nil {
		return err
	}
	restartd, err := s.dial("restartd.sock")
	if err != nil {
		return err
	}
	s.history = history.New(s.source)
	s.suite = suite.New(configd, restartd, time.Now)
	s.handler, err = web.NewHandler(web.Sources{
		Series: s.source, History: s.history, Siblings: s.suite, Own: s.own, About: s.about, Log: s.env.Log,
	})
	if err != nil {
		return err
	}
	s.http = web.NewServer(s.handler, s.env.Log)
	s.push = push.New(s.source, s.source.Created, s.env.Log)
	s.spans = spans.New(s.env.Log.With("signal", "spans"))
	s.follower = settings.New(configv1.NewConfigClient(configd), &target{http: s.http, keeper: s.keeper, push: s.push, spans: s.spans}, s.env.StateDir, s.env.Log)
	return nil
}

func (s *Server) dial(socket string) (*grpc.ClientConn, error) {
	conn, err := peer.Dial(s.env.Socket(socket))
	if err == nil {
		s.siblings = append(s.siblings, conn)
	}
	return conn, err
}

func (s *Server) close() {
	if s.http != nil {
		s.http.Close()
	}
	if s.push != nil {
		s.push.Close()
	}
	if s.spans != nil {
		s.spans.Close()
	}
	for _, c := range s.siblings {
		c.Close()
	}
	if s.source != nil {
		s.source.Close()
	}
	if s.keeper != nil {
		s.keeper.Close()
	}
}

// Run implements daemon.Server.
func (s *Server) Run(ctx context.Context) error {
	defer s.close()
	policy := peer.Same()
	s.keeper.Turn() // adopts spills and folds the dead before anybody asks
	gone, err := control.ServeDescriptors(ctx, s.env.Socket("statsd.fd.sock"), s.keeper, policy, s.env.Log)
	if err != nil {
		return err
	}
	spansGone, err := s.spans.Serve(ctx, s.env.Socket("statsd.spans.sock"), policy)
	if err != nil {
		return err
	}
	service := control.NewService(s.keeper, s.source, s.http.Address)
	register := func(g *grpc.Server) { statsv1.RegisterStatsServer(g, service) }
	if err := s.env.ServeGRPC(ctx, "statsd.sock", register, policy); err != nil {
		return err
	}
	s.follower.Start()
	following := make(chan struct{})
	go func() {
		defer close(following)
		s.follower.Run(ctx, grace)
	}()
	u := s.keeper.Usage()
	s.env.Log.Info("the stats region is open", "region", s.keeper.Dir(), "groups", u.Groups, "sheets", u.SheetsLive+u.SheetsDead)
	s.env.Ready(fmt.Sprintf("%d series in %s", u.Series, s.keeper.Dir()))
	s.env.FeedWatchdog(ctx, alive(s.keeper.Turns, time.Now))

	ticker := time.NewTicker(turn)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			<-following
			<-gone
			<-spansGone
			return nil
		case now := <-ticker.C:
			s.keeper.Turn()
			s.http.Retry()
			s.handler.Tick(ctx, now)
		}
	}
}

// alive tells whether housekeeping still turns.
func alive(turns func() uint64, now func() time.Time) func() bool {
	last, moved := turns(), now()
	return func() bool {
		if n := turns(); n != last {
			last, moved = n, now()
		}
		return now().Sub(moved) < stuck
	}
}

func (s *Server) about() web.About {
	u := s.keeper.Usage()
	return web.About{
		Version: buildinfo.Version, Revision: buildinfo.Revision(), Started: s.started.UnixMilli(),
		Series: u.Series, Bytes: u.Bytes, Sheets: u.SheetsLive, Refused: u.Refused,
	}
}

// own are statsd's own series, ordered by name.
func (s *Server) own(scrapes uint64) []exposition.Own {
	u := s.keeper.Usage()
	gauge := func(name, help string, v float64) exposition.Own {
		return exposition.Own{Name: exposition.Prefix + name, Help: help, Kind: region.Gauge, Value: v}
	}
	counter := func(name, help string, v uint64) exposition.Own {
		return exposition.Own{Name: exposition.Prefix + name, Help: help, Kind: region.Counter, Value: float64(v)}
	}
	build := gauge("build_info", "statsd's version, as labels", 1)
	build.Labels = []region.Label{{Name: "revision", Value: buildinfo.Revision()}, {Name: "version", Value: buildinfo.Version}}
	own := []exposition.Own{
		build,
		gauge("statsd_broken_sheets", "sheets and spills left out because they make no sense", float64(s.source.Broken())),
		counter("statsd_declares_refused_total", "groups of series that were refused", u.Refused),
		counter("statsd_fold_errors_total", "times dead sheets could not be folded", u.FoldErrors),
		gauge("statsd_groups", "groups of series", float64(u.Groups)),
		gauge("statsd_groups_retired", "groups of series that nobody names any more", float64(u.Retired)),
		gauge("statsd_push_queue_bytes", "values that wait for a receiver to take them", 0),
		counter("statsd_push_dropped_total", "OTLP requests given up: refused for good, or pushed out of the queue", 0),
		counter("statsd_push_failed_total", "sendings that failed; most are tried again", 0),
		counter("statsd_push_sent_total", "datagrams and OTLP requests sent", 0),
		counter("statsd_region_compactions_total", "times a second region took the place of one that was mostly hidden groups", u.Compacted),
		gauge("statsd_region_bytes", "size of the stats region", float64(u.Bytes)),
		counter("statsd_scrapes_total", "scrapes of metrics", scrapes),
		gauge("statsd_series", "series, without buckets", float64(u.Series)),
		counter("statsd_sheets_folded_total", "sheets of dead writers folded into the ledger", u.Folded),
		gauge("statsd_sheets_live", "sheets whose writer lives", float64(u.SheetsLive)),
		gauge("statsd_start_time_seconds", "start of this statsd since the epoch", float64(s.started.UnixMilli())/1000),
	}
	if t := s.spans.Usage(); t.Endpoint != "" || t.Received > 0 {
		own = append(own,
			gauge("statsd_spans_queue_bytes", "spans that wait for the collector to take them", float64(t.Queued)),
			counter("statsd_spans_received_total", "spans that proxyd brought", t.Received),
			counter("statsd_spans_unwanted_total", "spans dropped because no collector is configured, or that were malformed", t.Unwanted),
			counter("statsd_spans_requests_sent_total", "requests with spans that the collector accepted", t.Sent),
			counter("statsd_spans_requests_failed_total", "requests with spans that failed; most are tried again", t.Failed),
			counter("statsd_spans_requests_dropped_total", "requests with spans given up: refused for good, or pushed out of the queue", t.Dropped))
	}
	looks := s.suite.Discovery(context.Background())
	dropped := maps.Clone(u.Others)
	if n := len(looks) - mostDiscoveries; n > 0 {
		looks = looks[:mostDiscoveries]
		if dropped == nil {
			dropped = map[string]int{}
		}
		dropped["cluster_update"] = n
	}
	for _, schema := range slices.Sorted(maps.Keys(dropped)) {
		o := counter("statsd_series_dropped_total", "clusters, listeners and the like beyond max_series, which are counted in the series __other__", uint64(dropped[schema]))
		o.Labels = []region.Label{{Name: "schema", Value: schema}}
		own = append(own, o)
	}
	for _, m := range s.suite.Plugins(context.Background()) {
		own = append(own, pluginMetric(m))
	}
	for _, d := range looks {
		own = append(own, discovery(d)...)
	}
	slices.SortStableFunc(own, func(a, b exposition.Own) int { return strings.Compare(a.Name, b.Name) })
	return s.pushed(own)
}

// mostDiscoveries bounds the clusters whose look-ups have series.
const mostDiscoveries = 10_000

// discovery are the series of the look-ups that configd makes for one cluster. Envoy's names, but for the last one.
func discovery(d *configv1.DiscoveryStatus) []exposition.Own {
	var own []exposition.Own
	add := func(name, help string, kind region.Kind, v float64) {
		own = append(own, exposition.Own{
			Name: exposition.Prefix + "cluster_" + name, Help: help, Kind: kind, Labels: []region.Label{{Name: "cluster", Value: d.GetCluster()}}, Value: v,
		})
	}
	count := func(name, help string, v uint64) { add(name+"_total", help, region.Counter, float64(v)) }
	count("update_attempt", "looks for the cluster's endpoints, by name or in a file that changed", d.GetSuccesses()+d.GetFailures()+d.GetEmpties())
	count("update_success", "looks that found endpoints", d.GetSuccesses())
	count("update_failure", "looks that failed; the endpoints found last stay", d.GetFailures())
	count("update_empty", "looks that were answered with no endpoint; those found last stay", d.GetEmpties())
	count("update_no_rebuild", "looks that found the same endpoints", d.GetNoRebuilds())
	if at := d.GetLastSuccessUnixMs(); at > 0 {
		add("update_success_unix_time_seconds", "when endpoints were found last", region.Gauge, float64(at)/1000)
	}
	return own
}

// pluginMetric is a series of a plugin's own. Kind and name go together, so that two plugins never disagree about a family.
func pluginMetric(m *restartv1.PluginMetric) exposition.Own {
	o := exposition.Own{
		Name: exposition.Prefix + "plugin_own_" + strings.TrimSuffix(m.GetName(), "_total"), Help: "a plugin's own counter", Kind: region.Counter,
		Labels: []region.Label{{Name: "plugin", Value: m.GetPlugin()}}, Value: m.GetValue(),
	}
	if m.GetGauge() {
		o.Help, o.Kind = "a plugin's own gauge", region.Gauge
		return o
	}
	o.Name += "_total"
	return o
}

// pushed puts the receivers in the place of the series that stand for them.
func (s *Server) pushed(own []exposition.Own) []exposition.Own {
	receivers := s.push.Receivers()
	var out []exposition.Own
	for _, o := range own {
		value := map[string]func(push.Receiver) float64{
			"statsd_push_queue_bytes":   func(r push.Receiver) float64 { return float64(r.Queued) },
			"statsd_push_dropped_total": func(r push.Receiver) float64 { return float64(r.Dropped) },
			"statsd_push_failed_total":  func(r push.Receiver) float64 { return float64(r.Failed) },
			"statsd_push_sent_total":    func(r push.Receiver) float64 { return float64(r.Sent) },
		}[strings.TrimPrefix(o.Name, exposition.Prefix)]
		if value == nil {
			out = append(out, o)
			continue
		}
		for _, r := range receivers {
			o.Labels = []region.Label{{Name: "address", Value: r.Address}, {Name: "format", Value: r.Format}}
			o.Value = value(r)
			out = append(out, o)
		}
	}
	return out
}

// target is where settings go: each to its room.
type target struct {
	http    *web.Server
	keeper  *keeper.Keeper
	push    *push.Manager
	spans   *spans.Exporter
	pending settings.Settings
}

// Prepare implements settings.Target. The cap is in force at once: proxyd names the new series while it prepares.
func (t *target) Prepare(s settings.Settings) error {
	t.pending = s
	t.keeper.SetMaxSeries(s.MaxSeries)
	return t.http.Prepare(s.Listen)
}

// Commit implements settings.Target.
func (t *target) Commit() {
	t.http.Commit()
	t.rest(t.pending)
}

// Abort implements settings.Target.
func (t *target) Abort() { t.http.Abort() }

// Insist implements settings.Target.
func (t *target) Insist(s settings.Settings) {
	t.http.Insist(s.Listen)
	t.rest(s)
}

func (t *target) rest(s settings.Settings) {
	t.keeper.SetMaxSeries(s.MaxSeries)
	t.push.Set(s.Push)
	t.spans.Set(s.Tracing)
}
