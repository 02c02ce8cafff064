package cluster

import (
	"cmp"
	"slices"

	configv1 "retinue.dev/services/api/config/v1"
)

// HostSet is the hosts of a cluster that may be asked at one time, and how they share its requests: a tree whose leaves are
// balanced by the cluster's policy. Everything that takes time is computed when it is made, on the main side. Immutable;
// the workers share it.
type HostSet struct {
	Hosts []*Host

	rule     *Rule
	leaves   []leaf
	whole    plan     // for requests that ask for no subset
	subsets  []subset // by hash
	standard []plan   // beside the rule's selectors: their default subsets
}

// plan is how requests spread over the leaves: one or more for each priority that takes some.
type plan struct {
	cuts  []cut
	total uint64
}

type cut struct {
	upTo uint64 // running sum of shares
	leaf int32
	mode Mode
}

// at finds the cut that a number falls into.
func (p *plan) at(key uint64) *cut {
	for i, key := 0, key%p.total; ; i++ {
		if key < p.cuts[i].upTo {
			return &p.cuts[i]
		}
	}
}

// leaf is hosts that differ in nothing but their weight.
type leaf struct {
	hosts      []uint32 // in the set; nil: all of it
	n          int
	weights    []uint64  // nil: all the same
	cumulative []uint64  // running sum of weights, for the random choice
	ring       []uint64  // of a ring hash
	table      []uint32  // of a consistent hash
	shares     []float64 // of a bounded one: of 1
}

func (l *leaf) at(i int) int {
	if l.hosts == nil {
		return i
	}
	return int(l.hosts[i])
}

type subset struct {
	hash          uint64
	names, values string
	plan          plan
}

var none plan

// subset finds the plan of a subset, or the one that the selector falls back to.
func (s *HostSet) subset(q *Subset) (*plan, Mode) {
	low, high := 0, len(s.subsets)
	for low < high {
		if middle := int(uint(low+high) >> 1); s.subsets[middle].hash < q.hash {
			low = middle + 1
		} else {
			high = middle
		}
	}
	for ; low < len(s.subsets) && s.subsets[low].hash == q.hash; low++ {
		if found := &s.subsets[low]; found.names == q.names && found.values == q.values {
			return &found.plan, Selected
		}
	}
	for i := range s.rule.selectors {
		if s.rule.selectors[i].names != q.names {
			continue
		}
		switch s.rule.selectors[i].fallback {
		case configv1.SubsetFallback_SUBSET_FALLBACK_ANY:
			return &s.whole, FellBack
		case configv1.SubsetFallback_SUBSET_FALLBACK_DEFAULT:
			return &s.standard[i], FellBack
		}
	}
	return &none, FellBack
}

func subsetHash(names, values string) uint64 { return Hash([]byte(names + "\x00" + values)) }

// Subsets is how many subsets there are.
func (s *HostSet) Subsets() int { return len(s.subsets) }

// Grade says how well a host is.
type Grade uint8

// The grades. A degraded host is asked when the healthy ones of all priorities do not suffice; an unhealthy one in panic; a
// drained one never.
const (
	Healthy Grade = iota
	Degraded
	Unhealthy
	Drained
)

// Standing is what is known of a host.
type Standing struct {
	Grade  Grade
	Factor float64 // of its weight, above 0; 0 stands for 1
}

// Judge is what is left of the members when standing tells of each; s itself where all are well. s is a set as BuildHosts
// makes it.
func (s *HostSet) Judge(standing func(*Host) Standing) *HostSet {
	all := make([]Standing, len(s.Hosts))
	well := true
	for i, h := range s.Hosts {
		all[i] = standing(h)
		if all[i].Factor == 0 {
			all[i].Factor = 1
		}
		well = well && all[i] == Standing{Healthy, 1}
	}
	if well {
		return s
	}
	return arrange(s.rule, s.Hosts, all)
}

// arranger makes a host set.
type arranger struct {
	rule     *Rule
	members  []*Host
	standing []Standing // nil: everybody is well
	set      *HostSet
	used     []bool
}

// arrange makes the host set of members, of whom standing tells; nil: they are well.
func arrange(rule *Rule, members []*Host, standing []Standing) *HostSet {
	a := &arranger{rule: rule, members: members, standing: standing, set: &HostSet{Hosts: members, rule: rule}}
	if standing == nil && rule.plain() && !slices.ContainsFunc(members, func(h *Host) bool { return h.Priority != 0 }) {
		if len(members) > 0 {
			a.set.whole = plan{cuts: []cut{{upTo: 1}}, total: 1}
			a.set.leaves = []leaf{a.leaf(nil, len(members), nil)}
		}
		return a.set
	}
	all := make([]uint32, len(members))
	a.used = make([]bool, len(members))
	for i := range members {
		all[i] = uint32(i)
		a.used[i] = a.grade(uint32(i)) <= Degraded // it keeps its connections though it takes nothing now
	}
	a.set.whole = a.plan(all)
	a.subsets(all)
	a.compact()
	return a.set
}

