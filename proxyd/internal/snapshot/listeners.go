package snapshot

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter"
	"retinue.dev/proxyd/internal/grpcstats"
	"retinue.dev/proxyd/internal/hcm"
	"retinue.dev/proxyd/internal/listener"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tcpproxy"
	"retinue.dev/proxyd/internal/tlstransport"
	configv1 "retinue.dev/services/api/config/v1"
)

// Listener is one listener with its filter chains.
type Listener struct {
	Name   string
	Object *configv1.Listener
	Chains []*Chain
	// Proxy is who may send a PROXY header; nil: none is expected.
	Proxy          *listener.Proxy
	FiltersTimeout time.Duration        // until a connection's chain is known
	Cells          []*counters.Listener // by worker
}

// Chain is one filter chain with its network filter: HTTP or TCP is set.
type Chain struct {
	Name  string // "" for the only one
	Match listener.Match
	HTTP  *hcm.Config
	TCP   *tcpproxy.Config
	TLS   *tlstransport.Server // nil: plain

	Early, Late []listener.Gate // see listener.Chain
}

// SameSockets tells whether another version of the listener accepts on the very same sockets.
func (l *Listener) SameSockets(other *Listener) bool {
	a, b := l.Object, other.Object
	if len(a.GetAddresses()) != len(b.GetAddresses()) || a.GetTcpDeferAccept() != b.GetTcpDeferAccept() {
		return false
	}
	for i, address := range a.GetAddresses() {
		if address.GetAddress() != b.GetAddresses()[i].GetAddress() {
			return false
		}
	}
	return true
}

func (r *build) buildListeners() {
	for _, o := range r.next.Objects {
		if o.GetListener() == nil {
			continue
		}
		key := "listener\x00" + o.GetName()
		from := r.sources(o)
		p := r.previous.parts[key]
		if p == nil || p.key != from {
			p = &part{key: from}
			if p.listen = r.listener(o); p.listen == nil {
				continue
			}
		}
		r.next.parts[key] = p
		r.next.Listeners = append(r.next.Listeners, p.listen)
	}
}

// sources is the hashes of everything that a listener is built from. Clusters are not: they are held by handle.
func (r *build) sources(o *configv1.Object) string {
	var from strings.Builder
	from.Write(o.GetHash())
	add := func(hash []byte) {
		from.WriteByte(0)
		from.Write(hash)
	}
	seen := map[string]bool{}
	filters := func(uses []*configv1.FilterUse) { // each once: thousands of routes inherit one list
		for _, use := range uses {
			if key := use.GetPlugin() + "\x00" + use.GetFilter(); !seen[key] {
				seen[key] = true
				add(r.plugins[use.GetPlugin()].GetHash())
				add(r.filters[use.GetFilter()].GetHash())
			}
		}
	}
	for _, chain := range o.GetListener().GetFilterChains() {
		names := chain.GetTcp().GetAccessLogs()
		filters(chain.GetFilters())
		filters(chain.GetTcp().GetFilters())
		if chain.GetTcp() == nil {
			h := r.https[chain.GetHttp()]
			add(h.GetHash())
			names = h.GetHttp().GetAccessLogs()
			filters(h.GetHttp().GetFilters())
			for _, host := range h.GetHttp().GetVirtualHosts() {
				filters(host.GetFilters())
				for _, route := range host.GetRoutes() {
					filters(route.GetFilters())
				}
			}
		}
		for _, name := range names {
			add(r.logs[name].GetHash())
		}
	}
	return from.String()
}

// listener builds one listener, or refuses and answers nil.
func (r *build) listener(o *configv1.Object) *Listener {
	object := o.GetListener()
	if len(object.GetFilterChains()) == 0 {
		r.refuse(o, "", errors.New("it has no filter chain: give it one http or one tcp block"))
		return nil
	}
	l := &Listener{Name: o.GetName(), Object: object}
	if l.FiltersTimeout = time.Duration(object.GetListenerFiltersTimeoutMs()) * time.Millisecond; l.FiltersTimeout <= 0 {
		l.FiltersTimeout = defaultFiltersTimeout
	}
	if p := object.GetProxyProtocol(); p != nil {
		trusted, err := prefixes(p.GetTrusted())
		if err != nil {
			r.refuse(o, "proxy_protocol", err)
			return nil
		}
		l.Proxy = &listener.Proxy{Trusted: trusted, Optional: p.GetOptional()}
	}
	for _, chain := range object.GetFilterChains() {
		built := r.chain(o, chain)
		if built == nil {
			return nil
		}
		l.Chains = append(l.Chains, built)
	}
	l.Cells = r.Stats.Listeners(r.ctx, []string{o.GetName()})[0]
	return l
}

