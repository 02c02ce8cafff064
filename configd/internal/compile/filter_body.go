package compile

import (
	"slices"
	"strings"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
	"retinue.dev/configd/internal/secret"
)

func (c *compiler) basicAuthFilter(n *schema.Node, f *configv1.Filter) {
	r := &configv1.BasicAuthFilter{UsersFile: c.path(n, "users_file"), Realm: n.Str("realm"), KeepAuthorization: n.Bool("forward_authorization")}
	if r.UsersFile != "" {
		if _, err := secret.Users(c.in.ReadFile, r.UsersFile); err != nil {
			c.diags.Report(diag.InvalidCertificate, n.Range("users_file"), "Users cannot be used", "%s.", err)
		}
	}
	c.plainValue(n.Get("realm"))
	if n.Has("user_header") {
		r.UserHeader, _ = c.headerName(n.Get("user_header"))
	}
	f.Kind = &configv1.Filter_BasicAuth{BasicAuth: r}
}

func (c *compiler) bodyLimitFilter(n *schema.Node, f *configv1.Filter) {
	r := &configv1.BodyLimitFilter{MaxRequestBytes: uint64(n.Int("request")), MaxResponseBytes: uint64(n.Int("response"))}
	if r.MaxRequestBytes+r.MaxResponseBytes == 0 && !n.Failed("request") && !n.Failed("response") {
		c.diags.Report(diag.MissingAttribute, n.DefRange, "Limit without one", "A body_limit has a limit for request, response or both.")
	}
	f.Kind = &configv1.Filter_BodyLimit{BodyLimit: r}
}

func (c *compiler) bufferFilter(n *schema.Node, f *configv1.Filter) {
	f.Kind = &configv1.Filter_Buffer{Buffer: &configv1.BufferFilter{MaxRequestBytes: uint64(n.Int("max_request"))}}
}

func (c *compiler) compressFilter(n *schema.Node, f *configv1.Filter) {
	f.Kind = &configv1.Filter_Compress{Compress: &configv1.CompressFilter{
		Codings: c.codings(n), MinBytes: uint64(n.Int("min_size")), ContentTypes: c.contentTypes(n.List("content_types")), Level: uint32(n.Int("level")),
	}}
}

// codings are content codings, each once.
func (c *compiler) codings(n *schema.Node) (out []string) {
	for _, v := range n.List("codings") {
		s, _ := v.V.(string)
		switch {
		case s != "gzip" && s != "br" && s != "zstd":
			c.diags.Report(diag.OutOfRange, v.Range, "Value not allowed", "%q is none of \"gzip\", \"br\" and \"zstd\".", s)
		case slices.Contains(out, s):
			c.diags.Report(diag.DuplicateName, v.Range, "Coding listed twice", "%q is on this list already.", s)
		default:
			out = append(out, s)
		}
	}
	if len(n.List("codings")) == 0 && n.Own("codings") {
		c.diags.Report(diag.OutOfRange, n.Range("codings"), "No coding", "Without a coding nothing is done: leave the filter out of the lists instead.")
	}
	return out
}

func (c *compiler) healthCheckFilter(n *schema.Node, f *configv1.Filter) {
	r := &configv1.HealthCheckFilter{Path: n.Str("path"), PassThrough: n.Bool("pass_through"), CacheTimeMs: n.Int("cache_time"), Match: c.when(n)}
	if n.Has("path") {
		if reason, at := invalidPath(r.Path); reason != "" {
			c.diags.Report(diag.InvalidTarget, c.inside(n.Range("path"), r.Path, min(at, len(r.Path)), runeAt(r.Path, at)), "Invalid path", "%s", reason)
		} else if strings.ContainsAny(r.Path, "?#") {
			c.diags.Report(diag.InvalidTarget, n.Range("path"), "Invalid path", "The path of a health check has no query.")
		}
	}
	for _, v := range n.List("clusters") {
		rec, ok := v.V.(schema.Record)
		if !ok {
			continue
		}
		least, _ := rec.Get("min_healthy").V.(int64)
		r.Clusters = append(r.Clusters, &configv1.ClusterShare{Cluster: c.ref(rec.Get("cluster")), MinHealthy: uint32(least)})
	}
	if r.PassThrough && len(r.Clusters) > 0 {
		c.diags.Report(diag.Exclusive, n.Range("clusters"), "Attributes exclude each other", "With pass_through the upstream answers, and clusters are not looked at.")
	}
	if n.Has("cache_time") && !r.PassThrough {
		c.diags.Report(diag.Exclusive, n.Range("cache_time"), "Nothing to keep", "cache_time is about the answers of upstreams: write pass_through = true.")
	}
	f.Kind = &configv1.Filter_HealthCheck{HealthCheck: r}
}

func (c *compiler) decompressFilter(n *schema.Node, f *configv1.Filter) {
	r := &configv1.DecompressFilter{
		Requests: n.Bool("requests"), Responses: n.Bool("responses"), Codings: c.codings(n), MaxBytes: uint64(n.Int("max_size")),
		MaxRatio: uint32(n.Int("max_ratio")), MaxCompressedBytes: uint64(n.Int("max_compressed")),
	}
	if !r.Requests && !r.Responses {
		c.diags.Report(diag.Exclusive, n.DefRange, "Nothing to decompress", "A decompress filter works on requests, responses or both.")
	}
	f.Kind = &configv1.Filter_Decompress{Decompress: r}
}
