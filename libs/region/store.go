package region

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Options of a Store; the zero value is what a daemon wants.
type Options struct {
	Allocate  Allocate // nil: AllocateBlocks
	MaxGroups int      // groups that are not retired; 0: 200 000
	MaxSeries int      // groups of schemas of one name that have series of their own; 0: no bound but MaxGroups
	Log       *slog.Logger
	Now       func() time.Time

	step func(point string) // a test's: called before each store that another process may see
}

// Store is the one writer of a region: its header, catalogue, segment table and ledger, and the maker of its sheets.
// statsd has the suite's; a Spill has a small one of its own.
//
// Its life: Open creates the region or adopts what it finds there, a region whose last owner was killed at any point
// included; one goroutine at a time calls its methods; Close leaves the region as it is for the next.
type Store struct {
	dir     string
	dirfd   int
	owner   int // descriptor of the file `owner`, locked
	options Options
	header  mapping
	epoch   uint64
	catalogue
	segments []mapping // of the catalogue, writable
	sheets   []*sheetView
	spills   []*spillView // as the last Fold saw them
	ledger   ledger
	entries  []uint64 // ticket of each entry of the segment table, 0 for a free one
}

// Open creates the region in dir, or adopts it. What is no region of this layout is put aside as dir.damaged, with a
// warning, and a new one with another epoch begins. One process owns a region at a time.
func Open(dir string, options Options) (*Store, error) {
	if options.Allocate == nil {
		options.Allocate = AllocateBlocks
	}
	if options.MaxGroups == 0 {
		options.MaxGroups = 200_000
	}
	if options.MaxSeries == 0 {
		options.MaxSeries = options.MaxGroups
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.step == nil {
		options.step = func(string) {}
	}
	st, err := open(dir, options)
	if errors.Is(err, ErrLayout) {
		if major, known := majorOf(dir); known && major != LayoutMajor {
			if st, err = replaceMajor(dir, major, options); err != nil {
				return nil, fmt.Errorf("open the stats region in %s: %w", dir, err)
			}
			return st, nil
		}
		options.Log.Warn("the stats region cannot be read and is put aside; counters begin at 0",
			"region", dir, "kept", dir+".damaged", "error", err)
		if err := os.RemoveAll(dir + ".damaged"); err != nil {
			return nil, fmt.Errorf("put the unreadable stats region %s aside: %w", dir, err)
		}
		if err := os.Rename(dir, dir+".damaged"); err != nil {
			return nil, fmt.Errorf("put the unreadable stats region %s aside: %w", dir, err)
		}
		st, err = open(dir, options)
	}
	if err != nil {
		return nil, fmt.Errorf("open the stats region in %s: %w", dir, err)
	}
	return st, nil
}

func open(dir string, options Options) (_ *Store, err error) {
	st := &Store{dir: dir, dirfd: -1, owner: -1, options: options, catalogue: *newCatalogue()}
	defer func() {
		if err != nil {
			st.Close()
		}
	}()
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, err
	}
	if st.dirfd, err = unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err != nil {
		return nil, err
	}
	if st.owner, err = unix.Openat(st.dirfd, ownerFile, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, fileMode); err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	switch held, err := tryLock(st.owner); {
	case err != nil:
		return nil, err
	case !held:
		pid, _, _ := lockHolder(st.owner)
		return nil, fmt.Errorf("process %d owns it already; stop it or choose another --dir", pid)
	}
	fd, err := unix.Openat(st.dirfd, "header", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ENOENT) {
		fd, err = st.create()
	}
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if st.header, err = mapFile(fd, 0, headerBytes, true); err != nil {
		return nil, err
	}
	return st, st.adopt()
}

