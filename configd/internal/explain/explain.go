// Package explain says what a snapshot does with a request, step by step and with the place of each step: listener, chain, path,
// virtual host, every route tried, action, clusters. It asks nobody: the answer is the configuration's.
package explain

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"retinue.dev/libs/routing"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/snapshot"
)

// maxURL and maxHeaders bound a question as proxyd bounds a request.
const (
	maxURL     = 16 << 10
	maxHeaders = 1000
)

// target is a URL, taken apart without changing a byte of its path.
type target struct {
	tls       bool
	authority string
	name      string // the host, as domains are compared with it
	port      uint16
	path      string
}

func parse(url string) (t target, err error) {
	bad := errors.New("a URL is written http://HOST[:PORT]/PATH or https://…")
	scheme, rest, ok := strings.Cut(url, "://")
	switch {
	case len(url) > maxURL:
		return t, fmt.Errorf("a URL has at most %d bytes", maxURL)
	case !ok || (scheme != "http" && scheme != "https"):
		return t, bad
	}
	t.tls = scheme == "https"
	t.authority, t.path = rest, "/"
	if i := strings.IndexAny(rest, "/?"); i >= 0 {
		t.authority, t.path = rest[:i], rest[i:]
		if rest[i] == '?' {
			t.path = "/" + t.path
		}
	}
	t.path, _, _ = strings.Cut(t.path, "#")
	t.name = routing.Name(t.authority)
	t.port = 80
	if t.tls {
		t.port = 443
	}
	if port := strings.TrimPrefix(t.authority[min(len(t.name), len(t.authority)):], "."); port != "" {
		n, err := strconv.ParseUint(strings.TrimPrefix(port, ":"), 10, 16)
		if err != nil || n == 0 || port[0] != ':' {
			return t, bad
		}
		t.port = uint16(n)
	}
	if t.name == "" {
		return t, bad
	}
	return t, nil
}

// story collects the steps.
type story struct {
	s     *snapshot.Snapshot
	found []*configv1.DiscoveryStatus
	steps []*configv1.ExplainStep
}

func (y *story) tell(what, name, reason string, at *configv1.Source) *configv1.ExplainStep {
	step := &configv1.ExplainStep{What: what, Name: name, Reason: reason, Source: at}
	y.steps = append(y.steps, step)
	return step
}

func (y *story) reject(what, name, reason string, at *configv1.Source) {
	y.tell(what, name, reason, at).Rejected = true
}

// at is where a field of an object is written.
func (y *story) at(kind, name, field string) *configv1.Source {
	p, ok := y.s.Where(kind, name, field)
	if !ok || p.File == "" {
		return nil
	}
	return &configv1.Source{File: p.File, Line: uint32(p.Line), Column: uint32(p.Column)}
}

// Request explains one. found is what is known of endpoints that are found, where somebody looks for them. The error is about
// the question.
func Request(s *snapshot.Snapshot, found []*configv1.DiscoveryStatus, q *configv1.ExplainRequest) (*configv1.ExplainReply, error) {
	t, err := parse(q.GetUrl())
	if err != nil {
		return nil, err
	}
	asked := &routing.Request{Method: q.GetMethod(), Authority: t.authority, TLS: t.tls}
	if asked.Method == "" || asked.Method != strings.ToUpper(asked.Method) || len(asked.Method) > 32 {
		return nil, fmt.Errorf("%q is not a method: they are written in capitals", asked.Method)
	}
	if len(q.GetHeaders()) > maxHeaders {
		return nil, fmt.Errorf("a request has at most %d headers here", maxHeaders)
	}
	for _, h := range q.GetHeaders() {
		asked.Header = append(asked.Header, routing.Field{Name: strings.ToLower(h.GetName()), Value: h.GetValue()})
	}
	from := q.GetFrom()
	if from == "" {
		from = "127.0.0.1"
	}
	if asked.Source, err = netip.ParseAddr(from); err != nil {
		return nil, fmt.Errorf("%q is not an address", from)
	}
	asked.Source = asked.Source.Unmap()
	y := &story{s: s, found: found}
	if err := y.connection(t, asked, q.GetListener()); err != nil {
		return nil, err
	}
	reply := &configv1.ExplainReply{SnapshotId: s.ID, Steps: y.steps}
	reply.Rendered = fmt.Sprintf("%s %s from %s, snapshot %s\n\n%s", asked.Method, q.GetUrl(), asked.Source, s.ID, Text(y.steps))
	return reply, nil
}

