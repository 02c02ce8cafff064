package pluginsdk

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// Plugin is a program that makes filters out of configurations of type C, a struct with json tags.
type Plugin[C any] struct {
	Name    string
	Version string
	// Configure makes the filter of one configuration, or says what is wrong with it: an *Invalid names the field.
	Configure func(C) (Filter, error)
	// Concurrent gives each call a goroutine: for filters that wait for something.
	Concurrent bool
	// Metrics are the program's own counters and gauges, read now and then: at most 64, names of lower case, digits and "_".
	Metrics func() []Metric
}

// Metric is one of a program's own numbers. Of a counter the value never falls.
type Metric struct {
	Name  string
	Value float64
	Gauge bool
}

// engine is what a Plugin is inside: its configurations and what is open. One process has one.
type engine struct {
	hello      *filterv1.HelloReply
	configure  func(raw []byte) (Filter, error)
	concurrent bool
	metrics    func() []Metric

	mu      sync.RWMutex
	configs map[uint32]*configured

	holding     sync.Mutex // of connections and of what follows from them
	processors  int        // without those of connections
	connections atomic.Int32
	streams     atomic.Int64
}

// configured is one configuration in force.
type configured struct {
	filter        Filter
	sub           *filterv1.Subscription
	request       RequestFilter
	requestBody   RequestBodyFilter
	trailers      RequestTrailersFilter
	response      ResponseFilter
	responseBody  ResponseBodyFilter
	responseTrail ResponseTrailersFilter
	end           EndFilter
	network       NetworkFilter
	stateful      bool // more than one call a stream
}

func newEngine[C any](p Plugin[C]) (*engine, error) {
	schema, err := schemaOf(reflect.TypeFor[C]())
	if err != nil {
		return nil, err
	}
	if p.Name == "" || p.Configure == nil {
		return nil, errors.New("pluginsdk: a Plugin has a Name and a Configure")
	}
	return &engine{
		processors: runtime.GOMAXPROCS(0),
		hello: &filterv1.HelloReply{
			Name: p.Name, Version: p.Version, Protocol: 1, Capabilities: []string{"http", "network"}, Schema: schema,
		},
		configure: func(b []byte) (Filter, error) {
			var c C
			d := json.NewDecoder(bytes.NewReader(b))
			d.DisallowUnknownFields()
			if err := d.Decode(&c); err != nil {
				var wrong *json.UnmarshalTypeError
				if errors.As(err, &wrong) {
					return nil, &Invalid{wrong.Field, fmt.Sprintf("a %s does not fit", wrong.Value)}
				}
				return nil, err
			}
			return p.Configure(c)
		},
		concurrent: p.Concurrent, metrics: p.Metrics, configs: map[uint32]*configured{},
	}, nil
}

// setConfig is Configure of the protocol.
func (e *engine) setConfig(r *filterv1.ConfigureRequest) *filterv1.ConfigureReply {
	body := r.GetConfigJson()
	if len(body) == 0 {
		body = []byte("{}")
	}
	f, err := e.configure(body)
	if err == nil && f == nil {
		err = errors.New("the plugin made no filter of it")
	}
	if err != nil {
		problem := &filterv1.Problem{Message: err.Error()}
		var invalid *Invalid
		if errors.As(err, &invalid) {
			problem.Field, problem.Message = invalid.Field, invalid.Why
		}
		return &filterv1.ConfigureReply{Problems: []*filterv1.Problem{problem}}
	}
	c := newConfigured(f)
	if len(c.sub.GetPhases()) == 0 {
		return &filterv1.ConfigureReply{Problems: []*filterv1.Problem{{Message: "the filter implements no phase"}}}
	}
	e.mu.Lock()
	e.configs[r.GetConfigId()] = c
	e.mu.Unlock()
	return &filterv1.ConfigureReply{Subscription: c.sub}
}

func (e *engine) config(id uint32) *configured {
	e.mu.RLock()
	defer e.mu.RUnlock()
	return e.configs[id]
}

func (e *engine) retire(id uint32) {
	e.mu.Lock()
	delete(e.configs, id)
	e.mu.Unlock()
}

