package filter

import (
	"bytes"
	"fmt"
	"strings"

	"retinue.dev/proxyd/internal/filter/substitution"
	"retinue.dev/proxyd/internal/header"
	configv1 "retinue.dev/services/api/config/v1"
)

// rewrite replaces a part of a path.
type rewrite struct {
	matched  int  // bytes of the path that the match names
	prefixes bool // what the match names becomes with
	with     []byte
	regex    *substitution.Substitution
	template *templateRewrite
}

func (w *rewrite) rewrites() bool { return w.prefixes || w.regex != nil || w.template != nil }

// newRewrite takes the one of the three that is there.
func newRewrite(match *configv1.RouteMatch, prefix *string, by *configv1.RegexRewrite, template string) (w rewrite, err error) {
	switch {
	case prefix != nil && by != nil, template != "" && (prefix != nil || by != nil):
		return w, fmt.Errorf("prefix_rewrite, regex_rewrite and template_rewrite exclude each other")
	case template != "":
		w.template, err = compileTemplate(match.GetTemplate(), template)
		return w, err
	case prefix != nil:
		switch m := match.GetPath().(type) {
		case *configv1.RouteMatch_Exact:
			w.matched = len(m.Exact)
		case *configv1.RouteMatch_Prefix:
			w.matched = len(m.Prefix)
		default:
			return w, fmt.Errorf("prefix_rewrite needs a prefix or an exact path, not a template or a regular expression")
		}
		w.prefixes, w.with = true, []byte(*prefix)
		if !header.ValidTarget(w.with) {
			return w, fmt.Errorf("prefix_rewrite %q has spaces or control characters", w.with)
		}
	case by != nil:
		if !header.ValidTarget([]byte(by.GetSubstitution())) {
			return w, fmt.Errorf("regex_rewrite: substitution %q has spaces or control characters", by.GetSubstitution())
		}
		if w.regex, err = substitution.New(by.GetPattern(), by.GetSubstitution()); err != nil {
			return w, fmt.Errorf("regex_rewrite: %w", err)
		}
	}
	return w, nil
}

// apply appends the path with what is to be replaced replaced; a query stays. A rewrite to nothing leaves a slash. The machine is
// the worker's.
func (w *rewrite) apply(dst, path []byte, m *substitution.Machine) []byte {
	start := len(dst)
	rest := path
	end := len(path)
	if q := bytes.IndexByte(path, '?'); q >= 0 {
		end = q
	}
	switch {
	case w.template != nil:
		dst, rest = w.template.apply(dst, path[:end]), path[end:]
	case w.regex != nil:
		dst = m.Append(append(dst, '/'), path[:end], w.regex)
		if len(dst) > start+1 && dst[start+1] == '/' { // it has one of its own
			dst = append(dst[:start], dst[start+1:]...)
		}
		rest = path[end:]
	default:
		dst, rest = append(dst, w.with...), path[min(w.matched, len(path)):]
	}
	if len(dst) == start && (len(rest) == 0 || rest[0] != '/') {
		dst = append(dst, '/')
	}
	return append(dst, rest...)
}

// queryRewrite edits the query of a path.
type queryRewrite struct {
	clear  bool
	remove [][]byte
	set    []parameter
}

type parameter struct{ name, value []byte }

func compileQuery(q *configv1.QueryRewrite) (*queryRewrite, error) {
	if q == nil {
		return nil, nil
	}
	out := &queryRewrite{clear: q.GetClear()}
	for _, name := range q.GetRemove() {
		out.remove = append(out.remove, []byte(name))
	}
	for _, p := range q.GetSet() {
		if strings.ContainsAny(p.GetName(), "&=#") || strings.ContainsAny(p.GetValue(), "&#") || !header.ValidTarget([]byte(p.GetName()+p.GetValue())) || p.GetName() == "" {
			return nil, fmt.Errorf("query_rewrite: %q = %q cannot stand in a query: percent-encode it", p.GetName(), p.GetValue())
		}
		out.set = append(out.set, parameter{[]byte(p.GetName()), []byte(p.GetValue())})
	}
	return out, nil
}

// apply appends the path with its query edited.
func (q *queryRewrite) apply(dst, path []byte) []byte {
	end := len(path)
	if i := bytes.IndexByte(path, '?'); i >= 0 {
		end = i
	}
	dst = append(dst, path[:end]...)
	separator := byte('?')
	put := func(item []byte) {
		dst = append(append(dst, separator), item...)
		separator = '&'
	}
	var done uint64 // parameters of set that stand where the first of their name stood
	if !q.clear && end < len(path) {
		for query := path[end+1:]; len(query) > 0; {
			item := query
			if i := bytes.IndexByte(query, '&'); i >= 0 {
				item, query = query[:i], query[i+1:]
			} else {
				query = nil
			}
			name := item
			if i := bytes.IndexByte(item, '='); i >= 0 {
				name = item[:i]
			}
			switch i := q.setting(name); {
			case q.removes(name):
			case i < 0:
				put(item)
			case done>>i&1 == 0:
				done |= 1 << i
				put(q.set[i].name)
				dst = append(append(dst, '='), q.set[i].value...)
			default: // another of a name that is replaced
			}
		}
	}
	for i := range q.set {
		if done>>i&1 == 0 {
			put(q.set[i].name)
			dst = append(append(dst, '='), q.set[i].value...)
		}
	}
	return dst
}

func (q *queryRewrite) setting(name []byte) int {
	for i := range q.set {
		if bytes.Equal(q.set[i].name, name) {
			return i
		}
	}
	return -1
}

func (q *queryRewrite) removes(name []byte) bool {
	for _, n := range q.remove {
		if bytes.Equal(n, name) {
			return true
		}
	}
	return false
}
