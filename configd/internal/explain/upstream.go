package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	configv1 "retinue.dev/services/api/config/v1"
)

func (y *story) forward(h *configv1.Http, r *configv1.Route, a *configv1.RouteAction) {
	at := r.GetSource()
	var parts []string
	if a.PrefixRewrite != nil {
		parts = append(parts, "prefix "+a.GetPrefixRewrite())
	}
	if x := a.GetRegexRewrite(); x != nil {
		parts = append(parts, "regex "+x.GetPattern()+" → "+x.GetSubstitution())
	}
	if t := a.GetTemplateRewrite(); t != "" {
		parts = append(parts, "template "+t)
	}
	if a.GetHostRewrite() != "" {
		parts = append(parts, "host "+a.GetHostRewrite())
	}
	if a.GetHostRewriteHeader() != "" {
		parts = append(parts, "host from the header "+a.GetHostRewriteHeader())
	}
	if a.GetAppendXForwardedHost() {
		parts = append(parts, "X-Forwarded-Host")
	}
	if a.GetQueryRewrite() != nil {
		parts = append(parts, "the query")
	}
	if len(parts) > 0 {
		y.tell("rewrite", "", strings.Join(parts, ", "), at)
	}
	switch k := a.GetSticky(); {
	case k.GetCookie() != "":
		y.tell("sticky", k.GetCookie(), "the cookie chooses the cluster", at)
	case k.GetHeader() != "":
		y.tell("sticky", k.GetHeader(), "the header chooses the cluster", at)
	case k.GetSource():
		y.tell("sticky", "source", "the client's address chooses the cluster", at)
	}
	if a.GetPriority() == configv1.RoutingPriority_ROUTING_PRIORITY_HIGH {
		y.tell("priority", "high", "bounded by the high limits of the circuit breaker", at)
	}
	y.clusters(a.GetClusters(), choice{policies: a.GetHashPolicies(), subset: a.GetSubset(), priority: a.GetPriority(), at: at})
	for _, m := range a.GetMirrors() {
		y.tell("mirror", m.GetCluster(), percent(uint64(m.GetFraction()), 1_000_000)+" of requests, copied", y.at("cluster", m.GetCluster(), ""))
	}
	if p := a.GetRetry(); p != nil {
		y.tell("retry", "", retries(p), at)
	}
	t := h.GetTimeouts()
	idle, longest := t.GetStreamIdleMs(), t.GetMaxStreamDurationMs()
	if a.IdleTimeoutMs != nil {
		idle = a.GetIdleTimeoutMs()
	}
	if a.MaxStreamDurationMs != nil {
		longest = a.GetMaxStreamDurationMs()
	}
	route := int64(15_000)
	if a.TimeoutMs != nil {
		route = a.GetTimeoutMs()
	}
	y.tell("timeouts", "", fmt.Sprintf("route %s, idle %s, whole stream %s", duration(route), duration(idle), duration(longest)), at)
}

func duration(ms int64) string {
	if ms == 0 {
		return "off"
	}
	return (time.Duration(ms) * time.Millisecond).String()
}

func percent(n, of uint64) string {
	return strconv.FormatFloat(float64(n)*100/float64(max(of, 1)), 'g', 4, 64) + " %"
}

