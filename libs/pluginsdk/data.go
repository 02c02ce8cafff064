package pluginsdk

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
	"unsafe"

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
			e.hold(1)
			ch := &channel{engine: e, conn: blocking(c, !e.concurrent), streams: map[uint64]*StreamState{}}
			if err := ch.serve(); err != io.EOF {
				slog.Warn("a data connection ended", "error", err)
			}
			ch.conn.Close()
			e.streams.Add(-int64(len(ch.streams)))
			e.hold(-1)
		}()
	}
}

// hold counts a data connection, and gives the runtime a processor for each beside those for everything else.
func (e *engine) hold(n int32) {
	e.holding.Lock()
	defer e.holding.Unlock()
	runtime.GOMAXPROCS(e.processors + int(e.connections.Add(n)))
}

// blocking takes a data connection out of the runtime's poller: a call that wakes a goroutine through it costs half as much again as one that
// wakes the thread. Where that cannot be done the connection stays as it is. Hot is for a connection whose own goroutine makes the calls: other goroutines
// are to have the processor while it waits.
func blocking(c net.Conn, hot bool) io.ReadWriteCloser {
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
	if hot {
		wait := syscall.NsecToTimeval(hotWait.Nanoseconds())
		hot = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &wait) == nil
	}
	return rawConn{fd, hot}
}

// hotWait is how long a read waits without the scheduler knowing.
const hotWait = 5 * time.Millisecond

// rawConn is a blocking descriptor, which one goroutine reads. A read that is hot keeps its processor while it waits, for at most hotWait: a read that
// the scheduler sees has it taken away after 20 µs, and getting one back wakes the runtime's monitor thread with every call. The
// time-out of the socket also makes the runtime's signals end such a wait, for a collection or to let somebody else run. Engine.hold sees to it that
// there are processors enough.
type rawConn struct {
	fd  int
	hot bool
}

func (c rawConn) Read(b []byte) (int, error) {
	for {
		var n int
		var err error
		if c.hot {
			n, err = c.readHot(b)
		} else {
			n, err = syscall.Read(c.fd, b)
		}
		switch {
		case err == syscall.EINTR:
			runtime.Gosched() // the runtime wants the processor
		case err == syscall.EAGAIN:
			c.await()
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func (c rawConn) readHot(b []byte) (int, error) {
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(c.fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// await blocks until there is something to read, for as long as it takes.
func (c rawConn) await() {
	p := struct {
		fd              int32
		events, revents int16
	}{fd: int32(c.fd), events: 1} // POLLIN
	_, _, _ = syscall.Syscall6(syscall.SYS_PPOLL, uintptr(unsafe.Pointer(&p)), 1, 0, 0, 0, 0)
}

func (c rawConn) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n, err := syscall.SendmsgN(c.fd, b[written:], nil, nil, syscall.MSG_NOSIGNAL)
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

func (c rawConn) Close() error { return syscall.Close(c.fd) }

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
