package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
)

// every calls f with each field of bytes of that number.
func every(b []byte, want protowire.Number, f func(v []byte)) {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
			return
		}
		if n == want && kind == protowire.BytesType {
			v, _ := protowire.ConsumeBytes(b)
			f(v)
		}
		b = b[size:]
	}
}

func numberField(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

// asked is what a RateLimitRequest asks about: "domain: key=value,key=value; key=value", "domain +3: …" where it counts for three,
// with the limit and the count of a descriptor behind its entries.
func asked(request []byte) string {
	const domain, descriptors, hits, entries, limit, descriptorHits, key, value, requests, unit, wrapped = 1, 2, 3, 1, 2, 3, 1, 2, 1, 2, 1
	var list []string
	about := string(wire(request, domain))
	if n := integer(request, hits); n > 0 {
		about += fmt.Sprintf(" +%d", n)
	}
	every(request, descriptors, func(d []byte) {
		var words []string
		every(d, entries, func(e []byte) { words = append(words, string(wire(e, key))+"="+string(wire(e, value))) })
		every(d, limit, func(l []byte) {
			words = append(words, fmt.Sprintf("limit %d/%d", integer(l, requests), integer(l, unit)))
		})
		every(d, descriptorHits, func(h []byte) { words = append(words, fmt.Sprintf("+%d", integer(h, wrapped))) })
		list = append(list, strings.Join(words, ","))
	})
	return about + ": " + strings.Join(list, "; ")
}

// integer is a field that is one; 0 where there is none.
func integer(b []byte, want protowire.Number) (v uint64) {
	for len(b) > 0 {
		n, kind, size := protowire.ConsumeTag(b)
		if size < 0 {
			return 0
		}
		b = b[size:]
		if n == want && kind == protowire.VarintType {
			v, _ = protowire.ConsumeVarint(b)
		}
		if size = protowire.ConsumeFieldValue(n, kind, b); size < 0 {
			return 0
		}
		b = b[size:]
	}
	return v
}

// limits is a service of envoy.service.ratelimit.v3 that answers as the end of the path says which it is asked about. What it was
// asked is in x-asked of the response.
func limits(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	field := func(name, value string) []byte { return bytesField(bytesField(nil, 1, []byte(name)), 2, []byte(value)) }
	status := func(requests, unit uint64, name string, remaining, reset uint64) []byte {
		limit := numberField(numberField(nil, 1, requests), 2, unit)
		if name != "" {
			limit = bytesField(limit, 3, []byte(name))
		}
		return bytesField(numberField(bytesField(nil, 2, limit), 3, remaining), 4, numberField(nil, 1, reset))
	}
	server := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(s); method != "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit" {
			return errors.New(method)
		}
		var request []byte
		if err := s.RecvMsg(&request); err != nil {
			return err
		}
		about := asked(request)
		says := func(what string) bool { return strings.Contains(about, what) }
		answer := bytesField(nil, 3, field("x-asked", about))
		switch {
		case says("/never"):
			<-s.Context().Done()
			return s.Context().Err()
		case says("/failed"):
			return errors.New("no rules are loaded")
		case says("/malformed"):
			answer = []byte{0x0a, 0xff}
		case says("/unknown"): // overall_code stays 0
		case says("/over"):
			answer = numberField(answer, 1, 2)
			answer = bytesField(answer, 2, status(10, 2, "", 0, 5))
			answer = bytesField(answer, 3, field("retry-after", "5"))
			answer = bytesField(answer, 5, []byte("slow down"))
		default:
			answer = numberField(answer, 1, 1)
			answer = bytesField(answer, 2, status(100, 3, "hourly", 90, 3000))
			answer = bytesField(answer, 2, status(10, 2, "", 7, 42))
			answer = bytesField(answer, 4, field("x-added", "by the service"))
			answer = bytesField(answer, 4, field("content-length", "1000"))
		}
		return s.SendMsg(&answer)
	}))
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

