package compile

import (
	"slices"
	"strconv"
	"strings"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
	configv1 "retinue.dev/services/api/config/v1"
)

// retryConditions are the names that retry's on takes, beside a status of 400 to 599.
var retryConditions = []string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "retriable-4xx", "refused-stream",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable",
	"envoy-ratelimited",
}

// retry compiles a retry block; nil for none. timeout is the route's, in milliseconds.
func (c *compiler) retry(n *schema.Node, timeout int64) *configv1.RetryPolicy {
	if n == nil {
		return nil
	}
	p := &configv1.RetryPolicy{
		Attempts: uint32(n.Int("attempts")), PerTryTimeoutMs: n.Int("per_try_timeout"),
		BackOffMs: n.Int("back_off"), MaxBackOffMs: 10 * n.Int("back_off"), SameHost: !n.Bool("avoid_previous_hosts"),
		HedgeOnPerTryTimeout: n.Bool("hedge_on_per_try_timeout"), PerTryIdleTimeoutMs: n.Int("per_try_idle_timeout"),
		OmitHostMetadata: c.metadata(n.Get("omit_host_metadata")), RateLimitedBackOff: c.rateLimitedBackOff(n.Child("rate_limited_back_off")),
	}
	if n.Has("host_selection_retry_max_attempts") {
		p.HostSelectionRetryMaxAttempts = uint32(n.Int("host_selection_retry_max_attempts"))
		if p.SameHost && len(p.OmitHostMetadata) == 0 {
			c.diags.Report(diag.NoEffect, n.Range("host_selection_retry_max_attempts"), "No other host is looked for", "avoid_previous_hosts is false, and there is no omit_host_metadata: any host will do.")
		}
	}
	if n.Has("max_back_off") {
		if p.MaxBackOffMs = n.Int("max_back_off"); p.MaxBackOffMs < p.BackOffMs {
			c.diags.Report(diag.Exclusive, n.Range("max_back_off"), "Pauses end before they begin", "max_back_off is shorter than back_off.")
		}
	}
	if p.PerTryTimeoutMs > 0 && timeout > 0 && p.PerTryTimeoutMs >= timeout {
		c.diags.Report(diag.NoEffect, n.Range("per_try_timeout"), "No try is cut short",
			"per_try_timeout is not below the route's timeout (15s where it says none), which ends all tries.")
	}
	if idle := p.PerTryIdleTimeoutMs; idle > 0 && timeout > 0 && idle >= timeout {
		c.diags.Report(diag.NoEffect, n.Range("per_try_idle_timeout"), "No try is cut short",
			"per_try_idle_timeout is not below the route's timeout (15s where it says none), which ends all tries.")
	}
	if p.HedgeOnPerTryTimeout && p.PerTryTimeoutMs == 0 && p.PerTryIdleTimeoutMs == 0 {
		c.diags.Report(diag.NoEffect, n.Range("hedge_on_per_try_timeout"), "Nothing to hedge on",
			"Without per_try_timeout or per_try_idle_timeout no second try begins beside a first, but for clients of internal_networks that send x-envoy-upstream-rq-per-try-timeout-ms.")
	}
	for block, to := range map[string]*[]*configv1.FieldMatch{"response_header": &p.RetriableHeaders, "request_header": &p.RetriableRequestHeaders} {
		for _, b := range n.All(block) {
			c.within(b, func() {
				name, ok := c.fieldName("header", schema.Value{V: b.Label, Range: b.LabelRange})
				if f := c.fieldMatch(b); f != nil && ok {
					f.Name = name
					*to = append(*to, f)
				}
			})
		}
	}
	list := n.List("on")
	if len(list) == 0 && n.Has("on") && !n.Failed("on") {
		c.diags.Report(diag.OutOfRange, n.Range("on"), "Never tried again", "A retry names at least one condition.")
	}
	for _, v := range list {
		name, _ := v.V.(string)
		code, err := strconv.Atoi(name)
		switch {
		case err == nil && code >= 400 && code <= 599:
			p.StatusCodes = append(p.StatusCodes, uint32(code))
		case slices.Contains(retryConditions, name):
			p.On = append(p.On, name)
		default:
			detail := "Conditions are a status of 400 to 599, " + strings.Join(retryConditions, ", ") + "."
			if near := diag.Near(name, retryConditions); near != "" {
				detail = "Did you mean \"" + near + "\"? " + detail
			}
			c.diags.Report(diag.OutOfRange, v.Range, "Unknown condition", "%s", detail)
		}
	}
	return p
}

func (c *compiler) rateLimitedBackOff(n *schema.Node) *configv1.RateLimitedBackOff {
	if n == nil {
		return nil
	}
	out := &configv1.RateLimitedBackOff{MaxIntervalMs: n.Int("max_interval")}
	for _, b := range n.All("reset_header") {
		c.within(b, func() {
			if name, ok := c.fieldName("header", schema.Value{V: b.Label, Range: b.LabelRange}); ok {
				out.Headers = append(out.Headers, &configv1.ResetHeader{Name: name, UnixTimestamp: b.Str("format") == "unix_timestamp"})
			}
		})
	}
	if len(n.All("reset_header")) == 0 {
		c.diags.Report(diag.MissingAttribute, n.DefRange, "No header", "rate_limited_back_off needs a reset_header block: which header of a response says when to try again.")
	}
	return out
}
