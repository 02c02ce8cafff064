// Package parcel is what live connections are packed into on their way to another process: their records, the descriptors
// that go along, and, on the giving side, the parked connections themselves. It knows nothing of how it travels.
//
// On a worker of the giver, filters Pack connections that can move. Each is parked: off the poller, in no list of its filter,
// touched by nobody until Release (the other process has it) or Unpark (it stays). On a worker of the taker, filters adopt the
// records: the connections are registered and lie still until Resume, or Release when they are not to be had after all.
package parcel

import (
	"fmt"
	"net/netip"

	handoffv1 "retinue.dev/services/api/handoff/v1"
)

const (
	// MaxFDs is what one message carries (SCM_MAX_FD).
	MaxFDs = 253
	// MaxBytes is the size from which a parcel takes no more connections.
	MaxBytes = 1 << 20
	// perConnection is the most that one connection needs: two sockets and two pipes.
	perConnection = 6
)

// Parked is a connection that lies still.
type Parked interface {
	// Release gives the connection up: this process's descriptors are closed, and it is not counted here any more.
	Release()
	// Unpark goes on with it where it stood. refused tells that it is not to be packed again for the same taker.
	Unpark(refused bool)
	// Resume goes on with a connection that was adopted.
	Resume()
}

// Parcel is a batch of connections of one worker.
type Parcel struct {
	Connections []*handoffv1.Connection
	FDs         []int32  // of the giver; of the taker, -1 when taken
	Parked      []Parked // beside Connections
	bytes       int
}

// Room tells whether another connection may be packed.
func (p *Parcel) Room() bool { return len(p.FDs)+perConnection <= MaxFDs && p.bytes < MaxBytes }

// Add packs a parked connection whose record is complete.
func (p *Parcel) Add(c *handoffv1.Connection, parked Parked) {
	p.Connections = append(p.Connections, c)
	p.Parked = append(p.Parked, parked)
}

// Descriptor packs a descriptor and answers its index.
func (p *Parcel) Descriptor(fd int32) uint32 {
	p.FDs = append(p.FDs, fd)
	return uint32(len(p.FDs) - 1)
}

// Bytes counts bytes that a record carries.
func (p *Parcel) Bytes(n int) { p.bytes += n }

// Take takes a descriptor out: whoever takes it closes it. A record that names one that is not there, or twice, is an error.
func (p *Parcel) Take(index uint32) (int32, error) {
	if int(index) >= len(p.FDs) || p.FDs[index] < 0 {
		return -1, fmt.Errorf("descriptor %d of %d is not in the parcel", index, len(p.FDs))
	}
	fd := p.FDs[index]
	p.FDs[index] = -1
	return fd, nil
}

// Address packs an address; nil for an invalid one.
func Address(a netip.AddrPort) *handoffv1.Address {
	if !a.IsValid() {
		return nil
	}
	return &handoffv1.Address{Ip: a.Addr().AsSlice(), Port: uint32(a.Port()), Zone: a.Addr().Zone()}
}

// AddrPort unpacks an address; invalid for none.
func AddrPort(a *handoffv1.Address) netip.AddrPort {
	ip, ok := netip.AddrFromSlice(a.GetIp())
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ip.WithZone(a.GetZone()), uint16(a.GetPort()))
}
