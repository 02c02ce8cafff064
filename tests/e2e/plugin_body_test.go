package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestPluginBodies sends bodies of all sizes, with and without a length, through each body mode both ways.
func TestPluginBodies(t *testing.T) {
	app := application(t) // echoes the body
	for _, mode := range []string{"buffer", "stream"} {
		t.Run(mode, func(t *testing.T) {
			p := probe(t, fmt.Sprintf("request_body = %q\n response_body = %q\n response = true", mode, mode), app)
			for _, size := range []int{0, 1, 100, 64 << 10, 200 << 10, 900 << 10} {
				for _, chunked := range []bool{false, true} {
					t.Run(fmt.Sprintf("%d chunked=%v", size, chunked), func(t *testing.T) {
						body := strings.Repeat("retinue!", size/8+1)[:size]
						want := strings.ToUpper(body) + "[end]" // by the request's answer
						want = strings.ToUpper(want) + "[end]"  // by the response's
						if size == 0 && !chunked {
							want = "" // there is no body to ask about, either way
						}
						status, got, h := p.post(t, body, chunked)
						if size == 0 && chunked && got == "" {
							want = "" // a client may send no body at all
						}
						if status != 200 || got != want || h.Get("x-seen-status") != "200" {
							t.Errorf("%d, %d bytes (…%q), status seen %q; want %d (…%q)", status, len(got), tail(got), h.Get("x-seen-status"), len(want), tail(want))
						}
					})
				}
			}
			if mode == "buffer" {
				if status, _, _ := p.post(t, strings.Repeat("x", 2<<20), true); status != 413 {
					t.Errorf("a body that cannot be buffered: status %d, want 413", status)
				}
			} else if status, got, _ := p.post(t, strings.Repeat("x", 8<<20), true); status != 200 || got != strings.Repeat("X", 8<<20)+"[END][end]" {
				t.Errorf("8 MiB streamed: status %d, %d bytes", status, len(got))
			}
		})
	}
}

// TestPluginBodyPrefix looks at the first bytes only.
func TestPluginBodyPrefix(t *testing.T) {
	p := probe(t, "request_body = \"prefix\"\n response_body = \"prefix\"\n response = true", application(t))
	for _, chunked := range []bool{false, true} {
		body := strings.Repeat("good!", 60_000)
		if status, got, _ := p.post(t, body, chunked); status != 200 || got != body {
			t.Errorf("chunked=%v: status %d, %d bytes of %d came back", chunked, status, len(got), len(body))
		}
		if status, got, _ := p.post(t, "evil"+body, chunked); status != 403 || got != "no\n" {
			t.Errorf("chunked=%v: a forbidden prefix: %d, %q", chunked, status, got)
		}
		if status, got, _ := p.post(t, "e", chunked); status != 200 || got != "e" {
			t.Errorf("chunked=%v: a body shorter than the prefix: %d, %q", chunked, status, got)
		}
	}
}

// TestPluginObserves has the plugin's answers ignored, and nothing waits for it: not even when its process is stopped.
func TestPluginObserves(t *testing.T) {
	p := probe(t, "observe = true", mirror(t))
	pid := pluginPID(p.Suite, "probe")
	ask := func() {
		t.Helper()
		for range 20 {
			if status, body, _ := p.ask("/x", "set x-added yes"); status != 200 || strings.Contains(body, "x-added: ") {
				t.Fatalf("%d, %q; want the request as it was", status, body)
			}
		}
	}
	ask()
	p.Freeze(pid)
	ask()
	if n := p.Stat("retinue_plugin_rq_total", "plugin=probe", "result=timeout"); n != 0 {
		t.Errorf("%v requests waited for an observer until it timed out", n)
	}
}

