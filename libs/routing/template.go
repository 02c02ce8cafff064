package routing

import (
	"fmt"
	"regexp"
	"strings"
)

// Bounds of templates; Envoy's.
const (
	MaxTemplate     = 256 // bytes, of a rewrite too
	MaxVariables    = 5
	MaxVariableName = 16
)

// Wildcard stands in Template.Segments for any segment that is not empty.
const Wildcard = "*"

// Template is a path with wildcards, in the grammar of Envoy's uri_template: "*" is a segment, "**" the rest of a path, slashes
// and nothing included, behind which only literal text may follow; "{name}" is a segment with a name, "{name=a/*}" and
// "{name=**}" name what the pattern behind the sign matches. Behind the wildcard of the last segment a literal end may stand:
// "/*.mpd", "/**.mpd". A wildcard never ends in a segment "." or "..", so that no rewrite makes one: "/{a}.x" does not match "/..x".
//
// One thing is not Envoy's: a segment holds whatever a path may hold there, not a set of characters.
type Template struct {
	Segments  []string // before "**", or all of them; Wildcard or literal text
	Open      bool     // "**" stands behind the segments and their slash
	Tail      string   // the end of a path that matches, behind the last wildcard
	Variables []Variable
}

// Variable names a part of a path: from the beginning of the segment First to the end of Last, both included, where the "**" of an
// open template counts as one. Where Last is the last of all, it goes up to Back bytes before the end of the path instead.
type Variable struct {
	Name        string
	First, Last int
	Back        int
}

// TemplateError is a mistake in a template, and the bytes it is about.
type TemplateError struct {
	Offset, Length int
	Reason         string
}

func (e *TemplateError) Error() string { return e.Reason }

func mistake(offset, length int, format string, args ...any) *TemplateError {
	return &TemplateError{offset, length, fmt.Sprintf(format, args...)}
}

// templateParser reads a template from the left.
type templateParser struct {
	text string
	at   int
	t    Template
}

// ParseTemplate reads a template. Its error is a *TemplateError.
func ParseTemplate(text string) (*Template, error) {
	switch {
	case text == "" || text[0] != '/':
		return nil, mistake(0, min(1, len(text)), "A path begins with \"/\".")
	case len(text) > MaxTemplate:
		return nil, mistake(MaxTemplate, len(text)-MaxTemplate, "A path with wildcards has at most %d bytes.", MaxTemplate)
	}
	p := &templateParser{text: text, at: 1}
	for {
		variable := p.at < len(text) && text[p.at] == '{'
		var err *TemplateError
		if variable {
			err = p.variable()
		} else {
			err = p.segment("/")
		}
		if err != nil {
			return nil, err
		}
		if p.at == len(text) {
			break
		}
		if text[p.at] != '/' { // only what ends in a wildcard can be followed by something else
			if err := p.suffix(); err != nil {
				return nil, err
			}
			break
		}
		p.at++
	}
	t := &p.t
	if !t.Open && !strings.Contains(text, Wildcard) && len(t.Variables) == 0 {
		return nil, mistake(0, len(text), "There is no wildcard in it.")
	}
	for i := range t.Variables {
		if v := &t.Variables[i]; t.Open && v.Last == len(t.Segments) {
			v.Back = len(t.Tail) - v.Back // it was how much of the tail is the variable's
		} else if !t.Open && v.Last == len(t.Segments)-1 {
			v.Back = len(t.Tail)
		}
	}
	return t, nil
}

// segment reads one: "*", "**" or literal text up to a byte of ends.
func (p *templateParser) segment(ends string) *TemplateError {
	rest := p.text[p.at:]
	end := len(rest)
	if i := strings.IndexAny(rest, ends); i >= 0 {
		end = i
	}
	if !strings.HasPrefix(rest, "*") {
		if err := p.literal(rest[:end]); err != nil {
			return err
		}
		if p.t.Open {
			p.t.Tail += "/" + rest[:end]
		} else {
			p.t.Segments = append(p.t.Segments, rest[:end])
		}
		p.at += end
		return nil
	}
	wild := 1
	if strings.HasPrefix(rest, "**") {
		wild = 2
	}
	switch {
	case p.t.Open:
		return mistake(p.at, wild, "\"**\" takes all of the rest: behind it there is room for literal text only.")
	case wild == 2:
		p.t.Open = true
	default:
		p.t.Segments = append(p.t.Segments, Wildcard)
	}
	p.at += wild
	return nil
}

