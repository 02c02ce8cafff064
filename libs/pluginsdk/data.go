package pluginsdk

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// Fields of ToPlugin and FromPlugin.
const (
	fieldOpening = 1
	fieldEvent   = 2
	fieldReply   = 2
)

// channel is one data connection: one worker of one proxyd generation. Its goroutine reads what came, asks the filter about each
// event, and writes all answers to what one read brought with one call.
type channel struct {
	engine  *engine
	conn    io.ReadWriteCloser
	streams map[uint64]*StreamState
	event   event
	head    Head // of the call under way, where calls come one after the other
	body    Body
	state   StreamState // of a filter that keeps nothing of its streams
	answer  Answer

	mu  sync.Mutex // of out and of the socket's writing side, where calls run concurrently
	out []byte
}

func (e *engine) accept(l net.Listener) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			e.connections.Add(1)
			ch := &channel{engine: e, conn: blocking(c), streams: map[uint64]*StreamState{}}
			if err := ch.serve(); err != io.EOF {
				slog.Warn("a data connection ended", "error", err)
			}
			ch.conn.Close()
			e.streams.Add(-int64(len(ch.streams)))
			e.connections.Add(-1)
		}()
	}
}

// blocking makes reads and writes of a data connection block their thread instead of going through the runtime's poller: a wake-up
// costs half, and a plugin has few of them. Where that cannot be done the connection stays as it is.
func blocking(c net.Conn) io.ReadWriteCloser {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return c
	}
	f, err := u.File()
	if err != nil {
		return c
	}
	defer f.Close()
	fd, err := syscall.Dup(int(f.Fd())) // Fd makes it blocking, for all copies
	if err != nil {
		return c
	}
	syscall.CloseOnExec(fd)
	c.Close()
	return rawConn(fd)
}

// rawConn is a blocking descriptor. One goroutine reads it; Close wakes that by shutting the socket down first.
type rawConn int

func (fd rawConn) Read(b []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), b)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (fd rawConn) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n, err := syscall.SendmsgN(int(fd), b[written:], nil, nil, syscall.MSG_NOSIGNAL)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

func (fd rawConn) Close() error { return syscall.Close(int(fd)) }

func (ch *channel) serve() error {
	r := bufio.NewReaderSize(ch.conn, 256<<10)
	var frame []byte
	opened := false
	for {
		var head [4]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		n := int(binary.LittleEndian.Uint32(head[:]))
		if n > maxFrame {
			return fmt.Errorf("a frame of %d bytes; at most %d are taken", n, maxFrame)
		}
		if ch.engine.concurrent {
			frame = nil // the calls keep it
		}
		frame = slices.Grow(frame[:0], n)[:n]
		if _, err := io.ReadFull(r, frame); err != nil {
			return err
		}
		for b := frame; len(b) > 0; {
			number, _, p, rest, err := next(b)
			switch {
			case err != nil:
			case number == fieldOpening && !opened:
				opened = true
				err = ch.open(p)
			case number == fieldEvent && opened:
				err = ch.onEvent(p)
			default:
				err = fmt.Errorf("field %d is not expected here", number)
			}
			if err != nil {
				return err
			}
			b = rest
		}
		if r.Buffered() == 0 {
			if err := ch.flush(); err != nil {
				return err
			}
		}
	}
}

func (ch *channel) open(p []byte) error {
	var o filterv1.Opening
	if err := proto.Unmarshal(p, &o); err != nil {
		return err
	}
	if o.GetProtocol() != 1 {
		return fmt.Errorf("protocol %d is spoken; this plugin speaks 1", o.GetProtocol())
	}
	mine, err := proto.Marshal(&filterv1.FromPlugin{Message: &filterv1.FromPlugin_Opening{Opening: &filterv1.Opening{Protocol: 1, MaxFrameBytes: maxFrame}}})
	if err != nil {
		return err
	}
	ch.out = binary.LittleEndian.AppendUint32(ch.out, uint32(len(mine)))
	ch.out = append(ch.out, mine...)
	return nil
}

func (ch *channel) onEvent(p []byte) error {
	e := &ch.event
	if ch.engine.concurrent {
		e = &event{}
	}
	if err := e.parse(p); err != nil {
		return err
	}
	config := ch.engine.config(e.config)
	if config == nil {
		if e.call != 0 { // retired while it was on its way: the proxy's fail mode holds
			slog.Warn("an event of an unknown configuration", "config_id", e.config)
		}
		return nil
	}
	s := ch.stream(config, e)
	if !ch.engine.concurrent {
		began := time.Now()
		ch.answer = config.call(e, s, &ch.head, &ch.body)
		if e.call != 0 {
			ch.out = ch.answer.appendReply(ch.out, e.call, time.Since(began))
		}
		return nil
	}
	began := time.Now()
	go func() {
		a := config.call(e, s, &Head{}, &Body{})
		if e.call == 0 {
			return
		}
		b := a.appendReply(nil, e.call, time.Since(began))
		ch.mu.Lock()
		defer ch.mu.Unlock()
		_, _ = ch.conn.Write(b) // a broken connection is the reader's to notice
	}()
	return nil
}

// stream finds or makes the state of the event's stream.
func (ch *channel) stream(c *configured, e *event) *StreamState {
	if !c.stateful {
		if ch.engine.concurrent {
			return &StreamState{ID: e.stream}
		}
		ch.state = StreamState{ID: e.stream}
		return &ch.state
	}
	s := ch.streams[e.stream]
	over := e.phase == filterv1.Phase_PHASE_END || e.phase == filterv1.Phase_PHASE_CLOSE
	switch {
	case s == nil:
		s = &StreamState{ID: e.stream}
		if !over {
			ch.streams[e.stream] = s
			ch.engine.streams.Add(1)
		}
	case over:
		delete(ch.streams, e.stream)
		ch.engine.streams.Add(-1)
	}
	return s
}

func (ch *channel) flush() error {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if len(ch.out) == 0 {
		return nil
	}
	_, err := ch.conn.Write(ch.out)
	if ch.out = ch.out[:0]; cap(ch.out) > 1<<20 {
		ch.out = nil
	}
	return err
}
