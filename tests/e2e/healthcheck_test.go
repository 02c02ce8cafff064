package e2e

import (
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestHealthCheckCache: the upstream is asked once in a filter's cache_time, whatever it says, and the proxy answers for it.
func TestHealthCheckCache(t *testing.T) {
	st := newFilterStage(t, `
filter "health_check" "well" {
  path         = "/well"
  pass_through = true
  cache_time   = "1h"
}
filter "health_check" "ill" {
  path         = "/ill"
  pass_through = true
  cache_time   = "1h"
}
filter "health_check" "away" {
  path         = "/away"
  pass_through = true
  cache_time   = "1h"
}
filter "health_check" "plain" {
  path         = "/plain"
  pass_through = true
}
cluster "nobody" { endpoints = ["127.0.0.1:1"] }
`, `
    filters = [filter.health_check.well, filter.health_check.ill, filter.health_check.away, filter.health_check.plain]
    virtual_host "all" {
      domains = ["*"]
      route "/away" { cluster = cluster.nobody }
      route "/*" { cluster = cluster.app }
    }`)
	var asked atomic.Int32
	says := func(head string) script {
		return func(c *upstreamConn) bool {
			asked.Add(1)
			return answer("HTTP/1.1 " + head + "\r\nContent-Length: 4\r\n\r\nmine")(c)
		}
	}
	st.scripts.set("/well", says("200 OK\r\nX-Envoy-Degraded: true"))
	st.scripts.set("/ill", says("500 Sick"))
	st.scripts.set("/plain", says("200 OK"))
	for _, row := range []struct {
		path     string
		status   int
		details  string
		flags    string
		degraded bool
		asked    int32
	}{
		{"/well", 200, "via_upstream", "", true, 1},
		{"/well", 200, "health_check_ok", "", true, 0},
		{"/well?again", 200, "health_check_ok", "", true, 0},
		{"/ill", 500, "via_upstream", "", false, 1},
		{"/ill", 500, "health_check_failed", "LH", false, 0},
		{"/away", 503, "", "", false, 0},
		{"/away", 503, "health_check_failed", "LH", false, 0},
		{"/plain", 200, "via_upstream", "", false, 1},
		{"/plain", 200, "via_upstream", "", false, 1},
		{"/well/not", 200, "via_upstream", "", false, 0},
	} {
		before := asked.Load()
		if row.path == "/well/not" {
			st.scripts.set(row.path, answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"))
		}
		response, logged := st.exchangeRaw(t, "GET "+row.path+" HTTP/1.1\nHost: a")
		if logged.Status != row.status || row.details != "" && (logged.Details != row.details || logged.Flags != row.flags) || asked.Load()-before != row.asked {
			t.Errorf("%s: logged %d %s %q, asked %d times:\n%s", row.path, logged.Status, logged.Details, logged.Flags, asked.Load()-before, response)
		}
		if degraded := len(values(response, "x-envoy-degraded")) > 0; degraded != row.degraded {
			t.Errorf("%s: degraded %v:\n%s", row.path, degraded, response)
		}
		if strings.Contains(response, "mine") != (row.asked > 0) {
			t.Errorf("%s: of another body:\n%s", row.path, response)
		}
	}
	st.awaitCounters(t, map[string]float64{"health_check_ok well": 3, "health_check_failed well": 0, "health_check_ok ill": 1, "health_check_failed ill": 1, "health_check_failed away": 1})
}

// TestHealthCheckWhileStopping: a proxy that goes with nobody in its place says so in the responses that it still gives.
func TestHealthCheckWhileStopping(t *testing.T) {
	st := newFilterStage(t, "filter \"health_check\" \"lb\" { path = \"/healthz\" }\n", `
    filters = [filter.health_check.lb]
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }`)
	arrived, release := make(chan struct{}), make(chan struct{})
	st.scripts.set("/slow", func(c *upstreamConn) bool {
		close(arrived)
		<-release
		return answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(c)
	})
	const name = "x-envoy-immediate-health-check-fail"
	if response, _ := st.exchangeRaw(t, "GET /healthz HTTP/1.1\nHost: a"); len(values(response, name)) > 0 {
		t.Errorf("it serves:\n%s", response)
	}
	c := dial(t, st.Address("web"))
	write(t, c, "GET /slow HTTP/1.1\r\nHost: a\r\n\r\n")
	<-arrived
	st.Signal(syscall.SIGTERM)
	st.Eventually("the drain", func() error {
		if !strings.Contains(st.Log(), `"msg":"draining","daemon":"proxyd"`) {
			return errors.New("it has not begun")
		}
		return nil
	})
	close(release)
	if response, err := untilEnd(c); strings.Join(values(response, name), "|") != "true" || !strings.HasSuffix(response, "ok") {
		t.Errorf("the last response (%v):\n%s", err, response)
	}
	if status := st.Wait(); status != 0 {
		t.Errorf("exit status %d", status)
	}
}
