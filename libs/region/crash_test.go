package region_test

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"
)

// killed is what a crash point panics with: the owner stops there as kill -9 stops it, with nothing undone.
type killed struct{ point string }

// untilKilled runs f and reports the point it was killed at, "" when it ended.
func untilKilled(t *testing.T, f func()) (point string) {
	t.Helper()
	defer func() {
		switch r := recover().(type) {
		case nil:
		case killed:
			point = r.point
		default:
			panic(r)
		}
	}()
	f()
	return ""
}

// TestOwnerKilledAtEveryStoreOfAFold kills the owner before each store of declaring, creating a sheet, folding two dead
// sheets and a dead spill, and of the adoption that follows, while a reader from before, and one that comes at that very
// moment, look on. Nobody ever sees a counter other than the true one.
func TestOwnerKilledAtEveryStoreOfAFold(t *testing.T) {
	hit := map[string]bool{}
	for kill := 1; ; kill++ {
		points := crashAt(t, kill)
		if t.Failed() || points == nil {
			break
		}
		for _, p := range points {
			_, point, _ := strings.Cut(p, ": ")
			hit[point] = true
		}
	}
	for _, point := range []string{
		"record", "catalogue", "ledger block", "ledger checksum", "ledger word", "old ledger", "free", "table",
		"unlink sheet-2", "unlink lock-2", "sweep sheet-2", "sweep lock-2", "rename spill", "remove spill",
	} {
		if !hit[point] {
			t.Errorf("nobody was killed before %q; at %v", point, slices.Sorted(maps.Keys(hit)))
		}
	}
}

// crashAt kills the owner at the n-th store, and its successor again at the n-th of what it does, until all is done. It
// returns the points, nil when there were fewer than n stores.
func crashAt(t *testing.T, n int) (points []string) {
	t.Helper()
	s := newSuite(t, region.Options{})
	bases := s.declare(2)
	long := s.writer(1, 7)
	long.Add(0, bases[0], 2)
	long.Kill()
	s.fold()
	dead, living := s.writer(1, 0, 1), s.writer(2, 0)
	dead.Add(0, bases[0], 3)
	dead.Add(1, bases[0], 4)
	dead.Add(1, bases[0]+1, 50)
	dead.Observe(0, bases[0]+2, 10)
	living.Add(0, bases[0], 5)
	living.Add(0, bases[0]+1, 6)
	spill := regiontest.Start(t)
	spill.Spill(s.run, 1, 3) // groups 0 and 1 of the region, and one that it does not have
	spill.Add(1, 0, 1000)
	spill.Add(1, 2*groupCells, 70)
	dead.Kill()
	spill.Kill()

	truth := values{1014, 6, 1, 10}
	var looking []*region.Reader
	look := func(point string) {
		if _, err := os.Stat(s.dir + "/header"); err != nil {
			return
		}
		fresh, err := region.OpenReader(s.dir, s.run)
		if err != nil {
			t.Fatalf("kill %d, before %q: %v", n, point, err)
		}
		looking = append(looking, fresh)
		for i, r := range looking {
			before := readNow(t, r, 0)
			after := read(t, r, 0)
			if before != truth || after != truth {
				t.Fatalf("kill %d, before %q: reader %d saw %+v, then %+v; the truth is %+v", n, point, i, before, after, truth)
			}
			for _, g := range r.Groups() {
				if g.Labels[0].Value == "2" {
					cells := make([]uint64, groupCells)
					if err := r.Read(g, cells); err != nil || cells[0] != 70 {
						t.Fatalf("kill %d, before %q: reader %d saw %d in the spill's own group: %v", n, point, i, cells[0], err)
					}
				}
			}
		}
		if len(looking) > 3 { // the oldest and the newest are what matters
			looking[1].Close()
			looking = append(looking[:1], looking[2:]...)
		}
	}
	look("start")
	defer func() {
		for _, r := range looking {
			r.Close()
		}
	}()

	left := n
	s.options = region.WithStep(s.options, func(point string) {
		look(point)
		if left--; left == 0 {
			panic(killed{point})
		}
	})
	s.store.Close()
	// The oldest way to double: a second life that ends what the first began. So its successor dies at its n-th store
	// as well, and the one after that is left alone.
	for life := 0; ; life++ {
		if life == 2 {
			left = 1 << 30
		}
		point := untilKilled(t, func() {
			s.open()
			s.fold()
			s.fold() // removes the spill, which the first has folded
		})
		s.store.Close()
		if point == "" {
			break
		}
		points = append(points, fmt.Sprintf("%d: %s", life, point))
		if life < 2 {
			left = n
		}
	}
	s.options = region.Options{}
	s.open()
	if u := s.store.Usage(); u.SheetsDead != 0 || u.SheetsLive != 1 {
		t.Errorf("kill %d at %v: %d dead and %d living sheets are left", n, points, u.SheetsDead, u.SheetsLive)
	}
	if names, err := os.ReadDir(region.SpillDir(s.run)); err != nil || len(names) != 0 {
		t.Errorf("kill %d at %v: the spill is still there: %v %v", n, points, names, err)
	}
	look("end")
	living.Add(0, bases[0], 1)
	truth.counter++
	look("a living writer's store")
	return points
}

