package schema

import "slices"

// Milliseconds of the bounds below.
const (
	second = 1000
	minute = 60 * second
	hour   = 60 * minute
	day    = 24 * hour
)

const maxInt32 = 1<<31 - 1

// table is the language. A word with Later is refused by name until its release can honour it: adding a feature is
// adding its rows and the lines of the compiler that read them.
func table() *Block {
	listener, cluster := listenerBlock(), clusterBlock()
	return &Block{
		Doc: "A configuration is a file, or a directory of files taken in the order of their names. The order of blocks of different types means nothing.",
		Blocks: []Nested{
			{Block: siteBlock(), Many: true},
			{Block: listener, Many: true},
			{Block: cluster, Many: true},
			{Block: accessLogBlock(), Many: true},
			{Block: statsBlock()},
			{Block: tracingBlock()},
			{Block: runtimeBlock()},
			{Block: overloadBlock()},
			{Block: defaultsBlock(listener, cluster)},
			{Block: variableBlock(), Many: true},
			{Block: localsBlock(), Many: true},
			{Block: certificateBlock(), Many: true},
			{Block: pluginBlock(), Many: true},
			{Block: jwtProviderBlock(), Many: true},
			{Block: filterBlock(), Many: true},
			{Block: later("module", 1), Many: true},
		},
	}
}

func later(name string, labels int) *Block {
	return &Block{Name: name, Later: true, LaterLabels: labels}
}

func siteBlock() *Block {
	return &Block{
		Name: "site", Label: "host", AnyLabel: true,
		LabelDoc: "The host name that is served; \"*\" for every other one.",
		Doc:      "The short form: a virtual host of that name whose requests all go to one cluster. It expands to the listener \"site\" (shared by all sites of the same listen list), a virtual host and a cluster with the host's name.",
		Example: `site "shop.example.com" {
  upstream = ["127.0.0.1:8080"]
}`,
		Attrs: []Attr{
			{Name: "upstream", Kind: Strings, Required: true, Doc: "addresses of the servers, \"127.0.0.1:8080\" or \"unix:/path\"."},
			{Name: "aliases", Kind: Strings, Doc: "further domains of the site."},
			{Name: "listen", Kind: Strings, Default: []string{"0.0.0.0:80"}, Doc: "addresses to listen on."},
			{Name: "access_log", Kind: References, Refers: "access_log", One: true, Doc: "access logs of the site's listener; sites that share one agree on them."},
			{Name: "acme", Kind: Expression, Later: true, Doc: "certificates."},
		},
		Blocks: []Nested{{Block: later("tls", 0)}},
	}
}

func runtimeBlock() *Block {
	return &Block{
		Name: "runtime",
		Doc:  "Settings of the processes.",
		Attrs: []Attr{
			{Name: "workers", Kind: Int, Default: 0, Max: 1024, Doc: "event loops; 0 is the CPUs that the process may use. Takes effect with the next generation."},
			{Name: "max_connections", Kind: Int, Max: maxInt32, DefaultDoc: "derived from the descriptor limit", Doc: "connections of all listeners together."},
			{Name: "shutdown_time", Kind: Duration, Default: "15m", Min: 1, Max: 7 * day, Doc: "longest life of an old generation."},
			{Name: "drain_time", Kind: Duration, Default: "10m", Max: 7 * day, Doc: "over which connections of an old generation are asked to leave."},
			{Name: "probation", Kind: Duration, Default: "10s", Max: hour, Doc: "after an upgrade, while the old generation can take over again."},
		},
		Blocks: []Nested{{Block: drainBlock(), Many: true}},
		Example: `runtime {
  workers = 4
  drain "listener" {
    strategy      = "gradual"
    drain_time    = "1m"
    shutdown_time = "2m"
  }
}`,
	}
}

