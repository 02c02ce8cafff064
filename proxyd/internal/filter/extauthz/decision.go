package extauthz

import (
	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/callout/message"
	"retinue.dev/proxyd/internal/filter/query"
	"retinue.dev/proxyd/internal/header"
)

// decision is what the service said: what is done to the request, or to the client.
type decision struct {
	allowed bool
	status  int          // of a refusal
	request edits        // of a request that is allowed
	remove  header.Block // names, of the same
	query   []byte       // fields of the answer that edit its query, as they came
	reply   edits        // of its response; all fields of a refusal
	body    []byte       // of a refusal
}

// how is what a field does to others of its name (Envoy's HeaderAppendAction).
type how uint8

const (
	replaces     how = iota // them, or stands alone
	joins                   // them
	fillsIn                 // where there are none
	replacesOnly            // them, where there are any
)

// edits are fields in the order of the service, and what each does.
type edits struct {
	fields header.Block
	how    []how
}

func (e *edits) add(id header.ID, name, value []byte, what how) {
	if e.fields.Add(id, name, value) {
		e.how = append(e.how, what)
	}
}

func (e *edits) reset() {
	e.fields.Reset()
	e.how = e.how[:0]
}

func (e *edits) copyFrom(from *edits) {
	e.fields.CopyFrom(&from.fields)
	e.how = append(e.how[:0], from.how...)
}

func (e *edits) apply(b *header.Block) {
	for i, what := range e.how {
		id, name, value := e.fields.At(i)
		there := b.HasName(name)
		switch {
		case what == joins, what == fillsIn && !there:
			b.Add(id, name, value)
		case what == replaces, what == replacesOnly && there:
			b.Set(id, name, value)
		}
	}
}

func (d *decision) reset() {
	d.allowed, d.status, d.body, d.query = false, 0, d.body[:0], d.query[:0]
	d.remove.Reset()
	d.request.reset()
	d.reply.reset()
}

func (d *decision) copyFrom(from *decision) {
	d.allowed, d.status, d.body = from.allowed, from.status, append(d.body[:0], from.body...)
	d.query = append(d.query[:0], from.query...)
	d.remove.CopyFrom(&from.remove)
	d.request.copyFrom(&from.request)
	d.reply.copyFrom(&from.reply)
}

// edit does to a request what an allowing decision says. scratch is for its path.
func (d *decision) edit(r *header.Request, scratch *[2][]byte) {
	if len(d.query) > 0 {
		d.editQuery(r, scratch)
	}
	for i := range d.remove.Len() {
		if name := d.remove.NameAt(i); message.Editable(name) {
			r.RemoveName(name)
		}
	}
	d.request.apply(&r.Block)
}

// editQuery removes parameters first, as Envoy does. A path that grows too long stays as it was.
func (d *decision) editQuery(r *header.Request, scratch *[2][]byte) {
	from, to := append(scratch[0][:0], r.Path()...), scratch[1]
	for _, field := range [...]protowire.Number{okRemoveParameter, okSetParameter} {
		for list := d.query; len(list) > 0; {
			n, _, value, rest, _ := message.Next(list) // they were read before
			if list = rest; n != field {
				continue
			}
			if n == okRemoveParameter {
				to, _ = query.Without(to[:0], from, value)
			} else if name, text, ok := parameter(value); ok {
				to = query.With(to[:0], from, name, text)
			} else {
				continue
			}
			if from, to = to, from; len(from) > maxPath {
				break
			}
		}
	}
	if len(from) <= maxPath {
		r.SetPath(from)
	}
	scratch[0], scratch[1] = from, to
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
