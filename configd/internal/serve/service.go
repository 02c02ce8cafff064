// Package serve owns configd as a process: the config/v1 service over compiler, publisher and history, and what the
// command line asks for.
package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/compile"
	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/discovery"
	"retinue.dev/configd/internal/history"
	"retinue.dev/configd/internal/maintenance"
	"retinue.dev/configd/internal/publish"
	"retinue.dev/configd/internal/secret"
	"retinue.dev/configd/internal/snapshot"
	"retinue.dev/configd/internal/syntax"
)

// service answers config/v1. Reloads take turns; everything else may run beside them.
type service struct {
	configv1.UnimplementedConfigServer
	path  string
	log   *slog.Logger
	pub   *publish.Publisher
	store *history.Store
	found *discovery.Table
	// maintenance is who is drained by command.
	maintenance *maintenance.Keeper
	line        func(string) // tells the supervisor what is served
	now         func() time.Time
	env         func(string) (string, bool)
	// secrets keeps what goes beside the snapshots.
	secrets      *secret.Keeper
	secretsSaved atomic.Bool // what is in force is on disk

	reloading sync.Mutex

	mu       sync.Mutex
	last     configv1.LastReload
	unsaved  error         // why the newest snapshot is not on disk
	joined   chan struct{} // closed when a watcher has subscribed
	joinOnce sync.Once     // guards joined
	roles    map[configv1.Role]bool
	allRoles chan struct{}   // closed when every role has subscribed
	settled  <-chan struct{} // closed when the start is settleTime ago
	holds    map[string]bool // ids that watchers said they run
}

func newService(path string, log *slog.Logger, store *history.Store, secrets *secret.Keeper, drained *maintenance.Keeper, line func(string)) *service {
	s := &service{
		path: path, log: log, store: store, secrets: secrets, maintenance: drained, line: line, now: time.Now, env: os.LookupEnv,
		joined: make(chan struct{}), allRoles: make(chan struct{}), roles: map[configv1.Role]bool{}, holds: map[string]bool{},
	}
	s.pub = publish.New(log, s.save)
	s.found = discovery.New(log)
	return s
}

// compile is the files at path now.
func (s *service) compile(path string) *compile.Result {
	r := compile.Path(path, s.env, syntax.ReadFile)
	if r.Snapshot == nil {
		return r
	}
	loaded, problems := secret.Load(r.Snapshot, syntax.ReadFile)
	for _, p := range problems { // between the compiler's look and this one
		r.Diags.Add(s.diagnostic(r, p))
	}
	if len(problems) > 0 {
		r.Snapshot = nil
		return r
	}
	r.Snapshot = r.Snapshot.With(s.secrets.Complete(loaded))
	return r
}

// save keeps a snapshot; a full disk is told and does not refuse the snapshot.
func (s *service) save(snap *snapshot.Snapshot, parent string) {
	err := s.store.Save(snap, parent, s.now())
	s.mu.Lock()
	s.unsaved = err
	s.mu.Unlock()
	if err != nil {
		s.log.Error("the snapshot is in force but not kept: with broken files and a restart there would be nothing to serve", "snapshot", snap.ID, "error", err)
	}
}

