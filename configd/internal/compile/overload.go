package compile

import (
	"github.com/hashicorp/hcl/v2"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// overloadActions are the actions in the order of their numbers.
var overloadActions = []struct {
	name string
	kind configv1.OverloadAction_Kind
}{
	{"disable_http_keepalive", configv1.OverloadAction_KIND_DISABLE_HTTP_KEEPALIVE},
	{"stop_accepting_requests", configv1.OverloadAction_KIND_STOP_ACCEPTING_REQUESTS},
	{"reject_incoming_connections", configv1.OverloadAction_KIND_REJECT_INCOMING_CONNECTIONS},
	{"reset_high_memory_stream", configv1.OverloadAction_KIND_RESET_HIGH_MEMORY_STREAM},
	{"reduce_timeouts", configv1.OverloadAction_KIND_REDUCE_TIMEOUTS},
	{"shrink_heap", configv1.OverloadAction_KIND_SHRINK_HEAP},
}

// overload compiles the block; every action that is not written has its defaults.
func (c *compiler) overload(n *schema.Node) *configv1.Overload {
	o := &configv1.Overload{RefreshIntervalMs: n.Int("refresh_interval"), MaxMemoryBytes: uint64(n.Int("max_memory"))}
	written := map[string]*schema.Node{}
	for _, a := range n.All("action") {
		if first := written[a.Label]; first != nil {
			c.diags.Report(diag.Repeated, a.DefRange, "Action written twice", "%q is already on %s.", a.Label, schema.Place(first.DefRange))
			continue
		}
		written[a.Label] = a
	}
	for _, action := range overloadActions {
		a := written[action.name]
		if a == nil {
			a = c.dec.SyntheticKind("action", action.name, hcl.Range{})
		}
		made := &configv1.OverloadAction{
			Kind: action.kind, Memory: uint32(a.Int("memory")), Descriptors: uint32(a.Int("descriptors")), Connections: uint32(a.Int("connections")),
			Scaling: uint32(a.Int("scaling")), Release: uint32(a.Int("release")),
		}
		if made.Kind == configv1.OverloadAction_KIND_REDUCE_TIMEOUTS {
			made.MinScale = uint32(a.Int("min_scale"))
		}
		for _, name := range []string{"memory", "descriptors", "connections"} {
			if share := a.Int(name); a.Own("scaling") && share > 0 && share <= a.Int("scaling") {
				c.diags.Report(diag.OutOfRange, a.Range("scaling"), "Action without a beginning", "scaling is not less than %s: the action would begin with nothing in use.", name)
				break
			}
		}
		o.Actions = append(o.Actions, made)
	}
	return o
}
