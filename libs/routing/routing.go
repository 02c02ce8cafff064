// Package routing is what paths and routes mean, apart from speed: the normal form of a path, and the scan of virtual
// hosts and routes in source order that defines which route a request takes.
//
// proxyd makes the normal form with it, and its compiled router is held to the scan by a differential test; configd explains
// with the scan why a request takes a route.
package routing

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	configv1 "retinue.dev/services/api/config/v1"
)

// Request is what routes look at.
type Request struct {
	Method    string
	Authority string // with or without a port, in any case
	Path      string // in its normal form, with the query
	Header    []Field
	Source    netip.Addr // the client
	TLS       bool
	Certified bool   // the client has shown a certificate
	Draw      uint32 // 0 to 999,999, for fractions
}

// Field is one header, its name in lower case.
type Field struct{ Name, Value string }

// Result is the way of a request through virtual hosts and routes.
type Result struct {
	Host   int    // index of the virtual host, -1 for none
	Domain string // of it, that the authority matched
	Route  int    // index in the virtual host, -1 for none
	Steps  []Step // routes tried, in order; the last is the one that matched, if any
}

// Step is one route tried. Reason says why it does not match, or what of it depends on chance; "" when it simply matches.
type Step struct {
	Route   int
	Matched bool
	Reason  string
}

// Scan finds the route of a request: the virtual host of the exact name, else of the longest "*.suffix", else of the longest
// "prefix.*", else of "*"; in it the first route in source order that matches.
func Scan(hosts []*configv1.VirtualHost, r *Request) Result {
	out := Result{Host: -1, Route: -1}
	out.Host, out.Domain = virtualHost(hosts, r.Authority)
	if out.Host < 0 {
		return out
	}
	for i, route := range hosts[out.Host].GetRoutes() {
		ok, reason := matches(route.GetMatch(), r)
		out.Steps = append(out.Steps, Step{Route: i, Matched: ok, Reason: reason})
		if ok {
			out.Route = i
			break
		}
	}
	return out
}

// maxName is above every name that DNS knows; a longer host matches "*" only.
const maxName = 255

// Name is the host of an authority as domains are compared with it: lower case, without port and one dot at its end; ""
// for what is no authority.
func Name(authority string) string {
	host := strings.ToLower(authority)
	if strings.HasPrefix(host, "[") {
		end := strings.IndexByte(host, ']')
		if end < 0 || (end+1 < len(host) && host[end+1] != ':') {
			return ""
		}
		return host[:end+1]
	}
	host, _, _ = strings.Cut(host, ":")
	if len(host) > 1 {
		host = strings.TrimSuffix(host, ".")
	}
	if len(host) > maxName {
		return ""
	}
	return host
}

func virtualHost(hosts []*configv1.VirtualHost, authority string) (best int, domain string) {
	name := Name(authority)
	best = -1
	rank := -1
	for i, h := range hosts {
		for _, written := range h.GetDomains() {
			d := strings.TrimSuffix(strings.ToLower(written), ".")
			if r := domainRank(d, name); r > rank {
				best, domain, rank = i, written, r
			}
		}
	}
	return best, domain
}

// domainRank orders what matches by precedence; -1 for what does not.
func domainRank(d, name string) int {
	switch {
	case d == "*":
		return 0
	case name == "" || d == "":
		return -1
	case d[0] == '*':
		if strings.HasSuffix(name, d[1:]) && len(name) > len(d)-1 {
			return 1_000_000 + len(d)
		}
	case d[len(d)-1] == '*':
		if strings.HasPrefix(name, d[:len(d)-1]) && len(name) > len(d)-1 {
			return 1_000 + len(d)
		}
	case d == name:
		return 2_000_000
	}
	return -1
}

