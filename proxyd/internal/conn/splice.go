package conn

import (
	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/worker"
)

const (
	// spliceMost is what one splice asks for. Pieces of this size leave as full segments and keep the far writer busy.
	spliceMost = 1 << 20
	// spliceSmall is a move that copying would have done as cheaply; after spliceSmalls of them in a row a splice to the
	// end of the stream gives up.
	spliceSmall  = 16 << 10
	spliceSmalls = 8
)

// Splicer is told what SpliceTo has moved. Calls come from the worker of both connections.
type Splicer interface {
	// OnSpliced tells that n more bytes went from c to the other connection. With done the splice is over: all bytes asked
	// for were moved, or the peer's FIN came (OnEOF follows), or too little comes at a time to be worth it, or the other
	// connection takes no more (OnData follows). A splice that ends because a connection closes says nothing: OnClose does.
	OnSpliced(c *Conn, n int, done bool)
}

// splicing is the state of a direction that is spliced: on the connection that is read.
type splicing struct {
	to    *Conn
	sink  Splicer
	pipe  *worker.Pipe // only while it holds bytes
	left  int64        // -1: until the FIN
	moved int          // not yet told
	few   uint8        // small moves in a row
}

// SpliceTo moves the next n bytes that c receives (all until its FIN when n < 0) to dst, without taking them into user
// memory. It begins when what is staged for dst has left; OnData is not called until it is over. PauseRead holds for a splice
// too. Both connections are of one worker; each takes part in at most one splice a direction, and nothing is written to dst
// meanwhile. Where a pipe cannot be had the bytes are copied: the caller sees no difference.
func (c *Conn) SpliceTo(dst *Conn, n int64, sink Splicer) {
	c.splice = splicing{to: dst, sink: sink, left: n}
	dst.from = c
	c.worker.Soon(&c.task)
}

// Spliceable tells that the connection's bytes are the socket's: SpliceTo is for two such connections.
func (c *Conn) Spliceable() bool { return c.secure == nil }

// Splicing tells that a splice from c is under way.
func (c *Conn) Splicing() bool { return c.splice.to != nil }

// pump moves bytes until the socket is empty, the other one is full, or the turn's budget is used.
func (c *Conn) pump() {
	s := &c.splice
	for budget := readBudget; ; {
		before := s.moved
		if !c.drainPipe() {
			break
		}
		budget -= s.moved - before
		dst := s.to
		if s.left == 0 || c.eof || dst.writeDead || dst.shutAfter || dst.closeAfter {
			c.endSplice()
			return
		}
		if c.pauses > 0 || dst.blocked || dst.connecting || dst.out.Len() > 0 || !c.edge && c.in.Len() == 0 {
			break
		}
		if budget <= 0 {
			c.worker.Soon(&c.task)
			break
		}
		if c.in.Len() > 0 {
			c.spliceKept()
		} else if !c.fill() {
			break
		}
		if s.to == nil {
			return
		}
	}
	if s.to == nil {
		return
	}
	if s.pipe != nil && s.pipe.Held == 0 {
		c.worker.GivePipe(s.pipe)
		s.pipe = nil
	}
	if n := s.moved; n > 0 {
		s.moved = 0
		s.sink.OnSpliced(c, n, false)
	}
}

// fill takes bytes from the socket: into a pipe, or straight to the other connection when there is none. False when there was
// nothing, or the connection failed.
func (c *Conn) fill() bool {
	s := &c.splice
	if s.pipe == nil {
		s.pipe = c.worker.TakePipe()
	}
	want := len(c.worker.Scratch)
	if s.pipe != nil {
		want = min(s.pipe.Size, spliceMost)
	}
	if s.left >= 0 {
		want = int(min(int64(want), s.left))
	}
	var n int
	var errno unix.Errno
	if s.pipe != nil {
		n, errno = c.worker.Poller.Splice(c.fd, s.pipe.Write, want)
	} else {
		n, errno = c.worker.Poller.Read(c.fd, c.worker.Scratch[:want])
	}
	if errno != 0 {
		c.readFailed(errno)
		return false
	}
	if n == 0 {
		c.edge, c.eof = false, true
		c.endSplice()
		if !c.closed {
			c.onEOF()
		}
		return false
	}
	c.read += uint64(n)
	switch {
	case s.left > 0:
		s.left -= int64(n)
	case n >= spliceSmall:
		s.few = 0
	default:
		if s.few++; s.few >= spliceSmalls {
			s.left = 0 // over when these bytes have left
		}
	}
	if s.pipe != nil {
		s.pipe.Held = n
		return true
	}
	if n < want && !c.fin {
		c.edge = false
	}
	s.moved += n
	s.to.Send(c.worker.Scratch[:n])
	return true
}

// drainPipe moves the pipe's bytes into the other socket. False when bytes remain in it, or the splice is over.
func (c *Conn) drainPipe() bool {
	s := &c.splice
	for s.pipe != nil && s.pipe.Held > 0 {
		dst := s.to
		if dst.blocked || dst.connecting {
			return false
		}
		n, errno := c.worker.Poller.Splice(s.pipe.Read, dst.fd, s.pipe.Held)
		switch errno {
		case 0:
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			dst.blocked = true
			return false
		default:
			s.moved += s.pipe.Held // gone, as what is written to a dead connection is
			dst.writeFailed()
			c.endSplice()
			return false
		}
		s.moved += n
		dst.written += uint64(n)
		// A part does not tell that the socket is full: a signal to the thread ends a splice early, and no edge would follow.
		if s.pipe.Held -= n; s.pipe.Held == 0 && dst.out.Len() > 0 {
			dst.stage() // it waited behind the pipe
		}
	}
	return true
}

// spliceKept gives bytes that were read before the splice began to the other connection.
func (c *Conn) spliceKept() {
	s := &c.splice
	n := c.in.Len()
	if s.left >= 0 {
		n = int(min(int64(n), s.left))
		s.left -= int64(n)
	}
	data := c.worker.Scratch[:n]
	c.in.CopyTo(data)
	c.in.Consume(&c.worker.Pool, n)
	s.moved += n
	s.to.Send(data)
}

// endSplice gives the direction back to its handler; ordinary reading goes on in the deferred task.
func (c *Conn) endSplice() {
	sink, moved := c.splice.sink, c.splice.moved
	c.dropSplice()
	c.worker.Soon(&c.task)
	sink.OnSpliced(c, moved, true)
}

// dropSplice takes the splice from c apart without a word. What waits on the other connection may leave now.
func (c *Conn) dropSplice() {
	s := c.splice
	c.splice = splicing{}
	s.to.from = nil
	if s.pipe != nil {
		c.worker.GivePipe(s.pipe)
	}
	if !s.to.closed {
		s.to.stage()
	}
}

// held tells that spliced bytes are on their way into c, ahead of what is staged.
func (c *Conn) held() bool {
	return c.from != nil && c.from.splice.pipe != nil && c.from.splice.pipe.Held > 0
}
