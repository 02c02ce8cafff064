package compile

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/routing"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

const (
	maxRegex = 1024
	maxPath  = 4096
)

// pattern reads "[METHOD[,METHOD] ]PATH" into a match.
func (c *compiler) pattern(n *schema.Node) *configv1.RouteMatch {
	text := n.Label
	bad := func(code diag.Code, offset, length int, format string, args ...any) *configv1.RouteMatch {
		c.diags.Report(code, c.inside(n.LabelRange, text, offset, length), "Invalid route pattern", format, args...)
		return nil
	}
	m := &configv1.RouteMatch{}
	path, start := text, 0
	if !strings.HasPrefix(text, "/") && !strings.HasPrefix(text, "~") {
		methods, rest, ok := strings.Cut(text, " ")
		if !ok {
			return bad(diag.InvalidPattern, 0, len(text), "A pattern is \"/exact\", \"/prefix/*\", \"/with/{variables}/*/in/it\" or \"~regex\", with methods before it if need be: \"GET,HEAD /status\".")
		}
		offset := 0
		for method := range strings.SplitSeq(methods, ",") {
			valid := method != "" && len(method) <= 32 && method == strings.ToUpper(method)
			for i := range len(method) {
				valid = valid && tokenChar(method[i])
			}
			switch {
			case !valid:
				return bad(diag.InvalidPattern, offset, len(method), "%q is not a method: they are written in capitals and separated by commas, \"GET,HEAD /status\".", method)
			case slices.Contains(m.Methods, method):
				return bad(diag.InvalidPattern, offset, len(method), "%s is there twice.", method)
			}
			m.Methods = append(m.Methods, method)
			offset += len(method) + 1
		}
		path = strings.TrimLeft(rest, " ")
		start = len(text) - len(path)
	}
	if re, ok := strings.CutPrefix(path, "~"); ok {
		return c.regex(n, m, re, start+1)
	}
	literal, prefix := strings.CutSuffix(path, "/*")
	if prefix = prefix && !strings.ContainsAny(literal, "*{"); prefix {
		literal += "/"
	}
	if !prefix && strings.ContainsAny(path, "*{") {
		return c.template(m, path, func(offset, length int, reason string) {
			bad(diag.InvalidPattern, start+offset, length, "%s", reason)
		})
	}
	if reason, at := invalidPath(literal); reason != "" {
		return bad(diag.InvalidPattern, start+at, runeAt(path, at), "%s", reason)
	}
	if i := strings.IndexByte(literal, '?'); i >= 0 {
		return bad(diag.InvalidPattern, start+i, 1, "A pattern is about the path; the query is not part of it.")
	}
	if normal, _, ok := routing.NormalizePath(nil, []byte(literal), false, routing.KeepSlashes); !ok || string(normal) != literal {
		return bad(diag.InvalidPattern, start, len(path), "Paths are brought into their normal form before they are matched, so this one is never seen: it is %q by then.", normal)
	}
	if prefix {
		m.Path = &configv1.RouteMatch_Prefix{Prefix: literal}
	} else {
		m.Path = &configv1.RouteMatch_Exact{Exact: literal}
	}
	return m
}

// template reads a path with wildcards other than the rest at its end.
func (c *compiler) template(m *configv1.RouteMatch, path string, bad func(offset, length int, reason string)) *configv1.RouteMatch {
	_, err := routing.ParseTemplate(path)
	var at *routing.TemplateError
	switch {
	case errors.As(err, &at):
		bad(at.Offset, at.Length, at.Reason)
		return nil
	case strings.HasSuffix(path, "/*"):
		// Envoy's templates mean a segment, our prefixes mean the rest.
		bad(len(path)-1, 1, "At the end \"*\" could be a segment or the rest of the path: write \"{name}\" for a segment, \"**\" for the rest.")
		return nil
	}
	m.Path = &configv1.RouteMatch_Template{Template: path}
	return m
}

func (c *compiler) regex(n *schema.Node, m *configv1.RouteMatch, re string, start int) *configv1.RouteMatch {
	at := c.inside(n.LabelRange, n.Label, start, len(re))
	if re == "" || len(re) > maxRegex {
		c.diags.Report(diag.InvalidRegex, at, "Invalid regular expression", "A regular expression has 1 to %d bytes.", maxRegex)
		return nil
	}
	if err := routing.CheckExpression(re); err != nil {
		c.diags.Report(diag.InvalidRegex, at, "Invalid regular expression", "%s. Expressions are RE2 (no backreferences, no lookaround).", err)
		return nil
	}
	m.Path = &configv1.RouteMatch_Regex{Regex: re}
	return m
}

