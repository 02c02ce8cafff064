package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"retinue.dev/tests/suite"
)

// TestCommands runs every subcommand beside a suite, for people and as JSON, and wants the exit status: 0 done, 1 failed, 2 usage.
func TestCommands(t *testing.T) {
	s := suite.Start(t, plainConfig)
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good, bad, crooked := file("good.hcl", plainConfig), file("bad.hcl", strings.Replace(plainConfig, "respond", "respnd", 1)), file("crooked.hcl", "a   =   1\n")
	for _, test := range []struct {
		args []string
		exit int
		says []string
		json bool // with --json the standard output is one or several JSON values
	}{
		{[]string{"version"}, 0, []string{"retinue ", "("}, true},
		{[]string{"check", good}, 0, []string{"ok, snapshot"}, true},
		{[]string{"check", bad}, 1, []string{"bad.hcl line 8", `Did you mean "respond"?`}, true},
		{[]string{"check", filepath.Join(dir, "gone.hcl")}, 1, []string{"gone.hcl", "no such file"}, true},
		{[]string{"check"}, 2, []string{"retinue:"}, false},
		{[]string{"fmt", "--check", crooked}, 1, []string{"crooked.hcl"}, false},
		{[]string{"fmt", crooked}, 0, []string{"crooked.hcl"}, false},
		{[]string{"fmt", "--check", crooked}, 0, nil, false},
		{[]string{"fmt", filepath.Join(dir, "gone.hcl")}, 1, []string{"gone.hcl"}, false},
		{[]string{"reload"}, 0, []string{"snapshot"}, true},
		{[]string{"status"}, 0, []string{"configd", "statsd", "restartd", "snapshot", "listener web", "generation", "serving", "last reload", "workers"}, true},
		{[]string{"stats"}, 0, []string{"retinue_http_downstream_cx_total", `listener="web"`}, true},
		{[]string{"stats", "--match", "snapshot_applied"}, 0, []string{"retinue_server_snapshot_applied"}, true},
		{[]string{"upgrade", "--probation", "0s"}, 0, []string{"serves"}, true},
		{[]string{"upgrade", "--binary", crooked}, 1, []string{"crooked.hcl"}, true},
		{[]string{"upgrade", "--binary", filepath.Join(dir, "gone")}, 1, []string{"gone", "no such file"}, true},
		{[]string{"upgrade", "--probation", "soon"}, 2, []string{"soon"}, false},
		{[]string{"completion", "bash"}, 0, []string{"retinue"}, false},
		{[]string{"completion", "zsh"}, 0, []string{"retinue"}, false},
		{[]string{"completion", "fish"}, 0, []string{"retinue"}, false},
		{[]string{"reloda"}, 2, []string{"unknown command", "reload"}, false},
		{[]string{"status", "--verbse"}, 2, []string{"unknown flag"}, false},
	} {
		t.Run(strings.Join(test.args, " "), func(t *testing.T) {
			out, code := s.In(t).Retinue(test.args...)
			if code != test.exit {
				t.Errorf("exit status %d, want %d: %s", code, test.exit, out)
			}
			for _, want := range test.says {
				if !strings.Contains(out, want) {
					t.Errorf("it does not say %q: %s", want, out)
				}
			}
			if !test.json {
				return
			}
			text, code := s.In(t).Output(append(test.args, "--json")...)
			if code != test.exit {
				t.Errorf("with --json: exit status %d, want %d: %s", code, test.exit, text)
			}
			values := json.NewDecoder(strings.NewReader(text))
			for n := 0; ; n++ {
				var value any
				err := values.Decode(&value)
				if err != nil && n > 0 && !values.More() {
					return
				}
				if err != nil {
					t.Fatalf("with --json it is no JSON: %v: %s", err, text)
				}
			}
		})
	}
	if lines := strings.Count(first(s.Retinue("status")), "\n"); lines > 40 {
		t.Errorf("the status of a small suite has %d lines: that is no screen", lines)
	}
}

func first(out string, _ int) string { return out }

// TestStandstill stops each supervised daemon as a debugger would: its watchdog is not fed, it is killed and started again, and
// traffic does not notice.
func TestStandstill(t *testing.T) {
	t.Parallel()
	s := suite.Start(t, plainConfig)
	address := s.Address("web")
	stopped := map[string]int{}
	for _, d := range []string{"statsd", "configd", "restartd"} {
		stopped[d] = s.PID(d)
		if err := syscall.Kill(stopped[d], syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	back := func() error {
		for d, pid := range stopped {
			if now := s.PID(d); now == 0 || now == pid {
				return fmt.Errorf("%s is process %d", d, now)
			}
		}
		_, err := s.Status()
		return err
	}
	err := errors.New("not looked yet")
	for deadline := time.Now().Add(3 * suite.Patience); err != nil && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if failed := asks(address, "ok\n"); failed != nil {
			t.Fatalf("while its siblings stand still: %v", failed)
		}
		err = back()
	}
	if err != nil {
		t.Fatalf("they do not come back: %v\n%s", err, s.Log())
	}
	s.AwaitServing()
	if log := s.Log(); !strings.Contains(log, "stands still and is killed") {
		t.Errorf("the log does not say why they were killed: %s", log)
	}
}
