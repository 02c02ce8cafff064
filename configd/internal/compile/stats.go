package compile

import (
	"net/netip"
	"net/url"
	"path"
	"strings"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

func (c *compiler) stats(n *schema.Node) {
	v := n.Get("listen")
	listen := n.Str("listen")
	if listen != "off" {
		address, ok := c.address(v, true)
		if !ok {
			return
		}
		if strings.HasPrefix(address, "unix:") {
			c.diags.Report(diag.InvalidAddress, v.Range, "Metrics on a unix socket", "Metrics and the dashboard are for browsers and scrapers, which ask by TCP: write \"127.0.0.1:9902\", or \"off\".")
			return
		}
		listen = address
		c.claim(address, v.Range)
		if ap, err := netip.ParseAddrPort(address); err == nil && !ap.Addr().IsLoopback() {
			c.diags.Report(diag.OpenStats, v.Range, "Metrics open to the network", "The metrics and the dashboard have no authentication, and %s is not a loopback address.", ap.Addr())
		}
	}
	body := &configv1.Stats{Listen: listen, MaxSeries: uint32(n.Int("max_series"))}
	seen := map[string]schema.Value{}
	for _, p := range n.All("push") {
		c.within(p, func() {
			push, at := c.push(p)
			if first, twice := seen[p.Label+" "+push.GetAddress()]; twice && at.V != nil {
				c.diags.Report(diag.DuplicateAddress, at.Range, "Receiver named twice", "Values are already pushed there by %s.", schema.Place(first.Range))
			}
			seen[p.Label+" "+push.GetAddress()] = at
			body.Push = append(body.Push, push)
		})
	}
	c.out.Add(&configv1.Object{Kind: "stats", Body: &configv1.Object_Stats{Stats: body}}, c.place(n.DefRange))
	c.mark("stats", "", n)
}

// push returns the receiver and where its address is written.
func (c *compiler) push(n *schema.Node) (*configv1.StatsPush, schema.Value) {
	formats := map[string]configv1.StatsPush_Format{
		"statsd": configv1.StatsPush_FORMAT_STATSD, "dogstatsd": configv1.StatsPush_FORMAT_DOGSTATSD, "otlp": configv1.StatsPush_FORMAT_OTLP,
	}
	p := &configv1.StatsPush{Format: formats[n.Label], IntervalMs: n.Int("interval")}
	if n.Label == "otlp" {
		at := n.Get("endpoint")
		p.Address, p.TimeoutMs = c.otlpEndpoint(at, "/v1/metrics"), n.Int("timeout")
		p.Headers = c.statsLabels(n.Pairs("headers"), func(v schema.Value) bool {
			_, ok := c.headerName(v)
			return ok
		})
		p.Attributes = c.statsLabels(n.Pairs("attributes"), c.labelText)
		return p, at
	}
	at := n.Get("address")
	p.Address, p.Prefix = c.datagramAddress(at), n.Str("prefix")
	if v := n.Get("prefix"); strings.Trim(p.Prefix, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-") != "" {
		c.diags.Report(diag.InvalidValue, v.Range, "Invalid prefix", "%q: letters, digits, dots, dashes and underscores make a StatsD name.", p.Prefix)
	}
	if n.Label == "dogstatsd" {
		p.Attributes = c.statsLabels(n.Pairs("tags"), c.labelText)
	}
	return p, at
}

// datagramAddress checks where StatsD's datagrams go: a name is as good as an address, since statsd resolves it when it sends.
func (c *compiler) datagramAddress(v schema.Value) string {
	s, _ := v.V.(string)
	if v.V == nil {
		return ""
	}
	if file, ok := strings.CutPrefix(s, "unix:"); ok {
		if !path.IsAbs(file) || len(file) > 107 || strings.ContainsRune(file, 0) {
			c.diags.Report(diag.InvalidAddress, v.Range, "Invalid address", "%q: unix: and an absolute path of at most 107 bytes.", s)
		}
		return s
	}
	if !hostPort(s) {
		c.diags.Report(diag.InvalidAddress, v.Range, "Invalid address", "%q is neither \"HOST:PORT\" nor \"unix:/path\".", s)
	}
	return s
}

// hostPort reports whether s is a name or address and a port that can be sent to.
func hostPort(s string) bool {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Port() != 0
	}
	at := strings.LastIndexByte(s, ':')
	if at < 0 || !validDomain(strings.ToLower(s[:at])) || strings.HasPrefix(s, "[") {
		return false
	}
	ap, err := netip.ParseAddrPort("127.0.0.1" + s[at:])
	return err == nil && ap.Port() != 0
}

var otlpPorts = map[string]string{"http": "80", "https": "443", "grpc": "4317", "grpcs": "4317"}

// otlpEndpoint checks an endpoint and gives it a port and, for HTTP, the signal's path where it has none.
func (c *compiler) otlpEndpoint(v schema.Value, signal string) string {
	s, _ := v.V.(string)
	if v.V == nil {
		return ""
	}
	u, err := url.Parse(s)
	if err != nil || otlpPorts[u.Scheme] == "" || u.Host == "" || u.Fragment != "" {
		c.diags.Report(diag.InvalidAddress, v.Range, "Invalid endpoint", "%q: write \"http://HOST:4318\", \"https://HOST%s\", \"grpc://HOST:4317\" or \"grpcs://HOST:4317\".", s, signal)
		return s
	}
	if u.User != nil {
		c.diags.Report(diag.InvalidAddress, v.Range, "Credentials in an endpoint", "A user and password do not belong into the endpoint: write headers = { authorization = … }.")
		return ""
	}
	if u.Port() == "" {
		u.Host += ":" + otlpPorts[u.Scheme]
	}
	if !hostPort(u.Host) {
		c.diags.Report(diag.InvalidAddress, v.Range, "Invalid endpoint", "%q: %q is no host and port.", s, u.Host)
	}
	web := strings.HasPrefix(u.Scheme, "http")
	if !web && (strings.Trim(u.Path, "/") != "" || u.RawQuery != "") {
		c.diags.Report(diag.InvalidAddress, v.Range, "Invalid endpoint", "%q: gRPC has no path.", s)
	}
	switch {
	case !web:
		u.Path = ""
	case u.Path == "" || u.Path == "/":
		u.Path = signal
	}
	return u.String()
}

// labelText refuses what would end a tag or a line of a datagram.
func (c *compiler) labelText(v schema.Value) bool {
	s, _ := v.V.(string)
	if s == "" || len(s) > 200 || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '|' || r == ',' || r == '#' }) {
		c.diags.Report(diag.InvalidValue, v.Range, "Invalid name or value", "%.40q: 1 to 200 bytes without |, comma, # and control characters.", s)
		return false
	}
	return true
}

func (c *compiler) statsLabels(pairs []schema.Pair, name func(schema.Value) bool) []*configv1.StatsLabel {
	var out []*configv1.StatsLabel
	for _, p := range pairs {
		if !name(p.Name) {
			continue
		}
		for _, v := range p.Values {
			if c.plainValue(v) {
				n, _ := p.Name.V.(string)
				value, _ := v.V.(string)
				out = append(out, &configv1.StatsLabel{Name: n, Value: value})
			}
		}
	}
	return out
}
