package compile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hashicorp/hcl/v2"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

func (c *compiler) listener(n *schema.Node) {
	c.objects++
	l := c.listenerSettings(n.Label, n, n.List("address"), n.Range("address"), n.Failed("address"))
	chains := n.All("filter_chain")
	if len(chains) > 0 {
		for _, name := range []string{"http", "tcp", "tls"} {
			if b := n.Child(name); b != nil {
				c.diags.Report(diag.Exclusive, b.DefRange, "Attributes exclude each other", "A listener with filter chains has its %s inside of them.", name)
			}
		}
		c.filterChains(n.Label, l, chains, c.connectionFilters(n, nil))
	} else if chain := c.filterChain(n.Label, n, nil); chain != nil {
		l.FilterChains = []*configv1.FilterChain{chain}
	} else {
		return
	}
	if p := n.Child("proxy_protocol"); p != nil {
		c.within(p, func() {
			l.ProxyProtocol = &configv1.ProxyProtocol{Trusted: c.networks(p.List("trusted")), Optional: p.Bool("optional")}
		})
	}
	c.out.Add(&configv1.Object{Kind: "listener", Name: n.Label, Body: &configv1.Object_Listener{Listener: l}}, c.place(n.DefRange))
	c.mark("listener", n.Label, n)
	c.markBlocks("listener", n.Label, n)
}

// filterChain compiles the http or tcp block, and the TLS before it, of a listener or of one of its chains. filters are those of
// the listener.
func (c *compiler) filterChain(name string, n *schema.Node, filters []*configv1.FilterUse) *configv1.FilterChain {
	chain := &configv1.FilterChain{Name: name, Filters: c.connectionFilters(n, filters)}
	http, tcp := n.Child("http"), n.Child("tcp")
	if (http == nil) == (tcp == nil) {
		what := "has neither"
		if http != nil {
			what = "has both"
		}
		c.diags.Report(diag.Exclusive, n.DefRange, "Listener without one protocol", "A %s has one http or one tcp block; this %s.", strings.ReplaceAll(n.Block.Name, "_", " "), what)
		return nil
	}
	chain.Tls = c.downstreamTLS(n.Child("tls"), http != nil)
	if http != nil {
		c.within(http, func() {
			c.out.Add(&configv1.Object{Kind: "http", Name: name, Body: &configv1.Object_Http{Http: c.http(name, http)}}, c.place(http.DefRange))
			c.mark("http", name, http)
		})
		chain.Filter = &configv1.FilterChain_Http{Http: name}
	} else {
		c.within(tcp, func() { chain.Filter = &configv1.FilterChain_Tcp{Tcp: c.tcp(name, tcp)} })
	}
	return chain
}

// connectionKinds are the types of filters that can judge a connection.
var connectionKinds = []string{"ip", "rbac", "rate_limit"}

// connectionFilters is what a listener's or a chain's connections meet: its own list, or the inherited one.
func (c *compiler) connectionFilters(n *schema.Node, inherited []*configv1.FilterUse) (out []*configv1.FilterUse) {
	if !n.Has("filters") {
		return inherited
	}
	for _, u := range c.filterUses(n, "filters", nil) {
		kind, _, _ := strings.Cut(u.GetFilter(), ".")
		if !slices.Contains(connectionKinds, kind) {
			c.diags.Report(diag.NotAReference, n.Range("filters"), "Filter of the wrong type", "%s cannot judge a connection; those that can are of the types %s.", used(u), strings.Join(connectionKinds, ", "))
			continue
		}
		out = append(out, u)
	}
	return out
}

