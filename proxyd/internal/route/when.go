package route

import (
	"fmt"
	"slices"

	"retinue.dev/proxyd/internal/header"
	configv1 "retinue.dev/services/api/config/v1"
)

// When is the conditions of a match without its path, for filters that hold for some requests only. Immutable.
type When struct {
	methods    uint64 // by header.MethodID; 0 with none of others: every one
	others     []string
	conditions *conditions
}

// CompileWhen compiles a match that has no path; nil stays nil, which every request meets.
func CompileWhen(m *configv1.RouteMatch) (*When, error) {
	if m == nil {
		return nil, nil
	}
	w := &When{}
	for _, method := range m.GetMethods() {
		id := header.LookupMethod([]byte(method))
		switch {
		case id != header.MethodOther:
			w.methods |= 1 << id
		case !header.ValidName([]byte(method)):
			return nil, fmt.Errorf("%q is not a method", method)
		default:
			w.others = append(w.others, method)
		}
	}
	var err error
	w.conditions, err = compileConditions(m)
	return w, err
}

// Draws tells that Meets needs Request.Draw.
func (w *When) Draws() bool { return w != nil && w.conditions != nil && w.conditions.fraction >= 0 }

// Meets tells whether a request meets the conditions.
func (w *When) Meets(r *Request) bool {
	if w == nil {
		return true
	}
	if (w.methods != 0 || w.others != nil) && w.methods>>r.ID&1 == 0 &&
		(r.ID != header.MethodOther || !slices.Contains(w.others, string(r.Method))) {
		return false
	}
	return w.conditions == nil || w.conditions.hold(r)
}
