package stream

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/worker"
)

// still is a kernel of which only the clock is asked.
type still struct {
	poller.Poller
	now int64
}

func (s *still) Now() int64  { return s.now }
func (s *still) Wall() int64 { return s.now }

// trace is what happened, in order.
type trace struct{ events []string }

func (t *trace) add(format string, args ...any) {
	t.events = append(t.events, fmt.Sprintf(format, args...))
}

func (t *trace) take() string {
	text := strings.Join(t.events, " ")
	t.events = nil
	return text
}

// down is a server codec that writes down what it is given.
type down struct {
	*trace
	armed int64
}

func (d *down) EncodeInterim(h *header.Response)           { d.add("interim(%d)", h.Status) }
func (d *down) EncodeHeaders(h *header.Response, end bool) { d.add("head(%d%s)", h.Status, ended(end)) }
func (d *down) EncodeData(data []byte, end bool)           { d.add("data(%s%s)", data, ended(end)) }
func (d *down) EncodeTrailers(*header.Block)               { d.add("trailers") }
func (d *down) Reset(ResetReason)                          { d.add("reset") }
func (d *down) ReadDisable(b bool)                         { d.add("disable(%v)", b) }
func (d *down) BufferedBytes() int                         { return 0 }
func (d *down) Arm(at int64)                               { d.armed = min(d.armed, at) }
func (d *down) OnFinished()                                { d.add("finished") }
func (d *down) LocalAddress() netip.AddrPort               { return netip.AddrPort{} }

// last is a router that writes down what arrives.
type last struct{ *trace }

func (l *last) DecodeHeaders(_ *Stream, end bool)           { l.add("up.head%s", ended(end)) }
func (l *last) DecodeData(_ *Stream, data []byte, end bool) { l.add("up.data(%s%s)", data, ended(end)) }
func (l *last) DecodeTrailers(*Stream)                      { l.add("up.trailers") }
func (l *last) OnDownstreamAboveHigh(*Stream)               { l.add("above") }
func (l *last) OnDownstreamBelowLow(*Stream)                { l.add("below") }
func (l *last) OnTimeout(*Stream)                           { l.add("timeout") }
func (l *last) OnClosed(*Stream)                            { l.add("closed") }

func ended(end bool) string {
	if end {
		return "."
	}
	return ""
}

// scripted is a filter whose callbacks are hooks.
type scripted struct {
	PassThrough
	name string
	*trace
	c *Callbacks

	head, data, trailers, encodeHead, encodeData, encodeTrailers func(c *Callbacks, b []byte, end bool) ([]byte, Status)
}

type hook = func(c *Callbacks, b []byte, end bool) ([]byte, Status)

func (f *scripted) run(what string, h hook, c *Callbacks, b []byte, end bool) ([]byte, Status) {
	f.c = c
	if f.name != "" {
		f.add("%s.%s(%s%s)", f.name, what, b, ended(end))
	}
	if h == nil {
		return b, Continue
	}
	return h(c, b, end)
}

func (f *scripted) NewFilter(*worker.Worker) Filter { return f }

func (f *scripted) DecodeHeaders(c *Callbacks, end bool) Status {
	_, s := f.run("head", f.head, c, nil, end)
	return s
}

func (f *scripted) DecodeData(c *Callbacks, b []byte, end bool) ([]byte, Status) {
	return f.run("data", f.data, c, b, end)
}

func (f *scripted) DecodeTrailers(c *Callbacks) Status {
	_, s := f.run("trailers", f.trailers, c, nil, true)
	return s
}

func (f *scripted) EncodeHeaders(c *Callbacks, end bool) Status {
	_, s := f.run("ehead", f.encodeHead, c, nil, end)
	return s
}

func (f *scripted) EncodeData(c *Callbacks, b []byte, end bool) ([]byte, Status) {
	return f.run("edata", f.encodeData, c, b, end)
}

