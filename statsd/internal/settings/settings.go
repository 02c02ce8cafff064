// Package settings follows configd for what statsd is told: where to listen. The last good answer is kept in a file, so
// that statsd starts the same while configd is away.
package settings

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/hello"
	configv1 "retinue.dev/services/api/config/v1"
)

// DefaultListen is where statsd listens unless it is told otherwise; Off is the word for nowhere.
const (
	DefaultListen = "127.0.0.1:9902"
	Off           = "off"
)

// DefaultMaxSeries is how many series of one name are told apart unless the configuration says otherwise.
const DefaultMaxSeries = 20_000

// defaults hold until configd has told something.
var defaults = Settings{Listen: DefaultListen, MaxSeries: DefaultMaxSeries}

// contract of configd.
const contract = "config/v1"

// Settings are what configd tells statsd. They are not changed once they are made.
type Settings struct {
	Listen    string // an address, or Off
	MaxSeries int    // of one name that are told apart
	Push      []*configv1.StatsPush
	Tracing   *configv1.Tracing // where spans go; nil: nowhere
}

// Target is what settings are applied to.
type Target interface {
	// Prepare makes ready what the settings need, as an address to listen on; nothing is visible yet. An error refuses
	// the snapshot.
	Prepare(s Settings) error
	// Commit puts what was prepared in force; Abort throws it away.
	Commit()
	Abort()
	// Insist puts settings in force outside a snapshot, where nobody can refuse them, and goes on trying if it must.
	Insist(s Settings)
}

// Follower keeps the target as configd's snapshots say. Its life: New; Start applies the last good settings, or the
// default when configd does not answer soon; Run follows until its context ends.
type Follower struct {
	client configv1.ConfigClient
	target Target
	file   string
	log    *slog.Logger

	snapshot string // applied
	held     map[string]*configv1.Object
	told     bool
}

// New makes a follower whose last-good file is in stateDir.
func New(client configv1.ConfigClient, target Target, stateDir string, log *slog.Logger) *Follower {
	return &Follower{client: client, target: target, file: filepath.Join(stateDir, "last-good.pb"), log: log, held: map[string]*configv1.Object{}}
}

// Start applies the last good settings. It reports whether there were any.
func (f *Follower) Start() bool {
	b, err := os.ReadFile(f.file)
	prepare := &configv1.Prepare{}
	if err == nil {
		err = proto.Unmarshal(b, prepare)
	}
	switch {
	case errors.Is(err, os.ErrNotExist):
		return false
	case err != nil:
		f.log.Warn("the last good settings cannot be read; the default holds until configd answers", "file", f.file, "error", err)
		return false
	}
	settings, refusals := f.settingsOf(prepare)
	if len(refusals) > 0 {
		return false
	}
	f.target.Insist(settings)
	f.keep(prepare)
	f.told = true
	return true
}

// Default applies the default unless configd has told something by then.
func (f *Follower) Default() {
	if !f.told {
		f.target.Insist(defaults)
	}
}

// Run follows configd until ctx is done. When nothing was told grace after the start, the default is put in force.
func (f *Follower) Run(ctx context.Context, grace time.Duration) {
	after := time.NewTimer(grace)
	defer after.Stop()
	for ctx.Err() == nil {
		responses := make(chan *configv1.WatchResponse)
		ended := make(chan error, 1)
		watching, stop := context.WithCancel(ctx)
		stream, err := f.client.Watch(watching)
		if err == nil {
			err = stream.Send(&configv1.WatchRequest{Message: &configv1.WatchRequest_Subscribe{Subscribe: f.subscribe()}})
		}
		if err != nil {
			ended <- err
		} else {
			go receive(watching, stream, responses, ended)
		}
		f.follow(ctx, stream, responses, ended, after.C)
		stop()
		select {
		case <-ctx.Done():
		case <-after.C:
			f.Default()
		case <-time.After(500 * time.Millisecond): // configd restarts: its connection is tried again by gRPC's own rules
		}
	}
}

func receive(ctx context.Context, stream configv1.Config_WatchClient, responses chan<- *configv1.WatchResponse, ended chan<- error) {
	for {
		response, err := stream.Recv()
		if err != nil {
			ended <- err
			return
		}
		select {
		case responses <- response:
		case <-ctx.Done():
			return
		}
	}
}

