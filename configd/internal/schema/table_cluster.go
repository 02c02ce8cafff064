package schema

func clusterBlock() *Block {
	return &Block{
		Name: "cluster", Label: "name", Named: true,
		LabelDoc: "Name in references, metrics and logs.",
		Doc:      "Servers that do the same work: written out in `endpoints`, or found by `discovery`.",
		Example: `cluster "api" {
  endpoints = ["10.0.0.1:8080", "10.0.0.2:8080"]
  balance   = "least_request"
  circuit_breaker { max_connections = 1000 }
}`,
		Attrs: []Attr{
			{
				Name: "endpoints", Kind: Records, PlainFirst: true,
				DefaultDoc: "those of `discovery`",
				Doc:        "addresses, \"10.0.0.1:8080\" or \"unix:/path\", or `{ address = \"…\", weight = 2 }`.",
				Fields: []Attr{
					{Name: "address", Kind: String, Required: true, Doc: "\"IP:PORT\" or \"unix:/path\"."},
					{Name: "weight", Kind: Int, Default: 1, Min: 1, Max: 1_000_000, Doc: "share of the load relative to the others."},
					{Name: "priority", Kind: Int, Default: 0, Max: 127, Doc: "0 is asked first; the next one takes what the hosts of those before cannot."},
					{Name: "locality", Kind: String, MaxLen: 255, DefaultDoc: "none", Doc: "where it is; see `locality`."},
					{Name: "metadata", Kind: HeaderMap, MaxLen: 32, Doc: "words about it, `{ version = \"v2\" }`, that subsets are made by; `hash_key` stands for the address in consistent hashes."},
				},
			},
			{Name: "balance", Kind: String, Default: "round_robin", Choices: []string{"round_robin", "least_request", "random", "ring_hash", "maglev"}, Doc: "how an endpoint is picked; ring_hash and maglev by the key that `hash_on` of the route makes, at random without one."},
			{Name: "panic_threshold", Kind: Percent, Default: "50%", Doc: "when fewer of a priority's endpoints are well, and all priorities together cannot take everything, its ill ones are asked too; whole percents, \"0%\" is never."},
			{Name: "fail_traffic_on_panic", Kind: Bool, Default: false, Doc: "in panic none is asked instead of all: 503."},
			{Name: "overprovisioning_factor", Kind: Int, Default: 140, Min: 100, Max: 10_000, Doc: "percent: endpoints can take so much more than their share before the next priority, or the other localities, take some."},
			{Name: "hash_balance_factor", Kind: Int, Min: 100, Max: 100_000, DefaultDoc: "no bound", Doc: "of ring_hash and maglev, percent: an endpoint that has more requests than so much of its fair part of all, in a worker, is passed over, and its keys go to others, each to the same ones."},
			{Name: "protocol", Kind: String, Default: "http1", Choices: []string{"http1", "http2", "auto"}, Doc: "what the endpoints speak; \"auto\" asks by ALPN over TLS and is http1 without."},
			{Name: "connect_timeout", Kind: Duration, Default: "5s", Min: 1, Max: hour, Doc: "new connection to an endpoint."},
			{Name: "idle_timeout", Kind: Duration, Default: "1h", Min: 1, Max: 30 * day, ZeroOff: true, Doc: "pooled connection without requests; \"0\" is off."},
			{Name: "max_requests_per_connection", Kind: Int, Max: maxInt32, DefaultDoc: "no limit", Doc: "a connection is closed after so many."},
			{
				Name: "preconnect_ratio", Kind: Int, Default: 100, Min: 100, Max: 300,
				Doc: "percent: with 150 there are three connections to an HTTP/1 endpoint for two requests under way or waiting, so that the next one need not wait for a handshake. Envoy's per_upstream_preconnect_ratio.",
			},
			{Name: "proxy_protocol", Kind: String, Choices: []string{"v1", "v2"}, DefaultDoc: "none", Doc: "version of the PROXY header that connections begin with. Those of `tcp` tell the client; pooled ones of `http` belong to no client and say so."},
			headerCaseAttr("requests to HTTP/1 endpoints that compare names letter by letter"),
			{Name: "buffer_limit", Kind: Size, Default: "1MiB", Min: 4 << 10, Max: 1 << 30, Doc: "bytes buffered for one connection each way (soft)."},
		},
		Blocks: []Nested{
			{Block: circuitBreakerBlock()},
			{Block: http2Block("to the endpoints")},
			{Block: &Block{
				Name: "ring_hash",
				Doc:  "Of `balance = \"ring_hash\"`: each endpoint has places on a ring by its weight, and a key belongs to the next one.",
				Attrs: []Attr{
					{Name: "min_size", Kind: Int, Default: 1024, Min: 1, Max: 8 << 20, Doc: "places at least; more of them share more evenly."},
					{Name: "max_size", Kind: Int, Default: 8 << 20, Min: 1, Max: 8 << 20, Doc: "places at most, whatever the weights want."},
				},
			}},
			{Block: &Block{
				Name: "maglev",
				Doc:  "Of `balance = \"maglev\"`: a table that the endpoints fill by their weights.",
				Attrs: []Attr{
					{Name: "table_size", Kind: Int, Default: 65537, Min: 2, Max: 5_000_011, Doc: "a prime; at least a hundred times the endpoints."},
				},
			}},
			{Block: &Block{
				Name: "locality", Label: "name", AnyLabel: true, LabelDoc: "What `locality` of the endpoints says.",
				Doc:     "Shares the requests of a priority between its localities by weight, less where endpoints of one are ill. A locality without a block has the weight 1; without any block localities mean nothing.",
				Example: `locality "eu-west-1a" { weight = 3 }`,
				Attrs: []Attr{
					{Name: "weight", Kind: Int, Required: true, Max: 1_000_000, Doc: "share relative to the others; 0 is none."},
				},
			}, Many: true},
			{Block: &Block{
				Name:    "slow_start",
				Doc:     "An endpoint that joins, or is well again, begins with a part of its weight: weight × max(min_weight, (elapsed / window) ^ (1 / aggression)). Not for ring_hash and maglev.",
				Example: `slow_start { window = "60s" }`,
				Attrs: []Attr{
					{Name: "window", Kind: Duration, Required: true, Min: 100, Max: day, Doc: "until it has all of it."},
					{Name: "aggression", Kind: Int, Default: 1000, Min: 1, Max: 100_000, Doc: "thousandths; 1000 is linear, more is faster at first."},
					{Name: "min_weight", Kind: Int, Default: 10, Min: 1, Max: 100, Doc: "percent of its weight that it begins with."},
				},
			}},
			{Block: &Block{
				Name: "subset",
				Doc: "Makes a subset of the endpoints for each combination of values that some keys of their metadata have; `subset` of a route, or of one of its split, asks for one. " +
					"Priorities, panic and localities hold within a subset. A request that names none has all endpoints.",
				Example: `subset { keys = ["version"] }`,
				Attrs: []Attr{
					{Name: "keys", Kind: Strings, Required: true, MaxLen: 16, Doc: "the keys; routes name all of them."},
					{Name: "fallback", Kind: String, Default: "none", Choices: []string{"none", "any", "default"}, Doc: "who is asked where no endpoint has the values: nobody (503), all, or those of `default`."},
					{Name: "default", Kind: HeaderMap, MaxLen: 32, Doc: "metadata of those."},
				},
			}, Many: true},
			{Block: discoveryBlock()},
			{Block: healthCheckBlock(), Many: true},
			{Block: outlierDetectionBlock()},
			{Block: upstreamTLSBlock()},
		},
	}
}

