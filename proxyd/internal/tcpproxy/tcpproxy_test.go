package tcpproxy

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// line is what the access log was told of a session.
type line struct {
	flags          string
	received, sent uint64
	attempts       uint32
}

type lines []line

func (l *lines) Log(s *stream.Stream) {
	*l = append(*l, line{s.Flags.String(), s.BytesReceived, s.BytesSent, s.Attempts})
}

// stage is one worker with a TCP proxy and one host, over the simulated network.
type stage struct {
	t       *testing.T
	net     *simulated.Network
	w       *worker.Worker
	f       *Filter
	l       *listener.Listener
	host    *simulated.Service
	cells   *counters.TCP
	cluster *counters.Cluster
	log     lines
}

const hostAt = "192.0.2.80:5432"

func newStage(t *testing.T, change func(*Config)) *stage {
	t.Helper()
	net := simulated.New()
	w, err := worker.New(0, net)
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{t: t, net: net, w: w, cells: new(counters.TCP), cluster: new(counters.Cluster)}
	s.host = net.Serve(poller.NewTCP(netip.MustParseAddrPort(hostAt)))
	built, err := cluster.Build(&configv1.Cluster{Name: "db", ConnectTimeoutMs: 2000, Endpoints: []*configv1.Endpoint{{Address: hostAt}}}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := upstream.NewManager(w, nil)
	m.Update([]*upstream.Config{{Cluster: built, Cells: []*counters.Cluster{s.cluster}}})
	s.l = &listener.Listener{Counters: listener.Counters{Active: new(uint64), Worker: new(uint64)}}
	config := &Config{
		Targets: []Target{{Cluster: 0, Name: "db", Cumulative: 1}}, IdleTimeout: int64(time.Hour), Attempts: 1,
		Cells: []*counters.TCP{s.cells}, Logs: []stream.AccessLog{&s.log},
	}
	if change != nil {
		change(config)
	}
	s.f = &Filter{Worker: w, Manager: m, Config: config}
	t.Cleanup(func() {
		s.f.CloseAll()
		s.turn()
		s.pass(6 * time.Second) // spare pipes go with the trimming
		if s.f.Open() != 0 || *s.l.Counters.Active != 0 || s.cells[counters.TCPDownstreamCxActive] != 0 || s.cluster[counters.ClusterUpstreamCxActive] != 0 {
			t.Errorf("sessions are left: open %d, listener %d, active %d, upstream %d", s.f.Open(), *s.l.Counters.Active,
				s.cells[counters.TCPDownstreamCxActive], s.cluster[counters.ClusterUpstreamCxActive])
		}
		if net.Open() != 0 || w.Pool.Used() != 0 {
			t.Errorf("%d descriptors and %d bytes of buffers are left", net.Open(), w.Pool.Used())
		}
	})
	return s
}

func (s *stage) turn() {
	for range 6 {
		s.w.Turn(0)
	}
}

func (s *stage) pass(d time.Duration) {
	s.net.Advance(int64(d))
	s.turn()
}

func (s *stage) client() *simulated.Peer {
	s.t.Helper()
	fd, p := s.net.Pair()
	c, errno := conn.Accept(s.w, fd, netip.MustParseAddrPort("198.51.100.7:4711"), 1, nil, &conn.Options{HighWatermark: 1 << 20})
	if errno != 0 {
		s.t.Fatal(errno)
	}
	s.l.Adopted()
	s.f.Accept(c, s.l)
	s.turn()
	return p
}

// pair is a session whose host is there.
func (s *stage) pair() (client, host *simulated.Peer) {
	s.t.Helper()
	client = s.client()
	return client, s.host.Last()
}

func (s *stage) logged(want line) {
	s.t.Helper()
	if len(s.log) != 1 || s.log[0] != want {
		s.t.Fatalf("the log says %+v, want %+v", s.log, want)
	}
}

func TestBytesBothWays(t *testing.T) {
	s := newStage(t, nil)
	client, host := s.pair()
	client.Send([]byte("select 1"))
	s.turn()
	if got := host.ReceiveAll(); string(got) != "select 1" {
		t.Errorf("the host received %q", got)
	}
	host.Send([]byte("one row"))
	s.turn()
	if got := client.ReceiveAll(); string(got) != "one row" {
		t.Errorf("the client received %q", got)
	}
	client.CloseWrite()
	s.turn()
	if !host.SawFIN() || host.Gone() || client.SawFIN() {
		t.Error("the client's FIN is the end of one direction")
	}
	host.Send([]byte(" and the rest"))
	host.CloseWrite()
	s.turn()
	if got := client.ReceiveAll(); string(got) != " and the rest" || !client.SawFIN() {
		t.Errorf("after its FIN the client received %q", got)
	}
	if !client.Gone() || !host.Gone() || client.SawReset() || host.SawReset() {
		t.Error("both directions have ended, in order")
	}
	s.logged(line{"-", 8, 20, 1})
}

// A client that speaks before the host is there loses nothing, whatever the connect takes.
func TestEarlyBytesWait(t *testing.T) {
	s := newStage(t, nil)
	s.host.Pending = true
	client := s.client()
	client.Send([]byte("early"))
	client.CloseWrite()
	s.pass(time.Second)
	if client.Unread() != 5 {
		t.Error("bytes were read before there was a host for them")
	}
	host := s.host.Last()
	host.Establish()
	s.turn()
	if got := host.ReceiveAll(); string(got) != "early" || !host.SawFIN() {
		t.Errorf("the host received %q, FIN %v", got, host.SawFIN())
	}
}

func TestConnectIsTriedAgain(t *testing.T) {
	s := newStage(t, func(c *Config) { c.Attempts = 3 })
	s.host.Pending = true
	client := s.client()
	client.Send([]byte("patient"))
	s.host.Last().Refuse(unix.ECONNREFUSED)
	s.turn()
	s.pass(2100 * time.Millisecond) // the second attempt times out
	if n := len(s.host.Peers); n != 3 {
		t.Fatalf("%d attempts", n)
	}
	s.host.Last().Establish()
	s.turn()
	if got := s.host.Last().ReceiveAll(); string(got) != "patient" {
		t.Errorf("the host received %q", got)
	}
	if s.cluster[counters.ClusterUpstreamCxConnectFail] != 2 || s.cluster[counters.ClusterUpstreamCxConnectTimeout] != 1 {
		t.Errorf("connect failures %d, of them time-outs %d", s.cluster[counters.ClusterUpstreamCxConnectFail], s.cluster[counters.ClusterUpstreamCxConnectTimeout])
	}
}

func TestNoHost(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Config)
		play   func(s *stage)
		want   line
	}{
		"refused":    {nil, func(s *stage) { s.host.Last().Refuse(unix.ECONNREFUSED); s.turn() }, line{"UF", 0, 0, 1}},
		"time-out":   {nil, func(s *stage) { s.pass(1900 * time.Millisecond); s.pass(200 * time.Millisecond) }, line{"UF", 0, 0, 1}},
		"no cluster": {func(c *Config) { c.Targets = nil }, func(*stage) {}, line{"NC", 0, 0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, test.change)
			s.host.Pending = true
			client := s.client()
			test.play(s)
			if !client.Gone() || !client.SawReset() {
				t.Errorf("client gone %v, by a reset %v", client.Gone(), client.SawReset())
			}
			s.logged(test.want)
		})
	}
}

