// Package watch follows configd as a watcher of role RESTARTD and keeps the last good copy of what it was told, for a
// start while configd is away.
package watch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/hello"
	configv1 "retinue.dev/services/api/config/v1"
	suitev1 "retinue.dev/services/api/suite/v1"

	"retinue.dev/restartd/internal/durable"
)

// Applier applies snapshots in two phases. Its methods are called from the goroutine of Watcher.Run, Commit and Abort
// only after a Prepare without refusals.
type Applier interface {
	Prepare(objects []*configv1.Object) []*configv1.Refusal
	Commit(snapshot string)
	Abort()
}

// maxSnapshot bounds a message of configd's and the last-good file.
const maxSnapshot = 64 << 20

// Watcher is one watch of configd. New, then Run once.
type Watcher struct {
	Client  configv1.ConfigClient
	Applier Applier
	Path    string // of the last-good file
	// Patience is how long a start waits for configd before the last-good copy is used; 0 uses it at once.
	Patience time.Duration
	Log      *slog.Logger

	applied *snapshot // nil before the first
	pending *snapshot
	seen    *snapshot // the last one that was offered, refused or not: configd need not send its objects again
}

type snapshot struct {
	id      string
	objects []*configv1.Object
}

// Run follows configd until ctx is done. A stream that breaks leaves what was applied, and is opened again.
func (w *Watcher) Run(ctx context.Context) {
	streams := make(chan *stream)
	go w.dial(ctx, streams)
	patience := time.NewTimer(w.Patience)
	defer patience.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-patience.C:
			w.useLastGood()
		case s := <-streams:
			err := w.follow(s, patience.C)
			s.cancel()
			w.abort()
			if ctx.Err() == nil {
				w.Log.Info("watch of configd ended, going on with what is applied", "error", err)
			}
			close(s.over)
		}
	}
}

// stream is one Watch whose messages a goroutine of its own receives.
type stream struct {
	configv1.Config_WatchClient
	cancel   context.CancelFunc
	messages chan *configv1.WatchResponse
	err      error // valid once messages is closed
	over     chan struct{}
}

// dial opens one stream after the other. Opening waits until configd is there, so it is not for Run, which must be free for
// the last-good copy.
func (w *Watcher) dial(ctx context.Context, streams chan<- *stream) {
	const shortest, longest = 50 * time.Millisecond, time.Second
	pause := shortest
	for ctx.Err() == nil {
		s, err := w.open(ctx)
		if err == nil {
			pause = shortest
			select {
			case streams <- s:
				<-s.over
			case <-ctx.Done():
				s.cancel()
				return
			}
		} else {
			w.Log.Debug("configd does not answer", "error", err)
		}
		select {
		case <-time.After(pause):
			pause = min(2*pause, longest)
		case <-ctx.Done():
		}
	}
}

func (w *Watcher) open(ctx context.Context) (*stream, error) {
	ctx, cancel := context.WithCancel(ctx)
	c, err := w.Client.Watch(ctx, grpc.MaxCallRecvMsgSize(maxSnapshot), grpc.WaitForReady(true))
	if err != nil {
		cancel()
		return nil, err
	}
	s := &stream{Config_WatchClient: c, cancel: cancel, messages: make(chan *configv1.WatchResponse), over: make(chan struct{})}
	go func() {
		defer close(s.messages)
		for {
			m, err := c.Recv()
			if err != nil {
				s.err = err
				return
			}
			select {
			case s.messages <- m:
			case <-ctx.Done():
				s.err = ctx.Err()
				return
			}
		}
	}()
	return s, nil
}

func (w *Watcher) follow(s *stream, patience <-chan time.Time) error {
	mine := hello.Mine("restartd", "config/v1")
	sub := &configv1.Subscribe{Hello: mine, Role: configv1.Role_ROLE_RESTARTD}
	if w.applied != nil {
		sub.AppliedSnapshot = w.applied.id
		for _, o := range w.applied.objects {
			sub.Have = append(sub.Have, o.GetHash())
		}
	}
	if err := s.Send(&configv1.WatchRequest{Message: &configv1.WatchRequest_Subscribe{Subscribe: sub}}); err != nil {
		return err
	}
	for {
		select {
		case <-patience:
			if w.applied != nil { // it was not needed
				continue
			}
			// configd is there and has no snapshot: what it compiles does not compile, or not yet
			w.useLastGood()
			if w.applied != nil {
				return errors.New("subscribing anew with the last-good snapshot")
			}
		case m, ok := <-s.messages:
			if !ok {
				return s.err
			}
			answer, err := w.handle(mine, m)
			if err != nil {
				return err
			}
			if answer != nil {
				if err := s.Send(answer); err != nil {
					return err
				}
			}
		}
	}
}

