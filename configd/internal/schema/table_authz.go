package schema

func extAuthzFilterBlock() *Block {
	return &Block{
		Kind: "ext_authz",
		Doc: "Asks a service whether a request may pass (Envoy's ext_authz): by HTTP, where 200 permits, a 5xx is an error and all else refuses, or by the gRPC API envoy.service.auth.v3. " +
			"A refusal has the service's status, headers and body, flag UAEX, details `ext_authz_denied`; a service that cannot be asked is answered by status_on_error, details `ext_authz_error`, unless failure_mode_allow is set. " +
			"The request waits on its worker meanwhile; the service is a cluster like any other. Counters `ok`, `denied`, `error`, `timeout`, `failure_mode_allowed`, `cached`, `shadow_denied`.",
		Example: `filter "ext_authz" "login" {
  cluster                  = cluster.login
  allowed_headers          = ["cookie", "x-forwarded-*"]
  allowed_upstream_headers = ["x-user"]
  cache {
    key = ["%REQ(AUTHORIZATION)%", "%REQ(COOKIE)%", "%REQ(:METHOD)%", "%REQ(:AUTHORITY)%", "%REQ(:PATH)%"]
    ttl = "5s"
  }
}`,
		Attrs: []Attr{
			{Name: "cluster", Kind: Reference, Refers: "cluster", Required: true, Doc: "the service; one of the gRPC API has protocol = \"http2\"."},
			{Name: "api", Kind: String, Default: "http", Choices: []string{"http", "grpc"}, Doc: "how it is asked."},
			{Name: "path_prefix", Kind: String, MaxLen: 1024, DefaultDoc: "none", Doc: "HTTP: stands before the path that is asked about."},
			{Name: "timeout", Kind: Duration, Default: "200ms", Min: 1, Max: minute, Doc: "until the service has answered."},
			{Name: "failure_mode_allow", Kind: Bool, Default: false, Doc: "a request passes when the service cannot be asked."},
			{Name: "failure_mode_allow_header_add", Kind: Bool, Default: false, Doc: "such a request has x-envoy-auth-failure-mode-allowed: true."},
			{Name: "status_on_error", Kind: Int, Default: 403, Min: 400, Max: 599, Doc: "the answer when the service cannot be asked."},
			{Name: "allowed_headers", Kind: Strings, MaxLen: 200, DefaultDoc: "HTTP: authorization alone; gRPC: all", Doc: "headers of the request that the service gets (HTTP: beside authorization): names, names with one \"*\", or \"~\" and a regular expression."},
			{Name: "allowed_upstream_headers", Kind: Strings, MaxLen: 200, DefaultDoc: "none", Doc: "HTTP: headers of the service's 200 that replace those of the request."},
			{Name: "allowed_client_headers", Kind: Strings, MaxLen: 200, DefaultDoc: "all", Doc: "HTTP: headers of a refusal that the client gets."},
			{Name: "allowed_client_headers_on_success", Kind: Strings, MaxLen: 200, DefaultDoc: "none", Doc: "HTTP: headers of the service's 200 that are added to the response."},
			{Name: "enabled", Kind: Percent, Default: "100%", Doc: "share of requests that are asked about; the others pass."},
			{Name: "enforced", Kind: Percent, Default: "100%", Doc: "share of those refused, by the service or for want of its answer, that really are; \"0%\" only counts, in `shadow_denied`. A body that is too large is refused all the same."},
			{Name: "include_peer_certificate", Kind: Bool, Default: false, Doc: "gRPC: the service gets the client's certificate, percent-encoded in PEM. The names in the certificates of both sides it gets anyway."},
			{Name: "context_extensions", Kind: HeaderMap, MaxLen: 50, Doc: "gRPC: of the attributes of every request."},
		},
		Blocks: []Nested{
			{Block: &Block{
				Name: "with_request_body",
				Doc:  "The service gets the request's body, for which the request is held.",
				Attrs: []Attr{
					{Name: "max_request_bytes", Kind: Size, Required: true, Min: 1, Max: 64 << 20, Doc: "the most that it gets; buffer_limit of the listener bounds it too."},
					{Name: "allow_partial_message", Kind: Bool, Default: false, Doc: "a longer body is sent in part; else such a request is answered 413."},
					{Name: "pack_as_bytes", Kind: Bool, Default: false, Doc: "gRPC: in raw_body, for bodies that are no UTF-8."},
				},
			}},
			{Block: &Block{
				Name: "cache",
				Doc:  "Keeps decisions, in each worker. A decision holds for every request with the same inputs: whatever the service looks at must be among them.",
				Attrs: []Attr{
					{Name: "key", Kind: Strings, Required: true, MaxLen: 16, Doc: "the inputs, texts with the operators of access logs."},
					{Name: "ttl", Kind: Duration, Default: "5s", Min: 1, Max: day, Doc: "how long a decision holds."},
					{Name: "max_entries", Kind: Int, Default: 10_000, Min: 1, Max: 1_000_000, Doc: "decisions of one worker; the least recently used goes first."},
				},
			}},
		},
	}
}
