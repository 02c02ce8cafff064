package route

import (
	"bytes"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"retinue.dev/libs/routing"
	"retinue.dev/proxyd/internal/header"
	configv1 "retinue.dev/services/api/config/v1"
)

// Request is what routes look at. Its bytes are borrowed for the call.
type Request struct {
	Host   []byte // an authority in any case; its port and one trailing dot count for nothing
	Path   []byte // in its normal form; a query may follow
	ID     header.MethodID
	Method []byte
	Fields *header.Block
	Source netip.Addr
	TLS    bool
	// Certified tells that the client has shown a certificate.
	Certified bool
	Draw      uint32 // 0 to 999,999, where Table.Draws
	// Scratch takes the joined values of a repeated header and is given back grown.
	Scratch []byte
}

// conditions are what a route asks beyond path and method: all of them must hold.
type conditions struct {
	headers, query, cookies []fieldTest
	media                   [][]byte // one of them; "text/" with a slash at its end is every text
	grpc, tls, cert         int8     // 1 must be, -1 must not be, 0 no matter
	in, notIn               []netip.Prefix
	fraction                int64 // of a million; -1: all
}

type testKind uint8

const (
	testPresent testKind = iota
	testExact
	testPrefix
	testSuffix
	testContains
	testRegex
	testRange
)

// fieldTest tests one value of a name.
type fieldTest struct {
	id             header.ID
	kind           testKind
	fold           bool // text is in lower case then
	invert         bool
	missingAsEmpty bool
	name           []byte
	text           []byte
	regex          *regexp.Regexp
	start, end     int64
}

// compileConditions answers nil where there are none.
func compileConditions(m *configv1.RouteMatch) (*conditions, error) {
	if len(m.GetHeaders())+len(m.GetQuery())+len(m.GetCookies())+len(m.GetContentTypes())+len(m.GetSourceCidrs())+len(m.GetNotSourceCidrs()) == 0 &&
		m.Grpc == nil && m.Tls == nil && m.ClientCert == nil && m.Fraction == nil {
		return nil, nil
	}
	c := &conditions{grpc: wanted(m.Grpc), tls: wanted(m.Tls), cert: wanted(m.ClientCert), fraction: -1}
	var err error
	for _, group := range []struct {
		from []*configv1.FieldMatch
		to   *[]fieldTest
	}{{m.GetHeaders(), &c.headers}, {m.GetQuery(), &c.query}, {m.GetCookies(), &c.cookies}} {
		for _, f := range group.from {
			t, err := compileTest(f)
			if err != nil {
				return nil, fmt.Errorf("condition on %q: %w", f.GetName(), err)
			}
			*group.to = append(*group.to, t)
		}
	}
	for _, t := range m.GetContentTypes() {
		c.media = append(c.media, []byte(strings.TrimSuffix(strings.ToLower(t), "*")))
	}
	if c.in, err = prefixes(m.GetSourceCidrs()); err != nil {
		return nil, err
	}
	if c.notIn, err = prefixes(m.GetNotSourceCidrs()); err != nil {
		return nil, err
	}
	if m.Fraction != nil {
		c.fraction = int64(m.GetFraction())
	}
	return c, nil
}

func wanted(b *bool) int8 {
	switch {
	case b == nil:
		return 0
	case *b:
		return 1
	}
	return -1
}

func prefixes(list []string) (out []netip.Prefix, err error) {
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is not a network such as 10.0.0.0/8", text)
		}
		out = append(out, p)
	}
	return out, nil
}

func compileTest(f *configv1.FieldMatch) (t fieldTest, err error) {
	t = fieldTest{
		id: header.Lookup([]byte(f.GetName())), name: []byte(f.GetName()),
		fold: f.GetIgnoreCase(), invert: f.GetInvert(), missingAsEmpty: f.GetMissingAsEmpty(),
	}
	text := func(kind testKind, s string) {
		if t.fold {
			s = string(header.AppendLower(nil, []byte(s)))
		}
		t.kind, t.text = kind, []byte(s)
	}
	switch test := f.GetTest().(type) {
	case *configv1.FieldMatch_Exact:
		text(testExact, test.Exact)
	case *configv1.FieldMatch_Prefix:
		text(testPrefix, test.Prefix)
	case *configv1.FieldMatch_Suffix:
		text(testSuffix, test.Suffix)
	case *configv1.FieldMatch_Contains:
		text(testContains, test.Contains)
	case *configv1.FieldMatch_Regex:
		t.kind = testRegex
		t.regex, err = routing.Expression(test.Regex)
	case *configv1.FieldMatch_Range:
		t.kind, t.start, t.end = testRange, test.Range.GetStart(), test.Range.GetEnd()
	case *configv1.FieldMatch_Present:
		t.kind, t.invert = testPresent, f.GetInvert() == test.Present
	default:
		err = fmt.Errorf("there is no test")
	}
	return t, err
}

func (c *conditions) hold(r *Request) bool {
	if c.fraction >= 0 && int64(r.Draw) >= c.fraction {
		return false
	}
	if c.tls != 0 && (c.tls > 0) != r.TLS || c.cert != 0 && (c.cert > 0) != r.Certified {
		return false
	}
	if c.in != nil && !within(c.in, r.Source) || c.notIn != nil && within(c.notIn, r.Source) {
		return false
	}
	for i := range c.headers {
		t := &c.headers[i]
		value, there := r.header(t)
		if !t.holds(value, there) {
			return false
		}
	}
	for i := range c.query {
		t := &c.query[i]
		value, there := Parameter(r.Path, t.name)
		if !t.holds(value, there) {
			return false
		}
	}
	for i := range c.cookies {
		t := &c.cookies[i]
		value, there := Cookie(r.Fields, t.name)
		if !t.holds(value, there) {
			return false
		}
	}
	return (c.media == nil && c.grpc == 0) || c.content(r)
}

