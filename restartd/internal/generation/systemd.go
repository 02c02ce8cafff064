package generation

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"

	"retinue.dev/libs/preflight"
)

const (
	unitPrefix    = "retinue-proxyd@"
	preflightUnit = unitPrefix + "preflight.service"
	// CandidateName is the link to the binary that the preflight unit runs, in restartd's state directory.
	CandidateName = "candidate"
	// PreflightReport is where it writes what it says, in the run directory.
	PreflightReport = "preflight.json"

	callTime  = 5 * time.Second
	startTick = 2 * time.Millisecond
)

// Systemd launches each generation as the unit retinue-proxyd@N.service, with a cgroup, a sandbox and a journal of its own. A
// polkit rule lets restartd's user do that with these units and no others.
//
// It talks to systemd over the system bus, and to processes by their pidfd as Exec does: another user's process can be
// waited for, but not signalled, so signals go through systemd.
type Systemd struct {
	Dir      string // the suite's run directory, where preflight reports
	StateDir string // restartd's, where the candidate's link is

	mu  sync.Mutex
	bus *dbus.Conn
}

var _ Launcher = (*Systemd)(nil)

func unitOf(n uint64) string { return unitPrefix + strconv.FormatUint(n, 10) + ".service" }

// generationOf is the number in a unit's name.
func generationOf(unit string) (uint64, bool) {
	instance, ok := strings.CutPrefix(strings.TrimSuffix(unit, ".service"), unitPrefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(instance, 10, 64)
	return n, err == nil
}

// call runs f over the bus, within callTime, on a new connection when the old one broke.
func (s *Systemd) call(f func(ctx context.Context, bus *dbus.Conn) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if s.bus != nil && !s.bus.Connected() {
		s.bus.Close()
		s.bus = nil
	}
	if s.bus == nil {
		bus, err := dbus.NewSystemConnectionContext(context.Background())
		if err != nil {
			return fmt.Errorf("the system bus: %w: without it no generation can be started; is dbus.service running?", err)
		}
		s.bus = bus
	}
	return f(ctx, s.bus)
}

// Preflight implements Launcher: the candidate runs in the sandbox of a generation.
func (s *Systemd) Preflight(ctx context.Context, binary string) (*preflight.Report, error) {
	if err := s.point(binary); err != nil {
		return nil, err
	}
	done := make(chan string, 1)
	if err := s.call(func(ctx context.Context, bus *dbus.Conn) error {
		_, err := bus.StartUnitContext(ctx, preflightUnit, "replace", done)
		return err
	}); err != nil {
		return nil, fmt.Errorf("start %s: %w", preflightUnit, err)
	}
	defer s.forget(preflightUnit)
	select {
	case <-ctx.Done():
		_ = s.call(func(ctx context.Context, bus *dbus.Conn) error {
			_, err := bus.StopUnitContext(ctx, preflightUnit, "replace", nil)
			return err
		})
		return nil, errors.New("no answer to --preflight in time; the candidate was stopped")
	case result := <-done:
		if result != "done" {
			return nil, fmt.Errorf("--preflight %s: journalctl -u %s says why", result, preflightUnit)
		}
	}
	f, err := os.OpenFile(filepath.Join(s.Dir, PreflightReport), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("the candidate's report: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, preflight.Limit+1))
	if err != nil {
		return nil, fmt.Errorf("the candidate's report: %w", err)
	}
	return preflight.Parse(b)
}

// forget has systemd forget that a unit failed: whoever asked knows it, and the ledger remembers.
func (s *Systemd) forget(unit string) {
	_ = s.call(func(ctx context.Context, bus *dbus.Conn) error { return bus.ResetFailedUnitContext(ctx, unit) }) // nothing to forget is an error too
}

// point makes the candidate's link.
func (s *Systemd) point(binary string) error {
	link := filepath.Join(s.StateDir, CandidateName)
	fresh := link + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(binary, fresh); err != nil {
		return err
	}
	return os.Rename(fresh, link)
}

// Start implements Launcher. Readiness is told over restart/v1.
func (s *Systemd) Start(l Launch, exited func(Exit)) (Process, error) {
	return s.StartUnit(unitOf(l.Generation), exited)
}

// StartUnit starts a service that restartd may start and returns as soon as it has a process.
func (s *Systemd) StartUnit(unit string, exited func(Exit)) (Process, error) {
	var pid int
	err := s.call(func(ctx context.Context, bus *dbus.Conn) error {
		if _, err := bus.StartUnitContext(ctx, unit, "replace", nil); err != nil {
			return fmt.Errorf("start %s: %w", unit, err)
		}
		tick := time.NewTicker(startTick)
		defer tick.Stop()
		for {
			state, err := service(ctx, bus, unit)
			switch {
			case err != nil:
				return err
			case state.pid != 0:
				pid = state.pid
				return nil
			case state.active == "failed":
				return fmt.Errorf("%s %s: journalctl -u %s says more", unit, state.ended(), unit)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("%s has no process after %s: systemctl status %s", unit, callTime, unit)
			}
		}
	})
	if err != nil {
		return Process{}, err
	}
	start, err := startTime(pid)
	if err != nil {
		return Process{}, fmt.Errorf("%s ended at once: journalctl -u %s says why", unit, unit)
	}
	return s.adopt(unit, pid, start, exited)
}

// StopUnit has systemd end a service with all that it started: TERM, then KILL after its TimeoutStopSec. It does not wait.
func (s *Systemd) StopUnit(unit string) error {
	return s.call(func(ctx context.Context, bus *dbus.Conn) error {
		_, err := bus.StopUnitContext(ctx, unit, "replace", nil)
		return err
	})
}

// Unit is a service with a process.
type Unit struct {
	Unit      string
	PID       int
	StartTime uint64
}

// Units are the services of a template, by its name up to the @, that have a process.
func (s *Systemd) Units(template string) (out []Unit) {
	_ = s.call(func(ctx context.Context, bus *dbus.Conn) error {
		units, err := bus.ListUnitsByPatternsContext(ctx, nil, []string{template + "*.service"})
		if err != nil {
			return err
		}
		for _, u := range units {
			state, err := service(ctx, bus, u.Name)
			if err != nil || state.pid == 0 {
				continue
			}
			if start, err := startTime(state.pid); err == nil {
				out = append(out, Unit{u.Name, state.pid, start})
			}
		}
		return nil
	})
	return out
}

// Adopt implements Launcher.
func (s *Systemd) Adopt(pid int, start uint64, exited func(Exit)) (Process, error) {
	unit, err := UnitOf(pid)
	if err != nil {
		return Process{}, err
	}
	return s.adopt(unit, pid, start, exited)
}

func (s *Systemd) adopt(unit string, pid int, start uint64, exited func(Exit)) (Process, error) {
	p, err := adopt(pid, start, func(Exit) { exited(Exit{Reason: s.reason(unit)}) })
	if err != nil {
		return Process{}, err
	}
	p.Signal = func(sig syscall.Signal) error {
		return s.call(func(ctx context.Context, bus *dbus.Conn) error {
			return bus.KillUnitWithTarget(ctx, unit, dbus.Main, int32(sig))
		})
	}
	return p, nil
}

// reason asks how the unit's process ended. Others use the bus between its questions: what the process left in its cgroup may take
// systemd a while.
func (s *Systemd) reason(unit string) string {
	defer s.forget(unit)
	for end := time.Now().Add(callTime); ; time.Sleep(10 * startTick) {
		var state unitState
		err := s.call(func(ctx context.Context, bus *dbus.Conn) (err error) {
			state, err = service(ctx, bus, unit)
			return err
		})
		if err == nil && (state.active == "inactive" || state.active == "failed") {
			return state.ended()
		}
		if err == nil && time.Now().After(end) {
			err = fmt.Errorf("%s is %s", unit, state.active)
		}
		if err != nil {
			return fmt.Sprintf("ended; how is not known: %v", err)
		}
	}
}

// Survivors implements Launcher. The directory does not matter: a unit's name says which generation it is.
func (s *Systemd) Survivors(string) []Survivor {
	var out []Survivor
	for _, u := range s.Units(unitPrefix) {
		if n, ok := generationOf(u.Unit); ok {
			out = append(out, Survivor{n, u.PID, u.StartTime})
		}
	}
	return out
}

// RestartQueued tells whether systemd stops this process to start it again: then generations and sockets stay, and the next
// restartd adopts them.
func (s *Systemd) RestartQueued() bool {
	own, err := UnitOf(os.Getpid())
	if err != nil {
		return false
	}
	queued := false
	_ = s.call(func(ctx context.Context, bus *dbus.Conn) error {
		jobs, err := bus.ListJobsContext(ctx)
		for _, j := range jobs {
			queued = queued || j.Unit == own && j.JobType == "restart"
		}
		return err
	})
	return queued
}

// unitState is what is asked of a service.
type unitState struct {
	active string
	result string
	pid    int
	code   int32 // CLD_EXITED and so on
	status int32
}

func (u unitState) ended() string {
	switch u.code {
	case 1: // CLD_EXITED
		if u.result != "exit-code" && u.result != "success" {
			return fmt.Sprintf("exit status %d (%s)", u.status, u.result)
		}
		return fmt.Sprintf("exit status %d", u.status)
	case 2, 3: // CLD_KILLED, CLD_DUMPED
		if u.result != "signal" && u.result != "core-dump" {
			return fmt.Sprintf("signal: %s (%s)", syscall.Signal(u.status), u.result)
		}
		return fmt.Sprintf("signal: %s", syscall.Signal(u.status))
	}
	return u.result
}

func service(ctx context.Context, bus *dbus.Conn, unit string) (unitState, error) {
	p, err := bus.GetAllPropertiesContext(ctx, unit)
	if err != nil {
		return unitState{}, fmt.Errorf("the state of %s: %w", unit, err)
	}
	var u unitState
	u.active, _ = p["ActiveState"].(string)
	u.result, _ = p["Result"].(string)
	pid, _ := p["MainPID"].(uint32)
	u.pid = int(pid)
	u.code, _ = p["ExecMainCode"].(int32)
	u.status, _ = p["ExecMainStatus"].(int32)
	return u, nil
}

// UnitOf is the service that a process belongs to, by its cgroup.
func UnitOf(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for _, line := range strings.Split(string(b), "\n") {
		if name := filepath.Base(line); strings.HasSuffix(name, ".service") {
			return name, nil
		}
	}
	return "", fmt.Errorf("process %d is in no unit of systemd", pid)
}
