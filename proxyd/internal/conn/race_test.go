package conn_test

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/simulated"
)

// racers are addresses of one host, each with something that leaves connects pending.
func (s *stage) racers(n int) (addresses []*poller.Address, services []*simulated.Service) {
	for i := range n {
		a := poller.NewTCP(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 80))
		addresses = append(addresses, a)
		services = append(services, s.net.Serve(a))
		services[i].Pending = true
	}
	return addresses, services
}

// tried tells how many connects each address has seen.
func (s *stage) tried(services []*simulated.Service, want ...int) {
	s.t.Helper()
	for i, service := range services {
		if len(service.Peers) != want[i] {
			s.t.Fatalf("address %d was tried %d times, want %d", i+1, len(service.Peers), want[i])
		}
	}
}

func TestRace(t *testing.T) {
	for _, test := range []struct {
		name  string
		first int
		limit time.Duration // default 5 s
		run   func(s *stage, services []*simulated.Service)
		tried []int
		told  []string
		to    string // "" none
	}{
		{name: "the first answers", run: func(s *stage, v []*simulated.Service) {
			s.pass(290 * time.Millisecond)
			v[0].Last().Establish()
			s.pass(10 * time.Second)
		}, tried: []int{1, 0, 0}, told: []string{"connected"}, to: "192.0.2.1:80"},
		{name: "another goes first", first: 2, run: func(s *stage, v []*simulated.Service) {
			s.pass(310 * time.Millisecond)
			v[2].Last().Establish()
			s.turn()
		}, tried: []int{1, 0, 1}, told: []string{"connected"}, to: "192.0.2.3:80"},
		{name: "the second answers while the first is silent", run: func(s *stage, v []*simulated.Service) {
			s.pass(290 * time.Millisecond)
			s.tried(v, 1, 0, 0)
			s.pass(20 * time.Millisecond)
			v[1].Last().Establish()
			s.pass(10 * time.Second)
		}, tried: []int{1, 1, 0}, told: []string{"connected"}, to: "192.0.2.2:80"},
		{name: "the first answers late, and before the second", run: func(s *stage, v []*simulated.Service) {
			s.pass(310 * time.Millisecond)
			v[0].Last().Establish()
			s.pass(10 * time.Second)
		}, tried: []int{1, 1, 0}, told: []string{"connected"}, to: "192.0.2.1:80"},
		{name: "both answer in one turn", run: func(s *stage, v []*simulated.Service) {
			s.pass(310 * time.Millisecond)
			v[1].Last().Establish()
			v[0].Last().Establish()
			s.pass(10 * time.Second)
		}, tried: []int{1, 1, 0}, told: []string{"connected"}},
		{name: "a refusal does not wait for the delay", run: func(s *stage, v []*simulated.Service) {
			v[0].Last().Refuse(unix.ECONNREFUSED)
			s.turn()
			s.tried(v, 1, 1, 0)
			v[1].Last().Refuse(unix.EHOSTUNREACH)
			s.turn()
			v[2].Last().Establish()
			s.turn()
		}, tried: []int{1, 1, 1}, told: []string{"connected"}, to: "192.0.2.3:80"},
		{name: "a refusal while another is under way", run: func(s *stage, v []*simulated.Service) {
			s.pass(310 * time.Millisecond)
			v[1].Last().Refuse(unix.ECONNREFUSED)
			s.turn()
			s.tried(v, 1, 1, 1)
			v[2].Last().Refuse(unix.ECONNREFUSED)
			s.turn()
			s.pass(4 * time.Second)
			v[0].Last().Establish()
			s.turn()
		}, tried: []int{1, 1, 1}, told: []string{"connected"}, to: "192.0.2.1:80"},
		{name: "all refuse: the last word is told", run: func(s *stage, v []*simulated.Service) {
			s.pass(310 * time.Millisecond)
			s.pass(310 * time.Millisecond)
			for i, errno := range []unix.Errno{unix.ECONNREFUSED, unix.ENETUNREACH, unix.EHOSTUNREACH} {
				v[i].Last().Refuse(errno)
				s.turn()
			}
		}, tried: []int{1, 1, 1}, told: []string{closed(failure, unix.EHOSTUNREACH)}},
		{name: "all are silent: the time-out is that of the whole", limit: 2 * time.Second, run: func(s *stage, _ []*simulated.Service) {
			for range 19 {
				s.pass(100 * time.Millisecond)
			}
			s.pass(110 * time.Millisecond)
		}, tried: []int{1, 1, 1}, told: []string{closed(timedOut, unix.ETIMEDOUT)}},
		{name: "the first fails at once", run: func(s *stage, v []*simulated.Service) {
			v[1].Last().Establish()
			s.turn()
		}, tried: []int{0, 1, 0}, told: []string{"connected"}, to: "192.0.2.2:80"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, a := newStage(t), &actor{}
			addresses, services := s.racers(3)
			if test.tried[0] == 0 {
				services[0].Errno = unix.ENETUNREACH
			}
			c := conn.DialAny(s.w, addresses, test.first, 1, a, &conn.Options{ConnectTimeout: test.limit})
			s.told(a) // never from within the call
			s.turn()
			test.run(s, services)
			s.told(a, test.told...)
			s.tried(services, test.tried...)
			if test.to != "" && c.Address().Text != test.to {
				t.Errorf("connected to %s, want %s", c.Address().Text, test.to)
			}
			open := 0
			if test.told[0] == "connected" {
				open = 1
			}
			if got := s.net.Open(); got != open {
				t.Errorf("%d sockets are open, want %d", got, open)
			}
		})
	}
}

