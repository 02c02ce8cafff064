package spans

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/libs/peer"
	configv1 "retinue.dev/services/api/config/v1"
	statsv1 "retinue.dev/services/api/stats/v1"
	suitev1 "retinue.dev/services/api/suite/v1"
)

func encoded(t *testing.T, names ...string) *statsv1.Spans {
	t.Helper()
	scope := &tracepb.ScopeSpans{}
	for _, name := range names {
		scope.Spans = append(scope.Spans, &tracepb.Span{Name: name, TraceId: make([]byte, 16)})
	}
	b, err := proto.Marshal(scope)
	if err != nil {
		t.Fatal(err)
	}
	return &statsv1.Spans{Spans: b, Count: uint32(len(names))}
}

func send(t *testing.T, c *fdpass.Conn, m *statsv1.Spans) {
	t.Helper()
	b, err := proto.Marshal(m)
	if err == nil {
		err = c.Send(b, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestExport: what a peer brings reaches the collector whole, with the service around it.
func TestExport(t *testing.T) {
	got := make(chan *collectorpb.ExportTraceServiceRequest, 10)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		b, err := io.ReadAll(body)
		request := &collectorpb.ExportTraceServiceRequest{}
		if err = errors.Join(err, proto.Unmarshal(b, request)); err != nil {
			t.Error(err)
		}
		got <- request
	}))
	defer server.Close()
	e := New(slog.New(slog.DiscardHandler))
	defer e.Close()
	ctx, stop := context.WithCancel(context.Background())
	socket := filepath.Join(t.TempDir(), "spans.sock")
	gone, err := e.Serve(ctx, socket, peer.Same())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		stop()
		<-gone
	}()
	c, err := fdpass.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	send(t, c, &statsv1.Spans{Hello: hello.Mine("proxyd", "stats/v1")})
	if _, _, err := c.Recv(); err != nil {
		t.Fatal(err)
	}
	e.Set(&configv1.Tracing{Endpoint: server.URL, ServiceName: "edge", TimeoutMs: 10_000, QueueBytes: 1 << 20, Attributes: []*configv1.StatsLabel{{Name: "a", Value: "b"}}})
	send(t, c, encoded(t, "one", "two"))
	select {
	case request := <-got:
		resource := request.GetResourceSpans()[0]
		text := resource.GetResource().String()
		if !strings.Contains(text, "edge") || !strings.Contains(text, `"b"`) {
			t.Errorf("the resource is %s", text)
		}
		scope := resource.GetScopeSpans()[0]
		if scope.GetScope().GetName() != "retinue.dev/proxyd" || len(scope.GetSpans()) != 2 || scope.GetSpans()[1].GetName() != "two" {
			t.Errorf("the collector got %v", request)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nothing came")
	}
	if u := e.Usage(); u.Received != 2 || u.Unwanted != 0 {
		t.Errorf("%+v", u)
	}
}

// TestSentAway: who breaks the contract loses the connection, and nobody else anything.
func TestSentAway(t *testing.T) {
	for name, messages := range map[string][]*statsv1.Spans{
		"another protocol": {{Hello: &suitev1.Hello{}}},
		"a false number":   {{Hello: hello.Mine("proxyd", "stats/v1")}, {Spans: encoded(t, "one").GetSpans(), Count: 2}},
		"cut off":          {{Hello: hello.Mine("proxyd", "stats/v1")}, {Spans: []byte{0x12, 0x05, 0}, Count: 1}},
		"no spans":         {{Hello: hello.Mine("proxyd", "stats/v1")}, {Spans: []byte{0x0a, 0x00}, Count: 1}},
	} {
		t.Run(name, func(t *testing.T) {
			e := New(slog.New(slog.DiscardHandler))
			defer e.Close()
			ctx, stop := context.WithCancel(context.Background())
			socket := filepath.Join(t.TempDir(), "spans.sock")
			gone, err := e.Serve(ctx, socket, peer.Same())
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				stop()
				<-gone
			}()
			c, err := fdpass.Dial(socket)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			for _, m := range messages {
				send(t, c, m)
			}
			if err := c.SetDeadline(30 * time.Second); err != nil {
				t.Fatal(err)
			}
			for err == nil { // the answer to the hello, then the end
				_, _, err = c.Recv()
			}
			if !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		})
	}
}

// TestUnwanted: without a collector spans are counted and gone.
func TestUnwanted(t *testing.T) {
	e := New(slog.New(slog.DiscardHandler))
	defer e.Close()
	if err := e.Take(encoded(t, "one", "two")); err != nil {
		t.Error(err)
	}
	if u := e.Usage(); u.Unwanted != 2 || u.Queued != 0 {
		t.Errorf("%+v", u)
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte{0x12, 0x00, 0x12, 0x01, 0xff}, uint32(2))
	f.Fuzz(func(t *testing.T, b []byte, n uint32) {
		if check(&statsv1.Spans{Spans: b, Count: n}) != nil {
			return
		}
		scope := &tracepb.ScopeSpans{}
		// The insides of a span may be wrong; how many there are may not.
		if err := proto.Unmarshal(b, scope); err == nil && len(scope.GetSpans()) != int(n) {
			t.Errorf("%d spans pass as %d", len(scope.GetSpans()), n)
		}
	})
}
