package schema

// patterns says how lists of texts with stars are written.
const patterns = ` One "*" stands for any text; "~" begins an RE2 expression for all of it.`

func ipFilterBlock() *Block {
	return &Block{
		Kind: "ip",
		Doc: "Lets clients in by their address, which is that of `xff_num_trusted_hops`: who is in `deny` is refused, else who is in `allow`, or everybody where there is no `allow`, is let in. " +
			"Refused requests are answered 403, details `ip_denied`. Counters `allowed`, `denied`, `shadow_denied`.",
		Example: `filter "ip" "office" {
  allow = ["10.0.0.0/8", "2001:db8::/32"]
  deny  = ["10.6.6.0/24"]
}`,
		Attrs: []Attr{
			{Name: "allow", Kind: Strings, MaxLen: 10_000, DefaultDoc: "everybody", Doc: "networks or addresses."},
			{Name: "deny", Kind: Strings, MaxLen: 10_000, Doc: "networks or addresses."},
			{Name: "shadow", Kind: Bool, Default: false, Doc: "nobody is refused, who would be is counted in `shadow_denied`."},
		},
	}
}

func rateLimitFilterBlock() *Block {
	return &Block{
		Kind: "rate_limit",
		Doc: "Refuses requests above a rate, by token buckets of this process which all its workers share (Envoy's local_ratelimit). What is too much is answered 429 with Retry-After and x-envoy-ratelimited, " +
			"flag RL, details `local_rate_limited`. Counters `enabled`, `ok`, `rate_limited`, `enforced`, `keys_evicted`.",
		Example: `filter "rate_limit" "per_client" {
  limit = "100/s"
  burst = 200
  key   = ["source"]
}`,
		Attrs: []Attr{
			{Name: "limit", Kind: String, Required: true, MaxLen: 32, Doc: "how fast a bucket fills: \"100/s\", \"20/m\", \"1000/h\", \"5/10s\"; at most 1,000,000/s. It fills evenly."},
			{Name: "burst", Kind: Int, Min: 1, Max: 1_000_000_000, DefaultDoc: "the number of `limit`", Doc: "requests that a full bucket allows at once."},
			{Name: "key", Kind: Strings, MaxLen: 8, DefaultDoc: "one bucket for all", Doc: "what has a bucket of its own: \"source\" (the client's address; of IPv6 its /64), \"connection\", \"route\", \"virtual_host\", \"header:NAME\", or several of them together. A request without the header is not limited."},
			{Name: "max_keys", Kind: Int, Default: 65536, Min: 8, Max: 16_777_216, Doc: "buckets kept, 16 bytes each. Beyond it the fullest of eight is given to the new key."},
			{Name: "enabled", Kind: Percent, Default: "100%", Doc: "share of requests that are counted at all."},
			{Name: "enforced", Kind: Percent, Default: "100%", Doc: "share of those over the limit that are refused; \"0%\" only counts."},
			{Name: "status", Kind: Int, Default: 429, Min: 400, Max: 599, Doc: "of refusals."},
			{Name: "headers", Kind: Bool, Default: false, Doc: "responses tell x-ratelimit-limit (the burst), x-ratelimit-remaining and x-ratelimit-reset (seconds until the bucket is full)."},
			{Name: "rate_limited_as_resource_exhausted", Kind: Bool, Default: false, Doc: "requests of gRPC are refused by RESOURCE_EXHAUSTED, not UNAVAILABLE."},
		},
	}
}

func corsFilterBlock() *Block {
	return &Block{
		Kind: "cors",
		Doc: "Answers preflight requests of browsers, and tells them which responses pages of other origins may read (Envoy's cors). A preflight of an allowed origin is answered 200, details `cors_response`; " +
			"everything of other origins goes on unchanged, and the browser keeps the response from the page. Counters `origin_valid`, `origin_invalid`.",
		Example: `filter "cors" "shop" {
  allow_origins = ["https://shop.example.com", "https://*.shop.example.com"]
  allow_methods = ["GET", "POST"]
  allow_headers = ["content-type"]
  max_age       = "1h"
}`,
		Attrs: []Attr{
			{Name: "allow_origins", Kind: Strings, Required: true, MaxLen: 100, Doc: "origins, \"https://shop.example.com\"." + patterns},
			{Name: "allow_methods", Kind: Strings, MaxLen: 100, Doc: "of Access-Control-Allow-Methods."},
			{Name: "allow_headers", Kind: Strings, MaxLen: 100, Doc: "of Access-Control-Allow-Headers."},
			{Name: "expose_headers", Kind: Strings, MaxLen: 100, Doc: "of Access-Control-Expose-Headers."},
			{Name: "max_age", Kind: Duration, Max: 30 * day, DefaultDoc: "the browser's", Doc: "how long a browser keeps the answer; whole seconds."},
			{Name: "allow_credentials", Kind: Bool, Default: false, Doc: "cookies and authorisation may come along; not with the origin \"*\"."},
			{Name: "forward_not_matching_preflights", Kind: Bool, Default: true, Doc: "preflight requests of other origins go on; else they are answered 200 here, without a permission."},
			{Name: "shadow", Kind: Bool, Default: false, Doc: "origins are counted, nothing is answered or changed."},
		},
	}
}