// invalidPath says why s cannot be a path (with query), and at which byte; "" when it can.
func invalidPath(s string) (reason string, at int) {
	if !strings.HasPrefix(s, "/") {
		return "A path begins with \"/\".", 0
	}
	if len(s) > maxPath {
		return fmt.Sprintf("A path has at most %d bytes.", maxPath), maxPath
	}
	for i := range len(s) {
		switch b := s[i]; {
		case b <= ' ' || b >= 0x7f:
			return "A path holds no blanks, control characters or non-ASCII bytes; they are written %XX.", i
		case strings.IndexByte("\"<>\\^`{|}#", b) >= 0:
			return fmt.Sprintf("A path holds no %q; it is written %%%02X.", b, b), i
		case b == '%' && (i+2 >= len(s) || !isHex(s[i+1]) || !isHex(s[i+2])):
			return "In a path % is followed by two hexadecimal digits.", i
		}
	}
	for i := 0; i < len(s); i++ {
		if s[i] == '?' {
			break
		}
		if s[i] != '/' {
			continue
		}
		rest := s[i+1:]
		if j := strings.IndexAny(rest, "/?"); j >= 0 {
			rest = rest[:j]
		}
		if rest == "." || rest == ".." {
			return "\".\" and \"..\" are resolved before routes are matched, so a path with them is never seen.", i + 1
		}
	}
	return "", 0
}

// runeAt is the length of the character at i, so that a mark covers all of it; 0 at the end.
func runeAt(s string, i int) int {
	_, n := utf8.DecodeRuneInString(s[min(i, len(s)):])
	return n
}

func isHex(b byte) bool {
	return (b >= '0' && b <= '9') || (b >= 'a' && b <= 'f') || (b >= 'A' && b <= 'F')
}

// shadows finds routes that can never match, because an earlier one takes all their requests. It looks only where an
// earlier route could cover a path, so that ten thousand routes stay cheap.
type shadows struct {
	prefix map[string][]seen
	exact  map[string][]seen
	regex  []seen
}

type seen struct {
	some    bool // it has conditions and may leave requests to others
	methods []string
	re      *regexp.Regexp
	source  string
	label   string
	at      hcl.Range
}

// maxRegexes bounds how many earlier expressions each path is tried against.
const maxRegexes = 64

func newShadows() *shadows {
	return &shadows{prefix: map[string][]seen{}, exact: map[string][]seen{}}
}

func (s *shadows) covers(list []seen, methods []string) *seen {
	for i := range list {
		if list[i].some {
			continue
		}
		if len(list[i].methods) == 0 || (len(methods) > 0 && !slices.ContainsFunc(methods, func(m string) bool { return !slices.Contains(list[i].methods, m) })) {
			return &list[i]
		}
	}
	return nil
}

// add returns the earlier route that leaves nothing for this one, or nil, and remembers this one.
func (s *shadows) add(m *configv1.RouteMatch, label string, at hcl.Range) *seen {
	bare := &configv1.RouteMatch{Path: m.Path, Methods: m.Methods}
	mine := seen{some: !proto.Equal(bare, m), methods: m.Methods, label: label, at: at}
	switch p := m.Path.(type) {
	case *configv1.RouteMatch_Exact:
		found := s.covers(s.exact[p.Exact], m.Methods)
		if found == nil {
			found = s.above(p.Exact, m.Methods)
		}
		for i := range s.regex {
			if found == nil && s.regex[i].re.MatchString(p.Exact) {
				found = s.covers(s.regex[i:i+1], m.Methods)
			}
		}
		s.exact[p.Exact] = append(s.exact[p.Exact], mine)
		return found
	case *configv1.RouteMatch_Prefix:
		found := s.above(p.Prefix, m.Methods)
		for i := range s.regex {
			if found == nil && matchesAll(s.regex[i].source) {
				found = s.covers(s.regex[i:i+1], m.Methods)
			}
		}
		s.prefix[p.Prefix] = append(s.prefix[p.Prefix], mine)
		return found
	case *configv1.RouteMatch_Regex:
		return s.expression(s.covers(s.prefix["/"], m.Methods), p.Regex, mine)
	case *configv1.RouteMatch_Template:
		t, err := routing.ParseTemplate(p.Template)
		if err != nil {
			return nil
		}
		t.Variables = nil // the same with other names is the same
		literal := p.Template[:strings.IndexAny(p.Template, "*{")]
		return s.expression(s.above(literal, m.Methods), t.Expression(), mine)
	}
	return nil
}

// expression adds one that found covers already, if it is not nil.
func (s *shadows) expression(found *seen, re string, mine seen) *seen {
	for i := range s.regex {
		if found == nil && (s.regex[i].source == re || matchesAll(s.regex[i].source)) {
			found = s.covers(s.regex[i:i+1], mine.methods)
		}
	}
	if len(s.regex) < maxRegexes {
		mine.source, mine.re = re, regexp.MustCompile(`^(?:`+re+`)$`)
		s.regex = append(s.regex, mine)
	}
	return found
}

// above looks for an earlier prefix that path is in.
func (s *shadows) above(path string, methods []string) *seen {
	for i := range len(path) {
		if path[i] == '/' {
			if found := s.covers(s.prefix[path[:i+1]], methods); found != nil {
				return found
			}
		}
	}
	return nil
}

func matchesAll(re string) bool {
	return re == ".*" || re == "/.*" || re == "^.*$" || re == "^/.*$" || re == "/(?s:.*)"
}
