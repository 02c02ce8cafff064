package publish

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/snapshot"
)

const (
	restartd = configv1.Role_ROLE_RESTARTD
	statsd   = configv1.Role_ROLE_STATSD
	proxyd   = configv1.Role_ROLE_PROXYD
)

// clock hands out timers that a test fires.
type clock struct {
	mu     sync.Mutex
	timers map[time.Duration][]chan time.Time
}

func (c *clock) after(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.timers[d] = append(c.timers[d], ch)
	return ch
}

// fire ends every timer of that length, once there is one.
func (c *clock) fire(t *testing.T, d time.Duration) {
	t.Helper()
	eventually(t, fmt.Sprintf("a timer of %v", d), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, ch := range c.timers[d] {
			ch <- time.Time{}
		}
		fired := len(c.timers[d]) > 0
		delete(c.timers, d)
		return fired
	})
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// bench is a publisher with daemons that behave as a test tells them.
type bench struct {
	t     *testing.T
	p     *Publisher
	clock *clock
	saved []string
	mu    sync.Mutex
	log   []string // what daemons were told, in order
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, clock: &clock{timers: map[time.Duration][]chan time.Time{}}}
	b.p = New(slog.New(slog.NewTextHandler(io.Discard, nil)), func(s *snapshot.Snapshot, parent string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.saved = append(b.saved, s.ID)
	})
	b.p.after = b.clock.after
	return b
}

func (b *bench) note(format string, args ...any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.log = append(b.log, fmt.Sprintf(format, args...))
}

func (b *bench) told() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.log)
}

// daemon is a fake watcher's end of a stream.
type daemon struct {
	b      *bench
	name   string
	ctx    context.Context
	leave  context.CancelFunc
	answer chan *configv1.WatchRequest
	ended  chan error
	// on decides what a message is answered with; nil answers as a good daemon does.
	on func(*configv1.WatchResponse) *configv1.WatchRequest
	// got is the last Prepare.
	mu  sync.Mutex
	got *configv1.Prepare
}

func (d *daemon) Context() context.Context { return d.ctx }

func (d *daemon) Recv() (*configv1.WatchRequest, error) {
	select {
	case m := <-d.answer:
		return m, nil
	case <-d.ctx.Done():
		return nil, d.ctx.Err()
	}
}

func (d *daemon) Send(m *configv1.WatchResponse) error {
	switch {
	case m.GetPrepare() != nil:
		d.b.note("%s prepare %s", d.name, short(m.GetPrepare().GetSnapshotId()))
		d.mu.Lock()
		d.got = m.GetPrepare()
		d.mu.Unlock()
	case m.GetCommit() != nil:
		d.b.note("%s commit %s", d.name, short(m.GetCommit().GetSnapshotId()))
	case m.GetAbort() != nil:
		d.b.note("%s abort %s", d.name, short(m.GetAbort().GetSnapshotId()))
	}
	on := d.on
	if on == nil {
		on = good
	}
	if a := on(m); a != nil {
		d.answer <- a
	}
	return nil
}

func (d *daemon) prepare() *configv1.Prepare {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.got
}

func good(m *configv1.WatchResponse) *configv1.WatchRequest {
	switch {
	case m.GetPrepare() != nil:
		return &configv1.WatchRequest{Message: &configv1.WatchRequest_Prepared{Prepared: &configv1.Prepared{SnapshotId: m.GetPrepare().GetSnapshotId()}}}
	case m.GetCommit() != nil:
		return &configv1.WatchRequest{Message: &configv1.WatchRequest_Applied{Applied: &configv1.Applied{SnapshotId: m.GetCommit().GetSnapshotId()}}}
	}
	return nil
}

// refusing objects to one snapshot and takes every other.
func refusing(id string, r *configv1.Refusal) func(*configv1.WatchResponse) *configv1.WatchRequest {
	return func(m *configv1.WatchResponse) *configv1.WatchRequest {
		if m.GetPrepare().GetSnapshotId() == id {
			return &configv1.WatchRequest{Message: &configv1.WatchRequest_Refused{Refused: &configv1.Refused{SnapshotId: id, Reasons: []*configv1.Refusal{r}}}}
		}
		return good(m)
	}
}

