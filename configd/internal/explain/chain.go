package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	configv1 "retinue.dev/services/api/config/v1"
)

// chain finds the filter chain of a connection: the most specific one that matches, in the order source, SNI, ALPN. An HTTP client
// offers h2 and http/1.1.
func (y *story) chain(l *configv1.Listener, t target, source netip.Addr) *configv1.FilterChain {
	chains := l.GetFilterChains()
	var best *configv1.FilterChain
	var rank [3]int
	for _, c := range chains {
		r, reason := specificity(c, t, source)
		if reason == "" && (best == nil || slices.Compare(r[:], rank[:]) > 0) {
			best, rank = c, r
		}
	}
	at := y.at("listener", l.GetName(), "")
	for _, c := range chains {
		if len(chains) == 1 && best == c {
			break // there was nothing to choose
		}
		_, reason := specificity(c, t, source)
		switch {
		case c == best:
			y.tell("chain", c.GetName(), "", at)
		case reason == "":
			y.reject("chain", c.GetName(), "a more specific one matches", at)
		default:
			y.reject("chain", c.GetName(), reason, at)
		}
	}
	if best.GetTls() != nil && !t.tls {
		y.reject("tls", "", "the chain speaks TLS, and the URL is plain http", at)
		return nil
	}
	if best != nil && best.GetTls() == nil && t.tls && best.GetTcp() == nil {
		y.reject("tls", "", "the chain does not speak TLS, and the URL is https", at)
		return nil
	}
	return best
}

// specificity ranks a chain that matches; reason says why it does not.
func specificity(c *configv1.FilterChain, t target, source netip.Addr) (rank [3]int, reason string) {
	m := c.GetMatch()
	if list := m.GetSources(); len(list) > 0 {
		rank[0] = -1
		for _, text := range list {
			if p, err := netip.ParsePrefix(text); err == nil && p.Contains(source) {
				rank[0] = max(rank[0], p.Bits()+1)
			}
		}
		if rank[0] < 0 {
			return rank, fmt.Sprintf("the source %s is not in %s", source, strings.Join(list, ", "))
		}
	}
	if list := m.GetSni(); len(list) > 0 {
		name := t.name
		if !t.tls {
			name = ""
		}
		for _, want := range list {
			switch suffix, wild := strings.CutPrefix(want, "*"); {
			case want == name:
				rank[1] = 1000
			case wild && name != "" && strings.HasSuffix(name, suffix) && len(name) > len(suffix):
				rank[1] = max(rank[1], len(suffix))
			}
		}
		if rank[1] == 0 {
			return rank, fmt.Sprintf("the server name %q is not %s", name, strings.Join(list, " or "))
		}
	}
	if list := m.GetAlpn(); len(list) > 0 {
		if !t.tls || !slices.ContainsFunc(list, func(p string) bool { return p == "h2" || p == "http/1.1" }) {
			return rank, fmt.Sprintf("the client does not offer %s by ALPN", strings.Join(list, " or "))
		}
		rank[2] = 1
	}
	return rank, ""
}
