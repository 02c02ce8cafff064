package explain

import (
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

const policies = `filter "ip" "office" {
  allow = ["10.0.0.0/8"]
  deny  = ["10.9.0.0/16"]
}
filter "ip" "inner" { deny = ["10.1.2.0/24"] }
filter "rate_limit" "newcomers" {
  limit = "100/s"
  key   = ["source"]
}
filter "rbac" "staff" {
  action = "deny"
  policy "not-from-outside" {
    principal { not_source_cidrs = ["10.0.0.0/8"] }
  }
  shadow {
    policy "everybody" {}
  }
}
filter "ext_authz" "login" {
  cluster = cluster.login
  timeout = "1s"
  cache {
    key = ["%REQ(COOKIE)%"]
    ttl = "5s"
  }
}
filter "fault" "drill" {
  delay {
    time  = "100ms"
    share = "5%"
  }
}
filter "compress" "small" {}
filter "body_limit" "small" { request = "1MiB" }
listener "web" {
  address = ["127.0.0.1:8080"]
  filters = [filter.ip.office, filter.rate_limit.newcomers]
  filter_chain "all" {
    http {
      filters = [filter.rbac.staff, filter.compress.small]
      virtual_host "*" {
        filters = [filter.rbac.staff]
        route "/api/*" {
          cluster     = cluster.api
          subset      = { version = "v2" }
          add_filters = [filter.ext_authz.login, filter.global_rate_limit.a, filter.fault.drill, filter.body_limit.small]
          retry {
            on              = ["5xx", "429"]
            attempts        = 2
            per_try_timeout = "1s"
            back_off        = "50ms"
            hedge_on_per_try_timeout = true
            response_header "x-again" { present = true }
          }
          hash_on "header" {
            name     = "x-user"
            terminal = true
          }
          hash_on "cookie" {
            name = "sid"
            ttl  = "1h"
          }
        }
        route "/any/*" { cluster = cluster.api }
        route "/stay/*" { cluster = cluster.stay }
        route "/office" {
          respond { body = "ok" }
          filters = [filter.compress.small, filter.ip.inner]
        }
      }
    }
  }
}
listener "db" {
  address = ["127.0.0.1:5432"]
  filters = [filter.rbac.staff]
  tcp {
    cluster = cluster.stay
    hash_on = "source"
  }
}
cluster "api" {
  endpoints = [
    { address = "10.0.0.1:80", metadata = { version = "v1" } },
    { address = "10.0.0.2:80", metadata = { version = "v2" } },
    { address = "10.0.1.1:80", priority = 1 },
  ]
  balance         = "ring_hash"
  panic_threshold = "20%"
  connect_timeout = "250ms"
  ring_hash { min_size = 4096 }
  hash_balance_factor = 150
  subset {
    keys     = ["version"]
    fallback = "any"
  }
  health_check "http" {
    path     = "/ready"
    interval = "2s"
  }
  outlier_detection { consecutive_5xx = 3 }
  circuit_breaker {
    max_requests = 10
    retry_budget = 20
  }
}
cluster "stay" {
  endpoints = ["10.0.2.1:80"]
  balance   = "maglev"
}
cluster "login" { endpoints = ["10.0.3.1:80"] }
cluster "even" {
  endpoints = [{ address = "10.0.4.1:80", locality = "a" }, { address = "10.0.4.2:80", locality = "b" }]
  balance   = "least_request"
  fail_traffic_on_panic = true
  locality "a" { weight = 3 }
  locality "b" { weight = 1 }
  slow_start {
    window     = "30s"
    aggression = 1500
  }
  health_check "tcp" {}
}
listener "even" {
  address = ["127.0.0.1:9000"]
  proxy_protocol { trusted = ["127.0.0.1/32"] }
  http {
    virtual_host "*" {
      route "/*" { cluster = cluster.even }
    }
  }
}
cluster "limits" {
  endpoints = ["10.0.3.1:8081"]
  protocol  = "http2"
}
filter "global_rate_limit" "a" {
  cluster  = cluster.limits
  domain   = "shop"
  enforced = "5%"
  descriptor {
    action "generic_key" { descriptor_value = "api" }
    action "remote_address" {}
  }
  descriptor {
    action "request_headers" {
      header_name    = "x-user"
      descriptor_key = "user"
    }
  }
}
`

// TestExplainPolicies holds what is told of filters, balancing and resilience.
func TestExplainPolicies(t *testing.T) {
	running := compiled(t, policies)
	for _, c := range []struct {
		name    string
		request *configv1.ExplainRequest
		want    string
	}{
		{"consistent hash", &configv1.ExplainRequest{Method: "GET", Url: "http://a:8080/api/x", From: "10.1.1.1"}, `
listener  ✓ web                   listens on 127.0.0.1:8080  (main.hcl:35)
filter      ip.office             of the connection: allow 10.0.0.0/8; deny 10.9.0.0/16  (main.hcl:1)
            rate_limit.newcomers  of the connection: 100 in 1s, burst 100 for each source  (main.hcl:6)
path        /api/x
host      ✓ *                     the domain * matches a  (main.hcl:41)
route     ✓ /api/*  (main.hcl:43)
filter      rbac.staff            deny not-from-outside; shadow allow everybody  (main.hcl:10)
            ext_authz.login       asks the cluster login by HTTP within 1s; when it fails: 403; decisions kept for 5s  (main.hcl:19)
            global_rate_limit.a   asks the cluster limits within 20ms about (generic_key, remote_address), (user) of shop; when it fails: open; enforced for 5 %  (main.hcl:137)
            fault.drill           delays 5 % by 100ms  (main.hcl:27)
            body_limit.small      requests of at most 1048576 bytes  (main.hcl:34)
cluster     api                   10.0.0.1:80, 10.0.0.2:80, 10.0.1.1:80 by ring_hash, http1  (main.hcl:82)
balance     ring_hash             4096 to 8388608 places  (main.hcl:91)
            key                   header x-user (the last that is looked at if there is a key), cookie sid (given for 1h0m0s)  (main.hcl:43)
            bounded               an endpoint has at most 150 % of its fair part  (main.hcl:92)
            priorities            0: 2 endpoints, 1: 1 endpoint; over-provisioning 1.4  (main.hcl:83)
            panic                 below 20 % everybody is asked  (main.hcl:89)
            subset                version=v2: 1 endpoint  (main.hcl:43)
health      http /ready           every 2s within 1s; 2 passed bring it back, 3 failed take it out  (main.hcl:97)
outliers                          3 answers of 5xx in a row, success 1.9 deviations below the mean; ejected for 30s to 5m0s, at most 10 %  (main.hcl:101)
breaker                           1024 connections, 1024 pending, 10 requests, 20 % (3 at least) retries  (main.hcl:102)
connect                           within 250ms; idle 1h0m0s  (main.hcl:90)
retry                             on 5xx, 429, 1 response header, 2 after the first try, each within 1s or hedged: it goes on beside the next, pauses of up to 50ms to 500ms  (main.hcl:43)
timeouts                          route 15s, idle 5m0s, whole stream off  (main.hcl:43)
`},
		{"no key", &configv1.ExplainRequest{Method: "GET", Url: "http://a:8080/any/x", From: "10.1.1.1"}, `
listener  ✓ web                   listens on 127.0.0.1:8080  (main.hcl:35)
filter      ip.office             of the connection: allow 10.0.0.0/8; deny 10.9.0.0/16  (main.hcl:1)
            rate_limit.newcomers  of the connection: 100 in 1s, burst 100 for each source  (main.hcl:6)
path        /any/x
host      ✓ *                     the domain * matches a  (main.hcl:41)
route     ✗ /api/*                the path /any/x does not begin with /api/  (main.hcl:43)
          ✓ /any/*  (main.hcl:64)
filter      rbac.staff            deny not-from-outside; shadow allow everybody  (main.hcl:10)
cluster     api                   10.0.0.1:80, 10.0.0.2:80, 10.0.1.1:80 by ring_hash, http1  (main.hcl:82)
balance     ring_hash             4096 to 8388608 places  (main.hcl:91)
            key                   random: the route has no hash_on  (main.hcl:64)
            bounded               an endpoint has at most 150 % of its fair part  (main.hcl:92)
            priorities            0: 2 endpoints, 1: 1 endpoint; over-provisioning 1.4  (main.hcl:83)
            panic                 below 20 % everybody is asked  (main.hcl:89)
health      http /ready           every 2s within 1s; 2 passed bring it back, 3 failed take it out  (main.hcl:97)
outliers                          3 answers of 5xx in a row, success 1.9 deviations below the mean; ejected for 30s to 5m0s, at most 10 %  (main.hcl:101)
breaker                           1024 connections, 1024 pending, 10 requests, 20 % (3 at least) retries  (main.hcl:102)
connect                           within 250ms; idle 1h0m0s  (main.hcl:90)
timeouts                          route 15s, idle 5m0s, whole stream off  (main.hcl:64)
`},
		{"refused connection", &configv1.ExplainRequest{Method: "GET", Url: "http://a:8080/stay/x", From: "10.9.1.1"}, `
listener  ✓ web                listens on 127.0.0.1:8080  (main.hcl:35)
filter    ✗ ip.office          of the connection: the source 10.9.1.1 is in deny: 10.9.0.0/16  (main.hcl:1)
answer      connection closed  a filter of the connection refuses it
`},
		{"refused request", &configv1.ExplainRequest{Method: "GET", Url: "http://a:8080/office", From: "10.1.2.3"}, `
listener  ✓ web                   listens on 127.0.0.1:8080  (main.hcl:35)
filter      ip.office             of the connection: allow 10.0.0.0/8; deny 10.9.0.0/16  (main.hcl:1)
            rate_limit.newcomers  of the connection: 100 in 1s, burst 100 for each source  (main.hcl:6)
path        /office
host      ✓ *                     the domain * matches a  (main.hcl:41)
route     ✗ /api/*                the path /office does not begin with /api/  (main.hcl:43)
          ✗ /any/*                the path /office does not begin with /any/  (main.hcl:64)
          ✗ /stay/*               the path /office does not begin with /stay/  (main.hcl:65)
          ✓ /office  (main.hcl:66)
filter      compress.small        gzip  (main.hcl:33)
          ✗ ip.inner              the source 10.1.2.3 is in deny: 10.1.2.0/24  (main.hcl:5)
answer      403                   the filter refuses it  (main.hcl:5)
`},
		{"unknown source", &configv1.ExplainRequest{Method: "GET", Url: "http://a:8080/stay/x", From: "192.0.2.1"}, `
listener  ✓ web                listens on 127.0.0.1:8080  (main.hcl:35)
filter    ✗ ip.office          of the connection: the source 192.0.2.1 is not in allow: 10.0.0.0/8  (main.hcl:1)
answer      connection closed  a filter of the connection refuses it
`},
		{"no route", &configv1.ExplainRequest{Method: "GET", Url: "http://a:8080/", From: "10.1.1.1"}, `
listener  ✓ web                   listens on 127.0.0.1:8080  (main.hcl:35)
filter      ip.office             of the connection: allow 10.0.0.0/8; deny 10.9.0.0/16  (main.hcl:1)
            rate_limit.newcomers  of the connection: 100 in 1s, burst 100 for each source  (main.hcl:6)
path        /
host      ✓ *                     the domain * matches a  (main.hcl:41)
route     ✗ /api/*                the path / does not begin with /api/  (main.hcl:43)
          ✗ /any/*                the path / does not begin with /any/  (main.hcl:64)
          ✗ /stay/*               the path / does not begin with /stay/  (main.hcl:65)
          ✗ /office               the path is /, not /office  (main.hcl:66)
filter      rbac.staff            deny not-from-outside; shadow allow everybody  (main.hcl:10)
answer      404                   no route of the virtual host matches  (main.hcl:41)
`},
		{"tcp", &configv1.ExplainRequest{Method: "GET", Url: "http://a:5432/"}, `
listener  ✓ db          listens on 127.0.0.1:5432  (main.hcl:74)
filter      rbac.staff  of the connection: deny not-from-outside; shadow allow everybody  (main.hcl:10)
tcp         db          bytes pass; nothing of the request is looked at  (main.hcl:74)
cluster     stay        10.0.2.1:80 by maglev, http1  (main.hcl:107)
balance     maglev      a table of 65537 places  (main.hcl:107)
            key         source  (main.hcl:74)
breaker                 1024 connections, 1024 pending, 1024 requests, 3 retries  (main.hcl:107)
connect                 within 5s; idle 1h0m0s  (main.hcl:107)
timeouts                idle 1h0m0s, 1 attempt to connect  (main.hcl:74)
`},
		{"localities", &configv1.ExplainRequest{Method: "GET", Url: "http://a:9000/"}, `
listener  ✓ even        listens on 127.0.0.1:9000  (main.hcl:124)
proxy       protocol    the header of 127.0.0.1/32 tells the client's address  (main.hcl:126)
path        /
host      ✓ *           the domain * matches a  (main.hcl:128)
route     ✓ /*  (main.hcl:129)
cluster     even        10.0.4.1:80, 10.0.4.2:80 by least_request, http1  (main.hcl:112)
balance     panic       below 50 % nobody is asked  (main.hcl:112)
            locality    weights a 3, b 1  (main.hcl:116)
            slow_start  from 10 % over 30s, aggression 1.5  (main.hcl:118)
health      tcp         every 5s within 1s; 2 passed bring it back, 3 failed take it out  (main.hcl:122)
breaker                 1024 connections, 1024 pending, 1024 requests, 3 retries  (main.hcl:112)
connect                 within 5s; idle 1h0m0s  (main.hcl:112)
timeouts                route 15s, idle 5m0s, whole stream off  (main.hcl:129)
`},
	} {
		t.Run(c.name, func(t *testing.T) {
			reply, err := Request(running, nil, c.request)
			if err != nil {
				t.Fatal(err)
			}
			if got := "\n" + Text(reply.GetSteps()); squeeze(got) != squeeze(c.want) {
				t.Errorf("got:%s\nwant:%s", got, c.want)
			}
		})
	}
}
