package pluginsdk

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
)

type settings struct{}

// asked is a filter that answers by a function.
type asked func(h *Head) Answer

func (asked) Wants() Wants               { return Wants{RequestHeaders: []string{"*"}} }
func (f asked) OnRequest(h *Head) Answer { return f(h) }

// echo is a filter that has state and bodies.
type echo struct{}

func (echo) Wants() Wants                 { return Wants{RequestBody: Stream} }
func (echo) OnRequest(h *Head) Answer     { return h.Set("x-path", h.Get(":path")) }
func (echo) OnRequestBody(b *Body) Answer { return Continue().Replace(bytes.Clone(b.Data)) }
func (echo) OnResponse(*Head) Answer      { return Respond(200, "no").Detail("word") }
func (echo) OnEnd(*StreamState)           {}

func engineOf(t testing.TB, concurrent bool, f Filter) *engine {
	t.Helper()
	e, err := newEngine(Plugin[settings]{Name: "test", Concurrent: concurrent, Configure: func(settings) (Filter, error) { return f, nil }})
	if err != nil {
		t.Fatal(err)
	}
	if r := e.setConfig(&filterv1.ConfigureRequest{ConfigId: 1}); len(r.GetProblems()) > 0 {
		t.Fatal(r)
	}
	return e
}

func frameOf(t testing.TB, m *filterv1.ToPlugin) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func opening(t testing.TB) []byte {
	return frameOf(t, &filterv1.ToPlugin{Message: &filterv1.ToPlugin_Opening{Opening: &filterv1.Opening{Protocol: 1}}})
}

func eventFrame(t testing.TB, e *filterv1.Event) []byte {
	return frameOf(t, &filterv1.ToPlugin{Message: &filterv1.ToPlugin_Event{Event: e}})
}

// receive reads one frame.
func receive(t testing.TB, r io.Reader) *filterv1.FromPlugin {
	t.Helper()
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, binary.LittleEndian.Uint32(head[:]))
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	var m filterv1.FromPlugin
	if err := proto.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return &m
}

// TestConcurrent has calls wait for each other: with Concurrent each has a goroutine, and answers come as they are ready.
func TestConcurrent(t *testing.T) {
	const calls = 20
	var all sync.WaitGroup
	all.Add(calls)
	e := engineOf(t, true, asked(func(h *Head) Answer {
		all.Done()
		all.Wait()
		return h.Set("x-name", h.Get("name"))
	}))
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() { _ = e.accept(l) }()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	out := opening(t)
	for i := range uint64(calls) {
		out = append(out, eventFrame(t, &filterv1.Event{
			Call: i + 1, Stream: i, ConfigId: 1, Phase: filterv1.Phase_PHASE_REQUEST_HEADERS,
			Headers: []*filterv1.Header{{Name: "name", Value: []byte{'a' + byte(i)}}},
		})...)
	}
	if _, err := c.Write(out); err != nil {
		t.Fatal(err)
	}
	if receive(t, c).GetOpening() == nil {
		t.Fatal("no opening")
	}
	var got []uint64
	for range calls {
		r := receive(t, c).GetReply()
		got = append(got, r.GetCall())
		if h := r.GetHeaders(); len(h) != 1 || string(h[0].GetValue()) != string('a'+byte(r.GetCall()-1)) {
			t.Errorf("call %d is answered by %v: another call's frame", r.GetCall(), r)
		}
	}
	slices.Sort(got)
	if len(slices.Compact(got)) != calls {
		t.Errorf("answered were %v", got)
	}
}

// TestBlockingRead: what comes is read whole, in order and to its end, however long it takes, while the runtime collects and takes its processors back.
func TestBlockingRead(t *testing.T) {
	for _, hot := range []bool{true, false} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		conn := blocking(far, hot)
		if raw, ok := conn.(rawConn); !ok || raw.hot != hot {
			t.Fatalf("%#v; want a blocking descriptor, hot: %v", conn, hot)
		}
		got := make(chan []byte)
		go func() {
			b, err := io.ReadAll(conn)
			if err != nil {
				t.Error(err)
			}
			got <- b
		}()
		var want []byte
		for i := range 20 {
			piece := bytes.Repeat([]byte{byte(i)}, 1000*i+1)
			want = append(want, piece...)
			if _, err := c.Write(piece); err != nil {
				t.Fatal(err)
			}
			runtime.GC() // stops the world: a reader that the runtime cannot stop would hang here
		}
		c.Close()
		if b := <-got; !bytes.Equal(b, want) {
			t.Errorf("hot %v: %d bytes were read, want %d", hot, len(b), len(want))
		}
		conn.Close()
		l.Close()
	}
}

