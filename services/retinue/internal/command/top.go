package command

import (
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"retinue.dev/services/retinue/internal/top"
)

func topCommand(sh *shell) *cobra.Command {
	var interval time.Duration
	var once bool
	c := &cobra.Command{
		Use:   "top [clusters|listeners|workers|draining]",
		Short: "Watch requests, latency and connections, straight from shared memory",
		Long: `Watch what the suite does: rates, latencies, connections, and what holds a draining generation.

It reads the stats region itself and asks no daemon, so it works when proxyd, statsd or all of them stand still.
On a terminal it is live (o c l w d choose a view, q quits); elsewhere, with --once and with --json, it measures
one interval, prints it and ends.`,
		ValidArgs: top.Views,
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			what := top.Views[0]
			if len(args) == 1 {
				what = args[0]
			}
			if !slices.Contains(top.Views, what) {
				return fmt.Errorf("%q is no view: there are %s", what, strings.Join(top.Views, ", "))
			}
			if interval < 100*time.Millisecond || interval > time.Minute {
				return fmt.Errorf("--interval=%v: 100ms to 1m are possible", interval)
			}
			source, err := top.Open(sh.dir)
			if err != nil {
				return err
			}
			defer source.Close()
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			if once || sh.json || !isTerminal(sh.out) {
				return source.Once(ctx, sh.out, what, interval, sh.json)
			}
			return source.Live(ctx, sh.out.(*os.File), what, interval)
		},
	}
	c.Flags().DurationVar(&interval, "interval", time.Second, "between two looks; rates are over it")
	c.Flags().BoolVar(&once, "once", false, "print one interval and end, on a terminal too")
	return c
}
