package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

const hedgeConfig = `
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    access_log = access_log.all
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        cluster = cluster.app
        timeout = "0s"
        retry {
          on                       = ["5xx"]
          per_try_timeout          = "50ms"
          back_off                 = "1ms"
          hedge_on_per_try_timeout = true
        }
      }
    }
  }
}
cluster "app" {
  endpoints = [HOSTS]
  protocol  = "PROTOCOL"
  circuit_breaker { max_retries = 1000 }
}
access_log "all" {
  path   = "LOG"
  format = "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\n"
}
stats { listen = "off" }
runtime { workers = 2 }
`

// hedgedHosts are two hosts whose answers the test gives.
type hedgedHosts struct {
	*suite.Suite
	client  *http.Client
	url     string
	mu      sync.Mutex
	arrived map[string]chan *arrival // by path
}

// arrival is one try at a host. gone is closed when the proxy gives it up, or it is answered.
type arrival struct {
	body   string
	answer chan string // the status and the body
	gone   <-chan struct{}
}

func (h *hedgedHosts) at(path string) chan *arrival {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.arrived[path] == nil {
		h.arrived[path] = make(chan *arrival, 8)
	}
	return h.arrived[path]
}

func (h *hedgedHosts) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	a := &arrival{body: string(body), answer: make(chan string), gone: r.Context().Done()}
	h.at(r.URL.Path) <- a
	select {
	case <-a.gone:
	case text := <-a.answer:
		status := http.StatusOK
		fmt.Sscanf(text, "%d ", &status)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text)
	}
}

func newHedgedHosts(t *testing.T, down, up string) *hedgedHosts {
	t.Helper()
	h := &hedgedHosts{arrived: map[string]chan *arrival{}}
	protocols := func(name string) *http.Protocols {
		p := new(http.Protocols)
		p.SetHTTP1(name == "http1")
		p.SetUnencryptedHTTP2(name == "http2")
		return p
	}
	var hosts []string
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: h, Protocols: protocols(up)}
		go func() { _ = server.Serve(l) }()
		t.Cleanup(func() { server.Close() })
		hosts = append(hosts, `"`+l.Addr().String()+`"`)
	}
	dialer := func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			err = c.(*net.TCPConn).SetLinger(0) // a client that leaves does so by RST: FIN alone is half a close
		}
		return c, err
	}
	h.client = &http.Client{Timeout: suite.Patience, Transport: &http.Transport{Protocols: protocols(down), DialContext: dialer}}
	t.Cleanup(h.client.CloseIdleConnections)
	h.Suite = suite.Start(t, strings.NewReplacer("HOSTS", strings.Join(hosts, ", "), "PROTOCOL", up, "LOG", t.TempDir()+"/access.log").Replace(hedgeConfig))
	h.url = "http://" + h.Address("web")
	return h
}

// ask sends a request; its result is the answer's body.
func (h *hedgedHosts) ask(ctx context.Context, path, body string) <-chan string {
	done := make(chan string, 1)
	go func() {
		request, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url+path, strings.NewReader(body))
		if err != nil {
			done <- err.Error()
			return
		}
		response, err := h.client.Do(request)
		if err != nil {
			done <- err.Error()
			return
		}
		defer response.Body.Close()
		got, err := io.ReadAll(response.Body)
		if err != nil {
			done <- err.Error()
			return
		}
		done <- string(got)
	}()
	return done
}

// both waits for two tries of a request.
func (h *hedgedHosts) both(t *testing.T, path string) (first, second *arrival) {
	t.Helper()
	for _, to := range []**arrival{&first, &second} {
		select {
		case *to = <-h.at(path):
		case <-time.After(suite.Patience):
			t.Fatalf("%s: no two tries within %v", path, suite.Patience)
		}
	}
	return first, second
}

func (a *arrival) say(text string) {
	select {
	case a.answer <- text:
	case <-a.gone:
	}
}

