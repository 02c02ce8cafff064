// Package substitution replaces what a regular expression (RE2) matches, without allocating: the regexp package has no method that
// gives the places of groups into memory of the caller. Expressions are parsed and compiled by regexp/syntax; what is here walks its
// program, and a fuzz test holds it to what regexp does.
package substitution

import (
	"bytes"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"unicode/utf8"

	"retinue.dev/libs/routing"
)

// Substitution is an expression with what takes the place of each match. It is immutable.
type Substitution struct {
	insts    []syntax.Inst
	start    uint32
	row      int    // words of Machine.seen for one place of a text
	slots    int    // places of groups that are kept: two for each up to the last that is used
	anchored bool   // matches at the beginning of a text only
	literal  []byte // every match begins with it
	parts    []part

	// For texts that are too long for a Machine. It allocates.
	regex    *regexp.Regexp
	template []byte
}

// part of what a match becomes: text, then a group.
type part struct {
	text  []byte
	group int // -1: none
}

// New compiles an expression and the text for its matches, in which \1 to \9 are groups and \0 is the match.
func New(pattern, text string) (*Substitution, error) {
	s := &Substitution{slots: 2}
	var err error
	if err = routing.CheckExpression(pattern); err != nil {
		return nil, err
	}
	if s.regex, err = regexp.Compile(pattern); err != nil {
		return nil, err
	}
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, err
	}
	prog, err := syntax.Compile(parsed.Simplify())
	if err != nil {
		return nil, err
	}
	s.insts, s.start, s.row = prog.Inst, uint32(prog.Start), (len(prog.Inst)+63)/64
	s.anchored = prog.StartCond()&syntax.EmptyBeginText != 0
	literal, _ := s.regex.LiteralPrefix()
	s.literal = []byte(literal)
	return s, s.parse(text)
}

func (s *Substitution) parse(text string) error {
	var plain []byte
	for i := 0; i < len(text); i++ {
		c := text[i]
		if c != '\\' {
			plain = append(plain, c)
			if s.template = append(s.template, c); c == '$' {
				s.template = append(s.template, c)
			}
			continue
		}
		if i++; i == len(text) {
			return fmt.Errorf("substitution %q ends in a backslash", text)
		}
		switch c = text[i]; {
		case c == '\\':
			return fmt.Errorf("substitution %q: a path holds no backslash", text)
		case c < '0' || c > '9':
			return fmt.Errorf("substitution %q: \\%c is neither \\0 nor a group", text, c)
		case int(c-'0') > s.regex.NumSubexp():
			return fmt.Errorf("substitution %q: there is no group %c", text, c)
		}
		s.template = append(s.template, '$', '{', c, '}')
		s.parts = append(s.parts, part{plain, int(c - '0')})
		s.slots = max(s.slots, 2*int(c-'0')+2)
		plain = nil
	}
	if len(plain) > 0 {
		s.parts = append(s.parts, part{plain, -1})
	}
	return nil
}

// Machine is the memory of one worker, 256 KiB at the most. The zero value is ready.
type Machine struct {
	seen   []uint64 // for each place of the text a row of bits, one for each instruction: it was tried here and led to no match
	jobs   []job
	groups [20]int32
}

// job is an instruction to try at a place, or with the complement of a group's slot what to set it back to.
type job struct{ inst, at int32 }

const maxSeen = 1 << 15 // words

// Append adds the text with every match replaced, as (*regexp.Regexp).ReplaceAll has it.
func (m *Machine) Append(dst, text []byte, s *Substitution) []byte {
	words := (len(text) + 1) * s.row
	if words > maxSeen {
		return append(dst, s.regex.ReplaceAll(text, s.template)...)
	}
	m.seen = slices.Grow(m.seen[:0], words)[:words]
	clear(m.seen)
	done := 0
	for at := 0; at <= len(text) && m.find(text, at, s); {
		from, to := int(m.groups[0]), int(m.groups[1])
		dst = append(dst, text[done:from]...)
		if to > done || from == 0 { // an empty match behind another one is none
			dst = m.expand(dst, text, s)
		}
		done = to
		_, width := utf8.DecodeRune(text[at:])
		at = max(to, at+max(width, 1))
		// What led to the match stands in seen as well. The next search begins where the match ended or behind it, so that only that
		// row matters.
		clear(m.seen[to*s.row:][:s.row])
	}
	return append(dst, text[done:]...)
}

