package cluster

import (
	"fmt"
	"math"
	"slices"
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

var consistent = []configv1.Balance{configv1.Balance_BALANCE_RING_HASH, configv1.Balance_BALANCE_MAGLEV}

func many(n int) (out []*configv1.Endpoint) {
	for i := range n {
		out = append(out, &configv1.Endpoint{Address: fmt.Sprintf("10.0.%d.%d:80", i/250, i%250+1)})
	}
	return out
}

// homes tells for each of n keys the address that it belongs to.
func homes(t testing.TB, set *HostSet, n int) []string {
	t.Helper()
	var b Balancer
	b.Reset(set, 3)
	out := make([]string, n)
	for i := range out {
		at, _ := b.Choose(uint64(i), nil, &Choice{Hash: Hash(fmt.Append(nil, "key-", i)), Hashed: true})
		out[i] = set.Hosts[at].Address
	}
	return out
}

const keys = 20_000

func TestKeysFollowWeights(t *testing.T) {
	for _, policy := range consistent {
		list := many(4)
		list[3].Weight = 5
		got := map[string]int{}
		for _, home := range homes(t, hosts(t, &configv1.Cluster{Balance: policy, RingHash: &configv1.RingHash{MinSize: 1 << 14}}, list), keys) {
			got[home]++
		}
		for _, e := range list {
			want := keys * float64(max(e.Weight, 1)) / 8
			if math.Abs(float64(got[e.Address])-want) > want/10 {
				t.Errorf("%v: %s of weight %d has %d keys of %d, want about %.0f", policy, e.Address, e.Weight, got[e.Address], keys, want)
			}
		}
	}
}

// TestKeysStay: of n hosts one goes. Its keys move, and few others: the places that are left on a ring become more, and those of
// a table are taken anew.
func TestKeysStay(t *testing.T) {
	for _, policy := range consistent {
		for _, n := range []int{2, 10, 50} {
			c := &configv1.Cluster{Balance: policy}
			list := many(n)
			all := hosts(t, c, list)
			before := homes(t, all, keys)
			gone := list[n/2].Address
			others := map[string][]string{
				"is removed": homes(t, hosts(t, c, slices.Delete(slices.Clone(list), n/2, n/2+1)), keys),
				"fails (all stay put)": homes(t, all.Judge(func(h *Host) Standing {
					return Standing{Grade: map[bool]Grade{true: Unhealthy}[h.Address == gone && n > 2]}
				}), keys),
			}
			for how, after := range others {
				if n == 2 && how != "is removed" {
					continue // panic: it is still asked
				}
				moved, strayed := 0, 0
				for i := range before {
					switch {
					case before[i] == gone:
						moved++
						if after[i] == gone {
							t.Fatalf("%v: a key is still at the host that is gone", policy)
						}
					case before[i] != after[i]:
						strayed++
					}
				}
				limit := keys * 8 / 100
				if strayed > limit || moved == 0 {
					t.Errorf("%v, one of %d hosts %s: %d keys that were not its own moved, want at most %d (its own: %d)", policy, n, how, strayed, limit, moved)
				}
			}
		}
	}
}

func TestKeysDoNotDependOnTheOrderOfHosts(t *testing.T) {
	for _, policy := range consistent {
		list := many(7)
		list[2].Weight = 3
		c := &configv1.Cluster{Balance: policy}
		before := homes(t, hosts(t, c, list), 1000)
		slices.Reverse(list)
		if !slices.Equal(before, homes(t, hosts(t, c, list), 1000)) {
			t.Errorf("%v: another order of the endpoints moved keys", policy)
		}
	}
}

// TestHashKey: with the same hash_key a host that has another address has the keys of the one that it replaces.
func TestHashKey(t *testing.T) {
	for _, policy := range consistent {
		c := &configv1.Cluster{Balance: policy}
		list := many(3)
		for i, e := range list {
			e.Metadata = metadata("hash_key", fmt.Sprint("shard-", i))
		}
		before := homes(t, hosts(t, c, list), 1000)
		old := list[1].Address
		list[1].Address = "10.9.9.9:80"
		for i, home := range homes(t, hosts(t, c, list), 1000) {
			if want := before[i]; home != want && (want != old || home != list[1].Address) {
				t.Fatalf("%v: a key moved from %s to %s", policy, want, home)
			}
		}
	}
}

func TestFurtherAttemptsGoElsewhere(t *testing.T) {
	for _, policy := range consistent {
		set := hosts(t, &configv1.Cluster{Balance: policy}, many(10))
		var b Balancer
		b.Reset(set, 1)
		elsewhere := 0
		for i := range 1000 {
			c := &Choice{Hash: mix(uint64(i)), Hashed: true}
			first, _ := b.Choose(0, nil, c)
			for c.Attempt = 1; c.Attempt <= 3; c.Attempt++ {
				if next, _ := b.Choose(0, nil, c); next != first {
					elsewhere++
					break
				}
			}
		}
		if elsewhere < 980 {
			t.Errorf("%v: three more attempts found another host for %d of 1000 keys", policy, elsewhere)
		}
	}
}

// TestRingPlaces holds a ring to Envoy's: its places are the XXH64 of "ADDRESS_N".
func TestRingPlaces(t *testing.T) {
	set := hosts(t, &configv1.Cluster{Balance: configv1.Balance_BALANCE_RING_HASH, RingHash: &configv1.RingHash{MinSize: 6}}, many(3))
	l := &set.leaves[0]
	if len(l.ring) != 6 || !slices.IsSorted(l.ring) {
		t.Fatalf("a ring of %d places, want 6 in order", len(l.ring))
	}
	for i, at := range l.ring {
		address := set.Hosts[l.table[i]].Address
		if at != Hash([]byte(address+"_0")) && at != Hash([]byte(address+"_1")) {
			t.Errorf("place %x of %s is none of its own", at, address)
		}
		for key, want := range map[uint64]string{at: address, at - 1: address} {
			if home := set.Hosts[l.onRing(key, 0)].Address; home != want {
				t.Errorf("key %x is at %s, want %s", key, home, want)
			}
		}
	}
	if home := l.onRing(l.ring[5]+1, 0); home != int(l.table[0]) {
		t.Error("a key behind the last place is not at the first")
	}
	if got := Hash([]byte("abc")); got != 0x44bc2cf5ad770999 {
		t.Errorf("XXH64 of abc is %x", got)
	}
}

func TestTablesAreBounded(t *testing.T) {
	list := many(2)
	list[0].Weight = 1_000_000
	set := hosts(t, &configv1.Cluster{Balance: configv1.Balance_BALANCE_RING_HASH, RingHash: &configv1.RingHash{MaxSize: 5000}}, list)
	if n := len(set.leaves[0].ring); n > 5001 {
		t.Errorf("a ring of %d places, want 5000", n)
	}
	for _, c := range []*configv1.Cluster{
		{RingHash: &configv1.RingHash{MinSize: 10, MaxSize: 9}},
		{RingHash: &configv1.RingHash{MaxSize: 9 << 20}},
		{Maglev: &configv1.Maglev{TableSize: 65536}},
		{Maglev: &configv1.Maglev{TableSize: 5_000_077}},
		{Balance: 77},
	} {
		if _, err := buildRule(c); err == nil {
			t.Errorf("%v was taken", c)
		}
	}
}

func BenchmarkBuildTable(b *testing.B) {
	for _, policy := range consistent {
		b.Run(policy.String(), func(b *testing.B) {
			for b.Loop() {
				hosts(b, &configv1.Cluster{Balance: policy}, many(100))
			}
		})
	}
}

// TestBoundedLoads: with a bound no host has more than so much of its fair part, however the keys lie; a key that must move goes to
// the same host; and where there is room every key is at home.
func TestBoundedLoads(t *testing.T) {
	const requests, factor = 2_000, 125
	for _, policy := range consistent {
		for _, weighted := range []bool{false, true} {
			list := many(10)
			parts := uint64(10)
			if weighted {
				list[0].Weight, parts = 6, 15
			}
			c := &configv1.Cluster{Balance: policy, HashBalanceFactor: factor}
			set := hosts(t, c, list)
			var b Balancer
			b.Reset(set, 3)
			active := make([]uint32, len(list))
			choose := func(key string) int {
				at, _ := b.Choose(1, active, &Choice{Hash: Hash([]byte(key)), Hashed: true})
				return at
			}
			c.HashBalanceFactor = 0
			free := homes(t, hosts(t, c, list), 1_000)
			for i, home := range free {
				if at := choose(fmt.Sprint("key-", i)); set.Hosts[at].Address != home {
					t.Fatalf("%v: with nothing under way key %d is not at home", policy, i)
				}
			}
			for i := range requests {
				key := "hot"
				if i%3 == 0 {
					key = fmt.Sprint("key-", i)
				}
				at := choose(key)
				if again := choose(key); again != at {
					t.Fatalf("%v: the same key is at %d and at %d", policy, at, again)
				}
				active[at]++
				b.Busy++
				fair := float64((b.Busy*factor+99)/100) * float64(max(list[at].Weight, 1)) / float64(parts)
				if most := math.Max(math.Ceil(fair), 1) + 1; float64(active[at]) > most {
					t.Fatalf("%v: host %d has %d of %d requests, at most %.0f are its part", policy, at, active[at], b.Busy, most)
				}
			}
		}
	}
}

// TestBoundedEverywhere: when all have too much it is the one with the least.
func TestBoundedEverywhere(t *testing.T) {
	set := hosts(t, &configv1.Cluster{Balance: configv1.Balance_BALANCE_MAGLEV, HashBalanceFactor: 100}, many(4))
	var b Balancer
	b.Reset(set, 3)
	active := []uint32{90, 80, 85, 95} // those of hosts that have left count in none
	b.Busy = 4
	for i := range 100 {
		if at, _ := b.Choose(1, active, &Choice{Hash: uint64(i) << 20, Hashed: true}); at != 1 {
			t.Fatalf("host %d was chosen", at)
		}
	}
}
