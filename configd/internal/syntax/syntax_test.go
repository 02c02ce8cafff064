package syntax

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclsyntax"

	"retinue.dev/configd/internal/diag"
)

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func codes(l *diag.List) string {
	shown, _ := l.Sorted()
	var out []string
	for _, d := range shown {
		out = append(out, string(d.Code))
	}
	return strings.Join(out, " ")
}

// TestLoad holds which files of a directory belong to a configuration, and in which order.
func TestLoad(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"b.hcl": "stats {}\n", "a.hcl.json": "{}", "c.json": "{}", ".hidden.hcl": "(", "b.hcl~": "(", "notes.txt": "(",
	} {
		write(t, filepath.Join(dir, name), text)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub.hcl"), 0o700); err != nil {
		t.Fatal(err)
	}
	diags := &diag.List{}
	files := Load(dir, diags)
	if diags.HasErrors() || len(files.Bodies) != 3 || files.Dir != dir {
		t.Fatalf("%d bodies below %s: %s", len(files.Bodies), files.Dir, diags.Unix())
	}
	if got := files.Relative(filepath.Join(dir, "b.hcl")); got != "b.hcl" {
		t.Errorf("relative name %q", got)
	}

	diags = &diag.List{}
	files = Load(filepath.Join(dir, "b.hcl"), diags)
	if diags.HasErrors() || len(files.Bodies) != 1 || files.Dir != dir || files.Relative(filepath.Join(dir, "b.hcl")) != "b.hcl" {
		t.Errorf("one file: %d bodies below %s: %s", len(files.Bodies), files.Dir, diags.Unix())
	}
}

// TestUnreadable holds that what cannot be read is an answer, and that nothing is waited for.
func TestUnreadable(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo.hcl"), 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "good.hcl"), "stats {}\n")
	large := filepath.Join(dir, "large")
	if err := os.Mkdir(large, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(large, "x.hcl"), "#")
	if err := os.Truncate(filepath.Join(large, "x.hcl"), MaxFileBytes+1); err != nil {
		t.Fatal(err)
	}
	total := filepath.Join(dir, "total")
	if err := os.Mkdir(total, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a", "b", "c", "d", "e"} {
		write(t, filepath.Join(total, n+".hcl"), "#")
		if err := os.Truncate(filepath.Join(total, n+".hcl"), MaxFileBytes-1); err != nil {
			t.Fatal(err)
		}
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ path, codes string }{
		{filepath.Join(dir, "missing"), "E0102"},
		{dir, "E0102"}, // the FIFO
		{filepath.Join(dir, "fifo.hcl"), "E0102"},
		{empty, "E0105"},
		{large, "E0103"},
		{filepath.Join(large, "x.hcl"), "E0103"},
		{total, "E0103"},
	} {
		diags := &diag.List{}
		Load(c.path, diags)
		if got := codes(diags); got != c.codes {
			t.Errorf("%s: %s, want %s (%s)", c.path, got, c.codes, diags.Unix())
		}
	}
}

// TestDepth holds the bounds on what the recursive parsers and evaluators are given.
func TestDepth(t *testing.T) {
	deep := func(open, closing string, n int) string { return strings.Repeat(open, n) + strings.Repeat(closing, n) }
	for _, c := range []struct {
		name, file, text string
		bad              bool
	}{
		{"brackets", "x.hcl", "a = " + deep("[", "]", 70), true},
		{"some brackets", "x.hcl", "a = " + deep("[", "]", 60), false},
		{"parentheses over lines", "x.hcl", "a = " + deep("(\n", ")", 70), true},
		{"blocks", "x.hcl", deep("b {\n", "}\n", 70), true},
		{"templates", "x.hcl", `a = ` + deep(`"${`, `}"`, 40), true},
		{"heredoc templates", "x.hcl", "a = <<E\n" + deep(`${"${`, `}"}`, 40) + "\nE\n", true},
		{"control sequences", "x.hcl", `a = "` + deep(`%{if true}`, `%{endif}`, 1100) + `"`, true},
		{"negations", "x.hcl", "a = " + strings.Repeat("!", 1100) + "true", true},
		{"sums", "x.hcl", "a = 1" + strings.Repeat("+1", 1100), true},
		{"sums over lines in a list", "x.hcl", "a = [1" + strings.Repeat("\n+1", 1100) + "]", true},
		{"conditions", "x.hcl", "a = " + strings.Repeat("true ? 1 : ", 1100) + "1", true},
		{"indexes", "x.hcl", "a = b" + strings.Repeat("[0]", 1100), true},
		{"many small ones", "x.hcl", strings.Repeat("a {\n  b = [1 + 1, !true]\n}\n", 5000), false},
		{"a long list", "x.hcl", "a = [" + strings.Repeat("1 + 1,\n", 5000) + "]", false},
		{"exponent", "x.hcl", "a = 1e99999", true},
		{"long number", "x.hcl", "a = " + strings.Repeat("9", 100), true},
		{"JSON objects", "x.json", deep(`{"a":`, `}`, 70), true},
		{"JSON brackets in a string", "x.json", `{"a": "` + strings.Repeat("{[", 100) + `"}`, false},
		{"JSON template", "x.json", `{"a": "${` + deep("(", ")", 70) + `}"}`, true},
		{"JSON loop", "x.json", `{"a": "${[for x in y : x]}"}`, true},
		{"JSON splat", "x.json", `{"a": "${y[*].z}"}`, true},
		{"JSON sum", "x.json", `{"a": "${1 + 1}"}`, true},
		{"JSON escaped loop", "x.json", `{"a": "\u0024{[for x in y : x]}"}`, true},
		{"JSON plain template", "x.json", `{"a": "${local.b} and ${local.c}"}`, false},
	} {
		diags := &diag.List{}
		s := Source{c.file, []byte(c.text)}
		ok := false
		if IsJSON(c.file) {
			ok = checkJSON(s, diags)
		} else {
			ok = checkNative(s, diags)
		}
		if ok == c.bad || diags.HasErrors() != c.bad {
			t.Errorf("%s: allowed %v, diagnostics %q", c.name, ok, diags.Unix())
		}
	}
}

// FuzzShallow holds that the quick look at a file never lets through what the look at its tokens would refuse.
func FuzzShallow(f *testing.F) {
	for _, s := range []string{
		"", "a = 1\n", "a = \"x\" # \"\n", "a = \"\\\"[\"\n", "// (\n", "a = (\n1\n)\n", "x \"y\" {\n  z = [1, 2]\n}\n", "a = '['\n", "\xff{", "a = 1.5e3",
		strings.Repeat("[", 70), strings.Repeat("!", 600), "\"" + strings.Repeat("[", 70), "a = \"\\", "a = \"\n((((\"",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, src []byte) {
		if len(src) > 1<<16 || !plainlyShallow(src) {
			return
		}
		tokens, _ := hclsyntax.LexConfig(src, "x.hcl", hcl.InitialPos)
		diags := &diag.List{}
		if !checkTokens(tokens, diags) {
			t.Errorf("%q is not shallow: %s", src, diags.Unix())
		}
	})
}
