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
	for want, f := range map[string]*configv1.JwtFilter{
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
