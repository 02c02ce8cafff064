package schema

import (
	_ "embed"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// edge is the profile "edge", in the language itself.
//
//go:embed edge.hcl
var edge []byte

// Profile is a set of defaults below those of the files.
type Profile struct {
	Defaults, Runtime, Overload *Node
}

// Profile decodes a profile by its name; nil for "". Its text is checked by a test: here it has no faults.
func (d *Decoder) Profile(name string) *Profile {
	if name != "edge" {
		return nil
	}
	const file = "profile edge"
	parsed, _ := hclsyntax.ParseConfig(edge, file, hcl.InitialPos)
	d.Sources[file] = edge
	p := &Profile{}
	for _, raw := range d.Top([]hcl.Body{parsed.Body}) {
		n := d.decode(raw, nil, raw.Block.Name == "defaults")
		switch raw.Block.Name {
		case "defaults":
			p.Defaults = n
		case "runtime":
			p.Runtime = n
		case "overload":
			p.Overload = n
		}
	}
	return p
}

// Over has the node fall back to another one of the same kind, block by block.
func (n *Node) Over(base *Node) {
	n.base = base
	for _, c := range n.Children {
		if b := base.Child(c.Block.Name); b != nil && b.Block.Kind == c.Block.Kind {
			c.Over(b)
		}
	}
}