func (b *bench) join(name string, role configv1.Role, generation uint64, applied string, have [][]byte, on func(*configv1.WatchResponse) *configv1.WatchRequest) *daemon {
	d := &daemon{b: b, name: name, answer: make(chan *configv1.WatchRequest, 8), ended: make(chan error, 1), on: on}
	d.ctx, d.leave = context.WithCancel(b.t.Context())
	b.t.Cleanup(d.leave)
	go func() {
		d.ended <- b.p.Join(d, &configv1.Subscribe{Role: role, Generation: generation, AppliedSnapshot: applied, Have: have}, 1)
	}()
	eventually(b.t, name+" to be known", func() bool {
		for _, w := range b.p.Watchers() {
			if w.GetRole() == role && w.GetGeneration() == generation {
				return true
			}
		}
		return false
	})
	return d
}

func (b *bench) settled(role configv1.Role, generation uint64, id string) {
	b.t.Helper()
	eventually(b.t, fmt.Sprintf("%v to apply %s", role, short(id)), func() bool {
		for _, w := range b.p.Watchers() {
			if w.GetRole() == role && w.GetGeneration() == generation && w.GetSnapshotId() == id && w.GetState() == "applied" {
				return true
			}
		}
		return false
	})
}

var ids sync.Map

func short(id string) string {
	name, _ := ids.Load(id)
	s, _ := name.(string)
	return s
}

// snap makes a snapshot with these clusters; name is how the tests' logs call it.
func snap(t *testing.T, name string, clusters ...string) *snapshot.Snapshot {
	t.Helper()
	b := snapshot.NewBuilder()
	b.Add(&configv1.Object{Kind: "runtime", Body: &configv1.Object_Runtime{Runtime: &configv1.Runtime{Workers: uint32(len(clusters))}}}, snapshot.Place{})
	b.Add(&configv1.Object{Kind: "listener", Name: "l", Body: &configv1.Object_Listener{Listener: &configv1.Listener{Name: "l"}}}, snapshot.Place{File: "a.hcl", Line: 3, Column: 1})
	b.Mark("listener", "l", "address[1]", snapshot.Place{File: "a.hcl", Line: 4, Column: 20})
	for _, c := range clusters {
		b.Add(&configv1.Object{Kind: "cluster", Name: c, Body: &configv1.Object_Cluster{Cluster: &configv1.Cluster{Name: c}}}, snapshot.Place{File: "a.hcl", Line: 9})
	}
	s, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	ids.Store(s.ID, name)
	return s
}

func index(list []string, s string) int { return slices.Index(list, s) }

// TestApplyOrder holds that addresses are bound before anything is built on them, and that removed ones are closed
// after nobody accepts from them.
func TestApplyOrder(t *testing.T) {
	b := newBench(t)
	x, y := snap(t, "X", "a"), snap(t, "Y", "a", "b")
	b.p.Begin(x, "", true)
	b.join("proxyd", proxyd, 1, "", nil, nil)
	b.join("statsd", statsd, 0, "", nil, nil)
	b.join("restartd", restartd, 0, "", nil, nil)
	b.settled(proxyd, 1, x.ID)
	b.settled(statsd, 0, x.ID)
	b.settled(restartd, 0, x.ID)
	b.mu.Lock()
	b.log = nil
	b.mu.Unlock()
	problems, ok := b.p.Apply(t.Context(), y)
	if !ok || len(problems) > 0 {
		t.Fatalf("Apply: %v %v", ok, problems)
	}
	want := "restartd prepare Y; statsd prepare Y; proxyd prepare Y; proxyd commit Y; statsd commit Y; restartd commit Y"
	if got := strings.Join(b.told(), "; "); got != want {
		t.Errorf("told: %s\nwant: %s", got, want)
	}
	if cur, _, parent := b.p.Current(); cur != y || parent != x.ID {
		t.Errorf("in force: %s after %s", short(cur.ID), short(parent))
	}
	if !slices.Equal(b.saved, []string{y.ID}) {
		t.Errorf("saved %v", b.saved)
	}
}

