package conn

import (
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/timer"
)

// CloseWrite sends FIN after what is staged.
func (c *Conn) CloseWrite() {
	if !c.closed && !c.shutAfter {
		c.shutAfter = true
		c.stage()
	}
}

// flushStall is how long a connection that ends waits for a peer that takes nothing of its last bytes. As long as some leave it
// goes on.
const flushStall = int64(30 * time.Second)

// CloseAfterFlush ends the connection when what is staged is sent. With delayed it then sends FIN and throws away what the
// peer still sends, until its FIN or for that long: a reset would take the last bytes from a peer that is still writing.
func (c *Conn) CloseAfterFlush(delayed time.Duration) {
	if c.closed || c.closeAfter {
		return
	}
	c.closeAfter, c.delayed = true, int64(delayed)
	c.stage()
}

func (c *Conn) finishClose() {
	if c.delayed == 0 || c.eof || c.writeDead {
		c.close(LocalClose)
		return
	}
	if c.lingering {
		return
	}
	c.lingering = true
	if !c.shut {
		c.shut = true
		c.worker.Poller.ShutdownWrite(c.fd)
	}
	if c.splice.to != nil {
		c.dropSplice()
	}
	c.in.Release(&c.worker.Pool)
	if c.secure != nil {
		c.secure.wire.Release(&c.worker.Pool)
	}
	c.pauses, c.edge = 0, true
	c.worker.Timers.Set(&c.timer, c.worker.Now()+c.delayed)
	c.worker.Soon(&c.task)
}

// Abort closes with RST, so that the peer cannot take what it has for complete.
func (c *Conn) Abort() {
	if !c.closed {
		if c.fd >= 0 {
			c.worker.Poller.Abort(c.fd)
		}
		c.close(LocalClose)
	}
}

// Close ends the connection now. OnClose is called before it returns.
func (c *Conn) Close() { c.close(LocalClose) }

// OnTimer implements timer.Callback.
func (c *Conn) OnTimer(*timer.Timer, int64) {
	if c.connecting || c.handshaking() {
		c.Errno = unix.ETIMEDOUT
		c.close(ConnectTimeout)
		return
	}
	if c.closeAfter && !c.lingering {
		if c.written == c.flushed {
			c.Abort()
			return
		}
		c.awaitFlush()
		return
	}
	c.close(LocalClose) // lingered long enough
}

// awaitFlush bounds the wait for the last bytes to leave.
func (c *Conn) awaitFlush() {
	c.flushed = c.written
	c.worker.Timers.Set(&c.timer, c.worker.Now()+flushStall)
}

func (c *Conn) close(reason Reason) {
	if c.closed {
		return
	}
	c.closed = true
	c.worker.Timers.Stop(&c.timer)
	if c.splice.to != nil {
		c.dropSplice()
	}
	if c.from != nil {
		source := c.from
		source.dropSplice()
		source.worker.Soon(&source.task)
	}
	c.in.Release(&c.worker.Pool)
	c.out.Release(&c.worker.Pool)
	if c.secure != nil {
		c.secure.wire.Release(&c.worker.Pool)
		c.secure.plain.Release(&c.worker.Pool)
		c.secure.transport.Closed(reason)
	}
	if c.race != nil {
		c.race.end()
	}
	if c.fd >= 0 {
		c.worker.Forget(c.token)
		c.worker.Poller.Close(c.fd)
	}
	c.worker.Bury(c)
	c.handler.OnClose(c, reason)
}
