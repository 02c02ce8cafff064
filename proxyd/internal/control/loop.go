package control

import (
	"maps"
	"slices"
	"time"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/hcm"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/parcel"
	"retinue.dev/proxyd/internal/poller/epoll"
	"retinue.dev/proxyd/internal/snapshot"
	"retinue.dev/proxyd/internal/tcpproxy"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/upstream"
	"retinue.dev/proxyd/internal/worker"
)

// loop is one worker and what hangs on it. Everything but the worker's own methods is touched on its thread only.
type loop struct {
	*worker.Worker
	poller    *epoll.Poller
	manager   *upstream.Manager
	http      *hcm.Shared
	tls       *tlstransport.Side
	reserve   *listener.Reserve
	cells     *counters.Worker
	global    listener.Limit // of all listeners of all workers
	listeners map[string]*bound
	leaving   []*bound // what went and still has connections
	leaveBy   snapshot.Drain
	ids       uint64
}

// bound is one listener on one worker.
type bound struct {
	config   *snapshot.Listener
	listener *listener.Listener
	filters  map[string]networkFilter // by the name of the filter chain
	leaves   int64                    // ns of the worker's clock: when what is left of it is cut
	emptying int64                    // the same, until its sockets are closed; 0: they are, or are in use
}

func (b *bound) open() (n int) {
	for _, f := range b.filters {
		n += f.Open()
	}
	return n
}

// networkFilter is what a listener's connections go to: tcp_proxy or the HTTP connection manager.
type networkFilter interface {
	listener.Filter
	// Open is how many connections the filter has.
	Open() int
	// CloseAll cuts them and returns how many there were.
	CloseAll() int
	// Drain makes connections end as soon as they can without losing anything: over that time, or with 0 at once.
	Drain(over time.Duration)
	// Undrain takes Drain back.
	Undrain()
	// HandOver tells that connections move to another process; more is called when one could, nil ends it.
	HandOver(more func())
	// Pack parks connections that can move, for the parcel.
	Pack(p *parcel.Parcel)
}

// tunnels is tcp_proxy: tunnels have no moment at which they could be told to go, they end by themselves or at shutdown_time.
type tunnels struct{ tcpproxy.Filter }

// Drain implements networkFilter.
func (*tunnels) Drain(time.Duration) {}

// Undrain implements networkFilter.
func (*tunnels) Undrain() {}

func (l *loop) nextID() uint64 {
	l.ids++
	return l.ids
}

// apply takes a snapshot: its clusters, then what names them, between two events.
func (l *loop) apply(next *snapshot.Snapshot, clusters []*upstream.Config, wanted map[string]*snapshot.Listener, maxConnections uint64) {
	l.manager.Update(clusters)
	l.global.Max = maxConnections
	for name, b := range l.listeners {
		switch want := wanted[name]; {
		case want == nil || !want.SameSockets(b.config):
			l.remove(name)
		case want != b.config:
			l.configure(b, want)
		}
	}
	l.forget()
}

// emptyTime is how long a listener that went is still accepted from. restartd lets no new connection begin there; what had begun
// its handshake arrives, and would be reset if the socket were closed.
const emptyTime = 3 * time.Second

// remove takes a listener out of the configuration: it is emptied, and its connections go on until they end or are cut.
func (l *loop) remove(name string) {
	b := l.listeners[name]
	if b == nil {
		return
	}
	delete(l.listeners, name)
	b.emptying = l.Now()
	l.leave(b)
}

// emptied closes the sockets of what went long enough ago; all, at the end of everything.
func (l *loop) emptied(all bool) {
	for _, b := range l.leaving {
		if b.emptying > 0 && (all || l.Now()-b.emptying >= int64(emptyTime)) {
			b.emptying = 0
			b.listener.Close()
		}
	}
	l.forget()
}

// leave keeps a listener's filters until they are empty. Their connections end here: a successor does not know the listener.
func (l *loop) leave(b *bound) {
	for _, f := range b.filters {
		f.HandOver(nil)
		f.Drain(l.leaveBy.Over)
	}
	b.leaves = l.Now() + int64(l.leaveBy.Limit)
	l.leaving = append(l.leaving, b)
}

// forget drops what went and has no connection left.
func (l *loop) forget() {
	kept := l.leaving[:0]
	for _, b := range l.leaving {
		if b.open() > 0 || b.emptying > 0 {
			kept = append(kept, b)
		}
	}
	clear(l.leaving[len(kept):])
	l.leaving = kept
}

// cutLeft ends the connections of what went long ago.
func (l *loop) cutLeft() cuts {
	n := cuts{}
	for _, b := range l.leaving {
		if l.Now() >= b.leaves {
			n.close(b)
		}
	}
	l.forget()
	return n
}

