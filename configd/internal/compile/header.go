package compile

import (
	"strings"

	"github.com/hashicorp/hcl/v2"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/logformat"
	"retinue.dev/configd/internal/schema"
)

// protected headers frame a message or belong to one connection (RFC 9110 section 7.6.1). Editing them by hand would
// let two servers read one message differently.
var protected = map[string]bool{
	"connection": true, "content-length": true, "host": true, "http2-settings": true, "keep-alive": true, "proxy-connection": true,
	"te": true, "trailer": true, "transfer-encoding": true, "upgrade": true,
}

// headerName checks a name and gives its lower case.
func (c *compiler) headerName(v schema.Value) (string, bool) {
	s, _ := v.V.(string)
	name := strings.ToLower(s)
	valid := name != "" && len(name) <= 256
	for i := range len(name) {
		valid = valid && tokenChar(name[i])
	}
	switch {
	case strings.HasPrefix(name, ":"):
		c.diags.Report(diag.ProtectedHeader, v.Range, "Pseudo-header", "%q is not a header; rewrite changes host and path.", s)
		return "", false
	case !valid:
		c.diags.Report(diag.InvalidHeader, v.Range, "Invalid header name", "%q is not a header name: letters, digits and !#$%%&'*+-.^_`|~.", s)
		return "", false
	case protected[name]:
		hint := "It belongs to one connection or frames the message; the proxy writes it itself."
		if name == "host" {
			hint = "Use rewrite { host = … }."
		}
		c.diags.Report(diag.ProtectedHeader, v.Range, "Header belongs to the proxy", "%s cannot be edited. %s", s, hint)
		return "", false
	}
	return name, true
}

// headerCase checks spellings of header names. Names that frame a message may be spelled like any other.
func (c *compiler) headerCase(list []schema.Value) (out []string) {
	seen := map[string]string{}
	for _, v := range list {
		name, _ := v.V.(string)
		lower := strings.ToLower(name)
		valid := name != "" && len(name) <= maxHeaderCase
		for i := range len(name) {
			valid = valid && tokenChar(name[i])
		}
		other, twice := seen[lower]
		switch {
		case !valid:
			c.diags.Report(diag.InvalidHeader, v.Range, "Invalid header name", "%q is not a header name: up to %d letters, digits and !#$%%&'*+-.^_`|~.", name, maxHeaderCase)
		case twice:
			c.diags.Report(diag.InvalidHeader, v.Range, "Header spelled twice", "%s and %s are the same header; name it once.", other, name)
		default:
			seen[lower] = name
			out = append(out, name)
		}
	}
	return out
}

// maxHeaderCase is the longest name whose spelling can be told; proxyd finds it by a table of that width.
const maxHeaderCase = 64

func tokenChar(b byte) bool {
	return (b >= 'a' && b <= 'z') || (b >= 'A' && b <= 'Z') || (b >= '0' && b <= '9') || strings.IndexByte("!#$%&'*+-.^_`|~", b) >= 0
}

// headerValue checks a value and the operators in it.
func (c *compiler) headerValue(v schema.Value) (string, bool) {
	s, _ := v.V.(string)
	if !c.plainValue(v) {
		return "", false
	}
	return s, c.format(v)
}

// plainValue checks a header value without operators.
func (c *compiler) plainValue(v schema.Value) bool {
	s, _ := v.V.(string)
	switch {
	case len(s) > 8<<10:
		c.diags.Report(diag.InvalidValue, v.Range, "Header value too long", "A header value has at most 8 KiB.")
		return false
	case s != strings.Trim(s, " \t"):
		c.diags.Report(diag.InvalidValue, v.Range, "Invalid header value", "A header value has no blanks at its ends.")
		return false
	}
	for i := range len(s) {
		if b := s[i]; (b < ' ' && b != '\t') || b == 0x7f {
			c.diags.Report(diag.InvalidValue, v.Range, "Invalid header value", "A header value holds no CR, LF, NUL or other control character; this has %#02x.", b)
			return false
		}
	}
	return true
}

