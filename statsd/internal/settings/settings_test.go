package settings_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/statsd/internal/settings"
)

// target notes what it is told.
type target struct{ told chan string }

func (t target) Prepare(s settings.Settings) error {
	if s.Listen == "127.0.0.1:1" {
		return errors.New("address in use")
	}
	t.told <- "prepare " + said(s)
	return nil
}

// said is an address alone where the rest is as it is by default.
func said(s settings.Settings) string {
	if s.MaxSeries == settings.DefaultMaxSeries && s.Push == nil {
		return s.Listen
	}
	return fmt.Sprintf("%s max %d push %d", s.Listen, s.MaxSeries, len(s.Push))
}

func (t target) Commit()                    { t.told <- "commit" }
func (t target) Abort()                     { t.told <- "abort" }
func (t target) Insist(s settings.Settings) { t.told <- "insist " + said(s) }

// configd hands each Watch stream to the test.
type configd struct {
	configv1.UnimplementedConfigServer
	streams chan configv1.Config_WatchServer
}

func (c configd) Watch(s configv1.Config_WatchServer) error {
	c.streams <- s
	<-s.Context().Done()
	return nil
}

type world struct {
	t      *testing.T
	state  string
	socket string
	told   chan string
	configd
}

func newWorld(t *testing.T) *world {
	dir := t.TempDir()
	return &world{
		t: t, state: dir, socket: filepath.Join(dir, "configd.sock"), told: make(chan string, 100),
		configd: configd{streams: make(chan configv1.Config_WatchServer, 10)},
	}
}

func (w *world) serve() {
	w.t.Helper()
	l, err := peer.Listen(w.socket, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	server := grpc.NewServer(peer.ServerOptions(peer.Same())...)
	configv1.RegisterConfigServer(server, w.configd)
	go server.Serve(l)
	w.t.Cleanup(server.Stop)
}

func (w *world) follow(grace time.Duration) *settings.Follower {
	w.t.Helper()
	conn, err := peer.Dial(w.socket)
	if err != nil {
		w.t.Fatal(err)
	}
	f := settings.New(configv1.NewConfigClient(conn), target{w.told}, w.state, slog.New(slog.DiscardHandler))
	f.Start()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.Run(ctx, grace)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
		conn.Close()
	})
	return f
}

func (w *world) expect(want string) {
	w.t.Helper()
	select {
	case got := <-w.told:
		if got != want {
			w.t.Fatalf("told %q, want %q", got, want)
		}
	case <-time.After(20 * time.Second):
		w.t.Fatalf("waited in vain for %q", want)
	}
}

// stream is the next one, with its Subscribe read and Hello said.
func (w *world) stream() (configv1.Config_WatchServer, *configv1.Subscribe) {
	w.t.Helper()
	var s configv1.Config_WatchServer
	select {
	case s = <-w.streams:
	case <-time.After(20 * time.Second):
		w.t.Fatal("nobody watches")
	}
	subscribe := w.receive(s).GetSubscribe()
	if subscribe.GetRole() != configv1.Role_ROLE_STATSD {
		w.t.Fatalf("subscribed %v", subscribe)
	}
	w.send(s, &configv1.WatchResponse{Message: &configv1.WatchResponse_Hello{Hello: hello.Mine("configd", "config/v1")}})
	return s, subscribe
}

func (w *world) receive(s configv1.Config_WatchServer) *configv1.WatchRequest {
	w.t.Helper()
	m, err := s.Recv()
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) send(s configv1.Config_WatchServer, m *configv1.WatchResponse) {
	w.t.Helper()
	if err := s.Send(m); err != nil {
		w.t.Fatal(err)
	}
}

func hashOf(listen string) []byte {
	sum := sha256.Sum256([]byte(listen))
	return sum[:]
}

// prepare is a snapshot that listens there; bare leaves the object's content out.
func prepare(id, listen string, bare bool) *configv1.WatchResponse {
	p := &configv1.Prepare{SnapshotId: id}
	if listen != "" {
		p.Objects = []*configv1.ObjectRef{{Kind: "stats", Name: "s", Hash: hashOf(listen)}}
		if !bare {
			p.Changed = []*configv1.Object{{Kind: "stats", Name: "s", Hash: hashOf(listen), Body: &configv1.Object_Stats{Stats: &configv1.Stats{Listen: listen}}}}
		}
	}
	return &configv1.WatchResponse{Message: &configv1.WatchResponse_Prepare{Prepare: p}}
}

