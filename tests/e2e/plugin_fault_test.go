package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const probeConfig = `
runtime { workers = 2 }
plugin "probe" {
  command = %q
  timeout = %q
  config {
    %s
  }
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.main
    virtual_host "all" {
      domains = ["*"]
      route "/plain/*" { cluster = cluster.app }
      route "/open/*" {
        cluster = cluster.app
        filters = [{ plugin = plugin.probe, on_error = "open" }]
      }
      route "/*" {
        cluster = cluster.app
        filters = [plugin.probe]
      }
    }
  }
}
access_log "main" {
  path   = %q
  format = "%%REQ(:PATH)%% %%RESPONSE_CODE%% %%RESPONSE_FLAGS%% %%RESPONSE_CODE_DETAILS%%"
}
cluster "app" { endpoints = [%q] }
stats { listen = "off" }
`

// probed is a suite whose requests the probe plugin sees.
type probed struct {
	*suite.Suite
	t      *testing.T
	config string
	log    string
	base   string
	client *http.Client
}

// probe gives the plugin more time than a busy machine takes: no call times out.
func probe(t *testing.T, settings, upstream string) *probed {
	t.Helper()
	return probeWithin(t, "15s", settings, upstream)
}

func probeWithin(t *testing.T, timeout, settings, upstream string) *probed {
	t.Helper()
	log := t.TempDir() + "/access.log"
	p := &probed{t: t, log: log, config: fmt.Sprintf(probeConfig, suite.Binary(t, "plugins/probe"), timeout, settings, log, upstream)}
	p.Suite = suite.Start(t, p.config)
	p.base, p.client = "http://"+p.Address("web"), client(t) // whose idle connections end before the suite has to
	return p
}

// ask sends a request that tells the probe what to do.
func (p *probed) ask(path, do string) (int, string, http.Header) {
	p.t.Helper()
	return p.get(path, "x-do", do)
}

