// Package service puts restartd together: the bank, the machine, the watch of configd, and the two sockets.
package service

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/cpus"
	"retinue.dev/libs/daemon"
	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/peer"
	configv1 "retinue.dev/services/api/config/v1"
	restartv1 "retinue.dev/services/api/restart/v1"

	"retinue.dev/restartd/internal/bank"
	"retinue.dev/restartd/internal/control"
	"retinue.dev/restartd/internal/generation"
	"retinue.dev/restartd/internal/handout"
	"retinue.dev/restartd/internal/plugin"
	"retinue.dev/restartd/internal/watch"
)

// Config is what the command line says.
type Config struct {
	Proxyd   string        // "": beside restartd's own binary
	Launcher string        // exec or systemd
	StopTime time.Duration // the longest drain on TERM
	Grace    time.Duration // between the commit that drops an address and its closing
	Patience time.Duration // wait for configd at a start of the suite before the last-good copy is used
	Times    generation.Times
	Become   string // run the plugin of this working directory instead of restartd
	Plugins  string // directory of plugins; "": plugins/ beside restartd's binary, then /usr/lib/retinue/plugins
}

// Flags registers the command line's part of c.
func (c *Config) Flags(f *flag.FlagSet) {
	f.StringVar(&c.Proxyd, "proxyd", "", "the installed proxyd `binary`; default: the one beside restartd")
	f.StringVar(&c.Launcher, "launcher", "exec", "how generations run: exec, as processes in sessions of their own, or systemd, as units retinue-proxyd@N.service; plugins likewise")
	f.DurationVar(&c.StopTime, "stop-time", 5*time.Second, "on TERM, cut connections that are still open after this, unless a drain \"shutdown\" block says when; QUIT waits shutdown_time")
	f.DurationVar(&c.Grace, "close-grace", 3*time.Second, "keep the sockets of an address that left the configuration open for this long, while handshakes under way end")
	f.DurationVar(&c.Patience, "configd-patience", 3*time.Second, "at a start, wait this long for configd before the last-good copy is used")
	f.StringVar(&c.Plugins, "plugins", "", "the `directory` where a plugin's command without a path is found; default: plugins beside restartd, then /usr/lib/retinue/plugins")
	f.StringVar(&c.Become, "exec-plugin", "", "become the plugin whose working `directory` this is; its unit says so")
	f.DurationVar(&c.Times.Ready, "ready-timeout", 30*time.Second, "a generation that is not ready by then is killed")
}

// Server is restartd at work. New, then Run once; the rest may be called from any goroutine meanwhile.
type Server struct {
	config  Config
	env     *daemon.Env
	bank    *bank.Bank
	machine *generation.Machine
	plugins *plugin.Manager
	patient atomic.Bool
	adopted int
	leaves  func() bool // on TERM: whether another restartd follows at once, and takes over what is there

	runtime *configv1.Runtime // prepared; by the watch's goroutine alone
	ready   bool              // by the machine's goroutine alone
}