// TestPluginWhenAndCache keeps requests from leaving the proxy: by a condition, and by an answer that is known.
func TestPluginWhenAndCache(t *testing.T) {
	p := probe(t, "when = \"/asked\"\n cache_key = [\"x-do\"]", mirror(t))
	if status, body, _ := p.ask("/other", "respond"); status != 200 {
		t.Errorf("a request that does not meet the condition: %d %q", status, body)
	}
	if status, _, _ := p.ask("/asked", "respond"); status != 418 {
		t.Errorf("one that does: %d, want 418", status)
	}
	answers := map[string]bool{} // each worker has a cache of its own
	for range 100 {
		_, answer, _ := p.ask("/asked", "cache")
		answers[answer] = true
	}
	if len(answers) > 2 {
		t.Errorf("the plugin was asked again and again: %v", answers)
	}
	_, a, _ := p.ask("/asked", "calls")
	_, b, _ := p.ask("/asked", "calls")
	if a == b {
		t.Errorf("an answer without a time to live was repeated: %q", a)
	}
}

func tail(s string) string { return s[max(0, len(s)-20):] }

// post sends a body and returns what came back.
func (p *probed) post(t *testing.T, body string, chunked bool) (int, string, http.Header) {
	t.Helper()
	var reader io.Reader = strings.NewReader(body)
	if chunked {
		reader = io.MultiReader(reader)
	}
	r, err := http.NewRequest("POST", p.base+"/echo", reader)
	if err != nil {
		t.Fatal(err)
	}
	response, err := p.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, string(got), response.Header
}

// TestPluginIsCounted reads what calls did off the metrics, and the time that they took off the access log.
func TestPluginIsCounted(t *testing.T) {
	p := probe(t, "", mirror(t))
	for range 5 {
		p.ask("/x", "set x-added yes")
	}
	p.ask("/x", "respond")
	p.ask("/x", "status")
	p.ask("/open/x", "status")
	for series, want := range map[string]string{
		`rq_total{plugin="probe",result="modified"}`: "5", `rq_total{plugin="probe",result="responded"}`: "1",
		`rq_total{plugin="probe",result="invalid_reply"}`: "2", `failed_open{plugin="probe"}`: "1", `failed_closed{plugin="probe"}`: "1",
		`rq_active{plugin="probe"}`: "0", `rq_queue_time{plugin="probe"}`: "8",
	} {
		p.Eventually(series, func() error {
			out, _ := p.Retinue("stats", "--match", "plugin")
			line := "retinue_plugin_" + series + " " + want
			if !strings.Contains(out, line+"\n") && !strings.Contains(out, line+"  p50 ") {
				return fmt.Errorf("want %s in\n%s", want, out)
			}
			return nil
		})
	}
}

// TestPluginOverHTTP2 has clients speak HTTP/2: filters do not see the difference.
func TestPluginOverHTTP2(t *testing.T) {
	for _, mode := range []string{"buffer", "stream"} {
		t.Run(mode, func(t *testing.T) {
			p := probe(t, fmt.Sprintf("request_body = %q\n response_body = %q\n response = true", mode, mode), application(t))
			transport := &http.Transport{Protocols: &http.Protocols{}}
			transport.Protocols.SetUnencryptedHTTP2(true)
			t.Cleanup(transport.CloseIdleConnections)
			p.client = &http.Client{Transport: transport, Timeout: p.client.Timeout}
			for _, size := range []int{1, 64 << 10, 700 << 10} {
				body := strings.Repeat("retinue!", size/8+1)[:size]
				want := strings.ToUpper(strings.ToUpper(body)+"[end]") + "[end]"
				for _, chunked := range []bool{false, true} {
					if status, got, h := p.post(t, body, chunked); status != 200 || got != want || h.Get("x-seen-status") != "200" {
						t.Errorf("%d bytes: %d, %d bytes (…%q); want %d (…%q)", size, status, len(got), tail(got), len(want), tail(want))
					}
				}
			}
			if status, body, h := p.ask("/x", "respond"); status != 418 || h.Get("x-from") != "plugin" {
				t.Errorf("%d %q", status, body)
			}
			if status, _, _ := p.ask("/x", "set content-length 3"); status != 503 {
				t.Errorf("a forbidden answer: %d", status)
			}
		})
	}
}
