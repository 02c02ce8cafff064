package e2e

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const limitsConfig = `
runtime { workers = 4 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/requests" { cluster = cluster.requests }
      route "/connections" { cluster = cluster.connections }
    }
  }
}
listener "door" {
  address         = ["127.0.0.1:0"]
  max_connections = 8
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.app }
    }
  }
}
cluster "requests" {
  endpoints = [%[1]q]
  circuit_breaker { max_requests = 8 }
}
cluster "connections" {
  endpoints = [%[1]q]
  circuit_breaker { max_connections = 8 }
}
cluster "app" { endpoints = [%[1]q] }
stats { listen = "off" }
`

// TestLimitsOverWorkers has a crowd come at once to a process of four workers: a limit is one for all of them. Each may admit one too
// many at the same moment, and a worker always has one connection to a cluster.
func TestLimitsOverWorkers(t *testing.T) {
	const crowd, limit, workers = 64, 8, 4
	var arrived atomic.Int64
	var release atomic.Pointer[chan struct{}]
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		hold := *release.Load()
		arrived.Add(1)
		<-hold
		w.Write([]byte("ok"))
	}))
	t.Cleanup(app.Close)
	s := suite.Start(t, fmt.Sprintf(limitsConfig, strings.TrimPrefix(app.URL, "http://")))

	// come sends the crowd to a path of a listener; settled tells when nothing moves any more while the answers are held back. It
	// answers how many requests were at the application then, and how the clients fared in the end.
	come := func(t *testing.T, listener, path string, settled func(refused int64) bool) (held, served, refused int64) {
		t.Helper()
		arrived.Store(0)
		hold := make(chan struct{})
		release.Store(&hold)
		address := s.Address(listener)
		var fine, over atomic.Int64
		var clients sync.WaitGroup
		for range crowd {
			clients.Go(func() {
				c, err := net.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * suite.Patience))
				fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: a\r\n\r\n", path)
				switch r, err := http.ReadResponse(bufio.NewReader(c), nil); {
				case err != nil || r.StatusCode == 503:
					over.Add(1)
				case r.StatusCode == 200:
					fine.Add(1)
				default:
					t.Errorf("status %d", r.StatusCode)
				}
			})
		}
		s.In(t).Eventually("the crowd stands still", func() error {
			if !settled(over.Load()) {
				return fmt.Errorf("%d are held, %d refused", arrived.Load(), over.Load())
			}
			return nil
		})
		held = arrived.Load()
		close(hold)
		clients.Wait()
		return held, fine.Load(), over.Load()
	}
	all := func(refused int64) bool { return arrived.Load()+refused == crowd }

	t.Run("requests of a cluster", func(t *testing.T) {
		held, served, refused := come(t, "web", "/requests", all)
		if held < limit || held > limit+workers-1 || served != held || served+refused != crowd {
			t.Errorf("%d requests at a time at a limit of %d; %d were served and %d refused", held, limit, served, refused)
		}
		s.In(t).AwaitStat(float64(refused), "retinue_cluster_upstream_rq_pending_overflow", "cluster=requests")
	})
	t.Run("connections of a cluster", func(t *testing.T) {
		held, served, refused := come(t, "web", "/connections", func(int64) bool {
			waiting := s.In(t).Stat("retinue_cluster_upstream_rq_pending_active", "cluster=connections")
			return arrived.Load() >= limit && arrived.Load()+int64(waiting) == crowd
		})
		if most := int64(limit + 2*(workers-1)); held < limit || held > most || served != crowd || refused != 0 {
			t.Errorf("%d connections at a time at a limit of %d; %d were served and %d refused", held, limit, served, refused)
		}
	})
	t.Run("connections of a listener", func(t *testing.T) {
		held, served, refused := come(t, "door", "/", all)
		if held < limit || held > limit+workers-1 || served != held || served+refused != crowd {
			t.Errorf("%d connections at a time at a limit of %d; %d were served and %d refused", held, limit, served, refused)
		}
		s.In(t).AwaitStat(float64(refused), "retinue_listener_downstream_cx_overflow", "listener=door")
	})
	for _, gauge := range []string{"retinue_cluster_upstream_rq_active", "retinue_cluster_upstream_rq_pending_active"} {
		s.Eventually(gauge+" is nought", func() error {
			if n := s.Stat(gauge); n != 0 {
				return fmt.Errorf("it is %v", n)
			}
			return nil
		})
	}
}
