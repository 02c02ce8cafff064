package exposition_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/textparse"

	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"
	statsv1 "retinue.dev/services/api/stats/v1"

	"retinue.dev/statsd/internal/exposition"
)

func TestMain(m *testing.M) { regiontest.Main(m) }

func label(pairs ...string) (list []*statsv1.Label) {
	for i := 0; i < len(pairs); i += 2 {
		list = append(list, &statsv1.Label{Name: pairs[i], Value: pairs[i+1]})
	}
	return list
}

// proxy is a schema as proxyd has them, in two versions: the newer one has a field more, and others in another order.
func proxy(version int) *statsv1.Schema {
	fields := []*statsv1.Field{
		{Name: "rq_total", Kind: statsv1.Kind_KIND_COUNTER, Help: "Requests\nand a \\ and a \"."},
		{Name: "rq_xx", Kind: statsv1.Kind_KIND_COUNTER, Labels: label("response_code_class", "2")},
		{Name: "rq_xx", Kind: statsv1.Kind_KIND_COUNTER, Labels: label("response_code_class", "5")},
		{Name: "cx_active", Kind: statsv1.Kind_KIND_GAUGE},
		{Name: "rq_time", Kind: statsv1.Kind_KIND_HISTOGRAM, Unit: "us", Help: "Time."},
		{Name: "body", Kind: statsv1.Kind_KIND_HISTOGRAM, Unit: "bytes"},
	}
	if version == 2 {
		fields = append([]*statsv1.Field{{Name: "rq_new", Kind: statsv1.Kind_KIND_COUNTER}}, fields...)
	}
	return &statsv1.Schema{Name: "http", Fields: fields}
}

const oddName = "a \"quoted\" \\ name\nin two lines, with {braces} and ünïcode"

