package eval

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/tryfunc"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/function"
	"github.com/zclconf/go-cty/cty/function/stdlib"
)

// Functions lists what expressions may call, for the reference.
func Functions() [][2]string {
	return [][2]string{
		{"can(expr)", "whether the expression has a value"},
		{"coalesce(a, b…)", "the first that is not null"},
		{"concat(list…)", "one list of all"},
		{"contains(list, value)", "whether the list holds the value"},
		{"env(name[, default])", "configd's environment; without a default it must be set"},
		{"file(path)", "text of a file of at most 1 MiB, relative to the configuration"},
		{"flatten(list)", "lists in lists as one list"},
		{"format(spec, value…)", "text by a format, as in printf"},
		{"join(separator, list)", "text of all elements"},
		{"jsondecode(text)", "value of a JSON text"},
		{"jsonencode(value)", "JSON text of a value"},
		{"keys(object)", "names, sorted"},
		{"length(value)", "number of elements"},
		{"lookup(object, name, default)", "a member or the default"},
		{"lower(text)", "lower case"},
		{"merge(object…)", "one object; later ones win"},
		{"split(separator, text)", "list of the parts"},
		{"trimprefix(text, prefix)", "text without the prefix"},
		{"trimspace(text)", "text without blanks at both ends"},
		{"trimsuffix(text, suffix)", "text without the suffix"},
		{"try(expr…)", "the first that has a value"},
		{"upper(text)", "upper case"},
		{"values(object)", "values in the order of keys"},
	}
}

func (s *Scope) functions() map[string]function.Function {
	return map[string]function.Function{
		"can":        tryfunc.CanFunc,
		"try":        tryfunc.TryFunc,
		"env":        s.envFunc(),
		"file":       s.fileFunc(),
		"coalesce":   s.bounded(stdlib.CoalesceFunc, nil),
		"concat":     s.bounded(stdlib.ConcatFunc, nil),
		"contains":   s.bounded(stdlib.ContainsFunc, nil),
		"flatten":    s.bounded(stdlib.FlattenFunc, nil),
		"format":     s.bounded(stdlib.FormatFunc, checkFormat),
		"join":       s.bounded(stdlib.JoinFunc, checkJoin),
		"jsondecode": s.bounded(stdlib.JSONDecodeFunc, checkJSON),
		"jsonencode": s.bounded(stdlib.JSONEncodeFunc, nil),
		"keys":       s.bounded(stdlib.KeysFunc, nil),
		"length":     s.bounded(stdlib.LengthFunc, nil),
		"lookup":     s.bounded(stdlib.LookupFunc, nil),
		"lower":      s.bounded(stdlib.LowerFunc, nil),
		"merge":      s.bounded(stdlib.MergeFunc, nil),
		"split":      s.bounded(stdlib.SplitFunc, nil),
		"trimprefix": s.bounded(stdlib.TrimPrefixFunc, nil),
		"trimspace":  s.bounded(stdlib.TrimSpaceFunc, nil),
		"trimsuffix": s.bounded(stdlib.TrimSuffixFunc, nil),
		"upper":      s.bounded(stdlib.UpperFunc, nil),
		"values":     s.bounded(stdlib.ValuesFunc, nil),
	}
}

var errSpent = errors.New("the arguments are larger than this configuration may use")

// bounded pays for the arguments before f looks at them; check refuses what f would blow up.
func (s *Scope) bounded(f function.Function, check func(args []cty.Value) error) function.Function {
	return function.New(&function.Spec{
		Params:   f.Params(),
		VarParam: f.VarParam(),
		Type: func(args []cty.Value) (cty.Type, error) {
			for _, a := range args {
				if !s.charge(size(a, s.budget+1), hcl.Range{}) {
					return cty.DynamicPseudoType, errSpent
				}
				if err := numbers(a, 1000); err != nil {
					return cty.DynamicPseudoType, err
				}
			}
			if check != nil {
				if err := check(args); err != nil {
					return cty.DynamicPseudoType, err
				}
			}
			return f.ReturnTypeForValues(args)
		},
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			return f.Call(args)
		},
	})
}

var errNumber = errors.New("no setting takes a number of this size")

