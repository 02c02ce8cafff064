// Package jwt is the filter that lets requests pass that have a JSON Web Token of the right provider (Envoy's jwt_authn; RFC 7519).
//
// A token is read strictly, compared with what its provider asks for, and its signature checked with the provider's keys, on the
// worker. What was verified is kept by the worker, so that a client's next request costs neither. Keys that are fetched are the main
// side's business: workers find them published, and a stream that comes before the first ones waits for them on its worker's loop.
//
// What the filter tells the upstream (payload, claims) it takes out of every request first, whatever becomes of its token.
package jwt

import (
	"bytes"
	"errors"
	"fmt"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/freelist"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// maxURL bounds the realm that a refusal names, in bytes (Envoy's MaximumUriLength).
const maxURL = 256

// Filter is the filter of one object: a stream.Factory.
type Filter struct {
	providers []*Provider
	required  requirement
	preflight bool
	own       []ownName // headers that only the filter may set
	front     front
	workers   []scratch
	cells     []*counters.JWT
}

type ownName struct {
	id   header.ID
	name []byte
}

// scratch is a worker's.
type scratch struct {
	free    freelist.List[check]
	results []result
	text    []byte
}

// result is a token that was verified.
type result struct {
	provider *Provider
	verified *verified
}

// New builds the filter. provider makes or finds the provider of a message.
func New(o *configv1.JwtFilter, workers int, cells []*counters.JWT, provider func(*configv1.JwtProvider) (*Provider, error)) (*Filter, error) {
	f := &Filter{preflight: o.GetBypassCorsPreflight(), workers: make([]scratch, workers), cells: cells}
	f.front.Filter = f
	byName := map[string]*Provider{}
	for _, m := range o.GetProviders() {
		p, err := provider(m)
		if err != nil {
			return nil, fmt.Errorf("jwt_provider %q: %w", m.GetName(), err)
		}
		f.providers, byName[p.Name] = append(f.providers, p), p
		if p.payloadName != nil {
			f.own = append(f.own, ownName{p.payloadID, p.payloadName})
		}
		for i := range p.claims {
			f.own = append(f.own, ownName{p.claims[i].id, p.claims[i].name})
		}
	}
	var err error
	if f.required, err = newRequirement(o, byName); err != nil {
		return nil, err
	}
	for _, p := range f.providers {
		for _, n := range f.own {
			if p.reads(n.name) {
				return nil, fmt.Errorf("header %q holds tokens of jwt_provider %q: it cannot be set too", n.name, p.Name)
			}
		}
	}
	return f, nil
}

// Update takes changed files of keys. Main's threads only.
func (f *Filter) Update(secrets *tlstransport.Secrets) error {
	var failed error
	for _, p := range f.providers {
		if err := p.Update(secrets); err != nil {
			failed = errors.Join(failed, fmt.Errorf("jwt_provider %q: %w", p.Name, err))
		}
	}
	return failed
}

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(*worker.Worker) stream.Filter { return &f.front }

// front is the one filter of all streams, which judges their heads. A stream that passes leaves it; one that waits has a check instead.
type front struct {
	stream.PassThrough
	*Filter
}

// check is the filter of one stream that waits.
type check struct {
	stream.PassThrough
	*Filter
	cb     *stream.Callbacks // while the request is held
	paused bool
	waits  uint8 // how often it has waited

	on         *list // where it waits; nil: it does not
	prev, next *check
}

// list is the checks that wait for one provider's keys, oldest first.
type list struct {
	first, last *check
	n           int
}

func (l *list) add(c *check) {
	c.on, c.prev, c.next = l, l.last, nil
	if l.last != nil {
		l.last.next = c
	} else {
		l.first = c
	}
	l.last = c
	l.n++
}

func (l *list) remove(c *check) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		l.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		l.last = c.prev
	}
	c.on, c.prev, c.next = nil, nil, nil
	l.n--
}

// DecodeHeaders implements stream.Filter.
func (f *front) DecodeHeaders(cb *stream.Callbacks, end bool) stream.Status {
	s := cb.Stream()
	for i := range f.own {
		if n := &f.own[i]; n.id != header.Other {
			s.Request.RemoveID(n.id)
		} else {
			s.Request.RemoveName(n.name)
		}
	}
	if f.preflight && preflight(&s.Request) {
		f.cells[s.Worker.ID][counters.JWTPreflightBypassed]++
		f.cells[s.Worker.ID][counters.JWTAllowed]++
		return stream.Leave
	}
	switch st, on := f.judge(s, true); st {
	case good:
		f.pass(s)
		return stream.Leave
	case waiting:
		if on.n < maxWaiting {
			c := f.workers[s.Worker.ID].free.Take()
			c.Filter, c.cb, c.waits = f.Filter, cb, 1
			cb.Become(c)
			on.add(c)
			if c.paused = !end; c.paused { // nothing but what has come is kept
				s.PauseRequest()
			}
			return stream.StopAndBuffer
		}
		f.refuse(s, fetchFailed)
	default:
		f.refuse(s, st)
	}
	return stream.StopIteration
}

