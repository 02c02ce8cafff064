package top

import (
	"strings"
	"testing"
	"time"

	"retinue.dev/libs/region"
)

// made is a sample with one table's worth of everything, from values by column.
func made(at time.Time, clusters, https, listeners map[string]map[string]uint64, latency []uint64) *sample {
	build := func(values map[string]map[string]uint64, histogram string) rows {
		t := &table{columns: map[string]int{}}
		for _, row := range values {
			for column := range row {
				if _, known := t.columns[column]; !known {
					t.columns[column] = t.width
					t.width++
				}
			}
		}
		t.columns[histogram] = t.width
		t.width += region.HistogramCells
		out := rows{t, map[string][]uint64{}}
		for name, row := range values {
			cells := make([]uint64, t.width)
			for column, v := range row {
				cells[t.columns[column]] = v
			}
			for _, v := range latency {
				region.Observe(cells[t.columns[histogram]:], v)
			}
			out.of[name] = cells
		}
		return out
	}
	return &sample{
		at: at, clusters: build(clusters, "upstream_rq_time"), https: build(https, "downstream_rq_time"), listeners: build(listeners, "-"),
		tcps: rows{&table{columns: map[string]int{}}, nil}, server: rows{&table{columns: map[string]int{}}, nil},
	}
}

type values = map[string]map[string]uint64

func samples() (*sample, *sample) {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before := made(start,
		values{"api": {"upstream_rq_total": 100, "upstream_cx_active": 3}},
		values{"web": {"downstream_rq_total": 100, "downstream_rq_xx/2": 90}},
		values{"web": {"downstream_cx_total": 10, "downstream_cx_active": 4}}, nil)
	now := made(start.Add(2*time.Second),
		values{
			"api":             {"upstream_rq_total": 300, "upstream_cx_active": 5, "membership_total": 2, "membership_healthy": 1, "upstream_rq_xx/5": 8},
			"new\x1b[31mname": {"upstream_rq_total": 50},
		},
		values{"web": {"downstream_rq_total": 310, "downstream_rq_xx/2": 292, "downstream_rq_xx/5": 8, "downstream_rq_active": 1}},
		values{"web": {"downstream_cx_total": 12, "downstream_cx_active": 6, "downstream_cx_shed": 7}}, []uint64{2048, 2048, 2048, 65536})
	return before, now
}

func TestViewOfTwoSamples(t *testing.T) {
	before, now := samples()
	v := compare(before, now)
	if v.Total.Requests != 105 || v.Total.Classes[1] != 101 || v.Total.Classes[4] != 4 || v.Total.New != 1 || v.Total.Connections != 6 {
		t.Errorf("total %+v", v.Total)
	}
	if v.Total.P50 < 1.8 || v.Total.P50 > 2.1 || v.Total.P99 < 60 || v.Total.P99 > 64.1 {
		t.Errorf("percentiles %v and %v ms, of 2 and 64", v.Total.P50, v.Total.P99)
	}
	if len(v.Clusters) != 2 || v.Clusters[0].Name != "api" || v.Clusters[0].Requests != 100 || v.Clusters[0].Errors != 4 || v.Clusters[0].Healthy != 1 {
		t.Errorf("clusters %+v", v.Clusters)
	}
	// A cluster that was not there before counts from 0.
	if v.Clusters[1].Requests != 25 {
		t.Errorf("the new cluster has %v requests a second, 25 are right", v.Clusters[1].Requests)
	}
}

func TestTextFitsAndIsInert(t *testing.T) {
	before, now := samples()
	v := compare(before, now)
	for _, what := range Views {
		for _, l := range v.text(what, 40, 12) {
			if strings.ContainsFunc(l.text, func(r rune) bool { return r < ' ' }) {
				t.Errorf("%s: a control character in %q", what, l.text)
			}
			if n := len([]rune(l.text)); n > 40 {
				t.Errorf("%s: a line of %d characters on a terminal of 40", what, n)
			}
		}
		if n := len(v.text(what, 40, 12)); n > 12 {
			t.Errorf("%s: %d lines on a terminal of 12", what, n)
		}
	}
	var all []string
	for _, l := range v.text("clusters", 0, 0) {
		all = append(all, l.text)
	}
	const want = `CLUSTER       HOSTS  RQ/S  5XX/S    P50   P99  ACTIVE  WAIT  CX  CX FAIL/S  RETRY/S  TIMEOUT/S
api             1/2   100      4  1.9ms  64ms       0     0   5          0        0          0
new?[31mname    0/0    25      0  1.9ms  64ms       0     0   0          0        0          0`
	if got := strings.Join(all, "\n"); !strings.HasSuffix(got, want) {
		t.Errorf("got\n%s\nwant at the end\n%s", got, want)
	}
}
