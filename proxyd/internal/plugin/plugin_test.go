package plugin

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"retinue.dev/libs/region"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
	filterv1 "retinue.dev/services/api/filter/v1"
	restartv1 "retinue.dev/services/api/restart/v1"
)

const socket = "/p/data.sock"

// rig is a worker with one plugin, over a simulated network; the far end of its channel is the test.
type rig struct {
	tb      testing.TB
	net     *simulated.Network
	worker  *worker.Worker
	reg     *Registry
	service *simulated.Service
	use     *Use
	open    *Use
	config  *stream.Config
}

func newRig(tb testing.TB, sub *filterv1.Subscription) *rig {
	r := &rig{tb: tb, net: simulated.New()}
	var err error
	if r.worker, err = worker.New(0, r.net); err != nil {
		tb.Fatal(err)
	}
	stats := counters.NewHeap(1)
	r.reg = NewRegistry([]*worker.Worker{r.worker}, 7, stats)
	r.service = r.net.Serve(poller.NewUnix(socket))
	object := &configv1.Plugin{Name: "p", TimeoutMs: 10, OnError: configv1.OnError_ON_ERROR_CLOSED, MaxInFlight: 64}
	r.use = r.reg.Use(tb.Context(), object, []byte("hash"), 0)
	r.open = r.reg.Use(tb.Context(), object, []byte("hash"), configv1.OnError_ON_ERROR_OPEN)
	r.config = &stream.Config{BufferLimit: 1 << 20, Cells: stats.HTTP(tb.Context(), []string{"l"})[0]}
	r.table(sub)
	r.turn()
	return r
}

func (r *rig) table(sub *filterv1.Subscription) {
	r.reg.Update(&restartv1.PluginTable{Plugins: []*restartv1.Plugin{{Name: "p", Generations: []*restartv1.PluginGeneration{{
		Number: 1, State: restartv1.PluginState_PLUGIN_STATE_SERVING, ConfigHash: []byte("hash"), ConfigId: 1, DataAddress: socket, Subscription: sub,
	}}}}})
}

func (r *rig) turn() {
	for range 4 {
		r.worker.Turn(0)
	}
}

func (r *rig) plugin() *simulated.Peer { return r.service.Last() }

// events are the frames that the plugin has received.
func (r *rig) events() (list []*filterv1.Event) {
	b := r.plugin().ReceiveAll()
	for len(b) > 0 {
		n := binary.LittleEndian.Uint32(b)
		var m filterv1.ToPlugin
		if err := proto.Unmarshal(b[4:4+n], &m); err != nil {
			r.tb.Fatalf("a frame that protobuf does not take: %v", err)
		}
		if e := m.GetEvent(); e != nil {
			list = append(list, e)
		}
		b = b[4+n:]
	}
	return list
}

func frame(m *filterv1.FromPlugin) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(err)
	}
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func answer(r *filterv1.Reply) []byte {
	return frame(&filterv1.FromPlugin{Message: &filterv1.FromPlugin_Reply{Reply: r}})
}

// exchange is one request with what became of it.
type exchange struct {
	stream.Stream
	arrived  int // heads at the router
	head     header.Request
	body     bytes.Buffer
	status   int
	trailers []string // what arrived, after what was there of the body
	finished int
	resets   int
}

func (x *exchange) EncodeInterim(*header.Response)           {}
func (x *exchange) EncodeHeaders(h *header.Response, _ bool) { x.status = h.Status }
func (x *exchange) EncodeData([]byte, bool)                  {}
func (x *exchange) EncodeTrailers(*header.Block)             {}
func (x *exchange) Reset(stream.ResetReason)                 { x.resets++ }
func (x *exchange) ReadDisable(bool)                         {}
func (x *exchange) BufferedBytes() int                       { return 0 }
func (x *exchange) Arm(int64)                                {}
func (x *exchange) OnFinished()                              { x.finished++ }
func (x *exchange) LocalAddress() netip.AddrPort             { return netip.AddrPort{} }

// router is the end of the chain: it keeps what arrives.
type router struct{ *exchange }

