// Package cors is the filter that answers preflight requests of browsers and tells them which responses pages of other origins may
// read (Envoy's cors; the Fetch standard, section CORS protocol). All calls come from the worker's thread.
package cors

import (
	"fmt"
	"strconv"
	"strings"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/freelist"
	"retinue.dev/proxyd/internal/filter/pattern"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// detail is RESPONSE_CODE_DETAILS of a preflight's answer.
const detail = "cors_response"

// maxOrigin bounds the origins that are looked at, in bytes: a scheme and a host with a port.
const maxOrigin = 512

// Filter is the filter of one object: a stream.Factory.
type Filter struct {
	origins     pattern.List
	any         bool // every origin, and no credentials: the answer is "*" whoever asks
	methods     []byte
	headers     []byte
	expose      []byte
	maxAge      []byte
	credentials bool
	shadow      bool
	answers     bool                    // preflight requests of other origins too
	free        []freelist.List[policy] // by worker
	cells       []*counters.CORS
}

// New builds the filter.
func New(o *configv1.CorsFilter, workers int, cells []*counters.CORS) (*Filter, error) {
	f := &Filter{
		credentials: o.GetAllowCredentials(), shadow: o.GetShadow(), answers: o.GetAnswerNotMatchingPreflights(), free: make([]freelist.List[policy], workers), cells: cells,
		methods: join(o.GetAllowMethods()), headers: join(o.GetAllowHeaders()), expose: join(o.GetExposeHeaders()),
	}
	var err error
	if f.origins, err = pattern.Compile(o.GetAllowOrigins()); err != nil {
		return nil, fmt.Errorf("origin %w", err)
	}
	if f.origins.Any() && f.credentials {
		return nil, fmt.Errorf("every origin and allow_credentials together would let every page act as the user")
	}
	f.any = f.origins.Any()
	if o.MaxAgeSeconds != nil {
		f.maxAge = strconv.AppendInt(nil, o.GetMaxAgeSeconds(), 10)
	}
	for _, value := range [][]byte{f.methods, f.headers, f.expose} {
		if !header.ValidValue(value) {
			return nil, fmt.Errorf("%q cannot be a header's value", value)
		}
	}
	return f, nil
}

func join(list []string) []byte { return []byte(strings.Join(list, ",")) }

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(w *worker.Worker) stream.Filter {
	p := f.free[w.ID].Take()
	p.Filter = f
	return p
}

// policy is the filter of one stream.
type policy struct {
	stream.PassThrough
	*Filter
	allowed bool   // the origin may read the response
	origin  []byte // as it came: filters behind this one may edit the request
}

// DecodeHeaders implements stream.Filter.
func (p *policy) DecodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	s := c.Stream()
	at := s.Request.Index(header.Origin, 0)
	if at < 0 {
		return stream.Continue
	}
	origin := s.Request.ValueAt(at)
	cells := p.cells[s.Worker.ID]
	if len(origin) > maxOrigin || !p.origins.Match(origin) {
		cells[counters.CORSOriginInvalid]++
		if p.answers && !p.shadow && preflight(&s.Request) {
			s.NewReply(200)
			s.SendReply(nil, "", detail)
			return stream.StopIteration
		}
		return stream.Continue // the browser keeps the response from the page
	}
	cells[counters.CORSOriginValid]++
	if p.shadow {
		return stream.Continue
	}
	p.allowed = true
	p.origin = append(p.origin[:0], origin...)
	if !preflight(&s.Request) {
		return stream.Continue
	}
	h := s.NewReply(200)
	add := func(id header.ID, value []byte) {
		if len(value) > 0 {
			h.Set(id, nil, value)
		}
	}
	add(header.AccessControlAllowMethods, p.methods)
	add(header.AccessControlAllowHeaders, p.headers)
	add(header.AccessControlMaxAge, p.maxAge)
	s.SendReply(nil, "", detail) // through EncodeHeaders, which adds the origin
	return stream.StopIteration
}

// preflight tells a request that a browser makes before the one of a page.
func preflight(r *header.Request) bool {
	return r.MethodID() == header.MethodOptions && r.Has(header.AccessControlRequestMethod)
}

// EncodeHeaders implements stream.Filter. For an allowed origin it replaces what the upstream says.
func (p *policy) EncodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	h := c.Stream().Response
	if !p.any && !p.shadow { // the response differs by origin, also for who has none
		vary(h)
	}
	if !p.allowed {
		return stream.Continue
	}
	if p.any {
		h.Set(header.AccessControlAllowOrigin, nil, star)
	} else {
		h.Set(header.AccessControlAllowOrigin, nil, p.origin)
	}
	if p.credentials {
		h.Set(header.AccessControlAllowCredentials, nil, yes)
	}
	if len(p.expose) > 0 {
		h.Set(header.AccessControlExposeHeaders, nil, p.expose)
	}
	return stream.Continue
}

var star, yes, nameOrigin = []byte("*"), []byte("true"), []byte("Origin")

// vary adds Origin to Vary, once.
func vary(h *header.Response) {
	for i := h.Index(header.Vary, 0); i >= 0; i = h.Index(header.Vary, i+1) {
		for list := h.ValueAt(i); ; {
			token, rest, more := header.NextToken(list)
			if !more {
				break
			}
			if header.EqualFold(token, "origin") || string(token) == "*" {
				return
			}
			list = rest
		}
	}
	h.Add(header.Vary, nil, nameOrigin)
}

// OnDestroy implements stream.Filter.
func (p *policy) OnDestroy(c *stream.Callbacks) {
	p.allowed = false
	p.free[c.Stream().Worker.ID].Give(p)
}
