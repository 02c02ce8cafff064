package jwt

import (
	"bytes"
	"fmt"
	"strings"

	"retinue.dev/proxyd/internal/filter/query"
	"retinue.dev/proxyd/internal/header"
	configv1 "retinue.dev/services/api/config/v1"
)

// maxTokens bounds the tokens that one request may show to one provider.
const maxTokens = 4

type placeKind uint8

const (
	inHeader placeKind = iota
	inParameter
	inCookie
)

// place is where a token may stand.
type place struct {
	kind   placeKind
	id     header.ID // of a header
	name   []byte
	prefix string // of a header's value, lower case
}

// compilePlaces reads where a provider looks. The default is that of RFC 6750.
func compilePlaces(o *configv1.JwtProvider) (list []place, err error) {
	for _, h := range o.GetFromHeaders() {
		list = append(list, place{kind: inHeader, name: []byte(strings.ToLower(h.GetName())), prefix: strings.ToLower(h.GetValuePrefix())})
	}
	for _, name := range o.GetFromParams() {
		list = append(list, place{kind: inParameter, name: []byte(name)})
	}
	for _, name := range o.GetFromCookies() {
		list = append(list, place{kind: inCookie, name: []byte(name)})
	}
	if len(list) == 0 {
		list = []place{{kind: inHeader, name: []byte("authorization"), prefix: "bearer "}, {kind: inParameter, name: []byte("access_token")}}
	}
	for i := range list {
		p := &list[i]
		switch {
		case p.kind == inHeader && !header.ValidName(p.name):
			return nil, fmt.Errorf("%q is not a header name", p.name)
		case len(p.name) == 0:
			return nil, fmt.Errorf("a parameter or cookie has no name")
		}
		p.id = header.Lookup(p.name)
	}
	return list, nil
}

// index is the next field of the header at or after from, -1 when there is none.
func (p *place) index(b *header.Block, from int) int {
	if p.id != header.Other {
		return b.Index(p.id, from)
	}
	return b.IndexName(p.name, from)
}

// token is the one in a field of the header; nil where there is none. The scheme of Authorization has no case (RFC 9110, 11.1).
func (p *place) token(value []byte) []byte {
	if len(value) < len(p.prefix) || !header.EqualFold(value[:len(p.prefix)], p.prefix) {
		return nil
	}
	if rest := header.TrimSpace(value[len(p.prefix):]); len(rest) > 0 {
		return rest
	}
	return nil
}

// find appends the tokens of a request, one more than maxTokens at the most.
func find(dst [][]byte, places []place, r *header.Request) [][]byte {
	for i := range places {
		p := &places[i]
		switch p.kind {
		case inHeader:
			for at := p.index(&r.Block, 0); at >= 0 && len(dst) <= maxTokens; at = p.index(&r.Block, at+1) {
				if t := p.token(r.ValueAt(at)); t != nil {
					dst = append(dst, t)
				}
			}
		case inParameter:
			for list := query.Of(r.Path()); len(list) > 0 && len(dst) <= maxTokens; {
				var item []byte
				item, list = query.Cut(list, '&')
				if name, value, ok := bytes.Cut(item, equals); ok && len(value) > 0 && query.Spells(name, p.name) {
					dst = append(dst, value)
				}
			}
		case inCookie:
			for at := r.Index(header.Cookie, 0); at >= 0; at = r.Index(header.Cookie, at+1) {
				for list := r.ValueAt(at); len(list) > 0 && len(dst) <= maxTokens; {
					var item []byte
					item, list = query.Cut(list, ';')
					if value := p.cookie(item); len(value) > 0 {
						dst = append(dst, value)
					}
				}
			}
		}
	}
	return dst
}

var equals = []byte("=")

// cookie is the value of a cookie of the place's name, without quotes around it (RFC 6265, 4.1.1).
func (p *place) cookie(item []byte) []byte {
	name, value, ok := bytes.Cut(header.TrimSpace(item), equals)
	if !ok || !bytes.Equal(name, p.name) {
		return nil
	}
	if n := len(value); n > 1 && value[0] == '"' && value[n-1] == '"' {
		value = value[1 : n-1]
	}
	return value
}

// remove takes the tokens out of a request. scratch is for what is written anew.
func remove(places []place, r *header.Request, scratch []byte) []byte {
	for i := range places {
		p := &places[i]
		switch p.kind {
		case inHeader:
			for at := p.index(&r.Block, 0); at >= 0; at = p.index(&r.Block, at) {
				if p.token(r.ValueAt(at)) == nil {
					at++
				} else {
					r.RemoveAt(at)
				}
			}
		case inParameter:
			if len(query.Of(r.Path())) == 0 {
				continue
			}
			out, changed := query.Without(scratch[:0], r.Path(), p.name)
			if scratch = out; changed {
				r.SetPath(out)
			}
		case inCookie:
			for at := r.Index(header.Cookie, 0); at >= 0; at = r.Index(header.Cookie, at) {
				out, changed := scratch[:0], false
				for list := r.ValueAt(at); len(list) > 0; {
					var item []byte
					if item, list = query.Cut(list, ';'); p.cookie(item) != nil {
						changed = true
						continue
					}
					if len(out) > 0 {
						out = append(out, "; "...)
					}
					out = append(out, header.TrimSpace(item)...)
				}
				switch {
				case !changed:
					at++
				case len(out) == 0:
					r.RemoveAt(at)
				default:
					r.SetAt(at, out)
					at++
				}
				scratch = out
			}
		}
	}
	return scratch
}
