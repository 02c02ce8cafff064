package plugintest

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	filterv1 "retinue.dev/services/api/filter/v1"
)

// Conformance holds a program to docs/plugin-protocol.md: what a suite relies on, whatever the filter does.
func Conformance(t *testing.T, p Program) {
	t.Run("hello", func(t *testing.T) {
		s := start(t, p, time.Minute)
		if s.hello.GetName() == "" || s.hello.GetProtocol() != 1 || s.hello.GetDataAddress() == "" {
			t.Errorf("hello %v: a name, protocol 1 and a data address are wanted", s.hello)
		}
		for _, f := range s.hello.GetSchema().GetFields() {
			if f.GetName() == "" || f.GetDescription() == "" {
				t.Errorf("field %v of the schema: a name and a description are wanted", f)
			}
		}
	})
	t.Run("configure", func(t *testing.T) {
		s := start(t, p, time.Minute)
		for id := uint32(1); id <= 2; id++ {
			r := s.configure(id, p.Config)
			if len(r.GetProblems()) > 0 || len(r.GetSubscription().GetPhases()) == 0 {
				t.Fatalf("configuration %d: %v; a subscription is wanted", id, r)
			}
		}
		if _, err := s.control(&filterv1.ControlRequest{Call: &filterv1.ControlRequest_Retire{Retire: &filterv1.RetireRequest{ConfigId: 1}}}); err != nil {
			t.Errorf("retire: %v", err)
		}
		phase := s.configure(3, p.Config).GetSubscription().GetPhases()[0]
		c := s.data()
		c.send(event(&filterv1.Event{Call: 9, Stream: 1, ConfigId: 2, Phase: phase, End: true})) // the one that stays
		if m, err := c.receive(); err != nil || m.GetReply().GetCall() != 9 {
			t.Errorf("after another was retired: %v, %v", m, err)
		}
	})
	t.Run("batch", func(t *testing.T) {
		s, phase := serving(t, p, time.Minute)
		c := s.data()
		const n = 500
		var batch []*filterv1.ToPlugin
		for i := range uint64(n) {
			batch = append(batch, event(&filterv1.Event{Call: 1000 + i, Stream: i, ConfigId: 1, Phase: phase, End: true}))
		}
		c.send(batch...)
		var got []uint64
		for range n {
			m, err := c.receive()
			if err != nil {
				t.Fatalf("after %d answers: %v", len(got), err)
			}
			got = append(got, m.GetReply().GetCall())
		}
		slices.Sort(got)
		for i, call := range got {
			if call != 1000+uint64(i) {
				t.Fatalf("answer %d is to call %d: each call is answered once, by its number", i, call)
			}
		}
	})
	t.Run("frame in pieces", func(t *testing.T) {
		s, phase := serving(t, p, time.Minute)
		c := s.data()
		b := appendFrame(nil, event(&filterv1.Event{Call: 77, Stream: 1, ConfigId: 1, Phase: phase, End: true}))
		for i := range b {
			if _, err := c.Write(b[i : i+1]); err != nil {
				t.Fatal(err)
			}
		}
		if m, err := c.receive(); err != nil || m.GetReply().GetCall() != 77 {
			t.Errorf("%v, %v; want the answer to call 77", m, err)
		}
	})
	t.Run("unknown fields", func(t *testing.T) {
		s, phase := serving(t, p, time.Minute)
		c := s.data()
		e := &filterv1.Event{Call: 5, Stream: 1, ConfigId: 1, Phase: phase, End: true}
		e.ProtoReflect().SetUnknown([]byte{0xf8, 0x07, 0x01, 0xfa, 0x07, 0x02, 'h', 'i'}) // fields 127
		c.send(event(e))
		if m, err := c.receive(); err != nil || m.GetReply().GetCall() != 5 {
			t.Errorf("%v, %v; an event with fields of a newer version is answered", m, err)
		}
	})
	t.Run("connections apart", func(t *testing.T) {
		s, phase := serving(t, p, time.Minute)
		a, b := s.data(), s.data()
		a.send(event(&filterv1.Event{Call: 1, Stream: 1, ConfigId: 1, Phase: phase, End: true}))
		if _, err := a.receive(); err != nil {
			t.Fatal(err)
		}
		a.Close()
		b.send(event(&filterv1.Event{Call: 2, Stream: 1, ConfigId: 1, Phase: phase, End: true}))
		if m, err := b.receive(); err != nil || m.GetReply().GetCall() != 2 {
			t.Errorf("the second connection, after the first was closed: %v, %v", m, err)
		}
		b.Close()
		drained(t, s)
	})
	t.Run("garbage", func(t *testing.T) {
		s, phase := serving(t, p, time.Minute)
		c := s.data()
		if _, err := c.Write([]byte{0xff, 0xff, 0xff, 0x7f, 1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		if err := c.Conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if m, err := c.receive(); err == nil {
			t.Errorf("a frame of 2 GiB was answered by %v; the end of the connection is wanted", m)
		}
		other := s.data()
		other.send(event(&filterv1.Event{Call: 3, Stream: 1, ConfigId: 1, Phase: phase, End: true}))
		if m, err := other.receive(); err != nil || m.GetReply().GetCall() != 3 {
			t.Errorf("another connection afterwards: %v, %v", m, err)
		}
	})
	t.Run("orphan", func(t *testing.T) {
		s, _ := serving(t, p, 500*time.Millisecond)
		s.release()
		select {
		case <-s.done:
		case <-time.After(patience):
			t.Error("the process lives on although nobody holds its control connection")
		}
	})
	t.Run("end", func(t *testing.T) {
		s, _ := serving(t, p, time.Minute)
		_ = s.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.done:
		case <-time.After(patience):
			t.Error("TERM does not end the process")
		}
	})
}

// serving is a configured process and the first phase that it wants.
func serving(t *testing.T, p Program, orphan time.Duration) (*process, filterv1.Phase) {
	t.Helper()
	s := start(t, p, orphan)
	r := s.configure(1, p.Config)
	if len(r.GetProblems()) > 0 || len(r.GetSubscription().GetPhases()) == 0 {
		t.Fatalf("the configuration is refused: %v", r)
	}
	s.sub = r.GetSubscription()
	return s, s.sub.GetPhases()[0]
}

func drained(t *testing.T, s *process) {
	t.Helper()
	var last *filterv1.DrainReply
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		r, err := s.control(&filterv1.ControlRequest{Call: &filterv1.ControlRequest_Drain{Drain: &filterv1.DrainRequest{}}})
		if err != nil {
			t.Fatalf("drain: %v", err)
		}
		if last = r.GetDrain(); last.GetOpenConnections() == 0 && last.GetOpenStreams() == 0 {
			return
		}
	}
	t.Errorf("every data connection is closed, and the plugin still counts %v", last)
}

