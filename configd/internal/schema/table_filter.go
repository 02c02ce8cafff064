package schema

// filterBlock is every built-in filter. A new one is a block in Kinds.
func filterBlock() *Block {
	return &Block{
		Name: FilterKind, Label: "type", NameLabel: "name", Named: true,
		LabelDoc: "What it does, and its name in references, metrics and logs.",
		Doc: "A filter that is built in. It does nothing by itself: the `filters` lists of `http`, `virtual_host` and `route` blocks put it to work as filter.TYPE.NAME, in their order, beside plugins. " +
			"One block that several lists name is one filter with one state.",
		Example: `filter "header" "stamp" {
  response {
    set = { "x-served-by" = "edge" }
  }
}

listener "web" {
  address = ["127.0.0.1:8080"]
  http {
    filters = [filter.header.stamp, plugin.auth]
    virtual_host "shop.example.com" {
      route "/*" { cluster = cluster.shop }
    }
  }
}`,
		Kinds: []*Block{
			headerFilterBlock(),
			ipFilterBlock(),
			rbacFilterBlock(),
			rateLimitFilterBlock(),
			globalRateLimitFilterBlock(),
			corsFilterBlock(),
			faultFilterBlock(),
			basicAuthFilterBlock(),
			bodyLimitFilterBlock(),
			bufferFilterBlock(),
			compressFilterBlock(),
			decompressFilterBlock(),
			healthCheckFilterBlock(),
			extAuthzFilterBlock(),
			jwtFilterBlock(),
		},
	}
}

func headerFilterBlock() *Block {
	return &Block{
		Kind: "header",
		Doc: "Edits headers at its place in the list, so that the filters behind it see the request as edited, and those before it the response (Envoy's header_mutation). " +
			"The `headers` blocks of routes edit last, what the upstream gets.",
		Example: `filter "header" "strip" {
  request {
    remove = ["x-debug"]
  }
}`,
		Blocks: []Nested{
			headerEdits("request", "Edits what the filters behind it and the upstream receive."),
			headerEdits("response", "Edits what the filters before it and the client receive."),
		},
	}
}

// filtersAttr is where filters and plugins are put to work.
func filtersAttr(inherited string) Attr {
	return Attr{
		Name: "filters", Kind: Records, MaxLen: 32, PlainFirst: true, DefaultDoc: inherited,
		Doc: "filters and plugins in the order in which they see a request (they see the response in reverse): `[filter.cors.shop, plugin.auth]`, or `{ plugin = plugin.auth, on_error = \"open\" }` for another fail mode here. The nearest list holds alone; [] is none.",
		Fields: []Attr{
			{Name: "plugin", Kind: Reference, Refers: "plugin", Doc: "a plugin."},
			{Name: "filter", Kind: Reference, Refers: FilterKind, Doc: "a filter."},
			{Name: "on_error", Kind: String, Choices: []string{"closed", "open"}, DefaultDoc: "that of the plugin", Doc: "fail mode of the plugin here."},
		},
	}
}

// addFiltersAttr and removeFiltersAttr change the inherited list instead of replacing it.
func addFiltersAttr() Attr {
	a := filtersAttr("none")
	a.Name = "add_filters"
	a.Doc = "filters and plugins that come behind those of `filters`, written here or inherited."
	return a
}

func removeFiltersAttr() Attr {
	a := filtersAttr("none")
	a.Name, a.Fields = "remove_filters", a.Fields[:2]
	a.Doc = "filters and plugins of the inherited list that do not work here."
	return a
}

// connectionFiltersAttr is filters of a listener or a filter chain.
func connectionFiltersAttr(inherited string) Attr {
	a := filtersAttr(inherited)
	a.Fields = a.Fields[1:2]
	a.Doc = "filters that judge connections before anything else has them, in order, of the types `ip`, `rbac` and `rate_limit`: `[filter.ip.office]`. What they refuse is closed, and counted by the filter. " +
		"The address is that of the PROXY header, where one is expected. Before the TLS handshake, except from the first `rbac` on that asks for certificates; what asks for a request (permissions, headers, routes) no connection meets."
	return a
}
