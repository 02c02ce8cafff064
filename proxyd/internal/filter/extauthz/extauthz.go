// Package extauthz is the filter that asks a service whether a request may pass (Envoy's ext_authz), by HTTP or by the gRPC API
// envoy.service.auth.v3. The stream waits on its worker's loop meanwhile; the service is a cluster like any other.
//
// What is decided may be kept for a while by declared inputs (cache). A service that cannot be asked refuses the request, unless
// failure_mode_allow says otherwise.
package extauthz

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/callout"
	"retinue.dev/proxyd/internal/callout/message"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/freelist"
	"retinue.dev/proxyd/internal/filter/pattern"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	million = 1_000_000
	// maxAnswer bounds the body of the service's answer, in bytes.
	maxAnswer = 64 << 10
	// maxKey bounds the inputs of a decision that is kept, in bytes.
	maxKey = 8 << 10
	// maxPath bounds a path with parameters that the service sets, in bytes.
	maxPath = 16 << 10
	// maxParameters bounds the edits of a query: each reads all of it.
	maxParameters = 100

	detailDenied = "ext_authz_denied"
	detailError  = "ext_authz_error"
)

var (
	checkPath   = []byte("/envoy.service.auth.v3.Authorization/Check")
	failureName = []byte("x-envoy-auth-failure-mode-allowed")
)

// Value renders one input of a decision.
type Value interface {
	Append(dst []byte, s *stream.Stream) []byte
}

// Needs are what the filter is built with.
type Needs struct {
	Workers int
	Cells   []*counters.ExtAuthz
	// Pools are the workers' upstream sides.
	Pools []*upstream.Manager
	// Cluster finds a cluster's handle.
	Cluster func(name string) (cluster.Handle, bool)
	// Value compiles an input of the cache.
	Value func(format string) (Value, error)
}

// Filter is the filter of one object: a stream.Factory.
type Filter struct {
	to                        cluster.Handle
	authority                 []byte
	grpc                      bool
	prefix                    string
	timeout                   int64 // ns
	allowOnError, tellAllowed bool
	statusOnError             int
	all                       bool         // every header goes to the service
	headers                   pattern.List // those that do
	upstream                  pattern.List // of the answer by HTTP: into the request
	client                    pattern.List // of a refusal by HTTP: to the client; nil: all
	onSuccess                 pattern.List // of a permission by HTTP: into the response
	body                      bodyOptions
	certificate               bool     // the client's goes to the service
	extensions                [][]byte // entries of context_extensions, encoded
	key                       []Value
	ttl                       int64 // ns
	enabled, enforced         uint64

	pools   []*upstream.Manager
	workers []perWorker
	cells   []*counters.ExtAuthz
}

type bodyOptions struct {
	most                 int // bytes; 0: the body is not sent
	partial, packAsBytes bool
}

type perWorker struct {
	free    freelist.List[check]
	buffers buffers
	text    []byte
	paths   [2][]byte
	cache   cache
}

