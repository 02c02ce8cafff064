package conn

import (
	"errors"
	"fmt"
	"net/netip"

	"retinue.dev/proxyd/internal/parcel"
	"retinue.dev/proxyd/internal/worker"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

// A connection that moves to another process is parked first: it is off the poller and answers every call as if it were
// closed, so that the paths that bytes take need not ask. What the socket does meanwhile stays in the kernel and is found
// when the connection goes on, here or there.

// parked is what a token of a parked connection stands for.
type parked struct{}

// OnEvents implements worker.Source.
func (parked) OnEvents(uint32) {}

// Movable tells whether the connection is in a state that another process could go on with. One that is being made or that
// is ending does that where it is.
func (c *Conn) Movable() bool {
	return c.secure == nil && !c.closed && !c.connecting && !c.closeAfter && !c.lingering && !c.writeDead
}

// Park stops the connection. Only Describe, Unpark and Release may follow.
func (c *Conn) Park() {
	c.worker.Poller.Remove(c.fd)
	c.worker.Replace(c.token, parked{})
	c.closed = true
}

// Describe packs a parked connection.
func (c *Conn) Describe(p *parcel.Parcel) *handoffv1.Transport {
	t := &handoffv1.Transport{
		Fd: p.Descriptor(c.fd), Id: c.id, Pauses: uint32(c.pauses),
		Eof: c.eof, ShutAfter: c.shutAfter, Shut: c.shut, Above: c.above,
		Established: c.established, BytesRead: c.read, BytesWritten: c.written,
	}
	t.Unread = make([]byte, c.in.Len())
	c.in.CopyTo(t.Unread)
	t.Unwritten = make([]byte, c.out.Len())
	c.out.CopyTo(t.Unwritten)
	p.Bytes(len(t.Unread) + len(t.Unwritten))
	if s := &c.splice; s.to != nil {
		t.Splice = &handoffv1.Splice{Left: s.left, Few: uint32(s.few)}
		if s.pipe != nil && s.pipe.Held > 0 {
			t.Splice.Held, t.Splice.Size = uint32(s.pipe.Held), uint32(s.pipe.Size)
			t.Splice.ReadFd, t.Splice.WriteFd = p.Descriptor(s.pipe.Read), p.Descriptor(s.pipe.Write)
		}
	}
	return t
}

// Unpark registers the connection again and goes on. False: it cannot be registered, and its owner must close it.
func (c *Conn) Unpark() bool {
	errno := c.worker.Poller.Add(c.fd, c.token, false)
	c.Resume()
	if errno != 0 {
		c.Errno = errno
	}
	return errno == 0
}

// Resume goes on with an adopted connection. What the poller told meanwhile went nowhere, so the socket is asked.
func (c *Conn) Resume() {
	c.worker.Replace(c.token, c)
	c.closed = false
	c.edge, c.fin, c.blocked = true, true, false
	c.owed = c.in.Len() > 0
	c.stage() // what a flush would have said in the turn that it was parked in: a low watermark, a FIN
	c.worker.Soon(&c.task)
}

// Release closes this process's descriptors of a parked connection, which goes on in another. Nobody is called.
func (c *Conn) Release() {
	if s := &c.splice; s.to != nil {
		if s.pipe != nil {
			c.worker.GivePipe(s.pipe)
		}
		s.to.from = nil
		c.splice = splicing{}
	}
	c.in.Release(&c.worker.Pool)
	c.out.Release(&c.worker.Pool)
	c.worker.Forget(c.token)
	c.worker.Poller.Close(c.fd)
	c.worker.Bury(c)
}

// Adopt makes a connection out of what another process described. It is registered and lies still: Resume or Release
// follows.
func Adopt(w *worker.Worker, p *parcel.Parcel, t *handoffv1.Transport, peer netip.AddrPort, h Handler, o *Options) (*Conn, error) {
	if len(t.GetUnread()) > len(w.Scratch) {
		return nil, fmt.Errorf("%d unread bytes, this worker reads %d at once", len(t.GetUnread()), len(w.Scratch))
	}
	fd, err := p.Take(t.GetFd())
	if err != nil {
		return nil, err
	}
	c := newConn(w, h, o)
	c.fd, c.id, c.peer, c.closed = fd, t.GetId(), peer, true
	token, errno := w.Register(fd, parked{}, false)
	if errno != 0 {
		w.Poller.Close(fd)
		w.Bury(c)
		return nil, fmt.Errorf("epoll: %w", errno)
	}
	c.token = token
	c.pauses = int32(t.GetPauses())
	c.eof, c.shutAfter, c.shut, c.above = t.GetEof(), t.GetShutAfter(), t.GetShut(), t.GetAbove()
	c.established = t.GetEstablished()
	c.read, c.written = t.GetBytesRead(), t.GetBytesWritten()
	c.in.Append(&w.Pool, t.GetUnread())
	c.out.Append(&w.Pool, t.GetUnwritten())
	return c, nil
}

// AdoptSplice restores the splice from one adopted connection to another.
func (c *Conn) AdoptSplice(p *parcel.Parcel, s *handoffv1.Splice, dst *Conn, sink Splicer) error {
	c.splice = splicing{to: dst, sink: sink, left: s.GetLeft(), few: uint8(s.GetFew())}
	dst.from = c
	if s.GetHeld() == 0 {
		return nil
	}
	if s.GetHeld() > s.GetSize() {
		return errors.New("a pipe that holds more than its size")
	}
	read, err := p.Take(s.GetReadFd())
	if err != nil {
		return err
	}
	write, err := p.Take(s.GetWriteFd())
	if err != nil {
		c.worker.Poller.Close(read)
		return err
	}
	c.splice.pipe = c.worker.AdoptPipe(worker.Pipe{Read: read, Write: write, Size: int(s.GetSize()), Held: int(s.GetHeld())})
	return nil
}
