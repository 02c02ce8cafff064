package region

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Reader reads a region that another process owns: values are the ledger plus every sheet that the ledger does not
// list, spills included. It takes no lock and never blocks its writers; what it reads may be torn, truncated or hostile,
// and then it says so (ErrLayout) or leaves the sheet out, and does not fault.
//
// Its life: one goroutine uses it; Refresh brings in new groups and sheets and asks the kernel who lives; Read is right
// whether or not Refresh was called since; Close.
type Reader struct {
	runDir string
	main   *view
	ledger ledger
	spills []*spillView
	live   map[*sheetView]bool
	extra  map[string]*Group // in spills only: statsd has not seen them yet
	broken int
	cells  []uint64
}

// OpenReader opens the region in dir; runDir is the suite's run directory, where spills are.
func OpenReader(dir, runDir string) (*Reader, error) {
	v, err := openView(dir)
	if err != nil {
		return nil, err
	}
	r := &Reader{runDir: runDir, main: v}
	if err := r.Refresh(); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Close unmaps everything.
func (r *Reader) Close() {
	r.main.close()
	r.ledger.close()
	for _, s := range r.spills {
		s.close()
	}
}

// Epoch is the identity of the region.
func (r *Reader) Epoch() uint64 { return r.main.epoch }

// Created is when the region began: since then its counters count.
func (r *Reader) Created() time.Time {
	var ns uint64
	if guard(func() { ns = load(r.main.header.bytes, hCreated) }) != nil {
		return time.Time{}
	}
	return time.Unix(0, int64(ns))
}

// readTries bounds how often a reader begins again because a fold was committed meanwhile; folds come once a second.
const readTries = 1000

// Refresh catches up with new groups, sheets and folds. ErrLayout means that the region cannot be read, or that it is
// not the one that was opened any more: open it again.
func (r *Reader) Refresh() error {
	var stat unix.Stat_t
	if err := unix.Stat(filepath.Join(r.main.dir, "header"), &stat); err != nil || stat.Ino != r.main.inode {
		return fmt.Errorf("%w: another region is in its place", ErrLayout)
	}
	var err error
	for range readTries {
		var sequence uint64
		if sequence, err = r.sequence(); err != nil {
			return err
		}
		if err = r.refresh(sequence); err == nil {
			if now, fault := r.sequence(); fault != nil || now == sequence {
				return fault
			}
		} else if !isGone(err) {
			return err
		}
	}
	if err == nil {
		err = errors.New("the ledger of the stats region changes faster than it can be read")
	}
	return err
}

func (r *Reader) sequence() (n uint64, err error) {
	fault := guard(func() { n = load(r.main.header.bytes, hLedger) })
	return n, fault
}

func (r *Reader) refresh(sequence uint64) error {
	if sequence != r.ledger.sequence {
		l, err := openLedger(r.main.dirfd, r.main.epoch, sequence)
		if err != nil {
			return err
		}
		r.ledger.close()
		r.ledger = l
	}
	if err := r.main.refresh(); err != nil {
		return err
	}
	// A spill that cannot be read is its writer's loss, not everybody's.
	spills, err := openSpills(r.runDir, r.spills)
	r.spills, r.broken = spills, 0
	// The region itself, when it has just been compacted and another is in its place.
	r.spills = slices.DeleteFunc(r.spills, func(s *spillView) bool {
		same := s.view.epoch == r.main.epoch
		if same {
			s.close()
		}
		return same
	})
	if err != nil {
		r.broken++
	}
	r.live = map[*sheetView]bool{}
	r.extra = nil
	for _, s := range r.main.sheets {
		r.live[s] = s.live()
	}
	for _, spill := range r.spills {
		for _, s := range spill.view.sheets {
			r.live[s] = s.live()
		}
		for _, g := range spill.view.groups {
			if g.Shown() && r.main.groupOf[g.key] == nil && r.extra[g.key] == nil {
				if r.extra == nil {
					r.extra = map[string]*Group{}
				}
				r.extra[g.key] = &Group{Schema: g.Schema, Labels: g.Labels, Base: NoCell, key: g.key}
			}
		}
	}
	return nil
}

// Groups returns every group in the order of declaration, retired ones included, and those that only spills have. The
// first n of a later call are the same as long as Extra is 0.
func (r *Reader) Groups() []*Group {
	if len(r.extra) == 0 {
		return r.main.groups[:len(r.main.groups):len(r.main.groups)]
	}
	groups := make([]*Group, 0, len(r.main.groups)+len(r.extra))
	groups = append(groups, r.main.groups...)
	for _, g := range r.extra {
		groups = append(groups, g)
	}
	return groups
}

// Broken is the number of sheets and spills that were left out since Refresh because they make no sense.
func (r *Reader) Broken() int { return r.broken }

// SheetsLive is the number of sheets whose writer lived at the last Refresh.
func (r *Reader) SheetsLive() int {
	n := 0
	for _, live := range r.live {
		if live {
			n++
		}
	}
	return n
}

// Read puts a group's current values into dst, one for each cell of its schema. Counters and histograms never fall from
// one Read to the next, whatever dies or is folded meanwhile; a gauge is the sum of what the living say.
func (r *Reader) Read(g *Group, dst []uint64) error { return r.readFields(g, g.Schema.Fields, 0, dst) }

// ReadField is Read for one field of a group.
func (r *Reader) ReadField(g *Group, field int, dst []uint64) error {
	f := g.Schema.Fields[field]
	return r.readFields(g, g.Schema.Fields[field:field+1], f.Cell, dst[:f.Cells])
}

// readFields reads the cells of neighbouring fields, the first of which begins at a group's cell from.
func (r *Reader) readFields(g *Group, fields []Field, from int, dst []uint64) error {
	if last := fields[len(fields)-1]; len(dst) != last.Cell+last.Cells-from {
		return fmt.Errorf("read %d fields into %d cells", len(fields), len(dst))
	}
	for range readTries {
		sequence, err := r.sequence()
		if err != nil {
			return err
		}
		if sequence != r.ledger.sequence {
			if err := r.Refresh(); err != nil {
				return err
			}
			continue
		}
		if err := r.sum(g, fields, uint64(from), dst); err != nil {
			return err
		}
		if now, err := r.sequence(); err != nil || now == sequence {
			return err
		}
	}
	return errors.New("the ledger of the stats region changes faster than it can be read")
}

func (r *Reader) sum(g *Group, fields []Field, from uint64, dst []uint64) error {
	clear(dst)
	if g.Base != NoCell {
		if err := guard(func() { r.ledger.add(g.Base+from, dst) }); err != nil {
			return err
		}
		for _, s := range r.main.sheets {
			r.addSheet(s, fields, g.Base+from, dst)
		}
	}
	for _, spill := range r.spills {
		if there := spill.view.groupOf[g.key]; there != nil {
			for _, s := range spill.view.sheets {
				r.addSheet(s, fields, there.Base+from, dst)
			}
		}
	}
	return nil
}

func (r *Reader) addSheet(s *sheetView, fields []Field, base uint64, dst []uint64) {
	if r.ledger.folded(s.epoch, s.id) {
		return
	}
	if len(r.cells) < len(dst) {
		r.cells = make([]uint64, len(dst))
	}
	cells := r.cells[:len(dst)]
	clear(cells)
	if err := s.add(base, cells); err != nil {
		r.broken++
		return
	}
	if !r.live[s] {
		for _, f := range fields {
			if f.Kind == Gauge {
				cells[f.Cell-fields[0].Cell] = 0
			}
		}
	}
	for i, v := range cells {
		dst[i] += v
	}
}

// Writer is one writer of sheets as a reader sees it: a worker of a generation or its main side. What it counts lies in its
// sheet and, if statsd was away for a while, in its spill's too.
type Writer struct {
	Generation uint64
	Worker     uint32 // MainWorker for the main side
	Live       bool
	PID        int // of the living; 0 where it cannot be told, as in another pid namespace
	sheets     []located
}

// located is a sheet and the region that its bases belong to; nil is the suite's.
type located struct {
	sheet *sheetView
	spill *spillView
}

// Writers lists those whose sheets are not folded yet, ordered by generation and worker, as of the last Refresh.
func (r *Reader) Writers() []Writer {
	var list []Writer
	add := func(s *sheetView, spill *spillView) {
		if r.ledger.folded(s.epoch, s.id) {
			return
		}
		i := slices.IndexFunc(list, func(w Writer) bool { return w.Generation == s.generation && w.Worker == s.worker })
		if i < 0 {
			i = len(list)
			list = append(list, Writer{Generation: s.generation, Worker: s.worker})
		}
		if r.live[s] {
			list[i].Live = true
			if pid, held, err := lockHolder(s.lock); err == nil && held && pid > 0 {
				list[i].PID = pid
			}
		}
		list[i].sheets = append(list[i].sheets, located{s, spill})
	}
	for _, s := range r.main.sheets {
		add(s, nil)
	}
	for _, spill := range r.spills {
		for _, s := range spill.view.sheets {
			add(s, spill)
		}
	}
	slices.SortFunc(list, func(a, b Writer) int {
		return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Worker, b.Worker))
	})
	return list
}

// ReadWriter puts what one writer counts in a group into dst, one for each cell of its schema. The ledger has no part in
// it. A Writer is good until the next Refresh.
func (r *Reader) ReadWriter(w Writer, g *Group, dst []uint64) error {
	if len(dst) != g.Schema.Cells {
		return fmt.Errorf("read %d cells into %d", g.Schema.Cells, len(dst))
	}
	clear(dst)
	for _, p := range w.sheets {
		base := g.Base
		if p.spill != nil {
			there := p.spill.view.groupOf[g.key]
			if there == nil {
				continue
			}
			base = there.Base
		}
		if base != NoCell {
			r.addSheet(p.sheet, g.Schema.Fields, base, dst)
		}
	}
	return nil
}
