package exposition_test

import (
	"bytes"
	"errors"
	"io"
	"math"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"
	"google.golang.org/protobuf/encoding/protodelim"

	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"
	statsv1 "retinue.dev/services/api/stats/v1"

	"retinue.dev/statsd/internal/exposition"
)

// TestProtobufAsClientModelReadsIt: the same families and values as in text, read with the generated code.
func TestProtobufAsClientModelReadsIt(t *testing.T) {
	source, _, _, _ := filled(t)
	in := bytes.NewReader([]byte(write(t, source, exposition.Protobuf)))
	families := map[string]*dto.MetricFamily{}
	for {
		f := &dto.MetricFamily{}
		err := protodelim.UnmarshalFrom(in, f)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if families[f.GetName()] != nil {
			t.Errorf("%s comes twice", f.GetName())
		}
		families[f.GetName()] = f
	}
	if f := families["retinue_http_rq_total"]; f.GetType() != dto.MetricType_COUNTER || len(f.GetMetric()) != 2 ||
		f.GetMetric()[0].GetCounter().GetValue() != 15 || f.GetMetric()[1].GetLabel()[0].GetValue() != oddName {
		t.Errorf("rq_total: %v", f)
	}
	if f := families["retinue_http_cx_active"]; f.GetMetric()[0].GetGauge().GetValue() != -7 {
		t.Errorf("cx_active: %v", f)
	}
	if f := families["retinue_statsd_scrapes_total"]; f.GetMetric()[0].GetCounter().GetValue() != 3 {
		t.Errorf("statsd's own: %v", f)
	}
	h := families["retinue_http_body"].GetMetric()[0].GetHistogram()
	if h.GetSampleCount() != 1 || h.GetSampleSum() != 4096 || h.GetSchema() != 3 || len(h.GetPositiveSpan()) != 1 {
		t.Errorf("body: %v", h)
	}
	// 4096 is in the bucket that ends at 2^12, number 96.
	if s := h.GetPositiveSpan(); s[0].GetOffset() != 96 || s[0].GetLength() != 1 {
		t.Errorf("spans: %v", s)
	}
	// Microseconds are no power of two of milliseconds: only the classic form is exact, so only that is told.
	if h := families["retinue_http_rq_time"].GetMetric()[0].GetHistogram(); h.GetPositiveSpan() != nil || len(h.GetBucket()) == 0 {
		t.Errorf("rq_time in microseconds: %v", h)
	}
}

// TestNativeHistogramAsPrometheusReadsIt: Prometheus' own parser finds each bucket where the value was, in milliseconds.
func TestNativeHistogramAsPrometheusReadsIt(t *testing.T) {
	run := t.TempDir()
	store, err := region.Open(run+"/region", region.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	schema := &statsv1.Schema{Name: "cluster", Fields: []*statsv1.Field{{Name: "rq_time", Kind: statsv1.Kind_KIND_HISTOGRAM, Unit: region.UnitTicks}}}
	bases, err := store.DeclareAll([]*statsv1.Schema{schema}, []*statsv1.Group{{Labels: label("cluster", "a")}, {Labels: label("cluster", "idle")}})
	if err != nil {
		t.Fatal(err)
	}
	sheet, lock, err := store.CreateSheet(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	w := regiontest.Start(t, sheet, lock)
	const microsecond, millisecond = 1000, 1_000_000
	times := []uint64{0, 37 * microsecond, 500 * microsecond, millisecond, 1001 * microsecond, 250 * millisecond, 250 * millisecond, 60_000 * millisecond}
	for _, ns := range times {
		w.Observe(0, bases[0], region.Ticks(ns))
	}
	source, err := exposition.NewSource(func() (*region.Reader, error) { return region.OpenReader(store.Dir(), run) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	var b bytes.Buffer
	if err := source.Write(&b, exposition.Protobuf, nil, nil); err != nil {
		t.Fatal(err)
	}
	parser := textparse.NewProtobufParser(b.Bytes(), false, false, false, labels.NewSymbolTable())
	var found []*histogram.Histogram
	for {
		entry, err := parser.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if entry == textparse.EntryHistogram {
			_, _, h, _ := parser.Histogram()
			if err := h.Validate(); err != nil {
				t.Errorf("Prometheus does not take it: %v", err)
			}
			found = append(found, h)
		}
	}
	if len(found) != 2 {
		t.Fatalf("%d native histograms where 2 are", len(found))
	}
	h := found[0]
	if h.Count != uint64(len(times)) || h.ZeroCount != 1 || h.Schema != 3 || math.Abs(h.Sum-60502.538) > 0.01 {
		t.Errorf("count %d, zeros %d, schema %d, sum %v", h.Count, h.ZeroCount, h.Schema, h.Sum)
	}
	for _, ns := range times[1:] {
		ms := math.Round(float64(ns)*1024/1e6) / 1024
		in := 0
		for it := h.PositiveBucketIterator(); it.Next(); {
			if b := it.At(); b.Lower < ms && ms <= b.Upper {
				in++
			}
		}
		if in != 1 {
			t.Errorf("%v ms lies in %d buckets", ms, in)
		}
	}
	if h := found[1]; h.Count != 0 || h.ZeroCount != 0 {
		t.Errorf("the idle one: %v", h)
	}
}

func TestNegotiateFormats(t *testing.T) {
	for accept, want := range map[string]exposition.Format{
		"":    exposition.Text,
		"*/*": exposition.Text,
		// Prometheus 3 with native histograms, and without.
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2": exposition.Protobuf,
		"application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1":                                       exposition.OpenMetrics,
		"application/openmetrics-text;version=2.0.0,text/plain":                                                  exposition.Text,
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=text,text/plain;q=0.1": exposition.Text,
		"application/vnd.google.protobuf;proto=other;encoding=delimited":                                         exposition.Text,
		"application/openmetrics-text;q=0,text/plain;q=0.1":                                                      exposition.Text,
		"text/plain;q=1,application/openmetrics-text;q=1":                                                        exposition.OpenMetrics,
	} {
		if got := exposition.Negotiate(accept); got != want {
			t.Errorf("%q: %v, want %v", accept, got, want)
		}
	}
}
