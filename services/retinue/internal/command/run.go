package command

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"retinue.dev/libs/region"
	"retinue.dev/libs/unixsocket"
	"retinue.dev/services/retinue/internal/supervise"
)

// sameWish is how close two signals are one wish: timeout(1) sends its own twice, a terminal and make may both pass on Ctrl-C.
const sameWish = 500 * time.Millisecond

// lateAfter is when a start that goes on is told of.
const lateAfter = 5 * time.Second

//go:embed quickstart.hcl
var quickstart []byte

func runCommand(sh *shell) *cobra.Command {
	var config string
	c := &cobra.Command{
		Use: "run [--config FILE]", Short: "Run the whole suite in the foreground", Args: cobra.NoArgs,
		Long: `Run statsd, configd, restartd and, through it, proxyd below one directory, and start again what dies.
Without --config the embedded quickstart runs: http://127.0.0.1:10000/ shows the suite's own dashboard through the proxy.

SIGNALS
  INT, TERM  drain and stop; a second one kills     HUP   reload the configuration
  USR1       reopen log files                        USR2  upgrade proxyd`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			own := !cmd.Flags().Changed("dir")
			return sh.runSuite(config, own)
		},
	}
	c.Flags().StringVar(&config, "config", "", "HCL file or directory; the quickstart when absent")
	return c
}

func (sh *shell) runSuite(config string, own bool) (err error) {
	if own {
		base := os.Getenv("XDG_RUNTIME_DIR")
		if sh.dir, err = os.MkdirTemp(base, "retinue-"); err != nil {
			return fmt.Errorf("make a run directory: %w", err)
		}
		defer sh.discard()
	}
	if sh.dir, err = filepath.Abs(sh.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(sh.dir, 0o750); err != nil {
		return err
	}
	unlock, err := lockDir(sh.dir)
	if err != nil {
		return err
	}
	defer unlock()
	url := ""
	if config == "" {
		config, url = filepath.Join(sh.dir, "quickstart.hcl"), "http://127.0.0.1:10000/"
		if err := os.WriteFile(config, quickstart, 0o644); err != nil {
			return err
		}
	} else if config, err = filepath.Abs(config); err != nil {
		return err
	}
	programs, err := sh.programs(config)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	s, err := supervise.New(sh.logger(), self, programs)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	force, pass := make(chan struct{}), make(chan unix.Signal, 4)
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT, unix.SIGHUP, unix.SIGUSR1, unix.SIGUSR2)
	defer signal.Stop(signals)
	go func() {
		var told time.Time
		forced := false
		for sig := range signals {
			switch sig {
			case unix.SIGUSR1: // access logs are proxyd's, which is restartd's child
				pass <- unix.SIGUSR1
				for _, pid := range sh.generations() {
					_ = unix.Kill(pid, unix.SIGUSR1) // gone is as good
				}
			case unix.SIGHUP, unix.SIGUSR2:
				pass <- sig.(unix.Signal)
			default:
				if ctx.Err() == nil {
					told = time.Now()
					stop()
				} else if !forced && time.Since(told) > sameWish {
					forced = true
					close(force)
				}
			}
		}
	}()
	go sh.announce(s, url, config)
	err = s.Run(ctx, force, pass)
	sh.endLeftovers(force)
	sh.sweep()
	return err
}

// logger writes as the daemons do: for people on a terminal, JSON elsewhere.
func (sh *shell) logger() *slog.Logger {
	var h slog.Handler = slog.NewJSONHandler(sh.err, nil)
	if isTerminal(sh.err) {
		h = slog.NewTextHandler(sh.err, nil)
	}
	return slog.New(h).With("daemon", "retinue")
}

// lockDir makes this process the only `retinue run` of a directory. The lock ends with the process, however that ends.
func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "retinue.lock"), os.O_RDWR|os.O_CREATE, 0o640)
	if err != nil {
		return nil, fmt.Errorf("lock the run directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		who := make([]byte, 16)
		n, _ := f.ReadAt(who, 0)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("a suite runs below %s already (process %s): stop it, or choose another --dir", dir, strings.TrimSpace(string(who[:n])))
		}
		return nil, fmt.Errorf("lock the run directory: %w", err)
	}
	err = f.Truncate(0)
	if err == nil {
		_, err = f.WriteString(strconv.Itoa(os.Getpid()) + "\n")
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock the run directory: %w", err)
	}
	return func() { _ = f.Close() }, nil // the file stays: removing it would let two in
}

// discard removes a run directory that nobody named, and its stats region.
func (sh *shell) discard() {
	if place, err := region.Find(sh.dir); err == nil {
		_ = os.RemoveAll(place)
	}
	_ = os.RemoveAll(sh.dir)
}

func (sh *shell) programs(config string) ([]supervise.Program, error) {
	var programs []supervise.Program
	for _, p := range []struct {
		name string
		args []string
		stop time.Duration
	}{
		{"statsd", nil, 5 * time.Second},
		{"configd", []string{"--config", config}, 5 * time.Second},
		{"restartd", nil, 30 * time.Second},
	} {
		path, err := sibling(p.name)
		if err != nil {
			return nil, err
		}
		args := append([]string{"--dir", sh.dir}, p.args...)
		if p.name == "restartd" {
			proxyd, err := sibling("proxyd")
			if err != nil {
				return nil, err
			}
			args = append(args, "--proxyd", proxyd)
		}
		programs = append(programs, supervise.Program{Name: p.name, Path: path, Args: args, StopTime: p.stop})
	}
	return programs, nil
}

// announce says what runs, once everything is ready.
func (sh *shell) announce(s *supervise.Supervisor, url, config string) {
	started, waiting := time.Now(), map[string]bool{"statsd": true, "configd": true, "restartd": true}
	late := time.After(lateAfter)
	for len(waiting) > 0 {
		select {
		case name := <-s.Ready():
			delete(waiting, name)
		case <-late:
			names := strings.Join(slices.Sorted(maps.Keys(waiting)), " and ")
			fmt.Fprintf(sh.out, "\n  not running yet: %s waits, the log above says for what\n    status    retinue status --dir %s\n    stop      Ctrl-C\n\n", names, sh.dir)
		}
	}
	fmt.Fprintf(sh.out, "\n  retinue runs (%d ms)\n", time.Since(started).Milliseconds())
	if url != "" {
		fmt.Fprintf(sh.out, "    open      %s   the dashboard, through the proxy\n", url)
	}
	at := " --dir " + sh.dir
	fmt.Fprintf(sh.out, "    config    %s\n    reload    retinue reload%s\n    status    retinue status%s\n    upgrade   retinue upgrade%s\n    stop      Ctrl-C\n\n", config, at, at, at)
}

// sweep removes sockets that a killed daemon left. A process that is being killed may answer for a moment yet.
func (sh *shell) sweep() {
	pattern := filepath.Join(sh.dir, "*.sock")
	for range 50 {
		unixsocket.Sweep("unix", pattern)
		unixsocket.Sweep("unixpacket", pattern)
		if left, _ := filepath.Glob(pattern); len(left) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}
