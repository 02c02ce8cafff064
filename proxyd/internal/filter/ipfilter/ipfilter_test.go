package ipfilter

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// A set holds what one of its networks holds.
func TestSet(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() netip.Addr {
		if rng.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, byte(rng.IntN(4)), byte(rng.IntN(4)), byte(rng.IntN(256))})
		}
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(rng.IntN(4)), byte(rng.IntN(256)), 15: byte(rng.IntN(256))})
	}
	for range 200 {
		var list []string
		var networks []netip.Prefix
		for range rng.IntN(20) {
			a := random()
			p := netip.PrefixFrom(a, rng.IntN(a.BitLen()+1)).Masked()
			list, networks = append(list, p.String()), append(networks, p)
		}
		s, err := newSet(list)
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			a, want := random(), false
			for _, p := range networks {
				want = want || p.Contains(a)
			}
			if s.has(a) != want {
				t.Fatalf("%v in %v: %v", a, list, !want)
			}
		}
	}
	if _, err := newSet([]string{"10.0.0.0"}); err == nil {
		t.Error("an address is no network here")
	}
	if s, _ := newSet([]string{"0.0.0.0/0"}); s.has(netip.Addr{}) || s.has(netip.MustParseAddr("::1")) {
		t.Error("every IPv4 address is more than that")
	}
}
