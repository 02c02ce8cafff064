package plugin

import (
	"context"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	filterv1 "retinue.dev/services/api/filter/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
)

// Bounds of what plugins count for themselves: a plugin that invents names has the first of them.
const (
	maxMetrics    = 64   // of a plugin
	maxAllMetrics = 4096 // of all plugins
	maxMetricName = 64
	metricsFresh  = 2 * time.Second
	metricsTime   = 500 * time.Millisecond // for a plugin to answer
)

// tally is what plugins have counted for themselves. Asking takes a while, so it is done by whoever wants to know and not by the
// manager's loop.
type tally struct {
	mu    sync.Mutex
	asked time.Time
	reply *restartv1.PluginMetricsReply
	seen  map[generationOf]map[string]float64 // counters as they were last
	total map[string]map[string]float64       // by plugin: of all generations there have been
	kept  []byte                              // what the file holds
}

type generationOf struct {
	plugin string
	number uint64
}

// asked is a generation that may be asked.
type asked struct {
	generationOf
	control controller
}

// Metrics asks the plugins, unless somebody did a moment ago.
func (m *Manager) Metrics(ctx context.Context) (*restartv1.PluginMetricsReply, error) {
	t := &m.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.reply != nil && time.Since(t.asked) < metricsFresh {
		return t.reply, nil
	}
	var list []asked
	names := map[string]bool{}
	err := m.call(func() {
		for name, p := range m.plugins {
			names[name] = true
			for n, g := range p.gens {
				if g.process != nil && !g.ending && g.control != nil {
					list = append(list, asked{generationOf{name, n}, g.control})
				}
			}
		}
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, metricsTime)
	defer cancel()
	answers := make([][]*filterv1.Metric, len(list))
	var all sync.WaitGroup
	for i, a := range list {
		all.Go(func() {
			if r, err := a.control.Metrics(ctx, &filterv1.MetricsRequest{}); err == nil { // one without metrics of its own may refuse
				answers[i] = sane(r.GetMetrics())
			}
		})
	}
	all.Wait()
	t.reply, t.asked = t.sum(names, list, answers), time.Now()
	m.keepTotals()
	return t.reply, nil
}

// countLast asks a generation that is about to end what it has counted since somebody wanted to know.
func (m *Manager) countLast(g generationOf, c controller) {
	ctx, cancel := context.WithTimeout(context.Background(), metricsTime)
	defer cancel()
	r, err := c.Metrics(ctx, &filterv1.MetricsRequest{})
	if err != nil {
		return
	}
	t := &m.tally
	t.mu.Lock()
	defer t.mu.Unlock()
	t.count(g, sane(r.GetMetrics()))
	m.keepTotals()
}

// sane drops what cannot be a series.
func sane(list []*filterv1.Metric) (out []*filterv1.Metric) {
	seen := map[string]bool{}
	for _, m := range list {
		name := m.GetName()
		ok := name != "" && len(name) <= maxMetricName && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" && (name[0] == '_' || name[0] > '9')
		key := strings.TrimSuffix(name, "_total") // with and without it is one series
		if v := m.GetValue(); !ok || seen[key] || math.IsNaN(v) || math.IsInf(v, 0) || v < 0 && !m.GetGauge() {
			continue
		}
		if seen[key] = true; len(out) < maxMetrics {
			out = append(out, m)
		}
	}
	return out
}

// count adds what a generation has counted since it was asked last.
func (t *tally) count(g generationOf, metrics []*filterv1.Metric) {
	if t.total == nil {
		t.total, t.seen = map[string]map[string]float64{}, map[generationOf]map[string]float64{}
	}
	total := t.total[g.plugin]
	if total == nil {
		total = map[string]float64{}
		t.total[g.plugin] = total
	}
	before, now := t.seen[g], map[string]float64{}
	for _, m := range metrics {
		name := m.GetName()
		if _, known := total[name]; m.GetGauge() || !known && len(total) >= maxMetrics {
			continue
		}
		now[name] = max(m.GetValue(), before[name])
		total[name] += now[name] - before[name]
	}
	t.seen[g] = now
}

// sum adds the generations of each plugin up. What plugins that are none any more have counted is forgotten.
func (t *tally) sum(plugins map[string]bool, list []asked, answers [][]*filterv1.Metric) *restartv1.PluginMetricsReply {
	living, gauges := map[generationOf]bool{}, map[string]map[string]float64{}
	for i, a := range list {
		living[a.generationOf] = true
		if answers[i] == nil {
			continue
		}
		t.count(a.generationOf, answers[i])
		if gauges[a.plugin] == nil {
			gauges[a.plugin] = map[string]float64{}
		}
		for _, m := range answers[i] {
			if m.GetGauge() {
				gauges[a.plugin][m.GetName()] += m.GetValue()
			}
		}
	}
	maps.DeleteFunc(t.seen, func(g generationOf, _ map[string]float64) bool { return !living[g] })
	maps.DeleteFunc(t.total, func(plugin string, _ map[string]float64) bool { return !plugins[plugin] })
	r := &restartv1.PluginMetricsReply{}
	for _, plugin := range slices.Sorted(maps.Keys(plugins)) {
		add := func(values map[string]float64, gauge bool) {
			for _, name := range slices.Sorted(maps.Keys(values)) {
				if len(r.Metrics) < maxAllMetrics {
					r.Metrics = append(r.Metrics, &restartv1.PluginMetric{Plugin: plugin, Name: name, Value: values[name], Gauge: gauge})
				}
			}
		}
		add(t.total[plugin], false)
		add(gauges[plugin], true)
	}
	return r
}
