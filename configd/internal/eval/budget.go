package eval

import (
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"

	"retinue.dev/configd/internal/diag"
)

// Bounds of evaluation, in units of about one value or 64 bytes of text. A value may share parts with itself many
// times over (a = [b, b], b = [c, c] …), so sizes are counted as a walk would see them and the walk is cut at a limit.
const (
	maxBudget = 3_000_000
	maxValue  = 1_000_000
	maxText   = 1 << 20
	maxChain  = 500
	// maxExponent is that of the largest number, binary: written in full, 2^4096 has 1,234 digits.
	maxExponent = 4096
)

// charge takes n units; the end of the budget is reported once, and nothing is evaluated after it.
func (s *Scope) charge(n int, at hcl.Range) bool {
	if s.budget -= n; s.budget > 0 {
		return true
	}
	if !s.spent {
		s.spent = true
		if at.Filename == "" {
			at = s.at // a function does not know where it was called
		}
		s.diags.Report(diag.EvaluationLimit, at, "Evaluation too large", "The expressions of this configuration need more work than configd does for one. Look for nested for expressions over long lists, or lists of the same long list.")
	}
	return false
}

// cost is what an expression may walk over at least once: everything that it names.
func (s *Scope) cost(refs []hcl.Traversal, ctx *hcl.EvalContext) int {
	n := 1
	for _, t := range refs {
		if root := t.RootName(); s.objects[root] != nil {
			if len(t) == 1 {
				n += len(s.names[root])
			}
			continue
		}
		if v, found := t.TraverseAbs(ctx); !found.HasErrors() {
			n += size(v, s.budget+1)
		}
		if n > s.budget {
			break
		}
	}
	return n
}

// size counts a value's parts, stopping at limit.
func size(v cty.Value, limit int) int {
	t := v.Type()
	if !v.IsKnown() || v.IsNull() {
		return 1
	}
	if t == cty.String {
		return 1 + len(v.AsString())/64
	}
	if !t.IsCollectionType() && !t.IsTupleType() && !t.IsObjectType() {
		return 1
	}
	n := 1
	for it := v.ElementIterator(); it.Next() && n < limit; {
		_, e := it.Element()
		n += size(e, limit-n)
	}
	return n
}

// sane tells whether a lone number can be written in full. Numbers inside collections are checked when they are used.
func sane(v cty.Value) bool {
	if v.IsKnown() && !v.IsNull() && v.Type() == cty.Number {
		f := v.AsBigFloat()
		return !f.IsInf() && f.MantExp(nil) <= maxExponent && f.MantExp(nil) >= -maxExponent
	}
	return true
}

// Watch puts the budget between a body's loops and what they repeat, and a check on the operands of arithmetic. Called
// once for a body, before anything in it is evaluated. JSON bodies cannot hold either (syntax refuses them).
func (s *Scope) Watch(body hcl.Body) {
	if b, ok := body.(*hclsyntax.Body); ok {
		_ = hclsyntax.Walk(b, &watcher{s})
	}
}

type watcher struct{ s *Scope }

func (w *watcher) Enter(hclsyntax.Node) hcl.Diagnostics { return nil }

// Exit runs from the inside out, so what is wrapped here has its own inner parts wrapped already.
func (w *watcher) Exit(n hclsyntax.Node) hcl.Diagnostics {
	switch e := n.(type) {
	case *hclsyntax.ForExpr:
		e.CollExpr = w.wrap(e.CollExpr)
		e.KeyExpr = w.wrap(e.KeyExpr)
		e.ValExpr = w.wrap(e.ValExpr)
		e.CondExpr = w.wrap(e.CondExpr)
	case *hclsyntax.SplatExpr:
		e.Source = w.wrap(e.Source)
		e.Each = w.wrap(e.Each)
	case *hclsyntax.BinaryOpExpr:
		e.LHS = w.wrap(e.LHS)
		e.RHS = w.wrap(e.RHS)
	case *hclsyntax.UnaryOpExpr:
		e.Val = w.wrap(e.Val)
	}
	return nil
}

func (w *watcher) wrap(e hclsyntax.Expression) hclsyntax.Expression {
	if e == nil {
		return nil
	}
	c := &counter{}
	_ = hclsyntax.Walk(e, c)
	// The parentheses are for the library's own walk, which must still meet e itself.
	return &watched{
		Expression: &hclsyntax.ParenthesesExpr{Expression: e, SrcRange: e.Range()},
		scope:      w.s, nodes: c.n, refs: e.Variables(),
	}
}

type counter struct{ n int }

func (c *counter) Enter(hclsyntax.Node) hcl.Diagnostics { c.n++; return nil }
func (c *counter) Exit(hclsyntax.Node) hcl.Diagnostics  { return nil }

// watched is an expression that pays before it is evaluated and whose numbers stay writable.
type watched struct {
	hclsyntax.Expression
	scope *Scope
	nodes int
	refs  []hcl.Traversal
}

// Value implements hclsyntax.Expression.
func (w *watched) Value(ctx *hcl.EvalContext) (cty.Value, hcl.Diagnostics) {
	s := w.scope
	if s.spent || !s.charge(w.nodes+s.cost(w.refs, ctx), w.Range()) {
		return cty.DynamicVal, nil
	}
	v, found := w.Expression.Value(ctx)
	if found.HasErrors() {
		return v, found
	}
	number := v
	if v.Type() == cty.String && v.IsKnown() && !v.IsNull() && len(v.AsString()) <= 64 {
		if n, err := cty.ParseNumberVal(v.AsString()); err == nil {
			number = n
		}
	}
	if !sane(number) {
		at := w.Range()
		return cty.DynamicVal, append(found, &hcl.Diagnostic{Severity: hcl.DiagError, Summary: "Number out of range", Detail: "No setting takes a number of this size.", Subject: &at})
	}
	if !s.charge(size(v, s.budget+1), w.Range()) {
		return cty.DynamicVal, nil
	}
	return v, found
}
