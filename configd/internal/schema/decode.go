package schema

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/hashicorp/hcl/v2"
	hcljson "github.com/hashicorp/hcl/v2/json"
	"github.com/zclconf/go-cty/cty"

	"retinue.dev/configd/internal/diag"
)

// Evaluator gives expressions their values; it reports what goes wrong and then returns false.
type Evaluator interface {
	Value(expr hcl.Expression) (cty.Value, bool)
	// Resolve finds a reference that the JSON form writes as a string, "cluster.api".
	Resolve(text string, at hcl.Range) (cty.Value, bool)
}

// Raw is a block whose attributes have not been evaluated: what is needed to collect names first.
type Raw struct {
	Block      *Block
	Label      string
	LabelRange hcl.Range
	DefRange   hcl.Range
	body       hcl.Body
	reserved   bool // see Reserved
}

// Node is a decoded block.
type Node struct {
	*Raw
	Children []*Node
	// Open holds the expressions of a block that takes every name, in source order.
	Open   []*hcl.Attribute
	values map[string]Value
	failed map[string]bool // written, but not readable; reported
	base   *Node           // the same block in `defaults`
}

// Get returns an attribute: as written, from `defaults`, or the table's default. V is nil when there is none.
func (n *Node) Get(name string) Value {
	for at := n; at != nil; at = at.base {
		if v, ok := at.values[name]; ok {
			return v
		}
	}
	a := n.Block.attrs[name]
	if a == nil {
		panic("schema: " + n.Block.Name + " has no attribute " + name) // the compiler asks for what the table lacks
	}
	v := a.value
	v.Range = n.DefRange
	return v
}

// Has tells whether the attribute was written, here or in `defaults`.
func (n *Node) Has(name string) bool { return n.Get(name).Written }

// Str, Int and Bool return an attribute with a default, or its zero value.
func (n *Node) Str(name string) string { s, _ := n.Get(name).V.(string); return s }

// Int returns numbers, durations in milliseconds and sizes in bytes.
func (n *Node) Int(name string) int64 { i, _ := n.Get(name).V.(int64); return i }

// Bool returns a bool attribute.
func (n *Node) Bool(name string) bool { b, _ := n.Get(name).V.(bool); return b }

// List returns the elements of Strings, References and Records.
func (n *Node) List(name string) []Value { l, _ := n.Get(name).V.([]Value); return l }

// Pairs returns a HeaderMap.
func (n *Node) Pairs(name string) []Pair { p, _ := n.Get(name).V.([]Pair); return p }

// Range returns where an attribute's value stands, or the block when it is not written.
func (n *Node) Range(name string) hcl.Range { return n.Get(name).Range }

// Child returns the block of that name or nil; `defaults` provides one that is not written.
func (n *Node) Child(name string) *Node {
	for _, c := range n.Children {
		if c.Block.Name == name {
			return c
		}
	}
	if n.base != nil {
		return n.base.Child(name)
	}
	return nil
}

// All returns the blocks of that name in source order.
func (n *Node) All(name string) []*Node {
	var out []*Node
	for _, c := range n.Children {
		if c.Block.Name == name {
			out = append(out, c)
		}
	}
	return out
}

// Own tells whether the attribute was written in this very block.
func (n *Node) Own(name string) bool { return n.values[name].Written }

// Failed tells whether the attribute was written but could not be read, which has been reported.
func (n *Node) Failed(name string) bool { return n.failed[name] }

// Synthetic returns a block that nobody wrote: all defaults, standing at the given place.
func (d *Decoder) Synthetic(name string, at hcl.Range) *Node {
	n := &Node{Raw: &Raw{Block: find(Root(), name), DefRange: at}}
	if d.Defaults != nil {
		n.base = d.Defaults.Child(name)
	}
	return n
}

// SyntheticKind is Synthetic for a block whose label chooses between kinds.
func (d *Decoder) SyntheticKind(name, kind string, at hcl.Range) *Node {
	return &Node{Raw: &Raw{Block: find(Root(), name).kind(kind), Label: kind, DefRange: at}}
}

func find(b *Block, name string) *Block {
	if n := b.blocks[name]; n != nil {
		return n.Block
	}
	for _, n := range b.Blocks {
		if found := find(n.Block, name); found != nil {
			return found
		}
	}
	return nil
}

// Reserved tells whether the block holds words of a later release or labels that choose nothing: what seems to be missing
// may be there.
func (r *Raw) Reserved() bool { return r.reserved }

