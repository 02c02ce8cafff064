package push_test

import (
	"compress/gzip"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"
	configv1 "retinue.dev/services/api/config/v1"
	statsv1 "retinue.dev/services/api/stats/v1"

	"retinue.dev/statsd/internal/exposition"
	"retinue.dev/statsd/internal/push"
)

func TestMain(m *testing.M) { regiontest.Main(m) }

const patience = 20 * time.Second

// world is a region with one cluster and a writer of it: a counter, a counter of a class, a gauge and a histogram.
type world struct {
	t       *testing.T
	writer  *regiontest.Writer
	base    uint64
	manager *push.Manager
	created time.Time
}

const (
	total, class, active, latency = 0, 1, 2, 3
	cluster                       = "a.b|c"
)

func newWorld(t *testing.T) *world {
	t.Helper()
	run := t.TempDir()
	store, err := region.Open(filepath.Join(run, "region"), region.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	schema := &statsv1.Schema{Name: "cluster", Fields: []*statsv1.Field{
		{Name: "rq_total", Kind: statsv1.Kind_KIND_COUNTER, Help: "requests"},
		{Name: "rq_xx", Kind: statsv1.Kind_KIND_COUNTER, Labels: []*statsv1.Label{{Name: "response_code_class", Value: "5"}}},
		{Name: "cx_active", Kind: statsv1.Kind_KIND_GAUGE},
		{Name: "rq_time", Kind: statsv1.Kind_KIND_HISTOGRAM, Unit: region.UnitTicks},
	}}
	bases, err := store.DeclareAll([]*statsv1.Schema{schema}, []*statsv1.Group{{Labels: []*statsv1.Label{{Name: "cluster", Value: cluster}}}})
	if err != nil {
		t.Fatal(err)
	}
	sheet, lock, err := store.CreateSheet(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, writer: regiontest.Start(t, sheet, lock), base: bases[0]}
	w.add(total, 1000) // before anybody is told of anything
	source, err := exposition.NewSource(func() (*region.Reader, error) { return region.OpenReader(store.Dir(), run) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	w.created = source.Created()
	w.manager = push.New(source, source.Created, slog.New(slog.DiscardHandler))
	t.Cleanup(w.manager.Close)
	return w
}

func (w *world) add(cell int, n uint64) { w.writer.Add(0, w.base+uint64(cell), n) }

func (w *world) observe(ms ...float64) {
	for _, v := range ms {
		w.writer.Observe(0, w.base+latency, uint64(v*1024))
	}
}

func (w *world) eventually(what string, check func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(patience); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// receiver collects datagrams' lines.
func receiver(t *testing.T, network, address string) (net.PacketConn, func() []string) {
	t.Helper()
	conn, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	lines := make(chan string, 10_000)
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, _, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if n > 8<<10 {
				lines <- fmt.Sprintf("a datagram of %d bytes", n)
			}
			for line := range strings.SplitSeq(string(buffer[:n]), "\n") {
				lines <- line
			}
		}
	}()
	var all []string
	return conn, func() []string {
		for {
			select {
			case line := <-lines:
				all = append(all, line)
			default:
				return all
			}
		}
	}
}

// sum adds the values of a counter's lines.
func sum(lines []string, name, tail string) (total float64) {
	for _, line := range lines {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			if number, ok := strings.CutSuffix(rest, tail); ok {
				v, err := strconv.ParseFloat(number, 64)
				if err != nil {
					return math.NaN()
				}
				total += v
			}
		}
	}
	return total
}

func TestStatsD(t *testing.T) {
	w := newWorld(t)
	conn, lines := receiver(t, "udp", "127.0.0.1:0")
	w.manager.Set([]*configv1.StatsPush{{
		Format: configv1.StatsPush_FORMAT_STATSD, Address: conn.LocalAddr().String(), IntervalMs: 100, Prefix: "edge",
	}})
	w.add(total, 5)
	w.add(class, 2)
	w.add(active, math.MaxUint64-2) // a gauge of -3
	w.observe(1, 1, 1, 64)
	const name = "edge.cluster.a_b_c."
	w.eventually("the latency comes", func() bool { return sum(lines(), name+"rq_time.count", "|c") == 4 })
	w.add(total, 7)
	w.eventually("12 requests came in all", func() bool { return sum(lines(), name+"rq_total", "|c") == 12 })
	if n := sum(lines(), name+"rq_xx.5", "|c"); n != 2 {
		t.Errorf("rq_xx is %v, 2 is right", n)
	}
	if !slices.Contains(lines(), name+"cx_active:0|g") || !slices.Contains(lines(), name+"cx_active:-3|g") {
		t.Error("a negative gauge is 0 first, since a sign means a change")
	}
	if n := sum(lines(), name+"rq_time.sum", "|c"); n != 67 {
		t.Errorf("the sum of the times is %v ms, 67 is right", n)
	}
	if !slices.ContainsFunc(lines(), func(l string) bool { return strings.HasPrefix(l, name+"rq_time.p50:0.9") }) {
		t.Error("no median of about 1 ms came")
	}
	// What was added since the last sending is sent at the end.
	w.add(total, 1)
	w.manager.Close()
	w.eventually("the last one comes", func() bool { return sum(lines(), name+"rq_total", "|c") == 13 })
}

// TestDogStatsDWhileTheAgentIsAway: nothing of what is counted meanwhile is lost, and a bucket's line stands for all its values.
func TestDogStatsDWhileTheAgentIsAway(t *testing.T) {
	w := newWorld(t)
	path := filepath.Join(t.TempDir(), "dsd.socket")
	w.manager.Set([]*configv1.StatsPush{{
		Format: configv1.StatsPush_FORMAT_DOGSTATSD, Address: "unix:" + path, IntervalMs: 100, Prefix: "retinue",
		Attributes: []*configv1.StatsLabel{{Name: "env", Value: "a,b"}},
	}})
	const tags = "|#cluster:a.b_c,env:a_b"
	w.add(total, 5)
	for range 49 {
		w.observe(2)
	}
	w.eventually("it fails", func() bool { return w.manager.Receivers()[0].Failed > 1 })
	_, lines := receiver(t, "unixgram", path)
	w.add(total, 6)
	w.eventually("everything comes", func() bool { return sum(lines(), "retinue.cluster.rq_total", "|c"+tags) == 11 })
	w.eventually("the distribution comes", func() bool {
		return slices.ContainsFunc(lines(), func(l string) bool {
			rest, ok := strings.CutPrefix(l, "retinue.cluster.rq_time:")
			value, rate, _ := strings.Cut(strings.TrimSuffix(rest, tags), "|d|@")
			v, _ := strconv.ParseFloat(value, 64)
			r, _ := strconv.ParseFloat(rate, 64)
			return ok && v > 1.83 && v < 2 && int(1/r) == 49
		})
	})
}

// collector is an OTLP/HTTP receiver whose answers a test chooses.
type collector struct {
	*httptest.Server
	answer   atomic.Int32 // status
	requests chan *collectorpb.ExportMetricsServiceRequest
	headers  chan http.Header
}

func newCollector(t *testing.T) *collector {
	c := &collector{requests: make(chan *collectorpb.ExportMetricsServiceRequest, 1000), headers: make(chan http.Header, 1000)}
	c.answer.Store(200)
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := int(c.answer.Load())
		zipped, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		body, err := io.ReadAll(zipped)
		request := &collectorpb.ExportMetricsServiceRequest{}
		if err == nil {
			err = proto.Unmarshal(body, request)
		}
		if err != nil || r.Method != http.MethodPost || r.URL.Path != "/v1/metrics" || r.Header.Get("Content-Type") != "application/x-protobuf" {
			t.Errorf("%s %s %v: %v", r.Method, r.URL, r.Header, err)
		}
		if status == 200 {
			c.requests <- request
			c.headers <- r.Header
		}
		w.WriteHeader(status)
	}))
	t.Cleanup(c.Close)
	return c
}

