package region

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// sheetID names a sheet across regions: a sheet of a spill is folded into the suite's ledger under its own epoch.
type sheetID struct{ epoch, id uint64 }

// ledger is one ledger block: what folded sheets left behind. It is immutable: a fold makes the next block and commits
// it by storing its number in the header.
type ledger struct {
	sequence uint64
	mapped   mapping
	ids      []sheetID
	totals   []byte // 8 a cell
}

// openLedger maps and checks block n; block 0 is the empty one. A block that has gone means that another was committed.
func openLedger(dirfd int, epoch, n uint64) (ledger, error) {
	if n == 0 {
		return ledger{}, nil
	}
	fd, err := openExisting(dirfd, ledgerName(n), unix.O_RDONLY)
	if err != nil {
		return ledger{}, err
	}
	defer unix.Close(fd)
	size, err := fileSize(fd)
	if err != nil {
		return ledger{}, err
	}
	if size < ledgerHeaderBytes || size > ledgerHeaderBytes+maxCell*8 {
		return ledger{}, fmt.Errorf("%s: %w: a file of %d bytes", ledgerName(n), ErrLayout, size)
	}
	m, err := mapFile(fd, 0, int(size), false)
	if err != nil {
		return ledger{}, err
	}
	l := ledger{sequence: n, mapped: m}
	if fault := guard(func() { err = l.check(epoch) }); fault != nil {
		err = fault
	}
	if err != nil {
		m.close()
		return ledger{}, fmt.Errorf("%s: %w", ledgerName(n), err)
	}
	return l, nil
}

func (l *ledger) check(epoch uint64) error {
	b := l.mapped.bytes
	if err := checkPreamble(b, magicLedger, "ledger"); err != nil {
		return err
	}
	ids, cells := binary.LittleEndian.Uint64(b[lIDs:]), binary.LittleEndian.Uint64(b[lCells:])
	rest := uint64(len(b) - ledgerHeaderBytes)
	switch {
	case binary.LittleEndian.Uint64(b[lEpoch:]) != epoch, binary.LittleEndian.Uint64(b[lSequence:]) != l.sequence:
		return fmt.Errorf("%w: a block of another region or number", ErrLayout)
	case ids > rest/ledgerIDBytes, cells > (rest-ids*ledgerIDBytes)/8:
		return fmt.Errorf("%w: %d ids and %d totals do not fit into %d bytes", ErrLayout, ids, cells, len(b))
	case crc32.Checksum(b[lEpoch:], castagnoli) != binary.LittleEndian.Uint32(b[lChecksum:]):
		return fmt.Errorf("%w: a wrong checksum", ErrLayout)
	}
	for i := range int(ids) {
		at := b[ledgerHeaderBytes+i*ledgerIDBytes:]
		l.ids = append(l.ids, sheetID{binary.LittleEndian.Uint64(at), binary.LittleEndian.Uint64(at[8:])})
	}
	l.totals = b[ledgerHeaderBytes+int(ids)*ledgerIDBytes:][:cells*8]
	return nil
}

func (l *ledger) folded(epoch, id uint64) bool { return slices.Contains(l.ids, sheetID{epoch, id}) }

// add adds the totals of the cells at base; a cell that was declared after the block was written has none.
func (l *ledger) add(base uint64, dst []uint64) {
	for i := range dst {
		at := (base + uint64(i)) * 8
		if at+8 > uint64(len(l.totals)) {
			return
		}
		dst[i] += binary.LittleEndian.Uint64(l.totals[at:])
	}
}

func (l *ledger) close() {
	l.mapped.close()
	*l = ledger{}
}

// abandonedAfter is how long a sheet waits for its writer, which may be slow but does nothing else in between.
const abandonedAfter = time.Minute

// Fold moves what dead writers left, counters and histograms, into the ledger, and removes their sheets. It returns how
// many there were. Each counts exactly once wherever the process is killed:
//
//	write block n+1 {totals, ids of all folded sheets that are still there}   nobody knows of it
//	store n+1 in the header                                                   the sheets count by the ledger alone
//	free their entries in the segment table, unlink their files, unlink block n
//
// A block that cannot be written (full tmpfs) leaves the sheets as they are: they are counted where they lie.
//
// runDir is the suite's run directory: spills that are there are declared, and those of the dead folded and removed.
func (st *Store) Fold(runDir string) (int, error) {
	var dead []*sheetView
	now := st.options.Now()
	for _, s := range st.sheets {
		created, _ := s.word(sCreated)
		gone, err := s.kill(now.Sub(time.Unix(0, int64(created))) > abandonedAfter)
		if err != nil && !errors.Is(err, ErrLayout) {
			return 0, err
		}
		if gone {
			dead = append(dead, s)
		}
	}
	inherited, err := st.inherit(runDir)
	if err != nil {
		return 0, err
	}
	if len(dead)+len(inherited) == 0 {
		return 0, nil
	}
	ids, totals := st.totalsWith(dead, inherited)
	if err := st.commitLedger(ids, totals); err != nil {
		return 0, err
	}
	for _, s := range dead {
		st.removeSheet(s)
	}
	return len(dead) + len(inherited), nil
}

