package snapshot

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"
)

// WithEndpoints is the same snapshot with other members of clusters that are discovered: what a change of endpoints makes. Where
// nothing changes it is s itself. An error leaves its cluster as it was.
func (s *Snapshot) WithEndpoints(list []*configv1.ClusterEndpoints) (*Snapshot, []error) {
	var errs []error
	next := s
	for _, found := range list {
		handle, ok := s.handles[found.GetCluster()]
		if !ok || int(handle) >= len(next.Clusters) || next.Clusters[handle] == nil || !next.Clusters[handle].Discovered {
			continue
		}
		was := next.Clusters[handle]
		hosts, err := was.BuildHosts(found.GetEndpoints())
		if err != nil {
			errs = append(errs, fmt.Errorf("cluster %q: %w", found.GetCluster(), err))
			continue
		}
		if slices.Equal(hosts.Hosts, was.Hosts.Hosts) { // the same hosts, shared
			continue
		}
		if was.Outlier != nil {
			hosts.Observe(len(was.Cells))
		}
		if next == s {
			copied := *s
			copied.Clusters = slices.Clone(s.Clusters)
			next = &copied
		}
		config := *was
		config.Cluster = was.Cluster.WithHosts(hosts)
		next.Clusters[handle] = &config
	}
	return next, errs
}

// found is a cluster as it is written, with the endpoints that were found for it where it is discovered.
func (b *Builder) found(c *configv1.Cluster) *configv1.Cluster {
	if !c.GetDiscovered() {
		return c
	}
	c = proto.CloneOf(c)
	c.Endpoints = b.Endpoints[c.GetName()]
	return c
}
