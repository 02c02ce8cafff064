package schema

// maxKeySet bounds a key set that is written in the configuration, in bytes.
const maxKeySet = 256 << 10

func jwtProviderBlock() *Block {
	return &Block{
		Name: "jwt_provider", Label: "name", Named: true,
		LabelDoc: "Name in references and metrics.",
		Doc: "Who makes tokens (JSON Web Tokens, RFC 7519), how they are verified, where they stand in a request, and what the upstream learns from them (a provider of Envoy's jwt_authn). It does nothing by itself: `jwt` filters ask for its tokens. " +
			"Of `jwks_file`, `jwks` and `remote_jwks` there is one. Algorithms are RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA (Ed25519), and with keys of type `oct` HS256, HS384, HS512; the key says which, never the token. " +
			"A token has at most 8 KiB. Counters `retinue_jwt_provider_*{provider=\"NAME\"}`: `jwks_fetch_success`, `jwks_fetch_failed`, `jwks_refetch_on_kid_mismatch`, `jwt_cache_hit`, `jwt_cache_miss`.",
		Example: `jwt_provider "id" {
  issuer           = "https://id.example.com"
  audiences        = ["shop"]
  claim_to_headers = { "x-user" = "sub", "x-role" = "realm.role" }
  remote_jwks {
    uri     = "https://id.example.com/.well-known/jwks.json"
    cluster = cluster.id
  }
}`,
		Attrs: []Attr{
			{Name: "issuer", Kind: String, MaxLen: 1024, DefaultDoc: "any", Doc: "`iss` of its tokens."},
			{Name: "audiences", Kind: Strings, MaxLen: 100, DefaultDoc: "any", Doc: "one of them is in `aud`; exactly as written there. A token for others is answered 403."},
			{Name: "subjects", Kind: Strings, MaxLen: 100, DefaultDoc: "any", Doc: "`sub` is one of them: texts, texts with one \"*\", or \"~\" and a regular expression."},
			{Name: "require_expiration", Kind: Bool, Default: false, Doc: "a token has an `exp`."},
			{Name: "max_lifetime", Kind: Duration, Min: second, Max: 100 * 365 * day, DefaultDoc: "any", Doc: "`exp` is there, and not further away."},
			{Name: "clock_skew", Kind: Duration, Default: "60s", Max: day, Doc: "how far clocks may be apart when `exp` and `nbf` are looked at."},
			{Name: "jwks_file", Kind: String, Doc: "a file with a JSON Web Key Set (RFC 7517). It is a secret: it is read again when it changes and never shown."},
			{Name: "jwks", Kind: String, MaxLen: maxKeySet, Doc: "a key set of public keys, here or by file(). Secrets (`oct`) are not for configurations, which are kept and shown."},
			{
				Name: "from_headers", Kind: Records, MaxLen: 10, PlainFirst: true, DefaultDoc: "authorization, after \"Bearer \", unless there is from_params or from_cookies",
				Doc: "headers with tokens: `[\"x-token\"]`, or `{ name = \"x-token\", value_prefix = \"JWT \" }`.",
				Fields: []Attr{
					{Name: "name", Kind: String, Required: true, MaxLen: 256, Doc: "the header."},
					{Name: "value_prefix", Kind: String, MaxLen: 256, DefaultDoc: "none", Doc: "what stands before the token, in any case; other values are no tokens."},
				},
			},
			{Name: "from_params", Kind: Strings, MaxLen: 10, DefaultDoc: "access_token, unless there is from_headers or from_cookies", Doc: "parameters of the query with tokens."},
			{Name: "from_cookies", Kind: Strings, MaxLen: 10, DefaultDoc: "none", Doc: "cookies with tokens."},
			{Name: "forward", Kind: Bool, Default: false, Doc: "the upstream gets the token; else it is taken out of the request, wherever it stands."},
			{Name: "forward_payload_header", Kind: String, MaxLen: 256, DefaultDoc: "none", Doc: "the upstream gets the payload in this header, in base64url as the token has it."},
			{Name: "pad_forward_payload_header", Kind: Bool, Default: false, Doc: "with the padding of base64."},
			{Name: "claim_to_headers", Kind: HeaderMap, MaxLen: 50, Doc: "headers that the upstream gets, and the claims in them; \"realm.role\" is a member of a member. Arrays and objects are in base64. A string that a header cannot hold as it is becomes none. What clients send in these headers is removed, whether they have a token or not."},
			{Name: "cache_size", Kind: Int, Default: 1000, Max: 100_000, Doc: "verified tokens that each worker keeps until they expire, each of at most 4 KiB; the least recently used goes first."},
		},
		Blocks: []Nested{{Block: &Block{
			Name: "remote_jwks",
			Doc: "A key set that is fetched at once, and again 5 s before cache_duration is over. What cannot be fetched is tried again after 1 s and more, up to 1 min, and the last set stays in force meanwhile. " +
				"Requests that come before there is any wait for the first answer; a failure is answered 401, details `jwt_authn_access_denied{Jwks_remote_fetch_is_failed}`.",
			Attrs: []Attr{
				{Name: "uri", Kind: String, Required: true, MaxLen: 2048, Doc: "where it is. Its host is that of the request; who is asked, and whether by TLS, is the cluster's business."},
				{Name: "cluster", Kind: Reference, Refers: "cluster", Required: true, Doc: "the hosts that are asked."},
				{Name: "timeout", Kind: Duration, Default: "5s", Min: 1, Max: 5 * minute, Doc: "until it is here."},
				{Name: "cache_duration", Kind: Duration, Default: "10m", Min: second, Max: 365 * day, Doc: "how long it holds."},
				{Name: "refetch_on_kid_mismatch", Kind: Duration, Default: "30s", Min: second, Max: day, ZeroOff: true, Doc: "a token whose `kid` is not in the set has it fetched at once, at most once in this time for all workers; requests with such tokens wait for that fetch, and are answered 401 between two of them. \"0\": never."},
			},
		}}},
	}
}

