package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"retinue.dev/tests/suite"
)

// floodMemory is what proxyd may grow by while plugins flood it: far below what they send.
const floodMemory = 48 << 20

// TestPluginFloods has plugins send what nobody asked for on their data channels, as fast as they can and without an end: other routes are served all
// the time, the plugin's own get the fail mode, the channel is closed and counted and comes back later each time, and the worker does not grow.
func TestPluginFloods(t *testing.T) {
	kinds := []string{"answers", "bodies", "openings", "empty", "endless", "random"}
	var config strings.Builder
	fmt.Fprintln(&config, "runtime { workers = 2 }")
	for _, kind := range kinds {
		fmt.Fprintf(&config, "plugin %q {\n  command = %q\n  args = [\"hostile\", %q]\n  timeout = \"15s\"\n}\n", kind, suite.Binary(t, "plugins/probe"), kind)
	}
	fmt.Fprint(&config, "listener \"web\" {\n  address = [\"127.0.0.1:0\"]\n  http {\n    virtual_host \"all\" {\n      domains = [\"*\"]\n")
	for _, kind := range kinds {
		fmt.Fprintf(&config, "      route \"/%[1]s\" {\n        cluster = cluster.app\n        filters = [plugin.%[1]s]\n      }\n", kind)
	}
	fmt.Fprintf(&config, "      route \"/*\" { cluster = cluster.app }\n    }\n  }\n}\ncluster \"app\" { endpoints = [%q] }\nstats { listen = \"off\" }\n", mirror(t))
	s := suite.Start(t, config.String())
	c := client(t)
	get := func(path string) (int, error) {
		r, err := c.Get("http://" + s.Address("web") + path)
		if err != nil {
			return 0, err
		}
		return r.StatusCode, r.Body.Close()
	}
	for range 50 {
		if status, err := get("/plain"); status != 200 {
			t.Fatalf("before: %d, %v", status, err)
		}
	}
	before := suite.Pss(t, s.PID("proxyd"))
	stop := make(chan struct{})
	var others sync.WaitGroup
	others.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if status, err := get("/plain"); status != 200 {
				t.Errorf("another route: %d, %v", status, err)
				return
			}
		}
	})
	for _, kind := range kinds {
		s.Eventually(kind+": its channels are closed again and again", func() error {
			if status, err := get("/" + kind); status != 503 {
				t.Errorf("%s: %d, %v; want 503", kind, status, err)
			}
			if n := s.Stat("retinue_plugin_protocol_errors", "plugin="+kind); n < 4 {
				return fmt.Errorf("%v violations are counted", n)
			}
			return nil
		})
		if grown := suite.Pss(t, s.PID("proxyd")) - before; grown > floodMemory {
			t.Errorf("%s: proxyd has grown by %d MiB", kind, grown>>20)
		}
	}
	close(stop)
	others.Wait()
	if failed := s.Stat("retinue_plugin_rq_total", "plugin=answers", "result=timeout"); failed > 0 {
		t.Errorf("%v requests waited for their time-out although the channel was closed under them", failed)
	}
	if status, err := get("/plain"); status != http.StatusOK {
		t.Error(errors.Join(fmt.Errorf("afterwards: status %d", status), err))
	}
}