func (r router) DecodeHeaders(s *stream.Stream, _ bool) {
	r.arrived++
	r.head.CopyFrom(&s.Request)
}
func (r router) DecodeData(_ *stream.Stream, data []byte, _ bool) { r.body.Write(data) }
func (r router) DecodeTrailers(s *stream.Stream) {
	r.trailers = append(r.trailers, r.body.String()+" "+string(s.RequestTrailers.GetName([]byte("x-t"))))
}
func (r router) OnDownstreamAboveHigh(*stream.Stream) {}
func (r router) OnDownstreamBelowLow(*stream.Stream)  {}
func (r router) OnTimeout(*stream.Stream)             {}
func (r router) OnClosed(*stream.Stream)              {}

func (r *rig) request(use *Use, end bool) *exchange {
	x := &exchange{}
	config := *r.config
	config.Filters = []stream.Factory{use}
	x.Begin(r.worker, &config, x, router{x})
	x.Request.Reset()
	x.Request.SetMethod([]byte("POST"))
	x.Request.SetPath([]byte("/a"))
	x.Request.SetAuthority([]byte("h"))
	x.Request.AddString(header.UserAgent, "", "test")
	if !end {
		x.Request.AddString(header.ContentLength, "", "5")
	}
	x.Stream.DecodeHeaders(end)
	return x
}

var heads = &filterv1.Subscription{Phases: []filterv1.Phase{filterv1.Phase_PHASE_REQUEST_HEADERS}, RequestHeaders: []string{"user-agent", ":path"}}

// TestVersionOfProtocol: a generation that speaks a newer filter protocol is not called, and who waits for it is told both numbers.
func TestVersionOfProtocol(t *testing.T) {
	r := newRig(t, heads)
	for version, want := range map[uint32]string{0: "", 1: "", 2: "version 2 of the filter protocol, this proxyd 1"} {
		r.reg.Update(&restartv1.PluginTable{Plugins: []*restartv1.Plugin{{Name: "p", Generations: []*restartv1.PluginGeneration{{
			Number: 2 + uint64(version), State: restartv1.PluginState_PLUGIN_STATE_SERVING, ConfigHash: []byte("hash"), ConfigId: 1, DataAddress: socket,
			Subscription: heads, Protocol: version,
		}}}}})
		r.turn()
		missing, err := r.reg.Await(t.Context(), []*Use{r.use})
		if want == "" && (missing != "" || err != nil) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("version %d: %q, %v; want %q", version, missing, err, want)
		}
	}
}

func TestAnswersFindTheirStream(t *testing.T) {
	r := newRig(t, heads)
	a, b := r.request(r.use, true), r.request(r.use, true)
	r.turn()
	events := r.events()
	if len(events) != 2 || events[0].GetCall() == events[1].GetCall() || string(events[0].GetHeaders()[1].GetValue()) != "/a" {
		t.Fatalf("events %v", events)
	}
	// In the other order, one twice, and one that nobody asked for.
	set := func(call uint64, value string) []byte {
		return answer(&filterv1.Reply{Call: call, Headers: []*filterv1.HeaderOp{{Name: "x-a", Value: []byte(value)}}})
	}
	r.plugin().Send(bytes.Join([][]byte{set(events[1].GetCall(), "b"), set(events[1].GetCall(), "twice"), set(events[0].GetCall()+1<<32, "alien"), set(events[0].GetCall(), "a")}, nil))
	r.turn()
	for want, x := range map[string]*exchange{"a": a, "b": b} {
		if got := string(x.head.GetName([]byte("x-a"))); x.arrived != 1 || got != want {
			t.Errorf("%d heads arrived with x-a %q, want one with %q", x.arrived, got, want)
		}
	}
	if len(a.Calls) != 0 {
		t.Errorf("calls of a request without a trace are noted: %v", a.Calls)
	}
	if late := r.use.cells[0][counters.PluginRepliesLate]; late != 2 {
		t.Errorf("%d late answers counted, want 2", late)
	}
}