// get sends a request with one header.
func (p *probed) get(path, name, do string) (int, string, http.Header) {
	p.t.Helper()
	r, err := http.NewRequest("GET", p.base+path, nil)
	if err != nil {
		p.t.Fatal(err)
	}
	r.Header.Set(name, do)
	response, err := p.client.Do(r)
	if err != nil {
		p.t.Fatalf("%s, %q: %v", path, do, err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		p.t.Fatalf("%s, %q: %v", path, do, err)
	}
	return response.StatusCode, string(body), response.Header
}

// logged waits for a line of the access log.
func (p *probed) logged(line string) {
	p.t.Helper()
	p.Eventually("the access log says "+line, func() error {
		b, _ := os.ReadFile(p.log)
		if !strings.Contains(string(b), line+"\n") {
			return fmt.Errorf("it says:\n%s", b)
		}
		return nil
	})
}

// pluginPID is the process that serves a plugin, 0 for none.
func pluginPID(s *suite.Suite, name string) int {
	out, _ := s.Retinue("plugin", "list", "--json")
	var table struct {
		Plugins []struct {
			Name        string
			Generations []struct{ State, PID string }
		}
	}
	if err := json.Unmarshal([]byte(out), &table); err != nil {
		return 0
	}
	for _, p := range table.Plugins {
		for _, g := range p.Generations {
			if p.Name == name && g.State == "PLUGIN_STATE_SERVING" {
				pid, _ := strconv.Atoi(g.PID)
				return pid
			}
		}
	}
	return 0
}

func TestPluginActions(t *testing.T) {
	p := probe(t, "", mirror(t))
	for _, test := range []struct {
		path, do string
		status   int
		has, log string
	}{
		{"/1", "set x-added yes", 200, "x-added: yes\n", "/1 200 - via_upstream"},
		{"/2", "respond", 418, "short and stout\n", "/2 418 - plugin_probe_teapot"},
		{"/3", "skip", 200, "x-skipped: 1\n", "/3 200 - via_upstream"},
		{"/4", "attributes", 200, "x-attributes: 127.0.0.1 /* web GET\n", "/4 200 - via_upstream"},
		{"/5", "set content-length 7", 503, "plugin unavailable", "/5 503 PC plugin_probe_invalid_reply"},
		{"/6", "set transfer-encoding chunked", 503, "", "/6 503 PC plugin_probe_invalid_reply"},
		{"/7", "set a:b c", 503, "", "/7 503 PC plugin_probe_invalid_reply"},
		{"/8", "set x-a a\r\nx-b: c", 503, "", "/8 503 PC plugin_probe_invalid_reply"},
		{"/9", "status", 503, "", "/9 503 PC plugin_probe_invalid_reply"},
		{"/open/1", "set content-length 7", 200, "x-do", "/open/1 200 PO via_upstream"},
		{"/11", "remove user-agent", 200, "x-do: remove user-agent\n", "/11 200 - via_upstream"},
		{"/12", "set :path /other", 200, "", "/12 200 - via_upstream"},
		{"/13", "set :path nonsense", 503, "", "/13 503 PC plugin_probe_invalid_reply"},
		{"/14", "set :method PUT", 503, "", "/14 503 PC plugin_probe_invalid_reply"},
	} {
		if strings.ContainsAny(test.do, "\r\n") {
			continue // no client sends it; the frame reader's own test does
		}
		t.Run(test.path+" "+test.do, func(t *testing.T) {
			p.t = t
			status, body, _ := p.ask(test.path, test.do)
			if status != test.status || !strings.Contains(body, test.has) {
				t.Errorf("%d %q; want %d with %q", status, body, test.status, test.has)
			}
			if test.path != "/12" {
				p.logged(test.log)
			}
		})
	}
}

// TestPluginCrash has the plugin die under requests that wait for it: they get their fail mode at once, not after the time-out, and the
// plugin is there again soon.
func TestPluginCrash(t *testing.T) {
	p := probe(t, "", mirror(t))
	before := pluginPID(p.Suite, "probe")
	if status, _, _ := p.ask("/x", "crash"); status != 503 {
		t.Errorf("under a crash: status %d, want 503", status)
	}
	p.logged("/x 503 PC plugin_probe_unavailable") // and not plugin_probe_timeout
	if status, _, _ := p.ask("/plain/x", ""); status != 200 {
		t.Errorf("another route: status %d", status)
	}
	p.Eventually("the plugin is there again", func() error {
		if status, _, _ := p.ask("/y", "set x-added yes"); status != 200 {
			return fmt.Errorf("status %d", status)
		}
		return nil
	})
	if after := pluginPID(p.Suite, "probe"); after == before || after == 0 {
		t.Errorf("pid %d before the crash, %d after it", before, after)
	}
	if status, _, _ := p.ask("/open/x", "crash"); status != 200 {
		t.Errorf("with on_error open: status %d", status)
	}
}

// TestPluginHangs stops the plugin's process: requests get their fail mode at the time-out, then without one once the circuit is open,
// and other routes do not notice.
func TestPluginHangs(t *testing.T) {
	p := probeWithin(t, "100ms", "", mirror(t))
	pid := pluginPID(p.Suite, "probe")
	p.Freeze(pid)
	p.Eventually("a circuit is open", func() error {
		var wait sync.WaitGroup
		for range 32 { // sixteen time-outs in a row on one worker open its circuit
			wait.Go(func() {
				r, err := p.client.Get(p.base + "/hang")
				if err != nil {
					t.Error(err)
					return
				}
				r.Body.Close()
				if r.StatusCode != 503 {
					t.Errorf("status %d, want 503", r.StatusCode)
				}
			})
		}
		wait.Wait()
		if p.Stat("retinue_plugin_circuit_opened", "plugin=probe") == 0 {
			return errors.New("it is not counted")
		}
		return nil
	})
	p.logged("/hang 503 PC plugin_probe_timeout")
	p.Eventually("a request meets an open circuit", func() error { // it closes after a second, for one call that tries
		if status, _, _ := p.ask("/hang/now", ""); status != 503 {
			t.Errorf("status %d, want 503", status)
		}
		if p.Stat("retinue_plugin_rq_total", "plugin=probe", "result=circuit_open") == 0 {
			return errors.New("none is counted")
		}
		return nil
	})
	if status, _, _ := p.ask("/plain/x", ""); status != 200 {
		t.Errorf("another route: status %d", status)
	}
	_ = syscall.Kill(pid, syscall.SIGCONT)
	p.Eventually("the plugin is asked again", func() error {
		if status, _, _ := p.ask("/z", ""); status != 200 {
			return fmt.Errorf("status %d", status)
		}
		return nil
	})
	if after := pluginPID(p.Suite, "probe"); after != pid {
		t.Errorf("pid %d became %d", pid, after)
	}
}

// TestPluginOutlivesDaemons kills restartd and upgrades proxyd: the plugin stays the same process, and requests are served all the time.
func TestPluginOutlivesDaemons(t *testing.T) {
	p := probe(t, "", mirror(t))
	before := pluginPID(p.Suite, "probe")
	load := p.load("set x-added yes")
	p.Kill("restartd")
	p.Eventually("restartd has adopted the plugin", func() error {
		if pid := pluginPID(p.Suite, "probe"); pid != before {
			return fmt.Errorf("pid %d, want %d", pid, before)
		}
		return nil
	})
	for i := range 3 {
		if out, code := p.Retinue("upgrade", "--probation", "0s"); code != 0 {
			t.Fatalf("upgrade %d: exit %d: %s", i, code, out)
		}
	}
	p.Kill("configd")
	p.Kill("statsd")
	load.end(t)
	if after := pluginPID(p.Suite, "probe"); after != before {
		t.Errorf("pid %d before, %d after", before, after)
	}
}

// load is requests without a pause until end.
type load struct {
	stop             chan struct{}
	clients          sync.WaitGroup
	requests, failed atomic.Int64
	last             atomic.Value
}

func (p *probed) load(do string) *load {
	l := &load{stop: make(chan struct{})}
	for i := range 4 {
		transport := &http.Transport{DisableKeepAlives: i%2 == 0}
		c := &http.Client{Transport: transport, Timeout: suite.Patience}
		l.clients.Go(func() {
			defer transport.CloseIdleConnections()
			for {
				select {
				case <-l.stop:
					return
				default:
				}
				r, err := http.NewRequest("GET", p.base+"/load", nil)
				if err != nil {
					panic(err)
				}
				r.Header.Set("x-do", do)
				response, err := c.Do(r)
				if err == nil {
					var body []byte
					body, err = io.ReadAll(response.Body)
					response.Body.Close()
					if err == nil && (response.StatusCode != 200 || !strings.Contains(string(body), "x-added: yes")) {
						err = fmt.Errorf("status %d, %q", response.StatusCode, body)
					}
				}
				l.requests.Add(1)
				if err != nil {
					l.failed.Add(1)
					l.last.Store(err)
				}
			}
		})
	}
	return l
}

func (l *load) end(t *testing.T) {
	t.Helper()
	close(l.stop)
	l.clients.Wait()
	t.Logf("%d requests, %d failed", l.requests.Load(), l.failed.Load())
	if l.failed.Load() > 0 || l.requests.Load() == 0 {
		t.Errorf("%d of %d requests failed, the last with %v", l.failed.Load(), l.requests.Load(), l.last.Load())
	}
}

// TestPluginSwaps swaps under load again and again, then refuses a program that is none, and rolls back.
func TestPluginSwaps(t *testing.T) {
	p := probe(t, "", mirror(t))
	program := suite.Binary(t, "plugins/probe")
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(t.TempDir(), "probe-2")
	if err := os.WriteFile(copied, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	swaps := 100
	if testing.Short() {
		swaps = 10
	}
	l := p.load("set x-added yes")
	for i := range swaps {
		to := []string{copied, program}[i%2]
		if out, code := p.Retinue("plugin", "swap", "probe", "--to", to); code != 0 {
			t.Fatalf("swap %d: exit %d: %s", i, code, out)
		}
	}
	pid := pluginPID(p.Suite, "probe")
	if out, code := p.Retinue("plugin", "swap", "probe", "--to", "/bin/true"); code != 1 || !strings.Contains(out, "handshake") {
		t.Errorf("a program that is no plugin: exit %d, want 1 with why: %s", code, out)
	}
	if after := pluginPID(p.Suite, "probe"); after != pid {
		t.Errorf("a refused swap replaced pid %d by %d", pid, after)
	}
	if out, code := p.Retinue("plugin", "swap", "probe", "--to", copied, "--canary", "50", "--canary-time", "300ms"); code != 0 {
		t.Errorf("canary: exit %d: %s", code, out)
	}
	if out, code := p.Retinue("plugin", "rollback", "probe"); code != 0 {
		t.Errorf("rollback: exit %d: %s", code, out)
	}
	out, _ := p.Retinue("plugin", "list", "--json")
	if !strings.Contains(out, strconv.Quote(program)) {
		t.Errorf("after the rollback %s is not served: %s", program, out)
	}
	l.end(t)
}

// TestPluginsEnd kills each daemon and then the suite's supervisor: no plugin process may stay.
func TestPluginsEnd(t *testing.T) {
	t.Setenv("RETINUE_PLUGIN_ORPHAN_MS", "700")
	p := probe(t, "", mirror(t))
	pid := pluginPID(p.Suite, "probe")
	p.KillAll()
	deadline := time.Now().Add(suite.Patience)
	for time.Now().Before(deadline) {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return
		}
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); strings.Contains(string(b), ") Z ") {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Errorf("plugin process %d outlives the suite", pid)
	_ = syscall.Kill(pid, syscall.SIGKILL)
}
