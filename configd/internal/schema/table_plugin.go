package schema

func pluginBlock() *Block {
	return &Block{
		Name: "plugin", Label: "name", Named: true,
		LabelDoc: "Name in references, metrics, logs and `retinue plugin`.",
		Doc: "A filter that runs as a process of its own ([how to write one](../plugins.md)). restartd starts it, proxyd's workers call it. " +
			"It is put to work by `filters` of an `http`, `virtual_host`, `route` or `tcp` block.",
		Example: `plugin "stamp" {
  command  = "header-stamp"
  on_error = "closed"
  timeout  = "10ms"
  config {
    header = "x-stamp"
  }
}`,
		Attrs: []Attr{
			{Name: "command", Kind: String, Required: true, MaxLen: 1024, Doc: "an absolute path, or a name in the plugin directory."},
			{Name: "args", Kind: Strings, MaxLen: 100, Doc: "its arguments."},
			{Name: "on_error", Kind: String, Default: "closed", Choices: []string{"closed", "open"}, Doc: "what happens to a request when the plugin does not answer in time or answers nonsense: \"closed\" is 503, \"open\" goes on without it."},
			{Name: "timeout", Kind: Duration, Default: "10ms", Min: 1, Max: 10 * minute, Doc: "of one call; what it adds to a request at most, for each phase that the plugin asks for. Looked at every 4 ms."},
			{Name: "max_in_flight", Kind: Int, Default: 1024, Min: 1, Max: 65536, Doc: "calls without an answer, for each worker; beyond it on_error holds."},
			{Name: "sha256", Kind: String, MaxLen: 64, DefaultDoc: "any", Doc: "hash of the program, hexadecimal: another one is not started."},
			{Name: "environment", Kind: Strings, MaxLen: 100, Doc: "\"NAME=value\"; of restartd's own environment it gets PATH, HOME, TZ and the locale only."},
			{Name: "memory", Kind: Size, Min: 1 << 20, Max: 1 << 40, DefaultDoc: "no limit", Doc: "data that the process may allocate (RLIMIT_DATA)."},
			{Name: "open_files", Kind: Int, Default: 1024, Min: 16, Max: 1 << 20, Doc: "descriptors that it may open."},
		},
		Blocks: []Nested{{Block: &Block{
			Name: "config", Open: true,
			Doc:     "The plugin's own settings, of any name and type. It says itself what it takes, and restartd checks them before it is put to work.",
			Example: "config {\n  header = \"x-stamp\"\n}",
		}}},
	}
}

// networkFiltersAttr is filters of a tcp block.
func networkFiltersAttr() Attr {
	a := filtersAttr("none")
	a.MaxLen, a.Fields = 1, []Attr{a.Fields[0], a.Fields[2]}
	a.Doc = "a plugin that sees the connection's bytes both ways until it says that it has seen enough: `[plugin.sniff]`, or `{ plugin = plugin.sniff, on_error = \"open\" }`."
	return a
}
