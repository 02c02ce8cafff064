// Package logformat owns the grammar of access-log formats and of header values with operators: Envoy's %NAME(ARGUMENT):LENGTH%.
//
// configd checks with it when a configuration is compiled, so that a slip is told with its place; proxyd compiles what Parse
// returns into a program. Both read the same grammar from the same table.
package logformat

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Bounds of what a format may hold.
const (
	MaxLength     = 65536 // of :LENGTH
	maxTimeFormat = 256
)

// Segment is one piece of a format: literal text, or an operator with what it was given.
type Segment struct {
	ID      ID
	Numeric bool
	Text    string // Literal: the text, with %% made %. StartTime: the strftime format, "" for RFC 3339 with milliseconds. Else the argument
	Header  string // lower case, with the leading colon of a pseudo header
	Other   string // taken when Header is absent; "" for none
	Length  int    // at most so many bytes of the value; 0 for all
}

// Error says what is wrong with a format; Offset and Length mark the place in it, in bytes.
type Error struct {
	Offset, Length int
	Unknown        string // the operator's name when there is none of that name
	Later          bool   // the operator comes with a later release
	Message        string
}

func (e *Error) Error() string { return fmt.Sprintf("at byte %d: %s", e.Offset, e.Message) }

// Parse reads a format. The error is an *Error.
func Parse(format string) ([]Segment, error) {
	var segments []Segment
	var text strings.Builder
	flush := func() {
		if text.Len() > 0 {
			segments = append(segments, Segment{Text: text.String()})
			text.Reset()
		}
	}
	for i := 0; i < len(format); {
		if format[i] != '%' {
			text.WriteByte(format[i])
			i++
			continue
		}
		if strings.HasPrefix(format[i:], "%%") {
			text.WriteByte('%')
			i += 2
			continue
		}
		segment, n, err := operator(format[i:])
		if err != nil {
			err.Offset, err.Length = i, n
			return nil, err
		}
		flush()
		segments = append(segments, segment)
		i += n
	}
	flush()
	return segments, nil
}

// operator reads %NAME%, %NAME(ARGUMENT)% or %NAME(ARGUMENT):LENGTH% at the start of s and tells its length in bytes.
func operator(s string) (segment Segment, n int, _ *Error) {
	name, argument, length, hasArgument, n, ok := split(s)
	if !ok {
		end := strings.IndexAny(s[1:], "% ")
		if end < 0 {
			end = len(s) - 1
		}
		return segment, end + 1, &Error{Message: "This is no operator: they read %NAME% or %NAME(ARGUMENT)%, and a per cent sign itself is written %%."}
	}
	i := slices.IndexFunc(operators, func(o Operator) bool { return o.Name == name })
	if i < 0 {
		if slices.Contains(reserved, name) {
			return segment, n, &Error{Later: true, Message: fmt.Sprintf("%%%s%% arrives with a later release.", name)}
		}
		return segment, n, &Error{Unknown: name, Message: fmt.Sprintf("There is no operator %%%s%%.", name)}
	}
	op := operators[i]
	segment = Segment{ID: op.ID, Numeric: op.Numeric}
	switch {
	case op.Argument == None && hasArgument:
		return segment, n, &Error{Message: fmt.Sprintf("%%%s%% takes no argument.", name)}
	case op.Argument == Header && !hasArgument:
		return segment, n, &Error{Message: fmt.Sprintf("%%%s%% needs the name of a header: %%%s(X-NAME)%%.", name, name)}
	case length != "" && op.Argument != Header:
		return segment, n, &Error{Message: fmt.Sprintf("%%%s%% takes no length.", name)}
	}
	if length != "" {
		limit, err := strconv.Atoi(length)
		if err != nil || limit < 1 || limit > MaxLength {
			return segment, n, &Error{Message: fmt.Sprintf("A length is 1 to %d.", MaxLength)}
		}
		segment.Length = limit
	}
	switch op.Argument {
	case Style:
		if hasArgument && !slices.Contains(Styles, argument) {
			return segment, n, &Error{Message: fmt.Sprintf("%q is none of %s.", argument, strings.Join(Styles, ", "))}
		}
		segment.Text = argument
	case Span:
		parts := strings.Split(argument, ":")
		if len(parts) != 3 || !slices.Contains(Points, parts[0]) || !slices.Contains(Points, parts[1]) || !slices.Contains(Units, parts[2]) {
			return segment, n, &Error{Message: fmt.Sprintf("%%%s%% reads (START:END:UNIT): two of %s, and one of %s.", name, strings.Join(Points, ", "), strings.Join(Units, ", "))}
		}
		segment.Text = argument
	case Header:
		first, other, two := strings.Cut(argument, "?")
		if !headerName(first) || two && !headerName(other) {
			return segment, n, &Error{Message: fmt.Sprintf("%q is not the name of a header (or NAME?OTHER).", argument)}
		}
		segment.Header, segment.Other = strings.ToLower(first), strings.ToLower(other)
	case Time:
		if len(argument) > maxTimeFormat || !timeFormat(argument) {
			return segment, n, &Error{Message: fmt.Sprintf("%q is not a strftime format.", argument)}
		}
		segment.Text = argument
	}
	return segment, n, nil
}

// split takes an operator apart. An argument ends at the first closing parenthesis; START_TIME's holds per cent signs itself.
func split(s string) (name, argument, length string, hasArgument bool, n int, ok bool) {
	i := 1
	for i < len(s) && (s[i] >= 'A' && s[i] <= 'Z' || s[i] >= 'a' && s[i] <= 'z' || s[i] >= '0' && s[i] <= '9' || s[i] == '_') {
		i++
	}
	name = s[1:i]
	if name == "" {
		return
	}
	if i < len(s) && s[i] == '(' {
		end := strings.IndexByte(s[i:], ')')
		if end < 0 {
			return
		}
		argument, hasArgument = s[i+1:i+end], true
		i += end + 1
	}
	if i < len(s) && s[i] == ':' {
		from := i + 1
		for i = from; i < len(s) && s[i] >= '0' && s[i] <= '9'; i++ {
		}
		if length = s[from:i]; length == "" {
			return
		}
	}
	if i >= len(s) || s[i] != '%' {
		return
	}
	return name, argument, length, hasArgument, i + 1, true
}

// headerName tells whether s is a token of RFC 9110, or a pseudo header with its colon. A per cent sign, a token there, is
// not taken here.
func headerName(s string) bool {
	s = strings.TrimPrefix(s, ":")
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || strings.IndexByte("!#$&'*+.^_|~`-", c) >= 0) {
			return false
		}
	}
	return true
}

// timeFormat tells whether s is a strftime format of the conversions that proxyd renders.
func timeFormat(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' {
			return false
		}
		if s[i] != '%' {
			continue
		}
		if i++; i >= len(s) {
			return false
		}
		if s[i] >= '1' && s[i] <= '9' {
			if i++; i >= len(s) || s[i] != 'f' {
				return false
			}
			continue
		}
		if strings.IndexByte("aAbBcCdDeFfgGhHIjklmMnpPrRsStTuUVwWxXyYzZ%", s[i]) < 0 {
			return false
		}
	}
	return true
}