func (f *scripted) EncodeTrailers(c *Callbacks) Status {
	_, s := f.run("etrailers", f.encodeTrailers, c, nil, true)
	return s
}

func (f *scripted) OnDestroy(*Callbacks) {
	if f.name != "" {
		f.add("%s.destroy", f.name)
	}
}

func always(s Status) hook {
	return func(_ *Callbacks, b []byte, _ bool) ([]byte, Status) { return b, s }
}

type logs struct{ status []int }

func (l *logs) Log(s *Stream) { l.status = append(l.status, s.Status) }

// stage is one stream with filters of the test.
type stage struct {
	*trace
	*Stream
	clock *still
	down  *down
	cells *counters.HTTP
	logs  *logs
}

func newStage(t *testing.T, filters ...Factory) *stage {
	t.Helper()
	clock := &still{now: int64(time.Hour)}
	w, err := worker.New(0, clock)
	if err != nil {
		t.Fatal(err)
	}
	x := &stage{trace: &trace{}, Stream: &Stream{}, clock: clock, cells: new(counters.HTTP), logs: &logs{}}
	x.down = &down{trace: x.trace, armed: math.MaxInt64}
	for _, f := range filters {
		f.(*scripted).trace = x.trace
	}
	x.Begin(w, &Config{
		BufferLimit: 16, Filters: filters, Cells: []*counters.HTTP{x.cells}, Logs: []AccessLog{x.logs},
		StreamIdleTimeout: int64(5 * time.Minute),
	}, x.down, &last{x.trace})
	x.Request.Reset()
	x.Request.SetMethodID(header.MethodPost)
	return x
}

func (x *stage) want(t *testing.T, events string) {
	t.Helper()
	if got := x.take(); got != events {
		t.Errorf("got  %s\nwant %s", got, events)
	}
}

// turn lets the worker see the clock.
func (x *stage) turn(to time.Duration) {
	x.clock.now = int64(time.Hour + to)
	x.Worker.Turn(0)
}

func response(status int) *header.Response {
	r := &header.Response{}
	r.Status = status
	return r
}

func TestChainOrder(t *testing.T) {
	x := newStage(t, &scripted{name: "a"}, &scripted{name: "b"})
	x.DecodeHeaders(false)
	x.DecodeData([]byte("q"), true)
	x.want(t, "a.head() b.head() up.head a.data(q.) b.data(q.) up.data(q.)")
	x.EncodeInterim(response(103))
	x.EncodeHeaders(response(200), false)
	x.EncodeData([]byte("r"), false)
	x.want(t, "interim(103) b.ehead() a.ehead() head(200) b.edata(r) a.edata(r) data(r)")
	x.EncodeTrailers(&header.Block{})
	x.want(t, "b.etrailers(.) a.etrailers(.) trailers closed a.destroy b.destroy finished")
	if !slices.Equal(x.logs.status, []int{200}) || x.cells[counters.HTTPDownstreamRqActive] != 0 {
		t.Errorf("logged %v, %d active", x.logs.status, x.cells[counters.HTTPDownstreamRqActive])
	}
}

func TestStopAtHead(t *testing.T) {
	// The head waits, the body still comes to the filter, and both go on when it continues.
	f := &scripted{head: always(StopIteration), data: always(StopAndBuffer)}
	x := newStage(t, f)
	x.DecodeHeaders(false)
	x.DecodeData([]byte("ab"), false)
	x.DecodeData([]byte("cd"), true)
	x.want(t, "")
	f.c.ContinueDecoding()
	x.want(t, "up.head up.data(abcd.)")
	f.c.ContinueDecoding() // has nothing more to say
	x.want(t, "")
}

