package region_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"
	statsv1 "retinue.dev/services/api/stats/v1"
)

const groupCells = 2 + region.HistogramCells // of regiontest.Declaration

// suite is a run directory with a region in it.
type suite struct {
	t       testing.TB
	run     string
	dir     string
	options region.Options
	store   *region.Store
}

func newSuite(t testing.TB, options region.Options) *suite {
	t.Helper()
	run := t.TempDir()
	s := &suite{t: t, run: run, dir: filepath.Join(run, "region"), options: options}
	s.open()
	t.Cleanup(func() { s.store.Close() })
	return s
}

func (s *suite) open() {
	s.t.Helper()
	var err error
	if s.store, err = region.Open(s.dir, s.options); err != nil {
		s.t.Fatal(err)
	}
}

func (s *suite) declare(groups int) []uint64 {
	s.t.Helper()
	bases, err := s.store.DeclareAll(regiontest.Declaration(groups))
	if err != nil {
		s.t.Fatal(err)
	}
	return bases
}

func (s *suite) writer(generation uint64, workers ...uint32) *regiontest.Writer {
	s.t.Helper()
	var fds []int
	for _, w := range workers {
		sheet, lock, err := s.store.CreateSheet(generation, w)
		if err != nil {
			s.t.Fatal(err)
		}
		fds = append(fds, sheet, lock)
	}
	return regiontest.Start(s.t, fds...)
}

func (s *suite) reader() *region.Reader {
	s.t.Helper()
	r, err := region.OpenReader(s.dir, s.run)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(r.Close)
	return r
}

func (s *suite) fold() int {
	s.t.Helper()
	n, err := s.store.Fold(s.run)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}

// values are a group's counter, gauge, and its histogram's count and sum.
type values struct{ counter, gauge, count, sum uint64 }

func read(t testing.TB, r *region.Reader, i int) values {
	t.Helper()
	if err := r.Refresh(); err != nil {
		t.Fatal(err)
	}
	return readNow(t, r, i)
}

func readNow(t testing.TB, r *region.Reader, i int) values {
	t.Helper()
	cells := make([]uint64, groupCells)
	if err := r.Read(r.Groups()[i], cells); err != nil {
		t.Fatal(err)
	}
	return values{cells[0], cells[1], region.HistogramCount(cells[2:]), cells[2+region.HistogramSum]}
}

func want(t testing.TB, got, want values) {
	t.Helper()
	if got != want {
		t.Errorf("read %+v, want %+v", got, want)
	}
}

