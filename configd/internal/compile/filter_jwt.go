package compile

import (
	"net/url"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"

	"retinue.dev/libs/jwk"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
	"retinue.dev/configd/internal/secret"
)

// jwtProvider is a provider, and where its file of keys is named.
type jwtProvider struct {
	*configv1.JwtProvider
	file hcl.Range
}

// jwtProviders compiles the providers, which are parts of the filters that name them.
func (c *compiler) jwtProviders(nodes []*schema.Node) {
	c.providers = map[string]jwtProvider{}
	for _, n := range nodes {
		c.objects++
		c.within(n, func() { c.providers[n.Label] = jwtProvider{c.jwtProvider(n), n.Range("jwks_file")} })
	}
}

func (c *compiler) jwtProvider(n *schema.Node) *configv1.JwtProvider {
	p := &configv1.JwtProvider{
		Name: n.Label, Issuer: n.Str("issuer"), Audiences: c.plainTexts(n, "audiences"), Subjects: c.patterns(n.List("subjects")),
		RequireExpiration: n.Bool("require_expiration"), MaxLifetimeMs: n.Int("max_lifetime"), ClockSkewMs: n.Int("clock_skew"),
		FromParams: c.plainTexts(n, "from_params"), FromCookies: c.plainTexts(n, "from_cookies"),
		Forward: n.Bool("forward"), PadForwardPayloadHeader: n.Bool("pad_forward_payload_header"), CacheSize: uint32(n.Int("cache_size")),
	}
	c.keys(n, p)
	for _, v := range n.List("from_headers") {
		r, _ := v.V.(schema.Record)
		if name, ok := c.headerName(r.Get("name")); ok && c.plainPrefix(r.Get("value_prefix")) {
			prefix, _ := r.Get("value_prefix").V.(string)
			p.FromHeaders = append(p.FromHeaders, &configv1.JwtHeader{Name: name, ValuePrefix: prefix})
		}
	}
	if n.Has("forward_payload_header") {
		p.ForwardPayloadHeader, _ = c.headerName(n.Get("forward_payload_header"))
		c.notOfTokens(p, n.Get("forward_payload_header"), p.GetForwardPayloadHeader())
	} else if p.PadForwardPayloadHeader {
		c.diags.Report(diag.Exclusive, n.Range("pad_forward_payload_header"), "No header to pad", "It is about forward_payload_header.")
	}
	for _, pair := range n.Pairs("claim_to_headers") {
		name, ok := c.headerName(pair.Name)
		if !ok {
			continue
		}
		c.notOfTokens(p, pair.Name, name)
		switch claim, _ := pair.Values[0].V.(string); {
		case len(pair.Values) != 1 || claim == "":
			c.diags.Report(diag.InvalidValue, pair.Name.Range, "Not one claim", "Header %q has the name of one claim.", name)
		case name == p.GetForwardPayloadHeader() || slices.ContainsFunc(p.GetClaimToHeaders(), func(o *configv1.JwtClaim) bool { return o.GetHeader() == name }):
			c.diags.Report(diag.DuplicateName, pair.Name.Range, "Header set twice", "Header %q is set already.", name)
		default:
			p.ClaimToHeaders = append(p.ClaimToHeaders, &configv1.JwtClaim{Header: name, Claim: claim})
		}
	}
	return p
}

// keys says where the keys are from.
func (c *compiler) keys(n *schema.Node, p *configv1.JwtProvider) {
	remote := n.Child("remote_jwks")
	sources := 0
	for _, there := range []bool{n.Has("jwks_file"), n.Has("jwks"), remote != nil} {
		if there {
			sources++
		}
	}
	switch {
	case sources == 0 && !n.Failed("jwks_file") && !n.Failed("jwks"):
		c.diags.Report(diag.MissingAttribute, n.DefRange, "No keys", "A provider has a jwks_file, jwks, or a remote_jwks block.")
	case sources > 1:
		c.diags.Report(diag.Exclusive, n.DefRange, "Keys from two places", "A provider has one of jwks_file, jwks and remote_jwks.")
	}
	if n.Has("jwks_file") {
		if p.JwksFile = c.path(n, "jwks_file"); p.JwksFile != "" {
			if _, err := secret.KeySet(c.in.ReadFile, p.JwksFile); err != nil {
				c.diags.Report(diag.InvalidCertificate, n.Range("jwks_file"), "Keys cannot be used", "%s.", err)
			}
		}
	}
	if n.Has("jwks") {
		p.Jwks = n.Str("jwks")
		switch set, err := jwk.Parse([]byte(p.Jwks)); {
		case err != nil:
			c.diags.Report(diag.InvalidCertificate, n.Range("jwks"), "Keys cannot be used", "%s.", err)
		case set.Secret:
			c.diags.Report(diag.InvalidCertificate, n.Range("jwks"), "Secret in the configuration", "A key of type oct is a secret, and configurations are kept and shown. Write jwks_file.")
		case set.Private:
			c.diags.Report(diag.InvalidCertificate, n.Range("jwks"), "Private key", "Some key has its private part, which is for whoever makes tokens. Leave it out.")
		}
	}
	if remote != nil {
		c.within(remote, func() { p.RemoteJwks = c.remoteKeys(remote) })
	}
}

