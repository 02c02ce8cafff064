package hcm

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/poller"
	"retinue.dev/proxyd/internal/poller/simulated"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/upstream"
	configv1 "retinue.dev/services/api/config/v1"
)

// named is a worker whose one host is logical. What is at an address leaves connects pending until the test says otherwise.
type named struct {
	*sim
	at     map[string]*simulated.Service
	hosts  []string // as the log has it
	places []string
}

// Log implements stream.AccessLog.
func (x *named) Log(s *stream.Stream) {
	if s.Host == nil {
		return
	}
	x.hosts = append(x.hosts, s.Host.Address)
	x.places = append(x.places, s.Upstream().String())
}

const shop = "shop.test:80"

func place(n int) string { return fmt.Sprintf("192.0.2.%d:80", n) }

func logical(places ...int) []*configv1.Endpoint {
	e := &configv1.Endpoint{Name: shop, Address: place(places[0])}
	for _, p := range places[1:] {
		e.AdditionalAddresses = append(e.AdditionalAddresses, place(p))
	}
	return []*configv1.Endpoint{e}
}

func newNamed(t *testing.T, protocol string, places ...int) *named {
	x := &named{
		sim: newSimCluster(t, &configv1.Cluster{Name: "up", ConnectTimeoutMs: 5000, Protocol: protocol}, defaults()),
		at:  map[string]*simulated.Service{},
	}
	for n := 1; n <= 9; n++ {
		service := x.net.Serve(poller.NewTCP(netip.MustParseAddrPort(place(n))))
		service.Pending = true
		x.at[place(n)] = service
	}
	x.filter.Config.Logs = []stream.AccessLog{x}
	x.move(places...)
	return x
}

// move changes where the name is.
func (x *named) move(places ...int) {
	x.t.Helper()
	config := *x.manager.Cluster(0)
	hosts, err := config.BuildHosts(logical(places...))
	must(x.t, err)
	config.Cluster = config.WithHosts(hosts)
	x.manager.Update([]*upstream.Config{&config})
}

// pass moves the clock.
func (x *named) pass(d time.Duration) {
	x.net.Advance(int64(d))
	x.turn()
}

func (x *named) ask() *simulated.Peer {
	c := x.client()
	c.Send([]byte("GET / HTTP/1.1\r\nHost: h\r\n\r\n"))
	x.turn()
	return c
}

