package upstream

import (
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
)

// linkOf is what logs are told of a connection to a host.
func linkOf(c *conn.Conn, protocol string) stream.Link {
	l := stream.Link{Connection: c.ID(), Local: c.LocalAddress(), Protocol: protocol}
	if a := c.Address(); a != nil {
		l.Remote = poller.IP(a.Raw)
	}
	if t, _ := c.Transport().(*tlstransport.Transport); t != nil {
		l.Version, l.Cipher = t.Version()
	}
	return l
}

// Link implements stream.Linked.
func (c *client) Link() stream.Link { return linkOf(c.transport, "HTTP/1.1") }

// Link implements stream.Linked.
func (r *request) Link() stream.Link { return linkOf(r.session.transport, "HTTP/2") }