// TestRefusal holds that what one daemon refuses changes nothing anywhere, and that the place of the object is known.
func TestRefusal(t *testing.T) {
	b := newBench(t)
	x, y, z := snap(t, "X", "a"), snap(t, "Y", "a", "b"), snap(t, "Z", "c")
	b.p.Begin(x, "", true)
	b.join("restartd", restartd, 0, x.ID, nil, nil)
	b.join("statsd", statsd, 0, x.ID, nil, nil)
	b.join("proxyd1", proxyd, 1, x.ID, nil, nil)
	b.join("proxyd2", proxyd, 2, x.ID, nil, refusing(y.ID, &configv1.Refusal{Kind: "listener", Name: "l", Field: "address[1]", Message: "address in use"}))
	problems, ok := b.p.Apply(t.Context(), y)
	if ok || len(problems) != 1 || problems[0].Code != diag.Refused || problems[0].Daemon != "proxyd (generation 2)" {
		t.Fatalf("Apply: %v %+v", ok, problems)
	}
	place, found := y.Where(problems[0].Kind, problems[0].Name, problems[0].Field)
	if !found || place.Line != 4 {
		t.Errorf("place %+v %v", place, found)
	}
	if cur, _, _ := b.p.Current(); cur != x {
		t.Error("the refused snapshot is in force")
	}
	eventually(t, "all to be told", func() bool {
		told := b.told()
		return index(told, "restartd abort Y") >= 0 && index(told, "statsd abort Y") >= 0 && index(told, "proxyd1 abort Y") >= 0 && index(told, "proxyd2 abort Y") >= 0
	})
	for _, line := range b.told() {
		if strings.Contains(line, "commit") {
			t.Errorf("committed: %s", line)
		}
	}
	if len(b.saved) != 0 {
		t.Errorf("saved %v", b.saved)
	}
	if problems, ok := b.p.Apply(t.Context(), z); !ok || len(problems) > 0 {
		t.Errorf("the next snapshot: %v %v", ok, problems)
	}
}

// TestRefusedFirstRole holds that nobody builds on addresses that could not be bound.
func TestRefusedFirstRole(t *testing.T) {
	b := newBench(t)
	x, y := snap(t, "X", "a"), snap(t, "Y", "b")
	b.p.Begin(x, "", true)
	b.join("restartd", restartd, 0, x.ID, nil, refusing(y.ID, &configv1.Refusal{Message: "no"}))
	b.join("proxyd", proxyd, 1, x.ID, nil, nil)
	if _, ok := b.p.Apply(t.Context(), y); ok {
		t.Fatal("applied")
	}
	if index(b.told(), "proxyd prepare Y") >= 0 {
		t.Error("proxyd was asked after restartd refused")
	}
}

// TestSilent holds that a daemon that does not answer is named, that the snapshot is refused, and that the stream ends.
func TestSilent(t *testing.T) {
	b := newBench(t)
	x, y := snap(t, "X", "a"), snap(t, "Y", "b")
	b.p.Begin(x, "", true)
	b.join("restartd", restartd, 0, x.ID, nil, nil)
	mute := b.join("statsd", statsd, 0, x.ID, nil, func(*configv1.WatchResponse) *configv1.WatchRequest { return nil })
	done := make(chan []Problem, 1)
	go func() {
		problems, ok := b.p.Apply(t.Context(), y)
		if ok {
			t.Error("applied")
		}
		done <- problems
	}()
	eventually(t, "statsd to be asked", func() bool { return index(b.told(), "statsd prepare Y") >= 0 })
	b.clock.fire(t, answerTime)
	problems := <-done
	if len(problems) != 1 || problems[0].Code != diag.NoAnswer || !strings.Contains(problems[0].Message, "statsd") {
		t.Errorf("problems %+v", problems)
	}
	if err := <-mute.ended; err == nil {
		t.Error("the stream goes on")
	}
	if index(b.told(), "statsd abort Y") < 0 {
		t.Error("the silent daemon was not told to forget the snapshot")
	}
}