// answer has the connection at a place answer the request that it holds.
func (x *named) answer(n int, c *simulated.Peer) {
	x.t.Helper()
	p := x.at[place(n)].Last()
	if !strings.HasPrefix(string(p.ReceiveAll()), "GET / ") {
		x.t.Fatalf("no request has come to %s", place(n))
	}
	p.Send([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
	x.turn()
	if got := string(c.ReceiveAll()); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		x.t.Fatalf("the client received %q", got)
	}
}

func (x *named) connects(want string) {
	x.t.Helper()
	var got []string
	for n := 1; n <= 9; n++ {
		got = append(got, fmt.Sprint(len(x.at[place(n)].Peers)))
	}
	if g := strings.TrimRight(strings.Join(got, ""), "0"); g != want {
		x.t.Fatalf("connects by address: %s, want %s", g, want)
	}
}

func TestLogicalHostRaces(t *testing.T) {
	x := newNamed(t, "", 1, 2)
	c := x.ask()
	x.connects("1")
	x.pass(310 * time.Millisecond) // the first is silent
	x.connects("11")
	x.at[place(2)].Last().Establish()
	x.turn()
	x.answer(2, c)
	if got := x.hosts[0] + " at " + x.places[0]; got != shop+" at "+place(2) {
		t.Errorf("logged %s", got)
	}
	if !x.at[place(1)].Last().Gone() {
		t.Error("the address that lost has its connection still")
	}
	if n := x.cluster[counters.ClusterUpstreamCxTotal]; n != 1 {
		t.Errorf("%d connections are counted, want 1", n)
	}
	if x.cluster[counters.ClusterUpstreamCxConnectFail] != 0 {
		t.Error("a connect is counted as failed")
	}
}

// Whoever won goes first for ten minutes, so that an address that swallows connects costs its delay once.
func TestLogicalHostRemembersTheWinner(t *testing.T) {
	x := newNamed(t, "", 1, 2, 3)
	x.ask()
	x.at[place(1)].Last().Refuse(unix.ECONNREFUSED)
	x.turn()
	x.at[place(2)].Last().Establish()
	x.turn()
	second := x.ask() // the connection is busy
	x.connects("12")
	x.at[place(2)].Last().Refuse(unix.ECONNREFUSED) // and when it fails, all are tried in order
	x.turn()
	x.connects("22")
	x.at[place(1)].Last().Refuse(unix.ECONNREFUSED)
	x.turn()
	x.connects("221")
	x.at[place(3)].Last().Establish()
	x.turn()
	x.answer(3, second)
	x.ask() // over the idle connection
	x.ask()
	x.connects("222")
	x.at[place(3)].Last().Establish()
	x.turn()
	x.pass(11 * time.Minute)
	x.ask() // the order is the name's again
	x.connects("322")
}

// A connection to an address that the name had stays in use; new ones go to those that it has.
func TestLogicalHostMoves(t *testing.T) {
	x := newNamed(t, "", 1)
	c := x.ask()
	x.at[place(1)].Last().Establish()
	x.turn()
	x.answer(1, c)
	x.move(4, 5)
	again := x.ask()
	x.connects("1")
	x.turn()
	other := x.ask() // beside it: the old connection is busy
	x.connects("1001")
	x.at[place(4)].Last().Refuse(unix.EHOSTUNREACH)
	x.turn()
	x.at[place(5)].Last().Establish()
	x.turn()
	x.answer(1, again)
	x.answer(5, other)
	if got := strings.Join(x.places, " "); got != strings.Join([]string{place(1), place(1), place(5)}, " ") {
		t.Errorf("logged %s", got)
	}
	if x.at[place(1)].Last().Gone() {
		t.Error("the connection to the address that the name had is closed")
	}
}

func TestLogicalHostOutOfReach(t *testing.T) {
	for _, protocol := range []string{"", "http2"} {
		x := newNamed(t, protocol, 1, 2)
		c := x.ask()
		x.at[place(1)].Last().Refuse(unix.ECONNREFUSED)
		x.turn()
		x.at[place(2)].Last().Refuse(unix.ECONNREFUSED)
		x.turn()
		if got := string(c.ReceiveAll()); !strings.HasPrefix(got, "HTTP/1.1 503 ") {
			t.Errorf("%s: the client received %q", protocol, got)
		}
		if x.cluster[counters.ClusterUpstreamCxConnectFail] != 1 || x.cluster[counters.ClusterUpstreamCxActive] != 0 {
			t.Errorf("%s: %d connects have failed, %d connections are open", protocol, x.cluster[counters.ClusterUpstreamCxConnectFail], x.cluster[counters.ClusterUpstreamCxActive])
		}
		if x.hosts[0] != shop {
			t.Errorf("%s: logged %s", protocol, x.hosts[0])
		}
	}
}

// Name servers turn their records round, and names get other addresses: what worked goes first all the same, or its family.
func TestLogicalHostRemembersOverChanges(t *testing.T) {
	x := newNamed(t, "", 1, 2)
	x.ask()
	x.at[place(1)].Last().Refuse(unix.EHOSTUNREACH)
	x.turn()
	x.at[place(2)].Last().Establish()
	x.turn()
	x.connects("11")
	x.move(1, 3, 2) // the same winner among others
	x.ask()
	x.connects("12")
	six := "[2001:db8::6]:80"
	service := x.net.Serve(poller.NewTCP(netip.MustParseAddrPort(six)))
	service.Pending = true
	config := *x.manager.Cluster(0)
	hosts, err := config.BuildHosts([]*configv1.Endpoint{{Name: shop, Address: six, AdditionalAddresses: []string{place(4), place(5)}}})
	must(t, err)
	config.Cluster = config.WithHosts(hosts)
	x.manager.Update([]*upstream.Config{&config})
	x.ask() // the winner is gone, and IPv4 goes first
	x.connects("1201")
	x.at[place(4)].Last().Refuse(unix.EHOSTUNREACH)
	x.turn()
	service.Last().Establish() // the first of the list: there is nothing to remember
	x.turn()
	x.ask()
	if len(service.Peers) != 2 {
		t.Errorf("the first address was tried %d times, want twice", len(service.Peers))
	}
}
