package command

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2/hclwrite"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	configv1 "retinue.dev/services/api/config/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
	statsv1 "retinue.dev/services/api/stats/v1"
)

func checkCommand(sh *shell) *cobra.Command {
	var format string
	var strict bool
	c := &cobra.Command{
		Use: "check PATH", Short: "Check a configuration without applying it", Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			configd, err := sibling("configd")
			if err != nil {
				return err
			}
			argv := []string{"-t", "--config", args[0], "--format", format, "--dir", sh.dir}
			if sh.json {
				argv = append(argv, "--json")
			}
			if strict {
				argv = append(argv, "--strict")
			}
			check := exec.Command(configd, argv...)
			check.Stdout, check.Stderr = sh.out, sh.err
			var exit *exec.ExitError
			if err := check.Run(); errors.As(err, &exit) {
				return errReported
			} else if err != nil {
				return err
			}
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "text", "text, or unix for one line each (editors read that)")
	c.Flags().BoolVar(&strict, "strict", false, "warnings fail too")
	return c
}

func fmtCommand(sh *shell) *cobra.Command {
	var check bool
	c := &cobra.Command{
		Use: "fmt PATH…", Short: "Write configuration files in the canonical layout", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			unformatted := 0
			for _, arg := range args {
				err := filepath.WalkDir(arg, func(path string, d fs.DirEntry, err error) error {
					if err != nil || d.IsDir() || !strings.HasSuffix(path, ".hcl") {
						return err
					}
					before, err := os.ReadFile(path)
					if err != nil {
						return err
					}
					after := hclwrite.Format(before)
					if bytes.Equal(before, after) {
						return nil
					}
					unformatted++
					fmt.Fprintln(sh.out, path)
					if check {
						return nil
					}
					info, err := d.Info()
					if err != nil {
						return err
					}
					return os.WriteFile(path, after, info.Mode().Perm())
				})
				if err != nil {
					return err
				}
			}
			if check && unformatted > 0 {
				return errReported
			}
			return nil
		},
	}
	c.Flags().BoolVar(&check, "check", false, "change nothing; exit 1 when a file is not formatted")
	return c
}

func reloadCommand(sh *shell) *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Compile the configuration and apply it, whole or not at all", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			conn, err := sh.dial("configd")
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := within(60 * time.Second)
			defer cancel()
			reply, err := configv1.NewConfigClient(conn).Reload(ctx, &configv1.ReloadRequest{})
			if err != nil {
				return err
			}
			return sh.applied(reply, "")
		},
	}
}

// applied tells the outcome of a reload or a roll-back. note is a last line after success.
func (sh *shell) applied(reply *configv1.ReloadReply, note string) error {
	if sh.json {
		fmt.Fprintln(sh.out, protojson.Format(reply))
	} else if reply.GetRendered() != "" {
		fmt.Fprint(sh.err, reply.GetRendered())
	}
	switch {
	case !reply.GetOk():
		if !sh.json {
			fmt.Fprintf(sh.err, "refused: snapshot %s goes on\n", reply.GetSnapshotId())
		}
		return errReported
	case sh.json:
	case !reply.GetChanged():
		fmt.Fprintf(sh.out, "nothing changed: snapshot %s goes on\n", reply.GetSnapshotId())
	default:
		fmt.Fprintf(sh.out, "applied: snapshot %s\n", reply.GetSnapshotId())
		if note != "" {
			fmt.Fprintln(sh.out, note)
		}
	}
	return nil
}

func statsCommand(sh *shell) *cobra.Command {
	var match string
	c := &cobra.Command{
		Use: "stats", Short: "Print current values of the suite's series", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			conn, err := sh.dial("statsd")
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx, cancel := within(10 * time.Second)
			defer cancel()
			reply, err := statsv1.NewStatsClient(conn).Query(ctx, &statsv1.QueryRequest{Match: match})
			if err != nil {
				return err
			}
			if sh.json {
				fmt.Fprintln(sh.out, protojson.Format(reply))
				return nil
			}
			for _, s := range reply.GetSeries() {
				fmt.Fprintf(sh.out, "%s%s %v%s\n", s.GetName(), labels(s.GetLabels()), s.GetValue(), quantiles(s))
			}
			return nil
		},
	}
	c.Flags().StringVar(&match, "match", "", "only names that contain this")
	return c
}

// quantiles of a histogram that holds something; its value is the count.
func quantiles(s *statsv1.Series) string {
	if s.GetValue() == 0 {
		return ""
	}
	var b strings.Builder
	for i, name := range []string{"p50", "p90", "p99", "p99.9"} {
		if i < len(s.GetQuantiles()) {
			fmt.Fprintf(&b, "  %s %.3g", name, s.GetQuantiles()[i])
		}
	}
	return b.String()
}

