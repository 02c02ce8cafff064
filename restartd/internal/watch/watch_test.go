package watch

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/hello"
	configv1 "retinue.dev/services/api/config/v1"
)

// recorder notes what the watcher asks of it; it refuses a listener called "bad".
type recorder struct {
	log []string
}

func (r *recorder) Prepare(objects []*configv1.Object) []*configv1.Refusal {
	names := []string{"prepare"}
	for _, o := range objects {
		names = append(names, o.GetName())
		if o.GetName() == "bad" {
			r.log = append(r.log, "refuse")
			return []*configv1.Refusal{{Kind: "listener", Name: "bad", Field: "address[0]", Message: "in use"}}
		}
	}
	r.log = append(r.log, strings.Join(names, " "))
	return nil
}
func (r *recorder) Commit(string) { r.log = append(r.log, "commit") }
func (r *recorder) Abort()        { r.log = append(r.log, "abort") }

func (r *recorder) want(t *testing.T, want ...string) {
	t.Helper()
	if got, want := strings.Join(r.log, ", "), strings.Join(want, ", "); got != want {
		t.Errorf("asked for %q, want %q", got, want)
	}
	r.log = nil
}

func newWatcher(t *testing.T) (*Watcher, *recorder) {
	r := &recorder{}
	return &Watcher{Applier: r, Path: filepath.Join(t.TempDir(), "last-good"), Log: slog.New(slog.DiscardHandler)}, r
}

func listener(name string) *configv1.Object {
	l := &configv1.Listener{Name: name}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(l)
	if err != nil {
		panic(err)
	}
	sum := sha256.Sum256(b)
	return &configv1.Object{Kind: "listener", Name: name, Hash: sum[:], Body: &configv1.Object_Listener{Listener: l}}
}

func ref(o *configv1.Object) *configv1.ObjectRef {
	return &configv1.ObjectRef{Kind: o.GetKind(), Name: o.GetName(), Hash: o.GetHash()}
}

func prepare(id string, changed []*configv1.Object, refs ...*configv1.Object) *configv1.WatchResponse {
	p := &configv1.Prepare{SnapshotId: id, Changed: changed}
	for _, o := range refs {
		p.Objects = append(p.Objects, ref(o))
	}
	return &configv1.WatchResponse{Message: &configv1.WatchResponse_Prepare{Prepare: p}}
}

func commit(id string) *configv1.WatchResponse {
	return &configv1.WatchResponse{Message: &configv1.WatchResponse_Commit{Commit: &configv1.Commit{SnapshotId: id}}}
}

