package route

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"maps"
	"slices"
)

// store holds the indexes of a table. With thousands of hosts it is cache misses that a look-up costs, so a key costs two lines of
// memory: that of its slot, and that of its node, where everything that is needed next lies behind the key.
type store struct {
	seed  maphash.Seed
	slots []slot
	nodes []byte
}

// slot is a key of an index; eight to a cache line.
type slot struct {
	hash uint32 // 0: nobody is here
	node uint32 // where in nodes
}

// line is what comes from memory at once.
const line = 64

// A node is the length of its key in two bytes, the key, and its value.
const nodeHead = 2

// index maps keys to nodes: open addressing, at most half full. The zero value is empty.
type index struct {
	first, size uint32 // of its slots; a power of two of them
}

// find is the value of a key and what is behind it, nil when it is absent.
func (s *store) find(x index, key []byte) []byte {
	if x.size == 0 {
		return nil
	}
	hash := maphash.Bytes(s.seed, key)
	mask, tag := x.size-1, uint32(hash>>32)|1
	for i := uint32(hash) & mask; ; i = (i + 1) & mask {
		at := s.slots[x.first+i]
		if at.hash == 0 {
			return nil
		}
		if at.hash != tag {
			continue
		}
		node := s.nodes[at.node:]
		if n := int(binary.LittleEndian.Uint16(node)); n == len(key) && string(node[nodeHead:nodeHead+n]) == string(key) {
			return node[nodeHead+n:]
		}
	}
}

// builder collects the keys of an index. The zero value is ready.
type builder struct {
	lists  map[string][]int32
	closed map[string]bool // keys whose list ends in one that always matches: nothing behind it is reached
}

func (b *builder) add(key string, n int32, final bool) {
	if b.lists == nil {
		b.lists, b.closed = make(map[string][]int32), make(map[string]bool)
	}
	if b.closed[key] {
		return
	}
	b.lists[key] = append(b.lists[key], n)
	b.closed[key] = final
}

// addOnce adds a key that must be new.
func (b *builder) addOnce(key string, n int32) bool {
	if b.lists[key] != nil {
		return false
	}
	b.add(key, n, true)
	return true
}

// lengths are the lengths of keys that occur, ascending.
func (b *builder) lengths() []int {
	var lengths []int
	for key := range b.lists {
		lengths = append(lengths, len(key))
	}
	slices.Sort(lengths)
	return slices.Compact(lengths)
}

// index puts what the builder has into the store. value appends what a key's node holds behind it.
func (s *store) index(b *builder, value func(dst []byte, list []int32) []byte) (x index) {
	if len(b.lists) == 0 {
		return x
	}
	x = index{first: uint32(len(s.slots)), size: 1}
	for int(x.size) < 2*len(b.lists) {
		x.size *= 2
	}
	s.slots = append(s.slots, make([]slot, x.size)...)
	slots := s.slots[x.first:]
	// In order of routes, so that neighbours in the configuration are neighbours in memory.
	keys := slices.SortedFunc(maps.Keys(b.lists), func(a, c string) int {
		return cmp.Or(cmp.Compare(b.lists[a][0], b.lists[c][0]), cmp.Compare(a, c))
	})
	var node []byte
	for _, key := range keys {
		node = append(binary.LittleEndian.AppendUint16(node[:0], uint16(len(key))), key...)
		hash := maphash.String(s.seed, key)
		i := hash & uint64(x.size-1)
		for slots[i].hash != 0 {
			i = (i + 1) & uint64(x.size-1)
		}
		slots[i] = slot{hash: uint32(hash>>32) | 1, node: s.put(value(node, b.lists[key]))}
	}
	return x
}

// put adds a node, which crosses no more lines than it must.
func (s *store) put(node []byte) (at uint32) {
	if over := len(s.nodes) % line; over > 0 && (over+len(node)-1)/line > (len(node)-1)/line {
		s.nodes = append(s.nodes, make([]byte, line-over)...)
	}
	at = uint32(len(s.nodes))
	s.nodes = append(s.nodes, node...)
	return at
}
