package route

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"regexp"
	"slices"
	"strings"

	"retinue.dev/libs/routing"
	"retinue.dev/proxyd/internal/header"
	configv1 "retinue.dev/services/api/config/v1"
)

// Table is a compiled set of virtual hosts. It is immutable: any number of threads match against it.
//
// Hosts and paths are looked up by hash. A set of prefixes (or of host suffixes) is one hash table for all lengths,
// asked once for each length that occurs, so that the number of routes does not matter and the number of
// different lengths, which is small in life, matters little. A radix tree was rejected: it is a chain of cache misses
// that grows with the routes.
type Table struct {
	store
	entries []Entry
	hosts   []virtualHost
	lengths []prefixLength // of all virtual hosts
	edges   []edge         // that lengths name
	forms   []form         // of templates

	hostForms []hostForm // of all virtual hosts

	exact    index        // of domains
	suffix   index        // "*.x" under ".x"
	prefix   index        // "x.*" under "x."
	suffixes []hostLength // longest first
	prefixes []hostLength
	catchAll []byte // the value of the node of "*", nil
	draws    bool
}

// virtualHost is the routes of one virtual host that has more than a few. Lists are ordinals in ascending order, which is source order. A regular
// expression stands under the literal text that every match begins with, "" at worst, so that thousands of them cost no more than
// those that a path can match.
type virtualHost struct {
	exact, prefix index
	first, end    uint32 // of lengths: its own, ascending

	templates       index
	forms, formsEnd uint32 // of hostForms: its own, in the order of their first routes

	ordinals, ordinalsEnd int // of all its routes
}

// edge is a set of bytes, a bit each: those that keys of one length have where the rest of a text begins. Mostly it is one, "/" or
// ".", so that few places of a text are hashed.
type edge [4]uint64

func (e *edge) add(c byte)      { e[c>>6] |= 1 << (c & 63) }
func (e *edge) has(c byte) bool { return e[c>>6]>>(c&63)&1 != 0 }

// hostLength is one length that wildcards of domains have, and the bytes at the star's side of them.
type hostLength struct {
	length int
	edge   edge
}

func hostLengths(b *builder, last func(key string) byte) []hostLength {
	var out []hostLength
	for _, length := range slices.Backward(b.lengths()) {
		l := hostLength{length: length}
		for key := range b.lists {
			if len(key) == length {
				l.edge.add(last(key))
			}
		}
		out = append(out, l)
	}
	return out
}

// prefixLength is one length that prefixes have.
type prefixLength struct {
	length int32
	least  int32 // the least ordinal among prefixes of this length and above
	last   int32 // their last bytes: an edge. Virtual hosts have few different ones
}

// maxDomain is above every name that DNS knows; a longer host matches "*" only.
const maxDomain = 255

// maxPath is above every path that a request can have.
const maxPath = 1<<16 - 1

// Compile builds the table of one connection manager. An error names the virtual host or the route, where it was
// written, and what is wrong with it.
func Compile(hosts []*configv1.VirtualHost) (*Table, error) {
	t := &Table{store: store{seed: maphash.MakeSeed()}}
	star := -1
	total := 0
	for _, vh := range hosts {
		total += len(vh.GetRoutes())
	}
	t.entries = make([]Entry, 0, total)
	var exact, suffix, prefix builder
	edges, forms := map[edge]int32{}, map[form]int32{}
	for i, vh := range hosts {
		if len(vh.GetDomains()) == 0 {
			return nil, fmt.Errorf("%svirtual host %q has no domains: name at least one, or \"*\"", at(vh.GetSource()), vh.GetName())
		}
		for _, domain := range vh.GetDomains() {
			if !validDomain(domain) {
				return nil, fmt.Errorf("%svirtual host %q: domain %q is none of \"name\", \"*.suffix\", \"prefix.*\" and \"*\" (without a port)",
					at(vh.GetSource()), vh.GetName(), domain)
			}
			lower := strings.TrimSuffix(strings.ToLower(domain), ".")
			var added bool
			switch {
			case lower == "*":
				added = star < 0
				star = i
			case lower[0] == '*':
				added = suffix.addOnce(lower[1:], int32(i))
			case lower[len(lower)-1] == '*':
				added = prefix.addOnce(lower[:len(lower)-1], int32(i))
			default:
				added = exact.addOnce(lower, int32(i))
			}
			if !added {
				return nil, fmt.Errorf("%svirtual host %q: domain %q belongs to another virtual host already: remove one of them",
					at(vh.GetSource()), vh.GetName(), domain)
			}
		}
		compiled, err := t.compileHost(i, vh, edges, forms)
		if err != nil {
			return nil, err
		}
		t.hosts = append(t.hosts, compiled)
	}
	value := func(dst []byte, list []int32) []byte { return t.hostValue(dst, int(list[0])) }
	t.exact = t.index(&exact, value)
	if star >= 0 {
		t.catchAll = t.hostValue(nil, star)
	}
	t.suffix, t.suffixes = t.index(&suffix, value), hostLengths(&suffix, func(key string) byte { return key[0] })
	t.prefix, t.prefixes = t.index(&prefix, value), hostLengths(&prefix, func(key string) byte { return key[len(key)-1] })
	return t, nil
}

