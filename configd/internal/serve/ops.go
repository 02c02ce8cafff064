package serve

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"retinue.dev/libs/peer"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/compile"
	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/difference"
	"retinue.dev/configd/internal/discovery"
	"retinue.dev/configd/internal/explain"
	"retinue.dev/configd/internal/history"
	"retinue.dev/configd/internal/maintenance"
	"retinue.dev/configd/internal/snapshot"
)

// History implements config/v1.
func (s *service) History(context.Context, *configv1.HistoryRequest) (*configv1.HistoryReply, error) {
	all, err := s.store.All()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	current, _, _ := s.pub.Current()
	reply := &configv1.HistoryReply{}
	marked := false
	for _, e := range all {
		running := !marked && current != nil && e.Snapshot.ID == current.ID
		marked = marked || running
		reply.Entries = append(reply.Entries, &configv1.HistoryEntry{
			SnapshotId: e.Snapshot.ID, ParentId: e.Parent, SavedUnixMs: e.Saved.UnixMilli(), Objects: uint32(len(e.Snapshot.Objects)), Running: running,
		})
	}
	return reply, nil
}

// Diff implements config/v1.
func (s *service) Diff(ctx context.Context, req *configv1.DiffRequest) (*configv1.DiffReply, error) {
	from, to := req.GetFrom(), req.GetTo()
	if from == "" {
		from = "running"
	}
	if to == "" {
		to = "files"
	}
	reply := &configv1.DiffReply{Ok: true}
	var sides [2]*snapshot.Snapshot
	for i, name := range []string{from, to} {
		snap, r, err := s.named(ctx, name)
		if err != nil {
			return nil, err
		}
		if snap == nil {
			shown, _ := r.Diags.Sorted()
			reply.Ok = false
			reply.Diagnostics, reply.Rendered = append(reply.Diagnostics, diag.Proto(shown)...), reply.Rendered+r.Text(false)
			continue
		}
		sides[i] = snap
	}
	if reply.Ok {
		reply.FromId, reply.ToId = sides[0].ID, sides[1].ID
		reply.Changes = difference.Compare(sides[0], sides[1])
		reply.Rendered = difference.Text(reply.Changes)
	}
	return reply, nil
}

// named finds a configuration by what DiffRequest calls it. A nil snapshot without an error did not compile: r says why.
func (s *service) named(ctx context.Context, name string) (snap *snapshot.Snapshot, r *compile.Result, err error) {
	switch {
	case name == "running":
		if snap, _, _ = s.pub.Current(); snap == nil {
			return nil, nil, status.Error(codes.FailedPrecondition, "no snapshot is in force yet")
		}
		return snap, nil, nil
	case name == "files":
		r = s.compile(s.path)
		return r.Snapshot, r, nil
	case filepath.IsAbs(name):
		if err := s.mayRead(ctx, name); err != nil {
			return nil, nil, err
		}
		r = s.compile(name)
		return r.Snapshot, r, nil
	}
	if current, _, _ := s.pub.Current(); current != nil && current.ID == name {
		return current, nil, nil
	}
	e, err := s.store.Find(name)
	if err != nil {
		return nil, nil, status.Error(codes.InvalidArgument, err.Error())
	}
	if e == nil {
		return nil, nil, status.Errorf(codes.NotFound, "no kept snapshot is called %q: `retinue history` lists them", name)
	}
	return e.Snapshot, nil, nil
}

// mayRead keeps a path of the caller's choice for root and configd's own user: configd may read what its callers may not.
func (s *service) mayRead(ctx context.Context, path string) error {
	cred, ok := peer.FromContext(ctx)
	if !ok || (cred.UID != 0 && int(cred.UID) != os.Getuid()) {
		return status.Error(codes.PermissionDenied, "reading another file than the configured one is for root and configd's own user: run `configd -t --config FILE` as yourself")
	}
	if !filepath.IsAbs(path) {
		return status.Errorf(codes.InvalidArgument, "%q is not an absolute path, and configd's working directory is not yours", path)
	}
	return nil
}