func say(t *testing.T, w *Watcher, m *configv1.WatchResponse) *configv1.WatchRequest {
	t.Helper()
	answer, err := w.handle(hello.Mine("restartd", "config/v1"), m)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func TestTwoPhases(t *testing.T) {
	w, r := newWatcher(t)
	a, b := listener("a"), listener("b")
	if got := say(t, w, prepare("1", []*configv1.Object{a, b}, a, b)).GetPrepared().GetSnapshotId(); got != "1" {
		t.Errorf("prepared %q", got)
	}
	r.want(t, "prepare a b")
	if got := say(t, w, commit("1")).GetApplied().GetSnapshotId(); got != "1" {
		t.Errorf("applied %q", got)
	}
	r.want(t, "commit")
	// By hash alone, in another order, one gone.
	say(t, w, prepare("2", nil, b))
	say(t, w, &configv1.WatchResponse{Message: &configv1.WatchResponse_Abort{Abort: &configv1.Abort{SnapshotId: "2"}}})
	r.want(t, "prepare b", "abort")
	if _, err := w.handle(hello.Mine("restartd", "config/v1"), commit("2")); err == nil {
		t.Error("a snapshot that was called off was committed")
	}
	r.want(t)
}

func TestRefusals(t *testing.T) {
	w, r := newWatcher(t)
	a, bad := listener("a"), listener("bad")
	refused := say(t, w, prepare("1", []*configv1.Object{a, bad}, a, bad)).GetRefused()
	if refused.GetSnapshotId() != "1" || len(refused.GetReasons()) != 1 || refused.GetReasons()[0].GetField() != "address[0]" {
		t.Errorf("refused %v", refused)
	}
	r.want(t, "refuse")
	refused = say(t, w, prepare("2", nil, a, listener("unheard"))).GetRefused()
	if len(refused.GetReasons()) != 1 || refused.GetReasons()[0].GetName() != "unheard" {
		t.Errorf("refused %v", refused)
	}
	r.want(t)
	// What came with a refused snapshot is held.
	w2, r2 := newWatcher(t)
	say(t, w2, prepare("1", []*configv1.Object{a, bad}, a, bad))
	say(t, w2, prepare("2", nil, a))
	r2.want(t, "refuse", "prepare a")
}

func TestLastGood(t *testing.T) {
	w, _ := newWatcher(t)
	a := listener("a")
	say(t, w, prepare("1", []*configv1.Object{a}, a))
	say(t, w, commit("1"))
	if st, err := os.Stat(w.Path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	again, r := newWatcher(t)
	again.Path = w.Path
	again.useLastGood()
	r.want(t, "prepare a", "commit")
	if again.applied.id != "1" {
		t.Errorf("applied %q", again.applied.id)
	}
	again.useLastGood() // something is applied
	r.want(t)

	whole, err := os.ReadFile(w.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"empty": nil, "cut off": whole[:len(whole)-1], "no body": whole[:len(magic)+5],
		"damaged":       append(bytes.Clone(whole[:len(whole)-1]), whole[len(whole)-1]^1),
		"other version": bytes.Replace(whole, []byte("last-good 1"), []byte("last-good 2"), 1),
	} {
		if err := os.WriteFile(w.Path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		again, r := newWatcher(t)
		again.Path = w.Path
		again.useLastGood()
		r.want(t)
		if again.applied != nil {
			t.Errorf("%s: applied", name)
		}
	}
}

func TestLastGoodThatCannotBeHadIsLeft(t *testing.T) {
	w, r := newWatcher(t)
	w.applied = &snapshot{id: "1", objects: []*configv1.Object{listener("bad")}}
	if err := w.save(); err != nil {
		t.Fatal(err)
	}
	w.applied = nil
	w.useLastGood()
	r.want(t, "refuse")
	if w.applied != nil {
		t.Error("applied")
	}
}

// script is a configd that plays what it is given and then breaks the stream.
type script struct {
	configv1.ConfigClient
	subscribed chan *configv1.Subscribe
	streams    chan []*configv1.WatchResponse
}

func (s *script) Watch(ctx context.Context, _ ...grpc.CallOption) (configv1.Config_WatchClient, error) {
	select {
	case messages := <-s.streams:
		return &scriptStream{script: s, messages: messages}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type scriptStream struct {
	configv1.Config_WatchClient
	script   *script
	messages []*configv1.WatchResponse
}

func (s *scriptStream) Send(m *configv1.WatchRequest) error {
	if sub := m.GetSubscribe(); sub != nil {
		s.script.subscribed <- sub
	}
	return nil
}

func (s *scriptStream) Recv() (*configv1.WatchResponse, error) {
	if len(s.messages) == 0 {
		return nil, io.EOF
	}
	m := s.messages[0]
	s.messages = s.messages[1:]
	return m, nil
}

func TestBrokenStreamAbortsAndSubscribesAnew(t *testing.T) {
	w, r := newWatcher(t)
	a, b := listener("a"), listener("b")
	c := &script{subscribed: make(chan *configv1.Subscribe), streams: make(chan []*configv1.WatchResponse, 3)}
	w.Client, w.Patience = c, time.Hour
	greeting := &configv1.WatchResponse{Message: &configv1.WatchResponse_Hello{Hello: hello.Mine("configd", "config/v1")}}
	c.streams <- []*configv1.WatchResponse{greeting, prepare("1", []*configv1.Object{a}, a), commit("1")}
	c.streams <- []*configv1.WatchResponse{greeting, prepare("2", []*configv1.Object{b}, a, b)}
	c.streams <- nil
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.Run(ctx) }()
	for i, want := range []string{"", "1", "1"} {
		select {
		case sub := <-c.subscribed:
			if sub.GetAppliedSnapshot() != want || (want != "") != (len(sub.GetHave()) == 1) || sub.GetRole() != configv1.Role_ROLE_RESTARTD {
				t.Errorf("subscription %d: %v", i, sub)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no subscription %d", i)
		}
	}
	cancel()
	<-done
	r.want(t, "prepare a", "commit", "prepare a b", "abort")
}

func TestTooNewConfigdIsRefused(t *testing.T) {
	w, _ := newWatcher(t)
	h := hello.Mine("configd", "config/v1")
	h.Revision, h.MinRevision = 1000, 1000
	_, err := w.handle(hello.Mine("restartd", "config/v1"), &configv1.WatchResponse{Message: &configv1.WatchResponse_Hello{Hello: h}})
	if err == nil || errors.Is(err, io.EOF) {
		t.Errorf("error %v", err)
	}
}

func FuzzLastGood(f *testing.F) {
	w := &Watcher{Path: filepath.Join(f.TempDir(), "x"), applied: &snapshot{id: "1", objects: []*configv1.Object{listener("a")}}}
	if err := w.save(); err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(w.Path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[len(magic)+sha256.Size:])
	f.Add([]byte{})
	f.Fuzz(func(_ *testing.T, body []byte) {
		sum := sha256.Sum256(body)
		_, _ = parse(bytes.Join([][]byte{magic, sum[:], body}, nil))
		_, _ = parse(body)
	})
}