func (m *Machine) expand(dst, text []byte, s *Substitution) []byte {
	for i := range s.parts {
		p := &s.parts[i]
		dst = append(dst, p.text...)
		if p.group >= 0 && m.groups[2*p.group+1] >= 0 {
			dst = append(dst, text[m.groups[2*p.group]:m.groups[2*p.group+1]]...)
		}
	}
	return dst
}

// find looks for the leftmost match from a place on.
func (m *Machine) find(text []byte, at int, s *Substitution) bool {
	for {
		if s.anchored && at > 0 {
			return false
		}
		if len(s.literal) > 0 && !s.anchored {
			next := bytes.Index(text[at:], s.literal)
			if next < 0 {
				return false
			}
			at += next
		}
		if m.match(text, at, s) {
			return true
		}
		if at >= len(text) {
			return false
		}
		_, width := utf8.DecodeRune(text[at:])
		at += width
	}
}

// match tries the program at a place: by trying again, alternatives in order, each instruction once at each place of the text. So
// the time is that of the text's length times the program's, for all matches of a text together.
func (m *Machine) match(text []byte, start int, s *Substitution) bool {
	for i := range s.slots {
		m.groups[i] = -1
	}
	m.jobs = append(m.jobs[:0], job{int32(s.start), int32(start)})
	for len(m.jobs) > 0 {
		j := m.jobs[len(m.jobs)-1]
		m.jobs = m.jobs[:len(m.jobs)-1]
		if j.inst < 0 {
			m.groups[^j.inst] = j.at
			continue
		}
		if m.follow(text, j, s) {
			m.groups[0] = int32(start)
			return true
		}
	}
	return false
}

// follow runs from a job until it fails or the program has matched.
func (m *Machine) follow(text []byte, j job, s *Substitution) bool {
	pc, at := uint32(j.inst), int(j.at)
	for {
		word, bit := &m.seen[at*s.row+int(pc>>6)], uint64(1)<<(pc&63)
		if *word&bit != 0 {
			return false
		}
		*word |= bit
		inst := &s.insts[pc]
		switch inst.Op {
		case syntax.InstAlt, syntax.InstAltMatch:
			m.jobs = append(m.jobs, job{int32(inst.Arg), int32(at)})
		case syntax.InstCapture:
			if int(inst.Arg) < s.slots {
				m.jobs = append(m.jobs, job{^int32(inst.Arg), m.groups[inst.Arg]})
				m.groups[inst.Arg] = int32(at)
			}
		case syntax.InstEmptyWidth:
			if syntax.EmptyOp(inst.Arg)&^around(text, at) != 0 {
				return false
			}
		case syntax.InstNop:
		case syntax.InstRune, syntax.InstRune1, syntax.InstRuneAny, syntax.InstRuneAnyNotNL:
			if at == len(text) {
				return false
			}
			r, width := rune(text[at]), 1
			if r >= utf8.RuneSelf {
				r, width = utf8.DecodeRune(text[at:])
			}
			if !inst.MatchRune(r) {
				return false
			}
			at += width
		case syntax.InstMatch:
			m.groups[1] = int32(at)
			return true
		default: // InstFail
			return false
		}
		pc = inst.Out
	}
}

// around is what holds between two characters.
func around(text []byte, at int) syntax.EmptyOp {
	before, after := rune(-1), rune(-1)
	if at > 0 {
		before, _ = utf8.DecodeLastRune(text[:at])
	}
	if at < len(text) {
		after, _ = utf8.DecodeRune(text[at:])
	}
	return syntax.EmptyOpContext(before, after)
}