func jwtFilterBlock() *Block {
	return &Block{
		Kind: "jwt",
		Doc: "Lets requests pass that have a token of the right provider (Envoy's jwt_authn). Others are answered 401, a token for other audiences 403, with `WWW-Authenticate: Bearer`, and details `jwt_authn_access_denied{…}` with the reason in Envoy's words. " +
			"All tokens that a request shows to a provider must be good, and they are four at the most. Routes with another requirement name another filter; providers are shared. One of `requires_any`, `requires_all` and a `requires` block is written. Counters `allowed`, `denied`, `cors_preflight_bypassed`.",
		Example: `filter "jwt" "users" {
  requires_any = [jwt_provider.id, jwt_provider.partners]
}`,
		Blocks: []Nested{{Block: jwtRequiresBlock()}},
		Attrs: []Attr{
			{Name: "requires_any", Kind: References, Refers: "jwt_provider", One: true, MaxLen: 16, DefaultDoc: "none", Doc: "a token of one of these."},
			{Name: "requires_all", Kind: References, Refers: "jwt_provider", One: true, MaxLen: 16, DefaultDoc: "none", Doc: "a token of each of these."},
			{Name: "audiences", Kind: Strings, MaxLen: 100, DefaultDoc: "those of the providers", Doc: "instead of the providers' audiences."},
			{Name: "allow", Kind: String, Choices: []string{"missing", "missing_or_failed"}, DefaultDoc: "nothing", Doc: "with requires_any: requests without a token pass (\"missing\"), and those whose tokens are refused, too (\"missing_or_failed\"). The upstream sees by the headers of claims whether there was a good one."},
			{Name: "bypass_cors_preflight", Kind: Bool, Default: false, Doc: "preflight requests, which browsers send without tokens, pass."},
		},
	}
}

// jwtRequiresBlock is a tree: blocks of it hold blocks of it.
func jwtRequiresBlock() *Block {
	providers := Attr{Name: "providers", Kind: References, Refers: "jwt_provider", One: true, MaxLen: 16, DefaultDoc: "none", Doc: "tokens of these."}
	audiences := Attr{Name: "audiences", Kind: Strings, MaxLen: 100, DefaultDoc: "those of the providers", Doc: "instead of the audiences of `providers`."}
	b := &Block{
		Name: "requires", Label: "kind", LabelDoc: "How much of it must be met.",
		Doc: "What is required, where a list does not say it: tokens of providers, and further `requires` blocks, at most 8 deep and with 64 providers in all (Envoy's requires_any and requires_all).",
		Example: `requires "any" {
  providers = [jwt_provider.staff]
  requires "all" {
    providers = [jwt_provider.id, jwt_provider.device]
    audiences = ["shop"]
  }
}`,
	}
	b.Kinds = []*Block{
		{
			Kind: "any", Doc: "One of its providers and blocks is enough, looked at in this order.",
			Attrs: []Attr{
				providers, audiences,
				{Name: "allow", Kind: String, Choices: []string{"missing", "missing_or_failed"}, DefaultDoc: "nothing", Doc: "it is met without any token, too (\"missing\"), or whatever becomes of its tokens (\"missing_or_failed\")."},
			},
		},
		{Kind: "all", Doc: "Each of its providers and blocks is met.", Attrs: []Attr{providers, audiences}},
	}
	for _, k := range b.Kinds {
		k.Blocks = []Nested{{Block: b, Many: true}}
	}
	return b
}
