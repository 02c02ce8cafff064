package compile

import (
	"slices"

	"github.com/hashicorp/hcl/v2"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// filterKinds compiles each type of filter into its place of the object.
var filterKinds = map[string]func(c *compiler, n *schema.Node, f *configv1.Filter){
	"header":     (*compiler).headerFilter,
	"ip":         (*compiler).ipFilter,
	"rbac":       (*compiler).rbacFilter,
	"rate_limit": (*compiler).rateLimitFilter,
	"cors":       (*compiler).corsFilter,
	"fault":      (*compiler).faultFilter,

	"global_rate_limit": (*compiler).globalRateLimitFilter,

	"basic_auth":   (*compiler).basicAuthFilter,
	"body_limit":   (*compiler).bodyLimitFilter,
	"buffer":       (*compiler).bufferFilter,
	"compress":     (*compiler).compressFilter,
	"decompress":   (*compiler).decompressFilter,
	"health_check": (*compiler).healthCheckFilter,
	"ext_authz":    (*compiler).extAuthzFilter,
	"jwt":          (*compiler).jwtFilter,
}

// filter compiles a filter block.
func (c *compiler) filter(n *schema.Node) {
	c.objects++
	f := &configv1.Filter{Name: n.Label, Source: c.source(n.DefRange)}
	filterKinds[n.Block.Kind](c, n, f)
	c.out.Add(&configv1.Object{Kind: schema.FilterKind, Name: n.Label, Body: &configv1.Object_Filter{Filter: f}}, c.place(n.DefRange))
	c.mark(schema.FilterKind, n.Label, n)
}

func (c *compiler) unusedFilters(filters []*schema.Node) {
	for _, n := range filters {
		if ref := (schema.Ref{Kind: schema.FilterKind, Name: n.Label}); !c.used[ref] {
			c.diags.Report(diag.UnusedFilter, n.DefRange, "Unused filter", "No filters list names %s, so it does nothing.", ref)
		}
	}
}

func (c *compiler) unusedProviders(providers []*schema.Node) {
	for _, n := range providers {
		if !c.used[schema.Ref{Kind: "jwt_provider", Name: n.Label}] {
			c.diags.Report(diag.UnusedProvider, n.DefRange, "Unused provider", "No jwt filter names provider %q, so its tokens are of no use.", n.Label)
		}
	}
}

func (c *compiler) headerFilter(n *schema.Node, f *configv1.Filter) {
	h := &configv1.HeaderFilter{}
	if r := n.Child("request"); r != nil {
		c.within(r, func() { h.Request = c.headerOps(r) })
	}
	if r := n.Child("response"); r != nil {
		c.within(r, func() { h.Response = c.headerOps(r) })
	}
	f.Kind = &configv1.Filter_Header{Header: h}
}

// filters is what works in a block: its own list, or the inherited one where it has none; then without remove_filters and
// with add_filters.
func (c *compiler) filters(n *schema.Node, inherited []*configv1.FilterUse) []*configv1.FilterUse {
	out := inherited
	if n.Has("filters") {
		out = c.filterUses(n, "filters", nil)
	}
	for _, gone := range c.filterUses(n, "remove_filters", nil) {
		out = slices.DeleteFunc(slices.Clone(out), func(u *configv1.FilterUse) bool {
			return u.GetPlugin() == gone.GetPlugin() && u.GetFilter() == gone.GetFilter()
		})
	}
	return c.filterUses(n, "add_filters", out)
}

// filterUses compiles one list of filters behind another.
func (c *compiler) filterUses(n *schema.Node, attr string, before []*configv1.FilterUse) []*configv1.FilterUse {
	if n.Block.Attr(attr) == nil || !n.Has(attr) {
		return before
	}
	seen := map[schema.Ref]hcl.Range{}
	for _, u := range before {
		seen[used(u)] = n.DefRange
	}
	out := slices.Clip(before)
	for _, v := range n.List(attr) {
		r, _ := v.V.(schema.Record)
		mode, _ := r.Get("on_error").V.(string)
		u := &configv1.FilterUse{Plugin: c.ref(r.Get("plugin")), Filter: c.ref(r.Get("filter")), OnError: onError(mode)}
		switch {
		case u.Plugin == "" && u.Filter == "", u.Plugin != "" && u.Filter != "":
			c.diags.Report(diag.Exclusive, v.Range, "Not one filter", "An entry of %s names one plugin or one filter.", attr)
			continue
		case u.Filter != "" && mode != "":
			c.diags.Report(diag.Exclusive, r.Get("on_error").Range, "No fail mode", "on_error is that of a plugin; filter %q cannot fail.", u.Filter)
			continue
		}
		if first, twice := seen[used(u)]; twice {
			c.diags.Report(diag.DuplicateName, v.Range, "Filter listed twice", "%s is on this list already, on %s.", used(u), schema.Place(first))
			continue
		}
		seen[used(u)] = v.Range
		out = append(out, u)
	}
	return out
}

// used is the object that a use names.
func used(u *configv1.FilterUse) schema.Ref {
	if u.GetFilter() != "" {
		return schema.Ref{Kind: schema.FilterKind, Name: u.GetFilter()}
	}
	return schema.Ref{Kind: "plugin", Name: u.GetPlugin()}
}
