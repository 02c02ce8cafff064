package listener

import (
	"net/netip"
	"time"

	"retinue.dev/proxyd/internal/clienthello"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/worker"
)

// Chain is one filter chain on one worker: whom it is for, and what its connections go through.
type Chain struct {
	Match Match
	// Secure makes the transport of a connection; nil: plain.
	Secure func() conn.Transport
	// HandshakeTimeout bounds the transport's handshake.
	HandshakeTimeout time.Duration
	Filter           Filter
	// Early judge a connection before its transport, Late behind it.
	Early, Late []Gate
}

// Gate judges connections: one that it refuses is closed. Called on the worker's thread; it counts for itself.
type Gate interface {
	Admit(c *conn.Conn, w *worker.Worker) bool
}

func admit(gates []Gate, c *conn.Conn, w *worker.Worker) bool {
	for _, g := range gates {
		if !g.Admit(c, w) {
			return false
		}
	}
	return true
}

// Match says which connections a chain is for. Every list that is set must match; the zero value takes all.
type Match struct {
	Sources []netip.Prefix
	SNI     []string // exact, lower case
	Suffix  []string // of "*.example.com": ".example.com"
	ALPN    []string
}

// Hello tells that the client's first message must be seen to decide.
func (m *Match) hello() bool { return len(m.SNI)+len(m.Suffix)+len(m.ALPN) > 0 }

// rank says how well a connection matches: 0 not at all; more is more specific. Source counts before name, name before protocol.
// hello is nil for a connection that does not begin as TLS.
func (m *Match) rank(peer netip.Addr, hello *clienthello.Hello) int {
	rank := 1
	if len(m.Sources) > 0 {
		best := -1
		for _, p := range m.Sources {
			if p.Contains(peer) {
				best = max(best, p.Bits())
			}
		}
		if best < 0 {
			return 0
		}
		rank += (best + 1) << 11
	}
	if len(m.SNI)+len(m.Suffix) > 0 {
		if hello == nil {
			return 0
		}
		best := 0
		for _, name := range m.SNI {
			if equalFold(hello.SNI, name) {
				best = 1 << 10
			}
		}
		for _, suffix := range m.Suffix {
			if at := len(hello.SNI) - len(suffix); best == 0 && at > 0 && equalFold(hello.SNI[at:], suffix) {
				best = max(best, 2*len(suffix))
			}
		}
		if best == 0 {
			return 0
		}
		rank += best
	}
	if len(m.ALPN) > 0 {
		if hello == nil {
			return 0
		}
		found := false
		for _, protocol := range m.ALPN {
			found = found || hello.Offers(protocol)
		}
		if !found {
			return 0
		}
		rank++
	}
	return rank
}

// equalFold compares a name as it came with one in lower case.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i := range b {
		x := b[i]
		if x >= 'A' && x <= 'Z' {
			x += 'a' - 'A'
		}
		if x != lower[i] {
			return false
		}
	}
	return true
}

// Chains are the filter chains of a listener on one worker, and what comes before them. A value is never changed: a connection on
// its way to its filter keeps the one that it began with.
type Chains struct {
	List []Chain
	// Proxy has connections begin with a PROXY header; nil: they do not.
	Proxy *Proxy
	// Timeout bounds the time until a connection's chain is known.
	Timeout time.Duration

	hello bool
	// direct is the one chain of a listener where nothing comes before its network filter.
	direct Filter
}

// Proxy says who may send a PROXY header.
type Proxy struct {
	Trusted  []netip.Prefix
	Optional bool
}

// trusts tells whether the peer's header is believed. A Unix socket's peers are of this machine.
func (p *Proxy) trusts(peer netip.Addr) bool {
	if !peer.IsValid() {
		return true
	}
	for _, prefix := range p.Trusted {
		if prefix.Contains(peer) {
			return true
		}
	}
	return false
}

// Prepare is called once, before the first connection.
func (c *Chains) Prepare() *Chains {
	for i := range c.List {
		c.hello = c.hello || c.List[i].Match.hello()
	}
	if len(c.List) == 1 && c.List[0].Secure == nil && len(c.List[0].Early)+len(c.List[0].Late) == 0 && c.Proxy == nil && len(c.List[0].Match.Sources) == 0 && !c.hello {
		c.direct = c.List[0].Filter
	}
	return c
}

// find is the most specific chain that takes the connection; of equal ones the first; nil for none.
func (c *Chains) find(peer netip.Addr, hello *clienthello.Hello) *Chain {
	var found *Chain
	best := 0
	for i := range c.List {
		if rank := c.List[i].Match.rank(peer, hello); rank > best {
			found, best = &c.List[i], rank
		}
	}
	return found
}

func (c *Chains) accept(accepted *conn.Conn, l *Listener) {
	if c.direct != nil {
		c.direct.Accept(accepted, l)
		return
	}
	begin(accepted, l, c)
}
