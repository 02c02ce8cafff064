package filter

import (
	"cmp"
	"fmt"
	"math"
	"time"

	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/route"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tracing"
	configv1 "retinue.dev/services/api/config/v1"
)

// defaultRouteTimeout is Envoy's.
const defaultRouteTimeout = int64(15 * time.Second)

// Formatter writes a header value that holds access-log operators.
type Formatter interface {
	Append(dst []byte, s *stream.Stream) []byte
}

// Compiler resolves what routes name when a snapshot is built.
type Compiler struct {
	// Cluster answers the handle of a name; cluster.NoHandle, which is answered with 503 and the flag NC, when there
	// is none.
	Cluster func(name string) cluster.Handle
	// Format compiles a header value with operators; nil refuses them.
	Format func(format string) (Formatter, error)
	// Filters makes the factories of a list of filters; nil refuses them.
	Filters func(uses []*configv1.FilterUse) ([]stream.Factory, error)

	// plain are lists of one cluster of which nothing is asked: all routes to it share one, and so its place in the caches.
	plain map[string][]target
}

// Routes are the compiled routes of one connection manager. Immutable; workers share them.
type Routes struct {
	table    *route.Table
	actions  []action // by route.Entry.Ordinal
	filtered bool     // some request has filters
	sampled  bool     // some route says something about traces

	unrouted [][]stream.Factory // by virtual host: of its requests that no route takes
	secured  []secured          // by virtual host; nil: none of them requires TLS
	unhosted []stream.Factory   // of those that no virtual host takes
}

// secured is what becomes of a virtual host's requests that did not come by TLS.
type secured struct {
	required configv1.RequireTls
	action   action // to https
}

type actionKind uint8

const (
	forward actionKind = iota
	redirect
	respond
)

// action is what one route does. Where there are thousands, each request finds another's in memory: what every request asks for
// comes first and fits into four lines, what few ask for is elsewhere.
type action struct {
	kind     actionKind
	priority cluster.Priority
	tells    tells
	targets  []target
	weights  uint64
	name     string
	hostName string

	upgrades *Upgrades         // nil: all that the connection manager allows
	sampling *tracing.Sampling // nil: the connection manager's
	filters  []stream.Factory
	request  []headerOps // of all routes, the virtual host, the route: the more specific has the last word
	response []headerOps

	timeout     int64 // ns; 0 off
	idle        int64 // ns; below 0: the connection manager's
	maxDuration int64 // ns; below 0: the connection manager's
	retry       *retryPolicy
	sticky      *sticky
	hash        *hashPolicy // nil: none
	edits       *edits      // nil: none
	mirrors     *[]mirrorTo // nil: none
	answer      *answer     // of redirect and respond

	_ [3]uint64 // whole lines
}

// edits are what a route changes of a request's path and host.
type edits struct {
	rewrite
	host     []byte
	hostFrom headerOp // the header whose value replaces the host; name nil: none
	tellHost bool     // the host that is replaced goes to the end of X-Forwarded-Host
	query    *queryRewrite
}

// answer is what is answered without an upstream.
type answer struct {
	status      int
	body        []byte
	contentType string

	rewrite    // of a redirect
	scheme     string
	host       []byte // without the port
	port       string
	path       string
	stripQuery bool
}

type target struct {
	handle     cluster.Handle
	name       string
	cumulative uint64
	subset     *cluster.Subset
	choosy     bool        // requests say something about their host
	request    []headerOps // after those of the action
	response   []headerOps
}

// Compile builds the routes. An error names the route and says what is wrong with it.
func (c *Compiler) Compile(h *configv1.Http) (*Routes, error) {
	table, err := route.Compile(h.GetVirtualHosts())
	if err != nil {
		return nil, err
	}
	c.plain = map[string][]target{}
	r := &Routes{table: table, actions: make([]action, table.Len())}
	for i := range r.actions {
		entry := table.Entry(i)
		if err := c.action(&r.actions[i], h, entry.Host, entry.Route); err != nil {
			return nil, fmt.Errorf("%svirtual_host %q, route %q: %w", place(entry.Route.GetSource()), entry.Host.GetName(),
				entry.Route.GetName(), err)
		}
		r.filtered = r.filtered || len(r.actions[i].filters) > 0
		r.sampled = r.sampled || r.actions[i].sampling != nil
	}
	if r.unhosted, err = c.filters(h.GetFilters()); err != nil {
		return nil, err
	}
	r.filtered = r.filtered || len(r.unhosted) > 0
	for _, host := range h.GetVirtualHosts() {
		list, err := c.filters(host.GetFilters())
		if err != nil {
			return nil, fmt.Errorf("%svirtual_host %q: %w", place(host.GetSource()), host.GetName(), err)
		}
		r.unrouted = append(r.unrouted, list)
		r.filtered = r.filtered || len(list) > 0
	}
	return r, c.secure(r, h)
}

