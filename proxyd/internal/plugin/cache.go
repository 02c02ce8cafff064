package plugin

import (
	"encoding/binary"
	"hash/maphash"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/stream"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// The cache of a channel keeps answers that the plugin allowed to be repeated. Each worker has its own; it is a table of fixed
// size, four places for each hash, of which the oldest goes. An entry is found by its whole key, never by its hash alone.
const (
	cacheSets    = 256
	cacheWays    = 4
	maxCacheKey  = 1 << 10
	maxCacheData = 16 << 10
	maxTTL       = int64(86400e9)
)

type cache struct {
	seed maphash.Seed
	sets [cacheSets][cacheWays]entry
}

// entry is one answer: a frame's Reply as it came, so that it is checked and applied as if it had just come.
type entry struct {
	key    []byte
	frame  []byte
	until  int64 // ns of the worker's clock
	stored int64
}

// cacheKey appends what decides the answer: the route's filter use and the named headers, each with its length.
func (f *filter) cacheKey(b []byte, s *stream.Stream) []byte {
	b = append(b, s.RouteName...)
	b = append(b, 0)
	b = append(b, s.HostName...)
	for i := range f.sub.cacheKey {
		v := f.sub.cacheKey[i].of(&s.Request)
		if v == nil {
			b = append(b, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return b
}

// cached answers the head from the cache, if it can; the stream then goes on, or is answered.
func (f *filter) cached(s *stream.Stream) bool {
	h := f.host
	h.key = f.cacheKey(h.key[:0], s)
	c := f.channel.cache
	if c == nil {
		return false
	}
	set := &c.sets[maphash.Bytes(c.seed, h.key)%cacheSets]
	for i := range set {
		e := &set[i]
		if e.until <= h.worker.Now() || string(e.key) != string(h.key) {
			continue
		}
		r := &h.reply
		if _, err := r.parse(e.frame); err != nil || !f.take(decode, headPhase[decode], r) {
			e.until = 0
			return false
		}
		f.cells()[counters.PluginRqCached]++
		f.skip = true // what is kept has no later phase
		if r.action == filterv1.Action_ACTION_RESPOND {
			f.respond(r)
		}
		return true
	}
	return false
}

// remember keeps an answer to a head that may be repeated.
func (f *filter) remember(dir direction, phase filterv1.Phase, r *reply, frame []byte) {
	if r.ttl == 0 || f.sub.cacheKey == nil || dir != decode || phase != headPhase[decode] || len(frame) > maxCacheData || len(f.key) == 0 {
		return
	}
	if later := f.sub.phases &^ (1<<uint(filterv1.Phase_PHASE_REQUEST_HEADERS) | 1<<uint(filterv1.Phase_PHASE_END)); later != 0 &&
		r.action == filterv1.Action_ACTION_CONTINUE {
		return // it is asked again about this stream
	}
	c := f.channel.cache
	if c == nil {
		c = &cache{seed: maphash.MakeSeed()}
		f.channel.cache = c
	}
	set := &c.sets[maphash.Bytes(c.seed, f.key)%cacheSets]
	at := &set[0]
	for i := range set {
		e := &set[i]
		if string(e.key) == string(f.key) {
			at = e
			break
		}
		if e.stored < at.stored {
			at = e
		}
	}
	now := f.host.worker.Now()
	at.key, at.frame = append(at.key[:0], f.key...), append(at.frame[:0], frame...)
	at.stored, at.until = now, now+min(int64(r.ttl)*1e6, maxTTL)
}
