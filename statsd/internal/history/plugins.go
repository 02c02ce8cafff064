package history

import (
	"iter"
	"slices"
	"strings"

	"retinue.dev/libs/region"

	"retinue.dev/statsd/internal/exposition"
)

// Plugin is a row of the table of plugins.
type Plugin struct {
	Name   string  `json:"name"`
	Calls  float64 `json:"cps"`    // answered, a second
	Failed float64 `json:"failed"` // streams that met their fail mode, a second
	Cached float64 `json:"cached"` // answered from the cache, a second
	P50    float64 `json:"p50"`
	P99    float64 `json:"p99"`
	Queue  float64 `json:"queue"` // p99 of the part that the plugin did not work
	Active uint64  `json:"rq"`
}

// pluginBefore is what a plugin's counters were at the last sample.
type pluginBefore struct {
	calls, failed, cached uint64
	times, queue          histogramRing
}

// histogramRing remembers a histogram's cells over the window.
type histogramRing struct {
	cells [window + 1][]uint64
	turn  uint64
}

// push adds the newest cells and returns the oldest.
func (r *histogramRing) push(cells []uint64) (oldest []uint64) {
	r.cells[r.turn%(window+1)] = cells
	r.turn++
	if oldest = r.cells[r.turn%(window+1)]; oldest == nil {
		oldest = r.cells[0]
	}
	return oldest
}

func (h *History) pluginRows(groups iter.Seq[exposition.View], seconds float64) []Plugin {
	rows := []Plugin{}
	seen := map[string]*pluginBefore{}
	for g := range groups {
		row := Plugin{Name: g.Label("plugin"), Active: g.Sum("rq_active")}
		var calls, cached uint64
		for result, n := range g.Variants("rq_total", "result") {
			switch result {
			case "ok", "modified", "responded":
				calls += n
			case "cached":
				cached += n
			}
		}
		failed := g.Sum("failed_open") + g.Sum("failed_closed")
		before := h.plugins[row.Name]
		if before == nil {
			before = &pluginBefore{calls: calls, failed: failed, cached: cached}
		}
		row.Calls, row.Failed, row.Cached = perSecond(before.calls, calls, seconds), perSecond(before.failed, failed, seconds), perSecond(before.cached, cached, seconds)
		before.calls, before.failed, before.cached = calls, failed, cached
		times, queue := make([]uint64, region.HistogramCells), make([]uint64, region.HistogramCells)
		g.Histogram("rq_time", times)
		g.Histogram("rq_queue_time", queue)
		row.P50, _, row.P99 = percentiles(before.times.push(times), times)
		_, _, row.Queue = percentiles(before.queue.push(queue), queue)
		rows = append(rows, row)
		seen[row.Name] = before
	}
	h.plugins = seen
	slices.SortFunc(rows, func(a, b Plugin) int { return strings.Compare(a.Name, b.Name) })
	return rows[:min(len(rows), maxRows)]
}
