package cluster

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
)

// at is an endpoint of a priority and a locality with words of metadata.
func at(address string, priority uint32, locality string, words ...string) *configv1.Endpoint {
	return &configv1.Endpoint{Address: address, Priority: priority, Locality: locality, Metadata: metadata(words...)}
}

// graded puts the hosts into their grades by address.
func graded(grades map[string]Grade) func(*Host) Standing {
	return func(h *Host) Standing { return Standing{Grade: grades[h.Address]} }
}

// shares draws often and tells who got how many percent, and whether some of it was in panic.
func shares(t *testing.T, set *HostSet, c *Choice) (map[string]float64, Mode) {
	t.Helper()
	const draws = 30_000
	var b Balancer
	b.Reset(set, 5)
	rng := rand.New(rand.NewPCG(11, 12))
	active := make([]uint32, len(set.Hosts))
	got, modes := map[string]float64{}, Mode(0)
	for range draws {
		ask := c
		if set.rule.hashes() {
			ask = &Choice{Hash: rng.Uint64(), Hashed: true}
			if c != nil {
				ask.Subset = c.Subset
			}
		}
		i, mode := b.Choose(rng.Uint64(), active, ask)
		modes |= mode
		if i < 0 {
			got["nobody"] += 100.0 / draws
			continue
		}
		got[set.Hosts[i].Address] += 100.0 / draws
	}
	return got, modes
}

func expect(t *testing.T, got map[string]float64, want map[string]float64, slack float64) {
	t.Helper()
	for address, percent := range want {
		if math.Abs(got[address]-percent) > slack {
			t.Errorf("%s got %.1f %%, want %.1f: %v", address, got[address], percent, got)
		}
	}
	for address, percent := range got {
		if _, known := want[address]; !known && percent > 0 {
			t.Errorf("%s got %.1f %%, want none", address, percent)
		}
	}
}

var policies = []configv1.Balance{
	configv1.Balance_BALANCE_ROUND_ROBIN, configv1.Balance_BALANCE_LEAST_REQUEST, configv1.Balance_BALANCE_RANDOM,
	configv1.Balance_BALANCE_RING_HASH, configv1.Balance_BALANCE_MAGLEV,
}

// TestPriorities has the examples of Envoy's documentation of priority levels and panic, for every policy.
func TestPriorities(t *testing.T) {
	const percent = 100
	level := func(priority uint32, healthy, degraded, ill int) (list []*configv1.Endpoint, grades map[string]Grade) {
		grades = map[string]Grade{}
		for i := range healthy + degraded + ill {
			e := at(fmt.Sprintf("10.0.%d.%d:80", priority, i+1), priority, "")
			switch {
			case i >= healthy+degraded:
				grades[e.Address] = Unhealthy
			case i >= healthy:
				grades[e.Address] = Degraded
			}
			list = append(list, e)
		}
		return list, grades
	}
	type counts struct{ healthy, degraded, ill int }
	for _, test := range []struct {
		name   string
		levels []counts
		want   []float64 // percent by priority
		panics bool
	}{
		{"all are well", []counts{{10, 0, 0}, {10, 0, 0}}, []float64{100, 0}, false},
		{"72 percent are enough", []counts{{72, 0, 28}, {100, 0, 0}}, []float64{100, 0}, false},
		{"71 percent are not quite", []counts{{71, 0, 29}, {100, 0, 0}}, []float64{99, 1}, false},
		{"a half", []counts{{50, 0, 50}, {100, 0, 0}}, []float64{70, 30}, false},
		{"a quarter each", []counts{{25, 0, 75}, {100, 0, 0}}, []float64{35, 65}, false},
		{"nobody in the first", []counts{{0, 0, 10}, {10, 0, 0}}, []float64{0, 100}, false},
		{"too few in both", []counts{{2, 0, 8}, {2, 0, 8}}, []float64{50, 50}, true},
		{"nobody at all", []counts{{0, 0, 4}, {0, 0, 4}}, []float64{50, 50}, true},
		{"degraded ones before panic", []counts{{2, 8, 0}, {0, 0, 0}}, []float64{100, 0}, false},
		{"the next priority before degraded ones", []counts{{5, 5, 0}, {10, 0, 0}}, []float64{70, 30}, false},
		{"one in panic, one not", []counts{{1, 0, 9}, {6, 0, 4}}, []float64{15, 85}, true},
	} {
		for _, policy := range policies {
			t.Run(test.name+"/"+policy.String(), func(t *testing.T) {
				var list []*configv1.Endpoint
				grades := map[string]Grade{}
				priority := map[string]int{}
				for p, n := range test.levels {
					endpoints, of := level(uint32(p), n.healthy, n.degraded, n.ill)
					list = append(list, endpoints...)
					for address, grade := range of {
						grades[address] = grade
					}
					for _, e := range endpoints {
						priority[e.Address] = p
					}
				}
				set := hosts(t, &configv1.Cluster{Balance: policy}, list).Judge(graded(grades))
				got, mode := shares(t, set, nil)
				sums := make([]float64, len(test.levels))
				for address, share := range got {
					sums[priority[address]] += share
					if grades[address] == Unhealthy && !test.panics && share > 0 {
						t.Errorf("%s is ill and got %.1f %%", address, share)
					}
				}
				for p, want := range test.want {
					if math.Abs(sums[p]-want) > 1 {
						t.Errorf("priority %d got %.1f of %d %%, want %.0f", p, sums[p], percent, want)
					}
				}
				if panics := mode&Panicked != 0; panics != test.panics {
					t.Errorf("panic is %v, want %v", panics, test.panics)
				}
			})
		}
	}
}