func metric(r *collectorpb.ExportMetricsServiceRequest, name string) *metricspb.Metric {
	for _, rm := range r.GetResourceMetrics() {
		for _, sm := range rm.GetScopeMetrics() {
			for _, m := range sm.GetMetrics() {
				if m.GetName() == name {
					return m
				}
			}
		}
	}
	return nil
}

func next[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatal("nothing comes")
		panic("unreachable")
	}
}

func TestOTLPOverHTTP(t *testing.T) {
	w := newWorld(t)
	c := newCollector(t)
	w.add(class, 2)
	w.add(active, 3)
	w.observe(1, 0.5, 64, 0)
	w.manager.Set([]*configv1.StatsPush{{
		Format: configv1.StatsPush_FORMAT_OTLP, Address: c.URL + "/v1/metrics", IntervalMs: 100, TimeoutMs: 5000,
		Headers:    []*configv1.StatsLabel{{Name: "authorization", Value: "Bearer secret"}},
		Attributes: []*configv1.StatsLabel{{Name: "deployment.environment", Value: "prod"}, {Name: "service.name", Value: "edge"}},
	}})
	r := next(t, c.requests)
	if h := next(t, c.headers); h.Get("Authorization") != "Bearer secret" {
		t.Errorf("headers %v", h)
	}
	attributes := map[string]string{}
	for _, a := range r.GetResourceMetrics()[0].GetResource().GetAttributes() {
		attributes[a.GetKey()] = a.GetValue().GetStringValue()
	}
	if attributes["service.name"] != "edge" || attributes["deployment.environment"] != "prod" || attributes["host.name"] == "" {
		t.Errorf("resource %v", attributes)
	}
	counter := metric(r, "retinue.cluster.rq_total").GetSum()
	if p := counter.GetDataPoints()[0]; !counter.GetIsMonotonic() || p.GetAsInt() != 1000 || p.GetStartTimeUnixNano() != uint64(w.created.UnixNano()) ||
		counter.GetAggregationTemporality() != metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE {
		t.Errorf("rq_total %v: 1000 since the region began", counter)
	}
	if p := metric(r, "retinue.cluster.rq_xx").GetSum().GetDataPoints()[0]; p.GetAsInt() != 2 || len(p.GetAttributes()) != 2 {
		t.Errorf("rq_xx %v", p)
	}
	if v := metric(r, "retinue.cluster.cx_active").GetGauge().GetDataPoints()[0].GetAsInt(); v != 3 {
		t.Errorf("cx_active %d", v)
	}
	m := metric(r, "retinue.cluster.rq_time")
	h := m.GetExponentialHistogram().GetDataPoints()[0]
	if m.GetUnit() != "ms" || h.GetCount() != 4 || h.GetSum() != 65.5 || h.GetZeroCount() != 1 || h.GetScale() != 3 {
		t.Errorf("rq_time %v", m)
	}
	// A value lies in the bucket i with 2^(i/8) < v <= 2^((i+1)/8).
	for _, v := range []float64{0.5, 1, 64} {
		found := false
		for i, n := range h.GetPositive().GetBucketCounts() {
			index := float64(int(h.GetPositive().GetOffset()) + i)
			found = found || n == 1 && math.Exp2(index/8) < v && v <= math.Exp2((index+1)/8)
		}
		if !found {
			t.Errorf("%v ms is not where it belongs in %v", v, h.GetPositive())
		}
	}
}

