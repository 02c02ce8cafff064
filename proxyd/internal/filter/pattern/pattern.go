// Package pattern is the texts by which filters name origins, hosts, paths and certificates: one text, a text with one "*" for any
// part of it, or "~" and a regular expression (RE2) for all of it. Lists are built on the main side and matched on workers.
package pattern

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"

	"retinue.dev/libs/routing"
)

// List is patterns of which one must match.
type List []one

type one struct {
	head, tail []byte
	star       bool
	regex      *regexp.Regexp
}

// Compile reads a list; an error names the text.
func Compile(texts []string) (List, error) {
	var out List
	for _, text := range texts {
		expression, ok := strings.CutPrefix(text, "~")
		if ok {
			regex, err := routing.Expression(expression)
			if err != nil {
				return nil, err
			}
			out = append(out, one{regex: regex})
			continue
		}
		head, tail, star := strings.Cut(text, "*")
		if text == "" || strings.Contains(tail, "*") {
			return nil, fmt.Errorf("%q is not a text with at most one \"*\"", text)
		}
		out = append(out, one{head: []byte(head), tail: []byte(tail), star: star})
	}
	return out, nil
}

// Match tells whether one of the patterns is that of v.
func (l List) Match(v []byte) bool {
	for i := range l {
		p := &l[i]
		switch {
		case p.regex != nil:
			if p.regex.Match(v) {
				return true
			}
		case !p.star:
			if bytes.Equal(v, p.head) {
				return true
			}
		case len(v) >= len(p.head)+len(p.tail) && bytes.HasPrefix(v, p.head) && bytes.HasSuffix(v, p.tail):
			return true
		}
	}
	return false
}

// Any tells that the list has "*" alone, which matches everything.
func (l List) Any() bool {
	for i := range l {
		if p := &l[i]; p.star && len(p.head)+len(p.tail) == 0 {
			return true
		}
	}
	return false
}
