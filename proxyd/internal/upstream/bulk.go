package upstream

import (
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/stream"
)

// spliceBody lets the rest of the body go straight to the client, if it may; piece is what has just been passed on.
func (c *client) spliceBody(piece int) {
	left := c.body.Remaining()
	if !stream.Bulky(left, piece) || c.decoder == nil || c.pauses > 0 || !c.transport.Spliceable() {
		return
	}
	if bulk, ok := c.decoder.(stream.BulkDecoder); ok {
		if to := bulk.BulkTarget(left); to != nil {
			c.transport.SpliceTo(to, left, c)
		}
	}
}

// OnSpliced implements conn.Splicer.
func (c *client) OnSpliced(_ *conn.Conn, n int, _ bool) {
	if c.decoder == nil {
		return // given up; the transport closes
	}
	c.body.Skip(int64(n))
	c.decoder.(stream.BulkDecoder).OnBulk(n)
	if c.decoder != nil && c.body.Done() {
		c.decoder.DecodeData(nil, true)
		c.finish()
	}
}

// BulkTarget implements stream.BulkEncoder for the request: a body with a length is the socket's own bytes.
func (c *client) BulkTarget(int64) *conn.Conn {
	if c.decoder == nil || c.requestDone || c.chunked || c.upgrade || !c.transport.Spliceable() {
		return nil
	}
	return c.transport
}

// OnBulk implements stream.BulkEncoder: the request's codec counts what is left.
func (c *client) OnBulk(int) {}
