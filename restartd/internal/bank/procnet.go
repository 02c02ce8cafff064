package bank

import (
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"strconv"
	"strings"
)

// parseProcAddress reads "0100007F:1F90" of /proc/net/tcp and the 32-digit form of tcp6: words of 32 bits in the
// machine's byte order, then the port.
func parseProcAddress(s string) (parsed, bool) {
	host, port, ok := strings.Cut(s, ":")
	if !ok {
		return parsed{}, false
	}
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil {
		return parsed{}, false
	}
	raw, err := hex.DecodeString(host)
	if err != nil || (len(raw) != 4 && len(raw) != 16) {
		return parsed{}, false
	}
	for i := 0; i < len(raw); i += 4 {
		binary.NativeEndian.PutUint32(raw[i:], binary.BigEndian.Uint32(raw[i:]))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return parsed{ip: netip.AddrPortFrom(addr, uint16(n))}, true
}