// New builds the filter.
func New(o *configv1.ExtAuthzFilter, n *Needs) (*Filter, error) {
	to, known := n.Cluster(o.GetCluster())
	if !known {
		return nil, fmt.Errorf("cluster %q is not in the snapshot", o.GetCluster())
	}
	f := &Filter{
		to: to, authority: []byte(o.GetCluster()), grpc: o.GetGrpc(), prefix: o.GetPathPrefix(), timeout: o.GetTimeoutMs() * 1e6,
		allowOnError: o.GetFailureModeAllow(), tellAllowed: o.GetFailureModeAllowHeaderAdd(), statusOnError: int(o.GetStatusOnError()),
		certificate: o.GetIncludePeerCertificate(), enabled: share(o.Enabled), enforced: share(o.Enforced),
		body: bodyOptions{int(o.GetMaxRequestBytes()), o.GetAllowPartialMessage(), o.GetPackAsBytes()},
		ttl:  o.GetCacheTtlMs() * 1e6, pools: n.Pools, workers: make([]perWorker, n.Workers), cells: n.Cells,
	}
	if f.timeout <= 0 || f.statusOnError < 200 || f.statusOnError > 599 {
		return nil, fmt.Errorf("timeout %d ms and status_on_error %d make no sense", o.GetTimeoutMs(), f.statusOnError)
	}
	if !header.ValidAuthority(f.authority) {
		f.authority = []byte("ext-authz")
	}
	f.all = f.grpc && len(o.GetAllowedHeaders()) == 0
	for _, list := range []struct {
		texts []string
		to    *pattern.List
	}{
		{o.GetAllowedHeaders(), &f.headers},
		{o.GetAllowedUpstreamHeaders(), &f.upstream},
		{o.GetAllowedClientHeaders(), &f.client},
		{o.GetAllowedClientHeadersOnSuccess(), &f.onSuccess},
	} {
		var err error
		if *list.to, err = pattern.Compile(list.texts); err != nil {
			return nil, err
		}
	}
	for _, e := range o.GetContextExtensions() {
		var entry []byte
		entry = protowire.AppendTag(entry, 1, protowire.BytesType)
		entry = protowire.AppendString(entry, e.GetName())
		entry = protowire.AppendTag(entry, 2, protowire.BytesType)
		f.extensions = append(f.extensions, protowire.AppendString(entry, e.GetValue()))
	}
	for _, format := range o.GetCacheKey() {
		v, err := n.Value(format)
		if err != nil {
			return nil, err
		}
		f.key = append(f.key, v)
	}
	for i := range f.workers {
		f.workers[i].cache.most = int(max(o.GetCacheMaxEntries(), 1))
	}
	return f, nil
}

func share(fraction *uint32) uint64 {
	if fraction == nil {
		return million
	}
	return uint64(*fraction)
}

// draw tells whether the request is of a share.
func draw(w *worker.Worker, share uint64) bool { return share >= million || w.Rand()%million < share }

// sends tells whether a header of the request goes to the service.
func (f *Filter) sends(name []byte) bool { return f.all || f.headers.Match(name) }

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(w *worker.Worker) stream.Filter {
	c := f.workers[w.ID].free.Take()
	c.Filter = f
	return c
}

// state says how far a check is.
type state uint8

const (
	fresh    state = iota
	gathers        // the body
	asks           // the service
	answered       // the request goes on, or was refused
)

// check is the filter of one stream.
type check struct {
	stream.PassThrough
	*Filter
	call     callout.Call
	decision decision
	cb       *stream.Callbacks // while the request is held
	state    state
	paused   bool
	keyed    bool   // key holds the inputs
	key      []byte // of the cache
	body     []byte // of the request, as far as the service gets it
	message  []byte // to the service
}

// DecodeHeaders implements stream.Filter.
func (c *check) DecodeHeaders(cb *stream.Callbacks, end bool) stream.Status {
	s := cb.Stream()
	mine := &c.workers[s.Worker.ID]
	if !draw(s.Worker, c.enabled) {
		mine.free.Give(c)
		return stream.Leave
	}
	if len(c.Filter.key) > 0 {
		c.key, c.keyed = c.inputs(c.key[:0], mine, s)
		if found := c.cached(mine, s); found != nil {
			c.cells[s.Worker.ID][counters.ExtAuthzCached]++
			c.decision.copyFrom(found)
			c.state = answered
			if c.apply(s) {
				return stream.Continue
			}
			return stream.StopIteration
		}
	}
	c.cb = cb
	if c.Filter.body.most > 0 && !end && !s.Upgrade {
		c.state = gathers
		return stream.StopIteration
	}
	if c.paused = !end; c.paused { // nothing but what has come is kept
		s.PauseRequest()
	}
	c.ask(s)
	return stream.StopAndBuffer
}