// create writes the file `header`. It appears under its name only when it is whole.
func (st *Store) create() (int, error) {
	if err := st.removeAll(); err != nil {
		return -1, err
	}
	fd, err := createFile(st.dirfd, "header.new")
	if err != nil {
		return -1, err
	}
	fail := func(err error) (int, error) {
		unix.Close(fd)
		return -1, fmt.Errorf("create header: %w", full(err))
	}
	if err := st.options.Allocate(fd, 0, headerBytes); err != nil {
		return fail(err)
	}
	h := make([]byte, tableOffset)
	putPreamble(h, magicHeader)
	binary.LittleEndian.PutUint32(h[hByteOrder:], byteOrderMark)
	rand.Read(h[hEpoch : hEpoch+8])
	h[hEpoch] |= 1 // never 0
	binary.LittleEndian.PutUint64(h[hCreated:], uint64(st.options.Now().UnixNano()))
	binary.LittleEndian.PutUint32(h[hBytes:], headerBytes)
	binary.LittleEndian.PutUint32(h[hTableOffset:], tableOffset)
	binary.LittleEndian.PutUint32(h[hTableEntry:], tableEntryBytes)
	binary.LittleEndian.PutUint32(h[hTableEntries:], tableEntries)
	binary.LittleEndian.PutUint32(h[hExtentCells:], ExtentCells)
	binary.LittleEndian.PutUint32(h[hCatalogueBytes:], CatalogueSegmentBytes)
	binary.LittleEndian.PutUint64(h[hNextSheet:], 1)
	if _, err := unix.Pwrite(fd, h, 0); err != nil {
		return fail(err)
	}
	st.options.step("header")
	if err := unix.Renameat(st.dirfd, "header.new", st.dirfd, "header"); err != nil {
		return fail(err)
	}
	return fd, nil
}

// removeAll clears the directory of what a creation that did not end has left.
func (st *Store) removeAll() error {
	names, err := readNames(st.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name != ownerFile && name != directoryFile {
			if err := unix.Unlinkat(st.dirfd, name, 0); err != nil {
				return fmt.Errorf("remove %s: %w", name, err)
			}
		}
	}
	return nil
}

func readNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// adopt reads everything that a former owner committed and undoes or ends what it did not end.
func (st *Store) adopt() (err error) {
	geometry, err := checkHeader(st.header.bytes)
	if err != nil {
		return err
	}
	if geometry != ownGeometry {
		return fmt.Errorf("%w: written by a newer version with another segment table", ErrLayout)
	}
	h := st.header.bytes
	st.epoch = binary.LittleEndian.Uint64(h[hEpoch:])
	st.entries = make([]uint64, tableEntries)
	entries := readTable(h, geometry)
	for _, e := range entries {
		st.entries[e.slot] = e.ticket
		if e.kind == segmentCatalogue {
			if e.id != uint64(len(st.segments)) {
				return fmt.Errorf("%w: catalogue segment %d where %d is due", ErrLayout, e.id, len(st.segments))
			}
			m, err := st.mapCatalogue(e.id)
			if err != nil {
				return err
			}
			st.segments = append(st.segments, m)
		}
	}
	if err := st.catchUp(load(h, hCatalogue), st.segment); err != nil {
		return err
	}
	if st.ledger, err = openLedger(st.dirfd, st.epoch, load(h, hLedger)); err != nil {
		return err
	}
	for _, e := range entries {
		if e.kind != segmentSheet {
			continue
		}
		if st.ledger.folded(st.epoch, e.id) {
			st.freeEntry(e.slot) // folded and committed, but not yet removed
			continue
		}
		s, err := openSheetView(st.dirfd, st.epoch, e, true)
		if err != nil {
			return err
		}
		st.sheets = append(st.sheets, s)
	}
	return st.sweep()
}

func (st *Store) segment(n uint64) ([]byte, error) {
	if n >= uint64(len(st.segments)) {
		return nil, fmt.Errorf("%w: the catalogue has no segment %d", ErrLayout, n)
	}
	return st.segments[n].bytes, nil
}

func (st *Store) mapCatalogue(n uint64) (mapping, error) {
	fd, err := openExisting(st.dirfd, catalogueName(n), unix.O_RDWR)
	if err != nil {
		return mapping{}, err
	}
	defer unix.Close(fd)
	return mapFile(fd, 0, CatalogueSegmentBytes, true)
}

// openExisting opens a file that the header names; its absence is damage.
func openExisting(dirfd int, name string, mode int) (int, error) {
	fd, err := unix.Openat(dirfd, name, mode|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) {
		return -1, fmt.Errorf("%w: %s: %w", ErrLayout, name, err)
	}
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	return fd, nil
}