// TestLayout reads the files with literal offsets: who changes the layout changes them here, in doc.go and the major.
func TestLayout(t *testing.T) {
	s := newSuite(t, region.Options{Now: func() time.Time { return time.Unix(1, 5) }})
	bases := s.declare(2)
	if bases[0] != 0 || bases[1] != 294 {
		t.Fatalf("bases %v", bases)
	}
	w := s.writer(7, 3)
	w.Add(0, 294, 9)
	file := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	check := func(what string, got, want uint64) {
		t.Helper()
		if got != want {
			t.Errorf("%s is %#x, want %#x", what, got, want)
		}
	}
	u16, u32, u64 := binary.LittleEndian.Uint16, binary.LittleEndian.Uint32, binary.LittleEndian.Uint64

	h := file("header")
	if len(h) != 262144 || string(h[:8]) != "RTNREGN1" {
		t.Errorf("header of %d bytes begins %q", len(h), h[:8])
	}
	check("major", uint64(u16(h[8:])), 1)
	check("minor", uint64(u16(h[10:])), 1)
	check("byte order", uint64(u32(h[12:])), 0x01020304)
	check("epoch", u64(h[16:]), s.store.Epoch())
	check("created", u64(h[24:]), 1_000_000_005)
	check("size", uint64(u32(h[32:])), 262144)
	check("table offset", uint64(u32(h[36:])), 4096)
	check("entry size", uint64(u32(h[40:])), 64)
	check("entries", uint64(u32(h[44:])), 4032)
	check("extent cells", uint64(u32(h[48:])), 65536)
	check("catalogue segment", uint64(u32(h[52:])), 1048576)
	committed := u64(h[64:])
	check("ledger", u64(h[128:]), 0)
	check("table word", u64(h[192:]), 2)
	check("next sheet", u64(h[256:]), 2)
	check("entry 0 ticket", u64(h[4096:]), 1)
	check("entry 0 kind", uint64(u32(h[4104:])), 1)
	check("entry 1 ticket", u64(h[4160:]), 2)
	check("entry 1 kind", uint64(u32(h[4168:])), 2)
	check("entry 1 worker", uint64(u32(h[4172:])), 3)
	check("entry 1 id", u64(h[4176:]), 1)
	check("entry 1 generation", u64(h[4184:]), 7)

	c := file("catalogue-0")
	check("catalogue size", uint64(len(c)), 1048576)
	first := uint64(u32(c))
	check("schema record", uint64(u16(c[4:])), 1)
	second := first + uint64(u32(c[first:]))
	check("group record", uint64(u16(c[first+4:])), 2)
	check("group payload", uint64(u32(c[first+8:])), 4+8+1+2+5+2+1)
	check("group schema", uint64(u32(c[first+16:])), 0)
	check("second group base", u64(c[second+20:]), 294)
	check("committed", committed, second+uint64(u32(c[second:])))

	p := file("sheet-1")
	if string(p[:8]) != "RTNSHEE1" {
		t.Errorf("sheet begins %q", p[:8])
	}
	check("sheet size", uint64(len(p)), 65536+524288)
	check("sheet epoch", u64(p[16:]), s.store.Epoch())
	check("sheet id", u64(p[24:]), 1)
	check("sheet generation", u64(p[32:]), 7)
	check("sheet worker", uint64(u32(p[40:])), 3)
	check("sheet extents", u64(p[64:]), 1)
	check("sheet state", u64(p[128:]), 1)
	check("cell 294", u64(p[65536+294*8:]), 9)

	w.Kill()
	s.fold()
	l := file("ledger-1")
	if string(l[:8]) != "RTNLEDG1" {
		t.Errorf("ledger begins %q", l[:8])
	}
	check("ledger size", uint64(len(l)), 64+16+588*8)
	check("ledger sequence", u64(l[24:]), 1)
	check("ledger ids", u64(l[32:]), 1)
	check("ledger cells", u64(l[40:]), 588)
	check("ledger id epoch", u64(l[64:]), s.store.Epoch())
	check("ledger id", u64(l[72:]), 1)
	check("ledger total 294", u64(l[80+294*8:]), 9)
	check("ledger word", u64(file("header")[128:]), 1)
	for _, name := range []string{"sheet-1", "lock-1"} {
		if _, err := os.Stat(filepath.Join(s.dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there after the fold: %v", name, err)
		}
	}
}

func TestDeathOfAWriter(t *testing.T) {
	s := newSuite(t, region.Options{})
	bases := s.declare(3)
	r := s.reader()
	one, two := s.writer(1, 0, region.MainWorker), s.writer(2, 0)
	one.Add(0, bases[1], 5)
	one.Add(1, bases[1], 6)
	two.Add(0, bases[1], 7)
	one.Add(0, bases[1]+1, 100)
	two.Add(0, bases[1]+1, 11)
	one.Observe(1, bases[1]+2, 1000)
	two.Observe(0, bases[1]+2, 24)
	want(t, read(t, r, 1), values{18, 111, 2, 1024})
	if n := s.fold(); n != 0 {
		t.Fatalf("%d sheets of living writers were folded", n)
	}

	one.Kill()
	want(t, read(t, r, 1), values{18, 11, 2, 1024}) // before the fold: counted where it lies, gauges gone
	if n := s.fold(); n != 2 {
		t.Fatalf("folded %d sheets, want 2", n)
	}
	want(t, readNow(t, r, 1), values{18, 11, 2, 1024})
	two.Add(0, bases[1], 1)
	want(t, read(t, r, 1), values{19, 11, 2, 1024})
	two.Kill()
	if n := s.fold(); n != 1 {
		t.Fatalf("folded %d sheets, want 1", n)
	}
	want(t, read(t, r, 1), values{19, 0, 2, 1024})
	want(t, read(t, r, 0), values{})
	if n := s.fold(); n != 0 {
		t.Fatalf("folded %d sheets twice", n)
	}
	want(t, read(t, s.reader(), 1), values{19, 0, 2, 1024})
}

// TestKilledWhileItCounts kills a writer in the middle of its stores: what it stored last is what is kept.
func TestKilledWhileItCounts(t *testing.T) {
	s := newSuite(t, region.Options{})
	s.declare(1)
	r := s.reader()
	w := s.writer(1, 0)
	w.Spin(0, 0)
	last := uint64(0)
	for last < 1_000_000 {
		v := read(t, r, 0).counter
		if v < last {
			t.Fatalf("the counter went from %d to %d", last, v)
		}
		last = v
	}
	w.Kill()
	before := read(t, r, 0).counter
	s.fold()
	if after := read(t, r, 0).counter; after != before || after < last {
		t.Errorf("%d before the fold, %d after", before, after)
	}
}

func TestAdoption(t *testing.T) {
	s := newSuite(t, region.Options{})
	bases := s.declare(2)
	epoch := s.store.Epoch()
	w := s.writer(1, 0)
	w.Add(0, bases[0], 3)
	s.store.Close() // as a kill -9 leaves it
	if second, err := region.Open(s.dir, region.Options{}); err != nil {
		t.Fatal(err)
	} else {
		s.store = second
	}
	if s.store.Epoch() != epoch {
		t.Fatalf("epoch %x became %x", epoch, s.store.Epoch())
	}
	again := s.declare(3)
	if again[0] != bases[0] || again[1] != bases[1] || again[2] == region.NoCell {
		t.Errorf("bases %v became %v", bases, again)
	}
	w.Add(0, again[2], 8) // the writer goes on, in the sheet that the new owner has grown
	r := s.reader()
	want(t, read(t, r, 0), values{counter: 3})
	want(t, read(t, r, 2), values{counter: 8})
	w.Kill()
	if n := s.fold(); n != 1 {
		t.Errorf("folded %d sheets of the former owner's, want 1", n)
	}
	want(t, read(t, r, 0), values{counter: 3})
}

func TestGrowthWhileAWriterRuns(t *testing.T) {
	s := newSuite(t, region.Options{})
	s.declare(1)
	w := s.writer(1, 0)
	w.Spin(0, 0)
	r := s.reader()
	// 70,000 cells a fifth of them: past several extents; 1,000 labels of 3 KiB: past two catalogue segments.
	wide := &statsv1.Schema{Name: "wide"}
	for i := range 60 {
		wide.Fields = append(wide.Fields, &statsv1.Field{Name: fmt.Sprintf("h%d", i), Kind: statsv1.Kind_KIND_HISTOGRAM})
	}
	narrow := &statsv1.Schema{Name: "narrow", Fields: []*statsv1.Field{{Name: "n", Kind: statsv1.Kind_KIND_COUNTER}}}
	var groups []*statsv1.Group
	for i := range 1000 {
		g := &statsv1.Group{Schema: 1, Labels: []*statsv1.Label{{Name: "l", Value: strings.Repeat("x", 3000) + fmt.Sprint(i)}}}
		if i%100 == 0 {
			g.Schema = 0
		}
		groups = append(groups, g)
	}
	bases, err := s.store.DeclareAll([]*statsv1.Schema{wide, narrow}, groups)
	if err != nil {
		t.Fatal(err)
	}
	for i, base := range bases {
		n := uint64(1)
		if i%100 == 0 {
			n = 60 * region.HistogramCells
		}
		if base/region.ExtentCells != (base+n-1)/region.ExtentCells {
			t.Fatalf("group %d at %d crosses an extent", i, base)
		}
		if i%50 == 0 {
			w.Add(0, base+n-1, uint64(i)+1)
		}
	}
	if last := bases[999]; last < 2*region.ExtentCells {
		t.Fatalf("only %d cells: not past an extent", last)
	}
	check := func(r *region.Reader) {
		t.Helper()
		all := r.Groups()
		if len(all) != 1001 {
			t.Fatalf("%d groups", len(all))
		}
		for i := 0; i < 1000; i += 50 {
			g := all[i+1]
			cells := make([]uint64, g.Schema.Cells)
			if err := r.Read(g, cells); err != nil {
				t.Fatal(err)
			}
			if cells[len(cells)-1] != uint64(i)+1 {
				t.Errorf("group %d holds %d", i, cells[len(cells)-1])
			}
			if g.Labels[0].Value != groups[i].Labels[0].Value {
				t.Errorf("group %d has another label", i)
			}
		}
	}
	if err := r.Refresh(); err != nil {
		t.Fatal(err)
	}
	check(r)
	if before := readNow(t, r, 0).counter; before == readNow(t, r, 0).counter && before == read(t, r, 0).counter {
		t.Logf("the spinning writer was not scheduled between three reads")
	}
	s.store.Close()
	s.open()
	w.Kill()
	s.fold()
	check(s.reader())
}

func TestFullTmpfs(t *testing.T) {
	left := int64(1 << 40)
	options := region.Options{Allocate: func(fd int, offset, length int64) error {
		if left < length {
			return unix.ENOSPC
		}
		left -= length
		return region.AllocateBlocks(fd, offset, length)
	}}
	s := newSuite(t, options)
	bases := s.declare(200) // not yet a whole extent
	w := s.writer(1, 0)
	w.Add(0, bases[0], 1)

	left = 100 << 10 // less than an extent
	schemas, groups := regiontest.Declaration(250)
	got, err := s.store.DeclareAll(schemas, groups)
	if !errors.Is(err, region.ErrFull) {
		t.Fatalf("a full tmpfs: %v", err)
	}
	if got[221] == region.NoCell || got[222] != region.NoCell || got[249] != region.NoCell {
		t.Errorf("65536/294 = 222 groups fit: %d %d %d", got[221], got[222], got[249])
	}
	if _, _, err := s.store.CreateSheet(2, 0); !errors.Is(err, region.ErrFull) {
		t.Errorf("a sheet in a full tmpfs: %v", err)
	}
	r := s.reader()
	want(t, read(t, r, 0), values{counter: 1})

	w.Kill()
	left = 0 // no room for the ledger: the dead sheet is counted where it lies
	if _, err := s.store.Fold(s.run); !errors.Is(err, region.ErrFull) {
		t.Errorf("a fold in a full tmpfs: %v", err)
	}
	want(t, read(t, r, 0), values{counter: 1})

	left = 1 << 40
	if n := s.fold(); n != 1 {
		t.Errorf("folded %d when there was room again", n)
	}
	want(t, read(t, r, 0), values{counter: 1})
	if got := s.declare(250); got[249] == region.NoCell {
		t.Error("refused when there was room again")
	}
}

func TestDeclareRefuses(t *testing.T) {
	s := newSuite(t, region.Options{MaxGroups: 2})
	counter := []*statsv1.Field{{Name: "a", Kind: statsv1.Kind_KIND_COUNTER}}
	label := func(name, value string) []*statsv1.Label { return []*statsv1.Label{{Name: name, Value: value}} }
	many := make([]*statsv1.Field, 225)
	for i := range many {
		many[i] = &statsv1.Field{Name: fmt.Sprintf("h%d", i), Kind: statsv1.Kind_KIND_HISTOGRAM}
	}
	for name, c := range map[string]struct {
		schema *statsv1.Schema
		group  *statsv1.Group
		want   string
	}{
		"no name":         {&statsv1.Schema{Fields: counter}, &statsv1.Group{}, "a name is"},
		"capitals":        {&statsv1.Schema{Name: "Http", Fields: counter}, &statsv1.Group{}, "a name is"},
		"no field":        {&statsv1.Schema{Name: "x"}, &statsv1.Group{}, "has 0 fields"},
		"kind":            {&statsv1.Schema{Name: "x", Fields: []*statsv1.Field{{Name: "a", Kind: 9}}}, &statsv1.Group{}, "kind 9"},
		"too wide":        {&statsv1.Schema{Name: "x", Fields: many}, &statsv1.Group{}, "65700 cells"},
		"label name":      {&statsv1.Schema{Name: "x", Fields: counter}, &statsv1.Group{Labels: label("a-b", "")}, "not a label's name"},
		"reserved label":  {&statsv1.Schema{Name: "x", Fields: counter}, &statsv1.Group{Labels: label("le", "")}, "not a label's name"},
		"long value":      {&statsv1.Schema{Name: "x", Fields: counter}, &statsv1.Group{Labels: label("a", strings.Repeat("x", 4097))}, "4097 bytes"},
		"twice":           {&statsv1.Schema{Name: "x", Fields: counter}, &statsv1.Group{Labels: append(label("a", "1"), label("a", "2")...)}, "given twice"},
		"field and group": {&statsv1.Schema{Name: "x", Fields: []*statsv1.Field{{Name: "a", Kind: 1, Labels: label("c", "1")}}}, &statsv1.Group{Labels: label("c", "2")}, "both"},
		"no schema":       {&statsv1.Schema{Name: "x", Fields: counter}, &statsv1.Group{Schema: 1}, "names schema 1 of 1"},
	} {
		t.Run(name, func(t *testing.T) {
			bases, err := s.store.DeclareAll([]*statsv1.Schema{c.schema}, []*statsv1.Group{c.group})
			if err == nil || !strings.Contains(err.Error(), c.want) || bases[0] != region.NoCell {
				t.Errorf("base %d, error %v, want %q", bases[0], err, c.want)
			}
		})
	}
	schemas, groups := regiontest.Declaration(3)
	bases, err := s.store.DeclareAll(schemas, groups)
	if !errors.Is(err, region.ErrCap) || bases[1] == region.NoCell || bases[2] != region.NoCell {
		t.Fatalf("over the cap of 2: %v %v", bases, err)
	}
	if err := s.store.Retire(bases[0], true); err != nil {
		t.Fatal(err)
	}
	if _, err = s.store.DeclareAll(schemas, groups[2:]); err != nil {
		t.Errorf("a retired group still counts to the cap: %v", err)
	}
	s.store.Close()
	s.open()
	if got := s.store.Usage(); got.Groups != 2 || got.Retired != 1 {
		t.Errorf("adopted %d groups, %d retired", got.Groups, got.Retired)
	}
	if s.store.Retire(999, true) == nil {
		t.Error("a group that is not there was retired")
	}
}

func TestUnreadableRegionIsPutAside(t *testing.T) {
	for name, damage := range map[string]func(dir string) error{
		"header magic":   func(d string) error { return os.WriteFile(filepath.Join(d, "header"), make([]byte, 262144), 0o600) },
		"header cut":     func(d string) error { return os.Truncate(filepath.Join(d, "header"), 100) },
		"catalogue cut":  func(d string) error { return os.Truncate(filepath.Join(d, "catalogue-0"), 4096) },
		"catalogue torn": func(d string) error { return patch(filepath.Join(d, "catalogue-0"), 20, 0xff) },
		"catalogue gone": func(d string) error { return os.Remove(filepath.Join(d, "catalogue-0")) },
		"ledger torn":    func(d string) error { return patch(filepath.Join(d, "ledger-1"), 100, 0xff) },
		"sheet gone":     func(d string) error { return os.Remove(filepath.Join(d, "sheet-2")) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSuite(t, region.Options{})
			s.declare(2)
			s.writer(1, 0).Kill()
			s.fold()
			s.writer(1, 0)
			epoch := s.store.Epoch()
			s.store.Close()
			if err := damage(s.dir); err != nil {
				t.Fatal(err)
			}
			s.open()
			if s.store.Epoch() == epoch {
				t.Error("the same epoch")
			}
			if u := s.store.Usage(); u.Groups != 0 {
				t.Errorf("%d groups", u.Groups)
			}
			if _, err := os.Stat(s.dir + ".damaged/owner"); err != nil {
				t.Errorf("not kept: %v", err)
			}
		})
	}
}

