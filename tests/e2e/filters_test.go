package e2e

import (
	"compress/gzip"
	"fmt"
	"io"
	"net/http/httputil"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// filterHost is a virtual host of the filter tests: its routes are named by the test that uses them.
const filterHost = `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    %s
  }
}
cluster "app" { endpoints = ["APP"] }
`

// newFilterStage runs filters with the inside of an http block.
func newFilterStage(t *testing.T, filters, http string) *stage {
	t.Helper()
	return newStage(t, filters+fmt.Sprintf(filterHost, http))
}

// exchangeRaw sends one request on a connection of its own and gives the whole response, without Date, and the log's line.
func (st *stage) exchangeRaw(t *testing.T, request string) (string, entry) {
	t.Helper()
	c := dial(t, st.Address("web"))
	head, body, _ := strings.Cut(request, "\n\n")
	write(t, c, strings.ReplaceAll(head, "\n", "\r\n")+"\r\nConnection: close\r\n\r\n"+body)
	text, _ := untilEnd(c)
	return text, st.entry(t, c)
}

// Filters of the http block, a virtual host and routes, in order, with what is added and removed; and those of requests without
// a route.
func TestFilterLists(t *testing.T) {
	mark := func(name string) string {
		return fmt.Sprintf("filter \"header\" %q {\n  request {\n    add = { \"x-seen\" = %[1]q }\n  }\n  response {\n    add = { \"x-back\" = %[1]q }\n  }\n}\n", name)
	}
	st := newFilterStage(t, mark("a")+mark("b")+mark("c"), `
    filters = [filter.header.a, filter.header.b]
    virtual_host "all" {
      domains = ["a.example"]
      route "/inherits" { cluster = cluster.app }
      route "/none" {
        cluster = cluster.app
        filters = []
      }
      route "/own" {
        cluster = cluster.app
        filters = [filter.header.c, filter.header.a]
      }
      route "/changed" {
        cluster        = cluster.app
        remove_filters = [filter.header.a]
        add_filters    = [filter.header.c]
      }
      route "/answered" {
        respond { body = "here" }
      }
    }
    virtual_host "other" {
      domains     = ["b.example"]
      add_filters = [filter.header.c]
      route "/x" { cluster = cluster.app }
    }`)
	seen := make(chan string, 1)
	for _, path := range []string{"/inherits", "/none", "/own", "/changed", "/x"} {
		st.scripts.set(path, func(c *upstreamConn) bool {
			c.whole()
			seen <- strings.Join(c.request.Header["X-Seen"], "")
			c.says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			return true
		})
	}
	for _, row := range []struct {
		host, path string
		status     int
		up, down   string // "-": no upstream
	}{
		{"a.example", "/inherits", 200, "ab", "ba"},
		{"a.example", "/none", 200, "", ""},
		{"a.example", "/own", 200, "ca", "ac"},
		{"a.example", "/changed", 200, "bc", "cb"},
		{"a.example", "/answered", 200, "-", "ba"},
		{"a.example", "/missing", 404, "-", "ba"},
		{"b.example", "/x", 200, "abc", "cba"},
		{"b.example", "/missing", 404, "-", "cba"},
		{"c.example", "/missing", 404, "-", "ba"},
	} {
		response, logged := st.exchangeRaw(t, fmt.Sprintf("GET %s HTTP/1.1\nHost: %s", row.path, row.host))
		if logged.Status != row.status {
			t.Errorf("%s%s: status %d, want %d", row.host, row.path, logged.Status, row.status)
		}
		saw := "-" // it is said before the answer, which has come
		select {
		case saw = <-seen:
		default:
		}
		if saw != row.up {
			t.Errorf("%s%s: the upstream saw filters %q, want %q", row.host, row.path, saw, row.up)
		}
		if got := strings.Join(values(response, "X-Back"), ""); got != row.down {
			t.Errorf("%s%s: the client saw filters %q, want %q:\n%s", row.host, row.path, got, row.down, response)
		}
	}
}

// values are those of a header in a response as text.
func values(response, name string) (list []string) {
	head, _, _ := strings.Cut(response, "\r\n\r\n")
	for line := range strings.SplitSeq(head, "\r\n") {
		if n, v, ok := strings.Cut(line, ": "); ok && strings.EqualFold(n, name) {
			list = append(list, v)
		}
	}
	return list
}

// What the policy filters do to requests, as clients, the log and the counters see it.
func TestPolicyFilters(t *testing.T) {
	st := newFilterStage(t, `
filter "ip" "elsewhere" { allow = ["10.0.0.0/8"] }
filter "ip" "try" {
  deny   = ["127.0.0.0/8"]
  shadow = true
}
filter "rbac" "admin" {
  action = "deny"
  policy "writers" {
    permission {
      methods = ["POST"]
      paths   = ["/rbac*"]
    }
    principal {
      header "x-role" {
        exact            = "admin"
        invert           = true
        missing_as_empty = true
      }
    }
  }
  shadow {
    policy "nobody" {
      principal { source_cidrs = ["10.0.0.0/8"] }
    }
  }
}
filter "rate_limit" "two" {
  limit   = "2/h"
  key     = ["header:x-user"]
  headers = true
}
filter "rate_limit" "counted" {
  limit    = "1/h"
  enforced = "0%"
}
filter "cors" "shop" {
  allow_origins     = ["https://*.example.com"]
  allow_methods     = ["GET", "PUT"]
  allow_headers     = ["x-token"]
  max_age           = "10m"
  allow_credentials = true
}
filter "cors" "answers" {
  allow_origins                   = ["https://a.example.com"]
  forward_not_matching_preflights = false
}
filter "rate_limit" "grpc" {
  limit                              = "1/h"
  rate_limited_as_resource_exhausted = true
}
filter "cors" "any" {
  allow_origins  = ["*"]
  expose_headers = ["x-total"]
}
filter "fault" "abort" {
  abort { status = 418 }
  match {
    headers = { "x-drill" = "1" }
  }
}
filter "fault" "slow" {
  delay { time = "30ms" }
}
filter "fault" "asked" { headers = true }
filter "fault" "grpc" {
  abort { grpc_status = 8 }
}
filter "fault" "drip" {
  response_rate_limit { kbps = 64 }
}
`, `
    virtual_host "all" {
      domains = ["*"]
      route "/ip" {
        respond { body = "in" }
        filters = [filter.ip.elsewhere]
      }
      route "/ip-try" {
        respond { body = "in" }
        filters = [filter.ip.try]
      }
      route "/rbac" {
        cluster = cluster.app
        filters = [filter.rbac.admin]
      }
      route "/limit" {
        cluster = cluster.app
        filters = [filter.rate_limit.two, filter.rate_limit.counted]
      }
      route "/cors" {
        cluster = cluster.app
        filters = [filter.cors.shop]
      }
      route "/cors-answers" {
        cluster = cluster.app
        filters = [filter.cors.answers]
      }
      route "/limit-grpc" {
        cluster = cluster.app
        filters = [filter.rate_limit.grpc]
      }
      route "/cors-any" {
        cluster = cluster.app
        filters = [filter.cors.any]
      }
      route "/fault" {
        cluster = cluster.app
        filters = [filter.fault.abort]
      }
      route "/slow" {
        cluster = cluster.app
        filters = [filter.fault.slow]
      }
      route "/asked" {
        cluster = cluster.app
        filters = [filter.fault.asked]
      }
      route "/grpc" {
        cluster = cluster.app
        filters = [filter.fault.grpc]
      }
      route "/drip" {
        cluster = cluster.app
        filters = [filter.fault.drip]
      }
    }`)
	st.scripts.set("/cors", answer("HTTP/1.1 200 OK\r\nVary: accept\r\nAccess-Control-Allow-Origin: null\r\nContent-Length: 0\r\n\r\n"))
	const preflight = "OPTIONS /cors HTTP/1.1\nHost: a\nAccess-Control-Request-Method: PUT\nOrigin: "
	for _, row := range []struct {
		name, request  string
		status         int
		flags, details string
		headers        map[string]string // with their values joined by "|"; "" for one that is not there
	}{
		{"ip refuses", "GET /ip HTTP/1.1\nHost: a", 403, "", "ip_denied", nil},
		{"ip in shadow", "GET /ip-try HTTP/1.1\nHost: a", 200, "", "direct_response", nil},
		{"rbac allows", "GET /rbac HTTP/1.1\nHost: a", 200, "", "via_upstream", nil},
		{"rbac refuses", "POST /rbac HTTP/1.1\nHost: a\nContent-Length: 0", 403, "", "rbac_access_denied_matched_policy[writers]", nil},
		{"rbac by header", "POST /rbac HTTP/1.1\nHost: a\nX-Role: admin\nContent-Length: 0", 200, "", "via_upstream", nil},
		{"first of two", "GET /limit HTTP/1.1\nHost: a\nX-User: joe", 200, "", "via_upstream", map[string]string{"x-ratelimit-limit": "2", "x-ratelimit-remaining": "1", "x-ratelimit-reset": "1800"}},
		{"second of two", "GET /limit HTTP/1.1\nHost: a\nX-User: joe", 200, "", "via_upstream", map[string]string{"x-ratelimit-remaining": "0"}},
		{"one too many", "GET /limit HTTP/1.1\nHost: a\nX-User: joe", 429, "RL", "local_rate_limited", map[string]string{"x-envoy-ratelimited": "true", "retry-after": "1800", "x-ratelimit-remaining": "0"}},
		{"somebody else", "GET /limit HTTP/1.1\nHost: a\nX-User: ann", 200, "", "via_upstream", map[string]string{"x-ratelimit-remaining": "1", "x-envoy-ratelimited": ""}},
		{"nobody", "GET /limit HTTP/1.1\nHost: a", 200, "", "via_upstream", map[string]string{"x-ratelimit-limit": ""}},
		{"a limit on gRPC", "POST /limit HTTP/1.1\nHost: a\nX-User: joe\nContent-Type: application/grpc\nContent-Length: 0", 200, "RL", "local_rate_limited", map[string]string{"grpc-status": "14"}},
		{"preflight", preflight + "https://a.example.com", 200, "", "cors_response", map[string]string{
			"access-control-allow-origin": "https://a.example.com", "access-control-allow-methods": "GET,PUT", "access-control-allow-headers": "x-token",
			"access-control-max-age": "600", "access-control-allow-credentials": "true", "vary": "Origin",
		}},
		{"preflight of others", preflight + "https://example.org", 200, "", "via_upstream", map[string]string{"access-control-allow-methods": ""}},
		{"preflight of others, answered", strings.Replace(preflight, "/cors", "/cors-answers", 1) + "https://example.org", 200, "", "cors_response", map[string]string{
			"access-control-allow-methods": "", "access-control-allow-origin": "", "vary": "Origin", "content-length": "0",
		}},
		{"another request of others", "GET /cors-answers HTTP/1.1\nHost: a\nOrigin: https://example.org", 200, "", "via_upstream", nil},
		{"the first of gRPC", "POST /limit-grpc HTTP/1.1\nHost: a\nContent-Length: 0\nContent-Type: application/grpc", 200, "", "via_upstream", nil},
		{"the second of gRPC", "POST /limit-grpc HTTP/1.1\nHost: a\nContent-Length: 0\nContent-Type: application/grpc", 200, "RL", "local_rate_limited", map[string]string{"grpc-status": "8", "x-envoy-ratelimited": "true"}},
		{"another of no gRPC", "GET /limit-grpc HTTP/1.1\nHost: a", 429, "RL", "local_rate_limited", map[string]string{"grpc-status": ""}},
		{"no preflight", "OPTIONS /cors HTTP/1.1\nHost: a\nOrigin: https://a.example.com", 200, "", "via_upstream", map[string]string{"access-control-allow-methods": ""}},
		{"cross origin", "GET /cors HTTP/1.1\nHost: a\nOrigin: https://a.example.com", 200, "", "via_upstream", map[string]string{
			"access-control-allow-origin": "https://a.example.com", "vary": "accept|Origin",
		}},
		{"same origin", "GET /cors HTTP/1.1\nHost: a", 200, "", "via_upstream", map[string]string{"access-control-allow-credentials": "", "vary": "accept|Origin"}},
		{"any origin", "GET /cors-any HTTP/1.1\nHost: a\nOrigin: null", 200, "", "via_upstream", map[string]string{
			"access-control-allow-origin": "*", "access-control-expose-headers": "x-total", "vary": "",
		}},
		{"no fault", "GET /fault HTTP/1.1\nHost: a", 200, "", "via_upstream", nil},
		{"abort", "GET /fault HTTP/1.1\nHost: a\nX-Drill: 1", 418, "FI", "fault_filter_abort", nil},
		{"delay", "POST /slow HTTP/1.1\nHost: a\nContent-Length: 5\n\nhello", 200, "DI", "via_upstream", nil},
		{"asked for", "GET /asked HTTP/1.1\nHost: a\nx-envoy-fault-delay-request: 5\nx-envoy-fault-abort-request: 503", 503, "DI,FI", "fault_filter_abort", nil},
		{"asked for by no share", "GET /asked HTTP/1.1\nHost: a\nx-envoy-fault-delay-request: 3600000\nx-envoy-fault-delay-request-percentage: 0\nx-envoy-fault-abort-request: 503\nx-envoy-fault-abort-request-percentage: 0", 200, "", "via_upstream", nil},
		{"asked for by more than all", "GET /asked HTTP/1.1\nHost: a\nx-envoy-fault-abort-request: 503\nx-envoy-fault-abort-request-percentage: 101", 503, "FI", "fault_filter_abort", nil},
		{"asked for by gRPC", "POST /asked HTTP/1.1\nHost: a\nContent-Length: 0\nContent-Type: application/grpc\nx-envoy-fault-abort-grpc-request: 16", 200, "FI", "fault_filter_abort", map[string]string{"grpc-status": "16", "grpc-message": "fault filter abort"}},
		{"an abort of gRPC", "POST /grpc HTTP/1.1\nHost: a\nContent-Length: 0\nContent-Type: application/grpc", 200, "FI", "fault_filter_abort", map[string]string{"grpc-status": "8"}},
		{"an abort of gRPC for others", "GET /grpc HTTP/1.1\nHost: a", 429, "FI", "fault_filter_abort", map[string]string{"grpc-status": ""}},
		{"not asked for", "GET /asked HTTP/1.1\nHost: a\nx-envoy-fault-abort-request: 99", 200, "", "via_upstream", nil},
	} {
		response, logged := st.exchangeRaw(t, row.request)
		if logged.Status != row.status || logged.Flags != row.flags || logged.Details != row.details {
			t.Errorf("%s: logged %d %s %s, want %d %s %s", row.name, logged.Status, logged.Flags, logged.Details, row.status, row.flags, row.details)
		}
		for name, want := range row.headers {
			if got := strings.Join(values(response, name), "|"); got != want {
				t.Errorf("%s: %s is %q, want %q:\n%s", row.name, name, got, want, response)
			}
		}
	}
	drip := strings.Repeat("a", 32<<10)
	st.scripts.set("/drip", answer(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(drip), drip)))
	begun := time.Now()
	response, _ := st.exchangeRaw(t, "GET /drip HTTP/1.1\nHost: a")
	if took := time.Since(begun); took < 400*time.Millisecond || !strings.HasSuffix(response, drip) { // 64 KiB a second, but for the first 50 ms and as much for the clock
		t.Errorf("%d bytes after %v", len(response), took)
	}
	st.awaitCounters(t, map[string]float64{
		"ip_denied elsewhere": 1, "ip_shadow_denied try": 1,
		"rbac_denied admin": 1, "rbac_allowed admin": 2, "rbac_shadow_denied admin": 3,
		"rate_limit_enabled two": 5, "rate_limit_enforced two": 2, "rate_limit_rate_limited counted": 3, "rate_limit_enforced counted": 0,
		"cors_origin_valid shop": 3, "cors_origin_invalid shop": 1,
		"fault_aborts_injected abort": 1, "fault_aborts_injected grpc": 2, "fault_delays_injected slow": 1, "fault_response_rl_injected drip": 1, "fault_active_faults drip": 0,
	})
}

