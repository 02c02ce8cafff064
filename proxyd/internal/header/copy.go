package header

import handoffv1 "retinue.dev/services/api/handoff/v1"

// Describe writes the request down for another process.
func (r *Request) Describe() *handoffv1.Head {
	return &handoffv1.Head{
		Method: string(r.Method()), Path: string(r.Path()), Authority: string(r.Authority()), Scheme: string(r.Scheme()),
		Proto: uint32(r.Proto), Fields: r.Block.describe(),
	}
}

// Restore makes the request what another process wrote down. What is not fit for a request is left out.
func (r *Request) Restore(h *handoffv1.Head) {
	r.Reset()
	r.SetMethod([]byte(h.GetMethod()))
	r.SetPath([]byte(h.GetPath()))
	r.SetAuthority([]byte(h.GetAuthority()))
	r.SetScheme([]byte(h.GetScheme()))
	r.Proto = Proto(h.GetProto())
	r.Block.restore(h.GetFields())
}

// Describe writes the response down for another process.
func (r *Response) Describe() *handoffv1.Head {
	return &handoffv1.Head{Status: int32(r.Status), Proto: uint32(r.Proto), Fields: r.Block.describe()}
}

// Restore makes the response what another process wrote down.
func (r *Response) Restore(h *handoffv1.Head) {
	r.Reset()
	r.Status, r.Proto = int(h.GetStatus()), Proto(h.GetProto())
	r.Block.restore(h.GetFields())
}

func (b *Block) describe() []*handoffv1.Field {
	list := make([]*handoffv1.Field, b.Len())
	for i := range list {
		list[i] = &handoffv1.Field{Name: b.NameAt(i), Value: b.ValueAt(i)}
	}
	return list
}

func (b *Block) restore(list []*handoffv1.Field) {
	for _, f := range list {
		b.Add(Lookup(f.GetName()), f.GetName(), f.GetValue())
	}
}
