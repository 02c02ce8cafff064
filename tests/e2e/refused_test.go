package e2e

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

// TestRefusedMessages sends what must not be let through. Each gets its status, a flag and the reason in the access log, a
// counter, and the end of the connection; what follows it on the connection is no request any more.
func TestRefusedMessages(t *testing.T) {
	st := newStage(t, webConfig)
	address := st.Address("web")
	smuggled := "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
	st.scripts.set("/smuggled", func(*upstreamConn) bool {
		t.Error("a request that followed a refused message reached the upstream")
		return false
	})
	const protocol = "retinue_http_downstream_cx_protocol_error"
	tests := []struct {
		name, request string
		status        int
		details       string
	}{
		{"TLS to a plain listener", "\x16\x03\x01 hello\r\n\r\n", 400, "http1.invalid_method"},
		{"no target", "GET\r\nHost: a\r\n\r\n", 400, "http1.invalid_method"},
		{"space in the target", "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "http1.invalid_request_line"},
		{"control character in the target", "GET /a\x01b HTTP/1.1\r\nHost: a\r\n\r\n", 400, "http1.invalid_url"},
		{"fragment-like target without a slash", "GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400, "http1.invalid_url"},
		{"both lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "http1.content_length_and_chunked_not_allowed"},
		{"two lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400, "http1.duplicate_content_length"},
		{"list of lengths", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5\r\n\r\nhello", 400, "http1.invalid_content_length"},
		{"signed length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\nhello", 400, "http1.invalid_content_length"},
		{"huge length", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nhello", 400, "http1.invalid_content_length"},
		{"no host", "GET / HTTP/1.1\r\n\r\n", 400, "http1.missing_host"},
		{"two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "http1.duplicate_host"},
		{"host with a space", "GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400, "http1.invalid_host"},
		{"bare LF", "GET / HTTP/1.1\nHost: a\n\n", 400, "http1.invalid_line_end"},
		{"bare CR in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r2\r\n\r\n", 400, "http1.invalid_line_end"},
		{"NUL in a value", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\x002\r\n\r\n", 400, "http1.invalid_characters"},
		{"obs-fold", "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n", 400, "http1.obs_fold"},
		{"space before colon", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400, "http1.invalid_header_name"},
		{"empty name", "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", 400, "http1.invalid_header_name"},
		{"unknown coding", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501, "http1.unknown_transfer_coding"},
		{"coding twice", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "http1.invalid_transfer_encoding"},
		{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "http1.transfer_encoding_not_allowed"},
		{"version", "GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505, "http1.unsupported_version"},
		{"long line", "GET /" + strings.Repeat("a", 20<<10) + " HTTP/1.1\r\nHost: a\r\n\r\n", 414, "http1.request_line_too_large"},
		{"large headers", "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", 431, "http1.headers_too_large"},
		{"many headers", "GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X: 1\r\n", 101) + "\r\n", 431, "http1.too_many_headers"},
		{"nominates what is not the client's", "GET / HTTP/1.1\r\nHost: a\r\nConnection: X-Forwarded-For\r\n\r\n", 400, "http1.connection_header_rejected"},
		{"bad chunk size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "http1.invalid_chunk_size"},
		{"huge chunk size", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400, "http1.invalid_chunk_size"},
		{"chunk without its end", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n", 400, "http1.invalid_chunk"},
		{"large trailers", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: " + strings.Repeat("a", 70<<10) + "\r\n\r\n", 431, "http1.trailers_too_large"},
		{"path that servers read differently", "GET /a/%2e%2e/%00 HTTP/1.1\r\nHost: a\r\n\r\n", 400, "path_normalization_failed"},
	}
	t.Run("messages", func(t *testing.T) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				t.Parallel()
				c := dial(t, address)
				go func() { _, _ = io.WriteString(c, test.request+smuggled) }() // the proxy need not read all of it
				r := bufio.NewReader(c)
				response, err := http.ReadResponse(r, nil)
				if err != nil {
					t.Fatal(err)
				}
				_, _ = io.Copy(io.Discard, response.Body)
				if response.StatusCode != test.status || !response.Close {
					t.Errorf("status %d, close %v; want %d and the end of the connection", response.StatusCode, response.Close, test.status)
				}
				if b, err := r.ReadByte(); err != io.EOF && !errors.Is(err, syscall.ECONNRESET) {
					t.Errorf("after the answer: %q, %v; want the end", b, err)
				}
				if e := st.entry(t, c); e.Status != test.status || e.Flags != "DPE" || e.Details != test.details {
					t.Errorf("the access log says %+v, want %d DPE %s", e, test.status, test.details)
				}
			})
		}
	})
	st.AwaitStat(float64(len(tests)), protocol, "listener=web")
	if got := st.Stat(protocol, "listener=web"); got != float64(len(tests)) {
		t.Errorf("%s is %v after %d refused messages", protocol, got, len(tests))
	}
	if active := st.Stat("retinue_http_downstream_cx_active", "listener=web"); active != 0 {
		t.Errorf("%v connections are open", active)
	}
}
