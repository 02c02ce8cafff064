package compile

import (
	"math/big"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
	configv1 "retinue.dev/services/api/config/v1"
)

var balances = map[string]configv1.Balance{
	"round_robin":   configv1.Balance_BALANCE_ROUND_ROBIN,
	"least_request": configv1.Balance_BALANCE_LEAST_REQUEST,
	"random":        configv1.Balance_BALANCE_RANDOM,
	"ring_hash":     configv1.Balance_BALANCE_RING_HASH,
	"maglev":        configv1.Balance_BALANCE_MAGLEV,
}

const millionthsOfPercent = 10_000

// balance compiles how the endpoints of a cluster share its requests. What is not written is left to proxyd's defaults.
func (c *compiler) balance(cl *configv1.Cluster, n *schema.Node) {
	policy := n.Str("balance")
	if n.Has("panic_threshold") {
		share := n.Int("panic_threshold")
		if share%millionthsOfPercent != 0 {
			c.diags.Report(diag.OutOfRange, n.Range("panic_threshold"), "Not a whole percent", "panic_threshold is a whole number of percents.")
		}
		cl.PanicThresholdPercent = proto.Uint32(uint32(share / millionthsOfPercent))
	}
	if n.Has("overprovisioning_factor") {
		cl.OverprovisioningFactor = uint32(n.Int("overprovisioning_factor"))
	}
	cl.FailTrafficOnPanic = n.Bool("fail_traffic_on_panic")
	if cl.HashBalanceFactor = uint32(n.Int("hash_balance_factor")); n.Own("hash_balance_factor") && policy != "ring_hash" && policy != "maglev" && !n.Failed("balance") {
		c.diags.Report(diag.Exclusive, n.Range("hash_balance_factor"), "Settings of another policy", "hash_balance_factor belongs to balance = \"ring_hash\" and \"maglev\"; this cluster's is %q.", policy)
	}
	for _, name := range []string{"ring_hash", "maglev"} {
		if b := n.Child(name); b != nil && policy != name && !n.Failed("balance") {
			c.diags.Report(diag.Exclusive, b.DefRange, "Settings of another policy", "%s belongs to balance = %q; this cluster's is %q.", name, name, policy)
		}
	}
	if b := n.Child("ring_hash"); b != nil {
		cl.RingHash = &configv1.RingHash{MinSize: uint64(b.Int("min_size")), MaxSize: uint64(b.Int("max_size"))}
		if cl.RingHash.MinSize > cl.RingHash.MaxSize {
			c.diags.Report(diag.OutOfRange, b.DefRange, "Floor above ceiling", "min_size is not above max_size.")
		}
	}
	if b := n.Child("maglev"); b != nil {
		size := b.Int("table_size")
		if !big.NewInt(size).ProbablyPrime(0) && !b.Failed("table_size") {
			c.diags.Report(diag.OutOfRange, b.Range("table_size"), "Not a prime", "table_size is a prime, so that every endpoint reaches every place; %d is the next one.", nextPrime(size))
		}
		cl.Maglev = &configv1.Maglev{TableSize: uint32(size)}
	}
	seen := map[string]*schema.Node{}
	for _, b := range n.All("locality") {
		if first := seen[b.Label]; first != nil {
			c.diags.Report(diag.DuplicateName, b.LabelRange, "Name used twice", "There is already a locality %q on %s.", b.Label, schema.Place(first.LabelRange))
			continue
		}
		seen[b.Label] = b
		cl.Localities = append(cl.Localities, &configv1.LocalityWeight{Locality: b.Label, Weight: uint32(b.Int("weight"))})
	}
	if b := n.Child("slow_start"); b != nil {
		if policy == "ring_hash" || policy == "maglev" {
			c.diags.Report(diag.Exclusive, b.DefRange, "Keys cannot warm up", "slow_start is not for balance = %q: a growing weight would move keys all the time.", policy)
		}
		cl.SlowStart = &configv1.SlowStart{WindowMs: b.Int("window"), Aggression: uint32(b.Int("aggression")), MinWeightPercent: uint32(b.Int("min_weight"))}
	}
	for _, b := range n.All("subset") {
		c.within(b, func() { c.selector(cl, b) })
	}
}

func nextPrime(n int64) int64 {
	for n++; !big.NewInt(n).ProbablyPrime(0); n++ {
	}
	return n
}

