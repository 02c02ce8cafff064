package route

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
)

// index maps a key to an ascending list of numbers: open addressing, at most half full.
type index struct {
	slots []slot // a power of two of them, or nil
	lists []int32
}

type slot struct {
	hash         uint64
	key          string
	first, count int32
}

// find is the list of a key whose hash the caller knows, nil when it is absent.
func (x *index) find(hash uint64, key []byte) []int32 {
	if x.slots == nil {
		return nil
	}
	mask := uint64(len(x.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		s := &x.slots[i]
		if s.count == 0 {
			return nil
		}
		if s.hash == hash && s.key == string(key) {
			return x.lists[s.first : s.first+s.count]
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

func (b *builder) build(seed maphash.Seed) (x index) {
	if len(b.lists) == 0 {
		return x
	}
	size := 1
	for size < 2*len(b.lists) {
		size *= 2
	}
	x.slots = make([]slot, size)
	// In order of routes, so that neighbours in the configuration are neighbours in memory.
	keys := slices.SortedFunc(maps.Keys(b.lists), func(a, c string) int {
		return cmp.Or(cmp.Compare(b.lists[a][0], b.lists[c][0]), cmp.Compare(a, c))
	})
	for _, key := range keys {
		s := slot{hash: maphash.String(seed, key), key: key, first: int32(len(x.lists)), count: int32(len(b.lists[key]))}
		x.lists = append(x.lists, b.lists[key]...)
		i := s.hash & uint64(size-1)
		for x.slots[i].count != 0 {
			i = (i + 1) & uint64(size-1)
		}
		x.slots[i] = s
	}
	return x
}