// drainBlock is one block a cause; defaults of times are the runtime's own.
func drainBlock() *Block {
	kind := func(cause, doc, strategy, shutdown string) *Block {
		return &Block{Kind: cause, Doc: doc, Attrs: []Attr{
			{Name: "strategy", Kind: String, Default: strategy, Choices: []string{"gradual", "immediate"}, Doc: "immediate: every next response ends its connection; gradual: more and more of them over `drain_time`. Neither closes under a request."},
			{Name: "drain_time", Kind: Duration, Max: 7 * day, Min: 1, DefaultDoc: "the runtime's", Doc: "over which connections are asked to leave."},
			{Name: "shutdown_time", Kind: Duration, Max: 7 * day, Min: 1, DefaultDoc: shutdown, Doc: "when what is left is cut, counted and reported."},
		}}
	}
	return &Block{
		Name: "drain", Label: "cause",
		LabelDoc: "What connections leave for.",
		Doc:      "How connections leave, by the cause. Without a block, a cause has the defaults that are shown.",
		Kinds: []*Block{
			kind("upgrade", "An old generation, after the probation of its successor. What can move has moved by then.", "gradual", "the runtime's"),
			kind("listener", "A listener, or one of its filter chains, that left the configuration.", "immediate", "the runtime's drain_time"),
			kind("shutdown", "The end of the suite, on TERM. QUIT waits for the runtime's shutdown_time.", "immediate", "5s"),
		},
	}
}

// defaultsBlock holds the same blocks as the language itself, without what names an object.
func defaultsBlock(listener, cluster *Block) *Block {
	http := *listener.Blocks[0].Block
	http.Blocks = http.Blocks[1:] // no virtual hosts
	bare := func(b *Block, drop ...string) *Block {
		c := *b
		c.Label, c.LabelDoc, c.Named, c.Example = "", "", false, ""
		c.Attrs = nil
		for _, a := range b.Attrs {
			if !slices.Contains(drop, a.Name) {
				c.Attrs = append(c.Attrs, a)
			}
		}
		c.Blocks = slices.DeleteFunc(slices.Clone(b.Blocks), func(n Nested) bool { return slices.Contains(drop, n.Name) })
		return &c
	}
	l := bare(listener, "address")
	l.Blocks = nil
	return &Block{
		Name: "defaults",
		Doc:  "Values for all blocks of a kind that do not write their own.",
		Attrs: []Attr{
			{Name: "profile", Kind: String, Choices: []string{"edge"}, DefaultDoc: "none", Doc: "a documented set of defaults below these: \"edge\" is what a proxy that anybody may reach should have ([list](../edge.md))."},
		},
		Example: `defaults {
  cluster {
    connect_timeout = "1s"
    balance         = "least_request"
  }
}`,
		Blocks: []Nested{
			{Block: bare(cluster, "endpoints", "discovery")},
			{Block: l},
			{Block: &http},
			{Block: bare(listener.Blocks[1].Block, "cluster", "split")},
			{Block: bare(routeDefaults(), "cluster", "split")},
		},
	}
}

func routeDefaults() *Block {
	r := *routeBlock()
	r.Blocks, r.Doc = nil, "Time-outs of all routes."
	r.AnyLabel = false
	return &r
}

func variableBlock() *Block {
	return &Block{
		Name: "variable", Label: "name",
		LabelDoc: "Used as var.NAME.",
		Doc:      "A value that is set from outside, by RETINUE_VAR_<name> in configd's environment; it has the type of the default.",
		Example:  `variable "domain" { default = "shop.example.com" }`,
		Attrs: []Attr{
			{Name: "default", Kind: Expression, DefaultDoc: "none: the variable must be set", Doc: "a value without references."},
			{Name: "description", Kind: String, Doc: "for people."},
		},
	}
}

func localsBlock() *Block {
	return &Block{
		Name: "locals", Open: true,
		Doc:     "Named values, used as local.NAME. They may use variables, references and each other.",
		Example: "locals {\n  office = [\"10.0.0.0/8\", \"192.168.0.0/16\"]\n}",
	}
}
