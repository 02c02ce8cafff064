package tlstransport

import (
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
)

const (
	// maxHandshakes is how many handshakes of a worker may be under way: each holds a coroutine's stack once it has its first turn.
	maxHandshakes = 2048
	// stepsPerTurn bounds the records of handshakes that one turn of the loop takes: a hello costs some 150 µs of arithmetic, and
	// what is already established wants its turn too.
	stepsPerTurn = 24
	// shrinkAfter is how long a connection must be quiet before its buffers are given back.
	shrinkAfter = int64(2e9)
)

// Side is the TLS of one worker: the bounds of its handshakes, the buffers of its idle connections. Worker's thread only.
type Side struct {
	worker *worker.Worker
	most   int // handshakes: maxHandshakes
	active int // of them that have a place
	turn   uint64
	steps  int // in that turn

	waiting line // for a turn with room
	lobby   line // for a place among the handshakes

	task  worker.Task
	timer timer.Timer
	fat   []*Transport
}

// NewSide makes it.
func NewSide(w *worker.Worker) *Side {
	s := &Side{worker: w, most: maxHandshakes}
	s.task.Runner = s
	s.timer.Callback = s
	return s
}

// line is a queue of transports. One that is gone stays until its turn comes.
type line struct{ first, last *Transport }

func (l *line) push(t *Transport) {
	t.waits = nil
	if l.last == nil {
		l.first = t
	} else {
		l.last.waits = t
	}
	l.last = t
}

func (l *line) pop() *Transport {
	for l.first != nil {
		t := l.first
		l.first, t.waits = t.waits, nil
		if l.first == nil {
			l.last = nil
		}
		if !t.over {
			return t
		}
	}
	return nil
}

// admit tells whether t may take a step now. If not it waits in line and is continued when it may.
func (s *Side) admit(t *Transport) bool {
	if t.granted {
		t.granted = false
		return true
	}
	if !t.placed {
		if s.active >= s.most || s.lobby.first != nil {
			s.lobby.push(t)
			return false
		}
		s.place(t)
	}
	if now := s.worker.Turns(); now != s.turn {
		s.turn, s.steps = now, 0
	}
	if s.steps < stepsPerTurn && s.waiting.first == nil {
		s.steps++
		return true
	}
	s.waiting.push(t)
	s.worker.Soon(&s.task)
	return false
}

// RunTask implements worker.Runner: the next turn's steps are for those that have waited longest.
func (s *Side) RunTask() {
	for range stepsPerTurn {
		t := s.waiting.pop()
		if t == nil {
			return
		}
		t.granted = true
		t.conn.Continue()
	}
	if s.waiting.first != nil {
		s.worker.Soon(&s.task)
	}
}

func (s *Side) place(t *Transport) {
	t.placed = true
	s.active++
}

// release takes a handshake's place back, if it has one, and gives it to the next one that waits.
func (s *Side) release(t *Transport) {
	if !t.placed {
		return
	}
	t.placed = false
	s.active--
	if s.active < s.most {
		if next := s.lobby.pop(); next != nil {
			s.place(next)
			s.waiting.push(next)
			s.worker.Soon(&s.task)
		}
	}
}

// Handshakes is how many are under way.
func (s *Side) Handshakes() int { return s.active }

// opened notes that t has read a record, and whether its buffer has grown beyond what an idle connection may hold.
func (s *Side) opened(t *Transport) {
	t.touched = s.worker.Now()
	if t.fat || bufferSize(t.tls) <= keptBuffer {
		return
	}
	t.fat = true
	s.fat = append(s.fat, t)
	if len(s.fat) == 1 {
		s.worker.Timers.Set(&s.timer, t.touched+shrinkAfter)
	}
}

// OnTimer implements timer.Callback: the buffers of connections that have been quiet go back.
func (s *Side) OnTimer(_ *timer.Timer, now int64) {
	kept := s.fat[:0]
	for _, t := range s.fat {
		switch {
		case t.over:
		case now-t.touched < shrinkAfter:
			kept = append(kept, t)
		default:
			t.fat = false
			dropBuffer(t.tls)
		}
	}
	clear(s.fat[len(kept):])
	s.fat = kept
	if len(s.fat) > 0 {
		s.worker.Timers.Set(&s.timer, now+shrinkAfter)
	}
}
