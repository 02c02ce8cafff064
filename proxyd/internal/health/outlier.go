package health

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"retinue.dev/proxyd/internal/cluster"
)

// outlier is what the detector keeps of one host.
type outlier struct {
	seen      cluster.Outcomes // sums over the workers at the last look
	start     cluster.Outcomes // and at the beginning of the interval
	ejections int              // how often in a row: the next ejection lasts so many times longer
	ejected   bool
	until     time.Time
}

// finding is one thing that a detector found out about a host: Detected, and then Ejected, Overflowed or Unenforced.
type finding struct {
	address string
	what    What
	rule    cluster.OutlierRule
}

// detector finds the outliers of one cluster. It is pure: whoever looks tells the time.
type detector struct {
	rule  *cluster.Outlier
	hosts map[string]*outlier
	next  time.Time // end of the interval
	back  []string  // hosts that the last look let in again
}

func newDetector(rule *cluster.Outlier, now time.Time) *detector {
	return &detector{rule: rule, hosts: map[string]*outlier{}, next: now.Add(rule.Interval)}
}

// set takes the members. What is known of those that stay is kept.
func (d *detector) set(members *cluster.HostSet) {
	keep := make(map[string]*outlier, len(members.Hosts))
	for _, h := range members.Hosts {
		o := d.hosts[h.Address]
		if o == nil {
			o = &outlier{}
			o.seen = h.Sum()
			o.start = o.seen
		}
		keep[h.Address] = o
	}
	d.hosts = keep
}

// look takes the outcomes of now and returns what it found, and whether anybody's state changed.
func (d *detector) look(members *cluster.HostSet, now time.Time) (out []finding, changed bool) {
	d.back = d.back[:0]
	sums := make(map[string]cluster.Outcomes, len(members.Hosts))
	for _, h := range members.Hosts {
		o := d.hosts[h.Address]
		if o == nil {
			continue
		}
		sum := h.Sum()
		sums[h.Address] = sum
		switch {
		case o.ejected:
		case sum.Trips5xx != o.seen.Trips5xx:
			out = d.eject(out, h.Address, cluster.Consecutive5xx, now)
		case sum.TripsGateway != o.seen.TripsGateway:
			out = d.eject(out, h.Address, cluster.ConsecutiveGatewayFailure, now)
		case sum.TripsLocal != o.seen.TripsLocal:
			out = d.eject(out, h.Address, cluster.ConsecutiveLocalOriginFailure, now)
		}
		o.seen = sum
	}
	if !now.Before(d.next) {
		d.next = now.Add(d.rule.Interval)
		for address, o := range d.hosts {
			switch {
			case o.ejected && !now.Before(o.until):
				o.ejected = false
				d.back = append(d.back, address)
			case !o.ejected && o.ejections > 0 && now.Sub(o.until) > d.rule.Interval:
				o.ejections--
			}
		}
		out = d.compare(out, members, sums, now)
		for address, o := range d.hosts {
			o.start = sums[address]
		}
	}
	return out, len(d.back) > 0 || slices.ContainsFunc(out, func(f finding) bool { return f.what == Ejected })
}

// rate is how well a host did in an interval, in percent.
type rate struct {
	address string
	percent float64
}

// rates are those of the hosts that take requests and had so many.
func (d *detector) rates(members *cluster.HostSet, sums map[string]cluster.Outcomes, least uint64) (list []rate) {
	for _, h := range members.Hosts {
		o := d.hosts[h.Address]
		if o == nil || o.ejected {
			continue
		}
		if total := sums[h.Address].Total - o.start.Total; total > 0 && total >= least {
			failed := sums[h.Address].Failed - o.start.Failed
			list = append(list, rate{h.Address, 100 * float64(total-failed) / float64(total)})
		}
	}
	return list
}

// compare ejects hosts by their failures within the interval, and by their success rate beside the others'. Both look at what the
// interval was; whoever one rule ejects is not the other's any more.
func (d *detector) compare(out []finding, members *cluster.HostSet, sums map[string]cluster.Outcomes, now time.Time) []finding {
	success := d.rates(members, sums, d.rule.SuccessRateRequests)
	if p := d.rule.FailurePercentage; p > 0 {
		if list := d.rates(members, sums, d.rule.FailurePercentageRequests); len(list) >= d.rule.FailurePercentageHosts {
			for _, r := range list {
				if 100-r.percent >= float64(p) {
					out = d.eject(out, r.address, cluster.FailurePercentage, now)
				}
			}
		}
	}
	if d.rule.SuccessRateStdevFactor == 0 || len(success) < d.rule.SuccessRateHosts {
		return out
	}
	sum, squares := 0.0, 0.0
	for _, r := range success {
		sum += r.percent
	}
	mean := sum / float64(len(success))
	for _, r := range success {
		squares += (r.percent - mean) * (r.percent - mean)
	}
	threshold := mean - math.Sqrt(squares/float64(len(success)))*float64(d.rule.SuccessRateStdevFactor)/1000
	for _, r := range success {
		if r.percent < threshold {
			out = d.eject(out, r.address, cluster.SuccessRate, now)
		}
	}
	return out
}

// eject takes a host out, unless the rule is not enforced this time, or so many are out already that it must stay.
func (d *detector) eject(out []finding, address string, why cluster.OutlierRule, now time.Time) []finding {
	o := d.hosts[address]
	if o.ejected {
		return out
	}
	out = append(out, finding{address, Detected, why})
	if rand.Uint32N(100) >= d.rule.Enforcing[why] {
		return append(out, finding{address, Unenforced, why})
	}
	if ejected := d.active(); 100*(ejected+1) > d.rule.MaxEjectionPercent*len(d.hosts) && (ejected > 0 || !d.rule.AlwaysEjectOne || d.rule.MaxEjectionPercent == 0) {
		return append(out, finding{address, Overflowed, why})
	}
	o.ejected = true
	o.ejections++
	lasts := min(time.Duration(o.ejections)*d.rule.BaseEjection, max(d.rule.MaxEjection, d.rule.BaseEjection))
	o.until = now.Add(lasts + upTo(d.rule.EjectionJitter))
	return append(out, finding{address, Ejected, why})
}

// pardon ends an ejection early: a check has passed. It tells whether there was one that may be ended.
func (d *detector) pardon(address string) bool {
	o := d.hosts[address]
	if !d.rule.UnejectOnCheck || o == nil || !o.ejected {
		return false
	}
	o.ejected = false
	return true
}

// inherit takes what another process knew of the hosts.
func (d *detector) inherit(former map[string]Verdict, now time.Time) {
	for address, v := range former {
		o := d.hosts[address]
		if o == nil || v.Ejections == 0 {
			continue
		}
		o.ejections, o.until = v.Ejections, v.Until
		o.ejected = v.Ejected && now.Before(v.Until)
	}
}

// out tells whether a host is ejected.
func (d *detector) out(address string) bool {
	o := d.hosts[address]
	return o != nil && o.ejected
}

// active is how many hosts are ejected.
func (d *detector) active() (n int) {
	for _, o := range d.hosts {
		if o.ejected {
			n++
		}
	}
	return n
}
