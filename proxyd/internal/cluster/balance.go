package cluster

import (
	"slices"

	configv1 "retinue.dev/services/api/config/v1"
)

// Balancer chooses hosts of one cluster for one worker. It is a plain value of that worker: nothing in it is shared but the
// host set, which does not change. Reset it when the host set changes; Choose allocates nothing.
//
// Round robin with equal weights starts at a random host, so that workers do not march in step; with unequal weights it
// is an earliest-deadline-first schedule, as Envoy's. Least request takes two random hosts and the one with fewer
// requests under way in proportion to its weight (power of two choices). Consistent hashes look the request's key up in the
// tables of the host set.
type Balancer struct {
	// Busy is the sum of what Choose is told as active; whoever counts that keeps it, for bounded consistent hashes.
	Busy uint64

	set    *HostSet
	states []state // beside set.leaves
}

// state is what round robin remembers of one leaf.
type state struct {
	next     uint64
	schedule []deadline // heap by due, only for weighted round robin
}

type deadline struct {
	due   float64
	order uint64 // breaks ties by age, so that equal hosts alternate
	host  int32  // in the leaf
}

// Choice is what a request says about its host.
type Choice struct {
	// Hash is its key; Hashed tells that it has one.
	Hash   uint64
	Hashed bool
	// Attempt asks a consistent hash for another place; 0 for the first try.
	Attempt uint32
	// Subset is the hosts that it is for; nil: all.
	Subset *Subset
}

// Mode says how a host was chosen.
type Mode uint8

const (
	// Panicked: so few hosts of a priority are well that all of them may be asked.
	Panicked Mode = 1 << iota
	// Selected: from a subset.
	Selected
	// FellBack: no host has the metadata that the request asks for.
	FellBack
)

// Reset starts over with another host set. seed is any number, different for each worker.
func (b *Balancer) Reset(set *HostSet, seed uint64) {
	b.set = set
	b.states = make([]state, len(set.leaves))
	if set.rule.Policy != configv1.Balance_BALANCE_ROUND_ROBIN {
		return
	}
	for i := range b.states {
		b.states[i].reset(&set.leaves[i], seed)
	}
}

// Choose returns the index of a host in the set, or -1 when there is none. random is a fresh random number, active
// tells how many requests a host has under way in this worker, by index. c is what the request says; nil: nothing.
func (b *Balancer) Choose(random uint64, active []uint32, c *Choice) (int, Mode) {
	set, key, attempt := b.set, random, uint32(0)
	p, mode := &set.whole, Mode(0)
	if c != nil {
		if c.Subset != nil {
			p, mode = set.subset(c.Subset)
		}
		if attempt = c.Attempt; c.Hashed && set.rule.hashes() {
			key = c.Hash
		}
	}
	var chosen *cut
	switch len(p.cuts) {
	case 0:
		return -1, mode
	case 1:
		chosen = &p.cuts[0]
	default:
		chosen = p.at(key)
		random = mix(random) // what is left of it after the cut is not even
	}
	mode |= chosen.mode
	l := &set.leaves[chosen.leaf]
	switch {
	case l.n == 0:
		return -1, mode
	case l.n == 1:
		return l.at(0), mode
	}
	var i int
	switch set.rule.Policy {
	case configv1.Balance_BALANCE_RANDOM:
		i = l.random(random)
	case configv1.Balance_BALANCE_LEAST_REQUEST:
		i = l.leastRequest(random, active)
	case configv1.Balance_BALANCE_RING_HASH:
		i = b.bounded(l, l.onRing(key, attempt), key, active)
	case configv1.Balance_BALANCE_MAGLEV:
		i = b.bounded(l, l.inTable(key, attempt), key, active)
	default:
		s := &b.states[chosen.leaf]
		if l.weights == nil {
			s.next++
			i = int(s.next % uint64(l.n))
		} else {
			i = s.pick(l)
		}
	}
	return l.at(i), mode
}

// mix makes another random number out of one (SplitMix64).
func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (l *leaf) random(random uint64) int {
	if l.weights == nil {
		return int(random % uint64(l.n))
	}
	at := random % l.cumulative[l.n-1]
	i, _ := slices.BinarySearch(l.cumulative, at+1)
	return i
}

func (l *leaf) leastRequest(random uint64, active []uint32) int {
	n := uint64(l.n)
	first := (random & 0xffffffff) % n
	second := (random >> 32) % (n - 1)
	if second >= first {
		second++
	}
	// Compare (active+1)/weight without dividing.
	a, c := uint64(active[l.at(int(first))])+1, uint64(active[l.at(int(second))])+1
	if l.weights != nil {
		a, c = a*l.weights[second], c*l.weights[first]
	}
	if c < a {
		return int(second)
	}
	return int(first)
}

func (s *state) reset(l *leaf, seed uint64) {
	s.next = seed
	if l.weights == nil {
		return
	}
	for i, weight := range l.weights {
		s.next++
		s.schedule = append(s.schedule, deadline{1 / float64(weight), s.next, int32(i)})
		s.up(len(s.schedule) - 1)
	}
	for n := seed % uint64(l.n); n > 0; n-- {
		s.pick(l)
	}
}

// pick takes the host that is due and puts it back one period (1/weight) later.
func (s *state) pick(l *leaf) int {
	top := &s.schedule[0]
	host := top.host
	s.next++
	top.due += 1 / float64(l.weights[host])
	top.order = s.next
	s.down(0)
	return int(host)
}

func (s *state) before(i, j int) bool {
	x, y := &s.schedule[i], &s.schedule[j]
	if x.due != y.due {
		return x.due < y.due
	}
	return x.order < y.order
}

func (s *state) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !s.before(i, parent) {
			return
		}
		s.schedule[i], s.schedule[parent] = s.schedule[parent], s.schedule[i]
		i = parent
	}
}

func (s *state) down(i int) {
	for {
		child := 2*i + 1
		if child >= len(s.schedule) {
			return
		}
		if child+1 < len(s.schedule) && s.before(child+1, child) {
			child++
		}
		if !s.before(child, i) {
			return
		}
		s.schedule[i], s.schedule[child] = s.schedule[child], s.schedule[i]
		i = child
	}
}
