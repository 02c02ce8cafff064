// Command plugins measures what a call of a plugin costs: the same suite, the same requests, on a route without a plugin and on routes
// with one. It prints; it never fails on a figure.
//
//	RETINUE_BIN=bin go run ./bench/plugins [-rounds 15] [-slice 500ms]
//
// Saturated: 64 connections, throughput and proxyd's CPU a request. Open loop: 5,000 requests a second, each sent at its time whatever
// the earlier ones do, so that a stall is seen by all that it delays.
//
// Bystanders: requests of a route without a plugin, while plugins of other routes are killed, hang, flood, lie and leak, beside those while they behave. Where
// the load shares the processors with the suite, a plugin that eats them delays the load too; -urgent counts what the suite is delayed alone.
//
// A round is one short slice of each kind in an order of its own, and a figure is the median of what the rounds say beside the same round's
// slice without a plugin, with the 90 % interval of a bootstrap over rounds: machines are shared, and many short rounds see through
// that where a few long ones do not.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	rounds = flag.Int("rounds", 15, "interleaved rounds")
	slice  = flag.Duration("slice", 500*time.Millisecond, "length of one kind's part of a round")
	rate   = flag.Int("rate", 5000, "requests a second of the open loop")
	only   = flag.String("only", "", "\"saturated\", \"open\" or \"bystanders\"; all when empty")
	chosen = flag.String("misdeeds", "", "of the bystanders, separated by commas; all when empty")
	urgent = flag.Bool("urgent", false, "the load and the upstream have real-time priority, as if they were on machines of their own")
)

const config = `
runtime { workers = 1 }
plugin "stamp" {
  command = %[1]q
  timeout = "1s"
  config { header = "x-stamp" }
}
plugin "cache" {
  command = %[2]q
  timeout = "1s"
  config {
    cache_key = ["x-do"]
    when      = "/cache"
  }
}
listener "web" {
  address = ["127.0.0.1:0"]
  http {
    virtual_host "all" {
      domains = ["*"]
      %[5]s
      route "/plain" { cluster = cluster.app }
      route "/builtin" {
        cluster = cluster.app
        headers {
          request { set = { "x-stamp" = "stamped" } }
        }
      }
      route "/plugin" {
        cluster = cluster.app
        filters = [plugin.stamp]
      }
      route "/when" {
        cluster = cluster.app
        filters = [plugin.cache]
      }
      route "/cache" {
        cluster = cluster.app
        filters = [plugin.cache]
      }
    }
  }
}
cluster "app" { endpoints = [%[3]q] }
%[4]s
stats { listen = "off" }
`

func main() {
	flag.Parse()
	if err := choose(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	bin, err := filepath.Abs(os.Getenv("RETINUE_BIN"))
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	app, err := upstream()
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "bench.hcl")
	bad, routes := "", ""
	if wanted("bystanders") {
		bad, routes = badPlugins(bin)
	}
	text := fmt.Sprintf(config, filepath.Join(bin, "plugins/header-stamp"), filepath.Join(bin, "plugins/probe"), app, bad, routes)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	suite := exec.Command(filepath.Join(bin, "retinue"), "run", "--config", file, "--dir", filepath.Join(dir, "run"))
	suite.Stderr = os.Stderr
	if err := suite.Start(); err != nil {
		return err
	}
	defer func() {
		_ = suite.Process.Signal(syscall.SIGTERM)
		_ = suite.Wait()
	}()
	address, pid, err := await(bin, filepath.Join(dir, "run"))
	if err != nil {
		return err
	}
	if wanted("saturated") {
		err = saturated(address, pid)
	}
	if err == nil && wanted("open") {
		err = openLoop(address, pid)
	}
	if err == nil && wanted("bystanders") {
		err = bystanders(address, bin, filepath.Join(dir, "run"))
	}
	return err
}

func wanted(part string) bool { return *only == "" || *only == part }

// await waits until the suite serves.
func await(bin, dir string) (address string, pid int, err error) {
	for range 200 {
		time.Sleep(50 * time.Millisecond)
		out, _ := exec.Command(filepath.Join(bin, "retinue"), "status", "--json", "--dir", dir).Output()
		var s struct {
			Restartd struct {
				Generations []struct{ State, PID string }
				Listeners   []struct{ Addresses []string }
			}
		}
		if json.Unmarshal(out, &s) != nil {
			continue
		}
		for _, g := range s.Restartd.Generations {
			if g.State == "STATE_SERVING" && len(s.Restartd.Listeners) > 0 {
				pid, err = strconv.Atoi(g.PID)
				return s.Restartd.Listeners[0].Addresses[0], pid, err
			}
		}
	}
	return "", 0, fmt.Errorf("the suite does not serve")
}

