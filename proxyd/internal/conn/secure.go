package conn

import (
	"time"

	"retinue.dev/proxyd/internal/buffer"
	"retinue.dev/proxyd/internal/worker"
)

// Transport stands between the socket and the handler and turns bytes of the wire into bytes of the handler and back: TLS. A
// plain connection has none and pays one comparison for it. All calls come from the connection's worker; a transport answers
// what it has to say to the peer through Conn.Wire, and never calls the handler.
type Transport interface {
	// Begin is called once, when the socket is connected: a client speaks first.
	Begin(c *Conn)
	// Open takes whole units (records) from the front of wire and appends what they hold to plain, within its capacity. It
	// answers how many bytes it took. What it leaves is presented again with more.
	Open(wire, plain []byte) (taken int, opened []byte, progress Progress)
	// Seal passes bytes of the handler to the peer. Only after Ready.
	Seal(b []byte)
	// CloseNotify tells the peer that nothing follows.
	CloseNotify()
	// Closed is the last call: the connection is gone.
	Closed(reason Reason)
	// Protocol is what ALPN agreed on, "" for nothing.
	Protocol() string
}

// Progress says what Open ran into after the bytes that it took.
type Progress uint8

const (
	More   Progress = iota // it needs more bytes, or more room
	Wait                   // it goes on after Conn.Continue
	Ready                  // the handshake is done; told once
	Ended                  // the peer has said that nothing follows
	Failed                 // the peer broke the protocol, or is not who it must be
)

// recordSize is the most plain bytes of one TLS record.
const recordSize = worker.RecordSize

// secure is what a connection with a transport has besides.
type secure struct {
	transport Transport
	wire      buffer.Chain // the beginning of a record
	plain     buffer.Chain // staged for the peer and not yet sealed
	ready     bool         // the handshake is done
	waiting   bool         // until Continue
	ended     bool         // the peer's close_notify was read
	notified  bool         // ours is staged
}

// Secure puts a transport on an accepted connection, before anything was written to it: bytes that the handler has not consumed
// are the transport's. OnConnected tells that the handshake is done. One that takes longer than limit ends the connection with
// ConnectTimeout, one that fails with ConnectFailure.
func (c *Conn) Secure(t Transport, limit time.Duration) {
	c.secure = &secure{transport: t, wire: c.in}
	c.in = buffer.Chain{}
	if limit > 0 {
		c.worker.Timers.Set(&c.timer, c.worker.Now()+int64(limit))
	}
	t.Begin(c)
	c.worker.Soon(&c.task)
}

// Transport is what stands between socket and handler; nil on a plain connection.
func (c *Conn) Transport() Transport {
	if c.secure == nil {
		return nil
	}
	return c.secure.transport
}

// Protocol is what ALPN agreed on: "" for nothing, and on a plain connection.
func (c *Conn) Protocol() string {
	if c.secure == nil {
		return ""
	}
	return c.secure.transport.Protocol()
}

// Continue makes a transport that has said Wait go on in this turn or the next. A transport calls it.
func (c *Conn) Continue() {
	if c.secure.waiting {
		c.secure.waiting = false
		c.worker.Soon(&c.task)
	}
}

// Wire stages sealed bytes. A transport calls it.
func (c *Conn) Wire(b []byte) {
	if c.closed || c.writeDead {
		return
	}
	c.out.Append(&c.worker.Pool, b)
	c.stage()
}

// handshaking tells that a transport is on its way to Ready.
func (c *Conn) handshaking() bool { return c.secure != nil && !c.secure.ready }

// readSecure is readable for a connection with a transport: what is kept of the wire first, then what the socket has.
func (c *Conn) readSecure() {
	s := c.secure
	for budget := readBudget; ; {
		if c.closed || c.eof || s.waiting || c.pauses > 0 && s.ready {
			return
		}
		if s.ended {
			c.edge, c.eof = false, true
			c.onEOF()
			return
		}
		scratch := c.worker.Scratch
		left := s.wire.Len()
		s.wire.CopyTo(scratch)
		n := 0
		if c.edge && left < len(scratch) {
			space := scratch[left:]
			var ok bool
			if n, ok = c.fetch(space); !ok {
				return
			}
			if n < len(space) && !c.fin {
				c.edge = false
			}
		}
		if left+n == 0 {
			return
		}
		if c.lingering {
			if c.discarded += n; c.discarded > lingerBytes {
				c.close(LocalClose)
				return
			}
		} else {
			taken := c.unseal(scratch[:left+n], left)
			if c.closed {
				return
			}
			if taken == 0 && n == 0 && !s.ended {
				return
			}
		}
		if budget -= n; budget <= 0 {
			c.worker.Soon(&c.task)
			return
		}
		if !c.edge && !s.ended {
			return
		}
	}
}

