package compile

import (
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// runtime compiles the block, and the one about overload, which may be nil.
func (c *compiler) runtime(n, overload *schema.Node) {
	r := &configv1.Runtime{
		Workers: uint32(n.Int("workers")), MaxConnections: uint32(n.Int("max_connections")),
		ShutdownTimeMs: n.Int("shutdown_time"), DrainTimeMs: n.Int("drain_time"), ProbationMs: n.Int("probation"),
	}
	seen := map[string]*schema.Node{}
	for _, d := range n.All("drain") {
		if first := seen[d.Label]; first != nil {
			c.diags.Report(diag.DuplicateName, d.DefRange, "Duplicate drain", "How connections leave for %q is written already by %s.", d.Label, schema.Place(first.DefRange))
			continue
		}
		seen[d.Label] = d
		switch d.Label {
		case "upgrade":
			r.DrainUpgrade = c.drain(d, r, r.ShutdownTimeMs)
		case "listener":
			r.DrainListener = c.drain(d, r, r.DrainTimeMs)
		case "shutdown":
			r.DrainShutdown = c.drain(d, r, 5000)
		}
	}
	if overload != nil {
		c.within(overload, func() { r.Overload = c.overload(overload) })
	}
	c.out.Add(&configv1.Object{Kind: "runtime", Body: &configv1.Object_Runtime{Runtime: r}}, c.place(n.DefRange))
	c.mark("runtime", "", n)
}

// drain is one cause's policy; cut is when what is left is cut unless it says so itself.
func (c *compiler) drain(n *schema.Node, r *configv1.Runtime, cut int64) *configv1.DrainPolicy {
	d := &configv1.DrainPolicy{Immediate: n.Str("strategy") == "immediate", DrainTimeMs: r.DrainTimeMs, ShutdownTimeMs: cut}
	if n.Own("drain_time") {
		d.DrainTimeMs = n.Int("drain_time")
		if v := n.Get("drain_time"); d.Immediate && v.V != nil {
			c.diags.Report(diag.InvalidValue, v.Range, "No gradual drain", "A drain that is immediate takes no time: write strategy = \"gradual\", or leave drain_time out.")
		}
	}
	if n.Own("shutdown_time") {
		d.ShutdownTimeMs = n.Int("shutdown_time")
	}
	return d
}

// mark notes the place of every attribute that is written.
func (c *compiler) mark(kind, name string, n *schema.Node) {
	for _, a := range n.Block.Attrs {
		if n.Own(a.Name) {
			c.out.Mark(kind, name, a.Name, c.place(n.Range(a.Name)))
		}
	}
}

// markBlocks notes the place of the blocks inside one, of those in `defaults` too.
func (c *compiler) markBlocks(kind, name string, n *schema.Node) {
	for _, nested := range n.Block.Blocks {
		if b := n.Child(nested.Block.Name); b != nil {
			c.out.Mark(kind, name, nested.Block.Name, c.place(b.DefRange))
		}
	}
}
