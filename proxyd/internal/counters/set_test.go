package counters

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/libs/region"
	statsv1 "retinue.dev/services/api/stats/v1"
)

// statsd is a region with the two services of the contract that a Set asks.
type statsd struct {
	statsv1.StatsClient
	t       *testing.T
	run     string
	mu      sync.Mutex
	store   *region.Store
	retired []uint64
	away    bool
}

func newStatsd(t *testing.T) *statsd {
	t.Helper()
	s := &statsd{t: t, run: t.TempDir()}
	s.begin()
	l, err := fdpass.Listen(filepath.Join(s.run, "fd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.answer(conn)
			conn.Close()
		}
	}()
	return s
}

// begin makes a region where none is, or another one in the place of the first.
func (s *statsd) begin() {
	s.t.Helper()
	store, err := region.Open(filepath.Join(s.t.TempDir(), "region"), region.Options{})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(store.Close)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.store = store
}

func (s *statsd) answer(conn *fdpass.Conn) {
	message, _, err := conn.Recv()
	request := &statsv1.FdRequest{}
	if err != nil || proto.Unmarshal(message, request) != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sheet, lock, err := s.store.CreateSheet(request.GetSheet().GetGeneration(), request.GetSheet().GetWorker())
	if err != nil {
		return
	}
	message, _ = proto.Marshal(&statsv1.FdReply{Hello: hello.Mine("statsd", region.Contract), Epoch: s.store.Epoch(), Names: []string{"sheet", "lock"}})
	_ = conn.Send(message, []int{sheet, lock})
	unix.Close(sheet)
	// The lock's descriptor stays open: closing one here would let go the lock that the Set, in this same process, has taken.
}

func (s *statsd) Declare(_ context.Context, r *statsv1.DeclareRequest, _ ...grpc.CallOption) (*statsv1.DeclareReply, error) {
	if s.away {
		return nil, context.DeadlineExceeded
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	bases, err := s.store.DeclareAll(r.GetSchemas(), r.GetGroups())
	for _, base := range bases {
		s.retired = slices.DeleteFunc(s.retired, func(r uint64) bool { return r == base })
	}
	return &statsv1.DeclareReply{Hello: hello.Mine("statsd", region.Contract), Bases: bases, Epoch: s.store.Epoch()}, err
}

func (s *statsd) Retire(_ context.Context, r *statsv1.RetireRequest, _ ...grpc.CallOption) (*statsv1.RetireReply, error) {
	if r.GetEpoch() != s.store.Epoch() || r.GetHello().GetGeneration() != 3 {
		s.t.Errorf("retired in epoch %d by generation %d", r.GetEpoch(), r.GetHello().GetGeneration())
	}
	s.retired = append(s.retired, r.GetBases()...)
	return &statsv1.RetireReply{}, nil
}

func newTestSet(s *statsd) *Set {
	set := NewSet(s, filepath.Join(s.run, "fd.sock"), s.run, 3, slog.New(slog.DiscardHandler))
	set.SetWorkers(2)
	return set
}

// TestRetire: what a snapshot does not name is told to statsd once; named again, it has the cells that it had.
func TestRetire(t *testing.T) {
	s := newStatsd(t)
	set := newTestSet(s)
	ctx := t.Context()
	before := set.Clusters(ctx, []string{"api", "web"})
	set.HTTP(ctx, []string{"front"})
	set.Workers(ctx) // never retired
	before[0][1][ClusterUpstreamRqTotal] = 7
	keep := Named{Clusters: []string{"web"}, HTTP: []string{"front"}}
	for range 2 {
		if err := set.Retire(ctx, keep); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.retired) != 1 {
		t.Fatalf("retired %v, one cluster is not named any more", s.retired)
	}
	again := set.Clusters(ctx, []string{"api"})
	if len(s.retired) != 0 || again[0][1] != before[0][1] || again[0][1][ClusterUpstreamRqTotal] != 7 {
		t.Errorf("named again: still retired %v, cells moved %v", s.retired, again[0][1] != before[0][1])
	}
	s.away = true
	if set.Retire(ctx, Named{}) == nil {
		t.Error("statsd is away and was told all the same")
	}
	s.away = false
	if err := set.Retire(ctx, Named{}); err != nil || len(s.retired) != 3 {
		t.Errorf("the next time tells what the last could not: %v %v", s.retired, err)
	}
}

// TestRetireFilters: filters go by type and name, as the configuration names them.
func TestRetireFilters(t *testing.T) {
	s := newStatsd(t)
	set := newTestSet(s)
	ctx := t.Context()
	set.IPs(ctx, []string{"office"})
	set.RBACs(ctx, []string{"office", "staff"})
	set.JwtProviders(ctx, []string{"login"})
	all := Named{Filters: [][2]string{{"ip", "office"}, {"rbac", "office"}, {"rbac", "staff"}, {"jwt_provider", "login"}, {"header", "counts-nothing"}}}
	if err := set.Retire(ctx, all); err != nil || len(s.retired) != 0 {
		t.Errorf("all are named, and %v are retired: %v", s.retired, err)
	}
	all.Filters = all.Filters[1:3]
	if err := set.Retire(ctx, all); err != nil || len(s.retired) != 2 {
		t.Errorf("retired %v, ip.office and the provider are not named any more: %v", s.retired, err)
	}
}

// TestAnotherRegion: new groups count in the region that is there now, old ones where they are, and both can be retired.
func TestAnotherRegion(t *testing.T) {
	s := newStatsd(t)
	set := newTestSet(s)
	ctx := t.Context()
	old := set.Clusters(ctx, []string{"api"})[0][0]
	first := s.store.Epoch()
	s.begin()
	fresh := set.Clusters(ctx, []string{"api", "web"})
	if fresh[0][0] != old {
		t.Error("the cells of a cluster that goes on have moved under its worker")
	}
	old[ClusterUpstreamRqTotal]++ // its memory is there for the life of the process
	if len(set.former) != 3 || set.sheets[0].Epoch() == first {
		t.Errorf("%d former sheets, the new ones are of epoch %d", len(set.former), set.sheets[0].Epoch())
	}
	if n := set.spill; n != nil {
		t.Error("a spill was made, though statsd answers")
	}
	if err := set.Retire(ctx, Named{}); err != nil || len(s.retired) != 2 {
		t.Errorf("retired %v in the region that is there now: %v", s.retired, err)
	}
}

// TestAwayCountsInASpill: while statsd does not answer, series are counted in a spill, whose cells stay.
func TestAwayCountsInASpill(t *testing.T) {
	s := newStatsd(t)
	s.away = true
	set := newTestSet(s)
	cells := set.Clusters(t.Context(), []string{"api"})
	s.away = false
	if again := set.Clusters(t.Context(), []string{"api"}); set.spill == nil || again[0][0] != cells[0][0] {
		t.Error("the cells are not those of the spill")
	}
	if err := set.Retire(t.Context(), Named{}); err != nil || len(s.retired) != 0 {
		t.Errorf("a group of the spill is none of statsd's to retire: %v %v", s.retired, err)
	}
	set.spill.Close()
}