// A request whose span is recorded notes its calls, with how long they took and whether they failed.
func TestCallsAreNoted(t *testing.T) {
	r := newRig(t, heads)
	fine, late := r.request(r.use, true), r.request(r.use, true)
	fine.Trace.Sampled, late.Trace.Sampled = true, true
	r.turn()
	r.net.Advance(5e6)
	r.plugin().Send(answer(&filterv1.Reply{Call: r.events()[0].GetCall()}))
	r.turn()
	r.net.Advance(20e6)
	r.turn()
	for x, failed := range map[*exchange]bool{fine: false, late: true} {
		if len(x.Calls) != 1 {
			t.Fatalf("calls %v", x.Calls)
		}
		c := x.Calls[0]
		if c.Name != "plugin p" || c.Phase != "request_headers" || c.Failed != failed || c.End-c.Start < 5e6 {
			t.Errorf("%+v, failed should be %v", c, failed)
		}
	}
}

// What the plugin did not work of a call's time is queue delay; a plugin that claims more than the call took has none.
func TestQueueDelay(t *testing.T) {
	r := newRig(t, heads)
	for _, handled := range []*uint32{nil, proto.Uint32(2e6), proto.Uint32(1<<32 - 1)} {
		r.request(r.use, true)
		r.turn()
		e := r.events()[0]
		r.net.Advance(5e6)
		reply := &filterv1.Reply{Call: e.GetCall()}
		if handled != nil {
			reply.HandledNs = *handled
		}
		r.plugin().Send(answer(reply))
		r.turn()
	}
	cells := r.use.cells[0][counters.PluginQueueTime:][:region.HistogramCells]
	want := make([]uint64, region.HistogramCells)
	region.Observe(want, region.Ticks(3e6))
	region.Observe(want, 0)
	if !slices.Equal(cells, want) {
		t.Errorf("the histogram is %v, want %v", cells, want)
	}
}

func TestDeadlineAndLateAnswer(t *testing.T) {
	r := newRig(t, heads)
	closed, open := r.request(r.use, true), r.request(r.open, true)
	r.turn()
	events := r.events()
	r.net.Advance(9e6)
	r.turn()
	if closed.status != 0 || open.arrived != 0 {
		t.Fatal("the time-out came early")
	}
	r.net.Advance(10e6)
	r.turn()
	if closed.status != 503 || closed.Details != "plugin_p_timeout" || closed.Flags.String() != "PC" {
		t.Errorf("closed: status %d, %s, %s", closed.status, closed.Details, closed.Flags)
	}
	if open.arrived != 1 || open.Flags.String() != "PO" {
		t.Errorf("open: %d heads, flags %s", open.arrived, open.Flags)
	}
	r.plugin().Send(answer(&filterv1.Reply{Call: events[0].GetCall(), Action: filterv1.Action_ACTION_RESPOND, Response: &filterv1.Response{Status: 200}}))
	r.turn()
	if closed.status != 503 || closed.finished != 1 {
		t.Errorf("a late answer changed the response: status %d, finished %d times", closed.status, closed.finished)
	}
}

func TestEndOfChannelFailsAtOnce(t *testing.T) {
	r := newRig(t, heads)
	closed, open := r.request(r.use, true), r.request(r.open, true)
	r.turn()
	r.plugin().CloseWrite()
	r.turn()
	if closed.status != 503 || closed.Details != "plugin_p_unavailable" || open.arrived != 1 {
		t.Errorf("closed: status %d, %s; open: %d heads", closed.status, closed.Details, open.arrived)
	}
	r.net.Advance(100e6)
	r.turn()
	if len(r.service.Peers) != 2 {
		t.Errorf("%d connections were made, want a second one", len(r.service.Peers))
	}
}

