package chaos

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const pluginConfig = `
runtime { workers = 2 }
plugin "probe" {
  command    = %q
  timeout    = "100ms"
  memory     = "256MiB"
  open_files = 64
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/plugin" {
        cluster = cluster.app
        filters = [plugin.probe]
      }
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" { endpoints = [%q] }
stats { listen = "off" }
`

// pluginState is what retinue plugin list says of the plugin.
type pluginState struct {
	LogPath     string
	Restarts    string
	Generations []struct{ State, PID string }
}

func stateOfPlugin(s *suite.Suite) (p pluginState, pid int, err error) {
	out, _ := s.Retinue("plugin", "list", "--json")
	var table struct{ Plugins []pluginState }
	if err := json.Unmarshal([]byte(out), &table); err != nil || len(table.Plugins) != 1 {
		return p, 0, fmt.Errorf("%v: %s", err, out)
	}
	p = table.Plugins[0]
	for _, g := range p.Generations {
		if g.State == "PLUGIN_STATE_SERVING" {
			pid, err = strconv.Atoi(g.PID)
			return p, pid, err
		}
	}
	return p, 0, errors.New("no generation serves")
}

// TestBadPlugin: whatever a plugin does, requests of other routes are answered, and the plugin serves again afterwards. How long they take
// is printed beside a calm moment and not judged.
func TestBadPlugin(t *testing.T) {
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "fine") }))
	t.Cleanup(app.Close)
	s := suite.Start(t, fmt.Sprintf(pluginConfig, suite.Binary(t, "plugins/probe"), strings.TrimPrefix(app.URL, "http://")))
	base := "http://" + s.Address("web")
	client := &http.Client{Timeout: suite.Patience}
	t.Cleanup(client.CloseIdleConnections)
	get := func(path, do string) (int, error) {
		r, err := http.NewRequest("GET", base+path, nil)
		if err != nil {
			return 0, err
		}
		r.Header.Set("x-do", do)
		response, err := client.Do(r)
		if err != nil {
			return 0, err
		}
		defer response.Body.Close()
		_, err = io.Copy(io.Discard, response.Body)
		return response.StatusCode, err
	}
	pid := func() int {
		t.Helper()
		var pid int
		s.Eventually("the plugin serves", func() (err error) {
			_, pid, err = stateOfPlugin(s)
			return err
		})
		return pid
	}
	var table strings.Builder
	for _, bad := range []struct {
		name  string
		begin func(pid int)
		do    string // of the requests that go to the plugin meanwhile
		ends  bool   // the process does
	}{
		{name: "calm"},
		{name: "killed", begin: func(pid int) { _ = syscall.Kill(pid, syscall.SIGKILL) }, ends: true},
		{name: "hung", begin: func(pid int) { _ = syscall.Kill(pid, syscall.SIGSTOP) }},
		{name: "flooding", begin: func(int) { _, _ = get("/plugin", "flood") }},
		{name: "lying", do: "status"},
		{name: "leaking", begin: func(int) { _, _ = get("/plugin", "leak") }, ends: true},
		{name: "no descriptors", begin: func(int) { _, _ = get("/plugin", "leak-files") }},
	} {
		before := pid()
		if bad.begin != nil {
			bad.begin(before)
		}
		times, failed := beside(get, bad.do)
		slices.Sort(times)
		at := func(q float64) time.Duration { return times[min(int(q*float64(len(times))), len(times)-1)] }
		fmt.Fprintf(&table, "%-15s %6d requests  %d failed  p50 %8s  p99 %8s\n", bad.name, len(times), failed, at(0.5).Round(time.Microsecond), at(0.99).Round(time.Microsecond))
		if failed > 0 {
			t.Errorf("%s: %d requests of another route failed", bad.name, failed)
		}
		switch bad.name {
		case "hung":
			_ = syscall.Kill(before, syscall.SIGCONT)
		case "flooding":
			s.Eventually("its log is cut", func() error {
				p, _, err := stateOfPlugin(s)
				if err != nil {
					return err
				}
				b, err := os.ReadFile(p.LogPath)
				if err == nil && (len(b) > 16<<20 || !strings.Contains(string(b), "were cut here")) {
					err = fmt.Errorf("%d bytes", len(b))
				}
				return err
			})
		case "no descriptors":
			_ = syscall.Kill(before, syscall.SIGKILL)
		}
		s.Eventually("the plugin answers after it was "+bad.name, func() error {
			if now := pid(); bad.ends && now == before {
				return errors.New("it is still the same process")
			}
			status, err := get("/plugin", "respond")
			if err == nil && status != 418 {
				err = fmt.Errorf("status %d", status)
			}
			return err
		})
	}
	t.Logf("requests of a route without the plugin, while it is\n%s", table.String())
}

// beside sends requests to a route without the plugin, and some to the plugin.
func beside(get func(path, do string) (int, error), do string) (times []time.Duration, failed int) {
	var mu sync.Mutex
	var all, plugin sync.WaitGroup
	over := make(chan struct{})
	plugin.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				_, _ = get("/plugin", do)
			}
		}
	})
	for range 4 {
		all.Go(func() {
			for range 250 {
				began := time.Now()
				status, err := get("/other", "")
				took := time.Since(began)
				mu.Lock()
				times = append(times, took)
				if err != nil || status != 200 {
					failed++
				}
				mu.Unlock()
			}
		})
	}
	all.Wait()
	close(over)
	plugin.Wait()
	return times, failed
}
