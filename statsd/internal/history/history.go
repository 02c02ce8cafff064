// Package history samples the region once a second and remembers some minutes of it, for the dashboard's graphs.
package history

import (
	"cmp"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"retinue.dev/libs/region"

	"retinue.dev/statsd/internal/exposition"
)

// Points is how many seconds are remembered; maxRows bounds each table.
const (
	Points  = 300
	maxRows = 100
)

// window is over how many samples percentiles are taken: one second of little traffic has too few values.
const window = 5

// Point is one second. Rates are per second, times in milliseconds.
type Point struct {
	T        int64      `json:"t"` // unix ms
	Requests float64    `json:"rps"`
	Classes  [5]float64 `json:"xx"`
	P50      float64    `json:"p50"`
	P90      float64    `json:"p90"`
	P99      float64    `json:"p99"`
	Conns    uint64     `json:"cx"`
	Active   uint64     `json:"rq"`
	NewConns float64    `json:"cps"`
	Received float64    `json:"rx"` // bytes from clients
	Sent     float64    `json:"tx"`
}

// Cluster, Listener are rows of the tables.
type Cluster struct {
	Name     string  `json:"name"`
	Requests float64 `json:"rps"`
	Errors   float64 `json:"errors"` // 5xx a second
	P50      float64 `json:"p50"`
	P99      float64 `json:"p99"`
	Conns    uint64  `json:"cx"`
	Active   uint64  `json:"rq"`
	Healthy  uint64  `json:"healthy"`
	Members  uint64  `json:"members"`
}

// Listener is a row of the table of listeners.
type Listener struct {
	Name     string  `json:"name"`
	Conns    uint64  `json:"cx"`
	NewConns float64 `json:"cps"`
	Total    uint64  `json:"total"`
	Refused  uint64  `json:"refused"`
}

// Now is the newest sample with its tables.
type Now struct {
	Point     Point      `json:"point"`
	Clusters  []Cluster  `json:"clusters"`
	More      int        `json:"more_clusters"` // that the table leaves out
	Listeners []Listener `json:"listeners"`
	Plugins   []Plugin   `json:"plugins"`
	Live      uint64     `json:"live"` // generations that serve
	Totals    Totals     `json:"totals"`
}

// Totals are counters since the region began.
type Totals struct {
	Requests uint64 `json:"requests"`
	Conns    uint64 `json:"connections"`
}

// History samples when told to. Its life: New; one goroutine calls Sample every second; any goroutine reads.
type History struct {
	source *exposition.Source

	mu     sync.Mutex
	points []Point
	now    Now

	// Sample's own:
	last     time.Time
	tables   time.Time // when the tables were last made
	counters [9]uint64 // at the last sample: requests, five classes, connections, bytes received and sent
	times    [][]uint64
	clusters map[string]*clusterBefore
	cx       map[string]uint64
	plugins  map[string]*pluginBefore
}

// clusterBefore is what a cluster's counters were at the last sample.
type clusterBefore struct {
	requests, errors uint64
	times            [window + 1][]uint64 // a ring of its histogram's cells
	turn             uint64
}

// New remembers what source holds.
func New(source *exposition.Source) *History {
	return &History{source: source, clusters: map[string]*clusterBefore{}, cx: map[string]uint64{}, plugins: map[string]*pluginBefore{}}
}

// Sample takes a sample at the time now. With tables, the rows of clusters and listeners too, which is worth its cost
// only when somebody looks.
func (h *History) Sample(now time.Time, tables bool) error {
	var sample Now
	err := h.source.Look(func(groups exposition.Groups) {
		seconds := now.Sub(h.last).Seconds()
		if h.last.IsZero() || seconds <= 0 {
			seconds = 0
		}
		sample.Point = h.point(groups, now, seconds, &sample.Totals)
		for g := range groups("server") {
			sample.Live += g.Sum("live")
		}
		if tables {
			since := now.Sub(h.tables)
			if since <= 0 || since > window*time.Second { // nobody looked: the rates begin anew
				clear(h.clusters)
				clear(h.cx)
				clear(h.plugins)
			}
			sample.Clusters, sample.More = h.clusterRows(groups("cluster"), since.Seconds())
			sample.Listeners = h.listenerRows(groups("listener"), since.Seconds())
			sample.Plugins = h.pluginRows(groups("plugin"), since.Seconds())
			h.tables = now
		}
		h.last = now
	})
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.points) == Points {
		h.points = append(h.points[:0], h.points[1:]...)
	}
	h.points = append(h.points, sample.Point)
	h.now = sample
	return nil
}