func matches(m *configv1.RouteMatch, r *Request) (ok bool, reason string) {
	path, query, _ := strings.Cut(r.Path, "?")
	switch p := m.GetPath().(type) {
	case *configv1.RouteMatch_Exact:
		if path != p.Exact {
			return false, fmt.Sprintf("the path is %s, not %s", path, p.Exact)
		}
	case *configv1.RouteMatch_Prefix:
		if !strings.HasPrefix(path, p.Prefix) {
			return false, fmt.Sprintf("the path %s does not begin with %s", path, p.Prefix)
		}
	case *configv1.RouteMatch_Regex:
		if !anchored(p.Regex, path) {
			return false, fmt.Sprintf("the path %s is not all of %s", path, p.Regex)
		}
	case *configv1.RouteMatch_Template:
		if t, err := ParseTemplate(p.Template); err != nil || !t.matches(path) {
			return false, fmt.Sprintf("the path %s does not have the form %s", path, p.Template)
		}
	}
	if list := m.GetMethods(); len(list) > 0 && !slices.Contains(list, r.Method) {
		return false, fmt.Sprintf("the method is %s, not %s", r.Method, strings.Join(list, " or "))
	}
	for _, f := range m.GetHeaders() {
		value, there := r.header(f.GetName())
		if reason := field("header", f, value, there); reason != "" {
			return false, reason
		}
	}
	for _, f := range m.GetQuery() {
		value, there := parameter(query, f.GetName())
		if reason := field("query parameter", f, value, there); reason != "" {
			return false, reason
		}
	}
	for _, f := range m.GetCookies() {
		value, there := r.cookie(f.GetName())
		if reason := field("cookie", f, value, there); reason != "" {
			return false, reason
		}
	}
	return circumstances(m, r)
}

// circumstances are the conditions that are not about one field.
func circumstances(m *configv1.RouteMatch, r *Request) (ok bool, reason string) {
	contentType := ""
	for i, h := range r.Header {
		if h.Name == "content-type" {
			contentType = h.Value
			if slices.ContainsFunc(r.Header[i+1:], func(f Field) bool { return f.Name == h.Name }) {
				contentType = "" // two of them are none: servers read them differently
			}
			break
		}
	}
	media, _, _ := strings.Cut(contentType, ";")
	media = strings.ToLower(strings.Trim(media, " \t"))
	if list := m.GetContentTypes(); len(list) > 0 {
		found := false
		for _, want := range list {
			kind, any := strings.CutSuffix(want, "*")
			found = found || want == media || (any && strings.HasPrefix(media, kind))
		}
		if !found {
			return false, fmt.Sprintf("the content type is %q, not %s", media, strings.Join(list, " or "))
		}
	}
	if m.Grpc != nil {
		grpc := media == "application/grpc" || strings.HasPrefix(media, "application/grpc+")
		if grpc != m.GetGrpc() {
			return false, map[bool]string{true: "it is gRPC", false: "it is no gRPC"}[grpc]
		}
	}
	if m.Tls != nil && r.TLS != m.GetTls() {
		return false, map[bool]string{true: "it comes by TLS", false: "it does not come by TLS"}[r.TLS]
	}
	if m.ClientCert != nil && r.Certified != m.GetClientCert() {
		return false, map[bool]string{true: "the client shows a certificate", false: "the client shows no certificate"}[r.Certified]
	}
	if list := m.GetSourceCidrs(); len(list) > 0 && !within(list, r.Source) {
		return false, fmt.Sprintf("the source %s is not in %s", source(r.Source), strings.Join(list, ", "))
	}
	if list := m.GetNotSourceCidrs(); within(list, r.Source) {
		return false, fmt.Sprintf("the source %s is in %s", source(r.Source), strings.Join(list, ", "))
	}
	if m.Fraction != nil {
		share := strconv.FormatFloat(float64(m.GetFraction())/10_000, 'f', -1, 64) + " % of requests"
		if r.Draw >= m.GetFraction() {
			return false, "it takes " + share + ", and this draw is not among them"
		}
		return true, "it takes " + share
	}
	return true, ""
}

