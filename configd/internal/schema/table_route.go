package schema

func virtualHostBlock() *Block {
	return &Block{
		Name: "virtual_host", Label: "name", AnyLabel: true,
		LabelDoc: "Name in logs; the domain when `domains` is not written.",
		Doc:      "Routes for some domains. Exact domains are tried first, then the longest *.suffix, the longest prefix.*, and \"*\".",
		Attrs: []Attr{
			{Name: "domains", Kind: Strings, MaxLen: 1000, DefaultDoc: "the label", Doc: "\"shop.example.com\", \"*.example.com\", \"*-eu.example.com\", \"example.*\" or \"*\", without a port."},
			{Name: "redirect_https", Kind: String, Default: "none", Choices: []string{"none", "external_only", "all"}, Doc: "which requests that do not come by TLS (or that a trusted proxy did not get by it, X-Forwarded-Proto) are answered 301 to the same URL with https, before any route is looked for: none, those of clients that are not internal (`internal_networks`), or all (Envoy's `require_tls`). Headers and filters are those of the virtual host."},
			filtersAttr("those of the http block"), addFiltersAttr(), removeFiltersAttr(),
			{Name: "include_request_attempt_count", Kind: Bool, Default: false, Doc: "upstreams are told which try a request is, 1 for the first: x-envoy-attempt-count, in the place of what a client says."},
			{Name: "include_attempt_count_in_response", Kind: Bool, Default: false, Doc: "clients are told by x-envoy-attempt-count how many tries there were, also with answers of the proxy's own."},
		},
		Blocks: []Nested{
			{Block: routeBlock(), Many: true},
			{Block: headersBlock()},
		},
	}
}

func routeBlock() *Block {
	return &Block{
		Name: "route", Label: "pattern", AnyLabel: true,
		LabelDoc: "\"[METHOD[,METHOD] ]PATH\" with a PATH of \"/exact\", \"/prefix/*\", \"/with/{variables}\" or \"~regex\".",
		Doc: "What happens to requests that match; the first route in source order wins. \"/api/*\" matches \"/api/\" and everything below it, not \"/api\" (as in nginx and Caddy); \"/*\" matches everything. " +
			"A path with other wildcards is a template (Envoy's uri_template): \"*\" or \"{name}\" is a segment that is not empty, \"**\" or \"{name=**}\" the rest, slashes included, " +
			"behind which literal text may stand; \"{name=a/*}\" names several segments; behind the last wildcard a literal end may stand: \"/videos/{country}/*/{file}.m4s\", \"/**.mpd\". " +
			"It has at most 256 bytes and five names of at most 16. " +
			"\"~/users/[0-9]+\" is an RE2 expression for the whole path. GET does not include HEAD. Exactly one of `cluster`, `split`, `redirect` and `respond` is written.",
		Example: `route "GET,HEAD /api/*" {
  cluster = cluster.api
  timeout = "5s"
  rewrite { prefix = "/v2/" }
}`,
		Attrs: []Attr{
			{Name: "cluster", Kind: Reference, Refers: "cluster", Doc: "where requests go."},
			splitAttr(),
			{Name: "subset", Kind: HeaderMap, MaxLen: 16, Doc: "metadata that the endpoint has, `{ version = \"v2\" }`: the keys of a `subset` of the cluster."},
			{Name: "timeout", Kind: Duration, Default: "15s", Min: 1, Max: day, ZeroOff: true, Doc: "request received to response complete; \"0\" is off."},
			{Name: "priority", Kind: String, Default: "default", Choices: []string{"default", "high"}, Doc: "which limits of the cluster's `circuit_breaker` bound the requests: its own, or those of its `high` block."},
			{Name: "idle_timeout", Kind: Duration, Min: 1, Max: 30 * day, ZeroOff: true, DefaultDoc: "stream_idle of the http block", Doc: "request or response without progress."},
			{Name: "max_stream_duration", Kind: Duration, Min: 1, Max: 30 * day, ZeroOff: true, DefaultDoc: "that of the http block", Doc: "whole life of a request."},
			{Name: "upgrades", Kind: Strings, MaxLen: 16, DefaultDoc: "those of the http block", Doc: "which of the protocols that the http block allows Upgrade may switch to here; [] is none. Others are answered 403."},
			filtersAttr("those of the virtual host"), addFiltersAttr(), removeFiltersAttr(),
		},
		Blocks: []Nested{
			{Block: matchBlock()},
			{Block: rewriteBlock()},
			{Block: stickyBlock()},
			{Block: hashOnBlock(), Many: true},
			{Block: mirrorBlock(), Many: true},
			{Block: &Block{
				Name:    "redirect",
				Doc:     "Answers with a redirect; what is not written is kept from the request.",
				Example: `redirect { scheme = "https" }`,
				Attrs: []Attr{
					{Name: "scheme", Kind: String, Choices: []string{"http", "https"}, Doc: "new scheme."},
					{Name: "host", Kind: String, MaxLen: 255, Doc: "new host, without a port."},
					{Name: "port", Kind: Int, Min: 1, Max: 65535, DefaultDoc: "that of the scheme", Doc: "new port."},
					{Name: "path", Kind: String, Doc: "new path, and query when it holds a \"?\"."},
					{Name: "prefix", Kind: String, Doc: "replaces the matched prefix."},
					regexAttr(), substitutionAttr(), templateAttr(),
					{Name: "status", Kind: Int, Default: 301, Doc: "301, 302, 303, 307 or 308."},
					{Name: "strip_query", Kind: Bool, Default: false, Doc: "leave the query out."},
				},
			}},
			{Block: &Block{
				Name: "respond",
				Doc:  "Answers without an upstream.",
				Attrs: []Attr{
					{Name: "status", Kind: Int, Default: 200, Doc: "200 to 599."},
					{Name: "body", Kind: String, MaxLen: 1 << 20, Doc: "the body; file(\"page.html\") reads one."},
					{Name: "content_type", Kind: String, Default: "text/plain", MaxLen: 256, Doc: "its type."},
				},
			}},
			{Block: headersBlock()},
			{Block: retryBlock()},
			{Block: routeTracingBlock()},
		},
	}
}