func circuitBreakerBlock() *Block {
	limits := []Attr{
		{Name: "max_connections", Kind: Int, Default: 1024, Min: 1, Max: maxInt32, Doc: "connections."},
		{Name: "max_pending_requests", Kind: Int, Default: 1024, Max: maxInt32, Doc: "requests that wait for a connection."},
		{Name: "max_requests", Kind: Int, Default: 1024, Min: 1, Max: maxInt32, Doc: "requests at a time."},
		{Name: "max_retries", Kind: Int, Default: 3, Max: maxInt32, Doc: "retries at a time."},
		{Name: "retry_budget", Kind: Int, Max: 100, DefaultDoc: "off", Doc: "retries at a time in percent of the requests under way, instead of max_retries."},
		{Name: "min_retry_concurrency", Kind: Int, Default: 3, Max: maxInt32, Doc: "retries at a time that `retry_budget` always allows."},
		{Name: "track_remaining", Kind: Bool, Default: false, Doc: "gauges tell what is left of each limit (`retinue_cluster_circuit_breakers_remaining_*`)."},
	}
	return &Block{
		Name:  "circuit_breaker",
		Doc:   "Limits towards a cluster, for all workers together (each may overshoot by less than the number of workers). They hold for requests of default `priority`, and for TCP.",
		Attrs: limits,
		Blocks: []Nested{
			{Block: &Block{
				Name: "high",
				Doc:  "The limits for requests of routes with `priority = \"high\"`, which count apart: neither priority takes the other's places. Without the block they are the defaults that are shown.",
				Example: `circuit_breaker {
  max_requests = 500
  high { max_requests = 50 }
}`,
				Attrs: limits,
			}},
		},
	}
}