// Title is how diagnostics name the block.
func (r *Raw) Title() string {
	switch {
	case r.Label == "":
		return r.Block.Name
	case r.Block.NameLabel != "":
		kind, name, _ := strings.Cut(r.Label, ".")
		return fmt.Sprintf("%s %q %q", r.Block.Name, kind, name)
	}
	return fmt.Sprintf("%s %q", r.Block.Name, r.Label)
}

// bodySchema is the HCL library's form of a block's contents.
type bodySchema = *hcl.BodySchema

func (b *Block) bodySchema() bodySchema {
	s := &hcl.BodySchema{}
	for _, a := range b.Attrs {
		s.Attributes = append(s.Attributes, hcl.AttributeSchema{Name: a.Name})
	}
	for _, n := range b.Blocks {
		h := hcl.BlockHeaderSchema{Type: n.Name}
		switch {
		case n.NameLabel != "":
			h.LabelNames = []string{n.Label, n.NameLabel}
		case n.Label != "":
			h.LabelNames = []string{n.Label}
		case n.Later:
			for i := range n.LaterLabels {
				h.LabelNames = append(h.LabelNames, fmt.Sprintf("label %d", i+1))
			}
		}
		s.Blocks = append(s.Blocks, h)
	}
	return s
}

// Decoder reads bodies by the table.
type Decoder struct {
	Sources map[string][]byte
	Eval    Evaluator
	Diags   *diag.List
	// Defaults is the decoded `defaults` block or nil.
	Defaults *Node
}

// Top returns the blocks of the files in order, names and labels checked, contents untouched.
func (d *Decoder) Top(bodies []hcl.Body) []*Raw {
	root := Root()
	file := &Raw{Block: root}
	var out []*Raw
	for _, body := range bodies {
		_, raws := d.contents(file, body)
		out = append(out, raws...)
	}
	first := map[string]*Raw{}
	for _, r := range out {
		d.once(root.blocks[r.Block.Name], r, first)
	}
	for _, n := range root.Blocks {
		if n.Required && first[n.Name] == nil {
			d.Diags.Report(diag.MissingAttribute, hcl.Range{}, "Missing block", "A configuration needs %s block.", withArticle(n.Name))
		}
	}
	return out
}

func (d *Decoder) once(n *Nested, r *Raw, first map[string]*Raw) {
	prev := first[n.Name]
	if prev == nil {
		first[n.Name] = r
		return
	}
	if !n.Many {
		d.Diags.Report(diag.Repeated, r.DefRange, "Block repeated", "%s may be written once here; the first is on %s.", n.Name, Place(prev.DefRange))
	}
}

// Place writes file:line.
func Place(r hcl.Range) string { return fmt.Sprintf("%s:%d", r.Filename, r.Start.Line) }

// contents splits a body into attributes and blocks and reports what the table does not know or does not allow yet.
func (d *Decoder) contents(in *Raw, body hcl.Body) (hcl.Attributes, []*Raw) {
	b := in.Block
	if b.Open {
		attrs, found := body.JustAttributes()
		d.Diags.FromHCL(diag.UnknownName, found)
		return attrs, nil
	}
	content, found := body.Content(b.hcl)
	for _, f := range found {
		if !d.unknown(b, f) {
			d.Diags.FromHCL(diag.Syntax, hcl.Diagnostics{f})
		}
	}
	if content == nil {
		return nil, nil
	}
	var raws []*Raw
	for _, h := range content.Blocks {
		n := b.blocks[h.Type]
		r := &Raw{Block: n.Block, DefRange: h.DefRange, body: h.Body}
		if n.Later {
			d.Diags.Report(diag.Later, h.TypeRange, "Not in this release", "%s blocks arrive with a later release.", h.Type)
			in.reserved = true
			continue
		}
		if n.Label != "" {
			r.Label, r.LabelRange = h.Labels[0], h.LabelRanges[0]
			if len(n.Kinds) > 0 {
				if r.Block = n.kind(r.Label); r.Block == nil {
					d.unknownKind(n.Block, r)
					in.reserved = true
					continue
				}
				if n.NameLabel != "" {
					if !validName.MatchString(h.Labels[1]) {
						d.Diags.Report(diag.InvalidName, h.LabelRanges[1], "Invalid name", "%s", nameRule)
						continue
					}
					r.Label, r.LabelRange = r.Label+"."+h.Labels[1], h.LabelRanges[1]
				}
			} else if !n.AnyLabel && !validName.MatchString(r.Label) {
				d.Diags.Report(diag.InvalidName, r.LabelRange, "Invalid name", "%s", nameRule)
				continue
			}
		}
		raws = append(raws, r)
	}
	return content.Attributes, raws
}

