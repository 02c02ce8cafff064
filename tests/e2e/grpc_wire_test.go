package e2e

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"retinue.dev/tests/suite"
)

// TestGRPCOnTheWire looks at the frames of gRPC: answers of the proxy's own are trailers-only with a status of gRPC, those of a server go
// through as they are, deadlines end what takes too long, and every status is counted by its method.
func TestGRPCOnTheWire(t *testing.T) {
	reset := make(chan told, 16)
	app := rawServer(t, nil, func(r *raw) {
		for {
			x, err := r.hear()
			if err != nil {
				return
			}
			switch path := x.fields[":path"]; {
			case x.kind == http2.FrameRSTStream:
				reset <- x
			case x.kind != http2.FrameHeaders || x.fields["x-hold"] != "":
			case path == "/app.S/Refuse": // trailers-only
				r.head(x.stream, true, fields(":status", "200", "content-type", "application/grpc", "grpc-status", "5", "grpc-message", "not here"))
			case path == "/app.S/Call":
				r.head(x.stream, false, fields(":status", "200", "content-type", "application/grpc"))
				_ = r.WriteData(x.stream, false, []byte("\x00\x00\x00\x00\x00"))
				r.head(x.stream, true, fields("grpc-status", "0"))
			case path == "/app.S/Watch": // goes on for ever
				r.head(x.stream, false, fields(":status", "200", "content-type", "application/grpc"))
			}
		}
	})
	var responds strings.Builder
	statuses := map[int]string{400: "13", 401: "16", 403: "7", 404: "12", 429: "14", 500: "2", 502: "14", 503: "14", 504: "14"}
	for status := range statuses {
		fmt.Fprintf(&responds, `
      route "/own.S/M%d" {
        respond {
          status = %[1]d
          body   = "no: 100%% ü"
        }
      }`, status)
	}
	const listener = `
listener %q {
  address = ["127.0.0.1:0"]
  http {
    %s
    virtual_host "all" {
      domains = ["*"]%s
      route "/app.S/*" { cluster = cluster.app }
    }
  }
}
`
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
cluster "app" {
  endpoints = [%q]
  protocol  = "http2"
}
stats { listen = "off" }
`, app)+fmt.Sprintf(listener, "web", "", responds.String())+fmt.Sprintf(listener, "short", `timeouts { max_stream_duration = "200ms" }`, ""))
	call := func(path string, more ...string) []byte {
		return fields(append([]string{
			":method", "POST", ":scheme", "http", ":authority", "a", ":path", path, "content-type", "application/grpc+proto", "te", "trailers",
		}, more...)...)
	}
	c := dialRaw(t, s.Address("web"), nil)
	id := uint32(1)
	// own is an answer of the proxy's own: all in one head.
	own := func(c *raw, id uint32, what, status, message string) {
		t.Helper()
		x := c.until(what, func(x told) bool { return x.stream == id })
		if x.kind != http2.FrameHeaders || !x.end || x.fields[":status"] != "200" || x.fields["content-type"] != "application/grpc" ||
			x.fields["grpc-status"] != status || !strings.Contains(x.fields["grpc-message"], message) {
			t.Errorf("%s: %s, end %t, %v", what, x, x.end, x.fields)
		}
	}
	for status, want := range statuses {
		c.head(id, true, call(fmt.Sprintf("/own.S/M%d", status)))
		own(c, id, fmt.Sprint("an answer with status ", status), want, "no: 100%25 %C3%BC")
		id += 2
	}
	c.head(id, true, call("/nobody.S/M"))
	own(c, id, "no route", "12", "")
	id += 2

	c.head(id, true, call("/app.S/Refuse"))
	if x := c.until("trailers-only of the server", func(x told) bool { return x.stream == id }); !x.end || x.fields["grpc-status"] != "5" || x.fields["grpc-message"] != "not here" {
		t.Errorf("trailers-only: end %t, %v", x.end, x.fields)
	}
	id += 2
	c.head(id, true, call("/app.S/Call"))
	var kinds []string
	for end := false; !end; {
		x := c.until("a call", func(x told) bool { return x.stream == id })
		end = x.end
		kinds = append(kinds, fmt.Sprintf("%s%s", x.kind, x.fields["grpc-status"]))
	}
	if got := strings.Join(kinds, " "); got != "HEADERS DATA HEADERS0" {
		t.Errorf("a call is %s", got)
	}
	id += 2

	c.head(id, false, call("/app.S/Call", "x-hold", "1", "grpc-timeout", "50m"))
	own(c, id, "grpc-timeout", "4", "timeout")
	if x := <-reset; x.code != http2.ErrCodeCancel {
		t.Errorf("the server is told %s", x)
	}
	id += 2

	short := dialRaw(t, s.Address("short"), nil)
	short.head(1, false, call("/app.S/Call", "x-hold", "1"))
	own(short, 1, "max_stream_duration before a head", "4", "")
	<-reset
	short.head(3, false, call("/app.S/Watch"))
	if head := short.until("the head", func(x told) bool { return x.stream == 3 }); head.end || head.fields[":status"] != "200" {
		t.Errorf("the head is %v", head.fields)
	}
	if x := short.until("max_stream_duration behind a head", func(x told) bool { return x.stream == 3 }); x.kind != http2.FrameRSTStream {
		t.Errorf("it ends by %s", x)
	}
	<-reset
	s.AwaitStat(2, "retinue_http_downstream_rq_max_duration_reached", "listener=short")
	for _, x := range []struct{ method, status string }{{"Refuse", "5"}, {"Call", "0"}, {"Call", "4"}} {
		s.AwaitStat(1, "retinue_grpc_downstream_rq", "listener=web", "grpc_service=app.S", "grpc_method="+x.method, "grpc_status="+x.status)
	}
}
