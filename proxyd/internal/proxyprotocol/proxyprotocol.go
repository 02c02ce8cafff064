// Package proxyprotocol reads and writes the header that a proxy puts before a connection to tell whose it is: HAProxy's PROXY
// protocol, versions 1 (text) and 2 (binary). Pure.
package proxyprotocol

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strconv"
)

const (
	maxV1 = 107 // with CR LF, as the specification counts
	// maxV2 bounds the addresses and TLVs of version 2.
	maxV2 = 4 << 10
)

// MaxSize is the most bytes of a header.
const MaxSize = 16 + maxV2

var signature = []byte("\r\n\r\n\x00\r\nQUIT\n")

var (
	// ErrAbsent says that the bytes do not begin with a header.
	ErrAbsent = errors.New("no PROXY header")
	// ErrMalformed says that they begin as one and break its rules.
	ErrMalformed = errors.New("malformed PROXY header")
)

// Header is what a proxy says. Source is invalid for a connection of the proxy's own, or of a kind that has no addresses.
type Header struct{ Source, Destination netip.AddrPort }

// Parse reads a header at the front of b and answers its length; 0 when more bytes are needed to tell.
func Parse(b []byte) (h Header, n int, err error) {
	switch {
	case bytes.HasPrefix(b, signature):
		return parseV2(b)
	case bytes.HasPrefix(signature, b):
		return h, 0, nil
	case bytes.HasPrefix(b, []byte("PROXY ")):
		return parseV1(b)
	case bytes.HasPrefix([]byte("PROXY "), b):
		return h, 0, nil
	}
	return h, 0, ErrAbsent
}

func parseV1(b []byte) (h Header, n int, err error) {
	end := bytes.Index(b[:min(len(b), maxV1)], []byte("\r\n"))
	if end < 0 {
		if len(b) >= maxV1 || bytes.IndexByte(b, '\n') >= 0 {
			return h, 0, ErrMalformed
		}
		return h, 0, nil
	}
	n = end + 2
	var fields [6][]byte
	count := 0
	for rest, more := b[:end], true; more; count++ {
		if count == len(fields) {
			if string(fields[1]) == "UNKNOWN" {
				return h, n, nil // whatever follows
			}
			return h, 0, ErrMalformed
		}
		fields[count], rest, more = bytes.Cut(rest, []byte(" "))
	}
	switch {
	case string(fields[1]) == "UNKNOWN":
		return h, n, nil
	case count != 6 || string(fields[1]) != "TCP4" && string(fields[1]) != "TCP6":
		return h, 0, ErrMalformed
	}
	four := string(fields[1]) == "TCP4"
	var ok1, ok2 bool
	h.Source, ok1 = endpoint(fields[2], fields[4], four)
	h.Destination, ok2 = endpoint(fields[3], fields[5], four)
	if !ok1 || !ok2 {
		return Header{}, 0, ErrMalformed
	}
	return h, n, nil
}

func endpoint(address, port []byte, four bool) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(string(address))
	if err != nil || a.Is4() != four || a.Zone() != "" {
		return netip.AddrPort{}, false
	}
	p, err := strconv.ParseUint(string(port), 10, 16)
	if err != nil || len(port) > 1 && port[0] == '0' || port[0] == '+' {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(p)), true
}

func parseV2(b []byte) (h Header, n int, err error) {
	if len(b) < 16 {
		return h, 0, nil
	}
	size := int(binary.BigEndian.Uint16(b[14:]))
	if b[12]>>4 != 2 || b[12]&15 > 1 || size > maxV2 {
		return h, 0, ErrMalformed
	}
	if len(b) < 16+size {
		return h, 0, nil
	}
	n = 16 + size
	if b[12]&15 == 0 { // LOCAL: the proxy's own, a health check
		return h, n, nil
	}
	body := b[16:n]
	width := 0
	switch b[13] {
	case 0x11: // TCP over IPv4
		width = 4
	case 0x21: // TCP over IPv6
		width = 16
	default: // of another kind: taken as it is, without addresses
		return h, n, nil
	}
	if len(body) < 2*width+4 {
		return h, 0, ErrMalformed
	}
	source, _ := netip.AddrFromSlice(body[:width])
	destination, _ := netip.AddrFromSlice(body[width : 2*width])
	h.Source = netip.AddrPortFrom(source.Unmap(), binary.BigEndian.Uint16(body[2*width:]))
	h.Destination = netip.AddrPortFrom(destination.Unmap(), binary.BigEndian.Uint16(body[2*width+2:]))
	return h, n, nil
}

// Append writes a header of version 1 or 2. Without two addresses of TCP it says that there is nothing to tell.
func Append(dst []byte, version int, source, destination netip.AddrPort) []byte {
	known := source.IsValid() && destination.IsValid()
	from, to := source.Addr().Unmap(), destination.Addr().Unmap()
	six := known && (from.Is6() || to.Is6())
	if version == 1 {
		if !known {
			return append(dst, "PROXY UNKNOWN\r\n"...)
		}
		if six {
			from, to = netip.AddrFrom16(from.As16()), netip.AddrFrom16(to.As16())
			dst = append(dst, "PROXY TCP6 "...)
		} else {
			dst = append(dst, "PROXY TCP4 "...)
		}
		dst = append(from.AppendTo(dst), ' ')
		dst = append(to.AppendTo(dst), ' ')
		dst = append(strconv.AppendUint(dst, uint64(source.Port()), 10), ' ')
		return append(strconv.AppendUint(dst, uint64(destination.Port()), 10), '\r', '\n')
	}
	dst = append(dst, signature...)
	switch {
	case !known:
		return append(dst, 0x20, 0x00, 0, 0)
	case six:
		a, b := from.As16(), to.As16()
		dst = append(dst, 0x21, 0x21, 0, 36)
		dst = append(append(dst, a[:]...), b[:]...)
	default:
		a, b := from.As4(), to.As4()
		dst = append(dst, 0x21, 0x11, 0, 12)
		dst = append(append(dst, a[:]...), b[:]...)
	}
	dst = binary.BigEndian.AppendUint16(dst, source.Port())
	return binary.BigEndian.AppendUint16(dst, destination.Port())
}
