package schema_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/eval"
	"retinue.dev/configd/internal/schema"
	"retinue.dev/libs/logformat"
)

var update = flag.Bool("update", false, "write docs/reference")

const generated = "<!-- Generated from configd's schema table (make generate); do not edit. -->\n\n"

// TestReference holds docs/reference up to date with the tables in the code.
func TestReference(t *testing.T) {
	for name, text := range map[string]string{
		"configuration.md": configuration(),
		"diagnostics.md":   diagnostics(),
		"access-log.md":    accessLog(),
	} {
		path := filepath.Join("../../../docs/reference", name)
		if *update {
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(data) != text {
			t.Errorf("%s is stale: run `make generate`", path)
		}
	}
}

// TestCodes holds that codes are unique, in order, and that each is explained.
func TestCodes(t *testing.T) {
	seen := map[diag.Code]bool{}
	for _, e := range diag.Entries() {
		if seen[e.Code] || e.Title == "" || !strings.HasSuffix(e.Text, ".") {
			t.Errorf("entry %+v", e)
		}
		seen[e.Code] = true
	}
}

func configuration() string {
	var b strings.Builder
	b.WriteString(generated)
	b.WriteString(`# Configuration

A configuration is one file or a directory of files (` + "`.hcl`, or the JSON form of HCL in `.hcl.json` and `.json`" + `), taken in the
order of their names. ` + "`configd -t --config PATH`" + ` checks one. The order of blocks means nothing, except for routes: the first
that matches wins. One-line blocks hold one attribute and no block.

- **Durations** are strings with units: "250ms", "5s", "1m30s", "1h". "0" switches off what can be switched off.
- **Sizes** are bytes or strings: 4096, "64KiB", "1MiB", "10MB".
- **Shares** are strings in per cent: "5%", "0.25%".
- **References** name objects: ` + "`cluster.api`, `access_log.main`" + `; in the JSON form "cluster.api".
- **null** means that an attribute is not written.
- Words marked *later* belong to the language and are refused until the release that brings them; those marked *checked only* are
  read with a warning.

`)
	root := schema.Root()
	for _, n := range root.Blocks {
		if !n.Later {
			block(&b, n.Block, nil)
		}
	}
	b.WriteString("## Later\n\nReserved at the top level: ")
	var names []string
	for _, n := range root.Blocks {
		if n.Later {
			names = append(names, "`"+n.Name+"`")
		}
	}
	b.WriteString(strings.Join(names, ", ") + ".\n\n## Expressions\n\n")
	b.WriteString("Values may use `var.NAME`, `local.NAME`, references, `for` expressions, conditions, templates (`\"${local.host}:80\"`) and functions. " +
		"There is no clock, no network and no randomness: the same files and the same environment give the same snapshot. Work and size are bounded. " +
		"In the JSON form strings are templates, without `for`, `[*]` and arithmetic.\n\n| function | gives |\n| --- | --- |\n")
	for _, f := range eval.Functions() {
		fmt.Fprintf(&b, "| `%s` | %s |\n", f[0], f[1])
	}
	return b.String()
}

// block writes one block and those inside it; path are the blocks around it.
func block(b *strings.Builder, k *schema.Block, path []string) {
	title := k.Name
	switch {
	case k.Kind != "":
		title += fmt.Sprintf(" %q", k.Kind)
		if k.NameLabel != "" {
			title += fmt.Sprintf(" \"%s\"", strings.ToUpper(k.NameLabel))
		}
	case k.NameLabel != "":
		title += fmt.Sprintf(" \"%s\" \"%s\"", strings.ToUpper(k.Label), strings.ToUpper(k.NameLabel))
	case k.Label != "":
		title += fmt.Sprintf(" \"%s\"", strings.ToUpper(k.Label))
	}
	fmt.Fprintf(b, "%s %s\n\n", strings.Repeat("#", min(2+len(path), 6)), title)
	if len(path) > 0 {
		fmt.Fprintf(b, "In %s. ", strings.Join(path, " › "))
	}
	b.WriteString(k.Doc + "\n\n")
	if k.LabelDoc != "" {
		fmt.Fprintf(b, "Label: %s\n\n", k.LabelDoc)
	}
	if k.Example != "" {
		fmt.Fprintf(b, "```hcl\n%s\n```\n\n", k.Example)
	}
	attributes(b, k)
	if k.Name == "defaults" {
		b.WriteString("Blocks: `cluster` (with `circuit_breaker`), `listener`, `http` (with `timeouts`, `limits`), `tcp` and `route`, with the attributes that they have elsewhere, except those that name an object or an address.\n\n")
		return
	}
	for _, kind := range k.Kinds {
		block(b, kind, path)
	}
	var later []string
	for _, n := range k.Blocks {
		if n.Later {
			later = append(later, "`"+n.Name+"`")
		}
	}
	if len(later) > 0 {
		fmt.Fprintf(b, "*Later:* %s.\n\n", strings.Join(later, ", "))
	}
	for _, n := range k.Blocks {
		switch {
		case n.Later:
		case n.Name == k.Name:
			fmt.Fprintf(b, "Blocks: `%s`, again.\n\n", n.Name)
		default:
			block(b, n.Block, append(path[:len(path):len(path)], k.Name))
		}
	}
}

func attributes(b *strings.Builder, k *schema.Block) {
	if len(k.Attrs) == 0 {
		return
	}
	b.WriteString("| attribute | type | default | |\n| --- | --- | --- | --- |\n")
	for i := range k.Attrs {
		a := &k.Attrs[i]
		if a.Later {
			fmt.Fprintf(b, "| `%s` | | | *later*: %s |\n", a.Name, a.Doc)
			continue
		}
		text := describe(a)
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", a.Name, typeOf(a), defaultOf(a), text)
	}
	b.WriteString("\n")
}

func typeOf(a *schema.Attr) string {
	text := map[schema.Kind]string{
		schema.String: "string", schema.Bool: "bool", schema.Int: "number", schema.Duration: "duration", schema.Size: "size", schema.Percent: "share",
		schema.Reference: "reference", schema.Strings: "list of strings", schema.References: "list of references",
		schema.Records: "list of objects", schema.HeaderMap: "object", schema.Expression: "any",
	}[a.Kind]
	if a.One {
		text = strings.Replace(text, "list of references", "reference or list", 1)
	}
	if a.Kind == schema.Records && a.PlainFirst {
		text = "list of strings or objects"
	}
	return text
}

func defaultOf(a *schema.Attr) string {
	switch d := a.Default.(type) {
	case nil:
		if a.Required {
			return "**required**"
		}
		return a.DefaultDoc
	case string:
		return fmt.Sprintf("`%q`", d)
	case []string:
		return "`[\"" + strings.Join(d, "\", \"") + "\"]`"
	default:
		return fmt.Sprintf("`%v`", d)
	}
}

func describe(a *schema.Attr) string {
	text := strings.ToUpper(a.Doc[:1]) + a.Doc[1:]
	if len(a.Choices) > 0 {
		text += " One of `" + strings.Join(a.Choices, "`, `") + "`"
		text += "."
	}
	if bounds := a.Bounds(); bounds != "" {
		text += " " + bounds + "."
	}
	for i := range a.Fields {
		f := &a.Fields[i]
		text += fmt.Sprintf(" `%s`: %s", f.Name, f.Doc)
	}
	return strings.ReplaceAll(text, "|", "\\|")
}

func diagnostics() string {
	var b strings.Builder
	b.WriteString(generated)
	b.WriteString("# Diagnostics\n\nCodes are stable. E… refuses the configuration, W… does not (`configd -t --strict` fails on it too). " +
		"A check tells everything that it finds, in source order, at most 50. They come as text, as JSON (`--json`) and one a line (`--format unix`).\n\n")
	for _, e := range diag.Entries() {
		fmt.Fprintf(&b, "## %s: %s\n\n%s\n\n", e.Code, e.Title, e.Text)
	}
	return strings.TrimRight(b.String(), "\n") + "\n"
}

func accessLog() string {
	var b strings.Builder
	b.WriteString(generated)
	b.WriteString("# Access-log formats\n\nA format is one line of text with operators; names and meanings are Envoy's. A line break is added. " +
		"A value that is not there is `-`; a per cent sign is `%%`. Values of header edits take the same operators.\n\n" +
		"| operator | |\n| --- | --- |\n")
	for _, o := range logformat.Operators() {
		form := "%" + o.Name + "%"
		switch o.Argument {
		case logformat.Header:
			form = "%" + o.Name + "(NAME?OTHER):LENGTH%"
		case logformat.Time:
			form = "%" + o.Name + "(FORMAT)%"
		}
		number := ""
		if o.Numeric {
			number = " A number in JSON."
		}
		fmt.Fprintf(&b, "| `%s` | %s.%s |\n", form, strings.ToUpper(o.Doc[:1])+strings.ReplaceAll(o.Doc[1:], "|", "\\|"), number)
	}
	b.WriteString("\nIn quoted strings of HCL, `%{` begins a template and is written `%%{`.\n")
	return b.String()
}
