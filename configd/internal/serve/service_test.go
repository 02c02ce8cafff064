package serve

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/history"
	"retinue.dev/configd/internal/maintenance"
	"retinue.dev/configd/internal/secret"
)

const (
	broken = "cluster \"api\" {\n  balance = \"nonsense\"\n}\n"
	first  = `listener "l" {
  address = ["127.0.0.1:1"]
  tcp { cluster = cluster.api }
}
cluster "api" { endpoints = ["10.0.0.1:80"] }
`
)

var second = strings.Replace(first, `"127.0.0.1:1"`, `"127.0.0.1:1", "127.0.0.1:2"`, 1)

// rig is a configd without its process: the service on a real socket.
type rig struct {
	t      *testing.T
	svc    *service
	file   string
	client configv1.ConfigClient
	store  *history.Store
}

// newRig serves the file at dir/main.hcl with the state in dir; what start says is returned.
func newRig(t *testing.T, dir string) (*rig, error) {
	t.Helper()
	store, err := history.Open(filepath.Join(dir, "state"))
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, file: filepath.Join(dir, "main.hcl"), store: store}
	r.svc = newService(r.file, slog.New(slog.NewTextHandler(io.Discard, nil)), store, secret.OpenKeeper(dir, time.Now()), maintenance.Open(dir), func(string) {})
	if err := r.svc.start(); err != nil {
		return r, err
	}
	settled := make(chan struct{}) // nobody is waited for: a test's daemons come when it says so
	close(settled)
	r.svc.settled = settled
	socket := filepath.Join(t.TempDir(), "configd.sock")
	l, err := peer.Listen(socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(peer.ServerOptions(peer.Same())...)
	configv1.RegisterConfigServer(g, r.svc)
	go func() { _ = g.Serve(l) }()
	t.Cleanup(g.Stop)
	conn, err := peer.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	r.client = configv1.NewConfigClient(conn)
	return r, nil
}

func (r *rig) write(text string) {
	r.t.Helper()
	put(r.t, r.file, text)
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// watcher is a daemon that takes every snapshot but those whose Prepare refuse says no to.
type watcher struct {
	mu       sync.Mutex
	prepared []string
	applied  []string
}

func (r *rig) watch(role configv1.Role, applied string, refuse func(*configv1.Prepare) *configv1.Refusal) *watcher {
	r.t.Helper()
	stream, err := r.client.Watch(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	w := &watcher{}
	err = stream.Send(&configv1.WatchRequest{Message: &configv1.WatchRequest_Subscribe{Subscribe: &configv1.Subscribe{
		Hello: hello.Mine("test", "config/v1"), Role: role, AppliedSnapshot: applied,
	}}})
	if err != nil {
		r.t.Fatal(err)
	}
	m, err := stream.Recv()
	if err != nil || m.GetHello().GetDaemon() != "configd" {
		r.t.Fatalf("hello: %v %v", m, err)
	}
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			switch {
			case m.GetPrepare() != nil:
				id := m.GetPrepare().GetSnapshotId()
				w.mu.Lock()
				w.prepared = append(w.prepared, id)
				w.mu.Unlock()
				if refuse != nil {
					if reason := refuse(m.GetPrepare()); reason != nil {
						_ = stream.Send(&configv1.WatchRequest{Message: &configv1.WatchRequest_Refused{Refused: &configv1.Refused{SnapshotId: id, Reasons: []*configv1.Refusal{reason}}}})
						continue
					}
				}
				_ = stream.Send(&configv1.WatchRequest{Message: &configv1.WatchRequest_Prepared{Prepared: &configv1.Prepared{SnapshotId: id}}})
			case m.GetCommit() != nil:
				id := m.GetCommit().GetSnapshotId()
				w.mu.Lock()
				w.applied = append(w.applied, id)
				w.mu.Unlock()
				_ = stream.Send(&configv1.WatchRequest{Message: &configv1.WatchRequest_Applied{Applied: &configv1.Applied{SnapshotId: id}}})
			}
		}
	}()
	return w
}

func (w *watcher) runs() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.applied...)
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !f() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(2 * time.Millisecond)
	}
}

