package compile

import (
	"math"
	"mime"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/routing"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// conditions compiles the match block of a route into its match.
func (c *compiler) conditions(n *schema.Node, m *configv1.RouteMatch) {
	for _, group := range []struct {
		short, block string
		to           *[]*configv1.FieldMatch
	}{{"headers", "header", &m.Headers}, {"query", "parameter", &m.Query}, {"cookies", "cookie", &m.Cookies}} {
		for _, p := range n.Pairs(group.short) {
			name, ok := c.fieldName(group.block, p.Name)
			if !ok {
				continue
			}
			if len(p.Values) != 1 {
				c.diags.Report(diag.WrongType, p.Name.Range, "Wrong type", "%s gives a name one value; a %s block has other tests.", group.short, group.block)
				continue
			}
			s, _ := p.Values[0].V.(string)
			*group.to = append(*group.to, &configv1.FieldMatch{Name: name, Test: &configv1.FieldMatch_Exact{Exact: s}})
		}
		for _, b := range n.All(group.block) {
			c.within(b, func() {
				name, ok := c.fieldName(group.block, schema.Value{V: b.Label, Range: b.LabelRange})
				if f := c.fieldMatch(b); f != nil && ok {
					f.Name = name
					*group.to = append(*group.to, f)
				}
			})
		}
	}
	m.ContentTypes = c.contentTypes(n.List("content_types"))
	for _, b := range []struct {
		name string
		to   **bool
	}{{"grpc", &m.Grpc}, {"tls", &m.Tls}, {"client_cert", &m.ClientCert}} {
		if n.Has(b.name) {
			*b.to = proto.Bool(n.Bool(b.name))
		}
	}
	m.SourceCidrs = c.networks(n.List("source_cidrs"))
	m.NotSourceCidrs = c.networks(n.List("not_source_cidrs"))
	if n.Has("fraction") {
		m.Fraction = proto.Uint32(uint32(n.Int("fraction")))
	}
}

// contentTypes checks types, in lower case; a star stands for every subtype.
func (c *compiler) contentTypes(list []schema.Value) (out []string) {
	for _, v := range list {
		s, _ := v.V.(string)
		t := strings.ToLower(s)
		plain := strings.TrimSuffix(t, "*") + "x"
		if media, params, err := mime.ParseMediaType(plain); err != nil || media != plain || len(params) > 0 || strings.Count(t, "/") != 1 || t[0] == '/' || strings.Contains(t[:len(t)-1], "*") || (strings.HasSuffix(t, "*") && !strings.HasSuffix(t, "/*")) {
			c.diags.Report(diag.InvalidValue, v.Range, "Invalid content type", "%q is not a content type such as \"application/json\" or \"text/*\".", s)
			continue
		}
		out = append(out, t)
	}
	return out
}

// fieldName checks the name of a header, parameter or cookie.
func (c *compiler) fieldName(kind string, v schema.Value) (string, bool) {
	s, _ := v.V.(string)
	switch kind {
	case "header":
		name := strings.ToLower(s)
		if protected[name] && name != "content-length" {
			c.diags.Report(diag.ProtectedHeader, v.Range, "Header belongs to the connection", "Routes do not see %s: it belongs to one connection, or to the virtual host.", s)
			return "", false
		}
		if validToken(name) {
			return name, true
		}
		c.diags.Report(diag.InvalidHeader, v.Range, "Invalid header name", "%q is not a header name. The method and the path are part of the route's pattern, the host is the virtual host's.", s)
		return "", false
	case "cookie":
		if validToken(s) {
			return s, true
		}
	default:
		if s != "" && !strings.ContainsAny(s, "&=#") && plainASCII(s) {
			return s, true
		}
	}
	c.diags.Report(diag.InvalidValue, v.Range, "Invalid name", "%q cannot be the name of a %s.", s, kind)
	return "", false
}

func validToken(s string) bool {
	for i := range len(s) {
		if !tokenChar(s[i]) {
			return false
		}
	}
	return s != "" && len(s) <= 256
}

func plainASCII(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] >= 0x7f {
			return false
		}
	}
	return true
}

