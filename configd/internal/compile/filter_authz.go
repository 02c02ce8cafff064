package compile

import (
	"strings"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

func (c *compiler) extAuthzFilter(n *schema.Node, f *configv1.Filter) {
	service := c.ref
	if n.Str("api") == "grpc" {
		service = c.grpcService
	}
	r := &configv1.ExtAuthzFilter{
		Cluster: service(n.Get("cluster")), Grpc: n.Str("api") == "grpc", PathPrefix: n.Str("path_prefix"), TimeoutMs: n.Int("timeout"),
		FailureModeAllow: n.Bool("failure_mode_allow"), FailureModeAllowHeaderAdd: n.Bool("failure_mode_allow_header_add"),
		Enabled: share(n, "enabled"), Enforced: share(n, "enforced"),
		IncludePeerCertificate:        n.Bool("include_peer_certificate"),
		StatusOnError:                 uint32(n.Int("status_on_error")),
		AllowedHeaders:                c.namePatterns(n.List("allowed_headers")),
		AllowedUpstreamHeaders:        c.namePatterns(n.List("allowed_upstream_headers")),
		AllowedClientHeaders:          c.namePatterns(n.List("allowed_client_headers")),
		AllowedClientHeadersOnSuccess: c.namePatterns(n.List("allowed_client_headers_on_success")),
	}
	if r.Grpc {
		for _, name := range []string{"path_prefix", "allowed_upstream_headers", "allowed_client_headers", "allowed_client_headers_on_success"} {
			if n.Own(name) {
				c.diags.Report(diag.Exclusive, n.Range(name), "Not with this API", "%s is about services that are asked by HTTP; by gRPC the service says which headers change.", name)
			}
		}
	} else {
		for _, name := range []string{"context_extensions", "include_peer_certificate"} {
			if n.Own(name) {
				c.diags.Report(diag.Exclusive, n.Range(name), "Not with this API", "%s is about attributes of the gRPC API: write api = \"grpc\".", name)
			}
		}
	}
	if v := n.Get("path_prefix"); r.PathPrefix != "" {
		if reason, _ := invalidPath(r.PathPrefix); reason != "" || strings.Contains(r.PathPrefix, "?") {
			c.diags.Report(diag.InvalidTarget, v.Range, "Invalid prefix", "%q does not begin a path.", r.PathPrefix)
		}
	}
	if n.Bool("failure_mode_allow_header_add") && !r.FailureModeAllow {
		c.diags.Report(diag.Exclusive, n.Range("failure_mode_allow_header_add"), "Nothing is allowed", "The header tells that a request passed without an answer: write failure_mode_allow.")
	}
	for _, p := range n.Pairs("context_extensions") {
		name, _ := p.Name.V.(string)
		for _, v := range p.Values {
			value, _ := v.V.(string)
			r.ContextExtensions = append(r.ContextExtensions, &configv1.Parameter{Name: name, Value: value})
		}
	}
	body, cache := n.Child("with_request_body"), n.Child("cache")
	if body != nil {
		r.MaxRequestBytes, r.AllowPartialMessage, r.PackAsBytes = uint32(body.Int("max_request_bytes")), body.Bool("allow_partial_message"), body.Bool("pack_as_bytes")
	}
	if cache != nil {
		if body != nil {
			c.diags.Report(diag.Exclusive, cache.DefRange, "Bodies are no inputs", "With with_request_body a decision is about the body too, which no key holds.")
		}
		c.within(cache, func() {
			for _, v := range cache.List("key") {
				if format, _ := v.V.(string); c.format(v) {
					if !strings.Contains(format, "%") {
						c.diags.Report(diag.InvalidValue, v.Range, "Input without an operator", "%q is the same for every request.", format)
					}
					r.CacheKey = append(r.CacheKey, format)
				}
			}
			if len(cache.List("key")) == 0 && cache.Has("key") {
				c.diags.Report(diag.InvalidValue, cache.Range("key"), "No input", "One decision would hold for every request.")
			}
		})
		r.CacheTtlMs, r.CacheMaxEntries = cache.Int("ttl"), uint32(cache.Int("max_entries"))
	}
	f.Kind = &configv1.Filter_ExtAuthz{ExtAuthz: r}
}

// namePatterns are patterns of header names, which are in lower case.
func (c *compiler) namePatterns(list []schema.Value) []string {
	out := c.patterns(list)
	for i, s := range out {
		if !strings.HasPrefix(s, "~") {
			out[i] = strings.ToLower(s)
		}
	}
	return out
}
