package hcm

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"retinue.dev/proxyd/internal/poller/simulated"
	configv1 "retinue.dev/services/api/config/v1"
)

// BenchmarkScale is what a whole request costs, without the kernel, where requests ask evenly for all of 10 virtual hosts and all of
// 10,000, a third of them wildcards, or as many routes of one virtual host. The two are asked in turn; what is told is the median over
// rounds of either time and of their ratio.
func BenchmarkScale(b *testing.B) {
	toUp := defaults().VirtualHosts[0].Routes[0].Action
	route := func(prefix string) *configv1.Route {
		return &configv1.Route{Name: prefix + "*", Match: &configv1.RouteMatch{Path: &configv1.RouteMatch_Prefix{Prefix: prefix}}, Action: toUp}
	}
	hosts := func(n int) (out []*configv1.VirtualHost) {
		for k := range n {
			domain := fmt.Sprintf("a.host-%05d.example.com", k)
			if k%3 == 0 {
				domain = "*" + domain[1:]
			}
			out = append(out, &configv1.VirtualHost{Name: domain, Domains: []string{domain}, Routes: []*configv1.Route{route("/api/"), route("/")}})
		}
		return out
	}
	routes := func(n int) []*configv1.VirtualHost {
		h := &configv1.VirtualHost{Name: "h", Domains: []string{"h"}}
		for k := range n {
			h.Routes = append(h.Routes, route(fmt.Sprintf("/service-%05d/", k)))
		}
		return []*configv1.VirtualHost{h}
	}
	for _, c := range []struct {
		name, request string
		hosts         func(n int) []*configv1.VirtualHost
	}{
		{"hosts", "GET /1k HTTP/1.1\r\nHost: a.host-%05d.example.com\r\nUser-Agent: wrk\r\nAccept: */*\r\n\r\n", hosts},
		{"routes", "GET /service-%05d/1k HTTP/1.1\r\nHost: h\r\nUser-Agent: wrk\r\nAccept: */*\r\n\r\n", routes},
	} {
		const batch = 1000
		sizes := [2]int{10, 10_000}
		var sims [2]*sim
		var clients [2]*simulated.Peer
		for i, n := range sizes {
			h := defaults()
			h.VirtualHosts = append(c.hosts(n), h.VirtualHosts...)
			sims[i] = newSim(b, h)
			sims[i].filter.Config.Logs = nil
			clients[i] = sims[i].warm()
		}
		request := fmt.Appendf(nil, c.request, 0)
		digits := request[bytes.Index(request, []byte("00000")):][:5]
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			var times [2][]float64
			var ratios []float64
			for round := 0; b.Loop(); round++ {
				var took [2]float64
				for _, i := range []int{round & 1, 1 - round&1} {
					start := time.Now()
					for range batch {
						k := rand.IntN(sizes[i])
						for at := len(digits) - 1; at >= 0; at-- { // in place: what is missed in the caches is the table's
							digits[at] = byte('0' + k%10)
							k /= 10
						}
						sims[i].carry(clients[i], request)
					}
					took[i] = float64(time.Since(start).Nanoseconds()) / batch
					times[i] = append(times[i], took[i])
				}
				ratios = append(ratios, took[1]/took[0])
			}
			median := func(list []float64) float64 { slices.Sort(list); return list[len(list)/2] }
			b.ReportMetric(median(times[0]), "ns/of-10")
			b.ReportMetric(median(times[1]), "ns/of-10000")
			b.ReportMetric(median(ratios), "ratio")
		})
	}
}