// hostValue appends the value of the node of a domain.
func (t *Table) hostValue(dst []byte, host int) []byte {
	h := &t.hosts[host]
	return appendHost(dst, host, t.entries[h.ordinals:h.ordinalsEnd], h.ordinals)
}

// validDomain accepts a host, in whose place or at one of whose ends a star may stand.
func validDomain(domain string) bool {
	rest := domain
	switch {
	case strings.HasPrefix(domain, "*"):
		rest = domain[1:]
	case strings.HasSuffix(domain, "*"):
		rest = domain[:len(domain)-1]
	}
	if strings.Contains(rest, "*") || len(domain) > maxDomain || domain == "." {
		return false
	}
	host, port, _ := header.SplitAuthority([]byte(rest))
	return domain == "*" || (port == nil && header.ValidAuthority(host))
}

func (t *Table) compileHost(position int, vh *configv1.VirtualHost, edges map[edge]int32, forms map[form]int32) (virtualHost, error) {
	h := virtualHost{ordinals: len(t.entries), ordinalsEnd: len(t.entries) + len(vh.GetRoutes())}
	var exact, prefix builder
	var templates templates
	for i, route := range vh.GetRoutes() {
		ordinal := int32(len(t.entries))
		e := Entry{Ordinal: int(ordinal), VirtualHost: position, Index: i, Host: vh, Route: route}
		fail := func(err error) (virtualHost, error) {
			return h, fmt.Errorf("%sroute %q of virtual host %q: %w", at(route.GetSource()), route.GetName(), vh.GetName(), err)
		}
		for _, m := range route.GetMatch().GetMethods() {
			id := header.LookupMethod([]byte(m))
			switch {
			case id != header.MethodOther:
				e.methods |= 1 << id
			case !header.ValidName([]byte(m)):
				return fail(fmt.Errorf("%q is not a method", m))
			default:
				e.others = append(e.others, m)
			}
		}
		var err error
		if route.GetMatch() == nil {
			return fail(errNoPath)
		}
		if e.when, err = compileConditions(route.GetMatch()); err != nil {
			return fail(err)
		}
		t.draws = t.draws || (e.when != nil && e.when.fraction >= 0)
		if m := route.GetMatch(); max(len(m.GetExact()), len(m.GetPrefix())) > maxPath {
			return fail(fmt.Errorf("its path has more than %d bytes", maxPath))
		}
		switch path := route.GetMatch().GetPath().(type) {
		case *configv1.RouteMatch_Exact:
			exact.add(path.Exact, ordinal, e.plain())
		case *configv1.RouteMatch_Prefix:
			prefix.add(path.Prefix, ordinal, e.plain())
		case *configv1.RouteMatch_Regex:
			if e.regex, err = routing.Expression(path.Regex); err != nil {
				return fail(fmt.Errorf("regex: %w", err))
			}
			prefix.add(literal(path.Regex), ordinal, false)
		case *configv1.RouteMatch_Template:
			template, err := routing.ParseTemplate(path.Template)
			if err != nil {
				return fail(fmt.Errorf("template %q: %w", path.Template, err))
			}
			e.template = true
			templates.add(t, forms, template, ordinal, e.plain())
		default:
			return fail(errNoPath)
		}
		t.entries = append(t.entries, e)
	}
	if short := appendHost(nil, position, t.entries[h.ordinals:], h.ordinals); short[4] != longHost {
		return h, nil // its routes stand behind its domains
	}
	h.exact, h.prefix, h.first = t.index(&exact, t.list), t.index(&prefix, t.list), uint32(len(t.lengths))
	for _, length := range prefix.lengths() {
		p := prefixLength{length: int32(length), least: math.MaxInt32}
		var last edge
		for key, list := range prefix.lists {
			if len(key) >= length {
				p.least = min(p.least, list[0])
			}
			if len(key) == length && length > 0 {
				last.add(key[length-1])
			}
		}
		known, ok := edges[last]
		if !ok {
			known = int32(len(t.edges))
			edges[last], t.edges = known, append(t.edges, last)
		}
		p.last = known
		t.lengths = append(t.lengths, p)
	}
	h.end = uint32(len(t.lengths))
	h.templates, h.forms = t.index(&templates.builder, t.list), uint32(len(t.hostForms))
	t.hostForms = append(t.hostForms, templates.forms()...)
	h.formsEnd = uint32(len(t.hostForms))
	return h, nil
}

