package e2e

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	tracepb "go.opentelemetry.io/proto/slim/otlp/trace/v1"
	"golang.org/x/sys/unix"

	"retinue.dev/tests/suite"
)

// TestPluginChangesItsMind has the answer about a head say how much of this stream's bodies the plugin wants.
func TestPluginChangesItsMind(t *testing.T) {
	p := probe(t, "request_body = \"stream\"\n response_body = \"stream\"\n response = true", application(t)) // echoes
	body := strings.Repeat("retinue!", 40<<10)
	for do, want := range map[string]string{
		"":                   strings.ToUpper(body) + "[END][end]",
		"mode none stream":   strings.ToUpper(body) + "[end]",
		"mode stream none":   strings.ToUpper(body) + "[end]",
		"mode none none":     body,
		"mode buffer buffer": strings.ToUpper(body) + "[END][end]",
	} {
		r, err := http.NewRequest("POST", p.base+"/echo", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("x-do", do)
		response, err := p.client.Do(r)
		if err != nil {
			t.Fatalf("%q: %v", do, err)
		}
		got, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || response.StatusCode != 200 || string(got) != want {
			t.Errorf("%q: status %d, %v, %d bytes (…%q), want %d (…%q)", do, response.StatusCode, err, len(got), tail(string(got)), len(want), tail(want))
		}
	}
}

// TestPluginSwapUnderAStream: a stream ends on the generation that it began with, whatever is swapped meanwhile, and that lives so long.
func TestPluginSwapUnderAStream(t *testing.T) {
	p := probe(t, "request_body = \"stream\"", application(t))
	before := pluginPID(p.Suite, "probe")
	r, w := io.Pipe()
	done := make(chan error, 1)
	var sent atomic.Int64
	go func() {
		response, err := p.client.Post(p.base+"/echo", "text/plain", r)
		if err == nil {
			var got []byte
			got, err = io.ReadAll(response.Body)
			response.Body.Close()
			if want := strings.Repeat("A", int(sent.Load())) + "[END][end]"; err == nil && string(got) != want {
				err = fmt.Errorf("status %d, %d bytes (…%q), want %d", response.StatusCode, len(got), tail(string(got)), len(want))
			}
		}
		done <- err
	}()
	send := func() {
		t.Helper()
		n, err := io.WriteString(w, strings.Repeat("a", 10_000))
		if err != nil {
			t.Fatal(err)
		}
		sent.Add(int64(n))
	}
	send()
	program := suite.Binary(t, "plugins/probe")
	for i := range 3 {
		if out, code := p.Retinue("plugin", "swap", "probe", "--to", []string{copyOf(t, program), program}[i%2]); code != 0 {
			t.Fatalf("swap %d: exit %d: %s", i, code, out)
		}
		send()
	}
	if now := pluginPID(p.Suite, "probe"); now == before {
		t.Error("the first process serves new streams still")
	}
	if err := syscall.Kill(before, 0); err != nil {
		t.Errorf("the process that the stream is on: %v", err)
	}
	if status, _, _ := p.ask("/x", "respond"); status != 418 {
		t.Errorf("a new stream: status %d", status)
	}
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
	p.Eventually("the process is gone with its last stream", func() error {
		if err := syscall.Kill(before, 0); err == nil {
			return fmt.Errorf("pid %d lives", before)
		}
		return nil
	})
}

// TestPluginSwapRefused: a program that does not take the running settings, and any for a block with a hash.
func TestPluginSwapRefused(t *testing.T) {
	p := probe(t, "", mirror(t))
	program := suite.Binary(t, "plugins/probe")
	if out, code := p.Retinue("plugin", "swap", "probe", "--to", suite.Binary(t, "plugins/header-stamp")); code != 1 || !strings.Contains(out, "header") {
		t.Errorf("a program with other settings: exit %d, want 1 with what it wants: %s", code, out)
	}
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	p.Write(strings.Replace(p.config, `timeout = "15s"`, fmt.Sprintf("timeout = \"15s\"\n  sha256 = \"%x\"", sha256.Sum256(raw)), 1))
	if out, code := p.Retinue("reload"); code != 0 {
		t.Fatalf("with the program's hash: exit %d: %s", code, out)
	}
	if out, code := p.Retinue("plugin", "swap", "probe", "--to", copyOf(t, program)); code != 1 || !strings.Contains(out, "pinned by sha256") {
		t.Errorf("a block with a hash: exit %d, want 1: %s", code, out)
	}
	if status, _, _ := p.ask("/x", "respond"); status != 418 {
		t.Errorf("status %d", status)
	}
}

// TestPluginEnvironment: a plugin knows nothing of what the suite was started with, but what its block says.
func TestPluginEnvironment(t *testing.T) {
	t.Setenv("PROBE_SECRET", "hunter2")
	p := probe(t, "", mirror(t))
	p.Write(strings.Replace(p.config, `timeout = "15s"`, "timeout = \"15s\"\n  environment = [\"PROBE_SAID=yes\"]", 1))
	if out, code := p.Retinue("reload"); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	_, got, _ := p.ask("/x", "environment")
	if strings.Contains(got, "hunter2") || !strings.Contains(got, "PROBE_SAID=yes") || strings.Contains(got, "NOTIFY_SOCKET") || strings.Contains(got, "LISTEN_FDS") {
		t.Errorf("its environment:\n%s", got)
	}
}

// TestPluginYields: a plugin that eats processors does not get as much of them as the suite, and gives one up to whoever wakes up; one that was started
// again after a crash too. restartd, which starts it, and proxyd, which it is for, are as they were.
func TestPluginYields(t *testing.T) {
	p := probe(t, "", mirror(t))
	slice := func(pid int) uint64 { // 0: the kernel has none
		a, err := unix.SchedGetAttr(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		return a.Runtime
	}
	for _, crashed := range []bool{false, true} {
		pid := pluginPID(p.Suite, "probe")
		if crashed {
			was := pid
			_ = syscall.Kill(was, syscall.SIGKILL)
			for deadline := time.Now().Add(20 * time.Second); (pid == was || pid == 0) && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				pid = pluginPID(p.Suite, "probe")
			}
		}
		if a, err := unix.SchedGetAttr(pid, 0); err != nil || a.Nice < 10 || a.Runtime != 0 && a.Runtime != 100e6 {
			t.Errorf("after a crash %v: the plugin is %+v, %v; want nice 10 and a slice of 100 ms", crashed, a, err)
		}
		group := func() string {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/autogroup", pid))
			return strings.TrimSpace(string(b))
		}
		if group() == "" {
			continue // the scheduler makes no groups of sessions
		}
		for deadline := time.Now().Add(20 * time.Second); !strings.HasSuffix(group(), "nice 19") && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		}
		if !strings.HasSuffix(group(), "nice 19") {
			t.Errorf("after a crash %v: the group of the plugin's session is %q, want nice 19", crashed, group())
		}
	}
	if slice(p.PID("proxyd")) == 100e6 || slice(p.PID("restartd")) == 100e6 {
		t.Error("proxyd or restartd yields too")
	}
}