func labels(list []*statsv1.Label) string {
	if len(list) == 0 {
		return ""
	}
	parts := make([]string, len(list))
	for i, l := range list {
		parts[i] = fmt.Sprintf("%s=%q", l.GetName(), l.GetValue())
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// longestUpgrade is a canary's and a probation's longest time.
const longestUpgrade = 8 * 24 * time.Hour

func upgradeCommand(sh *shell) *cobra.Command {
	var binary, wait string
	var probation, canaryTime time.Duration
	var immediate, commit, abort bool
	var canary int
	c := &cobra.Command{
		Use: "upgrade", Short: "Replace proxyd by a new generation without dropping a connection", Args: cobra.NoArgs,
		Long: `Replace proxyd by a new generation without dropping a connection.

With --canary P the new generation takes P of a hundred new connections first, beside the old one, for --canary-time or until
"retinue upgrade --commit" or "retinue upgrade --abort" is called. A canary that crashes, hangs or answers with errors of its own is
aborted as a probation is.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if commit || abort {
				return sh.decide(&restartv1.DecideRequest{Abort: abort})
			}
			request := &restartv1.UpgradeRequest{WaitDrained: wait == "drained", Immediate: immediate}
			if wait != "" && wait != "drained" {
				return fmt.Errorf("--wait=%s: the only thing to wait for is drained", wait)
			}
			if binary != "" {
				path, err := filepath.Abs(binary)
				if err != nil {
					return err
				}
				request.Binary = path
			}
			if cmd.Flags().Changed("probation") {
				ms := probation.Milliseconds()
				request.ProbationMs = &ms
			}
			switch {
			case cmd.Flags().Changed("canary"):
				if canary < 1 || canary > 99 {
					return fmt.Errorf("--canary=%d: use 1 to 99, of a hundred new connections", canary)
				}
				request.CanaryPercent, request.CanaryMs = uint32(canary), canaryTime.Milliseconds()
			case cmd.Flags().Changed("canary-time"):
				return errors.New("--canary-time says how long --canary lasts: name both")
			}
			return sh.upgrade(request)
		},
	}
	c.Flags().BoolVar(&immediate, "immediate", false, "connections that cannot move end with their next response, instead of gradually")
	c.Flags().StringVar(&binary, "binary", "", "the new proxyd; the installed one when absent")
	c.Flags().StringVar(&wait, "wait", "", "drained: return when the old generation is gone")
	c.Flags().DurationVar(&probation, "probation", 0, "how long the old generation can take over again")
	c.Flags().IntVar(&canary, "canary", 0, "how many of a hundred new connections the new generation takes before the commit")
	c.Flags().DurationVar(&canaryTime, "canary-time", time.Minute, "how long; 0: until --commit or --abort")
	c.Flags().BoolVar(&commit, "commit", false, "end the canary of the upgrade under way: all new connections for the new generation")
	c.Flags().BoolVar(&abort, "abort", false, "take the upgrade under way back, before its old generation drains")
	c.MarkFlagsMutuallyExclusive("commit", "abort")
	for _, of := range []string{"commit", "abort"} {
		for _, other := range []string{"binary", "wait", "probation", "immediate", "canary", "canary-time"} {
			c.MarkFlagsMutuallyExclusive(of, other)
		}
	}
	return c
}

func rollbackGenerationCommand(sh *shell) *cobra.Command {
	var wait string
	c := &cobra.Command{
		Use: "generation", Short: "Return to the proxyd binary that served before, as an upgrade: nothing is dropped", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if wait != "" && wait != "drained" {
				return fmt.Errorf("--wait=%s: the only thing to wait for is drained", wait)
			}
			return sh.upgrade(&restartv1.UpgradeRequest{Previous: true, WaitDrained: wait == "drained"})
		},
	}
	c.Flags().StringVar(&wait, "wait", "", "drained: return when the old generation is gone")
	return c
}

func (sh *shell) upgrade(request *restartv1.UpgradeRequest) error {
	conn, err := sh.dial("restartd")
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := within(longestUpgrade)
	defer cancel()
	events, err := restartv1.NewRestartClient(conn).Upgrade(ctx, request)
	if err != nil {
		return err
	}
	return sh.follow(events)
}

// decide commits the canary under way or takes the upgrade back, and tells what comes of it.
func (sh *shell) decide(request *restartv1.DecideRequest) error {
	conn, err := sh.dial("restartd")
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := within(longestUpgrade)
	defer cancel()
	events, err := restartv1.NewRestartClient(conn).Decide(ctx, request)
	if err != nil {
		return err
	}
	return sh.follow(events)
}

// follow prints the steps of an upgrade to its end.
func (sh *shell) follow(events grpc.ServerStreamingClient[restartv1.UpgradeEvent]) error {
	chatty := isTerminal(sh.out)
	for {
		event, err := events.Recv()
		if err == io.EOF {
			return errors.New("restartd ended the upgrade without saying how: see retinue status")
		}
		if err != nil {
			return err
		}
		if sh.json {
			fmt.Fprintln(sh.out, protojson.MarshalOptions{}.Format(event))
		} else if chatty || event.GetDone() {
			fmt.Fprintf(sh.out, "%7.2f s  %-10s %s\n", float64(event.GetElapsedMs())/1000, event.GetStep(), event.GetMessage())
		}
		if event.GetDone() {
			if !event.GetOk() {
				return errReported
			}
			return nil
		}
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