func (h *hedgedHosts) wants(t *testing.T, done <-chan string, want string) {
	t.Helper()
	select {
	case got := <-done:
		if got != want {
			t.Errorf("the client got %q, want %q", got, want)
		}
	case <-time.After(suite.Patience):
		t.Fatalf("no answer within %v", suite.Patience)
	}
}

// TestHedging has hosts that stall until the test says who answers, with each protocol on each side.
func TestHedging(t *testing.T) {
	for _, down := range []string{"http1", "http2"} {
		for _, up := range []string{"http1", "http2"} {
			t.Run(down+" to "+up, func(t *testing.T) {
				t.Parallel()
				h := newHedgedHosts(t, down, up)
				ctx := context.Background()

				done := h.ask(ctx, "/second", "body")
				first, second := h.both(t, "/second")
				if first.body != "body" || second.body != "body" {
					t.Errorf("the tries have the bodies %q and %q", first.body, second.body)
				}
				second.say("200 second")
				h.wants(t, done, "200 second")
				await(t, first.gone, "the first try ends")

				done = h.ask(ctx, "/first", "body")
				first, second = h.both(t, "/first")
				first.say("200 first")
				h.wants(t, done, "200 first")
				await(t, second.gone, "the second try ends")

				done = h.ask(ctx, "/bad", "body")
				first, second = h.both(t, "/bad")
				second.say("503 bad")
				await(t, second.gone, "the second try is over")
				first.say("200 good")
				h.wants(t, done, "200 good")

				leaving, leave := context.WithCancel(ctx)
				done = h.ask(leaving, "/leaves", "body")
				first, second = h.both(t, "/leaves")
				leave()
				<-done
				await(t, first.gone, "the first try ends with its client")
				await(t, second.gone, "the second try ends with its client")

				for name, want := range map[string]float64{"retry": 4, "retry_active": 0, "per_try_timeout": 0, "active": 0} {
					h.AwaitStat(want, "retinue_cluster_upstream_rq_"+name, "cluster=app")
				}
				// Many at a time, whose winners are whoever: each client gets its own answer, whole.
				var all sync.WaitGroup
				for n := range 40 {
					path := fmt.Sprintf("/many/%d", n)
					done := h.ask(ctx, path, path)
					all.Go(func() {
						one, two := h.both(t, path)
						if n%2 == 0 {
							one, two = two, one
						}
						text := "200 " + strings.Repeat(path, 1000)
						go one.say(text)
						if n%3 == 0 {
							go two.say(text)
						}
						h.wants(t, done, text)
					})
				}
				all.Wait()
				h.AwaitStat(0, "retinue_cluster_upstream_rq_active", "cluster=app")
			})
		}
	}
}

// TestHedgingAcrossAnUpgrade: two tries that are out when the binary changes end on the old generation, one by its answer.
func TestHedgingAcrossAnUpgrade(t *testing.T) {
	for _, up := range []string{"http1", "http2"} {
		t.Run(up, func(t *testing.T) {
			t.Parallel()
			h := newHedgedHosts(t, "http1", up)
			done := h.ask(context.Background(), "/moves", "body")
			first, second := h.both(t, "/moves")
			if out, code := h.Retinue("upgrade", "--probation", "0s"); code != 0 {
				t.Fatalf("upgrade: %s", out)
			}
			h.Eventually("the old generation drains", func() error { return h.draining(true) })
			second.say("200 second")
			h.wants(t, done, "200 second")
			await(t, first.gone, "the first try ends")
			done = h.ask(context.Background(), "/new", "body")
			first, second = h.both(t, "/new")
			first.say("200 first")
			h.wants(t, done, "200 first")
			await(t, second.gone, "the second try ends")
			h.Eventually("the old generation is gone", func() error { return h.draining(false) })
		})
	}
}

// draining tells whether a generation drains, as it is wanted.
func (h *hedgedHosts) draining(want bool) error {
	status, err := h.Status()
	if err != nil {
		return err
	}
	drains := false
	for _, g := range status.Restartd.Generations {
		drains = drains || g.State == "STATE_DRAINING"
	}
	if drains != want {
		return fmt.Errorf("a generation drains: %v", drains)
	}
	return nil
}
