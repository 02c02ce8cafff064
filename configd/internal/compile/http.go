package compile

import (
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// http compiles an http block with its virtual hosts.
func (c *compiler) http(name string, n *schema.Node) *configv1.Http {
	h := c.httpSettings(name, n)
	hosts := map[string]hcl.Range{}
	domains := map[string]hcl.Range{}
	filters := c.filters(n, nil)
	h.Filters = filters
	for _, v := range n.All("virtual_host") {
		c.within(v, func() {
			if first, twice := hosts[v.Label]; twice {
				c.diags.Report(diag.DuplicateName, v.LabelRange, "Name used twice", "There is already a virtual_host %q on %s.", v.Label, schema.Place(first))
			}
			hosts[v.Label] = v.LabelRange
			h.VirtualHosts = append(h.VirtualHosts, c.virtualHost(v, domains, filters, append([]string{}, h.UpgradeTypes...)))
			for _, r := range v.All("route") {
				if b := r.Child("tracing"); b != nil && h.Tracing == nil {
					c.diags.Report(diag.NoEffect, b.DefRange, "No traces", "The http block has no tracing block, so there is no sampling that a route could change.")
				}
			}
		})
	}
	return h
}

// httpSettings compiles everything but the virtual hosts.
func (c *compiler) httpSettings(name string, n *schema.Node) *configv1.Http {
	h := &configv1.Http{
		Name: name, StatPrefix: n.Str("stat_prefix"),
		AccessLogs:       c.refs(n.List("access_log")),
		UseRemoteAddress: n.Bool("use_remote_address"), XffNumTrustedHops: uint32(n.Int("xff_num_trusted_hops")),
		GenerateRequestId: n.Bool("generate_request_id"), PreserveExternalRequestId: n.Bool("preserve_external_request_id"),
		Via: n.Str("via"), ServerName: n.Str("server_name"), NoHalfClose: !n.Bool("half_close"), EnvoyHeaders: n.Bool("envoy_headers"),
		Source: c.source(n.DefRange), ForwardClientCert: n.Str("forward_client_cert"),
	}
	h.InternalNetworks = c.networks(n.List("internal_networks"))
	for _, v := range n.List("client_cert_details") {
		what, _ := v.V.(string)
		if !slices.Contains([]string{"subject", "uri", "dns", "cert", "chain"}, what) {
			c.diags.Report(diag.OutOfRange, v.Range, "Value not allowed", "%q is none of subject, uri, dns, cert and chain.", what)
			continue
		}
		h.ClientCertDetails = append(h.ClientCertDetails, what)
	}
	if h.StatPrefix == "" {
		h.StatPrefix = name
	}
	for _, a := range []string{"via", "server_name"} {
		if n.Has(a) {
			c.plainValue(n.Get(a))
		}
	}
	h.HeaderCase = c.headerCase(n.List("header_case"))
	h.UpgradeTypes = c.upgrades(n.List("upgrades"), nil)
	t := n.Child("timeouts")
	if t == nil {
		t = c.dec.Synthetic("timeouts", n.DefRange)
	}
	h.Timeouts = &configv1.HttpTimeouts{
		IdleMs: t.Int("idle"), RequestHeadersMs: t.Int("request_headers"), RequestMs: t.Int("request"), StreamIdleMs: t.Int("stream_idle"),
		MaxStreamDurationMs: t.Int("max_stream_duration"), MaxConnectionDurationMs: t.Int("max_connection_duration"),
		DrainMs: t.Int("drain"), DelayedCloseMs: t.Int("delayed_close"),
	}
	h.RequestHeaders, h.ResponseHeaders = c.headers(n)
	p := n.Child("path")
	if p == nil {
		p = c.dec.Synthetic("path", n.DefRange)
	}
	h.Path = &configv1.PathOptions{
		MergeSlashes: p.Bool("merge_slashes"),
		EscapedSlashes: map[string]configv1.EscapedSlashes{
			"reject":   configv1.EscapedSlashes_ESCAPED_SLASHES_REJECT,
			"redirect": configv1.EscapedSlashes_ESCAPED_SLASHES_REDIRECT,
			"decode":   configv1.EscapedSlashes_ESCAPED_SLASHES_DECODE,
		}[p.Str("escaped_slashes")],
	}
	l := n.Child("limits")
	if l == nil {
		l = c.dec.Synthetic("limits", n.DefRange)
	}
	h.Http2 = c.http2(n.Child("http2"))
	if t := n.Child("tracing"); t != nil {
		c.within(t, func() { h.Tracing = c.httpTracing(t) })
	}
	h.Limits = &configv1.HttpLimits{
		MaxRequestHeadersBytes: uint32(l.Int("request_headers")), MaxHeadersCount: uint32(l.Int("headers_count")),
		MaxRequestLineBytes: uint32(l.Int("request_line")), MaxRequestsPerConnection: uint32(l.Int("requests_per_connection")),
	}
	return h
}

// virtualHost compiles one; domains holds those of its http so far, filters the http's plugins.
func (c *compiler) virtualHost(n *schema.Node, domains map[string]hcl.Range, filters []*configv1.FilterUse, upgrades []string) *configv1.VirtualHost {
	c.objects++
	v := &configv1.VirtualHost{Name: n.Label, Source: c.source(n.DefRange)}
	list := n.List("domains")
	if !n.Has("domains") {
		list = []schema.Value{{V: n.Label, Range: n.LabelRange}}
	} else if len(list) == 0 && !n.Failed("domains") {
		c.diags.Report(diag.InvalidDomain, n.Range("domains"), "No domain", "A virtual host has a domain; \"*\" is every one.")
	}
	for _, d := range list {
		domain, ok := c.domain(d)
		if !ok {
			continue
		}
		if first, twice := domains[domain]; twice {
			c.diags.Report(diag.DuplicateDomain, d.Range, "Domain used twice", "%s is already claimed by the virtual host on %s.", domain, schema.Place(first))
			continue
		}
		domains[domain] = d.Range
		v.Domains = append(v.Domains, domain)
	}
	v.RequestHeaders, v.ResponseHeaders = c.headers(n)
	v.IncludeRequestAttemptCount, v.IncludeAttemptCountInResponse = n.Bool("include_request_attempt_count"), n.Bool("include_attempt_count_in_response")
	v.RequireTls = map[string]configv1.RequireTls{
		"external_only": configv1.RequireTls_REQUIRE_TLS_EXTERNAL_ONLY,
		"all":           configv1.RequireTls_REQUIRE_TLS_ALL,
	}[n.Str("redirect_https")]
	filters = c.filters(n, filters)
	v.Filters = filters
	earlier := newShadows()
	for _, r := range n.All("route") {
		c.within(r, func() {
			route := c.route(r, upgrades)
			if route == nil {
				return
			}
			if s := earlier.add(route.Match, r.Label, r.LabelRange); s != nil {
				c.diags.Report(diag.ShadowedRoute, r.LabelRange, "Shadowed route", "This route can never match: route %q on %s takes the same requests first. First match wins, in source order.", s.label, schema.Place(s.at))
			}
			route.Filters = c.filters(r, filters)
			v.Routes = append(v.Routes, route)
		})
	}
	if len(n.All("route")) == 0 && len(v.Domains) > 0 {
		c.diags.Report(diag.EmptyVirtualHost, n.DefRange, "Virtual host without routes", "Every request to %s is answered 404.", strings.Join(v.Domains, ", "))
	}
	return v
}

func (c *compiler) route(n *schema.Node, upgrades []string) *configv1.Route {
	c.objects++
	match := c.pattern(n)
	if m := n.Child("match"); m != nil && match != nil {
		c.within(m, func() { c.conditions(m, match) })
	}
	var actions []string
	for _, a := range []string{"cluster", "split"} {
		if n.Has(a) {
			actions = append(actions, a)
		}
	}
	for _, b := range []string{"redirect", "respond"} {
		if n.Child(b) != nil {
			actions = append(actions, b)
		}
	}
	if len(actions) != 1 {
		if len(actions) > 1 || (!n.Failed("cluster") && !n.Failed("split")) {
			found := "it has none"
			if len(actions) > 1 {
				found = "it has " + strings.Join(actions, " and ")
			}
			c.diags.Report(diag.RouteAction, n.DefRange, "Route without one action", "A route has exactly one of cluster, split, redirect and respond; %s.", found)
		}
		return nil
	}
	r := &configv1.Route{Name: n.Label, Match: match, Source: c.source(n.DefRange)}
	r.RequestHeaders, r.ResponseHeaders = c.headers(n)
	if b := n.Child("tracing"); b != nil {
		c.within(b, func() { r.Tracing = c.routeTracing(b) })
	}
	switch actions[0] {
	case "redirect":
		c.onlyUpstream(n, "redirect")
		b := n.Child("redirect")
		c.within(b, func() { r.Action = &configv1.Route_Redirect{Redirect: c.redirect(b, match)} })
	case "respond":
		c.onlyUpstream(n, "respond")
		b := n.Child("respond")
		c.within(b, func() { r.Action = &configv1.Route_Respond{Respond: c.respond(b)} })
	default:
		r.Action = &configv1.Route_Route{Route: c.routeAction(n, match, upgrades)}
	}
	if match == nil {
		return nil
	}
	return r
}

// onlyUpstream refuses what means nothing without an upstream.
func (c *compiler) onlyUpstream(n *schema.Node, action string) {
	for _, a := range []string{"timeout", "idle_timeout", "max_stream_duration", "subset", "priority"} {
		if n.Own(a) {
			c.diags.Report(diag.Exclusive, n.Range(a), "No upstream", "%s has no meaning with %s: nothing is waited for.", a, action)
		}
	}
	for _, name := range []string{"rewrite", "sticky", "hash_on", "mirror"} {
		for _, b := range n.All(name) {
			c.diags.Report(diag.Exclusive, b.DefRange, "No upstream", "%s has no meaning with %s: nothing is sent upstream.", name, action)
		}
	}
	if b := n.Child("retry"); b != nil {
		c.diags.Report(diag.Exclusive, b.DefRange, "No upstream", "retry has no meaning with %s: nothing is sent upstream.", action)
	}
	if h := n.Child("headers"); h != nil {
		if b := h.Child("request"); b != nil {
			c.diags.Report(diag.Exclusive, b.DefRange, "No upstream", "Request headers have no meaning with %s: nothing is sent upstream.", action)
		}
	}
}

func (c *compiler) routeAction(n *schema.Node, match *configv1.RouteMatch, upgrades []string) *configv1.RouteAction {
	a := &configv1.RouteAction{Clusters: c.targets(n), TimeoutMs: proto.Int64(n.Int("timeout"))}
	if n.Has("idle_timeout") {
		a.IdleTimeoutMs = proto.Int64(n.Int("idle_timeout"))
	}
	if n.Has("max_stream_duration") {
		a.MaxStreamDurationMs = proto.Int64(n.Int("max_stream_duration"))
	}
	if n.Str("priority") == "high" {
		a.Priority = configv1.RoutingPriority_ROUTING_PRIORITY_HIGH
		for _, t := range a.Clusters {
			c.high[t.GetCluster()] = true
		}
	}
	a.Retry = c.retry(n.Child("retry"), n.Int("timeout"))
	if b := n.Child("rewrite"); b != nil {
		c.within(b, func() { c.rewrite(b, a, match) })
	}
	if b := n.Child("sticky"); b != nil {
		c.within(b, func() { a.Sticky = c.sticky(b) })
		if !n.Has("split") {
			c.diags.Report(diag.Exclusive, b.DefRange, "Nothing to stick to", "sticky chooses between the clusters of a split; this route has one cluster.")
		}
	}
	if n.Has("upgrades") {
		a.Upgrades = &configv1.RouteUpgrades{Types: c.upgrades(n.List("upgrades"), upgrades)}
	}
	a.HashPolicies = c.hashOn(n)
	if n.Has("subset") {
		for _, t := range a.Clusters {
			if t.Subset == nil {
				a.Subset = c.asked(t.Cluster, n.Get("subset"))
			}
		}
	}
	a.Mirrors = c.mirrors(n)
	return a
}

// newPrefix checks the prefix attribute of rewrite and redirect. Patterns match by segments, so a prefix is replaced
// by segments: "/api/*" with prefix "/v2" sends "/api/x" to "/v2/x".
func (c *compiler) newPrefix(b *schema.Node, match *configv1.RouteMatch) *string {
	v := b.Get("prefix")
	s, _ := v.V.(string)
	reason, at := invalidPath(s)
	if strings.Contains(s, "?") {
		reason, at = "A prefix holds no query.", strings.IndexByte(s, '?')
	}
	if reason != "" {
		c.diags.Report(diag.InvalidTarget, c.inside(v.Range, s, min(at, len(s)), runeAt(s, at)), "Invalid prefix", "%s", reason)
		return nil
	}
	switch match.GetPath().(type) {
	case *configv1.RouteMatch_Regex, *configv1.RouteMatch_Template:
		c.diags.Report(diag.InvalidTarget, v.Range, "No prefix to replace", "The pattern has no prefix that is the same for all requests; prefix replaces that of \"/prefix/*\" or the path of an exact pattern.")
		return nil
	case *configv1.RouteMatch_Prefix:
		if !strings.HasSuffix(s, "/") {
			s += "/"
		}
	}
	return &s
}

func (c *compiler) host(v schema.Value) string {
	s, _ := v.V.(string)
	h := strings.ToLower(s)
	name, port, split := cutPort(h)
	if !validDomain(name) || (split && !validPort(port)) {
		c.diags.Report(diag.InvalidTarget, v.Range, "Invalid host", "%q is not a host name or address.", s)
		return ""
	}
	return h
}

func validPort(s string) bool {
	if s == "" || len(s) > 5 || s[0] == '0' {
		return false
	}
	n := 0
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
		n = n*10 + int(s[i]-'0')
	}
	return n <= 65535
}

