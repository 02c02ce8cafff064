package explain

import (
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

// TestExplainTries: when a try ends and when the next one begins, and who is told of them.
func TestExplainTries(t *testing.T) {
	running := compiled(t, `listener "web" {
  address = ["127.0.0.1:8080"]
  http {
    envoy_headers = true
    virtual_host "x" {
      domains                           = ["*"]
      include_request_attempt_count     = true
      include_attempt_count_in_response = true
      route "/*" {
        cluster = cluster.api
        retry {
          on                                = ["429"]
          per_try_idle_timeout              = "500ms"
          host_selection_retry_max_attempts = 5
          omit_host_metadata                = { canary = "true" }
          rate_limited_back_off {
            reset_header "retry-after" {}
          }
        }
      }
    }
  }
}
cluster "api" { endpoints = ["10.0.0.1:80"] }
`)
	reply, err := Request(running, nil, &configv1.ExplainRequest{Method: "GET", Url: "http://a:8080/"})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint32{}
	for _, s := range reply.GetSteps() {
		got[s.GetWhat()+" "+s.GetName()+": "+s.GetReason()] = s.GetSource().GetLine()
	}
	for text, line := range map[string]uint32{
		"retry : on 429, 1 after the first try, without a byte for at most 500ms, pauses of up to 25ms to 250ms or what retry-after asks for, at most 5m0s, of another host without canary = true within 5 looks": 9,
		"request attempts: x-envoy-attempt-count says which try it is":                                                              5,
		"response attempts: x-envoy-attempt-count says how many tries there were":                                                   5,
		"request envoy: x-envoy-expected-rq-timeout-ms says how long it may take, x-envoy-original-path what a rewrite has changed": 3,
		"response envoy: x-envoy-upstream-service-time says how long it took":                                                       3,
	} {
		if at, told := got[text]; !told || at != line {
			t.Errorf("%q is told: %v, of line %d, want %d\n%v", text, told, at, line, got)
		}
	}
}
