package plugin

import (
	"bytes"
	"fmt"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// Bounds of what a subscription may ask for.
const (
	maxNames      = 100
	maxPrefix     = 64 << 10
	maxBuffer     = 1 << 20
	maxConditions = 32
)

// pseudo is a part of a head that is no field.
type pseudo uint8

const (
	field pseudo = iota
	method
	path
	authority
	scheme
	status
)

// name is a header that a filter sees.
type name struct {
	pseudo pseudo
	id     header.ID
	text   []byte
}

type attribute struct {
	kind attributeKind
	text []byte
}

type attributeKind uint8

const (
	sourceAddress attributeKind = iota
	sourceIP
	connectionID
	protocolName
	listenerName
	routeName
	hostName
)

var attributeNames = map[string]attributeKind{
	"source.address": sourceAddress, "source.ip": sourceIP, "connection.id": connectionID, "request.protocol": protocolName,
	"listener.name": listenerName, "route.name": routeName, "virtual_host.name": hostName,
}

// condition is one condition of when.
type condition struct {
	name    name
	compare filterv1.Compare
	value   []byte
	negate  bool
}

// subscription is a filterv1.Subscription in the form that a worker uses. It never changes.
type subscription struct {
	phases      uint32 // a bit for each
	request     []name
	allRequest  bool
	response    []name
	allResponse bool
	attributes  []attribute
	modes       [2]filterv1.BodyMode // by direction
	prefix      int
	buffer      int
	when        []condition
	observe     bool
	cacheKey    []name
	maxInFlight int // 0: the configuration's
}

func (s *subscription) has(p filterv1.Phase) bool { return s.phases>>uint(p)&1 != 0 }

// compile checks a subscription. What is unknown in it is of a newer protocol and left out, but for what decides whether a
// filter is asked at all.
func compile(s *filterv1.Subscription) (*subscription, error) {
	c := &subscription{
		observe: s.GetObserveOnly(), prefix: min(int(s.GetPrefixBytes()), maxPrefix), buffer: int(s.GetBufferBytes()),
		maxInFlight: int(s.GetMaxInFlight()),
	}
	if c.buffer <= 0 || c.buffer > maxBuffer {
		c.buffer = maxBuffer
	}
	if c.prefix == 0 {
		c.prefix = 4 << 10
	}
	for _, p := range s.GetPhases() {
		if p > 0 && p < 32 {
			c.phases |= 1 << uint(p)
		}
	}
	if c.has(filterv1.Phase_PHASE_REQUEST_BODY) {
		c.modes[decode] = s.GetRequestBody()
	}
	if c.has(filterv1.Phase_PHASE_RESPONSE_BODY) {
		c.modes[encode] = s.GetResponseBody()
	}
	for _, m := range c.modes {
		if m < 0 || m > filterv1.BodyMode_BODY_BUFFER {
			return nil, fmt.Errorf("it wants body mode %d, which is not known", m)
		}
	}
	var err error
	if c.request, c.allRequest, err = names(s.GetRequestHeaders(), false); err != nil {
		return nil, err
	}
	if c.response, c.allResponse, err = names(s.GetResponseHeaders(), true); err != nil {
		return nil, err
	}
	if c.cacheKey, _, err = names(s.GetCacheable().GetKey(), false); err != nil {
		return nil, err
	}
	for _, a := range s.GetAttributes() {
		if kind, ok := attributeNames[a]; ok {
			c.attributes = append(c.attributes, attribute{kind, []byte(a)})
		}
	}
	if len(s.GetWhen()) > maxConditions {
		return nil, fmt.Errorf("it has %d conditions; at most %d are looked at", len(s.GetWhen()), maxConditions)
	}
	for _, w := range s.GetWhen() {
		if w.GetCompare() < 0 || w.GetCompare() > filterv1.Compare_COMPARE_CONTAINS {
			return nil, fmt.Errorf("it compares by %d, which is not known", w.GetCompare())
		}
		n, _, err := names([]string{w.GetName()}, false)
		if err != nil || len(n) != 1 {
			return nil, fmt.Errorf("its condition on %q: no name of a header", w.GetName())
		}
		c.when = append(c.when, condition{n[0], w.GetCompare(), []byte(w.GetValue()), w.GetNegate()})
	}
	return c, nil
}

func names(list []string, response bool) (out []name, all bool, err error) {
	if len(list) > maxNames {
		return nil, false, fmt.Errorf("it wants %d headers; at most %d are possible, \"*\" is all", len(list), maxNames)
	}
	for _, text := range list {
		n := name{text: []byte(text)}
		switch {
		case text == "*":
			all = true
			continue
		case text == ":status" && response:
			n.pseudo = status
		case text == ":method" && !response:
			n.pseudo = method
		case text == ":path" && !response:
			n.pseudo = path
		case text == ":authority" && !response:
			n.pseudo = authority
		case text == ":scheme" && !response:
			n.pseudo = scheme
		case header.ValidName(n.text):
			n.text = header.AppendLower(nil, n.text)
			n.id = header.Lookup(n.text)
		default:
			return nil, false, fmt.Errorf("%q is no name of a header", text)
		}
		out = append(out, n)
	}
	return out, all, nil
}

// of is the first value of the name in a request, nil when there is none.
func (n *name) of(r *header.Request) []byte {
	switch n.pseudo {
	case method:
		return r.Method()
	case path:
		return r.Path()
	case authority:
		return r.Authority()
	case scheme:
		return r.Scheme()
	}
	if n.id != header.Other {
		return r.Get(n.id)
	}
	return r.GetName(n.text)
}

// applies tells whether a request meets all conditions.
func (c *subscription) applies(s *stream.Stream) bool {
	for i := range c.when {
		w := &c.when[i]
		v := w.name.of(&s.Request)
		var ok bool
		switch w.compare {
		case filterv1.Compare_COMPARE_PRESENT:
			ok = v != nil
		case filterv1.Compare_COMPARE_EQUAL:
			ok = v != nil && bytes.Equal(v, w.value)
		case filterv1.Compare_COMPARE_PREFIX:
			ok = bytes.HasPrefix(v, w.value)
		case filterv1.Compare_COMPARE_SUFFIX:
			ok = bytes.HasSuffix(v, w.value)
		case filterv1.Compare_COMPARE_CONTAINS:
			ok = bytes.Contains(v, w.value)
		}
		if ok == w.negate {
			return false
		}
	}
	return true
}