func catalogueName(n uint64) string { return "catalogue-" + strconv.FormatUint(n, 10) }
func sheetName(id uint64) string    { return "sheet-" + strconv.FormatUint(id, 10) }
func lockName(id uint64) string     { return "lock-" + strconv.FormatUint(id, 10) }
func ledgerName(n uint64) string    { return "ledger-" + strconv.FormatUint(n, 10) }

// sweep unlinks files that nothing names: made but not announced, or folded but not yet removed.
func (st *Store) sweep() error {
	keep := map[string]bool{ownerFile: true, "header": true, directoryFile: true, exportFile: true}
	for n := range st.segments {
		keep[catalogueName(uint64(n))] = true
	}
	for _, s := range st.sheets {
		keep[sheetName(s.id)], keep[lockName(s.id)] = true, true
	}
	if st.ledger.sequence > 0 {
		keep[ledgerName(st.ledger.sequence)] = true
	}
	names, err := readNames(st.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !keep[name] {
			st.options.step("sweep " + name)
			if err := unix.Unlinkat(st.dirfd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("remove %s: %w", name, err)
			}
		}
	}
	return nil
}

// Close lets the region go; it stays as it is.
func (st *Store) Close() {
	for _, s := range st.sheets {
		s.close()
	}
	for _, s := range st.spills {
		s.close()
	}
	for i := range st.segments {
		st.segments[i].close()
	}
	st.ledger.close()
	st.header.close()
	if st.owner >= 0 {
		unix.Close(st.owner)
	}
	if st.dirfd >= 0 {
		unix.Close(st.dirfd)
	}
	st.owner, st.dirfd, st.sheets, st.spills, st.segments = -1, -1, nil, nil, nil
}

// Epoch is the identity of the region: it changes when the region begins anew.
func (st *Store) Epoch() uint64 { return st.epoch }

// Dir is where the region's files are.
func (st *Store) Dir() string { return st.dir }

// Usage is what a region holds.
type Usage struct {
	Groups, Retired, Series int
	Bytes                   uint64
	SheetsLive, SheetsDead  int
	LedgerBlocks            uint64         // committed so far
	Others                  map[string]int // by schema: groups beyond the cap on series
}

// Usage counts.
func (st *Store) Usage() Usage {
	u := Usage{Groups: len(st.groups) - st.retired, Retired: st.retired, LedgerBlocks: st.ledger.sequence, Others: maps.Clone(st.otherGroups)}
	for _, g := range st.groups {
		if !g.Retired {
			u.Series += len(g.Schema.Fields)
		}
	}
	u.Bytes = headerBytes + uint64(len(st.segments))*CatalogueSegmentBytes + uint64(len(st.ledger.mapped.bytes))
	for _, s := range st.sheets {
		extents, _ := s.announced()
		u.Bytes += sheetHeaderUsed + extents*extentBytes
		if s.live() {
			u.SheetsLive++
		} else {
			u.SheetsDead++
		}
	}
	return u
}

// SetMaxSeries changes the cap on series of one name for groups that are declared from now on.
func (st *Store) SetMaxSeries(n int) { st.options.MaxSeries = n }

// announce puts a segment into the table: the fields first, its ticket last.
func (st *Store) announce(kind uint32, id, generation uint64, worker uint32) (int, error) {
	h := st.header.bytes
	for slot, ticket := range st.entries {
		if ticket != 0 {
			continue
		}
		e := h[tableOffset+slot*tableEntryBytes:][:tableEntryBytes]
		store(e, eKind, uint64(kind)|uint64(worker)<<32)
		store(e, eID, id)
		store(e, eGeneration, generation)
		change := load(h, hTable) + 1
		st.options.step("ticket")
		store(e, eTicket, change)
		st.options.step("table")
		store(h, hTable, change)
		st.entries[slot] = change
		return slot, nil
	}
	return 0, fmt.Errorf("%w: all %d places of its segment table are taken", ErrFull, tableEntries)
}