// selector compiles a subset block.
func (c *compiler) selector(cl *configv1.Cluster, n *schema.Node) {
	s := &configv1.SubsetSelector{Fallback: map[string]configv1.SubsetFallback{
		"any": configv1.SubsetFallback_SUBSET_FALLBACK_ANY, "default": configv1.SubsetFallback_SUBSET_FALLBACK_DEFAULT,
	}[n.Str("fallback")]}
	for _, v := range n.List("keys") {
		key, _ := v.V.(string)
		switch {
		case key == "" || strings.ContainsRune(key, 0):
			c.diags.Report(diag.InvalidName, v.Range, "Invalid key", "%q cannot be a key of metadata.", key)
		case slices.Contains(s.Keys, key):
			c.diags.Report(diag.DuplicateName, v.Range, "Key listed twice", "%s is already in this list.", key)
		default:
			s.Keys = append(s.Keys, key)
		}
	}
	if len(s.Keys) == 0 {
		if n.Has("keys") && len(n.List("keys")) == 0 {
			c.diags.Report(diag.OutOfRange, n.Range("keys"), "No key", "A subset has at least one key.")
		}
		return
	}
	slices.Sort(s.Keys)
	s.DefaultSubset = c.metadata(n.Get("default"))
	switch wants := n.Str("fallback") == "default"; {
	case wants && len(s.DefaultSubset) == 0 && !n.Failed("default"):
		c.diags.Report(diag.MissingAttribute, n.DefRange, "Missing attribute", "fallback = \"default\" needs default = { … }: who is asked then.")
	case !wants && n.Has("default"):
		c.diags.Report(diag.Exclusive, n.Range("default"), "Attributes exclude each other", "default belongs to fallback = \"default\".")
	}
	joined := strings.Join(s.Keys, " ")
	if slices.Contains(c.selectors[cl.Name], joined) {
		c.diags.Report(diag.DuplicateName, n.DefRange, "Subset written twice", "There is already a subset with these keys.")
		return
	}
	c.selectors[cl.Name] = append(c.selectors[cl.Name], joined)
	cl.Subsets = append(cl.Subsets, s)
}

// metadata reads words about an endpoint, sorted by name.
func (c *compiler) metadata(v schema.Value) []*configv1.Metadata {
	pairs, _ := v.V.([]schema.Pair)
	var out []*configv1.Metadata
	for _, p := range pairs {
		name, _ := p.Name.V.(string)
		if name == "" || strings.ContainsRune(name, 0) {
			c.diags.Report(diag.InvalidName, p.Name.Range, "Invalid key", "%q cannot be a key of metadata.", name)
			continue
		}
		if len(p.Values) != 1 {
			c.diags.Report(diag.WrongType, p.Name.Range, "Wrong type", "A key of metadata has one value.")
			continue
		}
		value, _ := p.Values[0].V.(string)
		if strings.ContainsRune(value, 0) {
			c.diags.Report(diag.InvalidValue, p.Values[0].Range, "Invalid value", "Metadata holds no NUL.")
			continue
		}
		out = append(out, &configv1.Metadata{Name: name, Value: value})
	}
	slices.SortFunc(out, func(a, b *configv1.Metadata) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// asked reads the subset that a route asks of a cluster.
func (c *compiler) asked(cluster string, v schema.Value) []*configv1.Metadata {
	list := c.metadata(v)
	if len(list) == 0 || cluster == "" {
		return list
	}
	var keys []string
	for _, m := range list {
		keys = append(keys, m.Name)
	}
	if !slices.Contains(c.selectors[cluster], strings.Join(keys, " ")) {
		c.diags.Report(diag.UnknownReference, v.Range, "No such subset", "Cluster %q has no subset { keys = [\"%s\"] }.", cluster, strings.Join(keys, "\", \""))
	}
	return list
}

// hashOn compiles the hash_on blocks of a route.
func (c *compiler) hashOn(n *schema.Node) []*configv1.HashPolicy {
	var out []*configv1.HashPolicy
	var maker *schema.Node
	for _, b := range n.All("hash_on") {
		c.within(b, func() {
			p := &configv1.HashPolicy{Terminal: b.Bool("terminal")}
			switch b.Label {
			case "header":
				name := strings.ToLower(b.Str("name"))
				if !validToken(name) && !b.Failed("name") && b.Has("name") {
					c.diags.Report(diag.InvalidHeader, b.Range("name"), "Invalid header name", "%q is not a header name.", b.Str("name"))
				}
				p.Kind = &configv1.HashPolicy_Header{Header: name}
			case "cookie":
				cookie := &configv1.HashCookie{Path: b.Str("path")}
				if b.Has("name") {
					cookie.Name, _ = c.fieldName("cookie", b.Get("name"))
				}
				if reason, _ := invalidPath(cookie.Path); reason != "" || strings.ContainsAny(cookie.Path, ";,") {
					c.diags.Report(diag.InvalidTarget, b.Range("path"), "Invalid path", "%q cannot be the path of a cookie.", cookie.Path)
				}
				if b.Has("ttl") {
					cookie.TtlMs = proto.Int64(b.Int("ttl"))
					if maker != nil {
						c.diags.Report(diag.Exclusive, b.Range("ttl"), "Two cookies", "Clients are given one cookie; the first is on %s.", schema.Place(maker.DefRange))
					}
					maker = b
				}
				p.Kind = &configv1.HashPolicy_Cookie{Cookie: cookie}
			case "source":
				p.Kind = &configv1.HashPolicy_Source{Source: true}
			case "query":
				name := ""
				if b.Has("name") {
					name, _ = c.fieldName("parameter", b.Get("name"))
				}
				p.Kind = &configv1.HashPolicy_Query{Query: name}
			}
			out = append(out, p)
		})
	}
	return out
}
