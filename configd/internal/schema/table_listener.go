package schema

func listenerBlock() *Block {
	return &Block{
		Name: "listener", Label: "name", Named: true,
		LabelDoc: "Name in metrics, logs and status.",
		Doc:      "Addresses to listen on and what happens to their connections: one `http` or one `tcp` block, or several `filter_chain` blocks to choose from.",
		Example: `listener "web" {
  address = ["0.0.0.0:10000", "[::]:10000"]
  http {
    virtual_host "all" {
      domains = ["*"]
      route "/*" { cluster = cluster.web }
    }
  }
}`,
		Attrs: []Attr{
			{Name: "address", Kind: Strings, Required: true, MaxLen: 1000, Doc: "\"IP:PORT\", \"[IPv6]:PORT\" or \"unix:/path\"."},
			{Name: "unix_mode", Kind: String, Default: "0666", MaxLen: 5, Doc: "file mode of unix sockets, octal."},
			{Name: "max_connections", Kind: Int, Max: maxInt32, DefaultDoc: "no limit of its own", Doc: "connections at a time; more are closed at once."},
			{Name: "buffer_limit", Kind: Size, Default: "1MiB", Min: 4 << 10, Max: 1 << 30, Doc: "bytes buffered for one connection each way before the other side is no longer read (soft)."},
			{Name: "backlog", Kind: Int, Max: 1 << 20, DefaultDoc: "the system's somaxconn", Doc: "connections that wait to be accepted."},
			{Name: "filters_timeout", Kind: Duration, Default: "15s", Min: 100, Max: hour, Doc: "until the PROXY header and what a filter chain matches by have arrived."},
			{Name: "defer_accept", Kind: Bool, Default: false, Doc: "accept when the first bytes are there (TCP_DEFER_ACCEPT)."},
			connectionFiltersAttr("none"),
		},
		Blocks: []Nested{
			{Block: httpBlock()},
			{Block: tcpBlock()},
			{Block: tlsBlock()},
			{Block: filterChainBlock(), Many: true},
			{Block: proxyProtocolBlock()},
		},
	}
}

func httpBlock() *Block {
	return &Block{
		Name: "http",
		Doc:  "HTTP on the listener's connections.",
		Attrs: []Attr{
			{Name: "access_log", Kind: References, Refers: "access_log", One: true, MaxLen: 16, Doc: "one access log or a list of them."},
			{Name: "stat_prefix", Kind: String, MaxLen: 128, DefaultDoc: "the listener's name", Doc: "value of the metrics' label listener."},
			{Name: "use_remote_address", Kind: Bool, Default: true, Doc: "append the peer's address to X-Forwarded-For and trust no header about it."},
			{Name: "internal_networks", Kind: Strings, MaxLen: 1000, DefaultDoc: "none", Doc: "networks of clients whose x-envoy-* request headers hold (x-envoy-retry-on, -retry-grpc-on, -max-retries, -retriable-status-codes, -retriable-header-names, -hedge-on-per-try-timeout, -upstream-rq-timeout-ms, -upstream-rq-per-try-timeout-ms); everybody else's are removed."},
			{Name: "envoy_headers", Kind: Bool, Default: false, Doc: "upstreams are told how long the request may take (x-envoy-expected-rq-timeout-ms) and the path before a rewrite (x-envoy-original-path), clients how many milliseconds the upstream took (x-envoy-upstream-service-time). Envoy does it unless suppress_envoy_headers is set."},
			{Name: "xff_num_trusted_hops", Kind: Int, Default: 0, Max: 100, Doc: "proxies in front whose X-Forwarded-For entries are trusted."},
			{Name: "generate_request_id", Kind: Bool, Default: true, Doc: "give each request an X-Request-Id."},
			{Name: "preserve_external_request_id", Kind: Bool, Default: true, Doc: "keep the X-Request-Id that a client sent."},
			{
				Name: "forward_client_cert", Kind: String, Default: "sanitize", Choices: []string{"sanitize", "forward_only", "append_forward", "sanitize_set", "always_forward_only"},
				Doc: "X-Forwarded-Client-Cert: taken off; kept from clients that have shown a certificate; kept with the client's certificate behind it; replaced by the client's certificate; kept from everybody. Envoy's names.",
			},
			{Name: "client_cert_details", Kind: Strings, MaxLen: 5, DefaultDoc: "the hash alone", Doc: "what that header says of a certificate besides its hash and who says so (By, the URIs of the listener's certificate): subject, uri, dns, cert, chain."},
			{Name: "via", Kind: String, MaxLen: 128, DefaultDoc: "no header", Doc: "name for the Via header."},
			{Name: "server_name", Kind: String, MaxLen: 128, DefaultDoc: "\"retinue\"", Doc: "Server header of answers made by the proxy itself."},
			headerCaseAttr("answers to HTTP/1 clients that compare names letter by letter"),
			{
				Name: "half_close", Kind: Bool, Default: true,
				Doc: "an HTTP/1 client that ends its half of the connection behind its request still gets the answer; false: it is taken for gone and the request is given up, as Envoy and nginx do. Tunnels keep their halves either way.",
			},
			{Name: "upgrades", Kind: Strings, Default: []string{"websocket"}, MaxLen: 16, Doc: "protocols that Upgrade may switch to; \"*\" is any, [] is none."},
			filtersAttr("none"),
		},
		Blocks: []Nested{
			{Block: virtualHostBlock(), Many: true, Required: true},
			{Block: timeoutsBlock()},
			{Block: limitsBlock()},
			{Block: http2Block("with clients")},
			{Block: pathBlock()},
			{Block: headersBlock()},
			{Block: httpTracingBlock()},
		},
	}
}