var fieldTests = []string{"exact", "prefix", "suffix", "contains", "regex", "min", "max", "present"}

// fieldMatch compiles one test; nil after a mistake.
func (c *compiler) fieldMatch(n *schema.Node) *configv1.FieldMatch {
	var written []string
	for _, t := range fieldTests {
		if n.Failed(t) {
			return nil
		}
		if n.Has(t) {
			written = append(written, t)
		}
	}
	if len(written) == 2 && written[0] == "min" && written[1] == "max" {
		written = written[:1]
	}
	if len(written) != 1 {
		c.diags.Report(diag.Exclusive, n.DefRange, "Condition without one test", "A condition has one of exact, prefix, suffix, contains, regex, present, or min and max; this has %d.", len(written))
		return nil
	}
	f := &configv1.FieldMatch{IgnoreCase: n.Bool("ignore_case"), Invert: n.Bool("invert"), MissingAsEmpty: n.Bool("missing_as_empty")}
	switch s := n.Str(written[0]); written[0] {
	case "exact":
		f.Test = &configv1.FieldMatch_Exact{Exact: s}
	case "prefix":
		f.Test = &configv1.FieldMatch_Prefix{Prefix: s}
	case "suffix":
		f.Test = &configv1.FieldMatch_Suffix{Suffix: s}
	case "contains":
		f.Test = &configv1.FieldMatch_Contains{Contains: s}
	case "regex":
		if !c.expression(n.Get("regex")) {
			return nil
		}
		f.Test = &configv1.FieldMatch_Regex{Regex: s}
	case "present":
		f.Test = &configv1.FieldMatch_Present{Present: n.Bool("present")}
		if n.Bool("missing_as_empty") {
			c.diags.Report(diag.Exclusive, n.Range("missing_as_empty"), "Attributes exclude each other", "present asks whether it is there; as an empty value it always would be.")
		}
	default:
		r := &configv1.Range{Start: math.MinInt64, End: math.MaxInt64}
		if n.Has("min") {
			r.Start = n.Int("min")
		}
		if n.Has("max") && n.Int("max") < math.MaxInt64 {
			r.End = n.Int("max") + 1
		}
		if r.Start >= r.End {
			c.diags.Report(diag.OutOfRange, n.Range("min"), "Empty range", "min is not above max.")
		}
		f.Test = &configv1.FieldMatch_Range{Range: r}
	}
	if _, text := map[string]bool{"exact": true, "prefix": true, "suffix": true, "contains": true}[written[0]]; !text && f.GetIgnoreCase() {
		hint := ""
		if written[0] == "regex" {
			hint = " An expression says it itself: \"(?i)…\"."
		}
		c.diags.Report(diag.Exclusive, n.Range("ignore_case"), "Attributes exclude each other", "ignore_case means nothing to %s.%s", written[0], hint)
	}
	return f
}

// expression checks a regular expression that is a value.
func (c *compiler) expression(v schema.Value) bool {
	s, _ := v.V.(string)
	err := routing.CheckExpression(s)
	if s == "" || err != nil {
		detail := "It is empty"
		if err != nil {
			detail = err.Error()
		}
		c.diags.Report(diag.InvalidRegex, v.Range, "Invalid regular expression", "%s. Expressions are RE2 (no backreferences, no lookaround).", detail)
		return false
	}
	return true
}

// networks reads CIDRs, or single addresses, into their one way of writing.
func (c *compiler) networks(list []schema.Value) []string {
	var out []string
	for _, v := range list {
		s, _ := v.V.(string)
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			a = a.Unmap()
			out = append(out, netip.PrefixFrom(a, a.BitLen()).String())
			continue
		}
		p, err := netip.ParsePrefix(s)
		switch {
		case err != nil:
			c.diags.Report(diag.InvalidAddress, v.Range, "Invalid network", "%q is not a network such as \"10.0.0.0/8\" or \"2001:db8::/32\", nor an address.", s)
		case p.Masked() != p:
			c.diags.Report(diag.InvalidAddress, v.Range, "Invalid network", "%s has bits behind its prefix: write %q.", s, p.Masked().String())
		default:
			out = append(out, p.String())
		}
	}
	return out
}