const globalRateLimitConfig = `
filter "global_rate_limit" "api" {
  cluster = cluster.limits
  domain  = "shop"
  timeout = "20s"
  headers = true
  descriptor {
    action "generic_key" { descriptor_value = "api" }
    action "request_headers" {
      header_name    = ":path"
      descriptor_key = "path"
    }
  }
  descriptor {
    action "request_headers" {
      header_name    = "x-user"
      descriptor_key = "user"
    }
    action "query_parameters" {
      query_parameter_name = "p q"
      descriptor_key       = "query"
      skip_if_absent       = true
    }
  }
}
filter "global_rate_limit" "own" {
  cluster     = cluster.limits
  domain      = "own"
  timeout     = "20s"
  hits_addend = 3
  on_error    = "closed"
  rate_limited_as_resource_exhausted = true
  descriptor {
    action "request_headers" {
      header_name    = ":path"
      descriptor_key = "path"
    }
    action "remote_address" {}
    action "masked_remote_address" { v4_prefix_mask_len = 16 }
    action "destination_cluster" {}
  }
  descriptor {
    action "header_value_match" {
      descriptor_value = "no-canary"
      expect_match     = false
      match {
        headers = { "x-env" = "canary" }
      }
    }
  }
}
filter "global_rate_limit" "user" {
  cluster = cluster.limits
  domain  = "user"
  timeout = "20s"
  descriptor {
    action "request_headers" {
      header_name    = "x-user"
      descriptor_key = "user"
    }
  }
}
filter "global_rate_limit" "plans" {
  cluster     = cluster.limits
  domain      = "plans"
  timeout     = "20s"
  hits_addend = 2
  descriptor {
    action "generic_key" {
      descriptor_key   = "route"
      descriptor_value = "%ROUTE_NAME%"
    }
    action "generic_key" {
      descriptor_key   = "user"
      descriptor_value = "%REQ(X-USER)%"
      skip_if_absent   = true
    }
    hits_addend = "%REQ(X-COST)%"
    limit {
      requests_per_unit = "%REQ(X-PLAN)%"
      unit              = "minute"
    }
  }
  descriptor {
    action "generic_key" {
      descriptor_key   = "user"
      descriptor_value = "%REQ(X-USER)%"
    }
    limit {
      requests_per_unit = "1000"
      unit              = "day"
    }
  }
}
filter "global_rate_limit" "shadow" {
  cluster  = cluster.limits
  domain   = "shadow"
  timeout  = "20s"
  enforced = "0%"
  descriptor {
    action "request_headers" {
      header_name    = ":path"
      descriptor_key = "path"
    }
  }
}
filter "global_rate_limit" "hasty" {
  cluster = cluster.limits
  domain  = "hasty"
  timeout = "1ms"
  descriptor {
    action "generic_key" { descriptor_value = "/never" }
  }
}
filter "global_rate_limit" "hasty_closed" {
  cluster         = cluster.limits
  domain          = "hasty"
  timeout         = "1ms"
  on_error        = "closed"
  status_on_error = 503
  descriptor {
    action "generic_key" { descriptor_value = "/never" }
  }
}
filter "global_rate_limit" "away" {
  cluster = cluster.nobody
  domain  = "away"
  timeout = "20s"
  descriptor {
    action "remote_address" {}
  }
}
filter "global_rate_limit" "away_closed" {
  cluster  = cluster.nobody
  domain   = "away"
  timeout  = "20s"
  on_error = "closed"
  descriptor {
    action "remote_address" {}
  }
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    filters    = [filter.global_rate_limit.api]
    virtual_host "all" {
      domains = ["*"]
      route "/api/*" { cluster = cluster.app }
      route "/own/*" {
        cluster = cluster.app
        filters = [filter.global_rate_limit.own]
      }
      route "/split" {
        split   = [{ cluster = cluster.app, weight = 1 }, { cluster = cluster.other, weight = 1 }]
        filters = [filter.global_rate_limit.own]
      }
      route "/answered/*" {
        respond { body = "here" }
        filters = [filter.global_rate_limit.own]
      }
      route "/both/*" {
        cluster     = cluster.app
        add_filters = [filter.global_rate_limit.own]
      }
      route "/none/*" {
        cluster        = cluster.app
        remove_filters = [filter.global_rate_limit.api]
      }
      route "/user/*" {
        cluster = cluster.app
        filters = [filter.global_rate_limit.user]
      }
      route "/plans/*" {
        cluster = cluster.app
        filters = [filter.global_rate_limit.plans]
      }
      route "/shadow/*" {
        cluster = cluster.app
        filters = [filter.global_rate_limit.shadow]
      }
      route "/hasty/*" {
        cluster = cluster.app
        filters = [filter.global_rate_limit.hasty]
      }
      route "/hasty-closed/*" {
        cluster = cluster.app
        filters = [filter.global_rate_limit.hasty_closed]
      }
      route "/away/*" {
        cluster = cluster.app
        filters = [filter.global_rate_limit.away]
      }
      route "/away-closed/*" {
        cluster = cluster.app
        filters = [filter.global_rate_limit.away_closed]
      }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
cluster "other" { endpoints = ["APP"] }
cluster "limits" {
  endpoints = ["LIMITS"]
  protocol  = "http2"
}
cluster "nobody" {
  endpoints = ["127.0.0.1:1"]
  protocol  = "http2"
}
`

