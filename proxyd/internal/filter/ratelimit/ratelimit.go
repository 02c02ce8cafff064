// Package ratelimit is the filter that refuses what comes too fast, by token buckets of this process (Envoy's local_ratelimit). The
// buckets belong to the filter's object and are shared by all workers without a lock; it is called from every worker's thread.
package ratelimit

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/freelist"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	million = 1_000_000
	text    = "local_rate_limited"
	// least is the shortest time of a token, ns: what a whole nanosecond more or less would make wrong by more than a thousandth is refused.
	least = 1000
	// longest is the longest time that a whole bucket may take to fill, ns.
	longest = int64(366 * 24 * time.Hour)
	// DefaultKeys is how many buckets by key there are unless the object says otherwise.
	DefaultKeys = 65536
)

// Filter is the filter of one object: a stream.Factory.
type Filter struct {
	rate     rate
	limit    []byte // the bucket's size, as a header's value
	one      bucket
	table    *table // nil: one bucket for all
	key      []part
	enabled  uint64
	enforced uint64
	status   int
	headers  bool
	exhaust  bool // gRPC is refused by RESOURCE_EXHAUSTED
	workers  []perWorker
	cells    []*counters.RateLimit
}

type perWorker struct {
	scratch []byte
	free    freelist.List[told]
	plain   limiter
}

type partKind uint8

const (
	partSource partKind = iota
	partConnection
	partRoute
	partHost
	partHeader
)

// part is one thing that a key is made of.
type part struct {
	kind partKind
	id   header.ID
	name []byte
}

// New builds the filter.
func New(o *configv1.RateLimitFilter, workers int, cells []*counters.RateLimit) (*Filter, error) {
	f := &Filter{enabled: share(o.Enabled), enforced: share(o.Enforced), status: int(o.GetStatus()), headers: o.GetHeaders(), exhaust: o.GetRateLimitedAsResourceExhausted(), cells: cells}
	if f.status == 0 {
		f.status = 429
	}
	if f.status < 400 || f.status > 599 {
		return nil, fmt.Errorf("status %d is not between 400 and 599", f.status)
	}
	burst := o.GetBurst()
	if burst == 0 {
		burst = o.GetTokens()
	}
	if o.GetTokens() == 0 || o.GetIntervalMs() <= 0 || o.GetIntervalMs() > longest/int64(time.Millisecond) {
		return nil, fmt.Errorf("a rate is so many tokens in a time, both above 0")
	}
	f.rate.token = o.GetIntervalMs() * int64(time.Millisecond) / int64(min(o.GetTokens(), math.MaxInt64))
	if f.rate.token < least {
		return nil, fmt.Errorf("the rate is above 1,000,000 a second")
	}
	if burst > uint64(longest/f.rate.token) {
		return nil, fmt.Errorf("a bucket that holds %d tokens takes longer than a year to fill", burst)
	}
	f.rate.burst = int64(burst) * f.rate.token
	f.limit = strconv.AppendUint(nil, burst, 10)
	for _, text := range o.GetKey() {
		p, err := newPart(text)
		if err != nil {
			return nil, err
		}
		f.key = append(f.key, p)
	}
	if f.key != nil {
		keys := int(o.GetMaxKeys())
		if keys == 0 {
			keys = DefaultKeys
		}
		f.table = newTable(keys)
	}
	f.workers = make([]perWorker, workers)
	for i := range f.workers {
		f.workers[i].scratch = make([]byte, 0, 256)
		f.workers[i].plain.Filter = f
	}
	return f, nil
}

func share(fraction *uint32) uint64 {
	if fraction == nil {
		return million
	}
	return uint64(*fraction)
}

func newPart(text string) (part, error) {
	switch text {
	case "source":
		return part{kind: partSource}, nil
	case "connection":
		return part{kind: partConnection}, nil
	case "route":
		return part{kind: partRoute}, nil
	case "virtual_host":
		return part{kind: partHost}, nil
	}
	name, ok := strings.CutPrefix(text, "header:")
	lower := []byte(strings.ToLower(name))
	if !ok || !header.ValidName(lower) {
		return part{}, fmt.Errorf("%q is not a part of a key", text)
	}
	return part{kind: partHeader, id: header.Lookup(lower), name: lower}, nil
}

// NewFilter implements stream.Factory. A limit that says nothing in responses keeps nothing of a stream.
func (f *Filter) NewFilter(w *worker.Worker) stream.Filter {
	if !f.headers {
		return &f.workers[w.ID].plain
	}
	t := f.workers[w.ID].free.Take()
	*t = told{limiter: limiter{Filter: f}}
	return t
}

// limiter is the filter of one stream.
type limiter struct {
	stream.PassThrough
	*Filter
}

// told is the filter of a stream whose response says what is left.
type told struct {
	limiter
	asked       bool
	left, reset int64
}

// DecodeHeaders implements stream.Filter.
func (l *limiter) DecodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	s := c.Stream()
	_, ok, _, wait, _ := l.ask(s)
	return l.decide(s, ok, wait)
}

// DecodeHeaders implements stream.Filter.
func (t *told) DecodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	s := c.Stream()
	var ok bool
	var wait int64
	t.asked, ok, t.left, wait, t.reset = t.ask(s)
	return t.decide(s, ok, wait)
}

// EncodeHeaders implements stream.Filter.
func (t *told) EncodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	if !t.asked {
		return stream.Continue
	}
	h := c.Stream().Response
	var digits [20]byte
	h.Set(header.Other, nameLimit, t.limit)
	h.Set(header.Other, nameRemaining, strconv.AppendInt(digits[:0], t.left, 10))
	h.Set(header.Other, nameReset, strconv.AppendInt(digits[:0], seconds(t.reset), 10))
	return stream.Continue
}

