package globalratelimit

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"

	"retinue.dev/proxyd/internal/callout/message"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/route"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// maxValue is where values that a request brings are cut, in bytes: what is too long shares a limit with what begins alike.
const maxValue = 1024

// Fields of envoy.service.ratelimit.v3.RateLimitRequest, of its descriptors and of their entries.
const (
	requestDomain      = 1
	requestDescriptors = 2
	requestHitsAddend  = 3
	descriptorEntries  = 1
	descriptorLimit    = 2
	descriptorHits     = 3
	entryKey           = 1
	entryValue         = 2
	overrideRequests   = 1
	overrideUnit       = 2
	wrapped            = 1 // the one field of a UInt64Value
)

// maxHits bounds what a request counts, as Envoy does.
const maxHits = 1_000_000_000

// units are those of envoy.type.v3.RateLimitUnit.
var units = map[string]uint64{"second": 1, "minute": 2, "hour": 3, "day": 4, "month": 5, "year": 6}

type actionKind uint8

const (
	genericKey actionKind = iota
	remoteAddress
	requestHeader
	methodHeader
	pathHeader
	authorityHeader
	schemeHeader
	queryParameter
	destinationCluster
	valueMatch
	formatted
)

// action makes one entry of a descriptor.
type action struct {
	kind   actionKind
	skip   bool // without a value the entry is left out, and not the descriptor
	key    []byte
	value  []byte // genericKey, valueMatch
	format Value  // formatted
	id     header.ID
	name   []byte // of a header or a parameter
	whole  bool   // the address itself
	v4, v6 int    // lengths of prefixes
	when   *route.When
	meets  bool // what is expected of when
}

// descriptor is its actions, in order, and what it says of its limit.
type descriptor struct {
	actions []action
	hits    Value // what a request counts; nil: as much as for the others
	limit   Value // how much a unit has; nil: the service says
	unit    uint64
}

func newDescriptor(d *configv1.RateLimitDescriptor, value func(string) (Value, error)) (out descriptor, err error) {
	if len(d.GetActions()) == 0 {
		return out, fmt.Errorf("there is no action")
	}
	for i, o := range d.GetActions() {
		a, err := newAction(o, value)
		if err != nil {
			return out, fmt.Errorf("actions[%d]: %w", i, err)
		}
		out.actions = append(out.actions, a)
	}
	if d.GetHitsAddend() != "" {
		if out.hits, err = value(d.GetHitsAddend()); err != nil {
			return out, fmt.Errorf("hits_addend: %w", err)
		}
	}
	if d.GetLimitRequests() != "" {
		if out.limit, err = value(d.GetLimitRequests()); err != nil {
			return out, fmt.Errorf("limit: %w", err)
		}
		if out.unit = units[d.GetLimitUnit()]; out.unit == 0 {
			return out, fmt.Errorf("%q is no unit of a limit", d.GetLimitUnit())
		}
	}
	return out, nil
}

func newAction(o *configv1.RateLimitAction, value func(string) (Value, error)) (action, error) {
	a := action{key: []byte(o.GetKey()), skip: o.GetSkipIfAbsent()}
	if len(a.key) == 0 {
		return a, fmt.Errorf("there is no key")
	}
	switch k := o.GetKind().(type) {
	case *configv1.RateLimitAction_GenericKey:
		a.kind, a.value = genericKey, []byte(k.GenericKey)
	case *configv1.RateLimitAction_Format:
		a.kind = formatted
		var err error
		if a.format, err = value(k.Format); err != nil {
			return a, err
		}
	case *configv1.RateLimitAction_RemoteAddress:
		a.kind, a.whole = remoteAddress, k.RemoteAddress.GetWhole()
		a.v4, a.v6 = int(k.RemoteAddress.GetV4PrefixLen()), int(k.RemoteAddress.GetV6PrefixLen())
		if a.v4 > 32 || a.v6 > 128 {
			return a, fmt.Errorf("prefixes of %d and %d bits are too long", a.v4, a.v6)
		}
	case *configv1.RateLimitAction_RequestHeader:
		switch k.RequestHeader {
		case ":method":
			a.kind = methodHeader
		case ":path":
			a.kind = pathHeader
		case ":authority":
			a.kind = authorityHeader
		case ":scheme":
			a.kind = schemeHeader
		default:
			a.kind, a.name = requestHeader, []byte(k.RequestHeader)
			if a.id = header.Lookup(a.name); !header.ValidName(a.name) {
				return a, fmt.Errorf("%q is not a header name", k.RequestHeader)
			}
		}
	case *configv1.RateLimitAction_QueryParameter:
		if a.kind, a.name = queryParameter, []byte(k.QueryParameter); len(a.name) == 0 {
			return a, fmt.Errorf("a query parameter has a name")
		}
	case *configv1.RateLimitAction_DestinationCluster:
		a.kind = destinationCluster
	case *configv1.RateLimitAction_Match:
		a.kind, a.value, a.meets = valueMatch, []byte(k.Match.GetValue()), !k.Match.GetExpectNoMatch()
		var err error
		if a.when, err = route.CompileWhen(k.Match.GetMatch()); err != nil {
			return a, err
		}
		if a.when == nil {
			return a, fmt.Errorf("there is no condition")
		}
	default:
		return a, fmt.Errorf("the action is of a kind that this proxyd does not have")
	}
	if (a.kind == genericKey || a.kind == valueMatch) && len(a.value) == 0 {
		return a, fmt.Errorf("there is no value")
	}
	return a, nil
}

func appendDomain(b []byte, domain string) []byte {
	return message.Text(b, requestDomain, []byte(domain))
}