// DecodeData implements stream.Filter.
func (c *check) DecodeData(_ *stream.Callbacks, data []byte, _ bool) ([]byte, stream.Status) {
	if c.cb != nil {
		return data, stream.StopAndBuffer
	}
	return data, stream.Continue
}

// DecodeTrailers implements stream.Filter.
func (c *check) DecodeTrailers(*stream.Callbacks) stream.Status {
	if c.cb != nil {
		return stream.StopIteration
	}
	return stream.Continue
}

// again judges the request anew: the keys that it waited for are here, or will not come.
func (c *check) again() {
	cb := c.cb
	s := cb.Stream()
	if s.DecodeClosed() {
		return // it was answered meanwhile: a time-out
	}
	switch st, on := c.judge(s, c.waits < mostWaits); st {
	case good:
		c.cb = nil
		c.pass(s)
		if c.paused {
			c.paused = false
			s.ResumeRequest()
		}
		cb.ContinueDecoding()
	case waiting:
		c.waits++
		on.add(c) // there are not more than waited where it did
	default:
		c.cb = nil
		c.refuse(s, st)
	}
}

// preflight tells a request that a browser makes on its own before one to another origin.
func preflight(r *header.Request) bool {
	return r.MethodID() == header.MethodOptions && len(r.Get(header.Origin)) > 0 && len(r.Get(header.AccessControlRequestMethod)) > 0
}

// pass tells the upstream what the tokens say.
func (f *Filter) pass(s *stream.Stream) {
	f.cells[s.Worker.ID][counters.JWTAllowed]++
	mine := &f.workers[s.Worker.ID]
	r := &s.Request
	for i := range mine.results {
		p, v := mine.results[i].provider, mine.results[i].verified
		if v.payload != nil {
			r.Set(p.payloadID, p.payloadName, v.payload)
		}
		for k := range v.claims {
			if v.claims[k] != nil {
				r.Set(p.claims[k].id, p.claims[k].name, v.claims[k])
			}
		}
		if !p.forward {
			mine.text = remove(p.places, r, mine.text)
		}
		mine.results[i] = result{}
	}
}

// refuse answers for a request without what is required. Its tokens, which may be good elsewhere, do not get into an access log.
func (f *Filter) refuse(s *stream.Stream, st status) {
	f.cells[s.Worker.ID][counters.JWTDenied]++
	mine := &f.workers[s.Worker.ID]
	for _, p := range f.providers {
		if !p.forward {
			mine.text = remove(p.places, &s.Request, mine.text)
		}
	}
	mine.text = append(appendURL(append(mine.text[:0], `Bearer realm="`...), &s.Request), '"')
	if st != missing {
		mine.text = append(mine.text, `, error="invalid_token"`...)
	}
	code := 401
	if st == audienceNotAllowed {
		code = 403
	}
	s.NewReply(code).Set(header.WWWAuthenticate, nil, mine.text)
	s.SendReply(bodies[st], "text/plain", details[st])
}

// appendURL appends the URL of a request, cut at maxURL and without its query, where a token may stand. A quote or a backslash does
// not end the parameter that it is in.
func appendURL(dst []byte, r *header.Request) []byte {
	start := len(dst)
	dst = append(append(append(dst, r.Scheme()...), "://"...), r.Authority()...)
	for _, b := range r.PathOnly() {
		switch {
		case len(dst)-start >= maxURL:
			return dst
		case b == '"':
			dst = append(dst, "%22"...)
		case b == '\\':
			dst = append(dst, "%5C"...)
		default:
			dst = append(dst, b)
		}
	}
	return dst
}

// OnDestroy implements stream.Filter.
func (c *check) OnDestroy(cb *stream.Callbacks) {
	if c.on != nil {
		c.on.remove(c)
	}
	c.cb, c.paused = nil, false
	c.workers[cb.Stream().Worker.ID].free.Give(c)
}

// reads tells whether tokens stand in a header.
func (p *Provider) reads(name []byte) bool {
	for i := range p.places {
		if p.places[i].kind == inHeader && bytes.Equal(p.places[i].name, name) {
			return true
		}
	}
	return false
}
