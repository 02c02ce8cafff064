package region

import (
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// Sheet is the run of cells of one writer: one worker of one generation, or its main side (MainWorker).
//
// Its life: OpenSheet or Spill.Sheet gives it to the main side of the writing process; Cells, called by the main side,
// resolves a group's base to memory; the worker stores into that memory with plain stores, for ever. While the sheet is
// open its writer holds the sheet's lock; the kernel lets it go when the process dies, by whatever cause, and statsd
// then folds the sheet into the ledger. Close is for a writer that ends its sheet before its process ends.
type Sheet struct {
	id, epoch  uint64
	generation uint64
	worker     uint32
	fd, lock   int
	header     mapping

	mu      sync.Mutex
	extents []mapping // mapped so far; never unmapped before Close, so that no handle dangles
}

// AttachSheet makes the calling process the writer of a sheet that the region's owner created, and takes over its two
// descriptors: they are closed when it fails and by Close. Most callers want OpenSheet.
func AttachSheet(fd, lock int) (_ *Sheet, err error) {
	s := &Sheet{fd: fd, lock: lock}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.header, err = mapFile(fd, 0, sheetHeaderUsed, true); err != nil {
		return nil, err
	}
	h := s.header.bytes
	if err := checkSheet(h); err != nil {
		return nil, err
	}
	s.epoch = binary.LittleEndian.Uint64(h[sEpoch:])
	s.id = binary.LittleEndian.Uint64(h[sID:])
	s.generation = binary.LittleEndian.Uint64(h[sGeneration:])
	s.worker = binary.LittleEndian.Uint32(h[sWorker:])
	held, err := tryLock(lock)
	if err != nil {
		return nil, err
	}
	if !held || load(h, sState) != sheetFresh {
		return nil, fmt.Errorf("sheet %d of generation %d is not free: it has or had another writer; ask statsd for a new one", s.id, s.generation)
	}
	store(h, sState, sheetAttached)
	return s, nil
}

func checkSheet(h []byte) error {
	if err := checkPreamble(h, magicSheet, "sheet"); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(h[sByteOrder:]) != byteOrderMark || binary.LittleEndian.Uint32(h[sExtentCell:]) != ExtentCells {
		return fmt.Errorf("sheet: %w: other byte order or size of extents", ErrLayout)
	}
	return nil
}

// Epoch names the region that the sheet belongs to: bases of another epoch mean nothing here.
func (s *Sheet) Epoch() uint64 { return s.epoch }

// Generation and Worker name the writer.
func (s *Sheet) Generation() uint64 { return s.generation }

// Worker is the writer's number in its generation, MainWorker for the main side.
func (s *Sheet) Worker() uint32 { return s.worker }

// Cells returns the n cells at base, a group's cells as Declare answered. The memory stays where it is until Close, and
// is the worker's alone to write. The main side calls it (it may map memory); any goroutine of it may.
func (s *Sheet) Cells(base uint64, n int) ([]uint64, error) {
	extent, first := base/ExtentCells, int(base%ExtentCells)
	if base == NoCell || n < 0 || n > ExtentCells-first {
		return nil, fmt.Errorf("%d cells at %d of the stats region: not a group's place", n, base)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.header.bytes == nil {
		return nil, fmt.Errorf("sheet %d of the stats region is closed", s.id)
	}
	if announced := load(s.header.bytes, sExtents); extent >= announced {
		return nil, fmt.Errorf("cell %d of the stats region: only %d extents are announced; declare the group first", base, announced)
	}
	for uint64(len(s.extents)) <= extent {
		s.extents = append(s.extents, mapping{})
	}
	if m := &s.extents[extent]; m.bytes == nil {
		mapped, err := mapFile(s.fd, sheetHeaderBytes+int64(extent)*extentBytes, extentBytes, true)
		if err != nil {
			return nil, err
		}
		*m = mapped
	}
	return cellsOf(s.extents[extent].bytes)[first : first+n : first+n], nil
}

// Close ends the sheet: nobody may store into its cells any more. statsd folds it as if the writer had died.
func (s *Sheet) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.extents {
		s.extents[i].close()
	}
	s.extents = nil
	s.header.close()
	if s.fd >= 0 {
		unix.Close(s.fd)
		unix.Close(s.lock) // lets the lock go: statsd may fold from here on
		s.fd, s.lock = -1, -1
	}
}
