package compile

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// siteHost checks a site's label and gives it in lower case.
func (c *compiler) siteHost(r *schema.Raw) (string, bool) {
	return c.domain(schema.Value{V: r.Label, Range: r.LabelRange})
}

// siteListener is what sites with the same listen list share.
type siteListener struct {
	listener *configv1.Listener
	http     *configv1.Http
	first    *schema.Node
	domains  map[string]hcl.Range
}

// sites expands the short form: a virtual host and a cluster each, and a listener for each listen list.
func (c *compiler) sites(nodes []*schema.Node) {
	shared := map[string]*siteListener{}
	var order []string
	for _, n := range nodes {
		c.within(n, func() {
			key := listKey(n.List("listen"))
			s := shared[key]
			if s == nil {
				s = c.siteListener(n, len(order))
				shared[key] = s
				order = append(order, key)
			}
			c.site(n, s)
		})
	}
	for _, key := range order {
		s := shared[key]
		name := s.listener.Name
		if first, ok := c.scope.Declare("listener", name, s.first.DefRange); !ok {
			c.diags.Report(diag.DuplicateName, s.first.DefRange, "Name used twice", "Sites make the listener %q, and there is one of that name on %s.", name, schema.Place(first))
			continue
		}
		c.objects++
		s.listener.FilterChains = []*configv1.FilterChain{{Name: name, Filter: &configv1.FilterChain_Http{Http: name}}}
		c.out.Add(&configv1.Object{Kind: "http", Name: name, Body: &configv1.Object_Http{Http: s.http}}, c.place(s.first.DefRange))
		c.out.Add(&configv1.Object{Kind: "listener", Name: name, Body: &configv1.Object_Listener{Listener: s.listener}}, c.place(s.first.DefRange))
	}
}

func listKey(list []schema.Value) string {
	var words []string
	for _, v := range list {
		s, _ := v.V.(string)
		words = append(words, s)
	}
	slices.Sort(words)
	return strings.Join(words, " ")
}

func (c *compiler) siteListener(n *schema.Node, before int) *siteListener {
	name := "site"
	if before > 0 {
		name = fmt.Sprintf("site-%d", before+1)
	}
	listen := n.List("listen")
	for i := range listen {
		if listen[i].Range.Filename == "" { // the default stands nowhere
			listen[i].Range = n.DefRange
		}
	}
	s := &siteListener{
		listener: c.listenerSettings(name, c.dec.Synthetic("listener", n.DefRange), listen, n.Range("listen"), n.Failed("listen")),
		http:     c.httpSettings(name, c.dec.Synthetic("http", n.DefRange)),
		first:    n, domains: map[string]hcl.Range{},
	}
	if logs := c.refs(n.List("access_log")); logs != nil {
		s.http.AccessLogs = logs
	}
	return s
}

func (c *compiler) site(n *schema.Node, s *siteListener) {
	c.objects += 3
	if s.first != n && !slices.Equal(c.refs(n.List("access_log")), c.refs(s.first.List("access_log"))) {
		at := n.DefRange
		if n.Has("access_log") {
			at = n.Range("access_log")
		}
		c.diags.Report(diag.Exclusive, at, "Sites disagree", "Sites of the same listen list share one listener and its access logs; those of the first are on %s.", schema.Place(s.first.DefRange))
	}
	v := &configv1.VirtualHost{Name: n.Label, Source: c.source(n.DefRange)}
	domains := append([]schema.Value{{V: n.Label, Range: n.LabelRange}}, n.List("aliases")...)
	for _, d := range domains {
		domain, ok := c.domain(d)
		if !ok {
			continue
		}
		if first, twice := s.domains[domain]; twice {
			c.diags.Report(diag.DuplicateDomain, d.Range, "Domain used twice", "%s is already claimed by the site on %s.", domain, schema.Place(first))
			continue
		}
		s.domains[domain] = d.Range
		v.Domains = append(v.Domains, domain)
	}
	timeout := c.dec.Synthetic("route", n.DefRange).Int("timeout")
	v.Routes = []*configv1.Route{{
		Name:   "/*",
		Match:  &configv1.RouteMatch{Path: &configv1.RouteMatch_Prefix{Prefix: "/"}},
		Action: &configv1.Route_Route{Route: &configv1.RouteAction{Clusters: []*configv1.WeightedCluster{{Cluster: n.Label, Weight: 1}}, TimeoutMs: proto.Int64(timeout)}},
		Source: c.source(n.DefRange),
	}}
	s.http.VirtualHosts = append(s.http.VirtualHosts, v)

	cl := c.clusterSettings(n.Label, c.dec.Synthetic("cluster", n.DefRange))
	c.endpoints(cl, n.List("upstream"), func(v schema.Value) (schema.Value, *configv1.Endpoint) { return v, &configv1.Endpoint{Weight: 1} }, n.Range("upstream"), n.Failed("upstream"))
	c.out.Add(&configv1.Object{Kind: "cluster", Name: n.Label, Body: &configv1.Object_Cluster{Cluster: cl}}, c.place(n.DefRange))
	c.mark("cluster", n.Label, n)
}
