package web

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"retinue.dev/libs/region"
	"retinue.dev/libs/region/regiontest"
	statsv1 "retinue.dev/services/api/stats/v1"

	"retinue.dev/statsd/internal/exposition"
	"retinue.dev/statsd/internal/history"
	"retinue.dev/statsd/internal/settings"
	"retinue.dev/statsd/internal/suite"
)

func TestMain(m *testing.M) { regiontest.Main(m) }

// nobody is a sibling that does not answer.
type nobody struct{}

func (nobody) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return errors.New("nobody")
}

func (nobody) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("nobody")
}

type world struct {
	*Handler
	writer *regiontest.Writer
	bases  []uint64
	now    time.Time
}

// newWorld has a listener's and a cluster's series with a writer of their own.
func newWorld(t testing.TB) *world {
	t.Helper()
	run := t.TempDir()
	store, err := region.Open(filepath.Join(run, "region"), region.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(store.Close)
	field := func(name string, kind statsv1.Kind) *statsv1.Field { return &statsv1.Field{Name: name, Kind: kind} }
	class := field("downstream_rq_xx", statsv1.Kind_KIND_COUNTER)
	class.Labels = []*statsv1.Label{{Name: "response_code_class", Value: "5"}}
	took := field("downstream_rq_time", statsv1.Kind_KIND_HISTOGRAM)
	took.Unit = "us"
	bases, err := store.DeclareAll([]*statsv1.Schema{
		{Name: "http", Fields: []*statsv1.Field{field("downstream_rq_total", statsv1.Kind_KIND_COUNTER), class, took}},
		{Name: "server", Fields: []*statsv1.Field{field("live", statsv1.Kind_KIND_GAUGE)}},
		{Name: "cluster", Fields: []*statsv1.Field{field("upstream_rq_total", statsv1.Kind_KIND_COUNTER), field("membership_total", statsv1.Kind_KIND_GAUGE)}},
	}, []*statsv1.Group{
		{Schema: 0, Labels: []*statsv1.Label{{Name: "listener", Value: "web"}}},
		{Schema: 1},
		{Schema: 2, Labels: []*statsv1.Label{{Name: "cluster", Value: "<b>api"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	sheet, lock, err := store.CreateSheet(1, 0)
	if err != nil {
		t.Fatal(err)
	}
	writer := regiontest.Start(t, sheet, lock)
	source, err := exposition.NewSource(func() (*region.Reader, error) { return region.OpenReader(store.Dir(), run) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(source.Close)
	h, err := NewHandler(Sources{
		Series: source, History: history.New(source), Siblings: suite.New(nobody{}, nobody{}, time.Now),
		Own:   func(scrapes uint64) []exposition.Own { return nil },
		About: func() About { return About{Version: "test"} },
		Log:   slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	return &world{h, writer, bases, time.Unix(1000, 0)}
}

func (w *world) tick() {
	w.now = w.now.Add(time.Second)
	w.Tick(context.Background(), w.now)
}

func (w *world) request(method, path string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer := httptest.NewRecorder()
	w.ServeHTTP(answer, r)
	return answer
}

func TestPaths(t *testing.T) {
	w := newWorld(t)
	w.writer.Add(0, w.bases[1], 1)
	for _, c := range []struct {
		method, path string
		code         int
		kind, body   string
	}{
		{"GET", "/", 200, "text/html; charset=utf-8", "<title>Retinue</title>"},
		{"HEAD", "/", 200, "text/html; charset=utf-8", ""},
		{"GET", "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", "retinue_server_live 1"},
		{"GET", "/stats/prometheus?match=live", 200, "text/plain; version=0.0.4; charset=utf-8", "retinue_server_live 1"},
		{"HEAD", "/metrics", 200, "text/plain; version=0.0.4; charset=utf-8", ""},
		{"GET", "/metrics?match=" + strings.Repeat("x", 201), 400, "text/plain; charset=utf-8", "too long"},
		{"GET", "/metrics?" + strings.Repeat("match=x&", 17), 400, "text/plain; charset=utf-8", "too many"},
		{"GET", "/healthz", 200, "text/plain; charset=utf-8", "ok\n"},
		{"GET", "/ready", 200, "application/json", `"ready":true`},
		{"GET", "/readyz", 200, "application/json", `"degraded":true`},
		{"GET", "/version", 200, "application/json", `"daemon":"statsd"`},
		{"GET", "/nowhere", 404, "text/plain; charset=utf-8", "not here"},
		{"POST", "/", 405, "text/plain; charset=utf-8", "read-only"},
		{"DELETE", "/metrics", 405, "text/plain; charset=utf-8", "read-only"},
		{"OPTIONS", "/events", 405, "text/plain; charset=utf-8", "read-only"},
	} {
		a := w.request(c.method, c.path)
		if a.Code != c.code || a.Header().Get("Content-Type") != c.kind || !strings.Contains(a.Body.String(), c.body) {
			t.Errorf("%s %.40s: %d %q %.200q", c.method, c.path, a.Code, a.Header().Get("Content-Type"), a.Body)
		}
		if a.Header().Get("X-Content-Type-Options") != "nosniff" || !strings.Contains(a.Header().Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s %.40s: headers %v", c.method, c.path, a.Header())
		}
	}
	w.writer.Kill()
	if a := w.request("GET", "/ready"); a.Code != 503 || !strings.Contains(a.Body.String(), "no generation of proxyd serves") {
		t.Errorf("ready after the generation's death: %d %s", a.Code, a.Body)
	}
	if a := w.request("GET", "/healthz"); a.Code != 200 {
		t.Errorf("healthz: %d", a.Code)
	}
	if a := w.request("GET", "/metrics", "Accept", "application/openmetrics-text; version=1.0.0"); !strings.HasSuffix(a.Body.String(), "# EOF\n") {
		t.Error("OpenMetrics was not given to who asked")
	}
}

func TestPage(t *testing.T) {
	w := newWorld(t)
	a := w.request("GET", "/")
	page := a.Body.String()
	if strings.Contains(page, "{{") {
		t.Error("the page is not put together")
	}
	// Whatever the page names must be relative: it is looked at below proxies' paths too.
	for _, m := range regexp.MustCompile(`(?:href|src)="([^"]*)"|EventSource\("([^"]*)"|url\(([^)]*)\)`).FindAllStringSubmatch(page, -1) {
		link := m[1] + m[2] + m[3]
		if strings.HasPrefix(link, "/") || strings.Contains(link, "://") && !strings.HasPrefix(link, "data:") {
			t.Errorf("%q is not relative", link)
		}
	}
	policy := a.Header().Get("Content-Security-Policy")
	if strings.Contains(policy, "unsafe") || strings.Count(policy, "sha256-") != 2 {
		t.Errorf("policy %q", policy)
	}
	if strings.Contains(page, ` style="`) || strings.Contains(page, ` onclick=`) || strings.Contains(page, "innerHTML") {
		t.Error("the page has what its policy forbids, or puts text in as markup")
	}
	if again := w.request("GET", "/", "If-None-Match", a.Header().Get("ETag")); again.Code != http.StatusNotModified {
		t.Errorf("asked again: %d", again.Code)
	}
}

// openEvents opens the stream over a real connection and returns what decodes its messages.
func openEvents(t *testing.T, address string) (next func() update, response *http.Response) {
	t.Helper()
	response, err := http.Get("http://" + address + "/events")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	return func() update {
		t.Helper()
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				var u update
				if err := json.Unmarshal([]byte(data), &u); err != nil {
					t.Fatal(err)
				}
				return u
			}
		}
		t.Fatalf("the stream ended: %v", lines.Err())
		return update{}
	}, response
}

func (w *world) serve(t *testing.T) *Server {
	t.Helper()
	s := NewServer(w, slog.New(slog.DiscardHandler))
	t.Cleanup(s.Close)
	s.Insist("127.0.0.1:0")
	return s
}

func TestEvents(t *testing.T) {
	w := newWorld(t)
	s := w.serve(t)
	w.writer.Add(0, w.bases[0], 100)
	w.tick()
	w.writer.Add(0, w.bases[0], 10)
	w.writer.Add(0, w.bases[0]+1, 4)
	w.writer.Observe(0, w.bases[0]+2, 5000)
	w.tick()
	next, response := openEvents(t, s.Address())
	if response.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("type %q", response.Header.Get("Content-Type"))
	}
	first := next()
	if len(first.Points) != 2 || first.Points[1].Requests != 10 || first.Points[1].Classes[4] != 4 || first.About.Version != "test" {
		t.Errorf("the first event is %+v", first)
	}
	if p := first.Points[1].P50; p < 4.5 || p > 5.5 {
		t.Errorf("p50 %v ms of one request that took 5", p)
	}
	w.writer.Add(0, w.bases[2], 7)
	w.tick() // the first table has no rates yet
	if u := next(); len(u.Points) != 0 || len(u.Now.Clusters) != 1 || u.Now.Clusters[0].Name != "<b>api" || u.Now.Clusters[0].Requests != 0 {
		t.Errorf("the second event is %+v", u)
	}
	w.writer.Add(0, w.bases[2], 7)
	w.tick()
	if u := next(); u.Now.Clusters[0].Requests != 7 || u.Now.Totals.Requests != 110 {
		t.Errorf("the third event is %+v", u.Now)
	}
	response.Body.Close()
	deadline := time.Now().Add(20 * time.Second)
	for w.events.watched() {
		if time.Now().After(deadline) {
			t.Fatal("a client that went is still fed")
		}
		w.tick()
	}
}

func TestTooManyWatchers(t *testing.T) {
	w := newWorld(t)
	for range maxWatchers {
		w.events.join()
	}
	if a := w.request("GET", "/events"); a.Code != 503 || a.Header().Get("Retry-After") == "" {
		t.Errorf("%d %v", a.Code, a.Header())
	}
	// None of them reads: each is dropped when it is too far behind.
	for range backlog + 1 {
		w.tick()
	}
	if w.events.watched() {
		t.Error("clients that do not read are kept")
	}
}

func TestServerMoves(t *testing.T) {
	w := newWorld(t)
	s := w.serve(t)
	first := s.Address()
	get := func(address string) error {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		r, err := client.Get("http://" + address + "/healthz")
		if err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
			r.Body.Close()
		}
		return err
	}
	if err := get(first); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Prepare(taken.Addr().String()); err == nil {
		t.Error("an address in use was prepared")
	}
	s.Abort()
	if err := get(first); err != nil {
		t.Errorf("a refused move stopped the serving: %v", err)
	}
	s.Insist(taken.Addr().String())
	if s.Address() != first {
		t.Error("moved to an address in use")
	}
	taken.Close()
	s.Retry()
	if s.Address() != taken.Addr().String() {
		t.Errorf("listens on %s, insisted on %s", s.Address(), taken.Addr())
	}
	if err := get(taken.Addr().String()); err != nil {
		t.Error(err)
	}
	next, _ := openEvents(t, s.Address())
	next()
	if err := s.Prepare(settings.Off); err != nil {
		t.Fatal(err)
	}
	s.Commit()
	if s.Address() != settings.Off {
		t.Errorf("off, and listens on %s", s.Address())
	}
	for _, address := range []string{first, taken.Addr().String()} {
		deadline := time.Now().Add(20 * time.Second)
		for get(address) == nil {
			if time.Now().After(deadline) {
				t.Fatalf("%s still answers", address)
			}
		}
	}
	if err := s.Prepare(s.Address()); err != nil {
		t.Error(err)
	}
}

// TestSlowHead: a client that does not end its request's head is cut off.
func TestSlowHead(t *testing.T) {
	w := newWorld(t)
	s := w.serve(t)
	conn, err := net.Dial("tcp", s.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 2*maxHeaderBytes))); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if errors.Is(err, os.ErrDeadlineExceeded) || !strings.HasPrefix(string(answer), "HTTP/1.1 431") {
		t.Errorf("%v %q", err, answer)
	}
}