// A reset on one side is a reset on the other: nobody takes a part for the whole.
func TestResetsPass(t *testing.T) {
	s := newStage(t, nil)
	client, host := s.pair()
	host.Send([]byte("half of it"))
	host.Reset()
	s.turn()
	if !client.SawReset() {
		t.Error("the host's reset looks like an end to the client")
	}
	s.logged(line{"UC", 0, 10, 1})
	s.log = nil
	client, host = s.pair()
	client.Reset()
	s.turn()
	if !host.SawReset() {
		t.Error("the client's reset looks like an end to the host")
	}
	s.logged(line{"DC", 0, 0, 1})
}

func TestIdleTimeout(t *testing.T) {
	s := newStage(t, func(c *Config) { c.IdleTimeout = int64(10 * time.Second) })
	client, host := s.pair()
	for range 5 {
		s.pass(9 * time.Second)
		host.Send([]byte("ping"))
		s.turn()
	}
	if client.Gone() {
		t.Fatal("a session in which bytes move was ended")
	}
	s.pass(9 * time.Second)
	s.pass(1100 * time.Millisecond)
	if !client.Gone() || !host.Gone() || s.cells[counters.TCPIdleTimeout] != 1 {
		t.Errorf("client gone %v, host gone %v, counted %d", client.Gone(), host.Gone(), s.cells[counters.TCPIdleTimeout])
	}
}

// Bulk turns to splicing, a reader that does not keep up stops the writer, and what is small is copied again.
func TestBulk(t *testing.T) {
	for name, prepare := range map[string]func(s *stage){
		"through pipes": func(*stage) {},
		"without pipes": func(s *stage) { s.net.MaxFD = s.net.Open() + 2 },
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, nil)
			prepare(s)
			client, host := s.pair()
			client.SetRoom(200 << 10)
			const total = 16 << 20
			var got []byte
			sent, most := 0, 0
			for turn := 0; len(got) < total; turn++ {
				for sent < total && host.Unread() < 512<<10 {
					host.Send(bytes.Repeat([]byte{byte(sent >> 16)}, 64<<10))
					sent += 64 << 10
				}
				s.w.Turn(0)
				most = max(most, s.w.Pool.Used())
				got = append(got, client.Receive(100<<10)...)
				if turn > 10_000 {
					t.Fatalf("%d bytes of %d after %d turns", len(got), total, turn)
				}
			}
			for i, c := range got {
				if c != byte(i>>16) {
					t.Fatalf("byte %d is %d, want %d", i, c, byte(i>>16))
				}
			}
			if most > 2<<20 {
				t.Errorf("the worker held %d bytes for a reader that does not keep up", most)
			}
			spliced := s.net.Calls["splice"]
			if name == "through pipes" && spliced < 100 || name == "without pipes" && spliced != 0 {
				t.Errorf("%d splices", spliced)
			}
			for range 20 { // small talk
				host.Send([]byte("tick"))
				s.turn()
				client.ReceiveAll()
			}
			before := s.net.Calls["splice"]
			host.Send([]byte("tock"))
			s.turn()
			if string(client.ReceiveAll()) != "tock" || s.net.Calls["splice"] != before {
				t.Errorf("small bytes still go through a pipe")
			}
		})
	}
}

func TestSessionAllocatesNothing(t *testing.T) {
	s := newStage(t, nil)
	client, host := s.pair()
	question, answer := make([]byte, 100), make([]byte, 1000)
	if n := testing.AllocsPerRun(500, func() {
		client.Send(question)
		s.w.Turn(0)
		host.Discard()
		host.Send(answer)
		s.w.Turn(0)
		if client.Discard() != len(answer) {
			t.Fatal("no answer")
		}
	}); n > 0 {
		t.Errorf("%v allocations an exchange", n)
	}
}
