package region

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"

	"golang.org/x/sys/unix"
)

// guard runs f and turns a fault in mapped memory, which is what is left of a file that somebody cut off, into an error.
func guard(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch r := recover().(type) {
		case nil:
		case interface {
			runtime.Error
			Addr() uintptr
		}:
			err = fmt.Errorf("%w: a file was cut off while it was read", ErrLayout)
		default:
			panic(r)
		}
	}()
	f()
	return nil
}

// geometry is what the header says of the segment table, so that a later minor can have longer entries or more.
type geometry struct {
	offset, entry, entries uint32
}

var ownGeometry = geometry{tableOffset, tableEntryBytes, tableEntries}

// checkHeader takes the mapped file `header`.
func checkHeader(h []byte) (geometry, error) {
	if err := checkPreamble(h, magicHeader, "header"); err != nil {
		return geometry{}, err
	}
	g := geometry{
		binary.LittleEndian.Uint32(h[hTableOffset:]),
		binary.LittleEndian.Uint32(h[hTableEntry:]),
		binary.LittleEndian.Uint32(h[hTableEntries:]),
	}
	switch {
	case binary.LittleEndian.Uint32(h[hByteOrder:]) != byteOrderMark:
		return g, fmt.Errorf("%w: written by a machine of another byte order", ErrLayout)
	case binary.LittleEndian.Uint64(h[hEpoch:]) == 0:
		return g, fmt.Errorf("%w: it has no epoch", ErrLayout)
	case binary.LittleEndian.Uint32(h[hExtentCells:]) != ExtentCells, binary.LittleEndian.Uint32(h[hCatalogueBytes:]) != CatalogueSegmentBytes:
		return g, fmt.Errorf("%w: extents or catalogue segments of another size", ErrLayout)
	case g.offset < tableOffset || g.offset%8 != 0 || g.entry < tableEntryBytes || g.entry%8 != 0 ||
		uint64(g.offset)+uint64(g.entry)*uint64(g.entries) > uint64(len(h)):
		return g, fmt.Errorf("%w: its segment table lies outside of it", ErrLayout)
	}
	return g, nil
}

// tableEntry is a segment as the table names it.
type tableEntry struct {
	slot           int
	ticket         uint64
	kind, worker   uint32
	id, generation uint64
}

// readTable returns the segments in use, ordered by their tickets, that is by time. An entry that changes meanwhile is
// left out: whoever cares looks whether the table's word moved.
func readTable(h []byte, g geometry) []tableEntry {
	var entries []tableEntry
	for slot := range int(g.entries) {
		b := h[int(g.offset)+slot*int(g.entry):][:tableEntryBytes]
		ticket := load(b, eTicket)
		if ticket == 0 {
			continue
		}
		kind := load(b, eKind)
		e := tableEntry{slot, ticket, uint32(kind), uint32(kind >> 32), load(b, eID), load(b, eGeneration)}
		if load(b, eTicket) == ticket && (e.kind == segmentCatalogue || e.kind == segmentSheet) {
			entries = append(entries, e)
		}
	}
	slices.SortFunc(entries, func(a, b tableEntry) int {
		if a.ticket < b.ticket {
			return -1
		}
		return 1
	})
	return entries
}

// sheetFiles names a sheet and holds its two descriptors.
type sheetFiles struct {
	epoch, id, generation uint64
	worker                uint32
	slot                  int
	fd, lock              int
}

// remove undoes a creation.
func (s sheetFiles) remove(dirfd int) {
	if s.fd >= 0 {
		unix.Close(s.fd)
		unix.Unlinkat(dirfd, sheetName(s.id), 0)
	}
	if s.lock >= 0 {
		unix.Close(s.lock)
		unix.Unlinkat(dirfd, lockName(s.id), 0)
	}
}

// sheetView is a sheet as others than its writer see it: statsd, which grows it and declares it dead, and readers.
type sheetView struct {
	sheetFiles
	header  mapping
	extents []mapping // mapped when first read
}

func openSheetView(dirfd int, epoch uint64, e tableEntry, write bool) (*sheetView, error) {
	mode := unix.O_RDONLY
	if write {
		mode = unix.O_RDWR
	}
	fd, err := openExisting(dirfd, sheetName(e.id), mode)
	if err != nil {
		return nil, err
	}
	lock, err := openExisting(dirfd, lockName(e.id), mode)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return newSheetView(sheetFiles{epoch, e.id, e.generation, e.worker, e.slot, fd, lock}, fd, lock, write)
}

