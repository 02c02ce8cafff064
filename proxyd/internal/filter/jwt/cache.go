package jwt

import (
	"bytes"
	"hash/maphash"

	"retinue.dev/libs/jwk"
)

// maxKept bounds a token that is kept, in bytes (Envoy's jwt_max_token_size).
const maxKept = 4 << 10

// verified is a token whose signature was checked, with what the filter does about it. Immutable but for its place in the list.
type verified struct {
	token              []byte
	hash               uint64
	keys               *jwk.Set // that it was checked with
	expires, notBefore int64    // s since 1970; none: it has none
	audiences          [][]byte
	payload            []byte   // nil: it is not forwarded
	claims             [][]byte // values of headers, as the provider lists them; nil: there is no such header

	newer, older *verified
}

// cache keeps verified tokens of one worker: the least recently used goes first. A token is found by a hash with a secret seed, and
// then compared whole.
type cache struct {
	most           int // 0: none
	seed           maphash.Seed
	entries        map[uint64]*verified
	newest, oldest *verified
}

// find is what is known of a token, by the keys that are in force.
func (c *cache) find(token []byte, keys *jwk.Set) *verified {
	if len(c.entries) == 0 {
		return nil
	}
	v := c.entries[maphash.Bytes(c.seed, token)]
	if v == nil || !bytes.Equal(v.token, token) {
		return nil
	}
	if v.keys != keys { // a key may have been withdrawn
		c.drop(v)
		return nil
	}
	if v != c.newest {
		c.unlink(v)
		c.link(v)
	}
	return v
}

// keep takes a token. What is dropped for it is left to the collector: it may be in use.
func (c *cache) keep(v *verified) {
	if c.most == 0 || len(v.token) > maxKept {
		return
	}
	if c.entries == nil {
		c.seed, c.entries = maphash.MakeSeed(), make(map[uint64]*verified)
	}
	v.hash = maphash.Bytes(c.seed, v.token)
	if other := c.entries[v.hash]; other != nil {
		c.drop(other)
	} else if len(c.entries) >= c.most {
		c.drop(c.oldest)
	}
	c.entries[v.hash] = v
	c.link(v)
}

func (c *cache) drop(v *verified) {
	c.unlink(v)
	delete(c.entries, v.hash)
}

func (c *cache) link(v *verified) {
	v.older, v.newer = c.newest, nil
	if c.newest != nil {
		c.newest.newer = v
	}
	if c.newest = v; c.oldest == nil {
		c.oldest = v
	}
}

func (c *cache) unlink(v *verified) {
	if v.newer != nil {
		v.newer.older = v.older
	} else {
		c.newest = v.older
	}
	if v.older != nil {
		v.older.newer = v.newer
	} else {
		c.oldest = v.newer
	}
	v.newer, v.older = nil, nil
}
