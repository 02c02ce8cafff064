// Package accesslog writes one line for each stream: formats compiled to programs, rendered on the worker into memory of its
// own, and written to files by flushers on the main side.
//
// A worker never waits for a disk. It renders into one of two chunks per file; a full or old chunk is handed to the file's
// flusher by one atomic store. When the flusher is behind, because the disk is full or slow, lines are dropped and counted.
package accesslog

import (
	"fmt"
	"math"
	"os"
	"slices"

	"retinue.dev/libs/logformat"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

// Program is a compiled format. Immutable, shared by the workers.
type Program struct {
	ops   []op
	fixed int            // the most bytes that everything but texts of the stream may take
	times int            // how many time formats there are
	shown []logformat.ID // operators of what the client's handshake has shown, by slot
}

// mode says how an operator's value is written.
type mode uint8

const (
	modeText   mode = iota // control characters escaped, "-" for nothing
	modeString             // within a JSON string
	modeValue              // a JSON value of its own: number, string or null
	modeRaw                // a header value: as it is, "" for nothing
)

// op is one step of a program.
type op struct {
	id      logformat.ID
	mode    mode
	numeric bool
	header  source
	other   source
	length  int // the most bytes of the value; 0 for all
	text    []byte
	slot    int // of the time format, in a worker's Clock; of what the handshake has shown, in its note
	time    *timeFormat
	span    span
	style   grpcStyle
}

// source is where the value of REQ, RESP or TRAILER comes from.
type source struct {
	pseudo pseudo
	id     header.ID
	name   []byte
}

type pseudo uint8

const (
	notPseudo pseudo = iota
	absent
	pseudoMethod
	pseudoPath
	pseudoAuthority
	pseudoScheme
	pseudoStatus
)

// numberBytes is what a number takes at the most, a null included.
const numberBytes = 24

// Compile compiles the format of an access log. A line ends with a line break.
func Compile(log *configv1.AccessLog) (*Program, error) {
	p := &Program{}
	if len(log.GetJson()) == 0 {
		segments, err := logformat.Parse(log.GetFormat())
		if err != nil {
			return nil, fmt.Errorf("format: %w", err)
		}
		for _, s := range segments {
			p.add(s, modeText)
		}
	} else if err := p.compileJSON(log.GetJson()); err != nil {
		return nil, err
	}
	p.literal("\n")
	return p, nil
}

// Value is a header value with operators: a program and each worker's clock. Shared by the workers.
type Value struct {
	program Program
	clocks  []Clock
}

// valueRoom bounds a rendered header value beside its literal text, in bytes.
const valueRoom = 8 << 10

// CompileValue compiles a header value for so many workers. What an operator has no value for is left out.
func CompileValue(format string, workers int) (*Value, error) {
	segments, err := logformat.Parse(format)
	if err != nil {
		return nil, err
	}
	v := &Value{clocks: make([]Clock, workers)}
	for _, s := range segments {
		v.program.add(s, modeRaw)
	}
	return v, nil
}

// Linked tells that the value wants facts of the upstream's connection.
func (v *Value) Linked() bool { return v.program.linked() }

// Append renders the value for s, on its worker's thread.
func (v *Value) Append(dst []byte, s *stream.Stream) []byte {
	return v.program.Append(dst, s, &v.clocks[s.Worker.ID], v.program.fixed+valueRoom)
}

func (p *Program) linked() bool {
	return slices.ContainsFunc(p.ops, func(o op) bool { return o.id.OfLink() })
}

func (p *Program) compileJSON(fields []*configv1.JsonField) error {
	for i, f := range fields {
		segments, err := logformat.Parse(f.GetFormat())
		if err != nil {
			return fmt.Errorf("json[%d]: %w", i, err)
		}
		open := ","
		if i == 0 {
			open = "{"
		}
		p.literal(open + `"` + string(appendJSON(nil, []byte(f.GetName()), math.MaxInt)) + `":`)
		if len(segments) == 1 && segments[0].ID != logformat.Literal {
			p.add(segments[0], modeValue)
			continue
		}
		p.literal(`"`)
		for _, s := range segments {
			p.add(s, modeString)
		}
		p.literal(`"`)
	}
	p.literal("}")
	return nil
}

// literal adds text that is written as it is; neighbours become one.
func (p *Program) literal(text string) {
	p.fixed += len(text)
	if n := len(p.ops); n > 0 && p.ops[n-1].id == logformat.Literal {
		p.ops[n-1].text = append(p.ops[n-1].text, text...)
		return
	}
	p.ops = append(p.ops, op{text: []byte(text)})
}

func (p *Program) add(s logformat.Segment, m mode) {
	switch s.ID {
	case logformat.Literal:
		if m == modeString {
			s.Text = string(appendJSON(nil, []byte(s.Text), math.MaxInt))
		}
		p.literal(s.Text)
		return
	case logformat.Hostname:
		name, err := os.Hostname()
		if err != nil {
			name = "-"
		}
		p.constant(name, m)
		return
	case logformat.StartTime:
		f := compileTime(s.Text)
		o := op{id: s.ID, mode: m, slot: p.times, time: f}
		p.times++
		p.fixed += f.bytes + 2
		p.ops = append(p.ops, o)
		return
	}
	p.fixed += numberBytes
	o := op{
		id: s.ID, mode: m, numeric: s.Numeric, length: s.Length,
		header: sourceOf(s.Header, s.ID), other: sourceOf(s.Other, s.ID),
	}
	switch {
	case s.ID == logformat.CommonDuration:
		o.span = spanOf(s.Text)
	case s.ID == logformat.GRPCStatus:
		o.style = grpcStyles[s.Text]
	case s.ID.OfTLS():
		o.slot = len(p.shown)
		p.shown = append(p.shown, s.ID)
	}
	p.ops = append(p.ops, o)
}

func (p *Program) constant(text string, m mode) {
	switch m {
	case modeValue:
		text = `"` + string(appendJSON(nil, []byte(text), math.MaxInt)) + `"`
	case modeString:
		text = string(appendJSON(nil, []byte(text), math.MaxInt))
	}
	p.literal(text)
}

func sourceOf(name string, id logformat.ID) source {
	switch {
	case name == "":
		return source{pseudo: absent}
	case name[0] != ':':
		// A request's host is its authority, whichever protocol it came by.
		if name == "host" && ofRequest(id) {
			return source{pseudo: pseudoAuthority}
		}
		return source{id: header.Lookup([]byte(name)), name: []byte(name)}
	case id == logformat.Resp && name == ":status":
		return source{pseudo: pseudoStatus}
	case !ofRequest(id):
		return source{pseudo: absent}
	}
	switch name {
	case ":method":
		return source{pseudo: pseudoMethod}
	case ":path":
		return source{pseudo: pseudoPath}
	case ":authority":
		return source{pseudo: pseudoAuthority}
	case ":scheme":
		return source{pseudo: pseudoScheme}
	}
	return source{pseudo: absent}
}

func ofRequest(id logformat.ID) bool { return id == logformat.Req || id == logformat.ReqWithoutQuery }

// Clock is a worker's memory of rendered times, one for each time format of a program. The zero value is ready.
type Clock []clockSlot

// Append renders the line of s. It writes at most room bytes, which must be above MinRoom: texts of the stream are cut where the line
// would become longer. Nothing is allocated when dst has that capacity and clock was used before.
func (p *Program) Append(dst []byte, s *stream.Stream, clock *Clock, room int) []byte {
	if len(*clock) < p.times {
		*clock = append(*clock, make([]clockSlot, p.times-len(*clock))...)
	}
	limit := len(dst) + room - p.fixed
	var shown []byte
	if len(p.shown) > 0 {
		shown = p.note(s)
	}
	for i := range p.ops {
		o := &p.ops[i]
		switch {
		case o.id == logformat.Literal:
			dst = append(dst, o.text...)
		case o.id == logformat.StartTime:
			quoted := o.mode == modeValue
			if quoted {
				dst = append(dst, '"')
			}
			before := len(dst)
			dst = o.time.append(dst, s.StartWall, &(*clock)[o.slot])
			limit += len(dst) - before
			if quoted {
				dst = append(dst, '"')
			}
		case o.numeric:
			before := len(dst)
			dst = o.appendNumber(dst, s)
			limit += len(dst) - before
		case o.id.OfTLS():
			if value := part(shown, o.slot); len(value) > 0 {
				dst = o.escaped(dst, value, limit)
			} else {
				dst = o.none(dst)
			}
		default:
			dst = o.appendText(dst, s, limit)
		}
		if o.id == logformat.Literal {
			limit += len(o.text)
		}
	}
	return dst
}

// MinRoom is the least room that Append may be given.
func (p *Program) MinRoom() int { return p.fixed }
