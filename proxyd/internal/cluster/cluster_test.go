package cluster

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	configv1 "retinue.dev/services/api/config/v1"
)

func endpoints(weights ...uint32) []*configv1.Endpoint {
	var out []*configv1.Endpoint
	for i, w := range weights {
		out = append(out, &configv1.Endpoint{Address: "127.0.0.1:" + string(rune('1'+i)), Weight: w})
	}
	return out
}

// hosts are the members of a cluster as it is configured.
func hosts(t testing.TB, c *configv1.Cluster, list []*configv1.Endpoint) *HostSet {
	t.Helper()
	rule, err := buildRule(c)
	if err != nil {
		t.Fatal(err)
	}
	set, err := buildHosts(rule, list, nil)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func metadata(pairs ...string) (out []*configv1.Metadata) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, &configv1.Metadata{Name: pairs[i], Value: pairs[i+1]})
	}
	return out
}

func TestBalanceFollowsWeights(t *testing.T) {
	const picks = 60000
	for _, test := range []struct {
		name    string
		policy  configv1.Balance
		weights []uint32
		slack   float64 // of the expected share
	}{
		{"round robin, equal", configv1.Balance_BALANCE_ROUND_ROBIN, []uint32{1, 1, 1}, 0.0001},
		{"round robin, weighted", configv1.Balance_BALANCE_ROUND_ROBIN, []uint32{1, 2, 7}, 0.001},
		{"random, equal", configv1.Balance_BALANCE_RANDOM, []uint32{1, 1, 1, 1}, 0.05},
		{"random, weighted", configv1.Balance_BALANCE_RANDOM, []uint32{5, 1, 2}, 0.05},
		{"least request with nothing under way, equal", configv1.Balance_BALANCE_LEAST_REQUEST, []uint32{1, 1, 1}, 0.05},
	} {
		t.Run(test.name, func(t *testing.T) {
			set := hosts(t, &configv1.Cluster{Balance: test.policy}, endpoints(test.weights...))
			var b Balancer
			b.Reset(set, 12345)
			rng := rand.New(rand.NewPCG(1, 2))
			active := make([]uint32, len(test.weights))
			got := make([]int, len(test.weights))
			for range picks {
				i, _ := b.Choose(rng.Uint64(), active, nil)
				got[i]++
			}
			var sum float64
			for _, w := range test.weights {
				sum += float64(w)
			}
			for i, w := range test.weights {
				want := picks * float64(w) / sum
				if math.Abs(float64(got[i])-want) > want*test.slack+1 {
					t.Errorf("host %d of weight %d got %d picks of %d, want about %.0f", i, w, got[i], picks, want)
				}
			}
		})
	}
}

func TestLeastRequestAvoidsTheBusyHost(t *testing.T) {
	set := hosts(t, &configv1.Cluster{Balance: configv1.Balance_BALANCE_LEAST_REQUEST}, endpoints(1, 1))
	var b Balancer
	b.Reset(set, 1)
	rng := rand.New(rand.NewPCG(3, 4))
	for range 1000 {
		if got, _ := b.Choose(rng.Uint64(), []uint32{9, 2}, nil); got != 1 {
			t.Fatalf("chose host %d, which has 9 requests under way, over one with 2", got)
		}
	}
}

func TestWorkersStartAtDifferentHosts(t *testing.T) {
	set := hosts(t, &configv1.Cluster{}, endpoints(1, 1, 1, 1))
	first := map[int]bool{}
	for seed := range uint64(4) {
		var b Balancer
		b.Reset(set, seed)
		i, _ := b.Choose(0, make([]uint32, 4), nil)
		first[i] = true
	}
	if len(first) != 4 {
		t.Errorf("four seeds began at %d different hosts, want 4", len(first))
	}
}

func TestNoHost(t *testing.T) {
	for policy := range configv1.Balance_name {
		var b Balancer
		b.Reset(hosts(t, &configv1.Cluster{Balance: configv1.Balance(policy)}, nil), 7)
		if got, _ := b.Choose(1, nil, nil); got != -1 {
			t.Errorf("%v of an empty set chose %d, want -1", configv1.Balance(policy), got)
		}
	}
}

func TestHostsAreSharedWhereTheyDidNotChange(t *testing.T) {
	c, err := Build(&configv1.Cluster{Endpoints: endpoints(1, 1)}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := c.Hosts
	after, err := c.BuildHosts(endpoints(1, 2))
	if err != nil {
		t.Fatal(err)
	}
	if after.Hosts[0] != before.Hosts[0] {
		t.Error("an unchanged host became another value: its idle connections would be lost")
	}
	if after.Hosts[1] == before.Hosts[1] {
		t.Error("a host with another weight is the same value")
	}
}

func TestBuildRefuses(t *testing.T) {
	for _, test := range []struct{ address, want string }{
		{"localhost:80", "neither IP:port nor unix:/path"},
		{"127.0.0.1", "neither"},
		{"127.0.0.1:0", "port 0"},
		{"unix:", "1 to 107 bytes"},
		{"unix:/" + strings.Repeat("x", 107), "1 to 107 bytes"},
	} {
		_, err := Build(&configv1.Cluster{Name: "c", Endpoints: []*configv1.Endpoint{{Address: test.address}}}, 0, nil)
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "endpoints[0]") {
			t.Errorf("%q: got %v, want an error at endpoints[0] with %q", test.address, err, test.want)
		}
	}
	_, err := Build(&configv1.Cluster{Endpoints: append(endpoints(1), endpoints(1)...)}, 0, nil)
	if err == nil || !strings.Contains(err.Error(), "named twice") {
		t.Errorf("an endpoint named twice: got %v", err)
	}
}

