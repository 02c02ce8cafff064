package explain

import (
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

func TestTokens(t *testing.T) {
	of := func(names ...string) (list []*configv1.JwtRequirement) {
		for _, n := range names {
			list = append(list, &configv1.JwtRequirement{Provider: n})
		}
		return list
	}
	one := func(name string, audiences ...string) *configv1.JwtRequirements {
		return &configv1.JwtRequirements{Kind: &configv1.JwtRequirements_Provider{Provider: &configv1.JwtRequirement{Provider: name, Audiences: audiences}}}
	}
	list := func(of ...*configv1.JwtRequirements) *configv1.JwtRequirementList {
		return &configv1.JwtRequirementList{Requirements: of}
	}
	both := &configv1.JwtRequirements{Kind: &configv1.JwtRequirements_All{All: list(one("id", "shop"), one("device", "a", "b"))}}
	tree := &configv1.JwtRequirements{Kind: &configv1.JwtRequirements_Any{Any: list(one("staff"), both)}, AllowMissing: true}
	lenient := &configv1.JwtRequirements{Kind: &configv1.JwtRequirements_Any{Any: list(both)}, AllowMissingOrFailed: true}
	for want, f := range map[string]*configv1.JwtFilter{
		"a token of staff or (id for shop and (device for a or b)) or nothing": {Requires: tree},
		"a token of (id for shop and (device for a or b)) or anything":         {Requires: lenient},
		"a token of id":                                   {RequiresAny: of("id")},
		"a token of id or staff":                          {RequiresAny: of("id", "staff")},
		"a token of id and staff":                         {RequiresAll: of("id", "staff")},
		"a token of id for shop or me":                    {RequiresAny: []*configv1.JwtRequirement{{Provider: "id", Audiences: []string{"shop", "me"}}}},
		"a token of id; requests without one pass":        {RequiresAny: of("id"), AllowMissing: true},
		"a token of id; requests without a good one pass": {RequiresAny: of("id"), AllowMissingOrFailed: true},
	} {
		if got := does(&configv1.Filter{Kind: &configv1.Filter_Jwt{Jwt: f}}); got != want {
			t.Errorf("%q is said and not %q", got, want)
		}
	}
}

func TestLimits(t *testing.T) {
	key := func(text string) []*configv1.RateLimitAction { return []*configv1.RateLimitAction{{Key: text}} }
	f := &configv1.GlobalRateLimitFilter{Cluster: "limits", Domain: "shop", TimeoutMs: 20, Descriptors: []*configv1.RateLimitDescriptor{
		{Actions: key("a")},
		{Actions: key("b"), LimitRequests: "%REQ(x-plan)%", LimitUnit: "minute", HitsAddend: "3"},
	}}
	want := "asks the cluster limits within 20ms about (a), (b) of %REQ(x-plan)% a minute counting 3 of shop; when it fails: open"
	if got := does(&configv1.Filter{Kind: &configv1.Filter_GlobalRateLimit{GlobalRateLimit: f}}); got != want {
		t.Errorf("%q is said and not %q", got, want)
	}
}

func TestHealthChecks(t *testing.T) {
	for want, f := range map[string]*configv1.HealthCheckFilter{
		"answers /a":                          {Path: "/a"},
		"has the upstream answer /a":          {Path: "/a", PassThrough: true},
		"has the upstream answer /a, each 5s": {Path: "/a", PassThrough: true, CacheTimeMs: 5000},
	} {
		if got := does(&configv1.Filter{Kind: &configv1.Filter_HealthCheck{HealthCheck: f}}); got != want {
			t.Errorf("%q is said and not %q", got, want)
		}
	}
}

func TestFaults(t *testing.T) {
	half := uint32(500_000)
	f := &configv1.FaultFilter{DelayMs: 20, AbortGrpcStatus: 14, AbortFraction: &half, Headers: true}
	want := "delays all by 20ms; answers 50 % with gRPC status 14; what the request asks for"
	if got := does(&configv1.Filter{Kind: &configv1.Filter_Fault{Fault: f}}); got != want {
		t.Errorf("%q is said and not %q", got, want)
	}
}

func TestAuthorisers(t *testing.T) {
	none, half := uint32(0), uint32(500_000)
	f := &configv1.ExtAuthzFilter{Cluster: "login", TimeoutMs: 200, StatusOnError: 403, CacheKey: []string{"a"}, CacheTtlMs: 5000, Enabled: &half, Enforced: &none}
	want := "asks the cluster login by HTTP within 200ms; when it fails: 403; decisions kept for 5s; for 50 % of requests; enforced for 0 %"
	if got := does(&configv1.Filter{Kind: &configv1.Filter_ExtAuthz{ExtAuthz: f}}); got != want {
		t.Errorf("%q is said and not %q", got, want)
	}
}