// TestGone holds who may vanish while a snapshot is prepared: anybody but the only proxyd.
func TestGone(t *testing.T) {
	for _, c := range []struct {
		name    string
		dies    configv1.Role
		another bool // a second proxyd
		ok      bool
	}{
		{"restartd", restartd, false, true},
		{"one of two proxyd", proxyd, true, true},
		{"the only proxyd", proxyd, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			x, y := snap(t, "X", "a"), snap(t, "Y", "b")
			b.p.Begin(x, "", true)
			var dying *daemon
			die := func(m *configv1.WatchResponse) *configv1.WatchRequest {
				if m.GetPrepare() != nil {
					dying.leave()
					return nil
				}
				return good(m)
			}
			// Known only after join returns; no Prepare comes before Apply, since it runs X.
			dying = b.join("dying", c.dies, 7, x.ID, nil, die)
			if c.dies != proxyd || c.another {
				b.join("proxyd", proxyd, 8, x.ID, nil, nil)
			}
			problems, ok := b.p.Apply(t.Context(), y)
			if ok != c.ok {
				t.Errorf("Apply: %v %+v", ok, problems)
			}
			if !c.ok && (len(problems) != 1 || problems[0].Code != diag.WentAway) {
				t.Errorf("problems %+v", problems)
			}
		})
	}
}

// TestNotConfirmed holds that after everybody is prepared the snapshot is in force, and that a daemon that does not
// confirm is told about.
func TestNotConfirmed(t *testing.T) {
	b := newBench(t)
	x, y := snap(t, "X", "a"), snap(t, "Y", "b")
	b.p.Begin(x, "", true)
	b.join("proxyd", proxyd, 1, x.ID, nil, func(m *configv1.WatchResponse) *configv1.WatchRequest {
		if m.GetCommit() != nil {
			return nil
		}
		return good(m)
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		problems, ok := b.p.Apply(t.Context(), y)
		if !ok || len(problems) != 1 || problems[0].Code != diag.NotConfirmed {
			t.Errorf("Apply: %v %+v", ok, problems)
		}
	}()
	eventually(t, "the commit", func() bool { return index(b.told(), "proxyd commit Y") >= 0 })
	b.clock.fire(t, answerTime)
	<-done
	if cur, _, _ := b.p.Current(); cur != y {
		t.Error("not in force")
	}
}

// TestGoneWhileItApplied holds that a generation which leaves between its yes and its confirmation is no failure where another
// one confirms, and is told about where it was the only one.
func TestGoneWhileItApplied(t *testing.T) {
	for _, another := range []bool{true, false} {
		t.Run(fmt.Sprintf("another %t", another), func(t *testing.T) {
			b := newBench(t)
			x, y := snap(t, "X", "a"), snap(t, "Y", "b")
			b.p.Begin(x, "", true)
			var dying *daemon
			dying = b.join("dying", proxyd, 7, x.ID, nil, func(m *configv1.WatchResponse) *configv1.WatchRequest {
				if m.GetCommit() != nil {
					dying.leave()
					return nil
				}
				return good(m)
			})
			if another {
				b.join("proxyd", proxyd, 8, x.ID, nil, nil)
			}
			problems, ok := b.p.Apply(t.Context(), y)
			if !ok || (len(problems) == 0) != another {
				t.Errorf("Apply: %v %+v", ok, problems)
			}
		})
	}
}

// TestJoin holds that a daemon that joins later gets the snapshot in force, only the objects that it lacks, and again
// while it refuses.
func TestJoin(t *testing.T) {
	b := newBench(t)
	x := snap(t, "X", "a", "b")
	b.p.Begin(x, "", false)
	var held [][]byte
	for _, o := range x.For(proxyd) {
		if o.GetName() != "b" {
			held = append(held, o.GetHash())
		}
	}
	d := b.join("proxyd", proxyd, 1, "", held, nil)
	b.settled(proxyd, 1, x.ID)
	if p := d.prepare(); len(p.GetObjects()) != 4 || len(p.GetChanged()) != 1 || p.GetChanged()[0].GetName() != "b" {
		t.Errorf("%d references, changed %v", len(p.GetObjects()), p.GetChanged())
	}
	eventually(t, "the snapshot that proxyd runs to be kept", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Equal(b.saved, []string{x.ID})
	})

	y := snap(t, "Y", "a", "c")
	if _, ok := b.p.Apply(t.Context(), y); !ok {
		t.Fatal("not applied")
	}
	names := []string{}
	for _, o := range d.prepare().GetChanged() {
		names = append(names, o.GetKind()+" "+o.GetName())
	}
	if !slices.Equal(names, []string{"cluster c"}) {
		t.Errorf("changed: %v", names)
	}

	tries := 0
	b.join("restartd", restartd, 0, "", nil, func(m *configv1.WatchResponse) *configv1.WatchRequest {
		if m.GetPrepare() != nil {
			if tries++; tries < 3 {
				return refusing(y.ID, &configv1.Refusal{Kind: "listener", Name: "l", Message: "in use"})(m)
			}
		}
		return good(m)
	})
	b.clock.fire(t, retryFirst)
	b.clock.fire(t, 2*retryFirst)
	b.settled(restartd, 0, y.ID)
	if got := strings.Join(b.told(), "; "); strings.Count(got, "restartd abort Y") != 2 {
		t.Errorf("told: %s", got)
	}
}

