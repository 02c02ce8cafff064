package control

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/daemon"
	"retinue.dev/libs/hello"
	"retinue.dev/libs/preflight"
	"retinue.dev/proxyd/internal/accesslog"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/plugin"
	"retinue.dev/proxyd/internal/snapshot"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/tracing"
	configv1 "retinue.dev/services/api/config/v1"
	suitev1 "retinue.dev/services/api/suite/v1"
)

// watcher follows configd for the life of the process.
type watcher struct {
	server *Server
	// away is closed when configd turned out not to be there.
	away     chan struct{}
	awayOnce sync.Once
	aside    string // the snapshot that is not to be served

	mu      sync.Mutex
	applied *snapshot.Snapshot
	secrets *configv1.Secrets  // in force or prepared, as they came
	pending *snapshot.Snapshot // prepared, neither committed nor called off
	keeping bool               // the last-good file is about to be written for found endpoints
	drained []*configv1.DrainedEndpoint

	// foundFirst is closed when configd has said once which endpoints it finds.
	foundFirst chan struct{}
	foundOnce  sync.Once
}

func newWatcher(s *Server) *watcher {
	return &watcher{server: s, away: make(chan struct{}), aside: setAside(), foundFirst: make(chan struct{})}
}

// follow connects again for ever: configd may be restarted at any time, and traffic does not need it.
func (w *watcher) follow(ctx context.Context, client configv1.ConfigClient) {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := w.session(ctx, client)
		w.mu.Lock()
		w.pending = nil
		w.mu.Unlock()
		if err != nil && ctx.Err() == nil {
			w.server.env.Log.Debug("the watch of configd ended; what was applied last stays", "error", err)
			if status.Code(err) == codes.Unavailable {
				w.awayOnce.Do(func() { close(w.away) })
			}
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

// Pauses between attempts to reach a sibling.
const (
	firstPause  = 50 * time.Millisecond
	maxPause    = time.Second
	goodSession = 5 * time.Second // one that lasted so long was no failure
)

func (w *watcher) session(ctx context.Context, client configv1.ConfigClient) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Watch(ctx)
	if err != nil {
		return err
	}
	mine := hello.Mine("proxyd", "config/v1")
	mine.Generation = w.server.generation
	if err := stream.Send(&configv1.WatchRequest{Message: &configv1.WatchRequest_Subscribe{Subscribe: w.subscribe(mine)}}); err != nil {
		return err
	}
	greeted := false
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		if h := message.GetHello(); h != nil || !greeted {
			if err := hello.Check(mine, h); err != nil {
				w.server.env.Log.Error("configd is refused", "error", err)
				return err
			}
			greeted = true
			continue
		}
		if p := message.GetPrepare(); p != nil {
			w.awaitEndpoints(ctx, p)
		}
		answer, err := w.handle(ctx, message)
		if err != nil {
			return err
		}
		if answer != nil {
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
	}
}

func (w *watcher) subscribe(mine *suitev1.Hello) *configv1.Subscribe {
	w.mu.Lock()
	defer w.mu.Unlock()
	subscribe := &configv1.Subscribe{Hello: mine, Role: configv1.Role_ROLE_PROXYD, Generation: w.server.generation}
	if w.applied != nil {
		subscribe.AppliedSnapshot = w.applied.ID
		for _, o := range w.applied.Objects {
			subscribe.Have = append(subscribe.Have, o.GetHash())
		}
	}
	return subscribe
}

func (w *watcher) handle(ctx context.Context, message *configv1.WatchResponse) (*configv1.WatchRequest, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch m := message.GetMessage().(type) {
	case *configv1.WatchResponse_Prepare:
		return w.prepare(ctx, m.Prepare)
	case *configv1.WatchResponse_Secrets:
		w.takeSecrets(m.Secrets)
	case *configv1.WatchResponse_Abort:
		if w.pending != nil && w.pending.ID == m.Abort.GetSnapshotId() {
			w.pending = nil
			w.server.env.Log.Info("a snapshot was called off", "snapshot", m.Abort.GetSnapshotId(), "reason", m.Abort.GetReason())
		}
	case *configv1.WatchResponse_Commit:
		if w.pending == nil || w.pending.ID != m.Commit.GetSnapshotId() {
			return nil, fmt.Errorf("configd commits snapshot %q, which was not prepared", m.Commit.GetSnapshotId())
		}
		w.server.apply(w.pending)
		w.applied, w.pending = w.pending, nil
		w.renew() // what did not change was not built anew
		w.keep()
		return &configv1.WatchRequest{Message: &configv1.WatchRequest_Applied{Applied: &configv1.Applied{SnapshotId: w.applied.ID}}}, nil
	}
	return nil, nil
}

// prepare collects the snapshot's objects and builds it; nothing is visible to traffic yet.
func (w *watcher) prepare(ctx context.Context, p *configv1.Prepare) (*configv1.WatchRequest, error) {
	w.pending = nil
	if id := p.GetSnapshotId(); id == w.aside {
		w.awayOnce.Do(func() { close(w.away) }) // what was served before is to be had here
		w.server.env.Log.Error("the snapshot is set aside: proxyd crashed again and again under it; the one before is served", "snapshot", id)
		return &configv1.WatchRequest{Message: &configv1.WatchRequest_Refused{Refused: &configv1.Refused{SnapshotId: id, Reasons: []*configv1.Refusal{{
			Message: "proxyd crashed again and again under this snapshot and serves the one before it; change the configuration and reload",
		}}}}}, nil
	}
	objects, reason := w.collect(p)
	reasons := []*configv1.Refusal{reason}
	if reason == nil {
		if err := w.server.start(ctx, snapshot.Workers(objects)); err != nil {
			w.server.finish(fmt.Errorf("start the workers: %w", err))
			return nil, err
		}
		if err := w.readSecrets(p.GetSecrets()); err != nil {
			reasons = []*configv1.Refusal{{Message: err.Error()}}
		} else {
			w.pending, reasons = w.server.builder.Build(ctx, w.applied, p.GetSnapshotId(), objects)
		}
	}
	if w.pending != nil {
		if err := w.server.awaitPlugins(ctx, w.pending); err != nil {
			w.pending, reasons = nil, []*configv1.Refusal{err}
		}
	}
	if w.pending == nil {
		w.server.count(counters.ServerSnapshotRefused, 1)
		w.server.env.Log.Warn("a snapshot is refused", "snapshot", p.GetSnapshotId(), "kind", reasons[0].GetKind(), "name", reasons[0].GetName(), "reason", reasons[0].GetMessage(), "reasons", len(reasons))
		return &configv1.WatchRequest{Message: &configv1.WatchRequest_Refused{Refused: &configv1.Refused{SnapshotId: p.GetSnapshotId(), Reasons: reasons}}}, nil
	}
	return &configv1.WatchRequest{Message: &configv1.WatchRequest_Prepared{Prepared: &configv1.Prepared{SnapshotId: p.GetSnapshotId()}}}, nil
}

// collect finds the bodies of the snapshot's objects: among those that came, else among those that are held.
func (w *watcher) collect(p *configv1.Prepare) ([]*configv1.Object, *configv1.Refusal) {
	known := map[string]*configv1.Object{}
	if w.applied != nil {
		for _, o := range w.applied.Objects {
			known[string(o.GetHash())] = o
		}
	}
	for _, o := range p.GetChanged() {
		known[string(o.GetHash())] = o
	}
	objects := make([]*configv1.Object, 0, len(p.GetObjects()))
	for _, ref := range p.GetObjects() {
		o := known[string(ref.GetHash())]
		if o == nil || o.GetKind() != ref.GetKind() || o.GetName() != ref.GetName() {
			return nil, &configv1.Refusal{Kind: ref.GetKind(), Name: ref.GetName(), Message: "its content did not arrive; reload again"}
		}
		objects = append(objects, o)
	}
	return objects, nil
}

// takeLastGood applies the last-good snapshot, unless configd's has come or is coming.
func (w *watcher) takeLastGood(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.applied != nil || w.pending != nil {
		return nil
	}
	kept, err := readLastGood(w.server.env.StateDir)
	if err == nil && kept != nil && kept.GetSnapshotId() == w.aside {
		kept, err = readSnapshot(filepath.Join(w.server.env.StateDir, beforeName))
	}
	if err != nil || kept == nil {
		return err
	}
	id, objects := kept.GetSnapshotId(), kept.GetChanged()
	if err := w.server.start(ctx, snapshot.Workers(objects)); err != nil {
		w.server.finish(fmt.Errorf("start the workers: %w", err))
		return err
	}
	if err := w.readSecrets(kept.GetSecrets()); err != nil {
		return err
	}
	built, reasons := w.server.builder.Build(ctx, nil, id, objects)
	if built == nil {
		return refused(reasons)
	}
	if reason := w.server.awaitPlugins(ctx, built); reason != nil {
		return refused([]*configv1.Refusal{reason})
	}
	if w.aside == "" {
		w.server.env.Log.Warn("configd is away: the last-good snapshot is served", "snapshot", id)
	}
	w.server.apply(built)
	w.applied = built
	return nil
}

func refused(reasons []*configv1.Refusal) error {
	return fmt.Errorf("the last-good snapshot is refused: %s %q: %s", reasons[0].GetKind(), reasons[0].GetName(), reasons[0].GetMessage())
}

const (
	lastGoodName = "last-good.pb"
	// beforeName is the snapshot that was applied before the last one: what a crash loop returns to.
	beforeName = "before.pb"
	// asideName is beside the generation's binary: restartd names a snapshot in it under which generations crash.
	asideName = "set-aside"
)

// setAside is the snapshot that this generation must not serve; "" for none.
func setAside() string {
	self, err := os.Executable()
	if err != nil {
		return ""
	}
	raw, err := os.ReadFile(filepath.Join(filepath.Dir(self), asideName))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// writeLastGood keeps the snapshot for a start without configd: a checksum, then a Prepare with every object and with the secrets.
// The file is of mode 0600 from its first byte.
func writeLastGood(dir string, p *configv1.Prepare) error {
	body, err := proto.Marshal(p)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	file, err := os.CreateTemp(dir, lastGoodName+".*")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	_, err = file.Write(append(sum[:], body...))
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	path := filepath.Join(dir, lastGoodName)
	if kept, err := readLastGood(dir); err == nil && kept != nil && kept.GetSnapshotId() != p.GetSnapshotId() {
		if err := os.Rename(path, filepath.Join(dir, beforeName)); err != nil {
			return err
		}
	}
	return os.Rename(file.Name(), path)
}

// readLastGood returns nil when there is none.
func readLastGood(dir string) (*configv1.Prepare, error) {
	return readSnapshot(filepath.Join(dir, lastGoodName))
}

func readSnapshot(path string) (*configv1.Prepare, error) {
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(raw) < sha256.Size || sha256.Sum256(raw[sha256.Size:]) != [sha256.Size]byte(raw[:sha256.Size]) {
		return nil, fmt.Errorf("%s is damaged: it is ignored", path)
	}
	p := &configv1.Prepare{}
	if err := proto.Unmarshal(raw[sha256.Size:], p); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

// PreflightTo is Preflight into a file, for a candidate that is started by a service manager and has no pipe to its asker; path
// "" is the standard output.
func PreflightTo(ctx context.Context, env *daemon.Env, path string) (err error) {
	if path == "" {
		return Preflight(ctx, env, os.Stdout)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return Preflight(ctx, env, f)
}

// Preflight says what this binary is and builds the snapshot that a generation of it would serve, without sockets, workers or
// series: the last-good one, which the running generation wrote when it applied it.
func Preflight(ctx context.Context, env *daemon.Env, out io.Writer) error {
	kept, err := readLastGood(env.StateDir)
	if err != nil {
		return err
	}
	if kept != nil {
		heap := counters.NewHeap(1)
		look := snapshot.Builder{Workers: 1, Stats: heap, Plugins: plugin.NewRegistry(nil, 0, heap), Spans: func(*tracing.Config) (stream.AccessLog, error) { return nil, nil }, Log: func(c *configv1.AccessLog) (stream.AccessLog, error) { return nil, accesslog.Check(c) }}
		if look.Secrets, err = tlstransport.ParseSecrets(kept.GetSecrets()); err != nil {
			return err
		}
		if built, reasons := look.Build(ctx, nil, kept.GetSnapshotId(), kept.GetChanged()); built == nil {
			return refused(reasons)
		}
	}
	return preflight.New("proxyd", kept.GetSnapshotId(), "config/v1", "restart/v1", "stats/v1", "proxy/v1", "suite/v1").Write(out)
}
