package region_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"
)

// TestSheetCutOffByItsWriter: a writer has its sheet's descriptor, so it can truncate the file under those who map it.
func TestSheetCutOffByItsWriter(t *testing.T) {
	s := newSuite(t, region.Options{})
	bases := s.declare(1)
	good := s.writer(1, 0)
	good.Add(0, bases[0], 4)
	bad := s.writer(2, 0)
	bad.Add(0, bases[0], 1)
	r := s.reader()
	want(t, read(t, r, 0), values{counter: 5}) // mapped now
	bad.CutSheet(3)
	want(t, read(t, r, 0), values{counter: 4})
	if r.Broken() == 0 {
		t.Error("a sheet that was cut off is not told")
	}
	if _, err := s.store.DeclareAll(regiontest.Declaration(300)); err == nil {
		t.Log("the declaration grew a sheet that was cut off") // grown again by fallocate: allowed, harmless
	}
	bad.Kill()
	if n := s.fold(); n != 1 {
		t.Errorf("folded %d, want the cut sheet", n)
	}
	good.Kill()
	s.fold()
	want(t, read(t, r, 0), values{counter: 4})
}

func TestAbandonedSheet(t *testing.T) {
	now := time.Unix(1000, 0)
	s := newSuite(t, region.Options{Now: func() time.Time { return now }})
	s.declare(1)
	sheet, lock, err := s.store.CreateSheet(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(sheet)
	if n := s.fold(); n != 0 {
		t.Fatal("a sheet was folded before its writer could come")
	}
	now = now.Add(2 * time.Minute)
	if n := s.fold(); n != 1 {
		t.Fatalf("folded %d, want the sheet whose writer never came", n)
	}
	late, err := unix.Dup(sheet)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := region.AttachSheet(late, lock); err == nil {
		t.Error("a writer attached a sheet that was given up")
	}
}

func TestSheetIsAttachedOnce(t *testing.T) {
	s := newSuite(t, region.Options{})
	s.declare(1)
	sheet, lock, err := s.store.CreateSheet(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	a, b := dup(t, sheet), dup(t, lock)
	w := regiontest.Start(t, a, b)
	if _, err := region.AttachSheet(dup(t, sheet), dup(t, lock)); err == nil {
		t.Error("two writers of one sheet")
	}
	w.Kill()
	if _, err := region.AttachSheet(sheet, lock); err == nil {
		t.Error("a second writer after the first one's death: its gauges would be summed with a dead one's")
	}
}

func dup(t *testing.T, fd int) int {
	t.Helper()
	n, err := unix.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestCellsOutOfBounds(t *testing.T) {
	s := newSuite(t, region.Options{})
	s.declare(1)
	sheet, lock, err := s.store.CreateSheet(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	w, err := region.AttachSheet(sheet, lock)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		base uint64
		n    int
	}{
		"refused":     {region.NoCell, 1},
		"unannounced": {region.ExtentCells, 1},
		"far":         {1 << 40, 1},
		"crossing":    {region.ExtentCells - 1, 2},
		"negative":    {0, -1},
	} {
		if cells, err := w.Cells(c.base, c.n); err == nil {
			t.Errorf("%s: %d cells", name, len(cells))
		}
	}
	cells, err := w.Cells(0, groupCells)
	if err != nil || len(cells) != groupCells || cap(cells) != groupCells {
		t.Errorf("%d cells of capacity %d: %v", len(cells), cap(cells), err)
	}
	w.Close()
	if _, err := w.Cells(0, 1); err == nil {
		t.Error("cells of a closed sheet")
	}
}

func TestSpillOfTheLiving(t *testing.T) {
	s := newSuite(t, region.Options{})
	s.declare(1)
	w := regiontest.Start(t)
	w.Spill(s.run, 4, 2)
	w.Add(0, 0, 1)
	w.Add(1, 0, 2)
	w.Add(1, 1, 30)
	w.Add(1, groupCells, 5)
	w.Observe(0, 2, 99)
	r := s.reader()
	want(t, read(t, r, 0), values{3, 30, 1, 99})
	want(t, read(t, r, 1), values{counter: 5}) // a group that only the spill has
	if n := s.fold(); n != 0 {
		t.Fatalf("folded %d sheets of the living", n)
	}
	if u := s.store.Usage(); u.Groups != 2 {
		t.Errorf("%d groups: the spill's own was not declared", u.Groups)
	}
	want(t, read(t, r, 1), values{counter: 5})
	w.Kill()
	want(t, read(t, r, 0), values{3, 0, 1, 99})
	if n := s.fold(); n != 2 {
		t.Errorf("folded %d, want 2", n)
	}
	want(t, readNow(t, r, 0), values{3, 0, 1, 99})
	s.fold()
	want(t, read(t, r, 0), values{3, 0, 1, 99})
	want(t, read(t, r, 1), values{counter: 5})
	if names, _ := os.ReadDir(region.SpillDir(s.run)); len(names) != 0 {
		t.Errorf("%d spills are left", len(names))
	}
}

func TestPlace(t *testing.T) {
	shm := t.TempDir()
	find := func(run string) string {
		t.Helper()
		dir, err := region.FindIn(run, "/dev/shm")
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
	var shmType unix.Statfs_t
	if err := unix.Statfs("/dev/shm", &shmType); err != nil || shmType.Type != unix.TMPFS_MAGIC {
		t.Skip("/dev/shm is no tmpfs here")
	}
	inMemory, err := os.MkdirTemp("/dev/shm", "regiontest-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(inMemory)
	if got := find(inMemory); got != filepath.Join(inMemory, "region") {
		t.Errorf("a run directory on tmpfs has its region in %s", got)
	}
	if got, err := region.FindIn(inMemory, shm); err != nil || got != filepath.Join(inMemory, "region") {
		t.Error(got, err)
	}

	run := filepath.Join(inMemory, "disk")
	if err := os.Mkdir(run, 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := region.PlaceIn(run, shm); err != nil || got != filepath.Join(run, "region") {
		t.Error(got, err)
	}
	if _, err := region.FindIn(filepath.Join(run, "absent"), shm); err == nil {
		t.Error("the region of a directory that is not there")
	}
	if err := os.Chmod(filepath.Join(run, "region"), 0o777); err != nil {
		t.Fatal(err)
	}
	disk := t.TempDir()
	var st unix.Statfs_t
	if err := unix.Statfs(disk, &st); err == nil && st.Type != unix.TMPFS_MAGIC {
		got, err := region.PlaceIn(disk, inMemory)
		if err != nil || filepath.Dir(got) != inMemory {
			t.Fatal(got, err)
		}
		if again, err := region.PlaceIn(disk, inMemory); err != nil || again != got {
			t.Error(again, err)
		}
		if err := os.RemoveAll(disk); err != nil {
			t.Fatal(err)
		}
		other := t.TempDir()
		if _, err := region.PlaceIn(other, inMemory); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(got); err == nil {
			t.Error("the region of a run directory that has gone is kept in memory for ever")
		}
		squatted, err := region.FindIn(other, inMemory)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(squatted, 0o777); err != nil {
			t.Fatal(err)
		}
		if _, err := region.PlaceIn(other, inMemory); err == nil {
			t.Error("a region that everybody can write was taken")
		}
	}
}

// FuzzReader changes bytes of a valid region's files, cuts them off, or puts anything in their place. A reader may
// refuse or leave out; it may not panic, fault, hang or grow without bound, and what it reports is a sum of numbers that
// were written: of the ledger's 1 and the sheet's 2 in one cell, and of nothing anywhere else.
func FuzzReader(f *testing.F) {
	s := newSuite(f, region.Options{})
	s.declare(3)
	folded := s.writer(1, 0)
	folded.Add(0, 0, 1)
	folded.Kill()
	s.fold()
	s.writer(2, 0).Add(0, 0, 2)
	regiontest.Start(f).Spill(s.run, 3, 4)
	s.store.Close()
	files := map[string][]byte{}
	var names []string
	err := filepath.Walk(s.run, func(path string, info os.FileInfo, err error) error {
		if err != nil || info.IsDir() {
			return err
		}
		name, _ := filepath.Rel(s.run, path)
		b, err := os.ReadFile(path)
		files[name] = b
		names = append(names, name)
		return err
	})
	if err != nil {
		f.Fatal(err)
	}
	for i := range names {
		f.Add(uint8(i), uint32(0), []byte("garbage!garbage!"), int32(-1))
		f.Add(uint8(i), uint32(64), []byte{255, 255, 255, 255, 255, 255, 255, 255}, int32(-1))
		f.Add(uint8(i), uint32(16), []byte{1}, int32(100))
		f.Add(uint8(i), uint32(8), []byte{1, 0, 0, 0, 255, 255, 255, 127}, int32(4096))
	}
	f.Add(uint8(1), uint32(4096+8), []byte{9, 0, 0, 0}, int32(-1))
	work := f.TempDir()
	f.Fuzz(func(t *testing.T, file uint8, offset uint32, patch []byte, size int32) {
		run, err := os.MkdirTemp(work, "run")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(run)
		name := names[int(file)%len(names)]
		const firstCell = 64 << 10 // in a sheet
		cellsChanged := strings.Contains(name, "sheet-") && int(offset)%(len(files[name])+1)+len(patch) > firstCell
		for n, b := range files {
			path := filepath.Join(run, n)
			os.MkdirAll(filepath.Dir(path), 0o700)
			if n != name {
				if err := os.Link(filepath.Join(s.run, n), path); err != nil {
					t.Fatal(err)
				}
				continue
			}
			changed := append([]byte(nil), b...)
			if at := int(offset) % (len(b) + 1); len(patch) > 0 {
				changed = append(changed[:at], append(patch, changed[min(len(b), at+len(patch)):]...)...)
			}
			if size >= 0 && int(size) < len(changed) {
				changed = changed[:size]
			}
			if err := os.WriteFile(path, changed, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r, err := region.OpenReader(filepath.Join(run, "region"), run)
		if err != nil {
			return
		}
		defer r.Close()
		path := filepath.Join(run, name)
		for range 2 {
			groups := r.Groups()
			if len(groups) > 100_000 {
				t.Fatalf("%d groups of a catalogue of 1 MiB", len(groups))
			}
			for _, g := range groups {
				if g.Schema.Cells > region.ExtentCells {
					t.Fatalf("a group of %d cells", g.Schema.Cells)
				}
				cells := make([]uint64, g.Schema.Cells)
				if err := r.Read(g, cells); err != nil || cellsChanged {
					continue
				}
				for i, v := range cells {
					if written := i == 0 && g.Labels[0].Value == "0"; v > 3 || v > 0 && !written {
						t.Fatalf("cell %d of group %v is %d, which nobody wrote", i, g.Labels, v)
					}
				}
			}
			// And now the file is cut off under the reader's mapping.
			if err := os.Truncate(path, int64(binary.LittleEndian.Uint16(append(patch, 0, 0)))); err != nil {
				t.Fatal(err)
			}
			_ = r.Refresh()
		}
	})
}
