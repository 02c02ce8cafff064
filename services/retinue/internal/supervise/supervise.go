// Package supervise is the supervisor of `retinue run`: it starts daemons, starts again what dies, and speaks systemd's
// protocol to them (readiness, status, watchdog, descriptor store), so that a daemon lives the same life in both worlds.
//
// One goroutine owns all state; it hears of notices, deaths, ticks and the wish to stop through channels. Another, locked to
// its thread, forks: a child's parent-death signal follows the thread that made it.
package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
	// steady is how long a daemon must live for its next death to count as a first one.
	steady   = 10 * time.Second
	watchdog = 10 * time.Second
)

// Program is one daemon to keep alive.
type Program struct {
	Name string
	Path string
	Args []string
	Env  []string
	// StopTime is how long it may take to stop before it is killed.
	StopTime time.Duration
}

// Supervisor keeps programs alive. Make it with New, call Run once.
type Supervisor struct {
	log      *slog.Logger
	exec     string // this binary: its hidden command sets LISTEN_PID and executes the daemon
	programs []*child
	notify   *notifySocket
	notices  chan notice
	deaths   chan death
	forks    chan func()
	ready    chan string
}

type child struct {
	Program
	pid     int
	started time.Time
	backoff time.Duration
	restart time.Time // when to start again, while dead
	ready   bool
	settled bool // it was ready once
	status  string
	fed     time.Time // last WATCHDOG=1; zero until the first
	store   []stored  // descriptors kept over its deaths
	stop    time.Time // when it is killed, while it is being stopped
}

type stored struct {
	name string
	fd   int
}

type death struct {
	pid    int
	status unix.WaitStatus
}

// New makes a supervisor of programs, which are started in this order and stopped in reverse.
func New(log *slog.Logger, exec string, programs []Program) (*Supervisor, error) {
	socket, err := listenNotify()
	if err != nil {
		return nil, err
	}
	s := &Supervisor{log: log, exec: exec, notify: socket, notices: make(chan notice), deaths: make(chan death), forks: make(chan func()), ready: make(chan string, len(programs)*4)}
	for _, p := range programs {
		s.programs = append(s.programs, &child{Program: p, backoff: firstBackoff})
	}
	return s, nil
}

// Ready tells the names of programs as they become ready. It is never closed; slow readers lose names.
func (s *Supervisor) Ready() <-chan string { return s.ready }

// Signal sends a signal to every living program.
func (s *Supervisor) signal(sig unix.Signal) {
	for _, c := range s.programs {
		if c.pid != 0 {
			_ = unix.Kill(c.pid, sig)
		}
	}
}

// Run starts everything and keeps it alive until ctx is done; then it stops the programs in reverse order. Closing
// force makes it kill what has not stopped yet. signals are passed on to all programs. A program that exits before it was ever
// ready ends everything: it has said why, and would say the same again.
func (s *Supervisor) Run(ctx context.Context, force <-chan struct{}, signals <-chan unix.Signal) error {
	defer s.notify.close()
	go s.readNotices()
	go s.fork()
	defer close(s.forks)
	for _, c := range s.programs {
		if err := s.start(c); err != nil {
			s.stopAll(force)
			return err
		}
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.stopAll(force)
			return nil
		case n := <-s.notices:
			s.onNotice(n)
		case d := <-s.deaths:
			if err := s.onDeath(d, true); err != nil {
				s.stopAll(force)
				return err
			}
		case sig := <-signals:
			s.signal(sig)
		case now := <-tick.C:
			s.onTick(now)
		}
	}
}

func (s *Supervisor) readNotices() {
	for {
		n, err := s.notify.read()
		if err != nil {
			return
		}
		if d, ok := n.death(); ok {
			s.deaths <- d
			continue
		}
		s.notices <- n
	}
}

// fork runs forks on one thread that lives as long as the supervisor.
func (s *Supervisor) fork() {
	runtime.LockOSThread()
	for f := range s.forks {
		f()
	}
}