func TestStopEverything(t *testing.T) {
	// After StopAndBuffer from the head the filter sees nothing; once it continues the body comes to it first.
	f := &scripted{name: "f", head: always(StopAndBuffer)}
	x := newStage(t, f, &scripted{name: "g"})
	x.DecodeHeaders(false)
	x.DecodeData([]byte("ab"), false)
	x.RequestTrailers.AddString(header.Other, "x", "y")
	x.DecodeTrailers()
	x.want(t, "f.head()")
	f.c.ContinueDecoding()
	x.want(t, "g.head() up.head f.data(ab) g.data(ab) up.data(ab) f.trailers(.) g.trailers(.) up.trailers")
}

func TestTwoFiltersStop(t *testing.T) {
	a := &scripted{head: always(StopAndBuffer)}
	b := &scripted{head: always(StopIteration), data: always(StopAndBuffer)}
	x := newStage(t, a, b)
	x.DecodeHeaders(false)
	x.DecodeData([]byte("1"), false)
	a.c.ContinueDecoding()
	x.want(t, "")
	x.DecodeData([]byte("2"), true)
	x.want(t, "")
	b.c.ContinueDecoding()
	x.want(t, "up.head up.data(12.)")
}

func TestLeave(t *testing.T) {
	// Filters that leave are gone, whether the head comes at once or after another filter let it go; the others keep their order.
	leaves := func(name string) *scripted { return &scripted{name: name, head: always(Leave)} }
	a := &scripted{name: "a", head: always(StopAndBuffer)}
	x := newStage(t, leaves("1"), a, leaves("2"), leaves("3"), &scripted{name: "b"}, leaves("4"))
	x.DecodeHeaders(false)
	x.DecodeData([]byte("q"), true)
	x.want(t, "1.head() a.head()")
	a.c.ContinueDecoding()
	x.want(t, "2.head() 3.head() b.head() 4.head() up.head a.data(q.) b.data(q.) up.data(q.)")
	a.c.InjectDecodedData([]byte("i"), false)
	x.want(t, "b.data(i) up.data(i)")
	x.EncodeHeaders(response(200), true)
	x.want(t, "b.ehead(.) a.ehead(.) head(200.) closed a.destroy b.destroy finished")

	x = newStage(t, leaves("1"), leaves("2"))
	x.DecodeHeaders(true)
	x.EncodeHeaders(response(200), true)
	x.want(t, "1.head(.) 2.head(.) up.head. head(200.) closed finished")
	if !x.Plain() {
		t.Error("a stream that all filters have left is not plain")
	}

	other := &scripted{name: "other"}
	x = newStage(t, &scripted{head: func(c *Callbacks, _ []byte, _ bool) ([]byte, Status) {
		c.Become(other)
		return nil, other.DecodeHeaders(c, true)
	}})
	other.trace = x.trace
	x.DecodeHeaders(true)
	x.EncodeHeaders(response(200), true)
	x.want(t, "other.head(.) up.head. other.ehead(.) head(200.) closed other.destroy finished")
}

func TestContinueFromData(t *testing.T) {
	// The filter reads the body to its end before it lets the head go.
	f := &scripted{head: always(StopIteration)}
	f.data = func(_ *Callbacks, b []byte, end bool) ([]byte, Status) {
		if end {
			return b, Continue
		}
		return b, StopAndBuffer
	}
	x := newStage(t, f)
	x.DecodeHeaders(false)
	x.DecodeData([]byte("ab"), false)
	x.DecodeData([]byte("c"), true)
	x.want(t, "up.head up.data(ab) up.data(c.)")
}

func TestBodyChanged(t *testing.T) {
	upper := func(_ *Callbacks, b []byte, _ bool) ([]byte, Status) {
		return []byte(strings.ToUpper(string(b))), Continue
	}
	x := newStage(t, &scripted{data: upper, encodeData: upper})
	x.DecodeHeaders(false)
	x.DecodeData([]byte("q"), true)
	x.EncodeHeaders(response(200), false)
	x.EncodeData([]byte("r"), true)
	x.want(t, "up.head up.data(Q.) head(200) data(R.) closed finished")
}

