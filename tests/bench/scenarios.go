package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	latencyRate     = 5000
	idleConnections = 10_000
	manyClusters    = 10_000
	snapshotRate    = 1000
)

// latency compares percentiles at a fixed rate, timed from when a request was due.
func (b *bed) latency(rounds int, each time.Duration) error {
	fmt.Printf("\nlatency at %d requests a second, medians of %d rounds\n", latencyRate, rounds)
	p50, p99, p999 := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for round := range rounds {
		for i := range b.peers {
			p := b.peers[(i+round)%len(b.peers)]
			r, err := b.load(loadOrder{Port: p.http, Path: "/1k", Connections: 64, Rate: latencyRate, For: 2 * each})
			if err != nil {
				return err
			}
			if r.Errors > 0 {
				return fmt.Errorf("%s: %d requests failed", p.name, r.Errors)
			}
			us := func(d time.Duration) float64 { return float64(d) / 1e3 }
			p50[p.name], p99[p.name] = append(p50[p.name], us(r.P50)), append(p99[p.name], us(r.P99))
			p999[p.name] = append(p999[p.name], us(r.P999))
		}
	}
	for _, p := range b.peers {
		fmt.Printf("%-10s p50 %7.0f   p99 %7.0f   p99.9 %7.0f µs\n", p.name, median(p50[p.name]), median(p99[p.name]), median(p999[p.name]))
	}
	return nil
}

// memory is what an idle connection costs, after one request on it.
func (b *bed) memory() error {
	fmt.Printf("\nmemory (Pss) of %d idle keep-alive connections after one request on each\n", idleConnections)
	for _, p := range b.peers {
		before := p.memory()
		wait, release, err := b.begin(loadOrder{Port: p.http, Path: "/1k", Connections: idleConnections, Requests: 1})
		if err != nil {
			return err
		}
		r, err := wait()
		if err == nil {
			time.Sleep(10 * time.Second) // it may take that long to give back what it does not need
			fmt.Printf("%-10s %6.0f bytes a connection, %5.1f MiB without any", p.name, float64(p.memory()-before)/float64(r.Requests), float64(before)/(1<<20))
		}
		release()
		if err != nil {
			return err
		}
		time.Sleep(10 * time.Second)
		fmt.Printf(", %5.1f MiB after they went\n", float64(p.memory())/(1<<20))
	}
	return nil
}

// snapshot applies a configuration with many clusters, each with a route of its own, under load.
func (b *bed) snapshot() error {
	p := b.peers[0]
	var big strings.Builder
	small := b.hcl(p)
	at := strings.Index(small, "      route \"/*\"")
	big.WriteString(small[:at])
	for i := range manyClusters {
		fmt.Fprintf(&big, "      route \"/service%d/*\" { cluster = cluster.c%d }\n", i, i)
	}
	big.WriteString(small[at:])
	for i := range manyClusters {
		fmt.Fprintf(&big, "cluster \"c%d\" { endpoints = [\"127.0.0.1:%d\"] }\n", i, 10_000+i%50_000)
	}
	fmt.Printf("\na snapshot of %d clusters with %d routes, at %d requests a second\n", manyClusters, manyClusters, snapshotRate)
	var took, calm, meanwhile []float64
	for range 5 {
		window := 3 * time.Second
		r, err := b.load(loadOrder{Port: p.http, Path: "/1k", Connections: 32, Rate: snapshotRate, For: window})
		if err != nil {
			return err
		}
		calm = append(calm, float64(r.P99)/1e3)
		wait, release, err := b.begin(loadOrder{Port: p.http, Path: "/1k", Connections: 32, Rate: snapshotRate, For: window})
		if err != nil {
			return err
		}
		time.Sleep(window / 6)
		applied, failed := p.reload(big.String())
		if r, err = wait(); err == nil && r.Errors > 0 {
			err = fmt.Errorf("%d requests failed", r.Errors)
		}
		release()
		if failed != nil {
			return failed
		}
		if err != nil {
			return err
		}
		took, meanwhile = append(took, float64(applied)/1e6), append(meanwhile, float64(r.P99)/1e3)
		if _, err := p.reload(small); err != nil {
			return err
		}
	}
	fmt.Printf("applied in %.0f ms; p99 %.0f µs without, %.0f µs meanwhile, ratio %.2f\n",
		median(took), median(calm), median(meanwhile), median(divide(meanwhile, calm)))
	return nil
}

