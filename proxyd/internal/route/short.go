package route

import (
	"encoding/binary"

	configv1 "retinue.dev/services/api/config/v1"
)

// The routes of a virtual host that has few stand behind each of its domains, so that a look-up reads them with the domain. Where
// there are thousands of hosts this is the half of it, and scanning a few is no slower than a hash.
const (
	maxShort      = 8   // routes
	maxShortBytes = 256 // of their list
)

// The value of a domain's node: the position of its virtual host in four bytes, the number of its routes in one, longHost for one whose
// routes are in indexes, the ordinal of the first in four, and for each a kind in one byte, its guard in two, the length of its path
// in two, and the path.
const (
	longHost  = 0xff
	hostValue = 4 + 1 + 4
	shortHead = 1 + 2 + 2

	shortExact  = 0
	shortPrefix = 1
)

// appendHost appends the value of a domain's node. entries are those of the host, first the ordinal of their first.
func appendHost(dst []byte, position int, entries []Entry, first int) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(position))
	start := len(dst)
	dst = append(dst, byte(len(entries)))
	dst = binary.LittleEndian.AppendUint32(dst, uint32(first))
	for i := range entries {
		e := &entries[i]
		kind := byte(shortExact)
		var path string
		switch m := e.Route.GetMatch().GetPath().(type) {
		case *configv1.RouteMatch_Exact:
			path = m.Exact
		case *configv1.RouteMatch_Prefix:
			kind, path = shortPrefix, m.Prefix
		case *configv1.RouteMatch_Regex:
			kind, path = shortPrefix, literal(m.Regex)
		}
		if e.template || i >= maxShort || len(dst)+shortHead+len(path)-start > maxShortBytes {
			dst[start] = longHost
			return dst[:start+hostValue-4]
		}
		dst = binary.LittleEndian.AppendUint16(append(dst, kind), e.guard())
		dst = binary.LittleEndian.AppendUint16(dst, uint16(len(path)))
		dst = append(dst, path...)
	}
	return dst
}

// short is the ordinal of the first route that matches, of the list behind a domain; -1 when there is none.
func (t *Table) short(value []byte, r *Request, path []byte) int {
	n, first := int(value[4]), binary.LittleEndian.Uint32(value[5:])
	list := value[hostValue:]
	for i := range n {
		kind, guard, length := list[0], binary.LittleEndian.Uint16(list[1:]), int(binary.LittleEndian.Uint16(list[3:]))
		text := list[shortHead : shortHead+length]
		list = list[shortHead+length:]
		if len(path) < length || kind == shortExact && len(path) != length || string(path[:length]) != string(text) {
			continue
		}
		if ordinal := int(first) + i; t.admits(ordinal, guard, r, path) {
			return ordinal
		}
	}
	return -1
}