// filterChains compiles a listener's chains; two of them are not for the very same connections.
func (c *compiler) filterChains(listener string, l *configv1.Listener, nodes []*schema.Node, filters []*configv1.FilterUse) {
	names, matches := map[string]hcl.Range{}, map[string]hcl.Range{}
	for _, n := range nodes {
		c.within(n, func() {
			if first, twice := names[n.Label]; twice {
				c.diags.Report(diag.DuplicateName, n.LabelRange, "Name used twice", "There is already a filter_chain %q on %s.", n.Label, schema.Place(first))
				return
			}
			names[n.Label] = n.LabelRange
			chain := c.filterChain(listener+"/"+n.Label, n, filters)
			if chain == nil {
				return
			}
			l.FilterChains = append(l.FilterChains, chain)
			errors := c.diags.Errors()
			if m := n.Child("match"); m != nil {
				c.within(m, func() {
					chain.Match = &configv1.FilterChainMatch{Sni: c.serverNames(m.List("sni")), Alpn: c.alpn(m), Sources: c.networks(m.List("source"))}
				})
			}
			if c.diags.Errors() > errors {
				return // what it is for is not known
			}
			key := fmt.Sprintf("%q %q %q", chain.GetMatch().GetSni(), chain.GetMatch().GetAlpn(), chain.GetMatch().GetSources())
			if first, twice := matches[key]; twice {
				c.diags.Report(diag.DuplicateName, n.DefRange, "Filter chains match the same", "The filter chain on %s takes the very same connections; this one would get none.", schema.Place(first))
			}
			matches[key] = n.DefRange
		})
	}
}

// serverNames reads names as TLS clients ask for them.
func (c *compiler) serverNames(values []schema.Value) []string {
	var list []string
	for _, v := range values {
		text, _ := v.V.(string)
		name := strings.ToLower(text)
		if !hostName(strings.TrimPrefix(name, "*.")) {
			c.diags.Report(diag.InvalidDomain, v.Range, "Invalid server name", "%q is none of \"shop.example.com\" and \"*.example.com\".", text)
			continue
		}
		list = append(list, name)
	}
	return list
}

// listenerSettings compiles everything but the filter chains.
func (c *compiler) listenerSettings(name string, n *schema.Node, addresses []schema.Value, at hcl.Range, broken bool) *configv1.Listener {
	l := &configv1.Listener{
		Name: name, MaxConnections: uint32(n.Int("max_connections")), PerConnectionBufferLimitBytes: uint32(n.Int("buffer_limit")),
		Backlog: uint32(n.Int("backlog")), TcpDeferAccept: n.Bool("defer_accept"), ListenerFiltersTimeoutMs: n.Int("filters_timeout"),
	}
	mode, err := strconv.ParseUint(n.Str("unix_mode"), 8, 32)
	if err != nil || mode > 0o777 || mode == 0 {
		c.diags.Report(diag.OutOfRange, n.Range("unix_mode"), "Invalid mode", "A file mode is octal, \"0600\" to \"0777\".")
	}
	if addresses != nil && len(addresses) == 0 && !broken {
		c.diags.Report(diag.MissingAttribute, at, "No address", "A listener has at least one address.")
	}
	for i, v := range addresses {
		address, ok := c.address(v, true)
		if !ok {
			continue
		}
		c.claim(address, v.Range)
		a := &configv1.Address{Address: address}
		if strings.HasPrefix(address, "unix:") {
			a.Mode = uint32(mode)
		}
		l.Addresses = append(l.Addresses, a)
		c.out.Mark("listener", name, index("address", i), c.place(v.Range))
	}
	return l
}

func (c *compiler) tcp(name string, n *schema.Node) *configv1.TcpProxy {
	t := &configv1.TcpProxy{
		StatPrefix: n.Str("stat_prefix"), IdleTimeoutMs: n.Int("idle_timeout"),
		AccessLogs: c.refs(n.List("access_log")), MaxConnectAttempts: uint32(n.Int("max_connect_attempts")),
	}
	if t.StatPrefix == "" {
		t.StatPrefix = name
	}
	t.HashSource = n.Str("hash_on") == "source"
	t.Filters = c.filters(n, nil)
	switch one, several := n.Has("cluster"), n.Has("split"); {
	case one && several:
		c.diags.Report(diag.Exclusive, n.Range("split"), "Attributes exclude each other", "Connections go to cluster or to split: write one.")
	case one || several:
		t.Clusters = c.targets(n)
	case !n.Failed("cluster") && !n.Failed("split"):
		c.diags.Report(diag.MissingAttribute, n.DefRange, "Missing attribute", "tcp needs cluster or split: where connections go.")
	}
	return t
}