func patch(path string, offset int64, b byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte{b}, offset)
	return err
}

func TestOneOwner(t *testing.T) {
	s := newSuite(t, region.Options{})
	s.declare(1)
	w := regiontest.Start(t)
	w.Spill(s.run, 1, 1)
	spills, err := os.ReadDir(region.SpillDir(s.run))
	if err != nil || len(spills) != 1 {
		t.Fatal(spills, err)
	}
	_, err = region.Open(filepath.Join(region.SpillDir(s.run), spills[0].Name()), region.Options{})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d owns it", w.Pid())) {
		t.Errorf("a second owner: %v", err)
	}
}

// TestWritersOneByOne: what one writer counts can be told from the others', and a dead one's gauges are 0.
func TestWritersOneByOne(t *testing.T) {
	s := newSuite(t, region.Options{})
	bases := s.declare(1)
	w := s.writer(7, 0, region.MainWorker)
	other := s.writer(8, 0)
	w.Add(0, bases[0], 3)   // counter
	w.Add(0, bases[0]+1, 5) // gauge
	w.Add(1, bases[0], 4)
	other.Add(0, bases[0], 10)
	r := s.reader()
	check := func(want string) {
		t.Helper()
		var got []string
		cells := make([]uint64, r.Groups()[0].Schema.Cells)
		for _, w := range r.Writers() {
			if err := r.ReadWriter(w, r.Groups()[0], cells); err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%d.%d live=%v %d %d", w.Generation, int32(w.Worker), w.Live, cells[0], cells[1]))
		}
		if all := strings.Join(got, ", "); all != want {
			t.Errorf("got  %s\nwant %s", all, want)
		}
	}
	check("7.0 live=true 3 5, 7.-1 live=true 4 0, 8.0 live=true 10 0")
	w.Kill()
	if err := r.Refresh(); err != nil {
		t.Fatal(err)
	}
	check("7.0 live=false 3 0, 7.-1 live=false 4 0, 8.0 live=true 10 0")
	s.fold()
	if err := r.Refresh(); err != nil {
		t.Fatal(err)
	}
	check("8.0 live=true 10 0")
}
