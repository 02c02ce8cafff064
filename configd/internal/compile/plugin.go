package compile

import (
	"encoding/hex"
	"encoding/json"
	"path"
	"regexp"
	"strings"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"
	ctyjson "github.com/zclconf/go-cty/cty/json"

	"retinue.dev/libs/settings"
	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

// maxPluginConfig bounds a plugin's settings as JSON, in bytes.
const maxPluginConfig = 1 << 20

var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// plugin compiles a plugin block. What its config may hold only the plugin knows: restartd asks it, and a refusal comes back with the
// field, whose place is noted here.
func (c *compiler) plugin(n *schema.Node) {
	c.objects++
	errors := c.diags.Errors()
	p := &configv1.Plugin{
		Name: n.Label, Command: n.Str("command"), OnError: onError(n.Str("on_error")), TimeoutMs: n.Int("timeout"),
		MaxInFlight: uint32(n.Int("max_in_flight")), Sha256: strings.ToLower(n.Str("sha256")), MemoryBytes: uint64(n.Int("memory")),
		OpenFiles: uint32(n.Int("open_files")), Source: c.source(n.DefRange),
	}
	if n.Has("command") {
		bare := p.Command != "" && p.Command != "." && p.Command != ".." && !strings.ContainsAny(p.Command, "/\x00")
		if !bare && (!path.IsAbs(p.Command) || strings.ContainsRune(p.Command, 0)) {
			c.diags.Report(diag.InvalidPlugin, n.Range("command"), "Invalid command", "%q is neither an absolute path nor the name of a file in the plugin directory.", p.Command)
		}
	}
	if n.Has("sha256") {
		if b, err := hex.DecodeString(p.Sha256); err != nil || len(b) != 32 {
			c.diags.Report(diag.InvalidPlugin, n.Range("sha256"), "Invalid hash", "A SHA-256 has 64 hexadecimal digits, as sha256sum prints them.")
		}
	}
	for _, v := range n.List("args") {
		s, _ := v.V.(string)
		if strings.ContainsRune(s, 0) {
			c.diags.Report(diag.InvalidPlugin, v.Range, "Invalid argument", "An argument holds no NUL.")
		}
		p.Args = append(p.Args, s)
	}
	for _, v := range n.List("environment") {
		s, _ := v.V.(string)
		if name, _, ok := strings.Cut(s, "="); !ok || !variableName.MatchString(name) || strings.ContainsRune(s, 0) {
			c.diags.Report(diag.InvalidPlugin, v.Range, "Invalid variable", "A variable is written \"NAME=value\".")
		}
		p.Environment = append(p.Environment, s)
	}
	c.out.Add(&configv1.Object{Kind: "plugin", Name: n.Label, Body: &configv1.Object_Plugin{Plugin: p}}, c.place(n.DefRange))
	c.mark("plugin", n.Label, n)
	if b := n.Child("config"); b != nil {
		c.within(b, func() { p.ConfigJson = c.pluginConfig(n.Label, b) })
	}
	if c.schemas != nil && c.diags.Errors() == errors {
		c.pluginSettings(n, p)
	}
}

// pluginSettings compares the settings with what the plugin takes, as far as that is known.
func (c *compiler) pluginSettings(n *schema.Node, p *configv1.Plugin) {
	at := n.DefRange
	places := map[string]hcl.Range{}
	if b := n.Child("config"); b != nil {
		at = b.DefRange
		for _, a := range b.Open {
			places[a.Name] = a.Expr.Range()
		}
	}
	s, err := c.schemas(p)
	if err != nil {
		c.diags.Report(diag.UnknownSettings, at, "Settings not checked", "plugin %q: %v.", p.Name, err)
		return
	}
	for _, problem := range settings.Check(s, p.ConfigJson) {
		place, ok := places[problem.GetField()]
		if !ok {
			place = at
		}
		c.diags.Report(diag.InvalidSettings, place, "Settings that the plugin does not take", "%s.", strings.TrimSuffix(problem.GetMessage(), ": "))
	}
}

// pluginConfig evaluates the settings into one JSON object, the same bytes for the same values.
func (c *compiler) pluginConfig(name string, n *schema.Node) []byte {
	c.out.Mark("plugin", name, "config", c.place(n.DefRange))
	settings := map[string]json.RawMessage{}
	size := 0
	for _, a := range n.Open {
		v, ok := c.scope.Value(a.Expr)
		if !ok {
			continue
		}
		c.out.Mark("plugin", name, "config."+a.Name, c.place(a.Expr.Range()))
		if hasReference(v) {
			c.diags.Report(diag.WrongType, a.Expr.Range(), "Wrong type", "%s holds a reference to another object, which means nothing to a plugin.", a.Name)
			continue
		}
		b, err := ctyjson.Marshal(v, v.Type())
		if err != nil {
			c.diags.Report(diag.WrongType, a.Expr.Range(), "Wrong type", "%s cannot be given to a plugin: %v", a.Name, err)
			continue
		}
		size += len(b)
		settings[a.Name] = b
	}
	if size > maxPluginConfig {
		c.diags.Report(diag.OutOfRange, n.DefRange, "Settings too large", "The settings of a plugin have at most %d bytes as JSON; these have %d.", maxPluginConfig, size)
		return nil
	}
	b, err := json.Marshal(settings) // keys sorted
	if err != nil {
		c.diags.Report(diag.Evaluation, n.DefRange, "Settings cannot be encoded", "%v", err)
	}
	return b
}

func hasReference(v cty.Value) (found bool) {
	_ = cty.Walk(v, func(_ cty.Path, v cty.Value) (bool, error) {
		found = found || v.Type().Equals(schema.RefType)
		return !found, nil
	})
	return found
}

func onError(s string) configv1.OnError {
	switch s {
	case "closed":
		return configv1.OnError_ON_ERROR_CLOSED
	case "open":
		return configv1.OnError_ON_ERROR_OPEN
	}
	return configv1.OnError_ON_ERROR_UNSPECIFIED
}