// OnDestroy implements stream.Filter.
func (t *told) OnDestroy(c *stream.Callbacks) { t.workers[c.Stream().Worker.ID].free.Give(t) }

var (
	nameLimit     = []byte("x-ratelimit-limit")
	nameRemaining = []byte("x-ratelimit-remaining")
	nameReset     = []byte("x-ratelimit-reset")
	nameLimited   = []byte("x-envoy-ratelimited")
)

// seconds are whole ones, rounded up.
func seconds(ns int64) int64 { return (ns + int64(time.Second) - 1) / int64(time.Second) }

// decide answers a request that has no token, unless it is only counted.
func (f *Filter) decide(s *stream.Stream, ok bool, wait int64) stream.Status {
	if ok || !f.enforce(s.Worker) {
		return stream.Continue
	}
	f.refuse(s, wait)
	return stream.StopIteration
}

// ask takes a token for the request. asked is false for one that is not counted.
func (f *Filter) ask(s *stream.Stream) (asked, ok bool, left, wait, reset int64) {
	w := s.Worker
	if f.enabled < million && w.Rand()%million >= f.enabled {
		return false, true, 0, 0, 0
	}
	mine := &f.workers[w.ID]
	key, ok := f.append(mine.scratch[:0], s)
	mine.scratch = key[:0]
	if !ok {
		return false, true, 0, 0, 0
	}
	ok, left, wait, reset = f.take(key, w)
	return true, ok, left, wait, reset
}

// take takes a token from the key's bucket and counts.
func (f *Filter) take(key []byte, w *worker.Worker) (ok bool, left, wait, reset int64) {
	cells := f.cells[w.ID]
	cells[counters.RateLimitEnabled]++
	b := &f.one.full
	if f.table != nil {
		var evicted bool
		if b, evicted = f.table.find(key, w.Now()); evicted {
			cells[counters.RateLimitKeysEvicted]++
		}
	}
	if ok, left, wait, reset = f.rate.take(b, w.Now()); ok {
		cells[counters.RateLimitOK]++
	} else {
		cells[counters.RateLimitRateLimited]++
	}
	return ok, left, wait, reset
}

// enforce draws whether what is over the limit is refused.
func (f *Filter) enforce(w *worker.Worker) bool {
	if f.enforced < million && w.Rand()%million >= f.enforced {
		return false
	}
	f.cells[w.ID][counters.RateLimitEnforced]++
	return true
}

// refuse answers the request.
func (f *Filter) refuse(s *stream.Stream, wait int64) {
	s.Flags |= stream.FlagRateLimited
	h := s.NewReply(f.status)
	var digits [20]byte
	h.Set(header.RetryAfter, nil, strconv.AppendInt(digits[:0], max(seconds(wait), 1), 10))
	h.Set(header.Other, nameLimited, yes)
	if f.exhaust && s.GRPC() {
		h.Set(header.GrpcStatus, nil, exhausted)
	}
	s.SendReply(body, "text/plain", text)
}

var body, yes = []byte(text), []byte("true")

// exhausted is gRPC's RESOURCE_EXHAUSTED.
var exhausted = []byte("8")

// append makes the key of a request. A request that lacks a part has none and is not limited (as a descriptor of Envoy).
func (f *Filter) append(key []byte, s *stream.Stream) ([]byte, bool) {
	for i := range f.key {
		p := &f.key[i]
		switch p.kind {
		case partSource:
			key = appendSource(key, s.Client)
		case partConnection:
			key = binary.LittleEndian.AppendUint64(key, s.ConnectionID)
		case partRoute:
			key = appendText(appendText(key, s.HostName), s.RouteName)
		case partHost:
			key = appendText(key, s.HostName)
		case partHeader:
			at := -1
			if p.id != header.Other {
				at = s.Request.Index(p.id, 0)
			} else {
				at = s.Request.IndexName(p.name, 0)
			}
			if at < 0 {
				return key, false
			}
			value := s.Request.ValueAt(at)
			key = append(binary.AppendUvarint(key, uint64(len(value))), value...)
		}
	}
	return key, true
}

func appendText(key []byte, text string) []byte {
	return append(binary.AppendUvarint(key, uint64(len(text))), text...)
}

// appendSource appends an address; of IPv6 the network of 64 bits that one subscriber has, who could have as many buckets as
// addresses else.
func appendSource(key []byte, a netip.Addr) []byte {
	a = a.Unmap()
	if a.Is6() {
		b := a.As16()
		return append(key, b[:8]...)
	}
	if a.Is4() {
		b := a.As4()
		return append(key, b[:]...)
	}
	return append(key, 0) // a Unix socket: all its clients are one
}

// Admit decides about a connection, before there is a request: for the keys that it has.
func (f *Filter) Admit(c *conn.Conn, w *worker.Worker) bool {
	if f.enabled < million && w.Rand()%million >= f.enabled {
		return true
	}
	mine := &f.workers[w.ID]
	key := mine.scratch[:0]
	for i := range f.key {
		switch f.key[i].kind {
		case partSource:
			key = appendSource(key, c.Peer().Addr())
		case partConnection:
			key = binary.LittleEndian.AppendUint64(key, c.ID())
		default:
			return true
		}
	}
	ok, _, _, _ := f.take(key, w)
	mine.scratch = key[:0]
	return ok || !f.enforce(w)
}
