package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"testing"

	"retinue.dev/tests/suite"
)

// TestTopWhileEverybodyStandsStill: top asks no daemon, so it answers when proxyd, statsd and configd are stopped.
func TestTopWhileEverybodyStandsStill(t *testing.T) {
	s := suite.Start(t, `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        respond { status = 204 }
      }
    }
  }
}
stats { listen = "off" }
`)
	address, c := s.Address("web"), client(t)
	for range 7 {
		r, err := c.Get("http://" + address + "/")
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
	}
	held, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	fmt.Fprintf(held, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if _, err := held.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	for _, daemon := range []string{"proxyd", "statsd", "configd", "restartd"} {
		s.Freeze(s.PID(daemon))
	}
	out, status := s.Retinue("top", "--json", "--interval", "100ms")
	var view struct {
		Total struct {
			Requests    uint64 `json:"requests_total"`
			Connections uint64 `json:"connections"`
			Serving     int    `json:"generations_serving"`
		} `json:"total"`
		Workers     []struct{ Connections uint64 } `json:"workers"`
		Generations []struct {
			State string `json:"state"`
			Held  []struct {
				Listener    string `json:"listener"`
				Connections uint64 `json:"connections"`
			} `json:"held_by"`
		} `json:"generations"`
	}
	if err := json.Unmarshal([]byte(out), &view); err != nil || status != 0 {
		t.Fatalf("exit %d, %v: %s", status, err, out)
	}
	if view.Total.Requests != 8 || view.Total.Connections < 1 || view.Total.Serving != 1 || len(view.Workers) == 0 {
		t.Errorf("8 requests were made and a connection is held: %s", out)
	}
	if len(view.Generations) == 1 && view.Generations[0].State != "serving, stopped" {
		t.Errorf("a stopped process is shown as %q", view.Generations[0].State)
	}
	if len(view.Generations) != 1 || len(view.Generations[0].Held) != 1 || view.Generations[0].Held[0].Listener != "web" {
		t.Errorf("who holds the generation is not told: %s", out)
	}
	for _, view := range []string{"overview", "clusters", "listeners", "workers", "draining"} {
		if out, status := s.Retinue("top", view, "--interval", "100ms"); status != 0 {
			t.Errorf("top %s: exit %d: %s", view, status, out)
		}
	}
	if out, status := s.Retinue("top", "nonsense"); status != 2 {
		t.Errorf("a view that does not exist is exit %d: %s", status, out)
	}
}