func TestDegradedHostsTakeWhatIsLeft(t *testing.T) {
	list := []*configv1.Endpoint{at("10.0.0.1:80", 0, ""), at("10.0.0.2:80", 0, ""), at("10.0.0.3:80", 0, ""), at("10.0.0.4:80", 0, "")}
	set := hosts(t, &configv1.Cluster{}, list).Judge(graded(map[string]Grade{
		"10.0.0.3:80": Degraded, "10.0.0.4:80": Unhealthy, "10.0.0.2:80": Degraded,
	}))
	got, _ := shares(t, set, nil) // one healthy of four can take 35 %
	expect(t, got, map[string]float64{"10.0.0.1:80": 35, "10.0.0.2:80": 32.5, "10.0.0.3:80": 32.5}, 1)
}

func TestPanic(t *testing.T) {
	list := many(4)
	ill := map[string]Grade{list[0].Address: Unhealthy, list[1].Address: Unhealthy, list[2].Address: Unhealthy}
	all := map[string]float64{list[0].Address: 25, list[1].Address: 25, list[2].Address: 25, list[3].Address: 25}
	none, quarter := uint32(0), uint32(25)
	for _, test := range []struct {
		name string
		c    *configv1.Cluster
		want map[string]float64
	}{
		{"by default", &configv1.Cluster{}, all},
		{"off", &configv1.Cluster{PanicThresholdPercent: &none}, map[string]float64{list[3].Address: 100}},
		{"below a quarter", &configv1.Cluster{PanicThresholdPercent: &quarter}, map[string]float64{list[3].Address: 100}},
		{"that fails", &configv1.Cluster{FailTrafficOnPanic: true}, map[string]float64{"nobody": 100}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, _ := shares(t, hosts(t, test.c, list).Judge(graded(ill)), nil)
			expect(t, got, test.want, 1)
		})
	}
	t.Run("never brings back who is drained", func(t *testing.T) {
		grades := map[string]Grade{list[0].Address: Drained, list[1].Address: Unhealthy, list[2].Address: Unhealthy, list[3].Address: Unhealthy}
		got, _ := shares(t, hosts(t, &configv1.Cluster{}, list).Judge(graded(grades)), nil)
		expect(t, got, map[string]float64{list[1].Address: 33.3, list[2].Address: 33.3, list[3].Address: 33.3}, 1)
	})
}

