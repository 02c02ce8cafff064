package filter

import (
	"bytes"
	"fmt"

	"retinue.dev/libs/routing"
)

// templateRewrite makes a path of what the variables of a route's template stand for.
type templateRewrite struct {
	template *routing.Template
	tail     []byte
	parts    []routing.Part
}

func compileTemplate(match, text string) (*templateRewrite, error) {
	if match == "" {
		return nil, fmt.Errorf("template_rewrite needs a match by template")
	}
	t, err := routing.ParseTemplate(match)
	if err != nil {
		return nil, fmt.Errorf("template %q: %w", match, err)
	}
	w := &templateRewrite{template: t, tail: []byte(t.Tail)}
	if w.parts, err = t.Rewrite(text); err != nil {
		return nil, fmt.Errorf("template_rewrite %q: %w", text, err)
	}
	return w, nil
}

// apply appends the path that it makes of one without its query. Where a filter has changed the path since the route was chosen, so
// that it is not of the template's form any longer, it stays as it is, as with Envoy.
func (w *templateRewrite) apply(dst, path []byte) []byte {
	var places [routing.MaxVariables][2]int
	if !w.find(path, &places) {
		return append(dst, path...)
	}
	for _, p := range w.parts {
		dst = append(dst, p.Text...)
		if p.Variable >= 0 {
			dst = append(dst, path[places[p.Variable][0]:places[p.Variable][1]]...)
		}
	}
	return dst
}

// find gives the places of the variables in a path; false when it is not of the template's form.
func (w *templateRewrite) find(path []byte, places *[routing.MaxVariables][2]int) bool {
	t := w.template
	if len(path) == 0 || path[0] != '/' || !bytes.HasSuffix(path, w.tail) {
		return false
	}
	last := len(t.Segments) - 1
	if t.Open {
		last++
	}
	at := 1
	for i := 0; i <= last; i++ {
		end := len(path)
		slash := bytes.IndexByte(path[min(at, len(path)):], '/')
		switch {
		case i == len(t.Segments): // "**"
			if end-len(w.tail) < at {
				return false
			}
		case i < last && slash < 0, i == last && slash >= 0:
			return false
		case i < last:
			end = at + slash
			fallthrough
		default:
			wild := t.Segments[i] == routing.Wildcard
			least := 1
			if i == last {
				least += len(w.tail)
			}
			if wild && end-at < least || !wild && string(path[at:end]) != t.Segments[i] {
				return false
			}
		}
		for k := range t.Variables {
			if v := &t.Variables[k]; v.First == i {
				places[k][0] = at
			}
			if v := &t.Variables[k]; v.Last == i {
				if places[k][1] = end; i == last {
					places[k][1] -= v.Back
				}
			}
		}
		at = end + 1
	}
	if !t.Dots() {
		return true
	}
	segment := path[:len(path)-len(w.tail)]
	segment = segment[bytes.LastIndexByte(segment, '/')+1:]
	return string(segment) != "." && string(segment) != ".."
}
