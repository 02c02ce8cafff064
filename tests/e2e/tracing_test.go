package e2e

import (
	"compress/gzip"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"

	collectorpb "go.opentelemetry.io/proto/slim/otlp/collector/trace/v1"
	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
)

// collector is one of OpenTelemetry's protocol over HTTP. It refuses so many requests first, as one does that is busy.
type collector struct {
	*httptest.Server
	mu      sync.Mutex
	refuse  int
	service string
	spans   []*tracepb.Span
	broken  error
}

func newCollector(t *testing.T, refuse int) *collector {
	c := &collector{refuse: refuse}
	c.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.refuse > 0 {
			c.refuse--
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		if err := c.take(r); err != nil {
			c.broken = err
			w.WriteHeader(http.StatusBadRequest)
		}
	}))
	t.Cleanup(c.Close)
	return c
}

func (c *collector) take(r *http.Request) error {
	if r.URL.Path != "/v1/traces" || r.Header.Get("Authorization") != "Bearer x" {
		return fmt.Errorf("a request to %s with %v", r.URL, r.Header)
	}
	body, err := gzip.NewReader(r.Body)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	export := &collectorpb.ExportTraceServiceRequest{}
	if err := proto.Unmarshal(b, export); err != nil {
		return err
	}
	for _, resource := range export.GetResourceSpans() {
		for _, a := range resource.GetResource().GetAttributes() {
			if a.GetKey() == "service.name" {
				c.service = a.GetValue().GetStringValue()
			}
		}
		for _, scope := range resource.GetScopeSpans() {
			c.spans = append(c.spans, scope.GetSpans()...)
		}
	}
	return nil
}

// byPath is the spans by the path that is a tag of theirs.
func (c *collector) byPath() (map[string]*tracepb.Span, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[string]*tracepb.Span{}
	for _, s := range c.spans {
		url := tagOf(s, "http.url")
		out[url[strings.LastIndex(url, "/"):]] = s
	}
	return out, c.broken
}

func tagOf(s *tracepb.Span, name string) string {
	for _, a := range s.GetAttributes() {
		if a.GetKey() == name {
			return a.GetValue().GetStringValue()
		}
	}
	return ""
}

// TestTracing: the upstream gets the context, the access log the ids, and the collector the spans of what is sampled, though it
// refuses at first.
func TestTracing(t *testing.T) {
	c := newCollector(t, 1)
	st := newStage(t, fmt.Sprintf(`
tracing {
  endpoint     = %q
  service_name = "edge"
  headers      = { authorization = "Bearer x" }
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    tracing {
      random_sampling = "0%%"
      trusted         = ["127.0.0.1"]
      propagate       = ["w3c", "b3"]
      tags            = { tenant = "%%REQ(X-TENANT)%%" }
    }
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        cluster = cluster.app
        headers {
          response { set = { "x-trace" = "%%TRACE_ID%%-%%SPAN_ID%%" } }
        }
      }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
`, c.URL))
	const trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	ask := func(path, headers string) (saw, answer string) {
		t.Helper()
		seen := make(chan string, 1)
		st.scripts.set(path, func(u *upstreamConn) bool {
			seen <- u.raw.String()
			u.says("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
			return true
		})
		conn := dial(t, st.Address("web"))
		write(t, conn, fmt.Sprintf("GET %s HTTP/1.1\r\nHost: a\r\nX-Tenant: t1\r\nConnection: close\r\n%s\r\n", path, headers))
		if answer, _ = untilEnd(conn); !strings.HasPrefix(answer, "HTTP/1.1 200") {
			t.Fatalf("%q", answer)
		}
		return <-seen, answer
	}
	find := func(text, pattern string) string {
		t.Helper()
		m := regexp.MustCompile(pattern).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("no %s in %q", pattern, text)
		}
		return m[1]
	}

	saw, answer := ask("/joined", "traceparent: 00-"+trace+"-"+parent+"-01\r\ntracestate: a=1\r\n")
	span := find(saw, `(?i)traceparent: 00-`+trace+`-([0-9a-f]{16})-01\r\n`)
	find(saw, `(?i)(tracestate: a=1)\r\n`)
	find(saw, `(?i)(b3: `+trace+"-"+span+"-1-"+parent+`)\r\n`)
	find(answer, `(?i)(x-trace: `+trace+"-"+span+`)\r\n`)

	saw, _ = ask("/drawn", "") // nobody samples it
	find(saw, `(?i)traceparent: 00-[0-9a-f]{32}-([0-9a-f]{16})-00\r\n`)

	saw, _ = ask("/forced", "x-envoy-force-trace: 1\r\n")
	begun := find(saw, `(?i)traceparent: 00-([0-9a-f]{32})-[0-9a-f]{16}-01\r\n`)

	st.Eventually("the collector has the spans", func() error {
		spans, err := c.byPath()
		if err != nil {
			t.Fatal(err)
		}
		if len(spans) < 2 {
			return fmt.Errorf("%d spans", len(spans))
		}
		return nil
	})
	spans, _ := c.byPath()
	if len(spans) != 2 || c.service != "edge" {
		t.Errorf("spans %v of service %q", spans, c.service)
	}
	joined, forced := spans["/joined"], spans["/forced"]
	if hex.EncodeToString(joined.GetTraceId()) != trace || hex.EncodeToString(joined.GetParentSpanId()) != parent || hex.EncodeToString(joined.GetSpanId()) != span {
		t.Errorf("the span is %v", joined)
	}
	if hex.EncodeToString(forced.GetTraceId()) != begun || len(forced.GetParentSpanId()) != 0 {
		t.Errorf("the span is %v", forced)
	}
	for name, want := range map[string]string{"tenant": "t1", "http.status_code": "200", "upstream_cluster": "app", "http.method": "GET"} {
		if got := tagOf(joined, name); got != want {
			t.Errorf("%s is %q", name, got)
		}
	}
	if joined.GetName() != "GET /*" || joined.GetKind() != tracepb.Span_SPAN_KIND_SERVER || joined.GetEndTimeUnixNano() < joined.GetStartTimeUnixNano() {
		t.Errorf("the span is %v", joined)
	}
	for name, want := range map[string]float64{"context_sampled": 1, "not_traceable": 1, "service_forced": 1} {
		st.AwaitStat(want, "retinue_http_tracing_"+name, "listener=web")
	}

	// statsd is killed under way: no request minds, and what comes afterwards arrives again.
	st.Kill("statsd")
	ask("/meanwhile", "x-envoy-force-trace: 1\r\n")
	st.Eventually("the collector has the span of that time", func() error {
		if spans, err := c.byPath(); err != nil || spans["/meanwhile"] == nil {
			return errors.Join(err, errors.New("not yet"))
		}
		return nil
	})
}

