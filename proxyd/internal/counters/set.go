package counters

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"retinue.dev/libs/hello"
	"retinue.dev/libs/region"
	statsv1 "retinue.dev/services/api/stats/v1"
	suitev1 "retinue.dev/services/api/suite/v1"
)

// batch is how many groups one Declare names.
const batch = 2000

// Set resolves groups to cells of every worker's sheet and of the main side's. It belongs to the main side; several
// goroutines may use it. Handles stay valid for the life of the process.
//
// While statsd is away, new groups go to a spill, which statsd adopts; what was resolved once is remembered, so that an
// unchanged cluster keeps its cells over snapshots. If even the spill cannot be made (a full disk), groups count in heap
// memory: nobody sees those numbers, which is logged, but traffic goes on.
type Set struct {
	client     statsv1.StatsClient
	socket     string // of the descriptor service
	runDir     string
	generation uint64
	workers    int
	log        *slog.Logger
	heap       bool

	mu     sync.Mutex
	sheets map[uint32]*region.Sheet // statsd's, by worker
	former []*region.Sheet          // of a region that another has replaced
	spill  *region.Spill
	known  map[string]*group
	https  []*group // of connection managers
}

// group is what one declared group resolved to.
type group struct {
	wanted
	cells   [][]uint64
	epoch   uint64 // of the region that the cells are in; 0 for a spill and for memory
	retired bool   // statsd was told that nobody names it; naming it again tells it again
}

// NewSet makes a set for a process; SetWorkers comes before anything else. client may be nil: everything goes to the spill then.
func NewSet(client statsv1.StatsClient, fdSocket, runDir string, generation uint64, log *slog.Logger) *Set {
	return &Set{
		client: client, socket: fdSocket, runDir: runDir, generation: generation, log: log,
		sheets: map[uint32]*region.Sheet{}, known: map[string]*group{},
	}
}

// NewHeap makes a set whose cells are plain memory that nobody else sees, for a snapshot that is only looked at, and for tests.
func NewHeap(workers int) *Set {
	return &Set{heap: true, workers: workers, known: map[string]*group{}}
}

// SetWorkers tells how many workers there are, before anything is resolved: the first snapshot decides it.
func (s *Set) SetWorkers(n int) { s.workers = n }

func cells(schema int) int {
	n := 0
	for _, f := range Schemas[schema].GetFields() {
		if f.GetKind() == statsv1.Kind_KIND_HISTOGRAM {
			n += region.HistogramCells
		} else {
			n++
		}
	}
	return n
}

type wanted struct {
	key    string
	schema int
	labels []*statsv1.Label
}

func want(schema int, label, value string) wanted {
	w := wanted{key: Schemas[schema].GetName() + "\x00" + value, schema: schema}
	if label != "" {
		w.labels = []*statsv1.Label{{Name: label, Value: value}}
	}
	return w
}

// Clusters returns the cells of clusters by name: for each name one handle a worker.
func (s *Set) Clusters(ctx context.Context, names []string) [][]*Cluster {
	return handles[Cluster](s, ctx, schemaCluster, "cluster", names)
}

// HTTP returns the cells of connection managers by stat prefix.
func (s *Set) HTTP(ctx context.Context, names []string) [][]*HTTP {
	return handles[HTTP](s, ctx, schemaHTTP, "listener", names)
}

// GRPC returns the cells of a gRPC method of a listener, one handle a worker.
func (s *Set) GRPC(ctx context.Context, listener, service, method string) []*GRPC {
	w := wanted{key: "grpc\x00" + listener + "\x00" + service + "\x00" + method, schema: schemaGRPC, labels: []*statsv1.Label{
		{Name: "listener", Value: listener}, {Name: "grpc_service", Value: service}, {Name: "grpc_method", Value: method},
	}}
	g := s.resolve(ctx, []wanted{w})[0]
	out := make([]*GRPC, s.workers)
	for i := range out {
		out[i] = (*GRPC)(unsafe.Pointer(unsafe.SliceData(g.cells[i])))
	}
	return out
}

// Listeners returns the cells of listeners by name.
func (s *Set) Listeners(ctx context.Context, names []string) [][]*Listener {
	return handles[Listener](s, ctx, schemaListener, "listener", names)
}

// TCP returns the cells of TCP proxies by stat prefix.
func (s *Set) TCP(ctx context.Context, names []string) [][]*TCP {
	return handles[TCP](s, ctx, schemaTCP, "listener", names)
}

// Plugins returns the cells of plugins by name.
func (s *Set) Plugins(ctx context.Context, names []string) [][]*Plugin {
	return handles[Plugin](s, ctx, schemaPlugin, "plugin", names)
}