// filled is a region with values of two generations, the older of which has an older schema.
func filled(t *testing.T) (*exposition.Source, *regiontest.Writer, *region.Store, []uint64) {
	t.Helper()
	run := t.TempDir()
	store, err := region.Open(filepath.Join(run, "region"), region.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	server := &statsv1.Schema{Name: "server", Fields: []*statsv1.Field{{Name: "live", Kind: statsv1.Kind_KIND_GAUGE}}}
	bases, err := store.DeclareAll([]*statsv1.Schema{proxy(1), proxy(2), server}, []*statsv1.Group{
		{Schema: 0, Labels: label("listener", "web")},
		{Schema: 1, Labels: label("listener", "web")},
		{Schema: 0, Labels: label("listener", oddName)},
		{Schema: 2},
	})
	if err != nil {
		t.Fatal(err)
	}
	sheet, lock, err := store.CreateSheet(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	w := regiontest.Start(t, sheet, lock)
	add := func(base, cell, n uint64) { w.Add(0, base+cell, n) }
	add(bases[0], 0, 10)
	add(bases[1], 1, 5) // the same series in the newer schema
	add(bases[1], 0, 3)
	add(bases[0], 2, 2)
	add(bases[0], 3, math.MaxUint64-6) // a gauge of -7
	add(bases[3], 0, 1)
	for _, v := range []uint64{0, 64, 65, 1000, 1024, 1025, 1 << 26, 1<<26 + 1, 1 << 40} {
		w.Observe(0, bases[0]+4, v)
	}
	w.Observe(0, bases[1]+5, 64)
	w.Observe(0, bases[0]+4+region.HistogramCells, 4096)
	source, err := exposition.NewSource(func() (*region.Reader, error) { return region.OpenReader(store.Dir(), run) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	return source, w, store, bases
}

var own = []exposition.Own{
	{Name: "retinue_build_info", Help: "b", Kind: region.Gauge, Labels: []region.Label{{Name: "version", Value: "1\"2"}}, Value: 1},
	{Name: "retinue_statsd_scrapes_total", Kind: region.Counter, Value: 3},
}

func write(t *testing.T, s *exposition.Source, f exposition.Format, match ...string) string {
	t.Helper()
	var b bytes.Buffer
	if err := s.Write(&b, f, match, own); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestTextAsPrometheusReadsIt(t *testing.T) {
	source, _, _, _ := filled(t)
	text := write(t, source, exposition.Text)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	find := func(name string, pairs ...string) *dto.Metric {
		t.Helper()
		for _, m := range families[name].GetMetric() {
			match := len(m.GetLabel()) == len(pairs)/2
			for i := 0; i < len(pairs); i += 2 {
				match = match && slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == pairs[i] && l.GetValue() == pairs[i+1] })
			}
			if match {
				return m
			}
		}
		t.Fatalf("no %s%v in\n%s", name, pairs, text)
		return nil
	}
	if got := find("retinue_http_rq_total", "listener", "web").GetCounter().GetValue(); got != 15 {
		t.Errorf("two versions of a schema sum to %v, want 15", got)
	}
	if got := families["retinue_http_rq_total"].GetHelp(); got != "Requests\nand a \\ and a \"." {
		t.Errorf("help is %q", got)
	}
	if got := find("retinue_http_rq_total", "listener", oddName).GetCounter().GetValue(); got != 0 {
		t.Errorf("the other group has %v", got)
	}
	if got := find("retinue_http_rq_xx", "listener", "web", "response_code_class", "5").GetCounter().GetValue(); got != 2 {
		t.Errorf("5xx %v", got)
	}
	if got := find("retinue_http_rq_new", "listener", "web").GetCounter().GetValue(); got != 3 {
		t.Errorf("the newer field is %v", got)
	}
	if n := len(families["retinue_http_rq_new"].GetMetric()); n != 1 {
		t.Errorf("%d series of a field that one group has", n)
	}
	if got := find("retinue_http_cx_active", "listener", "web").GetGauge().GetValue(); got != -7 {
		t.Errorf("gauge %v, want -7", got)
	}
	if got := find("retinue_server_live").GetGauge().GetValue(); got != 1 {
		t.Errorf("live %v", got)
	}
	if got := find("retinue_build_info", "version", "1\"2").GetGauge().GetValue(); got != 1 {
		t.Errorf("build_info %v", got)
	}

	h := find("retinue_http_rq_time", "listener", "web").GetHistogram()
	if h.GetSampleCount() != 10 {
		t.Errorf("count %d, want 10", h.GetSampleCount())
	}
	want := map[float64]uint64{0.064: 3, 0.128: 4, 0.512: 4, 1.024: 6, 2.048: 7, 33554.432: 7, 67108.864: 8, math.Inf(1): 10}
	seen := 0
	for _, b := range h.GetBucket() {
		if n, ok := want[b.GetUpperBound()]; ok {
			seen++
			if b.GetCumulativeCount() != n {
				t.Errorf("le=%v counts %d, want %d", b.GetUpperBound(), b.GetCumulativeCount(), n)
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d of the bounds %v are there", seen, slices.Sorted(maps.Keys(want)))
	}
	total := uint64(0)
	for _, v := range []uint64{64, 65, 1000, 1024, 1025, 1 << 26, 1<<26 + 1, 1 << 40, 64} {
		total += v
	}
	if got := h.GetSampleSum(); got != float64(total)/1000 {
		t.Errorf("sum %v ms, want %v", got, float64(total)/1000)
	}
	body := find("retinue_http_body", "listener", "web").GetHistogram()
	for _, b := range body.GetBucket() {
		want := uint64(0)
		if b.GetUpperBound() >= 4096 {
			want = 1
		}
		if b.GetCumulativeCount() != want {
			t.Errorf("body le=%v counts %d", b.GetUpperBound(), b.GetCumulativeCount())
		}
	}
}

// TestBothFormatsAsPrometheusScrapes parses with the parsers of the Prometheus server itself.
func TestBothFormatsAsPrometheusScrapes(t *testing.T) {
	source, _, _, _ := filled(t)
	symbols := labels.NewSymbolTable()
	counts := map[exposition.Format]map[string]int{}
	for _, format := range []exposition.Format{exposition.Text, exposition.OpenMetrics} {
		text := write(t, source, format)
		parser, err := textparse.New([]byte(text), format.ContentType(), symbols, textparse.ParserOptions{})
		if err != nil {
			t.Fatal(err)
		}
		names := map[string]int{}
		series := map[string]bool{}
		for {
			entry, err := parser.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("format %d: %v in\n%s", format, err, text)
			}
			if entry == textparse.EntrySeries {
				var l labels.Labels
				parser.Labels(&l)
				names[l.Get("__name__")]++
				if series[l.String()] {
					t.Errorf("format %d: %s twice", format, l)
				}
				series[l.String()] = true
			}
		}
		counts[format] = names
		if (format == exposition.OpenMetrics) != strings.HasSuffix(text, "\n# EOF\n") {
			t.Errorf("format %d ends %q", format, text[len(text)-20:])
		}
	}
	if !maps.Equal(counts[exposition.Text], counts[exposition.OpenMetrics]) {
		t.Errorf("names differ with the format:\n%v\n%v", counts[exposition.Text], counts[exposition.OpenMetrics])
	}
	om := write(t, source, exposition.OpenMetrics)
	for _, line := range []string{"# TYPE retinue_http_rq counter\n", "# TYPE retinue_http_rq_xx unknown\n", `le="67108.864"`, `le="4096.0"`} {
		if !strings.Contains(om, line) {
			t.Errorf("no %q in OpenMetrics", line)
		}
	}
}

func TestMatchRetiredAndDead(t *testing.T) {
	source, w, store, bases := filled(t)
	text := write(t, source, exposition.Text, "rq_xx", "server")
	if strings.Contains(text, "rq_total") || !strings.Contains(text, "retinue_http_rq_xx{") || !strings.Contains(text, "retinue_server_live 1") {
		t.Errorf("match gave\n%s", text)
	}
	if err := store.Retire(bases[2], true); err != nil {
		t.Fatal(err)
	}
	if text := write(t, source, exposition.Text); strings.Contains(text, "braces") {
		t.Error("a retired group is shown")
	}
	w.Kill()
	text = write(t, source, exposition.Text)
	for _, line := range []string{"retinue_server_live 0\n", `retinue_http_cx_active{listener="web"} 0` + "\n", `retinue_http_rq_total{listener="web"} 15` + "\n"} {
		if !strings.Contains(text, line) {
			t.Errorf("no %q after the writer's death", line)
		}
	}
}

func TestQuery(t *testing.T) {
	source, _, _, _ := filled(t)
	list, err := source.Query("rq_time", 10)
	if err != nil || len(list) != 2 {
		t.Fatalf("%d series: %v", len(list), err)
	}
	s := list[0]
	if s.GetValue() != 10 || len(s.GetQuantiles()) != 4 || s.GetQuantiles()[0] < 0.9 || s.GetQuantiles()[0] > 1.1 {
		t.Errorf("%v", s)
	}
	if list, err = source.Query("", 3); err != nil || len(list) != 3 {
		t.Errorf("a limit of 3 gave %d: %v", len(list), err)
	}
	if list, err = source.Query("cx_active", 3); err != nil || list[0].GetValue() != -7 {
		t.Errorf("%v %v", list, err)
	}
}

// TestNamesThatCollide: a family that would take another's name is left out, whatever is declared.
func TestNamesThatCollide(t *testing.T) {
	run := t.TempDir()
	store, err := region.Open(filepath.Join(run, "region"), region.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	counter := func(schema, name string) *statsv1.Schema {
		return &statsv1.Schema{Name: schema, Fields: []*statsv1.Field{{Name: name, Kind: statsv1.Kind_KIND_COUNTER}}}
	}
	histogram := counter("a", "b_c")
	histogram.Fields[0].Kind = statsv1.Kind_KIND_HISTOGRAM
	gauge := counter("a", "x")
	gauge.Fields[0].Kind = statsv1.Kind_KIND_GAUGE
	_, err = store.DeclareAll(
		[]*statsv1.Schema{histogram, counter("a_b", "c"), counter("a", "b_c_count"), counter("a", "x"), gauge},
		[]*statsv1.Group{{Schema: 0}, {Schema: 1}, {Schema: 2}, {Schema: 3}, {Schema: 4}})
	if err != nil {
		t.Fatal(err)
	}
	source, err := exposition.NewSource(func() (*region.Reader, error) { return region.OpenReader(store.Dir(), run) })
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	text := write(t, source, exposition.Text)
	parser := expfmt.NewTextParser(model.LegacyValidation)
	if _, err := parser.TextToMetricFamilies(strings.NewReader(text)); err != nil {
		t.Errorf("%v in\n%s", err, text)
	}
	if n := strings.Count(text, "# TYPE"); n != 4 {
		t.Errorf("%d families in\n%s", n, text)
	}
}

func TestNegotiate(t *testing.T) {
	for accept, want := range map[string]exposition.Format{
		"":    exposition.Text,
		"*/*": exposition.Text,
		"application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2": exposition.OpenMetrics,
		"application/openmetrics-text; version=1.0.0, text/plain;q=0.5":                                                                              exposition.OpenMetrics,
		"text/plain;version=0.0.4, application/openmetrics-text;q=0.1":                                                                               exposition.Text,

		"application/openmetrics-text;q=0":                  exposition.Text,
		"application/openmetrics-text; version=9.0.0":       exposition.Text,
		"text/html,application/xhtml+xml,*/*;q=0.8":         exposition.Text,
		"application/openmetrics-text;q=nonsense,;;;,=,q=":  exposition.OpenMetrics,
		"application/vnd.google.protobuf;q=0.9,text/plain;": exposition.Text,
	} {
		if got := exposition.Negotiate(accept); got != want {
			t.Errorf("%q gives %d, want %d", accept, got, want)
		}
	}
}

func BenchmarkScrape(b *testing.B) {
	run := b.TempDir()
	store, err := region.Open(filepath.Join(run, "region"), region.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer store.Close()
	var groups []*statsv1.Group
	for i := range 10_000 {
		groups = append(groups, &statsv1.Group{Labels: label("listener", fmt.Sprint("cluster-", i))})
	}
	if _, err := store.DeclareAll([]*statsv1.Schema{proxy(1)}, groups); err != nil {
		b.Fatal(err)
	}
	for i := range 3 {
		sheet, lock, err := store.CreateSheet(1, uint32(i))
		if err != nil {
			b.Fatal(err)
		}
		regiontest.Start(b, sheet, lock)
	}
	source, err := exposition.NewSource(func() (*region.Reader, error) { return region.OpenReader(store.Dir(), run) })
	if err != nil {
		b.Fatal(err)
	}
	defer source.Close()
	for b.Loop() {
		if err := source.Write(io.Discard, exposition.Text, nil, nil); err != nil {
			b.Fatal(err)
		}
	}
}
