package listener

import (
	"bytes"
	"crypto/tls"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/overload"
	"retinue.dev/proxyd/internal/worker"
)

// keeper is a network filter that keeps the bytes of its connection.
type keeper struct {
	taker
	got []byte
}

func (f *keeper) Accept(c *conn.Conn, l *Listener) {
	f.taker.Accept(c, l)
	c.SetHandler(f)
}

func (f *keeper) OnData(_ *conn.Conn, b []byte) int {
	f.got = append(f.got, b...)
	return len(b)
}

type firstWrite struct {
	net.Conn
	b bytes.Buffer
}

func (r *firstWrite) Write(b []byte) (int, error) { return r.b.Write(b) }
func (r *firstWrite) Read([]byte) (int, error)    { return 0, net.ErrClosed }

func clientHello(name string) []byte {
	r := &firstWrite{}
	_ = tls.Client(r, &tls.Config{ServerName: name}).Handshake()
	return r.b.Bytes()
}

// TestEntry sends what comes before a connection's filter whole and byte by byte: the filter gets every byte behind the PROXY
// header, and the peer that the header names.
func TestEntry(t *testing.T) {
	hello := clientHello("a.test")
	for _, most := range []int{1, 1 << 20} {
		x := listen(t, false)
		named, rest := &keeper{}, &keeper{}
		x.l.Chains = (&Chains{
			List:    []Chain{{Match: Match{SNI: []string{"a.test"}}, Filter: named}, {Filter: rest}},
			Proxy:   &Proxy{Trusted: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, Optional: true},
			Timeout: time.Second,
		}).Prepare()
		for _, c := range []struct {
			from, send string
			to         *keeper
			peer, got  string
		}{
			{"192.0.2.1:1", "PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n" + string(hello), named, "203.0.113.9:4711", string(hello)},
			{"192.0.2.1:1", string(hello) + "more", named, "192.0.2.1:1", string(hello) + "more"},
			{"192.0.2.1:1", "GET / HTTP/1.1\r\n\r\n", rest, "192.0.2.1:1", "GET / HTTP/1.1\r\n\r\n"},
			{"198.51.100.1:1", "PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n", rest, "198.51.100.1:1", "PROXY TCP4 203.0.113.9 198.51.100.1 4711 443\r\n"},
		} {
			named.got, rest.got = nil, nil
			p := x.backlog.Connect(netip.MustParseAddrPort(c.from))
			for b := []byte(c.send); len(b) > 0; b = b[min(most, len(b)):] {
				x.w.Turn(0)
				p.Send(b[:min(most, len(b))])
			}
			for range 4 {
				x.w.Turn(0)
			}
			if string(c.to.got) != c.got || len(c.to.open) != 1 {
				t.Fatalf("%q in pieces of %d: the filter has %d connections and got %q", c.send, most, len(c.to.open), c.to.got)
			}
			if peer := c.to.open[0].Peer().String(); peer != c.peer {
				t.Errorf("%q: the peer is %s and not %s", c.send, peer, c.peer)
			}
			c.to.open[0].Close()
		}
		if *x.l.Counters.Active != 0 {
			t.Errorf("%d connections are counted as open", *x.l.Counters.Active)
		}
	}
}

