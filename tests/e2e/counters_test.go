package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"retinue.dev/libs/region"
	"retinue.dev/tests/suite"
)

// watchRegion reads every series of a suite's region again and again, without asking statsd, and fails the test when a
// counter, or a bucket of a histogram, is less than it was. The function that it returns ends it and gives the last reading.
func watchRegion(t *testing.T, s *suite.Suite) func() map[string]uint64 {
	t.Helper()
	dir, err := region.Find(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	reader, err := region.OpenReader(dir, s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]uint64{}
	look := func() error {
		if err := reader.Refresh(); err != nil {
			return err
		}
		for _, g := range reader.Groups() {
			cells := make([]uint64, g.Schema.Cells)
			if err := reader.Read(g, cells); err != nil {
				return err
			}
			for _, f := range g.Schema.Fields {
				name := fmt.Sprintf("%s %s%v%v", g.Schema.Name, f.Name, f.Labels, g.Labels)
				if f.Kind == region.Gauge {
					seen[name] = cells[f.Cell]
					continue
				}
				for i := range f.Cells {
					cell, v := fmt.Sprint(name, " ", i), cells[f.Cell+i]
					if v < seen[cell] {
						return fmt.Errorf("%s fell from %d to %d", cell, seen[cell], v)
					}
					if v > 0 {
						seen[cell] = v
					}
				}
			}
		}
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	var watching sync.WaitGroup
	looks := 0
	watching.Go(func() {
		for ; ctx.Err() == nil; looks++ {
			if err := look(); err != nil {
				t.Errorf("look %d at the region: %v", looks, err)
				return
			}
		}
	})
	end := sync.OnceValue(func() map[string]uint64 {
		cancel()
		watching.Wait()
		if err := look(); err != nil {
			t.Error(err)
		}
		t.Logf("%d looks at %d cells", looks, len(seen))
		reader.Close()
		return seen
	})
	t.Cleanup(func() { end() })
	return end
}

// TestCountersNeverGoBack: while requests go on, each daemon is killed and proxyd upgraded and killed; every counter and
// every bucket is watched all the time, and in the end each answered request was counted.
func TestCountersNeverGoBack(t *testing.T) {
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") }))
	defer upstream.Close()
	s := suite.Start(t, fmt.Sprintf(`
runtime {
  workers   = 2
  probation = "0s"
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.up }
    }
  }
}
cluster "up" { endpoints = [%q] }
stats { listen = "off" }
`, upstream.Listener.Addr()))
	address := s.Address("web")
	end := watchRegion(t, s)

	var answered, tried atomic.Uint64
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			client := &http.Client{Transport: &http.Transport{}, Timeout: suite.Patience}
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				tried.Add(1)
				// A POST, so that the client does not send it again of its own accord.
				response, err := client.Post("http://"+address+"/", "text/plain", io.NopCloser(strings.NewReader("x")))
				if err != nil {
					continue // a killed proxyd's own requests fail
				}
				if _, err := io.Copy(io.Discard, response.Body); err == nil && response.StatusCode == 200 {
					answered.Add(1)
				}
				response.Body.Close()
			}
		})
	}
	more := func() {
		t.Helper()
		from := answered.Load()
		s.Eventually("requests are answered", func() error {
			if n := answered.Load(); n < from+200 {
				return fmt.Errorf("%d of 200", n-from)
			}
			return nil
		})
	}
	more()
	for _, daemon := range []string{"statsd", "configd", "restartd"} {
		s.Kill(daemon)
		more()
		s.Eventually(daemon+" is back", func() error {
			if s.PID(daemon) == 0 {
				return fmt.Errorf("it does not run")
			}
			return nil
		})
	}
	s.AwaitServing()
	for range 2 {
		s.Eventually("an upgrade is done", func() error {
			if out, status := s.Retinue("upgrade"); status != 0 {
				return fmt.Errorf("exit %d: %s", status, out)
			}
			return nil
		})
		more()
	}
	s.Kill("proxyd")
	more()
	// A fold in which statsd dies, too: the dead generation's sheets are counted once all the same.
	s.Kill("proxyd")
	s.Kill("statsd")
	more()
	s.AwaitServing()

	// What lives is held by a gauge, what died is not.
	stop()
	clients.Wait()
	held, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if _, err := fmt.Fprintf(held, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := held.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	answered.Add(1)
	tried.Add(1)
	var last map[string]uint64
	s.Eventually("the dead are folded, their gauges gone", func() error {
		dir, err := region.Find(s.Dir)
		if err != nil {
			return err
		}
		reader, err := region.OpenReader(dir, s.Dir)
		if err != nil {
			return err
		}
		defer reader.Close()
		for _, w := range reader.Writers() {
			if !w.Live {
				return fmt.Errorf("the sheet of worker %d of generation %d is not folded", w.Worker, w.Generation)
			}
		}
		for _, g := range reader.Groups() {
			if g.Schema.Name != "listener" {
				continue
			}
			cells := make([]uint64, g.Schema.Cells)
			if err := reader.Read(g, cells); err != nil {
				return err
			}
			for _, f := range g.Schema.Fields {
				if f.Name == "downstream_cx_active" && cells[f.Cell] != 1 {
					return fmt.Errorf("%d connections are open, 1 is", cells[f.Cell])
				}
			}
		}
		return nil
	})
	last = end()
	counted, times := last["http downstream_rq_total[][{listener web}] 0"], uint64(0)
	for i := range region.HistogramCells - region.HistogramZero {
		times += last[fmt.Sprint("http downstream_rq_time[][{listener web}] ", region.HistogramZero+i)]
	}
	if counted < answered.Load() || counted > tried.Load() {
		t.Errorf("%d requests are counted, %d were answered and %d tried", counted, answered.Load(), tried.Load())
	}
	if ok := last["http downstream_rq_xx[{response_code_class 2}][{listener web}] 0"]; ok < answered.Load() || ok > counted {
		t.Errorf("%d answers of class 2 are counted, %d came", ok, answered.Load())
	}
	if times < answered.Load() || times > counted {
		t.Errorf("the histogram holds %d requests, %d were answered", times, answered.Load())
	}
	t.Logf("%d tried, %d answered, %d counted, %d in the histogram", tried.Load(), answered.Load(), counted, times)
}
