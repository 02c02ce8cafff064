package health

import (
	"math"
	"time"

	"retinue.dev/proxyd/internal/cluster"
)

// The rules of success rate and failure percentage look at hosts with some traffic, in clusters with some of them. Envoy's
// numbers.
const (
	fewestHosts       = 5
	fewestForRate     = 100 // requests in an interval
	fewestForFailures = 50
)

// Detail says by which rule a host was ejected.
type Detail uint8

// The rules, with Envoy's names.
const (
	Consecutive5xx Detail = iota
	ConsecutiveGatewayFailure
	SuccessRate
	FailurePercentage
)

func (d Detail) String() string {
	return [...]string{"consecutive_5xx", "consecutive_gateway_failure", "success_rate", "failure_percentage"}[d]
}

// outlier is what the detector keeps of one host.
type outlier struct {
	seen      cluster.Outcomes // sums over the workers at the last look
	start     cluster.Outcomes // and at the beginning of the interval
	ejections int              // how often in a row: the next ejection lasts so many times longer
	ejected   bool
	until     time.Time
}

// ejection is one verdict of a detector.
type ejection struct {
	address string
	detail  Detail
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

// look takes the outcomes of now and returns who was ejected and whether anybody's state changed.
func (d *detector) look(members *cluster.HostSet, now time.Time) (out []ejection, changed bool) {
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
			out = d.eject(out, h.Address, Consecutive5xx, now)
		case sum.TripsGateway != o.seen.TripsGateway:
			out = d.eject(out, h.Address, ConsecutiveGatewayFailure, now)
		}
		o.seen = sum
	}
	if now.Before(d.next) {
		return out, len(out) > 0
	}
	d.next = now.Add(d.rule.Interval)
	for address, o := range d.hosts {
		switch {
		case o.ejected && !now.Before(o.until):
			o.ejected, changed = false, true
			d.back = append(d.back, address)
		case !o.ejected && o.ejections > 0 && now.Sub(o.until) > d.rule.Interval:
			o.ejections--
		}
	}
	out = d.compare(out, members, sums, now)
	for address, o := range d.hosts {
		o.start = sums[address]
	}
	return out, changed || len(out) > 0
}

// compare holds the hosts of an interval against each other and against the failure percentage.
func (d *detector) compare(out []ejection, members *cluster.HostSet, sums map[string]cluster.Outcomes, now time.Time) []ejection {
	type rate struct {
		address string
		percent float64
		total   uint64
	}
	var rates []rate
	var sum float64
	for _, h := range members.Hosts {
		o := d.hosts[h.Address]
		if o == nil || o.ejected {
			continue
		}
		total := sums[h.Address].Total - o.start.Total
		if total < fewestForFailures {
			continue
		}
		failed := sums[h.Address].Failed - o.start.Failed
		rates = append(rates, rate{h.Address, 100 * float64(total-failed) / float64(total), total})
	}
	if p := d.rule.FailurePercentage; p > 0 && len(rates) >= fewestHosts {
		for _, r := range rates {
			if 100-r.percent >= float64(p) {
				out = d.eject(out, r.address, FailurePercentage, now)
			}
		}
	}
	if d.rule.SuccessRateStdevFactor == 0 {
		return out
	}
	n := 0
	for _, r := range rates {
		if r.total >= fewestForRate {
			rates[n] = r
			sum += r.percent
			n++
		}
	}
	if rates = rates[:n]; n < fewestHosts {
		return out
	}
	mean, squares := sum/float64(n), 0.0
	for _, r := range rates {
		squares += (r.percent - mean) * (r.percent - mean)
	}
	threshold := mean - math.Sqrt(squares/float64(n))*float64(d.rule.SuccessRateStdevFactor)/1000
	for _, r := range rates {
		if r.percent < threshold && !d.hosts[r.address].ejected {
			out = d.eject(out, r.address, SuccessRate, now)
		}
	}
	return out
}

// eject takes a host out, unless so many are out already that it must stay; one may always be.
func (d *detector) eject(out []ejection, address string, why Detail, now time.Time) []ejection {
	o := d.hosts[address]
	if o.ejected {
		return out
	}
	ejected := 0
	for _, other := range d.hosts {
		if other.ejected {
			ejected++
		}
	}
	if d.rule.MaxEjectionPercent == 0 || ejected > 0 && 100*(ejected+1) > d.rule.MaxEjectionPercent*len(d.hosts) {
		return out
	}
	o.ejected = true
	o.ejections++
	lasts := min(time.Duration(o.ejections)*d.rule.BaseEjection, max(d.rule.MaxEjection, d.rule.BaseEjection))
	o.until = now.Add(lasts)
	return append(out, ejection{address, why})
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