func (w *Watcher) handle(mine *suitev1.Hello, m *configv1.WatchResponse) (*configv1.WatchRequest, error) {
	switch m := m.GetMessage().(type) {
	case *configv1.WatchResponse_Hello:
		if err := hello.Check(mine, m.Hello); err != nil {
			w.Log.Error("configd is refused", "error", err)
			return nil, err
		}
	case *configv1.WatchResponse_Prepare:
		return w.prepare(m.Prepare), nil
	case *configv1.WatchResponse_Abort:
		w.Log.Info("snapshot called off", "snapshot", m.Abort.GetSnapshotId(), "reason", m.Abort.GetReason())
		w.abort()
	case *configv1.WatchResponse_Commit:
		if w.pending == nil || w.pending.id != m.Commit.GetSnapshotId() {
			return nil, fmt.Errorf("configd commits snapshot %q, which was not prepared", m.Commit.GetSnapshotId())
		}
		w.commit()
		if err := w.save(); err != nil {
			w.Log.Warn("last-good copy not written: a start without configd would use an older one", "error", err)
		}
		return &configv1.WatchRequest{Message: &configv1.WatchRequest_Applied{Applied: &configv1.Applied{SnapshotId: w.applied.id}}}, nil
	}
	return nil, nil
}

func (w *Watcher) prepare(p *configv1.Prepare) *configv1.WatchRequest {
	w.abort()
	next, refusals := w.assemble(p)
	if refusals == nil {
		refusals = w.Applier.Prepare(next.objects)
	}
	if refusals != nil {
		return &configv1.WatchRequest{Message: &configv1.WatchRequest_Refused{Refused: &configv1.Refused{SnapshotId: p.GetSnapshotId(), Reasons: refusals}}}
	}
	w.pending = next
	return &configv1.WatchRequest{Message: &configv1.WatchRequest_Prepared{Prepared: &configv1.Prepared{SnapshotId: next.id}}}
}

// assemble puts the snapshot together from what came and what is held. A hash is of the body alone, so it is looked up
// with its kind.
func (w *Watcher) assemble(p *configv1.Prepare) (*snapshot, []*configv1.Refusal) {
	known := map[string]*configv1.Object{}
	add := func(objects []*configv1.Object) {
		for _, o := range objects {
			known[o.GetKind()+"\x00"+string(o.GetHash())] = o
		}
	}
	for _, s := range []*snapshot{w.applied, w.seen} {
		if s != nil {
			add(s.objects)
		}
	}
	add(p.GetChanged())
	next := &snapshot{id: p.GetSnapshotId()}
	var refusals []*configv1.Refusal
	for _, ref := range p.GetObjects() {
		o := known[ref.GetKind()+"\x00"+string(ref.GetHash())]
		if o == nil {
			refusals = append(refusals, &configv1.Refusal{Kind: ref.GetKind(), Name: ref.GetName(), Message: "restartd lacks its content: reload again"})
			continue
		}
		next.objects = append(next.objects, o)
	}
	w.seen = next
	return next, refusals
}

func (w *Watcher) abort() {
	if w.pending != nil {
		w.pending = nil
		w.Applier.Abort()
	}
}

func (w *Watcher) commit() {
	w.applied, w.pending = w.pending, nil
	w.Applier.Commit(w.applied.id)
	w.Log.Info("snapshot applied", "snapshot", w.applied.id, "objects", len(w.applied.objects))
}

// useLastGood applies the copy when nothing was applied yet.
func (w *Watcher) useLastGood() {
	if w.applied != nil || w.pending != nil {
		return
	}
	s, err := load(w.Path)
	if errors.Is(err, fs.ErrNotExist) {
		w.Log.Info("no last-good copy: waiting for configd's first snapshot")
		return
	}
	if err != nil {
		w.Log.Warn("last-good copy not usable: waiting for configd's first snapshot", "error", err)
		return
	}
	if refusals := w.Applier.Prepare(s.objects); refusals != nil {
		for _, r := range refusals {
			w.Log.Error("last-good snapshot cannot be applied: waiting for configd", "kind", r.GetKind(), "name", r.GetName(), "field", r.GetField(), "reason", r.GetMessage())
		}
		return
	}
	w.pending = s
	w.commit()
}

// The last-good file is a magic line, the SHA-256 of the rest, and a Prepare with every object in Changed.
var magic = []byte("retinue last-good 1\n")

func (w *Watcher) save() error {
	body, err := proto.Marshal(&configv1.Prepare{SnapshotId: w.applied.id, Changed: w.applied.objects})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	return durable.Write(w.Path, bytes.Join([][]byte{magic, sum[:], body}, nil), 0o600)
}

func load(path string) (*snapshot, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSnapshot+1))
	if err != nil {
		return nil, err
	}
	return parse(b)
}

func parse(b []byte) (*snapshot, error) {
	rest, ok := bytes.CutPrefix(b, magic)
	switch {
	case len(b) > maxSnapshot:
		return nil, fmt.Errorf("last-good file above %d bytes", maxSnapshot)
	case !ok:
		return nil, errors.New("not a last-good file of this version")
	case len(rest) < sha256.Size:
		return nil, errors.New("last-good file is cut off")
	}
	body := rest[sha256.Size:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], rest[:sha256.Size]) {
		return nil, errors.New("last-good file is damaged")
	}
	var p configv1.Prepare
	if err := proto.Unmarshal(body, &p); err != nil {
		return nil, fmt.Errorf("last-good file: %w", err)
	}
	return &snapshot{id: p.GetSnapshotId(), objects: p.GetChanged()}, nil
}
