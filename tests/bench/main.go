// Command bench measures what a request costs: CPU time of the whole suite, beside HAProxy and nginx where they are installed, in
// interleaved rounds. Only ratios within one run mean anything; it prints medians of the rounds' ratios and never fails on a figure.
//
// The proxies share one CPU, each with one worker; the load and the upstream share another. With a single CPU all share it.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// workload is one shape of traffic.
type workload struct {
	name        string
	path        string
	connections int
	tcp         bool // through the TCP listener
	close       bool // a connection a request
	logged      bool // through the listener with an access log
}

var workloads = []workload{
	{name: "h1", path: "/1k", connections: 64},
	{name: "h1-64k", path: "/64k", connections: 64},
	{name: "h1-1m", path: "/1m", connections: 16},
	{name: "h1-close", path: "/1k", connections: 64, close: true},
	{name: "h1-log", path: "/1k", connections: 64, logged: true},
	{name: "tcp", path: "/1k", connections: 64, tcp: true},
	{name: "tcp-1m", path: "/1m", connections: 16, tcp: true},
}

func main() {
	if role := os.Getenv(roleVariable); role != "" {
		if err := play(role); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	rounds := flag.Int("rounds", 7, "interleaved rounds; the figures are medians")
	secs := flag.Int("secs", 2, "seconds a round and peer")
	only := flag.String("only", "", "workloads and scenarios, by comma; default all: h1 h1-64k h1-1m h1-close h1-log tcp tcp-1m latency memory snapshot scale")
	bin := flag.String("bin", os.Getenv("RETINUE_BIN"), "directory of the binaries")
	flag.Parse()
	if err := run(*bin, *rounds, time.Duration(*secs)*time.Second, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(bin string, rounds int, each time.Duration, only string) error {
	wanted := func(name string) bool { return only == "" || slices.Contains(strings.Split(only, ","), name) }
	b, err := newBed(bin)
	if err != nil {
		return err
	}
	defer b.close()
	fmt.Printf("%s, %d CPUs; proxies on CPU %d, load and upstream on CPU %d; %d rounds of %v\n", kernel(), len(b.cpus), b.proxyCPU, b.loadCPU, rounds, each)
	fmt.Printf("%-10s %-10s %10s %10s   %s\n", "work", "proxy", "µs CPU", "req/s", "ratio to it: retinue's median [least..most]")
	for _, w := range workloads {
		if wanted(w.name) {
			if err := b.compare(w, rounds, each); err != nil {
				return err
			}
		}
	}
	for _, s := range []struct {
		name string
		run  func() error
	}{
		{"latency", func() error { return b.latency(rounds, each) }},
		{"memory", b.memory},
		{"snapshot", b.snapshot},
		{"scale", func() error { return b.scale(rounds, each) }},
	} {
		if wanted(s.name) {
			if err := s.run(); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return nil
}

// compare runs one workload on every peer in turn, the order moving by one each round.
func (b *bed) compare(w workload, rounds int, each time.Duration) error {
	peers := b.peers
	if w.logged {
		peers = []*peer{b.peers[0]} // against itself, without a log
	}
	cost, rate := map[string][]float64{}, map[string][]float64{}
	type target struct {
		name string
		peer *peer
		port int
	}
	var targets []target
	for _, p := range peers {
		port := p.http
		if w.tcp {
			port = p.tcp
		}
		if w.logged {
			targets = append(targets, target{"logged", p, p.logged}, target{"unlogged", p, p.http})
			continue
		}
		targets = append(targets, target{p.name, p, port})
	}
	for round := -1; round < rounds; round++ {
		for i := range targets {
			t := targets[(i+round+1)%len(targets)]
			length := each
			if round < 0 {
				length = time.Second // warms up
			}
			before := t.peer.cpu()
			r, err := b.load(loadOrder{Port: t.port, Path: w.path, Connections: w.connections, Close: w.close, For: length})
			if err != nil {
				return fmt.Errorf("%s at %s: %w", w.name, t.name, err)
			}
			if round >= 0 {
				cost[t.name] = append(cost[t.name], float64(t.peer.cpu()-before)/float64(r.Requests)/1e3)
				rate[t.name] = append(rate[t.name], float64(r.Requests)/r.Took.Seconds())
			}
		}
	}
	for i, t := range targets {
		line := fmt.Sprintf("%-10s %-10s %10.2f %10.0f", w.name, t.name, median(cost[t.name]), median(rate[t.name]))
		if i > 0 {
			ratios := divide(cost[targets[0].name], cost[t.name])
			line += fmt.Sprintf("   %.3f [%.2f..%.2f]", median(ratios), slices.Min(ratios), slices.Max(ratios))
		}
		fmt.Println(line)
	}
	return nil
}

func divide(a, b []float64) []float64 {
	out := make([]float64, len(a))
	for i := range a {
		out[i] = a[i] / b[i]
	}
	return out
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	if len(sorted) == 0 {
		return 0
	}
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

func encode(v any) string {
	out, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(out)
}