// start decides what is served first. It returns an error when there is nothing: the files are broken and there is
// no last-good snapshot. The error's text are the diagnostics.
func (s *service) start() error {
	settled := make(chan struct{})
	s.settled = settled
	time.AfterFunc(settleTime, func() { close(settled) })
	r := s.compile(s.path)
	last, damaged := s.store.Last()
	for _, err := range damaged {
		s.log.Error("a kept snapshot is damaged and left aside", "error", err)
	}
	switch {
	case r.Snapshot == nil && last == nil:
		return errors.New(r.Text(false))
	case r.Snapshot == nil:
		last.Snapshot = s.furnish(last.Snapshot)
		s.log.Error("THE CONFIGURATION IS BROKEN: serving the last-good snapshot; correct the files and reload", "snapshot", last.Snapshot.ID, "kept", last.Saved.UTC().Format(time.RFC3339), "first", firstError(r))
		s.record(false, "serving the last-good snapshot "+last.Snapshot.ID+": "+firstError(r))
		s.begin(last.Snapshot, last.Parent, true)
	case last == nil:
		s.record(true, "")
		s.begin(r.Snapshot, "", false)
	case last.Snapshot.ID == r.Snapshot.ID:
		s.record(true, "")
		s.begin(r.Snapshot, last.Parent, true)
	case s.pinned(r, last):
		last.Snapshot = s.furnish(last.Snapshot)
		s.log.Warn("a roll-back is in force and the files are those from before it: serving the kept snapshot; a reload applies the files", "snapshot", last.Snapshot.ID)
		s.record(true, "rolled back; a reload applies the files")
		s.begin(last.Snapshot, last.Parent, true)
	default:
		last.Snapshot = s.furnish(last.Snapshot)
		s.found.Set(discovery.Of(r.Snapshot.Objects)) // so that who asks first waits for what will be served
		go s.settle(r, last)
	}
	s.keepSecrets()
	s.warn(r)
	s.describe()
	return nil
}

// How long the first daemons after a start are waited for, so that changed files are offered to all of them at once.
const settleTime = 3 * time.Second

// settle serves files that changed while configd was away. Daemons that still run the last-good snapshot are led from
// it in two phases, as by a reload; where nobody runs it, nothing old is served even for a moment.
func (s *service) settle(r *compile.Result, last *history.Entry) {
	<-s.joined
	select {
	case <-s.allRoles:
	case <-time.After(settleTime):
	}
	s.reloading.Lock()
	defer s.reloading.Unlock()
	if current, _, _ := s.pub.Current(); current != nil {
		return // a reload came first
	}
	s.mu.Lock()
	running := s.holds[last.Snapshot.ID]
	s.mu.Unlock()
	if !running {
		s.record(true, "")
		s.begin(r.Snapshot, last.Snapshot.ID, false)
		s.keepSecrets()
		s.describe()
		return
	}
	s.begin(last.Snapshot, last.Parent, true)
	reply := s.apply(context.Background(), r)
	if !reply.GetOk() {
		s.log.Error("the files changed while configd was away, and the daemons do not take them: the last-good snapshot stays", "snapshot", last.Snapshot.ID, "diagnostics", reply.GetRendered())
	}
}

// gather waits for the daemons just after a start: they are about to subscribe again, and a reload that asked none of them
// would say "applied" too early.
func (s *service) gather(ctx context.Context) {
	select {
	case <-s.allRoles:
	case <-s.settled:
	case <-ctx.Done():
	}
}

func (s *service) warn(r *compile.Result) {
	if r.Snapshot != nil && r.Diags.Warnings() > 0 {
		s.log.Warn("the configuration has warnings; `retinue check` shows them", "warnings", r.Diags.Warnings())
	}
}

func firstError(r *compile.Result) string {
	shown, _ := r.Diags.Sorted()
	for _, d := range shown {
		if d.Severity() == diag.Error {
			return oneLine(d)
		}
	}
	return ""
}

func oneLine(d diag.Diagnostic) string {
	text := d.Summary
	if d.Range.Filename != "" {
		text = fmt.Sprintf("%s:%d: %s", d.Range.Filename, d.Range.Start.Line, d.Summary)
	}
	if d.Detail != "" {
		text += ": " + strings.Join(strings.Fields(d.Detail), " ")
	}
	return text
}

func (s *service) record(ok bool, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last.Ok, s.last.Message, s.last.UnixMs = ok, message, s.now().UnixMilli()
	if ok {
		s.last.Successes++
	} else {
		s.last.Failures++
	}
}