// TestOwnerKilledWhileItDeclares kills the owner before each store of a declaration that takes a new extent.
func TestOwnerKilledWhileItDeclares(t *testing.T) {
	for n, done := 1, false; !done; n++ {
		s := newSuite(t, region.Options{})
		bases := s.declare(218) // of 222 that an extent has room for
		w := s.writer(1, 0)
		w.Add(0, bases[0], 7)
		s.store.Close()
		left := n
		s.options = region.WithStep(s.options, func(point string) {
			if left--; left == 0 {
				panic(killed{point})
			}
		})
		declare := func() {
			s.open()
			s.declare(226)
			if _, _, err := s.store.CreateSheet(1, 1); err != nil {
				t.Fatal(err)
			}
		}
		point := untilKilled(t, declare)
		done = point == ""
		s.store.Close()
		s.options = region.Options{}
		declare()
		again := s.declare(226)
		for i := 1; i < len(again); i++ {
			if again[i] < again[i-1]+groupCells {
				t.Fatalf("killed before %q: groups %d and %d overlap", point, i-1, i)
			}
		}
		if again[0] != bases[0] {
			t.Fatalf("killed before %q: group 0 moved from %d to %d", point, bases[0], again[0])
		}
		w.Add(0, again[225], 1)
		r := s.reader()
		want(t, read(t, r, 0), values{counter: 7})
		want(t, read(t, r, 225), values{counter: 1})
		w.Kill()
		s.store.Close()
	}
}

// TestReadersDuringFolds reads without a pause while sheet after sheet is written, ends and is folded: a reader that is
// in the middle of its sum when a fold is committed must begin anew.
func TestReadersDuringFolds(t *testing.T) {
	s := newSuite(t, region.Options{})
	s.declare(1)
	const folds = 300
	done := make(chan struct{})
	var readers sync.WaitGroup
	for range 2 {
		r := s.reader()
		readers.Go(func() {
			last := uint64(0)
			cells := make([]uint64, groupCells)
			for reads := 0; ; reads++ {
				select {
				case <-done:
					return
				default:
				}
				// Now and then with a fresh list of sheets, and mostly with whatever Read itself finds stale.
				if reads%50 == 0 {
					if err := r.Refresh(); err != nil {
						t.Error(err)
						return
					}
				}
				if err := r.Read(r.Groups()[0], cells); err != nil {
					t.Error(err)
					return
				}
				if cells[0] < last || cells[0] > folds {
					t.Errorf("%d after %d, of at most %d", cells[0], last, folds)
					return
				}
				last = cells[0]
			}
		})
	}
	for range folds {
		sheet, lock, err := s.store.CreateSheet(1, 0)
		if err != nil {
			t.Fatal(err)
		}
		// This process's own locks do not keep it from seeing the writer dead: it is, as soon as it is closed.
		w, err := region.AttachSheet(sheet, lock)
		if err != nil {
			t.Fatal(err)
		}
		cells, err := w.Cells(0, 1)
		if err != nil {
			t.Fatal(err)
		}
		cells[0]++
		w.Close()
		if n := s.fold(); n != 1 {
			t.Fatalf("folded %d", n)
		}
	}
	close(done)
	readers.Wait()
	want(t, read(t, s.reader(), 0), values{counter: folds})
}