func (c *compiler) remoteKeys(n *schema.Node) *configv1.RemoteJwks {
	r := &configv1.RemoteJwks{Cluster: c.ref(n.Get("cluster")), TimeoutMs: n.Int("timeout"), CacheDurationMs: n.Int("cache_duration"), KidMismatchMs: n.Int("refetch_on_kid_mismatch")}
	if !n.Has("uri") {
		return r
	}
	u, err := url.Parse(n.Str("uri"))
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		c.diags.Report(diag.InvalidTarget, n.Range("uri"), "Invalid URI", "%q is not \"https://HOST/PATH\", without a user and a fragment.", n.Str("uri"))
		return r
	}
	if r.Host, r.Path = u.Host, u.EscapedPath(); r.Path == "" {
		r.Path = "/"
	}
	if u.RawQuery != "" {
		r.Path += "?" + u.RawQuery
	}
	if reason, _ := invalidPath(r.Path); reason != "" {
		c.diags.Report(diag.InvalidTarget, n.Range("uri"), "Invalid URI", "%s", reason)
	}
	if u.Scheme == "https" && r.Cluster != "" && !c.secure[r.Cluster] {
		c.diags.Report(diag.InvalidTarget, n.Range("uri"), "Not by TLS", "The URI says https, and cluster %q has no tls block: whoever is on the way could make keys of his own.", r.Cluster)
	}
	return r
}

// plainTexts are names that are compared with what is in tokens and requests.
func (c *compiler) plainTexts(n *schema.Node, attr string) []string {
	var out []string
	for _, v := range n.List(attr) {
		s, _ := v.V.(string)
		if s == "" {
			c.diags.Report(diag.InvalidValue, v.Range, "Empty name", "An entry of %s is not empty.", attr)
			continue
		}
		out = append(out, s)
	}
	return out
}

// plainPrefix checks what begins a header value.
func (c *compiler) plainPrefix(v schema.Value) bool {
	s, _ := v.V.(string)
	v.V = strings.TrimRight(s, " ")
	return c.plainValue(v)
}

// notOfTokens refuses to set a header that holds tokens: it would be emptied before it is read.
func (c *compiler) notOfTokens(p *configv1.JwtProvider, at schema.Value, name string) {
	if holdsTokens(p, name) {
		c.diags.Report(diag.InvalidHeader, at.Range, "Header with tokens", "Header %q holds tokens: it cannot be set too.", name)
	}
}

// holdsTokens tells whether a provider looks for tokens in a header.
func holdsTokens(p *configv1.JwtProvider, name string) bool {
	if len(p.GetFromHeaders())+len(p.GetFromParams())+len(p.GetFromCookies()) == 0 {
		return name == "authorization"
	}
	return slices.ContainsFunc(p.GetFromHeaders(), func(h *configv1.JwtHeader) bool { return h.GetName() == name })
}

// Bounds of a tree of requirements.
const (
	maxRequirementDepth = 8
	maxRequirements     = 64 // providers that it names
)

// jwtRequirement compiles what a filter requires.
type jwtRequirement struct {
	*compiler
	filter *configv1.JwtFilter
	name   string
	seen   map[string]bool
	leaves int
}

