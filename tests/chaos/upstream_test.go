package chaos

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

// moody is an upstream that answers well most of the time and fails in every other way the rest of it. It notes which requests
// reached it and which it answered to the end.
type moody struct {
	address string
	book    *book

	mu    sync.Mutex
	l     net.Listener
	open  map[net.Conn]bool
	ended bool
}

// book is what the upstreams together know of each request.
type book struct {
	mu      sync.Mutex
	reached map[int]int // tries that arrived whole
	foul    []string    // what may not be
}

func (b *book) note(id int, body []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reached[id]++
	if len(body) > 0 && string(body) != bodyOf(id) {
		b.foul = append(b.foul, fmt.Sprintf("request %d arrived with another body: %.40q", id, body))
	}
}

func bodyOf(id int) string {
	return fmt.Sprintf("body of %d %s", id, bytes.Repeat([]byte("."), id%5000))
}

func startMoody(t *testing.T, b *book) *moody {
	t.Helper()
	m := &moody{book: b, open: map[net.Conn]bool{}}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m.address = l.Addr().String()
	m.serve(l)
	t.Cleanup(func() { m.down(); m.mu.Lock(); m.ended = true; m.mu.Unlock() })
	return m
}

func (m *moody) serve(l net.Listener) {
	m.mu.Lock()
	m.l = l
	m.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			m.mu.Lock()
			m.open[c] = true
			m.mu.Unlock()
			go m.converse(c)
		}
	}()
}

// down closes the listener and every connection.
func (m *moody) down() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.l.Close()
	for c := range m.open {
		c.Close()
	}
	clear(m.open)
}

// flap goes down for a moment.
func (m *moody) flap(t *testing.T, pause time.Duration) {
	m.down()
	time.Sleep(pause)
	for {
		l, err := net.Listen("tcp", m.address)
		if err == nil {
			m.serve(l)
			return
		}
		m.mu.Lock()
		ended := m.ended
		m.mu.Unlock()
		if ended || t.Context().Err() != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// stalls is longer than a try may take.
const stalls = 600 * time.Millisecond

func (m *moody) converse(c net.Conn) {
	defer func() {
		c.Close()
		m.mu.Lock()
		delete(m.open, c)
		m.mu.Unlock()
	}()
	in := bufio.NewReader(c)
	for {
		r, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		id, _ := strconv.Atoi(r.Header.Get("X-Id"))
		m.book.note(id, body)
		answer := func(status int, length int) { // length is what the head says
			text := bodyOf(id)
			fmt.Fprintf(c, "HTTP/1.1 %d X\r\nX-Id: %d\r\nContent-Length: %d\r\n\r\n%s", status, id, length, text)
		}
		whole := len(bodyOf(id))
		switch mood := rand.N(100); {
		case mood < 60:
			answer(200, whole)
		case mood < 70:
			answer(503, whole)
		case mood < 75:
			answer(500, whole)
		case mood < 78:
			time.Sleep(stalls)
			answer(200, whole) // nobody waits for it any more
		case mood < 83: // half of a head, and the end
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Id: ")
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, in)
			return
		case mood < 88: // a part of the body, and the end
			answer(200, whole+1)
			c.(*net.TCPConn).CloseWrite()
			io.Copy(io.Discard, in)
			return
		case mood < 92: // the end at once
			return
		case mood < 96: // a reset
			_ = c.(*net.TCPConn).SetLinger(0)
			return
		default: // a good answer, and the end behind it
			answer(200, whole)
			return
		}
	}
}

// TestMoodyUpstreams: upstreams flap, stall, answer 5xx and close in the middle. No request is tried more often than its route
// says, none is answered twice or by another's answer, and the proxy's counters agree with what the upstreams saw: with one try at a
// time, and with tries that take too long going on beside the next.
func TestMoodyUpstreams(t *testing.T) {
	for name, hedge := range map[string]bool{"one try at a time": false, "hedged": true} {
		t.Run(name, func(t *testing.T) { moodyUpstreams(t, hedge) })
	}
}

func moodyUpstreams(t *testing.T, hedge bool) {
	const (
		clients  = 12
		requests = 120 // of each
		attempts = 2
	)
	notes := &book{reached: map[int]int{}}
	var all []*moody
	list := ""
	for range 4 {
		m := startMoody(t, notes)
		all = append(all, m)
		list += fmt.Sprintf("%q, ", m.address)
	}
	s := suite.Start(t, fmt.Sprintf(`
runtime { workers = 2 }
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" {
        cluster = cluster.moody
        timeout = "5s"
        retry {
          on              = ["5xx", "connect-failure"]
          attempts        = %d
          per_try_timeout = "300ms"
          hedge_on_per_try_timeout = %v
          back_off        = "1ms"
        }
      }
    }
  }
}
cluster "moody" {
  endpoints = [%s]
  balance   = "least_request"
  circuit_breaker { retry_budget = 60 }
  health_check "tcp" {
    interval  = "50ms"
    unhealthy = 1
  }
  outlier_detection {
    consecutive_5xx      = 4
    base_ejection        = "50ms"
    interval             = "50ms"
    max_ejection_percent = 50
  }
}
stats { listen = "off" }
`, attempts, hedge, list))

	done := make(chan struct{})
	var flapping sync.WaitGroup
	flapping.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-time.After(100 * time.Millisecond):
				all[i%len(all)].flap(t, 60*time.Millisecond)
			}
		}
	})
	var wg sync.WaitGroup
	var mu sync.Mutex
	outcomes := map[string]int{}
	var foul []string
	for client := range clients {
		wg.Go(func() {
			c := &patient{address: s.Address("web")}
			defer c.close()
			for n := range requests {
				id := 1 + client*requests + n
				outcome, err := c.ask(id, n%3 == 0)
				mu.Lock()
				outcomes[outcome]++
				if err != nil {
					foul = append(foul, fmt.Sprintf("request %d: %v", id, err))
				}
				mu.Unlock()
				if outcome != "200" {
					time.Sleep(10 * time.Millisecond) // as a client does; without it a moment's outage answers most requests
				}
			}
		})
	}
	wg.Wait()
	close(done)
	flapping.Wait()

	t.Logf("outcomes: %v", outcomes)
	if len(foul) > 0 {
		t.Errorf("%d answers that may not be: %.10q", len(foul), foul)
	}
	// How many are answered well is the machine's matter too (a pause of it is every host's outage); that most of what the
	// upstreams answer well gets through is the proxy's.
	if outcomes["200"] < clients*requests/4 {
		t.Errorf("%d of %d requests were answered well", outcomes["200"], clients*requests)
	}
	notes.mu.Lock()
	defer notes.mu.Unlock()
	if len(notes.foul) > 0 {
		t.Errorf("%d requests that may not be: %.10q", len(notes.foul), notes.foul)
	}
	again := 0
	for id, tries := range notes.reached {
		if tries > 1+attempts {
			t.Errorf("request %d reached the upstreams %d times; its route allows %d", id, tries, 1+attempts)
		}
		again += tries - 1
	}
	s.Eventually("the retries are counted", func() error {
		counted := s.Stat("retinue_cluster_upstream_rq_retry", "cluster=moody")
		if counted == 0 || float64(again) > counted || counted > float64(attempts*clients*requests) {
			return fmt.Errorf("the upstreams saw %d requests again, %v retries are counted", again, counted)
		}
		return nil
	})
	for _, gauge := range []string{"upstream_rq_active", "upstream_rq_retry_active", "upstream_rq_pending_active"} {
		s.AwaitStat(0, "retinue_cluster_"+gauge, "cluster=moody")
	}
}