func (s *Supervisor) start(c *child) error {
	files := []uintptr{devNull(), 1, 2}
	names := make([]string, len(c.store))
	for i, kept := range c.store {
		files = append(files, uintptr(kept.fd))
		names[i] = kept.name
	}
	env := append(cleanEnv(), c.Env...)
	env = append(env, "NOTIFY_SOCKET="+s.notify.name, "WATCHDOG_USEC="+strconv.FormatInt(watchdog.Microseconds(), 10))
	if len(names) > 0 {
		env = append(env, "LISTEN_FDS="+strconv.Itoa(len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	argv := append([]string{s.exec, ExecCommand, c.Path, c.Name}, c.Args...)
	done := make(chan error)
	s.forks <- func() {
		pid, err := forkExec(s.exec, argv, env, files)
		c.pid = pid
		done <- err
	}
	err := <-done
	_ = unix.Close(int(files[0]))
	if err != nil {
		return fmt.Errorf("start %s: %w", c.Name, err)
	}
	c.started, c.ready, c.fed, c.restart = time.Now(), false, time.Time{}, time.Time{}
	pid := c.pid
	go func() {
		var status unix.WaitStatus
		for {
			if _, err := unix.Wait4(pid, &status, 0, nil); !errors.Is(err, unix.EINTR) {
				break
			}
		}
		s.notify.died(death{pid, status})
	}()
	return nil
}

func (s *Supervisor) find(pid int) *child {
	for _, c := range s.programs {
		if c.pid == pid && pid != 0 {
			return c
		}
	}
	return nil
}

func (s *Supervisor) onNotice(n notice) {
	c := s.find(n.pid)
	if c == nil {
		if n.fd >= 0 {
			_ = unix.Close(n.fd)
		}
		return
	}
	values := map[string]string{}
	for _, f := range n.fields {
		if key, value, ok := strings.Cut(f, "="); ok {
			values[key] = value
		}
	}
	if status, ok := values["STATUS"]; ok {
		c.status = status
	}
	if values["WATCHDOG"] == "1" {
		c.fed = time.Now()
	}
	if values["READY"] == "1" && !c.ready {
		c.ready, c.settled = true, true
		select {
		case s.ready <- c.Name:
		default:
		}
	}
	if us, err := strconv.ParseInt(values["EXTEND_TIMEOUT_USEC"], 10, 64); err == nil && !c.stop.IsZero() {
		c.stop = time.Now().Add(time.Duration(us) * time.Microsecond)
	}
	name := values["FDNAME"]
	switch {
	case values["FDSTORE"] == "1" && n.fd >= 0 && name != "":
		c.store = append(c.store, stored{name, n.fd})
		return
	case values["FDSTOREREMOVE"] == "1" && name != "":
		kept := c.store[:0]
		for _, have := range c.store {
			if have.name == name {
				_ = unix.Close(have.fd)
				continue
			}
			kept = append(kept, have)
		}
		c.store = kept
	}
	if n.fd >= 0 {
		_ = unix.Close(n.fd)
	}
}

// onDeath notes a death and, when again says so, when to start anew. The error is why there is no point in that.
func (s *Supervisor) onDeath(d death, again bool) error {
	c := s.find(d.pid)
	if c == nil {
		return nil
	}
	c.pid, c.ready = 0, false
	if !again {
		return nil
	}
	if !c.settled && d.status.Exited() {
		return fmt.Errorf("%s did not start (exit status %d): what it said stands above", c.Name, d.status.ExitStatus())
	}
	if time.Since(c.started) > steady {
		c.backoff = firstBackoff
	}
	c.restart = time.Now().Add(c.backoff)
	s.log.Warn(c.Name+" ended and is started again", "how", describe(d.status), "in", c.backoff.String())
	c.backoff = min(2*c.backoff, maxBackoff)
	return nil
}

func (s *Supervisor) onTick(now time.Time) {
	for _, c := range s.programs {
		switch {
		case c.pid == 0 && !c.restart.IsZero() && now.After(c.restart):
			if err := s.start(c); err != nil {
				s.log.Error(c.Name+" cannot be started", "error", err)
				c.restart = now.Add(c.backoff)
				c.backoff = min(2*c.backoff, maxBackoff)
			}
		case c.pid != 0 && !c.fed.IsZero() && now.Sub(c.fed) > watchdog+watchdog/2:
			s.log.Error(c.Name+" stands still and is killed", "silent", now.Sub(c.fed).Round(time.Millisecond).String())
			_ = unix.Kill(c.pid, unix.SIGKILL)
			c.fed = time.Time{}
		case c.pid != 0 && !c.fed.IsZero() && now.Sub(c.fed) > watchdog:
			_ = unix.Kill(c.pid, unix.SIGABRT) // leaves a stack in the log
		}
	}
}

// stopAll ends the programs one after the other, the last started first.
func (s *Supervisor) stopAll(force <-chan struct{}) {
	for i := len(s.programs) - 1; i >= 0; i-- {
		c := s.programs[i]
		if c.pid == 0 {
			continue
		}
		_ = unix.Kill(c.pid, unix.SIGTERM)
		c.stop = time.Now().Add(c.StopTime)
		tick := time.NewTicker(50 * time.Millisecond)
		for c.pid != 0 {
			select {
			case d := <-s.deaths:
				_ = s.onDeath(d, false) // nothing is started again
			case n := <-s.notices:
				s.onNotice(n)
			case <-force:
				s.log.Warn("what has not stopped yet is killed", "waited_for", c.Name)
				s.signal(unix.SIGKILL)
				force = nil
			case now := <-tick.C:
				if now.After(c.stop) {
					s.log.Warn(c.Name + " did not stop in time and is killed")
					_ = unix.Kill(c.pid, unix.SIGKILL)
					c.stop = now.Add(time.Second)
				}
			}
		}
		tick.Stop()
	}
	for _, c := range s.programs {
		for _, kept := range c.store {
			_ = unix.Close(kept.fd)
		}
		c.store = nil
	}
}

func describe(status unix.WaitStatus) string {
	if status.Signaled() {
		return "signal " + unix.SignalName(status.Signal())
	}
	return "exit status " + strconv.Itoa(status.ExitStatus())
}

// cleanEnv is the environment without what belongs to this process alone.
func cleanEnv() []string {
	var env []string
	for _, v := range os.Environ() {
		switch key, _, _ := strings.Cut(v, "="); key {
		case "NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID":
		default:
			env = append(env, v)
		}
	}
	return env
}
