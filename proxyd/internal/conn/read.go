package conn

import (
	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/poller"
)

// readable reads until the socket is empty, the handler pauses, or the turn's budget is used.
func (c *Conn) readable() {
	if c.splice.to != nil {
		c.pump()
		return
	}
	if c.owed {
		return // an end that is read now would overtake it
	}
	if c.secure != nil {
		c.readSecure()
		return
	}
	if c.pauses > 0 || c.eof || c.closed {
		return
	}
	budget := readBudget
	for c.edge {
		scratch := c.worker.Scratch
		left := c.in.Len()
		if left >= len(scratch) {
			return // the handler wants more than one buffer's worth at once: it waits until it consumes
		}
		space := scratch[left:]
		n, errno := c.worker.Poller.Read(c.fd, space)
		if errno != 0 {
			c.readFailed(errno)
			return
		}
		if n == 0 {
			c.edge, c.eof = false, true
			c.onEOF()
			return
		}
		c.read += uint64(n)
		if n < len(space) && !c.fin {
			c.edge = false
		}
		if left > 0 {
			c.in.CopyTo(scratch)
		}
		if c.present(scratch[:left+n]); c.closed || c.pauses > 0 || c.splice.to != nil {
			return
		}
		if budget -= n; budget <= 0 {
			c.worker.Soon(&c.task)
			return
		}
	}
}

// present gives bytes to the handler and keeps what it leaves.
func (c *Conn) present(data []byte) {
	if c.lingering {
		if c.discarded += len(data); c.discarded > lingerBytes {
			c.close(LocalClose)
		}
		return
	}
	had := c.in.Len()
	consumed := c.handler.OnData(c, data)
	if c.closed {
		return
	}
	if consumed == 0 && had > 0 {
		c.in.Append(&c.worker.Pool, data[had:])
		return
	}
	if had > 0 {
		c.in.Release(&c.worker.Pool)
	}
	if consumed < len(data) {
		c.in.Append(&c.worker.Pool, data[consumed:])
	}
}

func (c *Conn) onEOF() {
	if c.lingering {
		c.close(LocalClose)
		return
	}
	c.handler.OnEOF(c)
}

func (c *Conn) readFailed(errno poller.Errno) {
	switch errno {
	case unix.EAGAIN:
		c.edge = false
		if c.writeDead {
			c.close(RemoteReset)
		} else {
			c.fin = false // it was only feared
		}
	case unix.EINTR:
		c.worker.Soon(&c.task)
	case unix.ECONNRESET, unix.EPIPE:
		c.close(RemoteReset)
	default:
		c.Errno = errno
		c.close(LocalError)
	}
}

// PauseRead stops OnData until as many ResumeRead calls came. Bytes stay in the kernel.
func (c *Conn) PauseRead() { c.pauses++ }

// ResumeRead takes one PauseRead back.
func (c *Conn) ResumeRead() {
	if c.pauses--; c.pauses == 0 && !c.closed && (c.edge || c.in.Len() > 0 || c.secure != nil) {
		c.owed = c.in.Len() > 0
		c.worker.Soon(&c.task)
	}
}

// RunTask implements worker.Runner: it goes on where reading stopped.
func (c *Conn) RunTask() {
	switch {
	case c.closed:
	case c.connecting:
		if c.fd < 0 && c.race == nil { // the dial failed at once
			c.close(ConnectFailure)
		}
	case c.writeDead && c.pauses > 0:
		c.close(RemoteReset)
	case c.splice.to != nil:
		c.pump()
	case c.pauses > 0 && !c.handshaking():
	default:
		c.owed = false
		if left := c.in.Len(); left > 0 {
			c.in.CopyTo(c.worker.Scratch)
			c.represent(c.worker.Scratch[:left])
		}
		if !c.closed {
			c.readable()
		}
		if c.writeDead && !c.closed && (!c.edge || c.eof) {
			c.close(RemoteReset)
		}
	}
}

// represent presents kept bytes again without new ones.
func (c *Conn) represent(data []byte) {
	if c.lingering {
		c.in.Release(&c.worker.Pool)
		return
	}
	if consumed := c.handler.OnData(c, data); !c.closed && consumed > 0 {
		c.in.Consume(&c.worker.Pool, consumed)
	}
}
