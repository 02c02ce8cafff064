package explain

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	configv1 "retinue.dev/services/api/config/v1"
)

// Defaults of the contract, where a cluster leaves them out.
const (
	ringSize    = 1 << 10
	ringLimit   = 8 << 20
	maglevTable = 65537
	panicBelow  = 50
	factor      = 140
)

// balance tells how a host is chosen, as far as it is more than the policy's name.
func (y *story) balance(c *configv1.Cluster, by choice) {
	name := c.GetName()
	consistent := true
	switch c.GetBalance() {
	case configv1.Balance_BALANCE_RING_HASH:
		r := c.GetRingHash()
		y.tell("balance", "ring_hash", fmt.Sprintf("%d to %d places", cmp.Or(r.GetMinSize(), ringSize), cmp.Or(r.GetMaxSize(), ringLimit)), y.at("cluster", name, "ring_hash"))
	case configv1.Balance_BALANCE_MAGLEV:
		y.tell("balance", "maglev", fmt.Sprintf("a table of %d places", cmp.Or(c.GetMaglev().GetTableSize(), maglevTable)), y.at("cluster", name, "maglev"))
	default:
		consistent = false
	}
	if consistent {
		y.tell("balance", "key", key(by.policies), by.at)
		if f := c.GetHashBalanceFactor(); f > 0 {
			y.tell("balance", "bounded", fmt.Sprintf("an endpoint has at most %d %% of its fair part", f), y.at("cluster", name, "hash_balance_factor"))
		}
	}
	if text := priorities(c); text != "" {
		y.tell("balance", "priorities", text, y.at("cluster", name, "endpoints"))
	}
	if text := panics(c); text != "" {
		y.tell("balance", "panic", text, y.at("cluster", name, "panic_threshold"))
	}
	if list := c.GetLocalities(); len(list) > 0 {
		words := make([]string, 0, len(list))
		for _, l := range list {
			words = append(words, fmt.Sprintf("%s %d", l.GetLocality(), l.GetWeight()))
		}
		y.tell("balance", "locality", "weights "+strings.Join(words, ", "), y.at("cluster", name, "locality"))
	}
	if s := c.GetSlowStart(); s != nil {
		text := fmt.Sprintf("from %d %% over %s", cmp.Or(s.GetMinWeightPercent(), 10), duration(s.GetWindowMs()))
		if a := cmp.Or(s.GetAggression(), 1000); a != 1000 {
			text += fmt.Sprintf(", aggression %s", strconv.FormatFloat(float64(a)/1000, 'g', 4, 64))
		}
		y.tell("balance", "slow_start", text, y.at("cluster", name, "slow_start"))
	}
	if len(by.subset) > 0 {
		y.subset(c, by)
	}
}