func within(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func (c *conditions) content(r *Request) bool {
	var media []byte // two of them are none: servers read them differently
	if i := r.Fields.Index(header.ContentType, 0); i >= 0 && r.Fields.Index(header.ContentType, i+1) < 0 {
		media = r.Fields.ValueAt(i)
	}
	if i := bytes.IndexByte(media, ';'); i >= 0 {
		media = media[:i]
	}
	media = header.TrimSpace(media)
	if c.grpc != 0 {
		const grpc = "application/grpc"
		is := len(media) >= len(grpc) && equalFold(media[:len(grpc)], []byte(grpc)) && (len(media) == len(grpc) || media[len(grpc)] == '+')
		if is != (c.grpc > 0) {
			return false
		}
	}
	if c.media == nil {
		return true
	}
	for _, m := range c.media {
		if n := len(m); n == 0 || (m[n-1] == '/' && len(media) >= n && equalFold(media[:n], m)) || equalFold(media, m) {
			return true
		}
	}
	return false
}

// header is the value of a name, several joined by ",".
func (r *Request) header(t *fieldTest) (value []byte, there bool) {
	b := r.Fields
	next := func(from int) int {
		if t.id != header.Other {
			return b.Index(t.id, from)
		}
		return b.IndexName(t.name, from)
	}
	i := next(0)
	if i < 0 {
		return nil, false
	}
	value = b.ValueAt(i)
	if i = next(i + 1); i < 0 {
		return value, true
	}
	joined := append(r.Scratch[:0], value...)
	for ; i >= 0; i = next(i + 1) {
		joined = append(append(joined, ','), b.ValueAt(i)...)
	}
	r.Scratch = joined
	return joined, true
}

// Parameter is the first of that name in the query of a path, as it is written.
func Parameter(path, name []byte) (value []byte, there bool) {
	q := bytes.IndexByte(path, '?')
	if q < 0 {
		return nil, false
	}
	for query := path[q+1:]; len(query) > 0; {
		item := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			item, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		key, value := item, []byte(nil)
		if i := bytes.IndexByte(item, '='); i >= 0 {
			key, value = item[:i], item[i+1:]
		}
		if len(item) > 0 && bytes.Equal(key, name) {
			return value, true
		}
	}
	return nil, false
}

// Cookie is the value of the first cookie of that name, without quotes around it (RFC 6265 4.1.1).
func Cookie(b *header.Block, name []byte) (value []byte, there bool) {
	for i := b.Index(header.Cookie, 0); i >= 0; i = b.Index(header.Cookie, i+1) {
		for list := b.ValueAt(i); len(list) > 0; {
			item := list
			if semicolon := bytes.IndexByte(list, ';'); semicolon >= 0 {
				item, list = list[:semicolon], list[semicolon+1:]
			} else {
				list = nil
			}
			item = header.TrimSpace(item)
			equals := bytes.IndexByte(item, '=')
			if equals < 0 || !bytes.Equal(item[:equals], name) {
				continue
			}
			value = item[equals+1:]
			if n := len(value); n > 1 && value[0] == '"' && value[n-1] == '"' {
				value = value[1 : n-1]
			}
			return value, true
		}
	}
	return nil, false
}

func (t *fieldTest) holds(value []byte, there bool) bool {
	if t.kind == testPresent {
		return there != t.invert
	}
	if !there && !t.missingAsEmpty {
		return false
	}
	return t.test(value) != t.invert
}

func (t *fieldTest) test(v []byte) bool {
	n := len(t.text)
	switch t.kind {
	case testExact:
		return len(v) == n && t.equal(v)
	case testPrefix:
		return len(v) >= n && t.equal(v[:n])
	case testSuffix:
		return len(v) >= n && t.equal(v[len(v)-n:])
	case testContains:
		if !t.fold {
			return bytes.Contains(v, t.text)
		}
		for i := 0; i+n <= len(v); i++ {
			if t.equal(v[i : i+n]) {
				return true
			}
		}
		return false
	case testRegex:
		return t.regex.Match(v)
	}
	i, ok := integer(v)
	return ok && i >= t.start && i < t.end
}

func (t *fieldTest) equal(v []byte) bool {
	if t.fold {
		return equalFold(v, t.text)
	}
	return bytes.Equal(v, t.text)
}

// equalFold compares with a text in lower case; ASCII only.
func equalFold(v, low []byte) bool {
	if len(v) != len(low) {
		return false
	}
	for i, c := range v {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != low[i] {
			return false
		}
	}
	return true
}

// integer reads a decimal number with an optional minus.
func integer(v []byte) (n int64, ok bool) {
	negative := len(v) > 0 && v[0] == '-'
	if negative {
		v = v[1:]
	}
	if len(v) == 0 {
		return 0, false
	}
	const limit = -1 << 63
	for _, c := range v { // downwards: there is one more below zero
		d := int64(c - '0')
		if c < '0' || c > '9' || n < limit/10 || (n == limit/10 && d > 8) {
			return 0, false
		}
		n = n*10 - d
	}
	if negative {
		return n, true
	}
	return -n, n != limit
}
