package compile

import (
	"slices"
	"strings"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// upgrades checks names of protocols that Upgrade may switch to. within is what a route may choose from; nil: anything.
func (c *compiler) upgrades(list []schema.Value, within []string) (out []string) {
	for _, v := range list {
		u, _ := v.V.(string)
		name := strings.ToLower(u)
		valid := u != ""
		for i := range len(u) {
			valid = valid && (tokenChar(u[i]) || u[i] == '/')
		}
		switch {
		case !valid:
			c.diags.Report(diag.InvalidValue, v.Range, "Invalid protocol", "%q is not a protocol name such as \"websocket\".", u)
		case name == "h2c":
			c.diags.Report(diag.InvalidValue, v.Range, "Invalid protocol", "An upgrade to h2c cannot be tunnelled: what goes through it would be seen by no filter.")
		case within != nil && !slices.Contains(within, name) && (name == "connect" || !slices.Contains(within, "*")):
			c.diags.Report(diag.InvalidValue, v.Range, "Upgrade not allowed", "The http block does not allow %q: a route chooses among its upgrades, which are %s.", u, names(within))
		default:
			out = append(out, name)
		}
	}
	return out
}

func names(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}