// Recording is a recorded stream: a configuration, events as the proxy would send them, and the answers that are wanted, in the JSON form of
// filter/v1's messages. Calls are numbered by Replay.
type Recording struct {
	Config json.RawMessage `json:"config"`
	Calls  []struct {
		Event json.RawMessage `json:"event"`
		Reply json.RawMessage `json:"reply"` // absent: the event is not answered
	} `json:"calls"`
	// Problems are what a refused configuration complains of: substrings, one a problem.
	Problems []string `json:"problems"`
}

// Replay gives a program the recordings that match a pattern, each to a fresh configuration, and compares the answers.
func Replay(t *testing.T, path, pattern string) {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no recording matches %s: %v", pattern, err)
	}
	s := start(t, Program{Path: path}, time.Minute)
	for i, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var r Recording
			if err := json.Unmarshal(raw, &r); err != nil {
				t.Fatal(err)
			}
			s.t = t
			reply := s.configure(uint32(i+1), string(r.Config))
			if len(reply.GetProblems()) != len(r.Problems) {
				t.Fatalf("problems %v, want %q", reply.GetProblems(), r.Problems)
			}
			for k, want := range r.Problems {
				if p := reply.GetProblems()[k]; !strings.Contains(p.GetField()+": "+p.GetMessage(), want) {
					t.Errorf("problem %v, want %q", p, want)
				}
			}
			if len(r.Problems) > 0 {
				return
			}
			r.play(t, s.data(), uint32(i+1))
		})
	}
}

func (r *Recording) play(t *testing.T, c *connection, config uint32) {
	for i, call := range r.Calls {
		var e filterv1.Event
		if err := protojson.Unmarshal(call.Event, &e); err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		e.ConfigId, e.Stream, e.DeadlineUs = config, max(e.GetStream(), 1), 1e6
		if call.Reply == nil {
			c.send(event(&e))
			continue
		}
		e.Call = uint64(i) + 1
		var want filterv1.Reply
		if err := protojson.Unmarshal(call.Reply, &want); err != nil {
			t.Fatalf("reply %d: %v", i, err)
		}
		want.Call = e.GetCall()
		c.send(event(&e))
		m, err := c.receive()
		if errors.Is(err, io.EOF) {
			t.Fatalf("event %d ended the connection", i)
		}
		if err != nil {
			t.Fatalf("event %d: %v", i, err)
		}
		got := m.GetReply()
		if got != nil {
			got.HandledNs = 0 // a measurement, not a part of the answer
		}
		if !proto.Equal(got, &want) {
			t.Errorf("event %d is answered by\n  %s\nwant\n  %s", i, protojson.Format(got), protojson.Format(&want))
		}
	}
}