// A body that trailers follow has a last piece, and they are asked about after it, whatever the mode and however early they come.
func TestTrailers(t *testing.T) {
	for _, mode := range []filterv1.BodyMode{filterv1.BodyMode_BODY_NONE, filterv1.BodyMode_BODY_PREFIX, filterv1.BodyMode_BODY_STREAM, filterv1.BodyMode_BODY_BUFFER} {
		for _, asked := range []bool{false, true} {
			for _, early := range []bool{false, true} { // before the answer to the head
				t.Run(fmt.Sprintf("%v trailers=%v early=%v", mode, asked, early), func(t *testing.T) {
					sub := &filterv1.Subscription{Phases: []filterv1.Phase{filterv1.Phase_PHASE_REQUEST_HEADERS}, RequestBody: mode, PrefixBytes: 100}
					if mode != filterv1.BodyMode_BODY_NONE {
						sub.Phases = append(sub.Phases, filterv1.Phase_PHASE_REQUEST_BODY)
					}
					if asked {
						sub.Phases = append(sub.Phases, filterv1.Phase_PHASE_REQUEST_TRAILERS)
					}
					r := newRig(t, sub)
					x := r.request(r.use, false)
					var phases []filterv1.Phase
					ended, body := false, ""
					answered := func() {
						r.turn()
						for _, e := range r.events() {
							reply := &filterv1.Reply{Call: e.GetCall()}
							switch phases = append(phases, e.GetPhase()); e.GetPhase() {
							case filterv1.Phase_PHASE_REQUEST_BODY:
								if ended {
									t.Error("a piece after the last")
								}
								ended = e.GetEnd()
								if mode != filterv1.BodyMode_BODY_PREFIX {
									reply.Body = bytes.ToUpper(e.GetBody())
								}
								body += string(e.GetBody())
							case filterv1.Phase_PHASE_REQUEST_TRAILERS:
								if string(e.GetHeaders()[0].GetValue()) != "v" {
									t.Errorf("trailers %v", e.GetHeaders())
								}
								reply.Headers = []*filterv1.HeaderOp{{Name: "x-t", Value: []byte("edited")}}
							}
							r.plugin().Send(answer(reply))
							r.turn()
						}
					}
					if !early {
						answered()
					}
					x.Stream.DecodeData([]byte("body"), false)
					if !early {
						answered()
					}
					x.RequestTrailers.AddString(header.Other, "x-t", "v")
					x.Stream.DecodeTrailers()
					for range 4 {
						answered()
					}
					want := "BODY v"
					if mode == filterv1.BodyMode_BODY_NONE || mode == filterv1.BodyMode_BODY_PREFIX {
						want = "body v"
					}
					if mode != filterv1.BodyMode_BODY_NONE && (body != "body" || !ended) {
						t.Errorf("the plugin has seen %q, and its end: %v", body, ended)
					}
					if asked {
						want = strings.Replace(want, " v", " edited", 1)
					}
					if len(x.trailers) != 1 || x.trailers[0] != want {
						t.Errorf("arrived: %q, want one %q (phases %v)", x.trailers, want, phases)
					}
				})
			}
		}
	}
}

func TestLimitsOfCalls(t *testing.T) {
	r := newRig(t, heads)
	for range 64 {
		r.request(r.use, true)
	}
	if x := r.request(r.use, true); x.status != 503 || x.Details != "plugin_p_overflow" {
		t.Errorf("beyond max_in_flight: status %d, %s", x.status, x.Details)
	}
	r.turn()
	r.net.Advance(20e6)
	r.turn() // 64 time-outs in a row
	if x := r.request(r.use, true); x.status != 503 || x.Details != "plugin_p_circuit_open" {
		t.Errorf("after time-outs in a row: status %d, %s", x.status, x.Details)
	}
	r.net.Advance(1e9)
	r.turn()
	r.events()
	r.request(r.use, true)
	if x := r.request(r.use, true); x.Details != "plugin_p_circuit_open" {
		t.Errorf("beside the one that tries: %s", x.Details)
	}
	r.turn()
	r.plugin().Send(answer(&filterv1.Reply{Call: r.events()[0].GetCall()}))
	r.turn()
	if x := r.request(r.use, true); x.status != 0 {
		t.Errorf("after an answer: status %d, %s", x.status, x.Details)
	}
	if active := r.use.cells[0][counters.PluginRqActive]; active != 1 {
		t.Errorf("%d calls under way, want 1", active)
	}
}

