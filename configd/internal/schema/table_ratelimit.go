package schema

func globalRateLimitFilterBlock() *Block {
	descriptor := []Nested{{Block: rateLimitActionBlock(), Many: true, Required: true}, {Block: &Block{
		Name: "limit",
		Doc:  "Has the service take this limit instead of its own (Envoy's limit override).",
		Attrs: []Attr{
			{Name: "requests_per_unit", Kind: String, Required: true, MaxLen: 1024, Doc: "a number, or a text with the operators of access logs that gives one: `\"%REQ(x-plan-limit)%\"`. What is none leaves the service's limit. Take what clients cannot write, a header of a `jwt` or `ext_authz` filter before."},
			{Name: "unit", Kind: String, Required: true, Choices: []string{"second", "minute", "hour", "day", "month", "year"}, Doc: "in which there are so many."},
		},
	}}}
	return &Block{
		Kind: "global_rate_limit",
		Doc: "Asks a service of the gRPC API envoy.service.ratelimit.v3 whether a request is over a limit (Envoy's ratelimit), for limits that hold over several proxies. What is over is answered 429 with x-envoy-ratelimited, " +
			"with the service's headers and body, flag RL, details `request_rate_limited`. A request that the service does not decide about passes, or with `on_error = \"closed\"` is answered by status_on_error, flag RLSE, details `rate_limiter_error`. " +
			"The request waits on its worker meanwhile; the service is a cluster like any other. Counters `ok`, `over_limit`, `enforced`, `error`, `timeout`, `failure_mode_allowed`.",
		Example: `filter "global_rate_limit" "api" {
  cluster = cluster.limits
  domain  = "shop"
  descriptor {
    action "generic_key" { descriptor_value = "api" }
    action "remote_address" {}
  }
  descriptor {
    action "request_headers" {
      header_name    = "x-api-key"
      descriptor_key = "api_key"
    }
  }
}`,
		Attrs: []Attr{
			{Name: "cluster", Kind: Reference, Refers: "cluster", Required: true, Doc: "the service, with protocol = \"http2\"."},
			{Name: "domain", Kind: String, Required: true, MaxLen: 256, Doc: "whose limits they are: the name of a set of rules of the service."},
			{Name: "timeout", Kind: Duration, Default: "20ms", Min: 1, Max: minute, Doc: "until the service has answered."},
			{Name: "on_error", Kind: String, Default: "open", Choices: []string{"open", "closed"}, Doc: "what becomes of a request that the service does not decide about: it passes, or is refused (Envoy's failure_mode_deny)."},
			{Name: "status", Kind: Int, Default: 429, Min: 400, Max: 599, Doc: "of requests over the limit."},
			{Name: "status_on_error", Kind: Int, Default: 500, Min: 400, Max: 599, Doc: "of requests that the service did not decide about."},
			{Name: "headers", Kind: Bool, Default: false, Doc: "responses tell x-ratelimit-limit, x-ratelimit-remaining and x-ratelimit-reset of the limit that is nearest, as draft 3 of RateLimit headers has them (Envoy's enable_x_ratelimit_headers)."},
			{Name: "rate_limited_as_resource_exhausted", Kind: Bool, Default: false, Doc: "requests of gRPC are refused by RESOURCE_EXHAUSTED, not UNAVAILABLE."},
			{Name: "hits_addend", Kind: Int, Default: 1, Min: 1, Max: maxInt32, Doc: "what a request counts."},
			{Name: "enabled", Kind: Percent, Default: "100%", Doc: "share of requests that are asked about at all."},
			{Name: "enforced", Kind: Percent, Default: "100%", Doc: "share of those over the limit that are refused; \"0%\" only counts."},
		},
		Blocks: []Nested{{Many: true, Required: true, Block: &Block{
			Name:   "descriptor",
			Doc:    "What one limit is about: an entry of each action, in order. It is left out of the call where an action finds nothing; without any descriptor the service is not asked. A request is over when one of its descriptors is.",
			Blocks: descriptor,
			Attrs: []Attr{
				{Name: "hits_addend", Kind: String, MaxLen: 1024, DefaultDoc: "that of the filter", Doc: "what a request counts for this descriptor: a number up to 1,000,000,000, or a text with operators that gives one; what is none leaves that of the filter. \"0\" looks at the limit and counts nothing."},
			},
		}}},
	}
}

