package hpack

import (
	"retinue.dev/proxyd/internal/header"
)

// A name in a table is a header.ID, or one of these for the pseudo-header fields, which blocks do not hold.
const (
	pseudoAuthority header.ID = 250 + iota
	pseudoMethod
	pseudoPath
	pseudoScheme
	pseudoStatus
	pseudoProtocol
)

const firstPseudo = pseudoAuthority

var pseudoNames = [...]string{":authority", ":method", ":path", ":scheme", ":status", ":protocol"}

func pseudoName(id header.ID) string { return pseudoNames[id-firstPseudo] }

func lookupPseudo(name []byte) (header.ID, bool) {
	for i, s := range pseudoNames {
		if s == string(name) {
			return firstPseudo + header.ID(i), true
		}
	}
	return 0, false
}

// nameLen is the length of a name that has no bytes in the table.
func nameLen(id header.ID) int {
	if id >= firstPseudo {
		return len(pseudoName(id))
	}
	return len(id.Lower())
}

// The static table: RFC 7541 appendix A. Index 15 and above is ID index-14.
const (
	staticLen   = 61
	staticFirst = 14
)

type staticEntry struct {
	id    header.ID
	value []byte
}

var staticTable = func() (t [staticLen + 1]staticEntry) {
	copy(t[1:], []staticEntry{
		{pseudoAuthority, []byte("")},
		{pseudoMethod, []byte("GET")},
		{pseudoMethod, []byte("POST")},
		{pseudoPath, []byte("/")},
		{pseudoPath, []byte("/index.html")},
		{pseudoScheme, []byte("http")},
		{pseudoScheme, []byte("https")},
		{pseudoStatus, []byte("200")},
		{pseudoStatus, []byte("204")},
		{pseudoStatus, []byte("206")},
		{pseudoStatus, []byte("304")},
		{pseudoStatus, []byte("400")},
		{pseudoStatus, []byte("404")},
		{pseudoStatus, []byte("500")},
	})
	for i := staticFirst + 1; i <= staticLen; i++ {
		t[i].id = header.ID(i - staticFirst)
	}
	t[16].value = []byte("gzip, deflate")
	return t
}()

// entryOverhead is what an entry counts above its bytes (RFC 7541 4.1).
const entryOverhead = 32

// table is a dynamic table. Entries lie in a ring and their bytes behind each other in a buffer that is compacted when
// its end is reached, at most once for as many bytes as the table holds: nothing is allocated once both have grown.
type table struct {
	max, size int
	entries   []entry // a power of two
	newest    uint64  // inserted so far; the entry number i, from 1, is at (i-1)&mask
	count     int
	buf       []byte
}

type entry struct {
	offset   uint32
	nameLen  uint32 // of the bytes in buf: 0 for a known name
	valueLen uint32
	id       header.ID
	bad      bool // must not be used in a message: the fault is the message's, not the table's
}

func (t *table) at(back int) *entry {
	return &t.entries[(t.newest-1-uint64(back))&uint64(len(t.entries)-1)]
}

func (t *table) name(e *entry) []byte {
	return t.buf[e.offset : e.offset+e.nameLen]
}

func (t *table) value(e *entry) []byte {
	start := e.offset + e.nameLen
	return t.buf[start : start+e.valueLen]
}

func (e *entry) cost() int {
	n := int(e.nameLen) + int(e.valueLen) + entryOverhead
	if e.id != header.Other {
		n += nameLen(e.id)
	}
	return n
}

// setMax changes the bound and evicts what is above it.
func (t *table) setMax(n int) {
	t.max = n
	t.evict(n)
}

func (t *table) evict(to int) {
	for t.size > to {
		t.size -= t.at(t.count - 1).cost()
		t.count--
	}
	if t.count == 0 {
		t.buf = t.buf[:0]
	}
}

// insert adds an entry; name counts only for header.Other. One that is larger than the table empties it (RFC 7541
// 4.4). name and value may lie in the table itself.
func (t *table) insert(id header.ID, name, value []byte, bad bool) bool {
	e := entry{id: id, valueLen: uint32(len(value)), bad: bad}
	if id == header.Other {
		e.nameLen = uint32(len(name))
	}
	cost := e.cost()
	if cost > t.max {
		t.evict(0)
		return false
	}
	if t.count == len(t.entries) {
		t.growEntries()
	}
	// The bytes are appended before anything is evicted, since they may belong to what will be.
	e.offset = uint32(len(t.buf))
	if id == header.Other {
		t.buf = append(t.buf, name...)
	}
	t.buf = append(t.buf, value...)
	if t.size+cost > t.max {
		t.evict(t.max - cost)
		if t.count == 0 {
			// evict emptied the buffer, whose end is still our bytes.
			n := e.nameLen + e.valueLen
			t.buf = t.buf[:e.offset+n]
		}
	}
	t.entries[t.newest&uint64(len(t.entries)-1)] = e
	t.newest++
	t.count++
	t.size += cost
	if len(t.buf) > 2*t.max {
		t.compact()
	}
	return true
}

func (t *table) growEntries() {
	grown := make([]entry, max(16, 2*len(t.entries)))
	for i := range t.count {
		n := t.newest - 1 - uint64(i)
		grown[n&uint64(len(grown)-1)] = t.entries[n&uint64(len(t.entries)-1)]
	}
	t.entries = grown
}

// compact moves the bytes that live to the front.
func (t *table) compact() {
	oldest := t.at(t.count - 1).offset
	t.buf = t.buf[:copy(t.buf, t.buf[oldest:])]
	for i := range t.count {
		t.at(i).offset -= oldest
	}
}
