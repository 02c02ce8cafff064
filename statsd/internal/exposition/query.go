package exposition

import (
	"errors"
	"iter"
	"strings"

	"retinue.dev/libs/region"
	statsv1 "retinue.dev/services/api/stats/v1"
)

// quantiles that Query answers for a histogram.
var quantiles = []float64{0.5, 0.9, 0.99, 0.999}

// Query returns the series whose name contains match, in exposed units, at most limit of them.
func (s *Source) Query(match string, limit int) ([]*statsv1.Series, error) {
	var list []*statsv1.Series
	enough := errors.New("enough")
	err := s.walk([]string{match}, func(fam *family, g *group, v *variant, cells []uint64) error {
		if len(list) == limit {
			return enough
		}
		list = append(list, seriesOf(fam, g, v, cells, Scale(fam.unit, fam.exposed)))
		return nil
	})
	if err != nil && !errors.Is(err, enough) {
		return nil, err
	}
	return list, nil
}

func seriesOf(fam *family, g *group, v *variant, cells []uint64, scale float64) *statsv1.Series {
	series := &statsv1.Series{Name: fam.name, Kind: statsv1.Kind(fam.kind)}
	for _, labels := range [][]region.Label{g.labels, v.labels} {
		for _, l := range labels {
			series.Labels = append(series.Labels, &statsv1.Label{Name: l.Name, Value: l.Value})
		}
	}
	if fam.kind == region.Histogram {
		series.Value = float64(region.HistogramCount(cells))
		series.Sum = float64(cells[region.HistogramSum]) / scale
		for _, q := range quantiles {
			series.Quantiles = append(series.Quantiles, region.HistogramQuantile(cells, q)/scale)
		}
		return series
	}
	series.Value = float64(int64(cells[0])) / scale
	return series
}

// View is one group of series to whoever picks single values: the dashboard and readiness.
type View struct {
	source *Source
	set    *set
	group  *group
}

// Label returns the value of a label.
func (v View) Label(name string) string {
	for _, l := range v.group.labels {
		if l.Name == name {
			return l.Value
		}
	}
	return ""
}

// Sum adds the field's values over all its variants; 0 when the schema has no such field.
func (v View) Sum(field string) uint64 {
	var sum uint64
	for _, value := range v.Variants(field, "") {
		sum += value
	}
	return sum
}

// Variants yields the value of each of a field's variants with the value of the label that tells them apart.
func (v View) Variants(field, label string) iter.Seq2[string, uint64] {
	return func(yield func(string, uint64) bool) {
		fam := v.source.taken[Prefix+v.set.name+"_"+field]
		if fam == nil || fam.kind == region.Histogram {
			return
		}
		var cell [1]uint64
		for _, variant := range fam.variants {
			if found, err := v.source.read(v.group, variant, cell[:]); err != nil || !found {
				continue
			}
			name := ""
			for _, l := range variant.labels {
				if l.Name == label {
					name = l.Value
				}
			}
			if !yield(name, cell[0]) {
				return
			}
		}
	}
}

// Histogram adds the field's cells to dst, which has region.HistogramCells.
func (v View) Histogram(field string, dst []uint64) {
	fam := v.source.taken[Prefix+v.set.name+"_"+field]
	if fam == nil || fam.kind != region.Histogram {
		return
	}
	if v.source.cells == nil {
		v.source.cells = make([]uint64, region.HistogramCells)
	}
	for _, variant := range fam.variants {
		if found, err := v.source.read(v.group, variant, v.source.cells); err == nil && found {
			for i, c := range v.source.cells {
				dst[i] += c
			}
		}
	}
}

// Groups yields the shown groups of a schema.
type Groups func(schema string) iter.Seq[View]

// Look refreshes and calls f. The views that f sees are good only inside: the source is locked meanwhile.
func (s *Source) Look(f func(Groups)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.refresh(); err != nil {
		return err
	}
	f(func(schema string) iter.Seq[View] {
		return func(yield func(View) bool) {
			st := s.byName[schema]
			if st == nil {
				return
			}
			for _, g := range st.groups {
				if g.shown() && !yield(View{s, st, g}) {
					return
				}
			}
		}
	})
	return nil
}

func matches(name string, match []string) bool {
	for _, m := range match {
		if strings.Contains(name, m) {
			return true
		}
	}
	return len(match) == 0
}
