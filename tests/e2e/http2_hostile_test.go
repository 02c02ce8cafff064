package e2e

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/net/http2"

	"retinue.dev/tests/certs"
	"retinue.dev/tests/suite"
)

// holdingUpstream answers at once, but for /hold, which it never answers and whose body it does not read.
func holdingUpstream(t *testing.T) string {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			<-r.Context().Done()
			return
		}
		io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, "ok")
	}))
	server.Config.Protocols = new(http.Protocols)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Config.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: 4096}
	server.Start()
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// TestHTTP2HostileClients does to a proxy with its default settings what costs a client nothing, over clear text and TLS, and holds what the
// client is told, what is counted, and that others on the same worker do not notice.
func TestHTTP2HostileClients(t *testing.T) {
	ca := certs.New(t, "servers")
	pair := ca.Issue("shop.test")
	const listener = `
listener %q {
  address = ["127.0.0.1:0"]
  %s
  http {
    %s
    virtual_host "all" {
      domains = ["*"]
      route "/none" {
        respond { status = 204 }
      }
      route "/*" {
        cluster = cluster.app
        timeout = "0s"
      }
    }
  }
}
`
	const secure = `tls { certificates = [certificate.shop] }`
	const hasty = `timeouts { request_headers = "100ms" }`
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
certificate "shop" {
  cert_file = %q
  key_file  = %q
}
cluster "app" {
  endpoints = [%q]
  protocol  = "http2"
}
stats { listen = "off" }
`, pair.CertFile, pair.KeyFile, holdingUpstream(t))+
		fmt.Sprintf(listener, "plain", "", "")+fmt.Sprintf(listener, "secure", secure, "")+fmt.Sprintf(listener, "hasty", "", hasty)+fmt.Sprintf(listener, "hastys", secure, hasty))

	begun := func(r *raw) { r.head(1, false, get("/hold")) }
	openHead := func(r *raw) {
		r.silent = true
		_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: []byte{0x82}})
	}
	times := func(n int, frame func(r *raw, i int)) func(r *raw) {
		return func(r *raw) {
			for i := range n {
				frame(r, i)
			}
		}
	}
	id := func(i int) uint32 { return uint32(2*i + 1) }
	const calm = http2.ErrCodeEnhanceYourCalm
	goAway := func(code http2.ErrCode, words string) string { return fmt.Sprintf("GOAWAY(%s,%s)", code, words) }
	reset := func(stream uint32, code http2.ErrCode) string { return fmt.Sprintf("RST(%d,%s)", stream, code) }
	rows := []struct {
		name    string
		play    []func(r *raw)
		want    string // "": it reads nothing
		counter string
	}{
		{"CONTINUATION by number", []func(*raw){openHead, times(513, func(r *raw, _ int) { _ = r.WriteContinuation(1, false, []byte{0x84}) })}, goAway(calm, "http2.continuation_flood"), "http2_inbound_continuation_flood"},
		{"CONTINUATION by bytes", []func(*raw){openHead, times(5, func(r *raw, _ int) { _ = r.WriteContinuation(1, false, make([]byte, 16_384)) })}, goAway(calm, "http2.continuation_flood"), "http2_inbound_continuation_flood"},
		{"empty CONTINUATION", []func(*raw){openHead, times(2, func(r *raw, _ int) { _ = r.WriteContinuation(1, false, nil) })}, goAway(calm, "http2.inbound_empty_frames_flood"), "http2_inbound_empty_frames_flood"},
		{"empty DATA", []func(*raw){begun, times(2, func(r *raw, _ int) { _ = r.WriteData(1, false, nil) })}, goAway(calm, "http2.inbound_empty_frames_flood"), "http2_inbound_empty_frames_flood"},
		{"padding without data", []func(*raw){begun, times(2, func(r *raw, _ int) { _ = r.WriteDataPadded(1, false, nil, make([]byte, 200)) })}, goAway(calm, "http2.inbound_empty_frames_flood"), "http2_inbound_empty_frames_flood"},
		{"rapid reset", []func(*raw){times(250, func(r *raw, i int) {
			r.head(id(i), true, get("/hold"))
			_ = r.WriteRSTStream(id(i), http2.ErrCodeCancel)
		})}, goAway(calm, "http2.too_many_premature_resets"), "http2_too_many_premature_resets"},
		{"resets that it has the proxy make", []func(*raw){times(250, func(r *raw, i int) {
			r.head(id(i), true, get("/hold"))
			_ = r.WriteWindowUpdate(id(i), 0)
		})}, goAway(calm, "http2.too_many_premature_resets"), "http2_too_many_premature_resets"},
		{"PRIORITY", []func(*raw){times(101, func(r *raw, _ int) { _ = r.WritePriority(9, http2.PriorityParam{StreamDep: 3}) })}, goAway(calm, "http2.inbound_priority_frames_flood"), "http2_inbound_priority_frames_flood"},
		{"WINDOW_UPDATE", []func(*raw){times(6, func(r *raw, _ int) { _ = r.WriteWindowUpdate(0, 1) })}, goAway(calm, "http2.inbound_window_update_frames_flood"), "http2_inbound_window_update_frames_flood"},
		{"the connection's window overflows", []func(*raw){func(r *raw) { _ = r.WriteWindowUpdate(0, 1<<31-1) }}, goAway(http2.ErrCodeFlowControl, "http2.window_overflow"), "http2_flow_control_error"},
		{"a stream's window overflows", []func(*raw){begun, func(r *raw) { _ = r.WriteWindowUpdate(1, 1<<31-1) }}, reset(1, http2.ErrCodeFlowControl), "http2_flow_control_error"},
		{"more than the stream's window", []func(*raw){begun, endless(func(int) []byte { return frame(http2.FrameData, 0, 1, make([]byte, 16_384)) })}, reset(1, http2.ErrCodeFlowControl), "http2_flow_control_error"},
		{"streams at a time", []func(*raw){times(1025, func(r *raw, i int) { r.head(id(i), false, get("/hold")) })}, reset(id(1024), http2.ErrCodeRefusedStream), "http2_stream_refused_errors"},
		{"header fields", []func(*raw){func(r *raw) {
			block := get("/")
			for i := range 101 {
				block = append(block, fields(fmt.Sprint("x-", i), "1")...)
			}
			r.head(1, true, block)
		}}, "HEADERS(1,431)", "http2_header_overflow"},
		{"header bytes", []func(*raw){func(r *raw) {
			block := get("/")
			for i := range 7 {
				block = append(block, fields(fmt.Sprint("x-", i), strings.Repeat("a", 10_000))...)
			}
			_ = r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:16_384], EndStream: true})
			for block = block[16_384:]; len(block) > 16_384; block = block[16_384:] {
				_ = r.WriteContinuation(1, false, block[:16_384])
			}
			_ = r.WriteContinuation(1, true, block)
		}}, "HEADERS(1,431)", "http2_header_overflow"},
		{"header bytes that are large after decompression", []func(*raw){func(r *raw) {
			bomb := fields("x", strings.Repeat("a", 4000))
			bomb[0] = 0x40 // to be indexed
			r.head(1, true, append(append(get("/"), bomb...), bytes.Repeat([]byte{0xbe}, 60)...))
		}}, "HEADERS(1,431)", "http2_header_overflow"},
		{"PING without reading", []func(*raw){endless(func(int) []byte { return frame(http2.FramePing, 0, 0, make([]byte, 8)) })}, "", "http2_outbound_control_flood"},
		{"SETTINGS without reading", []func(*raw){endless(func(int) []byte { return frame(http2.FrameSettings, 0, 0, nil) })}, "", "http2_outbound_control_flood"},
		{"answers without reading", []func(*raw){endless(func(i int) []byte {
			return frame(http2.FrameHeaders, http2.FlagHeadersEndHeaders|http2.FlagHeadersEndStream, id(i), get("/none"))
		})}, "", "http2_outbound_flood"},
		{"a header section that does not end", []func(*raw){openHead}, goAway(calm, ""), "downstream_rq_header_timeout"},
		{"a frame that does not end", []func(*raw){func(r *raw) {
			r.silent = true
			r.send(frame(http2.FramePing, 0, 0, make([]byte, 8))[:10])
		}}, goAway(calm, ""), "downstream_rq_header_timeout"},
	}
	listeners := []string{"plain", "secure", "hasty", "hastys"}
	trust := &tls.Config{RootCAs: ca.Pool(), ServerName: "shop.test"}
	addresses := map[string]string{}
	dial := func(t *testing.T, listener string) *raw {
		if strings.HasSuffix(listener, "e") || strings.HasSuffix(listener, "s") {
			return dialRaw(t, addresses[listener], trust)
		}
		return dialRaw(t, addresses[listener], nil)
	}
	var others []*raw
	for _, name := range listeners {
		addresses[name] = s.Address(name)
		others = append(others, dial(t, name))
	}
	counted := map[string]float64{}
	for n, x := range rows {
		t.Run(x.name, func(t *testing.T) {
			for _, listener := range listeners {
				if (x.counter == "downstream_rq_header_timeout") != strings.HasPrefix(listener, "hasty") {
					continue
				}
				r := dial(t, listener)
				for _, play := range x.play {
					play(r)
				}
				counter := "retinue_http_" + x.counter
				counted[counter+"[{listener "+listener+"}]"]++
				if x.want == "" {
					s.AwaitStat(counted[counter+"[{listener "+listener+"}]"], counter, "listener="+listener)
				} else {
					r.until(x.want, func(got told) bool { return got.String() == x.want })
				}
				if !r.silent && !strings.HasPrefix(x.want, "GOAWAY") { // that stream was at fault, and the connection goes on
					_ = r.WriteRSTStream(1, http2.ErrCodeCancel)
					r.head(4097, true, get("/"))
					if head, body := r.answer(4097); head.fields[":status"] != "200" || body != "ok" {
						t.Errorf("%s: afterwards on the connection: %s %q", listener, head, body)
					}
				}
				r.Close()
			}
			for i, other := range others {
				other.t = t
				other.head(id(n), true, get("/"))
				if head, body := other.answer(id(n)); head.fields[":status"] != "200" || body != "ok" {
					t.Errorf("%s: another connection: %s %q", listeners[i], head, body)
				}
			}
		})
	}
	s.Eventually("every attack is counted", func() error {
		now := s.Counters()
		for name, want := range counted {
			if now[name] != want {
				return fmt.Errorf("%s is %v and not %v", name, now[name], want)
			}
		}
		return nil
	})
}

// frame is a frame's bytes.
func frame(kind http2.FrameType, flags http2.Flags, stream uint32, payload []byte) []byte {
	n := len(payload)
	b := append(make([]byte, 0, 9+n), byte(n>>16), byte(n>>8), byte(n), byte(kind), byte(flags))
	return append(binary.BigEndian.AppendUint32(b, stream), payload...)
}

// endless goes on writing frames while the test goes on, until the connection is closed. Tens of MiB may wait in the kernel for a proxy that
// has had enough.
func endless(frame func(i int) []byte) func(r *raw) {
	return func(r *raw) {
		r.silent = true
		go func() {
			for i := 0; ; {
				var batch []byte
				for ; len(batch) < 64<<10; i++ {
					batch = append(batch, frame(i)...)
				}
				if _, err := r.Conn.Write(batch); err != nil {
					return
				}
			}
		}()
	}
}
