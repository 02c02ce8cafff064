package cluster

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
)

// Envoy's defaults.
const (
	defaultPanicPercent     = 50
	defaultOverprovisioning = 140
	defaultRingMin          = 1024
	maxRing                 = 8 << 20
	defaultMaglev           = 65537
	maxMaglev               = 5_000_011
	defaultAggression       = 1000
	defaultMinWeightPercent = 10
)

// Rule is how the hosts of a cluster share its requests. Immutable.
type Rule struct {
	Policy           configv1.Balance
	PanicPercent     int // 0: never
	Overprovisioning int // percent
	FailOnPanic      bool
	SlowStart        *SlowStart        // nil: none
	localities       map[string]uint64 // weights; nil: localities mean nothing
	ringMin, ringMax uint64
	maglev           uint64
	bound            uint64 // percent of its fair part that a host takes by consistent hash; 0: any
	selectors        []selector
}

// SlowStart lets the share of a host that joins grow. Immutable.
type SlowStart struct {
	Window     time.Duration
	aggression float64
	least      float64
}

// Factor is the part of its weight that a host has which joined so long ago.
func (s *SlowStart) Factor(since time.Duration) float64 {
	if since >= s.Window {
		return 1
	}
	return max(s.least, math.Pow(float64(max(since, 0))/float64(s.Window), 1/s.aggression))
}

// selector makes subsets by some keys.
type selector struct {
	keys     []string
	names    string // the keys, as a Subset has them
	fallback configv1.SubsetFallback
	standard []Label // of the fallback to a default
}

// Subset is metadata that a route asks of its host. Immutable.
type Subset struct {
	names, values string
	hash          uint64
}

// NewSubset makes the one that asks for these; nil when they are none.
func NewSubset(metadata []*configv1.Metadata) *Subset {
	if len(metadata) == 0 {
		return nil
	}
	list := labels(metadata)
	slices.SortFunc(list, func(a, b Label) int { return strings.Compare(a.Name, b.Name) })
	s := &Subset{}
	for _, l := range list {
		s.names += l.Name + "\x00"
		s.values += l.Value + "\x00"
	}
	s.hash = subsetHash(s.names, s.values)
	return s
}

func labels(metadata []*configv1.Metadata) (list []Label) {
	for _, m := range metadata {
		list = append(list, Label{m.GetName(), m.GetValue()})
	}
	return list
}

func (r *Rule) hashes() bool { return r.Policy >= configv1.Balance_BALANCE_RING_HASH }

// plain tells that every healthy host is as good as the others but for its weight.
func (r *Rule) plain() bool { return r.localities == nil && len(r.selectors) == 0 }

func buildRule(c *configv1.Cluster) (*Rule, error) {
	if _, known := configv1.Balance_name[int32(c.GetBalance())]; !known {
		return nil, fmt.Errorf("balance: this proxyd does not know the policy %v", c.GetBalance())
	}
	r := &Rule{
		Policy: c.GetBalance(), PanicPercent: defaultPanicPercent, Overprovisioning: int(limit(c.GetOverprovisioningFactor(), defaultOverprovisioning)),
		FailOnPanic: c.GetFailTrafficOnPanic(),
		ringMin:     c.GetRingHash().GetMinSize(), ringMax: c.GetRingHash().GetMaxSize(),
		maglev: limit(c.GetMaglev().GetTableSize(), defaultMaglev), bound: uint64(c.GetHashBalanceFactor()),
	}
	if r.bound > 0 && r.bound < 100 {
		return nil, fmt.Errorf("hash_balance_factor: %d %% are less than the mean, which somebody has", r.bound)
	}
	if c.PanicThresholdPercent != nil {
		r.PanicPercent = int(min(c.GetPanicThresholdPercent(), 100))
	}
	if r.ringMin == 0 {
		r.ringMin = defaultRingMin
	}
	if r.ringMax == 0 {
		r.ringMax = maxRing
	}
	if r.ringMax > maxRing || r.ringMin > r.ringMax {
		return nil, fmt.Errorf("ring_hash: %d to %d places are not between 1 and %d", r.ringMin, r.ringMax, maxRing)
	}
	if r.maglev > maxMaglev || !big.NewInt(int64(r.maglev)).ProbablyPrime(0) {
		return nil, fmt.Errorf("maglev: a table size of %d is not a prime of %d at most", r.maglev, maxMaglev)
	}
	for _, l := range c.GetLocalities() {
		if r.localities == nil {
			r.localities = map[string]uint64{}
		}
		r.localities[l.GetLocality()] = uint64(min(l.GetWeight(), maxWeight))
	}
	if s := c.GetSlowStart(); s.GetWindowMs() > 0 && !r.hashes() {
		r.SlowStart = &SlowStart{
			Window:     milliseconds(s.GetWindowMs(), 0),
			aggression: float64(limit(s.GetAggression(), defaultAggression)) / 1000,
			least:      float64(min(limit(s.GetMinWeightPercent(), defaultMinWeightPercent), 100)) / 100,
		}
	}
	for _, s := range c.GetSubsets() {
		to := selector{keys: slices.Sorted(slices.Values(s.GetKeys())), fallback: s.GetFallback(), standard: labels(s.GetDefaultSubset())}
		if len(to.keys) == 0 {
			return nil, fmt.Errorf("subsets: a selector names at least one key")
		}
		to.names = strings.Join(to.keys, "\x00") + "\x00"
		r.selectors = append(r.selectors, to)
	}
	return r, nil
}
