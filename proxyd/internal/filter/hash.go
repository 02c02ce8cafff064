package filter

import (
	"fmt"
	"math/bits"
	"strconv"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/route"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// hashPolicy makes the key by which consistent hashes choose a request's host. Parts and their combination are Envoy's.
type hashPolicy struct {
	parts []hashPart
	make  *hashPart // the cookie that clients without it are given; nil: none
}

type hashPart struct {
	header   headerOp // name nil: none
	cookie   []byte
	suffix   []byte // "; Path=/; …" behind the value of a cookie that is set; nil: none is
	query    []byte
	terminal bool
}

func compileHash(list []*configv1.HashPolicy) (*hashPolicy, error) {
	if len(list) == 0 {
		return nil, nil
	}
	p := &hashPolicy{parts: make([]hashPart, len(list))}
	for i, h := range list {
		part := &p.parts[i]
		part.terminal = h.GetTerminal()
		switch k := h.GetKind().(type) {
		case *configv1.HashPolicy_Header:
			if part.header = namedOp(k.Header); !header.ValidName(part.header.name) {
				return nil, fmt.Errorf("hash_policies[%d]: %q is not a header name", i, k.Header)
			}
		case *configv1.HashPolicy_Cookie:
			if part.cookie = []byte(k.Cookie.GetName()); !header.ValidName(part.cookie) {
				return nil, fmt.Errorf("hash_policies[%d]: %q cannot be a cookie", i, k.Cookie.GetName())
			}
			if k.Cookie.TtlMs == nil {
				break
			}
			if p.make != nil {
				return nil, fmt.Errorf("hash_policies[%d]: clients are given one cookie, not two", i)
			}
			var err error
			if part.suffix, err = cookieSuffix(k.Cookie.GetPath(), k.Cookie.GetTtlMs()); err != nil {
				return nil, fmt.Errorf("hash_policies[%d]: %w", i, err)
			}
			p.make = part
		case *configv1.HashPolicy_Source:
		case *configv1.HashPolicy_Query:
			if part.query = []byte(k.Query); len(part.query) == 0 {
				return nil, fmt.Errorf("hash_policies[%d]: a query parameter has a name", i)
			}
		default:
			return nil, fmt.Errorf("hash_policies[%d]: this proxyd does not know the kind", i)
		}
	}
	return p, nil
}

// cookieSuffix is what stands behind the value of a cookie that is set; ttl in milliseconds, 0: until the browser ends.
func cookieSuffix(path string, ttl int64) ([]byte, error) {
	if path == "" {
		path = "/"
	}
	suffix := "; Path=" + path + "; HttpOnly"
	if ttl > 0 {
		suffix = "; Max-Age=" + strconv.FormatInt((ttl+999)/1000, 10) + suffix
	}
	if !header.ValidValue([]byte(suffix)) {
		return nil, fmt.Errorf("%q cannot be the path of a cookie", path)
	}
	return []byte(suffix), nil
}

// key puts a request's key into c. made is the value of a cookie that the client must be given, 0 for none.
func (p *hashPolicy) key(s *stream.Stream, c *cluster.Choice) (made uint64) {
	for i := range p.parts {
		part := &p.parts[i]
		var value uint64
		there := true
		switch {
		case part.header.name != nil:
			value, there = part.header.hash(&s.Request.Block)
		case part.cookie != nil:
			var text []byte
			var room [16]byte
			if text, there = route.Cookie(&s.Request.Block, part.cookie); (!there || len(text) == 0) && part.suffix != nil {
				made = s.Worker.Rand() | 1
				text, there = hex(room[:0], made), true
			}
			value = cluster.Hash(text)
		case part.query != nil:
			var text []byte
			text, there = route.Parameter(s.Request.Path(), part.query)
			value = cluster.Hash(text)
		default:
			value = cluster.HashAddress(s.Client)
		}
		if there {
			c.Hash = bits.RotateLeft64(c.Hash, 1) ^ value
			c.Hashed = true
		}
		if c.Hashed && part.terminal {
			break
		}
	}
	return made
}

// hash is that of all values of a header.
func (op *headerOp) hash(b *header.Block) (h uint64, there bool) {
	for i := op.find(b); i >= 0; i = op.findFrom(b, i+1) {
		h, there = bits.RotateLeft64(h, 1)^cluster.Hash(b.ValueAt(i)), true
	}
	return h, there
}

// setCookie appends the value of Set-Cookie.
func (p *hashPolicy) setCookie(dst []byte, made uint64) []byte {
	dst = append(append(dst, p.make.cookie...), '=')
	return append(hex(dst, made), p.make.suffix...)
}
