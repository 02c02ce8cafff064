// Package exposition turns the region's groups into families of series, and writes them for Prometheus and for queries.
package exposition

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"retinue.dev/libs/region"
)

// Prefix begins every exposed name.
const Prefix = "retinue_"

// Source is the region, read for several goroutines, with an index from exposition names to cells. Groups of several
// schemas of one name (two versions of a binary) are one group here, and their values are summed.
//
// A lock is held for one series at a time: a slow scraper never holds up another reader.
type Source struct {
	open    func() (*region.Reader, error)
	mu      sync.Mutex
	reader  *region.Reader
	seen    int // groups indexed
	sets    []*set
	byName  map[string]*set
	taken   map[string]*family // exposition name, and what a histogram adds to it → its family
	cells   []uint64
	scratch [region.HistogramCells]uint64
}

// set is every group of the schemas of one name.
type set struct {
	name     string
	families []*family
	groups   []*group
	byLabels map[string]*group
	known    map[*region.Schema]bool
}

// group is one set of labels; parts are the region's groups, one for each version of the schema.
type group struct {
	labels []region.Label
	text   string // cluster="api"
	parts  []*region.Group
}

func (g *group) shown() bool {
	return slices.ContainsFunc(g.parts, (*region.Group).Shown)
}

// family is all series of one name. Variants differ in the labels that the schema itself fixes.
type family struct {
	schema        string
	name, help    string
	kind          region.Kind
	unit, exposed string
	variants      []*variant
}

type variant struct {
	labels []region.Label
	text   string // response_code_class="2"
	at     map[*region.Schema]int
}

// NewSource reads the region that open opens; it is opened again when another has taken its place.
func NewSource(open func() (*region.Reader, error)) (*Source, error) {
	reader, err := open()
	if err != nil {
		return nil, err
	}
	return &Source{open: open, reader: reader, byName: map[string]*set{}, taken: map[string]*family{}}, nil
}

// Close ends the reading.
func (s *Source) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reader.Close()
}

// refresh brings the index up to date. Held: mu.
func (s *Source) refresh() error {
	err := s.reader.Refresh()
	if errors.Is(err, region.ErrLayout) {
		err = s.reopen()
	}
	if err != nil {
		return err
	}
	groups := s.reader.Groups()
	for s.seen < len(groups) && groups[s.seen].Base != region.NoCell { // what is in spills only is declared within a second
		s.add(groups[s.seen])
		s.seen++
	}
	return nil
}

// reopen takes the region that is there now. Families and groups keep their identity: only where their values lie is new.
func (s *Source) reopen() error {
	reader, err := s.open()
	if err != nil {
		return err
	}
	s.reader.Close()
	s.reader, s.seen = reader, 0
	for _, st := range s.sets {
		clear(st.known)
		for _, g := range st.groups {
			g.parts = nil
		}
		for _, fam := range st.families {
			for _, v := range fam.variants {
				clear(v.at)
			}
		}
	}
	return nil
}

func (s *Source) add(g *region.Group) {
	schema := g.Schema
	st := s.byName[schema.Name]
	if st == nil {
		st = &set{name: schema.Name, byLabels: map[string]*group{}, known: map[*region.Schema]bool{}}
		s.byName[schema.Name] = st
		s.sets = append(s.sets, st)
	}
	labels := g.ShownLabels()
	text := labelText(labels)
	merged := st.byLabels[text]
	if merged == nil {
		merged = &group{labels: labels, text: text}
		st.byLabels[text] = merged
		st.groups = append(st.groups, merged)
	}
	merged.parts = append(merged.parts, g)
	if !st.known[schema] {
		st.known[schema] = true
		for i := range schema.Fields {
			s.addField(st, schema, i)
		}
	}
}