func TestBodyAdded(t *testing.T) {
	add := func(c *Callbacks, _ []byte, end bool) ([]byte, Status) {
		if end {
			c.AddDecodedData([]byte("new"))
		}
		return nil, Continue
	}
	addResponse := func(c *Callbacks, _ []byte, _ bool) ([]byte, Status) {
		c.AddEncodedData([]byte("body"))
		return nil, Continue
	}
	x := newStage(t, &scripted{head: add, encodeHead: addResponse})
	x.DecodeHeaders(true)
	x.want(t, "up.head up.data(new.)")
	x.EncodeHeaders(response(200), true)
	x.want(t, "head(200) data(body.) closed finished")
}

func TestBodyAddedWithTrailers(t *testing.T) {
	f := &scripted{trailers: func(c *Callbacks, _ []byte, _ bool) ([]byte, Status) {
		c.AddDecodedData([]byte("+"))
		return nil, Continue
	}}
	x := newStage(t, f)
	x.DecodeHeaders(false)
	x.DecodeData([]byte("a"), false)
	x.DecodeTrailers()
	x.want(t, "up.head up.data(a) up.data(+) up.trailers")
}

func TestInject(t *testing.T) {
	f := &scripted{data: always(StopIteration), encodeData: always(StopIteration)}
	x := newStage(t, f)
	x.DecodeHeaders(false)
	x.DecodeData([]byte("a"), true)
	x.want(t, "up.head")
	f.c.InjectDecodedData([]byte("1"), false)
	f.c.InjectDecodedData([]byte("2"), true)
	x.want(t, "up.data(1) up.data(2.)")
	x.EncodeHeaders(response(200), false)
	x.EncodeData([]byte("b"), true)
	x.want(t, "head(200)")
	f.c.InjectEncodedData([]byte("3"), true)
	x.want(t, "data(3.) closed finished")
}

func TestEncodeStops(t *testing.T) {
	f := &scripted{encodeHead: always(StopIteration), encodeData: always(StopAndBuffer)}
	x := newStage(t, f)
	x.DecodeHeaders(true)
	x.EncodeHeaders(response(200), false)
	x.EncodeData([]byte("a"), false)
	x.EncodeData([]byte("b"), true)
	x.KeepResponse()
	x.want(t, "up.head.")
	f.c.ContinueEncoding()
	x.want(t, "head(200) data(ab.) closed finished")
	f.c.ContinueEncoding()
	x.want(t, "")
}

func TestBufferLimits(t *testing.T) {
	f := &scripted{head: always(StopAndBuffer)}
	x := newStage(t, f)
	x.DecodeHeaders(false)
	x.DecodeData([]byte("0123456789abcdef"), false)
	x.want(t, "")
	x.DecodeData([]byte("!"), false)
	x.want(t, "closed head(413) data(Payload Too Large.) finished")
	if x.cells[counters.HTTPDownstreamRqTooLarge] != 1 || x.Details != DetailRequestTooLarge {
		t.Errorf("counted %d, details %s", x.cells[counters.HTTPDownstreamRqTooLarge], x.Details)
	}
	if used := x.Worker.Pool.Used(); used != 0 {
		t.Errorf("%d bytes of buffers are kept", used)
	}

	f = &scripted{encodeHead: always(StopIteration), encodeData: always(StopAndBuffer)}
	x = newStage(t, f)
	x.DecodeHeaders(true)
	x.EncodeHeaders(response(200), false)
	x.EncodeData([]byte("0123456789abcdef!"), false)
	x.want(t, "up.head. closed head(500) data(Internal Server Error.) finished")

	// With the head gone there is nothing left but to cut.
	f = &scripted{encodeData: always(StopAndBuffer)}
	x = newStage(t, f)
	x.DecodeHeaders(true)
	x.EncodeHeaders(response(200), false)
	x.EncodeData([]byte("0123456789abcdef!"), false)
	x.want(t, "up.head. head(200) closed finished reset")
	if x.Status != 200 || x.Details != DetailResponseTooLarge {
		t.Errorf("status %d, details %s", x.Status, x.Details)
	}
}

