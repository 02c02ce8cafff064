package compile

import (
	"errors"
	"regexp"
	"strings"

	"retinue.dev/libs/routing"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// rewrite compiles a rewrite block into its action.
func (c *compiler) rewrite(n *schema.Node, a *configv1.RouteAction, match *configv1.RouteMatch) {
	if n.Has("prefix") {
		a.PrefixRewrite = c.newPrefix(n, match)
	}
	a.RegexRewrite = c.regexRewrite(n)
	a.TemplateRewrite = c.templateRewrite(n, match)
	if n.Has("host") {
		a.HostRewrite = c.host(n.Get("host"))
	}
	if n.Has("host_header") {
		if n.Has("host") {
			c.diags.Report(diag.Exclusive, n.Range("host_header"), "Attributes exclude each other", "The host comes from host or from host_header: write one.")
		}
		v := n.Get("host_header")
		name := strings.ToLower(n.Str("host_header"))
		if !validToken(name) {
			c.diags.Report(diag.InvalidHeader, v.Range, "Invalid header name", "%q is not a header name.", n.Str("host_header"))
		}
		a.HostRewriteHeader = name
	}
	if a.AppendXForwardedHost = n.Bool("append_x_forwarded_host"); a.AppendXForwardedHost && !n.Has("host") && !n.Has("host_header") {
		c.diags.Report(diag.NoEffect, n.Range("append_x_forwarded_host"), "No other host", "append_x_forwarded_host tells the host that host or host_header replaces; neither is written.")
	}
	if q := n.Child("query"); q != nil {
		c.within(q, func() { a.QueryRewrite = c.queryRewrite(q) })
	}
}

// regexRewrite compiles regex and substitution of rewrite and redirect; nil when there is none.
func (c *compiler) regexRewrite(n *schema.Node) *configv1.RegexRewrite {
	if !n.Has("regex") && !n.Has("substitution") {
		return nil
	}
	if n.Failed("regex") || n.Failed("substitution") {
		return nil
	}
	if !n.Has("regex") || !n.Has("substitution") {
		c.diags.Report(diag.MissingAttribute, n.DefRange, "Missing attribute", "regex and substitution belong together.")
		return nil
	}
	if n.Has("prefix") {
		c.diags.Report(diag.Exclusive, n.Range("regex"), "Attributes exclude each other", "regex and prefix both replace a part of the path: write one.")
	}
	if !c.expression(n.Get("regex")) {
		return nil
	}
	groups := regexp.MustCompile(n.Str("regex")).NumSubexp()
	v := n.Get("substitution")
	s := n.Str("substitution")
	bad := func(at, length int, format string, args ...any) *configv1.RegexRewrite {
		c.diags.Report(diag.InvalidTarget, c.inside(v.Range, s, at, length), "Invalid substitution", format, args...)
		return nil
	}
	for i := 0; i < len(s); i++ {
		switch b := s[i]; {
		case b <= ' ' || b >= 0x7f || strings.IndexByte("\"<>^`{|}#?", b) >= 0:
			return bad(i, runeAt(s, i), "A path holds no %q; it is written percent-encoded.", s[i:i+runeAt(s, i)])
		case b != '\\':
		case i+1 == len(s) || s[i+1] < '0' || s[i+1] > '9':
			return bad(i, 1, "A backslash is followed by the number of a group: \\1; \\0 is the whole match.")
		case int(s[i+1]-'0') > groups:
			return bad(i, 2, "regex has %d groups.", groups)
		}
	}
	return &configv1.RegexRewrite{Pattern: n.Str("regex"), Substitution: s}
}

// templateRewrite compiles template of rewrite and redirect; "" when there is none.
func (c *compiler) templateRewrite(n *schema.Node, match *configv1.RouteMatch) string {
	if !n.Has("template") {
		return ""
	}
	others := []string{"prefix", "regex"}
	if n.Block.Name == "redirect" {
		others = append(others, "path")
	}
	for _, other := range others {
		if n.Has(other) {
			c.diags.Report(diag.Exclusive, n.Range("template"), "Attributes exclude each other", "template and %s both say what the path becomes: write one.", other)
			return ""
		}
	}
	v := n.Get("template")
	s := n.Str("template")
	if match == nil {
		return ""
	}
	t, err := routing.ParseTemplate(match.GetTemplate())
	if err != nil {
		c.diags.Report(diag.InvalidTarget, v.Range, "No variables", "template is made of the variables of the route's pattern, \"/videos/{country}/{id}\"; this pattern has none.")
		return ""
	}
	var at *routing.TemplateError
	if _, err := t.Rewrite(s); errors.As(err, &at) {
		c.diags.Report(diag.InvalidTarget, c.inside(v.Range, s, at.Offset, at.Length), "Invalid template", "%s", at.Reason)
		return ""
	}
	return s
}

func (c *compiler) queryRewrite(n *schema.Node) *configv1.QueryRewrite {
	q := &configv1.QueryRewrite{Clear: n.Bool("clear")}
	for _, v := range n.List("remove") {
		if name, ok := c.fieldName("parameter", v); ok {
			q.Remove = append(q.Remove, name)
		}
	}
	for _, p := range n.Pairs("set") {
		name, ok := c.fieldName("parameter", p.Name)
		if !ok {
			continue
		}
		if len(p.Values) != 1 {
			c.diags.Report(diag.WrongType, p.Name.Range, "Wrong type", "set gives a parameter one value.")
			continue
		}
		value, _ := p.Values[0].V.(string)
		if strings.ContainsAny(value, "&#") || (value != "" && !plainASCII(value)) {
			c.diags.Report(diag.InvalidValue, p.Values[0].Range, "Invalid value", "%q cannot stand in a query: &, #, blanks and non-ASCII characters are written %%XX.", value)
			continue
		}
		q.Set = append(q.Set, &configv1.Parameter{Name: name, Value: value})
	}
	if !q.Clear && len(q.Remove)+len(q.Set) == 0 {
		return nil
	}
	return q
}

func (c *compiler) sticky(n *schema.Node) *configv1.Sticky {
	var keys []string
	for _, k := range []string{"cookie", "header", "source"} {
		if n.Has(k) {
			keys = append(keys, k)
		}
	}
	if len(keys) != 1 {
		c.diags.Report(diag.Exclusive, n.DefRange, "Sticky without one key", "Exactly one of cookie, header and source is written.")
		return nil
	}
	s := &configv1.Sticky{}
	switch keys[0] {
	case "cookie":
		s.Cookie, _ = c.fieldName("cookie", n.Get("cookie"))
		s.CookieTtlMs, s.CookiePath = n.Int("ttl"), n.Str("path")
		if reason, _ := invalidPath(s.CookiePath); reason != "" || strings.ContainsAny(s.CookiePath, ";,") {
			c.diags.Report(diag.InvalidTarget, n.Range("path"), "Invalid path", "%q cannot be the path of a cookie.", s.CookiePath)
		}
	case "header":
		s.Header, _ = c.fieldName("header", n.Get("header"))
	case "source":
		if s.Source = n.Bool("source"); !s.Source {
			c.diags.Report(diag.Exclusive, n.Range("source"), "Sticky without one key", "source = false names no key.")
		}
	}
	for _, a := range []string{"ttl", "path"} {
		if n.Own(a) && s.Cookie == "" {
			c.diags.Report(diag.Exclusive, n.Range(a), "Attributes exclude each other", "%s belongs to a cookie.", a)
		}
	}
	return s
}

func (c *compiler) mirrors(n *schema.Node) []*configv1.Mirror {
	var out []*configv1.Mirror
	for _, m := range n.All("mirror") {
		share := uint32(m.Int("fraction"))
		if share == 0 {
			c.ref(m.Get("cluster")) // 0 % is off
			continue
		}
		out = append(out, &configv1.Mirror{Cluster: c.ref(m.Get("cluster")), Fraction: share})
	}
	return out
}
