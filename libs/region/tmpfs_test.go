package region_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"
)

// TestTmpfsFillsUnderWriters: on a real tmpfs that has no room left, declaring is refused and neither a writer nor a fold
// faults; nothing counted is lost, and with room again everything goes on.
func TestTmpfsFillsUnderWriters(t *testing.T) {
	run := t.TempDir()
	if err := unix.Mount("tmpfs", run, "tmpfs", 0, "size=6m"); err != nil {
		t.Skipf("a tmpfs of the test's own needs the right to mount: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(run, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	s := &suite{t: t, run: run, dir: filepath.Join(run, "region")}
	s.open()
	t.Cleanup(func() { s.store.Close() })
	bases := s.declare(1)
	w, other := s.writer(1, 0), s.writer(1, 1)
	w.Spin(0, bases[0])
	other.Add(0, bases[0]+2+region.HistogramOverflow, 1) // the last cell of the group

	// Somebody else takes what is left, a little at a time, while groups are declared: some are refused in the middle.
	ballast, err := os.Create(filepath.Join(run, "ballast"))
	if err != nil {
		t.Fatal(err)
	}
	defer ballast.Close()
	var size int64
	schemas, groups := regiontest.Declaration(4 * region.ExtentCells / groupCells)
	declared, refused := 0, 0
	for i := range groups {
		for range 8 {
			if unix.Fallocate(int(ballast.Fd()), 0, size, 4096) == nil {
				size += 4096
			}
		}
		got, err := s.store.DeclareAll(schemas, groups[i:i+1])
		switch {
		case err == nil:
			declared++
			// What was announced can be written to its very end.
			other.Add(0, got[0], 1)
			other.Add(0, got[0]+groupCells-1, 1)
		case errors.Is(err, region.ErrFull) && got[0] == region.NoCell:
			refused++
		default:
			t.Fatalf("group %d: %v", i, err)
		}
	}
	if declared == 0 || refused == 0 {
		t.Fatalf("%d groups were declared and %d refused: the test wants both", declared, refused)
	}
	r := s.reader()
	before := read(t, r, 0)
	// A dead writer's sheet cannot be folded now; it is counted where it lies.
	other.Kill()
	if _, err := s.store.Fold(s.run); !errors.Is(err, region.ErrFull) {
		t.Logf("the fold had room: %v", err)
	}
	after := read(t, r, 0)
	if after.counter < before.counter || after.count != before.count {
		t.Errorf("%+v became %+v", before, after)
	}
	for deadline := time.Now().Add(10 * time.Second); read(t, r, 0).counter == after.counter; {
		if time.Now().After(deadline) {
			t.Fatal("the spinning writer does not count any more")
		}
	}
	if err := os.Remove(ballast.Name()); err != nil {
		t.Fatal(err)
	}
	ballast.Close()
	s.fold()
	if got, err := s.store.DeclareAll(schemas, groups); err != nil || got[len(got)-1] == region.NoCell {
		t.Errorf("with room again: %v", err)
	}
	if got := read(t, r, 0); got.count != after.count {
		t.Errorf("the dead writer's %d observations are %d after the fold", after.count, got.count)
	}
	if n := s.store.Usage().SheetsDead; n != 0 {
		t.Errorf("%d dead sheets are left", n)
	}
}
