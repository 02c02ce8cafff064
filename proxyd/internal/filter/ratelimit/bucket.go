package ratelimit

import (
	"hash/maphash"
	"math/bits"
	"sync/atomic"
)

// rate is the size of a bucket and how fast it fills, in nanoseconds of time: a bucket is the moment at which it will be full
// again (the generic cell rate algorithm, ITU-T I.371), so that it is one word, and taking a token is one compare and swap. A moment
// that has passed is a full bucket.
type rate struct {
	token int64 // ns that one token takes
	burst int64 // ns that a whole bucket takes
}

// bucket is shared by all workers.
type bucket struct{ full atomic.Int64 }

// take takes a token at now (ns). Without one it answers how long to wait for it. left is the tokens that stay, reset the time
// until the bucket is full.
func (r rate) take(b *atomic.Int64, now int64) (ok bool, left, wait, reset int64) {
	for {
		was := b.Load()
		next := max(was, now) + r.token
		if over := next - now - r.burst; over > 0 {
			return false, 0, over, max(was-now, 0)
		}
		if b.CompareAndSwap(was, next) {
			return true, (r.burst - (next - now)) / r.token, 0, next - now
		}
	}
}

// table is buckets by key: sets of ways, each found by a hash that only this process knows, and in it by 64 bits of the hash. A key
// that has no bucket takes the one of its set that will be full first, which is mostly full already, so that nothing is
// lost with it; when it was not, a client that was forgotten begins anew, and that is counted.
//
// Two workers may meet in one set without a lock. What they can do wrong is small: a key that comes anew at both at one
// moment may have a token too many.
type table struct {
	seed maphash.Seed
	mask uint64
	sets []set
}

const ways = 8

type set struct {
	tags [ways]atomic.Uint64 // 0: free
	full [ways]atomic.Int64
}

func newTable(keys int) *table {
	n := 1 << bits.Len(uint(max(keys, ways)/ways-1))
	return &table{seed: maphash.MakeSeed(), mask: uint64(n - 1), sets: make([]set, n)}
}

// find is the bucket of a key. evicted tells that another key lost one that was not full.
func (t *table) find(key []byte, now int64) (b *atomic.Int64, evicted bool) {
	h := maphash.Bytes(t.seed, key)
	s := &t.sets[h>>32&t.mask]
	if h == 0 {
		h = 1
	}
	for {
		victim := 0
		first := int64(0)
		for i := range s.tags {
			if s.tags[i].Load() == h {
				return &s.full[i], false
			}
			if full := s.full[i].Load(); i == 0 || full < first {
				victim, first = i, full
			}
		}
		tag := s.tags[victim].Load()
		if tag == h {
			return &s.full[victim], false
		}
		if s.tags[victim].CompareAndSwap(tag, h) {
			s.full[victim].Store(now)
			return &s.full[victim], tag != 0 && first > now
		}
	}
}
