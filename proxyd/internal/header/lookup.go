package header

import (
	"encoding/binary"
	"math/bits"
)

// A name is recognised by its length and up to five lower-cased words: the first and the last eight bytes, which
// overlap below sixteen, and those between. Comparing words costs less than hashing bytes, and the hash of the
// two outer words is perfect over the well-known names (a test holds it).
type nameKey struct {
	first, last, second, third, fourth uint64
	length                             uint8
}

const (
	maxKnownName = 40
	slotBits     = 9
	slotFactor   = 0x7f825da6eb5da127 // found by search; TestLookupIsPerfect tells when a new name needs another
)

// Lookup recognises a well-known name in any case. It answers Other for all else, malformed names included.
func Lookup(name []byte) ID {
	n := len(name)
	if n < 2 || n > maxKnownName {
		return Other
	}
	var first, last uint64
	switch {
	case n >= 8:
		first = lower8(binary.LittleEndian.Uint64(name))
		last = lower8(binary.LittleEndian.Uint64(name[n-8:]))
	case n >= 4:
		first = lower8(uint64(binary.LittleEndian.Uint32(name)) | uint64(binary.LittleEndian.Uint32(name[n-4:]))<<32)
	default:
		first = lower8(uint64(name[0]) | uint64(name[n>>1])<<8 | uint64(name[n-1])<<16)
	}
	id := lookupTable[slot(first, last, n)]
	key := &nameKeys[id]
	if key.first != first || key.last != last || int(key.length) != n {
		return Other
	}
	if n > 16 {
		if key.second != lower8(binary.LittleEndian.Uint64(name[8:])) {
			return Other
		}
		if n > 24 && key.third != lower8(binary.LittleEndian.Uint64(name[16:])) {
			return Other
		}
		if n > 32 && key.fourth != lower8(binary.LittleEndian.Uint64(name[24:])) {
			return Other
		}
	}
	return id
}

func slot(first, last uint64, n int) uint64 {
	return (first ^ bits.RotateLeft64(last, 23) ^ uint64(n)) * slotFactor >> (64 - slotBits)
}

// lower8 lower-cases the letters A to Z of eight bytes and leaves every other byte alone.
func lower8(x uint64) uint64 {
	const ones = 0x0101010101010101
	low7 := x & (0x7f * ones)
	fromA := low7 + (0x80-'A')*ones
	pastZ := low7 + (0x7f-'Z')*ones
	return x | (fromA&^pastZ&^x&(0x80*ones))>>2
}

func keys() (t [NumIDs]nameKey) {
	for id := Other + 1; id < NumIDs; id++ {
		name := lowerNames[id]
		n := len(name)
		k := &t[id]
		k.length = uint8(n)
		switch {
		case n >= 8:
			k.first = binary.LittleEndian.Uint64(name)
			k.last = binary.LittleEndian.Uint64(name[n-8:])
		case n >= 4:
			k.first = uint64(binary.LittleEndian.Uint32(name)) | uint64(binary.LittleEndian.Uint32(name[n-4:]))<<32
		default:
			k.first = uint64(name[0]) | uint64(name[n>>1])<<8 | uint64(name[n-1])<<16
		}
		if n > 16 {
			k.second = binary.LittleEndian.Uint64(name[8:])
		}
		if n > 24 {
			k.third = binary.LittleEndian.Uint64(name[16:])
		}
		if n > 32 {
			k.fourth = binary.LittleEndian.Uint64(name[24:])
		}
	}
	return t
}

func slots() (t [1 << slotBits]ID) {
	for id := Other + 1; id < NumIDs; id++ {
		k := &nameKeys[id]
		t[slot(k.first, k.last, int(k.length))] = id
	}
	return t
}
