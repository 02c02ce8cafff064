package compile

import (
	"cmp"
	"path"
	"strconv"
	"strings"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// discovery compiles a discovery block. Nothing is looked up here: a name that does not resolve is no mistake.
func (c *compiler) discovery(n *schema.Node) *configv1.Discovery {
	if n.Label == "file" {
		v := n.Get("path")
		p := n.Str("path")
		if v.V != nil && (!path.IsAbs(p) || strings.ContainsRune(p, 0)) {
			c.diags.Report(diag.InvalidAddress, v.Range, "Invalid path", "%q is not an absolute path: the daemons have no working directory that you could know.", p)
		}
		return &configv1.Discovery{Kind: &configv1.Discovery_File{File: &configv1.FileDiscovery{Path: path.Clean(p)}}}
	}
	d := &configv1.DnsDiscovery{
		Record: n.Str("record"), MinTtlMs: n.Int("min_ttl"), MaxTtlMs: n.Int("max_ttl"), TimeoutMs: n.Int("timeout"),
		Logical: n.Bool("logical"), FailureIntervalMs: n.Int("failure_interval"), MaxFailureIntervalMs: n.Int("max_failure_interval"),
	}
	if shortest := cmp.Or(d.FailureIntervalMs, d.MinTtlMs); d.MaxFailureIntervalMs > 0 && d.MaxFailureIntervalMs < shortest {
		c.diags.Report(diag.OutOfRange, n.Range("max_failure_interval"), "Floor above ceiling", "max_failure_interval is not shorter than failure_interval (min_ttl where it is not written).")
	}
	if d.MinTtlMs > d.MaxTtlMs {
		c.diags.Report(diag.OutOfRange, n.Range("min_ttl"), "Floor above ceiling", "min_ttl is not longer than max_ttl.")
	}
	d.Host, d.Port = c.target(n.Get("name"), d.Record == "srv")
	for _, v := range n.List("resolvers") {
		if address, ok := c.address(v, false); ok {
			d.Resolvers = append(d.Resolvers, address)
		}
	}
	return &configv1.Discovery{Kind: &configv1.Discovery_Dns{Dns: d}}
}

// target reads "HOST:PORT", or with srv "NAME".
func (c *compiler) target(v schema.Value, srv bool) (string, uint32) {
	s, ok := v.V.(string)
	if !ok {
		return "", 0
	}
	bad := func(format string, args ...any) (string, uint32) {
		c.diags.Report(diag.InvalidTarget, v.Range, "Invalid name", format, args...)
		return "", 0
	}
	host, port, split := cutPort(strings.ToLower(s))
	host = strings.TrimSuffix(host, ".")
	switch {
	case !validDomain(host) || strings.HasPrefix(host, "["):
		return bad("%q is not a name: \"api.internal:8443\".", s)
	case srv && split:
		return bad("SRV records have ports of their own: write %q.", host)
	case srv:
		return host, 0
	case !split || !validPort(port):
		return bad("%q has no port from 1 to 65535: write \"%s:8080\". (record = \"srv\" takes it from the records.)", s, host)
	}
	n, _ := strconv.ParseUint(port, 10, 16)
	return host, uint32(n)
}