// numbers refuses arguments whose numbers could not be written out; text that reads as a number counts.
func numbers(v cty.Value, depth int) error {
	if !v.IsKnown() || v.IsNull() {
		return nil
	}
	t := v.Type()
	switch {
	case t == cty.Number:
		if !sane(v) {
			return errNumber
		}
	case t == cty.String:
		if s := v.AsString(); len(s) > 3 && len(s) <= 64 && hugeNumber.MatchString(s) {
			return errNumber
		}
	case depth > 0 && (t.IsCollectionType() || t.IsTupleType() || t.IsObjectType()):
		for it := v.ElementIterator(); it.Next(); {
			_, e := it.Element()
			if err := numbers(e, depth-1); err != nil {
				return err
			}
		}
	}
	return nil
}

var (
	hugeNumber = regexp.MustCompile(`^[-+]?[0-9.]+[eE][-+]?[0-9]{4,}$`)
	wideFormat = regexp.MustCompile(`%[^a-zA-Z%]*([0-9]{4,}|\*)`)
	hugeInJSON = regexp.MustCompile(`[0-9.][eE][-+]?[0-9]{4,}`)
)

func checkFormat(args []cty.Value) error {
	if len(args) > 0 && args[0].IsKnown() && !args[0].IsNull() && wideFormat.MatchString(args[0].AsString()) {
		return function.NewArgErrorf(0, "widths are at most 999")
	}
	return nil
}

// checkJSON refuses what the decoder would recurse or compute too far on.
func checkJSON(args []cty.Value) error {
	if !args[0].IsKnown() || args[0].IsNull() {
		return nil
	}
	text := args[0].AsString()
	if hugeInJSON.MatchString(text) {
		return function.NewArgErrorf(0, "%v", errNumber)
	}
	depth := 0
	for i := range len(text) {
		switch text[i] {
		case '[', '{':
			if depth++; depth > 64 {
				return function.NewArgErrorf(0, "nested more than 64 deep")
			}
		case ']', '}':
			depth--
		}
	}
	return nil
}

func checkJoin(args []cty.Value) error {
	if len(args) == 0 || !args[0].IsKnown() || args[0].IsNull() {
		return nil
	}
	total := 0
	for _, list := range args[1:] {
		if !list.IsKnown() || list.IsNull() {
			continue
		}
		for it := list.ElementIterator(); it.Next(); {
			_, e := it.Element()
			total += len(args[0].AsString())
			if e.IsKnown() && !e.IsNull() && e.Type() == cty.String {
				total += len(e.AsString())
			}
			if total > maxText {
				return function.NewArgErrorf(1, "the text would be longer than %d bytes", maxText)
			}
		}
	}
	return nil
}

func (s *Scope) envFunc() function.Function {
	return function.New(&function.Spec{
		Params:   []function.Parameter{{Name: "name", Type: cty.String}},
		VarParam: &function.Parameter{Name: "default", Type: cty.String},
		Type:     function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			if len(args) > 2 {
				return cty.DynamicVal, errors.New("env takes a name and at most one default")
			}
			if v, ok := s.in.Env(args[0].AsString()); ok {
				if !utf8.ValidString(v) || len(v) > maxText {
					return cty.DynamicVal, function.NewArgErrorf(0, "%s in configd's environment is not a text", args[0].AsString())
				}
				return cty.StringVal(v), nil
			}
			if len(args) == 2 {
				return args[1], nil
			}
			return cty.DynamicVal, function.NewArgErrorf(0, "%s is not set in configd's environment; set it, or give a default: env(%q, \"…\")", args[0].AsString(), args[0].AsString())
		},
	})
}

func (s *Scope) fileFunc() function.Function {
	return function.New(&function.Spec{
		Params: []function.Parameter{{Name: "path", Type: cty.String}},
		Type:   function.StaticReturnType(cty.String),
		Impl: func(args []cty.Value, _ cty.Type) (cty.Value, error) {
			path := args[0].AsString()
			if !filepath.IsAbs(path) {
				path = filepath.Join(s.in.Dir, path)
			}
			data, err := s.in.ReadFile(path, maxText)
			if err != nil {
				return cty.DynamicVal, function.NewArgError(0, err)
			}
			if !utf8.Valid(data) {
				return cty.DynamicVal, function.NewArgErrorf(0, "%s is not UTF-8 text", path)
			}
			if !s.charge(1+len(data)/64, hcl.Range{}) {
				return cty.DynamicVal, fmt.Errorf("reading %s: %w", path, errSpent)
			}
			return cty.StringVal(string(data)), nil
		},
	})
}
