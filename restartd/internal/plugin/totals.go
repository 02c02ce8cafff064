package plugin

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"

	"retinue.dev/restartd/internal/durable"
)

// totals is the file in which the tally outlives restartd, so that no counter of a plugin falls with it. It is written when somebody has asked and
// something was counted, and when a generation ends.
type totals struct {
	Version int                           `json:"version"`
	Total   map[string]map[string]float64 `json:"total"` // by plugin and name
	Seen    []seen                        `json:"seen"`
}

// seen is what a generation that may live on had counted.
type seen struct {
	Plugin   string             `json:"plugin"`
	Number   uint64             `json:"generation"`
	Counters map[string]float64 `json:"counters"`
}

const (
	totalsVersion = 1
	maxTotals     = 4 << 20
)

func (m *Manager) totalsPath() string { return filepath.Join(m.opt.StateDir, "plugin-metrics.json") }

// keepTotals writes the tally, with its lock held.
func (m *Manager) keepTotals() {
	t := &m.tally
	f := totals{Version: totalsVersion, Total: t.total}
	for g, counters := range t.seen {
		f.Seen = append(f.Seen, seen{g.plugin, g.number, counters})
	}
	slices.SortFunc(f.Seen, func(a, b seen) int { return cmp.Or(cmp.Compare(a.Plugin, b.Plugin), cmp.Compare(a.Number, b.Number)) })
	b, err := json.Marshal(f)
	if err == nil && bytes.Equal(b, t.kept) {
		return
	}
	if err == nil {
		err = durable.Write(m.totalsPath(), b, 0o600)
	}
	if err != nil {
		m.opt.Log.Warn("what plugins have counted is not kept: it begins anew with the next restartd", "error", err)
		return
	}
	t.kept = b
}

// readTotals takes over what the restartd before has kept. It runs before the loop.
func (m *Manager) readTotals() {
	b, err := os.ReadFile(m.totalsPath())
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	var t tally
	if err == nil {
		t.total, t.seen, err = parseTotals(b)
	}
	if err != nil {
		m.opt.Log.Warn("what plugins have counted begins anew", "error", err)
		return
	}
	m.tally.total, m.tally.seen = t.total, t.seen
}

func parseTotals(b []byte) (map[string]map[string]float64, map[generationOf]map[string]float64, error) {
	if len(b) > maxTotals {
		return nil, nil, fmt.Errorf("a file of %d bytes", len(b))
	}
	var f totals
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, nil, err
	}
	if f.Version != totalsVersion {
		return nil, nil, fmt.Errorf("a file of version %d, this restartd reads %d", f.Version, totalsVersion)
	}
	sound := func(counters map[string]float64) bool {
		for _, v := range counters {
			if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
				return false
			}
		}
		return len(counters) <= maxMetrics
	}
	total, before := map[string]map[string]float64{}, map[generationOf]map[string]float64{}
	for plugin, counters := range f.Total {
		if counters == nil || !sound(counters) {
			return nil, nil, fmt.Errorf("the counters of plugin %q make no sense", plugin)
		}
		total[plugin] = counters
	}
	for _, s := range f.Seen {
		if !sound(s.Counters) {
			return nil, nil, fmt.Errorf("the counters of generation %d of plugin %q make no sense", s.Number, s.Plugin)
		}
		before[generationOf{s.Plugin, s.Number}] = s.Counters
	}
	return total, before, nil
}
