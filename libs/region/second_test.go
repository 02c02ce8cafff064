package region_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"retinue.dev/libs/region"
)

// TestOwnerKilledAtEveryStoreOfACompaction kills the owner before each store of a compaction, with a living writer, a dead
// one and totals of the folded, while readers look on: they see the true counters all the time, whichever of the two
// regions is there, and what is hidden is not shown afterwards.
func TestOwnerKilledAtEveryStoreOfACompaction(t *testing.T) {
	hit := map[string]bool{}
	for kill := 1; ; kill++ {
		point := compactAt(t, kill)
		if t.Failed() || point == "" {
			break
		}
		hit[point] = true
	}
	for _, point := range []string{"header", "record", "catalogue", "ledger block", "ledger checksum", "ledger word", "exchange"} {
		if !hit[point] {
			t.Errorf("nobody was killed before %q; at %v", point, slices.Sorted(maps.Keys(hit)))
		}
	}
}

// compactAt kills the owner at the n-th store of a compaction and reports where; "" when there were fewer.
func compactAt(t *testing.T, n int) string {
	t.Helper()
	s := newSuite(t, region.Options{MaxSeries: 2})
	bases := s.declare(4) // 2 and 3 are shown as one
	long := s.writer(1, 0)
	for i, base := range bases {
		long.Add(0, base, uint64(100*(i+1)))
	}
	long.Kill()
	s.fold()
	living, dead := s.writer(2, 0), s.writer(2, 1)
	for i, base := range bases {
		living.Add(0, base, uint64(10*(i+1)))
		living.Add(0, base+1, 7)
		dead.Add(0, base, uint64(i+1))
	}
	living.Observe(0, bases[0]+2, 64)
	dead.Kill()
	for _, base := range []uint64{bases[1], bases[3]} {
		if err := s.store.Retire(base, true); err != nil {
			t.Fatal(err)
		}
	}
	truth := map[string]uint64{"0": 111, region.OtherValue: 333 + 444}
	read := func(r *region.Reader) (map[string]uint64, error) {
		if err := r.Refresh(); err != nil {
			return nil, err
		}
		sums := map[string]uint64{}
		for _, g := range r.Groups() {
			if !g.Shown() {
				continue
			}
			cells := make([]uint64, groupCells)
			if err := r.Read(g, cells); err != nil {
				return nil, err
			}
			sums[g.ShownLabels()[0].Value] += cells[0]
		}
		return sums, nil
	}
	old := s.reader()
	check := func(point string) {
		t.Helper()
		fresh, err := region.OpenReader(s.dir, s.run)
		if err != nil {
			t.Fatalf("kill %d, before %q: %v", n, point, err)
		}
		defer fresh.Close()
		for i, r := range []*region.Reader{fresh, old} {
			got, err := read(r)
			if i == 1 && errors.Is(err, region.ErrLayout) {
				continue // another is in its place: it is opened again
			}
			if err != nil || !maps.Equal(got, truth) {
				t.Fatalf("kill %d, before %q: reader %d saw %v, the truth is %v: %v", n, point, i, got, truth, err)
			}
		}
	}
	left := n
	s.store.Close()
	s.options = region.WithStep(s.options, func(point string) {
		if left--; left < 0 {
			return
		}
		check(point)
		if left == 0 {
			panic(killed{point})
		}
	})
	left = 1 << 30
	s.open()
	left = n
	epoch := s.store.Epoch()
	point := untilKilled(t, func() {
		if err := s.store.Compact(s.run); err != nil {
			t.Fatal(err)
		}
	})
	left = -1
	s.store.Close()
	s.open()
	check("what comes after")
	if point == "" && s.store.Epoch() == epoch {
		t.Error("the epoch did not change")
	}
	// Folds end what the dead one left. The living writer goes on all the while.
	living.Add(0, bases[0], 1000)
	truth["0"] += 1000
	for range 3 {
		s.fold()
		check("folds")
	}
	living.Kill()
	for range 3 {
		s.fold()
		check("the last fold")
	}
	if names, err := os.ReadDir(region.SpillDir(s.run)); err != nil && !errors.Is(err, os.ErrNotExist) || len(names) != 0 {
		t.Errorf("kill %d at %q: %v are left: %v", n, point, names, err)
	}
	if u := s.store.Usage(); point == "" && (u.Retired != 1 || u.Groups != 2) { // the hidden part of __other__ stays
		t.Errorf("%d groups and %d hidden ones after a compaction", u.Groups, u.Retired)
	}
	return point
}

