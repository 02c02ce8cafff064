package compile

import (
	"github.com/hashicorp/hcl/v2"
	"google.golang.org/protobuf/proto"

	configv1 "retinue.dev/services/api/config/v1"

	"retinue.dev/configd/internal/diag"
	"retinue.dev/configd/internal/schema"
)

func (c *compiler) cluster(n *schema.Node) {
	c.objects++
	cl := c.clusterSettings(n.Label, n)
	d := n.Child("discovery")
	switch {
	case d != nil && n.Own("endpoints"):
		c.diags.Report(diag.Exclusive, d.DefRange, "Endpoints twice", "The endpoints of a cluster are written out or found: write endpoints or discovery.")
	case d != nil:
		c.within(d, func() { cl.Discovered, cl.Discovery = true, c.discovery(d) })
	case !n.Has("endpoints") && !n.Failed("endpoints") && !n.Reserved():
		c.diags.Report(diag.MissingAttribute, n.DefRange, "Missing attribute", "%s needs endpoints = [ … ] or a discovery block: where requests go.", n.Title())
	}
	c.endpoints(cl, n.List("endpoints"), func(v schema.Value) (schema.Value, *configv1.Endpoint) {
		rec, _ := v.V.(schema.Record)
		weight, _ := rec.Get("weight").V.(int64)
		priority, _ := rec.Get("priority").V.(int64)
		locality, _ := rec.Get("locality").V.(string)
		return rec.Get("address"), &configv1.Endpoint{Weight: uint32(weight), Priority: uint32(priority), Locality: locality, Metadata: c.metadata(rec.Get("metadata"))}
	}, n.Range("endpoints"), n.Failed("endpoints"))
	c.out.Add(&configv1.Object{Kind: "cluster", Name: n.Label, Body: &configv1.Object_Cluster{Cluster: cl}}, c.place(n.DefRange))
	c.mark("cluster", n.Label, n)
	c.markBlocks("cluster", n.Label, n)
}

// clusterSettings compiles everything but the endpoints.
func (c *compiler) clusterSettings(name string, n *schema.Node) *configv1.Cluster {
	b := n.Child("circuit_breaker")
	if b == nil {
		b = c.dec.Synthetic("circuit_breaker", n.DefRange)
	}
	cl := &configv1.Cluster{
		Tls: c.upstreamTLS(n.Child("tls")), ProxyProtocol: n.Str("proxy_protocol"),
		HealthCheck: c.healthCheck(n), OutlierDetection: c.outlierDetection(n.Child("outlier_detection")),
		Http2: c.http2(n.Child("http2")),
		Name:  name, Balance: balances[n.Str("balance")], Protocol: n.Str("protocol"),
		ConnectTimeoutMs: n.Int("connect_timeout"), IdleTimeoutMs: n.Int("idle_timeout"),
		MaxRequestsPerConnection: uint32(n.Int("max_requests_per_connection")), PerConnectionBufferLimitBytes: uint32(n.Int("buffer_limit")),
		CircuitBreaker: c.circuitBreaker(b),
	}
	if high := b.Child("high"); high != nil {
		cl.CircuitBreakerHigh = c.circuitBreaker(high)
		c.out.Mark("cluster", name, "circuit_breaker.high", c.place(high.DefRange))
	}
	cl.PreconnectPercent = uint32(n.Int("preconnect_ratio"))
	cl.HeaderCase = c.headerCase(n.List("header_case"))
	c.balance(cl, n)
	c.http1[name] = cl.GetProtocol() == "http1" || cl.GetProtocol() == "auto" && cl.GetTls() == nil
	return cl
}

func (c *compiler) circuitBreaker(b *schema.Node) *configv1.CircuitBreaker {
	out := &configv1.CircuitBreaker{
		MaxConnections: uint32(b.Int("max_connections")), MaxPendingRequests: proto.Uint32(uint32(b.Int("max_pending_requests"))),
		MaxRequests: uint32(b.Int("max_requests")), MaxRetries: proto.Uint32(uint32(b.Int("max_retries"))),
		RetryBudgetPercent: uint32(b.Int("retry_budget")), TrackRemaining: b.Bool("track_remaining"),
	}
	if b.Has("min_retry_concurrency") {
		out.MinRetryConcurrency = proto.Uint32(uint32(b.Int("min_retry_concurrency")))
		if out.RetryBudgetPercent == 0 {
			c.diags.Report(diag.NoEffect, b.Range("min_retry_concurrency"), "No budget", "min_retry_concurrency is a part of retry_budget; without one max_retries is the limit.")
		}
	}
	return out
}

func (c *compiler) endpoints(cl *configv1.Cluster, list []schema.Value, read func(schema.Value) (schema.Value, *configv1.Endpoint), at hcl.Range, broken bool) {
	if list != nil && len(list) == 0 && !broken { // without the attribute it is the table that complains
		c.diags.Report(diag.MissingAttribute, at, "No endpoint", "A cluster has at least one endpoint.")
	}
	seen := map[string]hcl.Range{}
	position := map[string]int{}
	for i, v := range list {
		c.objects++
		where, endpoint := read(v)
		if where.V == nil {
			continue
		}
		address, ok := c.address(where, false)
		if !ok {
			continue
		}
		if first, twice := seen[address]; twice {
			c.diags.Report(diag.DuplicateEndpoint, where.Range, "Endpoint listed twice", "%s is already on %s; their weights are added. Use weight when that is meant.", address, schema.Place(first))
			e := cl.Endpoints[position[address]]
			e.Weight = min(e.Weight+endpoint.Weight, 1_000_000)
			continue
		}
		position[address] = len(cl.Endpoints)
		seen[address] = where.Range
		endpoint.Address = address
		c.out.Mark("cluster", cl.Name, index("endpoints", i), c.place(where.Range))
		cl.Endpoints = append(cl.Endpoints, endpoint)
	}
}
