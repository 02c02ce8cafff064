package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// rawCodec lets a server of gRPC see the bytes of messages.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (rawCodec) Unmarshal(b []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), b...)
	return nil
}

// wire finds the bytes of nested fields by their numbers, the last of each; nil where there is none.
func wire(b []byte, path ...protowire.Number) []byte {
	for _, want := range path {
		var found []byte
		for len(b) > 0 {
			n, kind, size := protowire.ConsumeTag(b)
			if size < 0 {
				return nil
			}
			b = b[size:]
			size = protowire.ConsumeFieldValue(n, kind, b)
			if size < 0 {
				return nil
			}
			if n == want && kind == protowire.BytesType {
				found, _ = protowire.ConsumeBytes(b)
			}
			b = b[size:]
		}
		b = found
	}
	return b
}

func bytesField(b []byte, n protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
}

// authoriser is a service of envoy.service.auth.v3: /deny is refused, the rest is permitted for a user.
func authoriser(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	option := func(name, value string) []byte {
		return bytesField(nil, 1, bytesField(bytesField(nil, 1, []byte(name)), 2, []byte(value)))
	}
	server := grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(func(_ any, s grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(s); method != "/envoy.service.auth.v3.Authorization/Check" {
			return errors.New(method)
		}
		var request []byte
		if err := s.RecvMsg(&request); err != nil {
			return err
		}
		const attributes, asked, http, method, path, body = 1, 4, 2, 2, 4, 11
		said := strings.Join([]string{
			string(wire(request, attributes, asked, http, method)), string(wire(request, attributes, asked, http, path)), string(wire(request, attributes, asked, http, body)),
			string(wire(request, attributes, 10, 1)), // context_extensions
		}, " ")
		const source, destination, principal = 1, 2, 4
		who := string(wire(request, attributes, source, principal)) + " at " + string(wire(request, attributes, destination, principal))
		if certificate := string(wire(request, attributes, source, 5)); certificate != "" {
			who += " with " + certificate
		}
		answer := bytesField(bytesField(nil, 1, nil), 3, bytesField(bytesField(nil, 2, option("x-said", said)), 6, bytesField(option("x-who", who), 2, numberField(nil, 1, 1))))
		if strings.Contains(said, "/edits") {
			acting := func(name, value string, action uint64) []byte {
				return protowire.AppendVarint(protowire.AppendTag(option(name, value), 3, protowire.VarintType), action)
			}
			ok := bytesField(bytesField(nil, 2, acting("x-there", "ours", 1)), 2, acting("x-not-there", "ours", 1))
			ok = bytesField(bytesField(ok, 6, acting("x-back", "ours", 2)), 6, acting("x-none", "ours", 3))
			ok = bytesField(bytesField(ok, 7, bytesField(bytesField(nil, 1, []byte("user")), 2, []byte("a&b"))), 8, []byte("token"))
			answer = bytesField(bytesField(nil, 1, nil), 3, ok)
		}
		if strings.Contains(said, "/deny") {
			status := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 7)
			code := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 418)
			denied := bytesField(bytesField(bytesField(nil, 1, code), 2, option("x-said", said)), 3, []byte("no tea"))
			answer = bytesField(bytesField(nil, 1, status), 2, denied)
		}
		return s.SendMsg(&answer)
	}))
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	return l.Addr().String()
}

