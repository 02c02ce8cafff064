package compile

import (
	"math"
	"slices"
	"strconv"
	"strings"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// Bounds of what one request asks the service.
const (
	maxDescriptors = 32
	maxActions     = 16 // of a descriptor
	maxHits        = 1_000_000_000
)

func (c *compiler) globalRateLimitFilter(n *schema.Node, f *configv1.Filter) {
	r := &configv1.GlobalRateLimitFilter{
		Cluster: c.grpcService(n.Get("cluster")), Domain: n.Str("domain"), TimeoutMs: n.Int("timeout"), FailureModeDeny: n.Str("on_error") == "closed",
		Status: uint32(n.Int("status")), StatusOnError: uint32(n.Int("status_on_error")), Headers: n.Bool("headers"),
		RateLimitedAsResourceExhausted: n.Bool("rate_limited_as_resource_exhausted"), HitsAddend: uint32(n.Int("hits_addend")),
		Enabled: share(n, "enabled"), Enforced: share(n, "enforced"),
	}
	c.notEmpty(n, "domain")
	if n.Own("status_on_error") && !r.FailureModeDeny {
		c.diags.Report(diag.Exclusive, n.Range("status_on_error"), "Nothing is refused", "A request that the service does not decide about passes: write on_error = \"closed\".")
	}
	descriptors := n.All("descriptor")
	if len(descriptors) > maxDescriptors {
		c.diags.Report(diag.OutOfRange, descriptors[maxDescriptors].DefRange, "Too many descriptors", "A filter has at most %d.", maxDescriptors)
	}
	for _, d := range descriptors {
		c.within(d, func() { r.Descriptors = append(r.Descriptors, c.rateLimitDescriptor(d)) })
	}
	f.Kind = &configv1.Filter_GlobalRateLimit{GlobalRateLimit: r}
}

func (c *compiler) rateLimitDescriptor(n *schema.Node) *configv1.RateLimitDescriptor {
	d := &configv1.RateLimitDescriptor{}
	actions := n.All("action")
	if len(actions) > maxActions {
		c.diags.Report(diag.OutOfRange, actions[maxActions].DefRange, "Too many actions", "A descriptor has at most %d.", maxActions)
	}
	for _, a := range actions {
		c.within(a, func() { d.Actions = append(d.Actions, c.rateLimitAction(a)) })
	}
	d.HitsAddend = c.numberFormat(n, "hits_addend", maxHits)
	if l := n.Child("limit"); l != nil {
		c.within(l, func() {
			d.LimitRequests, d.LimitUnit = c.numberFormat(l, "requests_per_unit", math.MaxUint32), l.Str("unit")
		})
	}
	return d
}

// numberFormat is a number, or a text with operators that gives one for a request.
func (c *compiler) numberFormat(n *schema.Node, attr string, most uint64) string {
	text := n.Str(attr)
	switch {
	case !n.Has(attr) || n.Failed(attr):
	case strings.Contains(text, "%"):
		c.format(n.Get(attr))
	default:
		if number, err := strconv.ParseUint(text, 10, 64); err != nil || number > most {
			c.diags.Report(diag.OutOfRange, n.Range(attr), "Not a number", "%s is a number up to %d, or a text with operators.", attr, most)
		}
	}
	return text
}

// pseudoHeaders are what request_headers takes beside names of headers.
var pseudoHeaders = []string{":method", ":path", ":authority", ":scheme"}

func (c *compiler) rateLimitAction(n *schema.Node) *configv1.RateLimitAction {
	a := &configv1.RateLimitAction{Key: n.Label}
	for _, attr := range []string{"descriptor_key", "descriptor_value"} {
		if n.Block.Attr(attr) != nil {
			c.notEmpty(n, attr)
		}
	}
	if n.Block.Attr("descriptor_key") != nil {
		a.Key = n.Str("descriptor_key")
	}
	if n.Block.Attr("skip_if_absent") != nil {
		a.SkipIfAbsent = n.Bool("skip_if_absent")
	}
	switch n.Label {
	case "generic_key":
		text := n.Str("descriptor_value")
		a.Kind = &configv1.RateLimitAction_GenericKey{GenericKey: text}
		switch {
		case strings.Contains(text, "%"):
			if c.format(n.Get("descriptor_value")) {
				a.Kind = &configv1.RateLimitAction_Format{Format: text}
			}
		case n.Own("skip_if_absent"):
			c.diags.Report(diag.Exclusive, n.Range("skip_if_absent"), "Never absent", "A value without operators is always there.")
		}
	case "remote_address":
		a.Kind = &configv1.RateLimitAction_RemoteAddress{RemoteAddress: &configv1.AddressMask{Whole: true}}
	case "masked_remote_address":
		a.Kind = &configv1.RateLimitAction_RemoteAddress{RemoteAddress: &configv1.AddressMask{
			V4PrefixLen: uint32(n.Int("v4_prefix_mask_len")), V6PrefixLen: uint32(n.Int("v6_prefix_mask_len")),
		}}
	case "request_headers":
		name := strings.ToLower(n.Str("header_name"))
		if n.Has("header_name") && !slices.Contains(pseudoHeaders, name) {
			if strings.HasPrefix(name, ":") {
				c.diags.Report(diag.InvalidHeader, n.Range("header_name"), "Invalid header name", "%q is none of %s.", name, strings.Join(pseudoHeaders, ", "))
			} else {
				name, _ = c.fieldName("header", n.Get("header_name"))
			}
		}
		a.Kind = &configv1.RateLimitAction_RequestHeader{RequestHeader: name}
	case "query_parameters":
		c.notEmpty(n, "query_parameter_name")
		a.Kind = &configv1.RateLimitAction_QueryParameter{QueryParameter: n.Str("query_parameter_name")}
	case "destination_cluster":
		a.Kind = &configv1.RateLimitAction_DestinationCluster{DestinationCluster: true}
	case "header_value_match", "query_parameter_value_match":
		m := &configv1.RateLimitMatch{Value: n.Str("descriptor_value"), ExpectNoMatch: !n.Bool("expect_match"), Match: c.when(n)}
		if child := n.Child("match"); child != nil && len(child.Children) == 0 && !slices.ContainsFunc(child.Block.Attrs, func(a schema.Attr) bool { return child.Own(a.Name) }) {
			c.diags.Report(diag.MissingAttribute, child.DefRange, "No condition", "Every request meets it: write a generic_key.")
		}
		a.Kind = &configv1.RateLimitAction_Match{Match: m}
	}
	return a
}

// notEmpty reports a text that is written and empty.
func (c *compiler) notEmpty(n *schema.Node, attr string) {
	if n.Has(attr) && !n.Failed(attr) && n.Str(attr) == "" {
		c.diags.Report(diag.InvalidValue, n.Range(attr), "Empty value", "%s is not empty.", attr)
	}
}

// grpcService is the name of a cluster that is asked by gRPC, and so speaks HTTP/2.
func (c *compiler) grpcService(v schema.Value) string {
	name := c.ref(v)
	if c.http1[name] {
		c.diags.Report(diag.Exclusive, v.Range, "Cluster does not speak gRPC", "gRPC is HTTP/2, and cluster %q speaks HTTP/1.1: write protocol = \"http2\" there.", name)
	}
	return name
}