// buffers are a worker's scratch: nested messages are written from the inside out.
type buffers struct{ value, entry, entries, match []byte }

// appendRequest appends a RateLimitRequest. described is false where no descriptor is left.
func (f *Filter) appendRequest(dst []byte, s *stream.Stream, m *buffers) (request []byte, described bool) {
	dst = append(dst, f.domain...)
	for i := range f.descriptors {
		if !f.descriptors[i].append(s, m) {
			continue
		}
		dst, described = message.Field(dst, requestDescriptors, m.entries), true
	}
	if f.hits != 1 { // the service's default
		dst = message.Number(dst, requestHitsAddend, f.hits)
	}
	return dst, described
}

// append makes the descriptor of a request in m.entries; false where it is left out.
func (d *descriptor) append(s *stream.Stream, m *buffers) bool {
	m.entries = m.entries[:0]
	for i := range d.actions {
		a := &d.actions[i]
		value := a.find(s, m)
		if len(value) == 0 { // the API has no empty ones
			if a.skip {
				continue
			}
			return false
		}
		m.entry = message.Text(m.entry[:0], entryKey, a.key)
		m.entry = message.Text(m.entry, entryValue, value[:min(len(value), maxValue)])
		m.entries = message.Field(m.entries, descriptorEntries, m.entry)
	}
	if len(m.entries) == 0 {
		return false
	}
	if n, is := m.number(d.limit, s, math.MaxUint32); is {
		m.entry = message.Number(m.entry[:0], overrideRequests, n)
		m.entry = message.Number(m.entry, overrideUnit, d.unit)
		m.entries = message.Field(m.entries, descriptorLimit, m.entry)
	}
	if n, is := m.number(d.hits, s, maxHits); is {
		m.entry = message.Number(m.entry[:0], wrapped, n)
		m.entries = message.Field(m.entries, descriptorHits, m.entry)
	}
	return true
}

// number is a value that is one; is tells so.
func (m *buffers) number(v Value, s *stream.Stream, most uint64) (n uint64, is bool) {
	if v == nil {
		return 0, false
	}
	m.value = v.Append(m.value[:0], s)
	for _, c := range m.value {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = n*10 + uint64(c-'0'); n > most {
			return 0, false
		}
	}
	return n, len(m.value) > 0
}

// find is the entry's value for a request; empty where there is none.
func (a *action) find(s *stream.Stream, m *buffers) []byte {
	r := &s.Request
	switch a.kind {
	case genericKey:
		return a.value
	case remoteAddress:
		m.value = a.appendAddress(m.value[:0], s.Client)
		return m.value
	case requestHeader:
		if a.id != header.Other {
			return r.Get(a.id)
		}
		return r.GetName(a.name)
	case methodHeader:
		return r.Method()
	case pathHeader:
		return r.Path()
	case authorityHeader:
		return r.Authority()
	case schemeHeader:
		return r.Scheme()
	case queryParameter:
		m.value = appendParameter(m.value[:0], r.Path(), a.name)
		return m.value
	case formatted:
		m.value = a.format.Append(m.value[:0], s)
		return m.value
	case destinationCluster:
		m.value = append(m.value[:0], s.Destination()...)
		return m.value
	case valueMatch:
		asked := route.Request{
			Path: r.Path(), ID: r.MethodID(), Method: r.Method(), Fields: &r.Block, Source: s.Client,
			TLS: string(r.Scheme()) == "https", Certified: s.Certified, Scratch: m.match,
		}
		if a.when.Draws() {
			asked.Draw = uint32(s.Worker.Rand() % million)
		}
		met := a.when.Meets(&asked)
		if m.match = asked.Scratch; met == a.meets {
			return a.value
		}
	}
	return nil
}

// appendAddress appends an address, or the network that it is in; nothing for a client of a Unix socket.
func (a *action) appendAddress(dst []byte, address netip.Addr) []byte {
	address = address.Unmap().WithZone("")
	if !address.IsValid() {
		return dst
	}
	if a.whole {
		return address.AppendTo(dst)
	}
	bits := a.v6
	if address.Is4() {
		bits = a.v4
	}
	network, _ := address.Prefix(bits) // which is not longer than the address
	return network.AppendTo(dst)
}

// appendParameter appends the value of the first parameter of that name, percent-decoded as the name is: who writes one in another
// way is not to have another limit.
func appendParameter(dst, path, name []byte) []byte {
	at := bytes.IndexByte(path, '?')
	if at < 0 {
		return dst
	}
	for query := path[at+1:]; len(query) > 0; {
		item := query
		if i := bytes.IndexByte(query, '&'); i >= 0 {
			item, query = query[:i], query[i+1:]
		} else {
			query = nil
		}
		key, value, _ := bytes.Cut(item, equals)
		begin := len(dst)
		dst = appendDecoded(dst, key)
		found := bytes.Equal(dst[begin:], name)
		if dst = dst[:begin]; found {
			return appendDecoded(dst, value)
		}
	}
	return dst
}

var equals = []byte("=")

// appendDecoded appends a text with its percent-encodings decoded; what is none stays.
func appendDecoded(dst, text []byte) []byte {
	for i := 0; i < len(text); i++ {
		if text[i] == '%' && i+2 < len(text) {
			high, low := digit(text[i+1]), digit(text[i+2])
			if high < 16 && low < 16 {
				dst = append(dst, high<<4|low)
				i += 2
				continue
			}
		}
		dst = append(dst, text[i])
	}
	return dst
}

// digit is the value of a hexadecimal digit; 16 for what is none.
func digit(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	case c >= 'A' && c <= 'F':
		return c - 'A' + 10
	}
	return 16
}
