package explain

import (
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

// TestExplainPriority: a route's priority is told, and which breaker bounds its requests.
func TestExplainPriority(t *testing.T) {
	running := compiled(t, `listener "web" {
  address = ["127.0.0.1:8080"]
  http {
    virtual_host "x" {
      domains = ["*"]
      route "/pay" {
        cluster  = cluster.both
        priority = "high"
      }
      route "/urgent" {
        cluster  = cluster.plain
        priority = "high"
      }
      route "/*" { cluster = cluster.both }
    }
  }
}
cluster "both" {
  endpoints = ["10.0.0.1:80"]
  circuit_breaker {
    max_requests = 500
    high {
      max_requests          = 50
      retry_budget          = 20
      min_retry_concurrency = 5
    }
  }
}
cluster "plain" {
  endpoints = ["10.0.0.2:80"]
}
`)
	type told struct {
		priority, subject, breaker string
		line, at                   uint32 // of the priority, of the breaker
	}
	for _, test := range []struct {
		path string
		want told
	}{
		{"/pay", told{"high", "high", "1024 connections, 1024 pending, 50 requests, 20 % (5 at least) retries", 6, 22}},
		{"/urgent", told{"high", "high", "1024 connections, 1024 pending, 1024 requests, 3 retries", 10, 29}},
		{"/else", told{"", "", "1024 connections, 1024 pending, 500 requests, 3 retries", 0, 20}},
	} {
		reply, err := Request(running, nil, &configv1.ExplainRequest{Method: "GET", Url: "http://a:8080" + test.path})
		if err != nil {
			t.Fatal(err)
		}
		var got told
		for _, s := range reply.GetSteps() {
			switch s.GetWhat() {
			case "priority":
				got.priority, got.line = s.GetName(), s.GetSource().GetLine()
			case "breaker":
				got.subject, got.breaker, got.at = s.GetName(), s.GetReason(), s.GetSource().GetLine()
			}
		}
		if got != test.want {
			t.Errorf("%s: told %+v, want %+v", test.path, got, test.want)
		}
	}
}