// retries says what is tried again, how often and with which pauses. Zeros are the defaults of the contract.
func retries(p *configv1.RetryPolicy) string {
	on := slices.Clone(p.GetOn())
	for _, code := range p.GetStatusCodes() {
		on = append(on, strconv.Itoa(int(code)))
	}
	if n := len(p.GetRetriableHeaders()); n > 0 {
		on = append(on, count(n, "response header"))
	}
	text := fmt.Sprintf("on %s, %d after the first try", strings.Join(on, ", "), max(p.GetAttempts(), 1))
	if p.GetPerTryTimeoutMs() > 0 {
		text += ", each within " + duration(p.GetPerTryTimeoutMs())
		if p.GetHedgeOnPerTryTimeout() {
			text += " or hedged: it goes on beside the next"
		}
	}
	if p.GetPerTryIdleTimeoutMs() > 0 {
		text += ", without a byte for at most " + duration(p.GetPerTryIdleTimeoutMs())
	}
	base := cmp.Or(p.GetBackOffMs(), 25)
	text += fmt.Sprintf(", pauses of up to %s to %s", duration(base), duration(cmp.Or(p.GetMaxBackOffMs(), 10*base)))
	if b := p.GetRateLimitedBackOff(); b != nil {
		names := make([]string, len(b.GetHeaders()))
		for i, h := range b.GetHeaders() {
			names[i] = h.GetName()
		}
		text += fmt.Sprintf(" or what %s asks for, at most %s", strings.Join(names, ", "), duration(cmp.Or(b.GetMaxIntervalMs(), 300_000)))
	}
	var omitted string
	if labels := p.GetOmitHostMetadata(); len(labels) > 0 {
		words := make([]string, len(labels))
		for i, m := range labels {
			words[i] = m.GetName() + " = " + m.GetValue()
		}
		omitted = " without " + strings.Join(words, ", ")
	}
	switch {
	case p.GetSameHost() && omitted == "":
		text += ", of any host"
	case omitted != "":
		text += ", of another host" + omitted + " within " + count(int(cmp.Or(p.GetHostSelectionRetryMaxAttempts(), 3)), "look")
	case p.GetHostSelectionRetryMaxAttempts() > 0:
		text += ", of another host within " + count(int(p.GetHostSelectionRetryMaxAttempts()), "look")
	}
	if n := len(p.GetRetriableRequestHeaders()); n > 0 {
		text += ", for requests with one of " + count(n, "header")
	}
	return text
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// choice is what a route, or a TCP proxy, says about the host of a cluster.
type choice struct {
	policies []*configv1.HashPolicy
	subset   []*configv1.Metadata
	priority configv1.RoutingPriority
	at       *configv1.Source
}

// clusters tells targets with their share, and how each finds a host that is well.
func (y *story) clusters(list []*configv1.WeightedCluster, by choice) {
	var sum uint64
	for _, w := range list {
		sum += uint64(w.GetWeight())
	}
	for _, w := range list {
		reason := ""
		if len(list) > 1 {
			reason = percent(uint64(w.GetWeight()), sum) + " of requests; "
		}
		y.tell("cluster", w.GetCluster(), reason+y.members(w.GetCluster()), y.at("cluster", w.GetCluster(), ""))
		if c := y.cluster(w.GetCluster()); c != nil {
			of := by
			if len(w.GetSubset()) > 0 {
				of.subset = w.GetSubset()
			}
			y.balance(c, of)
			y.resilience(c, by.priority)
		}
	}
}

// cluster finds one by its name; nil for none.
func (y *story) cluster(name string) *configv1.Cluster {
	for _, o := range y.s.Objects {
		if c := o.GetCluster(); c != nil && c.GetName() == name {
			return c
		}
	}
	return nil
}

func (y *story) members(name string) string {
	c := y.cluster(name)
	if c == nil {
		return "not in the snapshot: 503"
	}
	if d := c.GetDiscovery(); d != nil {
		return fmt.Sprintf("%sfound by %s; by %s, %s", y.now(name), how(d), policyOf(c), c.GetProtocol())
	}
	list := make([]string, 0, 4)
	for i, e := range c.GetEndpoints() {
		if i == 4 {
			list = append(list, fmt.Sprintf("and %d more", len(c.GetEndpoints())-i))
			break
		}
		list = append(list, e.GetAddress())
	}
	return fmt.Sprintf("%s by %s, %s", strings.Join(list, ", "), policyOf(c), c.GetProtocol())
}

func policyOf(c *configv1.Cluster) string {
	return strings.ToLower(strings.TrimPrefix(c.GetBalance().String(), "BALANCE_"))
}

// now tells how many endpoints of a cluster are found, as far as it is known.
func (y *story) now(cluster string) string {
	for _, s := range y.found {
		switch {
		case s.GetCluster() != cluster:
		case s.GetFailure() != "":
			return fmt.Sprintf("%s, the last look failed (%s), ", count(int(s.GetEndpoints()), "endpoint"), s.GetFailure())
		default:
			return count(int(s.GetEndpoints()), "endpoint") + ", "
		}
	}
	return "endpoints "
}

func how(d *configv1.Discovery) string {
	if f := d.GetFile(); f != nil {
		return "the file " + f.GetPath()
	}
	dns := d.GetDns()
	switch srv := dns.GetRecord() == "srv"; {
	case srv && dns.GetLogical():
		return "SRV records of " + dns.GetHost() + ", each target one endpoint (logical)"
	case srv:
		return "SRV records of " + dns.GetHost()
	case dns.GetLogical():
		return fmt.Sprintf("the name %s, port %d, as one endpoint (logical)", dns.GetHost(), dns.GetPort())
	}
	return fmt.Sprintf("the name %s, port %d", dns.GetHost(), dns.GetPort())
}
