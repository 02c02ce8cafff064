// Package healthcheck is the filter that answers the health checks of whoever balances over several proxies (Envoy's health_check).
// It keeps nothing of a stream; one value serves all workers.
package healthcheck

import (
	"fmt"
	"sync/atomic"

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
}

// need is a cluster and how much of it must be healthy.
type need struct {
	least uint64 // of a million
	// cells have the numbers of hosts, which one worker writes.
	cells *counters.Cluster
}

// New builds the filter. failing tells that the proxy is about to go with nobody in its place; cluster answers the cells that have a
// cluster's numbers of hosts.
func New(o *configv1.HealthCheckFilter, failing *atomic.Bool, cluster func(name string) *counters.Cluster, cells []*counters.HealthCheck) (*Filter, error) {
	f := &Filter{path: []byte(o.GetPath()), through: o.GetPassThrough(), failing: failing, cells: cells}
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
		TLS: string(s.Request.Scheme()) == "https", Draw: uint32(s.Worker.Rand() % million),
	}) {
		return stream.Continue
	}
	cells := f.cells[s.Worker.ID]
	if f.failing.Load() || !f.through && !f.healthy() {
		cells[counters.HealthCheckFailed]++
		s.Flags |= stream.FlagFailedLocalHealthCheck
		h := s.NewReply(503)
		if f.failing.Load() {
			h.Set(header.Other, nameFail, yes)
		}
		s.SendReply(nil, "", "health_check_failed")
		return stream.StopIteration
	}
	cells[counters.HealthCheckOK]++
	if f.through {
		return stream.Continue
	}
	s.NewReply(200)
	s.SendReply(nil, "", "health_check_ok")
	return stream.StopIteration
}

var nameFail, yes = []byte("x-envoy-immediate-health-check-fail"), []byte("true")

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
