// Package rbac is the filter that allows or refuses requests and connections by who makes them and what they ask for (Envoy's
// rbac): policies of permissions and principals, and shadow rules that are only counted. It keeps nothing of a stream; what a client's
// certificate says is read once for each connection.
package rbac

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"

	"retinue.dev/proxyd/internal/conn"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/pattern"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/route"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/tlstransport"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

const (
	million = 1_000_000
	text    = "RBAC: access denied"
	none    = "none" // the policy that matched, when none did
)

// Filter is the filter of one object: a stream.Factory.
type Filter struct {
	rules, shadow *rules
	certified     bool // some principal asks for a certificate
	principals    int
	draws         bool
	workers       []enforcer
	cells         []*counters.RBAC
}

type action uint8

const (
	allow action = iota
	deny
	log
)

var actions = map[string]action{"allow": allow, "deny": deny, "log": log}

type rules struct {
	action   action
	policies []policy
	refused  string // details where no policy matches
}

type policy struct {
	refused     string // RESPONSE_CODE_DETAILS of what it refuses
	permissions []permission
	principals  []principal
}

type permission struct {
	paths, hosts pattern.List
	when         *route.When
}

type principal struct {
	number         int // among those of the filter
	certified      bool
	authenticated  int8 // 1 must be, -1 must not be, 0 no matter
	sans, subjects pattern.List
	when           *route.When // source and headers
	request        bool        // it asks for headers: no connection alone meets it
}

// New builds the filter.
func New(o *configv1.RbacFilter, workers int, cells []*counters.RBAC) (*Filter, error) {
	f := &Filter{cells: cells, workers: make([]enforcer, workers)}
	var err error
	if f.rules, err = f.newRules(o.GetRules()); err != nil {
		return nil, err
	}
	if f.shadow, err = f.newRules(o.GetShadow()); err != nil {
		return nil, err
	}
	for i := range f.workers {
		f.workers[i].Filter = f
	}
	return f, nil
}

func (f *Filter) newRules(o *configv1.RbacRules) (*rules, error) {
	if o == nil {
		return nil, nil
	}
	r := &rules{refused: details(none)}
	var known bool
	if r.action, known = actions[o.GetAction()]; !known {
		return nil, fmt.Errorf("%q is none of allow, deny and log", o.GetAction())
	}
	for _, p := range o.GetPolicies() {
		built, err := f.newPolicy(p)
		if err != nil {
			return nil, fmt.Errorf("policy %q: %w", p.GetName(), err)
		}
		r.policies = append(r.policies, built)
	}
	return r, nil
}

func details(policy string) string { return "rbac_access_denied_matched_policy[" + policy + "]" }

func (f *Filter) newPolicy(o *configv1.RbacPolicy) (policy, error) {
	p := policy{refused: details(o.GetName())}
	for _, x := range o.GetPermissions() {
		var built permission
		var err error
		if built.paths, err = pattern.Compile(x.GetPaths()); err != nil {
			return p, fmt.Errorf("path: %w", err)
		}
		if built.hosts, err = pattern.Compile(x.GetHosts()); err != nil {
			return p, fmt.Errorf("host: %w", err)
		}
		if built.when, err = route.CompileWhen(x.GetMatch()); err != nil {
			return p, err
		}
		f.draws = f.draws || built.when.Draws()
		p.permissions = append(p.permissions, built)
	}
	for _, x := range o.GetPrincipals() {
		built := principal{number: f.principals, request: len(x.GetHeaders()) > 0}
		f.principals++
		var err error
		if built.sans, err = pattern.Compile(x.GetSans()); err != nil {
			return p, fmt.Errorf("san: %w", err)
		}
		if built.subjects, err = pattern.Compile(x.GetSubjects()); err != nil {
			return p, fmt.Errorf("subject: %w", err)
		}
		if x.Authenticated != nil {
			if built.authenticated = -1; x.GetAuthenticated() {
				built.authenticated = 1
			}
		}
		if len(x.GetSourceCidrs())+len(x.GetNotSourceCidrs())+len(x.GetHeaders()) > 0 {
			if built.when, err = route.CompileWhen(&configv1.RouteMatch{
				SourceCidrs: x.GetSourceCidrs(), NotSourceCidrs: x.GetNotSourceCidrs(), Headers: x.GetHeaders(),
			}); err != nil {
				return p, err
			}
		}
		built.certified = built.authenticated != 0 || built.sans != nil || built.subjects != nil
		f.certified = f.certified || built.certified
		p.principals = append(p.principals, built)
	}
	return p, nil
}

// Certified tells that some principal asks for a certificate.
func (f *Filter) Certified() bool { return f.certified }

// NewFilter implements stream.Factory.
func (f *Filter) NewFilter(w *worker.Worker) stream.Filter { return &f.workers[w.ID] }

// enforcer is the filter of one worker.
type enforcer struct {
	stream.PassThrough
	*Filter
	scratch []byte
}

// subject is what is judged: a request, or a connection alone.
type subject struct {
	route.Request
	connection bool
	path, host []byte
	shown      []byte // by principal: what the connection's certificate says, 1 for yes; nil: there is no certificate
}