// TestOTLPRetries: a collector that is busy gets it later, one that refuses for good does not get it again.
func TestOTLPRetries(t *testing.T) {
	w := newWorld(t)
	c := newCollector(t)
	c.answer.Store(503)
	w.manager.Set([]*configv1.StatsPush{{Format: configv1.StatsPush_FORMAT_OTLP, Address: c.URL + "/v1/metrics", IntervalMs: 100, TimeoutMs: 5000}})
	w.eventually("a queue forms", func() bool { r := w.manager.Receivers()[0]; return r.Failed > 0 && r.Queued > 0 })
	c.answer.Store(200)
	first := next(t, c.requests)
	second := next(t, c.requests)
	at := func(r *collectorpb.ExportMetricsServiceRequest) uint64 {
		return metric(r, "retinue.cluster.rq_total").GetSum().GetDataPoints()[0].GetTimeUnixNano()
	}
	if at(first) >= at(second) {
		t.Error("the queue is not in the order of time")
	}
	w.eventually("the queue is empty", func() bool { return w.manager.Receivers()[0].Queued == 0 })
	if r := w.manager.Receivers()[0]; r.Dropped != 0 || r.Sent < 2 {
		t.Errorf("%+v", r)
	}
	c.answer.Store(400)
	w.eventually("a refusal for good is a drop", func() bool { r := w.manager.Receivers()[0]; return r.Dropped > 1 && r.Queued < 5000 })
}