// DecodeData implements stream.Filter.
func (c *check) DecodeData(cb *stream.Callbacks, data []byte, end bool) ([]byte, stream.Status) {
	switch c.state {
	case gathers:
		s := cb.Stream()
		room := c.Filter.body.most - len(c.body)
		c.body = append(c.body, data[:min(room, len(data))]...)
		switch {
		case len(data) > room && !c.Filter.body.partial:
			c.state = answered
			s.LocalReply(413, "Payload Too Large", 0, stream.DetailRequestTooLarge)
			return nil, stream.StopIteration
		case end, len(data) >= room && c.Filter.body.partial:
			if c.paused = !end; c.paused {
				s.PauseRequest()
			}
			c.ask(s)
		}
		return data, stream.StopAndBuffer
	case asks:
		return data, stream.StopAndBuffer
	}
	return data, stream.Continue
}

// DecodeTrailers implements stream.Filter.
func (c *check) DecodeTrailers(cb *stream.Callbacks) stream.Status {
	switch c.state {
	case gathers:
		c.ask(cb.Stream())
		return stream.StopIteration
	case asks:
		return stream.StopIteration
	}
	return stream.Continue
}

// inputs renders the key of the request; false when it is too long to be kept.
func (c *check) inputs(dst []byte, mine *perWorker, s *stream.Stream) ([]byte, bool) {
	for _, v := range c.Filter.key {
		mine.text = v.Append(mine.text[:0], s)
		if len(dst)+len(mine.text) > maxKey {
			return dst, false
		}
		dst = binary.BigEndian.AppendUint32(dst, uint32(len(mine.text))) // two inputs never run together
		dst = append(dst, mine.text...)
	}
	return dst, true
}

func (c *check) cached(mine *perWorker, s *stream.Stream) *decision {
	if !c.keyed {
		return nil
	}
	return mine.cache.find(c.key, s.Worker.Now())
}

// ask calls the service.
func (c *check) ask(s *stream.Stream) {
	c.state = asks
	mine := &c.workers[s.Worker.ID]
	c.call.Begin()
	if c.grpc {
		c.message = c.appendCheck(callout.GRPCPrefix(c.message[:0]), s, c.body, &mine.buffers)
		callout.GRPCLength(c.message)
		c.call.GRPC(checkPath, c.authority, c.timeout)
	} else {
		c.message = append(c.message[:0], c.body...)
		c.overHTTP(s, mine)
	}
	c.call.Start(s.Worker, c.pools[s.Worker.ID], c.to, c.message, maxAnswer, c.timeout, c)
}

// overHTTP makes the request to a service that speaks HTTP: the method, the host and the path of the one that is asked about.
func (c *check) overHTTP(s *stream.Stream, mine *perWorker) {
	r, from := &c.call.Request, &s.Request
	if id := from.MethodID(); id == header.MethodConnect {
		r.SetMethodID(header.MethodGet)
	} else if id == header.MethodOther {
		r.SetMethod(from.Method())
	} else {
		r.SetMethodID(id)
	}
	r.SetScheme(from.Scheme())
	r.SetAuthority(from.Authority())
	mine.text = append(append(mine.text[:0], c.prefix...), from.Path()...)
	if len(mine.text) == 0 || mine.text[0] != '/' {
		mine.text = append(mine.text[:0], '/')
	}
	r.SetPath(mine.text)
	for i := range from.Len() {
		id, name, value := from.At(i)
		if (id == header.Authorization || c.headers.Match(name)) && message.Editable(name) {
			r.Add(id, name, value)
		}
	}
	var digits [20]byte
	r.Set(header.ContentLength, nil, strconv.AppendInt(digits[:0], int64(len(c.message)), 10))
}

// OnCallDone implements callout.Owner.
func (c *check) OnCallDone(outcome callout.Outcome) {
	cb := c.cb
	s := cb.Stream()
	c.cb, c.state = nil, answered
	if s.DecodeClosed() {
		return // the request was answered meanwhile: a time-out
	}
	cells := c.cells[s.Worker.ID]
	known := outcome == callout.Answered
	if known {
		if c.grpc {
			known = c.readGRPC()
		} else {
			known = c.readHTTP()
		}
	} else if outcome == callout.TimedOut {
		cells[counters.ExtAuthzTimeout]++
	}
	switch {
	case known:
		if c.keyed && c.ttl > 0 {
			c.workers[s.Worker.ID].cache.keep(c.key, s.Worker.Now()+c.ttl, &c.decision)
		}
	case c.allowOnError:
		cells[counters.ExtAuthzError]++
		cells[counters.ExtAuthzFailureModeAllowed]++
		if c.tellAllowed {
			s.Request.Set(header.Other, failureName, trueText)
		}
		c.resume(s, cb)
		return
	case !draw(s.Worker, c.enforced):
		cells[counters.ExtAuthzError]++
		cells[counters.ExtAuthzShadowDenied]++
		c.resume(s, cb)
		return
	default:
		cells[counters.ExtAuthzError]++
		s.LocalReply(c.statusOnError, "", stream.FlagUnauthorized, detailError)
		return
	}
	if c.apply(s) {
		c.resume(s, cb)
	}
}

