package tracing

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/libs/region"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
	statsv1 "retinue.dev/services/api/stats/v1"
)

const (
	// chunkBytes is the most bytes of spans in one message to statsd: below fdpass.MaxMessage with what surrounds them.
	chunkBytes = 60 << 10
	// handOver is the size at which a chunk goes to the flusher, in bytes.
	handOver = chunkBytes / 2
	// flushInterval is how long a span waits in its worker at the most.
	flushInterval = int64(time.Second)
	// patience is how long statsd may take to accept a message.
	patience = time.Second
	// pause is between two attempts to reach statsd.
	pause = 500 * time.Millisecond
)

// Worker is what the exporter needs of one worker: its loop, and its cells.
type Worker struct {
	*worker.Worker
	Recorded, Dropped *uint64
}

// Exporter takes spans from workers to statsd. Its life: NewExporter on the main side; Log for each connection manager that exports;
// Close when the workers have stopped. Nothing runs before the first Log.
type Exporter struct {
	socket     string
	generation uint64
	workers    []Worker
	log        *slog.Logger

	mu      sync.Mutex
	writers []*writer
	bell    int      // eventfd
	event   *os.File // the same, for the flusher's end
	ended   atomic.Bool
	done    chan struct{}

	// The flusher's own.
	conn *fdpass.Conn
	away bool // told
}

// chunk is spans of one worker. It belongs to the worker, or to the flusher.
type chunk struct {
	spans uint32
	bytes []byte
}

// writer is one worker's end. It has two chunks: the one that it fills, and one that is handed over, sent, or back.
type writer struct {
	Worker
	exporter *Exporter
	active   *chunk
	handed   atomic.Pointer[chunk] // to the flusher
	spare    atomic.Pointer[chunk] // back from it
	timer    timer.Timer
	scratch  scratch
}

// NewExporter makes an exporter of a generation that sends to statsd's socket of spans.
func NewExporter(socket string, generation uint64, workers []Worker, log *slog.Logger) *Exporter {
	return &Exporter{socket: socket, generation: generation, workers: workers, log: log}
}

// spans records the spans of one connection manager. It implements stream.AccessLog for every worker.
type spans struct {
	config  *Config
	writers []*writer
}

// Log gives the manager's configuration its recorder, which is told of every stream at its end.
func (e *Exporter) Log(c *Config) (stream.AccessLog, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.writers == nil {
		if e.ended.Load() {
			return nil, errors.New("the process is ending")
		}
		if err := e.start(); err != nil {
			return nil, err
		}
	}
	return &spans{c, e.writers}, nil
}

func (e *Exporter) start() error {
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	e.bell, e.event, e.done = fd, os.NewFile(uintptr(fd), "spans"), make(chan struct{})
	for _, w := range e.workers {
		end := &writer{Worker: w, exporter: e, active: newChunk(), scratch: newScratch()}
		end.spare.Store(newChunk())
		end.timer.Callback = end
		e.writers = append(e.writers, end)
	}
	go e.flush()
	return nil
}

func newChunk() *chunk { return &chunk{bytes: make([]byte, 0, chunkBytes)} }

// Log implements stream.AccessLog.
func (l *spans) Log(s *stream.Stream) {
	if !s.Trace.Sampled {
		return
	}
	w := l.writers[s.Worker.ID]
	if len(w.active.bytes) > chunkBytes-maxSpan-maxCall*len(s.Calls)-maxTry*len(s.Tries)-16 && !w.next() {
		*w.Dropped++
		return
	}
	if len(w.active.bytes) == 0 {
		w.Timers.Set(&w.timer, s.Worker.Now()+flushInterval)
	}
	w.active.bytes = l.config.appendSpan(w.active.bytes, &w.scratch, s)
	for i := range s.Calls {
		w.active.bytes = appendCall(w.active.bytes, &w.scratch, s, &s.Calls[i])
	}
	for i := range s.Tries {
		w.active.bytes = appendTry(w.active.bytes, &w.scratch, s, &s.Tries[i])
	}
	n := 1 + len(s.Calls) + len(s.Tries)
	w.active.spans += uint32(n)
	*w.Recorded += uint64(n)
	if len(w.active.bytes) >= handOver {
		w.next()
	}
}