// awaitCounters waits until counters of filters, "rbac_denied NAME", have their values.
func (st *stage) awaitCounters(t *testing.T, want map[string]float64) {
	t.Helper()
	st.In(t).Eventually("counters of filters", func() error {
		got := map[string]float64{}
		for series, value := range st.Counters() {
			name, labels, _ := strings.Cut(series, "[")
			if _, filter, ok := strings.Cut(labels, "{filter "); ok {
				filter, _, _ = strings.Cut(filter, "}")
				got[strings.TrimPrefix(name, "retinue_")+" "+filter] += value
			}
		}
		for name, value := range want {
			if got[name] != value {
				return fmt.Errorf("%s is %v, want %v", name, got[name], value)
			}
		}
		return nil
	})
}

// Bodies, passwords and health checks.
func TestBodyFilters(t *testing.T) {
	users := filepath.Join(t.TempDir(), "users")
	write := func(line string) {
		if err := os.WriteFile(users, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("joe:{SHA}qUqP5cyxm6YcTAhz05Hph5gvu9M=\n") // test
	st := newFilterStage(t, fmt.Sprintf(`
filter "basic_auth" "staff" {
  users_file  = %q
  realm       = "staff"
  user_header = "x-user"
}
filter "body_limit" "small" {
  request  = 10
  response = 100
}
filter "buffer" "forms" { max_request = 10 }
filter "compress" "text" { codings = ["zstd", "gzip"] }
filter "health_check" "lb" {
  path     = "/healthz"
  clusters = [{ cluster = cluster.app }]
}
filter "health_check" "other" {
  path         = "/up"
  pass_through = true
}
`, users), `
    filters = [filter.health_check.lb]
    virtual_host "all" {
      domains = ["a"]
      route "/auth" {
        cluster = cluster.app
        filters = [filter.basic_auth.staff]
      }
      route "/limit" {
        cluster = cluster.app
        filters = [filter.body_limit.small]
      }
      route "/buffer" {
        cluster = cluster.app
        filters = [filter.buffer.forms]
      }
      route "/text" {
        cluster = cluster.app
        filters = [filter.compress.text]
      }
      route "/up" {
        cluster     = cluster.app
        add_filters = [filter.health_check.other]
      }
    }`)
	var told sync.Map // what the upstream saw, by path
	see := func(next script) script {
		return func(c *upstreamConn) bool {
			body := c.whole()
			told.Store(c.request.URL.Path, fmt.Sprintf("%s|%s|%s", body, c.request.Header.Get("X-User"), c.request.Header.Get("Authorization")))
			return next(c)
		}
	}
	const ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	long := strings.Repeat("compress me ", 100)
	st.scripts.set("/auth", see(answer(ok)))
	st.scripts.set("/buffer", see(answer(ok)))
	st.scripts.set("/limit", func(c *upstreamConn) bool {
		size := len(c.whole())
		switch c.request.Header.Get("X-Answer") {
		case "long":
			c.says(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(long), long))
		case "chunked":
			c.says(fmt.Sprintf("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(long), long))
		default:
			c.says(fmt.Sprintf("HTTP/1.1 200 OK\r\nX-Got: %d\r\nContent-Length: 2\r\n\r\nok", size))
		}
		return true
	})
	st.scripts.set("/text", answer(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%s", len(long), long)))
	const chunks = "Transfer-Encoding: chunked\n\n8\r\n12345678\r\n8\r\n12345678\r\n0\r\n\r\n"
	for _, row := range []struct {
		name, request string
		status        int
		details       string
		headers       map[string]string
		up            string // what the upstream saw
	}{
		{"no password", "GET /auth HTTP/1.1\nHost: a\nX-User: root", 401, "no_credential_for_basic_auth", map[string]string{"www-authenticate": `Basic realm="staff", charset="UTF-8"`}, ""},
		{"another scheme", "GET /auth HTTP/1.1\nHost: a\nAuthorization: Bearer x", 401, "invalid_scheme_for_basic_auth", nil, ""},
		{"no colon", "GET /auth HTTP/1.1\nHost: a\nAuthorization: Basic am9l", 401, "invalid_format_for_basic_auth", nil, ""},
		{"no base64", "GET /auth HTTP/1.1\nHost: a\nAuthorization: Basic !", 401, "invalid_format_for_basic_auth", nil, ""},
		{"a wrong password", "GET /auth HTTP/1.1\nHost: a\nAuthorization: Basic am9lOnRlc3Q1", 401, "invalid_credential_for_basic_auth", nil, ""},
		{"the password", "GET /auth HTTP/1.1\nHost: a\nX-User: root\nAuthorization: basic am9lOnRlc3Q=", 200, "via_upstream", nil, "|joe|"},
		{"a long upload", "POST /limit HTTP/1.1\nHost: a\nContent-Length: 11\n\n", 413, "request_payload_too_large", nil, ""},
		{"a short upload", "POST /limit HTTP/1.1\nHost: a\nContent-Length: 10\n\n0123456789", 200, "via_upstream", map[string]string{"x-got": "10"}, ""},
		{"a long upload in chunks", "POST /limit HTTP/1.1\nHost: a\n" + chunks, 413, "request_payload_too_large", nil, ""},
		{"a long response", "GET /limit HTTP/1.1\nHost: a\nX-Answer: long", 502, "response_payload_too_large", nil, ""},
		{"a long response in chunks", "GET /limit HTTP/1.1\nHost: a\nX-Answer: chunked", 200, "response_payload_too_large", nil, ""},
		{"buffered", "POST /buffer HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n3\r\nabc\r\n3\r\ndef\r\n0\r\n\r\n", 200, "via_upstream", nil, "abcdef||"},
		{"too much to buffer", "POST /buffer HTTP/1.1\nHost: a\n" + chunks, 413, "request_payload_too_large", nil, ""},
		{"compressed", "GET /text HTTP/1.1\nHost: a\nAccept-Encoding: gzip, br", 200, "via_upstream", map[string]string{"content-encoding": "gzip", "content-length": "", "vary": "Accept-Encoding"}, ""},
		{"not compressed", "GET /text HTTP/1.1\nHost: a", 200, "via_upstream", map[string]string{"content-encoding": "", "content-length": "1200", "vary": "Accept-Encoding"}, ""},
		{"HEAD", "HEAD /text HTTP/1.1\nHost: a\nAccept-Encoding: gzip", 200, "via_upstream", map[string]string{"content-encoding": "", "vary": "Accept-Encoding"}, ""},
		{"a health check", "GET /healthz HTTP/1.1\nHost: a", 200, "health_check_ok", nil, ""},
		{"a health check of no host", "GET /healthz?x HTTP/1.1\nHost: b", 200, "health_check_ok", nil, ""},
		{"no health check", "GET /healthz/x HTTP/1.1\nHost: a", 404, "route_not_found", nil, ""},
		{"one that passes through", "GET /up HTTP/1.1\nHost: a", 200, "via_upstream", nil, ""},
	} {
		told.Clear()
		response, logged := st.exchangeRaw(t, row.request)
		if logged.Status != row.status || logged.Details != row.details {
			t.Errorf("%s: logged %d %s, want %d %s:\n%.300s", row.name, logged.Status, logged.Details, row.status, row.details, response)
		}
		for name, want := range row.headers {
			if got := strings.Join(values(response, name), "|"); got != want {
				t.Errorf("%s: %s is %q, want %q:\n%.300s", row.name, name, got, want, response)
			}
		}
		if row.up != "" {
			path := strings.Fields(row.request)[1]
			if got, _ := told.Load(path); got != row.up {
				t.Errorf("%s: the upstream saw %v, want %q", row.name, got, row.up)
			}
		}
		if row.name == "compressed" {
			_, body, _ := strings.Cut(response, "\r\n\r\n")
			z, err := gzip.NewReader(httputil.NewChunkedReader(strings.NewReader(body)))
			if err != nil {
				t.Fatal(err)
			}
			if plain, err := io.ReadAll(z); err != nil || string(plain) != long {
				t.Errorf("what was compressed is %d bytes (%v), want %d", len(plain), err, len(long))
			}
		}
	}
	st.awaitCounters(t, map[string]float64{
		"basic_auth_allowed staff": 1, "basic_auth_denied staff": 5, "health_check_ok lb": 2, "health_check_ok other": 1,
		"compress_compressed text": 1, "compress_not_compressed text": 1, "compress_header_not_valid text": 1, "compress_total_uncompressed_bytes text": 1200,
	})
	write("joe:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n") // secret
	st.In(t).Eventually("the new password holds", func() error {
		response, _ := st.exchangeRaw(t, "GET /auth HTTP/1.1\nHost: a\nAuthorization: Basic am9lOnNlY3JldA==")
		if !strings.HasPrefix(response, "HTTP/1.1 200") {
			return fmt.Errorf("it is answered %.20s", response)
		}
		return nil
	})
}

// An upstream that cannot decompress gets what a client compressed.
func TestDecompressFilter(t *testing.T) {
	st := newFilterStage(t, `filter "decompress" "uploads" { max_size = "10KiB" }
`, `
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        cluster = cluster.app
        filters = [filter.decompress.uploads]
      }
    }`)
	st.scripts.set("/", func(c *upstreamConn) bool {
		body := c.whole()
		c.says(fmt.Sprintf("HTTP/1.1 200 OK\r\nX-Coding: %s\r\nContent-Length: %d\r\n\r\n%s", c.request.Header.Get("Content-Encoding"), len(body), body))
		return true
	})
	pack := func(text string) string {
		var b strings.Builder
		z := gzip.NewWriter(&b)
		_, _ = io.WriteString(z, text)
		_ = z.Close()
		return b.String()
	}
	for _, row := range []struct {
		name, body string
		status     int
		details    string
	}{
		{"hello", pack("hello"), 200, "via_upstream"},
		{"too large", pack(strings.Repeat("large", 3000)), 413, "request_payload_too_large"},
		{"malformed", "hello", 400, "decompression_failed"},
	} {
		response, logged := st.exchangeRaw(t, fmt.Sprintf("POST / HTTP/1.1\nHost: a\nContent-Encoding: gzip\nContent-Length: %d\n\n%s", len(row.body), row.body))
		if logged.Status != row.status || logged.Details != row.details {
			t.Errorf("%s: logged %d %s", row.name, logged.Status, logged.Details)
		}
		if row.status == 200 && (!strings.HasSuffix(response, "\r\n\r\nhello") || !strings.Contains(response, "X-Coding: \r\n")) {
			t.Errorf("%s: %q", row.name, response)
		}
	}
	st.awaitCounters(t, map[string]float64{"decompress_decompressed uploads": 1, "decompress_errors uploads": 2, "decompress_total_uncompressed_bytes uploads": 15005})
}