// headerCaseAttr is for peers that take the names of headers for something that has a case.
func headerCaseAttr(of string) Attr {
	return Attr{
		Name: "header_case", Kind: Strings, MaxLen: 64, DefaultDoc: "canonical, `X-Api-Key`",
		Doc: "spelling of these headers in " + of + ": [\"SOAPAction\", \"X-API-KEY\"]. HTTP/2 has lower case alone.",
	}
}

func timeoutsBlock() *Block {
	return &Block{
		Name: "timeouts",
		Doc:  "Time-outs of an `http` block; \"0\" switches one off.",
		Attrs: []Attr{
			{Name: "idle", Kind: Duration, Default: "1h", Min: 1, Max: 30 * day, ZeroOff: true, Doc: "connection without requests."},
			{Name: "request_headers", Kind: Duration, Default: "10s", Min: 1, Max: day, ZeroOff: true, Doc: "first byte of a request to the end of its headers."},
			{Name: "request", Kind: Duration, Min: 1, Max: day, ZeroOff: true, DefaultDoc: "off", Doc: "whole request received."},
			{Name: "stream_idle", Kind: Duration, Default: "5m", Min: 1, Max: 30 * day, ZeroOff: true, Doc: "request or response without progress."},
			{Name: "max_stream_duration", Kind: Duration, Min: 1, Max: 30 * day, ZeroOff: true, DefaultDoc: "off", Doc: "whole life of a request."},
			{Name: "max_connection_duration", Kind: Duration, Min: 1, Max: 30 * day, ZeroOff: true, DefaultDoc: "off", Doc: "a connection is drained when it is this old."},
			{Name: "drain", Kind: Duration, Default: "5s", Min: 1, Max: hour, ZeroOff: true, Doc: "between announcing the end of a connection and closing it."},
			{Name: "delayed_close", Kind: Duration, Default: "1s", Min: 1, Max: minute, ZeroOff: true, Doc: "wait for the peer to close after an error answer."},
		},
	}
}

func limitsBlock() *Block {
	return &Block{
		Name: "limits",
		Doc:  "Limits of an `http` block.",
		Attrs: []Attr{
			{Name: "request_headers", Kind: Size, Default: "60KiB", Min: 1 << 10, Max: 1 << 20, Doc: "all headers of a request: 431 above."},
			{Name: "headers_count", Kind: Int, Default: 100, Min: 1, Max: 10_000, Doc: "number of headers of a request: 431 above."},
			{Name: "request_line", Kind: Size, Default: "16KiB", Min: 256, Max: 1 << 20, Doc: "method and target: 414 above."},
			{Name: "requests_per_connection", Kind: Int, Max: maxInt32, DefaultDoc: "no limit", Doc: "the connection is closed after so many."},
		},
	}
}

func tcpBlock() *Block {
	return &Block{
		Name: "tcp",
		Doc:  "Bytes to a cluster and back. One of `cluster` and `split` is written.",
		Attrs: []Attr{
			{Name: "cluster", Kind: Reference, Refers: "cluster", Doc: "where connections go."},
			splitAttr(),
			{Name: "idle_timeout", Kind: Duration, Default: "1h", Min: 1, Max: 30 * day, ZeroOff: true, Doc: "connection without bytes either way; \"0\" is off."},
			{Name: "max_connect_attempts", Kind: Int, Default: 1, Min: 1, Max: 100, Doc: "endpoints tried before the client is closed."},
			{Name: "hash_on", Kind: String, Choices: []string{"source"}, DefaultDoc: "nothing", Doc: "key of clusters with `balance` \"ring_hash\" or \"maglev\": the client's address."},
			networkFiltersAttr(),
			{Name: "access_log", Kind: References, Refers: "access_log", One: true, MaxLen: 16, Doc: "one access log or a list of them."},
			{Name: "stat_prefix", Kind: String, MaxLen: 128, DefaultDoc: "the listener's name", Doc: "value of the metrics' label listener."},
		},
	}
}

func pathBlock() *Block {
	return &Block{
		Name: "path",
		Doc: "How the one normal form of a path is made, which routes, filters and the upstream all see. Always: percent-encoded unreserved characters are decoded, \".\" and \"..\" resolved, " +
			"other encodings written in upper case; a path that servers would read differently (a broken encoding, an encoded NUL, a backslash, \"..;x\") is answered 400.",
		Attrs: []Attr{
			{Name: "merge_slashes", Kind: Bool, Default: false, Doc: "\"//a///b\" is \"/a/b\"."},
			{
				Name: "escaped_slashes", Kind: String, Default: "keep", Choices: []string{"keep", "reject", "redirect", "decode"},
				Doc: "what %2F and %5C are: a part of a segment, a 400, a slash that the client is redirected (307) to, or a slash.",
			},
		},
	}
}