// connection goes from the listener to the filter of the chain.
func (y *story) connection(t target, asked *routing.Request, wanted string) error {
	l, address, err := y.listener(t, wanted)
	if err != nil {
		return err
	}
	reason := ""
	if address != "" {
		reason = "listens on " + address
	}
	y.tell("listener", l.GetName(), reason, y.at("listener", l.GetName(), ""))
	if p := l.GetProxyProtocol(); p != nil {
		y.tell("proxy", "protocol", "the header of "+strings.Join(p.GetTrusted(), ", ")+" tells the client's address", y.at("listener", l.GetName(), "proxy_protocol"))
	}
	chain := y.chain(l, t, asked.Source)
	if chain == nil {
		y.tell("answer", "connection closed", "no filter chain matches", nil)
		return nil
	}
	if !y.gates(chain.GetFilters(), asked.Source) {
		y.tell("answer", "connection closed", "a filter of the connection refuses it", nil)
		return nil
	}
	if tcp := chain.GetTcp(); tcp != nil {
		at := y.at("listener", l.GetName(), "")
		y.tell("tcp", tcp.GetStatPrefix(), "bytes pass; nothing of the request is looked at", at)
		y.filters(tcp.GetFilters(), asked.Source)
		by := choice{at: at}
		if tcp.GetHashSource() {
			by.policies = []*configv1.HashPolicy{{Kind: &configv1.HashPolicy_Source{Source: true}}}
		}
		y.clusters(tcp.GetClusters(), by)
		attempts := max(tcp.GetMaxConnectAttempts(), 1)
		y.tell("timeouts", "", fmt.Sprintf("idle %s, %s to connect", duration(tcp.GetIdleTimeoutMs()), count(int(attempts), "attempt")), at)
		return nil
	}
	for _, o := range y.s.Objects {
		if h := o.GetHttp(); h != nil && h.GetName() == chain.GetHttp() {
			y.http(h, t, asked)
		}
	}
	return nil
}

// listener finds the one that is named, or that has the port.
func (y *story) listener(t target, wanted string) (found *configv1.Listener, address string, err error) {
	var all []string
	var only *configv1.Listener
	for _, o := range y.s.Objects {
		l := o.GetListener()
		if l == nil {
			continue
		}
		var addresses []string
		for _, a := range l.GetAddresses() {
			addresses = append(addresses, a.GetAddress())
			if ap, err := netip.ParseAddrPort(a.GetAddress()); wanted == "" && found == nil && err == nil && ap.Port() == t.port {
				found, address = l, a.GetAddress()
			}
		}
		if l.GetName() == wanted {
			found, address = l, strings.Join(addresses, ", ")
		}
		only = l
		all = append(all, fmt.Sprintf("%s (%s)", l.GetName(), strings.Join(addresses, ", ")))
	}
	switch {
	case found != nil:
		return found, address, nil
	case len(all) == 0:
		return nil, "", errors.New("the configuration has no listener")
	case wanted != "":
		return nil, "", fmt.Errorf("there is no listener %q; there are %s", wanted, strings.Join(all, ", "))
	case len(all) == 1:
		return only, "", nil
	}
	return nil, "", fmt.Errorf("no listener has the port %d: write the port in the URL, or name one with --listener: %s", t.port, strings.Join(all, ", "))
}