// cutAll ends every connection.
func (l *loop) cutAll() cuts {
	n := cuts{}
	for _, b := range l.listeners {
		n.close(b)
	}
	for _, b := range l.leaving {
		n.close(b)
	}
	return n
}

// install puts a listener with its sockets on the worker. On an error the sockets are closed.
func (l *loop) install(config *snapshot.Listener, sockets []listener.Socket, accepting bool, part listener.Part) error {
	made, err := listener.New(l.Worker, config.Name, sockets, l.reserve)
	if err != nil {
		for _, s := range sockets {
			l.Poller.Close(s.FD)
		}
		return err
	}
	cells := config.Cells[l.ID]
	made.Counters = listener.Counters{
		Total: &cells[counters.ListenerDownstreamCxTotal], Active: &cells[counters.ListenerDownstreamCxActive],
		Overflow: &cells[counters.ListenerDownstreamCxOverflow], GlobalOverflow: &cells[counters.ListenerDownstreamGlobalCxOverflow],
		NoMatch: &cells[counters.ListenerNoFilterChainMatch], PreTimeout: &cells[counters.ListenerDownstreamPreCxTimeout],
		ProxyRefused: &cells[counters.ListenerProxyProtocolRefused], OverloadReject: &cells[counters.ListenerDownstreamCxOverloadReject],
		Shed: &cells[counters.ListenerDownstreamCxShed], Worker: &l.cells[counters.WorkerCxActive],
	}
	for _, c := range config.Cells {
		made.Own.Cells = append(made.Own.Cells, &c[counters.ListenerDownstreamCxActive])
	}
	made.Global, made.Overload, made.NextID = &l.global, l.http.Overload, l.nextID
	for _, gone := range l.leaving { // an address that stays is accepted from by one of the two
		if gone.emptying > 0 && gone.config.Name == config.Name {
			gone.listener.CloseShared(made)
		}
	}
	b := &bound{listener: made}
	l.listeners[config.Name] = b
	l.configure(b, config)
	if accepting {
		return made.Start(part)
	}
	return nil
}

// configure gives what begins from now on the listener's present configuration. A filter chain that keeps its name and its
// protocol keeps its filter and with it its connections.
func (l *loop) configure(b *bound, config *snapshot.Listener) {
	gone := b.filters
	b.config, b.filters = config, map[string]networkFilter{}
	b.listener.Own.Max = uint64(config.Object.GetMaxConnections())
	b.listener.Options = conn.Options{HighWatermark: int(config.Object.GetPerConnectionBufferLimitBytes())}
	chains := make([]listener.Chain, len(config.Chains))
	for i, c := range config.Chains {
		f := l.filter(gone[c.Name], c)
		if f == gone[c.Name] {
			delete(gone, c.Name)
		}
		b.filters[c.Name] = f
		chains[i] = listener.Chain{Match: c.Match, Filter: f, Early: c.Early, Late: c.Late}
		if c.TLS != nil {
			cells := config.Cells[l.ID].SSL()
			chains[i].HandshakeTimeout = c.TLS.HandshakeTimeout
			chains[i].Secure = func() conn.Transport { return l.tls.Server(c.TLS.Config(), cells) }
		}
	}
	b.listener.Chains = (&listener.Chains{List: chains, Proxy: config.Proxy, Timeout: config.FiltersTimeout}).Prepare()
	if len(gone) > 0 {
		l.leave(&bound{config: config, listener: b.listener, filters: gone})
	}
}

// filter is the one that a chain had, with its new configuration, or a new one when it speaks another protocol now.
func (l *loop) filter(had networkFilter, c *snapshot.Chain) networkFilter {
	switch f := had.(type) {
	case *tunnels:
		if c.TCP != nil {
			f.Config = c.TCP
			return f
		}
	case *hcm.Filter:
		if c.HTTP != nil {
			f.Config = c.HTTP
			return f
		}
	}
	if c.TCP != nil {
		return &tunnels{tcpproxy.Filter{Worker: l.Worker, Manager: l.manager, Config: c.TCP}}
	}
	return &hcm.Filter{Worker: l.Worker, Shared: l.http, Config: c.HTTP}
}

// filters are all that may have connections.
func (l *loop) filters() []networkFilter {
	list := make([]networkFilter, 0, len(l.listeners)+len(l.leaving))
	for _, b := range l.listeners {
		list = slices.AppendSeq(list, maps.Values(b.filters))
	}
	for _, b := range l.leaving {
		list = slices.AppendSeq(list, maps.Values(b.filters))
	}
	return list
}
