package listener

import (
	"errors"
	"net/netip"

	"retinue.dev/proxyd/internal/clienthello"
	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/proxyprotocol"
	"retinue.dev/proxyd/internal/timer"
	"retinue.dev/proxyd/internal/worker"
)

// entry is a connection on its way to its network filter: conn.Handler until the filter takes over. Its steps, each of which a
// listener may lack: PROXY header, the client's first TLS message, match, transport.
//
// The step from bytes to a chain is taken after the callback that brought the last of them: only then does the connection know
// which bytes are left for the transport or the filter.
type entry struct {
	listener *Listener
	chains   *Chains
	chain    *Chain
	conn     *conn.Conn
	timer    timer.Timer
	task     worker.Task
	proxy    bool // a PROXY header is awaited
	hello    bool // a ClientHello is awaited
	gone     bool
}

func begin(c *conn.Conn, l *Listener, chains *Chains) {
	e := &entry{listener: l, chains: chains, conn: c, hello: chains.hello}
	c.SetHandler(e)
	e.task.Runner, e.timer.Callback = e, e
	if p := chains.Proxy; p != nil {
		switch {
		case p.trusts(peer(c)):
			e.proxy = true
		case !p.Optional:
			e.refuse(l.Counters.ProxyRefused)
			return
		}
	}
	if !e.proxy && !e.hello {
		e.match(nil)
		e.enter()
		return
	}
	if chains.Timeout > 0 {
		l.worker.Timers.Set(&e.timer, l.worker.Now()+int64(l.shorten(chains.Timeout)))
	}
}

func peer(c *conn.Conn) netip.Addr { return c.Peer().Addr().Unmap() }

// OnData implements conn.Handler.
func (e *entry) OnData(c *conn.Conn, data []byte) int {
	if e.chain != nil {
		return 0 // it enters at the end of the turn
	}
	consumed := 0
	if e.proxy {
		header, n, err := proxyprotocol.Parse(data)
		switch {
		case errors.Is(err, proxyprotocol.ErrAbsent) && e.chains.Proxy.Optional:
		case err != nil:
			e.refuse(e.listener.Counters.ProxyRefused)
			return len(data)
		case n == 0:
			return 0
		}
		e.proxy = false
		consumed = n
		if header.Source.IsValid() {
			c.SetPeer(header.Source, header.Destination)
		}
	}
	if e.hello {
		h := &e.listener.hello
		switch h.Parse(data[consumed:]) {
		case clienthello.More:
			return consumed
		case clienthello.Done:
			e.match(h)
		default: // for the default chain, if there is one
			e.match(nil)
		}
	} else {
		e.match(nil)
	}
	if e.chain != nil {
		c.PauseRead()
		e.listener.worker.Soon(&e.task)
	}
	return consumed
}

// match looks for the connection's chain; without one it is closed.
func (e *entry) match(hello *clienthello.Hello) {
	e.hello = false
	e.listener.worker.Timers.Stop(&e.timer)
	if e.chain = e.chains.find(peer(e.conn), hello); e.chain == nil {
		e.refuse(e.listener.Counters.NoMatch)
	}
}

func (e *entry) refuse(cell *uint64) {
	*cell++
	e.conn.Close()
}

// RunTask implements worker.Runner.
func (e *entry) RunTask() {
	if !e.gone {
		e.conn.ResumeRead()
		e.enter()
	}
}

// enter goes on with the chain that is the connection's.
func (e *entry) enter() {
	switch {
	case e.chain == nil:
	case !admit(e.chain.Early, e.conn, e.listener.worker):
		e.conn.Close()
	case e.chain.Secure == nil:
		e.pass(e.conn)
	default:
		e.conn.Secure(e.chain.Secure(), e.listener.shorten(e.chain.HandshakeTimeout))
	}
}

// OnTimer implements timer.Callback.
func (e *entry) OnTimer(*timer.Timer, int64) { e.refuse(e.listener.Counters.PreTimeout) }

// OnConnected implements conn.Handler: the transport is ready.
func (e *entry) OnConnected(c *conn.Conn) { e.pass(c) }

// pass gives the connection to its filter.
func (e *entry) pass(c *conn.Conn) {
	if !admit(e.chain.Late, c, e.listener.worker) {
		c.Close()
		return
	}
	e.chain.Filter.Accept(c, e.listener)
}

// OnEOF implements conn.Handler: who ends before it began wants nothing.
func (e *entry) OnEOF(c *conn.Conn) { c.Close() }

// OnAboveHigh implements conn.Handler.
func (e *entry) OnAboveHigh(*conn.Conn) {}

// OnBelowLow implements conn.Handler.
func (e *entry) OnBelowLow(*conn.Conn) {}

// OnClose implements conn.Handler.
func (e *entry) OnClose(*conn.Conn, conn.Reason) {
	e.gone = true
	e.listener.worker.Timers.Stop(&e.timer)
	e.listener.Gone()
}