func discoveryBlock() *Block {
	return &Block{
		Name: "discovery", Label: "kind",
		LabelDoc: "How endpoints are found.",
		Doc: "Finds the endpoints while the configuration stays as it is. What is found is never part of a snapshot: a name that does not resolve makes no configuration invalid, " +
			"and its cluster answers 503 until it does. When a look-up fails or finds nothing, the endpoints of the last good one stay; `retinue status` tells.",
		Kinds: []*Block{
			{
				Kind: "dns",
				Doc: "Endpoints by name: every address of the A and AAAA records with the port that is written, or targets, ports and weights of the SRV records with the best priority. The records' time to live, within `min_ttl` and `max_ttl`, says when to ask again. " +
					"With `logical` the name is the endpoint, or each target of the SRV records is one, whatever their addresses are.",
				Example: `discovery "dns" { name = "api.internal:8443" }`,
				Attrs: []Attr{
					{Name: "name", Kind: String, Required: true, MaxLen: 260, Doc: "\"HOST:PORT\"; with `record = \"srv\"` the name alone, \"_http._tcp.api.internal\"."},
					{Name: "record", Kind: String, Default: "any", Choices: []string{"any", "a", "aaaa", "srv"}, Doc: "what is asked for; any is A and AAAA, without those of a family that has no route from here while the other one has."},
					{Name: "logical", Kind: Bool, Default: false, Doc: "\"HOST:PORT\" is one endpoint with all of its addresses instead of one for each: balanced, checked, ejected, counted and drained by that name. A new connection tries the addresses in turn, IPv6 and IPv4 alternating and else in the name server's order, the next one when 300 ms have brought nothing or one has failed, and takes the first that answers; sixteen at most. Connections stay when addresses change."},
					{Name: "min_ttl", Kind: Duration, Default: "5s", Min: second, Max: day, Doc: "shortest time between two look-ups."},
					{Name: "failure_interval", Kind: Duration, Min: 100, Max: day, DefaultDoc: "`min_ttl`", Doc: "pause after a look-up that failed or found nothing. After further ones it is drawn anew between this and twice, four times, … as much (Envoy's dns_failure_refresh_rate)."},
					{Name: "max_failure_interval", Kind: Duration, Min: 100, Max: day, DefaultDoc: "10 times `failure_interval`", Doc: "the longest of those pauses."},
					{Name: "max_ttl", Kind: Duration, Default: "5m", Min: second, Max: day, Doc: "longest time between two look-ups."},
					{Name: "timeout", Kind: Duration, Default: "5s", Min: 100, Max: minute, Doc: "one look-up."},
					{Name: "resolvers", Kind: Strings, MaxLen: 8, DefaultDoc: "those of /etc/resolv.conf, and /etc/hosts", Doc: "name servers to ask, \"IP:PORT\"."},
				},
			},
			{
				Kind:    "file",
				Doc:     "Endpoints from a file that another program writes: one a line, \"IP:PORT\" or \"unix:/path\", if need be a weight, \"priority=1\", \"locality=NAME\" and metadata, \"KEY=VALUE\", after blanks, # before a remark. It is looked at once a second; replace it by renaming another one over it. A file that is missing, empty or has a mistake changes nothing.",
				Example: `discovery "file" { path = "/etc/retinue/endpoints/api" }`,
				Attrs: []Attr{
					{Name: "path", Kind: String, Required: true, MaxLen: 1024, Doc: "absolute path."},
				},
			},
		},
	}
}