func commit(id string) *configv1.WatchResponse {
	return &configv1.WatchResponse{Message: &configv1.WatchResponse_Commit{Commit: &configv1.Commit{SnapshotId: id}}}
}

func TestFollow(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.follow(time.Hour)
	s, _ := w.stream()
	w.send(s, prepare("one", "127.0.0.1:2000", false))
	if m := w.receive(s); m.GetPrepared().GetSnapshotId() != "one" {
		t.Fatalf("answered %v", m)
	}
	w.expect("prepare 127.0.0.1:2000")
	w.send(s, commit("one"))
	w.expect("commit")
	if m := w.receive(s); m.GetApplied().GetSnapshotId() != "one" {
		t.Fatalf("answered %v", m)
	}

	// A refusal of another daemon: what was prepared is thrown away.
	w.send(s, prepare("two", "off", false))
	w.receive(s)
	w.expect("prepare off")
	w.send(s, &configv1.WatchResponse{Message: &configv1.WatchResponse_Abort{Abort: &configv1.Abort{SnapshotId: "two"}}})
	w.expect("abort")

	for name, c := range map[string]struct{ listen, want string }{
		"in use":  {"127.0.0.1:1", "address in use"},
		"no port": {"localhost", "no address"},
		"unix":    {"unix:/run/x", "no address"},
	} {
		w.send(s, prepare("bad", c.listen, false))
		refused := w.receive(s).GetRefused()
		if len(refused.GetReasons()) != 1 || refused.GetReasons()[0].GetName() != "s" || refused.GetReasons()[0].GetField() != "listen" ||
			!strings.Contains(refused.GetReasons()[0].GetMessage(), c.want) {
			t.Errorf("%s: refused by %v", name, refused)
		}
	}
	w.send(s, prepare("bad", "127.0.0.1:9", true))
	if refused := w.receive(s).GetRefused(); !strings.Contains(refused.GetReasons()[0].GetMessage(), "did not come") {
		t.Errorf("an object without content: %v", refused)
	}

	// The object that is held need not come again; no stats object means the default.
	w.send(s, prepare("three", "127.0.0.1:2000", true))
	w.receive(s)
	w.expect("prepare 127.0.0.1:2000")
	w.send(s, commit("three"))
	w.expect("commit")
	w.receive(s)
	w.send(s, prepare("four", "", true))
	w.receive(s)
	w.expect("prepare " + settings.DefaultListen)

	// A commit of what was not prepared ends the stream; the next one says what is in force.
	w.send(s, commit("five"))
	w.expect("abort")
	_, subscribe := w.stream()
	if subscribe.GetAppliedSnapshot() != "three" || len(subscribe.GetHave()) != 1 || string(subscribe.GetHave()[0]) != string(hashOf("127.0.0.1:2000")) {
		t.Errorf("subscribed with %v", subscribe)
	}
}

func TestLastGood(t *testing.T) {
	w := newWorld(t)
	w.serve()
	w.follow(time.Hour)
	s, _ := w.stream()
	w.send(s, prepare("one", "127.0.0.1:2000", false))
	w.receive(s)
	w.expect("prepare 127.0.0.1:2000")
	w.send(s, commit("one"))
	w.expect("commit")
	w.receive(s)

	again := &world{t: t, state: w.state, socket: filepath.Join(w.state, "nobody.sock"), told: make(chan string, 100)}
	again.follow(time.Millisecond)
	again.expect("insist 127.0.0.1:2000") // and no default after the grace
	select {
	case told := <-again.told:
		t.Errorf("told %q besides", told)
	case <-time.After(50 * time.Millisecond):
	}
}

func TestDefaultWhenNobodyAnswers(t *testing.T) {
	w := newWorld(t)
	w.follow(time.Millisecond)
	w.expect("insist " + settings.DefaultListen)
}

func TestDamagedLastGood(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(filepath.Join(w.state, "last-good.pb"), []byte("\xff\xffgarbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.follow(time.Millisecond)
	w.expect("insist " + settings.DefaultListen)
}