// TestAnswers: what an Answer is on the wire, as protobuf reads it.
func TestAnswers(t *testing.T) {
	for name, test := range map[string]struct {
		answer Answer
		want   *filterv1.Reply
	}{
		"continue": {Continue(), &filterv1.Reply{}},
		"headers": {Answer{}.Set("a", "1").Add("b", "2").Remove("c"), &filterv1.Reply{Headers: []*filterv1.HeaderOp{
			{Op: filterv1.Op_OP_SET, Name: "a", Value: []byte("1")}, {Op: filterv1.Op_OP_ADD, Name: "b", Value: []byte("2")}, {Op: filterv1.Op_OP_REMOVE, Name: "c", Value: []byte{}},
		}}},
		"body":       {Continue().Replace([]byte("new")), &filterv1.Reply{Body: []byte("new")}},
		"empty body": {Continue().Replace(nil), &filterv1.Reply{Body: []byte{}}},
		"respond": {Respond(403, "no").Set("x", "y").Detail("word"), &filterv1.Reply{Action: filterv1.Action_ACTION_RESPOND, Detail: "word", Response: &filterv1.Response{
			Status: 403, Body: []byte("no"), Headers: []*filterv1.Header{{Name: "x", Value: []byte("y")}},
		}}},
		"skip":   {Skip(), &filterv1.Reply{Action: filterv1.Action_ACTION_SKIP_REST}},
		"close":  {Close(), &filterv1.Reply{Action: filterv1.Action_ACTION_CLOSE}},
		"modes":  {Continue().Mode(None, Buffer), &filterv1.Reply{RequestBody: None.Enum(), ResponseBody: Buffer.Enum()}},
		"cache":  {Continue().Cache(1500e6), &filterv1.Reply{CacheTtlMs: 1500}},
		"inject": {Continue().Inject([]byte("back")), &filterv1.Reply{Inject: []byte("back")}},
	} {
		b := test.answer.appendReply(nil, 7, 9)
		if n := binary.LittleEndian.Uint32(b); int(n) != len(b)-4 {
			t.Fatalf("%s: a frame of %d bytes says %d", name, len(b)-4, n)
		}
		var m filterv1.FromPlugin
		if err := proto.Unmarshal(b[4:], &m); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		test.want.Call, test.want.HandledNs = 7, 9
		if !proto.Equal(m.GetReply(), test.want) {
			t.Errorf("%s: %v, want %v", name, m.GetReply(), test.want)
		}
	}
}

// FuzzEvent compares the event that is read by hand with protobuf's.
func FuzzEvent(f *testing.F) {
	seed, err := proto.Marshal(&filterv1.Event{
		Call: 1, Stream: 2, ConfigId: 3, Phase: filterv1.Phase_PHASE_REQUEST_BODY, End: true, DeadlineUs: 5, Body: []byte("b"),
		Headers: []*filterv1.Header{{Name: "n", Value: []byte("v")}, {}}, Attributes: []*filterv1.Header{{Name: "source.ip"}},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Add([]byte{0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		var got event
		_ = got.parse(b) // whatever it is
		var want filterv1.Event
		if (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, &want) != nil {
			return
		}
		b, err := proto.Marshal(&want)
		if err != nil {
			return
		}
		if err := got.parse(b); err != nil {
			t.Fatalf("%v of %v", err, &want)
		}
		same := got.call == want.GetCall() && got.stream == want.GetStream() && got.config == want.GetConfigId() && got.phase == want.GetPhase() && got.end == want.GetEnd() &&
			got.deadline == want.GetDeadlineUs() && bytes.Equal(got.body, want.GetBody()) && len(got.headers) == len(want.GetHeaders()) && len(got.attributes) == len(want.GetAttributes())
		for i, h := range want.GetHeaders() {
			same = same && string(got.headers[i].name) == h.GetName() && bytes.Equal(got.headers[i].value, h.GetValue())
		}
		if !same {
			t.Errorf("%+v, want %v", got, &want)
		}
	})
}

// FuzzChannel is a proxy that sends anything: the connection ends, and nothing else does.
func FuzzChannel(f *testing.F) {
	call := eventFrame(f, &filterv1.Event{Call: 1, Stream: 1, ConfigId: 1, Phase: filterv1.Phase_PHASE_REQUEST_HEADERS, Headers: []*filterv1.Header{{Name: ":path", Value: []byte("/")}}})
	f.Add(append(opening(f), call...))
	f.Add(append(opening(f), eventFrame(f, &filterv1.Event{Call: 2, Stream: 1, ConfigId: 1, Phase: filterv1.Phase_PHASE_REQUEST_BODY, Body: []byte("x"), End: true})...))
	f.Add(call)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		e := engineOf(t, false, echo{})
		c := &pipe{Reader: bytes.NewReader(b)}
		ch := &channel{engine: e, conn: c, streams: map[uint64]*StreamState{}}
		if err := ch.serve(); err == nil {
			t.Error("a connection ended without a word")
		}
		for r := bytes.NewReader(c.out.Bytes()); r.Len() > 0; {
			receive(t, r)
		}
	})
}

type pipe struct {
	*bytes.Reader
	out bytes.Buffer
}

func (p *pipe) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p *pipe) Close() error                { return nil }