func healthCheckBlock() *Block {
	common := func(own ...Attr) []Attr {
		return append(own,
			Attr{Name: "interval", Kind: Duration, Default: "5s", Min: 10, Max: day, Doc: "between two checks."},
			Attr{Name: "interval_jitter_percent", Kind: Int, Default: 10, Max: 1000, Doc: "each interval is up to so many percent longer."},
			Attr{Name: "interval_jitter", Kind: Duration, Max: day, DefaultDoc: "none", Doc: "and up to so much longer."},
			Attr{Name: "initial_jitter", Kind: Duration, Max: day, DefaultDoc: "none", Doc: "the first check waits for up to so long."},
			Attr{Name: "unhealthy_interval", Kind: Duration, Min: 10, Max: day, DefaultDoc: "`interval`", Doc: "after a failed check."},
			Attr{Name: "unhealthy_edge_interval", Kind: Duration, Min: 10, Max: day, DefaultDoc: "`unhealthy_interval`", Doc: "after a failed check of an endpoint that is not out yet."},
			Attr{Name: "healthy_edge_interval", Kind: Duration, Min: 10, Max: day, DefaultDoc: "`interval`", Doc: "after a passed check of an endpoint that is not back yet."},
			Attr{Name: "no_traffic_interval", Kind: Duration, Min: 10, Max: day, DefaultDoc: "as with traffic", Doc: "while no connection for requests was ever made to the cluster. Envoy's default is 60s."},
			Attr{Name: "no_traffic_healthy_interval", Kind: Duration, Min: 10, Max: day, DefaultDoc: "`no_traffic_interval`", Doc: "likewise, of an endpoint that is well."},
			Attr{Name: "timeout", Kind: Duration, Default: "1s", Min: 10, Max: hour, Doc: "for one check."},
			Attr{Name: "healthy", Kind: Int, Default: 2, Min: 1, Max: 100, Doc: "checks passed in a row that bring an endpoint back."},
			Attr{Name: "unhealthy", Kind: Int, Default: 3, Min: 1, Max: 100, Doc: "checks failed in a row that take it out. The very first check decides alone, and so does an answer that says that the endpoint is not well: a status beside `expect` and `retriable`, another body, NOT_SERVING."},
			Attr{Name: "port", Kind: Int, Min: 1, Max: 65535, DefaultDoc: "the endpoint's", Doc: "another port to ask."},
			Attr{Name: "event_log", Kind: String, MaxLen: 4096, DefaultDoc: "none", Doc: "file that gets a line of JSON when an endpoint goes out, comes back or is degraded; it may be rotated at any time."},
			Attr{Name: "always_log_failures", Kind: Bool, Default: false, Doc: "each failed check is a line of it, too."},
		)
	}
	reuse := Attr{Name: "reuse_connection", Kind: Bool, Default: true, Doc: "the connection of a check serves the next one."}
	return &Block{
		Name: "health_check", Label: "kind", LabelDoc: "What a check says.",
		Doc: "Asks the endpoints themselves whether they are well, over a connection that is kept. One that is not takes no requests, but for panic (see `panic_threshold`). " +
			"An endpoint serves until its first check has failed. One that answers a request with the header x-envoy-immediate-health-check-fail is out at once, until checks bring it back.",
		Kinds: []*Block{
			{Kind: "http", Doc: "An HTTP request, in the protocol of the cluster. An answer with the header x-envoy-degraded is well, and its endpoint degraded: it is spared while the healthy ones suffice. One with x-envoy-immediate-health-check-fail is a failure, whatever it says.", Example: `health_check "http" { path = "/healthz" }`, Attrs: common(
				Attr{Name: "path", Kind: String, Default: "/", MaxLen: 1024, Doc: "what is asked for."},
				Attr{Name: "host", Kind: String, MaxLen: 255, DefaultDoc: "the cluster's name", Doc: "Host of the request."},
				Attr{Name: "expect", Kind: Strings, MaxLen: 50, DefaultDoc: "\"200\"", Doc: "statuses that are well: \"204\", or a range, \"200-299\"."},
				Attr{Name: "retriable", Kind: Strings, MaxLen: 50, DefaultDoc: "none", Doc: "statuses that count towards `unhealthy`, written as those of `expect`; any other takes the endpoint out at once."},
				Attr{Name: "method", Kind: String, Default: "GET", Choices: []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH"}, Doc: "of the request, which has no body."},
				Attr{Name: "headers", Kind: HeaderMap, MaxLen: 32, Doc: "of the request, beside Host."},
				reuse,
				Attr{Name: "body", Kind: String, MaxLen: 1024, DefaultDoc: "any", Doc: "text that the first 64 KiB of the answer hold."})},
			{Kind: "tcp", Doc: "A connection, new for each check; with `receive`, one that answers.", Example: `health_check "tcp" {
  send    = "PING\r\n"
  receive = ["+PONG"]
}`, Attrs: common(
				Attr{Name: "send", Kind: String, MaxLen: 4096, DefaultDoc: "nothing", Doc: "what is sent; \"hex:70696e67\" is bytes. With `tls` of the cluster it goes over TLS."},
				Attr{Name: "receive", Kind: Strings, MaxLen: 16, DefaultDoc: "nothing", Doc: "what must come, one after the other, within the first 64 KiB; written as `send`, bytes between them mean nothing."})},
			{Kind: "grpc", Doc: "grpc.health.v1.Health/Check.", Attrs: common(
				reuse,
				Attr{Name: "service", Kind: String, MaxLen: 255, DefaultDoc: "the whole server", Doc: "service asked for."},
				Attr{Name: "host", Kind: String, MaxLen: 255, DefaultDoc: "the cluster's name", Doc: "authority of the call."})},
		},
	}
}

func outlierDetectionBlock() *Block {
	return &Block{
		Name: "outlier_detection",
		Doc: "Takes endpoints that fail out for a while. Names and defaults are Envoy's; a request without an answer counts as a 5xx, and runs of failures are counted in each worker. " +
			"In panic (see `panic_threshold`) all take requests again.",
		Example: `outlier_detection { consecutive_5xx = 5 }`,
		Attrs: []Attr{
			{Name: "consecutive_5xx", Kind: Int, Default: 5, Max: maxInt32, Doc: "answers of 500 and above in a row; 0 is off."},
			{Name: "consecutive_gateway_failure", Kind: Int, Max: maxInt32, DefaultDoc: "off", Doc: "502, 503 and 504 in a row."},
			{Name: "success_rate_stdev_factor", Kind: Int, Default: 1900, Max: 100_000, Doc: "ejects who succeeds less often than the mean by so many thousandths of the standard deviation; 0 is off."},
			{Name: "success_rate_minimum_hosts", Kind: Int, Default: 5, Min: 1, Max: maxInt32, Doc: "endpoints with enough requests that are compared at least."},
			{Name: "success_rate_request_volume", Kind: Int, Default: 100, Min: 1, Max: maxInt32, Doc: "requests of an endpoint in an interval that are enough."},
			{Name: "failure_percentage", Kind: Int, Max: 100, DefaultDoc: "off", Doc: "ejects who fails in so many percent of the requests of an interval. Envoy calls it failure_percentage_threshold."},
			{Name: "failure_percentage_minimum_hosts", Kind: Int, Default: 5, Min: 1, Max: maxInt32, Doc: "endpoints with enough requests there must be."},
			{Name: "failure_percentage_request_volume", Kind: Int, Default: 50, Min: 1, Max: maxInt32, Doc: "requests of an endpoint in an interval that are enough."},
			{Name: "split_external_local_origin_errors", Kind: Bool, Default: false, Doc: "a request without an answer (no connection, a reset, a time-out) is no 5xx and no gateway failure, but one of local origin."},
			{Name: "consecutive_local_origin_failure", Kind: Int, Default: 5, Max: maxInt32, Doc: "of those in a row, with `split_external_local_origin_errors`; 0 is off."},
			{Name: "interval", Kind: Duration, Default: "10s", Min: 10, Max: day, Doc: "between two comparisons, and looks at the ejected."},
			{Name: "base_ejection", Kind: Duration, Default: "30s", Min: 10, Max: day, Doc: "times the number of ejections."},
			{Name: "max_ejection", Kind: Duration, Default: "5m", Min: 10, Max: day, Doc: "longest ejection."},
			{Name: "max_ejection_jitter", Kind: Duration, Max: day, DefaultDoc: "none", Doc: "each ejection is up to so much longer."},
			{Name: "max_ejection_percent", Kind: Int, Default: 10, Min: 0, Max: 100, Doc: "of the endpoints at a time; 0 is none."},
			{Name: "always_eject_one_host", Kind: Bool, Default: true, Doc: "one may be out where that is more than max_ejection_percent (Envoy's default is false: fewer than 10 endpoints eject none by 10 %)."},
			{Name: "successful_active_health_check_uneject_host", Kind: Bool, Default: true, Doc: "a passed health check ends an ejection."},
			{Name: "event_log", Kind: String, MaxLen: 4096, DefaultDoc: "none", Doc: "file that gets a line of JSON for each ejection and its end."},
		},
		Blocks: []Nested{{Block: &Block{
			Name:    "enforcing",
			Doc:     "How many percent of what a rule finds lead to an ejection; the rest is counted (`outlier_detection_ejections_detected_*`) and in the event log. Everything where nothing is written.",
			Example: `enforcing { success_rate = 0 }`,
			Attrs: []Attr{
				enforced("consecutive_5xx"), enforced("consecutive_gateway_failure"), enforced("success_rate"), enforced("failure_percentage"), enforced("consecutive_local_origin_failure"),
			},
		}}},
	}
}

func enforced(rule string) Attr {
	return Attr{Name: rule, Kind: Int, Default: 100, Max: 100, Doc: "percent of what it finds."}
}