// TestPluginTimeIsLogged: the access log says how long a request waited for plugins.
func TestPluginTimeIsLogged(t *testing.T) {
	p := probe(t, "", mirror(t))
	p.Write(strings.Replace(p.config, "%RESPONSE_CODE_DETAILS%", "%RESPONSE_CODE_DETAILS% %PLUGIN_TIME%", 1))
	if out, code := p.Retinue("reload"); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	p.ask("/asked", "set x-a b")
	p.ask("/plain/not", "")
	p.Eventually("both are logged", func() error {
		b, err := os.ReadFile(p.log)
		if !regexp.MustCompile(`(?m)^/asked 200 - via_upstream [1-9]\d*$`).Match(b) || !regexp.MustCompile(`(?m)^/plain/not 200 - via_upstream (0|-)$`).Match(b) {
			return fmt.Errorf("%v: %s", err, b)
		}
		return nil
	})
}

// TestPluginSpans: each call of a request whose span is recorded has a span below it, with its phase, and marked where it failed.
func TestPluginSpans(t *testing.T) {
	c := newCollector(t, 0)
	p := probe(t, "response = true", mirror(t))
	config := fmt.Sprintf("tracing {\n  endpoint = %q\n  headers  = { authorization = \"Bearer x\" }\n}\n", c.URL) +
		strings.Replace(p.config, "    access_log = access_log.main\n", "    access_log = access_log.main\n    tracing { random_sampling = \"100%\" }\n", 1)
	p.Write(config)
	if out, code := p.Retinue("reload"); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	p.ask("/open/good", "set x-a b")
	p.ask("/open/bad", "status")
	p.Eventually("the collector has the calls' spans", func() error {
		c.mu.Lock()
		defer c.mu.Unlock()
		parents, calls := map[string]string{}, []string{}
		for _, s := range c.spans {
			if url := tagOf(s, "http.url"); url != "" {
				parents[string(s.GetSpanId())] = url[strings.LastIndex(url, "/"):]
			}
		}
		for _, s := range c.spans {
			if s.GetName() == "plugin probe" {
				failed := s.GetStatus().GetCode() == tracepb.Status_STATUS_CODE_ERROR
				calls = append(calls, fmt.Sprintf("%s %s failed=%v", parents[string(s.GetParentSpanId())], tagOf(s, "phase"), failed))
			}
		}
		slices.Sort(calls)
		calls = slices.Compact(calls) // a body may come in pieces
		want := []string{"/bad request_headers failed=true", "/good request_headers failed=false", "/good response_body failed=false", "/good response_headers failed=false"}
		if c.broken != nil || !slices.Equal(calls, want) {
			return fmt.Errorf("%v: %q, want %q", c.broken, calls, want)
		}
		return nil
	})
}

