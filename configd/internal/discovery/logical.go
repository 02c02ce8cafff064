package discovery

import (
	"cmp"
	"net/netip"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"
)

// maxAddresses is how many addresses of a logical endpoint are told. With 300 ms between two the sixteenth is tried when a connect
// timeout of 5 s is all but over.
const maxAddresses = 16

// logical makes the endpoint that stands for a name, whatever its addresses are.
func logical(host string, addresses []netip.Addr, port uint16, weight uint32) *configv1.Endpoint {
	e := &configv1.Endpoint{Name: host + ":" + strconv.Itoa(int(port)), Weight: weight}
	for i, a := range interleave(addresses) {
		if text := netip.AddrPortFrom(a, port).String(); i == 0 {
			e.Address = text
		} else {
			e.AdditionalAddresses = append(e.AdditionalAddresses, text)
		}
	}
	return e
}

// interleave orders addresses as they are tried: IPv6 and IPv4 by turns, so that a family that does not work costs one stagger (RFC
// 8305 section 4, with a First Address Family Count of 1). Within a family the order of the name server stays: it is by turning
// its records round that one spreads load, which the rules of RFC 6724 would undo.
func interleave(addresses []netip.Addr) []netip.Addr {
	var four, six []netip.Addr
	seen := make(map[netip.Addr]bool, len(addresses))
	for _, a := range addresses {
		switch {
		case seen[a]:
		case a.Is4():
			four = append(four, a)
		default:
			six = append(six, a)
		}
		seen[a] = true
	}
	out := make([]netip.Addr, 0, len(four)+len(six))
	for i := range max(len(four), len(six)) {
		if i < len(six) {
			out = append(out, six[i])
		}
		if i < len(four) {
			out = append(out, four[i])
		}
	}
	return out
}

// bounded is the endpoints as they are told: with their first addresses. A Table compares them with all, since a name server that
// turns many addresses round brings others to the front each time.
func bounded(list []*configv1.Endpoint) []*configv1.Endpoint {
	return each(list, func(e *configv1.Endpoint) bool { return len(e.GetAdditionalAddresses()) >= maxAddresses }, func(e *configv1.Endpoint) {
		e.AdditionalAddresses = e.GetAdditionalAddresses()[:maxAddresses-1]
	})
}

// sorted is the endpoints without the order of their addresses.
func sorted(list []*configv1.Endpoint) []*configv1.Endpoint {
	return each(list, func(e *configv1.Endpoint) bool { return len(e.GetAdditionalAddresses()) > 0 }, func(e *configv1.Endpoint) {
		all := append(e.GetAdditionalAddresses(), e.GetAddress())
		slices.SortFunc(all, cmp.Compare[string])
		e.Address, e.AdditionalAddresses = all[0], all[1:]
	})
}

// each is a list with copies of those that are changed.
func each(list []*configv1.Endpoint, which func(*configv1.Endpoint) bool, change func(*configv1.Endpoint)) []*configv1.Endpoint {
	out := slices.Clone(list)
	for i, e := range out {
		if which(e) {
			out[i] = proto.CloneOf(e)
			change(out[i])
		}
	}
	return out
}