func TestLocalities(t *testing.T) {
	for _, policy := range policies {
		t.Run(policy.String(), func(t *testing.T) {
			c := &configv1.Cluster{
				Balance: policy, RingHash: &configv1.RingHash{MinSize: 1 << 14},
				Localities: []*configv1.LocalityWeight{{Locality: "a", Weight: 3}, {Locality: "b", Weight: 1}, {Locality: "off", Weight: 0}},
			}
			list := []*configv1.Endpoint{
				at("10.0.0.1:80", 0, "a"), at("10.0.0.2:80", 0, "a"), at("10.0.0.3:80", 0, "b"), at("10.0.0.4:80", 0, "off"),
				at("10.0.0.5:80", 0, "a"), at("10.0.0.6:80", 0, "a"), at("10.0.0.7:80", 0, "off"), at("10.0.0.8:80", 0, "b"),
			}
			set := hosts(t, c, list)
			got, _ := shares(t, set, nil)
			expect(t, got, map[string]float64{
				"10.0.0.1:80": 18.75, "10.0.0.2:80": 18.75, "10.0.0.5:80": 18.75, "10.0.0.6:80": 18.75, "10.0.0.3:80": 12.5, "10.0.0.8:80": 12.5,
			}, 1.3)
			// Half of a is ill: it can take 1.4 × 2/4 of its share, 3 × 0.7 = 2.1 beside 1.
			got, _ = shares(t, set.Judge(graded(map[string]Grade{"10.0.0.1:80": Unhealthy, "10.0.0.2:80": Unhealthy})), nil)
			expect(t, got, map[string]float64{"10.0.0.5:80": 33.9, "10.0.0.6:80": 33.9, "10.0.0.3:80": 16.1, "10.0.0.8:80": 16.1}, 1.5)
		})
	}
}

func TestSlowStart(t *testing.T) {
	s := SlowStart{Window: time.Minute, aggression: 1, least: 0.1}
	for _, test := range []struct {
		since time.Duration
		rule  SlowStart
		want  float64
	}{
		{0, s, 0.1},
		{3 * time.Second, s, 0.1},
		{30 * time.Second, s, 0.5},
		{time.Minute, s, 1},
		{time.Hour, s, 1},
		{15 * time.Second, SlowStart{time.Minute, 2, 0.1}, 0.5},
		{30 * time.Second, SlowStart{time.Minute, 0.5, 0.1}, 0.25},
	} {
		if got := test.rule.Factor(test.since); math.Abs(got-test.want) > 1e-9 {
			t.Errorf("%v after %v: %v, want %v", test.rule, test.since, got, test.want)
		}
	}
	for _, policy := range policies[:3] {
		c := &configv1.Cluster{Balance: policy, SlowStart: &configv1.SlowStart{WindowMs: 60_000}}
		list := many(2)
		set := hosts(t, c, list).Judge(func(h *Host) Standing {
			if h.Address == list[0].Address {
				return Standing{Factor: 0.25}
			}
			return Standing{}
		})
		got, _ := shares(t, set, nil)
		if policy == configv1.Balance_BALANCE_LEAST_REQUEST { // both are always looked at, and nothing is under way
			expect(t, got, map[string]float64{list[1].Address: 100}, 1)
			continue
		}
		expect(t, got, map[string]float64{list[0].Address: 20, list[1].Address: 80}, 1)
	}
}

