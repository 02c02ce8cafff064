package route

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
)

// store holds the indexes of a table, one behind the other: what a request reads of a virtual host lies together. With thousands of
// hosts it is cache misses that a lookup costs, so everything is as small and as near as it can be.
type store struct {
	seed  maphash.Seed
	slots []slot
	keys  []byte
	lists []int32 // a count, then so many numbers
}

// slot is a key of an index; four to a cache line.
type slot struct {
	hash        uint32 // 0: nobody is here
	key, length uint32 // where in keys
	// number is the only one of the key's list, or the complement of the list's place in lists.
	number [1]int32
}

// index maps a key to an ascending list of numbers: open addressing, at most half full. The zero value is empty.
type index struct {
	first, size uint32 // of its slots; a power of two of them
}

// hash is that of a key, for find.
func (s *store) hash(key []byte) uint64 { return maphash.Bytes(s.seed, key) }

// find is the list of a key, nil when it is absent.
func (s *store) find(x index, key []byte) []int32 {
	if x.size == 0 {
		return nil
	}
	hash := s.hash(key)
	mask, tag := x.size-1, uint32(hash>>32)|1
	for i := uint32(hash) & mask; ; i = (i + 1) & mask {
		at := &s.slots[x.first+i]
		if at.hash == 0 {
			return nil
		}
		if at.hash == tag && int(at.length) == len(key) && string(s.keys[at.key:at.key+at.length]) == string(key) {
			if at.number[0] >= 0 {
				return at.number[:]
			}
			list := s.lists[^at.number[0]:]
			return list[1 : 1+list[0]]
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

// index puts what the builder has into the store.
func (s *store) index(b *builder) (x index) {
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
	for _, key := range keys {
		list := b.lists[key]
		hash := s.hash([]byte(key))
		at := slot{hash: uint32(hash>>32) | 1, key: uint32(len(s.keys)), length: uint32(len(key)), number: [1]int32{list[0]}}
		s.keys = append(s.keys, key...)
		if len(list) > 1 {
			at.number[0] = ^int32(len(s.lists))
			s.lists = append(append(s.lists, int32(len(list))), list...)
		}
		i := hash & uint64(x.size-1)
		for slots[i].hash != 0 {
			i = (i + 1) & uint64(x.size-1)
		}
		slots[i] = at
	}
	return x
}
