package accesslog

import (
	"time"

	"retinue.dev/proxyd/internal/stream"
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
	id := s.Worker.ID
	end := l.file.spool.End(id)
	c := end.Room(l.room)
	if c == nil {
		*l.file.logs.workers[id].Dropped++
		return
	}
	c.Bytes = l.program.Append(c.Bytes, s, &l.clocks[id], l.room)
	end.Wrote(1)
}
