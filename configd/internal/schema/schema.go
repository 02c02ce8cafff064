// Package schema owns the vocabulary of the configuration language: one table of blocks and attributes from which
// the decoder, the suggestions for unknown names and the reference documentation are made.
package schema

import (
	"fmt"
	"slices"
	"sync"
)

// Kind is the type of an attribute's value.
type Kind int

// The kinds. Durations decode to milliseconds and sizes to bytes, both int64.
const (
	String     Kind = iota
	Bool            // bool
	Int             // int64
	Duration        // int64, milliseconds
	Size            // int64, bytes
	Percent         // int64, millionths of all
	Reference       // Ref
	Strings         // []Value of string
	References      // []Value of Ref
	Records         // []Value of Record
	HeaderMap       // []Pair
	Expression      // hcl.Expression, evaluated by whoever asks for it
)

// Attr is one attribute.
type Attr struct {
	Name string
	Kind Kind
	Doc  string
	// Default is written as in a file: "5s", int 2, true. nil: none.
	Default any
	// DefaultDoc says what happens without a value when Default does not.
	DefaultDoc string
	Required   bool
	// Min and Max bound Int, Duration (milliseconds) and Size (bytes) when Max is not 0. Zero of a duration is always
	// allowed when ZeroOff is set, and means off.
	Min, Max int64
	ZeroOff  bool
	// Choices lists the allowed strings.
	Choices []string
	// Refers is the kind of object of References.
	Refers string
	// Fields are the attributes of one record; with PlainFirst a value stands for a record of one field: the reference
	// that it fits, else the first.
	Fields     []Attr
	PlainFirst bool
	// One takes a single value for a list of one.
	One bool
	// MaxLen bounds strings (bytes) and lists (elements); 0 means 4096 bytes or 10,000 elements.
	MaxLen int
	// Later marks a word that is reserved until a later release can honour it.
	Later bool

	value Value // Default, decoded
}

// Nested is a block inside a block.
type Nested struct {
	*Block
	Many     bool
	Required bool
}

// Block is one block type.
type Block struct {
	Name string
	Doc  string
	// Label names the single label; "" for none. Named objects may be referred to as NAME.LABEL.
	Label, LabelDoc string
	// NameLabel is a second label, for blocks whose first chooses among Kinds: filter "cors" "shop". It names the object, which is
	// referred to as NAME.KIND.LABEL and known everywhere as KIND.LABEL.
	NameLabel string
	// AnyLabel accepts every text, which the compiler then reads (route patterns, host names).
	AnyLabel bool
	Named    bool
	Attrs    []Attr
	Blocks   []Nested
	// Kinds are the blocks that the label chooses between: `discovery "dns"`, `health_check "http"`. Each has the Name and
	// Label of this block, and Kind for the label's value.
	Kinds []*Block
	Kind  string
	// Open takes attributes of every name (locals).
	Open bool
	// Later is that of Attr.
	Later bool
	// LaterLabels is the number of labels of a reserved block.
	LaterLabels int
	Example     string

	attrs  map[string]*Attr
	blocks map[string]*Nested
	hcl    bodySchema
}

// Attr finds an attribute by name.
func (b *Block) Attr(name string) *Attr { return b.attrs[name] }

// Child finds a nested block by name.
func (b *Block) Child(name string) *Nested { return b.blocks[name] }

// Root returns the table: a block that stands for the file. It is built once and never changes.
var Root = sync.OnceValue(func() *Block {
	b := table()
	b.index(make(map[*Block]bool))
	return b
})

func (b *Block) index(seen map[*Block]bool) {
	if seen[b] {
		return
	}
	seen[b] = true
	b.attrs = make(map[string]*Attr, len(b.Attrs))
	b.blocks = make(map[string]*Nested, len(b.Blocks))
	for i := range b.Attrs {
		a := &b.Attrs[i]
		b.attrs[a.Name] = a
		if a.Default == nil {
			continue
		}
		v, err := a.fromDefault()
		if err != nil {
			panic(fmt.Sprintf("schema: default of %s.%s: %v", b.Name, a.Name, err)) // the table is checked by every test
		}
		a.value = v
	}
	for i := range b.Blocks {
		n := &b.Blocks[i]
		b.blocks[n.Name] = n
		n.index(seen)
	}
	for _, k := range b.Kinds {
		k.Name, k.Label, k.NameLabel, k.Named = b.Name, b.Label, b.NameLabel, b.Named
		k.index(seen)
	}
	b.hcl = b.bodySchema()
}

// title names the block, with the label where that says which block it is.
func (b *Block) title() string {
	if b.Kind != "" {
		return fmt.Sprintf("%s %q", b.Name, b.Kind)
	}
	return b.Name
}

// names lists what may be written in the block, attributes first.
func (b *Block) names() []string {
	var out []string
	for _, a := range b.Attrs {
		out = append(out, a.Name)
	}
	for _, n := range b.Blocks {
		out = append(out, n.Name)
	}
	return out
}

// kind finds what a label chooses.
func (b *Block) kind(label string) *Block {
	for _, k := range b.Kinds {
		if k.Kind == label {
			return k
		}
	}
	return nil
}

// homes lists the blocks below b (b included) that know name, each title once.
func (b *Block) homes(name string) []string {
	var out []string
	seen := map[*Block]bool{}
	var visit func(*Block)
	visit = func(c *Block) {
		if seen[c] || c.Name == "defaults" {
			return
		}
		seen[c] = true
		if c.attrs[name] != nil || c.blocks[name] != nil {
			title := "the file itself"
			if c.Name != "" {
				title = c.title()
			}
			if !slices.Contains(out, title) {
				out = append(out, title)
			}
		}
		for _, n := range c.Blocks {
			visit(n.Block)
		}
		for _, k := range c.Kinds {
			visit(k)
		}
	}
	visit(b)
	return out
}