// literal checks the text of a segment, which begins at p.at. Only the last one may be empty: a slash ends the path.
func (p *templateParser) literal(s string) *TemplateError {
	if s == "" && p.at < len(p.text) {
		return mistake(p.at-1, min(2, len(p.text)-p.at+1), "A segment of a path with wildcards is not empty.")
	}
	for i := range len(s) {
		switch b := s[i]; {
		case b == '*' || b == '{':
			return mistake(p.at+i, 1, "A wildcard begins its segment: \"*\", \"**\", \"{name}\"; literal text may follow that of the last segment.")
		case !templateChar(b):
			return mistake(p.at+i, 1, "A path with wildcards holds letters, digits and -._~%%!$&'()+,;:@=; %q is written %%%02X.", b, b)
		}
	}
	return normalLiteral("/"+s, p.at-1)
}

// normalLiteral tells whether text is as requests have it when they come to the routes; at is where it begins.
func normalLiteral(text string, at int) *TemplateError {
	normal, _, ok := NormalizePath(nil, []byte(text), false, KeepSlashes)
	switch {
	case !ok:
		return mistake(at, len(text), "No path holds %q.", text)
	case string(normal) != text:
		return mistake(at, len(text), "Paths are brought into their normal form before they are matched: %q is never seen, it is %q by then.", text, normal)
	}
	return nil
}

func templateChar(b byte) bool {
	return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || strings.IndexByte("-._~%!$&'()+,;:@=", b) >= 0
}

// suffix reads what follows the wildcard of the last segment.
func (p *templateParser) suffix() *TemplateError {
	s := p.text[p.at:]
	if i := strings.IndexByte(s, '/'); i >= 0 {
		return mistake(p.at, i, "Literal text behind a wildcard, in its segment, is the end of a path: nothing can follow.")
	}
	for i := range len(s) {
		if b := s[i]; b == '*' || b == '{' || !templateChar(b) {
			return mistake(p.at+i, 1, "%q cannot stand here: a segment is a wildcard or literal text, or in the end a wildcard and literal text.", b)
		}
	}
	// A dot is a segment of its own only at its beginning, where there is a wildcard.
	if err := normalLiteral("/x"+s, p.at-2); err != nil {
		return mistake(p.at, len(s), "%s", err.Reason)
	}
	p.t.Tail += s
	p.at = len(p.text)
	return nil
}

// variable reads "{name}" or "{name=pattern}".
func (p *templateParser) variable() *TemplateError {
	start := p.at
	end := strings.IndexByte(p.text[start:], '}')
	if end < 0 {
		return mistake(start, len(p.text)-start, "\"{\" has no \"}\".")
	}
	end += start
	name, pattern, given := strings.Cut(p.text[start+1:end], "=")
	if err := p.name(name, start+1); err != nil {
		return err
	}
	v := Variable{Name: name, First: len(p.t.Segments)}
	wild := p.wildcards()
	if p.t.Open {
		return mistake(start, end+1-start, "\"**\" takes all of the rest: behind it there is room for literal text only.")
	}
	if !given {
		p.t.Segments = append(p.t.Segments, Wildcard)
	} else {
		for p.at = end - len(pattern); ; p.at++ {
			if p.at == end {
				return mistake(start, end+1-start, "A pattern has segments that are not empty: {%s=*}, {%s=a/*}, {%s=**}.", name, name, name)
			}
			if err := p.segment("/}"); err != nil {
				return err
			}
			if p.at == end {
				break
			}
			if p.text[p.at] != '/' {
				return mistake(p.at, 1, "A segment of a variable is a wildcard or literal text.")
			}
		}
		if wild == p.wildcards() {
			return mistake(start, end+1-start, "The variable %s has no wildcard: there is nothing to remember.", name)
		}
	}
	v.Last, v.Back = len(p.t.Segments)-1, 0
	if p.t.Open {
		v.Last, v.Back = len(p.t.Segments), len(p.t.Tail)
	}
	p.t.Variables = append(p.t.Variables, v)
	p.at = end + 1
	return nil
}

// wildcards counts those so far.
func (p *templateParser) wildcards() (n int) {
	for _, s := range p.t.Segments {
		if s == Wildcard {
			n++
		}
	}
	if p.t.Open {
		n++
	}
	return n
}

func (p *templateParser) name(name string, at int) *TemplateError {
	switch {
	case !variableName(name):
		return mistake(at, len(name), "%q is no name: a letter, then letters, digits and underscores, at most %d.", name, MaxVariableName)
	case len(p.t.Variables) == MaxVariables:
		return mistake(at, len(name), "A path has at most %d variables; \"*\" needs no name.", MaxVariables)
	}
	for _, v := range p.t.Variables {
		if v.Name == name {
			return mistake(at, len(name), "There is a variable %s already.", name)
		}
	}
	return nil
}