// targets compiles cluster or split of a route or tcp block.
func (c *compiler) targets(n *schema.Node) []*configv1.WeightedCluster {
	if n.Has("cluster") {
		return []*configv1.WeightedCluster{{Cluster: c.ref(n.Get("cluster")), Weight: 1}}
	}
	var out []*configv1.WeightedCluster
	var sum int64
	names := map[string]bool{}
	for _, v := range n.List("split") {
		rec, ok := v.V.(schema.Record)
		if !ok {
			continue
		}
		name := c.ref(rec.Get("cluster"))
		weight, _ := rec.Get("weight").V.(int64)
		if weight < 1 || weight > 1_000_000 {
			continue // reported when it was read
		}
		if name != "" && names[name] {
			c.diags.Report(diag.InvalidWeight, v.Range, "Cluster listed twice", "%s is already in this split.", name)
			continue
		}
		names[name] = true
		sum += weight
		w := &configv1.WeightedCluster{Cluster: name, Weight: uint32(weight)}
		w.RequestHeaders, w.ResponseHeaders = c.splitHeaders(n, rec, "request"), c.splitHeaders(n, rec, "response")
		w.Subset = c.asked(name, rec.Get("subset"))
		out = append(out, w)
	}
	if len(n.List("split")) == 0 && !n.Failed("split") {
		c.diags.Report(diag.InvalidWeight, n.Range("split"), "Empty split", "A split names at least one cluster.")
	}
	if sum > 1<<32-1 {
		c.diags.Report(diag.InvalidWeight, n.Range("split"), "Weights too large", "The weights add up to %d; at most %d.", sum, uint32(1<<32-1))
	}
	return out
}

