package hcm

import (
	"context"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"retinue.dev/proxyd/internal/accesslog"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/http2frame"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

// asking is a world over HTTP/2 to its upstream, which is also the service that a filter asks.
func asking(t *testing.T, f *configv1.Filter) *sim {
	t.Helper()
	s := newSimCluster(t, &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000, Protocol: "http2"}, defaults())
	s.ask(f)
	return s
}

// ask adds a filter that asks the upstream.
func (s *sim) ask(f *configv1.Filter) {
	s.t.Helper()
	built, err := filter.Build(f, &filter.Env{
		Context: context.Background(), Workers: 1, Stats: counters.NewHeap(1), Pools: []*upstream.Manager{s.manager},
		Cluster: func(string) (cluster.Handle, bool) { return 0, true },
		Format:  func(format string) (filter.Formatter, error) { return accesslog.CompileValue(format, 1) },
	})
	must(s.t, err)
	s.filter.Config.Filters = append(s.filter.Config.Filters, built.HTTP)
}

func limiting(change func(f *configv1.GlobalRateLimitFilter)) *configv1.Filter {
	f := &configv1.GlobalRateLimitFilter{
		Cluster: "up", Domain: "shop", TimeoutMs: 20, Status: 429, StatusOnError: 500, Headers: true,
		Descriptors: []*configv1.RateLimitDescriptor{
			{Actions: []*configv1.RateLimitAction{
				{Key: "generic_key", Kind: &configv1.RateLimitAction_GenericKey{GenericKey: "api"}},
				{Key: "masked_remote_address", Kind: &configv1.RateLimitAction_RemoteAddress{RemoteAddress: &configv1.AddressMask{V4PrefixLen: 24}}},
				{Key: "path", Kind: &configv1.RateLimitAction_RequestHeader{RequestHeader: ":path"}},
				{Key: "destination_cluster", Kind: &configv1.RateLimitAction_DestinationCluster{DestinationCluster: true}},
			}},
			{Actions: []*configv1.RateLimitAction{
				{Key: "header_match", Kind: &configv1.RateLimitAction_Match{Match: &configv1.RateLimitMatch{Value: "no", ExpectNoMatch: true, Match: &configv1.RouteMatch{
					Headers: []*configv1.FieldMatch{{Name: "x-drill", Test: &configv1.FieldMatch_Present{Present: true}}},
				}}}},
				{Key: "query", SkipIfAbsent: true, Kind: &configv1.RateLimitAction_QueryParameter{QueryParameter: "q"}},
			}},
		},
	}
	if change != nil {
		change(f)
	}
	return &configv1.Filter{Name: "global_rate_limit.a", Kind: &configv1.Filter_GlobalRateLimit{GlobalRateLimit: f}}
}

// grpcAnswer is the frames of an answer with one message and a status.
func grpcAnswer(id uint32, message []byte, status string) []byte {
	p, at := http2frame.BeginHeaders(nil)
	p = http2frame.EndHeaderBlock(literal(append(p, 0x80|8), "content-type", "application/grpc"), at, id, false, 16384)
	p = http2frame.AppendDataHeader(p, id, 5+len(message), false)
	p = append(p, 0, 0, 0, 0, byte(len(message)))
	p = append(p, message...)
	trailers, at := http2frame.BeginHeaders(nil)
	return append(p, http2frame.EndHeaderBlock(literal(trailers, "grpc-status", status), at, id, true, 16384)...)
}

// within is a RateLimitResponse OK with a limit and a header each way.
func within() []byte {
	field := func(b []byte, n protowire.Number, v []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, n, protowire.BytesType), v)
	}
	name := func(name string) []byte { return field(field(nil, 1, []byte(name)), 2, []byte("1")) }
	limit := []byte{1 << 3, 10, 2 << 3, 2}
	b := []byte{1 << 3, 1}
	b = field(b, 2, append(field(nil, 2, limit), 3<<3, 7))
	b = field(b, 3, name("x-response"))
	return field(b, 4, name("x-request"))
}

