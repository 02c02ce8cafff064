package upstream

import (
	"errors"
	"fmt"
	"net/netip"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/parcel"
	"retinue.dev/proxyd/internal/stream"
	handoffv1 "retinue.dev/services/api/handoff/v1"
)

// Mover is the upstream connection of a tunnel that HTTP made, on its way to another process. The tunnel's owner calls it in
// step with what it does to the client's connection.
type Mover interface {
	stream.RequestEncoder
	// Movable tells whether another process could go on with it.
	Movable() bool
	// Park stops it.
	Park()
	// Describe packs it when it is parked.
	Describe(p *parcel.Parcel, u *handoffv1.Upgraded)
	// Release gives it up without a word to its decoder.
	Release()
	// Unpark goes on where it stood; false: it cannot, and its owner must end the tunnel.
	Unpark() bool
	// Resume goes on with an adopted one.
	Resume()
}

var _ Mover = (*client)(nil)

// Movable implements Mover.
func (c *client) Movable() bool {
	return c.tunnel && c.decoder != nil && c.transport.Movable() && !c.transport.Splicing()
}

// Park implements Mover.
func (c *client) Park() {
	c.transport.Worker().Timers.Stop(&c.timer)
	c.transport.Park()
}

// Describe implements Mover.
func (c *client) Describe(p *parcel.Parcel, u *handoffv1.Upgraded) {
	u.Server = c.transport.Describe(p)
	u.ServerDisabled = uint32(c.pauses)
	u.ServerCountedRead, u.ServerCountedWritten = c.counted, c.sent
	u.ServerBegan, u.ServerServed = c.began, c.served
	u.RequestEnded = c.requestDone
	u.PriorityHigh = c.priority == cluster.High
}

// Release implements Mover.
func (c *client) Release() {
	h := c.host
	h.pool.uncount(counters.ClusterUpstreamRqActive, c.priority)
	h.moved(c.openedFor)
	c.decoder = nil
	w := c.transport.Worker()
	c.transport.Release()
	w.Bury(c)
}

// Unpark implements Mover.
func (c *client) Unpark() bool {
	c.watch()
	return c.transport.Unpark()
}

// Resume implements Mover.
func (c *client) Resume() {
	c.watch()
	c.transport.Resume()
}

// watch arms the idle time-out, which does not pass while the tunnel is open.
func (c *client) watch() {
	if idle := c.host.pool.config.IdleTimeout; idle > 0 {
		w := c.transport.Worker()
		w.Timers.Set(&c.timer, w.Now()+int64(idle))
	}
}

// AdoptTunnelClient makes the upstream connection of a tunnel out of what another process described. It lies still until Resume
// or Release.
func (m *Manager) AdoptTunnelClient(handle cluster.Handle, p *parcel.Parcel, u *handoffv1.Upgraded, decoder stream.ResponseDecoder) (Mover, *cluster.Host, error) {
	if u.GetServer() == nil || u.GetLog() == nil {
		return nil, nil, errors.New("a part is missing")
	}
	h := m.adoptHost(handle, u.GetLog().GetUpstreamHost())
	if h == nil {
		return nil, nil, fmt.Errorf("cluster %q is not in the snapshot", u.GetLog().GetCluster())
	}
	c := m.client()
	c.host, c.decoder, c.timer.Callback = h, decoder, c
	transport, err := conn.Adopt(m.worker, p, u.GetServer(), netip.AddrPort{}, c, h.options())
	if err != nil {
		m.worker.Bury(c)
		return nil, nil, fmt.Errorf("the server: %w", err)
	}
	c.transport = transport
	c.tunnel, c.upgrade, c.headSeen, c.requestDone = true, true, true, u.GetRequestEnded()
	c.pauses = int32(u.GetServerDisabled())
	c.counted, c.sent = u.GetServerCountedRead(), u.GetServerCountedWritten()
	c.began, c.served = u.GetServerBegan(), u.GetServerServed()
	if u.GetPriorityHigh() { // the connection too, whosever it was
		c.priority, c.openedFor = cluster.High, cluster.High
	}
	h.adopted(c.openedFor)
	h.pool.count(counters.ClusterUpstreamRqActive, c.priority)
	return c, h.host, nil
}
