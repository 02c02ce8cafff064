package extauthz

import (
	"retinue.dev/proxyd/internal/callout/message"
	"retinue.dev/proxyd/internal/header"
)

// decision is what the service said: what is done to the request, or to the client.
type decision struct {
	allowed bool
	status  int          // of a refusal
	set     header.Block // fields of the request that take the place of others of their name
	add     header.Block // fields of the request beside those
	remove  header.Block // names
	reply   header.Block // fields of a refusal, or of the response to a request that is allowed
	body    []byte       // of a refusal
}

func (d *decision) reset() {
	d.allowed, d.status, d.body = false, 0, d.body[:0]
	for _, b := range [...]*header.Block{&d.set, &d.add, &d.remove, &d.reply} {
		b.Reset()
	}
}

func (d *decision) copyFrom(from *decision) {
	d.allowed, d.status, d.body = from.allowed, from.status, append(d.body[:0], from.body...)
	d.set.CopyFrom(&from.set)
	d.add.CopyFrom(&from.add)
	d.remove.CopyFrom(&from.remove)
	d.reply.CopyFrom(&from.reply)
}

// edit does to a request what an allowing decision says.
func (d *decision) edit(r *header.Block) {
	for i := range d.remove.Len() {
		if name := d.remove.NameAt(i); message.Editable(name) {
			r.RemoveName(name)
		}
	}
	for i := range d.set.Len() {
		id, name, value := d.set.At(i)
		r.Set(id, name, value)
	}
	for i := range d.add.Len() {
		id, name, value := d.add.At(i)
		r.Add(id, name, value)
	}
}

// cache keeps decisions of one worker by their inputs: the least recently used goes first.
type cache struct {
	most    int
	entries map[string]*entry
	// The list's ends: newest.newer and oldest.older are nil.
	newest, oldest *entry
}

type entry struct {
	key          string
	until        int64 // ns of the worker's clock
	decision     decision
	newer, older *entry
}

// find is the decision of a key that is not too old.
func (c *cache) find(key []byte, now int64) *decision {
	e := c.entries[string(key)]
	if e == nil {
		return nil
	}
	if now >= e.until {
		c.unlink(e)
		delete(c.entries, e.key)
		return nil
	}
	if e != c.newest {
		c.unlink(e)
		c.link(e)
	}
	return &e.decision
}

// keep copies a decision.
func (c *cache) keep(key []byte, until int64, d *decision) {
	e := c.entries[string(key)]
	switch {
	case e != nil:
		c.unlink(e)
	case len(c.entries) >= c.most: // its memory serves the new one
		e = c.oldest
		c.unlink(e)
		delete(c.entries, e.key)
		e.key = string(key)
		c.entries[e.key] = e
	default:
		if c.entries == nil {
			c.entries = make(map[string]*entry)
		}
		e = &entry{key: string(key)}
		c.entries[e.key] = e
	}
	e.until = until
	e.decision.copyFrom(d)
	c.link(e)
}

func (c *cache) link(e *entry) {
	e.older, e.newer = c.newest, nil
	if c.newest != nil {
		c.newest.newer = e
	}
	if c.newest = e; c.oldest == nil {
		c.oldest = e
	}
}

func (c *cache) unlink(e *entry) {
	if e.newer != nil {
		e.newer.older = e.older
	} else {
		c.newest = e.older
	}
	if e.older != nil {
		e.older.newer = e.newer
	} else {
		c.oldest = e.newer
	}
	e.newer, e.older = nil, nil
}