// DrainEndpoint implements config/v1.
func (s *service) DrainEndpoint(_ context.Context, req *configv1.DrainEndpointRequest) (*configv1.DrainEndpointReply, error) {
	if !req.GetUndrain() {
		if err := s.member(req.GetCluster(), req.GetAddress()); err != nil {
			return nil, err
		}
	} else if !s.maintenance.Drained(req.GetCluster(), req.GetAddress()) {
		if err := s.member(req.GetCluster(), req.GetAddress()); err != nil { // a mistyped one is told; one that serves is as it should be
			return nil, err
		}
	}
	changed, err := s.maintenance.Set(req.GetCluster(), req.GetAddress(), !req.GetUndrain(), s.now())
	switch {
	case errors.Is(err, maintenance.ErrTooMany):
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	case err != nil:
		return nil, status.Errorf(codes.Unavailable, "nothing is changed, since it could not be kept: %v", err)
	}
	if changed {
		s.log.Info("endpoint maintenance", "cluster", req.GetCluster(), "endpoint", req.GetAddress(), "drained", !req.GetUndrain())
	}
	return &configv1.DrainEndpointReply{Changed: changed}, nil
}

// member tells whether a cluster of the running snapshot has an endpoint, written out or found.
func (s *service) member(name, address string) error {
	current, _, _ := s.pub.Current()
	if current == nil {
		return status.Error(codes.FailedPrecondition, "no snapshot is in force yet")
	}
	var has []string
	known := false
	for _, o := range current.Objects {
		if c := o.GetCluster(); c != nil && o.GetName() == name {
			known = true
			for _, e := range c.GetEndpoints() {
				has = append(has, e.GetAddress())
			}
		}
	}
	if !known {
		return status.Errorf(codes.NotFound, "no cluster is called %q", name)
	}
	found, _, _ := s.found.Since(0)
	for _, c := range found {
		if c.GetCluster() == name {
			for _, e := range c.GetEndpoints() {
				has = append(has, discovery.Key(e))
			}
		}
	}
	if slices.Contains(has, address) {
		return nil
	}
	if len(has) > 20 {
		has = append(has[:20], "…")
	}
	return status.Errorf(codes.NotFound, "cluster %q has no endpoint %q; it has %s", name, address, strings.Join(has, ", "))
}

// Rollback implements config/v1.
func (s *service) Rollback(ctx context.Context, req *configv1.RollbackRequest) (*configv1.ReloadReply, error) {
	s.gather(ctx)
	s.reloading.Lock()
	defer s.reloading.Unlock()
	e, err := s.chosen(req)
	if err != nil {
		return nil, err
	}
	files := ""
	if r := s.compile(s.path); r.Snapshot != nil {
		files = r.Snapshot.ID
	}
	reply := s.apply(ctx, &compile.Result{Snapshot: s.furnish(e.Snapshot), Diags: &diag.List{}})
	if !reply.GetOk() {
		return reply, nil
	}
	if files == e.Snapshot.ID {
		s.pin(nil)
	} else {
		s.pin(&history.Pin{To: e.Snapshot.ID, Files: files})
	}
	return reply, nil
}

func (s *service) chosen(req *configv1.RollbackRequest) (*history.Entry, error) {
	if id := req.GetSnapshotId(); id != "" {
		e, err := s.store.Find(id)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, err.Error())
		}
		if e == nil {
			return nil, status.Errorf(codes.NotFound, "no kept snapshot is called %q: `retinue history` lists them", id)
		}
		return e, nil
	}
	all, err := s.store.All()
	if err != nil {
		return nil, status.Error(codes.Internal, err.Error())
	}
	back := int(req.GetBack())
	if back >= len(all) {
		return nil, status.Errorf(codes.OutOfRange, "%d snapshots are kept, so the farthest roll-back is %d: `retinue history` lists them", len(all), max(0, len(all)-1))
	}
	return all[back], nil
}

// pin keeps or forgets a roll-back. Without it a restart of configd would apply the files again; that is told, not refused.
func (s *service) pin(p *history.Pin) {
	if err := s.store.SetPin(p); err != nil {
		s.log.Error("the roll-back is in force but not kept: a restart of configd would apply the files", "error", err)
	}
}

// pinned tells whether the files are still those that a roll-back set aside.
func (s *service) pinned(r *compile.Result, last *history.Entry) bool {
	p := s.store.Pinned()
	return p != nil && p.To == last.Snapshot.ID && p.Files == r.Snapshot.ID
}

// Explain implements config/v1.
func (s *service) Explain(_ context.Context, req *configv1.ExplainRequest) (*configv1.ExplainReply, error) {
	current, _, _ := s.pub.Current()
	if current == nil {
		return nil, status.Error(codes.FailedPrecondition, "no snapshot is in force yet")
	}
	reply, err := explain.Request(current, s.found.Status(), req)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return reply, nil
}
