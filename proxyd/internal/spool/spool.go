// Package spool takes records from workers to a goroutine of the main side, the flusher, without a lock and without waiting for it:
// access-log lines, spans.
//
// Each worker has two chunks: the one that it fills, and one that is handed over, written, or back. It hands over when a chunk is
// large enough or its first record has waited long enough, and only while the other chunk is back; until then it fills the one that
// it has, and where that is full a record is the caller's to drop and count. An eventfd wakes the flusher.
package spool

import (
	"encoding/binary"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
)

// Chunk is whole records of one worker. It belongs to the worker, or to the flusher.
type Chunk struct {
	Records int
	Bytes   []byte
}

// Sizes say when chunks go.
type Sizes struct {
	Chunk    int   // memory of each of the two, bytes; of a worker that never has a record there is none
	HandOver int   // a chunk of so many bytes goes to the flusher
	Interval int64 // ns that a record waits in its worker at the most, where the flusher keeps up
}

// Spool has an end for each worker. Its life: New on the main side, before a worker can see an End; the workers use theirs; the
// flusher's loop is Drain and Wait until Ended, then Rest. Finish, from anywhere, when the workers have stopped.
type Spool struct {
	sizes Sizes
	ends  []*End
	bell  int      // eventfd
	event *os.File // the same, for the flusher
	ended atomic.Bool
}

// End is one worker's: its methods are called by that worker alone.
type End struct {
	spool  *Spool
	worker *worker.Worker
	active *Chunk
	handed atomic.Pointer[Chunk] // to the flusher
	spare  atomic.Pointer[Chunk] // back from it
	timer  timer.Timer
}

// New makes a spool; name is for error messages of its descriptor.
func New(name string, workers []*worker.Worker, sizes Sizes) (*Spool, error) {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd", err)
	}
	s := &Spool{sizes: sizes, bell: fd, event: os.NewFile(uintptr(fd), name)}
	for _, w := range workers {
		e := &End{spool: s, worker: w}
		e.timer.Callback = e
		s.ends = append(s.ends, e)
	}
	return s, nil
}

// End is that of a worker, by its number.
func (s *Spool) End(worker int) *End { return s.ends[worker] }

// Room is a chunk with room for so many bytes, which the caller appends to and then tells by Wrote; nil where the flusher is behind.
func (e *End) Room(n int) *Chunk {
	c := e.active
	if most := e.spool.sizes.Chunk - n; c == nil || len(c.Bytes) > most {
		if c = e.next(); len(c.Bytes) > most {
			return nil
		}
	}
	return c
}

// Wrote tells that the chunk of Room has n records more.
func (e *End) Wrote(n int) {
	if e.active.Records == 0 {
		e.worker.Timers.Set(&e.timer, e.worker.Now()+e.spool.sizes.Interval)
	}
	e.active.Records += n
	if len(e.active.Bytes) >= e.spool.sizes.HandOver {
		e.next()
	}
}

// next hands the active chunk over and answers the other one; the active one stays when the flusher has not given the other back.
func (e *End) next() *Chunk {
	if e.active == nil {
		e.active = &Chunk{Bytes: make([]byte, 0, e.spool.sizes.Chunk)}
		e.spare.Store(&Chunk{Bytes: make([]byte, 0, e.spool.sizes.Chunk)})
		return e.active
	}
	spare := e.spare.Swap(nil)
	if spare == nil {
		return e.active
	}
	e.handed.Store(e.active)
	e.active = spare
	e.spool.Wake()
	return spare
}

// OnTimer implements timer.Callback: it hands over what has waited for the interval.
func (e *End) OnTimer(t *timer.Timer, now int64) {
	if e.active.Records > 0 {
		if e.next(); e.active.Records > 0 {
			e.worker.Timers.Set(t, now+e.spool.sizes.Interval) // the flusher is behind
		}
	}
}

// Waiting is the bytes that the worker has not handed over.
func (e *End) Waiting() int {
	if e.active == nil {
		return 0
	}
	return len(e.active.Bytes)
}

// one is what rings the bell; it never changes.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// Wake rings the flusher's bell. Any thread; it never blocks: a bell that rings already is EAGAIN.
func (s *Spool) Wake() { _, _ = unix.Write(s.bell, one) }

// Wait is the flusher's, until the bell has rung.
func (s *Spool) Wait() error {
	var buf [8]byte
	_, err := s.event.Read(buf[:])
	return err
}

// Finish tells the flusher that the workers have stopped.
func (s *Spool) Finish() {
	s.ended.Store(true)
	s.Wake()
}

// Ended tells the flusher so. It looks before it drains: nothing comes later than that.
func (s *Spool) Ended() bool { return s.ended.Load() }

// Drain gives the flusher what was handed over, and gives it back to the workers.
func (s *Spool) Drain(take func(worker int, c *Chunk)) {
	for id, e := range s.ends {
		if c := e.handed.Swap(nil); c != nil {
			take(id, c)
			c.Bytes, c.Records = c.Bytes[:0], 0
			e.spare.Store(c)
		}
	}
}

// Rest gives the flusher what the workers have not handed over, once they have stopped, until take says false.
func (s *Spool) Rest(take func(worker int, c *Chunk) bool) {
	for id, e := range s.ends {
		if e.active != nil && e.active.Records > 0 && !take(id, e.active) {
			return
		}
	}
}
