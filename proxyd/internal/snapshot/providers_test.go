package snapshot

import (
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

const keySet = `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}`

func jwtObject(name string, change func(p *configv1.JwtProvider)) *configv1.Object {
	p := &configv1.JwtProvider{Name: "id", RemoteJwks: &configv1.RemoteJwks{Cluster: "a", Host: "id", Path: "/keys", TimeoutMs: 1, CacheDurationMs: 1}}
	change(p)
	return object("filter", name, &configv1.Filter{Name: name, Kind: &configv1.Filter_Jwt{Jwt: &configv1.JwtFilter{
		Providers: []*configv1.JwtProvider{p}, RequiresAny: []*configv1.JwtRequirement{{Provider: "id"}},
	}}})
}

// A provider is one for all filters that name it, and stays with its keys.
func TestProvidersStay(t *testing.T) {
	b := newBuilder()
	same := func(*configv1.JwtProvider) {}
	first := mustBuild(t, b, nil, filtered("127.0.0.1:2", jwtObject("jwt.a", same), jwtObject("jwt.b", same))...)
	if len(first.JwtProviders) != 1 {
		t.Fatalf("%d providers", len(first.JwtProviders))
	}
	second := mustBuild(t, b, first, filtered("127.0.0.1:3", jwtObject("jwt.a", same), jwtObject("jwt.b", same))...)
	third := mustBuild(t, b, second, filtered("127.0.0.1:3", jwtObject("jwt.b", same))...)
	for _, s := range []*Snapshot{second, third} {
		if len(s.JwtProviders) != 1 || s.JwtProviders[0] != first.JwtProviders[0] {
			t.Errorf("the provider is another one")
		}
	}
	fourth := mustBuild(t, b, third, filtered("127.0.0.1:3", jwtObject("jwt.b", func(p *configv1.JwtProvider) { p.Issuer = "me" }))...)
	if len(fourth.JwtProviders) != 1 || fourth.JwtProviders[0] == first.JwtProviders[0] {
		t.Errorf("a provider that changed is the one before")
	}
	fifth := mustBuild(t, b, fourth, filtered("127.0.0.1:3", jwtObject("jwt.b", func(p *configv1.JwtProvider) {
		p.RemoteJwks, p.Jwks = nil, keySet
	}))...)
	if len(fifth.JwtProviders) != 0 {
		t.Errorf("keys of the configuration are fetched")
	}
}