// describe tells the supervisor in one line what is served.
func (s *service) describe() string {
	current, _, _ := s.pub.Current()
	s.mu.Lock()
	broken := !s.last.Ok
	s.mu.Unlock()
	text := "no snapshot yet"
	if current != nil {
		text = fmt.Sprintf("snapshot %s, %d objects", current.ID, len(current.Objects))
		if broken {
			text += "; the last reload failed"
		}
	}
	s.line(text)
	return text
}

// Watch implements config/v1.
func (s *service) Watch(stream configv1.Config_WatchServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	sub := first.GetSubscribe()
	if sub == nil {
		return status.Error(codes.InvalidArgument, "the first message of Watch is Subscribe")
	}
	mine := hello.Mine("configd", "config/v1")
	if err := hello.Check(mine, sub.GetHello()); err != nil {
		return err
	}
	if err := stream.Send(&configv1.WatchResponse{Message: &configv1.WatchResponse_Hello{Hello: mine}}); err != nil {
		return err
	}
	pid := sub.GetHello().GetPid()
	if cred, ok := peer.FromContext(stream.Context()); ok {
		pid = int64(cred.PID)
	}
	s.arrived(sub)
	return s.pub.Join(stream, sub, pid)
}

// arrived notes who subscribed and what it runs, for settle.
func (s *service) arrived(sub *configv1.Subscribe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.roles[sub.GetRole()] = true
	s.holds[sub.GetAppliedSnapshot()] = true
	s.joinOnce.Do(func() { close(s.joined) })
	if s.roles[configv1.Role_ROLE_PROXYD] && s.roles[configv1.Role_ROLE_STATSD] && s.roles[configv1.Role_ROLE_RESTARTD] {
		select {
		case <-s.allRoles:
		default:
			close(s.allRoles)
		}
	}
}

// begin serves a snapshot without asking anybody.
func (s *service) begin(snap *snapshot.Snapshot, parent string, kept bool) {
	s.found.Set(discovery.Of(snap.Objects))
	s.pub.Begin(snap, parent, kept)
}

// firstLook is how long the first look for endpoints is waited for: with a snapshot that is offered, and with a daemon that asks.
const firstLook = 2 * time.Second

