package conn

import (
	"math"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/poller"
)

// Write stages b, which is borrowed for the call. Large output is sent at once, with what was staged before it.
func (c *Conn) Write(b []byte) { c.write(b, directWrite) }

// Stage is Write for output that more follows in this turn, whatever its size.
func (c *Conn) Stage(b []byte) { c.write(b, math.MaxInt) }

// Send is Write for output that nothing follows in this turn: it leaves at once.
func (c *Conn) Send(b []byte) { c.write(b, 0) }

func (c *Conn) write(b []byte, direct int) {
	if c.closed || c.writeDead || c.shut || c.shutAfter || len(b) == 0 {
		return
	}
	if c.secure != nil {
		c.writeSecure(b, direct)
		return
	}
	if len(b) >= direct && !c.blocked && !c.connecting && !c.held() {
		b = b[c.send(b):]
		if len(b) == 0 || c.writeDead {
			return
		}
	}
	c.out.Append(&c.worker.Pool, b)
	c.stage()
	if !c.above && c.out.Len() > c.high {
		c.above = true
		c.handler.OnAboveHigh(c)
	}
}

// stage asks for a flush at the end of the turn.
func (c *Conn) stage() {
	if !c.dirty {
		c.dirty = true
		c.worker.Dirty(c)
	}
}

// send writes what is staged and then extra, as far as the socket takes it; it returns how many bytes of extra went.
func (c *Conn) send(extra []byte) int {
	for {
		staged := c.out.Len()
		if staged == 0 && len(extra) == 0 {
			return 0
		}
		var n int
		var errno poller.Errno
		want := staged + len(extra)
		switch {
		case staged == 0:
			n, errno = c.worker.Poller.Write(c.fd, extra)
		case len(extra) == 0 && len(c.out.Front()) == staged:
			if c.closeAfter || c.shutAfter {
				n, errno = c.worker.Poller.WriteLast(c.fd, c.out.Front())
			} else {
				n, errno = c.worker.Poller.Write(c.fd, c.out.Front())
			}
		default:
			pieces := c.out.Pieces(c.worker.Pieces[:0], maxPieces)
			if covered := total(pieces); covered < staged {
				want = covered
			} else if len(extra) > 0 {
				pieces = append(pieces, extra)
			}
			n, errno = c.worker.Poller.Writev(c.fd, pieces)
		}
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			c.blocked = true
			return 0
		default:
			c.writeFailed()
			return 0
		}
		c.written += uint64(n)
		of := min(n, staged)
		c.out.Consume(&c.worker.Pool, of)
		if n < want {
			c.blocked = true
			return n - of
		}
		if n > staged || c.out.Len() == 0 {
			return n - of
		}
	}
}

func total(pieces [][]byte) int {
	n := 0
	for _, p := range pieces {
		n += len(p)
	}
	return n
}

// writeFailed keeps the connection for what the peer may have said before it went: an early response and a reset.
func (c *Conn) writeFailed() {
	c.writeDead = true
	c.out.Release(&c.worker.Pool)
	if c.secure != nil {
		c.secure.plain.Release(&c.worker.Pool)
	}
	c.edge, c.fin = true, true
	c.worker.Soon(&c.task)
}

// Push sends what is staged, as far as the socket takes it, and calls nobody: Flush does at the end of the turn.
func (c *Conn) Push() {
	if c.closed || c.connecting || c.held() || c.secure != nil && !c.sealStaged() {
		return
	}
	if !c.blocked && c.out.Len() > 0 {
		c.send(nil)
	}
}

// Flush sends what is staged. The worker calls it once a turn.
func (c *Conn) Flush() {
	sealed := c.secure == nil || c.closed || c.connecting || c.sealStaged()
	c.dirty = false
	if c.closed || c.connecting {
		return
	}
	if c.held() { // its turn comes when the pipe is empty
		if c.closeAfter && !c.timer.Active() {
			c.awaitFlush()
		}
		return
	}
	if !c.blocked && c.out.Len() > 0 {
		c.send(nil)
	}
	if c.above && c.out.Len() < c.low {
		c.above = false
		c.handler.OnBelowLow(c)
		if c.closed {
			return
		}
	}
	if c.out.Len() > 0 || !sealed {
		if c.closeAfter && sealed && !c.timer.Active() {
			c.awaitFlush()
		}
		return
	}
	if c.from != nil {
		c.worker.Soon(&c.from.task)
	}
	if c.closeAfter {
		c.finishClose()
		return
	}
	if c.shutAfter && !c.shut && !c.writeDead {
		c.shut = true
		c.worker.Poller.ShutdownWrite(c.fd)
	}
}
