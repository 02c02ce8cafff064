package decompress

import (
	"errors"
	"iter"
)

var (
	errStopped = errors.New("the stream has ended")
	errPanic   = errors.New("the decoder panicked")
)

// flow is a decoder at work on a body that is not whole: a coroutine on the worker's own thread, which yields when the body has
// nothing more for it and when out is full. begin, step until it has an error, end; all on the worker.
type flow struct {
	side *side
	next func() (struct{}, bool)
	stop func()

	// Of the coroutine. What it has written into out up to filled holds until out is full: a decoder may yield with more behind that
	// which it has not told of yet, so that out is this body's alone.
	yield   func(struct{}) bool
	out     []byte
	filled  int
	given   int
	hungry  bool
	stopped bool // yield must not be called again
	err     error
}

// begin makes the coroutine. It runs with the first step.
func (f *flow) begin(s *side, out []byte) {
	f.side, f.out = s, out
	s.body.flow = f
	f.next, f.stop = iter.Pull(f.run)
}

// step runs until there is a piece, nothing to read, or the end.
func (f *flow) step() (piece []byte, hungry bool, err error) {
	f.hungry = false
	f.next()
	piece = f.out[f.given:f.filled]
	f.given = f.filled
	return piece, f.hungry, f.err
}

// end stops the coroutine wherever it stands. broken: the decoder is not to be used again.
func (f *flow) end() (broken bool) {
	f.stop()
	f.side.body.flow = nil
	return f.err == errPanic
}

// wants yields until there is more to read; false is the end of it.
func (f *flow) wants() bool {
	f.hungry = true
	return f.pause()
}

func (f *flow) pause() bool {
	f.stopped = f.stopped || !f.yield(struct{}{})
	return !f.stopped
}

// run is the coroutine.
func (f *flow) run(yield func(struct{}) bool) {
	f.yield = yield
	defer func() {
		if recover() != nil {
			f.err = errPanic
		}
	}()
	dec := f.side.dec
	for f.err = dec.Reset(&f.side.body); f.err == nil; {
		var n int
		n, f.err = dec.Read(f.out[f.filled:])
		if f.filled += n; f.filled == len(f.out) && f.err == nil {
			if !f.pause() {
				return
			}
			f.filled, f.given = 0, 0
		}
	}
}