// follow handles one stream until it ends.
func (f *Follower) follow(ctx context.Context, stream configv1.Config_WatchClient, responses <-chan *configv1.WatchResponse, ended <-chan error, grace <-chan time.Time) {
	var pending *configv1.Prepare
	defer func() {
		if pending != nil {
			f.target.Abort()
		}
	}()
	for {
		var reply *configv1.WatchRequest
		select {
		case <-ctx.Done():
			return
		case <-grace:
			f.Default()
			continue
		case err := <-ended:
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				f.log.Debug("configd does not answer; the settings stay as they are", "error", err)
			}
			return
		case response := <-responses:
			switch m := response.GetMessage().(type) {
			case *configv1.WatchResponse_Hello:
				if err := hello.Check(hello.Mine("statsd", contract), m.Hello); err != nil {
					f.log.Error("configd is not followed", "error", err)
					return
				}
			case *configv1.WatchResponse_Prepare:
				if pending != nil {
					f.target.Abort()
				}
				pending, reply = f.prepare(m.Prepare)
			case *configv1.WatchResponse_Commit:
				if pending == nil || pending.GetSnapshotId() != m.Commit.GetSnapshotId() {
					f.log.Warn("configd commits a snapshot that it did not prepare", "snapshot", m.Commit.GetSnapshotId())
					return
				}
				f.target.Commit()
				f.keep(pending)
				f.save(pending)
				f.told = true
				pending = nil
				reply = &configv1.WatchRequest{Message: &configv1.WatchRequest_Applied{Applied: &configv1.Applied{SnapshotId: f.snapshot}}}
			case *configv1.WatchResponse_Abort:
				if pending != nil {
					f.target.Abort()
					pending = nil
				}
			}
		}
		if reply != nil {
			if err := stream.Send(reply); err != nil {
				return
			}
		}
	}
}

func (f *Follower) subscribe() *configv1.Subscribe {
	s := &configv1.Subscribe{Hello: hello.Mine("statsd", contract), Role: configv1.Role_ROLE_STATSD, AppliedSnapshot: f.snapshot}
	for hash := range f.held {
		s.Have = append(s.Have, []byte(hash))
	}
	return s
}

// prepare answers Prepared, and what is pending then, or Refused and nil.
func (f *Follower) prepare(p *configv1.Prepare) (*configv1.Prepare, *configv1.WatchRequest) {
	settings, refusals := f.settingsOf(p)
	if len(refusals) == 0 {
		if err := f.target.Prepare(settings); err != nil {
			refusals = []*configv1.Refusal{{Kind: "stats", Name: statsName(p), Field: "listen", Message: err.Error()}}
		}
	}
	if len(refusals) > 0 {
		return nil, &configv1.WatchRequest{Message: &configv1.WatchRequest_Refused{
			Refused: &configv1.Refused{SnapshotId: p.GetSnapshotId(), Reasons: refusals},
		}}
	}
	return p, &configv1.WatchRequest{Message: &configv1.WatchRequest_Prepared{Prepared: &configv1.Prepared{SnapshotId: p.GetSnapshotId()}}}
}

func statsName(p *configv1.Prepare) string {
	for _, ref := range p.GetObjects() {
		if ref.GetKind() == "stats" {
			return ref.GetName()
		}
	}
	return ""
}

// settingsOf finds the settings in a snapshot: the defaults when it has no stats object.
func (f *Follower) settingsOf(p *configv1.Prepare) (Settings, []*configv1.Refusal) {
	bodies := map[string]*configv1.Object{}
	for _, o := range p.GetChanged() {
		bodies[string(o.GetHash())] = o
	}
	s := defaults
	for _, ref := range p.GetObjects() {
		o := bodies[string(ref.GetHash())]
		if o == nil {
			o = f.held[string(ref.GetHash())]
		}
		refuse := func(field, message string) (Settings, []*configv1.Refusal) {
			return Settings{}, []*configv1.Refusal{{Kind: ref.GetKind(), Name: ref.GetName(), Field: field, Message: message}}
		}
		const missing = "the object's content did not come with the snapshot: restart configd"
		switch ref.GetKind() {
		case "tracing":
			if s.Tracing = o.GetTracing(); s.Tracing == nil {
				return refuse("", missing)
			}
		case "stats":
			if o.GetStats() == nil {
				return refuse("", missing)
			}
			s.Push = o.GetStats().GetPush()
			if n := o.GetStats().GetMaxSeries(); n > 0 {
				s.MaxSeries = int(n)
			}
			if listen := o.GetStats().GetListen(); listen != "" {
				s.Listen = listen
			}
			if s.Listen != Off {
				if _, port, err := net.SplitHostPort(s.Listen); err != nil || port == "" || strings.Trim(port, "0123456789") != "" {
					return refuse("listen", fmt.Sprintf("%q is no address: write \"127.0.0.1:9902\" or \"off\"", s.Listen))
				}
			}
		}
	}
	return s, nil
}

// keep holds the objects of the snapshot in force.
func (f *Follower) keep(p *configv1.Prepare) {
	held := map[string]*configv1.Object{}
	for _, o := range p.GetChanged() {
		held[string(o.GetHash())] = o
	}
	for _, ref := range p.GetObjects() {
		if o := f.held[string(ref.GetHash())]; o != nil {
			held[string(ref.GetHash())] = o
		}
	}
	f.held, f.snapshot = held, p.GetSnapshotId()
}

// save writes the last-good file: a snapshot with the content of all its objects.
func (f *Follower) save(p *configv1.Prepare) {
	whole := &configv1.Prepare{SnapshotId: p.GetSnapshotId(), Objects: p.GetObjects()}
	for _, o := range f.held {
		whole.Changed = append(whole.Changed, o)
	}
	b, err := proto.Marshal(whole)
	if err == nil {
		err = os.WriteFile(f.file+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(f.file+".new", f.file)
	}
	if err != nil {
		f.log.Warn("the last good settings are not kept; a restart while configd is away listens where the file says", "file", f.file, "error", err)
	}
}
