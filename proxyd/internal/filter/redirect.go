package filter

import (
	"cmp"
	"fmt"

	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/filter/substitution"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	configv1 "retinue.dev/services/api/config/v1"
)

func newRedirect(r *configv1.Redirect, match *configv1.RouteMatch) (*answer, error) {
	a := &answer{status: cmp.Or(int(r.GetStatus()), 301), scheme: r.GetScheme(), path: r.GetPath(), stripQuery: r.GetStripQuery()}
	switch a.status {
	case 301, 302, 303, 307, 308:
	default:
		return nil, fmt.Errorf("redirect: status %d is not one of 301, 302, 303, 307, 308", a.status)
	}
	if r.GetHost() != "" {
		if !header.ValidAuthority([]byte(r.GetHost())) {
			return nil, fmt.Errorf("redirect: %q is not a host with an optional port", r.GetHost())
		}
		host, port, _ := header.SplitAuthority([]byte(r.GetHost()))
		a.host, a.port = host, string(port)
	}
	if r.GetPort() > 65535 {
		return nil, fmt.Errorf("redirect: port %d is above 65535", r.GetPort())
	}
	if r.GetPort() > 0 {
		a.port = fmt.Sprint(r.GetPort())
	}
	var err error
	if a.rewrite, err = newRewrite(match, r.PrefixRewrite, r.GetRegexRewrite(), r.GetTemplateRewrite()); err != nil {
		return nil, fmt.Errorf("redirect: %w", err)
	}
	for _, part := range []string{a.scheme, a.path} {
		if !header.ValidTarget([]byte(part)) {
			return nil, fmt.Errorf("redirect: %q cannot be part of a Location", part)
		}
	}
	return a, nil
}

// redirect answers with a Location that keeps what the route does not replace.
func (r *Router) redirect(s *stream.Stream) {
	s.Cells[counters.HTTPRqRedirect]++
	h := s.NewReply(r.action.answer.status)
	r.shared.scratch = r.action.answer.location(r.shared.scratch[:0], &s.Request, &r.shared.machine)
	h.Add(header.Location, nil, r.shared.scratch)
	r.edited(s, h)
	s.SendReply(nil, "", stream.DetailDirectResponse)
}

// outerScheme is that of the client's connection to the first of the proxies that are trusted: X-Forwarded-Proto, which by now nobody
// else has written, as with Envoy.
func outerScheme(r *header.Request) []byte {
	i := r.Index(header.XForwardedProto, 0)
	if i < 0 || r.Index(header.XForwardedProto, i+1) >= 0 {
		return r.Scheme()
	}
	switch said := r.ValueAt(i); string(said) {
	case "http", "https":
		return said
	}
	return r.Scheme()
}

func (a *answer) location(dst []byte, request *header.Request, m *substitution.Machine) []byte {
	host, port, _ := header.SplitAuthority(request.Authority())
	start := len(dst)
	scheme := outerScheme(request)
	if len(a.host) > 0 {
		host, port = a.host, nil
	}
	if len(host) > 0 {
		if a.scheme != "" && string(scheme) != a.scheme {
			// A port that was the old scheme's default would be wrong with the new one.
			if string(port) == "80" && string(scheme) == "http" || string(port) == "443" && string(scheme) == "https" {
				port = nil
			}
			dst = append(dst, a.scheme...)
		} else {
			dst = append(dst, scheme...)
		}
		dst = append(dst, "://"...)
		dst = append(dst, host...)
		switch {
		case a.port != "":
			dst = append(append(dst, ':'), a.port...)
		case len(port) > 0:
			dst = append(append(dst, ':'), port...)
		}
	}
	path := request.Path()
	query := len(request.PathOnly())
	if query == 0 || path[0] != '/' { // OPTIONS *, whose star would be a part of the host
		path, query = rootPath, 1
	}
	bare := len(dst) == start
	switch {
	case a.path != "":
		dst = append(dst, a.path...)
	case a.rewrites():
		dst = a.apply(dst, path[:query], m)
	default:
		dst = append(dst, path[:query]...)
	}
	if bare { // "//x" alone would name the host x
		extra := start
		for extra+1 < len(dst) && dst[extra] == '/' && dst[extra+1] == '/' {
			extra++
		}
		dst = append(dst[:start], dst[extra:]...)
	}
	if !a.stripQuery {
		dst = append(dst, path[query:]...)
	}
	return dst
}

// decoded is what a request gets whose path held encoded slashes that are to be decoded in the open: a redirect to the
// decoded path.
var decoded = answer{status: 307}

// redirectDecoded answers so, before any route is looked for.
func (r *Router) redirectDecoded(s *stream.Stream) {
	s.Cells[counters.HTTPRqRedirectedWithNormalizedPath]++
	h := s.NewReply(decoded.status)
	r.shared.scratch = decoded.location(r.shared.scratch[:0], &s.Request, &r.shared.machine)
	h.Add(header.Location, nil, r.shared.scratch)
	s.SendReply(nil, "", "path_normalization_redirect")
}