// key is what a consistent hash is of.
func key(policies []*configv1.HashPolicy) string {
	if len(policies) == 0 {
		return "random: the route has no hash_on"
	}
	words := make([]string, 0, len(policies))
	for _, p := range policies {
		word := ""
		switch k := p.GetKind().(type) {
		case *configv1.HashPolicy_Header:
			word = "header " + k.Header
		case *configv1.HashPolicy_Cookie:
			word = "cookie " + k.Cookie.GetName()
			switch {
			case k.Cookie.TtlMs == nil:
			case k.Cookie.GetTtlMs() == 0:
				word += " (given for the session)"
			default:
				word += " (given for " + duration(k.Cookie.GetTtlMs()) + ")"
			}
		case *configv1.HashPolicy_Source:
			word = "source"
		case *configv1.HashPolicy_Query:
			word = "query " + k.Query
		}
		if p.GetTerminal() {
			word += " (the last that is looked at if there is a key)"
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

// priorities tells how many endpoints each has; "" where there is one only.
func priorities(c *configv1.Cluster) string {
	hosts := map[uint32]int{}
	for _, e := range c.GetEndpoints() {
		hosts[e.GetPriority()]++
	}
	if len(hosts) < 2 {
		return ""
	}
	var numbers []uint32
	for n := range hosts {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	words := make([]string, 0, len(numbers))
	for _, n := range numbers {
		words = append(words, fmt.Sprintf("%d: %s", n, count(hosts[n], "endpoint")))
	}
	over := float64(cmp.Or(c.GetOverprovisioningFactor(), factor)) / 100
	return fmt.Sprintf("%s; over-provisioning %s", strings.Join(words, ", "), strconv.FormatFloat(over, 'g', 4, 64))
}

// panics tells what is unusual about panic.
func panics(c *configv1.Cluster) string {
	threshold := uint32(panicBelow)
	if c.PanicThresholdPercent != nil {
		threshold = c.GetPanicThresholdPercent()
	}
	switch {
	case threshold == 0:
		return "off"
	case c.GetFailTrafficOnPanic():
		return fmt.Sprintf("below %d %% nobody is asked", threshold)
	case threshold != panicBelow:
		return fmt.Sprintf("below %d %% everybody is asked", threshold)
	}
	return ""
}

// subset tells which endpoints may be asked, and who is where none has the values.
func (y *story) subset(c *configv1.Cluster, by choice) {
	has := func(e *configv1.Endpoint, want []*configv1.Metadata) bool {
		for _, m := range want {
			if !slices.ContainsFunc(e.GetMetadata(), func(x *configv1.Metadata) bool { return x.GetName() == m.GetName() && x.GetValue() == m.GetValue() }) {
				return false
			}
		}
		return true
	}
	n := 0
	for _, e := range c.GetEndpoints() {
		if has(e, by.subset) {
			n++
		}
	}
	text := pairs(by.subset)
	if c.GetDiscovery() == nil {
		text += ": " + count(n, "endpoint")
	}
	fallback := "nobody: 503"
	for _, s := range c.GetSubsets() {
		if !slices.EqualFunc(s.GetKeys(), by.subset, func(k string, m *configv1.Metadata) bool { return k == m.GetName() }) {
			continue
		}
		switch s.GetFallback() {
		case configv1.SubsetFallback_SUBSET_FALLBACK_ANY:
			fallback = "any"
		case configv1.SubsetFallback_SUBSET_FALLBACK_DEFAULT:
			fallback = pairs(s.GetDefaultSubset())
		}
	}
	if n == 0 || c.GetDiscovery() != nil {
		text += "; without one: " + fallback
	}
	y.tell("balance", "subset", text, by.at)
}

func pairs(list []*configv1.Metadata) string {
	words := make([]string, 0, len(list))
	for _, m := range list {
		words = append(words, m.GetName()+"="+m.GetValue())
	}
	return strings.Join(words, ", ")
}

// resilience tells who is asked no more, and what is too much for the cluster.
func (y *story) resilience(c *configv1.Cluster, p configv1.RoutingPriority) {
	name := c.GetName()
	if h := c.GetHealthCheck(); h != nil {
		y.tell("health", kindOf(h), checks(h), y.at("cluster", name, "health_check"))
	}
	if o := c.GetOutlierDetection(); o != nil {
		y.tell("outliers", "", outliers(o), y.at("cluster", name, "outlier_detection"))
	}
	b, of, field := c.GetCircuitBreaker(), "", "circuit_breaker"
	if p == configv1.RoutingPriority_ROUTING_PRIORITY_HIGH {
		b, of, field = c.GetCircuitBreakerHigh(), "high", "circuit_breaker.high"
	}
	pending, retries := uint32(1024), strconv.Itoa(3)
	if b != nil && b.MaxPendingRequests != nil {
		pending = b.GetMaxPendingRequests()
	}
	if b != nil && b.MaxRetries != nil {
		retries = strconv.Itoa(int(b.GetMaxRetries()))
	}
	if n := b.GetRetryBudgetPercent(); n > 0 {
		least := uint32(3)
		if b.MinRetryConcurrency != nil {
			least = b.GetMinRetryConcurrency()
		}
		retries = fmt.Sprintf("%d %% (%d at least)", n, least)
	}
	y.tell("breaker", of, fmt.Sprintf("%d connections, %d pending, %d requests, %s retries", cmp.Or(b.GetMaxConnections(), 1024), pending, cmp.Or(b.GetMaxRequests(), 1024), retries), y.at("cluster", name, field))
	y.tell("connect", "", fmt.Sprintf("within %s; idle %s", duration(cmp.Or(c.GetConnectTimeoutMs(), 5000)), duration(c.GetIdleTimeoutMs())), y.at("cluster", name, "connect_timeout"))
}

func kindOf(h *configv1.HealthCheck) string {
	switch {
	case h.GetTcp() != nil:
		return "tcp"
	case h.GetGrpc() != nil:
		return "grpc " + h.GetGrpc().GetService()
	}
	return "http " + cmp.Or(h.GetHttp().GetPath(), "/")
}

// checks tells when an endpoint is asked, and what changes its state. Pauses are told where they are more than the interval.
func checks(h *configv1.HealthCheck) string {
	every := duration(cmp.Or(h.GetIntervalMs(), 5000))
	for _, p := range []struct {
		ms   int64
		when string
	}{
		{h.GetUnhealthyIntervalMs(), "after a failure"},
		{h.GetUnhealthyEdgeIntervalMs(), "on its way out"},
		{h.GetHealthyEdgeIntervalMs(), "on its way back"},
		{h.GetNoTrafficIntervalMs(), "without traffic"},
		{h.GetNoTrafficHealthyIntervalMs(), "without traffic while it is well"},
	} {
		if p.ms > 0 {
			every += ", " + duration(p.ms) + " " + p.when
		}
	}
	text := fmt.Sprintf("every %s within %s; %d passed bring it back, %d failed take it out", every, duration(cmp.Or(h.GetTimeoutMs(), 1000)), cmp.Or(h.GetHealthyThreshold(), 2), cmp.Or(h.GetUnhealthyThreshold(), 3))
	if n := len(h.GetHttp().GetRetriableStatuses()); n > 0 {
		text += fmt.Sprintf("; %d statuses count towards that, others decide", n)
	}
	if n := len(h.GetTcp().GetReceive()); n > 0 {
		text += fmt.Sprintf("; sends %d bytes and waits for %s", len(h.GetTcp().GetSend()), count(n, "piece"))
	}
	return text
}

func outliers(o *configv1.OutlierDetection) string {
	var parts []string
	if n := o.GetConsecutive_5Xx(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d answers of 5xx in a row", n))
	}
	if n := o.GetConsecutiveGatewayFailure(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d gateway failures in a row", n))
	}
	if o.GetSplitExternalLocalOriginErrors() {
		parts = append(parts, fmt.Sprintf("%d without an answer in a row, which are no 5xx", o.GetConsecutiveLocalOriginFailure()))
	}
	if n := o.GetSuccessRateStdevFactor(); n > 0 {
		parts = append(parts, fmt.Sprintf("success %s deviations below the mean", strconv.FormatFloat(float64(n)/1000, 'g', 4, 64)))
	}
	if n := o.GetFailurePercentage(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d %% failed", n))
	}
	share := uint32(10)
	if o.MaxEjectionPercent != nil {
		share = o.GetMaxEjectionPercent()
	}
	text := fmt.Sprintf("%s; ejected for %s to %s, at most %d %%", strings.Join(parts, ", "),
		duration(cmp.Or(o.GetBaseEjectionMs(), 30_000)), duration(cmp.Or(o.GetMaxEjectionMs(), 300_000)), share)
	if o.AlwaysEjectOneHost != nil && !o.GetAlwaysEjectOneHost() {
		text += " and not one more"
	}
	if o.GetEnforcing() != nil {
		text += ", not everything that is found"
	}
	return text
}