func TestSubsets(t *testing.T) {
	list := []*configv1.Endpoint{
		at("10.0.0.1:80", 0, "", "version", "v1", "stage", "prod"), at("10.0.0.2:80", 0, "", "version", "v1", "stage", "dev"),
		at("10.0.0.3:80", 0, "", "version", "v2"), at("10.0.0.4:80", 1, "", "version", "v2"), at("10.0.0.5:80", 0, ""),
	}
	c := &configv1.Cluster{RingHash: &configv1.RingHash{MinSize: 1 << 13}, Subsets: []*configv1.SubsetSelector{
		{Keys: []string{"version"}, Fallback: configv1.SubsetFallback_SUBSET_FALLBACK_DEFAULT, DefaultSubset: metadata("stage", "prod")},
		{Keys: []string{"stage", "version"}},
		{Keys: []string{"stage"}, Fallback: configv1.SubsetFallback_SUBSET_FALLBACK_ANY},
	}}
	for _, test := range []struct {
		name   string
		ask    []*configv1.Metadata
		grades map[string]Grade
		want   map[string]float64
		mode   Mode
	}{
		{"one", metadata("version", "v1"), nil, map[string]float64{"10.0.0.1:80": 50, "10.0.0.2:80": 50}, Selected},
		{"by two keys, in any order", metadata("version", "v1", "stage", "dev"), nil, map[string]float64{"10.0.0.2:80": 100}, Selected},
		{"with priorities", metadata("version", "v2"), nil, map[string]float64{"10.0.0.3:80": 100}, Selected},
		{"with priorities, one ill", metadata("version", "v2"), map[string]Grade{"10.0.0.3:80": Unhealthy}, map[string]float64{"10.0.0.4:80": 100}, Selected},
		{"in panic of its own", metadata("stage", "prod", "version", "v1"), map[string]Grade{"10.0.0.1:80": Unhealthy}, map[string]float64{"10.0.0.1:80": 100}, Selected | Panicked},
		{"back to the default", metadata("version", "v9"), nil, map[string]float64{"10.0.0.1:80": 100}, FellBack},
		{"back to nobody", metadata("stage", "x", "version", "v1"), nil, map[string]float64{"nobody": 100}, FellBack},
		{"back to any", metadata("stage", "x"), nil, map[string]float64{"10.0.0.1:80": 25, "10.0.0.2:80": 25, "10.0.0.3:80": 25, "10.0.0.5:80": 25}, FellBack},
		{"that no selector makes", metadata("colour", "red"), nil, map[string]float64{"nobody": 100}, FellBack},
		{"none asked", nil, nil, map[string]float64{"10.0.0.1:80": 25, "10.0.0.2:80": 25, "10.0.0.3:80": 25, "10.0.0.5:80": 25}, 0},
	} {
		for _, policy := range policies {
			t.Run(test.name+"/"+policy.String(), func(t *testing.T) {
				c.Balance = policy
				set := hosts(t, c, list).Judge(graded(test.grades))
				got, mode := shares(t, set, &Choice{Subset: NewSubset(test.ask)})
				expect(t, got, test.want, 3)
				if mode != test.mode {
					t.Errorf("mode %d, want %d", mode, test.mode)
				}
			})
		}
	}
	if n := hosts(t, c, list).Subsets(); n != 6 {
		t.Errorf("%d subsets, want 6", n)
	}
}

// FuzzJudge makes sets of any shape and holds that a drained host is never chosen, and that somebody is who may be.
func FuzzJudge(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 16, 33, 90}, byte(0), byte(50))
	f.Add([]byte{0xff, 0x80, 0x0c}, byte(4), byte(0))
	f.Fuzz(func(t *testing.T, shape []byte, policy, panics byte) {
		shape = shape[:min(len(shape), 40)]
		threshold := uint32(panics) % 101
		c := &configv1.Cluster{
			Balance: policies[int(policy)%len(policies)], PanicThresholdPercent: &threshold, Maglev: &configv1.Maglev{TableSize: 251},
			Subsets: []*configv1.SubsetSelector{{Keys: []string{"k"}, Fallback: configv1.SubsetFallback_SUBSET_FALLBACK_ANY}},
		}
		if policy&0x10 != 0 {
			c.Localities = []*configv1.LocalityWeight{{Locality: "0", Weight: 2}, {Locality: "1", Weight: 1}}
		}
		var list []*configv1.Endpoint
		grades := map[string]Grade{}
		can := 0
		for i, b := range shape {
			e := at(fmt.Sprintf("10.0.0.%d:80", i+1), uint32(b>>2&3), fmt.Sprint(b>>4&3))
			if b&0x40 != 0 {
				e.Metadata = metadata("k", fmt.Sprint(b>>7))
			}
			if grades[e.Address] = Grade(b & 3); b&3 <= byte(Degraded) {
				can++
			}
			list = append(list, e)
		}
		set := hosts(t, c, list).Judge(graded(grades))
		var b Balancer
		b.Reset(set, 3)
		active := make([]uint32, len(set.Hosts))
		for i := range uint64(200) {
			for _, ask := range []*Choice{nil, {Hash: mix(i), Hashed: true}, {Subset: NewSubset(metadata("k", "1"))}} {
				at, _ := b.Choose(mix(i*77), active, ask)
				switch {
				case at < 0 && (ask == nil || ask.Subset == nil) && can > 0:
					t.Fatalf("nobody was chosen of %d that are well: %v", can, grades)
				case at >= 0 && grades[set.Hosts[at].Address] == Drained:
					t.Fatal("a drained host was chosen")
				}
			}
		}
	})
}
