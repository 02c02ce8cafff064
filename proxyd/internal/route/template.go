package route

import (
	"bytes"
	"encoding/binary"
	"slices"

	"retinue.dev/libs/routing"
)

// form is what templates have in common that differ in their literal text alone: paths that any of them matches, and that one
// only, have its key. So all templates of a virtual host are one hash table, asked once for each form that occurs there.
type form struct {
	wild string // a byte for each segment: '*' or '.' for literal text
	open bool   // "**" behind them
	tail int    // length of the literal end
	dots bool   // what is before the end must not be a segment "." or ".."
}

// formOf gives a template's form, and its key without the form's number.
func formOf(t *routing.Template) (s form, key string) {
	var wild, text []byte
	for _, segment := range t.Segments {
		if segment == routing.Wildcard {
			wild, text = append(wild, '*'), append(text, '/')
		} else {
			wild, text = append(wild, '.'), append(append(text, segment...), '/')
		}
	}
	return form{wild: string(wild), open: t.Open, tail: len(t.Tail), dots: t.Dots()}, string(text) + t.Tail
}

// maxKey is longer than the key of any template.
const maxKey = 4 + routing.MaxTemplate + 1

// hostForm is a form that the templates of one virtual host have.
type hostForm struct {
	form  int32
	least int32 // the least ordinal among them
}

// templates collects those of one virtual host.
type templates struct {
	builder
	least map[int32]int32
}

func (b *templates) add(t *Table, known map[form]int32, template *routing.Template, ordinal int32, final bool) {
	s, key := formOf(template)
	number, ok := known[s]
	if !ok {
		number = int32(len(t.forms))
		known[s], t.forms = number, append(t.forms, s)
	}
	if b.least == nil {
		b.least = make(map[int32]int32)
	}
	if _, ok := b.least[number]; !ok {
		b.least[number] = ordinal
	}
	b.builder.add(string(binary.LittleEndian.AppendUint32(nil, uint32(number)))+key, ordinal, final)
}

// forms are in the order of their first routes.
func (b *templates) forms() (out []hostForm) {
	for number, least := range b.least {
		out = append(out, hostForm{number, least})
	}
	slices.SortFunc(out, func(a, c hostForm) int { return int(a.least) - int(c.least) })
	return out
}

// template is the first route below best by a template of a virtual host; best when there is none.
func (t *Table) template(h *virtualHost, best int32, r *Request, path []byte) int32 {
	var key [maxKey]byte
	for _, s := range t.hostForms[h.forms:h.formsEnd] {
		if s.least >= best {
			break
		}
		binary.LittleEndian.PutUint32(key[:], uint32(s.form))
		if n := t.forms[s.form].key(&key, path); n > 0 {
			best = t.first(t.find(h.templates, key[:n]), best, r, path)
		}
	}
	return best
}

// key puts that of a path behind the four bytes of the form's number. It is 0 for a path that no template of the form matches.
func (s *form) key(key *[maxKey]byte, path []byte) int {
	if len(path) == 0 || path[0] != '/' {
		return 0
	}
	n, rest := 4, path[1:]
	for i := range len(s.wild) {
		segment := rest
		if slash := bytes.IndexByte(rest, '/'); slash >= 0 {
			segment, rest = rest[:slash], rest[slash+1:]
			if i == len(s.wild)-1 && !s.open {
				return 0
			}
		} else {
			if i < len(s.wild)-1 || s.open {
				return 0
			}
			rest = nil
		}
		switch {
		case s.wild[i] == '.':
			if n+len(segment) >= maxKey {
				return 0
			}
			n += copy(key[n:], segment)
		case len(segment) == 0:
			return 0
		case i == len(s.wild)-1 && !s.open:
			if len(segment) <= s.tail {
				return 0
			}
			rest = segment
		}
		if n == maxKey {
			return 0
		}
		key[n] = '/'
		n++
	}
	if s.tail == 0 {
		return n
	}
	if len(rest) < s.tail || n+s.tail > maxKey {
		return 0
	}
	before := rest[:len(rest)-s.tail]
	if s.dots {
		before = before[bytes.LastIndexByte(before, '/')+1:]
		if string(before) == "." || string(before) == ".." {
			return 0
		}
	}
	return n + copy(key[n:], rest[len(rest)-s.tail:])
}