// What the service is asked stands before the request, which goes on when it has answered, or not in time; a client that goes gives
// up the question.
func TestGlobalRateLimitWaits(t *testing.T) {
	const question = "DATA(1,"
	for _, row := range []struct {
		name   string
		change func(f *configv1.GlobalRateLimitFilter)
		answer func(c *h2Client, u *h2Server)
		up     string // at the upstream then
		down   string // how what the client gets begins
		flags  string
	}{
		{"within", nil, func(_ *h2Client, u *h2Server) { u.send(grpcAnswer(1, within(), "0")) }, "POST/a(3) DATA(3,body.)", "204(1.)", "-"},
		{"over", nil, func(_ *h2Client, u *h2Server) { u.send(grpcAnswer(1, []byte{1 << 3, 2}, "0")) }, "", "429(1.)", "RL"},
		{"a status of gRPC", nil, func(_ *h2Client, u *h2Server) { u.send(grpcAnswer(1, within(), "14")) }, "POST/a(3) DATA(3,body.)", "204(1.)", "-"},
		{"late", nil, func(c *h2Client, _ *h2Server) { c.pass(25 * time.Millisecond) }, "RST(1,CANCEL) POST/a(3) DATA(3,body.)", "204(1.)", "-"},
		{"late and closed", func(f *configv1.GlobalRateLimitFilter) { f.FailureModeDeny = true }, func(c *h2Client, _ *h2Server) { c.pass(25 * time.Millisecond) }, "RST(1,CANCEL)", "500(1.)", "RLSE"},
		{"too large", nil, func(_ *h2Client, u *h2Server) {
			p, at := http2frame.BeginHeaders(nil)
			u.send(http2frame.EndHeaderBlock(append(p, 0x88), at, 1, false, 16384))
			for range 5 {
				u.send(append(http2frame.AppendDataHeader(nil, 1, 16384, false), make([]byte, 16384)...))
			}
		}, "RST(1,CANCEL) POST/a(3) DATA(3,body.)", "204(1.)", "-"},
		{"the stream is over before", func(f *configv1.GlobalRateLimitFilter) { f.TimeoutMs = 600_000 }, func(c *h2Client, _ *h2Server) { c.pass(301 * time.Second) }, "RST(1,CANCEL)", "504(1) DATA(1,stream timeout.)", "SI"},
		{"the service goes", nil, func(c *h2Client, u *h2Server) {
			u.peer.Reset()
			next := c.server()
			next.want("POST/a(1) DATA(1,body.)")
			next.send(http2frame.AppendSettings(nil), answer(1))
		}, "", "204(1.)", "-"},
		{"the client goes", nil, func(c *h2Client, _ *h2Server) { c.send(http2frame.AppendRSTStream(nil, 1, http2frame.Cancel)) }, "RST(1,CANCEL)", "", "DR"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newSimCluster(t, &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000, Protocol: "http2"}, defaults())
			s.ask(limiting(row.change))
			c := s.h2()
			c.send(c.head(1, false, ":method", "POST", ":path", "/a"))
			u := s.server()
			u.send(http2frame.AppendSettings(nil))
			got := u.got()
			if !strings.HasPrefix(got, "POST/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit(1) "+question) || !strings.Contains(got, "198.51.100.0/24") || !strings.Contains(got, "destination_cluster\x12\x02up") {
				t.Fatalf("the service got %q", got)
			}
			c.send(append(http2frame.AppendDataHeader(nil, 1, 4, true), "body"...))
			u.want("")
			row.answer(c, u)
			up := u.got()
			for _, update := range []string{"WINDOW_UPDATE(0) ", "WINDOW_UPDATE(1) "} {
				up = strings.ReplaceAll(up, update, "")
			}
			if up != row.up {
				t.Errorf("the upstream got %q, want %q", up, row.up)
			}
			if strings.Contains(up, "(3") {
				u.send(answer(3))
			}
			c.turn()
			if got := c.received(); !strings.HasPrefix(got, row.down) {
				t.Errorf("the client got %s, want %s", got, row.down)
			}
			if l := s.last(); strings.Trim(l.flags, "-") != strings.Trim(row.flags, "-") {
				t.Errorf("logged %+v", l)
			}
		})
	}
}

