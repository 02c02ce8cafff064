package jwt

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"

	"retinue.dev/libs/jwk"
	"retinue.dev/proxyd/internal/cluster"
	"retinue.dev/proxyd/internal/counters"
	"retinue.dev/proxyd/internal/header"
	"retinue.dev/proxyd/internal/stream"
	"retinue.dev/proxyd/internal/worker"
	configv1 "retinue.dev/services/api/config/v1"
)

// keyOf is a key with a letter for its seed, and for its kid.
func keyOf(letter string) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte(letter), ed25519.SeedSize))
}

func setOf(letters ...string) string {
	var keys []string
	for _, l := range letters {
		public := base64.RawURLEncoding.EncodeToString(keyOf(l).Public().(ed25519.PublicKey))
		keys = append(keys, fmt.Sprintf(`{"kty":"OKP","crv":"Ed25519","kid":%q,"x":%q}`, l, public))
	}
	return `{"keys":[` + strings.Join(keys, ",") + `]}`
}

func tokenOf(letter, claims string) string {
	e := base64.RawURLEncoding.EncodeToString
	signed := e(fmt.Appendf(nil, `{"alg":"EdDSA","kid":%q}`, letter)) + "." + e([]byte(claims))
	return signed + "." + e(ed25519.Sign(keyOf(letter), []byte(signed)))
}

// providerOf reads its tokens from the header of its name.
func providerOf(letter string) *configv1.JwtProvider {
	return &configv1.JwtProvider{Name: letter, Jwks: setOf(letter), FromHeaders: []*configv1.JwtHeader{{Name: "x-" + letter}}}
}

func of(name string, audiences ...string) *configv1.JwtRequirements {
	return &configv1.JwtRequirements{Kind: &configv1.JwtRequirements_Provider{Provider: &configv1.JwtRequirement{Provider: name, Audiences: audiences}}}
}

func anyOf(list ...*configv1.JwtRequirements) *configv1.JwtRequirements {
	return &configv1.JwtRequirements{Kind: &configv1.JwtRequirements_Any{Any: &configv1.JwtRequirementList{Requirements: list}}}
}

func allOf(list ...*configv1.JwtRequirements) *configv1.JwtRequirements {
	return &configv1.JwtRequirements{Kind: &configv1.JwtRequirements_All{All: &configv1.JwtRequirementList{Requirements: list}}}
}

func missingToo(r *configv1.JwtRequirements) *configv1.JwtRequirements {
	r.AllowMissing = true
	return r
}

func failedToo(r *configv1.JwtRequirements) *configv1.JwtRequirements {
	r.AllowMissingOrFailed = true
	return r
}

func build(root *configv1.JwtRequirements) (*Filter, error) {
	o := &configv1.JwtFilter{Requires: root}
	for _, letter := range []string{"a", "b", "c", "d"} {
		o.Providers = append(o.Providers, providerOf(letter))
	}
	return New(o, 1, []*counters.JWT{new(counters.JWT)}, func(m *configv1.JwtProvider) (*Provider, error) {
		return NewProvider(m, &Needs{Workers: 1, Cells: []*counters.JwtProvider{new(counters.JwtProvider)}})
	})
}

// TestRequirements has trees, with requests and what becomes of them: the providers whose tokens count, or the reason.
func TestRequirements(t *testing.T) {
	// a and b, or c with d missing or good; and for whoever has nothing at all, nothing.
	tree := missingToo(anyOf(allOf(of("a"), of("b")), allOf(of("c"), missingToo(anyOf(of("d"))))))
	for _, test := range []struct {
		root *configv1.JwtRequirements
		have string // letters of tokens, in capitals where they are bad
		want string
	}{
		{tree, "", ""},
		{tree, "a b", "a b"},
		{tree, "a b c", "a b"},
		{tree, "a c", "c"}, // what the first branch found does not count
		{tree, "c d", "c d"},
		{tree, "c D", texts[verificationFailed]},
		{tree, "A b", texts[verificationFailed]},
		{tree, "d", ""}, // of c, which is what is missing
		{allOf(anyOf(of("a"), of("b")), anyOf(of("c"), of("d"))), "a d", "a d"},
		{allOf(anyOf(of("a"), of("b")), anyOf(of("c"), of("d"))), "a b", texts[missing]},
		{allOf(of("a"), failedToo(anyOf(of("b")))), "a", "a"},
		{allOf(of("a"), failedToo(anyOf(of("b")))), "a B", "a"},
		{allOf(of("a"), failedToo(anyOf(of("b")))), "a b", "a b"},
		{allOf(of("a"), failedToo(anyOf(of("b")))), "b", texts[missing]},
		{anyOf(anyOf(anyOf(anyOf(anyOf(anyOf(anyOf(anyOf(of("a"))))))))), "a", "a"},
		{anyOf(of("a", "x"), of("a", "y"), of("b")), "a", "a"},
		{anyOf(of("a", "x"), of("b")), "a", texts[audienceNotAllowed]},
		{of("a"), "a", "a"},
		{of("a"), "b", texts[missing]},
	} {
		t.Run(fmt.Sprintf("%v/%s", test.root, test.have), func(t *testing.T) {
			f, err := build(test.root)
			if err != nil {
				t.Fatal(err)
			}
			s := &stream.Stream{Worker: &worker.Worker{}}
			for _, letter := range strings.Fields(test.have) {
				name, token := strings.ToLower(letter), tokenOf(strings.ToLower(letter), `{"aud":"y"}`)
				if name != letter {
					token = token[:strings.LastIndexByte(token, '.')+1] + strings.Repeat("A", 86)
				}
				s.Request.Add(header.Other, []byte("x-"+name), []byte(token))
			}
			st, on := f.judge(s, true)
			got := texts[st]
			if st == good {
				var names []string
				for _, r := range f.workers[0].results {
					names = append(names, r.provider.Name)
				}
				got = strings.Join(names, " ")
			}
			if got != test.want || on != nil {
				t.Errorf("%q, not %q", got, test.want)
			}
		})
	}
}