func (st *Store) freeEntry(slot int) {
	h := st.header.bytes
	st.options.step("free")
	store(h[tableOffset+slot*tableEntryBytes:], eTicket, 0)
	st.options.step("table")
	store(h, hTable, load(h, hTable)+1)
	st.entries[slot] = 0
}

// CreateSheet makes the sheet of one writer, with room for every group declared so far. The descriptors are for the
// writer (AttachSheet there); the caller closes them when it has sent them. Both are of this process, and it must not
// be the writer's: closing the one of the lock would let go a lock taken here.
func (st *Store) CreateSheet(generation uint64, worker uint32) (sheet, lock int, err error) {
	s, err := st.createSheet(generation, worker)
	if err != nil {
		return -1, -1, err
	}
	fail := func(err error) (int, int, error) {
		return -1, -1, fmt.Errorf("sheet of worker %d of generation %d: %w", worker, generation, err)
	}
	view, err := newSheetView(s, s.fd, s.lock, true)
	if err != nil {
		return fail(err)
	}
	st.sheets = append(st.sheets, view)
	if sheet, err = unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		return fail(err)
	}
	if lock, err = unix.FcntlInt(uintptr(s.lock), unix.F_DUPFD_CLOEXEC, 0); err != nil {
		unix.Close(sheet)
		return fail(err)
	}
	return sheet, lock, nil
}

// createSheet makes and announces a sheet and returns its descriptors.
func (st *Store) createSheet(generation uint64, worker uint32) (_ sheetFiles, err error) {
	h := st.header.bytes
	s := sheetFiles{epoch: st.epoch, id: load(h, hNextSheet), generation: generation, worker: worker, fd: -1, lock: -1}
	st.options.step("next sheet")
	store(h, hNextSheet, s.id+1)
	defer func() {
		if err != nil {
			s.remove(st.dirfd)
			err = fmt.Errorf("sheet of worker %d of generation %d: %w", worker, generation, err)
		}
	}()
	if s.fd, err = createFile(st.dirfd, sheetName(s.id)); err != nil {
		return s, err
	}
	if s.lock, err = createFile(st.dirfd, lockName(s.id)); err != nil {
		return s, err
	}
	extents := (st.nextCell + ExtentCells - 1) / ExtentCells
	if err = st.options.Allocate(s.fd, 0, sheetHeaderUsed); err == nil && extents > 0 {
		err = st.options.Allocate(s.fd, sheetHeaderBytes, int64(extents)*extentBytes)
	}
	if err != nil {
		return s, full(err)
	}
	b := make([]byte, sheetHeaderUsed)
	putPreamble(b, magicSheet)
	binary.LittleEndian.PutUint32(b[sByteOrder:], byteOrderMark)
	binary.LittleEndian.PutUint64(b[sEpoch:], st.epoch)
	binary.LittleEndian.PutUint64(b[sID:], s.id)
	binary.LittleEndian.PutUint64(b[sGeneration:], generation)
	binary.LittleEndian.PutUint32(b[sWorker:], worker)
	binary.LittleEndian.PutUint32(b[sExtentCell:], ExtentCells)
	binary.LittleEndian.PutUint64(b[sCreated:], uint64(st.options.Now().UnixNano()))
	binary.LittleEndian.PutUint64(b[sExtents:], extents)
	if _, err = unix.Pwrite(s.fd, b, 0); err != nil {
		return s, full(err)
	}
	s.slot, err = st.announce(segmentSheet, s.id, generation, worker)
	return s, err
}

// Generations lists those with a living writer, here or in the spills that the last Fold saw.
func (st *Store) Generations() map[uint64]bool {
	live := map[uint64]bool{}
	sheets := slices.Clone(st.sheets)
	for _, spill := range st.spills {
		sheets = append(sheets, spill.view.sheets...)
	}
	for _, s := range sheets {
		if s.live() {
			live[s.generation] = true
		}
	}
	return live
}

// Groups lists all groups, hidden ones included. The list is the store's own.
func (st *Store) Groups() []*Group { return st.groups }

// Sheets is the number of sheets that are not folded yet.
func (st *Store) Sheets() int { return len(st.sheets) }
