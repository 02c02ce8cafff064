package accesslog

import (
	"sync/atomic"
	"time"

	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
)

const (
	// handOver is the size at which a chunk goes to the flusher, in bytes.
	handOver = 64 << 10
	// maxLine bounds one line beside what its format says literally.
	maxLine = 64 << 10
	// chunkBytes is the memory of a chunk, mapped when it is touched: what a worker keeps while the flusher is behind.
	chunkBytes = 512 << 10
	// flushInterval is how long a line waits in its worker at the most.
	flushInterval = int64(100 * time.Millisecond)
)

// chunk is whole lines of one worker for one file. It belongs to the worker, or to the flusher.
type chunk struct {
	lines int
	bytes []byte
}

// writer is one worker's end of a file. It has two chunks: the one it fills, and one that is handed over, written, or back.
// Life: made on the main side with the file; appended to by its worker alone.
type writer struct {
	file    *File
	active  *chunk
	handed  atomic.Pointer[chunk] // to the flusher
	spare   atomic.Pointer[chunk] // back from it
	dropped *uint64               // the worker's own cell
	timer   timer.Timer
	wheel   *timer.Wheel
}

// Log is one access log of a snapshot: a format and a file. It implements stream.AccessLog for every worker.
type Log struct {
	program *Program
	file    *File
	clocks  []Clock
	room    int
}

// Linked tells that the log wants facts of the upstream's connection.
func (l *Log) Linked() bool { return l.program.linked() }

// Log implements stream.AccessLog.
func (l *Log) Log(s *stream.Stream) {
	w := l.file.writers[s.Worker.ID]
	c := w.active
	if c == nil || len(c.bytes) > chunkBytes-l.room {
		if c = w.next(); c == nil || len(c.bytes) > chunkBytes-l.room {
			*w.dropped++
			return
		}
	}
	if len(c.bytes) == 0 {
		w.wheel.Set(&w.timer, s.Worker.Now()+flushInterval)
	}
	c.bytes = l.program.Append(c.bytes, s, &l.clocks[s.Worker.ID], l.room)
	c.lines++
	if len(c.bytes) >= handOver {
		w.next()
	}
}

// next hands the active chunk over and answers the other one; the active one stays when the flusher has not given the other back.
func (w *writer) next() *chunk {
	if w.active == nil {
		w.active = &chunk{bytes: make([]byte, 0, chunkBytes)}
		w.spare.Store(&chunk{bytes: make([]byte, 0, chunkBytes)})
		return w.active
	}
	spare := w.spare.Swap(nil)
	if spare == nil {
		return w.active
	}
	w.handed.Store(w.active)
	w.active = spare
	w.file.wake()
	return spare
}

// OnTimer hands over what has waited for the flush interval.
func (w *writer) OnTimer(t *timer.Timer, now int64) {
	if w.active != nil && len(w.active.bytes) > 0 {
		if w.next(); len(w.active.bytes) > 0 {
			w.wheel.Set(t, now+flushInterval) // the flusher is behind
		}
	}
}

// attach makes a worker's end of the file; on the main side, before the worker can see a log of that file.
func (f *File) attach(w *worker.Worker, dropped *uint64) {
	end := &writer{file: f, dropped: dropped, wheel: &w.Timers}
	end.timer.Callback = end
	f.writers = append(f.writers, end)
}