func faultFilterBlock() *Block {
	return &Block{
		Kind: "fault",
		Doc: "Makes some requests late, some fail and some responses slow (Envoy's fault). A delay has the flag DI; an abort the flag FI, details `fault_filter_abort`. Counters `delays_injected`, `aborts_injected`, `response_rl_injected`, `faults_overflow`, `active_faults`. " +
			"One of `delay`, `abort`, `response_rate_limit` and `headers` is written.",
		Example: `filter "fault" "drill" {
  delay { time = "200ms" }
  abort {
    status = 503
    share  = "1%"
  }
  match {
    headers = { "x-drill" = "1" }
  }
}`,
		Attrs: []Attr{
			{Name: "headers", Kind: Bool, Default: false, Doc: "requests say themselves: x-envoy-fault-delay-request is a delay in milliseconds, x-envoy-fault-abort-request a status, x-envoy-fault-abort-grpc-request one of gRPC, x-envoy-fault-throughput-response a rate in KiB a second; the same names with -percentage make the shares smaller. Anybody can send them."},
			{Name: "max_active", Kind: Int, Max: maxInt32, DefaultDoc: "no limit", Doc: "faults at a time."},
		},
		Blocks: []Nested{
			{Block: &Block{
				Name: "response_rate_limit",
				Doc:  "Lets the bodies of responses go at a rate, in slices of 50 ms; what is too much waits with the upstream. Each response has its own rate.",
				Attrs: []Attr{
					{Name: "kbps", Kind: Int, Min: 1, Max: 1 << 20, DefaultDoc: "none, but what `headers` brings", Doc: "KiB a second (Envoy's limit_kbps)."},
					{Name: "share", Kind: Percent, Default: "100%", Doc: "of the responses."},
				},
			}},
			{Block: &Block{
				Name: "delay",
				Doc:  "Holds requests.",
				Attrs: []Attr{
					{Name: "time", Kind: Duration, Min: 1, Max: hour, DefaultDoc: "none, but what `headers` brings", Doc: "how long."},
					{Name: "share", Kind: Percent, Default: "100%", Doc: "of the requests."},
				},
			}},
			{Block: &Block{
				Name: "abort",
				Doc:  "Answers requests.",
				Attrs: []Attr{
					{Name: "status", Kind: Int, Min: 200, Max: 599, DefaultDoc: "none, but what `headers` brings", Doc: "with this."},
					{Name: "grpc_status", Kind: Int, Min: 1, Max: 16, DefaultDoc: "none", Doc: "with this status of gRPC, which other clients get as the HTTP status that it stands for."},
					{Name: "share", Kind: Percent, Default: "100%", Doc: "of the requests."},
				},
			}},
			{Block: matchOf("Only requests that meet all of this.")},
		},
	}
}

// matchOf is the conditions of a route, for something else.
func matchOf(doc string) *Block {
	b := *matchBlock()
	b.Doc, b.Example = doc, ""
	return &b
}

func rbacFilterBlock() *Block {
	return &Block{
		Kind: "rbac",
		Doc: "Allows or refuses requests by who makes them and what they ask for (Envoy's rbac). A policy holds for requests that one of its permissions and one of its principals match; without permissions everything is permitted, without principals everybody is meant. " +
			"Refused requests are answered 403, details `rbac_access_denied_matched_policy[NAME]`. Counters `allowed`, `denied`, `shadow_allowed`, `shadow_denied`.",
		Example: `filter "rbac" "admin" {
  action = "deny"
  policy "not-from-outside" {
    permission { paths = ["/admin/*"] }
    principal { not_source_cidrs = ["10.0.0.0/8"] }
  }
}`,
		Attrs: []Attr{rbacAction()},
		Blocks: []Nested{{Block: rbacPolicy(), Many: true}, {Block: &Block{
			Name:   "shadow",
			Doc:    "Rules that are only counted, in `shadow_allowed` and `shadow_denied`: to try them out.",
			Attrs:  []Attr{rbacAction()},
			Blocks: []Nested{{Block: rbacPolicy(), Many: true}},
		}}},
	}
}

func rbacAction() Attr {
	return Attr{
		Name: "action", Kind: String, Default: "allow", Choices: []string{"allow", "deny", "log"},
		Doc: "\"allow\": what no policy matches is refused; \"deny\": what one matches is; \"log\": nothing is.",
	}
}

func rbacPolicy() *Block {
	permission := *matchOf("What is asked for; all that is written must hold.")
	permission.Name = "permission"
	permission.Attrs = append([]Attr{
		{Name: "methods", Kind: Strings, MaxLen: 32, Doc: "one of these."},
		{Name: "paths", Kind: Strings, MaxLen: 1000, Doc: "one of these is the path, in the form in which routes see it, without the query." + patterns},
		{Name: "hosts", Kind: Strings, MaxLen: 1000, Doc: "one of these is the host, in lower case, without the port and a dot at its end." + patterns},
	}, permission.Attrs...)
	header := matchBlock().Blocks[0]
	return &Block{
		Name: "policy", Label: "name", AnyLabel: true, LabelDoc: "Name in details of refusals.",
		Doc: "Some requests of somebody.",
		Blocks: []Nested{
			{Block: &permission, Many: true},
			{Many: true, Block: &Block{
				Name: "principal",
				Doc:  "Who asks; all that is written must hold.",
				Attrs: []Attr{
					{Name: "source_cidrs", Kind: Strings, MaxLen: 1000, Doc: "networks, one of which the client's address is in."},
					{Name: "not_source_cidrs", Kind: Strings, MaxLen: 1000, Doc: "networks, none of which it is in."},
					{Name: "authenticated", Kind: Bool, Doc: "the connection shows a client certificate that is verified (true) or none (false)."},
					{Name: "sans", Kind: Strings, MaxLen: 1000, Doc: "one of these is a URI or DNS name of its certificate, \"spiffe://example.com/ns/shop/*\"." + patterns},
					{Name: "subjects", Kind: Strings, MaxLen: 1000, Doc: "one of these is the subject of its certificate, \"CN=app,O=Example\"." + patterns},
				},
				Blocks: []Nested{header},
			}},
		},
	}
}
