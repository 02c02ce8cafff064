package schema

func statsBlock() *Block {
	return &Block{
		Name: "stats",
		Doc:  "Metrics, dashboard and health of the suite.",
		Example: `stats {
  listen = "127.0.0.1:9902"
  push "otlp" { endpoint = "http://127.0.0.1:4318" }
}`,
		Attrs: []Attr{
			{Name: "listen", Kind: String, Default: "127.0.0.1:9902", MaxLen: 255, Doc: "address (TCP), or \"off\". There is no authentication."},
			{Name: "max_series", Kind: Int, Default: 20_000, Min: 1, Max: 200_000, Doc: "series of one name that are told apart. Clusters and listeners beyond it are counted together in one series whose labels are `__other__`."},
		},
		Blocks: []Nested{{Block: pushBlock(), Many: true}},
	}
}

// pushBlock is a receiver of values, chosen by its label.
func pushBlock() *Block {
	interval := Attr{Name: "interval", Kind: Duration, Default: "10s", Min: second, Max: hour, Doc: "between two sendings."}
	prefix := Attr{Name: "prefix", Kind: String, Default: "retinue", MaxLen: 100, Doc: "first part of every name."}
	address := Attr{Name: "address", Kind: String, Required: true, MaxLen: 260, Doc: "\"HOST:PORT\" (UDP), or \"unix:/path\" of a datagram socket."}
	return &Block{
		Name: "push", Label: "kind",
		LabelDoc: "What is sent: \"statsd\", \"dogstatsd\" or \"otlp\".",
		Doc:      "Sends values to a receiver at every interval. What could not be sent is tried again; what is given up in the end is counted.",
		Kinds: []*Block{
			{
				Kind:    "statsd",
				Doc:     "StatsD, as its first server read it: there are no tags, so that labels become parts of names, `retinue.cluster.api.upstream_rq_total`. Counters are sent as what was added since the last sending; of histograms the count, the sum and percentiles.",
				Example: `push "statsd" { address = "127.0.0.1:8125" }`,
				Attrs:   []Attr{address, interval, prefix},
			},
			{
				Kind: "dogstatsd",
				Doc:  "StatsD with DataDog's tags: labels become tags. Histograms are sent as distributions, a line for each bucket that moved, weighted by its sample rate.",
				Example: `push "dogstatsd" {
  address = "unix:/var/run/datadog/dsd.socket"
  tags    = { env = "prod" }
}`,
				Attrs: []Attr{address, interval, prefix, {Name: "tags", Kind: HeaderMap, MaxLen: 50, Doc: "further tags of every value."}},
			},
			{
				Kind: "otlp",
				Doc:  "OpenTelemetry's protocol, over HTTP (protobuf) or gRPC. Histograms are exponential ones of scale 3, exactly as they were counted. A refusal that may pass is tried again, with growing pauses; the queue holds at most 16 MiB, the oldest is dropped first.",
				Example: `push "otlp" {
  endpoint = "https://otel.example.com/v1/metrics"
  headers  = { authorization = "Bearer ${trimspace(file("/etc/retinue/otel.token"))}" }
}`,
				Attrs: []Attr{
					{Name: "endpoint", Kind: String, Required: true, MaxLen: 2048, Doc: "\"http://HOST:4318\" (/v1/metrics when it has no path), \"https://…\", \"grpc://HOST:4317\" or \"grpcs://…\"."},
					interval,
					{Name: "timeout", Kind: Duration, Default: "10s", Min: 100, Max: 5 * minute, Doc: "one request."},
					{Name: "headers", Kind: HeaderMap, MaxLen: 50, Doc: "headers (metadata of gRPC) of every request."},
					{Name: "attributes", Kind: HeaderMap, MaxLen: 50, Doc: "of the resource, beside service.name, service.instance.id and host.name."},
				},
			},
		},
	}
}