func variableName(s string) bool {
	for i := range len(s) {
		letter := 'a' <= s[i] && s[i] <= 'z' || 'A' <= s[i] && s[i] <= 'Z'
		if !letter && (i == 0 || s[i] != '_' && (s[i] < '0' || s[i] > '9')) {
			return false
		}
	}
	return s != "" && len(s) <= MaxVariableName
}

// Dots tells that a wildcard ends within a segment, so that what it takes of it must not be "." or "..".
func (t *Template) Dots() bool { return t.Tail != "" && t.Tail[0] != '/' }

// Expression is the template as a regular expression (RE2) for a whole path without its query, in which variables are named groups.
// It leaves out the rule about dots.
func (t *Template) Expression() string {
	var b strings.Builder
	tail := t.Tail
	last := len(t.Segments) - 1
	if t.Open {
		last++
	}
	for i := 0; i <= last; i++ {
		b.WriteByte('/')
		for _, v := range t.Variables {
			if v.First == i {
				fmt.Fprintf(&b, "(?P<%s>", v.Name)
			}
		}
		switch {
		case i == len(t.Segments):
			b.WriteString(`(?s:.*)`)
		case t.Segments[i] == Wildcard:
			b.WriteString(`[^/]+`)
		default:
			b.WriteString(regexp.QuoteMeta(t.Segments[i]))
		}
		for _, v := range t.Variables {
			if v.Last == i {
				own := 0
				if i == last {
					own = len(t.Tail) - v.Back
				}
				b.WriteString(regexp.QuoteMeta(tail[:own]) + ")")
				tail = tail[own:]
			}
		}
	}
	b.WriteString(regexp.QuoteMeta(tail))
	return b.String()
}

// matches is the definition that proxyd is held to. expression is the template's, anchored.
func (t *Template) matches(path string) bool {
	if !anchored(t.Expression(), path) {
		return false
	}
	if !t.Dots() {
		return true
	}
	segment := strings.TrimSuffix(path, t.Tail)
	segment = segment[strings.LastIndexByte(segment, '/')+1:]
	return segment != "." && segment != ".."
}

// Part of a path that a rewrite makes: text, then a variable of the template.
type Part struct {
	Text     string
	Variable int // of Template.Variables; -1: none
}

// Rewrite reads the path that a rewrite makes of one that matches: literal text and "{name}", from "/" on, without a query. Its
// error is a *TemplateError.
func (t *Template) Rewrite(text string) ([]Part, error) {
	switch {
	case text == "" || text[0] != '/':
		return nil, mistake(0, min(1, len(text)), "A path begins with \"/\".")
	case len(text) > MaxTemplate:
		return nil, mistake(MaxTemplate, len(text)-MaxTemplate, "A path of variables has at most %d bytes.", MaxTemplate)
	}
	var parts []Part
	var sample strings.Builder // the least that the rewrite can make
	for at := 0; at < len(text); {
		literal, rest, variable := strings.Cut(text[at:], "{")
		for i := range len(literal) {
			switch b := literal[i]; {
			case b == '/' && i > 0 && literal[i-1] == '/':
				return nil, mistake(at+i-1, 2, "A segment of the path is not empty.")
			case b != '/' && !templateChar(b):
				return nil, mistake(at+i, 1, "A path of variables holds letters, digits and -._~%%!$&'()+,;:@=/; %q is written %%%02X.", b, b)
			}
		}
		sample.WriteString(literal)
		at += len(literal)
		part := Part{Text: literal, Variable: -1}
		if variable {
			name, _, closed := strings.Cut(rest, "}")
			if !closed {
				return nil, mistake(at, len(rest)+1, "\"{\" has no \"}\".")
			}
			for i, v := range t.Variables {
				if v.Name == name {
					part.Variable = i
				}
			}
			if part.Variable < 0 {
				return nil, mistake(at, len(name)+2, "The route's path has no variable %s.", name)
			}
			if t.Open && t.Variables[part.Variable].Last == len(t.Segments) {
				sample.WriteByte('/') // it may be empty, or end or begin in a slash
			} else {
				sample.WriteByte('x')
			}
			at += len(name) + 2
		}
		parts = append(parts, part)
	}
	if err := normalLiteral(sample.String(), 0); err != nil {
		return nil, mistake(0, len(text), "The path could be %q, which servers read differently.", sample.String())
	}
	return parts, nil
}