// RateLimits returns the cells of rate limits of this process, by the filter's name.
func (s *Set) RateLimits(ctx context.Context, names []string) [][]*RateLimit {
	return handles[RateLimit](s, ctx, schemaRateLimit, "filter", names)
}

// Faults returns the cells of fault filters by name.
func (s *Set) Faults(ctx context.Context, names []string) [][]*Fault {
	return handles[Fault](s, ctx, schemaFault, "filter", names)
}

// CORS returns the cells of CORS filters by name.
func (s *Set) CORS(ctx context.Context, names []string) [][]*CORS {
	return handles[CORS](s, ctx, schemaCORS, "filter", names)
}

// RBACs returns the cells of RBAC filters by name.
func (s *Set) RBACs(ctx context.Context, names []string) [][]*RBAC {
	return handles[RBAC](s, ctx, schemaRBAC, "filter", names)
}

// IPs returns the cells of IP filters by name.
func (s *Set) IPs(ctx context.Context, names []string) [][]*IP {
	return handles[IP](s, ctx, schemaIP, "filter", names)
}

// BasicAuths returns the cells of basic_auth filters by name.
func (s *Set) BasicAuths(ctx context.Context, names []string) [][]*BasicAuth {
	return handles[BasicAuth](s, ctx, schemaBasicAuth, "filter", names)
}

// HealthChecks returns the cells of health_check filters by name.
func (s *Set) HealthChecks(ctx context.Context, names []string) [][]*HealthCheck {
	return handles[HealthCheck](s, ctx, schemaHealthCheck, "filter", names)
}

// Compressors returns the cells of compress filters by name.
func (s *Set) Compressors(ctx context.Context, names []string) [][]*Compress {
	return handles[Compress](s, ctx, schemaCompress, "filter", names)
}

// ExtAuthz returns the cells of ext_authz filters by name.
func (s *Set) ExtAuthz(ctx context.Context, names []string) [][]*ExtAuthz {
	return handles[ExtAuthz](s, ctx, schemaExtAuthz, "filter", names)
}

// GlobalRateLimits returns the cells of global_rate_limit filters by name.
func (s *Set) GlobalRateLimits(ctx context.Context, names []string) [][]*GlobalRateLimit {
	return handles[GlobalRateLimit](s, ctx, schemaGlobalRateLimit, "filter", names)
}

// Decompressors returns the cells of decompress filters by name.
func (s *Set) Decompressors(ctx context.Context, names []string) [][]*Decompress {
	return handles[Decompress](s, ctx, schemaDecompress, "filter", names)
}

// JWTs returns the cells of jwt filters by name.
func (s *Set) JWTs(ctx context.Context, names []string) [][]*JWT {
	return handles[JWT](s, ctx, schemaJWT, "filter", names)
}

// JwtProviders returns the cells of providers of tokens by name.
func (s *Set) JwtProviders(ctx context.Context, names []string) [][]*JwtProvider {
	return handles[JwtProvider](s, ctx, schemaJwtProvider, "provider", names)
}

// Workers returns each worker's own cells.
func (s *Set) Workers(ctx context.Context) []*Worker {
	out := make([]*Worker, s.workers)
	for i := range out {
		out[i] = handles[Worker](s, ctx, schemaWorker, "worker_id", []string{fmt.Sprint(i)})[0][i]
	}
	return out
}

// Streams is how many requests are under way, over all connection managers and workers.
func (s *Set) Streams() (n uint64) {
	for w := range s.workers {
		n += s.WorkerStreams(w)
	}
	return n
}

// Requests is how many were begun, and how many of them ended by an error of our own making.
func (s *Set) Requests() (begun, failed uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.https {
		for w := range s.workers {
			begun += atomic.LoadUint64(&g.cells[w][HTTPDownstreamRqTotal])
			failed += atomic.LoadUint64(&g.cells[w][HTTPDownstreamRqOwnError])
		}
	}
	return begun, failed
}

// WorkerStreams is how many requests are under way in one worker.
func (s *Set) WorkerStreams(w int) (n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.https {
		n += atomic.LoadUint64(&g.cells[w][HTTPDownstreamRqActive])
	}
	return n
}

// Certificates returns the cells of certificates by name, written by the main side.
func (s *Set) Certificates(ctx context.Context, names []string) []*Certificate {
	wants := make([]wanted, len(names))
	for i, name := range names {
		wants[i] = want(schemaCertificate, "certificate", name)
	}
	out := make([]*Certificate, len(names))
	for i, g := range s.resolve(ctx, wants) {
		out[i] = (*Certificate)(unsafe.Pointer(unsafe.SliceData(g.cells[s.workers])))
	}
	return out
}

