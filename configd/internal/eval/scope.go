// Package eval owns expressions: variables, locals, references and functions, and the bounds that keep a hostile or
// mistaken expression from using unbounded time or memory.
package eval

import (
	"fmt"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/convert"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// Inputs is all that an evaluation may depend on besides the files: it has no clock, no network and no randomness.
type Inputs struct {
	Dir      string // file() is relative to it
	Env      func(name string) (string, bool)
	ReadFile func(path string, limit int) ([]byte, error)
}

// Scope evaluates expressions. It is made for one compilation and used by one goroutine: Declare every object, then
// Bind variables and locals, then Value as often as needed.
type Scope struct {
	in      Inputs
	diags   *diag.List
	budget  int
	spent   bool                            // the budget's end has been reported
	objects map[string]map[string]hcl.Range // kind → name → where
	names   map[string][]string             // kind → names, in order
	locals  map[string]*local
	vars    map[string]cty.Value
	used    map[string]bool // locals
	at      hcl.Range       // of the expression being evaluated
	ctx     *hcl.EvalContext
}

type local struct {
	name  string
	attr  *hcl.Attribute
	state int // 0 not seen, 1 being evaluated, 2 done, 3 failed
	value cty.Value
}

// New makes a scope without names. kinds are the kinds of objects that references may name.
func New(in Inputs, kinds []string, diags *diag.List) *Scope {
	s := &Scope{
		in: in, diags: diags, budget: maxBudget,
		objects: map[string]map[string]hcl.Range{}, names: map[string][]string{},
		locals: map[string]*local{}, vars: map[string]cty.Value{}, used: map[string]bool{},
	}
	for _, k := range kinds {
		s.objects[k] = map[string]hcl.Range{}
	}
	return s
}

// Declare adds an object that references may name; false when the name is taken.
func (s *Scope) Declare(kind, name string, at hcl.Range) (first hcl.Range, ok bool) {
	if prev, taken := s.objects[kind][name]; taken {
		return prev, false
	}
	s.objects[kind][name] = at
	s.names[kind] = append(s.names[kind], name)
	return at, true
}

// Bind evaluates variables and locals. Every local is evaluated, in the order of its needs; cycles are reported.
func (s *Scope) Bind(variables, locals []*schema.Node) {
	s.ctx = &hcl.EvalContext{Variables: map[string]cty.Value{}, Functions: s.functions()}
	for kind, names := range s.names {
		refs := make(map[string]cty.Value, len(names))
		two := map[string]map[string]cty.Value{}
		for _, n := range names {
			ref := cty.CapsuleVal(schema.RefType, &schema.Ref{Kind: kind, Name: n})
			if kind != schema.FilterKind {
				refs[n] = ref
				continue
			}
			first, second, _ := strings.Cut(n, ".")
			if two[first] == nil {
				two[first] = map[string]cty.Value{}
			}
			two[first][second] = ref
		}
		for first, named := range two {
			refs[first] = cty.ObjectVal(named)
		}
		s.ctx.Variables[kind] = cty.ObjectVal(refs)
	}
	for _, v := range variables {
		s.variable(v)
	}
	s.ctx.Variables["var"] = cty.ObjectVal(s.vars)
	var order []*local
	for _, block := range locals {
		for _, a := range block.Open {
			if prev := s.locals[a.Name]; prev != nil {
				s.diags.Report(diag.DuplicateName, a.NameRange, "Name used twice", "local.%s is already defined on %s.", a.Name, schema.Place(prev.attr.NameRange))
				continue
			}
			l := &local{name: a.Name, attr: a}
			s.locals[a.Name] = l
			order = append(order, l)
		}
	}
	for _, l := range order {
		s.diags.Within("locals", func() { s.evaluate(l, nil) })
	}
	all := make(map[string]cty.Value, len(order))
	for _, l := range order {
		all[l.name] = l.value
	}
	s.ctx.Variables["local"] = cty.ObjectVal(all)
}

// UnusedLocals reports locals that nothing named.
func (s *Scope) UnusedLocals() {
	for name, l := range s.locals {
		if !s.used[name] && l.state == 2 {
			s.diags.Report(diag.UnusedLocal, l.attr.NameRange, "Unused local", "Nothing names local.%s.", name)
		}
	}
}

func (s *Scope) variable(n *schema.Node) {
	if _, taken := s.vars[n.Label]; taken {
		s.diags.Report(diag.DuplicateName, n.LabelRange, "Name used twice", "variable %q is already declared.", n.Label)
		return
	}
	s.vars[n.Label] = cty.DynamicVal
	value := cty.NullVal(cty.String)
	if e, ok := n.Get("default").V.(hcl.Expression); ok {
		if refs := e.Variables(); len(refs) > 0 {
			s.diags.Report(diag.UnknownVariable, refs[0].SourceRange(), "Reference in a default", "The default of a variable names nothing else. Use locals for values that are made from others.")
			return
		}
		v, ok := s.Value(e)
		if !ok {
			return
		}
		value = v
	}
	if text, set := s.in.Env("RETINUE_VAR_" + n.Label); set {
		t := value.Type()
		if !t.IsPrimitiveType() {
			t = cty.String
		}
		v, err := convert.Convert(cty.StringVal(text), t)
		if err != nil || !sane(v) {
			s.diags.Report(diag.WrongType, n.DefRange, "Wrong type", "RETINUE_VAR_%s in configd's environment is not a %s.", n.Label, t.FriendlyName())
			return
		}
		value = v
	} else if value.IsNull() {
		s.diags.Report(diag.VariableNotSet, n.DefRange, "Variable without a value", "variable %q has no default and RETINUE_VAR_%s is not set in configd's environment.", n.Label, n.Label)
		return
	}
	s.vars[n.Label] = value
}

// evaluate gives a local its value after those that it needs. path is the way here, for the words of a cycle.
func (s *Scope) evaluate(l *local, path []string) bool {
	switch l.state {
	case 2, 3:
		return l.state == 2
	case 1:
		i := slices.Index(path, l.name)
		s.diags.Report(diag.Cycle, l.attr.NameRange, "Cyclic locals", "These locals need each other: local.%s → local.%s.", strings.Join(path[i:], " → local."), l.name)
		l.value = cty.DynamicVal
		return false
	}
	l.state, l.value = 1, cty.DynamicVal
	if len(path) > maxChain {
		s.diags.Report(diag.EvaluationLimit, l.attr.NameRange, "Locals too deep", "Locals may build on each other %d deep.", maxChain)
		l.state = 3
		return false
	}
	needs := map[string]cty.Value{}
	ok := true
	for _, t := range l.attr.Expr.Variables() {
		if t.RootName() != "local" {
			continue
		}
		name, named := second(t)
		need := s.locals[name]
		if !named || need == nil {
			continue // reported by Value
		}
		if _, done := needs[name]; done {
			continue
		}
		if !s.evaluate(need, append(path, l.name)) {
			ok = false
		}
		needs[name] = need.value
	}
	if !ok {
		l.state = 3
		return false
	}
	vars := make(map[string]cty.Value, len(s.ctx.Variables))
	for k, v := range s.ctx.Variables {
		vars[k] = v
	}
	vars["local"] = cty.ObjectVal(needs)
	v, ok := s.valueIn(l.attr.Expr, &hcl.EvalContext{Variables: vars, Functions: s.ctx.Functions})
	l.state = 3
	if !ok {
		return false
	}
	if size(v, maxValue) >= maxValue {
		s.diags.Report(diag.EvaluationLimit, l.attr.Expr.Range(), "Value too large", "local.%s is larger than a value may be.", l.name)
		return false
	}
	l.state, l.value = 2, v
	return true
}

// Value evaluates an expression; what goes wrong is reported at its place, and then ok is false.
func (s *Scope) Value(expr hcl.Expression) (v cty.Value, ok bool) {
	if literal(expr) {
		v, found := expr.Value(nil)
		return v, !found.HasErrors()
	}
	ctx := s.ctx
	if ctx == nil {
		ctx = &hcl.EvalContext{}
	}
	return s.valueIn(expr, ctx)
}

func literal(expr hcl.Expression) bool {
	switch e := expr.(type) {
	case *hclsyntax.LiteralValueExpr:
		return true
	case *hclsyntax.TemplateExpr:
		return e.IsStringLiteral()
	case *hclsyntax.ObjectConsKeyExpr:
		return hcl.ExprAsKeyword(e) != ""
	}
	return false
}

func (s *Scope) valueIn(expr hcl.Expression, ctx *hcl.EvalContext) (cty.Value, bool) {
	s.at = expr.Range()
	refs := expr.Variables()
	if !s.known(refs) {
		return cty.DynamicVal, false
	}
	if !s.charge(s.cost(refs, ctx), expr.Range()) {
		return cty.DynamicVal, false
	}
	v, found := expr.Value(ctx)
	s.diags.FromHCL(diag.Evaluation, found)
	if found.HasErrors() || s.spent {
		return cty.DynamicVal, false
	}
	if !v.IsWhollyKnown() { // something it is made of failed and has been reported
		return cty.DynamicVal, false
	}
	if !sane(v) {
		s.diags.Report(diag.OutOfRange, expr.Range(), "Number out of range", "No setting takes a number of this size.")
		return cty.DynamicVal, false
	}
	return v, s.charge(size(v, s.budget+1), expr.Range())
}

// known checks the first step of every traversal against what is declared, so that a slip is told with the near name.
func (s *Scope) known(refs []hcl.Traversal) bool {
	ok := true
	for _, t := range refs {
		ok = s.knownName(t) && ok
	}
	return ok
}

func (s *Scope) knownName(t hcl.Traversal) bool {
	root := t.RootName()
	name, named := objectName(t)
	at := t.SourceRange()
	switch {
	case root == "var":
		if _, declared := s.vars[name]; declared {
			return true
		}
		s.unknown(diag.UnknownVariable, at, "variable", "var", name, named, keys(s.vars), "")
	case root == "local":
		if l, declared := s.locals[name]; declared {
			s.used[name] = true
			return l.state != 3
		}
		s.unknown(diag.UnknownVariable, at, "local", "local", name, named, keys(s.locals), "")
	case s.objects[root] != nil:
		if _, declared := s.objects[root][name]; declared || !named && root != schema.FilterKind {
			return true
		}
		s.unknown(diag.UnknownReference, at, strings.ReplaceAll(root, "_", " "), root, name, named, s.names[root], "")
	default:
		roots := append(keys(s.objects), "var", "local")
		slices.Sort(roots)
		hint := ""
		if near := diag.Near(root, roots); near != "" {
			hint = fmt.Sprintf(" Did you mean %q?", near)
		} else if len(t) == 1 {
			hint = fmt.Sprintf(" A text is written in quotes: %q.", root)
		}
		for i, known := range roots {
			if known == schema.FilterKind {
				roots[i] += ".TYPE"
			}
		}
		s.diags.Report(diag.UnknownVariable, at, "Unknown name", "Nothing is called %q here; expressions may use %s.NAME.%s", root, strings.Join(roots, ".NAME, "), hint)
	}
	return false
}

func (s *Scope) unknown(code diag.Code, at hcl.Range, what, root, name string, named bool, names []string, extra string) {
	if !named {
		if root == schema.FilterKind {
			root += ".TYPE"
		}
		s.diags.Report(code, at, "Incomplete name", "Write %s.NAME.", root)
		return
	}
	hint := extra
	if near := diag.Near(name, names); near != "" {
		hint = fmt.Sprintf(" Did you mean %s?", schema.Ref{Kind: root, Name: near})
		if where, ok := s.objects[root][near]; ok {
			hint = fmt.Sprintf(" Did you mean %s (%s)?", schema.Ref{Kind: root, Name: near}, schema.Place(where))
		}
	}
	s.diags.Report(code, at, "Unknown "+what, "There is no %s %q.%s", what, name, hint)
}

// Resolve finds a reference that the JSON form writes as a string.
func (s *Scope) Resolve(text string, at hcl.Range) (cty.Value, bool) {
	t, found := hclsyntax.ParseTraversalAbs([]byte(text), at.Filename, at.Start)
	parts := 2
	if t.RootName() == schema.FilterKind {
		parts = 3
	}
	if found.HasErrors() || len(t) != parts || s.objects[t.RootName()] == nil {
		s.diags.Report(diag.NotAReference, at, "Not a reference", "%q is not a reference such as \"cluster.api\".", text)
		return cty.DynamicVal, false
	}
	// The string is quoted in the file, so only its whole range is known.
	name, _ := objectName(t)
	if _, declared := s.objects[t.RootName()][name]; !declared {
		s.unknown(diag.UnknownReference, at, strings.ReplaceAll(t.RootName(), "_", " "), t.RootName(), name, true, s.names[t.RootName()], "")
		return cty.DynamicVal, false
	}
	return cty.CapsuleVal(schema.RefType, &schema.Ref{Kind: t.RootName(), Name: name}), true
}

// objectName returns the name that a traversal goes to, of both its parts where the object has two.
func objectName(t hcl.Traversal) (string, bool) {
	name, ok := second(t)
	if ok && t.RootName() == schema.FilterKind {
		var rest string
		rest, ok = second(t[1:])
		name += "." + rest
	}
	return name, ok
}

// second returns the name after the root: cluster.api and cluster["api"].
func second(t hcl.Traversal) (string, bool) {
	if len(t) < 2 {
		return "", false
	}
	switch step := t[1].(type) {
	case hcl.TraverseAttr:
		return step.Name, true
	case hcl.TraverseIndex:
		if step.Key.Type() == cty.String && step.Key.IsKnown() && !step.Key.IsNull() {
			return step.Key.AsString(), true
		}
	}
	return "", false
}

func keys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}