// fetch reads wire bytes; false when there are none, or the connection has ended. A FIN before the peer has said that nothing
// follows cuts its words off: that is a reset, so that nobody takes a part for the whole (RFC 8446 6.1).
func (c *Conn) fetch(space []byte) (int, bool) {
	n, errno := c.worker.Poller.Read(c.fd, space)
	switch {
	case errno != 0:
		if c.readFailed(errno); c.closed || c.edge {
			return 0, false
		}
		return 0, c.secure.wire.Len() > 0
	case n == 0:
		c.edge, c.eof = false, true
		switch {
		case c.lingering:
			c.close(LocalClose)
		case c.handshaking():
			c.close(ConnectFailure)
		default:
			c.close(RemoteReset)
		}
		return 0, false
	}
	c.read += uint64(n)
	return n, true
}

// unseal gives wire bytes, of which the first had are kept already, to the transport and what they hold to the handler, and
// keeps the rest. It answers how many were taken.
func (c *Conn) unseal(wire []byte, had int) int {
	s := c.secure
	taken := 0
	for taken < len(wire) {
		plain := c.worker.Plain
		kept := c.in.Len()
		if kept >= len(plain) {
			break // the handler wants more than one buffer's worth at once: it waits until it consumes
		}
		c.in.CopyTo(plain)
		n, opened, progress := s.transport.Open(wire[taken:], plain[:kept:len(plain)])
		taken += n
		if len(opened) > kept {
			if c.present(opened); c.closed {
				return taken
			}
		}
		switch progress {
		case Ready:
			s.ready = true
			c.worker.Timers.Stop(&c.timer)
			if c.address == nil && taken == len(wire) {
				// Nothing answers the client's last flight, and a client that has not switched Nagle's algorithm off keeps its
				// request back until it is acknowledged, which takes 40 ms when it is left to the kernel.
				c.worker.Poller.QuickAck(c.fd)
			}
			if s.plain.Len() > 0 || c.shutAfter || c.closeAfter {
				c.stage()
			}
			if c.handler.OnConnected(c); c.closed {
				return taken
			}
		case Wait:
			s.waiting = true
		case Ended:
			s.ended = true
			taken = len(wire) // what follows has no meaning
		case Failed:
			c.failSecure()
			return taken
		}
		if s.waiting || s.ready && c.pauses > 0 || n == 0 && progress != Ready {
			break
		}
	}
	if taken == 0 && had > 0 {
		s.wire.Append(&c.worker.Pool, wire[had:])
		return 0
	}
	s.wire.Release(&c.worker.Pool)
	s.wire.Append(&c.worker.Pool, wire[taken:])
	return taken
}

// failSecure ends the connection; the alert that the transport has staged leaves before.
func (c *Conn) failSecure() {
	reason := SecurityFailure
	if c.handshaking() {
		reason = ConnectFailure
	}
	if !c.blocked && !c.writeDead && c.out.Len() > 0 {
		c.send(nil)
	}
	c.close(reason)
}

// writeSecure is write for a connection with a transport. Small output waits for the end of the turn, so that a head and a small
// body share a record.
func (c *Conn) writeSecure(b []byte, direct int) {
	s := c.secure
	if s.ready && len(b) >= direct {
		c.seal(b)
		if !c.blocked && c.out.Len() > 0 {
			c.send(nil)
		}
	} else {
		s.plain.Append(&c.worker.Pool, b)
	}
	c.stage()
	if !c.above && c.Buffered() > c.high {
		c.above = true
		c.handler.OnAboveHigh(c)
	}
}

// seal seals b after what is staged. The end of what is staged and the beginning of b share a record.
func (c *Conn) seal(b []byte) {
	s := c.secure
	for s.plain.Len() >= recordSize {
		c.sealFront()
	}
	if staged := s.plain.Len(); staged > 0 {
		record := c.worker.Record[:recordSize]
		s.plain.CopyTo(record)
		n := copy(record[staged:], b)
		s.plain.Release(&c.worker.Pool)
		s.transport.Seal(record[:staged+n])
		b = b[n:]
	}
	if len(b) > 0 {
		s.transport.Seal(b)
	}
}

func (c *Conn) sealFront() {
	front := c.secure.plain.Front()
	c.secure.transport.Seal(front)
	c.secure.plain.Consume(&c.worker.Pool, len(front))
}

// sealStaged seals what is staged, and the end of it. False while the handshake goes on.
func (c *Conn) sealStaged() bool {
	s := c.secure
	if !s.ready {
		return false
	}
	for s.plain.Len() > 0 && !c.writeDead {
		c.sealFront()
	}
	if (c.shutAfter || c.closeAfter) && !s.notified {
		s.notified = true
		s.transport.CloseNotify()
	}
	return true
}
