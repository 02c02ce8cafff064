package region

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	statsv1 "retinue.dev/services/api/stats/v1"
)

// exportFile is in the region's directory: totals in a form that no layout has a part in. The owner writes it when it
// ends; an owner of another major layout begins its region with it.
const exportFile = "export"

// Export writes the export: every shown group with its counters and histograms, sheets of the living and spills included.
func (st *Store) Export(runDir string) error {
	r, err := OpenReader(st.dir, runDir)
	if err != nil {
		return err
	}
	defer r.Close()
	export := &statsv1.Export{}
	index := map[*Schema]uint32{}
	for _, g := range r.Groups() {
		if !g.Shown() || g.Base == NoCell {
			continue
		}
		at, known := index[g.Schema]
		if !known {
			at = uint32(len(export.Schemas))
			index[g.Schema] = at
			export.Schemas = append(export.Schemas, g.Schema.contract())
		}
		cells := make([]uint64, g.Schema.Cells)
		if err := r.Read(g, cells); err != nil {
			return err
		}
		out := &statsv1.ExportedGroup{Group: &statsv1.Group{Schema: at, Labels: contractLabels(g.Labels)}, Other: g.Other}
		for _, f := range g.Schema.Fields {
			for i := f.Cell; i < f.Cell+f.Cells; i++ {
				if f.Kind != Gauge && cells[i] != 0 {
					out.Cells, out.Values = append(out.Cells, uint32(i)), append(out.Values, cells[i])
				}
			}
		}
		export.Groups = append(export.Groups, out)
	}
	b, err := proto.Marshal(export)
	if err != nil {
		return err
	}
	file := filepath.Join(st.dir, exportFile)
	if err := os.WriteFile(file+".new", b, fileMode); err != nil {
		return fmt.Errorf("export the stats region: %w", full(err))
	}
	return os.Rename(file+".new", file)
}

func (s *Schema) contract() *statsv1.Schema {
	out := &statsv1.Schema{Name: s.Name}
	for _, f := range s.Fields {
		out.Fields = append(out.Fields, &statsv1.Field{
			Name: f.Name, Kind: statsv1.Kind(f.Kind), Unit: f.Unit, ExposedUnit: f.Exposed, Labels: contractLabels(f.Labels), Help: f.Help,
		})
	}
	return out
}

func contractLabels(labels []Label) (out []*statsv1.Label) {
	for _, l := range labels {
		out = append(out, &statsv1.Label{Name: l.Name, Value: l.Value})
	}
	return out
}

// majorOf reads the layout's major out of a header of any layout.
func majorOf(dir string) (uint16, bool) {
	f, err := os.Open(filepath.Join(dir, "header"))
	if err != nil {
		return 0, false
	}
	defer f.Close()
	var head [hByteOrder]byte
	if _, err := io.ReadFull(f, head[:]); err != nil || string(head[:len(magicHeader)]) != magicHeader {
		return 0, false
	}
	return binary.LittleEndian.Uint16(head[hMajor:]), true
}

// replaceMajor begins a second region where one of another major layout is, with the totals that its last owner exported.
// The old one is kept beside it: its living writers go on in their sheets, unseen, until their process ends or a next
// series makes them ask for new ones.
func replaceMajor(dir string, major uint16, options Options) (*Store, error) {
	aside := fmt.Sprintf("%s.layout-%d", dir, major)
	if err := os.RemoveAll(aside); err != nil {
		return nil, fmt.Errorf("put the region of layout %d aside: %w", major, err)
	}
	b, readErr := os.ReadFile(filepath.Join(dir, exportFile))
	if err := os.Rename(dir, aside); err != nil {
		return nil, fmt.Errorf("put the region of layout %d aside: %w", major, err)
	}
	st, err := open(dir, options)
	if err != nil {
		return nil, err
	}
	groups := 0
	if err = readErr; err == nil {
		groups, err = st.importTotals(b)
	}
	if err != nil {
		options.Log.Warn("a stats region of another layout left no totals; counters begin at 0", "layout", major, "kept", aside, "error", err)
		return st, nil
	}
	options.Log.Info("a second stats region begins with the totals of one of another layout", "layout", major, "kept", aside, "groups", groups)
	return st, nil
}

// importTotals declares what an export names and commits its values. What this version refuses, as a field of a kind that
// it does not know, is left out.
func (st *Store) importTotals(b []byte) (groups int, err error) {
	export := &statsv1.Export{}
	if err := proto.Unmarshal(b, export); err != nil {
		return 0, fmt.Errorf("the export cannot be read: %w", err)
	}
	schemas := make([]*Schema, len(export.GetSchemas()))
	for i, p := range export.GetSchemas() {
		if schemas[i], err = SchemaOf(p); err != nil {
			st.options.Log.Warn("a schema of another layout's region is left out", "error", err)
		}
	}
	limit := st.options.MaxSeries
	defer func() { st.options.MaxSeries = limit }()
	type value struct{ cell, value uint64 }
	var values []value
	for _, g := range export.GetGroups() {
		n := g.GetGroup().GetSchema()
		if uint64(n) >= uint64(len(schemas)) || schemas[n] == nil || len(g.GetCells()) != len(g.GetValues()) {
			continue
		}
		labels, err := labelsOf(g.GetGroup().GetLabels())
		if err != nil {
			continue
		}
		if st.options.MaxSeries = 1 << 40; g.GetOther() {
			st.options.MaxSeries = 0
		}
		base, err := st.Declare(schemas[n], labels)
		if errors.Is(err, ErrCap) {
			break
		}
		if err != nil {
			return groups, err
		}
		groups++
		for i, cell := range g.GetCells() {
			if uint64(cell) < uint64(schemas[n].Cells) {
				values = append(values, value{base + uint64(cell), g.GetValues()[i]})
			}
		}
	}
	totals := make([]uint64, st.nextCell)
	for _, v := range values {
		totals[v.cell] += v.value
	}
	return groups, st.commitLedger(nil, totals)
}