var trueText = []byte("true")

func (c *check) resume(s *stream.Stream, cb *stream.Callbacks) {
	if c.paused {
		c.paused = false
		s.ResumeRequest()
	}
	cb.ContinueDecoding()
}

// apply does what the decision says, and tells whether the request goes on. After false the stream may be finished.
func (c *check) apply(s *stream.Stream) bool {
	cells := c.cells[s.Worker.ID]
	if c.decision.allowed {
		cells[counters.ExtAuthzOK]++
		c.decision.edit(&s.Request, &c.workers[s.Worker.ID].paths)
		return true
	}
	cells[counters.ExtAuthzDenied]++
	if !draw(s.Worker, c.enforced) {
		cells[counters.ExtAuthzShadowDenied]++
		c.decision.reset()
		return true
	}
	s.Flags |= stream.FlagUnauthorized
	reply := s.NewReply(c.decision.status)
	contentType := "text/plain"
	for i := range c.decision.reply.fields.Len() {
		id, name, value := c.decision.reply.fields.At(i)
		if id == header.ContentType {
			contentType = "" // the service says it
		}
		reply.Add(id, name, value)
	}
	s.SendReply(c.decision.body, contentType, detailDenied)
	return false
}

// EncodeHeaders implements stream.Filter.
func (c *check) EncodeHeaders(cb *stream.Callbacks, _ bool) stream.Status {
	if c.state == answered && c.decision.allowed {
		c.decision.reply.apply(&cb.Stream().Response.Block)
	}
	return stream.Continue
}

func (c *check) readGRPC() bool {
	message, status, ok := c.call.GRPCAnswer()
	return ok && status == 0 && c.decision.readCheck(message)
}

// readHTTP reads the answer of a service that speaks HTTP: 200 permits, a 5xx says that it does not know, all else refuses.
func (c *check) readHTTP() bool {
	d, answer := &c.decision, &c.call.Response
	d.reset()
	if answer.Status >= 500 || answer.Status < 200 {
		return false
	}
	d.allowed, d.status = answer.Status == 200, answer.Status
	for i := range answer.Len() {
		id, name, value := answer.At(i)
		switch {
		case !message.Editable(name):
		case d.allowed:
			if c.upstream.Match(name) {
				d.request.add(id, name, value, replaces)
			}
			if c.onSuccess.Match(name) {
				d.reply.add(id, name, value, joins)
			}
		case (len(c.client) == 0 || c.client.Match(name)) && id != header.Date && id != header.Server:
			d.reply.add(id, name, value, joins)
		}
	}
	if !d.allowed {
		d.body = append(d.body, c.call.Body...)
	}
	return true
}

// maxKept is what a check keeps of a body's memory for the next stream, in bytes.
const maxKept = 64 << 10

// OnDestroy implements stream.Filter.
func (c *check) OnDestroy(cb *stream.Callbacks) {
	w := cb.Stream().Worker
	c.call.Cancel()
	c.cb, c.state, c.paused, c.keyed = nil, fresh, false, false
	c.decision.reset()
	for _, b := range [...]*[]byte{&c.body, &c.message, &c.key, &c.decision.body, &c.decision.query} {
		if *b = (*b)[:0]; cap(*b) > maxKept {
			*b = nil
		}
	}
	if c.call.Idle() { // else a task of the worker still looks at it
		c.workers[w.ID].free.Give(c)
	}
}
