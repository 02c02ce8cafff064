package route

import (
	"fmt"

	configv1 "retinue.dev/services/api/config/v1"
)

// Field is a test of one header, for those who look at heads beside the routes. Immutable.
type Field struct{ test fieldTest }

// CompileFields makes the tests; their names are header names.
func CompileFields(list []*configv1.FieldMatch) (out []Field, err error) {
	for i, f := range list {
		t, err := compileTest(f)
		if err != nil {
			return nil, fmt.Errorf("[%d]: %w", i, err)
		}
		out = append(out, Field{t})
	}
	return out, nil
}

// Holds tells whether the test holds for the request's fields.
func (f *Field) Holds(r *Request) bool {
	value, there := r.header(&f.test)
	return f.test.holds(value, there)
}