// secure finds the virtual hosts that require TLS.
func (c *Compiler) secure(r *Routes, h *configv1.Http) (err error) {
	for i, host := range h.GetVirtualHosts() {
		switch host.GetRequireTls() {
		case configv1.RequireTls_REQUIRE_TLS_NONE:
			continue
		case configv1.RequireTls_REQUIRE_TLS_EXTERNAL_ONLY, configv1.RequireTls_REQUIRE_TLS_ALL:
		default:
			return fmt.Errorf("%svirtual_host %q: require_tls is %v, which is not known here", place(host.GetSource()), host.GetName(), host.GetRequireTls())
		}
		if r.secured == nil {
			r.secured = make([]secured, len(h.GetVirtualHosts()))
		}
		a := action{kind: redirect, hostName: host.GetName(), filters: r.unrouted[i], answer: &answer{status: 301, scheme: "https"}}
		for _, o := range []*configv1.HeaderOps{h.GetResponseHeaders(), host.GetResponseHeaders()} {
			if a.response, err = c.ops(a.response, o); err != nil {
				return fmt.Errorf("response_headers: %w", err)
			}
		}
		r.secured[i] = secured{required: host.GetRequireTls(), action: a}
	}
	return nil
}

// filters makes the factories of a list.
func (c *Compiler) filters(uses []*configv1.FilterUse) ([]stream.Factory, error) {
	if len(uses) == 0 {
		return nil, nil
	}
	if c.Filters == nil {
		return nil, fmt.Errorf("filters: they are not known here")
	}
	list, err := c.Filters(uses)
	if err != nil {
		return nil, fmt.Errorf("filters: %w", err)
	}
	return list, nil
}

// Filtered tells that some request has filters: stream.Config.Routed.
func (r *Routes) Filtered() bool { return r.filtered }

func place(s *configv1.Source) string {
	if s.GetFile() == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d: ", s.GetFile(), s.GetLine())
}

func (c *Compiler) action(a *action, h *configv1.Http, host *configv1.VirtualHost, r *configv1.Route) error {
	a.name, a.hostName, a.sampling = r.GetName(), host.GetName(), tracing.Override(h.GetTracing(), r.GetTracing())
	a.tells = tellsOf(h, host)
	var err error
	if a.filters, err = c.filters(r.GetFilters()); err != nil {
		return err
	}
	switch {
	case r.GetRoute() != nil:
		err = c.forward(a, r.GetRoute(), r.GetMatch())
	case r.GetRedirect() != nil:
		a.kind = redirect
		a.answer, err = newRedirect(r.GetRedirect(), r.GetMatch())
	case r.GetRespond() != nil:
		d := r.GetRespond()
		a.kind, a.answer = respond, &answer{status: int(d.GetStatus()), body: d.GetBody(), contentType: cmp.Or(d.GetContentType(), "text/plain")}
		if a.answer.status < 200 || a.answer.status > 599 {
			err = fmt.Errorf("respond: status %d is not between 200 and 599", a.answer.status)
		}
	default:
		err = fmt.Errorf("there is no action: give it a cluster, a split, a redirect or a respond")
	}
	if err != nil {
		return err
	}
	for _, o := range []*configv1.HeaderOps{h.GetRequestHeaders(), host.GetRequestHeaders(), r.GetRequestHeaders()} {
		if a.request, err = c.ops(a.request, o); err != nil {
			return fmt.Errorf("request_headers: %w", err)
		}
	}
	for _, o := range []*configv1.HeaderOps{h.GetResponseHeaders(), host.GetResponseHeaders(), r.GetResponseHeaders()} {
		if a.response, err = c.ops(a.response, o); err != nil {
			return fmt.Errorf("response_headers: %w", err)
		}
	}
	return nil
}