// Server returns the process's cells, written by the main side.
func (s *Set) Server(ctx context.Context) *Server {
	groups := s.resolve(ctx, []wanted{want(schemaServer, "", "")})
	return (*Server)(unsafe.Pointer(unsafe.SliceData(groups[0].cells[s.workers])))
}

func handles[T any](s *Set, ctx context.Context, schema int, label string, names []string) [][]*T {
	wants := make([]wanted, len(names))
	for i, name := range names {
		wants[i] = want(schema, label, name)
	}
	out := make([][]*T, len(names))
	for i, g := range s.resolve(ctx, wants) {
		out[i] = make([]*T, s.workers)
		for w := range out[i] {
			out[i][w] = (*T)(unsafe.Pointer(unsafe.SliceData(g.cells[w])))
		}
	}
	return out
}

// resolve answers every group: from what is known, from statsd, from the spill, from the heap.
func (s *Set) resolve(ctx context.Context, wants []wanted) []*group {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*group, len(wants))
	var missing []int
	for i, w := range wants {
		if g := s.known[w.key]; g != nil && !g.retired {
			out[i] = g
		} else {
			missing = append(missing, i)
		}
	}
	for len(missing) > 0 {
		n := min(len(missing), batch)
		s.resolveBatch(ctx, wants, missing[:n], out)
		missing = missing[n:]
	}
	return out
}

func (s *Set) resolveBatch(ctx context.Context, wants []wanted, missing []int, out []*group) {
	if s.heap {
		for _, at := range missing {
			s.place(wants[at], &out[at], 0, nil)
		}
		return
	}
	groups := make([]*statsv1.Group, len(missing))
	for i, at := range missing {
		groups[i] = &statsv1.Group{Schema: uint32(wants[at].schema), Labels: wants[at].labels}
	}
	bases, sheet, err := s.fromStatsd(ctx, groups)
	epoch := uint64(0)
	if err == nil {
		epoch = sheet(0).Epoch()
	}
	if err != nil {
		s.log.Warn("statsd does not take new series now: they are counted in a spill file until it does", "groups", len(groups), "error", err)
		bases, sheet, err = s.fromSpill(groups)
	}
	if err != nil {
		s.log.Error("new series are counted in memory only and nobody sees them", "groups", len(groups), "error", err)
	}
	for i, at := range missing {
		var cells func(w, n int) ([]uint64, error)
		if err == nil && i < len(bases) && bases[i] != region.NoCell {
			cells = func(w, n int) ([]uint64, error) { return sheet(w).Cells(bases[i], n) }
		}
		s.place(wants[at], &out[at], epoch, cells)
	}
}

// place makes a group of the cells that the region gives, of plain memory where it gives none.
func (s *Set) place(w wanted, out **group, epoch uint64, cellsOf func(writer, n int) ([]uint64, error)) {
	if g := s.known[w.key]; g != nil && epoch == g.epoch && cellsOf != nil {
		g.retired = false
		*out = g // statsd answered the base that it had
		return
	}
	g := &group{wanted: w, epoch: epoch, cells: make([][]uint64, s.workers+1)}
	n := cells(w.schema)
	for writer := range g.cells {
		if cellsOf != nil {
			var err error
			if g.cells[writer], err = cellsOf(writer, n); err == nil {
				continue
			}
			s.log.Error("cells of a series cannot be mapped: it is counted in memory only and nobody sees it", "series", w.key, "error", err)
		}
		g.cells[writer] = make([]uint64, n)
	}
	s.known[w.key] = g
	if w.schema == schemaHTTP {
		s.https = append(s.https, g)
	}
	*out = g
}

// number is a writer's number in the region: workers are 0 and up, the main side comes last here.
func (s *Set) number(w int) uint32 {
	if w == s.workers {
		return region.MainWorker
	}
	return uint32(w)
}

