package schema

// tracingBlock says where spans go.
func tracingBlock() *Block {
	return &Block{
		Name: "tracing",
		Doc: "Where the spans of sampled requests go, by OpenTelemetry's protocol. The workers of proxyd record them and statsd sends them: a collector that is away costs bounded memory and spans, and no request waits for it. " +
			"Which requests have spans is said by the `tracing` block of `http`.",
		Example: `tracing {
  endpoint     = "grpc://otel.example.com:4317"
  service_name = "edge"
}`,
		Attrs: []Attr{
			{Name: "endpoint", Kind: String, Required: true, MaxLen: 2048, Doc: "\"http://HOST:4318\" (/v1/traces when it has no path), \"https://…\", \"grpc://HOST:4317\" or \"grpcs://…\"."},
			{Name: "service_name", Kind: String, Default: "retinue", MaxLen: 200, Doc: "service.name of the resource."},
			{Name: "timeout", Kind: Duration, Default: "10s", Min: 100, Max: 5 * minute, Doc: "one request."},
			{Name: "queue", Kind: Size, Default: "16MiB", Min: 64 << 10, Max: 1 << 30, Doc: "what waits for the collector at the most; the oldest is dropped first."},
			{Name: "headers", Kind: HeaderMap, MaxLen: 50, Doc: "headers (metadata of gRPC) of every request."},
			{Name: "attributes", Kind: HeaderMap, MaxLen: 50, Doc: "of the resource, beside service.name, service.instance.id and host.name."},
		},
	}
}

// routeTracingBlock changes the sampling of a route.
func routeTracingBlock() *Block {
	return &Block{
		Name: "tracing",
		Doc:  "Changes the sampling of the `http` block for the requests of the route; what is not written stays. Routes are then chosen before filters run.",
		Example: `tracing {
  random_sampling = "0.1%"
}`,
		Attrs: []Attr{
			{Name: "random_sampling", Kind: Percent, DefaultDoc: "that of http", Doc: "of the requests that nobody has decided about."},
			{Name: "client_sampling", Kind: Percent, DefaultDoc: "that of http", Doc: "of the requests with x-client-trace-id from a trusted peer."},
			{Name: "overall_sampling", Kind: Percent, DefaultDoc: "that of http", Doc: "of all that would be sampled, whoever decided."},
		},
	}
}

// httpTracingBlock makes an http block a part of traces.
func httpTracingBlock() *Block {
	return &Block{
		Name: "tracing",
		Doc: "Makes every request a span of a trace: the trace context that a request brings is continued, or a new one begins, and the upstream gets it. " +
			"Spans of sampled requests are exported where the file has a `tracing` block. A request that brings a decision keeps it; the names and defaults of the sampling are Envoy's.",
		Example: `tracing {
  random_sampling = "1%"
  accept          = ["w3c", "b3"]
  tags            = { tenant = "%REQ(X-TENANT)%" }
}`,
		Attrs: []Attr{
			{Name: "random_sampling", Kind: Percent, Default: "100%", Doc: "of the requests that nobody has decided about."},
			{Name: "client_sampling", Kind: Percent, Default: "100%", Doc: "of the requests with x-client-trace-id from a trusted peer."},
			{Name: "overall_sampling", Kind: Percent, Default: "100%", Doc: "of all that would be sampled, whoever decided: the upper bound."},
			{Name: "trusted", Kind: Strings, MaxLen: 1000, DefaultDoc: "nobody", Doc: "CIDR ranges of the peers whose x-client-trace-id and x-envoy-force-trace hold; both are taken off the requests of others."},
			{Name: "trusted_context_only", Kind: Bool, Default: false, Doc: "continue the trace context of trusted peers alone: at an edge, clients decide neither about ids nor about sampling."},
			{Name: "accept", Kind: Strings, Default: []string{"w3c"}, MaxLen: 3, Doc: "formats of trace context that are read, \"w3c\", \"b3\" and \"b3_multi\"; the first that a request has counts."},
			{Name: "propagate", Kind: Strings, Default: []string{"w3c"}, MaxLen: 3, Doc: "formats that the upstream gets; what a request brought in another accepted one is taken off."},
			{Name: "max_path_tag_length", Kind: Int, Default: 256, Min: 1, Max: 4096, Doc: "bytes of the path in http.url."},
			{Name: "spawn_upstream_span", Kind: Bool, Doc: "each try upstream is a span of its own below the request's, and the upstream gets its context: what a retry or a hedge did shows."},
			{Name: "tags", Kind: HeaderMap, MaxLen: 32, Doc: "tags of every span; values may hold the operators of access logs, and an empty one is left out."},
		},
	}
}