// http goes from the path to the action.
func (y *story) http(h *configv1.Http, t target, asked *routing.Request) {
	at := h.GetSource()
	policy := map[configv1.EscapedSlashes]routing.Slashes{
		configv1.EscapedSlashes_ESCAPED_SLASHES_REJECT:   routing.RejectSlashes,
		configv1.EscapedSlashes_ESCAPED_SLASHES_REDIRECT: routing.DecodeSlashes,
		configv1.EscapedSlashes_ESCAPED_SLASHES_DECODE:   routing.DecodeSlashes,
	}[h.GetPath().GetEscapedSlashes()]
	normal, decoded, ok := routing.NormalizePath(nil, []byte(t.path), h.GetPath().GetMergeSlashes(), policy)
	switch {
	case !ok:
		y.reject("path", t.path, "servers would read it differently", at)
		y.tell("answer", "400", "path_normalization_failed", at)
		return
	case string(normal) != t.path:
		y.tell("path", string(normal), "the normal form of "+t.path, at)
	default:
		y.tell("path", t.path, "", nil)
	}
	if decoded && h.GetPath().GetEscapedSlashes() == configv1.EscapedSlashes_ESCAPED_SLASHES_REDIRECT {
		y.tell("answer", "307", "to the path with its slashes decoded", at)
		return
	}
	asked.Path = string(normal)
	out := routing.Scan(h.GetVirtualHosts(), asked)
	if out.Host < 0 {
		y.reject("host", routing.Name(asked.Authority), "no virtual host has the domain, and none has \"*\"", at)
		if y.filters(h.GetFilters(), asked.Source) {
			y.tell("answer", "404", "route_not_found", at)
		}
		return
	}
	host := h.GetVirtualHosts()[out.Host]
	reason := "the domain " + out.Domain
	if out.Domain != routing.Name(asked.Authority) {
		reason += " matches " + routing.Name(asked.Authority)
	}
	y.tell("host", host.GetName(), reason, host.GetSource())
	if need := host.GetRequireTls(); need != configv1.RequireTls_REQUIRE_TLS_NONE && !asked.TLS {
		reason := "redirect: scheme https, as the virtual host has redirect_https"
		if need == configv1.RequireTls_REQUIRE_TLS_EXTERNAL_ONLY {
			reason += " for clients that are not internal"
		}
		if y.filters(host.GetFilters(), asked.Source) {
			y.tell("answer", "301", reason, host.GetSource())
		}
		if need == configv1.RequireTls_REQUIRE_TLS_ALL {
			return
		}
		y.tell("otherwise", "", "internal clients", nil)
	}
	y.routes(h, host, out, 0, asked)
}

// routes tells the steps of a scan from one on, and what comes of them. Where a route takes a part of the requests, both
// parts are told.
func (y *story) routes(h *configv1.Http, host *configv1.VirtualHost, out routing.Result, from int, asked *routing.Request) {
	for _, step := range out.Steps[from:] {
		r := host.GetRoutes()[step.Route]
		if !step.Matched {
			y.reject("route", r.GetName(), step.Reason, r.GetSource())
			continue
		}
		y.tell("route", r.GetName(), step.Reason, r.GetSource())
		y.tracing(h, r)
		if y.filters(r.GetFilters(), asked.Source) {
			y.action(h, host, r)
		}
		if r.GetMatch().Fraction == nil || r.GetMatch().GetFraction() >= 1_000_000 {
			return
		}
		rest := *asked
		rest.Draw = max(asked.Draw, r.GetMatch().GetFraction())
		y.tell("otherwise", "", "the other requests", nil)
		y.routes(h, host, routing.Scan(h.GetVirtualHosts(), &rest), step.Route+1, &rest)
		return
	}
	if out.Route < 0 && y.filters(host.GetFilters(), asked.Source) {
		y.tell("answer", "404", "no route of the virtual host matches", host.GetSource())
	}
}