func TestLocalReplyInEachPhase(t *testing.T) {
	reply := func(c *Callbacks, _ []byte, _ bool) ([]byte, Status) {
		c.Stream().LocalReply(403, "no", FlagUnauthorized, "denied")
		return nil, StopIteration
	}
	post := func(x *stage) {
		x.DecodeHeaders(false)
		x.DecodeData([]byte("q"), false)
		x.DecodeTrailers()
		x.EncodeHeaders(response(200), false)
		x.EncodeData([]byte("r"), true)
	}
	cases := []struct {
		name   string
		filter scripted
		events string
		status int
	}{
		{"request head", scripted{head: reply}, "a.head() closed o.ehead() a.ehead() head(403) o.edata(no.) a.edata(no.) data(no.) a.destroy o.destroy finished", 403},
		{"request data", scripted{data: reply}, "a.head() o.head() up.head a.data(q) closed o.ehead() a.ehead() head(403) o.edata(no.) a.edata(no.) data(no.) a.destroy o.destroy finished", 403},
		{"request trailers", scripted{trailers: reply}, "a.head() o.head() up.head a.data(q) o.data(q) up.data(q) a.trailers(.) closed o.ehead() a.ehead() head(403) o.edata(no.) a.edata(no.) data(no.) a.destroy o.destroy finished", 403},
		{"response head: straight to the codec", scripted{encodeHead: reply}, "a.head() o.head() up.head a.data(q) o.data(q) up.data(q) a.trailers(.) o.trailers(.) up.trailers o.ehead() a.ehead() closed head(403) data(no.) a.destroy o.destroy finished", 403},
		{"response data: reset", scripted{encodeData: reply}, "a.head() o.head() up.head a.data(q) o.data(q) up.data(q) a.trailers(.) o.trailers(.) up.trailers o.ehead() a.ehead() head(200) o.edata(r.) a.edata(r.) closed a.destroy o.destroy finished reset", 200},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			test.filter.name = "a"
			x := newStage(t, &test.filter, &scripted{name: "o"})
			post := post
			if test.filter.head != nil {
				post = func(x *stage) { x.DecodeHeaders(false); x.DecodeData([]byte("q"), true) }
			} else if test.filter.data != nil || test.filter.trailers != nil {
				post = func(x *stage) {
					x.DecodeHeaders(false)
					x.DecodeData([]byte("q"), false)
					x.DecodeTrailers()
				}
			}
			post(x)
			x.want(t, test.events)
			if x.Status != test.status || x.Flags != FlagUnauthorized || len(x.logs.status) != 1 {
				t.Errorf("status %d, flags %v, %d lines", x.Status, x.Flags, len(x.logs.status))
			}
		})
	}
}

func TestLocalReplyWhileHeld(t *testing.T) {
	// A filter holds the upstream's head; a time-out's reply takes its place.
	f := &scripted{encodeHead: always(StopIteration)}
	x := newStage(t, f)
	x.DecodeHeaders(true)
	x.EncodeHeaders(response(200), false)
	x.LocalReply(504, "late", 0, "x")
	x.want(t, "up.head. closed head(504) data(late.) finished")
	f.c.ContinueEncoding()
	x.want(t, "")
}

func TestReplyWithoutBody(t *testing.T) {
	for _, test := range []struct {
		method header.MethodID
		status int
		events string
	}{
		{header.MethodHead, 404, "closed head(404.) finished"},
		{header.MethodGet, 204, "closed head(204.) finished"},
		{header.MethodGet, 205, "closed head(205.) finished"},
		{header.MethodGet, 304, "closed head(304.) finished"},
	} {
		x := newStage(t)
		x.Request.SetMethodID(test.method)
		x.LocalReply(test.status, "text", 0, "x")
		x.want(t, test.events)
		want := map[int]string{404: "4", 205: "0"}[test.status] // in HTTP/2 a length that does not come is an error
		if got := string(x.Response.Get(header.ContentLength)); got != want {
			t.Errorf("%d has the length %q, not %q", test.status, got, want)
		}
	}
}