// literal is the text that every match of an expression begins with.
func literal(regex string) string {
	text, _ := regexp.MustCompile(regex).LiteralPrefix()
	return text
}

var errNoPath = errors.New("it has no path: give it an exact path, a prefix, a template or a regex")

// at is "file:line: " of a source, "" when it is not known.
func at(s *configv1.Source) string {
	if s.GetFile() == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d: ", s.GetFile(), s.GetLine())
}

// Len is the number of routes.
func (t *Table) Len() int { return len(t.entries) }

// Entry is the route with an ordinal, 0 <= ordinal < Len.
func (t *Table) Entry(ordinal int) *Entry { return &t.entries[ordinal] }

// Draws tells that a route takes a fraction of requests: Match needs Request.Draw.
func (t *Table) Draws() bool { return t.draws }

// Match finds the ordinal of a request's route, -1 when there is none. The virtual host is that of the exact name, else of the longest
// "*.suffix", else of the longest "prefix.*", else of "*"; in it the first route in source order that matches wins.
func (t *Table) Match(r *Request) int {
	host := t.host(r.Host)
	if host == nil {
		return -1
	}
	path := r.Path
	if q := bytes.IndexByte(path, '?'); q >= 0 {
		path = path[:q]
	}
	if host[4] != longHost {
		return t.short(host, r, path)
	}
	h := &t.hosts[binary.LittleEndian.Uint32(host)]
	best := int32(math.MaxInt32)
	if h.exact.size > 0 {
		best = t.first(t.find(h.exact, path), best, r, path)
	}
	for k := h.first; k < h.end; k++ {
		p := &t.lengths[k]
		if int(p.length) > len(path) || p.least >= best {
			break
		}
		if p.length > 0 && !t.edges[p.last].has(path[p.length-1]) {
			continue
		}
		best = t.first(t.find(h.prefix, path[:p.length]), best, r, path)
	}
	if h.templates.size > 0 {
		best = t.template(h, best, r, path)
	}
	if best == math.MaxInt32 {
		return -1
	}
	return int(best)
}

// list appends the value of a path's node: a count in four bytes, then for so many routes the ordinal in four, ascending, and the
// guard in two.
func (t *Table) list(dst []byte, ordinals []int32) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(ordinals)))
	for _, n := range ordinals {
		dst = binary.LittleEndian.AppendUint32(dst, uint32(n))
		dst = binary.LittleEndian.AppendUint16(dst, t.entries[n].guard())
	}
	return dst
}

// first is the first route of a list, below best, that the request is for; best when there is none.
func (t *Table) first(list []byte, best int32, r *Request, path []byte) int32 {
	if list == nil {
		return best
	}
	n := binary.LittleEndian.Uint32(list)
	for list = list[4:]; n > 0; n, list = n-1, list[6:] {
		ordinal := int32(binary.LittleEndian.Uint32(list))
		if ordinal >= best {
			break
		}
		if t.admits(int(ordinal), binary.LittleEndian.Uint16(list[4:]), r, path) {
			return ordinal
		}
	}
	return best
}

// VirtualHost is the position of the virtual host of an authority, -1 when there is none.
func (t *Table) VirtualHost(authority []byte) int {
	if host := t.host(authority); host != nil {
		return int(binary.LittleEndian.Uint32(host))
	}
	return -1
}

// host is the value of the node of the domain that an authority has, nil when there is none.
func (t *Table) host(authority []byte) []byte {
	if t.exact.size == 0 && t.suffixes == nil && t.prefixes == nil {
		return t.catchAll
	}
	name, _, ok := header.SplitAuthority(authority)
	if !ok {
		return t.catchAll
	}
	if n := len(name); n > 1 && name[n-1] == '.' {
		name = name[:n-1]
	}
	if len(name) == 0 || len(name) > maxDomain {
		return t.catchAll
	}
	var lower [maxDomain]byte
	host := header.AppendLower(lower[:0], name)
	if found := t.find(t.exact, host); found != nil {
		return found
	}
	for i := range t.suffixes {
		l := &t.suffixes[i]
		if l.length < len(host) && l.edge.has(host[len(host)-l.length]) {
			if found := t.find(t.suffix, host[len(host)-l.length:]); found != nil {
				return found
			}
		}
	}
	for i := range t.prefixes {
		l := &t.prefixes[i]
		if l.length < len(host) && l.edge.has(host[l.length-1]) {
			if found := t.find(t.prefix, host[:l.length]); found != nil {
				return found
			}
		}
	}
	return t.catchAll
}
