package region

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
	statsv1 "retinue.dev/services/api/stats/v1"
)

// ErrCap marks a group that was refused because the region has as many as it may have.
var ErrCap = errors.New("the cap on groups of series is reached")

// Declare places a group and returns its first cell, the same one whenever the same group is declared again. Its cells
// exist in every sheet when it returns. On an error nothing is declared.
func (st *Store) Declare(s *Schema, labels []Label) (uint64, error) {
	key := groupKey(s, labels)
	if g := st.groupOf[key]; g != nil {
		if g.Retired {
			if err := st.Retire(g.Base, false); err != nil {
				return NoCell, err
			}
		}
		return g.Base, nil
	}
	for _, f := range s.Fields {
		for _, l := range f.Labels {
			if slices.ContainsFunc(labels, func(o Label) bool { return o.Name == l.Name }) {
				return NoCell, fmt.Errorf("schema %q: label %q is both its field %q's and the group's", s.Name, l.Name, f.Name)
			}
		}
	}
	if len(st.groups)-st.retired >= st.options.MaxGroups {
		return NoCell, fmt.Errorf("%w: %d", ErrCap, st.options.MaxGroups)
	}
	base := st.nextCell
	if base%ExtentCells+uint64(s.Cells) > ExtentCells {
		base = (base/ExtentCells + 1) * ExtentCells
	}
	if base+uint64(s.Cells) > maxCell {
		return NoCell, fmt.Errorf("%w: its %d cells are all in use", ErrFull, uint64(maxCell))
	}
	for _, sheet := range st.sheets {
		// A sheet that its own writer damaged is that writer's loss, not everybody's.
		err := sheet.grow(base+uint64(s.Cells), st.options.Allocate, st.options.step)
		if err != nil && !errors.Is(err, ErrLayout) {
			return NoCell, err
		}
	}
	ordinal, known := st.schemaOf[s.key]
	if !known {
		ordinal = uint32(len(st.schemas))
		if err := st.append(recordSchema, []byte(s.key)); err != nil {
			return NoCell, err
		}
		st.addSchema(s)
	}
	if len(labels) > 0 && st.own[s.Name] >= st.options.MaxSeries {
		if err := st.append(recordOther, retirePayload(base, true)); err != nil {
			return NoCell, err
		}
		st.others[base] = true
	}
	if err := st.append(recordGroup, groupPayload(ordinal, base, labels)); err != nil {
		return NoCell, err
	}
	st.addGroup(&Group{Schema: st.schemas[ordinal], Labels: labels, Base: base, key: key})
	return base, nil
}

// Retire hides a group that no live snapshot names, or shows it again. Its cells and what was counted in them stay.
func (st *Store) Retire(base uint64, retired bool) error {
	g := st.at[base]
	if g == nil {
		return fmt.Errorf("no group of series begins at cell %d", base)
	}
	if g.Retired == retired {
		return nil
	}
	if err := st.append(recordRetire, retirePayload(base, retired)); err != nil {
		return err
	}
	st.setRetired(g, retired)
	return nil
}

// append writes a record behind the catalogue and commits it by advancing the committed length, once.
func (st *Store) append(kind uint16, payload []byte) error {
	record := appendRecord(nil, kind, payload)
	n, offset := st.committed/CatalogueSegmentBytes, int(st.committed%CatalogueSegmentBytes)
	committed := st.committed
	if offset+len(record) > CatalogueSegmentBytes {
		// The next segment is there before this one is given up, so that a full tmpfs leaves everything as it was.
		if err := st.addSegment(n + 1); err != nil {
			return err
		}
		left := CatalogueSegmentBytes - offset
		if left >= recordHead {
			copy(st.segments[n].bytes[offset:], appendRecord(nil, recordSkip, make([]byte, left-recordHead)))
		}
		committed, n, offset = (n+1)*CatalogueSegmentBytes, n+1, 0
	} else if err := st.addSegment(n); err != nil {
		return err
	}
	st.options.step("record")
	copy(st.segments[n].bytes[offset:], record)
	committed += uint64(len(record))
	st.options.step("catalogue")
	store(st.header.bytes, hCatalogue, committed)
	st.committed = committed
	return nil
}

// addSegment makes and announces segment n of the catalogue unless it is there.
func (st *Store) addSegment(n uint64) error {
	if n < uint64(len(st.segments)) {
		return nil
	}
	m, err := st.createCatalogue(n)
	if err != nil {
		return err
	}
	if _, err := st.announce(segmentCatalogue, n, 0, 0); err != nil {
		m.close()
		return err
	}
	st.segments = append(st.segments, m)
	return nil
}

func (st *Store) createCatalogue(n uint64) (mapping, error) {
	name := catalogueName(n)
	// One that a former call made and could not announce is of no use to anybody.
	if err := unix.Unlinkat(st.dirfd, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return mapping{}, fmt.Errorf("remove %s: %w", name, err)
	}
	fd, err := createFile(st.dirfd, name)
	if err != nil {
		return mapping{}, err
	}
	defer unix.Close(fd)
	if err := st.options.Allocate(fd, 0, CatalogueSegmentBytes); err != nil {
		return mapping{}, fmt.Errorf("%s: %w", name, full(err))
	}
	return mapFile(fd, 0, CatalogueSegmentBytes, true)
}

// DeclareAll places groups as stats/v1 Declare names them. The base of one that is refused is NoCell, and the error says
// why; the others are placed all the same.
func (st *Store) DeclareAll(schemas []*statsv1.Schema, groups []*statsv1.Group) ([]uint64, error) {
	list := make([]*Schema, len(schemas))
	var first error
	refuse := func(err error) {
		if first == nil {
			first = err
		}
	}
	for i, p := range schemas {
		s, err := SchemaOf(p)
		if err != nil {
			refuse(err)
			continue
		}
		list[i] = s
	}
	bases := make([]uint64, len(groups))
	for i, g := range groups {
		bases[i] = NoCell
		labels, err := labelsOf(g.GetLabels())
		switch {
		case uint64(g.GetSchema()) >= uint64(len(list)):
			err = fmt.Errorf("group %d names schema %d of %d", i, g.GetSchema(), len(list))
		case list[g.GetSchema()] == nil: // refused above
			continue
		case err == nil:
			bases[i], err = st.Declare(list[g.GetSchema()], labels)
		}
		if err != nil {
			refuse(err)
		}
	}
	return bases, first
}