// reload gives the suite another configuration.
func (p *peer) reload(text string) (time.Duration, error) {
	next := p.config + ".next"
	if err := os.WriteFile(next, []byte(text), 0o644); err != nil {
		return 0, err
	}
	if err := os.Rename(next, p.config); err != nil {
		return 0, err
	}
	began := time.Now()
	cmd := exec.Command(p.bin, "reload", "--dir", filepath.Join(p.dir, "run"))
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("reload: %w\n%.2000s", err, out)
	}
	return time.Since(began), nil
}

// scale is what a request costs with 10 and with 10,000 virtual hosts of two routes, a third of them wildcards, and with as many
// routes in one virtual host, where requests ask for all of them evenly.
func (b *bed) scale(rounds int, each time.Duration) error {
	p := b.peers[0]
	hosts := func(n int) string {
		var text strings.Builder
		for k := range n {
			domain := fmt.Sprintf("a.host-%05d.example.com", k)
			if k%3 == 0 {
				domain = "*" + domain[1:]
			}
			fmt.Fprintf(&text, "    virtual_host %q {\n      route \"/api/*\" { cluster = cluster.up }\n      route \"/*\" { cluster = cluster.up }\n    }\n", domain)
		}
		return text.String()
	}
	routes := func(n int) string {
		var text strings.Builder
		text.WriteString("    virtual_host \"*\" {\n")
		for k := range n {
			fmt.Fprintf(&text, "      route \"/service-%05d/*\" {\n        cluster = cluster.up\n        rewrite { prefix = \"/\" }\n      }\n", k)
		}
		return text.String() + "    }\n"
	}
	const few, many = 10, 10_000
	type table struct {
		name, host, path string
		make             func(n int) string
		ports            [2]int
	}
	tables := []table{
		{"hosts", "a.host-00000.example.com", "/1k", hosts, [2]int{port(), port()}},
		{"routes", "bench", "/service-00000/1k", routes, [2]int{port(), port()}},
	}
	text := b.hcl(p)
	for _, t := range tables {
		for i, n := range []int{few, many} {
			text += fmt.Sprintf("listener \"%s-%d\" {\n  address = [\"127.0.0.1:%d\"]\n  http {\n%s  }\n}\n", t.name, n, t.ports[i], t.make(n))
		}
	}
	if _, err := p.reload(text); err != nil {
		return err
	}
	for _, t := range tables {
		var cost [2][]float64
		for round := -1; round < rounds; round++ {
			for _, i := range []int{round & 1, 1 - round&1} {
				before := p.cpu()
				r, err := b.load(loadOrder{Port: t.ports[i], Path: t.path, Host: t.host, Vary: []int{few, many}[i], Connections: 64, For: each})
				if err != nil {
					return err
				}
				if r.Errors > 0 {
					return fmt.Errorf("%s: %d requests failed", t.name, r.Errors)
				}
				if round >= 0 {
					cost[i] = append(cost[i], float64(p.cpu()-before)/float64(r.Requests)/1e3)
				}
			}
		}
		ratios := divide(cost[1], cost[0])
		slices.Sort(ratios)
		n := float64(len(ratios)) // the median of all is, nine times of ten, between these two
		least, most := ratios[max(0, int(n/2-0.82*math.Sqrt(n)))], ratios[min(len(ratios)-1, int(n/2+0.82*math.Sqrt(n)))]
		fmt.Printf("%-10s of %d %.2f µs, of %d %.2f µs: %.3f (%.2f–%.2f)\n", t.name, few, median(cost[0]), many, median(cost[1]), median(ratios), least, most)
	}
	_, err := p.reload(b.hcl(p))
	return err
}
