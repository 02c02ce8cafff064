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
	sets [cacheSets]*[cacheWays]entry // made with their first answer
}

// entry is one answer, checked when it came.
type entry struct {
	key    []byte
	frame  []byte // in which reply lies
	reply  reply
	until  int64 // ns of the worker's clock
	stored int64
}

// cacheKey appends what decides the answer: the route's filter use and the named headers, each with its length.
func (c *subscription) appendKey(b []byte, s *stream.Stream) []byte {
	b = append(b, s.RouteName...)
	b = append(b, 0)
	b = append(b, s.HostName...)
	for i := range c.cacheKey {
		v := c.cacheKey[i].of(&s.Request)
		if v == nil {
			b = append(b, 0xff, 0xff, 0xff, 0xff)
			continue
		}
		b = binary.LittleEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return b
}

// cached deals with a request whose answer is known. The worker's scratch holds its key afterwards.
func (g *gate) cached(ch *channel, s *stream.Stream) bool {
	h := g.host
	h.key = ch.info.sub.appendKey(h.key[:0], s)
	c := ch.cache
	if c == nil {
		return false
	}
	set := c.sets[maphash.Bytes(c.seed, h.key)%cacheSets]
	if set == nil {
		return false
	}
	for i := range set {
		e := &set[i]
		if e.until <= h.worker.Now() || string(e.key) != string(h.key) {
			continue
		}
		g.use.cells[h.worker.ID][counters.PluginRqCached]++
		if e.reply.action == filterv1.Action_ACTION_RESPOND {
			g.use.respond(h, s, &e.reply)
		} else {
			edit(&s.Request, e.reply.ops)
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
	place := &c.sets[maphash.Bytes(c.seed, f.key)%cacheSets]
	if *place == nil {
		*place = new([cacheWays]entry)
	}
	set := *place
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
	_, _ = at.reply.parse(at.frame) // it has been parsed before
	at.stored, at.until = now, now+min(int64(r.ttl)*1e6, maxTTL)
}
