package cluster

import (
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
