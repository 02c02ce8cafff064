package explain

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	configv1 "retinue.dev/services/api/config/v1"
)

const all = 1_000_000 // a whole share

// filters tells what a request, or the bytes of a connection, meets, in order, and whether it gets past those that look at its
// address alone.
func (y *story) filters(uses []*configv1.FilterUse, source netip.Addr) bool {
	for _, u := range uses {
		if u.GetFilter() != "" {
			if !y.passes(u.GetFilter(), "", source) {
				y.tell("answer", "403", "the filter refuses it", y.at("filter", u.GetFilter(), ""))
				return false
			}
			continue
		}
		reason, mode := "a plugin", u.GetOnError()
		for _, o := range y.s.Objects {
			if p := o.GetPlugin(); p != nil && p.GetName() == u.GetPlugin() && mode == configv1.OnError_ON_ERROR_UNSPECIFIED {
				mode = p.GetOnError()
			}
		}
		if mode == configv1.OnError_ON_ERROR_UNSPECIFIED {
			mode = configv1.OnError_ON_ERROR_CLOSED
		}
		y.tell("filter", u.GetPlugin(), reason+"; when it fails: "+strings.ToLower(strings.TrimPrefix(mode.String(), "ON_ERROR_")), y.at("plugin", u.GetPlugin(), ""))
	}
	return true
}

func (y *story) filter(name string) *configv1.Filter {
	for _, o := range y.s.Objects {
		if f := o.GetFilter(); f != nil && f.GetName() == name {
			return f
		}
	}
	return nil
}

// gates tells the filters that judge a connection, and whether it gets past them likewise.
func (y *story) gates(uses []*configv1.FilterUse, source netip.Addr) bool {
	for _, u := range uses {
		if !y.passes(u.GetFilter(), "of the connection: ", source) {
			return false
		}
	}
	return true
}

// passes tells a built-in filter. What others than ip decide hangs on more than the question has: on the requests before, or on
// the client's certificate.
func (y *story) passes(name, where string, source netip.Addr) bool {
	f, at := y.filter(name), y.at("filter", name, "")
	if ip := f.GetIp(); ip != nil && !ip.GetShadow() {
		if reason := refuses(ip, source); reason != "" {
			y.reject("filter", name, where+reason, at)
			return false
		}
	}
	y.tell("filter", name, where+does(f), at)
	return true
}

// refuses says why an ip filter does; "" where it does not.
func refuses(f *configv1.IpFilter, source netip.Addr) string {
	within := func(list []string) bool {
		return slices.ContainsFunc(list, func(text string) bool {
			p, err := netip.ParsePrefix(text)
			return err == nil && p.Contains(source)
		})
	}
	switch {
	case within(f.GetDeny()):
		return fmt.Sprintf("the source %s is in deny: %s", source, strings.Join(f.GetDeny(), ", "))
	case len(f.GetAllow()) > 0 && !within(f.GetAllow()):
		return fmt.Sprintf("the source %s is not in allow: %s", source, strings.Join(f.GetAllow(), ", "))
	}
	return ""
}

