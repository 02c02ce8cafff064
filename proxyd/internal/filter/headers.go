package filter

import (
	"fmt"
	"strings"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// headerOps edit a head: first remove, then set, then add what is absent, then add.
type headerOps struct {
	remove  []headerOp
	present []headerOp
	set     []headerOp
	absent  []headerOp
	add     []headerOp
}

type headerOp struct {
	id     header.ID
	name   []byte
	value  []byte
	format Formatter // instead of value
}

// framing are the names that codecs write; an edit of one would be lost or do harm.
var framing = map[header.ID]string{
	header.Host: "use host_rewrite", header.ContentLength: "the codec writes it", header.TransferEncoding: "the codec writes it",
	header.Connection: "it belongs to one connection", header.KeepAlive: "it belongs to one connection",
	header.ProxyConnection: "it belongs to one connection", header.Upgrade: "it belongs to one connection",
	header.TE: "it belongs to one connection", header.Trailer: "the codec writes it", header.HTTP2Settings: "it belongs to one connection",
}

func (c *Compiler) ops(list []headerOps, o *configv1.HeaderOps) ([]headerOps, error) {
	if len(o.GetSet())+len(o.GetPresent())+len(o.GetAbsent())+len(o.GetAdd())+len(o.GetRemove()) == 0 {
		return list, nil
	}
	var out headerOps
	for _, name := range o.GetRemove() {
		op, err := c.op(name, "")
		if err != nil {
			return nil, err
		}
		out.remove = append(out.remove, op)
	}
	for _, group := range []struct {
		from []*configv1.Header
		to   *[]headerOp
	}{{o.GetPresent(), &out.present}, {o.GetSet(), &out.set}, {o.GetAbsent(), &out.absent}, {o.GetAdd(), &out.add}} {
		for _, h := range group.from {
			op, err := c.op(h.GetName(), h.GetValue())
			if err != nil {
				return nil, err
			}
			*group.to = append(*group.to, op)
		}
	}
	return append(list, out), nil
}

func namedOp(name string) headerOp {
	return headerOp{id: header.Lookup([]byte(name)), name: []byte(strings.ToLower(name))}
}

func (c *Compiler) op(name, value string) (headerOp, error) {
	op := namedOp(name)
	op.value = []byte(value)
	if why := framing[op.id]; op.id != header.Other && why != "" {
		return op, fmt.Errorf("%s cannot be edited: %s", name, why)
	}
	if !header.ValidName(op.name) {
		return op, fmt.Errorf("%q is not a header name", name)
	}
	if !header.ValidValue(op.value) {
		return op, fmt.Errorf("%s: the value has control characters", name)
	}
	if strings.Contains(value, "%") {
		if c.Format == nil {
			return op, fmt.Errorf("%s: operators are not known here", name)
		}
		format, err := c.Format(value)
		if err != nil {
			return op, fmt.Errorf("%s: %w", name, err)
		}
		op.format = format
	}
	return op, nil
}

// apply edits a head; scratch is the worker's, for formatted values.
func (o *headerOps) apply(b *header.Block, s *stream.Stream, scratch []byte) {
	for i := range o.remove {
		if op := &o.remove[i]; op.id != header.Other {
			b.RemoveID(op.id)
		} else {
			b.RemoveName(op.name)
		}
	}
	for i := range o.present {
		if op := &o.present[i]; op.find(b) >= 0 {
			op.set(b, s, scratch)
		}
	}
	for i := range o.set {
		o.set[i].set(b, s, scratch)
	}
	for i := range o.absent {
		op := &o.absent[i]
		if op.find(b) < 0 {
			op.add(b, s, scratch)
		}
	}
	for i := range o.add {
		o.add[i].add(b, s, scratch)
	}
}

// set leaves the header out where operators come out as nothing (Envoy's keep_empty_value is false), the client's own too: what is
// behind us may trust it. Envoy keeps that one.
func (op *headerOp) set(b *header.Block, s *stream.Stream, scratch []byte) {
	switch text := op.text(s, scratch); {
	case len(text) > 0 || op.format == nil:
		b.Set(op.id, op.name, text)
	case op.id != header.Other:
		b.RemoveID(op.id)
	default:
		b.RemoveName(op.name)
	}
}

// add adds no header whose operators come out as nothing.
func (op *headerOp) add(b *header.Block, s *stream.Stream, scratch []byte) {
	if text := op.text(s, scratch); len(text) > 0 || op.format == nil {
		b.Add(op.id, op.name, text)
	}
}

// find is the index of the first header of that name, -1 for none.
func (op *headerOp) find(b *header.Block) int { return op.findFrom(b, 0) }

func (op *headerOp) findFrom(b *header.Block, from int) int {
	if op.id != header.Other {
		return b.Index(op.id, from)
	}
	return b.IndexName(op.name, from)
}

func (op *headerOp) text(s *stream.Stream, scratch []byte) []byte {
	if op.format != nil {
		return op.format.Append(scratch[:0], s)
	}
	return op.value
}