func TestOTLPOverGRPC(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	requests := make(chan *collectorpb.ExportMetricsServiceRequest, 1000)
	refuse := atomic.Bool{}
	refuse.Store(true)
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		method, _ := grpc.MethodFromServerStream(stream)
		request := &collectorpb.ExportMetricsServiceRequest{}
		if err := stream.RecvMsg(request); err != nil {
			return err
		}
		md, _ := metadata.FromIncomingContext(stream.Context())
		if method != "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export" || !slices.Equal(md.Get("x-key"), []string{"secret"}) {
			t.Errorf("%s %v", method, md)
		}
		if refuse.CompareAndSwap(true, false) {
			return status.Error(codes.Unavailable, "busy")
		}
		requests <- request
		return stream.SendMsg(&collectorpb.ExportMetricsServiceResponse{PartialSuccess: &collectorpb.ExportMetricsPartialSuccess{RejectedDataPoints: 1}})
	}))
	go server.Serve(l)
	t.Cleanup(server.Stop)
	w.manager.Set([]*configv1.StatsPush{{
		Format: configv1.StatsPush_FORMAT_OTLP, Address: "grpc://" + l.Addr().String(), IntervalMs: 100, TimeoutMs: 5000,
		Headers: []*configv1.StatsLabel{{Name: "x-key", Value: "secret"}},
	}})
	r := next(t, requests)
	if v := metric(r, "retinue.cluster.rq_total").GetSum().GetDataPoints()[0].GetAsInt(); v != 1000 {
		t.Errorf("rq_total %d", v)
	}
	w.eventually("it is counted", func() bool { r := w.manager.Receivers()[0]; return r.Sent > 0 && r.Failed == 1 })
}

// TestSetKeepsWhatDoesNotChange: a reload that leaves a receiver as it was leaves its sender alone, too.
func TestSetKeepsWhatDoesNotChange(t *testing.T) {
	w := newWorld(t)
	c := newCollector(t)
	config := func(path string) *configv1.StatsPush {
		return &configv1.StatsPush{Format: configv1.StatsPush_FORMAT_OTLP, Address: c.URL + path, IntervalMs: 100, TimeoutMs: 5000}
	}
	w.manager.Set([]*configv1.StatsPush{config("/v1/metrics")})
	w.eventually("it sends", func() bool { return w.manager.Receivers()[0].Sent > 0 })
	w.manager.Set([]*configv1.StatsPush{config("/v1/metrics?key=secret"), config("/v1/metrics")})
	r := w.manager.Receivers()
	if len(r) != 2 || r[1].Sent == 0 || r[0].Address != c.URL+"/v1/metrics" {
		t.Errorf("%+v", r)
	}
	w.manager.Set(nil)
	if r := w.manager.Receivers(); len(r) != 0 {
		t.Errorf("%+v are left", r)
	}
}
