package simulated_test

import (
	"net/netip"
	"testing"

	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/pollertest"
	"retinue.dev/proxyd/internal/poller/simulated"
)

func TestConformance(t *testing.T) {
	pollertest.Run(t, func(*testing.T) pollertest.Network { return &network{simulated.New()} })
}

type network struct{ net *simulated.Network }

func (n *network) Poller() poller.Poller { return n.net }

func (n *network) Listen() (int32, func() pollertest.Far) {
	fd, backlog := n.net.Listen()
	return fd, func() pollertest.Far { return backlog.Connect(netip.MustParseAddrPort("192.0.2.1:1")) }
}

func (n *network) Serve() (*poller.Address, func() pollertest.Far) {
	at := poller.NewTCP(netip.MustParseAddrPort("192.0.2.80:80"))
	service := n.net.Serve(at)
	taken := 0
	return at, func() pollertest.Far {
		taken++
		return service.Peers[taken-1]
	}
}

func (n *network) Nobody() *poller.Address {
	return poller.NewTCP(netip.MustParseAddrPort("192.0.2.81:80"))
}