// unknownKind reports a label that chooses nothing.
func (d *Decoder) unknownKind(b *Block, r *Raw) {
	var known []string
	for _, k := range b.Kinds {
		known = append(known, k.Kind)
	}
	hint := ""
	if near := diag.Near(r.Label, known); near != "" {
		hint = fmt.Sprintf(" Did you mean %q?", near)
	}
	d.Diags.Report(diag.UnknownName, r.LabelRange, "Unknown kind", "There is no %s %q; the kinds are %s.%s", b.Name, r.Label, quoted(known), hint)
}

const nameRule = `A name has 1 to 128 letters, digits, "_", "-" and ".", and begins with a letter, a digit or "_".`

var validName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)

// withArticle is the name of a block with "a" or "an" before it.
func withArticle(name string) string {
	if strings.IndexAny(name, "aeiou") == 0 {
		return "an " + name
	}
	return "a " + name
}

// unknown reports the HCL library's finding about a name in our words, with the table's knowledge.
func (d *Decoder) unknown(b *Block, f *hcl.Diagnostic) bool {
	if f.Subject == nil {
		return false
	}
	var what string
	switch f.Summary {
	case "Unsupported argument":
		what = "attribute"
	case "Unsupported block type":
		what = "block"
	case "Extraneous JSON object property":
		what = "property"
	case "Missing name for " + blockName(f), "Extraneous label for " + blockName(f):
		d.Diags.Report(diag.WrongLabels, *f.Subject, "Wrong labels", "It is written %s.", b.blocks[blockName(f)].written())
		return true
	default:
		if !strings.HasPrefix(f.Summary, "Unexpected \"") {
			return false
		}
		what = "block"
	}
	src := d.Sources[f.Subject.Filename]
	if f.Subject.Start.Byte < 0 || f.Subject.End.Byte > len(src) {
		return false
	}
	name := string(bytes.Trim(src[f.Subject.Start.Byte:f.Subject.End.Byte], `"`))
	if what == "block" { // its range covers the labels too
		name, _, _ = strings.Cut(name, " ")
	}
	where := "A" + withArticle(b.title())[1:] + " block"
	if b.Name == "" {
		where = "A configuration"
	}
	summary := "Unknown " + what
	var detail string
	switch {
	case b.attrs[name] != nil && what == "block":
		summary, detail = "Attribute written as a block", fmt.Sprintf("%s is an attribute: write %s = ….", name, name)
	case Root().blocks["defaults"].blocks[b.Name] != nil && find(Root(), b.Name) != b && (find(Root(), b.Name).attrs[name] != nil || find(Root(), b.Name).blocks[name] != nil):
		detail = fmt.Sprintf("%s has no default: it is written in each %s block.", name, b.Name)
	case b.blocks[name] != nil && what == "attribute":
		summary, detail = "Block written as an attribute", fmt.Sprintf("%s is a block: write %s { … }.", name, name)
	default:
		detail = fmt.Sprintf("%s has no %s %q.", where, what, name)
		if near := diag.Near(name, b.names()); near != "" {
			detail += fmt.Sprintf(" Did you mean %q?", near)
		} else if homes := Root().homes(name); len(homes) > 0 {
			if len(homes) > 4 {
				homes = append(homes[:3], "others")
			}
			detail += fmt.Sprintf(" It belongs in %s.", strings.Join(homes, " or "))
		}
	}
	d.Diags.Report(diag.UnknownName, *f.Subject, summary, "%s", detail)
	return true
}

// blockName finds which block the HCL library's finding about labels is about.
func blockName(f *hcl.Diagnostic) string {
	return f.Summary[strings.LastIndexByte(f.Summary, ' ')+1:]
}

// written shows a block's header.
func (n *Nested) written() string {
	if n.Label == "" {
		return n.Name + " { … }, without a label"
	}
	if n.NameLabel != "" {
		return fmt.Sprintf("%s %q %q { … }, with two labels", n.Name, strings.ToUpper(n.Label), strings.ToUpper(n.NameLabel))
	}
	return fmt.Sprintf("%s %q { … }, with one label", n.Name, strings.ToUpper(n.Label))
}

