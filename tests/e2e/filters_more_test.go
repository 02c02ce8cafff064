package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestCodings: what one filter compresses another decompresses, in each coding; and what grows too much is a bomb in each.
func TestCodings(t *testing.T) {
	st := newFilterStage(t, `
filter "compress" "all" { codings = ["gzip", "br", "zstd"] }
filter "decompress" "uploads" {
  max_size  = "64MiB"
  max_ratio = 100
}
filter "decompress" "responses" {
  requests  = false
  responses = true
}
`, `
    virtual_host "all" {
      domains = ["*"]
      route "/packed/*" {
        cluster = cluster.app
        filters = [filter.compress.all]
      }
      route "/up" {
        cluster = cluster.app
        filters = [filter.decompress.uploads]
      }
      route "/back" {
        cluster = cluster.app
        filters = [filter.decompress.responses]
      }
    }`)
	var page strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&page, "%d is the line, ", i*i)
	}
	texts := map[string]string{"/packed/page": page.String(), "/packed/bomb": strings.Repeat("a", 8<<20)}
	for path, text := range texts {
		st.scripts.set(path, answer(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(text), text)))
	}
	st.scripts.set("/up", func(c *upstreamConn) bool {
		body := c.whole()
		return answer(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body))(c)
	})
	client := &http.Transport{DisableCompression: true}
	defer client.CloseIdleConnections()
	ask := func(method, path string, body []byte, name, value string) (*http.Response, []byte) {
		request, err := http.NewRequestWithContext(t.Context(), method, "http://"+st.Address("web")+path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set(name, value)
		response, err := client.RoundTrip(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		got, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatalf("%s %s of %s: %v", method, path, value, err)
		}
		return response, got
	}
	for _, coding := range []string{"gzip", "br", "zstd"} {
		for path, text := range texts {
			response, got := ask("GET", path, nil, "Accept-Encoding", coding)
			if response.Header.Get("Content-Encoding") != coding || len(got) == 0 || len(got) >= len(text)/2 {
				t.Fatalf("%s in %s: %d bytes, %v", path, coding, len(got), response.Header)
			}
			packed := got
			st.scripts.set("/back", answer(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: %d\r\n\r\n%s", coding, len(packed), packed)))
			response, got = ask("POST", "/up", packed, "Content-Encoding", coding)
			if path == "/packed/bomb" {
				if response.StatusCode != 413 {
					t.Errorf("a bomb of %d bytes in %s is answered %d", len(packed), coding, response.StatusCode)
				}
				continue
			}
			if response.StatusCode != 200 || string(got) != text {
				t.Errorf("an upload in %s: %d, %d bytes", coding, response.StatusCode, len(got))
			}
			response, got = ask("GET", "/back", nil, "Accept-Encoding", "identity")
			if response.StatusCode != 200 || response.Header.Get("Content-Encoding") != "" || string(got) != text {
				t.Errorf("a response in %s: %d, %d bytes", coding, response.StatusCode, len(got))
			}
			if response, got = ask("GET", "/back", nil, "Accept-Encoding", coding); response.Header.Get("Content-Encoding") != coding || !bytes.Equal(got, packed) {
				t.Errorf("a response in %s for who accepts it: %v, %d bytes", coding, response.Header, len(got))
			}
		}
	}
}

// TestRateLimitKeys: what has a bucket of its own.
func TestRateLimitKeys(t *testing.T) {
	var filters, routes strings.Builder
	for _, key := range []string{"connection", "route", "virtual_host", "source"} {
		fmt.Fprintf(&filters, "filter \"rate_limit\" %q {\n  limit = \"1/h\"\n  key   = [%q]\n}\n", key, key)
		for _, path := range []string{"a", "b"} {
			fmt.Fprintf(&routes, "route \"/%s/%s\" {\n  filters = [filter.rate_limit.%s]\n  respond { status = 204 }\n}\n", key, path, key)
		}
	}
	hosts := ""
	for _, host := range []string{"one", "two"} {
		hosts += fmt.Sprintf("virtual_host %q {\n  domains = [%q]\n%s}\n", host, host, routes.String())
	}
	st := newFilterStage(t, filters.String(), hosts)
	first, second := dial(t, st.Address("web")), dial(t, st.Address("web"))
	from := map[net.Conn]*bufio.Reader{first: bufio.NewReader(first), second: bufio.NewReader(second)}
	for _, row := range []struct {
		path, host string
		again      bool // on the other connection
		status     int
	}{
		{"/connection/a", "one", false, 204},
		{"/connection/b", "two", false, 429},
		{"/connection/a", "one", true, 204},
		{"/route/a", "one", false, 204},
		{"/route/a", "one", true, 429},
		{"/route/b", "one", false, 204},
		{"/route/a", "two", false, 204},
		{"/virtual_host/a", "one", false, 204},
		{"/virtual_host/b", "one", true, 429},
		{"/virtual_host/a", "two", false, 204},
		{"/source/a", "one", false, 204},
		{"/source/b", "two", true, 429},
	} {
		c := first
		if row.again {
			c = second
		}
		write(t, c, "GET "+row.path+" HTTP/1.1\r\nHost: "+row.host+"\r\n\r\n")
		response, err := http.ReadResponse(from[c], nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		if response.StatusCode != row.status {
			t.Errorf("%s of %s: %d", row.path, row.host, response.StatusCode)
		}
	}
}

// TestFaultsAtATime: beyond max_active requests are left alone.
func TestFaultsAtATime(t *testing.T) {
	st := newFilterStage(t, `
filter "fault" "one" {
  max_active = 1
  delay { time = "1h" }
}
`, `
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        filters = [filter.fault.one]
        respond { status = 204 }
      }
    }`)
	held := dial(t, st.Address("web"))
	write(t, held, "GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
	st.AwaitStat(1, "retinue_fault_active_faults", "filter=one")
	if response, logged := st.exchangeRaw(t, "GET / HTTP/1.1\nHost: a"); logged.Status != 204 || logged.Flags != "" {
		t.Errorf("logged %+v:\n%s", logged, response)
	}
	held.Close()
	st.awaitCounters(t, map[string]float64{"fault_active_faults one": 0, "fault_faults_overflow one": 1, "fault_delays_injected one": 1})
}
