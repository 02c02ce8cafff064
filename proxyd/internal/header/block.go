// Package header is a message's fields: spans over the message's own bytes, with well-known names as small integers.
//
// Names are held in lower case, values without surrounding white space. Nothing here allocates once a block has
// grown to what its owner needs. docs/decisions/0003-header-names.md says how names are spelled on the wire.
package header

// Hard bounds of a block, above every configurable limit. An edit beyond them is refused.
const (
	MaxBytes  = 1 << 20
	MaxFields = 4096
)

// What Reset keeps for the next message.
const (
	retainBytes  = 16 << 10
	retainFields = 128
)

// Block is an ordered list of fields over an arena of its own. The zero value is empty and ready. It belongs to one
// stream, and so to one thread.
//
// Slices that it returns stay valid and unchanged, whatever is edited, until Reset, Commit or CopyFrom: edits append to the
// arena and never move or overwrite a byte. Callers do not write to them.
//
// Every field is fit to be sent: Add and Set refuse a name that is not a token and a value with a control
// character other than tab. AddSpan trusts its caller, which is a codec that has looked at every byte.
type Block struct {
	fields []field
	arena  []byte
	known  [2]uint64 // a bit for each ID that is present
	size   int
}

// field is 16 bytes, without pointers. A well-known field has no name bytes.
type field struct {
	name    uint32
	value   uint32
	length  uint32
	nameLen uint16
	id      ID
}

const maxNameLen = 1<<16 - 1

// Reset empties the block and keeps a bounded amount of its memory.
func (b *Block) Reset() {
	if cap(b.arena) > retainBytes {
		b.arena = nil
	}
	if cap(b.fields) > retainFields {
		b.fields = nil
	}
	b.arena = b.arena[:0]
	b.fields = b.fields[:0]
	b.known = [2]uint64{}
	b.size = 0
}

// Len is the number of fields.
func (b *Block) Len() int { return len(b.fields) }

// Bytes is the sum of the lengths of names and values, what limits on header bytes count.
func (b *Block) Bytes() int { return b.size }

// Has tells whether a field of that name is present.
func (b *Block) Has(id ID) bool { return b.known[id>>6]>>(id&63)&1 != 0 }

// Get is the first value of a well-known name, nil when there is none. An empty value is not nil.
func (b *Block) Get(id ID) []byte {
	if !b.Has(id) {
		return nil
	}
	for i := range b.fields {
		if b.fields[i].id == id {
			return b.ValueAt(i)
		}
	}
	return nil
}

// GetName is the first value of a name in any case, nil when there is none.
func (b *Block) GetName(name []byte) []byte {
	if i := b.IndexName(name, 0); i >= 0 {
		return b.ValueAt(i)
	}
	return nil
}

// Index is the position of the first field of a well-known name at or after from, -1 when there is none.
func (b *Block) Index(id ID, from int) int {
	if !b.Has(id) {
		return -1
	}
	for i := from; i < len(b.fields); i++ {
		if b.fields[i].id == id {
			return i
		}
	}
	return -1
}

// IndexName is Index for a name in any case.
func (b *Block) IndexName(name []byte, from int) int {
	if id := Lookup(name); id != Other {
		return b.Index(id, from)
	}
	if !b.Has(Other) {
		return -1
	}
	for i := from; i < len(b.fields); i++ {
		f := &b.fields[i]
		if f.id == Other && int(f.nameLen) == len(name) && equalLower(b.arena[f.name:f.name+uint32(f.nameLen)], name) {
			return i
		}
	}
	return -1
}

// HasName tells whether a field of that name, in any case, is present.
func (b *Block) HasName(name []byte) bool { return b.IndexName(name, 0) >= 0 }

// Count is the number of fields of a well-known name.
func (b *Block) Count(id ID) (n int) {
	if !b.Has(id) {
		return 0
	}
	for i := range b.fields {
		if b.fields[i].id == id {
			n++
		}
	}
	return n
}

// At is the field at position i, 0 <= i < Len. The name is in lower case.
func (b *Block) At(i int) (id ID, name, value []byte) {
	return b.fields[i].id, b.NameAt(i), b.ValueAt(i)
}

// IDAt is the ID of the field at position i.
func (b *Block) IDAt(i int) ID { return b.fields[i].id }

// NameAt is the name of the field at position i, in lower case.
func (b *Block) NameAt(i int) []byte {
	f := &b.fields[i]
	if f.id != Other {
		return lowerNames[f.id]
	}
	end := f.name + uint32(f.nameLen)
	return b.arena[f.name:end:end]
}

// ValueAt is the value of the field at position i.
func (b *Block) ValueAt(i int) []byte {
	f := &b.fields[i]
	end := f.value + f.length
	return b.arena[f.value:end:end]
}

