package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"retinue.dev/tests/suite"
)

// TestBoundedHashing: a key that everybody asks for at once has more homes than one, and none of them has more than its bound.
func TestBoundedHashing(t *testing.T) {
	const requests = 30
	release := make(chan struct{})
	var held [3]atomic.Int64
	var endpoints []string
	for i := range held {
		up := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			held[i].Add(1)
			<-release
		}))
		defer up.Close()
		endpoints = append(endpoints, fmt.Sprintf("%q", strings.TrimPrefix(up.URL, "http://")))
	}
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 1 }
stats { listen = "off" }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "*" {
      route "/*" {
        cluster = cluster.app
        timeout = "0"
        hash_on "header" { name = "x-user" }
      }
    }
  }
}
cluster "app" {
  endpoints           = [%s]
  balance             = "maglev"
  hash_balance_factor = 125
}
`, strings.Join(endpoints, ", ")))
	counts := func() []int64 { return []int64{held[0].Load(), held[1].Load(), held[2].Load()} }
	var asked sync.WaitGroup
	for n := range int64(requests) {
		asked.Go(func() {
			r, _ := http.NewRequest(http.MethodGet, "http://"+s.Address("web"), nil)
			r.Header.Set("X-User", "everybody")
			answer, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Error(err)
				return
			}
			answer.Body.Close()
			if answer.StatusCode != 200 {
				t.Errorf("answered %s", answer.Status)
			}
		})
		s.Eventually("the request is under way", func() error { // one that waits for its connection is not counted yet
			if now := counts(); now[0]+now[1]+now[2] <= n {
				return fmt.Errorf("%v", now)
			}
			return nil
		})
	}
	const most = ((requests*125+99)/100+2)/3 + 1 // a third of what is allowed over all, and the one that was let in last
	if now := counts(); slices.Max(now) > most || slices.Min(now) == 0 {
		t.Errorf("the endpoints have %v of %d requests, each may have %d", now, requests, most)
	}
	close(release)
	asked.Wait()
}