func anchored(pattern, s string) bool {
	re, err := Expression(pattern)
	return err == nil && re.MatchString(s)
}

func source(a netip.Addr) string {
	if !a.IsValid() {
		return "(a Unix socket)"
	}
	return a.String()
}

func within(list []string, a netip.Addr) bool {
	for _, text := range list {
		if p, err := netip.ParsePrefix(text); err == nil && a.IsValid() && p.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

// header joins the values of one name by ",".
func (r *Request) header(name string) (value string, there bool) {
	for _, h := range r.Header {
		switch {
		case h.Name != name:
		case there:
			value += "," + h.Value
		default:
			value, there = h.Value, true
		}
	}
	return value, there
}

// parameter is the first of that name, as it is written.
func parameter(query, name string) (value string, there bool) {
	for query != "" {
		var item string
		item, query, _ = strings.Cut(query, "&")
		if n, v, _ := strings.Cut(item, "="); n == name && item != "" {
			return v, true
		}
	}
	return "", false
}

// cookie is the first of that name, without quotes around it (RFC 6265 4.1.1).
func (r *Request) cookie(name string) (value string, there bool) {
	for _, h := range r.Header {
		if h.Name != "cookie" {
			continue
		}
		for item := range strings.SplitSeq(h.Value, ";") {
			n, v, given := strings.Cut(strings.Trim(item, " \t"), "=")
			if !given || n != name {
				continue
			}
			if len(v) > 1 && v[0] == '"' && v[len(v)-1] == '"' {
				v = v[1 : len(v)-1]
			}
			return v, true
		}
	}
	return "", false
}

// field says why a test does not hold, "" when it does.
func field(what string, f *configv1.FieldMatch, value string, there bool) string {
	name := what + " " + f.GetName()
	if test, ok := f.GetTest().(*configv1.FieldMatch_Present); ok {
		switch want := test.Present != f.GetInvert(); {
		case want && !there:
			return name + " is not there"
		case !want && there:
			return name + " is there"
		}
		return ""
	}
	if !there && !f.GetMissingAsEmpty() {
		return name + " is not there"
	}
	holds, wanted := Test(f, value)
	if holds == f.GetInvert() {
		if f.GetInvert() {
			return fmt.Sprintf("%s is %q, which must not be %s", name, value, wanted)
		}
		return fmt.Sprintf("%s is %q, not %s", name, value, wanted)
	}
	return ""
}

// Test tells whether a value passes the test of f, without its inversion, and what the test wants in words.
func Test(f *configv1.FieldMatch, value string) (holds bool, wanted string) {
	fold := func(s string) string { return s }
	if f.GetIgnoreCase() {
		fold = lower
	}
	v := fold(value)
	switch t := f.GetTest().(type) {
	case *configv1.FieldMatch_Exact:
		return v == fold(t.Exact), strconv.Quote(t.Exact)
	case *configv1.FieldMatch_Prefix:
		return strings.HasPrefix(v, fold(t.Prefix)), fmt.Sprintf("%q at its beginning", t.Prefix)
	case *configv1.FieldMatch_Suffix:
		return strings.HasSuffix(v, fold(t.Suffix)), fmt.Sprintf("%q at its end", t.Suffix)
	case *configv1.FieldMatch_Contains:
		return strings.Contains(v, fold(t.Contains)), fmt.Sprintf("%q in it", t.Contains)
	case *configv1.FieldMatch_Regex:
		return anchored(t.Regex, value), "all of " + t.Regex
	case *configv1.FieldMatch_Range:
		n, err := strconv.ParseInt(value, 10, 64)
		in := err == nil && n >= t.Range.GetStart() && n < t.Range.GetEnd() && value[0] != '+'
		return in, fmt.Sprintf("a number from %d to %d", t.Range.GetStart(), t.Range.GetEnd()-1)
	}
	return false, "tested"
}

// lower is strings.ToLower for ASCII only: header values know no other case.
func lower(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}