func splitAttr() Attr {
	return Attr{
		Name: "split", Kind: Records, MaxLen: 1000,
		Doc: "several clusters by weight: `[{ cluster = cluster.web, weight = 95 }, { cluster = cluster.web_v2, weight = 5 }]`.",
		Fields: []Attr{
			{Name: "cluster", Kind: Reference, Refers: "cluster", Required: true, Doc: "the cluster."},
			{Name: "weight", Kind: Int, Required: true, Min: 1, Max: 1_000_000, Doc: "shares are relative to the sum."},
			{Name: "request_headers", Kind: HeaderMap, Doc: "headers set on requests to this cluster (routes only)."},
			{Name: "response_headers", Kind: HeaderMap, Doc: "headers set on its responses (routes only)."},
			{Name: "add_request_headers", Kind: HeaderMap, Doc: "headers appended to requests (routes only)."},
			{Name: "add_response_headers", Kind: HeaderMap, Doc: "headers appended to its responses (routes only)."},
			{Name: "remove_request_headers", Kind: Strings, MaxLen: 100, Doc: "headers removed from requests, which comes first (routes only)."},
			{Name: "remove_response_headers", Kind: Strings, MaxLen: 100, Doc: "headers removed from its responses (routes only)."},
			{Name: "subset", Kind: HeaderMap, DefaultDoc: "that of the route", Doc: "metadata that the endpoint has."},
		},
	}
}

func headerEdits(name, doc string) Nested {
	return Nested{Block: &Block{
		Name: name,
		Doc:  doc,
		Attrs: []Attr{
			{Name: "replace", Kind: HeaderMap, MaxLen: 100, Doc: "replaces headers that are there, and adds none."},
			{Name: "set", Kind: HeaderMap, MaxLen: 100, Doc: "replaces headers, or adds them: `{ \"x-env\" = \"prod\" }`. Values may hold the operators of access logs; where they come out as nothing the header is left out."},
			{Name: "default", Kind: HeaderMap, MaxLen: 100, Doc: "sets headers that are not there."},
			{Name: "add", Kind: HeaderMap, MaxLen: 100, Doc: "appends headers; a value may be a list."},
			{Name: "remove", Kind: Strings, MaxLen: 100, Doc: "removes headers; this happens first."},
		},
	}}
}

func headersBlock() *Block {
	return &Block{
		Name: "headers",
		Doc: "Header edits, at four levels: the `http` block, the virtual host, the route, and the headers of a `split`. They are made in that order, so the more specific has the last word. " +
			"At each level headers are removed first, then replaced, then set, then given their defaults, then added (Envoy's `OVERWRITE_IF_EXISTS`, `OVERWRITE_IF_EXISTS_OR_ADD`, `ADD_IF_ABSENT`, `APPEND_IF_EXISTS_OR_ADD`).",
		Example: `headers {
  request {
    set = { "x-forwarded-service" = "shop" }
  }
  response {
    remove = ["x-powered-by"]
  }
}`,
		Blocks: []Nested{
			headerEdits("request", "Edits what the upstream receives."),
			headerEdits("response", "Edits what the client receives."),
		},
	}
}

