// Command plugins measures what a call of a plugin costs: the same suite, the same requests, on a route without a plugin and on routes
// with one. It prints; it never fails on a figure.
//
//	RETINUE_BIN=bin go run ./bench/plugins [-rounds 5] [-secs 2]
//
// Saturated: 64 connections of wrk (or of this program where there is none), throughput and proxyd's CPU a request. Open loop: 5,000
// requests a second, each sent at its time whatever the earlier ones do, so that a stall is seen by all that it delays.
// Rounds are interleaved, figures are medians.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

var (
	rounds = flag.Int("rounds", 5, "interleaved rounds")
	secs   = flag.Int("secs", 2, "length of a saturated run")
	rate   = flag.Int("rate", 5000, "requests a second of the open loop")
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
stats { listen = "off" }
`

func main() {
	flag.Parse()
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
	text := fmt.Sprintf(config, filepath.Join(bin, "plugins/header-stamp"), filepath.Join(bin, "plugins/probe"), app)
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
	saturated(address, pid)
	openLoop(address)
	return nil
}

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

// upstream answers every request with the same bytes.
func upstream() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	response := []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				b := make([]byte, 8<<10)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
					if _, err := c.Write(response); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), nil
}

// cpu is a process's time in clock ticks of 10 ms.
func cpu(pid int) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.ParseFloat(f[11], 64)
	system, _ := strconv.ParseFloat(f[12], 64)
	return (user + system) / 100
}

var kinds = []string{"plain", "builtin", "plugin", "when", "cache"}

func saturated(address string, pid int) {
	throughput, cost := map[string][]float64{}, map[string][]float64{}
	for range *rounds {
		for _, kind := range kinds {
			before := cpu(pid)
			n, took := hammer(address, "/"+kind)
			throughput[kind] = append(throughput[kind], float64(n)/took.Seconds())
			cost[kind] = append(cost[kind], (cpu(pid)-before)*1e6/float64(n))
		}
	}
	fmt.Printf("saturated, 64 connections, 1 worker, %d rounds of %d s\n", *rounds, *secs)
	for _, kind := range kinds {
		fmt.Printf("  %-8s %8.0f requests/s  %.2f of plain   proxyd %5.2f µs/request  %+.2f\n", kind, median(throughput[kind]),
			median(ratios(throughput[kind], throughput["plain"])), median(cost[kind]), median(differences(cost[kind], cost["plain"])))
	}
}

var wrkRequests = regexp.MustCompile(`(\d+) requests in`)

// hammer sends as many requests as 64 connections can.
func hammer(address, path string) (int, time.Duration) {
	began := time.Now()
	out, err := exec.Command("wrk", "-t1", "-c64", fmt.Sprintf("-d%ds", *secs), "-H", "x-do: cache-it", "http://"+address+path).Output()
	if m := wrkRequests.FindSubmatch(out); err == nil && m != nil {
		n, _ := strconv.Atoi(string(m[1]))
		return n, time.Since(began)
	}
	var mu sync.Mutex
	var all sync.WaitGroup
	total := 0
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*secs)*time.Second)
	defer cancel()
	for range 64 {
		all.Go(func() {
			c, err := dial(address)
			if err != nil {
				return
			}
			defer c.Close()
			n := 0
			for ctx.Err() == nil && c.get(path) == nil {
				n++
			}
			mu.Lock()
			total += n
			mu.Unlock()
		})
	}
	all.Wait()
	return total, time.Since(began)
}

type client struct {
	net.Conn
	r *bufio.Reader
}

func dial(address string) (*client, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return &client{c, bufio.NewReader(c)}, nil
}

func (c *client) get(path string) error {
	if _, err := io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: a\r\nx-do: cache-it\r\n\r\n"); err != nil {
		return err
	}
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) <= 2 {
			break
		}
	}
	_, err := c.r.Discard(2)
	return err
}

// openLoop measures the time from when a request should have been sent to its answer.
func openLoop(address string) {
	p50, p99 := map[string][]float64{}, map[string][]float64{}
	shown := []string{"plain", "plugin", "cache"}
	for range *rounds {
		for _, kind := range shown {
			times := paced(address, "/"+kind)
			p50[kind] = append(p50[kind], quantile(times, 0.5))
			p99[kind] = append(p99[kind], quantile(times, 0.99))
		}
	}
	fmt.Printf("open loop, %d requests/s, %d rounds of %d s\n", *rate, *rounds, *secs)
	for _, kind := range shown {
		fmt.Printf("  %-8s p50 %6.0f µs %+.0f   p99 %6.0f µs %+.0f\n", kind, median(p50[kind]), median(differences(p50[kind], p50["plain"])),
			median(p99[kind]), median(differences(p99[kind], p99["plain"])))
	}
}

func paced(address, path string) []float64 {
	const connections = 16
	n := *rate * *secs
	gap := time.Second * connections / time.Duration(*rate)
	var mu sync.Mutex
	var all sync.WaitGroup
	times := make([]float64, 0, n)
	start := time.Now().Add(50 * time.Millisecond)
	for i := range connections {
		all.Go(func() {
			c, err := dial(address)
			if err != nil {
				return
			}
			defer c.Close()
			mine := make([]float64, 0, n/connections)
			at := start.Add(gap * time.Duration(i) / connections)
			for range n / connections {
				time.Sleep(time.Until(at))
				sent := time.Now() // the kernel's timers are late by tens of µs, which is not the proxy's
				if late := sent.Sub(at); late > time.Millisecond {
					sent = at // but a stall of the answer before is
				}
				if c.get(path) != nil {
					return
				}
				mine = append(mine, float64(time.Since(sent).Nanoseconds())/1e3)
				at = at.Add(gap)
			}
			mu.Lock()
			times = append(times, mine...)
			mu.Unlock()
		})
	}
	all.Wait()
	return times
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
