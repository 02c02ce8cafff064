// Package web serves metrics, health and the dashboard over HTTP.
package web

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"retinue.dev/statsd/internal/settings"
)

// Limits of the HTTP side: it serves a scraper, some dashboards and health checks.
const (
	maxConnections    = 256
	maxHeaderBytes    = 16 << 10
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	drainTime         = 2 * time.Second
)

// Server listens where it is told to and moves when it is told something else: the new address is bound before the old
// one is let go. Its life: NewServer; any goroutine tells it where; Retry is called now and
// then; Close.
type Server struct {
	handler http.Handler
	log     *slog.Logger

	mu      sync.Mutex
	current listening
	pending *listening // prepared
	insist  string     // to be tried again
	closed  bool
}

// listening is one address in use; server is nil for off.
type listening struct {
	configured string
	listener   net.Listener
	server     *http.Server
	stop       context.CancelFunc // ends event streams
}

// NewServer serves handler, nowhere yet.
func NewServer(handler http.Handler, log *slog.Logger) *Server {
	return &Server{handler: handler, log: log, current: listening{configured: settings.Off}}
}

// Prepare binds an address that is not in use yet.
func (s *Server) Prepare(listen string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := listening{configured: listen}
	switch {
	case s.closed:
		return errors.New("statsd is stopping")
	case listen == s.current.configured:
		next = s.current
	case listen != settings.Off:
		l, err := net.Listen("tcp", listen)
		if err != nil {
			return fmt.Errorf("statsd cannot listen on %s: %w", listen, err)
		}
		next.listener = l
	}
	s.pending = &next
	return nil
}

// Abort lets go what was prepared.
func (s *Server) Abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pending != nil && s.pending.listener != nil && s.pending.server == nil {
		s.pending.listener.Close()
	}
	s.pending = nil
}

// Commit serves what was prepared and stops serving what was before.
func (s *Server) Commit() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.insist = ""
	next := s.pending
	s.pending = nil
	if next == nil || next.configured == s.current.configured {
		return
	}
	old := s.current
	if next.listener != nil {
		ctx, stop := context.WithCancel(context.Background())
		next.stop = stop
		next.server = &http.Server{
			Handler: s.handler, ReadHeaderTimeout: readHeaderTimeout, ReadTimeout: readHeaderTimeout, IdleTimeout: idleTimeout,
			MaxHeaderBytes: maxHeaderBytes, ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
			BaseContext: func(net.Listener) context.Context { return ctx },
		}
		server, l := next.server, netutil.LimitListener(next.listener, maxConnections)
		go func() {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				s.log.Error("metrics and dashboard are not served any more", "listen", l.Addr(), "error", err)
			}
		}()
	}
	s.current = *next
	s.log.Info("metrics and dashboard", "listen", s.address())
	go old.close()
}

// Insist serves an address, and goes on trying if it must.
func (s *Server) Insist(listen string) {
	err := s.Prepare(listen)
	if err == nil {
		s.Commit()
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.insist != listen {
		s.log.Warn("metrics and dashboard are not served yet; statsd goes on trying", "error", err)
	}
	s.insist = listen
}

// Retry tries again what Insist could not do.
func (s *Server) Retry() {
	s.mu.Lock()
	listen := s.insist
	s.mu.Unlock()
	if listen != "" {
		s.Insist(listen)
	}
}

// Address is where the server listens, "" for nowhere.
func (s *Server) Address() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.address()
}

func (s *Server) address() string {
	if s.current.listener == nil {
		return settings.Off
	}
	return s.current.listener.Addr().String()
}

// Close ends the serving: responses under way get a moment.
func (s *Server) Close() {
	s.Abort()
	s.mu.Lock()
	s.closed = true
	old := s.current
	s.current = listening{configured: settings.Off}
	s.mu.Unlock()
	old.close()
}

func (l listening) close() {
	if l.server == nil {
		return
	}
	l.stop()
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if l.server.Shutdown(ctx) != nil {
		l.server.Close()
	}
}
