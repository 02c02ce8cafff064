package compile

import (
	"fmt"
	"path"
	"strings"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/logformat"
	"retinue.dev/configd/internal/schema"
)

func (c *compiler) accessLog(n *schema.Node) {
	l := &configv1.AccessLog{Name: n.Label, Path: n.Str("path")}
	if n.Has("path") {
		p := n.Get("path")
		if !path.IsAbs(l.Path) || strings.ContainsRune(l.Path, 0) {
			c.diags.Report(diag.InvalidLogPath, p.Range, "Invalid access-log path", "%q is not an absolute path (nor /dev/stdout or /dev/stderr): the daemons have no working directory that you could know.", l.Path)
		}
		l.Path = path.Clean(l.Path)
		if first, twice := c.logPaths[l.Path]; twice && l.Path != "/dev/stdout" && l.Path != "/dev/stderr" {
			c.diags.Report(diag.SharedLogPath, p.Range, "Access logs share a file", "%s is already written by the access log on %s.", l.Path, schema.Place(first))
		}
		c.logPaths[l.Path] = p.Range
	}
	switch {
	case n.Has("json"):
		if n.Own("format") {
			c.diags.Report(diag.Exclusive, n.Range("format"), "Attributes exclude each other", "json is a format itself: write json or format.")
		}
		seen := map[string]bool{}
		for _, p := range n.Pairs("json") {
			name, _ := p.Name.V.(string)
			if name == "" || len(name) > 128 || seen[name] {
				c.diags.Report(diag.InvalidName, p.Name.Range, "Invalid field name", "A field has a name of its own of 1 to 128 bytes.")
				continue
			}
			seen[name] = true
			if len(p.Values) != 1 {
				c.diags.Report(diag.WrongType, p.Name.Range, "Wrong type", "A field is one text with operators.")
				continue
			}
			if c.format(p.Values[0]) {
				l.Json = append(l.Json, &configv1.JsonField{Name: name, Format: p.Values[0].V.(string)})
			}
		}
	case n.Str("format") == "json":
		for _, f := range logformat.JSON() {
			l.Json = append(l.Json, &configv1.JsonField{Name: f[0], Format: f[1]})
		}
	case n.Str("format") == "common":
		l.Format = logformat.Common
	case n.Str("format") == "combined":
		l.Format = logformat.Combined
	default:
		l.Format = c.textFormat(n.Get("format"))
	}
	c.out.Add(&configv1.Object{Kind: "access_log", Name: n.Label, Body: &configv1.Object_AccessLog{AccessLog: l}}, c.place(n.DefRange))
	c.mark("access_log", n.Label, n)
}

// textFormat checks a format that is written out. One line break at its end is taken off: every line gets one.
func (c *compiler) textFormat(v schema.Value) string {
	s, _ := v.V.(string)
	s = strings.TrimSuffix(s, "\n")
	if !strings.Contains(s, "%") {
		hint := ""
		if near := diag.Near(s, []string{"common", "combined", "json"}); near != "" {
			hint = fmt.Sprintf(" Did you mean %q?", near)
		}
		c.diags.Report(diag.InvalidOperator, v.Range, "Format without operators", "Every line would be the same. A format is \"common\", \"combined\", \"json\" or a text with operators such as %%RESPONSE_CODE%%.%s", hint)
		return ""
	}
	for i := range len(s) {
		if b := s[i]; (b < ' ' && b != '\t') || b == 0x7f {
			c.diags.Report(diag.InvalidValue, v.Range, "Invalid format", "A format is one line without control characters; this has %#02x.", b)
			return ""
		}
	}
	if !c.format(schema.Value{V: s, Range: v.Range}) {
		return ""
	}
	return s
}
