package plugin

import (
	"testing"

	"google.golang.org/protobuf/proto"

	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	filterv1 "retinue.dev/services/api/filter/v1"
)

// A request that the plugin is not asked about leaves no filter behind, whether its conditions say so or the answer is known, and costs no
// memory; what stands behind it in the chain keeps its place.
func TestNotAsked(t *testing.T) {
	sub := proto.CloneOf(heads)
	sub.When = []*filterv1.Condition{{Name: ":path", Compare: filterv1.Compare_COMPARE_PREFIX, Value: "/a"}}
	sub.Cacheable = &filterv1.Cacheable{Key: []string{"user-agent"}}
	for _, test := range []struct {
		name, path, agent string
		reply             *filterv1.Reply // to the first request of its agent
		added             string          // of x-a at the router
		status            int
	}{
		{name: "condition not met", path: "/b", agent: "any"},
		{name: "answer known", path: "/a", agent: "one", reply: &filterv1.Reply{CacheTtlMs: 60_000, Headers: []*filterv1.HeaderOp{{Name: "x-a", Value: []byte("1")}}}, added: "1"},
		{name: "response known", path: "/a", agent: "two", status: 403, reply: &filterv1.Reply{
			CacheTtlMs: 60_000, Action: filterv1.Action_ACTION_RESPOND, Response: &filterv1.Response{Status: 403, Body: []byte("no")},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRig(t, sub)
			behind := &witness{}
			config := *r.config
			config.Filters = []stream.Factory{r.use, behind, r.open}
			x := &exchange{}
			ask := func() {
				x.status = 0
				x.Begin(r.worker, &config, x, router{x})
				x.Request.Reset()
				x.Request.SetMethod([]byte("GET"))
				x.Request.SetPath([]byte(test.path))
				x.Request.AddString(header.UserAgent, "", test.agent)
				x.Stream.DecodeHeaders(true)
			}
			if test.reply != nil {
				for ask(); ; { // both filters of the plugin
					r.turn()
					events := r.events()
					if len(events) == 0 {
						break
					}
					test.reply.Call = events[0].GetCall()
					r.plugin().Send(answer(test.reply))
				}
				if !x.Finished() {
					x.NewReply(204)
					x.SendReply(nil, "", "done")
				}
			}
			once := func() {
				before := *behind
				if ask(); test.status == 0 {
					if x.Finished() || behind.heads != before.heads+1 {
						t.Fatalf("status %d, %d heads at the filter behind; want it asked", x.status, behind.heads-before.heads)
					}
					x.NewReply(204)
					x.SendReply(nil, "", "done")
				} else if x.status != test.status || behind.heads != before.heads {
					t.Fatalf("status %d, want %d", x.status, test.status)
				}
				if behind.destroyed != before.destroyed+1 {
					t.Fatalf("the filter behind was destroyed %d times", behind.destroyed-before.destroyed)
				}
				r.worker.Turn(0)
			}
			for range 100 {
				once()
			}
			if n := testing.AllocsPerRun(200, once); n > 0 {
				t.Errorf("%v allocations a request", n)
			}
			if got := string(x.head.GetName(nameXA)); test.status == 0 && got != test.added {
				t.Errorf("x-a is %q, want %q", got, test.added)
			}
			if events := r.events(); len(events) > 0 {
				t.Errorf("the plugin was asked: %v", events)
			}
			r.net.Advance(61e9)
			r.turn()
			ask()
			r.turn()
			if asked := len(r.events()); (asked > 0) != (test.reply != nil) {
				t.Errorf("after the time to live the plugin was asked %d times", asked)
			}
		})
	}
}

// BenchmarkNotAsked is what a request costs beside one without a plugin where the plugin is not asked.
func BenchmarkNotAsked(b *testing.B) {
	sub := proto.CloneOf(heads)
	sub.When = []*filterv1.Condition{{Name: ":path", Compare: filterv1.Compare_COMPARE_PREFIX, Value: "/a"}}
	sub.Cacheable = &filterv1.Cacheable{Key: []string{"x-key"}}
	for _, kind := range []struct{ name, path string }{{"none", "/a"}, {"when", "/b"}, {"cache", "/a"}} {
		b.Run(kind.name, func(b *testing.B) {
			r := newRig(b, sub)
			config := *r.config
			if kind.name != "none" {
				config.Filters = []stream.Factory{r.use}
			}
			x := &exchange{}
			begin := func() {
				x.Begin(r.worker, &config, x, router{x})
				x.Request.Reset()
				x.Request.SetMethod([]byte("GET"))
				x.Request.SetPath([]byte(kind.path))
				x.Request.AddString(header.UserAgent, "", "test")
				x.Request.AddString(header.Other, "x-key", "value")
				x.Stream.DecodeHeaders(true)
			}
			end := func() {
				x.NewReply(204)
				x.SendReply(nil, "", "done")
				r.worker.Turn(0)
			}
			if begin(); kind.name == "cache" {
				r.turn()
				r.plugin().Send(answer(&filterv1.Reply{Call: r.events()[0].GetCall(), CacheTtlMs: 60_000, Headers: []*filterv1.HeaderOp{{Name: "x-a", Value: []byte("1")}}}))
				r.turn()
			}
			end()
			b.ReportAllocs()
			for b.Loop() {
				begin()
				end()
			}
		})
	}
}

// witness is a filter that counts.
type witness struct {
	stream.PassThrough
	heads, destroyed int
}

func (w *witness) NewFilter(*worker.Worker) stream.Filter { return w }

func (w *witness) DecodeHeaders(*stream.Callbacks, bool) stream.Status {
	w.heads++
	return stream.Continue
}

func (w *witness) OnDestroy(*stream.Callbacks) { w.destroyed++ }