// over sends a request by HTTP/1.1 or HTTP/2 on a connection of its own.
func (st *stage) over(t *testing.T, http2 bool, method, path string, headers map[string]string, body string) (*http.Response, string, entry) {
	t.Helper()
	var connection net.Conn
	transport := &http.Transport{Protocols: &http.Protocols{}, DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, address)
		connection = c
		return c, err
	}}
	transport.Protocols.SetHTTP1(!http2)
	transport.Protocols.SetUnencryptedHTTP2(http2)
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(t.Context(), method, "http://"+st.Address("web")+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range headers {
		request.Header.Set(name, value)
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(got), st.entry(t, connection)
}

// TestGlobalRateLimit: what the service is asked, what becomes of the request, by what both sides see and the log says.
func TestGlobalRateLimit(t *testing.T) {
	st := newStage(t, strings.ReplaceAll(globalRateLimitConfig, "LIMITS", limits(t)))
	user := map[string]string{"x-user": "ann"}
	grpcType := map[string]string{"content-type": "application/grpc"}
	for _, test := range []struct {
		path    string
		headers map[string]string
		status  int
		flags   string // with the details
		body    string // "" is not looked at
		asked   string
		more    map[string]string // of the response
	}{
		{path: "/api/ok", status: 200, body: "by the service|hello", asked: "shop: generic_key=api,path=/api/ok", more: map[string]string{
			"x-ratelimit-limit": `10, 100;w=3600;name="hourly", 10;w=60`, "x-ratelimit-remaining": "7", "x-ratelimit-reset": "42", "x-envoy-ratelimited": "",
		}},
		{path: "/api/ok?p%20q=a%2Fb&x=1", headers: user, status: 200, asked: "shop: generic_key=api,path=/api/ok?p%20q=a%2Fb&x=1; user=ann,query=a/b"},
		{path: "/api/ok?other", headers: user, status: 200, asked: "shop: generic_key=api,path=/api/ok?other; user=ann"},
		{path: "/api/over", status: 429, flags: "RL request_rate_limited", body: "slow down", asked: "shop: generic_key=api,path=/api/over", more: map[string]string{
			"x-envoy-ratelimited": "true", "retry-after": "5", "content-type": "text/plain",
			"x-ratelimit-limit": "10, 10;w=60", "x-ratelimit-remaining": "0", "x-ratelimit-reset": "5",
		}},
		{path: "/api/failed", status: 200, body: "|hello"},
		{path: "/api/malformed", status: 200, body: "|hello"},
		{path: "/api/unknown", status: 200, body: "|hello"},
		{path: "/missing/over", status: 429, flags: "RL request_rate_limited", asked: "shop: generic_key=api,path=/missing/over"},

		{path: "/own/ok", status: 200, asked: "own +3: path=/own/ok,remote_address=127.0.0.1,masked_remote_address=127.0.0.0/16,destination_cluster=app; header_match=no-canary", more: map[string]string{"x-ratelimit-limit": ""}},
		{path: "/own/ok", headers: map[string]string{"x-env": "canary"}, status: 200, asked: "own +3: path=/own/ok,remote_address=127.0.0.1,masked_remote_address=127.0.0.0/16,destination_cluster=app"},
		{path: "/own/failed", status: 500, flags: "RLSE rate_limiter_error"},
		{path: "/own/malformed", status: 500, flags: "RLSE rate_limiter_error"},
		{path: "/own/unknown", status: 500, flags: "RLSE rate_limiter_error"},
		{path: "/answered/ok", status: 200, body: "here", asked: "own +3: header_match=no-canary"},

		{path: "/both/ok", status: 200, body: "by the service,by the service|hello", asked: "own +3: path=/both/ok,remote_address=127.0.0.1,masked_remote_address=127.0.0.0/16,destination_cluster=app; header_match=no-canary + shop: generic_key=api,path=/both/ok"},
		{path: "/none/over", status: 200, body: "|hello"},
		{path: "/user/over", status: 200, body: "|hello"},
		{path: "/user/x", headers: map[string]string{"x-user": "/over"}, status: 429, flags: "RL request_rate_limited", asked: "user: user=/over"},
		{path: "/plans/a", status: 200, asked: "plans +2: route=/plans/*"},
		{path: "/plans/b", headers: map[string]string{"x-user": "ann", "x-cost": "7", "x-plan": "300"}, status: 200, asked: "plans +2: route=/plans/*,user=ann,limit 300/2,+7; user=ann,limit 1000/4"},
		{path: "/plans/c", headers: map[string]string{"x-user": "ann", "x-cost": "much", "x-plan": "-3"}, status: 200, asked: "plans +2: route=/plans/*,user=ann; user=ann,limit 1000/4"},
		{path: "/plans/d", headers: map[string]string{"x-user": "/over", "x-cost": "0"}, status: 429, flags: "RL request_rate_limited", asked: "plans +2: route=/plans/*,user=/over,+0; user=/over,limit 1000/4"},
		{path: "/shadow/over", status: 200, asked: "shadow: path=/shadow/over", more: map[string]string{"x-envoy-ratelimited": ""}},

		{path: "/hasty/x", status: 200, body: "|hello"},
		{path: "/hasty-closed/x", status: 503, flags: "RLSE rate_limiter_error"},
		{path: "/away/x", status: 200, body: "|hello"},
		{path: "/away-closed/x", status: 500, flags: "RLSE rate_limiter_error"},

		{path: "/api/over", headers: grpcType, status: 200, flags: "RL request_rate_limited", asked: "shop: generic_key=api,path=/api/over", more: map[string]string{"grpc-status": "14", "grpc-message": "slow down"}},
		{path: "/own/over", headers: grpcType, status: 200, flags: "RL request_rate_limited", asked: "own +3: path=/own/over,remote_address=127.0.0.1,masked_remote_address=127.0.0.0/16,destination_cluster=app; header_match=no-canary", more: map[string]string{"grpc-status": "8", "grpc-message": "slow down"}},
		{path: "/own/failed", headers: grpcType, status: 200, flags: "RLSE rate_limiter_error", more: map[string]string{"grpc-status": "2"}},
	} {
		bare, _, _ := strings.Cut(test.path, "?")
		st.scripts.set(bare, func(c *upstreamConn) bool {
			body := c.whole()
			text := strings.Join(c.request.Header.Values("X-Added"), ",") + "|" + body
			c.says(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(text), text))
			return true
		})
		for _, http2 := range []bool{false, true} {
			name := "HTTP/1.1"
			if http2 {
				name = "HTTP/2"
			}
			if test.headers["content-type"] != "" {
				name += " gRPC"
			}
			t.Run(name+test.path, func(t *testing.T) {
				response, body, line := st.over(t, http2, "POST", test.path, test.headers, "hello")
				if response.StatusCode != test.status {
					t.Fatalf("answered %s", response.Status)
				}
				if test.body != "" && body != test.body {
					t.Errorf("body %q, want %q", body, test.body)
				}
				if got := strings.Join(response.Header.Values("X-Asked"), " + "); got != test.asked {
					t.Errorf("the service was asked %q, want %q", got, test.asked)
				}
				for name, want := range test.more {
					if got := response.Header.Get(name); got != want {
						t.Errorf("%s is %q, want %q", name, got, want)
					}
				}
				if test.flags == "" {
					test.flags = "- via_upstream"
					if test.path == "/answered/ok" {
						test.flags = "- direct_response"
					}
				}
				if got := line.Flags + " " + line.Details; strings.Trim(got, "- ") != strings.Trim(test.flags, "- ") {
					t.Errorf("logged %q, want %q", got, test.flags)
				}
			})
		}
	}
	st.awaitCounters(t, map[string]float64{
		"global_rate_limit_ok api": 8, "global_rate_limit_over_limit api": 6, "global_rate_limit_enforced api": 6,
		"global_rate_limit_error api": 6, "global_rate_limit_failure_mode_allowed api": 6,
		"global_rate_limit_over_limit shadow": 2, "global_rate_limit_enforced shadow": 0,
		"global_rate_limit_over_limit user": 2, "global_rate_limit_ok user": 0, "global_rate_limit_error user": 0,
		"global_rate_limit_error own": 8, "global_rate_limit_failure_mode_allowed own": 0,
		"global_rate_limit_error hasty": 2, "global_rate_limit_error hasty_closed": 2,
		"global_rate_limit_error away": 2, "global_rate_limit_timeout away": 0, "global_rate_limit_failure_mode_allowed away": 2,
	})
	seen := map[string]bool{} // what the service is told is where the request goes
	for range 40 {
		response, _, line := st.over(t, false, "GET", "/split", nil, "")
		if asked := response.Header.Get("X-Asked"); !strings.Contains(asked, "destination_cluster="+line.Cluster+";") {
			t.Fatalf("the service was asked %q, and the request went to %s", asked, line.Cluster)
		}
		seen[line.Cluster] = true
	}
	if len(seen) != 2 {
		t.Errorf("40 requests went to %v alone", seen)
	}
	if text, code := st.Retinue("explain", "GET", "http://shop/both/x", "--listener", "web"); code != 0 || !strings.Contains(text, "asks the cluster limits within 20s about (generic_key, path), (user, query) of shop; when it fails: open") || !strings.Contains(text, "global_rate_limit.own") {
		t.Errorf("explain says (%d):\n%s", code, text)
	}
}