// patient is a client that keeps its connection while it can.
type patient struct {
	address string
	conn    net.Conn
	in      *bufio.Reader
}

func (p *patient) close() {
	if p.conn != nil {
		p.conn.Close()
		p.conn = nil
	}
}

// ask sends one request and reads its only answer. An error is an answer that may not be: another's, or more than one.
func (p *patient) ask(id int, body bool) (outcome string, err error) {
	if p.conn == nil {
		if p.conn, err = net.Dial("tcp", p.address); err != nil {
			return "refused", err
		}
		p.in = bufio.NewReader(p.conn)
	}
	if p.in.Buffered() > 0 {
		extra, _ := p.in.Peek(p.in.Buffered())
		return "extra", fmt.Errorf("bytes before it was sent: %.80q", extra)
	}
	_ = p.conn.SetDeadline(time.Now().Add(suite.Patience))
	head := fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: h\r\nX-Id: %d\r\n\r\n", id, id)
	if body {
		text := bodyOf(id)
		head = fmt.Sprintf("PUT /%d HTTP/1.1\r\nHost: h\r\nX-Id: %d\r\nContent-Length: %d\r\n\r\n%s", id, id, len(text), text)
	}
	if _, err := io.WriteString(p.conn, head); err != nil {
		p.close()
		return "cut before it was sent", nil
	}
	r, err := http.ReadResponse(p.in, nil)
	if err != nil {
		p.close()
		var late net.Error
		if errors.As(err, &late) && late.Timeout() {
			return "no answer", err
		}
		return "cut", nil
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil { // a part was sent and cannot be taken back
		p.close()
		return "cut within the body", nil
	}
	if r.Close {
		p.close()
	}
	if of := r.Header.Get("X-Id"); of != "" && of != strconv.Itoa(id) {
		return "another's", fmt.Errorf("the answer of %s", of)
	}
	if r.StatusCode == 200 && string(text) != bodyOf(id) {
		return "another's", fmt.Errorf("the body %.40q", text)
	}
	return strconv.Itoa(r.StatusCode), nil
}
