package schema

// overloadBlock says what the process does when a resource runs short.
func overloadBlock() *Block {
	action := func(kind, doc, memory, descriptors, connections string) *Block {
		return &Block{
			Kind: kind, Doc: doc,
			Example: `action "` + kind + `" { memory = "90%" }`,
			Attrs: []Attr{
				{Name: "memory", Kind: Percent, Default: memory, Doc: "of max_memory; \"0%\" is never."},
				{Name: "descriptors", Kind: Percent, Default: descriptors, Doc: "of the descriptors that the process may have; \"0%\" is never."},
				{Name: "connections", Kind: Percent, Default: connections, Doc: "of max_connections of `runtime`; \"0%\" is never."},
				{Name: "scaling", Kind: Percent, Default: "0%", Doc: "so far below its share a resource begins the action for a few, and for more the nearer it comes; at the share it is for all."},
				{Name: "release", Kind: Percent, Default: "2%", Doc: "so far below its share a resource must fall before the action ends; an action with scaling needs none."},
			},
		}
	}
	reduce := action("reduce_timeouts", "Connections without a request, and requests that stand still, wait for less long; new connections have less time to begin.", "90%", "90%", "90%")
	for i := range reduce.Attrs {
		if reduce.Attrs[i].Name == "scaling" {
			reduce.Attrs[i].Default = "10%"
		}
	}
	reduce.Attrs = append(reduce.Attrs, Attr{Name: "min_scale", Kind: Percent, Default: "10%", Doc: "of these time-outs, which is left at the least."})
	return &Block{
		Name: "overload",
		Doc: "What proxyd does when memory, descriptors or connections run short: Envoy's overload manager. With the block all actions are in force, each with its defaults unless it is written. " +
			"Memory is what a collection of the heap would leave, stacks and what is mapped beside them: garbage counts for nothing.",
		Example: `overload {
  max_memory = "2GiB"
  action "stop_accepting_requests" {
    memory  = "95%"
    scaling = "5%"
  }
}`,
		Attrs: []Attr{
			{Name: "refresh_interval", Kind: Duration, Default: "1s", Min: 50, Max: minute, Doc: "between two measurements."},
			{Name: "max_memory", Kind: Size, Min: 16 << 20, Max: 1 << 46, DefaultDoc: "the control group's memory.max; without one memory is never short", Doc: "what the process may need."},
		},
		Blocks: []Nested{{Many: true, Block: &Block{
			Name: "action", Label: "kind",
			LabelDoc: "Envoy's name: \"disable_http_keepalive\", \"stop_accepting_requests\", \"reject_incoming_connections\", \"reset_high_memory_stream\", \"reduce_timeouts\" or \"shrink_heap\".",
			Doc:      "One thing that is done, and at which share of each resource.",
			Kinds: []*Block{
				action("disable_http_keepalive", "Responses end their connections; HTTP/2 is asked to leave by GOAWAY.", "85%", "85%", "90%"),
				action("stop_accepting_requests", "Requests are answered 503 with x-envoy-overloaded, flag OM.", "95%", "0%", "0%"),
				action("reject_incoming_connections", "Connections are closed as soon as they are accepted.", "95%", "95%", "0%"),
				action("reset_high_memory_stream", "Of each worker's requests those that hold most memory are reset, 16 in an interval at the most, flag OM.", "98%", "0%", "0%"),
				reduce,
				action("shrink_heap", "Garbage is collected and memory goes back to the system, every 10 seconds while it lasts.", "90%", "0%", "0%"),
			},
		}}},
	}
}