// format checks operators; the mark is on the operator inside the value.
func (c *compiler) format(v schema.Value) bool {
	s, _ := v.V.(string)
	err := logformat.Check(s)
	if err == nil {
		return true
	}
	code, summary := diag.InvalidOperator, "Invalid format operator"
	if err.Later {
		code, summary = diag.Later, "Not in this release"
	}
	c.diags.Report(code, c.inside(v.Range, s, err.Offset, err.Length), summary, "%s", err.Message)
	return false
}

// headers compiles the headers block of a virtual host or route.
func (c *compiler) headers(n *schema.Node) (request, response *configv1.HeaderOps) {
	h := n.Child("headers")
	if h == nil {
		return nil, nil
	}
	c.within(h, func() {
		if r := h.Child("request"); r != nil {
			c.within(r, func() { request = c.headerOps(r) })
		}
		if r := h.Child("response"); r != nil {
			c.within(r, func() { response = c.headerOps(r) })
		}
	})
	return request, response
}

func (c *compiler) headerOps(n *schema.Node) *configv1.HeaderOps {
	ops := &configv1.HeaderOps{
		Present: c.headerEdits("replace", n.Pairs("replace")), Set: c.headerEdits("set", n.Pairs("set")), Absent: c.headerEdits("default", n.Pairs("default")), Add: c.headerEdits("add", n.Pairs("add")),
	}
	ops.Remove = c.removals(n.List("remove"))
	if len(ops.Present)+len(ops.Set)+len(ops.Absent)+len(ops.Add)+len(ops.Remove) == 0 {
		return nil
	}
	return ops
}

// headerEdits compiles the pairs of replace, set, default or add.
func (c *compiler) headerEdits(attr string, pairs []schema.Pair) []*configv1.Header {
	var out []*configv1.Header
	seen := map[string]hcl.Range{}
	for _, p := range pairs {
		name, ok := c.headerName(p.Name)
		if !ok {
			continue
		}
		if first, twice := seen[name]; twice && attr != "add" {
			c.diags.Report(diag.DuplicateName, p.Name.Range, "Header set twice", "%s is already set on %s.", name, schema.Place(first))
			continue
		}
		seen[name] = p.Name.Range
		if attr != "add" && len(p.Values) > 1 {
			c.diags.Report(diag.WrongType, p.Values[1].Range, "Wrong type", "%s gives a header one value; add appends several.", attr)
			continue
		}
		for _, v := range p.Values {
			if value, ok := c.headerValue(v); ok {
				out = append(out, &configv1.Header{Name: name, Value: value})
			}
		}
	}
	return out
}

// splitHeaders compiles the edits of requests or responses that belong to one cluster of a split.
func (c *compiler) splitHeaders(n *schema.Node, rec schema.Record, of string) *configv1.HeaderOps {
	ops := &configv1.HeaderOps{}
	for _, name := range []string{of + "_headers", "add_" + of + "_headers", "remove_" + of + "_headers"} {
		v := rec.Get(name)
		if !v.Written {
			continue
		}
		if n.Block.Name != "route" {
			c.diags.Report(diag.Exclusive, v.Range, "No headers", "Headers belong to HTTP; a %s block passes bytes.", n.Block.Name)
			return nil
		}
		switch list := v.V.(type) {
		case []schema.Value:
			ops.Remove = c.removals(list)
		case []schema.Pair:
			if name == of+"_headers" {
				ops.Set = c.headerEdits("set", list)
			} else {
				ops.Add = c.headerEdits("add", list)
			}
		}
	}
	if len(ops.Set)+len(ops.Add)+len(ops.Remove) == 0 {
		return nil
	}
	return ops
}

func (c *compiler) removals(list []schema.Value) (out []string) {
	for _, v := range list {
		if name, ok := c.headerName(v); ok {
			out = append(out, name)
		}
	}
	return out
}
