package buffer

// Chain is a queue of bytes in blocks. The zero value is empty and owns nothing.
type Chain struct {
	first, last *block
	length      int
}

// Len is the bytes in the chain.
func (c *Chain) Len() int { return c.length }

// Append copies b to the end.
func (c *Chain) Append(p *Pool, b []byte) {
	c.length += len(b)
	for len(b) > 0 {
		if c.last == nil || c.last.to == BlockSize {
			next := p.get()
			if c.last == nil {
				c.first = next
			} else {
				c.last.next = next
			}
			c.last = next
		}
		n := copy(c.last.bytes[c.last.to:], b)
		c.last.to += n
		b = b[n:]
	}
}

// Front is the first contiguous bytes; nil when the chain is empty. Valid until the next call.
func (c *Chain) Front() []byte {
	if c.first == nil {
		return nil
	}
	return c.first.bytes[c.first.from:c.first.to]
}

// From is the contiguous bytes that begin at offset, nil at the end. Valid until the chain changes.
func (c *Chain) From(offset int) []byte {
	for b := c.first; b != nil; b = b.next {
		if n := b.to - b.from; offset >= n {
			offset -= n
			continue
		}
		return b.bytes[b.from+offset : b.to]
	}
	return nil
}

// Pieces appends the chain's contiguous pieces to into, at most most of them, without copying.
func (c *Chain) Pieces(into [][]byte, most int) [][]byte {
	for b := c.first; b != nil && most > 0; b, most = b.next, most-1 {
		into = append(into, b.bytes[b.from:b.to])
	}
	return into
}

// Consume drops n bytes from the front; n is at most Len.
func (c *Chain) Consume(p *Pool, n int) {
	c.length -= n
	for n > 0 {
		b := c.first
		if have := b.to - b.from; n < have {
			b.from += n
			return
		} else {
			n -= have
		}
		c.first = b.next
		if c.first == nil {
			c.last = nil
		}
		p.put(b)
	}
	if c.length == 0 && c.first != nil { // nothing but an empty block
		c.Release(p)
	}
}

// CopyTo copies the front of the chain into b, without consuming, and returns how many bytes it copied.
func (c *Chain) CopyTo(b []byte) int {
	n := 0
	for at := c.first; at != nil && n < len(b); at = at.next {
		n += copy(b[n:], at.bytes[at.from:at.to])
	}
	return n
}

// Release drops everything.
func (c *Chain) Release(p *Pool) {
	for b := c.first; b != nil; {
		next := b.next
		p.put(b)
		b = next
	}
	c.first, c.last, c.length = nil, nil, 0
}
