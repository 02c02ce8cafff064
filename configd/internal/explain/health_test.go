package explain

import (
	"strings"
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

// TestExplainHealth: when endpoints are asked, and what takes them out.
func TestExplainHealth(t *testing.T) {
	running := compiled(t, `listener "web" {
  address = ["127.0.0.1:8080"]
  http {
    virtual_host "x" {
      domains = ["*"]
      route "/a" { cluster = cluster.a }
      route "/b" { cluster = cluster.b }
    }
  }
}
cluster "a" {
  endpoints = ["10.0.0.1:80"]
  health_check "http" {
    retriable           = ["502-504"]
    unhealthy_interval  = "1s"
    no_traffic_interval = "60s"
  }
  outlier_detection {
    split_external_local_origin_errors = true
    always_eject_one_host              = false
    success_rate_stdev_factor          = 0
    enforcing { consecutive_5xx = 50 }
  }
}
cluster "b" {
  endpoints = ["10.0.0.1:80"]
  health_check "tcp" {
    send    = "PING"
    receive = ["+PONG"]
  }
}
`)
	for path, want := range map[string][]string{
		"/a": {
			"every 5s, 1s after a failure, 1m0s without traffic within 1s; 2 passed bring it back, 3 failed take it out; 3 statuses count towards that, others decide",
			"5 answers of 5xx in a row, 5 without an answer in a row, which are no 5xx; ejected for 30s to 5m0s, at most 10 % and not one more, not everything that is found",
		},
		"/b": {"every 5s within 1s; 2 passed bring it back, 3 failed take it out; sends 4 bytes and waits for 1 piece"},
	} {
		reply, err := Request(running, nil, &configv1.ExplainRequest{Method: "GET", Url: "http://a:8080" + path})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range reply.GetSteps() {
			if s.GetWhat() == "health" || s.GetWhat() == "outliers" {
				got = append(got, s.GetReason())
			}
		}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s:\n%s\nwant\n%s", path, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}