// TestExtAuthz: both ways to ask, on routes of one listener; a service that is away refuses, or lets pass where it is told to.
func TestExtAuthz(t *testing.T) {
	byHTTP := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "letmein" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("X-Said", r.Method+" "+r.URL.Path)
	}))
	defer byHTTP.Close()
	st := newStage(t, strings.NewReplacer("HTTPAUTH", strings.TrimPrefix(byHTTP.URL, "http://"), "GRPCAUTH", authoriser(t)).Replace(`
filter "ext_authz" "http" {
  cluster                  = cluster.http_auth
  path_prefix              = "/check"
  allowed_upstream_headers = ["x-said"]
  timeout                  = "20s"
}
filter "ext_authz" "grpc" {
  cluster            = cluster.grpc_auth
  api                = "grpc"
  timeout            = "20s"
  context_extensions = { tenant = "a" }
  with_request_body {
    max_request_bytes     = 4
    allow_partial_message = true
  }
}
filter "ext_authz" "away" { cluster = cluster.nobody }
filter "ext_authz" "shadow" {
  cluster                  = cluster.http_auth
  path_prefix              = "/check"
  allowed_upstream_headers = ["x-said"]
  timeout                  = "20s"
  enforced                 = "0%"
}
filter "ext_authz" "shadow_away" {
  cluster  = cluster.nobody
  enforced = "0%"
}
filter "ext_authz" "off" {
  cluster = cluster.nobody
  enabled = "0%"
}
filter "ext_authz" "lenient" {
  cluster            = cluster.nobody
  failure_mode_allow = true
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    virtual_host "all" {
      domains = ["*"]
      route "/http/*" {
        cluster = cluster.app
        filters = [filter.ext_authz.http]
      }
      route "/grpc/*" {
        cluster = cluster.app
        filters = [filter.ext_authz.grpc]
      }
      route "/away" {
        cluster = cluster.app
        filters = [filter.ext_authz.away]
      }
      route "/lenient" {
        cluster = cluster.app
        filters = [filter.ext_authz.lenient]
      }
      route "/shadow/*" {
        cluster = cluster.app
        filters = [filter.ext_authz.shadow]
      }
      route "/shadow-away" {
        cluster = cluster.app
        filters = [filter.ext_authz.shadow_away]
      }
      route "/off" {
        cluster = cluster.app
        filters = [filter.ext_authz.off]
      }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
cluster "http_auth" { endpoints = ["HTTPAUTH"] }
cluster "grpc_auth" {
  endpoints = ["GRPCAUTH"]
  protocol  = "http2"
}
cluster "nobody" { endpoints = ["127.0.0.1:1"] }
`))
	for _, test := range []struct {
		method, path, headers, body string
		status                      string
		said                        string // what the service said, at the upstream or in the answer
	}{
		{"GET", "/http/x", "Authorization: letmein\r\n", "", "200", "GET /check/http/x"},
		{"GET", "/http/y", "", "", "401", ""},
		{"POST", "/grpc/x", "X-Said: forged\r\n", "hello", "200", "POST /grpc/x hell tenant"},
		{"GET", "/grpc/deny", "", "", "418", "GET /grpc/deny  tenant"},
		{"GET", "/away", "", "", "403", ""},
		{"GET", "/lenient", "", "", "200", ""},
		{"GET", "/shadow/x", "Authorization: letmein\r\n", "", "200", "GET /check/shadow/x"},
		{"POST", "/shadow/y", "", "hello", "200", ""},
		{"POST", "/shadow-away", "", "hello", "200", ""},
		{"POST", "/off", "", "hello", "200", ""},
	} {
		t.Run(test.method+test.path, func(t *testing.T) {
			reached := make(chan string, 1)
			st.scripts.set(test.path, func(c *upstreamConn) bool {
				body := c.whole()
				reached <- c.request.Header.Get("X-Said") + "|" + body
				c.says("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
				return true
			})
			request, err := http.NewRequestWithContext(context.Background(), test.method, "http://"+st.Address("web")+test.path, strings.NewReader(test.body))
			if err != nil {
				t.Fatal(err)
			}
			for _, h := range strings.Split(strings.TrimSuffix(test.headers, "\r\n"), "\r\n") {
				if name, value, ok := strings.Cut(h, ": "); ok {
					request.Header.Set(name, value)
				}
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			response.Body.Close()
			if !strings.HasPrefix(response.Status, test.status) {
				t.Fatalf("answered %s", response.Status)
			}
			if test.status == "200" {
				if got := <-reached; got != test.said+"|"+test.body {
					t.Errorf("the upstream got %q", got)
				}
			} else if got := response.Header.Get("X-Said"); got != test.said {
				t.Errorf("the service said %q", got)
			}
		})
	}
	http.DefaultClient.CloseIdleConnections()
	st.AwaitStat(1, "retinue_ext_authz_ok", "filter=http")
	st.AwaitStat(1, "retinue_ext_authz_denied", "filter=grpc")
	st.AwaitStat(1, "retinue_ext_authz_failure_mode_allowed", "filter=lenient")
	st.AwaitStat(1, "retinue_ext_authz_shadow_denied", "filter=shadow")
	st.AwaitStat(1, "retinue_ext_authz_shadow_denied", "filter=shadow_away")
	st.AwaitStat(0, "retinue_ext_authz_error", "filter=off")
}

// TestExtAuthzEdits: what a permission edits, and how, of the request, its query and the response; and decisions that are kept.
func TestExtAuthzEdits(t *testing.T) {
	var asked atomic.Int32
	byHTTP := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := asked.Add(1)
		if r.Header.Get("Authorization") != "letmein" {
			w.WriteHeader(http.StatusUnauthorized)
		}
		w.Header().Set("X-Said", fmt.Sprint(n))
	}))
	defer byHTTP.Close()
	st := newStage(t, strings.NewReplacer("HTTPAUTH", strings.TrimPrefix(byHTTP.URL, "http://"), "GRPCAUTH", authoriser(t)).Replace(`
filter "ext_authz" "grpc" {
  cluster = cluster.grpc_auth
  api     = "grpc"
  timeout = "20s"
}
filter "ext_authz" "kept" {
  cluster                  = cluster.http_auth
  allowed_upstream_headers = ["x-said"]
  timeout                  = "20s"
  cache {
    key = ["%REQ(AUTHORIZATION)%", "%REQ(:PATH)%"]
    ttl = "1h"
  }
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    virtual_host "all" {
      domains = ["*"]
      route "/grpc/*" {
        cluster = cluster.app
        filters = [filter.ext_authz.grpc]
      }
      route "/kept/*" {
        cluster = cluster.app
        filters = [filter.ext_authz.kept]
      }
    }
  }
}
cluster "app" { endpoints = ["APP"] }
cluster "http_auth" { endpoints = ["HTTPAUTH"] }
cluster "grpc_auth" {
  endpoints = ["GRPCAUTH"]
  protocol  = "http2"
}
`))
	got := make(chan string, 1)
	see := func(c *upstreamConn) bool {
		h := c.request.Header
		got <- strings.Join([]string{c.request.RequestURI, h.Get("X-There"), h.Get("X-Not-There"), h.Get("X-Said")}, "|")
		return answer("HTTP/1.1 200 OK\r\nX-Back: theirs\r\nContent-Length: 0\r\n\r\n")(c)
	}
	for _, path := range []string{"/grpc/edits", "/kept/a", "/kept/b"} {
		st.scripts.set(path, see)
	}
	response, _ := st.exchangeRaw(t, "GET /grpc/edits?x=1&%74oken=t&user=eve HTTP/1.1\nHost: a\nX-There: theirs")
	if saw := <-got; saw != "/grpc/edits?x=1&user=a%26b|theirs|ours|" {
		t.Errorf("the upstream saw %q", saw)
	}
	if back, none := strings.Join(values(response, "x-back"), "|"), values(response, "x-none"); back != "ours" || len(none) > 0 {
		t.Errorf("the client saw:\n%s", response)
	}
	client := &http.Transport{} // with one connection, which is one worker's, as the decisions are
	defer client.CloseIdleConnections()
	for _, row := range []struct {
		path, authorization string
		status              int
		said                string // by the answer of that number
	}{
		{"/kept/a", "letmein", 200, "1"},
		{"/kept/a", "letmein", 200, "1"},
		{"/kept/b", "letmein", 200, "2"},
		{"/kept/a", "no", 401, ""},
		{"/kept/a", "no", 401, ""},
		{"/kept/a", "letmein", 200, "1"},
	} {
		request, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+st.Address("web")+row.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", row.authorization)
		request.Header.Set("X-Said", "forged")
		response, err := client.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != row.status {
			t.Fatalf("%s of %s is answered %d", row.path, row.authorization, response.StatusCode)
		}
		if row.status == 200 {
			if saw := <-got; saw != row.path+"|||"+row.said {
				t.Errorf("the upstream saw %q", saw)
			}
		}
	}
	if n := asked.Load(); n != 3 {
		t.Errorf("asked %d times", n)
	}
	st.AwaitStat(3, "retinue_ext_authz_cached", "filter=kept")
}