// TestTracedTries: with spawn_upstream_span each try is a span below the request's, whose context its upstream gets; a route has
// sampling of its own.
func TestTracedTries(t *testing.T) {
	c := newCollector(t, 0)
	st := newStage(t, fmt.Sprintf(`
tracing {
  endpoint     = %q
  service_name = "edge"
  headers      = { authorization = "Bearer x" }
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    tracing { spawn_upstream_span = true }
    virtual_host "all" {
      domains = ["*"]
      route "/quiet" {
        cluster = cluster.app
        tracing { random_sampling = "0%%" }
      }
      route "/*" {
        cluster = cluster.app
        retry { on = ["5xx"] }
      }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
`, c.URL))
	seen := make(chan string, 4)
	told := func(reply func(n int) string) script {
		n := 0
		return func(u *upstreamConn) bool {
			seen <- u.request.Header.Get("Traceparent")
			n++
			u.says(reply(n))
			return true
		}
	}
	st.scripts.set("/again", told(func(n int) string {
		if n == 1 {
			return "HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"
		}
		return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	}))
	st.scripts.set("/quiet", told(func(int) string { return "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok" }))
	for _, path := range []string{"/quiet", "/again"} {
		conn := dial(t, st.Address("web"))
		write(t, conn, "GET "+path+" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		if answer, _ := untilEnd(conn); !strings.HasPrefix(answer, "HTTP/1.1 200") {
			t.Fatalf("%q", answer)
		}
	}
	if got := <-seen; !strings.HasSuffix(got, "-00") {
		t.Errorf("the quiet route's upstream gets %s", got)
	}
	st.Eventually("the collector has the spans", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.broken != nil {
			t.Fatal(c.broken)
		}
		if len(c.spans) < 3 {
			return fmt.Errorf("%d spans", len(c.spans))
		}
		return nil
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.spans) != 3 {
		t.Fatalf("spans %v", c.spans)
	}
	request := c.spans[0]
	for i, want := range []map[string]string{
		{"http.status_code": "503", "retry.count": "", "error": "true", "upstream_cluster": "app"},
		{"http.status_code": "200", "retry.count": "1", "error": "", "upstream_cluster": "app"},
	} {
		try := c.spans[1+i]
		context := "00-" + hex.EncodeToString(request.GetTraceId()) + "-" + hex.EncodeToString(try.GetSpanId()) + "-01"
		if got := <-seen; got != context {
			t.Errorf("the upstream of try %d gets %s, want %s", i, got, context)
		}
		if try.GetName() != "router app egress" || try.GetKind() != tracepb.Span_SPAN_KIND_CLIENT || hex.EncodeToString(try.GetParentSpanId()) != hex.EncodeToString(request.GetSpanId()) {
			t.Errorf("try %d: %v", i, try)
		}
		for name, value := range want {
			if got := tagOf(try, name); got != value {
				t.Errorf("try %d: %s is %q, want %q", i, name, got, value)
			}
		}
	}
}