func (c *compiler) redirect(n *schema.Node, match *configv1.RouteMatch) *configv1.Redirect {
	r := &configv1.Redirect{Scheme: n.Str("scheme"), Port: uint32(n.Int("port")), Status: uint32(n.Int("status")), StripQuery: n.Bool("strip_query")}
	if n.Has("host") {
		r.Host = c.host(n.Get("host"))
		if _, _, split := cutPort(r.Host); split {
			c.diags.Report(diag.InvalidTarget, n.Range("host"), "Invalid host", "The port of a redirect is its own attribute: port = ….")
		}
	}
	if n.Has("path") {
		v := n.Get("path")
		s := n.Str("path")
		if reason, at := invalidPath(s); reason != "" {
			c.diags.Report(diag.InvalidTarget, c.inside(v.Range, s, min(at, len(s)), runeAt(s, at)), "Invalid path", "%s", reason)
		}
		r.Path = s
	}
	if n.Has("prefix") {
		if n.Has("path") {
			c.diags.Report(diag.Exclusive, n.Range("prefix"), "Attributes exclude each other", "path replaces the whole path, prefix a part of it: write one.")
		}
		r.PrefixRewrite = c.newPrefix(n, match)
	}
	r.RegexRewrite, r.TemplateRewrite = c.regexRewrite(n), c.templateRewrite(n, match)
	if r.RegexRewrite != nil && n.Has("path") {
		c.diags.Report(diag.Exclusive, n.Range("regex"), "Attributes exclude each other", "path replaces the whole path, regex a part of it: write one.")
	}
	switch n.Int("status") {
	case 301, 302, 303, 307, 308:
	default:
		c.diags.Report(diag.InvalidStatus, n.Range("status"), "Invalid status", "A redirect has the status 301, 302, 303, 307 or 308.")
	}
	if !n.Has("scheme") && !n.Has("host") && !n.Has("port") && !n.Has("path") && !n.Has("prefix") && !n.Has("regex") && !n.Has("substitution") && !n.Has("template") && !r.StripQuery {
		c.diags.Report(diag.InvalidTarget, n.DefRange, "Redirect to itself", "The redirect changes nothing, so clients would go round in circles: write scheme, host, port, path, prefix, regex or template.")
	}
	return r
}

func (c *compiler) respond(n *schema.Node) *configv1.Respond {
	r := &configv1.Respond{Status: uint32(n.Int("status")), Body: []byte(n.Str("body")), ContentType: n.Str("content_type")}
	switch s := n.Int("status"); {
	case s < 200 || s > 599:
		c.diags.Report(diag.InvalidStatus, n.Range("status"), "Invalid status", "A response has a status of 200 to 599.")
	case (s == 204 || s == 205 || s == 304) && len(r.Body) > 0:
		c.diags.Report(diag.InvalidStatus, n.Range("body"), "Body without a place", "A response with status %d has no body.", s)
	}
	c.plainValue(n.Get("content_type"))
	return r
}
