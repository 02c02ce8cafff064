package tracing

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/fdpass"
	"retinue.dev/libs/hello"
	"retinue.dev/libs/region"
	"retinue.dev/proxyd/internal/stream"
	statsv1 "retinue.dev/services/api/stats/v1"
)

// receiver is statsd as the exporter sees it.
type receiver struct {
	listener *fdpass.Listener
	got      chan *statsv1.Spans
}

func receive(t *testing.T, socket string) *receiver {
	t.Helper()
	l, err := fdpass.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	r := &receiver{l, make(chan *statsv1.Spans, 1000)}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	return r
}

func (r *receiver) serve(c *fdpass.Conn) {
	defer c.Close()
	for first := true; ; first = false {
		message, fds, err := c.Recv()
		for _, fd := range fds {
			unix.Close(fd)
		}
		m := &statsv1.Spans{}
		if err != nil || proto.Unmarshal(message, m) != nil {
			return
		}
		if !first {
			r.got <- m
			continue
		}
		reply := &statsv1.SpansReply{Hello: hello.Mine("statsd", region.Contract)}
		if err := hello.Check(hello.Mine("statsd", region.Contract), m.GetHello()); err != nil {
			reply.Error = err.Error()
		}
		if message, err = proto.Marshal(reply); err != nil || c.Send(message, nil) != nil {
			return
		}
	}
}

// TestExporter: spans reach statsd, in what is full and in what is old; while statsd is away so many are kept as have room, the
// others are counted, and statsd gets the kept ones when it is back.
func TestExporter(t *testing.T) {
	s := newStream(t)
	var recorded, dropped uint64
	socket := filepath.Join(t.TempDir(), "spans.sock")
	e := NewExporter(socket, 7, []Worker{{Worker: s.Worker, Recorded: &recorded, Dropped: &dropped}}, slog.New(slog.DiscardHandler))
	c := config(t, nil)
	c.Begin(s, nil, nil)
	var log stream.AccessLog
	log, err := e.Log(c)
	if err != nil {
		t.Fatal(err)
	}
	for range 10_000 {
		log.Log(s)
	}
	if recorded == 0 || dropped == 0 || recorded+dropped != 10_000 {
		t.Fatalf("%d recorded, %d dropped while statsd is away", recorded, dropped)
	}
	s.Trace.Sampled = false
	log.Log(s)
	if recorded+dropped != 10_000 {
		t.Error("a span that is not sampled was recorded")
	}
	statsd := receive(t, socket)
	got := uint64(0)
	take := func() {
		t.Helper()
		select {
		case m := <-statsd.got:
			got += uint64(m.GetCount())
			if n := len(fields(t, m.GetSpans())[scopeSpansSpans]); n != int(m.GetCount()) || m.GetGeneration() != 7 {
				t.Errorf("%d spans in a message of generation %d that says %d", n, m.GetGeneration(), m.GetCount())
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%d of %d spans came", got, recorded)
		}
	}
	take() // the chunk that was handed over
	done := make(chan struct{})
	go func() {
		e.Close(context.Background())
		close(done)
	}()
	<-done
	for got < recorded {
		take()
	}
	if got != recorded {
		t.Errorf("%d spans came of %d", got, recorded)
	}
	if _, err := NewExporter(socket, 7, nil, nil).Log(c); err != nil {
		t.Error(err)
	}
}