// TestPluginHoldsBackTheSender: while a plugin does not answer, a streamed body waits at its sender and not in proxyd.
func TestPluginHoldsBackTheSender(t *testing.T) {
	const size = 96 << 20
	p := probeWithin(t, "60s", "request_body = \"stream\"", application(t))
	p.client.Timeout = 0
	if status, _, _ := p.post(t, "warm", true); status != 200 {
		t.Fatal(status)
	}
	pid := pluginPID(p.Suite, "probe")
	before := suite.Pss(t, p.PID("proxyd"))
	p.Freeze(pid)
	var sent atomic.Int64
	done := make(chan error, 1)
	go func() {
		response, err := p.client.Post(p.base+"/echo", "text/plain", &counted{left: size, sent: &sent})
		if err == nil {
			var n int64
			n, err = io.Copy(io.Discard, response.Body)
			response.Body.Close()
			if err == nil && n != size+int64(len("[END][end]")) {
				err = fmt.Errorf("status %d, %d bytes came back", response.StatusCode, n)
			}
		}
		done <- err
	}()
	last := int64(-1)
	p.Eventually("the sender is held back", func() error {
		time.Sleep(200 * time.Millisecond) // one who is not has sent more by then
		now := sent.Load()
		still := now == last && now > 0
		if last = now; !still {
			return fmt.Errorf("%d bytes are on their way", now)
		}
		return nil
	})
	if grown := suite.Pss(t, p.PID("proxyd")) - before; grown > 16<<20 || last == size {
		t.Errorf("proxyd has grown by %d MiB, %d of %d bytes were taken", grown>>20, last, size)
	}
	_ = syscall.Kill(pid, syscall.SIGCONT)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// counted is a body that counts what was read of it.
type counted struct {
	left int
	sent *atomic.Int64
}

func (c *counted) Read(b []byte) (int, error) {
	n := min(len(b), c.left)
	if n == 0 {
		return 0, io.EOF
	}
	c.left -= n
	c.sent.Add(int64(n))
	return n, nil
}

// TestPluginOfConnections has a network filter do each thing that it may: change bytes both ways, answer the client itself, close, pass from now on.
func TestPluginOfConnections(t *testing.T) {
	upstream := suite.Upstream(t, func(c net.Conn) { _, _ = io.Copy(c, c) })
	s := suite.Start(t, fmt.Sprintf(`
plugin "probe" {
  command = %q
  timeout = "15s"
  config { network = true }
}
listener "tcp" {
  address = ["127.0.0.1:0"]
  tcp {
    cluster = cluster.echo
    filters = [plugin.probe]
  }
}
cluster "echo" { endpoints = [%q] }
stats { listen = "off" }
`, suite.Binary(t, "plugins/probe"), upstream))
	c, err := net.Dial("tcp", s.Address("tcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(suite.Patience))
	lines := bufio.NewReader(c)
	for _, step := range [][2]string{{"hello\n", "HELL0\n"}, {"inject\n", "injected\n"}, {"food\n", "F00D\n"}} {
		if _, err := io.WriteString(c, step[0]); err != nil {
			t.Fatal(err)
		}
		if got, err := lines.ReadString('\n'); got != step[1] {
			t.Errorf("%q was answered by %q, %v; want %q", step[0], got, err, step[1])
		}
	}
	other, err := net.Dial("tcp", s.Address("tcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	_ = other.SetDeadline(time.Now().Add(suite.Patience))
	if _, err := io.WriteString(other, "close\n"); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(other); len(got) > 0 {
		t.Errorf("a connection that the plugin closes got %q", got)
	}
	if _, err := io.WriteString(c, "pass\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := lines.ReadString('\n'); got != "pass\n" {
		t.Errorf("the word that lets everything pass came back as %q, %v", got, err)
	}
	if _, err := io.WriteString(c, "close inject OO\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := lines.ReadString('\n'); got != "close inject OO\n" {
		t.Errorf("after that %q, %v came back", got, err)
	}
}