// proxyVersions are the versions of PROXY headers by their names.
var proxyVersions = map[string]int{"v1": 1, "v2": 2}

// defaultFiltersTimeout is Envoy's listener_filters_timeout.
const defaultFiltersTimeout = 15 * time.Second

func prefixes(list []string) (out []netip.Prefix, err error) {
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, err
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// chain builds one filter chain, or refuses and answers nil.
func (r *build) chain(o *configv1.Object, chain *configv1.FilterChain) *Chain {
	c := &Chain{Name: chain.GetName(), Match: listener.Match{ALPN: chain.GetMatch().GetAlpn()}}
	for _, name := range chain.GetMatch().GetSni() {
		if suffix, wild := strings.CutPrefix(name, "*"); wild {
			c.Match.Suffix = append(c.Match.Suffix, suffix)
		} else {
			c.Match.SNI = append(c.Match.SNI, name)
		}
	}
	var err error
	if c.Match.Sources, err = prefixes(chain.GetMatch().GetSources()); err != nil {
		r.refuse(o, "", err)
		return nil
	}
	if err = r.gates(c, chain.GetFilters()); err != nil {
		r.refuse(o, "filters", err)
		return nil
	}
	if t := chain.GetTcp(); t != nil {
		c.TCP = r.tcp(o, chain.GetName(), t)
	} else if h := r.https[chain.GetHttp()]; h != nil {
		c.HTTP = r.http(o.GetListener(), h)
	} else {
		r.refuse(o, "", fmt.Errorf("its connection manager %q is not in the snapshot", chain.GetHttp()))
	}
	if c.TCP == nil && c.HTTP == nil {
		return nil
	}
	if t := chain.GetTls(); t != nil {
		var speaks []string
		if c.HTTP != nil {
			speaks = hcm.Protocols
		}
		if c.TLS, err = tlstransport.NewServer(o.GetName()+"/"+chain.GetName(), t, speaks, r.Secrets); err != nil {
			r.refuse(o, "tls", err)
			return nil
		}
	}
	return c
}

// gates builds what judges a chain's connections: before the transport, as long as nobody asks for a certificate.
func (r *build) gates(c *Chain, uses []*configv1.FilterUse) error {
	to := &c.Early
	for _, use := range uses {
		f, err := r.filter(use.GetFilter())
		if err != nil {
			return err
		}
		if f.Connection == nil {
			return fmt.Errorf("filter %q cannot judge a connection", use.GetFilter())
		}
		if f.Certified {
			to = &c.Late
		}
		*to = append(*to, f.Connection)
	}
	return nil
}

func (r *build) tcp(o *configv1.Object, chain string, t *configv1.TcpProxy) *tcpproxy.Config {
	prefix := t.GetStatPrefix()
	if prefix == "" {
		prefix = o.GetName()
	}
	c := &tcpproxy.Config{
		Shown:       &stream.Config{Name: chain},
		IdleTimeout: filter.Milliseconds(t.GetIdleTimeoutMs()),
		Attempts:    max(1, int(t.GetMaxConnectAttempts())),
		HashSource:  t.GetHashSource(),
		BufferLimit: int(o.GetListener().GetPerConnectionBufferLimitBytes()),
	}
	var sum uint64
	for i, target := range t.GetClusters() {
		if !r.clusters[target.GetCluster()] {
			r.refuse(o, fmt.Sprintf("clusters[%d]", i), fmt.Errorf("cluster %q is not in the snapshot", target.GetCluster()))
			return nil
		}
		sum += max(1, uint64(target.GetWeight()))
		c.Targets = append(c.Targets, tcpproxy.Target{Cluster: r.next.handles[target.GetCluster()], Name: target.GetCluster(), Cumulative: sum, Subset: cluster.NewSubset(target.GetSubset())})
	}
	switch uses := t.GetFilters(); {
	case len(uses) > 1:
		r.refuse(o, "filters", fmt.Errorf("a tcp block has one plugin at the most"))
		return nil
	case len(uses) == 1:
		p := r.plugins[uses[0].GetPlugin()]
		if p == nil {
			r.refuse(o, "filters", fmt.Errorf("plugin %q is not in the snapshot", uses[0].GetPlugin()))
			return nil
		}
		c.Filter = r.Plugins.Use(r.ctx, p.GetPlugin(), p.GetHash(), uses[0].GetOnError())
	}
	var ok bool
	if c.Logs, ok = r.accessLogs(o, t.GetAccessLogs()); !ok {
		return nil
	}
	c.Name = o.GetName()
	c.Cells = r.Stats.TCP(r.ctx, []string{prefix})[0]
	return c
}

func (r *build) http(l *configv1.Listener, o *configv1.Object) *hcm.Config {
	h := o.GetHttp()
	prefix := h.GetStatPrefix()
	if prefix == "" {
		prefix = l.GetName()
	}
	logs, ok := r.accessLogs(o, h.GetAccessLogs())
	if !ok {
		return nil
	}
	stats := r.Stats // outlives this building: methods are declared when they are seen
	logs = append(logs, grpcstats.New(r.Workers, func(service, method string) []*counters.GRPC {
		return stats.GRPC(context.Background(), prefix, service, method)
	}))
	links := false
	traced, err := r.tracing(h.GetTracing(), &links)
	if err == nil && h.GetTracing().GetExport() {
		var spans stream.AccessLog
		spans, err = r.Spans(traced)
		logs = append(logs, spans)
	}
	if err != nil {
		r.refuse(o, "tracing", err)
		return nil
	}
	missing := ""
	filters := func(uses []*configv1.FilterUse) (list []stream.Factory, err error) {
		for _, use := range uses {
			if name := use.GetFilter(); name != "" {
				f, err := r.filter(name)
				if err != nil {
					return nil, err
				}
				links = links || r.next.parts["filter\x00"+name].links
				list = append(list, f.HTTP)
				continue
			}
			o := r.plugins[use.GetPlugin()]
			if o == nil {
				return nil, fmt.Errorf("plugin %q is not in the snapshot", use.GetPlugin())
			}
			list = append(list, r.Plugins.Use(r.ctx, o.GetPlugin(), o.GetHash(), use.GetOnError()))
		}
		return list, nil
	}
	routes := &filter.Compiler{Filters: filters, Format: r.format(&links), Cluster: func(name string) cluster.Handle {
		if !r.clusters[name] {
			missing = name
			return cluster.NoHandle
		}
		return r.next.handles[name]
	}}
	c, err := hcm.NewConfig(h, hcm.Options{
		Routes: routes, Logs: logs, Links: &links, Tracing: traced, Cells: r.Stats.HTTP(r.ctx, []string{prefix})[0], BufferLimit: int(l.GetPerConnectionBufferLimitBytes()),
	})
	if err == nil && missing != "" {
		err = fmt.Errorf("a route names cluster %q, which is not in the snapshot", missing)
	}
	if err != nil {
		r.refuse(o, "", err)
		return nil
	}
	return c
}

// filter is the built filter of a name; each is made once, and stays while its object does.
func (r *build) filter(name string) (*filter.Filter, error) {
	o := r.filters[name]
	if o == nil {
		return nil, fmt.Errorf("filter %q is not in the snapshot", name)
	}
	key := "filter\x00" + name
	p := r.next.parts[key]
	if p == nil {
		if p = r.previous.parts[key]; p == nil || p.key != string(o.GetHash()) {
			p = &part{key: string(o.GetHash())}
			if p.filter, p.failed = filter.Build(o.GetFilter(), &filter.Env{Context: r.ctx, Workers: r.Workers, Stats: r.Stats, Format: r.format(&p.links), Secrets: r.Secrets, Failing: &r.Failing, Pools: r.Pools, Cluster: r.handle, JwtProvider: r.jwtProvider}); p.failed != nil {
				r.refuse(o, "", p.failed)
			}
		}
		r.next.parts[key] = p
	}
	if p.failed != nil {
		return nil, fmt.Errorf("filter %q is refused", name)
	}
	return p.filter, nil
}

// keepFilters keeps the filters of listeners that stayed as they were, which nobody has asked for.
func (r *build) keepFilters() {
	for _, o := range r.next.Objects {
		if o.GetFilter() == nil {
			continue
		}
		key := "filter\x00" + o.GetName()
		if p := r.previous.parts[key]; r.next.parts[key] == nil && p != nil && p.key == string(o.GetHash()) {
			r.next.parts[key] = p
		}
		if p := r.next.parts[key]; p != nil && p.failed == nil {
			r.keepProviders(o.GetFilter().GetJwt())
		}
	}
}