// Nothing that a plugin answers may change where a message ends, or to whom it goes.
func TestForbiddenAnswers(t *testing.T) {
	op := func(name, value string) *filterv1.Reply {
		return &filterv1.Reply{Headers: []*filterv1.HeaderOp{{Name: name, Value: []byte(value)}}}
	}
	for name, reply := range map[string]*filterv1.Reply{
		"length": op("content-length", "9"), "coding": op("Transfer-Encoding", "chunked"), "connection": op("connection", "x"),
		"host": op("host", "x"), "upgrade": op("upgrade", "x"), "te": op("te", "x"), "trailer": op("trailer", "x"), "keep-alive": op("keep-alive", "x"),
		"line break": op("x-a", "a\r\nx-b: c"), "NUL": op("x-a", "a\x00"), "name": op("x a", "b"), "no name": op("", "b"), "colon": op("x:a", "b"),
		"method": op(":method", "PUT"), "path": op(":path", "x"), "path with space": op(":path", "/a b"), "authority": op(":authority", "a b"),
		"add path":         {Headers: []*filterv1.HeaderOp{{Op: filterv1.Op_OP_ADD, Name: ":path", Value: []byte("/x")}}},
		"remove length":    {Headers: []*filterv1.HeaderOp{{Op: filterv1.Op_OP_REMOVE, Name: "content-length"}}},
		"body of a head":   {Body: []byte("x")},
		"unknown action":   {Action: 17},
		"network action":   {Action: filterv1.Action_ACTION_CLOSE},
		"status":           {Action: filterv1.Action_ACTION_RESPOND, Response: &filterv1.Response{Status: 101}},
		"no response":      {Action: filterv1.Action_ACTION_RESPOND},
		"response framing": {Action: filterv1.Action_ACTION_RESPOND, Response: &filterv1.Response{Status: 200, Headers: []*filterv1.Header{{Name: "content-length", Value: []byte("1")}}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, heads)
			x, other := r.request(r.use, true), r.request(r.use, true)
			r.turn()
			events := r.events()
			reply.Call = events[0].GetCall()
			r.plugin().Send(append(answer(reply), answer(&filterv1.Reply{Call: events[1].GetCall()})...))
			r.turn()
			if x.arrived != 0 || x.status != 503 || x.Details != "plugin_p_invalid_reply" {
				t.Errorf("%d heads arrived, status %d, %s", x.arrived, x.status, x.Details)
			}
			if other.arrived != 1 {
				t.Errorf("the other stream: status %d, %s", other.status, other.Details)
			}
		})
	}
}

// A call costs no memory once the free lists have grown.
func TestCallAllocatesNothing(t *testing.T) {
	r := newRig(t, heads)
	config := *r.config
	config.Filters = []stream.Factory{r.use}
	x := &exchange{}
	target := r.use.gates[0].host.targets[0].channels[0]
	once := func() {
		x.Begin(r.worker, &config, x, router{x})
		x.Request.Reset()
		x.Request.SetMethod([]byte("GET"))
		x.Request.SetPath([]byte("/a"))
		x.Request.AddString(header.UserAgent, "", "test")
		x.Stream.DecodeHeaders(true)
		call := uint64(target.calls[0].generation)<<32 | 1
		target.OnData(target.conn, frameOf(call))
		x.NewReply(204)
		x.SendReply(nil, "", "done")
		r.worker.Turn(0)
		r.plugin().Discard()
	}
	for range 100 {
		once()
	}
	before := x.arrived
	if n := testing.AllocsPerRun(200, once); n > 0 {
		t.Errorf("%v allocations a call", n)
	}
	if x.arrived-before != 201 {
		t.Errorf("%d of 201 requests arrived", x.arrived-before)
	}
}

var frameBuffer [256]byte

// frameOf writes a reply that sets one header to a call, without allocating.
func frameOf(call uint64) []byte {
	b := append(frameBuffer[:0], 0, 0, 0, 0)
	b, at := begin(b, fieldMessage)
	b = varint(b, 1, call)
	b, o := begin(b, 3)
	b = raw(raw(b, 2, nameXA), 3, nameXA)
	finish(b, o)
	finish(b, at)
	binary.LittleEndian.PutUint32(b, uint32(len(b)-headBytes))
	return b
}