func retryBlock() *Block {
	return &Block{
		Name: "retry",
		Doc: "Tries a request again that failed upstream, within the route's `timeout`. Conditions, numbers and defaults are Envoy's. " +
			"A body is kept for it within the stream's buffer; a request with a larger one is not tried again. A response that has begun is never replaced.",
		Example: `retry {
  on              = ["5xx", "connect-failure"]
  attempts        = 2
  per_try_timeout = "500ms"
}`,
		Attrs: []Attr{
			{Name: "on", Kind: Strings, Required: true, MaxLen: 20, Doc: "when: \"5xx\" (any, a reset and a time-out of the try too), \"gateway-error\" (502, 503, 504), \"reset\", \"reset-before-request\" (nothing was sent), \"connect-failure\", \"retriable-4xx\" (409), \"refused-stream\", \"envoy-ratelimited\" (the answer says x-envoy-ratelimited), a status like \"429\"; by grpc-status \"cancelled\", \"deadline-exceeded\", \"internal\", \"resource-exhausted\", \"unavailable\"."},
			{Name: "attempts", Kind: Int, Default: 1, Min: 1, Max: 100, Doc: "retries after the first try."},
			{Name: "per_try_timeout", Kind: Duration, Min: 1, Max: day, DefaultDoc: "off", Doc: "for one try, from the end of the request on."},
			{Name: "per_try_idle_timeout", Kind: Duration, Min: 1, Max: day, DefaultDoc: "off", Doc: "for one try: nothing has come of it for so long, from the end of the request to the end of the response. It ends as by `per_try_timeout`, details `upstream_per_try_idle_timeout`; a response that has begun is cut. Time in which the client does not take what has come does not count."},
			{Name: "hedge_on_per_try_timeout", Kind: Bool, Doc: "a try that takes longer than `per_try_timeout` goes on while the next one begins, whatever `on` says; the first good answer is the client's, and the other tries are given up. Only for requests whose whole body is kept; never for upgrades and CONNECT. Hedges count as retries: `attempts`, `back_off`, the breaker and the budget bound them."},
			{Name: "back_off", Kind: Duration, Default: "25ms", Min: 1, Max: minute, Doc: "the first pause; each further one may be twice as long. The real pause is a random part of it."},
			{Name: "max_back_off", Kind: Duration, Min: 1, Max: hour, DefaultDoc: "10 times back_off", Doc: "the longest pause."},
			{Name: "avoid_previous_hosts", Kind: Bool, Default: true, Doc: "prefers another host than those that failed (Envoy's previous_hosts)."},
			{Name: "omit_host_metadata", Kind: HeaderMap, MaxLen: 16, DefaultDoc: "none", Doc: "retries prefer another endpoint than one whose metadata has all of these values, `{ canary = \"true\" }`."},
			{Name: "host_selection_retry_max_attempts", Kind: Int, Default: 3, Min: 1, Max: 100, Doc: "how often another one is looked for, before it is one of those after all (of both rules)."},
		},
		Blocks: []Nested{
			{Block: rateLimitedBackOffBlock()},
			fieldTest("response_header", "header of the response: one that holds is tried again too"),
			fieldTest("request_header", "header of the request: where there are such blocks, only requests that one of them holds for are tried again"),
		},
	}
}

func rateLimitedBackOffBlock() *Block {
	return &Block{
		Name: "rate_limited_back_off",
		Doc: "Takes the pause before the next try from the response, where it is one to try again: what the first of these headers says that can be read and is within `max_interval`, " +
			"and a random part of up to half as much more. Without one the pause is that of `back_off`. The route's `timeout` goes on meanwhile.",
		Example: `rate_limited_back_off {
  reset_header "retry-after" {}
  reset_header "x-ratelimit-reset" { format = "unix_timestamp" }
}`,
		Attrs: []Attr{
			{Name: "max_interval", Kind: Duration, Default: "5m", Min: second, Max: day, Doc: "a longer pause is not made."},
		},
		Blocks: []Nested{{Many: true, Block: &Block{
			Name: "reset_header", Label: "name", AnyLabel: true, LabelDoc: "Name of the header.",
			Doc: "A header that says when to try again, as a whole number.",
			Attrs: []Attr{
				{Name: "format", Kind: String, Default: "seconds", Choices: []string{"seconds", "unix_timestamp"}, Doc: "seconds from now, or since 1970."},
			},
		}}},
	}
}

