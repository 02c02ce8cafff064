package cluster

import (
	"fmt"
	"math/big"
	"slices"
	"testing"

	"github.com/cespare/xxhash/v2"

	configv1 "retinue.dev/services/api/config/v1"
)

// FuzzBalance holds every balancer to a plain reading of its definition: a scan in the place of the heap, of the search and of the
// table, and whole numbers in the place of floating point.
func FuzzBalance(f *testing.F) {
	f.Add([]byte{1, 2, 7}, uint64(1), uint64(2))
	f.Add([]byte{1, 1, 1, 1, 1}, uint64(3), uint64(0))
	f.Add([]byte{19, 3}, uint64(1<<63), uint64(77))
	f.Add([]byte{0}, uint64(0), uint64(0))
	f.Add([]byte{4, 4, 2, 9, 1, 1, 1, 30, 12, 8, 8, 3}, uint64(99), uint64(1<<40))
	f.Fuzz(func(t *testing.T, shape []byte, seed, random uint64) {
		if len(shape) == 0 {
			return
		}
		shape = shape[:min(len(shape), 12)]
		list, weights, even := many(len(shape)), []uint64{}, true
		for i, b := range shape {
			list[i].Weight = uint32(b%20) + 1
			weights = append(weights, uint64(list[i].Weight))
			even = even && weights[i] == weights[0]
		}
		for policy, reference := range references {
			set := hosts(t, &configv1.Cluster{Balance: policy, Maglev: &configv1.Maglev{TableSize: 251}, RingHash: &configv1.RingHash{MinSize: 64}}, list)
			var b Balancer
			b.Reset(set, seed)
			choose := reference(&definition{t: t, set: set, weights: weights, even: even, seed: seed})
			active := make([]uint32, len(list))
			for n := range uint64(100) {
				draw := mix(random + n)
				active[draw%uint64(len(active))] = uint32(draw>>60) * uint32(n%3)
				got, _ := b.Choose(draw, active, &Choice{Hash: draw, Hashed: true})
				if want := choose(draw, active); got != want {
					t.Fatalf("%v, weights %v, choice %d: host %d, by its definition %d", policy, weights, n, got, want)
				}
			}
		}
	})
}

// definition is what a reference knows.
type definition struct {
	t       *testing.T
	set     *HostSet
	weights []uint64
	even    bool // all weights are the same, and so none counts
	seed    uint64
}

type chooser func(random uint64, active []uint32) int

var references = map[configv1.Balance]func(*definition) chooser{
	configv1.Balance_BALANCE_ROUND_ROBIN:   (*definition).roundRobin,
	configv1.Balance_BALANCE_RANDOM:        (*definition).random,
	configv1.Balance_BALANCE_LEAST_REQUEST: (*definition).leastRequest,
	configv1.Balance_BALANCE_RING_HASH:     (*definition).ringHash,
	configv1.Balance_BALANCE_MAGLEV:        (*definition).maglev,
}

// roundRobin takes the host whose due time, picks / weight, is the smallest, of several the one that has waited for the longest.
func (d *definition) roundRobin() chooser {
	n := len(d.weights)
	if d.even {
		next := d.seed
		return func(uint64, []uint32) int {
			next++
			return int(next % uint64(n))
		}
	}
	due, waits := make([]float64, n), make([]uint64, n) // the sums must be made in the same order to be the same numbers
	for i, w := range d.weights {
		due[i], waits[i] = 1/float64(w), uint64(i)
	}
	turn := uint64(n)
	pick := func() int {
		first := 0
		for i := range due {
			if due[i] < due[first] || due[i] == due[first] && waits[i] < waits[first] {
				first = i
			}
		}
		due[first] += 1 / float64(d.weights[first])
		waits[first] = turn
		turn++
		return first
	}
	for range d.seed % uint64(n) {
		pick()
	}
	return func(uint64, []uint32) int { return pick() }
}

func (d *definition) random() chooser {
	return func(random uint64, _ []uint32) int {
		if d.even {
			return int(random % uint64(len(d.weights)))
		}
		sum := uint64(0)
		for _, w := range d.weights {
			sum += w
		}
		left := random % sum
		for i, w := range d.weights {
			if left < w {
				return i
			}
			left -= w
		}
		return -1
	}
}

// leastRequest draws two hosts that are not the same and takes the one with less under way for its weight, of two alike the first.
func (d *definition) leastRequest() chooser {
	return func(random uint64, active []uint32) int {
		n := uint64(len(d.weights))
		if n == 1 {
			return 0
		}
		first := (random & 0xffffffff) % n
		others := []uint64{}
		for i := range n {
			if i != first {
				others = append(others, i)
			}
		}
		second := others[(random>>32)%(n-1)]
		load := func(i uint64) *big.Rat { return big.NewRat(int64(active[i])+1, int64(d.weights[i])) }
		if load(second).Cmp(load(first)) < 0 {
			return int(second)
		}
		return int(first)
	}
}

// ringHash looks at every place of every host: the first one at or behind the key, or else the very first. How many places a host has is the
// table's to say, within one of its part.
func (d *definition) ringHash() chooser {
	l := &d.set.leaves[0]
	places := make([]int, len(d.weights))
	for _, host := range l.table {
		places[host]++
	}
	sum, total := uint64(0), 0
	for i, w := range d.weights {
		sum += w
		total += places[i]
	}
	for i, w := range d.weights {
		if len(d.weights) > 1 && max(uint64(places[i])*sum, uint64(total)*w)-min(uint64(places[i])*sum, uint64(total)*w) > 2*sum {
			d.t.Fatalf("host %d of weight %d of %d has %d places of %d", i, w, sum, places[i], total)
		}
	}
	return func(key uint64, _ []uint32) int {
		if len(d.weights) == 1 {
			return 0
		}
		behind, first := -1, -1
		var behindAt, firstAt uint64
		for host, n := range places {
			for i := range n {
				at := Hash(fmt.Appendf(nil, "%s_%d", d.set.Hosts[host].Address, i))
				if first < 0 || at < firstAt {
					first, firstAt = host, at
				}
				if at >= key && (behind < 0 || at < behindAt) {
					behind, behindAt = host, at
				}
			}
		}
		if behind < 0 {
			return first
		}
		return behind
	}
}

// maglev is figure 1 of the paper, over whole permutations, with turns by weight: a host sits out while it has had more than its part.
func (d *definition) maglev() chooser {
	const size = 251
	n := len(d.weights)
	if n == 1 {
		return func(uint64, []uint32) int { return 0 }
	}
	if !d.even { // whose turn it is rests on sums of fractions: there is no other way to write it
		return func(key uint64, _ []uint32) int { return int(d.set.leaves[0].table[key%size]) }
	}
	order := make([]int, n)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int {
		if d.set.Hosts[a].Address < d.set.Hosts[b].Address {
			return -1
		}
		return 1
	})
	permutation := make([][]uint64, n)
	for i, host := range order {
		key := d.set.Hosts[host].Address
		second := xxhash.NewWithSeed(1)
		_, _ = second.WriteString(key)
		offset, skip := xxhash.Sum64String(key)%size, second.Sum64()%(size-1)+1
		for j := range uint64(size) {
			permutation[i] = append(permutation[i], (offset+j*skip)%size)
		}
	}
	table := map[uint64]int{}
	for len(table) < size {
		for i := range permutation {
			for taken := true; taken && len(table) < size; {
				slot := permutation[i][0]
				permutation[i] = permutation[i][1:]
				if _, taken = table[slot]; !taken {
					table[slot] = order[i]
				}
			}
		}
	}
	return func(key uint64, _ []uint32) int { return table[key%size] }
}
