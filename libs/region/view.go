package region

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// view reads one region directory: header, catalogue and sheets. It believes nothing that it reads.
type view struct {
	dir      string
	dirfd    int
	inode    uint64
	header   mapping
	geometry geometry
	epoch    uint64
	table    uint64 // word hTable at the last look; ^0 before the first
	catalogue
	segments map[uint64]mapping
	sheets   []*sheetView
}

func openView(dir string) (_ *view, err error) {
	v := &view{dir: dir, dirfd: -1, table: ^uint64(0), catalogue: *newCatalogue(), segments: map[uint64]mapping{}}
	defer func() {
		if err != nil {
			v.close()
		}
	}()
	if v.dirfd, err = unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0); err != nil {
		return nil, fmt.Errorf("open the stats region %s: %w", dir, err)
	}
	fd, err := unix.Openat(v.dirfd, "header", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open the stats region %s: %w", dir, err)
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if err := unix.Fstat(fd, &stat); err != nil {
		return nil, err
	}
	v.inode = stat.Ino
	size, err := fileSize(fd)
	if err != nil {
		return nil, err
	}
	if v.header, err = mapFile(fd, 0, int(max(tableOffset, min(size, 16<<20))), false); err != nil {
		return nil, err
	}
	if fault := guard(func() {
		v.geometry, err = checkHeader(v.header.bytes)
		v.epoch = binary.LittleEndian.Uint64(v.header.bytes[hEpoch:])
	}); fault != nil {
		return nil, fault
	}
	return v, err
}

func (v *view) close() {
	for _, s := range v.sheets {
		s.close()
	}
	for _, m := range v.segments {
		m.close()
	}
	v.header.close()
	if v.dirfd >= 0 {
		unix.Close(v.dirfd)
	}
	v.dirfd, v.sheets, v.segments = -1, nil, nil
}

func (v *view) segment(n uint64) ([]byte, error) {
	if m, ok := v.segments[n]; ok {
		return m.bytes, nil
	}
	fd, err := openExisting(v.dirfd, catalogueName(n), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	m, err := mapFile(fd, 0, CatalogueSegmentBytes, false)
	if err != nil {
		return nil, err
	}
	v.segments[n] = m
	return m.bytes, nil
}

// refresh catches up with the catalogue and the segment table.
func (v *view) refresh() error {
	var err error
	fault := guard(func() {
		err = v.catchUp(load(v.header.bytes, hCatalogue), v.segment)
		if err == nil {
			err = v.refreshSheets()
		}
	})
	if fault != nil {
		return fault
	}
	return err
}

func (v *view) refreshSheets() error {
	change := load(v.header.bytes, hTable)
	if change == v.table {
		return nil
	}
	known := map[uint64]*sheetView{}
	for _, s := range v.sheets {
		known[s.id] = s
	}
	var sheets []*sheetView
	var failed error
	for _, e := range readTable(v.header.bytes, v.geometry) {
		if e.kind != segmentSheet {
			continue
		}
		s := known[e.id]
		if s == nil {
			var err error
			if s, err = openSheetView(v.dirfd, v.epoch, e, false); err != nil {
				failed = errors.Join(failed, err)
				continue
			}
		}
		delete(known, e.id)
		sheets = append(sheets, s)
	}
	for _, s := range known {
		s.close()
	}
	v.sheets = sheets
	if failed == nil {
		v.table = change
	}
	return failed
}