func TestTunnelEndsOnBothSides(t *testing.T) {
	x := newStage(t)
	x.Upgrade = true
	x.DecodeHeaders(false)
	if !x.RequestEnded() {
		t.Error("a request for a tunnel is complete with its head")
	}
	x.BeginTunnel()
	x.EncodeHeaders(response(101), false)
	x.EncodeData(nil, true)
	x.DecodeData([]byte("a"), false)
	x.want(t, "up.head head(101) data(.) up.data(a)")
	x.DecodeData(nil, true)
	x.want(t, "up.data(.) closed finished")
}

func TestDeadlines(t *testing.T) {
	x := newStage(t)
	x.DecodeHeaders(true)
	x.SetRouteDeadline(int64(time.Hour + 15*time.Second))
	if want := int64(time.Hour + 15*time.Second); x.down.armed != want || x.Deadline() != want {
		t.Errorf("armed for %d, due at %d, want %d", x.down.armed, x.Deadline(), want)
	}
	x.OnDeadline(int64(time.Hour + 14*time.Second))
	x.want(t, "up.head.")
	x.OnDeadline(int64(time.Hour + 15*time.Second))
	x.want(t, "timeout")
	// Idleness counts from what moved last.
	x.turn(4 * time.Minute)
	x.EncodeHeaders(response(200), false)
	x.OnDeadline(int64(time.Hour + 6*time.Minute))
	x.want(t, "head(200)")
	x.OnDeadline(int64(time.Hour + 9*time.Minute))
	x.want(t, "closed finished reset")
	if x.Flags != FlagStreamIdleTimeout || x.cells[counters.HTTPDownstreamRqIdleTimeout] != 1 {
		t.Errorf("flags %v", x.Flags)
	}
	if x.Deadline(); x.logs.status[0] != 200 {
		t.Errorf("logged %v", x.logs.status)
	}
}

func TestClientGoes(t *testing.T) {
	x := newStage(t, &scripted{name: "f", head: always(StopAndBuffer)})
	x.DecodeHeaders(false)
	x.DecodeData([]byte("held"), false)
	x.OnReset(ResetRemote, FlagDownstreamTermination, DetailRemoteDisconnect)
	x.want(t, "f.head() closed f.destroy finished")
	x.OnReset(ResetRemote, 0, "")
	x.want(t, "")
	if x.Worker.Pool.Used() != 0 || x.cells[counters.HTTPDownstreamRqRxReset] != 1 {
		t.Error("what the filter held is kept, or the reset is not counted")
	}
}

func TestWatermarks(t *testing.T) {
	x := newStage(t)
	x.DecodeHeaders(true)
	x.OnDownstreamAboveHigh()
	x.OnDownstreamBelowLow()
	x.PauseRequest()
	x.ResumeRequest()
	x.want(t, "up.head. above below disable(true) disable(false)")
}

func TestFlags(t *testing.T) {
	if got := (FlagUpstreamConnectionFailure | FlagRetryLimit).String(); got != "UF,URX" {
		t.Errorf("got %s", got)
	}
	if got := Flags(0).String(); got != "-" {
		t.Errorf("got %s", got)
	}
	for bit := range flagLetters {
		f := Flags(1) << bit
		if got, ok := ParseFlag(f.String()); !ok || got != f {
			t.Errorf("%s is read as %v", f, got)
		}
	}
	if FlagUnconditionalDropOverload.String() != "UDO" || FlagDownstreamProtocolError.String() != "DPE" || FlagUpstreamProtocolError.String() != "UPE" {
		t.Error("bits and letters are not in the same order")
	}
}

func (s *still) Wait([]poller.Event, int64, bool) int { return 0 }
