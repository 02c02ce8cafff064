package hcm

import (
	"errors"
	"fmt"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/http1"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/parcel"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

// A plaintext HTTP/1 connection moves to another process between two requests, or when an upgrade has made it a tunnel. While a
// filter hands over, a connection whose response is done is held: nothing more is read, so that it is between two requests until
// it is packed, however eager its client. One that cannot move is never held: nobody would come for it.

// HandOver begins to hold connections as they become idle, and calls more (once a connection, on the worker) when there is
// one to pack. Held connections do not close by a drain. nil ends it: what is held goes on here.
func (f *Filter) HandOver(more func()) {
	f.more = more
	for c := f.connections; c != nil; c = c.next {
		c.refused = false
		if more == nil {
			c.letGo()
		}
	}
}

// hold stops a connection that has become idle until it is packed.
func (c *connection) hold() {
	if c.filter.more != nil && !c.held && c.movable() {
		c.held = true
		c.conn.PauseRead()
		c.filter.more()
	}
}

func (c *connection) letGo() {
	if c.held {
		c.held = false
		c.conn.ResumeRead()
	}
}

// Pack parks connections and packs them, as many as the parcel has room for.
func (f *Filter) Pack(p *parcel.Parcel) {
	for c := f.connections; c != nil && p.Room(); {
		next := c.next
		if c.movable() {
			c.pack(p)
		}
		c = next
	}
}

// movable tells that no request is under way (of the next one there may be some bytes), or that the connection is a tunnel.
func (c *connection) movable() bool {
	h := &c.h1
	if c.refused || c.codec != h || c.closing || !c.conn.Movable() || c.conn.Splicing() {
		return false
	}
	if h.phase == phaseTunnel {
		return h.x.stream.Movable() && h.x.router.Mover() != nil
	}
	return c.idleSince > 0 && h.phase == phaseHead && !h.eof && !c.expired
}

func (c *connection) pack(p *parcel.Parcel) {
	h := &c.h1
	c.unlink()
	c.filter.Worker.Timers.Stop(&c.timer)
	c.armed = 0
	record := &handoffv1.Http1{
		Requests: c.requests, CountedRead: c.read, CountedWritten: c.written, Decided: c.decided,
		IdleSince: c.idleSince, HeadersDeadline: h.headers, Peer: parcel.Address(c.conn.Peer()),
	}
	if h.phase == phaseTunnel {
		record.Upgraded = h.packTunnel(p)
	} else {
		c.letGo()
		h.unpause()
		h.release() // a head that has begun is read again from its first byte
		c.conn.Park()
	}
	record.Client = c.conn.Describe(p)
	p.Add(&handoffv1.Connection{Kind: &handoffv1.Connection_Http1{Http1: record}}, c)
}

func (h *h1) packTunnel(p *parcel.Parcel) *handoffv1.Upgraded {
	u := &handoffv1.Upgraded{ClientDisabled: uint32(h.disabled)}
	h.server = h.x.router.Mover()
	h.conn.Park()
	h.server.Park()
	h.server.Describe(p, u)
	h.x.stream.Describe(p, u)
	h.x.router.Describe(u)
	return u
}

// Release implements parcel.Parked.
func (c *connection) Release() {
	if h := &c.h1; h.server != nil {
		h.server.Release()
		h.x.stream.Release()
		h.release()
		c.filter.active--
		c.cells[counters.HTTPDownstreamCxUpgradesActive]--
	}
	c.conn.Release()
	c.filter.open--
	c.cells[counters.HTTPDownstreamCxActive]--
	c.listener.Gone()
	c.filter.Worker.Bury(c)
}

// Unpark implements parcel.Parked.
func (c *connection) Unpark(refused bool) {
	c.refused = refused
	c.link()
	well := c.conn.Unpark()
	if server := c.h1.server; server != nil {
		c.h1.server = nil
		well = server.Unpark() && well
	}
	if !well {
		c.conn.Close()
		return
	}
	c.rearm()
}

// Resume implements parcel.Parked.
func (c *connection) Resume() {
	c.link()
	c.conn.Resume()
	if server := c.h1.server; server != nil {
		c.h1.server = nil
		server.Resume()
	}
	c.rearm()
}

// Adopt makes a connection out of what another process packed.
func (f *Filter) Adopt(p *parcel.Parcel, t *handoffv1.Http1, l *listener.Listener, handle func(string) (cluster.Handle, bool)) (parcel.Parked, error) {
	if t.GetClient() == nil {
		return nil, errors.New("a part is missing")
	}
	c := f.Shared.connection()
	c.filter, c.listener, c.cells, c.decided = f, l, f.Config.Cells[f.Worker.ID], t.GetDecided()
	c.timer.Callback = c
	c.codec = &c.h1
	c.h1.connection = c
	c.requests, c.read, c.written = t.GetRequests(), t.GetCountedRead(), t.GetCountedWritten()
	c.idleSince = t.GetIdleSince()
	c.h1.headers = t.GetHeadersDeadline()
	transport, err := conn.Adopt(f.Worker, p, t.GetClient(), parcel.AddrPort(t.GetPeer()), c, &l.Options)
	if err != nil {
		f.Worker.Bury(c)
		return nil, err
	}
	c.conn = transport
	c.h1.above = t.GetClient().GetAbove()
	if u := t.GetUpgraded(); u != nil {
		if err := c.h1.adoptTunnel(p, u, handle); err != nil {
			transport.Release()
			f.Worker.Bury(c)
			return nil, err
		}
	}
	f.open++
	c.cells[counters.HTTPDownstreamCxActive]++
	l.Adopted()
	return c, nil
}

func (h *h1) adoptTunnel(p *parcel.Parcel, u *handoffv1.Upgraded, handle func(string) (cluster.Handle, bool)) error {
	name := u.GetLog().GetCluster()
	cluster, ok := handle(name)
	if !ok {
		return fmt.Errorf("cluster %q is not in the snapshot", name)
	}
	f := h.filter
	x := f.Shared.take()
	x.stream.Adopt(f.Worker, &f.Config.Config, h, &x.router, p, u, h.conn.ID())
	server, err := x.router.Adopt(&x.stream, f.Shared.router, f.Config.Routes, cluster, p, u)
	if err != nil {
		x.stream.Release()
		f.Shared.give(x)
		return err
	}
	h.x, h.server = x, server
	h.phase, h.framing, h.headSent = phaseTunnel, http1.Tunnel, true
	h.disabled, h.eof = int32(u.GetClientDisabled()), u.GetClientEnded()
	f.active++
	h.cells[counters.HTTPDownstreamCxUpgradesActive]++
	return nil
}