func regexAttr() Attr {
	return Attr{Name: "regex", Kind: String, MaxLen: 1024, Doc: "RE2 expression whose every match in the path is replaced by `substitution`."}
}

func substitutionAttr() Attr {
	return Attr{Name: "substitution", Kind: String, MaxLen: 1024, Doc: "what `regex` is replaced by; \\1 to \\9 are its groups, \\0 the match (in quotes \"\\\\1\")."}
}

func templateAttr() Attr {
	return Attr{Name: "template", Kind: String, MaxLen: 256, Doc: "what the path becomes, of the variables in the route's pattern: \"/{id}/{country}\"."}
}

func rewriteBlock() *Block {
	return &Block{
		Name: "rewrite",
		Doc:  "Changes what the upstream sees; routes and access logs have seen the path as it was.",
		Example: `rewrite {
  regex        = "^/users/([0-9]+)$"
  substitution = "/people/\\1"
  query {
    set = { "source" = "edge" }
  }
}`,
		Attrs: []Attr{
			{Name: "prefix", Kind: String, Doc: "replaces the matched prefix, or the whole path of an exact route."},
			regexAttr(), substitutionAttr(), templateAttr(),
			{Name: "host", Kind: String, MaxLen: 255, Doc: "replaces Host."},
			{Name: "host_header", Kind: String, MaxLen: 256, Doc: "the request header whose value replaces Host, when it is there and is a host."},
			{Name: "append_x_forwarded_host", Kind: Bool, Default: false, Doc: "the host that is replaced goes to the end of X-Forwarded-Host."},
		},
		Blocks: []Nested{{Block: &Block{
			Name: "query",
			Doc:  "Changes the query: what is written here is percent-encoded already.",
			Attrs: []Attr{
				{Name: "clear", Kind: Bool, Default: false, Doc: "drops all of it first."},
				{Name: "remove", Kind: Strings, MaxLen: 64, Doc: "drops parameters."},
				{Name: "set", Kind: HeaderMap, MaxLen: 64, Doc: "replaces parameters, or adds them: `{ page = \"1\" }`."},
			},
		}}},
	}
}

// fieldTest is a block with one test of a header, a query parameter or a cookie.
func fieldTest(name, what string) Nested {
	return Nested{Many: true, Block: &Block{
		Name: name, Label: "name", AnyLabel: true, LabelDoc: "Name of the " + what + ".",
		Doc: "One condition on a " + what + ": exactly one test is written.",
		Attrs: []Attr{
			{Name: "exact", Kind: String, Doc: "the whole value."},
			{Name: "prefix", Kind: String, Doc: "its beginning."},
			{Name: "suffix", Kind: String, Doc: "its end."},
			{Name: "contains", Kind: String, Doc: "a part of it."},
			{Name: "regex", Kind: String, MaxLen: 1024, Doc: "RE2 expression for all of it."},
			{Name: "min", Kind: Int, Doc: "the value is a whole number not below."},
			{Name: "max", Kind: Int, Doc: "the value is a whole number not above."},
			{Name: "present", Kind: Bool, Doc: "it is there (true) or not (false)."},
			{Name: "ignore_case", Kind: Bool, Default: false, Doc: "a letter's case means nothing to exact, prefix, suffix and contains."},
			{Name: "invert", Kind: Bool, Default: false, Doc: "the test must fail."},
			{Name: "missing_as_empty", Kind: Bool, Default: false, Doc: "what is not there is an empty value. Otherwise it matches no test, inverted or not, but present."},
		},
	}}
}