// TestExtAuthzPrincipals: the service learns the names in both certificates, and the client's certificate where it is to.
func TestExtAuthzPrincipals(t *testing.T) {
	ca, clients := certs.New(t, "servers"), certs.New(t, "clients")
	own := clients.Issue("app.mesh", "spiffe://mesh/app")
	config := tlsConfig(ca.Issue("shop.test"), fmt.Sprintf("client_ca = %q\n    require_client_cert = false", clients.File), fmt.Sprintf("endpoints = [%q]", suite.Upstream(t, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
	})))
	config = strings.Replace(config, "  http {", "  http {\n    filters = [filter.ext_authz.plain, filter.ext_authz.whole]", 1) + fmt.Sprintf(`
filter "ext_authz" "plain" {
  cluster = cluster.authoriser
  api     = "grpc"
  timeout = "20s"
}
filter "ext_authz" "whole" {
  cluster                  = cluster.authoriser
  api                      = "grpc"
  timeout                  = "20s"
  include_peer_certificate = true
}
cluster "authoriser" {
  endpoints = [%q]
  protocol  = "http2"
}
`, authoriser(t))
	s := suite.Start(t, config)
	escaped := strings.ReplaceAll(url.QueryEscape(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.TLS.Certificate[0]}))), "+", "%20")
	for _, with := range []bool{true, false} {
		tlsOf, want := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test"}, "at shop.test|at shop.test"
		if with { // a response passes the filters in reverse
			tlsOf.Certificates, want = []tls.Certificate{own.TLS}, "spiffe://mesh/app at shop.test with "+escaped+"|spiffe://mesh/app at shop.test"
		}
		for _, http2 := range []bool{false, true} {
			request, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+s.Address("edge")+"/", nil)
			if err != nil {
				t.Fatal(err)
			}
			r, err := tlsClient(t, tlsOf, http2).Do(request)
			if err != nil {
				t.Fatal(err)
			}
			r.Body.Close()
			if got := strings.Join(r.Header.Values("X-Who"), "|"); r.StatusCode != 200 || got != want {
				t.Errorf("certificate %t: %d, %q and not %q", with, r.StatusCode, got, want)
			}
		}
	}
}
