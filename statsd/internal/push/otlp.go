package push

import (
	"context"
	"log/slog"
	"math"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/metrics/v1"
	commonpb "go.opentelemetry.io/proto/slim/otlp/common/v1"
	metricspb "go.opentelemetry.io/proto/slim/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/slim/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/buildinfo"
	"retinue.dev/libs/region"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/statsd/internal/exposition"
	"retinue.dev/statsd/internal/otlp"
)

// queueBytes bounds what waits for one collector.
const queueBytes = 16 << 20

// otlpSignal is the kind of request that carries values.
var otlpSignal = otlp.Signal{
	What: "values", Method: "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
	Rejected: func(reply []byte) int64 {
		var r collectorpb.ExportMetricsServiceResponse
		if proto.Unmarshal(reply, &r) != nil {
			return 0
		}
		return r.GetPartialSuccess().GetRejectedDataPoints()
	},
}

// collector sends values to an OTLP collector.
type collector struct {
	source  *exposition.Source
	created func() time.Time
	encoder *encoder
	outbox  *otlp.Outbox
	counts  *otlp.Counts
	log     *slog.Logger
}

func newCollector(config *configv1.StatsPush, source *exposition.Source, created func() time.Time, counts *otlp.Counts, log *slog.Logger) (*collector, error) {
	to := otlp.Collector{
		Endpoint: config.GetAddress(), Headers: config.GetHeaders(), Timeout: time.Duration(config.GetTimeoutMs()) * time.Millisecond, QueueBytes: queueBytes,
	}
	outbox, err := otlp.New(to, otlpSignal, counts, log)
	if err != nil {
		return nil, err
	}
	return &collector{source, created, &encoder{resource: otlp.Resource("retinue", config.GetAttributes())}, outbox, counts, log}, nil
}

func (c *collector) turn(context.Context) {
	if err := c.encoder.encode(c.source, c.created(), time.Now(), c.outbox.Offer); err != nil {
		c.counts.Failed.Add(1)
		c.log.Warn("values are not pushed", "error", err)
	}
}

// close sends the last values if the collector takes them at once.
func (c *collector) close() { c.outbox.Close(func() { c.turn(context.Background()) }) }

// otlpPoints is how many values a request carries: some hundred kilobytes, far below the 4 MiB that gRPC takes.
const otlpPoints = 2000

// otlpScale is OTLP's name of eight buckets an octave.
const otlpScale = 3

// encoder turns the region into requests. Counters and histograms are cumulative since the region began, which no restart
// of a daemon changes: so a lost request costs resolution and no value.
type encoder struct {
	resource *resourcepb.Resource
}

// encode hands the requests of one look at the region to emit.
func (e *encoder) encode(source *exposition.Source, since, now time.Time, emit func([]byte) error) error {
	var metrics []*metricspb.Metric
	points := 0
	flush := func() error {
		if points == 0 {
			return nil
		}
		b, err := proto.Marshal(&collectorpb.ExportMetricsServiceRequest{ResourceMetrics: []*metricspb.ResourceMetrics{{
			Resource: e.resource,
			ScopeMetrics: []*metricspb.ScopeMetrics{{
				Scope:   &commonpb.InstrumentationScope{Name: "retinue.dev/statsd", Version: buildinfo.Version},
				Metrics: metrics,
			}},
		}}})
		metrics, points = nil, 0
		if err != nil {
			return err
		}
		return emit(b)
	}
	begin, at := uint64(since.UnixNano()), uint64(now.UnixNano())
	err := source.Each(func(s *exposition.Series) error {
		if points >= otlpPoints {
			if err := flush(); err != nil {
				return err
			}
		}
		if s.FirstOfNames || len(metrics) == 0 {
			metrics = append(metrics, newMetric(s))
		}
		points++
		addPoint(metrics[len(metrics)-1], s, begin, at)
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

func newMetric(s *exposition.Series) *metricspb.Metric {
	units := map[string]string{"bytes": "By", "": "1"}
	unit := s.Unit
	if known, ok := units[unit]; ok {
		unit = known
	}
	m := &metricspb.Metric{Name: "retinue." + s.Schema + "." + s.Name, Description: s.Help, Unit: unit}
	const cumulative = metricspb.AggregationTemporality_AGGREGATION_TEMPORALITY_CUMULATIVE
	switch s.Kind {
	case region.Counter:
		m.Data = &metricspb.Metric_Sum{Sum: &metricspb.Sum{AggregationTemporality: cumulative, IsMonotonic: true}}
	case region.Gauge:
		m.Data = &metricspb.Metric_Gauge{Gauge: &metricspb.Gauge{}}
	case region.Histogram:
		m.Data = &metricspb.Metric_ExponentialHistogram{ExponentialHistogram: &metricspb.ExponentialHistogram{AggregationTemporality: cumulative}}
	}
	return m
}

func addPoint(m *metricspb.Metric, s *exposition.Series, begin, at uint64) {
	var attributes []*commonpb.KeyValue
	for _, list := range [][]region.Label{s.Labels, s.Variant} {
		for _, l := range list {
			attributes = append(attributes, otlp.Attribute(l.Name, l.Value))
		}
	}
	number := &metricspb.NumberDataPoint{Attributes: attributes, StartTimeUnixNano: begin, TimeUnixNano: at}
	if s.Scale == 1 {
		number.Value = &metricspb.NumberDataPoint_AsInt{AsInt: int64(s.Cells[0])}
	} else {
		number.Value = &metricspb.NumberDataPoint_AsDouble{AsDouble: float64(int64(s.Cells[0])) / s.Scale}
	}
	switch data := m.GetData().(type) {
	case *metricspb.Metric_Sum:
		data.Sum.DataPoints = append(data.Sum.DataPoints, number)
	case *metricspb.Metric_Gauge:
		number.StartTimeUnixNano = 0
		data.Gauge.DataPoints = append(data.Gauge.DataPoints, number)
	case *metricspb.Metric_ExponentialHistogram:
		h := histogramPoint(s.Cells, s.Scale)
		h.Attributes, h.StartTimeUnixNano, h.TimeUnixNano = attributes, begin, at
		data.ExponentialHistogram.DataPoints = append(data.ExponentialHistogram.DataPoints, h)
	}
}

// histogramPoint is exact where the exposed unit is a power of two of the stored one, as that of times is. Elsewhere
// buckets move to the nearest bounds, at most a sixteenth of an octave away.
func histogramPoint(cells []uint64, scale float64) *metricspb.ExponentialHistogramDataPoint {
	sum := float64(cells[region.HistogramSum]) / scale
	h := &metricspb.ExponentialHistogramDataPoint{
		Scale: otlpScale, Count: region.HistogramCount(cells), Sum: &sum, ZeroCount: cells[region.HistogramZero],
	}
	first, last := 0, -1
	for cell := region.HistogramFirst; cell < region.HistogramCells; cell++ {
		if cells[cell] == 0 {
			continue
		}
		if last < 0 {
			first = cell
		}
		last = cell
	}
	if last < 0 {
		return h
	}
	shift := int(math.Round(math.Log2(scale) * region.BucketsPerOctave))
	// Bucket i of OTLP is (2^(i/8), 2^((i+1)/8)]; cell HistogramFirst is the one that ends at 1.
	h.Positive = &metricspb.ExponentialHistogramDataPoint_Buckets{
		Offset: int32(first - region.HistogramFirst - 1 - shift), BucketCounts: append([]uint64(nil), cells[first:last+1]...),
	}
	return h
}