// does says in a few words what a filter is set to do.
func does(f *configv1.Filter) string {
	switch k := f.GetKind().(type) {
	case *configv1.Filter_Header:
		return headerEdits(k.Header)
	case *configv1.Filter_RateLimit:
		return limits(k.RateLimit)
	case *configv1.Filter_Fault:
		return faults(k.Fault)
	case *configv1.Filter_Cors:
		return "origins " + strings.Join(k.Cors.GetAllowOrigins(), ", ") + shadowed(k.Cors.GetShadow())
	case *configv1.Filter_Rbac:
		return strings.Join(slices.DeleteFunc([]string{rules("", k.Rbac.GetRules()), rules("shadow ", k.Rbac.GetShadow())}, func(s string) bool { return s == "" }), "; ")
	case *configv1.Filter_Ip:
		var parts []string
		if list := k.Ip.GetAllow(); len(list) > 0 {
			parts = append(parts, "allow "+strings.Join(list, ", "))
		}
		if list := k.Ip.GetDeny(); len(list) > 0 {
			parts = append(parts, "deny "+strings.Join(list, ", "))
		}
		return strings.Join(parts, "; ") + shadowed(k.Ip.GetShadow())
	case *configv1.Filter_Buffer:
		return fmt.Sprintf("waits for the whole request, at most %d bytes", k.Buffer.GetMaxRequestBytes())
	case *configv1.Filter_BodyLimit:
		return strings.Join(slices.DeleteFunc([]string{bound("requests", k.BodyLimit.GetMaxRequestBytes()), bound("responses", k.BodyLimit.GetMaxResponseBytes())}, func(s string) bool { return s == "" }), "; ")
	case *configv1.Filter_BasicAuth:
		return "users of " + k.BasicAuth.GetUsersFile()
	case *configv1.Filter_HealthCheck:
		switch h := k.HealthCheck; {
		case h.GetCacheTimeMs() > 0:
			return fmt.Sprintf("has the upstream answer %s, each %s", h.GetPath(), duration(h.GetCacheTimeMs()))
		case h.GetPassThrough():
			return "has the upstream answer " + h.GetPath()
		default:
			return "answers " + h.GetPath()
		}
	case *configv1.Filter_Compress:
		return strings.Join(k.Compress.GetCodings(), ", ")
	case *configv1.Filter_Decompress:
		var which []string
		if k.Decompress.GetRequests() {
			which = append(which, "requests")
		}
		if k.Decompress.GetResponses() {
			which = append(which, "responses")
		}
		return strings.Join(which, " and ") + " from " + strings.Join(k.Decompress.GetCodings(), ", ")
	case *configv1.Filter_ExtAuthz:
		return asks(k.ExtAuthz)
	case *configv1.Filter_GlobalRateLimit:
		return asksLimits(k.GlobalRateLimit)
	case *configv1.Filter_Jwt:
		return tokens(k.Jwt)
	}
	return ""
}

func shadowed(shadow bool) string {
	if shadow {
		return "; only counted"
	}
	return ""
}

func headerEdits(f *configv1.HeaderFilter) string {
	var parts []string
	if text := edits(f.GetRequest()); text != "" {
		parts = append(parts, "request: "+text)
	}
	if text := edits(f.GetResponse()); text != "" {
		parts = append(parts, "response: "+text)
	}
	return strings.Join(parts, "; ")
}

func limits(f *configv1.RateLimitFilter) string {
	text := fmt.Sprintf("%d in %s, burst %d", f.GetTokens(), duration(f.GetIntervalMs()), max(f.GetBurst(), f.GetTokens()))
	if list := f.GetKey(); len(list) > 0 {
		text += " for each " + strings.Join(list, ", ")
	}
	if f.Enabled != nil {
		text += ", " + percent(uint64(f.GetEnabled()), all) + " of requests counted"
	}
	if f.Enforced != nil {
		text += ", enforced for " + percent(uint64(f.GetEnforced()), all)
	}
	return text
}

func faults(f *configv1.FaultFilter) string {
	part := func(n *uint32) string {
		if n == nil {
			return "all"
		}
		return percent(uint64(*n), all)
	}
	var parts []string
	if f.GetDelayMs() > 0 {
		parts = append(parts, "delays "+part(f.DelayFraction)+" by "+duration(f.GetDelayMs()))
	}
	if f.GetAbortStatus() > 0 {
		parts = append(parts, "answers "+part(f.AbortFraction)+" with "+strconv.Itoa(int(f.GetAbortStatus())))
	}
	if f.GetAbortGrpcStatus() > 0 {
		parts = append(parts, "answers "+part(f.AbortFraction)+" with gRPC status "+strconv.Itoa(int(f.GetAbortGrpcStatus())))
	}
	if f.GetHeaders() {
		parts = append(parts, "what the request asks for")
	}
	if f.GetMatch() != nil {
		parts = append(parts, "where its match holds")
	}
	return strings.Join(parts, "; ")
}

func rules(which string, r *configv1.RbacRules) string {
	if r == nil {
		return ""
	}
	names := make([]string, 0, len(r.GetPolicies()))
	for _, p := range r.GetPolicies() {
		names = append(names, p.GetName())
	}
	if len(names) == 0 {
		names = append(names, "nothing")
	}
	return which + r.GetAction() + " " + strings.Join(names, ", ")
}

