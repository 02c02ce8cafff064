// Package diag owns what configd says about a configuration: diagnostics with stable codes, source ranges and three
// written forms (text for a terminal, JSON, one line each).
package diag

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"

	configv1 "retinue.dev/services/api/config/v1"
)

// MaxShown bounds the diagnostics of one answer: past it a reader is not helped, and a hostile file makes millions.
const MaxShown = 50

// maxKept bounds what a List holds in memory before it only counts.
const maxKept = 1000

// Severity of a diagnostic: an error refuses the configuration, a warning does not.
type Severity int

// The severities.
const (
	Error Severity = iota
	Warning
)

func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "error"
}

// Diagnostic is one finding. Range points at the narrowest piece of source that shows the mistake; its zero value
// means that there is no place to point at. Context names the blocks around it, outermost first.
type Diagnostic struct {
	Code    Code
	Summary string
	Detail  string
	Range   hcl.Range
	Context string
}

// Severity follows from the code: E… is an error, W… a warning.
func (d Diagnostic) Severity() Severity {
	if strings.HasPrefix(string(d.Code), "W") {
		return Warning
	}
	return Error
}

// List collects diagnostics. The zero value is ready; it is used by one goroutine.
type List struct {
	kept    []Diagnostic
	errors  int
	total   int
	context []string
}

// Within runs f with name added to the context of what is reported meanwhile.
func (l *List) Within(name string, f func()) {
	l.context = append(l.context, name)
	f()
	l.context = l.context[:len(l.context)-1]
}

// Add reports d; an empty Context is filled with the current one.
func (l *List) Add(d Diagnostic) {
	l.total++
	if d.Severity() == Error {
		l.errors++
	}
	if len(l.kept) >= maxKept {
		return
	}
	if d.Context == "" {
		d.Context = strings.Join(l.context, ", ")
	}
	l.kept = append(l.kept, d)
}

// Report is Add with a formatted detail.
func (l *List) Report(code Code, at hcl.Range, summary, format string, args ...any) {
	l.Add(Diagnostic{Code: code, Summary: summary, Detail: fmt.Sprintf(format, args...), Range: at})
}

// HasErrors tells whether anything refuses the configuration.
func (l *List) HasErrors() bool { return l.errors > 0 }

// Errors and Warnings count everything reported, shown or not.
func (l *List) Errors() int { return l.errors }

// Warnings counts the warnings reported, shown or not.
func (l *List) Warnings() int { return l.total - l.errors }

// Sorted returns the diagnostics in source order, at most MaxShown; errors are kept before warnings. dropped counts
// those left out.
func (l *List) Sorted() (shown []Diagnostic, dropped int) {
	all := slices.Clone(l.kept)
	if len(all) > MaxShown {
		slices.SortStableFunc(all, func(a, b Diagnostic) int {
			return cmp.Or(cmp.Compare(a.Severity(), b.Severity()), compare(a, b))
		})
		all = all[:MaxShown]
	}
	slices.SortStableFunc(all, compare)
	all = slices.CompactFunc(all, func(a, b Diagnostic) bool { return a == b })
	return all, l.total - min(len(l.kept), MaxShown)
}

func compare(a, b Diagnostic) int {
	return cmp.Or(
		cmp.Compare(a.Range.Filename, b.Range.Filename),
		cmp.Compare(a.Range.Start.Byte, b.Range.Start.Byte),
		cmp.Compare(a.Severity(), b.Severity()),
		cmp.Compare(a.Code, b.Code),
		cmp.Compare(a.Detail, b.Detail))
}

// FromHCL reports what the HCL library found. Its own codes do not exist: its summaries are mapped to ours, and
// whatever is not known there takes fallback.
func (l *List) FromHCL(fallback Code, found hcl.Diagnostics) {
	for _, f := range found {
		d := Diagnostic{Code: fallback, Summary: f.Summary, Detail: f.Detail}
		if c, ok := hclCodes[f.Summary]; ok {
			d.Code = c
		}
		if f.Subject != nil {
			d.Range = *f.Subject
		} else if f.Context != nil {
			d.Range = *f.Context
		}
		if d.Summary == "Invalid single-argument block definition" {
			d.Detail += " A block in one line holds one attribute and no block; put each on its own line."
		}
		l.Add(d)
	}
}

// hclCodes maps summaries of the HCL library (v2.25) to codes. A summary that changes there falls back to a general code.
var hclCodes = map[string]Code{
	"Missing required argument":      MissingAttribute,
	"Incorrect JSON value type":      WrongType,
	"Incorrect attribute value type": WrongType,
	"Missing block label":            WrongLabels,
	"Call to unknown function":       UnknownVariable,
	"Number out of range":            OutOfRange, // ours, said through the library
}

// Near returns the candidate that name is most likely a slip of, or "".
func Near(name string, candidates []string) string {
	best, limit := "", 1+len(name)/4
	for _, c := range candidates {
		if c == name || len(c) > len(name)+limit || len(name) > len(c)+limit {
			continue
		}
		if d := levenshtein.Distance(name, c, nil); d <= limit {
			best, limit = c, d-1
		}
	}
	return best
}

// Proto gives the wire form of shown diagnostics.
func Proto(shown []Diagnostic) []*configv1.Diagnostic {
	out := make([]*configv1.Diagnostic, 0, len(shown))
	for _, d := range shown {
		severity := configv1.Severity_SEVERITY_ERROR
		if d.Severity() == Warning {
			severity = configv1.Severity_SEVERITY_WARNING
		}
		p := &configv1.Diagnostic{Severity: severity, Code: string(d.Code), Summary: d.Summary, Detail: d.Detail}
		if d.Range.Filename != "" {
			p.Source = &configv1.Source{File: d.Range.Filename, Line: uint32(d.Range.Start.Line), Column: uint32(d.Range.Start.Column)}
			p.EndLine, p.EndColumn = uint32(d.Range.End.Line), uint32(d.Range.End.Column)
		}
		out = append(out, p)
	}
	return out
}
