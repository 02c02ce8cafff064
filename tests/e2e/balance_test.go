package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"retinue.dev/tests/suite"
)

// fetch asks once and tells who answered, and what cookie it set.
func fetch(t *testing.T, client *http.Client, url string, edit func(*http.Request)) (who, cookie string) {
	t.Helper()
	r, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(r)
	}
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != 200 {
		return fmt.Sprint(response.StatusCode), ""
	}
	return string(body), response.Header.Get("Set-Cookie")
}

func TestConsistentHashing(t *testing.T) {
	a, b, c := startMember(t, "a"), startMember(t, "b"), startMember(t, "c")
	for _, policy := range []string{"ring_hash", "maglev"} {
		t.Run(policy, func(t *testing.T) {
			s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    use_remote_address   = false
    virtual_host "all" {
      domains = ["*"]
      route "/header" {
        cluster = cluster.app
        hash_on "header" { name = "x-user" }
      }
      route "/query" {
        cluster = cluster.app
        hash_on "query" { name = "id" }
      }
      route "/source" {
        cluster = cluster.app
        hash_on "source" {}
      }
      route "/first" {
        cluster = cluster.app
        hash_on "header" {
          name     = "x-user"
          terminal = true
        }
        hash_on "query" { name = "id" }
      }
      route "/cookie" {
        cluster = cluster.app
        hash_on "cookie" {
          name = "place"
          ttl  = "1h"
          path = "/x"
        }
      }
      route "/none" { cluster = cluster.app }
    }
  }
}
listener "raw" {
  address = ["127.0.0.1:0"]
  tcp {
    cluster = cluster.app
    hash_on = "source"
  }
}
cluster "app" {
  balance   = %q
  endpoints = [%q, %q, %q]
}
stats { listen = "off" }
`, policy, a.address, b.address, c.address))
			url := "http://" + s.Address("web")
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // so that both workers are asked
			// same asks for a key several times and tells who has it; every key must have one home in all workers.
			same := func(path string, edit func(*http.Request)) string {
				t.Helper()
				home, _ := fetch(t, client, url+path, edit)
				for range 5 {
					if who, _ := fetch(t, client, url+path, edit); who != home {
						t.Errorf("%s: %s and %s have the same key", path, home, who)
					}
				}
				return home
			}
			homes := map[string]bool{}
			const keys = 40 // so many that they have three homes, wherever the ports of the three put them
			for i := range keys {
				key := fmt.Sprint("user-", i)
				home := same("/header", func(r *http.Request) { r.Header.Set("X-User", key) })
				homes[home] = true
				if other := same("/query?a=b&id="+key, nil); other != home {
					t.Errorf("%s: %s by its header, %s by the query", key, home, other)
				}
				first, _ := fetch(t, client, url+"/first?id="+fmt.Sprint(i), func(r *http.Request) { r.Header.Set("X-User", key) })
				if first != home {
					t.Errorf("%s: a terminal header was not the end: %s instead of %s", key, first, home)
				}
			}
			if len(homes) != 3 {
				t.Errorf("%d keys have %d homes, want 3", keys, len(homes))
			}
			source := same("/source", nil)
			drawn := map[string]bool{}
			for i := 0; len(drawn) < 2; i++ {
				who, _ := fetch(t, client, url+"/none", nil)
				if drawn[who] = true; i > 100 {
					t.Fatal("requests without a key all go to one host")
				}
			}
			who, cookie := fetch(t, client, url+"/cookie", nil)
			pair, rest, _ := strings.Cut(cookie, ";")
			if name, value, _ := strings.Cut(pair, "="); name != "place" || len(value) != 16 || rest != " Max-Age=3600; Path=/x; HttpOnly" {
				t.Errorf("Set-Cookie: %s", cookie)
			}
			if again := same("/cookie", func(r *http.Request) { r.Header.Set("Cookie", "a=b; "+pair) }); again != who {
				t.Errorf("the cookie of %s leads to %s", who, again)
			}
			if _, more := fetch(t, client, url+"/cookie", func(r *http.Request) { r.Header.Set("Cookie", pair) }); more != "" {
				t.Errorf("a client with a cookie is given another one: %s", more)
			}
			raw := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "tcp", s.Address("raw"))
			}}}
			if who, _ := fetch(t, raw, "http://raw/", nil); who != source {
				t.Errorf("the source's key is at %s for tcp and at %s for http", who, source)
			}
		})
	}
}

// balanced is a suite over three members with more in their cluster.
func balanced(t *testing.T, members [3]*member, settings string) (s *suite.Suite, url string) {
	t.Helper()
	s = suite.Start(t, fmt.Sprintf(healthConfig, members[0].address, members[1].address, members[2].address, settings))
	return s, "http://" + s.Address("web") + "/"
}

// expectServed waits until requests are answered by exactly these.
func expectServed(t *testing.T, s *suite.Suite, url string, want ...string) {
	t.Helper()
	s.Eventually("answers by "+strings.Join(want, ", "), func() error {
		got := answers(t, url, 12)
		for _, name := range want {
			if got[name+" 200"] == 0 {
				return fmt.Errorf("got %v", got)
			}
		}
		if len(got) != len(want) {
			return fmt.Errorf("got %v", got)
		}
		return nil
	})
}

// TestDrainEndpoint: an endpoint that is drained by command gets nothing, over reloads, a restart of configd and an upgrade.
func TestDrainEndpoint(t *testing.T) {
	a, b, c := startMember(t, "a"), startMember(t, "b"), startMember(t, "c")
	s, url := balanced(t, [3]*member{a, b, c}, "")
	expectServed(t, s, url, "a", "b", "c")
	command := func(want int, says string, args ...string) {
		t.Helper()
		if out, code := s.Retinue(args...); code != want || !strings.Contains(out, says) {
			t.Errorf("retinue %s: exit %d: %s", strings.Join(args, " "), code, out)
		}
	}
	command(1, "it has "+a.address, "endpoint", "drain", "app", "127.0.0.1:1")
	command(1, "no cluster", "endpoint", "drain", "nope", a.address)
	command(0, "drained\n", "endpoint", "drain", "app", b.address)
	command(0, "drained already", "endpoint", "drain", "app", b.address)
	expectServed(t, s, url, "a", "c")
	command(0, b.address+" drained", "status")
	s.AwaitStat(1, "retinue_cluster_membership_excluded", "cluster=app")
	served := b.requests.Load()

	s.Write(strings.Replace(fmt.Sprintf(healthConfig, a.address, b.address, c.address, ""), "runtime { workers = 2 }", "runtime {\n  workers    = 2\n  drain_time = \"1s\"\n}", 1))
	command(0, "", "reload")
	answers(t, url, 12)
	command(0, "", "upgrade")
	answers(t, url, 12)
	s.Kill("configd")
	s.Eventually("configd is back", func() error {
		if _, code := s.Retinue("status"); code != 0 {
			return fmt.Errorf("exit %d", code)
		}
		return nil
	})
	answers(t, url, 12)
	if now := b.requests.Load(); now != served {
		t.Errorf("the drained endpoint got %d requests", now-served)
	}
	command(0, "undrained\n", "endpoint", "undrain", "app", b.address)
	expectServed(t, s, url, "a", "b", "c")
	command(0, "drained", "endpoint", "drain", "app", a.address)
	command(0, "drained", "endpoint", "drain", "app", b.address)
	command(0, "drained", "endpoint", "drain", "app", c.address)
	s.Eventually("nobody is left", func() error {
		if got := answers(t, url, 3); got["no healthy upstream 503"] != 3 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
}

// TestHealthIsInherited: a generation that begins does not ask who failed its checks in the one before.
func TestHealthIsInherited(t *testing.T) {
	a, b, c := startMember(t, "a"), startMember(t, "b"), startMember(t, "c")
	b.check.Store(503)
	s, url := balanced(t, [3]*member{a, b, c}, `health_check "http" {
    path      = "/healthz"
    interval  = "20ms"
    unhealthy = 1
  }`)
	expectServed(t, s, url, "a", "c")
	s.Eventually("the verdict is kept", func() error {
		found, err := filepath.Glob(filepath.Join(s.Dir, "state", "proxyd*", "health.json"))
		if err != nil || len(found) == 0 {
			found, err = filepath.Glob(filepath.Join(s.Dir, "*", "*", "health.json"))
		}
		if err != nil || len(found) == 0 {
			return fmt.Errorf("no file: %v", err)
		}
		text, err := os.ReadFile(found[0])
		if err != nil || !strings.Contains(string(text), `"failing":true`) {
			return fmt.Errorf("%s: %v", text, err)
		}
		return nil
	})
	served := b.requests.Load()
	for range 2 {
		if out, code := s.Retinue("upgrade"); code != 0 {
			t.Fatalf("upgrade: exit %d: %s", code, out)
		}
		answers(t, url, 12)
	}
	if now := b.requests.Load(); now != served {
		t.Errorf("the ill endpoint got %d requests from generations that had not asked it", now-served)
	}
}

// TestPrioritiesAndSubsets: the second priority takes over when the first is ill, and subsets keep to their metadata.
func TestPrioritiesAndSubsets(t *testing.T) {
	a, b, c := startMember(t, "a"), startMember(t, "b"), startMember(t, "c")
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/v2/*" {
        cluster = cluster.app
        subset  = { version = "v2" }
      }
      route "/v3/*" {
        cluster = cluster.app
        subset  = { version = "v3" }
      }
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "app" {
  endpoints = [
    { address = %q, metadata = { version = "v1" } },
    { address = %q, metadata = { version = "v2" } },
    { address = %q, priority = 1, metadata = { version = "v2" } },
  ]
  health_check "http" {
    path      = "/healthz"
    interval  = "20ms"
    healthy   = 1
    unhealthy = 1
  }
  subset { keys = ["version"] }
}
stats { listen = "off" }
`, a.address, b.address, c.address))
	url := "http://" + s.Address("web")
	expectServed(t, s, url+"/", "a", "b")
	expectServed(t, s, url+"/v2/", "b")
	if got := answers(t, url+"/v3/", 3); got["no healthy upstream 503"] != 3 {
		t.Errorf("a subset that no endpoint is in: %v", got)
	}
	b.check.Store(503)
	expectServed(t, s, url+"/v2/", "c")
	a.check.Store(503)
	expectServed(t, s, url+"/", "c")
	c.check.Store(503)
	expectServed(t, s, url+"/", "a", "b", "c") // all priorities in panic: everybody
	b.check.Store(200)
	expectServed(t, s, url+"/v2/", "b")
}

