package upstream

import (
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/proxyprotocol"
)

// Tunnel is one connection that Dial made, for the counters. It is of the default priority.
type Tunnel struct{ host *host }

// Host is the endpoint.
func (t Tunnel) Host() *cluster.Host {
	if t.host == nil {
		return nil
	}
	return t.host.host
}

func (p *pool) dialTunnel(client *conn.Conn, choice *cluster.Choice, h conn.Handler) (*conn.Conn, Tunnel, Failure) {
	at := p.choose(Avoid{}, choice)
	if at < 0 {
		return nil, Tunnel{}, NoHost
	}
	to := p.hosts[at]
	if p.config.Load(cluster.Default, counters.ClusterUpstreamCxActive) >= p.config.Breakers[cluster.Default].MaxConnections {
		p.count(counters.ClusterUpstreamCxOverflow, cluster.Default)
		return nil, Tunnel{}, Overflow
	}
	to.opened(cluster.Default)
	to.took()
	o := to.options()
	if p.config.Proxy > 0 {
		o.Preface = proxyprotocol.Append(o.Preface[:0], p.config.Proxy, client.Peer(), client.LocalAddress())
	}
	return to.dial(h, o), Tunnel{to}, 0
}

// Connected notes that the host answered; call it from OnConnected.
func (t Tunnel) Connected(c *conn.Conn) { t.host.reached(c) }

// Closed counts the connection out; call it from OnClose.
func (t Tunnel) Closed(c *conn.Conn, reason conn.Reason) {
	h := t.host
	cells := h.pool.cells
	switch reason {
	case conn.ConnectTimeout:
		cells[counters.ClusterUpstreamCxConnectTimeout]++
		cells[counters.ClusterUpstreamCxConnectFail]++
	case conn.ConnectFailure:
		cells[counters.ClusterUpstreamCxConnectFail]++
	}
	cells[counters.ClusterUpstreamCxRxBytesTotal] += c.BytesRead()
	cells[counters.ClusterUpstreamCxTxBytesTotal] += c.BytesWritten()
	h.gave()
	h.closed(cluster.Default)
}

// Moved counts the connection out when another process goes on with it.
func (t Tunnel) Moved() { t.host.moved(cluster.Default) }

func (h *host) moved(p cluster.Priority) {
	h.gave()
	h.connections[p]--
	h.pool.uncount(counters.ClusterUpstreamCxActive, p)
	if h.queued > h.connecting && h.index >= 0 {
		h.relieve()
	}
}

// AdoptTunnel counts in a connection to a host of the cluster that another process had dialled. A host that is not a member
// (any more) gets a place of its own, as one that leaves has.
func (m *Manager) AdoptTunnel(handle cluster.Handle, address string) (Tunnel, bool) {
	h := m.adoptHost(handle, address)
	if h == nil {
		return Tunnel{}, false
	}
	h.adopted(cluster.Default)
	return Tunnel{h}, true
}

func (m *Manager) adoptHost(handle cluster.Handle, address string) *host {
	p := m.pool(handle)
	if p == nil {
		return nil
	}
	for _, h := range p.hosts {
		if h.host.Address == address {
			return h
		}
	}
	h := newHost(p, &cluster.Host{Address: address})
	h.index = -1
	return h
}

func (h *host) adopted(p cluster.Priority) {
	h.took()
	h.connections[p]++
	h.pool.count(counters.ClusterUpstreamCxActive, p)
}