func (s *Set) fromStatsd(ctx context.Context, groups []*statsv1.Group) ([]uint64, func(int) *region.Sheet, error) {
	if s.client == nil {
		return nil, nil, errors.New("there is no statsd")
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if err := s.openSheets(ctx); err != nil {
		return nil, nil, err
	}
	reply, err := s.declare(ctx, groups)
	if err != nil {
		return nil, nil, err
	}
	if reply.GetEpoch() != s.sheets[0].Epoch() {
		// Another region is in the place of the first. What counts in the old sheets goes on there: they stay open, since
		// their locks say that this process lives.
		s.log.Info("the stats region is another one now: new series are counted there", "epoch", reply.GetEpoch())
		for _, sheet := range s.sheets {
			s.former = append(s.former, sheet)
		}
		clear(s.sheets)
		if err := s.openSheets(ctx); err != nil {
			return nil, nil, err
		}
		if epoch := s.sheets[0].Epoch(); reply.GetEpoch() != epoch {
			return nil, nil, fmt.Errorf("the stats region changes while its sheets are fetched (epoch %d, then %d)", reply.GetEpoch(), epoch)
		}
	}
	if reason := reply.GetRefusedReason(); reason != "" {
		s.log.Warn("statsd refused some series", "reason", reason)
	}
	return reply.GetBases(), func(w int) *region.Sheet { return s.sheets[s.number(w)] }, nil
}

// openSheets fetches the sheets that this process does not have. Held: mu.
func (s *Set) openSheets(ctx context.Context) error {
	for w := range s.workers + 1 {
		if s.sheets[s.number(w)] == nil {
			sheet, err := region.OpenSheet(ctx, s.socket, s.generation, s.number(w))
			if err != nil {
				return err
			}
			s.sheets[s.number(w)] = sheet
		}
	}
	return nil
}

func (s *Set) hello() *suitev1.Hello {
	mine := hello.Mine("proxyd", region.Contract)
	mine.Generation = s.generation
	return mine
}

func (s *Set) declare(ctx context.Context, groups []*statsv1.Group) (*statsv1.DeclareReply, error) {
	mine := s.hello()
	reply, err := s.client.Declare(ctx, &statsv1.DeclareRequest{Hello: mine, Schemas: Schemas, Groups: groups})
	if err == nil {
		err = hello.Check(mine, reply.GetHello())
	}
	return reply, err
}

// Named is what a snapshot names; filters, and what they share, by type and name.
type Named struct {
	Clusters, HTTP, Listeners, TCP []string
	BreakersLeft                   [len(routingPriorities)][]string // of clusters, by priority
	Filters                        [][2]string
}

// filterSchema finds the schema of a type of filters by its name; false where the type counts nothing.
func filterSchema(kind string) (int, bool) {
	i := slices.IndexFunc(Schemas[schemaRateLimit:], func(s *statsv1.Schema) bool { return s.GetName() == kind })
	return schemaRateLimit + i, i >= 0
}

// Retire tells statsd which of the groups that were named once are not any more; it hides them in an hour. Handles stay
// good, for streams that still count there.
func (s *Set) Retire(ctx context.Context, named Named) error {
	if s.client == nil {
		return nil
	}
	keep := map[string]bool{}
	for schema, names := range map[int][]string{
		schemaCluster: named.Clusters, schemaHTTP: named.HTTP, schemaListener: named.Listeners, schemaTCP: named.TCP,
	} {
		for _, name := range names {
			keep[want(schema, "", name).key] = true
		}
	}
	for priority, names := range named.BreakersLeft {
		for _, name := range names {
			keep[wantLeft(name, priority).key] = true
		}
	}
	for _, f := range named.Filters {
		if schema, counts := filterSchema(f[0]); counts {
			keep[want(schema, "", f[1]).key] = true
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var gone []*group
	for key, g := range s.known {
		of := g.schema
		if listed := of == schemaCluster || of == schemaHTTP || of == schemaListener || of == schemaTCP || of >= schemaBreakersLeft; listed && !keep[key] && !g.retired && g.epoch != 0 {
			gone = append(gone, g)
		}
	}
	for list := range slices.Chunk(gone, batch) {
		groups := make([]*statsv1.Group, len(list))
		for i, g := range list {
			groups[i] = &statsv1.Group{Schema: uint32(g.schema), Labels: g.labels}
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		reply, err := s.declare(ctx, groups) // where they are now: the region may be another one
		if err == nil {
			_, err = s.client.Retire(ctx, &statsv1.RetireRequest{Hello: s.hello(), Bases: reply.GetBases(), Epoch: reply.GetEpoch()})
		}
		cancel()
		if err != nil {
			return err
		}
		for _, g := range list {
			g.retired = true
		}
	}
	return nil
}

func (s *Set) fromSpill(groups []*statsv1.Group) ([]uint64, func(int) *region.Sheet, error) {
	if s.spill == nil {
		spill, err := region.NewSpill(s.runDir, s.generation, region.Options{})
		if err != nil {
			return nil, nil, err
		}
		s.spill = spill
	}
	bases, err := s.spill.Declare(Schemas, groups)
	if err != nil {
		s.log.Warn("the spill refused some series", "error", err)
	}
	sheets := make([]*region.Sheet, s.workers+1)
	for w := range sheets {
		if sheets[w], err = s.spill.Sheet(s.number(w)); err != nil {
			return nil, nil, err
		}
	}
	return bases, func(w int) *region.Sheet { return sheets[w] }, nil
}