func (r *rig) reload() *configv1.ReloadReply {
	r.t.Helper()
	reply, err := r.client.Reload(r.t.Context(), &configv1.ReloadRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return reply
}

func (r *rig) status() *configv1.StatusReply {
	r.t.Helper()
	reply, err := r.client.Status(r.t.Context(), &configv1.StatusRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	return reply
}

// TestReload walks through the life of a configuration: unchanged, changed, broken, refused, corrected.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "main.hcl"), first)
	r, err := newRig(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	inUse := func(p *configv1.Prepare) *configv1.Refusal {
		for _, o := range p.GetChanged() {
			if l := o.GetListener(); l != nil && len(l.GetAddresses()) > 1 {
				return &configv1.Refusal{Kind: "listener", Name: "l", Field: "address[1]", Message: "127.0.0.1:2 is in use by another process; stop it or take another port"}
			}
		}
		return nil
	}
	restartd := r.watch(configv1.Role_ROLE_RESTARTD, "", inUse)
	proxyd := r.watch(configv1.Role_ROLE_PROXYD, "", nil)
	r.watch(configv1.Role_ROLE_STATSD, "", nil)
	eventually(t, "the first snapshot", func() bool { return len(proxyd.runs()) == 1 && len(restartd.runs()) == 1 })
	a := r.status().GetSnapshotId()

	if reply := r.reload(); !reply.GetOk() || reply.GetChanged() || reply.GetSnapshotId() != a {
		t.Errorf("unchanged: %+v", reply)
	}
	r.write(first + "# a remark\n")
	if reply := r.reload(); !reply.GetOk() || reply.GetChanged() {
		t.Errorf("a remark at the end: %+v", reply)
	}
	r.write(strings.Replace(first, "10.0.0.1:80", "10.0.0.9:80", 1))
	reply := r.reload()
	if !reply.GetOk() || !reply.GetChanged() || reply.GetSnapshotId() == a {
		t.Fatalf("changed: %+v", reply)
	}
	b := reply.GetSnapshotId()
	if got := proxyd.runs(); got[len(got)-1] != b {
		t.Error("the reload returned before proxyd applied it")
	}

	r.write(broken)
	reply = r.reload()
	if reply.GetOk() || reply.GetSnapshotId() != b || !strings.Contains(reply.GetRendered(), "main.hcl line 2") || reply.GetDiagnostics()[0].GetCode() == "" {
		t.Errorf("broken: %+v", reply)
	}
	if s := r.status(); s.GetSnapshotId() != b || s.GetLastReload().GetOk() || s.GetLastReload().GetFailures() != 1 || !strings.Contains(s.GetLastReload().GetMessage(), "main.hcl:1") {
		t.Errorf("status after a broken file: %+v", s)
	}

	r.write(second)
	reply = r.reload()
	if reply.GetOk() || reply.GetSnapshotId() != b {
		t.Errorf("refused: %+v", reply)
	}
	d := reply.GetDiagnostics()[0]
	if d.GetCode() != "E0601" || d.GetSource().GetLine() != 2 || d.GetSource().GetColumn() != 29 || d.GetSource().GetFile() != r.file {
		t.Errorf("diagnostic %+v", d)
	}
	if !strings.Contains(reply.GetRendered(), "    2:   address = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n                                   ^^^^^^^^^^^^^\n") {
		t.Errorf("rendered:\n%s", reply.GetRendered())
	}

	r.write(first)
	if reply := r.reload(); !reply.GetOk() || reply.GetSnapshotId() != a {
		t.Errorf("corrected: %+v", reply)
	}
	s := r.status()
	if !s.GetLastReload().GetOk() || s.GetObjects() != 4 || len(s.GetWatchers()) != 3 || s.GetConfigPath() != r.file {
		t.Errorf("status: %+v", s)
	}
	for _, w := range s.GetWatchers() {
		if w.GetSnapshotId() != a || w.GetState() != "applied" || w.GetPid() != int64(os.Getpid()) {
			t.Errorf("watcher: %+v", w)
		}
	}
	if last, _ := r.store.Last(); last == nil || last.Snapshot.ID != a {
		t.Errorf("kept: %+v", last)
	}
}

// TestBrokenStart holds that broken files at start mean the last-good snapshot, or an end with the diagnostics.
func TestBrokenStart(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "main.hcl"), broken)
	if _, err := newRig(t, dir); err == nil || !strings.Contains(err.Error(), "main.hcl line 2") {
		t.Fatalf("start: %v", err)
	}
	put(t, filepath.Join(dir, "main.hcl"), first)
	r, err := newRig(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	r.watch(configv1.Role_ROLE_PROXYD, "", nil)
	eventually(t, "a kept snapshot", func() bool { last, _ := r.store.Last(); return last != nil })
	good := r.status().GetSnapshotId()

	put(t, r.file, broken)
	again, err := newRig(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	proxyd := again.watch(configv1.Role_ROLE_PROXYD, "", nil)
	eventually(t, "the last-good snapshot", func() bool { return len(proxyd.runs()) == 1 })
	if s := again.status(); s.GetSnapshotId() != good || s.GetLastReload().GetOk() || !strings.Contains(s.GetLastReload().GetMessage(), "last-good") {
		t.Errorf("status: %+v", s)
	}
}

// TestChangedWhileAway holds what happens to files that changed while configd was not there.
func TestChangedWhileAway(t *testing.T) {
	prepare := func(t *testing.T) (dir, good string) {
		dir = t.TempDir()
		put(t, filepath.Join(dir, "main.hcl"), first)
		r, err := newRig(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		r.watch(configv1.Role_ROLE_PROXYD, "", nil)
		eventually(t, "a kept snapshot", func() bool { last, _ := r.store.Last(); return last != nil })
		put(t, r.file, second)
		return dir, r.status().GetSnapshotId()
	}
	t.Run("daemons run the old one: both phases", func(t *testing.T) {
		dir, good := prepare(t)
		r, err := newRig(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		refuse := func(p *configv1.Prepare) *configv1.Refusal {
			if p.GetSnapshotId() != good {
				return &configv1.Refusal{Kind: "cluster", Name: "api", Message: "no"}
			}
			return nil
		}
		restartd := r.watch(configv1.Role_ROLE_RESTARTD, good, nil)
		r.watch(configv1.Role_ROLE_STATSD, good, nil)
		r.watch(configv1.Role_ROLE_PROXYD, good, refuse)
		eventually(t, "the refusal", func() bool { return r.status().GetLastReload().GetFailures() == 1 })
		if s := r.status(); s.GetSnapshotId() != good || len(restartd.runs()) != 0 {
			t.Errorf("status %+v, restartd applied %v", s, restartd.runs())
		}
	})
	t.Run("nobody runs the old one: it is never served", func(t *testing.T) {
		dir, good := prepare(t)
		r, err := newRig(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		restartd := r.watch(configv1.Role_ROLE_RESTARTD, "", nil)
		r.watch(configv1.Role_ROLE_STATSD, "", nil)
		proxyd := r.watch(configv1.Role_ROLE_PROXYD, "", nil)
		eventually(t, "the new snapshot", func() bool { return len(proxyd.runs()) == 1 && len(restartd.runs()) == 1 })
		if proxyd.runs()[0] == good || restartd.runs()[0] == good {
			t.Error("the old snapshot was served")
		}
		eventually(t, "the new snapshot to be kept", func() bool { last, _ := r.store.Last(); return last.Snapshot.ID != good })
	})
}

// TestCheck holds that a check changes nothing and of whose files it speaks.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "main.hcl"), first)
	r, err := newRig(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	reply, err := r.client.Check(t.Context(), &configv1.CheckRequest{})
	if err != nil || reply.GetSnapshotId() != r.status().GetSnapshotId() || len(reply.GetDiagnostics()) != 0 {
		t.Errorf("the configured file: %+v %v", reply, err)
	}
	other := filepath.Join(dir, "other.hcl")
	put(t, other, broken)
	reply, err = r.client.Check(t.Context(), &configv1.CheckRequest{Path: other})
	if err != nil || reply.GetSnapshotId() != "" || len(reply.GetDiagnostics()) != 2 || !strings.Contains(reply.GetRendered(), "nonsense") {
		t.Errorf("another file: %+v %v", reply, err)
	}
	if _, err = r.client.Check(t.Context(), &configv1.CheckRequest{Path: "other.hcl"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a relative path: %v", err)
	}
	// Without a peer's credentials nobody's file is shown.
	if _, err = r.svc.Check(context.Background(), &configv1.CheckRequest{Path: other}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("an unknown peer: %v", err)
	}
	if s := r.status(); s.GetLastReload().GetFailures() != 0 {
		t.Errorf("the check counted as a reload: %+v", s)
	}
}

// TestHello holds that a watcher of another protocol is told so, and that the first message is Subscribe.
func TestHello(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "main.hcl"), first)
	r, err := newRig(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	old := hello.Mine("proxyd", "config/v1")
	old.Revision, old.MinRevision = 0, 0
	for _, c := range []struct {
		m    *configv1.WatchRequest
		code codes.Code
	}{
		{&configv1.WatchRequest{Message: &configv1.WatchRequest_Applied{}}, codes.InvalidArgument},
		{&configv1.WatchRequest{Message: &configv1.WatchRequest_Subscribe{Subscribe: &configv1.Subscribe{Role: configv1.Role_ROLE_PROXYD, Hello: old}}}, codes.FailedPrecondition},
		{&configv1.WatchRequest{Message: &configv1.WatchRequest_Subscribe{Subscribe: &configv1.Subscribe{Hello: hello.Mine("x", "config/v1")}}}, codes.InvalidArgument},
	} {
		stream, err := r.client.Watch(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(c.m); err != nil {
			t.Fatal(err)
		}
		for err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != c.code {
			t.Errorf("%v: %v", c.m, err)
		}
	}
	endpoints, err := r.client.WatchEndpoints(t.Context(), &configv1.WatchEndpointsRequest{Hello: hello.Mine("proxyd", "config/v1")})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := endpoints.Recv(); err != nil || len(m.GetClusters()) != 0 { // nothing is discovered: it says so at once
		t.Errorf("endpoints: %v %v", m, err)
	}
}

// TestLarge holds that ten thousand clusters and routes pass the socket in one message.
func TestLarge(t *testing.T) {
	var b strings.Builder
	b.WriteString("listener \"web\" {\n  address = [\"127.0.0.1:1\"]\n  http {\n    virtual_host \"*\" {\n")
	for i := range 10_000 {
		fmt.Fprintf(&b, "      route \"/service-%d/*\" { cluster = cluster.service-%d }\n", i, i)
	}
	b.WriteString("    }\n  }\n}\n")
	for i := range 10_000 {
		fmt.Fprintf(&b, "cluster \"service-%d\" { endpoints = [\"10.0.%d.%d:80\", \"10.1.%d.%d:80\"] }\n", i, i>>8, i&255, i>>8, i&255)
	}
	dir := t.TempDir()
	put(t, filepath.Join(dir, "main.hcl"), b.String())
	r, err := newRig(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	proxyd := r.watch(configv1.Role_ROLE_PROXYD, "", nil)
	eventually(t, "the large snapshot", func() bool { return len(proxyd.runs()) == 1 })
}

// TestDrainEndpoint: a drain is told at once, refuses what is not there, and is still in force after a restart.
func TestDrainEndpoint(t *testing.T) {
	dir := t.TempDir()
	put(t, filepath.Join(dir, "main.hcl"), `
listener "t" {
  address = ["127.0.0.1:1"]
  tcp { cluster = cluster.app }
}
cluster "app" { endpoints = ["10.0.0.1:80", "10.0.0.2:80"] }
`)
	r, err := newRig(t, dir)
	if err != nil {
		t.Fatal(err)
	}
	updates, err := r.client.WatchEndpoints(t.Context(), &configv1.WatchEndpointsRequest{Hello: hello.Mine("proxyd", "config/v1")})
	if err != nil {
		t.Fatal(err)
	}
	told := func(want ...string) {
		t.Helper()
		m, err := updates.Recv()
		var got []string
		for _, d := range m.GetDrained() {
			got = append(got, d.GetCluster()+" "+d.GetAddress())
		}
		if err != nil || !m.GetDrains() || !slices.Equal(got, want) {
			t.Errorf("told %v (%v), want %v", m, err, want)
		}
	}
	told()
	for _, test := range []struct {
		cluster, address string
		undrain, changed bool
		code             codes.Code
	}{
		{"nope", "10.0.0.1:80", false, false, codes.NotFound},
		{"app", "10.0.0.3:80", false, false, codes.NotFound},
		{"app", "10.0.0.3:80", true, false, codes.NotFound},
		{"app", "10.0.0.1:80", true, false, codes.OK},
		{"app", "10.0.0.1:80", false, true, codes.OK},
		{"app", "10.0.0.1:80", false, false, codes.OK},
	} {
		reply, err := r.client.DrainEndpoint(t.Context(), &configv1.DrainEndpointRequest{Cluster: test.cluster, Address: test.address, Undrain: test.undrain})
		if status.Code(err) != test.code || reply.GetChanged() != test.changed {
			t.Errorf("%+v: %v %v", test, reply, err)
		}
	}
	told("app 10.0.0.1:80")
	s, err := r.client.Status(t.Context(), &configv1.StatusRequest{})
	if err != nil || len(s.GetDrained()) != 1 {
		t.Errorf("status: %v %v", s.GetDrained(), err)
	}
}
