package daemon

import (
	"context"
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
)

// signals gives signals their nginx meanings. They are caught before the server is made, so that a daemon that is told to
// end while it starts ends in order too; what needs the server is dropped until there is one.
type signals struct {
	forced chan struct{} // closed by the second INT: a person at a terminal does not want to wait

	ctx    context.Context
	cancel context.CancelFunc
	env    *Env
	caught chan os.Signal
	broken chan os.Signal
	done   chan struct{}

	aside  sync.Mutex // HUP and USR2 work one at a time, beside the loop, so that TERM is always heard
	mu     sync.Mutex
	server Server
}

func catchSignals(ctx context.Context, cancel context.CancelFunc, env *Env) *signals {
	s := &signals{
		forced: make(chan struct{}), ctx: ctx, cancel: cancel, env: env,
		caught: make(chan os.Signal, 8), broken: make(chan os.Signal, 1), done: make(chan struct{}),
	}
	signal.Notify(s.caught, unix.SIGTERM, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	// A log whose reader has gone is no reason to die. Caught and not ignored: what is ignored stays so in children.
	signal.Notify(s.broken, unix.SIGPIPE)
	go s.loop()
	return s
}

func (s *signals) serve(server Server) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = server
}

func (s *signals) release() {
	signal.Stop(s.caught)
	signal.Stop(s.broken)
	close(s.done)
}

func (s *signals) loop() {
	interrupted := false
	for {
		select {
		case <-s.done:
			return
		case sig := <-s.caught:
			s.mu.Lock()
			server := s.server
			s.mu.Unlock()
			switch sig {
			case unix.SIGHUP:
				if r, ok := server.(Reloader); ok {
					go s.reload(r)
				}
			case unix.SIGUSR1:
				if r, ok := server.(LogReopener); ok {
					r.ReopenLogs()
				}
			case unix.SIGUSR2:
				if u, ok := server.(Upgrader); ok {
					go func() {
						s.aside.Lock()
						defer s.aside.Unlock()
						u.Upgrade(s.ctx)
					}()
				}
			case unix.SIGQUIT:
				if q, ok := server.(Quitter); ok && s.ctx.Err() == nil {
					q.Quit()
				}
				s.cancel()
			case unix.SIGINT:
				if interrupted {
					close(s.forced)
					return
				}
				interrupted = true
				s.cancel()
			default:
				s.cancel()
			}
		}
	}
}

func (s *signals) reload(r Reloader) {
	s.aside.Lock()
	defer s.aside.Unlock()
	ready := s.env.ready.Load()
	if ready {
		_ = s.env.Notify.Reloading() // a supervisor that misses it believes that nothing happens, and nothing does
	}
	if err := r.Reload(s.ctx); err != nil {
		s.env.Log.Error("reload refused: nothing has changed", "error", err)
	}
	if ready {
		line, _ := s.env.line.Load().(string)
		s.env.Ready(line)
	}
}
