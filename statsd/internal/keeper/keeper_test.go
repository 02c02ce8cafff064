package keeper_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"

	"retinue.dev/statsd/internal/keeper"
)

func TestMain(m *testing.M) { regiontest.Main(m) }

type world struct {
	t   *testing.T
	now time.Time
	*keeper.Keeper
}

func newWorld(t *testing.T, options region.Options) *world {
	t.Helper()
	w := &world{t: t, now: time.Now()}
	options.Now = func() time.Time { return w.now }
	run := t.TempDir()
	if err := os.Mkdir(filepath.Join(run, "region"), 0o750); err != nil {
		t.Fatal(err)
	}
	k, err := keeper.Open(run, options)
	if err != nil {
		t.Fatal(err)
	}
	w.Keeper = k
	t.Cleanup(k.Close)
	return w
}

func (w *world) writer(generation uint64) *regiontest.Writer {
	w.t.Helper()
	sheet, lock, err := w.CreateSheet(generation, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return regiontest.Start(w.t, sheet, lock)
}

func TestRetire(t *testing.T) {
	w := newWorld(t, region.Options{})
	schemas, groups := regiontest.Declaration(3)
	bases, epoch, reason := w.Declare(1, schemas, groups)
	if reason != "" {
		t.Fatal(reason)
	}
	w.Declare(2, schemas, groups)
	old := w.writer(1)
	w.writer(2)
	w.Retire(2, epoch+2, bases) // another region's
	w.Retire(2, epoch, bases[:2])
	retired := func() int { w.Turn(); return w.Usage().Retired }
	pass := func(d time.Duration) {
		for ; d > 0; d -= time.Minute {
			w.now = w.now.Add(time.Minute)
			w.Turn()
		}
	}
	pass(2 * time.Hour)
	if n := retired(); n != 0 {
		t.Fatalf("%d groups retired while generation 1 lives, which names them", n)
	}
	old.Kill()
	pass(59 * time.Minute)
	if n := retired(); n != 0 {
		t.Fatalf("%d groups retired before the hour", n)
	}
	w.Declare(2, schemas, groups[1:2]) // a later snapshot names it again
	pass(5 * time.Minute)
	if n := retired(); n != 1 {
		t.Errorf("%d groups retired, want the one that nobody named again", n)
	}
	if u := w.Usage(); u.Groups != 2 || u.Folded != 1 {
		t.Errorf("%+v", u)
	}
	if again, _, _ := w.Declare(2, schemas, groups); again[0] != bases[0] || w.Usage().Retired != 0 {
		t.Errorf("declared again at %d, was at %d; %d retired", again[0], bases[0], w.Usage().Retired)
	}
}

// TestRetireAfterARestart: a new statsd does not know who names what, so those who live name everything; when they are
// dead, nobody does.
func TestRetireAfterARestart(t *testing.T) {
	w := newWorld(t, region.Options{})
	schemas, groups := regiontest.Declaration(2)
	w.Declare(1, schemas, groups)
	old := w.writer(1)
	dir := filepath.Dir(w.Dir())
	w.Keeper.Close()
	k, err := keeper.Open(dir, region.Options{Now: func() time.Time { return w.now }})
	if err != nil {
		t.Fatal(err)
	}
	w.Keeper = k
	t.Cleanup(k.Close)
	turns := func(n int) int {
		for range n {
			w.now = w.now.Add(time.Minute)
			w.Turn()
		}
		return w.Usage().Retired
	}
	if n := turns(90); n != 0 {
		t.Fatalf("%d groups retired under a living generation", n)
	}
	old.Kill()
	if n := turns(59); n != 0 {
		t.Fatalf("%d groups retired before the hour", n)
	}
	if n := turns(5); n != 2 {
		t.Errorf("%d groups retired, nobody names 2", n)
	}
}

// TestCompaction: when most cells are of hidden groups, a second region takes the place of the first, once an hour at most;
// the totals are the same, a living writer goes on, and the next Declare answers of the new epoch.
func TestCompaction(t *testing.T) {
	w := newWorld(t, region.Options{})
	const groupCells = 2 + region.HistogramCells
	schemas, groups := regiontest.Declaration(3*region.ExtentCells/groupCells + 1)
	bases, epoch, _ := w.Declare(1, schemas, groups)
	writer := w.writer(1)
	writer.Add(0, bases[0], 5)
	writer.Add(0, bases[len(bases)-1], 6)
	w.Retire(1, epoch, bases[2:])
	for range 130 {
		w.now = w.now.Add(time.Minute)
		w.Turn()
	}
	u := w.Usage()
	if u.Compacted != 1 || u.Groups != 2 || u.Retired != 0 || w.Epoch() == epoch {
		t.Fatalf("%+v, epoch %d after %d", u, w.Epoch(), epoch)
	}
	writer.Add(0, bases[0], 1)
	total := func() uint64 {
		t.Helper()
		r, err := region.OpenReader(w.Dir(), filepath.Dir(w.Dir()))
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		cells := make([]uint64, groupCells)
		if err := r.Read(r.Groups()[0], cells); err != nil {
			t.Fatal(err)
		}
		return cells[0]
	}
	if n := total(); n != 6 {
		t.Errorf("the living writer's 6 are %d", n)
	}
	again, now, _ := w.Declare(1, schemas, groups[:1])
	if now == epoch || again[0] != 0 {
		t.Errorf("declared at %d of epoch %d", again[0], now)
	}
	next := w.writer(1) // the same process, in the new region
	next.Add(0, again[0], 10)
	writer.Kill()
	w.Turn()
	w.Turn()
	if n := total(); n != 16 {
		t.Errorf("after the fold of the old region's sheet it is %d, 16 is right", n)
	}
	if names, err := os.ReadDir(region.SpillDir(filepath.Dir(w.Dir()))); err != nil || len(names) != 0 {
		t.Errorf("the old region is still there: %v %v", names, err)
	}
}

func TestRefusedIsCounted(t *testing.T) {
	w := newWorld(t, region.Options{MaxGroups: 5})
	schemas, groups := regiontest.Declaration(8)
	bases, _, reason := w.Declare(1, schemas, groups)
	if !strings.Contains(reason, "cap") || bases[4] == region.NoCell || bases[5] != region.NoCell {
		t.Errorf("%v %q", bases, reason)
	}
	if u := w.Usage(); u.Refused != 3 || u.Groups != 5 {
		t.Errorf("%+v", u)
	}
}

func TestTurnsRise(t *testing.T) {
	w := newWorld(t, region.Options{})
	before := w.Turns()
	w.Turn()
	if w.Turns() != before+1 {
		t.Error("the watchdog would starve")
	}
}