// TestCompactWaitsForAWriter: a sheet that was handed out and not attached yet would be taken for a dead one's.
func TestCompactWaitsForAWriter(t *testing.T) {
	s := newSuite(t, region.Options{})
	s.declare(1)
	if _, _, err := s.store.CreateSheet(1, 0); err != nil {
		t.Fatal(err)
	}
	if err := s.store.Compact(s.run); !errors.Is(err, region.ErrNotNow) {
		t.Errorf("compacted under a writer that is being made: %v", err)
	}
}

// TestOtherMajor: where a region of another major layout is, a second one begins with the totals that were exported, those
// of the living at the time included, and the first is kept beside it.
func TestOtherMajor(t *testing.T) {
	s := newSuite(t, region.Options{MaxSeries: 2})
	bases := s.declare(3)
	dead, living := s.writer(1, 0), s.writer(2, 0)
	dead.Add(0, bases[0], 5)
	dead.Observe(0, bases[0]+2, 64)
	dead.Kill()
	s.fold()
	living.Add(0, bases[0], 6)
	living.Add(0, bases[0]+1, 70) // a gauge dies with its owner, here too
	living.Add(0, bases[2], 9)
	epoch := s.store.Epoch()
	if err := s.store.Export(s.run); err != nil {
		t.Fatal(err)
	}
	s.store.Close()
	if err := patch(filepath.Join(s.dir, "header"), 8, 9); err != nil {
		t.Fatal(err)
	}
	if _, err := region.OpenReader(s.dir, s.run); !errors.Is(err, region.ErrLayout) || !strings.Contains(err.Error(), "layout is 9.") {
		t.Errorf("a reader of this major takes another's: %v", err)
	}
	s.open()
	if s.store.Epoch() == epoch {
		t.Error("the same epoch")
	}
	living.Add(0, bases[0], 1) // into the file that is kept
	r := s.reader()
	want(t, read(t, r, 0), values{counter: 11, count: 1, sum: 64})
	want(t, read(t, r, 2), values{counter: 9})
	if g := r.Groups()[2]; !g.Other || fmt.Sprint(g.Labels) != "[{group 2}]" {
		t.Errorf("%+v is not a part of %s any more", g, region.OtherValue)
	}
	if _, err := os.Stat(s.dir + ".layout-9/header"); err != nil {
		t.Errorf("the first region is not kept: %v", err)
	}
	// New writers count on top.
	next := s.writer(2, 0)
	next.Add(0, r.Groups()[0].Base, 100)
	want(t, read(t, r, 0), values{counter: 111, count: 1, sum: 64})
}

// TestOtherMajorWithoutExport: counters begin at 0, and nothing is thrown away.
func TestOtherMajorWithoutExport(t *testing.T) {
	for name, export := range map[string][]byte{"none": nil, "torn": []byte("\x0a\xff\xff")} {
		t.Run(name, func(t *testing.T) {
			s := newSuite(t, region.Options{})
			s.declare(2)
			s.store.Close()
			if export != nil {
				if err := os.WriteFile(filepath.Join(s.dir, "export"), export, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := patch(filepath.Join(s.dir, "header"), 8, 2); err != nil {
				t.Fatal(err)
			}
			s.open()
			if u := s.store.Usage(); u.Groups != 0 {
				t.Errorf("%d groups", u.Groups)
			}
			if _, err := os.Stat(s.dir + ".layout-2/owner"); err != nil {
				t.Errorf("not kept: %v", err)
			}
		})
	}
}
