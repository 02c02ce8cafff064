package command

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"
)

// errChanges ends `diff` with status 2: it has found some.
var errChanges = errors.New("changes")

// configCall is what one RPC of config/v1 needs.
type configCall struct {
	Client  configv1.ConfigClient
	Context context.Context
}

// configd calls one RPC of config/v1.
func (sh *shell) configd(limit time.Duration, call func(*configCall) error) error {
	conn, err := sh.dial("configd")
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := within(limit)
	defer cancel()
	return call(&configCall{Client: configv1.NewConfigClient(conn), Context: ctx})
}

func (sh *shell) printMessage(m proto.Message) { fmt.Fprintln(sh.out, protojson.Format(m)) }

func historyCommand(sh *shell) *cobra.Command {
	return &cobra.Command{
		Use: "history", Short: "List the snapshots that were in force, newest first", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return sh.configd(30*time.Second, func(c *configCall) error {
				reply, err := c.Client.History(c.Context, &configv1.HistoryRequest{})
				if err != nil {
					return err
				}
				if sh.json {
					sh.printMessage(reply)
					return nil
				}
				w := tabwriter.NewWriter(sh.out, 0, 0, 2, ' ', 0)
				fmt.Fprintln(w, "BACK\tSNAPSHOT\tIN FORCE SINCE\tOBJECTS\t")
				for i, e := range reply.GetEntries() {
					note := ""
					if e.GetRunning() {
						note = "running"
					}
					fmt.Fprintf(w, "%d\t%s\t%s\t%d\t%s\n", i, e.GetSnapshotId(), time.UnixMilli(e.GetSavedUnixMs()).Format("2006-01-02 15:04:05"), e.GetObjects(), note)
				}
				return w.Flush()
			})
		},
	}
}

func diffCommand(sh *shell) *cobra.Command {
	return &cobra.Command{
		Use:   "diff [[FROM] TO]",
		Short: "Show what changes from the running configuration to the files, or between any two",
		Long: "FROM and TO are \"running\", \"files\" (the configured ones), the id of a kept snapshot, or a path.\n" +
			"Without arguments: from running to files; with one: from running to it.\n" +
			"Exit status: 0 no change, 2 changes, 1 error.",
		Args: cobra.MaximumNArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			for i, a := range args {
				if strings.ContainsAny(a, "/.") {
					path, err := filepath.Abs(a)
					if err != nil {
						return err
					}
					args[i] = path
				}
			}
			request := &configv1.DiffRequest{}
			switch len(args) {
			case 1:
				request.To = args[0]
			case 2:
				request.From, request.To = args[0], args[1]
			}
			return sh.configd(60*time.Second, func(c *configCall) error {
				reply, err := c.Client.Diff(c.Context, request)
				if err != nil {
					return err
				}
				switch {
				case sh.json:
					sh.printMessage(reply)
				case !reply.GetOk():
					fmt.Fprint(sh.err, reply.GetRendered())
				case len(reply.GetChanges()) == 0:
					fmt.Fprintln(sh.out, "no changes")
				default:
					fmt.Fprintf(sh.out, "%s → %s\n\n%s", reply.GetFromId(), reply.GetToId(), reply.GetRendered())
				}
				switch {
				case !reply.GetOk():
					return errReported
				case len(reply.GetChanges()) > 0:
					return errChanges
				}
				return nil
			})
		},
	}
}

func rollbackCommand(sh *shell) *cobra.Command {
	c := &cobra.Command{
		Use:   "rollback [BACK | SNAPSHOT]",
		Short: "Put an earlier snapshot in force again",
		Long: "BACK counts as `retinue history` does; without it, 1. The files stay as they are, and the next reload applies them.\n" +
			"Until then a restart of configd keeps what was rolled back to, as long as the files do not change.",
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			request := &configv1.RollbackRequest{Back: 1}
			if len(args) == 1 {
				if back, err := strconv.ParseUint(args[0], 10, 8); err == nil && len(args[0]) < 4 {
					request.Back = uint32(back)
				} else {
					request.SnapshotId = args[0]
				}
			}
			return sh.configd(60*time.Second, func(c *configCall) error {
				reply, err := c.Client.Rollback(c.Context, request)
				if err != nil {
					return err
				}
				return sh.applied(reply, "the files are as they were: the next reload applies them")
			})
		},
	}
	c.AddCommand(rollbackGenerationCommand(sh))
	return c
}

func explainCommand(sh *shell) *cobra.Command {
	var headers []string
	var from, listener, config string
	c := &cobra.Command{
		Use:   "explain METHOD URL",
		Short: "Show what the running configuration, or a file, does with a request",
		Args:  cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			if config != "" {
				return sh.explainFile(config, args, headers, from, listener)
			}
			request := &configv1.ExplainRequest{Method: args[0], Url: args[1], From: from, Listener: listener}
			for _, h := range headers {
				name, value, ok := strings.Cut(h, ":")
				if !ok {
					return fmt.Errorf("-H %q: a header is written \"name: value\"", h)
				}
				request.Headers = append(request.Headers, &configv1.Header{Name: strings.TrimSpace(name), Value: strings.TrimSpace(value)})
			}
			return sh.configd(30*time.Second, func(c *configCall) error {
				reply, err := c.Client.Explain(c.Context, request)
				if err != nil {
					return err
				}
				if sh.json {
					sh.printMessage(reply)
				} else {
					fmt.Fprint(sh.out, reply.GetRendered())
				}
				return nil
			})
		},
	}
	c.Flags().StringArrayVarP(&headers, "header", "H", nil, "a header of the request, \"name: value\"; any number of times")
	c.Flags().StringVar(&from, "from", "", "address of the client (default 127.0.0.1)")
	c.Flags().StringVar(&listener, "listener", "", "the listener, instead of the one with the URL's port")
	c.Flags().StringVar(&config, "config", "", "a file or directory, instead of what runs")
	return c
}

// explainFile asks the compiler beside this binary: no suite need run.
func (sh *shell) explainFile(config string, args, headers []string, from, listener string) error {
	argv := []string{"--config", config, "--explain", args[0] + " " + args[1]}
	for _, h := range headers {
		argv = append(argv, "--header", h)
	}
	if from != "" {
		argv = append(argv, "--from", from)
	}
	if listener != "" {
		argv = append(argv, "--listener", listener)
	}
	if sh.json {
		argv = append(argv, "--json")
	}
	configd, err := sibling("configd")
	if err != nil {
		return err
	}
	run := exec.Command(configd, argv...)
	run.Stdout, run.Stderr = sh.out, sh.err
	var exit *exec.ExitError
	if err := run.Run(); errors.As(err, &exit) {
		return errReported
	} else if err != nil {
		return err
	}
	return nil
}
