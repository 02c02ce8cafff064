package schema

import (
	"fmt"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"

	"retinue.dev/configd/internal/diag"
)

// element is one member of a list, with its own range where the list is written out.
type element struct {
	expr  hcl.Expression // nil when only the value is known
	value cty.Value
	at    hcl.Range
}

func (d *Decoder) elements(a *Attr, expr hcl.Expression) ([]element, bool) {
	limit := a.MaxLen
	if limit == 0 {
		limit = 10_000
	}
	tooMany := func(n int) bool {
		if n > limit {
			d.Diags.Report(diag.OutOfRange, expr.Range(), "List too long", "%s holds at most %d elements; this has %d.", a.Name, limit, n)
		}
		return n > limit
	}
	if static := listed(expr); static != nil {
		if tooMany(len(static)) {
			return nil, false
		}
		out := make([]element, len(static))
		for i, e := range static {
			out[i] = element{expr: e, at: e.Range()}
		}
		return out, true
	}
	v, ok := d.value(a, expr)
	if !ok {
		return nil, false
	}
	if v.IsNull() {
		return nil, true
	}
	t := v.Type()
	if !t.IsTupleType() && !t.IsListType() && !t.IsSetType() {
		if a.One && (t.Equals(RefType) || t == cty.String) {
			return []element{{value: v, at: expr.Range()}}, true
		}
		hint := ""
		if t == cty.String && a.Kind != References {
			hint = " Write it in brackets, [ … ]."
		}
		d.Diags.Report(diag.WrongType, expr.Range(), "Wrong type", "%s is %s, not %s.%s", a.Name, a.wants(), typeName(v), hint)
		return nil, false
	}
	if tooMany(v.LengthInt()) {
		return nil, false
	}
	out := []element{}
	for it := v.ElementIterator(); it.Next(); {
		_, e := it.Element()
		out = append(out, element{value: e, at: expr.Range()})
	}
	return out, true
}

// listed returns the members of a list that is written out, nil for any other expression. (hcl.ExprList would take a
// JSON string for a list too.)
func listed(expr hcl.Expression) []hcl.Expression {
	if t, ok := expr.(*hclsyntax.TupleConsExpr); ok {
		out := make([]hcl.Expression, len(t.Exprs))
		for i, e := range t.Exprs {
			out[i] = e
		}
		return out
	}
	if hcljson.IsJSONExpression(expr) {
		if list, found := hcl.ExprList(expr); !found.HasErrors() {
			return list
		}
	}
	return nil
}

func (d *Decoder) list(a *Attr, expr hcl.Expression) ([]Value, bool) {
	elements, ok := d.elements(a, expr)
	if !ok || elements == nil {
		return nil, ok
	}
	out := make([]Value, 0, len(elements))
	for i, e := range elements {
		v, good := d.element(a, i, e)
		if good {
			out = append(out, v)
		}
		ok = ok && good
	}
	return out, ok
}

func (d *Decoder) element(a *Attr, i int, e element) (Value, bool) {
	one := Attr{Name: fmt.Sprintf("%s[%d]", a.Name, i), Refers: a.Refers, Kind: String}
	switch a.Kind {
	case References:
		one.Kind = Reference
	case Records:
		if e.expr != nil {
			if pairs, found := hcl.ExprMap(e.expr); !found.HasErrors() {
				return d.writtenRecord(a, one.Name, pairs, e.at)
			}
		}
		return d.record(a, one.Name, e)
	}
	v, at, ok := e.value, e.at, true
	if e.expr != nil {
		v, ok = d.value(&one, e.expr)
	}
	if !ok {
		return Value{}, false
	}
	if v.IsNull() {
		d.Diags.Report(diag.WrongType, at, "Wrong type", "%s is null.", one.Name)
		return Value{}, false
	}
	return d.scalar(&one, v, at)
}

// record decodes an object that is known by its value only.
func (d *Decoder) record(a *Attr, name string, e element) (Value, bool) {
	v := e.value
	if e.expr != nil {
		var ok bool
		if v, ok = d.value(&a.Fields[0], e.expr); !ok { // a string of the JSON form may be the first field's reference
			return Value{}, false
		}
	}
	rec := Record{Fields: map[string]Value{}, attr: a}
	if !v.IsNull() && a.PlainFirst && (v.Type() == cty.String || v.Type().Equals(RefType)) {
		plain := a.plain(v)
		f, ok := d.scalar(plain, v, e.at)
		rec.Fields[plain.Name] = f
		return Value{V: rec, Range: e.at, Written: true}, ok
	}
	if v.IsNull() || (!v.Type().IsObjectType() && !v.Type().IsMapType()) {
		d.Diags.Report(diag.WrongType, e.at, "Wrong type", "%s is an object with %s, not %s.", name, fieldNames(a), typeName(v))
		return Value{}, false
	}
	ok := true
	for it := v.ElementIterator(); it.Next(); {
		k, x := it.Element()
		ok = d.field(a, rec, name, k.AsString(), element{value: x, at: e.at}, e.at) && ok
	}
	return d.complete(a, rec, name, e.at, ok)
}

// plain is the field that a value alone stands for.
func (a *Attr) plain(v cty.Value) *Attr {
	if v.Type().Equals(RefType) {
		for i := range a.Fields {
			if a.Fields[i].Refers == v.EncapsulatedValue().(*Ref).Kind {
				return &a.Fields[i]
			}
		}
	}
	return &a.Fields[0]
}

