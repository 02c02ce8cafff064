// Package healthcheck is the filter that answers the health checks of whoever balances over several proxies (Envoy's health_check).
// It keeps nothing of a stream; one value serves all workers, and with a cache two.
//
// The cache is the status of the upstream's last answer, in one word that all workers share: checks that come within its time are
// answered by it. At its end each check is passed on until one is answered.
package healthcheck

import (
	"fmt"
	"sync/atomic"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/route"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const million = 1_000_000

// Filter is the filter of one object: a stream.Factory and the one filter that it makes.
type Filter struct {
	stream.PassThrough
	path     []byte
	through  bool
	when     *route.When
	clusters []need
	failing  *atomic.Bool
	cells    []*counters.HealthCheck

	cacheTime int64         // ns; 0: there is no cache
	cache     atomic.Uint64 // verdict
	watcher   watcher
}

// watcher is the filter of a check that is passed on: it keeps the answer.
type watcher struct {
	stream.PassThrough
	of *Filter
}

// verdict is what a cache knows: until when, in ms of the workers' clock, the status, and that the upstream called itself degraded.
type verdict uint64

const (
	statusBits  = 10
	degradedBit = 1 << statusBits
	untilShift  = statusBits + 1
)

func newVerdict(until int64, status int, degraded bool) verdict {
	v := verdict(until/int64(time.Millisecond))<<untilShift | verdict(status)
	if degraded {
		v |= degradedBit
	}
	return v
}

func (v verdict) holds(now int64) bool { return int64(v>>untilShift) > now/int64(time.Millisecond) }
func (v verdict) status() int          { return int(v & (1<<statusBits - 1)) }
func (v verdict) degraded() bool       { return v&degradedBit != 0 }

// need is a cluster and how much of it must be healthy.
type need struct {
	least uint64 // of a million
	// cells have the numbers of hosts, which one worker writes.
	cells *counters.Cluster
}

// New builds the filter. failing tells that the proxy is about to go with nobody in its place; cluster answers the cells that have a
// cluster's numbers of hosts.
func New(o *configv1.HealthCheckFilter, failing *atomic.Bool, cluster func(name string) *counters.Cluster, cells []*counters.HealthCheck) (*Filter, error) {
	f := &Filter{path: []byte(o.GetPath()), through: o.GetPassThrough(), failing: failing, cells: cells, cacheTime: o.GetCacheTimeMs() * int64(time.Millisecond)}
	f.watcher.of = f
	if f.cacheTime < 0 || f.cacheTime > 0 && !f.through {
		return nil, fmt.Errorf("a cache of %d ms is for pass_through", o.GetCacheTimeMs())
	}
	if len(f.path) == 0 || f.path[0] != '/' {
		return nil, fmt.Errorf("the path %q does not begin with a slash", o.GetPath())
	}
	for _, c := range o.GetClusters() {
		f.clusters = append(f.clusters, need{uint64(c.GetMinHealthy()), cluster(c.GetCluster())})
	}
	var err error
	f.when, err = route.CompileWhen(o.GetMatch())
	return f, err
}

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(*worker.Worker) stream.Filter { return f }

// DecodeHeaders implements stream.Filter.
func (f *Filter) DecodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	s := c.Stream()
	if string(s.Request.PathOnly()) != string(f.path) || f.when != nil && !f.when.Meets(&route.Request{
		Path: s.Request.Path(), ID: s.Request.MethodID(), Method: s.Request.Method(), Fields: &s.Request.Block, Source: s.Client,
		TLS: string(s.Request.Scheme()) == "https", Certified: s.Certified, Draw: uint32(s.Worker.Rand() % million),
	}) {
		return stream.Continue
	}
	kept := verdict(f.cache.Load())
	switch cached := kept.holds(s.Worker.Now()); {
	case f.failing.Load(), !f.through && !f.healthy():
		f.answer(s, 503, false)
	case !f.through:
		f.answer(s, 200, false)
	case cached:
		f.answer(s, kept.status(), kept.degraded())
	default:
		f.cells[s.Worker.ID][counters.HealthCheckOK]++
		if f.cacheTime > 0 {
			c.Become(&f.watcher)
		}
		return stream.Continue
	}
	return stream.StopIteration
}

// answer answers a check. What is no success has the flag.
func (f *Filter) answer(s *stream.Stream, status int, degraded bool) {
	cell, details := counters.HealthCheckOK, "health_check_ok"
	if status < 200 || status > 299 {
		cell, details = counters.HealthCheckFailed, "health_check_failed"
		s.Flags |= stream.FlagFailedLocalHealthCheck
	}
	f.cells[s.Worker.ID][cell]++
	h := s.NewReply(status)
	if degraded {
		h.Set(header.Other, nameDegraded, nil)
	}
	s.SendReply(nil, "", details)
}

// EncodeHeaders implements stream.Filter. While the proxy is about to go every response says so, for whoever judges it by them.
func (f *Filter) EncodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	if f.failing.Load() {
		c.Stream().Response.Set(header.Other, nameFail, yes)
	}
	return stream.Continue
}

// EncodeHeaders implements stream.Filter.
func (w *watcher) EncodeHeaders(c *stream.Callbacks, end bool) stream.Status {
	s := c.Stream()
	degraded := s.Response.HasName(nameDegraded)
	w.of.cache.Store(uint64(newVerdict(s.Worker.Now()+w.of.cacheTime, s.Response.Status, degraded)))
	return w.of.EncodeHeaders(c, end)
}

var nameFail, nameDegraded, yes = []byte("x-envoy-immediate-health-check-fail"), []byte("x-envoy-degraded"), []byte("true")

// healthy tells whether every cluster has as many healthy hosts as it needs. One without hosts has not, unless it needs none.
func (f *Filter) healthy() bool {
	for i := range f.clusters {
		n := &f.clusters[i]
		total := atomic.LoadUint64(&n.cells[counters.ClusterMembershipTotal])
		healthy := atomic.LoadUint64(&n.cells[counters.ClusterMembershipHealthy])
		if n.least > 0 && (total == 0 || healthy*million < total*n.least) {
			return false
		}
	}
	return true
}
