// Command manpage turns the text of --help on its standard input into a manual page: `manpage NAME SECTION`. A line of capitals
// is a heading; what is indented stays as it is.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: manpage NAME SECTION <text")
		os.Exit(2)
	}
	if err := write(os.Stdout, os.Stdin, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "manpage:", err)
		os.Exit(1)
	}
}

func write(out io.Writer, in io.Reader, name, section string) error {
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, ".TH %s %s\n", strings.ToUpper(name), section)
	literal, headed := false, false
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		line := strings.TrimRight(strings.TrimPrefix(lines.Text(), "# "), " \t")
		heading := isHeading(line)
		if !heading && !headed && line != "" {
			fmt.Fprintf(w, ".SH NAME\n%s\n.SH DESCRIPTION\n", name)
			headed = true
		}
		if indented := line != "" && (line[0] == '\t' || line[0] == ' '); indented != literal && line != "" {
			fmt.Fprintln(w, map[bool]string{true: ".nf", false: ".fi"}[indented])
			literal = indented
		}
		switch {
		case heading:
			headed = true
			fmt.Fprintf(w, ".SH %s\n", line)
		case line == "" && !literal:
			fmt.Fprintln(w, ".PP")
		default:
			fmt.Fprintln(w, escape(line))
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return w.Flush()
}

func isHeading(line string) bool {
	return line != "" && line == strings.ToUpper(line) && strings.Trim(line, "ABCDEFGHIJKLMNOPQRSTUVWXYZ ") == "" && line[0] != ' '
}

// escape keeps roff from reading text as requests.
func escape(line string) string {
	line = strings.ReplaceAll(strings.ReplaceAll(line, `\`, `\e`), "-", `\-`)
	if line != "" && (line[0] == '.' || line[0] == '\'') {
		line = `\&` + line
	}
	return line
}