// cpu is the time that a process's threads have run, in µs.
func cpu(pid int) (total float64) {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	for _, path := range threads {
		b, _ := os.ReadFile(path)
		ran, _, _ := strings.Cut(string(b), " ")
		ns, _ := strconv.ParseFloat(ran, 64)
		total += ns / 1e3
	}
	return total
}

var kinds = []string{"plain", "builtin", "plugin", "when", "cache"}

// inRounds runs every kind once a round, and all once before that counts.
func inRounds(measure func(kind string, counts bool) error) error {
	for round := range *rounds + 1 {
		for _, i := range rand.Perm(len(kinds)) {
			if err := measure(kinds[i], round > 0); err != nil {
				return fmt.Errorf("%s: %w", kinds[i], err)
			}
		}
	}
	return nil
}

// interval is the median with the bounds of the middle 90 % of the medians of resampled rounds.
func interval(list []float64) (middle, low, high float64) {
	again := make([]float64, len(list))
	var medians []float64
	for range 2000 {
		for i := range again {
			again[i] = list[rand.IntN(len(list))]
		}
		medians = append(medians, median(again))
	}
	return median(list), quantile(medians, 0.05), quantile(medians, 0.95)
}

func saturated(address string, pid int) error {
	throughput, cost := map[string][]float64{}, map[string][]float64{}
	err := inRounds(func(kind string, counts bool) error {
		before := cpu(pid)
		n, took, err := hammer(address, "/"+kind)
		if err == nil && counts {
			throughput[kind] = append(throughput[kind], float64(n)/took.Seconds())
			cost[kind] = append(cost[kind], (cpu(pid)-before)/float64(n))
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Printf("saturated, 64 connections, 1 worker, %d rounds of %v\n", *rounds, *slice)
	for _, kind := range kinds {
		r, rl, rh := interval(ratios(throughput[kind], throughput["plain"]))
		c, cl, ch := interval(differences(cost[kind], cost["plain"]))
		k, kl, kh := interval(ratios(cost[kind], cost["plain"]))
		fmt.Printf("  %-8s %7.0f requests/s  %.3f [%.3f, %.3f] of plain   proxyd %5.2f µs/request %+.2f [%+.2f, %+.2f]  %.3f [%.3f, %.3f] of plain\n",
			kind, median(throughput[kind]), r, rl, rh, median(cost[kind]), c, cl, ch, k, kl, kh)
	}
	return nil
}

// openLoop measures the time from when a request should have been sent to its answer.
func openLoop(address string, pid int) error {
	p50, p99, cost := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	err := inRounds(func(kind string, counts bool) error {
		before := cpu(pid)
		times, err := paced(address, "/"+kind)
		if err == nil && counts {
			cost[kind] = append(cost[kind], (cpu(pid)-before)/float64(len(times)))
			p50[kind] = append(p50[kind], quantile(times, 0.5))
			p99[kind] = append(p99[kind], quantile(times, 0.99))
		}
		return err
	})
	if err != nil {
		return err
	}
	fmt.Printf("open loop, %d requests/s, %d rounds of %v\n", *rate, *rounds, *slice)
	for _, kind := range kinds {
		m, ml, mh := interval(differences(p50[kind], p50["plain"]))
		t, tl, th := interval(differences(p99[kind], p99["plain"]))
		c, cl, ch := interval(differences(cost[kind], cost["plain"]))
		fmt.Printf("  %-8s p50 %5.0f µs %+.0f [%+.0f, %+.0f]   p99 %5.0f µs %+.0f [%+.0f, %+.0f]   proxyd %5.2f µs/request %+.2f [%+.2f, %+.2f]\n", kind,
			median(p50[kind]), m, ml, mh, median(p99[kind]), t, tl, th, median(cost[kind]), c, cl, ch)
	}
	return nil
}

func quantile(list []float64, q float64) float64 {
	if len(list) == 0 {
		return 0
	}
	slices.Sort(list)
	return list[min(int(q*float64(len(list))), len(list)-1)]
}

func median(list []float64) float64 { return quantile(slices.Clone(list), 0.5) }

func ratios(a, b []float64) (out []float64) {
	for i := range a {
		out = append(out, a[i]/b[i])
	}
	return out
}

func differences(a, b []float64) (out []float64) {
	for i := range a {
		out = append(out, a[i]-b[i])
	}
	return out
}