func bound(what string, n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%s of at most %d bytes", what, n)
}

func asksLimits(f *configv1.GlobalRateLimitFilter) string {
	var descriptors []string
	for _, d := range f.GetDescriptors() {
		var keys []string
		for _, a := range d.GetActions() {
			keys = append(keys, a.GetKey())
		}
		text := "(" + strings.Join(keys, ", ") + ")"
		if d.GetLimitRequests() != "" {
			text += " of " + d.GetLimitRequests() + " a " + d.GetLimitUnit()
		}
		if d.GetHitsAddend() != "" {
			text += " counting " + d.GetHitsAddend()
		}
		descriptors = append(descriptors, text)
	}
	text := fmt.Sprintf("asks the cluster %s within %s about %s of %s; when it fails: ", f.GetCluster(), duration(f.GetTimeoutMs()), strings.Join(descriptors, ", "), f.GetDomain())
	if f.GetFailureModeDeny() {
		text += strconv.Itoa(int(f.GetStatusOnError()))
	} else {
		text += "open"
	}
	if f.Enabled != nil {
		text += "; for " + percent(uint64(f.GetEnabled()), all) + " of requests"
	}
	if f.Enforced != nil {
		text += "; enforced for " + percent(uint64(f.GetEnforced()), all)
	}
	return text
}

func tokens(f *configv1.JwtFilter) string {
	if r := f.GetRequires(); r != nil {
		text, _ := requirements(r)
		return "a token of " + text
	}
	list, all := f.GetRequiresAny(), len(f.GetRequiresAll()) > 0
	between := " or "
	if all {
		list, between = f.GetRequiresAll(), " and "
	}
	var names, audiences []string
	for _, r := range list {
		names, audiences = append(names, r.GetProvider()), r.GetAudiences()
	}
	text := "a token of " + strings.Join(names, between)
	if len(audiences) > 0 {
		text += " for " + strings.Join(audiences, " or ")
	}
	switch {
	case f.GetAllowMissingOrFailed():
		text += "; requests without a good one pass"
	case f.GetAllowMissing():
		text += "; requests without one pass"
	}
	return text
}

// requirements tells a tree of them, and whether it has more than one part.
func requirements(r *configv1.JwtRequirements) (text string, several bool) {
	var parts []string
	of, between := r.GetAny().GetRequirements(), " or "
	switch {
	case r.GetProvider() != nil:
		text := r.GetProvider().GetProvider()
		if list := r.GetProvider().GetAudiences(); len(list) > 0 {
			text += " for " + strings.Join(list, " or ")
		}
		return text, len(r.GetProvider().GetAudiences()) > 1
	case r.GetAll() != nil:
		of, between = r.GetAll().GetRequirements(), " and "
	}
	for _, child := range of {
		text, several := requirements(child)
		if several && (len(of) > 1 || r.GetAllowMissing() || r.GetAllowMissingOrFailed()) {
			text = "(" + text + ")"
		}
		parts = append(parts, text)
	}
	switch {
	case r.GetAllowMissingOrFailed():
		parts = append(parts, "anything")
	case r.GetAllowMissing():
		parts = append(parts, "nothing")
	}
	return strings.Join(parts, between), len(parts) > 1
}

func asks(f *configv1.ExtAuthzFilter) string {
	api := "HTTP"
	if f.GetGrpc() {
		api = "gRPC"
	}
	text := fmt.Sprintf("asks the cluster %s by %s within %s; when it fails: ", f.GetCluster(), api, duration(f.GetTimeoutMs()))
	if f.GetFailureModeAllow() {
		text += "open"
	} else {
		text += strconv.Itoa(int(f.GetStatusOnError()))
	}
	if len(f.GetCacheKey()) > 0 {
		text += "; decisions kept for " + duration(f.GetCacheTtlMs())
	}
	if f.Enabled != nil {
		text += "; for " + percent(uint64(f.GetEnabled()), all) + " of requests"
	}
	if f.Enforced != nil {
		text += "; enforced for " + percent(uint64(f.GetEnforced()), all)
	}
	return text
}