func (y *story) action(h *configv1.Http, host *configv1.VirtualHost, r *configv1.Route) {
	at := r.GetSource()
	switch {
	case r.GetRespond() != nil:
		d := r.GetRespond()
		y.tell("answer", strconv.Itoa(int(d.GetStatus())), fmt.Sprintf("a body of %d bytes, %s", len(d.GetBody()), d.GetContentType()), at)
	case r.GetRedirect() != nil:
		y.tell("answer", strconv.Itoa(int(max(301, r.GetRedirect().GetStatus()))), redirection(r.GetRedirect()), at)
	case r.GetRoute() != nil:
		y.forward(h, r, r.GetRoute())
	}
	type level struct {
		name              string
		request, response *configv1.HeaderOps
		at                *configv1.Source
	}
	levels := []level{
		{"http", h.GetRequestHeaders(), h.GetResponseHeaders(), h.GetSource()},
		{"virtual_host", host.GetRequestHeaders(), host.GetResponseHeaders(), host.GetSource()},
		{"route", r.GetRequestHeaders(), r.GetResponseHeaders(), at},
	}
	for _, c := range r.GetRoute().GetClusters() {
		levels = append(levels, level{"to " + c.GetCluster(), c.GetRequestHeaders(), c.GetResponseHeaders(), at})
	}
	for _, level := range levels {
		if text := edits(level.request); text != "" && r.GetRoute() != nil {
			y.tell("request", level.name, text, level.at)
		}
		if text := edits(level.response); text != "" {
			y.tell("response", level.name, text, level.at)
		}
	}
	if r.GetRoute() == nil {
		return
	}
	if host.GetIncludeRequestAttemptCount() {
		y.tell("request", "attempts", "x-envoy-attempt-count says which try it is", host.GetSource())
	}
	if host.GetIncludeAttemptCountInResponse() {
		y.tell("response", "attempts", "x-envoy-attempt-count says how many tries there were", host.GetSource())
	}
	if h.GetEnvoyHeaders() {
		y.tell("request", "envoy", "x-envoy-expected-rq-timeout-ms says how long it may take, x-envoy-original-path what a rewrite has changed", h.GetSource())
		y.tell("response", "envoy", "x-envoy-upstream-service-time says how long it took", h.GetSource())
	}
}

func redirection(r *configv1.Redirect) string {
	var parts []string
	add := func(name, value string) {
		if value != "" {
			parts = append(parts, name+" "+value)
		}
	}
	add("scheme", r.GetScheme())
	add("host", r.GetHost())
	if r.GetPort() > 0 {
		add("port", strconv.Itoa(int(r.GetPort())))
	}
	add("path", r.GetPath())
	if r.PrefixRewrite != nil {
		add("prefix", r.GetPrefixRewrite())
	}
	if x := r.GetRegexRewrite(); x != nil {
		add("regex", x.GetPattern()+" → "+x.GetSubstitution())
	}
	add("template", r.GetTemplateRewrite())
	if r.GetStripQuery() {
		parts = append(parts, "without the query")
	}
	return "redirect: " + strings.Join(parts, ", ")
}

func edits(o *configv1.HeaderOps) string {
	var parts []string
	add := func(verb string, list []string) {
		if len(list) > 0 {
			parts = append(parts, verb+" "+strings.Join(list, ", "))
		}
	}
	names := func(list []*configv1.Header) (out []string) {
		for _, h := range list {
			out = append(out, h.GetName())
		}
		return out
	}
	add("removes", o.GetRemove())
	add("replaces", names(o.GetPresent()))
	add("sets", names(o.GetSet()))
	add("defaults", names(o.GetAbsent()))
	add("adds", names(o.GetAdd()))
	return strings.Join(parts, "; ")
}

// Text writes steps for a terminal.
func Text(steps []*configv1.ExplainStep) string {
	var b strings.Builder
	name, last := 4, ""
	for _, s := range steps {
		name = min(max(name, len(s.GetName())), 32)
	}
	for _, s := range steps {
		what, mark := s.GetWhat(), " "
		if what == last {
			what = ""
		}
		last = s.GetWhat()
		if s.GetRejected() {
			mark = "✗"
		} else if last == "route" || last == "host" || last == "listener" || last == "chain" {
			mark = "✓"
		}
		line := fmt.Sprintf("%-10s%s %-*s  %s", what, mark, name, s.GetName(), s.GetReason())
		if p := s.GetSource(); p.GetFile() != "" {
			line = fmt.Sprintf("%s  (%s:%d)", strings.TrimRight(line, " "), p.GetFile(), p.GetLine())
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	return b.String()
}