func (c *Compiler) forward(a *action, r *configv1.RouteAction, match *configv1.RouteMatch) error {
	a.timeout, a.idle, a.maxDuration = defaultRouteTimeout, -1, -1
	if u := r.GetUpgrades(); u != nil {
		allowed := NewUpgrades(u.GetTypes())
		a.upgrades = &allowed
	}
	for _, w := range r.GetClusters() {
		if w.GetWeight() == 0 && len(r.GetClusters()) > 1 {
			continue
		}
		a.weights += uint64(max(w.GetWeight(), 1))
		t := target{handle: c.Cluster(w.GetCluster()), name: w.GetCluster(), cumulative: a.weights}
		var err error
		if t.request, err = c.ops(nil, w.GetRequestHeaders()); err != nil {
			return fmt.Errorf("request_headers of cluster %q: %w", w.GetCluster(), err)
		}
		if t.response, err = c.ops(nil, w.GetResponseHeaders()); err != nil {
			return fmt.Errorf("response_headers of cluster %q: %w", w.GetCluster(), err)
		}
		if t.subset = cluster.NewSubset(w.GetSubset()); t.subset == nil {
			t.subset = cluster.NewSubset(r.GetSubset())
		}
		t.choosy = t.subset != nil || len(r.GetHashPolicies()) > 0
		a.targets = append(a.targets, t)
	}
	if len(a.targets) == 0 {
		return fmt.Errorf("no cluster has a weight above 0")
	}
	if t := a.targets; len(t) == 1 && !t[0].choosy && t[0].request == nil && t[0].response == nil {
		if known, ok := c.plain[t[0].name]; ok {
			a.targets = known
		} else {
			c.plain[t[0].name] = t
		}
	}
	if r.GetPriority() == configv1.RoutingPriority_ROUTING_PRIORITY_HIGH {
		a.priority = cluster.High
	}
	if r.TimeoutMs != nil {
		a.timeout = Milliseconds(r.GetTimeoutMs())
	}
	if r.IdleTimeoutMs != nil {
		a.idle = Milliseconds(r.GetIdleTimeoutMs())
	}
	if r.MaxStreamDurationMs != nil {
		a.maxDuration = Milliseconds(r.GetMaxStreamDurationMs())
	}
	var err error
	if a.retry, err = compileRetry(r.GetRetry()); err != nil {
		return err
	}
	if a.edits, err = newEdits(r, match); err != nil {
		return err
	}
	if a.sticky, err = compileSticky(r.GetSticky()); err != nil {
		return err
	}
	if a.hash, err = compileHash(r.GetHashPolicies()); err != nil {
		return err
	}
	if list := r.GetMirrors(); len(list) > 0 {
		a.mirrors = new([]mirrorTo)
		for _, m := range list {
			*a.mirrors = append(*a.mirrors, mirrorTo{handle: c.Cluster(m.GetCluster()), fraction: uint64(cmp.Or(m.GetFraction(), million))})
		}
	}
	return nil
}

// newEdits is nil where nothing is changed.
func newEdits(r *configv1.RouteAction, match *configv1.RouteMatch) (*edits, error) {
	e := edits{tellHost: r.GetAppendXForwardedHost()}
	var err error
	if e.rewrite, err = newRewrite(match, r.PrefixRewrite, r.GetRegexRewrite(), r.GetTemplateRewrite()); err != nil {
		return nil, err
	}
	if e.prefixes && len(e.with) > 0 && e.with[0] != '/' {
		return nil, fmt.Errorf("prefix_rewrite %q: a path begins with a slash", e.with)
	}
	if name := r.GetHostRewriteHeader(); name != "" {
		if e.hostFrom = namedOp(name); !header.ValidName(e.hostFrom.name) {
			return nil, fmt.Errorf("host_rewrite_header: %q is not a header name", name)
		}
	}
	if e.query, err = compileQuery(r.GetQueryRewrite()); err != nil {
		return nil, err
	}
	if h := r.GetHostRewrite(); h != "" {
		if e.host = []byte(h); !header.ValidAuthority(e.host) {
			return nil, fmt.Errorf("host_rewrite %q is not a host with an optional port", h)
		}
	}
	if !e.rewrites() && e.host == nil && e.hostFrom.name == nil && e.query == nil {
		return nil, nil
	}
	return &e, nil
}

// Milliseconds converts a configured duration, which may be absurd, without overflow.
func Milliseconds(ms int64) int64 {
	if ms <= 0 {
		return 0
	}
	if ms > math.MaxInt64/int64(time.Millisecond)/4 {
		return math.MaxInt64 / 4
	}
	return ms * int64(time.Millisecond)
}
