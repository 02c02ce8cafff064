// Package command is what people type: every subcommand of retinue, a client of the contracts in services/api.
//
// Exit status: 0 done, 1 failed, 2 usage.
package command

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	"retinue.dev/libs/buildinfo"
	"retinue.dev/libs/peer"
	"retinue.dev/services/retinue/internal/supervise"
)

const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	// exitChanges is diff's: as with Terraform, a script tells "some" from "failed".
	exitChanges = 2
)

// errReported ends a command with status 1 when the user has seen why.
var errReported = errors.New("reported")

// shell is what a command needs of its surroundings.
type shell struct {
	out, err io.Writer
	dir      string
	json     bool
}

// Main runs one command line and returns the exit status.
func Main(args []string) int {
	if len(args) > 0 && args[0] == supervise.ExecCommand {
		fmt.Fprintln(os.Stderr, "retinue:", supervise.Exec(args[1:]))
		return exitFailed
	}
	return run(args, os.Stdout, os.Stderr)
}

func run(args []string, out, errOut io.Writer) int {
	sh := &shell{out: out, err: errOut}
	root := newRoot(sh)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(errOut)
	ran := false
	var note func(c *cobra.Command)
	note = func(c *cobra.Command) {
		if inner := c.RunE; inner != nil {
			c.RunE = func(cmd *cobra.Command, args []string) error {
				ran = true
				return inner(cmd, args)
			}
		}
		for _, sub := range c.Commands() {
			note(sub)
		}
	}
	note(root)
	err := root.Execute()
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, errReported):
		return exitFailed
	case errors.Is(err, errChanges):
		return exitChanges
	}
	if s, ok := status.FromError(err); ok {
		err = errors.New(s.Message())
	}
	fmt.Fprintln(errOut, "retinue:", err)
	if !ran {
		return exitUsage
	}
	return exitFailed
}

func newRoot(sh *shell) *cobra.Command {
	root := &cobra.Command{
		Use:           "retinue",
		Short:         "The front door of the Retinue proxy suite",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&sh.dir, "dir", defaultDir(), "run directory of the suite")
	root.PersistentFlags().BoolVar(&sh.json, "json", false, "machine-readable output")
	root.AddCommand(runCommand(sh), checkCommand(sh), fmtCommand(sh), reloadCommand(sh), diffCommand(sh), historyCommand(sh), rollbackCommand(sh), explainCommand(sh), statusCommand(sh),
		statsCommand(sh), topCommand(sh), upgradeCommand(sh), versionCommand(sh))
	root.AddCommand(pluginCommand(sh), endpointCommand(sh))
	return root
}

func defaultDir() string {
	if os.Getuid() == 0 {
		return "/run/retinue"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
		return filepath.Join(dir, "retinue")
	}
	return filepath.Join(os.TempDir(), "retinue-"+strconv.Itoa(os.Getuid()))
}

// dial connects to a daemon of the suite; what is called must answer within the context's time.
func (sh *shell) dial(daemon string) (*grpc.ClientConn, error) {
	path := filepath.Join(sh.dir, daemon+".sock")
	if _, err := os.Stat(path); err != nil {
		if sh.absent() {
			return nil, sh.noSuite()
		}
		return nil, fmt.Errorf("%s does not run below %s: see the suite's log for why, and retinue status for the others", daemon, sh.dir)
	}
	return peer.Dial(path)
}

// absent says that no daemon has a socket below the run directory.
func (sh *shell) absent() bool {
	sockets, _ := filepath.Glob(filepath.Join(sh.dir, "*.sock"))
	return len(sockets) == 0
}

func (sh *shell) noSuite() error {
	return fmt.Errorf("no suite runs below %s: start one (retinue run, or systemctl start retinue.target), or name its --dir", sh.dir)
}

func (sh *shell) printJSON(v any) error {
	e := json.NewEncoder(sh.out)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), d)
}

// sibling is a binary beside this one.
func sibling(name string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	path := filepath.Join(filepath.Dir(self), name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s is not beside %s: install the whole suite", name, self)
	}
	return path, nil
}

func versionCommand(sh *shell) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if sh.json {
				return sh.printJSON(map[string]string{"version": buildinfo.Version, "revision": buildinfo.Revision()})
			}
			fmt.Fprintf(sh.out, "retinue %s (%s)\n", buildinfo.Version, buildinfo.Revision())
			return nil
		},
	}
}