// TestEntryEnds holds how connections end that never reach a filter, and that each is counted out.
func TestEntryEnds(t *testing.T) {
	for _, c := range []struct {
		name, from, send string
		cell             func(l *Listener) *uint64
	}{
		{"nothing comes", "192.0.2.1:1", "", func(l *Listener) *uint64 { return l.Counters.PreTimeout }},
		{"half a header", "192.0.2.1:1", "PROXY TCP4 203", func(l *Listener) *uint64 { return l.Counters.PreTimeout }},
		{"no header", "192.0.2.1:1", "GET / HTTP/1.1\r\n\r\n", func(l *Listener) *uint64 { return l.Counters.ProxyRefused }},
		{"a broken header", "192.0.2.1:1", "PROXY TCP4 a b c d\r\n", func(l *Listener) *uint64 { return l.Counters.ProxyRefused }},
		{"a stranger", "198.51.100.1:1", "PROXY UNKNOWN\r\n", func(l *Listener) *uint64 { return l.Counters.ProxyRefused }},
		{"no chain", "192.0.2.1:1", "PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n", func(l *Listener) *uint64 { return l.Counters.NoMatch }},
	} {
		x := listen(t, false)
		x.l.Chains = (&Chains{
			List:    []Chain{{Match: Match{SNI: []string{"a.test"}}, Filter: x.f}},
			Proxy:   &Proxy{Trusted: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
			Timeout: time.Second,
		}).Prepare()
		p := x.backlog.Connect(netip.MustParseAddrPort(c.from))
		x.w.Turn(0)
		if c.send != "" && !p.Gone() {
			p.Send([]byte(c.send))
		}
		for range 4 {
			x.w.Turn(0)
		}
		x.net.Advance(int64(2 * time.Second))
		x.w.Turn(0)
		if !p.Gone() || *c.cell(x.l) != 1 || *x.l.Counters.Active != 0 || len(x.f.open) != 0 {
			t.Errorf("%s: gone %t, counted %d, open %d", c.name, p.Gone(), *c.cell(x.l), *x.l.Counters.Active)
		}
	}
}

// TestEntryIsShorter: while time-outs are reduced, what comes before a filter has less time.
func TestEntryIsShorter(t *testing.T) {
	for name, level := range map[string]uint32{"a tenth is left": overload.Full * 9 / 10, "nothing is left": overload.Full} {
		x := listen(t, false)
		x.l.Overload = &overload.Levels{overload.ReduceTimeouts: level}
		x.l.Chains = (&Chains{List: []Chain{{Match: Match{SNI: []string{"a.test"}}, Filter: x.f}}, Timeout: 10 * time.Second}).Prepare()
		p := x.backlog.Connect(netip.MustParseAddrPort("192.0.2.1:1"))
		x.w.Turn(0)
		x.net.Advance(int64(2 * time.Second))
		x.w.Turn(0)
		if !p.Gone() || *x.l.Counters.PreTimeout != 1 {
			t.Errorf("%s: after two seconds of ten the connection is there, %d counted", name, *x.l.Counters.PreTimeout)
		}
	}
	l := &Listener{Overload: &overload.Levels{overload.ReduceTimeouts: overload.Full}}
	if l.shorten(0) != 0 || l.shorten(time.Hour) != 1 {
		t.Errorf("no time-out became %v, an hour %v", l.shorten(0), l.shorten(time.Hour))
	}
}

// gate lets some connections pass, and tells when it was asked.
type gate struct {
	name   string
	refuse netip.Addr
	asked  *[]string
}

func (g gate) Admit(c *conn.Conn, _ *worker.Worker) bool {
	*g.asked = append(*g.asked, g.name)
	return c.Peer().Addr() != g.refuse
}

// What judges connections is asked in order, about the address of the PROXY header, and the first that refuses ends it.
func TestGates(t *testing.T) {
	var asked []string
	x := listen(t, false)
	f := &keeper{}
	refuse := func(name, from string) gate { return gate{name, netip.MustParseAddr(from), &asked} }
	x.l.Chains = (&Chains{
		List: []Chain{{
			Filter: f, Early: []Gate{refuse("a", "203.0.113.1"), refuse("b", "203.0.113.2")}, Late: []Gate{refuse("c", "203.0.113.3")},
		}},
		Proxy: &Proxy{Trusted: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}, Timeout: time.Second,
	}).Prepare()
	for from, want := range map[string]string{"203.0.113.1": "a", "203.0.113.2": "ab", "203.0.113.3": "abc", "203.0.113.4": "abc"} {
		asked, f.got = nil, nil
		p := x.backlog.Connect(netip.MustParseAddrPort("192.0.2.1:1"))
		x.w.Turn(0)
		p.Send([]byte("PROXY TCP4 " + from + " 198.51.100.1 4711 443\r\nhello"))
		for range 3 {
			x.w.Turn(0)
		}
		if got := strings.Join(asked, ""); got != want || (string(f.got) == "hello") != (from == "203.0.113.4") {
			t.Errorf("%s: asked %s, want %s; got %q", from, got, want, f.got)
		}
	}
	if *x.l.Counters.Active != 1 {
		t.Errorf("%d connections are counted, one is there", *x.l.Counters.Active)
	}
}