func TestChooseAllocatesNothing(t *testing.T) {
	active := make([]uint32, 3)
	list := endpoints(1, 2, 3)
	list[0].Metadata = metadata("version", "v1")
	list[1].Priority = 1
	ask := &Choice{Hash: 12, Hashed: true, Attempt: 1, Subset: NewSubset(metadata("version", "v1"))}
	for policy := range configv1.Balance_name {
		for _, c := range []*configv1.Cluster{{}, {Subsets: []*configv1.SubsetSelector{{Keys: []string{"version"}}}}} {
			c.Balance = configv1.Balance(policy)
			var b Balancer
			b.Reset(hosts(t, c, list), 7)
			if n := testing.AllocsPerRun(1000, func() { b.Choose(0x123456789abcdef, active, nil); b.Choose(1, active, ask) }); n != 0 {
				t.Errorf("%v: %v allocations a choice", c.Balance, n)
			}
		}
	}
}

func TestLogicalHostIsShared(t *testing.T) {
	named := func(addresses ...string) []*configv1.Endpoint {
		return []*configv1.Endpoint{{Name: "shop.test:443", Address: addresses[0], AdditionalAddresses: addresses[1:]}}
	}
	c, err := Build(&configv1.Cluster{Endpoints: named("192.0.2.1:443", "[2001:db8::1]:443")}, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	h := c.Hosts.Hosts[0]
	if h.Address != "shop.test:443" || h.ServerName() != "shop.test" || h.IP.IsValid() {
		t.Errorf("got %s, server name %s, IP %v", h.Address, h.ServerName(), h.IP)
	}
	before := h.Places()
	if got := fmt.Sprint(*before); got != "[192.0.2.1:443 [2001:db8::1]:443]" {
		t.Errorf("it is at %s", got)
	}
	for _, step := range []struct {
		addresses []string
		same      bool
	}{
		{[]string{"192.0.2.1:443", "[2001:db8::1]:443"}, true},
		{[]string{"[2001:db8::1]:443", "192.0.2.1:443"}, false}, // the order counts
		{[]string{"192.0.2.7:443"}, false},
	} {
		after, err := c.BuildHosts(named(step.addresses...))
		if err != nil {
			t.Fatal(err)
		}
		if after.Hosts[0] != h {
			t.Fatalf("%v: another host: its connections and what is known of it would be lost", step.addresses)
		}
		if same := h.Places() == before; same != step.same {
			t.Errorf("%v: the same list %t, want %t", step.addresses, same, step.same)
		}
		before = h.Places()
	}
	plain, err := c.BuildHosts([]*configv1.Endpoint{{Address: "192.0.2.7:443"}})
	if err != nil || plain.Hosts[0] == h {
		t.Errorf("an endpoint by address is the logical one, error %v", err)
	}
}

func TestBuildRefusesLogicalHosts(t *testing.T) {
	many := make([]string, maxPlaces)
	for i := range many {
		many[i] = fmt.Sprintf("192.0.2.%d:80", i+2)
	}
	for _, test := range []struct {
		endpoint *configv1.Endpoint
		want     string
	}{
		{&configv1.Endpoint{Name: "shop", Address: "192.0.2.1:80"}, "no name:port"},
		{&configv1.Endpoint{Name: ":80", Address: "192.0.2.1:80"}, "no name:port"},
		{&configv1.Endpoint{Name: "shop:80", Address: "unix:/run/shop"}, "only IP addresses"},
		{&configv1.Endpoint{Name: "shop:80", Address: "192.0.2.1:80", AdditionalAddresses: []string{"192.0.2.1:80"}}, "no further IP address"},
		{&configv1.Endpoint{Name: "shop:80", Address: "192.0.2.1:80", AdditionalAddresses: []string{"unix:/run/shop"}}, "no further IP address"},
		{&configv1.Endpoint{Name: "shop:80", Address: "192.0.2.1:80", AdditionalAddresses: []string{"shop:80"}}, "neither IP:port"},
		{&configv1.Endpoint{Name: "shop:80", Address: "192.0.2.1:80", AdditionalAddresses: many}, "at most 16"},
	} {
		_, err := Build(&configv1.Cluster{Endpoints: []*configv1.Endpoint{test.endpoint}}, 0, nil)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: got %v, want an error with %q", test.endpoint, err, test.want)
		}
	}
}

func TestHostHasLabels(t *testing.T) {
	h := &Host{Metadata: []Label{{"canary", "true"}, {"zone", "b"}}}
	for _, test := range []struct {
		labels []Label
		want   bool
	}{
		{nil, true},
		{[]Label{{"canary", "true"}}, true},
		{[]Label{{"zone", "b"}, {"canary", "true"}}, true},
		{[]Label{{"canary", "false"}}, false},
		{[]Label{{"canary", "true"}, {"version", ""}}, false},
	} {
		if got := h.Has(test.labels); got != test.want {
			t.Errorf("%v: %t", test.labels, got)
		}
	}
}