// TestRequirementsThatAreNone has trees that are refused.
func TestRequirementsThatAreNone(t *testing.T) {
	deep := of("a")
	for range maxLevels + 1 {
		deep = anyOf(deep)
	}
	for name, test := range map[string]struct {
		root *configv1.JwtRequirements
		want string
	}{
		"nothing":           {&configv1.JwtRequirements{}, "of a kind that this proxyd does not have"},
		"an empty list":     {anyOf(of("a"), allOf()), "has nothing in it"},
		"too deep":          {deep, "more than 8 levels"},
		"too wide":          {anyOf(slices.Repeat([]*configv1.JwtRequirements{of("a")}, maxLeaves+1)...), "more than 64 providers"},
		"nobody's":          {allOf(of("e")), `"e" is not there`},
		"all or nothing":    {missingToo(allOf(of("a"))), "of any alone"},
		"a lenient leaf":    {anyOf(failedToo(of("a"))), "of any alone"},
		"no requirement":    {nil, "one of requires, requires_any and requires_all"},
		"a leaf at the top": {of(""), `"" is not there`},
	} {
		if _, err := build(test.root); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	both := &configv1.JwtFilter{Requires: of("a"), RequiresAny: []*configv1.JwtRequirement{{Provider: "a"}}}
	if _, err := newRequirement(both, map[string]*Provider{"a": {}}); err == nil {
		t.Error("two requirements are one")
	}
}

// TestKeyMismatch: a token whose key is not in the set has it fetched, as often as the provider allows; who comes meanwhile waits, and
// nobody waits for what does not come.
func TestKeyMismatch(t *testing.T) {
	rung := 0
	p, err := NewProvider(&configv1.JwtProvider{Name: "a", RemoteJwks: &configv1.RemoteJwks{TimeoutMs: 1, CacheDurationMs: 1, KidMismatchMs: 3_600_000}}, &Needs{
		Workers: 1, Cells: []*counters.JwtProvider{new(counters.JwtProvider)}, Ring: func() { rung++ },
		Cluster: func(string) (cluster.Handle, bool) { return 0, true },
	})
	if err != nil {
		t.Fatal(err)
	}
	take := func(letters ...string) {
		set, err := jwk.Parse([]byte(setOf(letters...)))
		if err != nil {
			t.Fatal(err)
		}
		p.Take(set)
	}
	w := &worker.Worker{}
	ask := func(letter string, patient bool, want status) {
		t.Helper()
		if _, st := p.verify(w, []byte(tokenOf(letter, `{}`)), nil, patient); st != want {
			t.Errorf("a token of %s: %d, not %d", letter, st, want)
		}
	}
	ask("a", true, waiting) // for the first keys
	take("a")
	ask("a", true, good)
	if p.Begin() || rung != 0 {
		t.Error("somebody wants a key")
	}
	p.Take(p.keys.Load())
	ask("b", false, noMatchingKey)
	ask("b", true, waiting)
	ask("c", true, waiting)
	if rung != 1 || !p.Wanted() || !p.Begin() || p.Wanted() {
		t.Errorf("rung %d times", rung)
	}
	ask("b", true, waiting) // while the fetch is under way
	ask("a", true, good)
	take("a", "b")
	ask("b", true, good)
	ask("c", true, noMatchingKey) // within the time
	if rung != 1 || p.Wanted() || p.Cells[0][counters.JwtProviderKidMismatch] != 1 {
		t.Errorf("rung %d times", rung)
	}

	p.missAfter.Store(0) // an hour later
	ask("c", true, waiting)
	if p.Begin(); rung != 2 {
		t.Errorf("rung %d times", rung)
	}
	p.Fail()
	ask("c", true, noMatchingKey)
	ask("b", true, good)
	p.missAfter.Store(0)
	ask("c", true, waiting)
	p.Begin()
	p.Same()
	ask("c", true, noMatchingKey)

	p.missAfter.Store(0)
	ask("c", true, waiting)
	p.Retire()
	ask("c", true, noMatchingKey)
	p.missAfter.Store(0)
	if ask("c", true, noMatchingKey); rung != 4 || p.Wanted() {
		t.Errorf("rung %d times for a provider that is gone", rung)
	}

	p.gone.Store(false)
	p.Remote.KeyMismatch = 0
	ask("c", true, noMatchingKey)
}