// A question and its answer cost no memory.
func TestAskingAllocatesNothing(t *testing.T) {
	if raced {
		t.Skip("under the race detector the compiler keeps less on the stack")
	}
	authorised := []byte{0x0a, 0} // CheckResponse with an empty status: OK
	for _, row := range []struct {
		name   string
		filter *configv1.Filter
		answer []byte
	}{
		{"global_rate_limit", limiting(nil), within()},
		{"global_rate_limit of formats", limiting(func(f *configv1.GlobalRateLimitFilter) {
			d := f.Descriptors[0]
			d.Actions = append(d.Actions, &configv1.RateLimitAction{Key: "host", Kind: &configv1.RateLimitAction_Format{Format: "%REQ(:AUTHORITY)% by %PROTOCOL%"}})
			d.HitsAddend, d.LimitRequests, d.LimitUnit = "2", "%REQ(X-PLAN)%", "minute"
		}), within()},
		{"ext_authz", &configv1.Filter{Name: "ext_authz.a", Kind: &configv1.Filter_ExtAuthz{ExtAuthz: &configv1.ExtAuthzFilter{
			Cluster: "up", Grpc: true, TimeoutMs: 200, StatusOnError: 403,
		}}}, authorised},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := asking(t, row.filter)
			s.filter.Config.Logs = nil
			client := s.client()
			asked := grpcAnswer(1, row.answer, "0")
			done := answer(3)
			update := http2frame.AppendWindowUpdate(nil, 0, 4096)
			id := uint32(1)
			frames := func(p []byte, id uint32) []byte { // for another stream
				for rest := p; len(rest) > 0; {
					h, _ := http2frame.ParseHeader(rest)
					binary.BigEndian.PutUint32(rest[5:], id)
					rest = rest[http2frame.HeaderLen+int(h.Length):]
				}
				return p
			}
			once := func() {
				client.Send(plainRequest)
				s.worker.Turn(0)
				up := s.backlog.Last()
				if up.Discard() == 0 {
					t.Fatal("the service was not asked")
				}
				up.Send(frames(asked, id))
				up.Send(update)
				s.worker.Turn(0)
				if up.Discard() == 0 {
					t.Fatal("the request did not go on")
				}
				up.Send(frames(done, id+2))
				s.worker.Turn(0)
				if id += 4; client.Discard() == 0 {
					t.Fatal("no response reached the client")
				}
			}
			client.Send(plainRequest)
			s.turn()
			s.backlog.Last().Discard()
			s.backlog.Last().Send(http2frame.AppendSettings(nil))
			s.turn()
			s.backlog.Last().Discard()
			s.backlog.Last().Send(frames(asked, id))
			s.turn()
			s.backlog.Last().Send(frames(done, id+2))
			s.turn()
			client.Discard()
			id += 4
			for range 200 {
				once()
			}
			if n := testing.AllocsPerRun(500, once); n > 0 {
				t.Errorf("%v allocations a request", n)
			}
		})
	}
}

// A request that no descriptor is about goes straight on, as if there were no filter.
func TestNothingToLimit(t *testing.T) {
	s := newSim(t, defaults())
	s.ask(limiting(func(f *configv1.GlobalRateLimitFilter) {
		f.Descriptors = []*configv1.RateLimitDescriptor{{Actions: []*configv1.RateLimitAction{
			{Key: "path", Kind: &configv1.RateLimitAction_RequestHeader{RequestHeader: ":path"}},
			{Key: "user", Kind: &configv1.RateLimitAction_RequestHeader{RequestHeader: "x-user"}},
		}}}
	}))
	s.filter.Config.Logs = nil
	client := s.warm()
	if n := testing.AllocsPerRun(500, func() { s.exchange(client) }); n > 0 && !raced {
		t.Errorf("%v allocations a request", n)
	}
}

// A service that is asked by HTTP costs no memory either, nor does a decision that is kept.
func TestAuthoriserAllocatesNothing(t *testing.T) {
	if raced {
		t.Skip("under the race detector the compiler keeps less on the stack")
	}
	for _, cached := range []bool{false, true} {
		f := &configv1.ExtAuthzFilter{Cluster: "up", TimeoutMs: 200, StatusOnError: 403, AllowedHeaders: []string{"user-agent"}, AllowedUpstreamHeaders: []string{"server"}}
		asks := 1
		if cached {
			f.CacheKey, f.CacheTtlMs, f.CacheMaxEntries = []string{"%REQ(:PATH)%"}, 3_600_000, 10
			asks = 0
		}
		s := newSim(t, defaults())
		s.ask(&configv1.Filter{Name: "ext_authz.a", Kind: &configv1.Filter_ExtAuthz{ExtAuthz: f}})
		s.filter.Config.Logs = nil
		client := s.client()
		once := func(asks int) {
			client.Send(plainRequest)
			s.worker.Turn(0)
			for range asks + 1 {
				up := s.backlog.Last()
				if up.Discard() == 0 {
					t.Fatal("neither a question nor a request came")
				}
				up.Send(plainResponse)
				s.worker.Turn(0)
			}
			if client.Discard() < len(plainResponse) {
				t.Fatal("no response reached the client")
			}
		}
		client.Send(plainRequest)
		s.turn()
		for range 2 {
			s.turn()
			s.backlog.Last().Discard()
			s.backlog.Last().Send(plainResponse)
			s.turn()
		}
		client.Discard()
		for range 200 {
			once(asks)
		}
		if n := testing.AllocsPerRun(500, func() { once(asks) }); n > 0 {
			t.Errorf("cached %v: %v allocations a request", cached, n)
		}
	}
}