// WatchEndpoints implements config/v1.
func (s *service) WatchEndpoints(req *configv1.WatchEndpointsRequest, stream configv1.Config_WatchEndpointsServer) error {
	if err := hello.Check(hello.Mine("configd", "config/v1"), req.GetHello()); err != nil {
		return err
	}
	settle, cancel := context.WithTimeout(stream.Context(), firstLook)
	s.found.Settle(settle)
	cancel()
	list, version, next := s.found.Since(0)
	told := uint64(0)
	for {
		drained, drains, nextDrain := s.maintenance.Since()
		update := &configv1.EndpointsUpdate{Version: version, Clusters: list}
		if drains != told {
			update.Drains, update.Drained, told = true, drained, drains
		}
		if err := stream.Send(update); err != nil {
			return err
		}
		select {
		case <-next:
		case <-nextDrain:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
		list, version, next = s.found.Since(version)
	}
}

// Check implements config/v1. Diagnostics show lines of the files, and configd may read what its callers may not: a
// path of the caller's choice is for root and configd's own user.
func (s *service) Check(ctx context.Context, req *configv1.CheckRequest) (*configv1.CheckReply, error) {
	path := s.path
	if p := req.GetPath(); p != "" {
		if err := s.mayRead(ctx, p); err != nil {
			return nil, err
		}
		path = p
	}
	r := s.compile(path)
	shown, _ := r.Diags.Sorted()
	reply := &configv1.CheckReply{Diagnostics: diag.Proto(shown), Rendered: r.Text(false)}
	if r.Snapshot != nil {
		reply.SnapshotId = r.Snapshot.ID
	}
	return reply, nil
}

// Reload implements config/v1.
func (s *service) Reload(ctx context.Context, _ *configv1.ReloadRequest) (*configv1.ReloadReply, error) {
	return s.reload(ctx), nil
}

func (s *service) reload(ctx context.Context) *configv1.ReloadReply {
	s.gather(ctx)
	s.reloading.Lock()
	defer s.reloading.Unlock()
	reply := s.apply(ctx, s.compile(s.path))
	if reply.GetOk() {
		s.pin(nil)
	}
	return reply
}

// apply puts a compiled configuration in force, or says why not. The caller holds reloading.
func (s *service) apply(ctx context.Context, r *compile.Result) *configv1.ReloadReply {
	reply := &configv1.ReloadReply{}
	current, _, _ := s.pub.Current()
	var problems []publish.Problem
	switch {
	case r.Snapshot == nil:
	case current != nil && current.ID == r.Snapshot.ID:
		if !proto.Equal(current.Secrets, r.Snapshot.Secrets) {
			s.pub.Renew(r.Snapshot.Secrets)
		}
		problems = s.pub.Converge(ctx)
		reply.Ok = true
	default:
		s.lookAhead(ctx, r.Snapshot)
		problems, reply.Ok = s.pub.Apply(ctx, r.Snapshot)
		reply.Changed = reply.Ok
		if now, _, _ := s.pub.Current(); now != nil {
			s.found.Set(discovery.Of(now.Objects))
		}
	}
	for _, p := range problems {
		d := p.Diagnostic()
		if place, ok := r.Snapshot.Where(p.Kind, p.Name, p.Field); ok && place.File != "" {
			d.Range = r.Range(place)
		}
		r.Diags.Add(d)
	}
	reply.Ok = reply.Ok && !r.Diags.HasErrors()
	if reply.Changed {
		s.mu.Lock()
		if s.unsaved != nil {
			r.Diags.Add(diag.Diagnostic{Code: diag.NotSaved, Summary: "Last-good file not written", Detail: s.unsaved.Error()})
		}
		s.mu.Unlock()
	}
	s.keepSecrets()
	if now, _, _ := s.pub.Current(); now != nil {
		reply.SnapshotId = now.ID
	}
	shown, _ := r.Diags.Sorted()
	reply.Diagnostics, reply.Rendered = diag.Proto(shown), r.Text(false)
	message := ""
	if !reply.Ok {
		message = firstError(r)
	}
	s.record(reply.Ok, message)
	s.describe()
	if reply.Ok {
		s.log.Info("reloaded", "snapshot", reply.SnapshotId, "changed", reply.Changed)
		s.warn(r)
	} else {
		s.log.Error("reload failed", "snapshot", reply.SnapshotId, "changed", reply.Changed, "first", message)
	}
	return reply
}

// lookAhead looks for the endpoints of clusters that a snapshot adds, so that they have some when it comes into force. What is
// not found in time is found later: it is no reason to refuse a snapshot.
func (s *service) lookAhead(ctx context.Context, snap *snapshot.Snapshot) {
	s.found.Add(discovery.Of(snap.Objects))
	ctx, cancel := context.WithTimeout(ctx, firstLook)
	defer cancel()
	s.found.Settle(ctx)
}

// Status implements config/v1.
func (s *service) Status(context.Context, *configv1.StatusRequest) (*configv1.StatusReply, error) {
	reply := &configv1.StatusReply{Hello: hello.Mine("configd", "config/v1"), Watchers: s.pub.Watchers(), ConfigPath: s.path, Discovery: s.found.Status()}
	reply.Drained, _, _ = s.maintenance.Since()
	if current, since, _ := s.pub.Current(); current != nil {
		reply.SnapshotId, reply.AppliedUnixMs, reply.Objects = current.ID, since.UnixMilli(), uint32(len(current.Objects))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	reply.LastReload = &configv1.LastReload{Ok: s.last.Ok, UnixMs: s.last.UnixMs, Message: s.last.Message, Successes: s.last.Successes, Failures: s.last.Failures}
	return reply, nil
}
