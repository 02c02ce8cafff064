package tracing

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/libs/region"
	"retinue.dev/proxyd/internal/spool"
	"retinue.dev/proxyd/internal/stream"
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
	spool   *spool.Spool // nil before the first Log
	scratch []*scratch   // by worker
	ended   bool
	done    chan struct{}

	// The flusher's own.
	conn *fdpass.Conn
	away bool // told
}

// NewExporter makes an exporter of a generation that sends to statsd's socket of spans.
func NewExporter(socket string, generation uint64, workers []Worker, log *slog.Logger) *Exporter {
	return &Exporter{socket: socket, generation: generation, workers: workers, log: log}
}

// spans records the spans of one connection manager. It implements stream.AccessLog for every worker.
type spans struct {
	config   *Config
	exporter *Exporter
}

// Log gives the manager's configuration its recorder, which is told of every stream at its end.
func (e *Exporter) Log(c *Config) (stream.AccessLog, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.spool == nil {
		if e.ended {
			return nil, errors.New("the process is ending")
		}
		if err := e.start(); err != nil {
			return nil, err
		}
	}
	return &spans{c, e}, nil
}

func (e *Exporter) start() (err error) {
	workers := make([]*worker.Worker, len(e.workers))
	for i, w := range e.workers {
		workers[i] = w.Worker
		room := newScratch()
		e.scratch = append(e.scratch, &room)
	}
	if e.spool, err = spool.New("spans", workers, spool.Sizes{Chunk: chunkBytes, HandOver: handOver, Interval: flushInterval}); err != nil {
		return err
	}
	e.done = make(chan struct{})
	go e.flush()
	return nil
}

// Log implements stream.AccessLog.
func (l *spans) Log(s *stream.Stream) {
	if !s.Trace.Sampled {
		return
	}
	id := s.Worker.ID
	mine, room, end := &l.exporter.workers[id], l.exporter.scratch[id], l.exporter.spool.End(id)
	c := end.Room(maxSpan + maxCall*len(s.Calls) + maxTry*len(s.Tries) + 16)
	if c == nil {
		*mine.Dropped++
		return
	}
	c.Bytes = l.config.appendSpan(c.Bytes, room, s)
	for i := range s.Calls {
		c.Bytes = appendCall(c.Bytes, room, s, &s.Calls[i])
	}
	for i := range s.Tries {
		c.Bytes = appendTry(c.Bytes, room, s, &s.Tries[i])
	}
	n := 1 + len(s.Calls) + len(s.Tries)
	*mine.Recorded += uint64(n)
	end.Wrote(n)
}

// Close sends what the workers have left, who must have stopped, as far as statsd takes it at once, and ends the flusher.
func (e *Exporter) Close(ctx context.Context) {
	e.mu.Lock()
	e.ended = true
	started := e.spool != nil
	e.mu.Unlock()
	if !started {
		return
	}
	e.spool.Finish()
	select {
	case <-e.done:
	case <-ctx.Done():
	}
}

// flush is the flusher: a goroutine of the main side.
func (e *Exporter) flush() {
	defer close(e.done)
	defer e.hangUp()
	for {
		ended := e.spool.Ended()
		e.spool.Drain(func(worker int, c *spool.Chunk) {
			for !e.send(worker, c) && !e.spool.Ended() {
				time.Sleep(pause) // the workers fill their other chunk meanwhile, and drop what is more
			}
		})
		if ended {
			e.spool.Rest(e.send)
			return
		}
		if err := e.spool.Wait(); err != nil {
			e.log.Error("spans are exported no more: their flusher cannot wait", "error", err)
			return
		}
	}
}

// send gives a chunk to statsd.
func (e *Exporter) send(worker int, c *spool.Chunk) bool {
	err := e.dial()
	if err == nil {
		var message []byte
		if message, err = proto.Marshal(&statsv1.Spans{Generation: e.generation, Worker: uint32(worker), Count: uint32(c.Records), Spans: c.Bytes}); err == nil {
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
