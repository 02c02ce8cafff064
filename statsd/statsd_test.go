package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"
	configv1 "retinue.dev/services/api/config/v1"
	statsv1 "retinue.dev/services/api/stats/v1"
)

const asStatsd = "RETINUE_TEST_AS_STATSD"

// TestMain makes the test binary statsd itself, or a writer of the region, when a test starts it as one.
func TestMain(m *testing.M) {
	if os.Getenv(asStatsd) != "" {
		main()
		return
	}
	regiontest.Main(m)
}

// suite is a run directory with a real statsd process and a configd that says where to listen.
type suite struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	client statsv1.StatsClient
}

func newSuite(t *testing.T) *suite {
	t.Helper()
	s := &suite{t: t, dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(s.dir, "region"), 0o750); err != nil { // here, and not in /dev/shm
		t.Fatal(err)
	}
	l, err := peer.Listen(filepath.Join(s.dir, "configd.sock"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(peer.ServerOptions(peer.Same())...)
	configv1.RegisterConfigServer(server, configd{listen: "127.0.0.1:0"})
	go server.Serve(l)
	t.Cleanup(server.Stop)
	conn, err := peer.Dial(s.path("statsd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s.client = statsv1.NewStatsClient(conn)
	s.start()
	return s
}

func (s *suite) path(name string) string { return filepath.Join(s.dir, name) }

func (s *suite) start() {
	s.t.Helper()
	executable, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(executable, "--dir", s.dir, "--log-level", "error")
	cmd.Env = append(os.Environ(), asStatsd+"=1")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
	s.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	s.until("statsd answers", func() bool {
		_, err := s.client.Status(s.context(), &statsv1.StatusRequest{})
		return err == nil
	})
}

func (s *suite) kill() {
	s.cmd.Process.Kill()
	s.cmd.Wait()
}

func (s *suite) context() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	s.t.Cleanup(cancel)
	return ctx
}

// until polls: what is awaited happens in another process.
func (s *suite) until(what string, done func() bool) {
	s.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !done() {
		select {
		case <-deadline:
			s.t.Fatalf("waited in vain: %s", what)
		case <-tick.C:
		}
	}
}

func (s *suite) declare(groups int) *statsv1.DeclareReply {
	s.t.Helper()
	schemas, list := regiontest.Declaration(groups)
	server := &statsv1.Schema{Name: "server", Fields: []*statsv1.Field{{Name: "live", Kind: statsv1.Kind_KIND_GAUGE}}}
	reply, err := s.client.Declare(s.context(), &statsv1.DeclareRequest{
		Hello: hello.Mine("proxyd", region.Contract), Schemas: append(schemas, server), Groups: append(list, &statsv1.Group{Schema: 1}),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return reply
}

// value asks for the series of group 0, or the only one.
func (s *suite) value(name string) float64 {
	s.t.Helper()
	reply, err := s.client.Query(s.context(), &statsv1.QueryRequest{Match: name})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, series := range reply.GetSeries() {
		if l := series.GetLabels(); series.GetName() == name && (len(l) == 0 || l[0].GetValue() == "0") {
			return series.GetValue()
		}
	}
	return -1
}

func (s *suite) get(path string) (int, string) {
	s.t.Helper()
	var listen string
	s.until("statsd listens where configd says", func() bool {
		status, err := s.client.Status(s.context(), &statsv1.StatusRequest{})
		listen = status.GetListen()
		return err == nil && listen != "off"
	})
	response, err := http.Get("http://" + listen + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return response.StatusCode, string(body)
}

// TestNothingCountedIsUncounted kills statsd under living writers, a spilling writer, and then the writers.
func TestNothingCountedIsUncounted(t *testing.T) {
	s := newSuite(t)
	first := s.declare(2)
	bases := first.GetBases()
	w := regiontest.Start(t)
	w.Open(s.path("statsd.fd.sock"), 1, 0)
	w.Open(s.path("statsd.fd.sock"), 1, region.MainWorker)
	w.Add(0, bases[0], 5)
	w.Add(0, bases[0]+1, 40)
	w.Observe(0, bases[0]+2, 100)
	w.Add(1, bases[2], 1)
	if got := s.value("retinue_test_rq_total"); got != 5 {
		t.Fatalf("counter %v, want 5", got)
	}
	if code, body := s.get("/ready"); code != 200 || !strings.Contains(body, `"generations_serving":1`) {
		t.Errorf("ready: %d %s", code, body)
	}

	s.kill()
	w.Add(0, bases[0], 2) // statsd is away, the region is not
	spill := regiontest.Start(t)
	spill.Spill(s.dir, 2, 4)
	spill.Add(1, 0, 1000)
	s.start()
	second := s.declare(2)
	if second.GetEpoch() != first.GetEpoch() || fmt.Sprint(second.GetBases()) != fmt.Sprint(bases) {
		t.Errorf("epoch %x bases %v became %x %v", first.GetEpoch(), bases, second.GetEpoch(), second.GetBases())
	}
	if got := s.value("retinue_test_rq_total"); got != 1007 {
		t.Errorf("counter %v after a kill, want 1007", got)
	}
	if got := s.value("retinue_test_cx_active"); got != 40 {
		t.Errorf("gauge %v, want 40", got)
	}

	w.Kill()
	spill.Kill()
	s.until("the dead are folded", func() bool {
		status, err := s.client.Status(s.context(), &statsv1.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if got := s.value("retinue_test_rq_total"); got != 1007 {
			t.Fatalf("counter %v while the dead are folded, want 1007", got)
		}
		return status.GetSheetsFolded() == 4
	})
	if got := s.value("retinue_test_cx_active"); got != 0 {
		t.Errorf("the dead one's gauge is %v", got)
	}
	if got := s.value("retinue_test_rq_time"); got != 1 {
		t.Errorf("histogram of %v values, want 1", got)
	}
	if code, body := s.get("/ready"); code != 503 || !strings.Contains(body, "no generation of proxyd serves") {
		t.Errorf("ready without a generation: %d %s", code, body)
	}
	s.kill()
	s.start()
	if got := s.value("retinue_test_rq_total"); got != 1007 {
		t.Errorf("counter %v after the second kill, want 1007", got)
	}
	if code, body := s.get("/metrics?match=rq_total"); code != 200 || !strings.Contains(body, `retinue_test_rq_total{group="0"} 1007`) {
		t.Errorf("metrics: %d %s", code, body)
	}
}

func TestGracefulEnd(t *testing.T) {
	s := newSuite(t)
	s.get("/healthz")
	if err := s.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
	for _, name := range []string{"statsd.sock", "statsd.fd.sock"} {
		if _, err := os.Stat(s.path(name)); !os.IsNotExist(err) {
			t.Errorf("%s is left behind: %v", name, err)
		}
	}
}

func TestDescriptorService(t *testing.T) {
	s := newSuite(t)
	s.declare(1)
	for name, c := range map[string]struct {
		message []byte
		want    string
	}{
		"garbage":  {[]byte("garbage"), "proto"},
		"no hello": {marshal(t, &statsv1.FdRequest{What: &statsv1.FdRequest_Region{Region: &statsv1.RegionRequest{}}}), "did not say hello"},
		"nothing":  {marshal(t, &statsv1.FdRequest{Hello: hello.Mine("retinue", region.Contract)}), "upgrade statsd"},
	} {
		reply, fds := s.ask(c.message)
		if len(fds) != 0 || !strings.Contains(reply.GetError(), c.want) {
			t.Errorf("%s: %q and %d descriptors", name, reply.GetError(), len(fds))
		}
	}
	reply, fds := s.ask(marshal(t, &statsv1.FdRequest{
		Hello: hello.Mine("retinue", region.Contract), What: &statsv1.FdRequest_Region{Region: &statsv1.RegionRequest{}},
	}))
	if reply.GetError() != "" || len(fds) != 1 {
		t.Fatalf("the region's directory: %q, %d descriptors", reply.GetError(), len(fds))
	}
	entries, err := os.ReadDir(fmt.Sprintf("/proc/self/fd/%d", fds[0]))
	if err != nil || len(entries) < 2 {
		t.Errorf("%d files: %v", len(entries), err)
	}
	os.NewFile(uintptr(fds[0]), "region").Close()
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *suite) ask(message []byte) (*statsv1.FdReply, []int) {
	s.t.Helper()
	conn, err := fdpass.Dial(s.path("statsd.fd.sock"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(10 * time.Second); err != nil {
		s.t.Fatal(err)
	}
	if err := conn.Send(message, nil); err != nil {
		s.t.Fatal(err)
	}
	answer, fds, err := conn.Recv()
	reply := &statsv1.FdReply{}
	if err == nil {
		err = proto.Unmarshal(answer, reply)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	return reply, fds
}

// configd says one snapshot to every watcher.
type configd struct {
	configv1.UnimplementedConfigServer
	listen string
}

func (c configd) Watch(stream configv1.Config_WatchServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	hash := sha256.Sum256([]byte(c.listen))
	object := &configv1.Object{Kind: "stats", Hash: hash[:], Body: &configv1.Object_Stats{Stats: &configv1.Stats{Listen: c.listen}}}
	for _, m := range []*configv1.WatchResponse{
		{Message: &configv1.WatchResponse_Hello{Hello: hello.Mine("configd", "config/v1")}},
		{Message: &configv1.WatchResponse_Prepare{Prepare: &configv1.Prepare{
			SnapshotId: "one", Objects: []*configv1.ObjectRef{{Kind: "stats", Hash: hash[:]}}, Changed: []*configv1.Object{object},
		}}},
	} {
		if err := stream.Send(m); err != nil {
			return err
		}
	}
	answer, err := stream.Recv()
	if err != nil || answer.GetPrepared() == nil {
		return fmt.Errorf("answered %v: %w", answer, err)
	}
	if err := stream.Send(&configv1.WatchResponse{Message: &configv1.WatchResponse_Commit{Commit: &configv1.Commit{SnapshotId: "one"}}}); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// TestOwnSeriesAreInTheReadme: what statsd tells of itself is what its README lists.
func TestOwnSeriesAreInTheReadme(t *testing.T) {
	s := newSuite(t)
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, metrics := s.get("/metrics?match=retinue_statsd&match=retinue_build")
	found := 0
	for line := range strings.Lines(metrics) {
		words := strings.Fields(line)
		if len(words) != 4 || words[1] != "TYPE" {
			continue
		}
		found++
		if row := "| `" + words[2]; !strings.Contains(string(readme), row+"` | "+words[3]) && !strings.Contains(string(readme), row+"{") {
			t.Errorf("the README has no row of %s (%s)", words[2], words[3])
		}
	}
	if found < 10 {
		t.Errorf("only %d series of its own in\n%s", found, metrics)
	}
}