func (c *compiler) jwtFilter(n *schema.Node, f *configv1.Filter) {
	j := &configv1.JwtFilter{
		AllowMissing: n.Str("allow") == "missing", AllowMissingOrFailed: n.Str("allow") == "missing_or_failed", BypassCorsPreflight: n.Bool("bypass_cors_preflight"),
	}
	r := &jwtRequirement{compiler: c, filter: j, name: f.GetName(), seen: map[string]bool{}}
	audiences := c.plainTexts(n, "audiences")
	j.RequiresAny, j.RequiresAll = r.of(n, "requires_any", audiences), r.of(n, "requires_all", audiences)
	tree := n.Child("requires")
	switch {
	case n.Failed("requires_any") || n.Failed("requires_all"):
	case tree != nil && len(j.RequiresAny)+len(j.RequiresAll) > 0:
		c.diags.Report(diag.Exclusive, tree.DefRange, "Two requirements", "A jwt filter has one of requires_any, requires_all and a requires block; the block can hold the others' providers.")
	case len(j.RequiresAny) > 0 && len(j.RequiresAll) > 0:
		c.diags.Report(diag.Exclusive, n.Range("requires_all"), "Two requirements", "A jwt filter has one of requires_any and requires_all; a requires block says more, and two filters in one list are both met.")
	case tree != nil && n.Has("audiences"):
		c.diags.Report(diag.Exclusive, n.Range("audiences"), "Audiences of no list", "audiences is about requires_any and requires_all; a requires block has its own.")
	case tree != nil && n.Has("allow"):
		c.diags.Report(diag.Exclusive, n.Range("allow"), "Not of a list", "allow is about requires_any; requires \"any\" has its own.")
	case tree != nil:
		j.Requires = r.tree(tree, 1)
		if r.leaves > maxRequirements {
			c.diags.Report(diag.OutOfRange, tree.DefRange, "Too many providers", "A jwt filter names at most %d; this one names %d.", maxRequirements, r.leaves)
		}
	case len(j.RequiresAny)+len(j.RequiresAll) == 0 && n.Reserved(): // what there is chooses no kind
	case len(j.RequiresAny)+len(j.RequiresAll) == 0:
		c.diags.Report(diag.MissingAttribute, n.DefRange, "Nothing is required", "A jwt filter has requires_any, requires_all or a requires block; a route without the filter requires nothing.")
	case n.Has("allow") && len(j.RequiresAll) > 0:
		c.diags.Report(diag.Exclusive, n.Range("allow"), "All and nothing", "allow is about requires_any.")
	}
	c.ownHeaders(n, j)
	f.Kind = &configv1.Filter_Jwt{Jwt: j}
}

// of compiles a list of providers, which become parts of the filter.
func (r *jwtRequirement) of(n *schema.Node, attr string, audiences []string) (list []*configv1.JwtRequirement) {
	for _, name := range r.refs(n.List(attr)) {
		list = append(list, &configv1.JwtRequirement{Provider: name, Audiences: audiences})
		p := r.providers[name]
		if p.JwtProvider == nil || r.seen[name] {
			continue
		}
		r.seen[name] = true
		r.out.Mark(schema.FilterKind, r.name, secret.KeySetField(len(r.filter.Providers)), r.place(p.file))
		r.filter.Providers = append(r.filter.Providers, p.JwtProvider)
	}
	return list
}

// tree compiles a requires block: its providers first, then the blocks in it.
func (r *jwtRequirement) tree(n *schema.Node, depth int) (out *configv1.JwtRequirements) {
	r.within(n, func() {
		list := &configv1.JwtRequirementList{}
		for _, p := range r.of(n, "providers", r.plainTexts(n, "audiences")) {
			r.leaves++
			list.Requirements = append(list.Requirements, &configv1.JwtRequirements{Kind: &configv1.JwtRequirements_Provider{Provider: p}})
		}
		children := n.All("requires")
		switch {
		case depth == maxRequirementDepth && len(children) > 0:
			r.diags.Report(diag.OutOfRange, children[0].DefRange, "Too deep", "requires blocks are at most %d deep.", maxRequirementDepth)
			children = nil
		case len(list.GetRequirements())+len(children) == 0 && !n.Failed("providers"):
			r.diags.Report(diag.MissingAttribute, n.DefRange, "Nothing is required", "A requires block has providers, or requires blocks.")
		}
		for _, child := range children {
			list.Requirements = append(list.Requirements, r.tree(child, depth+1))
		}
		out = &configv1.JwtRequirements{}
		if out.Kind = (&configv1.JwtRequirements_All{All: list}); n.Label == "any" {
			out.Kind = &configv1.JwtRequirements_Any{Any: list}
			out.AllowMissing, out.AllowMissingOrFailed = n.Str("allow") == "missing", n.Str("allow") == "missing_or_failed"
		}
	})
	return out
}

// ownHeaders refuses providers of which one sets what another reads.
func (c *compiler) ownHeaders(n *schema.Node, j *configv1.JwtFilter) {
	for _, setter := range j.GetProviders() {
		names := []string{setter.GetForwardPayloadHeader()}
		for _, o := range setter.GetClaimToHeaders() {
			names = append(names, o.GetHeader())
		}
		for _, reader := range j.GetProviders() {
			for _, name := range names {
				if reader != setter && name != "" && holdsTokens(reader, name) { // of the same one it is said where it is written
					c.diags.Report(diag.InvalidHeader, n.DefRange, "Header with tokens", "Header %q holds tokens of jwt_provider.%s, and jwt_provider.%s sets it.", name, reader.GetName(), setter.GetName())
				}
			}
		}
	}
}
