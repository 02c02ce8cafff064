package compile

import (
	"math"
	"regexp"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

func (c *compiler) ipFilter(n *schema.Node, f *configv1.Filter) {
	f.Kind = &configv1.Filter_Ip{Ip: &configv1.IpFilter{
		Allow: c.networks(n.List("allow")), Deny: c.networks(n.List("deny")), Shadow: n.Bool("shadow"),
	}}
	if len(n.List("allow")) == 0 && n.Has("allow") {
		c.diags.Report(diag.OutOfRange, n.Range("allow"), "Nobody is let in", "An empty list allows nobody; without the attribute everybody is let in who is not in deny. To refuse everybody write deny = [\"0.0.0.0/0\", \"::/0\"].")
	}
}

var rateForm = regexp.MustCompile(`^([0-9]{1,15})/([0-9]{0,6})([smhd])$`)

func (c *compiler) rateLimitFilter(n *schema.Node, f *configv1.Filter) {
	r := &configv1.RateLimitFilter{
		Burst: uint64(n.Int("burst")), MaxKeys: uint32(n.Int("max_keys")), Status: uint32(n.Int("status")), Headers: n.Bool("headers"),
		Enabled: share(n, "enabled"), Enforced: share(n, "enforced"), RateLimitedAsResourceExhausted: n.Bool("rate_limited_as_resource_exhausted"),
	}
	if n.Has("limit") {
		r.Tokens, r.IntervalMs = c.rate(n.Get("limit"))
		burst := max(r.Burst, r.Tokens)
		if r.Tokens > 0 && float64(burst)*float64(r.IntervalMs)/float64(r.Tokens) > 366*24*3600*1000 {
			c.diags.Report(diag.OutOfRange, n.Range("limit"), "Rate too small", "At this rate a bucket of %d takes more than a year to fill.", burst)
		}
	}
	for _, v := range n.List("key") {
		s, _ := v.V.(string)
		name, header := strings.CutPrefix(s, "header:")
		switch {
		case header:
			if name, ok := c.fieldName("header", schema.Value{V: name, Range: v.Range}); ok {
				r.Key = append(r.Key, "header:"+name)
			}
		case s == "source", s == "connection", s == "route", s == "virtual_host":
			r.Key = append(r.Key, s)
		default:
			c.diags.Report(diag.OutOfRange, v.Range, "Value not allowed", "%q is none of \"source\", \"connection\", \"route\", \"virtual_host\" and \"header:NAME\".", s)
		}
	}
	f.Kind = &configv1.Filter_RateLimit{RateLimit: r}
}

// rate reads "100/s" or "5/10s".
func (c *compiler) rate(v schema.Value) (tokens uint64, interval int64) {
	s, _ := v.V.(string)
	m := rateForm.FindStringSubmatch(s)
	if m == nil {
		c.diags.Report(diag.WrongType, v.Range, "Not a rate", "A rate is a number in a time, such as \"100/s\", \"20/m\", \"1000/h\" or \"5/10s\", not %q.", s)
		return 0, 0
	}
	tokens, _ = strconv.ParseUint(m[1], 10, 64)
	units := int64(1)
	if m[2] != "" {
		units, _ = strconv.ParseInt(m[2], 10, 64)
	}
	interval = units * map[string]int64{"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}[m[3]]
	if tokens == 0 || interval == 0 || interval > 366*86_400_000 || float64(tokens)/float64(interval) > 1000 {
		c.diags.Report(diag.OutOfRange, v.Range, "Value out of range", "A rate is above 0, at most 1,000,000 a second, and its time at most a year.")
		return 0, 0
	}
	return tokens, interval
}

// share is a fraction that is not all.
func share(n *schema.Node, attr string) *uint32 {
	if v := n.Int(attr); n.Has(attr) && v < 1_000_000 {
		return proto.Uint32(uint32(v))
	}
	return nil
}

// patterns checks texts with a star or an expression.
func (c *compiler) patterns(list []schema.Value) []string {
	var out []string
	for _, v := range list {
		s, _ := v.V.(string)
		if expression, ok := strings.CutPrefix(s, "~"); ok {
			if !c.expression(schema.Value{V: expression, Range: v.Range}) {
				continue
			}
		} else if s == "" || strings.Count(s, "*") > 1 {
			c.diags.Report(diag.InvalidValue, v.Range, "Invalid pattern", "%q is not a text with at most one \"*\"; \"~\" begins an expression.", s)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (c *compiler) corsFilter(n *schema.Node, f *configv1.Filter) {
	r := &configv1.CorsFilter{
		AllowOrigins: c.patterns(n.List("allow_origins")), AllowMethods: c.methodNames(n.List("allow_methods")),
		AllowHeaders: c.fieldNames(n.List("allow_headers")), ExposeHeaders: c.fieldNames(n.List("expose_headers")),
		AllowCredentials: n.Bool("allow_credentials"), Shadow: n.Bool("shadow"), AnswerNotMatchingPreflights: !n.Bool("forward_not_matching_preflights"),
	}
	for _, v := range n.List("allow_origins") {
		s, _ := v.V.(string)
		for _, stranger := range strangers {
			if r.AllowCredentials && fits(s, stranger) {
				c.diags.Report(diag.Exclusive, v.Range, "Every origin with credentials", "%q is allowed, and with allow_credentials every page on the web could act as the user: name the origins.", stranger)
				break
			}
		}
	}
	if n.Has("max_age") {
		r.MaxAgeSeconds = proto.Int64(int64(math.Ceil(float64(n.Int("max_age")) / 1000)))
	}
	f.Kind = &configv1.Filter_Cors{Cors: r}
}

// strangers are origins that nobody means: every page can have the first, and who allows the second allows all hosts.
var strangers = []string{"null", "https://nobody.invalid"}

// fits tells whether a pattern is that of a text.
func fits(pattern, text string) bool {
	if expression, ok := strings.CutPrefix(pattern, "~"); ok {
		compiled, err := regexp.Compile(`\A(?:` + expression + `)\z`)
		return err == nil && compiled.MatchString(text)
	}
	head, tail, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == text
	}
	return len(text) >= len(head)+len(tail) && strings.HasPrefix(text, head) && strings.HasSuffix(text, tail)
}

// methodNames and fieldNames check tokens that go into headers; "*" is one.
func (c *compiler) methodNames(list []schema.Value) (out []string) {
	for _, v := range list {
		s, _ := v.V.(string)
		if !validToken(s) {
			c.diags.Report(diag.InvalidValue, v.Range, "Invalid method", "%q is not a method.", s)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (c *compiler) fieldNames(list []schema.Value) (out []string) {
	for _, v := range list {
		s, _ := v.V.(string)
		if !validToken(s) {
			c.diags.Report(diag.InvalidHeader, v.Range, "Invalid header name", "%q is not a header name.", s)
			continue
		}
		out = append(out, strings.ToLower(s))
	}
	return out
}

func (c *compiler) faultFilter(n *schema.Node, f *configv1.Filter) {
	r := &configv1.FaultFilter{Headers: n.Bool("headers"), MaxActive: uint32(n.Int("max_active")), Match: c.when(n)}
	if d := n.Child("delay"); d != nil {
		r.DelayMs, r.DelayFraction = d.Int("time"), share(d, "share")
	}
	if a := n.Child("abort"); a != nil {
		r.AbortStatus, r.AbortGrpcStatus, r.AbortFraction = uint32(a.Int("status")), uint32(a.Int("grpc_status")), share(a, "share")
		if a.Has("status") && a.Has("grpc_status") {
			c.diags.Report(diag.Exclusive, a.Range("grpc_status"), "Attributes exclude each other", "An abort has a status or a grpc_status.")
		}
	}
	if l := n.Child("response_rate_limit"); l != nil {
		r.ResponseRateLimitKbps, r.ResponseRateLimitFraction = uint32(l.Int("kbps")), share(l, "share")
	}
	if r.GetDelayMs() == 0 && r.GetAbortStatus()+r.GetAbortGrpcStatus() == 0 && r.GetResponseRateLimitKbps() == 0 && !r.GetHeaders() {
		c.diags.Report(diag.MissingAttribute, n.DefRange, "Fault without one", "A fault has a delay with a time, an abort with a status or grpc_status, a response_rate_limit with kbps, or headers = true.")
	}
	f.Kind = &configv1.Filter_Fault{Fault: r}
}

// when compiles the match block of a filter; nil without one.
func (c *compiler) when(n *schema.Node) *configv1.RouteMatch {
	m := n.Child("match")
	if m == nil {
		return nil
	}
	out := &configv1.RouteMatch{}
	c.within(m, func() { c.conditions(m, out) })
	return out
}

func (c *compiler) rbacFilter(n *schema.Node, f *configv1.Filter) {
	r := &configv1.RbacFilter{}
	shadow := n.Child("shadow")
	if len(n.All("policy")) > 0 || n.Own("action") || shadow == nil {
		r.Rules = c.rbacRules(n)
	}
	if shadow != nil {
		c.within(shadow, func() { r.Shadow = c.rbacRules(shadow) })
	}
	f.Kind = &configv1.Filter_Rbac{Rbac: r}
}

func (c *compiler) rbacRules(n *schema.Node) *configv1.RbacRules {
	r := &configv1.RbacRules{Action: n.Str("action")}
	seen := map[string]bool{}
	for _, p := range n.All("policy") {
		c.within(p, func() {
			if name := p.Label; name == "" || len(name) > 128 || strings.ContainsAny(name, " \t") || !plainASCII(name) {
				c.diags.Report(diag.InvalidName, p.LabelRange, "Invalid name", "The name of a policy stands in access logs: 1 to 128 visible ASCII characters.")
			} else if seen[name] {
				c.diags.Report(diag.DuplicateName, p.LabelRange, "Name used twice", "There is already a policy %q here.", name)
			}
			seen[p.Label] = true
			r.Policies = append(r.Policies, c.rbacPolicy(p))
		})
	}
	if len(r.Policies) == 0 && r.Action == "allow" {
		c.diags.Report(diag.MissingAttribute, n.DefRange, "Nothing is allowed", "Without a policy action \"allow\" refuses every request. Write policy blocks, or action = \"deny\".")
	}
	return r
}

func (c *compiler) rbacPolicy(n *schema.Node) *configv1.RbacPolicy {
	p := &configv1.RbacPolicy{Name: n.Label, Source: c.source(n.DefRange)}
	for _, b := range n.All("permission") {
		c.within(b, func() {
			x := &configv1.RbacPermission{Paths: c.patterns(b.List("paths")), Hosts: c.patterns(b.List("hosts")), Match: &configv1.RouteMatch{}}
			for _, v := range b.List("hosts") {
				if s, _ := v.V.(string); s != strings.ToLower(s) && !strings.HasPrefix(s, "~") {
					c.diags.Report(diag.InvalidDomain, v.Range, "Host not in lower case", "Hosts are compared in lower case: %q.", strings.ToLower(s))
				}
			}
			c.conditions(b, x.Match)
			x.Match.Methods = c.methodNames(b.List("methods"))
			if proto.Size(x.Match) == 0 {
				x.Match = nil
			}
			p.Permissions = append(p.Permissions, x)
		})
	}
	for _, b := range n.All("principal") {
		c.within(b, func() {
			x := &configv1.RbacPrincipal{
				SourceCidrs: c.networks(b.List("source_cidrs")), NotSourceCidrs: c.networks(b.List("not_source_cidrs")),
				Sans: c.patterns(b.List("sans")), Subjects: c.patterns(b.List("subjects")),
			}
			if b.Has("authenticated") {
				x.Authenticated = proto.Bool(b.Bool("authenticated"))
			}
			for _, h := range b.All("header") {
				c.within(h, func() {
					name, ok := c.fieldName("header", schema.Value{V: h.Label, Range: h.LabelRange})
					if m := c.fieldMatch(h); m != nil && ok {
						m.Name = name
						x.Headers = append(x.Headers, m)
					}
				})
			}
			p.Principals = append(p.Principals, x)
		})
	}
	return p
}
