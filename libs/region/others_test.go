package region_test

import (
	"testing"

	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"
)

// TestGroupsBeyondTheCap: they count in cells of their own and are shown as one; that is remembered over a restart of the
// owner, and stays so when the cap is raised or a group before them retires.
func TestGroupsBeyondTheCap(t *testing.T) {
	s := newSuite(t, region.Options{MaxSeries: 2})
	bases := s.declare(4)
	w := s.writer(1, 0)
	for i, base := range bases {
		w.Add(0, base, uint64(10+i))
	}
	shown := func() map[string]uint64 {
		t.Helper()
		sums := map[string]uint64{}
		r := s.reader()
		for i, g := range r.Groups() {
			if g.Shown() {
				sums[g.ShownLabels()[0].Value] += read(t, r, i).counter
			}
		}
		return sums
	}
	check := func(what string, want map[string]uint64) {
		t.Helper()
		got := shown()
		if len(got) != len(want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
		for name, v := range want {
			if got[name] != v {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
	}
	check("declared", map[string]uint64{"0": 10, "1": 11, region.OtherValue: 25})
	if others := s.store.Usage().Others["test"]; others != 2 {
		t.Errorf("%d groups beyond the cap, 2 are", others)
	}
	s.store.Close()
	s.open()
	s.store.SetMaxSeries(100)
	check("after a restart, with a greater cap", map[string]uint64{"0": 10, "1": 11, region.OtherValue: 25})
	for _, base := range []uint64{bases[0], bases[3]} {
		if err := s.store.Retire(base, true); err != nil {
			t.Fatal(err)
		}
	}
	check("one of each retired", map[string]uint64{"1": 11, region.OtherValue: 25})
	schemas, groups := regiontest.Declaration(5)
	if _, err := s.store.DeclareAll(schemas, groups[4:]); err != nil {
		t.Fatal(err)
	}
	check("a new one below the greater cap", map[string]uint64{"1": 11, region.OtherValue: 25, "4": 0})
}
