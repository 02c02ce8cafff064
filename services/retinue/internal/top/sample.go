// Package top shows what the suite does now, read straight from the stats region: no daemon is asked, so it works when
// one of them, or all of them, stand still.
package top

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"retinue.dev/libs/region"
)

// Source reads samples of a suite's region. Its life: Open; one goroutine calls Sample; Close.
type Source struct {
	runDir string
	reader *region.Reader
	tables map[string]*table
	beats  map[uint64]beat // by generation
}

// beat is when a main side last wrote its uptime, as far as samples tell.
type beat struct {
	uptime uint64
	at     time.Time
}

// table is every group of the schemas of one name: a row for each set of labels, a column for each field. Two versions of
// a schema are one table; their values are added.
type table struct {
	columns map[string]int // field, "field/5" where a label tells its variants apart → first cell of a row
	width   int
	places  map[*region.Schema][]int // of each of its fields: the column
}

// rows of one table at one time, by the value of the label that names the group ("" for a group without labels).
type rows struct {
	*table
	of map[string][]uint64
}

func (r rows) value(name, column string) uint64 {
	at, ok := r.columns[column]
	if row := r.of[name]; ok && at < len(row) { // a column that appeared after the row was read
		return row[at]
	}
	return 0
}

func (r rows) histogram(name, column string) []uint64 {
	at, ok := r.columns[column]
	if row := r.of[name]; ok && at+region.HistogramCells <= len(row) {
		return row[at:][:region.HistogramCells]
	}
	return make([]uint64, region.HistogramCells)
}

func (r rows) sum(column string) (n uint64) {
	for name := range r.of {
		n += r.value(name, column)
	}
	return n
}

func (r rows) names() []string {
	names := make([]string, 0, len(r.of))
	for name := range r.of {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// sample is the region at one time.
type sample struct {
	at                                       time.Time
	clusters, https, listeners, tcps, server rows
	writers                                  []writer
}

// writer is what one worker or main side counts.
type writer struct {
	region.Writer
	stopped                                bool          // by a signal, or held by a debugger
	silent                                 time.Duration // of a main side: it has not written its uptime, which it does every second
	https, listeners, tcps, server, worker rows
}

// Open finds the region of a run directory.
func Open(runDir string) (*Source, error) {
	s := &Source{runDir: runDir}
	return s, s.open()
}

func (s *Source) open() error {
	dir, err := region.Find(s.runDir)
	if err != nil {
		return fmt.Errorf("%w; name the suite's --dir", err)
	}
	if s.reader, err = region.OpenReader(dir, s.runDir); err != nil {
		return fmt.Errorf("%w: has the suite below %s ever run, and may you read its files?", err, s.runDir)
	}
	s.tables, s.beats = map[string]*table{}, map[uint64]beat{}
	return nil
}

// Close ends the reading.
func (s *Source) Close() { s.reader.Close() }

// sample reads everything.
func (s *Source) sample(now time.Time) (*sample, error) {
	err := s.reader.Refresh()
	if errors.Is(err, region.ErrLayout) { // begun anew: the counters begin at 0 too
		s.reader.Close()
		if err = s.open(); err != nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	groups := slices.DeleteFunc(slices.Clone(s.reader.Groups()), func(g *region.Group) bool { return !g.Shown() })
	out := &sample{at: now}
	for name, to := range map[string]*rows{"cluster": &out.clusters, "http": &out.https, "listener": &out.listeners, "tcp": &out.tcps, "server": &out.server} {
		if *to, err = s.rows(name, groups, s.reader.Read); err != nil {
			return nil, err
		}
	}
	for _, w := range s.reader.Writers() {
		one := writer{Writer: w}
		read := func(g *region.Group, dst []uint64) error { return s.reader.ReadWriter(w, g, dst) }
		for name, to := range map[string]*rows{"http": &one.https, "listener": &one.listeners, "tcp": &one.tcps, "server": &one.server, "worker": &one.worker} {
			if *to, err = s.rows(name, groups, read); err != nil {
				return nil, err
			}
		}
		one.stopped = stopped(w.PID)
		if w.Worker == region.MainWorker {
			uptime := one.server.sum("uptime")
			last, known := s.beats[w.Generation]
			if !known || last.uptime != uptime {
				last = beat{uptime, now}
				s.beats[w.Generation] = last
			}
			one.silent = now.Sub(last.at)
		}
		out.writers = append(out.writers, one)
	}
	slices.SortFunc(out.writers, func(a, b writer) int {
		return cmp.Or(cmp.Compare(b.Generation, a.Generation), cmp.Compare(a.Worker, b.Worker))
	})
	return out, nil
}

// stopped asks the kernel whether a process is stopped.
func stopped(pid int) bool {
	if pid == 0 {
		return false
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(stat), ") ")
	return err == nil && (strings.HasPrefix(after, "T") || strings.HasPrefix(after, "t"))
}

func (s *Source) rows(name string, groups []*region.Group, read func(*region.Group, []uint64) error) (rows, error) {
	t := s.tables[name]
	if t == nil {
		t = &table{columns: map[string]int{}, places: map[*region.Schema][]int{}}
		s.tables[name] = t
	}
	for _, g := range groups {
		if g.Schema.Name == name {
			t.add(g.Schema)
		}
	}
	out := rows{t, map[string][]uint64{}}
	var cells []uint64
	for _, g := range groups {
		if g.Schema.Name != name {
			continue
		}
		cells = append(cells[:0], make([]uint64, g.Schema.Cells)...)
		if err := read(g, cells); err != nil {
			return out, err
		}
		label := labelOf(g)
		row := out.of[label]
		if row == nil {
			row = make([]uint64, t.width)
			out.of[label] = row
		}
		for i, f := range g.Schema.Fields {
			for j := range f.Cells {
				row[t.places[g.Schema][i]+j] += cells[f.Cell+j]
			}
		}
	}
	return out, nil
}

// add gives each field of a schema its column.
func (t *table) add(schema *region.Schema) {
	if t.places[schema] != nil {
		return
	}
	places := make([]int, len(schema.Fields))
	for i, f := range schema.Fields {
		name := f.Name
		for _, l := range f.Labels {
			name += "/" + l.Value
		}
		at, known := t.columns[name]
		if !known {
			at = t.width
			t.columns[name] = at
			t.width += f.Cells
		}
		places[i] = at
	}
	t.places[schema] = places
}

// labelOf names a group: groups of the tables looked at have one label or none.
func labelOf(g *region.Group) string {
	labels := g.ShownLabels()
	values := make([]string, len(labels))
	for i, l := range labels {
		values[i] = l.Value
	}
	return strings.Join(values, ",")
}