// Add appends a field. The name counts only for Other, in any case; a name that turns out to be well known gets its
// ID. White space around the value is cut off. It is refused, with false, when it could not be sent as it is or when the
// block is full.
func (b *Block) Add(id ID, name, value []byte) bool {
	value = TrimSpace(value)
	if id == Other {
		if id = Lookup(name); id == Other && !ValidName(name) {
			return false
		}
	}
	if !ValidValue(value) {
		return false
	}
	f := field{id: id}
	if id == Other {
		if len(name) > maxNameLen || !b.room(len(name)+len(value)) {
			return false
		}
		f.name, f.nameLen = uint32(len(b.arena)), uint16(len(name))
		b.arena = AppendLower(b.arena, name)
	} else if !b.room(len(value)) {
		return false
	}
	f.value, f.length = b.put(value), uint32(len(value))
	return b.push(f)
}

// AddString is Add for constants.
func (b *Block) AddString(id ID, name, value string) bool {
	return b.Add(id, stringBytes(name), stringBytes(value))
}

// Set makes the field the only one of its name, in the place of the first one or at the end.
func (b *Block) Set(id ID, name, value []byte) bool {
	if id == Other {
		id = Lookup(name)
	}
	var first int
	if id != Other {
		first = b.Index(id, 0)
	} else {
		first = b.IndexName(name, 0)
	}
	if first < 0 {
		return b.Add(id, name, value)
	}
	if !b.SetAt(first, value) {
		return false
	}
	for i := len(b.fields) - 1; i > first; i-- {
		if b.fields[i].id == id && (id != Other || equalLower(b.NameAt(i), name)) {
			b.RemoveAt(i)
		}
	}
	return true
}

// SetString is Set for constants.
func (b *Block) SetString(id ID, name, value string) bool {
	return b.Set(id, stringBytes(name), stringBytes(value))
}

// SetAt replaces the value of the field at position i.
func (b *Block) SetAt(i int, value []byte) bool {
	value = TrimSpace(value)
	if !ValidValue(value) || !b.room(len(value)) {
		return false
	}
	offset := b.put(value)
	f := &b.fields[i]
	b.size += len(value) - int(f.length)
	f.value, f.length = offset, uint32(len(value))
	return true
}

// RemoveAt removes the field at position i; those behind it move one down.
func (b *Block) RemoveAt(i int) {
	f := b.fields[i]
	b.size -= len(b.NameAt(i)) + int(f.length)
	b.fields = append(b.fields[:i], b.fields[i+1:]...)
	for j := range b.fields {
		if b.fields[j].id == f.id {
			return
		}
	}
	b.known[f.id>>6] &^= 1 << (f.id & 63)
}

// RemoveID removes every field of a well-known name and answers how many there were.
func (b *Block) RemoveID(id ID) (n int) {
	if id == Other || !b.Has(id) {
		return 0
	}
	kept := b.fields[:0]
	for _, f := range b.fields {
		if f.id == id {
			n++
			b.size -= len(lowerNames[id]) + int(f.length)
			continue
		}
		kept = append(kept, f)
	}
	b.fields = kept
	b.known[id>>6] &^= 1 << (id & 63)
	return n
}

// RemoveName removes every field of a name in any case and answers how many there were.
func (b *Block) RemoveName(name []byte) (n int) {
	if id := Lookup(name); id != Other {
		return b.RemoveID(id)
	}
	for i := b.IndexName(name, 0); i >= 0; i = b.IndexName(name, i) {
		b.RemoveAt(i)
		n++
	}
	return n
}

// CopyFrom makes the block a copy of another.
func (b *Block) CopyFrom(from *Block) {
	b.arena = append(b.arena[:0], from.arena...)
	b.fields = append(b.fields[:0], from.fields...)
	b.known, b.size = from.known, from.size
}

// put copies bytes into the arena and answers where they are.
func (b *Block) put(p []byte) uint32 {
	if b.arena == nil {
		b.arena = make([]byte, 0, 1024)
	}
	offset := len(b.arena)
	b.arena = append(b.arena, p...)
	return uint32(offset)
}

// room tells whether n more bytes fit.
func (b *Block) room(n int) bool { return n <= MaxBytes-len(b.arena) }

func (b *Block) push(f field) bool {
	if len(b.fields) >= MaxFields {
		return false
	}
	if b.fields == nil {
		b.fields = make([]field, 0, 32)
	}
	b.fields = append(b.fields, f)
	b.known[f.id>>6] |= 1 << (f.id & 63)
	b.size += int(f.length)
	if f.id == Other {
		b.size += int(f.nameLen)
	} else {
		b.size += len(lowerNames[f.id])
	}
	return true
}