// writtenRecord decodes an object that is written out, every field with its own range.
func (d *Decoder) writtenRecord(a *Attr, name string, pairs []hcl.KeyValuePair, at hcl.Range) (Value, bool) {
	rec := Record{Fields: map[string]Value{}, attr: a}
	ok := true
	for _, p := range pairs {
		k, good := d.Eval.Value(p.Key)
		if !good || k.IsNull() || k.Type() != cty.String {
			ok = false
			continue
		}
		ok = d.field(a, rec, name, k.AsString(), element{expr: p.Value, at: p.Value.Range()}, p.Key.Range()) && ok
	}
	return d.complete(a, rec, name, at, ok)
}

func (d *Decoder) field(a *Attr, rec Record, name, field string, e element, at hcl.Range) bool {
	for i := range a.Fields {
		f := &a.Fields[i]
		if f.Name != field {
			continue
		}
		if f.Kind == HeaderMap || f.Kind == Strings {
			expr := e.expr
			if expr == nil {
				expr = hcl.StaticExpr(e.value, e.at)
			}
			if f.Kind == Strings {
				list, ok := d.list(f, expr)
				rec.Fields[field] = Value{V: list, Range: expr.Range(), Written: list != nil}
				return ok
			}
			pairs, ok := d.headers(f, expr)
			rec.Fields[field] = Value{V: pairs, Range: expr.Range(), Written: pairs != nil}
			return ok
		}
		if e.expr != nil {
			v, ok := d.single(f, e.expr)
			if ok && v.Written {
				rec.Fields[field] = v
			}
			return ok
		}
		v, ok := e.value, true
		if v.IsNull() {
			return true
		}
		x, ok := d.scalar(f, v, e.at)
		rec.Fields[field] = x
		return ok
	}
	var known []string
	for _, f := range a.Fields {
		known = append(known, f.Name)
	}
	hint := ""
	if near := diag.Near(field, known); near != "" {
		hint = fmt.Sprintf(" Did you mean %q?", near)
	}
	d.Diags.Report(diag.UnknownName, at, "Unknown field", "%s has no field %q; it has %s.%s", name, field, fieldNames(a), hint)
	return false
}

func (d *Decoder) complete(a *Attr, rec Record, name string, at hcl.Range, ok bool) (Value, bool) {
	if ok {
		for _, f := range a.Fields {
			if _, written := rec.Fields[f.Name]; f.Required && !written {
				d.Diags.Report(diag.MissingAttribute, at, "Missing field", "%s needs %s: %s", name, f.Name, f.Doc)
				ok = false
			}
		}
	}
	return Value{V: rec, Range: at, Written: true}, ok
}

func fieldNames(a *Attr) string {
	names := make([]string, len(a.Fields))
	for i, f := range a.Fields {
		names[i] = f.Name
	}
	return strings.Join(names, " and ")
}

// headers decodes { "name" = "value", "other" = ["a", "b"] } in source order where it is written out.
func (d *Decoder) headers(a *Attr, expr hcl.Expression) ([]Pair, bool) {
	var out []Pair
	ok := true
	add := func(name string, nameAt hcl.Range, e element) {
		values := &Attr{Name: fmt.Sprintf("%s[%q]", a.Name, name), Kind: Strings, MaxLen: 100}
		p := Pair{Name: Value{V: name, Range: nameAt, Written: true}}
		if e.expr != nil {
			if list := listed(e.expr); list != nil {
				vs, good := d.list(values, e.expr)
				p.Values, ok = vs, ok && good
				out = append(out, p)
				return
			}
			v, good := d.Eval.Value(e.expr)
			if !good {
				ok = false
				return
			}
			e.value = v
		}
		if e.value.IsNull() {
			return
		}
		t := e.value.Type()
		if t.IsTupleType() || t.IsListType() {
			i := 0
			for it := e.value.ElementIterator(); it.Next(); i++ {
				_, x := it.Element()
				v, good := d.element(values, i, element{value: x, at: e.at})
				p.Values, ok = append(p.Values, v), ok && good
			}
		} else {
			v, good := d.scalar(&Attr{Name: values.Name, MaxLen: 8 << 10}, e.value, e.at)
			p.Values, ok = append(p.Values, v), ok && good
		}
		out = append(out, p)
	}
	if pairs, found := hcl.ExprMap(expr); !found.HasErrors() {
		for _, kv := range pairs {
			k, good := d.Eval.Value(kv.Key)
			if !good || k.IsNull() || k.Type() != cty.String {
				ok = false
				continue
			}
			add(k.AsString(), kv.Key.Range(), element{expr: kv.Value, at: kv.Value.Range()})
		}
		return out, ok
	}
	v, good := d.value(a, expr)
	if !good || v.IsNull() {
		return nil, good
	}
	if !v.Type().IsObjectType() && !v.Type().IsMapType() {
		d.Diags.Report(diag.WrongType, expr.Range(), "Wrong type", "%s is %s, not %s.", a.Name, a.wants(), typeName(v))
		return nil, false
	}
	for it := v.ElementIterator(); it.Next(); {
		k, x := it.Element()
		add(k.AsString(), expr.Range(), element{value: x, at: expr.Range()})
	}
	return out, ok
}