func (h *History) point(groups exposition.Groups, now time.Time, seconds float64, totals *Totals) Point {
	p := Point{T: now.UnixMilli()}
	var counters [9]uint64
	times := make([]uint64, region.HistogramCells)
	for g := range groups("http") {
		counters[0] += g.Sum("downstream_rq_total")
		for class, n := range g.Variants("downstream_rq_xx", "response_code_class") {
			if len(class) == 1 && class >= "1" && class <= "5" {
				counters[1+class[0]-'1'] += n
			}
		}
		counters[7] += g.Sum("downstream_cx_rx_bytes_total")
		counters[8] += g.Sum("downstream_cx_tx_bytes_total")
		p.Active += g.Sum("downstream_rq_active")
		g.Histogram("downstream_rq_time", times)
	}
	for g := range groups("tcp") {
		counters[7] += g.Sum("downstream_cx_rx_bytes_total")
		counters[8] += g.Sum("downstream_cx_tx_bytes_total")
	}
	for g := range groups("listener") {
		counters[6] += g.Sum("downstream_cx_total")
		p.Conns += g.Sum("downstream_cx_active")
	}
	rate := func(i int) float64 { return perSecond(h.counters[i], counters[i], seconds) }
	p.Requests, p.NewConns, p.Received, p.Sent = rate(0), rate(6), rate(7), rate(8)
	for i := range p.Classes {
		p.Classes[i] = rate(1 + i)
	}
	h.times = append(h.times, times)
	if len(h.times) > window+1 {
		h.times = h.times[1:]
	}
	p.P50, p.P90, p.P99 = percentiles(h.times[0], times)
	h.counters = counters
	totals.Requests, totals.Conns = counters[0], counters[6]
	return p
}

func perSecond(before, after uint64, seconds float64) float64 {
	if seconds == 0 || after < before {
		return 0
	}
	return float64(after-before) / seconds
}

// percentiles of what was counted between two readings of a histogram in ticks (region.UnitTicks), in milliseconds.
func percentiles(before, after []uint64) (p50, p90, p99 float64) {
	between := make([]uint64, region.HistogramCells)
	for i := range between {
		if after[i] > before[i] {
			between[i] = after[i] - before[i]
		}
	}
	q := func(q float64) float64 { return region.HistogramQuantile(between, q) / 1024 }
	return q(0.5), q(0.9), q(0.99)
}

func (h *History) clusterRows(groups iter.Seq[exposition.View], seconds float64) ([]Cluster, int) {
	rows := []Cluster{}
	seen := map[string]*clusterBefore{}
	for g := range groups {
		row := Cluster{
			Name: g.Label("cluster"), Conns: g.Sum("upstream_cx_active"), Active: g.Sum("upstream_rq_active"),
			Healthy: g.Sum("membership_healthy"), Members: g.Sum("membership_total"),
		}
		requests, errors := g.Sum("upstream_rq_total"), uint64(0)
		for class, n := range g.Variants("upstream_rq_xx", "response_code_class") {
			if class == "5" {
				errors += n
			}
		}
		before := h.clusters[row.Name]
		if before == nil {
			before = &clusterBefore{requests: requests, errors: errors}
		}
		row.Requests = perSecond(before.requests, requests, seconds)
		row.Errors = perSecond(before.errors, errors, seconds)
		before.requests, before.errors = requests, errors
		cells := make([]uint64, region.HistogramCells)
		g.Histogram("upstream_rq_time", cells)
		before.times[before.turn%(window+1)] = cells
		before.turn++
		oldest := before.times[before.turn%(window+1)]
		if oldest == nil {
			oldest = before.times[0]
		}
		row.P50, _, row.P99 = percentiles(oldest, cells)
		rows = append(rows, row)
		seen[row.Name] = before
	}
	h.clusters = seen
	slices.SortFunc(rows, func(a, b Cluster) int {
		return cmp.Or(cmp.Compare(b.Requests, a.Requests), strings.Compare(a.Name, b.Name))
	})
	return rows[:min(len(rows), maxRows)], max(0, len(rows)-maxRows)
}

func (h *History) listenerRows(groups iter.Seq[exposition.View], seconds float64) []Listener {
	rows := []Listener{}
	before := h.cx
	h.cx = map[string]uint64{}
	for g := range groups {
		row := Listener{
			Name: g.Label("listener"), Conns: g.Sum("downstream_cx_active"), Total: g.Sum("downstream_cx_total"),
			Refused: g.Sum("downstream_cx_overflow") + g.Sum("downstream_global_cx_overflow") + g.Sum("downstream_cx_shed"),
		}
		if last, known := before[row.Name]; known {
			row.NewConns = perSecond(last, row.Total, seconds)
		}
		h.cx[row.Name] = row.Total
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Listener) int { return strings.Compare(a.Name, b.Name) })
	return rows[:min(len(rows), maxRows)]
}

// Points returns what is remembered, oldest first.
func (h *History) Points() []Point {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.points)
}

// Now returns the newest sample.
func (h *History) Now() Now {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.now
}