// totalsWith sums the ledger and the dead sheets, gauges left out. A sheet that its writer cut off gives what it has.
func (st *Store) totalsWith(dead []*sheetView, inherited []inheritance) ([]sheetID, []uint64) {
	totals := make([]uint64, st.nextCell)
	st.ledger.add(0, totals)
	var ids []sheetID
	for _, id := range st.ledger.ids {
		if id.epoch != st.epoch { // of a spill, which may still be there; 16 bytes each are kept for good
			ids = append(ids, id)
		}
	}
	var cells [ExtentCells]uint64
	take := func(s *sheetView, from uint64, to *Group) {
		n := to.Schema.Cells
		clear(cells[:n])
		if err := s.add(from, cells[:n]); err != nil {
			st.options.Log.Warn("a dead sheet of the stats region cannot be read whole", "sheet", s.id, "generation", s.generation, "error", err)
		}
		for _, f := range to.Schema.Fields {
			if f.Kind == Gauge {
				continue
			}
			for i := f.Cell; i < f.Cell+f.Cells; i++ {
				totals[to.Base+uint64(i)] += cells[i]
			}
		}
	}
	for _, s := range dead {
		ids = append(ids, sheetID{s.epoch, s.id})
		for _, g := range st.groups {
			take(s, g.Base, g)
		}
	}
	for _, in := range inherited {
		ids = append(ids, sheetID{in.sheet.epoch, in.sheet.id})
		for _, pair := range in.groups {
			take(in.sheet, pair.from.Base, pair.to)
		}
	}
	return ids, totals
}

// commitLedger writes the next block and puts it in force.
func (st *Store) commitLedger(ids []sheetID, totals []uint64) error {
	n := st.ledger.sequence + 1
	size := ledgerHeaderBytes + len(ids)*ledgerIDBytes + len(totals)*8
	name := ledgerName(n)
	if err := unix.Unlinkat(st.dirfd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	fd, err := createFile(st.dirfd, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := st.options.Allocate(fd, 0, int64(size)); err != nil {
		unix.Unlinkat(st.dirfd, name, 0)
		return fmt.Errorf("%s: %w", name, full(err))
	}
	m, err := mapFile(fd, 0, size, true)
	if err != nil {
		return err
	}
	b := m.bytes
	st.options.step("ledger block")
	putPreamble(b, magicLedger)
	binary.LittleEndian.PutUint64(b[lEpoch:], st.epoch)
	binary.LittleEndian.PutUint64(b[lSequence:], n)
	binary.LittleEndian.PutUint64(b[lIDs:], uint64(len(ids)))
	binary.LittleEndian.PutUint64(b[lCells:], uint64(len(totals)))
	at := ledgerHeaderBytes
	for _, id := range ids {
		binary.LittleEndian.PutUint64(b[at:], id.epoch)
		binary.LittleEndian.PutUint64(b[at+8:], id.id)
		at += ledgerIDBytes
	}
	for _, v := range totals {
		binary.LittleEndian.PutUint64(b[at:], v)
		at += 8
	}
	st.options.step("ledger checksum")
	binary.LittleEndian.PutUint32(b[lChecksum:], crc32.Checksum(b[lEpoch:], castagnoli))
	m.close()
	next, err := openLedger(st.dirfd, st.epoch, n)
	if err != nil {
		return err
	}
	st.options.step("ledger word")
	store(st.header.bytes, hLedger, n)
	old := st.ledger
	st.ledger = next
	if old.sequence > 0 {
		st.options.step("old ledger")
		unix.Unlinkat(st.dirfd, ledgerName(old.sequence), 0)
	}
	old.close()
	return nil
}

// removeSheet removes a sheet that the ledger in force lists.
func (st *Store) removeSheet(s *sheetView) {
	st.freeEntry(s.slot)
	for _, name := range []string{sheetName(s.id), lockName(s.id)} {
		st.options.step("unlink " + name)
		unix.Unlinkat(st.dirfd, name, 0)
	}
	s.close()
	st.sheets = slices.DeleteFunc(st.sheets, func(o *sheetView) bool { return o == s })
}
