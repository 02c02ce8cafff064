package command

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"retinue.dev/libs/hello"
	restartv1 "retinue.dev/services/api/restart/v1"
)

func pluginCommand(sh *shell) *cobra.Command {
	c := &cobra.Command{Use: "plugin", Short: "Look at plugins and replace them while traffic flows"}
	c.AddCommand(pluginList(sh), pluginSwap(sh), pluginRollback(sh), pluginBench(sh), pluginLogs(sh))
	return c
}

// pluginTable asks restartd once.
func (sh *shell) pluginTable() (*restartv1.PluginTable, error) {
	conn, err := sh.dial("restartd")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := within(10 * time.Second)
	defer cancel()
	mine := hello.Mine("retinue", "restart/v1")
	stream, err := restartv1.NewRestartClient(conn).WatchPlugins(ctx, &restartv1.WatchPluginsRequest{Hello: mine})
	if err != nil {
		return nil, err
	}
	t, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	return t, hello.Check(mine, t.GetHello())
}

func (sh *shell) findPlugin(name string) (*restartv1.Plugin, error) {
	t, err := sh.pluginTable()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range t.GetPlugins() {
		if p.GetName() == name {
			return p, nil
		}
		names = append(names, p.GetName())
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("there is no plugin %q: the configuration has none", name)
	}
	return nil, fmt.Errorf("there is no plugin %q; there is %s", name, strings.Join(names, ", "))
}

func pluginList(sh *shell) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Plugins with their generations", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			t, err := sh.pluginTable()
			if err != nil {
				return err
			}
			if sh.json {
				fmt.Fprintln(sh.out, protojson.Format(t))
				return nil
			}
			if len(t.GetPlugins()) == 0 {
				fmt.Fprintln(sh.out, "no plugins in the configuration")
				return nil
			}
			w := tabwriter.NewWriter(sh.out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "PLUGIN\tGENERATION\tSTATE\tPID\tPROGRAM\tON ERROR\tRESTARTS\tMESSAGE")
			for _, p := range t.GetPlugins() {
				shown := false
				for _, g := range p.GetGenerations() {
					if s := g.GetState(); s == restartv1.PluginState_PLUGIN_STATE_GONE {
						continue
					}
					state := strings.ToLower(strings.TrimPrefix(g.GetState().String(), "PLUGIN_STATE_"))
					if g.GetCanaryPercent() > 0 {
						state = fmt.Sprintf("%s %d%%", state, g.GetCanaryPercent())
					}
					message := g.GetMessage()
					if message == "" {
						message = p.GetMessage()
					}
					fmt.Fprintf(w, "%s\t%d\t%s\t%d\t%s %s\t%s\t%d\t%s\n", p.GetName(), g.GetNumber(), state, g.GetPid(), g.GetProgramName(),
						g.GetProgramVersion(), p.GetOnError(), p.GetRestarts(), message)
					shown = true
				}
				if !shown {
					fmt.Fprintf(w, "%s\t-\t-\t-\t-\t%s\t%d\t%s\n", p.GetName(), p.GetOnError(), p.GetRestarts(), p.GetMessage())
				}
			}
			return w.Flush()
		},
	}
}

// pluginEvents shows the steps of a swap; its exit status is the truth.
func (sh *shell) pluginEvents(begin func(restartv1.RestartClient) (grpc.ServerStreamingClient[restartv1.PluginEvent], error)) error {
	conn, err := sh.dial("restartd")
	if err != nil {
		return err
	}
	defer conn.Close()
	events, err := begin(restartv1.NewRestartClient(conn))
	if err != nil {
		return err
	}
	chatty := isTerminal(sh.out)
	for {
		e, err := events.Recv()
		if err == io.EOF {
			return errors.New("restartd ended the swap without saying how: see retinue plugin list")
		}
		if err != nil {
			return err
		}
		if sh.json {
			fmt.Fprintln(sh.out, protojson.MarshalOptions{}.Format(e))
		} else if chatty || e.GetDone() {
			fmt.Fprintf(sh.out, "%7.2f s  %-10s %s\n", float64(e.GetElapsedMs())/1000, e.GetStep(), e.GetMessage())
		}
		if e.GetDone() {
			if !e.GetOk() {
				return errReported
			}
			return nil
		}
	}
}

func pluginSwap(sh *shell) *cobra.Command {
	var to string
	var canary uint32
	var canaryTime, drain time.Duration
	c := &cobra.Command{
		Use: "swap NAME --to PROGRAM", Short: "Move new requests to another program, once it is checked against the running configuration", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if to == "" {
				return errors.New("--to names the new program")
			}
			path, err := filepath.Abs(to)
			if err != nil {
				return err
			}
			ctx, cancel := within(24 * time.Hour)
			defer cancel()
			return sh.pluginEvents(func(r restartv1.RestartClient) (grpc.ServerStreamingClient[restartv1.PluginEvent], error) {
				return r.SwapPlugin(ctx, &restartv1.SwapPluginRequest{
					Name: args[0], Program: path, CanaryPercent: canary, CanaryMs: canaryTime.Milliseconds(), DrainMs: drain.Milliseconds(),
				})
			})
		},
	}
	c.Flags().StringVar(&to, "to", "", "the new program")
	c.Flags().Uint32Var(&canary, "canary", 0, "first give it this per cent of new requests")
	c.Flags().DurationVar(&canaryTime, "canary-time", 10*time.Second, "for how long")
	c.Flags().DurationVar(&drain, "drain", 10*time.Minute, "how long the old one may finish its requests")
	return c
}

func pluginRollback(sh *shell) *cobra.Command {
	return &cobra.Command{
		Use: "rollback NAME", Short: "Swap back to the program before the last swap", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			ctx, cancel := within(24 * time.Hour)
			defer cancel()
			return sh.pluginEvents(func(r restartv1.RestartClient) (grpc.ServerStreamingClient[restartv1.PluginEvent], error) {
				return r.RollbackPlugin(ctx, &restartv1.RollbackPluginRequest{Name: args[0]})
			})
		},
	}
}

func pluginLogs(sh *shell) *cobra.Command {
	return &cobra.Command{
		Use: "logs NAME", Short: "What the plugin wrote", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := sh.findPlugin(args[0])
			if err != nil {
				return err
			}
			if g := p.GetGenerations(); len(g) > 0 && g[len(g)-1].GetUnit() != "" {
				return sh.journal("retinue-plugin@" + p.GetName() + "-*")
			}
			if p.GetLogPath() == "" {
				return fmt.Errorf("plugin %q has not been started: %s", args[0], p.GetMessage())
			}
			f, err := os.Open(p.GetLogPath())
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = io.Copy(sh.out, f)
			return err
		},
	}
}

// journal shows what the units of a pattern wrote.
func (sh *shell) journal(pattern string) error {
	c := exec.Command("journalctl", "--no-pager", "--output=cat", "--unit="+pattern)
	c.Stdout, c.Stderr = sh.out, sh.err
	if err := c.Run(); err != nil {
		return fmt.Errorf("journalctl --unit='%s': %w", pattern, err)
	}
	return nil
}
