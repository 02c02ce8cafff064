package region

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// A second region takes the place of the first when most of the first is cells of groups that nobody shows any more:
// cells are never moved while a writer lives, so they cannot be given back one by one. How nobody sees it happen:
//
//	make a region below SPILL: the groups that are shown, and a ledger block with their totals and all ids
//	exchange its name with the old one's, in one system call
//
// Before the exchange the new one is a spill without sheets, which adds nothing. After it the old one is a spill: its
// living writers go on in their sheets, which readers add and statsd folds as they die; its ledger is no part of a spill.
// So whoever looks finds each total once and each sheet once. A death before the exchange leaves an empty spill, which the
// next fold removes.

// compactedPrefix begins the names of regions in the directory of spills.
const compactedPrefix = "compacted-"

// ErrNotNow is a compaction that cannot be now: a writer is just being made, or the region is on another file system than
// spills are.
var ErrNotNow = errors.New("the stats region cannot be compacted now")

// Wasted reports whether Compact would give back more than half of the cells, and at least an extent of each sheet.
func (st *Store) Wasted() bool {
	var shown uint64
	for _, g := range st.groups {
		if g.Shown() {
			shown += uint64(g.Schema.Cells)
		}
	}
	return st.nextCell > 2*ExtentCells && shown < st.nextCell/2
}

// Compact puts a second region in the place of this one. The epoch and the bases change: writers ask for new sheets when
// they declare their next groups, and keep what they have. runDir is the suite's run directory.
func (st *Store) Compact(runDir string) error {
	for _, s := range st.sheets {
		if state, err := s.word(sState); err != nil || state == sheetFresh {
			return fmt.Errorf("%w: sheet %d waits for its writer", ErrNotNow, s.id)
		}
	}
	root := SpillDir(runDir)
	if err := makeShared(root); err != nil {
		return fmt.Errorf("compact the stats region: %w", err)
	}
	var random [6]byte
	rand.Read(random[:])
	dir := filepath.Join(root, compactedPrefix+hex.EncodeToString(random[:]))
	options := st.options
	options.MaxGroups, options.MaxSeries = 1<<40, 1<<40 // what is there stays
	next, err := open(dir, options)
	if err == nil {
		if err = st.copyTo(next); err == nil {
			st.options.step("exchange")
			err = unix.Renameat2(unix.AT_FDCWD, st.dir, unix.AT_FDCWD, dir, unix.RENAME_EXCHANGE)
		}
		if err != nil {
			next.Close()
		}
	}
	if err != nil {
		os.RemoveAll(dir)
		if errors.Is(err, unix.EXDEV) {
			err = fmt.Errorf("%w: %s is not on the file system of %s", ErrNotNow, st.dir, root)
		}
		return fmt.Errorf("compact the stats region: %w", full(err))
	}
	next.dir, next.options = st.dir, st.options
	st.Close()
	*st = *next
	return nil
}

// makeShared makes a directory in which the daemons of the suite put things.
func makeShared(dir string) error {
	err := os.Mkdir(dir, 0o770)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err == nil {
		err = os.Chmod(dir, 0o770|os.ModeSetgid)
	}
	return err
}

// copyTo declares in another store what is shown here, and commits the totals of this ledger there.
func (st *Store) copyTo(next *Store) error {
	type move struct{ from, to *Group }
	var moves []move
	for _, g := range st.groups {
		if !g.Shown() {
			continue
		}
		next.options.MaxSeries = 1 << 40
		if g.Other {
			next.options.MaxSeries = 0
		}
		base, err := next.Declare(g.Schema, g.Labels)
		if err == nil && g.Retired {
			err = next.Retire(base, true)
		}
		if err != nil {
			return err
		}
		moves = append(moves, move{g, next.at[base]})
	}
	totals := make([]uint64, next.nextCell)
	for _, m := range moves {
		st.ledger.add(m.from.Base, totals[m.to.Base:][:m.to.Schema.Cells])
	}
	return next.commitLedger(st.ledger.ids, totals)
}