// newSheetView takes over the descriptors.
func newSheetView(s sheetFiles, fd, lock int, write bool) (*sheetView, error) {
	v := &sheetView{sheetFiles: s}
	v.fd, v.lock = fd, lock
	var err error
	if v.header, err = mapFile(fd, 0, sheetHeaderUsed, write); err != nil {
		v.close()
		return nil, err
	}
	var id, epoch uint64
	if fault := guard(func() {
		err = checkSheet(v.header.bytes)
		id, epoch = load(v.header.bytes, sID), load(v.header.bytes, sEpoch)
	}); fault != nil {
		err = fault
	}
	if err == nil && (id != s.id || epoch != s.epoch) {
		err = fmt.Errorf("%w: %s holds another sheet", ErrLayout, sheetName(s.id))
	}
	if err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

func (v *sheetView) close() {
	for i := range v.extents {
		v.extents[i].close()
	}
	v.header.close()
	for _, fd := range []int{v.fd, v.lock} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	v.fd, v.lock, v.extents = -1, -1, nil
}

// live reports whether the writer lives, which only the kernel knows. A sheet without a lock descriptor is this
// process's own.
func (v *sheetView) live() bool {
	if v.lock < 0 {
		return true
	}
	_, held, err := lockHolder(v.lock)
	return err == nil && held
}

func (v *sheetView) word(offset int) (value uint64, err error) {
	fault := guard(func() { value = load(v.header.bytes, offset) })
	return value, fault
}

// announced is the number of extents that the sheet says it has.
func (v *sheetView) announced() (uint64, error) {
	n, err := v.word(sExtents)
	if err == nil && n > maxCell/ExtentCells {
		err = fmt.Errorf("%w: a sheet of %d extents", ErrLayout, n)
	}
	return n, err
}

// grow allocates extents up to the cell end and announces them.
func (v *sheetView) grow(end uint64, allocate Allocate, step func(string)) error {
	have, err := v.announced()
	if err != nil {
		return err
	}
	want := (end + ExtentCells - 1) / ExtentCells
	if have >= want {
		return nil
	}
	if err := allocate(v.fd, sheetHeaderBytes+int64(have)*extentBytes, int64(want-have)*extentBytes); err != nil {
		return fmt.Errorf("%s: %w", sheetName(v.id), full(err))
	}
	step("extents")
	return guard(func() { store(v.header.bytes, sExtents, want) })
}

// kill decides whether the sheet's writer is dead and, if so, makes sure that none comes any more: with the lock in
// its own hands it writes the state down. A sheet whose writer has not come yet is dead when abandoned says so.
func (v *sheetView) kill(abandoned bool) (bool, error) {
	held, err := tryLock(v.lock)
	if err != nil || !held {
		return false, err
	}
	defer unlock(v.lock)
	dead := true
	err = guard(func() {
		if load(v.header.bytes, sState) == sheetFresh && !abandoned {
			dead = false
			return
		}
		store(v.header.bytes, sState, sheetDead)
	})
	return dead, err
}

// add adds the n cells at base to dst. Cells of an extent that the sheet has not are 0.
func (v *sheetView) add(base uint64, dst []uint64) error {
	extent, first := base/ExtentCells, base%ExtentCells
	if first+uint64(len(dst)) > ExtentCells {
		return fmt.Errorf("%w: cells that cross an extent", ErrLayout)
	}
	if extent >= uint64(len(v.extents)) || v.extents[extent].bytes == nil {
		if announced, err := v.announced(); err != nil || extent >= announced {
			return err
		}
		for uint64(len(v.extents)) <= extent {
			v.extents = append(v.extents, mapping{})
		}
		mapped, err := mapFile(v.fd, sheetHeaderBytes+int64(extent)*extentBytes, extentBytes, false)
		if err != nil {
			return err
		}
		v.extents[extent] = mapped
	}
	m, offset := v.extents[extent].bytes, int(first)*8
	return guard(func() {
		for i := range dst {
			dst[i] += load(m, offset+i*8)
		}
	})
}

// isGone reports an error that means "removed meanwhile": the reader looks again.
func isGone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESTALE) }