// TestPreconnect: connections are made ahead of the requests that will need them, within the breaker.
func TestPreconnect(t *testing.T) {
	asked, answer := make(chan net.Conn, 8), make(chan bool)
	app := suite.Upstream(t, func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			asked <- c
			if r.URL.Path == "/held" {
				<-answer
			}
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	})
	s := suite.Start(t, strings.ReplaceAll(`
runtime { workers = 1 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/held" { cluster = cluster.ahead }
      route "/next" { cluster = cluster.ahead }
      route "/*" { cluster = cluster.narrow }
    }
  }
}
cluster "ahead" {
  endpoints        = ["APP"]
  preconnect_ratio = 200
}
cluster "narrow" {
  endpoints        = ["APP"]
  preconnect_ratio = 300
  circuit_breaker { max_connections = 1 }
}
stats { listen = "off" }
`, "APP", app))
	get := func(path string) {
		r, err := http.Get("http://" + s.Address("web") + path)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Errorf("%s: %v, %v", path, r, err)
			return
		}
		r.Body.Close()
	}
	held := make(chan bool)
	go func() { get("/held"); close(held) }()
	<-asked
	s.AwaitStat(2, "retinue_cluster_upstream_cx_total", "cluster=ahead")
	get("/next") // takes the one that is there, and has two more made: four for two
	<-asked
	s.AwaitStat(4, "retinue_cluster_upstream_cx_total", "cluster=ahead")
	close(answer)
	<-held
	get("/narrow")
	<-asked
	s.AwaitStat(1, "retinue_cluster_upstream_cx_total", "cluster=narrow")
	if failed := s.Stat("retinue_cluster_upstream_cx_overflow", "cluster=narrow"); failed != 0 {
		t.Errorf("connections that nobody waits for are counted as %v overflows", failed)
	}
}