var nameXA = []byte("x-a")

// FuzzHostilePlugin sends anything in place of answers, in pieces. Whatever it is, each stream ends once, in its own way, and nothing that
// is kept for the plugin grows without bound.
func FuzzHostilePlugin(f *testing.F) {
	f.Add([]byte{}, uint16(1), false)
	f.Add(answer(&filterv1.Reply{Call: 1<<32 | 1}), uint16(3), false)
	f.Add(answer(&filterv1.Reply{Call: 1<<32 | 1, Headers: []*filterv1.HeaderOp{{Name: "content-length", Value: []byte("1")}}}), uint16(64), true)
	f.Add(answer(&filterv1.Reply{Call: 1<<32 | 1, Action: filterv1.Action_ACTION_RESPOND, Response: &filterv1.Response{Status: 200, Body: []byte("x")}}), uint16(7), true)
	f.Add(answer(&filterv1.Reply{Call: 1<<32 | 2, Body: []byte("replaced")}), uint16(1), true)
	f.Add(frame(&filterv1.FromPlugin{Message: &filterv1.FromPlugin_Opening{Opening: &filterv1.Opening{Protocol: 1}}}), uint16(1), false)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1, 2, 3}, uint16(2), false)
	f.Add(append([]byte{0, 0, 16, 0}, bytes.Repeat([]byte{1}, 70<<10)...), uint16(4000), true)
	f.Fuzz(func(t *testing.T, sent []byte, step uint16, bodies bool) {
		sub := heads
		if bodies {
			sub = &filterv1.Subscription{
				Phases:      []filterv1.Phase{filterv1.Phase_PHASE_REQUEST_HEADERS, filterv1.Phase_PHASE_REQUEST_BODY},
				RequestBody: filterv1.BodyMode(1 + step%3), PrefixBytes: 3,
			}
		}
		r := newRig(t, sub)
		var all []*exchange
		for i := range 4 {
			use := r.use
			if i%2 == 1 {
				use = r.open
			}
			x := r.request(use, !bodies)
			if bodies {
				x.Stream.DecodeData([]byte("hello"), true)
			}
			all = append(all, x)
		}
		r.turn()
		ch := r.use.gates[0].host.targets[0].channels[0]
		for len(sent) > 0 && ch.connected {
			n := min(int(step)+1, len(sent))
			r.plugin().Send(sent[:n])
			sent = sent[n:]
			r.turn()
			if cap(ch.large) > 2*maxFrame {
				t.Fatalf("%d bytes are kept of a frame", cap(ch.large))
			}
		}
		r.net.Advance(50e6)
		r.turn()
		r.net.Advance(50e6)
		r.turn()
		for i, x := range all {
			if x.finished > 1 || x.arrived > 1 || x.finished+x.arrived == 0 {
				t.Fatalf("stream %d: finished %d times, %d heads arrived, status %d %s", i, x.finished, x.arrived, x.status, x.Details)
			}
			if x.arrived == 1 {
				sane(t, x, bodies)
			}
			if x.finished == 0 {
				x.OnReset(stream.ResetRemote, 0, "over")
			}
		}
		if ch.flying != 0 || ch.streams != 0 {
			t.Fatalf("%d calls and %d streams are left", ch.flying, ch.streams)
		}
	})
}

// sane holds what must be true of a head that a plugin has had its way with.
func sane(t *testing.T, x *exchange, bodies bool) {
	t.Helper()
	for i := range x.head.Len() {
		_, name, value := x.head.At(i)
		if !header.ValidName(name) || !header.ValidValue(value) {
			t.Fatalf("field %q: %q goes upstream", name, value)
		}
	}
	if x.head.Has(header.TransferEncoding) || x.head.Has(header.Connection) || x.head.Has(header.Host) {
		t.Fatal("a plugin wrote framing")
	}
	if length := x.head.Get(header.ContentLength); length != nil && bodies && x.finished == 0 {
		if string(length) != strconv.Itoa(x.body.Len()) {
			t.Fatalf("Content-Length %s, %d bytes went upstream", length, x.body.Len())
		}
	}
}