func rateLimitActionBlock() *Block {
	key := func(otherwise string) Attr {
		return Attr{Name: "descriptor_key", Kind: String, MaxLen: 256, Default: otherwise, Doc: "key of the entry."}
	}
	named := func(kind, attr, what string) []Attr {
		return []Attr{
			{Name: attr, Kind: String, Required: true, MaxLen: 256, Doc: what},
			{Name: "descriptor_key", Kind: String, Required: true, MaxLen: 256, Doc: "key of the entry."},
			{Name: "skip_if_absent", Kind: Bool, Default: false, Doc: "a request without the " + kind + " has the descriptor without this entry, instead of none."},
		}
	}
	test := func(key Attr) []Attr {
		return []Attr{
			{Name: "descriptor_value", Kind: String, Required: true, MaxLen: 1024, Doc: "value of the entry."},
			key,
			{Name: "expect_match", Kind: Bool, Default: true, Doc: "false: where the conditions do not hold."},
		}
	}
	match := []Nested{{Block: matchOf("Conditions, as those of routes; all must hold."), Required: true}}
	return &Block{
		Name: "action", Label: "kind", LabelDoc: "What the entry is made of.",
		Doc: "One entry of a descriptor (Envoy's rate limit actions). Values are cut after 1,024 bytes.",
		Kinds: []*Block{
			{
				Kind: "generic_key", Doc: "A value that is always the same, or what is known of a request, a route and a client's certificate.",
				Example: `action "generic_key" {
  descriptor_key   = "route"
  descriptor_value = "%ROUTE_NAME%"
}`,
				Attrs: []Attr{
					{Name: "descriptor_value", Kind: String, Required: true, MaxLen: 1024, Doc: "value of the entry, with the operators of access logs (%% is a per cent sign). One that finds nothing gives an empty text, and an empty value is none."},
					key("generic_key"),
					{Name: "skip_if_absent", Kind: Bool, Default: false, Doc: "a request without a value has the descriptor without this entry, instead of none."},
				},
			},
			{Kind: "remote_address", Doc: "The client's address, that of `xff_num_trusted_hops`; its key is `remote_address`. An IPv6 client has many: see masked_remote_address."},
			{
				Kind: "masked_remote_address", Doc: "The network that the client's address is in, \"10.1.0.0/16\"; its key is `masked_remote_address`.",
				Attrs: []Attr{
					{Name: "v4_prefix_mask_len", Kind: Int, Default: 32, Max: 32, Doc: "bits of an IPv4 address."},
					{Name: "v6_prefix_mask_len", Kind: Int, Default: 128, Max: 128, Doc: "bits of an IPv6 address; one subscriber has 64 or fewer."},
				},
			},
			{
				Kind: "request_headers", Doc: "A header of the request, the first of its name.",
				Example: `action "request_headers" {
  header_name    = ":path"
  descriptor_key = "path"
}`,
				Attrs: named("header", "header_name", "its name, or :method, :path (with the query), :authority, :scheme."),
			},
			{
				Kind: "query_parameters", Doc: "A parameter of the query, the first of its name, percent-decoded.",
				Attrs: named("parameter", "query_parameter_name", "its name, as it is after decoding."),
			},
			{Kind: "destination_cluster", Doc: "The cluster that the route sends the request to; its key is `destination_cluster`. A request that is answered by its route has none."},
			{Kind: "header_value_match", Doc: "A value where the request meets conditions.", Attrs: test(key("header_match")), Blocks: match},
			{Kind: "query_parameter_value_match", Doc: "The same under another key.", Attrs: test(key("query_match")), Blocks: match},
		},
	}
}
