package listener

import (
	"net/netip"
	"testing"

	"retinue.dev/proxyd/internal/clienthello"
)

func TestMostSpecificChain(t *testing.T) {
	chains := (&Chains{List: []Chain{
		{Match: Match{Suffix: []string{".example.com"}}},
		{Match: Match{SNI: []string{"a.example.com"}}},
		{Match: Match{Suffix: []string{".b.example.com"}}},
		{Match: Match{Sources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}},
		{Match: Match{Sources: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")}, SNI: []string{"a.example.com"}}},
		{},
	}}).Prepare()
	none := (&Chains{List: chains.List[:5]}).Prepare()
	for _, x := range []struct {
		peer, sni string
		want      int
	}{
		{"192.0.2.1", "a.example.com", 1},
		{"192.0.2.1", "A.EXAMPLE.com", 1},
		{"192.0.2.1", "c.example.com", 0},
		{"192.0.2.1", "x.b.example.com", 2},
		{"192.0.2.1", "example.com", 5},
		{"192.0.2.1", ".example.com", 5},
		{"192.0.2.1", "", 5},
		{"10.9.9.9", "a.example.com", 3}, // the source counts before the name
		{"10.1.9.9", "a.example.com", 4},
		{"10.1.9.9", "other", 3},
	} {
		hello := &clienthello.Hello{SNI: []byte(x.sni)}
		if x.sni == "" {
			hello = nil
		}
		if got := chains.find(netip.MustParseAddr(x.peer), hello); got != &chains.List[x.want] {
			t.Errorf("%s %q went elsewhere than to chain %d", x.peer, x.sni, x.want)
		}
		got := none.find(netip.MustParseAddr(x.peer), hello)
		if x.want == 5 && got != nil || x.want < 5 && got != &none.List[x.want] {
			t.Errorf("%s %q without a default chain", x.peer, x.sni)
		}
	}
}
