package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"retinue.dev/tests/suite"
)

// copyOf is a program's copy under another name.
func copyOf(t *testing.T, program string) string {
	t.Helper()
	raw, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), filepath.Base(program)+"-2")
	if err := os.WriteFile(path, raw, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPluginCommands is a day with retinue plugin: list, logs, bench, swap, rollback.
func TestPluginCommands(t *testing.T) {
	p := probe(t, "", mirror(t))
	program := suite.Binary(t, "plugins/probe")
	list := func() (program string, pid int) {
		t.Helper()
		out, code := p.Retinue("plugin", "list", "--json")
		var table struct {
			Plugins []struct {
				Generations []struct{ State, Program, PID string }
			}
		}
		if err := json.Unmarshal([]byte(out), &table); code != 0 || err != nil || len(table.Plugins) != 1 {
			t.Fatalf("list: exit %d, %v: %s", code, err, out)
		}
		for _, g := range table.Plugins[0].Generations {
			if g.State == "PLUGIN_STATE_SERVING" {
				pid, _ = strconv.Atoi(g.PID)
				return g.Program, pid
			}
		}
		return "", 0
	}
	if out, code := p.Retinue("plugin", "list"); code != 0 || !regexp.MustCompile(`probe +1 +serving +\d+ +probe 1\.0\.0 `).MatchString(out) {
		t.Errorf("list: exit %d: %s", code, out)
	}
	p.ask("/x", "say good morning")
	p.Eventually("what it wrote", func() error {
		if out, code := p.Retinue("plugin", "logs", "probe"); code != 0 || !strings.Contains(out, "good morning\n") {
			return fmt.Errorf("exit %d: %s", code, out)
		}
		return nil
	})
	if out, code := p.Retinue("plugin", "bench", "probe", "--time", "50ms"); code != 0 || strings.Count(out, "calls/s") != 3 {
		t.Errorf("bench: exit %d: %s", code, out)
	}
	out, code := p.Retinue("plugin", "bench", "probe", "--time", "50ms", "--json")
	var results []struct {
		P50 float64 `json:"p50_us"`
		P99 float64 `json:"p99_us"`
	}
	if err := json.Unmarshal([]byte(out), &results); code != 0 || err != nil || len(results) != 3 || results[0].P50 <= 0 || results[0].P99 < results[0].P50 {
		t.Errorf("bench --json: exit %d, %v: %s", code, err, out)
	}
	if out, code := p.Retinue("plugin", "rollback", "probe"); code != 1 || out == "" {
		t.Errorf("a rollback before any swap: exit %d: %s", code, out)
	}
	_, first := list()
	second := copyOf(t, program)
	if out, code := p.Retinue("plugin", "swap", "probe", "--to", second); code != 0 {
		t.Fatalf("swap: exit %d: %s", code, out)
	}
	if now, pid := list(); now != second || pid == first {
		t.Errorf("after the swap %s serves as pid %d", now, pid)
	}
	if out, code := p.Retinue("plugin", "rollback", "probe"); code != 0 {
		t.Fatalf("rollback: exit %d: %s", code, out)
	}
	if now, _ := list(); now != program {
		t.Errorf("after the rollback %s serves", now)
	}
	if status, _, _ := p.ask("/x", "respond"); status != 418 {
		t.Errorf("status %d", status)
	}
	for _, args := range [][]string{{"logs", "absent"}, {"bench", "absent"}, {"swap", "absent", "--to", second}, {"rollback", "absent"}} {
		if out, code := p.Retinue(append([]string{"plugin"}, args...)...); code != 1 || !strings.Contains(out, "absent") {
			t.Errorf("%v: exit %d, want 1 with the name: %s", args, code, out)
		}
	}
}

// TestPluginVersions: a plugin settles with a suite that offers a newer protocol too on the one that both have; one that has only a newer one is refused with both
// numbers, its place and what to do, and what served before serves on.
func TestPluginVersions(t *testing.T) {
	p := probe(t, "", mirror(t))
	newer := strings.Replace(p.config, `timeout = "15s"`, "timeout = \"15s\"\n  environment = [\"PLUGIN_PROTOCOL_VERSIONS=2,1\"]", 1)
	p.Write(newer)
	if out, code := p.Retinue("reload"); code != 0 {
		t.Fatalf("a suite that offers 2 and 1: exit %d: %s", code, out)
	}
	if status, _, _ := p.ask("/x", "respond"); status != 418 {
		t.Errorf("status %d", status)
	}
	if out, _ := p.Retinue("plugin", "list", "--json"); !regexp.MustCompile(`"protocol": +1\b`).MatchString(out) {
		t.Errorf("the list does not say what is spoken: %s", out)
	}
	future := filepath.Join(t.TempDir(), "future")
	if err := os.WriteFile(future, []byte("#!/bin/sh\necho '1|2|unix|plugin.sock|grpc'\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	p.Write(strings.Replace(newer, suite.Binary(t, "plugins/probe"), future, 1))
	out, code := p.Retinue("reload")
	if code != 1 || !strings.Contains(out, "test.hcl line 4") || !strings.Contains(out, "version 2 of the filter protocol, this restartd 1: install a plugin built for it") {
		t.Errorf("a plugin of the future: exit %d, want 1 with its place: %s", code, out)
	}
	if status, _, _ := p.ask("/x", "respond"); status != 418 {
		t.Errorf("after the refusal: status %d", status)
	}
}

// TestPluginIsSeen follows a plugin over a swap, a restart of statsd and one of restartd: neither its own counters nor the proxy's counters of it fall, and the
// dashboard has a row of it.
func TestPluginIsSeen(t *testing.T) {
	program := suite.Binary(t, "plugins/api-key")
	s := suite.Start(t, fmt.Sprintf(`
plugin "key" {
  command = %q
  timeout = "15s"
  config {
    ttl  = "0s"
    keys = {}
  }
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    filters = [plugin.key]
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { status = 200 }
      }
    }
  }
}
stats { listen = "127.0.0.1:0" }
`, program))
	web := client(t)
	asked := 0
	ask := func() {
		t.Helper()
		r, err := web.Get("http://" + s.Address("web") + "/")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if asked++; r.StatusCode != http.StatusUnauthorized {
			t.Errorf("status %d without a key, want 401", r.StatusCode)
		}
	}
	metrics := statsAddress(s)
	counted := func(when string, own int) {
		t.Helper()
		for line, want := range map[string]int{`retinue_plugin_own_refused_total{plugin="key"}`: own, `retinue_plugin_rq_total{plugin="key",result="responded"}`: asked} {
			s.Eventually(fmt.Sprintf("%s: %s is %d", when, line, want), func() error {
				r, err := web.Get("http://" + metrics + "/metrics")
				if err != nil {
					return err
				}
				defer r.Body.Close()
				b, err := io.ReadAll(r.Body)
				if err == nil && !strings.Contains(string(b), fmt.Sprintf("%s %d\n", line, want)) {
					err = fmt.Errorf("%s", b)
				}
				return err
			})
		}
	}
	ask()
	counted("at first", 1)
	if out, code := s.Retinue("plugin", "swap", "key", "--to", copyOf(t, program)); code != 0 {
		t.Fatalf("swap: exit %d: %s", code, out)
	}
	counted("after a swap", 1)
	ask()
	counted("with the new program", 2)
	s.Kill("statsd")
	s.Eventually("statsd listens again", func() error { // on another port: 0 was asked for
		all := regexp.MustCompile(`metrics and dashboard.*?(127\.0\.0\.1:[1-9][0-9]*)`).FindAllStringSubmatch(s.Log(), -1)
		if len(all) < 2 {
			return errors.New("not yet")
		}
		metrics = all[len(all)-1][1]
		return nil
	})
	counted("after a restart of statsd", 2)
	ask()
	counted("and a request", 3)

	r, err := web.Get("http://" + metrics + "/events")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	lines := bufio.NewScanner(r.Body)
	lines.Buffer(nil, 8<<20)
	s.Eventually("the dashboard shows calls of the plugin", func() error {
		for range 5 { // each second's event goes on with the next
			ask()
			if !lines.Scan() {
				t.Fatalf("the events end: %v", lines.Err())
			}
			var event struct {
				Now struct {
					Plugins []struct {
						Name  string
						Calls float64 `json:"cps"`
						P99   float64
					}
				}
			}
			text, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok || json.Unmarshal([]byte(text), &event) != nil {
				continue
			}
			for _, row := range event.Now.Plugins {
				if row.Name == "key" && row.Calls > 0 && row.P99 > 0 {
					return nil
				}
			}
		}
		return errors.New("no row of it has calls")
	})
	counted("meanwhile", asked)
	s.Kill("restartd")
	ask()
	counted("after a restart of restartd", asked) // the process is the same, and counts on by itself
}