func matchBlock() *Block {
	return &Block{
		Name: "match",
		Doc: "Further conditions of a route; all must hold. Where they do not, the routes behind it are tried. Values of a header that is there several times are joined by \",\"; " +
			"of query parameters and cookies the first counts, query values as they are written.",
		Example: `match {
  headers      = { "x-env" = "canary" }
  source_cidrs = ["10.0.0.0/8"]
  cookie "session" { present = true }
  fraction = "5%"
}`,
		Attrs: []Attr{
			{Name: "headers", Kind: HeaderMap, MaxLen: 32, Doc: "headers with their whole values; short for `header` blocks with `exact`."},
			{Name: "query", Kind: HeaderMap, MaxLen: 32, Doc: "query parameters with their whole values."},
			{Name: "cookies", Kind: HeaderMap, MaxLen: 32, Doc: "cookies with their whole values."},
			{Name: "content_types", Kind: Strings, MaxLen: 64, Doc: "one of these is the content type, its parameters left aside: \"application/json\", \"text/*\"."},
			{Name: "grpc", Kind: Bool, Doc: "the request is gRPC (true) or not (false)."},
			{Name: "tls", Kind: Bool, Doc: "the client's connection is TLS (true) or not (false)."},
			{Name: "client_cert", Kind: Bool, Doc: "the client has shown a certificate, which was verified by `client_ca` then (true), or has not."},
			{Name: "source_cidrs", Kind: Strings, MaxLen: 1000, Doc: "networks, one of which the client's address is in; it is that of `xff_num_trusted_hops`."},
			{Name: "not_source_cidrs", Kind: Strings, MaxLen: 1000, Doc: "networks, none of which it is in."},
			{Name: "fraction", Kind: Percent, Doc: "so many of the requests, at random; drawn once a request, so that 5% of one route are within 10% of another."},
		},
		Blocks: []Nested{fieldTest("header", "header"), fieldTest("parameter", "query parameter"), fieldTest("cookie", "cookie")},
	}
}

func stickyBlock() *Block {
	return &Block{
		Name: "sticky",
		Doc:  "Keeps requests with the same key on the same cluster of a `split`, while its weights stay. One of `cookie`, `header` and `source` is written.",
		Example: `sticky {
  cookie = "bucket"
  ttl    = "24h"
}`,
		Attrs: []Attr{
			{Name: "cookie", Kind: String, MaxLen: 256, Doc: "a cookie, which clients without one are given (HttpOnly)."},
			{Name: "ttl", Kind: Duration, Min: second, Max: 365 * day, DefaultDoc: "until the browser ends", Doc: "how long the cookie is kept."},
			{Name: "path", Kind: String, MaxLen: 1024, Default: "/", Doc: "path of the cookie."},
			{Name: "header", Kind: String, MaxLen: 256, Doc: "a request header; requests without it are drawn."},
			{Name: "source", Kind: Bool, Doc: "the client's address."},
		},
	}
}

func hashOnBlock() *Block {
	attrs := func(own ...Attr) []Attr {
		return append(own, Attr{Name: "terminal", Kind: Bool, Default: false, Doc: "if there is a key by now, the blocks behind this one are left out."})
	}
	return &Block{
		Name: "hash_on", Label: "kind", LabelDoc: "What of the request is hashed.",
		Doc: "A part of the key by which clusters with `balance` \"ring_hash\" or \"maglev\" choose the endpoint. Parts are combined in order; what a request does not have adds nothing. " +
			"Keys, tables and hash (XXH64) are Envoy's. It sees the request as the upstream does, rewritten.",
		Kinds: []*Block{
			{Kind: "header", Doc: "A request header, all of its values.", Example: `hash_on "header" { name = "x-user" }`, Attrs: attrs(
				Attr{Name: "name", Kind: String, Required: true, MaxLen: 256, Doc: "its name."})},
			{Kind: "cookie", Doc: "A cookie.", Attrs: attrs(
				Attr{Name: "name", Kind: String, Required: true, MaxLen: 256, Doc: "its name."},
				Attr{Name: "ttl", Kind: Duration, Min: second, Max: 365 * day, ZeroOff: true, DefaultDoc: "no cookie is made", Doc: "clients without the cookie are given one (HttpOnly) for so long; \"0\": until the browser ends. One of a route's."},
				Attr{Name: "path", Kind: String, MaxLen: 1024, Default: "/", Doc: "path of that cookie."})},
			{Kind: "source", Doc: "The client's address, that of `xff_num_trusted_hops`.", Attrs: attrs()},
			{Kind: "query", Doc: "A query parameter, the first of its name.", Attrs: attrs(
				Attr{Name: "name", Kind: String, Required: true, MaxLen: 256, Doc: "its name."})},
		},
	}
}

func mirrorBlock() *Block {
	return &Block{
		Name: "mirror",
		Doc: "Sends a copy of the request to another cluster too. Its answer is thrown away, and neither its failure nor its slowness touches the client: a mirror that does not keep up is given up. " +
			"Host of the copy ends in \"-shadow\"; trailers and upgrades are not copied.",
		Attrs: []Attr{
			{Name: "cluster", Kind: Reference, Refers: "cluster", Required: true, Doc: "where copies go."},
			{Name: "fraction", Kind: Percent, Default: "100%", Doc: "so many of the requests, at random."},
		},
	}
}
