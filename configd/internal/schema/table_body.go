package schema

func basicAuthFilterBlock() *Block {
	return &Block{
		Kind: "basic_auth",
		Doc:  "Asks for a user and a password (Envoy's basic_auth). Others are answered 401, details `no_credential_for_basic_auth`, `invalid_scheme_for_basic_auth`, `invalid_format_for_basic_auth` or `invalid_credential_for_basic_auth`. Counters `allowed`, `denied`.",
		Example: `filter "basic_auth" "staff" {
  users_file = "/etc/retinue/staff.htpasswd"
  realm      = "staff"
}`,
		Attrs: []Attr{
			{Name: "users_file", Kind: String, Required: true, Doc: "lines \"user:{SHA}digest\", as `htpasswd -s` writes them; slow hashes such as bcrypt are refused, since a stranger could stop the proxy with them. The file is a secret: it is read again when it changes and never shown."},
			{Name: "realm", Kind: String, Default: "restricted", MaxLen: 256, Doc: "what browsers say is asked for."},
			{Name: "user_header", Kind: String, MaxLen: 256, DefaultDoc: "none", Doc: "a request header in which the upstream learns the user; what clients write there is replaced."},
			{Name: "forward_authorization", Kind: Bool, Default: false, Doc: "the upstream gets the password too."},
		},
	}
}

func bodyLimitFilterBlock() *Block {
	return &Block{
		Kind: "body_limit",
		Doc: "Refuses bodies that are too large, without keeping them. A request is answered 413, details `request_payload_too_large`; a response that says so in its Content-Length 502, details `response_payload_too_large`; one without a length is cut. " +
			"They are counted in `downstream_rq_too_large` and `rs_too_large` of the `http` block.",
		Example: "filter \"body_limit\" \"uploads\" { request = \"10MiB\" }",
		Attrs: []Attr{
			{Name: "request", Kind: Size, Min: 1, Max: 1 << 50, DefaultDoc: "no limit", Doc: "largest body of a request."},
			{Name: "response", Kind: Size, Min: 1, Max: 1 << 50, DefaultDoc: "no limit", Doc: "largest body of a response."},
		},
	}
}

func bufferFilterBlock() *Block {
	return &Block{
		Kind:    "buffer",
		Doc:     "Waits for the whole request before it goes on (Envoy's buffer), so that a slow client does not keep a connection of the upstream. A larger one is answered 413, details `request_payload_too_large`.",
		Example: "filter \"buffer\" \"forms\" { max_request = \"64KiB\" }",
		Attrs: []Attr{
			{Name: "max_request", Kind: Size, Required: true, Min: 1, Max: 1 << 30, Doc: "largest body; so much memory can each request take."},
		},
	}
}

func compressFilterBlock() *Block {
	return &Block{
		Kind: "compress",
		Doc: "Compresses responses for clients that accept it (Envoy's compressor). Left as they are: responses that have a Content-Encoding, are parts (206), say no-transform, are shorter than `min_size` or of another type. " +
			"A compressed response has no Content-Length, a weak ETag and Vary: Accept-Encoding. Do not compress responses that hold a secret and what a stranger wrote (the BREACH attack). " +
			"Counters `compressed`, `not_compressed`, `header_not_valid`, `overflow`, `total_uncompressed_bytes`, `total_compressed_bytes`.",
		Example: `filter "compress" "text" {
  codings = ["zstd", "br", "gzip"]
}`,
		Attrs: []Attr{
			{Name: "codings", Kind: Strings, MaxLen: 3, Default: []string{"gzip"}, Doc: "\"gzip\", \"br\" and \"zstd\"; of those that a client likes equally the first."},
			{Name: "min_size", Kind: Size, Default: 30, Min: 1, Max: 1 << 30, Doc: "smallest Content-Length; without one the size is not known and every body is compressed."},
			{Name: "content_types", Kind: Strings, MaxLen: 64, DefaultDoc: "javascript, json, xhtml+xml, svg+xml, css, html, plain and xml", Doc: "\"application/json\", \"text/*\"; a response without a type is compressed."},
			{Name: "level", Kind: Int, Min: 1, Max: 9, DefaultDoc: "gzip 4, br 3, zstd 1", Doc: "1 is the fastest."},
		},
	}
}

func healthCheckFilterBlock() *Block {
	return &Block{
		Kind: "health_check",
		Doc: "Answers the health checks of whoever balances over several proxies (Envoy's health_check): 200, or 503 with the flag LH while the proxy is about to go with nobody in its place, or too few hosts of a cluster are healthy. " +
			"Details `health_check_ok`, `health_check_failed`. While it is about to go all responses that pass the filter have x-envoy-immediate-health-check-fail. Counters `ok`, `failed`. On the list of the `http` block it also answers without a route.",
		Example: `filter "health_check" "lb" {
  path     = "/healthz"
  clusters = [{ cluster = cluster.api, min_healthy = "50%" }]
}`,
		Attrs: []Attr{
			{Name: "path", Kind: String, Required: true, MaxLen: 1024, Doc: "the path, without a query."},
			{Name: "pass_through", Kind: Bool, Default: false, Doc: "the upstream answers, except while the proxy is about to go."},
			{Name: "cache_time", Kind: Duration, Min: 1, Max: hour, DefaultDoc: "each check is passed on", Doc: "with pass_through: the status of the upstream's answer (and x-envoy-degraded) serves all checks for so long."},
			{
				Name: "clusters", Kind: Records, MaxLen: 100, DefaultDoc: "none", Doc: "clusters that need healthy hosts.",
				Fields: []Attr{
					{Name: "cluster", Kind: Reference, Refers: "cluster", Required: true, Doc: "the cluster."},
					{Name: "min_healthy", Kind: Percent, Default: "100%", Doc: "share of its hosts."},
				},
			},
		},
		Blocks: []Nested{{Block: matchOf("Only requests that meet all of this are health checks.")}},
	}
}

func decompressFilterBlock() *Block {
	return &Block{
		Kind: "decompress",
		Doc: "Decompresses the bodies of requests, for upstreams that cannot, and of responses, for clients that do not accept them as they are (Envoy's decompressor). A body is decompressed as it comes, and its sender waits where the other side does not keep up. " +
			"One that breaks a bound is answered 413, a response 502; one that is malformed 400 or 502, details `decompression_failed`; where 128 bodies of a worker are being decompressed, a further one of more than 1 MiB 503, details `decompression_overflow`. Counters `decompressed`, `not_decompressed`, `errors`, `total_compressed_bytes`, `total_uncompressed_bytes`.",
		Example: "filter \"decompress\" \"uploads\" { max_size = \"10MiB\" }",
		Attrs: []Attr{
			{Name: "requests", Kind: Bool, Default: true, Doc: "bodies of requests."},
			{Name: "responses", Kind: Bool, Default: false, Doc: "bodies of responses."},
			{Name: "codings", Kind: Strings, MaxLen: 3, Default: []string{"gzip", "br", "zstd"}, Doc: "which; others pass as they are."},
			{Name: "max_size", Kind: Size, Default: "16MiB", Min: 1, Max: 1 << 32, Doc: "largest body, decompressed."},
			{Name: "max_ratio", Kind: Int, Default: 100, Min: 2, Max: 100_000, Doc: "decompressed bytes for each that has come, once there are more than 64 KiB: a bomb is more."},
			{Name: "max_compressed", Kind: Size, Default: "16MiB", Min: 1, Max: 1 << 32, Doc: "largest body as it comes."},
		},
	}
}
