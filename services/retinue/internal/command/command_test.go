package command

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestQuickstartIsTheExample(t *testing.T) {
	example, err := os.ReadFile("../../../../examples/quickstart.hcl")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(example, quickstart) {
		t.Error("the embedded quickstart differs from examples/quickstart.hcl: copy the one over the other")
	}
}

func TestExitStatus(t *testing.T) {
	dir := t.TempDir()
	crooked := filepath.Join(dir, "crooked.hcl")
	if err := os.WriteFile(crooked, []byte("a   =   1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		args []string
		want int
		says string
	}{
		{"version", []string{"version"}, exitDone, "retinue"},
		{"help", []string{"--help"}, exitDone, "upgrade"},
		{"unknown command", []string{"reloda"}, exitUsage, "unknown command"},
		{"unknown flag", []string{"status", "--verbse"}, exitUsage, "unknown flag"},
		{"too many arguments", []string{"version", "now"}, exitUsage, ""},
		{"no suite", []string{"reload", "--dir", dir}, exitFailed, "no suite runs below " + dir},
		{"no suite at all", []string{"status", "--dir", dir}, exitFailed, "no suite runs below " + dir},
		{"no suite as JSON", []string{"status", "--json", "--dir", dir}, exitFailed, `"down"`},
		{"a canary of all", []string{"upgrade", "--canary", "100", "--dir", dir}, exitFailed, "use 1 to 99"},
		{"a canary's time without one", []string{"upgrade", "--canary-time", "1s", "--dir", dir}, exitFailed, "name both"},
		{"commit and abort", []string{"upgrade", "--commit", "--abort"}, exitUsage, "[abort commit]"},
		{"commit of a binary", []string{"upgrade", "--commit", "--binary", "proxyd"}, exitUsage, "[binary commit]"},
		{"unformatted", []string{"fmt", "--check", dir}, exitFailed, "crooked.hcl"},
		{"format", []string{"fmt", dir}, exitDone, "crooked.hcl"},
		{"formatted", []string{"fmt", "--check", dir}, exitDone, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if got := run(test.args, &out, &out); got != test.want || !strings.Contains(out.String(), test.says) {
				t.Errorf("exit %d, want %d with %q; it said:\n%s", got, test.want, test.says, out.String())
			}
		})
	}
	if got, _ := os.ReadFile(crooked); string(got) != "a = 1\n" {
		t.Errorf("fmt wrote %q", got)
	}
}

func TestOneSuiteADirectory(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("a second suite in one directory: %v; want the directory and the process named", err)
	}
	unlock()
	unlock, err = lockDir(dir)
	if err != nil {
		t.Fatalf("after the first one's end: %v", err)
	}
	unlock()
}