func newConfigured(f Filter) *configured {
	w := f.Wants()
	c := &configured{filter: f}
	var phases []filterv1.Phase
	calls := 0
	add := func(is bool, p ...filterv1.Phase) {
		if is {
			phases = append(phases, p...)
			calls++
		}
	}
	var is bool
	c.request, is = f.(RequestFilter)
	add(is, filterv1.Phase_PHASE_REQUEST_HEADERS)
	c.requestBody, is = f.(RequestBodyFilter)
	if is && w.RequestBody == None {
		w.RequestBody = Stream
	}
	add(is, filterv1.Phase_PHASE_REQUEST_BODY)
	c.trailers, is = f.(RequestTrailersFilter)
	add(is, filterv1.Phase_PHASE_REQUEST_TRAILERS)
	c.response, is = f.(ResponseFilter)
	add(is, filterv1.Phase_PHASE_RESPONSE_HEADERS)
	c.responseBody, is = f.(ResponseBodyFilter)
	if is && w.ResponseBody == None {
		w.ResponseBody = Stream
	}
	add(is, filterv1.Phase_PHASE_RESPONSE_BODY)
	c.responseTrail, is = f.(ResponseTrailersFilter)
	add(is, filterv1.Phase_PHASE_RESPONSE_TRAILERS)
	c.network, is = f.(NetworkFilter)
	add(is, filterv1.Phase_PHASE_CONNECT, filterv1.Phase_PHASE_READ, filterv1.Phase_PHASE_WRITE, filterv1.Phase_PHASE_CLOSE)
	c.end, is = f.(EndFilter)
	c.stateful = calls > 1 || c.requestBody != nil || c.responseBody != nil || c.network != nil || is
	if c.network == nil && c.stateful {
		phases = append(phases, filterv1.Phase_PHASE_END)
	}
	c.sub = &filterv1.Subscription{
		Phases: phases, RequestHeaders: w.RequestHeaders, ResponseHeaders: w.ResponseHeaders, Attributes: slices.Clone(w.Attributes),
		RequestBody: w.RequestBody, ResponseBody: w.ResponseBody, PrefixBytes: uint32(w.PrefixBytes), BufferBytes: uint32(w.BufferBytes),
		When: w.When, ObserveOnly: w.ObserveOnly, MaxInFlight: uint32(w.MaxInFlight),
	}
	if len(w.CacheKey) > 0 {
		c.sub.Cacheable = &filterv1.Cacheable{Key: w.CacheKey}
	}
	return c
}

// call asks the filter.
func (c *configured) call(e *event, s *StreamState, head *Head, body *Body) Answer {
	*head = Head{Stream: s, End: e.end, event: e}
	*body = Body{Stream: s, Data: e.body, End: e.end}
	switch {
	case e.phase == filterv1.Phase_PHASE_REQUEST_HEADERS && c.request != nil:
		return c.request.OnRequest(head)
	case e.phase == filterv1.Phase_PHASE_REQUEST_BODY && c.requestBody != nil:
		return c.requestBody.OnRequestBody(body)
	case e.phase == filterv1.Phase_PHASE_REQUEST_TRAILERS && c.trailers != nil:
		return c.trailers.OnRequestTrailers(head)
	case e.phase == filterv1.Phase_PHASE_RESPONSE_HEADERS && c.response != nil:
		return c.response.OnResponse(head)
	case e.phase == filterv1.Phase_PHASE_RESPONSE_BODY && c.responseBody != nil:
		return c.responseBody.OnResponseBody(body)
	case e.phase == filterv1.Phase_PHASE_RESPONSE_TRAILERS && c.responseTrail != nil:
		return c.responseTrail.OnResponseTrailers(head)
	case e.phase == filterv1.Phase_PHASE_CONNECT && c.network != nil:
		return c.network.OnConnect(head)
	case e.phase == filterv1.Phase_PHASE_READ && c.network != nil:
		return c.network.OnRead(body)
	case e.phase == filterv1.Phase_PHASE_WRITE && c.network != nil:
		return c.network.OnWrite(body)
	case e.phase == filterv1.Phase_PHASE_CLOSE && c.network != nil:
		c.network.OnClose(s)
	case e.phase == filterv1.Phase_PHASE_END && c.end != nil:
		c.end.OnEnd(s)
	}
	return Answer{}
}
