package route

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/header"
	configv1 "retinue.dev/services/api/config/v1"
)

// shape is a configuration of any size, and a request for each of its parts. Numbers are five digits wherever they stand, so that
// names are as long in a small one as in a large one.
type shape struct {
	name       string
	hosts      func(n int) []*configv1.VirtualHost
	host, path func(k int) string
}

func shapes() []shape {
	return []shape{
		{
			"routes", func(n int) []*configv1.VirtualHost {
				var routes []*configv1.Route
				for k := range n {
					if k%2 == 0 {
						routes = append(routes, prefix(fmt.Sprintf("/service-%05d/", k)))
					} else {
						routes = append(routes, exact(fmt.Sprintf("/page-%05d", k), "GET", "HEAD"))
					}
				}
				return []*configv1.VirtualHost{vhost("v", []string{"*.example.com", "example.com"}, append(routes, prefix("/"))...)}
			},
			func(int) string { return "www.example.com" },
			func(k int) string {
				if k%2 == 0 {
					return fmt.Sprintf("/service-%05d/some/thing?q=1", k)
				}
				return fmt.Sprintf("/page-%05d", k)
			},
		},
		{ // a third of them wildcards
			"hosts", func(n int) (hosts []*configv1.VirtualHost) {
				for k := range n {
					domain := fmt.Sprintf("host-%05d.example.com", k)
					if k%3 == 0 {
						domain = "*." + domain
					}
					hosts = append(hosts, vhost(domain, []string{domain}, prefix("/api/"), prefix("/")))
				}
				return hosts
			},
			func(k int) string {
				if k%3 == 0 {
					return fmt.Sprintf("www.host-%05d.example.com", k)
				}
				return fmt.Sprintf("host-%05d.example.com", k)
			},
			func(int) string { return "/api/x" },
		},
		{
			"templates", func(n int) []*configv1.VirtualHost {
				var routes []*configv1.Route
				for k := range n {
					routes = append(routes, template(fmt.Sprintf([]string{"/{version}/things-%05d/{id}", "/{tenant}/*/service-%05d/**"}[k%2], k)))
				}
				return []*configv1.VirtualHost{vhost("v", []string{"*"}, routes...)}
			},
			func(int) string { return "a" },
			func(k int) string {
				return fmt.Sprintf([]string{"/v2/things-%05d/12", "/acme/x/service-%05d/a/b"}[k%2], k)
			},
		},
		{
			"expressions", func(n int) []*configv1.VirtualHost {
				var routes []*configv1.Route
				for k := range n {
					routes = append(routes, regex(fmt.Sprintf("/users-%05d/[0-9]+", k)))
				}
				return []*configv1.VirtualHost{vhost("v", []string{"*"}, routes...)}
			},
			func(int) string { return "a" },
			func(k int) string { return fmt.Sprintf("/users-%05d/%d", k, 12) },
		},
	}
}

// traffic is a table with its requests, which lie in one short piece of memory, as those of a proxy lie in its buffers: what a
// lookup misses in the caches is the table.
type traffic struct {
	table *Table
	texts []string // authority and path of each, one after the other
	mid   []uint8
	buf   [128]byte
	ask   Request
}

func (s shape) traffic(t testing.TB, n int) *traffic {
	table, err := Compile(s.hosts(n))
	if err != nil {
		t.Fatal(err)
	}
	x := &traffic{table: table, ask: Request{ID: header.MethodGet, Method: []byte("GET"), Fields: &header.Block{}}}
	var all []byte
	var ends []int
	for k := range n {
		host, path := s.host(k), s.path(k)
		all = append(append(all, host...), path...)
		x.mid, ends = append(x.mid, uint8(len(host))), append(ends, len(all))
	}
	joined, from := string(all), 0
	for _, end := range ends {
		x.texts, from = append(x.texts, joined[from:end]), end
	}
	return x
}

func (x *traffic) match(k int) bool {
	n := copy(x.buf[:], x.texts[k])
	x.ask.Host, x.ask.Path = x.buf[:x.mid[k]], x.buf[x.mid[k]:n]
	return x.table.Match(&x.ask) >= 0
}

// BenchmarkScale compares a table of 10,000 with one of 10. The two are asked in turn, a few thousand times each, and what is told
// is the median over the rounds of either time and of their ratio: what else runs on the machine falls on both. "hot" asks for one
// of them again and again, "ten" for ten spread over the table, "all" for all in an order nobody can guess: there the table is not
// in the first caches, and its misses are part of what 10,000 cost.
func BenchmarkScale(b *testing.B) {
	const small, large, batch = 10, 10_000, 2_000
	for _, s := range shapes() {
		tables := []*traffic{s.traffic(b, small), s.traffic(b, large)}
		for _, pattern := range []string{"hot", "ten", "all"} {
			var order [2][]int
			for i, n := range []int{small, large} {
				step := n/10 - n/10%6 + 1 // ten of them are of the same kinds in both: kinds repeat after six
				for range batch * 16 {
					k := 6 * step
					switch pattern {
					case "ten":
						k = rand.IntN(10) * step
					case "all":
						k = rand.IntN(n)
					}
					order[i] = append(order[i], k)
				}
			}
			b.Run(s.name+"/"+pattern, func(b *testing.B) {
				b.ReportAllocs()
				var times [2][]float64
				var ratios []float64
				for round := 0; b.Loop(); round++ {
					var took [2]float64
					for _, i := range []int{round & 1, 1 - round&1} {
						list := order[i][round%16*batch:][:batch]
						start := time.Now()
						for _, k := range list {
							if !tables[i].match(k) {
								b.Fatal("no match")
							}
						}
						took[i] = float64(time.Since(start).Nanoseconds()) / batch
						times[i] = append(times[i], took[i])
					}
					ratios = append(ratios, took[1]/took[0])
				}
				b.ReportMetric(median(times[0]), "ns/of-10")
				b.ReportMetric(median(times[1]), "ns/of-10000")
				b.ReportMetric(median(ratios), "ratio")
			})
		}
	}
}

func median(list []float64) float64 {
	slices.Sort(list)
	return list[len(list)/2]
}