// Decode evaluates a block and what is inside it.
func (d *Decoder) Decode(r *Raw) *Node {
	var base *Node
	if d.Defaults != nil && r.Block.Name != "defaults" {
		base = d.Defaults.Child(r.Block.Name)
	}
	return d.decode(r, base, r.Block.Name == "defaults")
}

func (d *Decoder) decode(r *Raw, base *Node, inDefaults bool) *Node {
	n := &Node{Raw: r, base: base}
	d.Diags.Within(r.Title(), func() {
		attrs, raws := d.contents(r, r.body)
		if r.Block.Open {
			for _, a := range attrs {
				n.Open = append(n.Open, a)
			}
			slices.SortFunc(n.Open, func(a, b *hcl.Attribute) int { return a.NameRange.Start.Byte - b.NameRange.Start.Byte })
			return
		}
		if len(attrs) > 0 {
			n.values = make(map[string]Value, len(attrs))
		}
		for name, a := range attrs {
			v, ok := d.attribute(r.Block.attrs[name], a)
			if v.Written {
				n.values[name] = v
			}
			if !ok {
				if n.failed == nil {
					n.failed = map[string]bool{}
				}
				n.failed[name] = true
			}
		}
		for i := range r.Block.Attrs {
			a := &r.Block.Attrs[i]
			if a.Required && !inDefaults && !n.failed[a.Name] && !n.Has(a.Name) && !r.reserved {
				d.Diags.Report(diag.MissingAttribute, r.DefRange, "Missing attribute", "%s needs %s = …: %s", r.Title(), a.Name, a.Doc)
			}
		}
		first := map[string]*Raw{}
		for _, c := range raws {
			nested := r.Block.blocks[c.Block.Name]
			d.once(nested, c, first)
			var b *Node
			if base != nil && !nested.Many {
				b = base.Child(c.Block.Name)
			}
			if b == nil && d.Defaults != nil && !inDefaults {
				b = d.Defaults.Child(c.Block.Name)
			}
			if b != nil && b.Block.Kind != c.Block.Kind {
				b = nil
			}
			n.Children = append(n.Children, d.decode(c, b, inDefaults))
		}
		for _, nested := range r.Block.Blocks {
			if nested.Required && !inDefaults && first[nested.Name] == nil {
				d.Diags.Report(diag.MissingAttribute, r.DefRange, "Missing block", "%s needs %s block: %s", r.Title(), withArticle(nested.Name), nested.Doc)
			}
		}
	})
	return n
}

// attribute decodes one written attribute. A null is a value that is not Written. After false it has been reported.
func (d *Decoder) attribute(a *Attr, at *hcl.Attribute) (Value, bool) {
	if a.Later {
		d.Diags.Report(diag.Later, at.NameRange, "Not in this release", "%s arrives with a later release.", a.Name)
		return Value{}, false
	}
	switch a.Kind {
	case Expression:
		return Value{V: at.Expr, Range: at.Expr.Range(), Written: true}, true
	case Strings, References, Records:
		list, ok := d.list(a, at.Expr)
		return Value{V: list, Range: at.Expr.Range(), Written: list != nil}, ok
	case HeaderMap:
		pairs, ok := d.headers(a, at.Expr)
		return Value{V: pairs, Range: at.Expr.Range(), Written: pairs != nil}, ok
	}
	return d.single(a, at.Expr)
}

func (d *Decoder) single(a *Attr, expr hcl.Expression) (Value, bool) {
	v, ok := d.value(a, expr)
	if !ok || v.IsNull() {
		return Value{}, ok
	}
	return d.scalar(a, v, expr.Range())
}

func (d *Decoder) scalar(a *Attr, v cty.Value, at hcl.Range) (Value, bool) {
	x, p := a.scalar(v)
	if p != nil {
		d.Diags.Report(p.code, at, p.summary, "%s", p.detail)
		return Value{}, false
	}
	return Value{V: x, Range: at, Written: true}, true
}

// value evaluates; in the JSON form a string may stand for a reference.
func (d *Decoder) value(a *Attr, expr hcl.Expression) (cty.Value, bool) {
	v, ok := d.Eval.Value(expr)
	if ok && (a.Kind == Reference || a.Kind == References) && !v.IsNull() && v.Type() == cty.String && fromJSON(expr) {
		return d.Eval.Resolve(v.AsString(), expr.Range())
	}
	return v, ok
}

func fromJSON(expr hcl.Expression) bool {
	return hcljson.IsJSONExpression(expr) || strings.HasSuffix(expr.Range().Filename, ".json")
}