// What was written before somebody answered goes to who does, and to nobody else.
func TestRaceCarriesEarlyBytes(t *testing.T) {
	s, a := newStage(t), &actor{}
	addresses, services := s.racers(2)
	c := conn.DialAny(s.w, addresses, 0, 1, a, &conn.Options{Preface: []byte("PROXY ")})
	c.Write([]byte("early"))
	c.PauseRead()
	c.ResumeRead() // is no word about the connect
	s.pass(400 * time.Millisecond)
	s.told(a)
	services[1].Last().Establish()
	services[1].Last().Send([]byte("hello"))
	s.turn()
	s.told(a, "connected")
	if got := services[1].Last().ReceiveAll(); string(got) != "PROXY early" {
		t.Errorf("the peer received %q", got)
	}
	if string(a.got) != "hello" {
		t.Errorf("got %q", a.got)
	}
	if n := services[0].Last().Waiting(); n != 0 {
		t.Errorf("the address that lost has %d bytes", n)
	}
}

// Owners may give a race up at any time, from within another connection's callback too.
func TestRaceIsGivenUp(t *testing.T) {
	for _, end := range []func(*conn.Conn){(*conn.Conn).Close, (*conn.Conn).Abort} {
		s, a := newStage(t), &actor{}
		addresses, services := s.racers(2)
		c := conn.DialAny(s.w, addresses, 0, 1, a, &conn.Options{})
		s.pass(400 * time.Millisecond)
		services[0].Last().Establish() // its event is on the way when the race ends
		end(c)
		s.pass(10 * time.Second)
		s.told(a, closed(local, 0))
		if s.net.Open() != 0 {
			t.Error("a socket stays open")
		}
	}
}

func TestRaceWithoutDescriptors(t *testing.T) {
	s, a := newStage(t), &actor{}
	addresses, services := s.racers(3)
	s.net.MaxFD = 0
	conn.DialAny(s.w, addresses, 0, 1, a, &conn.Options{})
	s.told(a)
	s.turn()
	s.told(a, closed(failure, unix.EMFILE))
	s.tried(services, 0, 0, 0)
}

// No more than MaxAddresses are tried, however many there are.
func TestRaceIsBounded(t *testing.T) {
	s, a := newStage(t), &actor{}
	addresses, services := s.racers(conn.MaxAddresses + 3)
	conn.DialAny(s.w, addresses, conn.MaxAddresses+1, 1, a, &conn.Options{ConnectTimeout: time.Minute})
	for range 2 * conn.MaxAddresses {
		s.pass(310 * time.Millisecond)
	}
	tried := 0
	for _, service := range services {
		tried += len(service.Peers)
	}
	if tried != conn.MaxAddresses || len(services[conn.MaxAddresses+1].Peers) != 1 {
		t.Errorf("%d were tried, want %d with the first among them", tried, conn.MaxAddresses)
	}
}

// Whatever the addresses do, in whatever order: one word is told of each connection, nothing stays open, and a worker's next
// races are as good as its first.
func TestRacesAtRandom(t *testing.T) {
	s := newStage(t)
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		a := &actor{}
		addresses, services := s.racers(2 + r.IntN(4))
		answered := map[*simulated.Peer]bool{}
		pending := func(of *simulated.Service) *simulated.Peer {
			if len(of.Peers) == 0 || of.Last().Gone() || answered[of.Last()] {
				return nil
			}
			answered[of.Last()] = true
			return of.Last()
		}
		for _, service := range services {
			if r.IntN(5) == 0 {
				service.Errno = unix.ENETUNREACH
			}
		}
		c := conn.DialAny(s.w, addresses, r.IntN(len(addresses)), 1, a, &conn.Options{ConnectTimeout: time.Duration(1+r.IntN(2000)) * time.Millisecond})
		for range r.IntN(12) {
			switch service := services[r.IntN(len(services))]; r.IntN(4) {
			case 0:
				s.pass(time.Duration(r.IntN(400)) * time.Millisecond)
			case 1:
				if p := pending(service); p != nil {
					p.Establish()
				}
			case 2:
				if p := pending(service); p != nil {
					p.Refuse(unix.ECONNREFUSED)
				}
			case 3:
				if r.IntN(8) == 0 && !c.Closed() {
					c.Close()
				}
			}
			if r.IntN(2) == 0 {
				s.w.Turn(0)
			}
		}
		s.pass(3 * time.Second)
		connected := len(a.told) > 0 && a.told[0] == "connected"
		if connected && !c.Closed() {
			if s.net.Open() != 1 {
				t.Fatalf("round %d: %d sockets are open beside the connection", round, s.net.Open()-1)
			}
			c.Close()
			s.turn()
		}
		if connected && len(a.told) != 2 || !connected && len(a.told) != 1 {
			t.Fatalf("round %d: told %q", round, a.told)
		}
		if s.net.Open() != 0 {
			t.Fatalf("round %d: %d sockets stay open", round, s.net.Open())
		}
	}
}