// DecodeHeaders implements stream.Filter.
func (e *enforcer) DecodeHeaders(c *stream.Callbacks, _ bool) stream.Status {
	s := c.Stream()
	host, _, _ := header.SplitAuthority(s.Request.Authority())
	if n := len(host); n > 1 && host[n-1] == '.' { // the same host (RFC 3986, 3.2.2), which upstreams may take for it
		host = host[:n-1]
	}
	e.scratch = header.AppendLower(e.scratch[:0], host)
	at := len(e.scratch)
	x := subject{
		Request: route.Request{
			Path: s.Request.Path(), ID: s.Request.MethodID(), Method: s.Request.Method(), Fields: &s.Request.Block, Source: s.Client,
			TLS: string(s.Request.Scheme()) == "https", Certified: s.Certified, Scratch: e.scratch[at:],
		},
		path: s.Request.PathOnly(), host: e.scratch[:at],
	}
	if e.draws {
		x.Draw = uint32(s.Worker.Rand() % million)
	}
	if e.certified {
		if p, ok := s.Downstream().(stream.Peered); ok {
			x.shown = e.note(p.Conn())
		}
	}
	refused := e.judge(&x, e.cells[s.Worker.ID])
	if cap(x.Scratch) > cap(e.scratch) {
		e.scratch = x.Scratch
	}
	if refused == "" {
		return stream.Continue
	}
	s.LocalReply(403, text, 0, refused)
	return stream.StopIteration
}

// Admit decides about a connection, before there is a request. Permissions, and principals with headers, are met by none.
func (f *Filter) Admit(c *conn.Conn, w *worker.Worker) bool {
	x := subject{connection: true, Request: route.Request{Source: c.Peer().Addr(), Fields: &noFields, TLS: c.Transport() != nil}}
	if f.certified {
		x.shown = f.note(c)
	}
	return f.judge(&x, f.cells[w.ID]) == ""
}

var noFields header.Block

// judge answers why the subject is refused, "" when it is not.
func (f *Filter) judge(x *subject, cells *counters.RBAC) string {
	if f.shadow != nil {
		if f.shadow.judge(x) == "" {
			cells[counters.RBACShadowAllowed]++
		} else {
			cells[counters.RBACShadowDenied]++
		}
	}
	if f.rules == nil {
		return ""
	}
	refused := f.rules.judge(x)
	if refused == "" {
		cells[counters.RBACAllowed]++
	} else {
		cells[counters.RBACDenied]++
	}
	return refused
}

func (r *rules) judge(x *subject) string {
	for i := range r.policies {
		if p := &r.policies[i]; p.matches(x) {
			if r.action == deny {
				return p.refused
			}
			return ""
		}
	}
	if r.action == allow {
		return r.refused
	}
	return ""
}

func (p *policy) matches(x *subject) bool {
	return p.permitted(x) && p.by(x)
}

func (p *policy) permitted(x *subject) bool {
	if len(p.permissions) == 0 {
		return true
	}
	if x.connection {
		return false
	}
	for i := range p.permissions {
		m := &p.permissions[i]
		if (m.paths == nil || m.paths.Match(x.path)) && (m.hosts == nil || m.hosts.Match(x.host)) && m.when.Meets(&x.Request) {
			return true
		}
	}
	return false
}

func (p *policy) by(x *subject) bool {
	if len(p.principals) == 0 {
		return true
	}
	for i := range p.principals {
		m := &p.principals[i]
		if m.certified {
			if x.shown == nil && m.authenticated >= 0 || x.shown != nil && x.shown[m.number] == 0 {
				continue
			}
			if x.shown == nil && (m.sans != nil || m.subjects != nil) {
				continue
			}
		}
		if m.request && x.connection {
			continue
		}
		if m.when.Meets(&x.Request) {
			return true
		}
	}
	return false
}

// note is what a connection's certificate says about each principal, kept with the connection; nil without one.
func (f *Filter) note(c *conn.Conn) []byte {
	if t, _ := c.Transport().(*tlstransport.Transport); t != nil {
		return t.PeerNote(f)
	}
	return nil
}

// Note implements tlstransport.Noter. A server's transport has verified what it shows.
func (f *Filter) Note(state *tls.ConnectionState, _ *x509.Certificate) []byte {
	if len(state.PeerCertificates) == 0 {
		return nil
	}
	leaf := state.PeerCertificates[0]
	var names [][]byte
	for _, u := range leaf.URIs {
		names = append(names, []byte(u.String()))
	}
	for _, n := range leaf.DNSNames {
		names = append(names, []byte(n))
	}
	who := []byte(leaf.Subject.String())
	out := make([]byte, f.principals)
	for _, r := range []*rules{f.rules, f.shadow} {
		if r == nil {
			continue
		}
		for i := range r.policies {
			for k := range r.policies[i].principals {
				if p := &r.policies[i].principals[k]; p.authenticated >= 0 && (p.subjects == nil || p.subjects.Match(who)) && (p.sans == nil || one(p.sans, names)) {
					out[p.number] = 1
				}
			}
		}
	}
	return out
}

func one(l pattern.List, names [][]byte) bool {
	for _, n := range names {
		if l.Match(n) {
			return true
		}
	}
	return false
}