// TestConverge holds that a reload without a change asks those again that do not run the snapshot.
func TestConverge(t *testing.T) {
	b := newBench(t)
	x := snap(t, "X", "a")
	b.p.Begin(x, "", true)
	refuse := true
	var mu sync.Mutex
	b.join("restartd", restartd, 0, "", nil, func(m *configv1.WatchResponse) *configv1.WatchRequest {
		mu.Lock()
		defer mu.Unlock()
		if refuse {
			return refusing(x.ID, &configv1.Refusal{Kind: "listener", Name: "l", Message: "in use"})(m)
		}
		return good(m)
	})
	eventually(t, "the refusal", func() bool { return b.p.Watchers()[0].GetState() == "refused" })
	if problems := b.p.Converge(t.Context()); len(problems) != 1 || problems[0].Message != "in use" {
		t.Errorf("problems %+v", problems)
	}
	mu.Lock()
	refuse = false
	mu.Unlock()
	if problems := b.p.Converge(t.Context()); len(problems) != 0 {
		t.Errorf("problems %+v", problems)
	}
	b.settled(restartd, 0, x.ID)
}

// TestStrangers holds that a role that configd does not know, and answers that nobody asked for, end the stream.
func TestStrangers(t *testing.T) {
	b := newBench(t)
	x := snap(t, "X", "a")
	b.p.Begin(x, "", true)
	d := &daemon{b: b, ctx: t.Context(), answer: make(chan *configv1.WatchRequest)}
	if err := b.p.Join(d, &configv1.Subscribe{Role: 77}, 1); err == nil {
		t.Error("a role that nobody knows was served")
	}
	loud := b.join("loud", statsd, 0, x.ID, nil, nil)
	go func() {
		for range 1000 {
			select {
			case loud.answer <- &configv1.WatchRequest{}:
			case <-loud.ctx.Done():
				return
			}
		}
	}()
	if err := <-loud.ended; err == nil || !strings.Contains(err.Error(), "nobody asked") {
		t.Errorf("ended with %v", err)
	}
	if _, ok := b.p.Apply(t.Context(), snap(t, "Y", "b")); !ok {
		t.Error("the next snapshot is refused")
	}
}