// next hands the active chunk over and takes the other one; false when the flusher has not given that back.
func (w *writer) next() bool {
	spare := w.spare.Swap(nil)
	if spare == nil {
		return false
	}
	w.handed.Store(w.active)
	w.active = spare
	w.exporter.wake()
	return true
}

// OnTimer hands over what has waited for the flush interval.
func (w *writer) OnTimer(t *timer.Timer, now int64) {
	if len(w.active.bytes) > 0 && !w.next() {
		w.Timers.Set(t, now+flushInterval) // the flusher is behind
	}
}

// one is what rings the bell; it never changes.
var one = binary.NativeEndian.AppendUint64(nil, 1)

// wake rings the flusher's bell. Any thread; it never blocks: a bell that rings already is EAGAIN.
func (e *Exporter) wake() { _, _ = unix.Write(e.bell, one) }

// Close sends what the workers have left, who must have stopped, as far as statsd takes it at once, and ends the flusher.
func (e *Exporter) Close(ctx context.Context) {
	e.mu.Lock()
	e.ended.Store(true)
	started := e.writers != nil
	e.mu.Unlock()
	if !started {
		return
	}
	e.wake()
	select {
	case <-e.done:
	case <-ctx.Done():
	}
}

// flush is the flusher: a goroutine of the main side.
func (e *Exporter) flush() {
	defer close(e.done)
	defer e.hangUp()
	buf := make([]byte, 8)
	for {
		ended := e.ended.Load() // before the chunks are looked at: none comes later
		for id, w := range e.writers {
			c := w.handed.Swap(nil)
			if c == nil {
				continue
			}
			for !e.send(id, c) && !e.ended.Load() {
				time.Sleep(pause) // the workers fill their other chunk meanwhile, and drop what is more
			}
			c.bytes, c.spans = c.bytes[:0], 0
			w.spare.Store(c)
		}
		if ended {
			for id, w := range e.writers {
				if w.active.spans > 0 && !e.send(id, w.active) {
					return
				}
			}
			return
		}
		if _, err := e.event.Read(buf); err != nil {
			e.log.Error("spans are exported no more: their flusher cannot wait", "error", err)
			return
		}
	}
}

// send gives a chunk to statsd.
func (e *Exporter) send(worker int, c *chunk) bool {
	err := e.dial()
	if err == nil {
		var message []byte
		if message, err = proto.Marshal(&statsv1.Spans{Generation: e.generation, Worker: uint32(worker), Count: c.spans, Spans: c.bytes}); err == nil {
			err = e.conn.Send(message, nil)
		}
		if err != nil {
			e.hangUp()
		}
	}
	switch {
	case err != nil && !e.away:
		e.away = true
		e.log.Warn("statsd takes no spans; they are dropped when they are too many", "error", err)
	case err == nil && e.away:
		e.away = false
		e.log.Info("statsd takes spans again")
	}
	return err == nil
}

// dial connects where there is no connection, and says hello.
func (e *Exporter) dial() (err error) {
	if e.conn != nil {
		if !e.conn.Gone() {
			return nil
		}
		e.hangUp()
	}
	if e.conn, err = fdpass.Dial(e.socket); err != nil {
		e.conn = nil
		return err
	}
	defer func() {
		if err != nil {
			e.hangUp()
		}
	}()
	if err = e.conn.SetDeadline(patience); err != nil {
		return err
	}
	message, err := proto.Marshal(&statsv1.Spans{Hello: hello.Mine("proxyd", region.Contract), Generation: e.generation})
	if err != nil {
		return err
	}
	if err = e.conn.Send(message, nil); err != nil {
		return err
	}
	answer, stray, err := e.conn.Recv()
	for _, fd := range stray {
		_ = unix.Close(fd)
	}
	if err != nil {
		return err
	}
	reply := &statsv1.SpansReply{}
	if err = proto.Unmarshal(answer, reply); err != nil {
		return err
	}
	if reply.GetError() != "" {
		return errors.New(reply.GetError())
	}
	return hello.Check(hello.Mine("proxyd", region.Contract), reply.GetHello())
}

func (e *Exporter) hangUp() {
	if e.conn != nil {
		_ = e.conn.Close()
		e.conn = nil
	}
}