func (s *Source) addField(st *set, schema *region.Schema, i int) {
	f := &schema.Fields[i]
	if f.Kind < region.Counter || f.Kind > region.Histogram {
		return
	}
	name := Prefix + schema.Name + "_" + f.Name
	fam := s.taken[name]
	if fam == nil {
		fam = &family{schema: schema.Name, name: name, help: f.Help, kind: f.Kind, unit: f.Unit, exposed: f.Exposed}
		names := []string{name}
		if f.Kind == region.Histogram {
			names = append(names, name+"_bucket", name+"_sum", name+"_count")
		}
		for _, n := range names {
			if s.taken[n] != nil {
				return // the name is another family's already, and no parser would take it twice
			}
		}
		for _, n := range names {
			s.taken[n] = fam
		}
		st.families = append(st.families, fam)
	}
	if fam.kind != f.Kind || fam.unit != f.Unit || !slices.Contains(st.families, fam) {
		return // a later version of the schema means something else by the name; the first one stays
	}
	text := labelText(f.Labels)
	for _, v := range fam.variants {
		if v.text == text {
			v.at[schema] = i
			return
		}
	}
	fam.variants = append(fam.variants, &variant{labels: f.Labels, text: text, at: map[*region.Schema]int{schema: i}})
}

// read sums one series into dst. It reports false when no shown version of the group has it. Held: mu.
func (s *Source) read(g *group, v *variant, dst []uint64) (bool, error) {
	clear(dst)
	found := false
	for _, part := range g.parts {
		field, ok := v.at[part.Schema]
		if !ok {
			continue
		}
		cells := s.scratch[:len(dst)]
		if err := s.reader.ReadField(part, field, cells); err != nil {
			return false, err
		}
		found = true
		for i, c := range cells {
			dst[i] += c
		}
	}
	return found, nil
}

// walk reads every shown series, family by family, and hands it on; cells are good until f returns. The lock is held for
// one series at a time and not while f runs. An error of f ends it.
func (s *Source) walk(match []string, f func(fam *family, g *group, v *variant, cells []uint64) error) error {
	s.mu.Lock()
	err := s.refresh()
	sets := s.sets
	s.mu.Unlock()
	if err != nil {
		return err
	}
	buffer := make([]uint64, region.HistogramCells)
	for _, st := range sets {
		s.mu.Lock()
		families, groups := st.families, st.groups
		s.mu.Unlock()
		for _, fam := range families {
			if !matches(fam.name, match) {
				continue
			}
			cells := buffer[:cellsOf(fam.kind)]
			for _, g := range groups {
				s.mu.Lock()
				variants, shown := fam.variants, g.shown()
				s.mu.Unlock()
				if !shown {
					continue
				}
				for _, v := range variants {
					s.mu.Lock()
					found, err := s.read(g, v, cells)
					s.mu.Unlock()
					if err != nil {
						return err
					}
					if !found {
						continue
					}
					if err := f(fam, g, v, cells); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// Series is one series as it is counted.
type Series struct {
	ID           ID
	Schema       string // "cluster"
	Name         string // within it: "upstream_rq_total"
	Help         string
	Kind         region.Kind
	Unit         string // of what is exposed: "ms" "bytes" "s" ""
	Scale        float64
	Labels       []region.Label // of the group: cluster="api"
	Variant      []region.Label // fixed by the schema: response_code_class="5"
	Cells        []uint64
	FirstOfNames bool // no series of the same name came before
}

// ID tells a series from every other one as long as the Source lives.
type ID struct {
	group   *group
	variant *variant
}

// Each hands every shown series to f, family by family; its cells are good until f returns.
func (s *Source) Each(f func(*Series) error) error {
	var last *family
	series := &Series{}
	return s.walk(nil, func(fam *family, g *group, v *variant, cells []uint64) error {
		*series = Series{
			ID: ID{g, v}, Schema: fam.schema, Name: fam.name[len(Prefix)+len(fam.schema)+1:], Help: fam.help, Kind: fam.kind,
			Unit: exposedUnit(fam.unit, fam.exposed), Scale: Scale(fam.unit, fam.exposed),
			Labels: g.labels, Variant: v.labels, Cells: cells, FirstOfNames: fam != last,
		}
		last = fam
		return f(series)
	})
}

// labelText is name="value",… with Prometheus' escapes.
func labelText(labels []region.Label) string {
	var b strings.Builder
	for i, l := range labels {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(l.Name)
		b.WriteString(`="`)
		valueEscapes.WriteString(&b, l.Value)
		b.WriteByte('"')
	}
	return b.String()
}

var (
	valueEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`)
	helpEscapes  = strings.NewReplacer(`\`, `\\`, "\n", `\n`)
	omEscapes    = strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`) // OpenMetrics escapes quotes in HELP too
)

// Created is when the region began.
func (s *Source) Created() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reader.Created()
}

// Broken is the number of sheets and spills that were left out at the last refresh.
func (s *Source) Broken() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reader.Broken()
}
