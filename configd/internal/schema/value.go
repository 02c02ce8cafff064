package schema

import (
	"fmt"
	"math"
	"math/big"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"

	"retinue.dev/configd/internal/diag"
)

// Value is a decoded value and where it was written. Written is false for the table's own defaults, whose Range is
// that of the block.
type Value struct {
	V       any
	Range   hcl.Range
	Written bool
}

// FilterKind is the kind of object whose name has two parts, and whose references three: filter.cors.shop.
const FilterKind = "filter"

// Ref names an object: Ref{"cluster", "api"} is cluster.api.
type Ref struct {
	Kind string
	Name string
}

func (r Ref) String() string {
	if identifier.MatchString(r.Name) {
		return r.Kind + "." + r.Name
	}
	if kind, name, two := strings.Cut(r.Name, "."); two && r.Kind == FilterKind {
		return Ref{r.Kind + "." + kind, name}.String()
	}
	return fmt.Sprintf("%s[%q]", r.Kind, r.Name)
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]*$`)

// RefType is the type of references in expressions.
var RefType = cty.Capsule("reference", reflect.TypeFor[Ref]())

// Record is one object of a list of objects.
type Record struct {
	Fields map[string]Value
	attr   *Attr
}

// Get returns a field or its default.
func (r Record) Get(name string) Value {
	if v, ok := r.Fields[name]; ok {
		return v
	}
	for i := range r.attr.Fields {
		if f := &r.attr.Fields[i]; f.Name == name && f.Default != nil {
			v, err := f.fromDefault()
			if err == nil {
				return v
			}
		}
	}
	return Value{}
}

// Pair is one name of a HeaderMap with its values.
type Pair struct {
	Name   Value
	Values []Value
}

// problem is why a value does not fit.
type problem struct {
	code    diag.Code
	summary string
	detail  string
}

func (p *problem) Error() string { return p.detail }

func wrong(format string, args ...any) *problem {
	return &problem{diag.WrongType, "Wrong type", fmt.Sprintf(format, args...)}
}

// wants says in words what a value of the attribute looks like.
func (a *Attr) wants() string {
	switch a.Kind {
	case String:
		return "a string"
	case Bool:
		return "true or false"
	case Int:
		return "a whole number"
	case Duration:
		return `a duration such as "5s"`
	case Size:
		return `a size such as "64KiB"`
	case Percent:
		return `a share such as "5%"`
	case Reference:
		return "a reference such as " + a.referred()
	case Strings:
		return "a list of strings"
	case References:
		return "a list of references such as " + a.referred()
	case Records:
		return "a list of objects"
	case HeaderMap:
		return `an object of header names and values such as { "x-a" = "b" }`
	}
	return "an expression"
}

// referred shows a reference of the kind that the attribute wants.
func (a *Attr) referred() string {
	if a.Refers == FilterKind {
		return FilterKind + ".TYPE.NAME"
	}
	return a.Refers + ".NAME"
}

// typeName names a cty type for people.
func typeName(v cty.Value) string {
	t := v.Type()
	switch {
	case v.IsNull():
		return "null"
	case t.Equals(RefType):
		return "a reference"
	case t == cty.String:
		return "a string"
	case t == cty.Number:
		return "a number"
	case t == cty.Bool:
		return "a bool"
	case t.IsTupleType(), t.IsListType(), t.IsSetType():
		return "a list"
	case t.IsObjectType(), t.IsMapType():
		return "an object"
	}
	return t.FriendlyName()
}

// scalar converts a value of a kind that is no collection.
func (a *Attr) scalar(v cty.Value) (any, *problem) {
	switch a.Kind {
	case String:
		s, err := convert.Convert(v, cty.String)
		if err != nil {
			return nil, wrong("%s is %s, not %s.", a.Name, a.wants(), typeName(v))
		}
		return a.text(s.AsString())
	case Bool:
		b, err := convert.Convert(v, cty.Bool)
		if err != nil {
			return nil, wrong("%s is %s, not %s.", a.Name, a.wants(), typeName(v))
		}
		return b.True(), nil
	case Int:
		n, err := convert.Convert(v, cty.Number)
		if err != nil {
			return nil, wrong("%s is %s, not %s.", a.Name, a.wants(), typeName(v))
		}
		i, accuracy := n.AsBigFloat().Int64()
		if accuracy != big.Exact {
			return nil, wrong("%s is a whole number.", a.Name)
		}
		return i, a.bounds(i, strconv.FormatInt)
	case Duration:
		if v.Type() == cty.Number {
			return nil, &problem{diag.InvalidDuration, "Duration without a unit", fmt.Sprintf(`%s is a duration with its unit, such as "5s" or "250ms".`, a.Name)}
		}
		if v.Type() != cty.String {
			return nil, wrong("%s is %s, not %s.", a.Name, a.wants(), typeName(v))
		}
		ms, p := parseDuration(a.Name, v.AsString())
		if p != nil {
			return nil, p
		}
		if ms == 0 && a.ZeroOff {
			return ms, nil
		}
		return ms, a.bounds(ms, func(ms int64, _ int) string { return showDuration(ms) })
	case Size:
		var n int64
		switch v.Type() {
		case cty.Number:
			i, accuracy := v.AsBigFloat().Int64()
			if accuracy != big.Exact {
				return nil, wrong("%s is a whole number of bytes.", a.Name)
			}
			n = i
		case cty.String:
			i, p := parseSize(a.Name, v.AsString())
			if p != nil {
				return nil, p
			}
			n = i
		default:
			return nil, wrong("%s is %s, not %s.", a.Name, a.wants(), typeName(v))
		}
		return n, a.bounds(n, func(n int64, _ int) string { return showSize(n) })
	case Percent:
		if v.Type() != cty.String {
			return nil, wrong("%s is %s, not %s.", a.Name, a.wants(), typeName(v))
		}
		return parsePercent(a.Name, v.AsString())
	case Reference, References:
		if !v.Type().Equals(RefType) {
			detail := fmt.Sprintf("%s is %s, not %s.", a.Name, a.wants(), typeName(v))
			if v.Type() == cty.String {
				detail = fmt.Sprintf("%s is named by a reference, not by a string: write %s.", a.Name, Ref{a.Refers, v.AsString()})
			}
			return nil, &problem{diag.NotAReference, "Not a reference", detail}
		}
		r := *v.EncapsulatedValue().(*Ref)
		if r.Kind != a.Refers {
			return nil, &problem{diag.NotAReference, "Reference to the wrong kind", fmt.Sprintf("%s wants a %s such as %s; %s is none.", a.Name, a.Refers, a.referred(), r)}
		}
		return r, nil
	}
	return nil, wrong("%s is %s.", a.Name, a.wants())
}

func (a *Attr) text(s string) (any, *problem) {
	limit := a.MaxLen
	if limit == 0 {
		limit = 4096
	}
	if len(s) > limit {
		return nil, &problem{diag.OutOfRange, "Value too long", fmt.Sprintf("%s is at most %d bytes long; this has %d.", a.Name, limit, len(s))}
	}
	if len(a.Choices) == 0 || slices.Contains(a.Choices, s) {
		return s, nil
	}
	hint := ""
	if near := diag.Near(s, a.Choices); near != "" {
		hint = fmt.Sprintf(" Did you mean %q?", near)
	}
	return nil, &problem{diag.OutOfRange, "Value not allowed", fmt.Sprintf("%s is one of %s.%s", a.Name, quoted(a.Choices), hint)}
}

func quoted(words []string) string {
	out := make([]string, len(words))
	for i, w := range words {
		out[i] = strconv.Quote(w)
	}
	return strings.Join(out, ", ")
}

// bounds returns an untyped nil inside *problem when n is allowed.
func (a *Attr) bounds(n int64, show func(int64, int) string) *problem {
	if a.Max == 0 || (n >= a.Min && n <= a.Max) {
		return nil
	}
	return &problem{diag.OutOfRange, "Value out of range", fmt.Sprintf("%s is %s to %s.", a.Name, show(a.Min, 10), show(a.Max, 10))}
}

// fromDefault decodes Default with the rules of a written value.
func (a *Attr) fromDefault() (Value, error) {
	var v cty.Value
	switch d := a.Default.(type) {
	case string:
		v = cty.StringVal(d)
	case bool:
		v = cty.BoolVal(d)
	case int:
		v = cty.NumberIntVal(int64(d))
	case []string:
		out := []Value{}
		for _, s := range d {
			out = append(out, Value{V: s})
		}
		return Value{V: out}, nil
	default:
		return Value{}, fmt.Errorf("a default of type %T", d)
	}
	x, p := a.scalar(v)
	if p != nil {
		return Value{}, p
	}
	return Value{V: x}, nil
}

var (
	durationForm = regexp.MustCompile(`^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`)
	percentForm  = regexp.MustCompile(`^([0-9]{1,3})(?:\.([0-9]{1,4}))?%$`)
	sizeForm     = regexp.MustCompile(`^([0-9]+)(B|KB|MB|GB|KiB|MiB|GiB)?$`)
)

func parseDuration(name, s string) (int64, *problem) {
	bad := &problem{diag.InvalidDuration, "Invalid duration", fmt.Sprintf(`%s is a duration such as "250ms", "5s", "1m30s" or "1h", not %q.`, name, s)}
	if s == "0" {
		return 0, nil
	}
	if len(s) > 64 || !durationForm.MatchString(s) {
		return 0, bad
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, bad
	}
	if d%time.Millisecond != 0 {
		return 0, &problem{diag.InvalidDuration, "Duration too fine", fmt.Sprintf("%s is a whole number of milliseconds.", name)}
	}
	return d.Milliseconds(), nil
}

func parseSize(name, s string) (int64, *problem) {
	m := sizeForm.FindStringSubmatch(s)
	if m == nil {
		return 0, &problem{diag.InvalidSize, "Invalid size", fmt.Sprintf(`%s is a size such as "512B", "64KiB", "1MiB" or "10MB", not %q.`, name, s)}
	}
	unit := map[string]int64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}[m[2]]
	n, err := strconv.ParseInt(m[1], 10, 64)
	if err != nil || n > math.MaxInt64/unit {
		return 0, &problem{diag.OutOfRange, "Value out of range", fmt.Sprintf("%s is larger than any size.", name)}
	}
	return n * unit, nil
}

// parsePercent reads a share with at most four digits behind the point.
func parsePercent(name, s string) (any, *problem) {
	m := percentForm.FindStringSubmatch(s)
	if m == nil {
		return nil, wrong(`%s is a share of all such as "5%%" or "0.25%%", not %q.`, name, s)
	}
	whole, _ := strconv.ParseInt(m[1], 10, 64)
	part, _ := strconv.ParseInt((m[2] + "0000")[:4], 10, 64)
	n := whole*10_000 + part
	if n > 1_000_000 {
		return nil, &problem{diag.OutOfRange, "Value out of range", name + " is 0% to 100%."}
	}
	return n, nil
}

func showDuration(ms int64) string {
	s := (time.Duration(ms) * time.Millisecond).String()
	s = strings.TrimSuffix(s, "m0s")
	if len(s) > 0 && s[len(s)-1] >= '0' && s[len(s)-1] <= '9' {
		s += "m"
	}
	s = strings.TrimSuffix(s, "h0m")
	if s != "" && s[len(s)-1] >= '0' && s[len(s)-1] <= '9' {
		s += "h"
	}
	return s
}

func showSize(n int64) string {
	for _, u := range []struct {
		n    int64
		name string
	}{{1 << 30, "GiB"}, {1 << 20, "MiB"}, {1 << 10, "KiB"}} {
		if n >= u.n && n%u.n == 0 {
			return strconv.FormatInt(n/u.n, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// Bounds writes what numbers, durations and sizes are allowed; "" when there is no bound worth a word.
func (a *Attr) Bounds() string {
	if a.Max == 0 || a.Max == maxInt32 {
		return ""
	}
	show := func(n int64) string { return strconv.FormatInt(n, 10) }
	switch a.Kind {
	case Duration:
		show = showDuration
	case Size:
		show = showSize
	}
	return show(a.Min) + " to " + show(a.Max)
}