func (a *arranger) grade(member uint32) Grade {
	if a.standing == nil {
		return Healthy
	}
	return a.standing[member].Grade
}

// compact leaves out members that no leaf has.
func (a *arranger) compact() {
	if !slices.Contains(a.used, false) {
		return
	}
	moved := make([]uint32, len(a.members))
	a.set.Hosts = nil
	for i, h := range a.members {
		if a.used[i] {
			moved[i] = uint32(len(a.set.Hosts))
			a.set.Hosts = append(a.set.Hosts, h)
		}
	}
	for i := range a.set.leaves {
		hosts := a.set.leaves[i].hosts
		for j, member := range hosts {
			hosts[j] = moved[member]
		}
	}
}

// level is what a plan has of one priority.
type level struct {
	priority                int
	hosts                   []uint32 // all but drained ones
	healthy, degraded       []uint32
	healthyLoad, degradLoad int // percent of the requests
	panics                  bool
}

// percent is the share of the level's hosts that n are, with what each can take beyond its own.
func (l *level) percent(n, factor int) int {
	if len(l.hosts) == 0 {
		return 0
	}
	return min(100, factor*n/len(l.hosts))
}

// plan spreads the requests for some members over their priorities. The arithmetic is Envoy's.
func (a *arranger) plan(members []uint32) (p plan) {
	levels := a.levels(members)
	if len(levels) == 0 {
		return p
	}
	a.load(levels)
	add := func(l *level, hosts []uint32, percent int) {
		switch {
		case percent == 0:
		case l.panics && a.rule.FailOnPanic:
			a.cut(&p, nil, nil, uint64(percent)*fine, Panicked)
		case l.panics:
			a.cut(&p, l.hosts, nil, uint64(percent)*fine, Panicked)
		default:
			a.localities(&p, l, hosts, uint64(percent)*fine)
		}
	}
	for i := range levels {
		add(&levels[i], levels[i].healthy, levels[i].healthyLoad)
	}
	for i := range levels {
		add(&levels[i], levels[i].degraded, levels[i].degradLoad)
	}
	return p
}

// fine is how many parts a percent has, for the shares of localities.
const fine = 1 << 20

func (a *arranger) levels(members []uint32) (levels []level) {
	for _, m := range members {
		grade, priority := a.grade(m), a.members[m].Priority
		if grade == Drained {
			continue
		}
		at, found := slices.BinarySearchFunc(levels, priority, func(l level, p int) int { return cmp.Compare(l.priority, p) })
		if !found {
			levels = slices.Insert(levels, at, level{priority: priority})
		}
		l := &levels[at]
		l.hosts = append(l.hosts, m)
		switch grade {
		case Healthy:
			l.healthy = append(l.healthy, m)
		case Degraded:
			l.degraded = append(l.degraded, m)
		}
	}
	return levels
}

// load computes who takes how many percent: the healthy hosts of each priority in order, then the degraded ones; where all
// together can take less than everything, in proportion, and those with too few well hosts panic.
func (a *arranger) load(levels []level) {
	can := 0
	for i := range levels {
		l := &levels[i]
		can += l.percent(len(l.healthy), a.rule.Overprovisioning) + l.percent(len(l.degraded), a.rule.Overprovisioning)
	}
	can = min(can, 100)
	panicking := 0
	if can < 100 {
		for i := range levels {
			l := &levels[i]
			if l.panics = 100*(len(l.healthy)+len(l.degraded)) < a.rule.PanicPercent*len(l.hosts); l.panics {
				panicking++
			}
		}
	}
	switch {
	case panicking == len(levels): // by the number of hosts
		all := 0
		for i := range levels {
			all += len(levels[i].hosts)
		}
		left := 100
		for i := range levels {
			levels[i].healthyLoad = 100 * len(levels[i].hosts) / all
			left -= levels[i].healthyLoad
		}
		levels[0].healthyLoad += left
		return
	case can == 0: // and no panic: nobody
		levels[0].healthyLoad = 100
		return
	}
	left := 100
	var first *int
	share := func(load *int, percent int) {
		*load = min(left, 100*percent/can)
		left -= *load
		if first == nil && percent > 0 {
			first = load
		}
	}
	for i := range levels {
		share(&levels[i].healthyLoad, levels[i].percent(len(levels[i].healthy), a.rule.Overprovisioning))
	}
	for i := range levels {
		share(&levels[i].degradLoad, levels[i].percent(len(levels[i].degraded), a.rule.Overprovisioning))
	}
	*first += left // what rounding left over
}

