package cluster

import (
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cespare/xxhash/v2"
)

// Hash is the hash of keys and hosts: XXH64, as Envoy's, so that both send a key to the same host.
func Hash(p []byte) uint64 { return xxhash.Sum64(p) }

// HashAddress is the hash of an address in its text form.
func HashAddress(a netip.Addr) uint64 {
	var room [64]byte
	return Hash(a.Unmap().AppendTo(room[:0]))
}

// weighed is a host of a leaf with its share.
type weighed struct {
	key    string
	weight float64 // of a sum of 1
	host   uint32  // in the leaf
}

// byKey gives the hosts of a leaf in the order of their keys, so that a table depends on who is there and not on the order in
// which they were named.
func byKey(hosts []weighed) []weighed {
	sum := 0.0
	for _, h := range hosts {
		sum += h.weight
	}
	for i := range hosts {
		hosts[i].weight /= sum
	}
	slices.SortFunc(hosts, func(a, b weighed) int { return strings.Compare(a.key, b.key) })
	return hosts
}

// buildRing puts every host on a ring of 64-bit numbers, as many times as its weight says and so often that the lightest host
// has its share among least places. A key belongs to the first place at or behind it. The algorithm is Envoy's.
func (l *leaf) buildRing(hosts []weighed, least, most uint64) {
	hosts = byKey(hosts)
	lightest := 1.0
	for _, h := range hosts {
		lightest = min(lightest, h.weight)
	}
	scale := min(math.Ceil(lightest*float64(least))/lightest, float64(most))
	type place struct {
		hash uint64
		host uint32
	}
	ring := make([]place, 0, int(math.Ceil(scale))+1)
	done, target := 0.0, 0.0
	var text []byte
	for _, h := range hosts {
		text = append(append(text[:0], h.key...), '_')
		stem := len(text)
		target += scale * h.weight
		for i := int64(0); done < target; i++ {
			text = strconv.AppendInt(text[:stem], i, 10)
			ring = append(ring, place{Hash(text), h.host})
			done++
		}
	}
	slices.SortStableFunc(ring, func(a, b place) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return 0
	})
	l.ring, l.table = make([]uint64, len(ring)), make([]uint32, len(ring))
	for i, p := range ring {
		l.ring[i], l.table[i] = p.hash, p.host
	}
}

// bounded passes over a host that has more than its part: consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam,
// 2018) with Envoy's arithmetic. The others are tried in an order that the key makes, so that a key that must move goes to the same
// host as long as it can; when all have too much it is the one with the least.
func (b *Balancer) bounded(l *leaf, home int, key uint64, active []uint32) int {
	factor := b.set.rule.bound
	if factor == 0 {
		return home
	}
	total := ((b.Busy+1)*factor + 99) / 100
	best, least := home, l.load(home, total, active)
	if least <= 1 {
		return home
	}
	n := uint64(l.n)
	random := mix(key)
	at, step := (random&0xffffffff)%n, (random>>32)%n
	for step = max(step, 1); !coprime(step, n); { // so that every host is met
		step = step%(n-1) + 1
	}
	for range n {
		if at = (at + step) % n; int(at) == home {
			continue
		}
		load := l.load(int(at), total, active)
		if load <= 1 {
			return int(at)
		}
		if load < least {
			best, least = int(at), load
		}
	}
	return best
}

// load is what a host has of what it may have, of total over all.
func (l *leaf) load(i int, total uint64, active []uint32) float64 {
	return float64(active[l.at(i)]) / max(math.Ceil(float64(total)*l.shares[i]), 1)
}

func coprime(a, b uint64) bool {
	for b > 0 {
		a, b = b, a%b
	}
	return a == 1
}

// onRing finds the place of a key. Each further attempt goes one place on.
func (l *leaf) onRing(key uint64, attempt uint32) int {
	low, high := 0, len(l.ring)
	for low < high {
		middle := int(uint(low+high) >> 1)
		if l.ring[middle] < key {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return int(l.table[(uint64(low)+uint64(attempt))%uint64(len(l.table))])
}

// buildTable fills a table of a prime size: each host has a permutation of its places, and in turns, as often as its weight
// says, takes the next one that is free (Eisenbud et al., Maglev, NSDI 2016, 3.4; weights as Envoy's).
func (l *leaf) buildTable(hosts []weighed, size uint64) {
	hosts = byKey(hosts)
	type entry struct{ offset, skip, next uint64 }
	entries := make([]entry, len(hosts))
	heaviest := 0.0
	for i, h := range hosts {
		heaviest = max(heaviest, h.weight)
		second := xxhash.NewWithSeed(1)
		_, _ = second.WriteString(h.key) // never fails
		entries[i] = entry{offset: Hash([]byte(h.key)) % size, skip: second.Sum64()%(size-1) + 1}
	}
	const free = math.MaxUint32
	table := make([]uint32, size)
	for i := range table {
		table[i] = free
	}
	targets := make([]float64, len(hosts))
	taken := uint64(0)
	for turn := 1.0; taken < size; turn++ {
		for i := range entries {
			if turn*hosts[i].weight < targets[i] {
				continue
			}
			targets[i] += heaviest
			e := &entries[i]
			at := (e.offset + e.skip*e.next) % size
			for e.next++; table[at] != free; e.next++ {
				at = (e.offset + e.skip*e.next) % size
			}
			table[at] = hosts[i].host
			if taken++; taken == size {
				break
			}
		}
	}
	l.table = table
}

// inTable finds the place of a key. Each further attempt has another key.
func (l *leaf) inTable(key uint64, attempt uint32) int {
	if attempt > 0 {
		key ^= -uint64(attempt)
	}
	return int(l.table[key%uint64(len(l.table))])
}
