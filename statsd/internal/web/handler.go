package web

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"encoding/json"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"retinue.dev/libs/buildinfo"

	"retinue.dev/statsd/internal/exposition"
	"retinue.dev/statsd/internal/history"
	"retinue.dev/statsd/internal/suite"
)

const (
	maxScrapes   = 8 // at once
	maxMatches   = 16
	maxMatch     = 200 // bytes
	scrapeTime   = 60 * time.Second
	responseTime = 10 * time.Second
)

// Sources is what the pages show.
type Sources struct {
	Series   *exposition.Source
	History  *history.History
	Siblings *suite.Siblings
	Own      func(scrapes uint64) []exposition.Own // statsd's own series
	About    func() About
	Log      *slog.Logger
}

// Handler answers every request. Links and paths in what it answers are relative: the dashboard is looked at through
// a proxy too.
type Handler struct {
	sources Sources
	events  events
	mux     *http.ServeMux
	page    []byte
	policy  string // Content-Security-Policy
	etag    string
	slots   chan struct{}
	scrapes atomic.Uint64
}

//go:embed page.html page.css page.js
var files embed.FS

// NewHandler makes the handler. Tick must be called every second.
func NewHandler(sources Sources) (*Handler, error) {
	h := &Handler{
		sources: sources, events: events{clients: map[chan []byte]struct{}{}}, mux: http.NewServeMux(),
		slots: make(chan struct{}, maxScrapes),
	}
	if err := h.assemble(); err != nil {
		return nil, err
	}
	h.mux.HandleFunc("/{$}", h.dashboard)
	h.mux.HandleFunc("/events", h.serveEvents)
	for _, path := range []string{"/metrics", "/stats/prometheus"} {
		h.mux.HandleFunc(path, h.metrics)
	}
	h.mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok\n") })
	h.mux.HandleFunc("/ready", h.ready)
	h.mux.HandleFunc("/readyz", h.ready)
	h.mux.HandleFunc("/version", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"daemon": "statsd", "version": buildinfo.Version, "revision": buildinfo.Revision()})
	})
	h.mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		plain(w, http.StatusNotFound, "not here; there are /, /metrics, /healthz, /ready, /version\n")
	})
	return h, nil
}

// assemble puts the page together. Its style and script are inline, allowed by their hashes and nothing else is.
func (h *Handler) assemble() error {
	var parts [3]string
	for i, name := range []string{"page.html", "page.css", "page.js"} {
		b, err := files.ReadFile(name)
		if err != nil {
			return err
		}
		parts[i] = string(b)
	}
	page := strings.NewReplacer("{{style}}", parts[1], "{{script}}", parts[2]).Replace(parts[0])
	hash := func(s string) string {
		sum := sha256.Sum256([]byte(s))
		return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
	}
	h.page = []byte(page)
	h.policy = "default-src 'none'; connect-src 'self'; img-src data:; style-src " + hash(parts[1]) + "; script-src " + hash(parts[2]) +
		"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
	sum := sha256.Sum256(h.page)
	h.etag = `"` + base64.RawURLEncoding.EncodeToString(sum[:12]) + `"`
	return nil
}

// ServeHTTP implements http.Handler.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("X-Frame-Options", "DENY")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	header.Set("Cache-Control", "no-store")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		header.Set("Allow", "GET, HEAD")
		plain(w, http.StatusMethodNotAllowed, "this is read-only: GET and HEAD\n")
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(responseTime)) // a writer without deadlines is a test's
	h.mux.ServeHTTP(w, r)
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // the client may have gone
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		plain(w, http.StatusInternalServerError, err.Error()+"\n")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n'))
}

func (h *Handler) dashboard(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	header.Set("Content-Type", "text/html; charset=utf-8")
	header.Set("Content-Security-Policy", h.policy)
	header.Set("Cache-Control", "no-cache")
	header.Set("ETag", h.etag)
	if r.Header.Get("If-None-Match") == h.etag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Length", strconv.Itoa(len(h.page)))
	_, _ = w.Write(h.page)
}

func (h *Handler) metrics(w http.ResponseWriter, r *http.Request) {
	match := r.URL.Query()["match"]
	if len(match) > maxMatches {
		plain(w, http.StatusBadRequest, "too many match parameters\n")
		return
	}
	for _, m := range match {
		if len(m) > maxMatch {
			plain(w, http.StatusBadRequest, "a match parameter is too long\n")
			return
		}
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		w.Header().Set("Retry-After", "5")
		plain(w, http.StatusServiceUnavailable, "too many scrapes at once\n")
		return
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(scrapeTime))
	format := exposition.Negotiate(r.Header.Get("Accept"))
	w.Header().Set("Content-Type", format.ContentType())
	w.Header().Set("Vary", "Accept")
	if r.Method == http.MethodHead {
		return
	}
	err := h.sources.Series.Write(w, format, match, h.sources.Own(h.scrapes.Add(1)))
	if err != nil && r.Context().Err() == nil {
		h.sources.Log.Warn("a scrape was cut off", "error", err)
		// What was sent looks whole to a scraper of the text format: break the connection, so that it does not.
		panic(http.ErrAbortHandler)
	}
}

// readiness is the answer of /ready. Ready means that some generation of proxyd serves: traffic flows without configd
// and restartd, so their absence is told but does not take the machine out of a balancer.
type readiness struct {
	Ready    bool           `json:"ready"`
	Reason   string         `json:"reason,omitempty"`
	Serving  uint64         `json:"generations_serving"`
	Degraded bool           `json:"degraded"`
	Daemons  []suite.Daemon `json:"daemons"`
}

func (h *Handler) ready(w http.ResponseWriter, r *http.Request) {
	live, err := h.live()
	answer := readiness{Ready: err == nil && live > 0, Serving: live, Daemons: h.sources.Siblings.State(r.Context()).Daemons}
	for _, d := range answer.Daemons {
		answer.Degraded = answer.Degraded || !d.Ready
	}
	switch {
	case err != nil:
		answer.Reason = "the stats region cannot be read: " + err.Error()
	case live == 0:
		answer.Reason = "no generation of proxyd serves: see `retinue status`"
	}
	status := http.StatusOK
	if !answer.Ready {
		status = http.StatusServiceUnavailable
	}
	writeJSON(w, status, answer)
}

// live is the number of generations that accept connections: a gauge, so that the dead do not count.
func (h *Handler) live() (n uint64, err error) {
	err = h.sources.Series.Look(func(groups exposition.Groups) {
		for g := range groups("server") {
			n += g.Sum("live")
		}
	})
	return n, err
}

// Tick samples and sends the sample to whoever looks at a dashboard.
func (h *Handler) Tick(ctx context.Context, now time.Time) {
	watched := h.events.watched()
	if err := h.sources.History.Sample(now, watched); err != nil {
		h.sources.Log.Warn("the dashboard is not fed", "error", err)
		return
	}
	if watched {
		h.events.send(h.update(ctx))
	}
}

func (h *Handler) update(ctx context.Context) update {
	return update{Now: h.sources.History.Now(), Suite: h.sources.Siblings.State(ctx), About: h.sources.About()}
}