// localities splits a share between the localities of its hosts, by their weights and by how many of each are left.
func (a *arranger) localities(p *plan, l *level, hosts []uint32, share uint64) {
	if a.rule.localities == nil || len(hosts) == 0 {
		a.cut(p, hosts, nil, share, 0)
		return
	}
	type place struct {
		name   string
		hosts  []uint32
		weight float64
	}
	var places []place
	for _, m := range hosts {
		name := a.members[m].Locality
		at := slices.IndexFunc(places, func(p place) bool { return p.name == name })
		if at < 0 {
			at = len(places)
			places = append(places, place{name: name})
		}
		places[at].hosts = append(places[at].hosts, m)
	}
	sum := 0.0
	for i := range places {
		weight, configured := a.rule.localities[places[i].name]
		if !configured {
			weight = 1
		}
		all := 0
		for _, m := range l.hosts {
			if a.members[m].Locality == places[i].name {
				all++
			}
		}
		places[i].weight = float64(weight) * min(1, float64(a.rule.Overprovisioning)/100*float64(len(places[i].hosts))/float64(all))
		sum += places[i].weight
	}
	if sum == 0 {
		a.cut(p, nil, nil, share, 0)
		return
	}
	if a.rule.hashes() { // one table for them all: which locality a key belongs to depends on nothing else
		var together []uint32
		var weights []float64
		for _, at := range places {
			of := uint64(0)
			for _, m := range at.hosts {
				of += a.members[m].Weight
			}
			for _, m := range at.hosts {
				if at.weight > 0 {
					together = append(together, m)
					weights = append(weights, at.weight*float64(a.members[m].Weight)/float64(of))
				}
			}
		}
		a.cut(p, together, weights, share, 0)
		return
	}
	left := share
	for i, at := range places {
		part := min(left, uint64(float64(share)*at.weight/sum))
		if i == len(places)-1 && at.weight > 0 {
			part = left
		}
		left -= part
		if part > 0 {
			a.cut(p, at.hosts, nil, part, 0)
		}
	}
}

// cut gives hosts a share of a plan. weights stand for theirs in a consistent hash; nil: their own.
func (a *arranger) cut(p *plan, hosts []uint32, weights []float64, share uint64, mode Mode) {
	for _, m := range hosts {
		a.used[m] = true
	}
	p.total += share
	p.cuts = append(p.cuts, cut{upTo: p.total, leaf: int32(len(a.set.leaves)), mode: mode})
	a.set.leaves = append(a.set.leaves, a.leaf(hosts, len(hosts), weights))
}

// leaf makes the leaf of n hosts, by member; nil: all members in order.
func (a *arranger) leaf(hosts []uint32, n int, weights []float64) leaf {
	l := leaf{hosts: slices.Clone(hosts), n: n}
	if n < 2 {
		return l
	}
	if a.rule.hashes() {
		list := make([]weighed, n)
		for i := range list {
			h := a.members[l.at(i)]
			list[i] = weighed{h.key(), float64(h.Weight), uint32(i)}
			if weights != nil {
				list[i].weight = weights[i]
			}
		}
		if a.rule.Policy == configv1.Balance_BALANCE_MAGLEV {
			l.buildTable(list, a.rule.maglev)
		} else {
			l.buildRing(list, a.rule.ringMin, a.rule.ringMax)
		}
		if a.rule.bound > 0 {
			l.shares = make([]float64, n)
			for _, h := range list { // whose weights are a sum of 1 by now
				l.shares[h.host] = h.weight
			}
		}
		return l
	}
	uniform := true
	var sum uint64
	for i := range n {
		weight := a.weight(l.at(i))
		sum += weight
		l.weights, l.cumulative = append(l.weights, weight), append(l.cumulative, sum)
		uniform = uniform && weight == l.weights[0]
	}
	if uniform {
		l.weights, l.cumulative = nil, nil
	}
	return l
}

// weightParts is how many parts a weight has for hosts that warm up.
const weightParts = 1000

func (a *arranger) weight(member int) uint64 {
	weight := a.members[member].Weight
	if a.standing == nil || a.rule.SlowStart == nil {
		return weight
	}
	return max(1, uint64(float64(weight*weightParts)*a.standing[member].Factor))
}

// subsets makes those of every selector.
func (a *arranger) subsets(all []uint32) {
	for i := range a.rule.selectors {
		s := &a.rule.selectors[i]
		by := map[string][]uint32{}
		var order []string
	hosts:
		for _, m := range all {
			values := ""
			for _, key := range s.keys {
				v, there := a.members[m].label(key)
				if !there {
					continue hosts
				}
				values += v + "\x00"
			}
			if by[values] == nil {
				order = append(order, values)
			}
			by[values] = append(by[values], m)
		}
		for _, values := range order {
			a.set.subsets = append(a.set.subsets, subset{subsetHash(s.names, values), s.names, values, a.plan(by[values])})
		}
		var standard []uint32
		if s.fallback == configv1.SubsetFallback_SUBSET_FALLBACK_DEFAULT {
			for _, m := range all {
				if !slices.ContainsFunc(s.standard, func(l Label) bool { v, ok := a.members[m].label(l.Name); return !ok || v != l.Value }) {
					standard = append(standard, m)
				}
			}
		}
		a.set.standard = append(a.set.standard, a.plan(standard))
	}
	slices.SortStableFunc(a.set.subsets, func(x, y subset) int { return cmp.Compare(x.hash, y.hash) })
}
