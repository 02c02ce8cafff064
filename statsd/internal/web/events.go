package web

import (
	"bytes"
	"encoding/json"
	"net/http"
	"sync"
	"time"

	"retinue.dev/statsd/internal/history"
	"retinue.dev/statsd/internal/suite"
)

const (
	maxWatchers = 32
	backlog     = 4 // events a slow client may be behind before it is dropped
	eventTime   = 5 * time.Second
	heartbeat   = 15 * time.Second
)

// About is statsd itself, for the foot of the page.
type About struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Started  int64  `json:"started"` // unix ms
	Series   int    `json:"series"`
	Bytes    uint64 `json:"bytes"`
	Sheets   int    `json:"sheets"`
	Refused  uint64 `json:"refused"`
}

// update is an event: the newest second. The first one of a stream carries the points before it, too.
type update struct {
	Points []history.Point `json:"points,omitempty"`
	Now    history.Now     `json:"now"`
	Suite  suite.State     `json:"suite"`
	About  About           `json:"about"`
}

// events sends updates to the open dashboards by server-sent events. A client that does not keep up is dropped: its
// browser connects again and begins with the whole history.
type events struct {
	mu      sync.Mutex
	clients map[chan []byte]struct{}
}

func (e *events) watched() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.clients) > 0
}

func (e *events) send(u update) {
	b, err := frame(u)
	if err != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for c := range e.clients {
		select {
		case c <- b:
		default:
			delete(e.clients, c)
			close(c)
		}
	}
}

func frame(u update) ([]byte, error) {
	b, err := json.Marshal(u)
	if err != nil {
		return nil, err
	}
	return bytes.Join([][]byte{[]byte("data: "), b, []byte("\n\n")}, nil), nil
}

// join adds a client; nil when there are too many.
func (e *events) join() chan []byte {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.clients) >= maxWatchers {
		return nil
	}
	c := make(chan []byte, backlog)
	e.clients[c] = struct{}{}
	return c
}

func (e *events) leave(c chan []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.clients, c)
}

func (h *Handler) serveEvents(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Type", "text/event-stream")
	header.Set("X-Accel-Buffering", "no")
	if r.Method == http.MethodHead {
		return
	}
	c := h.events.join()
	if c == nil {
		header.Set("Retry-After", "10")
		plain(w, http.StatusServiceUnavailable, "too many dashboards are open\n")
		return
	}
	defer h.events.leave(c)
	first := h.update(r.Context())
	first.Points = h.sources.History.Points()
	event, err := frame(first)
	if err != nil {
		return
	}
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Time{}) // the stream outlives the time that a request may take to be read
	event = append([]byte("retry: 2000\n\n"), event...)
	quiet := time.NewTimer(heartbeat)
	defer quiet.Stop()
	for {
		if control.SetWriteDeadline(time.Now().Add(eventTime)) != nil {
			return
		}
		if _, err := w.Write(event); err != nil || control.Flush() != nil {
			return
		}
		quiet.Reset(heartbeat)
		var open bool
		select {
		case <-r.Context().Done():
			return
		case event, open = <-c:
			if !open {
				return
			}
		case <-quiet.C:
			event = []byte(": still here\n\n")
		}
	}
}
