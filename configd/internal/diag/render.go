package diag

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/hashicorp/hcl/v2"
)

// maxLine bounds a source line that is shown; longer ones are cut around the place.
const maxLine = 160

// Text writes diagnostics for a terminal: summary, place, source line, underline, detail. sources are the files by
// the name that ranges carry. colour adds SGR sequences.
func (l *List) Text(sources map[string][]byte, colour bool) string {
	shown, dropped := l.Sorted()
	var b strings.Builder
	red, yellow, bold, reset := "", "", "", ""
	if colour {
		red, yellow, bold, reset = "\x1b[31m", "\x1b[33m", "\x1b[1m", "\x1b[0m"
	}
	for i, d := range shown {
		if i > 0 {
			b.WriteByte('\n')
		}
		word, tint := "Error", red
		if d.Severity() == Warning {
			word, tint = "Warning", yellow
		}
		fmt.Fprintf(&b, "%s%s%s: %s%s%s [%s]\n", tint, word, reset, bold, printable(d.Summary), reset, d.Code)
		if d.Range.Filename != "" {
			fmt.Fprintf(&b, "  on %s line %d", printable(d.Range.Filename), d.Range.Start.Line)
			if d.Context != "" {
				fmt.Fprintf(&b, ", in %s", printable(d.Context))
			}
			b.WriteString(":\n")
			line, under := snippet(sources[d.Range.Filename], d.Range)
			if line != "" {
				number := fmt.Sprintf("%5d: ", d.Range.Start.Line)
				fmt.Fprintf(&b, "%s%s\n", number, line)
				if under != "" {
					fmt.Fprintf(&b, "%s%s%s%s\n", strings.Repeat(" ", len(number)), tint, under, reset)
				}
			}
		}
		for line := range strings.SplitSeq(strings.TrimRight(d.Detail, "\n"), "\n") {
			if line != "" {
				fmt.Fprintf(&b, "  %s\n", printable(line))
			}
		}
	}
	if dropped > 0 {
		fmt.Fprintf(&b, "\n… and %d more.\n", dropped)
	}
	return b.String()
}

// Unix writes one line each: file:line:column: error: E0301 Summary: detail.
func (l *List) Unix() string {
	shown, _ := l.Sorted()
	var b strings.Builder
	for _, d := range shown {
		if d.Range.Filename != "" {
			fmt.Fprintf(&b, "%s:%d:%d: ", printable(d.Range.Filename), d.Range.Start.Line, d.Range.Start.Column)
		}
		fmt.Fprintf(&b, "%s: %s %s", d.Severity(), d.Code, printable(d.Summary))
		if d.Detail != "" {
			fmt.Fprintf(&b, ": %s", printable(strings.Join(strings.Fields(d.Detail), " ")))
		}
		b.WriteByte('\n')
	}
	return b.String()
}

type jsonPos struct {
	Line   int `json:"line"`
	Column int `json:"column"`
	Byte   int `json:"byte"`
}

type jsonRange struct {
	Filename string  `json:"filename"`
	Start    jsonPos `json:"start"`
	End      jsonPos `json:"end"`
}

type jsonDiagnostic struct {
	Severity string     `json:"severity"`
	Code     Code       `json:"code"`
	Summary  string     `json:"summary"`
	Detail   string     `json:"detail"`
	Context  string     `json:"context,omitempty"`
	Range    *jsonRange `json:"range,omitempty"`
}

// JSON writes Terraform's shape of diagnostics, with code and context added.
func (l *List) JSON() []byte {
	shown, dropped := l.Sorted()
	out := struct {
		Valid        bool             `json:"valid"`
		ErrorCount   int              `json:"error_count"`
		WarningCount int              `json:"warning_count"`
		Dropped      int              `json:"dropped,omitempty"`
		Diagnostics  []jsonDiagnostic `json:"diagnostics"`
	}{Valid: !l.HasErrors(), ErrorCount: l.Errors(), WarningCount: l.Warnings(), Dropped: dropped, Diagnostics: []jsonDiagnostic{}}
	for _, d := range shown {
		j := jsonDiagnostic{Severity: d.Severity().String(), Code: d.Code, Summary: d.Summary, Detail: d.Detail, Context: d.Context}
		if d.Range.Filename != "" {
			j.Range = &jsonRange{
				Filename: d.Range.Filename,
				Start:    jsonPos{d.Range.Start.Line, d.Range.Start.Column, d.Range.Start.Byte},
				End:      jsonPos{d.Range.End.Line, d.Range.End.Column, d.Range.End.Byte},
			}
		}
		out.Diagnostics = append(out.Diagnostics, j)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(out); err != nil {
		panic(err) // strings and integers only: cannot fail
	}
	return b.Bytes()
}

// snippet returns the first line of the range as a terminal can show it and its underline.
func snippet(src []byte, r hcl.Range) (line, under string) {
	if r.Start.Byte < 0 || r.Start.Byte > len(src) {
		return "", ""
	}
	begin := bytes.LastIndexByte(src[:r.Start.Byte], '\n') + 1
	end := len(src)
	if i := bytes.IndexByte(src[r.Start.Byte:], '\n'); i >= 0 {
		end = r.Start.Byte + i
	}
	to := min(max(r.End.Byte, r.Start.Byte), end)
	before, marked, after := flat(src[begin:r.Start.Byte]), flat(src[r.Start.Byte:to]), flat(src[to:end])
	if utf8.RuneCountInString(before) > maxLine/2 {
		runes := []rune(before)
		before = "…" + string(runes[len(runes)-maxLine/2:])
	}
	if runes := []rune(marked); len(runes) > maxLine/2 {
		marked, after = string(runes[:maxLine/2])+"…", ""
	}
	if runes := []rune(after); len(runes) > maxLine/2 {
		after = string(runes[:maxLine/2]) + "…"
	}
	line = strings.TrimRight(before+marked+after, " ")
	if line == "" {
		return "", ""
	}
	return line, strings.Repeat(" ", utf8.RuneCountInString(before)) + strings.Repeat("^", max(1, utf8.RuneCountInString(marked)))
}

// flat makes a piece of a source line safe for a terminal, one column a rune, tabs as four blanks.
func flat(b []byte) string {
	return printable(strings.ReplaceAll(strings.TrimSuffix(string(b), "\r"), "\t", "    "))
}

// printable replaces what could steer a terminal: a configuration may come from somebody else.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || (!unicode.IsPrint(r) && r != ' ') {
			return '?'
		}
		return r
	}, s)
}
