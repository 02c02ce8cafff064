package control

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/hello"
	"retinue.dev/proxyd/internal/snapshot"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	// endpointsWait is how long a first snapshot waits for the endpoints that configd finds, so that it does not begin with
	// clusters that have none.
	endpointsWait = 3 * time.Second
	// keepEndpoints bounds how often found endpoints are written to the last-good file.
	keepEndpoints = 5 * time.Second
)

// recall begins with the endpoints of the last time: configd may not have found any since it started.
func (w *watcher) recall() {
	w.mu.Lock()
	defer w.mu.Unlock()
	kept, err := readLastGood(w.server.env.StateDir)
	if err != nil {
		w.server.env.Log.Warn("endpoints that were found earlier are not known", "error", err)
	}
	for _, c := range kept.GetEndpoints() {
		w.server.found[c.GetCluster()] = c.GetEndpoints()
	}
	w.drained = kept.GetDrained()
	w.server.drainHosts(w.drained)
	w.server.inherit()
}

// followEndpoints follows what configd finds, for the life of the process. What was found last stays while configd is away.
func (w *watcher) followEndpoints(ctx context.Context, client configv1.ConfigClient) {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := w.endpointsSession(ctx, client)
		if status.Code(err) == codes.Unimplemented { // an older configd, which finds nothing
			w.foundOnce.Do(func() { close(w.foundFirst) })
		}
		if time.Since(began) > goodSession {
			pause = firstPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, maxPause)
	}
}

func (w *watcher) endpointsSession(ctx context.Context, client configv1.ConfigClient) error {
	stream, err := client.WatchEndpoints(ctx, &configv1.WatchEndpointsRequest{Hello: hello.Mine("proxyd", "config/v1")})
	if err != nil {
		return err
	}
	for {
		update, err := stream.Recv()
		if err != nil {
			return err
		}
		w.takeEndpoints(update.GetClusters())
		if update.GetDrains() {
			w.takeDrained(update.GetDrained())
		}
		w.foundOnce.Do(func() { close(w.foundFirst) })
	}
}

// awaitEndpoints waits, before the first snapshot, for the first word about endpoints where a cluster needs them.
func (w *watcher) awaitEndpoints(ctx context.Context, p *configv1.Prepare) {
	w.mu.Lock()
	first := w.applied == nil
	w.mu.Unlock()
	needed := false
	for _, o := range p.GetChanged() {
		needed = needed || o.GetCluster().GetDiscovered()
	}
	if !first || !needed {
		return
	}
	select {
	case <-w.foundFirst:
	case <-time.After(endpointsWait):
		w.server.env.Log.Warn("configd has not said which endpoints it finds: their clusters have those of the last time, or none")
	case <-ctx.Done():
	}
}

// takeEndpoints puts found endpoints in force: in the running snapshot, and in one that is prepared. Clusters that no snapshot
// names yet are remembered for the one that will.
func (w *watcher) takeEndpoints(list []*configv1.ClusterEndpoints) {
	if len(list) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	moved := 0
	for _, c := range list {
		if elsewhere(w.server.found[c.GetCluster()], c.GetEndpoints()) {
			moved++
		}
		w.server.found[c.GetCluster()] = c.GetEndpoints()
	}
	if w.pending != nil {
		w.pending = w.withEndpoints(w.pending, list)
	}
	if w.applied == nil {
		return
	}
	switch next := w.withEndpoints(w.applied, list); {
	case next != w.applied:
		w.server.applyEndpoints(next)
		w.applied = next
		w.keepSoon()
	case moved > 0: // logical hosts, which have them already
		w.server.env.Log.Info("endpoints have other addresses", "clusters", moved)
		w.keepSoon()
	}
}

// elsewhere tells whether endpoints have other addresses than before. Another order of them is not worth a write of the last-good file.
func elsewhere(before, now []*configv1.Endpoint) bool {
	return !maps.Equal(addresses(before), addresses(now))
}

func addresses(list []*configv1.Endpoint) map[string]bool {
	out := make(map[string]bool, len(list))
	for _, e := range list {
		out[e.GetName()+" "+e.GetAddress()] = true
		for _, a := range e.GetAdditionalAddresses() {
			out[e.GetName()+" "+a] = true
		}
	}
	return out
}

// takeDrained puts in force who is drained by command.
func (w *watcher) takeDrained(list []*configv1.DrainedEndpoint) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if slices.EqualFunc(list, w.drained, func(a, b *configv1.DrainedEndpoint) bool { return proto.Equal(a, b) }) {
		return
	}
	w.drained = list
	w.server.drainHosts(list)
	w.server.env.Log.Info("drained endpoints", "endpoints", len(list))
	if w.applied != nil {
		w.keepSoon()
	}
}

func (w *watcher) withEndpoints(s *snapshot.Snapshot, list []*configv1.ClusterEndpoints) *snapshot.Snapshot {
	next, errs := s.WithEndpoints(list)
	for _, err := range errs {
		w.server.env.Log.Error("found endpoints are not taken; those before stay", "error", err)
	}
	return next
}

// keepSoon writes the last-good file when several changes have come together.
func (w *watcher) keepSoon() {
	if w.keeping {
		return
	}
	w.keeping = true
	time.AfterFunc(keepEndpoints, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.keeping = false
		w.keep()
	})
}

// kept is the endpoints of the running snapshot for its last-good file.
func (w *watcher) keptEndpoints() []*configv1.ClusterEndpoints {
	var out []*configv1.ClusterEndpoints
	for _, o := range w.applied.Objects {
		if found := w.server.found[o.GetName()]; found != nil && o.GetCluster().GetDiscovered() {
			out = append(out, &configv1.ClusterEndpoints{Cluster: o.GetName(), Endpoints: found})
		}
	}
	return out
}

// applyEndpoints makes a snapshot the one in force that differs from it in hosts only. Workers touch only pools whose hosts changed.
func (s *Server) applyEndpoints(next *snapshot.Snapshot) {
	s.ops.Lock()
	defer s.ops.Unlock()
	s.mu.Lock()
	previous := s.current
	s.current = next
	s.mu.Unlock()
	s.clusters = s.watchHosts(next.Clusters)
	members := memberships(previous, next, s.monitor)
	s.loops.each(func(l *loop) {
		l.manager.Update(s.clusters)
		if l.ID == 0 { // a gauge is the sum over the workers
			for _, m := range members {
				m.set()
			}
		}
	})
	s.env.Log.Info("endpoints applied", "clusters", len(members))
}
