// Package ipfilter is the filter that lets clients in by their address. It keeps nothing of a stream; one value serves a worker.
package ipfilter

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	text   = "access denied"
	detail = "ip_denied"
)

// Filter is the filter of one object: a stream.Factory and the one filter that it makes.
type Filter struct {
	stream.PassThrough
	allow, deny set
	all         bool // there is no allow list
	shadow      bool
	cells       []*counters.IP
}

// New builds the filter.
func New(o *configv1.IpFilter, cells []*counters.IP) (*Filter, error) {
	f := &Filter{all: len(o.GetAllow()) == 0, shadow: o.GetShadow(), cells: cells}
	var err error
	if f.allow, err = newSet(o.GetAllow()); err != nil {
		return nil, err
	}
	f.deny, err = newSet(o.GetDeny())
	return f, err
}

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(*worker.Worker) stream.Filter { return f }

// DecodeHeaders implements stream.Filter. The client is the address that xff_num_trusted_hops says.
func (f *Filter) DecodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	s := c.Stream()
	if f.admit(s.Client, s.Worker) {
		return stream.Continue
	}
	s.LocalReply(403, text, 0, detail)
	return stream.StopIteration
}

// Admit decides about a connection, by its peer: of the PROXY header, where one is expected.
func (f *Filter) Admit(c *conn.Conn, w *worker.Worker) bool { return f.admit(c.Peer().Addr(), w) }

func (f *Filter) admit(a netip.Addr, w *worker.Worker) bool {
	a = a.Unmap().WithZone("")
	cells := f.cells[w.ID]
	if !f.deny.has(a) && (f.all || f.allow.has(a)) {
		cells[counters.IPAllowed]++
		return true
	}
	if f.shadow {
		cells[counters.IPShadowDenied]++
		return true
	}
	cells[counters.IPDenied]++
	return false
}

// set is networks as ranges that do not overlap, in order: thousands cost a dozen comparisons.
type set []span

type span struct{ first, last netip.Addr }

func newSet(list []string) (set, error) {
	var all set
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a network such as 10.0.0.0/8", text)
		}
		all = append(all, span{p.Masked().Addr(), last(p)})
	}
	slices.SortFunc(all, func(a, b span) int { return cmp.Or(a.first.Compare(b.first), b.last.Compare(a.last)) })
	out := all[:0]
	for _, s := range all { // networks lie within each other or apart
		if n := len(out); n > 0 && s.last.Compare(out[n-1].last) <= 0 {
			continue
		}
		out = append(out, s)
	}
	return out, nil
}

// last is the greatest address of a network.
func last(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := range b {
		if host := min(max(8*(i+1)-p.Bits(), 0), 8); host > 0 {
			b[i] |= byte(1<<host - 1)
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (s set) has(a netip.Addr) bool {
	low, high := 0, len(s)
	for low < high {
		middle := int(uint(low+high) >> 1)
		if s[middle].last.Compare(a) < 0 {
			low = middle + 1
		} else {
			high = middle
		}
	}
	return low < len(s) && s[low].first.Compare(a) <= 0
}