// New adopts what is left of an earlier restartd.
func New(env *daemon.Env, config Config) (*Server, error) {
	proxyd, err := installed(config.Proxyd)
	if err != nil {
		return nil, err
	}
	s := &Server{config: config, env: env}
	launcher, plugins, err := s.launchers()
	if err != nil {
		return nil, err
	}
	s.bank = bank.New(bank.Options{
		Store: env.Notify, Log: env.Log, Grace: config.Grace,
		After: func(d time.Duration, f func()) func() bool { return time.AfterFunc(d, f).Stop },
	})
	var inherited []bank.Inherited
	for _, f := range env.Inherited {
		inherited = append(inherited, bank.Inherited{Name: f.Name, FD: f.FD})
	}
	s.adopted = s.bank.Adopt(inherited)
	s.machine, err = generation.New(generation.Options{
		Dir: env.StateDir, Installed: proxyd, Continues: s.adopted > 0,
		Launcher: launcher, Sockets: s.bank, Log: env.Log, Announce: s.announce, Times: config.Times,
	})
	if err != nil {
		return nil, fmt.Errorf("the table of generations: %w", err)
	}
	programs := []string{filepath.Join(filepath.Dir(proxyd), "plugins"), "/usr/lib/retinue/plugins"}
	if config.Plugins != "" {
		programs = []string{config.Plugins}
	}
	s.plugins, err = plugin.New(plugin.Options{
		StateDir: env.StateDir, RunDir: env.Dir, Programs: programs, Launcher: plugins, Log: env.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("the table of plugins: %w", err)
	}
	return s, nil
}

// launchers are those that the command line names, of generations and of plugins.
func (s *Server) launchers() (generation.Launcher, plugin.Launcher, error) {
	switch s.config.Launcher {
	case "exec":
		s.leaves = func() bool { return false }
		return generation.Exec{Dir: s.env.Dir}, plugin.Sessions{}, nil
	case "systemd":
		l := &generation.Systemd{Dir: s.env.Dir, StateDir: s.env.StateDir}
		s.leaves = l.RestartQueued
		return l, plugin.Units{Systemd: l}, nil
	}
	return nil, nil, fmt.Errorf("--launcher %q: use exec or systemd", s.config.Launcher)
}

// installed finds the binary that generations run.
func installed(path string) (string, error) {
	if path == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		path = filepath.Join(filepath.Dir(self), "proxyd")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("the proxyd binary: %w; name it with --proxyd", err)
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o111 == 0 {
		return "", fmt.Errorf("the proxyd binary: %s is no executable file; name another with --proxyd", path)
	}
	return path, nil
}

// Check is -t.
func Check(config Config) error {
	_, err := installed(config.Proxyd)
	return err
}

// announce is called by the machine: ready once a generation serves, the status line always.
func (s *Server) announce(line string, serving bool) {
	if serving && !s.ready {
		s.ready = true
		s.env.Ready(line)
		return
	}
	s.env.Status(line)
}

// Run serves until ctx is done and every generation is gone. The contract is answered to the end: generations are told
// to drain over it.
func (s *Server) Run(ctx context.Context) error {
	work, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	fds, err := fdpass.Listen(s.env.Socket("restartd.fd.sock"))
	if err != nil {
		return err
	}
	defer fds.Close()
	hand := &handout.Server{Sockets: s.bank.Sockets, Knows: s.machine.Knows, Log: s.env.Log}
	go hand.Serve(fds)
	go s.plugins.Run()
	rpc := &control.Server{Machine: s.machine, Bank: s.bank, Plugins: s.plugins}
	if err := s.env.ServeGRPC(work, "restartd.sock", rpc.Register, policy); err != nil {
		return err
	}
	conn, err := peer.Dial(s.env.Socket("configd.sock"))
	if err != nil {
		return err
	}
	defer conn.Close()
	w := &watch.Watcher{
		Client: configv1.NewConfigClient(conn), Applier: (*applier)(s), Log: s.env.Log,
		Path: filepath.Join(s.env.StateDir, "last-good"), Patience: s.config.Patience,
	}
	if s.adopted > 0 {
		w.Patience = 0 // traffic waits in the queues of what was adopted
	}
	watching, endWatch := context.WithCancel(work)
	defer endWatch()
	watched := make(chan struct{})
	go func() { defer close(watched); w.Run(watching) }()
	s.env.FeedWatchdog(work, s.machine.Alive)

	stopped := make(chan error, 1)
	go func() { stopped <- s.machine.Run(work) }()
	select {
	case err := <-stopped:
		return errors.Join(errors.New("the table of generations ended"), err)
	case <-ctx.Done():
	}
	endWatch()
	<-watched // no snapshot from now on
	if s.leaves() {
		s.env.Log.Info("restartd is being restarted: generations and sockets stay")
		stop()
		<-stopped
		return nil
	}
	s.machine.Stop(s.config.StopTime, s.patient.Load())
	err = <-stopped
	s.plugins.Stop() // no generation needs them any more
	s.bank.Close()
	return err
}

// privileged are the calls that run a program of the caller's choice.
var privileged = map[string]bool{
	restartv1.Restart_Upgrade_FullMethodName: true, restartv1.Restart_Decide_FullMethodName: true,
	restartv1.Restart_SwapPlugin_FullMethodName: true, restartv1.Restart_RollbackPlugin_FullMethodName: true,
}

// policy lets the suite's users attach and look, and only restartd's own user and root upgrade: the candidate runs as
// restartd's user.
func policy(method string, c peer.Cred) error {
	if privileged[method] && c.UID != 0 && int(c.UID) != os.Getuid() {
		return fmt.Errorf("uid %d may not do this: the new program would run as uid %d; call it as that user or root", c.UID, os.Getuid())
	}
	return peer.Same()(method, c)
}

// Quit is QUIT: the end, when it comes, waits for shutdown_time.
func (s *Server) Quit() { s.patient.Store(true) }

// Reload is HUP. restartd has no file of its own.
func (s *Server) Reload(context.Context) error {
	s.env.Log.Info("HUP: nothing to reload here, the configuration comes from configd")
	return nil
}

// Upgrade is USR2: the installed binary, with the runtime's probation.
func (s *Server) Upgrade(context.Context) {
	f, err := s.machine.Upgrade(&restartv1.UpgradeRequest{})
	if err != nil {
		s.env.Log.Error("upgrade refused", "error", err)
		return
	}
	s.machine.Unfollow(f) // its steps are in the log
}

// applier is the watch's view of the server.
type applier Server

// defaults of the runtime object (config/v1), for a snapshot that has none.
func defaultRuntime() *configv1.Runtime {
	return &configv1.Runtime{ShutdownTimeMs: 900_000, DrainTimeMs: 600_000, ProbationMs: 10_000}
}

// Prepare binds what is new.
func (a *applier) Prepare(objects []*configv1.Object) []*configv1.Refusal {
	runtime := defaultRuntime()
	var listeners []bank.Listener
	for _, o := range objects {
		if r := o.GetRuntime(); r != nil {
			runtime = proto.CloneOf(r)
		}
		if l := o.GetListener(); l != nil {
			listeners = append(listeners, listenerOf(l))
		}
	}
	a.runtime = runtime
	workers := int(runtime.GetWorkers())
	if workers == 0 {
		workers = cpus.Usable()
	}
	var out []*configv1.Refusal
	for _, r := range a.bank.Prepare(listeners, workers) {
		out = append(out, &configv1.Refusal{Kind: "listener", Name: r.Listener, Field: r.Field, Message: r.Message})
	}
	if out == nil {
		if out = a.plugins.Prepare(objects); out != nil {
			a.bank.Abort()
		}
	}
	return out
}

func listenerOf(l *configv1.Listener) bank.Listener {
	b := bank.Listener{Name: l.GetName(), Backlog: int(l.GetBacklog()), DeferAccept: l.GetTcpDeferAccept()}
	for _, a := range l.GetAddresses() {
		b.Addresses = append(b.Addresses, bank.Address{Address: a.GetAddress(), Mode: os.FileMode(a.GetMode()).Perm()})
	}
	return b
}

// Commit publishes it.
func (a *applier) Commit(snapshot string) {
	a.bank.Commit()
	a.plugins.Commit()
	r := a.runtime
	settings := generation.Settings{
		Snapshot: snapshot, Probation: milliseconds(r.GetProbationMs()),
		Upgrade: generation.Drain{Limit: milliseconds(r.GetShutdownTimeMs())}, Stop: drainOf(r.GetDrainShutdown()),
	}
	if d := r.GetDrainUpgrade(); d != nil {
		settings.Upgrade = drainOf(d)
	}
	a.machine.Configure(settings)
}

func milliseconds(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

func drainOf(d *configv1.DrainPolicy) generation.Drain {
	return generation.Drain{Immediate: d.GetImmediate(), Over: milliseconds(d.GetDrainTimeMs()), Limit: milliseconds(d.GetShutdownTimeMs())}
}

// Abort closes what Prepare bound.
func (a *applier) Abort() {
	a.bank.Abort()
	a.plugins.Abort()
}
