package poller

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NewTCP is the address of an IP and port.
func NewTCP(ip netip.AddrPort) *Address {
	raw := new(unix.RawSockaddrAny)
	address := &Address{Raw: raw, Text: ip.String()}
	if ip.Addr().Is4() {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		in.Family = unix.AF_INET
		in.Addr = ip.Addr().As4()
		setPort(&in.Port, ip.Port())
		address.Family, address.Length = unix.AF_INET, unix.SizeofSockaddrInet4
		return address
	}
	in := (*unix.RawSockaddrInet6)(unsafe.Pointer(raw))
	in.Family = unix.AF_INET6
	in.Addr = ip.Addr().As16()
	setPort(&in.Port, ip.Port())
	if zone, err := strconv.ParseUint(ip.Addr().Zone(), 10, 32); err == nil {
		in.Scope_id = uint32(zone)
	}
	address.Family, address.Length = unix.AF_INET6, unix.SizeofSockaddrInet6
	return address
}

// NewUnix is the address of a Unix socket; path has at most 107 bytes.
func NewUnix(path string) *Address {
	raw := new(unix.RawSockaddrAny)
	un := (*unix.RawSockaddrUnix)(unsafe.Pointer(raw))
	un.Family = unix.AF_UNIX
	for i := range len(path) {
		un.Path[i] = int8(path[i])
	}
	return &Address{Family: unix.AF_UNIX, Length: uint32(2 + len(path) + 1), Raw: raw, Text: "unix:" + path}
}

// IP reads the IP and port of a raw address; invalid for a Unix socket.
func IP(raw *unix.RawSockaddrAny) netip.AddrPort {
	switch raw.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), getPort(&in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(raw))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), getPort(&in.Port))
	}
	return netip.AddrPort{}
}

// Ports are in network byte order in the kernel's structures.
func setPort(field *uint16, port uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(field))[:], port)
}

func getPort(field *uint16) uint16 {
	return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(field))[:])
}
